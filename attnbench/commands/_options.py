"""Options that several verbs have."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints

import click
import typer

from attnbench.measure.device import AUTO, device_names
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


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command some of whose parameters are dataclasses: every field of one is an option of its own."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    names = {name: [field.name for field in fields(group)] for name, group in groups.items()}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            parameters += inspect.signature(groups[parameter.name], eval_str=True).parameters.values()
        else:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))

    @wraps(command)
    def call(**options: Any) -> None:
        values = {name: group(**{each: options.pop(each) for each in names[name]}) for name, group in groups.items()}
        command(**values, **options)

    keywords = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in parameters]
    call.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    return call


def device_option(help: str = "auto: CUDA where there is a GPU.") -> Any:
    """`--device`: the name of a kind of device, or auto."""
    return typer.Option("--device", click_type=click.Choice([AUTO, *device_names()]), help=help)
