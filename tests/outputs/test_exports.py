"""The formats of other tools: each is as its published schema says, names every cell once, and tells nobody's name."""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from jsonschema import Draft4Validator, Draft7Validator
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.analysis.compare.findings import Comparison, Finding
from attnbench.analysis.run import Run, read_run
from attnbench.analysis.summary import Summary, summarise
from attnbench.errors import BadInput
from attnbench.outputs import bencher, github_benchmark, parquet, pytorch_benchmark, sarif
from attnbench.outputs._export import measurements
from attnbench.outputs._formats import show
from attnbench.problem import Problem
from tests import stored
from tests.analysis.runs import cell, laws, run_of, visits_of
from tests.many_runs import nightly

REPOSITORY = Path(__file__).parents[2]
REFERENCE = REPOSITORY / "results" / "reference"
RUNS = ["cpu-border", "cpu-extend", "cpu-dtype", "cpu-image", "h100-first"]
"""Stored runs with all kinds of columns: two axes, a state, dtypes, images, a GPU's metrics and failures."""

EXPORTS = {"bencher": bencher, "github_benchmark": github_benchmark, "pytorch_benchmark": pytorch_benchmark}

TEXT = {"type": "string"}
NUMBER = {"type": "number"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
COUNT = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}


def record(properties: Mapping[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": [*required], "additionalProperties": False}


SCHEMAS: dict[str, dict[str, Any]] = {
    # As published, with the longest names that the server takes, and nothing beside the three values.
    "bencher": {
        "type": "object",
        "propertyNames": {"maxLength": 1024, "minLength": 1},
        "additionalProperties": {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": "^[a-z0-9]+(-[a-z0-9]+)*$", "maxLength": 64},
            "additionalProperties": record({"value": NUMBER, "lower_value": NUMBER, "upper_value": NUMBER}, "value"),
        },
    },
    # interface BenchmarkResult
    "github_benchmark": {
        "type": "array",
        "items": record(
            {**dict.fromkeys(("name", "unit", "range", "extra"), TEXT), "value": {"type": "number"}},
            *("name", "unit", "value"),
        ),
    },
    # The columns that are not added by the upload: an unknown field would be lost.
    "pytorch_benchmark": {
        "type": "array",
        "items": record(
            {
                "benchmark": record(
                    {"name": TEXT, "mode": {"enum": ["training", "inference"]}, "dtype": TEXT, "extra_info": TEXTS},
                    "name",
                ),
                "model": record(
                    {
                        **dict.fromkeys(("name", "type", "backend"), TEXT),
                        "origins": {"type": "array", "items": TEXT},
                        "extra_info": TEXTS,
                    },
                    "name",
                ),
                "inputs": {"type": "object", "additionalProperties": record({"dtype": TEXT, "extra_info": TEXTS})},
                "dependencies": {
                    "type": "object",
                    "additionalProperties": record(
                        {**dict.fromkeys(("repo", "branch", "sha", "version"), TEXT), "extra_info": TEXTS}
                    ),
                },
                "runners": {
                    "type": "array",
                    "items": record(
                        {
                            **dict.fromkeys(("name", "type", "cpu_info", "mem_info", "gpu_info", "gpu_mem_info"), TEXT),
                            **dict.fromkeys(
                                ("cpu_count", "avail_mem_in_gb", "gpu_count", "avail_gpu_mem_in_gb"), COUNT
                            ),
                            "extra_info": TEXTS,
                        }
                    ),
                },
                "metric": record(
                    {
                        "name": TEXT,
                        "benchmark_values": {
                            "type": "array",
                            "items": {"type": "number", "maximum": 3.4e38},
                            "minItems": 1,
                        },
                        "target_value": {"type": "number"},
                        "extra_info": TEXTS,
                    },
                    *("name", "benchmark_values"),
                ),
            },
            *("benchmark", "model", "metric"),
        ),
    },
}
SARIF = json.loads((Path(__file__).parent / "schemas" / "sarif-schema-2.1.0.json").read_text(encoding="utf-8"))


def mistakes(form: str, document: Any) -> list[str]:
    validator = Draft4Validator(SARIF) if form == "sarif" else Draft7Validator(SCHEMAS[form])
    return [error.message for error in validator.iter_errors(document)]


def exported(form: str, summary: Summary) -> Any:
    document = json.loads(EXPORTS[form].run(summary), parse_constant=pytest.fail)  # type: ignore[arg-type]
    assert mistakes(form, document) == []
    return document


def names(form: str, document: Any) -> list[tuple[str, str]]:
    """(cell, metric), or what stands for both."""
    if form == "bencher":
        return [(key, measure) for key, measures in document.items() for measure in measures]
    if form == "github_benchmark":
        return [(each["name"], each["unit"]) for each in document]
    return [(each["model"]["name"], each["metric"]["name"]) for each in document]


def read_back(summary: Summary) -> pd.DataFrame:
    return pd.read_parquet(io.BytesIO(parquet.run(summary)))


def test_duckdb_reads_the_table_with_its_types(ci: Summary, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="the extra 'history' is not installed")
    file = tmp_path / "run.parquet"
    file.write_bytes(parquet.run(ci))
    with duckdb.connect(":memory:") as connection:
        described = "SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM read_parquet($f))"
        kinds = dict(connection.execute(described, {"f": str(file)}).fetchall())
        rows = connection.execute(
            "SELECT key, metric, value FROM read_parquet($f) WHERE value IS NOT NULL", {"f": str(file)}
        ).fetchall()
    words = {"string": "VARCHAR", "Int64": "BIGINT", "float64": "DOUBLE", "boolean": "BOOLEAN"}
    assert kinds == {name: words[kind] for name, kind in parquet.COLUMNS.items()}
    figures = {(each.benchmark, each.quantity.name): each.figure.value for each in measurements(ci)}
    assert {(key, metric): value for key, metric, value in rows} == {
        place: value for place, value in figures.items() if value is not None
    }


@pytest.fixture(scope="module")
def ci() -> Summary:
    return summarise(read_run(REFERENCE / "ci"))


@pytest.mark.parametrize("name", RUNS)
def test_stored_runs_are_as_the_schemas_say_and_name_each_cell_once(name: str) -> None:
    run = read_run(REFERENCE / name)
    summary = summarise(run)
    table = read_back(summary)
    assert not table.duplicated(["key", "metric"]).any()
    assert set(table["key"]) == set(run.results["key"])
    figures = table[table["value"].notna() & ~table["metric"].isin(["relative_error", "estimate_error"])]
    comparable = {(each.key, each.quantity.name) for each in measurements(summary) if each.quantity.metric.comparable}
    expected = [pair for pair in zip(figures["key"], figures["metric"], strict=True) if pair in comparable]
    listed = {form: names(form, exported(form, summary)) for form in EXPORTS}
    for form, each in listed.items():
        assert len(each) == len(set(each)) == len(expected), form
    assert {key for key, _ in listed["pytorch_benchmark"]} == {key for key, _ in expected}


def test_names_are_the_same_in_another_run_of_the_suite_and_of_a_part_of_it() -> None:
    sizes, times = (64, 128), {"softmax": lambda n: 1e-6 * n, "performer": lambda n: 2e-6 * n}
    first, second = (summarise(laws(sizes, times, seed=seed)) for seed in (1, 2))
    part = summarise(laws(sizes[:1], {"performer": times["performer"]}, seed=3))
    for form in EXPORTS:
        one, other, some = (names(form, exported(form, each)) for each in (first, second, part))
        assert one == other
        assert set(some) < set(one)
        assert exported(form, first) != exported(form, second)


def test_modes_dtypes_devices_and_panels_have_names_of_their_own() -> None:
    shapes = [Problem(64, 64, 4), Problem(128, 64, 4), Problem(64, 64, 4, batch=2), Problem(64, 64, 4, dtype="float16")]
    cells = [
        replace(cell("softmax", shape, params={"x": x}), mode=mode)
        for shape in [*shapes, Problem(64, 64, 4, causal=True), Problem(64, 64, 4, causal=True, query_len=1)]
        for mode in ("fwd", "fwd_bwd")
        for x in (1, 2)
    ]
    summary = summarise(run_of(visits_of([(each, 1e-3, {"flops": 7}) for each in cells])))
    assert len(summary.panels) > 3
    for form in EXPORTS:
        listed = names(form, exported(form, summary))
        assert len(set(listed)) == len(listed) == 2 * len(cells)
    table = read_back(summary)
    assert len(table) == 2 * len(cells)
    records = exported("pytorch_benchmark", summary)
    assert {each["benchmark"]["mode"] for each in records} == {"training", "inference"}


def test_values_and_intervals_are_those_of_the_run(ci: Summary) -> None:
    report = ci.panels[0]
    table = next(table for table in report.tables if table.quantity.name == "wall_time")
    series, figure = table.lines[0].series, table.lines[0].figures[0]
    point = series.at(figure.label)
    assert point
    assert figure.low
    assert exported("bencher", ci)[point.key]["wall-time-s"] == {
        "value": figure.value,
        "lower_value": figure.low,
        "upper_value": figure.high,
    }
    [github] = [each for each in exported("github_benchmark", ci) if each["name"] == f"{point.key} wall_time"]
    assert (github["value"], github["unit"]) == (figure.value, "s")
    assert [float(end) for end in github["range"].split(" to ")] == pytest.approx([figure.low, figure.high], rel=1e-5)
    rows = [
        each for each in exported("pytorch_benchmark", ci)
        if (each["model"]["name"], each["metric"]["name"]) == (point.key, "wall_time")
    ]  # fmt: skip
    assert rows[0]["metric"]["benchmark_values"] == [figure.value]
    assert float(rows[0]["metric"]["extra_info"]["low"]) == figure.low
    assert rows[0]["runners"][0]["cpu_count"] == 2
    assert "name" not in rows[0]["runners"][0]


def test_a_table_comes_back_with_its_types_units_and_what_is_beside_it(ci: Summary) -> None:
    table = read_back(ci)
    assert {name: str(kind) for name, kind in table.dtypes.items()} == parquet.COLUMNS
    assert table.groupby("metric")["unit"].unique().map(list).to_dict()["wall_time"] == ["s"]
    by_key = {(each.benchmark, each.quantity.name): each.figure for each in measurements(ci)}
    for row in table.to_dict("records"):
        figure = by_key[row["key"], row["metric"]]
        assert (row["value"] if row["value"] == row["value"] else None) == figure.value
        assert row["status"] == figure.status
    beside = table.attrs["attnbench"]
    assert (beside["suite"], beside["baseline"], beside["version"]) == ("ci", "softmax", parquet.VERSION)
    assert beside["contract"].startswith("3 ")
    assert beside["environment"]["torch"] == "2.13.0+cpu"
    assert beside["environment"]["packages"]["numpy"]
    gpu = read_back(summarise(read_run(REFERENCE / "h100-first"))).attrs["attnbench"]["environment"]
    assert gpu["gpu"]["name"] == "NVIDIA H100 80GB HBM3"


def unmeasured(status: str) -> Run:
    statuses = {(name, n): status for name in ("softmax", "local") for n in (64, 128)}
    return laws((64, 128), {"softmax": float, "local": float}, statuses=statuses)


@pytest.mark.parametrize(("run", "rows"), [(run_of([]), 0), (unmeasured("skipped"), 4), (unmeasured("error"), 4)])
def test_nothing_measured_is_an_empty_document_of_the_same_form(run: Run, rows: int, ci: Summary) -> None:
    summary = summarise(run)
    table = read_back(summary)
    assert list(table.dtypes) == list(read_back(ci).dtypes)
    assert len(table) == rows, "why there is nothing, for each cell"
    assert not set(table["status"]) & {"ok", ""}
    assert table["value"].isna().all()
    assert exported("bencher", summary) == {}
    assert exported("github_benchmark", summary) == exported("pytorch_benchmark", summary) == []


SECRETS = {"hostname": "build-host-7", "user": "somebody", "node": "build-host-7", "cwd": "/home/somebody/project"}


def planted() -> Run:
    statuses = {("local", 64): "error"}
    run = laws((64, 128), {"softmax": lambda n: 1e-6 * n, "local": lambda n: 1e-6 * n}, statuses=statuses)
    run.environment.update(
        SECRETS,
        cpu="AMD \x1b[31mEPYC of /home/somebody/cpu",
        cores="many",
        memory_bytes=-1,
        packages={"numpy": "2.4.6", "scipy": "/home/somebody/scipy", **SECRETS},
        gpu={"name": "H100", "uuid": "GPU-build-host-7", "memory_bytes": [1]},
        torch={"at": "/home/somebody/torch"},
    )
    run.visits["reason"] = "it failed in /home/somebody/project/attn.py"
    return Run(run.folder, run.visits, run.environment, "name: /home/somebody/secret suite\n")


def test_no_name_of_a_host_a_user_or_a_folder_is_exported() -> None:
    summary = summarise(planted())
    texts = {form: module.run(summary) for form, module in EXPORTS.items()}  # type: ignore[attr-defined]
    table = read_back(summary)
    texts["parquet"] = table.to_csv() + json.dumps(table.attrs)
    assert b"somebody" not in parquet.run(summary)
    texts["sarif"] = sarif.comparisons([compared()])
    for form, text in texts.items():
        for secret in ("somebody", "/home", "\x1b"):
            assert secret not in text, (form, secret)
    for form in EXPORTS:
        exported(form, summary)
    assert "attn.py" in table["reason"].iloc[0]
    environment = table.attrs["attnbench"]["environment"]
    assert "hostname" not in environment
    assert environment["gpu"] == {"name": "H100"}
    assert environment["packages"] == {"numpy": "2.4.6"}


def test_the_planted_names_are_there_to_be_exported() -> None:
    """The negative control."""
    run = planted()
    text = json.dumps(run.environment) + run.suite_text + str(run.visits["reason"].iloc[0])
    assert all(secret in text for secret in ("somebody", "/home", "build-host-7"))


def test_names_that_would_become_the_same_stay_apart() -> None:
    cells = [cell(f"/home/{who}/op", Problem(64, 64, 4)) for who in ("a", "b")]
    cells += [cell("x" * 3000, Problem(64, 64, 4)), cell("größer" * 160, Problem(64, 64, 4))]
    document = exported("bencher", summarise(run_of(visits_of([(each, 1e-3, {}) for each in cells]))))
    assert len(document) == 4
    assert max(len(name.encode()) for name in document) <= 1024, "Bencher counts bytes"
    assert "/home" not in json.dumps(document)


def finding(verdict: Any, metric: str = "wall_time", **given: Any) -> Finding:
    key = stored.cell("softmax").key
    return Finding(key, "softmax fwd n64", metric, 1e-3, 1.2e-3, verdict, **given)


def compared(**given: Any) -> Comparison:
    findings = (
        finding("slower", regression=True, ratio=1.2, low=1.1, high=1.3, threshold=0.05, reason="in /home/somebody/op"),
        finding("undecided", "device_time", threshold=0.05, reason="too few pairs"),
        finding("more", "scaling of flops", ratio=1.2),
        Finding("all cells", "all cells", "status", "ok", "oom", "changed", regression=True),
        finding("same", "flops", threshold=0.0, ratio=1.0),
        finding("faster", "energy", ratio=0.5, low=float("nan"), high=float("inf")),
        finding("slower", "state_bytes", ratio=float("inf"), low=float("nan")),
    )
    known = {"notes": ("a note of /home/somebody/x",), "missing": ("local.k",), "measured": 3, "gated": True, **given}
    return Comparison("/home/somebody/before", "after", findings, **known)


def log(*compared: Comparison) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(sarif.comparisons(compared))
    assert mistakes("sarif", document) == []
    return document


def test_a_comparison_is_a_log_of_what_somebody_should_look_at() -> None:
    first = compared()
    [run] = log(first)["runs"]
    judged = [(each["ruleId"], each["kind"], each["level"]) for each in run["results"]]
    assert judged == [
        ("wall_time", "fail", "error"),
        ("device_time", "open", "none"),
        ("scaling-of-flops", "fail", "note"),
        ("status", "fail", "error"),
        ("state_bytes", "fail", "note"),
        ("missing", "fail", "warning"),
    ]
    assert {rule["id"] for rule in run["tool"]["driver"]["rules"]} == {name for name, *_ in judged}
    assert run["invocations"][0]["exitCode"] == first.exit_code == 1
    message = run["results"][0]["message"]["text"]
    assert message.startswith("softmax fwd n64: wall_time slower: 1.00ms → 1.20ms, +20.0% [+10.0%, +30.0%]. in op")
    assert run["results"][0]["properties"]["threshold"] == 0.05
    prints = [each["partialFingerprints"]["attnbench/v1"] for each in run["results"]]
    assert len(set(prints)) == len(prints)
    assert len({each["partialFingerprints"]["primaryLocationLineHash"] for each in run["results"]}) == len(prints)
    other = replace(first, findings=(finding("slower", regression=True, ratio=1.9),))
    assert log(other)["runs"][0]["results"][0]["partialFingerprints"]["attnbench/v1"] == prints[0]


def test_several_comparisons_are_runs_of_their_own_and_an_empty_one_says_that_nothing_was_measured() -> None:
    empty = Comparison("a", "b", (), gated=True)
    first, second = log(compared(), empty)["runs"]
    assert first["automationDetails"]["id"] == "attnbench/compare/" != second["automationDetails"]["id"]
    [gate] = log(compared(suite="suites/ci.yaml"))["runs"]
    assert gate["automationDetails"]["id"] == "attnbench/ci/"
    assert [each["ruleId"] for each in second["results"]] == ["nothing-measured"]
    assert log(Comparison("a", "b", ()))["runs"][0]["results"] == []
    assert log()["runs"] == []


def uris(run: Mapping[str, Any], where: str = "locations") -> list[str]:
    first = run["results"][0].get(where, [])
    return [each["physicalLocation"]["artifactLocation"]["uri"] for each in first if "physicalLocation" in each]


def test_a_result_is_at_the_operators_file_where_that_is_known_else_at_the_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here, away = {"softmax": str(tmp_path / "ops" / "my soft max.py")}, {"softmax": "/usr/lib/softmax.py"}
    [run] = log(compared(suite="suites/ci.yaml", operator_files=here))["runs"]
    assert (uris(run), uris(run, "relatedLocations")) == (["ops/my%20soft%20max.py"], ["suites/ci.yaml"])
    [run] = log(compared(suite="/usr/share/ci.yaml", operator_files=away))["runs"]
    assert (uris(run), uris(run, "relatedLocations")) == (["ci.yaml"], [])
    [run] = log(compared())["runs"]
    assert uris(run) == []
    assert run["results"][0]["locations"][0]["logicalLocations"][0]["name"] == "softmax fwd n64"


@pytest.fixture(scope="module")
def first_of_ci(ci: Summary) -> dict[str, Any]:
    """By form a document of one cell, or of one figure."""
    documents = {form: exported(form, ci) for form in EXPORTS}
    return {form: dict([*each.items()][:1]) if isinstance(each, dict) else each[:1] for form, each in documents.items()}


@pytest.mark.parametrize(
    ("form", "path", "value"),
    [
        ("bencher", ("*", "wall-time-s", "value"), "fast"),
        ("bencher", ("*", "wall-time-s", "unit"), 1),
        ("github_benchmark", (0, "value"), "1"),
        ("github_benchmark", (0, "unit"), None),
        ("pytorch_benchmark", (0, "metric", "benchmark_values"), []),
        ("pytorch_benchmark", (0, "metric", "extra_info", "low"), 1.0),
        ("pytorch_benchmark", (0, "runners", 0, "cpu_count"), "2"),
        ("pytorch_benchmark", (0, "host"), "x"),
        ("sarif", ("runs", 0, "results", 0, "level"), "fatal"),
        ("sarif", ("runs", 0, "results", 0, "message"), "text"),
        ("sarif", ("runs", 0, "results", 0, "host"), "x"),
        ("sarif", ("version",), "2.0.0"),
    ],
)
def test_a_broken_document_is_not_as_the_schema_says(
    form: str, path: tuple[Any, ...], value: Any, first_of_ci: Mapping[str, Any]
) -> None:
    """The negative control."""
    document = log(compared()) if form == "sarif" else copy.deepcopy(first_of_ci[form])
    assert mistakes(form, document) == []
    place: Any = document
    for name in path[:-1]:
        place = place[next(iter(place)) if name == "*" else name]
    place[path[-1]] = value
    assert mistakes(form, document) != []


def test_bytes_go_to_a_file_and_not_to_a_terminal() -> None:
    words = [sys.executable, "-m", "attnbench", "show", str(REFERENCE / "cpu-quick"), "--format", "parquet"]
    shown = subprocess.run(words, cwd=REPOSITORY, capture_output=True, timeout=600)
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert len(pd.read_parquet(io.BytesIO(shown.stdout))) > 0
    ours, theirs = pty.openpty()
    refused = subprocess.run(words, cwd=REPOSITORY, stdout=theirs, stderr=subprocess.PIPE, timeout=600)
    os.close(theirs)
    os.close(ours)
    assert refused.returncode == 2
    assert b"--format parquet is binary, and stdout is a terminal" in refused.stderr
    assert b"Traceback" not in refused.stderr


def test_without_its_package_the_format_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find(name))
    out = tmp_path / "out"
    refused = CliRunner().invoke(app, ["run", "quick", "--device", "cpu", "--out", str(out), "--format", "parquet"])
    assert isinstance(refused.exception, BadInput) or refused.exit_code == 2
    assert "pip install 'attnbench[export]'" in refused.output + str(refused.exception)
    assert not out.exists()


def test_a_run_tells_its_folder_beside_the_document(ci: Summary, capfdbinary: Any) -> None:
    for form in (*EXPORTS, "parquet"):
        show("run", ci, form, folder=Path("results/new"))
        out, err = capfdbinary.readouterr()
        assert err == b"results/new\n"
        if form == "parquet":
            assert len(pd.read_parquet(io.BytesIO(out))) > 0
        else:
            assert mistakes(form, json.loads(out)) == []
    show("run", ci, "csv", folder=Path("results/new"))
    assert capfdbinary.readouterr().out.endswith(b"\nresults/new\n")


def test_exports_of_stored_runs_import_no_torch(tmp_path: Path) -> None:
    run = str(nightly(tmp_path, 1) / "night-00")
    verbs = [["show", run, "--format", form] for form in (*EXPORTS, "parquet")]
    verbs.append(["compare", run, run, "--format", "sarif"])
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom attnbench.__main__ import app\n"
        f"codes = [CliRunner().invoke(app, verb).exit_code for verb in {verbs!r}]\n"
        "print(codes, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, timeout=600)
    assert done.stdout.decode() == "[0, 0, 0, 0, 0] False\n", done.stderr
