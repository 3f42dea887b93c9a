"""The progress of a run: a live line on a terminal, plain lines elsewhere. Everything goes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from attnbench import terminal
from attnbench.problem import Cell
from attnbench.store.records import Visit
from attnbench.units import count

EVERY_S = 10.0
"""Plain lines of a run without incidents are this far apart."""


def log(text: str) -> None:
    """A line of progress, apart from what is printed."""
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`42 s`, `3 min 10 s`, `2 h 05 min`."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def title(cell: Cell) -> str:
    """A cell in a few words."""
    return f"{cell.operator} {cell.impl} {cell.mode} {cell.problem.size}"


class Words:
    """Progress in words; `show` is called with a line about what runs now, `keep` with one that stays."""

    def __init__(self, show: Callable[[str], None], keep: Callable[[str], None]) -> None:
        self._show = show
        self._keep = keep
        self._total = 0
        self._count = 0
        self._left_s: float | None = None
        self._phase = "check"

    def planned(self, visits: int, seconds: float | None) -> None:
        """See `progress.Progress`."""
        self._total, self._count, self._left_s = visits, 0, seconds
        self._phase = "check" if seconds is None else "timed rounds"
        about = "" if seconds is None else f", about {duration(seconds)}"
        self._keep(f"{self._phase}: {count(visits, 'visit')}{about}")

    def begun(self, cell: Cell, round: int) -> None:
        """See `progress.Progress`."""
        left = "" if self._left_s is None else f", {duration(self._left_s)} left"
        where = "check" if round == 0 else f"round {round}"
        done = f"{self._count}/{count(self._total, 'visit')}" if self._total else count(self._count, "visit")
        self._show(f"{where}: {done} done{left} · {title(cell)}")

    def ended(self, visit: Visit, seconds: float | None) -> None:
        """See `progress.Progress`."""
        self._count += 1
        self._left_s = seconds
        if visit.status not in ("ok", "skipped"):
            self._keep(f"{visit.status}: {visit.key}: {visit.reason}")
        for warning in visit.warnings:
            self._keep(f"warning: {visit.key}: {warning}")

    def message(self, text: str) -> None:
        """See `progress.Progress`."""
        self._keep(text)


def plain(stream: TextIO) -> Words:
    """Lines for a file or a pipe; what runs now is shown every EVERY_S."""
    last = time.monotonic()

    def show(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY_S:
            last = time.monotonic()
            keep(line)

    def keep(line: str) -> None:
        print(line, file=stream, flush=True)

    return Words(show, keep)


class Live:
    """A live line on a terminal while its block runs; `words` is the progress that a runner takes."""

    def __init__(self) -> None:
        from rich.text import Text

        self._console = terminal.console(stderr=True)
        self._status = self._console.status("starting", spinner="line")
        self.words = Words(
            lambda line: self._status.update(Text(terminal.escaped(line))),
            lambda line: self._console.print(line, soft_wrap=True),
        )

    def __enter__(self) -> Words:
        self._status.start()
        return self.words

    def __exit__(self, *_: object) -> None:
        self._status.stop()


class Plain:
    """The same without a terminal."""

    def __enter__(self) -> Words:
        return plain(sys.stderr)

    def __exit__(self, *_: object) -> None:
        return


def progress() -> Live | Plain:
    """What suits stderr."""
    return Live() if sys.stderr.isatty() else Plain()
