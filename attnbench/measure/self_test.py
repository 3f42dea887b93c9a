"""The A/A self-test: two fresh workers take samples of the same small cell in turns. What differs is noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, TypeVar

from attnbench.measure import worker_process
from attnbench.measure.protocol import (
    CellAnswer,
    CheckRequest,
    EnvironmentRequest,
    FinishRequest,
    PrepareRequest,
    Request,
    SampleRequest,
    WorkerLost,
)
from attnbench.problem import Cell, Problem
from attnbench.registry import clocks

Samples = list[tuple[str, float, str]]
A = TypeVar("A", bound=CellAnswer)

CELL = Cell("softmax", "reference", "core", "fwd", Problem(256, 64, 4, causal=True), {})

TURNS = 6
"""Pairs of times, one by each worker."""

SAMPLES = 8
"""Samples that one of the times is of."""

TIMEOUT_S = 60.0
MEMORY_BYTES = 2**30
"""Far more than the cell needs."""


@dataclass(frozen=True)
class SelfTest:
    """What two workers measured.

    Attributes:
        device: on which.
        metrics: columns of everything they could measure.
        pairs: seconds of one call by the first and by the second worker, turn by turn.
        samples: how many there were.
        flagged: how many samples have each flag.
        facts: environment.json as the workers would have it.
    """

    device: str
    metrics: frozenset[str]
    pairs: tuple[tuple[float, float], ...]
    samples: int
    flagged: Mapping[str, int]
    facts: Mapping[str, Any]

    @property
    def call_s(self) -> float:
        """Seconds of one call, the geometric mean of all times."""
        return math.exp(mean(math.log(s) for pair in self.pairs for s in pair))

    @property
    def noise(self) -> float:
        """Noise: by how much identical code may seem to differ here, a fraction; infinite beyond 1000.

        The farther end of the 95 % interval of the mean log ratio second / first, over the turns.
        """
        from attnbench.analysis.distributions import t_quantile

        logs = [math.log(second / first) for first, second in self.pairs]
        end = abs(mean(logs)) + t_quantile(len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
        return math.expm1(end) if end < math.log(1000) else math.inf

    def share(self, flag: str) -> float:
        """The share of samples with this flag."""
        return self.flagged.get(flag, 0) / self.samples if self.samples else 0.0


def self_test(
    device: str, threads: int, start: Callable[[int, int], worker_process.Worker] = worker_process.start
) -> SelfTest:
    """Measures on a device. Raises WorkerLost where a worker is lost or the cell gives no time."""
    workers: list[worker_process.Worker] = []
    try:
        workers.append(start(0, threads))
        facts = workers[0].ask(EnvironmentRequest(device), TIMEOUT_S).environment
        checked = _ask(workers[0], CheckRequest(CELL, device, (), MEMORY_BYTES, None))
        prepare = PrepareRequest(CELL, device, (), MEMORY_BYTES, None, checked.metrics.get("tolerance"))
        workers.append(start(1, threads))
        for worker in workers:
            _ask(worker, prepare)
        turns = [_turn(workers, number) for number in range(TURNS)]
        finished = _ask(workers[0], FinishRequest(CELL.key))
    finally:
        for worker in workers:
            worker.close()
    samples = [sample for turn in turns for each in turn for sample in each]
    flags = [flags.split("+") for clock, _, flags in samples if clock == "wall"]
    names = {flag for each in flags for flag in each if flag}
    timed = {clock for clock, _, _ in samples}
    columns = {metric.column for metric in clocks(device_clock=True).values() if metric.clock in timed}
    return SelfTest(
        device=device,
        metrics=frozenset(columns | checked.metrics.keys() | finished.metrics.keys()),
        pairs=tuple((_wall_s(first), _wall_s(second)) for first, second in turns),
        samples=len(flags),
        flagged={name: sum(name in each for each in flags) for name in sorted(names)},
        facts=facts,
    )


def _wall_s(samples: Samples) -> float:
    from attnbench.analysis.undisturbed import undisturbed

    return undisturbed([seconds for clock, seconds, _ in samples if clock == "wall"])


def _turn(workers: Sequence[worker_process.Worker], number: int) -> tuple[Samples, Samples]:
    """SAMPLES by each, one right after the other; who begins changes from turn to turn, so that a drift cancels."""
    taken: tuple[Samples, Samples] = ([], [])
    for _ in range(SAMPLES):
        for index in (0, 1) if number % 2 == 0 else (1, 0):
            taken[index].extend(_ask(workers[index], SampleRequest(CELL.key)).samples)
    return taken


def _ask(worker: worker_process.Worker, request: Request[A]) -> A:
    answer = worker.ask(request, TIMEOUT_S)
    if answer.status != "ok":
        raise WorkerLost(answer.status, answer.reason or answer.status)
    return answer
