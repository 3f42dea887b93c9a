"""Attention of new tokens by FlashInfer: of one to caches of [B, Hk, N, D], as they are here; of any to latents.

One sample is a call. Of several, each sample's cache is one page of a paged cache, and its plan of programs, which
depends on the shapes alone, is made once, as it is once for all layers of a model.

Ye et al. 2025, "FlashInfer: Efficient and Customizable Attention Engine for LLM Inference Serving",
https://arxiv.org/abs/2501.01005; https://github.com/flashinfer-ai/flashinfer
"""

from __future__ import annotations

import shutil
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from attnbench.inputs import torch_dtype
from attnbench.modules import installed
from attnbench.problem import Problem

HEAD_DIMS = (64, 128, 256)

DTYPES = ("float16", "bfloat16")

WORKSPACE_BYTES = 128 << 20

LEAST_GROUP = 3
"""Query heads of a group from which on tensor cores are worth their rows."""

KERNEL = "FlashInfer: decode"


def why_not(problem: Problem) -> str | None:
    """The reason that it cannot run here, or None."""
    if problem.query_len > 1 or not problem.past:
        return "FlashInfer is measured in decoding: query_len 1 of seq_len > 1 tokens"
    if problem.dtype not in DTYPES or problem.head_dim not in HEAD_DIMS:
        taken = f"{' and '.join(DTYPES)} of head_dim {', '.join(map(str, HEAD_DIMS))}"
        return f"FlashInfer takes {taken}, not {problem.dtype} of {problem.head_dim}"
    return unavailable()


def unavailable() -> str | None:
    """The reason that none of its kernels can run here, or None."""
    if torch.cuda.get_device_capability() < (8, 0):
        return "FlashInfer's kernels are compiled for compute capability 8.0 (Ampere) or more"
    if not installed("flashinfer.decode"):
        return "FlashInfer is not installed: pip install flashinfer-python"
    if not installed("flashinfer_jit_cache") and shutil.which("nvcc") is None:
        return "FlashInfer compiles its kernels: it needs nvcc, or pip install flashinfer-jit-cache"
    return None


def attend(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q: [B, H, 1, D]. k, v: [B, Hk, N, D]. Returns [B, H, 1, D]."""
    from flashinfer.decode import single_decode_with_kv_cache

    if problem.batch > 1:
        return _planned(problem, q.device).run(q.squeeze(2), (k, v)).unsqueeze(2)
    tensor_cores = problem.group >= LEAST_GROUP
    y: Tensor = single_decode_with_kv_cache(q[0, :, 0], k[0], v[0], kv_layout="HND", use_tensor_cores=tensor_cores)
    return y[None, :, None]


@lru_cache(maxsize=4)
def _planned(problem: Problem, device: torch.device) -> Any:
    """The wrapper of a batch, whose pages are the samples' caches."""
    from flashinfer.decode import BatchDecodeWithPagedKVCacheWrapper

    workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    wrapper = BatchDecodeWithPagedKVCacheWrapper(
        workspace, kv_layout="HND", use_tensor_cores=problem.group >= LEAST_GROUP
    )
    pages = torch.arange(problem.batch + 1, dtype=torch.int32, device=device)
    lengths = torch.full((problem.batch,), problem.seq_len, dtype=torch.int32, device=device)
    dtype = torch_dtype(problem)
    wrapper.plan(
        pages, pages[:-1], lengths, problem.heads, problem.kv_heads, problem.head_dim, problem.seq_len,
        q_data_type=dtype, kv_data_type=dtype,
    )  # fmt: skip
    return wrapper


LATENT_CHANNELS = (512, 64)
"""dc and dr of latents that its kernels are tested with."""

LATENT_KERNEL = "FlashInfer: MLA"


def why_not_latents(problem: Problem, latent: int, shared: int) -> str | None:
    """The reason that it cannot attend to latents here, or None. latent, shared: dc and dr."""
    if not problem.past:
        return "FlashInfer's kernel of latents is measured in decoding: query_len < seq_len"
    if problem.dtype not in DTYPES or (latent, shared) != LATENT_CHANNELS:
        taken = f"{' and '.join(DTYPES)} of {LATENT_CHANNELS[0]} + {LATENT_CHANNELS[1]} channels"
        return f"FlashInfer takes latents in {taken}, not {problem.dtype} of {latent} + {shared}"
    return unavailable()


def attend_to_latents(problem: Problem, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Absorbed latent attention of the last Q of N tokens, causal.

    Args:
        q: [B, H, Q, dc + dr].
        k: [B, 1, N, dc + dr].
        v: the first dc channels of k.
        scale: of the logits.

    Returns: [B, H, Q, dc].
    """
    shared = k.shape[-1] - v.shape[-1]
    wrapper = _planned_latents(problem, v.shape[-1], shared, scale, q.device)
    q_c, q_r = q.transpose(1, 2).flatten(0, 1).split((v.shape[-1], shared), dim=-1)  # [B·Q, H, dc] and [B·Q, H, dr]
    y = wrapper.run(q_c, q_r, v[:, 0], k[:, 0, :, v.shape[-1] :])
    return y.unflatten(0, (problem.batch, -1)).transpose(1, 2)


@lru_cache(maxsize=4)
def _planned_latents(problem: Problem, latent: int, shared: int, scale: float, device: torch.device) -> Any:
    """The wrapper of a batch, whose pages are the samples' caches."""
    from flashinfer.mla import BatchMLAPagedAttentionWrapper

    wrapper = BatchMLAPagedAttentionWrapper(torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device))
    pages = torch.arange(problem.batch + 1, dtype=torch.int32, device=device)
    lengths = torch.full((problem.batch,), problem.seq_len, dtype=torch.int32, device=device)
    dtype = torch_dtype(problem)
    wrapper.plan(
        pages * problem.query_len, pages, pages[:-1], lengths, problem.heads, latent, shared, problem.seq_len,
        True, scale, dtype, dtype,
    )  # fmt: skip
    return wrapper
