"""The sections of a study, each with its defaults and why they are so. Torch-free."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.components import Role
from common.names import Sha256
from common.settings import Settings
from common.tasks import unset


class ImageGrid(Settings):
    """The pixel grid that every image is brought to, for baseline and method alike.

    Attributes:
        size: side of the square tile a network sees, in pixels; a multiple of the network's stride.
            64 trains in minutes on two cores; take 128 or more where a GPU is at hand.
        geometry: `spacing` resamples to `spacing_mm`, so that anatomy has one scale on all probes;
            `letterbox` scales the long side to `size`, for data without known spacing.
        spacing_mm: 0.625 mm x 64 pixels shows 40 mm, the depth at which a child's wrist fits.
    """

    size: int = Field(default=64, ge=32, le=1024, multiple_of=8)
    geometry: Literal["spacing", "letterbox"] = "spacing"
    spacing_mm: float | None = Field(default=0.625, ge=0.02, le=5)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.geometry == "spacing") != (self.spacing_mm is not None):
            raise ValueError("geometry `spacing` needs spacing_mm, `letterbox` needs spacing_mm: null")
        return self


class Augmentation(Settings):
    """What every supervised step sees, in the baseline as in the method.

    Attributes:
        flip: mirror left and right; never up and down, depth has a direction.
        scale: random zoom within 1 +- this; sites differ in how they press and where they stand.
        rotation_deg: random rotation within +- this; a hand-held probe is never level.
        shift: random translation within +- this share of the tile.
        gamma: random exponent within exp(+- this); consoles differ in their grey maps.
        device_shift: strength of the simulated change of device in [0, 1].
    """

    flip: bool = True
    scale: float = Field(default=0.1, ge=0, lt=1)
    rotation_deg: float = Field(default=8.0, ge=0, le=45)
    shift: float = Field(default=0.06, ge=0, le=0.5)
    gamma: float = Field(default=0.3, ge=0, le=2)
    device_shift: float = Field(default=0.0, ge=0, le=1)


class Participation(Settings):
    """When a round counts.

    Attributes:
        quorum: least number of valid replies of each role that a round asks of.
        deadline_s: how long a round waits for replies; 1800 s lets a CPU-only hospital finish.
        retries: how often a round below quorum is repeated before the run stops, resumable. Before each the run
            pauses until the missing sites are back, at most for `deadline_s`.
        max_norm: bound on the L2 norm of an update; honest rounds stay under 100 at 0.3 M parameters.
        patients_cap: most patients that a site counts for in any average, whatever it declares; None: all. A site's
            count is its own word, and one of a million patients is the average by itself.
    """

    quorum: dict[Role, Annotated[int, Field(ge=0)]] = Field(default={"source": 1, "target": 1})
    deadline_s: float = Field(default=1800.0, gt=0)
    retries: int = Field(default=3, ge=0)
    max_norm: float = Field(default=1e3, gt=0, le=1e5)
    patients_cap: int | None = Field(default=None, ge=1, exclude_if=unset)

    def counted(self, patients: int) -> int:
        """Return for how many patients a site counts that declares so many."""
        return patients if self.patients_cap is None else min(patients, self.patients_cap)


class Release(Settings):
    """How the released model is picked: the latest that is not worse, by two numbers of the received model.

    They are the targets' label-free score, and the Dice on the sources' validation patients: neither ranks models, but
    both fall in a collapse, the second one also in failures that the first one takes for a steady model.

    Attributes:
        tolerance: the released model is that of the latest round in which neither number is more than this
            below the best of the models released so far. The score saturates near its best and cannot rank the
            rounds there, while later rounds have learnt more; what it does tell is a collapse. On real images it
            went up and down by 0.05 from round to round.
        rollback: a refine round whose received model is more than this below in either is undone,
            and the run goes on from the released model. Far beyond the numbers' noise: a run that is
            undone again and again learns nothing.
    """

    tolerance: float = Field(default=0.05, ge=0, le=1)
    rollback: float = Field(default=0.2, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.rollback < self.tolerance:
            raise ValueError("rollback must be at least tolerance: a released model is not rolled back")
        return self


class InitialWeights(Settings):
    """A local safetensors file that replaces what the seed would give, known by its hash."""

    file: Path
    sha256: Sha256
