"""`sorted_chunks` for short chunks: a program goes along a strip of the sorted line and loads each of its tokens once.

A span is as many chunks as fit into a tile. Its queries see keys of the span itself and of the one before, which the
program still holds. Labels alone say which: in a round they differ by 0 or 1 only within a chunk or between neighbours.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attnbench.kernels.sorted_chunks.device import LOG2_E, inverse_length, lag, load_tokens, store_answer, store_tokens


@triton.jit
def strip_of(seq_len, span, strip):
    """What a program works on: its line (a round of a head), its first span, and the one behind its last."""
    spans = tl.cdiv(seq_len, span)
    strips = tl.cdiv(spans, strip)
    first = tl.program_id(0) % strips * strip
    return (tl.program_id(0) // strips).to(tl.int64), first, tl.minimum(first + strip, spans)


@triton.jit
def load_span(order, index, span, seq_len, BLOCK: tl.constexpr):
    """The tokens of a span in their order, and which of the tile's places it has: none before the first span."""
    places = index * span + tl.arange(0, BLOCK)
    end = tl.minimum((index + 1) * span, seq_len)
    mask = places.to(tl.uint32, bitcast=True) < end.to(tl.uint32)
    return tl.load(order + places, mask=mask, other=0), mask


@triton.jit
def load_labels(label, tokens, mask, ROUNDS: tl.constexpr):
    """Of each token in every round: [BLOCK, ROUNDS], −4 outside, which is near no label."""
    at = label + tokens.to(tl.int64)[:, None] * ROUNDS + tl.arange(0, ROUNDS)[None, :]
    return tl.load(at, mask=mask[:, None], other=-4)


@triton.jit
def column(tile, index, ROUNDS: tl.constexpr):
    """One of the columns of a tile of labels, or of tokens made as wide."""
    return tl.sum(tl.where((tl.arange(0, ROUNDS) == index)[None, :], tile, 0), axis=1)


@triton.jit
def counted(
    labels_q, labels_k, tokens_q, tokens_k, chosen, OWN: tl.constexpr, CAUSAL: tl.constexpr, AHEAD: tl.constexpr,
    CORRECT: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """Whether the query counts the key in this round; where CORRECT, in the first that brings it. [queries, keys].

    Labels and tokens pass through a sum, so that they go to the layout of logits through shared memory: a vector that
    was loaded would be loaded again by every thread. OWN: queries and keys are the same span; else no key is in its
    query's chunk.
    """
    label_q = column(labels_q, chosen, ROUNDS)
    label_k = column(labels_k, chosen, ROUNDS)
    if OWN:
        counts = lag(label_q, label_k) < 2
    else:
        counts = (label_q - 1)[:, None] == label_k[None, :]
    if AHEAD:
        wide = tl.zeros([1, ROUNDS], tl.int32)
        token_q = column(tokens_q[:, None] + wide, 0, ROUNDS)[:, None]
        counts &= column(tokens_k[:, None] + wide, 0, ROUNDS)[None, :] < token_q
    elif OWN:
        place_q = tl.arange(0, tokens_q.shape[0])[:, None]
        place_k = tl.arange(0, tokens_q.shape[0])[None, :]
        counts &= place_k < place_q if CAUSAL else place_k != place_q
    if CORRECT:
        least = tl.where(counts, 2, 0).to(tl.uint32)
        for earlier in tl.static_range(ROUNDS - 1):
            if earlier < chosen:
                near = lag(column(labels_q, earlier, ROUNDS), column(labels_k, earlier, ROUNDS))
                least = tl.minimum(least, near)
        counts = least == 2
    return counts


@triton.jit
def word_at(seen, line, seq_len, span, index, word, BLOCK: tl.constexpr):
    """Where the span has one of its words, of each query: two tell which keys of the span before it counts, two of its
    own."""
    return seen + ((line * tl.cdiv(seq_len, span) + index) * 4 + word) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def store_words(counts, at, BLOCK: tl.constexpr):
    """A bit for each key that a query counts: the words of its first 32 keys, then of the others."""
    keys = tl.arange(0, BLOCK)
    bits = 1 << (keys % 32)
    tl.store(at, tl.sum(tl.where(counts & (keys < 32)[None, :], bits[None, :], 0), axis=1))
    tl.store(at + BLOCK, tl.sum(tl.where(counts & (keys >= 32)[None, :], bits[None, :], 0), axis=1))


@triton.jit
def kept(x, low, high, BLOCK: tl.constexpr):
    """x: [queries, keys], 0 where the words of its queries have no bit of the key.

    By a mask of all bits: a condition would be kept for each pair while the product that gives x is awaited.
    """
    keys = tl.arange(0, BLOCK)[None, :]
    # Of a key's number a thread has bits 1 and 2, and the place of a register the others: a word is shifted once.
    words = tl.where(keys < 32, low[:, None] >> (keys & 6), high[:, None] >> (keys & 6))
    return (x.to(tl.int32, bitcast=True) & ((words << (31 - (keys & 25))) >> 31)).to(tl.float32, bitcast=True)


@triton.jit
def attend_strip_kernel(
    qk,  # [B, H, N, D], strides q_b, q_h, q_n, 1
    v,  # [B, H, N, D], strides v_b, v_h, v_n, 1
    order,  # [B·H, R, N]: the token in each place
    label,  # [B·H, N, ROUNDS]: of each token in each round
    parts,  # out [B·H, R, N, D]: each round's answer
    totals,  # out [B·H, R, N]: its log₂-sum-exp, −inf where a token sees nobody; one round: +inf
    seen,  # out [B·H, R, spans, 4, BLOCK] where KEEP: bits of which keys each query counts
    scales,  # out [B·H, N] where KEEP: log₂ e/‖q‖
    heads,
    rounds,
    seq_len,
    span,
    strip,
    head_dim,
    q_b,
    q_h,
    q_n,
    v_b,
    v_h,
    v_n,
    CAUSAL: tl.constexpr,
    AHEAD: tl.constexpr,
    SINGLE: tl.constexpr,
    CORRECT: tl.constexpr,
    KEEP: tl.constexpr,
    ROUNDS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program per strip, round and head, in that order. With one round the answer is final."""
    line, first, last = strip_of(seq_len, span, strip)
    head = line // rounds
    chosen = (line % rounds).to(tl.int32)
    qk += head // heads * q_b + head % heads * q_h
    v += head // heads * v_b + head % heads * v_h
    order += line * seq_len
    label += head * seq_len * ROUNDS
    scales += head * seq_len

    tokens_k, mask_k = load_span(order, first - 1, span, seq_len, BLOCK)
    k = load_tokens(qk, tokens_k, mask_k, q_n, head_dim, BLOCK_D)
    values_k = load_tokens(v, tokens_k, mask_k, v_n, head_dim, BLOCK_D)
    labels_k = load_labels(label, tokens_k, mask_k, ROUNDS)
    scale_k = inverse_length(k) * LOG2_E
    for index in range(first, last):
        tokens, mask = load_span(order, index, span, seq_len, BLOCK)
        rows = load_tokens(qk, tokens, mask, q_n, head_dim, BLOCK_D)
        values = load_tokens(v, tokens, mask, v_n, head_dim, BLOCK_D)
        labels = load_labels(label, tokens, mask, ROUNDS)
        scale = inverse_length(rows) * LOG2_E
        s = tl.dot(rows, tl.trans(k)) * scale_k[None, :]
        counts = counted(labels, labels_k, tokens, tokens_k, chosen, False, CAUSAL, AHEAD, CORRECT, ROUNDS)
        before = tl.where(counts, s, float("-inf"))
        s = tl.dot(rows, tl.trans(rows)) * scale[None, :]
        counts = counted(labels, labels, tokens, tokens, chosen, True, CAUSAL, AHEAD, CORRECT, ROUNDS)
        within = tl.where(counts, s, float("-inf"))
        largest = tl.maximum(tl.max(before, axis=1), tl.max(within, axis=1))
        base = tl.where(largest == float("-inf"), 0.0, largest)
        before = tl.exp2(before - base[:, None])
        answer = tl.dot(before.to(values.dtype), values_k)
        within = tl.exp2(within - base[:, None])
        answer = tl.dot(within.to(values.dtype), values, answer)
        total = tl.sum(before, axis=1) + tl.sum(within, axis=1)
        if KEEP:
            tl.store(scales + tokens, scale, mask=mask & (chosen + tl.zeros([BLOCK], tl.int32) == 0))
            at = word_at(seen, line, seq_len, span, index, 0, BLOCK)
            store_words(before > 0, at, BLOCK)
            store_words(within > 0, at + 2 * BLOCK, BLOCK)
        store_answer(
            answer, total, largest, v, tokens, mask, v_n, parts, totals, line * seq_len, head_dim, SINGLE, BLOCK_D
        )
        tokens_k = tokens
        k = rows
        values_k = values
        labels_k = labels
        scale_k = scale


@triton.jit
def gradient_strip_kernel(
    qk,  # [B, H, N, D], strides q_b, q_h, q_n, 1
    v,  # [B, H, N, D], strides v_b, v_h, v_n, 1
    dy,  # [B, H, N, D], strides g_b, g_h, g_n, 1
    order,  # [B·H, R, N]
    seen,  # [B·H, R, spans, 4, BLOCK]
    scales,  # [B·H, N]
    total,  # [B·H, N]
    agreement,  # [B·H, N]
    parts_qk,  # out [B·H, R, N, D]: log₂ e times what each round adds, and what a key has along itself
    parts_v,  # out [B·H, R, N, D]
    along,  # out [B·H, R, N]: q·(what it adds to q as a query), log₂ e times
    heads,
    rounds,
    seq_len,
    span,
    strip,
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
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program per strip, round and head, in that order; it begins one span earlier, as its first queries do.

    A span gives its values' gradient and its keys' at once: its own queries see them, and those of the span behind it.
    W_ij = dS_ij/‖q_j‖ is a pair's part of the gradient of i along q_j and of that of j along q_i, here times log₂ e.
    """
    line, first, last = strip_of(seq_len, span, strip)
    head = line // rounds
    qk += head // heads * q_b + head % heads * q_h
    v += head // heads * v_b + head % heads * v_h
    dy += head // heads * g_b + head % heads * g_h
    order += line * seq_len
    scales += head * seq_len
    total += head * seq_len
    agreement += head * seq_len
    first_part = line * seq_len

    d_rows = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for index in range(first - 1, last):
        tokens_q, mask_q = load_span(order, index + 1, span, seq_len, BLOCK)
        at = word_at(seen, line, seq_len, span, index + 1, 0, BLOCK)
        low_q = tl.load(at, mask=mask_q, other=0)
        high_q = tl.load(at + BLOCK, mask=mask_q, other=0)
        mask_q &= (low_q | high_q) != 0  # of the span behind only queries that see a key
        q = load_tokens(qk, tokens_q, mask_q, q_n, head_dim, BLOCK_D)
        cotangents_q = load_tokens(dy, tokens_q, mask_q, g_n, head_dim, BLOCK_D)
        tokens, mask = load_span(order, index, span, seq_len, BLOCK)
        rows = load_tokens(qk, tokens, mask, q_n, head_dim, BLOCK_D)
        cotangents = load_tokens(dy, tokens, mask, g_n, head_dim, BLOCK_D)
        values = load_tokens(v, tokens, mask, v_n, head_dim, BLOCK_D)
        scale = tl.load(scales + tokens, mask=mask, other=0.0)
        z = tl.load(total + tokens, mask=mask, other=float("inf"))
        agreed = tl.load(agreement + tokens, mask=mask, other=0.0)
        at = word_at(seen, line, seq_len, span, index, 2, BLOCK)
        low = tl.load(at, mask=mask, other=0)
        high = tl.load(at + BLOCK, mask=mask, other=0)
        s = tl.dot(rows, tl.trans(rows)) * scale[None, :] - z[:, None]
        p = kept(tl.exp2(s), low, high, BLOCK)
        ds = p * (tl.dot(cotangents, tl.trans(values)) - agreed[:, None])
        w = (ds * scale[None, :]).to(rows.dtype)
        d_rows = tl.dot(w, rows, d_rows)
        as_query = tl.sum(d_rows * rows.to(tl.float32), axis=1)
        mask &= index + tl.zeros([BLOCK], tl.int32) >= first
        tl.store(along + (first_part + tokens), as_query, mask=mask)
        d_values = tl.dot(tl.trans(p.to(rows.dtype)), cotangents)
        d_rows = tl.dot(tl.trans(w), rows, d_rows)

        z = tl.load(total + tokens_q, mask=mask_q, other=float("inf"))
        agreed = tl.load(agreement + tokens_q, mask=mask_q, other=0.0)
        s = tl.dot(q, tl.trans(rows)) * scale[None, :] - z[:, None]
        p = kept(tl.exp2(s), low_q, high_q, BLOCK)
        d_values = tl.dot(tl.trans(p.to(rows.dtype)), cotangents_q, d_values)
        store_tokens(d_values, parts_v, tokens + first_part, mask, head_dim, BLOCK_D)
        ds = p * (tl.dot(cotangents_q, tl.trans(values)) - agreed[:, None])
        w = (ds * scale[None, :]).to(rows.dtype)
        d_rows = tl.dot(tl.trans(w), q, d_rows)
        store_tokens(d_rows, parts_qk, tokens + first_part, mask, head_dim, BLOCK_D)
        # Used here, so that it is waited for: a product that leaves the loop in flight would read rows as they change.
        d_rows = tl.where(mask_q[:, None], tl.dot(w, rows), 0.0)
