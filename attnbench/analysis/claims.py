"""What a paper claims of cost, and the rules by which a number of ours reproduces it or differs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, get_args

from attnbench.analysis.expressions import Networks
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
        at_least: whether the number is a lower bound; at_most: an upper one.
        up_to: of time, the other end of the range that was printed.
        terms: of a number that differs, what closes the gap, by what each is: an expression.
        cut: whether the paper cut the digits off in place of rounding.
        map_bytes: of memory, the bytes of one N×N map, of which both numbers are then so many: an expression.
        indications: what figures of ours say of it beside, by what each is: an expression; they decide nothing.
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
    at_most: bool = False
    up_to: str = ""
    terms: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    map_bytes: str = ""
    indications: Mapping[str, str] = field(default_factory=dict)
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
        why: the reason of a tolerance, of a verdict, or that it cannot be tested.
        numbers: what is printed; none where nothing is held against it.
        rule: of a measured one, what decides.
        on: of a measured one, what the paper measured on, with dtype and year.
        orders: of a measured one, by name: expressions of `time` by rank, the largest first.
        indication: why what is measured is not the claim, and decides nothing; empty where it is.
    """

    id: str
    claim: str
    place: str
    kind: Kind
    mark: Mark
    why: str = ""
    numbers: Sequence[Number] = ()
    rule: str = ""
    on: str = ""
    orders: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    indication: str = ""


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
        networks: by name, the layers that sums go over: `expressions.Networks`.
    """

    name: str
    title: str
    url: str
    source: str
    constants: Mapping[str, str]
    cells: Mapping[str, Mapping[str, object]]
    claims: Sequence[Claim]
    figures: Sequence[Figure] = ()
    networks: Networks = field(default_factory=dict)


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

    def is_explained(self, kind: Kind) -> bool:
        """Whether a number that differs does so by its terms, or by digits that were cut, alone."""
        if self.number.cut:
            return math.floor(self.closed / self.number.last) * self.number.last == self.number.value
        return verdict_of(kind, self.closed, self.number) == "reproduced"


@dataclass(frozen=True)
class Interval:
    """What was measured.

    Args:
        value: nan where only the interval is known.
        low, high: its ends; nan from one round.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Measured:
    """One figure of ours.

    Args:
        verdict: by the rule of its number.
        against: the softmax that it holds, as `operator:impl`; empty where it holds none.
        interval: None: `missing` or `lacking` says why.
        missing: why the run has no time.
        lacking: the cell that no run has.
        run: the folder's name of the run that it is from.
    """

    verdict: Verdict
    against: str = ""
    interval: Interval | None = None
    missing: str = ""
    lacking: Cell | None = None
    run: str = ""


@dataclass(frozen=True)
class Timed:
    """A number of time with ours beside it.

    Args:
        number: the printed one.
        ours: against the eager softmax, where a softmax is in it; this decides.
        exact: the same against the fastest exact softmax at each of its problems; None: no softmax is in it, or ours is
            not measured.
    """

    number: Number
    ours: Measured
    exact: Measured | None = None

    @property
    def verdict(self) -> Verdict:
        """That of ours."""
        return self.ours.verdict

    @property
    def ratio(self) -> float | None:
        """Ours over the paper's; None where either is not known."""
        interval, value = self.ours.interval, float(self.number.value)
        return None if interval is None or math.isnan(interval.value) or not value else interval.value / value


@dataclass(frozen=True)
class Ordered:
    """An order that a paper claims.

    Args:
        name: of the order.
        steps: of each of its expressions over each of the next rank; every one is a number that is to be 1 at least.
        verdict: reproduced where every step is, differs where one does.
    """

    name: str
    steps: Sequence[Timed]
    verdict: Verdict


@dataclass(frozen=True)
class MeasuredOn:
    """What a claim's run was measured on.

    Args:
        run: the folder's name.
        suite: its name.
        environment: of the run, as stored.
        dtypes: of the cells.
    """

    run: str
    suite: str
    environment: Mapping[str, Any]
    dtypes: Sequence[str]

    @property
    def date(self) -> str:
        """When it began, as `2026-11-26`; empty: not stored."""
        return str(self.environment.get("started") or "")[:10]


@dataclass(frozen=True)
class Timing:
    """All that was measured of a claim. on: of each run that it has figures of."""

    numbers: Sequence[Timed]
    orders: Sequence[Ordered]
    on: Sequence[MeasuredOn] = ()


@dataclass(frozen=True)
class Result:
    """A claim with its verdict.

    Args:
        paper, claim: it.
        checked: its numbers, where they can be checked without measuring.
        verdict: differs where one of its numbers does.
        cells: whose figures were asked for.
        timing: what was measured of it; None where nothing is to be.
        indications: by name of a number those that it has, by what each is, in base units.
    """

    paper: Paper
    claim: Claim
    checked: Sequence[Checked]
    verdict: Verdict
    cells: Sequence[Cell] = ()
    timing: Timing | None = None
    indications: Mapping[str, Mapping[str, Fraction]] = field(default_factory=dict)

    @property
    def is_testable(self) -> bool:
        """Whether it could be decided without measuring."""
        return self.claim.kind in CHECKED

    @property
    def devices(self) -> set[str]:
        """Of a claim of time, the kinds of devices that it was measured on."""
        measured = self.timing.on if self.timing and self.claim.kind == "measured" else ()
        return {str(on.environment.get("device")) for on in measured}

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
