from __future__ import annotations

from pathlib import Path

import pytest

from attnbench.analysis.run import Run
from attnbench.analysis.summary import Line, Summary, summarise
from attnbench.errors import BadInput
from attnbench.measure.device.cpu import DEVICE as CPU
from attnbench.measure.metrics import flops
from attnbench.measure.worker.forecast import forecast_of
from attnbench.measure.worker.prepared_cell import subject_of
from attnbench.measure.worker.visit import Bench
from attnbench.outputs._run_tables import parts
from attnbench.plan.operator_facts import definitions
from attnbench.problem import Cell, Problem
from attnbench.registry import operators
from tests.analysis.runs import Law, cell, laws, run_of, sequence, visits_of

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
    table = next(t for t in summary.panels[0].tables if t.quantity.name == metric)
    return next(found for found in table.lines if found.series.name == name)


def test_best_in_column_and_first_win() -> None:
    summary = summarise(run())
    performer, sdpa = line(summary, "performer"), line(summary, "softmax:sdpa")
    assert [f.best for f in performer.figures] == [False, False, False, True, True]
    assert [f.best for f in sdpa.figures] == [True, True, True, False, False]
    assert [f.label for f in performer.figures if f.first_win] == ["128"]
    assert not any(f.best or f.first_win for f in line(summary, "identity").figures)


def test_crossovers_against_reference_and_best_exact_differ() -> None:
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
    assert line(summary, "identity").doubling is None


def test_another_baseline_can_be_asked_for() -> None:
    performer = line(summarise(run(), baseline="softmax:sdpa"), "performer")
    assert performer.against_baseline is not None
    assert performer.against_baseline.crossings[0].at == pytest.approx(333, rel=0.05)
    with pytest.raises(BadInput, match="no such series"):
        summarise(run(), baseline="linformer")


def test_operators_restrict_what_is_shown_not_what_is_judged() -> None:
    measured = run()
    table, chosen = (
        summarise(measured, ["wall_time"], None, None, o).panels[0].tables[0] for o in ((), ("performer",))
    )
    assert [line.series.name for line in chosen.lines] == ["performer"]
    assert chosen.every == table.every == table.lines
    assert len(chosen.every) == len(LAWS)
    (impl,) = summarise(measured, ["wall_time"], None, None, ["softmax:sdpa"]).panels[0].tables[0].lines
    assert (impl.series.operator, impl.series.impl) == ("softmax", "sdpa")
    with pytest.raises(
        BadInput, match=r"no series of it \(did you mean 'performer'\?\). There are softmax, performer, "
    ):
        summarise(measured, operators=["perfomer"])


def test_the_stated_growth_stands_beside_the_measured() -> None:
    summary = summarise(run())
    performer = line(summary, "performer")
    assert (performer.stated, performer.growth, performer.agreement) == ("n", None, None), "a time has no class"
    assert performer.doubling is not None
    assert performer.doubling.stated == pytest.approx(2)
    assert performer.doubling.low < 2 < performer.doubling.high
    memory = line(summary, "performer", "peak_memory")
    assert memory.doubling is None
    assert memory.growth is not None
    assert (memory.stated, memory.growth.growth, memory.agreement) == ("n", "n", "agrees")
    assert line(summary, "softmax:sdpa", "peak_memory").stated is None
    assert line(summary, "identity").stated is None


def test_a_step_is_stated_to_grow_as_the_difference_of_two_prefills() -> None:
    """One new token: softmax by 2 per doubling of N, performer not at all, what grows as n^1.5 by the root of 2."""
    growths = {"softmax {}": "n^2", "performer {}": "n", "strided {}": "n^1.5", "identity {}": "0"}
    laws: dict[str, Law] = {"softmax": float, "performer": lambda n: 50.0, "strided": lambda n: n**0.5}
    cells = [
        (cell(name, Problem(n, 64, 4, causal=True, query_len=1)), 1e-6 * law(n), {})
        for name, law in laws.items()
        for n in SIZES
    ]
    stated = {name: {"time": growth} for name, growth in growths.items()}
    summary = summarise(run_of(visits_of(cells, own=0.005), {"stated": stated}))
    factors = {"softmax": ("n", 2.0), "performer": ("1", 1.0), "strided": ("n^0.5", 2**0.5)}
    for name, (growth, factor) in factors.items():
        found = line(summary, name)
        assert found.doubling is not None
        assert (found.stated, found.doubling.stated) == (growth, pytest.approx(factor))
        assert found.doubling.low < factor < found.doubling.high
        assert found.doubling.settled


def test_one_round_marks_by_the_ratio_alone() -> None:
    performer = line(summarise(run(rounds=1)), "performer")
    assert [f.label for f in performer.figures if f.first_win] == ["128"]
    assert performer.figures[0].low is None


def test_series_that_never_ran_are_named_with_their_reason() -> None:
    statuses = {("performer", n): "skipped" for n in SIZES}
    summary = summarise(run(statuses=statuses))
    assert summary.skipped == {"performer": "skipped here"}
    assert all(found.series.name != "performer" for found in summary.panels[0].tables[0].lines)


def made(times: dict[str, tuple[float, ...]], metrics: dict[str, tuple[int, ...]], column: str) -> Run:
    """Series with a time and a further figure at each of SIZES."""
    cells = []
    for name in times:
        operator, _, impl = name.partition(":")
        for i, n in enumerate(SIZES):
            figures = {column: metrics[name][i], "relative_error": 1e-7 * (1 + (i * len(name)) % 3)}
            cells.append((cell(operator, sequence(n), impl or "reference"), times[name][i], figures))
    return run_of(visits_of(cells, own=0.001))


def test_each_metric_has_its_own_best_exact_softmax() -> None:
    """Eager is the fastest at 256 alone, and sdpa the leanest everywhere: what is fast says nothing of memory."""
    times = {"softmax": (3.0, 3.0, 1.0, 3.0, 3.0), "softmax:sdpa": (2.0,) * 5, "performer": (2.5,) * 5}
    bytes_ = {"softmax": (900,) * 5, "softmax:sdpa": (100,) * 5, "performer": (400,) * 5}
    summary = summarise(made(times, bytes_, "peak_memory_bytes"))
    memory = line(summary, "performer", "peak_memory").against_exact
    assert memory is not None
    assert (memory.kind, memory.crossings) == ("never", ())
    against = line(summary, "performer").against_exact
    assert against is not None
    assert against.largest is not None
    assert against.largest.ratio == pytest.approx(1.25, rel=0.02), "of time, sdpa's"
    assert line(summary, "softmax", "peak_memory").against_exact is None
    assert {t.quantity.name: t.quantity.metric.best_exact for t in summary.panels[0].tables} == {
        "wall_time": "fastest exact softmax",
        "peak_memory": "leanest exact softmax",
    }


def test_a_rounding_error_has_no_crossover_no_growth_and_no_best() -> None:
    """Errors of 1, 2 and 3e-7 in turn cross and grow; the same figures as FLOPs, the control, do."""
    names = ("softmax", "softmax:sdpa", "performer")
    figures = {name: tuple(10 * (1 + (i * len(name)) % 3) for i in range(5)) for name in names}
    run = made(dict.fromkeys(names, (1.0,) * 5), figures, "flops")
    summary = summarise(run, ["relative_error", "flops"])
    error, counts = (line(summary, "performer", name) for name in ("relative_error", "flops"))
    assert counts.against_baseline is not None
    assert counts.against_exact is not None
    assert counts.growth is not None
    assert (error.against_baseline, error.against_exact, error.doubling, error.growth) == (None, None, None, None)
    every = [f for found in summary.panels[0].tables[0].lines for f in found.figures]
    assert not any(f.best or f.first_win for f in every)
    assert all(f.low is None for f in every), "one check tells no interval"
    assert any(f.best for found in summary.panels[0].tables[1].lines for f in found.figures)
    titles = [block.title for part in parts(summarise(run, ["relative_error"])) for block in part.text_tables]
    assert titles == ["relative_error", "What to use"]


def flops_grow(counts: tuple[dict[str, int], ...]) -> Line:
    cells = [(cell("performer", sequence(n)), 1.0, each) for n, each in zip(SIZES, counts, strict=True)]
    run = run_of(visits_of(cells), {"stated": {"performer {}": {"time": "n", "memory": "n"}}})
    return line(summarise(run, ["flops"]), "performer", "flops")


def stated(n: int, **others: int) -> dict[str, int]:
    return {"flops": 100 * n, "reference_flops": 100 * n, **others}


def test_growth_of_flops_is_of_what_was_counted_and_what_cannot_be() -> None:
    """What `cost` states, n, decides nothing where torch counted n²; an honest count is the control."""
    planted = flops_grow(tuple(stated(n, flops_counted=n * n, flops_uncounted=0) for n in SIZES))
    assert planted.growth is not None
    assert (planted.origin, planted.growth.growth, planted.agreement) == ("counted", "n^2", "higher")
    honest = flops_grow(tuple(stated(n, flops_counted=100 * n, flops_uncounted=0) for n in SIZES))
    assert honest.growth is not None
    assert (honest.origin, honest.growth.growth, honest.agreement) == ("counted", "n", "agrees")
    hidden = flops_grow(tuple(stated(n, flops_counted=n, flops_uncounted=n * n) for n in SIZES))
    assert hidden.growth is not None
    assert (hidden.origin, hidden.agreement) == ("stated", "higher"), "what cannot be counted grows too"


@pytest.mark.parametrize(
    ("figures", "origin"),
    [
        ({"flops_counted": 96, "flops_uncounted": 4}, "counted"),
        ({"flops_counted": 90, "flops_uncounted": 10}, "stated"),
        ({"flops_uncounted": 100}, "stated"),
        ({"flops_uncounted": 0}, "stated"),
        ({"flops_counted": 0, "flops_uncounted": 0}, "stated"),
        ({"flops_counted": 100}, "counted"),
        ({"flops_counted": 90}, "stated"),
        ({}, "stated"),
    ],
    ids=["4 %", "10 %", "all", "not counted", "nothing", "old, all counted", "old, not all", "old, none"],
)
def test_flops_are_called_counted_where_torch_cannot_count_five_percent_at_most(
    figures: dict[str, int], origin: str
) -> None:
    found = flops_grow(tuple(stated(n, **{name: n * value for name, value in figures.items()}) for n in SIZES))
    assert (found.origin, found.agreement) == (origin, "agrees")
    assert found.growth is not None
    assert found.growth.growth == "n"


PLANTED = '''
"""q kᵀ v: N × N, and says that it takes N."""
import torch
from attnbench.inputs import heads
from attnbench.operator import Complexity, Cost, Form, Inputs, Operator, Paper

def reference(problem, params, q, k, v):
    return {reference}

OPERATOR = Operator(
    Paper("Nobody", 2000, "None", "https://example.org", "nowhere"),
    {{"core": Form(
        reference,
        lambda problem, params, generator: Inputs(heads(problem, generator, "q", "k", "v")),
        lambda problem, params, mode: Cost(
            *[4 * problem.seq_len * problem.channels * problem.head_dim] * 2, 0, 1, 1, {uncounted}
        ),
    )}},
    lambda params: Complexity("n", "n"),
)
'''


@pytest.mark.parametrize(
    ("reference", "uncounted", "told"),
    [
        ("(q @ k.mT) @ v", "{}", ("counted", "n^2", "higher")),
        ("q @ (k.mT @ v)", "{}", ("counted", "n", "agrees")),
        (
            "(q @ k.mT) @ v",
            '{"fft": 4 * problem.seq_len * problem.channels * problem.head_dim}',
            ("stated", "undecided", "higher"),
        ),
    ],
    ids=["planted", "honest", "planted behind what cannot be counted"],
)
def test_an_own_operator_that_hides_its_square_is_shown(
    tmp_path: Path, reference: str, uncounted: str, told: tuple[str, str, str]
) -> None:
    own = tmp_path / f"planted_{abs(hash((reference, uncounted)))}.py"
    own.write_text(PLANTED.format(reference=reference, uncounted=uncounted))
    source = operators((str(own),))[own.stem]
    cells = []
    for n in SIZES:
        what = Cell(own.stem, "reference", "core", "fwd", Problem(n, 32, 2), {})
        made = Bench(subject_of(what, source, CPU, 2**32, forecast_of(what, source)))
        cells.append((what, 1.0, flops.check(made)))
    found = summarise(run_of(visits_of(cells), definitions([c for c, _, _ in cells], [str(own)])), ["flops"])
    grown = line(found, own.stem, "flops")
    assert grown.growth is not None
    assert (grown.origin, grown.growth.growth, grown.agreement) == told
    (block,) = [b for part in parts(found) for b in part.text_tables if b.title == "Growth of exact figures"]
    assert block.rows[0][-1].text == told[2]
