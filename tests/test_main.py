"""The app: every verb explains itself with an example; the version; an unknown verb."""

from __future__ import annotations

import re
import sys

import click
import pytest
import typer.main
from typer.testing import CliRunner

from attnbench import __version__
from attnbench.__main__ import VERBS, app
from attnbench.commands import _app
from attnbench.commands._options import DECIDE, JUDGE, MEASURE, READ, Word


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_of_its_verb(verb: str) -> None:
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0
    assert re.search(rf"Examples?:.*attnbench\s+{verb} ?", result.output, re.DOTALL | re.IGNORECASE), result.output


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"attnbench {__version__}\n")


def test_an_unknown_verb_is_bad_usage() -> None:
    result = CliRunner().invoke(app, ["measure"])
    assert result.exit_code == 2
    assert "No such command 'measure'" in result.output


def test_a_wrong_choice_names_the_option_and_no_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["attnbench", "show", "run", "--format", "nosuch"])
    assert _app.run() == 2
    message = capsys.readouterr().err
    assert "Invalid value for '--format': 'nosuch'; allowed: " in message
    assert "env var" not in message


def test_the_help_says_in_a_line_what_each_verb_is_for_under_a_heading() -> None:
    lines = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"}).output.splitlines()
    headings = [line for line in lines if line.startswith("╭─ ")][1:]
    assert [heading.strip("╭╮─ ") for heading in headings] == [MEASURE, READ, DECIDE, JUDGE]
    verbs = [line.split()[1] for line in lines[lines.index(headings[0]) :] if line.startswith("│ ")]
    assert sorted(verbs) == sorted(VERBS), "a line each"


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_says_something_of_every_option_and_names_every_word(verb: str) -> None:
    text = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "300"}).output
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    silent = [option.name for option in command.params if isinstance(option, click.Option) and not option.help]
    assert silent == []
    choices = [option for option in command.params if isinstance(option.type, Word)]
    assert all(", ".join(option.type.words) in text for option in choices)
