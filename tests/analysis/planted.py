"""Runs of two axes in which the border of softmax is planted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from attnbench.analysis.run import Run
from attnbench.problem import Problem
from attnbench.store.records import Visit
from tests.analysis.runs import cell, run_of, sequence, visits_of

SIZES = (256, 512, 1024, 2048, 4096)
CHANNELS = (64, 128, 256, 512)
PROBLEMS = [sequence(n, c) for c, n in product(CHANNELS, SIZES)]
Law = Callable[[Problem], float]


def border(channels: float) -> float:
    """Where the planted curves cross: from 3600 at 64 channels down to 450 at 512."""
    return 3600 * 64 / channels


def softmax(p: Problem) -> float:
    return 1e-9 * p.seq_len**2 * p.channels


def at(place: Callable[[float], float], slope: float = 1.0) -> Law:
    """A law that passes softmax at a place for each number of channels."""
    return lambda p: softmax(p) * (p.seq_len / place(p.channels)) ** -slope


LAWS: dict[str, Law] = {
    "softmax": softmax,
    "softmax:sdpa": lambda p: 0.5 * softmax(p),
    "linear_transformer": at(border),
    "local": lambda p: 3 * at(border)(p),
}


def planted_visits(
    laws: Mapping[str, Law] = LAWS,
    problems: Sequence[Problem] = PROBLEMS,
    *,
    statuses: Mapping[tuple[str, Problem], str] | None = None,
    **model: Any,
) -> list[Visit]:
    """Visits of many problems: the time of `operator[:impl]` by its law; statuses replace a time by a failure."""
    cells = []
    for name, law in laws.items():
        operator, _, impl = name.partition(":")
        for problem in problems:
            truth: float | str = (statuses or {}).get((name, problem)) or float(law(problem))
            cells.append((cell(operator, problem, impl or "reference"), truth, {"flops": 1, "peak_memory_bytes": 4096}))
    return visits_of(cells, contract="3", **{"own": 0.01, **model})


def planted(*arguments: Any, **others: Any) -> Run:
    """The run of `planted_visits`."""
    return run_of(planted_visits(*arguments, **others))
