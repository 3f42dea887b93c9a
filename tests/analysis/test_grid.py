from __future__ import annotations

import math

import numpy as np
import pytest

from attnbench.analysis.grid import Border, Grid, Row, grids
from attnbench.analysis.interval import Estimate
from attnbench.analysis.recommendation import least_level
from attnbench.analysis.run import Run
from attnbench.axes import AXES
from attnbench.errors import BadInput
from attnbench.problem import Problem
from tests.analysis.planted import CHANNELS, LAWS, PROBLEMS, SIZES, Law, at, border, planted, planted_visits, softmax
from tests.analysis.runs import laws, run_of, sequence

RUN = planted()


@pytest.fixture(scope="module")
def grid() -> Grid:
    (found,) = grids(RUN, "channels", "seq_len")
    return found


def holds(found: Border | None, place: float) -> bool:
    assert found is not None
    return any((r.low or 0) <= place <= (r.high or math.inf) for r in found.reaches if r.direction == "above")


def test_the_intervals_hold_a_planted_border(grid: Grid) -> None:
    assert (grid.axis, grid.over, grid.baseline) == ("seq_len", "channels", "softmax")
    assert [row.label for row in grid.rows] == ["64", "128", "256", "512"]
    for row, channels in zip(grid.rows, CHANNELS, strict=True):
        assert holds(row.against_baseline, border(channels))
        (reach,) = row.against_baseline.reaches  # type: ignore[union-attr]
        assert reach.low is not None
        assert reach.high is not None
        assert reach.high / reach.low < 1.2
        # sdpa takes half the time: of a slope of 1 the border with it is at twice the size.
        if 2 * border(channels) < SIZES[-1]:
            assert holds(row.against_exact, 2 * border(channels))
        elif 2 * border(channels) > 1.2 * SIZES[-1]:
            assert row.against_exact is not None
            assert row.against_exact.crossover.kind == "never"


def test_a_border_elsewhere_is_not_held(grid: Grid) -> None:
    """The negative control: 15 % further, and another row's."""
    for row, channels in zip(grid.rows, CHANNELS, strict=True):
        assert not holds(row.against_baseline, 1.15 * border(channels))
        assert not holds(row.against_baseline, border(channels) / 1.15)
    assert not holds(grid.rows[0].against_baseline, border(CHANNELS[1]))
    (moved,) = grids(planted({**LAWS, "linear_transformer": at(lambda c: 1.3 * border(c))}), "channels", "seq_len")
    assert not any(holds(row.against_baseline, border(c)) for row, c in zip(moved.rows, CHANNELS, strict=True))


def winners(grid: Grid) -> dict[tuple[str, str], set[str]]:
    return {
        (row.label, spot.label): {choice.series.name for choice in spot.use.choices}
        for row in grid.rows
        for spot in row.spots
        if spot.use is not None
    }


def test_the_cheapest_of_every_cell(grid: Grid) -> None:
    found = winners(grid)
    assert len(found) == len(PROBLEMS)
    for problem in PROBLEMS:
        times = {name: law(problem) for name, law in LAWS.items()}
        fastest, second, *_ = sorted(times, key=times.__getitem__)
        names = found[str(problem.channels), str(problem.seq_len)]
        assert fastest in names
        assert len(names) == 1 or times[second] < 1.1 * times[fastest]
    assert found["64", "256"] == {"softmax:sdpa"}
    assert found["512", "4096"] == {"linear_transformer"}


def test_what_is_equal_is_undecided_and_exact_ones_come_first() -> None:
    equal: dict[str, Law] = {**LAWS, "linear_transformer": lambda p: 0.5 * softmax(p), "local": lambda p: softmax(p)}
    (found,) = grids(planted(equal, own=0.03), "channels", "seq_len")
    both = [spot for row in found.rows for spot in row.spots if spot.use and len(spot.use.choices) == 2]
    assert len(both) >= 18  # of 20: sets hold the fastest in 95 %
    assert all(spot.use.choices[0].exact for spot in both if spot.use)
    kinds = [row.against_exact.crossover.kind for row in found.rows if row.against_exact]
    assert kinds.count("undecided") >= 3
    for row in found.rows:
        assert row.against_exact is not None
        if row.against_exact.crossover.kind == "undecided":
            (reach,) = row.against_exact.reaches
            assert (reach.at, reach.low, reach.high) == (None, 0, math.inf)


def test_what_did_not_run_says_why() -> None:
    missing = sequence(4096, 512)
    lost = {(name, p): "oom" for name in LAWS for p in PROBLEMS if p.seq_len == 4096 and p.channels == 256}
    lost |= {(name, sequence(2048, 512)): "oom" for name in ("softmax", "softmax:sdpa")}
    (found,) = grids(planted(problems=[p for p in PROBLEMS if p != missing], statuses=lost), "channels", "seq_len")
    by_label = {row.label: dict(zip(found.sizes, row.spots, strict=True)) for row in found.rows}
    assert (by_label["256"]["4096"].use, by_label["256"]["4096"].status) == (None, "oom")
    assert by_label["256"]["4096"].reason == "oom here"
    assert (by_label["512"]["4096"].use, by_label["512"]["4096"].status) == (None, "")
    alone = by_label["512"]["2048"]
    assert alone.use is not None
    assert (alone.use.exact, alone.exact_status) == (None, "oom")
    assert by_label["64"]["256"].exact_status == ""


def test_what_was_checked_and_not_timed_was_not_measured() -> None:
    timed = [v for v in planted_visits() if v.round == 0 or ".c64.n2048." not in v.key]
    (found,) = grids(run_of(timed), "channels", "seq_len")
    spot = found.rows[0].spots[3]
    assert (spot.label, spot.use, spot.status, spot.reason) == ("2048", None, "", "")
    assert found.rows[1].spots[3].use is not None
    nowhere = [v for v in timed if v.round == 0 or ".n2048." not in v.key]
    assert list(grids(run_of(nowhere), "channels", "seq_len")[0].sizes) == ["256", "512", "1024", "4096"]
    with pytest.raises(BadInput, match=r"--over channels: .* nothing in nowhere was timed. Continue it"):
        grids(run_of([v for v in timed if v.round == 0]), "channels", "seq_len")


def rows_of(place: float) -> tuple[Row, ...]:
    (found,) = grids(planted({"softmax": softmax, "local": at(lambda _: place)}), "channels", "seq_len")
    return found.rows


@pytest.mark.parametrize(("place", "kind"), [(20.0, "always"), (1e6, "never")])
def test_a_border_outside_the_sizes_is_always_or_never(place: float, kind: str) -> None:
    for row in rows_of(place):
        assert row.against_baseline is not None
        assert (row.against_baseline.crossover.kind, row.against_baseline.reaches) == (kind, ())
        assert row.against_exact is None  # it is the baseline


def test_cheaper_from_some_size_on_leaves_the_sizes_before_it_open() -> None:
    found: dict[str, Law] = {"softmax": softmax, "local": lambda p: softmax(p) * (1 if p.seq_len < 1024 else 0.5)}
    (found_grid,) = grids(planted(found, own=0.03), "channels", "seq_len")
    stretches = [row.against_baseline for row in found_grid.rows if row.against_baseline]
    stretches = [each for each in stretches if each.crossover.kind == "stretch"]
    assert len(stretches) >= 3
    assert all((r.low, r.high) == (0, 1024) for each in stretches for r in each.reaches)


def test_a_baseline_is_no_operator_beside_itself() -> None:
    (found,) = grids(planted({"softmax": softmax, "local": at(border)}), "channels", baseline="local")
    assert all(row.against_baseline is None for row in found.rows)
    assert all(row.against_exact for row in found.rows)


def test_the_other_axis_may_be_the_one_along() -> None:
    (found,) = grids(RUN, "seq_len", axis="channels")
    assert list(found.sizes) == ["64", "128", "256", "512"]
    for row in found.rows:
        channels = border(1) / row.position  # the border's, at so many tokens
        if 1.1 * CHANNELS[0] < channels < CHANNELS[-1] / 1.1:
            assert holds(row.against_baseline, channels)


def test_panels_that_differ_in_more_make_grids_of_their_own() -> None:
    problems = [Problem(n, c, 4, batch=b) for b in (1, 8) for c in (64, 128) for n in (256, 512)]
    found = grids(planted(problems=problems), "channels", "seq_len")
    assert [(g.fixed["batch"], len(g.rows)) for g in found] == [(1, 2), (8, 2)]
    assert all("channels" not in g.fixed for g in found)
    assert found[0].title == "seq_len × channels: scope core, fwd, float32, batch 1, heads 4, cpu"


def test_channels_of_a_constant_head_dim_are_one_axis() -> None:
    problems = [Problem(n, 16 * h, h) for h in (2, 4, 8) for n in (256, 512)]
    (found,) = grids(planted(problems=problems), "channels", "seq_len")
    assert [row.label for row in found.rows] == ["32", "64", "128"]
    assert "head_dim 16" in found.title


@pytest.mark.parametrize(
    ("over", "problems"),
    [
        ("batch", [Problem(n, 64, 4, batch=b) for b in (1, 4) for n in SIZES]),
        ("heads", [Problem(n, 64, h) for h in (1, 4) for n in SIZES]),
        ("heads", [Problem(n, 16 * h, h) for h in (1, 4) for n in SIZES]),
        ("kv_heads", [Problem(n, 64, 4, kv_heads=h) for h in (1, 2) for n in SIZES]),
        ("query_len", [Problem(n, 64, 4, causal=True, query_len=q) for q in (1, 4) for n in SIZES]),
        ("channels", [Problem.image(n, n, c, 4) for c in (64, 128) for n in (16, 32, 64)]),
    ],
)
def test_any_two_axes_make_a_grid(over: str, problems: list[Problem]) -> None:
    (found,) = grids(planted({"softmax": softmax, "local": at(lambda _: 800.0)}, problems), over)
    axis = "image_size" if problems[0].height else "seq_len"
    assert (found.axis, found.over) == (axis, over)
    assert [row.label for row in found.rows] == [AXES[over].label(p) for p in (problems[0], problems[-1])]
    assert f", {over} " not in found.title
    for row in found.rows:
        assert holds(row.against_baseline, 800)


DIAGONAL = [sequence(256, 256), sequence(512, 128), sequence(1024, 64)]


@pytest.mark.parametrize(
    ("run", "arguments", "message"),
    [
        (RUN, {"over": "width"}, "--over width: not an axis. Allowed: seq_len, "),
        (RUN, {"over": "seq_len", "axis": "seq_len"}, "--axis seq_len --over seq_len: twice the same"),
        (RUN, {"over": "image_size"}, "--over image_size: .* Give --axis seq_len --over channels or --axis chan"),
        (laws(SIZES, {"softmax": lambda n: n}), {"over": "channels"}, "It varies seq_len alone"),
        (planted(problems=DIAGONAL), {"over": "channels"}, "--over channels: this run does not vary both together"),
        (
            RUN,
            {"over": "channels", "metrics": ["peak_memory"]},
            "--metric peak_memory: a map is decided by a time",
        ),
    ],
)
def test_bad_requests_say_what_there_is(run: Run, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        grids(run, **arguments)  # type: ignore[arg-type]


def test_the_least_of_equal_levels_is_not_made_less_by_choosing_it() -> None:
    """Eight equal operators: their least lies below the truth; the interval of `least_level` holds it, its own not."""
    rng = np.random.default_rng(5)
    held, chosen = 0, 0
    for _ in range(400):
        levels = [Estimate(level, 0.01**2, 20.0, 0.0, math.inf, 3) for level in rng.normal(0, 0.01, 8)]
        raw, fair = min(levels, key=lambda e: e.level), least_level(levels)
        held += abs(fair.level) <= fair.own_half_width
        chosen += abs(raw.level) <= raw.own_half_width
    assert held / 400 >= 0.95
    assert chosen / 400 < 0.9
    apart = [Estimate(level, 0.01**2, 20.0, 0.0, math.inf, 3) for level in (0.0, 1.0)]
    assert least_level(apart) == apart[0]
