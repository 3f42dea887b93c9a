"""Scope `layer` of an operator around a q, k, v core: x in, projections, the core, output projection, y out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

from torch import Generator, Tensor

from attnbench.cost import product, traffic
from attnbench.inputs import head_count, maps, normal, tokens
from attnbench.operator import Call, Cost, Form, Impl, Inputs
from attnbench.problem import Mode, Params, Problem

Layout = Literal["heads", "map"]


def projected(
    core: Form,
    names: tuple[str, ...] = ("q", "k", "v"),
    layout: Layout = "heads",
    gains: Callable[[Problem], Mapping[str, float]] | None = None,
    bytes_again: Callable[[Problem, Mode], int] | None = None,
    key_dim: Callable[[Params], int] | None = None,
) -> Form:
    """The layer around `core`: x W_name for every name, the core, then y W_o; no biases.

    Every impl of the core becomes an impl of the layer, with the same projections around it. The layer costs
    2·B·Q·C·Σ width FLOPs beside the core's: C of each name and of the output, Hk·D of keys and values.

    Args:
        core: the operator's scope `core`.
        names: the core's data tensors, each with its own projection (Reformer's shared queries and keys are one).
        layout: "heads": x is [B, Q, C] and the core takes [B, H, Q, D], of k and v [B, Hk, Q, D]; "map": x and the
            core's data are [B, C, h, w].
        gains: factors on the N(0, 1/C) projections by name, for a core without a scale of its own; None: 1.
        bytes_again: of the layer's `Cost`; None: the core's.
        key_dim: channels of a head of queries and of keys; None: D.
    """

    def width_of(problem: Problem, params: Params, name: str) -> int:
        if key_dim and name in ("q", "k"):
            return head_count(problem, name) * key_dim(params)
        return width(problem, name)

    def of_the_core(problem: Problem, x: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those that the core takes: x projected, and what is not a projection."""
        rest = dict(tensors)
        weights = {name: rest.pop(f"w_{name}") for name in names}
        return {**{name: _project(x, w, head_count(problem, name), layout) for name, w in weights.items()}, **rest}

    def around(call: Call) -> Call:
        def layer(
            problem: Problem, params: Params, x: Tensor, w_o: Tensor, **tensors: Tensor
        ) -> Tensor | tuple[Tensor, ...]:
            tensors = of_the_core(problem, x, tensors)
            output = call(problem, params, **tensors)
            if isinstance(output, tuple):
                return _output(problem, output[0], w_o, layout), *output[1:]
            return _output(problem, output, w_o, layout)

        return layer

    core_state = core.state

    def state(problem: Problem, params: Params, x: Tensor, w_o: Tensor, **tensors: Tensor) -> dict[str, Tensor]:
        assert core_state is not None
        return core_state(problem, params, **of_the_core(problem, x, tensors))

    def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
        inner = core.make_inputs(problem, params, generator)
        c = problem.channels
        factors = gains(problem) if gains else {}
        weights = {
            f"w_{name}": normal(
                problem, generator, c, width_of(problem, params, name), scale=factors.get(name, 1.0) * c**-0.5
            )
            for name in (*names, "o")
        }
        data = (tokens if layout == "heads" else maps)(problem, generator, "x")
        return Inputs(data, {**weights, **inner.parameters}, inner.choices, inner.state)

    def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
        inner = core.cost(problem, params, mode)
        size, c = problem.batch * problem.query_len * problem.channels, problem.channels
        projected = sum(width_of(problem, params, name) for name in names)
        # Around the core, x takes the place of the core's inputs; the weights come on top.
        outside = traffic(problem, mode, read=size + c * (projected + c), written=size)
        replaced = traffic(problem, mode, read=size * projected // c, written=size)
        return replace(
            inner,
            flops=inner.flops + projections(problem, params, mode),
            reference_flops=inner.reference_flops + projections(problem, params, mode),
            bytes_required=outside + max(0, inner.bytes_required - replaced),  # never less than the projections' own
            bytes_again=bytes_again(problem, mode) if bytes_again else inner.bytes_again,
        )

    def projections(problem: Problem, params: Params, mode: Mode) -> int:
        columns = sum(width_of(problem, params, name) for name in (*names, "o"))
        return product(problem.batch * problem.query_len * problem.channels * columns, mode)  # [B·Q, C] × [C, width]

    def layer_impl(impl: Impl) -> Impl:
        core_flops = impl.flops
        flops = core_flops and (lambda p, params, mode: core_flops(p, params, mode) + projections(p, params, mode))
        return replace(impl, load=lambda: around(impl.load()), flops=flops)

    impls: Mapping[str, Impl] = {name: layer_impl(impl) for name, impl in core.impls.items()}
    return Form(around(core.reference), make_inputs, cost, impls, state if core_state else None)


def width(problem: Problem, name: str) -> int:
    """Channels of a tensor of all heads by its name: Hk·D of k and v, else C."""
    return head_count(problem, name) * problem.head_dim


def _project(x: Tensor, w: Tensor, heads: int, layout: Layout) -> Tensor:
    if layout == "map":
        return channels_first(x, w)
    return (x @ w).unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, H or Hk, Q, D]


def _output(problem: Problem, y: Tensor, w: Tensor, layout: Layout) -> Tensor:
    if layout == "map":
        return channels_first(y, w)
    return y.transpose(1, 2).flatten(2) @ w


def channels_first(x: Tensor, w: Tensor) -> Tensor:
    """A 1×1 convolution: w, [C, C], applied to the channels of x, [B, C, …]."""
    return (w.t() @ x.flatten(2)).view_as(x)  # [C, C] × [B, C, pixels]
