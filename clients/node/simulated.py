"""Simulated sites: workers opened in the calling process, with secrets that can be repeated."""

from functools import lru_cache
from pathlib import Path

from clients.data.site import load_site
from clients.node.refusals import refusal
from clients.node.worker import Worker
from common.errors import ContractError
from common.messages import pack
from common.signing import seal, site_key, unseal
from common.simulated import simulated_coordinator_key, simulated_secret
from common.study import Study, load_study


def open_worker(study: Study, folder: Path) -> Worker:
    """Return the worker of a simulated site.

    Raises:
        SiteFolderError: if the folder has findings.
    """
    site = load_site(folder)
    return Worker(site, study, simulated_secret(study, site.config.name))


@lru_cache(maxsize=64)
def cached_worker(study: str, folder: str) -> Worker:
    """Return the worker of a study file and a folder; a simulation's process keeps its images in memory."""
    return open_worker(load_study(Path(study)), Path(folder))


def answer(worker: Worker, payload: bytes) -> bytes:
    """Answer a simulated coordinator as a hospital would: its signed requests alone, and with the site's signature."""
    request = unseal(payload)
    try:
        request.check(simulated_coordinator_key(worker.study).public_key(), "request")
        reply = worker.handle(request.payload)
    except ContractError as error:
        reply = pack(refusal(error.code))
    return seal(reply, site_key(worker.secret), "reply")
