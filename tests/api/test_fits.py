"""`attnbench.fit` gives the rows of `attnbench fit`."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import attnbench
from attnbench.__main__ import app


def test_the_rows_are_those_of_the_verb() -> None:
    words = "fit --memory 2GiB --mode train --head-dim 64 --heads 4 --dtype bf16 --operators softmax,linformer"
    rows = json.loads(CliRunner().invoke(app, [*words.split(), "--param", "k=32", "--format", "json"]).stdout)
    table = attnbench.fit(
        "softmax, linformer", memory="2GiB", mode="train", head_dim=64, heads=4, dtype="bf16", params={"k": 32}
    )
    assert list(table["largest"]) == [row["largest"] for row in rows]
    assert list(table["memory_bytes"]) == [row["memory_bytes"] for row in rows]
    assert {"softmax", "linformer"} == set(table["operator"])


def test_with_a_size_the_largest_batch_is_searched() -> None:
    table = attnbench.fit("identity", device="H100", seq_len="32K", layers=2)
    assert set(table["axis"]) == {"batch"}
    assert (table["layers"] == 2).all()


def test_what_is_wrong_is_bad_input() -> None:
    with pytest.raises(attnbench.BadInput, match="memory"):
        attnbench.fit("softmax")
    with pytest.raises(attnbench.BadInput, match="layers"):
        attnbench.fit("softmax", memory="1GiB", layers=0)
    with pytest.raises(attnbench.BadInput, match="did you mean 'train'"):
        attnbench.fit("softmax", memory="1GiB", mode="trian")
