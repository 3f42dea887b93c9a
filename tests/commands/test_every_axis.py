"""Every axis with every verb: one small run that varies all of them, from a base on which each has another value."""

from __future__ import annotations

import csv
import inspect
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.analysis.compare.tier0_exact import tier0
from attnbench.analysis.run import read_run
from attnbench.axes import AXES
from attnbench.errors import BadInput
from attnbench.measure import crossover
from attnbench.measure.expansion import expand
from attnbench.measure.protocol import ExpansionAnswer, ExpansionRequest
from attnbench.plan.cells import cells
from attnbench.plan.search_request import SearchRequest
from attnbench.plan.suite import from_text
from attnbench.problem import Cell
from tests.running import lean, made_once

OPERATORS = ("softmax", "linear_transformer")
SIZES: dict[str, Sequence[int]] = {
    "seq_len": (16, 32),
    "image_size": (3, 4),
    "channels": (16, 48),
    "head_dim": (4, 12),
    "heads": (2, 4),
    "kv_heads": (2, 4),
    "batch": (1, 2),
    "query_len": (1, 16),
}
"""The two sizes of each axis; one of them is the base's."""

SUITE = """
operators: [softmax, linear_transformer]
impls: [reference]
sweep:
  - {seq_len: [16, 32]}
  - {image_size: [3, 4]}
  - {seq_len: 16, channels: 48}
  - {seq_len: 16, heads: 2}
  - {seq_len: 16, kv_heads: 2}
  - {seq_len: 16, batch: 2}
  - {seq_len: 16, query_len: 1}
problem: {channels: 16, heads: 4, causal: true}
mode: infer
measure: {rounds: 1, crossover_precision: null, min_turns: 2, max_turns: 2}
gate: {flops: 0%, peak_memory: 0%}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        (folder / "small.yaml").write_text(SUITE)
        words = lean("run", folder / "small.yaml", "--out", folder / "run", "--device", "cpu")
        done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "every-axis", make) / "run"


def attnbench(*words: object) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def labels(name: str) -> list[str]:
    return ["x".join([str(size)] * len(AXES[name].columns)) for size in SIZES[name]]


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def test_the_run_measured_every_size(run: Path) -> None:
    results = read_run(run).results
    assert set(SIZES) == set(AXES)
    assert (len(results), set(results["status"]), set(results["operator"])) == (18, {"ok"}, set(OPERATORS))


@pytest.mark.parametrize("name", AXES)
def test_rules_lie_along_each_axis(run: Path, name: str) -> None:
    def printed(form: str) -> str:
        return attnbench("dispatch", run, "--axis", name, "--format", form).stdout

    low, high = (size ** len(AXES[name].columns) for size in SIZES[name])
    module: dict[str, Any] = {}
    exec(printed("python"), module)
    _, *parameters = inspect.signature(module["choose"]).parameters.values()
    needed = {each.name for each in parameters if each.default is each.empty}
    panels = json.loads(printed("json"))["panels"]
    assert (low, high) in [(panel["ranges"][0]["low"], panel["ranges"][-1]["high"]) for panel in panels]
    for panel in panels:
        assert panel["axis"] == name
        assert not panel["key"].keys() & {name, *AXES[name].columns}
        known = {**dict.fromkeys(needed), **panel["key"]}  # heads vary with the channels or with the channels of a head
        known.pop("device_name")
        for each in panel["ranges"]:
            assert module["choose"](each["low"], **known) == module["choose"](each["high"], **known) == each["take"]


@pytest.mark.parametrize("name", AXES)
def test_it_is_shown_along_each_axis_in_every_format(run: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")

    def shown(form: str) -> str:
        return attnbench("show", run, "--axis", name, "--metric", "wall_time", "--all", "--format", form).stdout

    answer = attnbench("show", run, "--axis", name).stdout.splitlines()
    assert any(line.split()[0] == name for line in answer if "memory" in line), answer
    panel = json.loads(shown("json"))["panels"][0]
    assert panel["axis"] == name
    (table,) = panel["metrics"]
    for series in table["series"]:
        assert [figure["label"] for figure in series["figures"]] == labels(name)
        assert all(figure["value"] > 0 for figure in series["figures"])
    assert [series["name"] for series in table["series"]] == list(OPERATORS)
    rows = list(csv.DictReader(shown("csv").splitlines()))
    assert {(row["axis"], row["label"], row["series"]) for row in rows} >= {
        (name, label, operator) for label in labels(name) for operator in OPERATORS
    }
    for form in ("table", "markdown"):
        words = shown(form).replace("|", " ").replace("\\", "").split("\n")
        assert any(line.split()[: 1 + len(labels(name))] == [name, *labels(name)] for line in words), words
        title = next(line for line in words if f"{name}: scope core, fwd, float32, causal" in line)
        fixed = {"batch 1", "heads 4", "channels 16", "seq_len 16"} - {f"{name} {size}" for size in SIZES[name]}
        gone = {"seq_len 16"} if AXES[name].domain else {"channels 16"} if name == "head_dim" else set()
        assert all(each in title for each in fixed - gone), title
        assert not any(f"{name} {size}," in title for size in SIZES[name]), "what varies is not fixed"


def test_it_is_drawn_along_each_axis(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = attnbench("plot", run, "--metric", "wall_time", "--format", "svg", "--out", tmp_path).stdout.split()
    more = attnbench("plot", run, "--axis", "head_dim", "--metric", "wall_time", "--format", "svg", "--out", tmp_path)
    pictures = {Path(path).name.split("-")[0]: Path(path).read_text() for path in [*drawn, *more.stdout.split()]}
    assert set(pictures) == set(AXES)
    assert all(f">{name}<" in picture for name, picture in pictures.items())


def test_it_compares_with_itself(run: Path) -> None:
    done = attnbench("compare", run, run, "--format", "json")
    (comparison,) = json.loads(done.stdout)["comparisons"]
    assert (done.exit_code, comparison["missing"], comparison["new"]) == (0, [], [])
    compared = {finding["subject"] for finding in comparison["findings"] if finding["metric"] == "flops"}
    assert compared == set(read_run(run).results["key"])


def test_a_gate_reads_the_suite_alike_on_both_sides_and_passes_what_is_the_same(run: Path) -> None:
    suite = from_text(SUITE, "a test", Path())
    request = ExpansionRequest.from_json(ExpansionRequest(SUITE, "a test", ".", "small", ()).to_json())
    answer = request.read(json.loads(json.dumps(expand(request).to_json())))
    assert isinstance(answer, ExpansionAnswer)
    assert answer.expansion is not None
    assert list(answer.expansion.cells) == cells(suite)
    stored = read_run(run)
    passed = tier0(stored, stored, suite.gate)
    assert (passed.exit_code, passed.measured) == (0, 18)


@pytest.mark.parametrize("name", AXES)
def test_each_axis_is_estimated(name: str) -> None:
    low, high = SIZES[name]
    base = [] if AXES[name].domain else ["--seq-len", 16]
    base += ["--channels", 16] if name not in ("channels", "head_dim") else []
    base += ["--heads", 4] if name != "heads" else []
    found = attnbench("estimate", *OPERATORS, *base, "--causal", option(name), f"{low},{high}", "--format", "json")
    rows: list[dict[str, Any]] = json.loads(found.stdout)
    assert [row["operator"] for row in rows] == [operator for operator in OPERATORS for _ in (low, high)]
    softmax, larger = rows[:2]
    varied = AXES[name].columns[0] if name != "head_dim" else "channels"
    assert softmax[varied] < larger[varied]
    assert all(row["flops"] > 0 and row["peak_memory_bytes"] > 0 for row in rows)
    assert softmax["flops"] <= larger["flops"]
    assert softmax["bytes_required"] <= larger["bytes_required"]


def test_sizes_and_names_are_taken_as_people_type_them() -> None:
    words = ("--seq-len", "1K,2k", "--dtype", "bf16,fp32", "--mode", "train", "--head-dim", "8", "--format", "json")
    rows: list[dict[str, Any]] = json.loads(attnbench("estimate", "linear_transformer", *words).stdout)
    assert [(row["seq_len"], row["dtype"], row["mode"], row["channels"]) for row in rows] == [
        (n, dtype, "fwd_bwd", 64) for dtype in ("bfloat16", "float32") for n in (1024, 2048)
    ]


class Begun(Exception):
    """What a search begins with, in place of the search."""

    def __init__(self, request: SearchRequest, problems: list[Cell]) -> None:
        super().__init__()
        self.request, self.cells = request, problems


@pytest.fixture
def only_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(request: SearchRequest, text: str, device: str, out: Path | None) -> None:
        raise Begun(request, cells(from_text(text, "the command line", Path())))

    monkeypatch.setattr(crossover, "begin_search", begin)


FIXED = {"seq_len": 16, "channels": 16, "heads": 4, "kv_heads": 2, "batch": 2, "query_len": 1}


@pytest.mark.parametrize("name", AXES)
@pytest.mark.usefixtures("only_begun")
def test_a_search_along_each_axis_takes_every_fixed_size(name: str) -> None:
    low, high = SIZES[name]
    gone = {"seq_len"} if AXES[name].domain else {"channels"} if name == "head_dim" else set()
    fixed = {each: size for each, size in FIXED.items() if each != name and each not in gone}
    words = [word for each, size in fixed.items() for word in (option(each), size)]
    with pytest.raises(Begun) as begun:
        attnbench("crossover", "rfa", "--axis", name, "--low", low, "--high", high, "--causal", *words)
    assert (begun.value.request.axis, begun.value.request.low, begun.value.request.high) == (name, low, high)
    problems = list(dict.fromkeys(cell.problem for cell in begun.value.cells))
    axis = AXES[name]
    assert [axis.label(problem) for problem in problems] == labels(name)
    assert all(getattr(problem, each) == size for problem in problems for each, size in fixed.items())
    of_one = [cell for cell in begun.value.cells if (cell.operator, cell.impl) == ("rfa", "reference")]
    start = crossover._values(of_one, "")[""].problem
    assert [axis.holding(problems).at(start, axis.position(problem)) for problem in problems] == problems
    with pytest.raises(BadInput, match=f"{option(name)} 7: it is varied, by --axis {name}"):
        attnbench("crossover", "rfa", "--axis", name, "--low", low, "--high", high, option(name), 7)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kv-heads", "3"], "problem.kv_heads: kv_heads 3 does not divide heads 8"),
        (["--query-len", "4"], "problem.query_len: query_len 4 of 64 tokens needs causal: true"),
        (["--query-len", "1K", "--causal"], "problem.query_len: query_len 1024 is more than the 64 tokens"),
        (["--batch", "0"], "problem.batch: 0; allowed: a whole number from 1"),
        (["--head-dim", "many"], "problem.head_dim: 'many'; allowed: a whole number from 1"),
        (["--image-size", "8"], "sweep[0]: seq_len and image_size exclude each other"),
        (["--heads", "["], "--heads: '[' is not one plain value"),
    ],
)
@pytest.mark.usefixtures("only_begun")
def test_a_bad_size_of_a_search_is_named(words: list[str], message: str) -> None:
    with pytest.raises(BadInput) as refused:
        attnbench("crossover", "rfa", "--high", "1K", *words)
    assert message in str(refused.value)
