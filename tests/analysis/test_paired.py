"""The sequential decision on pairs, simulated: what is promised is held, and a simpler rule does not hold it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pytest

from attnbench.analysis.compare.tier1_paired import (
    COMPANY,
    LOOKS,
    Change,
    PairedTest,
    changes,
    looks_until,
    relative,
    spread,
)
from benchmarks.gate_rules import Outcome, gate

Floats = npt.NDArray[np.float64]
BLOCKS = (0, 0, 0, 0, 1, 1, 1, 1)
KEYS = [f"op{i}.reference.core.fwd.float32.full.b1.h4.c64.n{64 * (i + 1)}.p0" for i in range(len(BLOCKS))]
UNLIKE = np.array([0.005, 0.04, 0.01, 0.02, 0.05, 0.005, 0.03, 0.01])


def noise(seed: int, own: Floats | float = 0.02, shared: float = 0.01, suites: int = 1) -> Floats:
    """Log ratios of pairs of unchanged code, [suites, pairs, cells]."""
    rng = np.random.default_rng(seed)
    shape = (suites, LOOKS[-1], len(BLOCKS))
    return np.asarray(rng.normal(0, 1, shape) * own + shared * rng.normal(0, 1, (*shape[:2], 1)))


def slower(logs: Floats, cells: Mapping[int, float]) -> Floats:
    """The same, some cells slower by a share."""
    shift = np.zeros(logs.shape[-1])
    for cell, share in cells.items():
        shift[cell] = math.log1p(share)
    return logs + shift


def naive(logs: Floats) -> Outcome:
    """One variance for all cells, from all pairs as if they were independent; looked at until something is seen."""
    open_ = set(range(logs.shape[1]))
    verdicts = ["undecided"] * len(open_)
    for look in LOOKS:
        sd = (logs[:look] - logs[:look].mean(axis=0)).std() / look**0.5
        for cell in sorted(open_):
            level = logs[:look, cell].mean()
            if level - 1.64 * sd > 0 and level > math.log1p(0.05) / 2:
                verdicts[cell] = "slower"
            elif level + 1.64 * sd < math.log1p(0.05):
                verdicts[cell] = "same"
        open_ = {cell for cell in open_ if verdicts[cell] == "undecided"}
        if not open_:
            break
    return Outcome(tuple(verdicts), look, 0)  # type: ignore[arg-type]


def alarms(rule: Callable[[Floats], Outcome], suites: Floats) -> float:
    return float(np.mean([rule(logs).slower(range(len(BLOCKS))) for logs in suites]))


def by_gate(logs: Floats) -> Outcome:
    return gate(logs, BLOCKS)


@pytest.mark.parametrize(("own", "shared"), [(UNLIKE, 0.01), (0.01, 0.08)], ids=["unlike cells", "shared noise"])
def test_false_alarms_are_rare_where_a_naive_rule_has_many(own: Floats | float, shared: float) -> None:
    suites = noise(1, own, shared, suites=60)
    assert alarms(by_gate, suites) == 0
    assert alarms(naive, suites) > 0.1


@pytest.mark.parametrize(("own", "shared"), [(0.02, 0.01), (0.01, 0.08)], ids=["own noise", "shared noise"])
def test_one_slow_operator_is_found_and_no_other_is_blamed(own: float, shared: float) -> None:
    suites = slower(noise(2, own, shared, suites=40), {3: 0.05, 7: 0.05})
    outcomes = [gate(logs, BLOCKS) for logs in suites]
    assert sum(outcome.slower([3, 7]) for outcome in outcomes) >= 36
    assert not any(outcome.slower([0, 1, 2, 4, 5, 6]) for outcome in outcomes)
    twice = [gate(logs, BLOCKS) for logs in slower(suites, {3: 0.05, 7: 0.05})]
    assert sum(outcome.slower([3, 7]) for outcome in twice) == 40
    assert np.mean([o.pairs for o in twice]) < np.mean([o.pairs for o in outcomes])


def test_under_shared_noise_company_finds_what_a_cell_alone_does_not_show() -> None:
    suites = slower(noise(3, 0.01, 0.08, suites=20), {0: 0.05})[:, :60]
    found = sum(gate(logs, BLOCKS).slower([0]) for logs in suites)
    alone = sum(gate(logs[:, : COMPANY - 1], (0,) * (COMPANY - 1)).slower([0]) for logs in suites)
    assert found >= 18
    assert alone <= found - 5


def test_all_cells_slower_is_found_too() -> None:
    (logs,) = slower(noise(4), dict.fromkeys(range(len(BLOCKS)), 0.15))
    assert set(gate(logs, BLOCKS).verdicts) == {"slower"}


def test_others_that_become_faster_make_no_cell_slower() -> None:
    """Its change relative to its block is 10 %, its own is none."""
    (logs,) = slower(noise(5, 0.01, 0.005), dict.fromkeys(range(1, len(BLOCKS)), -0.1))
    verdicts = gate(logs, BLOCKS).verdicts
    assert verdicts[0] == "same"
    assert "slower" not in verdicts


def test_less_than_half_the_threshold_is_never_slower_however_sure() -> None:
    for share, expected in ((0.015, "same"), (0.05, "slower"), (0.0, "same"), (-0.3, "faster")):
        (logs,) = slower(noise(6, 0.001, 0.001), {2: share})
        outcome = gate(logs, BLOCKS)
        assert outcome.verdicts[2] == expected
        assert outcome.pairs <= 6


def test_few_decisions_need_few_pairs_and_what_is_decided_is_measured_no_more() -> None:
    (logs,) = noise(8, np.array([0.06, *[0.005] * 7]), 0.002)
    outcome = gate(logs, BLOCKS)
    assert set(outcome.verdicts) == {"same"}
    assert outcome.pairs > LOOKS[2]
    assert outcome.visits < 0.6 * outcome.pairs * len(BLOCKS)
    (calm,) = noise(7, 0.005, 0.002)
    assert gate(calm, BLOCKS).pairs == LOOKS[0]


def test_too_few_pairs_are_undecided_with_what_is_still_possible() -> None:
    (logs,) = noise(7, 0.1, 0.1)
    test = decided(logs[:3], (3,))
    assert {d.verdict for d in test.decided.values()} == {"undecided"}
    findings = test.findings(np.ones((3, 8)), np.exp(logs[:3]))
    assert all(f.high is not None and f.high > 1.05 for f in findings)
    one = decided(logs[:1], (1,)).findings(np.ones((1, 8)), np.exp(logs[:1]))
    assert {(f.verdict, f.low, f.reason) for f in one} == {("undecided", None, "no interval from 1 pair")}


def decided(logs: Floats, looks: tuple[int, ...], thresholds: Mapping[str, float | None] | None = None) -> PairedTest:
    """The test after its looks at all pairs."""
    test = PairedTest("wall_time", thresholds or dict.fromkeys(KEYS, 0.05), BLOCKS, looks, len(KEYS))
    for look in looks:
        test.look(logs[:look])
    return test


def test_a_cell_without_a_threshold_is_judged_adds_no_pair_and_never_fails() -> None:
    (logs,) = slower(noise(9, 0.002, 0.001), {0: 0.5})
    logs[:, 1] = np.random.default_rng(9).normal(0, 1, len(logs))
    test = decided(logs, LOOKS[:2], {key: None if i < 2 else 0.05 for i, key in enumerate(KEYS)})
    assert test.measured == []
    first, second, *_ = test.findings(np.ones_like(logs), np.exp(logs))
    assert (first.verdict, first.regression, second.verdict) == ("slower", False, "undecided")
    gated = decided(logs, LOOKS[:2])
    assert KEYS[1] in gated.measured
    assert gated.findings(np.ones_like(logs), np.exp(logs))[0].regression


def test_a_cell_without_any_time_is_undecided_and_given_up() -> None:
    (logs,) = noise(10, 0.002, 0.001)
    logs[:, 4] = np.nan
    logs[::2, 5] = np.nan
    test = decided(logs, LOOKS[:3])
    assert test.measured == []
    lost, half, *_ = test.findings(np.ones_like(logs), np.exp(logs))[4:]
    assert (lost.verdict, lost.ratio, lost.before) == ("undecided", None, None)
    assert lost.reason == "no pair of processes gave a time on both sides"
    assert half.verdict == "same"


def test_the_noise_is_recovered_with_cells_that_stop_early() -> None:
    logs = noise(11, 0.02, 0.05)[0, :60]
    for stopped in (logs, np.where((np.arange(60)[:, None] > 20) & (np.arange(8) > 4), np.nan, logs)):
        found = spread(stopped)
        assert found.shared[0] == pytest.approx(0.05**2, rel=0.6)
        assert np.sqrt(found.own) == pytest.approx(0.02, rel=0.4)
    alone = spread(np.where((np.arange(60)[:, None] > 3) & (np.arange(8) > 0), np.nan, logs))
    assert (alone.shared[0], alone.own_freedom[0]) == (0, 59)
    assert alone.own[0] == pytest.approx(0.02**2 + 0.05**2, rel=0.5)


def test_relative_changes_need_company_in_the_same_pair() -> None:
    logs = np.array([[0.3, 0.1, 0.2, 0.0], [0.3, np.nan, 0.2, 0.0], [np.nan, 0.1, 0.2, 0.0]])
    assert relative(logs, [1, 2, 3], 0) == pytest.approx([0.2])


def test_the_bounds_of_all_looks_together_err_as_promised() -> None:
    """A slow-down of exactly the threshold is missed in at most 5 % of cells; one bound at each look misses more."""
    rng = np.random.default_rng(12)
    missed = {True: 0, False: 0}
    stops = LOOKS[2:8]
    for logs in rng.normal(math.log1p(0.05), 0.04, (400, stops[-1])):
        for all_looks in missed:
            for look in stops:
                looks = stops if all_looks else (look,)
                (change,) = changes(logs[:look, None], (0,), looks, 1)
                if change.high < math.log1p(0.05):
                    missed[all_looks] += 1
                    break
    assert missed[True] / 400 <= 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / 400)
    assert missed[False] / 400 > 0.1


@pytest.mark.parametrize("beside", [0.02, math.nan])
def test_without_a_lower_end_what_is_detectable_is_a_number(beside: float) -> None:
    change = Change(0.0, -math.inf, 0.04, 0.01, 0.01 - beside)
    assert math.isfinite(change.detectable(0.05))
    assert change.detectable(0.05) > Change(0.0, -0.01, 0.01, 0.01, 0.01 - beside).detectable(0.05)


def test_the_last_look_is_as_asked() -> None:
    assert looks_until(None) == LOOKS
    assert looks_until(2) == (2,)
    assert looks_until(10) == (5, 8, 10)
    assert looks_until(LOOKS[-1]) == LOOKS
    assert looks_until(60) == (5, 8, 12, 18, 27, 40, 60)


@pytest.mark.parametrize(("own", "shared"), [(0.02, 0.005), (UNLIKE, 0.01), (0.01, 0.08)])
def test_a_detectable_slow_down_is_detected_by_the_same_pairs_and_half_of_it_is_not(
    own: Floats | float, shared: float
) -> None:
    """Whatever the change came out as: it follows from the noise alone."""
    looks, known = LOOKS[:2], 0
    shown = {1.0: 0, 0.5: 0}
    for logs in noise(13, own, shared, suites=40)[:, : looks[-1]]:
        change = changes(logs, BLOCKS, looks, len(BLOCKS))[4]
        assert changes(slower(logs, {4: -0.02}), BLOCKS, looks, len(BLOCKS))[4].detectable(0.05) == pytest.approx(
            change.detectable(0.05)
        )
        for share in shown:
            again = slower(logs, {4: share * change.detectable(0.05)})
            shown[share] += changes(again, BLOCKS, looks, len(BLOCKS))[4].verdict(0.05) == "slower"
        known += 1
    assert shown[1.0] >= 0.95 * known
    assert shown[0.5] <= 0.5 * known


@pytest.mark.parametrize(
    ("low", "level", "high", "relative_low", "verdict"),
    [
        (0.03, 0.05, 0.07, math.nan, "slower"),
        (-0.01, 0.03, 0.07, 0.03, "slower"),
        (-0.03, 0.01, 0.04, 0.03, "same"),  # by itself it has not changed
        (0.02, 0.03, 0.04, math.nan, "same"),
        (0.01, 0.03, 0.06, math.nan, "undecided"),
        (-0.3, -0.2, -0.1, math.nan, "faster"),
        (math.nan, math.nan, math.nan, math.nan, "undecided"),
    ],
)
def test_a_verdict_follows_from_the_interval(
    low: float, level: float, high: float, relative_low: float, verdict: str
) -> None:
    assert Change(level, low, high, 0.1, relative_low).verdict(0.05) == verdict
