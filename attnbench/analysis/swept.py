"""What an entry of a suite's sweep varies, as a run stores it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attnbench.axes import AXES
from attnbench.problem import Problem


@dataclass(frozen=True)
class Swept:
    """The sizes of an entry.

    Attributes:
        places: by axis, the positions.
        together: the axes that walk together, the first position on one with the first on each other; the others
            multiply.
        beside: by every other axis, the positions of its problems.
    """

    places: Mapping[str, Sequence[int]]
    together: Sequence[str]
    beside: Mapping[str, Sequence[int]]

    def has(self, problem: Problem) -> bool:
        """Whether a problem is one of the entry's."""
        every = {**self.places, **self.beside}
        axes = [AXES[name] for name in every]
        if not all(axis.varies_in(problem) and axis.position(problem) in every[axis.name] for axis in axes):
            return False
        if any(len(self.beside.get(name, ())) > 1 for name in problem.given):
            return False  # in the entry this size follows another one
        walked = tuple(AXES[name].position(problem) for name in self.together)
        return not walked or walked in zip(*(self.places[name] for name in self.together), strict=True)

    def varies(self, axis: str) -> bool:
        """Whether it has several values of an axis."""
        return len(set(self.places.get(axis, ()))) > 1
