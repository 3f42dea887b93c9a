"""attnbench reproduce: what papers claim of cost beside ours; nothing is measured."""

from __future__ import annotations

from typing import Annotated

import typer

from attnbench.commands._options import DECIDE, format_option
from attnbench.outputs import _formats as formats

PANEL = DECIDE


def command(
    paper: Annotated[
        list[str] | None, typer.Argument(help="Names of papers; default: all.", metavar="[PAPER]...")
    ] = None,
    explain: Annotated[
        list[str] | None,
        typer.Option(help="A claim's id, such as H2: its source, expressions and commands.", show_default=False),
    ] = None,
    form: Annotated[str, format_option("rows", "json: one object per number.")] = "table",
) -> None:
    """Hold the cost claims of papers against ours; nothing is measured.

    A claim is reproduced, or differs; claims of time are not decided, what needs a network, data or another machine is
    not testable here. Counts are exact: they reproduce where they round to the printed digits, else the terms between
    both are shown. Memory is from shapes.

    Exit code 1 where a number that was read, and was reproduced when its file was written, no longer is.

    Example: attnbench reproduce hamburger --explain H2
    """
    from attnbench.measure.papers import papers
    from attnbench.measure.reproduce import claims_named, commands, reproduce
    from attnbench.outputs._paper_listing import listing

    chosen = claims_named(papers(paper or ()), explain or ())
    results = reproduce(chosen)
    formats.show("rows", listing(results, bool(explain), commands(results)), form)
    if any(result.lost for result in results):
        raise typer.Exit(1)
