"""A report to send: one HTML file that needs no network, with tables that are readable without scripts."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.errors import BadInput

if TYPE_CHECKING:
    from attnbench.analysis.compare.findings import Comparison
    from attnbench.analysis.grid import Grid
    from attnbench.analysis.history import History
    from attnbench.analysis.reproduction import Reproduction
    from attnbench.analysis.summary import Summary

HOLDS_FOLDER = True

PACKAGES = ("altair", "vl_convert")
"""What draws the charts."""


def check() -> None:
    """Raises BadInput where the extra is missing."""
    if not all(map(importlib.util.find_spec, PACKAGES)):
        raise BadInput(
            "--format html: Altair or vl-convert is not installed. Install the extra: pip install 'attnbench[report]'."
        )


def run(summary: Summary, folder: Path | None = None) -> str:
    """The results of a run. folder: that of a run just measured, which the page names."""
    check()
    from attnbench.outputs._html_run import run_page

    return run_page(summary, folder)


def grids(grids: Sequence[Grid]) -> str:
    """Maps of two axes, and the borders in them."""
    check()
    from attnbench.outputs._html_run import grids_page

    return grids_page(grids)


def comparisons(compared: Sequence[Comparison]) -> str:
    """Stored runs, or two revisions, before and after."""
    check()
    from attnbench.outputs._html_comparison import comparisons_page

    return comparisons_page(compared)


def claims(reproduction: Reproduction) -> str:
    """What papers claim beside ours, with our curves over their axes."""
    check()
    from attnbench.outputs._html_papers import papers_page

    return papers_page(reproduction)


def history(history: History) -> str:
    """The runs of a folder by time."""
    check()
    from attnbench.outputs._html_history import history_page

    return history_page(history)
