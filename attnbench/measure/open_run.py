"""From a suite and the command line to a plan and an open journal: a new run, or one to continue."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.analysis.compare.same_machine import ONE_RUN, differing
from attnbench.contract import CONTRACT
from attnbench.errors import BadInput
from attnbench.files import is_file
from attnbench.measure import worker_process
from attnbench.measure.definitions import check_any_defined
from attnbench.measure.device import AUTO, alternatives, choose_device, device_names, device_of
from attnbench.measure.machine import advice, environment, host
from attnbench.measure.protocol import EnvironmentRequest, RatesRequest, WorkerLost
from attnbench.measure.sharding import dealt
from attnbench.measure.visit_log import stops
from attnbench.naming import option
from attnbench.plan import time_budget
from attnbench.plan.measured_code import MeasuredCode, changes, measured_code
from attnbench.plan.operator_facts import definitions
from attnbench.plan.plan import Plan, order_seed
from attnbench.plan.settings import Limits, Measure
from attnbench.plan.shards import Shard, rounds_by_key
from attnbench.plan.sweep import entry_facts
from attnbench.registry import device_type_of
from attnbench.store import journal
from attnbench.store.reading import read_environment, read_visits
from attnbench.store.records import ENVIRONMENT, SEARCH, SUITE, VISITS
from attnbench.store.shards import StoredShard
from attnbench.store.trusted_json import REPAIR, read_text
from attnbench.units import quoted
from attnbench.yaml_file import parse

if TYPE_CHECKING:
    from attnbench.plan.suite import Suite
    from attnbench.problem import Cell


@dataclass(frozen=True)
class Session:
    """A plan, where its results go, and what the machine is."""

    plan: Plan
    journal: journal.Journal
    environment: Mapping[str, Any]


def plan_of(suite: Suite, device: str, shard: Shard | StoredShard | None = None) -> tuple[Plan, dict[str, Any]]:
    """The plan of a suite on a device, and its environment. Imports the operators.

    Args:
        shard: the part that is measured, or what is stored of it; None: the whole.

    Raises: BadInput.
    """
    from attnbench.plan.cells import cells

    code = measured_code(suite.operators_from)  # before it is imported: a change after this is seen
    planned = cells(suite)
    facts = {
        "suite": suite.name,
        **machine(device),
        **definitions(planned, suite.operators_from),
        "code": code.stored(),
        "seed": order_seed(suite.text),
        "looks": stops(suite.measure),
        "sweep": [entry_facts(sweep, suite.problem) for sweep in suite.sweep],
    }
    plan = assembled(planned, suite.measure, suite.limits, facts)
    plan = replace(plan, operators_from=suite.operators_from, code=code, baseline=suite.baseline)
    if shard is None:
        return plan, facts
    stored = dealt(plan, shard) if isinstance(shard, Shard) else shard
    rounds = rounds_by_key([cell.key for cell in planned], stored.units)
    visited = [cell for cell in planned if cell.key in rounds]
    return replace(plan, cells=visited, rounds_by_key=rounds), {**facts, "shard": stored.stored()}


def machine(device: str) -> dict[str, Any]:
    """The environment of what is measured on a device from here."""
    import torch

    return _environment(device, min(torch.get_num_threads(), host.usable_cores()))


def assembled(cells: Sequence[Cell], measure: Measure, limits: Limits, facts: Mapping[str, Any]) -> Plan:
    """A plan. facts: the environment, with a seed."""
    return Plan(
        cells=cells,
        measure=measure,
        limits=limits,
        device=facts["device"],
        threads=facts["threads"],
        memory_limit=memory_limit(limits, facts),
        seed=facts["seed"],
        device_id=facts.get("device_id", ""),
    )


def device_for(where: str, impls: Sequence[str], wanted: str) -> str:
    """The device of a new run.

    Args:
        where: the suite's name for messages.
        impls: the suite's.
        wanted: the name of a device, or "auto".

    Raises: BadInput where a suite for a GPU would go to another device that nobody named.
    """
    device = choose_device(wanted)
    others = [impl for impl in impls if device_type_of(impl) not in (None, device_of(device).type)]
    if wanted == AUTO and others:
        needed = device_type_of(others[0])
        reasons = [kind.why_not() for kind in map(device_of, device_names()) if kind.type == needed]
        raise BadInput(
            f"{where}: impls: {', '.join(others)}: these need a GPU, and {'; '.join(filter(None, reasons))}. "
            f"`attnbench doctor` says what is missing; {option('device')} {device} skips them and measures all "
            "else there."
        )
    return device


def device_like(folder: Path, stored: Mapping[str, Any], wanted: str, todo: str) -> str:
    """The device that a stored run was measured on, where no other is wanted.

    Args:
        folder: the run's.
        stored: its environment.
        wanted: the name of a device, or "auto".
        todo: what to do where the run's device is not here: a sentence without its full stop.

    Raises: BadInput where it is not here.
    """
    device = stored.get("device")
    if wanted != AUTO or device is None:
        return choose_device(wanted)
    if device not in device_names():
        raise BadInput(
            f"{folder / ENVIRONMENT}: device: {quoted(str(device))}; allowed: {', '.join(device_names())}. {REPAIR}"
        )
    reason = device_of(device).why_not()
    if reason is not None:
        raise BadInput(f"{folder}: it was measured on {device}, and here {reason}. {todo}.")
    return str(device)


def memory_limit(limits: Limits, facts: Mapping[str, Any]) -> int:
    """Bytes that a cell may need: the suite's, or its fraction of the device's memory."""
    if limits.memory_bytes is not None:
        return limits.memory_bytes
    return device_of(facts["device"]).memory_limit(limits.memory_fraction, facts)


def begin(
    suite: Suite, device: str, out: Path | None, shard: Shard | None = None, *, with_rates: bool | None = None
) -> Session:
    """A new run folder.

    Args:
        suite: what it is to hold.
        device: to measure on.
        out: the folder; None: a new one below results/.
        shard: the part of the suite that it is to hold; None: the whole.
        with_rates: whether the rates of the hardware are measured; None: where the suite's budget has the time.

    Raises: BadInput.
    """
    plan, facts = plan_of(suite, device, shard)
    check_any_defined(plan.cells, plan.operators_from, device, suite.where)
    rated = time_budget.rates_fit(plan.limits.budget_s) if with_rates is None else with_rates
    facts["rates"] = _rates(plan) if rated else {}
    name = suite.name if shard is None else f"{suite.name}-{shard.number}of{shard.of}"
    return Session(plan, journal.create(out or default_folder(name), suite.text, facts), facts)


def resume(suite: Suite, device: str, folder: Path) -> Session:
    """A stored run to continue. Raises BadInput where its suite, contract or machine is another."""
    from attnbench.plan.suite import named_again, without_places

    _require_suite(folder)
    stored_text = read_text(folder / SUITE)
    if without_places(stored_text, parse(stored_text, str(folder / SUITE)), suite.directory) != suite.text:
        raise BadInput(
            f"{option('resume')} {folder}: {suite.where} is not the suite that this run measures ({folder / SUITE}). "
            f"{named_again(suite)}, or start a new run with {option('out')}."
        )
    stored = journal.stored_environment(folder)
    if "parts" in stored:
        raise BadInput(
            f"--resume {folder}: `attnbench merge` joined it. Continue the runs that it was joined from, or measure "
            "what is missing into a folder of its own, and join them again."
        )
    kind = device_like(
        folder, stored, device, f"Continue it where it was started, or start a new run with {option('out')}"
    )
    plan, facts = plan_of(suite, kind, stored_shard(folder))
    for name, before, now in differing(ONE_RUN, stored, facts):
        raise BadInput(
            f"{option('resume')} {folder}: {name} was {before} ({folder / ENVIRONMENT}) and is {now} now; one run "
            f"cannot hold both. Continue it where it was started, or start a new run with {option('out')}."
        )
    refuse_other_code(folder, stored, facts)
    visits = journal.resume(folder)
    contracts = sorted({visit.contract for visit in visits.visits} - {plan.contract})
    if contracts:
        visits.close()
        raise _other_contract(folder, contracts[0], plan.contract)
    keys = sorted({visit.key for visit in visits.visits} - {cell.key for cell in plan.cells})
    if keys:
        visits.close()
        raise BadInput(
            f"{option('resume')} {folder}: it measured {keys[0]}, which its suite gives no more: {folder / SUITE} or "
            f"an operator's parameters have changed since. Undo that, or start a new run with {option('out')}."
        )
    return Session(plan, visits, stored)


def _refuse_other_contract(folder: Path) -> None:
    """Raises BadInput where a stored run was measured by another contract: its suite may have keys of that."""
    for visit in read_visits(folder) if is_file(folder / VISITS) else ():
        if visit.contract.split()[:1] != [str(CONTRACT)]:
            raise _other_contract(folder, visit.contract, str(CONTRACT))


def _other_contract(folder: Path, before: str, now: str) -> BadInput:
    return BadInput(
        f"{option('resume')} {folder}: its visits were measured by contract '{before}' ({folder / VISITS}), "
        f"now it is '{now}'. Start a new run with {option('out')}."
    )


def refuse_other_code(folder: Path, stored: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Raises BadInput where a stored run was begun with other measured code than there is now, or does not say."""
    before, now = MeasuredCode.of(stored), MeasuredCode.of(facts)
    if before is None or now is None:
        raise BadInput(
            f"{option('resume')} {folder}: {folder / ENVIRONMENT} has no digests of the code that was measured, so "
            "nobody can say that it is this code: it is of an older attnbench, or one side of a gate. Start a new run "
            f"with {option('out')}."
        )
    for what, changed in (
        ("library", changes(before.libraries, now.libraries)),
        ("code", changes(before.files, now.files)),
    ):
        if changed:
            todo = "Install what it was begun with" if what == "library" else "Put it back as it was"
            raise BadInput(
                f"{option('resume')} {folder}: since the run was begun {changed}; one run cannot hold times of both. "
                f"{todo}, or start a new run with {option('out')}."
            )


def stored_suite(folder: Path) -> Suite:
    """The suite of a stored run. Raises BadInput where that alone does not suffice."""
    from attnbench.plan.suite import from_text

    _require_suite(folder)
    if is_file(folder / SEARCH):
        raise BadInput(
            f"--resume {folder}: a search of `attnbench crossover`, which measures only what it needs. "
            f"Continue it with: attnbench crossover --resume {folder}"
        )
    _refuse_other_contract(folder)
    text = read_text(folder / SUITE)
    if "operators_from" in parse(text, str(folder / SUITE)):
        raise BadInput(
            f"{option('resume')} {folder}: its suite has operators of your own (operators_from), and code runs only "
            f"from files that you name. Name the suite again: attnbench run SUITE --resume {folder}."
        )
    return from_text(text, str(folder / SUITE), folder, operators_from=())


def _require_suite(folder: Path) -> None:
    """Raises BadInput where a folder to continue has no suite."""
    if not is_file(folder / SUITE):
        raise BadInput(
            f"{option('resume')} {folder}: not a run folder, it has no {SUITE}. Start a new run with {option('out')}."
        )


def stored_budget(folder: Path) -> str | None:
    """The budget in the suite of a stored run; None: it has none. Raises BadInput."""
    path = folder / SUITE
    return budget_in(read_text(path), str(path)) if is_file(path) else None


def budget_in(text: str, where: str) -> str | None:
    """`limits: {budget: …}` of a suite's text; None: it has none. Raises BadInput where the text is no suite's."""
    limits = parse(text, where).get("limits")
    return str(limits["budget"]) if isinstance(limits, dict) and limits.get("budget") is not None else None


def stored_shard(folder: Path) -> StoredShard | None:
    """The part of its suite that a stored run is; None: the whole. Raises BadInput."""
    return StoredShard.of_run(read_environment(folder)) if is_file(folder / ENVIRONMENT) else None


def stored_search(folder: Path, operators_from: Sequence[str]) -> Suite:
    """The suite of a stored search, whose user's operators must be named again.

    Args:
        folder: the stored search.
        operators_from: .py files, relative to the current directory, and packages.

    Raises: BadInput where these are not those that the search was begun with.
    """
    from attnbench.plan.suite import from_text, operator_places

    _refuse_other_contract(folder)
    path = folder / SUITE
    text = read_text(path)
    stored = [_stored_place(str(place)) for place in operator_places(parse(text, str(path)))]
    missing = [name for name in stored if name not in map(_stored_place, operators_from)]
    more = [place for place in operators_from if _stored_place(place) not in stored]
    if missing:
        raise BadInput(
            f"{option('resume')} {folder}: the search has operators of your own ({', '.join(missing)}), and code runs "
            f"only from files that you name. Give each again: {option('operators_from')} PATH (a .py file) or PACKAGE."
        )
    if more:
        raise BadInput(
            f"{option('resume')} {folder}: the search was asked without {more[0]}. Leave out "
            f"{option('operators_from')} {more[0]}."
        )
    return from_text(text, str(path), Path.cwd(), operators_from=operators_from)


def _stored_place(place: str) -> str:
    """What is stored of where a user's operators are, without the folder: a file's name, or a package's."""
    return os.path.basename(place) if place.endswith(".py") else place


def other_users(device: str) -> list[str]:
    """Who else computes on the device that a run would use, or that this is unknown, as sentences."""
    users, unknown = device_of(device).other_users()
    if unknown is not None:
        return [f"whether others use the GPU is unknown ({unknown}): times and memory may be disturbed"]
    return [f"{user} is using the GPU: times and memory are disturbed" for user in users]


def disturbances() -> list[str]:
    """What on the host would make numbers worse, as sentences with what to do."""
    return [f"{c.subject}: {c.found}. {c.todo}" for c in advice.processor() if c.level == "warning"]


def _environment(device: str, threads: int) -> dict[str, Any]:
    if device_of(device).is_host:
        import torch

        torch.set_num_threads(threads)
        return environment.collect(device)
    # Started in a worker only: a CUDA context of the runner's own would be another process on the GPU.
    try:
        with contextlib.closing(worker_process.start(0, threads)) as worker:
            return worker.ask(EnvironmentRequest(device), worker_process.START_TIMEOUT_S).environment
    except WorkerLost as lost:
        raise BadInput(
            f"{option('device')} {device}: the first worker on it was lost: {lost}. `attnbench doctor` says what this "
            f"machine can measure; use {option('device')} {alternatives(device)} meanwhile."
        ) from None


def _rates(plan: Plan) -> dict[str, Any]:
    """The rates of this hardware for the run's dtypes, measured by a worker; empty where that fails."""
    request = RatesRequest(plan.device, tuple(sorted({cell.problem.dtype for cell in plan.cells})))
    limit = plan.limits.budget_s
    timeout = worker_process.START_TIMEOUT_S if limit is None else limit * time_budget.RATES_SHARE
    try:
        worker = worker_process.start(0, plan.threads)
        rates = worker.ask(request, timeout).rates
    except WorkerLost:
        return {}
    worker.close()
    return rates


def default_folder(name: str) -> Path:
    """A folder below results/ that is not there yet: the name and the time."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = Path("results") / f"{name}-{stamp}"
    number = 2
    while os.path.exists(folder):
        folder = Path("results") / f"{name}-{stamp}-{number}"
        number += 1
    return folder
