"""attnbench list: what there is to measure, with which impls here, and what is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from attnbench.commands._options import format_option
from attnbench.outputs import _formats as formats
from attnbench.outputs._rows import Listing, Row

if TYPE_CHECKING:
    from attnbench.operator import Operator
    from attnbench.problem import Problem, Scope

What = Literal["operators", "suites", "metrics"]


def command(
    what: Annotated[What, typer.Argument(help="What to list.")],
    names: Annotated[list[str] | None, typer.Argument(help="Only these; default: all.", metavar="[NAME]...")] = None,
    form: Annotated[str, format_option("rows", "json and csv hold every field.")] = "table",
) -> None:
    """List operators, suites or metrics; for operators, why an impl cannot run on this machine.

    Example: attnbench list operators softmax local --format json
    """
    rows = {"operators": _operators, "suites": _suites, "metrics": _metrics}[what]()
    if names:
        rows = _chosen(rows, names, what)
    if what == "operators":
        listing = Listing(rows, [_glance(row) for row in rows], notes=_reasons(rows))
    else:
        listing = Listing(rows, sentences=("meaning",))
    formats.show("rows", listing, form)


def _chosen(rows: list[Row], names: list[str], what: str) -> list[Row]:
    from attnbench.errors import BadInput
    from attnbench.units import quoted, suggestion

    known = {str(row["name"]): row for row in rows}
    for name in names:
        if name not in known:
            raise BadInput(
                f"{quoted(name)} is not among the {what}{suggestion(name, known)}. See `attnbench list {what}`."
            )
    return [known[name] for name in names]


def _suites() -> list[Row]:
    from attnbench.errors import BadInput
    from attnbench.plan.suite import read, shipped

    rows: list[Row] = []
    for name, path in shipped().items():
        try:
            suite = read(path)
        except BadInput as error:
            rows.append({"name": name, "description": f"cannot be read: {error}", "baseline": None, "sweep": None})
            continue
        sweep = " · ".join(
            " × ".join(axis for axis in ("seq_len", "image_size", "channels") if getattr(entry, axis))
            for entry in suite.sweep
        )
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


def _operators() -> list[Row]:
    import torch

    from attnbench.registry import operators

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [_operator(name, source.family, source.load(), device) for name, source in operators().items()]


def _operator(name: str, family: str, operator: Operator, device: str) -> Row:
    from attnbench.registry import allowed_values, resolve

    params = resolve(operator, {})
    kind = operator.params.get("kind")
    growth = {str(k): operator.complexity({**params, "kind": k}) for k in kind.choices} if kind else {}
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
        "dtypes": list(operator.dtypes),
        "kinds": {k: {"time": c.time, "memory": c.memory} for k, c in growth.items()},
        "params": {
            key: {"default": p.default, "allowed": allowed_values(p), "meaning": p.meaning}
            for key, p in operator.params.items()
        },
        "impls": _impls(name, operator, params, device),
        "notes": operator.notes,
        "no_kernel": operator.no_kernel,
    }


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


def _glance(row: Row) -> Row:
    """What fits a table of 80 columns. An impl in parentheses cannot run here."""
    kinds = [name if (c["time"] == row["time"]) else f"{name} ({c['time']})" for name, c in row["kinds"].items()]
    impls: dict[str, bool] = {}
    for reasons in row["impls"].values():
        for impl, reason in reasons.items():
            impls[impl] = impls.get(impl, False) or reason is None
    return {
        "operator": row["name"],
        "family": row["family"],
        "time": row["time"],
        "memory": row["memory"],
        "on": row["domains"][0] if len(row["domains"]) == 1 else "any",
        "causal": "yes" if row["causal"] is True else "no",
        "kinds": ", ".join(kinds),
        "impls": ", ".join(name if runs else f"({name})" for name, runs in impls.items() if name != "compiled"),
    }


def _reasons(rows: list[Row]) -> list[str]:
    """Why impls cannot run here, and why operators have none for a GPU."""
    places: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for scope, reasons in row["impls"].items():
            for impl, reason in reasons.items():
                if reason is not None and scope == next(iter(row["impls"])):
                    places.setdefault((impl, reason), []).append(row["name"])
    return [
        "Scopes, parameters, papers and dtypes: --format json. compiled: any operator.",
        *(f"({impl}) cannot run here: {reason} [{', '.join(names)}]" for (impl, reason), names in places.items()),
        *(f"{row['name']} has no impl cuda: {row['no_kernel']}" for row in rows if row["no_kernel"]),
    ]
