"""A public key's fingerprint, by which a hospital and the coordinator compare a key over the telephone."""

import base64

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import SSHPublicKeyTypes, ssh_key_fingerprint


def fingerprint(key: SSHPublicKeyTypes) -> str:
    """Return the SHA-256 fingerprint of a key as `ssh-keygen -l` prints it."""
    return "SHA256:" + base64.b64encode(ssh_key_fingerprint(key, hashes.SHA256())).decode().rstrip("=")
