"""The door of a command: its exit codes, its standard streams, and faults nobody expected."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from attnbench import interrupts
from attnbench.commands import _standard_streams as standard_streams
from attnbench.errors import BadInput
from attnbench.user_code import user_errors
from tests.running import lean

LIST = (sys.executable, "-m", "attnbench", "list", "metrics")
linux = pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")


def ran(*words: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(words, capture_output=True, check=False, env={**os.environ, **variables})


def raising(what: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """`attnbench list metrics`, in which something raises."""
    code = (
        "import sys, attnbench.measure.catalogue as verb, attnbench.__main__ as door\n"
        f"def write(*given, **named):\n    {what}\n"
        "verb.catalogue = write\nsys.argv = ['attnbench', 'list', 'metrics']\ndoor.main()"
    )
    return ran(sys.executable, "-c", code, **variables)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("raise KeyError('a\\x1bb')", b"KeyError: 'a\\x1bb'"),
        ("raise OSError(5, 'Input/output error')", b"Input/output error"),
        ("raise BrokenPipeError(32, 'Broken pipe')", b"Broken pipe"),  # of a pipe that is not stdout
        ("raise EOFError", b"EOFError"),
        ("sys.exit(0)", b"SystemExit: 0"),
        ("sys.exit('done')", b"SystemExit: done"),
        ("exec('class Own(BaseException): pass'); raise locals()['Own']('own')", b"Own: own"),
    ],
)
def test_what_nobody_expected_is_one_paragraph_and_70(what: str, told: bytes) -> None:
    done = raising(what)
    assert (done.returncode, told in done.stderr) == (70, True), done.stderr
    assert b"open an issue" in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stderr.strip().count(b"\n") == 0


def test_the_traceback_is_there_for_who_wants_it() -> None:
    done = raising("raise KeyError('a')", ATTNBENCH_DEBUG="1")
    assert done.returncode == 70
    assert b"Traceback (most recent call last)" in done.stderr


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("raise KeyboardInterrupt", 130),
        ("from attnbench.errors import BadInput; raise BadInput('so')", 2),
        ("import typer; raise typer.Exit(3)", 3),
        ("import typer; raise typer.Exit(1)", 1),
        ("pass", 0),
    ],
)
def test_what_is_expected_has_its_own_code(what: str, code: int) -> None:
    done = raising(what)
    assert done.returncode == code
    assert b"open an issue" not in done.stderr


@pytest.mark.parametrize("words", [["nosuch"], ["list", "nosuch"], ["list", "metrics", "--nosuch"], []])
def test_bad_usage_is_2(words: list[str]) -> None:
    done = ran(sys.executable, "-m", "attnbench", *words)
    assert done.returncode == 2
    assert b"Usage" in done.stdout + done.stderr


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "cp1252"},
                                       {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}],
                         ids=["ascii", "cp1252", "LC_ALL=C"])  # fmt: skip
@pytest.mark.parametrize("words", [["list", "metrics"], ["show", "--help"]])
def test_an_old_encoding_takes_everything(words: list[str], variables: dict[str, str]) -> None:
    done = ran(sys.executable, "-m", "attnbench", *words, **variables)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout) > 200


def test_an_old_encoding_leaves_json_readable() -> None:
    done = ran(*LIST, "--format", "json", PYTHONIOENCODING="ascii")
    assert {row["name"] for row in json.loads(done.stdout.decode("ascii"))} >= {"flops", "wall_time"}


def test_a_character_becomes_its_nearest_and_columns_stay(capsys: pytest.CaptureFixture[str]) -> None:
    for text, nearest in (
        ("N² × 3 → µ – é \ud800", "N2 x 3 > u - ? ?"),
        ("≈1.4ms ↓132KiB 0.5† W₁ 10⁻⁶ ▁▅█", "~1.4ms v132KiB 0.5+ W1 10-6 158"),
    ):
        written = UnicodeEncodeError("ascii", text, 0, len(text), "not there")
        assert standard_streams._nearest(written) == (nearest, len(text))


@linux
def test_a_full_stdout_is_told_and_is_no_success() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(LIST, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 2
    assert b"stdout could not be written: No space left on device" in done.stderr
    assert b"Exception" not in done.stderr


@linux
def test_a_full_stderr_changes_nothing() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*LIST[:3], "run", "nosuch"], stdout=subprocess.PIPE, stderr=full, check=False)
    assert done.returncode == 2


@linux
def test_a_full_stdout_hides_no_regression() -> None:
    code = (
        "import sys; from attnbench.commands import _standard_streams as s\n"
        "s.prepare(); print(1); sys.exit(s.finish(1))"
    )
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, "-c", code], stdout=full, check=False).returncode == 1


@pytest.mark.parametrize("words", [LIST, (*LIST, "--format", "json"), (*LIST[:3], "--help")])
def test_a_reader_that_goes_is_nobodys_fault(words: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(sys.platform != "linux", reason="a shell's redirections, and /dev/full")
@pytest.mark.parametrize(("where", "code"), [("2>&-", 0), ("<&- >/dev/full", 2)])
def test_a_run_measures_and_stores_whatever_its_streams_are(where: str, code: int, tmp_path: Path) -> None:
    suite, folder = tmp_path / "tiny.yaml", tmp_path / "run"
    suite.write_text(
        "operators: [softmax]\nimpls: [reference]\nsweep: [{seq_len: [16]}]\nproblem: {heads: 1, channels: 8}\n"
        "measure: {rounds: 1, min_turns: 2, max_turns: 2}\n"
    )
    command = f"{shlex.join(lean('run', suite, '--device', 'cpu', '--out', folder))} {where}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert len((folder / "visits.jsonl").read_text().splitlines()) == 2
    assert (folder / "results.csv").is_file()
    assert (f"attnbench show {folder}" in done.stderr) == bool(code)


@pytest.mark.skipif(os.name != "posix", reason="a shell's redirections")
@pytest.mark.parametrize("closed", [">&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_fault(closed: str) -> None:
    command = f"{' '.join(LIST)} {closed}"
    assert subprocess.run(["sh", "-c", command], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_that_an_operator_closes_changes_no_exit_code_to_1(stream: str) -> None:
    done = raising(f"sys.{stream}.close()")
    assert (done.returncode, b"Traceback" in done.stderr) == (2 if stream == "stdout" else 0, False)
    assert raising(f"sys.{stream}.close(); raise KeyError").returncode == 70


def test_an_operators_keyboard_interrupt_is_its_own_and_the_users_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts.signal, "getsignal", lambda number: interrupts._heed)
    with pytest.raises(BadInput, match=r"mine\.py: .*KeyboardInterrupt"), user_errors("mine.py"):
        raise KeyboardInterrupt
    with pytest.raises(interrupts.Interrupted), user_errors("mine.py"):
        raise interrupts.Interrupted


class Own(BaseException):
    """An operator's, of no kind that there is."""


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit, RecursionError, Own])
def test_whatever_a_users_file_raises_names_its_place(kind: type[BaseException]) -> None:
    with pytest.raises(BadInput, match=rf"mine\.py: .*{kind.__name__}: so"), user_errors("mine.py"):
        raise kind("so")
