"""Reads mappings of a suite key by key and notes every mistake with its key path, so that all are shown at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from attnbench.errors import BadInput, printable
from attnbench.units import quoted, suggestion

T = TypeVar("T")
D = TypeVar("D")

MAX_VALUES = 1000


class Mistakes(ValueError):
    """Several mistakes in one value.

    Args:
        by_path: (key path below the value, sentence) each.
    """

    def __init__(self, by_path: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(sentence for _, sentence in by_path))
        self.by_path = by_path


def mistakes_of(error: ValueError, path: str) -> list[tuple[str, str]]:
    """What is wrong with the value at a key path, each mistake after its own path."""
    by_path = error.by_path if isinstance(error, Mistakes) else [("", str(error))]
    return [(path + below, sentence) for below, sentence in by_path]


@dataclass
class Notes:
    """The mistakes in one file.

    Attributes:
        where: how messages name the file.
        mistakes: a sentence each, after its key path.
    """

    where: str
    mistakes: list[str] = field(default_factory=list)

    def add(self, path: str, sentence: str) -> None:
        """Notes one mistake: `sweep[0].seq_len: -5; allowed: …`."""
        path = printable(path, 200)
        self.mistakes.append(f"{path}: {sentence}" if path else sentence)

    def read(self, path: str, values: Iterable[Any], read: Callable[[Any], T]) -> list[T]:
        """What `read` makes of values; one that it refuses is noted, and left out."""
        result: list[T] = []
        for value in values:
            try:
                result.append(read(value))
            except ValueError as error:
                self.add(path, str(error))
        return result

    def close(self) -> None:
        """Raises one BadInput with all mistakes, or does nothing where there are none."""
        if not self.mistakes:
            return
        unique = list(dict.fromkeys(self.mistakes))
        first, more = unique[:30], len(unique) - 30
        count = "one mistake" if len(unique) == 1 else f"{len(unique)} mistakes"
        lines = [f"{self.where} has {count}; nothing was measured.", *(f"  {line}" for line in first)]
        lines += [f"  and {more} more"] if more > 0 else []
        raise BadInput("\n".join([*lines, f"Correct {'it' if len(unique) == 1 else 'them'} and try again."]))


class Section:
    """One mapping: `take` each key that it may have, then `close` to find the keys it may not.

    Args:
        value: what stands at the path; anything but a mapping is noted as a mistake.
        path: its key path; empty for the file itself.
        notes: where mistakes are noted.
    """

    def __init__(self, value: Any, path: str, notes: Notes) -> None:
        self.path, self.notes = path, notes
        self.data: Mapping[str, Any] = value if isinstance(value, dict) else {}
        self.taken: list[str] = []
        self._mistakes_before = len(notes.mistakes)
        if not isinstance(value, dict):
            notes.add(path, f"{quoted(value)}; allowed: a mapping, `key: value`")

    @property
    def ok(self) -> bool:
        """Whether no mistake was noted since this section was opened."""
        return len(self.notes.mistakes) == self._mistakes_before

    def at(self, key: str) -> str:
        """The key path of a key of this section."""
        return f"{self.path}.{key}" if self.path else key

    def take(self, key: str, read: Callable[[Any], T], default: D) -> T | D:
        """The value of `key` as `read` understands it; `default` where it is absent, or noted as a mistake."""
        self.taken.append(key)
        if key not in self.data:
            return default
        try:
            return read(self.data[key])
        except ValueError as error:
            for path, sentence in mistakes_of(error, self.at(key)):
                self.notes.add(path, sentence)
        return default

    def require(self, key: str, example: str) -> bool:
        """Notes a missing key."""
        if key not in self.data and isinstance(self.data, dict):
            self.notes.add(self.at(key), f"missing. Add for example `{key}: {example}`")
            return False
        return True

    def close(self) -> None:
        """Notes every key that was not taken."""
        for key in self.data:
            if key not in self.taken:
                allowed = ", ".join(self.taken)
                self.notes.add(self.at(key[:60]), f"unknown key{suggestion(key, self.taken)}; allowed: {allowed}")


def several(read: Callable[[Any], T], repeated: bool = False) -> Callable[[Any], tuple[T, ...]]:
    """Reads a list (a single value counts as a list of one). repeated: whether a value may be in it twice."""

    def read_all(value: Any) -> tuple[T, ...]:
        if not isinstance(value, list):
            return (read(value),)
        if not value:
            raise ValueError("empty; give at least one value")
        if len(value) > MAX_VALUES:
            raise ValueError(f"{len(value)} values; allowed: at most {MAX_VALUES}")
        elements: list[T] = []
        distinct: set[T] = set()
        mistakes: list[tuple[str, str]] = []
        for index, item in enumerate(value):
            try:
                element = read(item)
                if element in distinct and not repeated:
                    raise ValueError(f"{quoted(item)} is given twice; remove one")
                elements.append(element)
                distinct.add(element)
            except ValueError as error:
                mistakes += mistakes_of(error, f"[{index}]")
        if mistakes:
            raise Mistakes(mistakes)
        return tuple(elements)

    return read_all
