"""The released folder: whole, the same each time, without a number of a site; and what is refused of a changed one."""

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from finished import Finished
from PIL import Image
from private import private
from safetensors.numpy import load_file, save
from tiny import one_stage

from common.errors import CrossProbeError, RunError
from common.network_settings import EfficientUNet
from common.networks import initial_networks
from common.release import CARD, RELEASE, SIGNATURE, STUDY, SUMS, WEIGHTS, find_release, sums_of
from common.run_folder import RunFolder
from common.signing import key_of, sign
from common.study import read_study_of_run
from crossprobe import main
from server.history import read
from server.release import export_release, write_release
from server.state import Participant, ServerState

FILES = {CARD, STUDY, SUMS, WEIGHTS}


@pytest.fixture
def run(finished: Finished, tmp_path: Path) -> Path:
    """A finished run that a test may change."""
    return Path(shutil.copytree(finished.run, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def predicts(model: Path, tmp_path: Path, *more: str) -> bool:
    (tmp_path / "scans").mkdir(exist_ok=True)
    Image.new("L", (40, 40), 90).save(tmp_path / "scans" / "a.png")
    out = tmp_path / "out"
    code = main(["predict", "--model", str(model), "--images", str(tmp_path / "scans"), "--out", str(out), *more])
    assert (code == 0) == (out / "masks" / "a.png").exists()
    return code == 0


def test_a_finished_run_leaves_a_release_that_other_tools_check_too(finished: Finished) -> None:
    folder = finished.run / RELEASE
    assert contents(folder).keys() == FILES
    assert find_release(finished.run) == find_release(folder) == folder
    assert read_study_of_run(folder).hash() == finished.study.hash()
    assert load_file(RunFolder(finished.run).model).keys() == finished.state.released.keys()
    subprocess.run(["sha256sum", "--strict", "-c", SUMS], cwd=folder, check=True, capture_output=True)


def test_a_release_has_no_name_and_no_number_of_a_site(finished: Finished) -> None:
    texts = b"".join(blob for name, blob in contents(finished.run / RELEASE).items() if name != WEIGHTS).decode()
    numbers = {
        f"{value:.3f}" for record in read(finished.run) for s in record.sites.values() for value in s.metrics.values()
    }
    assert len(numbers) > 20
    for said in ("north", "east", str(finished.run.parent), *(n for n in numbers if n not in ("0.000", "1.000"))):
        assert said not in texts
    assert finished.study.hash() in texts


def test_the_card_says_whether_anything_bounds_what_the_model_tells(tmp_path: Path) -> None:
    people = {name: Participant("source", 10, False) for name in ("a", "b")} | {"c": Participant("target", 9, False)}
    cards = []
    plain = one_stage(source={"task": "supervise", "trains": ["source_branch"]})
    public = plain.model_copy(update={"network": EfficientUNet(kind="efficient_unet")})
    for number, study in enumerate((private(delta=1e-4), public)):
        run = tmp_path / str(number)
        run.mkdir()
        write_release(
            RunFolder(run),
            study,
            ServerState(
                2,
                initial_networks(study).export(("source_branch", "target_branch", "infusion_head")),
                participants=people,
            ),
        )
        cards.append((run / RELEASE / CARD).read_text())
    assert "delta 0.0001" in cards[0]
    assert "epsilon\n1000.0 at the latest" in cards[0]
    assert "**Nothing.** It was trained without differential privacy" in cards[1]
    assert "public weights" not in cards[0]
    assert "| public weights | it began with those of EfficientNet-Lite0, trained on ImageNet's photographs" in cards[1]
    for card in cards:
        assert "no medical device" in card
        assert "| sites | 2 source, 1 target |" in card
        assert not re.search(r"[{}%]", card)


def test_the_same_run_gives_the_same_release(finished: Finished, tmp_path: Path) -> None:
    write_release(RunFolder(tmp_path), finished.study, finished.state)
    assert contents(tmp_path / RELEASE) == contents(finished.run / RELEASE)


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("change", [lambda blob: blob[1:], lambda blob: blob + b"\n", lambda blob: b""])
def test_a_changed_release_segments_nothing(
    name: str, change: Callable[[bytes], bytes], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / RELEASE / name
    path.write_bytes(change(path.read_bytes()))
    assert not predicts(run, tmp_path)
    assert "is not a whole release" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_release_that_lacks_a_file_segments_nothing(name: str, run: Path, tmp_path: Path) -> None:
    (run / RELEASE / name).unlink()
    assert not predicts(run, tmp_path)


def test_a_list_that_names_another_file_is_refused(run: Path, tmp_path: Path) -> None:
    sums = run / RELEASE / SUMS
    sums.write_text(sums.read_text().replace(f"  {CARD}", "  ../study.yaml"))
    assert not predicts(run, tmp_path)


def test_a_release_and_its_run_segment_alike(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "passed-on"
    assert main(["study", "release", str(run), "--out", str(out)]) == 0
    assert "never the run's" in capsys.readouterr().out
    assert contents(out) == contents(run / RELEASE)
    shutil.rmtree(run)
    assert predicts(out, tmp_path)


def test_an_older_run_without_a_release_gets_one_from_its_checkpoint(finished: Finished, run: Path) -> None:
    shutil.rmtree(run / RELEASE)
    export_release(RunFolder(run))
    assert contents(run / RELEASE) == contents(finished.run / RELEASE)


def test_nothing_is_exported_over_another_folder_or_from_a_changed_release(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept").mkdir()
    assert main(["study", "release", str(run), "--out", str(tmp_path / "kept")]) == 1
    assert "is there already" in capsys.readouterr().err
    before = contents(run / RELEASE)
    with pytest.raises(RunError, match="nothing was changed"):
        export_release(RunFolder(run), tmp_path / "kept", key_of(b"k" * 32))
    assert contents(run / RELEASE) == before
    with open(RunFolder(run).model, "ab") as file:
        file.write(b"\0")
    assert main(["study", "release", str(run), "--out", str(tmp_path / "new")]) == 1
    assert "model.safetensors: expected SHA-256" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_disk_that_is_full_leaves_no_half_release(
    finished: Finished, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the card, the signature and the list of hashes may be written already."""
    synced, whole = os.fsync, contents(run / RELEASE)

    def fsync(descriptor: int) -> None:
        if CARD in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synced(descriptor)

    key, folder = key_of(b"c" * 32), RunFolder(run)
    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", fsync)
        for write in (
            lambda: write_release(folder, finished.study, replace(finished.state, round=99), key),
            lambda: export_release(folder, tmp_path / "passed-on"),
        ):
            with pytest.raises(CrossProbeError, match="No space left"):
                write()
    assert contents(run / RELEASE) == whole
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in finished.run.iterdir())
    assert not (tmp_path / "passed-on").exists()
    assert export_release(folder, tmp_path / "passed-on", key) == tmp_path / "passed-on"
    assert contents(tmp_path / "passed-on").keys() == {*FILES, SIGNATURE}


def test_a_finished_run_that_is_resumed_without_the_key_stays_signed(finished: Finished, run: Path) -> None:
    key = key_of(b"c" * 32)
    other = {name: x + np.float32(1) for name, x in finished.state.released.items()}
    for of, state, signed in (
        (key, finished.state, True),
        (None, finished.state, True),
        (None, replace(finished.state, released=other), False),  # another model, so the signature is not of it
    ):
        write_release(RunFolder(run), finished.study, state, of)
        assert (run / RELEASE / SIGNATURE).exists() == signed
        assert find_release(run, key.public_key() if signed else None) == run / RELEASE


def test_nothing_of_somebody_else_in_a_release_is_passed_on_or_removed(
    finished: Finished, run: Path, tmp_path: Path
) -> None:
    (run / RELEASE / "patients.csv").write_text("A. B.")
    export_release(RunFolder(run), tmp_path / "passed-on")
    assert contents(tmp_path / "passed-on").keys() == FILES
    with pytest.raises(CrossProbeError, match=r"found patients\.csv; .*move these away"):
        write_release(RunFolder(run), finished.study, finished.state)
    assert contents(run / RELEASE).keys() == {*FILES, "patients.csv"}


def test_a_signed_release_is_taken_and_one_that_was_changed_or_signed_by_another_is_not(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("own", "other"):
        assert main(["study", "keygen", str(tmp_path / name)]) == 0
    public = str(tmp_path / "own" / "coordinator.pub")
    assert not predicts(run, tmp_path, "--coordinator-key", public)
    assert "not-signed" in capsys.readouterr().err
    out = tmp_path / "passed-on"
    assert main(["study", "release", str(run), "--out", str(out), "--keys", str(tmp_path / "own")]) == 0
    assert predicts(out, tmp_path, "--coordinator-key", public)
    shutil.rmtree(tmp_path / "out")
    assert not predicts(out, tmp_path, "--coordinator-key", str(tmp_path / "other" / "coordinator.pub"))
    (out / CARD).write_text("This model is safe for every patient.")
    (out / SUMS).write_bytes(sums_of({name: (out / name).read_bytes() for name in (CARD, STUDY, WEIGHTS)}))
    assert not predicts(out, tmp_path, "--coordinator-key", public)
    assert "bad-signature" in capsys.readouterr().err


def test_a_finished_run_is_signed_and_no_other_release_takes_its_place(finished: Finished, tmp_path: Path) -> None:
    key = key_of(b"c" * 32)
    for name, state in (("own", finished.state), ("other", replace(finished.state, round=finished.state.round + 1))):
        (tmp_path / name).mkdir()
        write_release(RunFolder(tmp_path / name), finished.study, state, key)
    own, other = (tmp_path / name / RELEASE for name in ("own", "other"))
    assert find_release(own, key.public_key()) == own
    (own / SIGNATURE).write_bytes((other / SIGNATURE).read_bytes())
    with pytest.raises(RunError, match="bad-signature"):
        find_release(own, key.public_key())
    for name in (CARD, SUMS):  # with the list that belongs to the signature, and weights that do not
        (own / name).write_bytes((other / name).read_bytes())
    (own / WEIGHTS).write_bytes(save({"x": np.zeros(3, np.float32)}))
    with pytest.raises(RunError, match=r"model\.safetensors: expected SHA-256"):
        find_release(own, key.public_key())
    request = sign((other / SUMS).read_bytes(), key, "request")  # whatever it was made to sign as a request
    (other / SIGNATURE).write_bytes(request)
    with pytest.raises(RunError, match="bad-signature"):
        find_release(other, key.public_key())
