"""What a runner decides: with workers that only pretend, so that every case is quick."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attnbench.analysis import results
from attnbench.analysis.run import Run, read_run
from attnbench.errors import BadInput
from attnbench.measure import worker_process
from attnbench.measure.budget import Budget
from attnbench.measure.metrics import energy
from attnbench.measure.protocol import (
    CheckRequest,
    FinishRequest,
    PrepareRequest,
    Request,
    SampleRequest,
    WorkerLost,
    answer_to,
)
from attnbench.measure.runner import Runner, Stopped, exit_code
from attnbench.measure.worker_pool import FORECASTER, lasting_workers
from attnbench.plan import time_budget
from attnbench.plan.blocks import BASELINE_WEIGHT
from attnbench.plan.measured_code import measured_code
from attnbench.plan.plan import beyond
from attnbench.plan.settings import WARM_UP_S, Limits, Measure
from attnbench.problem import Cell, Problem
from attnbench.progress import Stage
from attnbench.registry import metrics
from attnbench.store import journal
from attnbench.store.records import VISITS, Visit
from tests.pretended import FORESEEN, Pretended, fine, of, ran
from tests.running import Silent, faulty, plan
from tests.stored import CELL, cell, visit

CELLS = [faulty(impl, n) for impl in ("reference", "honest") for n in (64, 32, 128)]
TURNS = 4
ROUNDS = Measure(rounds=3, max_rounds=3, min_turns=2, max_turns=TURNS)
ONCE = replace(ROUNDS, rounds=1, max_rounds=1)


def test_the_check_goes_up_in_size_and_rounds_are_shuffled_alike_for_a_seed(tmp_path: Path) -> None:
    run = ran(tmp_path / "a", CELLS, measure=ROUNDS, seed=1)
    checked = run.visits[run.visits["round"] == 0]
    assert list(checked["seq_len"]) == [32, 32, 64, 64, 128, 128]
    orders = [tuple(run.visits[run.visits["round"] == n]["key"]) for n in (1, 2, 3)]
    assert len(set(orders)) == 3
    for n in (1, 2, 3):
        blocks = run.visits[run.visits["round"] == n].groupby("seq_len", sort=False)["order"].unique()
        assert list(map(list, blocks)) == [[0], [1], [2]], "the members of a block are visited together"
    again = ran(tmp_path / "b", CELLS, measure=ROUNDS, seed=1)
    assert list(again.visits["key"]) == list(run.visits["key"])
    other = ran(tmp_path / "c", CELLS, measure=ROUNDS, seed=2)
    assert list(other.visits["key"]) != list(run.visits["key"])


def test_every_round_has_a_fresh_process(tmp_path: Path) -> None:
    run = ran(tmp_path / "run", CELLS, measure=ROUNDS)
    assert run.visits.groupby("round")["process"].nunique().eq(1).all()
    assert run.visits["process"].nunique() == 4


def test_a_fatal_answer_ends_its_worker(tmp_path: Path) -> None:
    def answer(request: Request[Any]) -> dict[str, Any]:
        bad = of(request, ".n64.") and isinstance(request, SampleRequest)
        return {"status": "crashed", "reason": "lost"} if bad else fine(request)

    run = ran(tmp_path / "run", CELLS, answer, measure=ONCE)
    timed = run.visits[run.visits["round"] == 1].reset_index(drop=True)
    crashed = timed.index[timed["status"] == "crashed"]
    assert len(crashed) == 2
    for index in crashed:
        assert (timed["process"][index + 1 :] > timed["process"][index]).all()


@pytest.mark.parametrize(("status", "visits"), [("wrong", 1), ("timeout", 1), ("oom", 1), ("crashed", 3), ("error", 3)])
def test_what_would_fail_the_same_way_is_not_visited_again(tmp_path: Path, status: str, visits: int) -> None:
    def answer(request: Request[Any]) -> dict[str, Any]:
        return {"status": status, "reason": "so"} if of(request, "") else fine(request)

    run = ran(tmp_path / "run", CELLS[:1], answer, measure=ROUNDS)
    assert len(run.visits[run.visits["round"] > 0]) == visits
    assert run.results["status"].iloc[0] == status


def test_a_clock_that_is_never_steady_ends_the_run_with_a_reason(tmp_path: Path) -> None:
    def answer(request: Request[Any]) -> dict[str, Any]:
        slow = {"samples": [["wall", 1e-3, "throttled"]]} if isinstance(request, SampleRequest) else {}
        return {**fine(request), **slow}

    with pytest.raises(Stopped, match="throttled throughout 5 visits"):
        ran(tmp_path / "run", CELLS, answer, measure=ROUNDS)
    run = read_run(tmp_path / "run")
    assert len(run.visits) == 6 + 6, "three blocks of two, the third of which it looks at when it is stored"
    assert "wall_time_s" not in run.visits or run.visits["wall_time_s"].isna().all()
    assert (tmp_path / "run" / "results.csv").is_file()


def test_an_older_worker_calls_the_time_of_a_check_otherwise(tmp_path: Path) -> None:
    def answer(request: Request[Any]) -> dict[str, Any]:
        message = fine(request)
        if not isinstance(request, CheckRequest):
            return message
        metrics = {name.replace("check_time_s", "scout_time_s"): v for name, v in message["metrics"].items()}
        return {**message, "metrics": metrics}

    run = ran(tmp_path / "run", CELLS[:1], answer, measure=ONCE)
    first = run.visits.iloc[0]
    assert (first["round"], first["check_time_s"]) == (0, 1e-3)
    assert "scout_time_s" not in run.visits


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": "fine"},
        {"reason": "\ud800"},
        {"kernel": 3},
        {"metrics": {"flops": -1}},
        {"metrics": {"wall_time_s": "soon"}},
        {"metrics": []},
        {"operations": {"aten.add": 0.5}},
        {"warnings": 3},
        {"samples": [["wall", "1", ""]]},
        {"samples": [["wall", 1e-3, "a,b"]]},
        {"samples": [[1e-3]]},
    ],
    ids=str,
)
def test_an_answer_that_could_not_be_read_again_is_a_crash_of_its_visit(tmp_path: Path, wrong: dict[str, Any]) -> None:
    def answer(request: Request[Any]) -> dict[str, Any]:
        impl = request.cell.impl if isinstance(request, CheckRequest) else ""
        return {**fine(request), **(wrong if impl == "honest" or of(request, ".honest.") else {})}

    run = ran(tmp_path / "run", CELLS, answer, measure=ONCE)
    honest = run.results["impl"] == "honest"
    assert (run.results["status"] == "crashed").tolist() == honest.tolist()
    assert run.results[honest]["reason"].str.startswith("the worker sent what is no answer: ").all()
    assert (run.results[~honest]["wall_time_s"] > 0).all()


def test_code_that_changes_between_two_rounds_ends_the_run(tmp_path: Path) -> None:
    """Every round's process imports anew: the next one would measure other code under the same key."""
    own = tmp_path / "mine.py"
    own.write_text("first = 1")
    code = measured_code([str(own)])

    def begin(cell: Cell, round: int) -> None:
        if round == 1 and runner.workers.measuring is not None:
            own.write_text("second = 2")

    opened = journal.create(tmp_path / "run", "name: made\n", {})
    start: Any = lambda number, threads: Pretended(number, fine)  # noqa: E731
    made = plan(CELLS, measure=ROUNDS, operators_from=(str(own),), code=code)
    runner = Runner(made, opened, Silent(begin), start)
    with pytest.raises(Stopped, match=r"since it was begun mine\.py has changed .* \S+\)"):
        runner.run()
    opened.close()
    assert set(read_run(tmp_path / "run").visits["round"]) == {0, 1}
    own.write_text("first = 1")
    again = journal.resume(tmp_path / "run")
    Runner(made, again, Silent(), start).run()
    again.close()
    assert set(read_run(tmp_path / "run").visits["round"]) == {0, 1, 2, 3}


def test_workers_that_do_not_start_end_the_run(tmp_path: Path) -> None:
    opened = journal.create(tmp_path / "run", "", {})

    def start(number: int, threads: int) -> worker_process.Worker:
        raise WorkerLost("crashed", "no torch")

    with pytest.raises(Stopped, match="no torch"):
        Runner(plan(CELLS), opened, Silent(), start).run()


@pytest.mark.parametrize("lasting", [True, False])
def test_runs_one_after_another_can_have_workers_that_forecast_and_check(lasting: bool, tmp_path: Path) -> None:
    started, starts = [], []

    def start(number: int, threads: int) -> Any:
        started.append(Pretended(number, fine))
        return started[-1]

    with lasting_workers(start) as of_plan:
        for name, threads in (("first", 1), ("second", 1), ("third", 2)):
            before = len(started)
            made, opened = (
                replace(plan(CELLS, measure=ONCE), threads=threads),
                journal.create(tmp_path / name, "name: made\n", {}),
            )
            Runner(made, opened, Silent(), start, lasting=of_plan(made) if lasting else None).run()
            opened.close()
            assert set(read_run(tmp_path / name).visits["process"]) == {0, 1}
            starts.append([worker.number for worker in started[before:]])
    own = [0, FORECASTER, 1]
    assert starts == [own, [1] if lasting else own, own], "the third computes with other threads"
    assert all(worker.closed for worker in started)


def test_a_lasting_worker_that_has_ended_meanwhile_is_started_again(tmp_path: Path) -> None:
    started: list[Pretended] = []

    def start(number: int, threads: int) -> Any:
        started.append(Pretended(number, fine))
        return started[-1]

    with lasting_workers(start) as of_plan:
        for name in ("first", "second"):
            made, opened = plan(CELLS, measure=ONCE), journal.create(tmp_path / name, "name: made\n", {})
            Runner(made, opened, Silent(), start, lasting=of_plan(made)).run()
            opened.close()
            started[0].closed = True
    assert [worker.number for worker in started] == [0, FORECASTER, 1, 0, 1]
    assert set(read_run(tmp_path / "second").visits["status"]) == {"ok"}


def test_a_predicted_excess_says_by_how_much(tmp_path: Path) -> None:
    run = ran(tmp_path / "run", CELLS[:1], memory_limit=FORESEEN - 2**20)
    told = "predicted to need 3 MiB, 1 MiB over the limit of 2 MiB"
    assert run.results[["status", "reason"]].to_numpy().tolist() == [["skipped", told]]
    run = ran(tmp_path / "other", CELLS[:1], memory_limit=FORESEEN)
    assert run.results["status"].iloc[0] == "ok"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """CELLS in one round, without an interruption."""
    return ran(tmp_path_factory.mktemp("whole") / "run", CELLS)


# What is stored when it fails and how it fails have nothing to do with each other.
@pytest.mark.parametrize(
    ("stored", "error", "todo"),
    [
        pytest.param(0, errno.ENOSPC, "Free some space there", id="full"),
        pytest.param(3, errno.EROFS, "Make it writable", id="read-only"),
        pytest.param(8, errno.EIO, "See to its disk", id="broken"),
        pytest.param(8, errno.ESTALE, "It was moved or removed, or its disk is gone: put it back", id="gone"),
    ],
)
def test_a_disk_that_takes_no_more_ends_the_run_and_costs_one_visit(
    tmp_path: Path, whole: Run, stored: int, error: int, todo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full, read-only or broken while the run goes on; afterwards it is gone on with, and nothing is there twice."""
    folder, lines = tmp_path / "run", tmp_path / "run" / VISITS
    opened = journal.create(folder, "name: made\n", {})
    workers: list[Pretended] = []

    def start(number: int, threads: int) -> Any:
        workers.append(Pretended(number, fine))
        return workers[-1]

    def fsync(file: int) -> None:
        if len(opened.visits) >= stored:
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr(journal, "os", SimpleNamespace(fsync=fsync))
    with pytest.raises(BadInput, match=f"{folder}: cannot be written: {os.strerror(error)}. {todo}.*kept.*--resume"):
        Runner(plan(CELLS), opened, Silent(), start).run()
    opened.close()
    monkeypatch.undo()
    assert lines.read_text().count("\n") == stored
    assert lines.read_bytes().endswith(b"\n" * bool(stored))
    assert len(read_run(folder).samples) == sum(v.samples for v in opened.visits)
    assert workers
    assert all(worker.closed for worker in workers)
    again = journal.resume(folder)
    Runner(plan(CELLS), again, Silent(), start).run()
    again.close()
    run = read_run(folder)
    visits = [sorted(zip(r.visits["key"], r.visits["round"], strict=True)) for r in (run, whole)]
    assert visits[0] == visits[1]
    assert len(run.samples) == len(whole.samples)


@pytest.fixture(scope="module")
def whole_of_rounds(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """CELLS in all rounds, without an interruption."""
    return ran(tmp_path_factory.mktemp("whole") / "run", CELLS, measure=ROUNDS)


@pytest.mark.parametrize("asked", [1, 30, 61])
def test_an_interrupt_within_a_block_costs_that_block_alone(tmp_path: Path, whole_of_rounds: Run, asked: int) -> None:
    left = iter(range(asked))

    def answer(request: Request[Any]) -> dict[str, Any]:
        if not isinstance(request, CheckRequest) and next(left, None) is None:
            raise KeyboardInterrupt
        return fine(request)

    with pytest.raises(KeyboardInterrupt):
        ran(tmp_path / "run", CELLS, answer, measure=ROUNDS)
    before = read_run(tmp_path / "run")
    assert len(before.visits) % 2 == 0, "the visits of a block are there together"
    assert len(before.samples) == before.visits["samples"].sum()
    again = journal.resume(tmp_path / "run")
    start: Any = lambda number, threads: Pretended(number, fine)  # noqa: E731
    Runner(plan(CELLS, measure=ROUNDS), again, Silent(), start).run()
    again.close()
    after, whole = read_run(tmp_path / "run"), whole_of_rounds
    assert after.visits["key"].head(len(before.visits)).tolist() == before.visits["key"].tolist()
    assert len(after.visits) == len(whole.visits)
    assert len(after.samples) == len(whole.samples)


def test_a_results_file_that_cannot_be_written_loses_no_visit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(results, "write", full)
    with pytest.raises(BadInput, match="No space left"):
        ran(tmp_path / "run", CELLS)
    assert len(read_run(tmp_path / "run").visits) == len(CELLS)


BEGUN_S = 100.0


class Clock:
    """A clock that only work moves. call_s: what a call of a cell takes; late: timed visits take so much longer."""

    def __init__(self, call_s: Callable[[Cell], float], late: float = 1.0) -> None:
        self.now_s = BEGUN_S
        self.call_s = call_s
        self.late = late
        self.cells: dict[str, Cell] = {}

    def now(self) -> float:
        return self.now_s

    def start(self, number: int, threads: int) -> Any:
        self.now_s += 2.0
        worker = Pretended(number, fine)
        worker.start_s = 2.0
        worker.ask = self.ask  # type: ignore[method-assign]
        return worker

    def ask(self, request: Any, timeout: float) -> Any:
        if not isinstance(request, (CheckRequest, PrepareRequest, SampleRequest, FinishRequest)):
            self.now_s += 0.01
            return Pretended(0, fine).ask(request, timeout)
        if not isinstance(request, (SampleRequest, FinishRequest)):
            self.cells[request.cell.key] = request.cell
        call = self.call_s(self.cells[getattr(request, "key", "") or request.cell.key])  # type: ignore[union-attr]
        around_s = (time_budget.VISIT_S + time_budget.CALLS_AROUND * call) / 2
        takes = self.late * (time_budget.sample_s(call) if isinstance(request, SampleRequest) else around_s)
        if isinstance(request, CheckRequest):
            takes = time_budget.CHECK_S + time_budget.CHECK_CALLS * call
        self.now_s += min(takes, timeout)
        if takes > timeout:
            raise WorkerLost("timeout", f"no answer within {timeout:g} s")
        answer = fine(request)
        if isinstance(request, CheckRequest):
            answer["metrics"] = {**answer["metrics"], "check_time_s": call, "visit_s": takes}
        return answer_to(request, answer)


SIZES = (64, 128, 256, 512, 1024)
SWEPT = [faulty(impl, n) for n in SIZES for impl in ("reference", "honest")]
SWEPT += [replace(faulty("reference", n), operator="softmax") for n in SIZES]
SQUARE: Callable[[Cell], float] = lambda cell: 1e-6 * cell.problem.seq_len**2  # noqa: E731


def budgeted(folder: Path, clock: Clock, budget_s: float | None, **given: Any) -> Run:
    opened = journal.create(folder, "name: made\n", {})
    limits = Limits(budget_s=budget_s, largest_first=given.pop("largest_first", False))
    made = plan(given.pop("cells", SWEPT), measure=ROUNDS, limits=limits, baseline="softmax")
    begun = clock.now_s
    Runner(made, opened, given.pop("progress", Silent()), clock.start, now=clock.now, **given).run()
    opened.close()
    clock.now_s -= begun
    return read_run(folder)


@pytest.mark.parametrize(
    ("budget_s", "late"),
    [(6, 1.0), (9, 4.0), (12, 1.0), (15, 4.0), (20, 1.0), (30, 4.0), (45, 4.0), (90, 1.0), (90, 4.0)],
)
def test_a_budget_is_kept_and_reaches_the_baseline_and_small_sizes_first(
    tmp_path: Path, budget_s: float, late: float
) -> None:
    clock = Clock(SQUARE, late)
    run = budgeted(tmp_path / "run", clock, budget_s)
    assert clock.now_s <= budget_s + time_budget.GRACE_S
    rows = run.results
    assert len(rows) == len(SWEPT)
    assert set(rows.loc[rows["status"] != "ok", "cause"]) <= {"budget"}
    assert (rows["cause"] == "budget").any() == (rows["status"] != "ok").any()
    timed = rows[rows["wall_time_s"] > 0]
    assert "softmax" in set(timed.loc[timed["seq_len"] == min(SIZES), "operator"])
    assert set(timed["seq_len"]) == set(SIZES[: timed["seq_len"].nunique()]), "no size without the smaller ones"
    assert run.visits["round"].max() >= 1


def test_a_budget_that_begins_with_the_largest_leaves_out_the_small_sizes(tmp_path: Path) -> None:
    budget_s = 20
    calls: list[Cell] = []

    def call_s(cell: Cell) -> float:
        calls.append(cell)
        return 0.05

    clock = Clock(call_s)
    rows = budgeted(tmp_path / "run", clock, budget_s, largest_first=True).results
    assert clock.now_s <= budget_s + time_budget.GRACE_S
    assert (calls[0].operator, calls[0].problem.seq_len) == ("softmax", max(SIZES))
    timed = set(rows.loc[rows["wall_time_s"] > 0, "seq_len"])
    assert timed == set(sorted(SIZES, reverse=True)[: len(timed)])
    assert 0 < len(timed) < len(SIZES)
    small = set(budgeted(tmp_path / "small", Clock(call_s), budget_s).results.query("wall_time_s > 0")["seq_len"])
    assert min(small) == min(SIZES), "the negative control: otherwise the small ones come first"


def test_a_resumed_run_makes_what_the_budget_did_not_reach(tmp_path: Path) -> None:
    before = budgeted(tmp_path / "run", Clock(SQUARE), 15).visits
    assert {"budget"} < set(before["cause"]), "the negative control: some were reached, others not"
    clock = Clock(SQUARE)
    again = journal.resume(tmp_path / "run")
    assert len(again.visits) == (before["cause"] != "budget").sum()
    made = plan(SWEPT, measure=ROUNDS, limits=Limits(budget_s=600), baseline="softmax")
    Runner(made, again, Silent(), clock.start, now=clock.now).run()
    again.close()
    after = read_run(tmp_path / "run")
    assert (after.results["status"] == "ok").all()
    assert (after.visits[after.visits["round"] == 0].groupby("key").size() == 1).all()


def test_without_a_budget_everything_is_measured_and_takes_longer(tmp_path: Path) -> None:
    clock = Clock(SQUARE)
    run = budgeted(tmp_path / "run", clock, None)
    assert (run.results["rounds"] == 3).all()
    assert clock.now_s > 90
    roomy = Clock(SQUARE)
    assert (budgeted(tmp_path / "roomy", roomy, 600).results["rounds"] == 3).all()


def test_a_budget_counts_from_where_the_command_began(tmp_path: Path) -> None:
    clock = Clock(SQUARE)
    run = budgeted(tmp_path / "run", clock, 60, begun=clock.now_s - 48)
    assert clock.now_s <= 12
    assert 0 < (run.results["status"] == "ok").sum() < len(SWEPT)


@pytest.mark.parametrize(
    ("budget_s", "status", "cause"),
    [(20, "skipped", "budget"), (None, "timeout", "timeout"), (400, "timeout", "timeout")],
)
def test_a_visit_under_way_is_bounded_by_what_the_budget_leaves(
    tmp_path: Path, budget_s: float | None, status: str, cause: str
) -> None:
    """A hang costs the budget's rest, but what was checked before it still gets its time."""
    clock = Clock(lambda cell: 1e9 if cell.impl == "honest" else 1e-4)
    run = budgeted(tmp_path / "run", clock, budget_s, cells=SWEPT[:2] + SWEPT[10:11])
    assert clock.now_s <= (budget_s or 100)
    rows = run.results.set_index("impl")
    assert tuple(rows.loc["honest", ["status", "cause"]]) == (status, cause)
    assert (run.results.loc[run.results["impl"] != "honest", "rounds"] > 0).all()


@pytest.mark.parametrize(("impl", "status"), [("honest", "timeout"), ("cuda:odd", "ok"), ("compiled", "ok")])
def test_what_compiles_may_take_longer_until_it_is_ready(tmp_path: Path, impl: str, status: str) -> None:
    clock = Clock(lambda cell: 8.0)
    assert Limits().cell_timeout_s < time_budget.CHECK_CALLS * 8.0
    assert list(budgeted(tmp_path / "run", clock, None, cells=[faulty(impl)]).results["status"]) == [status]


@pytest.mark.parametrize(("compile_s", "fits"), [(20.0, True), (0.0, False)])
def test_what_the_compiler_took_does_not_grow_with_the_size(compile_s: float, fits: bool) -> None:
    small, large = (replace(CELL, impl="cuda", problem=replace(CELL.problem, seq_len=n)) for n in (64, 256))
    limits = Limits(budget_s=100.0)
    budget = Budget(plan([small, large], limits=limits, measure=ROUNDS), [], 0.0, lambda: 0.0)
    budget.note_check(visit(small, metrics={"visit_s": 21.0, "check_time_s": 1e-3, "compile_s": compile_s}))
    assert (budget.reason_against_check(large, starts=0) is None) == fits


@pytest.mark.parametrize(("rounds", "elapsed_s", "fits"), [(1, 90.0, True), (1, 99.0, False), (9, 90.0, False)])
def test_down_in_size_the_check_goes_on_while_all_rounds_still_fit(rounds: int, elapsed_s: float, fits: bool) -> None:
    small, large = (replace(CELL, problem=replace(CELL.problem, seq_len=n)) for n in (64, 256))
    figures = {"visit_s": 0.1, "check_time_s": 1e-3}

    def goes_on(first: Cell, second: Cell, largest_first: bool) -> bool:
        limits = Limits(budget_s=100.0, largest_first=largest_first)
        made = plan([small, large], limits=limits, measure=replace(ROUNDS, rounds=rounds))
        budget = Budget(made, [1.0], 0.0, lambda: elapsed_s)
        budget.note_check(visit(first, metrics=figures))
        return budget.reason_against_check(second, starts=0) is None

    assert goes_on(large, small, largest_first=True) == fits
    assert not goes_on(small, large, largest_first=False), "up in size it stops at half the budget"


@pytest.mark.parametrize("recompile_s", [0.0, 5.0])
def test_what_torch_compiles_anew_counts_in_every_round(recompile_s: float) -> None:
    budget = Budget(plan([CELL], limits=Limits(budget_s=100.0), measure=ROUNDS), [], 0.0, lambda: 0.0)
    budget.note_check(visit(metrics={"check_time_s": 1e-3, "compile_s": 7.0, "recompile_s": recompile_s}))
    (timed,) = time_budget.timed([(CELL, 1e-3)], ROUNDS, "")
    assert budget.expected_s([CELL]) == pytest.approx(timed.visit_s(TURNS) + recompile_s)


def test_a_visit_on_a_gpu_counts_its_warm_up_and_the_span_of_its_energy() -> None:
    around_s = time_budget.around_s(metrics().values(), device_clock=True)
    assert around_s == pytest.approx(time_budget.PREPARE_S + WARM_UP_S + energy.SPAN_S)
    assert time_budget.around_s(metrics().values(), device_clock=False) == 0
    (there,) = time_budget.timed([(CELL, 1e-3)], ROUNDS, "", around_s)
    (here,) = time_budget.timed([(CELL, 1e-3)], ROUNDS, "")
    assert there.visit_s(2) == pytest.approx(here.visit_s(2) + around_s)


def test_a_budget_too_short_for_anything_ends_at_once_with_the_reason(tmp_path: Path) -> None:
    clock, told = Clock(SQUARE), Silent()
    run = budgeted(tmp_path / "run", clock, 1, progress=told)
    assert clock.now_s < 1 + time_budget.GRACE_S
    short = "the budget of 1 s is too short for any time here: three processes are needed, and one takes 2.0 s to start"
    assert [text.startswith(short) for text in told.told if text.startswith("the budget")] == [True]
    assert set(run.results["cause"]) == {"budget"}
    assert exit_code([]) == 3


def test_what_the_budget_left_of_later_rounds_is_made_by_a_resumed_run(tmp_path: Path) -> None:
    clock = Clock(SQUARE, late=4.0)
    before = budgeted(tmp_path / "run", clock, 45)
    short = before.results[(before.results["status"] == "ok") & (before.results["rounds"] < 3)]
    assert len(short), "the negative control: something is left"
    again = journal.resume(tmp_path / "run")
    limits = Limits(budget_s=600)
    made = plan(SWEPT, measure=ROUNDS, limits=limits, baseline="softmax")
    Runner(made, again, Silent(), clock.start, now=clock.now).run()
    again.close()
    after = read_run(tmp_path / "run").results.set_index("key")
    assert (after.loc[short["key"], "rounds"] == 3).all()


def test_a_budget_of_nothing_checks_the_smallest_and_skips_the_rest_alike(tmp_path: Path) -> None:
    run = ran(tmp_path / "run", CELLS, limits=Limits(budget_s=1e-9))
    assert (run.results["status"] == "skipped").all()
    assert run.results["reason"].str.contains("budget").all()


def test_budget_shortens_all_alike_before_it_drops_the_largest() -> None:
    measure = Measure(rounds=2, min_turns=2, max_turns=20, max_time_s=10.0)
    cells = [cell(seq_len=n) for n in (64, 128, 256, 512)]
    checked = list(time_budget.timed([(c, c.problem.seq_len * 1e-4) for c in cells], measure, ""))

    def round_s(turns: int) -> float:
        return sum(each.visit_s(turns) for each in checked) + time_budget.START_S

    free = time_budget.afford(checked, measure, None)
    assert (free.rounds, free.turns, free.out_of_reach) == (2, 20, {})
    roomy = time_budget.afford(checked, measure, 2 * round_s(20) + 1)
    assert (roomy.turns, roomy.out_of_reach) == (20, {})
    tight = time_budget.afford(checked, measure, 2 * round_s(9) + 1e-6)
    assert (tight.turns, tight.out_of_reach) == (9, {})
    scant = time_budget.afford(checked, measure, 2 * round_s(2) - 0.01)
    assert set(scant.out_of_reach) == {cell(seq_len=512).key}
    assert scant.rounds == 2
    once = time_budget.afford(checked[:1], measure, 1.5 * (checked[0].visit_s(2) + time_budget.START_S))
    assert (once.rounds, len(once.out_of_reach)) == (1, 0), "fewer rounds where not even the smallest size has two"
    impls = ("reference", "sdpa", "compiled")
    same = list(time_budget.timed([(replace(cells[0], impl=impl), 0.05) for impl in impls], measure, ""))
    two_s = sum(each.visit_s(2) for each in same[:2]) + time_budget.START_S
    part = time_budget.afford(same, measure, two_s + 0.01)
    assert (part.rounds, len(part.out_of_reach)) == (1, 1), "of a size that does not fit, what comes first"
    none = time_budget.afford(same, measure, 1.0, before_all=1)
    assert (none.rounds, set(none.out_of_reach)) == (1, {each.cell.key for each in same[1:]})


def test_a_block_of_long_calls_takes_fewer_turns_and_the_baseline_more_samples() -> None:
    measure = Measure()
    timed = {
        each.cell.problem.seq_len: each
        for each in time_budget.timed(
            [(cell(seq_len=n), call) for n, call in ((64, 1e-5), (128, 2e-3), (256, 0.05), (512, 1.0))],
            measure,
            "softmax",
        )
    }
    assert [each.turns for each in timed.values()] == [24, 24, 10, 6]
    assert {each.weight for each in timed.values()} == {BASELINE_WEIGHT}


def test_beyond_means_no_size_smaller_and_one_larger() -> None:
    small = faulty("honest", 64)
    assert beyond(faulty("honest", 128), small)
    assert not beyond(faulty("honest", 32), small)
    assert not beyond(small, small)
    assert not beyond(faulty("reference", 128), small)
    assert not beyond(faulty("honest", 128, "fwd_bwd"), small)
    assert beyond(replace(small, problem=Problem(64, 16)), small)
    assert not beyond(replace(small, problem=Problem(128, 4)), small)


STEP = Problem(64, 32, 4, 2, causal=True, kv_heads=2, query_len=8)


@pytest.mark.parametrize(
    ("larger", "grown"),
    [
        ({"batch": 4}, 4),
        ({"query_len": 16}, 2),
        ({"query_len": 64}, 8),
        ({"seq_len": 128}, 2),
        ({"seq_len": 128, "query_len": 128}, 32),
        ({"kv_heads": 4}, 1),
        ({"channels": 64}, 4),
        ({"channels": 64, "heads": 8}, 4),
    ],
)
def test_a_larger_size_of_any_axis_needs_at_least_as_much(larger: dict[str, int], grown: float) -> None:
    small = Cell("softmax", "reference", "core", "fwd", STEP, {})
    large = replace(small, problem=replace(STEP, **larger))  # type: ignore[arg-type]
    assert beyond(large, small)
    assert not beyond(small, large)
    assert time_budget.size(large) > time_budget.size(small)
    assert (time_budget.growth(large, small), time_budget.growth(small, large)) == (grown, 1)


@pytest.mark.parametrize("other", [{"heads": 8}, {"heads": 2}, {"seq_len": 128, "batch": 1}, {"kv_heads": 1}])
def test_what_is_smaller_in_one_size_may_need_less(other: dict[str, int]) -> None:
    """More heads of as many channels are narrower ones: a state of D² numbers a head is smaller then."""
    small = Cell("softmax", "reference", "core", "fwd", STEP, {})
    changed = replace(small, problem=replace(STEP, **other))  # type: ignore[arg-type]
    assert not beyond(changed, small)


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        (["ok", "ok"], 0),
        (["ok", "skipped"], 0),
        (["skipped", "skipped"], 3),
        ([], 3),
        *((["ok", bad], 1) for bad in ("wrong", "crashed", "error", "timeout", "oom")),
    ],
)
def test_exit_codes(statuses: list[Any], code: int) -> None:
    visits: list[Visit] = [visit(CELL, round=1, status=status) for status in statuses]
    assert exit_code(visits) == code


def test_a_checked_but_never_timed_run_measured_nothing() -> None:
    assert exit_code([visit(CELL, round=0)]) == 3


def test_seeds_differ_between_suites() -> None:
    assert random.Random("1 1").random() != random.Random("1 2").random()


RATES = {"matmul_flops_per_s": {"float32": 1e8}, "copy_bytes_per_s": 1e9}


@dataclass
class Timed(Silent):
    """Also keeps what was expected to be left, and when."""

    clock: Clock = field(default_factory=lambda: Clock(SQUARE))
    left: list[tuple[int, float, float | None]] = field(default_factory=list)

    def ended(self, visit: Visit, seconds: float | None) -> None:
        self.left.append((visit.round, self.clock.now_s, seconds))


def shares(told: Timed, round: int) -> list[float]:
    """What was expected to be left after the visits of a round, over what was."""
    end = told.left[-1][1]
    return [
        left / (end - at) for number, at, left in told.left if number == round and left is not None and end - at > 1
    ]


def test_the_time_left_is_told_before_the_first_call_and_becomes_right(tmp_path: Path) -> None:
    told = Timed()
    budgeted(tmp_path / "run", told.clock, None, progress=told, rates=RATES)
    stage, visits, seconds = told.stages[0]
    assert (stage, visits) == (Stage("check", 0, 3, 3), len(SWEPT))
    assert seconds is not None
    assert 0.2 < seconds / (told.left[-1][1] - BEGUN_S) < 5, "the formulas are right within a factor"
    assert all(0.7 < share < 1.4 for share in shares(told, 0)[-3:]), "after the check it is known what calls take"
    assert all(0.8 < share < 1.3 for share in shares(told, 2))
    assert [stage.number for stage, _, _ in told.stages] == [0, 1, 2, 3]
    assert all(later is not None and later < seconds for _, _, later in told.stages[1:])


def test_without_rates_nothing_is_foreseen_and_slow_blocks_are_noted(tmp_path: Path) -> None:
    told = Timed(clock=Clock(SQUARE, late=3.0))
    budgeted(tmp_path / "run", told.clock, None, progress=told)
    assert told.stages[0][2] is None
    assert max(shares(told, 0)[-3:]) < 0.5, "the negative control: nobody knows yet that blocks take thrice as long"
    assert all(0.8 < share < 1.3 for share in shares(told, 2))


def test_with_a_budget_no_more_is_left_than_of_that(tmp_path: Path) -> None:
    told = Timed()
    budgeted(tmp_path / "run", told.clock, 20, progress=told, rates=RATES)
    assert all(left is not None and at + left <= BEGUN_S + 20.001 for _, at, left in told.left)
