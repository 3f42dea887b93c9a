"""The visits of many run folders in one table, which DuckDB reads where they lie.

A folder may be anybody's, so DuckDB has the limits of the validating reader (`store.reading`):
- Statements are constant: paths, columns and values are parameters; nothing that a folder holds becomes SQL.
- It reads regular files below one folder alone: no network, no extension, no other file, and it writes none.
- Every value that is used is held to the same rules. The visits of a file that is not as usual (a torn last line, a
  wrong type, a path with a wildcard) are taken from the validating reader, which says what is wrong or takes it.
environment.json and suite.yaml, which are small and nested, are the validating reader's alone.
"""

from __future__ import annotations

import importlib.util
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from attnbench.contract import is_newer
from attnbench.errors import BadInput
from attnbench.files import is_file, is_folder
from attnbench.problem import CELL_COLUMNS, Cell, cell_of
from attnbench.store.columns import dtype_of
from attnbench.store.privacy import without_private
from attnbench.store.reading import is_metric, is_valid, read_visits
from attnbench.store.records import VISITS, Cause, Status
from attnbench.store.trusted_json import parse_object
from attnbench.terminal import escaped

if TYPE_CHECKING:
    import duckdb

DEEPEST = 4
"""Folders below the one that is named, in which run folders are looked for."""

MOST_FOLDERS = 100_000
"""So many folders are looked at."""

AT_ONCE = 64
"""Files that one statement reads."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class StoredCell:
    """A cell as visits have it. device: the kind that it was measured on."""

    cell: Cell
    device: str


@dataclass(frozen=True)
class RunVisits:
    """The visits of one run, in the order stored; arrays are [visits].

    Args:
        cells: positions in `ManyVisits.cells`.
        devices: the anonymous id of each visit's device; empty: not stored.
        ok: whether their status is.
        figures: by column of a metric; nan, or of counts −1: missing.
        failures: (status, reason, cause) of those that are not ok, by their position.
        contract: under which they were measured.
    """

    cells: Array
    rounds: Array
    processes: Array
    parts: Array
    devices: Array
    ok: Array
    figures: Mapping[str, Array]
    failures: Mapping[int, tuple[Status, str, Cause]]
    contract: str


@dataclass(frozen=True)
class ManyVisits:
    """The visits of many runs.

    Args:
        cells: every cell of any of them.
        runs: by folder.
        unread: by folder, why its visits cannot be read.
    """

    cells: Sequence[StoredCell]
    runs: Mapping[Path, RunVisits]
    unread: Mapping[Path, str]


def check_installed() -> None:
    """Raises BadInput where the extra is missing."""
    if importlib.util.find_spec("duckdb") is None:
        raise BadInput("history: DuckDB is not installed. Install the extra: pip install 'attnbench[history]'.")


def run_folders(root: Path) -> tuple[list[Path], dict[Path, str]]:
    """The run folders below a folder, by path, and what was not looked into, with the reason.

    Raises: BadInput where it is no folder, or is a run folder itself.
    """
    if not is_folder(root):
        raise BadInput(f"{root}: no such folder. Give a folder that holds run folders.")
    if is_file(root / VISITS):
        raise BadInput(
            f"{root}: a run folder itself. Give the folder that holds it and other runs: {root.resolve().parent}."
        )
    folders: list[Path] = []
    left_out: dict[Path, str] = {}

    def not_read(error: OSError) -> None:
        left_out[Path(error.filename)] = f"cannot be read: {error.strerror}."

    for number, (place, names, files) in enumerate(os.walk(root, onerror=not_read)):
        here = Path(place)
        names[:] = sorted(name for name in names if not name.startswith("."))
        links = [here / name for name in names if (here / name).is_symlink() and os.path.exists(here / name / VISITS)]
        left_out |= dict.fromkeys(links, "a link, which is not followed.")
        if VISITS in files:
            folders.append(here)
        if VISITS in files or len(here.relative_to(root).parts) >= DEEPEST or number >= MOST_FOLDERS:
            names.clear()
    return sorted(folders), left_out


def read_many(root: Path, folders: Sequence[Path], columns: Sequence[str]) -> ManyVisits:
    """The visits of run folders.

    Args:
        root: the folder that they are below.
        columns: of metrics; those that a visit lacks are missing.
    """
    check_installed()
    with _connection(root.resolve()) as connection:
        kinds = ["VARCHAR" if _is_count(name) else "DOUBLE" for name in columns]
        connection.execute(_table(kinds))
        places = [root.resolve() / folder.relative_to(root) / VISITS for folder in folders]
        unusual = set()
        for first in range(0, len(places), AT_ONCE):
            unusual |= _insert(connection, first, places[first : first + AT_ONCE], columns, kinds)
        cells = _Cells()
        unusual |= _not_valid(connection, columns) | cells.read(connection)
        unread: dict[Path, str] = {}
        for i in sorted(unusual):
            connection.execute("DELETE FROM visits WHERE run = $run", {"run": i})
            try:
                _insert_read(connection, i, folders[i], columns)
            except BadInput as error:
                unread[folders[i]] = str(error)
        cells.read(connection)
        cells.store(connection)
        runs = {folders[i]: visits for i, visits in _fetched(connection, columns)}
    return ManyVisits(cells.known, runs, unread)


_SETTINGS = (
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET memory_limit = '4GB'",
    "SET temp_directory = ''",
    "SET preserve_insertion_order = true",
)
_CLOSED = ("SET enable_external_access = false", "SET lock_configuration = true")


@contextmanager
def _connection(root: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory that can read files below a folder, and nothing else."""
    import duckdb

    with duckdb.connect(":memory:") as connection:
        for setting in _SETTINGS:
            connection.execute(setting)
        connection.execute("SET allowed_directories = $places", {"places": [f"{root}{os.sep}"]})
        for setting in _CLOSED:
            connection.execute(setting)
        yield connection


_WHOLE = ("round", "process", "order", "part")
_TEXT = ("key", "cell", "device", "status", "reason", "cause", "contract", "device_id")
_WORDS = ("device", "status", "cause", "device_id")
"""Texts of which each that occurs is held to its rule."""

_ABSENT = {"reason": "''", "cause": "''", "contract": "''", "part": "0", "device_id": "''"}
"""What a visit of an older run may lack, and what stands for it."""

_READ = f"""
INSERT INTO visits SELECT $first + list_position($paths, filename) - 1, {
    ", ".join(f'coalesce("{name}", {_ABSENT[name]})' if name in _ABSENT else f'"{name}"' for name in (*_TEXT, *_WHOLE))
}, unnest(metrics)
FROM read_json($paths, filename = true, format = 'newline_delimited', columns = $columns, compression = 'uncompressed',
               hive_partitioning = false)
"""

_NAN = "'nan'::DOUBLE"

_WILD = frozenset("*?[]{}")
"""What in a path stands for others."""


def _table(kinds: Sequence[str]) -> str:
    """Makes the table: the run's position, a visit's fields, and the columns m0, m1 … of metrics. kinds: theirs."""
    fields = [f'"{name}" VARCHAR' for name in _TEXT] + [f'"{name}" BIGINT' for name in _WHOLE]
    return (
        f"CREATE TABLE visits (run INTEGER, {', '.join([*fields, *(f'm{i} {kind}' for i, kind in enumerate(kinds))])})"
    )


def _insert(
    connection: duckdb.DuckDBPyConnection,
    first: int,
    paths: Sequence[Path],
    columns: Sequence[str],
    kinds: Sequence[str],
) -> set[int]:
    """Adds the visits of some files; the positions of those that are not as usual. first: the position of the first."""
    import duckdb

    fields = ", ".join(f'"{name}" {kind}' for name, kind in zip(columns, kinds, strict=True))
    types = {**dict.fromkeys(_TEXT, "VARCHAR"), "cell": "JSON", **dict.fromkeys(_WHOLE, "BIGINT")}
    parameters = {"first": first, "columns": {**types, "metrics": f"STRUCT({fields})"}}
    if all(map(_is_plain, paths)):
        try:
            connection.execute(_READ, {**parameters, "paths": list(map(str, paths))})
            return set()
        except duckdb.Error:
            pass
    if len(paths) == 1:
        return {first}
    return set().union(*(_insert(connection, first + i, [path], columns, kinds) for i, path in enumerate(paths)))


def _is_plain(path: Path) -> bool:
    """Whether it stands for itself, and is a regular file."""
    try:
        return not _WILD & set(str(path)) and stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def _not_valid(connection: duckdb.DuckDBPyConnection, columns: Sequence[str]) -> set[int]:
    """The runs of which a value is missing or is not what it may be, or a visit is there twice."""
    numbers = [f'"{name}"' for name in _WHOLE] + [_figure(i, name) for i, name in enumerate(columns)]
    ends = ", ".join(f"min({n}), max({n}), min({n}) FILTER ({n} > 0)" for n in numbers)
    there = " AND ".join(
        [
            *(f'count("{name}") = count(*)' for name in (*_TEXT, *_WHOLE)),
            *(
                f"bool_and(m{i} IS NULL OR regexp_full_match(m{i}, '[0-9]{{1,18}}'))"
                for i, n in enumerate(columns)
                if _is_count(n)
            ),
        ]
    )
    rows = connection.execute(
        f"SELECT run, {there} AND count(DISTINCT contract) = 1, {ends} FROM visits GROUP BY run"
    ).fetchall()
    damaged = set()
    for run, complete, *values in rows:
        whole, figures = values[: 3 * len(_WHOLE)], values[3 * len(_WHOLE) :]
        valid = complete and all(
            is_valid(name, value) for name, value in zip(_each(_WHOLE), whole, strict=True) if value
        )
        valid = valid and min(v for v in whole if v is not None) >= 0
        if not valid or not all(is_metric(n, v) for n, v in zip(_each(columns), figures, strict=True) if v is not None):
            damaged.add(run)
    words = connection.execute(f"SELECT DISTINCT run, {', '.join(_WORDS)} FROM visits").fetchall()
    damaged |= {
        run
        for run, *values in words
        if not all(is_valid(name, value) for name, value in zip(_WORDS, values, strict=True))
    }
    contracts = connection.execute("SELECT DISTINCT run, contract FROM visits WHERE contract IS NOT NULL").fetchall()
    damaged |= {run for run, contract in contracts if is_newer(contract)}
    twice = "SELECT DISTINCT run FROM visits GROUP BY run, key, round, part HAVING count(*) > 1"
    return damaged | {run for (run,) in connection.execute(twice).fetchall()}


def _each(names: Sequence[str]) -> list[str]:
    """Every name three times: of the least, the largest, and the least above 0."""
    return [name for name in names for _ in range(3)]


def _is_count(column: str) -> bool:
    """Whether a metric's column holds whole numbers: text in the table, as DuckDB would round others."""
    return bool(dtype_of(column) == "Int64")


def _figure(number: int, column: str) -> str:
    """The column of a metric in the table, as a number."""
    return f"try_cast(m{number} AS BIGINT)" if _is_count(column) else f"m{number}"


class _Cells:
    """The cells of visits, each validated once."""

    def __init__(self) -> None:
        self.known: list[StoredCell] = []
        self._positions: dict[tuple[str, str, str], int | None] = {}

    def read(self, connection: duckdb.DuckDBPyConnection) -> set[int]:
        """Takes note of all cells; the runs that have one which is not valid, or is another's than its key's."""
        damaged = set()
        pairs = "SELECT run, key, cell, device FROM visits WHERE key IS NOT NULL AND cell IS NOT NULL GROUP BY ALL"
        for run, *names in connection.execute(f"{pairs} ORDER BY run, min(rowid)").fetchall():
            place = (names[0], names[1], names[2])
            if place not in self._positions:
                self._positions[place] = self._added(*place)
            if self._positions[place] is None:
                damaged.add(run)
        return damaged

    def _added(self, key: str, text: str, device: str) -> int | None:
        try:
            stored = parse_object(text, key)
            cell = cell_of({name: stored.get(name) for name in CELL_COLUMNS}) if is_valid("cell", stored) else None
        except (BadInput, ValueError, TypeError, ArithmeticError, RecursionError):
            return None
        if cell is None or cell.key != key:
            return None
        self.known.append(StoredCell(cell, device))
        return len(self.known) - 1

    def store(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Makes a table of them, by which visits find theirs."""
        rows = [[*place, position] for place, position in self._positions.items() if position is not None]
        connection.execute("CREATE TABLE cells (key VARCHAR, cell VARCHAR, device VARCHAR, position INTEGER)")
        if rows:
            columns = dict(zip("abcd", zip(*rows, strict=True), strict=True))
            connection.execute(
                "INSERT INTO cells SELECT unnest($a), unnest($b), unnest($c), unnest($d)",
                {name: list(values) for name, values in columns.items()},
            )


def _insert_read(connection: duckdb.DuckDBPyConnection, run: int, folder: Path, columns: Sequence[str]) -> None:
    """Adds the visits of a folder that the validating reader has read. Raises BadInput."""
    import json

    rows = []
    for visit in read_visits(folder):
        texts = [
            visit.key,
            json.dumps(visit.cell),
            visit.device,
            visit.status,
            visit.reason,
            visit.cause,
            visit.contract,
            visit.device_id,
        ]
        whole = [visit.round, visit.process, visit.order, visit.part]
        rows.append([run, *texts, *whole, *(visit.metrics.get(name) for name in columns)])
    if len({row[7] for row in rows}) > 1:
        raise BadInput(
            f"{folder / VISITS}: visits of different contracts in one run; their numbers do not mean the same."
        )
    if rows:
        names = [f"c{i}" for i in range(len(rows[0]))]
        values = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        places = ", ".join(f"unnest(${name})" for name in names)
        connection.execute(f"INSERT INTO visits SELECT {places}", values)


def _fetched(connection: duckdb.DuckDBPyConnection, columns: Sequence[str]) -> Iterator[tuple[int, RunVisits]]:
    """The visits of each run, by its position."""
    figures = ", ".join(
        f"coalesce({_figure(i, name)}, {-1 if _is_count(name) else _NAN}) AS m{i}" for i, name in enumerate(columns)
    )
    whole = connection.execute(
        f"SELECT run, position, round, process, part, device_id, status = 'ok' AS ok{', ' if figures else ''}{figures} "
        "FROM visits JOIN cells USING (key, cell, device) ORDER BY run, visits.rowid"
    ).fetchnumpy()
    order = "row_number() OVER (PARTITION BY run ORDER BY rowid) - 1"
    failures: dict[int, dict[int, tuple[Status, str, Cause]]] = {}
    for run, at, status, reason, cause in connection.execute(
        f"SELECT run, place, status, reason, cause FROM (SELECT *, {order} AS place FROM visits) WHERE status != 'ok'"
    ).fetchall():
        failures.setdefault(run, {})[at] = (status, without_private(escaped(reason)), cause)
    contracts = dict(connection.execute("SELECT run, min(contract) FROM visits GROUP BY run").fetchall())
    runs, begins = np.unique(whole["run"], return_index=True)
    for run, begin, end in zip(runs.tolist(), begins, [*begins[1:], len(whole["run"])], strict=True):
        part: dict[str, Array] = {name: np.asarray(values)[begin:end] for name, values in whole.items()}
        yield run, RunVisits(
            part["position"], part["round"], part["process"], part["part"], part["device_id"], part["ok"],
            {name: part[f"m{i}"] for i, name in enumerate(columns)},
            failures.get(run, {}),
            escaped(contracts[run]),
        )  # fmt: skip
