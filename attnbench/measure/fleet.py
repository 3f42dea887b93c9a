"""A suite measured by many devices: its shards are leased from an engine, gathered in a folder, and joined."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from attnbench import files
from attnbench.errors import BadInput, last_printed
from attnbench.measure import engines, fleet_folder
from attnbench.measure.device import AUTO, HOST, device_names, device_of
from attnbench.measure.engines import Connection, News, Pool, Task
from attnbench.measure.fleet_folder import Facts, FleetFolder, units_done, units_lacking, units_of
from attnbench.measure.fleet_time import FleetTime
from attnbench.measure.open_run import default_folder, refuse_other_code
from attnbench.measure.shard_process import USAGE
from attnbench.plan import suite as suites
from attnbench.plan.blocks import blocks_of
from attnbench.plan.measured_code import measured_code
from attnbench.progress import Leased
from attnbench.store.journal import stored_environment
from attnbench.store.trusted_json import read_text
from attnbench.units import count

if TYPE_CHECKING:
    from attnbench.plan.suite import Suite

ATTEMPTS = 3
"""A shard that leaves its device unfinished is leased again so often at most."""

HOPELESS = 3
"""After so many shards that failed, and none that ended, the fleet stops: it is no matter of one device."""

INTERNAL_ERROR = 70

MOST_QUOTED = 400
"""Characters of what a failed shard printed."""


class FleetProgress(Protocol):
    """Receives what is reported."""

    def leased(self, state: Leased) -> None:
        """How far the fleet is."""

    def message(self, text: str) -> None:
        """A sentence for the user."""


@dataclass(frozen=True)
class FleetRequest:
    """What is to be measured, on what, and where it is stored.

    Args:
        suite: None: that of the fleet to continue.
        engine: its name.
        out: the folder to write; None: a new one below results/.
        resume: the folder of a fleet to continue.
        shards: into how many the suite is dealt; None: as many as it has blocks, or the engine allows.
        devices: leased at once at most; None: as many as there are.
        address, options: of the engine, see `engines.Connection`.
        operators, impls, rounds: as `plan.suite.override` takes them.
        budget: for this measuring, in place of the suite's, such as "5m"; None: the suite's.
        device: a kind's name, or "auto".
    """

    suite: Suite | None
    engine: str
    out: Path | None = None
    resume: Path | None = None
    shards: int | None = None
    devices: int | None = None
    address: str | None = None
    options: Sequence[str] = ()
    operators: Sequence[str] = ()
    impls: Sequence[str] = ()
    rounds: int | None = None
    budget: str | None = None
    device: str = AUTO


@dataclass(frozen=True)
class Ended:
    """What became of a fleet.

    Attributes:
        folder: the fleet's.
        codes: the exit codes of its complete shards.
        missing: how many shards have not ended.
        cut: of how many that have ended the budget left units out.
        usage: whether these ended as bad usage does.
        interrupted: whether an interrupt ended it.
        joined: whether the folder holds a run of what was measured.
        notes: on that.
        refused: why it does not; empty where nothing speaks against it.
    """

    folder: Path
    codes: Sequence[int]
    missing: int
    cut: int
    usage: bool
    interrupted: bool
    joined: bool
    notes: Sequence[str] = ()
    refused: str = ""

    @property
    def exit_code(self) -> int:
        """As that of `attnbench run`; 1 too where shards are missing, 2 where they do not belong together."""
        if self.interrupted:
            return 130
        if self.refused:
            return 2
        if not self.codes:
            return 2 if self.usage else 3
        return 1 if self.missing or 1 in self.codes else min(self.codes)


def measure(request: FleetRequest, progress: FleetProgress) -> Ended:
    """Measures what is missing of a fleet's shards, and joins what there is. Raises BadInput."""
    accelerated = request.device != AUTO and not device_of(request.device).is_host
    options = _options(request.options)
    connection = Connection(request.address, options, request.devices, accelerated, progress.message)
    if request.resume is not None and request.out is not None:
        raise BadInput("--resume and --out: a fleet continues in its own folder. Give one of the two.")
    suite = _suite(request)
    if request.budget is not None:
        suite = suites.with_budget(suite, request.budget)
    with engines.connect(request.engine, connection) as pool:
        fleet = _new(request, suite, pool) if request.resume is None else _continued(request, suite, pool)
        facts = fleet.facts()
        with fleet.locked():
            tasks, left = _tasks(fleet, facts, suite, request.devices or pool.at_once or facts.shards)
            leasing = _Leasing(request.engine, fleet, facts, progress, tasks, left)
            return _joined(leasing.ended(leasing.run(pool)))


def _options(words: Sequence[str]) -> dict[str, str]:
    options = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise BadInput(f"--option {word}: allowed: NAME=VALUE, which the engine is given, such as partition=gpu.")
        options[name.lstrip("-")] = value
    return options


def _suite(request: FleetRequest) -> Suite:
    """The suite with the options. Raises BadInput."""
    if request.suite is not None:
        return suites.override(request.suite, operators=request.operators, impls=request.impls, rounds=request.rounds)
    if request.resume is None:
        raise BadInput("no SUITE was given. `attnbench list suites` shows those that come with attnbench.")
    for option, given in (
        ("--operator", request.operators),
        ("--impl", request.impls),
        ("--rounds", request.rounds),
    ):
        if given:
            raise BadInput(
                f"{option} --resume {request.resume}: a fleet measures what it was begun with. Leave it out."
            )
    fleet = FleetFolder(request.resume)
    path = fleet.path / fleet_folder.INPUTS / fleet.facts().suite
    suite = suites.from_text(read_text(path), str(path), path.parent, operators_from=())
    if "operators_from" in suite.text:
        raise BadInput(
            f"--resume {request.resume}: its suite has operators of your own (operators_from), and code runs only from "
            f"files that you name. Name the suite again: attnbench fleet SUITE --resume {request.resume}."
        )
    return suite


def _new(request: FleetRequest, suite: Suite, pool: Pool) -> FleetFolder:
    """The folder of a new fleet. Raises BadInput."""
    from attnbench.plan.cells import cells

    inputs = _inputs(suite)
    blocks = blocks_of(cells(suite))
    units = len(blocks) * suite.measure.rounds
    shards = min(len(blocks), pool.most or len(blocks)) if request.shards is None else request.shards
    if not 1 <= shards <= units:
        raise BadInput(
            f"--shards {shards}: {suite.where} has {count(units, 'unit')} to deal, each a block (a panel at one size) "
            f"in one of {count(suite.measure.rounds, 'round')}; allowed: 1 to {units}."
        )
    _check_most(shards, request.engine, pool)
    facts = Facts(suite.name, _file_name(suite), shards, units, _device(request.device, pool))
    return fleet_folder.create(request.out or default_folder(f"{suite.name}-fleet"), facts, inputs)


def _device(wanted: str, pool: Pool) -> str:
    """The name of the kind to measure on."""
    if wanted != AUTO:
        return wanted
    kinds = sorted((-kind.preference, name) for name in device_names() if not (kind := device_of(name)).is_host)
    return kinds[0][1] if kinds and pool.accelerated else HOST


def _file_name(suite: Suite) -> str:
    return f"{suite.name}.yaml" if re.fullmatch(r"\w[\w-]*", suite.name, re.ASCII) else "suite.yaml"


def _inputs(suite: Suite) -> dict[str, bytes]:
    """The suite, and the files of the user's operators, by their paths beside it. Raises BadInput."""
    inputs = {_file_name(suite): suite.text.encode()}
    for place in suite.operators_from:
        if not place.endswith(".py"):
            continue
        path, top = Path(place).resolve(), suite.directory.resolve()
        if not path.is_relative_to(top):
            raise BadInput(
                f"{suite.where}: operators_from: {place} is outside the suite's folder, and a fleet sends what is in "
                "it. Move the file beside the suite, or make it a package that every node has."
            )
        inputs[path.relative_to(top).as_posix()] = files.read(path)
    return inputs


def _continued(request: FleetRequest, suite: Suite, pool: Pool) -> FleetFolder:
    """The folder of a fleet that was begun before. Raises BadInput where it is another's."""
    assert request.resume is not None
    fleet = FleetFolder(request.resume)
    facts = fleet.facts()
    where = f"--resume {request.resume}"
    if request.suite is not None and _inputs(suite) != fleet_folder.inputs_of(fleet.path):
        raise BadInput(
            f"{where}: {suite.where} is not what this fleet measures ({facts.name}, "
            f"{fleet.path / fleet_folder.INPUTS}). {suites.named_again(suite)}, or start a new fleet with --out."
        )
    for option, given, stored in (
        ("--shards", request.shards, facts.shards),
        ("--device", None if request.device == AUTO else request.device, facts.device),
    ):
        if given not in (None, stored):
            raise BadInput(f"{where}: {option} was {stored} and cannot be {given} now. Leave it out.")
    _check_most(facts.shards, request.engine, pool)
    for folder in fleet.measured()[:1]:
        code = measured_code(suite.operators_from)
        refuse_other_code(request.resume, stored_environment(folder), {"code": code.stored()})
    return fleet


def _check_most(shards: int, engine: str, pool: Pool) -> None:
    """Raises BadInput where an engine does not take so many shards."""
    if pool.most is not None and shards > pool.most:
        raise BadInput(f"--shards {shards}: {engine} takes no more than {pool.most} here. Give fewer shards.")


def _tasks(fleet: FleetFolder, facts: Facts, suite: Suite, devices: int) -> tuple[list[Task], FleetTime]:
    """The shards, each with its part of the budget, where there is one, and what they are expected to take.

    devices: that measure at once.
    """
    from attnbench.measure.sharding import expected_of_shards
    from attnbench.plan.time_budget import shard_s

    tasks = [fleet.task(number, facts) for number in range(1, facts.shards + 1)]
    expected = dict(enumerate(expected_of_shards(suite, facts.device, facts.shards), 1))
    budget_s = suite.limits.budget_s
    if budget_s is None:
        return tasks, FleetTime(expected)
    limits_s = {number: shard_s(budget_s, each.share, devices, each.rounds) for number, each in expected.items()}
    with files.going_on(fleet.path, engines.CONTINUED):
        return [fleet.limit(task, limits_s[task.number]) for task in tasks], FleetTime(expected, limits_s)


@dataclass
class _Leasing:
    """The shards of a fleet while they are measured."""

    engine: str
    fleet: FleetFolder
    facts: Facts
    progress: FleetProgress
    tasks: Sequence[Task]
    left: FleetTime
    _units: dict[int, int] = field(default_factory=dict)
    _hosts: dict[int, str] = field(default_factory=dict)
    _failures: dict[int, News] = field(default_factory=dict)
    _codes: dict[int, int] = field(default_factory=dict)

    def run(self, pool: Pool) -> bool:
        """Leases until every shard has ended, or there is no hope. Returns whether an interrupt ended it."""
        for task in self.tasks:
            code = self.fleet.ended(task)
            if code is not None and units_lacking(task.folder):
                with files.going_on(task.mark, engines.CONTINUED):
                    task.mark.unlink()  # it goes on, with the budget of today
            elif code is not None:
                self._codes[task.number] = code
                self._units[task.number] = units_of(task.folder)
        try:
            for _ in range(ATTEMPTS):
                again = [task for task in self.tasks if task.number not in self._codes and self._hopeful(task)]
                if not again or self._hopeless():
                    break
                self._lease(pool, again)
        except KeyboardInterrupt:
            codes = {task.number: self.fleet.ended(task) for task in self.tasks}  # some ended meanwhile
            self._codes |= {number: code for number, code in codes.items() if code is not None}
            return True
        return False

    def _lease(self, pool: Pool, tasks: Sequence[Task]) -> None:
        for task in tasks:
            self._units[task.number] = units_done(task.folder)
            self.left.waits(task.number, self._units[task.number])
        self._report(len(tasks))
        by_number = {task.number: task for task in tasks}
        with contextlib.closing(pool.lease(tasks)) as changes:
            for news in changes:
                self._hosts = {}
                for each in news:
                    self._note(each, by_number[each.number])
                self._report(sum(number not in self._codes for number in by_number) - len(self._hosts))
                if self._hopeless():
                    return

    def _note(self, news: News, task: Task) -> None:
        if news.state == "running":
            self._hosts[news.number] = news.host
            self._units[news.number] = max(news.units, self._units[news.number])
            self.left.runs(news.number, news.units)
        elif news.state == "waiting":
            self.left.waits(news.number, self._units[news.number])
        elif news.state == "ended":
            self._codes[news.number] = news.code or 0
            self._failures.pop(news.number, None)
            self._units[news.number] = units_of(task.folder)
            self.left.ends(news.number)
        elif news.state == "failed":
            self._failures[news.number] = news
            self.left.waits(news.number, self._units[news.number])
            self.progress.message(self._failure(news))

    def _report(self, waiting: int) -> None:
        self.progress.leased(
            Leased(
                engine=self.engine,
                devices=len(self._hosts),
                hosts=len(set(self._hosts.values())),
                blocks=sum(self._units.values()),
                total=self.facts.blocks,
                waiting=waiting,
                left_s=self.left.seconds({task.number for task in self.tasks} - self._codes.keys()),
            )
        )

    def _hopeful(self, task: Task) -> bool:
        """Whether a shard may end well on another attempt: an error in the usage, or in attnbench, would recur."""
        failure = self._failures.get(task.number)
        return failure is None or (failure.code not in (1, USAGE, INTERNAL_ERROR))

    def _hopeless(self) -> bool:
        return not self._codes and len(self._failures) >= min(HOPELESS, self.facts.shards)

    def _failure(self, news: News) -> str:
        task = self.fleet.task(news.number, self.facts)
        why = news.reason or (
            f"attnbench run ended with {news.code}" if news.code is not None else "it left its device"
        )
        return f"shard {task} failed: {why}{_last_words(task.log)}"

    def ended(self, interrupted: bool) -> Ended:
        """What became of the shards."""
        codes = {news.code for news in self._failures.values()}
        return Ended(
            folder=self.fleet.path,
            codes=list(self._codes.values()),
            missing=self.facts.shards - len(self._codes),
            cut=sum(bool(units_lacking(task.folder)) for task in self.tasks if task.number in self._codes),
            usage=codes == {USAGE},
            interrupted=interrupted,
            joined=False,
        )


def _last_words(log: Path) -> str:
    """What a shard printed last; its whole log is named."""
    with contextlib.suppress(OSError):
        if words := last_printed(files.read(log), MOST_QUOTED):
            return f"; {words} ({log})"
    return ""


def _joined(ended: Ended) -> Ended:
    """The shards of a fleet as one run in its folder, as far as they are measured."""
    from attnbench.analysis.merge.joining import join
    from attnbench.analysis.merge.writing import write

    fleet = FleetFolder(ended.folder)
    parts = fleet.measured()
    if not parts:
        return ended
    beside = ended.folder / f".joined-{secrets.token_hex(4)}"
    try:
        joined = join(parts, partial=True)
        with files.going_on(ended.folder, engines.CONTINUED):
            beside.mkdir()
        write(joined, beside, engines.CONTINUED)
        with files.going_on(ended.folder, engines.CONTINUED):
            for path in beside.iterdir():
                os.replace(path, ended.folder / path.name)
    except BadInput as error:
        return replace(ended, refused=str(error))
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return replace(ended, joined=True, notes=joined.notes)
