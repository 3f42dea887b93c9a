"""A comparison as SARIF 2.1.0, which code scanning shows beside the change: a result for what somebody should look at.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/. `level`: error fails the gate; warning: of the base, not measured;
note: it got worse, or is another, and has no threshold. kind `open`: it has one, and is undecided. What is the same, or
got better, is no result: code scanning would show it as an alert.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from attnbench import __version__
from attnbench.analysis.compare.findings import Comparison, Finding
from attnbench.outputs import _comparison as view
from attnbench.outputs._comparison import change, value_text
from attnbench.outputs._export import document
from attnbench.registry import metrics

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

_MEANINGS = {
    "status": "Whether a cell runs and is right.",
    "operations": "Dispatched operators and launched kernels.",
    "kernel": "The kernel that does the work.",
    "missing": "A cell that the base has was not measured.",
    "nothing-measured": "Nothing was measured that could be compared.",
}
"""Of rules that are no metric."""


def comparisons(compared: Sequence[Comparison]) -> str:
    """A log with a run for each."""
    runs = [_run(each, number) for number, each in enumerate(compared, 1)]
    return document({"$schema": SCHEMA, "version": "2.1.0", "runs": runs})


def _run(comparison: Comparison, number: int) -> dict[str, Any]:
    """number: its place in the log."""
    results = list(_results(comparison))
    suite = PurePath(comparison.suite).stem or "compare"
    category = f"attnbench/{suite}{f'/{number}' if number > 1 else ''}/"  # the same in every build
    outcome: dict[str, Any] = {"executionSuccessful": True}
    if comparison.gated:
        outcome |= {"exitCode": comparison.exit_code, "exitCodeDescription": comparison.decision}
    notes = [{"level": "note", "message": {"text": note}} for note in view.notes(comparison)]
    rules = [_rule(name) for name in dict.fromkeys(result["ruleId"] for result in results)]
    return {
        "tool": {"driver": {"name": "attnbench", "version": __version__, "rules": rules}},
        "automationDetails": {"id": category},
        "invocations": [{**outcome, "toolExecutionNotifications": notes}],
        "results": results,
    }


def _rule(name: str) -> dict[str, Any]:
    metric = metrics().get(name)
    meaning = metric.meaning if metric else _MEANINGS.get(name, name.replace("-", " "))
    return {"id": name, "shortDescription": {"text": meaning}}


def _results(comparison: Comparison) -> Iterator[dict[str, Any]]:
    for finding in comparison.findings:
        judged = _judged(finding)
        if judged:
            yield {
                **_result(comparison, _rule_of(finding), finding.subject, finding.name, _message(finding)),
                **judged,
                "properties": _properties(finding),
            }
    for key in comparison.missing:
        text = f"{key}: gone: {comparison.before} has it, and it is not measured any more"
        yield {**_result(comparison, "missing", key, key, text), **_fails("warning")}
    if comparison.gated and not comparison.measured:
        text = "nothing was measured that could be compared"
        yield {**_result(comparison, "nothing-measured", "", "all cells", text), **_fails("warning")}


def _judged(finding: Finding) -> dict[str, str]:
    """Its `kind` and `level`; none where it needs no result."""
    if finding.regression:
        return _fails("error")
    if finding.verdict == "undecided" and finding.threshold is not None:
        return {"kind": "open", "level": "none"}
    ungated = finding.verdict in ("slower", "more", "changed") and finding.threshold is None
    return _fails("note") if ungated else {}


def _fails(level: str) -> dict[str, str]:
    return {"kind": "fail", "level": level}


def _rule_of(finding: Finding) -> str:
    return finding.metric.replace(" ", "-")


def _result(comparison: Comparison, rule: str, subject: str, name: str, message: str) -> dict[str, Any]:
    """What all results have: the subject's place, and a fingerprint by which the same one is known in another log.

    Code scanning wants a line, and tells alerts of a rule in a file apart by a hash of it: it is the fingerprint.
    """
    digest = hashlib.sha256(f"{rule} {subject}".encode(errors="replace")).hexdigest()
    places = list(dict.fromkeys(_places(comparison, subject)))
    logical = [{"name": name, "fullyQualifiedName": subject or name}]
    physical = [{"physicalLocation": {"artifactLocation": {"uri": uri}, "region": {"startLine": 1}}} for uri in places]
    first = {**(physical[0] if physical else {}), "logicalLocations": logical}
    related = {"relatedLocations": physical[1:]} if len(physical) > 1 else {}
    return {
        "ruleId": rule,
        "message": {"text": message},
        "locations": [first],
        **related,
        "partialFingerprints": {"attnbench/v1": digest, "primaryLocationLineHash": f"{digest[:16]}:1"},
    }


def _places(comparison: Comparison, subject: str) -> Iterator[str]:
    """The operator's file, where it is below the current directory, and the suite's."""
    yield from _below([comparison.operator_files.get(subject.split(".")[0], "")])
    if comparison.suite:
        yield next(_below([comparison.suite]), quote(PurePath(comparison.suite).name))


def _below(files: Iterable[str]) -> Iterator[str]:
    """The files below the current directory, as URIs relative to it; of all others the place is private."""
    for file in files:
        relative = PurePath(os.path.relpath(file)) if file else PurePath("..")
        if ".." not in relative.parts and not relative.is_absolute():
            yield quote(relative.as_posix())


def _message(finding: Finding) -> str:
    values = [value_text(value, finding) for value in (finding.before, finding.after)]
    shown = " → ".join(values) if any(values) else ""
    figures = ", ".join(part for part in (shown, change(finding)) if part)
    head = f"{finding.name}: {finding.metric} {finding.verdict}{f': {figures}' if figures else ''}"
    return f"{head}. {finding.reason}" if finding.reason else head


def _properties(finding: Finding) -> Mapping[str, Any]:
    """The figures in base units, as far as there are any."""
    names = ("metric", "verdict", "before", "after", "ratio", "low", "high", "threshold", "detectable")
    values = {name: getattr(finding, name) for name in names}
    return {
        name: value.item() if hasattr(value, "item") else value
        for name, value in values.items()
        if value is not None and not (isinstance(value, float) and not math.isfinite(value))
    }
