"""Independent forms for the operators on maps: attention one pixel at a time, per head, over listed keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attnbench.problem import Problem
from tests.operators.small import Small, small

KANETS_MULTIPLY_ADDS = {
    "softmax": (627_200, 9_884_672, 157_552_640),
    "softmax_pool": (156_800, 2_471_168, 39_388_160),
    "kao_kv": (89_600, 706_048, 5_626_880),
    "kao_qkv": (14_336, 53_760, 207_872),
}
"""The cost table of KANets, per sample, at sides 14, 28 and 56, with 8 channels and one head."""


def kanets_multiply_adds(name: str) -> tuple[int, ...]:
    """What `cost` says of the same."""
    problems = (Problem.image(side, side, 8) for side in (14, 28, 56))
    operator = small(name, Problem.image(2, 2, 8), value_map=True)
    costs = [operator.form.cost(problem, operator.params, "fwd").flops for problem in problems]
    assert all(cost % 2 == 0 for cost in costs)
    return tuple(cost // 2 for cost in costs)


def row_means(x: Tensor) -> list[Tensor]:
    """Of [B, C, h, w]: h tensors [B, C]."""
    return [sum(x[:, :, i, j] for j in range(x.shape[3])) / x.shape[3] for i in range(x.shape[2])]


def column_means(x: Tensor) -> list[Tensor]:
    return row_means(x.transpose(2, 3))


def attention(heads: int, q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float = 1.0) -> Tensor:
    """One query [B, C] over keys and values of [B, C] each. Returns [B, C]."""
    found = []
    for h in range(heads):
        logits = torch.stack([scale * (q.chunk(heads, 1)[h] * k.chunk(heads, 1)[h]).sum(1) for k in keys], dim=1)
        weights = logits.exp() / logits.exp().sum(1, keepdim=True)  # [B, M]
        found.append(sum(weights[:, m : m + 1] * v.chunk(heads, 1)[h] for m, v in enumerate(values)))
    return torch.cat(found, dim=1)


def with_value_map(case: Small, values: Sequence[Tensor]) -> list[Tensor]:
    """Each of [B, C] times the learned map, where there is one."""
    value_map = case.tensors.get("value_map")
    return list(values) if value_map is None else [v @ value_map for v in values]


def over_pixels(q: Tensor, answer: Callable[[Tensor], Tensor]) -> Tensor:
    """The map of `answer(q_ij)` for every pixel."""
    rows = [torch.stack([answer(q[:, :, i, j]) for j in range(q.shape[3])], dim=2) for i in range(q.shape[2])]
    return torch.stack(rows, dim=2)
