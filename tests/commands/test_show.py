from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.analysis.baseline import named
from attnbench.analysis.run import read_run
from attnbench.analysis.series import panels
from attnbench.analysis.summary import summarise
from attnbench.errors import BadInput
from tests.analysis.planted import planted_visits
from tests.analysis.runs import cell, sequence, visits_of
from tests.stored import folder as stored_folder


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    metrics = {"flops": 10, "peak_memory_bytes": 100}
    cells = [
        (cell(name, sequence(n)), truth, metrics)
        for n in (64, 128, 256)
        for name, truth in (("softmax", 1e-6 * n * n), ("local", 1e-4 * n))
    ]
    visits = visits_of(cells)
    (folder / "visits.jsonl").write_text("".join(json.dumps(asdict(v)) + "\n" for v in visits))
    (folder / "environment.json").write_text("{}")
    (folder / "suite.yaml").write_text("name: stored\nbaseline: softmax\n")
    return folder


def show(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "attnbench", "show", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_show_prints_tables_without_torch(stored: Path) -> None:
    code = (
        "import atexit, sys; sys.argv = ['attnbench', 'show', sys.argv[1]]\n"
        "loaded = lambda: print('torch' in sys.modules, 'matplotlib' in sys.modules, file=sys.stderr)\n"
        "atexit.register(loaded)\n"
        "from attnbench.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(stored)], capture_output=True, text=True, timeout=600)
    assert "seq_len: " in done.stdout
    assert "cheaper than" in done.stdout
    assert done.stderr == "False False\n"


def test_all_shows_every_table(stored: Path) -> None:
    answer, every = show(stored).stdout, show(stored, "--all").stdout
    assert "Crossover of wall time" in every
    assert "Crossover of wall time" not in answer
    assert len(answer.splitlines()) < len(every.splitlines()) / 2
    assert "### Crossover of wall time" in show(stored, "--all", "--format", "markdown").stdout
    assert "###" not in show(stored, "--format", "markdown").stdout


def test_operators_sort_metric_and_axis_choose(stored: Path) -> None:
    answer = show(stored, "--operators", "local").stdout
    assert "\nlocal " in answer
    assert "\nsoftmax " not in answer
    every = show(stored, "--operators", "local", "--all").stdout
    assert "\nlocal " in every
    assert "\nsoftmax " not in every
    filtered = "the operators that were chosen"
    assert filtered in " ".join(answer.split())
    assert filtered in " ".join(every.split())
    assert filtered not in " ".join(show(stored).stdout.split())
    assert "by peak memory" in show(stored, "--metric", "peak_memory", "--sort", "name", "--axis", "seq_len").stdout


@pytest.mark.parametrize("form", ["json", "csv", "markdown"])
def test_show_formats(stored: Path, form: str) -> None:
    done = show(stored, "--format", form)
    assert (done.returncode, done.stderr) == (0, "")
    assert "local" in done.stdout


@pytest.mark.parametrize(
    "suite",
    [
        '"baseline": local\n"name": quoted\n',
        "{name: quoted, baseline: local}\n",
        "baseline:\n  local\nname: >-\n  quoted\n",
        '"base\\u006cine": local # not softmax\nname: quoted\ndescription: |\n  baseline: softmax\n',
    ],
)
def test_the_baseline_is_the_suites_however_it_is_written(stored: Path, tmp_path: Path, suite: str) -> None:
    shutil.copytree(stored, tmp_path / "run")
    (tmp_path / "run" / "suite.yaml").write_text(suite)
    run = read_run(tmp_path / "run")
    found = summarise(run)
    assert (found.baseline, found.name) == ("local", "quoted")
    reference = named(panels(run.results)[0], run.baseline)
    assert reference is not None
    assert reference.points["64"].key == cell("local", sequence(64)).key


@pytest.mark.parametrize(
    ("suite", "message"), [("baseline: [local]", "baseline = \\['local'\\]"), ("a: [", "not valid YAML")]
)
def test_a_damaged_suite_is_told(stored: Path, tmp_path: Path, suite: str, message: str) -> None:
    shutil.copytree(stored, tmp_path / "run")
    (tmp_path / "run" / "suite.yaml").write_text(suite)
    with pytest.raises(BadInput, match=rf"suite\.yaml.*{message}"):
        read_run(tmp_path / "run")


def test_where_nothing_was_measured_the_exit_code_says_so(stored: Path, tmp_path: Path) -> None:
    skipped = visits_of([(cell("softmax", sequence(64)), "skipped", {})])
    (tmp_path / "environment.json").write_text('{"rates": {"copy_bytes_per_s": 1e9, "matmul_flops_per_s": {}}}')
    (tmp_path / "suite.yaml").write_text("name: stored\n")
    for visits in ([], skipped):
        (tmp_path / "visits.jsonl").write_text("".join(json.dumps(asdict(v)) + "\n" for v in visits))
        for verb in ("show", "roofline"):
            assert CliRunner().invoke(app, [verb, str(tmp_path)]).exit_code == 3
    assert CliRunner().invoke(app, ["show", str(stored)]).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", "speed"], "no such metric"),
        (["--metric", "wall_time", "--metric", "energy"], "energy: this run has no figure of it. It has wall_time, "),
        (["--baseline", "performer"], "no such series"),
        (["--axis", "channels"], "does not vary it"),
        (["--axis", "seqlen"], "not an axis (did you mean 'seq_len'?)"),
        (["--operators", "softmax,loca"], "--operators 'loca': this run has no series of it (did you mean 'local'?)"),
        (["--sort", "memry"], "--sort 'memry' (did you mean 'memory'?); allowed: use, from, ratio, memory, name."),
        (["--sort", "name", "--all"], "only the answer's rows have an order"),
        (["--over", "channels", "--operators", "local"], "Leave out --operators"),
    ],
)
def test_bad_usage_is_a_paragraph(stored: Path, arguments: list[str], message: str) -> None:
    done = show(stored, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_no_such_folder(tmp_path: Path) -> None:
    done = show(tmp_path / "nothing")
    assert done.returncode == 2
    assert "no such folder" in done.stderr


@pytest.fixture(scope="module")
def two_axes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    problems = [sequence(n, c) for c in (64, 512) for n in (256, 1024, 4096)]
    return stored_folder(tmp_path_factory.mktemp("two"), planted_visits(problems=problems))


def over(verb: str, run: Path, *words: str) -> Result:
    return CliRunner().invoke(app, [verb, str(run), "--over", *words], env={"COLUMNS": "80"})


def test_a_map_of_two_axes_in_every_format(two_axes: Path) -> None:
    for words in (["channels"], ["channels", "--axis", "seq_len", "--format", "markdown"]):
        shown = over("show", two_axes, *words)
        assert shown.exit_code == 0
        assert "Fastest over seq_len, by wall time" in shown.output
        assert "Border of the cheapest other operator along seq_len" in shown.output
    rows = json.loads(over("show", two_axes, "channels", "--format", "json").output)["grids"][0]["rows"]
    assert [row["label"] for row in rows] == ["64", "512"]
    assert over("show", two_axes, "seq_len", "--format", "csv").output.count("linear_transformer,") == 36


def test_a_map_is_drawn(two_axes: Path, tmp_path: Path) -> None:
    drawn = over("plot", two_axes, "channels", "--format", "svg", "--out", str(tmp_path))
    path = tmp_path / "seq_len-over-channels-fwd-wall_time-map.svg"
    assert drawn.output == f"{path}\n"
    assert "linear_transformer" in path.read_text()


@pytest.mark.parametrize("verb", ["show", "plot"])
def test_a_run_of_one_axis_has_no_map(stored: Path, verb: str) -> None:
    refused = over(verb, stored, "channels")
    assert isinstance(refused.exception, BadInput)
    assert "--over channels: this run does not vary both together" in str(refused.exception)
    assert "It varies seq_len alone." in str(refused.exception)
    assert not (stored / "plots").exists()
