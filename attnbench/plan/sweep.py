"""The sizes a suite asks for: sweep entries, whose axes multiply, and the fixed part of the problem."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from attnbench.plan.mistakes import MAX_VALUES, Notes, Section, several
from attnbench.problem import DTYPES, Dtype, Problem
from attnbench.units import choice, flag, quoted, whole

T = TypeVar("T")

MAX_TOKENS = 2**26
MAX_SIDE = 2**13
MAX_CHANNELS = 2**16
MAX_BATCH = 2**16

BATCH, HEADS, CHANNELS = 1, 8, 256
"""What a problem has where a suite says nothing."""


@dataclass(frozen=True)
class Sweep:
    """One entry of `sweep:`; its axes multiply. seq_len or image_size (height, width) is empty; channels may be."""

    seq_len: tuple[int, ...] = ()
    image_size: tuple[tuple[int, int], ...] = ()
    channels: tuple[int, ...] = ()


@dataclass(frozen=True)
class Shape:
    """The fixed part of the problem. heads None: channels / head_dim. channels: where no axis sets them."""

    batch: int = BATCH
    heads: int | None = HEADS
    head_dim: int | None = None
    channels: int = CHANNELS
    dtype: Dtype = "float32"
    causal: bool = False

    def heads_of(self, channels: int) -> int:
        """The number of heads at this many channels. Raises ValueError where it is no whole number."""
        if self.heads is not None and self.head_dim is not None and self.heads * self.head_dim != channels:
            raise ValueError(
                f"{channels} is not heads {self.heads} · head_dim {self.head_dim}; where channels are swept, "
                "give heads or head_dim alone"
            )
        divisor, name = (self.heads, "heads") if self.heads is not None else (self.head_dim, "head_dim")
        if not divisor or channels % divisor:
            raise ValueError(f"{channels} is not divisible by {name} {divisor}; choose multiples of {divisor}")
        return divisor if self.heads is not None else channels // divisor


def problems(sweep: Sweep, shape: Shape) -> list[Problem]:
    """Every problem of one entry: channels outermost, sizes in the order given."""
    sizes: list[tuple[int, int | None, int | None]] = [(n, None, None) for n in sweep.seq_len]
    sizes += [(h * w, h, w) for h, w in sweep.image_size]
    return [
        Problem(n, channels, shape.heads_of(channels), shape.batch, shape.dtype, shape.causal, height, width)
        for channels, (n, height, width) in itertools.product(sweep.channels or (shape.channels,), sizes)
    ]


def read_side(value: Any) -> tuple[int, int]:
    """`28` → (28, 28); `32x64` → (32, 64), height × width."""
    match = re.fullmatch(r"(\d{1,5})\s*[x×]\s*(\d{1,5})", value.strip()) if isinstance(value, str) else None
    sides = (int(match[1]), int(match[2])) if match else (value, value)
    try:
        height, width = (whole(1, MAX_SIDE)(side) for side in sides)
    except ValueError:
        raise ValueError(
            f"{quoted(value)}; allowed: a side from 1 to {MAX_SIDE}, or height x width such as 32x64"
        ) from None
    return height, width


def read_axis(one: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    """Reads an axis: a list of values, {from, to, factor}, or {from, to, step}; `to` included where it is hit."""
    listed = several(one)

    def read(value: Any) -> tuple[T, ...]:
        if isinstance(value, dict):
            return tuple(one(n) for n in _range(value))
        return listed(value)

    return read


def _range(value: dict[str, Any]) -> list[int]:
    example = "allowed: a list of values, {from: 256, to: 4096, factor: 2} or {from: 256, to: 4096, step: 256}"
    if set(value) not in ({"from", "to", "factor"}, {"from", "to", "step"}):
        raise ValueError(f"a range with the keys {quoted(', '.join(value))}; {example}")
    low, high = (whole(1, MAX_TOKENS)(value[key]) for key in ("from", "to"))
    if high < low:
        raise ValueError(f"from {low} is above to {high}, so the range is empty; exchange them")
    if "step" in value:
        result = list(range(low, high + 1, whole(1, MAX_TOKENS)(value["step"]))[: MAX_VALUES + 1])
    else:
        factor = value["factor"]
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 1.01 <= factor <= 1e6:
            raise ValueError(f"factor {quoted(factor)}; allowed: a number from 1.01 to 1000000, such as 2")
        result, exact = [], float(low)
        while round(exact) <= high and len(result) <= MAX_VALUES:
            if not result or round(exact) > result[-1]:
                result.append(round(exact))
            exact *= factor
    if len(result) > MAX_VALUES:
        raise ValueError(f"a range of more than {MAX_VALUES} values; use a larger factor or step")
    return result


def read_sweep(value: Any, path: str, notes: Notes) -> Sweep | None:
    """One entry of `sweep:`, or None where it has mistakes (noted)."""
    section = Section(value, path, notes)
    sweep = Sweep(
        section.take("seq_len", read_axis(whole(1, MAX_TOKENS)), ()),
        section.take("image_size", read_axis(read_side), ()),
        section.take("channels", read_axis(whole(1, MAX_CHANNELS)), ()),
    )
    section.close()
    if "seq_len" in section.data and "image_size" in section.data:
        notes.add(path, "seq_len and image_size exclude each other; make two entries of them")
    elif section.ok and not (sweep.seq_len or sweep.image_size):
        notes.add(path, "no size; add `seq_len: [1024]` or `image_size: [32x32]`")
    return sweep if section.ok else None


def read_shape(value: Any, path: str, notes: Notes) -> Shape | None:
    """`problem:`, or None where it has mistakes (noted)."""
    section = Section(value, path, notes)
    given = section.data
    batch = section.take("batch", whole(1, MAX_BATCH), BATCH)
    heads = section.take("heads", whole(1, MAX_CHANNELS), HEADS)
    head_dim = section.take("head_dim", whole(1, MAX_CHANNELS), None)
    channels = section.take("channels", whole(1, MAX_CHANNELS), CHANNELS)
    dtype: Dtype = section.take("dtype", choice(DTYPES), DTYPES[1])
    causal = section.take("causal", flag, False)
    for key in ("seq_len", "image_size"):
        if key in given:
            section.taken.append(key)
            notes.add(section.at(key), f"a size belongs in `sweep:`; write `sweep: [{{{key}: {quoted(given[key])}}}]`")
    section.close()
    if not section.ok:
        return None
    if head_dim is not None and "channels" not in given:
        channels = heads * head_dim
    try:
        whole(1, MAX_CHANNELS)(channels)
    except ValueError as error:
        notes.add(section.at("channels"), f"heads {heads} · head_dim {head_dim} is {error}")
        return None
    return Shape(batch, heads if head_dim is None or "heads" in given else None, head_dim, channels, dtype, causal)


def check_heads(sweeps: dict[str, Sweep], shape: Shape, path: str, notes: Notes) -> None:
    """Notes every number of channels that the heads do not divide. sweeps: by key path; path: that of the shape."""
    for place, sweep in sweeps.items():
        for index, channels in enumerate(sweep.channels or (shape.channels,)):
            try:
                shape.heads_of(channels)
            except ValueError as error:
                notes.add(f"{place}.channels[{index}]" if sweep.channels else f"{path}.channels", str(error))
