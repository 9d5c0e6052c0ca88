"""A site's privacy budget: every noisy step of every round of every study, and the epsilon of them all.

One accountant a site, since it is the same patients each time. Renyi differential privacy of the sampled
Gaussian mechanism (Mironov 2017, arXiv 1702.07476; Mironov et al. 2019, arXiv 1908.10530), composed by
adding up, as opacus computes it. Neighbours differ by all frames of one patient, there or not.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from clients.governance.state import write
from common.components import Role
from common.errors import ContractError, SiteStateError
from common.messages import digest
from common.privacy import Privacy
from common.stage import Round
from common.strict_text import parse_json
from common.study import Study
from common.tasks import Task, TrainingTask

VERSION = 1


@dataclass(frozen=True)
class Charge:
    """What one reply costs.

    Attributes:
        id: hash of request and randomness. The same request under the same randomness has the very same
            reply, which tells nothing new and is paid once.
        study, round: where it was spent; for the reader, they do not count.
        sample_rate: probability with which a step draws any one patient.
        noise_multiplier: standard deviation of the noise in units of the clip.
        steps: noisy gradients.
    """

    id: str
    study: str
    round: int
    sample_rate: float
    noise_multiplier: float
    steps: int


def charge_of(study: Study, study_hash: str, round_: Round, task: Task, id_: str) -> Charge | None:
    """Return what a task costs, or None for one that costs nothing: no privacy, or no training."""
    privacy = study.privacy
    if privacy is None or not isinstance(task, TrainingTask):
        return None
    rate = privacy.sample_rate(study.batch_size)
    return Charge(id_, study_hash, round_.index, rate, privacy.noise_multiplier, task.steps)


def charges_of(study: Study, role: Role) -> list[Charge]:
    """Return what each round of a study costs a site of `role`, in order."""
    tasks = [(round_, round_.stage.task_of(role)) for round_ in study.rounds()]
    study_hash = study.hash()
    charges = [charge_of(study, study_hash, own, task, f"planned {own.index}") for own, task in tasks if task]
    return [charge for charge in charges if charge is not None]


#: Orders among which the best is taken. Opacus' own end at 63, too low for an epsilon under about 0.3,
#: and begin at 1.1, too high for one over about 100.
ORDERS = (1.01, 1.03, *(1 + i / 10 for i in range(1, 100)), *range(11, 64), *(2**i for i in range(6, 11)))


def epsilon_of(charges: Iterable[Charge], delta: float) -> float:
    """Return the epsilon at `delta` of all charges together; 0 for none.

    Raises:
        SiteStateError: if it is below 0, which only a delta far too large or a changed record gives.
    """
    steps: dict[tuple[float, float], int] = {}
    for charge in charges:
        kind = (charge.sample_rate, charge.noise_multiplier)
        steps[kind] = steps.get(kind, 0) + charge.steps
    if not steps:
        return 0.0
    from opacus.accountants.analysis import rdp  # seconds, which a site without privacy need not wait

    total = sum(count * renyi(rate, noise) for (rate, noise), count in sorted(steps.items()))
    epsilon, _ = rdp.get_privacy_spent(orders=list(ORDERS), rdp=total, delta=delta)
    if epsilon < 0:
        raise SiteStateError(
            f"an epsilon of {epsilon:.4f} at delta {delta:g} cannot be: so much noise, or so large a delta, is in no "
            "study that hides anything. If you changed nothing, show this to your privacy officer first."
        )
    return float(epsilon)


@lru_cache(maxsize=1024)
def renyi(sample_rate: float, noise_multiplier: float) -> np.ndarray:
    """Return the Renyi divergence of one step at each of `ORDERS`, [orders]."""
    from opacus.accountants.analysis import rdp

    divergence = rdp.compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=list(ORDERS))
    return np.asarray(divergence)


class Accountant:
    """The budget of one site, in a file, or in memory where nothing is kept (simulations).

    Args:
        path: need not exist yet.
        charges: what was spent before, where there is no file.

    Raises:
        SiteStateError: if the file is damaged; without it the budget could be spent twice.
    """

    def __init__(self, path: Path | None = None, charges: Iterable[Charge] = ()) -> None:
        self.path = path
        self.charges = tuple(charges)
        #: Hashes of studies without privacy that were answered here: no epsilon bounds what they told.
        self.unbounded: frozenset[str] = frozenset()
        #: SHA-256 of the file, for the ledger; None where there is none yet.
        self.sha256: str | None = None
        if path is not None and path.exists():
            self.charges, self.unbounded, self.sha256 = _read(path)

    @property
    def count(self) -> int:
        """How much the accountant knows of: charges, and studies without privacy. It only ever grows."""
        return len(self.charges) + len(self.unbounded)

    def follows(self, sha256: str | None) -> bool:
        """Whether the file is that of this hash, or has one record more: a crash may lie between it and the ledger.

        Args:
            sha256: None for no file.
        """
        before = [_content(self.charges[:-1], self.unbounded)] if self.charges else []
        before += [_content(self.charges, self.unbounded - {study}) for study in self.unbounded]
        if sha256 is None:
            return self.count <= 1
        return sha256 == self.sha256 or sha256 in map(digest, before)

    def epsilon(self, delta: float, *more: Charge) -> float:
        """Return the epsilon of all noisy steps so far, and of `more` besides.

        It bounds what left the site only while `unbounded` is empty; see `stated`.
        """
        known = {charge.id for charge in self.charges}
        return epsilon_of([*self.charges, *(charge for charge in more if charge.id not in known)], delta)

    def stated(self, privacy: Privacy | None) -> float | None:
        """Return the epsilon that may be told, or None where none holds for all that left."""
        return None if privacy is None or self.unbounded else self.epsilon(privacy.delta)

    def check(self, charge: Charge, privacy: Privacy, site_cap: float | None) -> None:
        """Check before a task that it fits into the budget.

        Args:
            site_cap: of the site's policy; the smaller of it and the study's holds.

        Raises:
            ContractError: `privacy-budget-spent`.
        """
        cap = smaller_cap(privacy, site_cap)
        after = self.epsilon(privacy.delta, charge)
        if after > cap:
            raise ContractError(
                "privacy-budget-spent",
                f"epsilon would be {after:.3f} after this round, the cap is {cap:g} at delta {privacy.delta:g}. The "
                "site takes part in no further training of this study",
            )

    def spend(self, charge: Charge) -> None:
        """Bring a charge to the disk, before the reply that it is for can leave.

        Raises:
            SiteStateError: if that fails; nothing may leave then.
        """
        if all(known.id != charge.id for known in self.charges):
            self._keep((*self.charges, charge), self.unbounded)

    def expose(self, study_hash: str) -> None:
        """Note that a reply of a study without privacy leaves. Raises SiteStateError as `spend` does."""
        if study_hash not in self.unbounded:
            self._keep(self.charges, self.unbounded | {study_hash})

    def _keep(self, charges: tuple[Charge, ...], unbounded: frozenset[str]) -> None:
        if self.path is not None:
            content = _content(charges, unbounded)
            write(self.path, content)
            self.sha256 = digest(content)
        self.charges, self.unbounded = charges, unbounded


def smaller_cap(privacy: Privacy, site_cap: float | None) -> float:
    """Return the cap that holds: the study's or the site's own."""
    return privacy.epsilon_cap if site_cap is None else min(privacy.epsilon_cap, site_cap)


def _content(charges: tuple[Charge, ...], unbounded: frozenset[str]) -> bytes:
    content = {"version": VERSION, "charges": [asdict(charge) for charge in charges], "unbounded": sorted(unbounded)}
    return json.dumps(content, indent=1).encode()


def _read(path: Path) -> tuple[tuple[Charge, ...], frozenset[str], str]:
    try:
        blob = path.read_bytes()
        content = parse_json(blob, origin=path.name)
        charges = tuple(Charge(**charge) for charge in content["charges"])
        wrong = any(not 0 < c.sample_rate <= 1 or c.noise_multiplier <= 0 or c.steps < 1 for c in charges)
        if content["version"] != VERSION or wrong:
            raise ValueError
        return charges, frozenset(content["unbounded"]), digest(blob)
    except OSError as error:
        raise SiteStateError(f"cannot read {path}: {error.strerror}. Run as the worker's user.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SiteStateError(
            f"{path} is damaged: what was spent of the privacy budget is not known any more. Restore it from your "
            "backup before anything else is sent."
        ) from None
