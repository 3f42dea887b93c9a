"""A check in the measured process: whether a cell is right, what it needs, and what it executes."""

from __future__ import annotations

import contextlib
import gc
from contextlib import ExitStack
from dataclasses import replace
from time import perf_counter

import torch

from attnbench.measure.device import Device, device_of
from attnbench.measure.protocol import CheckRequest, VisitAnswer
from attnbench.measure.worker import correctness, operations
from attnbench.measure.worker.changes import Observer
from attnbench.measure.worker.failures import guarded
from attnbench.measure.worker.fingerprints import fingerprint
from attnbench.measure.worker.lifetime import limit_host_memory
from attnbench.measure.worker.prepared_cell import Outputs, Subject, Wrong, bytes_of, forget_compiled, subject_of
from attnbench.measure.worker.shared_state import same_random_numbers
from attnbench.measure.worker.storable import storable
from attnbench.measure.worker.visit import Bench, figures
from attnbench.registry import operators


def check(request: CheckRequest) -> VisitAnswer:
    """Makes a check. What an operator does wrong in it is its status and reason."""
    begun = perf_counter()
    same_random_numbers()
    device = device_of(request.device)
    with ExitStack() as opened:
        answer = storable(guarded(VisitAnswer, device, lambda: _check(_bench(request, device, opened))))
    with contextlib.suppress(RuntimeError):
        device.empty_cache()
    if request.cell.impl == "compiled":
        forget_compiled()
    gc.collect()
    gc.freeze()
    return replace(answer, metrics={**answer.metrics, "visit_s": perf_counter() - begun})


def _bench(request: CheckRequest, device: Device, opened: ExitStack) -> Bench:
    limit_host_memory(request.host_limit)
    source = operators(request.operators_from)[request.cell.operator]
    subject = subject_of(request.cell, source, device, request.memory_limit, request.forecast)
    opened.callback(subject.release)
    return Bench(subject)


def _check(bench: Bench) -> VisitAnswer:
    """Checks, counts, takes memory and operations, and calls once."""
    subject = bench.subject
    if subject.cell.impl == "compiled":
        subject.perform(subject.calls[0])
        bench.metrics["compile_s"] = subject.spent.seconds
    bench.checked.update(vars(correctness.check_impl(subject)))
    bench.metrics.update(figures(bench, "check"))
    for index, outputs in enumerate(first_outputs(subject)):
        bench.metrics[f"answer_{index}"] = fingerprint(outputs)
    bench.metrics["held_bytes"] = bytes_of([*subject.held(), *outputs])
    counts = operations.operations(subject)
    begun = perf_counter()
    subject.perform(subject.calls[0])
    bench.metrics["check_time_s"] = perf_counter() - begun
    bench.metrics["operator_s"] = subject.spent.seconds
    return bench.answer(kernel=operations.kernel(subject, counts), operations=counts)


def first_outputs(subject: Subject) -> list[Outputs]:
    """The outputs on each set. Raises Wrong where they are not finite, or the same for different inputs."""
    observer = Observer(subject, subject.cell.problem)
    outputs = [observer.outputs(call) for call in subject.calls]
    observer.settle()
    for output in outputs:
        correctness.require_finite(subject, output)
    if all(map(torch.equal, outputs[0], outputs[1])) and outputs[0][0].numel():
        raise Wrong("it gives the same answer for different inputs")
    return outputs
