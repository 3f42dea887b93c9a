"""A suite dealt into shards: which units each measures, where several devices or machines share the work.

A unit is a block, a panel at one size with its baseline, in one timed round: a ratio is never taken across devices.
Every machine deals alike, since only the suite decides: the units that are expected to take longest first, each to the
shard that has the least to do, and the rounds of a block to as many shards as there are. So the rounds of every block
are made on several devices, and their intervals know how much these differ.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attnbench.errors import BadInput
from attnbench.groups import groups_of
from attnbench.naming import option
from attnbench.problem import block_of
from attnbench.units import count, quoted

Unit = tuple[str, int]
"""A block, as `problem.block_of` names it, and the number of a timed round."""

MOST_SHARDS = 100_000


@dataclass(frozen=True)
class Shard:
    """A part of a suite.

    Attributes:
        number: of `of` parts, from 1.
        of: into how many the suite is dealt.
    """

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def read_shard(text: str) -> Shard:
    """The shard that a text such as `2/8` names. Raises BadInput."""
    match = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", text)
    number, of = map(int, match.groups()) if match else (1, 0)
    if not number <= of <= MOST_SHARDS:
        raise BadInput(
            f"{option('shard')} {quoted(text)}: no shard; allowed: K/N with 1 ≤ K ≤ N ≤ {MOST_SHARDS}, such as 2/8, "
            "the second of eight parts."
        )
    return Shard(number, of)


def deal(seconds: Mapping[str, float], check_s: Mapping[str, float], rounds: int, of: int) -> list[list[Unit]]:
    """The units of each shard, in the order of the blocks and rounds.

    Args:
        seconds: by block, in a fixed order, what a round of it is expected to take.
        check_s: by block, what its check is expected to take, which every shard makes that measures any round of it.
        rounds: timed ones.
        of: how many shards.

    Raises: BadInput where there are more shards than units.
    """
    units = [(block, number) for block in seconds for number in range(1, rounds + 1)]
    if of > len(units):
        blocks = f"{count(len(seconds), 'block')} (a panel at one size) in {count(rounds, 'round')}"
        raise BadInput(
            f"{option('shard')}: {of} shards, but the suite has {count(len(units), 'unit')} to deal: {blocks}. Make at "
            f"most {len(units)} shards, or more rounds."
        )
    shards: list[set[Unit]] = [set() for _ in range(of)]
    waiting = [(0.0, shard) for shard in range(of)]
    for block in sorted(seconds, key=lambda name: -seconds[name] - check_s[name]):  # equal ones stay in their order
        taken: list[tuple[float, int]] = []
        for number in range(1, rounds + 1):
            if not waiting:  # more rounds than shards: the next ones need no check of this block any more
                waiting, taken = taken, []
                heapq.heapify(waiting)
            load, shard = heapq.heappop(waiting)
            checked = any((block, earlier) in shards[shard] for earlier in range(1, number))
            taken.append((load + seconds[block] + (0.0 if checked else check_s[block]), shard))
            shards[shard].add((block, number))
        for each in taken:
            heapq.heappush(waiting, each)
    order = {unit: place for place, unit in enumerate(units)}
    return [sorted(shard, key=order.__getitem__) for shard in shards]


def rounds_by_key(keys: Sequence[str], units: Sequence[Unit]) -> dict[str, tuple[int, ...]]:
    """Of those cells that some units hold, the rounds in which they do. keys: of cells."""
    by_block = groups_of(units)
    rounds = {key: by_block.get(block_of(key), []) for key in keys}
    return {key: tuple(sorted(numbers)) for key, numbers in rounds.items() if numbers}
