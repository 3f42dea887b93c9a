"""Adding a verb is adding its file: it runs, is in --help, and explains itself."""

from __future__ import annotations

from pathlib import Path

from tests.adding.tree import attnbench, tree_with

VERB = '''"""attnbench greet: says hello."""

from __future__ import annotations

from typing import Annotated

import typer

from attnbench.errors import BadInput


def command(name: Annotated[str, typer.Argument(help="Who is greeted.")]) -> None:
    """Greet somebody by name.

    Example: attnbench greet Ada
    """
    if name == "nobody":
        raise BadInput("nobody: cannot be greeted. Give a name.")
    print(f"hello {name}")
'''


def test_a_verb_is_one_file(tmp_path: Path) -> None:
    tree = tree_with(tmp_path, "attnbench/commands/greet.py", VERB)
    assert "Greet somebody by name." in attnbench(tree, "--help").stdout
    assert "Who is greeted." in attnbench(tree, "greet", "--help").stdout
    greeted = attnbench(tree, "greet", "Ada")
    assert (greeted.returncode, greeted.stdout, greeted.stderr) == (0, "hello Ada\n", "")
    refused = attnbench(tree, "greet", "nobody")
    assert (refused.returncode, refused.stderr) == (2, "attnbench: nobody: cannot be greeted. Give a name.\n")


def test_without_the_file_it_is_refused(tmp_path: Path) -> None:
    tree = tree_with(tmp_path, "attnbench/commands/_greet.py", VERB)
    refused = attnbench(tree, "greet", "Ada")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "No such command 'greet'" in refused.stderr
