"""The sizes a suite asks for: sweep entries, whose axes multiply, and the fixed part of the problem."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from attnbench.axes import AXES, MAX_BATCH, MAX_CHANNELS, MAX_TOKENS, Value
from attnbench.plan.mistakes import MAX_VALUES, Notes, Section, several
from attnbench.problem import DTYPES, LATER, Dtype, Problem
from attnbench.units import choice, flag, quoted, whole_number

T = TypeVar("T")

BATCH, HEADS, CHANNELS = 1, 8, 256
"""What a problem has where a suite says nothing."""

Sweep = Mapping[str, tuple[Value, ...]]
"""One entry of `sweep:`: values by axis, which multiply. Of the axes with a domain it has one."""


@dataclass(frozen=True)
class Shape:
    """The fixed part of the problem, as `problem:` gives it; None: not given.

    Attributes:
        heads: default HEADS, or channels / head_dim where that is given.
        channels: default heads · head_dim, or CHANNELS where no head_dim is given. An axis may set another number.
        later: sizes of LATER, by name.
    """

    batch: int = BATCH
    heads: int | None = None
    head_dim: int | None = None
    channels: int | None = None
    dtype: Dtype = "float32"
    causal: bool = False
    later: Mapping[str, int] = field(default_factory=dict)

    def at(self, sizes: Mapping[str, int]) -> Problem:
        """The problem with these fields.

        Raises: ValueError where the heads do not divide the channels.
        """
        shape = replace(self, **{name: sizes[name] for name in _SHAPE_FIELDS & set(sizes)})  # type: ignore[arg-type]
        others = {**self.later, **{name: number for name, number in sizes.items() if name not in _SHAPE_FIELDS}}
        heads, channels = shape._split()
        return Problem(
            channels=channels, heads=heads, batch=shape.batch, dtype=self.dtype, causal=self.causal, **others
        )

    def _split(self) -> tuple[int, int]:
        """(heads, channels)."""
        heads = self.heads or (HEADS if self.head_dim is None else None)
        channels = self.channels or (CHANNELS if self.head_dim is None else (heads or HEADS) * self.head_dim)
        if heads is not None and self.head_dim is not None and heads * self.head_dim != channels:
            raise ValueError(
                f"{channels} is not heads {heads} · head_dim {self.head_dim}; where channels are swept, "
                "give heads or head_dim alone"
            )
        divisor, name = (heads, "heads") if heads is not None else (self.head_dim, "head_dim")
        if not divisor or channels % divisor:
            raise ValueError(f"{channels} is not divisible by {name} {divisor}; choose multiples of {divisor}")
        return heads or channels // divisor, channels


_SHAPE_FIELDS = {each.name for each in fields(Shape)}
_SPLIT = {"heads", "head_dim", "channels"}


def problems(sweep: Sweep, shape: Shape) -> list[Problem]:
    """Every problem of one entry: the number of tokens varies fastest, in the order given, then the axes as in AXES."""
    sizes = {name: [AXES[name].fields(value) for value in values] for name, values in sweep.items()}
    tokens = [each for name, axis in AXES.items() if axis.domain for each in sizes.get(name, ())]
    others = [sizes[name] for name, axis in reversed(AXES.items()) if not axis.domain and name in sizes]
    return [shape.at(_merged(point)) for point in itertools.product(*others, tokens)]


def _merged(sizes: Iterable[Mapping[str, int]]) -> dict[str, int]:
    return {name: number for each in sizes for name, number in each.items()}


def read_values(read: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    """Reads the values on an axis: a list, {from, to, factor}, or {from, to, step}; `to` included where it is hit.

    Args:
        read: reads one value.
    """
    read_list = several(read)

    def read_all(value: Any) -> tuple[T, ...]:
        if isinstance(value, dict):
            return tuple(read(number) for number in _range(value))
        return read_list(value)

    return read_all


def _range(value: dict[str, Any]) -> list[int]:
    example = "allowed: a list of values, {from: 256, to: 4096, factor: 2} or {from: 256, to: 4096, step: 256}"
    if set(value) not in ({"from", "to", "factor"}, {"from", "to", "step"}):
        raise ValueError(f"a range with the keys {quoted(', '.join(value))}; {example}")
    low, high = (whole_number(1, MAX_TOKENS)(value[key]) for key in ("from", "to"))
    if high < low:
        raise ValueError(f"from {low} is above to {high}, so the range is empty; exchange them")
    if "step" in value:
        numbers = list(range(low, high + 1, whole_number(1, MAX_TOKENS)(value["step"]))[: MAX_VALUES + 1])
    else:
        factor = value["factor"]
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 1.01 <= factor <= 1e6:
            raise ValueError(f"factor {quoted(factor)}; allowed: a number from 1.01 to 1000000, such as 2")
        numbers, exact = [], float(low)
        while round(exact) <= high and len(numbers) <= MAX_VALUES:
            if not numbers or round(exact) > numbers[-1]:
                numbers.append(round(exact))
            exact *= factor
    if len(numbers) > MAX_VALUES:
        raise ValueError(f"a range of more than {MAX_VALUES} values; use a larger factor or step")
    return numbers


def read_sweep(value: Any, path: str, notes: Notes) -> Sweep | None:
    """One entry of `sweep:`, or None where it has mistakes (noted)."""
    section = Section(value, path, notes)
    values = {name: section.take(name, read_values(axis.read), ()) for name, axis in AXES.items()}
    section.close()
    sizes = [name for name, axis in AXES.items() if axis.domain and name in section.data]
    if len(sizes) > 1:
        notes.add(path, f"{' and '.join(sizes)} exclude each other; make two entries of them")
    elif section.ok and not sizes:
        notes.add(path, "no size; add `seq_len: [1024]` or `image_size: [32x32]`")
    return {name: each for name, each in values.items() if each} if section.ok else None


def read_shape(value: Any, path: str, notes: Notes) -> Shape | None:
    """`problem:`, or None where it has mistakes (noted)."""
    section = Section(value, path, notes)
    batch = section.take("batch", whole_number(1, MAX_BATCH), BATCH)
    heads = section.take("heads", whole_number(1, MAX_CHANNELS), None)
    head_dim = section.take("head_dim", whole_number(1, MAX_CHANNELS), None)
    channels = section.take("channels", whole_number(1, MAX_CHANNELS), None)
    dtype: Dtype = section.take("dtype", choice(DTYPES), DTYPES[1])
    causal = section.take("causal", flag, False)
    later = {name: section.take(name, AXES[name].read, (0,))[0] for name in LATER if name in section.data}
    section.taken += [name for name in LATER if name not in section.taken]
    for name, axis in AXES.items():
        if axis.domain and name in section.data:
            section.taken.append(name)
            size = quoted(section.data[name])
            notes.add(section.at(name), f"a size belongs in `sweep:`; write `sweep: [{{{name}: {size}}}]`")
    section.close()
    if not section.ok:
        return None
    if head_dim is not None and channels is None:
        try:
            whole_number(1, MAX_CHANNELS)((heads or HEADS) * head_dim)
        except ValueError as error:
            notes.add(section.at("channels"), f"heads {heads or HEADS} · head_dim {head_dim} is {error}")
            return None
    return Shape(batch, heads, head_dim, channels, dtype, causal, later)


def check_heads(sweeps: Mapping[str, Sweep], shape: Shape, path: str, notes: Notes) -> None:
    """Notes every size whose channels cannot be split into heads.

    Args:
        sweeps: by key path.
        path: the key path of the shape.
    """
    for place, sweep in sweeps.items():
        axes = [axis for name in sweep if _SPLIT & set((axis := AXES[name]).columns)]
        for point in itertools.product(*(enumerate(sweep[axis.name]) for axis in axes)):
            sizes = _merged(axis.fields(value) for axis, (_, value) in zip(axes, point, strict=True))
            try:
                shape.at({"seq_len": 1, **sizes})
            except ValueError as error:
                notes.add(f"{place}.{axes[0].name}[{point[0][0]}]" if axes else f"{path}.channels", str(error))
