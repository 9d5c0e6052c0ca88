"""All sites in one process, without Flower: for tests, and as the reference that Flower must equal."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from clients.site import load_site
from clients.worker import Worker
from common.seeds import derive
from common.study import Study
from server.rounds import Failure


def simulated_secret(study: Study, site: str) -> bytes:
    """Return a site's secret in simulations: fixed by seed and name, so that runs can be repeated."""
    return derive(b"simulation", study.seed, site)


def open_worker(study: Study, folder: Path) -> Worker:
    """Return the worker of a simulated site."""
    site = load_site(folder)
    return Worker(site, study, simulated_secret(study, site.config.name))


class LocalTransport:
    """Calls workers directly, one after the other. Implements `server.rounds.Transport`."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = {worker.site.config.name: worker for worker in workers}

    def enrol(self, request: bytes) -> Mapping[str, bytes | Failure]:
        """Ask every worker."""
        return {name: worker.handle(request) for name, worker in self.workers.items()}

    def exchange(
        self, requests: Mapping[str, bytes], task: Callable[[str], str], deadline_s: float
    ) -> Iterator[tuple[str, bytes | Failure]]:
        """Yield each worker's reply; a call in the same process cannot be late."""
        for site, request in requests.items():
            yield site, self.workers[site].handle(request)
