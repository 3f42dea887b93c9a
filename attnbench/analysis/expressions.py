"""Arithmetic that a data file holds as text, in exact fractions: `2 * softmax(batch=8).peak_memory_bytes`."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from attnbench.analysis.memory_budget import of_gpu
from attnbench.units import quoted, suggestion

Figure = Callable[[str, Mapping[str, Any], str], Fraction]
"""(name, arguments, attribute) → the value of `name(arguments).attribute`."""

Networks = Mapping[str, Sequence[Mapping[str, int]]]
"""By name, the layers of a network: rows of `count`, and of the sizes at which so many layers are."""

_BINARY: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}

_FUNCTIONS: Mapping[str, Callable[..., Fraction | float]] = {
    "log2": math.log2,
    "min": min,
    "max": max,
    "left_of_gpu": lambda total: Fraction(of_gpu("", int(total)).left_bytes),
}

NONE: Networks = MappingProxyType({})

GUESS = "paper"
"""The constant near which `largest` begins to search: the printed number."""

_MOST_POWER = 30
"""Of two, above which `largest` does not search."""


def evaluate(text: str, constants: Mapping[str, Fraction], figure: Figure, networks: Networks = NONE) -> Fraction:
    """The value of an expression of numbers, constants, + - * / ** and figures, and of these functions:

    - log2, min, max.
    - `left_of_gpu(bytes)`: what `fit` leaves of a GPU's memory, in bytes.
    - `largest(L, limit, need)`: the largest power of two L of which an expression of L is no more than the limit.
    - `over(network, each)`: the sum over a network's layers of an expression, in which the sizes of a layer, and
      `count`, are constants, and every figure is at these sizes.

    Args:
        text: the expression.
        constants: by name; `largest` begins to search near GUESS.
        figure: asked for every `name.attribute` and `name(key=value).attribute`.
        networks: that `over` may name.

    Raises: ValueError for anything else.
    """
    tree = _parsed(text)

    def value(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant(value=int() | float() as number):
                return Fraction(str(number))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.BinOp(left=left, op=kind, right=right) if type(kind) in _BINARY:
                return Fraction(_BINARY[type(kind)](value(left), value(right)))
            case ast.Call(func=ast.Name(id="largest"), args=[ast.Name(id=name), limit, need], keywords=[]):
                body, guess = ast.unparse(need), constants.get(GUESS, Fraction(1))
                return _largest(
                    value(limit), lambda size: evaluate(body, {**constants, name: size}, figure, networks), guess
                )
            case ast.Call(func=ast.Name(id="over"), args=[ast.Name(id=name), each], keywords=[]):
                if name not in networks:
                    raise ValueError(f"{quoted(text)}: no network {name}{suggestion(name, networks)}")
                return sum((_of_row(ast.unparse(each), row) for row in networks[name]), Fraction(0))
            case ast.Call(func=ast.Name(id=name), args=[_, *_] as operands, keywords=[]) if name in _FUNCTIONS:
                return Fraction(_FUNCTIONS[name](*map(value, operands)))
            case ast.Attribute(value=ast.Name(id=name), attr=attribute):
                return figure(name, {}, attribute)
            case ast.Attribute(value=ast.Call(func=ast.Name(id=name), args=[], keywords=keywords), attr=attribute):
                return figure(name, {str(each.arg): argument(each.value) for each in keywords}, attribute)
            case ast.Name(id=name):
                if name not in constants:
                    raise ValueError(f"{quoted(text)}: no constant {name}{suggestion(name, constants)}")
                return constants[name]
        raise ValueError(
            f"{quoted(text)}: {ast.unparse(node)}; allowed: numbers, constants, figures, + - * / **, "
            f"{', '.join(_FUNCTIONS)}, largest, over"
        )

    def _of_row(each: str, row: Mapping[str, int]) -> Fraction:
        sizes = {name: size for name, size in row.items() if name != "count"}
        numbers = {name: Fraction(number) for name, number in row.items()}
        at_sizes: Figure = lambda name, given, attribute: figure(name, {**sizes, **given}, attribute)  # noqa: E731
        return row["count"] * evaluate(each, {**constants, **numbers}, at_sizes, networks)

    def argument(node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, bool)):
            return node.value
        number = value(node)
        return int(number) if number.denominator == 1 else float(number)

    try:
        return value(tree)
    except ZeroDivisionError:
        raise ValueError(f"{quoted(text)}: divides by 0") from None


def _largest(limit: Fraction, need: Callable[[Fraction], Fraction], guess: Fraction) -> Fraction:
    """Of the powers of two the largest that needs no more than the limit; 0 where none does. Needs grow with sizes."""

    def fits(power: int) -> bool:
        return need(Fraction(2**power)) <= limit

    power = min(max(int(guess), 1).bit_length() - 1, _MOST_POWER)
    if fits(power):
        while power < _MOST_POWER and fits(power + 1):
            power += 1
        return Fraction(2**power)
    while power > 0:
        power -= 1
        if fits(power):
            return Fraction(2**power)
    return Fraction(0)


def crossover_of(text: str) -> tuple[str, str] | None:
    """Of `crossover(a, b)`, the size from which on a takes less time than b, both expressions; None of any other."""
    match _parsed(text):
        case ast.Call(func=ast.Name(id="crossover"), args=[series, baseline], keywords=[]):
            return ast.unparse(series), ast.unparse(baseline)
    return None


@lru_cache(maxsize=1024)
def _parsed(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{quoted(text)}: {error.msg}; allowed: arithmetic") from None
