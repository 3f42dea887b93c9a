"""nystromformer: through the N×N matrix F Z B, segment by segment and matrix by matrix."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.operators.lowrank.nystromformer import layer_bytes_again, pseudo_inverse
from attnbench.problem import Params, Problem
from attnbench.registry import operators, outside_definition, resolve
from tests.operators.small import Small, all_close, close, small


def case_of(
    n: int = 11, m: int = 4, heads: int = 4, kv_heads: int = 2, conv: int | str = 3, iterations: int = 6, seed: int = 0
) -> Small:
    problem = Problem(n, 3 * heads, heads, batch=2, kv_heads=kv_heads)
    return small("nystromformer", problem, seed=seed, landmarks=m, conv=conv, iterations=iterations)


def dense(case: Small, mistake: str = "") -> Tensor:
    """Each head of each sample by itself, with the formula's matrices."""
    q, k, v = (case.tensors[name] for name in "qkv")
    group = q.shape[1] // k.shape[1]
    matrices = [[shortened(x[b], case.params, mistake) for b in range(x.shape[0])] for x in (q, k)]
    largest = torch.tensor(0.0, dtype=q.dtype)
    if mistake == "Z_0 over all matrices":
        every = [
            weights(means_q[h], means_k[h // group], mistake)
            for means_q, means_k in zip(*matrices, strict=True)
            for h in range(q.shape[1])
        ]
        largest = torch.stack([a.sum(0).max() for a in every]).max()
    rows = []
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            own, means = h // group, (matrices[0][b][h], matrices[1][b][h // group])
            if mistake == "tiled heads":
                own, means = h % k.shape[1], (matrices[0][b][h], matrices[1][b][h % k.shape[1]])
            z = inverse(weights(*means, mistake), case.params["iterations"], mistake, largest)
            p = weights(q[b, h], means[1], mistake) @ z @ weights(means[0], k[b, own], mistake)
            y = p @ v[b, own]
            if case.params["conv"] != "off":
                y = y + residual(v[b, own], case.tensors["taps"][h], mistake)
            rows.append(y)
    return torch.stack(rows).view_as(q)


def shortened(x: Tensor, params: Params, mistake: str) -> Tensor:
    """Landmarks of [heads, N, D]."""
    n = x.shape[1]
    m = min(n, params["landmarks"])
    if mistake == "padded in front":
        x = torch.cat((x.new_zeros(x.shape[0], -n % m, x.shape[2]), x), dim=1)
    length = -(-n // m)
    parts = x.split(length, dim=1) if mistake == "short last segment" else x.tensor_split(m, dim=1)
    return torch.stack([part.sum(1) if mistake == "sums" else part.mean(1) for part in parts], dim=1)


def weights(queries: Tensor, keys: Tensor, mistake: str) -> Tensor:
    exponent = queries @ keys.t() / (1 if mistake == "no scale" else queries.shape[-1] ** 0.5)
    return exponent.exp() / exponent.exp().sum(1, keepdim=True)


def inverse(a: Tensor, iterations: int, mistake: str, largest: Tensor) -> Tensor:
    if mistake == "pinv":
        return torch.linalg.pinv(a)
    one = torch.eye(len(a), dtype=a.dtype)
    z = a.t() / (largest if mistake == "Z_0 over all matrices" else a.sum(0).max())
    if mistake == "rows and columns":
        z = a.t() / (a.sum(0).max() * a.sum(1).max())  # the paper's: a row of a softmax sums to 1
    for _ in range(iterations - 1 if mistake == "a step less" else iterations):
        z = z @ (13 * one - a @ z @ (15 * one - a @ z @ (7 * one - a @ z))) / 4
    return z


def residual(v: Tensor, taps: Tensor, mistake: str) -> Tensor:
    n, count = len(v), len(taps)
    if mistake == "flipped taps":
        taps = taps.flip(0)
    y = torch.zeros_like(v)
    for i in range(n):
        for t in range(count):
            j = i + t - (count - 1 if mistake == "causal taps" else count // 2)
            if 0 <= j < n:
                y[i] += taps[t] * v[j]
    return y


sizes = given(
    n=st.integers(1, 14),
    m=st.integers(1, 9),
    kv_heads=st.sampled_from((1, 2, 4)),
    conv=st.sampled_from(("off", 1, 3, 7)),
    iterations=st.integers(1, 7),
)


@sizes
@settings(max_examples=25, deadline=None)
def test_is_the_dense_form(n: int, m: int, kv_heads: int, conv: int | str, iterations: int) -> None:
    case = case_of(n, m, kv_heads=kv_heads, conv=conv, iterations=iterations)
    assert close(case.output(), dense(case))
    assert close(case.impl("cuda"), dense(case))


@pytest.mark.parametrize("conv", ["off", 3])
@pytest.mark.parametrize("m", [4, 11, 40])
def test_gradients_are_those_of_the_dense_form(m: int, conv: int | str) -> None:
    case = case_of(m=m, conv=conv)
    expected = case.gradients(dense)
    assert all_close(case.gradients(), expected)
    assert all_close(case.gradients(lambda grown: grown.impl("cuda")), expected)
    assert not all_close(case.gradients(lambda grown: dense(grown, "a step less")), expected)


@pytest.mark.parametrize(
    "mistake",
    [
        "no scale",
        "sums",
        "padded in front",
        "short last segment",
        "Z_0 over all matrices",
        "pinv",
        "a step less",
        "tiled heads",
        "flipped taps",
        "causal taps",
    ],
)
def test_a_mistake_is_noticed(mistake: str) -> None:
    case = case_of(n=9)  # segments of 3, 2, 2 and 2
    assert not close(case.output(), dense(case, mistake))


def test_rows_of_a_softmax_sum_to_one() -> None:
    """So the paper's Z_0, which divides by the largest row sum as well, is this one."""
    case = case_of()
    assert close(case.output(), dense(case, "rows and columns"))


def test_a_sample_and_a_head_have_nothing_of_others() -> None:
    case = case_of(conv="off")
    q, k, v = case.inputs.data.values()
    alone = Problem(11, 3, 1)
    one = replace(case, problem=alone.with_dtype("float64"))
    assert close(one.output(q=q[1:, 3:], k=k[1:, 1:], v=v[1:, 1:]), case.output()[1:, 3:])
    assert not close(one.output(q=q[1:, 3:], k=k[1:, :1], v=v[1:, 1:]), case.output()[1:, 3:])


def test_all_tokens_as_landmarks_and_many_steps_are_softmax_attention() -> None:
    case = case_of(n=6, m=6, conv="off")
    exact = small("softmax", case.problem).output(**case.inputs.data)
    for changed, rtol in (({"iterations": 60}, 1e-6), ({"iterations": 2}, None), ({"landmarks": 3}, None)):
        output = replace(case, params={**case.params, **changed}).output()
        assert torch.allclose(output, exact, rtol=rtol or 1e-2, atol=1e-8) == (rtol is not None)


def test_one_landmark_is_the_mean_by_one_query() -> None:
    """A = F = 1: every token gets what the mean query sees."""
    case = case_of(m=1, kv_heads=4, conv="off")
    q, k, v = case.inputs.data.values()
    seen = small("softmax", case.problem).output(q=q.mean(dim=2, keepdim=True).expand_as(q), k=k, v=v)
    assert close(case.output(), seen)
    assert not close(case_of(m=2, kv_heads=4, conv="off").output(), seen)


def test_steps_converge_to_the_pseudo_inverse_but_six_need_not_reach_it() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(9, 9, generator=generator, dtype=torch.float64).softmax(-1)
    assert close(pseudo_inverse(a, 40), torch.linalg.pinv(a))
    near = (0.01 * torch.randn(9, 9, generator=generator, dtype=torch.float64)).softmax(-1)
    assert not torch.allclose(pseudo_inverse(near, 6), torch.linalg.pinv(near), rtol=0.5)


def test_a_matrix_of_half_precision_logits_is_inverted_in_float32() -> None:
    """With A rounded to bfloat16 the error of y is many times that."""
    case = case_of(n=256, m=16, kv_heads=4, conv="off", iterations=12)
    exact = case.output()
    low = {name: x.bfloat16() for name, x in case.inputs.data.items()}
    truth = case.output(**{name: x.double() for name, x in low.items()})
    ours = small("nystromformer", case.problem).form.reference(case.problem, case.params, **low)
    assert ours.dtype == torch.bfloat16
    error = float((ours - truth).abs().max() / exact.abs().max())
    q, k = (low[name].unflatten(2, (16, 16)).mean(3) for name in "qk")
    a = (q @ k.mT * 3**-0.5).softmax(-1)
    rough, fine = (pseudo_inverse(x, 12) for x in (a, a.double()))
    assert error < 0.05 < float((rough - fine).abs().max() / fine.abs().max())


@pytest.mark.parametrize(("conv", "reason"), [(4, "conv 4 is even"), (5, None), ("off", None)])
def test_a_convolution_has_a_middle(conv: int | str, reason: str | None) -> None:
    operator = operators()["nystromformer"].load()
    found = outside_definition(operator, Problem(8, 8, 2), resolve(operator, {"conv": conv}), "core")
    assert (reason is None) == (found is None)
    assert reason is None or reason in str(found)


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize(("n", "conv"), [(1, 3), (11, "off"), (11, 5), (100, 3), (100, 65)])
def test_flops_are_the_products_of_the_definition(n: int, conv: int | str, kv_heads: int) -> None:
    case = case_of(n, conv=conv, kv_heads=kv_heads)
    m, d = min(4, n), 3
    one = 2 * (2 * n * m * d) + 2 * m * m * d + 6 * 6 * m**3  # F, B and what they weigh; A, Z B v; six products a step
    if conv != "off":
        one += sum(1 for i in range(n) for t in range(int(conv)) if 0 <= i + t - int(conv) // 2 < n) * d
    assert case.cost().flops == 2 * 2 * 4 * one
    assert case.cost("fwd_bwd").flops == 3 * 2 * 2 * 4 * one


def test_a_convolution_reads_values_again_and_the_gradient_once_more() -> None:
    without, with_taps = case_of(conv="off"), case_of(conv=3)
    q, kv, taps = 2 * 4 * 11 * 3, 2 * 2 * 11 * 3, 4 * 3
    assert without.cost().bytes_moved == 8 * (2 * q + 2 * kv + q)
    assert with_taps.cost().bytes_moved == 8 * (2 * q + 3 * kv + taps + q)
    backward = [case.cost("fwd_bwd").bytes_moved - case.cost().bytes_moved for case in (without, with_taps)]
    assert backward[0] == 8 * (2 * q + 2 * kv + 2 * q + q + 2 * kv)
    assert backward[1] == backward[0] + 8 * (2 * taps + q)


def test_the_layer_reads_x_three_times() -> None:
    problem = Problem(11, 12, 4, batch=2)
    x = problem.batch * problem.seq_len * problem.channels * problem.item_bytes
    assert (layer_bytes_again(problem, "fwd"), layer_bytes_again(problem, "fwd_bwd")) == (2 * x, 5 * x)


def test_logits_have_variance_about_one_and_landmarks_are_not_all_alike() -> None:
    case = small("nystromformer", Problem(512, 64, 4), landmarks=16)
    q, k = case.tensors["q"], case.tensors["k"]
    assert 0.6 < (q @ k.mT / 4).var() < 1.5
    assert q.unflatten(2, (16, 32)).mean(3).var() > 0.4
    assert torch.randn(512, 16).unflatten(0, (16, 32)).mean(1).var() < 0.1
