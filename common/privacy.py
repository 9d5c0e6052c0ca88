"""The `privacy` section of a study: patient-level differential privacy by DP-SGD. Torch-free.

What it promises, and what it leaves out, is in docs/privacy.md.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from common.settings import Settings

#: Above it even a formal promise is weak.
WEAK_EPSILON = 8.0


class Privacy(Settings):
    """Patient-level DP-SGD (Abadi et al. 2016; a user is a patient: McMahan et al. 2018).

    All numbers are public: whoever knows the study knows them.

    Attributes:
        noise_multiplier: standard deviation of the noise in units of `max_gradient_norm`. 1 is the least
            that is commonly called private; a few dozen patients need more for a single-digit epsilon.
        max_gradient_norm: L2 norm to which one patient's gradient is clipped. 1 is near the median norm
            of an untrained branch's; smaller adds bias, larger adds noise in proportion.
        nominal_patients: a public guess at a site's training patients, the same for all sites, and NOT the
            true count: a patient is drawn with probability `batch_size / nominal_patients` in each step,
            and it is what a site declares as its count.
        frames_per_patient: different frames of a drawn patient at most, whose gradients are averaged
            before the clip. 2: the mean of two is steadier, at twice the time and no epsilon.
        delta: probability with which epsilon may fail; it has to be far below one in the patients. 1e-5
            suits up to some thousands of them.
        epsilon_cap: a site that would come above it, all of its studies together, stops. Above `WEAK_EPSILON` a site
            takes the study for one without privacy, unless its policy has a cap of its own.
        evaluation: `none`: no round evaluates, and all that leaves is covered by epsilon. `outside`: the
            closing evaluation runs on `test` patients, who are in no training; its means and intervals
            are not noised, and epsilon does not cover them.
    """

    noise_multiplier: float = Field(default=1.0, ge=0.1, le=1000)
    max_gradient_norm: float = Field(default=1.0, ge=1e-3, le=1000)
    nominal_patients: int = Field(ge=1, le=1_000_000)
    frames_per_patient: int = Field(default=2, ge=1, le=64)
    delta: float = Field(default=1e-5, gt=0, le=1e-3)
    epsilon_cap: float = Field(default=WEAK_EPSILON, gt=0, allow_inf_nan=False)
    evaluation: Literal["none", "outside"] = "none"

    @model_validator(mode="after")
    def _small_delta(self) -> Self:
        # Publishing one patient in full, picked at random, is (0, 1 / patients)-private.
        if self.delta * self.nominal_patients > 0.1:
            raise ValueError(
                f"delta must be at most a tenth of one in nominal_patients, {0.1 / self.nominal_patients:.1e}: above "
                "that, the promise could be kept by publishing some patients"
            )
        return self

    def sample_rate(self, batch_size: int) -> float:
        """Return the probability with which a step draws any one patient, in (0, 1]."""
        return batch_size / self.nominal_patients
