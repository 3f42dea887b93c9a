"""Arguments of `import attnbench` that are texts, names or folders: each is read, or refused by its name."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from attnbench.errors import BadInput
from attnbench.naming import from_python
from attnbench.units import quoted

P = ParamSpec("P")
R = TypeVar("R")


def named(function: Callable[P, R]) -> Callable[P, R]:
    """A function of Python, whose mistakes are told by the names of its arguments."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with from_python():
            return function(*args, **kwargs)

    return call


def truth(argument: str, value: Any) -> bool:
    """True or False.

    Raises: BadInput where it is neither.
    """
    if isinstance(value, bool):
        return value
    raise BadInput(f"{argument} = {quoted(value)}; allowed: True, False.")


def names(argument: str, one_or_several: Any) -> tuple[str, ...]:
    """Names as a tuple; one alone, or several with commas, may be a text.

    Args:
        argument: what the argument is called.

    Raises: BadInput where it is neither a text nor several.
    """
    several = one_or_several.split(",") if isinstance(one_or_several, str) else one_or_several
    if isinstance(several, Iterable) and not isinstance(several, (bytes, Mapping)):
        several = tuple(several)
        if all(isinstance(name, str) for name in several):
            return tuple(name.strip() for name in several)
    raise BadInput(f"{argument} = {quoted(one_or_several)}; allowed: a name, or several, as a list or with commas.")


def text(argument: str, value: Any) -> str | None:
    """A text, or None.

    Raises: BadInput where it is neither.
    """
    if value is None or isinstance(value, str):
        return value
    raise BadInput(f"{argument} = {quoted(value)}; allowed: a text, or None.")


def folder(argument: str, value: Any) -> Path:
    """A folder by its path, or that of a `StoredRun`; `~` is the user's own.

    Raises: BadInput where it is no path.
    """
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if isinstance(path, str):
        return Path(path).expanduser()
    raise BadInput(f"{argument} = {quoted(value)}; allowed: the path of a folder, as a text or a Path.")


def optional_folder(argument: str, value: Any) -> Path | None:
    """`folder`, or None."""
    return None if value is None else folder(argument, value)
