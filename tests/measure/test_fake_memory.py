"""The predicted peak, against a count by hand and against tensors that live longer than they should."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.measure.worker.fake_memory import LiveBytes, predict
from attnbench.problem import Problem
from attnbench.registry import operators

N, C, H = 64, 32, 4


def test_eager_softmax_holds_two_n_by_n_matrices() -> None:
    form = operators()["softmax"].load().forms["core"]
    footprint = predict(form, Problem(N, C, H), {"value_map": False}, "fwd")
    # scaled q, scores and weights are alive at once; the output is made when the scores are gone
    assert footprint.peak_bytes == 4 * (N * C + 2 * H * N * N)
    assert footprint.input_bytes == 3 * 4 * N * C


def test_a_temporary_kept_alive_raises_the_peak() -> None:
    x = torch.zeros(100)

    def peak(keep: bool) -> int:
        with LiveBytes() as live:
            kept: list[Tensor] = []
            for _ in range(5):
                y = x + 1
                if keep:
                    kept.append(y)
        return live.peak

    assert peak(keep=False) == 2 * 400
    assert peak(keep=True) == 5 * 400


def test_views_and_in_place_operations_take_no_memory() -> None:
    x = torch.zeros(100)
    with LiveBytes() as live:
        x.view(10, 10).t().add_(1)
    assert live.peak == 0


def test_a_million_tokens_are_predicted_without_allocating_them() -> None:
    form = operators()["softmax"].load().forms["core"]
    footprint = predict(form, Problem(2**20, C, H), {"value_map": False}, "fwd")
    assert footprint.peak_bytes > 2 * H * 2**40
