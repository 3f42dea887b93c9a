"""A shard on a leased device: `attnbench run --shard`, begun or continued, in a process of its own.

`python -m attnbench.measure.shard_process FLEET NUMBER` is what a batch job executes.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import attnbench
from attnbench import files, interrupts
from attnbench.measure.engines import Task
from attnbench.measure.fleet_folder import FleetFolder
from attnbench.store.records import VISITS

MEASURED = (0, 1, 3)
"""Exit codes of a run that is as complete as it can be: all is well, a cell failed, nothing could be measured."""

USAGE = 2
"""The exit code of a run that cannot be begun or continued here."""

LOOKED_EVERY_S = 2.0
ROOM_BYTES = 2**20
"""A disk that takes no more than this is full."""

GRACE_S = 60.0
"""How long a shard that is to end may take to store what it has."""


def measure(task: Task, stopped: Callable[[], bool] = lambda: False) -> int:
    """Measures a shard, or what is missing of it. A folder without visits is begun anew, and one that cannot be
    continued here (another machine, other code) is set aside.

    Args:
        stopped: asked every LOOKED_EVERY_S whether the shard is to end now, with what it has.

    Returns: the exit code of `attnbench run`; that of a process that was killed is negative.
    """
    task.log.parent.mkdir(parents=True, exist_ok=True)
    task.folder.parent.mkdir(parents=True, exist_ok=True)
    with task.log.open("ab") as log:
        if (task.folder / VISITS).is_file():
            code = _run(task, ("--resume", str(task.folder)), log, stopped)
            if code != USAGE or not _takes_more(task.folder):
                return code
            aside = set_aside(task.folder)
            log.write(f"what cannot be continued here is set aside as {aside.name}; the shard begins anew\n".encode())
            log.flush()
        else:
            shutil.rmtree(task.folder, ignore_errors=True)
        new = ("--shard", str(task), "--out", str(task.folder))
        return _run(task, new, log, stopped)


def _takes_more(folder: Path) -> bool:
    """Whether a run folder could be written: on a full or read-only disk `attnbench run` ends with USAGE too, and what
    it holds can be continued there later."""
    probe = folder / ".room"
    try:
        files.replace(probe, bytes(ROOM_BYTES))
        probe.unlink()
    except OSError:
        return False
    return True


def set_aside(folder: Path) -> Path:
    """Renames a folder to a name beside it that is not taken. Returns that."""
    number = 1
    while (place := folder.with_name(f"{folder.name}.aside-{number}")).exists():
        number += 1
    os.replace(folder, place)
    return place


def _run(task: Task, words: Sequence[str], log: IO[bytes], stopped: Callable[[], bool]) -> int:
    top = str(Path(attnbench.__file__).parents[1])
    run = (sys.executable, "-m", "attnbench", "run", str(task.suite))
    process = subprocess.Popen(
        [*run, *words, "--device", task.device, *(("--budget", task.budget) if task.budget else ())],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([top, *filter(None, [os.environ.get("PYTHONPATH")])])},
        preexec_fn=_ends_with_its_parent() if sys.platform == "linux" else None,
    )
    ending = False
    try:
        while True:
            try:
                return process.wait(GRACE_S if ending else LOOKED_EVERY_S)
            except subprocess.TimeoutExpired:
                if ending:
                    process.kill()
                elif stopped():
                    process.terminate()
                    ending = True
    except BaseException:
        process.terminate()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise


def _ends_with_its_parent() -> Callable[[], object]:
    """What a new process calls, so that Linux asks it to end when what leased its device is gone, or was killed."""
    prctl, pr_set_pdeathsig = ctypes.CDLL(None).prctl, 1
    return lambda: prctl(pr_set_pdeathsig, signal.SIGTERM)


def main(words: Sequence[str]) -> int:
    """A shard of a fleet whose folder this machine sees. Returns the exit code.

    Args:
        words: the fleet's folder, and the shard's number.
    """
    fleet = FleetFolder(Path(words[0]))
    task = fleet.task(int(words[1]), fleet.facts())
    interrupts.heed()
    try:
        code = measure(task)
    except KeyboardInterrupt:
        return 130
    if code in MEASURED and (task.folder / VISITS).is_file():
        files.replace(task.mark, f"{code}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
