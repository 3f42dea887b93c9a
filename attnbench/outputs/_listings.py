"""The rows of each verb that lists something, and how people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attnbench.outputs._rows import Listing, Row

if TYPE_CHECKING:
    from attnbench.analysis.compare.visible import Visibility, VisibleChange
    from attnbench.analysis.roofline import Roofline


def visible_changes(visibility: Visibility) -> Listing:
    """Of `calibrate`: the noise of each cell, and what is visible in it."""
    from attnbench.analysis.compare.findings import readable

    def row(change: VisibleChange) -> Row:
        figures = {"noise": change.noise, "visible": change.smallest, "threshold": change.threshold}
        return {"cell": change.key, **figures, "seen": change.seen}

    def texts(row: Row) -> Row:
        return {name: f"{value:.1%}" if isinstance(value, float) else value for name, value in row.items()}

    rows = [row(change) for change in visibility.changes]
    table = [{**texts(row), "cell": readable(str(row["cell"]))} for row in rows]
    return Listing(rows, table, numbers=("noise", "visible", "threshold"))


def rooflines(cells: Sequence[Roofline], rates: Mapping[str, Any]) -> Listing:
    """Of `roofline`: every timed cell. rates: those of the hardware, for the note."""

    def names(roofline: Roofline) -> Row:
        cell = roofline.cell
        size = f"{cell['height']}x{cell['width']}" if isinstance(cell["height"], int) else str(cell["seq_len"])
        return {
            **{name: cell[name] for name in ("operator", "impl", "mode", "dtype")},
            "N": size,
            "C": cell["channels"],
        }

    def figures(roofline: Roofline) -> Row:
        ratio = roofline.ratio if roofline.roofline_s else None
        return {"seconds": roofline.seconds, "roofline_s": roofline.roofline_s, "ratio": ratio, "bound": roofline.bound}

    def texts(roofline: Roofline) -> Row:
        return {
            "ms": f"{roofline.seconds * 1e3:.3g}",
            "roofline ms": f"{roofline.roofline_s * 1e3:.3g}" if roofline.roofline_s else "",
            "× roofline": f"{roofline.ratio:.3g}" if roofline.roofline_s else "nothing required",
            "bound": roofline.bound,
        }

    matmul = ", ".join(f"{rate / 1e12:.3g} TFLOP/s {dtype}" for dtype, rate in rates["matmul_flops_per_s"].items())
    return Listing(
        [{**names(cell), **figures(cell)} for cell in cells],
        [{**names(cell), **texts(cell)} for cell in cells],
        numbers=("N", "C", "ms", "roofline ms", "× roofline"),
        notes=(f"measured in this run: matmul {matmul}; copy {rates['copy_bytes_per_s'] / 1e9:.3g} GB/s.",),
    )
