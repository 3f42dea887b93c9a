"""Scope `layer` of this family: projections and gates of x, a short convolution or a shift, the core, a norm, a gate.

A layer's own part is two functions: `enter`, from x to the core's tensors, and `leave`, from the core's y to what the
last projection, w_o, is applied to. Weights are drawn and counted by their names and shapes: w_… are matrices, each
applied once to every token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad, silu

from attnbench.cost import product, traffic
from attnbench.inputs import normal, tokens, torch_dtype
from attnbench.operator import Call, Cost, Form, Impl, Inputs
from attnbench.operators.kernelized._contraction import widened
from attnbench.operators.recurrent._core import Sizes, channels_of, sizes_of, why_not_heads
from attnbench.problem import Mode, Params, Problem, Scope
from attnbench.state import drawn_state

Shape = tuple[int, ...]
Weights = Mapping[str, Tensor]
Entered = tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]
"""The core's tensors; what `leave` needs of x; and the rows of the last tokens that the next ones need."""

CONVOLVED = 4
"""Tokens that the short convolution sees, the own included."""


@dataclass(frozen=True)
class Layer:
    """What stands around a core.

    Attributes:
        shapes: (the core's sizes, C, params) → the shape of each weight.
        enter: (sizes, params, x, rows, weights) → see Entered. x: [B, Q, C]; rows: of the tokens before, or None.
        leave: (sizes, params, y of the core, what enter put aside, weights) → what w_o is applied to, [B, Q, H · V].
        inner: (problem, params) → those of the core, where it is wider.
        tail_rows: (sizes, C) → how many rows of how many channels the next tokens need.
    """

    core: Form
    shapes: Callable[[Sizes, int, Params], dict[str, Shape]]
    enter: Callable[[Sizes, Params, Tensor, Tensor | None, Weights], Entered]
    leave: Callable[[Sizes, Params, Tensor, Weights, Weights], Tensor]
    inner: Callable[[Problem, Params], tuple[Problem, Params]] = lambda problem, params: (problem, params)
    tail_rows: Callable[[Sizes, int], tuple[int, int]] = lambda sizes, channels: (0, 0)


def layer(around: Layer) -> Form:
    """The form; every impl of the core is one of the layer, with the same around it."""

    def sizes_in(problem: Problem, params: Params) -> Sizes:
        return sizes_of(*around.inner(problem, params))

    def with_core(call: Call) -> Call:
        def reference(
            problem: Problem,
            params: Params,
            x: Tensor,
            state: Tensor | None = None,
            rows: Tensor | None = None,
            **weights: Tensor,
        ) -> Tensor | tuple[Tensor, ...]:
            sizes = sizes_in(problem, params)
            inside, aside, last = around.enter(sizes, params, x, rows, weights)
            before = {} if state is None else {"state": state}
            outputs = call(*around.inner(problem, params), **inside, **before)
            y, *after = outputs if isinstance(outputs, tuple) else (outputs,)
            y = around.leave(sizes, params, y, aside, weights)
            y = y.to(weights["w_o"].dtype) @ weights["w_o"]
            if not after:
                return y
            return (y, *after) if last is None else (y, *after, last)

        return reference

    def state(problem: Problem, params: Params, x: Tensor, **weights: Tensor) -> dict[str, Tensor]:
        inside, _, last = around.enter(sizes_in(problem, params), params, x, None, weights)
        assert around.core.state is not None
        outputs = around.core.state(*around.inner(problem, params), **inside)
        return outputs if last is None else {**outputs, "rows": last}

    def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
        shapes = around.shapes(sizes_in(problem, params), problem.channels, params)
        weights = {name: _drawn(problem, generator, name, shape) for name, shape in shapes.items()}
        x = tokens(problem, generator, "x")
        return Inputs(x, weights, state=drawn_state(make_inputs, state, problem, params, generator, weights))

    def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
        c, new = problem.channels, problem.batch * problem.query_len
        inner = around.core.cost(*around.inner(problem, params), mode)
        sizes = sizes_in(problem, params)
        shapes = around.shapes(sizes, c, params)
        matrices = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("w_"))
        projections = product(new * matrices, mode)  # [B·Q, rows] × [rows, columns] of each
        rows = problem.batch * math.prod(around.tail_rows(sizes, c)) * problem.item_bytes
        assert inner.state_bytes is not None
        held = inner.state_bytes + rows
        read = new * c + sum(map(math.prod, shapes.values()))
        # convolutions, norms and gates: about ten operations on each number that is projected to
        around_it = 10 * new * sum(shape[-1] for name, shape in shapes.items() if name.startswith("w_"))
        return replace(
            inner,
            flops=inner.flops + projections,
            reference_flops=inner.reference_flops + projections,
            elementwise=inner.elementwise + around_it * (1 if mode == "fwd" else 2),
            bytes_required=traffic(problem, mode, read=read, written=new * c) + (2 * held if problem.past else 0),
            state_bytes=held,
        )

    def layer_impl(impl: Impl) -> Impl:
        def asked(why: Callable[..., str | None]) -> Callable[[Problem, Params, str], str | None]:
            return lambda problem, params, device: why(*around.inner(problem, params), device)

        why_not, backward = asked(impl.why_not), asked(impl.why_not_backward)
        return replace(impl, load=lambda: with_core(impl.load()), why_not=why_not, why_not_backward=backward)

    impls = {name: layer_impl(impl) for name, impl in around.core.impls.items()}
    return Form(with_core(around.core.reference), make_inputs, cost, impls, state)


def _drawn(problem: Problem, generator: Generator, name: str, shape: Shape) -> Tensor:
    """A weight as layers begin, by its name: a matrix N(0, 1/rows), a convolution N(0, 1/4), norms, scales and d 1,
    biases 0, a_log log U(1, 16), step_bias the inverse softplus of a Δ log-uniform between 0.001 and 0.1, mix U(0, 1),
    bonus −0.04.
    """
    kind = name.split("_")[0]
    if kind in ("w", "conv"):
        return normal(problem, generator, *shape, scale=(shape[0] if kind == "w" else CONVOLVED) ** -0.5)
    uniform = torch.rand(shape, generator=generator, device=generator.device)
    steps = 10 ** (2 * uniform - 3)
    drawn = {
        "norm": torch.ones_like(uniform),
        "d": torch.ones_like(uniform),
        "bias": torch.zeros_like(uniform),
        "a": (1 + 15 * uniform).log(),
        "step": steps + torch.log(-torch.expm1(-steps)),
        "mix": uniform,
        "scale": torch.ones_like(uniform),
        "bonus": torch.full_like(uniform, -0.04),
    }
    return drawn[kind].to(torch_dtype(problem))


def projections(sizes: Sizes, channels: int) -> dict[str, Shape]:
    """Shapes of the matrices from x to q, k and v, and to the layer's y."""
    keys, values = sizes.qk_heads * sizes.rows, sizes.heads * sizes.columns
    return {"w_q": (channels, keys), "w_k": (channels, keys), "w_v": (channels, values), "w_o": (values, channels)}


def projected(sizes: Sizes, x: Tensor, w: Weights) -> dict[str, Tensor]:
    """q, k and v of x."""
    return {n: by_heads(x @ w[f"w_{n}"], sizes.heads if n == "v" else sizes.qk_heads) for n in ("q", "k", "v")}


def too_narrow(what: str, channels: int, least: int = 2) -> str | None:
    """The reason that a layer with a norm of so few channels is not defined, or None."""
    if channels >= least:
        return None
    return f"the layer's norm of {what} leaves nothing but signs of {channels} channels; it takes {least} or more"


def outside_delta_rule(problem: Problem, params: Params, scope: Scope) -> str | None:
    """Heads that share q and k, and the layer's norms."""
    k, v = channels_of(problem, params)
    narrow = (too_narrow("a key", k) or too_narrow("a head", v)) if scope == "layer" else None
    return why_not_heads(problem, params, scope) or narrow


def by_heads(x: Tensor, heads: int) -> Tensor:
    """[B, Q, heads · X] → [B, heads, Q, X]."""
    split: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split


def by_tokens(y: Tensor) -> Tensor:
    """The opposite: [B, H, Q, X] → [B, Q, H · X]."""
    return y.transpose(1, 2).flatten(2)


def unit(x: Tensor) -> Tensor:
    """x of length 1 along its last axis, in float32 at least: x / √(Σ x² + 10⁻⁶)."""
    x = widened(x)
    return x * (x.square().sum(dim=-1, keepdim=True) + 1e-6).rsqrt()


def qkv_shapes(sizes: Sizes, channels: int) -> dict[str, Shape]:
    """Shapes for `qkv_convolved`, of β, of the norm of a head, and of the matrix to the layer's y."""
    width = rows_of_qkv(sizes, channels)[1]
    return {
        "w_qkv": (channels, width),
        "conv": (CONVOLVED, width),
        "w_beta": (channels, sizes.heads),
        "norm": (sizes.columns,),
        "w_o": (sizes.heads * sizes.columns, channels),
    }


def rows_of_qkv(sizes: Sizes, channels: int) -> tuple[int, int]:
    """`Layer.tail_rows` of `qkv_convolved`."""
    return CONVOLVED - 1, 2 * sizes.qk_heads * sizes.rows + sizes.heads * sizes.columns


def qkv_convolved(sizes: Sizes, x: Tensor, rows: Tensor | None, w: Weights) -> tuple[dict[str, Tensor], Tensor]:
    """q and k of length 1, v and β of the delta rule, and the rows that the next tokens need."""
    keys = sizes.qk_heads * sizes.rows
    qkv, last = convolved(x @ w["w_qkv"], rows, w["conv"])
    q, k, v = qkv.split((keys, keys, sizes.heads * sizes.columns), dim=-1)
    return {
        "q": unit(by_heads(q, sizes.qk_heads)).to(x.dtype),
        "k": unit(by_heads(k, sizes.qk_heads)).to(x.dtype),
        "v": by_heads(v, sizes.heads),
        "beta": by_heads(widened(x @ w["w_beta"]).sigmoid(), sizes.heads),
    }, last


def rms_norm(x: Tensor, weight: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """x / √(mean x² + ε), times a weight, along the last axis; in float32 at least."""
    x = widened(x)
    x = x * (x.square().mean(dim=-1, keepdim=True) + epsilon).rsqrt()
    return x if weight is None else x * weight


def rows_before(x: Tensor, rows: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """x with `count` rows of the tokens before it, zeros where there are none, and the last `count` of these rows.

    x: [B, Q, channels]. rows: [B, count, channels], or None.
    """
    longer = pad(x, (0, 0, count, 0)) if rows is None else torch.cat((rows.to(x.dtype), x), dim=1)
    return longer, longer[:, longer.shape[1] - count :].contiguous()


def convolved(x: Tensor, rows: Tensor | None, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """silu of a causal convolution of each channel over CONVOLVED tokens, and the rows that the next ones need.

    Args:
        x: [B, Q, channels].
        rows: [B, CONVOLVED − 1, channels] of the tokens before, or None.
        weight: [CONVOLVED, channels], the last for the own token.
        bias: [channels].
    """
    longer, last = rows_before(x, rows, CONVOLVED - 1)
    y = weighted_taps(longer, weight)
    return silu(y if bias is None else y + bias), last


def weighted_taps(longer: Tensor, weight: Tensor) -> Tensor:
    """Σ_t weight_t ⊙ longer_{i+t}: [B, Q + taps − 1, channels] and [taps, channels] → [B, Q, channels]."""
    taps = weight.shape[0]
    n = longer.shape[1] - taps + 1
    y = longer[:, :n] * weight[0]
    for t in range(1, taps):
        y = y + longer[:, t : t + n] * weight[t]
    return y
