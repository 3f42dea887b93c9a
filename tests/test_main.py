"""The app: every verb explains itself with an example; the version; an unknown verb."""

from __future__ import annotations

import re
import sys

import pytest
from typer.testing import CliRunner

from attnbench import __version__
from attnbench.__main__ import VERBS, app
from attnbench.commands import _app


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
