"""Reads text and JSON objects from files that may be damaged or foreign: validated, or BadInput."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any

from attnbench import files
from attnbench.errors import BadInput
from attnbench.terminal import escaped

REPAIR = "Restore the file from where it was measured, or measure again."
MOST = 1e30
"""Above any count, size or time that can occur."""


def read_text(path: Path) -> str:
    """The UTF-8 text of a regular file. Raises BadInput where it cannot be read as such."""
    return decoded(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """The content of a regular file. Raises BadInput where it cannot be read."""
    try:
        return files.read(path)
    except (OSError, ValueError) as error:
        raise files.unreadable(path, error) from None


def decoded(data: bytes, path: Path, *, torn: bool = False) -> str:
    """Bytes as text. torn: they may end within a character. Raises BadInput where they are not UTF-8."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data, final=not torn)
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text (byte {error.start}). {REPAIR}") from None


def parse_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object in a text; control characters in its strings are escaped.

    Args:
        text: JSON.
        where: its file and line, for messages.
    Raises: BadInput for another type, NaN, or a repeated name.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
        value = _escaped(value) if _SUSPECT.search(text) else value
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where}: not a JSON object: {error}. {REPAIR}") from None
    if not isinstance(value, dict):
        raise BadInput(f"{where}: a JSON {type(value).__name__}, not an object. {REPAIR}")
    return value


_SUSPECT = re.compile(r"\\[bfnrtu]|[^ -~\n]")
"""A JSON text without a match contains no control characters."""


def _escaped(value: Any) -> Any:
    """A parsed value with the control characters in its strings escaped."""
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, dict):
        return {escaped(name): _escaped(item) for name, item in value.items()}
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return members


def is_whole(value: object) -> bool:
    """Whether a value is a whole number of 0 … 2⁶³ − 1."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def is_number(value: object) -> bool:
    """Whether a value is 0 or a number from 10⁻³⁰ to 10³⁰."""
    return is_whole(value) or (isinstance(value, float) and (value == 0 or 1 / MOST < value < MOST))


def is_text(value: object) -> bool:
    """Whether a value is text."""
    return isinstance(value, str)


def is_device_id(value: object) -> bool:
    """Whether a value is a device's anonymous id, or empty."""
    return isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{0,32}", value))


def is_name(value: object) -> bool:
    """Whether a value is a name as files of attnbench have them: lower-case letters, digits and _."""
    return isinstance(value, str) and bool(re.fullmatch("[a-z][a-z0-9_]{0,30}", value))
