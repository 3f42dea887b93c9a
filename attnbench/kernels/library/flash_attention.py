"""Exact softmax attention by the packages of its authors, one for each generation of FlashAttention.

All take [B, N, H, D], fewer heads of keys and values than of queries, and their causal form is that of the last rows.
Where a state continues, a package that can writes the new keys and values into the cache in the same kernel.

Dao 2023, "FlashAttention-2", https://arxiv.org/abs/2307.08691; Shah et al. 2024, "FlashAttention-3",
https://arxiv.org/abs/2407.08608; FlashAttention-4: https://github.com/Dao-AILab/flash-attention/tree/main/flash_attn/cute
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.modules import installed
from attnbench.problem import Problem

DTYPES = ("float16", "bfloat16")

DIVISOR = 8
"""Of head dimensions: rows of 16 bytes."""


@dataclass(frozen=True)
class Package:
    """One package.

    Attributes:
        name: as its authors call it; the name stored in the `kernel` column.
        module: what is imported. Two packages share the name `flash_attn`, so it is a module that only one has.
        install: the command that installs it.
        gpus: what its kernels are for, in words.
        head_dims: by major compute capability that it has kernels for, ranges of head dimensions.
        attend: (problem, q [B, H, Q, D], k and v [B, Hk, N, D]) → [B, H, Q, D].
        step: (problem, q, k, v of the new tokens, caches of k and of v [B, Hk, N, D]) → [B, H, Q, D], which writes the
            new keys and values to the caches itself; None: it has no such call.
    """

    name: str
    module: str
    install: str
    gpus: str
    head_dims: Mapping[int, tuple[range, ...]]
    attend: Callable[..., Tensor]
    step: Callable[..., Tensor] | None = None

    def why_not(self, problem: Problem) -> str | None:
        """The reason that it cannot run here, or None."""
        return self.unfit(problem) or self.absent()

    def unfit(self, problem: Problem) -> str | None:
        """The reason that it could not run here, were it installed; or None."""
        if problem.dtype not in DTYPES:
            return f"{self.name} takes {' and '.join(DTYPES)}, not {problem.dtype}"
        dims = self.head_dims.get(torch.cuda.get_device_capability()[0])
        if dims is None:
            return f"{self.name} is for {self.gpus}"
        d = problem.head_dim
        if not any(d in each for each in dims):
            allowed = " or ".join(f"{each[0]} to {each[-1]}" if len(each) > 1 else f"{each[0]}" for each in dims)
            return f"{self.name} takes head dimensions of {allowed} that are multiples of {DIVISOR}, not {d}"
        return None

    def absent(self) -> str | None:
        """The reason that it is not there, with what installs it; or None. Nothing is imported."""
        return None if installed(self.module) else f"{self.name} is not installed: {self.install}"


def _fa2(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from flash_attn.flash_attn_interface import flash_attn_func

    y: Tensor = flash_attn_func(*_tokens_first(q, k, v), causal=problem.causal)
    return y.transpose(1, 2)


def _fa2_step(problem: Problem, q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
    from flash_attn.flash_attn_interface import flash_attn_with_kvcache

    tensors = _tokens_first(q, k_cache, v_cache, k, v)
    y: Tensor = flash_attn_with_kvcache(*tensors, cache_seqlens=problem.past, causal=True)
    return y.transpose(1, 2)


def _fa3(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from flash_attn_interface import flash_attn_func

    y = flash_attn_func(*_tokens_first(q, k, v), causal=problem.causal)
    return (y[0] if isinstance(y, tuple) else y).transpose(1, 2)  # its first releases give (y, the logsumexp)


def _fa3_step(problem: Problem, q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
    from flash_attn_interface import flash_attn_with_kvcache

    tensors = _tokens_first(q, k_cache, v_cache, k, v)
    y: Tensor = flash_attn_with_kvcache(*tensors, cache_seqlens=problem.past, causal=True)
    return y.transpose(1, 2)


def _fa4(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from flash_attn.cute import flash_attn_func

    # It splits the keys among programs on data-centre Blackwell alone.
    split = problem.past and torch.cuda.get_device_capability()[0] in (10, 11)
    y, _ = flash_attn_func(*_tokens_first(q, k, v), causal=problem.causal, num_splits=0 if split else 1)
    return y.transpose(1, 2)


def _tokens_first(*tensors: Tensor) -> tuple[Tensor, ...]:
    """[B, H, N, D] → [B, N, H, D], views."""
    return tuple(x.transpose(1, 2) for x in tensors)


def _up_to(most: int) -> range:
    return range(DIVISOR, most + 1, DIVISOR)


PACKAGES = {
    "flash_attn": Package(
        "FlashAttention-2",
        "flash_attn.flash_attn_interface",
        "pip install flash-attn --no-build-isolation",
        "GPUs of compute capability 8.0 (Ampere) or more",
        dict.fromkeys(range(8, 13), (_up_to(256),)),
        _fa2,
        _fa2_step,
    ),
    "fa3": Package(
        "FlashAttention-3",
        "flash_attn_interface",
        "pip install --no-build-isolation 'git+https://github.com/Dao-AILab/flash-attention#subdirectory=hopper'",
        "Hopper GPUs (compute capability 9.0)",
        {9: (_up_to(256),)},
        _fa3,
        _fa3_step,
    ),
    "fa4": Package(
        "FlashAttention-4",
        "flash_attn.cute.interface",
        "pip install 'flash-attn-4[cu13]' (with CUDA 12: flash-attn-4)",
        "Hopper and Blackwell GPUs (compute capability 9.0 or more)",
        {
            9: (_up_to(256),),
            **dict.fromkeys((10, 11), (_up_to(128), range(256, 257))),
            12: (_up_to(128),),
        },
        _fa4,
    ),
}
"""The packages by the suffix of the impl."""
