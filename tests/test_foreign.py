"""Run folders that somebody else made: nothing that they name is executed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.errors import BadInput
from attnbench.question import Question, keep, suite_text
from attnbench.record import SUITE
from attnbench.session import stored_search
from attnbench.suite import from_text, override
from tests.stored import cell, folder, timed, visit

ASKED = Question(("evil",), "softmax", "seq_len", 64, 128, 0.1, "wall_time_s")
SHAPE = {"batch": 1, "heads": 4, "channels": 32, "dtype": "float32", "causal": False}
REST = "operators: [softmax, evil]\nsweep: [{seq_len: [64]}]\nproblem: {channels: 32, heads: 4}\n"
WRITTEN = {
    "plain": "operators_from: [evil.py]\n",
    "escaped": '"operators\\u005ffrom": [evil.py]\n',
    "quoted": "'operators_from': evil.py\n",
    "explicit": "? operators_from\n: - evil.py\n",
    "package": '"operators\\x5ffrom": [evil_package]\n',
}


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that comes into being when code of the foreign folder runs; the folder is the current one, too."""
    found = tmp_path / "mark"
    code = f"open({str(found)!r}, 'w').close()\n"
    foreign = tmp_path / "foreign"
    (foreign / "evil_package").mkdir(parents=True)
    for path in ("evil.py", "evil_package/__init__.py", "evil_package/evil.py"):
        (foreign / path).write_text(code)
    monkeypatch.chdir(foreign)
    monkeypatch.syspath_prepend(str(foreign))
    yield found
    for name in ("attnbench_user_evil", "evil_package", "evil_package.evil"):
        sys.modules.pop(name, None)


def foreign(suite: str, *, search: bool = False) -> Path:
    cells = [cell("softmax"), cell("evil")]
    path = folder(Path.cwd(), [v for c in cells for v in (visit(c), timed(c, 1, 1e-3))])
    (path / SUITE).write_text(suite + REST)
    if search:
        keep(ASKED, path)
    return path


def attnbench(*words: object) -> tuple[int, str]:
    """The exit code, and what is said of bad input."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, BadInput):
        return 2, " ".join(str(result.exception).split())
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, ""


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize("verb", ["run", "crossover"])
def test_going_on_with_a_foreign_folder_runs_no_code_of_it(mark: Path, verb: str, written: str) -> None:
    path = foreign(written, search=verb == "crossover")
    code, told = attnbench(verb, "--resume", path)
    assert code == 2
    assert "code runs only from files that you name" in told
    assert ("--operators-from PATH" if verb == "crossover" else f"attnbench run SUITE --resume {path}") in told
    assert not mark.exists()


@pytest.mark.parametrize(
    "words",
    [["show"], ["floor"], ["plot", "--format", "svg"], ["compare", "."], ["gate", "quick", "--against"]],
    ids=lambda words: words[0],
)
def test_reading_a_foreign_folder_runs_no_code_of_it(
    mark: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    path = foreign(WRITTEN["plain"])
    if words[0] == "gate":  # measuring is another matter
        monkeypatch.setattr("attnbench.gating.against_stored", lambda *_: sys.exit(9))
    code, _ = attnbench(*words, path)
    assert code == {"floor": 2, "gate": 9}.get(words[0], 0)
    assert not mark.exists()


def test_the_mark_is_made_where_the_user_names_the_file(mark: Path) -> None:
    path = foreign(WRITTEN["plain"])
    assert attnbench("run", path / SUITE, "--dry-run")[0] == 2
    assert mark.exists()


def test_a_search_with_operators_of_ones_own_goes_on_where_they_are_named_again(tmp_path: Path) -> None:
    own = tmp_path / "ops" / "mine.py"
    own.parent.mkdir()
    own.touch()
    asked = Question(("mine",), "softmax", "seq_len", 64, 128, 0.1, "wall_time_s")
    text = suite_text(asked, SHAPE, 64, "fwd", "core", [], [str(own)])
    begun = from_text(text, "the command line", Path.cwd())
    assert begun.operators_from == (str(own),)
    (tmp_path / SUITE).write_text(begun.text)
    assert str(tmp_path) not in begun.text
    assert stored_search(tmp_path, [str(own)]).operators_from == (str(own),)
    with pytest.raises(Exception, match=r"\(mine.py\).*--operators-from PATH"):
        stored_search(tmp_path, [])
    with pytest.raises(Exception, match=r"asked without other.py"):
        stored_search(tmp_path, [str(own), "other.py"])


@pytest.mark.parametrize(
    ("place", "stored"),
    [("{top}/suites/ops/mine.py", "ops/mine.py"), ("{top}/mine.py", "mine.py"), ("../mine.py", "../mine.py")],
)
def test_a_stored_suite_has_no_absolute_path(tmp_path: Path, place: str, stored: str) -> None:
    for name in ("mine.py", "suites/ops/mine.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    given = place.format(top=tmp_path)
    text = f"operators_from: [{given}]\noperators: [softmax, mine]\nsweep: [{{seq_len: 8}}]\n"
    suite = from_text(text, "s.yaml", tmp_path / "suites")
    fewer = override(suite, operators=["mine"])
    for each in (suite, fewer):
        assert each.operators_from == (str((tmp_path / "suites" / given).resolve()),)
        assert f"- {stored}\n" in each.text or (each.text == text and stored == given)
