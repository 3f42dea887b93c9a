from __future__ import annotations

import pytest

from attnbench.analysis.baseline import best_exact, check, fate, named, pairs
from attnbench.analysis.metric_values import quantity
from attnbench.analysis.series import Point, panels
from attnbench.errors import BadInput
from attnbench.problem import Problem
from attnbench.store.records import Cause
from tests.analysis.runs import laws

SIZES = (64, 128, 256, 512)
RUN = laws(
    SIZES,
    {"softmax": lambda n: 1e-6 * n**2, "softmax:sdpa": lambda n: 4e-3 + 3e-7 * n**2, "performer": lambda n: 1e-4 * n},
    statuses={("softmax", 512): "oom"},
)
(PANEL,) = panels(RUN.results)
TIME = quantity(RUN, "wall_time")


def test_a_baseline_is_the_reference_unless_an_impl_is_named() -> None:
    for given, member in (("softmax", "softmax"), ("softmax:reference", "softmax"), ("softmax:sdpa", "softmax:sdpa")):
        found = named(PANEL, given)
        assert found is not None
        assert found.members == {member}
    assert named(PANEL, "softmax:cuda") is None
    with pytest.raises(BadInput, match=r"performer, softmax, softmax:sdpa\."):
        check([PANEL], "softmax:cuda")


def test_the_fastest_exact_softmax_may_be_another_at_each_size() -> None:
    found = best_exact(PANEL, TIME, ())
    assert found is not None
    series = {p.key: s.name for s in PANEL.series for p in s.points}
    chosen = {label: series[point.key] for label, point in found.points.items()}
    assert chosen == {"64": "softmax", "128": "softmax:sdpa", "256": "softmax:sdpa", "512": "softmax:sdpa"}


def test_an_exact_softmax_that_is_wrong_is_not_the_fastest() -> None:
    times = {"softmax": lambda n: 1e-6 * n**2, "softmax:cuda:cudnn": lambda n: 1e-7 * n**2}
    run = laws(SIZES, times, statuses={("softmax:cuda:cudnn", n): "wrong" for n in (128, 256)})
    (panel,) = panels(run.results)
    found = best_exact(panel, quantity(run, "wall_time"), ())
    assert found is not None
    series = {p.key: s.name for s in panel.series for p in s.points}
    assert [series[found.points[str(n)].key].partition(":")[2] for n in SIZES] == ["cuda:cudnn", "", "", "cuda:cudnn"]


def test_an_operator_named_exact_counts_as_exact() -> None:
    found = best_exact(PANEL, TIME, {"performer {}"})
    assert found is not None
    assert "performer" in found.members


def test_pairs_carry_what_became_of_either_side() -> None:
    base = named(PANEL, "softmax")
    assert base is not None
    performer = PANEL.series[2]
    found = pairs(PANEL, performer, base, TIME)
    assert [p.size for p in found] == list(SIZES)
    assert found[-1].beyond_baseline
    assert not found[0].beyond_baseline


@pytest.mark.parametrize(("metric", "told"), [("wall_time", True), ("peak_memory", False)])
def test_what_ran_out_of_time_is_dearer_in_time_alone(metric: str, told: bool) -> None:
    run = laws(SIZES, {"softmax": lambda n: 1e-6 * n**2, "performer": float}, statuses={("softmax", 512): "timeout"})
    (panel,) = panels(run.results)
    base = named(panel, "softmax")
    assert base is not None
    run.results["peak_memory_bytes"] = run.results["wall_time_s"]
    assert pairs(panel, panel.series[1], base, quantity(run, metric))[-1].beyond_baseline is told


def test_what_is_skipped_beyond_an_out_of_memory_shares_its_fate() -> None:
    def point(size: int, status: str, cause: Cause = "") -> Point:
        return Point(size, str(size), "", Problem(size, 4), status, "out of memory, or out of time", cause)

    expected: dict[Cause, str] = {"beyond_oom": "oom", "": "oom", "unsupported": "skipped", "budget": "skipped"}
    for cause, status in expected.items():
        found = fate([point(1, "ok"), point(2, "oom"), point(4, "skipped", cause)])
        assert list(found.values()) == ["ok", "oom", status]
    assert fate([point(1, "skipped", "predicted_memory")]) == {"1": "oom"}
    assert fate([point(1, "skipped", "beyond_timeout")]) == {"1": "timeout"}
    assert fate([point(1, "skipped", "unsupported")]) == {"1": "skipped"}
