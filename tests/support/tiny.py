"""Tiny sites and studies: everything that a real run has, in seconds on one core."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from clients.data.folders import write_site_files
from clients.node.simulated import open_worker
from clients.node.worker import Worker
from common.components import Role, Tensors
from common.errors import StudyError
from common.messages import EnrolReply, Refusal, TaskReply, TaskRequest, pack, unpack
from common.networks import initial_networks
from common.stage import Round
from common.study import Study, parse_study
from server.transport import Failure
from simulations.local import LocalTransport

HEIGHT, WIDTH = 40, 48
#: Two steps of four patients are below every hospital's floor.
POLICY = {"min_update_patients": 1, "min_update_draws": 1, "max_delta": 1e-3}
PATIENTS = {"train": 6, "calibrate": 5, "val": 5, "test": 5}


def band(rng: np.random.Generator, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """A bright band on noise, [H, W] grey levels, and its mask in {0, 255}."""
    depth, slope = rng.uniform(12, 26), rng.uniform(-0.15, 0.15)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    mask = np.abs(rows - depth - slope * (columns - WIDTH / 2)) < 5
    grey = gain * (rng.uniform(20, 90, mask.shape) + 120 * mask)
    return grey.clip(1, 255).astype(np.uint8), np.where(mask, 255, 0).astype(np.uint8)


def write_site(
    folder: Path,
    role: Role,
    *,
    name: str | None = None,
    seed: int = 0,
    gain: float = 1.0,
    patients: Mapping[str, int] = PATIENTS,
) -> Path:
    """A site's folder with one frame a patient; a target has masks on `test` only and no `calibrate`."""
    name = name or folder.name
    rng = np.random.default_rng(seed)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    rows = []
    for split, count in patients.items():
        for number in range(0 if (role, split) == ("target", "calibrate") else count):
            patient, file = f"kept-{name}-{split}-{number}", f"scan-{name}-{split}-{number}.png"
            grey, mask = band(rng, gain)
            Image.fromarray(grey).save(folder / "images" / file)
            row = {"image": f"images/{file}", "patient": patient, "video": f"clip-{patient}", "frame": 0}
            row |= {"device": "probe-x", "split": split}
            if role == "source" or split == "test":
                Image.fromarray(mask).save(folder / "masks" / file)
                row["mask"] = f"masks/{file}"
            rows.append(row)
    write_site_files(folder, name=name, role=role, rows=rows)
    with (folder / "site.yaml").open("a", encoding="utf-8") as file:
        yaml.safe_dump({"policy": POLICY}, file)
    return folder


def content(**changes: Any) -> dict[str, Any]:
    """A tiny study as its YAML file would hold it; `changes` replace top-level keys."""
    branches, encoder = ["source_branch", "target_branch"], ["target_branch.encoder", "mim_decoder", "projector"]
    self_supervise = {"task": "self_supervise", "trains": encoder, "steps": 2}
    stages = [
        {
            "name": "pretrain",
            "rounds": 1,
            "source": {"task": "supervise", "trains": ["source_branch"], "steps": 2},
            "target": self_supervise,
        },
        {
            "name": "adapt",
            "rounds": 1,
            "source": {"task": "supervise", "trains": ["target_branch"], "steps": 2},
            "target": self_supervise,
        },
        {
            "name": "refine",
            "rounds": 2,
            "source": {"task": "supervise", "trains": branches, "steps": 2},
            "target": {"task": "self_train", "trains": branches, "steps": 2},
        },
        {
            "name": "infuse",
            "rounds": 1,
            "source": {"task": "infuse", "steps": 2},
            "target": {"task": "score"},
        },
    ]
    plain = {
        "name": "tiny",
        "image": {"size": 32, "geometry": "letterbox", "spacing_mm": None},
        "network": {"features": [8] * 6, "norm": "instance"},
        "batch_size": 4,
        "stages": stages,
    }
    return plain | changes


def study(**changes: Any) -> Study:
    return parse_study(content(**changes), origin="tests")


def problems(broken: object) -> str:
    """Return what a study that has to be refused is refused with."""
    with pytest.raises(StudyError) as caught:
        parse_study(broken, origin="my.yaml")
    return str(caught.value)


def distilling(**changes: Any) -> Study:
    """The tiny study with a student, which its last stage trains."""
    distil = {"task": "distil", "steps": 2}
    stages = [*content()["stages"], {"name": "distil", "rounds": 1, "source": distil, "target": distil}]
    return study(**{"student": {"features": [4] * 6}, "stages": stages} | changes)


def one_stage(*, rounds: int = 1, name: str = "only", **roles: dict[str, Any]) -> Study:
    """A study of one stage, e.g. `source={"task": "supervise", ...}`."""
    return study(stages=[{"name": name, "rounds": rounds, **roles}])


def write_study(path: Path, **changes: Any) -> Path:
    plain = json.loads(json.dumps(content(**changes)))  # lists that are shared would become aliases
    path.write_text(yaml.safe_dump(plain), encoding="utf-8")
    return path


def workers(of: Study, folders: Sequence[Path]) -> list[Worker]:
    return [open_worker(of, folder) for folder in folders]


def round_of(of: Study, stage: str, step: int = 0) -> Round:
    return next(r for r in of.rounds() if r.stage.name == stage and r.step == step)


def request(
    of: Study, stage: str, role: Role, tensors: Tensors | None = None, *, prior: float | None = 0.2, step: int = 0
) -> bytes:
    """The message that a server would send for a stage, from the initial components unless told others."""
    round_ = round_of(of, stage, step)
    task = round_.stage.task_of(role)
    assert task is not None
    sent = initial_networks(of).export(of.components_of(task)) | (tensors or {})
    wanted = {name: sent[name] for name in initial_networks(of).shapes(of.components_of(task))}
    return pack(
        TaskRequest(study=of.hash(), round=round_.index, stage=stage, task=task.task, foreground_prior=prior), wanted
    )


def answer(worker: Worker, payload: bytes) -> tuple[TaskReply, Tensors]:
    """The worker's reply to a request that it has to accept."""
    header, updates = unpack(worker.handle(payload))
    assert isinstance(header, TaskReply), header
    return header, updates


def repeated(
    of: Study, worker: Worker, tensors: Tensors, *, times: int, prior: float | None = 0.2
) -> tuple[Tensors, list[dict[str, float]]]:
    """Ask for the first round again and again, each time with the updates of the one before.

    The randomness is that of the first round each time, so the losses are over the very same views.
    """
    stage, role = of.stages[0], worker.site.config.role
    task = stage.task_of(role)
    assert task is not None
    model = initial_networks(of).export(of.components_of(task)) | tensors
    seen = []
    for _ in range(times):
        header, updates = answer(worker, request(of, stage.name, role, model, prior=prior))
        model = model | {name: model[name] + x for name, x in updates.items()}
        seen.append(header.metrics)
    return model, seen


def enrolled(**changes: Any) -> EnrolReply:
    """What a source site `north` would declare of itself."""
    plain = {"study": "0" * 64, "request": "0" * 64, "site": "north", "role": "source", "patients": 3}
    return EnrolReply.model_validate(plain | {"labelled_test": True, "software": "1"} | changes)


def refusal(reply: bytes) -> Refusal:
    header, tensors = unpack(reply)
    assert isinstance(header, Refusal)
    assert not tensors
    return header


Change = Callable[[bytes, bytes], "bytes | Failure"]


class Between(LocalTransport):
    """A `LocalTransport` that keeps every request and reply, and lets `change[site]` replace replies.

    `change[site](request, reply)` returns what arrives at the server instead.
    """

    def __init__(self, workers: Sequence[Worker], change: Mapping[str, Change] | None = None) -> None:
        super().__init__(workers)
        self.change = change or {}
        self.sent: list[dict[str, bytes]] = []
        self.received: list[dict[str, bytes | Failure]] = []

    def exchange(
        self, requests: Mapping[str, bytes], task: Callable[[str], str], deadline_s: float
    ) -> Iterator[tuple[str, bytes | Failure]]:
        self.sent.append(dict(requests))
        self.received.append({})
        for site, reply in super().exchange(requests, task, deadline_s):
            assert isinstance(reply, bytes)
            seen = self.change[site](requests[site], reply) if site in self.change else reply
            self.received[-1][site] = seen
            yield site, seen


class Remembered(LocalTransport):
    """Answers every request of a run that is known as its workers did then, and others by asking them.

    A worker is a pure function, see test_worker; without it the tests of the server would take minutes.
    """

    def __init__(self, known: Between) -> None:
        super().__init__(list(known.workers.values()))
        self.known = {
            (site, sent[site]): reply
            for sent, received in zip(known.sent, known.received, strict=True)
            for site, reply in received.items()
        }

    def exchange(
        self, requests: Mapping[str, bytes], task: Callable[[str], str], deadline_s: float
    ) -> Iterator[tuple[str, bytes | Failure]]:
        for site, payload in requests.items():
            known = self.known.get((site, payload))
            yield site, self.workers[site].handle(payload) if known is None else known


def other_tensors(payload: bytes) -> bytes:
    """Return a message with every number of its tensors moved a little."""
    header, tensors = unpack(payload)
    return pack(header, {name: x + np.float32(0.001) for name, x in tensors.items()})


def same(left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]) -> bool:
    """Whether two models are equal bit by bit."""
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)
