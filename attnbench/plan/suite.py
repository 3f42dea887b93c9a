"""YAML → Suite → Cells. Every mistake names the file, the key path, the value and what is allowed, all at once."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attnbench
from attnbench.errors import BadInput
from attnbench.own_code import own_errors
from attnbench.plan.mistakes import Notes
from attnbench.plan.settings import Limits, Measure
from attnbench.plan.sweep import Shape, Sweep, problems
from attnbench.problem import Cell, Mode, Params, ParamValue, Problem, Scope
from attnbench.registry import Source, operators, outside_definition, resolve
from attnbench.thresholds import Gate
from attnbench.units import quoted, seconds, suggestion, whole
from attnbench.yaml_file import parse, read_text

if TYPE_CHECKING:
    from attnbench.operator import Operator

Grid = Mapping[str, tuple[ParamValue, ...]]

MAX_ROUNDS = 1000


@dataclass(frozen=True)
class Suite:
    """What to measure, as a YAML file says it.

    baseline: the operator the others are compared with. operators: (name, values of its parameters) each; the values
    multiply. operators_from: a user's own .py files (absolute) and packages. impls: names as DESIGN's glossary has
    them; a name without a variant stands for all its variants. problem: the fixed part of every problem.
    where: how messages name the file. directory: what its relative paths are relative to. text: the YAML as read, but
    without absolute paths.
    """

    name: str
    description: str
    baseline: str
    operators_from: tuple[str, ...]
    operators: tuple[tuple[str, Grid], ...]
    impls: tuple[str, ...]
    scope: tuple[Scope, ...]
    mode: tuple[Mode, ...]
    sweep: tuple[Sweep, ...]
    problem: Shape
    measure: Measure
    limits: Limits
    gate: Gate
    where: str
    directory: Path
    text: str

    def problems(self) -> list[Problem]:
        """Every problem of the sweep, in the order given."""
        return [problem for sweep in self.sweep for problem in problems(sweep, self.problem)]


def shipped() -> dict[str, Path]:
    """The suites that come with attnbench, by name: inside an installed package, or in the checkout."""
    package = Path(attnbench.__file__).parent
    folder = next(p for p in (package / "suites", package.parent / "suites") if p.is_dir() or p.parent != package)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load(name_or_path: str) -> Suite:
    """The suite of that name, or in that file. No torch. Raises BadInput with all mistakes."""
    return read(find(name_or_path))


def find(name_or_path: str) -> Path:
    """The file of a shipped suite's name, or the path itself. Raises BadInput for an unknown name."""
    known = shipped()
    if name_or_path in known:
        return known[name_or_path]
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml") and path.name == name_or_path and not os.path.exists(path):
        raise BadInput(
            f"no suite is named {quoted(name_or_path)}{suggestion(name_or_path, known)}; "
            f"shipped: {', '.join(known)}. Give one of these, or the path of a YAML file."
        )
    return path


def read(path: Path) -> Suite:
    """The suite in a file."""
    return from_text(read_text(path), str(path), path.parent, path.stem)


def from_text(
    text: str, where: str, directory: Path, name: str = "suite", operators_from: Sequence[str] | None = None
) -> Suite:
    """The suite that a YAML text describes.

    where: how messages name the text. directory: what `operators_from` is relative to. name: where the text has none.
    operators_from: in place of the text's own, of which then nothing is looked at: a run folder may be anybody's.
    """
    from attnbench.plan.schema import read_fields

    data = parse(text, where)
    fields = read_fields(data, where, directory, name, operators_from)
    return Suite(**fields, where=where, directory=directory, text=without_places(text, data, directory))


def without_places(text: str, data: Mapping[str, Any], directory: Path) -> str:
    """A suite's text as it is stored: an absolute path of `operators_from` becomes relative to the suite's directory
    where it is below that, else the file's name. data: the text, parsed."""
    places = own_places(data)
    stored = [_without_place(place, directory) for place in places]
    return text if stored == places else written({**data, "operators_from": stored})


def own_places(data: Mapping[str, Any]) -> list[Any]:
    """`operators_from` of a suite's data, unchecked; [] where there is none."""
    places = data.get("operators_from", [])
    return places if isinstance(places, list) else [places]


def _without_place(place: Any, directory: Path) -> Any:
    if not isinstance(place, str) or not os.path.isabs(place):
        return place
    top = os.path.abspath(directory)
    inside = os.path.commonpath([top, os.path.abspath(place)]) == top
    return os.path.relpath(place, top) if inside else os.path.basename(place)


def written(data: Mapping[str, Any]) -> str:
    """YAML that says what the data say."""
    import yaml

    return str(yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True))


def override(
    suite: Suite,
    *,
    operators: Sequence[str] = (),
    impls: Sequence[str] = (),
    rounds: int | None = None,
    budget: str | None = None,
) -> Suite:
    """The suite with the command line's --operator, --impl, --rounds and --budget in place of its own.

    An operator that the suite has keeps its parameters there; another one has its defaults. A list may be given as
    several values or separated by commas. `text` becomes the YAML that says the same. Raises BadInput.
    """
    from attnbench.plan.schema import read_impl, read_operator_name

    notes = Notes("the command line")
    data = parse(suite.text, suite.where)
    known = dict(_sources(suite))
    if operators:
        names = _checked("--operator", operators, lambda name: read_operator_name(known)(name), notes)
        kept = [{name: {k: list(v) for k, v in grid.items()}} for name, grid in suite.operators if name in names]
        present = {name for name, _ in suite.operators}
        data["operators"] = [*kept, *(name for name in names if name not in present)]
    if impls:
        data["impls"] = _checked("--impl", impls, read_impl, notes)
    if rounds is not None:
        _checked("--rounds", [rounds], whole(1, MAX_ROUNDS), notes)
        data["measure"] = {**(data.get("measure") or {}), "rounds": rounds}
    if budget is not None:
        _checked("--budget", [budget], seconds, notes)
        data["limits"] = {**(data.get("limits") or {}), "budget": budget}
    notes.close()
    if not (operators or impls or rounds is not None or budget is not None):
        return suite
    return from_text(written(data), suite.where, suite.directory, suite.name, suite.operators_from)


def _checked(option: str, values: Sequence[Any], read: Any, notes: Notes) -> list[str]:
    split = [part.strip() for v in values for part in v.split(",")] if option in ("--operator", "--impl") else values
    for value in split:
        try:
            read(value)
        except ValueError as error:
            notes.add(option, str(error))
    return list(dict.fromkeys(split))


def _sources(suite: Suite) -> dict[str, Source]:
    return operators(suite.operators_from)


def cells(suite: Suite) -> list[Cell]:
    """Every cell, in a fixed order. Imports the operators, and torch with them.

    Cells outside an operator's definition are among them: the runner records these as skipped, with the reason.
    Raises BadInput with all mistakes: parameters, impls that no operator has, cells given twice.
    """
    notes = Notes(suite.where)
    sources = _sources(suite)
    loaded = {name: sources[name].load() for name, _ in suite.operators}
    variants = [(name, params) for name, grid in suite.operators for params in _params(name, loaded[name], grid, notes)]
    _check_impls(suite, loaded, notes)
    notes.close()
    found: dict[str, Cell] = {}
    for cell in _expand(suite, loaded, variants):
        if cell.key in found:
            notes.add(f"operators.{cell.operator}", f"the params {dict(cell.params)} are given twice; remove one")
        found[cell.key] = cell
    notes.close()
    for name, source in sources.items():
        if name in loaded and not source.shipped:
            _check_contract(source, loaded[name], [cell for cell in found.values() if cell.operator == name])
    return list(found.values())


def _params(name: str, operator: Operator, grid: Grid, notes: Notes) -> list[Params]:
    sound = len(notes.found)
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
    if len(notes.found) > sound:
        return []
    return [resolve(operator, dict(zip(grid, point, strict=True))) for point in itertools.product(*grid.values())]


def _check_impls(suite: Suite, loaded: Mapping[str, Operator], notes: Notes) -> None:
    known = {name for operator in loaded.values() for name in _impl_names(operator)}
    for index, impl in enumerate(suite.impls):
        if ":" in impl and impl not in known:
            variants = sorted(name for name in known if ":" in name)
            allowed = ", ".join(variants) or "none: these operators have no variants"
            near = suggestion(impl, variants)
            notes.add(f"impls[{index}]", f"no operator of the suite has {quoted(impl)}{near}; allowed: {allowed}")


def _impl_names(operator: Operator) -> list[str]:
    return list(dict.fromkeys(name for form in operator.forms.values() for name in form.impls))


def _expand_impls(suite: Suite, operator: Operator) -> list[str]:
    """The suite's impls as this operator has them. `cuda` stays where there is none, to be recorded as skipped."""
    has = _impl_names(operator)
    result: list[str] = []
    for impl in suite.impls:
        if impl in ("reference", "compiled"):
            result.append(impl)
        elif ":" in impl:
            result += [impl] if impl in has else []
        else:
            result += [name for name in has if name.split(":")[0] == impl] or (["cuda"] if impl == "cuda" else [])
    return list(dict.fromkeys(result))


def _expand(suite: Suite, loaded: Mapping[str, Operator], variants: Sequence[tuple[str, Params]]) -> Iterator[Cell]:
    for sweep in suite.sweep:
        at = problems(sweep, suite.problem)
        for name, params in variants:
            impls = _expand_impls(suite, loaded[name])
            for impl, scope, mode, problem in itertools.product(impls, suite.scope, suite.mode, at):
                yield Cell(name, impl, scope, mode, problem, params)


def _check_contract(source: Source, operator: Operator, cells: Sequence[Cell]) -> None:
    """Asks a user's operator for what every operator has, so that what is missing is said before anything is run."""
    from attnbench.operator import Cost, Form

    place = source.location
    for scope, form in operator.forms.items():
        if scope not in ("core", "layer") or not isinstance(form, Form):
            raise BadInput(f"{place}: forms has {quoted(scope)}; allowed: 'core' and 'layer', each a Form. Correct it.")
        for impl in form.impls:
            if not isinstance(impl, str) or not re.fullmatch(r"[a-z0-9_]+(:[a-z0-9_]+)?", impl):
                raise BadInput(
                    f"{place}: an impl is named {quoted(impl)}; allowed: small letters, digits and _, with a variant "
                    "after a colon, such as cuda:flash. Rename it."
                )
    for cell in cells:
        with own_errors(f"{place}: why_not"):
            outside = outside_definition(operator, cell.problem, cell.params, cell.scope)
        if outside is None:
            with own_errors(f"{place}: cost"):
                cost = operator.forms[cell.scope].cost(cell.problem, cell.params, cell.mode)
            if not isinstance(cost, Cost):
                raise BadInput(f"{place}: cost returns {type(cost).__name__}, not Cost. See CONTRIBUTING.md, 4.")
            return
