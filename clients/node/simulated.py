"""Simulated sites: workers opened in the calling process, with secrets that can be repeated."""

from functools import lru_cache
from pathlib import Path

from clients.data.site import load_site
from clients.node.worker import Worker
from common.seeds import derive
from common.study import Study, load_study


def simulated_secret(study: Study, site: str) -> bytes:
    """Return a site's secret in simulations: fixed by seed and name, so that a run can be repeated."""
    return derive(b"simulation", study.seed, site)


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
