"""What `make soak` would notice: each of its checks fails where what it looks for is there."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attnbench.analysis.run import Run, read_run
from attnbench.problem import cell_of
from attnbench.store.reading import read_visits
from attnbench.store.records import Visit
from benchmarks import soak
from tests.mutated.runs import original_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(original_folder(tmp_path_factory.mktemp("soak") / "run"))


@pytest.fixture
def visits(run: Run) -> list[Visit]:
    return read_visits(run.folder)


def keys(run: Run, operator: str) -> list[str]:
    return list(run.results[run.results["operator"] == operator]["key"])


def with_results(run: Run, key: str, column: str, value: Any) -> Run:
    """The run with another value in one place of its results."""
    other = replace(run)
    table = run.results.copy()
    table.loc[table["key"] == key, column] = value
    other.__dict__["results"] = table
    return other


@pytest.mark.parametrize("column", ["flops", "peak_memory_bytes", "input_bytes", "status"])
def test_another_figure_would_be_noticed(run: Run, column: str) -> None:
    own = keys(run, "softmax")
    soak._same_figures(run, run, own)
    with pytest.raises(AssertionError, match="other figures"):
        soak._same_figures(run, with_results(run, own[0], column, "wrong" if column == "status" else 1), own)


def test_lost_and_repeated_visits_and_samples_would_be_noticed(run: Run, visits: list[Visit]) -> None:
    cells = [cell_of(v.cell) for v in visits if v.round == 0]
    honest = [cell for cell in cells if cell.operator == "softmax"]
    soak._nothing_lost(run, visits, cells, honest)
    with pytest.raises(AssertionError, match="there twice"):
        soak._nothing_lost(run, [*visits, visits[-1]], cells, honest)
    with pytest.raises(AssertionError, match="a stored visit is lost"):
        soak._nothing_lost(run, visits[:-1], cells, honest)
    more = [*cells, replace(cells[0], impl="other")]
    with pytest.raises(AssertionError, match="not checked"):
        soak._nothing_lost(run, visits, more, honest)
    with pytest.raises(AssertionError, match="visits are lost"):
        soak._nothing_lost(run, visits, cells, cells)
    other = replace(run)
    other.__dict__["samples"] = run.samples.iloc[1:]
    with pytest.raises(AssertionError, match="samples are lost"):
        soak._nothing_lost(other, visits, cells, honest)


@pytest.mark.parametrize(
    ("column", "value"),
    [("status", "ok"), ("reason", "another"), ("wall_time_s", 1e-3)],
    ids=["status", "reason", "time"],
)
def test_a_failure_that_ends_otherwise_would_be_noticed(run: Run, column: str, value: Any) -> None:
    key = run.results[run.results["status"] == "oom"]["key"].iloc[0]
    kinds = {key: soak.Kind("takes_memory", "oom", "out of memory", 1)}
    soak._ended_as_injected(run.results.set_index("key"), kinds)
    with pytest.raises(AssertionError, match=r"ended otherwise: .*takes_memory"):
        soak._ended_as_injected(with_results(run, key, column, value).results.set_index("key"), kinds)


@pytest.mark.skipif(sys.platform != "linux", reason="children are listed in /proc")
def test_a_process_that_is_left_would_be_noticed() -> None:
    before = soak.children()
    left = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert soak.children() - before == {str(left.pid)}
    finally:
        left.communicate()


def test_a_case_that_fails_is_a_fault_with_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = next(n for n in range(1, 100) if random.Random(f"soak {n}").random() >= soak.FOLDER_SHARE)
    right = soak.one_case(case, tmp_path)
    assert right.fault is None

    def wrong(*given: object, **more: object) -> None:
        raise KeyError("a traceback")

    monkeypatch.setattr(soak, "judge_suite", wrong)
    found = soak.one_case(case, tmp_path)
    assert found.fault is not None
    assert found.fault.startswith("KeyError: 'a traceback' (test_soak.py")
    assert f"case {case} (suite, not judged): KeyError" in capsys.readouterr().out
    assert soak.summary_of([right, found])[1] == 1
    assert "1 faults" in soak.summary_of([right, found])[0]


def test_every_way_to_fail_is_injected_in_300() -> None:
    injected = {kind.impl for _, kind in soak.faulty_cells(300).values()}
    assert injected == {kind.impl for kind in soak.KINDS}
    assert len(soak.faulty_cells(300)) == 300
