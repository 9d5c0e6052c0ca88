"""The secrets and keys of a simulation: fixed by seed and name, so that a run can be repeated. They hide nothing."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.seeds import derive
from common.signing import key_of
from common.study import Study


def simulated_secret(study: Study, site: str) -> bytes:
    """Return a site's secret, 32 bytes."""
    return derive(b"simulation", study.seed, site)


def simulated_coordinator_key(study: Study) -> Ed25519PrivateKey:
    """Return the key that signs the coordinator's requests."""
    return key_of(derive(b"simulated coordinator", study.seed))
