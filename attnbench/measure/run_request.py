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
from attnbench.plan import suite as suites

if TYPE_CHECKING:
    from attnbench.measure.open_run import Session
    from attnbench.plan.suite import Suite


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

    def choose(self) -> tuple[Suite, str]:
        """The suite with the options, and the device to measure on. Raises BadInput."""
        if self.resume is not None and self.out is not None:
            raise BadInput("--resume and --out: a run continues in its own folder. Give one of the two.")
        if self.suite is None and self.resume is None:
            raise BadInput("no SUITE was given. `attnbench list suites` shows those that come with attnbench.")
        chosen = self.suite if self.suite is not None else sessions.stored_suite(self.resume or Path())
        own_budget = self.budget if self.resume is None else None
        chosen = suites.override(
            chosen, operators=self.operators, impls=self.impls, rounds=self.rounds, budget=own_budget
        )
        if self.resume is None:
            return chosen, sessions.device_for(chosen.where, chosen.impls, self.device)
        if self.budget is not None:
            chosen = suites.with_budget(chosen, self.budget)
        return chosen, choose_device(self.device)

    def open(self, warn: Callable[[str], None]) -> Session:
        """A plan and an open run folder. warn: takes what would disturb the numbers, in a sentence each.

        Raises: BadInput.
        """
        chosen, device = self.choose()
        users = sessions.other_users(device)
        if self.strict and users:
            raise BadInput(f"--strict: {users[0]}. See to that, or run without --strict.")
        for text in [*users, *sessions.disturbances()]:
            warn(text)
        if self.resume is None:
            session = sessions.begin(chosen, device, self.out)
        else:
            session = sessions.resume(chosen, self.device, self.resume)
        if not session.environment.get("rates"):
            warn("this machine's rates are not measured: the budget is too short, or it failed")
        return session


def measure(session: Session, progress: Progress, begun: float | None = None) -> str | None:
    """Measures what is missing of a session's run, and closes its folder.

    Args:
        session: an open one.
        progress: what the run reports to.
        begun: when its budget's time began, on the monotonic clock; None: now.

    Returns: why it ended before its plan did; None where it did not.
    """
    try:
        since, rates = time.monotonic() if begun is None else begun, session.environment.get("rates")
        Runner(session.plan, session.journal, progress, begun=since, rates=rates).run()
    except Stopped as stopped:
        return str(stopped)
    finally:
        session.journal.close()
    return None
