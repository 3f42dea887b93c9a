"""The folder of a fleet: what it measures, the run folder of each shard, and their run once they are joined.

fleet.json          suite, number of shards, kind of device
inputs/             the suite, and the user's operators that it names
shards/0001/        the run folder of a shard; 0001.budget: what it may take; 0001.ended: its exit code, if it ended
logs/0001.log       what it printed
visits.jsonl, …     the joined run, so that the folder is a run folder too
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attnbench import files
from attnbench.analysis.merge.missing import lacking
from attnbench.errors import BadInput
from attnbench.measure.engines import Task
from attnbench.problem import block_of
from attnbench.store.reading import read_environment, read_visits
from attnbench.store.records import FLEET, SHARDS, VISITS
from attnbench.store.shards import StoredShard
from attnbench.store.trusted_json import parse_object, read_text
from attnbench.units import quoted

INPUTS, LOGS = "inputs", "logs"

VERSION = 1
"""Of fleet.json."""


@dataclass(frozen=True)
class Facts:
    """What a fleet measures: fleet.json.

    Args:
        name: the suite's.
        suite: the suite's file below inputs/.
        shards: into how many the suite is dealt.
        blocks: units of all shards: a block in one timed round each.
        device: the name of the kind that is measured on.
    """

    name: str
    suite: str
    shards: int
    blocks: int
    device: str


@dataclass(frozen=True)
class FleetFolder:
    """A fleet's folder."""

    path: Path

    def task(self, number: int, facts: Facts) -> Task:
        """One of its shards. facts: `facts()`."""
        name = f"{number:04d}"
        return Task(
            number=number,
            of=facts.shards,
            suite=self.path / INPUTS / facts.suite,
            device=facts.device,
            folder=self.path / SHARDS / name,
            log=self.path / LOGS / f"{name}.log",
            mark=self.path / SHARDS / f"{name}.ended",
            budget=_budget(self.path / SHARDS / f"{name}.budget"),
        )

    def limit(self, task: Task, budget_s: float) -> Task:
        """Stores what a shard may take, so that whoever starts it knows. Returns it with that."""
        budget = f"{max(budget_s, 1.0):.0f}s"
        files.replace(task.mark.with_suffix(".budget"), f"{budget}\n")
        return replace(task, budget=budget)

    def facts(self) -> Facts:
        """What it measures. Raises BadInput where it is no fleet's folder."""
        path = self.path / FLEET
        if not files.is_file(path):
            raise BadInput(
                f"--resume {self.path}: not the folder of a fleet, it has no {FLEET}. Start a new fleet with --out; a "
                "run is continued by `attnbench run --resume`."
            )
        stored = parse_object(read_text(path), str(path))
        if stored.get("version") != VERSION or not _sound(stored):
            raise BadInput(
                f"{path}: not what attnbench {VERSION} writes there: {quoted(json.dumps(stored))}. Restore it, or "
                "start a new fleet with --out."
            )
        return Facts(**{name: stored[name] for name in Facts.__dataclass_fields__})

    def ended(self, task: Task) -> int | None:
        """The exit code of a shard that has ended; None: it has not."""
        with contextlib.suppress(OSError, ValueError):
            return int(files.read(task.mark, 10))
        return None

    def measured(self) -> list[Path]:
        """The run folders of the shards that have visits, in the order of their numbers."""
        folders = (self.path / SHARDS).glob("[0-9]*[0-9]")
        return sorted(f for f in folders if f.name.isdigit() and (f / VISITS).is_file() and (f / VISITS).stat().st_size)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other fleets out. Raises BadInput where one is at work."""
        with (self.path / FLEET).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BadInput(f"{self.path}: another `attnbench fleet` is at work here. Wait, or stop it.") from None
            yield


def create(path: Path, facts: Facts, inputs: Mapping[str, bytes]) -> FleetFolder:
    """A new fleet's folder.

    Args:
        inputs: the suite and the user's operators, by their paths below inputs/.

    Raises: BadInput where it is there and not empty, or cannot be written.
    """
    with files.storing(path, "Choose a writable place: --out."):
        files.new_folder(path, f", or use --resume {path}")
        for name, content in inputs.items():
            place = path / INPUTS / name
            place.parent.mkdir(parents=True, exist_ok=True)
            files.replace(place, content)
        (path / SHARDS).mkdir()
        (path / LOGS).mkdir()
        files.replace(path / FLEET, json.dumps({"version": VERSION, **vars(facts)}, indent=2) + "\n")
    return FleetFolder(path)


def inputs_of(path: Path) -> dict[str, bytes]:
    """What a fleet was begun with: the files below inputs/ of its folder, by their paths there."""
    top = path / INPUTS
    return {each.relative_to(top).as_posix(): files.read(each) for each in sorted(top.rglob("*")) if each.is_file()}


def _sound(stored: Mapping[str, Any]) -> bool:
    texts = all(isinstance(stored.get(name), str) and stored[name] for name in ("name", "suite", "device"))
    numbers = all(type(stored.get(name)) is int and stored[name] >= 1 for name in ("shards", "blocks"))
    return texts and numbers and stored["suite"] == os.path.basename(stored["suite"])


def _budget(path: Path) -> str:
    with contextlib.suppress(OSError):
        return files.read(path, 20).decode("ascii", "replace").strip()
    return ""


def units_done(folder: Path) -> int:
    """Of a run folder that may be being written. 0 where there is none yet."""
    if not files.is_file(folder / VISITS):
        return 0
    try:
        return len({(block_of(visit.key), visit.round) for visit in read_visits(folder) if visit.round})
    except BadInput:
        return 0


def units_lacking(folder: Path) -> int:
    """Of the run folder of a shard that has ended: the units that its budget left out."""
    shard = StoredShard.of_run(read_environment(folder))
    return len(lacking(read_visits(folder), shard)) if shard else 0


def units_of(folder: Path) -> int:
    """All units that the run folder of a shard is to hold. Raises BadInput."""
    shard = StoredShard.of_run(read_environment(folder))
    return len(shard.units) if shard else 0
