"""Temporary folders of a command, with the git worktrees in them. The next command removes those of a killed one."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from attnbench.errors import BadInput

PREFIX = "attnbench-"
LOCK = ".owner"
"""A file with the name of the repository, locked (flock) by the command that a folder belongs to while it runs."""


@contextlib.contextmanager
def scratch_folder(kind: str, repository: Path | None = None) -> Iterator[Path]:
    """A new folder `attnbench-<kind>-…`, removed at the end with the worktrees in it.

    Args:
        kind: of the command, for the name.
        repository: whose worktrees are in the folder; None: there are none.

    Raises: BadInput where no folder can be made.
    """
    import fcntl

    _remove_stale()
    with contextlib.ExitStack() as opened:
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}-")).resolve()
            opened.callback(_remove, folder, repository)
            unnamed = folder / f"{LOCK}.new"
            lock = opened.enter_context(unnamed.open("w", encoding="utf-8", errors="surrogateescape"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write(str(repository or ""))
            lock.flush()
            unnamed.rename(folder / LOCK)  # locked before another command can see it
        except OSError as error:
            raise BadInput(f"no temporary folder: {error.strerror or error}. Make room, or set TMPDIR.") from None
        yield folder


def _remove_stale() -> None:
    """Removes the folders of killed commands: those of this user whose lock is free."""
    import fcntl

    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(OSError):
            if path.parent.lstat().st_uid != os.getuid() or path.parent.is_symlink():
                continue
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            with open(descriptor, encoding="utf-8", errors="surrogateescape") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                repository = lock.read()
                _remove(path.parent.resolve(), Path(repository) if repository else None)


def _remove(folder: Path, repository: Path | None) -> None:
    """The lock is the last to go: an interrupted removal is completed by the next command."""
    for worktree in _worktrees(repository) if repository else ():
        if worktree.is_relative_to(folder):
            shutil.rmtree(worktree, ignore_errors=True)
            _git(repository, "worktree", "remove", "--force", "--force", str(worktree))  # twice: it may be half made
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name != LOCK:
            shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def _worktrees(repository: Path) -> list[Path]:
    listed = _git(repository, "worktree", "list", "--porcelain").splitlines()
    return [Path(line.removeprefix("worktree ")) for line in listed if line.startswith("worktree ")]


def _git(repository: Path | None, *words: str) -> str:
    """What git prints; empty where it fails. In a session of its own, so that Ctrl-C does not end it."""
    with contextlib.suppress(OSError):
        return subprocess.run(
            ["git", "-C", str(repository), *words],
            capture_output=True, text=True, check=False, encoding="utf-8", errors="surrogateescape",
            stdin=subprocess.DEVNULL, start_new_session=True,
        ).stdout  # fmt: skip
    return ""
