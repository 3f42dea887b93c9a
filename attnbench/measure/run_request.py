"""A run as it is asked for, by the verb or from Python: suite and options → an open session, measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.errors import BadInput
from attnbench.measure import open_run as sessions
from attnbench.measure.device import choose_device
from attnbench.measure.runner import Progress, Runner, Stopped
from attnbench.naming import option
from attnbench.plan import suite as suites
from attnbench.plan import time_budget
from attnbench.plan.shards import Shard, read_shard
from attnbench.units import count

if TYPE_CHECKING:
    from attnbench.measure.open_run import Session
    from attnbench.measure.worker_pool import Workers
    from attnbench.plan.suite import Suite
    from attnbench.store.shards import StoredShard


@dataclass(frozen=True)
class RunRequest:
    """What is to be measured, and where it is stored.

    Args:
        suite: None: that of the run to continue.
        out: the folder to write; None: a new one below results/.
        resume: the folder of a run to continue.
        operators, impls, rounds, budget: as `plan.suite.override` takes them.
        device: a kind's name, or "auto".
        strict: refuse to run while others use the GPU.
        shard: the part of the suite that is measured, such as "2/8"; None: the whole, or that of the run to continue.
        with_rates: whether a new run measures the rates of the hardware, which take some seconds.
    """

    suite: Suite | None
    out: Path | None = None
    resume: Path | None = None
    operators: Sequence[str] = ()
    impls: Sequence[str] = ()
    device: str = "auto"
    rounds: int | None = None
    budget: str | None = None
    strict: bool = False
    shard: str | None = None
    with_rates: bool = True

    def choose(self) -> tuple[Suite, str, Shard | StoredShard | None]:
        """The suite with the options, the device to measure on, and the part that is measured. Raises BadInput."""
        if self.resume is not None and self.out is not None:
            raise BadInput(
                f"{option('resume')} and {option('out')}: a run continues in its own folder. Give one of the two."
            )
        if self.suite is None and self.resume is None:
            raise BadInput("no SUITE was given. `attnbench list suites` shows those that come with attnbench.")
        chosen = self.suite if self.suite is not None else sessions.stored_suite(self.resume or Path())
        shard = self._shard()
        rounds = chosen.measure.rounds if shard is not None and self._without_added_rounds(chosen) else self.rounds
        of_suite = self.resume is None and shard is None  # else it is this command's alone: parts are of one suite
        budget = self.budget if of_suite else self._stored_budget()
        chosen = suites.override(chosen, operators=self.operators, impls=self.impls, rounds=rounds, budget=budget)
        if self.budget is not None and not of_suite:
            chosen = suites.with_budget(chosen, self.budget)
        if self.resume is None:
            return chosen, sessions.device_for(chosen.where, chosen.impls, self.device), shard
        return chosen, choose_device(self.device), shard

    def _stored_budget(self) -> str | None:
        """The budget that the run to continue was begun with, where that is not its suite's: it needs none again."""
        if self.resume is None or self.suite is None:
            return None
        stored = sessions.stored_budget(self.resume)
        return stored if stored != sessions.budget_in(self.suite.text, self.suite.where) else None

    def _without_added_rounds(self, suite: Suite) -> bool:
        """Whether rounds would be added where crossovers are not precise, which no shard of the suite can know."""
        adds = suite.measure.crossover_precision is not None and suite.measure.max_rounds > suite.measure.rounds
        return adds and self.rounds is None

    def _shard(self) -> Shard | StoredShard | None:
        """The part of the suite that is measured; of a run to continue the one that it is. Raises BadInput."""
        wanted = None if self.shard is None else read_shard(self.shard)
        if self.resume is None:
            return wanted
        stored = sessions.stored_shard(self.resume)
        if wanted is not None and (stored is None or (stored.numbers, stored.of) != ((wanted.number,), wanted.of)):
            what = "it is the whole suite" if stored is None else f"it is shard {stored}"
            raise BadInput(
                f"{option('shard')} {wanted} {option('resume')} {self.resume}: {what}, and a run stays what it is. "
                f"Leave out {option('shard')}, or start a new run with {option('out')}."
            )
        return stored

    def open(self, warn: Callable[[str], None]) -> Session:
        """A plan and an open run folder. warn: takes what would disturb the numbers, in a sentence each.

        Raises: BadInput.
        """
        chosen, device, shard = self.choose()
        users = sessions.other_users(device)
        if self.strict and users:
            raise BadInput(f"{option('strict')}: {users[0]}. See to that, or run without {option('strict')}.")
        fixed = self.suite is not None and shard is not None and self._without_added_rounds(self.suite)
        rounds = (
            f"a shard makes the suite's {count(chosen.measure.rounds, 'round')}, and adds none for crossover_precision"
        )
        shards = [f"{rounds}: that takes all shards. For more give each of them {option('rounds')}"] if fixed else []
        for text in [*users, *sessions.disturbances(), *shards]:
            warn(text)
        if self.resume is None:
            part = shard if isinstance(shard, Shard) else None
            of_suite = chosen if part is None or self.suite is None else self.suite
            rated = self.with_rates and time_budget.rates_fit(of_suite.limits.budget_s)
            session = sessions.begin(chosen, device, self.out, part, with_rates=rated)
        else:
            session = sessions.resume(chosen, self.device, self.resume)
        if self.with_rates and not session.environment.get("rates"):
            warn("this machine's rates are not measured: the budget is too short, or it failed")
        return session


def measure(
    session: Session, progress: Progress, begun: float | None = None, lasting: Workers | None = None
) -> str | None:
    """Measures what is missing of a session's run, and closes its folder.

    Args:
        session: an open one.
        progress: what the run reports to.
        begun: when its budget's time began, on the monotonic clock; None: now.
        lasting: whose workers forecast and check in place of own ones, and stay.

    Returns: why it ended before its plan did; None where it did not.
    """
    try:
        since, rates = time.monotonic() if begun is None else begun, session.environment.get("rates")
        Runner(session.plan, session.journal, progress, begun=since, rates=rates, lasting=lasting).run()
    except Stopped as stopped:
        return str(stopped)
    finally:
        session.journal.close()
    return None
