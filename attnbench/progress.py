"""How far a run, a search or a gate is, as facts: measured rooms report them, outputs show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Stage:
    """A part of what is measured.

    Args:
        kind: "check": every cell once; "round": one of the timed rounds of a run or a search; "pair": one of the pairs
            of processes of a gate.
        number: of the round or pair, from 1; 0: of a check.
        last: the round or pair after which it is next seen whether that suffices; 0: none follows the check.
        most: the last that may be made.
        side: which revision a gate checks; empty: there is one.
    """

    kind: Literal["check", "round", "pair"]
    number: int = 0
    last: int = 0
    most: int = 0
    side: str = ""


@dataclass(frozen=True)
class Reached:
    """How well is known what is searched.

    Args:
        precise: so many crossovers are as precise as wanted, or so many of a gate's cells are decided.
        total: of so many.
        wanted: half a relative width of an interval; None: of a gate.
        widest: half the relative width of the widest interval; None: of a gate, or one of them is open.
    """

    precise: int
    total: int
    wanted: float | None = None
    widest: float | None = None


@dataclass(frozen=True)
class Leased:
    """How far a fleet is.

    Args:
        engine: what it leases devices from.
        devices: that measure now.
        hosts: that these are on.
        blocks: that are measured, each in one timed round.
        total: of so many.
        waiting: shards that wait for a device.
        left_s: seconds that are left, by what shards took so far; None: not known.
    """

    engine: str
    devices: int
    hosts: int
    blocks: int
    total: int
    waiting: int
    left_s: float | None
