"""y_i = Σ_t p_it u_t, p_i = softmax_t(q_iᵀ c_t / √D); c, u: keys and values of i's own block and its sorted block.

The tokens are cut into N_B blocks of b. The sum of a block's keys gives that block's row of sorting logits,
R = X' W (N_B × N_B; one linear map, shared by the heads, without bias). Gumbel-Sinkhorn makes them a matrix of almost
unit row and column sums: S = exp((R + noise) / τ), then T times rows divided by their sums, and columns by theirs. The
sorted block of block i is Σ_j S_ij (block j), position by position, for the keys and for the values alike. A query
sees the b keys of its own block and the b of its sorted block, in one softmax. `kind: sortcut`: every query sees the
first `cut` sorted blocks, and nothing else.

Causal: block i's summary is the sum of all keys up to its own first token; S_ij is balanced over blocks j < i only,
columns by running sums over the blocks so far, since a whole column's sum would tell of later blocks. Block 0 has no
sorted block, and the own block is seen up to the query.

Where b does not divide N the last block is short. No query sees its padding, which counts as zero in a sorted block.
With fewer than b tokens there is one block of N.

Kept of the tokens before the new ones, in the causal form: all keys and values, which later blocks mix anew; the sum of
the keys; the column sums of every round of balancing; the sorted block of a block that has begun. b, W and the noise
are those of all N tokens; W and noise for fewer blocks are their first columns and rows.

Tay et al. 2020, "Sparse Sinkhorn Attention", sec. 3.1–3.4, https://arxiv.org/abs/2002.11296. The sum, the single linear
map and its sharing follow the author's code in Long Range Arena; one softmax over both blocks follows the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from attnbench.cost import moved_again, product, traffic
from attnbench.inputs import heads, normal, torch_dtype
from attnbench.kernels.library.graphs import with_graph
from attnbench.kernels.support import why_not
from attnbench.masking import ahead, hide
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.operators.clustered._sorted_so_far import attend, balanced_rows, pieces
from attnbench.problem import Mode, Params, Problem, Scope
from attnbench.projection import projected
from attnbench.state import appended, cache_bytes, with_room

COLDEST_CAUSAL = 0.25
"""The least tau at which running sums do not amplify rounding errors of logits too far."""


def reference(
    problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, w: Tensor, noise: Tensor, **caches: Tensor
) -> Tensor | tuple[Tensor, ...]:
    """q, k, v: [B, H, Q, D]. w: [D, N_B]. noise: [B, H, N_B, N_B]. caches: as `state` names them, where Q < N.

    Returns: [B, H, Q, D]; where Q < N also the new `key_sum`, and `column_sums` where there is more than one block.
    """
    if caches:
        return continued(problem, params, q, k, v, w, noise, **caches)
    n, b = problem.seq_len, block_length(problem, params)
    keys, values = blocked(k, b), blocked(v, b)  # [B, H, N_B, b, D]
    sorted_keys, sorted_values = _mixed(sorting_matrix(problem, params, keys, w, noise), keys, values)
    q = q * problem.head_dim**-0.5
    if params["kind"] == "sortcut":
        return (q @ sorted_keys.flatten(2, 3).mT).softmax(dim=-1) @ sorted_values.flatten(2, 3)

    if problem.causal:  # nothing is sorted to the first block
        sorted_keys, sorted_values = (pad(x, (0, 0, 0, 0, 1, 0)) for x in (sorted_keys, sorted_values))
    scores = blocked(q, b) @ torch.cat([sorted_keys, keys], dim=-2).mT  # [B, H, N_B, b, 2b]
    if problem.causal or n % b:
        scores = hide(scores, _hidden(problem, b, q.device))
    y = scores.softmax(dim=-1) @ torch.cat([sorted_values, values], dim=-2)
    return y.flatten(2, 3)[:, :, :n]


def continued(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    w: Tensor,
    noise: Tensor,
    key_sum: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    column_sums: Tensor | None = None,
    sorted_k_cache: Tensor | None = None,
    sorted_v_cache: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The causal form of the new tokens. A block is sorted when its first token comes.

    Args:
        key_sum: of all tokens before, [B, H, D].
        k_cache, v_cache: [B, H, N, D].
        column_sums: logarithms, [B, H, T, blocks sorted].
        sorted_k_cache, sorted_v_cache: of the block that has begun, and room for the new ones: [B, H, blocks, b, D].
    """
    b, last, new = block_length(problem, params), last_block(problem, params), new_blocks(problem, params)
    keys, values = appended(k_cache, k), appended(v_cache, v)
    if new and sorted_k_cache is not None and sorted_v_cache is not None:
        so_far = key_sum.unsqueeze(2) + k.to(key_sum.dtype).cumsum(dim=2)  # [B, H, Q, D]
        first = last + 1 - new
        rows = so_far[:, :, first * b - problem.past :: b] @ w[:, :last].to(key_sum.dtype)
        log = (rows + noise[:, :, first : last + 1, :last]) / params["tau"]  # [B, H, new blocks, last]
        log, column_sums = balanced_rows(log, params["iterations"], column_sums)
        mixed = _mixed(log.exp(), *(blocked(x[:, :, : last * b], b) for x in (keys, values)))
        for cache, blocks in zip((sorted_k_cache, sorted_v_cache), mixed, strict=True):
            cache[:, :, -new:] = blocks
    elif column_sums is not None:
        column_sums = column_sums.clone()
    q = q * problem.head_dim**-0.5
    y = attend(q, keys, values, sorted_k_cache, sorted_v_cache, problem.past, b)
    key_sum = key_sum + k.sum(dim=2, dtype=key_sum.dtype)
    return (y, key_sum) if column_sums is None else (y, key_sum, column_sums)


def state(
    problem: Problem, params: Params, k: Tensor, v: Tensor, w: Tensor, noise: Tensor, **_: Tensor
) -> dict[str, Tensor]:
    """As `continued` takes it: first what it returns anew, then the caches."""
    b, new = block_length(problem, params), new_blocks(problem, params)
    keys, values = blocked(k, b), blocked(v, b)
    fixed = {"key_sum": k.sum(dim=2, dtype=torch.promote_types(k.dtype, torch.float32))}
    caches = {"k_cache": with_room(problem, k), "v_cache": with_room(problem, v)}
    begun = _mixed(k.new_zeros(*k.shape[:2], 0, 1), keys, values)
    if keys.shape[2] > 1:
        log = sorting_logits(problem, keys, w, noise) / params["tau"]
        log, fixed["column_sums"] = balanced_rows(log, params["iterations"], None)
        if k.shape[2] % b:
            begun = _mixed(log[:, :, -1:].exp(), keys, values)
    if begun[0].shape[2] + new:
        for name, blocks in zip(("sorted_k_cache", "sorted_v_cache"), begun, strict=True):
            caches[name] = pad(blocks, (0, 0, 0, 0, 0, new))
    return {**fixed, **caches}


def last_block(problem: Problem, params: Params) -> int:
    """The number of the last token's block: as many blocks are sorted in the causal form."""
    return (problem.seq_len - 1) // block_length(problem, params)


def new_blocks(problem: Problem, params: Params) -> int:
    """Of the sorted blocks of the causal form those that begin with a new token."""
    b = block_length(problem, params)
    return last_block(problem, params) - (max(problem.past, 1) - 1) // b


def _mixed(sorting: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_j S_ij (block j) of the keys and of the values, [B, H, rows, b, D] each. sorting: [B, H, rows, columns]."""
    sorting = sorting.to(values.dtype)
    keys, values = keys[:, :, : sorting.shape[-1]], values[:, :, : sorting.shape[-1]]
    sorted_keys, sorted_values = sorting @ keys.flatten(-2), sorting @ values.flatten(-2)
    return sorted_keys.unflatten(-1, keys.shape[-2:]), sorted_values.unflatten(-1, keys.shape[-2:])


def block_length(problem: Problem, params: Params) -> int:
    """b: the param, √N rounded up for "sqrt(n)", or all N tokens where there are fewer."""
    n: int = problem.seq_len
    return math.isqrt(n - 1) + 1 if params["block"] == "sqrt(n)" else min(params["block"], n)


def block_count(problem: Problem, params: Params) -> int:
    """N_B."""
    return -(-problem.seq_len // block_length(problem, params))


def sorted_count(problem: Problem, params: Params) -> int:
    """The number of sorted blocks: `cut` for a sortcut, otherwise one for each block (causal: but the first)."""
    count = block_count(problem, params)
    return min(params["cut"], count) if params["kind"] == "sortcut" else count - problem.causal


def blocked(x: Tensor, b: int) -> Tensor:
    """[B, H, N, D] → [B, H, N_B, b, D], the last block padded with zeros."""
    missing = -x.shape[2] % b
    return (pad(x, (0, 0, 0, missing)) if missing else x).unflatten(2, (-1, b))


def sorting_matrix(problem: Problem, params: Params, keys: Tensor, w: Tensor, noise: Tensor) -> Tensor:
    """S: [B, H, rows, columns], in float32 for half precisions. keys: [B, H, N_B, b, D].

    rows: the sorted blocks (causal: of blocks 1 and later); columns: the blocks summed (causal: all but the last).
    """
    balance = _balanced_so_far if problem.causal else _balanced
    log = balance(sorting_logits(problem, keys, w, noise) / params["tau"], params["iterations"])
    return log[:, :, : sorted_count(problem, params)].exp()


def sorting_logits(problem: Problem, keys: Tensor, w: Tensor, noise: Tensor) -> Tensor:
    """R + noise, before the temperature: [B, H, N_B, N_B] (causal: blocks 1… × all but the last)."""
    exact = torch.promote_types(keys.dtype, torch.float32)
    summary = keys.sum(dim=-2, dtype=exact)  # [B, H, N_B, D]
    w, noise = w.to(exact), noise.to(exact)
    if problem.causal:
        so_far = summary.mT.cumsum(dim=-1).mT  # along the last axis: a GPU adds up along another by few threads
        summary = so_far[:, :, :-1] + keys[:, :, 1:, 0]
        columns = keys.shape[2] - 1
        w, noise = w[:, :columns], noise[:, :, 1 : columns + 1, :columns]
    return summary @ w + noise


def _balanced(log: Tensor, iterations: int) -> Tensor:
    for _ in range(iterations):
        log = log - log.logsumexp(dim=-1, keepdim=True)
        log = log - log.logsumexp(dim=-2, keepdim=True)
    return log


def _balanced_so_far(log: Tensor, iterations: int) -> Tensor:
    """Row i is divided by its sum over j ≤ i, and entry ij by column j's sum over the rows j … i."""
    if log.shape[-1] == 0:
        return log
    later = ahead(log.shape[-2], log.shape[-1], log.device)
    log = log.masked_fill(later, float("-inf"))
    for _ in range(iterations):
        log = log - log.logsumexp(dim=-1, keepdim=True)
        largest = log.detach().amax(dim=-2, keepdim=True)
        so_far = (log - largest).exp().cumsum(dim=-2).masked_fill(later, 1)
        log = log - (so_far.clamp_min(torch.finfo(log.dtype).tiny).log() + largest)
    return log


def _hidden(problem: Problem, b: int, device: torch.device) -> Tensor:
    """Which of the keys [sorted block, own block] a query does not see: bool [N_B, b or 1, 2b]."""
    n = problem.seq_len
    missing = (torch.arange(n + -n % b, device=device) >= n).view(-1, 1, b)
    sorted_hidden = torch.zeros_like(missing)
    if problem.causal:
        missing = missing | ahead(b, b, device)
        sorted_hidden[0] = True
    return torch.cat([sorted_hidden.expand_as(missing), missing], dim=-1)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1); W such that sorting logits have variance 1 (causal: at most 1); Gumbel noise."""
    count, b = block_count(problem, params), block_length(problem, params)
    summed = problem.seq_len if problem.causal else b
    w = normal(problem, generator, problem.head_dim, count, scale=(problem.head_dim * summed) ** -0.5)
    shape = (problem.batch, problem.heads, count, count)
    uniform = torch.rand(shape, generator=generator, device=generator.device).clamp_(1e-6, 1 - 1e-6)
    noise = uniform.log_().neg_().log_().neg_().to(torch_dtype(problem))
    data = heads(problem, generator, "q", "k", "v")
    return Inputs(data, {"w": w}, {"noise": noise}, _drawn_state(problem, params, generator, data, w, noise))


def _drawn_state(
    problem: Problem, params: Params, generator: Generator, data: dict[str, Tensor], w: Tensor, noise: Tensor
) -> dict[str, Tensor]:
    """That of keys and values ~ N(0, 1), after a call, which then leaves its inputs as they were drawn."""
    if not problem.past:
        return {}
    k, v = (normal(problem, generator, problem.batch, problem.heads, problem.past, problem.head_dim) for _ in range(2))
    drawn = state(problem, params, k=k, v=v, w=w, noise=noise)
    continued(problem, params, **data, w=w, noise=noise, **drawn)
    return drawn


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The reference pads the last block, and where causal executes all pairs of blocks and of tokens in a block.

    That is at most 2 times the exact products (N = b + 1), and exactly these where b divides N; causal at most 8 times
    (N = b + 1), 4 in one block, 2 for long sequences.
    """
    if problem.past:
        return _step_cost(problem, params, mode)
    batch, h, n, d = problem.batch, problem.heads, problem.seq_len, problem.head_dim
    b, count, sorted_blocks = block_length(problem, params), block_count(problem, params), sorted_count(problem, params)
    whole_blocks, last_tokens = divmod(n, b)
    if params["kind"] == "sortcut":
        mixed, pairs = sorted_blocks * n, n * sorted_blocks * b
    elif problem.causal:
        mixed, pairs = _causal_products(n, b)
    else:
        mixed, pairs = count * n, whole_blocks * b * 2 * b + last_tokens * (last_tokens + b)
    columns = count - problem.causal
    compared = columns * (columns + 1) // 2 if problem.causal else count * count
    executed = n * sorted_blocks * b if params["kind"] == "sortcut" else count * b * 2 * b
    size = batch * h * n * d
    return Cost(
        flops=product(batch * h * compared * d, mode)  # X' W: [N_B, D] × [D, N_B]
        + 2 * product(batch * h * mixed * d, mode)  # S K and S V: [N_B, N_B] × [N_B, b·D]
        + 2 * product(batch * h * pairs * d, mode),  # q cᵀ: [b, D] × [D, 2b] and p u: [b, 2b] × [2b, D] in every block
        reference_flops=product(batch * h * columns * columns * d, mode)
        + 2 * product(batch * h * sorted_blocks * columns * b * d, mode)
        + 2 * product(batch * h * executed * d, mode),
        elementwise=batch * h * (4 * pairs + 6 * params["iterations"] * compared) * (1 if mode == "fwd" else 2),
        bytes_required=traffic(
            problem, mode, read=3 * size + d * count, written=size, constant=batch * h * count * count
        ),
        # Every block's keys are summed before the first block is sorted; what that gives dk comes after all the rest.
        bytes_again=0 if problem.causal else moved_again(problem, mode, forward=size, backward=2 * size),
        state_bytes=_state_bytes(problem, params) if problem.causal else None,
    )


def _causal_products(n: int, b: int) -> tuple[int, int]:
    """Tokens that are mixed into the sorted blocks of n tokens, and the pairs of queries and keys."""
    whole_blocks, last_tokens = divmod(n, b)
    count = -(-n // b)
    own = whole_blocks * b * (b + 1) // 2 + last_tokens * (last_tokens + 1) // 2
    return count * (count - 1) // 2 * b, own + max(0, n - b) * b


def _step_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The difference of two causal forms with the same blocks.

    The reference multiplies later columns, and later keys of a query's own block, as well.
    """
    heads, past, d = problem.batch * problem.heads, problem.past, problem.head_dim
    b, last, new = block_length(problem, params), last_block(problem, params), new_blocks(problem, params)
    (mixed_before, pairs_before), (mixed, pairs) = (_causal_products(n, b) for n in (past, problem.seq_len))
    mixed, pairs = mixed - mixed_before, pairs - pairs_before
    executed = sum(piece.pairs(b) for piece in pieces(past, problem.seq_len, b))
    size, begun = heads * problem.query_len * d, _begun(past, b)
    cached = past if new else past % b  # tokens; a new block is mixed of all, else a query sees those of its own block
    read = heads * (2 * (cached + begun * b) * d + mixed // b) + (d * last if new else 0)
    written = heads * 2 * d * (problem.query_len + (b if new and _begun(problem.seq_len, b) else 0))
    return Cost(
        flops=product(heads * mixed // b * d, mode)  # X' W
        + 2 * product(heads * mixed * d, mode)  # S K and S V
        + 2 * product(heads * pairs * d, mode),  # q cᵀ and p u
        reference_flops=product(heads * new * last * d, mode)
        + 2 * product(heads * new * last * b * d, mode)
        + 2 * product(heads * executed * d, mode),
        elementwise=heads * (4 * pairs + 6 * params["iterations"] * mixed // b),
        bytes_required=traffic(problem, mode, read=3 * size, constant=read, written=size + written)
        + _sums_bytes(problem, params, last - new if new else 0)
        + _sums_bytes(problem, params, last if new else 0),
        state_bytes=_state_bytes(problem, params),
    )


def _begun(tokens: int, b: int) -> bool:
    """Whether the tokens end within a block that has a sorted one."""
    return tokens > b and tokens % b > 0


def _sums_bytes(problem: Problem, params: Params, columns: int) -> int:
    """Of the sum of keys, and of the column sums of so many columns; in at least float32."""
    elements = problem.head_dim + params["iterations"] * columns
    return problem.batch * problem.heads * elements * max(4, problem.item_bytes)


def _state_bytes(problem: Problem, params: Params) -> int:
    b, n = block_length(problem, params), problem.seq_len
    tokens = n + (b if _begun(n, b) else 0)
    return cache_bytes(problem, tokens) + _sums_bytes(problem, params, last_block(problem, params))


def _complexity(params: Params) -> Complexity:
    """Sorting: N²·D/b for K and for V, and T rounds over (N/b)² logits; a sortcut keeps only the logits' (N/b)²·D."""
    growth = "n^1.5" if params["block"] == "sqrt(n)" else "n^2"
    return Complexity(time=growth, memory=growth)  # type: ignore[arg-type]


def _why_not(problem: Problem, params: Params, scope: Scope) -> str | None:
    if params["kind"] == "sortcut" and problem.causal:
        return "kind: sortcut is not causal: every query sees the same sorted blocks, including later tokens"
    if problem.causal and params["tau"] < COLDEST_CAUSAL:
        return (
            f"tau {params['tau']}: balancing by running sums multiplies the rounding of logits over tau at every "
            f"iteration; a causal sinkhorn takes {COLDEST_CAUSAL} or more"
        )
    return None


def _fused() -> Callable[..., Tensor]:
    from attnbench.kernels.sinkhorn.launch import attend, balance, balance_so_far

    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        b = block_length(problem, params)
        keys, values = blocked(k, b), blocked(v, b)
        log = sorting_logits(problem, keys, w, noise) / params["tau"]
        if problem.causal:
            sorting = balance_so_far(log, params["iterations"], v.dtype)
        else:
            sorting = balance(log, params["iterations"], sorted_count(problem, params), v.dtype)
        sorted_keys, sorted_values = _mixed(sorting, keys, values)
        if params["kind"] == "sortcut":
            return scaled_dot_product_attention(q, sorted_keys.flatten(2, 3), sorted_values.flatten(2, 3))
        return attend(q, k, v, sorted_keys, sorted_values, b, problem.causal)

    return call


def _fused_why_not(problem: Problem, params: Params, device: str) -> str | None:
    return why_not(problem)


FUSED = "attnbench Triton: sinkhorn (sortcut: torch SDPA over the sorted blocks)"
CORE = Form(reference, make_inputs, cost, {"cuda": Impl(_fused, FUSED, _fused_why_not)}, state)

OPERATOR = Operator(
    paper=Paper("Tay et al.", 2020, "Sparse Sinkhorn Attention", "https://arxiv.org/abs/2002.11296", "sec. 3.1-3.4"),
    forms=with_graph({"core": CORE, "layer": projected(CORE)}, "cuda"),
    complexity=_complexity,
    params={
        "kind": Param("sinkhorn", "own and sorted block, or the first sorted blocks only", ("sinkhorn", "sortcut")),
        "block": Param(64, "b, tokens of a block", ("sqrt(n)",), minimum=1),
        "cut": Param(2, "number of sorted blocks that a sortcut keeps", minimum=1),
        "tau": Param(0.75, "temperature of the sorting logits (causal: 0.25 or more)", minimum=0.01),
        "iterations": Param(8, "T, rounds of balancing rows and columns", minimum=1),
    },
    continues=True,
    grouped="every head sorts the blocks of its own keys, so kv_heads = heads",
    any_length=lambda params: False,
    why_not=_why_not,
    notes="quadratic, divided by b: sorting costs as much as the attention at N = 2b²; of steps, one in b sorts",
)
