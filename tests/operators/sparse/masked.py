"""The independent form of every sparse operator: dense attention under an N×N mask, built pair by pair."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnbench.operator import Cost, Inputs
from attnbench.problem import Mode, Params, Problem
from attnbench.registry import operators, resolve

Sees = Callable[[int, int], bool]


def attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """softmax attention over the allowed pairs ([N, M], or [H, N, M]); rows without any are 0."""
    logits = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
    weights = logits.masked_fill(~allowed, float("-inf")).softmax(-1).nan_to_num(0.0)
    return torch.einsum("bhij,bhjd->bhid", weights, v)


def mask(n: int, sees: Sees, causal: bool = False) -> Tensor:
    """[N, N]: whether token i sees token j, asked pair by pair."""
    pairs = itertools.product(range(n), range(n))
    return torch.tensor([sees(i, j) and (not causal or j <= i) for i, j in pairs]).view(n, n)


class Case:
    """An operator with params on a small float64 problem, and its inputs."""

    def __init__(
        self,
        name: str,
        seq_len: int,
        causal: bool = False,
        *,
        heads: int = 2,
        head_dim: int = 4,
        kv_heads: int | None = None,
        batch: int = 2,
        given: Params | None = None,
        **params: Any,
    ) -> None:
        operator = operators()[name].load()
        self.operator = operator
        self.form = operator.forms["core"]
        self.params: Params = resolve(operator, {**(given or {}), **params})
        shape: dict[str, Any] = {"batch": batch, "dtype": "float64", "causal": causal, "kv_heads": kv_heads or heads}
        self.problem = Problem(seq_len, head_dim * heads, heads, **shape)
        self.inputs: Inputs = self.form.make_inputs(self.problem, self.params, torch.Generator().manual_seed(seq_len))

    @property
    def qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.inputs.data["q"], self.inputs.data["k"], self.inputs.data["v"]

    def output(self) -> Tensor:
        return self.form.reference(self.problem, self.params, **self.inputs.tensors())

    def cost(self, mode: Mode = "fwd") -> Cost:
        return self.form.cost(self.problem, self.params, mode)

    def required_flops(self, pairs: int) -> int:
        """FLOPs of q kᵀ and p v over this many pairs of all heads together, per sample."""
        return 2 * 2 * self.problem.batch * pairs * self.problem.head_dim

    def run_impl(self, name: str) -> Tensor:
        """An impl called directly, whatever device it is meant for."""
        return self.form.impls[name].load()(self.problem, self.params, **self.inputs.tensors())


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-11)


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Of the output times a fixed random cotangent."""
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    return list(torch.autograd.grad(output, inputs, cotangent))
