"""Run folders made by hand, for tests that read them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from attnbench.problem import Cell, Problem, columns_of
from attnbench.store.records import ENVIRONMENT, SAMPLE_COLUMNS, SAMPLES, SUITE, VISITS, Sample, Status, Visit

CELL = Cell("softmax", "reference", "core", "fwd", Problem(64, 32, 4), {})


def cell(operator: str = "softmax", impl: str = "reference", seq_len: int = 64) -> Cell:
    return replace(CELL, operator=operator, impl=impl, problem=Problem(seq_len, 32, 4))


def visit(of: Cell = CELL, round: int = 0, process: int | None = None, status: Status = "ok", **given: Any) -> Visit:
    return Visit(
        of.key,
        columns_of(of),
        device="cpu",
        round=round,
        process=round if process is None else process,
        order=given.pop("order", 0),
        status=status,
        threads=2,
        contract="1",
        **given,
    )


def timed(of: Cell, round: int, seconds: float, **given: Any) -> Visit:
    metrics = {"wall_time_s": seconds, "wall_time_low_s": seconds, "wall_time_high_s": seconds}
    return visit(of, round, metrics=metrics, samples=5, **given)


def folder(path: Path, visits: Iterable[Visit], samples: Iterable[Sample] = ()) -> Path:
    """A run folder with these visits; results.csv is left to be derived."""
    path.mkdir(parents=True, exist_ok=True)
    (path / VISITS).write_text("".join(v.line() for v in visits), encoding="utf-8")
    rows = [",".join(SAMPLE_COLUMNS) + "\n", *(s.line() for s in samples)]
    (path / SAMPLES).write_text("".join(rows), encoding="utf-8")
    (path / ENVIRONMENT).write_text(json.dumps({"torch": "2.13.0"}), encoding="utf-8")
    (path / SUITE).write_text("name: made\n", encoding="utf-8")
    return path
