"""Rows of a run grouped into series, and series into panels: the series of a panel differ in nothing but what they are.

Only series of one panel are ever compared: same scope, mode, dtype, causality, batch, and all sizes but the axis's.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from attnbench.analysis.swept import Swept
from attnbench.axes import AXES, Axis, Held, tokens_axis
from attnbench.errors import BadInput
from attnbench.groups import groups_of
from attnbench.naming import option
from attnbench.problem import CELL_COLUMNS, LATER, Problem, operator_with_impl, problem_of
from attnbench.store.records import Cause
from attnbench.units import suggestion


@dataclass(frozen=True)
class Point:
    """One cell of a series.

    Args:
        size: its place on the axis.
        label: the size as written ("1024", "14x28").
        key, problem: the cell's.
        status, reason, cause: of its row in results.csv.
    """

    size: int
    label: str
    key: str
    problem: Problem
    status: str
    reason: str
    cause: Cause = ""


@dataclass(frozen=True)
class Series:
    """An operator with its params and impl along an axis.

    Args:
        name: `operator`, the params in which the run's series of this operator differ, `:impl` unless it is the
            reference.
        params: as canonical JSON.
        points: by ascending size.
    """

    name: str
    operator: str
    impl: str
    params: str
    points: tuple[Point, ...]

    @property
    def identity(self) -> str:
        """How environment.json names this operator and its params."""
        return f"{self.operator} {self.params}"

    def at(self, label: str) -> Point | None:
        """The point of a size, by its label."""
        return next((p for p in self.points if p.label == label), None)


@dataclass(frozen=True)
class Panel:
    """Series that may be compared.

    Args:
        axis: its name.
        fixed: by column, what they have in common; of two sizes whose product varies, the one that is constant.
        together: by the name of another axis, its value at each size, by label, where it varies with this one.
        product: of the positions on this axis and that other one, where it is the same at each size.
    """

    axis: str
    fixed: Mapping[str, Any]
    series: tuple[Series, ...]
    together: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    product: int | None = None

    @cached_property
    def keys(self) -> frozenset[str]:
        """The keys of its cells."""
        return frozenset(point.key for series in self.series for point in series.points)

    @property
    def problems(self) -> set[Problem]:
        """Those of its cells."""
        return {point.problem for series in self.series for point in series.points}

    @property
    def sizes(self) -> dict[str, int]:
        """Every size of the panel by its label, ascending."""
        sizes = {p.label: p.size for s in self.series for p in s.points}
        return dict(sorted(sizes.items(), key=lambda item: item[1]))

    @property
    def title(self) -> str:
        """The axis and what is fixed, in one line, and what varies with the axis."""
        return f"{self.axis}: {in_a_line(self.fixed, self.walked)}"

    @property
    def but_for_mode(self) -> tuple[Any, ...]:
        """The same for panels that differ in nothing but their mode."""
        fixed = tuple((name, value) for name, value in self.fixed.items() if name != "mode")
        return self.axis, fixed, tuple((name, tuple(values.items())) for name, values in self.together.items())

    @property
    def facts(self) -> dict[str, str]:
        """What is fixed, and what varies with the axis, as the title names it, by column."""
        return facts(self.fixed, self.walked)

    @property
    def walked(self) -> list[str]:
        """What varies with the axis, by its values or the constant product."""
        if self.product is None:
            return [f"{name} {', '.join(values.values())}" for name, values in self.together.items()]
        tokens = self.axis if len(AXES[self.axis].columns) == 1 else "tokens"
        return [f"{name} · {tokens} {self.product}" for name in self.together]

    def fixed_at(self, label: str) -> dict[str, Any]:
        """What is fixed, and at one size what varies with the axis as well."""
        beside = {name: values[label] for name, values in self.together.items()}
        tokens = {_tokens(AXES[name], value) for name, value in beside.items() if AXES[name].domain}
        others = {name: int(value) for name, value in beside.items() if not AXES[name].domain}
        return {**self.fixed, **others, **({"size": tokens.pop()} if tokens else {})}

    def fixed_along(self, other: Axis) -> list[dict[str, Any]]:
        """What is left of `fixed` where another axis varies as well, the first choice first."""
        problem = next(point.problem for series in self.series for point in series.points)
        return [
            {name: self.fixed[name] if name in self.fixed else getattr(problem, name) for name in names}
            for names in _fixed(other, tuple(self.fixed))
        ]


def facts(fixed: Mapping[str, Any], more: Iterable[str] = ()) -> dict[str, str]:
    """What is fixed, as a title names it, by column. more: what stands after the sizes."""
    found = {
        "scope": f"scope {fixed['scope']}",
        "mode": fixed["mode"],
        "dtype": fixed["dtype"],
        "causal": "causal" if fixed["causal"] else "",
        **{name: f"{name} {fixed[name]}" for name in _TITLED if fixed.get(name) is not None},
        "together": ", ".join(more),
        "size": fixed.get("size", ""),
        "device": fixed["device"],
    }
    return {name: text for name, text in found.items() if text}


def in_a_line(fixed: Mapping[str, Any], more: Iterable[str] = ()) -> str:
    """The same in one line."""
    return ", ".join(facts(fixed, more).values())


def check_axis(axis: str, name: str = "axis") -> None:
    """Raises BadInput where it is none. name: of the option that gives it."""
    if axis not in AXES:
        raise BadInput(f"{option(name)} {axis}: not an axis{suggestion(axis, AXES)}. Allowed: {', '.join(AXES)}.")


def panels(results: pd.DataFrame, axis: str | None = None, swept: Collection[Swept] = ()) -> list[Panel]:
    """The panels of a run, in the order of AXES, then of the run; those that differ in numbers alone ascend. A cell
    that varies along no axis with others stands in a panel of one size. Of panels along several axes one is shown where
    they hold the same cells, and none that hold what stands in panels of the sweep already, if no axis is asked for.

    Args:
        results: one row per key, as `Run.results`.
        axis: the only one that is wanted; None: all.
        swept: what the suite varies, as `Run.swept`.

    Raises: BadInput where that is no axis, or one that the run does not vary.
    """
    if axis is not None:
        check_axis(axis)
    rows = [_row(row) for row in results[_USED].to_dict("records")]
    names = series_names(rows)
    every = [panel for each in AXES.values() for panel in _along(each, rows, names, swept)]
    placed = {key for panel in every for key in panel.keys}
    rest = [row for row in rows if row["key"] not in placed]
    alone = [axis for axis in AXES.values() if axis.domain]
    every += [
        _panel(each, common, group, names) for each in alone for common, group in _grouped(rest, each, _fixed(each)[0])
    ]
    shown = _shown(every, swept)
    chosen = _in_order([panel for panel in (every if axis else shown) if axis in (None, panel.axis)])
    if axis is not None and not chosen:
        varied = ", ".join(dict.fromkeys(panel.axis for panel in shown)) or "none"
        raise BadInput(f"{option('axis')} {axis}: this run does not vary it; it varies {varied}. Choose one of these.")
    return chosen


def problems_of(results: pd.DataFrame) -> list[Problem]:
    """The problem of every row of `Run.results`."""
    return [_row(row)["problem"] for row in results[_USED].to_dict("records")]


def _along(
    axis: Axis, rows: Sequence[dict[str, Any]], names: Mapping[Any, str], swept: Collection[Swept]
) -> Iterator[Panel]:
    """Panels of several sizes. Each but the first kind of them holds a cell that is in none of a kind before."""
    placed: set[str] = set()
    for choice in _choices(axis, swept):
        entry = choice.entry
        groups = _grouped([row for row in rows if entry is None or entry.has(row["problem"])], axis, choice.fixed)
        together = () if entry is None else entry.together
        several = [each for each in groups if len({axis.position(row["problem"]) for row in each[1]}) > 1]
        every = [_panel(axis, common, group, names, together) for common, group in several]
        wide = [panel for panel in every if not panel.keys <= placed]
        placed = placed.union(*(panel.keys for panel in wide))
        yield from wide


def _shown(every: Iterable[Panel], swept: Collection[Swept]) -> list[Panel]:
    """One panel of each set of cells, along the axis by which entries of the sweep name most of its problems; of those
    that no entry names, where cells of several entries happen to differ in one size, only those by which a cell stands
    somewhere, first those with the fewest sizes given."""
    by_cells = groups_of((panel.keys, panel) for panel in every)
    named = {keys: [_named_by(panel, swept) for panel in same] for keys, same in by_cells.items()}
    distinct = {keys: same[named[keys].index(max(named[keys]))] for keys, same in by_cells.items()}
    chosen = [keys for keys in distinct if max(named[keys]) > 1 or not swept]
    placed = set().union(*chosen)
    for keys in sorted(distinct, key=lambda keys: sum(distinct[keys].fixed.get(name) is not None for name in LATER)):
        if not keys <= placed:
            chosen.append(keys)
            placed |= keys
    return [distinct[keys] for keys in chosen]


def _in_order(every: Sequence[Panel]) -> list[Panel]:
    axes, kinds = list(AXES), list(dict.fromkeys(map(_kind, every)))
    return sorted(every, key=lambda panel: (axes.index(panel.axis), kinds.index(_kind(panel)), _numbers(panel)))


def _kind(panel: Panel) -> tuple[Any, ...]:
    """What panels have in common that differ in numbers alone."""
    return panel.axis, *((name, None if name in _NUMBERS else value) for name, value in panel.fixed.items())


def _numbers(panel: Panel) -> list[int]:
    """By which the panels of a kind ascend."""
    problem = panel.series[0].points[0].problem
    return [getattr(problem, attribute) for name, attribute in _NUMBERS.items() if name in panel.fixed]


def _named_by(panel: Panel, swept: Iterable[Swept]) -> int:
    """How many of a panel's problems an entry has that varies its axis."""
    return max((sum(map(each.has, panel.problems)) for each in swept if each.varies(panel.axis)), default=0)


_USED = ["key", "status", "reason", "cause", "device", *CELL_COLUMNS]
_FIXED = ("scope", "mode", "dtype", "causal", "batch", "device", "heads", "channels", *LATER, "size")
"""What the series of a panel have in common, but for what varies along its axis. size: the number of tokens."""

_TITLED = ("batch", "heads", "head_dim", "channels", *LATER)

_NUMBERS = {name: name for name in _TITLED} | {"size": "seq_len"}
"""By name of what is fixed, the number of a problem that it is."""


@dataclass(frozen=True)
class _Choice:
    """What is constant along an axis.

    Args:
        fixed: names of _FIXED, or of a size that is constant instead of one.
        entry: of the sweep, whose axes walk together, this one among them; None: only this one varies.
    """

    fixed: tuple[str, ...]
    entry: Swept | None = None


def _choices(axis: Axis, swept: Collection[Swept]) -> Iterator[_Choice]:
    """What may be constant along an axis, the first choice first."""
    for fixed in _fixed(axis):
        yield _Choice(fixed)
    for entry in swept:
        if axis.name in entry.together and len(set(entry.places[axis.name])) == len(entry.places[axis.name]):
            varied = {varied for name in entry.together for varied in _varied(AXES[name], AXES[name].held[0])}
            yield _Choice(tuple(name for name in _FIXED if name not in varied), entry)


def _fixed(axis: Axis, names: tuple[str, ...] = _FIXED) -> list[tuple[str, ...]]:
    """Those of some names that are constant along an axis, and what it holds, the first choice first."""
    choices = []
    for held in axis.held:
        varied = _varied(axis, held)
        constant = (held.size,) if held.size and set(varied) <= set(names) else ()
        choices.append(tuple(dict.fromkeys((*(name for name in names if name not in varied), *constant))))
    return choices


def _varied(axis: Axis, held: Held) -> tuple[str, ...]:
    """The names of _FIXED that vary along an axis."""
    return ("size",) if axis.domain else held.varies or axis.columns


def _row(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of the results with its problem, and what of that a title shows."""
    values = {str(name): _plain(value) for name, value in row.items()}
    problem = problem_of(values)
    tokens = tokens_axis(problem)
    size = _tokens(tokens, tokens.label(problem))
    return {**values, "problem": problem, "head_dim": problem.head_dim, "size": size}


def _tokens(axis: Axis, label: str) -> str:
    """How a number of tokens stands in a title."""
    return f"{axis.noun or axis.name} {label}"


def _plain(value: Any) -> Any:
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def _grouped(
    rows: Iterable[dict[str, Any]], axis: Axis, fixed: tuple[str, ...]
) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """(what is fixed, rows) each. A row of which a number of LATER is not stored, as it is the default, stands with
    those of which the same number is stored as well: 512 new tokens of 512 with 512 new tokens of 1024."""
    standing = [row for row in rows if axis.varies_in(row["problem"])]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {tuple(row[name] for name in fixed): [] for row in standing}
    for row in standing:
        numbers = [
            (None, getattr(row["problem"], name)) if name in LATER and row[name] is None else (row[name],)
            for name in fixed
        ]
        for values in itertools.product(*numbers):
            if values in groups:
                groups[values].append(row)
    return [(dict(zip(fixed, values, strict=True)), group) for values, group in groups.items()]


def _panel(
    axis: Axis,
    fixed: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    names: Mapping[Any, str],
    together: Iterable[str] = (),
) -> Panel:
    """The panel of some rows. together: the names of the axes along which they vary together."""
    others = [AXES[name] for name in together if name != axis.name]
    problems = sorted((row["problem"] for row in rows), key=axis.position)
    beside = {other.name: {axis.label(p): other.label(p) for p in problems} for other in others}
    products = (
        {axis.position(p) * other.position(p) for p in problems for other in others} if len(others) == 1 else set()
    )
    lines: dict[tuple[str, str, str], list[Point]] = {}
    for row in rows:
        size, label = axis.position(row["problem"]), axis.label(row["problem"])
        point = Point(size, label, row["key"], row["problem"], row["status"], row["reason"] or "", row["cause"] or "")
        lines.setdefault((row["operator"], row["impl"], row["params"]), []).append(point)
    series = tuple(
        Series(names[line], *line[:2], line[2], tuple(sorted(points, key=lambda p: p.size)))
        for line, points in lines.items()
    )
    return Panel(axis.name, fixed, series, beside, products.pop() if len(products) == 1 else None)


def series_names(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, str], str]:
    """Display names by (operator, impl, params): params are named only where series of an operator differ in them."""
    lines = dict.fromkeys((row["operator"], row["impl"], row["params"]) for row in rows)
    by_operator = groups_of((operator, json.loads(params)) for operator, _, params in lines)
    names = {}
    for operator, impl, params in lines:
        values, others = json.loads(params), by_operator[operator]
        differing = [name for name in values if any(other.get(name) != values[name] for other in others)]
        text = ",".join(f"{name}={params_text(values[name])}" for name in differing)
        names[operator, impl, params] = operator_with_impl(f"{operator} {text}" if text else operator, impl)
    return names


def params_text(value: Any) -> str:
    """How a name has the value of a parameter."""
    return json.dumps(value) if isinstance(value, bool) else str(value)
