"""What holds for every operator that continues from a state (query_len < seq_len) or shares keys (kv_heads < heads)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.inputs import KEYS_AND_VALUES
from attnbench.measure.worker.fake_memory import predict_on_meta, total_bytes
from attnbench.measure.worker.prepared_cell import as_outputs
from attnbench.operator import Inputs
from attnbench.problem import MODES, Cell, Mode, Params, Problem
from attnbench.registry import device_type_of, why_not
from tests.operators.by_operator import by_operator
from tests.operators.flops import FlopCounter
from tests.variants import Variant, variants

TOKENS = (5, 7)
"""Odd: 35 tokens."""

NEW = (1, 3, 34)
HEADS = (4, 2, 1)


def continuing() -> list[tuple[Variant, int]]:
    """Every variant that continues, with every number of kv_heads that it takes."""
    return [
        (variant, kv_heads)
        for variant in variants()
        for kv_heads in HEADS
        if variant.defined(variant.problem(TOKENS, causal=True, kv_heads=kv_heads, query_len=1))
    ]


def sharing() -> list[tuple[Variant, bool]]:
    """Every variant that shares keys, in full form and causal."""
    return [
        (variant, causal)
        for variant in variants()
        for causal in (False, True)
        if variant.defined(variant.problem(TOKENS, causal=causal, kv_heads=2))
    ]


def part(inputs: Inputs, tokens: slice) -> dict[str, Tensor]:
    """The inputs of some tokens."""
    by_token = {**inputs.data, **{name: inputs.choices[name] for name in BY_TOKEN if name in inputs.choices}}
    indexer = {name: inputs.choices[name][:, tokens].clone() for name in INDEXER if name in inputs.choices}
    data = {name: of(tokens, name, tensor).clone() for name, tensor in by_token.items()}
    return {**inputs.tensors(), **indexer, **data}


BY_TOKEN = ("chosen",)
"""Choices of every token, [B, H or Hk, N, …]."""

INDEXER = ("index_q", "index_k", "index_weights")
"""The same, [B, N, …]."""


def of(tokens: slice, name: str, tensor: Tensor) -> Tensor:
    """Some tokens of data: the last axis of a gate, [B, H, N], else the last but one."""
    return tensor[..., tokens] if name == "gate" else tensor[..., tokens, :]


def call(variant: Variant, problem: Problem, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    return as_outputs(variant.form.reference(problem, variant.params, **tensors), problem)


def state_of(variant: Variant, problem: Problem, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    assert variant.form.state is not None
    return variant.form.state(problem, variant.params, **tensors)


def step(problem: Problem, query_len: int) -> Problem:
    return replace(problem, query_len=query_len)


def test_every_causal_operator_continues_or_says_why_not() -> None:
    for variant in variants():
        operator = variant.operator
        if operator.causal is True:
            assert operator.continues is True or len(operator.continues) > 30, variant.name
            assert (operator.continues is True) == (variant.form.state is not None), variant
        assert operator.grouped is True or len(operator.grouped) > 20, variant.name
    assert len({variant.name for variant in variants() if variant.operator.continues is True}) >= 2


@by_operator(continuing())
def test_the_last_rows_follow_from_the_state(variant: Variant, kv_heads: int) -> None:
    """The last Q rows of the causal form of all N tokens, from a state that the form made of the first N − Q."""
    full = variant.problem(TOKENS, causal=True, kv_heads=kv_heads, dtype="float64")
    inputs, others = variant.inputs(full), variant.inputs(full, seed=5)
    rows = call(variant, full, inputs.tensors())[0]
    differs = []
    for query_len in NEW:
        problem = step(full, query_len)
        earlier, new = part(inputs, slice(0, problem.past)), part(inputs, slice(problem.past, None))
        y, *after = call(variant, problem, {**new, **state_of(variant, problem, earlier)})
        torch.testing.assert_close(y, rows[..., problem.past :, :], rtol=1e-9, atol=1e-11)
        if after:  # of fixed size: what the form itself leaves after all N
            longer = step(replace(full, seq_len=full.seq_len + 1), 1)
            whole = state_of(variant, longer, part(inputs, slice(0, None)))
            fixed = {name: tensor for name, tensor in whole.items() if not name.endswith("_cache")}
            torch.testing.assert_close(dict(zip(fixed, after, strict=True)), fixed, rtol=1e-9, atol=1e-11)
        for name, tensor in others.data.items():  # the last token that was kept is another one
            of(slice(-1, None), name, earlier[name])[:] = of(slice(1), name, tensor)
        wrong = call(variant, problem, {**new, **state_of(variant, problem, earlier)})[0]
        differs.append(not torch.allclose(wrong, y, rtol=1e-6, atol=1e-9))
    assert any(differs), "the check sees no state"


@by_operator(continuing())
def test_a_second_call_answers_the_same(variant: Variant, kv_heads: int) -> None:
    """A cache's room is filled with the same tokens every time; a state of fixed size is not changed but returned."""
    problem = variant.problem(TOKENS, causal=True, kv_heads=kv_heads, query_len=3)
    inputs = variant.inputs(problem)
    drawn = {name: tensor.clone() for name, tensor in inputs.state.items()}
    first, second = (call(variant, problem, inputs.tensors()) for _ in range(2))
    assert all(map(torch.equal, first, second))
    if variant.scope == "core":  # members of a block share the memory of equal states
        torch.testing.assert_close(inputs.state, drawn, rtol=0, atol=0)
    assert first[0].shape[-2] == 3
    assert first[0].isfinite().all()


@by_operator(continuing())
def test_flops_are_what_torch_counts_of_a_step(variant: Variant, kv_heads: int) -> None:
    for tokens, query_len in (((5, 7), 1), ((9, 15), 134), ((9, 15), 70), ((1, 2), 1)):
        problem = variant.problem(tokens, causal=True, kv_heads=kv_heads, query_len=query_len)
        if not variant.defined(problem):
            continue
        cost, inputs = variant.form.cost(problem, variant.params, "fwd"), variant.inputs(problem)
        with torch.no_grad(), FlopCounter() as counter:  # in inference_mode matrix products come whole
            call(variant, problem, inputs.tensors())
        assert cost.reference_flops - sum(cost.uncounted.values()) == counter.total, problem


@by_operator(continuing())
def test_every_impl_that_runs_here_continues_as_the_reference(variant: Variant, kv_heads: int) -> None:
    names = [name for name in variant.form.impls if device_type_of(name) is None]
    for name, query_len in itertools.product(names, (1, 3, 34, 35)):
        problem = variant.problem(TOKENS, causal=True, kv_heads=kv_heads, query_len=query_len, dtype="float64")
        cell = Cell(variant.name, name, variant.scope, "fwd", problem, variant.params)
        if why_not(variant.operator, cell, "cpu") is None:
            tensors = variant.inputs(problem).tensors()
            theirs = as_outputs(variant.form.impls[name].load()(problem, variant.params, **tensors), problem)
            torch.testing.assert_close(theirs, call(variant, problem, tensors), rtol=1e-9, atol=1e-11)


NOT_THE_DIFFERENCE = {
    "hyena": "a step is a sum over all tokens, a prefill is made by transforms",
    "mla-expanded": "a step expands the latents of all tokens before once more",
    "strided-sqrt(n)-all": "its stride follows √N: the prefill of fewer tokens has another pattern",
    "sparse_transformer": "its stride follows √N: the prefill of fewer tokens has another pattern",
    "synthesizer-factorized_dense": "the lengths of α and β follow the square root of the number of tokens",
}
"""Variants of which a step's FLOPs are not the difference of two prefills, with the reason."""


@by_operator(continuing())
def test_a_step_costs_the_difference_of_two_prefills(variant: Variant, kv_heads: int) -> None:
    full = variant.problem((9, 15), causal=True, kv_heads=kv_heads)
    for query_len in (1, 3, 134):
        problem = step(full, query_len)
        if not variant.defined(problem):
            continue
        before, after, now = (variant.form.cost(p, variant.params, "fwd") for p in (problem.before, full, problem))
        assert now.bytes_again == 0, "what is kept is read once"
        if not str(variant).startswith(tuple(NOT_THE_DIFFERENCE)):
            assert now.flops == after.flops - before.flops, problem


@by_operator(continuing())
def test_state_bytes_are_those_of_the_tensors(variant: Variant, kv_heads: int) -> None:
    """Of two steps after the same tokens the states differ in the room for new ones alone, which is taken away."""
    tokens = 43  # √43, √46 and √49 are 7, rounded
    held = []
    for query_len in (3, 6):
        problem = variant.problem((1, tokens + query_len), causal=True, kv_heads=kv_heads, query_len=query_len)
        if not variant.defined(problem):
            pytest.skip("not defined at these sizes")
        held.append(total_bytes(variant.inputs(problem).state))
    without_room = held[0] - (held[1] - held[0])
    before = variant.problem((1, tokens), causal=True, kv_heads=kv_heads)
    cost = variant.form.cost(before, variant.params, "fwd")
    assert cost.state_bytes == without_room
    now = variant.form.cost(problem, variant.params, "fwd")
    assert now.bytes_required > 0


KEEPS_EVERY_TOKEN = ("softmax", "mla", "local", "sliding_window", "synthesizer-dense")
"""Of which, at few tokens, a step reads a cache of all tokens before and adds the new ones."""


@by_operator(continuing())
def test_a_step_moves_the_difference_of_two_prefills_and_its_state(variant: Variant, kv_heads: int) -> None:
    """Parameters cancel in the difference, and are read once more; a state of fixed size is read and written whole."""
    full = variant.problem((9, 15), causal=True, kv_heads=kv_heads)
    problem = step(full, 3)
    before, after, now = (variant.form.cost(p, variant.params, "fwd") for p in (problem.before, full, problem))
    inputs = variant.inputs(problem)
    returns_its_state = len(call(variant, problem, inputs.tensors())) > len(inputs.state)
    if not (returns_its_state or str(variant).startswith(KEEPS_EVERY_TOKEN)):
        pytest.skip("a step reads or adds a part of its cache")
    assert before.state_bytes is not None
    assert after.state_bytes is not None
    fixed = total_bytes({**inputs.parameters, **inputs.choices})
    if variant.name == "synthesizer":  # W₂ has a column for each token: the difference of two prefills has the new ones
        fixed -= total_bytes(inputs.parameters) - total_bytes(variant.inputs(problem.before).parameters)
    moved = after.bytes_required - before.bytes_required + fixed
    state = before.state_bytes + after.state_bytes if returns_its_state else after.state_bytes
    assert now.bytes_required == moved + state
    assert (before.state_bytes == after.state_bytes) == returns_its_state, "a fixed size, or a cache"


HEAD_AXIS = {
    **dict.fromkeys(KEYS_AND_VALUES, 1),
    "gate": 1,
    "chosen": 1,
    "w_gate": -1,
    "b_gate": -1,
    "conv_k": 0,
    "gamma_k": 0,
    "beta_k": 0,
    "conv_v": 0,
    "e": 0,
    "f": 0,
}
"""Where tensors have the heads of keys, if they have them."""


def weight_of(name: str) -> str:
    """The tensor that a layer's weight projects to, of axial's layers in turn that of one axis; "" of another name."""
    return name.removesuffix("_rows").removesuffix("_columns").removeprefix("w_") if name.startswith("w_") else ""


def widened(variant: Variant, inputs: Inputs, problem: Problem) -> dict[str, Tensor]:
    """The inputs with every head of keys and values repeated for each query head that reads it."""
    tensors = inputs.tensors()
    for name, axis in HEAD_AXIS.items():
        if name in tensors and tensors[name].shape[axis] == problem.kv_heads:
            tensors[name] = tensors[name].repeat_interleave(problem.group, dim=axis)
    for name in tensors:
        if weight_of(name) in KEYS_AND_VALUES:
            by_head = tensors[name].unflatten(-1, (problem.kv_heads, -1))
            tensors[name] = by_head.repeat_interleave(problem.group, dim=-2).flatten(-2)
    return tensors


@by_operator(sharing())
def test_shared_keys_are_repeated_ones(variant: Variant, causal: bool) -> None:
    problem = variant.problem(TOKENS, causal=causal, kv_heads=2, dtype="float64")
    inputs = variant.inputs(problem)
    ours = call(variant, problem, inputs.tensors())[0]
    every = replace(problem, kv_heads=problem.heads)
    theirs = call(variant, every, widened(variant, inputs, problem))[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    tensors = widened(variant, inputs, problem)
    for name in tensors:  # heads dealt in turn, not in groups, are another operator
        if name == "v" or weight_of(name) == "v":
            dim = 1 if name == "v" else -1
            tensors[name] = tensors[name].roll(tensors[name].shape[dim] // problem.heads, dims=dim)
    assert not torch.allclose(call(variant, every, tensors)[0], ours), "the check sees no heads"


@by_operator(sharing())
def test_flops_of_shared_keys_are_what_torch_counts(variant: Variant, causal: bool) -> None:
    """Of both modes: a backward pass has a forward one before it."""
    for tokens in ((5, 7), (9, 15), (1, 1)):
        problem = variant.problem(tokens, causal=causal, kv_heads=2)
        if not variant.defined(problem):
            continue
        inputs = variant.inputs(problem)
        wanted = {name: tensor.requires_grad_() for name, tensor in inputs.differentiated().items()}
        flops = []
        with FlopCounter() as counter:
            (y,) = call(variant, problem, {**inputs.tensors(), **wanted})
            flops.append(counter.total)
            gradients = torch.autograd.grad(y, list(wanted.values()), torch.ones_like(y))
            flops.append(counter.total)
        assert [g.shape for g in gradients] == [t.shape for t in wanted.values()]
        costs = [variant.form.cost(problem, variant.params, mode) for mode in MODES]
        assert flops == [cost.reference_flops - sum(cost.uncounted.values()) for cost in costs], problem


@by_operator(case for case in sharing() if case[0].scope == "core")
def test_shared_keys_take_less_memory_than_repeated_ones(variant: Variant, causal: bool) -> None:
    """No more than keys of every query head's own, which are not repeated but inputs, and less than repeating them."""
    problem = variant.problem((8, 32), causal=causal, kv_heads=1, batch=1, channels=64)
    every = replace(problem, kv_heads=problem.heads)

    def repeating(given: Problem, params: Params, **tensors: Tensor) -> Any:
        return variant.form.reference(every, params, **widened(variant, Inputs(tensors), problem))

    modes: tuple[Mode, ...] = ("fwd", "fwd_bwd") if causal else ("fwd",)
    for mode in modes:
        ours, own, repeated = (
            predict_on_meta(form, shape, variant.params, mode).peak_bytes
            for form, shape in (
                (variant.form, problem),
                (variant.form, every),
                (replace(variant.form, reference=repeating), problem),
            )
        )
        assert ours <= own, mode
        assert own < repeated or (mode == "fwd_bwd" and variant.name in GATHERED and own == repeated), mode


GATHERED = ("based", "moba")
"""Operators whose backward holds what was made of the keys, and no longer the keys themselves."""
