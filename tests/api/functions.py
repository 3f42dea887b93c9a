"""Functions that are compared: two that do the same, one that does a fifth more, and some that cannot be compared."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any


def old(steps: int) -> float:
    total = 0.0
    for number in range(steps):
        total += number * 0.5
    return total


def new(steps: int) -> float:
    total = 0.0
    for number in range(steps):
        total += number * 0.5
    return total


def four_times_slower(steps: int) -> float:
    return max(old(steps) for _ in range(4))


def a_fifth_slower(steps: int) -> float:
    total = 0.0
    for number in range(steps // 10):
        total -= number * 0.5
        total += number * 0.5
    for number in range(steps):
        total += number * 0.5
    return total


def sort_in_place(values: list[int]) -> list[int]:
    values.sort()
    return values


def fails_elsewhere(parent: int) -> int:
    if os.getpid() != parent:
        raise RuntimeError("not here")
    return 0


def dies_elsewhere(parent: int) -> int:
    if os.getpid() != parent:
        print("last words", flush=True)
        os._exit(7)
    return 0


def is_killed_elsewhere(parent: int) -> int:
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0


THREAD_S = 60.0


def leaves_a_thread(parent: int) -> int:
    if os.getpid() != parent and threading.active_count() == 1:
        threading.Thread(target=time.sleep, args=(THREAD_S,)).start()
    return 0


def process_id(*_: Any) -> int:
    return os.getpid()
