"""What an entry of a suite's sweep varies, as a run stores it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnbench.axes import AXES
from attnbench.problem import Problem
from attnbench.store.trusted_json import is_whole


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


def swept_of(stored: Any) -> list[Swept]:
    """What environment.json holds of a sweep; of what is damaged, nothing."""
    return [Swept(**each) for each in stored if _is_swept(each)] if isinstance(stored, list) else []


def _is_swept(stored: Any) -> bool:
    """Whether it has the form of Swept, and its axes are of today."""
    if not isinstance(stored, dict) or set(stored) != {"places", "together", "beside"}:
        return False
    places, together = stored["places"], stored["together"]
    if not (_are_places(places) and _are_places(stored["beside"]) and isinstance(together, list)):
        return False
    named = all(isinstance(name, str) and name in places for name in together)
    return named and len({len(places[name]) for name in together}) <= 1


def _are_places(stored: Any) -> bool:
    """Whether these are positions by axis."""
    if not isinstance(stored, dict) or not set(stored) <= set(AXES):
        return False
    return all(isinstance(each, list) and all(map(is_whole, each)) for each in stored.values())
