"""A comparison that goes on keeps what is finished, of the same study."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from tiny import Between

from clients.data.findings import SiteFolderError
from clients.data.site import load_site
from common.baseline import baseline_of
from common.errors import RunError
from common.study import Study, load_study
from server.run import run_study
from simulations import simulate as module
from simulations.simulate import check_policies, simulate


class InProcess:
    """A simulation in this process, which remembers what it trained."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.threads: list[int] = []

    def __call__(self) -> "InProcess":
        return self

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, study: Path, sites: Sequence[Path], out: Path, *, threads: int, resume: bool, on_poll: Any) -> None:
        trained = load_study(study)
        run_study(trained, Between(tiny.workers(trained, sites)), out, resume=resume)
        self.trained.append(trained.name)
        self.threads.append(threads)


def test_what_is_finished_is_kept_unless_it_is_another_studys(
    pair: Sequence[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = InProcess()
    monkeypatch.setattr(module, "Simulation", simulation)
    for written in ("write_summary", "draw_examples", "keep", "render_report"):
        monkeypatch.setattr(module, written, lambda *_: {})

    def trains(branch: str) -> Study:
        return tiny.one_stage(source={"task": "supervise", "trains": [branch], "steps": 1})

    study, out = trains("source_branch"), tmp_path / "out"
    once = [f"{study.name}-baseline", study.name]
    simulate(study, pair, out)
    assert simulation.trained == once
    simulate(study, pair, out, resume=True)
    assert simulation.trained == once  # both are finished
    with pytest.raises(RunError, match=r"baseline/checkpoint holds a run of another study"):
        simulate(study.model_copy(update={"seed": study.seed + 1}), pair, out, resume=True)
    with pytest.raises(RunError, match=r"out/checkpoint holds a run of another study"):
        simulate(trains("target_branch"), pair, out, resume=True)  # its baseline is the same
    assert simulation.trained == once
    with pytest.raises(RunError, match="is of the sites east, north, given are north"):
        simulate(study, pair[:1], out, resume=True)
    with pytest.raises(RunError, match=r"no run was begun in .*never"):
        simulate(study, pair, tmp_path / "never", resume=True)
    assert simulation.trained == once
    assert not (tmp_path / "never").exists()


def test_the_cores_are_shared_among_the_sites_that_train(
    pair: Sequence[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = InProcess()
    monkeypatch.setattr(module, "Simulation", simulation)
    monkeypatch.setattr(module.os, "cpu_count", lambda: 6)  # type: ignore[attr-defined]
    study = tiny.study()
    summary = simulate(study, pair, tmp_path / "shared")
    assert simulation.threads == [study.batch_size, 3]  # one site, and two; no thread without an image of a batch
    assert summary["threads"] == {"baseline": study.batch_size, "study": 3}
    assert f"{study.batch_size} and 3 threads a site" in summary["hardware"]
    summary = simulate(study, pair, tmp_path / "told", threads=1)
    assert simulation.threads[2:] == [1, 1]
    assert "one thread a site" in summary["hardware"]


def test_a_study_that_learns_from_no_label_runs_without_a_baseline(
    pair: Sequence[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = InProcess()
    monkeypatch.setattr(module, "Simulation", simulation)
    study = tiny.one_stage(target={"task": "self_supervise", "trains": ["projector"], "steps": 1})
    summary = simulate(study, pair, tmp_path / "out")
    assert simulation.trained == [study.name]
    assert not any(summary["difference_to_baseline"].values())
    assert study.name in (tmp_path / "out/report.html").read_text()


def allowing(folders: Sequence[Path], to: Path, **policy: object) -> list[Path]:
    """Copies of sites with such settings in their policies."""
    sites = [Path(shutil.copytree(folder, to / f"{folder.name}-{i}")) for i, folder in enumerate(folders)]
    for folder in sites:
        settings = yaml.safe_load((folder / "site.yaml").read_text())
        settings["policy"] |= policy
        (folder / "site.yaml").write_text(yaml.safe_dump(settings | {"name": folder.name}))
    return sites


def test_what_a_sites_policy_refuses_in_the_last_stage_is_said_before_the_first_round(
    pair: Sequence[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = InProcess()
    monkeypatch.setattr(module, "Simulation", simulation)
    sites = allowing(pair, tmp_path, allowed_tasks=["supervise", "self_supervise", "self_train"])
    with pytest.raises(SiteFolderError) as error:
        simulate(tiny.study(), sites, tmp_path / "out")
    found = [(finding.code, finding.where) for finding in error.value.findings]
    assert ("policy-task", f"{sites[0]}: site.yaml policy.allowed_tasks") in found
    assert any(where.startswith(f"{sites[1]}: ") for _, where in found)
    assert not simulation.trained
    assert not (tmp_path / "out").exists()


def test_a_policy_is_asked_for_the_baseline_too_and_matters_where_too_few_sites_are_left(
    pair: Sequence[Path], tmp_path: Path
) -> None:
    study = tiny.one_stage(source={"task": "supervise", "trains": ["target_branch"], "steps": 2})
    willing = load_site(pair[0])
    (barring,) = map(load_site, allowing(pair[:1], tmp_path, allowed_components=["target_branch", "infusion_head"]))
    check_policies([barring], study)
    with pytest.raises(SiteFolderError, match=r"stage baseline would send updates of source_branch\.encoder"):
        check_policies([barring], baseline_of(study))
    check_policies([barring, willing], baseline_of(study))
    with pytest.raises(SiteFolderError, match="stage baseline"):
        simulate(study, [barring.folder], tmp_path / "out")
