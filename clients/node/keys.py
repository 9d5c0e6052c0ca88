"""The keys of a hospital's node, made at the hospital: none of the private ones ever leaves it.

node, node.pub           ECDSA P-384, as OpenSSH writes it: what the coordinator knows this site by
superexec.secret         random bytes between the SuperNode and the SuperExec beside it
runtime.key, runtime.crt TLS between these two; self-signed, so that no coordinator can make another
"""

import base64
import hashlib
import os
import secrets
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import SiteStateError

KEY, PUBLIC_KEY = "node", "node.pub"
SECRET = "superexec.secret"
RUNTIME_KEY, RUNTIME_CERTIFICATE = "runtime.key", "runtime.crt"
#: What the SuperExec may call its SuperNode: the compose service, or this machine.
_RUNTIME_NAMES = ("supernode", "source-supernode", "target-supernode", "localhost")
#: It guards one wire between two containers of one machine and is replaced with the node's key.
_RUNTIME_DAYS = 3650


def make_node_keys(folder: Path) -> str:
    """Make a node's keys once and return the public key's fingerprint.

    Raises:
        SiteStateError: if the folder holds a key already or cannot be written.
    """
    if (folder / KEY).exists():
        raise SiteStateError(
            f"{folder / KEY} exists; a node's key is made once, and another would be another site to the coordinator. "
            f"Nothing was changed. Its fingerprint is {fingerprint(folder / PUBLIC_KEY)}"
        )
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _runtime_certificate(folder)
        _write(folder / SECRET, secrets.token_bytes(32), 0o600)
        _write(folder / PUBLIC_KEY, public + b"\n", 0o644)
        _write(folder / KEY, private, 0o600)  # last: a folder with it is whole
    except OSError as error:
        raise SiteStateError(
            f"cannot write the node's keys to {folder}: {error.strerror}. Choose a folder that this user may write."
        ) from None
    return fingerprint(folder / PUBLIC_KEY)


def fingerprint(public_key: Path) -> str:
    """Return a public key's SHA-256 fingerprint as `ssh-keygen -l` prints it.

    Raises:
        SiteStateError: if the file is missing or holds no OpenSSH public key.
    """
    try:
        blob = base64.b64decode(public_key.read_bytes().split()[1], validate=True)
    except (OSError, IndexError, ValueError):
        raise SiteStateError(f"{public_key} holds no OpenSSH public key. Restore it from your backup.") from None
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def _runtime_certificate(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "CrossProbe node")])
    names = [x509.DNSName(host) for host in _RUNTIME_NAMES]
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # the clocks of two containers may differ
        .not_valid_after(now + timedelta(days=_RUNTIME_DAYS))
        .add_extension(x509.SubjectAlternativeName([*names, x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA384())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write(folder / RUNTIME_KEY, pem, 0o600)
    _write(folder / RUNTIME_CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file that is never open to others; replaces what an interrupted attempt left."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
