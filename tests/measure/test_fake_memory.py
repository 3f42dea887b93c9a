"""The predicted peak, against a count by hand and against tensors that live longer than they should."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from attnbench.interrupts import Interrupted
from attnbench.measure.worker.fake_memory import LiveBytes, predict, predict_on_meta
from attnbench.measure.worker.forecast import footprint
from attnbench.operator import Form
from attnbench.problem import Problem
from attnbench.registry import operators, resolve

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


def test_a_strided_gradient_is_copied_inside_the_backward_of_a_softmax() -> None:
    weights, gradient = torch.zeros(8, 16), torch.zeros(16, 8).t()

    def peak(of: Tensor) -> int:
        with LiveBytes() as live:
            torch._softmax_backward_data(of, weights, -1, torch.float32)
        return live.peak

    assert peak(gradient) == 2 * 512
    assert peak(gradient.contiguous()) == 512


def test_a_million_tokens_are_predicted_without_allocating_them() -> None:
    form = operators()["softmax"].load().forms["core"]
    footprint = predict(form, Problem(2**20, C, H), {"value_map": False}, "fwd")
    assert footprint.peak_bytes > 2 * H * 2**40


@pytest.mark.parametrize("mode", ["fwd", "fwd_bwd"])
@pytest.mark.parametrize(
    "name", ["softmax", "reformer", "linear_transformer", "gated_delta_net", "dsa", "hyena", "gmlp"]
)
def test_meta_tensors_have_the_same_footprint(name: str, mode: Any) -> None:
    operator = operators()[name].load()
    form, params = operator.forms["core"], resolve(operator, {})
    problem = Problem(200, C, H, causal=operator.causal is True)
    assert predict_on_meta(form, problem, params, mode) == predict(form, problem, params, mode)


def test_a_reference_that_mixes_devices_is_still_predicted() -> None:
    form = operators()["softmax"].load().forms["core"]
    problem, params = Problem(N, C, H), {"value_map": False}

    def mixing(*args: Any, **tensors: Tensor) -> Tensor:
        return tensors["q"] + torch.ones(tensors["q"].shape[-1])

    mixed = replace(form, reference=mixing)
    with pytest.raises(RuntimeError, match="device"):
        predict_on_meta(mixed, problem, params, "fwd")
    predicted = footprint(mixed, problem, params, "fwd")
    assert predicted is not None
    assert predicted.peak_bytes == predict(mixed, problem, params, "fwd").peak_bytes > 0


def test_what_softmax_keeps_for_its_backward() -> None:
    """Scaled q, k, v and the weights; its output is the next layer's to keep. A gradient of the weights and one of the
    scores are alive beside the weights at the peak."""
    form = operators()["softmax"].load().forms["core"]
    predicted = predict(form, Problem(N, C, H), {"value_map": False}, "fwd_bwd")
    assert predicted.saved_bytes == 4 * (3 * N * C + H * N * N)
    assert predicted.cotangent_bytes == 4 * N * C
    assert predicted.peak_bytes >= 4 * 3 * H * N * N
    assert predict(form, Problem(N, C, H), {"value_map": False}, "fwd").saved_bytes == 0


def test_what_identity_keeps_is_nothing() -> None:
    predicted = predict(operators()["identity"].load().forms["core"], Problem(N, C, H), {}, "fwd_bwd")
    assert (predicted.saved_bytes, predicted.peak_bytes) == (0, 0)


@pytest.mark.parametrize("way", [predict, predict_on_meta])
def test_what_a_backward_would_need_and_is_gone_is_not_kept(way: Any) -> None:
    """The output may have the address of what was saved and freed before."""
    softmax = operators()["softmax"].load().forms["core"]

    def dropping(problem: Problem, params: Any, q: Tensor, **others: Tensor) -> Tensor:
        for _ in range(4):
            (q + 1).exp().exp()
        return 2 * sum(others.values(), q)

    assert way(replace(softmax, reference=dropping), Problem(N, C, H), {}, "fwd_bwd").saved_bytes == 0


def test_a_reference_that_calls_sdpa_is_not_taken_for_its_form_on_meta_tensors() -> None:
    """There torch computes SDPA with the N×N matrix of scores; on a CPU without."""
    softmax = operators()["softmax"].load().forms["core"]
    problem = Problem(N, C, H)

    def sdpa(problem: Problem, params: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v)

    form = replace(softmax, reference=sdpa)
    with pytest.raises(NotImplementedError, match="depends on the device"):
        predict_on_meta(form, problem, {}, "fwd_bwd")
    predicted = footprint(form, problem, {}, "fwd_bwd")
    assert predicted is not None
    assert predicted.saved_bytes < 4 * H * N * N
    with torch.device("meta"), LiveBytes() as live:
        sdpa(problem, {}, *(torch.empty(1, H, N, C // H, requires_grad=True) for _ in range(3)))
    assert live.peak > 4 * H * N * N, "the check sees no matrix"


def test_an_interrupt_is_no_operation_that_tensors_without_data_lack() -> None:
    softmax = operators()["softmax"].load().forms["core"]

    def raising(error: type[BaseException]) -> Form:
        def reference(*args: Any, **tensors: Tensor) -> Tensor:
            raise error

        return replace(softmax, reference=reference)

    assert footprint(raising(KeyboardInterrupt), Problem(N, C, H), {}, "fwd") is None
    with pytest.raises(Interrupted):
        footprint(raising(Interrupted), Problem(N, C, H), {}, "fwd")
