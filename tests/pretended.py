"""Workers that only pretend: what a runner asks is answered without a process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from attnbench.analysis.run import Run, read_run
from attnbench.measure.protocol import (
    CheckRequest,
    FinishRequest,
    Forecast,
    ForecastAnswer,
    ForecastRequest,
    PrepareRequest,
    ReleaseRequest,
    Request,
    SampleRequest,
    SupportAnswer,
    SupportRequest,
    answer_to,
)
from attnbench.measure.runner import Runner
from attnbench.problem import Cell
from attnbench.store import journal
from tests.running import Silent, plan

FORESEEN = 3 * 2**20
Answers = Callable[[Request[Any]], dict[str, Any]]
"""The message that answers a request about a cell."""


class Pretended:
    """A worker that answers without a process."""

    def __init__(self, number: int, answer: Answers) -> None:
        self.number = number
        self.start_s = 0.0
        self.answer = answer
        self.closed = False

    @property
    def is_alive(self) -> bool:
        return not self.closed

    def ask(self, request: Any, timeout: float) -> Any:
        assert not self.closed
        if isinstance(request, SupportRequest):
            return SupportAnswer((("skipped", None),) * len(request.cells))
        if isinstance(request, ForecastRequest):
            return ForecastAnswer(Forecast(FORESEEN))
        return answer_to(request, {} if isinstance(request, ReleaseRequest) else self.answer(request))

    def close(self) -> None:
        self.closed = True

    kill = close


FIGURES = {"operator_s": 0.0, "check_time_s": 1e-3, "tolerance": 1e-5, "held_bytes": 2**20, "peak_memory_bytes": 2**20}


def fine(request: Request[Any]) -> dict[str, Any]:
    if isinstance(request, CheckRequest):
        return {"status": "ok", "metrics": FIGURES}
    if isinstance(request, PrepareRequest):
        return {"status": "ok", "first_call_s": 2e-3, "call_s": 1e-3}
    if isinstance(request, SampleRequest):
        return {"status": "ok", "samples": [["wall", 1e-3, ""]]}
    assert isinstance(request, FinishRequest)
    return {"status": "ok", "metrics": {"operator_s": 0.0}}


def of(request: Request[Any], key: str) -> bool:
    """Whether a request is about the cell of a key, or those whose key holds the text, and no check."""
    cell = getattr(request, "cell", None)
    return not isinstance(request, CheckRequest) and key in (cell.key if cell else getattr(request, "key", ""))


def ran(folder: Path, cells: list[Cell], answer: Answers = fine, **given: Any) -> Run:
    opened = journal.create(folder, "name: made\n", {})
    start: Any = lambda number, threads: Pretended(number, answer)  # noqa: E731
    try:
        Runner(plan(cells, **given), opened, Silent(), start).run()
    finally:
        opened.close()
    return read_run(folder)
