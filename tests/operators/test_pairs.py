"""On which tokens an output depends, as each operator states it: from which of them a gradient comes back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attnbench.operator import Inputs, Pairs
from attnbench.problem import Problem
from tests.operators.by_operator import by_operator
from tests.operators.test_operators import NOT_THE_GRADIENT_OF_THE_OUTPUT
from tests.variants import Variant, variants

SIDE = 20
DRAWS = 20
ALIKE = 4
"""So many draws with the same pairs, fewer than all, are enough: what chooses by contents chooses others in each."""
NARROW: dict[str, dict[str, Any]] = {
    "local": {"window": 24},
    "sliding_window": {"window": 24},
    "longformer": {"window": 24},
    "big_bird": {"block": 8},
    "dsa": {"top_k": 180},
    "moba": {"block": 16, "top_k": 3},
    "nsa": {"length": 16, "step": 8, "select": 16, "blocks": 4, "window": 24},
}
"""Params with which a window ends well before so many tokens."""

INSIDE = ("hashing", "selection")
"""Params by which a choice is made in the call, from the data."""


TRANSFORMED = {"hyena": 1e-12}
"""Operators whose Fourier transforms leave rounding errors where a gradient is 0, and what these stay below."""


def cases() -> Iterator[tuple[Variant, bool]]:
    """Every kind of every operator, full and causal."""
    before: list[Variant] = []
    for variant in variants():
        params = {**variant.params, **NARROW.get(variant.name, {})}
        if variant.name in NOT_THE_GRADIENT_OF_THE_OUTPUT and "gradient" in params:
            params["gradient"] = "bptt"
        params.update((name, "inside") for name in INSIDE if name in params)
        variant = Variant(variant.name, variant.operator, params, variant.scope)
        if variant in before:
            continue
        before.append(variant)
        for causal in (False, True):
            if variant.scope == "core" and variant.defined(problem_of(variant, causal)):
                yield variant, causal


def problem_of(variant: Variant, causal: bool, side: int = SIDE) -> Problem:
    return variant.problem((side, side), batch=1, dtype="float64", causal=causal)


def dependences(variant: Variant, problem: Problem, inputs: Inputs) -> Tensor:
    """Whether the outputs of the first, the middle and the last token depend on each token: bool, [3, N]."""
    data = {name: tensor.requires_grad_() for name, tensor in inputs.data.items()}
    output = variant.form.reference(problem, variant.params, **{**inputs.tensors(), **data})
    rows = by_token(output, problem)[[0, problem.seq_len // 2, problem.seq_len - 1]]
    tokens = [tensor for tensor in data.values() if by_token(tensor, problem).shape[0] == problem.seq_len]
    depends = torch.zeros(3, problem.seq_len, dtype=torch.bool)
    for row, seen in zip(rows, depends, strict=True):
        cotangent = torch.randn(row.shape, generator=torch.Generator().manual_seed(0), dtype=row.dtype)
        for gradient in torch.autograd.grad(row, tokens, cotangent, retain_graph=True, allow_unused=True):
            if gradient is not None:
                seen |= (by_token(gradient, problem).abs() > TRANSFORMED.get(variant.name, 0)).any(dim=1)
    return depends


def by_token(tensor: Tensor, problem: Problem) -> Tensor:
    """[tokens, numbers of each], of a map [B, C, h, w] or of tokens [..., N, D]."""
    if problem.height is not None and tensor.shape[-2:] == (problem.height, problem.width):
        return tensor.flatten(2).movedim(-1, 0).flatten(1)
    return tensor.movedim(-2, 0).flatten(1)


def allowed(problem: Problem) -> Tensor:
    """What a token may see: itself and those before it where the problem is causal, else all. [3, N]."""
    n = problem.seq_len
    rows = torch.tensor([0, n // 2, n - 1]).view(-1, 1)
    return torch.arange(n) <= (rows if problem.causal else torch.full_like(rows, n))


def observed(variant: Variant, problem: Problem, draws: int = DRAWS) -> Pairs:
    """The pairs of an operator, from draws of its data with the same parameters and choices."""
    same = variant.inputs(problem)
    may = allowed(problem)
    union = torch.zeros_like(may)
    seen: set[bytes] = set()
    for seed in range(draws):
        drawn = variant.inputs(problem, seed)
        contents = {name: tensor for name, tensor in drawn.choices.items() if name.startswith("index_")}
        inputs = replace(same, data=drawn.data, choices={**same.choices, **contents})
        depends = dependences(variant, problem, inputs)
        assert not (depends & ~may).any(), "an output depends on a token that it may not see"
        if depends.equal(may):
            return "all"
        union |= depends
        if union.equal(may):
            return "chosen"
        seen.add(depends.numpy().tobytes())
        if len(seen) == 1 and seed + 1 == ALIKE:
            break
    return "fixed"


@by_operator(cases())
def test_an_output_depends_on_the_stated_tokens(variant: Variant, causal: bool) -> None:
    assert observed(variant, problem_of(variant, causal)) == variant.operator.pairs(variant.params, causal)


BEYOND = {
    "reformer": (24, 8),
    "local": (24, 1),
    "longformer": (24, 1),
    "big_bird": (32, 1),
    "moba": (40, 2),
    "nsa": (48, 1),
    "dsa": (48, 2),
    "sliding_window": (65, 1),
}
"""Of operators with which a token may see SIDE² others by default: sides of a square of more tokens than it then may,
and heads, each of which chooses."""


def default_cases() -> Iterator[tuple[Variant, bool]]:
    """Of each operator the first kind that has the form: all of them are above."""
    before: set[tuple[str, bool]] = set()
    for variant, causal in cases():
        if variant.name in BEYOND and (variant.name, causal) not in before:
            before.add((variant.name, causal))
            own = {name: variant.operator.params[name].default for name in NARROW.get(variant.name, {})}
            yield Variant(variant.name, variant.operator, {**variant.params, **own}, variant.scope), causal


@by_operator(default_cases())
def test_so_it_does_with_default_params(variant: Variant, causal: bool) -> None:
    """One draw of fixed positions: what is not seen there, other draws do not see either, as above."""
    side, heads = BEYOND[variant.name]
    problem = variant.problem((side, side), batch=1, heads=heads, channels=4 * heads, dtype="float64", causal=causal)
    stated = variant.operator.pairs(variant.params, causal)
    assert observed(variant, problem, draws=1 if stated == "fixed" else DRAWS) == stated
