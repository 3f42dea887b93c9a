"""What a command line asks to be chosen: one problem, what is needed, and the hardware."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.errors import BadInput, refusing
from attnbench.naming import option
from attnbench.plan.problem_request import ProblemRequest, cells
from attnbench.properties import PROPERTIES
from attnbench.units import choice, memory, separated

if TYPE_CHECKING:
    from attnbench.operator import Operator
    from attnbench.problem import Cell


@dataclass(frozen=True)
class ChoiceRequest:
    """The words of the command line.

    Args:
        problem: one, and the operators to choose from.
        needs: names of properties, with commas.
        memory: `24GiB`, or a share of the device's, `80%`; None: all of it, where it is known.
        run: a folder of measured times; None: only rooflines.
        device: a card's name, or a kind of device of this machine; None: of the run, or of this machine.
        metric: the time of the run that counts; None: the first that it has.
    """

    problem: ProblemRequest
    needs: Sequence[str] = ()
    memory: str | None = None
    run: Path | None = None
    device: str | None = None
    metric: str | None = None


def read_needs(words: Sequence[str]) -> tuple[str, ...]:
    """The names of properties, each once. Raises BadInput for one that there is not."""
    with refusing(f"{option('need')} ", ". Give one or several of them, with commas."):
        return tuple(map(choice(tuple(PROPERTIES)), separated(words)))


def read_memory(word: str | None) -> tuple[float, int | None]:
    """A share of the device's memory, and bytes instead of it. Raises BadInput."""
    with refusing(f"{option('memory')} ", ". Correct it."):
        return (1.0, None) if word is None else memory(word)


def read_cells(request: ProblemRequest) -> list[tuple[Operator, Cell]]:
    """Every operator as its reference. Raises BadInput where there is not one problem."""
    pairs = cells(request)
    problems = list(dict.fromkeys(cell.problem for _, cell in pairs))
    if len(problems) > 1:
        sizes = " and ".join(f"{p.size}, {p.channels} channels, batch {p.batch}, {p.dtype}" for p in problems[:2])
        raise BadInput(
            f"{len(problems)} problems ({sizes}{', …' if len(problems) > 2 else ''}); a choice is for one. "
            "Give one value for each size and one dtype."
        )
    return pairs


def params_given(request: ProblemRequest) -> frozenset[str]:
    """The keys of `--param`: an operator that has one of them is wanted with these values alone."""
    return frozenset(word.partition("=")[0] for word in request.params)
