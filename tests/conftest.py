"""One thread for all that tests start: on tensors so small a second thread only waits, and waiting spins."""

from __future__ import annotations

import gc
import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, here and in what is started from here
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts a job in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What is imported stays, and no garbage collection need look at it again; several tests make many."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Or libraries that look at exit would say that all of it leaks."""
    gc.unfreeze()
