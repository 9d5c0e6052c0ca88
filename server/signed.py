"""A transport whose messages are signed: what lies between coordinator and sites may drop them, and nothing else."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.errors import ContractError
from common.messages import Refusal, unpack
from common.signing import PRIVATE_KEY, SITES, read_private_key, read_site_keys, seal, unseal
from server.transport import ENROL_S, Failure, Transport


@dataclass(frozen=True)
class Keys:
    """The coordinator's own key and those of the sites, by name."""

    own: Ed25519PrivateKey
    sites: Mapping[str, Ed25519PublicKey]

    @classmethod
    def read(cls, folder: Path) -> "Keys":
        """Return the keys in a folder. Raises RunError."""
        return cls(read_private_key(folder / PRIVATE_KEY), read_site_keys(folder / SITES))


class SignedTransport:
    """Implements `server.transport.Transport` around another: signs requests, takes a site's own replies alone."""

    def __init__(self, inner: Transport, keys: Keys) -> None:
        self.inner, self.keys = inner, keys

    def enrol(
        self, request: bytes, known: Collection[str] = (), patience_s: float = ENROL_S
    ) -> Mapping[str, bytes | Failure]:
        """Ask as the inner transport does."""
        found = self.inner.enrol(seal(request, self.keys.own, "request"), known, patience_s)
        return {site: self._checked(site, reply) for site, reply in found.items()}

    def exchange(
        self, requests: Mapping[str, bytes], task: Callable[[str], str], deadline_s: float
    ) -> Iterator[tuple[str, bytes | Failure]]:
        """Send as the inner transport does."""
        sealed = {payload: seal(payload, self.keys.own, "request") for payload in set(requests.values())}
        asked = {site: sealed[payload] for site, payload in requests.items()}
        for site, reply in self.inner.exchange(asked, task, deadline_s):
            yield site, self._checked(site, reply)

    def _checked(self, site: str, reply: bytes | Failure) -> bytes | Failure:
        if isinstance(reply, Failure):
            return reply
        sealed = unseal(reply)
        try:
            if site not in self.keys.sites:
                raise ContractError("no-key", f"there is no {SITES}/{site}.pub among the coordinator's keys")
            sealed.check(self.keys.sites[site], "reply")
        except ContractError as error:
            # The app that brings messages to a worker signs nothing: its word can keep a site out, as silence could.
            return (
                sealed.payload if not sealed.signature and _refuses(sealed.payload) else Failure("failed", str(error))
            )
        return sealed.payload


def _refuses(payload: bytes) -> bool:
    try:
        return isinstance(unpack(payload)[0], Refusal)
    except ContractError:
        return False
