from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.errors import BadInput
from attnbench.operators.exact import identity
from attnbench.problem import MODES, SCOPES
from attnbench.registry import operators


def run(*words: str) -> str:
    result = CliRunner().invoke(app, ["estimate", *words])
    if result.exception is not None:
        raise result.exception
    return result.output


def rows(*words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(*words, "--format", "json"))
    return found


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (14, (627_200, 156_800, 89_600, 14_336)),
        (28, (9_884_672, 2_471_168, 706_048, 53_760)),
        (56, (157_552_640, 39_388_160, 5_626_880, 207_872)),
    ],
)
def test_kanets_cost_table(side: int, expected: Sequence[int]) -> None:
    names = ("softmax", "softmax_pool", "kao_kv", "kao_qkv")
    common = ("--image-size", str(side), "--channels", "8", "--heads", "1", "--param", "value_map=true")
    assert tuple(row["multiply_adds"] for row in rows(*names, *common)) == expected
    assert tuple(row["flops"] for row in rows(*names, *common)) == tuple(2 * n for n in expected)
    assert tuple(row["multiply_adds"] for row in rows(*names, *common[:-2])) != expected


def test_rows_carry_the_whole_cell_and_are_labelled() -> None:
    found = rows("softmax", "linformer", "--seq-len", "64,128", "--channels", "32", "--channels", "64", "--causal")
    assert len(found) == 8
    softmax = found[1]
    assert (softmax["operator"], softmax["seq_len"], softmax["channels"], softmax["heads"]) == ("softmax", 128, 32, 8)
    assert (softmax["height"], softmax["causal"], softmax["source"]) == (None, True, "analytic")
    assert softmax["flops"] == 4 * 32 * 128 * 129 // 2
    assert softmax["multiply_adds"] == softmax["flops"] // 2
    assert softmax["reference_flops"] == 4 * 32 * 128 * 128
    assert softmax["arithmetic_intensity"] == softmax["flops"] / softmax["bytes_required"]
    assert found[4]["flops"] is None
    assert "shortening mixes all positions" in found[4]["reason"]


def test_what_costs_nothing_is_told_and_divides_nothing() -> None:
    for scope, mode in itertools.product(SCOPES, MODES):
        (identity,) = rows("identity", "--seq-len", "64", "--scope", scope, "--mode", mode)
        if scope == "core":
            assert (identity["flops"], identity["bytes_required"]) == (0, 0)
            assert identity["arithmetic_intensity"] is None
        else:
            # x, y and two weights, of a block an MLP and norms as well; then with gradients and the cotangent
            weights = 2 * 256**2 + (8 * 256**2 + 4 * 256 if scope == "block" else 0)
            moved = (2 * 64 * 256 + weights) * (1 if mode == "fwd" else 3) * 4 - (mode == "fwd_bwd") * 4 * 64 * 256
            assert identity["bytes_required"] == moved
    assert "—" in run("identity", "--seq-len", "64")
    assert len(rows("all", "--image-size", "16")) == len(operators())


def test_traffic_is_called_so_and_peak_memory_stands_beside_it() -> None:
    """At 64 K tokens eager softmax holds two N×N matrices of float32 at once, 16 GiB each for a head; linformer does
    not, and its E and F are part of its memory. Nothing is computed: neither would fit here.
    """
    softmax, linformer = rows("softmax", "linformer", "--seq-len", "65536", "--heads", "1", "--channels", "64")
    assert softmax["peak_memory_bytes"] == pytest.approx(2 * 4 * 65536**2, rel=0.01)
    assert softmax["input_bytes"] == 3 * 4 * 65536 * 64
    assert softmax["parameter_bytes"] == 0
    assert linformer["parameter_bytes"] == 2 * 4 * 256 * 65536
    assert linformer["peak_memory_bytes"] < softmax["peak_memory_bytes"] / 100
    head = run("softmax", "--seq-len", "65536").splitlines()[0].split()
    assert "bytes" not in head
    assert {"traffic", "memory"} <= set(head)


def test_a_decoding_step_reads_its_cache_and_sizes_that_differ_have_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    words = ("--seq-len", "64K", "--heads", "4", "--channels", "64", "--batch", "1,2", "--causal")
    step = (*words, "--query-len", "1", "--kv-heads", "1")
    one, two = rows("softmax", *step)
    assert (one["query_len"], one["kv_heads"]) == (1, 1)
    assert one["state_bytes"] == 2 * 65536 * 16 * 4  # keys and values of one head
    assert (
        one["bytes_moved"] == one["bytes_required"] == one["state_bytes"] + (2 * 64 + 2 * 16) * 4
    )  # q, y and the new k and v
    assert two["bytes_required"] == 2 * one["bytes_required"]
    assert (
        one["peak_memory_bytes"] == 2 * 4 * 65536 * 4 + 64 * 4
    )  # scaled q, logits and weights of four heads: no key is repeated
    assert run("softmax", *step).split()[:4] == ["operator", "B", "N", "FLOPs"]
    assert "everywhere: heads 4, kv_heads 1, query_len 1, channels 64." in run("softmax", *step)
    assert run("softmax", *words).split()[:4] == ["operator", "B", "N", "FLOPs"]
    assert "state" in run("softmax", *words)
    assert "state  " not in run("softmax", *words[:-1]), "a full form keeps nothing"


def test_a_step_has_no_gradients() -> None:
    words = ("softmax", "--seq-len", "64", "--query-len", "1,64", "--causal", "--mode", "fwd_bwd")
    step, whole = rows(*words)
    assert "query_len < seq_len is fwd only" in step["reason"]
    assert step["flops"] is step["peak_memory_bytes"] is whole["reason"] is None
    assert whole["flops"] > 0


def test_memory_that_shapes_do_not_tell_is_a_dash(tmp_path: Path) -> None:
    """An operator that reads a value of its input has no memory known from shapes; its cost stays."""
    own = tmp_path / "reads_values.py"
    source = Path(identity.__file__).read_text(encoding="utf-8")
    own.write_text(source.replace("return v.view_as(v)", "return v.view_as(v) if float(v.sum()) else v"))
    (row,) = rows("reads_values", "--seq-len", "64", "--operators-from", str(own))
    assert row["peak_memory_bytes"] is None
    assert row["flops"] == 0


def test_modes_scopes_and_dtypes_change_the_cost() -> None:
    def one(*words: str) -> dict[str, Any]:
        return rows("softmax", "--seq-len", "64", *words)[0]

    base = one()
    for train in (("--mode", "fwd_bwd"), ("--mode", "train"), ("--train",), ("--train", "--mode", "fwd_bwd")):
        assert one(*train)["flops"] == 3 * base["flops"]
    assert one("--infer") == base
    assert one("--scope", "layer")["flops"] == base["flops"] + 2 * 4 * 64 * 256**2
    assert one("--dtype", "bfloat16")["bytes_required"] == base["bytes_required"] / 2
    assert one("--batch", "3")["flops"] == 3 * base["flops"]


def test_params_go_to_the_operators_that_have_them() -> None:
    found = rows("softmax", "linformer", "--seq-len", "64", "--param", "k=16", "--param", "sharing=kv")
    assert found[1]["params"] == {"k": 16, "sharing": "kv"}
    assert "k" not in found[0]["params"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("softmx", "--seq-len", "8"), "operators: 'softmx' is no operator (did you mean 'softmax'?)"),
        (("softmax",), "--seq-len: missing"),
        (("softmax", "--seq-len", "0"), "--seq-len: 0; allowed"),
        (("softmax", "--seq-len", "9" * 30), "--seq-len: '999"),
        (("softmax", "--image-size", "8x"), "--image-size: '8x'; allowed"),
        (("softmax", "--seq-len", "8", "--channels", "60"), "--channels: 60 is not divisible by heads 8"),
        (("softmax", "--seq-len", "8", "--heads", "x"), "--heads: 'x'; allowed"),
        (("softmax", "--seq-len", "8", "--dtype", "int8"), "--dtype: 'int8'"),
        (("softmax", "--seq-len", "8", "--mode", "bwd"), "--mode: 'bwd'"),
        (("softmax", "--seq-len", "8", "--mode", "train", "--infer"), "--infer and --mode train: two modes"),
        (("softmax", "--seq-len", "8", "--scope", "all"), "--scope: 'all'"),
        (
            ("linformer", "--seq-len", "8", "--param", "kk=3"),
            "--param kk: none of linformer has it (did you mean 'k'?)",
        ),
        (("linformer", "--seq-len", "8", "--param", "k"), "--param: 'k'; allowed: key=value"),
        (("linformer", "--seq-len", "8", "--param", "k=010"), "k = '010'; allowed: a whole number"),
        (("linformer", "--seq-len", "8", "--param", "k=["), "--param k: '[' is not one plain value"),
        (("linformer", "--seq-len", "8", "--param", "k=!!int 3"), "--param k: '!!int 3' is not one plain value"),
        (("linformer", "--seq-len", "8", "--param", "k=8", "--param", "k=16"), "--param k: given twice"),
        (("softmax", "--seq-len", "010"), "--seq-len: '010'; allowed"),
        (("linformer", "--seq-len", "8", "--param", "k=inf"), "k = 'inf'; allowed: a whole number"),
        (("linformer", "--seq-len", "8", "--causal"), "shortening mixes all positions"),
        (("softmax", "--seq-len", "8", "--operators-from", "none.py"), "none.py does not exist"),
    ],
)
def test_bad_usage_is_told(words: Sequence[str], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        run(*words)
    assert message in str(caught.value)


@pytest.mark.parametrize("form", ["table", "csv", "markdown"])
def test_every_format_shows_the_figures(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = run("softmax", "linear_transformer", "--seq-len", "1024,65536", "--format", form)
    assert ("1073741824" if form == "csv" else "1.07G") in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= (80 if form == "table" else 1000)
    assert "analytic" in text


def test_every_operator_in_80_columns_and_reasons_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("attnbench.measure.estimates.MOST_OPERATIONS", 500)
    lines = run("all", "--seq-len", "4K", "--causal", "--head-dim", "64", "--train", "--dtype", "bf16").splitlines()
    head = lines[0].split()
    assert head == ["operator", "N", "FLOPs", "eager", "traffic", "state", "memory", "FLOP/B"]
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("softmax ") and len(line.split()) == len(head) for line in lines)
    assert not any(line.startswith("linformer ") for line in lines)
    assert "linformer: shortening mixes all positions" in " ".join(lines)
    assert re.search("memory of [a-z0-9_, ]*dsa", " ".join(lines)), "its loop has thousands of operations"
