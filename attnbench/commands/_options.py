"""Options that several verbs have."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import click
import typer

from attnbench.axes import AXES
from attnbench.errors import BadInput
from attnbench.measure.device import AUTO, device_names
from attnbench.outputs._formats import Data, check, formats, holds_folder, show, tell
from attnbench.plan.sweep import BATCH, CHANNELS, HEADS
from attnbench.problem import DTYPES, DTYPES_SHORT, MODES_SHORT
from attnbench.units import not_among

if TYPE_CHECKING:
    from attnbench.analysis.run import Run
    from attnbench.analysis.summary import Summary
    from attnbench.measure.fleet import FleetRequest
    from attnbench.measure.run_request import RunRequest
    from attnbench.plan.problem_request import ProblemRequest


MEASURE, READ, DECIDE, JUDGE, OTHER = "Measure", "Read what was measured", "Decide", "Before and after", "Commands"
PANELS = (MEASURE, READ, DECIDE, JUDGE, OTHER)
"""What a verb is for: `PANEL` of its file. They head the verbs in the help, in this order."""

PROBLEM = "The problem"
"""Heads the options that say what is computed."""


class Word(click.Choice[str]):
    """One of some words; `seq-len` stands for seq_len, and a word near one of them is told."""

    @property
    def words(self) -> Sequence[str]:
        """All of them."""
        return self.choices

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        near = str(value).replace("-", "_")
        return super().convert(near if near in self.choices else value, param, ctx)

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        return not_among(str(value), self.choices)


class Format(click.ParamType):
    """The name of a format that shows what a verb prints."""

    name = "format"

    def __init__(self, data: Data) -> None:
        self._data = data

    @property
    def words(self) -> Sequence[str]:
        """The names."""
        return formats(self._data)

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        names = self.words
        name = value.replace("-", "_")
        if name not in names:
            self.fail(not_among(value, names), param, ctx)
        check(name)
        return name


def format_option(data: Data, help: str) -> Any:
    """`--format`: one of those that show such data."""
    return typer.Option("--format", click_type=Format(data), help=help)


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
    return Each({name: typer.Option(help=f"{text}.", rich_help_panel=PROBLEM) for name, text in help.items()}, type)


def dtype_help() -> str:
    """The help of `--dtype`."""
    return f"{', '.join(DTYPES)}; short {', '.join(DTYPES_SHORT)}."


@dataclass(frozen=True)
class FormOptions:
    """The form of the operators, and the mode, by its name or as a flag."""

    mode: Annotated[
        str | None,
        typer.Option(help="infer (fwd), the default, or train (fwd_bwd: with gradients).", rich_help_panel=PROBLEM),
    ] = None
    train: Annotated[
        bool | None,
        typer.Option("--train/--infer", help="The same as --mode train, --mode infer.", rich_help_panel=PROBLEM),
    ] = None
    causal: Annotated[
        bool, typer.Option("--causal", help="Token i sees only tokens up to i.", rich_help_panel=PROBLEM)
    ] = False
    scope: Annotated[
        str,
        typer.Option(help="core, layer (with the projections), or block (and with an MLP).", rich_help_panel=PROBLEM),
    ] = "core"
    param: Annotated[
        list[str] | None,
        typer.Option(
            help="key=value, or key=value,value for each of several; of the operators that have the key.",
            rich_help_panel=PROBLEM,
        ),
    ] = None

    @property
    def chosen(self) -> str:
        """The mode as a suite or a request has it. Raises BadInput where both are given and are two modes."""
        flag = "train" if self.train else "infer"
        if self.train is None or self.mode is None:
            return flag if self.mode is None else self.mode
        if MODES_SHORT[flag] != MODES_SHORT.get(self.mode, self.mode):
            raise BadInput(f"--{flag} and --mode {self.mode}: two modes. Give one of them.")
        return flag


@dataclass(frozen=True)
class ProblemOptions(FormOptions):
    """What verbs that measure nothing ask of a problem beside its sizes."""

    dtype: Annotated[list[str] | None, typer.Option(help=dtype_help(), rich_help_panel=PROBLEM)] = None
    operators_from: Annotated[
        list[str] | None, typer.Option(help="A .py file or package of your own.", rich_help_panel=PROBLEM)
    ] = None

    def request(self, operators: Sequence[str], sizes: Mapping[str, Sequence[str] | None]) -> ProblemRequest:
        """What the command line asks for. Raises BadInput.

        Args:
            operators: as it names them; none: every operator.
            sizes: the words of `size_options(list[str] | None)`.
        """
        from attnbench.plan.problem_request import ProblemRequest

        return ProblemRequest(
            operators=operators,
            sizes={name: words or () for name, words in sizes.items()},
            dtype=self.dtype or ["float32"],
            causal=self.causal,
            mode=self.chosen,
            scope=self.scope,
            params=self.param or (),
            operators_from=self.operators_from or (),
        )


@dataclass(frozen=True)
class ShownOptions:
    """What of a run's results is shown, and in which order."""

    all_tables: Annotated[
        bool, typer.Option("--all", help="All tables: every operator, metric and size, crossovers, growth.")
    ] = False
    metric: Annotated[list[str] | None, typer.Option(help="Show only this metric; repeat it or use commas.")] = None
    axis: Annotated[str | None, typer.Option(help=f"Show only this axis: {', '.join(AXES)}.")] = None
    sort: Annotated[
        str | None,
        typer.Option(help="Order of the answer's rows: use (what you would take; default), from, ratio, memory, name."),
    ] = None

    def check(self) -> None:
        """Raises BadInput where no run can be shown so."""
        from attnbench.analysis.summary import check_shown

        if self.all_tables and self.sort is not None:
            raise BadInput(f"--sort {self.sort} --all: only the answer's rows have an order. Leave one of them out.")
        check_shown(self.metric or (), self.axis, self.sort)

    def summary(self, run: Run, baseline: str | None = None, operators: Sequence[str] = ()) -> Summary:
        """The run so. baseline, operators: as `summarise`. Raises BadInput."""
        from attnbench.analysis.summary import USE, summarise

        return summarise(run, self.metric or (), baseline, self.axis, operators, self.sort or USE)

    def show(self, folder: Path, form: str) -> None:
        """Prints the results of what was just measured, and the folder; why they cannot be shown, where that is so."""
        from attnbench.analysis.run import read_run

        try:
            show("run", self.summary(read_run(folder)), form, folder, self.all_tables)
        except BadInput as error:
            print(f"attnbench: {error}", file=sys.stderr)
            if not holds_folder(form):
                tell(folder, form)


SHOW_ONLY = "Show only these, each operator or operator:impl; repeat it or use commas."
MEASURE_ONLY = "Measure only these; repeat it or use commas."
CHOOSE_ONLY = "Only these; repeat it or use commas; default: all."


def operators_option(help: str) -> Any:
    """`--operators` or `--operator`: of which operators a verb speaks."""
    return typer.Option("--operators", "--operator", help=help, show_default=False)


class Size(click.ParamType):
    """A size as a suite reads it, such as 32K."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from attnbench.axes import MAX_TOKENS
        from attnbench.units import whole_size
        from attnbench.yaml_file import scalar

        try:
            return whole_size(1, MAX_TOKENS)(scalar(str(value)))
        except ValueError as error:
            self.fail(str(error), param, ctx)


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
            groups[name] = hint, _fields(hint)  # type: ignore[assignment,arg-type]
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


def _fields(kind: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a dataclass, with those it inherits."""
    hints = get_type_hints(kind, include_extras=True)
    return [each.replace(annotation=hints[name]) for name, each in inspect.signature(kind).parameters.items()]


def named_again(request: RunRequest | FleetRequest) -> list[str]:
    """What stands before --resume where that alone is refused: a suite with operators of the user's, with the options
    that changed it."""
    if request.suite is None or not request.suite.operators_from:
        return []
    words = [("--operator", name) for name in request.operators] + [("--impl", name) for name in request.impls]
    rounds = [] if request.rounds is None else ["--rounds", str(request.rounds)]
    return [request.suite.where, *chain.from_iterable(words), *rounds]


def device_option(help: str = "auto: CUDA where there is a GPU.") -> Any:
    """`--device`: the name of a kind of device, or auto."""
    return typer.Option("--device", click_type=click.Choice([AUTO, *device_names()]), help=help)
