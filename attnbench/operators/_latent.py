"""Latents that stand for the keys and values of all heads, and how heads read them without expanding any.

A token keeps c, of dc channels, and k_r, of dr: head h has keys [W_k,h c; k_r] and values W_v,h c. Absorbed, the query
of a head is [W_k,hᵀ q_n; q_r] against [c; k_r], which all heads share, and its output is W_v,h Σ_j p_ij c_j.

DeepSeek-AI 2024, "DeepSeek-V2", eqs. 9 to 19, https://arxiv.org/abs/2405.04434
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from attnbench.inputs import normal
from attnbench.operator import Param
from attnbench.problem import Params, Problem
from attnbench.state import appended

LATENT_DIM = Param("4d", "channels dc of the latent that keys and values are made of; d: head_dim", ("4d",), minimum=1)
ROPE_DIM = Param("d/2", "channels dr of the key that all heads share, beside D of their own", ("d/2",), minimum=1)


@dataclass(frozen=True)
class Latents:
    """Channels: D of a head, dc of the latent, dr of the shared key."""

    head: int
    latent: int
    shared: int

    @property
    def key(self) -> int:
        """D + dr, of an expanded key; logits are divided by its square root in either form."""
        return self.head + self.shared

    @property
    def token(self) -> int:
        """dc + dr, of what is kept of a token; of an absorbed key."""
        return self.latent + self.shared

    @property
    def scale(self) -> float:
        """(D + dr)^(−½)."""
        return float(self.key**-0.5)


def latents_of(problem: Problem, params: Params) -> Latents:
    """The channels of a problem."""
    d, latent, shared = problem.head_dim, params["latent_dim"], params["rope_dim"]
    return Latents(d, 4 * d if latent == "4d" else latent, max(1, d // 2) if shared == "d/2" else shared)


def drawn_latents(problem: Problem, params: Params, generator: Generator) -> dict[str, Tensor]:
    """q_n, [B, H, Q, D]; q_r, [B, H, Q, dr]; c, [B, Q, dc]; k_r, [B, Q, dr], of the new tokens: N(0, 1)."""
    sizes, b, q = latents_of(problem, params), problem.batch, problem.query_len
    return {
        "q_n": normal(problem, generator, b, problem.heads, q, sizes.head),
        "q_r": normal(problem, generator, b, problem.heads, q, sizes.shared),
        "c": normal(problem, generator, b, q, sizes.latent),
        "k_r": normal(problem, generator, b, q, sizes.shared),
    }


def drawn_expansions(problem: Problem, params: Params, generator: Generator) -> dict[str, Tensor]:
    """w_k, w_v ~ N(0, 1/dc), [H, D, dc]: keys and values of a head have variance 1."""
    sizes = latents_of(problem, params)
    shape = (problem.heads, sizes.head, sizes.latent)
    return {name: normal(problem, generator, *shape, scale=sizes.latent**-0.5) for name in ("w_k", "w_v")}


def drawn_latent_cache(
    problem: Problem, params: Params, generator: Generator, c: Tensor, k_r: Tensor
) -> dict[str, Tensor]:
    """A cache of N(0, 1) latents, [B, N, dc + dr], with the new ones at its end; {} where Q = N."""
    if not problem.past:
        return {}
    cache = normal(problem, generator, problem.batch, problem.seq_len, latents_of(problem, params).token)
    return {"latent_cache": joined(c, k_r, cache)}


def latent_cache(problem: Problem, c: Tensor, k_r: Tensor) -> dict[str, Tensor]:
    """`Inputs.state` after the first N − Q tokens, with room for the new ones: [B, N, dc + dr]."""
    return {"latent_cache": pad(joined(c, k_r), (0, 0, 0, problem.query_len))}


def joined(c: Tensor, k_r: Tensor, cache: Tensor | None = None) -> Tensor:
    """[c; k_r] of all tokens, [B, N, dc + dr]: the cache itself, in which the new ones are written, where there is one.

    Args:
        c, k_r: of the new tokens, [B, Q, dc] and [B, Q, dr].
        cache: [B, N, dc + dr].
    """
    if cache is None:
        return torch.cat((c, k_r), dim=-1)
    appended(cache[..., : c.shape[-1]], c)
    appended(cache[..., c.shape[-1] :], k_r)
    return cache


def latent_cache_bytes(problem: Problem, params: Params, tokens: int) -> int:
    """Bytes of the latents and shared keys of so many tokens."""
    return problem.batch * tokens * latents_of(problem, params).token * problem.item_bytes


def absorbed_queries(q_n: Tensor, q_r: Tensor, w_k: Tensor) -> Tensor:
    """[W_kᵀ q_n; q_r], [B, H, Q, dc + dr]: queries of latents."""
    return torch.cat((by_each_head(q_n, w_k), q_r), dim=-1)


def from_latents(y: Tensor, w_v: Tensor) -> Tensor:
    """W_v of sums of latents: [B, H, Q, dc] → [B, H, Q, D]."""
    return by_each_head(y, w_v.transpose(-2, -1))


def expanded(latents: Tensor, w_k: Tensor, w_v: Tensor) -> tuple[Tensor, Tensor]:
    """[W_k c; k_r] and W_v c of every head: [B, N, dc + dr] → [B, H, N, D + dr] and [B, H, N, D]."""
    heads, _, latent = w_k.shape
    c, k_r = latents.split((latent, latents.shape[-1] - latent), dim=-1)
    k_n, v = ((c @ w.flatten(0, 1).t()).unflatten(-1, (heads, -1)).transpose(1, 2) for w in (w_k, w_v))
    return torch.cat((k_n, k_r.unsqueeze(1).expand(-1, heads, -1, -1)), dim=-1), v


def by_each_head(x: Tensor, w: Tensor) -> Tensor:
    """[B, H, Q, X] × [H, X, Y] → [B, H, Q, Y]: one product a head for all samples, so that no weight is repeated."""
    rows = x.transpose(0, 1).flatten(1, 2)  # [H, B·Q, X]
    y: Tensor = (rows @ w).unflatten(1, (x.shape[0], -1)).transpose(0, 1)
    return y
