"""Assembles the Typer app: every file of `attnbench/commands/` is a verb."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated

import click
import typer
import typer.core

from attnbench import __version__
from attnbench.commands._options import Word
from attnbench.errors import BadInput, printable
from attnbench.registry import scan
from attnbench.terminal import escaped


class Verbs(typer.core.TyperGroup):
    """The verbs; where one takes one of some words, a word near one of them is told."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        for option in command.params if command else ():
            if isinstance(option.type, click.Choice):
                option.type = Word(option.type.choices, option.type.case_sensitive)
        return command


VERBS = tuple(scan("attnbench.commands"))


def assemble(verbs: Iterable[str] = VERBS) -> typer.Typer:
    """The app with these verbs. No other is imported: all of them together take as long as a quick command."""
    app = typer.Typer(
        name="attnbench",
        cls=Verbs,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    app.callback()(_options)  # with a callback a single verb is still named on the command line
    for verb in verbs:
        app.command(name=verb)(importlib.import_module(f"attnbench.commands.{verb}").command)
    return app


def run() -> int:
    """Runs the verb that the command line names. Returns its exit code; 2, with the usage, where there is none."""
    _check_words(sys.argv[1:])
    verb = sys.argv[1:2]
    try:
        code: int | None = assemble(verb if verb and verb[0] in VERBS else VERBS)(standalone_mode=False)
    except click.ClickException as error:
        if isinstance(error, click.BadParameter) and error.param is not None and error.param.envvar is None:
            error.param.show_envvar = False  # type: ignore[attr-defined]  # or Typer says "(env var: 'None')"
        error.show()
        return error.exit_code
    return code or 0


def _check_words(words: Sequence[str]) -> None:
    """Raises BadInput for an empty word (a variable that is not set) and for control characters."""
    for position, word in enumerate(words, 1):
        place = f"word {position} of the command line (after {printable(['attnbench', *words][position - 1])})"
        if not word or (word.startswith("--") and word.endswith("=")):
            raise BadInput(f"{place} is empty ({word!r}). Is a variable not set? Give a value, or leave it out.")
        text = word.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        if escaped(text) != text:
            raise BadInput(f"{place} holds control characters: {printable(word)}. Rename the file, or correct it.")


def _print_version(requested: bool) -> None:
    if requested:
        print(f"attnbench {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """At which size does O(N²) attention stop paying on this hardware, and what should replace it?"""
