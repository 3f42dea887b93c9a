"""Panels of what a suite sweeps: axes that walk together, dtypes and causality, and along which axis cells stand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attnbench.analysis.run import Run
from attnbench.analysis.series import Panel, panels
from attnbench.analysis.summary import summarise
from attnbench.errors import BadInput
from attnbench.outputs import csv
from attnbench.outputs import json as json_output
from attnbench.plan.suite import from_text
from attnbench.plan.sweep import entry_facts
from tests.analysis.runs import cell, run_of, visits_of

NAMES = ("softmax", "linear_transformer")


def swept(sweep: str, problem: str = "") -> Run:
    """A run of a suite with this sweep, and what its environment stores of that."""
    suite = from_text(
        f"operators: [softmax]\nsweep: [{sweep}]\nproblem: {{channels: 16, heads: 4{problem}}}", "", Path()
    )
    cells = [(cell(name, problem), 1.0, {}) for problem in suite.problems() for name in NAMES]
    sweep_stored = [entry_facts(each, suite.problem) for each in suite.sweep]
    return run_of(visits_of(cells), json.loads(json.dumps({"sweep": sweep_stored})))


def shown(run: Run) -> list[tuple[str, list[str]]]:
    """(title without what all have in common, sizes) of every panel."""
    found = panels(run.results, swept=run.swept)
    return [(p.title.replace("scope core, fwd, ", "").replace("float32, ", ""), list(p.sizes)) for p in found]


def test_a_pair_is_one_panel_that_says_what_varies_with_its_axis() -> None:
    run = swept("{seq_len: [32, 64, 128], batch: [32, 16, 4], pair: true}, {seq_len: [32, 64], batch: 1}")
    assert shown(run) == [
        ("seq_len: batch 1, heads 4, channels 16, cpu", ["32", "64"]),
        ("seq_len: heads 4, channels 16, batch 32, 16, 4, cpu", ["32", "64", "128"]),
    ]
    along = panels(run.results, "batch", run.swept)
    assert [list(p.sizes) for p in along] == [["1", "32"], ["1", "16"], ["4", "16", "32"]]
    assert along[-1].together == {"seq_len": {"4": "128", "16": "64", "32": "32"}}


def test_along_an_axis_that_a_pair_repeats_it_has_no_panel() -> None:
    run = swept("{seq_len: [32, 64, 128], batch: [8, 8, 4], pair: true}")
    assert shown(run) == [
        ("seq_len: batch 8, heads 4, channels 16, cpu", ["32", "64"]),
        ("seq_len: heads 4, channels 16, batch 8, 8, 4, cpu", ["32", "64", "128"]),
    ]
    with pytest.raises(BadInput, match="it varies seq_len"):
        panels(run.results, "batch", run.swept)


def test_without_what_the_sweep_stored_no_sizes_are_joined() -> None:
    run = swept("{seq_len: [32, 64, 128], batch: [32, 16, 4], pair: true}")
    assert [sizes for _, sizes in shown(replace(run, environment={}))] == [["128"], ["64"], ["32"]]  # batch 4, 16, 32


def test_two_pairs_of_the_same_axes_are_panels_of_their_own() -> None:
    run = swept(", ".join(f"{{seq_len: [32, 64], batch: [{batch}], pair: true}}" for batch in ("8, 2", "16, 7")))
    found = [title.split("channels 16, ")[1] for title, _ in shown(run) if title.startswith("seq_len")]
    assert found == ["batch 8, 2, cpu", "batch 16, 7, cpu"]


@pytest.mark.parametrize(
    ("sweep", "title"),
    [
        ("{seq_len: [32, 64, 128], tokens: 256}", "seq_len: heads 4, channels 16, batch · seq_len 256, cpu"),
        ("{image_size: [4x8, 8, 16x8], tokens: 256}", "image_size: heads 4, channels 16, batch · tokens 256, cpu"),
        (
            "{seq_len: [32, 64, 128], batch: [8, 4, 2], pair: true}",
            "seq_len: heads 4, channels 16, batch · seq_len 256, cpu",
        ),
        (
            "{seq_len: [32, 64, 128], kv_heads: [1, 2, 4], tokens: 256, pair: true}",
            "seq_len: heads 4, channels 16, kv_heads 1, 2, 4, batch 8, 4, 2, cpu",
        ),
    ],
)
def test_a_constant_number_of_tokens_is_named(sweep: str, title: str) -> None:
    ((found, sizes),) = shown(swept(sweep))
    assert (found, len(sizes)) == (title, 3)


def test_outputs_name_what_varies_with_the_axis_at_each_size() -> None:
    run = swept("{seq_len: [32, 64], tokens: 256}")
    lines = [line.split(",") for line in csv.run(summarise(run, ["wall_time"])).splitlines()]
    batch, label = lines[0].index("batch"), lines[0].index("label")
    assert {(line[label], line[batch]) for line in lines[1:]} == {("32", "8"), ("64", "4")}
    (panel,) = json.loads(json_output.run(summarise(run, ["wall_time"])))["panels"]
    assert panel["together"] == {"batch": {"32": "8", "64": "4"}}
    assert "batch" not in panel["fixed"]
    along = csv.run(summarise(run, ["wall_time"], None, "batch")).splitlines()
    assert {line.split(",")[along[0].split(",").index("problem")] for line in along[1:]} == {"seq_len 64", "seq_len 32"}


def test_no_growth_is_stated_where_the_batch_falls_as_the_tokens_grow() -> None:
    """Of batch · N² and a constant batch · N the growth is N, which no definition states."""

    def stated(sweep: str) -> str | None:
        run = swept(sweep)
        environment = {**run.environment, "definitions": {}, "stated": {"softmax {}": {"time": "n^2"}}}
        (report,) = summarise(replace(run, environment=environment), ["wall_time"]).panels
        return report.tables[0].lines[0].stated

    assert stated("{seq_len: [32, 64]}") == "n^2"
    assert stated("{seq_len: [32, 64], tokens: 256}") is None


def test_a_step_with_nothing_before_it_stands_with_those_of_as_many_new_tokens() -> None:
    run = swept("{seq_len: [8, 16, 32], query_len: 8}, {seq_len: [16, 32]}", ", causal: true")
    assert shown(run) == [
        ("seq_len: causal, batch 1, heads 4, channels 16, cpu", ["8", "16", "32"]),
        ("seq_len: causal, batch 1, heads 4, channels 16, query_len 8, cpu", ["8", "16", "32"]),
    ]
    assert [list(p.sizes) for p in panels(run.results, "query_len", run.swept)] == [["8", "16"], ["8", "32"]]


def test_heads_of_as_many_kv_heads_are_one_panel() -> None:
    run = swept("{seq_len: 8, heads: [2, 4, 8]}", ", kv_heads: 2")
    assert shown(run) == [("heads: batch 1, channels 16, kv_heads 2, seq_len 8, cpu", ["2", "4", "8"])]


def test_the_axis_of_the_same_cells_is_that_of_their_own_entry() -> None:
    """Both entries vary the channels of four heads; one of them calls it head_dim."""
    run = swept("{seq_len: 8, head_dim: [2, 8]}, {seq_len: 16, channels: [8, 32]}")
    assert shown(run) == [
        ("channels: batch 1, heads 4, seq_len 16, cpu", ["8", "32"]),
        ("head_dim: batch 1, heads 4, seq_len 8, cpu", ["2", "8"]),
    ]
    unnamed = [title.split(":")[0] for title, _ in shown(replace(run, environment={}))]
    assert unnamed == ["seq_len", "seq_len", "channels", "channels"]


def test_sizes_that_happen_to_agree_are_no_panel_unless_a_cell_stands_nowhere_else() -> None:
    """Two heads of eight channels beside four of these, in two entries; two samples stand only beside the base."""
    run = swept("{seq_len: 8, heads: [2, 4, 8]}, {seq_len: 8, head_dim: [8, 16]}, {seq_len: 8, batch: 2}")
    assert shown(run) == [
        ("heads: batch 1, channels 16, seq_len 8, cpu", ["2", "4", "8"]),
        ("head_dim: batch 1, heads 4, seq_len 8, cpu", ["4", "8", "16"]),
        ("batch: heads 4, channels 16, seq_len 8, cpu", ["1", "2"]),
    ]
    chance = ("channels: batch 1, head_dim 8, seq_len 8, cpu", ["16", "32"])
    assert chance in shown(replace(run, environment={}))
    assert [list(p.sizes) for p in panels(run.results, "heads", run.swept)] == [["2", "4", "8"], ["2", "4"]]


def test_heads_that_have_as_many_kv_heads_as_others_are_no_panel_of_theirs() -> None:
    run = swept("{seq_len: 8, heads: [1, 2, 4]}, {seq_len: 8, kv_heads: [1, 2]}")
    assert shown(run) == [
        ("heads: batch 1, channels 16, seq_len 8, cpu", ["1", "2", "4"]),
        ("kv_heads: batch 1, heads 4, channels 16, seq_len 8, cpu", ["1", "2", "4"]),
    ]
    assert [list(p.sizes) for p in panels(run.results, "heads", run.swept)][1:] == [["1", "4"], ["2", "4"]]


def test_kinds_are_panels() -> None:
    run = swept("{seq_len: [8, 16], dtype: [fp32, bf16]}, {seq_len: [8, 16], causal: true, batch: 2}")
    found = panels(run.results, swept=run.swept)
    assert [(p.fixed["dtype"], bool(p.fixed["causal"]), p.fixed["batch"]) for p in found if p.axis == "seq_len"] == [
        ("float32", False, 1), ("bfloat16", False, 1), ("float32", True, 2),
    ]  # fmt: skip
    assert all(list(p.sizes) == ["8", "16"] for p in found)


@pytest.mark.parametrize(
    "damage",
    [
        {"places": None},
        {"places": {"width": [1, 2]}},
        {"places": {"seq_len": ["1"]}},
        {"beside": [1]},
        {"together": 1},
        {"together": ["heads"]},
        {"together": [[]]},
        {"places": {"seq_len": [1, 2], "batch": [1]}},
        {"more": 1},
    ],
)
def test_a_damaged_sweep_is_as_none(damage: dict[str, Any]) -> None:
    run = swept("{seq_len: [32, 64], tokens: 256}")
    assert len(run.swept) == 1
    (whole,) = run.environment["sweep"]
    for damaged in ([{**whole, **damage}], [3], 3, [{name: whole[name] for name in ("places", "together")}]):
        assert replace(run, environment={"sweep": damaged}).swept == []


def test_panel_of_equal_cells_is_shown_along_each_axis_that_is_asked_for() -> None:
    run = swept("{seq_len: 8, head_dim: [2, 8]}")
    along: list[Panel] = [panels(run.results, axis, run.swept)[0] for axis in ("channels", "head_dim")]
    assert [list(p.sizes) for p in along] == [["8", "32"], ["2", "8"]]
    assert along[0].keys == along[1].keys
