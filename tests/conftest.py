"""One thread for all that tests start: on tensors so small a second thread only waits, and waiting spins."""

from __future__ import annotations

import gc
import os
import signal

# Without its bytecode a worker compiles attnbench at every start, which takes a fifth of a second.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in what is started from here
# A shell starts a job in the background with SIGINT ignored, nohup with SIGHUP, and what is started here inherits that.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_collection_finish() -> None:
    """What is imported stays, and no garbage collection need look at it again; several tests make many."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Or libraries that look at exit would say that all of it leaks."""
    gc.unfreeze()
