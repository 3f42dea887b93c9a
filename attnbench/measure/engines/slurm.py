"""Slurm: the shards as an array of jobs, which are requeued where a node is lost. All nodes see the fleet's folder, and
the Python that runs it.

What runs is known from `squeue`, and what ended from the marks in the folder: accounting is often not there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import attnbench
from attnbench import files
from attnbench.errors import BadInput, printable
from attnbench.measure.engines import Connection, News, Task
from attnbench.measure.fleet_folder import FleetFolder, units_done

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "sinfo")

TICK_S = 2.0
ANSWER_S = 60.0
"""How long a command of Slurm may take."""

SILENT_S = 600.0
"""How long Slurm may not answer at all: a controller that is started again."""

SETTLE_S = 15.0
"""How long after a job its mark may take to be seen here: file systems of many nodes."""

END_S = 90.0
"""How long cancelled jobs may take to store what they have."""

UNITS_EVERY_S = 10.0

JOBS = "slurm-jobs.txt"
"""The file in a fleet's folder with the ids of its arrays: a fleet that goes on waits for those that are queued."""

SCRIPT = """#!/bin/sh
export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-${{SLURM_CPUS_PER_TASK:-1}}}}
export PYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}}
exec {python} -m attnbench.measure.shard_process {folder} $SLURM_ARRAY_TASK_ID
"""


@contextlib.contextmanager
def connect(request: Connection) -> Iterator[Pool]:
    """The Slurm of this machine. Raises BadInput where it is not there or does not answer."""
    if request.address is not None:
        raise BadInput(f"--address {request.address}: Slurm has none; its commands know their cluster. Leave it out.")
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        raise BadInput(
            f"--on slurm: {', '.join(missing)} not found: this machine has no Slurm client. Run the fleet on a login "
            "node of the cluster."
        )
    with_gpus = any("gpu" in text for text in _output("sinfo", "--noheader", "--format=%G").split())
    limits = re.search(r"^MaxArraySize\s*=\s*(\d+)", _output("scontrol", "show", "config"), re.MULTILINE)
    yield Pool(request, with_gpus, int(limits[1]) - 1 if limits else None)


def _output(*command: str, text: str = "") -> str:
    """What a command of Slurm prints. Raises BadInput where it fails."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=ANSWER_S, check=False)
        if done.returncode == 0:
            return done.stdout
        reason = printable(done.stderr) or f"it ended with {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = printable(error)
    raise BadInput(f"--on slurm: {command[0]}: {reason}. See to that, or run the fleet where Slurm answers.")


@dataclass
class Pool:
    """See `engines.Pool`."""

    request: Connection
    accelerated: bool
    most: int | None
    at_once: None = None
    _answered: float = field(default_factory=time.monotonic)

    def lease(self, tasks: Sequence[Task]) -> Generator[Sequence[News], None, None]:
        """See `engines.Pool`."""
        folder = tasks[0].mark.parents[1].resolve()
        jobs = _jobs(folder)
        queued = self._queue(jobs) or {}
        missing = [task for task in tasks if task.number not in queued]
        if missing:
            jobs = [*jobs, self._submit(folder, missing)]
            files.replace(folder / JOBS, "\n".join(jobs) + "\n")
        left = {task.number: task for task in tasks}
        gone: dict[int, float] = {}
        counted: dict[int, tuple[float, int]] = {}
        try:
            while left:
                now = self._queue(jobs)
                news = [] if now is None else [_news(task, now, gone, counted) for task in left.values()]
                for each in news:
                    if each.state in ("ended", "failed"):
                        del left[each.number]
                yield news
                if left:
                    time.sleep(TICK_S)
        finally:
            if left:
                self._cancel(jobs, left)

    def _submit(self, folder: Path, tasks: Sequence[Task]) -> str:
        """Queues some shards. Returns the id of the array. Raises BadInput where Slurm refuses."""
        from attnbench.measure.device import device_of

        at_once = "" if self.request.devices is None else f"%{self.request.devices}"
        options = dict(self.request.options)
        if not device_of(tasks[0].device).is_host and not any(name.startswith(("gres", "gpus")) for name in options):
            options["gres"] = "gpu:1"
        script = SCRIPT.format(
            path=shlex.quote(str(Path(attnbench.__file__).parents[1])),
            python=shlex.quote(sys.executable),
            folder=shlex.quote(str(folder)),
        )
        printed = _output(
            "sbatch",
            "--parsable",
            f"--array={_ranges(sorted(task.number for task in tasks))}{at_once}",
            "--requeue",
            "--open-mode=append",
            f"--job-name=attnbench-{FleetFolder(folder).facts().name}",
            f"--output={folder}/logs/slurm-%a.log",
            *(f"--{name}={value}" for name, value in options.items()),
            text=script,
        )
        return printed.strip().split(";")[0]

    def _queue(self, jobs: Sequence[str]) -> dict[int, tuple[bool, str]] | None:
        """By number, whether a shard of these arrays runs, and where; None: Slurm does not answer now.

        Raises: BadInput where it has not answered for long.
        """
        try:
            text = _output("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%F|%K|%T|%N")
        except BadInput:
            if time.monotonic() - self._answered > SILENT_S:
                raise
            return None
        self._answered = time.monotonic()
        rows = [line.strip().split("|") for line in text.splitlines() if line.count("|") == 3]
        return {
            int(index): (state in ("RUNNING", "COMPLETING"), node)
            for job, index, state, node in rows
            if job in jobs and index.isdigit()
        }

    def _cancel(self, jobs: Sequence[str], left: Mapping[int, Task]) -> None:
        """Ends the shards that are left, and waits until they have stored what they have."""
        numbers = _ranges(sorted(left))
        for job in jobs:
            with contextlib.suppress(BadInput):  # all of an older array may have ended
                _output("scancel", f"{job}_[{numbers}]")
        end = time.monotonic() + END_S
        while time.monotonic() < end:
            queued = self._queue(jobs)
            if queued is not None and not queued.keys() & left.keys():
                return
            time.sleep(TICK_S / 4)


def _jobs(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return [word for word in files.read(folder / JOBS).decode("ascii", "replace").split() if word.isdigit()]
    return []


def _news(
    task: Task,
    queued: Mapping[int, tuple[bool, str]],
    gone: dict[int, float],
    counted: dict[int, tuple[float, int]],
) -> News:
    """What has become of a shard.

    Args:
        gone: by number, since when a shard is neither queued nor marked.
        counted: by number, when its blocks were last counted, and how many there were.
    """
    code, now = FleetFolder(task.mark.parents[1]).ended(task), time.monotonic()
    if code is not None:
        return News(task.number, "ended", code=code)
    if task.number in queued:
        gone.pop(task.number, None)
        runs, node = queued[task.number]
        if not runs:
            return News(task.number, "waiting")
        at, units = counted.get(task.number, (0.0, 0))
        if now - at > UNITS_EVERY_S:
            at, units = counted[task.number] = now, units_done(task.folder)
        return News(task.number, "running", node, units)
    if now - gone.setdefault(task.number, now) < SETTLE_S:
        return News(task.number, "waiting")
    return News(task.number, "failed", reason="its job ended before it was measured")


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as Slurm takes them: `1,3-5`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
