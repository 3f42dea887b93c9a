"""Whether one function is slower than another: pairs of both until the test of `analysis.compare.tier1_paired` decides,
in this process or in fresh ones."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from time import perf_counter

import numpy as np

from attnbench import descendants
from attnbench.analysis.compare.findings import Verdict
from attnbench.analysis.compare.tier1_paired import LOOKS, Change, Decided, changes, looks_until
from attnbench.errors import BadInput, described, last_printed, printable
from attnbench.measure.agreement import (
    AFFORDABLE_S,
    Agreement,
    Different,
    Incomparable,
    Unfit,
    agreement,
    changed,
    copied,
    truth_of,
)
from attnbench.measure.callables import ANSWER, REQUEST, Side, Words, measure_pair, settle_of_started, try_out
from attnbench.measure.machine import allocator
from attnbench.measure.platforms import check_can_measure
from attnbench.measure.scratch import scratch_folder
from attnbench.measure.worker_process import how_ended

PRINTED = "printed.txt"

MAIN = "import sys; from attnbench.measure.callables import serve; serve(sys.argv[1])"
"""What a fresh process is told to run."""

UNKNOWN = Decided("undecided", Change(*[math.nan] * 5), math.nan)


def agree(sides: Sequence[Side], check: bool, tolerance: float | None) -> Agreement | None:
    """Calls both sides once, and compares what they give.

    Args:
        sides: both.
        check: whether their outputs have to agree; None is then what is known of them.
        tolerance: of the largest value, in place of the rule of `agreement`.

    Raises: Different where they do not; Unfit.
    """
    twins = _alike(sides[0])
    outputs: list[object] = []
    seconds: list[float] = []
    for place, side in enumerate(sides):
        positional, named = next(twins)
        before = None if side.fresh else copied((positional, named))
        settings = _settings_of_torch()
        begun = perf_counter()
        outputs.append(side.function(*positional, **named))
        settle_of_started()()
        seconds.append(perf_counter() - begun)
        if _is_deferred(outputs[-1]):
            raise Unfit(
                place,
                f"gives a {printable(type(outputs[-1]).__name__)}, whose work its call has not done. Give a function "
                "that does the work: one that reads the generator to its end, or runs the coroutine (asyncio.run).",
            )
        if changed((positional, named), before):
            raise Unfit(
                place,
                "changes its inputs, so that its next call would compute something else. Give a function that makes "
                "them anew for each call, such as lambda: (data.copy(),).",
            )
        changes = _changed_settings(settings)
        if changes:
            raise Unfit(
                place,
                f"changes {' and '.join(changes)}, by which the other one then computes, too. Set that before, for "
                "both, or give a function that puts it back before it returns.",
            )
    if not check:
        return None
    truth = truth_of(sides[0].function, next(twins), seconds[0]) if tolerance is None else None
    try:
        return agreement(outputs[0], outputs[1], truth, tolerance)
    except Incomparable:
        raise
    except Different:
        for place in (0, 1):
            if seconds[place] < AFFORDABLE_S and _is_unsteady(sides[place], next(twins), outputs[place], tolerance):
                raise Unfit(
                    place,
                    "gives something else at every call, also with the same inputs. Where that is meant, allow it "
                    "(check_outputs=False), or give functions that set the seed of what they draw.",
                ) from None
        raise


def _is_deferred(output: object) -> bool:
    """Whether an output is what a function with `yield` or `async def` gives, before anything in it has run."""
    return inspect.isgenerator(output) or inspect.isasyncgen(output) or inspect.isawaitable(output)


def _settings_of_torch() -> dict[str, object]:
    """By name; none where torch is not imported."""
    if "torch" not in sys.modules:
        return {}
    from attnbench.measure.worker import shared_state

    return shared_state.of_torch()


def _changed_settings(before: Mapping[str, object]) -> list[str]:
    """What a call has changed of them."""
    if not before:
        return []
    from attnbench.measure.worker import shared_state

    return shared_state.changed_settings(before, shared_state.of_torch())


def _is_unsteady(side: Side, words: Words, output: object, tolerance: float | None) -> bool:
    """Whether one more call gives another output."""
    again = side.function(*words[0], **words[1])
    try:
        agreement(output, again, None, tolerance)
    except Different as different:
        return not isinstance(different, Incomparable)
    return False


def _alike(side: Side) -> Iterator[Words]:
    """Arguments of calls that hold the same; what cannot be copied is made anew, and is then alike where what makes it
    draws nothing at random."""
    words = side.inputs()
    while True:
        yield (copied(words) or side.inputs()) if side.fresh else words


@dataclass(frozen=True)
class Paired:
    """What the pairs say.

    Args:
        decided: the verdict on the second function.
        fastest: seconds of a call of each, the geometric mean over the pairs.
        pairs: how many there are.
        looks: after how many it was to be decided.
        ended: whether the time was over first.
    """

    decided: Decided
    fastest: tuple[float, float]
    pairs: int
    looks: tuple[int, ...]
    ended: bool = False


def decide(pairs: Iterator[tuple[float, float]], looks: tuple[int, ...], threshold: float, until: float) -> Paired:
    """Takes pairs until the test decides.

    Args:
        pairs: seconds of each side.
        looks: after how many is decided.
        threshold: the change that is to be found, a fraction.
        until: when no further pair is begun, on the monotonic clock.
    """
    decided, ended = UNKNOWN, False
    seconds: list[tuple[float, float]] = []
    for look in looks:
        while len(seconds) < look and not (ended := bool(seconds) and time.monotonic() > until):
            seconds.append(next(pairs))
        if ended:
            break
        taken = np.array(seconds)
        (change,) = changes(np.log(taken[:, 1:] / taken[:, :1]), ("block",), looks, 1)
        decided = Decided(two_sided(change, threshold), change, change.detectable(threshold))
        if decided.verdict != "undecided":
            break
    first, second = np.exp(np.log(np.array(seconds)).mean(axis=0)).tolist()
    return Paired(decided, (first, second), len(seconds), looks, ended)


def two_sided(change: Change, threshold: float) -> Verdict:
    """As `Change.verdict`, but what is the same is known to be faster by less than the threshold, too."""
    verdict = change.verdict(threshold)
    least = 2 * change.level - change.high
    return "undecided" if verdict == "same" and not least > -math.log1p(threshold) else verdict


def here(sides: Sequence[Side], threshold: float, budget_s: float, most: int | None) -> Paired:
    """The decision by pairs of this process.

    Args:
        sides: both; they have been called.
        threshold: the change that is to be found, a fraction.
        budget_s: what it may take.
        most: pairs, at most; None: as many as the budget allows.
    """
    until, settle, draw = time.monotonic() + budget_s, settle_of_started(), random.Random()
    plan = try_out(sides, settle)
    affordable = min(max(int((until - time.monotonic()) / plan.pair_s), 2), LOOKS[-1])
    looks = looks_until(affordable if most is None else most)
    pairs = (measure_pair(sides, plan, settle, draw) for _ in repeat(None))
    return decide(pairs, looks, threshold, until)


def apart(sides: tuple[Side, Side], inputs: object, threshold: float, budget_s: float, processes: int) -> Paired:
    """The decision by pairs of a fresh process each.

    Args:
        sides: both, whose functions and inputs can be imported there.
        inputs: as the caller gave them.
        threshold: the change that is to be found, a fraction.
        budget_s: when no further process is started.
        processes: at most.

    Raises: BadInput where a function or the inputs cannot be had in another process, or fail there.
    """
    check_can_measure("compare_callables(processes=…)")
    request = _pickled(sides, inputs)
    until = time.monotonic() + budget_s
    with scratch_folder("callables") as folder:
        (folder / REQUEST).write_bytes(request)
        return decide((_pair(folder) for _ in repeat(None)), looks_until(processes), threshold, until)


def _pickled(sides: tuple[Side, Side], inputs: object) -> bytes:
    for side in sides:
        module = getattr(side.function, "__module__", None)
        if module == "__main__":
            raise _not_there(side, f"it is defined in {module}, which only this process has")
    try:
        return pickle.dumps((*(side.function for side in sides), inputs))
    except Exception as error:
        raise BadInput(
            f"processes: the functions or their inputs cannot be given to another process: {described(error)}. Define "
            "both functions at the top of a module, not in a function or a notebook, and give inputs that pickle can "
            "store, or a function of a module that makes them; without processes they are compared in this process."
        ) from None


def _not_there(side: Side, reason: str) -> BadInput:
    name = printable(getattr(side.function, "__qualname__", repr(side.function)), 60)
    return BadInput(
        f"processes: {name} cannot be imported in another process: {reason}. Define it at the top of a module that can "
        "be imported; without processes both are compared in this process."
    )


def _pair(folder: Path) -> tuple[float, float]:
    """Seconds of both sides, by a fresh process."""
    (folder / ANSWER).unlink(missing_ok=True)
    with open(folder / PRINTED, "wb") as printed:
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            start_new_session=True,
            env=_environment(),
        )
        descendants.started(process.pid)
        try:
            process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            descendants.ended(process.pid)
    try:
        answer = json.loads((folder / ANSWER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        words = last_printed((folder / PRINTED).read_bytes()) or "it printed nothing"
        answer = {"failure": f"it {how_ended(process.returncode)}; {words}"}
    if "failure" in answer:
        raise BadInput(
            f"processes: a fresh process could not compare them: {printable(answer['failure'], 600)}. Correct that, or "
            "compare them in this process, without processes."
        )
    first, second = answer["seconds"]
    return float(first), float(second)


def _environment() -> dict[str, str]:
    """What this process can import, that one can, and it computes with as many threads."""
    torch = sys.modules.get("torch")
    threads = (
        {} if torch is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(torch.get_num_threads()))
    )
    path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    return {**os.environ, **allocator.variables(os.environ), **threads, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
