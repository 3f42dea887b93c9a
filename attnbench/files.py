"""Files in folders that others may write to: only regular files are opened, and no link is written through."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from attnbench.errors import BadInput
from attnbench.naming import option

_CLOSE_ON_EXEC = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NON_BLOCKING = getattr(os, "O_NONBLOCK", 0)


def read(path: Path, most: int = -1) -> bytes:
    """The first `most` bytes of a regular file; -1: all. Raises OSError, also for a pipe or a device."""
    with FileIO(os.open(path, os.O_RDONLY | _NON_BLOCKING | _CLOSE_ON_EXEC), "r") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(0, "not a regular file")
        return file.readall() if most < 0 else _first(file, most)


def _first(file: FileIO, most: int) -> bytes:
    data = b""
    while len(data) < most and (part := file.read(most - len(data))):
        data += part
    return data


def replace(path: Path, content: str | bytes) -> None:
    """Replaces a file's content atomically; a link of that name is replaced by the file. Raises OSError."""
    data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
    beside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.new")
    with FileIO(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | _CLOSE_ON_EXEC, 0o666), "w") as file:
        try:
            write(file, data)
            os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise


def check_place(path: Path, option: str) -> None:
    """Checks before a long command that its output file can be written; creates its folder.

    Args:
        path: the file; if it does not exist, it still does not afterwards.
        option: the command-line option that names it, for the message.
    Raises: BadInput.
    """
    with storing(path, f"Name another file: {option}."):
        path.parent.mkdir(parents=True, exist_ok=True)
        exists = os.path.lexists(path)
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NON_BLOCKING | _CLOSE_ON_EXEC, 0o666))
        if not exists:
            os.unlink(path)


def new_folder(path: Path, or_else: str = "") -> None:
    """Makes the folder that --out names. Raises OSError, and BadInput as `check_new_folder`, which has `or_else`."""
    check_new_folder(path, or_else)
    path.mkdir(parents=True, exist_ok=True)


def check_new_folder(path: Path, or_else: str = "") -> None:
    """Checks that the folder which --out names is not there yet, or is empty.

    Args:
        path: it.
        or_else: what can be done besides naming another, as the end of a sentence.
    Raises: BadInput.
    """
    with storing(path, f"Choose a writable place: {option('out')}."):
        if os.path.islink(path):
            raise BadInput(f"{option('out')} {path}: a link. Name a new folder, or the one that it leads to.")
        if os.path.exists(path) and (not os.path.isdir(path) or os.listdir(path)):
            raise BadInput(f"{option('out')} {path}: is not empty. Name a new folder{or_else}.")


def write(file: FileIO, data: bytes) -> None:
    """Writes all of the data. Raises OSError."""
    while data:
        data = data[file.write(data) :]


def to_be_continued(path: Path) -> FileIO:
    """A file of a run folder, open for reading and writing from its start.

    Raises: OSError, and BadInput for what could lead out of the folder: a link, a hard link, a pipe or a device.
    """
    before = os.lstat(path)
    kinds = {
        "a link": stat.S_ISLNK(before.st_mode),
        "not a regular file": not stat.S_ISREG(before.st_mode),
        "a file with a second name (a hard link)": before.st_nlink > 1,
    }
    for kind in (kind for kind, applies in kinds.items() if applies):
        raise BadInput(f"{path}: {kind}: writing to it would change a file elsewhere. Put a copy in its place.")
    file = FileIO(os.open(path, os.O_RDWR | _NO_LINK | _NON_BLOCKING | _CLOSE_ON_EXEC), "r+")
    if not os.path.samestat(before, os.fstat(file.fileno())):
        file.close()
        raise BadInput(f"{path}: it was replaced while it was being opened. Try again.")
    return file


_MENDED = {
    errno.ENOSPC: "Free some space there",
    errno.EDQUOT: "Free some space there",
    errno.EACCES: "Make it writable",
    errno.EPERM: "Make it writable",
    errno.EROFS: "Make it writable",
    errno.ENOENT: "It was moved or removed, or its disk is gone: put it back as it was",
    errno.ENOTDIR: "It was moved or removed, or its disk is gone: put it back as it was",
    errno.ESTALE: "It was moved or removed, or its disk is gone: put it back as it was",
}
"""What makes a place writable again, by why it cannot be written."""


@contextlib.contextmanager
def storing(place: Path | str, todo: str) -> Iterator[None]:
    """Turns an OSError while writing (a full, read-only or lost disk) into BadInput.

    Args:
        place: what is written to, for the message; with the option that names it.
        todo: what the user can do.
    """
    try:
        yield
    except OSError as error:
        raise BadInput(f"{place}: cannot be written: {error.strerror or error}. {todo}") from None


@contextlib.contextmanager
def going_on(place: Path, todo: str = "") -> Iterator[None]:
    """`storing`, of what was begun before: the message also says how the place is mended.

    Args:
        place: as of `storing`.
        todo: what the user can do then; default: how to continue the run of this folder.
    """
    try:
        yield
    except OSError as error:
        mended = _MENDED.get(error.errno or 0, "See to its disk")
        todo = todo or f"What it holds is kept: continue with {option('resume')} {place}."
        with storing(place, f"{mended}. {todo}"):
            raise error


def check_same(path: Path, file: FileIO) -> None:
    """Raises OSError where a path no longer leads to the file that was opened there."""
    if not os.path.samestat(os.stat(path), os.fstat(file.fileno())):
        raise OSError(errno.ESTALE, "another file is there now")


def is_file(path: Path) -> bool:
    """Whether a regular file, or a link to one, is there. Raises BadInput where nobody can say."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Whether a folder, or a link to one, is there. Raises BadInput where nobody can say."""
    return stat.S_ISDIR(_mode(path))


def _mode(path: Path) -> int:
    """What is at a path, as `os.stat` has it; 0: nothing. Raises BadInput."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError | ValueError) -> BadInput:
    """Why something cannot be read, for the user."""
    reason = getattr(error, "strerror", None) or error
    return BadInput(f"{path}: cannot be read: {reason}. Check that the file exists and is yours.")


def write_named(path: Path, text: str, *, append: bool = False) -> None:
    """Writes a file that the user has named: a link, a pipe or a device is written to. Raises BadInput."""
    mode = "a" if append else "w"
    with going_on(path, "Or name another file."), path.open(mode, encoding="utf-8") as file:
        file.write(text)
