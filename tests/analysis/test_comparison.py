from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnbench.analysis.compare import crossover_shift
from attnbench.analysis.compare.findings import Comparison, Finding
from attnbench.analysis.compare.stored_runs import SCATTER_FREEDOM, _scatter, compare, judge
from attnbench.analysis.crossover import Crossing, Crossover, Stretch
from attnbench.analysis.run import Run
from attnbench.errors import BadInput
from attnbench.problem import Problem
from attnbench.store.frames import frame
from attnbench.store.records import Visit
from attnbench.thresholds import Gate, Threshold
from benchmarks.coverage.labels import verdicts
from tests.analysis.runs import cell, laws, run_of, visits_of

GATE = Gate({"wall_time": 0.05})
SIZES = (256, 512, 1024, 2048)
QUIET = {"process": 0.01, "own": 0.005, "rounds": 5, "contract": "3 rounds=5"}
HERE = {"torch": "2.13.0", "threads": 2, "instruction_set": "AVX2", "device": "cpu", "cpu": "one"}
LAWS = {
    "softmax": lambda n: 1e-9 * n * n,
    "local": lambda n: 4e-7 * n,
    "linformer": lambda n: 5e-7 * n,
    "performer": lambda n: 6e-7 * n,
}


def many(
    seed: int, *, count: int = 80, slower: Mapping[int, float] | None = None, factor: float = 1.0, **model: Any
) -> Run:
    """So many cells, of operators at five sizes each."""
    cells = []
    for i in range(count):
        truth = 1e-3 * (1 + i % 7) * factor * (slower or {}).get(i, 1.0)
        what = cell(f"op{i // 5}", Problem(64 * (1 + i % 5), 64, 4))
        cells.append((what, truth, {"flops": 1000 + i, "peak_memory_bytes": 500 + i, "parameter_bytes": 0}))
    return run_of(visits_of(cells, seed=seed, **{**QUIET, **model}), HERE)


def timed(found: Comparison) -> list[Finding]:
    return [f for f in found.findings if f.metric == "wall_time"]


def test_identical_runs_are_the_same_and_pass() -> None:
    run = many(1)
    found = compare(run, run, GATE)
    assert found.measured == 80
    assert {f.verdict for f in found.findings} == {"same"}
    assert found.exit_code == 0


def test_two_runs_of_the_same_code_pass_or_are_undecided_but_never_fail() -> None:
    codes = [compare(many(seed, count=200), many(seed + 100, count=200), GATE).exit_code for seed in range(3)]
    assert 1 not in codes
    noisy = [compare(many(seed, own=0.1), many(seed + 100, own=0.1), GATE).exit_code for seed in range(2)]
    assert set(noisy) == {3}


def test_one_slower_cell_among_200_is_found_alone() -> None:
    found = compare(many(1, count=200), many(2, count=200, slower={77: 1.1}), GATE)
    assert [f.subject for f in found.regressions] == [many(1).results["key"][77]]
    assert found.findings[0].verdict == "slower"
    assert found.findings[0].low < 1.1 < found.findings[0].high  # type: ignore[operator]
    assert found.exit_code == 1


def loaded(seed: int, *, slower: float = 1.0, operators: int = 6, **model: Any) -> Run:
    """A run whose cells were slowed down by 5 to 20 %, each by its own factor for all of the run."""
    rng = np.random.default_rng(seed)
    run_shift = rng.choice([1.0, 1.3])
    cells = []
    for size in (64, 128, 256, 512):
        for i in range(operators):
            truth = 1e-3 * run_shift * rng.uniform(1.05, 1.2) * (slower if i == 0 else 1.0)
            cells.append((cell(f"op{i}", Problem(size, 64, 4)), truth, {}))
    return run_of(visits_of(cells, seed=seed, **{**QUIET, "rounds": 3, **model}), HERE)


@pytest.mark.parametrize("load", ["none", "each cell by 5 to 20 %", "half of the cells by 5 to 20 %"])
def test_equal_runs_under_other_loads_are_hardly_ever_called_slower(load: str) -> None:
    called, by_rounds_alone = verdicts(load, 3, 50)
    assert called <= 0.02
    assert load == "none" or by_rounds_alone >= 0.25, "the control"


def test_the_scatter_is_that_of_most() -> None:
    values = np.random.default_rng(0).normal(0, 0.1, (300, 12))
    scatter = [_scatter(x) for x in values]
    assert np.mean(scatter) == pytest.approx(0.1, rel=0.05)
    assert np.std(scatter) / np.mean(scatter) == pytest.approx((2 * SCATTER_FREEDOM * 12) ** -0.5, rel=0.3)
    values[:, :4] += 1e6
    assert np.mean([_scatter(x) for x in values]) < 0.4 < 0.1 * float(np.std(values[0]))


def test_runs_that_differ_by_everything_are_undecided() -> None:
    """Four cells, of which each changed by another power of ten."""

    def run(power: int) -> Run:
        cells = [(cell(f"op{i}", Problem(64, 64, 4)), 1e-9 * 10.0 ** (i * power), {}) for i in range(4)]
        return run_of(visits_of(cells, seed=power, **QUIET), HERE)

    assert {f.verdict for f in timed(compare(run(0), run(30), GATE)) if f.subject != "all cells"} == {"undecided"}


def test_beside_others_that_scatter_a_slow_down_must_be_larger_than_they_do() -> None:
    calm = compare(loaded(1, operators=12), loaded(2, slower=1.1, operators=12), GATE)
    assert calm.regressions == []
    assert calm.exit_code == 3
    large = compare(loaded(1, operators=12), loaded(2, slower=3, operators=12), GATE)
    assert {f.name.split()[0] for f in large.regressions} == {"op0"}
    assert "beside the others of its block" in large.notes[0]


@pytest.mark.parametrize(("contract", "operators"), [("2 rounds=5", 6), ("3 rounds=5", 2)])
def test_without_others_that_took_turns_nothing_is_called_slower(contract: str, operators: int) -> None:
    """Five times slower; the control, with turns and others, is in the test above."""
    sides = (
        loaded(1, operators=operators, contract=contract),
        loaded(2, slower=5, operators=operators, contract=contract),
    )
    found = compare(*sides, GATE)
    assert {f.verdict for f in timed(found)} == {"undecided"}
    assert found.exit_code == 3
    assert "`attnbench gate` does" in found.notes[0]


def test_an_improvement_never_fails() -> None:
    found = compare(many(1), many(2, slower={77: 0.8}), GATE)
    assert [f.verdict for f in timed(found)].count("faster") == 1
    assert found.exit_code != 1


def test_a_shift_that_all_cells_share_is_said_and_not_blamed_on_cells() -> None:
    found = compare(many(1), many(2, factor=1.3), GATE)
    assert found.regressions == []
    (shift,) = [f for f in found.findings if f.subject == "all cells"]
    assert (shift.verdict, shift.ratio) == ("undecided", pytest.approx(1.3, rel=0.05))
    assert "all cells of a block take more wall_time" in shift.reason
    assert found.exit_code == 3
    both = compare(many(1), many(2, factor=1.3, slower={77: 1.2}), GATE)
    assert len(both.regressions) == 1


def energetic(seed: int, dearer: str = "") -> Run:
    """As `laws`, each call with 100 J a second, half as much again of one operator."""
    made = laws(SIZES, LAWS, seed=seed, **QUIET).visits
    share = made["operator"].eq(dearer) * 0.5 + 1
    return Run(Path("nowhere"), made.assign(energy_j=100 * share * made["wall_time_s"]), HERE, "name: synthetic\n")


def test_energy_is_compared_as_times_are() -> None:
    gate = Gate({"energy": 0.05})
    found = compare(energetic(1), energetic(2, "local"), gate)
    assert {f.subject.split(".")[0] for f in found.regressions} == {"local"}
    assert {(f.metric, f.verdict) for f in found.regressions} == {("energy", "more")}
    assert compare(energetic(1), energetic(2), gate).regressions == []
    less = compare(energetic(1, "local"), energetic(2), gate)
    assert {f.verdict for f in less.findings if f.metric == "energy" and f.subject.startswith("local")} == {"less"}


def test_missing_new_and_status_changed_cells() -> None:
    before = laws(SIZES, LAWS, **QUIET)
    fewer = laws(SIZES[:3], LAWS, **QUIET)
    found = compare(before, fewer, GATE)
    assert len(found.missing) == 4
    assert found.exit_code == 3
    assert len(compare(fewer, before, GATE).new) == 4
    lost = compare(before, laws(SIZES, LAWS, statuses={("local", 2048): "oom"}, **QUIET), GATE)
    assert [(f.metric, f.before, f.after, f.reason) for f in lost.regressions] == [("status", "ok", "oom", "oom here")]
    assert lost.exit_code == 1
    gained = compare(laws(SIZES, LAWS, statuses={("local", 2048): "oom"}, **QUIET), before, GATE)
    assert gained.regressions == []


def test_one_round_is_undecided() -> None:
    found = compare(many(1, rounds=1), many(2, rounds=1), GATE)
    assert {f.verdict for f in timed(found)} == {"undecided"}
    assert "one round" in timed(found)[0].reason
    assert found.exit_code == 3


def test_disturbed_runs_are_undecided_not_slower() -> None:
    found = compare(many(1, own=0.3), many(2, own=0.3), GATE)
    assert found.regressions == []
    assert found.exit_code == 3


def test_nothing_measured_never_passes() -> None:
    empty = laws(SIZES, LAWS, statuses={(name, n): "skipped" for name in LAWS for n in SIZES})
    assert compare(empty, empty, GATE).exit_code == 3
    other = laws((64,), {"rfa": lambda n: 1e-3}, **QUIET)
    assert compare(laws(SIZES, LAWS, **QUIET), other, GATE).exit_code == 3


@pytest.mark.parametrize("metric", ["device_time", "energy", "operations"])
def test_a_threshold_for_what_neither_run_has_never_passes(metric: str) -> None:
    one, two = many(1, count=20), many(1, count=20)
    assert compare(one, two, Gate({"flops": 0.0})).exit_code == 0
    found = compare(one, two, Gate({"flops": 0.0, metric: 0.05}))
    assert found.exit_code == 3
    assert [(f.subject, f.metric) for f in found.undecided] == [("all cells", metric)]
    assert compare(one, two, Gate({}, (Threshold({"operator": "op1"}, {metric: 0.05}),))).exit_code == 3


def test_without_thresholds_nothing_is_decided() -> None:
    found = compare(many(1), many(2, slower={77: 1.5}))
    assert found.findings[0].verdict == "slower"
    assert (found.regressions, found.exit_code) == ([], 0)


@pytest.mark.parametrize(
    ("name", "value"), [("torch", "2.14.0"), ("threads", 4), ("instruction_set", "AVX512"), ("cpu", "another")]
)
def test_other_circumstances_are_refused_unless_told(name: str, value: object) -> None:
    before = laws(SIZES, LAWS, **QUIET)
    before = replace(before, environment=HERE)
    after = replace(laws(SIZES, LAWS, seed=3, **QUIET), environment={**HERE, name: value})
    with pytest.raises(BadInput, match=f"{name.replace('_', ' ')}: .* → {value}"):
        compare(before, after, GATE)
    found = compare(before, after, GATE, across_machines=True)
    assert any(str(value) in note for note in found.notes)
    metrics = {f.metric for f in found.findings}
    assert {"flops", "wall_time"} <= metrics
    assert ("peak_memory" in metrics) == (name == "cpu")


def test_a_run_in_which_nothing_was_measured_is_named() -> None:
    run, empty = replace(laws(SIZES, LAWS, **QUIET), environment=HERE), replace(run_of([]), folder=Path("begun"))
    for pair in ((run, empty), (empty, run)):
        with pytest.raises(BadInput, match=r"begun: nothing was measured in it.*Name one"):
            compare(*pair, GATE)


def test_across_machines_a_slower_operator_is_seen_beside_the_others_of_its_block() -> None:
    before = replace(laws(SIZES, LAWS, **QUIET), environment=HERE)
    other = {**LAWS, "local": lambda n: 4e-7 * n * 1.5}
    twice = {name: (lambda n, law=law: 2 * law(n)) for name, law in other.items()}
    after = replace(laws(SIZES, twice, seed=5, **QUIET), environment={**HERE, "cpu": "slow"})
    found = compare(before, after, GATE, across_machines=True)
    slower = {f.name.split()[0] for f in found.findings if f.verdict == "slower"}
    assert slower == {"local"}
    (shift,) = [f for f in found.findings if f.subject == "all cells"]
    assert (shift.verdict, shift.ratio) == ("undecided", pytest.approx(2, rel=0.05))


def test_other_contracts_are_refused() -> None:
    def under(contract: str) -> Run:
        visits = visits_of([(cell("softmax", Problem(64, 64, 4)), 1e-3, {})])
        return replace(run_of(visits), visits=frame([replace(v, contract=contract) for v in visits]))

    with pytest.raises(BadInput, match=r"contract 1, .* under 2"):
        compare(under("1 rounds=3"), under("2 rounds=3"), across_machines=True)
    with pytest.raises(BadInput, match="samples=5-9 → samples=7-9"):
        compare(under("1 rounds=3 samples=5-9"), under("1 rounds=3 samples=7-9"))
    (note,) = compare(under("1 rounds=3"), under("1 rounds=5")).notes
    assert note == "wall_time: both runs are the same measurements"


def test_a_baseline_with_other_columns_is_compared_in_what_both_have() -> None:
    before, after = many(1), many(2)
    visits = before.visits.drop(columns=["peak_memory_bytes"]).assign(watts_of_old=3.0)
    old = replace(before, visits=frame([]), environment=HERE)
    object.__setattr__(old, "visits", visits)
    metrics = {f.metric for f in compare(old, after, GATE).findings}
    assert "wall_time" in metrics


def test_exact_figures_decide_without_statistics() -> None:
    def with_metrics(**changes: int) -> Run:
        metrics = {"flops": 1000, "reference_flops": 1000, "peak_memory_bytes": 500, "parameter_bytes": 0, **changes}
        return run_of(visits_of([(cell("local", Problem(64, 64, 4)), 1e-3, metrics)]))

    assert compare(with_metrics(), with_metrics(), GATE).regressions == []
    for name in ("flops", "reference_flops", "peak_memory_bytes", "parameter_bytes"):
        worse = compare(with_metrics(), with_metrics(**{name: 1001}), GATE)
        assert len(worse.regressions) == 1, name
        assert compare(with_metrics(**{name: 1001}), with_metrics(), GATE).regressions == []
    allowed = Gate({"flops": 0.01})
    assert compare(with_metrics(), with_metrics(flops=1009), allowed).regressions == []
    assert len(compare(with_metrics(), with_metrics(flops=1011), allowed).regressions) == 1


def test_a_left_kernel_is_a_regression_and_more_operations_only_where_they_are_asked_for() -> None:
    def ran(operations: Mapping[str, int], kernel: str = "flash") -> Run:
        visits: list[Visit] = visits_of([(cell("softmax", Problem(64, 64, 4), "sdpa"), 1e-3, {"flops": 1})])
        return run_of([replace(v, operations=dict(operations), kernel=kernel) if v.round == 0 else v for v in visits])

    base = ran({"mm": 2, "softmax": 1})
    more = compare(base, ran({"mm": 2, "softmax": 1, "clone": 1}), GATE)
    assert (more.regressions, more.exit_code) == ([], compare(base, base, GATE).exit_code)
    (noted,) = [f for f in more.findings if f.metric == "operations"]
    assert (noted.verdict, noted.before, noted.after, noted.reason) == ("more", 3, 4, "clone 0 → 1")
    asked = Gate({"wall_time": 0.05, "operations": 0.0})
    assert [f.metric for f in compare(base, ran({"mm": 3, "softmax": 1}), asked).regressions] == ["operations"]
    assert compare(base, ran({"bmm": 2, "softmax": 1}), asked).regressions == []
    assert compare(base, ran({"mm": 1, "softmax": 1}), asked).regressions == []
    assert [f.metric for f in compare(base, ran({"mm": 2, "softmax": 1}, "SDPA math"), GATE).regressions] == ["kernel"]
    assert compare(base, ran({"mm": 2, "softmax": 1}, "cudnn"), GATE).regressions == []


@pytest.mark.parametrize("share", [0.25, 1.0, 4.0])
def test_memory_that_turns_quadratic_fails_on_any_machine(share: float) -> None:
    def memory(square: float, environment: Mapping[str, Any]) -> Run:
        sizes = (256, 512, 1024)
        cells = []
        for n in sizes:
            size = int(2000 * n + square * n * n)
            metrics = {"peak_memory_bytes": size, "parameter_bytes": 0, "flops": 100 * n}
            cells.append((cell("local", Problem(n, 64, 4)), 1e-3, metrics))
        return run_of(visits_of(cells), environment)

    before, after = memory(0, HERE), memory(4 * share, {**HERE, "threads": 8, "cpu": "another"})
    found = compare(before, after, GATE, across_machines=True)
    assert [f.metric for f in found.regressions] == ["scaling of peak_memory"]
    assert compare(after, before, GATE, across_machines=True).regressions == []
    assert compare(before, memory(0, HERE), GATE).regressions == []


def test_crossovers_of_every_metric_are_told() -> None:
    run = energetic(1)
    timed = run.visits["wall_time_s"]
    both = replace(run, visits=run.visits.assign(device_time_s=timed))
    told = {c.metric for c in compare(both, both).shifts}
    assert told == {"wall_time", "device_time", "peak_memory", "flops", "energy"}


ALWAYS, NEVER, UNDECIDED = (Crossover(kind) for kind in ("always", "never", "undecided"))
CHEAPER, DEARER = (Crossover("stretch", stretch=Stretch(cheaper, "512", None)) for cheaper in (True, False))
BRACKET = Crossover("crossing", (Crossing(None, 256, 512, "above", bracket=True),))
NEAR, FAR = (Crossover("crossing", (Crossing(at, 0.9 * at, 1.1 * at, "above"),)) for at in (500, 700))


@pytest.mark.parametrize(
    ("before", "after", "moved"),
    [
        (ALWAYS, NEVER, True),
        (ALWAYS, NEAR, True),
        (ALWAYS, CHEAPER, False),
        (ALWAYS, DEARER, True),
        (CHEAPER, DEARER, True),
        (CHEAPER, NEAR, False),
        (UNDECIDED, NEVER, False),
        (BRACKET, NEAR, False),
        (BRACKET, FAR, True),
        (NEAR, FAR, True),
        (NEAR, NEAR, False),
    ],
)
def test_crossovers_moved_where_they_cannot_be_the_same(before: Crossover, after: Crossover, moved: bool) -> None:
    assert crossover_shift._differ(before, after) == crossover_shift._differ(after, before) == moved


def test_crossovers_before_and_after_are_told_where_they_moved() -> None:
    before = laws(SIZES, LAWS, **QUIET)
    later = laws(SIZES, {**LAWS, "local": lambda n: 1.2e-6 * n}, seed=2, **QUIET)
    moved = [c for c in compare(before, later).shifts if c.changed and c.metric == "wall_time"]
    assert {c.series for c in moved} == {"local"}
    (before_,) = moved[0].before.crossings
    assert before_.at == pytest.approx(400, rel=0.1)
    assert not any(c.changed for c in compare(before, before).shifts)
    lost = laws(SIZES, LAWS, statuses={("local", n): "error" for n in SIZES}, **QUIET)
    assert not any(c.series == "local" for c in compare(before, lost).shifts), "its statuses say what became of it"


@pytest.mark.parametrize(
    ("change", "half", "expected"),
    [
        (0.10, 0.03, "slower"),
        (-0.10, 0.03, "faster"),
        (0.03, 0.02, "slower"),
        (0.02, 0.01, "same"),
        (0.10, 0.12, "undecided"),
        (0.00, 0.04, "same"),
        (0.02, 0.04, "undecided"),
        (0.00, math.nan, "undecided"),
    ],
)
def test_verdicts_need_an_interval_clear_of_one_and_a_minimum_effect(change: float, half: float, expected: str) -> None:
    assert judge(math.log1p(change), half, math.log1p(0.05))[0] == expected
