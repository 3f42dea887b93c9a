"""The formats: found by what their files define, none imported for that; a verb offers those that show its data."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.errors import BadInput
from attnbench.outputs._formats import Data, formats, show
from attnbench.outputs._rows import Listing

ROWS = ["csv", "json", "markdown", "table"]
GRIDS = ["csv", "html", "json", "markdown", "table"]
RUN = sorted([*GRIDS, "bencher", "github_benchmark", "parquet", "pytorch_benchmark"])


@pytest.mark.parametrize(
    ("data", "names"),
    [
        ("run", RUN),
        ("grids", GRIDS),
        ("rows", ROWS),
        ("comparisons", sorted([*GRIDS, "junit", "sarif"])),
        ("rules", [*ROWS[:3], "python", *ROWS[3:]]),
        ("claims", GRIDS),
    ],
)
def test_a_format_is_a_file_that_shows_such_data(data: Data, names: list[str]) -> None:
    assert formats(data) == names


def test_nothing_is_imported_to_know_the_formats() -> None:
    code = (
        "import sys; from attnbench.outputs import _formats as f; found = f.formats('run'); "
        "loaded = [name for name in found if f'attnbench.outputs.{name}' in sys.modules]; "
        "sys.exit(not found or bool(loaded) or 'pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=600).returncode == 0


@pytest.mark.parametrize("verb", ["run", "show", "list", "estimate", "roofline", "crossover", "doctor"])
def test_a_verb_offers_what_shows_its_data_and_refuses_the_rest(verb: str) -> None:
    words = {"list": ["suites"], "estimate": ["softmax"], "doctor": []}.get(verb, ["x"])
    refused = CliRunner().invoke(app, [verb, *words, "--format", "junit"], env={"COLUMNS": "200"})
    assert refused.exit_code == 2
    names = RUN if verb in ("run", "show") else ROWS
    assert f"'junit'; allowed: {', '.join(names)}" in refused.output
    offered = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"}).output
    assert f"{', '.join(names)}." in " ".join(offered.replace("│", " ").split())


def test_a_comparison_is_offered_as_junit_and_sarif() -> None:
    for verb in ("compare", "gate"):
        help = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"}).output
        assert "csv, html, json, junit, markdown, sarif, table." in " ".join(help.replace("│", " ").split())


def test_rules_are_offered_as_python() -> None:
    help = CliRunner().invoke(app, ["dispatch", "--help"], env={"COLUMNS": "200"}).output
    assert "csv, json, markdown, python, table." in " ".join(help.replace("│", " ").split())


def test_a_format_that_shows_other_data_says_so() -> None:
    """Where a verb shows two kinds, as `run` and `run --dry-run` do."""
    with pytest.raises(BadInput, match=r"--format junit: .* allowed: csv, json, markdown, table"):
        show("rows", Listing([]), "junit")


def test_notes_stand_below_a_table_and_not_in_what_programs_read() -> None:
    for form in ROWS:
        text = CliRunner().invoke(app, ["estimate", "softmax", "--seq-len", "8", "--format", form]).output
        assert ("nothing was computed" in text) == (form in ("table", "markdown"))


def test_a_hyphen_stands_for_an_underscore() -> None:
    words = ["show", "nowhere", "--format"]
    for form, refused in (("github-benchmark", "no such folder"), ("github-bench", "did you mean 'github_benchmark'")):
        result = CliRunner().invoke(app, [*words, form], env={"COLUMNS": "200"})
        assert refused in result.output + str(result.exception)
