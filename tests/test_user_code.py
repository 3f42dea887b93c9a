"""A user's own code in the command itself ends, or is ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from attnbench.errors import BadInput
from attnbench.user_code import VARIABLE, user_errors

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a timer that interrupts")

SUITE = "operators_from: [mine.py]\noperators: [mine]\nsweep: [{seq_len: 8}]\n"


@pytest.mark.parametrize(
    "content",
    [
        "while True: pass",
        "import time; time.sleep(10**6)",
        "import time\nwhile True:\n    try: time.sleep(10**6)\n    except Exception: pass",
    ],
    ids=["loop", "sleep", "catches"],
)
def test_an_import_without_end_is_told(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0.2")
    path = tmp_path / "mine.py"
    path.write_text(content)
    with (
        pytest.raises(BadInput, match=r"mine\.py: no end within 0\.2 s \(it was at .*mine\.py, line \d"),
        user_errors("mine.py"),
    ):
        exec(compile(content, str(path), "exec"), {})


def test_a_mistake_is_told_with_the_users_own_line(tmp_path: Path) -> None:
    """Not with the standard library's, where it was raised."""
    path, content = tmp_path / "mine.py", "import json\njson.loads(3)"
    path.write_text(content)
    with pytest.raises(BadInput) as error, user_errors(str(path)):
        exec(compile(content, str(path), "exec"), {})
    assert str(error.value).startswith(f"{path}, line 2 (json.loads(3)): TypeError")


VERBS = (
    ["run", "mine.yaml", "--dry-run"],
    ["crossover", "mine", "--operators-from", "mine.py"],
    ["gate", "mine.yaml", "--against", str(Path("results/reference/cpu-sequence").resolve())],
)


@pytest.mark.parametrize("words", VERBS, ids=lambda words: words[0])
def test_every_verb_tells_of_an_import_without_end(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("while True: pass")
    (tmp_path / "mine.yaml").write_text(SUITE)
    done = ran(words, tmp_path)
    assert done.returncode == 2, done.stderr
    assert "mine.py: no end within 1 s" in done.stderr
    assert VARIABLE in done.stderr


def test_code_that_catches_everything_is_ended_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import time\nwhile True:\n    try: time.sleep(9)\n    except BaseException: pass"
    )
    (tmp_path / "mine.yaml").write_text(SUITE)
    done = ran(["run", "mine.yaml", "--dry-run"], tmp_path)
    assert (done.returncode, done.stderr.count("no end within 1 s")) == (2, 1), done.stderr


def ran(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    variables = {VARIABLE: "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-m", "attnbench", *words], cwd=folder, env={**os.environ, **variables},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


def test_what_ends_in_time_is_left_alone_and_so_is_a_timer_of_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    import signal
    import time

    monkeypatch.setenv(VARIABLE, "0.2")
    before, (theirs, _) = signal.getsignal(signal.SIGALRM), signal.setitimer(signal.ITIMER_REAL, 100.0)
    with user_errors("mine.py"), user_errors("inner"):
        time.sleep(0.1)
    time.sleep(0.3)
    assert signal.getsignal(signal.SIGALRM) is before
    left, interval = signal.setitimer(signal.ITIMER_REAL, theirs)
    assert 90 < left < 99.8
    assert interval == 0


@pytest.mark.parametrize("given", ["", "soon", "0", "-1", "nan", "inf", "1e9"])
def test_a_limit_that_is_none_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, given)
    with pytest.raises(BadInput, match=VARIABLE), user_errors("mine.py"):
        pass
