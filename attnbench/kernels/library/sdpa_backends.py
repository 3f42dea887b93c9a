"""Exact softmax attention by one named kernel of torch: a backend of SDPA, forced.

torch raises where a forced backend cannot run, so no other backend can have run instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from attnbench.grouped import folded, unfolded
from attnbench.inputs import torch_dtype
from attnbench.masking import ahead
from attnbench.problem import Followed, Params, Problem
from attnbench.state import appended

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
"""torch's own exact kernels on CUDA, by the suffix of the impl."""

MOST_ASKED = 512
"""New tokens, and earlier ones, of the call that asks whether a backend runs."""


def attention(problem: Problem, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """One SDPA call.

    Where every query sees all keys, the queries of a group are rows of one head: each key is read once for all of them.

    Args:
        q: [B, H, Q, K].
        k, v: [B, Hk, N, K] and [B, Hk, N, V].
        scale: of the logits; None: K^(−½).

    Returns: [B, H, Q, V].
    """
    if not problem.causal or problem.query_len == 1:
        return unfolded(scaled_dot_product_attention(folded(q, k), k, v, scale=scale), q)
    mask = _lower_right(problem, q) if problem.past else None
    grouped = q.shape[1] > k.shape[1]
    return scaled_dot_product_attention(q, k, v, mask, is_causal=not problem.past, scale=scale, enable_gqa=grouped)


def after_cache(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor | None = None,
    v_cache: Tensor | None = None,
) -> Tensor:
    """`attention` to the new keys and values and, where Q < N, those of a cache, as an operator's impl is called."""
    return attention(problem, q, appended(k_cache, k), appended(v_cache, v))


def _lower_right(problem: Problem, q: Tensor) -> Tensor:
    """The mask of the last Q of N tokens; with SDPA's own `is_causal` the first query would be the first token.

    On a GPU it is torch's own name for it, which its flash kernel takes; on a CPU that name only makes the mask.
    """
    if q.is_cpu:
        return ~ahead(problem.query_len, problem.seq_len, q.device)
    from torch.nn.attention.bias import causal_lower_right  # brings torch._dynamo

    return causal_lower_right(problem.query_len, problem.seq_len)


def forced(backend: str) -> Callable[..., Tensor]:
    """`attention` by one backend of `BACKENDS` and no other. RuntimeError where it cannot run."""

    def call(problem: Problem, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        with sdpa_kernel(BACKENDS[backend]):
            return attention(problem, q, k, v, scale)

    return call


def why_not_forced(
    backend: str, problem: Problem, device: str, backward: bool = False, value_dim: int | None = None
) -> str | None:
    """Why torch refuses a backend for a problem on a device, in torch's words; or None.

    Args:
        backward: whether the gradients are asked for too.
        value_dim: channels of a value; None: those of a key, head_dim.
    """
    return _refusal(backend, _asked(problem), backward, device, value_dim or problem.head_dim)


def _asked(problem: Problem) -> Problem:
    """A short problem that a backend treats as it does this one: the same heads, dtype, causality and new tokens to
    earlier ones, and numbers of tokens of the same remainder by 256.
    """
    new, past = (n if n <= MOST_ASKED else MOST_ASKED + n % 256 for n in (problem.query_len, problem.past))
    query_len = new if past else Followed()
    batch = min(2, problem.batch)
    return replace(problem, batch=batch, seq_len=new + past, query_len=query_len, height=None, width=None)


@lru_cache(maxsize=256)
def _refusal(backend: str, problem: Problem, backward: bool, device: str, value_dim: int) -> str | None:
    """Tries a call; the warnings or the error of torch where it refuses."""
    key_dim, keys = problem.head_dim, (problem.kv_heads, problem.seq_len)
    shapes = [(problem.heads, problem.query_len, key_dim), (*keys, key_dim), (*keys, value_dim)]
    tensors = [torch.zeros(problem.batch, *shape, dtype=torch_dtype(problem), device=device) for shape in shapes]
    with warnings.catch_warnings(record=True) as caught, torch.set_grad_enabled(backward):
        warnings.simplefilter("always")
        try:
            y = forced(backend)(problem, *(x.requires_grad_(backward) for x in tensors))
            if backward:
                torch.autograd.grad(y, tensors, torch.zeros_like(y))
        except RuntimeError as error:
            messages = [str(warning.message) for warning in caught] or [str(error)]
            reasons = [text.split("(Triggered")[0].strip() for text in messages]
            # torch warns about every backend; of the others that they are disabled.
            about_backend = [text for text in reasons if "not used because" not in text and "disabled" not in text]
            return f"torch's {backend} kernel does not run here: " + " ".join(about_backend or reasons)
    return None
