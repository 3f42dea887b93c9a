"""A run as log-log pictures: ratios to the best exact softmax, figures, figures by family; maps of two axes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.analysis.summary import Summary
from attnbench.errors import BadInput, printable, refusing
from attnbench.files import replace
from attnbench.groups import groups_of
from attnbench.naming import option
from attnbench.outputs._graphs import drawings, is_drawn, stems
from attnbench.outputs._picture_parts import AS_IT_NEEDS, FORMATS, PictureFormat, Wanted, drawing, saved
from attnbench.units import choice, count, picture_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

    from attnbench.analysis.grid import Grid

VERB = "attnbench plot"
NO_TITLE = "none"

DPI, PRINT_DPI = 160, 300
"""Of PNG: where no size is wanted, and where one is, for print."""


def wanted(size: str | None, title: str | None) -> Wanted:
    """What a command line asks of a picture.

    Args:
        size: `3.5in`, `3.5x2.5in`; None: as the picture needs.
        title: a text, or `none`; None: the picture's own.

    Raises: BadInput.
    """
    with refusing(f"{option('size')} "):
        width, height = picture_size(size) if size is not None else (None, None)
    return Wanted(width, height, "" if title == NO_TITLE else title and printable(title))


def read_formats(text: str) -> tuple[PictureFormat, ...]:
    """`png,pdf` → the formats of pictures.

    Raises: BadInput.
    """
    with refusing(f"{option('format')} ", "; several with commas."):
        return tuple(dict.fromkeys(choice(FORMATS)(word.strip()) for word in text.split(",")))


def draw(
    summary: Summary,
    families: Mapping[str, str],
    folder: Path,
    forms: Iterable[PictureFormat] = ("png", "svg"),
    wanted: Wanted = AS_IT_NEEDS,
    operators: Sequence[str] = (),
) -> list[Path]:
    """Writes the pictures of a run.

    Args:
        summary: of the run.
        families: by operator; an operator without one is drawn as "other".
        folder: to write into.
        forms: the file formats.
        wanted: size and title of each.
        operators: those that the summary was restricted to.

    Returns: the paths of the pictures.
    Raises: BadInput where there is nothing to draw, where a size is too small, or where matplotlib is missing.
    """
    return written(_pictures(summary, families, wanted, operators), folder, forms, wanted)


def draw_maps(
    grids: Sequence[Grid],
    folder: Path,
    forms: Iterable[PictureFormat] = ("png", "svg"),
    wanted: Wanted = AS_IT_NEEDS,
) -> list[Path]:
    """Writes a picture of every grid.

    Args:
        grids: of a run.
        folder, forms, wanted: as of `draw`.

    Returns: the paths of the pictures.
    Raises: BadInput where a size is too small, or where matplotlib is missing.
    """
    return written(_maps(grids, wanted), folder, forms, wanted)


def pictures(
    summary: Summary, families: Mapping[str, str], wanted: Wanted = AS_IT_NEEDS, operators: Sequence[str] = ()
) -> dict[str, Picture]:
    """The pictures of a run, by the stems of their files' names; see `draw`."""
    with drawing(VERB):
        return dict(_pictures(summary, families, wanted, operators))


def undrawn(summary: Summary) -> list[str]:
    """A sentence for each metric of which there is no picture of some panel, as no cell has a figure of it."""
    panels = groups_of(
        (table.quantity.name, report.panel.title)
        for report in summary.panels
        for table in report.tables
        if not any(map(is_drawn, table.lines))
    )
    metrics = groups_of((tuple(titles), metric) for metric, titles in panels.items())
    sentences = []
    for (first, *others), names in metrics.items():
        more = f" and {count(len(others), 'other panel')}" if others else ""
        where = "" if len(others) + 1 == len(summary.panels) else f" of {first}{more}"
        sentences.append(f"No picture of {', '.join(names)}{where}: no cell has a figure of it above 0.")
    return sentences


def _pictures(
    summary: Summary, families: Mapping[str, str], wanted: Wanted, operators: Sequence[str]
) -> Iterator[tuple[str, Picture]]:
    from attnbench.outputs._graph_picture import layout_of, picture_of

    every = drawings(summary, families, operators)
    if not every:
        raise BadInput(" ".join([f"{VERB}: there is nothing to draw.", *undrawn(summary)]))
    if wanted.width_in is not None:
        for each in every:  # before any is written
            layout_of(each, wanted)
    for each in every:
        yield each.stem, picture_of(each, wanted)


def _maps(grids: Sequence[Grid], wanted: Wanted) -> Iterator[tuple[str, Picture]]:
    from attnbench.outputs._grid_picture import picture_of
    from attnbench.outputs._grid_tables import letters_of

    letters = letters_of(grids)
    names = stems([(f"{grid.axis}-over-{grid.over}", grid.fixed) for grid in grids])
    for name, grid in zip(names, grids, strict=True):
        yield f"{name}-{grid.rows[0].table.quantity.name}-map", picture_of(grid, letters, wanted)


def written(
    pictures: Iterator[tuple[str, Picture]],
    folder: Path,
    forms: Iterable[PictureFormat],
    wanted: Wanted = AS_IT_NEEDS,
    where: str = VERB,
) -> list[Path]:
    """Draws pictures, by the stems of their names, and writes each in every form. Returns the paths.

    where: the verb or option that draws.
    """
    paths = []
    dpi = DPI if wanted.width_in is None else PRINT_DPI
    with drawing(where):
        for stem, picture in pictures:
            for form in forms:
                path = folder / f"{stem}.{form}"
                folder.mkdir(parents=True, exist_ok=True)
                replace(path, saved(picture, form, dpi))
                paths.append(path)
    return paths
