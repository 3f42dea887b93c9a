"""Every series beside all that it may be compared with: the ratios and crossovers of the summary, for each baseline."""

from __future__ import annotations

import math

import pytest

from attnbench.analysis.relative import comparands
from attnbench.analysis.summary import Summary, summarise
from tests.analysis.runs import Law, laws

LAWS: dict[str, Law] = {
    "softmax": lambda n: 1e-6 * n**2,
    "softmax:sdpa": lambda n: 4e-7 * n**2,
    "performer": lambda n: 1e-4 * n,
    "identity": lambda n: 1e-9,
}
SIZES = (64, 128, 256, 512, 1024)


@pytest.fixture(scope="module")
def summary() -> Summary:
    run = laws(SIZES, LAWS, own=0.002)
    run.environment.update(exact=["softmax {}"])
    return summarise(run)


def test_each_exact_softmax_is_one(summary: Summary) -> None:
    [report] = summary.panels
    time = report.tables[0]
    found = {each.name: each for each in comparands(time, "softmax")}
    assert list(found) == ["softmax", "fastest exact softmax", "softmax:sdpa"]
    line = next(each for each in time.lines if each.series.name == "performer")
    assert found["softmax"].relatives["performer"].crossover == line.against_baseline
    assert found["fastest exact softmax"].relatives["performer"].crossover == line.against_exact
    crossing = found["softmax:sdpa"].relatives["performer"].crossover
    assert crossing
    assert crossing.crossings[0].at == pytest.approx(250, rel=0.05)
    assert "identity" not in found["softmax"].relatives


def test_ratios_have_their_intervals(summary: Summary) -> None:
    time = summary.panels[0].tables[0]
    for each in comparands(time, "softmax"):
        ratios = each.relatives["performer"].ratios
        assert list(ratios) == [str(size) for size in SIZES]
        for size, (value, low, high) in zip(SIZES, ratios.values(), strict=True):
            truth = 1e-4 * size / (LAWS["softmax" if each.name == "softmax" else "softmax:sdpa"](size))
            assert value == pytest.approx(truth, rel=0.05)
            assert low < value < high
            assert high / value == pytest.approx(value / low)


def test_one_round_has_ratios_without_an_interval() -> None:
    run = laws(SIZES, LAWS, rounds=1)
    [first, *_] = comparands(summarise(run).panels[0].tables[0], "softmax")
    _, low, high = first.relatives["performer"].ratios["64"]
    assert math.isnan(low)
    assert math.isnan(high)


def test_exact_figures_that_are_the_baselines_own_are_not_there_again() -> None:
    same = {**LAWS, "softmax:sdpa": LAWS["softmax"]}
    flops = {}
    for name, every in (("unlike", LAWS), ("alike", same)):
        run = laws(SIZES, every)
        run.environment.update(exact=["softmax {}"])
        flops[name] = next(each for each in summarise(run).panels[0].tables if each.quantity.name == "flops")
    assert [each.name for each in comparands(flops["alike"], "softmax")] == ["softmax"]
    assert len(comparands(flops["unlike"], "softmax")) == 3
