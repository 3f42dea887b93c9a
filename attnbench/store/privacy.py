"""Removes absolute paths, and with them user names, from text that is stored."""

from __future__ import annotations

import os
import re

_ABSOLUTE = re.compile(r"(?:(?<![\w~.\-/])|(?<=://)|(?<=\s-[A-Za-z]))/(?!/)(?:[^\s/'\"`:;,()<>\[\]{}|\\]+/)+")
"""The folders of an absolute path, at least one. It ends at a blank or at a character that usually encloses a path."""
_QUOTED = re.compile(r"(?<=')/[^'\n]*/|(?<=\")/[^\"\n]*/")
"""The same within quotes, where a path may contain blanks."""


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
