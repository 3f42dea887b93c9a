"""Files in folders that may be anybody's: nothing but regular files is opened, and no link is written through."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from attnbench.errors import BadInput

_CLOSED = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_AT_ONCE = getattr(os, "O_NONBLOCK", 0)


def read(path: Path, most: int = -1) -> bytes:
    """The first `most` bytes of a regular file; -1: all. Raises OSError, also for what is no file: a pipe, a device."""
    with FileIO(os.open(path, os.O_RDONLY | _AT_ONCE | _CLOSED), "r") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "not a regular file")
        return file.readall() if most < 0 else _first(file, most)


def _first(file: FileIO, most: int) -> bytes:
    found = b""
    while len(found) < most and (more := file.read(most - len(found))):
        found += more
    return found


def replace(path: Path, content: str | bytes) -> None:
    """Gives a file this content, all of it or none; a link of that name makes way for the file. Raises OSError."""
    data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
    beside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.new")
    with FileIO(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | _CLOSED, 0o666), "w") as file:
        try:
            write(file, data)
            os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise


def check_place(path: Path, option: str) -> None:
    """Makes sure, before anything takes long, that a file can be written at its end; makes its folder. option: what
    names it. Raises BadInput."""
    with storing(path, f"Name another file: {option}."):
        path.parent.mkdir(parents=True, exist_ok=True)
        there = os.path.lexists(path)
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _AT_ONCE | _CLOSED, 0o666))
        if not there:
            os.unlink(path)


def write(file: FileIO, data: bytes) -> None:
    """Writes all of the data. Raises OSError."""
    while data:
        data = data[file.write(data) :]


def to_be_continued(path: Path) -> FileIO:
    """A file of a run folder, open for reading and writing at its begin. Raises OSError, and BadInput for what could
    lead out of the folder: a link, a file with a second name, a pipe or a device."""
    before = os.lstat(path)
    kinds = {
        "a link": stat.S_ISLNK(before.st_mode),
        "no regular file": not stat.S_ISREG(before.st_mode),
        "a file that has another name, too (a hard link)": before.st_nlink > 1,
    }
    for kind in (kind for kind, so in kinds.items() if so):
        raise BadInput(f"{path}: {kind}, and what is written there would end elsewhere. Put a copy in its place.")
    file = FileIO(os.open(path, os.O_RDWR | _NO_LINK | _AT_ONCE | _CLOSED), "r+")
    if not os.path.samestat(before, os.fstat(file.fileno())):
        file.close()
        raise BadInput(f"{path}: it was exchanged while it was opened. Try again.")
    return file


@contextlib.contextmanager
def storing(place: Path, todo: str = "") -> Iterator[None]:
    """Around writing: a full or read-only disk becomes one clear error. todo: what to do, where it is no run folder."""
    try:
        yield
    except OSError as error:
        todo = todo or (
            f"What was measured so far is kept. Make room or choose a writable place, then go on with --resume {place}."
        )
        raise BadInput(f"{place}: cannot be written: {error.strerror or error}. {todo}") from None
