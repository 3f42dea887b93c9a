from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import pytest

from attnbench.analysis import crossover as module
from attnbench.analysis.crossover import Crossing, Crossover, Pair, Stretch, crossover, estimated_sides
from attnbench.analysis.interval import Estimate
from benchmarks.coverage.crossovers import Case, Measured, measure, smooth, stepped, tally, wrong_labels

SIZES = (256, 512, 1024, 2048, 4096, 8192)
INTERVALS = range(len(SIZES) - 1)


def pairs(series: Mapping[int, float | str], baseline: Mapping[int, float | str], noise: float = 0.0) -> list[Pair]:
    """From values, or statuses in their place. noise: standard error of a level."""

    def level(value: float | str) -> Estimate | None:
        if isinstance(value, str):
            return None
        return Estimate(math.log(value), noise**2, 60.0, 0.0, 1.0, 3)

    def status(value: float | str) -> str:
        return value if isinstance(value, str) else "ok"

    return [
        Pair(n, str(n), level(series[n]), level(baseline[n]), status(series[n]), status(baseline[n]))
        for n in sorted(series)
    ]


def exactly(series: Mapping[int, float | str], baseline: Mapping[int, float | str], noise: float = 0.0) -> Crossover:
    """The crossover of `pairs`."""
    return crossover(pairs(series, baseline, noise))


def against_one(*ratios: float, noise: float = 0.01) -> Crossover:
    """Of ratios at the first sizes."""
    sizes = SIZES[: len(ratios)]
    return exactly(dict(zip(sizes, ratios, strict=True)), dict.fromkeys(sizes, 1.0), noise)


@pytest.fixture(scope="module", params=["Gaussian", "unlike cells"])
def measured(request: pytest.FixtureRequest) -> Measured:
    return measure(np.random.default_rng(4), request.param, 3, 80)


Draw = Callable[[np.random.Generator, int], Case]


def cases(draw: Draw, draws: int) -> Iterator[Case]:
    rng = np.random.default_rng(7)
    return (draw(rng, INTERVALS[i % len(INTERVALS)]) for i in range(draws))


def test_the_interval_holds_a_smooth_crossing_and_is_a_number(measured: Measured) -> None:
    found = tally(measured, cases(lambda rng, i: smooth(rng, 1 + i % 3), 80), 3)
    assert found.held >= 0.93
    assert found.bracketed <= 0.15
    assert found.width <= 1.5


def test_a_third_of_its_width_would_miss_it(measured: Measured) -> None:
    """The negative control."""
    third = [[(replace(a, own=a.own / 9), replace(b, own=b.own / 9)) for a, b in run] for run in measured.runs]
    assert tally(replace(measured, runs=third), cases(smooth, 80), 3).held < 0.85


def test_a_step_in_any_interval_is_held(measured: Measured) -> None:
    found = tally(measured, cases(stepped, 80), 3)
    assert found.held >= 0.93
    assert found.bracketed >= 0.3


def test_without_suspicion_a_step_is_missed(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""
    monkeypatch.setattr(module, "SUSPICION", 1 - 1e-12)
    assert tally(measured, cases(stepped, 80), 3).held < 0.7


def test_a_constant_ratio_has_no_crossing_and_no_wrong_label(measured: Measured) -> None:
    *wrong, told = wrong_labels(measured)
    assert max(wrong) <= 0.05
    assert told <= 0.15


def test_an_interval_at_each_size_is_no_band(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: what holds at each size for itself does not hold at all of them."""
    half = module._half
    monkeypatch.setattr(module, "_half", lambda pair, confidence=None, together=1: half(pair, confidence) * 0.6)
    assert max(wrong_labels(measured)) > 0.2


@pytest.mark.parametrize(
    ("ratios", "kind", "ends"),
    [
        ((0.5, 0.8, 0.6), "always", None),
        ((1.5, 1.8, 1.6), "never", None),
        ((1.01, 0.99, 1.0), "undecided", None),
        ((1.01, 0.9, 0.6), "stretch", ("512", None)),
        ((0.5, 0.8, 1.01), "stretch", (None, "512")),
        ((1.0, 0.8, 0.7, 1.01), "stretch", ("512", "1024")),
        ((1.0, 0.8, 1.0), "stretch", ("512", "512")),
        ((0.5, 1.0, 0.8, 0.7), "stretch", ("1024", None)),
        ((0.5,), "always", None),
        ((1.02,), "undecided", None),
    ],
)
def test_labels_come_from_the_sizes_that_are_told_apart(
    ratios: tuple[float, ...], kind: str, ends: tuple[str | None, str | None] | None
) -> None:
    found = against_one(*ratios)
    stretch = found.stretch
    assert (found.kind, (stretch.first, stretch.last) if stretch else None) == (kind, ends)
    assert found.crossings == ()
    turned = against_one(*(1 / ratio for ratio in ratios))
    assert turned.kind == {"always": "never", "never": "always"}.get(kind, kind)
    if found.stretch is not None and turned.stretch is not None:
        assert (found.stretch.cheaper, turned.stretch.cheaper) == (True, False)


def test_one_size_is_judged_like_many() -> None:
    """At 2.2 standard errors one size is told apart, and of five none."""
    off = math.exp(2.2 * 0.01 * math.sqrt(2))
    assert against_one(off).kind == "never"
    assert against_one(*[off] * 5).kind == "undecided"


def test_a_look_asks_for_its_own_confidence() -> None:
    level = Estimate(0.023, 0.0001, 60.0, 0.0, 1.0, 3)
    base = replace(level, level=0.0, own=0.0)
    assert crossover([Pair(256, "256", level, base)]).kind == "never"
    look = replace(level, confidence=0.99)
    assert crossover([Pair(256, "256", look, replace(base, confidence=0.99))]).kind == "undecided"


def test_a_crossing_has_a_place_and_a_direction() -> None:
    found = exactly({n: 700.0 * n for n in SIZES}, {n: float(n) ** 2 for n in SIZES}, noise=0.01)
    assert found.kind == "crossing"
    (crossing,) = found.crossings
    assert crossing.at == pytest.approx(700, rel=1e-3)
    assert (crossing.direction, crossing.bracket) == ("above", False)
    assert crossing.low is not None
    assert crossing.high is not None
    assert 640 < crossing.low < 690 < 710 < crossing.high < 760
    turned = exactly({n: float(n) ** 2 for n in SIZES}, {n: 700.0 * n for n in SIZES})
    assert turned.crossings[0].direction == "below"
    assert turned.crossings[0].at == pytest.approx(700, rel=1e-3)


def test_exact_figures_have_crossings_without_width_also_at_a_size() -> None:
    for place in (700, 1024):
        (crossing,) = exactly({n: float(place) * n for n in SIZES}, {n: float(n) ** 2 for n in SIZES}).crossings
        assert (crossing.low, crossing.at, crossing.high) == pytest.approx((place,) * 3, rel=1e-9)
    (first,) = exactly({n: 256.0 * n for n in SIZES}, {n: float(n) ** 2 for n in SIZES}).crossings
    assert first.at == pytest.approx(256)
    (last,) = exactly({n: float(n) ** 2 for n in SIZES}, {n: 8192.0 * n for n in SIZES}).crossings
    assert (last.at, last.direction) == (pytest.approx(8192), "below")
    assert exactly(dict.fromkeys(SIZES, 1.0), dict.fromkeys(SIZES, 1.0)).kind == "same"


def test_a_jump_is_a_bracket_and_a_small_one_widens_the_interval() -> None:
    def stepping(jump: float) -> Crossing:
        ratios = {n: (0.8 * math.exp(jump) if n < 2500 else 0.8) * n**-0.5 * 2000**0.5 / 0.8 for n in SIZES}
        (crossing,) = exactly(ratios, dict.fromkeys(SIZES, 1.0), noise=1e-5).crossings
        return crossing

    assert stepping(0.5) == Crossing(None, 2048, 4096, "above", bracket=True)
    small = stepping(0.03)
    assert small.at is not None
    assert small.low is not None
    assert small.high is not None
    assert 1.01 < small.high / small.low < 1.1


def test_a_jump_that_leaves_some_sizes_out_has_an_interval_up_to_the_others() -> None:
    """The ratio falls to 1.1 and may then jump to 0.65 at once, or with the next size."""
    found = exactly(dict(zip(SIZES, (2.0, 1.6, 1.28, 0.72, 0.58), strict=False)), dict.fromkeys(SIZES[:5], 1.0), 1e-5)
    (crossing,) = found.crossings
    assert (crossing.low, crossing.high) == (pytest.approx(1024, rel=0.05), pytest.approx(2048, rel=1e-6))


def test_of_two_sizes_only_the_two_are_known() -> None:
    assert against_one(2.0, 0.5).crossings == (Crossing(None, 256, 512, "above", bracket=True),)


def test_a_curve_bends_only_where_the_sizes_on_both_sides_agree() -> None:
    """A size whose ratio jumps would bend the curve beside it; three sizes may be such."""

    def place(logs: Mapping[int, float]) -> float:
        ratios = {n: math.exp(log) for n, log in logs.items()}
        ((_, below), (at, above)) = estimated_sides(pairs(ratios, dict.fromkeys(logs, 1.0), 0.01))
        assert (below, above) == (-1, 1)
        return at

    assert place({256: -0.12, 1024: 0.28, 2048: 1.43}) == pytest.approx(256 * 4**0.3, rel=1e-3)
    parabola = {n: 0.2 * math.log(n / 128) ** 2 - 1 for n in SIZES}
    assert place(parabola) == pytest.approx(128 * math.exp(5**0.5), rel=1e-3)
    kinked = {n: max(math.log(n / 1000), 5 * math.log(n / 1200)) for n in SIZES}
    assert place(kinked) == pytest.approx(1000, rel=1e-6)


def test_several_crossings_are_all_listed() -> None:
    ratios = {n: math.exp(0.6 * ((math.log(n) - 7.3) ** 2 - 0.64)) for n in SIZES}
    found = exactly(ratios, dict.fromkeys(SIZES, 1.0), noise=0.01)
    assert [c.direction for c in found.crossings] == ["above", "below"]


def test_always_and_never_have_the_ratio_at_both_ends() -> None:
    found = against_one(0.5, 0.6, 0.7)
    assert found.smallest is not None
    assert found.largest is not None
    assert (found.smallest.label, found.smallest.ratio) == ("256", pytest.approx(0.5))
    assert found.largest.low < 0.7 < found.largest.high


def test_a_baseline_out_of_memory_is_a_win() -> None:
    series = {n: 10.0 * n for n in SIZES}
    baseline: dict[int, float | str] = {n: 1e-3 * n**2 for n in SIZES}
    for n in (4096, 8192):
        baseline[n] = "oom"
    found = exactly(series, baseline, noise=0.01)
    assert found.baseline_beyond == ("4096", "oom")
    assert found.crossings == (Crossing(None, 2048, 4096, "above", bracket=True),)
    cheap = exactly({n: 0.1 * n for n in SIZES}, {**dict.fromkeys(SIZES, "oom"), 256: 1e3}, noise=0.01)
    assert cheap.kind == "always"
    untold = exactly({256: 1.0, 512: 1.0}, {256: 1.001, 512: "oom"}, noise=0.01)
    assert untold.kind == "stretch"
    assert untold.stretch == Stretch(cheaper=True, first="512", last=None)


def test_a_series_out_of_memory_is_no_win() -> None:
    found = exactly({256: 1.0, 512: "oom"}, {256: 0.5, 512: 1.0})
    assert (found.kind, found.series_beyond, found.baseline_beyond) == ("never", ("512", "oom"), None)


def test_a_wrong_baseline_proves_nothing() -> None:
    assert exactly({256: 1.0}, {256: "wrong"}).kind == "nothing"


def test_one_round_has_a_place_and_no_interval() -> None:
    level = [Estimate(math.log(512 * n), math.nan, 0.0, math.nan, 0.0, 1) for n in SIZES]
    base = [Estimate(2 * math.log(n), math.nan, 0.0, math.nan, 0.0, 1) for n in SIZES]
    (crossing,) = crossover([Pair(n, str(n), a, b) for n, a, b in zip(SIZES, level, base, strict=True)]).crossings
    assert crossing.at == pytest.approx(512, rel=1e-3)
    assert (crossing.low, crossing.high, crossing.bracket) == (None, None, False)
