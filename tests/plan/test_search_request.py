from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from attnbench.errors import BadInput
from attnbench.measure.stored_search import name_sizes, read_request, write_request
from attnbench.plan.search_request import SearchRequest, clock_column, read_over, suite_text
from attnbench.store.records import ENVIRONMENT, SEARCH, SUITE
from tests.stored import cell, visit

ASKED = SearchRequest(("rfa", "softmax:sdpa"), "softmax", "seq_len", 64, 1024, 0.1, "wall_time_s")
SHAPE = {"batch": 1, "heads": 4, "channels": 32, "dtype": "float32", "causal": False}


OVER = replace(ASKED, over="batch", values=(1, 2, 4))


@pytest.mark.parametrize(
    "asked", [ASKED, OVER, replace(ASKED, axis="channels", over="image_size", values=("8x16", 32))]
)
def test_a_question_comes_back_as_it_was_kept(tmp_path: Path, asked: SearchRequest) -> None:
    write_request(asked, tmp_path)
    assert read_request(tmp_path) == asked
    assert ASKED.names() == [("rfa", "reference"), ("softmax", "sdpa"), ("softmax", "reference")]


def test_a_question_that_was_kept_before_there_was_a_second_axis_is_read(tmp_path: Path) -> None:
    before = {name: value for name, value in asdict(ASKED).items() if name not in ("over", "values")}
    (tmp_path / SEARCH).write_text(json.dumps(before))
    assert read_request(tmp_path) == ASKED


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
        {"over": "width"},
        {"over": None},
        {"values": 3},
        {"values": [1.5]},
    ],
)
def test_a_damaged_question_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / SEARCH).write_text(json.dumps({**asdict(ASKED), **change}))
    with pytest.raises(BadInput, match="missing, foreign or mistyped"):
        read_request(tmp_path)


def test_the_suite_names_the_sizes_that_were_visited(tmp_path: Path) -> None:
    path = tmp_path / SUITE
    path.write_text(suite_text(ASKED, SHAPE, 64, "fwd", "core", [], []))
    (tmp_path / ENVIRONMENT).write_text('{"torch": "2.13.0"}')
    name_sizes(ASKED, tmp_path, [])
    assert yaml.safe_load(path.read_text())["sweep"] == [{"seq_len": [64, 1024]}]
    name_sizes(ASKED, tmp_path, [visit(cell(seq_len=n)) for n in (256, 64, 256)])
    assert yaml.safe_load(path.read_text())["sweep"] == [{"seq_len": [64, 256]}]
    facts = json.loads((tmp_path / ENVIRONMENT).read_text())
    assert (facts["torch"], facts["sweep"][0]["places"]) == ("2.13.0", {"seq_len": [64, 256]})
    assert facts["sweep"][0]["beside"]["channels"] == [32]


def test_the_suite_names_the_values_of_a_second_axis(tmp_path: Path) -> None:
    path = tmp_path / SUITE
    path.write_text(suite_text(OVER, SHAPE, 64, "fwd", "core", [], []))
    (tmp_path / ENVIRONMENT).write_text('{"torch": "2.13.0"}')
    data = yaml.safe_load(path.read_text())
    assert data["sweep"] == [{"seq_len": [64, 1024], "batch": [1, 2, 4]}]
    assert "batch" not in data["problem"]
    name_sizes(OVER, tmp_path, [visit(cell(seq_len=n)) for n in (256, 64)])
    assert yaml.safe_load(path.read_text())["sweep"] == [{"seq_len": [64, 256], "batch": [1, 2, 4]}]
    tokens = replace(OVER, axis="channels", over="seq_len", values=(512, 1024))
    sweep = yaml.safe_load(suite_text(tokens, SHAPE, 64, "fwd", "core", [], []))["sweep"]
    assert sweep == [{"channels": [64, 1024], "seq_len": [512, 1024]}]


def test_a_second_axis_is_read_as_suites_write_it() -> None:
    assert read_over("batch=8,1,2", "seq_len") == ("batch", (1, 2, 8))
    assert read_over("seq_len=1K, 4K", "batch") == ("seq_len", (1024, 4096))
    assert read_over("image_size=32,8x16", "channels") == ("image_size", ("8x16", "32x32"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch", "it has no values"),
        ("batsh=1,2", "did you mean 'batch'"),
        ("seq_len=64,128", "it is the axis of the search itself"),
        ("image_size=8,16", "image_size and seq_len both set the number of tokens"),
        ("batch=1,many", "allowed: a whole number from 1 to 65536"),
        ("batch=1,,2", "is not one plain value"),
        ("batch=0,2", "0; allowed: a whole number from 1"),
        ("batch=4", "one value; a border needs two or more"),
        ("batch=1,2,1", "two of the values are the same size"),
        ("=1,2", "allowed: one of "),
        ("batch=[1,2]", "is not one plain value"),
    ],
)
def test_a_second_axis_that_is_none_is_told_in_a_paragraph(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)) as raised:
        read_over(text, "seq_len")
    assert str(raised.value).startswith(f"--over {text}: ")
    assert "\n" not in str(raised.value)


def test_what_is_searched_is_a_metric_with_a_clock() -> None:
    assert [clock_column(name) for name in ("wall_time", "device_time")] == ["wall_time_s", "device_time_s"]
    for name in ("energy", "peak_memory", "wall_tim"):
        with pytest.raises(BadInput, match="allowed: wall_time, device_time"):
            clock_column(name)
