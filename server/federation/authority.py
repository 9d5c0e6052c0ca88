"""The federation's private certificate authority, and the coordinator's server certificate under it."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import RunError
from common.files import PUBLIC, write_atomically
from common.fingerprint import fingerprint

CA_KEY, CA_CERTIFICATE = "ca.key", "ca.crt"
SERVER_KEY, SERVER_CERTIFICATE = "server.key", "server.crt"
#: Five years of studies under one authority; a server's certificate for two, as long as a study may last.
CA_DAYS, SERVER_DAYS = 5 * 365, 2 * 365
#: What to do once a write failed, for the person who reads the error.
THEN = "run the command again"
#: A hospital's clock may be behind the coordinator's.
_EARLIER = timedelta(hours=1)


def make_authority(folder: Path) -> None:
    """Make the authority's key and certificate in an existing folder. Raises RunError."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name("CrossProbe federation")
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)  # signs certificates and lists
    certificate = (
        _builder(name, name, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    _write_pair(folder, (CA_KEY, CA_CERTIFICATE), key, certificate)


def make_server_certificate(authority: Path, folder: Path, hosts: Iterable[str], *, days: int = SERVER_DAYS) -> None:
    """Make the server's key and certificate for every name or address that clients connect to.

    Args:
        authority: folder with the authority's key and certificate.
        folder: existing folder for the server's.

    Raises:
        RunError: if the authority cannot be read or nothing can be written.
    """
    try:
        signer = serialization.load_pem_private_key((authority / CA_KEY).read_bytes(), password=None)
        issuer = x509.load_pem_x509_certificate((authority / CA_CERTIFICATE).read_bytes())
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:  # TypeError: it asks for a passphrase
        raise RunError(f"cannot read the authority in {authority}: {error}. Restore it from your backup.") from None
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise RunError(f"{authority / CA_KEY} is not the authority's key as it was made. Restore it from your backup.")
    key = ec.generate_private_key(ec.SECP384R1())
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    certificate = (
        _builder(_name("CrossProbe coordinator"), issuer.subject, key.public_key(), days)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys(hosts)]), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA384())
    )
    _write_pair(folder, (SERVER_KEY, SERVER_CERTIFICATE), key, certificate)


def expiry(certificate: Path) -> datetime:
    """Return when a certificate ends, UTC. Raises RunError if it cannot be read."""
    try:
        return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read the certificate {certificate}: {error}. Restore it from your backup.") from None


def hosts_of(certificate: Path) -> list[str]:
    """Return the names and addresses that a server's certificate was made for; first the one that hospitals use.

    Raises:
        RunError: if it cannot be read.
    """
    try:
        content = x509.load_pem_x509_certificate(certificate.read_bytes())
        names = content.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise RunError(f"cannot read the certificate {certificate}: {error}. Restore it from your backup.") from None
    return [str(name.value) for name in names]


def key_fingerprint(public_key: Path) -> str:
    """Return the fingerprint of a site's public key, see `common.fingerprint`.

    Raises:
        RunError: if the file cannot be read, or holds no key that a SuperNode can have.
    """
    try:
        key = serialization.load_ssh_public_key(public_key.read_bytes())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError
    except OSError as error:
        raise RunError(f"cannot read {public_key}: {error.strerror}. Give the node.pub that the site sent.") from None
    except (ValueError, UnsupportedAlgorithm):
        raise RunError(
            f"{public_key}: expected the one line of an ECDSA public key, as `crossprobe site keygen` writes it. "
            "Ask the site for its node.pub."
        ) from None
    return fingerprint(key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + timedelta(days=days)) - _EARLIER)
        .not_valid_after(now + timedelta(days=days))
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write_pair(
    folder: Path, names: tuple[str, str], key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
) -> None:
    """Write a key, which nobody else can read, and the certificate for all to read. Raises RunError."""
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_atomically(folder / names[0], pem, then=THEN)
    write_atomically(folder / names[1], certificate.public_bytes(serialization.Encoding.PEM), then=THEN, mode=PUBLIC)
