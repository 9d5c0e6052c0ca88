"""Patient-level DP-SGD: who is drawn, what is clipped, what is noised, and what no noise can help."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from private import SELF_SUPERVISE, SUPERVISE, Seen, private, seen
from scipy import stats
from tiny import answer, request, same, study, workers, write_site
from torch import Generator, Tensor, nn

from clients.data.frames import Frame
from clients.data.site import load_site
from clients.learning.private_training import PrivateGradients, check_modules, gaussian
from clients.node.worker import Worker
from common.components import Role
from common.errors import StudyError
from common.messages import EnrolReply, EnrolRequest, pack, unpack
from common.networks import initial_networks
from common.seeds import derive_seed
from common.study import Study
from server.report.summary import summary_of
from server.run import run_study
from simulations.local import LocalTransport

SECRET = b"s" * 32


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Role, Path]:
    """A site of each role whose training patients have three frames each."""
    root = tmp_path_factory.mktemp("private")
    found: dict[Role, Path] = {}
    for role, folder in (("source", root / "north"), ("target", root / "east")):
        write_site(folder, role, patients={"train": 18, "calibrate": 5, "val": 5, "test": 5})
        manifest = folder / "manifest.csv"
        lines = manifest.read_text(encoding="utf-8").splitlines()
        for number in range(18):
            patient = f"kept-{folder.name}-train-{number}"
            one = f"kept-{folder.name}-train-{number - number % 3}"
            lines = [line.replace(f"{patient},", f"{one},") if patient in line else line for line in lines]
        lines = [line.replace(",0,", f",{number},") for number, line in enumerate(lines)]
        manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
        found[role] = folder
    return found


def worker_of(of: Study, folder: Path, secret: bytes = SECRET) -> Worker:
    return Worker(load_site(folder), of, secret)


Folders = dict[Role, Path]


def look(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, role: Role = "source", norm: str = "group", **study: float
) -> Seen:
    worker = worker_of(private(norm=norm, **study), folders[role])
    worker.networks.load(initial_networks(worker.study).export(["mim_decoder", "projector"]))
    return seen(worker, role, monkeypatch)


def flat(gradient: Sequence[Tensor | None]) -> np.ndarray:
    return np.concatenate([np.zeros(0) if g is None else g.double().numpy().ravel() for g in gradient])


def summed(found: Seen, step: int, **changes: object) -> np.ndarray:
    """A step's gradient times what it is divided by."""
    gradients = found.gradients(**changes)  # type: ignore[arg-type]
    gradients(step)
    return flat([p.grad for p in gradients.parameters]) * 4  # q * nominal_patients


@pytest.mark.parametrize("norm", ["group", "instance"])
@pytest.mark.parametrize("role", ["source", "target"])
def test_one_gradient_a_patient_is_the_mean_of_opacus_gradients_of_its_frames(
    role: Role, norm: str, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without contrast: opacus' hooks mix up the runs of an encoder of whose three runs two count in part.
    found = look(folders, monkeypatch, role, norm, contrast_weight=0.0)
    gradients = found.gradients(max_gradient_norm=1000.0)
    patient = sorted(gradients.patients)[1]
    own, _ = gradients.of_patient(0, patient)
    clipped, _ = found.gradients(max_gradient_norm=0.01).of_patient(0, patient)

    generator = torch.Generator().manual_seed(derive_seed(b"k" * 32, "views", 0, patient))
    order = torch.randperm(3, generator=generator).tolist()
    frames = [gradients.patients[patient][i] for i in order[:2]]
    # opacus unfolds convolutions as if their inputs lay in memory channel by channel
    plain = [module.to(memory_format=torch.contiguous_format) for module in found.modules]
    hooked = [GradSampleModule(module, loss_reduction="mean") for module in plain]
    found.loss_of(frames, generator).mean().backward()
    parameters = [p for module in hooked for p in module.parameters()]
    unused = torch.zeros(2, 1)  # the projector's, without contrast
    rows = [unused.expand(2, p.numel()) if p.grad_sample is None else p.grad_sample for p in parameters]
    expected = flat([row.mean(0) for row in rows])
    for module in hooked:
        module.remove_hooks()

    assert all(len(row) == 2 for row in rows)
    assert flat(own) == pytest.approx(expected, rel=1e-3, abs=2e-5 * np.abs(expected).max())
    norm_of = np.linalg.norm(expected)
    assert norm_of > 0.01
    assert flat(clipped) == pytest.approx(expected * 0.01 / norm_of, rel=1e-3, abs=1e-6)


def test_a_step_is_noised_where_the_network_computes() -> None:
    layer = nn.Linear(2, 3, device="meta")  # torch takes tensors of two devices there no more than on a GPU
    privacy = private().privacy
    assert privacy is not None

    def no_loss(frames: Sequence[Frame], generator: Generator) -> Tensor:
        raise AssertionError("nobody can be drawn")

    step = PrivateGradients(privacy, sample_rate=0.5, patients={}, modules=[layer], loss_of=no_loss, key=bytes(32))
    step(0)
    assert [p.grad.shape for p in layer.parameters() if p.grad is not None] == [(3, 2), (3,)]


def test_a_step_is_the_sum_of_clipped_patients_taken_one_at_a_time_and_noise(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = look(folders, monkeypatch)
    quiet, loud = summed(found, 2, noise_multiplier=0.1), summed(found, 2, noise_multiplier=2.0)
    gradients = found.gradients()
    alone = sum(flat(gradients.of_patient(2, patient)[0]) for patient in gradients.drawn(2))
    noise = (loud - quiet) / (1.9 * 0.5)
    assert len(gradients.drawn(2)) > 1
    assert quiet - 0.1 * 0.5 * noise == pytest.approx(alone, abs=1e-5)
    assert noise.std() == pytest.approx(1, abs=0.02)


def test_no_patient_moves_a_step_by_more_than_the_clip_with_all_of_its_frames(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = look(folders, monkeypatch)
    for step in range(3):
        whole = summed(found, step)
        drawn = found.gradients().drawn(step)
        for patient in sorted(found.gradients().patients):
            moved = np.linalg.norm(whole - summed(found, step, without=patient))
            assert moved <= 0.5 * (1 + 1e-4)
            assert (moved > 0.1) == (patient in drawn)


def test_a_step_that_draws_nobody_is_noise_of_the_same_width(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = look(folders, monkeypatch).gradients(noise_multiplier=3.0)
    gradients.sample_rate, gradients.privacy = 1e-12, gradients.privacy.model_copy(update={"nominal_patients": 10**12})
    assert gradients.drawn(0) == []
    assert gradients(0) == 0.0
    values = flat([p.grad for p in gradients.parameters])
    assert values.std() == pytest.approx(3.0 * 0.5, rel=0.02)
    assert abs(values.mean()) < 4 * 1.5 / math.sqrt(values.size)


def test_patients_are_drawn_apart_from_each_other_at_the_public_rate(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = look(folders, monkeypatch).gradients()
    patients = sorted(gradients.patients)
    drawn = np.array([[patient in gradients.drawn(step) for patient in patients] for step in range(2000)])
    assert drawn.mean(0) == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(2000))
    assert len(patients) == 6  # not the nominal 8: the rate does not follow the true count
    correlation = np.corrcoef(drawn.T.astype(float)) - np.eye(len(patients))
    assert np.abs(correlation).max() < 4.5 / math.sqrt(2000)
    assert (~drawn.any(1)).any()


def test_the_noise_is_normal_and_uses_all_of_its_key() -> None:
    key = bytes(32)
    values = gaussian(key, 100_001)
    assert len(values) == 100_001
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert np.array_equal(values[:3], gaussian(key, 100_001)[:3])
    for place in range(32):  # torch's generator would take 4 of these bytes
        changed = bytes(1 if i == place else 0 for i in range(32))
        assert abs(np.corrcoef(values[:5000], gaussian(changed, 5000))[0, 1]) < 0.08


def test_the_same_request_gets_the_same_reply_and_another_secret_round_or_request_other_noise(
    folders: Folders,
) -> None:
    of = private(rounds=2, noise_multiplier=50.0)
    first, again = request(of, "pretrain", "source"), request(of, "pretrain", "source", step=1)
    other = request(of, "pretrain", "source", prior=0.3)
    north = worker_of(of, folders["source"])
    reply = north.handle(first)
    assert worker_of(of, folders["source"]).handle(first) == reply
    updates = [
        answer(north, first)[1],
        answer(north, again)[1],
        answer(north, other)[1],
        answer(worker_of(of, folders["source"], b"t" * 32), first)[1],
    ]
    assert not any(same(a, b) for i, a in enumerate(updates) for b in updates[:i])


@pytest.mark.parametrize("role", ["source", "target"])
def test_a_private_reply_has_no_numbers_and_an_enrolment_only_public_ones(
    role: Role, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = worker_of(private(), folders[role])
    header, updates = answer(worker, request(worker.study, "pretrain", role))
    assert header.metrics == {}
    assert updates
    enrolled, _ = unpack(worker.handle(pack(EnrolRequest(study=worker.study_hash))))
    assert isinstance(enrolled, EnrolReply)
    assert enrolled.patients == 8
    assert not enrolled.labelled_test


@pytest.mark.parametrize(("evaluation", "stages"), [("none", {"pretrain"}), ("outside", {"pretrain", "evaluate"})])
def test_a_private_run_scores_nothing_and_evaluates_only_where_the_study_says_so(
    evaluation: str, stages: set[str], pair: Sequence[Path], tmp_path: Path
) -> None:
    of = private(evaluation=evaluation, rounds=1)
    run_study(of, LocalTransport(workers(of, pair)), tmp_path / "run")
    summary = summary_of(tmp_path / "run")
    assert {round_.stage.name for round_ in of.rounds()} == stages
    assert summary["patients"] == {"north": 8, "east": 8}
    assert bool(summary["dice"]) == (evaluation == "outside")
    assert summary["problems"] == []


class Coupled(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.BatchNorm2d(4), "BatchNorm cannot support training with differential privacy"),
        (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), "the buffer `layers.1.running_mean`"),
    ],
)
def test_a_network_that_cannot_be_private_is_refused_with_the_reason(layer: nn.Module, reason: str) -> None:
    check_modules([Coupled(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4))])
    with pytest.raises(StudyError, match=reason):
        check_modules([Coupled(nn.Conv2d(1, 4, 3), layer)])


def test_a_loss_that_couples_frames_is_refused(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = look(folders, monkeypatch).gradients()
    inner = gradients.loss_of
    gradients.loss_of = lambda frames, generator: inner(frames, generator).mean()
    with pytest.raises(StudyError, match="couples"):
        gradients.of_patient(0, sorted(gradients.patients)[0])


def test_a_gradient_that_is_not_finite_counts_as_zero(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = look(folders, monkeypatch).gradients()
    inner = gradients.loss_of

    def broken(frames: Sequence, generator: Generator) -> Tensor:
        return inner(frames, generator) * math.nan

    gradients.loss_of = broken
    own, loss = gradients.of_patient(0, sorted(gradients.patients)[0])
    assert not flat(own).any()
    assert loss == 0.0


@pytest.mark.parametrize(
    ("task", "role", "reason"),
    [
        ({"task": "self_train", "trains": ["target_branch"]}, "target", "moves the gradients of others"),
        ({"task": "infuse"}, "source", "no accountant"),
        ({"task": "score"}, "target", "not noised"),
        ({"task": "evaluate"}, "target", "engine's own closing round"),
    ],
)
def test_a_task_that_cannot_be_private_is_refused_with_the_reason(task: dict, role: str, reason: str) -> None:
    with pytest.raises(StudyError, match=reason):
        study(privacy={"nominal_patients": 100}, stages=[{"name": "a", "rounds": 1, role: task}])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"nominal_patients": 3}, "at least batch_size"),
        ({"nominal_patients": 200, "delta": 1e-3}, "tenth of one in nominal_patients"),
        ({"nominal_patients": 8, "noise_multiplier": 0}, "noise_multiplier"),
        ({"nominal_patients": 8, "epsilon_cap": math.inf}, "epsilon_cap"),
        ({}, "nominal_patients"),
    ],
)
def test_settings_that_promise_nothing_are_refused(settings: dict, reason: str) -> None:
    stages = [{"name": "a", "rounds": 1, "source": SUPERVISE, "target": SELF_SUPERVISE}]
    with pytest.raises(StudyError, match=reason):
        study(privacy=settings, stages=stages)


def test_a_study_without_the_section_keeps_the_hash_that_it_had_before_there_was_one() -> None:
    assert '"privacy"' not in study().resolved()
    plain = study().model_dump(mode="json", exclude={"privacy"})
    assert study().resolved() == json.dumps(plain, sort_keys=True, separators=(",", ":"))
    assert private().hash() != private(noise_multiplier=1.5).hash()
