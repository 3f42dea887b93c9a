"""What a target of its own needs beyond `make test`: installed where it is missing, and named where that fails."""

from __future__ import annotations

import fcntl
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

LIMIT_S = 600
TOP = Path(__file__).parents[1]

Commands = Sequence[Sequence[str]]


def failure(target: str, commands: Callable[[], Commands]) -> str:
    """Installs something, one target after another. Returns why it is not there; empty where it is.

    Args:
        target: of make, for what is printed.
        commands: returns what is to be executed, nothing where it is there.
    """
    with open(Path(sys.prefix) / "installing.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in commands():
            print(f"{target}: {' '.join(command)}", file=sys.stderr)
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, errors="replace")
            except (OSError, subprocess.TimeoutExpired) as error:
                return f"{command[0]}: {error}"
            if done.returncode:
                last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
                return f"{command[0]} ended with {done.returncode}: {' '.join(last)}"
        return "it was installed, and is not found" if commands() else ""


def debian(*packages: str) -> Commands:
    """What installs packages of Debian."""
    return ("apt-get", "update"), ("apt-get", "install", "-y", "--no-install-recommends", *packages)


def extra(name: str, *modules: str) -> Commands:
    """What installs what an extra of this project needs, as pinned; nothing where its modules are there. The project
    itself stays as it is, which another target may be using.
    """
    importlib.invalidate_caches()
    if all(map(importlib.util.find_spec, modules)):
        return ()
    pins = next(path for path in (Path(sys.prefix) / "constraints.txt", TOP / "constraints.txt") if path.exists())
    needs = (each for each in map(Requirement, requires("attnbench") or ()) if each.marker)
    words = (f"{each.name}{each.specifier}" for each in needs if each.marker and each.marker.evaluate({"extra": name}))
    return ((sys.executable, "-m", "pip", "install", "-q", "-c", str(pins), *words),)
