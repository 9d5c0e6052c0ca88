"""Stages on pooled data, as if all images lay in one place: what federation costs is measured against this.

The same objectives, draws, learning rates and weights of the roles; but one optimizer over the whole
stage, and every step of it sees all sites.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from clients.data.dataset import Dataset
from clients.data.site import Site
from clients.governance.policy import Policy
from clients.learning.training import MAX_GRADIENT_NORM, TaskContext, averaging, follow, learning_rate, objective_of
from common.components import ROLES, Role
from common.networks import Networks
from common.simulated import simulated_secret
from common.stage import Round, Stage
from common.study import Study
from common.tasks import TrainingTask
from server.algorithm import begun, weighted
from server.state import Participant, ServerState


class _Site:
    """One site's frames and loss within a round."""

    def __init__(self, context: TaskContext, patients: int) -> None:
        assert isinstance(context.task, TrainingTask)
        self.context, self.task, self.patients = context, context.task, patients
        self.objective = objective_of(context)
        self.generator = context.generator("views")

    def backward(self, share: float) -> None:
        assert self.task.split is not None
        frames = self.context.data.draw(self.task.split, self.context.study.batch_size, self.generator)
        (share * self.objective.loss(frames, self.generator).per_frame.mean()).backward()


def train_pooled(
    study: Study, state: ServerState, sites: Sequence[Site], data: Mapping[str, Dataset], device: str
) -> ServerState:
    """Return the state after the only stage of `study`, trained on all sites together.

    The gradient of a component is the sum over roles of rho times the patient-weighted mean of the
    role's sites, the same weights that federation gives to updates.
    """
    (stage,) = study.stages
    networks = Networks(study, device)
    state = begun(state, Round(0, stage, 0))
    networks.load(state.components)
    networks.requires_grad_(False)
    trained = sorted({name for role in ROLES if (task := stage.task_of(role)) for name in task.trains})
    groups = {name: list(networks.component(name).parameters()) for name in trained}
    optimizer = torch.optim.AdamW(
        [{"params": own} for own in groups.values()], weight_decay=study.weight_decay, fused=True
    )
    prior = state.foreground_prior
    for step in range(stage.rounds):
        contexts = _contexts(study, Round(step, stage, step), networks, sites, data, state.participants, prior)
        tasks = [site.task for own in contexts.values() for site in own]
        parameters = [p.requires_grad_(True) for own in groups.values() for p in own]
        decay = max(task.average for task in tasks)
        average = [p.detach().clone() for p in parameters] if decay else []
        for own_step in range(max(task.steps for task in tasks)):
            _step(stage, optimizer, groups, contexts, own_step)
            follow(average, parameters, averaging(decay, own_step))
        networks.requires_grad_(False)
        for parameter, own in zip(parameters, average or parameters, strict=True):
            parameter.copy_(own)
        metrics = {
            site.context.data.site.config.name: {n: m.value for n, m in site.objective.measured.items()}
            for site in contexts["source"]
        }
        found = weighted(state.participants, metrics, "foreground_fraction")
        prior = prior if found is None else found
    components = {**state.components, **networks.export(trained)}
    return replace(state, components=components, foreground_prior=prior, released={}, round=stage.rounds)


def _contexts(
    study: Study,
    round_: Round,
    networks: Networks,
    sites: Sequence[Site],
    data: Mapping[str, Dataset],
    participants: Mapping[str, Participant],
    prior: float | None,
) -> dict[Role, list[_Site]]:
    contexts: dict[Role, list[_Site]] = {role: [] for role in ROLES}
    for site in sites:
        task = round_.stage.task_of(site.config.role)
        if not isinstance(task, TrainingTask):
            continue
        secret = simulated_secret(study, site.config.name)
        context = TaskContext(
            study, round_, task, networks, data[site.config.name], Policy(), secret, foreground_prior=prior
        )
        contexts[site.config.role].append(_Site(context, participants[site.config.name].patients))
    return contexts


def _step(
    stage: Stage,
    optimizer: torch.optim.Optimizer,
    groups: Mapping[str, list[nn.Parameter]],
    contexts: Mapping[Role, list[_Site]],
    step: int,
) -> None:
    """Take one optimizer step; a role whose task has fewer steps a round rests when it has done them."""
    total: dict[str, list[torch.Tensor]] = {}
    parameters = [p for own in groups.values() for p in own]
    for role, own in contexts.items():
        own = [site for site in own if step < site.task.steps]
        patients = sum(site.patients for site in own)
        optimizer.zero_grad(set_to_none=True)
        for site in own:
            site.backward(site.patients / patients)
        nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        for (name, group), setting in zip(groups.items(), optimizer.param_groups, strict=True):
            rho = stage.rho(name, role)
            if not own or rho == 0.0:
                continue
            if name not in total:
                setting["lr"] = learning_rate(own[0].context, own[0].task, step)
            gradients = [torch.zeros_like(p) if p.grad is None else rho * p.grad for p in group]
            total[name] = [a + b for a, b in zip(total[name], gradients, strict=True)] if name in total else gradients
    optimizer.zero_grad(set_to_none=True)
    for name, gradients in total.items():
        for parameter, gradient in zip(groups[name], gradients, strict=True):
            parameter.grad = gradient
    optimizer.step()
