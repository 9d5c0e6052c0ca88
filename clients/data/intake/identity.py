"""Patients, clips and files under names that nobody can undo without the site's own key."""

import hmac
import secrets
import unicodedata
from pathlib import Path

from common.errors import RunError, SiteStateError
from common.files import write_atomically

KEY_BYTES = 32
#: 48 bits: among a million patients, two share a name once in 600 sites.
HEX_DIGITS = 12


def pseudonym_key(path: Path) -> bytes:
    """The key in a file; a new one is made and kept there, readable by its owner alone, if there is none.

    The same key gives the same patient the same name in the next import. Whoever has it and a list of ids can find
    out who is who: it stays at the site, outside of the site's folder.

    Raises:
        SiteStateError: if the file cannot be read or made, is no key, or others can read it.
    """
    if not path.exists():
        try:
            write_atomically(path, secrets.token_bytes(KEY_BYTES), then="give another place with --key", new=True)
        except RunError as error:
            if not path.exists():  # else another import made it meanwhile
                raise SiteStateError(str(error)) from None
    return _read(path)


def pseudonym(key: bytes, kind: str, identity: str) -> str:
    """The name of a patient or clip: HMAC-SHA256, cut to `HEX_DIGITS`. `kind` keeps equal ids of two kinds apart."""
    plain = unicodedata.normalize("NFC", identity.strip())
    text = f"{kind}\0{plain}".encode(errors="surrogatepass")  # a file's name may be no text at all
    return hmac.new(key, text, "sha256").hexdigest()[:HEX_DIGITS]


def _read(path: Path) -> bytes:
    try:
        mode, key = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise SiteStateError(f"cannot read the key {path}: {error.strerror}. Run this as its owner.") from None
    if mode & 0o077:
        raise SiteStateError(f"others can read the key {path}. Close it with: chmod 600 {path}")
    if len(key) != KEY_BYTES:
        raise SiteStateError(
            f"{path} is no key: expected {KEY_BYTES} bytes, found {len(key)}. Give another with --key."
        )
    return key
