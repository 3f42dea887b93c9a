from __future__ import annotations

import pytest

from attnbench.analysis.metric_values import quantity
from attnbench.analysis.recommendation import Recommendation, recommendations
from attnbench.analysis.series import panels
from tests.analysis.runs import Law, laws

SOFTMAX: Law = lambda n: 1e-6 * n**2  # noqa: E731


def recommended(statuses: dict[tuple[str, int], str] | None = None, **others: Law) -> list[Recommendation]:
    run = laws([64, 256, 1024], {"softmax": SOFTMAX, **others}, statuses=statuses, own=0.005)
    (panel,) = panels(run.results)
    time, memory, flops = (quantity(run, name) for name in ("wall_time", "peak_memory", "flops"))
    return recommendations(panel, time, memory, flops, ())


def test_another_function_is_recommended_where_it_is_clearly_faster() -> None:
    found = recommended(performer=lambda n: 1e-4 * n)
    assert [r.use.series.name for r in found] == ["softmax", "performer", "performer"]
    assert [r.use.exact for r in found] == [True, False, False]
    assert found[2].speed_up == pytest.approx(10.24, rel=0.05)
    assert found[2].low is not None
    assert found[2].low < 10.24 < (found[2].high or 0)
    assert found[2].use.memory_bytes == 102400


def test_within_noise_exact_softmax_stays() -> None:
    found = recommended(performer=lambda n: 0.999e-6 * n**2)
    assert all(r.use.exact for r in found)


def test_identity_is_a_bound_and_no_choice() -> None:
    found = recommended(identity=lambda n: 1e-9)
    assert all(r.fastest.series.operator == "softmax" for r in found)


def test_without_an_exact_one_there_is_no_speed_up() -> None:
    found = recommended({("softmax", 1024): "oom"}, performer=lambda n: 1e-2 * n)
    assert (found[-1].exact, found[-1].speed_up, found[-1].use.series.name) == (None, None, "performer")
