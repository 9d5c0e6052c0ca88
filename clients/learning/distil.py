"""`distil`: the student learns, on a strong view, what the released model says of the plain image."""

from collections.abc import Sequence

from torch import Generator, Tensor

from clients.data.dataset import tiles
from clients.data.frames import Frame
from clients.learning.training import Loss, Objective, TaskContext
from clients.learning.view import view
from common.infusion import predict_maps
from common.losses import dice_cross_entropy
from common.tasks import Distil


def objective(context: TaskContext) -> Objective:
    """Return the student's Dice with the teacher's mask plus cross-entropy with its probabilities; no step moves it."""
    task, study, networks = context.task, context.study, context.networks
    assert isinstance(task, Distil)
    taught: dict[Frame, Tensor] = {}

    def says(frame: Frame) -> Tensor:
        if frame not in taught:  # on the whole image, once for all steps
            sample = context.data.sample(frame)
            taught[frame] = predict_maps(networks, study, sample.image, sample.valid, ["infusion"])["infusion"]
        return taught[frame]

    def loss(frames: Sequence[Frame], generator: Generator) -> Loss:
        samples = [context.data.sample(frame) for frame in frames]
        batch = tiles(samples, [says(frame)[None] for frame in frames], study.image.size, generator)
        seen = view(batch, study.augmentation, generator, task.strength)
        logits = networks.branch("student")(seen.x)
        mask = (seen.maps > 0.5).float()
        return Loss(dice_cross_entropy(logits, truth=mask, weight=seen.valid, soft=seen.maps))

    return Objective(loss)
