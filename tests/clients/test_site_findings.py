"""What is said about a bad site's folder."""

import pickle
import sys
from collections.abc import Callable
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

from clients.data.site import SiteFolderError, check_site, load_site


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
    ("unreadable-manifest", "source", lambda f: (f / "manifest.csv").write_bytes(b"imag\xe9")),
    ("unreadable-manifest", "source", manifest(lambda text: text + '"open')),
    ("wrong-columns", "source", manifest(lambda text: text.replace("patient", "subject", 1))),
    ("wrong-columns", "source", manifest(lambda text: text.replace(",", ";"))),
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
    ("bad-spacing", "source", cell("spacing_mm", "0,1")),
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
    assert {finding.code for finding in findings} == {code}
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
