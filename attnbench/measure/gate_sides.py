"""The sides of a gate: what each measures, by its own suite, and the run folder in which it does so."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.errors import BadInput
from attnbench.measure import worker_process
from attnbench.measure.machine import host
from attnbench.measure.progress import Progress
from attnbench.measure.protocol import Expansion, ExpansionRequest, OtherVersion, WorkerLost
from attnbench.measure.runner import Runner
from attnbench.plan.plan import Plan
from attnbench.problem import Cell
from attnbench.progress import Reached, Stage
from attnbench.store import journal

if TYPE_CHECKING:
    from attnbench.measure.git_worktrees import Checkout
    from attnbench.plan.suite import Suite
    from attnbench.store.records import Visit

ANEW = "A gate is not continued: run it again with another --out."
"""What to do where a side cannot be stored."""

Only = tuple[Sequence[str], Sequence[str]]
"""Operators and impls of the command line: only these; empty: all."""


@dataclass(frozen=True)
class OfSide:
    """Progress of a side of a gate. Its pairs are planned by the gate; what its checks warn of stays in its run."""

    gate: Progress
    side: str

    def planned(self, stage: Stage, visits: int | None, seconds: float | None) -> None:
        """See `progress.Progress`."""
        self.gate.planned(replace(stage, side=self.side), visits, seconds)

    def begun(self, cell: Cell, round: int) -> None:
        """See `progress.Progress`."""
        self.gate.begun(cell, round)

    def ended(self, visit: Visit, seconds: float | None) -> None:
        """See `progress.Progress`."""
        self.gate.ended(replace(visit, warnings=()), None if visit.round else seconds)

    def reached(self, reached: Reached) -> None:
        """See `progress.Progress`."""

    def message(self, text: str) -> None:
        """See `progress.Progress`."""
        self.gate.message(text)


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
    """The suite of each side.

    Args:
        sides: base and candidate.
        where: the suite's path, for messages.
        only: the command line's operators and impls.

    Returns: both, and notes on where they come from.
    Raises: BadInput.
    """
    before, after = (expanded(side, where, only, lenient=side is sides[0]) for side in sides)
    if after is None:
        raise BadInput(
            f"{sides[1]} has an attnbench that cannot say what it measures. Give a later revision as --head."
        )
    notes = [note for side in sides for note in side.notes]
    if before is None:
        notes.append(f"{sides[0]} has an attnbench that cannot say what it measures: its side measures head's cells")
    return (before or after, after), notes


@contextlib.contextmanager
def side(
    plan: Plan, text: str, environment: Mapping[str, Any], folder: Path, checkout: Checkout | None, progress: Progress
) -> Iterator[Runner]:
    """A run in a folder of its own.

    Args:
        plan: what is measured.
        text: the suite.
        environment: of this machine.
        folder: to write.
        checkout: the revision that is measured; None: what is installed.
        progress: what it reports to.
    """
    commit = checkout.revision if checkout else environment.get("commit")
    facts = {**environment, "commit": commit, "code": environment.get("code") if checkout is None else None}
    plan = replace(plan, limits=replace(plan.limits, budget_s=None))  # it would end one side's check before the other's
    opened = journal.create(folder, text, facts, ANEW)
    start = worker_process.start
    if checkout is not None:
        plan = replace(plan, operators_from=checkout.operators_from, code=None)  # a worktree of its own stays as it is
        start = partial(worker_process.start, first=checkout.imports)
    runner = Runner(
        plan, opened, OfSide(progress, checkout.name if checkout else ""), start, rates=environment.get("rates")
    )
    try:
        yield runner
    finally:
        runner.workers.kill()  # none is left but where something has ended the measuring
        with contextlib.suppress(BadInput):  # results.csv follows from the visits, and what decides is them
            runner.end_process()
        opened.close()


def plan_like(suite: Suite, device: str, run: Path, stored: Mapping[str, Any]) -> tuple[Plan, dict[str, Any]]:
    """The plan of a suite under the conditions of a stored run, with the environment.

    Args:
        suite: what is measured.
        device: to measure on; "auto": the stored run's.
        run: the stored run's folder, for messages.
        stored: its environment, whose thread count and, where torch is not imported yet and the processor has it,
            instruction set are used.

    Raises: BadInput where the device is not here.
    """
    has_avx2 = any("avx2" in line for line in host.lines("/proc/cpuinfo"))
    if stored.get("instruction_set") in ("AVX2", "DEFAULT") and has_avx2:
        os.environ.setdefault("ATEN_CPU_CAPABILITY", str(stored["instruction_set"]).lower())
    import torch

    from attnbench.measure.open_run import device_like, plan_of

    todo = "Gate it where there is one, or name another device with --device: then less can be compared"
    chosen = device_like(run, stored, device, todo)
    threads = stored.get("threads")
    if isinstance(threads, int) and threads > 0:
        torch.set_num_threads(threads)
    return plan_of(suite, chosen)
