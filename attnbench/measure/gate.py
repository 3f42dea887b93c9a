"""A gate: both sides are measured, and tier 0 and tier 1 decide."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from attnbench.analysis.compare.findings import Comparison, Finding, by_importance, names
from attnbench.analysis.compare.matching import defaults_of
from attnbench.analysis.compare.tier0_exact import UNTIMED, tier0
from attnbench.analysis.run import Run, read_run
from attnbench.errors import BadInput
from attnbench.measure.gate_pairs import both_survive, tier1
from attnbench.measure.gate_sides import Only, expand_both, plan_like, side
from attnbench.measure.git_worktrees import checkouts
from attnbench.measure.open_run import assembled, default_folder, device_for, disturbances, machine, other_users
from attnbench.measure.progress import Progress
from attnbench.measure.runner import Stopped
from attnbench.plan import suite as suites
from attnbench.plan.gate_thresholds import effective, loosened
from attnbench.plan.plan import order_seed
from attnbench.registry import operators
from attnbench.store.trusted_json import read_text
from attnbench.thresholds import Gate
from attnbench.units import separated
from attnbench.yaml_file import parse


@dataclass(frozen=True)
class GateRequest:
    """What a gate is to decide, and how.

    Args:
        suite: a file in the repository, or the name of a shipped suite.
        only: operators and impls of the command line.
        thresholds: in place of the suite's; None: the suite's.
        device: auto, or the device to measure on.
        tier: 0: exact figures alone; 1: then time.
        pairs: of processes, at most; None: as many as the looks have.
        out: the folder to write; None: a new one below results/.
    """

    suite: str
    only: Only = ((), ())
    thresholds: Gate | None = None
    device: str = "auto"
    tier: int = 1
    pairs: int | None = None
    out: Path | None = None

    def folder(self, suite: str) -> Path:
        """The folder to write. suite: its name."""
        return self.out or default_folder(f"gate-{suite}")


def against_run(request: GateRequest, run: Path, progress: Progress) -> tuple[Comparison, Path]:
    """Tier 0 of what is installed now, against a stored run.

    Returns: the decision, and the folder with the new run.
    Raises: BadInput.
    """
    suite = suites.override(suites.load(request.suite), operators=request.only[0], impls=request.only[1])
    gate = request.thresholds or effective(suite.gate)
    stored = read_run(run)
    folder = request.folder(suite.name)
    with _comparing():
        plan, environment = plan_like(suite, request.device, run, stored.environment)
        untimed = replace(plan, measure=replace(plan.measure, rounds=0))
        with side(untimed, suite.text, environment, folder, None, progress) as runner:
            runner.check()
    return _placed(tier0(_part(stored, request.only), read_run(folder), gate, [UNTIMED]), request.suite), folder


def _placed(comparison: Comparison, suite: str) -> Comparison:
    """A decision that knows the files which it is about. suite: as requested."""
    file = suites.find(suite)
    shipped = {name: str(source.file) for name, source in operators().items()}
    return replace(comparison, suite=str(file), operator_files=shipped | _own_files(file))


def _own_files(suite: Path) -> dict[str, str]:
    """The .py files that a suite's `operators_from` names, by operator; nothing is imported. None where the working
    tree has no such suite."""
    with contextlib.suppress(OSError, BadInput):
        places = parse(read_text(suite), str(suite)).get("operators_from")
        if isinstance(places, list):
            return {Path(place).stem: str(suite.parent / place) for place in map(str, places) if place.endswith(".py")}
    return {}


@contextlib.contextmanager
def _comparing() -> Iterator[None]:
    """Raises BadInput where the measuring is stopped."""
    try:
        yield
    except Stopped as stopped:
        raise BadInput(f"the gate cannot compare: {stopped}.") from None


def _part(run: Run, only: Only) -> Run:
    """The visits of some operators and impls; an impl without a variant stands for all of its variants."""
    operators, impls = (set(separated(names)) for names in only)
    rows = [
        (not operators or operator in operators) and (not impls or bool({impl, impl.split(":")[0]} & impls))
        for operator, impl in zip(run.visits["operator"], run.visits["impl"], strict=True)
    ]
    return replace(run, visits=run.visits[rows])


def between_revisions(request: GateRequest, base: str, head: str | None, progress: Progress) -> tuple[Comparison, Path]:
    """The gate of two revisions of the suite's repository.

    Args:
        request: what is decided.
        base: the revision that is compared with.
        head: the candidate; None: the working tree.
        progress: what it reports to.

    Returns: the decision, and the folder with both runs.
    Raises: BadInput.
    """
    file = suites.find(request.suite)
    with _comparing(), checkouts(file, base, head) as sides:
        both, notes = expand_both(sides, file, request.only)
        gate = request.thresholds or effective(both[1].gate)
        if request.thresholds is None:
            notes += loosened(effective(both[0].gate), gate)
        notes.insert(0, f"{sides[0]}, {sides[1]}{' (the working tree)' if head is None else ''}")
        folder = request.folder(both[1].name)
        here = machine(device_for(str(file), both[1].impls, request.device))
        if request.tier > 0:
            notes += [*other_users(here["device"]), *disturbances()]
        environments = [{**here, **each.definitions, "seed": order_seed(each.text)} for each in both]
        plans = [
            assembled(each.cells, both[1].measure, both[1].limits, environment)
            for each, environment in zip(both, environments, strict=True)
        ]
        with (
            side(plans[0], both[0].text, environments[0], folder / "base", sides[0], progress) as before,
            side(plans[1], both[1].text, environments[1], folder / "head", sides[1], progress) as after,
        ):
            for runner in (before, after):
                runner.check()
            exact = tier0(read_run(folder / "base"), read_run(folder / "head"), gate, notes)
            if request.tier == 0:
                return _placed(replace(exact, notes=(*exact.notes, UNTIMED)), request.suite), folder
            twins = both_survive((before, after), defaults_of(environments))
            timed, course = tier1((before, after), twins, gate, request.pairs, progress)
        findings = _findings(read_run(folder / "base"), read_run(folder / "head"), gate, timed)
        decision = replace(exact, findings=findings, notes=(*exact.notes, *course))
        return _placed(decision, request.suite), folder


def _findings(before: Run, after: Run, gate: Gate, timed: Sequence[Finding]) -> tuple[Finding, ...]:
    """Those of both tiers. The runs are complete by now: a visit of tier 1 may have changed a status."""
    names_by_key = names(after.results)
    named = [replace(finding, name=names_by_key.get(finding.subject, finding.name)) for finding in timed]
    return by_importance([*tier0(before, after, gate).findings, *named])
