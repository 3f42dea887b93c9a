"""One visit in the measured process: a cell is made ready and checked, or timed between two checks. The only try/except
around the calls of an operator.
"""

from __future__ import annotations

import contextlib
import gc
from contextlib import ExitStack
from dataclasses import replace
from time import perf_counter

from attnbench.measure.device import Device, device_of
from attnbench.measure.protocol import CheckRequest, VisitAnswer, VisitRequest
from attnbench.measure.worker import answers, correctness, operations, timing
from attnbench.measure.worker.failures import guarded
from attnbench.measure.worker.fingerprints import fingerprint
from attnbench.measure.worker.lifetime import limit_host_memory
from attnbench.measure.worker.prepared_cell import bytes_of, forget_compiled, subject_of
from attnbench.measure.worker.shared_state import same_random_numbers
from attnbench.measure.worker.storable import storable
from attnbench.measure.worker.visit import Bench, figures
from attnbench.registry import operators


def make_visit(request: CheckRequest | VisitRequest) -> VisitAnswer:
    """Makes a visit. What an operator does wrong in it is its status and reason."""
    begun = perf_counter()
    same_random_numbers()
    device = device_of(request.device)
    opened = ExitStack()
    try:
        answer = storable(guarded(VisitAnswer, device, lambda: _visit(request, device, opened)))
    finally:
        opened.close()
        with contextlib.suppress(RuntimeError):
            device.empty_cache()
    if request.cell.impl == "compiled":
        forget_compiled()
    gc.collect()
    gc.freeze()
    return replace(answer, metrics={**answer.metrics, "visit_s": perf_counter() - begun})


def _visit(request: CheckRequest | VisitRequest, device: Device, opened: ExitStack) -> VisitAnswer:
    limit_host_memory(request.host_limit)
    source = operators(request.operators_from)[request.cell.operator]
    subject = subject_of(request.cell, source, device, request.memory_limit, request.forecast)
    opened.callback(subject.release)
    if isinstance(request, CheckRequest):
        return _check(Bench(subject))
    bench = Bench(subject, request.measure)
    return _check(bench) if request.phase == "check" else _time(bench, request)


def _check(bench: Bench) -> VisitAnswer:
    """Checks, counts, takes memory and operations, and calls once."""
    subject = bench.subject
    if subject.cell.impl == "compiled":
        subject.perform(subject.calls[0])
        bench.metrics["compile_s"] = subject.spent.seconds
    bench.checked.update(vars(correctness.check_impl(subject)))
    bench.metrics.update(figures(bench, "check"))
    for index, outputs in enumerate(answers.first_outputs(subject)):
        bench.metrics[f"answer_{index}"] = fingerprint(outputs)
    bench.metrics["held_bytes"] = bytes_of([*subject.held(), *outputs])
    counts = operations.operations(subject)
    begun = perf_counter()
    subject.perform(subject.calls[0])
    bench.metrics["check_time_s"] = perf_counter() - begun
    return replace(_answer(bench), operations=counts, kernel=operations.kernel(subject, counts))


def _time(bench: Bench, request: VisitRequest) -> VisitAnswer:
    """Takes time between two checks."""
    subject = bench.subject
    first = answers.first_answers(subject)
    answers.check_fingerprints(subject, first.outputs, request.answers, request.tolerance)
    bench.estimate = timing.warm_up(subject)
    timed = figures(bench, "timed")
    answers.check_after_timing(subject, first, request.tolerance)
    bench.metrics.update(timed)
    return _answer(bench)


def _answer(bench: Bench) -> VisitAnswer:
    bench.metrics["operator_s"] = bench.subject.spent.seconds
    return VisitAnswer(
        status="ok",
        reason="; ".join(bench.notes),
        metrics=bench.metrics,
        samples=bench.samples,
        warnings=tuple(bench.warnings),
        throttled=bench.throttled,
    )
