"""The programs of `sorted_chunks`: one per tile of a chunk, round and head, gathering its tokens by their order."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tokens(x, tokens, mask, stride, head_dim, BLOCK_D: tl.constexpr):
    """The rows of these tokens: [tokens, BLOCK_D], zero outside."""
    columns = tl.arange(0, BLOCK_D)
    at = x + tokens.to(tl.int64)[:, None] * stride + columns[None, :]
    return tl.load(at, mask=mask[:, None] & (columns < head_dim)[None, :], other=0.0)


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
def logits(
    s,  # qᵀk/‖k‖
    tokens_q,
    tokens_k,
    mask_q,
    mask_k,
    label,  # [R, N] of this head
    chosen,  # the round
    seq_len,
    rounds,
    CAUSAL: tl.constexpr,
    CORRECT: tl.constexpr,
):
    """s (− log N_ij where CORRECT), −inf where the query does not see the key: [queries, keys]."""
    own = label + chosen.to(tl.int64) * seq_len
    label_q = tl.load(own + tokens_q, mask=mask_q, other=-8)
    label_k = tl.load(own + tokens_k, mask=mask_k, other=-4)
    seen = ((label_q[:, None] - label_k[None, :]) | 1) == 1
    seen &= tokens_q[:, None] != tokens_k[None, :]
    if CAUSAL:
        seen &= tokens_k[None, :] <= tokens_q[:, None]
    if CORRECT:
        count = tl.zeros(s.shape, tl.int32)
        for other in range(rounds):
            row = label + tl.cast(other, tl.int64) * seq_len
            label_q = tl.load(row + tokens_q, mask=mask_q, other=0)
            label_k = tl.load(row + tokens_k, mask=mask_k, other=0)
            count += (((label_q[:, None] - label_k[None, :]) | 1) == 1).to(tl.int32)
        s -= tl.log(tl.maximum(count, 1).to(tl.float32))
    return tl.where(seen, s, float("-inf"))


@triton.jit
def attend_kernel(
    qk,  # [B, H, N, D], strides q_b, q_h, q_n, 1
    v,  # [B, H, N, D], strides v_b, v_h, v_n, 1
    order,  # [B·H, R, N]: the token in each place
    label,  # [B·H, R, N]: of each token
    parts,  # out [B·H, R, N, D]: each round's answer
    totals,  # out [B·H, R, N]: its log-sum-exp, −inf where a token sees nobody; one round: +inf
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
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per tile of queries, round and head, in that order. With one round the answer is final."""
    tiles = tl.cdiv(chunk, BLOCK)
    index = tl.program_id(0)
    tile = index % (tiles * tl.cdiv(seq_len, chunk))
    line = (index // (tiles * tl.cdiv(seq_len, chunk))).to(tl.int64)  # head and round
    head = line // rounds
    chosen = line % rounds
    begin = tile // tiles * chunk
    qk += head // heads * q_b + head % heads * q_h
    v += head // heads * v_b + head % heads * v_h
    order += line * seq_len
    label += head * rounds * seq_len

    places = begin + tile % tiles * BLOCK + tl.arange(0, BLOCK)
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
        s *= inverse_length(k)[None, :]
        s = logits(s, tokens_q, tokens_k, mask_q, mask_k, label, chosen, seq_len, rounds, CAUSAL, CORRECT)
        highest = tl.maximum(largest, tl.max(s, axis=1))
        base = tl.where(highest == float("-inf"), 0.0, highest)
        p = tl.exp(s - base[:, None])
        shrink = tl.exp(largest - base)
        total = total * shrink + tl.sum(p, axis=1)
        values = load_tokens(v, tokens_k, mask_k, v_n, head_dim, BLOCK_D)
        answer = tl.dot(p.to(values.dtype), values, answer * shrink[:, None], input_precision=PRECISION)
        largest = highest

    alone = total == 0
    answer = answer / tl.where(alone, 1.0, total)[:, None]
    log_total = tl.where(alone, float("-inf"), largest + tl.log(tl.where(alone, 1.0, total)))
    if SINGLE:
        own = load_tokens(v, tokens_q, mask_q & alone, v_n, head_dim, BLOCK_D)
        answer = tl.where(alone[:, None], own.to(tl.float32), answer)
        log_total = tl.where(alone, float("inf"), log_total)
    at = line * seq_len + tokens_q
    columns = tl.arange(0, BLOCK_D)
    mask = mask_q[:, None] & (columns < head_dim)[None, :]
    tl.store(parts + at[:, None] * head_dim + columns[None, :], answer.to(parts.dtype.element_ty), mask=mask)
    tl.store(totals + at, log_total, mask=mask_q)


@triton.jit
def merge_kernel(
    v,  # [B, H, N, D], strides v_b, v_h, v_n, 1
    parts,  # [B·H, R, N, D]
    totals,  # [B·H, R, N]
    y,  # out [B·H, N, D]
    total,  # out [B·H, N]: log-sum-exp over all rounds; +inf for a token that sees nobody in any
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
    blocks = tl.cdiv(seq_len, BLOCK)
    index = tl.program_id(0)
    head = (index // blocks).to(tl.int64)
    tokens = index % blocks * BLOCK + tl.arange(0, BLOCK)
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
        shrink = tl.exp(largest - base)
        share = tl.exp(z - base)
        weight = weight * shrink + share
        answer = answer * shrink[:, None] + share[:, None] * part
        largest = highest
    alone = weight == 0
    v += head // heads * v_b + head % heads * v_h
    own = load_tokens(v, tokens, inside & alone, v_n, head_dim, BLOCK_D).to(tl.float32)
    weight = tl.where(alone, 1.0, weight)
    answer = tl.where(alone[:, None], own, answer / weight[:, None])
    at = head * seq_len + tokens
    tl.store(y + at[:, None] * head_dim + columns[None, :], answer.to(y.dtype.element_ty), mask=mask)
    tl.store(total + at, tl.where(alone, float("inf"), largest + tl.log(weight)), mask=inside)


@triton.jit
def agreement_kernel(
    y,  # [B·H, N, D]
    dy,  # [B, H, N, D], strides g_b, g_h, g_n, 1
    agreement,  # out [B·H, N]: y·dy
    heads,
    seq_len,
    head_dim,
    g_b,
    g_h,
    g_n,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program per tile of tokens and head, in that order."""
    blocks = tl.cdiv(seq_len, BLOCK)
    index = tl.program_id(0)
    head = (index // blocks).to(tl.int64)
    tokens = index % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = tokens < seq_len
    dy += head // heads * g_b + head % heads * g_h
    a = load_tokens(y + head * seq_len * head_dim, tokens, inside, head_dim, head_dim, BLOCK_D).to(tl.float32)
    b = load_tokens(dy, tokens, inside, g_n, head_dim, BLOCK_D).to(tl.float32)
    tl.store(agreement + head * seq_len + tokens, tl.sum(a * b, axis=1), mask=inside)


@triton.jit
def gradient_kernel(
    qk,  # [B, H, N, D], strides q_b, q_h, q_n, 1
    v,  # [B, H, N, D], strides v_b, v_h, v_n, 1
    dy,  # [B, H, N, D], strides g_b, g_h, g_n, 1
    order,  # [B·H, R, N]
    label,  # [B·H, R, N]
    total,  # [B·H, N]
    agreement,  # [B·H, N]
    dqk,  # out [B·H, R, N, D]: what each round adds
    dv,  # out [B·H, R, N, D]
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
    g_b,
    g_h,
    g_n,
    CAUSAL: tl.constexpr,
    SINGLE: tl.constexpr,
    CORRECT: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per tile of tokens, round and head, in that order: first they are queries, then keys."""
    tiles = tl.cdiv(chunk, BLOCK)
    index = tl.program_id(0)
    tile = index % (tiles * tl.cdiv(seq_len, chunk))
    line = (index // (tiles * tl.cdiv(seq_len, chunk))).to(tl.int64)  # head and round
    head = line // rounds
    chosen = line % rounds
    begin = tile // tiles * chunk
    qk += head // heads * q_b + head % heads * q_h
    v += head // heads * v_b + head % heads * v_h
    dy += head // heads * g_b + head % heads * g_h
    order += line * seq_len
    label += head * rounds * seq_len
    total += head * seq_len
    agreement += head * seq_len

    places = begin + tile % tiles * BLOCK + tl.arange(0, BLOCK)
    end = tl.minimum(begin + chunk, seq_len)
    mask = places < end
    tokens = tl.load(order + places, mask=mask, other=0)
    rows = load_tokens(qk, tokens, mask, q_n, head_dim, BLOCK_D)
    given = load_tokens(dy, tokens, mask, g_n, head_dim, BLOCK_D)
    z = tl.load(total + tokens, mask=mask, other=float("inf"))
    agreed = tl.load(agreement + tokens, mask=mask, other=0.0)
    d_rows = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for first in range(tl.maximum(begin - chunk, 0), end, BLOCK):
        places_k = first + tl.arange(0, BLOCK)
        mask_k = places_k < end
        tokens_k = tl.load(order + places_k, mask=mask_k, other=0)
        k = load_tokens(qk, tokens_k, mask_k, q_n, head_dim, BLOCK_D)
        values = load_tokens(v, tokens_k, mask_k, v_n, head_dim, BLOCK_D)
        inverse = inverse_length(k)
        s = products(
            rows, k, qk, tokens, mask, q_n, qk, tokens_k, mask_k, q_n,
            head_dim, BLOCK_D, WIDTH, PRECISION,
        )  # fmt: skip
        s *= inverse[None, :]
        s = logits(s, tokens, tokens_k, mask, mask_k, label, chosen, seq_len, rounds, CAUSAL, CORRECT)
        p = tl.exp(s - z[:, None])
        dp = products(
            given, values, dy, tokens, mask, g_n, v, tokens_k, mask_k, v_n,
            head_dim, BLOCK_D, WIDTH, PRECISION,
        )  # fmt: skip
        ds = p * (dp - agreed[:, None]) * inverse[None, :]
        d_rows = tl.dot(ds.to(k.dtype), k, d_rows, input_precision=PRECISION)

    values = load_tokens(v, tokens, mask, v_n, head_dim, BLOCK_D)
    inverse = inverse_length(rows)
    d_unit = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    d_values = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for first in range(begin, tl.minimum(begin + 2 * chunk, seq_len), BLOCK):
        places_q = first + tl.arange(0, BLOCK)
        mask_q = places_q < tl.minimum(begin + 2 * chunk, seq_len)
        tokens_q = tl.load(order + places_q, mask=mask_q, other=0)
        q = load_tokens(qk, tokens_q, mask_q, q_n, head_dim, BLOCK_D)
        given = load_tokens(dy, tokens_q, mask_q, g_n, head_dim, BLOCK_D)
        z = tl.load(total + tokens_q, mask=mask_q, other=float("inf"))
        agreed = tl.load(agreement + tokens_q, mask=mask_q, other=0.0)
        s = products(
            q, rows, qk, tokens_q, mask_q, q_n, qk, tokens, mask, q_n,
            head_dim, BLOCK_D, WIDTH, PRECISION,
        )  # fmt: skip
        s *= inverse[None, :]
        s = logits(s, tokens_q, tokens, mask_q, mask, label, chosen, seq_len, rounds, CAUSAL, CORRECT)
        p = tl.exp(s - z[:, None])
        d_values = tl.dot(tl.trans(p.to(given.dtype)), given, d_values, input_precision=PRECISION)
        dp = products(
            given, values, dy, tokens_q, mask_q, g_n, v, tokens, mask, v_n,
            head_dim, BLOCK_D, WIDTH, PRECISION,
        )  # fmt: skip
        ds = p * (dp - agreed[:, None])
        d_unit = tl.dot(tl.trans(ds.to(q.dtype)), q, d_unit, input_precision=PRECISION)

    unit = rows.to(tl.float32) * inverse[:, None]
    d_rows += (d_unit - unit * tl.sum(unit * d_unit, axis=1)[:, None]) * inverse[:, None]
    if SINGLE:  # the gradients are final: a token that sees nobody returned its own value
        alone = tl.load(total + tokens, mask=mask, other=0.0) == float("inf")
        own = load_tokens(dy, tokens, mask & alone, g_n, head_dim, BLOCK_D)
        d_values += own.to(tl.float32)
    at = (line * seq_len + tokens)[:, None] * head_dim + tl.arange(0, BLOCK_D)[None, :]
    mask_d = mask[:, None] & (tl.arange(0, BLOCK_D) < head_dim)[None, :]
    tl.store(dqk + at, d_rows.to(dqk.dtype.element_ty), mask=mask_d)
    tl.store(dv + at, d_values.to(dv.dtype.element_ty), mask=mask_d)


@triton.jit
def add_rounds_kernel(
    parts_qk,  # [B·H, R, N, D]
    parts_v,  # [B·H, R, N, D]
    dy,  # [B, H, N, D], strides g_b, g_h, g_n, 1
    total,  # [B·H, N]
    dqk,  # out [B·H, N, D]
    dv,  # out [B·H, N, D]
    heads,
    rounds,
    seq_len,
    head_dim,
    g_b,
    g_h,
    g_n,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program per tile of tokens and head, in that order. A token that sees nobody gives dy to its own value."""
    blocks = tl.cdiv(seq_len, BLOCK)
    index = tl.program_id(0)
    head = (index // blocks).to(tl.int64)
    tokens = index % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = tokens < seq_len
    columns = tl.arange(0, BLOCK_D)
    mask = inside[:, None] & (columns < head_dim)[None, :]
    alone = tl.load(total + head * seq_len + tokens, mask=inside, other=0.0) == float("inf")
    dy += head // heads * g_b + head % heads * g_h
    d_values = load_tokens(dy, tokens, inside & alone, g_n, head_dim, BLOCK_D).to(tl.float32)
    d_rows = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for chosen in range(rounds):
        at = ((head * rounds + chosen) * seq_len + tokens)[:, None] * head_dim + columns[None, :]
        d_rows += tl.load(parts_qk + at, mask=mask, other=0.0)
        d_values += tl.load(parts_v + at, mask=mask, other=0.0)
    at = (head * seq_len + tokens)[:, None] * head_dim + columns[None, :]
    tl.store(dqk + at, d_rows.to(dqk.dtype.element_ty), mask=mask)
    tl.store(dv + at, d_values.to(dv.dtype.element_ty), mask=mask)
