"""Assembles the Typer app: every file of `attnbench/commands/` is a verb."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import click
import typer
import typer.core

from attnbench import __version__
from attnbench.commands._options import OTHER, PANELS, Format, Word
from attnbench.errors import BadInput, printable
from attnbench.registry import scan
from attnbench.terminal import escaped


class Name(click.types.StringParamType):
    """Names of axes, metrics or properties, with what stands beside them: `wall-time:5%` is wall_time:5%."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return re.sub(r"(?<=[a-z])-(?=[a-z])", "_", str(super().convert(value, param, ctx)))


NAMES = ("axis", "over", "metric", "fail_on", "need")
"""The options of all verbs that take such names."""


class Verb(typer.core.TyperCommand):
    """A verb. Where it takes one of some words, a word near one of them is told; its help names them in the text, so
    that the column before it stays narrow. A name may be typed with dashes."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        for option in self.params:
            if isinstance(option.type, click.Choice):
                option.type = Word(option.type.choices, option.type.case_sensitive)
            elif option.name in NAMES:
                option.type = Name()

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for option in self.params:
            if isinstance(option, click.Option) and isinstance(option.type, (Word, Format)):
                option.metavar = "WORD"
                option.help = f"{', '.join(option.type.words)}. {option.help or ''}".strip()
        super().format_help(ctx, formatter)


VERBS = tuple(scan("attnbench.commands"))


def assemble(verbs: Iterable[str] = VERBS) -> typer.Typer:
    """The app with these verbs. No other is imported: all of them together take as long as a quick command."""
    app = typer.Typer(
        name="attnbench",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    app.callback()(_options)  # with a callback a single verb is still named on the command line
    modules = {verb: importlib.import_module(f"attnbench.commands.{verb}") for verb in verbs}
    panels = {verb: getattr(module, "PANEL", OTHER) for verb, module in modules.items()}
    for verb in sorted(modules, key=lambda verb: PANELS.index(panels[verb])):
        command = modules[verb].command
        app.command(name=verb, cls=Verb, help=_unbroken(command.__doc__), rich_help_panel=panels[verb])(command)
    return app


def _unbroken(docstring: str | None) -> str:
    """A docstring whose paragraphs are a line each."""
    paragraphs = inspect.cleandoc(docstring or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


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
