"""How far a phantom's foreground differs by device: `python -m simulations.phantom.foreground`.

The same children under every profile. What stays alike is what one device's labels can say of another's size.
"""

import numpy as np

from simulations.phantom.devices import PROFILES
from simulations.phantom.formation import render_frame

PATIENTS, SEED = 10, 100
REFERENCE = "lumify_like"


def foreground(profile: str) -> tuple[float, float]:
    """Return mean area in mm^2 and mean thickness in mm, the area per visible width, of the bone band."""
    areas, thicknesses = [], []
    for patient in range(PATIENTS):
        frame = render_frame(seed=SEED, patient=patient, frame=0, profile=PROFILES[profile])
        areas.append((frame.mask > 0).sum() * frame.spacing_mm**2)
        thicknesses.append(areas[-1] / ((frame.image > 0).any(0).sum() * frame.spacing_mm))
    return float(np.mean(areas)), float(np.mean(thicknesses))


if __name__ == "__main__":
    area, thickness = foreground(REFERENCE)
    print(f"bone band of {PATIENTS} children, less that under {REFERENCE}: {area:.0f} mm^2, {thickness:.2f} mm")
    for profile in PROFILES:
        own = foreground(profile)
        print(
            f"{profile:18} area {100 * (own[0] / area - 1):+5.0f} %  thickness {100 * (own[1] / thickness - 1):+5.0f} %"
        )
