"""What the formats of `dispatch` share: a table for each panel, its rows, and the document of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from attnbench import __version__
from attnbench.analysis.contest import NEAR, Arm, Inside, Range, Regret, Threshold
from attnbench.analysis.dispatch import Dispatch, Rules
from attnbench.analysis.distributions import CONFIDENCE
from attnbench.analysis.run import Run
from attnbench.axes import AXES
from attnbench.outputs._rows import Listing, Row
from attnbench.units import count, percent

VERSION = 1
"""Of the document: raised when the meaning of a field changes or one is taken away; fields may be added."""

INSIDE: Mapping[Inside, str] = {
    "baseline": "the baseline is taken where it is among these, else the one with the least interpolated time",
    "cheapest": "the one with the least interpolated time is taken",
}
"""What a rule takes inside an undecided range, in words."""


@dataclass(frozen=True)
class Part:
    """One panel: a heading, and its table with notes."""

    heading: str
    listing: Listing


def parts(dispatch: Dispatch) -> Iterator[Part]:
    """Every panel that has rules."""
    for rules in dispatch.panels:
        exact = {arm.name: arm.exact for arm in rules.arms}
        table = [
            {
                position_name(rules): positions(ranges),
                "take": take,
                "exact": "yes" if exact[take] else "no",
                "undecided": "; ".join(_doubts(ranges)),
            }
            for take, ranges in _by_take(rules.ranges)
        ]
        notes = [*(threshold_text(each) for each in rules.thresholds), regret_text(rules.regret)]
        yield Part(rules.panel.title, Listing(table, notes=notes))


def legend(dispatch: Dispatch) -> list[str]:
    """What the columns mean, the regret of all panels together, and which panels have no rules."""
    lines = [
        f"undecided: what {CONFIDENCE:.0%} intervals do not tell from the cheapest; {INSIDE[dispatch.inside]}. "
        "exact: no: another function than softmax attention; its quality is not measured here.",
        "Below the smallest and above the largest size nothing was measured: there the nearest range is only a guess.",
        "lost: each size but the smallest and the largest of a series is left out in turn: the time of what a rule of "
        "the other sizes takes there over that of the fastest, less 1; all sizes have the same weight. The "
        "fastest is the least of noisy times: in expectation the true loss is no more.",
    ]
    if len(dispatch.panels) > 1:
        lines.append(f"all panels: {regret_text(dispatch.regret)}")
    return lines + list(_left_out(dispatch.left_out))


def _left_out(titles: Sequence[tuple[str, str]]) -> Iterator[str]:
    """A line for each reason, with the first panel that has it."""
    for reason in dict.fromkeys(reason for _, reason in titles):
        first, *others = [title for title, its in titles if its == reason]
        more = f" and {count(len(others), 'panel')} more" if others else ""
        yield f"no rule: {first}{more}: {reason}"


def position_name(rules: Rules) -> str:
    """What a position on the axis counts: `seq_len`; of images, whose sides are multiplied, `tokens`."""
    axis = AXES[rules.panel.axis]
    return axis.name if len(axis.columns) == 1 else "tokens"


def _by_take(ranges: Sequence[Range]) -> list[tuple[str, list[Range]]]:
    """Neighbouring ranges with the same answer, in one row."""
    return [(take, list(group)) for take, group in groupby(ranges, key=lambda each: each.take)]


def positions(ranges: Sequence[Range]) -> str:
    """From the first to the last position of neighbouring ranges."""
    low, high = ranges[0].low, ranges[-1].high
    return f"{low} to {high}" if low < high else str(low)


def _doubts(ranges: Sequence[Range]) -> Iterator[str]:
    """What else may be the cheapest, and where, for ranges with one answer."""
    for undecided, group in groupby(ranges, key=lambda each: each.undecided):
        stretch = list(group)
        if undecided:
            others = dict.fromkeys(arm for each in stretch for arm in each.among if arm != stretch[0].take)
            where = "" if len(stretch) == len(ranges) else f"{positions(stretch)}: "
            yield where + (", ".join(others) or "nothing was measured")


def doubt(each: Range) -> str:
    """The arms that are not told apart in an undecided range; empty of a decided one."""
    return (", ".join(each.among) or "nothing was measured") if each.undecided else ""


def threshold_text(threshold: Threshold) -> str:
    """`local instead of softmax: from 838 on [799, 901]`: where the rule changes, as its table says."""
    ends = f"[{threshold.low}, {threshold.high}]"
    change = f"{threshold.above} instead of {threshold.below}"
    return f"{change}: from {threshold.start} on {ends}" if threshold.at else f"{change}: within {ends}"


def regret_text(regret: Regret) -> str:
    """What the rule loses, in one sentence."""
    if regret.mean is None or regret.largest is None:
        return "lost: not known; it takes three sizes or more"
    noise = f" ±{percent(regret.half_width)}" if regret.half_width else ""
    return (
        f"lost: {percent(regret.mean)}{noise} on average, {percent(regret.largest)} at most; within {NEAR:.0%} of the "
        f"fastest at {regret.near} of {len(regret.losses)} sizes, told apart from it at {regret.told_apart}"
    )


def rows(dispatch: Dispatch) -> list[Row]:
    """One for each range: its run's number, its panel's axis and key, and its fields."""
    names = dict.fromkeys(name for rules in dispatch.panels for name in rules.key)
    return [
        {
            "run": rules.run,
            "axis": rules.panel.axis,
            "metric": dispatch.metric,
            **{name: rules.key.get(name) for name in names},
            **each,
        }
        for rules in dispatch.panels
        for each in _ranges(rules)
    ]


def document(dispatch: Dispatch) -> dict[str, Any]:
    """What `dispatch.schema.json` describes."""
    return {
        "version": VERSION,
        "attnbench": __version__,
        "metric": dispatch.metric,
        "confidence": CONFIDENCE,
        "inside": dispatch.inside,
        "runs": [run_facts(run) for run in dispatch.runs],
        "panels": [_panel(rules) for rules in dispatch.panels],
        "regret": _regret(dispatch.regret),
        "left_out": [{"panel": title, "reason": reason} for title, reason in dispatch.left_out],
    }


def run_facts(run: Run) -> dict[str, str]:
    """What a run is known by: its suite, when and by what it was measured, and its contract."""
    facts = {name: str(run.environment.get(name) or "") for name in ("started", "attnbench", "torch")}
    return {"suite": run.name, **facts, "contract": str(run.visits["contract"].iloc[0])}


def _panel(rules: Rules) -> dict[str, Any]:
    return {
        "run": rules.run,
        "axis": rules.panel.axis,
        "key": dict(rules.key),
        "arms": [_arm(arm) for arm in rules.arms],
        "ranges": _ranges(rules),
        "thresholds": [asdict(each) for each in rules.thresholds],
        "beyond": {"below": "smallest", "above": "largest"},
        "regret": _regret(rules.regret),
    }


def _arm(arm: Arm) -> dict[str, Any]:
    series = arm.series
    what = {"name": arm.name, "operator": series.operator, "impl": series.impl, "params": json.loads(series.params)}
    return {**what, "exact": arm.exact, "baseline": arm.baseline}


def _ranges(rules: Rules) -> list[Mapping[str, Any]]:
    exact = {arm.name: arm.exact for arm in rules.arms}
    return [
        {**asdict(each), "exact": exact[each.take], "undecided": each.undecided, "among": list(each.among)}
        for each in rules.ranges
    ]


def _regret(regret: Regret) -> dict[str, Any]:
    return {
        "sizes": len(regret.losses),
        "mean": regret.mean,
        "half_width": regret.half_width,
        "largest": regret.largest,
        "near": regret.near,
        "told_apart": regret.told_apart,
        "losses": [{**asdict(each), "told_apart": each.told_apart} for each in regret.losses],
    }
