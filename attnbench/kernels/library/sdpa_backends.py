"""Exact softmax attention by one named kernel of torch: a backend of SDPA, forced.

torch raises where a forced backend cannot run, so no other backend can have run instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from attnbench.grouped import folded, unfolded
from attnbench.inputs import torch_dtype
from attnbench.masking import ahead
from attnbench.problem import Problem

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
"""torch's own exact kernels on CUDA, by the suffix of the impl."""


def attention(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One SDPA call. q: [B, H, Q, D]; k, v: [B, Hk, N, D].

    Where every query sees all keys, the queries of a group are rows of one head: each key is read once for all of them.
    """
    if not problem.causal or problem.query_len == 1:
        return unfolded(scaled_dot_product_attention(folded(q, k), k, v), q)
    mask = _lower_right(problem, q) if problem.past else None
    grouped = problem.group > 1
    return scaled_dot_product_attention(q, k, v, mask, is_causal=not problem.past, enable_gqa=grouped)


def _lower_right(problem: Problem, q: Tensor) -> Tensor:
    """The mask of the last Q of N tokens; with SDPA's own `is_causal` the first query would be the first token.

    On a GPU it is torch's own name for it, which its flash kernel takes; on a CPU that name only makes the mask.
    """
    if q.is_cpu:
        return ~ahead(problem.query_len, problem.seq_len, q.device)
    from torch.nn.attention.bias import causal_lower_right  # brings torch._dynamo

    return causal_lower_right(problem.query_len, problem.seq_len)


def forced(backend: str) -> Callable[[Problem, Tensor, Tensor, Tensor], Tensor]:
    """`attention` by one backend of `BACKENDS` and no other. RuntimeError where it cannot run."""

    def call(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(BACKENDS[backend]):
            return attention(problem, q, k, v)

    return call


def why_not_forced(backend: str, problem: Problem, device: str) -> str | None:
    """Why torch refuses a backend for this dtype, head_dim and causality on a device, in torch's words; or None."""
    return _refusal(backend, torch_dtype(problem), problem.head_dim, problem.causal, device)


@lru_cache(maxsize=256)
def _refusal(backend: str, dtype: torch.dtype, head_dim: int, causal: bool, device: str) -> str | None:
    """Tries a call on 16 tokens; the warnings or the error of torch where it refuses."""
    x = torch.zeros(1, 1, 16, head_dim, dtype=dtype, device=device, requires_grad=True)
    problem = Problem(16, head_dim, causal=causal)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            forced(backend)(problem, x, x, x)
        except RuntimeError as error:
            messages = [str(warning.message) for warning in caught] or [str(error)]
            reasons = [text.split("(Triggered")[0].strip() for text in messages]
            # torch warns about every backend; of the others that they are disabled.
            about_backend = [text for text in reasons if "not used because" not in text and "disabled" not in text]
            return f"torch's {backend} kernel does not run here: " + " ".join(about_backend or reasons)
    return None
