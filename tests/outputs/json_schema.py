"""A validator for the part of JSON Schema (2020-12) that attnbench's schemas use; it refuses to ignore the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}
ANNOTATIONS = {"$schema", "$defs", "title", "description"}


def mistakes(
    value: Any, schema: Mapping[str, Any], root: Mapping[str, Any] | None = None, at: str = "$"
) -> Iterator[str]:
    """Where a value is not as the schema says, and by which keyword."""
    root = root or schema
    for keyword, wanted in schema.items():
        if keyword in ANNOTATIONS:
            continue
        if keyword == "$ref":
            yield from mistakes(value, root["$defs"][wanted.removeprefix("#/$defs/")], root, at)
        elif keyword == "properties":
            for name in wanted.keys() & value.keys() if isinstance(value, dict) else ():
                yield from mistakes(value[name], wanted[name], root, f"{at}.{name}")
        elif keyword == "additionalProperties":
            for name in value.keys() - schema["properties"].keys() if isinstance(value, dict) else ():
                yield from mistakes(value[name], wanted, root, f"{at}.{name}")
        elif keyword == "items":
            for i, each in enumerate(value if isinstance(value, list) else ()):
                yield from mistakes(each, wanted, root, f"{at}[{i}]")
        elif not _holds(keyword, wanted, value):
            yield f"{at}: {keyword}"


def _holds(keyword: str, wanted: Any, value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    match keyword:
        case "type":
            return any(_is(value, name) for name in ([wanted] if isinstance(wanted, str) else wanted))
        case "const":
            return bool(value == wanted)
        case "enum":
            return value in wanted
        case "required":
            return not isinstance(value, dict) or not set(wanted) - value.keys()
        case "minItems":
            return not isinstance(value, list) or len(value) >= wanted
        case "minimum":
            return not number or value >= wanted
        case "exclusiveMinimum":
            return not number or value > wanted
        case "exclusiveMaximum":
            return not number or value < wanted
    raise ValueError(f"{keyword}: not a keyword that this validator knows")


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, TYPES[name])  # type: ignore[arg-type]
