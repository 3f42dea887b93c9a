"""Options that several verbs have."""

from __future__ import annotations

from typing import Any

import click
import typer

from attnbench.outputs._formats import Data, formats


class _Format(click.ParamType):
    """The name of a format that shows what a verb prints."""

    name = "format"

    def __init__(self, data: Data) -> None:
        self._data = data

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{'|'.join(formats(self._data))}]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        names = formats(self._data)
        if value not in names:
            self.fail(f"{value!r} is not one of {', '.join(map(repr, names))}.", param, ctx)
        return value


def format_option(data: Data, help: str) -> Any:
    """`--format`: one of those that show such data."""
    return typer.Option("--format", click_type=_Format(data), help=help)
