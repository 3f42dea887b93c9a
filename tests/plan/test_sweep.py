"""The sizes of a suite: every axis swept and fixed, axes that walk together, and each mistake with its key path."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from attnbench.axes import AXES
from attnbench.errors import BadInput
from attnbench.plan.suite import Suite, from_text
from attnbench.problem import Cell, Problem


def suite(sweep: str, problem: str = "", more: str = "") -> Suite:
    shape = ", ".join(filter(None, ("causal: true", problem)))
    return from_text(f"operators: [softmax]\nsweep: [{{{sweep}}}]\nproblem: {{{shape}}}\n{more}", "mine.yaml", Path())


def mistake(sweep: str, problem: str = "") -> str:
    """The only one."""
    with pytest.raises(BadInput) as caught:
        suite(sweep, problem)
    count, line, _ = str(caught.value).split("\n")
    assert count.startswith("mine.yaml has one mistake")
    return line.strip()


def of(name: str, value: object) -> str:
    """An entry that sweeps an axis."""
    return f"{name}: {value}" if AXES[name].domain else f"seq_len: 64, {name}: {value}"


@pytest.mark.parametrize("name", AXES)
def test_an_axis_is_swept_and_fixed(name: str) -> None:
    axis = AXES[name]
    low, high, other = (8, 16, 32) if name == "channels" else (2, 4, 8)
    swept = suite(of(name, f"[{low}, {high}]")).problems()
    assert [axis.position(p) for p in swept] == [math.prod(axis.uniform(place)) for place in (low, high)]
    if not axis.domain:
        assert suite("seq_len: 64", f"{name}: {low}").problems() == swept[:1]
        assert suite(of(name, f"[{low}, {high}]"), f"{name}: {other}").problems() == swept


@pytest.mark.parametrize("name", AXES)
@pytest.mark.parametrize("wrong", ["0", "-1", "many", "1.5", "true", "~", "9999999999", "1000000M", "{}", "[]"])
def test_a_bad_value_is_named_with_what_is_allowed(name: str, wrong: str) -> None:
    at = f"sweep[0].{name}"
    told = mistake(of(name, wrong))
    assert told.startswith(f"{at}: ")
    assert "allowed: " in told or wrong == "[]"
    if wrong not in ("{}", "[]"):
        assert mistake(of(name, f"[4, {wrong}]")).startswith(f"{at}[1]: ")
        if not AXES[name].domain:
            assert mistake("seq_len: 64", f"{name}: {wrong}").startswith(f"problem.{name}: ")


@pytest.mark.parametrize(
    ("sweep", "problem", "message"),
    [
        ("seq_len: 8", "kv_heads: 3", "problem.kv_heads: kv_heads 3 does not divide heads 8"),
        ("seq_len: 8, kv_heads: [2, 16]", "", "sweep[0].kv_heads[1]: kv_heads 16 does not divide heads 8"),
        ("seq_len: 8, heads: [4, 2]", "kv_heads: 4", "problem.kv_heads: kv_heads 4 does not divide heads 2"),
        ("seq_len: 8, heads: [4, 2], kv_heads: 4", "", "sweep[0].kv_heads[0]: kv_heads 4 does not divide heads 2"),
        ("seq_len: [64, 8, 4]", "query_len: 16", "problem.query_len: query_len 16 is more than the 8 tokens"),
        ("seq_len: [64, 8], query_len: [1, 16]", "", "sweep[0].query_len[1]: query_len 16 is more than the 8 tokens"),
        ("image_size: [2, 4]", "query_len: 8", "problem.query_len: query_len 8 is more than the 4 tokens"),
        ("seq_len: 8, causal: false", "query_len: 2", "problem.query_len: query_len 2 of 8 tokens needs causal: true"),
        ("seq_len: 8, query_len: 2, causal: [true, false]", "", "sweep[0].query_len[0]: query_len 2 of 8 tokens needs"),
        ("seq_len: 8, heads: [8, 3]", "", "sweep[0].heads[1]: 256 is not divisible by heads 3"),
        ("seq_len: 8, head_dim: [64, 48]", "channels: 128", "sweep[0].head_dim[1]: 128 is not divisible by"),
        ("seq_len: 8, heads: 2", "channels: 8, head_dim: 2", "sweep[0].heads[0]: 8 is not heads 2 · head_dim 2"),
        ("seq_len: 8", "head_dim: 65536", "problem.channels: heads 8 · head_dim 65536 is 524288; allowed"),
        ("seq_len: 8, heads: 60000", "head_dim: 60000", "sweep[0].heads[0]: heads 60000 · head_dim 60000 is 36"),
        ("seq_len: [8, 16], batch: [4, 2, 1], pair: true", "", "sweep[0].pair: seq_len has 2, batch has 3 values"),
        ("seq_len: 8, pair: 1", "", "sweep[0].pair: 1; allowed: true, false"),
        ("seq_len: [8, 24], tokens: 64", "", "sweep[0].tokens: 64 is no multiple of seq_len 24"),
        ("seq_len: [8, 128], tokens: 64", "", "sweep[0].tokens: 64 is no multiple of seq_len 128"),
        ("seq_len: 1, tokens: 1M", "", "sweep[0].tokens: 1048576 is no multiple of seq_len 1, or too large a one"),
        ("seq_len: 8, tokens: 64, batch: 8", "", "sweep[0].tokens: the batch is tokens / seq_len; remove batch"),
        ("seq_len: 8, tokens: 0", "", "sweep[0].tokens: 0; allowed: a whole number from 1"),
        ("seq_len: 8, dtype: [fp32, float32]", "", "sweep[0].dtype[1]: 'float32' is given twice"),
        ("seq_len: 8, dtype: bf17", "", "sweep[0].dtype: 'bf17' (did you mean 'bf16'?); allowed: float64, float32, bf"),
        ("seq_len: 8, causal: [true, no]", "", "sweep[0].causal[1]: 'no'; allowed: true, false"),
        ("seq_len: 8", "tokens: 8", "problem.tokens: unknown key"),
        ("seq_len: {from: 1K, to: 4K, factor: sqrt3}", "", "sweep[0].seq_len: factor 'sqrt3'; allowed: a number"),
        ("seq_len: {from: 1G, to: 4K, factor: 2}", "", "sweep[0].seq_len: '1G'; allowed: a whole number from 1"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_together_are_one_mistake(sweep: str, problem: str, message: str) -> None:
    assert mistake(sweep, problem).startswith(message)


def test_axes_multiply_and_with_pair_walk_together() -> None:
    multiplied = suite("seq_len: [512, 1K, 2K], batch: [32, 16, 8]").problems()
    assert len(multiplied) == 9
    paired = suite("seq_len: [512, 1K, 2K], batch: [32, 16, 8], heads: 4, pair: true").problems()
    assert [(p.seq_len, p.batch, p.heads) for p in paired] == [(512, 32, 4), (1024, 16, 4), (2048, 8, 4)]
    assert set(paired) < set(suite("seq_len: [512, 1K, 2K], batch: [32, 16, 8]", "heads: 4").problems())


def test_in_a_pair_a_value_may_be_there_twice_and_a_problem_may_not() -> None:
    paired = suite("seq_len: [512, 1K, 2K], batch: [8, 8, 4], pair: true").problems()
    assert [(p.seq_len, p.batch) for p in paired] == [(512, 8), (1024, 8), (2048, 4)]
    assert mistake("seq_len: [512, 1K], batch: [8, 8]") == "sweep[0].batch[1]: 8 is given twice; remove one"
    assert "is in sweep[0] already" in mistake("seq_len: [512, 512], batch: [8, 8], pair: true")


def test_a_batch_follows_from_a_constant_number_of_tokens() -> None:
    problems = suite("seq_len: [512, 1K], heads: [2, 4], tokens: 16K", "batch: 3").problems()
    assert [(p.heads, p.seq_len, p.batch) for p in problems] == [
        (2, 512, 32), (2, 1024, 16), (4, 512, 32), (4, 1024, 16),
    ]  # fmt: skip
    assert [p.batch for p in suite("image_size: [8, 16], tokens: 256").problems()] == [4, 1]


def test_dtypes_and_causality_multiply_and_an_entry_has_its_own() -> None:
    text = "operators: [softmax]\nsweep: [{seq_len: 8}, {seq_len: 16, causal: true}]\n"
    text += "problem: {dtype: [fp32, bf16], causal: [false, true]}"
    problems = from_text(text, "", Path()).problems()
    assert [(p.seq_len, p.dtype, p.causal) for p in problems] == [
        (8, "float32", False), (8, "float32", True), (8, "bfloat16", False), (8, "bfloat16", True),
        (16, "float32", True), (16, "bfloat16", True),
    ]  # fmt: skip


def test_names_and_sizes_as_people_type_them() -> None:
    short = suite("seq_len: [1K, 4k]", "dtype: bf16, batch: 2", "mode: [infer, train]")
    assert short.problems() == [Problem(n, 256, 8, 2, "bfloat16", causal=True) for n in (1024, 4096)]
    assert short.mode == ("fwd", "fwd_bwd")
    with pytest.raises(
        BadInput, match=re.escape("'trian' (did you mean 'train'?); allowed: fwd, fwd_bwd, infer, train")
    ):
        suite("seq_len: 8", "", "mode: trian")


def test_new_sizes_stand_in_keys_that_overrides_match() -> None:
    overrides = "[{cell: '*.query_len1.*', mode: infer, wall_time: 9%}, {cell: '*.kv_heads2.*', flops: 1%}]"
    gate = f"gate: {{wall_time: 5%, overrides: {overrides}}}"
    found = suite("seq_len: 64, query_len: [1, 64], kv_heads: [2, 8]", more=gate)
    limits = {}
    for p in found.problems():
        key = Cell("local", "reference", "core", "fwd", p, {}).key
        limits[p.kv_heads, p.query_len] = tuple(found.gate.threshold(name, key) for name in ("wall_time", "flops"))
    assert limits == {(2, 1): (0.09, 0.01), (8, 1): (0.09, None), (2, 64): (0.05, 0.01), (8, 64): (0.05, None)}
