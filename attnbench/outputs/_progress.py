"""How far a run, a search or a gate is: a bar on a terminal, plain lines elsewhere. Everything goes to stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TextIO

from attnbench import terminal
from attnbench.axes import tokens_axis
from attnbench.problem import Cell, operator_with_impl
from attnbench.progress import Leased, Reached, Stage
from attnbench.store.records import MOST_WARNINGS, WARNED, Visit, without_numbers
from attnbench.units import count, duration, percent

if TYPE_CHECKING:
    from rich.console import RenderableType

EVERY_S = 10.0
"""Plain lines of a run without incidents are this far apart."""

DRAWN_PER_S = 2
"""How often the bar is drawn: often enough for a second that passes, seldom enough to disturb nothing that is timed."""


BAR_WIDTH = 30
"""Of the bar at most: a line over the whole width of a terminal is broken where that is made narrower."""


def title(cell: Cell) -> str:
    """A cell in a few words: `performer fwd 1024 tokens`."""
    axis = tokens_axis(cell.problem)
    return f"{operator_with_impl(cell.operator, cell.impl)} {cell.mode} {axis.amount(axis.label(cell.problem))}"


class Words:
    """Progress in words: see `measure.progress.Progress`.

    Args:
        show: called with a line about what runs now.
        keep: called with a line that stays.
        now: a clock; seconds.
    """

    def __init__(
        self, show: Callable[[str], None], keep: Callable[[str], None], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._show, self._keep, self._now = show, keep, now
        self._stage: Stage | None = None
        self._visits: int | None = None
        self._count = 0
        self._begun = now()
        self._left: tuple[float, float] | None = None
        self._cell: Cell | None = None
        self._reached: Reached | None = None
        self._leased: Leased | None = None
        self._warned: dict[object, set[str]] = {}

    def planned(self, stage: Stage, visits: int | None, seconds: float | None) -> None:
        """See `measure.progress.Progress`."""
        first = self._stage is None
        self._stage, self._visits, self._count, self._cell, self._left = stage, visits, 0, None, None
        self._expect(seconds)
        if first:
            self._keep(self.outlook())
        else:
            self._show(self.line())

    def begun(self, cell: Cell, round: int) -> None:
        """See `measure.progress.Progress`."""
        self._cell = cell
        self._show(self.line())

    def ended(self, visit: Visit, seconds: float | None) -> None:
        """See `measure.progress.Progress`."""
        self._count += 1
        self._expect(seconds)
        if visit.status not in ("ok", "skipped"):
            self._keep(f"{visit.status}: {visit.key}: {visit.reason}")
        series = tuple(visit.cell.get(name) for name in WARNED)
        for warning in visit.warnings:
            said, kind = self._warned.setdefault(series, set()), without_numbers(warning)
            if kind not in said and len(said) <= MOST_WARNINGS:  # once, not again at every size in every round
                text = warning if len(said) < MOST_WARNINGS else "more warnings, which name other things, are not shown"
                said.add(kind)
                self._keep(f"warning: {visit.key}: {text}")

    def reached(self, reached: Reached) -> None:
        """See `measure.progress.Progress`."""
        self._reached = reached

    def message(self, text: str) -> None:
        """See `measure.progress.Progress`."""
        self._keep(text)

    def leased(self, state: Leased) -> None:
        """See `measure.fleet.FleetProgress`."""
        first, self._leased = self._leased is None, state
        self._left = None
        self._expect(state.left_s)
        if first:
            self._keep(self.line())
        else:
            self._show(self.line())

    def _expect(self, seconds: float | None) -> None:
        if seconds is not None:
            self._left = self._now(), seconds

    @property
    def left_s(self) -> float | None:
        """Seconds to the next look by now; None: not known."""
        if self._left is None:
            return None
        at, seconds = self._left
        return max(0.0, at + seconds - self._now())

    @property
    def share(self) -> float | None:
        """Of the expected time, how much has passed; None: not known."""
        passed, left_s = self._now() - self._begun, self.left_s
        return None if left_s is None else passed / max(passed + left_s, 1e-9)

    def outlook(self) -> str:
        """The first line: what will be done, and what that is expected to take."""
        stage = self._stage
        assert stage is not None
        visits = "" if self._visits is None else f", {count(self._visits, 'visit')}"
        rounds = f"; then {count(stage.last, 'timed round')}" if stage.kind == "check" and stage.last else ""
        more = stage.most - stage.last
        added = f"; up to {more} more where crossovers need them" if more > 0 and stage.kind != "pair" else ""
        about = "" if self.left_s is None else f"about {duration(self.left_s)}: "
        return f"{about}{self.where()}{visits}{rounds}{added}"

    def where(self) -> str:
        """The stage: `check`, `round 2 of 3–9`, `pair 5 of 60 at most`; of a fleet `ray: 3 devices on 2 hosts`."""
        stage, leased = self._stage, self._leased
        if leased is not None:
            hosts = f" on {count(leased.hosts, 'host')}" if leased.hosts else ""
            return f"{leased.engine}: {count(leased.devices, 'device')}{hosts}"
        if stage is None:
            return "starting"
        if stage.kind == "check":
            return f"check of {stage.side}" if stage.side else "check"
        most = f"–{stage.most}" if stage.most > stage.last else ""
        return f"{stage.kind} {stage.number} of {stage.last}{most}"

    def left(self) -> str:
        """How long it takes: `about 40 s left`; where more may follow the next look: `at least 40 s left`."""
        stage, left_s = self._stage, self.left_s
        if left_s is None:
            return ""
        about = "at least" if stage is not None and stage.most > stage.last else "about"
        return "ends soon" if left_s < 1 else f"{about} {duration(left_s)} left"

    def doing(self) -> str:
        """What is being measured: `45 of 120 visits · performer fwd 1024 tokens`; of a fleet `7 of 42 blocks`."""
        if self._leased is not None:
            waiting = f"{count(self._leased.waiting, 'shard')} waiting" if self._leased.waiting else ""
            return " · ".join(filter(None, (f"{self._leased.blocks} of {self._leased.total} blocks", waiting)))
        done = count(self._count, "visit") if self._count else ""
        if self._visits is not None:
            done = f"{self._count} of {count(self._visits, 'visit')}"
        return " · ".join(filter(None, (done, title(self._cell) if self._cell else "a process starts")))

    def precision(self) -> str:
        """What is reached: `crossovers: 14 of 23 within ± 5.0%, the widest ± 12%`; empty before the first look."""
        found = self._reached
        if found is None:
            return ""
        if found.wanted is None:
            return f"decided: {found.precise} of {count(found.total, 'cell')}"
        if not found.total:
            return f"crossovers: none with an interval yet, ± {percent(found.wanted)} wanted"
        widest = f", the widest ± {percent(found.widest)}" if found.widest and found.precise < found.total else ""
        return f"crossovers: {found.precise} of {found.total} within ± {percent(found.wanted)}{widest}"

    def line(self) -> str:
        """Everything in a line."""
        now = ", ".join(filter(None, (self.where(), self.left())))
        return " · ".join(filter(None, (now, self.doing(), self.precision())))


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
    """A bar on a terminal while its block runs, with what is measured below it.

    The cursor stays visible: whatever ends the process leaves the terminal as it was.
    """

    def __init__(self) -> None:
        from rich.live import Live as Display

        self._console = terminal.console(stderr=True)
        self.words = Words(lambda line: None, self._console.print)
        self._display = Display(
            console=self._console,
            get_renderable=self._drawn,
            refresh_per_second=DRAWN_PER_S,
            transient=True,
            redirect_stdout=False,
        )

    def _drawn(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        def line(text: str, style: str = "") -> Text:
            return Text(terminal.escaped(text), style=style, no_wrap=True, overflow="ellipsis")

        words = self.words
        share, left = words.share, words.left()
        texts = words.where(), "" if share is None else f"{share:.0%} {left}".rstrip()
        room = self._console.width - sum(map(len, texts)) - 3
        drawn = ProgressBar(total=1.0, completed=share or 0.0, pulse=share is None, width=max(1, min(BAR_WIDTH, room)))
        bar = Table.grid(padding=(0, 1))
        bar.add_row(line(texts[0], "bold"), drawn, line(texts[1]))
        below = [line(text, "dim") for text in (words.doing(), words.precision()) if text]
        return Group(bar, *below)

    def __enter__(self) -> Words:
        self._display.start()
        self._console.show_cursor(True)
        return self.words

    def __exit__(self, *_: object) -> None:
        self._display.stop()


def progress() -> AbstractContextManager[Words]:
    """What suits stderr: a bar on a terminal, else plain lines."""
    is_drawn = sys.stderr.isatty() and os.environ.get("TERM") not in (None, "", "dumb", "unknown")
    return Live() if is_drawn else nullcontext(plain(sys.stderr))
