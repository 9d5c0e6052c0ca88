"""One round of Flower's own SecAgg+ on the same updates, beside `simulations.benchmarks.secure_aggregation`.

Without network: the sites' stages are those of Flower's client mod; the server's are those of its workflow, without
Grid and strategy. Every site is every other's neighbour and the thresholds are ours, so that both sums are worth the
same. Quantisation is as Flower has it by default, but for a clip that fits an update.
"""

import time
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_extract,
    get_parameters_shape,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key

#: By its name as a module: its package gives a function the same one.
site_stages: Any = import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
#: Flower's defaults: of the quantisation, of the masks; and the largest weight and number that an update may have here.
TARGET_RANGE, MOD_RANGE, MAX_WEIGHT, CLIP = 1 << 22, 1 << 32, 1000.0, 0.25


@dataclass(frozen=True)
class Reference:
    """Of one round: processor seconds of one site and of the server, bytes of one site, how far the mean is off.

    Attributes:
        bytes_update, bytes_else: of the masked update; of everything else that a site sends and is sent.
        error: largest distance of a number of the mean from the plain one.
    """

    site: float
    server: float
    bytes_update: int
    bytes_else: int
    error: float


def measure(updates: list[np.ndarray], missing: int, threshold: int, patients: int) -> Reference:
    """Sum updates [N] of one site each; the first `missing` sites agree on keys and then do not send."""
    count, seconds = len(updates), dict.fromkeys(("site", "server"), 0.0)
    ids = range(1, count + 1)
    alive, dead = list(ids)[missing:], list(ids)[:missing]
    states = {nid: site_stages.SecAggPlusState() for nid in ids}
    settings: Any = {
        Key.SAMPLE_NUMBER: count,
        Key.SHARE_NUMBER: count,
        Key.THRESHOLD: threshold,
        Key.CLIPPING_RANGE: CLIP,
        Key.TARGET_RANGE: TARGET_RANGE,
        Key.MOD_RANGE: MOD_RANGE,
        Key.MAX_WEIGHT: MAX_WEIGHT,
    }
    since = time.process_time()

    def lap(who: str) -> None:
        nonlocal since
        seconds[who] += time.process_time() - since
        since = time.process_time()

    keys: Any = {}
    for nid, state in states.items():
        state.nid = nid
        found = site_stages._setup(state, settings)
        keys[str(nid)] = [found[Key.PUBLIC_KEY_1], found[Key.PUBLIC_KEY_2]]
    boxes: dict[int, list[tuple[int, bytes]]] = {nid: [] for nid in ids}
    for nid, state in states.items():
        sent: Any = site_stages._share_keys(state, keys)
        for other, sealed in zip(sent[Key.DESTINATION_LIST], sent[Key.CIPHERTEXT_LIST], strict=True):
            boxes[other].append((nid, sealed))
    lap("site")
    total, update_bytes = None, 0
    for nid in alive:
        told: Any = {Key.SOURCE_LIST: [i for i, _ in boxes[nid]], Key.CIPHERTEXT_LIST: [s for _, s in boxes[nid]]}
        given = ndarrays_to_parameters([updates[nid - 1]])
        since = time.process_time()
        masked: Any = site_stages._collect_masked_vectors(states[nid], told, patients, given)[Key.MASKED_PARAMETERS]
        lap("site")
        update_bytes = sum(map(len, masked))
        arrays = [bytes_to_ndarray(blob) for blob in masked]
        total = arrays if total is None else parameters_addition(total, arrays)
        lap("server")
    assert total is not None
    total = parameters_mod(total, MOD_RANGE)
    shares: dict[int, list[bytes]] = {nid: [] for nid in ids}
    last = b""
    for nid in alive:
        since = time.process_time()
        helped: Any = site_stages._unmask(
            states[nid],
            {Key.ACTIVE_NODE_ID_LIST: alive, Key.DEAD_NODE_ID_LIST: dead},
        )
        lap("site")
        for owner, share in zip(helped[Key.NODE_ID_LIST], helped[Key.SHARE_LIST], strict=True):
            shares[owner].append(share)
            last = share
    since = time.process_time()
    for nid, own in shares.items():
        secret, shape = combine_shares(own), get_parameters_shape(total)
        if nid in alive:
            total = parameters_subtraction(total, pseudo_rand_gen(secret, MOD_RANGE, shape))
            continue
        for other in alive:
            key = generate_shared_key(bytes_to_private_key(secret), bytes_to_public_key(keys[str(other)][0]))
            move = parameters_addition if nid > other else parameters_subtraction
            total = move(total, pseudo_rand_gen(key, MOD_RANGE, shape))
    ratio, whole = factor_extract(parameters_mod(total, MOD_RANGE))
    (mean,) = dequantize(whole, CLIP, TARGET_RANGE)
    mean = (mean - (len(alive) - 1) * CLIP) * (TARGET_RANGE / ratio)
    lap("server")
    plain = np.mean([updates[nid - 1].astype(np.float64) for nid in alive], axis=0)
    sealed_bytes = sum(len(s) for _, s in boxes[alive[0]])
    key_bytes = sum(len(part) for pair in keys.values() for part in pair)
    return Reference(
        site=seconds["site"] / len(alive),
        server=seconds["server"],
        bytes_update=update_bytes,
        bytes_else=key_bytes + 2 * sealed_bytes + count * len(last),
        error=float(np.abs(mean - plain).max()),
    )
