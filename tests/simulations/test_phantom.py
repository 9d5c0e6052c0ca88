"""What the phantom promises: the same bytes, one anatomy per patient, physics that shows."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from simulations.phantom.anatomy import draw_patient, draw_pose, scene
from simulations.phantom.devices import PROFILES, DeviceProfile
from simulations.phantom.echo import make_grid, synthesise_echo
from simulations.phantom.formation import PhantomFrame, render_frame

SEED = 11
LUMIFY = PROFILES["lumify_like"]
TELEMED = PROFILES["telemed_like"]


def _frame(patient: int = 0, frame: int = 0, profile: DeviceProfile = LUMIFY) -> PhantomFrame:
    return render_frame(seed=SEED, patient=patient, frame=frame, profile=profile)


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2.0 * np.sum((a > 0) & (b > 0)) / (np.sum(a > 0) + np.sum(b > 0)))


def _bone_top_mm(frame: PhantomFrame) -> np.ndarray:
    """Depth of the first bone pixel by column, mm; NaN in columns without bone."""
    top = frame.mask.argmax(axis=0) * frame.spacing_mm
    return np.where(frame.mask.any(axis=0), top, np.nan)


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_profile_renders_its_own_pixel_grid(name: str) -> None:
    profile = PROFILES[name]
    frame = _frame(profile=profile)
    assert frame.image.shape == frame.mask.shape == (profile.rows, profile.columns)
    assert frame.image.dtype == frame.mask.dtype == np.uint8
    assert frame.spacing_mm * profile.rows == pytest.approx(profile.depth_mm)
    assert frame.image.std() > 5


def test_the_same_arguments_give_the_same_bytes() -> None:
    first = _frame(patient=3, frame=2)
    _frame(patient=4)
    draw_patient.cache_clear()
    again = _frame(patient=3, frame=2)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.mask.tobytes() == again.mask.tobytes()


def test_another_seed_is_another_patient() -> None:
    other = render_frame(seed=SEED + 1, patient=0, frame=0, profile=LUMIFY)
    assert not np.array_equal(other.mask, _frame().mask)


@pytest.mark.parametrize("patient", range(4))
def test_two_profiles_see_the_same_anatomy(patient: int) -> None:
    near, far = _frame(patient), _frame(patient, profile=TELEMED)
    assert near.fracture == far.fracture
    # Compare the depth of the bone at the same places under the probe, in mm.
    places = np.linspace(-14.0, 14.0, 57)
    tops = []
    for frame in (near, far):
        columns = frame.mask.shape[1]
        index = np.round(places / frame.spacing_mm + (columns - 1) / 2).astype(int)
        tops.append(_bone_top_mm(frame)[index])
    difference = np.abs(tops[0] - tops[1])
    assert np.nanmedian(difference) < LUMIFY.spacing_mm + TELEMED.spacing_mm


def test_two_profiles_show_different_pictures() -> None:
    near, far = _frame(), _frame(profile=TELEMED)
    assert near.spacing_mm != far.spacing_mm
    shadow = [np.median(f.image[int(28.0 / f.spacing_mm) :]) for f in (near, far)]
    assert shadow[1] > shadow[0] + 20


@pytest.mark.parametrize("patient", range(6))
def test_the_mask_is_a_thin_binary_band(patient: int) -> None:
    frame = _frame(patient)
    assert set(np.unique(frame.mask)) == {0, 255}
    assert 0.03 < np.mean(frame.mask > 0) < 0.15
    height = np.sum(frame.mask > 0, axis=0) * frame.spacing_mm
    assert 2.4 < np.median(height[height > 0]) < 3.6


def test_the_mask_leaves_the_growth_plate_open() -> None:
    view = scene(draw_patient(SEED, 0), draw_pose(SEED, 0, 0), np.linspace(-30.0, 30.0, 601))
    changes = np.count_nonzero(np.diff(view.has_bone.astype(int)))
    assert changes >= 3


def test_about_half_of_the_patients_are_fractured() -> None:
    kinds = [draw_patient(SEED, patient).fracture for patient in range(400)]
    broken = np.mean([kind != "none" for kind in kinds])
    assert 0.42 < broken < 0.58
    assert {"none", "buckle", "step"} == set(kinds)


def test_a_buckle_lifts_the_cortex_where_the_fracture_is() -> None:
    number = next(n for n in range(50) if draw_patient(SEED, n).fracture == "buckle")
    broken = draw_patient(SEED, number)
    whole = dataclasses.replace(broken, fracture="none", fracture_angle=0.0)
    straight = dataclasses.replace(broken, fracture_angle=0.0)
    pose, x = draw_pose(SEED, number, 0), np.linspace(-20.0, 20.0, 401)
    lift = scene(whole, pose, x).bone_mm - scene(straight, pose, x).bone_mm
    assert lift.max() == pytest.approx(broken.fracture_height_mm, abs=0.05)


@pytest.mark.parametrize("name", ["lumify_like", "telemed_like"])
@pytest.mark.parametrize("patient", range(4))
def test_bone_casts_a_shadow(name: str, patient: int) -> None:
    frame = _frame(patient, profile=PROFILES[name])
    rows = np.arange(frame.mask.shape[0])[:, None] * frame.spacing_mm
    top = _bone_top_mm(frame)
    above = (rows > 2.0) & (rows < top - 0.5)
    below = (rows > top + 5.0) & (rows < top + 14.0)
    assert frame.image[below].mean() < frame.image[above].mean() - 20


def test_the_cortex_is_brighter_than_the_tissue_above_it() -> None:
    for patient in range(4):
        frame = _frame(patient)
        rows = np.arange(frame.mask.shape[0])[:, None] * frame.spacing_mm
        top = _bone_top_mm(frame)
        cortex = np.abs(rows - top) < 0.3
        tissue = (rows > top - 3.0) & (rows < top - 1.0)
        assert frame.image[cortex].mean() > frame.image[tissue].mean() + 20


def test_frames_of_a_patient_differ_but_are_alike() -> None:
    frames = [_frame(2, number) for number in range(4)]
    for before, after in itertools.pairwise(frames):
        assert not np.array_equal(before.image, after.image)
        assert before.fracture == after.fracture
        assert _dice(before.mask, after.mask) > 0.5
    stranger = np.mean([_dice(frames[0].mask, _frame(p).mask) for p in range(3, 9)])
    kin = np.mean([_dice(frames[0].mask, f.mask) for f in frames[1:]])
    assert kin > stranger


def test_speckle_decorrelates_with_elevation_and_not_at_once() -> None:
    child, pose = draw_patient(SEED, 2), draw_pose(SEED, 2, 0)
    grid = make_grid(TELEMED)
    view = scene(child, pose, grid.probe_mm)
    level = [dataclasses.replace(pose, elevation_mm=elevation) for elevation in (0.0, 0.2, 1.5)]
    echo = [synthesise_echo(child, p, view, TELEMED, grid, (SEED, 2)) for p in level]
    tissue = np.s_[int(3.0 / TELEMED.spacing_mm) : int(6.0 / TELEMED.spacing_mm)]

    def coherence(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(np.vdot(a, b)) / np.sqrt(np.vdot(a, a).real * np.vdot(b, b).real))

    near = coherence(echo[0][tissue], echo[1][tissue])
    far = coherence(echo[0][tissue], echo[2][tissue])
    assert 0.9 < near < 1.0
    assert far < near - 0.1


def test_a_profile_without_physical_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="bandwidth_fraction"):
        dataclasses.replace(LUMIFY, bandwidth_fraction=1.5)
    with pytest.raises(ValueError, match="positive"):
        dataclasses.replace(LUMIFY, depth_mm=0.0)
