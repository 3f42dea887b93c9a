"""The copy differs from the repository in one file, and its own command line runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adding.tree import REPOSITORY, attnbench, tree_with, tree_with_lines


def test_the_copy_runs_its_own_files_and_a_file_that_is_there_is_none_to_add(tmp_path: Path) -> None:
    tree = tree_with(tmp_path, "attnbench/commands/_nothing.py", '"""Nothing."""\n')
    version = tree / "attnbench" / "__init__.py"
    version.write_text(
        version.read_text(encoding="utf-8").replace('__version__ = "', '__version__ = "copied.'), "utf-8"
    )
    assert attnbench(tree, "--version").stdout.startswith("attnbench copied.")
    with pytest.raises(AssertionError, match="is there already"):
        tree_with(tmp_path / "again", "attnbench/cost.py", "")
    assert (REPOSITORY / "attnbench" / "cost.py").stat().st_size


def test_added_lines_are_whole_and_stand_at_one_place(tmp_path: Path) -> None:
    for number, (after, lines) in enumerate(
        [("import math", "# no end"), ("    ", "# which one\n"), ("nowhere", "# none\n")]
    ):
        with pytest.raises(AssertionError, match=r"whole lines|lines of attnbench/axes.py begin"):
            tree_with_lines(tmp_path / str(number), ("attnbench/axes.py", after, lines))
