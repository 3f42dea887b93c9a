from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from attnbench.errors import BadInput
from attnbench.measure.stored_search import SEARCH, name_sizes, read_request, write_request
from attnbench.plan.search_request import SearchRequest, clock_column, suite_text
from attnbench.store.records import SUITE
from tests.stored import cell, visit

ASKED = SearchRequest(("rfa", "softmax:sdpa"), "softmax", "seq_len", 64, 1024, 0.1, "wall_time_s")
SHAPE = {"batch": 1, "heads": 4, "channels": 32, "dtype": "float32", "causal": False}


def test_a_question_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    write_request(ASKED, tmp_path)
    assert read_request(tmp_path) == ASKED
    assert ASKED.names() == [("rfa", "reference"), ("softmax", "sdpa"), ("softmax", "reference")]


@pytest.mark.parametrize(
    "change",
    [
        {"low": "64"},
        {"precision": None},
        {"operators": "rfa"},
        {"operators": [3]},
        {"more": 1},
        {"low": True},
        {"axis": "width"},
    ],
)
def test_a_damaged_question_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / SEARCH).write_text(json.dumps({**asdict(ASKED), **change}))
    with pytest.raises(BadInput, match="missing, foreign or mistyped"):
        read_request(tmp_path)


def test_the_suite_names_the_sizes_that_were_visited(tmp_path: Path) -> None:
    path = tmp_path / SUITE
    path.write_text(suite_text(ASKED, SHAPE, 64, "fwd", "core", [], []))
    name_sizes(ASKED, tmp_path, [])
    assert yaml.safe_load(path.read_text())["sweep"] == [{"seq_len": [64, 1024]}]
    name_sizes(ASKED, tmp_path, [visit(cell(seq_len=n)) for n in (256, 64, 256)])
    assert yaml.safe_load(path.read_text())["sweep"] == [{"seq_len": [64, 256]}]


def test_what_is_searched_is_a_metric_with_a_clock() -> None:
    assert [clock_column(name) for name in ("wall_time", "device_time")] == ["wall_time_s", "device_time_s"]
    for name in ("energy", "peak_memory", "wall_tim"):
        with pytest.raises(BadInput, match="allowed: wall_time, device_time"):
            clock_column(name)
