"""attnbench doctor: what this machine can measure, what would disturb it, and what to do about it."""

from __future__ import annotations

from typing import Annotated

import typer

from attnbench.commands._options import MEASURE, format_option
from attnbench.outputs import _formats as formats

PANEL = MEASURE


def command(
    form: Annotated[str, format_option("rows", "How it is printed.")] = "table",
) -> None:
    """Say what this machine can measure, and what would disturb it.

    It looks at GPU, clocks, load, limits and timer for about ten seconds, and tests itself: two fresh processes measure
    one small cell in turns, and how far these may differ is the noise. Exit code: 0; 3 only where nothing can be
    measured.

    Example: attnbench doctor --format json
    """
    from attnbench.measure.examination import document, examine
    from attnbench.measure.platforms import check_can_measure
    from attnbench.outputs import _listings as listings

    check_can_measure("doctor")
    conditions, test = examine()
    formats.show("rows", listings.conditions(document(conditions, test)), form)
    if test is None:
        raise typer.Exit(3)
