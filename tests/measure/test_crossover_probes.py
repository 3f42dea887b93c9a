from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from attnbench.analysis.crossover_search import Search, search
from attnbench.analysis.run import read_run
from attnbench.analysis.summary import summarise
from attnbench.axes import AXES
from attnbench.measure import crossover, open_run
from attnbench.measure.crossover_probes import Probes
from attnbench.measure.protocol import (
    FinishRequest,
    Forecast,
    ForecastAnswer,
    ForecastRequest,
    PreparedAnswer,
    PrepareRequest,
    ReleasedAnswer,
    ReleaseRequest,
    SampleAnswer,
    SampleRequest,
    SupportAnswer,
    SupportRequest,
    VisitAnswer,
)
from attnbench.outputs import _listings as listings
from attnbench.outputs import json as json_output
from attnbench.outputs._run_tables import parts
from attnbench.plan.cells import cells
from attnbench.plan.search_request import SearchRequest, suite_text
from attnbench.plan.suite import from_text
from attnbench.problem import Cell, Problem, problem_of
from attnbench.store import journal
from tests.running import Silent, plan

PROBLEM = Problem(64, 64, 4)
NEAREST = AXES["seq_len"].allowed(PROBLEM)
SUITE = "name: crossover\nbaseline: softmax\n"


@dataclass
class Machine:
    """Stands for worker processes: times follow laws, and beyond `memory` nothing fits.

    growth: by operator, the power of the batch that times grow with; default 1.
    """

    laws: Mapping[str, Any]
    memory: int = 10**9
    growth: Mapping[str, float] = field(default_factory=dict)
    size: Callable[[Problem], float] = lambda problem: problem.seq_len * problem.channels / 64
    asked: list[tuple[str, str, int, int]] = field(default_factory=list)

    def start(self, number: int, threads: int) -> Any:
        return Worker(self, number, math.exp(np.random.default_rng(number + 1).normal(0, 0.04)))


@dataclass
class Worker:
    machine: Machine
    number: int
    speed: float
    start_s: float = 0.0
    times: dict[str, float] = field(default_factory=dict)

    def ask(self, request: Any, timeout: float) -> Any:
        if isinstance(request, SupportRequest):
            return SupportAnswer((("skipped", None),) * len(request.cells))
        if isinstance(request, ReleaseRequest):
            return ReleasedAnswer()
        if isinstance(request, FinishRequest):
            return VisitAnswer("ok")
        if isinstance(request, SampleRequest):
            return SampleAnswer("ok", samples=[("wall", self.times[request.key], "")])
        problem = request.cell.problem
        if isinstance(request, ForecastRequest):
            return ForecastAnswer(Forecast(2**40 if problem.seq_len > self.machine.memory else 1))
        self.machine.asked.append((request.word, request.cell.operator, problem.seq_len, self.number))
        law, growth = self.machine.laws[request.cell.operator], self.machine.growth.get(request.cell.operator, 1.0)
        time = law(self.machine.size(problem)) * problem.batch**growth * self.speed
        self.times[request.cell.key] = time
        if isinstance(request, PrepareRequest):
            return PreparedAnswer("ok", first_call_s=time, call_s=time)
        return VisitAnswer("ok", metrics={"check_time_s": time, "operator_s": time})

    def close(self) -> None:
        return

    kill = close


LAWS = {"softmax": lambda n: 1e-9 * n * n, "series": lambda n: 7e-7 * n}


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[journal.Journal]:
    found = journal.create(tmp_path / "run", SUITE, {"device": "cpu"})
    yield found
    found.close()


START = {
    "image_size": Problem.image(8, 8, 64, 4),
    "heads": Problem(64, 10080, 4),
    "kv_heads": Problem(64, 10080, 10080),
    "query_len": Problem(4096, 64, 4, causal=True),
}
"""Where a search along an axis begins, if not at PROBLEM."""


def probes(opened: journal.Journal, machine: Machine, axis: str = "seq_len") -> Probes:
    problem = START.get(axis, PROBLEM)
    cells = {name: Cell(name, "reference", "core", "fwd", problem, {}) for name in machine.laws}
    base = cells.pop("softmax")
    what = plan((), operators_from=(), memory_limit=2**30)
    series = {name: (cell, base) for name, cell in cells.items()}
    return Probes(what, opened, Silent(), AXES[axis], series, "wall_time_s", start=machine.start)


def test_a_search_leaves_a_run_folder_that_says_the_same(opened: journal.Journal) -> None:
    machine = Machine(LAWS)
    bench = probes(opened, machine)
    found = Search("series", bench, 64, 8192, 0.1, NEAREST)
    search([found], bench.next_round)
    bench.close()
    near = found.crossing()
    assert near is not None
    assert near.at == pytest.approx(700, rel=0.05)
    run = read_run(opened.folder)
    assert (opened.folder / "results.csv").is_file()
    line = next(x for x in summarise(run).panels[0].tables[0].lines if x.series.operator == "series")
    assert line.against_baseline == found.crossover()
    (row,) = listings.searches([found], "softmax", "seq_len").rows
    block = next(b for b in parts(summarise(run))[0].text_tables if b.title == "Crossover of wall time")
    assert row["crossover"] in {cell.text for cell in block.rows[0]}
    stored = json.loads(json_output.run(summarise(run)))["panels"][0]["metrics"][0]["series"]
    (same,) = (s for s in stored if s["operator"] == "series")
    assert row["crossings"] == same["against_baseline"]["crossings"]


@pytest.mark.parametrize("after", [1, 9, 30])
def test_a_search_that_was_interrupted_goes_on_with_what_is_missing(opened: journal.Journal, after: int) -> None:
    class Interrupted(Machine):
        def start(self, number: int, threads: int) -> Any:
            if len(self.asked) >= after:
                raise KeyboardInterrupt
            return super().start(number, threads)

    bench = probes(opened, Interrupted(LAWS))
    with pytest.raises(KeyboardInterrupt):
        search([Search("series", bench, 64, 8192, 0.1, NEAREST)], bench.next_round)
    bench.kill()
    opened.close()
    before = journal.resume(opened.folder)
    known = list(before.visits)
    machine = Machine(LAWS)
    bench = probes(before, machine)
    found = Search("series", bench, 64, 8192, 0.1, NEAREST)
    search([found], bench.next_round)
    bench.close()
    before.close()
    assert found.ended.startswith("precision reached")
    visits = before.visits
    assert visits[: len(known)] == known
    assert len({(v.key, v.round) for v in visits}) == len(visits) == len(known) + len(machine.asked)
    assert {v.process for v in known}.isdisjoint(v.process for v in visits[len(known) :])


def test_a_finished_search_asked_again_measures_nothing_and_says_the_same(opened: journal.Journal) -> None:
    searches = []
    for machine in (first := Machine(LAWS), again := Machine(LAWS)):
        bench = probes(opened, machine)
        found = Search("series", bench, 64, 8192, 0.1, NEAREST)
        search([found], bench.next_round)
        bench.close()
        searches.append(found)
    assert first.asked
    assert not again.asked
    assert [(s.sizes, s.rounds, s.ended) for s in searches[:1]] == [(s.sizes, s.rounds, s.ended) for s in searches[1:]]
    assert searches[0].crossover() == searches[1].crossover()


def test_pairs_are_measured_in_one_process_and_a_round_has_its_own(opened: journal.Journal) -> None:
    machine = Machine(LAWS)
    bench = probes(opened, machine)
    search([Search("series", bench, 64, 8192, 0.1, NEAREST)], bench.next_round)
    timed = [visit for visit in opened.visits if visit.round > 0]
    by_round = {r: {v.process for v in timed if v.round == r} for r in {v.round for v in timed}}
    assert all(len(processes) == 1 for processes in by_round.values())
    assert len({next(iter(p)) for p in by_round.values()}) == len(by_round) >= 3
    checks = {visit.process for visit in opened.visits if visit.round == 0}
    assert checks.isdisjoint({v.process for v in timed})
    for visit in timed:
        twin = [v for v in timed if v.round == visit.round and v.cell["seq_len"] == visit.cell["seq_len"]]
        assert {v.cell["operator"] for v in twin} == {"softmax", "series"}


def test_what_does_not_fit_is_out_of_memory_and_not_called(opened: journal.Journal) -> None:
    machine = Machine({**LAWS, "series": lambda n: 3 * LAWS["softmax"](n)}, memory=2048)
    bench = probes(opened, machine)
    found = Search("series", bench, 64, 8192, 0.1, NEAREST)
    search([found], bench.next_round)
    assert found.beyond is not None
    assert (found.beyond.series_status, found.beyond.baseline_status) == ("oom", "oom")
    assert "it cannot be called" in found.ended
    assert max(n for _, _, n, _ in machine.asked) <= 2048


@pytest.mark.parametrize("axis", [name for name in AXES if name != "seq_len"])
def test_the_other_axes(opened: journal.Journal, axis: str) -> None:
    row, start = AXES[axis], START.get(axis, PROBLEM)
    bench = probes(opened, Machine(LAWS, size=row.position), axis)
    low, high = (64, 16384) if axis == "image_size" else (16, 2016)
    found = Search("series", bench, low, high, 0.1, row.allowed(start))
    search([found], bench.next_round)
    near = found.crossing()
    assert near is not None
    assert near.at == pytest.approx(700, rel=0.05)
    problems = [problem_of(visit.cell) for visit in opened.visits]
    assert all(problem == row.at(start, row.position(problem)) for problem in problems)
    if axis == "channels":
        assert all(problem.channels % 4 == 0 and problem.seq_len == 64 for problem in problems)
    if axis == "image_size":
        assert all(problem.height == problem.width for problem in problems)


BATCHES = (1, 2, 4, 8)
BORDER = SearchRequest(("performer",), "softmax", "seq_len", 64, 8192, 0.2, "wall_time_s", "batch", BATCHES)


def border_machine(after: float = math.inf) -> Machine:
    """A machine on which performer passes softmax at 700 · √batch. after: requests until it is interrupted."""

    class Interrupted(Machine):
        def start(self, number: int, threads: int) -> Any:
            if len(self.asked) >= after:
                raise KeyboardInterrupt
            return super().start(number, threads)

    return Interrupted({"softmax": LAWS["softmax"], "performer": LAWS["series"]}, growth={"performer": 1.5})


def border_search(
    folder: Path,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    asked: SearchRequest = BORDER,
    progress: Silent | None = None,
) -> tuple[Any, Any]:
    """A search by a machine, and how it ended; resumed where the folder is there."""
    monkeypatch.setattr(crossover, "Probes", partial(Probes, start=machine.start))
    monkeypatch.setattr(open_run, "_rates", lambda plan: {})
    if folder.exists():
        opened = crossover.resume_search(folder, "cpu", [])
    else:
        shape = {"batch": 1, "heads": 4, "channels": 64, "dtype": "float32", "causal": False}
        opened = crossover.begin_search(asked, suite_text(asked, shape, 64, "fwd", "core", [], []), "cpu", folder)
    return opened, crossover.run_search(opened, progress or Silent())


def test_of_an_image_both_sides_are_told(opened: journal.Journal) -> None:
    bench = probes(opened, Machine({"softmax": lambda n: 1e-9 * n * n, "series": lambda n: 2e-9 * n * n}), "image_size")
    told = {}
    for axis, place in (("image_size", AXES["image_size"].place), ("seq_len", AXES["seq_len"].place)):
        found = Search("series", bench, 64, 1024, 0.1, lambda n: round(math.sqrt(n)) ** 2, place=place)
        search([found], bench.next_round)
        told[axis] = found.ended
    assert told["image_size"] == "no crossing up to 16x16; at 32x32 one call agrees"
    assert told["seq_len"] == "no crossing up to 256; at 1020 one call agrees"


def test_a_border_leaves_a_run_folder_with_a_crossing_for_each_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Silent()
    opened, outcome = border_search(tmp_path / "run", border_machine(), monkeypatch, progress=progress)
    assert outcome.code == 0
    assert [stage.number for stage, _, _ in progress.stages] == list(range(1, outcome.searches[0].rounds + 1))
    assert {look.total for look in progress.looks} == {len(BATCHES)}
    listing = listings.searches(outcome.searches, "softmax", "seq_len", "batch", opened.named)
    assert [(row["series"], row["over"], row["value"]) for row in listing.rows] == [
        ("performer:reference", "batch", str(batch)) for batch in BATCHES
    ]
    for batch, row in zip(BATCHES, listing.rows, strict=True):
        low, high = row["crossing"]["low"], row["crossing"]["high"]
        assert (
            low * (1 - 1e-6) <= 700 * batch**0.5 <= high * (1 + 1e-6)
        )  # times without noise: an interval without width
        assert math.sqrt(high / low) <= 1.2
    assert sum(row["cells"] for row in listing.shown) == sum(len(s.every_size) for s in outcome.searches) <= 14
    run = read_run(tmp_path / "run")
    assert set(yaml.safe_load(run.suite_text)["sweep"][0]["seq_len"]) == set(run.visits["seq_len"])
    stored = {
        panel.panel.fixed["batch"]: line.against_baseline.crossings
        for panel in summarise(run).panels
        for line in panel.tables[0].lines
        if line.series.operator == "performer" and line.against_baseline
    }
    for batch, each in zip(BATCHES, outcome.searches, strict=True):
        (shown,), (same,) = stored[batch], each.crossover().crossings
        assert (shown.low, shown.high) == pytest.approx((same.low, same.high))


def test_a_request_without_a_second_axis_is_one_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace(BORDER, over="", values=())
    opened, outcome = border_search(tmp_path / "run", border_machine(), monkeypatch, asked)
    (row,) = listings.searches(outcome.searches, "softmax", "seq_len", "", opened.named).rows
    assert (row["series"], "over" in row) == ("performer:reference", False)
    assert row["crossing"]["low"] * (1 - 1e-6) <= 700 <= row["crossing"]["high"] * (1 + 1e-6)


def test_a_border_search_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, ended = border_search(tmp_path / "run", border_machine(after=25), monkeypatch)
    assert ended.code == 130
    assert any(each.ended == "interrupted" for each in ended.searches)
    known = list(first.session.journal.visits)
    second, outcome = border_search(tmp_path / "run", border_machine(), monkeypatch)
    assert outcome.code == 0
    visits = second.session.journal.visits
    assert visits[: len(known)] == known
    assert len({(visit.key, visit.round) for visit in visits}) == len(visits) > len(known) > 0
    assert all(each.ended.startswith("precision reached") for each in outcome.searches)
    asked_again = border_machine()
    _, same = border_search(tmp_path / "run", asked_again, monkeypatch)
    assert not asked_again.asked
    assert [each.crossover() for each in same.searches] == [each.crossover() for each in outcome.searches]


SEVERAL = {
    "seq_len": (64, 256), "image_size": (8, 32), "channels": (64, 128), "head_dim": (8, 16),
    "heads": (8, 16), "kv_heads": (1, 4), "batch": (1, 4), "query_len": (1, 32),
}  # fmt: skip


@pytest.mark.parametrize("axis", AXES)
def test_a_search_along_an_axis_stays_at_its_value_of_every_other_one(axis: str, tmp_path: Path) -> None:
    for over in (name for name in AXES if name != axis and not (AXES[name].domain and AXES[axis].domain)):
        asked = replace(BORDER, axis=axis, low=SEVERAL[axis][0], high=SEVERAL[axis][1], over=over, values=SEVERAL[over])
        shape = {"causal": "query_len" in (axis, over)}
        planned = cells(from_text(suite_text(asked, shape, 1024, "fwd", "core", [], []), "a test", tmp_path))
        compared = crossover.compared(planned, asked)
        along = crossover.varied(asked, planned)
        assert len(compared) == 2
        for each in compared.values():
            for cell in each.cells:
                nearest = along.allowed(cell.problem)
                ends = [math.prod(along.uniform(end)) for end in SEVERAL[axis]]
                for size in (*ends, nearest(math.sqrt(math.prod(ends)))):
                    assert AXES[over].label(along.at(cell.problem, size)) == each.value
