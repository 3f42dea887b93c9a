from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest

from attnbench.analysis.crossover import Crossover, Pair, crossover
from attnbench.analysis.interval import Estimate, estimates

Law = Callable[[float], float]
SIZES = (256, 512, 1024, 2048, 4096, 8192)
COARSE = (64, 256, 1024, 4096, 16384)
OWN = 0.02
OFFSET = 0.04
DRIFT = 0.05


def exactly(series: Mapping[int, float | str], baseline: Mapping[int, float | str], noise: float = 0.0) -> Crossover:
    """From values, or statuses in their place."""

    def level(value: float | str) -> Estimate | None:
        if isinstance(value, str):
            return None
        return Estimate(math.log(value), noise**2, 60.0, 0.0, 1.0, 3)

    def status(value: float | str) -> str:
        return value if isinstance(value, str) else "ok"

    return crossover(
        [
            Pair(n, str(n), level(series[n]), level(baseline[n]), status(series[n]), status(baseline[n]))
            for n in sorted(series)
        ]
    )


def run(laws: Sequence[Law], seed: int, rounds: int, sizes: Sequence[int] = SIZES) -> Crossover:
    """The crossover of the first law against the second, beside four other series, with offsets and drift."""
    rng = np.random.default_rng(seed)
    every = {"series": laws[0], "baseline": laws[1], **dict.fromkeys("abcd", lambda n: 1e-5 * n)}
    keys = [f"{name} {n}" for name in every for n in sizes]
    truth = np.log([law(n) for law in every.values() for n in sizes])
    columns: dict[str, list[object]] = {"key": [], "round": [], "process": [], "status": [], "wall_time_s": []}
    for round_ in range(1, rounds + 1):
        order = rng.permutation(len(keys))
        drift = DRIFT * (round_ - 1 + np.arange(len(keys)) / len(keys)) / rounds
        logs = truth[order] + rng.normal(0, OFFSET) + rng.normal(0, OWN, len(keys)) + drift
        columns["key"] += [keys[i] for i in order]
        columns["wall_time_s"] += list(np.exp(logs))
        for name, value in (("round", round_), ("process", round_), ("status", "ok")):
            columns[name] += [value] * len(keys)
    found = estimates(pd.DataFrame(columns), "wall_time_s")
    return crossover([Pair(n, str(n), found[f"series {n}"], found[f"baseline {n}"]) for n in sizes])


def floor_and_square(n: float) -> float:
    return 1e-4 + 1e-9 * n**2


def floor_and_line(n: float) -> float:
    return 3e-4 + 5e-7 * n


def dip(n: float) -> float:
    """Below n·1e-6 between about 660 and 3300."""
    return 1e-6 * n * math.exp(0.6 * ((math.log(n) - 7.3) ** 2 - 0.64))


def stepped(after: float) -> Law:
    """1.5e-6 n up to 700, then so much less."""
    return lambda n: n * (1.5e-6 if n < 700 else after)


CASES: dict[str, tuple[Law, Law]] = {
    "steep": (floor_and_line, floor_and_square),
    "shallow": (lambda n: 9e-6 * n**0.7, lambda n: 1e-6 * n),
    "double": (dip, lambda n: 1e-6 * n),
    "kink": (lambda n: 5e-4 + 2e-7 * n, lambda n: max(4e-7 * n, 1e-9 * n**2)),
    "at a step": (stepped(0.8e-6), lambda n: 2e-7 * n + 1e-9 * n**2),
    "beside a step": (stepped(1.1e-6), lambda n: 2e-7 * n + 1e-9 * n**2),
    "at the edge": (lambda n: 7.8e-6 * n, lambda n: 1e-9 * n**2),
    "beyond the edge": (lambda n: 9.5e-6 * n, lambda n: 1e-9 * n**2),
    "beyond a coarse edge": (lambda n: 1.8e-5 * n, lambda n: 1e-9 * n**2),
}


@lru_cache
def truths(case: str, sizes: tuple[int, ...] = SIZES) -> list[tuple[float, float]]:
    """(size, slope of the log ratio) at every true crossing within the sizes, found on a fine grid."""
    laws = CASES[case]
    x = np.linspace(math.log(sizes[0]), math.log(sizes[-1]), 20001)
    gap = np.array([math.log(laws[0](math.exp(at)) / laws[1](math.exp(at))) for at in x])
    return [
        (math.exp(x[i]), (gap[i + 5] - gap[i - 5]) / (x[i + 5] - x[i - 5]))
        for i in np.flatnonzero(np.diff(np.sign(gap)))
    ]


def oracle(slope: float, rounds: int) -> float:
    """The log width of the interval of one who knows the noise."""
    return 2 * 1.96 * OWN * math.sqrt(2 / rounds) / abs(slope)


def coverage(
    case: str, seed: int, rounds: int, sizes: tuple[int, ...] = SIZES, repeats: int = 60
) -> tuple[list[bool], list[float]]:
    """Whether intervals held the true crossings, and their widths over those of one who knows the noise."""
    held, widths = [], []
    for repeat in range(repeats):
        found = run(CASES[case], 1000 * seed + repeat, rounds, sizes)
        if not truths(case, sizes):
            held.append(found.kind == "never" or any(c.high is None for c in found.crossings))
        for size, slope in truths(case, sizes):
            hits = [c for c in found.crossings if (c.low or 0) <= size <= (c.high or math.inf)]
            held.append(bool(hits))
            widths += [math.log(c.high / c.low) / oracle(slope, rounds) for c in hits[:1] if c.low and c.high]
    return held, widths


@pytest.mark.parametrize("rounds", [2, 3, 5])
@pytest.mark.parametrize("case", [case for case in CASES if "coarse" not in case])
def test_intervals_hold_the_true_crossing(case: str, rounds: int) -> None:
    every = [coverage(case, seed, rounds) for seed in (1, 2, 3)]
    held = np.concatenate([h for h, _ in every])
    assert held.mean() >= 0.93
    widths = np.concatenate([w for _, w in every])
    if case in ("kink", "beside a step"):  # a stretch steeper than both its neighbours may hold a step, anywhere in it
        ((_, slope),) = truths(case)
        assert np.median(widths) * oracle(slope, rounds) <= math.log(2) / 2
    elif len(widths) and case != "at a step":
        assert np.median(widths) <= 1.5


def test_a_step_is_not_seen_without_an_allowance_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control; and the allowance stays within the stretch between two sizes."""
    found = [run(CASES["at a step"], seed, 3).crossings[0] for seed in range(20)]
    assert all(c.low and c.high and 500 < c.low < 700 < c.high < 1050 for c in found)
    monkeypatch.setattr("attnbench.analysis.crossover._steps", lambda sizes, gap, spread, line: np.zeros(len(line)))
    for case in ("at a step", "beside a step"):
        held, _ = coverage(case, 1, 3, repeats=20)
        assert np.mean(held) < 0.5


@pytest.mark.parametrize("rounds", [2, 3, 5])
@pytest.mark.parametrize("case", list(CASES))
def test_they_hold_it_where_sizes_are_a_factor_of_4_apart(case: str, rounds: int) -> None:
    """A ratio that is straight in log-log is known as well as its noise allows; one that bends unseen between two
    sizes is not, and its interval must be wider, yet far from the whole step."""
    every = [coverage(case, seed, rounds, COARSE, repeats=25) for seed in (1, 2, 3)]
    assert np.concatenate([h for h, _ in every]).mean() >= 0.93
    widths = np.concatenate([w for _, w in every])
    bends = case in ("steep", "kink", "beside a step")
    if bends:
        ((_, slope),) = truths(case, COARSE)
        assert np.median(widths) * oracle(slope, rounds) <= math.log(4) / 2
    elif len(widths) and case != "at a step":
        assert np.median(widths) <= 1.5


def test_between_coarse_sizes_the_noise_alone_would_miss_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: without an allowance for what the curve does unseen."""
    monkeypatch.setattr("attnbench.analysis.crossover.CURVATURE_SHARE", 0.0)
    held, _ = coverage("steep", 1, 3, COARSE)
    assert np.mean(held) < 0.93


def test_narrower_intervals_would_miss_it() -> None:
    """The negative control: half the width is not enough."""
    size = truths("shallow")[0][0]
    found = [c for seed in range(120) for c in run(CASES["shallow"], seed, 3).crossings]
    held = [
        c.at * math.sqrt(c.low / c.at) <= size <= c.at * math.sqrt(c.high / c.at)
        for c in found
        if c.at and c.low and c.high
    ]
    assert np.mean(held) < 0.88


def test_a_crossing_has_a_place_and_a_direction() -> None:
    found = exactly({n: 512.0 * n for n in SIZES}, {n: float(n) ** 2 for n in SIZES}, noise=0.01)
    assert found.kind == "crossing"
    (crossing,) = found.crossings
    assert crossing.at == pytest.approx(512, rel=1e-3)
    assert crossing.direction == "above"
    assert crossing.low is not None
    assert crossing.high is not None
    assert crossing.low < 512 < crossing.high
    turned = exactly({n: float(n) ** 2 for n in SIZES}, {n: 700.0 * n for n in SIZES})
    assert turned.crossings[0].direction == "below"
    assert turned.crossings[0].at == pytest.approx(700, rel=1e-3)


def test_an_exact_figure_has_a_crossing_without_width() -> None:
    (crossing,) = exactly({n: 700.0 * n for n in SIZES}, {n: float(n) ** 2 for n in SIZES}).crossings
    assert crossing.low == pytest.approx(700, rel=1e-2)
    assert crossing.high == pytest.approx(700, rel=1e-2)


def test_always_and_never_tell_the_ratio_at_both_ends() -> None:
    always = exactly({n: 0.5 * n for n in SIZES}, {n: float(n) for n in SIZES}, noise=0.01)
    assert always.kind == "always"
    assert always.crossings == ()
    assert always.smallest is not None
    assert (always.smallest.label, always.smallest.ratio) == ("256", pytest.approx(0.5))
    never = exactly({n: 3.0 * n for n in SIZES}, {n: float(n) for n in SIZES}, noise=0.01)
    assert never.kind == "never"
    assert never.largest is not None
    assert (never.largest.label, never.largest.ratio) == ("8192", pytest.approx(3))
    assert never.largest.low < 3 < never.largest.high


def test_within_noise_at_the_edge_is_an_open_interval() -> None:
    found = exactly({n: 8300.0 * n for n in SIZES}, {n: float(n) ** 2 for n in SIZES}, noise=0.02)
    assert found.kind == "never"
    (crossing,) = found.crossings
    assert (crossing.at, crossing.high, crossing.direction) == (None, None, "above")
    assert crossing.low is not None
    assert 7000 < crossing.low < 8192


def test_within_noise_all_the_way_is_undecided() -> None:
    assert exactly({n: 1.01 * n for n in SIZES}, {n: float(n) for n in SIZES}, noise=0.05).kind == "undecided"


def test_a_crossing_amid_noise_that_reaches_both_ends_is_undecided() -> None:
    series = {n: n * (1.02 if n < 1000 else 0.98) for n in SIZES}
    baseline = {n: float(n) for n in SIZES}
    found = exactly(series, baseline, noise=0.05)
    assert (found.kind, found.crossings) == ("undecided", ())
    (clear,) = exactly(series, baseline, noise=0.002).crossings
    assert clear.direction == "above"
    (one_end,) = exactly({**series, 256: 512.0}, baseline, noise=0.05).crossings
    assert (one_end.direction, one_end.high) == ("above", None)


def test_several_crossings_are_all_listed() -> None:
    found = exactly({n: dip(n) for n in SIZES}, {n: 1e-6 * n for n in SIZES}, noise=0.01)
    assert [c.direction for c in found.crossings] == ["above", "below"]


def test_a_touch_is_not_a_crossing() -> None:
    series = dict.fromkeys(SIZES, 2.0)
    series[1024] = 1.01
    found = exactly(series, dict.fromkeys(SIZES, 1.0), noise=0.02)
    assert found.kind == "never"
    assert [c.direction for c in found.crossings] == ["within noise"]


def test_a_baseline_out_of_memory_is_a_win() -> None:
    series = {n: 10.0 * n for n in SIZES}
    baseline: dict[int, float | str] = {n: 1e-3 * n**2 for n in SIZES}
    for n in (4096, 8192):
        baseline[n] = "oom"
    found = exactly(series, baseline, noise=0.01)
    assert found.baseline_beyond == ("4096", "oom")
    assert found.kind == "crossing"
    (crossing,) = found.crossings
    assert (crossing.at, crossing.low, crossing.high) == (None, 2048.0, 4096.0)
    assert crossing.direction == "above"
    cheap = exactly({n: 0.1 * n for n in SIZES}, {**dict.fromkeys(SIZES, "oom"), 256: 1e3}, noise=0.01)
    assert cheap.kind == "always"


def test_a_series_out_of_memory_is_no_win() -> None:
    found = exactly({256: 1.0, 512: "oom"}, {256: 0.5, 512: 1.0})
    assert (found.kind, found.series_beyond, found.baseline_beyond) == ("never", ("512", "oom"), None)


def test_a_wrong_baseline_proves_nothing() -> None:
    assert exactly({256: 1.0}, {256: "wrong"}).kind == "nothing"


def test_one_round_has_a_place_and_no_interval() -> None:
    level = [Estimate(math.log(512 * n), math.nan, 0.0, math.nan, 0.0, 1) for n in SIZES]
    base = [Estimate(2 * math.log(n), math.nan, 0.0, math.nan, 0.0, 1) for n in SIZES]
    found = crossover([Pair(n, str(n), a, b) for n, a, b in zip(SIZES, level, base, strict=True)])
    (crossing,) = found.crossings
    assert crossing.at == pytest.approx(512, rel=1e-3)
    assert (crossing.low, crossing.high) == (None, None)
