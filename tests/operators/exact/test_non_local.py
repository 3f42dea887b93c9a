"""non_local: every kind pair by pair, and the exact rewrites of those that are no softmax."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.kernels.library.relu_sums import CHUNK, prefix_sums, relu_sums
from attnbench.measure.worker.fake_memory import predict
from attnbench.problem import MODES, SCOPES, Mode, Problem, Scope
from attnbench.registry import outside_definition
from tests.operators.flops import FlopCounter
from tests.operators.small import Small, all_close, close, operators, small

KINDS = ("gaussian", "embedded_gaussian", "dot_product", "concatenation")
FAST = {"gaussian": "sdpa", "embedded_gaussian": "sdpa", "dot_product": "cuda", "concatenation": "cuda"}
sizes = given(n=st.integers(1, 9), inner=st.integers(2, 5), heads=st.integers(1, 3), kind=st.sampled_from(KINDS))
each_kind = pytest.mark.parametrize("kind", KINDS)


def case_of(kind: str, n: int = 7, inner: int = 3, heads: int = 2, scope: Scope = "core", seed: int = 0) -> Small:
    return small("non_local", Problem(n, 2 * inner * heads, heads, batch=2), scope, seed, kind=kind)


def loop(case: Small, mistake: str = "") -> Tensor:
    t = case.tensors
    theta, phi = t.get("theta", t.get("x")), t.get("phi", t.get("x"))
    assert theta is not None
    assert phi is not None
    return attend(case, theta, phi, t["g"], t.get("w"), mistake)


def attend(case: Small, theta: Tensor, phi: Tensor, g: Tensor, w: Tensor | None, mistake: str = "") -> Tensor:
    kind, n = case.params["kind"], case.problem.seq_len
    if mistake == "swapped":
        theta, phi = phi, theta
    outputs = []
    for i in range(n):
        f = []
        for j in range(n):
            if w is None:
                match = (theta[:, :, i] * phi[:, :, j]).sum(-1)
            else:
                together = torch.cat((theta[:, :, i], phi[:, :, j]), dim=-1)
                match = (together * w.flatten(1)).sum(-1)
                match = match if mistake == "no relu" else match.clamp(min=0)
            if mistake == "scaled":
                match = match / case.problem.head_dim**0.5
            f.append(match.exp() if "gaussian" in kind else match)
        z = sum(f) if "gaussian" in kind and mistake != "divided by n" else n
        outputs.append(sum(f[j].unsqueeze(-1) * g[:, :, j] for j in range(n)) / (z.unsqueeze(-1) if z is not n else n))
    return torch.stack(outputs, dim=2)


@sizes
@settings(max_examples=40, deadline=None)
def test_equals_the_loop(n: int, inner: int, heads: int, kind: str) -> None:
    case = case_of(kind, n, inner, heads)
    assert close(case.output(), loop(case))


@pytest.mark.parametrize(
    ("mistake", "kind"),
    [
        *(("scaled", kind) for kind in KINDS),
        *(("swapped", kind) for kind in KINDS[1:]),
        ("divided by n", "gaussian"),
        ("divided by n", "embedded_gaussian"),
        ("no relu", "concatenation"),
    ],
)
def test_a_mistake_is_noticed(mistake: str, kind: str) -> None:
    case = case_of(kind)
    assert not close(case.output(), loop(case, mistake))


@each_kind
def test_gradients_equal_the_loop(kind: str) -> None:
    case = case_of(kind)
    assert all_close(case.gradients(), case.gradients(loop))
    assert not all_close(case.gradients(), case.gradients(lambda c: loop(c, "scaled")))


@sizes
@settings(max_examples=40, deadline=None)
def test_the_fast_impl_is_the_same_map(n: int, inner: int, heads: int, kind: str) -> None:
    case = case_of(kind, n, inner, heads)
    assert close(case.impl(FAST[kind]), case.output())
    assert all_close(case.gradients(lambda c: c.impl(FAST[kind])), case.gradients())


@each_kind
def test_each_kind_has_one_fast_impl_and_says_why_not_the_other(kind: str) -> None:
    case = case_of(kind)
    reasons = {name: i.why_not(case.problem, case.params, "cuda") for name, i in case.form.impls.items()}
    assert reasons.pop("cuda:graph") is None  # of the fast one
    assert [name for name, reason in reasons.items() if reason is None] == [FAST[kind]]


def test_the_embedding_of_scaled_queries_is_softmax() -> None:
    case = case_of("embedded_gaussian")
    t = case.tensors
    softmax = small("softmax", Problem(7, 6, 2, batch=2))
    assert close(case.output(theta=t["theta"] / 3**0.5), softmax.output(q=t["theta"], k=t["phi"], v=t["g"]))
    assert not close(case.output(), softmax.output(q=t["theta"], k=t["phi"], v=t["g"]))


@each_kind
def test_moving_tokens_moves_the_output(kind: str) -> None:
    case = case_of(kind)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    data = {name: x[:, :, order] for name, x in case.inputs.data.items()}
    assert close(case.output(**data), case.output()[:, :, order])
    assert not close(case.output(**data), case.output())


@each_kind
def test_the_layer_embeds_adds_and_keeps_the_input(kind: str) -> None:
    case = case_of(kind, scope="layer")
    t = case.tensors
    x = t["x"]

    def heads(y: Tensor) -> Tensor:
        return torch.stack(y.chunk(2, dim=-1), dim=1)

    theta, phi = (heads(x if kind == "gaussian" else x @ t[f"w_{name}"]) for name in ("theta", "phi"))
    y = attend(case, theta, phi, heads(x @ t["w_g"]), t.get("w"))
    y = torch.cat((y[:, 0], y[:, 1]), dim=-1) @ t["w_z"]
    assert close(case.output(), y + x)
    assert close(case.impl(FAST[kind]), y + x)
    assert not close(case.output(), y)


@sizes
@settings(max_examples=40, deadline=None)
def test_flops_count_the_required_products(n: int, inner: int, heads: int, kind: str) -> None:
    case = case_of(kind, n, inner, heads)
    pairs = sum(1 for _ in range(n) for _ in range(n))
    matching = {"gaussian": 2 * inner * pairs, "concatenation": 2 * inner * pairs}.get(kind, inner * pairs)
    expected = 2 * 2 * heads * (matching + pairs * inner)
    assert case.cost().flops == expected
    assert case.cost("fwd_bwd").flops == 3 * expected
    c = 2 * inner * heads
    layer = case_of(kind, n, inner, heads, "layer").cost()
    assert layer.flops - expected == 2 * 2 * (2 if kind == "gaussian" else 4) * n * c * (c // 2)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["dot_product", "concatenation"])
def test_a_rewriting_has_its_own_count(kind: str, mode: Mode, scope: Scope) -> None:
    """Both kinds are counted as written; fewer products are an impl's own, as torch counts them on that impl."""
    case = case_of(kind, 9, 4, scope=scope)
    impl = case.form.impls["cuda"]
    assert impl.flops is not None
    with FlopCounter() as counter:
        if mode == "fwd":
            case.impl("cuda")
        else:
            case.gradients(lambda c: c.impl("cuda"))
    own = impl.flops(case.problem, case.params, mode)
    assert own == counter.total
    assert own < case.cost(mode).flops
    assert case.cost(mode).reference_flops <= case.cost(mode).flops
    assert case.form.impls["sdpa"].flops is None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["dot_product", "concatenation"])
def test_the_rewrites_grow_with_n_and_the_definition_with_its_square(kind: str, mode: Mode) -> None:
    case = case_of(kind)
    problems = [Problem(n, 64, 2) for n in (2**15, 2**17)]
    rewritten = [predict(case.form, p, case.params, mode, case.form.impls["cuda"].load()).peak_bytes for p in problems]
    defined = [predict(case.form, p, case.params, mode).peak_bytes for p in problems]
    assert rewritten[1] / rewritten[0] == pytest.approx(4, rel=0.1)
    assert defined[1] / defined[0] == pytest.approx(16, rel=0.1)


@given(n=st.integers(1, 3 * CHUNK + 5))
@settings(max_examples=25, deadline=None)
def test_prefix_sums(n: int) -> None:
    x = torch.randn(2, 1, n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    sums = prefix_sums(x)
    assert close(sums[:, :, 1:], x.cumsum(dim=2))
    assert not sums[:, :, 0].any()
    assert not close(sums[:, :, :-1], x.cumsum(dim=2))


def test_relu_sums_with_none_all_and_equal_terms() -> None:
    a = torch.tensor([[[-9.0, 9.0, 0.5, 0.5, -1.0]]], dtype=torch.float64)
    b = torch.tensor([[[1.0, 1.0, -0.5, 2.0, -0.5]]], dtype=torch.float64)
    g = torch.randn(1, 1, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dense = (a[..., :, None] + b[..., None, :]).relu() @ g
    assert close(relu_sums(a, b, g), dense)
    assert not close(relu_sums(a, -b, g), dense)


def test_half_precision_sums_do_not_overflow() -> None:
    a, b = torch.full((1, 1, 2048), 8.0).half(), torch.full((1, 1, 2048), -7.5).half()
    g = torch.full((1, 1, 2048, 2), 32.0).half()
    assert torch.equal(relu_sums(a, b, g), torch.full_like(g, 0.5 * 32 * 2048))
    assert g.sum(dim=2).isinf().all()


def test_odd_heads_are_refused_with_the_reason() -> None:
    operator = operators()["non_local"].load()
    params = {"kind": "gaussian"}
    assert "odd" in str(outside_definition(operator, Problem(8, 15), params, "core"))
    assert outside_definition(operator, Problem(8, 16), params, "core") is None


@each_kind
def test_products_have_variance_about_one(kind: str) -> None:
    t = case_of(kind, n=400, inner=16).tensors
    if kind == "concatenation":
        match = torch.einsum("bhnd,hd->bhn", t["theta"], t["w"][:, 0])[..., None]
        match = match + torch.einsum("bhnd,hd->bhn", t["phi"], t["w"][:, 1])[..., None, :]
    else:
        match = t.get("theta", t.get("x")) @ t.get("phi", t.get("x")).transpose(-2, -1)
        match = match.triu(1) + match.tril(-1)
    assert 0.7 < match.var() < 1.4
