"""The check at sizes where gradients cancel: one token, one channel of a head, images of one pixel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attnbench.measure.device.cpu import DEVICE as CPU
from attnbench.measure.protocol import Forecast
from attnbench.measure.worker import checking, correctness, error_bound
from attnbench.measure.worker.prepared_cell import Subject, subject_of
from attnbench.problem import MODES, Cell, Dtype, Mode, Params, Problem
from attnbench.registry import why_not
from tests.measuring import member
from tests.variants import Variant, sources, variants

DTYPES: tuple[Dtype, ...] = ("float64", "float32", "bfloat16")

FIRST = {variant.name: variant for variant in reversed(variants()) if variant.scope == "layer"}
"""By operator the layer of its default choices."""


def tiny(variant: Variant) -> list[Problem]:
    """One token, in a batch too; one number; several tokens of one channel; of images a row and more, else causal."""
    shapes = [((1, 1), 8, 4, 1), ((1, 5), 4, 4, 1), ((1, 1), 8, 4, 3), ((1, 1), 1, 1, 1)]
    problems = [variant.problem(side, channels=c, heads=h, batch=b) for side, c, h, b in shapes]
    if "sequence" in variant.operator.domains:
        return list(dict.fromkeys([*problems, *(replace(p, causal=True) for p in problems[:2])]))
    return [*problems, variant.problem((2, 3), channels=4, heads=4, batch=1)]


def checked_when_timed(impl: str, problem: Problem) -> bool:
    """Whether its answers are checked as in timed calls: in bfloat16, whose roundings are largest, but of the batch; in
    float32 where several tokens have one channel, and of impls.
    """
    if problem.dtype == "bfloat16":
        return problem.batch == 1 or impl != "reference"
    return problem.dtype == "float32" and (problem.seq_len > 1 or impl != "reference")


def of(variant: Variant, problem: Problem, mode: Mode, impl: str = "reference") -> Subject:
    cell = Cell(variant.name, impl, variant.scope, mode, problem, variant.params)
    return subject_of(cell, sources()[variant.name], CPU, 2**32, Forecast())


def cells(variant: Variant) -> Iterator[tuple[str, Mode, Problem]]:
    """In bfloat16, whose roundings are largest; a core also in float32, where one token is not causal as well, and at
    the two smallest of either kind in float64, which is what they are compared with. A backward pass has a forward one
    before it: impls alone are tried without. The layer of another choice has the projections of the first one: it is
    neither causal here nor batched.
    """
    every = tiny(variant)
    if variant.scope == "layer" and variant is not FIRST[variant.name]:
        every = [problem for problem in every[:4] if problem.batch == 1]
    unbatched = [p for p in every if p.batch == 1 and (p.seq_len > 1 or p.causal is every[0].causal)]
    by_dtype: list[tuple[Dtype, list[Problem]]] = [("bfloat16", every)]
    if variant.scope == "core":
        by_dtype += [("float32", unbatched), ("float64", [every[1], every[3]])]
    for dtype, problems in by_dtype:
        for problem in problems:
            for impl in ("reference", *variant.form.impls):
                for mode in MODES if dtype == "bfloat16" and impl != "reference" else ("fwd_bwd",):
                    cell = Cell(variant.name, impl, variant.scope, mode, problem.with_dtype(dtype), variant.params)
                    if why_not(variant.operator, cell, "cpu") is None:
                        yield impl, mode, cell.problem


@pytest.mark.parametrize("variant", variants(), ids=str)
def test_what_is_right_passes(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every impl that runs here, in a check and as it is timed; and what is allowed is never more than the ceiling,
    whatever it is a share of.
    """
    torch.set_num_threads(1)
    monkeypatch.setattr(checking, "TRIALS", ((math.inf, 1),))  # nobody asks which outputs follow a write
    for impl, mode, problem in cells(variant):
        subject = of(variant, problem, mode, impl)
        checked = checking.check_impl(subject).checked
        if checked_when_timed(impl, problem):
            member(subject, checked.tolerance).finish()
        factor = variant.operator.tolerance[0] if variant.operator.tolerance else 1.0
        assert checked.relative_error <= checked.tolerance <= factor * error_bound.CEILING[problem.dtype] * (1 + 1e-12)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_a_layer_norm_of_two_channels_is_refused_with_the_reason(channels: int) -> None:
    for variant in variants():
        if variant.name in ("gmlp", "mlp_mixer"):
            halved = (variant.name, variant.scope) == ("gmlp", "core")
            narrow = channels < 3 or (halved and channels < 6)
            assert variant.defined(variant.problem(channels=channels, heads=1)) is not narrow


def with_gradient(subject: Subject, name: str, excess: float) -> Subject:
    """The reference, its gradient of one tensor off by so much for every 1 of the cotangent."""
    reference = subject.form.reference

    def call(problem: Problem, params: Params, **tensors: Tensor) -> Tensor:
        x = tensors[name]
        nothing = x.reshape(-1)[:1].sum() - x.detach().reshape(-1)[:1].sum()
        output: Tensor = reference(problem, params, **tensors)
        return output + excess * nothing

    return replace(subject, call=call, cell=replace(subject.cell, impl="off"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "tensor", "scope"),
    [("softmax", "q", "core"), ("performer", "k", "core"), ("linformer", "q", "core"), ("rfa", "q", "core"),
     ("kao_kv", "q", "core"), ("softmax", "w_q", "layer")],
)  # fmt: skip
def test_a_gradient_that_should_be_zero_and_is_not_is_wrong(name: str, tensor: str, scope: str, dtype: Dtype) -> None:
    variant = next(v for v in variants() if (v.name, v.scope) == (name, scope))
    problem = variant.problem((1, 1), channels=16, heads=4, batch=1, dtype=dtype)
    right = of(variant, problem, "fwd_bwd")
    checking.check_impl(with_gradient(right, tensor, 0.0))
    excess = {"float64": 1e-9, "float32": 1e-3, "bfloat16": 1.0}[dtype]
    with pytest.raises(correctness.Wrong, match=f"the gradient of {tensor}"):
        checking.check_impl(with_gradient(right, tensor, excess))


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize(("tokens", "channels", "heads"), [(64, 32, 2), (256, 256, 2), (512, 128, 4)])
@pytest.mark.parametrize("name", ["softmax", "performer"])
def test_the_terms_are_of_little_account_where_nothing_cancels(
    name: str, tokens: int, channels: int, heads: int, dtype: Dtype
) -> None:
    """At ordinary sizes a bound is at most three times what it would be without them, and a share of the truth."""
    torch.set_num_threads(1)
    variant = next(v for v in variants() if v.name == name)
    subject = of(variant, Problem(tokens, channels, heads, dtype=dtype), "fwd_bwd")
    problem, inputs, reference = subject.cell.problem, subject.sets[0], subject.form.reference
    truth = subject.once(reference, problem.with_dtype("float64"), correctness.as_dtype(inputs, torch.float64))
    low = subject.once(reference, problem, inputs)
    for ours, exact, terms in zip(
        low[1:], truth[1:], error_bound.terms_of(subject, problem, inputs, truth[0]), strict=True
    ):
        own, scale = float((ours - exact).abs().max()), float(exact.abs().max())
        assert 0 < terms.rounding < scale / 2
        bounds = [error_bound.bound_of(subject, problem, own, scale, each) for each in (terms, error_bound.NO_TERMS)]
        assert bounds[1] <= bounds[0] <= 3 * bounds[1]
