"""The problems that a command line names, and the cells of them: every operator at every size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from attnbench.naming import asker, option
from attnbench.plan.mistakes import Notes
from attnbench.problem import MODES, MODES_SHORT, SCOPES, Cell, Problem
from attnbench.units import choice, separated

if TYPE_CHECKING:
    from attnbench.operator import Operator


@dataclass(frozen=True)
class ProblemRequest:
    """The words of the command line; those in the plural are one or several values each, with commas.

    Args:
        operators: names; `all`, or none: every operator.
        sizes: by axis.
        dtype: of the problems.
        causal, scope: of every problem.
        mode: of every problem: fwd or infer, fwd_bwd or train.
        params: `key=value` or `key=value,value` each, for the operators that have the key.
        operators_from: files and packages of a user's own.
    """

    operators: Sequence[str]
    sizes: Mapping[str, Sequence[str]]
    dtype: Sequence[str]
    causal: bool
    mode: str
    scope: str
    params: Sequence[str]
    operators_from: Sequence[str]


def cells(request: ProblemRequest) -> list[tuple[Operator, Cell]]:
    """Every operator, as its reference, at every size, by operator. Raises BadInput with all mistakes."""
    notes = Notes(asker())
    modes = notes.read(option("mode"), [request.mode], choice(MODES, MODES_SHORT))
    scopes = notes.read(option("scope"), [request.scope], choice(SCOPES))
    problems = _problems(notes, request)
    operators = _load(notes, request.operators, request.operators_from)
    params = _params(notes, operators, request.params)
    notes.close()
    return [
        (operator, Cell(name, "reference", scopes[0], modes[0], problem, variant))
        for name, operator in operators.items()
        for variant in params[name]
        for problem in problems
    ]


def _split(words: Sequence[str] | None) -> list[Any]:
    """The parts of an option that takes several values, each as a suite reads it; as text where it is no value."""
    from attnbench.yaml_file import scalar

    parts = [part.strip() for word in words or () for part in word.split(",")]
    values: list[Any] = []
    for part in parts:
        try:
            values.append(scalar(part))
        except ValueError:
            values.append(part)
    return values


def _problems(notes: Notes, request: ProblemRequest) -> list[Problem]:
    from attnbench.axes import AXES, KINDS
    from attnbench.plan.sweep import Shape, Sweep, impossible, problems

    mistakes = len(notes.mistakes)
    values = {
        name: tuple(notes.read(option(name), _split(request.sizes.get(name)), axis.read)) for name, axis in AXES.items()
    }
    dtypes = notes.read(option("dtype"), _split(request.dtype), KINDS["dtype"])
    sweep = Sweep({name: each for name, each in values.items() if each})
    if not any(axis.domain and request.sizes.get(name) for name, axis in AXES.items()):
        notes.add(option("seq_len"), f"missing. Give {option('seq_len')} 1024 or {option('image_size')} 32x32")
    if len(notes.mistakes) > mistakes:
        return []
    shape = Shape(kinds={"dtype": tuple(dtypes), "causal": (request.causal,)})
    for (name, _), sentence in impossible(sweep, shape).items():
        notes.add(option(name), sentence)
    return problems(sweep, shape) if len(notes.mistakes) == mistakes else []


def _load(notes: Notes, names: Sequence[str], places: Sequence[str]) -> dict[str, Operator]:
    from attnbench.plan.schema import read_operator_name
    from attnbench.registry import operators

    sources = operators(places)
    chosen = (
        sources
        if not names or "all" in separated(names)
        else dict.fromkeys(notes.read("operators", separated(names), read_operator_name(sources)))
    )
    return {name: sources[name].load() for name in chosen}


def _params(notes: Notes, loaded: Mapping[str, Operator], words: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """By operator, its params: the defaults, and the values of the command line for keys that it has, each of several
    with each of another key."""
    from attnbench.plan.schema import read_params
    from attnbench.registry import resolve

    result: dict[str, list[dict[str, Any]]] = {}
    chosen = read_params(words, {name: list(operator.params) for name, operator in loaded.items()}, notes)
    for name, operator in loaded.items():
        grid = chosen[name]
        try:
            variants = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
            result[name] = [resolve(operator, variant) for variant in variants]
        except ValueError as error:
            notes.add(f"{option('param')}, for {name}", str(error))
    return result
