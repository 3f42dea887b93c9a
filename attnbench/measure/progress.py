"""What a run reports while it measures."""

from __future__ import annotations

from typing import Protocol

from attnbench.problem import Cell
from attnbench.store.records import Visit


class Progress(Protocol):
    """Receives what a run reports."""

    def planned(self, visits: int, seconds: float | None) -> None:
        """So many visits are still to come, in about this time (None: not known yet)."""

    def begun(self, cell: Cell, round: int) -> None:
        """This visit is being made; of a member of a block, at each of its turns."""

    def ended(self, visit: Visit, seconds: float | None) -> None:
        """This visit is stored; about so many seconds are left (None: not known yet)."""

    def message(self, text: str) -> None:
        """A sentence for the user."""
