"""What is measured: a problem (the shapes), a mode, and a cell with its stable key. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

from attnbench.terminal import escaped
from attnbench.units import quoted

Mode = Literal["fwd", "fwd_bwd"]
Scope = Literal["core", "layer", "block"]
Domain = Literal["sequence", "image"]
Dtype = Literal["float64", "float32", "bfloat16", "float16"]
ParamValue = bool | int | float | str
Params = Mapping[str, Any]  # every value a ParamValue

MODES: tuple[Mode, ...] = get_args(Mode)
SCOPES: tuple[Scope, ...] = get_args(Scope)
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

MODES_SHORT: dict[str, Mode] = {"infer": "fwd", "train": "fwd_bwd"}
DTYPES_SHORT: dict[str, Dtype] = {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""The same as people type them."""

ITEM_BYTES: dict[Dtype, int] = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


class Followed(int):
    """A number of a problem that nobody gave: it is that of another field, and stays so where that one changes."""


@dataclass(frozen=True)
class Problem:
    """The shapes an operator is given.

    Args:
        seq_len: tokens N.
        channels: C = H · D, of all query heads together.
        heads: H, of queries.
        batch: samples B.
        dtype: the working dtype.
        causal: whether token i may see only tokens j ≤ i.
        height, width: both None for a sequence; of an image N = height · width, tokens in row-major order.
        kv_heads: heads Hk of keys and values; query head h reads ⌊h · Hk / H⌋. Not given: H.
        query_len: how many tokens Q are new, the last ones; of those before there is a state. Not given: N, of which
            nothing was there before.

    Raises: ValueError where heads do not divide channels, kv_heads do not divide heads, height · width is not seq_len,
    query_len is more than seq_len, or less and the problem is not causal.
    """

    seq_len: int
    channels: int
    heads: int = 1
    batch: int = 1
    dtype: Dtype = "float32"
    causal: bool = False
    height: int | None = None
    width: int | None = None
    kv_heads: int = Followed()
    query_len: int = Followed()

    def __post_init__(self) -> None:
        for name, followed in (("kv_heads", self.heads), ("query_len", self.seq_len)):
            if isinstance(getattr(self, name), Followed) or getattr(self, name) == followed:
                object.__setattr__(self, name, Followed(followed))
        if self.heads < 1 or self.channels % self.heads:
            raise ValueError(f"channels {self.channels} is not divisible by heads {self.heads}")
        if (self.height is None) != (self.width is None):
            raise ValueError("height and width go together")
        if self.height is not None and self.width is not None and self.height * self.width != self.seq_len:
            raise ValueError(f"{self.height}x{self.width} is not {self.seq_len} tokens")
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads {self.kv_heads} does not divide heads {self.heads}; each is read by as many of these"
            )
        if not 1 <= self.query_len <= self.seq_len:
            raise ValueError(
                f"query_len {self.query_len} is more than the {self.seq_len} tokens it is part of; give fewer"
            )
        if self.query_len < self.seq_len and not self.causal:
            raise ValueError(
                f"query_len {self.query_len} of {self.seq_len} tokens needs causal: true; only a causal form can "
                "continue from what is kept of earlier tokens"
            )

    @classmethod
    def image(cls, height: int, width: int, *shape: Any, **others: Any) -> Problem:
        """An image of height × width pixels, one token each. shape, others: the fields from `channels` on."""
        return cls(height * width, *shape, **{**others, "height": height, "width": width})

    @property
    def head_dim(self) -> int:
        """D, the channels of one head."""
        return self.channels // self.heads

    @property
    def kv_channels(self) -> int:
        """Hk · D, the channels of keys and of values."""
        return self.kv_heads * self.head_dim

    @property
    def group(self) -> int:
        """H / Hk, the query heads that read one head of keys and values."""
        return self.heads // self.kv_heads

    @property
    def past(self) -> int:
        """N − Q, the tokens of which only a state is there."""
        return self.seq_len - self.query_len

    @property
    def before(self) -> Problem:
        """The problem of the first N − Q tokens, all at once: what its state is made by. None of an image's shape."""
        return replace(self, seq_len=self.past, query_len=Followed(), height=None, width=None)

    @property
    def domain(self) -> Domain:
        """What the tokens are: a sequence, or the pixels of an image."""
        return "sequence" if self.height is None else "image"

    @property
    def size(self) -> str:
        """How the size is written: `n1024` for a sequence, `14x28` (height × width) for an image."""
        return f"n{self.seq_len}" if self.height is None else f"{self.height}x{self.width}"

    @property
    def item_bytes(self) -> int:
        """Bytes of one element of the working dtype."""
        return ITEM_BYTES[self.dtype]

    @property
    def given(self) -> dict[str, int]:
        """Those of LATER that are not their default, by name."""
        numbers = {name: getattr(self, name) for name in LATER}
        return {name: n for name, n in numbers.items() if n is not None and not isinstance(n, Followed)}

    def with_sizes(self, **sizes: int) -> Problem:
        """The same problem at other sizes, by field or head_dim, which sets channels, or the heads of given ones."""
        head_dim = sizes.pop("head_dim", None)
        if head_dim is not None and "channels" in sizes:
            sizes["heads"] = sizes["channels"] // head_dim
        elif head_dim is not None:
            sizes["channels"] = head_dim * sizes.get("heads", self.heads)
        return replace(self, **sizes)  # type: ignore[arg-type]

    def with_dtype(self, dtype: Dtype) -> Problem:
        """The same problem in another working dtype."""
        return replace(self, dtype=dtype)


SIZES = ("batch", "heads", "seq_len", "channels")
"""The numbers that every problem has."""

SIDES = ("height", "width")
"""The numbers that an image has; None of a sequence."""

_NAMES = [field.name for field in fields(Problem)]

LATER = tuple(_NAMES[_NAMES.index(SIDES[-1]) + 1 :])
"""Numbers that problems got after the first runs were stored: a key or a stored visit names one where it was given."""


def canonical_params(params: Params) -> str:
    """The one text form of params: JSON, keys sorted, no spaces."""
    return json.dumps(dict(params), sort_keys=True, separators=(",", ":"), allow_nan=False)


def operator_and_impl(name: str) -> tuple[str, str]:
    """Of `operator[:impl]`, as baselines and searches are named; without an impl the reference."""
    operator, _, impl = name.partition(":")
    return operator, impl or "reference"


def operator_with_impl(operator: str, impl: str) -> str:
    """`operator[:impl]`, the opposite of `operator_and_impl`: without an impl where it is the reference."""
    return operator if impl == "reference" else f"{operator}:{impl}"


class KeyParts(NamedTuple):
    """What a cell's key is built of, in its order, each as it stands there (`full`, `b1`, `n1024`)."""

    operator: str
    impl: str
    scope: str
    mode: str
    dtype: str
    causality: str
    batch: str
    heads: str
    channels: str
    size: str
    params: str
    later: tuple[str, ...] = ()
    """Of LATER those that were given, in a key before the params."""

    @property
    def key(self) -> str:
        """The key that has these parts."""
        return ".".join((*self[:10], *self.later, self.params))


def key_parts(key: str) -> KeyParts:
    """The parts of a cell's key: the opposite of `Cell.key`."""
    *parts, params = key.split(".")
    return KeyParts._make((*parts[:10], params, tuple(parts[10:])))


def block_of(key: str) -> str:
    """What the cells of a block, one panel at one size, have in common in their keys: `core.fwd.float32. … .n1024`."""
    parts = key_parts(key)
    return ".".join((*parts[2:10], *parts.later))


@dataclass(frozen=True)
class Cell:
    """One thing to measure. `params` has every default resolved (see `operator.resolve`)."""

    operator: str
    impl: str
    scope: Scope
    mode: Mode
    problem: Problem
    params: Params

    @cached_property
    def key(self) -> str:
        """The stable name of this cell: the same in every run, on every machine, safe in a shell.

        `performer.reference.core.fwd.float32.full.b1.h8.c256.n1024.p5d1f9b2a`: params as the first 8 hex
        digits of the SHA-256 of their canonical JSON; the impl's `:` stays (`softmax.cuda:flash. …`).
        """
        p = self.problem
        causality = "causal" if p.causal else "full"
        digest = hashlib.sha256(canonical_params(self.params).encode()).hexdigest()[:8]
        named = (self.operator, self.impl, self.scope, self.mode, p.dtype, causality)
        sizes = (f"b{p.batch}", f"h{p.heads}", f"c{p.channels}", p.size)
        later = tuple(f"{name}{number}" for name, number in p.given.items())
        return KeyParts(*named, *sizes, f"p{digest}", later).key


BASELINE = "softmax"
"""The operator that the others are compared with where a suite names none."""


CELL_COLUMNS = (
    "operator", "impl", "scope", "params", "dtype", "mode",
    "batch", "heads", "seq_len", "height", "width", "channels", "causal", *LATER,
)  # fmt: skip
"""What identifies a cell: a visit carries these too, and a series is the rows that differ in one axis of them."""


def problem_of(columns: Mapping[str, Any]) -> Problem:
    """The problem that CELL_COLUMNS describe. Raises ValueError where they contradict each other."""
    names = [name for name in _NAMES if name not in LATER or columns.get(name) is not None]
    return Problem(**{name: columns[name] for name in names})


def cell_of(columns: Mapping[str, Any]) -> Cell:
    """The cell that CELL_COLUMNS describe. Raises ValueError where they contradict each other."""
    params = json.loads(columns["params"])
    problem = problem_of(columns)
    cell = Cell(columns["operator"], columns["impl"], columns["scope"], columns["mode"], problem, params)
    if canonical_params(params) != columns["params"]:
        raise ValueError(f"params = {quoted(columns['params'])} is not in canonical form")
    texts = [text for pair in params.items() for text in pair if isinstance(text, str)]
    if texts != list(map(escaped, texts)):
        raise ValueError(f"params = {quoted(columns['params'])} holds control characters")
    return cell


def columns_of(cell: Cell) -> dict[str, Any]:
    """CELL_COLUMNS of a cell: the opposite of `cell_of`."""
    values = {**vars(cell.problem), **dict.fromkeys(LATER), **cell.problem.given, **vars(cell)}
    return {name: values[name] for name in CELL_COLUMNS} | {"params": canonical_params(cell.params)}
