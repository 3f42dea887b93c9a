"""Installs Chromium from Debian and what drives it, where they are missing, and runs the tests of this folder.

Where that cannot be installed it says so and ends with 0: not every machine may install a browser.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.browser.chromium import executable

HERE = Path(__file__).parent
PACKAGES = ("playwright", "axe_playwright_python")
LIMIT_S = 600
INSTALL: Sequence[Sequence[str]] = (
    ("apt-get", "update"),
    ("apt-get", "install", "-y", "--no-install-recommends", "chromium"),
)


def main() -> int:
    """The exit code of the tests; 0 where they could not be run."""
    missing = _failure(_browser) or _failure(_packages)
    if missing:
        print(f"browser-test: skipped, no test of the HTML report was run: {missing}", file=sys.stderr)
        return 0
    return subprocess.run([sys.executable, "-m", "pytest", str(HERE), *sys.argv[1:]]).returncode


def _failure(commands: Callable[[], Sequence[Sequence[str]]]) -> str:
    """Runs the commands that install something. Returns why it is not there; empty where it is."""
    for command in commands():
        print(f"browser-test: {' '.join(command)}", file=sys.stderr)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, errors="replace")
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{command[0]}: {error}"
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            return f"{command[0]} ended with {done.returncode}: {' '.join(last)}"
    return "it was installed, and is not found" if commands() else ""


def _browser() -> Sequence[Sequence[str]]:
    """What installs the browser; nothing where it is there."""
    return () if executable() else INSTALL


def _packages() -> Sequence[Sequence[str]]:
    """What installs the packages; nothing where they are there."""
    importlib.invalidate_caches()
    if all(map(importlib.util.find_spec, PACKAGES)):
        return ()
    top = HERE.parents[1]
    pins = next(path for path in (Path(sys.prefix) / "constraints.txt", top / "constraints.txt") if path.exists())
    return ((sys.executable, "-m", "pip", "install", "-q", "-c", str(pins), "-e", f"{top}[browser]"),)


if __name__ == "__main__":
    sys.exit(main())
