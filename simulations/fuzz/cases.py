"""One bad input into one command: `site new`, `site check`, `predict`, the desk, or a study's and a site's settings."""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import yaml

from clients.data.formats import open_recording
from clients.data.images import PictureError
from clients.desk import views
from clients.desk.desk import Desk
from clients.governance.state import State
from common.components import FUSED
from common.errors import CrossProbeError
from common.networks import initial_networks
from common.release import CARD, STUDY, SUMS, WEIGHTS, sums_of
from common.study import Study, parse_study
from crossprobe import main
from simulations.fuzz import damage, files
from simulations.fuzz.damage import Rng

STUDY_TEXT = (Path(__file__).parents[2] / "configs/demo.yaml").read_bytes()
SITE_TEXT = b"name: north\nrole: source\nthreads: 1\npolicy:\n  min_patients: 5\n  patients_rounded_to: 1\n"
IMAGES = 4


@dataclass(frozen=True)
class Case:
    """A folder with a bad input, and what is then run there; it returns an exit code as the command does.

    Files may appear at `folder/out` and as `OUT.key` and `OUT-before-after.png` beside it, and nowhere else.
    """

    what: str
    run: Callable[[], int]


def case(rng: Rng, folder: Path) -> Case:
    """Draw a case and write its input into `folder`, which is there and empty."""
    (folder / "in").mkdir()
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/secret.png").write_bytes(files.whole("png"))
    kind = str(rng.choice(list(KINDS), p=list(WEIGHTS_OF_KINDS)))
    return KINDS[kind](rng, folder)


def _bad_image(rng: Rng) -> tuple[str, bytes]:
    if rng.random() < 0.02:
        kind = str(rng.choice(list(damage.BOMBS)))
        return kind, damage.BOMBS[kind]()
    kind = str(rng.choice(list(files.MAKERS)))
    content = files.whole(kind)
    return kind, content if rng.random() < 0.1 else damage.bytes_of(rng, content)


def _bad_text(rng: Rng, content: bytes) -> tuple[str, bytes]:
    if rng.random() < 0.05:
        kind = str(rng.choice(list(damage.TEXT_BOMBS)))
        return kind, damage.TEXT_BOMBS[kind]()
    return "damaged text", damage.text_of(rng, content)


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError:  # no file can have this name here
        path.with_name("scan.png").write_bytes(content)


def _link(rng: Rng, folder: Path) -> str:
    """A link out of the folder, into itself, or to nothing."""
    target = str(
        rng.choice(["../elsewhere/secret.png", "../elsewhere", "..", ".", "loop.png", "gone.png", "/etc/passwd"])
    )
    os.symlink(target, folder / "loop.png")
    return f"link to {target}"


def _new(rng: Rng, folder: Path) -> Case:
    source, out = folder / "in", folder / "out"
    arguments = ["--patient-pattern", "(.)"]
    way = rng.integers(0, 10)
    masks = False
    if way <= 4:
        what, content = _bad_image(rng)
        _write(source / damage.name(rng), content)
    else:
        what = "whole image"
        _write(source / "scan.png", files.whole("png"))
    if way == 5:
        table = b"image;mask;patient;device;spacing_mm;split\nscan.png;;p1;probe;0,25;train\n"
        what, content = _bad_text(rng, table)
        (folder / "in/list.csv").write_bytes(content)
        arguments += ["--table", str(source / "list.csv")]
    if way == 6:
        what = _link(rng, source)
    if way == 7:
        masks = True
        what = "COCO"
        content = damage.json_of(rng, files.coco()) if rng.random() < 0.9 else _bad_text(rng, files.coco_text())[1]
        (folder / "coco.json").write_bytes(content)
        arguments += ["--masks", str(folder / "coco.json")]
    if way >= 8:
        masks = True
        what = str(rng.choice(list(files.MASK_MAKERS)))
        volume = "png" if what.endswith("png") else "nrrd"
        (source / "scan.png").write_bytes(files.whole(volume))
        _write(folder / "masks/scan.seg.nrrd", damage.bytes_of(rng, files.whole(what)))
        arguments += ["--masks", str(folder / "masks")]
    arguments += ["--role", "source" if masks else "target"]
    for option in ("--keep-outside", "--keep-frames", "--keep-marks", "--json"):
        if rng.random() < (0.6 if option == "--keep-outside" else 0.2):
            arguments.append(option)
    return Case(f"new: {what}", lambda: main(["site", "new", str(source), str(out), *arguments]))


def site(rng: Rng, folder: Path, role: str = "source") -> str:
    """Write a site with one fault into `folder/in`."""
    site = folder / "in"
    rows = ["image,mask,patient,video,frame,device,spacing_mm,split"]
    for number in range(IMAGES):
        _write(site / f"images/{number}.png", files.png_of(number))
        _write(site / f"masks/{number}.png", files.whole("mask as png"))
        split = ("train", "calibrate", "val", "test")[number % 4]
        rows.append(f"images/{number}.png,masks/{number}.png,p{number},v{number},0,probe,0.5,{split}")
    (site / "site.yaml").write_bytes(SITE_TEXT.replace(b"source", role.encode()))
    (site / "manifest.csv").write_text("\n".join(rows))
    way = rng.integers(0, 6)
    if way == 0:
        what, content = _bad_text(rng, SITE_TEXT)
        (site / "site.yaml").write_bytes(content)
        return f"site.yaml, {what}"
    if way == 1:
        what, content = _bad_text(rng, "\n".join(rows).encode())
        (site / "manifest.csv").write_bytes(content)
        return f"manifest.csv, {what}"
    if way == 2:
        what = _link(rng, site / "images")
        (site / "images/0.png").unlink()
        os.rename(site / "images/loop.png", site / "images/0.png")
        return what
    if way == 3:
        name = damage.name(rng)
        _write(site / "images" / name, files.whole("png"))
        with (site / "manifest.csv").open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f'\n"images/{name}",masks/0.png,p9,v9,0,probe,0.5,test')
        return "name"
    what, content = _bad_image(rng)
    kind = "images" if way == 4 else "masks"
    (site / kind / "0.png").write_bytes(content)
    return f"{kind}, {what}"


def _check(rng: Rng, folder: Path) -> Case:
    what = site(rng, folder, str(rng.choice(["source", "target"])))
    arguments: list[str] = []
    if rng.random() < 0.4:
        (folder / "out").mkdir()
        arguments += ["--html", str(folder / "out/page.html")]
    if rng.random() < 0.3:
        arguments.append("--json")
    if rng.random() < 0.3:
        study = _bad_text(rng, STUDY_TEXT)[1] if rng.random() < 0.5 else STUDY_TEXT
        (folder / "study.yaml").write_bytes(study)
        arguments += ["--study", str(folder / "study.yaml")]
    return Case(f"check: {what}", lambda: main(["site", "check", str(folder / "in"), *arguments]))


def _small_study() -> Study:
    stage = {"task": "supervise", "trains": ["source_branch"], "steps": 1}
    return parse_study(
        {
            "name": "fuzz",
            "network": {"features": [8] * 6},
            "image": {"size": 32, "geometry": "letterbox", "spacing_mm": None},
            "stages": [{"name": "pretrain", "rounds": 1, "source": stage}],
        },
        origin="fuzz",
    )


def release() -> dict[str, bytes]:
    """The files of a released model, untrained."""
    from safetensors.numpy import save

    study = _small_study()
    tensors = initial_networks(study).export(FUSED if study.fused else FUSED[:2])
    contents = {
        WEIGHTS: save(dict(sorted(tensors.items()))),
        STUDY: yaml.safe_dump({"hash": study.hash(), "study": study.model_dump(mode="json")}).encode(),
        CARD: b"# untrained\n",
    }
    return contents | {SUMS: sums_of(contents)}


RELEASE: dict[str, bytes] = {}


def write_release(folder: Path, contents: dict[str, bytes] = RELEASE) -> None:
    """Write a released model: the one of `warm`, or another."""
    for name, content in contents.items():
        _write(folder / name, content)


def warm() -> None:
    """Make what all cases share: the whole files, with the libraries that write and read them, and the model."""
    import_module("clients.predict")  # the command imports it late, for it takes seconds
    for kind in (*files.MAKERS, *files.MASK_MAKERS):
        files.whole(kind)
        with suppress(PictureError), TemporaryDirectory() as folder:
            (Path(folder) / "file").write_bytes(files.whole(kind))
            list(open_recording(Path(folder) / "file").frames())
    RELEASE.update(RELEASE or release())


def _predict(rng: Rng, folder: Path) -> Case:
    contents, images, arguments = dict(RELEASE), folder / "in", []
    way = rng.integers(0, 10)
    if way <= 5:
        what, content = _bad_image(rng)
        _write(images / damage.name(rng), content)
        _write(images / "whole.png", files.whole("png"))
    elif way == 6:
        what = _link(rng, images)
    elif way == 7:
        _write(images / "scan.png", files.whole("png"))
        what, content = _bad_text(rng, b"image;spacing_mm\nscan.png;0,25\n")
        (images / "list.csv").write_bytes(content)
        images = images / "list.csv"
    else:
        _write(images / "scan.png", files.whole("png"))
        name = str(rng.choice(list(contents)))
        what = f"release, {name}"
        damaged = damage.text_of(rng, contents[name]) if name in (STUDY, SUMS) else damage.bytes_of(rng, contents[name])
        contents[name] = damaged
        if rng.random() < 0.8 and name != SUMS:  # damaged by whoever can write the sums as well
            contents[SUMS] = sums_of({own: contents[own] for own in (WEIGHTS, STUDY, CARD)})
    write_release(folder / "model", contents)
    if rng.random() < 0.3:
        arguments = ["--spacing-mm", str(rng.choice(["0.2", "-1", "nan", "1e9", "0", "x"]))]
    command = ["predict", "--model", str(folder / "model"), "--images", str(images), "--out", str(folder / "out")]
    return Case(f"predict: {what}", lambda: main([*command, *arguments]))


def _desk(rng: Rng, folder: Path) -> Case:
    """The desk's pages: of a bad site, of bad studies, of a bad state."""
    what = site(rng, folder) if rng.random() < 0.5 else ""
    if not what:
        rng_of_whole = np.random.default_rng(0)
        site(rng_of_whole, folder)
        (folder / "in/site.yaml").write_bytes(SITE_TEXT)
    (folder / "studies").mkdir()
    (folder / "studies/demo.yaml").write_bytes(STUDY_TEXT)
    state = State.create(folder / "out", bytes(32))
    if not what and rng.random() < 0.6:
        what, content = _bad_text(rng, STUDY_TEXT)
        (folder / "studies/bad.yaml").write_bytes(content)
        what = f"study, {what}"
    elif not what:
        name = str(rng.choice(["accountant.json", "ledger.jsonl", "persons.json", "approvals"]))
        path = folder / "out" / name / f"{'a' * 64}.json" if name == "approvals" else folder / "out" / name
        whole = (
            path.read_bytes() if path.exists() else json.dumps({"version": 1, "a": [1, {"b": "c"}], "n": 3}).encode()
        )
        _write(path, _bad_text(rng, whole)[1])
        what = f"state, {name}"

    def run() -> None:
        desk = Desk(folder / "in", state, folder / "studies")
        desk.check_data()
        while desk.background.busy:
            time.sleep(0.005)
        sheet = desk.checked.sheet if desk.checked else {}
        pages = {"overview.html.j2": views.overview, "ledger.html.j2": views.ledger}
        for template, content in pages.items():
            views.render(template, desk, "csrf", **content(desk))
        views.render("data.html.j2", desk, "csrf", **sheet)
        for own in desk.cases()[0]:
            views.render("study.html.j2", desk, "csrf", **views.study(desk, own.hash))

    def explained() -> int:
        try:
            run()
        except CrossProbeError as error:  # what the server shows as a page
            print(error)
            return 1
        return 0

    return Case(f"desk: {what}", explained)


def _settings(rng: Rng, folder: Path) -> Case:
    configs = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
    file = configs[int(rng.integers(0, len(configs)))]
    what, content = _bad_text(rng, file.read_bytes())
    target = folder / "in/study.yaml"
    target.write_bytes(content)
    if rng.random() < 0.7:
        return Case(f"study check: {what}", lambda: main(["study", "check", str(target)]))
    return Case(f"disclosure: {what}", lambda: main(["site", "disclosure", str(target), "--role", "source"]))


KINDS: dict[str, Callable[[Rng, Path], Case]] = {
    "new": _new,
    "check": _check,
    "predict": _predict,
    "desk": _desk,
    "settings": _settings,
}
#: Shares of the cases.
WEIGHTS_OF_KINDS = (0.35, 0.2, 0.2, 0.1, 0.15)
