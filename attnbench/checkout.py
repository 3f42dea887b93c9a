"""Two revisions of the repository that a suite is in, checked out side by side as git worktrees."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import attnbench
from attnbench.errors import BadInput
from attnbench.scratch import scratch_folder


@dataclass(frozen=True)
class Checkout:
    """One side. revision: its commit. root: its worktree. operators_from: as the suite has them, but from here.

    imports: folders that its processes import from before all others.
    """

    name: str
    revision: str
    root: Path
    operators_from: tuple[str, ...]
    imports: tuple[str, ...]


@contextlib.contextmanager
def checkouts(
    place: Path, operators_from: Sequence[str], base: str, head: str | None
) -> Iterator[tuple[Checkout, Checkout]]:
    """Base and head, removed again at the end.

    place: any path in the repository. operators_from: absolute .py files and packages. base, head: revisions; head
    None: the working tree with its changes to tracked files. Raises BadInput.
    """
    top = Path(_git(place, "rev-parse", "--show-toplevel"))
    commits = {
        "base": _commit(top, base, "--base"),
        "head": _working_tree(top) if head is None else _commit(top, head, "--head"),
    }
    _refuse_untracked(top, operators_from)
    with scratch_folder("gate", top) as folder:
        for name, commit in commits.items():
            _git(top, "worktree", "add", "--detach", "--quiet", str(folder / name), commit)
        sides = [_side(name, commits[name], folder / name, top, operators_from) for name in commits]
        for side in sides:
            _check_imports(side, operators_from, top)
        yield sides[0], sides[1]


def _side(name: str, commit: str, root: Path, top: Path, operators_from: Sequence[str]) -> Checkout:
    own = []
    for place in operators_from:
        if not place.endswith(".py"):
            own.append(place)
            continue
        path = Path(place)
        if not path.is_relative_to(top):
            raise BadInput(
                f"operators_from: {place} is outside the repository {top}, so both revisions would measure the same "
                "file. Move it into the repository of the suite."
            )
        there = root / path.relative_to(top)
        if there.is_file():
            own.append(str(there))
        elif name == "head":
            raise BadInput(f"operators_from: {path.relative_to(top)} is not in the revision {commit[:12]}. Commit it.")
    folders = [root, root / "src", *(Path(place).parent for place in own if place.endswith(".py"))]
    return Checkout(name, commit, root, tuple(own), tuple(str(f) for f in dict.fromkeys(folders) if f.is_dir()))


def _working_tree(top: Path) -> str:
    """A commit of HEAD with the uncommitted changes of tracked files; nothing in the repository moves."""
    # `git stash create` fails without a word where a file was written again as it was.
    changed = _git(top, "status", "--porcelain", "--untracked-files=no")
    return _git(top, "stash", "create") if changed else _git(top, "rev-parse", "HEAD")


def _commit(top: Path, revision: str, option: str) -> str:
    try:
        if revision.startswith("-"):
            raise BadInput("")
        return _git(top, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except BadInput:
        raise BadInput(
            f"{option} {revision}: no such revision in {top}. Give a branch, a tag or a commit; in CI fetch it first "
            "(fetch-depth: 0)."
        ) from None


def _refuse_untracked(top: Path, operators_from: Sequence[str]) -> None:
    for place in operators_from:
        path = Path(place)
        inside = place.endswith(".py") and path.is_relative_to(top)
        if inside and not _git(top, "ls-files", "--", str(path.relative_to(top))):
            raise BadInput(
                f"operators_from: git does not know {path.relative_to(top)}. `git add` it, so that it is checked out."
            )


def _check_imports(side: Checkout, operators_from: Sequence[str], top: Path) -> None:
    """A package that comes from elsewhere than the worktree would make both sides measure the same code."""
    packages = [place for place in operators_from if not place.endswith(".py")]
    if Path(attnbench.__file__).resolve().is_relative_to(top.resolve()):
        packages.append("attnbench")
    code = (
        "import importlib.util, sys\n"
        "for name in sys.argv[1:]:\n"
        "    spec = importlib.util.find_spec(name)\n"
        "    print(spec.origin if spec else None)"
    )
    path = os.pathsep.join([*side.imports, *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code, *packages],
        env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        cwd=side.root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    for name, origin in zip(packages, done.stdout.splitlines(), strict=False):
        if origin != "None" and not Path(origin).resolve().is_relative_to(side.root):
            raise BadInput(
                f"operators_from: {name} is imported from {origin}, not from the checkout of {side.name}, so both "
                "revisions would measure the same code. Keep the package in the repository, at its top or under src/."
            )


def _git(place: Path, *words: str) -> str:
    folder = place if place.is_dir() else place.parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True, text=True, check=False, encoding="utf-8", errors="surrogateescape",
        )  # fmt: skip
    except OSError as error:
        raise BadInput(f"git cannot be run: {error.strerror}. Install it: the gate compares two revisions.") from None
    if done.returncode:
        said = " ".join(done.stderr.split())[:300] or f"exit code {done.returncode}"
        raise BadInput(f"git {words[0]} in {folder}: {said}. The gate needs the git repository that the suite is in.")
    return done.stdout.strip()
