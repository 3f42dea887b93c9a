"""attnbench list: what there is to measure, with which impls here, and what is measured."""

from __future__ import annotations

from typing import Annotated, get_args

import typer

from attnbench.commands._options import DECIDE, device_option, format_option
from attnbench.measure.catalogue import What, catalogue
from attnbench.outputs import _formats as formats

PANEL = DECIDE


def command(
    what: Annotated[What, typer.Argument(help=f"{', '.join(get_args(What))}.", metavar="WHAT")],
    names: Annotated[list[str] | None, typer.Argument(help="Only these; default: all.", metavar="[NAME]...")] = None,
    device: Annotated[str, device_option("Where an impl may run; auto: CUDA where there is a GPU.")] = "auto",
    form: Annotated[str, format_option("rows", "json and csv hold every field.")] = "table",
) -> None:
    """List operators and what they lack; suites, metrics, properties.

    Of operators also why an impl cannot run on this machine.

    Example: attnbench list operators softmax local --format json
    """
    from attnbench.outputs import _listings as listings

    rows = catalogue(what, names or (), device)
    formats.show("rows", listings.operators(rows) if what == "operators" else listings.described(rows), form)
