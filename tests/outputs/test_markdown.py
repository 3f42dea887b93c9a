"""Markdown of any text: no stored reason, key or note is markup or HTML where it is shown."""

from __future__ import annotations

from attnbench.analysis.compare.findings import Comparison, Finding
from attnbench.outputs import markdown
from attnbench.outputs._markdown import escaped
from attnbench.outputs._rows import Listing

EVIL = "<img src=x onerror=alert(1)> | a*b*c _d_ \\"


def test_marks_are_escaped_and_lines_joined() -> None:
    assert escaped(EVIL) == "\\<img src=x onerror=alert(1)\\> \\| a\\*b\\*c \\_d\\_ \\\\"
    assert escaped("two\nlines") == "two lines"
    assert escaped("plain: 1.5 ms [1, 2]") == "plain: 1.5 ms [1, 2]"


def test_a_table_and_a_step_summary_hold_no_html() -> None:
    finding = Finding(EVIL, EVIL, "status", "ok", EVIL, "changed", True, reason=EVIL)
    whole = Comparison(EVIL, EVIL, (finding,), notes=(EVIL,), measured=1, gated=True)
    for text in (markdown.rows(Listing([{"reason": EVIL}], notes=(EVIL,))), markdown.comparisons([whole])):
        assert "onerror" in text
        assert not text.replace("\\<", "").count("<")
        assert all(row.replace("\\|", "").count("|") in (0, 2, 8, 9, 10) for row in text.splitlines())
