"""hamburger: the three factorisations column by column, and both gradients."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.measure.worker.checking import check_impl
from attnbench.measure.worker.prepared_cell import Wrong
from attnbench.operators.context.hamburger import iterate, why_not
from attnbench.problem import MODES, Dtype, Mode, Problem, Scope
from tests.measuring import subject
from tests.operators.flops import FlopCounter
from tests.operators.small import Small, close, small

KINDS = ("nmf", "vq", "cd")
each_kind = pytest.mark.parametrize("kind", KINDS)
each_gradient = pytest.mark.parametrize("gradient", ["one_step", "bptt"])
EPS = 1e-6


def ham(kind: str, n: int = 7, c: int = 5, batch: int = 2, **given: Any) -> Small:
    given = {"rank": 3, "steps": 3, "temperature": 0.3, **given}
    return small("hamburger", Problem(n, c, batch=batch), kind=kind, **given)


def one_by_one(case: Small, mistake: str = "") -> Tensor:
    """The definition on one sample at a time, X as d×N, every sum over tokens and rows written out."""
    x, bases = case.tensors["x"], case.tensors["bases"]
    return torch.stack([factorised(case, x[b].t(), bases[b], mistake).t() for b in range(len(x))])


def factorised(case: Small, x: Tensor, d: Tensor, mistake: str = "") -> Tensor:
    kind, steps = case.params["kind"], case.params["steps"]
    x = x.clamp(min=0) if kind == "nmf" and mistake != "no relu" else x
    c = torch.stack([(d.t() @ column).softmax(0) for column in x.unbind(1)], dim=1)
    one_step = case.params["gradient"] == "one_step" and mistake != "through everything"
    with torch.set_grad_enabled(not one_step):
        for _ in range(steps - 1 if mistake == "a step less" else steps):
            old = c
            c = codes(case, x, d, c, mistake)
            d = dictionary(case, x, d, old if mistake == "the old C" else c, mistake)
    if mistake != "no last update":
        c = ridge(case, x, d) if kind == "cd" else codes(case, x, d, c, mistake)
    return sum((torch.outer(d[:, s], c[s]) for s in range(d.shape[1])), torch.zeros_like(x))


def codes(case: Small, x: Tensor, d: Tensor, c: Tensor, mistake: str) -> Tensor:
    """r×N."""
    if case.params["kind"] == "nmf":
        upper, lower = torch.einsum("ds,dn->sn", d, x), torch.einsum("ds,dt,tn->sn", d, d, c)
        return c * upper / (lower + EPS)
    columns = []
    for token in x.unbind(1):
        cosines = [(column @ token) / (column.norm() * token.norm()) for column in d.unbind(1)]
        scores = torch.stack(cosines if mistake != "no cosine" else [column @ token for column in d.unbind(1)])
        columns.append((scores / case.params["temperature"]).softmax(0))
    return torch.stack(columns, dim=1)


def dictionary(case: Small, x: Tensor, d: Tensor, c: Tensor, mistake: str) -> Tensor:
    """d×r."""
    if case.params["kind"] == "nmf":
        return d * torch.einsum("dn,sn->ds", x, c) / (torch.einsum("dt,tn,sn->ds", d, c, c) + EPS)
    if mistake != "no column sums":
        c = torch.stack([row / (row.sum() + EPS) for row in c])
    d = torch.stack([sum(w * token for w, token in zip(row, x.unbind(1), strict=True)) for row in c], dim=1)
    if case.params["kind"] == "cd" and mistake != "no norm":
        d = d / d.norm(dim=0)
    return d


def ridge(case: Small, x: Tensor, d: Tensor) -> Tensor:
    return torch.linalg.solve(d.t() @ d + case.params["beta"] * torch.eye(d.shape[1], dtype=d.dtype), d.t() @ x)


@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(2, 9),
    c=st.integers(2, 7),
    rank=st.integers(1, 5),
    steps=st.integers(1, 4),
    batch=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_definition(kind: str, n: int, c: int, rank: int, steps: int, batch: int) -> None:
    case = ham(kind, n, c, batch, rank=rank, steps=steps)
    assert close(case.output(), one_by_one(case), rtol=1e-7)


@pytest.mark.parametrize(
    ("kind", "mistake"),
    [
        ("nmf", "the old C"),
        ("nmf", "no relu"),
        ("nmf", "no last update"),
        ("nmf", "a step less"),
        ("vq", "no cosine"),
        ("vq", "no column sums"),
        ("vq", "no last update"),
        ("vq", "a step less"),
        ("cd", "no cosine"),
        ("cd", "no norm"),
        ("cd", "no last update"),
        ("cd", "a step less"),
    ],
)
def test_each_mistake_is_noticed(kind: str, mistake: str) -> None:
    case = ham(kind)
    assert close(case.output(), one_by_one(case), rtol=1e-7)
    if (kind, mistake) == ("vq", "no column sums"):  # the cosine ignores the scale of D, the output does not
        assert not close(case.output(), one_by_one(case, mistake), rtol=1e-2)
    assert not close(case.output(), one_by_one(case, mistake), rtol=1e-4)


@each_kind
@each_gradient
def test_gradients_equal_those_of_the_definition(kind: str, gradient: str) -> None:
    """One step: the T steps are built without a graph, the last update on constants."""
    case = ham(kind, gradient=gradient)
    ours = case.gradients()["x"]
    assert close(ours, case.gradients(one_by_one)["x"], rtol=1e-6)
    if gradient == "one_step":
        assert not close(ours, case.gradients(lambda c: one_by_one(c, "through everything"))["x"], rtol=1e-2)


@each_kind
def test_only_bptt_is_the_gradient_of_the_output(kind: str) -> None:
    for gradient, true in (("bptt", True), ("one_step", False)):
        case = ham(kind, gradient=gradient)
        x = case.tensors["x"].requires_grad_()
        assert torch.autograd.gradcheck(lambda t, c=case: c.output(x=t), [x], raise_exception=False) is true


def distance(case: Small, steps: int) -> float:
    x = case.tensors["x"].relu()
    d, c = iterate({**case.params, "steps": steps}, x, case.tensors["bases"])
    return float((x - c @ d.transpose(-2, -1)).square().sum())


def test_every_nmf_step_brings_the_product_nearer() -> None:
    case = ham("nmf", 21, 12, rank=4)
    errors = [distance(case, steps) for steps in range(1, 12)]
    assert all(after < before for before, after in itertools.pairwise(errors))


def test_an_update_of_d_from_the_old_c_does_not() -> None:
    """The same check on the mistaken order: it sees the product move away."""
    case = ham("nmf", 21, 12, batch=1, rank=4)
    x, d = case.tensors["x"][0].t().relu(), case.tensors["bases"][0]
    c = (d.t() @ x).softmax(0)
    errors = []
    for _ in range(12):
        new = codes(case, x, d, c, "")
        d, c = dictionary(case, x, d, c, ""), new
        errors.append(float((x - d @ c).square().sum()))
    assert any(after > before for before, after in itertools.pairwise(errors))


def test_nmf_of_a_matrix_of_low_rank_finds_it() -> None:
    case = ham("nmf", 31, 9, batch=1, rank=2, steps=2000)
    drawn = torch.rand(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (drawn[:31] @ drawn[31:].t()).unsqueeze(0)
    assert (case.output(x=x) - x).norm() < 1e-3 * x.norm()
    assert (case.output() - case.tensors["x"].relu()).norm() > 0.1 * case.tensors["x"].norm()


@each_kind
def test_permuting_tokens_permutes_the_output(kind: str) -> None:
    case = ham(kind)
    order = torch.tensor([3, 1, 5, 0, 2, 6, 4])
    x, y = case.tensors["x"], case.output()
    assert close(case.output(x=x[:, order]), y[:, order], rtol=1e-7)
    assert not close(case.output(x=x[:, order]), y, rtol=1e-2)
    assert not close(case.output(x=x.flip(2)), y.flip(2), rtol=1e-2), "channels are not alike: D is given"


@each_kind
def test_samples_do_not_mix(kind: str) -> None:
    case = ham(kind)
    alone = case.output(x=case.tensors["x"][:1], bases=case.tensors["bases"][:1])
    assert close(alone, case.output()[:1])
    assert not close(alone, case.output()[1:])


@each_kind
def test_first_bases_have_columns_of_length_one(kind: str) -> None:
    bases = ham(kind).tensors["bases"]
    assert close(bases.norm(dim=1), torch.ones(2, 3, dtype=torch.float64))
    assert bool((bases >= 0).all()) is (kind == "nmf")


@each_kind
def test_half_precision_iterates_in_float32(kind: str) -> None:
    case = ham(kind, 21, 16)
    given = {n: t.to(torch.bfloat16) for n, t in case.tensors.items()}
    reference = case.form.reference
    low = reference(case.problem, case.params, **given)
    wide = reference(case.problem, case.params, **{n: t.float() for n, t in given.items()})
    assert torch.equal(low, wide.to(torch.bfloat16))


def test_a_layer_whose_codes_are_sharp_is_another_one_in_half_precision() -> None:
    sharp, soft = (
        subject("hamburger", "reference", "fwd_bwd", "bfloat16", scope="layer", kind="vq", rank=8, temperature=t)
        for t in (0.01, 0.1)
    )
    check_impl(soft)
    with pytest.raises(Wrong, match="differs from the float64 reference"):
        check_impl(sharp)

    def reason(scope: Scope = "layer", dtype: Dtype = "bfloat16", **params: Any) -> str | None:
        return why_not(Problem(64, 512, dtype=dtype), {**sharp.cell.params, **params}, scope)

    assert "give a temperature of 0.1" in str(reason())
    assert "give a temperature of 0.1" in str(reason(kind="cd", dtype="float16"))
    assert (reason("core"), reason(dtype="float32"), reason(kind="nmf"), reason(temperature=0.1)) == (None,) * 4


@each_kind
def test_layer_adds_breads_norm_and_residual(kind: str) -> None:
    case = small("hamburger", Problem(7, 6, batch=2), "layer", kind=kind, rank=3, d=4)
    t = case.tensors
    core = small("hamburger", Problem(7, 4, batch=2), kind=kind, rank=3)
    bread = core.output(x=t["x"] @ t["w_l"], bases=t["bases"]) @ t["w_u"]
    mean, variance = bread.mean((0, 1)), bread.var((0, 1), correction=0)
    expected = t["x"] + (bread - mean) / (variance + 1e-5).sqrt() * t["gamma"] + t["beta"]
    assert close(case.output(), expected)
    assert not close(case.output(), expected - t["x"])


def counted(case: Small, mode: Mode) -> int:
    with FlopCounter() as counter:
        if mode == "fwd":
            case.output()
        else:
            case.gradients()
    return counter.total


@each_kind
@each_gradient
@pytest.mark.parametrize("scope", ["core", "layer"])
@pytest.mark.parametrize("mode", MODES)
def test_flops_are_what_torch_counts(kind: str, gradient: str, scope: Any, mode: Mode) -> None:
    for steps in (1, 4):
        given = {"kind": kind, "gradient": gradient, "rank": 3, "steps": steps}
        case = small("hamburger", Problem(11, 6, batch=2), scope, **given)
        cost = case.cost(mode)
        assert cost.reference_flops - sum(cost.uncounted.values()) == counted(case, mode)


def test_flops_count_the_products_of_the_definition() -> None:
    n, d, r, steps = 11, 6, 3, 5
    sizes = {"n": n, "c": d, "batch": 1, "rank": r, "steps": steps}
    full_step, end = 2 * (2 * n * d * r) + 2 * (2 * r * r * (n + d)), 2 * (2 * n * d * r) + 2 * r * r * (n + d)
    start = 2 * n * d * r
    nmf = ham("nmf", **sizes)
    assert nmf.cost().flops == start + steps * full_step + end
    assert nmf.cost().reference_flops == nmf.cost().flops - start
    assert nmf.cost("fwd_bwd").flops - nmf.cost("fwd_bwd").reference_flops == start  # without gradient
    bptt = ham("nmf", gradient="bptt", **sizes).cost("fwd_bwd")
    assert bptt.flops - bptt.reference_flops == 2 * start  # D is constant
    assert ham("vq", **sizes).cost().flops == (steps + 1) * 2 * (2 * n * d * r)
    inverse = 2 * r**3
    assert ham("cd", **sizes).cost().flops == (steps + 1) * 2 * (2 * n * d * r) + 2 * (2 * d * r * r) + inverse
    assert ham("cd", **sizes).cost().uncounted == {"inverse": inverse}
