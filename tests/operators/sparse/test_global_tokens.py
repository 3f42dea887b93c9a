"""global_tokens: g hubs, against a mask built pair by pair."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.operators.sparse.global_tokens import ADDED
from attnbench.registry import operators
from tests.operators.sparse.masked import Case, Sees, attention, close, gradients, mask

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

KINDS = ["internal", "external"]
sizes = given(n=st.integers(1, 90), g=st.integers(1, 40), kind=st.sampled_from(KINDS))


def sees(g: int) -> Sees:
    return lambda i, j: i < g or j < g


def everything(case: Case) -> tuple[Tensor, ...]:
    """q, k, v with the added tokens in front."""
    added = [case.inputs.data[name] for name in ADDED if name in case.inputs.data]
    return tuple(torch.cat(pair, dim=2) for pair in zip(added, case.qkv, strict=True)) if added else case.qkv


def dense(case: Case, g: int) -> Tensor:
    q, k, v = everything(case)
    return attention(q, k, v, mask(q.shape[2], sees(g)))


@sizes
@settings(max_examples=40, deadline=None)
def test_equals_the_masked_form(n: int, g: int, kind: str) -> None:
    case = Case("global_tokens", n, kind=kind, global_tokens=g)
    assert close(case.output(), dense(case, g))


@pytest.mark.parametrize("kind", KINDS)
def test_one_global_token_more_or_less_is_noticed(kind: str) -> None:
    case = Case("global_tokens", 41, kind=kind, global_tokens=5)
    assert not close(case.output(), dense(case, 4))
    assert not close(case.output(), dense(case, 6))
    q, k, v = everything(case)
    assert not close(case.output(), attention(q, v, k, mask(q.shape[2], sees(5))))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_the_masked_form(kind: str) -> None:
    case = Case("global_tokens", 41, kind=kind, global_tokens=5)
    tensors = [t.requires_grad_() for t in case.inputs.data.values()]
    assert len(tensors) == (6 if kind == "external" else 3)
    ours = gradients(case.output(), tensors)
    wrong = gradients(dense(case, 6), tensors)
    for mine, theirs in zip(ours, gradients(dense(case, 5), tensors), strict=True):
        assert close(mine, theirs)
    assert not close(ours[0], wrong[0])


def test_all_tokens_global_is_softmax() -> None:
    softmax = operators()["softmax"].load().forms["core"]
    for g, same in ((31, True), (200, True), (29, False)):
        case = Case("global_tokens", 31, global_tokens=g)
        q, k, v = case.qkv
        assert close(case.output(), softmax.reference(case.problem, {}, q, k, v)) is same


@sizes
@settings(max_examples=40, deadline=None)
def test_flops_count_the_required_pairs(n: int, g: int, kind: str) -> None:
    case = Case("global_tokens", n, kind=kind, global_tokens=g)
    pairs = int(mask(n + g if kind == "external" else n, sees(g)).sum())
    assert case.cost().flops == case.required_flops(2 * pairs)
    assert case.cost().reference_flops == case.cost().flops


def test_added_tokens_of_a_layer_are_projected_like_the_others() -> None:
    """The layer with external tokens is the internal one on a sequence that starts with them."""
    case = Case("global_tokens", 20, kind="external", global_tokens=3)
    layer = case.operator.forms["layer"]
    inputs = layer.make_inputs(case.problem, case.params, torch.Generator().manual_seed(0))
    output = layer.reference(case.problem, case.params, **inputs.tensors())
    tensors = inputs.tensors()
    x, tokens = tensors.pop("x"), tensors.pop("tokens")
    longer = Case("global_tokens", 23, global_tokens=3)
    joined = torch.cat((tokens.expand(2, -1, -1), x), dim=1)
    assert close(output, layer.reference(longer.problem, longer.params, x=joined, **tensors))
    assert not close(output, layer.reference(longer.problem, longer.params, x=joined.flip(1), **tensors))
    with torch.inference_mode():
        assert close(output, layer.impls["cuda"].load()(case.problem, case.params, **inputs.tensors()))
