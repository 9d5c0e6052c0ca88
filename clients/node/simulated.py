"""Simulated sites: workers opened in the calling process, with secrets that can be repeated."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from clients.data.site import load_site
from clients.learning.plausibility import Plausibility
from clients.node.refusals import refusal
from clients.node.worker import Worker
from common.errors import ContractError
from common.messages import pack
from common.networks import Networks
from common.signing import seal, site_key, unseal
from common.simulated import simulated_coordinator_key, simulated_secret
from common.study import Study, load_study


def open_worker(
    study: Study,
    folder: Path,
    *,
    threads: int = 1,
    networks: Networks | None = None,
    plausibility: Plausibility | None = None,
) -> Worker:
    """Return the worker of a simulated site.

    Args:
        threads: that it computes on; those of its `site.yaml` are for the hospital's own machine.
        networks, plausibility: shared with other workers, see `Worker`.

    Raises:
        SiteFolderError: if the folder has findings.
    """
    site = load_site(folder)
    site = replace(site, config=site.config.model_copy(update={"threads": threads}))
    secret = simulated_secret(study, site.config.name)
    return Worker(site, study, secret, networks=networks, plausibility=plausibility)


#: Sites whose images a process of a simulation keeps in memory: those that had a turn last. Any other is read again
#: when its turn comes: memory is bounded, and with more sites than all processes keep each round reads files anew.
KEPT_SITES = 64


@lru_cache(maxsize=KEPT_SITES)
def cached_worker(study: str, folder: str, threads: int = 1) -> Worker:
    """Return the worker of a study file and a folder. All workers of a study in this process share its networks."""
    opened, networks, plausibility = _shared(study)
    return open_worker(opened, Path(folder), threads=threads, networks=networks, plausibility=plausibility)


@lru_cache(maxsize=2)
def _shared(study: str) -> tuple[Study, Networks, Plausibility]:
    """Return what takes longer to make than a small site to read."""
    opened = load_study(Path(study))
    return opened, Networks(opened), Plausibility(opened)


def answer(worker: Worker, payload: bytes) -> bytes:
    """Answer a simulated coordinator as a hospital would: its signed requests alone, and with the site's signature."""
    request = unseal(payload)
    try:
        request.check(simulated_coordinator_key(worker.study).public_key(), "request")
        reply = worker.handle(request.payload)
    except ContractError as error:
        reply = pack(refusal(error.code))
    return seal(reply, site_key(worker.secret), "reply")
