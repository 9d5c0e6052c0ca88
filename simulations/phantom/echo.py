"""The echo: from a patient under a probe to noise-free baseband (IQ) data.

A reflector of strength r at depth z0 contributes r g(z - z0) exp(-2 i k z0), with
k = 2 pi / wavelength and g the Gaussian pulse envelope, and the Gaussian beam sums neighbouring
columns.  Speckle is the sum over random scatterers (circular complex Gaussian, Wagner et al.
1983); a smooth sheet keeps its phase, so it is bright only where it faces the beam, and the wider
or higher-frequency beam is the more selective.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import gaussian_filter1d, uniform_filter1d

from simulations.phantom.anatomy import MAX_SHIFT_MM, Array, Patient, Pose, Scene
from simulations.phantom.devices import DeviceProfile

Real = NDArray[np.float32]
Complex = NDArray[np.complex64]

_PAD_MM = 3.0
"""Tissue simulated beyond each side of the view, so that the beam has something to sum."""
_SHADOW_MM = 1.1
"""Depth into bone over which the echo amplitude falls by 1/e."""
_APERTURE_MM = 4.0
"""Width of bone or gap that the receiving aperture averages well below the bone."""
_GAP_CLOSES_MM = 10.0
"""Depth below the bone at which that average has taken over."""
_SHADOW_FLOOR = 0.004
"""Part of the echo amplitude that still crosses the bone (-48 dB)."""
_ELEVATION_CELL_MM = 1.0
"""Out-of-plane offset at which the speckle has turned by one radian."""
_BONE_DIFFUSE_DB = -9.0
"""Rough-surface part of the cortical echo, seen from any angle."""
_CANCELLOUS_DB = -24.0
_CARTILAGE_DB = -44.0
_PLATE_DEPTH_MM = 6.0
_HAEMATOMA_DB = -12.0


@dataclass(frozen=True)
class Grid:
    """Synthesis grid: columns at pixel spacing, rows `oversample` times finer than pixels."""

    oversample: int
    depth_mm: Array
    """Depth of the rows, [Z]."""
    probe_mm: Array
    """Place of the columns from the probe centre, [X]."""
    pad: int
    """Columns on each side that lie outside the image."""


def make_grid(profile: DeviceProfile) -> Grid:
    """Choose the synthesis grid of a device."""
    spacing = profile.spacing_mm
    # At one sample per pulse sigma the pulse spectrum has fallen to 2 % at Nyquist.
    oversample = max(1, int(np.ceil(spacing / (1.1 * profile.pulse_sigma_mm))))
    step = spacing / oversample
    pad = int(np.ceil(_PAD_MM / spacing))
    columns = profile.columns + 2 * pad
    return Grid(
        oversample=oversample,
        depth_mm=np.asarray((np.arange(profile.rows * oversample) + 0.5) * step, np.float64),
        probe_mm=np.asarray((np.arange(columns) - 0.5 * (columns - 1)) * spacing, np.float64),
        pad=pad,
    )


def complex_noise(rng: np.random.Generator, shape: tuple[int, int]) -> Complex:
    """Circular complex Gaussian of unit power."""
    pair = rng.standard_normal((*shape, 2), dtype=np.float32)
    return pair.view(np.complex64)[..., 0] * np.float32(np.sqrt(0.5))


@dataclass(frozen=True)
class _Window:
    """Where the probe columns lie over noise that belongs to the patient's tissue."""

    columns: int
    reach: int
    shift: int

    def noise(self, rng: np.random.Generator, rows: int) -> Complex:
        """Unit-power circular complex noise that stays with the tissue as the probe slides."""
        wide = complex_noise(rng, (rows, self.columns + 2 * self.reach))
        start = self.reach + self.shift
        return wide[:, start : start + self.columns]


def _scatterers(key: tuple[int, int], pose: Pose, window: _Window, rows: int) -> Complex:
    """Random scatterers under the probe, [Z, X].

    Moving the probe out of plane turns them into an independent set: elevational decorrelation.
    """
    rng = np.random.Generator(np.random.SFC64((*key, 4)))
    turn = pose.elevation_mm / _ELEVATION_CELL_MM
    field = window.noise(rng, rows) * np.float32(np.cos(turn))
    field += window.noise(rng, rows) * np.float32(np.sin(turn))
    return field


def _tents(fine: int, coarse: int) -> Real:
    """Matrix [fine, coarse] of linear interpolation from few samples to many."""
    place = np.linspace(0.0, coarse - 1.0, fine)[:, None]
    return (1.0 - np.abs(place - np.arange(coarse))).clip(0.0).astype(np.float32)


def _diffuse_amplitude(child: Patient, view: Scene, z: NDArray[np.float32], key: tuple[int, int]) -> Real:
    """Backscatter amplitude of the tissue at every point, [Z, X]."""
    layer = np.zeros((z.shape[0], view.bone_mm.shape[0]), dtype=np.int8)
    for edge in view.boundaries_mm.astype(np.float32):
        layer += z >= edge
    levels = (10.0 ** (np.array(child.levels_db) / 20.0)).astype(np.float32)
    amplitude = levels[layer]
    bone = view.bone_mm.astype(np.float32)
    above = (z >= bone - np.float32(1.5)) & (z < bone) & view.fluid
    amplitude[above] *= np.float32(10.0 ** (_HAEMATOMA_DB / 20.0))
    plate = (z >= bone) & (z < bone + np.float32(_PLATE_DEPTH_MM)) & view.has_cartilage
    amplitude[plate] = np.float32(10.0 ** (_CARTILAGE_DB / 20.0))
    below = (z >= bone) & view.has_bone
    amplitude[below] = np.float32(10.0 ** (_CANCELLOUS_DB / 20.0))
    # Tissue is patchy on a scale of millimetres; +-2 dB or so.
    rng = np.random.default_rng((*key, 5))
    coarse = rng.normal(0.0, 0.3, (14, 10)).astype(np.float32)
    down, across = (_tents(n, m) for n, m in zip(layer.shape, coarse.shape, strict=True))
    return amplitude * np.exp(down @ coarse @ across.T)


def _deposit(echo: Complex, depth_mm: Array, value: NDArray[np.complex128], step_mm: float) -> None:
    """Add point reflectors at depths [n, X] to the grid [Z, X], split over two rows each."""
    rows, columns = echo.shape
    place = depth_mm / step_mm - 0.5
    lower = np.floor(place).astype(np.int64)
    column = np.broadcast_to(np.arange(columns), lower.shape)
    good = (lower >= 0) & (lower < rows - 1) & (value != 0)
    lower, column, value = lower[good], column[good], value[good]
    upper_part = place[good] - lower
    index = np.concatenate([lower * columns + column, (lower + 1) * columns + column])
    # A sheet has no thickness, so its amplitude does not depend on the row step: `_blur` has a
    # pulse of peak one.
    both = np.concatenate([value * (1.0 - upper_part), value * upper_part])
    size = rows * columns
    real = np.bincount(index, both.real, size)
    imaginary = np.bincount(index, both.imag, size)
    echo += (real + 1j * imaginary).reshape(rows, columns).astype(np.complex64)


def _transmission(view: Scene, z: NDArray[np.float32], profile: DeviceProfile) -> Real:
    """Part of the echo amplitude left at every point by the bone above it, [Z, X]."""
    into = (z - view.bone_mm.astype(np.float32)).clip(0.0) * view.has_bone
    through = np.exp(-into / np.float32(_SHADOW_MM)) + np.float32(_SHADOW_FLOOR)
    # The aperture sees round an edge, and further round it the deeper the point lies: the shadow
    # has a penumbra of a beam width at the bone, and far below a narrow gap closes.
    near = uniform_filter1d(through, 1 + round(1.4 * profile.beam_mm / profile.spacing_mm), axis=1)
    size = 1 + round(_APERTURE_MM / profile.spacing_mm)
    far = uniform_filter1d(uniform_filter1d(through, size, axis=1), size, axis=1)
    # What the bone hides of the aperture is lost on the way down and again on the way up.
    far *= far
    blend = ((z - view.bone_mm.astype(np.float32)) / np.float32(_GAP_CLOSES_MM)).clip(0.0, 1.0)
    left: Real = np.minimum(near + blend * (far - near), np.float32(1.0))
    return left


def _blur(echo: Complex, axial: float, lateral: Array) -> Complex:
    """Convolve with the pulse (peak one) and with the beam of each depth (unit area)."""
    # Unit area to unit peak: a factor sqrt(2 pi) sigma.
    peak = np.float32(np.sqrt(2.0 * np.pi) * axial)
    pulse = gaussian_filter1d(echo, axial, axis=0, mode="constant", truncate=3.5) * peak
    frequency = 2.0 * np.pi * np.fft.fftfreq(echo.shape[1])
    spectrum = fft.fft(pulse, axis=1)
    spectrum *= np.exp(-0.5 * np.outer(lateral**2, frequency**2)).astype(np.float32)
    blurred: Complex = fft.ifft(spectrum, axis=1, overwrite_x=True)
    return blurred


def _reverberate(echo: Complex, view: Scene, profile: DeviceProfile, step_mm: float) -> Complex:
    """Add the echo of one more round trip to the superficial fascia and to the bone, [Z, X].

    A bright reflector at depth d sends sound back to the probe face, which sends it down again:
    everything is seen once more, d deeper and weaker.  Bone returns twice what fascia does.
    """
    rows = np.arange(echo.shape[0])[:, None]
    again = np.zeros_like(echo)
    for curve, strength in (
        (view.boundaries_mm[2], np.full(echo.shape[1], 0.5, np.float32)),
        (view.bone_mm, view.has_bone.astype(np.float32)),
    ):
        source = rows - np.round(curve / step_mm).astype(np.int64)
        copy = np.take_along_axis(echo, source.clip(0), axis=0)
        again += copy * (strength * (source >= 0))
    # Bouncing off the curved probe face spreads the copy over the neighbouring beams.
    broad = 1.5 * profile.beam_sigma_mm / profile.spacing_mm
    loss = np.float32(10.0 ** (profile.reverberation_db / 20.0))
    spread: Complex = gaussian_filter1d(again, broad, axis=1, truncate=3.0)
    return echo + loss * spread


def synthesise_echo(
    child: Patient,
    pose: Pose,
    view: Scene,
    profile: DeviceProfile,
    grid: Grid,
    key: tuple[int, int],
) -> Complex:
    """Noise-free IQ echo of the scene, [Z, X], attenuated but not yet gain-compensated."""
    z = grid.depth_mm.astype(np.float32)[:, None]
    step = float(grid.depth_mm[1] - grid.depth_mm[0])
    beam = profile.beam_sigma_mm * np.sqrt(1.0 + ((grid.depth_mm - profile.focus_mm) / profile.focal_zone_mm) ** 2)
    # The power of white scatterers changes by sqrt(pi) s under a Gaussian of sigma s samples and
    # unit peak, by 1 / (2 sqrt(pi) s) under one of unit area.  Undoing both gives tissue the same
    # diffuse level whatever the pulse and the beam.
    axial = profile.pulse_sigma_mm / step
    lateral = beam / profile.spacing_mm
    equal = np.sqrt(2.0 * lateral / axial)
    window = _Window(
        columns=grid.probe_mm.shape[0],
        reach=int(np.ceil(MAX_SHIFT_MM / profile.spacing_mm)),
        shift=round(pose.shift_mm / profile.spacing_mm) * (-1 if child.mirror else 1),
    )
    echo = _scatterers(key, pose, window, z.shape[0])
    echo *= _diffuse_amplitude(child, view, z, key) * equal.astype(np.float32)[:, None]

    rng = np.random.Generator(np.random.SFC64((*key, 6)))
    wave_number = 2.0 * np.pi / profile.wavelength_mm
    ripple = np.sqrt(2.0) * window.noise(rng, len(view.sheets_mm)).real * view.sheets_roughness
    phase = -2.0 * wave_number * view.sheets_mm + ripple
    _deposit(echo, view.sheets_mm, view.sheets_amplitude * np.exp(1j * phase), step)
    echo *= _transmission(view, z, profile)

    # Cortex: a mirror-like part and a rough part.
    rough = 10.0 ** (_BONE_DIFFUSE_DB / 20.0) * np.sqrt(
        2.0 * np.sqrt(np.pi) * np.interp(view.bone_mm, grid.depth_mm, lateral)
    )
    mirror_like = np.exp(-2j * wave_number * view.bone_mm)
    scattered = rough * window.noise(rng, 1)[0]
    _deposit(echo, view.bone_mm[None], ((mirror_like + scattered) * view.has_bone)[None], step)

    echo = _reverberate(_blur(echo, axial, lateral), view, profile, step)
    loss_db = 2.0 * child.attenuation_db_per_cm_mhz * profile.centre_mhz * grid.depth_mm / 10.0
    echo *= (10.0 ** (-loss_db / 20.0)).astype(np.float32)[:, None]
    return echo
