"""Thresholds that code can use: which arm to call at which size of each panel of a run, and what that loses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from attnbench.analysis.baseline import check, computes_nothing, is_exact, named
from attnbench.analysis.cards import hardware
from attnbench.analysis.contest import Arm, Contest, Inside, Range, Regret, Threshold, certainty
from attnbench.analysis.metric_values import quantity
from attnbench.analysis.series import Panel, Series, panels
from attnbench.axes import tokens_axis
from attnbench.errors import BadInput
from attnbench.problem import operator_and_impl, operator_with_impl
from attnbench.registry import metrics
from attnbench.units import count, suggestion

if TYPE_CHECKING:
    from attnbench.analysis.run import Run


@dataclass(frozen=True)
class Rules:
    """What to call in one panel.

    Args:
        run: its position among those of the dispatch.
        key: what the panel's problems have in common, by name, with the device's name.
        arms: the baseline first.
        ranges: ascending, one after another.
    """

    run: int
    panel: Panel
    key: Mapping[str, Any]
    arms: tuple[Arm, ...]
    ranges: tuple[Range, ...]
    thresholds: tuple[Threshold, ...]
    regret: Regret

    @property
    def decided(self) -> bool:
        """Whether anywhere it is known which alternative, or that the baseline, is the cheapest."""
        return any(certainty(self.arms, each) for each in self.ranges)


@dataclass(frozen=True)
class Dispatch:
    """Rules of one or more runs, in one metric. left_out: titles of panels without rules, each with the reason."""

    runs: tuple[Run, ...]
    metric: str
    inside: Inside
    panels: tuple[Rules, ...]
    left_out: tuple[tuple[str, str], ...]

    @cached_property
    def regret(self) -> Regret:
        """Of all panels."""
        return Regret(tuple(loss for rules in self.panels for loss in rules.regret.losses))


def dispatch(
    runs: Sequence[Run],
    metric: str,
    operators: Collection[str] = (),
    baseline: str | None = None,
    axis: str | None = None,
    inside: Inside = "cheapest",
) -> Dispatch:
    """The rules of every panel in which arms can be compared.

    Args:
        metric: one that is taken in timed rounds.
        operators: the alternatives, as `operator` (every impl), `operator:impl` or the name of a series; none: all that
            are not exact, but for identity, which computes nothing.
        baseline: as `operator[:impl]`; None: exact softmax, of every impl.
        axis: None: all.
        inside: what is taken inside an undecided range.

    Raises: BadInput where a run has no figures of the metric, no such axis, baseline or operator, or where there is
    nothing to choose between.
    """
    if metric not in metrics() or not (metrics()[metric].timed and metrics()[metric].comparable):
        timed = sorted(name for name, each in metrics().items() if each.timed and each.comparable)
        near = suggestion(metric, timed)
        raise BadInput(f"--metric {metric}: not taken in timed rounds{near}; allowed: {', '.join(timed)}.")
    for run in runs:
        if run.results.empty:
            raise BadInput(f"{run.folder}: nothing was measured in this run. Measure it again, or give another run.")
    every = [(number, run, panel) for number, run in enumerate(runs) for panel in panels(run.results, axis)]
    _check_arms([panel for _, _, panel in every], _exact(runs), operators, baseline)
    quantities = [quantity(run, metric) for run in runs]
    for run, each in zip(runs, quantities, strict=True):
        if not each.levels:
            raise BadInput(f"--metric {metric}: {run.folder} has no figure of it. Give a metric that it has.")
    rules: list[Rules] = []
    left_out: list[tuple[str, str]] = []
    for number, run, panel in every:
        arms = _arms(panel, _exact([run]), operators, baseline)
        contest = Contest(panel, arms, quantities[number], inside)
        reason = contest.nothing_to_compare()
        if reason:
            left_out.append((panel.title, reason))
        else:
            ranges = contest.ranges()
            thresholds = tuple(contest.thresholds(ranges))
            rules.append(Rules(number, panel, _key(panel, run), arms, ranges, thresholds, contest.regret()))
    if not rules:
        panels_of = Counter(reason for _, reason in left_out)
        reasons = "; ".join(f"{reason} ({count(number, 'panel')})" for reason, number in panels_of.items())
        raise BadInput(f"nothing to choose between: {reasons}. Give a run of several operators at several sizes.")
    _check_unique(rules)
    return Dispatch(tuple(runs), metric, inside, tuple(rules), tuple(left_out))


def _key(panel: Panel, run: Run) -> dict[str, Any]:
    """What is fixed, in numbers; one that nobody gave and that follows the axis is left out."""
    problem = panel.series[0].points[0].problem
    key = {name: value for name, value in panel.fixed.items() if value is not None and name != "size"}
    if "size" in panel.fixed:
        key |= {column: getattr(problem, column) for column in tokens_axis(problem).columns}
    if "heads" in key and panel.axis != "kv_heads":
        key.setdefault("kv_heads", key["heads"])
    return {**key, "device_name": hardware(run.environment) or None}


def _check_unique(rules: Sequence[Rules]) -> None:
    """Raises BadInput where two runs have the same panel."""
    titles: dict[tuple[Any, ...], Rules] = {}
    for each in rules:
        other = titles.setdefault((each.panel.axis, *sorted(map(str, each.key.items()))), each)
        if other is not each:
            raise BadInput(
                f"{each.panel.title}: run {other.run + 1} and run {each.run + 1} both have it, on the same device, "
                "and a rule comes from one of them. Leave one of the runs out."
            )


def _check_arms(
    every: Sequence[Panel], exact: Collection[str], operators: Collection[str], baseline: str | None
) -> None:
    """Raises BadInput where no panel has a wanted operator, or the baseline."""
    series = [each for panel in every for each in panel.series]
    if baseline is not None:
        check(every, baseline)
    elif not any(is_exact(each, exact) for each in series):
        raise BadInput(
            f"this run has no exact softmax to compare with; it has {', '.join(_names(series))}. "
            "Give one of them as --baseline, or measure softmax beside them."
        )
    for name in operators:
        if not any(_is_named(each, name) for each in series):
            raise BadInput(
                f"--operator {name}: this run has no such series{suggestion(name, _names(series))}. It has "
                f"{', '.join(_names(series))}. Give one of them as operator (every impl of it) or operator:impl."
            )


def _names(series: Iterable[Series]) -> list[str]:
    return sorted({operator_with_impl(each.operator, each.impl) for each in series}) or ["none"]


def _is_named(series: Series, name: str) -> bool:
    """Whether a series is `operator` in any impl, `operator:impl`, or what it is called in tables."""
    named_by = (series.operator, operator_with_impl(series.operator, series.impl), series.name)
    return not computes_nothing(series) and (
        name in named_by or (series.operator, series.impl) == operator_and_impl(name)
    )


def _exact(runs: Iterable[Run]) -> frozenset[str]:
    return frozenset(name for run in runs for name in run.environment.get("exact", ()))


def _arms(panel: Panel, exact: Collection[str], operators: Collection[str], baseline: str | None) -> tuple[Arm, ...]:
    """The arms of a panel, the baseline first; none where it has none."""
    reference = named(panel, baseline) if baseline is not None else None
    members = (
        reference.members if reference else {s.name for s in panel.series if baseline is None and is_exact(s, exact)}
    )
    first = [s for s in panel.series if s.name in members]
    if not first:
        return ()
    wanted = [s for s in panel.series if any(_is_named(s, name) for name in operators)]
    if not operators:
        wanted = [s for s in panel.series if not is_exact(s, exact) and not computes_nothing(s)]
    return tuple(
        Arm(s, is_exact(s, exact), baseline)
        for some, baseline in ((first, True), (wanted, False))
        for s in some
        if baseline or s not in first
    )
