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
    brief: Annotated[bool, typer.Option("--brief", help="One row a paper.")] = False,
    form: Annotated[
        str,
        format_option("claims", "json: one object per number. html: a page, with our curves over the papers' axes."),
    ] = "table",
) -> None:
    """Hold the cost claims of papers against ours; nothing is measured.

    A claim is reproduced, or differs; claims of time are not decided, what needs a network, data or another machine is
    not testable here. Counts are exact: they reproduce where they round to the printed digits, else the terms between
    both are shown. Memory is from shapes.

    Exit code 1 where a number that was read, and was reproduced when its file was written, no longer is.

    Example: attnbench reproduce hamburger --explain H2

    Example: attnbench reproduce --format html > papers.html
    """
    from attnbench.analysis.reproduction import Detail, Reproduction
    from attnbench.measure.paper_figures import drawn_figures
    from attnbench.measure.papers import papers
    from attnbench.measure.reproduce import claims_named, commands, reproduce

    every = papers(paper or ())
    results = reproduce(claims_named(every, explain or ()))
    detail: Detail = "brief" if brief else "explained" if explain else "claims"
    formats.show("claims", Reproduction(results, commands(results), detail, lambda: drawn_figures(every)), form)
    if any(result.lost for result in results):
        raise typer.Exit(1)
