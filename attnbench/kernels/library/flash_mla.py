"""Absorbed latent attention of new tokens by FlashMLA: all heads of queries read one of keys, part of which is values.

A sample's cache of latents is a row of pages of 64 tokens, as it lies in memory. The plan of programs depends on the
shapes alone, and is made by the first call of them, as it is once for all layers of a model.

Li and Liu 2025, "FlashMLA", https://github.com/deepseek-ai/FlashMLA
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from attnbench.modules import installed
from attnbench.problem import Problem

PAGE = 64
"""Tokens of a page."""

CHANNELS = (512, 64)
"""dc and dr of the only kernels that there are."""

DTYPES = ("float16", "bfloat16")

KERNEL = "FlashMLA: dense decoding"


def why_not(problem: Problem, latent: int, shared: int) -> str | None:
    """The reason that it cannot run here, or None. latent, shared: dc and dr."""
    if not problem.past:
        return "FlashMLA's dense kernel is for decoding: query_len < seq_len"
    if problem.dtype not in DTYPES or (latent, shared) != CHANNELS:
        taken = f"{' and '.join(DTYPES)} of {CHANNELS[0]} + {CHANNELS[1]} channels"
        return f"FlashMLA takes {taken}, not {problem.dtype} of {latent} + {shared}"
    if problem.seq_len % PAGE:
        return f"FlashMLA's caches are pages of {PAGE} tokens, which do not divide seq_len {problem.seq_len}"
    if torch.cuda.get_device_capability() != (9, 0):
        return "FlashMLA's dense decoding is for Hopper GPUs (compute capability 9.0)"
    if not installed("flash_mla.flash_mla_interface"):
        return "FlashMLA is not installed: pip install --no-build-isolation git+https://github.com/deepseek-ai/FlashMLA"
    return None


def attend(problem: Problem, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Of the last Q of N tokens, causal.

    Args:
        q: [B, H, Q, dc + dr].
        k: [B, 1, N, dc + dr], contiguous.
        v: the first dc channels of k.
        scale: of the logits.

    Returns: [B, H, Q, dc].
    """
    from flash_mla.flash_mla_interface import flash_mla_with_kvcache

    pages = k.view(-1, PAGE, 1, k.shape[-1])
    table, lengths, *plan = _planned(problem, q.device)
    queries = q.transpose(1, 2).contiguous()  # [B, Q, H, dc + dr]
    y, _ = flash_mla_with_kvcache(queries, pages, table, lengths, v.shape[-1], *plan, softmax_scale=scale, causal=True)
    return y.transpose(1, 2)


@lru_cache(maxsize=4)
def _planned(problem: Problem, device: torch.device) -> tuple[Any, ...]:
    """Which pages each sample has, [B, N / 64]; how many tokens, [B]; and the two arguments that hold the plan."""
    from flash_mla.flash_mla_interface import get_mla_metadata

    pages = torch.arange(problem.batch * problem.seq_len // PAGE, dtype=torch.int32, device=device)
    lengths = torch.full((problem.batch,), problem.seq_len, dtype=torch.int32, device=device)
    # Its first releases plan here, by the rows of queries of the one head; later ones in the first call.
    plan = get_mla_metadata(lengths, problem.query_len * problem.heads, 1)
    return (pages.view(problem.batch, -1), lengths, *plan)


HEADS = (64, 128)
"""Of queries, of the sparse kernels."""

SLOTS = 128
"""The sparse kernels take a multiple of so many tokens of each query."""


def why_not_kept(problem: Problem, latent: int, shared: int) -> str | None:
    """The reason that the sparse kernel cannot run here, or None. latent, shared: dc and dr."""
    if problem.dtype != "bfloat16" or (latent, shared) != CHANNELS or problem.heads not in HEADS:
        taken = f"bfloat16 of {CHANNELS[0]} + {CHANNELS[1]} channels and {' or '.join(map(str, HEADS))} heads"
        given = f"{problem.dtype} of {latent} + {shared} and {problem.heads}"
        return f"FlashMLA's sparse kernel takes {taken}, not {given}"
    if torch.cuda.get_device_capability() not in ((9, 0), (10, 0), (10, 3)):
        return "FlashMLA's sparse kernel is for Hopper and Blackwell GPUs (compute capability 9.0, 10.0 or 10.3)"
    if not installed("flash_mla.flash_mla_interface"):
        return "FlashMLA is not installed: pip install --no-build-isolation git+https://github.com/deepseek-ai/FlashMLA"
    return None


def attend_to_kept(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, scale: float) -> Tensor:
    """Each query over the tokens that it keeps. A sample's tokens follow another's.

    Args:
        q: [B, H, Q, dc + dr].
        k: [B, 1, N, dc + dr].
        v: the first dc channels of k.
        kept: int32 [B, Q, n], −1 where there is none.
        scale: of the logits.

    Returns: [B, H, Q, dc].
    """
    from flash_mla.flash_mla_interface import flash_mla_sparse_fwd

    batch, n = k.shape[0], k.shape[2]
    start = torch.arange(batch, dtype=torch.int32, device=k.device).view(-1, 1, 1) * n
    kept = pad(torch.where(kept < 0, -1, kept + start), (0, -kept.shape[-1] % SLOTS), value=-1)
    queries = q.transpose(1, 2).flatten(0, 1).contiguous()  # [B·Q, H, dc + dr]
    latents = k.transpose(1, 2).flatten(0, 1)  # [B·N, 1, dc + dr]
    y, _, _ = flash_mla_sparse_fwd(queries, latents, kept.flatten(0, 1).unsqueeze(1), scale, v.shape[-1])
    return y.unflatten(0, (batch, -1)).transpose(1, 2)
