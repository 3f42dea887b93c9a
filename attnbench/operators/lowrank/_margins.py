"""The means of a map over its rows and its columns, which kao_kv and kao_qkv attend to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from attnbench.cost import product
from attnbench.operator import Cost, Form, Paper
from attnbench.operators._map_attention import sides
from attnbench.problem import Mode, Params, Problem

GROUPED = "queries, keys and values are means of one map, with the same heads"
CAUSAL = "the mean of a row or a column mixes pixels before and after any of its pixels"


def kronecker_paper(section: str) -> Paper:
    """The paper of kao_kv and kao_qkv. section: the part that is implemented."""
    title = "Kronecker Attention Networks"
    return Paper("Gao, Wang, Ji", 2020, title, "https://arxiv.org/abs/2007.08442", section)


def margins(x: Tensor) -> Tensor:
    """[B, C, h, w] → [B, C, h + w]: the means over the width, then those over the height."""
    return torch.cat((x.mean(dim=-1), x.mean(dim=-2)), dim=-1)


def margin_length(problem: Problem) -> int:
    """h + w."""
    return sum(sides(problem))


def layer_cost(projected: Form, pixels: int, means: int, spared: int) -> Callable[[Problem, Params, Mode], Cost]:
    """The cost of a layer that projects means instead of pixels where it can: a mean commutes with a map.

    Args:
        projected: the layer that projects every pixel; its traffic is the same.
        pixels, means: how many of the C×C maps are applied to all pixels, and to the h + w means.
        spared: means of a map that `projected` computes and this layer does not, since one pair serves all.
    """

    def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
        around = projected.cost(problem, params, mode)
        b, n, c, m = problem.batch, problem.seq_len, problem.channels, margin_length(problem)
        every_pixel = product((pixels + means) * b * n * c * c, mode)
        flops = (
            around.flops
            - every_pixel
            + product(pixels * b * n * c * c, mode)  # [C, C] × [C, N], each
            + product(means * b * m * c * c, mode)  # [C, C] × [C, h + w], each
        )
        fewer = spared * b * n * c * (1 if mode == "fwd" else 2)
        return replace(around, flops=flops, reference_flops=flops, elementwise=around.elementwise - fewer)

    return cost
