"""Writes a run folder so that no finished visit is lost, whatever ends the run.

Samples are written as they are taken. A visit's are on disk before its line, and the line completes it: samples without
one, and an incomplete tail, are of an unfinished visit.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from attnbench.errors import BadInput
from attnbench.files import check_same, going_on, is_file, new_folder, replace, storing, to_be_continued, write
from attnbench.interrupts import held
from attnbench.naming import option
from attnbench.store.reading import parse_visits
from attnbench.store.records import (
    ENVIRONMENT,
    OLDER_SAMPLE_COLUMNS,
    SAMPLE_COLUMNS,
    SAMPLES,
    SUITE,
    VISITS,
    Sample,
    Visit,
)
from attnbench.store.trusted_json import REPAIR, decoded, parse_object, read_text
from attnbench.units import quoted

HEADER, OLDER_HEADER = (",".join(columns) + "\n" for columns in (SAMPLE_COLUMNS, OLDER_SAMPLE_COLUMNS))


class Journal:
    """An open run folder.

    Attributes:
        folder: where it is.
        visits: every finished visit, in the order stored.
        todo: what the user can do where it cannot be written; empty: continue the run.
    """

    def __init__(self, folder: Path, visits: list[Visit], lines: FileIO, rows: FileIO, todo: str = "") -> None:
        self.folder = folder
        self.todo = todo
        self.visits = visits
        self._lines = lines
        self._rows = rows

    def take(self, samples: Iterable[Sample]) -> None:
        """Writes samples of visits that go on. Raises BadInput where writing fails."""
        with held(), going_on(self.folder, self.todo):
            _append(self._rows, "".join(sample.line() for sample in samples))

    def add(self, *visits: Visit) -> None:
        """Stores visits that have ended, together; their samples are on disk before. Raises BadInput where writing
        fails, or where the folder is no more at its path; earlier visits remain intact.
        """
        with held():
            with going_on(self.folder, self.todo):
                os.fsync(self._rows.fileno())
                _append(self._lines, "".join(visit.line() for visit in visits), flushed=True)
            self.visits.extend(visits)
            with going_on(self.folder, self.todo):
                self.check_place()

    def check_place(self) -> None:
        """Raises OSError where the folder's path leads elsewhere: it was moved, removed or unmounted."""
        check_same(self.folder / VISITS, self._lines)

    def close(self) -> None:
        """Closes the files and releases the lock on the folder."""
        self._lines.close()
        self._rows.close()


def create(folder: Path, suite_text: str, environment: dict[str, Any], todo: str = "") -> Journal:
    """Creates a run folder. Raises BadInput where it exists and is not empty, is a link, or cannot be written.

    todo: as `Journal` has it.
    """
    with storing(folder, f"Choose a writable place: {option('out')}."):
        new_folder(folder, "" if todo else f", or use {option('resume')} {folder}")
        facts = json.dumps(environment, indent=2, ensure_ascii=False) + "\n"
        begun = {SUITE: suite_text, ENVIRONMENT: facts, SAMPLES: HEADER, VISITS: ""}
        try:
            for name, content in begun.items():
                replace(folder / name, content)
        except OSError:
            for name in begun:  # so that the folder can be named again
                (folder / name).unlink(missing_ok=True)
            raise
    return _open(folder, todo)


def resume(folder: Path) -> Journal:
    """Opens a stored run folder and repairs it: incomplete tails are cut, samples without a visit discarded. What a
    budget did not reach is no visit any more, so that it can be made.

    Raises: BadInput where it is not a run folder, is damaged, or another process is writing it.
    """
    for name in (VISITS, SAMPLES, ENVIRONMENT, SUITE):
        if not is_file(folder / name):
            raise BadInput(
                f"{option('resume')} {folder}: not a run folder, it has no {name}. Start a new run with "
                f"{option('out')}."
            )
    return _open(folder)


def stored_environment(folder: Path) -> dict[str, Any]:
    """environment.json of a folder. Raises BadInput."""
    return parse_object(read_text(folder / ENVIRONMENT), str(folder / ENVIRONMENT))


def _open(folder: Path, todo: str = "") -> Journal:
    with contextlib.ExitStack() as opened, going_on(folder, todo):
        lines = opened.enter_context(_locked(folder))
        data = lines.readall()
        visits = parse_visits(data, folder / VISITS)
        rows = opened.enter_context(to_be_continued(folder / SAMPLES))
        repaired = _without_orphans(rows.readall(), folder / SAMPLES, visits)
        # Nothing is changed until both files have been read as a run's.
        made = [visit.cause != "budget" for visit in visits]
        if not all(made):
            data = b"".join(line + b"\n" for line, is_made in zip(data.split(b"\n"), made, strict=False) if is_made)
            visits = [visit for visit, is_made in zip(visits, made, strict=True) if is_made]
            replace(folder / VISITS, data)
            lines = opened.enter_context(_locked(folder))
        lines.truncate(data.rfind(b"\n") + 1)
        lines.seek(0, os.SEEK_END)
        if repaired is not None:
            replace(folder / SAMPLES, repaired)
            rows = opened.enter_context(to_be_continued(folder / SAMPLES))
        rows.seek(0, os.SEEK_END)
        opened.pop_all()
    return Journal(folder, visits, lines, rows, todo)


def _locked(folder: Path) -> FileIO:
    """visits.jsonl, open and locked. Raises BadInput where another process writes the run."""
    lines = to_be_continued(folder / VISITS)
    try:
        fcntl.flock(lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lines.close()
        raise BadInput(f"{folder}: another attnbench is writing this run. Wait for it, or stop it.") from None
    return lines


def _without_orphans(data: bytes, path: Path, visits: Sequence[Visit]) -> str | None:
    """samples.csv without the rows of unfinished visits, or None where there are no such rows.

    Args:
        data: content of the file.
        path: of the file, for messages.
        visits: the finished ones; their rows are identified by key, round, process and part.
    Raises: BadInput where it is not a samples.csv.
    """
    text = decoded(data, path, torn=True)
    head, *rows = text[: text.rfind("\n") + 1].splitlines(keepends=True) or [""]
    if head not in (HEADER, OLDER_HEADER):
        raise BadInput(f"{path}, line 1: {quoted(head)}; allowed: {HEADER.strip()}. {REPAIR}")
    parts = head == HEADER
    finished = {(v.key, str(v.round), str(v.process), str(v.part)) for v in visits}

    def visit_of(row: str) -> tuple[str, ...]:
        return (*row.split(",", 3)[:3], row.rstrip("\n").rpartition(",")[2] if parts else "0")

    repaired = (head if visits else HEADER) + "".join(row for row in rows if visit_of(row) in finished)
    return None if repaired.encode() == data else repaired


def _append(file: FileIO, text: str, *, flushed: bool = False) -> None:
    """Appends; a partial write is undone. flushed: whether it must be on disk afterwards. Raises OSError."""
    if not text:
        return
    begun = file.tell()
    try:
        write(file, text.encode())
        if flushed:
            os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(begun)
            file.seek(begun)
        raise
