"""One thread for all that tests start: on tensors so small a second thread only waits, and waiting spins."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from collections.abc import Generator

import pytest

# Without its bytecode a worker compiles attnbench at every start, which takes a fifth of a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in what is started from here
# A shell starts a job in the background with SIGINT ignored, nohup with SIGHUP, and what is started here inherits that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_collection_finish() -> None:
    """What is imported stays, and no garbage collection need look at it again: every measured peak makes one. Fake
    tensors import half of torch when they are first used, so it is imported here.
    """
    if "attnbench.measure.worker.fake_memory" in sys.modules:
        importlib.import_module("torch._dynamo")
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
    """Nor need it look again at what a file of tests leaves."""
    try:
        return (yield)
    finally:
        if nextitem is None or nextitem.path != item.path:
            gc.collect()
            gc.freeze()


def pytest_unconfigure() -> None:
    """Or libraries that look at exit would say that all of it leaks."""
    gc.unfreeze()
