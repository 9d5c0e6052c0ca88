"""A whole comparison on one machine: the baseline study, the study, summary and report."""

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from clients.data.findings import SiteFolderError
from clients.data.site import Site, check_site
from clients.governance.accountant import charges_of, epsilon_of
from common.baseline import against_baseline, baseline_of
from common.components import ROLES
from common.errors import RunError
from common.files import write_atomically
from common.run_folder import RunFolder
from common.study import Study, load_study
from common.tasks import TrainingTask
from server import history
from server.history import RoundRecord
from server.report.drawn import keep
from server.report.page import render_report
from server.report.summary import told, write_summary
from server.state import load_state
from simulations.examples import draw_examples
from simulations.flower import Simulation


@dataclass(frozen=True)
class Progress:
    """Where a comparison stands: `done` of `total` rounds of both studies, and the last round's record."""

    study: str
    done: int
    total: int
    last: RoundRecord | None


def open_sites(folders: Sequence[Path], study: Study) -> list[Site]:
    """Return the checked sites of a study.

    Raises:
        SiteFolderError: with the findings of all folders together.
        RunError: if two sites share a name or a role lacks sites.
    """
    findings, sites = [], []
    for folder in folders:
        site, of_folder = check_site(folder)
        findings += [
            finding if finding.where == str(folder) else replace(finding, where=f"{folder}: {finding.where}")
            for finding in of_folder
        ]
        if site is not None:
            sites.append(site)
    if findings:
        raise SiteFolderError(findings)
    names = [site.config.name for site in sites]
    if len(set(names)) < len(names):
        raise RunError(f"site names must differ, found {', '.join(sorted(names))}. Change `name` in a site.yaml.")
    for role in ROLES:
        if sum(site.config.role == role for site in sites) < study.needs(role):
            raise RunError(f"study `{study.name}` needs a {role} site, none given. Add its folder to --sites.")
    if study.image.geometry == "spacing" and not all(site.has_spacing for site in sites):
        lacking = ", ".join(site.config.name for site in sites if not site.has_spacing)
        raise RunError(
            f"study `{study.name}` resamples by spacing, but {lacking} gives none. Fill `spacing_mm` in its "
            "manifest.csv, or use a study with `geometry: letterbox`."
        )
    return sites


def check_policies(sites: Sequence[Site], study: Study) -> None:
    """See to it that as many sites as a study needs have a policy that allows all of it, but for the size of replies.

    The others would refuse in the middle of the run, and not say why.

    Raises:
        SiteFolderError: with what each site refuses, of a role that has too few.
    """
    today = datetime.now(UTC).date()
    findings = []
    for role in ROLES:
        own = [site for site in sites if site.config.role == role]
        refused = {site.folder: site.config.policy.findings(study, role, today=today, sent_bytes={}) for site in own}
        if sum(not found for found in refused.values()) < study.needs(role):
            findings += [
                replace(finding, where=f"{folder}: {finding.where}")
                for folder, found in refused.items()
                for finding in found
            ]
    if findings:
        raise SiteFolderError(findings)


def simulate(
    study: Study,
    folders: Sequence[Path],
    out: Path,
    *,
    threads: int | None = None,
    resume: bool = False,
    command: str = "",
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Train baseline and study on Flower's simulation engine and return the summary.

    Writes the study's run into `out` and the baseline's into `out/baseline`. With `resume`, what is
    finished is kept and the rest goes on from its last checkpoint. A study that learns from no label, such as one that
    only distils, has no baseline.

    Args:
        threads: of each site; default: see `threads_of`.
        command: as the user typed it; the summary keeps it beside the hardware and the time.

    Raises:
        CrossProbeError: of the folders, the studies or the run; what was saved stays.
    """
    started = time.monotonic()
    sites = open_sites(folders, study)
    folder = RunFolder(out)
    if resume:
        _check_resumed(folder, sites)
    else:
        _refuse_a_run(folder)
    finished = resume and told(folder)
    before_s = sum(record.seconds for run in (folder.baseline, folder) for record in history.read(run.path))
    baseline = baseline_of(study) if study.supervised_steps() else None
    for trained, run in ((baseline, folder.baseline), (study, folder)):
        if trained is not None and not (resume and run.model.exists()):
            check_policies(sites, trained)
    shares = {name: threads or threads_of(of, sites) for name, of in (("baseline", baseline), ("study", study)) if of}
    before = len(baseline.rounds()) if baseline else 0
    total = before + len(study.rounds())
    with Simulation() as simulation:

        def train(trained: Study, run: RunFolder, before: int, share: int) -> None:
            if resume and run.model.exists():
                load_state(run.checkpoint, trained.hash())  # another study's run is not what this one is compared with
                return

            def poll() -> None:
                counted = [record for record in history.read(run.path) if record.counted]
                on_progress(Progress(trained.name, before + len(counted), total, counted[-1] if counted else None))

            _write_study(trained, run)
            simulation.run(run.study_input, folders, run.path, threads=share, resume=resume, on_poll=poll)
            poll()

        if baseline is not None:
            train(baseline, folder.baseline, 0, shares["baseline"])
            study = against_baseline(study, folder.baseline.model)
        train(study, folder, before, shares["study"])
    keep(out, draw_examples(study, out, sites))
    extra = None  # of a finished run what was told of it then: it was made with that
    if not finished:
        extra = {"wall_s": round(before_s + time.monotonic() - started, 1), "command": command}
        extra |= {"hardware": hardware(threads=list(shares.values())), "threads": shares}
        extra |= privacy_spent(study, baseline)
    summary = write_summary(out, extra)
    render_report(out)
    return summary


def begun(study: Study, out: Path, *, resume: bool) -> bool:
    """Return whether to go on with a run of this study in a folder: with `resume`, and where one was begun.

    Raises:
        RunError: if there is one of another study, or one at all without `resume`.
    """
    folder = RunFolder(out)
    if not resume:
        _refuse_a_run(folder)
        return False
    first, expected = (folder.baseline, baseline_of(study)) if study.supervised_steps() else (folder, study)
    if not first.study_input.exists():
        return False
    if load_study(first.study_input).hash() != expected.hash():
        raise RunError(f"{out} holds a run of another study or seed. Give those it was begun with, or another --out.")
    return True


def _refuse_a_run(folder: RunFolder) -> None:
    """Raise RunError if the folder holds a run, or its baseline's, which comes first and alone takes minutes."""
    for run in (folder, folder.baseline):
        run.refuse_a_run()


def _check_resumed(folder: RunFolder, sites: Sequence[Site]) -> None:
    """See to it that there is a run to go on with, and that it is of these sites. Raises RunError."""
    if not (folder.study_input.exists() or folder.baseline.study_input.exists()):
        raise RunError(
            f"nothing to go on with: no run was begun in {folder.path}. Correct --out, or leave --resume out."
        )
    if not folder.state.exists():
        return  # only the baseline was begun
    try:
        begun_with = json.loads(folder.state.read_text(encoding="utf-8"))["participants"].keys()
    except (OSError, ValueError, KeyError, AttributeError):
        return  # reading the checkpoint will say what is wrong with it
    given = {site.config.name for site in sites}
    if given != begun_with:
        raise RunError(
            f"the run in {folder.path} is of the sites {', '.join(sorted(begun_with))}, given are "
            f"{', '.join(sorted(given))}. Give the same ones with --sites, or another --out."
        )


def privacy_spent(study: Study, baseline: Study | None) -> dict[str, Any]:
    """Return what a site of each role spends at most, of this study alone and with its baseline, for the summary.

    The same patients train both. A simulated site's cap counts only the study at hand.
    """
    privacy = study.privacy
    if privacy is None:
        return {}

    def epsilon(*studies: Study) -> dict[str, float]:
        return {
            role: epsilon_of([charge for trained in studies for charge in charges_of(trained, role)], privacy.delta)
            for role in ROLES
        }

    return {
        "privacy": {
            "delta": privacy.delta,
            "epsilon_at_most": {"study": epsilon(study), "with_baseline": epsilon(*filter(None, (baseline, study)))},
        }
    }


def threads_of(study: Study, sites: Sequence[Site]) -> int:
    """Return how many threads each site of a simulation gets: the cores, shared among the sites that train.

    A labelled site that trains the baseline alone would leave all cores but one idle. No more than a batch has images,
    over which the threads share a step.
    """
    training = {role for stage in study.stages for role in ROLES if isinstance(stage.task_of(role), TrainingTask)}
    count = sum(site.config.role in training for site in sites)
    return max(1, min(study.batch_size, (os.cpu_count() or 1) // max(1, count)))


def hardware(device: str = "cpu", threads: Sequence[int] = (1,)) -> str:
    """Return what a run's numbers were made on, for those who compare times.

    Args:
        threads: of a site, in the baseline and in the study.
    """
    version = torch.__version__.partition("+")[0]
    gpu = "no GPU used" if device == "cpu" else torch.cuda.get_device_name(device)
    counts = " and ".join(map(str, dict.fromkeys(threads)))
    a_site = "one thread a site" if counts == "1" else f"{counts} threads a site"
    return f"{os.cpu_count()} cores ({platform.machine()}), {gpu}, {a_site}, torch {version}"


def _write_study(study: Study, run: RunFolder) -> None:
    """Write the study for the processes of the simulation."""
    run.make()
    content = yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False)
    write_atomically(run.study_input, content.encode())
