"""What a run, a search or a gate reports while it measures."""

from __future__ import annotations

from typing import Protocol

from attnbench.problem import Cell
from attnbench.progress import Reached, Stage
from attnbench.store.records import Visit


class Progress(Protocol):
    """Receives what is reported. Seconds are those that all stages together are still expected to take, as far as the
    next look; None: nothing new is known."""

    def planned(self, stage: Stage, visits: int | None, seconds: float | None) -> None:
        """A stage begins. visits: still to come in it; None: not known."""

    def begun(self, cell: Cell, round: int) -> None:
        """This visit is being made; of a member of a block, at each of its turns."""

    def ended(self, visit: Visit, seconds: float | None) -> None:
        """This visit is stored."""

    def reached(self, reached: Reached) -> None:
        """A look at what was measured so far."""

    def message(self, text: str) -> None:
        """A sentence for the user."""
