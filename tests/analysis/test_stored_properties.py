"""Which properties a stored run says that its operators have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attnbench.analysis.run import read_run
from attnbench.analysis.summary import summarise
from attnbench.errors import BadInput
from attnbench.plan.operator_facts import definitions
from attnbench.problem import Cell, Problem
from attnbench.store.records import ENVIRONMENT
from tests.stored import cell, folder, visit

COMPRESSED = Cell("compressed", "reference", "core", "fwd", Problem(64, 32, 4), {"factor": 3})


def stored(path: Path, properties: Any) -> Path:
    made = folder(path, [visit(of) for of in (cell("softmax"), COMPRESSED)])
    (made / ENVIRONMENT).write_text(json.dumps({"properties": properties}))
    return made


def test_a_run_keeps_the_properties_of_both_forms(tmp_path: Path) -> None:
    facts = definitions([cell("softmax"), COMPRESSED])["properties"]
    run = read_run(stored(tmp_path, facts))
    assert run.properties == facts
    assert all(run.properties["softmax {}"]["full"].values())
    forms = run.properties['compressed {"factor":3}']
    assert (forms["full"]["all_pairs"], forms["causal"]["all_pairs"]) == (True, False)
    summary = summarise(run)
    (report,) = summary.panels
    for series in report.panel.series:
        assert summary.properties_of(report.panel, series) == facts[series.identity]["full"]


def test_an_earlier_run_has_none_and_a_later_one_those_of_today(tmp_path: Path) -> None:
    made = folder(tmp_path, [visit()])
    run = read_run(made)
    summary = summarise(run)
    (report,) = summary.panels
    assert run.properties == {} == summary.properties_of(report.panel, report.panel.series[0])
    later = {"softmax {}": {"full": {"exact": True, "telepathic": True}, "sideways": {"exact": True}}}
    assert read_run(stored(tmp_path, later)).properties == {"softmax {}": {"full": {"exact": True}}}


@pytest.mark.parametrize("properties", [1, [], {"a": 1}, {"a": {"full": []}}, {"a": {"full": {"exact": 1}}}])
def test_damaged_ones_are_refused(tmp_path: Path, properties: Any) -> None:
    with pytest.raises(BadInput, match=r"environment\.json: properties = .*; allowed: .*true and false"):
        read_run(stored(tmp_path, properties))
