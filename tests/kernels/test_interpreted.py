"""Every kernel under Triton's CPU interpreter: in a process of its own, for the switch is read at import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "interpreted"


@pytest.mark.timeout(3600)  # all files in one process: about a minute alone
def test_every_kernel_under_the_interpreter() -> None:
    pytest.importorskip("triton")
    files = sorted(map(str, HERE.glob("check_*.py")))
    assert files
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
