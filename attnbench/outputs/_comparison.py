"""A comparison as table, Markdown, JSON and CSV: what changed first, quiet about what did not."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attnbench import files
from attnbench.analysis.compare.findings import Comparison, Finding
from attnbench.analysis.compare.tier0_exact import OPERATIONS
from attnbench.outputs._markdown import escaped
from attnbench.outputs._rows import Row, markdown, print_table
from attnbench.problem import key_parts, operator_with_impl
from attnbench.store.privacy import without_paths
from attnbench.units import count, shown, times

VERSION = 1
"""Of the JSON: raised when the meaning of a field changes or one is taken away; fields may be added."""

_UNITS = {"wall_time": "s", "device_time": "s", "peak_memory": "bytes", "flops": "flop", "energy": "j"}
_NUMBERS = ("before", "after", "change")
_MOST = 40


def write(found: Comparison) -> None:
    """Prints the table and everything around it."""
    print(f"{found.before} → {found.after}")
    for note in found.notes:
        print(f"note: {note}")
    chosen = _chosen(found)
    print_table(_rows(chosen), _NUMBERS, ("reason",))
    for line in _around(found, chosen):
        print(line)


def markdown_text(found: Comparison) -> str:
    """The step summary of a build."""
    mark = {0: "pass", 1: "regression", 3: "undecided"}[found.exit_code] if found.gated else "comparison"
    lines = [f"### attnbench: {mark}", "", escaped(f"{found.before} → {found.after}"), ""]
    lines += [f"- {escaped(note)}" for note in found.notes] + ([""] if found.notes else [])
    chosen = _chosen(found)
    if chosen:
        lines += [markdown(_rows(chosen), _NUMBERS)]
    return "\n".join([*lines, *map(escaped, _around(found, chosen))]) + "\n"


def json_text(*found: Comparison) -> str:
    """`version` and `comparisons`, each with `before`, `after`, `decision`, `exit_code`, `measured`, `notes`,
    `findings` (the fields of `findings.Finding`, in base units, all of them), `missing`, `new` (keys) and
    `crossovers` (the fields of `findings.CrossoverShift`)."""
    document = {"version": VERSION, "comparisons": [_document(each) for each in found]}
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _document(found: Comparison) -> dict[str, Any]:
    return {
        "before": found.before,
        "after": found.after,
        "decision": found.decision,
        "exit_code": found.exit_code,
        "measured": found.measured,
        "notes": list(found.notes),
        "findings": [_finite(asdict(f)) for f in found.findings],
        "missing": list(found.missing),
        "new": list(found.new),
        "crossovers": [asdict(c) for c in found.shifts],
    }


def csv_text(found: Comparison) -> str:
    """One row per finding, in base units; missing is empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [*Finding.__dataclass_fields__], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_finite(asdict(f)) for f in found.findings)
    return file.getvalue()


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}


def _chosen(found: Comparison) -> list[Finding]:
    """What is worth a line: everything that changed, and what the gate cannot tell."""
    undecided = set(map(id, found.undecided))
    return [f for f in found.findings if f.verdict not in ("same", "undecided") or id(f) in undecided][:_MOST]


def _rows(findings: Sequence[Finding]) -> list[Row]:
    return [
        {
            "verdict": f"{f.verdict.upper() if f.regression else f.verdict}",
            "what": f.name,
            "metric": f.metric,
            "before": _value(f.before, f.metric),
            "after": _value(f.after, f.metric),
            "change": change(f),
            "reason": f.reason if _explained(f) else "",
        }
        for f in findings
    ]


def _explained(f: Finding) -> bool:
    """Whether a finding's line needs its reason: it decides the build, or no figure of it says what changed."""
    return f.regression or f.verdict == "undecided" or not change(f) or f.metric == OPERATIONS


def _value(value: float | str | None, metric: str) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if metric.endswith("/ baseline"):
        return times(value)
    return shown(value, _UNITS[metric]) if metric in _UNITS else f"{value:g}"


def change(f: Finding) -> str:
    """`+12.3% [+8.1%, +16.7%]`; empty where there is no ratio."""
    if f.ratio is None or not math.isfinite(f.ratio):
        return ""
    text = f"{f.ratio - 1:+.1%}"
    if f.low is not None and f.high is not None and f.low != f.high:
        text += f" [{f.low - 1:+.1%}, {f.high - 1:+.1%}]"
    return text


def _around(found: Comparison, chosen: Sequence[Finding]) -> list[str]:
    """What stands below the table: what was left out, cells without a partner, crossovers, and the decision."""
    lines = []
    left = [f for f in found.findings if f not in chosen]
    if left:
        counts = Counter(f.verdict for f in left)
        lines.append("not shown: " + ", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items())))
    for what, keys in (("gone", found.missing), ("new", found.new)):
        if keys:
            lines.append(f"{what}: {count(len(keys), 'cell')}: {_by_operator(keys)}")
    lines += [
        f"crossover of {c.series} in {c.metric} against {c.baseline}: {c.before} → {c.after}"
        for c in found.shifts
        if c.changed
    ]
    seen = [f.detectable for f in found.findings if f.detectable and f.threshold is not None]
    if seen:
        lines.append(f"smallest slow-down seen: {min(seen):.1%} at best, {max(seen):.1%} at worst")
    return [*lines, found.decision]


def _by_operator(keys: Sequence[str], most: int = 8) -> str:
    """How many of the keys each operator's impl has: `performer (4), softmax:sdpa (2)`."""
    series = Counter(operator_with_impl(*key_parts(key)[:2]) for key in keys)
    told = [f"{name} ({number})" for name, number in series.items()]
    return ", ".join(told[:most]) + (f" and {len(told) - most} more" if len(told) > most else "")


def explanation(found: Comparison, key: str, samples: Sequence[Row]) -> str:
    """Why the verdicts on one cell are what they are, with its rounds. samples: side, round, median, count, spread."""
    lines = [key]
    for f in found.findings:
        if f.subject == key:
            before, after = _value(f.before, f.metric), _value(f.after, f.metric)
            figures = " ".join(filter(None, (before, "→", after, change(f))))
            lines.append(f"{f.metric}: {figures}: {f.verdict}, because {f.reason}")
    lines += [" ".join(f"{name} {value}" for name, value in row.items()) for row in samples]
    return "\n".join(lines) + "\n"


def store(folder: Path, found: Comparison) -> None:
    """gate.json: the comparison as `compare --format json` gives it."""
    with files.storing(folder):
        files.replace(folder / "gate.json", without_paths(json_text(found)))
