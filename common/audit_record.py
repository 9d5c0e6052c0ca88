"""The record of an audit of leakage: what `crossprobe audit` writes, what fails it, and what a release's card shows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import RunError
from common.strict_text import TextError, parse_json

#: A share of what was tried, and its 95 % interval.
Share = Annotated[float, Field(ge=0, le=1)]
Interval = tuple[Share, Share]
#: Fixed words of the audit; a card shows nothing else of a record that is text.
Word = Annotated[str, Field(pattern=r"^[a-z_/, ]{1,60}$")]
Count = Annotated[int, Field(ge=0)]


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Reconstruction(_Row):
    """One attack on images at one site, see `simulations.audit.audit.Reconstruction`."""

    attack: Word
    noise: Annotated[float, Field(ge=0)] | None
    summed: Annotated[int, Field(ge=1)] = 1
    lifted: bool
    rebuilt: Count
    drawn: Annotated[int, Field(ge=1)]


class Membership(_Row):
    """One attack on membership at one site, see `simulations.audit.membership.Membership`."""

    attack: Word
    auc: Share
    auc_ci95: Interval
    tpr: Share
    tpr_ci95: Interval


class Number(_Row):
    """One attack on a number at one site, see `simulations.audit.numbers.Told`."""

    number: Word
    attacked: Count
    told: Count
    cohorts: bool = True


class AuditRecord(_Row):
    """What an audit found. The hashes are those of the model that it was about; None where it was about none."""

    study_sha256: str | None = None
    weights_sha256: str | None = None
    reconstruction: tuple[Reconstruction, ...]
    membership: tuple[Membership, ...]
    numbers: tuple[Number, ...] = ()

    def failures(self) -> Iterator[str]:
        """Yield what no audit may find, a sentence each.

        Under a site's own policy no image may be rebuilt; the interval of a membership attack has to reach down to a
        guess; and no number of a single patient may be told from those that leave a site with its state.
        """
        for row in self.reconstruction:
            if not row.lifted and row.rebuilt:
                yield f"{row.attack}: {row.rebuilt} of {row.drawn} images rebuilt under a site's own policy"
        for member in self.membership:
            if member.auc_ci95[0] > 0.5:
                yield f"membership by {member.attack}: AUC {member.auc:.2f}, and above a guess at 95 %"
        for number in self.numbers:
            if number.cohorts and number.told:
                yield f"{number.number}: told of {number.told} of {number.attacked} single patients by a difference"


def load_audit(file: Path, *, study: str, weights: str) -> AuditRecord:
    """Return the record in a file if it is of one very model.

    Args:
        study, weights: SHA-256 of the model's study and of its file of weights.

    Raises:
        RunError: if it cannot be read, or is of another model or of none.
    """
    again = "Make it with: crossprobe audit --sites SITES --model RUN --out FILE"
    try:
        record = AuditRecord.model_validate(parse_json(file.read_bytes(), origin=file.name))
    except OSError as error:
        raise RunError(f"cannot read the audit {file}: {error.strerror}. {again}") from None
    except (TextError, ValidationError) as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) if isinstance(error, ValidationError) else "its JSON"
        raise RunError(f"{file} is no record of an audit: {where} is not as expected. {again}") from None
    for what, expected, found in (("study", study, record.study_sha256), ("weights", weights, record.weights_sha256)):
        if found != expected:
            raise RunError(
                f"the audit {file} is not of this model: expected {what} with SHA-256 {expected}, found "
                f"{found or 'none'}. {again}"
            )
    return record
