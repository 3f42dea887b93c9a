"""y_i = x₀_i ⊙ (d ⊙ u_i + Σ_{0 ≤ j ≤ i} h_{i−j} ⊙ u_j), u = x₁ ⊙ v: h of N tokens, a filter for each channel.

Poli et al. 2023, "Hyena Hierarchy: Towards Larger Convolutional Language Models", def. 3.1,
https://arxiv.org/abs/2302.10866, at order 2 as the authors' code has it: with one long convolution (the paper counts as
many as the order). The transforms are of 2N tokens or more, so that the end of a sum does not reach its start.

Scope `layer`: x₀, x₁ and v are a projection of x, convolved with a short filter of 3 tokens; h is a network of the
position, three layers of sines, times a window exp(−|δ_c| t), t from 0 to 1; every call makes it for N tokens. A
position is t and the cosines and sines of 16 bands, sines have a frequency of 14 at first, as in the authors' language
models (the defaults of their code have one band of frequency 10⁻⁴).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from attnbench.cost import product, traffic
from attnbench.inputs import normal, tokens
from attnbench.operator import Complexity, Cost, Form, Inputs, Operator, Paper, Param
from attnbench.operators.kernelized._contraction import widened
from attnbench.operators.recurrent._layer import weighted_taps
from attnbench.problem import Mode, Params, Problem
from attnbench.state import appended, cached_rows, causal_pairs, with_room

MOST_DIRECT = 16
"""New tokens after others up to which their sums are taken as they are written; of more, by transforms."""


def reference(
    problem: Problem,
    params: Params,
    v: Tensor,
    x1: Tensor,
    x0: Tensor,
    h: Tensor,
    d: Tensor,
    u_cache: Tensor | None = None,
) -> Tensor:
    """In float32 at least: half precisions have no transform of every length.

    Args:
        v, x1, x0: [B, Q, C].
        h: [N, C].
        d: [C].
        u_cache: u of all tokens, with room for the new ones, [B, N, C], where Q < N.

    Returns: [B, Q, C].
    """
    new = widened(x1) * widened(v)
    u, h = widened(appended(u_cache, new)), widened(h)
    if direct(problem):
        convolved = summed(u, h, problem.query_len)
    else:
        z: Tensor = _Convolution.apply(u.mT.contiguous(), h.t().contiguous())  # type: ignore[no-untyped-call]
        convolved = z.mT[:, problem.past :]
    return (widened(x0) * (convolved + widened(d) * new)).to(v.dtype)


def direct(problem: Problem) -> bool:
    """Whether the sums of new tokens are taken without transforms."""
    return problem.past > 0 and problem.query_len <= MOST_DIRECT


def summed(u: Tensor, h: Tensor, last: int) -> Tensor:
    """Σ_j h_{i−j} ⊙ u_j of the last tokens: [B, N, C] and [N, C] → [B, last, C]."""
    backwards, n = h.flip(0), h.shape[0]
    sums = [(backwards[n - i :] * u[:, :i]).sum(dim=1) for i in range(n - last + 1, n + 1)]  # i tokens each
    return torch.stack(sums, dim=1)


class _Convolution(torch.autograd.Function):
    """u [B, C, N] and h [C, N] → the causal convolution of each channel, [B, C, N].

    Autograd would transform complex numbers for the gradients of what is real.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, h: Tensor) -> Tensor:
        n = u.shape[-1]
        spectra = torch.fft.rfft(u, n=padded(n)), torch.fft.rfft(h, n=padded(n))
        ctx.save_for_backward(*spectra)
        return _inverse(spectra[0] * spectra[1], n)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, Tensor]:
        (u, h), n = ctx.saved_tensors, cotangents[0].shape[-1]
        dz = torch.fft.rfft(cotangents[0], n=padded(n))
        return _inverse(dz * h.conj(), n), _inverse((dz * u.conj()).sum(dim=0), n)


def _inverse(spectrum: Tensor, n: int) -> Tensor:
    return torch.fft.irfft(spectrum, n=padded(n))[..., :n]


def padded(n: int) -> int:
    """The length of a transform: twice the least number from n up that has no prime factors but 2, 3 and 5."""
    odd = (3**a * 5**b for a in range(n.bit_length()) for b in range(n.bit_length()))
    return 2 * min(factor << (-(-n // factor) - 1).bit_length() for factor in odd if factor <= 2 * n)


def state(problem: Problem, params: Params, v: Tensor, x1: Tensor, **tensors: Tensor) -> dict[str, Tensor]:
    """u of every token."""
    return {"u_cache": with_room(problem, x1 * v)}


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """v, x₁, x₀ and d ~ N(0, 1); h ~ N(0, 1/N)."""
    b, n, c = problem.batch, problem.seq_len, problem.channels
    data = tokens(problem, generator, "v", "x1", "x0")
    h = normal(problem, generator, n, c, scale=n**-0.5)
    cache = {}
    if problem.past:
        cache = {"u_cache": appended(normal(problem, generator, b, n, c), data["x1"] * data["v"])}
    return Inputs(data, {"h": h, "d": normal(problem, generator, c)}, state=cache)


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """2.5 n log₂ n FLOPs for a real transform of length n: of u, of h, and back. As written n is 2N. The last tokens
    after others, where they are few, are sums as they stand.
    """
    b, q, n, c = problem.batch, problem.query_len, problem.seq_len, problem.channels
    transforms = (2 * b + 1) * c * (1 if mode == "fwd" else 2)  # the gradients: of dz, back to du and to dh
    kind, flops = "fft", round(transforms * 5 * n * math.log2(2 * n))
    executed = round(transforms * 2.5 * padded(n) * math.log2(padded(n)))
    if direct(problem):
        kind, flops = "mul", product(b * c * causal_pairs(problem), mode)  # [1, i + 1] × [i + 1, 1] of each channel
        executed = flops
    size = b * q * c
    spectra = 0 if direct(problem) else 6 * b * n * c  # complex products
    return Cost(
        flops=flops,
        reference_flops=executed,
        elementwise=(4 * size + spectra) * (1 if mode == "fwd" else 2),
        bytes_required=traffic(
            problem,
            mode,
            read=3 * size + n * c + c,
            constant=b * problem.past * c,
            written=size + (size if problem.past else 0),
        ),
        uncounted={kind: executed},
        state_bytes=b * n * c * problem.item_bytes,
    )


TAPS = 3
"""Tokens that the short convolution sees, the own included."""

BANDS = 16
POSITION = 1 + 2 * BANDS
"""Numbers by which a position is described."""

FREQUENCY = 14.0
SMALLEST, SLOW, FAST = 1e-2, 1.5, 0.3
"""A window falls to this after so many sequences, in the first and in the last channel."""


def layer(
    problem: Problem,
    params: Params,
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor,
    conv: Tensor,
    b_conv: Tensor,
    d: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    u_cache: Tensor | None = None,
    rows_cache: Tensor | None = None,
    **network: Tensor,
) -> Tensor:
    """x: [B, Q, C]. w_in: [C, 3C]. conv: [3, 3C]. w_out: [C, C]. network: of the filter, see `filter_of`.

    u_cache: as the core's; rows_cache: of projections before the short convolution, [B, min(N − Q, 2) + Q, 3C].
    """
    x0, x1, v = convolved(x @ w_in + b_in, rows_cache, conv, b_conv).chunk(3, dim=-1)
    h = filter_of(problem, **network)
    y = reference(problem, params, v, x1, x0, h, widened(d), u_cache).to(x.dtype)
    return y @ w_out + b_out


def convolved(rows: Tensor, cache: Tensor | None, conv: Tensor, bias: Tensor) -> Tensor:
    """The short convolution, in float32 at least. rows: of the new tokens, [B, Q, 3C]."""
    n = rows.shape[1]
    longer = widened(appended(cache, rows))
    return weighted_taps(pad(longer, (0, 0, n + TAPS - 1 - longer.shape[1], 0)), widened(conv)) + widened(bias)


def filter_of(
    problem: Problem,
    w_1: Tensor,
    b_1: Tensor,
    w_2: Tensor,
    b_2: Tensor,
    w_3: Tensor,
    b_3: Tensor,
    w_4: Tensor,
    frequency: Tensor,
) -> Tensor:
    """h of all N tokens, [N, C], in float32 at least.

    w_1: [33, width]. w_2, w_3: [width, width]. w_4: [width, C]. b_1 to b_3 and frequency: [width].
    """
    hidden, window = positions(problem.seq_len, w_4.shape[1], widened(w_4))
    frequency = widened(frequency)
    for w, b in ((w_1, b_1), (w_2, b_2), (w_3, b_3)):
        hidden = (frequency * (hidden @ widened(w) + widened(b))).sin()
    return hidden @ widened(w_4) * window


def positions(n: int, channels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """What the network is given of each token, [N, 33], and the window, [N, C]."""
    t = torch.linspace(0, 1, n, dtype=like.dtype, device=like.device).unsqueeze(-1)
    bands = torch.linspace(1e-4, BANDS - 1, BANDS, dtype=like.dtype, device=like.device)
    turns = torch.arange(n, dtype=like.dtype, device=like.device).unsqueeze(-1) * (2 * math.pi / n) * bands
    slowest, fastest = (math.log(SMALLEST) / after for after in (SLOW, FAST))
    decays = torch.linspace(slowest, fastest, channels, dtype=like.dtype, device=like.device)
    return torch.cat((t, turns.cos(), -turns.sin()), dim=-1), (t * decays).exp()


def layer_state(
    problem: Problem,
    params: Params,
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor,
    conv: Tensor,
    b_conv: Tensor,
    **rest: Tensor,
) -> dict[str, Tensor]:
    """u of every token, and the last two projections."""
    rows = x @ w_in + b_in
    _, x1, v = convolved(rows, None, conv, b_conv).chunk(3, dim=-1)
    return {"u_cache": with_room(problem, (x1 * v).to(x.dtype)), "rows_cache": with_room(problem, rows, TAPS - 1)}


def weight_shapes(params: Params, c: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the layer's parameters."""
    width = params["filter_width"]
    return {
        "w_in": (c, 3 * c),
        "b_in": (3 * c,),
        "conv": (TAPS, 3 * c),
        "b_conv": (3 * c,),
        "d": (c,),
        "w_out": (c, c),
        "b_out": (c,),
        "w_1": (POSITION, width),
        "b_1": (width,),
        "w_2": (width, width),
        "b_2": (width,),
        "w_3": (width, width),
        "b_3": (width,),
        "w_4": (width, c),
        "frequency": (width,),
    }


def layer_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """x ~ N(0, 1); matrices keep a variance of about 1, but w_4: Σ h² is about 1."""
    b, n, c = problem.batch, problem.seq_len, problem.channels
    x = tokens(problem, generator, "x")
    weights = {}
    for name, shape in weight_shapes(params, c).items():
        scale = shape[0] ** -0.5 if len(shape) == 2 else 1.0 if name == "d" else 0.1
        weights[name] = normal(problem, generator, *shape, scale=scale)
    weights["w_4"] *= min(1.0, 4 * n**-0.5)
    weights["frequency"] += FREQUENCY
    if not problem.past:
        return Inputs(x, weights)
    rows = normal(problem, generator, b, cached_rows(problem, TAPS - 1) + problem.query_len, 3 * c)
    return Inputs(x, weights, state={"u_cache": normal(problem, generator, b, n, c), "rows_cache": rows})


def layer_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The core's, the projections, and the network of the filter, once for all samples."""
    b, q, n, c = problem.batch, problem.query_len, problem.seq_len, problem.channels
    width, size = params["filter_width"], b * q * c
    inner = cost(problem, params, mode)
    around = (
        product(size * 3 * c, mode)  # x w_in: [B·Q, C] × [C, 3C]
        + product(size * c, mode)  # y w_out: [B·Q, C] × [C, C]
        + product(n * POSITION * width, mode, gradients=1)  # [N, 33] × [33, width]; positions are given
        + product(2 * n * width * width, mode)  # [N, width] × [width, width], twice
        + product(n * width * c, mode)  # [N, width] × [width, C]
    )
    elements = (2 * TAPS + 1) * 3 * size + 3 * 3 * n * width + 2 * n * c  # short filter; bias, frequency, sine; window
    kept, weights = min(problem.past, TAPS - 1), sum(map(math.prod, weight_shapes(params, c).values()))
    moved = traffic(
        problem,
        mode,
        read=size + weights,
        constant=b * (problem.past + 3 * kept) * c,
        written=size + (size + 3 * b * min(q, TAPS - 1) * c if problem.past else 0),
    )
    return Cost(
        flops=inner.flops + around,
        reference_flops=inner.reference_flops + around,
        elementwise=inner.elementwise + elements * (1 if mode == "fwd" else 2),
        bytes_required=moved,
        uncounted=inner.uncounted,
        state_bytes=b * (n + 3 * min(n, TAPS - 1)) * c * problem.item_bytes,
    )


OPERATOR = Operator(
    paper=Paper(
        "Poli et al.",
        2023,
        "Hyena Hierarchy: Towards Larger Convolutional Language Models",
        "https://arxiv.org/abs/2302.10866",
        "def. 3.1 at order 2",
    ),
    forms={
        "core": Form(reference, make_inputs, cost, state=state),
        "layer": Form(layer, layer_inputs, layer_cost, state=layer_state),
    },
    complexity=lambda params: Complexity(time="n log n", memory="n"),
    params={"filter_width": Param(64, "width of the network that makes the filter (scope layer)", minimum=1)},
    domains=("sequence",),
    full="its filter has weights for what came before a token; a circular convolution is another operator",
    grouped="a convolution has no heads of keys and values",
    continues=True,
    notes="a step sums over all tokens before: its state grows, as softmax's does",
    no_kernel="the reference is cuFFT, which no kernel here would beat",
)
