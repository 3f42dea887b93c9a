"""Which cells are measured together: one panel at one size, in as many parts as memory demands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from attnbench.groups import groups_of
from attnbench.problem import Cell

BASELINE_WEIGHT = 3
"""The baseline is sampled as often as so many other members: it is one side of every ratio. With 24 series this makes
the interval of a ratio 15 % narrower."""


def blocks_of(cells: Iterable[Cell]) -> list[tuple[Cell, ...]]:
    """The cells of each block: all with the same scope, mode and problem."""
    blocks = groups_of(((cell.scope, cell.mode, cell.problem), cell) for cell in cells)
    return list(map(tuple, blocks.values()))


def baseline_of(block: Sequence[Cell], baseline: str) -> Cell | None:
    """The cell that the others of a block are compared with: the reference of an operator; None where it has none."""
    return next((cell for cell in block if (cell.operator, cell.impl) == (baseline, "reference")), None)


def weight(cell: Cell, baseline: Cell | None) -> int:
    """The samples that a member of a block has in a turn. baseline: of the block."""
    return BASELINE_WEIGHT if cell == baseline else 1


def parts_of(
    block: Sequence[Cell], baseline: Cell | None, memory: Mapping[str, tuple[int, int]], limit: int
) -> list[tuple[Cell, ...]]:
    """Those of a block that are kept in memory together; the baseline is in each part.

    Args:
        block: its cells.
        baseline: one of them, or None.
        memory: by key, the bytes that a member holds while others are called, and at most while it is called.
        limit: of what all members hold and the largest peak, together; a pair that is larger is measured nevertheless.
    """
    first = [] if baseline is None else [baseline]
    parts: list[list[Cell]] = []
    for cell in block:
        if cell == baseline:
            continue
        joined = [*(parts[-1] if parts else first), cell]
        fits = sum(memory[c.key][0] for c in joined) + max(memory[c.key][1] for c in joined) <= limit
        if parts and fits:
            parts[-1].append(cell)
        else:
            parts.append([*first, cell])
    return [tuple(part) for part in parts or [first] if part]
