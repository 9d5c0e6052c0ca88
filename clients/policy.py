"""What a site agrees to tell the federation about itself."""

from pydantic import BaseModel, ConfigDict, Field


class Policy(BaseModel):
    """The `policy:` section of site.yaml; every key has a default, an unknown key is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    # A mean over one or two patients is those patients; five is a common floor for small counts.
    min_patients: int = Field(default=5, ge=1)

    # 1 declares the true count, so that patient-weighted averages are exact; 10 blurs it.
    patients_rounded_to: int = Field(default=1, ge=1)

    # Above any one probe's archive, so it bounds a site's weight only where the site lowers it.
    patients_cap: int = Field(default=100_000, ge=1)

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
