"""Installs Slurm from Debian, and Ray, where they are missing, and runs the tests of those that are there.

What cannot be installed is said, and is no failure: not every machine may have it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.fleet.slurm_cluster import missing
from tests.installing import debian, extra, failure

HERE = Path(__file__).parent
NEEDS = {
    "ray": lambda: extra("fleet", "ray"),
    "slurm": lambda: debian("munge", "slurmctld", "slurmd", "slurm-client") if missing() else (),
}


def main() -> int:
    """The exit code of the tests; 0 where none could be run."""
    there = []
    for engine, commands in NEEDS.items():
        reason = failure("fleet-test", commands)
        if reason:
            print(f"fleet-test: skipped, no test of a fleet on {engine} was run: {reason}", file=sys.stderr)
        else:
            there.append(str(HERE / f"test_{engine}.py"))
    files = [str(HERE / "test_figures.py"), *there]
    engines_at_once = ("-n", str(len(there)), "--dist", "loadfile")  # much of a test is waiting for its engine
    words = [sys.executable, "-m", "pytest", *files, *engines_at_once, *sys.argv[1:]]
    return subprocess.run(words).returncode if there else 0


if __name__ == "__main__":
    sys.exit(main())
