"""A population of devices: the same number is the same device, within the prior, and one table tells of all."""

from typing import Any

import pytest

from simulations.ablation.page import is_population, overview, population
from simulations.ablation.tally import BASELINE, RELEASED
from simulations.phantom.devices import PROFILES
from simulations.phantom.population import PRIOR, profile_of


def test_a_number_is_one_device_within_the_prior_and_no_two_are_alike() -> None:
    drawn = [profile_of(f"drawn-{number}") for number in range(40)]

    assert drawn[7] == profile_of("drawn-7")
    assert len({device.centre_mhz for device in drawn}) == 40
    for key, (low, high) in PRIOR.items():
        if key != "beam_wavelengths":
            values = [getattr(device, key) for device in drawn]
            assert low <= min(values) < low + 0.25 * (high - low)
            assert high - 0.25 * (high - low) < max(values) <= high
    for device in drawn:
        low, high = PRIOR["beam_wavelengths"]
        assert low <= device.beam_mm / device.wavelength_mm <= high


def test_named_profiles_stay_and_other_names_are_refused() -> None:
    assert profile_of("lumify_like") is PROFILES["lumify_like"]
    for name in ("drawn-", "drawn-01", "drawn--1", "drawn-1\n", "other"):
        with pytest.raises(ValueError, match="expected a profile of lumify_like"):
            profile_of(name)


def difference(mean: float, low: float, high: float) -> dict[str, Any]:
    return {"mean": mean, "low": low, "high": high, "seeds": [mean]}


def summary(**gains: tuple[float, float, float]) -> dict[str, Any]:
    data = {
        name.replace("_", "-"): {
            "rows": {
                BASELINE: {"target": {"mean": 0.5}},
                RELEASED: {
                    "target": {"mean": 0.5 + gain[0], "difference": difference(*gain)},
                    "source": {"difference": difference(0.0, -0.01, 0.01)},
                },
            }
        }
        for name, gain in gains.items()
    }
    return {"name": "p", "command": "c", "study": "s", "seeds": [0], "hardware": "h", "code": [], "data": data}


def test_a_population_has_one_table_and_its_worst_device_is_named() -> None:
    found = summary(drawn_0=(0.2, 0.1, 0.3), drawn_1=(-0.05, -0.09, -0.01), drawn_2=(0.01, -0.1, 0.2))

    text = population(found)

    assert is_population(found)
    assert "| drawn-1 | 50.0 | 45.0 | -5.0 [-9.0, -1.0] | +0.0 [-1.0, +1.0] |" in text
    assert "Of 3 devices the baseline is beaten clear of zero on 1 and lost to on 1." in text
    assert "median +1.0 points, from -5.0 to +20.0; the worst is drawn-1." in text
    assert "drawn" not in overview([found])
    assert not is_population(summary(wireless=(0.2, 0.1, 0.3)))
    assert not is_population(summary(drawn_weights=(0.2, 0.1, 0.3)))
