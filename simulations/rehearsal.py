"""`crossprobe rehearse`: a whole federation of two phantom hospitals on this machine, started, run and stopped."""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clients.governance.ledger import read, verify
from clients.governance.state import State
from common.components import Role, Split
from common.errors import RunError
from common.files import write_atomically
from common.study import load_study
from server.federation.flower_cli import FlowerCli
from server.report.page import render_report
from server.report.summary import write_summary
from server.signed import admit
from simulations.federation import LocalFederation, one_interrupt
from simulations.phantom.demo import write_sites

#: Marks a folder as a rehearsal's, which another may replace.
RECORD = "rehearsal.json"
#: Enough for every task, the floors of the policy's default, and a minute of rounds.
PATIENTS: dict[Role, dict[Split, int]] = {
    "source": {"train": 6, "calibrate": 5, "val": 5, "test": 5},
    "target": {"train": 6, "test": 5},
}


@dataclass(frozen=True)
class Sent:
    """What a hospital's ledger says after the rehearsal: messages and bytes that left it."""

    messages_sent: int
    bytes_sent: int


@dataclass(frozen=True)
class Rehearsal:
    """A rehearsal that completed: the run's folder, its report, and what left each site."""

    run: Path
    report: Path
    sites: dict[str, Sent]
    seconds: float


def rehearse(
    out: Path,
    study: Path,
    *,
    overwrite: bool,
    tell: Callable[[str], None],
    follow: Callable[[FlowerCli, Path, Path], None],
) -> Rehearsal:
    """Do what a coordinator and two hospitals do for a study, and end every process that it took.

    Args:
        out: folder for sites, kits, logs and the run.
        overwrite: replace an earlier rehearsal in `out`.
        tell: is told each step as it begins.
        follow: runs the study file at a SuperLink into a run's folder, to its end.

    Raises:
        StudyError: if the study cannot be read.
        RunError: if `out` holds something else, a process does not start, the run fails, or a ledger is damaged.
        KeyboardInterrupt: on Ctrl-C, and on SIGTERM and SIGHUP too; every process is ended first.
    """
    begun = time.monotonic()
    load_study(study)
    _make_room(out, overwrite)
    with one_interrupt():
        tell("two phantom hospitals")
        sites = write_sites(
            out / "sites", source=["lumify_like"], target=["telemed_like"], seed=0, patients=PATIENTS, overwrite=True
        )
        tell("certificates and kits; each hospital makes its keys and its secret, and approves the study")
        with LocalFederation(out, study, sites) as federation:
            tell("the coordinator starts SuperLink and SuperExec")
            federation.start_coordinator()
            cli = federation.cli()
            tell("the coordinator registers each hospital's keys")
            for name in federation.names:
                admit(federation.signing_keys, name, State(federation.kits / name / "state").public_key)
                cli.register(name, federation.kits / name / "node" / "node.pub")
            tell("each hospital starts worker, SuperNode and SuperExec")
            federation.start_sites()
            tell("the study runs")
            follow(cli, federation.coordinator / "study" / "study.yaml", federation.run_folder)
            tell("every process is stopped")
        records = {name: _sent(State(federation.kits / name / "state")) for name in federation.names}
        write_summary(federation.run_folder)
        report = render_report(federation.run_folder)
    return Rehearsal(federation.run_folder, report, records, round(time.monotonic() - begun, 1))


def _make_room(out: Path, overwrite: bool) -> None:
    """Take an earlier rehearsal away and mark the folder. Raises RunError if it holds anything else."""
    try:
        if out.exists() and any(out.iterdir()):
            if not (out / RECORD).exists():
                raise RunError(
                    f"{out} holds something that is no rehearsal; nothing was changed. Choose another --out."
                )
            if not overwrite:
                raise RunError(f"{out} holds a rehearsal. Give --overwrite to replace it, or choose another --out.")
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error.strerror}. Choose another --out.") from None
    write_atomically(out / RECORD, json.dumps({"made_by": "crossprobe rehearse"}).encode(), then="start again")


def _sent(state: State) -> Sent:
    """Return what left a site. Raises RunError if its ledger is damaged."""
    if verify(state.ledger).damage:
        raise RunError(f"{state.ledger} is damaged: crossprobe ledger verify --state {state.folder}")
    sent = [content for content in read(state.ledger) if content["direction"] == "out"]
    return Sent(len(sent), sum(content["bytes"] for content in sent))
