"""What is stored tells nobody where its user works: no absolute path, and with it no name of a user."""

from __future__ import annotations

import os
import re

_ABSOLUTE = re.compile(r"(?:(?<![\w~.\-/])|(?<=://)|(?<=\s-[A-Za-z]))/(?!/)(?:[^\s/'\"`:;,()<>\[\]{}|\\]+/)+")
"""The folders of an absolute path, at least one. A path ends at a blank and at what usually encloses or follows one."""
_QUOTED = re.compile(r"(?<=')/[^'\n]*/|(?<=\")/[^\"\n]*/")
"""The same in quotes, in which blanks end nothing."""


def without_paths(text: str) -> str:
    """The text with absolute paths cut: of what is below the current directory the rest stays, of what is below the
    user's home `~/…`, of any other the file's name. Relative paths and addresses of the web stay."""
    if "/" not in text:
        return text
    for folder, instead in _known_folders():
        text = re.sub(rf"{re.escape(folder)}/", f"{instead}/".removeprefix("./"), text)
        text = re.sub(rf"{re.escape(folder)}(?![\w.-])", instead, text)
    return _ABSOLUTE.sub("", _QUOTED.sub("", text))


def _known_folders() -> list[tuple[str, str]]:
    """The current directory and the home, as they are named and as they are, and what stands for each; the longest
    first."""
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        here = ""
    known: dict[str, str] = {}
    for folder, instead in ((os.path.expanduser("~"), "~"), (os.environ.get("PWD", ""), "."), (here, ".")):
        if os.path.isabs(folder):
            known |= {folder.rstrip("/"): instead, os.path.realpath(folder).rstrip("/"): instead}
    known.pop("", None)
    return sorted(known.items(), key=lambda item: -len(item[0]))
