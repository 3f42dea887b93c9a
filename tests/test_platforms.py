"""Systems on which nothing can be measured: one sentence says so, and stored runs are read all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = "results/reference/cpu-quick"

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


# Each command in a process of its own, which has the libraries from this one.
EACH = """
import os, sys, {libraries}
for words in sys.argv[1:]:
    if os.fork() == 0:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(os.path.join("{folder}", words.split()[0] + "." + name), os.O_CREAT | os.O_WRONLY), number)
        sys.argv = ["attnbench", *words.split()]
        break
    print(os.waitstatus_to_exitcode(os.wait()[1]))
else:
    sys.exit()
"""


def ran(libraries: str, folder: Path, *commands: str) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each command; no two are of one verb."""
    code = EACH.format(libraries=libraries, folder=folder) + LACKING
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"}
    process = [sys.executable, "-c", code, *commands]
    done = subprocess.run(process, capture_output=True, text=True, check=True, env=environment)
    texts = [
        [(folder / f"{words.split()[0]}.{name}").read_text(encoding="utf-8") for name in ("out", "err")]
        for words in commands
    ]
    return [(int(code), out, err) for code, (out, err) in zip(done.stdout.split(), texts, strict=True)]


def test_a_verb_that_measures_says_where_it_can(tmp_path: Path) -> None:
    commands = ("run quick", "gate quick --base HEAD", "crossover linformer", "doctor")
    for words, (code, _, err) in zip(commands, ran("click", tmp_path, *commands), strict=True):
        assert code == 2, err
        assert err.startswith(f"attnbench: attnbench {words.split()[0]}: nothing can be measured on this system")
        assert "needs Linux" in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("libraries", "commands"),
    [
        ("pandas, scipy.stats", (f"show {RUN} --metric flops", f"compare {RUN} {RUN}")),
        ("torch, pandas", ("estimate softmax --seq-len 1024", "list operators softmax")),
        ("click", ("list suites", "run --help")),
    ],
    ids=["runs", "operators", "itself"],
)
def test_a_verb_that_reads_works_everywhere(libraries: str, commands: tuple[str, ...], tmp_path: Path) -> None:
    for code, out, err in ran(libraries, tmp_path, *commands):
        assert (code, err) == (0, ""), err
        assert len(out) > 100


def test_plot_works_everywhere(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    words = f"plot {RUN} --out {tmp_path} --metric wall_time"
    ((code, out, err),) = ran("pandas, scipy.stats, matplotlib.pyplot", tmp_path, words)
    assert code == 0, err
    assert out.count(".png")


def test_here_something_can_be_measured() -> None:
    if sys.platform == "linux":
        from attnbench.measure.platforms import check_can_measure

        check_can_measure("run")
