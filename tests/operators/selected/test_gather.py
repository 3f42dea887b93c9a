"""Keys gathered by chosen blocks, against a dense mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnbench.operators.selected import _gather
from tests.operators.selected.dense import attention, seen

N, BLOCKS = 23, 3


def drawn(kv_heads: int, sets: int, queries: int, block: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v with values wider than keys, and three blocks of each query: its own, an earlier one or none, any."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    own = (torch.arange(N - queries, N) // block).view(1, 1, -1, 1).expand(2, sets, -1, 1)
    order = torch.rand(2, sets, queries, -(-N // block), generator=generator).argsort(dim=-1)
    others = order[order != own].view(2, sets, queries, -1)[..., : BLOCKS - 1].clone()
    others[torch.rand(others.shape, generator=generator) < 0.3] = -1
    chosen = torch.cat((others[..., :1], own, others[..., 1:]), dim=-1)
    return normal(2, 4, queries, 4), normal(2, kv_heads, N, 4), normal(2, kv_heads, N, 6), chosen


@pytest.mark.parametrize("tile", [1, 1 << 20])
@pytest.mark.parametrize(("kv_heads", "sets"), [(4, 4), (2, 2), (2, 1), (2, 4), (1, 1)])
@pytest.mark.parametrize(("queries", "block"), [(N, 1), (N, 4), (5, 4)])
def test_equals_a_dense_mask_with_gradients(
    kv_heads: int, sets: int, queries: int, block: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_gather, "TILE_ELEMENTS", tile)
    *tensors, chosen = drawn(kv_heads, sets, queries, block)
    for tensor in tensors:
        tensor.requires_grad_()
    ours = _gather.attend(*tensors, chosen, block)
    theirs = attention(*tensors, seen(chosen, block, N))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    cotangent = torch.randn_like(theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, tensors, cotangent), torch.autograd.grad(theirs, tensors, cotangent)
    )


def test_the_check_sees_later_tokens_empty_slots_and_the_order_of_heads() -> None:
    q, k, v, chosen = drawn(2, 2, N, 4)
    ours = _gather.attend(q, k, v, chosen, 4)
    for wrong in (
        attention(q, k, v, seen(chosen, 4, N, later=True)),
        attention(q, k, v, seen(chosen.clamp(min=0), 4, N)),
        attention(q, k, v, seen(chosen, 3, N)),
        attention(q, k.flip(1), v.flip(1), seen(chosen, 4, N)),
    ):
        assert not torch.allclose(ours, wrong, rtol=1e-3)


def test_a_tile_is_of_few_elements_but_its_number_is_bounded() -> None:
    """Where keys are many, as many are gathered at a time as there are: never more than n · b tiles."""
    for n in (1 << 10, 1 << 20):
        k = torch.empty(1, 2, n, 1, 8, device="meta")
        chosen = torch.empty(1, 1, n, 64, device="meta")
        tile = _gather.tile_queries(torch.empty(1, 2, n, 8, device="meta"), k, k, chosen)
        each = 2 * 64 * 2 * 8
        assert tile * each <= max(_gather.TILE_ELEMENTS, 2 * k.numel()) < (tile + 1) * each
        assert -(-n // tile) <= 64
