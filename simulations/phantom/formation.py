"""Image formation: a phantom frame of a child's wrist as one device would show it.

`simulations.phantom.anatomy` says what is under the probe, `simulations.phantom.echo` what comes back from it;
here the device receives, compensates and compresses it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from simulations.phantom.anatomy import Patient, Scene, draw_patient, draw_pose, scene
from simulations.phantom.devices import DeviceProfile
from simulations.phantom.echo import Complex, Grid, Real, complex_noise, make_grid, synthesise_echo

_NOMINAL_ATTENUATION = 0.5
"""What time-gain compensation assumes, dB per cm and MHz, one way."""
_HAZE_REACH = 7.0
"""Decay lengths after which near-field clutter, 61 dB down, is left out."""


@dataclass(frozen=True)
class PhantomFrame:
    """One image with its annotation."""

    image: NDArray[np.uint8]
    """Grey levels, [H, W]."""
    mask: NDArray[np.uint8]
    """0 or 255, [H, W]; 255 in the bone band."""
    spacing_mm: float
    """Side of a square pixel, mm."""
    fracture: str
    """"none", "buckle" or "step"."""


def render_frame(*, seed: int, patient: int, frame: int, profile: DeviceProfile) -> PhantomFrame:
    """Render one frame; the same arguments give the same bytes.

    `seed` names a population, `patient` a child in it, `frame` a moment of the sweep, all >= 0.
    The anatomy and the hand depend on these alone; `profile` only decides how it is seen.
    """
    child = draw_patient(seed, patient)
    pose = draw_pose(seed, patient, frame)
    grid = make_grid(profile)
    view = scene(child, pose, grid.probe_mm)
    rng = np.random.Generator(np.random.SFC64((seed, patient, 3, frame)))
    echo = synthesise_echo(child, pose, view, profile, grid, (seed, patient))
    inner = slice(grid.pad, grid.pad + profile.columns)
    envelope = _receive(echo[:, inner], profile, grid, rng)
    return PhantomFrame(
        image=_display(envelope, profile, float(rng.normal(0.0, 1.0))),
        mask=_mask(child, view, profile, inner),
        spacing_mm=profile.spacing_mm,
        fracture=child.fracture,
    )


def _mask(child: Patient, view: Scene, profile: DeviceProfile, inner: slice) -> NDArray[np.uint8]:
    """Bone band on the pixel grid, [H, W]: pixel centres at most `band_mm` under the cortex."""
    z = ((np.arange(profile.rows) + 0.5) * profile.spacing_mm)[:, None]
    top = view.bone_mm[inner]
    band = (z >= top) & (z <= top + child.band_mm) & view.has_bone[inner]
    return np.where(band, 255, 0).astype(np.uint8)


def _receive(echo: Complex, profile: DeviceProfile, grid: Grid, rng: np.random.Generator) -> Real:
    """Time-gain compensation, receiver noise and near-field clutter; envelope [H, W]."""
    z = grid.depth_mm
    assumed_db = 2.0 * _NOMINAL_ATTENUATION * profile.centre_mhz * z / 10.0
    gain_db = assumed_db + profile.depth_gain_db * z / profile.depth_mm
    gain = 10.0 ** (gain_db / 20.0)
    noise = 10.0 ** (profile.noise_floor_db / 20.0) * gain / gain.max()
    haze = 10.0 ** (profile.haze_db / 20.0) * np.exp(-z / profile.haze_mm)
    received = echo * gain.astype(np.float32)[:, None]
    # The receive filter passes noise of the pulse's own band only.
    length = profile.pulse_sigma_mm * grid.oversample / profile.spacing_mm
    hiss = gaussian_filter1d(complex_noise(rng, echo.shape), length, axis=0, truncate=3.0)
    unit_power = np.sqrt(2.0 * np.sqrt(np.pi) * length)
    received += (noise * unit_power).astype(np.float32)[:, None] * hiss
    # Clutter comes from many elements and side lobes: one beam is several beams wide.
    width = 3.0 * profile.beam_sigma_mm / profile.spacing_mm
    near = int(np.searchsorted(z, _HAZE_REACH * profile.haze_mm))
    clutter = complex_noise(rng, (near, echo.shape[1]))
    clutter = gaussian_filter1d(clutter, width, axis=1, truncate=3.0)
    clutter = gaussian_filter1d(clutter, length, axis=0, truncate=3.0)
    unit_power *= np.sqrt(2.0 * np.sqrt(np.pi) * width)
    received[:near] += (haze[:near] * unit_power).astype(np.float32)[:, None] * clutter
    envelope = np.abs(received).reshape(profile.rows, grid.oversample, -1)
    pixels: Real = envelope.mean(axis=1)
    return pixels


def _display(envelope: Real, profile: DeviceProfile, operator_db: float) -> NDArray[np.uint8]:
    """Gain, log compression and edge enhancement; grey levels [H, W]."""
    level = 20.0 * np.log10(np.maximum(envelope, np.float32(1e-6)))
    level = level + np.float32(profile.gain_db + operator_db)
    grey = (1.0 + level / np.float32(profile.dynamic_range_db)).clip(0.0, 1.0)
    if profile.edge_enhancement > 0.0:
        smooth = gaussian_filter1d(gaussian_filter1d(grey, 1.5, axis=0), 1.5, axis=1)
        grey = (grey + np.float32(profile.edge_enhancement) * (grey - smooth)).clip(0.0, 1.0)
    return np.round(255.0 * grey).astype(np.uint8)
