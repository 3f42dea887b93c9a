"""What an entry of a suite's sweep varies, as a run stores it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
    """

    places: Mapping[str, Sequence[int]]
    together: Sequence[str]

    def has(self, problem: Problem) -> bool:
        """Whether a problem is one of the entry's."""
        axes = [AXES[name] for name in self.places]
        if not all(axis.varies_in(problem) and axis.position(problem) in self.places[axis.name] for axis in axes):
            return False
        walked = tuple(AXES[name].position(problem) for name in self.together)
        return not walked or walked in zip(*(self.places[name] for name in self.together), strict=True)

    def names(self, axis: str, problems: Collection[Problem]) -> bool:
        """Whether all of these problems are its own, and it varies this axis."""
        return len(self.places.get(axis, ())) > 1 and all(map(self.has, problems))
