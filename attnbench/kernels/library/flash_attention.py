"""Exact softmax attention by the packages of its authors, one for each generation of FlashAttention.

All take [B, N, H, D], fewer heads of keys and values than of queries, and their causal form is that of the last rows.
Where a state continues, a package that can writes the new keys and values into the cache in the same kernel.
A window is given as the tokens before each one's own, in the causal form. A sink logit is one more logit of each row of
a head, in the denominator alone: where a kernel takes none, it is applied to what the kernel leaves, by its logsumexp.

Dao 2023, "FlashAttention-2", https://arxiv.org/abs/2307.08691; Shah et al. 2024, "FlashAttention-3",
https://arxiv.org/abs/2407.08608; FlashAttention-4: https://github.com/Dao-AILab/flash-attention/tree/main/flash_attn/cute
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.kernels.flex.windows import without_sink
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
        attend: (problem, q [B, H, Q, D], k and v [B, Hk, M, D], tokens of a window or None: all, sink logit [H] or
            None) → [B, H, Q, D].
        step: (problem, q, k, v of the new tokens, caches of k and of v [B, Hk, M, D], the same two) → [B, H, Q, D],
            which writes the new keys and values to the caches itself; None: it has no such call.
        sink_head_dims: as head_dims, where a kernel takes a sink logit itself; None: none does.
    """

    name: str
    module: str
    install: str
    gpus: str
    head_dims: Mapping[int, tuple[range, ...]]
    attend: Callable[..., Tensor]
    step: Callable[..., Tensor] | None = None
    sink_head_dims: Mapping[int, tuple[range, ...]] | None = None

    def why_not(self, problem: Problem, sink_logit: bool = False) -> str | None:
        """The reason that it cannot run here, with a sink logit or without, or None."""
        return self.unfit(problem, sink_logit) or self.absent()

    def unfit(self, problem: Problem, sink_logit: bool = False) -> str | None:
        """The reason that it could not run here, were it installed; or None."""
        if problem.dtype not in DTYPES:
            return f"{self.name} takes {' and '.join(DTYPES)}, not {problem.dtype}"
        capability = torch.cuda.get_device_capability()[0]
        if capability not in self.head_dims:
            return f"{self.name} is for {self.gpus}"
        d, dims = problem.head_dim, self.head_dims[capability]
        if not any(d in each for each in dims):
            return f"{self.name} takes head dimensions of {_words(dims)} that are multiples of {DIVISOR}, not {d}"
        if sink_logit and self.sink_head_dims is not None:
            dims = self.sink_head_dims.get(capability, ())
            if not any(d in each for each in dims):
                allowed = f"head dimensions of {_words(dims)}, not {d}" if dims else "other GPUs than this"
                return f"{self.name} takes a sink logit with {allowed}"
        return None

    def absent(self) -> str | None:
        """The reason that it is not there, with what installs it; or None. Nothing is imported."""
        return None if installed(self.module) else f"{self.name} is not installed: {self.install}"

    @property
    def no_sink_gradient(self) -> str | None:
        """The reason that a sink logit has no gradient; or None."""
        takes_it = self.sink_head_dims is not None
        return None if takes_it else f"a sink logit needs the gradient of the logsumexp, of which {self.name} has none"


def _words(dims: tuple[range, ...]) -> str:
    return " or ".join(f"{each[0]} to {each[-1]}" if len(each) > 1 else f"{each[0]}" for each in dims)


def _attend(module: str) -> Callable[..., Tensor]:
    """`Package.attend` of two packages whose functions take the same arguments, as far as they are given."""

    def call(
        problem: Problem, q: Tensor, k: Tensor, v: Tensor, before: int | None = None, sink_logit: Tensor | None = None
    ) -> Tensor:
        attend = importlib.import_module(module).flash_attn_func
        asked = {} if sink_logit is None else {"return_attn_probs": True}
        y = attend(*_tokens_first(q, k, v), causal=problem.causal, **_window(before), **asked)
        return _heads_first(y, sink_logit)

    return call


def _step(module: str) -> Callable[..., Tensor]:
    """`Package.step` of the same two."""

    def call(
        problem: Problem,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        before: int | None = None,
        sink_logit: Tensor | None = None,
    ) -> Tensor:
        step = importlib.import_module(module).flash_attn_with_kvcache
        tensors, past = _tokens_first(q, k_cache, v_cache, k, v), k_cache.shape[2] - k.shape[2]
        asked = {} if sink_logit is None else {"return_softmax_lse": True}
        return _heads_first(step(*tensors, cache_seqlens=past, causal=True, **_window(before), **asked), sink_logit)

    return call


def _fa4(
    problem: Problem, q: Tensor, k: Tensor, v: Tensor, before: int | None = None, sink_logit: Tensor | None = None
) -> Tensor:
    from flash_attn.cute import flash_attn_func

    # It splits the keys among programs on data-centre Blackwell alone.
    split = problem.past and torch.cuda.get_device_capability()[0] in (10, 11)
    given = {**_window(before), **({} if sink_logit is None else {"learnable_sink": sink_logit})}
    y = flash_attn_func(*_tokens_first(q, k, v), causal=problem.causal, num_splits=0 if split else 1, **given)
    return _heads_first(y)


def _window(before: int | None) -> dict[str, tuple[int, int]]:
    """The argument of a window; none of all tokens."""
    return {} if before is None else {"window_size": (before, 0)}


def _heads_first(returned: Tensor | tuple[Tensor, ...], sink_logit: Tensor | None = None) -> Tensor:
    """[B, H, Q, D] of what a function returns: y of [B, Q, H, D], or a tuple of it, the logsumexp [B, H, Q] and more.

    sink_logit: where the logsumexp is there and the kernel was given none.
    """
    y = (returned[0] if isinstance(returned, tuple) else returned).transpose(1, 2)
    return y if sink_logit is None else without_sink(y, returned[1], sink_logit)


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
        _attend("flash_attn.flash_attn_interface"),
        _step("flash_attn.flash_attn_interface"),
    ),
    "fa3": Package(
        "FlashAttention-3",
        "flash_attn_interface",
        "pip install --no-build-isolation 'git+https://github.com/Dao-AILab/flash-attention#subdirectory=hopper'",
        "Hopper GPUs (compute capability 9.0)",
        {9: (_up_to(256),)},
        _attend("flash_attn_interface"),
        _step("flash_attn_interface"),
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
        sink_head_dims={9: (_up_to(256),), **dict.fromkeys((10, 11), (_up_to(128),))},
    ),
}
"""The packages by the suffix of the impl."""
