"""The thin ClientApp: bytes to the worker's socket and back, fixed refusals, and no torch."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hospital import Stub, done, hospital
from tiny import refusal, request, study, write_study

from clients.app import SOCKET_VARIABLE, app
from clients.data.site import load_site
from clients.node import channel
from clients.node.service import serving
from clients.node.simulated import cached_worker
from common.messages import EnrolReply, EnrolRequest, pack, unpack
from common.payload import fields_of, payload_of
from common.signing import seal, unseal
from common.study import load_study
from server.signed import Keys

STUDY = study()
ENROL = pack(EnrolRequest(study=STUDY.hash()))
#: What only the worker may import: it opens images, or trains.
FORBIDDEN = (
    "torch",
    "monai",
    "PIL",
    "scipy",
    "clients.node.worker",
    "clients.data.site",
    "clients.data.frames",
    "clients.governance.state",
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SOCKET_VARIABLE, raising=False)
    monkeypatch.setattr(channel.ask, "__kwdefaults__", {"connect_s": 0.3})
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def sent(
    payload: bytes | None,
    kind: str = "query",
    ttl: float = 20.0,
    run_config: dict[str, str | int] | None = None,
    **node_config: str,
) -> bytes:
    """What the app answers to a message that holds `payload`."""
    content = RecordDict()
    if payload is not None:
        content["message"] = ArrayRecord({"payload": Array(**fields_of(payload))})
    message = Message(content, dst_node_id=2, message_type=kind, ttl=ttl)
    context = Context(
        run_id=1, node_id=2, node_config=dict(node_config), state=RecordDict(), run_config=run_config or {}
    )
    reply = app(message, context)
    assert not reply.has_error()
    return payload_of(reply.content.array_records["message"]["payload"])


def test_a_message_reaches_the_worker_and_its_reply_comes_back(
    tmp_path: Path, pair: Sequence[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    Stub().install(monkeypatch)
    north = hospital(tmp_path / "state", load_site(pair[0]), STUDY)
    payload = request(STUDY, "pretrain", "source")
    with serving(north.worker, tmp_path / "w.sock"):
        reply = sent(payload, "train.supervise", socket=str(tmp_path / "w.sock"))
        monkeypatch.setenv(SOCKET_VARIABLE, str(tmp_path / "w.sock"))
        assert isinstance(unpack(sent(ENROL))[0], EnrolReply)
    assert done(unpack(reply)[0]).task == "supervise"
    assert north.state.answered(STUDY.hash()).reply == reply


def test_a_slow_worker_is_a_refusal_before_the_message_expires(
    tmp_path: Path, pair: Sequence[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Stub().install(monkeypatch)

    def wait(context: object) -> None:
        while not context.cancelled():  # type: ignore[attr-defined]
            pass

    stub.during = wait
    north = hospital(tmp_path / "state", load_site(pair[0]), STUDY)
    with serving(north.worker, tmp_path / "w.sock"):
        reply = sent(request(STUDY, "pretrain", "source"), ttl=1.0, socket=str(tmp_path / "w.sock"))
    assert refusal(reply).code == "worker-timeout"


def test_in_a_simulation_the_app_takes_and_gives_signed_messages_alone(tmp_path: Path, pair: Sequence[Path]) -> None:
    file = write_study(tmp_path / "study.yaml")
    folders = [shutil.copytree(folder, tmp_path / f"12:30 {folder.name}") for folder in pair]  # as a download is named
    simulation = {"study": str(file), "sites": "\n".join(map(str, folders)), "threads": 2}
    keys = Keys.simulated(STUDY)
    for place, name in enumerate(("north", "east")):
        where = {"run_config": simulation, "partition-id": str(place)}
        reply = unseal(sent(seal(ENROL, keys.own, "request"), **where))  # type: ignore[arg-type]
        key = keys.of_site(name)
        assert key is not None
        reply.check(key, "reply")
        header, _ = unpack(reply.payload)
        assert isinstance(header, EnrolReply)
        assert (header.study, header.site) == (load_study(file).hash(), name)
        assert refusal(unseal(sent(ENROL, **where)).payload).code == "not-signed"  # type: ignore[arg-type]
        opened = cached_worker.cache_info().misses
        assert cached_worker(str(file), str(folders[place]), 2).site.config.threads == 2
        assert cached_worker.cache_info().misses == opened  # it is the worker that the app opened


def test_every_other_failure_is_a_fixed_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(sent(ENROL)).code == "no-worker"
    assert refusal(sent(ENROL, socket=str(tmp_path / "none.sock"))).code == "worker-unreachable"
    assert refusal(sent(None, socket=str(tmp_path / "none.sock"))).code == "client-app-failed"

    def broken(*_: object) -> bytes:
        raise RuntimeError("/data/ward/anna-schmidt.png")

    monkeypatch.setattr("clients.app.ask", broken)
    reply = sent(ENROL, socket="x")
    assert refusal(reply).code == "client-app-failed"
    assert b"anna" not in reply


def test_the_app_imports_nothing_that_opens_an_image_or_trains() -> None:
    code = f"import sys, clients.app; print([name for name in {FORBIDDEN} if name in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert found.stdout.strip() == "[]"
