"""Cells of two runs that are the same, by their columns: a parameter that one of them lacks has its default there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from attnbench.problem import Cell, ParamValue, canonical_params

if TYPE_CHECKING:
    from attnbench.analysis.run import Run

Defaults = Mapping[str, Mapping[str, ParamValue]]
"""By operator, every parameter's default."""


def defaults_of(environments: Iterable[Mapping[str, Any]]) -> Defaults:
    """The defaults that environments store; where several know one, the last one's."""
    defaults: dict[str, dict[str, ParamValue]] = {}
    for environment in environments:
        for operator, values in (environment.get("defaults") or {}).items():
            defaults.setdefault(operator, {}).update(values)
    return defaults


def completed(cell: Cell, defaults: Defaults) -> Cell:
    """The cell with the default of every parameter that it lacks: an operator has gained or lost one since."""
    return replace(cell, params={**defaults.get(cell.operator, {}), **cell.params})


def same_cells(before: Iterable[Cell], after: Iterable[Cell], defaults: Defaults) -> dict[str, str]:
    """By the key of a cell of `before`, the key of the same cell of `after`."""
    later = {completed(cell, defaults).key: cell.key for cell in after}
    matched = ((cell.key, later.get(completed(cell, defaults).key)) for cell in before)
    return {key: other for key, other in matched if other is not None}


def aligned(before: Run, after: Run) -> tuple[Run, Run]:
    """Both runs with completed cells, so that the same cell has the same key in both."""
    defaults = defaults_of((before.environment, after.environment))
    return _completed(before, defaults), _completed(after, defaults)


def _completed(run: Run, defaults: Defaults) -> Run:
    cells_by_key = {key: completed(cell, defaults) for key, cell in run.cells.items()}
    if all(cell.key == key for key, cell in cells_by_key.items()):
        return run
    keys = {key: cell.key for key, cell in cells_by_key.items()}
    params = {key: canonical_params(cell.params) for key, cell in cells_by_key.items()}
    visits = run.visits.assign(key=run.visits["key"].map(keys), params=run.visits["key"].map(params))
    identities = {
        f"{c.operator} {canonical_params(c.params)}": f"{c.operator} {params[key]}" for key, c in run.cells.items()
    }
    stored_keys = {new: key for key, new in keys.items()}
    return replace(run, visits=visits, environment=_renamed(run.environment, identities), stored_keys=stored_keys)


def _renamed(environment: Mapping[str, Any], identities: Mapping[str, str]) -> dict[str, Any]:
    """An environment whose definitions go by the completed params.

    Args:
        identities: `<operator> <params>` as completed, by the stored one.
    """
    tables = {
        name: {identities.get(key, key): value for key, value in environment[name].items()}
        for name in ("stated", "estimates", "properties")
        if name in environment
    }
    exact = {"exact": [identities.get(key, key) for key in environment["exact"]]} if "exact" in environment else {}
    return {**environment, **tables, **exact}


def ok_keys(run: Run) -> set[str]:
    """The keys of the cells that ended ok."""
    return set(run.results.loc[run.results["status"] == "ok", "key"])


def unmatched(before: Run, after: Run) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Keys that only one of two aligned runs has, and tried to measure there.

    Returns: those of `before`, which are missing, and those of `after`, which are new.
    """
    keys = [set(run.results["key"]) for run in (before, after)]
    tried = [set(run.results.loc[run.results["status"] != "skipped", "key"]) for run in (before, after)]
    return tuple(sorted(tried[0] - keys[1])), tuple(sorted(tried[1] - keys[0]))
