"""What a site allows and what it agrees to tell the federation about itself: `policy:` in site.yaml.

Torch-free. The same rules judge a whole study before its approval (`findings`) and each request and
reply while it runs (`check_request`, `permitted`, `check_bytes`).
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from clients.data.findings import Finding
from clients.governance.limits import settings_of
from common.components import COMPONENTS, Role
from common.errors import ContractError
from common.privacy import WEAK_EPSILON
from common.study import Study
from common.tasks import TASKS, Task, all_metrics

# YAML has lists only; pydantic's strict mode would refuse them for the tuples that a frozen model needs.
_FromList = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)


def _metric_groups() -> tuple[str, ...]:
    """Return the first word of every number, which stands for all of its group: `infusion` for `infusion/dice/mean`."""
    return tuple(dict.fromkeys(name.partition("/")[0] for name in all_metrics()))


class Policy(BaseModel):
    """The `policy:` section of site.yaml; every key has a default, an unknown key or value is refused.

    Lists name what is allowed. A name stands for all that continue it after a `/` or a `.`:
    `source_branch` for both of its halves, `infusion/dice` for `infusion/dice/mean` and the others.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    # A mean over one or two patients is those patients; five is a common floor for small counts.
    min_patients: int = Field(default=5, ge=1)

    # Different patients really drawn for an update; fewer, and it is refused before it leaves. Under
    # differential privacy who was drawn is a secret and the noise bounds what each one adds, so it does not apply.
    min_update_patients: int = Field(default=5, ge=1)

    # The bounds below are those of `clients.governance.limits`; the shipped studies keep them with room.
    # 128: weights that look trained took one image in a hundred out of 32 (docs/privacy.md), and of more images each is
    # a smaller part. The rehearsal's 16 steps of eight patients just keep it.
    min_update_draws: int = Field(default=128, ge=1)

    # With 0.99 hidden, the rest of the image hardly matters and its filling-in is the image itself.
    max_mask_ratio: float = Field(default=0.8, gt=0, le=1)
    max_mask_side: float = Field(default=0.25, gt=0, le=1)

    # The head's is 0.01. A large rate writes one batch over all that was learnt before.
    max_learning_rate: float = Field(default=0.02, gt=0)
    max_weight_decay: float = Field(default=0.1, ge=0)

    # Honest rounds stay under 100 at 0.3 million parameters.
    max_update_norm: float = Field(default=1e3, gt=0)

    # The three below are left out of the hash at their defaults, so that approvals from before them hold. The shipped
    # studies' rounds move a weight by 0.6 at most, and by 17 times one's own part. Where that of others may be far
    # larger than one's own, weights can come that a few steps of one's own were made for.
    max_travel: float = Field(default=1.0, gt=0, exclude_if=(1.0).__eq__)
    max_travel_ratio: float = Field(default=20.0, ge=1, exclude_if=(20.0).__eq__)

    # Each is one more number of the same patients under the coordinator's weights. The shipped studies have two.
    max_score_rounds: int = Field(default=10, ge=1, exclude_if=(10).__eq__)

    # 3 or more: only a sum with the updates of so many sites may be learnt by anybody, which takes a study with
    # `secure_aggregation` for this role. Left out of the hash while it is 1, so that approvals from before hold.
    min_summed_sites: int = Field(default=1, ge=1, exclude_if=(1).__eq__)

    # 1 declares the true count, so that patient-weighted averages are exact; 10 blurs it.
    patients_rounded_to: int = Field(default=1, ge=1)

    # Above any one probe's archive, so it bounds a site's weight only where the site lowers it.
    patients_cap: int = Field(default=100_000, ge=1)

    # All: a study gives a role only what that role can do, and its approval shows each of them.
    allowed_tasks: Annotated[tuple[str, ...], _FromList] = Field(default_factory=lambda: tuple(TASKS))

    # All that any task can train: a study without one of them is another method.
    allowed_components: Annotated[tuple[str, ...], _FromList] = COMPONENTS

    # All of the contract's: each is one number over at least `min_patients` patients, and without
    # them nobody sees a run go wrong. What is not allowed is left out of the reply.
    allowed_metrics: Annotated[tuple[str, ...], _FromList] = Field(default_factory=_metric_groups)

    # `report` writes into the worker's log what looks made instead of trained, and goes on: for networks that came
    # from elsewhere and look unlike any that this software begins with.
    implausible_weights: Literal["refuse", "report"] = "refuse"

    # Every round is one more look at the same patients. The shipped studies take 28; ten times that
    # is a long study, and more should be a decision.
    max_rounds: int = Field(default=280, ge=1)

    # Two branches of 0.3 million parameters make 2.5 MB; this leaves room for networks 25 times as
    # large and is still less than a folder of images.
    max_round_bytes: int = Field(default=64 * 2**20, ge=1)

    # False: what a first study shows without noise is the reference for the price of privacy. True
    # refuses every study without differential privacy.
    privacy_required: bool = False

    # No cap of the site's own while no privacy is asked for; then a study's counts as private if it has one of
    # `common.privacy.WEAK_EPSILON` at most. A study without differential privacy is over any cap. It is
    # on all studies together, at the delta of the study that asks.
    epsilon_cap: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    # An epsilon at a large delta says little, and a cap of the site's own is none if the study picks the delta that it
    # holds at. Left out of the hash at its default.
    max_delta: float = Field(default=1e-5, gt=0, lt=1, exclude_if=(1e-5).__eq__)

    # No end by itself; a contract with the coordinator often has one. The last day that counts, UTC.
    expires: date | None = None

    # Two: an approval holds only once two different persons gave it. Left out of the hash while it is 1, so that
    # approvals from before there was this key hold.
    approvals_needed: int = Field(default=1, ge=1, le=2, exclude_if=(1).__eq__)

    @field_validator("allowed_tasks")
    @classmethod
    def _known_tasks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known(names, tuple(TASKS), tuple(TASKS))

    @field_validator("allowed_components")
    @classmethod
    def _known_components(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known(names, COMPONENTS, COMPONENTS)

    @field_validator("allowed_metrics")
    @classmethod
    def _known_metrics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _known(names, tuple(all_metrics()), _metric_groups())

    def hash(self) -> str:
        """Return the SHA-256 of the policy with every default written out; approvals are bound to it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def declared_patients(self, n: int) -> int:
        """The patient count that may leave: `n` rounded down to the multiple, then capped.

        A site with any patient declares at least one multiple, because a weight of zero would drop
        it from the average. Raises ValueError for a negative count.
        """
        if n < 0:
            raise ValueError(f"a patient count is 0 or more, found {n}")
        if n == 0:
            return 0
        multiple = self.patients_rounded_to
        return min(max(n // multiple * multiple, multiple), self.patients_cap)

    def declared_in(self, study: Study, n: int) -> int:
        """The patient count that may leave in a study: under privacy its public nominal number, whatever `n` is.

        No site tells more than it counts for, and no update is weighed by more before it leaves under a mask.
        """
        declared = self.declared_patients(n) if study.privacy is None else study.privacy.nominal_patients
        return study.participation.counted(declared)

    def permitted(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return those of a task's metrics that may leave."""
        return {name: value for name, value in metrics.items() if self.permits_metric(name)}

    def permits_metric(self, name: str) -> bool:
        """Whether a metric of the contract may leave."""
        return _covers(self.allowed_metrics, name)

    def bounded(self, study: Study) -> bool:
        """Whether differential privacy bounds what a study tells: by an epsilon that means something, or this policy's.

        A study writes its own cap, and one of a million is no promise. The site stops at the smaller of the two.
        """
        return study.privacy is not None and (self.epsilon_cap is not None or study.privacy.epsilon_cap <= WEAK_EPSILON)

    def findings(self, study: Study, role: Role, *, today: date, sent_bytes: Mapping[str, int]) -> list[Finding]:
        """Return everything in a study that this policy does not allow to a site of `role`.

        Args:
            today: UTC.
            sent_bytes: stage name -> bytes of this site's reply in each of its rounds.
        """
        findings = [*self._of_date(today), *self._of_study(study)]
        for stage in (round_.stage for round_ in study.rounds() if round_.step == 0):
            task = stage.task_of(role)
            if task is not None:
                findings += self._of_task(study, role, task, f"stage {stage.name}")
                findings += self._of_bytes(sent_bytes.get(stage.name, 0), f"stage {stage.name}")
        return findings

    def check_date(self, today: date) -> None:
        """Check the day of a request. Raises ContractError `policy-expired`."""
        _refuse(self._of_date(today))

    def check_request(self, study: Study, role: Role, task: Task) -> None:
        """Check a task before it runs.

        Raises:
            ContractError: `policy-rounds`, `privacy-required`, `privacy-delta`, `policy-task`, `policy-component`,
                `policy-limit` or `policy-summed-sites`.
        """
        _refuse([*self._of_study(study), *self._of_task(study, role, task, "the request")])

    def check_summed(self, sites: int) -> None:
        """Check how many updates are in any sum that can be learnt. Raises ContractError `policy-summed-sites`."""
        if sites < self.min_summed_sites:
            _refuse([self._of_summed(sites, "the request")])

    def check_drawn(self, study: Study, patients: int) -> None:
        """Check how many different patients were really drawn for an update. Raises ContractError `policy-patients`."""
        if not self.bounded(study):
            _refuse(self._of_drawn(patients, "the update"))

    def check_bytes(self, count: int) -> None:
        """Check a reply's size in bytes before it leaves. Raises ContractError `policy-bytes`."""
        _refuse(self._of_bytes(count, "the reply"))

    def _of_date(self, today: date) -> Iterator[Finding]:
        if self.expires is not None and today > self.expires:
            yield _finding(
                "policy-expired",
                "expires",
                f"the policy ended on {self.expires}",
                "Agree on a new date with your privacy officer, set `expires`, then approve again",
            )

    def _of_study(self, study: Study) -> Iterator[Finding]:
        rounds = len(study.rounds())
        if rounds > self.max_rounds:
            yield _finding(
                "policy-rounds",
                "max_rounds",
                f"expected at most {self.max_rounds} rounds, found {rounds}",
                "Ask the coordinator for a shorter study, or raise `max_rounds`",
            )
        # How far the cap reaches is the accountant's business: a study that comes above it stops there.
        for key, asked in (("privacy_required", self.privacy_required), ("epsilon_cap", self.epsilon_cap is not None)):
            if asked and not self.bounded(study):
                found = (
                    "one without" if study.privacy is None else f"one that may come to {study.privacy.epsilon_cap:g}"
                )
                yield _finding(
                    "privacy-required",
                    key,
                    f"expected a study with differential privacy, its epsilon capped at {WEAK_EPSILON:g} or less, "
                    f"found {found}",
                    "Ask the coordinator for a study with differential privacy, or change the policy",
                )

        if study.privacy is not None and study.privacy.delta > self.max_delta:
            yield _finding(
                "privacy-delta",
                "max_delta",
                f"expected a privacy section whose delta is at most {self.max_delta:g}, found {study.privacy.delta:g}",
                "Ask the coordinator for a smaller delta, or raise `max_delta`: epsilon may fail with this probability",
            )

    def _of_drawn(self, patients: int, where: str) -> Iterator[Finding]:
        if patients < self.min_update_patients:
            yield _finding(
                "policy-patients",
                "min_update_patients",
                f"expected at least {self.min_update_patients} patients behind {where}, found {patients}",
                "Ask the coordinator for a larger batch or more steps, or add patients; a smaller number lets an "
                "update tell more of each",
            )

    def _of_summed(self, sites: int, where: str) -> Finding:
        return _finding(
            "policy-summed-sites",
            "min_summed_sites",
            f"{where}: expected sums of the updates of at least {self.min_summed_sites} sites, found {sites}",
            "Ask the coordinator for a study with `secure_aggregation` for your role and more sites of it",
        )

    def _of_task(self, study: Study, role: Role, task: Task, where: str) -> Iterator[Finding]:
        for setting in settings_of(study, task, self):
            if not setting.allowed:
                yield _finding(
                    "policy-limit",
                    setting.key,
                    f"{where}, {setting.words}: expected at {'least' if setting.least else 'most'} {setting.bound:g}, "
                    f"found {setting.value:g}",
                    "Ask the coordinator why, and for a study within the bound; the bound is there because crafted "
                    "weights can turn such a training into a copy of images",
                )
        quorum = study.participation.quorum.get(role, 0) if study.masks(task, role) else 1
        if task.trains and quorum < self.min_summed_sites:
            yield self._of_summed(quorum, where)
        if task.task not in self.allowed_tasks:
            yield _finding(
                "policy-task",
                "allowed_tasks",
                f"{where} asks for the task {task.task}, which is not allowed",
                "Ask the coordinator for a study without it, or add it to `allowed_tasks`",
            )
        barred = [name for name in task.trains if not _covers(self.allowed_components, name)]
        if barred:
            yield _finding(
                "policy-component",
                "allowed_components",
                f"{where} would send updates of {', '.join(barred)}, not allowed",
                "Ask the coordinator for a study without them, or add them to `allowed_components`",
            )

    def _of_bytes(self, count: int, where: str) -> Iterator[Finding]:
        if count > self.max_round_bytes:
            yield _finding(
                "policy-bytes",
                "max_round_bytes",
                f"{where} would send {count} bytes a round, expected at most {self.max_round_bytes}",
                "Ask the coordinator for a smaller network, or raise `max_round_bytes`",
            )


def _finding(code: str, key: str, message: str, remedy: str) -> Finding:
    return Finding(code, f"site.yaml policy.{key}", message, remedy)


def _refuse(findings: Iterable[Finding]) -> None:
    """Raise the first finding as what the site answers; its text stays in the site's log."""
    for finding in findings:
        raise ContractError(finding.code, finding.message)


def _covers(allowed: Iterable[str], name: str) -> bool:
    return any(name == entry or name.startswith((f"{entry}/", f"{entry}.")) for entry in allowed)


def _known(names: tuple[str, ...], known: tuple[str, ...], shown: tuple[str, ...]) -> tuple[str, ...]:
    wrong = [name for name in names if not any(_covers([name], one) for one in known)]
    if wrong:
        raise ValueError(f"unknown: {', '.join(wrong)}; known are {', '.join(shown)}")
    return names
