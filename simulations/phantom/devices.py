"""Ultrasound device profiles: the numbers that turn one anatomy into different pictures.

A profile is a small physical description of a linear-array scanner (pulse, beam, field of view)
and of its display chain (gain, compression, clutter, noise).  The named profiles imitate
*classes* of device; none was measured on a product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SOUND_SPEED_MM_PER_US = 1.54
"""Speed of sound in soft tissue, mm per microsecond."""

_FWHM_TO_SIGMA = 1.0 / (2.0 * math.sqrt(2.0 * math.log(2.0)))


@dataclass(frozen=True)
class DeviceProfile:
    """One scanner setting.  All levels are amplitude decibels, 20 log10.

    0 dB is the echo of a flat cortical surface at normal incidence, before gain.
    """

    name: str
    centre_mhz: float
    """Two-way centre frequency."""
    bandwidth_fraction: float
    """Two-way -6 dB bandwidth over centre frequency, 0 to 1."""
    beam_mm: float
    """Two-way lateral beam width at the focus, full width at half maximum."""
    focus_mm: float
    """Depth of the narrowest beam."""
    focal_zone_mm: float
    """Distance from the focus at which the beam is sqrt(2) wider."""
    depth_mm: float
    """Depth of view: the last row of the image."""
    width_mm: float
    """Width of view: the footprint of the linear array."""
    rows: int
    """Image height in pixels; it sets the isotropic pixel spacing."""
    dynamic_range_db: float
    """Span of the log compression: grey 0 is this far below grey 255."""
    gain_db: float
    """Overall gain before compression."""
    depth_gain_db: float
    """Error of the time-gain compensation, linear from 0 at the skin to this at full depth."""
    haze_db: float
    """Level of the near-field clutter at the skin."""
    haze_mm: float
    """Depth over which the amplitude of the near-field clutter falls by 1/e."""
    noise_floor_db: float
    """Level of the receiver noise where the time-gain compensation is largest."""
    reverberation_db: float
    """Loss of one extra round trip between the probe face and a bright reflector."""
    edge_enhancement: float
    """Weight of the unsharp mask on the compressed image, 0 for none."""

    def __post_init__(self) -> None:
        """Refuse values for which the image formation has no meaning."""
        if not 0.0 < self.bandwidth_fraction <= 1.0:
            raise ValueError(f"{self.name}: bandwidth_fraction must be in (0, 1]")
        positive = (self.centre_mhz, self.beam_mm, self.focal_zone_mm, self.depth_mm)
        if min(*positive, self.width_mm, self.haze_mm, self.dynamic_range_db, self.rows) <= 0:
            raise ValueError(f"{self.name}: sizes, frequency and dynamic range must be positive")

    @property
    def spacing_mm(self) -> float:
        """Side of a square pixel, mm."""
        return self.depth_mm / self.rows

    @property
    def columns(self) -> int:
        """Image width in pixels."""
        return round(self.width_mm / self.spacing_mm)

    @property
    def wavelength_mm(self) -> float:
        """Wavelength at the centre frequency, c / f."""
        return SOUND_SPEED_MM_PER_US / self.centre_mhz

    @property
    def pulse_sigma_mm(self) -> float:
        """Standard deviation in depth of the Gaussian two-way pulse envelope.

        A Gaussian spectrum of half-amplitude width B has sigma_f = B / 2.355, its pulse
        sigma_t = 1 / (2 pi sigma_f), and echo depth is c t / 2.
        """
        sigma_f_mhz = self.bandwidth_fraction * self.centre_mhz * _FWHM_TO_SIGMA
        return 0.5 * SOUND_SPEED_MM_PER_US / (2.0 * math.pi * sigma_f_mhz)

    @property
    def beam_sigma_mm(self) -> float:
        """Standard deviation of the Gaussian two-way lateral beam at the focus."""
        return self.beam_mm * _FWHM_TO_SIGMA


PROFILES: dict[str, DeviceProfile] = {
    profile.name: profile
    for profile in (
        # Class of a modern hand-held broadband linear probe.
        DeviceProfile(
            name="lumify_like",
            centre_mhz=9.0,
            bandwidth_fraction=0.70,
            beam_mm=0.45,
            focus_mm=12.0,
            focal_zone_mm=12.0,
            depth_mm=32.0,
            width_mm=36.0,
            rows=320,
            dynamic_range_db=60.0,
            gain_db=0.0,
            depth_gain_db=-2.0,
            haze_db=-46.0,
            haze_mm=2.0,
            noise_floor_db=-58.0,
            reverberation_db=-34.0,
            edge_enhancement=0.3,
        ),
        # Class of an older USB beamformer with a low-frequency, narrow-band probe.
        DeviceProfile(
            name="telemed_like",
            centre_mhz=4.5,
            bandwidth_fraction=0.40,
            beam_mm=1.30,
            focus_mm=24.0,
            focal_zone_mm=20.0,
            depth_mm=55.0,
            width_mm=46.0,
            rows=352,
            dynamic_range_db=42.0,
            gain_db=4.0,
            depth_gain_db=-22.0,
            haze_db=-12.0,
            haze_mm=5.0,
            noise_floor_db=-30.0,
            reverberation_db=-11.0,
            edge_enhancement=0.0,
        ),
        # Development: class of a capacitive hand-held, speckly and contrasty.
        DeviceProfile(
            name="handheld_dev",
            centre_mhz=6.5,
            bandwidth_fraction=0.60,
            beam_mm=0.80,
            focus_mm=18.0,
            focal_zone_mm=14.0,
            depth_mm=40.0,
            width_mm=30.0,
            rows=320,
            dynamic_range_db=50.0,
            gain_db=2.0,
            depth_gain_db=-8.0,
            haze_db=-20.0,
            haze_mm=3.0,
            noise_floor_db=-40.0,
            reverberation_db=-20.0,
            edge_enhancement=0.0,
        ),
        # Development: class of a cart system, high frequency, flat compression, sharpened.
        DeviceProfile(
            name="cart_dev",
            centre_mhz=11.0,
            bandwidth_fraction=0.75,
            beam_mm=0.35,
            focus_mm=10.0,
            focal_zone_mm=9.0,
            depth_mm=30.0,
            width_mm=40.0,
            rows=288,
            dynamic_range_db=72.0,
            gain_db=4.0,
            depth_gain_db=6.0,
            haze_db=-40.0,
            haze_mm=1.5,
            noise_floor_db=-52.0,
            reverberation_db=-28.0,
            edge_enhancement=0.9,
        ),
        # Held out, chosen once and never tuned on: class of a budget wireless probe.
        DeviceProfile(
            name="wireless_held_out",
            centre_mhz=7.5,
            bandwidth_fraction=0.50,
            beam_mm=0.95,
            focus_mm=15.0,
            focal_zone_mm=8.0,
            depth_mm=45.0,
            width_mm=40.0,
            rows=300,
            dynamic_range_db=48.0,
            gain_db=6.0,
            depth_gain_db=-14.0,
            haze_db=-14.0,
            haze_mm=4.0,
            noise_floor_db=-34.0,
            reverberation_db=-15.0,
            edge_enhancement=0.5,
        ),
        # Held out, chosen once and never tuned on: class of an ageing mid-range laptop system.
        DeviceProfile(
            name="laptop_held_out",
            centre_mhz=5.5,
            bandwidth_fraction=0.55,
            beam_mm=1.05,
            focus_mm=20.0,
            focal_zone_mm=25.0,
            depth_mm=50.0,
            width_mm=38.0,
            rows=400,
            dynamic_range_db=66.0,
            gain_db=-3.0,
            depth_gain_db=-10.0,
            haze_db=-24.0,
            haze_mm=6.0,
            noise_floor_db=-44.0,
            reverberation_db=-13.0,
            edge_enhancement=0.2,
        ),
    )
}
"""Profiles by name: the study pair `lumify_like` and `telemed_like`, two for development
(`*_dev`) and two on which nothing may be tuned (`*_held_out`)."""

HELD_OUT = ("wireless_held_out", "laptop_held_out")
