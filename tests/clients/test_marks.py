"""Text and marks within an image are found and filled; tissue, bone and masks are left as they are."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from clients.data.formats.recording import to_grey
from clients.data.intake.fill import filled
from clients.data.intake.marks import find_marks
from clients.data.site import load_site
from crossprobe import main
from simulations.benchmarks import marks as benchmark
from simulations.phantom.devices import PROFILES
from simulations.phantom.formation import PhantomFrame, render_frame

NAME = "MUELLER ANNA 1987"
GREY_AND_COLOURS = [(255, 255, 255), (255, 230, 0), (0, 220, 90)]


@pytest.fixture(scope="module", params=["lumify_like", "telemed_like"])
def phantom(request: pytest.FixtureRequest) -> PhantomFrame:
    return render_frame(seed=3, patient=1, frame=0, profile=PROFILES[request.param])


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, -1)


def written(pixels: np.ndarray, colour: tuple[int, int, int], text: str = NAME) -> tuple[np.ndarray, np.ndarray]:
    """RGB with a name across the middle and a caliper, and where they are."""
    picture, cover = Image.fromarray(pixels), Image.new("L", pixels.shape[1::-1])
    middle = len(pixels) // 2
    for pen, ink in ((ImageDraw.Draw(picture), colour), (ImageDraw.Draw(cover), 255)):
        pen.text((60, middle), text, fill=ink, font=ImageFont.load_default(14))
        pen.line((35, middle - 5, 35, middle + 5), fill=ink)
        pen.line((30, middle, 40, middle), fill=ink)
    return np.asarray(picture), np.asarray(cover) >= 128


@pytest.mark.parametrize("store", benchmark.STORED.values(), ids=benchmark.STORED)
@pytest.mark.parametrize("colour", GREY_AND_COLOURS)
def test_a_name_and_a_caliper_within_the_image_are_gone(
    phantom: PhantomFrame, colour: tuple[int, int, int], store: benchmark.Store
) -> None:
    marked, truth = written(rgb(phantom.image), colour)
    pixels, view = store(marked), np.ones(truth.shape, bool)
    grey = to_grey(pixels)[0]

    found = find_marks(pixels, grey, view)
    after = filled(grey, found, view)

    assert found[truth].mean() > 0.95
    assert found.mean() < 0.1
    near = found & ~truth
    strokes = grey[truth].mean() - grey[near].mean(), after[truth].mean() - after[near].mean()
    assert strokes[0] > 50
    assert abs(strokes[1]) < 12  # where a stroke was is as bright as beside it: no letter can be made out


@pytest.mark.parametrize("level", [140, 200, 255])
def test_an_arrow_of_one_exact_level_is_gone_also_where_it_lies_flat(phantom: PhantomFrame, level: int) -> None:
    picture, cover = Image.fromarray(phantom.image), Image.new("L", phantom.image.shape[::-1])
    middle = phantom.image.shape[0] // 2
    for pen, ink in ((ImageDraw.Draw(picture), level), (ImageDraw.Draw(cover), 255)):
        pen.line((60, middle, 100, middle), fill=ink)
        for side in (-4, 4):
            pen.line((100, middle, 93, middle + side), fill=ink)
    grey, truth = np.asarray(picture), np.asarray(cover) > 0

    found = find_marks(grey, grey, np.ones(truth.shape, bool))

    assert found[truth].mean() > 0.95
    assert found.mean() < 0.02


@pytest.mark.parametrize("profile", PROFILES)
def test_an_image_without_marks_stays_as_it_is_above_all_its_bone(profile: str) -> None:
    for patient in range(2):
        frame = render_frame(seed=5, patient=patient, frame=0, profile=PROFILES[profile])
        found = find_marks(frame.image, frame.image, np.ones(frame.image.shape, bool))
        assert found.mean() < 0.002
        assert not found[frame.mask > 0].any()


def test_what_is_filled_is_tissue_of_the_same_image_and_nothing_else_changes(phantom: PhantomFrame) -> None:
    marks, view = np.zeros(phantom.image.shape, bool), np.ones(phantom.image.shape, bool)
    marks[40:55, 60:200] = True
    view[:, :40] = False
    grey = np.where(view, phantom.image, 0).astype(np.uint16) * 257
    grey[marks] = 65535

    after = filled(grey, marks, view)

    assert (after[~marks] == grey[~marks]).all()
    assert set(np.unique(after[marks])) <= set(np.unique(grey[view & ~marks]))
    assert after[marks].std() > 0.4 * grey[56:71, 60:200].std()  # speckle, not a smear
    assert (filled(grey, np.zeros_like(marks), view) == grey).all()
    assert (filled(grey, np.ones_like(marks), view) == grey).all()  # nothing to fill it from


def test_a_large_frame_of_sixteen_bits_is_looked_at_too(phantom: PhantomFrame) -> None:
    picture = Image.fromarray(phantom.image).resize((1203, 1601), Image.Resampling.BILINEAR)
    marked = picture.copy()
    ImageDraw.Draw(marked).text((200, 1000), NAME, fill=255, font=ImageFont.load_default(48))
    grey = np.asarray(marked).astype(np.uint16) * 257
    truth = np.asarray(marked) > np.asarray(picture).astype(int) + 60

    found = find_marks(grey, grey, np.ones(grey.shape, bool))

    assert found.shape == grey.shape
    assert found[truth].mean() > 0.97


def test_an_intake_fills_marks_and_counts_them_and_leaves_every_mask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("shots", "masks"):
        (tmp_path / name).mkdir()
    for patient in range(3):
        frame = render_frame(seed=9, patient=patient, frame=0, profile=PROFILES["lumify_like"])
        Image.fromarray(written(rgb(frame.image), (255, 255, 255))[0]).save(tmp_path / f"shots/p{patient}_.png")
        Image.fromarray(frame.mask).save(tmp_path / f"masks/p{patient}_.png")
    (tmp_path / "k").write_bytes(b"k" * 32)  # a known key: with a random one, all three patients may miss `train`
    (tmp_path / "k").chmod(0o600)
    command = ["site", "new", str(tmp_path / "shots"), "--role", "source", "--patient-pattern", r"(p\d)_", "--json"]
    command += [
        "--masks",
        str(tmp_path / "masks"),
        "--spacing-mm",
        "0.1",
        "--keep-outside",
        "--key",
        str(tmp_path / "k"),
    ]

    main([*command, str(tmp_path / "clean"), "--name", "a"])
    removed = json.loads(capsys.readouterr().out)["removed"]
    main([*command, str(tmp_path / "marked"), "--name", "a", "--keep-marks"])

    kept = json.loads(capsys.readouterr().out)["removed"]
    assert (removed["frames_filled"], kept["frames_filled"]) == (3, 0)
    assert removed["pixels_filled"] > 3 * 1000
    clean, marked = (load_site(tmp_path / name).frames for name in ("clean", "marked"))
    for one, other in zip(clean, marked, strict=True):
        assert one.mask is not None
        assert other.mask is not None
        assert one.mask.read_bytes() == other.mask.read_bytes()
        assert one.image.read_bytes() != other.image.read_bytes()


def test_the_benchmark_writes_its_numbers_and_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "PROFILES", {name: PROFILES[name] for name in ("lumify_like",)})
    monkeypatch.setattr(benchmark, "COLOURS", {"white": (255, 255, 255)})

    benchmark.main(tmp_path / "marks", images=1)

    content = json.loads((tmp_path / "marks.json").read_text())
    shares = {(own["kind"], own["stored"]): own["pixel_recall"] for own in content["found"]}
    assert shares["text", "png"] > 0.9
    assert content["mistaken"][0]["bone_pixels"] == 0
    assert "| text |" in (tmp_path / "marks.md").read_text()
