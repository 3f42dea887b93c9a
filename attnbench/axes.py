"""The axes that a sweep may vary, one row each of AXES: who reads, varies, orders or shows a size asks its row."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from attnbench.problem import Domain, Problem
from attnbench.units import digits, quoted, whole_number

MAX_TOKENS = 2**26
MAX_SIDE = 2**13
MAX_CHANNELS = 2**16
MAX_BATCH = 2**16

Value = tuple[int, ...]
"""A value on an axis: one number per column of the axis."""


@dataclass(frozen=True)
class Axis:
    """One way to vary a problem. Sizes on it are ordered and interpolated by their position: the product of a value.

    Attributes:
        name: as suites, options and tables write it.
        meaning: what a value is, for help.
        columns: properties of a problem that hold a value: one number each.
        most: the largest number allowed.
        domain: the problems whose number of tokens the axis sets, of which every sweep has one; None: it varies
            something else, of problems of any domain.
        noun: what precedes a value where it stands fixed in a title ("image 14x28"); default: the name.
        divisor: the property of a problem that divides every value; empty: none does.
        varies: of the sizes that a panel's title names, the one that varies along the axis; default: the column.
        instead: (another of these, which may vary as well; what is constant then).
    """

    name: str
    meaning: str
    columns: tuple[str, ...]
    most: int
    domain: Domain | None = None
    noun: str = ""
    divisor: str = ""
    varies: str = ""
    instead: tuple[str, str] | None = None

    def read(self, value: Any) -> Value:
        """A value from YAML or, after `yaml_file.scalar`, from the command line: `1024`; of an image `28` or `32x64`.

        Raises: ValueError with what is allowed.
        """
        number = whole_number(1, self.most)
        if len(self.columns) == 1:
            return (number(value),)
        match = re.fullmatch(r"(\d{1,5})\s*[x×]\s*(\d{1,5})", value.strip()) if isinstance(value, str) else None
        try:
            return (number(int(match[1])), number(int(match[2]))) if match else self.uniform(number(value))
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
        return problem.with_sizes(**self.fields(self.uniform(side)))

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
        unit = getattr(problem, self.divisor) if self.divisor else 1

        def nearest(position: float) -> int:
            if len(self.columns) == 2:
                return max(1, round(math.sqrt(position))) ** 2
            multiple = max(1.0, position / unit)
            step = 1 << max(0, math.floor(math.log2(multiple)) - 4)
            return int(unit * step * max(1, round(multiple / step)))

        return nearest

    def size(self, position: float, measured: bool = False) -> str:
        """A position with three significant digits, a measured one with all; of an image the side in pixels of a square
        with as many tokens."""
        if len(self.columns) == 2:
            return f"{math.sqrt(position):.0f}"
        return f"{position if measured else digits(position):.0f}"

    def place(self, position: float, measured: bool = False) -> str:
        """The same, standing alone: of an image both sides."""
        return "x".join([self.size(position, measured)] * len(self.columns))


AXES: dict[str, Axis] = {
    axis.name: axis
    for axis in (
        Axis("seq_len", "tokens of a sequence", ("seq_len",), MAX_TOKENS, "sequence"),
        Axis("image_size", "sides of an image", ("height", "width"), MAX_SIDE, "image", noun="image"),
        Axis("channels", "of all heads", ("channels",), MAX_CHANNELS, divisor="heads", instead=("heads", "head_dim")),
    )
}
"""Every axis by name, in the order of tables and panels; in a sweep the later ones vary slower."""


def tokens_axis(problem: Problem) -> Axis:
    """The axis on which the number of tokens of a problem stands."""
    return next(axis for axis in AXES.values() if axis.domain == problem.domain)
