"""Suite → cells: every operator with its parameters, impl, scope, mode and problem. Imports the operators."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from attnbench.errors import BadInput
from attnbench.plan.mistakes import Notes
from attnbench.plan.schema import IMPL_NAME, IMPL_NAMES, IMPLS
from attnbench.plan.suite import Grid, Suite
from attnbench.plan.sweep import problems
from attnbench.problem import SCOPES, Cell, Params
from attnbench.registry import Source, operators, resolve, undefined
from attnbench.units import quoted, suggestion
from attnbench.user_code import user_errors

if TYPE_CHECKING:
    from attnbench.operator import Operator


def cells(suite: Suite) -> list[Cell]:
    """Every cell, in a fixed order. Imports the operators, and torch with them.

    Cells outside an operator's definition are among them: the runner records these as skipped, with the reason.

    Raises: BadInput with all mistakes: parameters, impls that no operator has, cells given twice.
    """
    notes = Notes(suite.where)
    sources = operators(suite.operators_from)
    loaded = {name: sources[name].load() for name, _ in suite.operators}
    variants = [(name, params) for name, grid in suite.operators for params in _params(name, loaded[name], grid, notes)]
    _check_impls(suite, loaded, notes)
    notes.close()
    by_key: dict[str, Cell] = {}
    for cell in _expand(suite, loaded, variants):
        if cell.key in by_key:
            notes.add(f"operators.{cell.operator}", f"the params {dict(cell.params)} are given twice; remove one")
        by_key[cell.key] = cell
    notes.close()
    for name, source in sources.items():
        if name in loaded and not source.shipped:
            _check_contract(source, loaded[name], [cell for cell in by_key.values() if cell.operator == name])
    return list(by_key.values())


def _params(name: str, operator: Operator, grid: Grid, notes: Notes) -> list[Params]:
    mistakes = len(notes.mistakes)
    for key, values in grid.items():
        if key not in operator.params:
            allowed = ", ".join(operator.params) or "none: it takes no parameters"
            near = suggestion(key, operator.params)
            notes.add(f"operators.{name}.{key}", f"unknown parameter{near}; allowed: {allowed}")
            continue
        for value in values:
            try:
                resolve(operator, {key: value})
            except ValueError as error:
                notes.add(f"operators.{name}", str(error))
    if len(notes.mistakes) > mistakes:
        return []
    return [resolve(operator, dict(zip(grid, point, strict=True))) for point in itertools.product(*grid.values())]


def _check_impls(suite: Suite, loaded: Mapping[str, Operator], notes: Notes) -> None:
    names = {name for operator in loaded.values() for name in operator.impls}
    known = dict.fromkeys((*IMPLS, *sorted({name.partition(":")[0] for name in names}), *sorted(names)))
    for index, impl in enumerate(suite.impls):
        name = impl.removeprefix("-")
        if name not in known:
            near = suggestion(name, known)
            notes.add(
                f"impls[{index}]", f"no operator of the suite has {quoted(name)}{near}; allowed: {', '.join(known)}"
            )


def _expand_impls(suite: Suite, operator: Operator) -> list[str]:
    """The suite's impls as this operator has them. `cuda` stays where there is none, to be recorded as skipped."""
    excluded = {impl.removeprefix("-") for impl in suite.impls if impl.startswith("-")}
    names = [name for name in operator.impls if name not in excluded]
    impls: list[str] = []
    for impl in suite.impls:
        if impl in ("reference", "compiled"):
            impls.append(impl)
        elif impl.startswith("-"):
            continue
        elif ":" in impl:
            impls += [impl] if impl in names else []
        else:
            absent = ["cuda"] if impl == "cuda" and impl not in excluded else []
            impls += [name for name in names if name.split(":")[0] == impl] or absent
    return list(dict.fromkeys(impls))


def _expand(suite: Suite, loaded: Mapping[str, Operator], variants: Sequence[tuple[str, Params]]) -> Iterator[Cell]:
    for sweep in suite.sweep:
        sizes = problems(sweep, suite.problem)
        for name, params in ((n, p) for n, p in variants if sweep.measures(n)):
            impls = _expand_impls(suite, loaded[name])
            for impl, scope, mode, problem in itertools.product(impls, suite.scope, suite.mode, sizes):
                yield Cell(name, impl, scope, mode, problem, params)


def _check_contract(source: Source, operator: Operator, cells: Sequence[Cell]) -> None:
    """Checks, before anything runs, that a user's operator has what every operator has. Raises BadInput."""
    from attnbench.operator import Cost, Form

    place = source.location
    for scope, form in operator.forms.items():
        if scope not in SCOPES or not isinstance(form, Form):
            allowed = ", ".join(map(repr, SCOPES))
            raise BadInput(f"{place}: forms has {quoted(scope)}; allowed: {allowed}, each a Form. Correct it.")
        for impl in form.impls:
            if not isinstance(impl, str) or not re.fullmatch(IMPL_NAME, impl):
                raise BadInput(f"{place}: an impl is named {quoted(impl)}; allowed: {IMPL_NAMES}. Rename it.")
    for cell in cells:
        with user_errors(f"{place}: why_not"):
            outside = undefined(operator, cell)
        if outside is None:
            with user_errors(f"{place}: cost"):
                cost = operator.forms[cell.scope].cost(cell.problem, cell.params, cell.mode)
            if not isinstance(cost, Cost):
                raise BadInput(f"{place}: cost returns {type(cost).__name__}, not Cost. See CONTRIBUTING.md, 4.")
            return
