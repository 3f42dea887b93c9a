"""The runner's end of a worker process: start it, ask it, and kill its whole process group when it must end."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from attnbench import descendants, interrupts
from attnbench.errors import last_printed
from attnbench.measure.machine import allocator, instruction_set
from attnbench.measure.machine.host import out_of_memory_kills
from attnbench.measure.protocol import A_co, Request, WorkerLost, answer_to, check_ready

START_TIMEOUT_S = 120.0
"""A worker that has not loaded torch by then never will."""

MOST_PRINTED_BYTES = 2**20
"""What a worker has printed is thrown away between two requests once it is more than this."""

MOST_ANSWER_BYTES = 2**28
"""An answer longer than this is none."""


def how_ended(code: int) -> str:
    """What became of a process by its return code, without a subject."""
    if code >= 0:
        return f"exited with code {code}"
    return f"was killed by {signal.Signals(-code).name if -code in signal.valid_signals() else f'signal {-code}'}"


@dataclass
class Worker:
    """A running worker process.

    Attributes:
        number: its `process` in the visits.
        read, write: the runner's ends of both pipes.
        printed: what it prints.
        kills_before: how many processes the kernel had killed for memory when it started; None: not known.
        start_s: how long it took to be ready.
    """

    number: int
    process: subprocess.Popen[bytes]
    read: int
    write: int
    printed: IO[bytes]
    kills_before: int | None
    start_s: float = 0.0
    _pending: bytearray = field(default_factory=bytearray)
    _requests: int = 0

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def ask(self, request: Request[A_co], timeout: float) -> A_co:
        """The answer to a request.

        Args:
            request: one of `protocol`'s.
            timeout: seconds that the answer may take.

        Raises: WorkerLost; the process is then gone and its group killed.
        """
        interrupts.check()
        if os.fstat(self.printed.fileno()).st_size > MOST_PRINTED_BYTES:
            self.printed.seek(0)  # the worker's stdout is at the same place
            self.printed.truncate()
        self._requests += 1
        text = json.dumps({**request.to_json(), "id": self._requests}) + "\n"
        try:
            self._send(text.encode(), timeout)
            message = self._receive(timeout)
            if message.get("id") != self._requests:
                raise WorkerLost("crashed", f"the worker answered something that was not asked: {str(message)[:100]}")
            return answer_to(request, message)
        except WorkerLost:
            self.kill()
            raise
        except BrokenPipeError:
            raise self._lost() from None

    def _send(self, data: bytes, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while data:
            if not select.select([], [self.write], [], max(0.0, deadline - time.monotonic()))[1]:
                raise WorkerLost("timeout", f"no answer within {timeout:g} s")
            data = data[os.write(self.write, data[:4096]) :]

    def _receive(self, timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.read], [], [], left)[0]:
                raise WorkerLost("timeout", f"no answer within {timeout:g} s")
            received = os.read(self.read, 65536)
            if not received:
                raise self._lost()
            self._pending += received
            if len(self._pending) > MOST_ANSWER_BYTES:
                raise WorkerLost("crashed", "the worker's answer has no end")
        line, _, rest = bytes(self._pending).partition(b"\n")
        self._pending = bytearray(rest)
        with contextlib.suppress(ValueError, RecursionError):
            answer = json.loads(line)
            if isinstance(answer, dict):
                return answer
        raise WorkerLost("crashed", f"the worker sent what is no answer: {line[:100]!r}")

    def _lost(self) -> WorkerLost:
        """What became of a worker whose pipe closed by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
        code, words = self.process.poll(), self._last_words()
        self.kill()
        if code is None:
            return WorkerLost("crashed", "the worker closed its pipe and went on")
        kills = (out_of_memory_kills() or 0) - (self.kills_before or 0)
        if -code == signal.SIGKILL and kills > 0:
            return WorkerLost("oom", "the worker was killed by SIGKILL while the kernel killed for memory", "killed")
        return WorkerLost("crashed", "; ".join(filter(None, (f"the worker {how_ended(code)}", words))))

    def _last_words(self) -> str:
        self.printed.seek(0, os.SEEK_END)
        self.printed.seek(max(0, self.printed.tell() - 4000))
        return last_printed(self.printed.read(), 200)

    def close(self) -> None:
        """Lets the worker end by closing its pipe, and kills it where it does not."""
        with contextlib.suppress(OSError):
            os.close(self.write)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=2)
        self.kill()

    def kill(self) -> None:
        """Kills the worker and everything it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        descendants.ended(self.process.pid)
        for end in (self.read, self.write):
            with contextlib.suppress(OSError):
                os.close(end)
        self.read = self.write = -1
        self.printed.close()


def start(number: int, threads: int, first: Sequence[str] = ()) -> Worker:
    """A worker that is ready.

    Args:
        number: its `process` in the visits.
        threads: that torch computes with.
        first: folders that it imports from before all others.

    Raises: WorkerLost, OtherVersion.
    """
    begun = time.perf_counter()
    try:
        printed = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
    except OSError as error:
        reason = f"no temporary file for what it prints: {error.strerror or error}; make room, or set TMPDIR"
        raise WorkerLost("crashed", reason) from None
    read_requests, write = os.pipe()
    read, write_answers = os.pipe()
    # What the runner can import, the worker can: operators_from may name a package found through sys.path alone.
    path = os.pathsep.join([*first, *(p or os.getcwd() for p in sys.path)])
    environment = {
        "KINETO_LOG_LEVEL": "99",  # what torch's profiler says of itself is not the last that a worker printed
        **os.environ,
        **allocator.variables(os.environ),
        **instruction_set.variables(os.environ),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "PYTHONPATH": path,
        "PYTHONSAFEPATH": "1",
    }
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "attnbench.worker", str(read_requests), str(write_answers), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            pass_fds=(read_requests, write_answers),
            start_new_session=True,
            env=environment,
        )
    finally:
        os.close(read_requests)
        os.close(write_answers)
    descendants.started(process.pid)
    worker = Worker(number, process, read, write, printed, out_of_memory_kills())
    try:
        check_ready(worker._receive(START_TIMEOUT_S))
    except BaseException:
        worker.kill()
        raise
    worker.start_s = time.perf_counter() - begun
    return worker
