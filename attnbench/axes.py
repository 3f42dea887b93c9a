"""The axes that a sweep may vary, one row each of AXES: who reads, varies, orders or shows a size asks its row."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from attnbench.problem import DTYPES, DTYPES_SHORT, Domain, Followed, Problem
from attnbench.units import choice, digits, flag, quoted, whole_size

MAX_TOKENS = 2**26
MAX_SIDE = 2**13
MAX_CHANNELS = 2**16
MAX_BATCH = 2**16

Value = tuple[int, ...]
"""A value on an axis: one number per column of the axis."""


@dataclass(frozen=True)
class Held:
    """What is constant along an axis where one size follows from others.

    Attributes:
        size: the property of a problem that is constant; empty: nothing follows from the axis.
        varies: of the sizes that a panel's title names, those that vary along the axis; default: the column.
        divisor: the property of a problem that divides every value; empty: none does.
        divides: the property of a problem that every value divides; empty: none.
    """

    size: str = ""
    varies: tuple[str, ...] = ()
    divisor: str = ""
    divides: str = ""


@dataclass(frozen=True)
class Axis:
    """One way to vary a problem. Sizes on it are ordered and interpolated by their position: the product of a value.

    Attributes:
        name: as suites, options and tables write it.
        meaning: what a value is, for help.
        unit: what a value counts, after it in a sentence ("911 tokens").
        columns: properties of a problem that hold a value: one number each.
        most: the largest number allowed.
        domain: the problems whose number of tokens the axis sets, of which every sweep has one; None: it varies
            something else, of problems of any domain.
        noun: what precedes a value where it stands fixed in a title ("image 14x28"); default: the name.
        within: the property of a problem that no value exceeds; empty: none.
        held: what may be constant along it, the first choice first; default: everything but the columns.
    """

    name: str
    meaning: str
    unit: str
    columns: tuple[str, ...]
    most: int
    domain: Domain | None = None
    noun: str = ""
    within: str = ""
    held: tuple[Held, ...] = (Held(),)

    def read(self, value: Any) -> Value:
        """A value from YAML or, after `yaml_file.scalar`, a command line: `1024` or `1K`; an image's `28`, `32x64`.

        Raises: ValueError with what is allowed.
        """
        number = whole_size(1, self.most)
        if len(self.columns) == 1:
            return (number(value),)
        match = (
            re.fullmatch(r"([\d.]{1,8}[Kk]?)\s*[xX×]\s*([\d.]{1,8}[Kk]?)", value.strip())
            if isinstance(value, str)
            else None
        )
        try:
            return (number(_side(match[1])), number(_side(match[2]))) if match else self.uniform(number(value))
        except ValueError:
            raise ValueError(
                f"{quoted(value)}; allowed: a side from 1 to {self.most}, or height x width such as 32x64"
            ) from None

    def uniform(self, number: int) -> Value:
        """The value with the same number in every column: of an image a square."""
        return (number,) * len(self.columns)

    def fields(self, value: Value) -> dict[str, int]:
        """The fields of a problem that a value sets."""
        numbers = dict(zip(self.columns, value, strict=True))
        return {"seq_len": math.prod(value), **numbers} if self.domain else numbers

    def at(self, problem: Problem, position: int) -> Problem:
        """The problem at a position; of an image the largest square with no more tokens."""
        side = math.isqrt(position) if len(self.columns) == 2 else position
        name = self.held[0].size
        return problem.with_sizes(**self.fields(self.uniform(side)), **({name: getattr(problem, name)} if name else {}))

    def holding(self, problems: Collection[Problem]) -> Axis:
        """The axis with that as its only choice which is constant where these problems vary along it."""
        for held in self.held:
            axis = replace(self, held=(held,))
            if any(axis._joins(a, b) for a, b in itertools.permutations(problems, 2)):
                return axis
        return self

    def _joins(self, problem: Problem, other: Problem) -> bool:
        """Whether two problems differ in nothing but their position."""
        try:
            return self.at(problem, self.position(other)) == other
        except ValueError:  # at that position no problem can be
            return False

    def varies_in(self, problem: Problem) -> bool:
        """Whether a problem stands on the axis: it is of the domain, and has every number of a value."""
        has_value = all(getattr(problem, column) is not None for column in self.columns)
        return has_value and self.domain in (None, problem.domain)

    def position(self, problem: Problem) -> int:
        """Where a problem stands."""
        return math.prod(getattr(problem, column) for column in self.columns)

    def label(self, problem: Problem) -> str:
        """A problem's value as tables head a column with it: `1024`, `14x28`."""
        return "x".join(str(getattr(problem, column)) for column in self.columns)

    def allowed(self, problem: Problem) -> Callable[[float], int]:
        """What finds the nearest position that a problem can have.

        It has few binary digits: odd sizes have costs of their own.
        """
        unit, divisors = self._unit(problem), self.divisors(problem)
        most = getattr(problem, self.within) if self.within else math.inf

        def nearest(position: float) -> int:
            if len(self.columns) == 2:
                return max(1, round(math.sqrt(position))) ** 2
            if divisors:
                return min(divisors, key=lambda n: abs(math.log(n / max(position, 1))))
            return int(min(most, unit * few_digits(max(1.0, position / unit))))

        return nearest

    def divisors(self, problem: Problem) -> list[int]:
        """The positions that a problem can have, ascending, where all divide one of its sizes; else none."""
        divided = getattr(problem, self.held[0].divides) if self.held[0].divides else 0
        return [n for n in range(self._unit(problem), divided + 1, self._unit(problem)) if divided % n == 0]

    def _unit(self, problem: Problem) -> int:
        """What divides every position."""
        unit = getattr(problem, self.held[0].divisor) if self.held[0].divisor else 1
        return 1 if isinstance(unit, Followed) else int(unit)

    def size(self, position: float, measured: bool = False) -> str:
        """A position with three significant digits, a measured one with all; of an image the side in pixels of a square
        with as many tokens."""
        if len(self.columns) == 2:
            return f"{math.sqrt(position):.0f}"
        return f"{position if measured else digits(position):.0f}"

    def place(self, position: float, measured: bool = False) -> str:
        """The same, standing alone: of an image both sides."""
        return "x".join([self.size(position, measured)] * len(self.columns))

    def amount(self, place: str) -> str:
        """A place, or several, with the unit: `911 tokens`, `14x28 pixels`, `1 sample`, `256–2048 tokens`."""
        return f"{place} {self.unit.removesuffix('s') if place == '1' else self.unit}"


def _side(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def few_digits(number: float) -> int:
    """The nearest whole number of five binary digits and zeros: hardware has no special cost for such a size."""
    step = 1 << max(0, math.floor(math.log2(number)) - 4)
    return step * max(1, round(number / step))


AXES: dict[str, Axis] = {
    axis.name: axis
    for axis in (
        Axis("seq_len", "tokens of a sequence", "tokens", ("seq_len",), MAX_TOKENS, "sequence"),
        Axis("image_size", "sides of an image", "pixels", ("height", "width"), MAX_SIDE, "image", noun="image"),
        Axis(
            "channels", "channels of all heads", "channels", ("channels",), MAX_CHANNELS,
            held=(Held("heads", divisor="heads"), Held("head_dim", ("channels", "heads"), divisor="head_dim")),
        ),
        Axis(
            "heads", "heads of queries", "heads", ("heads",), MAX_CHANNELS,
            held=(
                Held("channels", divisor="kv_heads", divides="channels"),
                Held("head_dim", ("heads", "channels"), divisor="kv_heads"),
            ),
        ),
        Axis(
            "head_dim", "channels of a head", "channels", ("head_dim",), MAX_CHANNELS,
            held=(Held("heads", ("channels",)), Held("channels", ("heads",), divides="channels")),
        ),
        Axis(
            "kv_heads", "heads of keys and values", "heads", ("kv_heads",), MAX_CHANNELS,
            held=(Held(divides="heads"),),
        ),
        Axis("batch", "samples of a call", "samples", ("batch",), MAX_BATCH),
        Axis(
            "query_len", "new tokens, after a state of those before", "new tokens", ("query_len",), MAX_TOKENS,
            within="seq_len",
        ),
    )
}  # fmt: skip
"""Every axis by name, in the order of tables and panels; in a sweep the later ones vary slower."""

KINDS: dict[str, Callable[[Any], Any]] = {"dtype": choice(DTYPES, DTYPES_SHORT), "causal": flag}
"""What a problem has beside its sizes, and how one value is read: problems that differ in it stand in panels of their
own."""


def tokens_axis(problem: Problem) -> Axis:
    """The axis on which the number of tokens of a problem stands."""
    return next(axis for axis in AXES.values() if axis.domain == problem.domain)
