"""Adding a metric is adding its file: it is measured, stored, shown, compared, gated by pairs and drawn."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.adding.tree import REPOSITORY, attnbench

PATH = "attnbench/measure/metrics/cpu_time.py"
METRIC = '''"""Processor time of one call, of all threads."""

from __future__ import annotations

from collections.abc import Sequence
from time import process_time
from typing import TYPE_CHECKING

from attnbench.metric import Metric

if TYPE_CHECKING:
    from attnbench.measure.worker.clocks import Call, Clock
    from attnbench.measure.worker.prepared_cell import Subject

METRIC = Metric(
    column="cpu_time_s",
    columns=dict.fromkeys(("cpu_time_s", "cpu_time_low_s", "cpu_time_high_s", "cpu_time_median_s"), float),
    unit="s",
    meaning="Processor time of one call, of all threads.",
    title="CPU time",
    place=6,
    clock="cpu",
    derived="interval",
    least="least busy",
    growth="time",
)


def timer(subject: Subject, call_s: float) -> Clock:
    """Samples by the process's clock."""
    from attnbench.measure.worker.clocks import Clock

    def sample(calls: Sequence[Call]) -> tuple[float, list[str]]:
        start = process_time()
        for call in calls:
            call()
        return process_time() - start, []

    return Clock(sample)
'''
GATE = '''
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from attnbench.measure import gate_pairs
from attnbench.problem import Cell, Problem, columns_of
from attnbench.store.journal import HEADER
from attnbench.store.records import SAMPLES, Sample, Visit
from attnbench.thresholds import Gate

CELL = Cell("softmax", "reference", "core", "fwd", Problem(16, 16, 2), {})

def side(seconds):
    """A run whose calls take so long, and up to a few percent more from pair to pair."""
    folder = Path(tempfile.mkdtemp(dir="."))
    (folder / SAMPLES).write_text(HEADER)
    journal = SimpleNamespace(visits=[], folder=folder)
    return SimpleNamespace(plan=SimpleNamespace(device="cpu"), journal=journal, seconds=seconds)

def measure_pair(sides, cells, number):
    for noise, side in zip((1.0, 1.01 + 0.02 * (number % 2)), sides):
        side.journal.visits.append(Visit(CELL.key, columns_of(CELL), "cpu", number, number, 0, "ok"))
        with (side.journal.folder / SAMPLES).open("a") as rows:
            for index, (clock, seconds) in enumerate((("cpu", side.seconds * noise), ("wall", 1.0))):
                rows.write(Sample(CELL.key, number, number, index, clock, seconds).line())

gate_pairs.measure_pair = measure_pair
silent = SimpleNamespace(planned=lambda *_: None, reached=lambda *_: None, message=lambda *_: None)
for slower in (1.0, 2.0):
    sides = (side(1.0), side(slower))
    found, _ = gate_pairs.tier1(sides, [(CELL, CELL)], Gate({"cpu_time": 0.2}), 8, silent)
    print(json.dumps([[f.metric, f.verdict, f.regression] for f in found]))
'''


@pytest.fixture
def tree(metric_and_device: Path) -> Path:
    return metric_and_device


def slowed(run: Path, folder: Path, operator: str, column: str, factor: float) -> Path:
    """A copy of a run in which one column of an operator is so many times as large."""
    folder.mkdir()
    for name in ("environment.json", "suite.yaml"):
        (folder / name).write_bytes((run / name).read_bytes())
    with (folder / "visits.jsonl").open("w", encoding="utf-8") as file:
        for line in (run / "visits.jsonl").read_text(encoding="utf-8").splitlines():
            visit = json.loads(line)
            stem = column.removesuffix("_s")
            for name in (f"{stem}_s", f"{stem}_low_s", f"{stem}_high_s"):
                if name in visit["metrics"] and visit["cell"]["operator"] == operator:
                    visit["metrics"][name] *= factor
            file.write(json.dumps(visit) + "\n")
    return folder


def test_it_is_stored_behind_the_others_and_shown(tree: Path, run: Path) -> None:
    assert "softmax" in (tree / "printed").read_text(encoding="utf-8")
    printed = attnbench(tree, "show", str(run), "--all").stdout
    titles = [line.strip() for line in printed.splitlines()]
    assert titles.index("Wall time") < titles.index("CPU time"), "by their place"
    assert "Crossover of cpu time" in titles
    assert "least busy" not in printed, "there is one exact softmax alone"
    with (run / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[-4:] == ["cpu_time_s", "cpu_time_low_s", "cpu_time_high_s", "cpu_time_median_s"]
    for row in rows:
        assert 0 < float(row["cpu_time_low_s"]) <= float(row["cpu_time_s"]) <= float(row["cpu_time_high_s"])
    clocks = {line.split(",")[4] for line in (run / "samples.csv").read_text(encoding="utf-8").splitlines()}
    assert clocks == {"clock", "wall", "cpu", "device"}
    listed = attnbench(tree, "list", "metrics", "cpu_time", "--format", "json")
    assert json.loads(listed.stdout)[0]["meaning"] == "Processor time of one call, of all threads."


def test_it_is_compared_and_gated(tree: Path, run: Path) -> None:
    same = attnbench(tree, "compare", str(run), str(run), "--fail-on", "cpu_time:5%", "--format", "json")
    assert same.returncode == 0, same.stderr
    findings = [f for f in json.loads(same.stdout)["comparisons"][0]["findings"] if f["metric"] == "cpu_time"]
    assert [(f["verdict"], f["threshold"]) for f in findings] == [("same", 0.05)] * 4
    later = slowed(run, tree / "later", "linear_transformer", "cpu_time_s", 1e4)
    worse = attnbench(tree, "compare", str(run), str(later), "--fail-on", "cpu_time:5%", "--format", "json")
    assert worse.returncode == 3, "two operators are too few to tell one's change from the machine's"
    findings = [f for f in json.loads(worse.stdout)["comparisons"][0]["findings"] if f["verdict"] != "same"]
    assert [(f["name"].split()[0], f["metric"]) for f in findings] == [("linear_transformer", "cpu_time")] * 2
    gated = subprocess.run(
        [sys.executable, "-c", GATE], cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert [json.loads(line) for line in gated.stdout.splitlines()] == [
        [["cpu_time", "same", False]],
        [["cpu_time", "slower", True]],
    ]


def test_it_is_drawn(tree: Path, run: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = attnbench(tree, "plot", str(run), "--metric", "cpu_time", "--format", "svg", "--out", str(tree / "plots"))
    assert drawn.returncode == 0, drawn.stderr
    names = {Path(line).name for line in drawn.stdout.splitlines()}
    assert {"seq_len-cpu_time-curves.svg", "seq_len-cpu_time-overview.svg"} <= names
    assert "CPU time" in (tree / "plots" / "seq_len-cpu_time-overview.svg").read_text(encoding="utf-8")


def test_without_the_file_its_name_is_refused(run: Path) -> None:
    for words in (
        ("compare", str(run), str(run), "--fail-on", "cpu_time:5%"),
        ("show", str(run), "--metric", "cpu_time"),
    ):
        refused = attnbench(REPOSITORY, *words)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "cpu_time" in refused.stderr
