"""Many run folders in one table: what DuckDB reads is what the validating reader reads, and nothing else is read."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

duckdb = pytest.importorskip("duckdb", reason="the extra 'history' is not installed")

from attnbench.contract import CONTRACT  # noqa: E402
from attnbench.errors import BadInput  # noqa: E402
from attnbench.store import many_runs  # noqa: E402
from attnbench.store.many_runs import ManyVisits, read_many, run_folders  # noqa: E402
from attnbench.store.reading import read_visits  # noqa: E402
from attnbench.store.records import VISITS  # noqa: E402
from tests.many_runs import nightly  # noqa: E402

COLUMNS = ["wall_time_s", "peak_memory_bytes", "flops"]


def read(root: Path) -> ManyVisits:
    return read_many(root, run_folders(root)[0], COLUMNS)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return nightly(tmp_path / "nightly", 3)


def text_of(root: Path, number: int = 1) -> tuple[Path, str]:
    path = root / f"night-{number:02}" / VISITS
    return path, path.read_text(encoding="utf-8")


def test_it_reads_what_the_validating_reader_reads(root: Path) -> None:
    many = read(root)
    assert not many.unread
    for folder, run in many.runs.items():
        visits = read_visits(folder)
        assert [many.cells[i].cell.key for i in run.cells] == [visit.key for visit in visits]
        assert run.rounds.tolist() == [visit.round for visit in visits]
        assert run.processes.tolist() == [visit.process for visit in visits]
        assert run.contract == visits[0].contract
        for name in COLUMNS:
            stored = [visit.metrics.get(name) for visit in visits]
            missing = -1 if name == "peak_memory_bytes" else None
            shown = [None if np.isnan(v) or v == missing else v for v in run.figures[name].tolist()]
            assert [None if v == -1 else v for v in shown] == stored


def test_the_validating_reader_is_not_asked_where_files_are_as_usual(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_runs, "read_visits", lambda folder: pytest.fail(f"{folder} is as usual"))
    assert len(read(root).runs) == 3


def spoilt(change: Callable[[dict[str, object]], object]) -> Callable[[str], str]:
    def spoil(text: str) -> str:
        first, *rest = text.splitlines()
        visit = json.loads(first)
        change(visit)
        return "\n".join([json.dumps(visit), *rest, ""])

    return spoil


DAMAGED: dict[str, Callable[[str], str]] = {
    "not JSON": lambda text: "{]\n" + text,
    "another line": lambda text: '{"key": 3}\n' + text,
    "negative time": lambda text: text.replace('"wall_time_s":', '"wall_time_s":-', 1),
    "a time that cannot be": lambda text: text.replace('"wall_time_s":', '"wall_time_s":1e300, "x":', 1),
    "not whole": lambda text: text.replace('"peak_memory_bytes":', '"peak_memory_bytes":0.5, "x":', 1),
    "twice": lambda text: text + text.splitlines()[0] + "\n",
    "unknown status": spoilt(lambda visit: visit.update(status="fine")),
    "unknown cause": spoilt(lambda visit: visit.update(cause="luck")),
    "a device of a path": spoilt(lambda visit: visit.update(device="../../etc")),
    "another cell's key": spoilt(lambda visit: visit.update(key=str(visit["key"]).replace("n256", "n512"))),
    "a cell that cannot be": spoilt(lambda visit: visit["cell"].update(heads=5)),  # type: ignore[attr-defined]
    "a round that cannot be": spoilt(lambda visit: visit.update(round=10**9)),
    "a negative round": spoilt(lambda visit: visit.update(round=-1)),
    "two contracts": spoilt(lambda visit: visit.update(contract="2 rounds=3")),
    "of a later contract": lambda text: text.replace(f'"contract":"{CONTRACT} ', f'"contract":"{CONTRACT + 1} '),
    "no key": spoilt(lambda visit: visit.pop("key")),
    "a control character": spoilt(lambda visit: visit["cell"].update(operator="a\x1b[31m")),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_run_is_named_and_left_out(root: Path, damage: Callable[[str], str]) -> None:
    path, text = text_of(root)
    assert damage(text) != text
    path.write_text(damage(text), encoding="utf-8")
    many = read(root)
    assert list(many.unread) == [path.parent]
    assert VISITS in many.unread[path.parent]
    assert len(many.runs) == 2


@pytest.mark.parametrize("unusual", [lambda text: text + '{"key":"torn', lambda text: text.rstrip("\n") + "\n\n{"])
def test_what_is_only_unusual_is_read_by_the_validating_reader(root: Path, unusual: Callable[[str], str]) -> None:
    path, text = text_of(root)
    path.write_text(unusual(text), encoding="utf-8")
    try:
        count = len(read_visits(path.parent))
    except BadInput:
        count = 0
    many = read(root)
    assert (path.parent in many.runs) == bool(count)
    assert not count or len(many.runs[path.parent].cells) == count


def test_a_folder_whose_name_is_a_pattern_or_SQL_is_only_a_name(root: Path) -> None:  # noqa: N802
    for name in ("*", "night-0[12]", "a'); DROP TABLE visits; --", 'a"b', "{x}", "$paths", "~", "x=1"):
        os.rename(root / "night-00", root / name)
        many = read(root)
        assert not many.unread, name
        assert len(many.runs[root / name].cells) == 40, name
        os.rename(root / name, root / "night-00")


def test_links_and_what_is_no_file_are_not_opened(root: Path, tmp_path: Path) -> None:
    elsewhere = nightly(tmp_path / "elsewhere", 1) / "night-00"
    (root / "linked").symlink_to(elsewhere)
    folders, left_out = run_folders(root)
    assert left_out == {root / "linked": "a link, which is not followed."}
    assert root / "linked" not in folders
    path, _ = text_of(root, 2)
    path.unlink()
    os.mkfifo(path)
    assert list(read(root).unread) == [path.parent], "it does not wait for a pipe"


def test_a_folder_that_cannot_be_read_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def refused(path: str) -> Any:
        if Path(path) == root / "night-01":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    folders, left_out = run_folders(root)
    assert left_out == {root / "night-01": "cannot be read: Permission denied."}
    assert root / "night-00" in folders


def test_the_database_reads_no_other_file_and_no_network(root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n", encoding="utf-8")
    inside = root / "inside.csv"
    inside.write_text("a\n1\n", encoding="utf-8")
    with many_runs._connection(root.resolve()) as connection:
        assert connection.execute("SELECT * FROM read_csv($path)", {"path": str(inside)}).fetchall() == [(1,)]
        for statement in (
            f"SELECT * FROM read_csv('{secret}')",
            f"SELECT * FROM read_csv('{root}/../secret.csv')",
            "SELECT * FROM read_csv('https://example.org/a.csv')",
            f"COPY (SELECT 1) TO '{secret}'",
            "INSTALL httpfs",
            "SET enable_external_access = true",
        ):
            with pytest.raises(duckdb.Error):
                connection.execute(statement)
    assert secret.read_text(encoding="utf-8") == "a\n1\n"


def test_a_run_folder_itself_and_no_folder_are_told(root: Path) -> None:
    with pytest.raises(BadInput, match="a run folder itself"):
        run_folders(root / "night-00")
    with pytest.raises(BadInput, match="no such folder"):
        run_folders(root / "nowhere")
