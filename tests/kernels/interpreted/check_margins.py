from __future__ import annotations

import pytest
import torch

from attnbench.kernels.margins import blocks, margin_means, outer_sum


@pytest.mark.parametrize(("h", "w"), [(1, 1), (3, 5), (14, 14), (65, 70), (2, 300)])
def test_margins_and_outer_sum(h: int, w: int) -> None:
    x = torch.randn(2, 3, h, w)
    m = torch.randn(2, 3, h + w)
    means = torch.cat((x.mean(3), x.mean(2)), dim=2)
    assert torch.allclose(margin_means(x), means, atol=1e-5)
    y = m[..., :h, None] + m[..., None, h:]
    assert torch.equal(outer_sum(m, h, w), y)
    assert h + w == 2 or not torch.equal(outer_sum(m.roll(1, 2), h, w), y)


def test_each_is_the_gradient_of_the_other() -> None:
    x = torch.randn(1, 2, 70, 65, requires_grad=True)
    m = torch.randn(1, 2, 135, requires_grad=True)
    (dx,) = torch.autograd.grad(margin_means(x), x, m)
    assert torch.allclose(dx, m[..., :70, None] / 65 + m[..., None, 70:] / 70)
    (dm,) = torch.autograd.grad(outer_sum(m, 70, 65), m, x)
    assert torch.allclose(dm, torch.cat((x.sum(3), x.sum(2)), dim=2), atol=1e-4)
    assert not torch.allclose(dm, torch.cat((x.sum(3), x.mean(2)), dim=2), atol=1e-4)


def test_reads_maps_that_are_not_contiguous() -> None:
    x = torch.randn(2, 9, 7, 3).movedim(3, 1)
    assert torch.allclose(margin_means(x), torch.cat((x.mean(3), x.mean(2)), dim=2), atol=1e-5)
    assert not torch.allclose(margin_means(x), torch.cat((x.mean(3), x.mean(2)), dim=2) + 1e-3, atol=1e-5)


@pytest.mark.parametrize("sides", [(1, 1), (14, 14), (1000, 3), (3, 1000), (1024, 1024)])
def test_a_tile_is_a_power_of_two_that_fits(sides: tuple[int, int]) -> None:
    tile = blocks(*sides)
    assert tile["BLOCK_H"] * tile["BLOCK_W"] <= 4096
    assert all(size & (size - 1) == 0 and size >= 1 for size in tile.values())
