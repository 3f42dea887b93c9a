"""y_n = (mean of x_m over the pixels m of the map with |row m − row n| ≤ r and |column m − column n| ≤ r) − x_n.

p = 2r + 1 is odd. At the border the mean is of the pixels that there are: zeros around the map would darken it.

Yu et al. 2021, "MetaFormer Is Actually What You Need for Vision" (PoolFormer), eq. 4, https://arxiv.org/abs/2111.11418
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import avg_pool2d, pad

from attnbench.cost import moved_again, traffic
from attnbench.inputs import maps
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.problem import Mode, Params, Problem, Scope


def reference(problem: Problem, params: Params, x: Tensor) -> Tensor:
    """x: [B, C, h, w]. Returns [B, C, h, w]. Sums along rows, then columns; of half precisions in float32."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    radius = params["pool"] // 2
    sums: Tensor = _Sums.apply(wide, radius)  # type: ignore[no-untyped-call]
    rows, columns = (_shares(wide, axis, radius) for axis in (-2, -1))
    return (sums * (rows[:, None] * columns) - wide).to(x.dtype)


class _Sums(torch.autograd.Function):
    """Of the (2r + 1)² pixels around each: a symmetric matrix, so its gradient is the map itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, radius: int) -> Tensor:
        ctx.radius = radius
        return _sums(_sums(x, -1, radius), -2, radius)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        sums: Tensor = _Sums.apply(cotangents[0], ctx.radius)  # type: ignore[no-untyped-call]
        return sums, None


def _sums(x: Tensor, axis: int, radius: int) -> Tensor:
    """Of the elements at most `radius` before and after each along an axis, zeros beyond its ends."""
    length = x.shape[axis]
    reach = min(radius, length - 1)
    padded = pad(x, (reach, reach) if axis == -1 else (0, 0, reach, reach))
    sums = padded.narrow(axis, 0, length).clone()
    for shift in range(1, 2 * reach + 1):
        sums += padded.narrow(axis, shift, length)
    return sums


def _shares(x: Tensor, axis: int, radius: int) -> Tensor:
    """1 / the elements that `_sums` adds: [length]."""
    place = torch.arange(x.shape[axis], device=x.device)
    last = x.shape[axis] - 1
    counts = (place + radius).clamp(max=last) - (place - radius).clamp(min=0) + 1
    return counts.to(x.dtype).reciprocal()


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """x ~ N(0, 1)."""
    return Inputs(maps(problem, generator, "x"))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """No products: 2(p − 1) additions, a division and a subtraction of each number. The gradient does not need x."""
    size = problem.batch * problem.seq_len * problem.channels
    return Cost(
        flops=0,
        reference_flops=0,
        elementwise=2 * params["pool"] * size * (1 if mode == "fwd" else 2),
        bytes_required=traffic(problem, mode, read=size, written=size),
        bytes_again=moved_again(problem, mode, backward=-size),
    )


def _cuda() -> Callable[..., Tensor]:
    def call(problem: Problem, params: Params, x: Tensor) -> Tensor:
        size = params["pool"]
        return avg_pool2d(x, size, stride=1, padding=size // 2, count_include_pad=False) - x

    return call


def why_not(problem: Problem, params: Params, scope: Scope) -> str | None:
    """A window has a pixel in its middle, and others."""
    if params["pool"] % 2 == 0:
        return f"pool {params['pool']} is even: a window is centred on its pixel"
    return "the mean of one pixel is the pixel: its output is 0" if problem.seq_len == 1 else None


CORE = Form(
    reference, make_inputs, cost, {"cuda": Impl(_cuda, "torch avg_pool2d", lambda problem, params, device: None)}
)

OPERATOR = Operator(
    paper=Paper(
        "Yu et al.",
        2021,
        "MetaFormer Is Actually What You Need for Vision",
        "https://arxiv.org/abs/2111.11418",
        "eq. 4",
    ),
    forms=with_graph({"core": CORE, "layer": CORE}, "cuda"),
    complexity=lambda params: Complexity(time="n", memory="n"),
    params={"pool": Param(3, "p, pixels on each side of a window, odd", minimum=3)},
    domains=("image",),
    causal="a window has as many pixels after its own as before it",
    grouped="a mean has no heads of keys and values",
    pairs=lambda params, causal: "fixed",
    data_dependent=lambda params: False,
    why_not=why_not,
    notes="no projections: scope layer is the core; no products",
)
