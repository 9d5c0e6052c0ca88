"""How like a site's images is what its replies to crafted weights give away."""

from clients.node.worker import Worker
from common.study import Study
from simulations.audit.ask import ask, training_task
from simulations.audit.similarity import Match
from simulations.audit.trap import MimTrap, SuperviseTrap, Trap, matches


def reconstruct(worker: Worker, study: Study, rounds: int = 1, trap: Trap | None = None) -> list[Match]:
    """Return how like the site's images is what each of the first rounds' replies gives away.

    Only messages go to the worker; its images are read afterwards, to compare.

    Args:
        trap: default: that for the task of the study's first stage.

    Raises:
        Refused: if the site refuses.
    """
    if trap is None:
        trap = SuperviseTrap(study) if training_task(study).task == "supervise" else MimTrap(study)
    rebuilt = [
        image
        for round_ in study.rounds()[:rounds]
        for image in trap.read(ask(worker, study, round_, trap.tensors), round_)
    ]
    return matches(rebuilt, worker.data)
