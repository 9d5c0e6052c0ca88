"""Where a hospital's worker computes: as `site.yaml` says, or it does not start."""

from pathlib import Path

import pytest
import torch
import yaml
from hospital import hospital
from tiny import request, study, write_site

from clients.data.findings import SiteFolderError
from clients.data.site import load_site
from clients.node.device import check_device
from common.errors import SiteStateError
from common.networks import Networks
from crossprobe import main


def site_yaml(folder: Path, **keys: object) -> Path:
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | keys))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_site(tmp_path / "north", "source")


def test_the_cpu_is_the_default(folder: Path) -> None:
    config = load_site(folder).config
    assert (config.device, config.mixed_precision, config.threads) == ("cpu", False, 1)
    check_device(config.device)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CUDA", "mps", ""])
def test_a_device_that_there_is_not_is_a_finding(folder: Path, device: str) -> None:
    with pytest.raises(SiteFolderError, match=r"device: .*found"):
        load_site(site_yaml(folder, device=device))


def test_mixed_precision_without_a_gpu_is_a_finding(folder: Path) -> None:
    with pytest.raises(SiteFolderError, match="mixed_precision needs a GPU: set device to cuda"):
        load_site(site_yaml(folder, mixed_precision=True))
    assert load_site(site_yaml(folder, device="cuda:1")).config.mixed_precision


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_worker_whose_gpu_is_missing_says_so_and_does_not_start(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SiteStateError, match=r"compose\.gpu\.yaml"):
        check_device("cuda")
    state = hospital(tmp_path / "state", load_site(folder)).state.folder
    site_yaml(folder, device="cuda:1")
    socket = tmp_path / "s"
    monkeypatch.setattr("clients.node.jail.enter", lambda **_: [])  # it would hold the tests' own process
    assert main(["worker", "--site", str(folder), "--state", str(state), "--socket", str(socket)]) == 1
    said = capsys.readouterr().err
    assert "site.yaml has device: cuda:1, but torch, built without CUDA, sees 0 GPU(s)" in said
    assert "Traceback" not in said
    assert not socket.exists()


def test_the_worker_hands_device_and_precision_to_its_networks(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool]] = []

    class Seen(Networks):
        def __init__(self, of: object, device: str = "cpu", mixed_precision: bool = False) -> None:
            asked.append((device, mixed_precision))
            super().__init__(study())

    monkeypatch.setattr("clients.node.worker.Networks", Seen)
    site = load_site(site_yaml(folder, device="cuda", mixed_precision=True))
    approved = hospital(tmp_path / "state", site, study())
    approved.code(request(study(), "pretrain", "source"))
    assert asked == [("cuda", True)]
