"""Stages trained one after another on the same sites, each kept by the hash of all that made it, code included.

Two variants of an ablation that begin with the same stages share them. A stage is trained as a study
of its own, from the state that the stage before it left, by the very functions that a deployed run uses.
"""

import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from clients.data.dataset import Dataset
from clients.data.site import Site
from clients.learning.evaluate import measure_patients
from clients.node.worker import Worker
from common.components import ROLES, Tensors
from common.errors import RunError, StudyError
from common.metrics import frame_dice
from common.networks import Networks
from common.run_folder import RunFolder
from common.simulated import simulated_secret
from common.stage import Round, Stage
from common.study import Study
from server import history
from server.algorithm import init
from server.history import RoundRecord
from server.rounds import run_round
from server.run import enrol, initial_components, reasons
from server.state import ServerState, fused_tensors, load_state, save_state
from simulations.ablation.code_version import code_digest
from simulations.ablation.pooled import train_pooled
from simulations.local import LocalTransport

#: File with the seconds of a pooled stage, which has no rounds to add up.
SECONDS = "seconds"


class StageCache:
    """The sites of one data set under one study's settings, and every sequence of stages trained on them.

    Args:
        study: its settings and its seed matter; its own stages are not used.
        sites: opened and checked.
        cache: folder for all sequences; a stage's own folder in it is named by its hash.
        device: where the networks compute; another device gives other tensors, so it is part of the hash.

    Raises:
        StudyError: if the study begins with weights of a file, which no stage here would begin with.
    """

    def __init__(
        self,
        study: Study,
        sites: Sequence[Site],
        cache: Path,
        on_round: Callable[[RoundRecord], None] = lambda r: None,
        device: str = "cpu",
    ) -> None:
        if study.initial:
            raise StudyError(
                f"study `{study.name}`: an ablation trains each variant from its seed; leave the key initial out"
            )
        self.study, self.sites, self.cache, self.on_round, self.device = study, sites, cache, on_round, device
        self.data = {site.config.name: Dataset(site, study) for site in sites}
        self._sites = [(site.config.role, _site_digest(site)) for site in sites]
        self._code = functools.cache(code_digest)

    def folder(self, stages: Sequence[Stage], pooled: bool = False) -> Path:
        """Return where the state after `stages` is kept."""
        settings = self._alone(stages[0]).model_copy(update={"stages": tuple(stages)})
        place = ("pooled" if pooled else "federated") + ("" if self.device == "cpu" else f" {self.device}")
        # A site that has no task in these stages does not change their hash, so data sets that differ in such sites
        # alone share these stages.
        at_work = {role for stage in stages for role in ROLES if stage.task_of(role)}
        sites = " ".join(sorted(digest for role, digest in self._sites if role in at_work))
        # a task may stand in a module that nothing else leads to
        tasks = [task for stage in stages for role in ROLES if (task := stage.task_of(role))]
        code = " ".join(map(self._code, sorted({__name__, *(type(task).__module__ for task in tasks)})))
        words = f"{settings.hash()} {sites} {code} {place}"
        return self.cache / hashlib.sha256(words.encode()).hexdigest()[:24]

    def kept(self, stages: Sequence[Stage], pooled: bool = False) -> ServerState | None:
        """Return the state within or after the last of `stages` as far as it was trained, or None."""
        return load_state(self.folder(stages, pooled), self._alone(stages[-1]).hash())

    def train(self, stages: Sequence[Stage], pooled: bool = False) -> ServerState:
        """Return the state after `stages`, from the cache as far as it goes; a killed federated stage goes on.

        Args:
            pooled: train on all sites' images together, as if they lay in one place. Its stages have no rounds to
                go on from: a killed one begins again.

        Raises:
            RunError: if a round falls short of its quorum, or the cache cannot be written.
        """
        *before, stage = stages
        folder, study = self.folder(stages, pooled), self._alone(stage)
        state = self.kept(stages, pooled)
        if state is not None and state.round == stage.rounds:
            return state
        transport = self._transport(study)
        if state is None:
            RunFolder(folder).make()
            RunFolder(folder).history.unlink(missing_ok=True)
            participants = enrol(study, transport)
            if before:
                # rounds count from 0 again, so that the released model's round is none of them
                state = replace(self.train(before, pooled), round=0, released_round=None, participants=participants)
            else:
                state = init(study, participants, initial_components(study))
        elif not pooled:
            history.rewind(folder, state.round)  # of a round that was killed before its state was kept
        if pooled:
            begun = time.monotonic()
            state = train_pooled(study, state, self.sites, self.data, self.device)
            (folder / SECONDS).write_text(str(time.monotonic() - begun))
            save_state(folder, state, study.hash())
            return state
        for step in range(state.round, stage.rounds):
            state, record = self._round(study, state, step, transport)
            history.append(folder, record)
            save_state(folder, state, study.hash())
        return state

    def each_round(self, stages: Sequence[Stage]) -> Iterator[Tensors]:
        """Train the last stage anew, as `train` does, and yield the fused tensors after each of its rounds."""
        *before, stage = stages
        study = self._alone(stage)
        transport = self._transport(study)
        state = replace(self.train(before), round=0, participants=enrol(study, transport))
        for step in range(stage.rounds):
            state, _ = self._round(study, state, step, transport)
            yield fused_tensors(state.components)

    def _round(
        self, study: Study, state: ServerState, step: int, transport: LocalTransport
    ) -> tuple[ServerState, RoundRecord]:
        (stage,) = study.stages
        state, record = run_round(study, state, Round(step, stage, step), transport)
        if not record.counted:
            raise RunError(f"stage `{stage.name}`: round {step} fell short of quorum: {reasons(record)}")
        self.on_round(record)
        return state, record

    def cost(self, stages: Sequence[Stage], pooled: bool = False) -> tuple[float, int]:
        """Return the seconds of training and the payload bytes behind the state after `stages`."""
        folders = [self.folder(stages[:n], pooled) for n in range(1, len(stages) + 1)]
        if pooled:
            return sum(float((folder / SECONDS).read_text()) for folder in folders), 0
        records = [record for folder in folders for record in history.read(folder)]
        return (
            sum(record.seconds for record in records),
            sum(site.bytes_to + site.bytes_from for record in records for site in record.sites.values()),
        )

    def measure(self, tensors: Mapping, predictors: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
        """Return site -> predictor -> test patient -> Dice in [0, 1], averaged over its labelled frames."""
        networks = Networks(self.study, self.device)
        networks.load(tensors)
        measured = {
            site.config.name: measure_patients(
                networks, self.study, self.data[site.config.name], predictors, lambda p, truth, _: frame_dice(p, truth)
            )
            for site in self.sites
            if site.frames_of("test", labelled=True)
        }
        return {
            site: {p: {who: sum(v) / len(v) for who, v in sorted(frames[p].items())} for p in predictors}
            for site, frames in measured.items()
        }

    def _transport(self, study: Study) -> LocalTransport:
        named = {site.config.name: site for site in self.sites}
        return LocalTransport(
            [
                Worker(site, study, simulated_secret(study, name), data=self.data[name], device=self.device)
                for name, site in named.items()
            ]
        )

    def _alone(self, stage: Stage) -> Study:
        """Return the study of one stage. Its name is fixed: it must not decide any randomness."""
        return self.study.model_copy(update={"name": "chain", "stages": (stage,)})


def _site_digest(site: Site) -> str:
    """Return a hash of a site's folder: its files, manifest and settings."""
    digest = hashlib.sha256(json.dumps([site.config.name, site.config.role]).encode())
    for file in sorted(site.folder.rglob("*")):
        if file.is_file():
            digest.update(str(file.relative_to(site.folder)).encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
