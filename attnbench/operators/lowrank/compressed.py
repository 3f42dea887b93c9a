"""y_i = Σ_m p_im v̄_m, p_i = softmax_m(q_iᵀ k̄_m / √D), k̄_m = Σ_t W_tᵀ k_{3m+t} over 0 ≤ t < 3, for all ⌈N/3⌉ blocks m.

Liu et al. 2018, "Generating Wikipedia by Summarizing Long Sequences", sec. 4.2.4 "Memory-compressed attention",
https://arxiv.org/abs/1801.10198. W: a convolution with kernel 3 and stride 3 within each head, one for keys and one
for values; tokens after the last are 0. Causal, as in the authors' code (Tensor2Tensor): query i sees the blocks whose
tokens all come before it, 3m + 3 ≤ i, and token 0 unchanged, without which the first queries would see no key. Kept of
the tokens before: token 0, the blocks that their queries saw, and the tokens behind the last of these blocks, 3 at
most, which are compressed when a query first sees their block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor, einsum
from torch.nn.functional import pad, scaled_dot_product_attention

from attnbench.cost import moved_again, product, traffic, uncounted_sums
from attnbench.grouped import folded, hide_for_each, unfolded
from attnbench.inputs import heads, normal
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.problem import Mode, Params, Problem
from attnbench.projection import projected
from attnbench.state import appended, cache_bytes, with_room


def reference(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    conv_k: Tensor,
    conv_v: Tensor,
    k_cache: Tensor | None = None,
    v_cache: Tensor | None = None,
    k_pending: Tensor | None = None,
    v_pending: Tensor | None = None,
) -> Tensor:
    """Materialises Q × N/3 weights.

    Args:
        q: [B, H, Q, D].
        k, v: [B, Hk, Q, D].
        conv_k, conv_v: [Hk, 3·D, D].
        k_cache, v_cache: token 0 and the compressed blocks, [B, Hk, 1 + M, D], where Q < N.
        k_pending, v_pending: the tokens behind the blocks that were seen, and the new ones, [B, Hk, ≤ 3 + Q, D].

    Returns: [B, H, Q, D].
    """
    if k_cache is None or v_cache is None or k_pending is None or v_pending is None:
        keys, values = shortened(problem, params, k, conv_k), shortened(problem, params, v, conv_v)  # [B, Hk, M, D]
    else:
        keys = lengthened(problem, params, appended(k_pending, k), conv_k, k_cache)
        values = lengthened(problem, params, appended(v_pending, v), conv_v, v_cache)
    scores = folded(q * problem.head_dim**-0.5, keys) @ keys.transpose(-2, -1)  # [B, Hk, G·Q, M]
    if problem.causal and problem.query_len > 1:
        scores = hide_for_each(scores, ~visible(problem, params, q.device))
    return unfolded(scores.softmax(dim=-1) @ values, q)


def shortened(problem: Problem, params: Params, x: Tensor, conv: Tensor) -> Tensor:
    """[B, Hk, N, D] → [B, Hk, M, D]: the blocks convolved; causal: token 0, then the blocks that any query sees."""
    factor, count = params["factor"], blocks(problem, params)
    n = count * factor
    inside = x[:, :, :n] if n <= problem.seq_len else pad(x, (0, 0, 0, n - problem.seq_len))
    short = convolved(inside, conv, factor)
    return torch.cat((x[:, :, :1], short), dim=2) if problem.causal else short


def convolved(x: Tensor, conv: Tensor, factor: int) -> Tensor:
    """Whole blocks: [B, Hk, M·3, D] → [B, Hk, M, D]."""
    return einsum("bhmi,hio->bhmo", x.unflatten(2, (-1, factor)).flatten(3), conv)


def lengthened(problem: Problem, params: Params, pending: Tensor, conv: Tensor, cache: Tensor) -> Tensor:
    """The cache with the blocks that only the new queries see in its last rows."""
    factor, new = params["factor"], new_blocks(problem, params)
    if new:
        cache[:, :, -new:] = convolved(pending[:, :, : new * factor], conv, factor)
    return cache


def blocks(problem: Problem, params: Params) -> int:
    """The number of blocks that are convolved."""
    n, factor = problem.seq_len, params["factor"]
    return (n - 1) // factor if problem.causal else -(-n // factor)


def new_blocks(problem: Problem, params: Params) -> int:
    """Of the blocks those that no query of the tokens before saw."""
    return blocks(problem, params) - (blocks(problem.before, params) if problem.past else 0)


def pending_tokens(problem: Problem, params: Params) -> int:
    """Causal: tokens behind the last block that any query sees."""
    return problem.seq_len - params["factor"] * blocks(problem, params)


def visible(problem: Problem, params: Params, device: torch.device) -> Tensor:
    """Causal: [Q, M], whether query i sees key m: token 0 where m = 0, else block m − 1."""
    i = torch.arange(problem.past, problem.seq_len, device=device)
    m = torch.arange(blocks(problem, params) + 1, device=device)
    return m * params["factor"] <= i[:, None]


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1); convolutions ~ N(0, 1/(3·D)), so that shortened keys, and the logits, keep variance 1."""
    width = params["factor"] * problem.head_dim
    shape = (problem.kv_heads, width, problem.head_dim)
    parameters = {name: normal(problem, generator, *shape, scale=width**-0.5) for name in ("conv_k", "conv_v")}
    data = heads(problem, generator, "q", "k", "v")
    return Inputs(data, parameters, state=_drawn_state(problem, params, generator, {**data, **parameters}))


def _drawn_state(
    problem: Problem, params: Params, generator: Generator, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """N(0, 1) blocks and tokens, and the new ones behind them, so that a call leaves its inputs as they were drawn."""
    if not problem.past:
        return {}
    rows = (1 + blocks(problem, params), pending_tokens(problem.before, params) + problem.query_len)
    drawn = [
        normal(problem, generator, problem.batch, problem.kv_heads, number, problem.head_dim)
        for number in rows
        for _ in ("k", "v")
    ]
    state = dict(zip(STATE, drawn, strict=True))
    for x in ("k", "v"):
        pending = appended(state[f"{x}_pending"], tensors[x])
        lengthened(problem, params, pending, tensors[f"conv_{x}"], state[f"{x}_cache"])
    return state


def state(
    problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, conv_k: Tensor, conv_v: Tensor
) -> dict[str, Tensor]:
    """Token 0, the compressed blocks, and the tokens behind them."""
    before = problem.before
    caches: dict[str, Tensor] = {}
    for name, x, conv in (("k", k, conv_k), ("v", v, conv_v)):
        cache = shortened(before, params, x, conv)
        caches[f"{name}_cache"] = pad(cache, (0, 0, 0, new_blocks(problem, params)))
        caches[f"{name}_pending"] = with_room(problem, x, pending_tokens(before, params))
    return {name: caches[name] for name in STATE}


STATE = ("k_cache", "v_cache", "k_pending", "v_pending")


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The reference multiplies up to two tokens of padding, and causal, all pairs: not quite twice those allowed."""
    b, h, hk, n, d = problem.batch, problem.heads, problem.kv_heads, problem.seq_len, problem.head_dim
    q, factor, m, new = problem.query_len, params["factor"], blocks(problem, params), new_blocks(problem, params)
    within = new * factor if problem.causal else n
    keys = m + 1 if problem.causal else m
    pairs = sum_of_floors(n, factor) - sum_of_floors(problem.past, factor) + q if problem.causal else n * m
    size, kv_size = b * q * problem.channels, b * q * problem.kv_channels
    convolutions = 2 * product(b * hk * new * factor * d * d, mode)
    weights = 2 * hk * factor * d * d if new or not problem.past else 0
    read, written = (2 * b * rows * problem.kv_channels for rows in _kept_rows(problem, params))
    return Cost(
        flops=2 * product(b * hk * within * d * d, mode)  # of keys and of values: [M, 3·D] × [3·D, D]
        + product(b * h * pairs * d, mode)  # q k̄ᵀ: [Q, D] × [D, M]
        + product(b * h * pairs * d, mode),  # p v̄: [Q, M] × [M, D]
        reference_flops=convolutions + 2 * product(b * h * q * keys * d, mode),
        elementwise=4 * b * h * pairs * (1 if mode == "fwd" else 2),  # max, subtract, exp, divide
        bytes_required=traffic(problem, mode, read=size + 2 * kv_size + weights, constant=read, written=size + written),
        bytes_again=moved_again(problem, mode, backward=size),  # y, as of softmax
        uncounted=uncounted_sums(convolutions, factor * d),
        state_bytes=cache_bytes(problem, 1 + m + pending_tokens(problem, params)) if problem.causal else None,
    )


def _kept_rows(problem: Problem, params: Params) -> tuple[int, int]:
    """Rows of the state that a call must read: those of the blocks, and pending ones where a block is completed; and
    that it must write: new blocks, and new tokens behind the last.
    """
    if not problem.past:
        return 0, 0
    before, new, pending = problem.before, new_blocks(problem, params), pending_tokens(problem, params)
    read = 1 + blocks(before, params) + (pending_tokens(before, params) if new else 0)
    return read, new + min(problem.query_len, pending)


def sum_of_floors(n: int, factor: int) -> int:
    """Σ ⌊i / factor⌋ over 0 ≤ i < n."""
    quotient, remainder = divmod(n, factor)
    return factor * (quotient * (quotient - 1) // 2) + remainder * quotient


def _cuda() -> Callable[..., Tensor]:
    def call(
        problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, conv_k: Tensor, conv_v: Tensor
    ) -> Tensor:
        keys, values = shortened(problem, params, k, conv_k), shortened(problem, params, v, conv_v)
        if not problem.causal:
            return unfolded(scaled_dot_product_attention(folded(q, keys), keys, values), q)
        from attnbench.kernels.flex.patterns import every_few_tokens
        from attnbench.kernels.flex.windows import attend

        return attend(q, keys, values, every_few_tokens(problem.seq_len, keys.shape[2], params["factor"], q.device))

    return call


def _cuda_why_not(problem: Problem, params: Params, device: str) -> str | None:
    if not problem.causal:
        return None
    from attnbench.kernels.flex import windows

    return windows.why_not(problem, problem.seq_len, blocks(problem, params) + 1)


CORE = Form(
    reference,
    make_inputs,
    cost,
    {"cuda": Impl(_cuda, "cuBLAS, torch SDPA; causal: FlexAttention, block mask", _cuda_why_not, grouped=True)},
    state,
)

OPERATOR = Operator(
    paper=Paper(
        "Liu et al.",
        2018,
        "Generating Wikipedia by Summarizing Long Sequences",
        "https://arxiv.org/abs/1801.10198",
        "sec. 4.2.4, memory-compressed attention",
    ),
    forms=with_graph({"core": CORE, "layer": projected(CORE)}, "cuda"),
    complexity=lambda params: Complexity(time="n^2", memory="n^2"),
    pairs=lambda params, causal: "fixed" if causal else "all",
    params={"factor": Param(3, "tokens compressed into one: the convolution's kernel and stride", minimum=1)},
    grouped=True,
    continues=True,
    notes="still quadratic, divided by 3",
)
