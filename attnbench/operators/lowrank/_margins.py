"""The means of a map over its rows and its columns: what kao_kv and kao_qkv attend to."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.operator import Paper
from attnbench.operators._map_attention import sides
from attnbench.problem import Problem

CAUSAL = "the mean of a row or a column mixes pixels before and after any of its pixels"


def kronecker_paper(where: str) -> Paper:
    """Where both come from."""
    title = "Kronecker Attention Networks"
    return Paper("Gao, Wang, Ji", 2020, title, "https://arxiv.org/abs/2007.08442", where)


def margins(x: Tensor) -> Tensor:
    """[B, C, h, w] → [B, C, h + w]: the means over the width, then those over the height."""
    return torch.cat((x.mean(dim=-1), x.mean(dim=-2)), dim=-1)


def margin_length(problem: Problem) -> int:
    """h + w."""
    return sum(sides(problem))
