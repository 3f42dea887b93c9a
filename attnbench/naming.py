"""How messages call what was asked for: an option of the command line, or an argument of Python."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_from_python: ContextVar[bool] = ContextVar("from_python", default=False)

_SEVERAL = {"operator": "operators", "impl": "impls", "param": "params", "metric": "metrics"}
"""Options that are repeated, by the arguments that take all of their values."""


def option(name: str) -> str:
    """What `seq_len` is called where it was given: `--seq-len`, or the argument `seq_len`."""
    return _SEVERAL.get(name, name) if _from_python.get() else f"--{name.replace('_', '-')}"


def asker() -> str:
    """Where options stand."""
    return "the call" if _from_python.get() else "the command line"


@contextlib.contextmanager
def from_python() -> Iterator[None]:
    """In its block messages name arguments."""
    before = _from_python.set(True)
    try:
        yield
    finally:
        _from_python.reset(before)
