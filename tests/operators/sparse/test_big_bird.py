"""big_bird: blocks in a window, at the ends and at random, against a mask built block by block."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.operators.sparse._mixed import shares
from attnbench.operators.sparse._random_blocks import draw
from attnbench.registry import operators, outside_definition
from tests.operators.sparse.masked import Case, attention, close, gradients, mask

sizes = given(n=st.integers(1, 150), block=st.integers(1, 20), random=st.integers(0, 5))


def allowed(case: Case, reach: int = 1, ends: int = 1, drawn: bool = True) -> Tensor:
    """[H, N, N], from the definition, one block of queries at a time."""
    n = case.problem.seq_len
    b = min(case.params["block"], n)
    m = -(-n // b)
    blocks = case.inputs.choices["blocks"]
    seen = torch.zeros(case.problem.heads, m, m, dtype=torch.bool)
    for head in range(case.problem.heads):
        for row in range(m):
            if row < ends or row >= m - ends:
                seen[head, row] = True
                continue
            seen[head, row, max(0, row - reach) : row + reach + 1] = True
            seen[head, row, [0, m - 1]] = True
            if drawn:
                seen[head, row, blocks[head, row - 1].tolist()] = True
    return seen.repeat_interleave(b, 1).repeat_interleave(b, 2)[:, :n, :n]


@sizes
@settings(max_examples=60, deadline=None)
def test_equals_the_masked_form(n: int, block: int, random: int) -> None:
    case = Case("big_bird", n, block=block, random=random)
    assert close(case.output(), attention(*case.qkv, allowed(case)))


def test_each_part_of_the_pattern_is_noticed() -> None:
    case = Case("big_bird", 101, block=7)
    q, k, v = case.qkv
    for other in (allowed(case, reach=0), allowed(case, reach=2), allowed(case, ends=2), allowed(case, drawn=False)):
        assert not close(case.output(), attention(q, k, v, other))
    assert not close(case.output(), attention(q, v, k, allowed(case)))
    assert not close(case.output(), attention(q, k, v, allowed(case).flip(0))), "heads draw blocks of their own"


@pytest.mark.parametrize(("n", "block"), [(101, 7), (64, 8), (31, 12), (20, 19), (9, 30)])
def test_gradients_equal_the_masked_form(n: int, block: int) -> None:
    case = Case("big_bird", n, block=block)
    tensors = [t.requires_grad_() for t in case.qkv]
    ours = gradients(case.output(), tensors)
    for mine, theirs in zip(ours, gradients(attention(*case.qkv, allowed(case)), tensors), strict=True):
        assert mine.isfinite().all()
        assert close(mine, theirs)
    if n > 4 * block:
        wrong = gradients(attention(*case.qkv, allowed(case, reach=0)), tensors)
        assert not close(ours[0], wrong[0])


@sizes
@settings(max_examples=60, deadline=None)
def test_random_blocks_are_distinct_and_new(n: int, block: int, random: int) -> None:
    case = Case("big_bird", n, block=block, random=random)
    m = -(-n // min(block, n))
    blocks = case.inputs.choices["blocks"]
    assert blocks.shape == (2, max(0, m - 2), max(0, min(random, m - 5)))
    for rows in blocks.tolist():
        for row, chosen in enumerate(rows, start=1):
            others = {0, row - 1, row, row + 1, m - 1}
            assert len({*chosen} - others) == len(chosen)
            assert all(0 < c < m - 1 for c in chosen)


def test_every_set_of_blocks_is_equally_likely() -> None:
    drawn = draw(torch.Generator().manual_seed(0), 20_000, torch.tensor([5]), 3)
    counts = Counter(frozenset(chosen) for chosen in drawn[:, 0].tolist())
    assert len(counts) == 10
    assert max(abs(c / 2000 - 1) for c in counts.values()) < 0.1  # 4 standard deviations of 2000 in 20 000 are 0.085
    biased = Counter(frozenset(c) for c in torch.randint(5, (20_000, 3)).tolist())
    assert len(biased) > 10, "drawing with replacement is told apart"


def test_few_blocks_are_nearly_or_wholly_softmax() -> None:
    softmax = operators()["softmax"].load().forms["core"]
    for n, same in ((8, True), (16, True), (24, True), (32, True), (33, False), (96, False)):
        case = Case("big_bird", n, block=8)
        q, k, v = case.qkv
        assert close(case.output(), softmax.reference(case.problem, {}, q, k, v)) is same


@sizes
@settings(max_examples=60, deadline=None)
def test_flops_count_the_required_pairs(n: int, block: int, random: int) -> None:
    case = Case("big_bird", n, block=block, random=random)
    assert case.cost().flops == case.required_flops(int(allowed(case).sum()))
    assert case.cost().reference_flops >= case.cost().flops


def test_waste_is_bounded() -> None:
    cost = Case("big_bird", 2**15 + 3).cost()
    assert 1 < cost.reference_flops / cost.flops < 1 + 1 / 7


@pytest.mark.parametrize(("heads", "n"), [(4, 75), (7, 80), (8, 33)])
def test_mixed_heads_are_four_patterns(heads: int, n: int) -> None:
    case = Case("big_bird", n, heads=heads, kind="mixed_heads", block=5, stride=6)
    blocks = case.inputs.choices["blocks"]
    randoms, locals_, strideds, globals_ = shares(heads, 4)
    assert blocks.shape == (randoms, -(-n // 5), 3)
    each = [mask(n, lambda i, j, h=h: j // 5 in blocks[h, i // 5].tolist()) for h in range(randoms)]  # type: ignore[misc]
    each += [mask(n, lambda i, j: abs(i - j) <= 5)] * locals_
    each += [mask(n, lambda i, j: (i - j) % 6 == 0 and abs(i - j) <= 30)] * strideds
    each += [mask(n, lambda i, j: i < 10 or j < 10)] * globals_
    together = torch.stack(each)
    assert close(case.output(), attention(*case.qkv, together))
    assert not close(case.output(), attention(*case.qkv, together.flip(0)))
    assert case.cost().flops == case.required_flops(int(together.sum()))


def test_mixed_heads_have_gradients() -> None:
    case = Case("big_bird", 47, heads=4, kind="mixed_heads", block=5)
    tensors = [t.requires_grad_() for t in case.qkv]
    for gradient in gradients(case.output(), tensors):
        assert gradient.isfinite().all()
        assert (gradient.abs().sum(dim=(0, 2, 3)) > 0).all(), "every head has a share"


def test_mixed_heads_need_four() -> None:
    for heads, reason in ((3, "4 heads"), (4, "")):
        case = Case("big_bird", 9, heads=heads, kind="mixed_heads")
        given_reason = outside_definition(case.operator, case.problem, case.params, "core")
        assert given_reason is None if not reason else reason in (given_reason or "")
