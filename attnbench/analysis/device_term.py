"""The device term of the noise model: what the rounds on one device have in common, and other devices have not.

Two GPUs of one model, or two machines, differ in how fast they are, and for one operator more than for another. Of a
cell that was measured in several rounds on each of some devices, the mean on a device is what varies independently: as
a replicate the device takes the place of the round. Its variance is estimated from how far the means on devices lie
apart, and moderated over the cells as that of rounds is; a cell that was measured on one device alone borrows it. With
a round on each device that is the model without the term; with all rounds on one device nothing is known of others.

The mean of n₁, n₂ … rounds on devices has a variance of Σ n² / (Σ n)² times that of the mean on one; the expected
mean square between devices has that of n₀ = (Σ n − Σ n² / Σ n) / (K − 1) rounds each (Searle, Casella and McCulloch
1992, "Variance Components", section 3.6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from attnbench.analysis.distributions import Floats, Indices
from attnbench.analysis.moderation import level_variances, moderate


@dataclass(frozen=True)
class DeviceTerm:
    """What a run on several devices knows of its levels.

    Attributes:
        own, own_freedom: [cells], the variance of a cell's level in ratios, and its degrees of freedom.
        shared, shared_freedom: [cells], the variance of what the cells of a block have in common, and its freedom; 0
            where no block was measured on two devices.
    """

    own: Floats
    own_freedom: Floats
    shared: Floats
    shared_freedom: float


def device_term(
    residual: Floats,
    offset: Floats,
    leverage: Floats,
    cells: Indices,
    blocks: Indices,
    groups: Indices,
    devices: Indices,
) -> DeviceTerm | None:
    """The device term; None where no cell was measured on two devices, so that nothing is known of how they differ.

    Args:
        residual: [visits], of the cell in its group.
        offset: [visits], of its group; nan where it has none, or is left out.
        leverage: [visits], the freedom that a residual loses by that.
        cells, blocks, groups, devices: [visits], numbered.
    """
    pairs, pair = np.unique(np.stack([cells, devices]), axis=1, return_inverse=True)
    pair, number = pair.ravel(), np.bincount(pair.ravel()).astype(np.float64)
    mean = np.bincount(pair, weights=residual) / number
    cell, device = pairs
    block_of = np.zeros(cells.max() + 1, dtype=np.int64)
    block_of[cells] = blocks
    rounds, count = np.bincount(cells).astype(np.float64), np.bincount(cell)
    alike = np.bincount(cell, weights=number**2) / rounds**2  # one over the number of devices, where rounds are shared
    freedom = count - 1.0 - _lost(block_of[cell], cell, device, np.bincount(cells, weights=leverage).astype(np.float64))
    several = (count > 1) & (freedom > 1e-6)
    if not several.any():
        return None
    square = np.bincount(cell, weights=number * mean**2)
    each = rounds * (1 - alike) / np.maximum(count - 1, 1)
    variance, freedom = moderate(
        np.where(several, square / np.where(several, freedom * each, 1.0), 0.0), np.where(several, freedom, 0.0)
    )
    own = level_variances(variance, 1 / alike, cell, block_of[cell], device)
    shared, shared_freedom = _shared(offset, blocks, groups, devices)
    return DeviceTerm(own, freedom, shared * alike, shared_freedom)


def _lost(block: Indices, cell: Indices, device: Indices, leverage: Floats) -> Floats:
    """By cell, the freedom that its means on devices lose by the offsets of devices: a block's by its cells' leverage.

    Args:
        block, cell, device: of every cell on every device.
        leverage: [cells].
    """
    lost = np.zeros(len(leverage))
    for number in np.unique(block):
        here = block == number
        members, count = np.unique(cell[here], return_counts=True)
        several = members[count > 1]
        total = leverage[several].sum()
        if total > 0:
            offsets = len(np.unique(device[here])) - connected(cell[here], device[here])
            lost[several] = offsets * leverage[several] / total
    return lost


def connected(cell: Indices, device: Indices) -> int:
    """The number of sets of devices, or of groups, that no cell connects."""
    root = {each: each for each in device.tolist()}

    def first(each: int) -> int:
        while root[each] != each:
            each = root[each]
        return each

    by_cell: dict[int, int] = {}
    for one, other in zip(cell.tolist(), device.tolist(), strict=True):
        root[first(other)] = first(by_cell.setdefault(one, other))
    return len({first(each) for each in root})


def _shared(offset: Floats, blocks: Indices, groups: Indices, devices: Indices) -> tuple[float, float]:
    """The variance of the mean offset of a block's groups on a device, and its degrees of freedom."""
    first = np.unique(groups, return_index=True)[1]
    first = first[~np.isnan(offset[first])]
    square = spare = 0.0
    for block in np.unique(blocks[first]):
        here = first[blocks[first] == block]
        device, number = np.unique(devices[here], return_inverse=True, return_counts=True)[1:]
        if len(number) > 1:
            mean = np.bincount(device, weights=offset[here]) / number
            around = float(number @ (mean - np.average(mean, weights=number)) ** 2)
            square += around * (len(number) - 1) / (len(here) - float(number @ number) / len(here))
            spare += len(number) - 1
    if not spare:
        return 0.0, math.inf
    return square / spare, min(spare, len(np.unique(devices[first])) - 1.0)
