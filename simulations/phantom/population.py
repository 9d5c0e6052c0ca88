"""Devices drawn at random from a declared prior: a population of probes on which nothing was chosen."""

import re
from dataclasses import replace

import numpy as np

from simulations.phantom.devices import PROFILES, DeviceProfile

#: Named `drawn-N`, N from 0.
DRAWN = re.compile(r"drawn-(0|[1-9][0-9]{0,5})")
#: The least and the most of each number, about as far as the named profiles lie apart. Those of `LENGTHS` are drawn on
#: a logarithmic scale; the beam in wavelengths, since a probe of a higher frequency has the narrower one.
PRIOR: dict[str, tuple[float, float]] = {
    "centre_mhz": (4.0, 12.0),
    "bandwidth_fraction": (0.4, 0.75),
    "beam_wavelengths": (2.5, 4.7),
    "focus_mm": (10.0, 24.0),
    "focal_zone_mm": (8.0, 25.0),
    "depth_mm": (30.0, 55.0),
    "width_mm": (30.0, 46.0),
    "rows": (288.0, 400.0),
    "dynamic_range_db": (42.0, 72.0),
    "gain_db": (-3.0, 6.0),
    "depth_gain_db": (-22.0, 6.0),
    "haze_db": (-46.0, -12.0),
    "haze_mm": (1.5, 6.0),
    "noise_floor_db": (-58.0, -30.0),
    "reverberation_db": (-34.0, -11.0),
    "edge_enhancement": (0.0, 0.9),
}
LENGTHS = ("centre_mhz", "beam_wavelengths", "focus_mm", "focal_zone_mm", "depth_mm", "width_mm", "haze_mm")


def profile_of(name: str) -> DeviceProfile:
    """Return a named profile, or number N of the population for `drawn-N`, each number of `PRIOR` by itself.

    Raises:
        ValueError: if there is no such profile.
    """
    if name in PROFILES:
        return PROFILES[name]
    if not (match := DRAWN.fullmatch(name)):
        raise ValueError(f"expected a profile of {', '.join(PROFILES)}, or drawn-N; found {name!r}")
    rng = np.random.default_rng([2026, int(match[1])])
    found = {}
    for key, (low, high) in PRIOR.items():
        share = rng.random()
        found[key] = float(low * (high / low) ** share if key in LENGTHS else low + (high - low) * share)
    wavelengths, rows = found.pop("beam_wavelengths"), round(found.pop("rows"))
    profile = DeviceProfile(name=name, beam_mm=1.0, rows=rows, **found)
    return replace(profile, beam_mm=wavelengths * profile.wavelength_mm)
