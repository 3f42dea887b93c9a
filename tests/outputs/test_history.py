"""A history in every format: the same changes with their evidence, at 80 columns, and safe whatever is stored."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("duckdb", reason="the extra 'history' is not installed")

from attnbench.__main__ import app
from attnbench.analysis.history import HistoryRequest, history
from attnbench.errors import BadInput
from attnbench.outputs import _history as view
from attnbench.outputs import csv as csv_format
from attnbench.outputs import html
from attnbench.outputs import json as json_format
from attnbench.store import many_runs
from tests.analysis.test_history import gate, slower
from tests.many_runs import nightly
from tests.outputs.test_html import ATTACK, Page

METRICS = ("wall_time", "flops")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve nights with changes of each kind, torch another in the last four, and one run that cannot be read."""
    root = nightly(
        tmp_path_factory.mktemp("h") / "nightly", 12, slower("performer", 4, 1.2), flops=slower("linformer", 2, 0.9),
        torch=lambda day: "2.13.0" if day < 8 else "2.14.0",
    )  # fmt: skip
    gate(root)
    (root / "broken").mkdir()
    (root / "broken" / "visits.jsonl").write_text("{}\n")
    return root


def shown(*words: object) -> str:
    result = CliRunner().invoke(app, ["history", *map(str, words)], env={"COLUMNS": "80"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0
    return result.output


def test_the_table_says_what_changed_first_with_its_evidence_at_80_columns(root: Path) -> None:
    text = shown(root, "--metric", "wall_time,flops", "--all")
    assert max(map(len, text.splitlines())) <= 80
    assert text.index("Changes, the newest first") < text.index("seq_len: scope core")
    rows = [line.split() for line in text.splitlines() if line.endswith(("exact", "paired", "unpaired"))]
    assert {(row[2], row[-1]) for row in rows} == {
        ("performer", "unpaired"), ("performer", "paired"), ("linformer", "exact"),
    }  # fmt: skip
    assert "`attnbench gate`" in text
    assert "circumstances B: 4 runs, 2026-09-09 to 2026-09-12: torch 2.13.0 → 2.14.0" in " ".join(text.split())
    assert "left out: broken" in text
    assert "▁" in text
    assert "│" in text


def test_markdown_and_csv_and_json_have_the_same_changes(root: Path) -> None:
    found = history(root, HistoryRequest(METRICS))
    expected = {(each.key, each.metric, each.verdict, each.evidence) for each in found.changes}
    assert len({each[3] for each in expected}) == 3
    rows = list(csv.DictReader(io.StringIO(csv_format.history(found))))
    assert len(rows) == 14 * 10 * 2
    assert {(row["key"], row["metric"], row["change"], row["evidence"]) for row in rows if row["change"]} == expected
    document = json.loads(json_format.history(found))
    assert document["version"] == view.VERSION
    changed = {(each["key"], each["metric"], each["verdict"], each["evidence"]) for each in document["changes"]}
    assert changed == expected
    (panel,) = document["panels"]
    points = [point for each in panel["metrics"] for track in each["tracks"] for point in track["points"]]
    assert len(points) == len(rows)
    assert math.isclose(float(rows[0]["value"]), points[0]["value"])
    assert document["runs"][0]["started"] == rows[0]["started"] == "2026-09-01T03:00:00+00:00"
    assert document["panels"][0]["metrics"][0]["crossovers"][0]["points"][0]["crossover"]["kind"]
    markdown = shown(root, "--format", "markdown")
    assert "| unpaired |" in markdown


def test_only_the_newest_runs_have_crossovers_where_not_all_are_asked_for(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attnbench.analysis.history.CROSSOVER_RUNS", 3)
    for every, count in ((False, 3), (True, 12)):
        (report,) = history(root, HistoryRequest(every=every)).panels
        assert {len(track.points) for track in report.metrics[0].crossovers} == {count}


def test_the_page_is_complete_without_scripts_and_safe_whatever_is_stored(tmp_path: Path) -> None:
    pytest.importorskip("altair", reason="the extra 'report' is not installed")
    root = nightly(
        tmp_path / "nightly", 5, torch=lambda day: ATTACK if day > 2 else "2.13.0", commit=ATTACK, cpu="/home/me/x",
        flops=slower("linformer", 2, 0.9),
    )  # fmt: skip
    (root / "night-04").rename(root / "<img src=x onerror=alert(1)>")
    text = html.history(history(root, HistoryRequest(METRICS, every=True)))
    page = Page(text)
    assert page.open == []
    assert not [tag for tag, _ in page.elements if tag in ("img", "iframe", "link")]
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert len([each for each in scripts if "type" not in each]) == 3
    assert "alert(1)" in page.text, "it is shown as text"
    for expected in ("less, −10%", "exact", "linformer", "2026-09-05"):
        assert expected in page.text
    assert str(tmp_path) not in text
    assert "/home/me" not in text
    data = [json.loads(each) for each in re.findall(r'class="history">(.*?)</script>', text)]
    assert [each["metric"] for each in data] == list(METRICS)
    assert {len(track["points"]) for each in data for track in each["tracks"]} == {5}


def test_a_missing_extra_is_a_sentence_with_its_command(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many_runs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'attnbench\[history\]'"):
        history(root, HistoryRequest())


def test_it_imports_no_torch(root: Path) -> None:
    import subprocess

    code = (
        "import sys; from pathlib import Path; from attnbench.analysis.history import *; "
        "history(Path(sys.argv[1]), HistoryRequest()); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(root)], check=False).returncode == 0
