from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from attnbench.kernels.margins.device import margins_kernel, outer_sum_kernel
from attnbench.kernels.margins.launch import blocks, margin_means, outer_sum


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


@pytest.mark.parametrize("side", [64, 128])
def test_offsets_beyond_32_bits(side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last program of so many planes that its map begins at 2³¹ elements: one band, or the second of two."""
    tile = blocks(side, side)
    plane = 2**31 // side**2
    bands = side // tile["BLOCK_H"]
    monkeypatch.setattr(InterpreterBuilder, "create_get_program_id", always((plane + 1) * bands - 1))
    last = torch.randn(side, side).bfloat16()
    maps = mostly_hole(tmp_path / "maps", (plane + 1) * side**2).view(plane + 1, side, side)
    margins = mostly_hole(tmp_path / "margins", (plane + 1) * 2 * side).view(plane + 1, 2 * side)
    far = mostly_hole(tmp_path / "far", 2**31 + side)
    band = slice(side - tile["BLOCK_H"], side)

    maps[plane] = last
    # Planes of the column sums so far apart that the last one's lie beyond 2³¹ elements too.
    margins_kernel[(1,)](maps, margins, far, side, side, 2 * side, 2**31 // plane, 0, 1.0, 1.0, **tile)
    assert torch.equal(margins[plane, :side][band], last[band].float().sum(1).bfloat16())
    assert torch.equal(far[2**31 // plane * plane :][:side], last[band].float().sum(0).bfloat16())

    maps[plane] = 0
    margins[plane] = torch.randn(2 * side).bfloat16()
    outer_sum_kernel[(1,)](margins, maps, side, side, 1.0, 1.0, **tile)
    expected = margins[plane, :side, None].float() + margins[plane, None, side:].float()
    assert torch.equal(maps[plane][band], expected[band].bfloat16())


def always(number: int) -> Any:
    """What the interpreter asks for a program's number."""

    def program_id(self: InterpreterBuilder, axis: int) -> TensorHandle:
        return TensorHandle(np.array([number], dtype=np.int32), tl.int32)

    return program_id


def mostly_hole(file: Path, size: int) -> torch.Tensor:
    return torch.from_file(str(file), shared=True, size=size, dtype=torch.bfloat16)
