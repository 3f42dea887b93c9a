"""The measured process: builds inputs, checks, runs the metrics. The only try/except around operator code.

    python -m attnbench.worker READ WRITE PARENT

READ and WRITE are the numbers of the pipe ends it talks through, as `attnbench.measure.protocol` says; PARENT is the id
of the process that started it. It says that it is ready once torch is loaded, answers each request, and ends when its
pipe closes. What libraries print on stdout is none of its answers.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from time import perf_counter
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any

from attnbench import descendants
from attnbench.errors import MOST_OF_A_REASON, described, printable
from attnbench.measure.protocol import (
    Answer,
    EnvironmentAnswer,
    EnvironmentRequest,
    ExpansionRequest,
    ForecastAnswer,
    ForecastRequest,
    RatesAnswer,
    RatesRequest,
    Ready,
    Request,
    SupportAnswer,
    SupportRequest,
    VisitAnswer,
    VisitRequest,
    request_of,
)
from attnbench.registry import operators, scan, why_not
from attnbench.store.reading import is_metric
from attnbench.store.records import Status

if TYPE_CHECKING:
    from attnbench.measure.worker.visit import Bench

CLEAN_EXIT = 0


def main() -> None:
    """Serves requests until the pipe closes."""
    read, write, parent = (int(a) for a in sys.argv[1:4])
    _die_with(parent)
    for end in (read, write):
        os.set_inheritable(end, False)
    threading.Thread(target=_watch, args=(write,), daemon=True).start()
    import torch

    from attnbench.measure.worker import shared_state

    threads = int(os.environ["OMP_NUM_THREADS"])
    torch.set_num_threads(threads)
    with open(write, "w", encoding="utf-8") as answers, open(read, encoding="utf-8") as requests:
        metrics()
        importlib.import_module("attnbench.measure.worker.correctness")
        importlib.import_module("attnbench.measure.worker.timing")
        importlib.import_module("attnbench.measure.worker.operations")
        gc.collect()
        gc.freeze()  # what torch leaves behind is not looked through again by every collection
        _send(answers, Ready(os.getpid(), torch.get_num_threads()).to_json())
        before = shared_state.now()
        for line in requests:
            message = json.loads(line)
            request = request_of(message)
            answer = _answer(request)
            after = shared_state.now()
            if request.runs_operators:
                changes, replaced = shared_state.changes(before, after), shared_state.replaced(before, after)
                answer = _with_changes(request, answer, changes, replaced)
            before = after
            _send(answers, {"id": message["id"], **answer.to_json()})
            if answer.fatal:
                break
        answers.flush()
    os._exit(CLEAN_EXIT)  # a library's exit handlers must not hang a round


def _send(answers: IO[str], message: dict[str, Any]) -> None:
    answers.write(json.dumps(message, allow_nan=False) + "\n")
    answers.flush()


def _answer(request: Request[Answer]) -> Answer:
    if isinstance(request, SupportRequest):
        return SupportAnswer(tuple(_reasons(request)))
    if isinstance(request, ExpansionRequest):
        from attnbench.measure.expansion import expand

        return expand(request)
    if isinstance(request, ForecastRequest):
        from attnbench.measure.worker.forecast import forecast_of

        return ForecastAnswer(forecast_of(request.cell, operators(request.operators_from)[request.cell.operator]))
    if isinstance(request, EnvironmentRequest):
        from attnbench.measure.machine.environment import collect

        return EnvironmentAnswer(collect(request.device))
    if isinstance(request, RatesRequest):
        from attnbench.measure.machine.peak_rates import rates

        return RatesAnswer(rates(request.device, request.dtypes))
    assert isinstance(request, VisitRequest)
    from attnbench.measure.worker.shared_state import same_random_numbers

    begun = perf_counter()
    same_random_numbers()
    answer = _storable(_visit(request))
    gc.collect()
    gc.freeze()
    return replace(answer, metrics={**answer.metrics, "visit_s": perf_counter() - begun})


def _with_changes(request: Request[Answer], answer: Answer, changes: Sequence[str], replaced: Sequence[str]) -> Answer:
    """The answer, with `restart` where an operator left this process otherwise than it found it, and its name.

    A visit keeps its own number and warns; one that replaced what measures it has none.

    Args:
        request: what was asked.
        answer: to it.
        changes: what the next operator would find otherwise, one phrase each.
        replaced: functions by which attnbench measures that are others now.
    """
    if not changes and not replaced:
        return answer
    if not (isinstance(request, VisitRequest) and isinstance(answer, VisitAnswer)):
        return replace(answer, restart=True)
    if replaced:
        tampered = f"it replaces {', '.join(replaced)}, which attnbench measures with"
        return VisitAnswer("wrong", tampered, "tampered", restart=True)
    warning = (
        f"{request.cell.operator} ({request.cell.impl}) changes what the next operator would find, which is therefore "
        f"measured in a fresh process: {', '.join(changes)}"
    )
    return replace(answer, restart=True, warnings=(*answer.warnings, warning))


def _reasons(request: SupportRequest) -> Iterator[tuple[Status, str | None]]:
    """Of each cell; an operator's file that cannot say is an error, and shown as such."""
    sources = operators(request.operators_from)
    for cell in request.cells:
        try:
            yield "skipped", why_not(sources[cell.operator].load(), cell, request.device)
        except BaseException as error:
            yield "error", _text_of(error)


def _visit(request: VisitRequest) -> VisitAnswer:
    import torch

    from attnbench.measure.worker.prepared_cell import Misfit, Wrong

    bench: Bench | None = None
    try:
        limit_host_memory(request.host_limit)
        bench = _bench(request)
        return _check(bench) if request.phase == "check" else _time(bench, request)
    except Wrong as error:
        return VisitAnswer("wrong", str(error))
    except Misfit as error:
        return VisitAnswer("error", str(error), "bad_inputs")
    except MemoryError as error:
        return VisitAnswer("oom", f"out of memory: {_text_of(error)}")
    except torch.OutOfMemoryError as error:
        return VisitAnswer("oom", f"out of GPU memory: {_text_of(error)}")
    except BaseException as error:  # an operator's own failure, whatever it is, is that visit's reason
        status = _status_of(error, request.device)
        return VisitAnswer(status, ("out of memory: " if status == "oom" else "") + _text_of(error))
    finally:
        if bench is not None:
            bench.subject.release()
        if request.device == "cuda":
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()


CPU_ALLOCATOR = "[enforce fail at alloc_cpu.cpp:"
"""How the RuntimeError of torch's CPU allocator begins; torch has no type of its own for it."""

CUDA_OUT_OF_MEMORY = 2
"""cudaErrorMemoryAllocation, the `error_code` of a torch.AcceleratorError."""


def _status_of(error: BaseException, device: str) -> Status:
    """ "oom" where an allocation failed, "crashed" where the CUDA context does not answer any more, else "error"."""
    import torch

    if type(error) is RuntimeError and str(error).startswith(CPU_ALLOCATOR):
        return "oom"
    if isinstance(error, torch.AcceleratorError) and getattr(error, "error_code", None) == CUDA_OUT_OF_MEMORY:
        return "oom"
    if device == "cuda":
        try:
            torch.cuda.synchronize()
        except Exception:  # an error that stays: every later call in this process would give it
            return "crashed"
    return "error"


def _text_of(error: BaseException) -> str:
    """One line of an exception, and the operator's line it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    place = next((f for f in reversed(frames) if "/torch/" not in f.filename), None)
    where = f" ({printable(os.path.basename(place.filename))}, line {place.lineno})" if place else ""
    return described(error) + where


def _storable(answer: VisitAnswer) -> VisitAnswer:
    """A visit's answer, of which all can be stored, read again and shown, whatever an operator has put into it."""
    metrics = {name: _number(value) for name, value in answer.metrics.items()}
    left_out = [name for name, value in metrics.items() if not is_metric(name, value)]
    warnings = [
        f"{name} = {printable(metrics.pop(name), 60)} is no value that it can have, and left out" for name in left_out
    ]
    operations: dict[str, int] = {}
    for name, count in answer.operations.items():
        operations[printable(name)] = operations.get(printable(name), 0) + count
    return replace(
        answer,
        reason=printable(answer.reason, MOST_OF_A_REASON),
        kernel=printable(answer.kernel),
        metrics=metrics,
        operations=operations,
        warnings=tuple(printable(text, MOST_OF_A_REASON) for text in (*answer.warnings, *warnings)),
    )


def _number(value: Any) -> Any:
    """NumPy's and torch's numbers as Python's; anything else as it is."""
    try:
        return value if type(value) in (int, float) else value.item()
    except Exception:
        return value


def _bench(request: VisitRequest) -> Bench:
    from attnbench.measure.worker.prepared_cell import subject_of
    from attnbench.measure.worker.visit import Bench

    source = operators(request.operators_from)[request.cell.operator]
    subject = subject_of(request.cell, source, request.device, request.memory_limit, request.forecast)
    return Bench(subject, request.measure)


def _check(bench: Bench) -> VisitAnswer:
    """Checks, counts, takes memory and operations, and calls once."""
    from attnbench.measure.worker import correctness
    from attnbench.measure.worker import operations as dispatch

    subject = bench.subject
    if subject.cell.impl == "compiled":
        subject.perform(subject.calls[0])
        bench.metrics["compile_s"] = subject.spent.seconds
    checked = correctness.before(subject)
    bench.checked.update(vars(checked))
    bench.metrics.update(_measured(bench, "check"))
    for index, answer in enumerate(correctness.answers(correctness.first_outputs(subject))):
        bench.metrics[f"answer_{index}"] = answer
    operations = dispatch.operations(subject)
    begun = perf_counter()
    subject.perform(subject.calls[0])
    bench.metrics["check_time_s"] = perf_counter() - begun
    return replace(_done(bench), operations=operations, kernel=dispatch.kernel(subject, operations))


def _time(bench: Bench, request: VisitRequest) -> VisitAnswer:
    """Takes time between two checks."""
    from attnbench.measure.worker import correctness, timing

    subject = bench.subject
    first = correctness.first(subject)
    correctness.same_answers(subject, first.outputs, request.answers, request.tolerance)
    bench.estimate = timing.warm_up(subject)
    metrics = _measured(bench, "timed")
    correctness.after(subject, first, request.tolerance)
    bench.metrics.update(metrics)
    return _done(bench)


def _done(bench: Bench) -> VisitAnswer:
    bench.metrics["operator_s"] = bench.subject.spent.seconds
    return VisitAnswer(
        status="ok",
        reason="; ".join(bench.notes),
        metrics=bench.metrics,
        samples=bench.samples,
        warnings=tuple(bench.warnings),
        throttled=bench.throttled,
    )


def _measured(bench: Bench, phase: str) -> dict[str, float | int]:
    """What every metric that has this phase ("check", "timed") measures, in passes of their own."""
    found: dict[str, float | int] = {}
    for measure in (getattr(module, phase, None) for module in metrics()):
        if measure is not None:
            found.update(measure(bench))
    return found


def metrics() -> list[ModuleType]:
    """Every metric's module; times first, so that what the others leave behind does not disturb them."""
    modules = [
        importlib.import_module(f"attnbench.measure.metrics.{name}") for name in scan("attnbench.measure.metrics")
    ]
    return sorted(modules, key=lambda m: not m.METRIC.clock)


def limit_host_memory(limit: int | None) -> None:
    """Lets this process allocate `limit` bytes more than it first had, so that running out is clean. None: no limit."""
    if limit is None or sys.platform != "linux":
        return
    import resource

    global _own_bytes
    if _own_bytes is None:
        with open("/proc/self/status", encoding="ascii") as status:
            _own_bytes = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_own_bytes + limit, hard))


_own_bytes: int | None = None


def _die_with(parent: int) -> None:
    """Linux kills this process when the thread that started it ends, even in the middle of native code."""
    if sys.platform != "linux":
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    descendants.become_subreaper()  # what operators leave stays below their own worker, as long as it lives
    if os.getppid() != parent:  # it was gone before the call
        os._exit(CLEAN_EXIT)


def _watch(write: int) -> None:
    """Ends the process when nobody holds the other end of its answers any more."""
    poll = select.poll()
    poll.register(write, 0)  # errors and hang-ups are always reported
    poll.poll()
    os._exit(CLEAN_EXIT)
