"""A choice as a picture: time and memory of every operator, and those that no other beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.errors import BadInput
from attnbench.files import replace, storing
from attnbench.outputs._choice import Names, name_of, names_of, problem_text
from attnbench.outputs._colours import GREY, colour
from attnbench.outputs._picture_parts import (
    FORMATS,
    PAD_IN,
    TEXT_PT,
    PictureFormat,
    drawing,
    saved,
    tick_text,
    width_in,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from attnbench.analysis.choice import Candidate, Choice, Ranked

SIZE_IN = (6.4, 4.4)
LEFT = 0.11


def check(path: Path) -> None:
    """Raises BadInput where a picture cannot be written: its ending, or matplotlib is missing."""
    _form(path)
    with drawing("--picture"):
        pass


def _form(path: Path) -> PictureFormat:
    for form in FORMATS:
        if path.suffix == f".{form}":
            return form
    raise BadInput(f"--picture {path}: allowed: a name that ends in .{', .'.join(FORMATS)}.")


def draw(choice: Choice, path: Path) -> None:
    """Writes a picture of a choice, as its name ends. Raises BadInput where it cannot be written."""
    from matplotlib.figure import Figure

    with drawing("--picture"):
        picture = Figure(figsize=SIZE_IN)
        picture.subplots_adjust(left=LEFT, right=0.93, bottom=0.11, top=0.88)
        _panel(picture.add_subplot(), choice)
        file = saved(picture, _form(path), dpi=200)
    with storing(f"--picture {path}", "Give another name."):
        replace(path, file)


def _panel(axes: Axes, choice: Choice) -> None:
    names = names_of(choice)
    axes.set_xscale("log")
    axes.set_yscale("log", base=2)
    groups = [group for group in (choice.timed, choice.analytic) if group]
    for group in groups:
        _points(axes, group)
    if groups:
        _front(axes, groups[0])
    axes.margins(0.12, 0.1)
    axes.xaxis.set_major_formatter(lambda value, _: tick_text(value, "s"))
    axes.yaxis.set_major_formatter(lambda value, _: tick_text(value, "bytes"))
    axes.minorticks_off()
    axes.set_xlabel("time of a call" + (" (hollow: the least, by the roofline)" if choice.analytic else ""))
    axes.set_ylabel("memory at the peak, inputs included")
    axes.grid(True, linewidth=0.3, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    title = wrapped(problem_text(choice), (1 - LEFT) * SIZE_IN[0] - PAD_IN)
    axes.set_title("\n".join(title), loc="left", fontsize=TEXT_PT)
    _label(axes, [each for group in groups for each in group], choice.best, names)


def _points(axes: Axes, group: Sequence[Ranked]) -> None:
    for each in group:
        candidate = each.candidate
        if candidate.memory_bytes is None:
            continue
        own = colour(candidate.cell.operator)
        face = "none" if candidate.source == "analytic" else own
        x, y = candidate.seconds, candidate.memory_bytes
        if candidate.low is not None and candidate.high is not None:
            axes.plot([candidate.low, candidate.high], [y, y], color=own, linewidth=0.8, solid_capstyle="butt")
        axes.plot([x], [y], marker="o", markersize=5, mfc=face, mec=own, mew=1.0, linestyle="none", zorder=3)


def _front(axes: Axes, group: Sequence[Ranked]) -> None:
    """A step line through those that no other beats in both."""
    front = sorted((e.candidate for e in group if e.leanest), key=lambda candidate: candidate.seconds)
    if not front:
        return
    x, y = [c.seconds for c in front], [c.memory_bytes or 0 for c in front]
    axes.step(x, y, where="post", color=GREY, linewidth=1.2, zorder=1, label="no other is faster and leaner")
    axes.plot(x, y, marker="o", markersize=9, mfc="none", mec=GREY, mew=1.2, linestyle="none", zorder=2)
    axes.legend(loc="best", frameon=False, fontsize=TEXT_PT)


def _label(axes: Axes, every: Sequence[Ranked], best: Sequence[Ranked], names: Names) -> None:
    """A name beside each point, the front's first: at the nearest place where it covers nothing, tied to its point
    where that is not next to it. best: whose names are bold."""
    axes.autoscale_view()
    point_px = axes.figure.dpi / 72
    points = [(e, _at(axes, e.candidate, point_px)) for e in every if e.candidate.memory_bytes is not None]
    taken = [_mark(axes, each.candidate, point_px) for each, _ in points] + _lines(axes, point_px)
    left, bottom, right, top = (float(edge) / point_px for edge in axes.bbox.extents)
    for each, (x, y) in sorted(points, key=lambda point: not point[0].leanest):
        text, own = name_of(each.candidate.cell, names), colour(each.candidate.cell.operator)
        width = 72 * width_in(text)
        boxes = [(x + dx, y + dy - TEXT_PT / 2, x + dx + width, y + dy + TEXT_PT / 2) for dx, dy in _places(width)]
        inside = [b for b in boxes if left <= b[0] and b[2] <= right + width / 3 and bottom <= b[1] and b[3] <= top]
        box = next((b for b in inside if not any(_overlap(b, other) for other in taken)), boxes[0])
        taken.append(box)
        is_near = box in boxes[:NEAR]
        axes.annotate(
            text, xy=(each.candidate.seconds, each.candidate.memory_bytes or 0), xycoords="data",
            xytext=(box[0] - x, (box[1] + box[3]) / 2 - y), textcoords="offset points", va="center", color=own,
            fontsize=TEXT_PT - 0.5, fontweight="bold" if each in best else "normal", annotation_clip=False,
            arrowprops=None if is_near else {"arrowstyle": "-", "linewidth": 0.35, "color": own, "shrinkB": 3},
        )  # fmt: skip


Box = tuple[float, float, float, float]
"""Left, bottom, right and top, in points."""

RADIUS_PT = 3.5

NEAR = 6
"""Of the places of a name, those next to its point."""


def _at(axes: Axes, candidate: Candidate, point_px: float, seconds: float | None = None) -> tuple[float, float]:
    """Where a point stands in the picture, in points. seconds: in place of its time."""
    x, y = axes.transData.transform((seconds or candidate.seconds, candidate.memory_bytes or 0))
    return float(x) / point_px, float(y) / point_px


def _mark(axes: Axes, candidate: Candidate, point_px: float) -> Box:
    """What a point takes with its interval."""
    x, y = _at(axes, candidate, point_px)
    low, high = (_at(axes, candidate, point_px, end)[0] for end in (candidate.low, candidate.high))
    return min(low, x - RADIUS_PT), y - RADIUS_PT, max(high, x + RADIUS_PT), y + RADIUS_PT


def _lines(axes: Axes, point_px: float) -> list[Box]:
    """What the step line through the front takes, a box for each of its segments."""
    boxes = []
    for line in axes.lines:
        if line.get_drawstyle() == "steps-post":
            places = axes.transData.transform(line.get_xydata()) / point_px
            for (x, y), (right, below) in pairwise(places.tolist()):
                boxes += [(x, y - 1.0, right, y + 1.0), (right - 1.0, below, right + 1.0, y)]
    return boxes


def _places(width: float) -> list[tuple[float, float]]:
    """Where a name may begin, seen from its point, the nearest first: beside, above and below, then farther away."""
    gap, line = 5.0, TEXT_PT * 1.2
    near = [(gap, 0.0), (-gap - width, 0.0), (-width / 2, line), (-width / 2, -line), (gap, line), (gap, -line)]
    far = [
        (dx, side * line * step) for step in range(1, 14) for side in (1, -1) for dx in (gap * 1.6, -gap * 1.6 - width)
    ]
    return near + far


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
