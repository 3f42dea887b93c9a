"""`attnbench.choose` gives the rows of `attnbench choose`, from a run or a card."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import attnbench
from attnbench.__main__ import app

RUN = "results/reference/cpu-sequence"


@pytest.mark.parametrize("place", ["run", "device"])
def test_the_rows_are_those_of_the_verb(place: str) -> None:
    names = "softmax,fnet,linformer,external_attention,local"
    where = f"--run {RUN}" if place == "run" else "--device H100"
    words = (
        f"choose {where} --seq-len 1500 --channels 256 --need all_pairs,any_length --memory 8GiB --operators {names}"
    )
    document = json.loads(CliRunner().invoke(app, [*words.split(), "--format", "json"]).stdout)
    asked = {
        "operators": names,
        "seq_len": 1500,
        "channels": 256,
        "need": ["all_pairs", "any_length"],
        "memory": "8GiB",
    }
    table = attnbench.load(RUN).choose(**asked) if place == "run" else attnbench.choose(device="H100", **asked)
    ranked, out = table[table["status"] == "ranked"], table[table["status"] == "out"]
    assert list(ranked["name"]) == [row["name"] for row in document["choices"]]
    assert list(ranked["time_s"]) == pytest.approx([row["time_s"] for row in document["choices"]])
    by_run = ranked[ranked["time_source"] != "analytic"]
    best = by_run if len(by_run) else ranked
    assert list(best.loc[best["level"], "name"]) == document["best"]
    assert list(out["name"]) == [row["name"] for row in document["out"]]
    assert ranked["properties"].str.contains("all_pairs").all()
    assert {"interpolated", "analytic"} & set(ranked["time_source"])


def test_what_is_wrong_is_bad_input() -> None:
    with pytest.raises(attnbench.BadInput, match=r"need 'all_pears'.*did you mean 'all_pairs'"):
        attnbench.choose(seq_len=64, need="all_pears", device="H100")
    with pytest.raises(attnbench.BadInput, match="2 problems"):
        attnbench.choose(seq_len=[64, 128], device="H100")
    with pytest.raises(attnbench.BadInput, match="Give one of them"):
        attnbench.load(RUN).choose(seq_len=64, device="H100")
