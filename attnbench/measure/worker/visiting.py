"""One visit in the measured process: a cell is made ready and checked, or timed between two checks. The only try/except
around the calls of an operator.
"""

from __future__ import annotations

import contextlib
import gc
from dataclasses import replace
from time import perf_counter
from types import ModuleType

import torch

from attnbench.measure.device import Device, device_of
from attnbench.measure.protocol import VisitAnswer, VisitRequest
from attnbench.measure.worker import answers, correctness, operations, timing
from attnbench.measure.worker.failures import status_of, text_of
from attnbench.measure.worker.lifetime import limit_host_memory
from attnbench.measure.worker.prepared_cell import Misfit, Wrong, subject_of
from attnbench.measure.worker.shared_state import same_random_numbers
from attnbench.measure.worker.storable import storable
from attnbench.measure.worker.visit import Bench
from attnbench.registry import metric_modules, operators


def make_visit(request: VisitRequest) -> VisitAnswer:
    """Makes a visit. What an operator does wrong in it is its status and reason."""
    begun = perf_counter()
    same_random_numbers()
    answer = storable(_visit(request))
    gc.collect()
    gc.freeze()
    return replace(answer, metrics={**answer.metrics, "visit_s": perf_counter() - begun})


def _visit(request: VisitRequest) -> VisitAnswer:
    bench: Bench | None = None
    device = device_of(request.device)
    try:
        limit_host_memory(request.host_limit)
        bench = _bench(request, device)
        return _check(bench) if request.phase == "check" else _time(bench, request)
    except Wrong as error:
        return VisitAnswer("wrong", str(error))
    except Misfit as error:
        return VisitAnswer("error", str(error), "bad_inputs")
    except MemoryError as error:
        return VisitAnswer("oom", f"out of memory: {text_of(error)}")
    except torch.OutOfMemoryError as error:
        return VisitAnswer("oom", f"out of GPU memory: {text_of(error)}")
    except BaseException as error:  # an operator's own failure, whatever it is, is that visit's reason
        status = status_of(error, device)
        return VisitAnswer(status, ("out of memory: " if status == "oom" else "") + text_of(error))
    finally:
        if bench is not None:
            bench.subject.release()
        with contextlib.suppress(RuntimeError):
            device.empty_cache()


def _bench(request: VisitRequest, device: Device) -> Bench:
    source = operators(request.operators_from)[request.cell.operator]
    subject = subject_of(request.cell, source, device, request.memory_limit, request.forecast)
    return Bench(subject, request.measure)


def _check(bench: Bench) -> VisitAnswer:
    """Checks, counts, takes memory and operations, and calls once."""
    subject = bench.subject
    if subject.cell.impl == "compiled":
        subject.perform(subject.calls[0])
        bench.metrics["compile_s"] = subject.spent.seconds
    bench.checked.update(vars(correctness.check_impl(subject)))
    bench.metrics.update(_figures(bench, "check"))
    for index, fingerprint in enumerate(answers.fingerprints(answers.first_outputs(subject))):
        bench.metrics[f"answer_{index}"] = fingerprint
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
    figures = _figures(bench, "timed")
    answers.check_after_timing(subject, first, request.tolerance)
    bench.metrics.update(figures)
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


def _figures(bench: Bench, phase: str) -> dict[str, float | int]:
    """What every metric that has this phase ("check", "timed") measures, in passes of their own."""
    figures: dict[str, float | int] = {}
    for measure in (getattr(module, phase, None) for module in metrics()):
        if measure is not None:
            figures.update(measure(bench))
    return figures


def metrics() -> list[ModuleType]:
    """Every metric's module; times first, so that what the others leave behind does not disturb them."""
    return sorted(metric_modules().values(), key=lambda module: not module.METRIC.clock)
