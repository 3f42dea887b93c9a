"""y = Re(F_N x F_C): the real part of the discrete Fourier transform over the channels, then over the tokens.

y_nc = Σ_md x_md cos(2π(nm/N + cd/C)), unnormalised: |y| is about √(N·C) times |x|.

Lee-Thorp et al. 2021, "FNet: Mixing Tokens with Fourier Transforms", eq. 3, https://arxiv.org/abs/2105.03824
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from attnbench.cost import moved_again
from attnbench.inputs import tokens
from attnbench.operator import Complexity, Cost, Form, Inputs, Operator, Paper
from attnbench.problem import Mode, Params, Problem


def reference(problem: Problem, params: Params, x: Tensor) -> Tensor:
    """x: [B, N, C]. Returns [B, N, C]. Half precisions are widened inside: no transform takes them at every length."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    y: Tensor = _RealTransform.apply(wide)  # type: ignore[no-untyped-call]
    return y.to(x.dtype)


class _RealTransform(torch.autograd.Function):
    """The map is a symmetric matrix, so its gradient is the map itself: no complex cotangent is transformed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return real_transform(x)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        y: Tensor = _RealTransform.apply(cotangents[0])  # type: ignore[no-untyped-call]
        return y


def real_transform(x: Tensor) -> Tensor:
    """Re of the 2-D transform of a real x, [B, N, C]: half the channels, and their mirror image y_nc = y_(−n)(−c)."""
    half = torch.fft.rfft2(x, dim=(-2, -1)).real  # [B, N, C/2 + 1]
    mirrored = half[..., 1 : (x.shape[-1] + 1) // 2]
    mirrored = torch.cat((mirrored[..., :1, :], mirrored[..., 1:, :].flip(-2)), dim=-2).flip(-1)
    return torch.cat((half, mirrored), dim=-1)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """x ~ N(0, 1/(N·C)): outputs have variance 1/2 or 1, whatever the size, so that float16 can hold them."""
    x = tokens(problem, generator, "x")["x"]
    return Inputs({"x": x * (problem.seq_len * problem.channels) ** -0.5})


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """5·n·log₂ n FLOPs for a complex transform of length n, half for real input. As written, both transforms are
    complex and the real part is taken at the end. The reference transforms real channels, and keeps C/2 + 1 of the C
    columns between its two transforms: by 1/C of the second one more than half.
    """
    b, n, c = problem.batch, problem.seq_len, problem.channels
    calls = 1 if mode == "fwd" else 2  # the gradient is the same transform
    written = 5 * n * c * (math.log2(c) + math.log2(n))  # N of length C, then C of length N
    executed = 2.5 * n * c * math.log2(c) + 5 * (c // 2 + 1) * n * math.log2(n)  # N real ones; C/2 + 1 complex ones
    reference_flops = round(calls * b * executed)
    return Cost(
        flops=round(calls * b * written),
        reference_flops=reference_flops,
        elementwise=0,
        bytes_required=2 * calls * b * n * c * problem.item_bytes,  # x and y; the cotangent and the gradient of x
        # What the transform over the channels gives, complex of C/2 + 1 columns, is written, then read by columns.
        bytes_again=calls * moved_again(problem, "fwd", forward=2 * 2 * (c // 2 + 1) * b * n),
        uncounted={"fft": reference_flops},
    )


CORE = Form(reference, make_inputs, cost)

OPERATOR = Operator(
    paper=Paper(
        "Lee-Thorp et al.",
        2021,
        "FNet: Mixing Tokens with Fourier Transforms",
        "https://arxiv.org/abs/2105.03824",
        "eq. 3",
    ),
    forms={"core": CORE, "layer": CORE},
    complexity=lambda params: Complexity(time="n log n", memory="n"),
    grouped="a Fourier transform has no heads of keys and values",
    causal="every output of a Fourier transform depends on every token",
    data_dependent=lambda params: False,
    notes="no projections: scope layer is the core",
    no_kernel="the reference is cuFFT, which no kernel here would beat",
)
