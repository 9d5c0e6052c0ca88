"""The judgement on a process's memory: a leak is found through noise and restarts, and nothing else is."""

import numpy as np
import pytest
from memory import WARM_UP, Sample, chart, growth


def samples(leak: float, *, rounds: int = 60, restart_at: tuple[int, ...] = (), noise: float = 0.5) -> list[Sample]:
    """A process that loads for some rounds and leaks `leak` MB a round, anew after each restart."""
    rng, pid, began, made = np.random.default_rng(0), 1, 0, []
    for index in range(rounds):
        if index in restart_at:
            pid, began = pid + 1, index
        age = index - began
        mb = 300 + 20 * min(age, WARM_UP) + leak * age + rng.normal(0, noise)
        made.append(Sample(index, pid, float(mb)))
    return made


@pytest.mark.parametrize("restart_at", [(), (20, 40), (7, 25, 29)])
def test_a_leak_is_found_however_often_the_process_began_anew(restart_at: tuple[int, ...]) -> None:
    found = growth(samples(0.3, restart_at=restart_at))
    assert found is not None
    assert found[0] == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("restart_at", [(), (20, 40)])
def test_a_process_that_only_loads_is_flat(restart_at: tuple[int, ...]) -> None:
    found = growth(samples(0.0, restart_at=restart_at))
    assert found is not None
    assert abs(found[0]) < 0.05


def test_of_lives_that_are_too_short_nothing_is_said() -> None:
    assert growth(samples(5.0, restart_at=tuple(range(0, 60, 10)))) is None


def test_the_picture_stands_alone_and_breaks_a_line_where_a_process_ended() -> None:
    picture = chart({"worker": samples(0.0, restart_at=(30,))}, 60)
    assert picture.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert "<style>" in picture
    assert picture.count("<polyline") == 2
