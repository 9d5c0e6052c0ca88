"""A federation between hospitals on loopback: the same bits as one process, and a worker without a network."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from federation import NAMESPACES, Federation
from tiny import content, workers, write_study

from clients.governance.ledger import read as read_ledger
from common.run_folder import RunFolder
from common.study import load_study
from server import history
from server.run import run_study
from simulations.local import LocalTransport

#: In a worker's namespace: every address of the list must refuse, and no interface but a dead loopback exists.
PROBE = """
import json, socket, sys
tried = {}
for host, port in json.loads(sys.argv[1]):
    try:
        socket.create_connection((host, port), timeout=3).close()
        tried[f"{host}:{port}"] = "connected"
    except OSError as error:
        tried[f"{host}:{port}"] = error.strerror or str(error)
interfaces = [name for _, name in socket.if_nameindex()]
print(json.dumps({"tried": tried, "interfaces": interfaces}))
"""


@dataclass
class Outcome:
    """A whole run of a tiny study between two hospitals, and what was seen while it was up."""

    federation: Federation
    run: subprocess.CompletedProcess[str]
    status: dict[str, dict[str, dict[str, object]]]
    again: subprocess.CompletedProcess[str]
    namespaces: dict[str, str]
    probe: dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def outcome(pair: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    root = tmp_path_factory.mktemp("federation")
    stages = [stage | {"rounds": 1} for stage in content()["stages"] if stage["name"] in ("pretrain", "refine")]
    study = write_study(root / "study.yaml", stages=stages)
    with Federation(root, study, pair) as federation:
        federation.start_coordinator()
        federation.register()
        federation.start_sites()
        run = federation.run()
        assert run.returncode == 0, f"{run.stdout}\n{run.stderr}\n{federation.logs()}"
        status = json.loads(federation.console("study", "status", str(federation.run_folder), "--json").stdout)
        again = federation.run()
        workers_of = {name: federation.processes[f"{name}-worker"].pid for name in federation.names}
        yield Outcome(
            federation,
            run,
            status,
            again,
            {name: os.readlink(f"/proc/{pid}/ns/net") for name, pid in workers_of.items()},
            _probe(workers_of["north"], federation) if NAMESPACES else {},
        )


def _probe(pid: int, federation: Federation) -> dict[str, dict[str, str]]:
    """Try to connect from the namespace of a running worker."""
    # The coordinator, the worker's own SuperNode, and an address of the network: none of them is there.
    places = [("127.0.0.1", port) for port in federation.ports.values()] + [("192.0.2.1", 443)]
    inside = ["nsenter", "-t", str(pid), "-n", sys.executable, "-c", PROBE, json.dumps(places)]
    done = subprocess.run(inside, capture_output=True, text=True, check=True)
    found: dict[str, dict[str, str]] = json.loads(done.stdout)
    return found


def test_the_federation_gives_the_same_bits_as_one_process(
    outcome: Outcome, pair: Sequence[Path], tmp_path: Path
) -> None:
    study = load_study(outcome.federation.study)
    run_study(study, LocalTransport(workers(study, pair)), tmp_path)
    assert RunFolder(outcome.federation.run_folder).model.read_bytes() == RunFolder(tmp_path).model.read_bytes()


def test_every_round_is_told_and_the_exit_code_is_zero(outcome: Outcome) -> None:
    records = history.read(outcome.federation.run_folder)
    assert {site.status for record in records for site in record.sites.values()} == {"ok"}
    for record in records:
        assert f"round {record.round} {record.stage}: 2 of 2 sites" in outcome.run.stdout


def test_the_status_names_every_site(outcome: Outcome) -> None:
    assert outcome.status["flower"] == "finished:completed"
    assert {name: site["state"] for name, site in outcome.status["sites"].items()} == {
        "north": "connected",
        "east": "connected",
    }


def test_a_finished_run_is_not_written_over(outcome: Outcome) -> None:
    assert outcome.again.returncode == 1
    assert "already holds a run" in outcome.again.stderr


def test_what_left_is_in_the_sites_ledgers(outcome: Outcome) -> None:
    for name in outcome.federation.names:
        sent = read_ledger(outcome.federation.kits / name / "state" / "ledger.jsonl")
        heads = [record.sites[name].ledger_head for record in history.read(outcome.federation.run_folder)]
        assert sum(entry["direction"] == "out" for entry in sent) == len(heads) + 1  # the enrolment's too
        assert all(heads)


@pytest.mark.skipif(not NAMESPACES, reason="needs root and `unshare` to make a network namespace")
def test_no_worker_can_open_a_connection_to_anywhere(outcome: Outcome) -> None:
    own = os.readlink("/proc/self/ns/net")
    assert own not in outcome.namespaces.values()
    assert len(set(outcome.namespaces.values())) == len(outcome.namespaces)
    assert outcome.probe["interfaces"] == ["lo"]
    assert "connected" not in outcome.probe["tried"].values()
    assert len(outcome.probe["tried"]) == 4
