"""Assembles the Typer app: every file of `attnbench/commands/` is a verb."""

from __future__ import annotations

import importlib
import sys

import typer

from attnbench.errors import BadInput
from attnbench.registry import scan

app = typer.Typer(
    name="attnbench",
    help="At which size does O(N²) attention stop paying on this hardware, and what should replace it?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for verb in scan("attnbench.commands"):
    module = importlib.import_module(f"attnbench.commands.{verb}")
    app.command(name=verb)(module.command)


def main() -> None:
    """The entry point: a BadInput becomes one paragraph on stderr and exit code 2."""
    try:
        app()
    except BadInput as error:
        print(f"attnbench: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
