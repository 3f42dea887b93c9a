"""Outputs of `sorted_chunks`: one program per tile of a chunk, round and head, gathering its tokens by their order."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
"""Logits are kept in units of log 2, so that a weight is one power of two."""


@triton.jit
def line_kernel(
    key,  # [B·H·R·N], in order: each line's own numbers, `least` + line · `most` + bucket
    at,  # [B·H·R·N]: where among all lines' tokens each was
    order,  # out [B·H, R, N]: the token in each place
    label,  # out [B·H, N, ROUNDS]: of each token in each round
    rounds,
    seq_len,
    chunk,
    most,
    least,
    BY_BUCKET: tl.constexpr,
    ROUNDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per tile of places, round and head, in that order."""
    line, places = tokens_of(seq_len, BLOCK)
    inside = places < seq_len
    token = (tl.load(at + line * seq_len + places, mask=inside, other=0) - line * seq_len).to(tl.int32)
    tl.store(order + line * seq_len + places, token, mask=inside)
    mine = places // chunk
    if BY_BUCKET:
        bucket = tl.load(key + line * seq_len + places, mask=inside, other=0) - (line * most + least)
        mine += 2 * bucket.to(tl.int32)
    row = line // rounds * seq_len + token
    tl.store(label + row * ROUNDS + line % rounds, mine, mask=inside)


@triton.jit
def tile_of(seq_len, chunk, BLOCK: tl.constexpr):
    """What a program works on: its line (a round of a head), where its chunk begins, and the places of its tile."""
    tiles = tl.cdiv(chunk, BLOCK)
    index = tl.program_id(0)
    tile = index % (tiles * tl.cdiv(seq_len, chunk))
    line = (index // (tiles * tl.cdiv(seq_len, chunk))).to(tl.int64)
    begin = tile // tiles * chunk
    return line, begin, begin + tile % tiles * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def tokens_of(seq_len, BLOCK: tl.constexpr):
    """The same of a program that takes tokens in their own order: its head, and they."""
    blocks = tl.cdiv(seq_len, BLOCK)
    index = tl.program_id(0)
    return (index // blocks).to(tl.int64), index % blocks * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def load_tokens(x, tokens, mask, stride, head_dim, BLOCK_D: tl.constexpr):
    """The rows of these tokens: [tokens, BLOCK_D], zero outside."""
    columns = tl.arange(0, BLOCK_D)
    at = x + tokens.to(tl.int64)[:, None] * stride + columns[None, :]
    return tl.load(at, mask=mask[:, None] & (columns < head_dim)[None, :], other=0.0)


@triton.jit
def store_tokens(rows, x, tokens, mask, head_dim, BLOCK_D: tl.constexpr):
    """Rows of these tokens of a dense head, in x's dtype."""
    columns = tl.arange(0, BLOCK_D)
    at = x + tokens.to(tl.int64)[:, None] * head_dim + columns[None, :]
    tl.store(at, rows.to(x.dtype.element_ty), mask=mask[:, None] & (columns < head_dim)[None, :])


@triton.jit
def products(
    a,
    b,
    x,  # a's rows are x's `rows_a`
    rows_a,
    mask_a,
    stride_a,
    y,  # b's rows are y's `rows_b`
    rows_b,
    mask_b,
    stride_b,
    head_dim,
    BLOCK_D: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """a bᵀ. Where WIDTH < BLOCK_D the rows are loaded again, so many columns at a time, to spare registers."""
    if WIDTH == BLOCK_D:
        return tl.dot(a, tl.trans(b), input_precision=PRECISION)
    total = tl.zeros([a.shape[0], b.shape[0]], tl.float32)
    for first in range(0, head_dim, WIDTH):
        part_a = load_tokens(x + first, rows_a, mask_a, stride_a, head_dim - first, WIDTH)
        part_b = load_tokens(y + first, rows_b, mask_b, stride_b, head_dim - first, WIDTH)
        total = tl.dot(part_a, tl.trans(part_b), total, input_precision=PRECISION)
    return total


@triton.jit
def inverse_length(rows):
    """1/‖row‖ in float32."""
    wide = rows.to(tl.float32)
    return 1.0 / tl.maximum(tl.sqrt(tl.sum(wide * wide, axis=1)), 1e-12)


@triton.jit
def lag(label_q, label_k):
    """label_i − label_j, unsigned: below 2 where in their round the query sees the key. [queries, keys]."""
    return (label_q[:, None] - label_k[None, :]).to(tl.uint32, bitcast=True)


@triton.jit
def lag_in(label, tokens_q, tokens_k, mask_q, mask_k, chosen, ROUNDS: tl.constexpr):
    """The lag of tokens in a round, whose labels are loaded."""
    label_q = tl.load(label + tokens_q.to(tl.int64) * ROUNDS + chosen, mask=mask_q, other=-8)
    label_k = tl.load(label + tokens_k.to(tl.int64) * ROUNDS + chosen, mask=mask_k, other=-4)
    return lag(label_q, label_k)


@triton.jit
def visible(
    tokens_q,
    tokens_k,
    mask_q,
    mask_k,
    label,  # [N, ROUNDS] of this head
    chosen,  # the round
    CAUSAL: tl.constexpr,
    CORRECT: tl.constexpr,
    ROUNDS: tl.constexpr,
):
    """Whether the query counts the key in this round; where CORRECT, in the first that brings it: [queries, keys]."""
    counts = lag_in(label, tokens_q, tokens_k, mask_q, mask_k, chosen, ROUNDS) < 2
    if CAUSAL:
        counts &= tokens_k[None, :] < tokens_q[:, None]
    else:
        counts &= tokens_k[None, :] != tokens_q[:, None]
    if CORRECT:
        least = tl.full([tokens_q.shape[0], tokens_k.shape[0]], 2, tl.uint32)
        for earlier in range(chosen):
            least = tl.minimum(least, lag_in(label, tokens_q, tokens_k, mask_q, mask_k, earlier, ROUNDS))
        counts &= least == 2
    return counts


@triton.jit
def attended(s, values, largest, total, answer, PRECISION: tl.constexpr):
    """One more tile of keys with logits in units of log 2: the running maximum, sum and weighted values."""
    highest = tl.maximum(largest, tl.max(s, axis=1))
    base = tl.where(highest == float("-inf"), 0.0, highest)
    p = tl.exp2(s - base[:, None])
    shrink = tl.exp2(largest - base)
    answer = tl.dot(p.to(values.dtype), values, answer * shrink[:, None], input_precision=PRECISION)
    return highest, total * shrink + tl.sum(p, axis=1), answer


@triton.jit
def store_answer(
    answer,  # Σ p v
    total,  # Σ p
    largest,  # p = 2 ** (s − largest)
    v,
    tokens,
    mask,
    v_n,
    parts,
    totals,
    begin,  # where the line's rows begin in parts and totals
    head_dim,
    SINGLE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A round's answers and log₂-sum-exps of these tokens; SINGLE: one that sees nobody returns its own value."""
    alone = total == 0
    answer *= (1.0 / tl.where(alone, 1.0, total))[:, None]
    log_total = tl.where(alone, float("-inf"), largest + tl.log2(tl.where(alone, 1.0, total)))
    if SINGLE:
        own_values = load_tokens(v, tokens, mask & alone, v_n, head_dim, BLOCK_D)
        answer = tl.where(alone[:, None], own_values.to(tl.float32), answer)
        log_total = tl.where(alone, float("inf"), log_total)
    store_tokens(answer, parts + begin * head_dim, tokens, mask, head_dim, BLOCK_D)
    tl.store(totals + begin + tokens, log_total, mask=mask)


@triton.jit
def attend_kernel(
    qk,  # [B, H, N, D], strides q_b, q_h, q_n, 1
    v,  # [B, H, N, D], strides v_b, v_h, v_n, 1
    order,  # [B·H, R, N]: the token in each place
    label,  # [B·H, N, ROUNDS]: of each token in each round
    parts,  # out [B·H, R, N, D]: each round's answer
    totals,  # out [B·H, R, N]: its log₂-sum-exp, −inf where a token sees nobody; one round: +inf
    heads,
    rounds,
    seq_len,
    chunk,
    head_dim,
    q_b,
    q_h,
    q_n,
    v_b,
    v_h,
    v_n,
    CAUSAL: tl.constexpr,
    SINGLE: tl.constexpr,
    CORRECT: tl.constexpr,
    ROUNDS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per tile of queries, round and head, in that order. With one round the answer is final."""
    line, begin, places = tile_of(seq_len, chunk, BLOCK)
    head = line // rounds
    chosen = line % rounds
    qk += head // heads * q_b + head % heads * q_h
    v += head // heads * v_b + head % heads * v_h
    order += line * seq_len
    label += head * seq_len * ROUNDS

    end = tl.minimum(begin + chunk, seq_len)
    mask_q = places < end
    tokens_q = tl.load(order + places, mask=mask_q, other=0)
    q = load_tokens(qk, tokens_q, mask_q, q_n, head_dim, BLOCK_D)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    answer = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for first in range(tl.maximum(begin - chunk, 0), end, BLOCK):
        places_k = first + tl.arange(0, BLOCK)
        mask_k = places_k < end
        tokens_k = tl.load(order + places_k, mask=mask_k, other=0)
        k = load_tokens(qk, tokens_k, mask_k, q_n, head_dim, BLOCK_D)
        s = products(
            q, k, qk, tokens_q, mask_q, q_n, qk, tokens_k, mask_k, q_n,
            head_dim, BLOCK_D, WIDTH, PRECISION,
        )  # fmt: skip
        counts = visible(tokens_q, tokens_k, mask_q, mask_k, label, chosen, CAUSAL, CORRECT, ROUNDS)
        s = tl.where(counts, s * (inverse_length(k) * LOG2_E)[None, :], float("-inf"))
        values = load_tokens(v, tokens_k, mask_k, v_n, head_dim, BLOCK_D)
        largest, total, answer = attended(s, values, largest, total, answer, PRECISION)

    store_answer(
        answer, total, largest, v, tokens_q, mask_q, v_n, parts, totals, line * seq_len, head_dim, SINGLE, BLOCK_D
    )


@triton.jit
def merge_kernel(
    v,  # [B, H, N, D], strides v_b, v_h, v_n, 1
    parts,  # [B·H, R, N, D]
    totals,  # [B·H, R, N]
    y,  # out [B·H, N, D]
    total,  # out [B·H, N]: log₂-sum-exp over all rounds; +inf for a token that sees nobody in any
    heads,
    rounds,
    seq_len,
    head_dim,
    v_b,
    v_h,
    v_n,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program per tile of tokens and head, in that order."""
    head, tokens = tokens_of(seq_len, BLOCK)
    inside = tokens < seq_len
    columns = tl.arange(0, BLOCK_D)
    mask = inside[:, None] & (columns < head_dim)[None, :]
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    weight = tl.zeros([BLOCK], tl.float32)
    answer = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for chosen in range(rounds):
        at = (head * rounds + chosen) * seq_len + tokens
        z = tl.load(totals + at, mask=inside, other=float("-inf"))
        part = tl.load(parts + at[:, None] * head_dim + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        highest = tl.maximum(largest, z)
        base = tl.where(highest == float("-inf"), 0.0, highest)
        shrink = tl.exp2(largest - base)
        share = tl.exp2(z - base)
        weight = weight * shrink + share
        answer = answer * shrink[:, None] + share[:, None] * part
        largest = highest
    alone = weight == 0
    v += head // heads * v_b + head % heads * v_h
    own_values = load_tokens(v, tokens, inside & alone, v_n, head_dim, BLOCK_D).to(tl.float32)
    weight = tl.where(alone, 1.0, weight)
    answer = tl.where(alone[:, None], own_values, answer / weight[:, None])
    at = head * seq_len + tokens
    tl.store(y + at[:, None] * head_dim + columns[None, :], answer.to(y.dtype.element_ty), mask=mask)
    tl.store(total + at, tl.where(alone, float("inf"), largest + tl.log2(weight)), mask=inside)
