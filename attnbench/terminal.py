"""What reaches a terminal: control characters and markup in data are shown as text; attnbench's own styles apply.

Plain text passes through `escaped` (commands/_standard_streams.py), everything that rich draws through `console`.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""C0, DEL, C1, characters that change the direction of text or end a line, and lone surrogates."""
_CONTROL_IN_LINES = re.compile(_CONTROL.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))


def escaped(text: str, *, lines: bool = False) -> str:
    r"""The text with every control character as JSON would write it (`\u001b`). lines: line ends and tabs stay."""
    pattern = _CONTROL_IN_LINES if lines else _CONTROL
    return pattern.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def console(*, stderr: bool = False) -> Console:
    """The rich console of every output: no markup, emoji or highlighting, and control characters are escaped."""
    from rich.console import Console, RenderHook
    from rich.segment import Segment

    class Escaped:
        def __init__(self, drawn: Any) -> None:
            self.drawn = drawn

        def __rich_console__(self, console: Console, options: Any) -> Any:
            for text, style, control in console.render(self.drawn, options):
                yield Segment(text if control else escaped(text, lines=True), style, control)

    class Hook(RenderHook):
        def process_renderables(self, renderables: list[Any]) -> list[Any]:
            return [Escaped(drawn) for drawn in renderables]

    stream = sys.stderr if stderr else sys.stdout
    # While rich draws a live line, sys.stdout is a proxy of rich that would lead back to this console.
    drawing = Console(file=getattr(stream, "rich_proxied_file", stream), markup=False, emoji=False, highlight=False)
    drawing.push_render_hook(Hook())
    return drawing
