"""Adding an output is adding its file: it is a --format of the verbs whose data it shows, and of no other."""

from __future__ import annotations

from pathlib import Path

from tests.adding.tree import REPOSITORY, attnbench, tree_with

RUN = str(REPOSITORY / "results" / "reference" / "ci")
OUTPUT = '''"""A run in one line."""

from __future__ import annotations

from attnbench.analysis.summary import Summary


def run(summary: Summary) -> str:
    """Name and panels."""
    return f"{summary.name}: {len(summary.panels)} panels\\n"
'''


def test_an_output_is_one_file(tmp_path: Path) -> None:
    tree = tree_with(tmp_path, "attnbench/outputs/oneline.py", OUTPUT)
    shown = attnbench(tree, "show", RUN, "--format", "oneline")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("ci: ")
    assert shown.stdout.endswith(" panels\n")
    assert ", oneline, " in " ".join(attnbench(tree, "run", "--help").stdout.replace("│", " ").split())
    rows = attnbench(tree, "roofline", RUN, "--format", "oneline")
    assert (rows.returncode, rows.stdout) == (2, "")
    assert "'oneline'; allowed: csv, json, markdown, table" in rows.stderr


def test_without_the_file_it_is_refused(tmp_path: Path) -> None:
    tree = tree_with(tmp_path, "attnbench/outputs/_oneline.py", OUTPUT)
    refused = attnbench(tree, "show", RUN, "--format", "oneline")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "'oneline'; allowed: bencher, csv, github_benchmark, html, json, markdown, parquet, " in refused.stderr
