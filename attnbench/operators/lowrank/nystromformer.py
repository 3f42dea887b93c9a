"""y = F Z (B v) (+ a convolution of v), F = σ(q k̃ᵀ/√D), B = σ(q̃ kᵀ/√D), Z ≈ A⁺ of A = σ(q̃ k̃ᵀ/√D), σ softmax by rows.

q̃ and k̃, the M = min(m, N) landmarks, are the means of M consecutive segments of tokens: of ⌊N/M⌋ + 1 each the first
N mod M, of ⌊N/M⌋ the others, so that every N has them. Z_0 = Aᵀ / (the largest column sum of A), of each matrix by
itself; then `iterations` times Z ← ¼ Z (13 I − A Z (15 I − A Z (7 I − A Z))), which for a nearly singular A is far from
A⁺. conv: an odd number of taps w of each head, y_i += Σ_t w_t v_{i + t − ⌊taps/2⌋} over tokens, zeros outside.

Xiong et al. 2021, "Nyströmformer: A Nyström-Based Algorithm for Approximating Self-Attention", algorithm 1,
https://arxiv.org/abs/2102.03902. There m divides N, and padding makes it do so.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from attnbench.cost import moved_again, product, traffic
from attnbench.grouped import folded, group_of, unfolded
from attnbench.inputs import heads, normal
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import SOFTMAX, Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.problem import Mode, Params, Problem, Scope
from attnbench.projection import projected

FEWEST_OUTPUTS = 32
"""Of a block of the convolution, where there are as many tokens."""


def reference(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, taps: Tensor | None = None) -> Tensor:
    """What has no axis of N tokens is in float32 at least.

    Args:
        q: [B, H, N, D].
        k, v: [B, Hk, N, D].
        taps: [H, taps] of the convolution, or None.

    Returns: [B, H, N, D].
    """
    scale = problem.head_dim**-0.5
    q_means, k_means = (landmarks(x, params["landmarks"]) for x in (q, k))
    by_landmark = (folded(q_means * scale, k).to(q.dtype) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
    values = through_landmarks(params, q_means, k_means, unfolded(by_landmark, q_means), scale)
    by_token = (folded(q, k) @ (k_means * scale).to(q.dtype).transpose(-2, -1)).softmax(dim=-1)
    y = unfolded(by_token, q) @ values.to(q.dtype)  # [B, H, N, M] × [B, H, M, D]
    return y if taps is None else y + convolved(v, taps)


def landmarks(x: Tensor, count: int) -> Tensor:
    """Means of segments, in float32 at least: [B, H, N, D] → [B, H, M, D]."""
    sizes = segments(x.shape[-2], count)
    parts = x.split([number * tokens for number, tokens in sizes], dim=-2)
    wide = torch.promote_types(x.dtype, torch.float32)
    means = [part.unflatten(-2, size).mean(dim=-2, dtype=wide) for part, size in zip(parts, sizes, strict=True)]
    return torch.cat(means, dim=-2)


def segments(n: int, count: int) -> list[tuple[int, int]]:
    """How many segments of how many tokens each: min(count, N) in all, the longer ones first."""
    count = min(count, n)
    length, longer = divmod(n, count)
    return [size for size in ((longer, length + 1), (count - longer, length)) if size[0]]


def through_landmarks(params: Params, q_means: Tensor, k_means: Tensor, by_landmark: Tensor, scale: float) -> Tensor:
    """Z (B v), in the dtype of the landmarks. by_landmark: B v, [B, H, M, D]. Returns [B, H, M, D]."""
    scores = unfolded(folded(q_means * scale, k_means) @ k_means.transpose(-2, -1), q_means)
    return pseudo_inverse(scores.softmax(dim=-1), params["iterations"]) @ by_landmark.to(q_means.dtype)


def pseudo_inverse(a: Tensor, iterations: int) -> Tensor:
    """Z of A, [..., M, M]."""
    one = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    z = a.transpose(-2, -1) / a.sum(dim=-2, keepdim=True).amax(dim=-1, keepdim=True)
    for _ in range(iterations):
        az = a @ z
        z = 0.25 * z @ (13 * one - az @ (15 * one - az @ (7 * one - az)))
    return z


def convolved(v: Tensor, taps: Tensor) -> Tensor:
    """Each head's taps along the tokens, by blocks: a block's outputs are a banded matrix times the rows they read.

    v: [B, Hk, N, D]. taps: [H, taps]. Returns [B, H, N, D].
    """
    (b, hk, n, d), (h, count) = v.shape, taps.shape
    outputs, blocks = conv_blocks(n, count)
    rows = outputs + count - 1
    # Row i of the band has the taps from column i on: rows that are one longer, one after the other.
    band = pad(taps, (0, outputs)).unsqueeze(1).expand(h, outputs, rows + 1).flatten(1)[:, : outputs * rows]
    left = count // 2
    padded = pad(v, (0, 0, left, (blocks - 1) * outputs + rows - n - left))
    windows = padded.unfold(-2, rows, outputs).permute(1, 4, 0, 2, 3).flatten(2)  # [Hk, rows, B·blocks·D]
    y = band.reshape(hk, -1, rows) @ windows  # [Hk, G·outputs, B·blocks·D]
    y = y.view(h, outputs, b, blocks, d).permute(2, 0, 3, 1, 4).flatten(2, 3)
    return y[:, :, :n]


def conv_blocks(n: int, count: int) -> tuple[int, int]:
    """Outputs in a block, about as many as taps, and blocks."""
    outputs = min(n, max(FEWEST_OUTPUTS, count - 1))
    return outputs, -(-n // outputs)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1), taps ~ N(0, 1/taps). Half the variance of q and k is that of their segment: the landmarks of
    tokens that have nothing in common are near 0, and A near 1/M whatever q and k are.
    """
    data = heads(problem, generator, "q", "k", "v")
    for name in ("q", "k"):
        data[name] = (data[name] + _of_segments(problem, params, generator, data[name])) * 0.5**0.5
    taps = params["conv"]
    if taps == "off":
        return Inputs(data)
    return Inputs(data, {"taps": normal(problem, generator, problem.heads, taps, scale=taps**-0.5)})


def _of_segments(problem: Problem, params: Params, generator: Generator, x: Tensor) -> Tensor:
    """As x, the same N(0, 1) for all tokens of a segment."""
    parts = [
        normal(problem, generator, *x.shape[:2], number, x.shape[-1]).repeat_interleave(tokens, dim=-2)
        for number, tokens in segments(problem.seq_len, params["landmarks"])
    ]
    return torch.cat(parts, dim=-2)


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """`flops` has A Z three times a step, as the formula does; the reference computes it once. Of the convolution it
    executes whole blocks, about twice the taps.
    """
    b, h, n, d = problem.batch, problem.heads, problem.seq_len, problem.head_dim
    m, steps = min(params["landmarks"], n), params["iterations"]
    attended = (
        2 * product(b * h * n * m * d, mode)  # q k̃ᵀ and F (Z B v): [N, D] × [D, M], [N, M] × [M, D]
        + 2 * product(b * h * m * n * d, mode)  # q̃ kᵀ and B v: [M, D] × [D, N], [M, N] × [N, D]
        + product(b * h * m * m * d, mode)  # q̃ k̃ᵀ: [M, D] × [D, M]
        + product(b * h * m * m * d, mode)  # Z (B v): [M, M] × [M, D]
    )
    one = product(b * h * m**3, mode)  # [M, M] × [M, M]
    taps = 0 if params["conv"] == "off" else params["conv"]
    inside = sum(max(0, n - abs(t - taps // 2)) for t in range(taps))  # pairs of an output and a token
    size, kv_size = b * n * problem.channels, b * n * problem.kv_channels
    return Cost(
        flops=attended + 6 * steps * one + product(b * h * inside * d, mode),
        reference_flops=attended + 4 * steps * one + _executed_conv(problem, taps, mode),
        # max, subtract, exp, divide of three softmaxes; a step's sums
        elementwise=b * h * (4 * (2 * n * m + m * m) + 7 * steps * m * m) * (1 if mode == "fwd" else 2),
        bytes_required=traffic(problem, mode, read=size + 2 * kv_size + h * taps, written=size),
        # q̃ is complete before a key is weighed, and B v before a query is answered, with v again for a convolution.
        # Backwards q and ∂y are read for the gradient of B v, then k and v, and then q and ∂y for dq: only now is the
        # part of it that comes from q̃ complete. A convolution gives dv a part from ∂y.
        bytes_again=moved_again(
            problem,
            mode,
            forward=size + (kv_size if taps else 0),
            backward=2 * size + (size if taps else 0),
        ),
    )


def _executed_conv(problem: Problem, taps: int, mode: Mode) -> int:
    """FLOPs of `convolved`."""
    if not taps:
        return 0
    outputs, blocks = conv_blocks(problem.seq_len, taps)
    columns = problem.batch * blocks * problem.head_dim
    return product(problem.heads * outputs * (outputs + taps - 1) * columns, mode)  # band: [outputs, rows] × [rows, …]


def layer_bytes_again(problem: Problem, mode: Mode) -> int:
    """x is read for the landmarks, then for what they see, then for y; backwards x and y's gradient for the gradient of
    what they have seen, x for that of q̃, then both for x's.
    """
    size = problem.batch * problem.seq_len * problem.channels
    return moved_again(problem, mode, forward=2 * size, backward=3 * size)


def _by_sdpa() -> Callable[..., Tensor]:
    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, taps: Tensor | None = None) -> Tensor:
        q_means, k_means = (landmarks(x, params["landmarks"]) for x in (q, k))
        by_landmark = unfolded(scaled_dot_product_attention(folded(q_means, k).to(q.dtype), k, v), q_means)
        values = through_landmarks(params, q_means, k_means, by_landmark, problem.head_dim**-0.5)
        keys = k_means.to(q.dtype).repeat_interleave(group_of(q, k), dim=1)  # M of each head
        y = scaled_dot_product_attention(q, keys, values.to(q.dtype))
        return y if taps is None else y + convolved(v, taps)

    return call


CORE = Form(
    reference,
    make_inputs,
    cost,
    {"cuda": Impl(_by_sdpa, "torch SDPA twice, cuBLAS", lambda problem, params, device: None, grouped=True)},
)


def why_not(problem: Problem, params: Params, scope: Scope) -> str | None:
    """The convolution's middle tap is the token's own."""
    taps = params["conv"]
    if taps != "off" and taps % 2 == 0:
        return f"conv {taps} is even; an odd number of taps has a middle one, for the token itself"
    return None


OPERATOR = Operator(
    paper=Paper(
        "Xiong et al.",
        2021,
        "Nyströmformer: A Nyström-Based Algorithm for Approximating Self-Attention",
        "https://arxiv.org/abs/2102.03902",
        "algorithm 1",
    ),
    forms=with_graph({"core": CORE, "layer": projected(CORE, bytes_again=layer_bytes_again)}, "cuda"),
    complexity=lambda params: Complexity(time="n", memory="n"),
    params={
        "landmarks": Param(64, "m: segments of tokens, each with a mean query and a mean key", minimum=1),
        "iterations": Param(
            6, "steps towards the pseudo-inverse, of which many more than needed lose float32", minimum=1, maximum=12
        ),
        "conv": Param("off", "taps of the convolution of the values that is added, an odd number", ("off",), minimum=1),
    },
    grouped=True,
    causal="a landmark is the mean of tokens of which some come later",
    why_not=why_not,
    estimates=lambda params: SOFTMAX if params["conv"] == "off" else None,
    approaches=lambda params: "landmarks" if params["conv"] == "off" else None,
    notes="its six steps need not reach the pseudo-inverse",
)
