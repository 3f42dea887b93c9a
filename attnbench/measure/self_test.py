"""The A/A self-test: two fresh workers measure the same small cell in turns. What differs is noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from attnbench.measure import worker_process
from attnbench.measure.protocol import EnvironmentRequest, Phase, VisitAnswer, VisitRequest, WorkerLost
from attnbench.plan.settings import Measure
from attnbench.problem import Cell, Problem

CELL = Cell("softmax", "reference", "core", "fwd", Problem(256, 64, 4), {})

TURNS = 6
"""Pairs of visits, one by each worker."""

MEASURE = Measure(rounds=TURNS, within_process_precision=0.0, min_samples=5, max_samples=400, max_time_s=0.1)
"""Every visit samples for its whole time: a precision of 0 is reached only by samples that are all equal."""

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
        """Seconds of one call, the geometric mean of all visits."""
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
        checked = _visit(workers[0], "check", device, None)
        workers.append(start(1, threads))
        turns = [_turn(workers, number, device, checked.metrics.get("tolerance")) for number in range(TURNS)]
    finally:
        for worker in workers:
            worker.close()
    answers = [answer for turn in turns for answer in turn]
    samples = [flags.split("+") for answer in answers for _, flags in _wall(answer)]
    names = sorted({flag for flags in samples for flag in flags if flag})
    return SelfTest(
        device=device,
        metrics=frozenset(name for answer in (checked, *answers) for name in answer.metrics),
        pairs=tuple((first.metrics["wall_time_s"], second.metrics["wall_time_s"]) for first, second in turns),
        samples=len(samples),
        flagged={name: sum(name in flags for flags in samples) for name in names},
        facts=facts,
    )


def _wall(answer: VisitAnswer) -> list[tuple[float, str]]:
    return [(seconds, flags) for clock, seconds, flags in answer.samples if clock == "wall"]


def _turn(
    workers: Sequence[worker_process.Worker], number: int, device: str, tolerance: float | None
) -> tuple[VisitAnswer, VisitAnswer]:
    """One visit by each; who begins changes from turn to turn, so that a drift of the machine cancels."""
    order = (0, 1) if number % 2 == 0 else (1, 0)
    answers = {index: _visit(workers[index], "time", device, tolerance) for index in order}
    return answers[0], answers[1]


def _visit(worker: worker_process.Worker, phase: Phase, device: str, tolerance: float | None) -> VisitAnswer:
    request = VisitRequest(
        phase=phase,
        cell=CELL,
        measure=MEASURE,
        device=device,
        operators_from=(),
        memory_limit=MEMORY_BYTES,
        host_limit=None,
        tolerance=tolerance,
    )
    answer = worker.ask(request, TIMEOUT_S)
    if answer.status != "ok":
        raise WorkerLost(answer.status, answer.reason or answer.status)
    return answer
