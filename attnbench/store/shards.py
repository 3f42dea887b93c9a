"""What environment.json says of a run that is a part of a suite: which units it was to measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnbench.store.trusted_json import is_whole

MOST = 10**6
"""More units or shards of one suite are damage."""


@dataclass(frozen=True)
class StoredShard:
    """A part of a suite, or several of its parts that were joined.

    Attributes:
        numbers: of the parts, ascending, from 1.
        of: into how many the suite was dealt.
        units: those of these parts, each a block as `problem.block_of` names it and a timed round.
        dealt: how many units all parts have together.
    """

    numbers: tuple[int, ...]
    of: int
    units: Sequence[tuple[str, int]]
    dealt: int

    def __str__(self) -> str:
        return ", ".join(f"{number}/{self.of}" for number in self.numbers)

    def stored(self) -> dict[str, Any]:
        """For environment.json, under `shard`."""
        return {
            "numbers": list(self.numbers),
            "of": self.of,
            "dealt": self.dealt,
            "units": [list(unit) for unit in self.units],
        }

    @classmethod
    def of_run(cls, environment: Mapping[str, Any]) -> StoredShard | None:
        """That of a run's environment, which `reading.read_environment` has checked; None: the run is a whole."""
        stored = environment.get("shard")
        if stored is None:
            return None
        units = tuple((block, number) for block, number in stored["units"])
        return cls(tuple(stored["numbers"]), stored["of"], units, stored["dealt"])


def is_shard(value: object) -> bool:
    """Whether a value is what `StoredShard.stored` gives."""
    if not isinstance(value, dict) or set(value) != {"numbers", "of", "dealt", "units"}:
        return False
    numbers, of, units = value["numbers"], value["of"], value["units"]
    counts = all(is_whole(value[name]) and 1 <= value[name] <= MOST for name in ("of", "dealt"))
    if not (counts and isinstance(numbers, list) and isinstance(units, list) and all(map(_is_unit, units))):
        return False
    known = all(is_whole(number) and 1 <= number <= of for number in numbers)
    return known and bool(numbers) and numbers == sorted(set(numbers)) and 0 < len(units) <= value["dealt"]


def is_part(value: object) -> bool:
    """Whether a value is what a joined run stores of one of its parts."""
    if not isinstance(value, dict) or set(value) != {"shard", "processes", "rounds", "facts"}:
        return False
    ranges = all(
        isinstance(value[name], list) and len(value[name]) == 2 and all(map(is_whole, value[name]))
        for name in ("processes", "rounds")
    )
    return ranges and isinstance(value["facts"], dict) and isinstance(value["shard"], str | None)


def _is_unit(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    block, number = value
    return isinstance(block, str) and 0 < len(block) < 1000 and is_whole(number) and 1 <= number <= 10**4
