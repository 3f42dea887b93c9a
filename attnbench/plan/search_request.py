"""What a crossover search is to find, and the suite that says the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from attnbench.axes import AXES, KINDS
from attnbench.errors import BadInput, refusing
from attnbench.plan.settings import SEARCH_ROUNDS
from attnbench.problem import MODES, MODES_SHORT, SCOPES, operator_and_impl
from attnbench.registry import clocks
from attnbench.units import choice, quoted, suggestion
from attnbench.yaml_file import scalar, written


@dataclass(frozen=True)
class SearchRequest:
    """What a search is to find.

    Attributes:
        operators, baseline: `operator` or `operator:impl`.
        axis: the name of what is varied.
        low, high: the ends of the axis; of an image the side.
        precision: half of the interval's width at which to stop, relative.
        column: of the visits; what is compared.
        over: the name of a second axis; empty: there is none.
        values: on the second axis, as suites write them; a search along the first one at each.
    """

    operators: tuple[str, ...]
    baseline: str
    axis: str
    low: int
    high: int
    precision: float
    column: str
    over: str = ""
    values: tuple[int | str, ...] = ()

    def names(self) -> list[tuple[str, str]]:
        """(operator, impl) of each, the baseline last. Raises BadInput where there is nothing but the baseline."""
        baseline = operator_and_impl(self.baseline)
        names = [name for name in dict.fromkeys(map(operator_and_impl, self.operators)) if name != baseline]
        if not names:
            raise BadInput(f"OP: only the baseline {self.baseline} was given. Name an operator to compare with it.")
        return [*names, baseline]


def read_over(text: str, axis: str) -> tuple[str, tuple[int | str, ...]]:
    """The second axis of `batch=1,2,4,8`, and its values as suites write them.

    Args:
        text: as the command line has it.
        axis: the first axis.

    Raises: BadInput where that is no other axis with several values.
    """
    name, equals, listed = text.partition("=")
    second = AXES.get(name)
    others = [other for other, each in AXES.items() if other != axis and not (each.domain and AXES[axis].domain)]
    if second is None or name not in others or not equals:
        why = "it is the axis of the search itself" if name == axis else ""
        why = why or (f"{name} and {axis} both set the number of tokens" if second and equals else "")
        why = why or ("it has no values" if second else f"no axis {quoted(name)}{suggestion(name, others)}")
        raise BadInput(
            f"--over {text}: {why}; allowed: one of {', '.join(others)} with its values. Give such as --over "
            f"{others[-1] if axis == 'batch' else 'batch'}=1,2,4,8."
        )
    with refusing(f"--over {text}: {name} ", ". Give its values with commas between them."):
        values = sorted((second.read(scalar(value.strip())) for value in listed.split(",")), key=math.prod)
    positions = [math.prod(value) for value in values]
    if len(values) < 2:
        raise BadInput(f"--over {text}: one value; a border needs two or more. Leave --over out to search at one.")
    if len(set(positions)) < len(positions):
        raise BadInput(f"--over {text}: two of the values are the same size. Give each once.")
    return name, tuple(value[0] if len(value) == 1 else "x".join(map(str, value)) for value in values)


def clock_column(metric: str) -> str:
    """The column of a metric that has a clock.

    Raises: BadInput where it is no such metric.
    """
    timed = clocks(device_clock=True)
    if metric not in timed:
        raise BadInput(
            f"--metric {metric}: not timed by a clock{suggestion(metric, timed)}; allowed: {', '.join(timed)}."
        )
    return timed[metric].column


def suite_text(
    request: SearchRequest,
    shape: dict[str, Any],
    seq_len: int,
    mode: str,
    scope: str,
    params: Sequence[str],
    operators_from: Sequence[str],
) -> str:
    """The suite that says the same; its sizes are the ends of the axis.

    Args:
        shape: its `problem`, and of the sweep the seq_len or image_size.
        seq_len: the tokens, where they are neither varied nor in the shape.
        mode, scope: of every cell.
        params: `key=value` each.
        operators_from: files and packages of a user's own.

    Raises: BadInput.
    """
    names = request.names()
    _check_words(request, shape, mode, scope, operators_from)
    sizes: dict[str, list[int | str]] = {request.axis: [request.low, request.high]}
    if request.over:
        sizes[request.over] = list(request.values)
    fixed = {name: [value] for name, value in shape.items() if name in AXES and AXES[name].domain}
    fixed = fixed or ({} if any(AXES[name].domain for name in sizes) else {"seq_len": [seq_len]})
    data = {
        "name": "crossover",
        "description": f"a search for where {', '.join(':'.join(name) for name in names[:-1])} pass {request.baseline}",
        "baseline": operator_and_impl(request.baseline)[0],
        **({"operators_from": list(operators_from)} if operators_from else {}),
        "operators": _with_params(list(dict.fromkeys(name for name, _ in names)), params, operators_from),
        "impls": list(dict.fromkeys(impl for _, impl in names)),
        "scope": [scope],
        "sweep": [{**fixed, **sizes}],
        "problem": {name: value for name, value in shape.items() if name not in (*sizes, *fixed)},
        "mode": [mode],
        "measure": {"rounds": SEARCH_ROUNDS, "crossover_precision": None},
        "limits": {"memory": "60%", "cell_timeout": "60s"},
    }
    return written(data)


def _check_words(
    request: SearchRequest, shape: dict[str, Any], mode: str, scope: str, operators_from: Sequence[str]
) -> None:
    """Raises BadInput for words that there are not, by the options that hold them; the rest of a suite's reader checks
    the suite."""
    from attnbench.plan.mistakes import Notes
    from attnbench.plan.schema import read_operator_name
    from attnbench.registry import operators

    operator = read_operator_name(operators(operators_from))
    words: list[tuple[str, Callable[[Any], Any], Any]] = [
        *(("OP", operator, operator_and_impl(name)[0]) for name in request.operators),
        ("--baseline", operator, operator_and_impl(request.baseline)[0]),
        ("--mode", choice(MODES, MODES_SHORT), mode),
        ("--scope", choice(SCOPES), scope),
        *(("--dtype", KINDS[name], value) for name, value in shape.items() if name == "dtype"),
    ]
    notes = Notes("the command line")
    for option, read, word in words:
        notes.read(option, [word], read)
    notes.close()


def _with_params(names: list[str], params: Sequence[str], operators_from: Sequence[str]) -> list[Any]:
    """The operators, each with those of the params that it has. Raises BadInput for one that none has."""
    if not params:
        return list(names)
    from attnbench.plan.mistakes import Notes
    from attnbench.plan.schema import read_params
    from attnbench.registry import operators

    sources = operators(operators_from)
    notes = Notes("the command line")
    known = {name: list(sources[name].load().params) if name in sources else [] for name in names}
    chosen = read_params(params, known, notes)
    notes.close()
    return [{name: {key: list(v) for key, v in grid.items()}} if grid else name for name, grid in chosen.items()]
