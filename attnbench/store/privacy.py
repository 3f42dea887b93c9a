"""Removes from text that is stored or passed on where its user works: absolute paths, and names of users and hosts."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import socket
from collections.abc import Iterator
from functools import cache

_ABSOLUTE = re.compile(r"(?:(?<![\w~.\-/])|(?<=://)|(?<=\s-[A-Za-z]))/(?!/)(?:[^\s/'\"`:;,()<>\[\]{}|\\]+/)+")
"""The folders of an absolute path, at least one. It ends at a blank or at a character that usually encloses a path."""
_QUOTED = re.compile(r"(?<=')/[^'\n]*/|(?<=\")/[^\"\n]*/")
"""The same within quotes, where a path may contain blanks."""


_ADDRESS = re.compile(
    r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)*"  # user@host
    r"|(?<![\w.])(?<!==)(?<!version )(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\w)"  # an IPv4 address
)

_COMMON = frozenset(
    (
        *(
            "root",
            "user",
            "users",
            "admin",
            "nobody",
            "ubuntu",
            "debian",
            "runner",
            "docker",
            "linux",
            "python",
            "torch",
        ),
        *(
            "localhost",
            "localdomain",
            "host",
            "server",
            "node",
            "worker",
            "work",
            "home",
            "test",
            "build",
            "cpu",
            "gpu",
        ),
        *("cuda", "memory", "name", "address"),
    )
)
"""Names that tell nobody apart, and that texts have as words."""

_SHORTEST_NAME = 3
"""A shorter one is more often another word."""


def without_private(text: str) -> str:
    """A text for people without absolute paths, addresses, and the names of this machine and its user.

    The names of other machines nobody here knows: a run loses those of its own as it is stored.
    """
    if not text:
        return text
    text = without_paths(text)
    if "@" in text or text.count(".") > 2:
        text = _ADDRESS.sub("(an address)", text)
    names = _names()
    return text if names is None else names.sub("(a name)", text)


@cache
def _names() -> re.Pattern[str] | None:
    """What finds the names of this machine and of its user as words of their own; None where they have none."""
    names = {name for name in _private_names() if len(name) >= _SHORTEST_NAME and name.lower() not in _COMMON}
    words = "|".join(re.escape(name) for name in sorted(names, key=lambda name: (-len(name), name)))
    return re.compile(rf"(?<![\w-])(?:{words})(?![\w-])") if names else None


def _private_names() -> Iterator[str]:
    host = socket.gethostname()
    yield from (host, host.partition(".")[0])
    yield from (os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME", "HOSTNAME"))
    with contextlib.suppress(OSError, ImportError, KeyError, AttributeError):  # no entry, or no such system
        yield getpass.getuser()


def without_paths(text: str) -> str:
    """A text with absolute paths shortened.

    A path below the current directory becomes relative, one below the user's home begins with `~/`, of any other only
    the file's name remains. Relative paths and URLs stay as they are.
    """
    if "/" not in text:
        return text
    for folder, replacement in _replacements():
        text = re.sub(rf"{re.escape(folder)}/", f"{replacement}/".removeprefix("./"), text)
        text = re.sub(rf"{re.escape(folder)}(?![\w.-])", replacement, text)
    return _ABSOLUTE.sub("", _QUOTED.sub("", text))


def _replacements() -> list[tuple[str, str]]:
    """(folder, replacement) for the current directory and the home, as named and resolved; the longest first."""
    try:
        directory = os.getcwd()
    except OSError:  # it was removed
        directory = ""
    by_folder: dict[str, str] = {}
    for folder, replacement in ((os.path.expanduser("~"), "~"), (os.environ.get("PWD", ""), "."), (directory, ".")):
        if os.path.isabs(folder):
            by_folder |= {folder.rstrip("/"): replacement, os.path.realpath(folder).rstrip("/"): replacement}
    by_folder.pop("", None)
    return sorted(by_folder.items(), key=lambda item: -len(item[0]))
