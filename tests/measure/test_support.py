"""An operator's file that cannot be imported in a worker is that operator's reason, and nobody else's."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attnbench.errors import BadInput
from attnbench.measure import worker_process
from attnbench.measure.protocol import (
    NOTHING_KNOWN,
    CheckRequest,
    ForecastRequest,
    SupportAnswer,
    SupportRequest,
    WorkerLost,
)
from attnbench.measure.support import reasons
from attnbench.problem import Cell, Problem
from attnbench.registry import operators

OWN = "from attnbench.operators.exact.softmax import OPERATOR\n"


def cell(operator: str, seq_len: int = 16) -> Cell:
    return Cell(operator, "reference", "core", "fwd", Problem(seq_len, 8), {})


@pytest.mark.parametrize(
    ("begins", "told"),
    [
        ("raise ValueError('no licence')", "ValueError: no licence"),
        ("import nothing_like_it", "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ],
)
def test_a_package_that_cannot_be_imported_costs_only_its_own_operators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: str, told: str
) -> None:
    (tmp_path / "broken_here").mkdir()
    (tmp_path / "broken_here" / "__init__.py").write_text(begins + "\n")
    (tmp_path / "broken_here" / "lost.py").write_text(OWN)
    (tmp_path / "fine.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    places = ("broken_here", str(tmp_path / "fine.py"))
    worker = worker_process.start(0, 1)
    try:
        asked = (cell("lost"), cell("softmax"), cell("fine"), cell("lost", 32))
        answer = worker.ask(SupportRequest(asked, "cpu", places), 60)
        assert [reason for _, reason in answer.reasons][1:3] == [None, None]
        assert {status for status, _ in (answer.reasons[0], answer.reasons[3])} == {"error"}
        assert all(told in str(reason) for _, reason in (answer.reasons[0], answer.reasons[3]))
        assert worker.ask(ForecastRequest(cell("lost"), places), 60).forecast == NOTHING_KNOWN
        assert worker.ask(ForecastRequest(cell("softmax"), places), 60).forecast != NOTHING_KNOWN
        checks = {
            name: worker.ask(CheckRequest(cell(name), "cpu", places, 2**30, None), 60) for name in ("lost", "fine")
        }
        assert [check.status for check in checks.values()] == ["error", "ok"]
        assert told in checks["lost"].reason
    finally:
        worker.kill()


def test_a_package_that_lacks_another_one_is_told_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lacking_here").mkdir()
    (tmp_path / "lacking_here" / "__init__.py").write_text("import nothing_like_it\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BadInput, match=r"lacking_here.*line 1 \(import nothing_like_it\).*ModuleNotFoundError"):
        operators(["lacking_here"])
    assert "lacking_here" not in sys.modules


def test_an_operator_whose_process_is_lost_when_it_is_asked_has_that_for_a_reason() -> None:
    asked: list[list[str]] = []

    def ask(request: Any, timeout: float) -> SupportAnswer:
        asked.append([each.operator for each in request.cells])
        if "lost" in asked[-1]:
            raise WorkerLost("crashed", "the worker exited with code 4")
        return SupportAnswer(tuple(("skipped", f"of {name}") for name in asked[-1]))

    workers: Any = SimpleNamespace(plan=SimpleNamespace(device="cpu", operators_from=()), ask=ask)
    cells = [cell("softmax"), cell("lost"), cell("softmax", 32), cell("lost", 32)]
    lost = ("crashed", "asked what it supports: the worker exited with code 4")
    assert reasons(workers, cells, 1.0) == [("skipped", "of softmax"), lost, ("skipped", "of softmax"), lost]
    assert asked == [["softmax", "lost", "softmax", "lost"], ["softmax", "softmax"], ["lost", "lost"]]
