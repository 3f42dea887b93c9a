"""The rows of each verb that lists something, and how people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnbench.outputs._rows import Listing, Row

if TYPE_CHECKING:
    from attnbench.analysis.compare.visible import Visibility, VisibleChange


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
