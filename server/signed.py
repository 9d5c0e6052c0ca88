"""A transport whose messages are signed: what lies between coordinator and sites may drop them, and nothing else.

The coordinator's folder of keys is made by `crossprobe provision`: its own pair, and in `sites/` a file `NAME.pub` for
each site, put there by `crossprobe study register`.
"""

import os
import re
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.errors import ContractError, RunError
from common.files import private_folder, write_atomically
from common.messages import Refusal, unpack
from common.names import NAME
from common.options import KEYS_VARIABLE
from common.signing import (
    PRIVATE_KEY,
    RUN_BYTES,
    SITES,
    read_private_key,
    read_public_key,
    read_site_keys,
    seal,
    site_key,
    text_of,
    unseal,
)
from common.simulated import simulated_coordinator_key, simulated_secret
from common.study import Study
from server.transport import ENROL_S, Failure, Transport


def keys_folder() -> Path:
    """Return the folder of the coordinator's keys. Raises RunError if the environment names none."""
    if not os.environ.get(KEYS_VARIABLE):
        raise RunError(
            f"expected {KEYS_VARIABLE} to name the folder of the coordinator's signing keys, found nothing: without "
            "them no hospital can tell this coordinator's requests from others'. In a kit it is `signing/`; else make "
            "one with: crossprobe study keygen DIR"
        )
    return Path(os.environ[KEYS_VARIABLE])


def admit(folder: Path, name: str, file: Path) -> Ed25519PublicKey:
    """Put a site's public key among the coordinator's and return it.

    Raises:
        RunError: if the file holds no such key, the name is none, or another key is there under it.
    """
    key = read_public_key(file)
    if not re.fullmatch(NAME, name):
        raise RunError(f"`{name}` is no site's name: expected small letters, digits and hyphens, as in its site.yaml.")
    own = folder / SITES / f"{name}.pub"
    if own.exists() and read_public_key(own) != key:
        raise RunError(
            f"{own} holds another key, by which {name}'s replies are known; nothing was changed. If the hospital did "
            f"make a new one, first bar the old: crossprobe study unregister {name}"
        )
    try:
        private_folder(own.parent)
    except OSError as error:
        raise RunError(f"cannot make {own.parent}: {error.strerror}. Give the folder of `study keygen`.") from None
    write_atomically(own, f"{text_of(key)}\n".encode(), then="register it again")
    return key


def expel(folder: Path, name: str) -> None:
    """Take a site's public key away, if there is one. Raises RunError."""
    own = folder / SITES / f"{name}.pub"
    try:
        if re.fullmatch(NAME, name):
            own.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot remove {own}: {error.strerror}. Remove it by hand.") from None


@dataclass(frozen=True)
class Keys:
    """The coordinator's own key, and `of_site`: a site's by its name, None where there is none."""

    own: Ed25519PrivateKey
    of_site: Callable[[str], Ed25519PublicKey | None]

    @classmethod
    def simulated(cls, study: Study) -> "Keys":
        """Return the keys of a simulation."""
        return cls(simulated_coordinator_key(study), lambda name: site_key(simulated_secret(study, name)).public_key())

    @classmethod
    def read(cls, folder: Path) -> "Keys":
        """Return the keys in a folder. Raises RunError."""
        return cls(read_private_key(folder / PRIVATE_KEY), read_site_keys(folder / SITES).get)


class SignedTransport:
    """Implements `server.transport.Transport` around another: signs requests, takes a site's own replies alone.

    Each has a number of its own, which is signed too: a site that starts a study over takes no more of those before.
    """

    def __init__(self, inner: Transport, keys: Keys) -> None:
        self.inner, self.keys, self.run = inner, keys, secrets.token_bytes(RUN_BYTES)

    def enrol(
        self, request: bytes, known: Collection[str] = (), patience_s: float = ENROL_S
    ) -> Mapping[str, bytes | Failure]:
        """Ask as the inner transport does."""
        found = self.inner.enrol(seal(request, self.keys.own, "request", self.run), known, patience_s)
        return {site: self._checked(site, reply) for site, reply in found.items()}

    def exchange(
        self, requests: Mapping[str, bytes], task: Callable[[str], str], deadline_s: float
    ) -> Iterator[tuple[str, bytes | Failure]]:
        """Send as the inner transport does."""
        sealed = {payload: seal(payload, self.keys.own, "request", self.run) for payload in set(requests.values())}
        asked = {site: sealed[payload] for site, payload in requests.items()}
        for site, reply in self.inner.exchange(asked, task, deadline_s):
            yield site, self._checked(site, reply)

    def _checked(self, site: str, reply: bytes | Failure) -> bytes | Failure:
        if isinstance(reply, Failure):
            return reply
        sealed, key = unseal(reply), self.keys.of_site(site)
        try:
            if key is None:
                raise ContractError("no-key", f"there is no {SITES}/{site}.pub among the coordinator's keys")
            sealed.check(key, "reply")
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
