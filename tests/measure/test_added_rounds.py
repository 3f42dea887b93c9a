"""When rounds are added, around what, and what a run says of them: with workers that only pretend."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attnbench.analysis.run import Run, read_run
from attnbench.measure.protocol import CheckRequest, Request, SampleRequest
from attnbench.measure.runner import Runner
from attnbench.plan.settings import Limits, Measure
from attnbench.problem import Cell
from attnbench.store import journal
from tests.pretended import FIGURES, Pretended, fine
from tests.running import Silent, plan
from tests.stored import cell

SIZES = (256, 512, 1024, 2048, 4096)
CELLS = [cell(name, seq_len=n) for n in SIZES for name in ("softmax", "linformer", "performer")]
TIMES: dict[str, Callable[[int], float]] = {
    "softmax": lambda n: 1e-9 * n * n,
    "linformer": lambda n: 7e-7 * n,  # passes softmax at 700
    "performer": lambda n: 3e-6 * n,  # at 3000
}
ASKED = Measure(rounds=3, max_rounds=9, crossover_precision=0.05, min_turns=1, max_turns=1)


def answers(noise: float) -> Callable[[int], Callable[[Request[Any]], dict[str, Any]]]:
    """By process, answers whose times vary from visit to visit. noise: the sd of their logs."""

    def of_process(number: int) -> Callable[[Request[Any]], dict[str, Any]]:
        def answer(request: Request[Any]) -> dict[str, Any]:
            key = request.key if isinstance(request, SampleRequest) else ""
            if not key:
                metrics = {**FIGURES, "check_time_s": 1e-3, "visit_s": 0.1}
                return {"status": "ok", "metrics": metrics} if isinstance(request, CheckRequest) else fine(request)
            found = next(each for each in CELLS if each.key == key)
            drawn = random.Random(f"{number} {key}").gauss(0, noise)
            seconds = TIMES[found.operator](found.problem.seq_len) * (1 + drawn)
            return {"status": "ok", "samples": [["wall", seconds, ""]]}

        return answer

    return of_process


def ran(
    folder: Path, noise: float, measure: Measure = ASKED, cells: list[Cell] = CELLS, **given: Any
) -> tuple[Run, list[str]]:
    """A run, or what is missing of one, and what it said."""
    opened = journal.resume(folder) if folder.is_dir() else journal.create(folder, "name: made\n", {})
    progress = Silent()
    start: Any = lambda number, threads: Pretended(number, answers(noise)(number))  # noqa: E731
    runner = Runner(plan(cells, measure=measure, baseline="softmax", **given), opened, progress, start)
    try:
        runner.run()
    finally:
        opened.close()
    return read_run(folder), [text for text in progress.told if text.startswith("crossovers")]


def test_a_run_of_precise_crossovers_ends_at_the_first_look(tmp_path: Path) -> None:
    run, told = ran(tmp_path / "run", 1e-4)
    assert run.visits["round"].max() == 3
    assert told == ["crossovers: 2 of 2 within ± 5.0% after 3 rounds"]


def test_rounds_are_added_around_what_is_not_precise(tmp_path: Path) -> None:
    run, told = ran(tmp_path / "run", 0.08)
    rounds = run.visits["round"].max()
    assert rounds in (5, 8, 9)
    assert told[0].startswith("crossovers: ")
    assert "after 3 rounds; the widest is" in told[0]
    assert f"after {rounds} rounds" in told[-1]
    added = run.visits[run.visits["round"] == 4]
    assert set(added["operator"]) > {"softmax"}
    sizes = added.groupby("seq_len")["operator"].apply(lambda names: "softmax" in set(names))
    assert sizes.all(), "the baseline is measured with them"
    assert set(added["seq_len"]) < set(SIZES), "at the sizes around them alone"


def test_no_round_is_added_where_the_suite_asks_for_none(tmp_path: Path) -> None:
    run, told = ran(tmp_path / "run", 0.08, replace(ASKED, crossover_precision=None))
    assert (run.visits["round"].max(), told) == (3, [])


UNREACHED = replace(ASKED, max_rounds=5, crossover_precision=0.001)


@pytest.fixture(scope="module")
def imprecise(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Two runs whose precision is never reached."""
    runs = []
    for name in ("whole", "again"):
        run, told = ran(tmp_path_factory.mktemp("imprecise") / name, 0.08, UNREACHED)
        assert told[-1].endswith("; no more are made (max_rounds)")
        runs.append(run)
    return runs


def test_the_most_rounds_end_a_run_that_stays_imprecise(imprecise: list[Run]) -> None:
    assert [run.visits["round"].max() for run in imprecise] == [5, 5]


@pytest.mark.parametrize("lost", [1, 5])
def test_a_resumed_run_adds_what_the_whole_one_would_have(imprecise: list[Run], tmp_path: Path, lost: int) -> None:
    measure = UNREACHED
    whole, again = imprecise
    shutil.copytree(again.folder, tmp_path / "run")
    lines = (tmp_path / "run" / "visits.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "visits.jsonl").write_text("".join(lines[:-lost]))
    resumed, _ = ran(tmp_path / "run", 0.08, measure)
    visits = [set(zip(run.visits["key"], run.visits["round"], strict=True)) for run in (whole, again, resumed)]
    assert visits[0] == visits[1] == visits[2]
    finished, _ = ran(tmp_path / "run", 0.08, measure)
    assert len(finished.visits) == len(resumed.visits), "nothing is left to add"


def test_a_budget_ends_the_rounds_that_are_added(tmp_path: Path) -> None:
    """No time is left after the first look: by the clock of the command, the run has begun long ago."""
    whole, _ = ran(tmp_path / "run", 0.08, replace(ASKED, crossover_precision=None))
    run, told = ran(tmp_path / "run", 0.08, limits=Limits(budget_s=1.0), cells=CELLS)
    assert len(run.visits) == len(whole.visits)
    assert told[-1].endswith("; the budget ended")


def test_the_intervals_of_a_run_with_several_looks_are_wider(tmp_path: Path) -> None:
    run, _ = ran(tmp_path / "run", 1e-4)
    several = replace(run, environment={"looks": [3, 5, 8, 9]})
    one, more = (each.results.set_index("key").loc[CELLS[0].key, "wall_time_high_s"] for each in (run, several))
    assert more > one
