"""Reads an untrusted YAML file into plain data: dict, list, str, int, float, bool, None.

Only YAML 1.2's plain scalars are numbers (`1:30`, `010` and `0x20` stay text), also under explicit tags; keys are text,
other tags and merge keys are refused, and size, depth, values and expanded aliases are bounded, so that no file can
execute code, exhaust memory or take longer than a second. `scalar` reads one value of a command line by the same rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from attnbench import files
from attnbench.errors import BadInput
from attnbench.units import quoted

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16
MAX_NODES = 10_000

_TAG = "tag:yaml.org,2002:"
_SCALARS = (
    ("null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})$"), list("-+0123456789")),
    (
        "float",
        re.compile(
            r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?$|[-+]?[0-9]+[eE][-+]?[0-9]+$"
            r"|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
        ),
        list("-+.0123456789"),
    ),
)


class _Bounded(yaml.composer.Composer):
    """Composes nodes within MAX_DEPTH and MAX_NODES. where: the file."""

    where: str
    depth = nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        self.nodes += 1
        if self.depth > MAX_DEPTH or self.nodes > MAX_NODES:
            mark = self.peek_event().start_mark  # type: ignore[attr-defined]  # of the parser beside it
            deep = self.depth > MAX_DEPTH
            reason = f"nested more than {MAX_DEPTH} deep" if deep else f"more than {MAX_NODES} values"
            raise _refused(self.where, mark, reason)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


class _Loader(_Bounded, yaml.SafeLoader):
    """Resolves plain scalars as _SCALARS say. where: the file."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute

    def __init__(self, stream: str, where: str) -> None:
        yaml.SafeLoader.__init__(self, stream)
        self.where = where


for _name, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)

_PATTERNS = {name: pattern for name, pattern, _ in _SCALARS}


def _refused(where: str, mark: yaml.Mark, reason: str) -> BadInput:
    return BadInput(f"{where}, line {mark.line + 1}, column {mark.column + 1}: {reason}. Correct it there.")


def read_text(path: Path) -> str:
    """The file's text. Raises BadInput where it is missing, not a file, too large, binary, or not UTF-8."""
    try:
        if not path.exists():
            raise BadInput(
                f"{path} does not exist. Give the path of a suite, or a name that `attnbench list suites` shows."
            )
        if not path.is_file():
            raise BadInput(f"{path} is not a file. Give the path of a suite (YAML).")
        data = files.read(path, MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{path} cannot be read: {reason}. Give the path of a suite (YAML).") from None
    if len(data) > MAX_BYTES:
        raise BadInput(
            f"{path} is larger than {MAX_BYTES // 1024} KiB; a suite is a page of YAML. Is it the right file?"
        )
    if b"\0" in data:
        raise BadInput(f"{path} is a binary file (or UTF-16); a suite is YAML in UTF-8. Is it the right file?")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise BadInput(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; a suite is YAML in UTF-8. "
            "Save the file as UTF-8."
        ) from None


def parse_shipped(text: str, where: str) -> dict[str, Any]:
    """As `parse`, of a file that is part of attnbench: by libyaml, where PyYAML has it, which takes a seventh of
    the time. It words mistakes in another way, so a text with one is read again."""
    if yaml.__with_libyaml__:
        with suppress(yaml.YAMLError, BadInput, RecursionError, ValueError):
            node = _libyaml()(text, where).get_single_node()
            data = _Plain(where).value(node, ()) if node is not None else None
            if isinstance(data, dict):
                return data
    return parse(text, where)


@cache
def _libyaml() -> Any:
    """A loader that differs from `_Loader` in its parser alone."""

    class Loader(_Bounded, yaml.CSafeLoader):
        yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

        def __init__(self, stream: str, where: str) -> None:
            yaml.CSafeLoader.__init__(self, stream)
            yaml.composer.Composer.__init__(self)
            self.where = where

    return Loader


def parse(text: str, where: str) -> dict[str, Any]:
    """The mapping that the YAML text holds. `where`: the file's name, for messages. Raises BadInput."""
    loader = None
    try:
        loader = _Loader(text, where)
        node = loader.get_single_node()
        data = _Plain(where).value(node, ()) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = error.problem or error.context or "it cannot be parsed"
        raise BadInput(f"{where}{place}: not valid YAML: {problem}. Correct the syntax there.") from None
    except yaml.reader.ReaderError as error:
        raise BadInput(f"{where}: a character that YAML does not allow ({error.reason}). Remove it.") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise BadInput(f"{where}: not readable as YAML ({error}). Correct it.") from None
    finally:
        if loader is not None:
            loader.dispose()
    if data is None:
        raise BadInput(f"{where} is empty. A suite needs at least `operators:` and `sweep:`; suites/quick.yaml is one.")
    if not isinstance(data, dict):
        kind = "a list" if isinstance(data, list) else "a single value"
        raise BadInput(f"{where} holds {kind}. A suite is a mapping: `operators:`, `sweep:` and so on.")
    return data


def scalar(text: str) -> str | int | float | bool | None:
    """One scalar as a suite reads it, plain or quoted.

    Raises: ValueError for other YAML: a list, a mapping, a tag, an anchor, an alias, or only a comment.
    """
    loader = None
    try:
        loader = _Loader(text, "")
        events = [loader.get_event() for _ in range(4) if loader.check_event()]  # type: ignore[no-untyped-call]
    except (yaml.YAMLError, RecursionError):
        events = []
    finally:
        if loader is not None:
            loader.dispose()
    kinds = (yaml.StreamStartEvent, yaml.DocumentStartEvent, yaml.ScalarEvent, yaml.DocumentEndEvent)
    alone = len(events) == 4 and all(map(isinstance, events, kinds)) and not events[1].explicit
    event = events[2] if alone else None
    if event is None or event.tag or event.anchor:
        raise ValueError(f"{quoted(text)} is not one plain value; allowed: a text, a number, true or false")
    kind = next((k for k, pattern in _PATTERNS.items() if event.implicit[0] and pattern.fullmatch(event.value)), "str")
    value: str | int | float | bool | None = _READ[kind](event.value)
    return value


class _Plain:
    """Turns composed nodes into plain data; a node counts as often as aliases repeat it."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.nodes = 0

    def value(self, node: yaml.Node, above: tuple[int, ...]) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self.refused(node, f"more than {MAX_NODES} values once aliases are expanded")
        if id(node) in above:
            raise self.refused(node, "an alias that contains itself")
        below = (*above, id(node))
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self.mapping(node, below)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(child, below) for child in node.value]
        if isinstance(node, yaml.ScalarNode):
            return _READ[self.kind(node)](node.value)
        raise self.refused(node, f"the tag {node.tag[:60]} is not allowed")

    def kind(self, node: yaml.ScalarNode) -> str:
        """null, bool, int, float or str: resolved from a plain scalar's text, or its explicit tag if the text fits."""
        kind = node.tag.removeprefix(_TAG)
        if kind not in _READ:
            raise self.refused(node, f"the tag {node.tag[:60]} is not allowed")
        if kind != "str" and not _PATTERNS[kind].fullmatch(node.value):
            raise self.refused(node, f"'{node.value[:60]}' is no {kind}")
        return kind

    def mapping(self, node: yaml.MappingNode, below: tuple[int, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.refused(key, "a key must be plain text")
            self.kind(key)
            if key.value == "<<":
                raise self.refused(key, "merge keys (<<) are not supported; write the keys out")
            if key.value in result:
                raise self.refused(key, f"the key '{key.value[:60]}' is given twice")
            result[key.value] = self.value(child, below)
        return result

    def refused(self, node: yaml.Node, reason: str) -> BadInput:
        return _refused(self.where, node.start_mark, reason)


_READ: dict[str, Any] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    "str": str,
}


def written(data: Mapping[str, Any]) -> str:
    """YAML that says what the data say."""
    return str(yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True))
