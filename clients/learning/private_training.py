"""Patient-level DP-SGD: gradients of which epsilon can be told, in the place of plain ones.

Abadi et al. 2016 (arXiv 1607.00133, algorithm 1), with a patient as the unit, as McMahan et al. 2018
(arXiv 1710.06963) have users. By hand: Opacus offers one gradient a row of the batch, which is one a frame; here
each drawn patient is a small batch of its own, so that its gradient is exact for any network and no loss
term can couple two patients.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Generator, Tensor, nn

from clients.data.frames import Frame
from common.errors import StudyError
from common.privacy import Privacy
from common.seeds import derive, derive_seed


class PrivateGradients:
    """Fills `.grad` of all trained parameters with a clipped, summed, noised and divided gradient.

    Who is drawn, which frames and views, and the noise all follow from `key`: the same task asked again
    gives the same bits, and nobody without the site's secret can take the noise off.

    Args:
        sample_rate: probability q with which a step draws any one patient, each apart (Poisson sampling).
        patients: patient -> its frames. Its size is not public and divides nothing.
        modules: what is trained.
        loss_of: frames of one patient and a generator -> one loss a frame, [B].
        key: 32 bytes of this task in this round, from the site's secret.

    Raises:
        StudyError: if a module cannot be made private.
    """

    def __init__(
        self,
        privacy: Privacy,
        *,
        sample_rate: float,
        patients: Mapping[str, Sequence[Frame]],
        modules: Sequence[nn.Module],
        loss_of: Callable[[Sequence[Frame], Generator], Tensor],
        key: bytes,
    ) -> None:
        check_modules(modules)
        self.privacy, self.sample_rate, self.patients = privacy, sample_rate, patients
        self.loss_of, self.key = loss_of, key
        self.parameters = [p for module in modules for p in module.parameters()]

    def __call__(self, step: int) -> float:
        """Fill the gradients for a step; return the drawn patients' mean loss, 0 if there are none."""
        drawn = self.drawn(step)
        total, losses = [torch.zeros_like(p) for p in self.parameters], []
        for patient in drawn:
            gradient, loss = self.of_patient(step, patient)
            losses.append(loss)
            for summed, part in zip(total, gradient, strict=True):
                summed += part
        # A step that draws nobody is noised like any other: that it drew nobody must not show.
        std = self.privacy.noise_multiplier * self.privacy.max_gradient_norm
        noise = gaussian(derive(self.key, "noise", step), sum(p.numel() for p in self.parameters))
        # q times the nominal number, public; the number of drawn patients would tell how many there are
        expected = self.sample_rate * self.privacy.nominal_patients
        begin = 0
        for parameter, summed in zip(self.parameters, total, strict=True):
            standard = torch.from_numpy(noise[begin : begin + parameter.numel()]).reshape(parameter.shape)
            noisy = summed.double() + std * standard.to(parameter.device)
            parameter.grad = (noisy / expected).float()
            begin += parameter.numel()
        return sum(losses) / len(losses) if losses else 0.0

    def drawn(self, step: int) -> list[str]:
        """Return the patients that a step draws: each with probability `sample_rate`, whoever else is drawn."""
        return [
            patient
            for patient in sorted(self.patients)
            if _uniform(derive(self.key, "draw", step, patient)) < self.sample_rate
        ]

    def of_patient(self, step: int, patient: str) -> tuple[list[Tensor], float]:
        """Return one patient's gradient, L2 norm over all parameters at most `max_gradient_norm`, and its loss.

        A gradient with a NaN or an infinity counts as zero: it has no norm that a clip could bound.
        """
        # A generator of its own, so that one patient more or less changes nothing for the others.
        generator = torch.Generator().manual_seed(derive_seed(self.key, "views", step, patient))
        frames = self.patients[patient]
        order = torch.randperm(len(frames), generator=generator).tolist()
        chosen = [frames[i] for i in order[: self.privacy.frames_per_patient]]
        losses = self.loss_of(chosen, generator)
        if losses.shape != (len(chosen),):
            raise StudyError(
                f"expected a loss for each frame, shape {(len(chosen),)}, found {tuple(losses.shape)}: a loss that "
                "couples frames of different patients cannot be private. Use one that is a mean within each image."
            )
        loss = losses.mean()
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        gradient = [
            torch.zeros_like(p) if g is None else g.detach() for p, g in zip(self.parameters, gradients, strict=True)
        ]
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradient))
        if not math.isfinite(norm):
            return [torch.zeros_like(p) for p in self.parameters], 0.0
        scale = min(1.0, self.privacy.max_gradient_norm / (norm + 1e-6))  # a hair below the clip: float32 rounds
        return [g * scale for g in gradient], float(loss.detach())


def check_modules(modules: Sequence[nn.Module]) -> None:
    """Check that what is trained can be made private.

    Raises:
        StudyError: with everything that opacus finds wrong, and every buffer: buffers (BatchNorm's
            statistics are some) are neither clipped nor noised, and would leave with the update.
    """
    from opacus.validators import ModuleValidator  # seconds, which a site without privacy need not wait

    findings = [str(error) for module in modules for error in ModuleValidator.validate(module)]
    findings += [
        f"the buffer `{name}` would leave as it is" for module in modules for name, _ in module.named_buffers()
    ]
    if findings:
        raise StudyError(
            "this network cannot be trained with differential privacy: "
            + "; ".join(findings)
            + ". Use group or instance normalisation without running statistics."
        )


def _uniform(bits: bytes) -> float:
    """Return a number in [0, 1) from 32 random bytes."""
    return (int.from_bytes(bits[:8], "big") >> 11) * 2.0**-53


def gaussian(key: bytes, count: int) -> np.ndarray:
    """Return `count` standard normal numbers, float64, that nobody without `key` can predict.

    Box-Muller on the output of SHAKE-256. Not torch's generator: it takes 32 bits of its seed, which can
    be tried one by one until the noise comes off, and its later numbers follow from earlier ones.
    """
    pairs = -(-count // 2)
    bits = np.frombuffer(hashlib.shake_256(key).digest(16 * pairs), dtype="<u8").reshape(2, pairs)
    uniform = ((bits >> 11) + 0.5) * 2.0**-53  # in (0, 1), never 0
    radius, angle = np.sqrt(-2.0 * np.log(uniform[0])), 2.0 * np.pi * uniform[1]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
