"""Scope `block` around an operator's layer: h = x + layer(LN(x)), y = h + GELU(LN(h) W₁) W₂, W₁: C × 4C, W₂: 4C × C.

No biases. The norms are of a token's channels, with gains and shifts, in front of what they are for:
Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", fig. 1 (b), https://arxiv.org/abs/2002.04745;
the width of 4C: Vaswani et al. 2017, sec. 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import gelu, layer_norm

from attnbench.cost import product, traffic
from attnbench.inputs import normal
from attnbench.operator import Call, Cost, Form, Impl, Inputs, Operator
from attnbench.problem import Mode, Params, Problem

EXPANSION = 4
"""The MLP's width in units of C."""


def with_block(operator: Operator) -> Operator:
    """The operator with scope block, made of its layer; as it is where it has no layer, or a block of its own."""
    forms = operator.forms
    if "block" in forms or not isinstance(forms.get("layer"), Form):
        return operator
    return replace(operator, forms={**forms, "block": block(forms["layer"])})


def block(layer: Form) -> Form:
    """The block around a layer of x, [B, Q, C] or [B, C, h, w]. Every impl of the layer becomes one of the block."""

    def around(call: Call) -> Call:
        def whole(
            problem: Problem,
            params: Params,
            x: Tensor,
            norm_gain: Tensor,
            norm_shift: Tensor,
            mlp_gain: Tensor,
            mlp_shift: Tensor,
            mlp_in: Tensor,
            mlp_out: Tensor,
            **tensors: Tensor,
        ) -> Tensor | tuple[Tensor, ...]:
            """norm_…, mlp_gain, mlp_shift: [C]. mlp_in: [C, 4C]. mlp_out: [4C, C]. tensors: as the layer's."""
            outputs = call(problem, params, x=_normed_as_x(x, norm_gain, norm_shift), **tensors)
            mixed, *state = outputs if isinstance(outputs, tuple) else (outputs,)
            h = x + mixed
            hidden = gelu(normed(_channels_last(h), mlp_gain, mlp_shift) @ mlp_in)  # [B, …, 4C]
            y = h + _channels_as(h, hidden @ mlp_out)
            return (y, *state) if state else y

        return whole

    layer_state = layer.state

    def state(
        problem: Problem, params: Params, x: Tensor, norm_gain: Tensor, norm_shift: Tensor, **tensors: Tensor
    ) -> dict[str, Tensor]:
        assert layer_state is not None
        inside = {name: tensor for name, tensor in tensors.items() if name not in _MLP}
        return layer_state(problem, params, x=_normed_as_x(x, norm_gain, norm_shift), **inside)

    def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
        """x of variance 1, and gains that give the layer an x as large as that of its own inputs.

        What a layer's inputs choose by their x is chosen by the x before its norm, which are almost the same numbers.

        Raises: ValueError where the layer takes other data than x.
        """
        inner = layer.make_inputs(problem, params, generator)
        if set(inner.data) != {"x"}:
            raise ValueError(
                f"scope block is made around a layer that takes x; this one takes {', '.join(inner.data)}. Name it x, "
                "or give forms a block of its own"
            )
        c, hidden = problem.channels, EXPANSION * problem.channels
        x = inner.data["x"]
        size = x.float().square().mean().sqrt()
        near_one, near_zero = (
            [offset + normal(problem, generator, c, scale=0.1) for _ in range(2)] for offset in (1.0, 0.0)
        )
        own = {
            "norm_gain": near_one[0] * size.to(x.dtype),
            "norm_shift": near_zero[0] * size.to(x.dtype),
            "mlp_gain": near_one[1],
            "mlp_shift": near_zero[1],
            "mlp_in": normal(problem, generator, c, hidden, scale=c**-0.5),
            "mlp_out": normal(problem, generator, hidden, c, scale=hidden**-0.5),
        }
        return replace(inner, data={"x": (x.float() / size).to(x.dtype)}, parameters={**inner.parameters, **own})

    def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
        inner = layer.cost(problem, params, mode)
        new, c = problem.batch * problem.query_len, problem.channels
        weights = 2 * EXPANSION * c * c + 4 * c
        # Around the layer, x and y take the places of the layer's; the weights come on top.
        outside = traffic(problem, mode, read=new * c + weights, written=new * c)
        replaced = traffic(problem, mode, read=new * c, written=new * c)
        elementwise = new * (2 * 6 * c + 8 * EXPANSION * c)  # normalise (5) and residual, twice; GELU
        return replace(
            inner,
            flops=inner.flops + mlp(problem, mode),
            reference_flops=inner.reference_flops + mlp(problem, mode),
            elementwise=inner.elementwise + elementwise * (1 if mode == "fwd" else 2),
            bytes_required=outside + max(0, inner.bytes_required - replaced),
            bytes_again=max(0, inner.bytes_again),  # the gradient of a norm needs its x
        )

    def mlp(problem: Problem, mode: Mode) -> int:
        c = problem.channels
        multiply_adds = problem.batch * problem.query_len * c * EXPANSION * c
        return (
            product(multiply_adds, mode)  # LN(h) W₁: [B·Q, C] × [C, 4C]
            + product(multiply_adds, mode)  # GELU W₂: [B·Q, 4C] × [4C, C]
        )

    def block_impl(impl: Impl) -> Impl:
        if impl.outermost:
            return impl.outermost(block_impl)
        layer_flops = impl.flops
        flops = layer_flops and (lambda p, params, mode: layer_flops(p, params, mode) + mlp(p, mode))
        return replace(impl, load=lambda: around(impl.load()), flops=flops)

    impls: Mapping[str, Impl] = {name: block_impl(impl) for name, impl in layer.impls.items()}
    return Form(around(layer.reference), make_inputs, cost, impls, state if layer_state else None)


_MLP = ("mlp_gain", "mlp_shift", "mlp_in", "mlp_out")


def normed(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """LN over the channels, which are last. gain, shift: [C].

    On a CPU torch's LN adds up the gradients of gain and shift in the bits of half precisions, in which a sum over some
    hundred tokens stands still; its sums do not, so that there they are applied outside.
    """
    if x.dtype in (torch.bfloat16, torch.float16):
        return torch.addcmul(shift, layer_norm(x, gain.shape), gain)
    return layer_norm(x, gain.shape, gain, shift)


def _normed_as_x(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """LN over the channels, laid out as x: kernels of maps read contiguous ones."""
    return _channels_as(x, normed(_channels_last(x), gain, shift)).contiguous()


def _channels_last(x: Tensor) -> Tensor:
    return x if x.ndim == 3 else x.movedim(1, -1)


def _channels_as(x: Tensor, y: Tensor) -> Tensor:
    """A tensor whose channels are last with them where those of x are."""
    return y if x.ndim == 3 else y.movedim(-1, 1)


def too_narrow(channels: int) -> str | None:
    """The reason so few channels are outside the definition of a layer norm, or None."""
    if channels > 2:
        return None
    return "the layer norm of one or two channels keeps only their order: its gradient is rounding error"
