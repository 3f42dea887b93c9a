"""Run folders are read exactly, and nothing that cannot be trusted is read at all."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import attnbench.measure.metrics
from attnbench.analysis.metric_values import quantity
from attnbench.analysis.results import derive, write
from attnbench.analysis.run import read_run
from attnbench.errors import BadInput
from attnbench.problem import cell_of, columns_of
from attnbench.registry import metrics
from attnbench.store.columns import first_columns
from attnbench.store.reading import parse_visit
from attnbench.store.records import VISITS, Sample
from tests.stored import CELL, cell, folder, timed, visit

CHECKED = visit(metrics={"flops": 2**60 + 1, "peak_memory_bytes": 12}, warnings=("noisy",), operations={"aten.mm": 2})


def test_a_check_of_an_older_run_has_its_time_under_the_name_of_today() -> None:
    older = visit(metrics={"scout_time_s": 0.5, "flops": 3}).line()
    assert parse_visit(older, "here").metrics == {"check_time_s": 0.5, "flops": 3}


HEADER = (
    "key,operator,impl,kernel,scope,params,device,dtype,mode,batch,heads,seq_len,height,width,channels,causal,"
    "status,reason,rounds,samples,wall_time_s,wall_time_low_s,wall_time_high_s,device_time_s,device_time_low_s,"
    "device_time_high_s,flops,reference_flops,flops_counted,bytes_required,peak_memory_bytes,"
    "peak_memory_total_bytes,input_bytes,parameter_bytes,reserved_memory_bytes,process_memory_bytes,energy_j,"
    "relative_error,tolerance,checked_seq_len,threads,contract,kv_heads,query_len,cause,energy_resolution_j,estimate_error,"
    "flops_uncounted,impl_flops,bytes_moved,softmax_error_at_0.25,softmax_error_at_0.5,softmax_error_at_1,"
    "softmax_error_at_2,softmax_error_at_4,mean_error_at_0.25,mean_error_at_0.5,mean_error_at_1,mean_error_at_2,"
    "mean_error_at_4,device_time_median_s,wall_time_median_s,first_call_s,state_bytes"
)
"""Of results.csv, as it was published: a column never moves, and new ones follow."""


def test_a_visit_survives_the_round_trip() -> None:
    assert parse_visit(CHECKED.line(), "here") == CHECKED
    assert cell_of(columns_of(CELL)) == CELL


def test_counts_keep_every_digit(tmp_path: Path) -> None:
    run = read_run(folder(tmp_path, [CHECKED]))
    assert int(run.visits["flops"].iloc[0]) == 2**60 + 1
    assert int(run.results["flops"].iloc[0]) == 2**60 + 1


def test_columns_and_order_of_results(tmp_path: Path) -> None:
    run = read_run(folder(tmp_path, [CHECKED, visit(cell("linformer"))]))
    assert ",".join(run.results.columns) == HEADER
    assert list(run.results["operator"]) == ["softmax", "linformer"]
    written = write(tmp_path, run.visits)
    assert (tmp_path / "results.csv").read_text().splitlines()[0] == HEADER
    assert len(written) == 2


def test_a_torn_last_line_is_no_visit(tmp_path: Path) -> None:
    folder(tmp_path, [CHECKED])
    with (tmp_path / VISITS).open("a") as file:
        file.write(timed(CELL, 1, 0.5).line()[:-20])
    assert len(read_run(tmp_path).visits) == 1


def test_samples_of_an_unfinished_visit_are_left_out(tmp_path: Path) -> None:
    rows = [Sample(CELL.key, r, r, 0, "wall", 0.25) for r in (1, 2)]
    run = read_run(folder(tmp_path, [CHECKED, timed(CELL, 1, 0.25)], rows))
    assert list(run.samples["round"]) == [1]


def changed(**fields: Any) -> str:
    return json.dumps({**json.loads(CHECKED.line()), **fields}) + "\n"


MUTATIONS = {
    "not json": "{oops}\n",
    "not an object": "[]\n",
    "empty line": "\n",
    "nan": CHECKED.line().replace(":12", ":NaN"),
    "infinity": CHECKED.line().replace(":12", ":Infinity"),
    "overflow": CHECKED.line().replace(":12", ":1e999"),
    "huge": CHECKED.line().replace(":12", ":" + "9" * 5000),
    "beyond 63 bits": changed(metrics={"flops": 2**63}),
    "negative": changed(metrics={"flops": -1}),
    "text for a number": changed(metrics={"flops": "12"}),
    "true for a number": changed(metrics={"flops": True}),
    "unknown status": changed(status="great"),
    "status of another type": changed(status=["ok"]),
    "round": changed(round=0.5),
    "another cell's key": changed(key=cell("linformer").key),
    "another size": changed(cell={**columns_of(CELL), "seq_len": 128}),
    "impossible cell": changed(cell={**columns_of(CELL), "heads": 7}),
    "params not canonical": changed(cell={**columns_of(CELL), "params": "{ }"}),
    "params no object": changed(cell={**columns_of(CELL), "params": "3"}),
    "name twice": '{"key":"a","key":"b"}\n',
    "deep": "[" * 100_000 + "\n",
}


@pytest.mark.parametrize("text", MUTATIONS.values(), ids=MUTATIONS.keys())
def test_what_cannot_be_trusted_is_refused_by_file_and_line(tmp_path: Path, text: str) -> None:
    folder(tmp_path, [CHECKED])
    (tmp_path / VISITS).write_text(timed(CELL, 1, 0.5).line() + text)
    with pytest.raises(BadInput, match=r"visits\.jsonl, line 2"):
        read_run(tmp_path)


def test_of_many_metrics_the_impossible_ones_are_named() -> None:
    right = {f"m{n}_s": 0.5 for n in range(20)} | {"wall_time_s": 0.5, "wall_time_high_s": 0.6}
    parse_visit(changed(metrics=right), "here")
    for wrong in ({"wall_time_s": "fast"}, {"wall_time_s": 0.7, "wall_time_high_s": 0.6}):
        with pytest.raises(BadInput, match=f"^here: metrics = {re.escape(str(wrong))}; allowed: "):
            parse_visit(changed(metrics=right | wrong), "here")


def test_a_visit_stored_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="duplicate"):
        read_run(folder(tmp_path, [CHECKED, CHECKED]))


def test_two_contracts_in_one_run_are_refused(tmp_path: Path) -> None:
    other = timed(CELL, 1, 0.5).line().replace('"contract":"1"', '"contract":"2"')
    folder(tmp_path, [CHECKED])
    (tmp_path / VISITS).write_text(CHECKED.line() + other)
    with pytest.raises(BadInput, match="contracts"):
        read_run(tmp_path)


def test_no_folder_and_foreign_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        read_run(tmp_path / "none")
    with pytest.raises(BadInput, match="not a run folder"):
        read_run(tmp_path)
    folder(tmp_path, [CHECKED])
    (tmp_path / VISITS).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="UTF-8"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    "row",
    [
        *("a,1,1,0,wall,nan,", "a,1,1,0,wall,-1,", "a,1,1,0,wall,1e25,", "a,1,1,0,wall,1,,,,"),
        *("a,one,1,0,wall,1,", "a,1.5,1,0,wall,1,", "a,1,,0,wall,1,"),
    ],
)
def test_samples_that_cannot_be_trusted_are_refused(tmp_path: Path, row: str) -> None:
    folder(tmp_path, [CHECKED])
    with (tmp_path / "samples.csv").open("a") as file:
        file.write(row + "\n")
    run = read_run(tmp_path)
    with pytest.raises(BadInput, match=r"samples\.csv"):
        _ = run.samples


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("exact", "softmax {}"),
        ("families", {"softmax": 1}),
        ("estimates", {"rfa {}": None}),
        ("properties", {"rfa {}": {"full": {"exact": "no"}}}),
        ("stated", {"softmax {}": "n^2"}),
        ("stated", {"softmax {}": {"time": "N^2"}}),
        ("rates", {"copy_bytes_per_s": "fast"}),
        ("rates", {"matmul_flops_per_s": [1]}),
    ],
)
def test_definitions_that_cannot_be_trusted_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    folder(tmp_path, [CHECKED])
    (tmp_path / "environment.json").write_text(json.dumps({name: value}))
    with pytest.raises(BadInput, match=rf"environment\.json: {name} = "):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["round", "status", "params", "causal", ""])
def test_a_metric_under_another_columns_name_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="metrics"):
        parse_visit(visit(metrics={name: 1}).line(), "here")


def test_a_wrong_round_leaves_no_time(tmp_path: Path) -> None:
    visits = [CHECKED, timed(CELL, 1, 0.5), visit(CELL, 2, status="wrong", reason="decays")]
    row = derive(read_run(folder(tmp_path, visits)).visits).iloc[0]
    assert row["status"] == "wrong"
    assert row[["wall_time_s", "wall_time_low_s", "wall_time_high_s"]].isna().all()


def test_a_lost_round_is_named_and_the_others_count(tmp_path: Path) -> None:
    visits = [CHECKED, timed(CELL, 1, 0.5), visit(CELL, 2, status="crashed", reason="SIGKILL"), timed(CELL, 3, 0.5)]
    row = read_run(folder(tmp_path, visits)).results.iloc[0]
    assert (row["status"], row["rounds"], row["wall_time_s"]) == ("ok", 2, pytest.approx(0.5))
    assert "round 2: crashed, SIGKILL" in row["reason"]


def test_reordered_visits_give_the_same_rows(tmp_path: Path) -> None:
    visits = [CHECKED, timed(CELL, 1, 0.5), timed(CELL, 2, 0.25)]
    first = read_run(folder(tmp_path / "a", visits)).results
    second = read_run(folder(tmp_path / "b", visits[::-1])).results
    assert first.to_csv() == second.to_csv()


ENERGY = {"energy_j": 2.0, "energy_resolution_j": 1e-5}


def test_every_column_of_a_timed_metric_reaches_the_results(tmp_path: Path) -> None:
    visits = [CHECKED, *(visit(CELL, r, metrics={**ENERGY, "energy_j": e}) for r, e in ((1, 2.0), (2, 5.0), (3, 3.0)))]
    made = folder(tmp_path, visits)
    write(made, read_run(made).visits)
    with (made / "results.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (float(row["energy_j"]), float(row["energy_resolution_j"])) == (3.0, 1e-5)
    assert tuple(row)[: len(first_columns())] == first_columns()


def test_rounds_that_are_not_ok_tell_nothing_of_a_timed_metric(tmp_path: Path) -> None:
    bad = visit(CELL, 2, status="crashed", reason="SIGKILL", metrics={"energy_j": 9.0, "energy_resolution_j": 9.0})
    row = read_run(folder(tmp_path / "a", [CHECKED, visit(CELL, 1, metrics=ENERGY), bad])).results.iloc[0]
    assert (row["energy_j"], row["energy_resolution_j"]) == (2.0, 1e-5)
    wrong = visit(CELL, 2, status="wrong", reason="decays")
    row = read_run(folder(tmp_path / "b", [CHECKED, visit(CELL, 1, metrics=ENERGY), wrong])).results.iloc[0]
    assert row[list(ENERGY)].isna().all()


PLANTED = """
from attnbench.metric import Metric

METRIC = Metric(
    column="planted_s", unit="s", meaning="Planted.", derived={derived!r},
    columns={{"planted_s": float, "planted_low_s": float, "planted_high_s": float, "planted_bytes": int}},
)
"""


@pytest.mark.parametrize(
    ("derived", "values"),
    [("interval", [2.0]), ("median", [2.0, 0.5, 8.0]), ("check", [7.0, math.nan, math.nan])],
)
def test_a_metric_of_ones_own_is_derived_as_it_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, derived: str, values: list[float]
) -> None:
    package = tmp_path / "metrics"
    package.mkdir()
    (package / "planted.py").write_text(PLANTED.format(derived=derived))
    monkeypatch.setattr("attnbench.measure.metrics.__path__", [*attnbench.measure.metrics.__path__, str(package)])
    metrics.cache_clear()
    names = ["planted_s", "planted_low_s", "planted_high_s"]
    check = visit(CELL, metrics={"planted_s": 7.0, "planted_bytes": 1})
    each = [dict(zip(names, (t, 0.5, 8.0), strict=True), planted_bytes=10 * t) for t in (1, 4, 2)]
    visits = [check, *(visit(CELL, r, metrics=m) for r, m in enumerate(each, 1))]
    run = read_run(folder(tmp_path / "run", visits))
    try:
        row = run.results.iloc[0]
        assert row["planted_bytes"] == (1 if derived == "check" else 20)
        found = quantity(run, "planted")
        assert (found.interval(CELL.key) is not None) == (derived != "check")
    finally:
        sys.modules.pop("attnbench.measure.metrics.planted")
        metrics.cache_clear()
    told = [float(row[name]) for name in names]
    if derived == "interval":
        assert told[0] == pytest.approx(values[0]), "the geometric mean"
        assert told[1] < told[0] < told[2]
        assert told[1:] == pytest.approx(found.interval(CELL.key))
    else:
        assert told == pytest.approx(values, nan_ok=True)
