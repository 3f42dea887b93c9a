"""Assembles the Typer app: every file of `attnbench/commands/` is a verb."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from typing import Annotated

import typer

from attnbench import __version__
from attnbench.errors import BadInput
from attnbench.registry import scan

VERBS = tuple(scan("attnbench.commands"))


def assemble(verbs: Iterable[str] = VERBS) -> typer.Typer:
    """The app with these verbs. Only those are imported and parsed: all of them take as long as a quick command."""
    app = typer.Typer(
        name="attnbench",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    app.callback()(_whole)  # with a callback a single verb is still named on the command line
    for verb in verbs:
        app.command(name=verb)(importlib.import_module(f"attnbench.commands.{verb}").command)
    return app


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"attnbench {__version__}")
        raise typer.Exit


def _whole(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """At which size does O(N²) attention stop paying on this hardware, and what should replace it?"""


def main() -> None:
    """The entry point: a BadInput becomes one paragraph on stderr and exit code 2."""
    asked = sys.argv[1:2]
    try:
        assemble(asked if asked and asked[0] in VERBS else VERBS)()
    except BadInput as error:
        print(f"attnbench: {error}", file=sys.stderr)
        sys.exit(2)


def __getattr__(name: str) -> typer.Typer:
    """`app`, with every verb: for tests and tools that call the commands in this process."""
    if name != "app":
        raise AttributeError(name)
    return assemble()


if __name__ == "__main__":
    main()
