"""What a mutation is, and how text and data are spoilt whatever they mean."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any, Literal

Expected = Literal["same", "refused", "honest"]
"""same: it reads as the original does. refused: BadInput. honest: refused, or what is shown is what the file says."""


@dataclass(frozen=True)
class Mutation:
    """kind: what was done, in words. expected: what must become of it."""

    kind: str
    expected: Expected


EVIL: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 10**30, -(10**30), 1e308, 5e-324, math.nan, math.inf, "", "x" * 500, "32x64", "-5%",
    "1s", "1e400", "0x10", "NaN", [], {}, [[]], [None], {"a": 1}, {"from": 1, "to": 2}, {"from": "a", "to": []},
    ["cuda:" + "x" * 300], "\u2028", "é", "\x00", "\x1b[2J", "[/bold]", "../../etc/passwd", "softmax", [1] * 3000,
)  # fmt: skip


_BITS = (
    b"&a ",
    b"*a ",
    b"!!x ",
    b"[",
    b"}",
    b": ",
    b"\t",
    b"\xff",
    b"\0",
    b"- ",
    b"'",
    b'"',
    b"\r",
    b"%",
    b"\\",
    b"0",
    b"e9",
    b"-",
    b",",
    b"\n",
)


def scratched(data: bytes, draw: random.Random) -> bytes:
    """A few bytes deleted, inserted, changed, or copied from before."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 5)):
        at = draw.randrange(len(found))
        what = draw.randrange(5)
        if what == 0:
            del found[at : at + draw.randint(1, 20)]
        elif what == 1:
            found[at:at] = draw.choice(_BITS)
        elif what == 2:
            found[at] = draw.randrange(256)
        elif what == 3:
            found[at:at] = found[max(0, at - 40) : at]
        elif found[at : at + 1].isdigit():
            found[at : at + 1] = str(draw.randrange(10)).encode()
        if not found:
            break
    return bytes(found)


def spoil(data: Any, draw: random.Random) -> None:
    """Gives one place of nested data a value that it should not have, or another name."""
    node = data
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = draw.choice(keys)
        if isinstance(node[key], (dict, list)) and node[key] and draw.random() < 0.6:
            node = node[key]
            continue
        if isinstance(node, dict) and draw.random() < 0.2:
            node[str(key) + "x"] = node.pop(key)
        else:
            node[key] = draw.choice(EVIL)
        return
