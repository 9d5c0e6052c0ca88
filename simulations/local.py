"""All sites in one process, without Flower: for tests, and as the reference that Flower must equal."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from clients.node.worker import Worker
from server.transport import Failure


class LocalTransport:
    """Calls workers directly, one after the other. Implements `server.transport.Transport`."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = {worker.site.config.name: worker for worker in workers}

    def enrol(
        self, request: bytes, known: Collection[str] = (), patience_s: float = 0.0
    ) -> Mapping[str, bytes | Failure]:
        """Ask every worker but the known."""
        return {name: worker.handle(request) for name, worker in self.workers.items() if name not in known}

    def exchange(
        self, requests: Mapping[str, bytes], task: Callable[[str], str], deadline_s: float
    ) -> Iterator[tuple[str, bytes | Failure]]:
        """Yield each worker's reply; a call in the same process cannot be late."""
        for site, request in requests.items():
            yield site, self.workers[site].handle(request)
