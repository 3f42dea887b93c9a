"""A comparison as JUnit XML: one test per finding that is gated; undecided ones are skipped tests with their reason."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from attnbench.analysis.compare.findings import Comparison
from attnbench.outputs import _comparison as view
from attnbench.outputs._comparison import change


def comparisons(compared: Sequence[Comparison]) -> str:
    """A document for each."""
    return "".join(map(_document, compared))


def _document(comparison: Comparison) -> str:
    """The document. A build without any decision has one failing test that says so."""
    gated = [f for f in comparison.findings if f.threshold is not None or f.regression]
    suite = ElementTree.Element("testsuite", name="attnbench")
    failures = skipped = 0
    for f in gated:
        case = ElementTree.SubElement(suite, "testcase", classname=f.metric, name=_clean(f.name))
        if f.regression:
            failures += 1
            ElementTree.SubElement(case, "failure", message=_clean(change(f) or f.reason)).text = _clean(f.reason)
        elif f.verdict == "undecided":
            skipped += 1
            ElementTree.SubElement(case, "skipped", message=_clean(f.reason))
    tests = len(gated)
    for key in comparison.missing:
        tests, skipped = tests + 1, skipped + 1
        case = ElementTree.SubElement(suite, "testcase", classname="missing", name=_clean(key))
        ElementTree.SubElement(case, "skipped", message="gone: not measured any more")
    if not comparison.measured:
        tests, failures = tests + 1, failures + 1
        case = ElementTree.SubElement(suite, "testcase", classname="attnbench", name="measured")
        ElementTree.SubElement(case, "failure", message="nothing was measured")
    suite.set("tests", str(tests))
    suite.set("failures", str(failures))
    suite.set("skipped", str(skipped))
    output = ElementTree.SubElement(suite, "system-out")
    output.text = _clean("\n".join([*view.notes(comparison), comparison.decision]))
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _clean(value: str) -> str:
    """Without the characters that XML 1.0 does not allow."""
    return "".join(
        c for c in value if c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff"
    )
