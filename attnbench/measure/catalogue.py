"""What there is to measure here: every operator, suite and metric, as rows of plain values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from attnbench.errors import BadInput
from attnbench.measure.device import AUTO, choose_device, device_of
from attnbench.units import quoted, suggestion

if TYPE_CHECKING:
    from attnbench.operator import Growth, Operator, Pairs
    from attnbench.problem import Problem, Scope

What = Literal["operators", "suites", "metrics", "properties"]
Row = dict[str, Any]


def catalogue(what: What, names: Sequence[str] = (), device: str = AUTO) -> list[Row]:
    """A row for each operator, suite, metric or property.

    Args:
        what: of which of these.
        names: only these; empty: all.
        device: of operators: the kind of device on which an impl may run, or AUTO.

    Raises: BadInput for a name that there is not.
    """
    others = {"suites": _suites, "metrics": _metrics, "properties": _properties}
    rows = _operators(device) if what == "operators" else others[what]()
    by_name = {str(row["name"]): row for row in rows}
    for name in names:
        if name not in by_name:
            raise BadInput(
                f"{quoted(name)} is not among the {what}{suggestion(name, by_name)}. See `attnbench list {what}`."
            )
    return [by_name[name] for name in names] if names else rows


def _suites() -> list[Row]:
    from attnbench.plan.suite import read, shipped

    rows: list[Row] = []
    for name, path in shipped().items():
        try:
            suite = read(path)
        except BadInput as error:
            rows.append({"name": name, "description": f"cannot be read: {error}", "baseline": None, "sweep": None})
            continue
        sweep = " · ".join(entry.title for entry in suite.sweep)
        rows.append({"name": name, "description": suite.description, "baseline": suite.baseline, "sweep": sweep})
    return rows


def _metrics() -> list[Row]:
    from attnbench.registry import metrics

    return [
        {
            "name": name,
            "unit": metric.unit,
            "column": metric.column,
            "exact": metric.exact,
            "meaning": metric.meaning,
        }
        for name, metric in metrics().items()
    ]


def _properties() -> list[Row]:
    from attnbench.properties import PROPERTIES

    return [{"name": name, "lack": each.lack, "meaning": each.meaning} for name, each in PROPERTIES.items()]


def _operators(device: str) -> list[Row]:
    from attnbench.registry import operators

    kind = device_of(choose_device(device)).type
    return [_operator(name, source.family, source.load(), kind) for name, source in operators().items()]


def _operator(name: str, family: str, operator: Operator, device: str) -> Row:
    from attnbench.properties import by_form
    from attnbench.registry import allowed_values, resolve

    params = resolve(operator, {})
    kind = operator.params.get("kind")
    kinds = {str(k): {**params, "kind": k} for k in kind.choices} if kind else {}
    stated = operator.complexity(params)
    return {
        "name": name,
        "family": family,
        "paper": {
            "author": operator.paper.author,
            "year": operator.paper.year,
            "title": operator.paper.title,
            "where": operator.paper.where,
            "url": operator.paper.url,
        },
        "time": stated.time,
        "memory": stated.memory,
        "exact": operator.exact(params),
        "domains": list(operator.domains),
        "scopes": list(operator.forms),
        "causal": operator.causal,
        "full": operator.full,
        "pairs": _pairs(operator, params),
        "grouped": operator.grouped,
        "continues": operator.continues,
        "state": _state_growth(operator, params),
        "dtypes": list(operator.dtypes),
        "properties": by_form(operator, params),
        "kinds": {
            k: {**asdict(operator.complexity(p)), "pairs": _pairs(operator, p), "properties": by_form(operator, p)}
            for k, p in kinds.items()
        },
        "params": {
            key: {"default": p.default, "allowed": allowed_values(p), "meaning": p.meaning}
            for key, p in operator.params.items()
        },
        "impls": _impls(name, operator, params, device),
        "notes": operator.notes,
        "no_kernel": operator.no_kernel,
    }


def _pairs(operator: Operator, params: dict[str, Any]) -> dict[str, Pairs]:
    """On which tokens an output depends, in each of the forms `full` and `causal` that there is."""
    from attnbench.properties import forms

    return {form: operator.pairs(params, form == "causal") for form in forms(operator, params)}


STATE_GROWTH: dict[float, Growth] = {0: "1", 0.5: "n^0.5", 1: "n"}
"""By the exponent of N, in halves."""


def _state_growth(operator: Operator, params: dict[str, Any]) -> Growth | None:
    """How what is kept of the tokens before grows with their number, from 2²⁰ to 2²²; None: it does not continue."""
    from attnbench.problem import Problem
    from attnbench.properties import properties

    if not properties(operator, params, causal=True)["decode"]:
        return None
    problems = [Problem(tokens, 64, 1, causal=True) for tokens in (1 << 20, 1 << 22)]
    small, large = (operator.forms["core"].cost(problem, params, "fwd").state_bytes for problem in problems)
    return STATE_GROWTH[round(math.log2(large / small)) / 2] if small and large else None


def _impls(name: str, operator: Operator, params: dict[str, Any], device: str) -> dict[str, dict[str, str | None]]:
    """By scope and impl, the reason it cannot run on this machine, at a small problem of the definition; or None."""
    from attnbench.problem import Cell
    from attnbench.registry import why_not

    result: dict[str, dict[str, str | None]] = {}
    for scope, form in operator.forms.items():
        problem = _probe(operator, params, scope)
        result[scope] = {
            impl: why_not(operator, Cell(name, impl, scope, "fwd", problem, params), device)
            for impl in ("reference", *form.impls, "compiled")
        }
    return result


def _probe(operator: Operator, params: dict[str, Any], scope: Scope) -> Problem:
    """A problem that the definition admits, in the dtype that GPU kernels take; the last one tried where none is."""
    from attnbench.problem import Problem
    from attnbench.registry import outside_definition

    candidates = [
        Problem.image(32, 32, 512, 8, dtype=dtype, causal=causal)
        if "sequence" not in operator.domains
        else Problem(1024, 512, 8, dtype=dtype, causal=causal)
        for dtype in operator.dtypes[::-1]
        for causal in (False, True)
    ]
    inside = [p for p in candidates if outside_definition(operator, p, params, scope) is None]
    return (inside or candidates)[0]
