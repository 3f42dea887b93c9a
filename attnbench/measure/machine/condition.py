"""One line of what is known of a machine: how it bears on numbers, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["good", "note", "warning", "missing"]
"""`missing` takes a way of measuring away, `warning` makes numbers worse, `note` bounds them."""

NOTHING = "Nothing to do."


@dataclass(frozen=True)
class Condition:
    """One line of `attnbench doctor`: what it is about, what was found, and what to do."""

    subject: str
    level: Level
    found: str
    todo: str = NOTHING


def gib(size: float | None) -> str:
    """Bytes in GiB, for people."""
    return "unknown" if size is None else f"{size / 2**30:.3g} GiB"
