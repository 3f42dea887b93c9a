"""Two revisions of a repository, checked out side by side as git worktrees, each with its own suite."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import attnbench
from attnbench.errors import BadInput
from attnbench.measure.scratch import scratch_folder
from attnbench.plan.suite import operator_places, shipped
from attnbench.units import suggestion
from attnbench.yaml_file import parse, read_text


@dataclass(frozen=True)
class Checkout:
    """One side of a gate.

    Args:
        name: base or head.
        revision: its commit.
        root: its worktree.
        text: its suite.
        operators_from: those of its suite, files in its worktree.
        imports: folders from which its processes import before all others.
        notes: sentences on where its suite comes from.
    """

    name: str
    revision: str
    root: Path
    text: str
    operators_from: tuple[str, ...]
    imports: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.revision[:12]}"


@contextlib.contextmanager
def checkouts(file: Path, base: str, head: str | None) -> Iterator[tuple[Checkout, Checkout]]:
    """Base and head as worktrees, which are removed at the end.

    Args:
        file: the suite. Its repository is compared; where it is in none, that of the current directory.
        base: a revision.
        head: a revision; None: the working tree with the changes to tracked files.

    Raises: BadInput.
    """
    file = file.resolve()
    top, inside = _repository(file)
    commits = {
        "base": _commit(top, base, "--base"),
        "head": _working_tree(top) if head is None else _commit(top, head, "--head"),
    }
    with scratch_folder("gate", top) as folder:
        for name, commit in commits.items():
            _git(top, "worktree", "add", "--detach", "--quiet", str(folder / name), commit)
        try:
            yield _sides(file, top, inside, commits, head is None, [folder / name for name in commits])
        except BadInput as error:
            text = _of_sides(str(error), folder, commits)
            modules = sorted({name for commit in commits.values() for name in _submodules(top, commit)})
            if modules:
                text += f" A gate checks out no git submodules: nothing is found in {', '.join(modules)}."
            raise BadInput(text) from None


def _submodules(top: Path, commit: str) -> list[str]:
    """The paths of a revision's submodules."""
    entries = (line.partition("\t") for line in _git(top, "ls-tree", "-r", commit).splitlines())
    return [path for kind, _, path in entries if kind.startswith("160000 ")]


def _of_sides(text: str, folder: Path, names: Iterable[str]) -> str:
    """A text that names files of the worktrees as the repository does, with the side: `head's kernels/mine.py`."""
    for name in names:
        text = text.replace(f"{folder / name}{os.sep}", f"{name}'s ").replace(str(folder / name), f"{name}'s checkout")
    return text


def _repository(file: Path) -> tuple[Path, Path | None]:
    """The top of the repository that is compared, and the suite's path in it; None where the suite is not in it."""
    with contextlib.suppress(BadInput):
        folder = next(parent for parent in file.parents if os.path.isdir(parent))
        top = Path(_git(folder, "rev-parse", "--show-toplevel")).resolve()
        inside = file.relative_to(top)
        ignored = _git(top, "ls-files", "--others", "--ignored", "--exclude-standard", "--", str(inside))
        if not ignored:  # as what is installed into a virtual environment is
            return top, inside
    try:
        return Path(_git(Path.cwd(), "rev-parse", "--show-toplevel")).resolve(), None
    except BadInput as error:
        raise BadInput(
            f"{file} is in no git repository, nor is the current directory ({error}) Run the gate in the repository "
            "whose revisions are to be compared."
        ) from None


def _sides(
    file: Path, top: Path, inside: Path | None, commits: Mapping[str, str], working_tree: bool, roots: Sequence[Path]
) -> tuple[Checkout, Checkout]:
    """Both sides with their suites; a base without the suite measures head's, and has a note."""
    before, after = (_suite_of(file, inside, root) for root in roots)
    if after is None and working_tree and file.is_file():  # not known to git yet
        after = file
    if after is None:
        where = f"base {commits['base'][:12]} has it, head {commits['head'][:12]} has not"
        if before is None:
            read_text(file)
            where = "neither revision has it"
        raise BadInput(f"{inside or file}: {where}, so nothing can be compared. Name a suite that both have.")
    head = _side("head", commits["head"], roots[1], read_text(after), file, top)
    text, notes = head.text, [f"{inside or file} is not in base {commits['base'][:12]}, which measures head's"]
    if before is not None:
        text, notes = read_text(before), []
    if before == after:
        notes = [f"{file} is not in the repository {top}: both revisions measure it as it is"]
    base = _side("base", commits["base"], roots[0], text, file, top, lenient=before is None)
    sides = (replace(base, notes=tuple(notes)), head)
    measured = [_check_imports(side, top) for side in sides]
    if not any(measured):
        note = f"nothing that {file.name} measures is in the repository {top}: both revisions measure what is installed"
        if inside is None:
            raise BadInput(f"{note}. Run the gate in the repository of what you change, with a suite of its own.")
        sides = (replace(sides[0], notes=(*sides[0].notes, note)), head)
    return sides


def _suite_of(file: Path, inside: Path | None, root: Path) -> Path | None:
    """The suite in a worktree: at the same place, or shipped with the attnbench there; else, of no revision, itself."""
    if inside is None and shipped().get(file.stem, Path()).resolve() == file and _has_attnbench(root):
        places = [root / "suites" / file.name, root / "attnbench" / "suites" / file.name]
    else:
        places = [file if inside is None else root / inside]
    return next((place for place in places if place.is_file()), None)


def _has_attnbench(root: Path) -> bool:
    return (root / "attnbench" / "__init__.py").is_file()


def _side(name: str, commit: str, root: Path, text: str, file: Path, top: Path, *, lenient: bool = False) -> Checkout:
    """One side.

    Args:
        name: base or head.
        commit: its revision.
        root: its worktree.
        text: its suite.
        file: the suite's path, for messages and relative paths.
        top: of the repository.
        lenient: files of the suite that this revision does not have are left out.

    Raises: BadInput.
    """
    places = []
    for place in operator_places(parse(text, f"{file} ({name} {commit[:12]})")):
        if not isinstance(place, str) or not place.endswith(".py"):
            places.append(place)
            continue
        path = (file.parent / place).resolve()
        if not path.is_relative_to(top):
            raise BadInput(
                f"operators_from: {place} is outside the repository {top}, so both revisions would measure the same "
                "file. Move it into the repository of the suite."
            )
        there = root / path.relative_to(top)
        if any(path.is_relative_to(top / module) for module in _submodules(top, commit)):
            raise BadInput(
                f"operators_from: {place} is in a git submodule. Gate the submodule's own repository, with a suite "
                "there, or run the suite in each revision and compare the stored runs: attnbench compare BASE HEAD."
            )
        if there.is_file():
            places.append(str(there))
        elif path.is_file() and name == "head":
            raise BadInput(
                f"operators_from: git does not know {path.relative_to(top)} in {name} {commit[:12]}. `git add` it, so "
                "that it is checked out."
            )
        elif not lenient:
            raise BadInput(
                f"operators_from: {path.relative_to(top)} is not in {name} {commit[:12]}, whose suite names it. "
                "Correct the suite, or commit the file."
            )
    files = (Path(place).parent for place in places if isinstance(place, str) and place.endswith(".py"))
    folders = tuple(str(f) for f in dict.fromkeys([root, root / "src", *files]) if f.is_dir())
    return Checkout(name, commit, root, text, tuple(places), folders)


def _working_tree(top: Path) -> str:
    """A commit of HEAD with the uncommitted changes of tracked files; the repository stays as it is."""
    # `git stash create` makes none where a file was rewritten with the same content, or in a submodule alone.
    changed = _git(top, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
    return _git(top, "stash", "create") if changed else _git(top, "rev-parse", "HEAD")


def _commit(top: Path, revision: str, option: str) -> str:
    try:
        if revision.startswith("-"):
            raise BadInput("")
        return _git(top, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except BadInput:
        raise BadInput(
            f"{option} {revision}: no such revision in {top}{_near(top, revision)}. {_where_it_may_be(top)}"
        ) from None


def _near(top: Path, revision: str) -> str:
    """The suggestion of a branch that only a remote has, as after CI's checkout, or of a name that is near."""
    names = _git(top, "for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags", "refs/remotes").split()
    remote = next((name for name in names if name.partition("/")[2] == revision), None)
    return suggestion(revision, names) if remote is None else f" (did you mean '{remote}'?)"


def _where_it_may_be(top: Path) -> str:
    if _git(top, "rev-parse", "--is-shallow-repository") == "true":
        return "This clone has part of the history alone: fetch the rest (git fetch --unshallow; in CI fetch-depth: 0)."
    return "Give a branch, a tag or a commit; fetch it first where only a remote has it (in CI fetch-depth: 0)."


def _check_imports(side: Checkout, top: Path) -> bool:
    """Whether anything that is measured is imported from the worktree.

    Raises: BadInput where a package of the suite is imported from elsewhere: both sides would measure the same code.
    """
    packages = [place for place in side.operators_from if isinstance(place, str) and not place.endswith(".py")]
    if Path(attnbench.__file__).resolve().is_relative_to(top) or _has_attnbench(side.root):
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
    origins = list(zip(packages, done.stdout.splitlines(), strict=False))
    for name, origin in origins:
        if origin != "None" and not Path(origin).resolve().is_relative_to(side.root):
            raise BadInput(
                f"operators_from: {name} is imported from {origin}, not from the checkout of {side.name}, so both "
                "revisions would measure the same code. Keep the package in the repository, at its top or under src/."
            )
    files = any(isinstance(place, str) and place.endswith(".py") for place in side.operators_from)
    return files or any(origin != "None" for _, origin in origins)


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
        reason = " ".join(done.stderr.split())[:300] or f"exit code {done.returncode}"
        raise BadInput(f"git {words[0]} in {folder}: {reason}. The gate needs the git repository that the suite is in.")
    return done.stdout.strip()
