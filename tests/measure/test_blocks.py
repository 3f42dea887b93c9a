"""How the members of a block take turns, and what becomes of those that cannot: with workers that only pretend."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from attnbench.analysis.run import read_run
from attnbench.analysis.summary import summarise
from attnbench.analysis.undisturbed import undisturbed
from attnbench.measure.blocks import Member, measure_block
from attnbench.measure.protocol import FinishRequest, PrepareRequest, ReleaseRequest, Request, SampleRequest, WorkerLost
from attnbench.measure.runner import Runner
from attnbench.measure.visit_maker import Place
from attnbench.outputs._progress import Words
from attnbench.plan.blocks import parts_of
from attnbench.plan.settings import Measure
from attnbench.problem import Cell
from attnbench.store import journal
from attnbench.store.records import MOST_WARNINGS, Visit
from tests.analysis.runs import run_of
from tests.pretended import Answers, Pretended, fine, of
from tests.running import Silent, plan
from tests.stored import cell

MEASURE = Measure(min_turns=3, max_turns=5, max_time_s=1.0)
SERIES = [cell(name) for name in ("linformer", "performer", "identity")]
BASE = cell("softmax")
MEMBERS = [Member((BASE,), 3), *(Member((each,)) for each in SERIES)]
Asked = list[tuple[int, str, str]]
"""Of each request: the process that was asked, what, and about which operator."""


class Watched(Pretended):
    """Writes down what it is asked."""

    def __init__(self, number: int, answer: Answers, asked: Asked) -> None:
        super().__init__(number, answer)
        self.asked = asked

    def ask(self, request: Any, timeout: float) -> Any:
        key = request.cell.key if hasattr(request, "cell") else getattr(request, "key", "")
        self.asked.append((self.number, request.word, key.split(".")[0]))
        return super().ask(request, timeout)


class Side:
    """A run whose cells are checked."""

    def __init__(self, folder: Path, cells: Sequence[Cell], answer: Answers = fine) -> None:
        self.asked: Asked = []
        self.journal = journal.create(folder, "name: made\n", {})
        start: Any = lambda number, threads: Watched(number, answer, self.asked)  # noqa: E731
        self.runner = Runner(plan(cells, measure=MEASURE), self.journal, Silent(), start)
        self.runner.check()
        self.asked.clear()

    def timed(self) -> list[Visit]:
        return [visit for visit in self.journal.visits if visit.round]


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[list[Side]]:
    opened: list[Side] = []
    yield opened
    for side in opened:
        side.journal.close()


def measured(
    tmp_path: Path, opened: list[Side], answer: Answers = fine, measure: Measure = MEASURE, seed: int = 1
) -> Side:
    side = Side(tmp_path / f"run{len(opened)}", [BASE, *SERIES], answer)
    opened.append(side)
    assert measure_block([side.runner.maker], MEMBERS, Place(1), measure, random.Random(seed))
    return side


def test_members_take_turns_and_the_baseline_as_often_as_three(tmp_path: Path, sides: list[Side]) -> None:
    asked = measured(tmp_path, sides).asked
    assert [word for _, word, _ in asked] == ["prepare"] * 4 + ["sample"] * 30 + ["finish"] * 4 + ["release"]
    sampled = [name for _, word, name in asked if word == "sample"]
    turns = [sampled[start : start + 6] for start in range(0, 30, 6)]
    weights = {"softmax": 3, "linformer": 1, "performer": 1, "identity": 1}
    assert all(Counter(turn) == weights for turn in turns)
    assert len(set(map(tuple, turns))) > 1, "in random order"
    assert [a[1:] for a in measured(tmp_path, sides, seed=1).asked] == [a[1:] for a in asked]
    assert [a[1:] for a in measured(tmp_path, sides, seed=2).asked] != [a[1:] for a in asked]


@pytest.mark.parametrize(("seconds", "turns"), [(1e-3, 5), (0.3, 4), (9.0, 3)])
def test_a_block_ends_once_a_typical_member_has_been_timed_long_enough(
    tmp_path: Path, sides: list[Side], seconds: float, turns: int
) -> None:
    def answer(request: Request[Any]) -> dict[str, Any]:
        typical = isinstance(request, SampleRequest) and not of(request, "softmax")
        return {"status": "ok", "samples": [["wall", seconds, ""]]} if typical else fine(request)

    side = measured(tmp_path, sides, answer)
    assert sum(word == "sample" for _, word, _ in side.asked) == 6 * turns


def test_a_visit_has_the_undisturbed_and_the_median_time_of_its_steady_samples(
    tmp_path: Path, sides: list[Side]
) -> None:
    taken = [0.25, 0.5, 1.0, 2.0, 4.0]
    times = iter(taken)

    def answer(request: Request[Any]) -> dict[str, Any]:
        if isinstance(request, SampleRequest) and of(request, "linformer"):
            return {"status": "ok", "samples": [["wall", next(times), ""], ["wall", 0.125, "throttled"]]}
        return fine(request)

    side = measured(tmp_path, sides, answer, replace(MEASURE, min_turns=5))
    (visit,) = (v for v in side.timed() if "linformer" in v.key)
    figures = [visit.metrics[name] for name in ("wall_time_s", "wall_time_median_s", "first_call_s")]
    assert figures == [undisturbed(taken), 1.0, 2e-3]
    rows = read_run(side.journal.folder).samples
    rows = rows[rows["key"] == visit.key]
    assert list(rows["index"]) == list(range(10))
    assert visit.samples == 10
    assert list(rows["seconds"])[::2] == taken


def test_the_time_of_a_baseline_is_that_of_three_members(tmp_path: Path, sides: list[Side]) -> None:
    taken = [1.0 + random.Random(number).random() for number in range(15)]
    times = iter(taken)

    def answer(request: Request[Any]) -> dict[str, Any]:
        if isinstance(request, SampleRequest) and of(request, "softmax"):
            return {"status": "ok", "samples": [["wall", next(times), ""]]}
        return fine(request)

    side = measured(tmp_path, sides, answer, replace(MEASURE, min_turns=5))
    (visit,) = (v for v in side.timed() if "softmax" in v.key)
    assert visit.metrics["wall_time_s"] == undisturbed(taken[0::3], taken[1::3], taken[2::3]) > undisturbed(taken)
    assert visit.samples == 15


def failing(word: str, status: str) -> Answers:
    """performer fails when it is asked for this."""
    kinds = {"prepare": PrepareRequest, "sample": SampleRequest, "finish": FinishRequest}

    def answer(request: Request[Any]) -> dict[str, Any]:
        if isinstance(request, kinds[word]) and of(request, "performer"):
            return {"status": status, "reason": "so"}
        return fine(request)

    return answer


@pytest.mark.parametrize("word", ["prepare", "sample", "finish"])
@pytest.mark.parametrize(("status", "processes"), [("error", 1), ("wrong", 1), ("crashed", 2), ("oom", 2)])
def test_a_member_that_fails_has_its_status_and_the_others_their_times(
    tmp_path: Path, sides: list[Side], word: str, status: str, processes: int
) -> None:
    side = measured(tmp_path, sides, failing(word, status))
    statuses = {visit.key.split(".")[0]: visit.status for visit in side.timed()}
    assert statuses == {**dict.fromkeys(("softmax", "linformer", "identity"), "ok"), "performer": status}
    assert len({number for number, *_ in side.asked}) == processes
    fine_ones = [visit for visit in side.timed() if visit.status == "ok"]
    assert {visit.samples for visit in fine_ones} == {5, 15}, "a block that begins again has all of its turns"
    assert len({(visit.process, visit.part) for visit in fine_ones}) == 1
    samples = read_run(side.journal.folder).samples
    assert len(samples) == sum(visit.samples for visit in side.timed())
    assert set(samples["part"]) <= {visit.part for visit in side.timed() if visit.samples}


def test_a_worker_that_is_lost_is_the_failure_of_the_member_that_was_asked(tmp_path: Path, sides: list[Side]) -> None:
    def answer(request: Request[Any]) -> dict[str, Any]:
        if isinstance(request, SampleRequest) and of(request, "performer"):
            raise WorkerLost("timeout", "no answer within 60 s")
        return fine(request)

    side = measured(tmp_path, sides, answer)
    (lost,) = (visit for visit in side.timed() if visit.status != "ok")
    assert (lost.status, lost.reason) == ("timeout", "no answer within 60 s (cell_timeout)")
    assert "performer" in lost.key
    assert len(side.timed()) == 4


def test_what_has_another_name_at_each_call_is_told_a_few_times(tmp_path: Path, sides: list[Side]) -> None:
    names = count()

    def answer(request: Request[Any]) -> dict[str, Any]:
        left = [f"it sets VARIABLE_{next(names):x}_"] if of(request, "performer") else []
        return {**fine(request), "warnings": left}

    side = measured(tmp_path, sides, answer)
    assert next(names) > MOST_WARNINGS
    (warned,) = (visit.warnings for visit in side.timed() if visit.warnings)
    assert len(warned) == MOST_WARNINGS
    shown: list[str] = []
    words = Words(shown.append, shown.append)
    every = [replace(visit, warnings=(f"it sets OTHER_{i}_",)) for i in range(100) for visit in side.timed()[:2]]
    for visit in every:
        words.ended(visit, None)
    told = [line for line in shown if line.startswith("warning: ")]
    assert len(told) == 2 * (MOST_WARNINGS + 1), "of each series"
    assert told[-1].endswith("more warnings, which name other things, are not shown")
    assert len(summarise(run_of(every)).warnings) == MOST_WARNINGS


@pytest.mark.parametrize("word", ["prepare", "sample", "finish"])
def test_a_member_that_changes_what_others_find_is_measured_alone(tmp_path: Path, sides: list[Side], word: str) -> None:
    kinds = {"prepare": PrepareRequest, "sample": SampleRequest, "finish": FinishRequest}
    threads = count(8)

    def answer(request: Request[Any]) -> dict[str, Any]:
        changes = isinstance(request, kinds[word]) and of(request, "performer")
        left = [f"it leaves {next(threads)} threads"] if changes else []
        return {**fine(request), "restart": changes, "warnings": left}

    side = measured(tmp_path, sides, answer)
    process = {visit.key.split(".")[0]: visit.process for visit in side.timed()}
    assert [visit.status for visit in side.timed()] == ["ok"] * 4
    most = f"it leaves {next(threads) - 1} threads"
    assert [visit.warnings for visit in side.timed() if visit.warnings] == [(most,)], "the largest number, once"
    assert list(process.values()).count(process["performer"]) == 1
    assert process["softmax"] == process["linformer"] == process["identity"] < process["performer"]
    beside = {name for number, _, name in side.asked if number == process["performer"]}
    assert beside == {"performer", ""}
    before = len(side.asked)
    assert measure_block([side.runner.maker], MEMBERS, Place(2), MEASURE, random.Random(2))
    again = side.asked[before:]
    assert [name for _, word, name in again if word == "prepare"][-1] == "performer", "it is known by now"
    assert sum(word == "prepare" for _, word, _ in again) == 4


def test_both_sides_of_a_gate_are_sampled_one_right_after_the_other(tmp_path: Path, sides: list[Side]) -> None:
    twins = [Member((each, each)) for each in SERIES]
    sides += [Side(tmp_path / name, SERIES) for name in ("base", "head")]
    order: Asked = []
    for number, side in enumerate(sides):
        side.runner.workers.start = lambda process, threads, n=number: Watched(n, fine, order)  # type: ignore[misc, assignment, return-value]
    makers = [side.runner.maker for side in sides]
    assert measure_block(makers, twins, Place(1), MEASURE, random.Random(1))
    sampled = [(number, name) for number, word, name in order if word == "sample"]
    pairs = list(zip(sampled[::2], sampled[1::2], strict=True))
    assert all(a[1] == b[1] and {a[0], b[0]} == {0, 1} for a, b in pairs)
    assert {a[0] for a, _ in pairs} == {0, 1}, "either side may be the first"
    assert [sorted(v.key for v in side.timed()) for side in sides] == [sorted(each.key for each in SERIES)] * 2


def test_a_twin_of_what_fails_is_not_measured_further(tmp_path: Path, sides: list[Side]) -> None:
    sides += [Side(tmp_path / "base", SERIES), Side(tmp_path / "head", SERIES, failing("sample", "crashed"))]
    makers = [side.runner.maker for side in sides]
    assert measure_block(makers, [Member((each, each)) for each in SERIES], Place(1), MEASURE, random.Random(1))
    base, head = ({v.key.split(".")[0]: v.status for v in side.timed()} for side in sides)
    assert base == {"linformer": "ok", "identity": "ok"}
    assert head == {**base, "performer": "crashed"}


def test_members_that_do_not_fit_together_are_measured_in_parts_with_the_baseline() -> None:
    def parts(limit: int) -> list[list[str]]:
        memory = {BASE.key: (10, 50), **{each.key: (10, 20) for each in SERIES}}
        return [[each.operator for each in part] for part in parts_of([BASE, *SERIES], BASE, memory, limit)]

    assert parts(90) == [["softmax", "linformer", "performer", "identity"]]
    assert parts(89) == [["softmax", "linformer", "performer"], ["softmax", "identity"]]
    assert parts(1) == [["softmax", "linformer"], ["softmax", "performer"], ["softmax", "identity"]]
    assert parts_of([BASE], BASE, {BASE.key: (10, 50)}, 1) == [(BASE,)]
    assert parts_of(SERIES, None, {each.key: (10, 20) for each in SERIES}, 40) == [tuple(SERIES[:2]), (SERIES[2],)]


def test_the_parts_of_a_block_have_the_baseline_each_and_are_read_back(tmp_path: Path) -> None:
    opened = journal.create(tmp_path / "run", "name: made\n", {})
    start: Any = lambda number, threads: Pretended(number, fine)  # noqa: E731
    made = plan([BASE, *SERIES], measure=replace(MEASURE, rounds=2), memory_limit=4 * 2**20, baseline="softmax")
    Runner(made, opened, Silent(), start).run()
    opened.close()
    run = read_run(tmp_path / "run")
    timed = run.visits[run.visits["round"] == 1]
    assert timed.groupby("part")["operator"].apply(lambda names: "softmax" in set(names)).tolist() == [True, True]
    assert Counter(timed["operator"]) == {"softmax": 2, "linformer": 1, "performer": 1, "identity": 1}
    assert set(run.results["rounds"]) == {2}
    again = journal.resume(tmp_path / "run")
    before = len(again.visits)
    Runner(made, again, Silent(), start).run()
    again.close()
    assert len(again.visits) == before


def test_a_release_that_no_worker_answers_ends_it(tmp_path: Path, sides: list[Side]) -> None:
    class Deaf(Watched):
        def ask(self, request: Any, timeout: float) -> Any:
            if isinstance(request, ReleaseRequest):
                raise WorkerLost("timeout", "no answer")
            return super().ask(request, timeout)

    side = Side(tmp_path / "run", [BASE, *SERIES])
    sides.append(side)
    side.runner.workers.start = lambda number, threads: Deaf(number, fine, side.asked)  # type: ignore[assignment, return-value]
    assert measure_block([side.runner.maker], MEMBERS, Place(1), MEASURE, random.Random(1))
    assert len(side.timed()) == 4
    assert side.runner.workers.measuring is None
