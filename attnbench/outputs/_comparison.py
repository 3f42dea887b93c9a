"""What the formats of a comparison share: what changed first, quiet about what did not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from attnbench import files
from attnbench.analysis.compare.findings import Comparison, Finding
from attnbench.outputs import json
from attnbench.outputs._rows import Listing
from attnbench.problem import key_parts, operator_with_impl
from attnbench.registry import metrics
from attnbench.store.privacy import without_paths
from attnbench.thresholds import OPERATIONS
from attnbench.units import count, listed, percent, shown

_MOST = 40


def chosen(comparison: Comparison) -> list[Finding]:
    """What is worth a line: everything that changed, and what the gate cannot tell."""
    undecided = set(map(id, comparison.undecided))
    return [f for f in comparison.findings if f.verdict not in ("same", "undecided") or id(f) in undecided][:_MOST]


def listing(findings: Sequence[Finding]) -> Listing:
    """A row for each finding."""
    rows = [
        {
            "verdict": f"{f.verdict.upper() if f.regression else f.verdict}",
            "what": f.name,
            "metric": f.metric,
            "before": value_text(f.before, f),
            "after": value_text(f.after, f),
            "change": change(f),
            "reason": f.reason if _explained(f) else "",
        }
        for f in findings
    ]
    return Listing(rows, numbers=("before", "after", "change"), sentences=("reason",))


def _explained(f: Finding) -> bool:
    """Whether a finding's line needs its reason: it decides the build, or no figure of it says what changed."""
    return f.regression or f.verdict == "undecided" or not change(f) or f.metric == OPERATIONS


def value_text(value: float | str | None, finding: Finding) -> str:
    """A value of a finding in the unit of its metric; empty where there is none."""
    if value is None or isinstance(value, str):
        return value or ""
    metric = metrics().get(finding.metric)
    return shown(value, metric.unit) if metric else f"{value:g}"


def change(f: Finding) -> str:
    """`+12.3% [+8.1%, +16.7%]`, with … for an end above tenfold; empty where there is no ratio."""
    if f.ratio is None or not math.isfinite(f.ratio):
        return ""
    text = f"{f.ratio - 1:+.1%}"
    if f.low is not None and f.high is not None and f.low != f.high:
        text += f" [{f.low - 1:+.1%}, {'…' if f.high > 11 else f'{f.high - 1:+.1%}'}]"
    return text


def around(comparison: Comparison, above: Sequence[Finding]) -> list[str]:
    """What stands below the table: what was left out, what is `beside` it, and the decision."""
    rest = [f for f in comparison.findings if f not in above]
    counts = ", ".join(f"{n} {verdict}" for verdict, n in sorted(Counter(f.verdict for f in rest).items()))
    return [*([f"not shown: {counts}"] if rest else []), *beside(comparison), comparison.decision]


def beside(comparison: Comparison) -> list[str]:
    """What no finding says: cells without a partner, crossovers, and what could have been seen."""
    from attnbench.outputs._run_tables import shift_texts

    lines = []
    for what, keys in (("gone", comparison.missing), ("new", comparison.new)):
        if keys:
            lines.append(f"{what}: {count(len(keys), 'cell')}: {_by_operator(keys)}")
    lines += [
        f"crossover of {c.series} in {c.metric} with {c.baseline}: {' → '.join(shift_texts(c))}"
        for c in comparison.shifts
        if c.changed
    ]
    detectable = [f.detectable for f in comparison.findings if f.detectable and f.threshold is not None]
    if detectable:
        best, worst = percent(min(detectable)), percent(max(detectable))
        lines.append(f"smallest slow-down seen: {best} at best, {worst} at worst")
    return lines


def notes(comparison: Comparison) -> tuple[str, ...]:
    """What a reader must know first, as sentences."""
    if comparison.devices is None:
        return comparison.notes
    before, after = (", ".join(ids[:3]) + (" and more" if len(ids) > 3 else "") for ids in comparison.devices)
    return (
        f"times before are of another device than those after, of one model ({before}; {after}): such devices differ",
        *comparison.notes,
    )


def _by_operator(keys: Sequence[str]) -> str:
    """How many of the keys each operator's impl has: `performer (4), softmax:sdpa (2)`."""
    series = Counter(operator_with_impl(*key_parts(key)[:2]) for key in keys)
    texts = [f"{name} ({number})" for name, number in series.items()]
    return listed(texts, 8)


def store(folder: Path, comparison: Comparison) -> None:
    """gate.json: the comparison as `compare --format json` gives it."""
    with files.going_on(folder, "The decision is printed, but not stored."):
        files.replace(folder / "gate.json", without_paths(json.comparisons([comparison])))
