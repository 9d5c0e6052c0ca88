"""What is said about a bad site's folder."""

import pickle
import shutil
import struct
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from site_folder import (
    COLOUR,
    Breaker,
    cell,
    column,
    disc,
    good_site,
    grey_levels,
    picture,
    read_rows,
    save,
    write_rows,
)

from clients.data.findings import EXAMPLES, SiteFolderError
from clients.data.images import PictureError, decode_grey
from clients.data.pseudonyms import personal as looks_personal
from clients.data.site import check_site, load_site
from crossprobe import main


def yaml(text: str) -> Breaker:
    return lambda folder: (folder / "site.yaml").write_text(text)


def manifest(edit: Callable[[str], str]) -> Breaker:
    path = "manifest.csv"
    return lambda folder: (folder / path).write_text(edit((folder / path).read_text()))


def pixels(name: str, content: np.ndarray) -> Breaker:
    return lambda folder: save(folder / name, content)


def truncate(name: str) -> Breaker:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-60])


def link_outside(folder: Path) -> None:
    outside = folder.parent / "outside.png"
    (folder / "images/p1_0.png").rename(outside)
    (folder / "images/p1_0.png").symlink_to(outside)


def jpeg_as_png(folder: Path) -> None:
    Image.fromarray(picture(0)).save(folder / "images/p1_0.png", format="JPEG")


def repeat_first_row(folder: Path) -> None:
    rows = read_rows(folder)
    write_rows(folder, [*rows, rows[0]])


def every_mask(change: Callable[[np.ndarray], np.ndarray]) -> Breaker:
    def break_it(folder: Path) -> None:
        for file in (folder / "masks").iterdir():
            save(file, change(np.asarray(Image.open(file))))

    return break_it


def animate(folder: Path) -> None:
    frames = [Image.fromarray(picture(seed)) for seed in range(3)]
    frames[0].save(folder / "images/p1_0.png", save_all=True, append_images=frames[1:])


def claim(width: int, height: int) -> Breaker:
    """Give a PNG's header another size, as a bomb has it: nothing of these pixels exists."""

    def break_it(folder: Path) -> None:
        file = folder / "images/p1_0.png"
        content = bytearray(file.read_bytes())
        content[16:24] = struct.pack(">II", width, height)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        file.write_bytes(content)

    return break_it


DRAWN_IN_ALPHA = np.stack([disc() * 0] * 3 + [disc()], axis=-1)

BAD_FOLDERS: list[tuple[str, str, Breaker]] = [
    ("missing-folder", "source", lambda folder: folder.rename(folder.with_name("elsewhere"))),
    ("missing-site-yaml", "source", lambda folder: (folder / "site.yaml").unlink()),
    ("invalid-yaml", "source", yaml("name: [north")),
    ("invalid-yaml", "source", yaml("north")),
    ("invalid-yaml", "source", lambda folder: (folder / "site.yaml").write_bytes(b"name: \xff")),
    ("invalid-yaml", "source", yaml("name: 2026-13-45")),
    ("unknown-key", "source", yaml("name: north\nrole: source\nthread: 2")),
    ("unknown-key", "source", yaml("name: north\nrole: source\npolicy: {min: 2}")),
    ("missing-key", "source", yaml("role: source")),
    ("wrong-value", "source", yaml("name: north\nrole: sauce")),
    ("wrong-value", "source", yaml("name: North Hospital\nrole: source")),
    ("wrong-value", "source", yaml("name: north\nrole: source\nthreads: 0")),
    ("wrong-value", "source", yaml("name: north\nrole: source\npolicy: {min_patients: 0}")),
    ("missing-manifest", "source", lambda folder: (folder / "manifest.csv").unlink()),
    ("unreadable-manifest", "source", lambda f: (f / "manifest.csv").write_bytes(b"image,patient\na,\x81")),
    ("unreadable-manifest", "source", manifest(lambda text: text + '"open')),
    ("wrong-columns", "source", manifest(lambda text: text.replace("patient", "subject", 1))),
    ("wrong-columns", "source", manifest(lambda text: text.replace("split", "spilt", 1))),
    ("wrong-columns", "source", manifest(lambda text: "")),
    ("wrong-columns", "source", manifest(lambda text: text.replace("video", "image", 1))),
    ("wrong-cell-count", "source", manifest(lambda text: text.replace("probe", "a,b", 1))),
    ("empty-manifest", "source", manifest(lambda text: text.splitlines()[0])),
    ("missing-image", "source", lambda folder: (folder / "images/p1_0.png").unlink()),
    ("missing-image", "source", cell("image", "")),
    ("missing-image", "source", cell("image", "a" * 300)),
    ("missing-mask", "source", lambda folder: (folder / "masks/p1_0.png").unlink()),
    ("missing-mask", "target", lambda folder: (folder / "masks/p3_0.png").unlink()),
    ("unreadable-image", "source", truncate("images/p1_0.png")),
    ("unreadable-image", "source", jpeg_as_png),
    ("unreadable-mask", "source", truncate("masks/p1_0.png")),
    ("unreadable-mask", "target", lambda f: (f / "masks/p3_0.png").write_bytes(b"no PNG at all")),
    ("colour-image", "source", pixels("images/p1_0.png", COLOUR)),
    ("colour-mask", "source", pixels("masks/p1_0.png", COLOUR)),
    ("transparent-mask", "source", pixels("masks/p1_0.png", DRAWN_IN_ALPHA)),
    ("mask-size", "source", pixels("masks/p1_0.png", disc()[:-1])),
    ("mask-size", "target", pixels("masks/p3_0.png", disc()[:-1])),
    ("non-binary-mask", "source", pixels("masks/p1_0.png", grey_levels(0, 127, 255))),
    ("non-binary-mask", "source", pixels("masks/p1_0.png", grey_levels(1, 2))),
    ("patient-in-two-splits", "source", cell("split", "val", row=2)),
    ("video-of-two-patients", "source", cell("video", "v-p2")),
    ("duplicate-row", "source", repeat_first_row),
    ("same-image-twice", "source", pixels("images/p2_0.png", picture(0))),
    ("training-mask-at-target", "target", cell("mask", "masks/p3_0.png")),
    ("unlabelled-at-source", "source", cell("mask", "")),
    ("mixed-spacing", "source", cell("spacing_mm", "")),
    ("bad-spacing", "source", cell("spacing_mm", "0")),
    ("bad-spacing", "source", cell("spacing_mm", "-0.1")),
    ("bad-spacing", "source", cell("spacing_mm", "nan")),
    ("bad-spacing", "source", cell("spacing_mm", "inf")),
    ("bad-spacing", "source", cell("spacing_mm", "1,000,0")),
    ("bad-spacing", "source", cell("spacing_mm", "0.0049")),
    ("bad-spacing", "source", cell("spacing_mm", "5.1")),
    ("path-outside-folder", "source", cell("image", "/etc/hostname")),
    ("path-outside-folder", "source", cell("image", "C:\\images\\a.png")),
    ("path-outside-folder", "source", cell("mask", "../north/masks/p1_0.png")),
    ("path-outside-folder", "source", cell("mask", "masks\\..\\..\\a.png")),
    ("path-outside-folder", "source", link_outside),
    ("bad-split", "source", cell("split", "training")),
    ("bad-frame", "source", cell("frame", "-1")),
    ("bad-frame", "source", cell("frame", "1.5")),
    ("empty-patient", "source", cell("patient", " ")),
    ("no-train-patients", "source", column("split", "test")),
    ("small-image", "target", pixels("images/p1_0.png", picture(0)[:15])),
    ("constant-image", "source", pixels("images/p1_0.png", grey_levels(7))),
    ("invalid-yaml", "source", yaml("name: north\nrole: source\npolicy: {privacy_required: true}\npolicy: {}")),
    ("invalid-yaml", "source", yaml("name: north\nrole: source\nname: south")),
    (
        "one-patient",
        "source",
        lambda f: [column(*c)(f) for c in (("patient", "p1"), ("video", "v"), ("split", "train"))],
    ),
    ("masks-all-empty", "source", every_mask(lambda mask: mask * 0)),
    ("masks-all-full", "source", every_mask(lambda mask: mask * 0 + 255)),
    ("masks-inverted", "source", every_mask(lambda mask: 255 - mask)),
    ("implausible-size", "source", column("spacing_mm", "0.1")),  # 1 mm, given in cm
    ("implausible-size", "source", column("spacing_mm", "0,1")),
    ("huge-image", "source", claim(9000, 9000)),
    ("animated-image", "source", animate),
    ("dim-16-bit-image", "source", pixels("images/p1_0.png", picture(0, np.uint16) // 64)),
    ("personal-patient", "source", lambda f: [cell("patient", "Mueller_Anna_1987-03-12", row)(f) for row in (0, 1)]),
    ("unlisted-image", "source", pixels("images/p9_0.png", picture(9))),
    ("mask-size", "source", pixels("masks/p1_0.png", np.pad(grey_levels(0, 127, 255), 3))),
    ("unlisted-image", "target", lambda folder: (folder / "images/p9_0.JPG").write_bytes(b"")),
]


@pytest.mark.parametrize(
    ("code", "role", "break_it"),
    BAD_FOLDERS,
    ids=[f"{number}-{code}" for number, (code, _, _) in enumerate(BAD_FOLDERS)],
)
def test_a_bad_folder_is_named_explained_and_not_loaded(
    tmp_path: Path, code: str, role: str, break_it: Breaker
) -> None:
    folder = good_site(tmp_path / "north", role)
    break_it(folder)

    site, findings = check_site(folder)

    assert site is None
    codes = {finding.code for finding in findings}
    if code == "missing-image":  # where a row names another file than the one that lies there, both are told at once
        codes -= {"unlisted-image"}
    assert codes == {code}
    assert all("expected" in f.message or code == "wrong-value" for f in findings)
    assert all("found" in finding.message for finding in findings)
    assert all(finding.where and finding.remedy for finding in findings)


def test_all_findings_come_together_in_one_readable_error(tmp_path: Path) -> None:
    folder = good_site(tmp_path / "north")
    yaml("name: north\nrole: source\ncolour: red")(folder)
    cell("spacing_mm", "12", row=1)(folder)
    cell("mask", "", row=2)(folder)
    (folder / "images/p1_0.png").unlink()
    truncate("images/p3_0.png")(folder)

    with pytest.raises(SiteFolderError) as caught:
        load_site(folder)

    codes = {finding.code for finding in caught.value.findings}
    assert codes == {
        "unknown-key", "bad-spacing", "unlabelled-at-source", "missing-image", "unreadable-image",
    }  # fmt: skip
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    for line, finding in zip(lines, caught.value.findings, strict=True):
        assert all(part in line for part in (finding.code, finding.where, finding.remedy))
    assert "manifest.csv line 2 (images/p1_0.png)" in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).findings == caught.value.findings


def test_a_training_mask_at_a_target_is_refused_unopened_and_a_test_mask_has_its_header_read(
    tmp_path: Path,
) -> None:
    folder = good_site(tmp_path / "north", "target")
    (folder / "masks/secret.png").write_bytes(b"")
    cell("mask", "masks/secret.png")(folder)
    opened: list[str] = []
    watching = True

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(hook)
    _, findings = check_site(folder)
    watching = False  # a hook cannot be taken away

    assert [finding.code for finding in findings] == ["training-mask-at-target"]
    assert str(folder / "masks/p3_0.png") in opened
    assert str(folder / "masks/secret.png") not in opened


def test_a_doubled_policy_cannot_take_a_protection_away_and_its_lines_are_named(tmp_path: Path) -> None:
    folder = good_site(tmp_path / "north")
    yaml("name: north\nrole: source\npolicy: {privacy_required: true}\nthreads: 1\npolicy: {min_patients: 5}")(folder)

    _, findings = check_site(folder)

    assert [finding.where for finding in findings] == ["site.yaml line 5"]
    assert "`policy` once, found it in line 3 too" in findings[0].message


def test_thousands_of_wrong_rows_are_three_examples_and_a_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = good_site(tmp_path / "north")
    rows = read_rows(folder)
    write_rows(folder, rows + [rows[0] | {"image": f"images/none-{n}.png", "frame": "x"} for n in range(5000)])

    assert main(["site", "check", str(folder), "--all", str(tmp_path / "all.txt")]) == 1

    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 2 * (EXAMPLES + 1) + 1
    assert "bad-frame: and 4997 more like these, 5000 together." in shown
    assert len((tmp_path / "all.txt").read_text().splitlines()) == 10_000


@pytest.mark.parametrize(
    ("error", "advice"),
    [(PermissionError(13, "Permission denied"), "a user who may read it"), (OSError(5, "Input/output error"), "disk")],
)
@pytest.mark.parametrize("name", ["site.yaml", "manifest.csv", "p1_0.png"])
def test_a_file_that_may_not_be_read_is_not_said_to_be_badly_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: OSError, advice: str
) -> None:
    folder = good_site(tmp_path / "north")
    opened = Path.open

    def refuse(path: Path, *arguments: object, **named: object) -> object:
        if path.name == name and path.parent.name != "masks":
            raise error
        return opened(path, *arguments, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)

    _, findings = check_site(folder)

    assert {finding.code.partition("-")[0] for finding in findings} == {"unreadable"}
    assert all(advice in finding.remedy and "quotation" not in finding.remedy for finding in findings)
    assert all(str(error.strerror) in finding.message for finding in findings)


@pytest.mark.parametrize(
    ("patient", "personal"),
    [
        ("Mueller_Anna_1987-03-12", True),
        ("müller 12.03.1987", True),
        ("DOE^JANE", True),
        ("Doe, Jane", True),
        ("19870312Mueller", True),
        ("Anna Müller", True),
        ("Mueller_Anna", True),
        ("Anna-Lena Weber", True),
        ("Patient One", False),
        ("Wrist Left", False),
        ("anon case", False),
        ("Cohort A", False),
        ("p0012", False),
        ("patient_2024-05-01_3", False),
        ("kept-north-train-0", False),
        ("20240115", False),
        ("1.2.840.113619.2.5", False),
        ("a3f9c2e01987", False),
    ],
)
def test_an_id_that_looks_like_the_patient_is_told_from_a_pseudonym(patient: str, personal: bool) -> None:
    assert bool(looks_personal(patient)) == personal


def test_an_image_that_memory_does_not_suffice_for_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "scan.png"
    Image.new("L", (40, 30)).save(file)

    def lacks(self: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lacks)
    with pytest.raises(PictureError) as error:
        decode_grey(file, "image")
    assert error.value.code == "unreadable-image"


def test_a_mask_that_marks_nothing_is_told_on_the_terminal_and_is_no_fault(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["site", "check", str(folder)]) == 0
    assert "mark nothing" not in capsys.readouterr().out
    mask = next(frame.mask for frame in load_site(folder).frames if frame.mask is not None)
    Image.fromarray(np.zeros_like(np.asarray(Image.open(mask)))).save(mask)
    assert main(["site", "check", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "1 mask(s) mark nothing" in shown
    assert "without findings" in shown


def test_a_missing_image_and_one_that_no_row_lists_are_told_together(folder: Path) -> None:
    image = load_site(folder).frames[0].image
    image.unlink()
    Image.fromarray(picture(9)).save(image.with_name("extra.png"))
    _, findings = check_site(folder)
    assert {(finding.code, "extra.png" in finding.where) for finding in findings} == {
        ("missing-image", False),
        ("unlisted-image", True),
    }


def test_a_target_whose_patients_all_have_masks_is_told_why_none_is_left_to_train_on(
    pair: Sequence[Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(pair[1], tmp_path / "east"))
    head, *lines = (folder / "manifest.csv").read_text().splitlines()
    rows = [head, *(line for line in lines if "masks/" in line)]
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    for extra in (folder / "images").iterdir():
        if extra.name not in "".join(rows):
            extra.unlink()
    _, findings = check_site(folder)
    (found,) = findings
    assert found.code == "no-train-patients"
    assert "all have masks" in found.message
    assert "no mask" in found.remedy


def test_a_row_filled_down_gives_no_two_patients_one_mask(tmp_path: Path) -> None:
    folder = good_site(tmp_path / "north")
    lines = (folder / "manifest.csv").read_text().splitlines()
    masks = [cell for line in lines[1:] for cell in line.split(",") if cell.startswith("masks/")]
    filled = [line.replace(own, masks[0]) for line, own in zip(lines[1:], masks, strict=True)]
    (folder / "manifest.csv").write_text("\n".join([lines[0], *filled]) + "\n")
    assert "mask-of-two-patients" in {finding.code for finding in check_site(folder)[1]}


@pytest.mark.parametrize("option", ["--html", "--all"])
def test_a_check_writes_nothing_into_the_folder(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = good_site(tmp_path / "north")
    before = (folder / "manifest.csv").read_bytes()
    assert main(["site", "check", str(folder), option, str(folder / "manifest.csv")]) == 1
    assert "expected a place outside" in capsys.readouterr().err
    assert (folder / "manifest.csv").read_bytes() == before
