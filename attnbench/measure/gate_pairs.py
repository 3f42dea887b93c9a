"""Measures what a gate decides on: the check of both sides, then pairs of fresh processes whose visits take turns."""

from __future__ import annotations

import contextlib
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.analysis.compare.findings import Comparison, Finding, by_importance
from attnbench.analysis.compare.matching import Defaults, aligned, defaults_of, same_cells
from attnbench.analysis.compare.stored_runs import circumstances, unmatched
from attnbench.analysis.compare.tier0_exact import exact_findings
from attnbench.analysis.compare.tier1_paired import FEWEST_VISITS, TURNS
from attnbench.analysis.run import Run, read_run
from attnbench.errors import BadInput
from attnbench.measure import worker_process
from attnbench.measure.protocol import Expansion, ExpansionRequest, OtherVersion, WorkerLost
from attnbench.measure.runner import Runner
from attnbench.plan import time_budget
from attnbench.plan.plan import Plan
from attnbench.problem import Cell
from attnbench.registry import clocks
from attnbench.store import journal
from attnbench.store.frames import frame
from attnbench.thresholds import Gate
from attnbench.units import count

if TYPE_CHECKING:
    import pandas as pd

    from attnbench.analysis.compare.tier1_paired import Noise
    from attnbench.measure.git_worktrees import Checkout
    from attnbench.plan.suite import Suite
    from attnbench.store.records import Visit

Tell = Callable[[str], None]
Only = tuple[Sequence[str], Sequence[str]]
"""Operators and impls of the command line: only these; empty: all."""


@dataclass
class Quiet:
    """Progress of a gate: only what a user must know."""

    tell: Tell

    def planned(self, visits: int, seconds: float | None) -> None:
        """See `runner.Progress`."""

    def begun(self, cell: Cell, round: int) -> None:
        """See `runner.Progress`."""

    def ended(self, visit: Visit, seconds: float | None) -> None:
        """See `runner.Progress`."""
        if visit.status not in ("ok", "skipped"):
            self.tell(f"{visit.status}: {visit.key}: {visit.reason}")

    def said(self, text: str) -> None:
        """See `runner.Progress`."""
        self.tell(text)


def expanded(checkout: Checkout, where: Path, only: Only, *, lenient: bool) -> Expansion | None:
    """The suite of a checkout, expanded by a worker of it; None where its attnbench is too old to say.

    Args:
        checkout: one side.
        where: the suite's path, for messages.
        only: the command line's operators and impls.
        lenient: operators of `only` that the checkout does not have are passed over.

    Raises: BadInput where the suite is refused, or the checkout's worker speaks another version of the protocol.
    """
    request = ExpansionRequest(
        text=checkout.text,
        where=f"{where} ({checkout})",
        directory=str(where.parent),
        name=where.stem,
        operators_from=checkout.operators_from,
        operators=tuple(only[0]),
        impls=tuple(only[1]),
        lenient=lenient,
    )
    try:
        with contextlib.closing(worker_process.start(0, 1, first=checkout.imports)) as worker:
            answer = worker.ask(request, worker_process.START_TIMEOUT_S)
    except WorkerLost as lost:
        raise BadInput(f"{where} ({checkout}): its operators cannot be asked what they are: {lost}.") from None
    except OtherVersion as other:
        raise BadInput(
            f"{checkout}: its worker speaks version {other.theirs} of attnbench's protocol, the attnbench that runs "
            f"this gate speaks version {other.ours}, so that it cannot measure that revision. Run the suite in each "
            "revision with that revision's own attnbench and compare the stored runs (attnbench compare BASE HEAD), or "
            f"gate two revisions whose attnbench speaks version {other.ours}."
        ) from None
    if answer.refused:
        raise BadInput(answer.refused)
    return answer.expansion


def expand_both(
    sides: tuple[Checkout, Checkout], where: Path, only: Only
) -> tuple[tuple[Expansion, Expansion], list[str]]:
    """Both sides' own suites, and what a reader must know of them. Raises BadInput."""
    before, after = (expanded(side, where, only, lenient=side is sides[0]) for side in sides)
    if after is None:
        raise BadInput(
            f"{sides[1]} has an attnbench that cannot say what it measures. Give a later revision as --head."
        )
    notes = [note for side in sides for note in side.notes]
    if before is None:
        notes.append(f"{sides[0]} has an attnbench that cannot say what it measures: its side measures head's cells")
    return (before or after, after), notes


def timed_twins(sides: tuple[Runner, Runner], environments: Sequence[Mapping[str, Any]]) -> list[Twins]:
    """The cells of both sides that time is measured of."""
    return both_survive(sides, defaults_of(*environments))


def loosened(before: Gate, after: Gate) -> list[str]:
    """What a change does to the suite's own thresholds, as sentences."""
    names = sorted({*before.thresholds, *after.thresholds})
    pairs = [(name, before.thresholds.get(name), after.thresholds.get(name)) for name in names]
    told = ["none" if t is None else f"{t:.1%}" for _, *both in pairs for t in both]
    said = [
        f"the suite's threshold of {name}: {a} → {b}"
        for (name, *_), a, b in zip(pairs, told[::2], told[1::2], strict=True)
        if a != b
    ]
    return said + (["the suite's overrides of thresholds differ"] if before.overrides != after.overrides else [])


@contextlib.contextmanager
def side(
    plan: Plan, text: str, environment: Mapping[str, Any], folder: Path, checkout: Checkout | None, tell: Tell
) -> Iterator[Runner]:
    """A run in its own folder, of a checkout or (None) of what is installed. text: its suite."""
    commit = checkout.revision if checkout else environment.get("commit")
    told = {**environment, "commit": commit, "code": environment.get("code") if checkout is None else None}
    plan = replace(plan, limits=replace(plan.limits, budget_s=None))  # it would end one side's check before the other's
    opened = journal.create(folder, text, told)
    start = worker_process.start
    if checkout is not None:
        plan = replace(plan, operators_from=checkout.operators_from, code=None)  # a worktree of its own stays as it is
        start = partial(worker_process.start, first=checkout.imports)
    runner = Runner(plan, opened, Quiet(tell), start)
    try:
        yield runner
    finally:
        runner.workers.kill()  # none is left but where something has ended the measuring
        runner.end_process()
        opened.close()


def plan_like(suite: Suite, device: str, stored: Mapping[str, Any] | None) -> tuple[Plan, dict[str, Any]]:
    """The plan of a suite; stored: the environment whose threads and instruction set are taken on where possible.

    Must be called before torch is imported for the instruction set to be taken on.
    """
    if stored is not None and stored.get("instruction_set") in ("AVX2", "DEFAULT") and _has_avx2():
        os.environ.setdefault("ATEN_CPU_CAPABILITY", str(stored["instruction_set"]).lower())
    import torch

    from attnbench.measure.open_run import plan_of

    threads = stored.get("threads") if stored is not None else None
    if isinstance(threads, int) and threads > 0:
        torch.set_num_threads(threads)
    return plan_of(suite, device)


def _has_avx2() -> bool:
    try:
        return "avx2" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def against_stored(
    suite: Suite, baseline: Run, gate: Gate, device: str, out: Path, tell: Tell, only: Only = ((), ())
) -> Comparison:
    """Tier 0 of what is installed now, against a stored run. only: what the suite was cut down to, and the stored run
    is too. Raises BadInput."""
    plan, environment = plan_like(suite, device, baseline.environment)
    check = replace(plan, measure=replace(plan.measure, rounds=0))
    with side(check, suite.text, environment, out, None, tell) as runner:
        runner.check()
    return tier0(_part(baseline, only), read_run(out), gate, [UNTIMED])


def _part(run: Run, only: Only) -> Run:
    """The visits of some operators and impls; an impl without a variant stands for all of its variants."""
    operators, impls = ({name.strip() for several in names for name in several.split(",")} for names in only)
    kept = [
        (not operators or operator in operators) and (not impls or bool({impl, impl.split(":")[0]} & impls))
        for operator, impl in zip(run.visits["operator"], run.visits["impl"], strict=True)
    ]
    return replace(run, visits=run.visits[kept])


UNTIMED = "time is not compared: tier 0 is what repeats exactly; --base REV --tier 1 measures time as well"
"""What a decision of tier 0 says of thresholds for time."""


def tier0(before: Run, after: Run, gate: Gate, notes: Sequence[str] = ()) -> Comparison:
    """The exact comparison of two runs, whatever machines they come from."""
    differ = circumstances(before, after)
    told = list(notes)
    if not differ.alike:
        what = "; ".join((*differ.hardware, *differ.software))
        told.append(
            f"peak memory and operations are not compared: they repeat only in the same circumstances ({what}). "
            "FLOPs, status and growth are"
        )
    before, after = aligned(before, after)
    findings = exact_findings(before, after, gate, alike=differ.alike)
    gone, new = unmatched(before, after)
    both = _ok(before) & _ok(after)
    return Comparison(
        str(before.folder), str(after.folder), by_importance(findings),
        gone, new, tuple(told), (), len(both), True,
    )  # fmt: skip


def _ok(run: Run) -> set[str]:
    return set(run.results.loc[run.results["status"] == "ok", "key"])


Twins = tuple[Cell, ...]
"""One cell as every side has it, base first: its params differ where a change adds a parameter to the operator."""


@dataclass(frozen=True)
class Stage:
    """Pairs of fresh processes that measure some cells, each in so many turns; a turn is a round, numbered from
    `first`."""

    first: int
    pairs: int
    turns: int

    @classmethod
    def of(cls, cells: Sequence[Twins], pairs: int, first: int = 1) -> Stage:
        """With the turns that so many cells take."""
        return cls(first, pairs, max(TURNS, math.ceil(FEWEST_VISITS / max(len(cells), 1))))

    @property
    def after(self) -> int:
        """The first round of what comes next."""
        return self.first + self.pairs * self.turns

    def expected_s(self, sides: Sequence[Runner], cells: Sequence[Twins]) -> float:
        """The most that it is expected to take."""
        turn = sum(runner.expected_s(cell) for twins in cells for runner, cell in zip(sides, twins, strict=True))
        return self.pairs * (self.turns * turn + len(sides) * time_budget.START_S)


def measure_pairs(sides: Sequence[Runner], cells: Sequence[Twins], stage: Stage, seed: int, tell: Tell) -> None:
    """In every turn every cell is visited by all sides, one right after the other; both in random order."""
    for number in range(stage.first, stage.after):
        pair, turn = divmod(number - stage.first, stage.turns)
        draw = random.Random(f"{seed} {number}")
        if turn == 0:
            for runner in sides:
                runner.end_process()
        order = sorted(cells, key=lambda twins: twins[-1].key)
        draw.shuffle(order)
        for position, twins in enumerate(order):
            for index in draw.sample(range(len(sides)), len(sides)):
                sides[index].visit(twins[index], number, position)
        if turn == stage.turns - 1:
            tell(f"pair {pair + 1} of {stage.pairs}: {count(len(order), 'cell')}, {count(stage.turns, 'visit')} each")
    for runner in sides:
        runner.end_process()


def table_of_pairs(sides: tuple[Runner, Runner], column: str, stage: Stage, cells: Sequence[Twins]) -> pd.DataFrame:
    """key (the candidate's), pair, before, after: the fastest of a pair's visits on each side, where both have a
    time."""
    before, after = (fastest(frame(runner.journal.visits), column, stage) for runner in sides)
    before = before.rename({a.key: b.key for a, b in cells}, level="key")
    return before.rename("before").reset_index().merge(after.rename("after").reset_index(), on=["key", "pair"])


def fastest(visits: pd.DataFrame, column: str, stage: Stage) -> pd.Series[float]:
    """By key and pair, the fastest of a stage's visits that are ok; none where no visit has the column."""
    visits = visits if column in visits else visits.assign(**{column: math.nan})
    chosen = visits[visits["round"].between(stage.first, stage.after - 1) & (visits["status"] == "ok")]
    pair = (chosen["round"].astype(int) - stage.first) // stage.turns
    return chosen.groupby(["key", pair.rename("pair")])[column].min().dropna()


def both_survive(sides: tuple[Runner, Runner], defaults: Defaults) -> list[Twins]:
    """Cells that both sides' checks found ok. defaults: of the operators' parameters."""
    before, after = ({cell.key: cell for cell in runner.survivors()} for runner in sides)
    return [(before[a], after[b]) for a, b in same_cells(before.values(), after.values(), defaults).items()]


def tier1(
    sides: tuple[Runner, Runner], twins: Sequence[Twins], gate: Gate, noise: Noise, pairs: int | None, tell: Tell
) -> tuple[list[Finding], list[str]]:
    """Both stages of the paired decision on every metric with a clock that is gated.

    twins: the cells. pairs: of each stage; None: as many as the power calculation wants. Returns the findings and
    notes.
    """
    from attnbench.analysis.compare import tier1_paired

    cells, seed = [after for _, after in twins], sides[1].plan.seed
    timed = clocks(gpu=sides[0].plan.device == "cuda")
    metrics = [m for m in timed if any(gate.threshold(m, cell.key) is not None for cell in cells)]
    if not cells or not metrics:
        return [], [
            f"no time was compared: no cell that both revisions can run has a threshold for {' or '.join(timed)}"
        ]
    asked = [(c.key, t) for m in metrics for c in cells if (t := gate.threshold(m, c.key)) is not None]
    thresholds = {key: max(t, 0.001) for key, t in sorted(asked, reverse=True)}  # of two metrics the smaller one
    threshold = min(thresholds.values())
    wanted, once, twice = tier1_paired.pairs_for(thresholds, len(cells), noise)
    number = pairs or wanted
    once, twice = (
        replace(
            p,
            pairs=number,
            power=tier1_paired.power(number, len(cells), p.effect, threshold, noise.typical, noise.shared),
        )
        for p in (once, twice)
    )
    stage = Stage.of(twins, number)
    minutes = max(1, math.ceil(stage.expected_s(sides, twins) / 60))
    rate = tier1_paired.FIRST * tier1_paired.CONFIRM
    promise = (
        f"{count(number, 'pair')} of processes per stage (at most about {minutes} min), {count(len(cells), 'cell')}: "
        f"a slow-down of {once.effect:.1%} is found with {once.power:.0%}, one of {twice.effect:.1%} with "
        f"{twice.power:.0%}; at most {rate:.1%} false alarms per suite"
    )
    tell(promise)
    notes = [promise]
    if once.power < tier1_paired.POWER:
        seen = tier1_paired.smallest_change(
            number, len(cells), threshold, noise.typical, noise.shared, tier1_paired.POWER
        )
        notes.append(
            f"the threshold {threshold:.1%} is below what this machine can see in {count(number, 'pair')}: {seen:.1%}"
        )
    measure_pairs(sides, twins, stage, seed, tell)
    firsts = {m: table_of_pairs(sides, timed[m].column, stage, twins) for m in metrics}
    keys = {key for m, table in firsts.items() for key in tier1_paired.marked(table, gate, m)}
    seconds: dict[str, pd.DataFrame] = {}
    if keys:
        tell(f"{count(len(keys), 'cell')} looked slower; confirming in fresh processes")
        looked_at = [each for each in twins if each[-1].key in keys]
        again = Stage.of(looked_at, number, stage.after)
        measure_pairs(sides, looked_at, again, seed, tell)
        seconds = {m: table_of_pairs(sides, timed[m].column, again, looked_at) for m in metrics}
    found = [f for m in metrics for f in tier1_paired.decide(firsts[m], seconds.get(m), gate, m)]
    return [*found, *(f for m in metrics for f in untimed(cells, firsts[m], gate, m))], notes


def untimed(cells: Sequence[Cell], pairs: pd.DataFrame, gate: Gate, metric: str) -> Iterator[Finding]:
    """Cells with a threshold of which no pair gave a time on both sides: nobody can tell."""
    seen = set(pairs["key"])
    for cell in cells:
        threshold = gate.threshold(metric, cell.key)
        if threshold is not None and cell.key not in seen:
            yield Finding(
                cell.key, cell.key, metric, None, None, "undecided", threshold=threshold,
                reason="no pair of processes gave a time on both sides",
            )  # fmt: skip
