"""YAML → Suite. Every mistake names the file, the key path, the value and what is allowed, all at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import attnbench
from attnbench.errors import BadInput
from attnbench.naming import asker, option
from attnbench.plan.mistakes import Notes
from attnbench.plan.settings import MAX_ROUNDS, Limits, Measure
from attnbench.plan.sweep import Shape, Sweep, problems
from attnbench.problem import Mode, ParamValue, Problem, Scope
from attnbench.registry import Source
from attnbench.registry import operators as known_operators
from attnbench.thresholds import Gate
from attnbench.units import quoted, seconds, suggestion, whole_number
from attnbench.yaml_file import parse, read_text, written

Grid = Mapping[str, tuple[ParamValue, ...]]
"""The values of an operator's parameters, by name; they multiply."""


@dataclass(frozen=True)
class Suite:
    """What to measure, as a YAML file says it.

    Attributes:
        baseline: the operator that the others are compared with.
        operators_from: a user's own .py files (absolute) and packages.
        operators: (name, values of its parameters) each.
        impls: a name without a variant stands for all its variants, but for those given with - before their names.
        sweep: its entries; within one the axes multiply.
        problem: the fixed part of every problem.
        where: how messages name the file.
        directory: what its relative paths are relative to.
        text: the YAML as read, but without absolute paths.
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

    Args:
        where: how messages name the text.
        directory: what `operators_from` is relative to.
        name: where the text has none.
        operators_from: in place of the text's, which then is not read: a run folder may be anybody's.

    Raises: BadInput with all mistakes.
    """
    from attnbench.plan.schema import read_fields

    data = parse(text, where)
    fields = read_fields(data, where, directory, name, operators_from)
    return Suite(**fields, where=where, directory=directory, text=without_places(text, data, directory))


def without_places(text: str, data: Mapping[str, Any], directory: Path) -> str:
    """A suite's text as it is stored: without absolute paths in `operators_from`.

    Such a path becomes relative to the suite's directory where it is below that, else the file's name.

    Args:
        data: the text, parsed.
    """
    places = operator_places(data)
    stored = [_without_place(place, directory) for place in places]
    return text if stored == places else written({**data, "operators_from": stored})


def operator_places(data: Mapping[str, Any]) -> list[Any]:
    """`operators_from` of a suite's data, unchecked; [] where there is none."""
    places = data.get("operators_from", [])
    return places if isinstance(places, list) else [places]


def _without_place(place: Any, directory: Path) -> Any:
    if not isinstance(place, str) or not os.path.isabs(place):
        return place
    top = os.path.abspath(directory)
    inside = os.path.commonpath([top, os.path.abspath(place)]) == top
    return os.path.relpath(place, top) if inside else os.path.basename(place)


def named_again(suite: Suite) -> str:
    """What to do where a suite is not the one that a folder to continue was begun with: half a sentence."""
    if suite.operators_from:
        return "Name the suite and the options that it was begun with"
    return f"Give {option('resume')} alone"


def override(
    suite: Suite,
    *,
    operators: Sequence[str] = (),
    impls: Sequence[str] = (),
    rounds: int | None = None,
    budget: str | None = None,
) -> Suite:
    """The suite with what the command line says in place of what the YAML says; its `text` becomes YAML that says so.

    Args:
        operators: several values, or separated by commas. One that the suite has keeps its parameters there; another
            one has its defaults.
        impls: the same.
        rounds: so many and no more; None: the suite's.
        budget: None: the suite's.

    Raises: BadInput with all mistakes.
    """
    from attnbench.plan.schema import read_impl, read_operator_name

    notes = Notes(asker())
    data = parse(suite.text, suite.where)
    known = known_operators(suite.operators_from)
    if operators:
        names = _checked(option("operator"), _split(operators), read_operator_name(known), notes)
        present = [{name: {k: list(v) for k, v in grid.items()}} for name, grid in suite.operators if name in names]
        suite_names = {name for name, _ in suite.operators}
        data["operators"] = [*present, *(name for name in names if name not in suite_names)]
        data["sweep"] = _sweep_of(names, data["sweep"])
        if not impls and not notes.mistakes:
            data["impls"] = _impls_of(names, suite, known)
    if impls:
        data["impls"] = _checked(option("impl"), _split(impls), read_impl, notes)
    if rounds is not None:
        _checked(option("rounds"), [rounds], whole_number(1, MAX_ROUNDS), notes)
        data["measure"] = {**(data.get("measure") or {}), "rounds": rounds, "max_rounds": rounds}
    if budget is not None:
        _checked(option("budget"), [budget], seconds, notes)
        data["limits"] = {**(data.get("limits") or {}), "budget": budget}
    notes.close()
    if not (operators or impls or rounds is not None or budget is not None):
        return suite
    return from_text(
        written(data), f"{suite.where} with the options given", suite.directory, suite.name, suite.operators_from
    )


def _impls_of(names: Sequence[str], suite: Suite, known: Mapping[str, Source]) -> list[str]:
    """The suite's impls without those that none of these operators has, and one that is left out has; if that leaves
    none, all."""
    from attnbench.plan.schema import IMPLS

    own = {impl for impl in suite.impls if impl.removeprefix("-") not in IMPLS}
    if not own:
        return list(suite.impls)
    left_out = [name for name, _ in suite.operators if name not in names]
    foreign = _impl_names(left_out, known) - _impl_names(names, known)
    left = [impl for impl in suite.impls if impl not in own or impl.removeprefix("-") not in foreign]
    return left or list(suite.impls)


def _impl_names(operators: Sequence[str], known: Mapping[str, Source]) -> set[str]:
    """With and without their variants."""
    return {each for name in operators for impl in known[name].load().impls for each in (impl, impl.partition(":")[0])}


def _sweep_of(names: Sequence[str], entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of a sweep that measure one of these operators, and of those that name operators only these."""
    left = []
    for entry in entries:
        own = entry.get("operators", names)
        common = [name for name in ([own] if isinstance(own, str) else own) if name in names]
        if common:
            left.append({**entry, "operators": common} if "operators" in entry else entry)
    return left or list(entries)


def with_budget(suite: Suite, budget: str) -> Suite:
    """The suite with another budget, and the same text: what is left of a stored run may take another time.

    Raises: BadInput.
    """
    notes = Notes(asker())
    _checked(option("budget"), [budget], seconds, notes)
    notes.close()
    return replace(suite, limits=replace(suite.limits, budget_s=seconds(budget)))


def _checked(name: str, values: Sequence[Any], read: Any, notes: Notes) -> list[str]:
    notes.read(name, values, read)
    return list(dict.fromkeys(values))


def _split(values: Sequence[str]) -> list[str]:
    """The values of an option that takes several between commas; one that is empty stays, and is a mistake."""
    return [part.strip() for several in values for part in several.split(",")]
