"""Synthetic runs: true times are known, visits carry process offsets, drift and noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from attnbench.analysis.run import Run
from attnbench.problem import Cell, Problem, columns_of
from attnbench.store.frames import frame
from attnbench.store.records import Visit

Law = Callable[[float], float]


def cell(operator: str, problem: Problem, impl: str = "reference", params: Mapping[str, Any] | None = None) -> Cell:
    return Cell(operator, impl, "core", "fwd", problem, params or {})


def sequence(n: int, channels: int = 64, heads: int = 4) -> Problem:
    return Problem(n, channels, heads)


def visits_of(
    cells: Sequence[tuple[Cell, float | str, Mapping[str, float]]],
    *,
    seed: int = 0,
    rounds: int = 3,
    process: float = 0.04,
    own: float = 0.02,
    drift: float = 0.0,
    contract: str = "",
) -> list[Visit]:
    """Visits of cells with a true time, or with a status instead of one; metrics go to the check.

    drift: by how much, in logs, the machine slows down from the first to the last visit.
    """
    rng = np.random.default_rng(seed)
    found = []
    for order, (what, truth, metrics) in enumerate(cells):
        status, reason = ("ok", "") if isinstance(truth, float) else (truth, f"{truth} here")
        found.append(
            Visit(what.key, columns_of(what), "cpu", 0, 0, order, status, reason, metrics=dict(metrics))  # type: ignore[arg-type]
        )
    timed = [(what, truth) for what, truth, _ in cells if isinstance(truth, float)]
    for round_ in range(1, rounds + 1):
        offset = rng.normal(0, process)
        for order, index in enumerate(rng.permutation(len(timed))):
            what, truth = timed[index]
            done = ((round_ - 1) * len(timed) + order) / (rounds * len(timed))
            time = truth * math.exp(offset + rng.normal(0, own) + drift * done)
            found.append(
                Visit(what.key, columns_of(what), "cpu", round_, round_, order, "ok", metrics={"wall_time_s": time})
            )
    return [replace(visit, contract=contract) for visit in found]


def run_of(visits: Sequence[Visit], environment: Mapping[str, Any] | None = None) -> Run:
    return Run(Path("nowhere"), frame(list(visits)), dict(environment or {}), "name: synthetic\n")


def laws(
    sizes: Sequence[int],
    laws: Mapping[str, Law],
    *,
    statuses: Mapping[tuple[str, int], str] | None = None,
    **model: Any,
) -> Run:
    """A sequence run: time of `operator[:impl]` at N by its law; statuses replace a time by a failure."""
    cells = []
    for name, law in laws.items():
        operator, _, impl = name.partition(":")
        for n in sizes:
            truth: float | str = (statuses or {}).get((name, n)) or float(law(n))
            metrics = {"flops": int(law(n) * 1e9), "peak_memory_bytes": int(law(n) * 1e6), "parameter_bytes": 0}
            cells.append((cell(operator, sequence(n), impl or "reference"), truth, metrics))
    return run_of(visits_of(cells, **model))
