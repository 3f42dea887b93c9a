"""Words of a command line as people type them, and what is said where one is mistyped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.axes import AXES
from attnbench.errors import BadInput
from attnbench.plan import suite as suites
from attnbench.plan.cells import cells
from tests.stored import cell, folder, timed, visit


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    every = [cell(name, seq_len=n) for name in ("softmax", "performer") for n in (64, 128)]
    visits = [v for c in every for v in (visit(c), timed(c, 1, 1e-3))]
    return folder(tmp_path_factory.mktemp("stored") / "first-run", visits)


def told(*words: object) -> str:
    """What a command says of its words, on one line."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code != 0
    said = str(result.exception) if isinstance(result.exception, BadInput) else result.output
    return " ".join(said.replace("│", " ").split())


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["shwo"], "show"),
        (["list", "opertors"], "operators"),
        (["list", "operators", "perfomer"], "performer"),
        (["list", "suites", "quik"], "quick"),
        (["list", "metrics", "wall-tme"], "wall_time"),
        (["run", "quik"], "quick"),
        (["run", "quick", "--device", "cdua"], "cuda"),
        (["run", "quick", "--format", "tabel"], "table"),
        (["run", "quick", "--operator", "perfomer", "--dry-run"], "performer"),
        (["gate", "ci", "--base", "HEAD", "--fail-on", "walltime:5%"], "wall_time"),
        (["crossover", "perfomer"], "performer"),
        (["crossover", "performer", "--baseline", "sofmax"], "softmax"),
        (["crossover", "performer", "--axis", "seqlen"], "seq_len"),
        (["crossover", "performer", "--metric", "walltime"], "wall_time"),
        (["crossover", "performer", "--over", "bach=1,2"], "batch"),
        (["crossover", "performer", "--mode", "trian"], "train"),
        (["crossover", "performer", "--dtype", "bf15"], "bf16"),
        (["crossover", "performer", "--param", "kinds=relu"], "kind"),
        (["crossover", "performer", "--param", "kind=rellu"], "relu"),
        (["estimate", "perfomer", "--seq-len", "1K"], "performer"),
        (["estimate", "performer", "--seq-len", "1K", "--param", "kind=rellu"], "relu"),
        (["doctor", "--format", "jsno"], "json"),
    ],
)
def test_a_word_near_one_that_there_is_is_told(words: list[str], meant: str) -> None:
    assert f"id you mean '{meant}'?" in told(*words)


@pytest.mark.parametrize(
    "words",
    [
        ["show", "RUN", "--axis", "seq-len", "--metric", "wall-time,peak-memory"],
        ["compare", "RUN", "RUN", "--fail-on", "wall-time:5%,peak-memory:0%"],
        ["dispatch", "RUN", "--axis", "seq-len", "--metric", "wall-time"],
        ["choose", "--seq-len", "64", "--device", "H100", "--need", "all-pairs", "--operators", "softmax"],
    ],
)
def test_names_may_have_dashes(run: Path, words: list[str]) -> None:
    plain = [word if word.startswith("--") else word.replace("-", "_") for word in words]
    dashed, meant = (
        CliRunner().invoke(app, [str(run) if word == "RUN" else word for word in each]) for each in (words, plain)
    )
    assert words != plain
    assert (dashed.exit_code, dashed.output, str(dashed.exception)) == (
        meant.exit_code,
        meant.output,
        str(meant.exception),
    )
    assert meant.exit_code != 2


@pytest.mark.parametrize(
    ("verb", "options", "meant"),
    [
        ("show", ["--metric", "walltime"], "wall_time"),
        ("show", ["--baseline", "sofmax"], "softmax"),
        ("show", ["--baseline", "performer:refernce"], "performer"),
        ("show", ["--axis", "seqlen"], "seq_len"),
        ("show", ["--axis", "seq_len", "--over", "bach"], "batch"),
        ("show", ["--operators", "perfomer"], "performer"),
        ("plot", ["--metric", "walltime"], "wall_time"),
        ("dispatch", ["--operator", "perfomer"], "performer"),
        ("dispatch", ["--baseline", "sofmax"], "softmax"),
        ("dispatch", ["--metric", "walltime"], "wall_time"),
        ("dispatch", ["--undecided", "cheapst"], "cheapest"),
    ],
)
def test_so_is_one_of_a_stored_run(run: Path, verb: str, options: list[str], meant: str) -> None:
    assert f"(did you mean '{meant}'?)" in told(verb, run, *options)


def test_mistakes_are_named_by_their_options() -> None:
    said = told(
        "crossover", "perfomer,rfa", "--baseline", "sofmax", "--mode", "trian", "--scope", "cor", "--dtype", "bf15"
    )
    assert said.startswith("the command line has 5 mistakes; nothing was measured.")
    for option in ("OP: 'perfomer'", "--baseline: 'sofmax'", "--mode: 'trian'", "--scope: 'cor'", "--dtype: 'bf15'"):
        assert option in said


def test_metrics_are_repeated_or_have_commas(run: Path) -> None:
    for words in (["--metric", "wall_time, energy"], ["--metric", "wall_time", "--metric", "energy"]):
        assert "--metric energy: this run has no figure of it. It has wall_time." in told("show", run, *words)
        assert "--metric energy: this run has no figure of it. It has wall_time." in told("plot", run, *words)


def test_so_is_a_part_of_a_key(run: Path) -> None:
    assert "(did you mean 'performer'?)" in told("compare", run, run, "--explain", "performr")


def test_a_word_near_nothing_is_told_what_is_allowed(run: Path) -> None:
    for words in (["show", run, "--metric", "xyz"], ["run", "quick", "--device", "xyz"], ["list", "xyz"]):
        said = told(*words)
        assert "did you mean" not in said.lower()
        assert "llowed: " in said


def test_a_run_folder_is_found_by_a_name_near_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"(did you mean '{run}'?)" in told("show", run.parent / "frist-run")
    results = run.parent / "there" / "results" / "reference"
    results.mkdir(parents=True)
    os.symlink(run, results / "cpu-sequence")
    monkeypatch.chdir(run.parent / "there")
    assert "(did you mean 'results/reference/cpu-sequence'?)" in told("show", "cpu-sequence")
    assert "did you mean" not in told("show", "nothing-like-it")


def test_axes_are_named_as_their_options_are() -> None:
    assert told("crossover", "performer", "--axis", "seq-len", "--over", "seq_len=1,2").startswith("--over seq_len")
    assert "seq-len" not in AXES


def estimated(*words: str) -> list[dict[str, Any]]:
    result = CliRunner().invoke(app, ["estimate", *words, "--format", "json"])
    assert result.exit_code == 0, result.exception
    rows: list[dict[str, Any]] = json.loads(result.output)
    return rows


def test_sizes_types_and_modes_as_people_type_them() -> None:
    short = estimated("softmax,performer", "--seq-len", "4k", "--dtype", "BF16", "--mode", "Train")
    long = estimated("softmax", "performer", "--seq-len", "4096", "--dtype", "bfloat16", "--mode", "fwd_bwd")
    assert short == long
    assert len(short) == 2
    assert estimated("softmax", "--image-size", "32X64") == estimated("softmax", "--image-size", "32x64")


def test_a_parameter_with_several_values_is_a_row_each() -> None:
    rows = estimated("linformer", "softmax", "--seq-len", "4K", "--param", "k=128,1K")
    assert [(row["operator"], row["params"].get("k")) for row in rows] == [
        *(("linformer", 128), ("linformer", 1024), ("softmax", None))
    ]
    table = CliRunner().invoke(app, ["estimate", "linformer", "--seq-len", "4K", "--param", "k=128,256"]).output
    assert "linformer k=128 " in table
    assert "linformer k=256 " in table
    assert "k = '128;256'; allowed: a whole number" in told(
        "estimate", "linformer", "--seq-len", "1K", "--param", "k=128;256"
    )


def test_a_suite_reads_the_same_words(tmp_path: Path) -> None:
    text = "operators: {linformer: {k: [128, 1K]}}\nsweep: [{seq_len: [32K]}]\nmode: Train\nproblem: {dtype: BF16}\n"
    (cell_, other) = cells(suites.from_text(text, "s.yaml", tmp_path))[:2]
    assert (cell_.problem.seq_len, cell_.problem.dtype, cell_.mode) == (32768, "bfloat16", "fwd_bwd")
    assert {cell_.params["k"], other.params["k"]} == {128, 1024}


def test_a_search_has_a_series_for_each_value_of_a_parameter() -> None:
    from attnbench.measure.crossover import compared
    from attnbench.plan.search_request import SearchRequest, suite_text

    asked = SearchRequest(("linformer",), "softmax", "seq_len", 64, 128, 0.1, "wall_time_s")
    shape = {"batch": 1, "heads": 4, "channels": 32, "dtype": "float32", "causal": False}
    text = suite_text(asked, shape, 64, "fwd", "core", ["k=4,8"], [])
    searched = compared(cells(suites.from_text(text, "the command line", Path.cwd())), asked)
    assert list(searched) == ["linformer k=4:reference", "linformer k=8:reference"]
    assert {each.cells[0].params["k"] for each in searched.values()} == {4, 8}
    itself = SearchRequest(("softmax",), "linformer", "seq_len", 64, 128, 0.1, "wall_time_s")
    text = suite_text(itself, shape, 64, "fwd", "core", ["k=4,8"], [])
    with pytest.raises(BadInput, match=r"--param: the baseline linformer would be linformer k=4.* and linformer k=8"):
        compared(cells(suites.from_text(text, "the command line", Path.cwd())), itself)


def test_operators_are_chosen_by_either_name_of_the_option() -> None:
    names = {"--operators", "--operator"}
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found = {
        verb: set(option.opts)
        for verb, command in commands.items()
        for option in command.params
        if names & set(option.opts)
    }
    assert {"run", "show", "choose", "fit", "dispatch", "gate"} <= set(found)
    assert all(options == names for options in found.values()), found


def test_alternatives_of_dispatch_are_repeated_or_have_commas(run: Path) -> None:
    for words in (["--operators", "performer, rffa"], ["--operator", "performer", "--operator", "rffa"]):
        assert "--operator rffa: this run has no such series" in told("dispatch", run, *words)


@pytest.mark.parametrize("end", ["--low", "--high"])
def test_an_end_that_is_no_size_is_told_what_is_allowed(end: str) -> None:
    said = told("crossover", "performer", end, "1Q")
    assert end in said
    assert "'1Q'; allowed: a whole number from 1 to " in said
