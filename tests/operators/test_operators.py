"""What holds for every operator, kind and scope in the registry."""

from __future__ import annotations

import inspect
import itertools
import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attnbench.measure.worker.fake_memory import output_like, predict_on_meta, run
from attnbench.operator import Growth
from attnbench.problem import MODES, Problem
from tests.operators.by_operator import by_operator
from tests.operators.flops import of_both_passes
from tests.variants import Variant, variants

NAMES = [
    "softmax",
    "softmax_pool",
    "mla",
    "non_local",
    "identity",
    "local",
    "sliding_window",
    "neighborhood",
    "strided",
    "global_tokens",
    "sparse_transformer",
    "longformer",
    "big_bird",
    "swin_window",
    "axial",
    "criss_cross",
    "dsa",
    "reformer",
    "sinkhorn",
    "moba",
    "nsa",
    "linformer",
    "compressed",
    "kao_kv",
    "kao_qkv",
    "nystromformer",
    "external_attention",
    "efficient",
    "based",
    "linear_transformer",
    "rfa",
    "retention",
    "gla",
    "mamba2",
    "gated_delta_net",
    "kda",
    "rwkv7",
    "performer",
    "synthesizer",
    "fnet",
    "hyena",
    "gmlp",
    "mlp_mixer",
    "pool",
    "lambda_layer",
    "hamburger",
]

NOT_THE_GRADIENT_OF_THE_OUTPUT = {
    "hamburger": "the one-step gradient leaves the first T iterations out (Geng 2021, sec. 3.3)",
}

each_variant = by_operator((variant,) for variant in variants())


def test_every_operator_of_the_field_is_here() -> None:
    assert sorted({v.name for v in variants()}) == sorted(NAMES)


@each_variant
def test_first_line_states_the_maths(variant: Variant) -> None:
    first = (inspect.getmodule(variant.operator.forms["core"].cost).__doc__ or "").splitlines()[0]
    assert len(first) > 20
    assert variant.operator.paper.url.startswith("http")


@each_variant
def test_output_is_finite_and_repeats(variant: Variant) -> None:
    problem = variant.problem()
    inputs = variant.inputs(problem)
    first = variant.form.reference(problem, variant.params, **inputs.tensors())
    second = variant.form.reference(problem, variant.params, **inputs.tensors())
    assert first.isfinite().all()
    assert first.dtype == torch.float32
    assert torch.equal(first, second), "a call changed state"


@each_variant
def test_half_precision_runs_where_it_is_claimed(variant: Variant) -> None:
    for dtype in ("bfloat16", "float16"):
        problem = variant.problem(dtype=dtype)
        if not variant.defined(problem):
            continue
        inputs = variant.inputs(problem)
        output = variant.form.reference(problem, variant.params, **inputs.tensors())
        assert output.dtype == getattr(torch, dtype)
        assert output.isfinite().all()


def gradients(variant: Variant, problem: Problem) -> dict[str, torch.Tensor]:
    inputs = variant.inputs(problem)
    cotangent = output_like(variant.form.reference, problem, variant.params, inputs)
    result = run(variant.form.reference, problem, variant.params, inputs, cotangent, within=nullcontext())
    return dict(zip(inputs.differentiated(), result[1], strict=True))


@each_variant
def test_every_input_and_parameter_has_a_finite_gradient(variant: Variant) -> None:
    for name, gradient in gradients(variant, variant.problem()).items():
        assert gradient.isfinite().all(), name


@each_variant
def test_gradcheck(variant: Variant) -> None:
    if variant.name in NOT_THE_GRADIENT_OF_THE_OUTPUT and variant.params.get("gradient") != "bptt":
        pytest.skip(NOT_THE_GRADIENT_OF_THE_OUTPUT[variant.name])
    problem = variant.problem(side=(3, 3), channels=8, batch=1, dtype="float64")
    inputs = variant.inputs(problem, seed=1)
    names = list(inputs.differentiated())

    def call(*tensors: torch.Tensor) -> torch.Tensor:
        return variant.form.reference(
            problem, variant.params, **dict(zip(names, tensors, strict=True)), **inputs.choices
        )

    tensors = [t.requires_grad_() for t in inputs.differentiated().values()]
    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)


COUNTED = (((9, 15), 4), ((5, 7), 4), ((1, 1), 16), ((1, 2), 16))
"""Sides and heads: odd ones, one number, and one channel in each head."""


def counted(variant: Variant, problem: Problem) -> list[int]:
    """What is counted on the reference, on real tensors. Once for each variant by torch, too."""
    by_torch = FlopCounterMode(display=False) if problem.seq_len == 35 else None
    flops = of_both_passes(variant.form, problem, variant.params, variant.inputs(problem), by_torch)
    if by_torch:
        assert by_torch.get_total_flops() == flops[-1]
    return flops


@each_variant
def test_reference_flops_are_what_torch_counts(variant: Variant) -> None:
    for (side, heads), causal in itertools.product(COUNTED, (False, True)):
        problem = variant.problem(side, causal=causal, heads=heads)
        if variant.defined(problem):
            costs = [variant.form.cost(problem, variant.params, mode) for mode in MODES]
            stated = [cost.reference_flops - sum(cost.uncounted.values()) for cost in costs]
            assert stated == counted(variant, problem), problem
            assert all(cost.bytes_required >= 0 and cost.flops >= 0 for cost in costs)


@each_variant
def test_no_token_sees_a_later_one(variant: Variant) -> None:
    problem = variant.problem(causal=True, dtype="float64")
    if not variant.defined(problem):
        pytest.skip(f"{variant} has no causal form")
    first_changed = 20
    assert not earlier_outputs_changed(variant, problem, first_changed)
    full = replace(problem, causal=False)
    if variant.defined(full) and variant.name != "identity":
        assert earlier_outputs_changed(variant, full, first_changed), "the check sees nothing"


def earlier_outputs_changed(variant: Variant, problem: Problem, first_changed: int) -> bool:
    """Whether changing the data of tokens ≥ first_changed changes an output before it."""
    inputs, other = variant.inputs(problem), variant.inputs(problem, seed=7)
    for name, tensor in other.data.items():  # tokens are the last but one axis of [B, H, N, D] and [B, N, C]
        tensor[..., :first_changed, :] = inputs.data[name][..., :first_changed, :]
    changed = replace(inputs, data=other.data)
    before, after = (
        variant.form.reference(problem, variant.params, **i.tensors())[..., :first_changed, :]
        for i in (inputs, changed)
    )
    return not torch.allclose(before, after, rtol=1e-9, atol=1e-12)


EXPONENT: dict[Growth, float] = {"1": 0, "n": 1, "n^1.5": 1.5, "n^2": 2, "n^3": 3, "log n": 0.07, "n log n": 1.07}


LONGER = {"sinkhorn-sortcut-64-core": 8, "moba-inside-core": 8}
"""Sides so many times longer for FLOPs: at a million tokens the square, (N/b)²·D or N²·D/b, is as much as the rest."""

CHUNK_AFTER_CHUNK = 32
"""Sides so many times shorter for the memory of what goes from chunk to chunk in a loop: for time, as shapes alone of a
thousand steps take seconds."""

TILE_AFTER_TILE = {"moba": 32, "nsa": 32, "dsa": 32}
"""The same for operators that go from tile to tile of queries, with as many more samples: a tile has a least size."""

SMALLER = {"dsa": {"top_k": 8, "index_heads": 1}, "moba": {"block": 64}}
"""Params with which few of so many tokens are at the ends, where an operator is another."""


def times_shorter(variant: Variant) -> int:
    loops = variant.name in ("gated_delta_net", "kda", "rwkv7")
    return CHUNK_AFTER_CHUNK if loops else TILE_AFTER_TILE.get(variant.name, 1)


def slope(small: float, large: float) -> float:
    return math.log(large / small) / math.log(4)


@each_variant
def test_grows_as_stated_at_a_million_tokens(variant: Variant) -> None:
    """From N = 2²⁰ to 2²²: FLOPs from `cost`, peak memory from shapes alone; √N is whole at both."""
    variant = replace(variant, params={**variant.params, **SMALLER.get(variant.name, {})})
    stated = variant.operator.complexity(variant.params)
    shorter = times_shorter(variant)
    batch = TILE_AFTER_TILE.get(variant.name, 1)
    sizes = [variant.problem((n // shorter,) * 2, channels=64, heads=4, batch=batch) for n in (1024, 2048)]
    longer = LONGER.get(str(variant), 1)
    sides = [(side * longer, side * longer) for side in (1024, 2048)]
    costs = [variant.form.cost(variant.problem(s, channels=64, heads=4), variant.params, "fwd") for s in sides]
    flops = [found.reference_flops or found.elementwise for found in costs]  # what has no products adds
    exact = [found.flops or found.elementwise for found in costs]
    peaks = [predict_on_meta(variant.form, p, variant.params, "fwd").peak_bytes for p in sizes]
    if variant.scope == "core" and stated.time != "0":
        assert slope(*exact) == pytest.approx(EXPONENT[stated.time], abs=0.05), "time"
        assert slope(*flops) == pytest.approx(EXPONENT[stated.time], abs=0.05), "reference time"
    if variant.scope == "core" and stated.memory not in ("0", "1"):
        assert slope(*peaks) == pytest.approx(EXPONENT[stated.memory], abs=0.05), "memory"
    if stated.memory in ("0", "1"):
        assert variant.scope == "layer" or slope(*(p + 1 for p in peaks)) < 0.05, "memory"
