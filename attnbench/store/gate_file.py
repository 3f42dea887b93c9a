"""Reads the decision of a gate from its folder, which may be damaged or anybody's: validated, or BadInput."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnbench.errors import BadInput
from attnbench.store.trusted_json import REPAIR, parse_object, read_text

GATE = "gate.json"
BASE, HEAD = "base", "head"
"""The folders of a gate's two runs, beside GATE."""

CHANGED = ("slower", "faster", "more", "less")
"""The verdicts on a figure that changed."""


@dataclass(frozen=True)
class PairedChange:
    """What a gate found changed: a metric of a cell.

    Args:
        key: the cell's, in the candidate's run.
        ratio, low, high: after / before, with its interval; None: not stored.
    """

    key: str
    metric: str
    verdict: str
    ratio: float
    low: float | None
    high: float | None


def read_gate(folder: Path) -> list[PairedChange]:
    """What a gate found changed in the figures of single cells. folder: that of the gate. Raises BadInput."""
    path = folder / GATE
    document = parse_object(read_text(path), str(path))
    comparisons = document.get("comparisons")
    if not isinstance(comparisons, list) or not all(isinstance(each, dict) for each in comparisons):
        raise BadInput(f"{path}: it has no list 'comparisons'. {REPAIR}")
    findings = [finding for each in comparisons for finding in _list(each.get("findings"))]
    return [
        PairedChange(f["subject"], f["metric"], f["verdict"], f["ratio"], _end(f, "low"), _end(f, "high"))
        for f in findings
        if isinstance(f, dict) and _is_change(f)
    ]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_change(finding: dict[str, Any]) -> bool:
    named = all(isinstance(finding.get(name), str) for name in ("subject", "metric"))
    return named and finding.get("verdict") in CHANGED and _end(finding, "ratio") is not None


def _end(finding: dict[str, Any], name: str) -> float | None:
    """A ratio of a finding; None where it has none that can be one."""
    value = finding.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value) if 1e-9 < value < 1e9 else None
