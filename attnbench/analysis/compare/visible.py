"""What a gate can see where the noise is known: the pairs that it would plan, and the smallest change in each cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attnbench.analysis.compare.tier1_paired import (
    POWER,
    UNGATED,
    Noise,
    Power,
    is_seen,
    pairs_for,
    smallest_change,
)
from attnbench.metric import DEFAULT_METRIC
from attnbench.thresholds import Gate


@dataclass(frozen=True)
class VisibleChange:
    """Of one cell. All but the key are fractions.

    Args:
        key: of the cell.
        noise: standard deviation of one pair's ratio.
        smallest: the smallest slow-down that is found with POWER.
        threshold: the suite's; None: there is none.
    """

    key: str
    noise: float
    smallest: float
    threshold: float | None

    @property
    def seen(self) -> bool | None:
        """Whether a slow-down of the threshold is visible; None without one."""
        return None if self.threshold is None else is_seen(self.smallest, self.threshold)


@dataclass(frozen=True)
class Visibility:
    """What a plan can see.

    Args:
        pairs: of processes in each stage.
        once, twice: what the plan promises for a slow-down of the smallest threshold, and of twice that.
        changes: of each cell, the noisiest first.
    """

    pairs: int
    once: Power
    twice: Power
    changes: Sequence[VisibleChange]


def visibility(noise: Noise, gate: Gate) -> Visibility:
    """What a gate with these thresholds can see."""
    limits = {key: gate.threshold(DEFAULT_METRIC, key) for key in noise.own}
    gated = {key: limit for key, limit in limits.items() if limit is not None}
    thresholds = {key: limit or UNGATED for key, limit in gated.items()} or dict.fromkeys(noise.own, UNGATED)
    smallest, cells = min(thresholds.values()), len(noise.own)
    pairs, once, twice = pairs_for(thresholds, cells, noise)
    changes = []
    for key, sd in sorted(noise.own.items(), key=lambda item: -item[1]):
        limit = limits[key]
        target = smallest if limit is None else limit
        change = smallest_change(pairs, cells, target, sd, noise.shared, POWER)
        changes.append(VisibleChange(key, sd, change, limit))
    return Visibility(pairs, once, twice, changes)
