from __future__ import annotations

import pytest

from attnbench.analysis.summary import Line, Summary, summarise
from attnbench.errors import BadInput
from attnbench.record import Run
from tests.analysis.runs import Law, laws

SIZES = (64, 128, 256, 512, 1024)
LAWS: dict[str, Law] = {
    "softmax": lambda n: 1e-6 * n**2,
    "softmax:sdpa": lambda n: 3e-7 * n**2,
    "performer": lambda n: 1e-4 * n,
    "identity": lambda n: 1e-9,
}


def run(**model: object) -> Run:
    found = laws(SIZES, LAWS, own=0.005, **model)
    found.environment["stated"] = {"performer {}": {"time": "n", "memory": "n"}, "softmax {}": {"time": "n^2"}}
    return found


def line(summary: Summary, name: str, metric: str = "wall_time") -> Line:
    table = next(t for t in summary.sections[0].tables if t.quantity.name == metric)
    return next(found for found in table.lines if found.series.name == name)


def test_best_in_column_and_first_win() -> None:
    summary = summarise(run())
    performer, sdpa = line(summary, "performer"), line(summary, "softmax:sdpa")
    assert [f.best for f in performer.figures] == [False, False, False, True, True]
    assert [f.best for f in sdpa.figures] == [True, True, True, False, False]
    assert [f.label for f in performer.figures if f.first_win] == ["128"]
    assert not any(f.best or f.first_win for f in line(summary, "identity").figures)


def test_crossovers_against_reference_and_fastest_exact_differ() -> None:
    performer = line(summarise(run()), "performer")
    assert performer.against_baseline is not None
    assert performer.against_exact is not None
    assert performer.against_baseline.crossings[0].at == pytest.approx(100, rel=0.05)
    assert performer.against_exact.crossings[0].at == pytest.approx(333, rel=0.05)


def test_the_baseline_itself_and_identity_have_no_crossover() -> None:
    summary = summarise(run())
    assert line(summary, "softmax").against_baseline is None
    assert line(summary, "softmax:sdpa").against_baseline is not None
    assert line(summary, "softmax:sdpa").against_exact is None
    assert line(summary, "identity").against_baseline is None
    assert line(summary, "identity").scaling is None


def test_another_baseline_can_be_asked_for() -> None:
    performer = line(summarise(run(), baseline="softmax:sdpa"), "performer")
    assert performer.against_baseline is not None
    assert performer.against_baseline.crossings[0].at == pytest.approx(333, rel=0.05)
    with pytest.raises(BadInput, match="no such series"):
        summarise(run(), baseline="linformer")


def test_the_stated_growth_stands_beside_the_measured() -> None:
    summary = summarise(run())
    assert (line(summary, "performer").stated, line(summary, "performer").agreement) == ("n", "agrees")
    assert line(summary, "softmax:sdpa", "peak_memory").stated is None
    assert line(summary, "identity").stated is None


def test_one_round_marks_by_the_ratio_alone() -> None:
    performer = line(summarise(run(rounds=1)), "performer")
    assert [f.label for f in performer.figures if f.first_win] == ["128"]
    assert performer.figures[0].low is None


def test_series_that_never_ran_are_named_with_their_reason() -> None:
    statuses = {("performer", n): "skipped" for n in SIZES}
    summary = summarise(run(statuses=statuses))
    assert summary.skipped == {"performer": "skipped here"}
    assert all(found.series.name != "performer" for found in summary.sections[0].tables[0].lines)
