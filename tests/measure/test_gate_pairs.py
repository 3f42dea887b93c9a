"""What the gate concludes from two runs, and from pairs that were lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from attnbench.analysis.compare.tier0_exact import tier0
from attnbench.analysis.run import Run
from attnbench.measure.gate import _part
from attnbench.measure.gate_pairs import Stage, both_survive, table_of_pairs, untimed
from attnbench.measure.gate_sides import side
from attnbench.measure.git_worktrees import Checkout
from attnbench.plan import suite as suites
from attnbench.plan.gate_thresholds import loosened
from attnbench.plan.measured_code import MeasuredCode
from attnbench.plan.settings import Limits
from attnbench.problem import Problem
from attnbench.store.journal import stored_environment
from attnbench.thresholds import Gate, Threshold
from tests.analysis.runs import cell, run_of, visits_of
from tests.running import plan

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
    assert (found.verdict, found.before) == ("same", "n (N^1.00)")


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
    sides = []
    for own, seconds in ((old, 1.0), (new, 2.0)):
        visits = visits_of([(own, seconds, {})], rounds=4, process=0.0, own=0.0)
        journal = SimpleNamespace(visits=visits)
        sides.append(SimpleNamespace(journal=journal, survivors=lambda own=own: [own, other]))
    twins = both_survive((sides[0], sides[1]), {"local": {"w": 8, "d": 1}})  # type: ignore[arg-type]
    assert twins == [(old, new), (other, other)]
    assert both_survive((sides[0], sides[1]), {}) == [(other, other)]  # type: ignore[arg-type]
    table = table_of_pairs((sides[0], sides[1]), "wall_time_s", Stage(1, 2, 2), twins)  # type: ignore[arg-type]
    assert table["key"].tolist() == [new.key] * 2
    assert (table["after"] / table["before"]).round(6).tolist() == [2.0, 2.0]


def test_a_metric_that_one_side_does_not_know_gives_no_pairs() -> None:
    """A change that adds a metric: the base measures none of it, and its threshold leaves every cell undecided."""
    own = cell("local", Problem(64, 64, 4))
    visits = visits_of([(own, 1.0, {})], rounds=4)
    new = [replace(v, metrics={**v.metrics, "new_time_s": 1.0}) for v in visits]
    sides = [SimpleNamespace(journal=SimpleNamespace(visits=each)) for each in (visits, new)]
    assert table_of_pairs((sides[0], sides[1]), "new_time_s", Stage(1, 2, 2), [(own, own)]).empty  # type: ignore[arg-type]
    assert len(table_of_pairs((sides[1], sides[1]), "new_time_s", Stage(1, 2, 2), [(own, own)])) == 2  # type: ignore[arg-type]


def test_a_cell_that_lost_all_its_pairs_is_undecided_where_it_has_a_threshold() -> None:
    one, two = cell("local", Problem(64, 64, 4)), cell("softmax", Problem(64, 64, 4))
    pairs = pd.DataFrame({"key": [one.key], "pair": [1], "before": [1.0], "after": [1.0]})
    (found,) = untimed([one, two], pairs, GATE, "wall_time")
    assert (found.subject, found.verdict, found.threshold) == (two.key, "undecided", 0.05)
    assert list(untimed([one, two], pairs, Gate({"flops": 0.0}), "wall_time")) == []
