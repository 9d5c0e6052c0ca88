"""The patient: a paediatric distal radius under a linear probe held along the bone.

Axes: x runs along the bone, mm, 0 at the growth plate and positive towards the hand; z is depth
below the probe face, mm.  A `Patient` is fixed; a `Pose` is how the hand holds the probe in one
frame; `scene` lays the patient out under the probe columns as curves of depth.  The ranges are
plausible for children of 4 to 14 years, not fitted to measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Fracture = Literal["none", "buckle", "step"]

MAX_SHIFT_MM = 3.5
"""Largest excursion of the probe along the bone from its resting place, mm."""

_GEL_MM = 0.5
_MIN_BONE_DEPTH_MM = 4.5
_SEPTUM, _TENDON, _MUSCLE, _DEEP = range(4)


@dataclass(frozen=True)
class Strands:
    """Thin reflecting sheets seen edge-on (fat septa, tendon fibrils, perimysium); arrays [n]."""

    kind: NDArray[np.int64]
    centre_mm: Array
    length_mm: Array
    height: Array
    """Place between the top (0) and the bottom (1) of the layer."""
    slope: Array
    level_db: Array


@dataclass(frozen=True)
class Patient:
    """One child's forearm.  Lengths in mm, levels in dB under a flat cortical echo."""

    age_years: float
    mirror: bool
    window_mm: float
    """Place x of the probe centre at rest."""
    bone_depth_mm: float
    bone_slope: float
    bone_curvature: float
    """Quadratic term of the shaft, 1/mm."""
    flare_mm: float
    flare_length_mm: float
    waviness: tuple[float, float, float]
    """Amplitude mm, wavelength mm and phase of the shaft's slow undulation."""
    plate_mm: float
    """Width of the growth plate gap."""
    epiphysis_mm: float
    epiphysis_drop_mm: float
    epiphysis_offset_mm: float
    band_mm: float
    """Thickness of the annotated bone band."""
    fracture: Fracture
    fracture_at_mm: float
    fracture_height_mm: float
    fracture_width_mm: float
    fracture_angle: float
    skin_mm: float
    fat_fraction: float
    tendon_fraction: float
    layer_wave: tuple[float, float, float]
    """Relative amplitude, wavelength mm and phase of the fat thickness."""
    levels_db: tuple[float, float, float, float, float, float]
    """Diffuse backscatter of gel, skin, fat, tendon, muscle and deep tissue."""
    fascia_db: tuple[float, float, float, float]
    """Specular level of skin entry, dermis base, superficial fascia and tendon sheath."""
    attenuation_db_per_cm_mhz: float
    strands: Strands


@dataclass(frozen=True)
class Pose:
    """The hand in one frame."""

    shift_mm: float
    tilt_rad: float
    pressure: float
    """Relative compression of the soft tissue."""
    elevation_mm: float
    """Out-of-plane offset."""


@dataclass(frozen=True)
class Scene:
    """A patient under the columns of a probe; every curve is a depth in mm of shape [..., X]."""

    boundaries_mm: Array
    """Lower edges of gel, skin, fat, tendon and muscle, [5, X], increasing downwards."""
    bone_mm: Array
    """Outer cortical surface, [X]; meaningful where `has_bone`."""
    has_bone: NDArray[np.bool_]
    sheets_mm: Array
    """Depth of interfaces and strands, [n, X]."""
    sheets_amplitude: Array
    """Linear reflection amplitude of the same, [n, X], 0 where a strand is absent."""
    sheets_roughness: Array
    """Standard deviation of the phase of the same, radians, [n, 1]."""
    has_cartilage: NDArray[np.bool_]
    """Columns over the growth plate, [X]."""
    fluid: NDArray[np.bool_]
    """Columns in which the tissue just above the bone holds fracture haematoma, [X]."""


@lru_cache(maxsize=256)
def draw_patient(seed: int, patient: int) -> Patient:
    """Draw patient number `patient` of the population `seed`; the same on every call."""
    rng = np.random.default_rng((seed, patient, 0))

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    age = between(4.0, 14.0)
    size = 0.75 + 0.04 * (age - 4.0)
    kind: Fracture = "none"
    if rng.random() < 0.5:
        kind = "buckle" if rng.random() < 0.6 else "step"
    buckle = kind == "buckle"
    depth = min(max(between(6.0, 12.0) * size + between(1.0, 4.0), 6.0), 16.0)
    return Patient(
        age_years=age,
        mirror=bool(rng.random() < 0.5),
        window_mm=between(-9.0, -3.0),
        bone_depth_mm=depth,
        bone_slope=between(-0.06, 0.06),
        bone_curvature=between(0.0, 0.003),
        flare_mm=between(0.6, 1.8) * size,
        flare_length_mm=between(5.0, 9.0),
        waviness=(between(0.02, 0.12), between(9.0, 18.0), between(0.0, 6.28)),
        plate_mm=between(1.3, 2.4),
        epiphysis_mm=between(6.0, 9.0) * size,
        epiphysis_drop_mm=between(0.8, 2.0) * size,
        epiphysis_offset_mm=between(-0.4, 0.7),
        band_mm=3.0 * (0.85 + 0.3 * (age - 4.0) / 10.0),
        fracture=kind,
        fracture_at_mm=between(-16.0, -7.0),
        fracture_height_mm=between(0.8, 1.8) if buckle else between(0.8, 2.0),
        fracture_width_mm=between(1.0, 2.0) if buckle else between(0.4, 0.9),
        fracture_angle=between(-0.06, 0.06) if kind != "none" else 0.0,
        skin_mm=between(0.9, 1.5),
        fat_fraction=between(0.15, 0.45),
        tendon_fraction=between(0.2, 0.35),
        layer_wave=(between(0.03, 0.15), between(12.0, 30.0), between(0.0, 6.28)),
        levels_db=(
            -60.0,
            between(-24.0, -18.0),
            between(-40.0, -33.0),
            between(-29.0, -23.0),
            between(-36.0, -30.0),
            between(-36.0, -30.0),
        ),
        fascia_db=(
            between(-10.0, -6.0),
            between(-20.0, -14.0),
            between(-12.0, -4.0),
            between(-16.0, -8.0),
        ),
        attenuation_db_per_cm_mhz=between(0.45, 0.65),
        strands=_draw_strands(rng),
    )


def _draw_strands(rng: np.random.Generator) -> Strands:
    """Draw the fat septa, tendon fibrils, muscle striations and deep sheets of one patient."""
    pennation = float(rng.uniform(-0.08, 0.08))
    # kind, count, length range, mean slope, slope spread, level range
    families = (
        (_SEPTUM, rng.integers(16, 34), (3.0, 9.0), 0.0, 0.10, (-22.0, -12.0)),
        (_TENDON, rng.integers(22, 34), (12.0, 50.0), 0.0, 0.004, (-24.0, -12.0)),
        (_MUSCLE, rng.integers(60, 110), (3.0, 12.0), pennation, 0.02, (-26.0, -14.0)),
        (_DEEP, rng.integers(30, 60), (4.0, 14.0), 0.0, 0.06, (-28.0, -18.0)),
    )
    parts: list[tuple[Array, ...]] = []
    for kind, count, length, slope, spread, level in families:
        parts.append(
            (
                np.full(count, float(kind)),
                rng.uniform(-42.0, 36.0, count),
                rng.uniform(*length, count),
                rng.uniform(0.03, 0.97, count),
                rng.normal(slope, spread, count),
                rng.uniform(*level, count),
            )
        )
    kinds, *rest = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Strands(kinds.astype(np.int64), *rest)


def draw_pose(seed: int, patient: int, frame: int) -> Pose:
    """Pose of one frame: a slow sweep of the hand with tremor on top.

    Each coordinate is a sinusoid of the frame number with a phase and period of the patient's
    own, so neighbouring frames are alike and no frame repeats.
    """
    hand = np.random.default_rng((seed, patient, 1))
    phase = hand.uniform(0.0, 2.0 * np.pi, 4)
    period = hand.uniform(7.0, 17.0, 4)
    sweep = np.sin(2.0 * np.pi * frame / period + phase)
    tremor = np.random.default_rng((seed, patient, 2, frame)).uniform(-1.0, 1.0, 4)
    shift, tilt, pressure, elevation = 0.8 * sweep + 0.2 * tremor
    return Pose(
        shift_mm=float(MAX_SHIFT_MM * shift),
        tilt_rad=float(np.deg2rad(2.5) * tilt),
        pressure=float(0.08 * pressure),
        elevation_mm=float(1.2 * elevation),
    )


def _shaft(patient: Patient, x: Array) -> Array:
    """Depth of the unbroken radius at x before the pose, [X]."""
    amplitude, wavelength, phase = patient.waviness
    flare = patient.flare_mm * np.exp(-np.abs(x) / patient.flare_length_mm)
    wave = amplitude * np.sin(2.0 * np.pi * x / wavelength + phase)
    bow = patient.bone_curvature * (x + 12.0) ** 2
    return patient.bone_depth_mm + patient.bone_slope * x + bow - flare + wave


def _cortex(patient: Patient, x: Array) -> tuple[Array, NDArray[np.bool_], NDArray[np.bool_]]:
    """Offset of the cortex from the shaft line, where there is bone, and where there is fluid."""
    half_gap = 0.5 * patient.plate_mm
    metaphysis = x <= -half_gap
    # The metaphyseal corner is rounded over about a millimetre.
    offset = np.where(metaphysis, 0.9 * np.exp(-(-half_gap - x).clip(0.0) / 0.5), 0.0)
    mid = half_gap + 0.45 * patient.epiphysis_mm
    reach = 0.5 * patient.epiphysis_mm
    epiphysis = (x >= half_gap) & (x <= half_gap + patient.epiphysis_mm)
    dome = patient.epiphysis_offset_mm + patient.epiphysis_drop_mm * ((x - mid) / reach) ** 2
    offset = np.where(x > 0.0, dome, offset)
    distance = x - patient.fracture_at_mm
    fluid = np.zeros_like(metaphysis)
    bone = metaphysis | epiphysis
    if patient.fracture != "none":
        # The distal fragment turns about the fracture line.
        offset = offset + patient.fracture_angle * distance.clip(0.0, 12.0)
        fluid = np.abs(distance) < 3.0
    if patient.fracture == "buckle":
        bulge = np.exp(-0.5 * (distance / patient.fracture_width_mm) ** 2)
        offset = offset - patient.fracture_height_mm * bulge
    elif patient.fracture == "step":
        raised = patient.fracture_height_mm * np.exp(-np.abs(distance) / 12.0)
        offset = offset - np.where(distance < 0.0, 0.0, raised)
        bone = bone & (np.abs(distance) > 0.5 * patient.fracture_width_mm)
    return offset, bone, fluid


def scene(patient: Patient, pose: Pose, probe_mm: Array) -> Scene:
    """Lay the patient out under probe columns at `probe_mm` (mm from the probe centre, [X])."""
    x = (-probe_mm if patient.mirror else probe_mm) + patient.window_mm + pose.shift_mm
    # Beyond the epiphysis the deep edge of the soft tissue runs on, so the curve stays bounded.
    line = _shaft(patient, x.clip(-60.0, 25.0)) + 0.25 * pose.elevation_mm
    line = line * (1.0 - pose.pressure) + probe_mm * np.tan(pose.tilt_rad)
    line = np.maximum(line, _MIN_BONE_DEPTH_MM)
    offset, has_bone, fluid = _cortex(patient, x)
    bone = np.maximum(line + offset, _GEL_MM + patient.skin_mm + 1.0)

    relative, wavelength, phase = patient.layer_wave
    skin = np.full_like(x, _GEL_MM + patient.skin_mm)
    room = line - skin
    wave = 1.0 + relative * np.sin(2.0 * np.pi * x / wavelength + phase + pose.elevation_mm)
    fat = skin + room * patient.fat_fraction * wave
    tendon = fat + room * patient.tendon_fraction
    # Soft tissue drapes over the bone where the bone stands proud of the smooth line.
    proud = (bone - line).clip(-3.0, 0.0) * has_bone
    fat, tendon = fat + 0.3 * proud, tendon + 0.6 * proud
    boundaries = np.stack([np.full_like(x, _GEL_MM), skin, fat, tendon, line])

    s = patient.strands
    tops = np.stack([skin, fat, tendon, line])
    bottoms = np.stack([fat, tendon, line, line + 25.0])
    along = x[None, :] - (s.centre_mm + 0.8 * pose.elevation_mm)[:, None]
    top, bottom = tops[s.kind], bottoms[s.kind]
    depth = top + s.height[:, None] * (bottom - top) + s.slope[:, None] * along
    window = (1.0 - (2.0 * along / s.length_mm[:, None]) ** 2).clip(0.0, 1.0)
    inside = (depth > top) & (depth < bottom)
    strand = 10.0 ** (s.level_db[:, None] / 20.0) * np.sqrt(window) * inside
    rough = np.where(s.kind == _SEPTUM, 1.2, 0.5)

    faces = boundaries[:4]
    levels = 10.0 ** (np.array(patient.fascia_db)[:, None] / 20.0) * np.ones_like(faces)
    return Scene(
        boundaries_mm=boundaries,
        bone_mm=bone,
        has_bone=has_bone,
        sheets_mm=np.concatenate([faces, depth]),
        sheets_amplitude=np.concatenate([levels, strand]),
        sheets_roughness=np.concatenate([np.full(4, 0.3), rough])[:, None],
        has_cartilage=np.abs(x) < 0.5 * patient.plate_mm,
        fluid=fluid,
    )
