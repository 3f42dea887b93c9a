"""`attnbench.estimate` gives the rows of `attnbench estimate`."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

import attnbench
from attnbench.__main__ import app


def test_the_rows_are_those_of_the_verb() -> None:
    words = "estimate softmax linformer --seq-len 1K,4096 --dtype bf16 --head-dim 64 --heads 4 --param k=32 --train"
    rows = json.loads(CliRunner().invoke(app, [*words.split(), "--format", "json"]).stdout)
    table = attnbench.estimate(
        ["softmax", "linformer"],
        seq_len=["1K", 4096],
        dtype="bf16",
        head_dim=64,
        heads=4,
        params={"k": 32},
        mode="train",
    )
    assert len(table) == len(rows) == 4
    assert list(table["flops"]) == [row["flops"] for row in rows]
    assert list(table["peak_memory_bytes"]) == [row["peak_memory_bytes"] for row in rows]
    assert [json.loads(params) for params in table["params"]] == [row["params"] for row in rows]
    assert table["flops"].dtype == "Int64"


def test_outside_of_a_definition_figures_are_missing_with_the_reason() -> None:
    table = attnbench.estimate("fnet,softmax", seq_len=64, causal=True).set_index("operator")
    assert pd.isna(table.loc["fnet", "flops"])
    assert "Fourier" in str(table.loc["fnet", "reason"])
    assert table.loc["softmax", "flops"] > 0


def test_mistakes_are_told_together() -> None:
    with pytest.raises(attnbench.BadInput, match=r"(?s)'f3'.*'sofmax'"):
        attnbench.estimate("sofmax", seq_len=1, dtype="f3")
    with pytest.raises(attnbench.BadInput, match="did you mean 'seq_len'"):
        attnbench.estimate("softmax", seqlen=1)
    with pytest.raises(attnbench.BadInput, match="seq_len: missing"):
        attnbench.estimate("softmax")
