"""How a run tells of itself: a live line on a terminal, plain lines elsewhere. Everything goes to stderr."""

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
"""Plain lines about an undisturbed run come this far apart."""


def log(text: str) -> None:
    """A line of progress, apart from what is printed."""
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`42 s`, `3 min 10 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def title(cell: Cell) -> str:
    """A cell in a few words."""
    return f"{cell.operator} {cell.impl} {cell.mode} {cell.problem.size}"


class Told:
    """Progress in words; `show` puts up a line about the present, `say` a line that stays."""

    def __init__(self, show: Callable[[str], None], say: Callable[[str], None]) -> None:
        self._show = show
        self._say = say
        self._total = 0
        self._count = 0
        self._left_s: float | None = None
        self._phase = "check"

    def planned(self, visits: int, seconds: float | None) -> None:
        """See `progress.Progress`."""
        self._total, self._count, self._left_s = visits, 0, seconds
        self._phase = "check" if seconds is None else "timed rounds"
        about = "" if seconds is None else f", about {duration(seconds)}"
        self._say(f"{self._phase}: {count(visits, 'visit')}{about}")

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
            self._say(f"{visit.status}: {visit.key}: {visit.reason}")
        for warning in visit.warnings:
            self._say(f"warning: {visit.key}: {warning}")

    def message(self, text: str) -> None:
        """See `progress.Progress`."""
        self._say(text)


def plain(stream: TextIO) -> Told:
    """Lines for a file or a pipe; the present is shown every EVERY_S."""
    last = time.monotonic()

    def show(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY_S:
            last = time.monotonic()
            say(line)

    def say(line: str) -> None:
        print(line, file=stream, flush=True)

    return Told(show, say)


class Live:
    """A live line on a terminal while its block runs; `told` is the progress to give to a runner."""

    def __init__(self) -> None:
        from rich.text import Text

        self._console = terminal.console(stderr=True)
        self._status = self._console.status("starting", spinner="line")
        self.told = Told(
            lambda line: self._status.update(Text(terminal.escaped(line))),
            lambda line: self._console.print(line, soft_wrap=True),
        )

    def __enter__(self) -> Told:
        self._status.start()
        return self.told

    def __exit__(self, *_: object) -> None:
        self._status.stop()


class Plain:
    """The same seam without a terminal."""

    def __enter__(self) -> Told:
        return plain(sys.stderr)

    def __exit__(self, *_: object) -> None:
        return


def progress() -> Live | Plain:
    """What suits stderr."""
    return Live() if sys.stderr.isatty() else Plain()
