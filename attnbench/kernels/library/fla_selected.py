"""Attention to blocks that are chosen outside: NSA and MoBA by flash-linear-attention, which would choose otherwise.

Of NSA a Triton program has one token and one group of heads. Of MoBA, FlashAttention-2 has sequences of unequal length:
each block with itself, and each block with the queries that have chosen it, which are merged by their logsumexp.

Yang and Zhang 2024, `fla.ops`, https://github.com/fla-org/flash-linear-attention
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnbench.kernels.library.fla import why_not_fla
from attnbench.kernels.library.flash_attention import PACKAGES
from attnbench.problem import Problem

LEAST = 16
"""Of the sides of a product on tensor cores."""

MOST_CHANNELS = 128
"""Of a head, on every GPU."""

MOST_SEQUENCES = 65535
"""Of unequal length in one call of FlashAttention-2: an axis of its grid."""


def why_not_nsa(problem: Problem, block: int) -> str | None:
    """The reason that NSA with blocks of so many tokens cannot run here, or None."""
    name, d = "flash-linear-attention's parallel_nsa", problem.head_dim
    for what, number in (("groups of heads", problem.group), ("blocks of tokens", block)):
        if number < LEAST or number & (number - 1):
            return f"{name} takes {what} of a power of two from {LEAST}, not {number}"
    if not LEAST <= d <= MOST_CHANNELS:
        return f"{name} takes heads of {LEAST} to {MOST_CHANNELS} channels, not {d}"
    return why_not_fla(problem, d, "nsa")


def nsa(q: Tensor, k: Tensor, v: Tensor, gates: Tensor, chosen: Tensor, block: int) -> Tensor:
    """g^cmp · attention to the means of blocks + g^slc · attention to the chosen blocks: [B, H, N, D].

    Args:
        q: [B, H, N, D].
        k, v: [B, Hk, N, D].
        gates: g^cmp and g^slc, [B, H, N, 2].
        chosen: int32 [B, Hk, N, n], −1 in empty slots.
        block: tokens of a block, of the means and of those chosen.
    """
    from fla.ops.nsa import parallel_nsa

    slots = chosen.shape[-1]
    power = 1 << (slots - 1).bit_length()  # its backward takes a power of two
    g_cmp, g_slc = gates.transpose(1, 2).unbind(dim=-1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`block_indices` is provided")
        y: Tensor = parallel_nsa(
            *(x.transpose(1, 2) for x in (q, k, v)),
            g_cmp=g_cmp,
            g_slc=g_slc,
            block_indices=pad(chosen, (0, power - slots), value=-1).transpose(1, 2),
            block_counts=slots,
            block_size=block,
        )
    return y.transpose(1, 2)


def why_not_moba(problem: Problem, block: int) -> str | None:
    """The reason that MoBA with blocks of so many tokens cannot run here, or None."""
    sequences = problem.batch * problem.kv_heads * -(-problem.seq_len // block)
    if sequences > MOST_SEQUENCES:
        return f"FlashAttention-2 takes at most {MOST_SEQUENCES} blocks of all heads of keys, not {sequences}"
    package = PACKAGES["flash_attn"]
    return package.unfit(problem) or why_not_fla(problem, problem.head_dim, "moba") or package.absent()


def moba(q: Tensor, k: Tensor, v: Tensor, chosen: Tensor, block: int) -> Tensor:
    """softmax(q kᵀ / √D) v over the tokens j ≤ i of the chosen blocks: [B, H, N, D].

    Args:
        q: [B, H, N, D].
        k, v: [B, Hk, N, D].
        chosen: int32 [B, H, N, n], the own block, then min(n − 1, ⌊i/b⌋) before it, −1 in empty slots.
        block: b.
    """
    n, others = q.shape[2], chosen[..., 1:]
    packed = [x.transpose(1, 2).flatten(0, 1).contiguous() for x in (q, k, v)]  # [B·N, H or Hk, D]
    ends = _block_ends(q.shape[0], n, block, q.device)
    if others.shape[-1] and n > block:
        y = _with_others(packed, k, v, others, block, ends)
    else:  # parallel_moba would attend to all tokens before
        from flash_attn.flash_attn_interface import flash_attn_varlen_func

        most = min(n, block)
        y = flash_attn_varlen_func(*packed, ends, ends, most, most, causal=True)
    return y.unflatten(0, (-1, n)).transpose(1, 2)


def _block_ends(batch: int, n: int, block: int, device: torch.device) -> Tensor:
    """Where the blocks of all samples, one after the other, begin, and the last one ends: int32 [B · blocks + 1]."""
    starts = torch.arange(0, n, block, dtype=torch.int32, device=device)
    samples = torch.arange(0, batch * n, n, dtype=torch.int32, device=device)
    return pad((samples.unsqueeze(-1) + starts).flatten(), (0, 1), value=batch * n)


def _with_others(packed: list[Tensor], k: Tensor, v: Tensor, others: Tensor, block: int, ends: Tensor) -> Tensor:
    """[B·N, H, D]. others: [B, H, N, n − 1].

    A sequence is a block of a head of keys, with the queries of all heads of its group that have chosen it. How many
    queries there are follows from the sizes, so that nothing waits for the device.
    """
    from fla.ops.moba.parallel import ParallelMoBAFunction

    q, (b, h, n, slots), kv_heads = packed[0], others.shape, k.shape[1]
    before = -(-n // block) - 1  # blocks that later ones can choose
    sequences = b * kv_heads * before
    head = torch.arange(b * h, device=q.device).view(b, 1, h, 1).div(h // kv_heads, rounding_mode="floor")
    sequence = others.transpose(1, 2) + head * before  # [B, N, H, n − 1]
    sequence = torch.where(others.transpose(1, 2) < 0, sequences, sequence).flatten()
    entries = b * h * chosen_before(n, slots, block)
    row = sequence.argsort()[:entries].div(slots, rounding_mode="floor")  # of [B·N·H]
    counts = torch.zeros(sequences + 1, dtype=torch.int64, device=q.device)
    counts = counts.scatter_add_(0, sequence, torch.ones_like(sequence))[:sequences]
    keys_values = torch.stack((k, v), dim=3)[:, :, : before * block].reshape(sequences, block, 2, 1, -1)
    if torch.is_grad_enabled():  # FlashAttention-2 may leave any gradient of keys without queries
        keys_values = keys_values.masked_fill((counts == 0).view(-1, 1, 1, 1, 1), 0.0)
    y: Tensor = ParallelMoBAFunction.apply(
        *packed,
        ends,
        q.view(-1, q.shape[-1]).index_select(0, row).unsqueeze(1),
        keys_values.flatten(0, 1),
        pad(counts.cumsum(0), (1, 0)).int(),
        torch.arange(0, (sequences + 1) * block, block, dtype=torch.int32, device=q.device),
        n * (h // kv_heads),  # no sequence has more queries
        block,
        row,
    )
    return y


def chosen_before(n: int, slots: int, block: int) -> int:
    """Blocks before their own that n tokens choose: Σ_i min(slots, ⌊i/b⌋)."""
    whole, rest = divmod(n, block)
    few = min(slots, whole)
    return block * (few * (few - 1) // 2 + (whole - few) * slots) + rest * few
