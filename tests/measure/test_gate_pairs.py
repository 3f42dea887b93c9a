"""What the gate concludes from two runs, and from pairs that were lost."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from attnbench.analysis import results
from attnbench.analysis.compare.findings import Comparison
from attnbench.analysis.compare.tier0_exact import tier0
from attnbench.analysis.run import Run, read_run
from attnbench.measure import gate_pairs
from attnbench.measure.gate import _part, _placed
from attnbench.measure.gate_pairs import both_survive, measure_pair, seconds, tier1
from attnbench.measure.gate_sides import side
from attnbench.measure.git_worktrees import Checkout
from attnbench.measure.protocol import THROTTLED
from attnbench.measure.visit_maker import Place
from attnbench.plan import suite as suites
from attnbench.plan.gate_thresholds import loosened
from attnbench.plan.measured_code import MeasuredCode
from attnbench.plan.settings import Limits, Measure
from attnbench.problem import Cell, Problem
from attnbench.progress import Reached, Stage
from attnbench.store.journal import HEADER, stored_environment
from attnbench.store.records import SAMPLES, Sample, Visit
from attnbench.thresholds import Gate, Threshold
from tests.analysis.runs import cell, run_of, visits_of
from tests.running import Silent, plan

GATE = Gate({"wall_time": 0.05})
HERE = {"torch": "2.13.0", "threads": 1, "instruction_set": "AVX2", "device": "cpu", "cpu": "one"}
SIZES = (256, 512, 1024)


def checked(
    statuses: Mapping[int, str] | None = None,
    environment: Mapping[str, Any] | None = None,
    more: float = 0.0,
    counted: Callable[[int], int] | None = None,
) -> Run:
    """A run without any timed round. more: bytes per pair of tokens. counted: by tokens."""
    cells = []
    for n in SIZES:
        metrics = {"flops": 100 * n, "peak_memory_bytes": int(400 * n + more * n * n), "parameter_bytes": 0}
        if counted is not None:
            metrics |= {"reference_flops": 100 * n, "flops_counted": counted(n), "flops_uncounted": 0}
        status: float | str = (statuses or {}).get(n, 1e-3)
        cells.append((cell("local", Problem(n, 64, 4)), status, metrics))
    visits = visits_of(cells, rounds=0)
    visits = [replace(v, operations={"mm": 2}) for v in visits]
    return run_of(visits, {**HERE, **(environment or {})})


def test_a_side_has_no_budget_and_a_checkout_no_digests_of_what_is_installed(tmp_path: Path) -> None:
    """A budget would end one side's check before the other's; the code of a worktree is not that of its gate."""
    text = "operators: [softmax]\nsweep: [{seq_len: [16]}]\nproblem: {heads: 2, channels: 16}\n"
    suite = suites.from_text(text, "a test", tmp_path)
    code = MeasuredCode({"attnbench/measure/worker/correctness.py": "0"}, {})
    made = plan([], limits=Limits(budget_s=1.0), code=code)
    head = Checkout("head", "f00", tmp_path, suite.text, (), ())
    for checkout, own in ((head, None), (None, code)):
        folder = tmp_path / str(own is None)
        with side(made, suite.text, {"code": code.stored()}, folder, checkout, print) as runner:
            assert runner.plan.limits.budget_s is None
            assert runner.plan.code == own
        assert MeasuredCode.of(stored_environment(folder)) == own


def test_a_table_that_cannot_be_written_at_the_end_costs_no_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(results, "write", full)
    with side(plan([]), "name: made\n", {}, tmp_path / "run", None, Silent()) as runner:
        runner.journal.add(visits_of([(cell("local", Problem(16, 16)), 1e-3, {})], rounds=0)[0])
    assert len(read_run(tmp_path / "run").visits) == 1


def test_identical_runs_pass_and_any_growth_fails() -> None:
    same = tier0(checked(), checked(), GATE)
    assert (same.exit_code, same.measured) == (0, 3)
    worse = tier0(checked(), checked(more=0.01), GATE)
    assert worse.exit_code == 1
    assert {f.metric for f in worse.regressions} == {"peak_memory"}
    assert tier0(checked(more=0.01), checked(), GATE).exit_code == 0


def test_two_images_of_the_same_size_have_one_growth() -> None:
    sides = ((8, 8), (16, 16), (14, 28), (28, 14))
    problems = [Problem.image(h, w, 64, 4) for h, w in sides]
    cells = [(cell("local", p), 1e-3, {"flops": 100 * p.seq_len, "peak_memory_bytes": 9}) for p in problems]
    run = run_of(visits_of(cells, rounds=0), HERE)
    (found,) = [f for f in tier0(run, run, GATE).findings if f.metric == "scaling of flops"]
    assert (found.verdict, found.before) == ("same", "n")


def test_flops_that_are_counted_and_not_stated_grow_too() -> None:
    """With thresholds that let each cell pass, so that the growth alone decides."""
    gate = Gate({"flops": 100.0})
    linear, square = checked(counted=lambda n: 100 * n), checked(counted=lambda n: n * n)
    assert [f.metric for f in tier0(linear, square, gate).regressions] == ["scaling of flops"]
    assert tier0(linear, linear, gate).regressions == []
    assert tier0(checked(), linear, gate).regressions == [], "a run that stored no count"


@pytest.mark.parametrize(
    ("name", "value"), [("torch", "2.14.0"), ("threads", 4), ("instruction_set", "AVX512"), ("machine", "aarch64")]
)
def test_what_other_circumstances_leave_is_compared_and_what_not_is_told(name: str, value: object) -> None:
    found = tier0(checked(), checked(environment={name: value}, more=0.01), GATE)
    assert found.exit_code == 0
    (note,) = found.notes
    assert "peak memory and operations are not compared" in note
    assert str(value) in note
    assert {f.metric for f in found.findings} == {"flops", "scaling of flops", "scaling of peak_memory"}
    grown = tier0(checked(), checked(environment={name: value}, more=4), GATE)
    assert [f.metric for f in grown.regressions] == ["scaling of peak_memory"]


def test_another_processor_of_the_same_kind_compares_all() -> None:
    assert tier0(checked(), checked(environment={"cpu": "two"}, more=0.01), GATE).exit_code == 1


def test_lost_cells_and_nothing_measured_never_pass() -> None:
    fewer = checked()
    kept = fewer.visits[fewer.visits["seq_len"] < 1024]
    gone = tier0(checked(), replace(fewer, visits=kept), GATE)
    assert (gone.exit_code, len(gone.missing)) == (3, 1)
    assert gone.decision == f"undecided: 1 cell of {gone.before} gone, and not compared"
    for status in ("oom", "wrong", "skipped", "crashed"):
        lost = tier0(checked(), checked({1024: status}), GATE)
        assert lost.exit_code == 1, status
        assert [(f.before, f.after) for f in lost.regressions] == [("ok", status)]
        assert tier0(checked({1024: status}), checked(), GATE).exit_code == 0
    nothing = checked(dict.fromkeys(SIZES, "skipped"))
    assert tier0(nothing, nothing, GATE).exit_code == 3


def test_a_regression_outranks_what_is_gone_and_what_is_new_never_fails() -> None:
    fewer = checked(more=0.01)
    worse = tier0(checked(), replace(fewer, visits=fewer.visits[fewer.visits["seq_len"] < 1024]), GATE)
    assert (worse.exit_code, len(worse.missing)) == (1, 1)
    base = checked()
    more = tier0(replace(base, visits=base.visits[base.visits["seq_len"] < 1024]), checked(), GATE)
    assert (more.exit_code, len(more.new), more.missing) == (0, 1, ())
    skipped = checked({1024: "skipped"})
    dropped = replace(skipped, visits=skipped.visits[skipped.visits["seq_len"] < 1024])
    assert tier0(skipped, dropped, GATE).exit_code == 0  # it was measured by neither


def test_only_what_was_asked_for_is_looked_for_in_a_stored_run() -> None:
    run = checked()
    assert len(_part(run, ((), ())).results) == len(SIZES)
    assert len(_part(run, (("softmax, local",), ("reference",))).results) == len(SIZES)
    assert len(_part(run, (("softmax",), ())).results) == 0
    assert len(_part(run, ((), ("cuda",))).results) == 0


def test_thresholds_that_a_change_loosens_are_told() -> None:
    strict = Gate({"wall_time": 0.05, "flops": 0.0})
    assert loosened(strict, strict) == []
    own = (Threshold({"operator": "local"}, {"wall_time": 0.5}),)
    assert loosened(strict, Gate({"wall_time": 0.5}, own)) == [
        "the suite's threshold of flops: 0.0% → none",
        "the suite's threshold of wall_time: 5.0% → 50.0%",
        "the suite's overrides of thresholds differ",
    ]


def test_twins_are_timed_under_the_candidates_key() -> None:
    old, new = (cell("local", Problem(64, 64, 4), params=params) for params in ({"w": 4}, {"w": 4, "d": 1}))
    other = cell("softmax", Problem(64, 64, 4))
    sides = [SimpleNamespace(survivors=lambda own=own: [own, other]) for own in (old, new)]
    twins = both_survive((sides[0], sides[1]), {"local": {"w": 8, "d": 1}})  # type: ignore[arg-type]
    assert twins == [(old, new), (other, other)]
    assert both_survive((sides[0], sides[1]), {}) == [(other, other)]  # type: ignore[arg-type]


def timed(folder: Path, visits: Sequence[Visit]) -> None:
    """Stores two samples of each visit: its time, and a slower one; and of a clock held down, a faster one."""
    path = folder / SAMPLES
    folder.mkdir(exist_ok=True)
    samples = [
        Sample(visit.key, visit.round, visit.process, index, clock, share * visit.metrics["wall_time_s"], flags)
        for visit in visits
        if visit.round > 0
        for index, (clock, share, flags) in enumerate(
            [("wall", 1.3, ""), ("wall", 1.0, "gaps"), ("wall", 0.9, f"{THROTTLED}+gaps"), ("device", 0.1, "")]
        )
    ]
    stored = path.read_text() if path.is_file() else HEADER
    path.write_text(stored + "".join(sample.line() for sample in samples))


def runner(cells: Sequence[Cell], folder: Path, visits: Sequence[Visit] = ()) -> Any:
    """What a gate needs of a run. visits: timed already."""
    timed(folder, visits)
    plan = SimpleNamespace(measure=Measure(), memory_limit=1 << 20, seed=1, device="cpu")
    ends: list[int] = []
    maker = SimpleNamespace(memory=lambda cell: (8, 80), log=SimpleNamespace(next_part=lambda cells, number: 0))
    return SimpleNamespace(
        plan=plan, maker=maker, journal=SimpleNamespace(visits=list(visits), folder=folder),
        ends=ends, end_process=lambda: ends.append(1), survivors=lambda: list(cells),
    )  # fmt: skip


def test_times_are_the_fastest_samples_of_pairs_and_a_clock_that_a_side_does_not_have_has_none(tmp_path: Path) -> None:
    own, other = cell("local", Problem(64, 64, 4)), cell("softmax", Problem(64, 64, 4))
    visits = visits_of([(own, 2.0, {})], rounds=4, process=0.0, own=0.0)
    lost = [replace(v, status="oom") if v.round == 2 else v for v in visits]
    found = seconds(runner([], tmp_path / "lost", lost), "wall", [own.key, other.key], 3)
    assert found[:, 0].tolist() == [2.0, pytest.approx(math.nan, nan_ok=True), 2.0]
    assert np.isnan(found[:, 1]).all()
    assert np.isnan(seconds(runner([], tmp_path / "new", visits), "new", [own.key], 3)).all()
    assert np.isnan(seconds(runner([], tmp_path / "none"), "wall", [own.key], 3)).all()


@pytest.mark.parametrize(("sizes", "turns"), [((64, 128, 256), 16), ((64,), 24), (range(8, 200, 8), 6)])
def test_a_pair_measures_every_block_once_in_fresh_processes(
    sizes: Sequence[int], turns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few cells take more turns."""
    cells = [cell(name, Problem(n, 64, 4)) for n in sizes for name in ("local", "softmax")]
    sides = [runner(cells, tmp_path / name) for name in ("base", "head")]
    blocks: list[tuple[list[Any], Place]] = []

    def measured(makers: Any, members: Any, place: Place, measure: Measure, draw: Any) -> bool:
        assert makers == [side.maker for side in sides]
        assert (measure.min_turns, measure.max_turns) == (6, turns)
        assert [len(side.ends) for side in sides] == [1, 1]
        blocks.append(([member.cells for member in members], place))
        return True

    monkeypatch.setattr(gate_pairs, "measure_block", measured)
    measure_pair(sides, [(c, c) for c in cells], 3)
    assert [len(side.ends) for side in sides] == [2, 2]
    assert sorted(each[0].key for members, _ in blocks for each in members) == sorted(c.key for c in cells)
    assert all(len({before.problem for before, _ in members}) == 1 for members, _ in blocks)
    assert [(place.round, place.position) for _, place in blocks] == [(3, n) for n in range(len(sizes))]


def test_pairs_are_added_only_for_what_is_not_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [cell(name, Problem(64, 64, 4)) for name in ("local", "softmax", "linformer")]
    sides = (runner(cells, tmp_path / "base"), runner(cells, tmp_path / "head"))
    rng = np.random.default_rng(3)
    pairs: list[list[str]] = []

    def measured(sides: Any, twins: Any, number: int) -> None:
        pairs.append([after.key for _, after in twins])
        for index, run in enumerate(sides):
            for _, own in twins:
                sd = 0.08 if own.operator == "local" else 0.002
                time_s = math.exp(rng.normal(0, sd)) * (1.5 if index and own.operator == "softmax" else 1.0)
                _, visit = visits_of([(own, time_s, {})], rounds=1, process=0.0, own=0.0)
                run.journal.visits.append(replace(visit, round=number))
                timed(run.journal.folder, run.journal.visits[-1:])

    monkeypatch.setattr(gate_pairs, "measure_pair", measured)
    progress = Silent()
    findings, notes = tier1(sides, [(c, c) for c in cells], GATE, 8, progress)
    assert [stage for stage, _, _ in progress.stages] == [Stage("pair", n, 5 if n <= 5 else 8, 8) for n in range(1, 9)]
    assert progress.stages[0][1:] == (6, None)
    assert progress.stages[-1][1] == 4, "two cells on each side are left"
    assert all(seconds is not None for _, _, seconds in progress.stages[1:])
    assert progress.looks == [Reached(0, 3), Reached(1, 3)]
    verdicts = {f.subject.split(".")[0]: (f.verdict, f.regression) for f in findings}
    assert verdicts["softmax"] == ("slower", True)
    assert verdicts["linformer"] == ("same", False)
    assert len(pairs) == 8
    assert set(pairs[0]) == {c.key for c in cells}
    assert cells[0].key in pairs[-1]
    assert cells[1].key not in pairs[-1]
    assert notes[0].startswith("8 pairs of processes in 0.0 min, decided after 5 or 8 pairs")
    assert "would have shown a slow-down of" in notes[1]
    assert any(line.startswith("after 5 pairs: wall_time: ") for line in progress.told)


def test_without_a_threshold_for_a_time_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = cell("local", Problem(64, 64, 4))
    monkeypatch.setattr(gate_pairs, "measure_pair", lambda *_: pytest.fail("it began to measure"))
    sides = (runner([own], tmp_path / "base"), runner([own], tmp_path / "head"))
    findings, notes = tier1(sides, [(own, own)], Gate({"flops": 0.0}), None, Silent())
    assert findings == []
    assert "no time was compared" in notes[0]


def test_a_decision_knows_the_suites_file_and_those_of_its_operators(tmp_path: Path) -> None:
    suite = tmp_path / "suites" / "own.yaml"
    suite.parent.mkdir()
    suite.write_text("operators_from: [../ops/mine.py, a_package]\noperators: [mine]\n", encoding="utf-8")
    placed = _placed(Comparison("a", "b", ()), str(suite))
    assert placed.suite == str(suite)
    assert placed.operator_files["mine"] == str(suite.parent / "../ops/mine.py")
    assert Path(placed.operator_files["softmax"]).read_text(encoding="utf-8").startswith('"""')
    assert "a_package" not in placed.operator_files
    suite.write_text("operators_from: {", encoding="utf-8")
    assert "mine" not in _placed(Comparison("a", "b", ()), str(suite)).operator_files
    assert _placed(Comparison("a", "b", ()), str(tmp_path / "gone.yaml")).operator_files["softmax"]
    assert Path(_placed(Comparison("a", "b", ()), "quick").suite).name == "quick.yaml"
