"""One round of every task at a site, against a stand-in coordinator: what would be sent, before any network.

The whole path of a real message is taken (approval, policy, ledger and all), but in a state folder that
is thrown away, with a secret derived for this purpose: what is written here shares no noise with what
the site will really send, and the real ledger and rounds do not change.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from clients.data.site import Site
from clients.governance.approval import approve
from clients.governance.state import State, write
from clients.node.gatekeeper import Gatekeeper
from clients.node.masking import Masker
from common.components import component_of
from common.errors import SiteStateError
from common.files import whole_folder
from common.masking import LEAST_SITES
from common.messages import EnrolRequest, Header, Masking, Refusal, TaskReply, TaskRequest, digest, pack, unpack
from common.networks import initial_networks
from common.seeds import derive
from common.signing import site_key, text_of
from common.study import Study
from common.tasks import all_metrics

TABLE = "dry-run.md"


@dataclass(frozen=True)
class Sent:
    """One message as it would leave.

    Attributes:
        what: `enrolment`, or stage and task.
        file: name of the file that holds its bytes.
        tensors: component -> (number of tensors, number of values).
        answer: `ok`, or the code of a refusal.
    """

    what: str
    file: str
    bytes: int
    sha256: str
    tensors: dict[str, tuple[int, int]]
    metrics: dict[str, float]
    answer: str


def dry_run(
    study: Study,
    site: Site,
    state: State,
    out: Path,
    *,
    progress: Callable[[float, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[Sent]:
    """Run one round of every task of this site, write each reply and a table into `out`, and return them.

    Args:
        state: only its secret is used.
        out: a folder that is empty or does not exist.
        progress: called with the messages that are written and all of them; what it raises ends the run.
        cancelled: asked between steps; a task that it ends answers `cancelled`.

    Raises:
        SiteStateError: if `out` has content.
        CrossProbeError: if it cannot be written. It is as it was before, also if the run is ended.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SiteStateError(f"{out} is not empty. Give a new folder, so that it holds this dry run and no more.")
    sent = []
    with (
        whole_folder(out, (), overwrite=False) as new,
        tempfile.TemporaryDirectory(prefix="crossprobe-dry-run-") as folder,
    ):
        stand_in = State.create(Path(folder) / "state", derive(state.secret(0), "dry-run"))
        others = _stand_ins(study, stand_in.secret(0))
        keys = {name: text_of(other.signing_key.public_key()) for name, other in others.items()}
        approve(stand_in, site, study, by="dry run", second="nobody: it is thrown away", sites=keys)
        worker = Gatekeeper(site, stand_in)
        own = Masker(site.config.name, study.hash(), stand_in.secret(0), stand_in.signing_key())
        masking = Masking(
            keys={masker.site: masker.mask_key() for masker in (own, *others.values())},
            patients=site.config.policy.patients_cap,
        )
        requests = list(_requests(study, site, masking))
        progress(0, len(requests))
        for number, (what, request) in enumerate(requests, 1):
            reply = worker.handle(request, cancelled)
            file = f"{number:02d}-{what.replace(' ', '-')}.bin"
            write(new / file, reply)
            sent.append(_described(what, file, reply))
            progress(number, len(requests))
        write(new / TABLE, _table(study, site, sent).encode())
    return sent


def _stand_ins(study: Study, secret: bytes) -> dict[str, Masker]:
    """Return other sites whose updates this one's would be summed with."""
    names = [f"other-{number}" for number in range(1, LEAST_SITES)]
    secrets = {name: derive(secret, name) for name in names}
    return {name: Masker(name, study.hash(), own, site_key(own)) for name, own in secrets.items()}


def _requests(study: Study, site: Site, masking: Masking) -> Iterator[tuple[str, bytes]]:
    """Yield what the coordinator would ask: an enrolment, and each different task in its first round."""
    yield "enrolment", pack(EnrolRequest(study=study.hash()))
    components = initial_networks(study)
    seen = set()
    for round_ in study.rounds():
        task = round_.stage.task_of(site.config.role)
        if task is None or (task.task, task.trains) in seen:
            continue
        seen.add((task.task, task.trains))
        header = TaskRequest(
            study=study.hash(),
            round=round_.index,
            stage=round_.stage.name,
            task=task.task,
            masking=masking if study.masks(task, site.config.role) else None,
        )
        yield f"{round_.stage.name} {task.task}", pack(header, components.export(study.components_of(task)))


def _described(what: str, file: str, reply: bytes) -> Sent:
    header: Header
    header, updates = unpack(reply)
    tensors: dict[str, tuple[int, int]] = {}
    for name, value in updates.items():
        count, values = tensors.get(component_of(name), (0, 0))
        tensors[component_of(name)] = (count + 1, values + value.size)
    return Sent(
        what=what,
        file=file,
        bytes=len(reply),
        sha256=digest(reply),
        tensors=dict(sorted(tensors.items())),
        metrics=header.metrics if isinstance(header, TaskReply) else {},
        answer=header.code if isinstance(header, Refusal) else "ok",
    )


def _table(study: Study, site: Site, sent: list[Sent]) -> str:
    """Return the readable table, in Markdown."""
    lines = [
        f"# Dry run of study `{study.name}` at `{site.config.name}` ({site.config.role})",
        "",
        f"Study hash `{study.hash()}`.",
        "Each file holds one reply, byte by byte as it would be sent. Every task ran once, from the study's",
        "untrained networks; nothing was sent. In a real run the values differ, the names and sizes do not.",
        "",
        "| message | answer | tensors | bytes | SHA-256 | file |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for message in sent:
        tensors = ", ".join(f"{name}: {n} tensors, {v} values" for name, (n, v) in message.tensors.items()) or "none"
        lines.append(
            f"| {message.what} | {message.answer} | {tensors} | {message.bytes} | `{message.sha256}` | {message.file} |"
        )
    meanings = all_metrics()
    for message in sent:
        if message.metrics:
            lines += ["", f"## Numbers sent by {message.what}", "", "| name | value | meaning |", "| --- | --- | --- |"]
            lines += [f"| {n} | {v:.6g} | {meanings[n].meaning} |" for n, v in message.metrics.items()]
    return "\n".join([*lines, ""])
