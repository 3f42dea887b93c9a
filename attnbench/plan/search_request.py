"""What a crossover search is to find, and the suite that says the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attnbench.axes import AXES
from attnbench.errors import BadInput
from attnbench.plan.settings import SEARCH_ROUNDS
from attnbench.plan.suite import written
from attnbench.problem import operator_and_impl
from attnbench.registry import clocks
from attnbench.units import suggestion


@dataclass(frozen=True)
class SearchRequest:
    """What a search is to find.

    Attributes:
        operators, baseline: `operator` or `operator:impl`.
        axis: the name of what is varied.
        low, high: the ends of the axis; of an image the side.
        precision: half of the interval's width at which to stop, relative.
        column: of the visits; what is compared.
    """

    operators: tuple[str, ...]
    baseline: str
    axis: str
    low: int
    high: int
    precision: float
    column: str

    def names(self) -> list[tuple[str, str]]:
        """(operator, impl) of each, the baseline last. Raises BadInput where there is nothing but the baseline."""
        baseline = operator_and_impl(self.baseline)
        names = [name for name in dict.fromkeys(map(operator_and_impl, self.operators)) if name != baseline]
        if not names:
            raise BadInput(f"OP: only the baseline {self.baseline} was given. Name an operator to compare with it.")
        return [*names, baseline]


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
    sizes = {request.axis: [request.low, request.high]}
    fixed = {name: [value] for name, value in shape.items() if name in AXES and AXES[name].domain}
    fixed = fixed or ({} if AXES[request.axis].domain else {"seq_len": [seq_len]})
    data = {
        "name": "crossover",
        "description": f"a search for where {', '.join(':'.join(name) for name in names[:-1])} pass {request.baseline}",
        "baseline": operator_and_impl(request.baseline)[0],
        **({"operators_from": list(operators_from)} if operators_from else {}),
        "operators": _with_params(list(dict.fromkeys(name for name, _ in names)), params, operators_from),
        "impls": list(dict.fromkeys(impl for _, impl in names)),
        "scope": [scope],
        "sweep": [{**fixed, **sizes}],
        "problem": {name: value for name, value in shape.items() if name not in (request.axis, *fixed)},
        "mode": [mode],
        "measure": {"rounds": SEARCH_ROUNDS, "crossover_precision": None},
        "limits": {"memory": "60%", "cell_timeout": "60s"},
    }
    return written(data)


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
    return [{name: {key: [v] for key, v in grid.items()}} if grid else name for name, grid in chosen.items()]
