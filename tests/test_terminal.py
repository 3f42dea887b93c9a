"""Whatever a run folder, a path or an operator's text holds: no control character of it reaches a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from attnbench import terminal
from attnbench.analysis.run import read_run
from attnbench.errors import BadInput
from attnbench.plan.suite import from_text
from attnbench.store.records import ENVIRONMENT, SUITE
from attnbench.store.trusted_json import parse_object
from tests.stored import cell, folder, timed, visit

EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\x7f\u202egnp\r\nattnbench: pass\x08 [red]not red[/red] :warning:"
COMMANDS = """
import json, sys
from attnbench.commands import _app, _standard_streams
_standard_streams.prepare()
for words in json.loads(sys.argv[1]):
    sys.argv = ["attnbench", *words]
    try:
        _app.run()
    except BaseException as error:
        print(f"attnbench: {error}", file=sys.stderr)
    sys.stdout.flush()
"""
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printed(*commands: list[str]) -> str:
    """What commands print, on both streams."""
    words = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
    done = subprocess.run(words, capture_output=True, timeout=600, cwd=Path(__file__).parents[1])
    return (done.stdout + done.stderr).decode()


def shown_on_a_terminal(words: list[str]) -> str:
    """What a Python with these words shows on a terminal."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "160"}
    with subprocess.Popen([sys.executable, *words], stdout=theirs, stderr=theirs, env=env):
        os.close(theirs)
        found = b""
        try:
            while more := os.read(ours, 65536):
                found += more
        except OSError:  # how a terminal without a program ends
            pass
    os.close(ours)
    return found.decode()


def hostile(path: Path, at: float = 1e-3) -> Path:
    cells = [cell(name, seq_len=n) for name in ("softmax", "local") for n in (64, 128)]
    visits = [v for c in cells for v in (visit(c), timed(c, 1, at, kernel=EVIL, warnings=(EVIL,)))]
    visits += [visit(cell("rfa", seq_len=n), status="skipped", reason=EVIL) for n in (64, 128)]
    visits += [visit(cell("efficient", seq_len=n), status="error", reason=EVIL) for n in (64, 128)]
    path = folder(path, visits)
    (path / ENVIRONMENT).write_text(json.dumps({"cpu": EVIL + path.name, "torch": EVIL, "families": {EVIL: EVIL}}))
    (path / SUITE).write_text(f"name: {json.dumps(EVIL)}\nbaseline: softmax\n")
    return path


def test_the_commands_print_no_control_characters_of_a_run(tmp_path: Path) -> None:
    one, two = hostile(tmp_path / "one"), hostile(tmp_path / "two", 2e-3)
    text = printed(
        *(["show", str(one), "--format", form] for form in ("table", "csv", "markdown", "json")),
        *(["compare", str(one), str(two), "--format", form] for form in ("table", "csv", "markdown", "json", "junit")),
        ["compare", str(one), str(two), "--explain", "efficient"],
        ["roofline", str(one)],
        *(["dispatch", str(one), "--format", form] for form in ("table", "csv", "markdown", "json", "python")),
        ["run", "--resume", str(one)],
    )
    assert CONTROL.findall(text) == []
    assert text.count("\\u001b[2J") > 10  # it was all there to be printed
    assert "\nattnbench: pass" not in text
    assert "[red]not red[/red] :warning:" in text


def test_styles_of_our_own_reach_a_terminal_and_those_of_a_run_do_not(tmp_path: Path) -> None:
    text = shown_on_a_terminal(["-m", "attnbench", "show", str(hostile(tmp_path / "run"))])
    assert "\x1b[1m" in text
    assert "\x1b[31m" not in text
    assert set(re.findall("\x1b[^m]*m", text)) == set(re.findall("\x1b\\[[0-9;]*m", text))
    assert CONTROL.findall(re.sub("\x1b\\[[0-9;]*m|\r\n", "", text)) == []


LIVE = """
import sys
from attnbench.commands import _standard_streams as standard_streams
standard_streams.prepare()
from attnbench.outputs._progress import Live
from attnbench.progress import Stage
with Live() as told:
    told.planned(Stage("check", side="doing " + sys.argv[1]), 2, None)
    told.message("said " + sys.argv[1])
    print("printed " + sys.argv[1], file=sys.stderr)
"""


def test_the_live_line_moves_the_cursor_and_what_it_says_does_not() -> None:
    text = shown_on_a_terminal(["-c", LIVE, EVIL])
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l"), "the cursor is there, whatever ends the process"
    assert "\x1b[2K" in text  # rich's own, to draw its line again
    assert "\\u000d\\u001b" not in text
    for word in ("doing", "said"):
        assert f"{word} \\u001b[2J" in text
    for evil in ("\x1b[2J", "\x1b]0;", "\x07", "\x08", "\x9b", "\u202e", "\x1b[31m"):
        assert evil not in text
    assert text.count("[red]not red[/red] :warning:") >= 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "evil\x1b[2J"], "holds control characters: evil\\u001b[2J"),
        (["show", "evil\nattnbench: pass"], "holds control characters"),
        (["show", ""], "is empty ('')"),
        (["run", "quick", "--out="], "is empty ('--out=')"),
    ],
)
def test_words_of_the_command_line_that_nobody_means_are_refused(words: list[str], message: str) -> None:
    text = printed(words)
    assert message in text
    assert text.count("\n") == 1
    assert CONTROL.findall(text) == []


def test_a_key_of_a_suite_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        from_text(f"operators: [softmax]\nsweep: [{{seq_len: 8}}]\n{json.dumps(EVIL)}: 1\n", "s.yaml", tmp_path)
    assert CONTROL.findall(str(caught.value)) == []
    assert "\nattnbench: pass" not in str(caught.value)


@pytest.mark.parametrize("name", ["a\x1bb", "a\u2028b", "a\nb"])
def test_names_with_control_characters_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match=r"cell = .*each of its type"):
        read_run(folder(tmp_path / "run", [visit(cell(name))]))


def test_params_with_control_characters_are_refused(tmp_path: Path) -> None:
    evil = terminal.escaped  # what is refused is the character, not how it is written
    bad = visit(cell())
    params = json.dumps({"kind": EVIL}, sort_keys=True, separators=(",", ":"))
    path = folder(tmp_path / "run", [visit(cell())])
    (path / "visits.jsonl").write_text(bad.line().replace('"params":"{}"', f'"params":{json.dumps(params)}'))
    with pytest.raises(BadInput, match="control characters"):
        read_run(path)
    assert evil("ordinary") == "ordinary"
    with pytest.raises(BadInput, match="allowed: a line of text"):
        from_text(f"operators: {{performer: {{kind: {params[8:-1]}}}}}\nsweep: [{{seq_len: 8}}]", "s.yaml", tmp_path)


@pytest.mark.parametrize("text", [EVIL, "\ud800", "\u2028", "\t", "\x00"])
def test_what_is_read_of_json_is_escaped(text: str) -> None:
    for ascii_only in (True, False):
        stored = json.dumps({text: [text, {"a": text}], "n": 1}, ensure_ascii=ascii_only)
        clean = terminal.escaped(text)
        assert parse_object(stored, "f") == {clean: [clean, {"a": clean}], "n": 1}
        assert not CONTROL.search(clean)
    assert json.loads(f'"{terminal.escaped("a" + chr(0x9B))}"') == "a\x9b"


@pytest.mark.parametrize("depth", [100, 300, 900, 5000, 100_000])
def test_json_of_any_depth_is_read_or_refused(depth: int) -> None:
    text = '{"a":' + "[" * depth + '"\\u001b"' + "]" * depth + "}"
    try:
        found = parse_object(text, "f")
    except BadInput:
        assert depth > 100
    else:
        assert "\x1b" not in repr(found)


def test_there_is_one_way_to_rich() -> None:
    code = {p.name: p.read_text() for p in (Path(__file__).parents[1] / "attnbench").rglob("*.py")}
    ways = {name for name, text in code.items() if re.search(r"^ .*import Console|\bConsole\(", text, re.MULTILINE)}
    assert ways - {"table.py"} == {"terminal.py"}  # table.py names the type
    assert "Console(" not in code["table.py"]
