"""What the operators of a run say of themselves, stored with it so that reading a run needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from attnbench.errors import BadInput
from attnbench.operator import Estimated, Growth
from attnbench.problem import Cell, ParamValue, canonical_params
from attnbench.properties import by_form
from attnbench.registry import operators
from attnbench.user_code import user_errors


def definitions(cells: Iterable[Cell], operators_from: Iterable[str] = ()) -> dict[str, Any]:
    """What environment.json stores of the operators of these cells; imports them, and torch with them.

    Returns:
        stated: by `<operator> <canonical params>`, how time and memory grow with N.
        exact: those of these names that compute softmax attention itself.
        estimates: by these names, the exact map that it is an estimate of.
        properties: by these names and by form, what it can do: `attnbench.properties`.
        families: by operator, its family.
        defaults: by operator, those of its parameters.

    Raises: BadInput where a user's operator fails or states what is not allowed.
    """
    sources = operators(operators_from)
    stated: dict[str, dict[str, str]] = {}
    exact: list[str] = []
    families: dict[str, str] = {}
    defaults: dict[str, dict[str, ParamValue]] = {}
    estimates: dict[str, str] = {}
    properties: dict[str, dict[str, dict[str, bool]]] = {}
    for cell in cells:
        name = f"{cell.operator} {canonical_params(cell.params)}"
        if name in stated:
            continue
        operator = sources[cell.operator].load()
        with user_errors(f"{sources[cell.operator].location}: complexity, exact, estimates"):
            growth, is_exact = operator.complexity(cell.params), operator.exact(cell.params)
            estimated = operator.estimates(cell.params)
        with user_errors(f"{sources[cell.operator].location}: what it can do"):
            properties[name] = by_form(operator, cell.params, at=cell.problem)
        unknown = [word for word in (growth.time, growth.memory) if word not in get_args(Growth)]
        if unknown:
            raise BadInput(
                f"{sources[cell.operator].location}: complexity states {unknown[0]!r}; allowed: "
                f"{', '.join(get_args(Growth))}. Correct it."
            )
        stated[name] = {"time": growth.time, "memory": growth.memory}
        families[cell.operator] = sources[cell.operator].family
        defaults[cell.operator] = {
            name: param.default
            for name, param in operator.params.items()
            if isinstance(param.default, get_args(ParamValue))
        }
        if is_exact:
            exact.append(name)
        if estimated is not None:
            if not isinstance(estimated, Estimated):
                raise BadInput(
                    f"{sources[cell.operator].location}: estimates gives {type(estimated).__name__}; allowed: None, "
                    "SOFTMAX or Estimated(name, map) of attnbench.operator. Correct it."
                )
            estimates[name] = estimated.name
    return {
        "stated": stated,
        "exact": exact,
        "families": families,
        "defaults": defaults,
        "estimates": estimates,
        "properties": properties,
    }
