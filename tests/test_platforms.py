"""Systems on which nothing can be measured: one sentence says so, and stored runs are read all the same."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

RUN = "results/reference/cpu-sequence"

# What Windows lacks of what attnbench uses. Libraries are imported first: they have code of their own for Windows.
LACKING = """
import os, select, signal, sys
import click, rich.console, subprocess
for module in ("fcntl", "resource"):
    sys.modules[module] = None
for name in ("killpg", "getuid", "getsid", "setsid", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "sched_getaffinity"):
    delattr(os, name)
for name in ("SIGHUP", "SIGALRM", "SIGKILL", "setitimer", "pthread_sigmask"):
    delattr(signal, name)
del select.poll
sys.platform = "win32"
from attnbench.__main__ import main
main()
"""


def ran(code: str, words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", code, *words.split()]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize(
    "words",
    ["run quick", "gate quick --base HEAD", "crossover linformer", "doctor"],
    ids=lambda words: words.split()[0],
)
def test_a_verb_that_measures_says_where_it_can(words: str) -> None:
    done = ran(LACKING, words)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"attnbench: attnbench {words.split()[0]}: nothing can be measured on this system")
    assert "needs Linux" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("libraries", "words"),
    [
        ("pandas, scipy.stats", f"show {RUN} --metric flops"),
        ("pandas, scipy.stats", f"compare {RUN} {RUN}"),
        ("torch, pandas", "estimate softmax --seq-len 1024"),
        ("torch", "list operators softmax"),
        ("click", "list suites"),
        ("click", "run --help"),
    ],
    ids=lambda words: words.split()[0],
)
def test_a_verb_that_reads_works_everywhere(libraries: str, words: str) -> None:
    done = ran(f"import {libraries}\n{LACKING}", words)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert len(done.stdout) > 100


def test_plot_works_everywhere(tmp_path: object) -> None:
    pytest.importorskip("matplotlib")
    done = ran(
        f"import pandas, scipy.stats, matplotlib.pyplot\n{LACKING}", f"plot {RUN} --out {tmp_path} --metric wall_time"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(".png")


def test_here_something_can_be_measured() -> None:
    if sys.platform == "linux":
        from attnbench.measure.platforms import check_can_measure

        check_can_measure("run")
