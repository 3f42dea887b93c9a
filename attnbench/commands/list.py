"""attnbench list: what there is to measure, with which impls here, and what is measured."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from attnbench.commands._options import device_option, format_option
from attnbench.outputs import _formats as formats


def command(
    what: Annotated[Literal["operators", "suites", "metrics", "properties"], typer.Argument(help="What to list.")],
    names: Annotated[list[str] | None, typer.Argument(help="Only these; default: all.", metavar="[NAME]...")] = None,
    device: Annotated[str, device_option("Where an impl may run; auto: CUDA where there is a GPU.")] = "auto",
    form: Annotated[str, format_option("rows", "json and csv hold every field.")] = "table",
) -> None:
    """List operators, with what they lack and why an impl cannot run on this machine; or suites, metrics or properties.

    Example: attnbench list operators softmax local --format json
    """
    from attnbench.measure.catalogue import catalogue
    from attnbench.outputs import _listings as listings

    rows = catalogue(what, names or (), device)
    formats.show("rows", listings.operators(rows) if what == "operators" else listings.described(rows), form)
