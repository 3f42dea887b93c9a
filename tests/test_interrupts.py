"""Signals to a command, whenever they come and however often: 130, what is stored is whole, and no process is left."""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from attnbench.analysis.run import read_run
from attnbench.measure.scratch import scratch_folder
from attnbench.store.records import SAMPLES, VISITS
from tests.commands.test_gate import SUITE as GATED
from tests.commands.test_gate import example, git
from tests.running import lean

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

# An operator that leaves a daemon of its own at its import, and one more with its first call.
LEAVES = '''"""y = v."""
import os, time
from pathlib import Path
from dataclasses import replace
from attnbench.operators.exact.identity import OPERATOR as identity

def leave():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            with open(Path(__file__).with_suffix(".pids"), "a") as file:
                file.write(f"{os.getpid()}\\n")
            time.sleep(150)
        os._exit(0)

def reference(problem, params, v, calls=[]):
    if type(v).__name__ == "Tensor" and not calls:
        calls.append(leave())
    return 1 * v

leave()
OPERATOR = replace(identity, forms={"core": replace(identity.forms["core"], reference=reference, impls={})})
'''
SUITE = """
operators_from: [leaves.py]
operators: [leaves, softmax]
impls: [reference]
sweep: [{seq_len: [8]}]
problem: {heads: 1, channels: 8}
measure: {rounds: 1, min_turns: 2, max_turns: 2}
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "leaves.py").write_text(LEAVES)
    (tmp_path / "leaves.yaml").write_text(SUITE)
    return tmp_path / "leaves.yaml"


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    """A command, from when it heeds signals."""
    variables = {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        lean(*words), cwd=folder, env={**os.environ, **variables},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    within(600, lambda: process.poll() is not None or caught(process.pid) >> (signal.SIGTERM - 1) & 1)
    assert process.poll() is None, "it ended before it heeded a signal"
    return process


def caught(pid: int) -> int:
    """The signals that a process has handlers for, as bits."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt")), 0)


def within(seconds: float, true: object) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.03)


def left(folder: Path) -> list[int]:
    """Processes that operators have left running, and those that a command has started in this folder."""
    daemons = {int(line) for path in folder.glob("*.pids") for line in path.read_text().split()}
    processes = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            here = Path(os.readlink(path / "cwd")) == folder
            running = (path / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except OSError:
            continue
        if running and (here or int(path.name) in daemons):
            processes.append(int(path.name))
    return processes


def test_what_an_operator_leaves_running_ends_with_the_command(tmp_path: Path, suite: Path) -> None:
    process = started(tmp_path, "run", suite.name, "--device", "cpu", "--out", "run")
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert len((tmp_path / "leaves.pids").read_text().split()) > 3
    assert not left(tmp_path)


def test_somebody_elses_processes_are_left_alone(tmp_path: Path, suite: Path) -> None:
    """Of a shell that began a job and was then replaced by the command, nothing can be told from an operator's."""
    command = f"setsid sleep 100 & exec {shlex.join(lean('run', suite, '--dry-run'))}"
    nowhere = subprocess.DEVNULL
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, stdout=nowhere, stderr=nowhere)
    jobs = [pid for pid in left(tmp_path) if Path(f"/proc/{pid}/comm").read_text() == "sleep\n"]
    for pid in left(tmp_path):
        os.kill(pid, signal.SIGKILL)
    assert len(jobs) == 1


@pytest.mark.parametrize(
    ("file", "lines"),
    [(VISITS, 0), (SAMPLES, 2), (VISITS, 4)],
    ids=["imports", "round", "tables"],
)
def test_five_quick_interrupts_at_any_moment_are_one(tmp_path: Path, suite: Path, file: str, lines: int) -> None:
    draw, stored = random.Random(lines), tmp_path / "run" / file
    process = started(tmp_path, "run", suite.name, "--device", "cpu", "--out", "run")
    within(600, lambda: lines == 0 or (stored.is_file() and stored.read_text().count("\n") >= lines))
    for _ in range(5):
        process.send_signal(draw.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]))
        time.sleep(draw.uniform(0, 0.1))
    _, err = process.communicate(timeout=600)
    done = process.returncode == 0 and (tmp_path / "run" / "results.csv").is_file()
    assert process.returncode == 130 or done, err
    assert "Traceback" not in err
    assert "Exception" not in err
    assert not left(tmp_path)
    if stored.is_file():
        run = read_run(tmp_path / "run")
        assert (tmp_path / "run" / "results.csv").is_file() == bool(len(run.visits))


def test_an_impatient_interrupt_ends_the_command_at_once(tmp_path: Path, suite: Path) -> None:
    """Even where the first one was caught by a user's own code."""
    (tmp_path / "leaves.py").write_text(
        LEAVES.replace(
            "\nleave()\n", "\nleave()\nwhile True:\n    try: time.sleep(1)\n    except BaseException: pass\n"
        )
    )
    process = started(tmp_path, "run", suite.name, "--dry-run")
    within(600, lambda: (tmp_path / "leaves.pids").is_file())
    process.send_signal(signal.SIGINT)
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=600) == 130
    process.communicate()
    assert not left(tmp_path)


def test_a_signal_that_the_caller_ignores_stays_ignored(tmp_path: Path, suite: Path) -> None:
    command = f"trap '' HUP; exec {shlex.join(lean('run', suite, '--dry-run'))}"
    process = subprocess.Popen(
        ["sh", "-c", command], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    within(600, lambda: process.poll() is not None or caught(process.pid) >> (signal.SIGTERM - 1) & 1)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=600) == 0


@pytest.mark.parametrize(
    ("words", "number"),
    [
        (("gate", "own.yaml", "--base", "HEAD", "--device", "cpu"), signal.SIGTERM),
        (("gate", "own.yaml", "--base", "HEAD", "--device", "cpu"), signal.SIGKILL),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value.name,
)
def test_worktrees_and_temporary_folders_go_with_their_command(
    tmp_path: Path, words: tuple[str, ...], number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = example(tmp_path / "repository", GATED.replace("64, 128, 256", "64"))

    def folders() -> list[Path]:
        return [path for path in repository.glob("attnbench-*") if not path.name.startswith("attnbench-other")]

    process = started(repository, *words)
    within(600, lambda: process.poll() is not None or any(repository.glob("attnbench-*/*/visits.jsonl"))
           or any(repository.glob("results/gate-*/*/visits.jsonl")))  # fmt: skip
    assert folders()
    process.send_signal(number)
    _, err = process.communicate(timeout=600)
    if number == signal.SIGKILL:
        within(
            600, lambda: not left(repository)
        )  # a worker that was just starting sees a little later that it is alone
        assert git(repository, "worktree", "list").count("\n") == 3
        (repository / "attnbench-other").mkdir()  # nobody's lock is in it
        monkeypatch.setattr(tempfile, "tempdir", str(repository))
        with scratch_folder("one") as one, scratch_folder("two"):
            assert one.is_dir(), "its owner lives"
        assert (repository / "attnbench-other").is_dir()
    else:
        assert process.returncode == 130, err
        assert "Traceback" not in err
    assert not folders()
    assert git(repository, "worktree", "list").count("\n") == 1
    assert not left(repository)
