"""What pictures have in common: their size, texts of a measured width, keys, and ticks that keep apart."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Literal

from attnbench.errors import BadInput
from attnbench.naming import option
from attnbench.units import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

PictureFormat = Literal["png", "svg", "pdf"]
FORMATS: tuple[PictureFormat, ...] = ("png", "svg", "pdf")

METADATA: Mapping[PictureFormat, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""Without which the same picture would not be the same file."""

TEXT_PT, TITLE_PT = 7.0, 8.0

SETTINGS: dict[Any, Any] = {
    "font.size": TEXT_PT,
    "axes.linewidth": 0.6,
    "svg.hashsalt": "attnbench",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,  # publishers refuse fonts of type 3
    "hatch.linewidth": 0.5,
    "text.parse_math": False,
}
"""Matplotlib's, of every picture."""

RESOLUTIONS = (72, 100, 160, 300)
"""In dots per inch, at which pictures are shown or written."""

PAD_IN = 0.07
"""Around everything."""

TICK_IN = 0.09
"""From an axis to the labels of its ticks, and between those and the axis's own."""

SAMPLE_IN, SAMPLE_GAP_IN, KEY_GAP_IN = 0.26, 0.06, 0.16
"""The width of a key's sample, its gap to the text, and the gap between keys."""


@dataclass(frozen=True)
class Wanted:
    """What a picture shall be like.

    Args:
        width_in, height_in: of the whole; None: as its parts need.
        title: above it; empty: none; None: its own.
    """

    width_in: float | None = None
    height_in: float | None = None
    title: str | None = None

    def heading(self, own: str) -> str:
        """The title, or its own one."""
        return own if self.title is None else self.title


AS_IT_NEEDS = Wanted()


@dataclass(frozen=True)
class Key:
    """What something in a picture means.

    Args:
        patch, line: how its sample is drawn, as keywords of Rectangle and Line2D; None: without such.
    """

    text: str
    line: Mapping[str, Any] | None = None
    patch: Mapping[str, Any] | None = None

    @property
    def sample_in(self) -> float:
        """The width of the sample, with its gap to the text."""
        return 0.0 if self.line is None and self.patch is None else SAMPLE_IN + SAMPLE_GAP_IN


@dataclass(frozen=True)
class PlacedKey:
    """Where a key stands, in inches from the left and down from the top of all."""

    x: float
    y: float
    lines: tuple[str, ...]
    key: Key


@contextmanager
def drawing(where: str) -> Iterator[None]:
    """Matplotlib's settings for pictures. Raises BadInput where it is missing. where: the verb or option that draws."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise BadInput(
            f"{where}: matplotlib is not installed. Install the extra: pip install 'attnbench[plot]'."
        ) from None
    with matplotlib.rc_context(SETTINGS):
        yield


def saved(picture: Picture, form: PictureFormat, dpi: int) -> bytes:
    """A picture as a file of a format. dpi: of PNG."""
    file = io.BytesIO()
    picture.savefig(file, format=form, dpi=dpi, metadata=METADATA.get(form))
    return file.getvalue()


def line_in(points: float = TEXT_PT) -> float:
    """The height of a line of text."""
    return 1.25 * points / 72


@lru_cache(4096)
def width_in(text: str, points: float = TEXT_PT) -> float:
    """The width of the widest line of a text: the most at any of RESOLUTIONS, as hinting stretches letters."""
    from matplotlib.font_manager import FontProperties

    font = FontProperties(size=points)
    lines = text.split("\n")
    return max(
        float(renderer.get_text_width_height_descent(line, font, False)[0]) / dpi
        for dpi, renderer in _renderers()
        for line in lines
    )


@cache
def _renderers() -> list[tuple[int, Any]]:
    from matplotlib.backends.backend_agg import RendererAgg

    return [(dpi, RendererAgg(1, 1, dpi)) for dpi in RESOLUTIONS]  # type: ignore[no-untyped-call]


def wrapped(text: str, most_in: float, points: float = TEXT_PT) -> list[str]:
    """The lines of a text, none wider than so much; a word that is wider is broken."""
    lines: list[str] = []
    for word in text.split():
        if lines and width_in(f"{lines[-1]} {word}", points) <= most_in:
            lines[-1] += f" {word}"
            continue
        lines.append(word)
        while len(rest := lines[-1]) > 1 and width_in(rest, points) > most_in:
            fitting = [i for i in range(1, len(rest)) if width_in(rest[:i], points) <= most_in]
            cut = max(fitting, default=1)
            lines[-1:] = [rest[:cut], rest[cut:]]
    return lines


def shortened(text: str, most_in: float) -> str:
    """A text in one line of that width, cut with … where it is longer."""
    first, *more = wrapped(text, most_in) or [""]
    return f"{wrapped(first, most_in - width_in('…'))[0]}…" if more else first


def place_keys(keys: Iterable[Key], most_in: float) -> tuple[list[PlacedKey], float]:
    """Keys in lines no wider than so much, and the height of all lines."""
    placed: list[PlacedKey] = []
    x = y = height = 0.0
    for key in keys:
        lines = wrapped(key.text, most_in - key.sample_in)
        width = key.sample_in + width_in("\n".join(lines))
        if x > 0 and x + width > most_in:
            x, y, height = 0.0, y + height, 0.0
        placed.append(PlacedKey(x, y, tuple(lines), key))
        x += width + KEY_GAP_IN
        height = max(height, len(lines) * line_in())
    return placed, y + height


def draw_keys(picture: Picture, placed: Iterable[PlacedKey], left_in: float, top_in: float) -> None:
    """Draws keys whose first stands at a place, measured from the left and from the bottom of the picture."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    inches: dict[str, Any] = {"transform": picture.dpi_scale_trans}
    for each in placed:
        left, middle = left_in + each.x, top_in - each.y - line_in() / 2
        if each.key.patch is not None:
            corner = (left, middle - 0.04)
            picture.add_artist(Rectangle(corner, SAMPLE_IN, 0.08, **{**inches, **each.key.patch}))
        if each.key.line is not None:
            x = [left, left + SAMPLE_IN / 2, left + SAMPLE_IN]
            picture.add_artist(Line2D(x, [middle] * 3, **{"markevery": [1], **inches, **each.key.line}))
        picture.text(
            left + each.key.sample_in, top_in - each.y - len(each.lines) * line_in() / 2, "\n".join(each.lines),
            fontsize=TEXT_PT, va="center", linespacing=1.1, **inches,
        )  # fmt: skip


def draw_heading(picture: Picture, lines: Sequence[str], top_in: float) -> None:
    """Draws the title of a picture, whose first line begins at that height."""
    if lines:
        picture.text(
            PAD_IN, top_in, "\n".join(lines), fontsize=TITLE_PT, va="top", linespacing=1.1,
            transform=picture.dpi_scale_trans,
        )  # fmt: skip


def tick_text(value: float, unit: str) -> str:
    """A value beside a tick, without zeros that say nothing."""
    return shown(value, unit).replace(".00", "").replace(".0", "")


def thinned(
    labels: Iterable[str],
    places: Sequence[float],
    ends: tuple[float, float],
    length_in: float,
    gap_in: float,
    upright: bool = False,
) -> tuple[list[float], list[str]]:
    """The places and labels of ticks along a logarithmic axis that keep apart; the last is always among them.

    Args:
        ends: of the axis, in the unit of places.
        length_in: of the axis.
        gap_in: the least between two labels, or between their middles where the axis is upright.
    """
    ticks: list[tuple[float, str]] = []
    for place, label in reversed([*zip(places, labels, strict=True)]):
        if ticks:
            apart = length_in * math.log(ticks[-1][0] / place) / math.log(ends[1] / ends[0])
            if apart < gap_in + (0 if upright else (width_in(label) + width_in(ticks[-1][1])) / 2):
                continue
        ticks.append((place, label))
    return [place for place, _ in reversed(ticks)], [label for _, label in reversed(ticks)]


def too_small(wanted: Wanted, width_in: float, height_in: float, what: str) -> BadInput:
    """What is said of a size in which a picture has no room. width_in, height_in: the least in which it would have."""
    size, least = f"{wanted.width_in:g}in", f"{_tenths(width_in)}in"
    alone = ""
    if wanted.height_in is not None:
        size, least = f"{wanted.width_in:g}x{wanted.height_in:g}in", f"{_tenths(width_in)}x{_tenths(height_in)}in"
        alone = ", or the width alone"
    return BadInput(
        f"{option('size')} {size}: {what} do not fit into it. Give {least} or more{alone}; with "
        f"{option('operators')} less is drawn."
    )


def _tenths(inches: float) -> str:
    return f"{math.ceil(10 * inches - 1e-6) / 10:g}"
