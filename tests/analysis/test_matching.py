"""A parameter that an operator has gained or lost orphans no stored run: cells are matched by their columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attnbench.analysis.compare.matching import aligned
from attnbench.analysis.compare.stored_runs import compare
from attnbench.analysis.compare.tier0_exact import tier0
from attnbench.analysis.run import Run, read_run
from attnbench.problem import Problem, canonical_params
from attnbench.store.records import Sample
from attnbench.thresholds import Gate
from tests import stored
from tests.analysis.runs import cell, run_of, visits_of

GATE = Gate({"wall_time": 0.05})
HERE = {"torch": "2.13.0", "threads": 1, "instruction_set": "AVX2", "device": "cpu", "cpu": "one"}
SIZES = (256, 512, 1024)
OLD, NEW = {"k": 16}, {"k": 16, "sharing": "kv"}
KNOWN = {"defaults": {"linformer": {"k": 32, "sharing": "kv"}}}
FORMER = {"defaults": {"linformer": {"k": 32}}}


def run(params: dict[str, Any], environment: dict[str, Any], *, flops: int = 100, seed: int = 0) -> Run:
    """linformer with these params, and three operators without."""
    cells = []
    for n in SIZES:
        metrics = {"flops": flops * n, "peak_memory_bytes": 400 * n, "parameter_bytes": 0}
        cells.append((cell("linformer", Problem(n, 64, 4), params=params), 1e-6 * n, metrics))
        cells += [(cell(name, Problem(n, 64, 4)), 1e-8 * n * n, metrics) for name in ("softmax", "local", "rfa")]
    named = f"linformer {canonical_params(params)}"
    told = {"stated": {named: {"time": "n", "memory": "n"}}, "exact": ["softmax {}", named]}
    return run_of(visits_of(cells, seed=seed, own=0.001, rounds=5), {**HERE, **told, **environment})


@pytest.mark.parametrize("known", [{}, FORMER])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_new_parameter_with_a_default_orphans_no_baseline(known: dict[str, Any], swapped: bool) -> None:
    runs = [run(OLD, known), run(NEW, KNOWN)]
    before, after = runs[::-1] if swapped else runs
    for found in (compare(before, after, GATE), tier0(before, after, GATE)):
        assert (found.missing, found.new, found.measured) == ((), (), 12)
        assert found.regressions == []
        assert {f.subject for f in found.findings if f.metric == "flops"} == set(run(NEW, KNOWN).results["key"])
        assert sum(f.metric == "scaling of flops" for f in found.findings) == 4
    dearer = tier0(before, run(NEW if not swapped else OLD, KNOWN, flops=101), GATE)
    assert {f.metric for f in dearer.regressions} == {"flops"}


def test_times_across_machines_are_matched_too() -> None:
    elsewhere = {**KNOWN, "cpu": "two"}
    found = compare(run(OLD, {}), run(NEW, elsewhere, seed=1), across_machines=True)
    times = [f for f in found.findings if f.metric == "wall_time"]
    assert sum(f.subject.startswith("linformer") for f in times) == 3
    assert found.missing == ()


def test_another_value_than_the_default_is_another_cell() -> None:
    found = tier0(run(OLD, FORMER), run({**NEW, "sharing": "none"}, KNOWN), GATE)
    assert (len(found.missing), len(found.new), found.exit_code) == (3, 3, 3)
    nobody_knows = tier0(run(OLD, {}), run(NEW, {}), GATE)
    assert (len(nobody_knows.missing), len(nobody_knows.new)) == (3, 3)


def test_definitions_go_by_the_completed_params() -> None:
    before, _ = aligned(run(OLD, FORMER), run(NEW, KNOWN))
    named = f"linformer {canonical_params(NEW)}"
    assert before.environment["stated"] == {named: {"time": "n", "memory": "n"}}
    assert before.environment["exact"] == ["softmax {}", named]


def test_samples_follow_their_cells(tmp_path: Path) -> None:
    old = cell("linformer", Problem(64, 32, 4), params=OLD)
    samples = [Sample(old.key, 1, 1, i, "wall", 1e-3) for i in range(5)]
    folder = stored.folder(tmp_path / "old", [stored.visit(old), stored.timed(old, 1, 1e-3)], samples)
    before, after = aligned(read_run(folder), run(NEW, KNOWN))
    (key,) = set(before.samples["key"])
    assert key == cell("linformer", Problem(64, 32, 4), params=NEW).key
    assert len(before.samples) == 5
    assert set(read_run(folder).samples["key"]) == {old.key}
    assert aligned(after, after)[0] is after
