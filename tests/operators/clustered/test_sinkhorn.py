"""Sinkhorn against a loop over blocks and tokens; its sorting matrix, its limits, its count of pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.measure.worker.fake_memory import total_bytes
from attnbench.operator import Inputs
from attnbench.operators.clustered.sinkhorn import (
    OPERATOR,
    block_count,
    block_length,
    blocked,
    new_blocks,
    sorting_logits,
    sorting_matrix,
)
from attnbench.operators.exact.softmax import reference as softmax
from attnbench.problem import Params, Problem
from attnbench.registry import outside_definition, resolve
from tests.operators.flops import FlopCounter

CORE = OPERATOR.forms["core"]


def setup(n: int, seed: int = 0, causal: bool = False, **params: Any) -> tuple[Problem, Params, Inputs]:
    problem = Problem(n, 10, 2, batch=2, dtype="float64", causal=causal)
    resolved = resolve(OPERATOR, params)
    return problem, resolved, CORE.make_inputs(problem, resolved, torch.Generator().manual_seed(seed))


def run(problem: Problem, params: Params, inputs: Inputs) -> Tensor:
    return CORE.reference(problem, params, **inputs.tensors())


def looped(problem: Problem, params: Params, inputs: Inputs, mistake: str = "") -> Tensor:
    """The definition, block by block and token by token; `mistake` breaks one point of it."""
    y = torch.empty_like(inputs.data["v"])
    for sample in range(problem.batch):
        for head in range(problem.heads):
            q, k, v = (inputs.data[name][sample, head] for name in ("q", "k", "v"))
            noise = inputs.choices["noise"][sample, head]
            y[sample, head] = looped_head(problem, params, q, k, v, inputs.parameters["w"], noise, mistake)
    return y


def looped_head(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    noise: Tensor,
    mistake: str,
) -> Tensor:
    n, b = problem.seq_len, block_length(problem, params)
    blocks = [list(range(start, min(start + b, n))) for start in range(0, n, b)]
    s = looped_matrix(problem, params, k, w, noise, blocks, mistake)
    y = torch.empty_like(v)
    for i, own in enumerate(blocks):
        made = [i] if params["kind"] == "sinkhorn" else list(range(min(params["cut"], len(blocks))))
        for token in own:
            keys, values = [], []
            for row in made:
                if problem.causal and row == 0:
                    continue
                for t in range(b):
                    at = [(s[row, j], tokens[t]) for j, tokens in enumerate(blocks) if t < len(tokens)]
                    key = sum((weight * k[source] for weight, source in at), torch.zeros_like(k[0]))
                    value = sum((weight * v[source] for weight, source in at), torch.zeros_like(v[0]))
                    keys.append(key)
                    values.append(key if mistake == "sorted keys as values" else value)
            if params["kind"] == "sinkhorn" and mistake != "own block missing":
                seen = [j for j in own if j <= token or not problem.causal]
                keys += [k[j] for j in seen]
                values += [v[j] for j in seen]
            if keys:
                logits = torch.stack(keys) @ q[token] / problem.head_dim**0.5
                y[token] = logits.softmax(0) @ torch.stack(values)
            else:
                y[token] = 0
    return y


def looped_matrix(
    problem: Problem,
    params: Params,
    k: Tensor,
    w: Tensor,
    noise: Tensor,
    blocks: list[list[int]],
    mistake: str,
) -> Tensor:
    count = len(blocks)
    if problem.causal:
        summary = torch.stack([k[: tokens[0] + (mistake != "first token missing")].sum(0) for tokens in blocks])
    else:
        summary = torch.stack([k[tokens].sum(0) for tokens in blocks])
    s = ((summary @ w + noise) / (1.0 if mistake == "no temperature" else params["tau"])).exp()
    if problem.causal:
        s = s.tril(-1)
    for _ in range(params["iterations"]):
        for i in range(count):
            if s[i].any():
                s[i] = s[i] / s[i].sum()
        before = s.clone()
        for j in range(count):
            for i in range(count):
                rows = slice(0, i + 1) if problem.causal and mistake != "whole columns" else slice(0, count)
                if before[i, j] > 0:
                    s[i, j] = before[i, j] / before[rows, j].sum()
        if mistake == "one iteration":
            break
    return s


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 19),
    block=st.one_of(st.integers(1, 6), st.just("sqrt(n)")),
    kind=st.sampled_from(["sinkhorn", "sortcut"]),
    cut=st.integers(1, 3),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_loop(n: int, seed: int, causal: bool, **params: Any) -> None:
    given = setup(n, seed, causal and params["kind"] == "sinkhorn", **params)
    torch.testing.assert_close(run(*given), looped(*given), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("n", "block"), [(18, 4), (18, 1), (19, "sqrt(n)"), (7, 9)])
def test_continues_wherever_a_block_begins(n: int, block: int | str) -> None:
    """From any number of tokens, across no, one or several beginnings of blocks; W and noise are those of all N."""
    full, params, inputs = setup(n, causal=True, block=block)
    rows, state, noticed = run(full, params, inputs), CORE.state, {"key_sum": 0, "column_sums": 0}
    assert state is not None
    for query_len in range(1, n):
        problem = replace(full, query_len=query_len)
        earlier, new = (
            {**inputs.tensors(), **{name: x[:, :, tokens] for name, x in inputs.data.items()}}
            for tokens in (slice(problem.past), slice(problem.past, None))
        )
        kept = state(problem, params, **earlier)
        drawn = CORE.make_inputs(problem, params, torch.Generator().manual_seed(0)).state
        assert [(name, x.shape) for name, x in kept.items()] == [(name, x.shape) for name, x in drawn.items()]
        y, *after = CORE.reference(problem, params, **{**new, **kept})
        torch.testing.assert_close(y, rows[:, :, problem.past :], rtol=1e-9, atol=1e-11)
        if isinstance(block, int) and block < n:  # the same blocks for one token more, which begins none
            longer = replace(problem, seq_len=n + 1, query_len=1)
            whole = state(longer, params, **inputs.tensors())
            torch.testing.assert_close(after, list(whole.values())[: len(after)], rtol=1e-9, atol=1e-11)
            room = 2 * (1 + block * new_blocks(longer, params)) * 2 * 10 * 8
            assert total_bytes(whole) - room == CORE.cost(full, params, "fwd").state_bytes
        for name in noticed.keys() & kept.keys():
            wrong = CORE.reference(problem, params, **{**new, **kept, name: kept[name] + 1})[0]
            noticed[name] += not torch.allclose(wrong, y)
    assert all(noticed.values()) == (block != 9), "they decide how a later block is sorted"


@pytest.mark.parametrize("block", [1, 4, "sqrt(n)"])
def test_flops_of_steps_add_up(block: int | str) -> None:
    full, params, _ = setup(19, causal=True, block=block)
    for query_len in (1, 2, 3, 7, 18):
        problem = replace(full, query_len=query_len)
        cost, inputs = CORE.cost(problem, params, "fwd"), CORE.make_inputs(problem, params, torch.Generator())
        with torch.inference_mode(), FlopCounter() as counter:
            run(problem, params, inputs)
        assert counter.total == cost.reference_flops
        before = replace(full, seq_len=problem.past, query_len=problem.past)
        same_blocks = {**params, "block": block_length(full, params)}
        difference = CORE.cost(full, params, "fwd").flops - CORE.cost(before, same_blocks, "fwd").flops
        assert cost.flops == difference


@pytest.mark.parametrize(
    ("mistake", "causal"),
    [
        ("sorted keys as values", False),
        ("sorted keys as values", True),
        ("own block missing", False),
        ("no temperature", False),
        ("one iteration", False),
        ("first token missing", True),
        ("whole columns", True),
    ],
)
def test_the_loop_tells_mistakes(mistake: str, causal: bool) -> None:
    given = setup(23, causal=causal, block=4)
    assert (run(*given) - looped(*given)).abs().max() < 1e-10
    assert (run(*given) - looped(*given, mistake=mistake)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["sinkhorn", "sortcut"])
def test_one_block_is_softmax(kind: str) -> None:
    """The sorted block is then the block itself, and every key counted twice is every key counted once."""
    problem, params, inputs = setup(17, kind=kind)
    torch.testing.assert_close(run(problem, params, inputs), softmax(problem, {}, **inputs.data))
    problem, params, inputs = setup(17, kind=kind, block=16)
    assert (run(problem, params, inputs) - softmax(problem, {}, **inputs.data)).abs().max() > 1e-2


def test_one_causal_block_is_causal_softmax() -> None:
    problem, params, inputs = setup(17, causal=True)
    torch.testing.assert_close(run(problem, params, inputs), softmax(problem, {}, **inputs.data))


def test_a_sharp_permutation_shows_each_block_another_whole_block() -> None:
    problem, params, inputs = setup(12, block=3)
    permutation = torch.tensor([2, 0, 3, 1])
    inputs.parameters["w"].zero_()
    inputs.choices["noise"].copy_(300.0 * torch.eye(4, dtype=torch.float64)[permutation])
    tokens = torch.arange(12).view(4, 3)
    mask = torch.zeros(12, 12, dtype=torch.bool)
    for i in range(4):
        mask[3 * i : 3 * i + 3, tokens[i]] = True
        mask[3 * i : 3 * i + 3, tokens[permutation[i]]] = True
    q, k, v = inputs.data.values()
    dense = ((q @ k.mT) / 5**0.5).masked_fill(~mask, float("-inf")).softmax(-1) @ v
    torch.testing.assert_close(run(problem, params, inputs), dense)
    inputs.choices["noise"].copy_(inputs.choices["noise"].mT.clone())
    assert not torch.allclose(run(problem, params, inputs), dense), "rows and columns are not told apart"


class TestSortingMatrix:
    def matrix(self, n: int, causal: bool = False, **params: Any) -> Tensor:
        problem, resolved, inputs = setup(n, causal=causal, **params)
        keys = blocked(inputs.data["k"], block_length(problem, resolved))
        return sorting_matrix(problem, resolved, keys, inputs.parameters["w"], inputs.choices["noise"])

    def test_tends_to_doubly_stochastic(self) -> None:
        off = []
        for iterations in (1, 4, 16, 200):
            s = self.matrix(31, block=4, iterations=iterations)
            torch.testing.assert_close(s.sum(-2), torch.ones_like(s.sum(-2)))
            off.append((s.sum(-1) - 1).abs().max().item())
        assert off == sorted(off, reverse=True)
        assert off[0] > 0.05, "one round is not enough"
        assert off[-1] < 1e-3

    def test_lower_temperature_is_nearer_to_a_permutation(self) -> None:
        warm, cold = (self.matrix(32, block=4, tau=tau, iterations=100).amax(-1).mean() for tau in (0.75, 0.05))
        assert warm < 0.8
        assert cold > 0.9

    def test_causal_is_lower_triangular_and_rows_do_not_know_of_later_ones(self) -> None:
        s = self.matrix(20, causal=True, block=4)
        assert s.shape[-2:] == (4, 4)
        assert (s.triu(1) == 0).all()
        assert (s.tril() > 0).sum() == 2 * 2 * 10
        problem, params, inputs = setup(20, causal=True, block=4)
        inputs.choices["noise"][:, :, 3:] += torch.randn(2, 2, 2, 5, dtype=torch.float64)
        keys = blocked(inputs.data["k"], 4)
        other = sorting_matrix(problem, params, keys, inputs.parameters["w"], inputs.choices["noise"])
        torch.testing.assert_close(other[:, :, :2], s[:, :, :2])
        assert not torch.allclose(other[:, :, 2:], s[:, :, 2:])

    @pytest.mark.parametrize("causal", [False, True])
    def test_logits_have_variance_one(self, causal: bool) -> None:
        problem, params = Problem(4096, 64, 4, causal=causal), resolve(OPERATOR, {})
        inputs = CORE.make_inputs(problem, params, torch.Generator().manual_seed(0))
        keys = blocked(inputs.data["k"], 64)
        logits = sorting_logits(problem, keys, inputs.parameters["w"], torch.zeros_like(inputs.choices["noise"]))
        assert logits.var() == pytest.approx(0.5 if causal else 1, rel=0.2)
        assert inputs.choices["noise"].mean() == pytest.approx(0.5772, abs=0.05), "Gumbel"
        assert inputs.choices["noise"].var() == pytest.approx(1.645, abs=0.1), "Gumbel"


def test_blocks_follow_the_root_of_n() -> None:
    params = resolve(OPERATOR, {"block": "sqrt(n)"})
    assert [block_length(Problem(n, 4), params) for n in (1, 2, 16, 17, 2**20)] == [1, 2, 4, 5, 1024]
    assert [block_count(Problem(n, 4), params) for n in (1, 2, 16, 17, 2**20)] == [1, 1, 4, 4, 1024]


def test_no_token_sees_a_later_one() -> None:
    problem, params, inputs = setup(23, causal=True, block=4)
    data = {name: x.clone() for name, x in inputs.data.items()}
    for x in data.values():
        x[:, :, 14:] += 1
    changed = replace(inputs, data=data)
    before, after = run(problem, params, inputs), run(problem, params, changed)
    torch.testing.assert_close(before[:, :, :14], after[:, :, :14])
    assert (before[:, :, 14:] - after[:, :, 14:]).abs().amin() > 0
    leaking = looped(problem, params, inputs, "whole columns")[:, :, :14]
    assert (leaking - looped(problem, params, changed, "whole columns")[:, :, :14]).abs().max() > 1e-6


@pytest.mark.parametrize(("kind", "causal"), [("sinkhorn", False), ("sinkhorn", True), ("sortcut", False)])
def test_gradients(kind: str, causal: bool) -> None:
    problem, params, inputs = setup(7, causal=causal, block=3, kind=kind)

    def call(q: Tensor, k: Tensor, v: Tensor, w: Tensor) -> Tensor:
        return CORE.reference(problem, params, q, k, v, w, **inputs.choices)

    tensors = [x.requires_grad_() for x in inputs.differentiated().values()]
    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)


def test_a_sortcut_is_not_causal() -> None:
    params = resolve(OPERATOR, {"kind": "sortcut"})
    assert "not causal" in (outside_definition(OPERATOR, Problem(9, 4, causal=True), params, "core") or "")


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    block=st.one_of(st.integers(1, 9), st.just("sqrt(n)")),
    kind=st.sampled_from(["sinkhorn", "sortcut"]),
    cut=st.integers(1, 4),
    causal=st.booleans(),
)
def test_flops_are_the_required_products(n: int, causal: bool, **params: Any) -> None:
    causal = causal and params["kind"] == "sinkhorn"
    problem, params = Problem(n, 12, 2, batch=3, causal=causal), resolve(OPERATOR, params)
    b = block_length(problem, params)
    sizes = [min(b, n - start) for start in range(0, n, b)]
    allowed = [(i, j) for i in range(len(sizes)) for j in range(len(sizes)) if j < i or not causal]
    made = min(params["cut"], len(sizes)) if params["kind"] == "sortcut" else len(sizes)
    mixed = sum(sizes[j] for i, j in allowed if i < made)
    seen = 0
    for i, size in enumerate(sizes):
        for token in range(size):
            if params["kind"] == "sortcut":
                seen += made * b
            else:
                seen += (b if i or not causal else 0) + (token + 1 if causal else size)
    found = CORE.cost(problem, params, "fwd")
    assert found.flops == 3 * 2 * 2 * 6 * (len(allowed) + 2 * mixed + 2 * seen)
    assert found.reference_flops <= (8 if causal else 2) * found.flops
    if n % b == 0 and not causal:
        assert found.reference_flops == found.flops
