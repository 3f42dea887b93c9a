"""What a run is to do: cells, settings, limits; and which cells are one series."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnbench.contract import CONTRACT
from attnbench.plan.measured_code import MeasuredCode
from attnbench.plan.settings import Limits, Measure
from attnbench.problem import Cell, canonical_params


@dataclass(frozen=True)
class Plan:
    """What a run is.

    Attributes:
        cells: that are measured.
        measure: how they are timed.
        limits: what the run may take.
        device: the name of its kind.
        threads: that torch computes with.
        memory_limit: bytes that a cell may need.
        operators_from: a user's .py files and packages.
        seed: of the order of visits.
        code: what every worker must still find to measure; None: that is not looked at.
        baseline: the operator that comes first at a size.
        device_id: of the device, among those of its model; empty: not known.
        rounds_by_key: of a shard, the timed rounds in which each cell is visited; None: the whole suite, in all.
    """

    cells: Sequence[Cell]
    measure: Measure
    limits: Limits
    device: str
    threads: int
    memory_limit: int
    operators_from: Sequence[str] = ()
    seed: int = 0
    code: MeasuredCode | None = None
    baseline: str = ""
    device_id: str = ""
    rounds_by_key: Mapping[str, Sequence[int]] | None = None

    def rounds_of(self, cell: Cell) -> Sequence[int]:
        """The timed rounds that are planned for a cell, ascending; at least one."""
        return range(1, self.measure.rounds + 1) if self.rounds_by_key is None else self.rounds_by_key[cell.key]

    def visits(self, cell: Cell, number: int) -> bool:
        """Whether a timed round may visit a cell."""
        return self.rounds_by_key is None or number in self.rounds_by_key[cell.key]

    @property
    def contract(self) -> str:
        """The timing contract stored with every visit: its version and the measure settings."""
        m = self.measure
        precision = "none" if m.crossover_precision is None else f"{m.crossover_precision:g}"
        return (
            f"{CONTRACT} rounds={m.rounds}-{m.max_rounds} precision={precision} "
            f"turns={m.min_turns}-{m.max_turns} time={m.max_time_s:g}s"
        )


def series_of(cell: Cell) -> tuple[Any, ...]:
    """What all sizes of a series have in common."""
    p = cell.problem
    params = canonical_params(cell.params)
    return (cell.operator, cell.impl, cell.scope, cell.mode, params, p.dtype, p.causal, p.domain)


def beyond(cell: Cell, smaller: Cell) -> bool:
    """Whether `cell` needs at least what `smaller` needs: the same but for sizes, none of them smaller.

    More heads of as many channels are narrower ones, and may need less: so head_dim is among the sizes, not channels.
    """
    a, b = cell.problem, smaller.problem
    at_least = all(getattr(a, name) >= getattr(b, name) for name in _NEEDED)
    return cell.key != smaller.key and series_of(cell) == series_of(smaller) and at_least


_NEEDED = ("seq_len", "query_len", "batch", "heads", "head_dim", "kv_heads")


def order_seed(text: str) -> int:
    """The seed of a run's order of visits, from its suite: the same suite is measured in the same order."""
    return random.Random(json.dumps(text)).getrandbits(32)
