"""What leases devices to a fleet: one file per engine, whose name is the engine's in `--on`.

An engine only leases a device and starts a shard on it (`measure.shard_process`); measuring is `attnbench run`'s. Its
file defines

    connect(request: Connection) -> a context manager of a Pool     raises BadInput before anything is written

Names are known without importing any engine.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from attnbench.registry import scan

CONTINUED = "What was measured is kept: continue the fleet with --resume."
"""What to do where a file of a shard cannot be written."""


@dataclass(frozen=True)
class Connection:
    """How an engine is reached.

    Args:
        address: of its cluster; None: the engine's own choice.
        options: that it passes on as they are, by name.
        devices: how many are leased at once at most; None: as many as there are.
        accelerated: whether a device other than a host's processor is asked for.
        tell: takes a sentence for the user.
    """

    address: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    devices: int | None = None
    accelerated: bool = False
    tell: Callable[[str], None] = print


@dataclass(frozen=True)
class Task:
    """A shard that is to be measured.

    Args:
        number, of: shard number/of, from 1.
        suite: its file.
        device: the name of the kind that it is measured on.
        folder: its run folder, new or to be continued.
        log: the file that takes what `attnbench run` prints.
        mark: the file that takes the exit code where the shard is measured as far as it can be.
        budget: what it may take, as `--budget` has it; empty: the suite's.
    """

    number: int
    of: int
    suite: Path
    device: str
    folder: Path
    log: Path
    mark: Path
    budget: str = ""

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


@dataclass(frozen=True)
class News:
    """What has become of a shard.

    Args:
        number: of the shard.
        state: "ended": its mark is written; "failed": it left its device without one.
        host: where it runs, by any name.
        units: blocks of its rounds that are measured so far.
        code: the exit code; None: not known.
        reason: of a failure, for people.
    """

    number: int
    state: Literal["waiting", "running", "ended", "failed"]
    host: str = ""
    units: int = 0
    code: int | None = None
    reason: str = ""


class Pool(Protocol):
    """The devices that an engine can lease."""

    @property
    def accelerated(self) -> bool:
        """Whether any of them is more than a host's processor: what "auto" measures on."""

    @property
    def at_once(self) -> int | None:
        """How many it can lease at once now; None: not known."""

    @property
    def most(self) -> int | None:
        """The highest number that a shard may have; None: any."""

    def lease(self, tasks: Sequence[Task]) -> Generator[Sequence[News], None, None]:
        """Measures the shards, and yields what has changed every second or so, until none is left.

        Closing the generator, or an interrupt, ends what runs; what was measured of it is then in its folder.
        """


def engine_names() -> list[str]:
    """The names of all engines, sorted."""
    return scan(__name__)


def connect(name: str, request: Connection) -> AbstractContextManager[Pool]:
    """The devices of the engine with a name, as long as the context lasts. Raises BadInput where it is not here."""
    function: Callable[[Connection], AbstractContextManager[Pool]]
    function = importlib.import_module(f"{__name__}.{name}").connect
    return function(request)
