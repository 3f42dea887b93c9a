"""What is joined: a run or a shard as it is stored, checked, and what of it may be passed on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.errors import BadInput
from attnbench.files import is_file
from attnbench.store.privacy import without_private
from attnbench.store.reading import read_environment, read_visits
from attnbench.store.records import ENVIRONMENT, SEARCH, SUITE, VISITS, Visit
from attnbench.store.shards import StoredShard
from attnbench.store.trusted_json import read_text
from attnbench.yaml_file import parse, written

if TYPE_CHECKING:
    from pandas import DataFrame

MACHINE = (
    *("attnbench", "commit", "python", "packages", "torch", "instruction_set", "threads", "allocator", "device"),
    *("device_id", "started", "system", "machine", "kernel_release", "cpu", "cores", "affinity", "governor", "load"),
    *("memory_bytes", "cgroup_cpus", "cgroup_memory_bytes", "gpu", "gpu_name", "cuda", "cudnn", "tf32", "nvml_missing"),
    "rates",
)
"""The facts of a machine that a joined run keeps of each part, by name: whatever else somebody's run folder holds stays
there."""

OPERATORS = ("stated", "estimates", "families", "defaults", "properties")
"""The tables of environment.json by operator."""


@dataclass(frozen=True)
class Part:
    """A run, or a shard of one.

    Attributes:
        folder: where it is; for messages alone.
        visits: in the order stored.
        environment: environment.json.
        suite_text: suite.yaml.
    """

    folder: Path
    visits: tuple[Visit, ...]
    environment: Mapping[str, Any]
    suite_text: str

    @cached_property
    def suite(self) -> dict[str, Any]:
        """suite.yaml as plain data. Raises BadInput."""
        return parse(self.suite_text, str(self.folder / SUITE))

    @property
    def shard(self) -> StoredShard | None:
        """Which part of its suite it is; None: all of it."""
        return StoredShard.of_run(self.environment)

    @property
    def dealing(self) -> tuple[int, str] | None:
        """What the shards of one dealing have in common: how many there are, and what they measure; None: it is no
        shard."""
        operators = self.suite.get("operators")
        if isinstance(operators, list):
            operators = {str(name): {} for name in operators}
        measured = {"operators": operators, **{name: self.suite.get(name) for name in ("impls", "sweep")}}
        return None if self.shard is None else (self.shard.of, written(measured))

    @property
    def started(self) -> str:
        """When, as text that sorts by time."""
        return str(self.environment.get("started") or "")

    @property
    def processes(self) -> int:
        """How many numbers its processes take."""
        return 1 + max((visit.process for visit in self.visits), default=0)

    @property
    def rounds(self) -> int:
        """The number of its last round."""
        return max((visit.round for visit in self.visits), default=0)

    def samples(self) -> DataFrame:
        """samples.csv of its finished visits. Raises BadInput."""
        import pandas as pd

        from attnbench.store.frames import read_samples

        finished = [(visit.key, visit.round, visit.process, visit.part) for visit in self.visits]
        return read_samples(self.folder, pd.DataFrame(finished, columns=["key", "round", "process", "part"]))


def read_part(folder: Path) -> Part:
    """A stored run. Raises BadInput where it is none, or cannot be trusted."""
    for name in (VISITS, ENVIRONMENT, SUITE):
        if not is_file(folder / name):
            raise BadInput(f"{folder}: not a run folder, it has no {name}. Give folders that `attnbench run` wrote.")
    if is_file(folder / SEARCH):
        raise BadInput(
            f"{folder}: a search of `attnbench crossover`, whose sizes follow from its own times. Give folders that "
            "`attnbench run` wrote."
        )
    return Part(folder, tuple(read_visits(folder)), read_environment(folder), read_text(folder / SUITE))


def plain(value: Any) -> Any:
    """What may be anybody's, without paths, host names and user names in its texts."""
    if isinstance(value, str):
        return without_private(value)
    if isinstance(value, Mapping):
        return {plain(name): plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value


def named(environment: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those of its members that have these names, plain."""
    return {name: plain(environment[name]) for name in names if name in environment}
