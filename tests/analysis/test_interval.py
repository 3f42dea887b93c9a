from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from attnbench.analysis import interval
from attnbench.analysis.device_term import connected
from attnbench.analysis.interval import Estimate, estimates, half_widths, ratio, ratio_half_width
from attnbench.analysis.moderation import moderate
from benchmarks.coverage import noise
from benchmarks.coverage.noise import NOISES, visits

BLOCKS, MEMBERS, DRAWS = 4, 8, 20


def of_one_block(cells: int, rounds: int, own: float = 0.0, process: float = 0.04, seed: int = 0) -> pd.DataFrame:
    """Visits of a run of one block; the log of the true time of cell c3 is 3."""
    rng = np.random.default_rng(seed)
    shape = (1, rounds, 1, cells)
    deviations = noise.parts(rng, shape, own * rng.standard_normal(shape), process=process, block=0)
    run = visits(deviations[0], np.arange(cells)[None])
    return run.assign(key="c" + run["operator"].str[1:])


def coverage(
    name: str,
    rounds: int,
    half: Callable[[Estimate, Estimate], float],
    change: Callable[[pd.DataFrame], pd.DataFrame] = lambda run: run,
    *,
    relative: bool = True,
) -> tuple[float, float]:
    """Share of intervals that hold the truth, and their mean width over one that would hold 95 % of the errors.

    Args:
        name: of a noise model.
        half: half the interval, of a cell and the first member of its block.
        change: what to make of the visits first.
        relative: of the ratio to that member; otherwise of the time.
    """
    found = []
    for deviations in NOISES[name].draw(np.random.default_rng(rounds), (DRAWS, rounds, BLOCKS, MEMBERS)):
        levels = estimates(change(visits(deviations, np.zeros((BLOCKS, MEMBERS)))), "wall_time_s")
        for block in range(BLOCKS):
            first = levels[f"{block}.0"]
            for member in range(1, MEMBERS):
                cell = levels[f"{block}.{member}"]
                found.append((abs(cell.level - (first.level if relative else 0)), half(cell, first)))
    error, width = np.array(found).T
    return float(np.mean(error <= width)), float(width.mean() / np.quantile(error, 0.95))


@pytest.mark.parametrize("rounds", [2, 3, 5])
@pytest.mark.parametrize("name", ["Gaussian", "unlike cells", "one slow round", "recorded, loaded"])
def test_ratios_within_a_block_hold_the_truth(name: str, rounds: int) -> None:
    held, width = coverage(name, rounds, ratio_half_width)
    assert 0.9 <= held <= 0.995  # 80 baselines with 7 ratios each
    assert width <= 1.3


def test_a_ratio_that_knows_no_blocks_is_wider_and_one_without_moderation_misses_the_truth() -> None:
    before_turns = coverage("shared 8 %", 3, ratio_half_width, lambda run: run.drop(columns="contract"))
    assert before_turns[1] > 1.3 * coverage("shared 8 %", 3, ratio_half_width)[1]
    held, _ = coverage("unlike cells", 3, lambda a, b: 1.96 * math.sqrt(a.own + b.own))
    assert held < 0.88


@pytest.mark.parametrize("rounds", [2, 3, 5])
def test_times_know_that_blocks_and_rounds_differ_as_a_whole(rounds: int) -> None:
    held, width = coverage("Gaussian", rounds, lambda cell, _: cell.half_width, relative=False)
    assert held >= 0.93
    assert width <= 2.6
    assert coverage("Gaussian", rounds, lambda cell, _: cell.own_half_width, relative=False)[0] < 0.9


@pytest.mark.parametrize("name", ["drift", "one slow round"])
def test_a_trend_and_a_slow_round_do_not_widen_times(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held, width = coverage(name, 5, lambda cell, _: cell.half_width, relative=False)
    assert 0.93 <= held <= 0.995
    monkeypatch.setattr(interval, "ODD", 1e-9)
    assert width < 0.75 * coverage(name, 5, lambda cell, _: cell.half_width, relative=False)[1]


def test_times_are_those_of_the_other_rounds_where_one_is_slow() -> None:
    run = of_one_block(8, 6, own=0.01)
    slowed = run["round"] == 4
    odd = estimates(run.assign(wall_time_s=run["wall_time_s"] * np.where(slowed, 1.5, 1)), "wall_time_s")
    without = estimates(run[~slowed], "wall_time_s")
    for key, level in odd.items():
        assert level.level == pytest.approx(without[key].level, abs=0.02)
        assert level.shared == pytest.approx(without[key].shared, rel=0.1)
    fast = estimates(run.assign(wall_time_s=run["wall_time_s"] / np.where(slowed, 1.5, 1)), "wall_time_s")
    assert fast["c3"].level < without["c3"].level - 0.04, "what else runs only ever adds time: a fast round counts"


def test_the_baseline_of_a_split_block_is_compared_part_by_part() -> None:
    """Two parts of a block with offsets of their own, the baseline in both."""
    run = of_one_block(5, 3, own=0.001)
    second = of_one_block(5, 3, own=0.001).assign(part=1)
    second["wall_time_s"] *= 1.5
    parts = pd.concat([run[run["key"].isin(["c0", "c1", "c2"])], second[second["key"].isin(["c0", "c3", "c4"])]])
    found, whole = estimates(parts, "wall_time_s"), estimates(run, "wall_time_s")
    for key in ("c1", "c3"):
        split = found[key].level - found["c0"].level
        assert split == pytest.approx(whole[key].level - whole["c0"].level, abs=0.005)
    merged = estimates(parts.assign(part=0), "wall_time_s")
    assert abs(merged["c3"].level - merged["c0"].level - whole["c3"].level + whole["c0"].level) > 0.1


def test_a_cell_in_a_process_of_its_own_has_its_offset_among_its_residuals() -> None:
    run = of_one_block(8, 5, own=0.001)
    run.loc[run["key"] == "c3", "process"] += 5
    assert moved(run)["c3"].own > 20 * moved(run)["c4"].own


def moved(run: pd.DataFrame) -> dict[str, Estimate]:
    """Estimates where the processes of c3 were slower or faster than those of the others."""
    factor = np.exp(0.05 * np.random.default_rng(1).standard_normal(11))[run["process"]]
    return estimates(run.assign(wall_time_s=run["wall_time_s"] * factor), "wall_time_s")


def test_later_rounds_may_have_fewer_cells() -> None:
    """A cell of three rounds is compared in these alone with cells of 24, of which more is known."""
    pairs: dict[str, list[tuple[float, float]]] = {"c1": [], "c5": []}
    for seed in range(120):
        run = of_one_block(8, 24, own=0.03, seed=seed)
        few = estimates(run[(run["round"] <= 3) | run["key"].isin(["c0", "c1"])], "wall_time_s")
        for key, found in pairs.items():
            found.append((few[key].level - few["c0"].level - int(key[1:]), few[key].own + few["c0"].own))
        assert few["c5"].shared == pytest.approx(few["c0"].shared), "their times are known by the same rounds"
    for found in pairs.values():
        error, variance = np.array(found).T
        assert np.sqrt(variance.mean()) == pytest.approx(error.std(), rel=0.1)
    alone = 0.03 * math.sqrt(1 / 3 + 1 / 24)
    assert np.std([error for error, _ in pairs["c5"]]) > 1.1 * alone


def test_one_round_has_a_value_and_no_interval() -> None:
    run = of_one_block(3, 1)
    for key, level in estimates(run, "wall_time_s").items():
        assert level.level == pytest.approx(float(key[1:]), abs=0.2)
        assert not level.has_interval
        assert math.isnan(level.half_width)


def test_check_and_failed_visits_are_left_out() -> None:
    run = of_one_block(3, 3, own=0.02)
    extra = run.head(2).assign(round=0, wall_time_s=1e9)
    failed = run.tail(2).assign(status="wrong", wall_time_s=1e-9)
    assert estimates(pd.concat([extra, run, failed]), "wall_time_s") == estimates(run, "wall_time_s")


def test_a_quantity_that_repeats_exactly_has_an_interval_of_no_width() -> None:
    run = of_one_block(4, 3, process=0)
    assert {level.half_width for level in estimates(run, "wall_time_s").values()} == {0.0}


def test_what_rounding_leaves_of_common_offsets_is_no_noise() -> None:
    repeated, noisy = (estimates(of_one_block(4, 3, own=own), "wall_time_s").values() for own in (0.0, 1e-9))
    assert {(level.own, level.own_freedom) for level in repeated} == {(0.0, math.inf)}
    assert {level.half_width > 0.01 for level in repeated} == {True}  # the offsets are noise
    assert all(0 < level.own < 1e-16 for level in noisy)


def test_a_cell_that_missed_a_slow_round_is_not_called_fast() -> None:
    run = of_one_block(12, 3, own=0.001)
    run.loc[run["round"] == 2, "wall_time_s"] *= 2
    whole = estimates(run, "wall_time_s")
    without = estimates(run[~((run["round"] == 2) & (run["key"] == "c4"))], "wall_time_s")
    assert without["c4"].level == pytest.approx(whole["c4"].level, abs=0.03)
    assert without["c4"].rounds == 2


def test_cells_that_no_process_shares_keep_their_own_levels() -> None:
    """Two groups of cells, each visited by workers of its own, at speeds that have nothing to do with each other."""
    near = of_one_block(6, 3, own=0.01)
    far = of_one_block(6, 3, own=0.01, seed=1)
    far = far.assign(key="far" + far["key"], process=far["process"] + 3)
    found = estimates(pd.concat([near, far]), "wall_time_s")
    for run in (near, far):
        for key, times in run.groupby("key")["wall_time_s"]:
            assert found[key].level == pytest.approx(np.log(times).mean(), abs=1e-9)


def test_missing_column_and_no_visits_give_nothing() -> None:
    run = of_one_block(2, 2, own=0.01)
    assert estimates(run, "energy_j") == {}
    assert estimates(run.head(0), "wall_time_s") == {}


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
    run = of_one_block(24, 3, own=0.02)
    found = estimates(run[~((run["key"] == "c4") & (run["round"] > 1))], "wall_time_s")
    assert found["c4"].rounds == 1
    assert found["c4"].own == pytest.approx(3 * found["c5"].own, rel=1.0)
    assert found["c4"].half_width > found["c5"].half_width


def test_blocks_that_are_fitted_together_are_as_each_alone() -> None:
    """Three blocks of other shapes: whole; a cell without the last round; two parts that one cell connects."""
    layouts = (
        [(cell, group) for group in range(4) for cell in range(3)],
        [(cell, group) for group in range(3) for cell in range(5) if (cell, group) != (4, 2)],
        [(0, 0), (1, 0), (0, 1), (2, 1), (0, 2), (1, 2), (0, 3), (2, 3)],
    )
    rng = np.random.default_rng(5)
    alone, together, begin = [], [], np.zeros(2, dtype=np.int64)
    for number, layout in enumerate(layouts):
        cells, groups = np.array(layout).T
        logs, weight = rng.normal(size=len(layout)), rng.uniform(1, 3, cells.max() + 1)
        typical = groups != 1
        alone.append(interval._offsets(logs, cells, np.zeros_like(cells), groups, weight, typical))
        block = np.full(len(layout), number)
        together.append((logs, cells + begin[0], block, groups + begin[1], weight, typical))
        begin += cells.max() + 1, groups.max() + 1
        offset = alone[-1][0]
        # The normal equations hold, and typical offsets average 0: once for each group.
        around = logs - offset - (np.bincount(cells, weights=logs - offset) / np.bincount(cells))[cells]
        assert np.bincount(groups, weights=weight[cells] * around) == pytest.approx(0, abs=1e-12)
        assert offset[[list(groups).index(group) for group in set(groups[typical].tolist())]].mean() == pytest.approx(0)
        assert alone[-1][1].sum() == pytest.approx(groups.max())
    every = interval._offsets(*(np.concatenate(columns) for columns in zip(*together, strict=True)))
    for joint, each in zip(every, zip(*alone, strict=True), strict=True):
        assert joint == pytest.approx(np.concatenate(each))
    assert not every[3].any()
    cells, groups = np.array([(cell, group + 2 * (cell > 1)) for cell in range(4) for group in range(2)]).T
    logs, every_one = rng.normal(size=8), np.ones(8, dtype=bool)
    assert interval._offsets(logs, cells, np.zeros_like(cells), groups, np.ones(4), every_one)[3].all()


def test_a_block_is_split_where_no_cell_connects_two_groups_with_offsets() -> None:
    """Also where a visit alone in its group holds one of the sets in its place."""
    rng = np.random.default_rng(0)
    splits = []
    for _ in range(300):
        of_cell, of_group = (rng.integers(0, 2, 8) for _ in range(2))
        cells, groups = np.nonzero((rng.random((8, 8)) < 0.6) & ((of_cell[:, None] == of_group) | (rng.random() < 0.5)))
        cells, groups = (np.unique(each, return_inverse=True)[1] for each in (cells, groups))
        weight, typical = np.ones(cells.max() + 1), np.ones(len(cells), dtype=bool)
        offset, *_, split = interval._offsets(rng.normal(size=len(cells)), cells, 0 * cells, groups, weight, typical)
        here = ~np.isnan(offset)
        sets = connected(cells[here], groups[here])
        alone = np.bincount(groups)[groups] == 1
        assert split.tolist() == [sets > 1] * len(weight)
        splits.append((sets > 1, bool(alone.any())))
    assert {(True, True), (True, False), (False, True), (False, False)} <= set(splits)


def test_many_half_widths_at_once_are_those_of_each() -> None:
    each = [
        Estimate(0.0, own, freedom, shared, 7.3, 3, confidence)
        for own, freedom, shared, confidence in (
            *((1e-3, 2.2 + i, 2e-3, 0.95) for i in range(3)), (0.0, math.inf, 0.0, 0.95), (1e-3, 4.5, 0.0, 0.98),
        )
    ]  # fmt: skip
    assert half_widths(each).tolist() == pytest.approx([estimate.half_width for estimate in each], rel=1e-5)
    assert half_widths([replace(each[0], own=math.nan)]).tolist() == pytest.approx([math.nan], nan_ok=True)
    assert len(half_widths([])) == 0
    wild = Estimate(-7.0, 9e4, 0.5, 0.0, 1.0, 2)
    assert wild.half_width == half_widths([wild])[0] == interval.WIDEST, "an end is still a number"
