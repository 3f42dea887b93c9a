"""A copy of attnbench with exactly one file, or one block of lines, for each thing that is added: the proof that adding
it is no more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.running import lean

REPOSITORY = Path(__file__).parents[2]


def tree_with(folder: Path, path: str, text: str) -> Path:
    """Copies attnbench and its suites into a folder, adds one file, and returns the copy, as `tree_with_all`."""
    return tree_with_all(folder, {path: text})


def tree_with_lines(folder: Path, *added: tuple[str, str, str]) -> Path:
    """Copies attnbench and its suites into a folder, adds blocks of lines, and returns the copy, as `tree_with_all`."""
    return tree_with_all(folder, {}, *added)


def tree_with_all(folder: Path, files: Mapping[str, str], *added: tuple[str, str, str]) -> Path:
    """Copies attnbench and its suites into a folder, adds files, and a block of lines to some files that are there.

    Args:
        folder: an empty folder.
        files: what the new files hold, by path from the top of the repository; no file there has it.
        added: (path from the top of the repository, how the line above the block begins, the block) each. One line
            of the file begins so, and the block is of whole lines.

    Returns: the copy.

    Raises: AssertionError where anything else differs from the repository.
    """
    tree = _copied(folder)
    before = _files(REPOSITORY)
    for path, text in files.items():
        assert path not in before, f"{path} is there already"
        (tree / path).write_text(text, encoding="utf-8")
    for path, above, block in added:
        lines = before[path].decode().splitlines(keepends=True)
        places = [number for number, line in enumerate(lines, 1) if line.startswith(above)]
        assert len(places) == 1, f"{len(places)} lines of {path} begin with {above}"
        assert block.endswith("\n"), "whole lines are added"
        text = "".join([*lines[: places[0]], block, *lines[places[0] :]])
        (tree / path).write_text(text, encoding="utf-8")
    after = {path: content for path, content in _files(tree).items() if path not in files}
    for path, _, block in added:
        assert after.pop(path).replace(block.encode(), b"", 1) == before.pop(path)
    assert after == before
    return tree


def _copied(folder: Path) -> Path:
    """A copy of attnbench and its suites, below a folder, with what is compiled already: its times are those of the
    files, so Python takes it for these as well.
    """
    tree = folder / "tree"
    for name in ("attnbench", "suites"):
        shutil.copytree(REPOSITORY / name, tree / name, ignore=shutil.ignore_patterns("*.pyc.*"))
    return tree


def attnbench(tree: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line of a copy in its own process. Returns it with stdout and stderr as text."""
    return _started(tree, [sys.executable, "-m", "attnbench", *words])


def _started(tree: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(tree), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=900, check=False)


def suite_file(folder: Path, text: str) -> str:
    """Writes a suite into a folder. Returns the file's path."""
    path = folder / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def run_suite(
    tree: Path, text: str, folder: Path, device: str = "cpu", *, rates: bool = False, forecast: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs a suite by the command line of a copy, `lean`. In the folder are then the suite and the run, `run`."""
    words = ("run", suite_file(folder, text), "--out", folder / "run", "--device", device)
    return _started(tree, lean(*words, rates=rates, forecast=forecast))


def _files(top: Path) -> dict[str, bytes]:
    """The content of every file of attnbench and the suites, by its path."""
    return {
        path.relative_to(top).as_posix(): path.read_bytes()
        for name in ("attnbench", "suites")
        for path in sorted((top / name).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
