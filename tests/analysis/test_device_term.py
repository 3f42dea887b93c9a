"""Runs whose rounds were shared out to several devices: intervals know by how much these differ."""

from __future__ import annotations

import numpy as np
import pytest

from attnbench.analysis.interval import estimates
from benchmarks.coverage.devices import SD, SHARES, errors, run_on_devices
from benchmarks.coverage.intervals import judged
from benchmarks.coverage.noise import NOISES, Floats, visits

TWO_EACH = SHARES["4 devices, 2 rounds each"]
DRAWS = 20


def held(pairs: Floats) -> float:
    """The share of intervals that hold the truth."""
    return float(np.mean(np.abs(pairs[0]) <= pairs[1]))


def deviations(rounds: int, name: str = "recorded, loaded") -> Floats:
    drawn: Floats = NOISES[name].draw(np.random.default_rng(1), (1, rounds, 4, 8))
    return drawn[0]


@pytest.mark.parametrize("title", ["4 devices, 2 rounds each", "4 devices, one block on 1 of them"])
def test_intervals_hold_the_truth_of_all_devices_where_these_differ(title: str) -> None:
    times, ratios = errors(np.random.default_rng(0), "recorded, loaded", SHARES[title], DRAWS)
    assert held(ratios) >= 0.92, judged(ratios)
    assert held(times) >= 0.92, judged(times)
    times, ratios = errors(np.random.default_rng(0), "recorded, loaded", SHARES[title], DRAWS, known=False)
    assert held(ratios) < 0.9, "rounds on one device are no replicates"
    assert held(times) < 0.92


def test_rounds_of_one_device_are_what_they_are_without_the_term() -> None:
    run = visits(deviations(5), np.zeros((4, 8)))
    assert estimates(run.assign(device_id="ab"), "wall_time_s") == estimates(run, "wall_time_s")
    assert estimates(run.assign(device_id=""), "wall_time_s") == estimates(run, "wall_time_s")


def test_with_a_round_on_each_device_ratios_are_what_they_are_without_the_term() -> None:
    run = run_on_devices(np.random.default_rng(0), deviations(4), [[0, 1, 2, 3]], SD)
    known, unknown = (estimates(each, "wall_time_s") for each in (run, run.drop(columns="device_id")))
    for key, level in known.items():
        assert level.level == unknown[key].level
        assert level.own_half_width == pytest.approx(unknown[key].own_half_width)


def test_where_each_cell_is_on_one_device_nothing_is_known_of_others() -> None:
    """As of two runs of different operators, each with the baseline: of the baseline alone there are two devices."""
    run = run_on_devices(np.random.default_rng(0), deviations(6), [[0, 0, 0, 1, 1, 1]], SD)
    member = run["key"].str[2:].astype(int)
    run = run[(member == 0) | ((member < 4) == (run["device_id"] == "0"))]
    assert estimates(run, "wall_time_s") == estimates(run.drop(columns="device_id"), "wall_time_s")


def test_a_ratio_of_cells_that_no_process_connects_has_the_noise_of_processes() -> None:
    """Half of a block in one process of each round, half in another, and no baseline in both."""
    run = visits(deviations(4, "shared 8 %"), np.zeros((4, 8)))
    member = run["key"].str[2:].astype(int)
    apart = run.assign(process=run["process"] + 10 * (member >= 4))
    split, whole = (estimates(each, "wall_time_s") for each in (apart, run))
    assert split["0.1"].own_half_width > 1.5 * whole["0.1"].own_half_width
    joined = apart[(apart["process"] < 10) | (member > 4)]
    again = joined.assign(process=np.where(joined["key"].str.endswith(".7"), joined["process"] % 10, joined["process"]))
    assert estimates(again, "wall_time_s", sides=True)["0.1"].own_half_width < 1.5 * whole["0.1"].own_half_width
