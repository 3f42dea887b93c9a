"""Workers forked from a process that has torch, whose import is what takes long of a start.

Such a worker finds modules as its parent has them. How a process of its own starts and ends, and what it imports, is
tested with real ones.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any, NoReturn
from unittest.mock import patch

from attnbench.measure import worker_process
from attnbench.measure.worker import serve

if TYPE_CHECKING:
    import pytest


class Forked:
    """What attnbench uses of `subprocess.Popen`, of a worker that this process forks."""

    returncode: int | None = None

    def __init__(
        self, command: Sequence[str], *, stdout: IO[bytes], pass_fds: Sequence[int], env: Mapping[str, str], **_: Any
    ) -> None:
        import torch  # noqa: F401

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python's, of the thread that looks at files meanwhile
            self.pid = os.fork()
        if self.pid == 0:
            _serve(command, stdout.fileno(), pass_fds, env)

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has waited for it
                pid, status = self.pid, 0
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("worker", timeout)
            time.sleep(0.003)
        return code


def _serve(command: Sequence[str], printed: int, keep: Sequence[int], env: Mapping[str, str]) -> NoReturn:
    """The forked process, made like one that was started."""
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        faulthandler.disable()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for end in (1, 2):
            os.dup2(printed, end)
        low = 3
        for end in sorted(keep):
            os.closerange(low, end)
            low = end + 1
        os.closerange(low, 1024)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        os.environ.clear()
        os.environ.update(env)
        sys.path[:] = env["PYTHONPATH"].split(os.pathsep)
        sys.argv = ["attnbench.worker", *command[3:]]
        serve.main()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)


FORKING = SimpleNamespace(**{**vars(subprocess), "Popen": Forked})
"""Stands for `subprocess` where workers are started."""


def forked_workers(patch: pytest.MonkeyPatch) -> None:
    """Workers of this process are forked from it."""
    patch.setattr(worker_process, "subprocess", FORKING)


def start(number: int) -> worker_process.Worker:
    """A worker forked from this process."""
    with patch.object(worker_process, "subprocess", FORKING):
        return worker_process.start(number, threads=1)
