"""All randomness of a site and of the server, derived from one secret and the words that name its use."""

import hashlib
import hmac


def derive(secret: bytes, *words: str | int) -> bytes:
    """Return 32 bytes that only a holder of `secret` can predict: HMAC-SHA256 (RFC 2104).

    Args:
        secret: a site's 32 random bytes, or bytes made of the study's seed at the server.
        words: what the bytes are for, e.g. study hash, site, round and task. Their order counts.
    """
    # Lengths are part of what is signed, so that ("ab", "c") and ("a", "bc") differ.
    text = "".join(f"{len(str(word))}:{word}" for word in words)
    return hmac.new(secret, text.encode(), hashlib.sha256).digest()


def derive_seed(secret: bytes, *words: str | int) -> int:
    """Return a seed in [0, 2^63) for a torch or numpy generator; see `derive`."""
    return int.from_bytes(derive(secret, *words)[:8], "big") >> 1
