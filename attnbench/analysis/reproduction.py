"""What `reproduce` holds: claims with their verdicts, and what their explanations and pictures are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from attnbench.analysis.claims import Checked, Result, Timed, Verdict
from attnbench.analysis.drawn_figures import DrawnFigure

Detail = Literal["brief", "claims", "explained"]
"""What a table shows: a row a paper; every claim and number; with sources, expressions and commands."""


@dataclass(frozen=True)
class Reproduction:
    """Claims of papers beside ours.

    Args:
        results: in the order of papers and of their claims.
        commands: by a claim's id, what gives its figures alone.
        detail: what a table shows.
        figures: by the name of a paper its figures; a function, since most formats show none.
    """

    results: Sequence[Result]
    commands: Mapping[str, Sequence[str]]
    detail: Detail
    figures: Callable[[], Mapping[str, Sequence[DrawnFigure]]]

    @property
    def of_papers(self) -> list[OfPaper]:
        """The same, paper by paper."""
        groups = groupby(self.results, key=lambda result: result.paper.name)
        return [OfPaper(name, tuple(results)) for name, results in groups]


@dataclass(frozen=True)
class OfPaper:
    """The claims of one paper. name: of its file."""

    name: str
    results: Sequence[Result]

    @property
    def counts(self) -> Counter[Verdict]:
        """How many claims have each verdict."""
        return Counter(result.verdict for result in self.results)

    @property
    def farthest(self) -> tuple[Result, Checked | Timed] | None:
        """Of the numbers that differ the one whose ratio is farthest from 1, bounds only where nothing else differs."""
        held = [(result, each) for result in self.results for each in _numbers(result)]
        differing = [pair for pair in held if pair[1].verdict == "differs" and pair[1].ratio]
        return max(differing, key=lambda pair: _distance(pair[1]), default=None)


def _numbers(result: Result) -> list[Checked | Timed]:
    return [*result.checked, *(result.timing.numbers if result.timing else ())]


def _distance(held: Checked | Timed) -> tuple[bool, float]:
    number, ratio = held.number, held.ratio or 1.0
    return not (number.at_least or number.at_most), max(ratio, 1 / ratio)
