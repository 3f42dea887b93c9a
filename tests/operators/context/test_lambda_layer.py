"""lambda_layer: one lambda per pixel, summed pixel by pixel; the convolution by its offsets."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.problem import Problem
from attnbench.registry import operators, resolve
from tests.operators.small import Small, all_close, close, small

KINDS = ("content", "global", "conv")
each_kind = pytest.mark.parametrize("kind", KINDS)


def layered(kind: str, height: int = 3, width: int = 5, heads: int = 2, value: int = 3, **given: Any) -> Small:
    given = {"key_depth": 4, "window": 3, **given}
    return small("lambda_layer", Problem.image(height, width, heads * value, heads, 2), kind=kind, **given)


def pixel_by_pixel(case: Small, mistake: str = "") -> Tensor:
    """y_n = λ_nᵀ q_n with λ_n = Σ_m Σ_u (softmax(K)_mu + E_nmu) v_muᵀ, one (n, m, u) at a time."""
    t, depth, u = case.tensors, case.params["key_depth"], case.params["intra_depth"]
    b, h, d = case.problem.batch, case.problem.heads, case.problem.head_dim
    height, width = t["q"].shape[2:]
    pixels = list(itertools.product(range(height), range(width)))
    half = case.params["window"] // 2
    q, k, v = t["q"].view(b, h, depth, height, width), t["k"].view(b, depth, u, height, width), t["v"]
    v = v.view(b, d, u, height, width)
    over = 1 if mistake == "softmax over channels" else (-2, -1)
    weights = k.exp() / k.exp().sum(dim=over, keepdim=True)
    y = torch.zeros(b, h, d, height, width, dtype=t["q"].dtype)
    for i, n in enumerate(pixels):
        lam = torch.zeros(b, depth, d, dtype=t["q"].dtype)
        for j, m in enumerate(pixels):
            for layer in range(u):
                key = weights[:, :, layer, m[0], m[1]]
                if case.params["kind"] == "global":
                    key = key + (t["e"][j, :, layer, i] if mistake == "E transposed" else t["e"][i, :, layer, j])
                if case.params["kind"] == "conv":
                    row, column = m[0] - n[0] + half, m[1] - n[1] + half
                    if mistake == "E mirrored":
                        row, column = 2 * half - row, 2 * half - column
                    if 0 <= row <= 2 * half and 0 <= column <= 2 * half:
                        key = key + t["e"][:, layer, row, column]
                value = v[:, :, (layer + 1) % u if mistake == "layers swapped" else layer, m[0], m[1]]
                lam = lam + torch.einsum("bk,bd->bkd", key, value)
        y[:, :, :, n[0], n[1]] = torch.einsum("bkd,bhk->bhd", lam, q[:, :, :, n[0], n[1]])
    return y.reshape(b, h * d, height, width)


@given(
    kind=st.sampled_from(KINDS),
    height=st.integers(1, 4),
    width=st.integers(1, 5),
    heads=st.integers(1, 3),
    value=st.integers(1, 3),
    depth=st.integers(1, 4),
    intra=st.integers(1, 3),
    window=st.sampled_from([1, 3, 5, 9]),
)
@settings(max_examples=50, deadline=None)
def test_equals_the_sum_over_pixels(
    kind: str, height: int, width: int, heads: int, value: int, depth: int, intra: int, window: int
) -> None:
    case = layered(kind, height, width, heads, value, key_depth=depth, intra_depth=intra, window=window)
    assert close(case.output(), pixel_by_pixel(case))


@pytest.mark.parametrize(
    ("kind", "intra", "mistake"),
    [
        ("content", 1, "softmax over channels"),
        ("content", 2, "layers swapped"),
        ("global", 1, "E transposed"),
        ("conv", 1, "E mirrored"),
        ("conv", 2, "layers swapped"),
    ],
)
def test_each_mistake_is_noticed(kind: str, intra: int, mistake: str) -> None:
    case = layered(kind, intra_depth=intra)
    assert close(case.output(), pixel_by_pixel(case))
    assert not close(case.output(), pixel_by_pixel(case, mistake), rtol=1e-3)


@each_kind
@pytest.mark.parametrize("intra", [1, 2])
def test_gradients_equal_those_of_the_sum(kind: str, intra: int) -> None:
    case = layered(kind, intra_depth=intra)
    assert all_close(case.gradients(), case.gradients(pixel_by_pixel))


def test_a_window_over_the_whole_map_is_global_by_offset() -> None:
    """E_nm of kind global filled from the offsets of kind conv gives the same map; a narrower window does not."""
    for window, same in ((9, True), (7, False)):
        conv = layered("conv", window=window)
        full = layered("conv", window=9)
        pixels = list(itertools.product(range(3), range(5)))
        e = torch.zeros(15, 4, 1, 15, dtype=torch.float64)
        for i, j in itertools.product(range(15), range(15)):
            (ny, nx), (my, mx) = pixels[i], pixels[j]
            e[i, :, 0, j] = full.tensors["e"][:, 0, my - ny + 4, mx - nx + 4]
        inner = full.tensors["e"][..., 1:-1, 1:-1].contiguous() if window == 7 else full.tensors["e"]
        given = {name: full.tensors[name] for name in "qkv"}
        everywhere = layered("global").output(e=e, **given)
        assert close(conv.output(e=inner, **given), everywhere) is same


def test_translation() -> None:
    """Shifting an image of zeros with something in the middle shifts what position lambdas make of it."""
    conv, free = layered("conv", 9, 9), layered("global", 9, 9)
    for case, moves in ((conv, True), (free, False)):
        t = case.tensors
        inside = torch.zeros_like(t["v"])
        inside[..., 4, 4] = t["v"][..., 4, 4]
        zero_keys = torch.zeros_like(t["k"])  # the content lambda is then the mean of v, the same everywhere
        q = t["q"][..., :1, :1].expand_as(t["q"]).contiguous()
        y = case.output(q=q, k=zero_keys, v=inside)
        shifted = case.output(q=q, k=zero_keys, v=inside.roll((1, -2), dims=(-2, -1)))
        assert close(shifted, y.roll((1, -2), dims=(-2, -1))) is moves


@each_kind
def test_permuting_pixels_permutes_the_content_alone(kind: str) -> None:
    case = layered(kind)
    turned = {name: case.tensors[name].flip(-1) for name in "qkv"}
    assert close(case.output(**turned), case.output().flip(-1)) is (kind == "content")


def test_layer_projects_and_normalises() -> None:
    case = small("lambda_layer", Problem.image(3, 5, 6, 2, 2), "layer", key_depth=4, window=3)
    t = case.tensors

    def projected(name: str, norm: bool) -> Tensor:
        y = torch.einsum("oc,bchw->bohw", t[f"w_{name}"], t["x"])
        if not norm:
            return y
        mean, variance = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), correction=0, keepdim=True)
        gamma, beta = (t[f"{g}_{name}"][:, None, None] for g in ("gamma", "beta"))
        return (y - mean) / (variance + 1e-5).sqrt() * gamma + beta

    core = layered("conv")
    q, k, v = projected("q", True), projected("k", False), projected("v", True)
    assert close(case.output(), core.output(q=q, k=k, v=v, e=t["e"]))
    assert not close(case.output(), core.output(q=q, k=k, v=projected("v", False), e=t["e"]))


def test_an_even_window_is_refused() -> None:
    operator = operators()["lambda_layer"].load()
    for window, refused in ((22, True), (23, False)):
        reason = operator.why_not(Problem.image(3, 3, 4), resolve(operator, {"window": window}), "core")
        assert (reason is not None) is refused


@given(
    kind=st.sampled_from(KINDS),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    intra=st.integers(1, 2),
    window=st.sampled_from([1, 3, 5, 7]),
)
@settings(max_examples=40, deadline=None)
def test_flops_count_the_required_products(kind: str, height: int, width: int, intra: int, window: int) -> None:
    case = layered(kind, height, width, intra_depth=intra, window=window)
    pixels = list(itertools.product(range(height), range(width)))
    half = window // 2
    near = [
        (n, m)
        for n in pixels
        for m in pixels
        if kind == "global" or (kind == "conv" and max(abs(n[0] - m[0]), abs(n[1] - m[1])) <= half)
    ]
    terms = 2 * sum(intra * 4 * 3 for _ in near)  # batch · u · |k| · |v|
    terms += 2 * sum(intra * 4 * 3 + 2 * 4 * 3 for _ in pixels)  # the content lambda; h · |k| · |v|
    assert case.cost().flops == 2 * terms
    assert case.cost("fwd_bwd").flops == 6 * terms
    assert case.cost().flops <= case.cost().reference_flops


def test_what_the_convolution_wastes_is_bounded() -> None:
    for side, window in itertools.product((3, 7, 23, 56), (3, 7, 23)):
        case = operators()["lambda_layer"].load()
        problem = Problem.image(side, side, 64, 8)
        cost = case.forms["core"].cost(problem, resolve(case, {"window": window}), "fwd")
        assert cost.reference_flops <= max(16 / 9, window**2 / side**2) * cost.flops
    assert cost.reference_flops < 1.25 * cost.flops
