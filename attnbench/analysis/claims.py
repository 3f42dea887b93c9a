"""What a paper claims of cost, and the rules by which a number of ours reproduces it or differs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, get_args

from attnbench.analysis.paper_figures import Figure
from attnbench.problem import Cell

Kind = Literal["analytic", "memory", "growth", "measured", "elsewhere"]
Mark = Literal["read", "recalled", "derived"]
Verdict = Literal["reproduced", "differs", "not decided", "not testable here"]

KINDS: tuple[Kind, ...] = get_args(Kind)
MARKS: tuple[Mark, ...] = get_args(Mark)
CHECKED: tuple[Kind, ...] = ("analytic", "memory", "growth")
"""What is checked from formulas and shapes alone."""

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

UNITS: Mapping[str, Fraction] = {
    "": Fraction(1),
    "×": Fraction(1),
    "%": Fraction(1, 100),
    "M": Fraction(10**6),
    "Mi": Fraction(2**20),
    "G": Fraction(10**9),
    "MB": Fraction(10**6),
    "GB": Fraction(10**9),
    "MiB": Fraction(2**20),
    "GiB": Fraction(2**30),
}

WITHIN = Fraction(1, 10)
"""The relative difference within which the memory of one operator is reproduced."""


@dataclass(frozen=True)
class Number:
    """One printed number, and what it is held against.

    Args:
        paper: the digits as printed.
        ours: an expression, see `expressions.py`; empty where nothing is checked.
        name: which of several numbers of the claim it is.
        unit: as printed, of UNITS.
        meant: the unit that the digits are in, where it is not the printed one.
        verdict: the one that it had when the file was written.
        step: what the last printed digit counts, where it is not its decimal place: 10 for 120 of two digits.
        within: of memory, the relative difference that is allowed, in percent; None: WITHIN.
        factor: of memory and growth in place of it, how many times more or less is allowed.
        points: of memory and growth in place of both, the difference that is allowed, in the unit.
        at_least: whether the number is a lower bound.
        terms: of a count that differs, what closes the gap, by what each is: an expression.
        cut: whether the paper cut the digits off in place of rounding.
        map_bytes: of memory, the bytes of one N×N map, of which both numbers are then so many: an expression.
        why: in words.
    """

    paper: str
    ours: str = ""
    name: str = ""
    unit: str = ""
    meant: str = ""
    verdict: Verdict = "reproduced"
    step: Fraction | None = None
    within: Fraction | None = None
    factor: Fraction | None = None
    points: Fraction | None = None
    at_least: bool = False
    terms: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    map_bytes: str = ""
    why: str = ""

    @property
    def decimals(self) -> int:
        """Printed digits after the point."""
        return len(self.paper.partition(".")[2])

    @property
    def scale(self) -> Fraction:
        """What one of the printed unit is in base units."""
        return UNITS[self.meant or self.unit]

    @property
    def value(self) -> Fraction:
        """The printed number in base units."""
        return Fraction(self.paper) * self.scale

    @property
    def last(self) -> Fraction:
        """What the last printed digit counts, in base units."""
        return (self.step or Fraction(1, 10**self.decimals)) * self.scale


@dataclass(frozen=True)
class Claim:
    """What a paper says in one place.

    Args:
        id: unique among all papers.
        claim: in words.
        place: where in the paper.
        kind: how it can be checked; elsewhere: it cannot be here.
        mark: whether the numbers were read in a stored source, are recalled, or derived from what was.
        why: the reason of a tolerance, of a verdict, or that it cannot be tested; of a measured one the rule.
        numbers: what is printed; none where nothing is held against it.
    """

    id: str
    claim: str
    place: str
    kind: Kind
    mark: Mark
    why: str = ""
    numbers: Sequence[Number] = ()


@dataclass(frozen=True)
class Paper:
    """What one file holds.

    Args:
        name: of the file.
        title: author, year and title.
        url: of the paper.
        source: what was read.
        constants: by name, expressions of those before.
        cells: by name, what operators are asked at: `measure/papers.py`.
        claims: in the order of the file.
        figures: what is drawn of it.
    """

    name: str
    title: str
    url: str
    source: str
    constants: Mapping[str, str]
    cells: Mapping[str, Mapping[str, object]]
    claims: Sequence[Claim]
    figures: Sequence[Figure] = ()


@dataclass(frozen=True)
class Checked:
    """A number with ours beside it.

    Args:
        number: the printed one.
        ours: in base units.
        terms: of the number, each in base units.
        map_bytes: of one N×N map; None where there is none.
        verdict: by the rules.
    """

    number: Number
    ours: Fraction
    terms: Mapping[str, Fraction]
    map_bytes: Fraction | None
    verdict: Verdict

    @property
    def ratio(self) -> float | None:
        """Ours over the paper's; None over 0, and of growth see the difference."""
        return float(self.ours / self.number.value) if self.number.value else None

    @property
    def closed(self) -> Fraction:
        """Ours with every term."""
        return self.ours + sum(self.terms.values())

    @property
    def is_explained(self) -> bool:
        """Whether a count that differs does so by its terms, or by digits that were cut, alone."""
        if self.number.cut:
            return math.floor(self.closed / self.number.last) * self.number.last == self.number.value
        return rounds_to(self.closed, self.number)


@dataclass(frozen=True)
class Result:
    """A claim with its verdict.

    Args:
        paper, claim: it.
        checked: its numbers, where they can be checked without measuring.
        verdict: differs where one of its numbers does.
        cells: whose figures were asked for.
    """

    paper: Paper
    claim: Claim
    checked: Sequence[Checked]
    verdict: Verdict
    cells: Sequence[Cell] = ()

    @property
    def is_testable(self) -> bool:
        """Whether it could be decided without measuring."""
        return self.verdict in ("reproduced", "differs")

    @property
    def lost(self) -> list[Checked]:
        """Numbers that were read, are stored as reproduced and no longer are."""
        return [
            each
            for each in self.checked
            if self.claim.mark != "recalled" and each.number.verdict == "reproduced" and each.verdict == "differs"
        ]


def rounds_to(value: Fraction, number: Number) -> bool:
    """Whether a value rounds to the printed digits; halfway either way."""
    return abs(value - number.value) <= number.last / 2


def is_near(value: Fraction, number: Number) -> bool:
    """Whether a value is within the number's tolerance."""
    gap = abs(value - number.value)
    if number.points is not None:
        return gap <= number.points * number.scale
    if number.factor is not None:
        return number.value <= value * number.factor and value <= number.value * number.factor
    within = WITHIN if number.within is None else number.within / 100
    return gap <= within * abs(number.value)


def verdict_of(kind: Kind, ours: Fraction, number: Number) -> Verdict:
    """Of one number: a bound is held, a count rounds to the printed digits, memory and growth are within tolerance."""
    if number.at_least:
        holds = ours >= number.value
    elif kind == "analytic":
        holds = rounds_to(ours, number)
    else:
        holds = is_near(ours, number)
    return "reproduced" if holds else "differs"


def verdict_of_claim(claim: Claim, checked: Sequence[Checked]) -> Verdict:
    """Of a claim: that of its numbers, or what is missing to test it."""
    if claim.kind == "elsewhere":
        return "not testable here"
    if claim.kind == "measured":
        return "not decided"
    return "differs" if any(each.verdict == "differs" for each in checked) else "reproduced"
