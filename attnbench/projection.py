"""Scope `layer` of an operator around a q, k, v core: x in, projections, the core, output projection, y out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

from torch import Generator, Tensor

from attnbench.cost import product, traffic
from attnbench.inputs import maps, normal, tokens
from attnbench.operator import Cost, Form, Impl, Inputs
from attnbench.problem import Mode, Params, Problem

Layout = Literal["heads", "map"]


def projected(
    core: Form,
    names: tuple[str, ...] = ("q", "k", "v"),
    layout: Layout = "heads",
    gains: Callable[[Problem], Mapping[str, float]] | None = None,
) -> Form:
    """The layer around `core`: x W_name for every name, the core, then y W_o; no biases.

    Every impl of the core becomes an impl of the layer, with the same projections around it. The layer costs
    2·(len(names) + 1)·B·N·C² FLOPs beside the core's.

    Args:
        core: the operator's scope `core`.
        names: the core's data tensors, each with its own C×C projection (Reformer's shared queries and keys are one).
        layout: "heads": x is [B, N, C] and the core takes [B, H, N, D]; "map": x and the core's data are [B, C, h, w].
        gains: factors on the N(0, 1/C) projections by name, for a core without a scale of its own; None: 1.
    """

    matrices = len(names) + 1

    def around(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def layer(problem: Problem, params: Params, x: Tensor, w_o: Tensor, **tensors: Tensor) -> Tensor:
            weights = {name: tensors.pop(f"w_{name}") for name in names}
            data = {name: _project(problem, x, w, layout) for name, w in weights.items()}
            return _output(problem, call(problem, params, **data, **tensors), w_o, layout)

        return layer

    def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
        inner = core.make_inputs(problem, params, generator)
        c = problem.channels
        factors = gains(problem) if gains else {}
        weights = {
            f"w_{name}": normal(problem, generator, c, c, scale=factors.get(name, 1.0) * c**-0.5)
            for name in (*names, "o")
        }
        data = (tokens if layout == "heads" else maps)(problem, generator, "x")
        return Inputs(data, {**weights, **inner.parameters}, inner.choices)

    def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
        inner = core.cost(problem, params, mode)
        b, n, c = problem.batch, problem.seq_len, problem.channels
        # Around the core, x takes the place of the core's inputs; the weights come on top.
        outside = traffic(problem, mode, read=b * n * c + matrices * c * c, written=b * n * c)
        replaced = traffic(problem, mode, read=len(names) * b * n * c, written=b * n * c)
        return replace(
            inner,
            flops=inner.flops + _projections(matrices, problem, mode),
            reference_flops=inner.reference_flops + _projections(matrices, problem, mode),
            bytes_required=outside + max(0, inner.bytes_required - replaced),  # never less than the projections' own
        )

    def layer_impl(impl: Impl) -> Impl:
        core_flops = impl.flops
        flops = core_flops and (lambda p, params, mode: core_flops(p, params, mode) + _projections(matrices, p, mode))
        return replace(impl, load=lambda: around(impl.load()), flops=flops)

    impls: Mapping[str, Impl] = {name: layer_impl(impl) for name, impl in core.impls.items()}
    return Form(around(core.reference), make_inputs, cost, impls)


def _projections(matrices: int, problem: Problem, mode: Mode) -> int:
    """FLOPs of that many projections of x."""
    b, n, c = problem.batch, problem.seq_len, problem.channels
    return product(matrices * b * n * c * c, mode)  # [B·N, C] × [C, C], each


def _project(problem: Problem, x: Tensor, w: Tensor, layout: Layout) -> Tensor:
    if layout == "map":
        return channels_first(x, w)
    b, n, h, d = problem.batch, problem.seq_len, problem.heads, problem.head_dim
    return (x @ w).view(b, n, h, d).transpose(1, 2)  # [B, H, N, D]


def _output(problem: Problem, y: Tensor, w: Tensor, layout: Layout) -> Tensor:
    if layout == "map":
        return channels_first(y, w)
    return y.transpose(1, 2).reshape(problem.batch, problem.seq_len, problem.channels) @ w


def channels_first(x: Tensor, w: Tensor) -> Tensor:
    """A 1×1 convolution: w, [C, C], applied to the channels of x, [B, C, …]."""
    return (w.t() @ x.flatten(2)).view_as(x)  # [C, C] × [B, C, pixels]
