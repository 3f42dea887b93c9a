"""Two functions in turns in one process, this or a fresh one: the pairs of `paired_callables`. No library is imported
here; a device is waited for where torch has started it.

A pair is the fastest sample of each function over some turns in one process; in a turn both take as many samples one
after the other, in random order. Pairs of one process have the luck of that process in common (where things lie in
memory, what was cached or compiled), pairs of fresh ones do not.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from time import perf_counter
from typing import Any

from attnbench.errors import described
from attnbench.measure.device import HOST, device_names, device_of, nothing
from attnbench.plan.settings import MOST_CALLS, SAMPLE_S, batch_of, untimed_calls

PAIR_S = 1.0
"""What a pair takes at most, where one turn does not take longer."""

MOST_TURNS = 24
"""Of a pair: what else runs on a machine comes for a while, and turns that lie apart do not all meet it."""

TRIAL_CALLS, TRIAL_S = 5, 0.2
"""By so many calls, or in that time, it is known how long one takes."""

Words = tuple[tuple[Any, ...], Mapping[str, Any]]
"""A call's arguments, by position and by name."""

REQUEST, ANSWER = "request.pickle", "answer.json"
"""Of a fresh process, in the folder that it is given: both functions and their inputs; seconds of both, or why not."""


@dataclass
class Side:
    """One of the two functions.

    Args:
        function: it.
        inputs: gives the arguments of a call.
        fresh: whether each call has inputs of its own.
        call_s: seconds of a call.
    """

    function: Callable[..., object]
    inputs: Callable[[], Words]
    fresh: bool
    call_s: float = 0.0

    def calls(self, number: int) -> Iterator[Callable[[], object]]:
        """So many calls; their inputs are made before the first."""
        if not self.fresh:
            return repeat(self._call(), number)
        return iter([self._call() for _ in range(number)])

    def _call(self) -> Callable[[], object]:
        positional, named = self.inputs()
        return partial(self.function, *positional, **named)

    def sample(self, number: int, settle: Callable[[], object]) -> float:
        """Seconds of one of so many calls in a row. settle: waits for the device."""
        calls = self.calls(number)
        settle()
        begun = perf_counter()
        for call in calls:
            output = call()
        settle()
        seconds = perf_counter() - begun
        del output
        return seconds / number


def sides_of(first: Callable[..., object], second: Callable[..., object], inputs: Any) -> tuple[Side, Side]:
    """Both sides of a comparison.

    Args:
        first, second: the functions.
        inputs: a tuple of arguments, a dict of arguments by name, any other value as the only argument; or a function
            that returns one of these, which is called before each call of theirs.
    """
    fresh = callable(inputs)

    def words() -> Words:
        given = inputs() if fresh else inputs
        if isinstance(given, dict):
            return (), given
        return (given if isinstance(given, tuple) else (given,)), {}

    return Side(first, words, fresh), Side(second, words, fresh)


@dataclass(frozen=True)
class Turns:
    """How a pair is measured.

    Args:
        turns: of a pair.
        samples: of each side in a turn.
        pair_s: about what a pair takes.
    """

    turns: int
    samples: int
    pair_s: float


def try_out(sides: Sequence[Side], settle: Callable[[], object]) -> Turns:
    """Calls both sides until it is known how long that takes. They have been called before."""
    for side in sides:
        begun = time.monotonic()
        seconds: list[float] = []
        while len(seconds) < TRIAL_CALLS and (not seconds or time.monotonic() - begun < TRIAL_S):
            seconds.append(side.sample(1, settle))
        batch = batch_of(min(seconds), 1)
        side.call_s = min(*seconds, side.sample(batch, settle) if batch > 1 else math.inf)
    slower_s = max(side.call_s * batch_of(side.call_s, 1) for side in sides)
    samples = min(max(round(SAMPLE_S / slower_s), 1), MOST_CALLS)
    turn_s = sum((untimed_calls(side.call_s) + samples * batch_of(side.call_s, 1)) * side.call_s for side in sides)
    turns = min(max(int(PAIR_S / turn_s), 1), MOST_TURNS)
    return Turns(turns, samples, turns * turn_s)


def measure_pair(
    sides: Sequence[Side], plan: Turns, settle: Callable[[], object], draw: random.Random
) -> tuple[float, float]:
    """Seconds of the fastest sample of each side."""
    fastest = [float("inf")] * len(sides)
    for _ in range(plan.turns):
        for place in draw.sample(range(len(sides)), len(sides)):
            side = sides[place]
            for call in side.calls(untimed_calls(side.call_s)):
                call()
            batch = batch_of(side.call_s, 1)
            taken = [side.sample(batch, settle) for _ in range(plan.samples)]
            fastest[place] = min(fastest[place], *taken)
    return fastest[0], fastest[1]


def settle_of_started() -> Callable[[], object]:
    """Waits for the GPU where torch has started it in this process, else for nothing."""
    kind = device_in_use()
    return nothing if kind == HOST else device_of(kind).synchronise


def device_in_use() -> str:
    """The kind of device that torch has started in this process; the CPU where it has started none, or is not there."""
    started = (name for name in device_names() if device_of(name).is_started()) if "torch" in sys.modules else iter(())
    return next(started, HOST)


def serve(folder: str) -> None:
    """What a fresh process does: one pair. folder: with the request, and for the answer."""
    try:
        answer: Mapping[str, Any] = {"seconds": _measured(Path(folder) / REQUEST)}
    except Exception as error:
        answer = {"failure": described(error)}
    (Path(folder) / ANSWER).write_text(json.dumps(answer), encoding="utf-8")
    os._exit(0)  # a thread that a function has left must not hold up what is measured


def _measured(request: Path) -> tuple[float, float]:
    sides = sides_of(*pickle.loads(request.read_bytes()))
    for side in sides:
        next(side.calls(1))()
    settle = settle_of_started()
    return measure_pair(sides, try_out(sides, settle), settle, random.Random())
