"""Writing a run folder: nothing finished is lost, whatever ends the run.

A visit's samples are on disk before its line is, and its line ends it; so a torn tail is always an unfinished visit.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from attnbench.errors import BadInput
from attnbench.record import ENVIRONMENT, SAMPLE_COLUMNS, SAMPLES, SUITE, VISITS, Sample, Visit, read_visits
from attnbench.strict import parse_object, read_text

HEADER = ",".join(SAMPLE_COLUMNS) + "\n"


class Journal:
    """An open run folder. `visits`: everything finished, in the order stored."""

    def __init__(self, folder: Path, visits: list[Visit], lines: FileIO, rows: FileIO) -> None:
        self.folder = folder
        self.visits = visits
        self._lines = lines
        self._rows = rows

    def add(self, visit: Visit, samples: Sequence[Sample]) -> None:
        """Stores a visit with its samples. Raises BadInput where the disk does not take it; what was there stays."""
        with storing(self.folder):
            _append(self._rows, "".join(sample.line() for sample in samples))
            _append(self._lines, visit.line())
        self.visits.append(visit)

    def close(self) -> None:
        """Gives the folder free for another process."""
        self._lines.close()
        self._rows.close()


def create(folder: Path, suite_text: str, environment: dict[str, Any]) -> Journal:
    """A new run folder. Raises BadInput where it exists with something in it, or cannot be written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"--out {folder}: there is something already. Name a new folder, or use --resume {folder}.")
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        replace(folder / SUITE, suite_text)
        replace(folder / ENVIRONMENT, json.dumps(environment, indent=2, ensure_ascii=False) + "\n")
        replace(folder / SAMPLES, HEADER)
        (folder / VISITS).touch()
    return _open(folder)


def resume(folder: Path) -> Journal:
    """An existing run folder, repaired: torn tails cut, samples without their visit discarded.

    Raises BadInput where it is none, cannot be trusted, or another process is writing it.
    """
    for name in (VISITS, SAMPLES, ENVIRONMENT, SUITE):
        if not (folder / name).is_file():
            raise BadInput(f"--resume {folder}: not a run folder, it has no {name}. Start anew with --out.")
    return _open(folder)


def stored_environment(folder: Path) -> dict[str, Any]:
    """environment.json of a folder. Raises BadInput."""
    return parse_object(read_text(folder / ENVIRONMENT), str(folder / ENVIRONMENT))


def _open(folder: Path) -> Journal:
    with storing(folder):
        lines = (folder / VISITS).open("r+b", buffering=0)
        try:
            fcntl.flock(lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lines.close()
            raise BadInput(f"{folder}: another attnbench is writing this run. Wait for it, or stop it.") from None
        _cut_torn_tail(lines)
        visits = read_visits(folder)
        _discard_orphans(folder / SAMPLES, visits)
        rows = (folder / SAMPLES).open("r+b", buffering=0)
        rows.seek(0, os.SEEK_END)
    return Journal(folder, visits, lines, rows)


def _cut_torn_tail(file: FileIO) -> None:
    """Leaves the file open at its end, after its last whole line."""
    whole = file.read().rfind(b"\n") + 1
    file.truncate(whole)
    file.seek(whole)


def _discard_orphans(path: Path, visits: Sequence[Visit]) -> None:
    """Rewrites samples.csv where it holds rows of unfinished visits; a visit's rows are told by key, round, process."""
    finished = {(v.key, str(v.round), str(v.process)) for v in visits}
    text = read_text(path)
    rows = text[: text.rfind("\n") + 1].splitlines(keepends=True)[1:]
    kept = [row for row in rows if tuple(row.split(",", 3)[:3]) in finished]
    whole = HEADER + "".join(kept)
    if whole != text:
        replace(path, whole)


def replace(path: Path, text: str) -> None:
    """Gives a file this text, all of it or none. Raises OSError."""
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _append(file: FileIO, text: str) -> None:
    """Appends and flushes to disk; a part that did not fit is taken back. Raises OSError."""
    if not text:
        return
    begun, left = file.tell(), text.encode()
    try:
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(begun)
            file.seek(begun)
        raise


@contextlib.contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Around writing into a folder: a full or read-only disk becomes one clear error."""
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"{folder}: cannot be written: {error.strerror or error}. What was measured so far is kept. "
            f"Make room or choose a writable place, then go on with --resume {folder}."
        ) from None
