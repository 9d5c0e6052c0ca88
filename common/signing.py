"""Signatures beside messages: who sent these very bytes. Ed25519; torch-free.

A sealed message is `MAGIC`, the signature, the run that it is of and the message as it would travel without, so that
its bytes, and with them its hash in ledgers and replies, are the same. Study, round and request stand in those bytes.
What is signed also says what for: a signed request is no reply, nor a release.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_public_key,
)

from common.errors import ContractError, RunError
from common.files import PUBLIC, private_folder, write_atomically
from common.seeds import derive

MAGIC, SIGNATURE_BYTES, RUN_BYTES = b"XPRS", 64, 16
#: The run of what belongs to none: replies, releases.
NO_RUN = bytes(RUN_BYTES)
Purpose = Literal["request", "reply", "release", "mask key"]
#: The coordinator's, in a folder of its own.
PRIVATE_KEY, PUBLIC_KEY = "coordinator.key", "coordinator.pub"
#: Beside these, the folder with a file `NAME.pub` for each site.
SITES = "sites"


@dataclass(frozen=True)
class Sealed:
    """A message and the signature that came with it, not checked yet; an empty one where none came.

    Attributes:
        run: random bytes of the coordinator's run that sent it, signed too.
    """

    payload: bytes = field(repr=False)
    signature: bytes = b""
    run: bytes = NO_RUN

    def check(self, key: Ed25519PublicKey, purpose: Purpose) -> None:
        """Check that the holder of `key` signed the message for this purpose.

        Raises:
            ContractError: `not-signed` or `bad-signature`.
        """
        if not self.signature:
            raise ContractError("not-signed", "expected a signature, found none")
        try:
            key.verify(self.signature, _signed(purpose, self.payload, self.run))
        except InvalidSignature:
            raise ContractError("bad-signature", "the signature is not that of the key that was agreed on") from None


def seal(payload: bytes, key: Ed25519PrivateKey, purpose: Purpose, run: bytes = NO_RUN) -> bytes:
    """Return a message with its signature."""
    return MAGIC + sign(payload, key, purpose, run) + run + payload


def unseal(blob: bytes) -> Sealed:
    """Return the message in `blob`, sealed or not."""
    signature, run = len(MAGIC) + SIGNATURE_BYTES, len(MAGIC) + SIGNATURE_BYTES + RUN_BYTES
    if not blob.startswith(MAGIC) or len(blob) < run:
        return Sealed(blob)
    return Sealed(blob[run:], blob[len(MAGIC) : signature], blob[signature:run])


def sign(payload: bytes, key: Ed25519PrivateKey, purpose: Purpose, run: bytes = NO_RUN) -> bytes:
    """Return the signature of bytes, 64 bytes."""
    return key.sign(_signed(purpose, payload, run))


def _signed(purpose: Purpose, payload: bytes, run: bytes) -> bytes:
    of_run = "" if run == NO_RUN else f" {run.hex()}"
    return f"crossprobe {purpose} 1 {hashlib.sha256(payload).hexdigest()}{of_run}".encode()


def certify(site: str, study_hash: str, mask_key: bytes, key: Ed25519PrivateKey) -> bytes:
    """Return a site's signature of its key for the masks of one study, see `common.masking`."""
    return sign(_mask_key(site, study_hash, mask_key), key, "mask key")


def check_certified(site: str, study_hash: str, mask_key: bytes, signature: bytes, key: Ed25519PublicKey) -> None:
    """Check that a mask key is the site's own. Raises ContractError `bad-signature`."""
    Sealed(_mask_key(site, study_hash, mask_key), signature).check(key, "mask key")


def _mask_key(site: str, study_hash: str, mask_key: bytes) -> bytes:
    return f"{site} {study_hash} {mask_key.hex()}".encode()


def key_of(seed: bytes) -> Ed25519PrivateKey:
    """Return the key that 32 secret bytes stand for."""
    return Ed25519PrivateKey.from_private_bytes(seed)


def site_key(secret: bytes) -> Ed25519PrivateKey:
    """Return the key by which the coordinator knows a site's replies, made of the site's secret."""
    return key_of(derive(secret, "signing"))


def text_of(key: Ed25519PublicKey) -> str:
    """Return a public key in one line, as OpenSSH writes it."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def public_key_of(text: str) -> Ed25519PublicKey:
    """Return the public key in a line. Raises ValueError if it is none, or of another kind."""
    try:
        key = load_ssh_public_key(text.strip().encode())
    except Exception:
        raise ValueError("expected one line that begins with ssh-ed25519") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("expected an Ed25519 key, one line that begins with ssh-ed25519")
    return key


def read_public_key(file: Path) -> Ed25519PublicKey:
    """Return the public key in a file. Raises RunError."""
    try:
        return public_key_of(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file} holds no public signing key: {error}. Ask for the file again.") from None


def read_site_keys(folder: Path) -> dict[str, Ed25519PublicKey]:
    """Return the public keys in a folder with a file `NAME.pub` for each site, by name. Raises RunError."""
    files = sorted(folder.glob("*.pub"))
    if not files:
        raise RunError(
            f"{folder} holds no site's key. The coordinator registers them, as NAME.pub: "
            "crossprobe study register NAME node.pub signing.pub"
        )
    return {file.stem: read_public_key(file) for file in files}


def public_key_beside(studies: Path, given: Path | None) -> Ed25519PublicKey | None:
    """Return the coordinator's public key: that of the file given, else the one in the studies' folder, else None.

    Raises:
        RunError: if the file holds none.
    """
    beside = studies / PUBLIC_KEY
    if given is not None:
        return read_public_key(given)
    return read_public_key(beside) if beside.exists() else None


def site_keys_beside(studies: Path, given: Path | None) -> dict[str, Ed25519PublicKey]:
    """Return the sites' public keys: those of the folder given, else of `sites` in the studies' folder, else none.

    Raises:
        RunError: as `read_site_keys` does.
    """
    folder = given or studies / SITES
    return read_site_keys(folder) if given is not None or any(folder.glob("*.pub")) else {}


def read_private_key(file: Path) -> Ed25519PrivateKey:
    """Return the private key in a file. Raises RunError, also if others can read it."""
    try:
        mode = file.stat().st_mode
        key = load_pem_private_key(file.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{file} holds no private signing key: {error}. Restore it from your backup.") from None
    if mode & 0o077:
        raise RunError(f"others can read {file}. Close it with: chmod 600 {file}")
    if not isinstance(key, Ed25519PrivateKey):
        raise RunError(f"{file} holds a key of another kind; expected Ed25519.")
    return key


def make_keys(folder: Path) -> Ed25519PublicKey:
    """Make the coordinator's key pair in a folder, once, and return the public one. Raises RunError."""
    key = Ed25519PrivateKey.generate()
    try:
        private_folder(folder)
    except OSError as error:
        raise RunError(f"cannot make {folder}: {error.strerror}. Choose another folder.") from None
    if (folder / PRIVATE_KEY).exists():
        raise RunError(f"{folder / PRIVATE_KEY} is there already; hospitals have approved it. Nothing was changed.")
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_atomically(folder / PRIVATE_KEY, pem, then="run it again", new=True)
    write_atomically(folder / PUBLIC_KEY, (text_of(key.public_key()) + "\n").encode(), then="run it again", mode=PUBLIC)
    return key.public_key()
