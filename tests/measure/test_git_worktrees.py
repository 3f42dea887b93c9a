"""Whose suite each side of a gate measures, and which repository is checked out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from attnbench.errors import BadInput
from attnbench.measure import git_worktrees
from attnbench.measure.git_worktrees import checkouts
from tests.commands.test_gate import EXAMPLE, SUITE, example, git

SHIPPED = "name: ci\noperators: [identity]\nsweep: [{seq_len: 8}]\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return example(tmp_path / "repository", SUITE)


def test_each_side_has_its_own_suite_and_files(repository: Path) -> None:
    (repository / "own.yaml").write_text(SUITE.replace("[64, 128, 256]", "[32]"))
    with checkouts(repository / "own.yaml", "HEAD", None) as (base, head):
        assert base.text == SUITE
        assert "[32]" in head.text
        assert base.operators_from == (str(base.root / "operators" / "decayed.py"),)
        assert head.operators_from == (str(head.root / "operators" / "decayed.py"),)
        assert base.notes == head.notes == ()


def test_a_message_names_files_of_a_side_as_the_repository_does(repository: Path) -> None:
    with pytest.raises(BadInput) as error, checkouts(repository / "own.yaml", "HEAD", None) as (base, head):
        raise BadInput(f"{base.operators_from[0]}, line 3: as in '{head.operators_from[0]}', not in {head.root}.")
    assert str(error.value) == (
        "base's operators/decayed.py, line 3: as in 'head's operators/decayed.py', not in head's checkout."
    )


def test_what_is_in_a_submodule_is_said_not_to_be_there(repository: Path) -> None:
    first = git(repository, "rev-parse", "HEAD").strip()
    git(repository, "update-index", "--add", "--cacheinfo", f"160000,{first},kernels/fast")
    git(repository, "commit", "--quiet", "--message", "two")
    with pytest.raises(BadInput) as error, checkouts(repository / "own.yaml", "HEAD", None):
        raise BadInput("no module fast.")
    assert str(error.value) == "no module fast. A gate checks out no git submodules: nothing is found in kernels/fast."
    (repository / "kernels" / "fast").mkdir(parents=True)
    (repository / "own.yaml").write_text(SUITE.replace("operators/decayed.py", "kernels/fast/own.py"))
    with (
        pytest.raises(BadInput, match=r"kernels/fast/own\.py is in a git submodule"),
        checkouts(repository / "own.yaml", "HEAD~1", None),
    ):
        pass


def test_a_new_suite_is_measured_on_both_sides_and_said(repository: Path) -> None:
    (repository / "new.yaml").write_text(SUITE.replace("decayed.py]", "decayed.py, operators/fresh.py]"))
    (repository / "operators" / "fresh.py").write_text("")
    git(repository, "add", "operators/fresh.py")
    with checkouts(repository / "new.yaml", "HEAD", None) as (base, head):
        assert base.text == head.text
        assert [len(side.operators_from) for side in (base, head)] == [1, 2]
        assert base.notes == (f"new.yaml is not in base {base.revision[:12]}, which measures head's",)


def test_a_suite_that_a_change_removes_cannot_pass(repository: Path) -> None:
    first = git(repository, "rev-parse", "HEAD").strip()
    git(repository, "rm", "--quiet", "own.yaml")
    said = f"own.yaml: base {first[:12]} has it, head [0-9a-f]{{12}} has not, so nothing can be compared"
    with pytest.raises(BadInput, match=said), checkouts(repository / "own.yaml", first, None):
        pass
    git(repository, "commit", "--quiet", "--message", "two")
    with pytest.raises(BadInput, match=said), checkouts(repository / "own.yaml", first, "HEAD"):
        pass
    with pytest.raises(BadInput, match=r"own\.yaml does not exist"), checkouts(repository / "own.yaml", "HEAD", None):
        pass
    assert git(repository, "worktree", "list").count("\n") == 1


def installed(place: Path, monkeypatch: pytest.MonkeyPatch, repository: Path) -> Path:
    """A shipped suite below `place`, as a package that is installed there has it; the current directory is the
    repository."""
    file = place / "site-packages" / "attnbench" / "suites" / "ci.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(SHIPPED)
    monkeypatch.setattr(git_worktrees, "shipped", lambda: {"ci": file})
    monkeypatch.chdir(repository)
    return file


@pytest.mark.parametrize("inside", [False, True])
def test_an_installed_suite_is_measured_in_the_repository_of_the_current_directory(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    (repository / ".gitignore").write_text(".venv/\n")
    (repository / "attnbench").mkdir()
    (repository / "attnbench" / "__init__.py").write_text("")
    (repository / "suites").mkdir()
    (repository / "suites" / "ci.yaml").write_text(SHIPPED)
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "two")
    (repository / "suites" / "ci.yaml").write_text(SHIPPED.replace("8", "16"))
    file = installed(repository / ".venv" if inside else tmp_path / "venv", monkeypatch, repository)
    with checkouts(file, "HEAD", None) as (base, head):
        assert base.text == SHIPPED
        assert head.text == SHIPPED.replace("8", "16")
        assert base.imports[0] == str(base.root)


def test_an_installed_suite_of_which_nothing_is_in_the_repository_is_refused(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = installed(tmp_path / "venv", monkeypatch, repository)
    said = f"nothing that ci.yaml measures is in the repository {re.escape(str(repository))}"
    with pytest.raises(BadInput, match=said), checkouts(file, "HEAD", None):
        pass
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    monkeypatch.chdir(nowhere)
    said = "is in no git repository, nor is the current directory"
    with pytest.raises(BadInput, match=said), checkouts(file, "HEAD", None):
        pass


def test_a_suite_of_the_repository_that_measures_only_what_is_installed_says_so(repository: Path) -> None:
    (repository / "own.yaml").write_text(SHIPPED)
    with checkouts(repository / "own.yaml", "HEAD", None) as (base, _):
        assert base.notes == ()  # the base's suite has an operator of its own
    git(repository, "commit", "--quiet", "--all", "--message", "two")
    with checkouts(repository / "own.yaml", "HEAD", None) as (base, _):
        assert "both revisions measure what is installed" in base.notes[0]


def test_what_a_side_names_and_does_not_have_is_said(repository: Path) -> None:
    (repository / "own.yaml").write_text(SUITE.replace("decayed.py", "absent.py"))
    said = "operators/absent.py is not in head [0-9a-f]{12}, whose suite names it"
    with pytest.raises(BadInput, match=said), checkouts(repository / "own.yaml", "HEAD", None):
        pass
    (repository / "own.yaml").write_text(
        SUITE.replace("operators/decayed.py", str(EXAMPLE / "operators" / "decayed.py"))
    )
    with pytest.raises(BadInput, match="is outside the repository"), checkouts(repository / "own.yaml", "HEAD", None):
        pass
