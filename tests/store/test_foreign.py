"""Run folders that somebody else made: nothing that they name is executed, nothing is written outside them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.analysis import results
from attnbench.api.stored_run import load
from attnbench.contract import CONTRACT
from attnbench.errors import BadInput
from attnbench.measure.open_run import stored_search
from attnbench.measure.stored_search import read_request, write_request
from attnbench.plan.search_request import SearchRequest, suite_text
from attnbench.plan.suite import from_text, override
from attnbench.store import journal
from attnbench.store.frames import frame
from attnbench.store.records import ENVIRONMENT, RESULTS, SAMPLES, SEARCH, SUITE, VISITS, Sample
from attnbench.store.trusted_json import read_text
from tests.stored import cell, folder, timed, visit

ASKED = SearchRequest(("evil",), "softmax", "seq_len", 64, 128, 0.1, "wall_time_s")
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
    visits = [replace(v, contract=str(CONTRACT)) for c in cells for v in (visit(c), timed(c, 1, 1e-3))]
    path = folder(Path.cwd(), visits)
    (path / SUITE).write_text(suite + REST)
    if search:
        write_request(ASKED, path)
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
    [
        ["show"],
        ["roofline"],
        ["dispatch"],
        ["plot", "--format", "svg"],
        ["compare", "."],
        ["gate", "quick", "--against"],
    ],
    ids=lambda words: words[0],
)
def test_reading_a_foreign_folder_runs_no_code_of_it(
    mark: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    path = foreign(WRITTEN["plain"])
    if words[0] == "gate":  # measuring is another matter
        monkeypatch.setattr("attnbench.measure.gate.plan_like", lambda *_: sys.exit(9))
    code, _ = attnbench(*words, path)
    assert code == {"roofline": 2, "dispatch": 2, "gate": 9}.get(words[0], 0)
    assert not mark.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["show"],
        ["show", "--format", "json"],
        ["roofline"],
        ["dispatch"],
        ["plot"],
        ["compare", "."],
        ["gate", "quick", "--against"],
        ["merge", "--out", "joined"],
        ["choose", "--seq-len", "32", "--channels", "8", "--run"],
        ["reproduce", "fnet", "--runs"],
        ["run", "--resume"],
    ],
    ids=" ".join,
)
def test_what_a_later_attnbench_has_measured_is_not_read_as_if_it_were_of_today(mark: Path, words: list[str]) -> None:
    """Whatever else is new in it: a status that this version does not know is no damage."""
    path = foreign(WRITTEN["plain"])
    text = (path / VISITS).read_text()
    assert text.count(f'"contract":"{CONTRACT}"') == text.count("\n")
    later = text.replace(f'"contract":"{CONTRACT}"', f'"contract":"{CONTRACT + 1} x=1"').replace('"ok"', '"fine"')
    (path / VISITS).write_text(later)
    code, told = attnbench(*words, path)
    assert code == 2
    assert f"measured under timing contract {CONTRACT + 1}, and this attnbench knows those up to {CONTRACT}" in told
    with pytest.raises(BadInput, match="or a later one"):
        load(path)


def test_the_mark_is_made_where_the_user_names_the_file(mark: Path) -> None:
    path = foreign(WRITTEN["plain"])
    assert attnbench("run", path / SUITE, "--dry-run")[0] == 2
    assert mark.exists()


def test_a_search_with_operators_of_ones_own_goes_on_where_they_are_named_again(tmp_path: Path) -> None:
    own = tmp_path / "ops" / "mine.py"
    own.parent.mkdir()
    own.touch()
    asked = SearchRequest(("mine",), "softmax", "seq_len", 64, 128, 0.1, "wall_time_s")
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


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file outside the run folder, which no link may lead to."""
    found = tmp_path / "outside" / "profile"
    found.parent.mkdir()
    found.write_bytes(b"export A=1\nand a last line without its end")
    return found


def stored_run(path: Path) -> Path:
    """A run folder with a torn tail and samples of an unfinished visit, so that going on with it writes both."""
    one = cell("softmax")
    path = folder(path, [visit(one), timed(one, 1, 1e-3)], [Sample(one.key, 2, 2, 0, "wall", 0.5)])
    with (path / VISITS).open("a") as file:
        file.write("{torn")
    return path


def linked(how: str, path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    if how == "symlink":
        path.symlink_to(target)
    elif how == "hard link":
        os.link(target, path)
    elif how == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("name", [VISITS, SAMPLES])
@pytest.mark.parametrize("how", ["symlink", "hard link", "pipe", "device"])
def test_going_on_writes_into_no_link_pipe_or_device(tmp_path: Path, outside: Path, how: str, name: str) -> None:
    path = stored_run(tmp_path / "run")
    before, content = outside.read_bytes(), (path / name).read_bytes()
    linked(how, path / name, outside)
    if how in ("symlink", "hard link"):
        outside.write_bytes(content)  # even where it looks like a run's
        before = content
    with pytest.raises(BadInput, match=r"a link|hard link|not a run folder"):
        journal.resume(path)
    assert outside.read_bytes() == before


@pytest.mark.parametrize("name", [VISITS, SAMPLES])
def test_what_is_no_runs_file_is_left_as_it_is(tmp_path: Path, outside: Path, name: str) -> None:
    path = stored_run(tmp_path / "run")
    shutil.copy(outside, path / name)
    before = {each.name: each.read_bytes() for each in path.iterdir()}
    with pytest.raises(BadInput, match=name):
        journal.resume(path)
    assert {each.name: each.read_bytes() for each in path.iterdir()} == before


@pytest.mark.parametrize("name", [RESULTS, SUITE, SEARCH, SAMPLES, VISITS, ENVIRONMENT])
def test_names_that_were_once_temporary_lead_nowhere(tmp_path: Path, outside: Path, name: str) -> None:
    path = stored_run(tmp_path / "run")
    before = outside.read_bytes()
    (path / f".{name}.new").symlink_to(outside)
    if name in (RESULTS, SEARCH):
        (path / name).symlink_to(outside)
    opened = journal.resume(path)
    results.write(path, frame(opened.visits))
    write_request(ASKED, path)
    opened.close()
    assert outside.read_bytes() == before
    assert (path / RESULTS).read_text().startswith("key,")
    assert not (path / RESULTS).is_symlink()
    assert [each.name for each in path.glob(".*.new")] == [f".{name}.new"]
    assert (path / SAMPLES).read_text().count("\n") == 1
    assert not (path / VISITS).read_text().endswith("{torn")


def test_pictures_are_drawn_beside_a_link_not_through_it(tmp_path: Path, outside: Path) -> None:
    path = stored_run(tmp_path / "run")
    assert attnbench("plot", path, "--format", "svg", "--out", tmp_path / "plots")[0] == 0
    before = outside.read_bytes()
    for picture in (tmp_path / "plots").iterdir():
        picture.unlink()
        picture.symlink_to(outside)
    assert attnbench("plot", path, "--format", "svg", "--out", tmp_path / "plots")[0] == 0
    assert outside.read_bytes() == before
    assert all(p.read_bytes().startswith(b"<?xml") and not p.is_symlink() for p in (tmp_path / "plots").iterdir())
    (path / "plots").symlink_to(outside.parent)
    code, told = attnbench("plot", path, "--format", "svg")
    assert (code, "a link" in told) == (2, True)
    assert list(outside.parent.iterdir()) == [outside]


def test_a_new_run_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="a link"):
        journal.create(tmp_path / "run", "", {})
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("name", [VISITS, SAMPLES, ENVIRONMENT, SUITE, SEARCH])
@pytest.mark.parametrize("how", ["pipe", "device"])
def test_reading_waits_for_no_pipe_and_no_device(tmp_path: Path, name: str, how: str) -> None:
    path = stored_run(tmp_path / "run")
    linked(how, path / name, path)
    with pytest.raises(BadInput, match=rf"{name}.*not a regular file"):
        read_text(path / name)
    with pytest.raises(BadInput, match=name):
        (read_request if name == SEARCH else journal.resume)(path)
