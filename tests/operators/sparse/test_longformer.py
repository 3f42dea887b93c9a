"""longformer: window, dilation and global tokens, against a mask built pair by pair."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.operators.sparse._mixed import shares
from attnbench.operators.sparse.longformer import GLOBAL_DATA
from attnbench.registry import operators, outside_definition
from tests.operators.sparse.masked import Case, Sees, attention, close, gradients, mask

sizes = given(
    n=st.integers(1, 120), w=st.integers(0, 50), dilation=st.integers(1, 7), g=st.integers(0, 9), causal=st.booleans()
)


def sees(w: int, dilation: int, g: int) -> Sees:
    return lambda i, j: j < g or ((i - j) % dilation == 0 and abs(i - j) <= w * dilation)


def dense(case: Case, w: int, dilation: int, g: int, swap: bool = False) -> Tensor:
    n, causal = case.problem.seq_len, case.problem.causal
    y = attention(*case.qkv, mask(n, sees(w, dilation, g), causal))
    if not g:
        return y
    own = case.qkv if swap else [case.inputs.data[name] for name in GLOBAL_DATA]
    rows = own[0][:, :, :g]
    full = attention(rows, own[1], own[2], torch.ones(rows.shape[2], n, dtype=torch.bool))
    return torch.cat((full, y[:, :, g:]), dim=2)


@sizes
@settings(max_examples=60, deadline=None)
def test_equals_the_masked_form(n: int, w: int, dilation: int, g: int, causal: bool) -> None:
    g = 0 if causal else g
    case = Case("longformer", n, causal, window=w, dilation=dilation, global_tokens=g)
    assert close(case.output(), dense(case, w, dilation, g))


def test_each_part_of_the_pattern_is_noticed() -> None:
    case = Case("longformer", 101, window=4, dilation=3, global_tokens=2)
    assert close(case.output(), dense(case, 4, 3, 2))
    assert not close(case.output(), dense(case, 5, 3, 2))
    assert not close(case.output(), dense(case, 4, 2, 2))
    assert not close(case.output(), dense(case, 4, 3, 2, swap=True)), "the global rows have projections of their own"
    more = Case("longformer", 101, window=4, dilation=3, global_tokens=3)
    assert not close(case.output()[:, :, 3:], more.output()[:, :, 3:])


@pytest.mark.parametrize("params", [{}, {"window": 5, "global_tokens": 3}, {"window": 6, "dilation": 4}])
def test_gradients_equal_the_masked_form(params: dict[str, Any]) -> None:
    case = Case("longformer", 75, **params)
    names = list(case.inputs.data)
    assert set(GLOBAL_DATA) < set(names)
    tensors = [t.requires_grad_() for t in case.inputs.data.values()]
    w, dilation, g = (case.params[name] for name in ("window", "dilation", "global_tokens"))
    ours = gradients(case.output(), tensors)
    for name, mine, theirs in zip(names, ours, gradients(dense(case, w, dilation, g), tensors), strict=True):
        assert mine.isfinite().all(), name
        assert close(mine, theirs), name
    wrong = torch.autograd.grad(dense(case, w, dilation, g, swap=True).sum(), tensors, allow_unused=True)
    assert wrong[names.index("q_global")] is None, "a form without the global projections is told apart"


def test_limits() -> None:
    """Without global tokens it is local; with a window over everything as well, softmax."""
    forms = {name: operators()[name].load().forms["core"] for name in ("local", "softmax")}
    case = Case("longformer", 61, window=7, global_tokens=0)
    q, k, v = case.qkv
    assert close(case.output(), forms["local"].reference(case.problem, {"window": 7}, q, k, v))
    assert not close(case.output(), forms["softmax"].reference(case.problem, {}, q, k, v))
    wide = Case("longformer", 61, window=60, global_tokens=0)
    assert close(wide.output(), forms["softmax"].reference(case.problem, {}, q, k, v))


@sizes
@settings(max_examples=60, deadline=None)
def test_flops_count_the_required_pairs(n: int, w: int, dilation: int, g: int, causal: bool) -> None:
    g = 0 if causal else g
    case = Case("longformer", n, causal, window=w, dilation=dilation, global_tokens=g)
    allowed = mask(n, sees(w, dilation, g), causal)
    pairs = int(allowed[g:].sum()) + min(g, n) * n
    assert case.cost().flops == case.required_flops(2 * pairs)
    assert case.cost().reference_flops >= case.cost().flops


@pytest.mark.parametrize("heads", [3, 4, 5, 8])
def test_mixed_heads_are_three_patterns(heads: int) -> None:
    case = Case("longformer", 75, heads=heads, kind="mixed_heads", window=4, stride=5, global_tokens=3)
    patterns: list[Sees] = [sees(4, 1, 0), sees(4, 5, 0), lambda i, j: i < 3 or j < 3]
    each = [mask(75, pattern) for pattern, count in zip(patterns, shares(heads, 3), strict=True) for _ in range(count)]
    assert len(each) == heads
    expected = attention(*case.qkv, torch.stack(each))
    assert close(case.output(), expected)
    assert not close(case.output(), attention(*case.qkv, torch.stack(each[::-1])))
    assert case.cost().flops == case.required_flops(int(torch.stack(each).sum()))


def test_what_has_no_causal_form_says_so() -> None:
    def reason(heads: int = 3, causal: bool = True, **params: Any) -> str | None:
        case = Case("longformer", 9, causal, heads=heads, **params)
        return outside_definition(case.operator, case.problem, case.params, "core")

    assert "sec. 4" in (reason() or "")
    assert reason(global_tokens=0) is None
    assert "later" in (reason(kind="mixed_heads") or "")
    assert reason(kind="mixed_heads", causal=False) is None
    assert "3 heads" in (reason(kind="mixed_heads", causal=False, heads=2) or "")


def test_the_layer_projects_global_tokens_apart() -> None:
    case = Case("longformer", 21, window=3, global_tokens=2)
    layer = case.operator.forms["layer"]
    inputs = layer.make_inputs(case.problem, case.params, torch.Generator().manual_seed(0))
    output = layer.reference(case.problem, case.params, **inputs.tensors())
    changed = dict(inputs.tensors())
    changed["w_v_global"] = changed["w_v_global"] * 2
    difference = (layer.reference(case.problem, case.params, **changed) - output).abs().sum(dim=(0, 2))
    assert difference[:2].min() > 0
    assert difference[2:].max() == 0
    plain = Case("longformer", 21, window=3, global_tokens=0)
    assert len(layer.make_inputs(plain.problem, plain.params, torch.Generator()).parameters) == 4
    assert len(inputs.parameters) == 7
