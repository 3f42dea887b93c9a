"""Changes of level in tracks of noise: those that are there are found where they are, and others are not."""

from __future__ import annotations

import numpy as np
import pytest

from attnbench.analysis.change_points import LEAST, beside_others, change_points, medians

RNG = np.random.default_rng(7)


def noise(tracks: int, runs: int, sd: float = 0.02) -> np.ndarray:
    return RNG.normal(0, sd, (tracks, runs))


def test_a_change_and_its_taking_back_are_found_where_they_are() -> None:
    tracks = noise(20, 30)
    tracks[3, 12:20] += 0.15
    found = change_points(list(tracks))
    assert [(each.at, each.runs) for each in found[3]] == [(12, (12, 8)), (20, (8, 10))]
    up, down = found[3]
    assert up.change - up.half < 0.15 < up.change + up.half
    assert down.change - down.half < -0.15 < down.change + down.half
    assert not any(found[:3] + found[4:])


def test_the_newest_run_alone_is_no_change_and_three_are() -> None:
    tracks = noise(20, 20)
    tracks[5, -1] += 0.3
    tracks[6, -3:] += 0.3
    found = change_points(list(tracks))
    assert [each.at for each in found[6]] == [17]
    assert not any(found[:6])


def test_single_bad_runs_are_no_changes_however_bad() -> None:
    tracks = noise(20, 20)
    tracks[2, [4, 9, 15]] += 5.0
    assert not any(change_points(list(tracks)))


def test_luck_that_follows_itself_is_no_change() -> None:
    luck = noise(40, 30)
    for run in range(1, 30):
        luck[:, run] = 0.5 * luck[:, run - 1] + 0.87 * luck[:, run]
    assert sum(map(bool, change_points(list(luck)))) <= 1
    shuffled = [RNG.permutation(track) for track in luck]
    shuffled[3][15:] += 0.12
    assert [len(each) for each in change_points(shuffled)][3] == 1, "the negative control: independent, it is found"


def test_a_change_too_small_to_matter_is_none_however_sure() -> None:
    tracks = noise(5, 40, sd=1e-4)
    tracks[0, 20:] += 0.9 * LEAST
    tracks[1, 20:] += 1.1 * LEAST
    assert [len(each) for each in change_points(list(tracks))] == [0, 1, 0, 0, 0]


def test_tracks_that_repeat_exactly_and_short_ones_have_none() -> None:
    assert change_points([np.zeros(9), np.ones(9)]) == [[], []]
    assert change_points([np.array([0.0, 0.0, 0.5, 0.5, 0.5])]) == [[]]
    assert change_points([]) == []


def test_what_a_block_shares_cancels_and_what_one_operator_does_stays() -> None:
    block = noise(6, 12, sd=1e-3) + np.arange(6)[:, None] + RNG.normal(0, 0.5, 12)
    block[1, 6:] += 0.2
    relative = beside_others(block, list("abcdef"), 3)
    steps = relative[:, 6:].mean(axis=1) - relative[:, :6].mean(axis=1)
    assert steps == pytest.approx([0, 0.2, 0, 0, 0, 0], abs=0.01)
    assert np.std(block[0]) > 0.2, "the negative control: what they share is large"


def test_with_too_few_other_operators_nothing_is_known() -> None:
    assert np.isnan(beside_others(noise(4, 5), list("abca"), 3)).all()
    assert np.isfinite(beside_others(noise(4, 5), list("abcd"), 3)).all()


def test_an_operator_may_come_later_without_moving_the_others() -> None:
    block = noise(6, 12, sd=1e-3) + 3.0 * np.arange(6)[:, None]
    block[5, :6] = np.nan
    relative = beside_others(block, list("abcdef"), 3)
    assert abs(relative[0, 6:].mean() - relative[0, :6].mean()) < 0.01
    assert np.isnan(relative[5, :6]).all()


def test_medians_leave_out_what_is_missing() -> None:
    values = np.array([[1.0, np.nan, 3.0, 10.0], [np.nan, np.nan, np.nan, np.nan], [2.0, 4.0, np.nan, np.nan]])
    assert medians(values, axis=1)[[0, 2]].tolist() == [3.0, 3.0]
    assert np.isnan(medians(values, axis=1)[1])
    assert medians(values, axis=0).tolist() == [1.5, 4.0, 3.0, 10.0]
