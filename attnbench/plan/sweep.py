"""The sizes a suite asks for: sweep entries, whose axes multiply or walk together, and what the problems share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from attnbench.axes import AXES, KINDS, MAX_BATCH, MAX_CHANNELS, MAX_TOKENS, Value, few_digits
from attnbench.plan.mistakes import MAX_VALUES, Notes, Section, several
from attnbench.problem import Problem
from attnbench.units import flag, quoted, text, whole_number, whole_size

T = TypeVar("T")

BATCH, HEADS, CHANNELS = 1, 8, 256
"""What a problem has where a suite says nothing."""

KIND: dict[str, tuple[Any, ...]] = {"dtype": ("float32",), "causal": (False,)}
"""The same of what is no size."""

Sizes = Mapping[str, int]
"""Fields of a problem, or head_dim."""


@dataclass(frozen=True)
class Sweep:
    """One entry of `sweep:`.

    Attributes:
        values: by axis; of the axes with a domain it has one.
        pair: whether axes of several values walk together, the first value of one with the first of each other one;
            else they multiply.
        tokens: what batch · the number of tokens is everywhere; None: the batch does not follow from it.
        kinds: by name of KINDS, values in place of those of the problem.
        operators: of the suite's those that are measured at these sizes; empty: all.
    """

    values: Mapping[str, tuple[Value, ...]]
    pair: bool = False
    tokens: int | None = None
    kinds: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    operators: frozenset[str] = frozenset()

    def measures(self, operator: str) -> bool:
        """Whether an operator of the suite is measured at these sizes."""
        return not self.operators or operator in self.operators

    def shares_operators(self, other: Sweep) -> bool:
        """Whether an operator may be measured at the sizes of both."""
        return not (self.operators and other.operators and self.operators.isdisjoint(other.operators))

    @property
    def title(self) -> str:
        """What is swept, in one line."""
        several_values = [name for name, values in self.values.items() if len(values) > 1]
        axes = (" with " if self.pair else " × ").join(several_values or self.values)
        return axes if self.tokens is None else f"{axes}, batch · tokens {self.tokens}"

    def count(self, shape: Shape) -> int:
        """The number of its problems."""
        kinds = math.prod(len(values) for values in {**shape.kinds, **self.kinds}.values())
        lengths = [len(values) for values in self.values.values()]
        return kinds * (max(lengths) if self.pair else math.prod(lengths))

    def points(self) -> list[dict[str, int]]:
        """The sizes of each problem: the tokens vary fastest, in the order given, then the axes as in AXES.

        Raises: ValueError where a number of tokens does not divide `tokens`.
        """
        sizes = {name: [AXES[name].fields(value) for value in values] for name, values in self.values.items()}
        tokens = [each for name, each in sizes.items() if AXES[name].domain]
        others = [sizes[name] for name, axis in reversed(AXES.items()) if name in sizes and not axis.domain]
        lists = [*others, *tokens]
        longest = max(map(len, lists))
        together = zip(*(each * (longest if len(each) == 1 else 1) for each in lists), strict=True)
        return [self._with_batch(_merged(point)) for point in (together if self.pair else itertools.product(*lists))]

    def _places(self) -> tuple[dict[str, list[int]], list[str]]:
        """By axis the positions in it, and the axes that walk together: of these each has as many positions."""
        places = {name: [math.prod(value) for value in values] for name, values in self.values.items()}
        tokens = next(name for name in places if AXES[name].domain)
        together = [name for name, each in places.items() if self.pair and len(each) > 1]
        if self.tokens is not None:
            places["batch"] = [self._with_batch({"seq_len": place})["batch"] for place in places[tokens]]
            together = list(dict.fromkeys([*(together or [tokens]), "batch"]))
        return places, together if len(together) > 1 else []

    def _with_batch(self, sizes: dict[str, int]) -> dict[str, int]:
        if self.tokens is None:
            return sizes
        batch, rest = divmod(self.tokens, sizes["seq_len"])
        if rest or not 1 <= batch <= MAX_BATCH:
            raise ValueError(
                f"{self.tokens} is no multiple of seq_len {sizes['seq_len']}, or too large a one; the batch is "
                f"tokens / seq_len, a whole number from 1 to {MAX_BATCH}"
            )
        return {**sizes, "batch": batch}


@dataclass(frozen=True)
class Shape:
    """The fixed part of the problem, as `problem:` gives it.

    Attributes:
        sizes: by axis, those given; an axis that is swept sets another number, and where head_dim is swept of given
            heads the channels follow.
        kinds: by name of KINDS; several values are problems of their own.
    """

    sizes: Sizes = field(default_factory=dict)
    kinds: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: dict(KIND))

    def at(self, sizes: Sizes, kind: Mapping[str, Any] | None = None) -> Problem:
        """The problem with these sizes.

        Args:
            sizes: in place of those of the shape.
            kind: one value of each of KINDS; None: the first.

        Raises: ValueError where the heads do not divide the channels, and as `Problem`.
        """
        fields: dict[str, Any] = {"batch": BATCH, **self.sizes, **sizes}
        if "head_dim" in sizes and "channels" not in sizes and "heads" in self.sizes:
            fields.pop("channels", None)
        heads, channels = _split(*(fields.pop(name, None) for name in _SPLIT))
        kind = {name: values[0] for name, values in self.kinds.items()} if kind is None else kind
        return Problem(channels=channels, heads=heads, **fields, **kind)


_SPLIT = ("heads", "head_dim", "channels")


def _split(heads: int | None, head_dim: int | None, channels: int | None) -> tuple[int, int]:
    """(heads, channels) of what is given: heads are HEADS, or channels / head_dim where both are given; channels are
    heads · head_dim, or CHANNELS where no head_dim is given."""
    if heads is None and (head_dim is None or channels is None):
        heads = HEADS
    if channels is None:
        channels = CHANNELS if head_dim is None or heads is None else heads * head_dim
    if heads is not None and head_dim is not None and heads * head_dim != channels:
        raise ValueError(
            f"{channels} is not heads {heads} · head_dim {head_dim}; where one of channels, heads and head_dim is "
            "swept, give one other alone"
        )
    divisor, name = (heads, "heads") if heads is not None else (head_dim, "head_dim")
    if not divisor or channels % divisor:
        raise ValueError(f"{channels} is not divisible by {name} {divisor}; choose multiples of {divisor}")
    number = whole_number(1, MAX_CHANNELS)
    try:
        return number(heads or channels // divisor), number(channels)
    except ValueError as error:
        raise ValueError(f"heads {heads} · head_dim {head_dim} is {error}") from None


def problems(sweep: Sweep, shape: Shape) -> list[Problem]:
    """Every problem of one entry: sizes vary fastest, then what `problem:` lists of KINDS.

    Raises: ValueError, as `Shape.at`.
    """
    kinds = {**shape.kinds, **sweep.kinds}
    each = [dict(zip(kinds, values, strict=True)) for values in itertools.product(*kinds.values())]
    return [shape.at(sizes, kind) for kind in each for sizes in sweep.points()]


def entry_facts(sweep: Sweep, shape: Shape) -> dict[str, Any]:
    """What a run stores of an entry: the arguments of `analysis.swept.Swept`."""
    places, together = sweep._places()
    facts = facts_of(problems(sweep, shape), places)
    return {**facts, "places": places, "together": together}


def facts_of(every: Collection[Problem], names: Collection[str]) -> dict[str, Any]:
    """The same of an entry that has these problems, and whose axes multiply. names: of its axes."""
    standing = {name: axis for name, axis in AXES.items() if all(map(axis.varies_in, every))}
    places = {name: sorted({axis.position(problem) for problem in every}) for name, axis in standing.items()}
    own = {name: each for name, each in places.items() if name in names}
    return {"places": own, "together": [], "beside": {name: places[name] for name in places if name not in own}}


def _merged(sizes: Iterable[Mapping[str, int]]) -> dict[str, int]:
    return {name: number for each in sizes for name, number in each.items()}


def read_values(read: Callable[[Any], T], repeated: bool = False) -> Callable[[Any], tuple[T, ...]]:
    """Reads the values on an axis: a list, {from, to, factor}, or {from, to, step}; `to` included where it is hit.

    Args:
        read: reads one value.
        repeated: whether a list may have one twice.
    """
    read_list = several(read, repeated)

    def read_all(value: Any) -> tuple[T, ...]:
        if isinstance(value, dict):
            return tuple(read(number) for number in _range(value))
        return read_list(value)

    return read_all


def _range(value: dict[str, Any]) -> list[int]:
    example = "allowed: a list of values, {from: 256, to: 4096, factor: 2} or {from: 256, to: 4096, step: 256}"
    if set(value) not in ({"from", "to", "factor"}, {"from", "to", "step"}):
        raise ValueError(f"a range with the keys {quoted(', '.join(value))}; {example}")
    number = whole_size(1, MAX_TOKENS)
    low, high = (number(value[key]) for key in ("from", "to"))
    if high < low:
        raise ValueError(f"from {low} is above to {high}, so the range is empty; exchange them")
    if "step" in value:
        numbers = list(range(low, high + 1, number(value["step"]))[: MAX_VALUES + 1])
    else:
        numbers = _by_factor(low, high, value["factor"])
    if len(numbers) > MAX_VALUES:
        raise ValueError(f"a range of more than {MAX_VALUES} values; use a larger factor or step")
    return numbers


def _by_factor(low: int, high: int, factor: Any) -> list[int]:
    """Whole numbers that grow by a factor, MAX_VALUES and one more at most. Those of sqrt2 have few binary digits."""
    half = factor == "sqrt2"
    if not half and (
        isinstance(factor, (bool, str)) or not isinstance(factor, (int, float)) or not 1.01 <= factor <= 1e6
    ):
        raise ValueError(f"factor {quoted(factor)}; allowed: a number from 1.01 to 1000000, such as 2, or sqrt2")
    numbers: dict[int, None] = {}
    for power in itertools.count():
        exact = low * (2 ** (power / 2) if half else factor**power)
        number = few_digits(exact) if half and power % 2 else round(exact)
        if number > high or len(numbers) > MAX_VALUES:
            break
        numbers[number] = None
    return list(numbers)


def read_sweep(value: Any, path: str, notes: Notes) -> Sweep | None:
    """One entry of `sweep:`, or None where it has mistakes (noted)."""
    section = Section(value, path, notes)
    repeated = section.data.get("pair") is True
    values = {name: section.take(name, read_values(axis.read, repeated), ()) for name, axis in AXES.items()}
    kinds = {name: section.take(name, several(read), ()) for name, read in KINDS.items()}
    pair = section.take("pair", flag, False)
    tokens = section.take("tokens", whole_size(1, MAX_TOKENS * MAX_BATCH), None)
    operators = section.take("operators", several(text(r"[A-Za-z0-9_-]+", "names of the suite's operators")), ())
    section.close()
    sizes = [name for name, axis in AXES.items() if axis.domain and name in section.data]
    if len(sizes) > 1:
        notes.add(path, f"{' and '.join(sizes)} exclude each other; make two entries of them")
    elif section.ok and not sizes:
        notes.add(path, "no size; add `seq_len: [1024]` or `image_size: [32x32]`")
    if "tokens" in section.data and "batch" in section.data:
        notes.add(section.at("tokens"), "the batch is tokens / seq_len; remove batch, or tokens")
    lengths = {name: len(each) for name, each in values.items() if len(each) > 1}
    if pair and len(set(lengths.values())) > 1:
        given = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        notes.add(section.at("pair"), f"{given} values; those that walk together have equally many, or one")
    if not section.ok:
        return None
    present = {name: each for name, each in values.items() if each}
    return Sweep(present, pair, tokens, {name: each for name, each in kinds.items() if each}, frozenset(operators))


def read_shape(value: Any, path: str, notes: Notes) -> Shape | None:
    """`problem:`, or None where it has mistakes (noted)."""
    section = Section(value, path, notes)
    axes = {name: axis for name, axis in AXES.items() if not axis.domain}
    values = {name: section.take(name, axis.read, None) for name, axis in axes.items()}
    kinds = {name: section.take(name, several(read), KIND[name]) for name, read in KINDS.items()}
    for name, axis in AXES.items():
        if axis.domain and name in section.data:
            section.taken.append(name)
            size = quoted(section.data[name])
            notes.add(section.at(name), f"a size belongs in `sweep:`; write `sweep: [{{{name}: {size}}}]`")
    section.close()
    if not section.ok:
        return None
    return Shape(_merged(axes[name].fields(each) for name, each in values.items() if each is not None), kinds)


def impossible(sweep: Sweep, shape: Shape) -> dict[tuple[str, int | None], str]:
    """What is wrong at the first problem of an entry that cannot be, for every value with which one cannot.

    Returns: by the name of an axis and the number of its value; None: it is the shape's.
    """
    try:
        points = sweep.points()
    except ValueError as error:
        return {("tokens", None): str(error)}
    sentences: dict[tuple[str, int | None], str] = {}
    kinds = [{"dtype": "float32", "causal": each} for each in {**shape.kinds, **sweep.kinds}["causal"]]
    for sizes, kind in itertools.product(points, kinds):
        culprit, sentence = _culprit(shape, sizes, kind)
        swept = [name for name in sweep.values if name in culprit]
        if swept:
            sentences.setdefault((swept[0], sweep.values[swept[0]].index((sizes[swept[0]],))), sentence)
        elif culprit:
            sentences.setdefault((culprit[-1], None), sentence)
    return sentences


_DEPENDENT: tuple[tuple[str, ...], ...] = (_SPLIT, ("kv_heads",), ("query_len",))
"""Axes whose values depend on others: first on each other, then on those before."""


def _culprit(shape: Shape, sizes: Sizes, kind: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """The axes with which a problem cannot be, and why; none where it can."""
    later = {name for names in _DEPENDENT for name in names}
    every = {**shape.sizes, **sizes}
    known = {name: number for name, number in every.items() if name not in later}
    for names in _DEPENDENT:
        known |= {name: every[name] for name in names if name in every}
        try:
            replace(shape, sizes=known).at({name: each for name, each in sizes.items() if name in known}, kind)
        except ValueError as error:
            return names, str(error)
    return (), ""
