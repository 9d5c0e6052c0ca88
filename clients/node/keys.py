"""The keys of a hospital's node, made at the hospital: none of the private ones ever leaves it.

node, node.pub           ECDSA P-384, as OpenSSH writes it: what the coordinator knows this site by
superexec.secret         random bytes between the SuperNode and the SuperExec beside it
runtime.key, runtime.crt TLS between these two; self-signed, so that no coordinator can make another
"""

import secrets
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from clients.governance.state import refuse_another_use, write
from common.errors import SiteStateError
from common.files import PUBLIC, private_folder
from common.fingerprint import fingerprint

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
            f"Nothing was changed. Its fingerprint is {fingerprint_of(folder / PUBLIC_KEY)}"
        )
    refuse_another_use(folder)
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    try:
        private_folder(folder)
    except OSError as error:
        raise SiteStateError(
            f"cannot write the node's keys to {folder}: {error.strerror}. Choose a folder that this user may write."
        ) from None
    _runtime_certificate(folder)
    write(folder / SECRET, secrets.token_bytes(32))
    write(folder / PUBLIC_KEY, public + b"\n", mode=PUBLIC)
    write(folder / KEY, private)  # last: a folder with it is whole
    return fingerprint(key.public_key())


def fingerprint_of(public_key: Path) -> str:
    """Return the fingerprint of a public key's file, see `common.fingerprint`.

    Raises:
        SiteStateError: if the file is missing or holds no OpenSSH public key.
    """
    try:
        return fingerprint(serialization.load_ssh_public_key(public_key.read_bytes()))
    except (OSError, ValueError, UnsupportedAlgorithm):
        raise SiteStateError(f"{public_key} holds no OpenSSH public key. Restore it from your backup.") from None


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
    write(folder / RUNTIME_KEY, pem)
    write(folder / RUNTIME_CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM), mode=PUBLIC)
