"""Options that several verbs have."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_type_hints

import click
import typer

from attnbench.axes import AXES
from attnbench.measure.device import AUTO, device_names
from attnbench.outputs._formats import Data, formats
from attnbench.plan.sweep import BATCH, CHANNELS, HEADS
from attnbench.problem import DTYPES, DTYPES_SHORT


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


@dataclass(frozen=True)
class Each:
    """Annotates a parameter that is a mapping: every name in it is an option of its own.

    Args:
        options: by name.
        type: of a value.
    """

    options: Mapping[str, Any]
    type: Any

    def parameters(self) -> list[inspect.Parameter]:
        """Those of the command line; None where one is not given."""
        kind = inspect.Parameter.KEYWORD_ONLY
        return [
            inspect.Parameter(name, kind, default=None, annotation=Annotated[self.type, each])
            for name, each in self.options.items()
        ]


def size_options(type: Any) -> Each:
    """An option for each axis. type: of a value."""
    defaults = {"channels": CHANNELS, "heads": HEADS, "kv_heads": "heads", "batch": BATCH, "query_len": "all tokens"}
    help = {name: axis.meaning.capitalize() for name, axis in AXES.items()}
    help |= {name: f"{help[name]}; default: {value}" for name, value in defaults.items() if name in help}
    return Each({name: typer.Option(help=f"{text}.") for name, text in help.items()}, type)


def dtype_help() -> str:
    """The help of `--dtype`."""
    return f"{', '.join(DTYPES)}; short {', '.join(DTYPES_SHORT)}."


def over_option() -> Any:
    """`--over`: the second axis of a map."""
    return typer.Option(help=f"A map of two axes: --axis along its rows, this one from row to row: {', '.join(AXES)}.")


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command some of whose parameters are dataclasses: every field of one is an option of its own; or `Each`."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, tuple[Callable[..., Any], list[inspect.Parameter]]] = {}
    for name, hint in hints.items():
        each = next((item for item in getattr(hint, "__metadata__", ()) if isinstance(item, Each)), None)
        if is_dataclass(hint):
            groups[name] = hint, list(inspect.signature(hint, eval_str=True).parameters.values())  # type: ignore[assignment,arg-type]
        elif each:
            groups[name] = dict, each.parameters()
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        name = parameter.name
        parameters += groups[name][1] if name in groups else [parameter.replace(annotation=hints[name])]

    @wraps(command)
    def call(**options: Any) -> None:
        values = {
            name: group(**{each.name: options.pop(each.name) for each in among})
            for name, (group, among) in groups.items()
        }
        command(**values, **options)

    keywords = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in parameters]
    call.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    return call


def device_option(help: str = "auto: CUDA where there is a GPU.") -> Any:
    """`--device`: the name of a kind of device, or auto."""
    return typer.Option("--device", click_type=click.Choice([AUTO, *device_names()]), help=help)
