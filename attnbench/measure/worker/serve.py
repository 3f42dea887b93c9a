"""The measured process: builds inputs, checks, runs the metrics. The only try/except around operator code.

    python -m attnbench.worker READ WRITE PARENT

READ and WRITE are the numbers of the pipe ends it talks through, one JSON object per line each way; PARENT is the id
of the process that started it. It says
`{"ready": …}` once torch is loaded, answers each request, and ends when its pipe closes. What libraries print on
stdout is none of its answers.
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
from dataclasses import asdict
from time import perf_counter
from types import ModuleType
from typing import TYPE_CHECKING, Any

from attnbench import descendants
from attnbench.errors import MOST_OF_A_REASON, printable, said
from attnbench.plan.settings import Measure
from attnbench.problem import Cell, cell_of
from attnbench.registry import operators, scan, why_not
from attnbench.store.reading import is_metric

if TYPE_CHECKING:
    from attnbench.measure.worker.visit import Bench

FATAL = ("oom", "crashed")
"""After these nothing else is measured in this process: memory is in pieces, or the CUDA context is lost."""

RUNS_OPERATORS = ("why_not", "foresee", "scout", "time")
"""Requests during which an operator's file is imported or called."""

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
        _say(answers, {"ready": os.getpid(), "threads": torch.get_num_threads()})
        before = shared_state.now()
        for line in requests:
            request = json.loads(line)
            answer = _serve(request)
            after = shared_state.now()
            if request["do"] in RUNS_OPERATORS:
                answer = _with_changes(
                    request, answer, shared_state.changes(before, after), shared_state.replaced(before, after)
                )
            before = after
            _say(answers, {"id": request["id"], **answer})
            if answer.get("status") in FATAL:
                break
        answers.flush()
    os._exit(CLEAN_EXIT)  # a library's exit handlers must not hang a round


def _say(answers: Any, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message, allow_nan=False) + "\n")
    answers.flush()


def _serve(request: dict[str, Any]) -> dict[str, Any]:
    """One request: `expand` a suite, `why_not` of many cells, or one visit (`scout`, `time`)."""
    if request["do"] == "why_not":
        return {"reasons": _reasons(request)}
    if request["do"] == "expand":
        from attnbench.measure.expansion import expansion

        return {"expansion": expansion(request)}
    if request["do"] == "foresee":
        from attnbench.measure.worker.forecast import foresee

        cell = cell_of(request["cell"])
        return {"foreseen": asdict(foresee(cell, operators(request["operators_from"])[cell.operator]))}
    if request["do"] == "environment":
        from attnbench.measure.machine.environment import collect

        return {"environment": collect(request["device"])}
    if request["do"] == "rates":
        from attnbench.measure.machine.peak_rates import rates

        return {"rates": rates(request["device"], request["dtypes"])}
    from attnbench.measure.worker.shared_state import same_random_numbers

    begun = perf_counter()
    same_random_numbers()
    answer = _fit(_visit(request))
    gc.collect()
    gc.freeze()
    answer.setdefault("metrics", {})["visit_s"] = perf_counter() - begun
    return answer


def _with_changes(
    request: dict[str, Any], answer: dict[str, Any], changes: list[str], replaced: list[str]
) -> dict[str, Any]:
    """The answer, with `restart` where an operator left this process otherwise than it found it, and its name.

    A visit keeps its own number and warns; one that replaced what measures it has none.
    """
    if not changes and not replaced:
        return answer
    if request["do"] not in ("scout", "time"):
        return {**answer, "restart": True}
    cell = cell_of(request["cell"])
    if replaced:
        tampered = f"it replaces {', '.join(replaced)}, which attnbench measures with"
        return {"status": "wrong", "cause": "tampered", "reason": tampered, "restart": True}
    told = (
        f"{cell.operator} ({cell.impl}) changes what the next operator would find, which is therefore measured in a "
        f"fresh process: {', '.join(changes)}"
    )
    return {**answer, "restart": True, "warnings": [*answer.get("warnings", ()), told]}


def _reasons(request: dict[str, Any]) -> list[list[Any]]:
    """[why it cannot run or None] per cell; an operator file that cannot say so is an error, shown as such."""
    sources = operators(request["operators_from"])
    found: list[list[Any]] = []
    for columns in request["cells"]:
        cell = cell_of(columns)
        try:
            found.append(["skipped", why_not(sources[cell.operator].load(), cell, request["device"])])
        except BaseException as error:
            found.append(["error", _told(error)])
    return found


def _visit(request: dict[str, Any]) -> dict[str, Any]:
    import torch

    from attnbench.measure.worker.prepared_cell import Misfit, Wrong

    bench: Bench | None = None
    try:
        cell = cell_of(request["cell"])
        limit_host_memory(request["host_limit"])
        bench = _bench(cell, request)
        return (_scout if request["do"] == "scout" else _time)(bench, request)
    except Wrong as error:
        return {"status": "wrong", "reason": str(error)}
    except Misfit as error:
        return {"status": "error", "cause": "bad_inputs", "reason": str(error)}
    except MemoryError as error:
        return {"status": "oom", "reason": f"out of memory: {_told(error)}"}
    except torch.OutOfMemoryError as error:
        return {"status": "oom", "reason": f"out of GPU memory: {_told(error)}"}
    except BaseException as error:  # an operator's own failure, whatever it is, is that visit's reason
        status = _status_of(error, request["device"])
        return {"status": status, "reason": ("out of memory: " if status == "oom" else "") + _told(error)}
    finally:
        if bench is not None:
            bench.subject.release()
        if request["device"] == "cuda":
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()


CPU_ALLOCATOR = "[enforce fail at alloc_cpu.cpp:"
"""How the RuntimeError of torch's CPU allocator begins; torch has no type of its own for it."""

CUDA_OUT_OF_MEMORY = 2
"""cudaErrorMemoryAllocation, the `error_code` of a torch.AcceleratorError."""


def _status_of(error: BaseException, device: str) -> str:
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


def _told(error: BaseException) -> str:
    """One line of an exception, and the operator's line it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    place = next((f for f in reversed(frames) if "/torch/" not in f.filename), None)
    where = f" ({printable(os.path.basename(place.filename))}, line {place.lineno})" if place else ""
    return said(error) + where


def _fit(answer: dict[str, Any]) -> dict[str, Any]:
    """A visit's answer, of which all can be stored, read again and shown, whatever an operator has put into it."""
    metrics = {name: _number(value) for name, value in answer.get("metrics", {}).items()}
    left_out = [name for name, value in metrics.items() if not is_metric(name, value)]
    warnings = [
        f"{name} = {printable(metrics.pop(name), 60)} is no value that it can have, and left out" for name in left_out
    ]
    operations: dict[str, int] = {}
    for name, count in answer.get("operations", {}).items():
        operations[printable(name)] = operations.get(printable(name), 0) + count
    return {
        **answer,
        "reason": printable(answer["reason"], MOST_OF_A_REASON),
        "kernel": printable(answer.get("kernel", "")),
        "metrics": metrics,
        "operations": operations,
        "warnings": [printable(text, MOST_OF_A_REASON) for text in (*answer.get("warnings", ()), *warnings)],
    }


def _number(value: Any) -> Any:
    """NumPy's and torch's numbers as Python's; anything else as it is."""
    try:
        return value if type(value) in (int, float) else value.item()
    except Exception:
        return value


def _bench(cell: Cell, request: dict[str, Any]) -> Bench:
    from attnbench.measure.worker.forecast import Foreseen
    from attnbench.measure.worker.prepared_cell import subject_of
    from attnbench.measure.worker.visit import Bench

    source = operators(request["operators_from"])[cell.operator]
    subject = subject_of(cell, source, request["device"], request["memory_limit"], Foreseen(**request["foreseen"]))
    return Bench(subject, Measure(**request["measure"]))


def _scout(bench: Bench, request: dict[str, Any]) -> dict[str, Any]:
    """Checks, counts, takes memory and operations, and calls once."""
    from attnbench.measure.worker import correctness
    from attnbench.measure.worker import operations as dispatch

    subject = bench.subject
    if subject.cell.impl == "compiled":
        subject.perform(subject.calls[0])
        bench.metrics["compile_s"] = subject.spent.seconds
    checked = correctness.before(subject)
    bench.checked.update(vars(checked))
    bench.metrics.update(_measured(bench, "scout"))
    for index, answer in enumerate(correctness.answers(correctness.first_outputs(subject))):
        bench.metrics[f"answer_{index}"] = answer
    operations = dispatch.operations(subject)
    begun = perf_counter()
    subject.perform(subject.calls[0])
    bench.metrics["scout_time_s"] = perf_counter() - begun
    return _done(bench) | {"operations": operations, "kernel": dispatch.kernel(subject, operations)}


def _time(bench: Bench, request: dict[str, Any]) -> dict[str, Any]:
    """Takes time between two checks."""
    from attnbench.measure.worker import correctness, timing

    subject = bench.subject
    first = correctness.first(subject)
    correctness.same_answers(subject, first.outputs, request["answers"], request["tolerance"])
    bench.estimate = timing.warm_up(subject)
    metrics = _measured(bench, "timed")
    correctness.after(subject, first, request["tolerance"])
    bench.metrics.update(metrics)
    return _done(bench)


def _done(bench: Bench) -> dict[str, Any]:
    bench.metrics["operator_s"] = bench.subject.spent.seconds
    return {
        "status": "ok",
        "reason": "; ".join(bench.notes),
        "metrics": bench.metrics,
        "samples": bench.samples,
        "warnings": bench.warnings,
        "throttled": bench.throttled,
    }


def _measured(bench: Bench, phase: str) -> dict[str, float | int]:
    """What every metric that has this phase ("scout", "timed") measures, in passes of their own."""
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
    return sorted(modules, key=lambda m: m.METRIC.unit != "s")


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
