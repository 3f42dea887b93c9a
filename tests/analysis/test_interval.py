from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from attnbench.analysis.distributions import t_quantile
from attnbench.analysis.interval import Estimate, estimates, intervals, moderate, ratio, ratio_half_width

OFFSET = 0.04


def simulate(
    rng: np.random.Generator,
    cells: int,
    rounds: int,
    *,
    process: float = 0.0,
    own: float = 0.0,
    spread: float = 0.0,
    lost: float = 0.0,
    one_process_per_visit: bool = False,
) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """True log levels, standard deviations per cell, and visits of a run."""
    level = rng.normal(0, 2, cells)
    deviation = own * np.exp(rng.normal(0, spread, cells))
    rows, worker = [], 0
    for round_ in range(1, rounds + 1):
        worker += 1
        offset = rng.normal(0, process)
        for cell in rng.permutation(cells):
            if one_process_per_visit:
                worker += 1
                offset = rng.normal(0, process)
            if rng.random() >= lost:
                time = math.exp(level[cell] + offset + rng.normal(0, deviation[cell]))
                rows.append((f"c{cell}", round_, worker, "ok", time))
    return level, deviation, pd.DataFrame(rows, columns=["key", "round", "process", "status", "wall_time_s"])


def coverage(seed: int, rounds: int, *, relative: bool, repeats: int = 40, cells: int = 24, **model: float | bool):
    """Share of intervals that hold the truth, and the median width over that of one who knows the variances."""
    rng = np.random.default_rng(seed)
    held, widths = [], []
    together = bool(model.get("one_process_per_visit"))
    for _ in range(repeats):
        level, deviation, visits = simulate(rng, cells, rounds, **model)  # type: ignore[arg-type]
        found = estimates(visits, "wall_time_s")
        per_visit = deviation**2 + (float(model.get("process", 0)) ** 2 if together or not relative else 0.0)
        for cell in range(cells):
            other = (cell + 1) % cells
            a, b = found.get(f"c{cell}"), found.get(f"c{other}")
            if a is None or b is None or not (a.has_interval and b.has_interval):
                continue
            if relative:
                error = a.level - b.level - level[cell] + level[other]
                half, variance = ratio_half_width(a, b), per_visit[cell] / a.rounds + per_visit[other] / b.rounds
            else:
                error, half, variance = a.level - level[cell], a.half_width, per_visit[cell] / a.rounds
            held.append(abs(error) <= half)
            widths.append(half / (t_quantile(math.inf) * math.sqrt(variance)))
    return float(np.mean(held)), float(np.median(widths))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("rounds", [2, 3, 5])
def test_holds_the_truth_when_every_visit_has_its_own_offset(rounds: int, seed: int) -> None:
    model = {"process": OFFSET, "one_process_per_visit": True}
    for relative in (False, True):
        held, width = coverage(seed, rounds, relative=relative, **model)
        assert held >= 0.93
        assert width <= 1.5


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("rounds", [2, 3, 5])
def test_ratios_within_one_process_are_narrow(rounds: int, seed: int) -> None:
    held, width = coverage(seed, rounds, relative=True, process=OFFSET, own=0.02)
    assert held >= 0.93
    assert width <= 1.5


@pytest.mark.parametrize("seed", [7, 8, 9])
@pytest.mark.parametrize("rounds", [2, 3, 5])
def test_absolute_values_know_that_rounds_differ_as_a_whole(rounds: int, seed: int) -> None:
    held, _ = coverage(seed, rounds, relative=False, repeats=200, cells=12, process=OFFSET, own=0.01)
    assert held >= 0.93


@pytest.mark.parametrize("rounds", [2, 3])
def test_noisy_cells_and_lost_visits(rounds: int) -> None:
    for model in ({"spread": 0.6}, {"lost": 0.15}):
        held, width = coverage(5, rounds, relative=True, own=0.03, process=0.03, **model)
        assert held >= 0.93
        assert width <= 1.5


def test_per_cell_and_plainly_pooled_intervals_would_fail() -> None:
    """The negative control: what the moderated, two-part interval is compared with does miss the truth."""
    rng = np.random.default_rng(3)
    alone, pooled = [], []
    for _ in range(200):
        level, _, visits = simulate(rng, 12, 2, process=OFFSET, own=0.01)
        logs = np.log(visits["wall_time_s"]).groupby(visits["key"])
        mean, variance = logs.mean(), logs.var()
        for cell in range(12):
            error = abs(mean[f"c{cell}"] - level[cell])
            alone.append(error <= 1.96 * math.sqrt(variance[f"c{cell}"] / 2))
            pooled.append(error <= t_quantile(12) * math.sqrt(variance.mean() / 2))
    assert np.mean(alone) < 0.85
    assert np.mean(pooled) < 0.85


def test_one_round_has_a_value_and_no_interval() -> None:
    _, _, visits = simulate(np.random.default_rng(0), 3, 1, process=OFFSET)
    found = intervals(visits, "wall_time_s")
    assert found["value"].notna().all()
    assert found[["low", "high"]].isna().all(axis=None)


def test_check_and_failed_visits_are_left_out() -> None:
    _, _, visits = simulate(np.random.default_rng(0), 3, 3, own=0.02)
    extra = visits.head(2).assign(round=0, wall_time_s=1e9)
    failed = visits.tail(2).assign(status="wrong", wall_time_s=1e-9)
    pd.testing.assert_frame_equal(
        intervals(pd.concat([extra, visits, failed]), "wall_time_s").sort_index(),
        intervals(visits, "wall_time_s").sort_index(),
    )


def test_a_quantity_that_repeats_exactly_has_an_interval_of_no_width() -> None:
    _, _, visits = simulate(np.random.default_rng(0), 4, 3)
    found = intervals(visits, "wall_time_s")
    np.testing.assert_allclose(found["low"], found["high"], rtol=1e-12)


def test_a_cell_that_missed_a_slow_round_is_not_called_fast() -> None:
    _, _, visits = simulate(np.random.default_rng(0), 12, 3, own=0.001)
    visits.loc[visits["round"] == 2, "wall_time_s"] *= 2
    whole = estimates(visits, "wall_time_s")
    without = estimates(visits[~((visits["round"] == 2) & (visits["key"] == "c4"))], "wall_time_s")
    assert without["c4"].level == pytest.approx(whole["c4"].level, abs=0.03)
    assert without["c4"].rounds == 2


def test_cells_that_no_process_shares_keep_their_own_levels() -> None:
    """Two groups of cells, each visited by workers of its own, at speeds that have nothing to do with each other."""
    _, _, near = simulate(np.random.default_rng(0), 6, 3, process=OFFSET, own=0.01)
    _, _, far = simulate(np.random.default_rng(1), 6, 3, process=OFFSET, own=0.01)
    far = far.assign(key="far" + far["key"], process=far["process"] + 3)
    found = estimates(pd.concat([near, far]), "wall_time_s")
    for visits in (near, far):
        for key, times in visits.groupby("key")["wall_time_s"]:
            assert found[key].level == pytest.approx(np.log(times).mean(), abs=1e-9)


def test_missing_column_and_no_visits_give_nothing() -> None:
    _, _, visits = simulate(np.random.default_rng(0), 2, 2, own=0.01)
    assert estimates(visits, "energy_j") == {}
    assert intervals(visits.head(0), "wall_time_s").empty


def test_like_cells_are_pooled_and_unlike_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    freedom = np.full(400, 2.0)
    like = rng.chisquare(2, 400) / 2
    variance, known = moderate(like, freedom)
    assert known.min() > 10
    assert variance.max() < 3
    unlike = like * np.exp(rng.normal(0, 2, 400))
    variance, known = moderate(unlike, freedom)
    assert known.max() < 6
    assert variance.max() > 20 * np.median(variance)


def test_ratio_of_two_estimates() -> None:
    a, b = (Estimate(math.log(x), 1e-4, math.inf, 1.0, 1.0, 3) for x in (6.0, 2.0))
    value, low, high = ratio(a, b)
    assert value == pytest.approx(3)
    assert high / value == pytest.approx(math.exp(1.95996 * math.sqrt(2e-4)), rel=1e-5)
    assert low * high == pytest.approx(9)


def test_a_cell_of_one_round_borrows_the_variance_of_like_cells() -> None:
    _, _, visits = simulate(np.random.default_rng(0), 24, 3, own=0.02)
    found = estimates(visits[~((visits["key"] == "c4") & (visits["round"] > 1))], "wall_time_s")
    assert found["c4"].rounds == 1
    assert found["c4"].own == pytest.approx(3 * found["c5"].own, rel=1.0)
    assert found["c4"].half_width > found["c5"].half_width
