"""Weights of several megabytes over a line of 1 Mbit/s, both ways. `make network-test`."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from networked import NetworkedFederation, missing
from tiny import content, write_study
from wire import Weather

from common.run_folder import RunFolder

pytestmark = [pytest.mark.network, pytest.mark.skipif(bool(missing()), reason=missing())]

#: Both branches are 7.8 MB then, more than what Flower sends in one piece by itself.
FEATURES, LEAST_BYTES = 72, 7e6
LINE = Weather(bits_per_s=1e6)


def test_weights_of_several_megabytes_get_through_a_slow_line(pair: Sequence[Path], tmp_path: Path) -> None:
    stages = [stage | {"rounds": 1} for stage in content()["stages"] if stage["name"] == "refine"]
    network = {"features": [FEATURES] * 6, "norm": "instance"}
    study = write_study(
        tmp_path / "study.yaml",
        stages=stages,
        network=network,
        participation={"deadline_s": 600.0, "retries": 0},
    )
    with NetworkedFederation(tmp_path, study, pair) as federation:
        federation.start_coordinator()
        federation.register()
        federation.start_sites()
        with federation.running() as running:
            federation.wait(RunFolder(federation.run_folder).nodes.exists, "all sites are enrolled", 240)
            wire = federation.wires["north"]
            wire.weather = LINE
            federation.wait(federation.records, "a round", 600)
            sent = wire.out.count["bytes"]
            wire.weather = Weather()
            code = federation.ended(running, 300)
        assert code == 0
        (refined, *_) = records = federation.records()
        north = refined.sites["north"]
        assert {site.status for record in records for site in record.sites.values()} == {"ok"}
        assert min(north.bytes_to, north.bytes_from) > LEAST_BYTES
        assert north.seconds > 8 * (north.bytes_to + north.bytes_from) / LINE.bits_per_s
        # Nothing of it was sent twice: what is not the reply are questions, receipts and TLS.
        assert sent < 1.5 * north.bytes_from
        assert RunFolder(federation.run_folder).model.read_bytes() == federation.undisturbed(tmp_path / "undisturbed")
