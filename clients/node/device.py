"""The device that a site's worker computes on, as `site.yaml` says; checked before anything is answered."""

import torch

from common.errors import SiteStateError


def check_device(device: str) -> None:
    """Check that the networks can compute on a device.

    Raises:
        SiteStateError: if it is a GPU that torch does not see.
    """
    if device == "cpu":
        return
    number = torch.device(device).index or 0
    if number < torch.cuda.device_count():
        return
    build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    raise SiteStateError(
        f"site.yaml has device: {device}, but torch, built {build}, sees {torch.cuda.device_count()} GPU(s). Give the "
        "container its GPU (COMPOSE_FILE=compose.yaml:compose.gpu.yaml in .env) and an image with a CUDA build, or "
        "write device: cpu."
    )
