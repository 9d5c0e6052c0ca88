"""A number that a task may send: its range, what it says, and as how many digits it leaves. Torch-free."""

import math
from dataclasses import dataclass

from common.components import Role


@dataclass(frozen=True)
class Metric:
    """A number that a task may send.

    Attributes:
        low, high: its range.
        meaning: what it says, for a hospital.
        digits: significant digits that leave, as many as its purpose needs; None for a whole number. More would let
            two replies that differ by one patient tell that patient's part.
        role: of the only sites that send it; None: of all that run the task.
        about: predictors of the evaluation; the number exists only where the study has all of them.
        frozen: it is about all patients of a split, so a site sends the first value again in all later rounds of a
            study: a change would be that of the patient who came or went.
        judging: it is sent only in a stage whose rounds may be released (`common.stage.Stage.selects_release`).
    """

    low: float
    high: float
    meaning: str
    role: Role | None = None
    about: tuple[str, ...] = ()
    digits: int | None = 3
    frozen: bool = False
    judging: bool = False

    def rounded(self, value: float) -> float:
        """Return the value as it may leave."""
        return value if self.digits is None else float(f"{value:.{self.digits}g}")


LOSS = Metric(0, math.inf, "mean training error of this round; no unit")
VAL_DICE = Metric(
    0,
    1,
    "mean agreement (Dice, 0 to 1) of the received model, or of the one branch received, with your labels on `val` "
    "patients",
    role="source",
)
SCORE = Metric(
    0, 1, "how steady the received model's predictions are under simulated changes of device, 0 to 1", role="target"
)
