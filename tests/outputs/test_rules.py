"""What `dispatch` prints: JSON as its schema says, and a Python module that answers as the JSON does."""

from __future__ import annotations

import ast
import copy
import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

import attnbench
from attnbench.analysis.dispatch import Dispatch, dispatch
from attnbench.analysis.run import Run
from attnbench.errors import BadInput
from attnbench.outputs import csv as csv_output
from attnbench.outputs import json as json_output
from attnbench.outputs import markdown, python
from attnbench.problem import Problem
from tests.analysis.planted import planted
from tests.analysis.runs import cell, laws, run_of, visits_of
from tests.outputs.json_schema import mistakes

SCHEMA = json.loads((Path(attnbench.__file__).parent / "outputs" / "dispatch.schema.json").read_text())
SIZES = (256, 512, 1024, 2048, 4096)


def document(rules: Dispatch) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(json_output.rules(rules))
    return parsed


def sequences() -> Run:
    """Batches 1, 2 and 8 of sequences: local passes softmax at a size over the batch."""
    problems = [Problem(n, 64, 4, batch=b) for b in (1, 2, 8) for n in SIZES]
    return planted({"softmax": lambda p: 1e-9 * p.batch * p.seq_len**2, "local": lambda p: 3e-6 * p.seq_len}, problems)


def failing() -> Run:
    statuses = {("softmax", 4096): "oom", ("local", 1024): "wrong", ("softmax", 1024): "error"}
    return laws(SIZES, {"softmax": lambda n: 1e-9 * n**1.1, "local": lambda n: 1e-6 * n}, statuses=statuses)


def images() -> Run:
    problems = [Problem.image(side, side, 64, 4) for side in (8, 16, 32, 64)]
    return planted({"softmax": lambda p: 1e-9 * p.seq_len**2, "local": lambda p: 5e-7 * p.seq_len}, problems)


def channels() -> Run:
    problems = [Problem(1024, c, 4) for c in (32, 64, 128, 256)]
    return planted({"softmax": lambda p: 1e-3 * p.channels, "local": lambda p: 1e-5 * p.channels**2}, problems)


def one_round() -> Run:
    return laws(SIZES, {"softmax": lambda n: 1e-9 * n**2, "local": lambda n: 1e-6 * n}, rounds=1)


RUNS: list[Callable[[], Run]] = [sequences, failing, images, channels, one_round]


@pytest.fixture(scope="module", params=RUNS, ids=lambda made: made.__name__)
def rules(request: pytest.FixtureRequest) -> Dispatch:
    return dispatch([request.param()], "wall_time", axis={"sequences": "seq_len"}.get(request.param.__name__))


def test_json_is_as_the_schema_says(rules: Dispatch) -> None:
    assert list(mistakes(document(rules), SCHEMA)) == []


def test_every_field_is_described(rules: Dispatch) -> None:
    def unnamed(value: Any, schema: dict[str, Any]) -> list[str]:
        schema = SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")] if "$ref" in schema else schema
        if isinstance(value, list):
            return [name for each in value for name in unnamed(each, schema["items"])]
        if not isinstance(value, dict) or "properties" not in schema or "additionalProperties" in schema:
            return []
        inner = [
            name
            for key in value.keys() & schema["properties"]
            for name in unnamed(value[key], schema["properties"][key])
        ]
        return [*(value.keys() - schema["properties"].keys()), *inner]

    assert unnamed(document(rules), SCHEMA) == []


@pytest.mark.parametrize(
    ("change", "at"),
    [
        (lambda d: d.pop("metric"), "$: required"),
        (lambda d: d.update(version=2), "$.version: const"),
        (lambda d: d.update(inside="exact"), "$.inside: enum"),
        (lambda d: d["panels"].clear(), "$.panels: minItems"),
        (lambda d: d["panels"][0]["arms"].pop(), "$.panels[0].arms: minItems"),
        (lambda d: d["panels"][0]["ranges"][0].update(low=1.5), "$.panels[0].ranges[0].low: type"),
        (lambda d: d["panels"][0]["key"].update(batch="1"), "$.panels[0].key.batch: type"),
        (lambda d: d["regret"].update(near=-1), "$.regret.near: minimum"),
        (lambda d: d.update(confidence=1), "$.confidence: exclusiveMaximum"),
    ],
)
def test_the_schema_refuses_what_is_not_so(change: Callable[[dict[str, Any]], object], at: str) -> None:
    """The negative control, of the validator too."""
    changed = copy.deepcopy(document(dispatch([one_round()], "wall_time")))
    change(changed)
    assert at in mistakes(changed, SCHEMA)


def chooser(text: str) -> Callable[..., str]:
    names: dict[str, Any] = {"__builtins__": {name: __builtins__[name] for name in ALLOWED}}  # type: ignore[index]
    exec(compile(text, "rules.py", "exec"), names)
    function: Callable[..., str] = names["choose"]
    return function


ALLOWED = ("isinstance", "int", "bool", "sorted", "repr", "map", "min", "max", "zip", "KeyError")


def test_the_module_answers_as_the_json_does(rules: Dispatch) -> None:
    text = python.rules(rules)
    choose = chooser(text)
    for panel in document(rules)["panels"]:
        key = {name: value for name, value in panel["key"].items() if name != "device_name"}
        ends = [(each[end], each["take"]) for each in panel["ranges"] for end in ("low", "high")]
        middles = [((each["low"] + each["high"]) // 2, each["take"]) for each in panel["ranges"]]
        beyond = [(1, panel["ranges"][0]["take"]), (10**9, panel["ranges"][-1]["take"])]
        for size, take in (*ends, *middles, *beyond):
            assert choose(size, **key) == take
    assert len({each["take"] for panel in document(rules)["panels"] for each in panel["ranges"]}) > 1


def test_the_module_needs_nothing_and_is_the_same_each_time(rules: Dispatch) -> None:
    text = python.rules(rules)
    tree = ast.parse(text, feature_version=(3, 8))
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert [node.name for node in tree.body if isinstance(node, ast.FunctionDef)] == ["choose"]
    assert text == python.rules(rules)
    assert all(line.startswith(("#", " ", "_PANELS", ")", "def ", '"')) for line in text.splitlines() if line)


def test_the_header_says_where_the_rules_are_from() -> None:
    run = laws(SIZES, {"softmax": lambda n: 1e-9 * n**2, "local": lambda n: 1e-6 * n}, contract="3 rounds=3")
    run.environment.update(started="2026-11-26T03:19:19+00:00", attnbench="0.0.9", torch="2.13.0", cpu="EPYC")
    header = "".join(line for line in python.rules(dispatch([run], "wall_time")).splitlines(True) if line[0] == "#")
    for fact in (
        "2026-11-26T03:19:19",
        "0.0.9",
        "contract 3 rounds=3",
        "EPYC",
        "undecided: the 95% intervals",
        "lost: ",
    ):
        assert fact in header
    assert "local (not exact softmax)" in header
    assert "local instead of softmax: from " in header


def test_a_number_between_two_is_the_nearer_one_and_beyond_them_refused() -> None:
    choose = chooser(python.rules(dispatch([sequences()], "wall_time", axis="seq_len")))
    size = 1000  # local passes softmax at 3000, 1500 and 375
    assert [choose(size, batch=b) for b in (1, 2, 8)] == ["softmax", "softmax", "local"]
    assert [choose(size, batch=b) for b in (3, 4, 5, 7)] == ["softmax", "softmax", "local", "local"]
    for batch in (9, 0, "2", 2.5, None):
        with pytest.raises(KeyError, match=r"batch=.*: measured with 1, 2, 8"):
            choose(size, batch=batch)
    with pytest.raises(KeyError, match="dtype='bfloat16': measured with 'float32'"):
        choose(size, batch=1, dtype="bfloat16")
    with pytest.raises(TypeError, match="batch"):  # measured with several: there is no default
        choose(size)


def test_runs_of_two_devices_make_one_module() -> None:
    laws_of = {"softmax": lambda n: 1e-9 * n**2, "local": lambda n: 1e-6 * n}
    cpu, gpu = laws(SIZES, laws_of), laws(SIZES, {**laws_of, "local": lambda n: 3e-6 * n})
    gpu.visits["device"] = "cuda"
    cpu.environment.update(cpu="EPYC")
    gpu.environment.update(cpu="EPYC", gpu_name="H100")
    rules = dispatch([cpu, gpu], "wall_time")
    assert [panel["key"]["device_name"] for panel in document(rules)["panels"]] == ["EPYC", "H100"]
    choose = chooser(python.rules(rules))
    assert choose(2000, device="cpu", device_name="EPYC") == "local"
    assert choose(2000, device="cuda", device_name="H100") == "softmax"
    with pytest.raises(KeyError, match="device_name='EPYC': measured with 'H100'"):
        choose(2000, device="cuda", device_name="EPYC")


def test_names_of_any_text_are_data(tmp_path: Path) -> None:
    name = 'x"""\n\nimport os\\'
    cells = [(cell(o, Problem(n, 64, 4), impl), t * n, {}) for n in (64, 128, 256) for o, impl, t in NAMED]
    run = run_of(visits_of(cells), {"cpu": name})
    run = replace(run, suite_text=f"name: {json.dumps(name)}\n")
    text = python.rules(dispatch([run], "wall_time"))
    assert not [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import)]
    assert chooser(text)(100) == "local:a'b"


NAMED = (("softmax", "reference", 1e-6), ("local", "a'b", 1e-7))


def test_a_function_has_one_axis() -> None:
    problems = [Problem(n, 64, 4, batch=b) for b in (1, 2) for n in SIZES]
    both = planted({"softmax": lambda p: 1e-3, "local": lambda p: 2e-3}, problems)
    rules = dispatch([both, channels()], "wall_time")
    with pytest.raises(BadInput, match=r"--format python: a function takes a size on one axis.*--axis seq_len"):
        python.rules(rules)


def test_where_nothing_was_measured_every_format_says_so() -> None:
    rules = dispatch([failing()], "wall_time")
    assert "nothing was measured" in markdown.rules(rules)
    assert "softmax; undecided: nothing was measured" in python.rules(rules)
    (panel,) = document(rules)["panels"]
    assert [each["undecided"] for each in panel["ranges"] if not each["among"]] == [True]


def test_tables_hold_every_range(rules: Dispatch) -> None:
    ranges = [each for panel in document(rules)["panels"] for each in panel["ranges"]]
    read = list(csv.DictReader(io.StringIO(csv_output.rules(rules))))
    assert [(int(row["low"]), int(row["high"]), row["take"]) for row in read] == [
        (each["low"], each["high"], each["take"]) for each in ranges
    ]
    text = markdown.rules(rules)
    answers = [take for each in rules.panels for take, _ in groupby(each.ranges, key=lambda part: part.take)]
    assert sum(line.startswith("| ") for line in text.splitlines()) == len(answers) + 2 * len(rules.panels)
