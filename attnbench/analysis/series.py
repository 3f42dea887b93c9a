"""Rows of a run grouped into series, and series into panels: the series of a panel differ in nothing but what they are.

Only series of one panel are ever compared: same scope, mode, dtype, causality, batch, and all sizes but the axis's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from attnbench.axes import AXES, Axis, tokens_axis
from attnbench.errors import BadInput
from attnbench.problem import CELL_COLUMNS, LATER, Problem, problem_of
from attnbench.store.records import Cause


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
    """

    axis: str
    fixed: Mapping[str, Any]
    series: tuple[Series, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Every size of the panel by its label, ascending."""
        sizes = {p.label: p.size for s in self.series for p in s.points}
        return dict(sorted(sizes.items(), key=lambda item: item[1]))

    @property
    def title(self) -> str:
        """The axis and what is fixed, in one line."""
        return f"{self.axis}: {in_a_line(self.fixed)}"

    def fixed_along(self, other: Axis) -> list[dict[str, Any]]:
        """What is left of `fixed` where another axis varies as well, the first choice first."""
        problem = next(point.problem for series in self.series for point in series.points)
        return [
            {name: self.fixed[name] if name in self.fixed else getattr(problem, name) for name in names}
            for names in _fixed(other, tuple(self.fixed))
        ]


def in_a_line(fixed: Mapping[str, Any]) -> str:
    """What is fixed, as a title names it."""
    sizes = [f"{name} {fixed[name]}" for name in _TITLED if fixed.get(name) is not None]
    parts = [f"scope {fixed['scope']}", fixed["mode"], fixed["dtype"], "causal" if fixed["causal"] else "", *sizes]
    return ", ".join(part for part in [*parts, fixed.get("size", ""), fixed["device"]] if part)


def panels(results: pd.DataFrame, axis: str | None = None) -> list[Panel]:
    """The panels of a run, in the order of AXES; a cell that varies along no axis with others stands in a panel of one
    size.

    Args:
        results: one row per key, as `Run.results`.
        axis: the only one that is wanted; None: all.

    Raises: BadInput where that is no axis, or one that the run does not vary.
    """
    if axis is not None and axis not in AXES:
        raise BadInput(f"--axis {axis}: not an axis. Allowed: {', '.join(AXES)}.")
    rows = [_row(row) for row in results[_USED].to_dict("records")]
    names = _names(rows)
    every: list[Panel] = []
    placed: set[str] = set()
    for each in AXES.values():
        for fixed in _fixed(each):
            groups = [_panel(each, common, group, names) for common, group in _grouped(rows, each, fixed)]
            wide = [panel for panel in groups if len(panel.sizes) > 1]
            every += wide
            placed |= {point.key for panel in wide for series in panel.series for point in series.points}
            if wide:
                break
    rest = [row for row in rows if row["key"] not in placed]
    for each in AXES.values():
        if each.domain:
            every += [_panel(each, common, group, names) for common, group in _grouped(rest, each, _fixed(each)[0])]
    chosen = [panel for panel in every if axis in (None, panel.axis)]
    if axis is not None and not chosen:
        varied = ", ".join(dict.fromkeys(panel.axis for panel in every)) or "none"
        raise BadInput(f"--axis {axis}: this run does not vary it; it varies {varied}. Choose one of these.")
    return chosen


_USED = ["key", "status", "reason", "cause", "device", *CELL_COLUMNS]
_FIXED = ("scope", "mode", "dtype", "causal", "batch", "device", "heads", "channels", *LATER, "size")
"""What the series of a panel have in common, but for what varies along its axis. size: the number of tokens."""


_TITLED = ("batch", "heads", "head_dim", "channels", *LATER)


def _fixed(axis: Axis, names: tuple[str, ...] = _FIXED) -> list[tuple[str, ...]]:
    """Those of some names that are constant along an axis, the first choice first."""
    varied = "size" if axis.domain else axis.varies or axis.columns[0]
    fixed = tuple(name for name in names if name != varied)
    if axis.instead is None:
        return [fixed]
    varies_too, constant = axis.instead
    return [fixed, tuple(constant if name == varies_too else name for name in fixed)]


def _row(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of the results with its problem, and what of that a title shows."""
    values = {str(name): _plain(value) for name, value in row.items()}
    problem = problem_of(values)
    tokens = tokens_axis(problem)
    size = f"{tokens.noun or tokens.name} {tokens.label(problem)}"
    return {**values, "problem": problem, "head_dim": problem.head_dim, "size": size}


def _plain(value: Any) -> Any:
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value


def _grouped(
    rows: Iterable[dict[str, Any]], axis: Axis, fixed: tuple[str, ...]
) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if axis.varies_in(row["problem"]):
            groups.setdefault(tuple(row[name] for name in fixed), []).append(row)
    return [(dict(zip(fixed, values, strict=True)), group) for values, group in groups.items()]


def _panel(axis: Axis, fixed: dict[str, Any], rows: list[dict[str, Any]], names: Mapping[Any, str]) -> Panel:
    lines: dict[tuple[str, str, str], list[Point]] = {}
    for row in rows:
        size, label = axis.position(row["problem"]), axis.label(row["problem"])
        point = Point(size, label, row["key"], row["problem"], row["status"], row["reason"] or "", row["cause"] or "")
        lines.setdefault((row["operator"], row["impl"], row["params"]), []).append(point)
    series = tuple(
        Series(names[line], *line[:2], line[2], tuple(sorted(points, key=lambda p: p.size)))
        for line, points in lines.items()
    )
    return Panel(axis.name, fixed, series)


def _names(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, str], str]:
    """Display names by (operator, impl, params): params are named only where series of an operator differ in them."""
    by_operator: dict[str, list[dict[str, Any]]] = {}
    lines = dict.fromkeys((row["operator"], row["impl"], row["params"]) for row in rows)
    for operator, _, params in lines:
        by_operator.setdefault(operator, []).append(json.loads(params))
    names = {}
    for operator, impl, params in lines:
        values, others = json.loads(params), by_operator[operator]
        differing = [name for name in values if any(other.get(name) != values[name] for other in others)]
        text = ",".join(f"{name}={_text(values[name])}" for name in differing)
        names[operator, impl, params] = (
            f"{operator}{' ' + text if text else ''}{'' if impl == 'reference' else ':' + impl}"
        )
    return names


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)
