"""Every series of a panel beside each of what it may be compared with: ratios at every size, and crossovers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attnbench.analysis.baseline import Baseline, alone, best_exact, computes_nothing, is_exact, named, pairs
from attnbench.analysis.crossover import Crossover, crossover
from attnbench.analysis.interval import ratio
from attnbench.analysis.metric_values import Quantity
from attnbench.analysis.series import Panel, Series
from attnbench.analysis.summary import Table


@dataclass(frozen=True)
class Relative:
    """A series beside a baseline.

    Args:
        ratios: by label, series / baseline with the ends of its interval (nan from one round).
        crossover: None for the baseline itself.
    """

    ratios: Mapping[str, tuple[float, float, float]]
    crossover: Crossover | None


@dataclass(frozen=True)
class Comparand:
    """What the series of a panel are compared with.

    Args:
        name: as headings write it.
        values: by label, its figure.
        relatives: by series' name.
    """

    name: str
    values: Mapping[str, float]
    relatives: Mapping[str, Relative]


def comparands(table: Table, baseline: str) -> list[Comparand]:
    """The baseline, the best exact softmax, and every other exact softmax of a panel; without those whose exact figures
    are the baseline's own. None where a metric is not comparable.

    Args:
        table: the panel in one metric.
        baseline: `operator[:impl]`.
    """
    panel, quantity = table.panel, table.quantity
    if not quantity.metric.comparable:
        return []
    exact = {line.series.identity for line in table.every if line.exact}
    members = [s for s in panel.series if is_exact(s, exact)]
    chosen = [named(panel, baseline), best_exact(panel, quantity, exact), *map(alone, members)]
    distinct: dict[frozenset[str], Baseline] = {}
    for each in chosen:
        if each is not None:
            distinct.setdefault(each.members, each)
    every = [_comparand(panel, each, quantity) for each in distinct.values()]
    same = [each for each in every[1:] if not quantity.metric.timed and each.values == every[0].values]
    return [each for each in every if each.values and each not in same]


def _comparand(panel: Panel, baseline: Baseline, quantity: Quantity) -> Comparand:
    values = {label: quantity.values[p.key] for label, p in baseline.points.items() if p.key in quantity.values}
    relatives = {s.name: _relative(panel, s, baseline, quantity) for s in panel.series if not computes_nothing(s)}
    return Comparand(baseline.name, values, relatives)


def _relative(panel: Panel, series: Series, baseline: Baseline, quantity: Quantity) -> Relative:
    sizes = pairs(panel, series, baseline, quantity)
    ratios = {pair.label: ratio(*pair.levels) for pair in sizes if pair.series and pair.baseline}
    return Relative(ratios, None if series.name in baseline.members else crossover(sizes))
