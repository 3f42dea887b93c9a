"""One self-contained page: blocks of HTML within a size, and the only door by which text gets into them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench import __version__
from attnbench.store.privacy import without_paths
from attnbench.terminal import escaped
from attnbench.units import first_few

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

    from attnbench.outputs._run_tables import Part

LIMIT_BYTES = 1_500_000
"""Of a page; what would make it larger is left out, and named."""

FILES = Path(__file__).parent / "_page"

_LONGEST_TITLE = 300

_MOST_NAMED = 20
"""Of what is left out, so many are named."""


@dataclass(frozen=True)
class Block:
    """A part of a page.

    Args:
        name: what it is called where it is left out.
        html: its markup.
        rank: the larger, the sooner it is left out; 0: never.
    """

    name: str
    html: Markup
    rank: int = 0


def text(value: Any) -> Any:
    """A value as a page may hold it: no private path, no control character; markup of this package's own stays."""
    return value if hasattr(value, "__html__") or not isinstance(value, str) else escaped(without_paths(value))


def data(value: Any) -> Any:
    """The same of all text in plain data."""
    if isinstance(value, Mapping):
        return {text(str(name)): data(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [data(each) for each in value]
    return text(value)


def script_data(kind: str, value: Any) -> Markup:
    """Plain data as an element that scripts read. kind: its class."""
    from jinja2.utils import htmlsafe_json_dumps
    from markupsafe import Markup

    dumped = htmlsafe_json_dumps(data(value), json.dumps, separators=(",", ":"), allow_nan=False)
    return Markup('<script type="application/json" class="{}">{}</script>\n').format(kind, dumped)


def part(name: str, *values: Any) -> Markup:
    """The markup of a macro of parts.html."""
    from markupsafe import Markup

    return Markup(getattr(_templates().get_template("parts.html").module, name)(*values))


def section(name: str, place: str, heading: str, content: Any) -> Block:
    """A part with a heading. place: by which links find it."""
    return Block(name, part("section", place, heading, content), rank=1)


def tables(each: Part, is_open: bool, before: str = "") -> Block:
    """The tables of a part, below its heading, which opens and closes them. before: of the heading."""
    from markupsafe import Markup

    content = Markup("").join(part("text_table", table) for table in each.text_tables) + part("notes", each.notes)
    return Block(f"tables of {each.heading}", part("panel", before + each.heading, content, is_open), rank=3)


def page(title: str, subtitle: Sequence[str], blocks: Sequence[Block], scripts: Iterable[str], rest: str) -> str:
    """The document.

    Args:
        title: its heading.
        subtitle: lines below it.
        blocks: in their order.
        scripts: sources that run, in their order.
        rest: where what is left out can be read.
    """
    from markupsafe import Markup

    sources = [Markup(_ascii(source)) for source in (*scripts, _file("page.js"))]
    values = {
        "title": title[:_LONGEST_TITLE],
        "subtitle": subtitle,
        "version": __version__,
        "policy": _policy(sources),
        "style": Markup(_file("page.css")),
        "scripts": sources,
    }
    frame = _templates().get_template("page.html")
    room = LIMIT_BYTES - _size(frame.render(values, left_out=_left_out(blocks, rest), body=""))
    kept = _fitting(blocks, room)
    body = Markup("").join(blocks[i].html for i in sorted(kept))
    missing = [block for i, block in enumerate(blocks) if i not in kept]
    return _referenced(frame.render(values, left_out=_left_out(missing, rest), body=body))


def _fitting(blocks: Sequence[Block], room: int) -> set[int]:
    """The positions of those that there is room for, by rank: after one that does not fit smaller ones still may."""
    kept = set()
    for i in sorted(range(len(blocks)), key=lambda i: blocks[i].rank):
        size = _size(blocks[i].html)
        if not blocks[i].rank or size <= room:
            kept.add(i)
            room -= size
    return kept


def _left_out(blocks: Sequence[Block], rest: str) -> Markup:
    from markupsafe import Markup

    if not blocks:
        return Markup("")
    names = first_few([block.name[:200] for block in blocks], _MOST_NAMED)
    return part("left_out", names, f"{LIMIT_BYTES / 1e6:g} MB", rest)


def _ascii(source: str) -> str:
    r"""A script whose other characters, which stand in its texts, are written as `\u00d7`."""
    return re.sub(r"[^\x00-\x7f]", lambda match: json.dumps(match[0])[1:-1], source)


def _referenced(markup: str) -> str:
    """Markup in ASCII: whatever encoding it is written in, it reads the same, and scripts have their digests."""
    return markup.encode("ascii", "xmlcharrefreplace").decode()


def _size(markup: str) -> int:
    return len(_referenced(markup))


def _policy(scripts: Iterable[str]) -> str:
    """Nothing is loaded from anywhere, and no other script runs."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    sources = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; img-src data:"


@cache
def _file(name: str) -> str:
    return (FILES / name).read_text(encoding="utf-8")


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(FILES),
        autoescape=True,
        finalize=text,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
