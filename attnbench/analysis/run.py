"""A stored run as its analyses read it: visits as a DataFrame, results derived from them, the suite as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.analysis.swept import Swept, swept_of
from attnbench.errors import BadInput, printable
from attnbench.files import is_file, is_folder
from attnbench.problem import BASELINE, CELL_COLUMNS, Cell, cell_of
from attnbench.properties import FORMS, PROPERTIES
from attnbench.store.reading import read_environment, read_visits
from attnbench.store.records import ENVIRONMENT, SUITE, VISITS
from attnbench.store.trusted_json import REPAIR, read_text
from attnbench.terminal import escaped
from attnbench.units import nearest, quoted

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Run:
    """A stored run, checked.

    Args:
        folder: its files.
        visits: one row per visit in the order stored: key, CELL_COLUMNS, device, round, process, order, status, reason,
            kernel, samples, threads, contract, cause, warnings, operations, then every metric column (missing: NaN or
            NA).
        environment: environment.json.
        suite_text: suite.yaml as run.
        stored_keys: by key, the one in the run's files, where `compare.matching` has completed cells.
    """

    folder: Path
    visits: DataFrame
    environment: dict[str, Any]
    suite_text: str
    stored_keys: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def results(self) -> DataFrame:
        """results.csv, derived from the visits: one row per key."""
        from attnbench.analysis.results import derive

        return derive(self.visits, self.looks)

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """By key."""
        from pandas import isna

        rows = self.visits.drop_duplicates("key").set_index("key")[list(CELL_COLUMNS)].to_dict("index")
        return {
            str(key): cell_of({str(name): None if isna(value) else value for name, value in row.items()})
            for key, row in rows.items()
        }

    @cached_property
    def suite(self) -> dict[str, Any]:
        """suite.yaml as plain data; nothing that it names is imported.

        Raises: BadInput.
        """
        from attnbench.yaml_file import parse

        return parse(self.suite_text, str(self.folder / SUITE))

    @property
    def has_measured(self) -> bool:
        """Whether any cell has a figure: not one that was skipped, or failed."""
        return bool((self.visits["status"] == "ok").any())

    @property
    def looks(self) -> tuple[int, ...]:
        """The round counts at which it may stop; none: it is of a fixed length."""
        return tuple(self.environment.get("looks", ()))

    @property
    def properties(self) -> dict[str, dict[str, dict[str, bool]]]:
        """By operator with params and by form, which of today's properties it has; of runs that stored none, nothing.

        A property that the run's version did not know, and one that this version does not, is absent.
        """
        stored = self.environment.get("properties", {})
        return {
            name: {
                form: {each: has for each, has in forms[form].items() if each in PROPERTIES}
                for form in FORMS.values()
                if form in forms
            }
            for name, forms in stored.items()
        }

    @property
    def swept(self) -> list[Swept]:
        """What the entries of the suite's sweep vary; of runs that stored none, and of what is damaged, nothing."""
        return swept_of(self.environment.get("sweep"))

    @property
    def baseline(self) -> str:
        """The operator that the suite compares the others with.

        Raises: BadInput.
        """
        return name_in(self.suite, "baseline", self.folder / SUITE) or BASELINE

    @property
    def name(self) -> str:
        """The suite's name, which is that of its file where it states none; of runs that stored none, the folder's.

        Raises: BadInput.
        """
        return name_in(self.suite, "name", self.folder / SUITE) or stored_name(self.environment) or self.folder.name

    @cached_property
    def samples(self) -> DataFrame:
        """samples.csv without the samples of unfinished visits; columns SAMPLE_COLUMNS."""
        from attnbench.store.frames import read_samples

        if not self.stored_keys:
            return read_samples(self.folder, self.visits)
        today = {stored: key for key, stored in self.stored_keys.items()}
        table = read_samples(self.folder, self.visits.assign(key=self.visits["key"].map(self.stored_keys)))
        return table.assign(key=table["key"].map(today))


def name_in(suite: Mapping[str, Any], key: str, path: Path) -> str:
    """A name that a suite gives; empty where it gives none. path: its file. Raises BadInput."""
    value = suite.get(key) or ""
    if not isinstance(value, str):
        raise BadInput(f"{path}: {key} = {quoted(value)}; allowed: a name. {REPAIR}")
    return escaped(value)


def stored_name(environment: Mapping[str, Any]) -> str:
    """The name of the suite that was measured, as environment.json has it; empty where it has none."""
    name = environment.get("suite")
    return escaped(name) if isinstance(name, str) else ""


MOST_FOLDERS = 1000
"""So many are looked at for a name that is near another."""


def _near(folder: Path) -> str:
    """The run folder that was perhaps meant: beside it, in or two below results/; empty where none is near."""
    found: dict[str, Path] = {}
    with suppress(OSError):
        for place in (folder.parent, Path("results"), *sorted(Path("results").glob("*/"))):
            for each in islice(place.glob(f"*/{VISITS}"), MOST_FOLDERS):
                found.setdefault(each.parent.name, each.parent)
    near = nearest(folder.name, found)
    return f" (did you mean '{printable(str(found[near]))}'?)" if near else ""


def read_run(path: str | Path) -> Run:
    """The run stored in a folder. A torn last line is a visit that never finished, and is left out.

    Raises: BadInput where the folder is no run, or where what it holds cannot be trusted.
    """
    from attnbench.store.frames import frame

    folder = Path(path)
    if not is_folder(folder):
        raise BadInput(f"{path}: no such folder{_near(folder)}. Give a folder that `attnbench run` wrote.")
    for name in (VISITS, ENVIRONMENT, SUITE):
        if not is_file(folder / name):
            raise BadInput(f"{folder}: not a run folder, it has no {name}. Give a folder that `attnbench run` wrote.")
    visits = read_visits(folder)
    contracts = sorted({visit.contract for visit in visits})
    if len(contracts) > 1:
        raise BadInput(
            f"{folder / VISITS}: visits of different contracts ({' and '.join(contracts)}) in one run; "
            "their numbers do not mean the same. Separate them, or measure again."
        )
    run = Run(folder, frame(visits), read_environment(folder), read_text(folder / SUITE))
    _ = run.name, run.baseline  # whoever reads a run refuses what is no suite, whether it needs one or not
    return run
