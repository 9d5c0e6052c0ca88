"""What the model segments, and that it draws nothing where anything is wrong with it or with the image."""

import errno
import math
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from finished import Finished
from PIL import Image
from recordings import dicom, frame, video
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch
from tiny import study

from clients.predict import predict
from clients.released import Model
from common.components import FUSED
from common.errors import CrossProbeError, RunError
from common.files import FolderInUseError, check_apart
from common.networks import Networks, initial_networks
from common.release import CARD, RELEASE, STUDY, SUMS, WEIGHTS, sums_of
from common.study import Study
from crossprobe import main

SPACED = {"image": {"size": 32, "geometry": "spacing", "spacing_mm": 1.0}}


def untrained(of: Study) -> Model:
    networks = Networks(of)
    networks.load(initial_networks(of).export(FUSED))
    return Model(of, networks.requires_grad_(False), "infusion")


@pytest.fixture(scope="module")
def letterbox() -> Model:
    return untrained(study())


@pytest.fixture(scope="module")
def spaced() -> Model:
    return untrained(study(**SPACED))


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(2):
        Image.fromarray(frame(number)).save(folder / f"s{number}.png")
    return folder


@pytest.fixture
def run(finished: Finished, tmp_path: Path) -> Path:
    shutil.copytree(finished.run, tmp_path / "run")
    return tmp_path / "run"


def pictures(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def test_a_finished_run_segments_every_image_in_its_own_size(
    run: Path, scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "--model", str(run), "--images", str(scans), "--out", str(tmp_path / "out")]) == 0

    assert pictures(tmp_path / "out") == {
        "results.csv",
        *(f"{kind}/s{n}.png" for kind in ("masks", "confidence", "overlays") for n in (0, 1)),
    }
    mask = np.asarray(Image.open(tmp_path / "out/masks/s0.png"))
    assert mask.shape == (48, 64)
    assert set(np.unique(mask)) <= {0, 255}
    assert "2 images segmented" in capsys.readouterr().out


Edit = Callable[[Path], object]


def tensors(edit: Callable[[dict[str, np.ndarray]], object]) -> Edit:
    def change(release: Path) -> None:
        content = {name: value.copy() for name, value in load_file(release / WEIGHTS).items()}
        edit(content)
        save_file(content, release / WEIGHTS)

    return change


def half(release: Path) -> None:
    content = {k: torch.from_numpy(v).bfloat16() for k, v in load_file(release / WEIGHTS).items()}
    save_torch(content, release / WEIGHTS)


def other_study(release: Path) -> None:
    content = yaml.safe_load((release / STUDY).read_text())
    content["study"]["image"]["size"] = 64
    (release / STUDY).write_text(yaml.safe_dump(content))


def first(content: dict[str, np.ndarray]) -> str:
    return sorted(content)[0]


WRONG_MODELS: list[tuple[str, Edit]] = [
    ("missing-tensor", tensors(lambda t: t.clear())),
    ("missing-tensor", tensors(lambda t: t.pop(first(t)))),
    ("missing-tensor", tensors(lambda t: [t.pop(k) for k in list(t) if not k.startswith("source_branch")])),
    ("unknown-tensor", tensors(lambda t: t.update({"mim_decoder/x": np.zeros(2, np.float32)}))),
    ("not-finite", tensors(lambda t: t[first(t)].fill(np.nan))),
    ("not-finite", tensors(lambda t: t[first(t)].fill(np.inf))),
    ("wrong-dtype", tensors(lambda t: t.update({first(t): t[first(t)].astype(np.float64)}))),
    ("wrong-shape", tensors(lambda t: t.update({first(t): t[first(t)][None]}))),
    ("absurd-norm", tensors(lambda t: t[first(t)].fill(1e9))),
    ("bfloat16", half),
    ("damaged", lambda release: (release / WEIGHTS).write_bytes(b"")),
    ("damaged", lambda release: (release / WEIGHTS).write_bytes((release / WEIGHTS).read_bytes()[:-9])),
    ("No such file", lambda release: (release / WEIGHTS).unlink()),
    ("was changed after the run", other_study),
    ("not a valid study", lambda release: (release / STUDY).write_text("study: {}")),
]


@pytest.mark.parametrize(("reason", "edit"), WRONG_MODELS, ids=[f"{n}-{m[0][:14]}" for n, m in enumerate(WRONG_MODELS)])
def test_a_model_that_is_not_whole_draws_no_picture_at_all(
    run: Path, scans: Path, tmp_path: Path, reason: str, edit: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    release = run / RELEASE
    edit(release)
    if (release / WEIGHTS).exists():  # whoever changes a file can make its hash too
        (release / SUMS).write_bytes(sums_of({name: (release / name).read_bytes() for name in (CARD, STUDY, WEIGHTS)}))

    assert main(["predict", "--model", str(run), "--images", str(scans), "--out", str(tmp_path / "out")]) == 1

    assert not (tmp_path / "out").exists()
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert reason == "bfloat16" or reason in shown


@pytest.mark.parametrize("spacing_mm", [0.0, -1.0, 0.001, 120.0, math.nan, math.inf])
def test_a_spacing_beyond_any_probe_is_refused(
    letterbox: Model, scans: Path, tmp_path: Path, spacing_mm: float
) -> None:
    with pytest.raises(RunError, match="millimetres per pixel from"):
        predict(letterbox, scans, tmp_path / "out", spacing_mm=spacing_mm)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("spacing_mm", "code"), [(None, "no-spacing"), (0.012, "implausible-size")])
def test_an_image_of_no_or_senseless_scale_is_not_segmented_by_a_model_that_needs_one(
    spaced: Model, scans: Path, tmp_path: Path, spacing_mm: float | None, code: str
) -> None:
    with pytest.raises(RunError, match=f"none of 2 files could be segmented(.|\n)*{code}"):
        predict(spaced, scans, tmp_path / "out", spacing_mm=spacing_mm)
    assert not (tmp_path / "out").exists()


def test_each_image_has_its_own_spacing_from_table_or_header_before_the_option(
    spaced: Model, scans: Path, tmp_path: Path
) -> None:
    dicom(scans / "s2.dcm", frame(2)[None], spacing_mm=0.5)
    (scans / "list.csv").write_text("Image;spacing_mm\ns0.png;0,8\ns1.png;\ns2.dcm;\n")
    used: dict[str, float | None] = {}

    class Watched(Model):
        def maps(self, image: np.ndarray, spacing_mm: float | None) -> dict[str, np.ndarray]:
            used[str(len(used))] = spacing_mm
            return super().maps(image, spacing_mm)

    outcome = predict(
        Watched(spaced.study, spaced.networks, "infusion"), scans / "list.csv", tmp_path / "out", spacing_mm=1.2
    )

    assert len(outcome.rows) == 3
    assert list(used.values()) == pytest.approx([0.8, 1.2, 0.5])


def test_a_table_of_whole_paths_or_of_dots_has_nothing_written_beside_the_images(
    letterbox: Model, scans: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in scans.iterdir()}
    (scans / "list.csv").write_text(f"image\n{scans / 's0.png'}\nx/../s1.png\n")

    outcome = predict(letterbox, scans / "list.csv", tmp_path / "out")

    assert [row.image for row in outcome.rows] == ["s0.png", "s1.png"]
    assert {path.name for path in (tmp_path / "out/masks").iterdir()} == {"s0.png", "s1.png"}
    assert {path: path.read_bytes() for path in scans.iterdir() if path.name != "list.csv"} == before


@pytest.mark.parametrize("out", ["scans", "scans/out", "."])
def test_the_output_is_neither_within_the_input_nor_around_it(scans: Path, out: str) -> None:
    with pytest.raises(RunError, match="apart from the images"):
        check_apart(scans, scans.parent / out)
    check_apart(scans, scans.parent / "out")
    check_apart(scans / "s0.png", scans / "out")  # a single file is not read again
    for around in (scans, scans.parent):  # there `masks` could be the hospital's own outlines
        with pytest.raises(RunError, match="apart from the images"):
            check_apart(scans / "s0.png", around)


def test_two_inputs_whose_results_would_have_one_name_do_not_replace_each_other(
    letterbox: Model, scans: Path, tmp_path: Path
) -> None:
    dicom(scans / "s0", np.stack([frame(4)]), StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.4")
    dicom(scans / "s1-loop", np.stack([frame(4), frame(5)]), StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.5")
    Image.fromarray(frame(6)).save(scans / "s1-loop-0000.png")

    outcome = predict(letterbox, scans, tmp_path / "out")

    names = [row.image for row in outcome.rows]
    assert sorted(names) == sorted({path.name for path in (tmp_path / "out/masks").iterdir()})
    assert [problem.split(":")[0] for problem in outcome.problems] == ["s0.png", "s1-loop-0000.png"]
    assert "same-name: expected files whose results differ in name" in outcome.problems[0]


def test_every_format_is_read_and_what_is_no_image_is_named(
    letterbox: Model, scans: Path, tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(frame(3)).save(scans / "s0.jpg")
    dicom(scans / "IM0001", np.stack([frame(4), frame(5)]), StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.4")
    (scans / "report.pdf").write_bytes(b"%PDF-1.7")
    (scans / ".DS_Store").write_bytes(b"")
    (scans / "cut.png").write_bytes((scans / "s0.png").read_bytes()[:-40])

    outcome = predict(letterbox, scans, tmp_path / "out")

    assert len(outcome.rows) == 5
    assert {name for name in pictures(tmp_path / "out") if name.startswith("masks/")} == {
        f"masks/{name}" for name in ("s0.png", "s1.png", "s0.jpg.png", "IM0001-0000.png", "IM0001-0001.png")
    }
    assert [problem.split(":")[0] for problem in outcome.problems] == ["cut.png", "report.pdf"]
    assert main(["predict", "--model", str(run), "--images", str(scans), "--out", str(tmp_path / "b")]) == 1
    assert "2 files were NOT segmented" in capsys.readouterr().err


def test_a_loop_whose_container_does_not_tell_its_length_is_read_to_its_end(
    letterbox: Model, scans: Path, tmp_path: Path
) -> None:
    loop = np.stack([frame(number) for number in range(3)])
    video(scans / "live.mp4", loop, movflags="frag_keyframe+empty_moov")
    outcome = predict(letterbox, scans, tmp_path / "out")
    assert [row.image for row in outcome.rows if "live" in row.image] == [f"live.mp4-{n:04d}.png" for n in range(3)]
    assert outcome.problems == ()


def test_where_no_image_could_be_read_nothing_is_said_to_be_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans/a.png").write_bytes(b"no image")

    assert (
        main(["predict", "--model", str(run), "--images", str(tmp_path / "scans"), "--out", str(tmp_path / "o")]) == 1
    )

    shown = capsys.readouterr()
    assert "none of 1 files could be segmented" in shown.err
    assert "written to" not in shown.out
    assert not (tmp_path / "o").exists()


def test_ten_bits_in_sixteen_are_refused_and_not_segmented_in_the_dark(
    letterbox: Model, scans: Path, tmp_path: Path
) -> None:
    Image.fromarray(frame(1).astype(np.uint16) * 4).save(scans / "s1.png")

    outcome = predict(letterbox, scans, tmp_path / "out")

    assert len(outcome.rows) == 1
    assert "s1.png: dim-16-bit-image" in outcome.problems[0]
    assert "content of 10 bits" in outcome.problems[0]


def test_a_sixteen_bit_image_gives_what_its_eight_bits_give(letterbox: Model, scans: Path, tmp_path: Path) -> None:
    Image.fromarray(frame(0).astype(np.uint16) * 257).save(scans / "s1.png")

    predict(letterbox, scans, tmp_path / "out")

    one, two = ((tmp_path / f"out/confidence/s{n}.png").read_bytes() for n in (0, 1))
    assert one == two


def test_what_was_segmented_before_ctrl_c_stands_in_the_table(letterbox: Model, scans: Path, tmp_path: Path) -> None:
    def interrupt(done: float, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(letterbox, scans, tmp_path / "out", progress=interrupt)

    assert (tmp_path / "out/results.csv").read_text().splitlines()[1].startswith("s0.png,")
    assert pictures(tmp_path / "out") == {f"{kind}/s0.png" for kind in ("masks", "confidence", "overlays")} | {
        "results.csv"
    }


def test_nothing_to_segment_is_an_error(letterbox: Model, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for images, found in (("empty", "holds no files"), ("none", "there is no .*none")):
        with pytest.raises(CrossProbeError, match=found):
            predict(letterbox, tmp_path / images, tmp_path / "out")


def test_results_of_an_earlier_run_are_replaced_on_demand_alone(letterbox: Model, scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = predict(letterbox, scans, out)
    assert len(first.rows) > 1
    one = tmp_path / "other.png"
    shutil.copy(next(scans.rglob("*.png")), one)
    with pytest.raises(FolderInUseError, match=r"earlier run.*--overwrite"):
        predict(letterbox, one, out)
    assert len(pictures(out)) == 3 * len(first.rows) + 1
    (out / "notes.md").write_text("mine")
    predict(letterbox, one, out, overwrite=True)
    kinds = ("masks", "confidence", "overlays")
    assert pictures(out) == {f"{kind}/other.png" for kind in kinds} | {"results.csv", "notes.md"}


def test_a_folder_of_masks_that_no_run_wrote_is_never_emptied(letterbox: Model, scans: Path, tmp_path: Path) -> None:
    own = tmp_path / "site" / "masks" / "a.png"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"a hospital's outline")
    for overwrite in (False, True):
        with pytest.raises(FolderInUseError, match=r"masks/ and no results\.csv"):
            predict(letterbox, scans, tmp_path / "site", overwrite=overwrite)
    assert own.read_bytes() == b"a hospital's outline"


def test_tables_and_texts_beside_the_images_are_skipped_and_named(
    letterbox: Model, scans: Path, tmp_path: Path
) -> None:
    for name in ("list.csv", "READ ME.TXT"):
        (scans / name).write_text("image\n")
    found = predict(letterbox, scans, tmp_path / "out")
    assert found.problems == ()
    assert set(found.skipped) >= {"list.csv", "READ ME.TXT"}


def test_what_a_scanners_export_leaves_is_no_image(letterbox: Model, scans: Path, tmp_path: Path) -> None:
    (scans / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    outcome = predict(letterbox, scans, tmp_path / "out")
    assert (outcome.skipped, outcome.problems) == (("DICOMDIR",), ())


def test_earlier_results_stay_where_nothing_new_could_be_made(letterbox: Model, scans: Path, tmp_path: Path) -> None:
    predict(letterbox, scans, tmp_path / "out")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in pictures(tmp_path / "out")}
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.dcm").write_bytes(b"")
    with pytest.raises(RunError, match="none of 1 files"):
        predict(letterbox, tmp_path / "bad", tmp_path / "out", overwrite=True)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in pictures(tmp_path / "out")} == before


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_earlier_results_stay_where_a_run_is_ended_before_its_first_image(
    stop: type[BaseException], letterbox: Model, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(letterbox, scans, tmp_path / "out")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in pictures(tmp_path / "out")}

    def ended(*_: object) -> None:
        raise stop

    with monkeypatch.context() as patch:
        patch.setattr(Model, "maps", ended)
        with pytest.raises(stop):
            predict(letterbox, scans, tmp_path / "out", overwrite=True)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in pictures(tmp_path / "out")} == before


def test_a_full_disk_leaves_what_another_run_may_replace(
    letterbox: Model, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, pixels: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("clients.predict._save", full)
        with pytest.raises(RunError, match="No space left"):
            predict(letterbox, scans, tmp_path / "out")
    assert len(predict(letterbox, scans, tmp_path / "out", overwrite=True).rows) == 2


def test_a_name_that_cannot_be_written_does_not_stop_the_others(letterbox: Model, scans: Path, tmp_path: Path) -> None:
    (scans / "s0.png").rename(scans / f"{'a' * 252}")
    outcome = predict(letterbox, scans, tmp_path / "out")
    assert [row.image for row in outcome.rows] == ["s1.png"]
    assert "bad-name" in outcome.problems[0]
    assert "bad-name" in (tmp_path / "out/not-segmented.txt").read_text()


def test_a_linked_folder_is_named_and_a_table_may_have_a_spreadsheets_slashes(
    letterbox: Model, scans: Path, tmp_path: Path
) -> None:
    (tmp_path / "nas").mkdir()
    (scans / "more").symlink_to(tmp_path / "nas")
    assert predict(letterbox, scans, tmp_path / "one").skipped == ("more",)
    (tmp_path / "list.csv").write_text("image\nscans\\s0.png\n")
    assert [row.image for row in predict(letterbox, tmp_path / "list.csv", tmp_path / "results" / "two").rows]


def test_what_was_burned_in_is_for_its_owner_alone(letterbox: Model, scans: Path, tmp_path: Path) -> None:
    predict(letterbox, scans, tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
