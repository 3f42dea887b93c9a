"""synthesizer: logits written out one at a time, against every kind; its one-call forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.operators.synthesized.synthesizer import factors
from attnbench.problem import Cell, Problem
from attnbench.registry import operators, why_not
from tests.operators.small import Small, all_close, close, small

KINDS = ("dense", "random", "factorized_dense", "factorized_random")
each_kind = pytest.mark.parametrize("kind", KINDS)
each_causal = pytest.mark.parametrize("causal", [False, True])
sizes = given(
    kind=st.sampled_from(KINDS),
    n=st.integers(1, 14),
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 5),
    batch=st.integers(1, 3),
    causal=st.booleans(),
)


def two_layers(t: dict[str, Tensor], x: Tensor, h: int, suffix: str) -> Tensor:
    hidden = (x @ t["w1" + suffix][h] + t["b1" + suffix][h, 0]).clamp(min=0)
    return hidden @ t["w2" + suffix][h] + t["b2" + suffix][h, 0]


def row_of_logits(case: Small, b: int, h: int, i: int, swapped: bool) -> Tensor:
    """l_i of one head and sample: [N]."""
    t, n = case.tensors, case.problem.seq_len
    kind = case.params["kind"]
    if kind == "random":
        return t["r"][h, i]
    if kind == "factorized_random":
        return torch.stack([t["r1"][h, i] @ t["r2"][h, j] for j in range(n)])
    if kind == "dense":
        return two_layers(t, t["x"][b, h, i], h, "")
    alpha, beta = (two_layers(t, t["x"][b, h, i], h, suffix) for suffix in ("_alpha", "_beta"))
    if swapped:
        a = len(beta)
        return torch.stack([beta[j % a] * alpha[min(j // a, len(alpha) - 1)] for j in range(n)])
    a = len(alpha)
    return torch.stack([alpha[j % a] * beta[j // a] for j in range(n)])


def loop(case: Small, swapped: bool = False, shift: int = 0) -> Tensor:
    """Token by token. swapped: α and β change places. shift: a causal row sees so many tokens too many."""
    v, n = case.tensors["v"], case.problem.seq_len
    rows = []
    for b in range(v.shape[0]):
        for h in range(v.shape[1]):
            for i in range(n):
                seen = min(n, i + 1 + shift) if case.problem.causal else n
                weights = row_of_logits(case, b, h, i, swapped)[:seen].exp()
                rows.append((weights / weights.sum()) @ v[b, h, :seen])
    return torch.stack(rows).view_as(v)


@sizes
@settings(max_examples=60, deadline=None)
def test_equals_the_loop(kind: str, n: int, heads: int, head_dim: int, batch: int, causal: bool) -> None:
    case = small("synthesizer", Problem(n, heads * head_dim, heads, batch, causal=causal), kind=kind)
    assert close(case.output().contiguous(), loop(case))


@each_kind
@each_causal
def test_gradients_equal_those_of_the_loop(kind: str, causal: bool) -> None:
    case = small("synthesizer", Problem(7, 6, 2, 2, causal=causal), kind=kind, rank=3)
    assert all_close(case.gradients(), case.gradients(loop))


def test_swapped_factors_another_token_and_one_too_many_are_noticed() -> None:
    case = small("synthesizer", Problem(12, 6, 2, 2), kind="factorized_dense")
    assert case.tensors["b2_alpha"].shape[-1] != case.tensors["b2_beta"].shape[-1]
    assert not close(case.output().contiguous(), loop(case, swapped=True))
    causal = small("synthesizer", Problem(7, 6, 2, 2, causal=True), kind="dense")
    assert not close(causal.output().contiguous(), loop(causal, shift=1))
    dense = small("synthesizer", Problem(7, 6, 2, 2), kind="dense")
    assert not close(dense.output(x=dense.tensors["x"].flip(2)), dense.output())


def test_random_kinds_are_the_same_map_for_all_samples() -> None:
    for kind, same in (("random", True), ("factorized_random", True), ("dense", False)):
        case = small("synthesizer", Problem(7, 6, 2, 2), kind=kind)
        v = case.tensors["v"][:1].expand(2, -1, -1, -1).contiguous()
        first, second = case.output(v=v)
        assert close(first, second) is same


def test_softmax_attention_is_the_dense_kind_with_its_keys_as_weights() -> None:
    """W₁ = 1, b = 0, W₂ = kᵀ/√D and a queries' sign that relu keeps: then the logits are qᵀk/√D."""
    problem = Problem(7, 8, 2, dtype="float64")
    case = small("synthesizer", problem, kind="dense")
    q, k, v = case.tensors["x"].abs(), torch.randn(1, 2, 7, 4, dtype=torch.float64), case.tensors["v"]
    given = {
        "w1": torch.eye(4, dtype=torch.float64).expand(2, 4, 4),
        "b1": torch.zeros(2, 1, 4, dtype=torch.float64),
        "w2": k[0].transpose(-2, -1) / 2,
        "b2": torch.zeros(2, 1, 7, dtype=torch.float64),
    }
    softmax = operators()["softmax"].load().forms["core"].reference
    assert close(case.output(x=q, **given).contiguous(), softmax(problem, {}, q, k, v))
    assert not close(case.output(x=-q, **given).contiguous(), softmax(problem, {}, -q, k, v))


def test_factors_cover_the_tokens() -> None:
    for n in range(1, 300):
        a, b = factors(n)
        assert a * b >= n
        assert a * (b - 1) < n
        assert max(a, b) <= 4 * min(a, b)
    assert factors(2048) == (32, 64)
    assert factors(5) == (3, 2)
    assert factors(4096) == (64, 64)
    assert factors(4099) == (65, 64)  # a prime


@each_kind
@each_causal
def test_layer_projects_values_and_output_only(kind: str, causal: bool) -> None:
    case = small("synthesizer", Problem(7, 6, 2, 2, causal=causal), "layer", kind=kind)
    t = case.tensors

    def split(x: Tensor) -> Tensor:
        return torch.stack(x.split(3, dim=-1), dim=1)

    inner = small("synthesizer", case.problem, kind=kind)
    given = {name: t[name] for name in inner.inputs.parameters}
    if kind in ("dense", "factorized_dense"):
        given["x"] = split(t["x"])
    y = inner.output(v=split(t["x"] @ t["w_v"]), **given)
    assert close(case.output(), torch.cat(y.unbind(1), dim=-1) @ t["w_o"])
    assert not close(case.output(), torch.cat(y.unbind(1), dim=-1))


@pytest.mark.parametrize("impl", ["sdpa", "cuda"])
@each_kind
@each_causal
def test_the_one_call_forms_are_exact(kind: str, impl: str, causal: bool) -> None:
    problem = Problem(13, 2 * 16, 2, 2, causal=causal)
    case = small("synthesizer", problem, kind=kind)
    if (kind, impl) == ("factorized_dense", "cuda"):  # a kernel of ours, which tests/kernels check
        cell = Cell("synthesizer", impl, "core", "fwd", problem, case.params)
        assert why_not(operators()["synthesizer"].load(), cell, "cpu") == "needs a CUDA device"
        return
    reason = case.form.impls[impl].why_not(problem, case.params, "cpu")
    expected = {"factorized_random": "sdpa", "dense": "cuda", "random": "cuda"}
    assert (reason is None) is (expected.get(kind) == impl), reason
    if reason is not None:
        return
    assert close(case.impl(impl), case.output().contiguous())
    assert not close(case.impl(impl), case.output(v=case.tensors["v"].flip(2)).contiguous())
    ours, theirs = case.gradients(lambda c: c.impl(impl)), case.gradients()
    assert all_close(ours, theirs)


@sizes
@settings(max_examples=40, deadline=None)
def test_flops_count_the_required_products(
    kind: str, n: int, heads: int, head_dim: int, batch: int, causal: bool
) -> None:
    case = small("synthesizer", Problem(n, heads * head_dim, heads, batch, causal=causal), kind=kind, rank=3)
    pairs = [(i, j) for i in range(n) for j in range(n) if j <= i or not causal]
    terms = sum(head_dim for _ in range(batch * heads) for _ in pairs)
    if kind == "dense":
        terms += sum(head_dim for _ in range(batch * heads) for _ in pairs)
    if kind == "factorized_random":
        terms += sum(3 for _ in range(heads) for _ in pairs)
    for name, weights in case.inputs.parameters.items():
        if name.startswith("w1") or (name.startswith("w2") and kind == "factorized_dense"):
            terms += batch * n * weights.numel()
    assert case.cost().flops == 2 * terms
    assert case.cost("fwd_bwd").flops == 6 * terms
    assert case.cost().flops <= case.cost().reference_flops <= 2 * case.cost().flops
