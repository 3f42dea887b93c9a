from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from attnbench.analysis.interval import estimates
from attnbench.analysis.metric_values import quantity
from attnbench.analysis.recommendation import Choice, Recommendation, choose, recommendations
from attnbench.analysis.series import Series, panels
from benchmarks.coverage.noise import visits
from tests.analysis.runs import Law, laws

SOFTMAX: Law = lambda n: 1e-6 * n**2  # noqa: E731


def recommended(
    statuses: dict[tuple[str, int], str] | None = None, rounds: int = 3, **others: Law
) -> list[Recommendation]:
    run = laws([64, 256, 1024], {"softmax": SOFTMAX, **others}, statuses=statuses, own=0.005, rounds=rounds)
    (panel,) = panels(run.results)
    return recommendations(panel, [quantity(run, name) for name in ("wall_time", "peak_memory", "flops")], ())


def names(found: Recommendation) -> list[str]:
    return [choice.series.name for choice in found.choices]


def test_another_function_is_chosen_where_it_is_clearly_faster() -> None:
    found = recommended(performer=lambda n: 1e-4 * n)
    assert [names(r) for r in found] == [["softmax"], ["performer"], ["performer"]]
    assert found[0].speed_up is None, "of exact softmax over itself"
    assert found[2].speed_up == pytest.approx(10.24, rel=0.05)
    assert found[2].low is not None
    assert found[2].low < 10.24 < (found[2].high or 0)
    assert found[2].choices[0].memory_bytes == 102400


def test_what_cannot_be_told_from_the_fastest_is_named_exact_ones_first_then_the_leanest() -> None:
    found = recommended(
        performer=lambda n: 0.999e-6 * n**2, local=lambda n: 0.998e-6 * n**2, fnet=lambda n: 1.5e-6 * n**2
    )
    assert all(names(r) == ["softmax", "local", "performer"] for r in found)
    assert [[c.exact for c in r.choices] for r in found] == [[True, False, False]] * 3


def test_from_one_round_the_fastest_is_named_alone() -> None:
    (*_, last) = recommended(rounds=1, performer=lambda n: 0.9e-6 * n**2)
    assert len(last.choices) == 1
    assert last.low is None or math.isnan(last.low)


def test_identity_is_a_bound_and_no_choice() -> None:
    found = recommended(identity=lambda n: 1e-9)
    assert all(names(r) == ["softmax"] for r in found)


def test_without_an_exact_one_there_is_no_speed_up() -> None:
    found = recommended({("softmax", 1024): "oom"}, performer=lambda n: 1e-2 * n)
    assert (found[-1].exact, found[-1].speed_up, names(found[-1])) == (None, None, ["performer"])


def simulated(truth: Sequence[float], exact: Sequence[bool], sd: float, rounds: int, seed: int) -> Recommendation:
    """The choice among series with these log times, the only ones of one block."""
    deviations = sd * np.random.default_rng(seed).standard_normal((rounds, 1, len(truth)))
    levels = estimates(visits(deviations, np.array([truth])), "wall_time_s")
    candidates = [
        (levels[f"0.{i}"], Choice(Series(str(i), str(i), "reference", "{}", ()), 1.0, None, exact[i]))
        for i in range(len(truth))
    ]
    return choose(64, "64", sorted(candidates, key=lambda c: c[0].level))


def test_at_sixteen_percent_noise_the_truly_fastest_is_in_the_set_and_no_speed_up_is_overstated() -> None:
    truth = [0.0, 0.03, 0.05, 0.08, 0.4, 0.8, 1.0, 1.2, 1.5, 2.0]
    exact = [i in (6, 7) for i in range(10)]
    single = held = covered = 0
    overstated = []
    draws = 120
    for seed in range(draws):
        found = simulated(truth, exact, 0.16, 3, seed)
        chosen = int(found.fastest.series.name)
        single += chosen == 0
        held += "0" in names(found)
        assert found.speed_up is not None
        assert found.low is not None
        assert found.high is not None
        gain = truth[6] - truth[chosen]
        covered += found.low <= math.exp(gain) <= found.high
        overstated.append(math.log(found.speed_up) - gain)
    assert single / draws < 0.6, "the fastest alone, the control, is often another"
    assert held / draws >= 0.95
    assert covered / draws >= 0.95
    assert np.mean(overstated) <= 0.03, "its standard error is 0.01"


def test_with_little_noise_the_set_is_the_fastest_alone() -> None:
    found = [simulated([0.0, 0.2, 1.0], [False, False, True], 0.02, 3, seed) for seed in range(20)]
    assert sum(names(r) == ["0"] for r in found) >= 18
