"""Rules from planted curves: right where they are certain, with intervals that hold, and little time lost."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest

from attnbench.analysis.contest import Contest, Inside, Range, Regret, Threshold, take
from attnbench.analysis.crossover import crossover
from attnbench.analysis.dispatch import dispatch
from attnbench.analysis.interval import Estimate
from attnbench.errors import BadInput
from attnbench.problem import Problem
from benchmarks.coverage import dispatch as plant
from benchmarks.coverage.dispatch import DOUBLING, Plant, Planted
from tests.analysis import planted as planted_runs
from tests.analysis.runs import cell, laws, run_of, sequence, visits_of

SEEDS = 60


def measured(planting: Plant, noise: float, draws: int = SEEDS, **how: Any) -> list[tuple[Planted, Contest]]:
    return list(plant.panels(planting, noise, draws, **how))


def thresholds(contest: Contest) -> list[Threshold]:
    return list(contest.thresholds(contest.ranges()))


def share(values: list[bool]) -> float:
    assert values
    return sum(values) / len(values)


@pytest.fixture(scope="module", params=[plant.powers, plant.overheads], ids=["powers", "overheads"])
def smooth(request: pytest.FixtureRequest) -> list[tuple[Planted, Contest]]:
    return measured(request.param, 0.03)


def test_at_three_percent_noise_less_than_two_percent_is_lost(smooth: list[tuple[Planted, Contest]]) -> None:
    means = [each.regret().mean or 0.0 for _, each in smooth]
    assert np.mean(means) <= 0.005
    assert share([mean <= 0.02 for mean in means]) >= 0.9
    assert max(means) <= 0.05


def test_a_threshold_planted_elsewhere_loses_far_more(smooth: list[tuple[Planted, Contest]]) -> None:
    """The negative control of the regret."""
    means = []
    for planted, each in smooth:
        assert planted.at is not None
        other = [Range(1, round(planted.at / 4), plant.BASELINE, (plant.BASELINE,))]
        other += [Range(round(planted.at / 4) + 1, DOUBLING[-1], "local", ("local",))]
        losses = [each.loss(size, other) for size in each.sizes[1:-1]]
        means.append(Regret(tuple(loss for loss in losses if loss)).mean or 0.0)
    assert np.mean(means) > 0.1


def test_sizes_in_another_order_lose_far_more() -> None:
    """The negative control of leaving sizes out: neighbours then say nothing of a size."""
    rng = np.random.default_rng(3)
    planted = plant.powers(rng, 1024)
    shuffled = dict(zip(DOUBLING, rng.permutation(DOUBLING).tolist(), strict=True))
    mixed = Planted({name: partial(lambda law, n: law(shuffled[n]), law) for name, law in planted.laws.items()})
    lost = [plant.contest(each, DOUBLING, 0.03, 0).regret().mean or 0.0 for each in (planted, mixed)]
    assert lost[0] < 0.02
    assert lost[1] > 0.2


@pytest.mark.parametrize("noise", [0.03, 0.1])
def test_the_interval_holds_the_planted_threshold(noise: float) -> None:
    held = []
    for planting in (plant.powers, plant.overheads, plant.jumps):
        for planted, each in measured(planting, noise, 40):
            held += [t.low <= (planted.at or 0) <= t.high for t in thresholds(each)]
    assert len(held) > 100
    assert share(held) >= 0.95


def test_with_a_third_of_its_width_it_would_not() -> None:
    """The negative control."""

    def third(level: Estimate) -> Estimate:
        return replace(level, own=level.own / 9)

    found = measured(plant.powers, 0.1, known=third)
    assert share([t.low <= (planted.at or 0) <= t.high for planted, each in found for t in thresholds(each)]) < 0.85


@pytest.mark.parametrize(
    "planting", [plant.two_alternatives, plant.never, plant.always], ids=lambda each: each.__name__
)
@pytest.mark.parametrize("noise", [0.03, 0.1])
def test_where_a_rule_is_certain_it_is_right(planting: Plant, noise: float) -> None:
    found = [(planted, each.ranges()) for planted, each in measured(planting, noise)]
    assert share([planted.is_wrong(ranges) for planted, ranges in found]) <= 0.05
    assert sum(not each.undecided for _, ranges in found for each in ranges) >= len(found)


def test_two_alternatives_that_pass_one_another_have_two_thresholds() -> None:
    found = measured(plant.two_alternatives, 0.03)
    orders = [[t.above for t in thresholds(each)] for planted, each in found if planted.second < each.sizes[-2]]
    assert len(orders) > 15
    assert all(order == ["local", "performer"] for order in orders)


def test_what_never_or_always_pays_has_one_range() -> None:
    for planting, name in ((plant.never, "softmax"), (plant.always, "local")):
        for _, each in measured(planting, 0.03, 10):
            (only,) = each.ranges()
            assert (only.take, only.undecided) == (name, False)
            assert thresholds(each) == []


def test_a_jump_between_two_sizes_is_undecided_there_and_nowhere_else() -> None:
    for planted, each in measured(plant.jumps, 0.03, 20):
        below = max(n for n in each.sizes if n <= (planted.at or 0))
        above = min(n for n in each.sizes if n > (planted.at or 0))
        first, middle, last = each.ranges()
        assert (first.take, first.undecided, last.take, last.undecided) == ("softmax", False, "local", False)
        assert below <= middle.low <= middle.high <= above
        assert (middle.take, middle.among) == ("softmax", ("softmax", "local"))


def test_inside_an_undecided_range_the_cheapest_may_be_taken_instead() -> None:
    lost = {}
    for inside in ("baseline", "cheapest"):
        found = measured(plant.jumps, 0.03, 20, inside=inside)
        lost[inside] = np.mean([each.regret().mean or 0.0 for _, each in found])
        takes = {r.take for _, each in found for r in each.ranges() if r.undecided}
        assert takes == ({"softmax"} if inside == "baseline" else {"softmax", "local"})
    assert lost["baseline"] > 0.02 > lost["cheapest"]  # a jump is only known to lie between two sizes


@pytest.mark.parametrize("leaves_out", [False, True])
def test_a_rule_changes_where_the_crossover_is(leaves_out: bool) -> None:
    """So do the rules by which losses are judged, each of which has not seen one size."""
    for planted, each in measured(plant.overheads, 0.1, 10, inside="cheapest"):
        near = min(each.sizes[1:-1], key=lambda size: abs(math.log(size / (planted.at or 0))))
        without = near if leaves_out else None
        changes = [b.low for a, b in pairwise(each.ranges(without)) if a.take != b.take]
        pairs = [pair for pair in each.pairs[0, 1] if pair.size != without]
        assert changes == [math.ceil(crossing.at) for crossing in crossover(pairs).crossings if crossing.at]


@pytest.mark.parametrize("inside", get_args(Inside))
def test_a_threshold_says_from_where_on_the_rule_takes_the_other_arm(inside: Inside) -> None:
    for _, each in measured(plant.overheads, 0.1, 10, inside=inside):
        ranges = each.ranges()
        for threshold in each.thresholds(ranges):
            starts = [b.low for a, b in pairwise(ranges) if (a.take, b.take) == (threshold.below, threshold.above)]
            assert starts == [threshold.start]
            assert threshold.start == (threshold.high if inside == "baseline" else math.ceil(threshold.at or 0))


def test_ranges_follow_one_another_and_cover_the_sizes() -> None:
    for planting in (plant.two_alternatives, plant.jumps, plant.overheads):
        for _, each in measured(planting, 0.1, 10):
            ranges = each.ranges()
            assert (ranges[0].low, ranges[-1].high) == (each.sizes[0], each.sizes[-1])
            assert all(a.high + 1 == b.low for a, b in pairwise(ranges))
            assert take(ranges, 1) is ranges[0]
            assert take(ranges, 1e9) is ranges[-1]
            assert all(take(ranges, end) is r for r in ranges for end in (r.low, r.high))


def test_a_loss_within_noise_is_not_told_apart_and_reported_as_it_is() -> None:
    losses = [loss for _, each in measured(plant.powers, 0.1, 40) for loss in each.regret().losses if loss.loss]
    small = [loss for loss in losses if loss.low <= 0]
    assert small
    assert all(loss.loss > 0 and not loss.told_apart for loss in small)
    assert all(loss.low <= loss.loss <= loss.high for loss in losses)
    half = (small[0].high - small[0].low) / 2
    nothing = replace(small[0], loss=0.0, low=0.0, high=0.0)
    assert Regret((small[0], nothing)).half_width == pytest.approx(half / 2)
    assert Regret((small[0], small[0])).half_width == pytest.approx(half / 2**0.5)
    assert Regret((nothing,)).half_width is None


LAWS = {"softmax": lambda n: 1e-9 * n**2, "local": lambda n: 1e-6 * n, "identity": lambda n: 1e-7}
SIZES = (256, 512, 1024, 2048, 4096)


def test_an_arm_that_ran_out_of_memory_is_not_taken_beyond_its_last_size() -> None:
    slow = {"softmax": lambda n: 1e-9 * n**1.1, "local": lambda n: 1e-6 * n}
    run = laws(SIZES, slow, statuses={("softmax", 2048): "oom", ("softmax", 4096): "oom"}, own=0.005)
    (only,) = dispatch([run], "wall_time").panels
    assert [(r.low, r.high, r.take) for r in only.ranges] == [(256, 1024, "softmax"), (1025, 4096, "local")]


def test_an_arm_that_failed_at_a_size_is_not_taken_around_it() -> None:
    fast = {"softmax": lambda n: 1e-6 * n, "local": lambda n: 1e-7 * n}
    run = laws(SIZES, fast, statuses={("local", 1024): "wrong"}, own=0.005)
    (only,) = dispatch([run], "wall_time").panels
    parts = [(r.low, r.high, r.take) for r in only.ranges]
    assert parts == [(256, 512, "local"), (513, 2047, "softmax"), (2048, 4096, "local")]
    losses = {loss.size: loss.loss for loss in only.regret.losses}
    assert losses[1024] == math.inf  # a rule that has not seen the failure takes it
    assert only.regret.mean == math.inf


def test_where_every_arm_failed_nothing_is_known_and_the_baseline_is_taken() -> None:
    both: dict[tuple[str, int], str] = {("softmax", 1024): "error", ("local", 1024): "error"}
    for inside in get_args(Inside):
        (only,) = dispatch([laws(SIZES, LAWS, statuses=both, own=0.005)], "wall_time", inside=inside).panels
        assert Range(513, 2047, "softmax", ()) in only.ranges
        assert take(only.ranges, 1000).undecided


def test_two_images_of_as_many_tokens_have_one_place() -> None:
    shapes = [(8, 8), (8, 16), (16, 8), (16, 16), (32, 32)]
    problems = [Problem.image(*shape, 64, 4) for shape in shapes]
    statuses = {("local", problems[1]): "error"}
    laws = {"softmax": lambda p: 1e-6 * p.seq_len, "local": lambda p: 1e-7 * p.seq_len}
    for failed in ({}, statuses):
        (only,) = dispatch(
            [planted_runs.planted(laws, problems, statuses=failed)], "wall_time", axis="image_size"
        ).panels
        assert [(r.low, r.high, r.take) for r in only.ranges] == [(64, 1024, "local")]


def test_between_heads_of_keys_are_only_those_that_divide_the_heads_of_queries() -> None:
    problems = [Problem(256, 64, 8, kv_heads=n) for n in (1, 8)]
    laws = {"softmax": lambda p: 1e-6 * p.kv_heads, "local": lambda p: 2.5e-6}

    def parts(along: str, problems: list[Problem], laws: dict[str, Any]) -> list[tuple[int, int]]:
        (rules,) = dispatch([planted_runs.planted(laws, problems, own=1e-4)], "wall_time", axis=along).panels
        return [(each.low, each.high) for each in rules.ranges]

    assert parts("kv_heads", problems, laws) == [(1, 1), (2, 2), (4, 4), (8, 8)]
    batches = [Problem(256, 64, 8, batch=n) for n in (1, 8)]  # a batch of three is one
    of_batches = {"softmax": lambda p: 1e-6 * p.batch, "local": lambda p: 2.5e-6}
    assert parts("batch", batches, of_batches) == [(1, 1), (2, 2), (3, 7), (8, 8)]


def test_one_round_has_thresholds_without_intervals() -> None:
    (only,) = dispatch([laws(SIZES, LAWS, rounds=1, own=0.005)], "wall_time").panels
    assert [r.undecided for r in only.ranges] == [False, False]
    (threshold,) = only.thresholds
    assert threshold.high - threshold.low == 1
    assert 900 < (threshold.at or 0) < 1100
    assert only.regret.told_apart == 0
    assert only.regret.half_width is None


def test_the_arms_are_exact_softmax_and_what_is_asked_for() -> None:
    several = {**LAWS, "softmax:sdpa": lambda n: 0.8e-9 * n**2, "performer": lambda n: 2e-6 * n}
    run = laws(SIZES, several)

    def arms(*operators: str, baseline: str | None = None) -> list[tuple[str, bool, bool]]:
        (only,) = dispatch([run], "wall_time", operators, baseline).panels
        return [(arm.name, arm.exact, arm.baseline) for arm in only.arms]

    exact = [("softmax", True, True), ("softmax:sdpa", True, True)]
    assert arms() == [*exact, ("local", False, False), ("performer", False, False)]
    assert arms("local") == [*exact, ("local", False, False)]
    assert arms("softmax:sdpa", baseline="local") == [("local", False, True), ("softmax:sdpa", True, False)]
    assert arms("softmax", baseline="softmax:sdpa") == [("softmax:sdpa", True, True), ("softmax", True, False)]


@pytest.mark.parametrize(
    ("sizes", "names", "options", "message"),
    [
        (SIZES, ["softmax", "local"], {"operators": ["nosuch"]}, r"--operator nosuch: .* It has local, softmax\. Give"),
        (SIZES, ["softmax", "local", "identity"], {"operators": ["identity"]}, "--operator identity: "),
        (SIZES, ["softmax", "local"], {"baseline": "nosuch"}, "--baseline nosuch: this run has no such series"),
        (SIZES, ["local", "performer"], {}, "no exact softmax to compare with; it has local, performer"),
        (SIZES, ["softmax"], {}, r"of its arms 1 was measured, and it takes two \(1 panel\)\. Give"),
        (SIZES[:1], ["softmax", "local"], {}, "it has one size, and thresholds lie between sizes"),
        (
            SIZES,
            ["softmax", "local"],
            {"metric": "flops"},
            "--metric flops: not taken in timed rounds.* allowed: .*wall_time",
        ),
        (SIZES, ["softmax", "local"], {"metric": "energy"}, "--metric energy: .* has no figure of it"),
        (SIZES, ["softmax", "local"], {"axis": "channels"}, "--axis channels: this run does not vary it"),
    ],
)
def test_what_has_no_rules_is_told(
    sizes: tuple[int, ...], names: list[str], options: dict[str, object], message: str
) -> None:
    run = laws(sizes, {name: lambda n: 1e-6 * n for name in names})
    with pytest.raises(BadInput, match=message):
        dispatch([run], **{"metric": "wall_time", **options})  # type: ignore[arg-type]


def test_two_runs_of_one_panel_are_refused() -> None:
    run = laws(SIZES, LAWS)
    with pytest.raises(BadInput, match="run 1 and run 2 both have it"):
        dispatch([run, run], "wall_time")


def test_a_panel_without_the_baseline_is_left_out_with_the_reason() -> None:
    both = [visits_of([(cell(name, sequence(n, c)), law(n), {}) for n in SIZES]) for name, law, c in THREE]
    rules = dispatch([run_of([visit for each in both for visit in each])], "wall_time", axis="seq_len")
    assert [panel.key["channels"] for panel in rules.panels] == [64]
    ((title, reason),) = rules.left_out
    assert "channels 128" in title
    assert reason == "it has no baseline"


THREE = (("softmax", LAWS["softmax"], 64), ("local", LAWS["local"], 64), ("local", LAWS["local"], 128))


def test_a_search_measures_each_operator_at_sizes_of_its_own() -> None:
    """As `attnbench crossover` does: two alternatives meet at no size but the first."""
    sizes = {"local": (256, 900, 1000, 1100, 1800), "performer": (256, 1900, 2000, 2200, 4000)}
    laws = {"softmax": LAWS["softmax"], "local": LAWS["local"], "performer": lambda n: 2e-6 * n}
    every = {"softmax": sorted({n for each in sizes.values() for n in each}), **sizes}
    cells = [(cell(name, sequence(n)), laws[name](n), {}) for name in every for n in every[name]]
    (only,) = dispatch([run_of(visits_of(cells, own=0.005, contract="3"))], "wall_time").panels
    assert take(only.ranges, 300).take == "softmax"
    assert take(only.ranges, 1500).take == "local"
    assert take(only.ranges, 1850).take == "softmax"  # local was not measured here, and performer is dearer
    assert take(only.ranges, 3000).take == "performer"
    assert all(loss.loss < 0.05 for loss in only.regret.losses)
    assert [loss.size for loss in only.regret.losses] == [900, 1000, 1100, 1900, 2000, 2200]
