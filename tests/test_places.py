"""Every option that names a file or a folder: what cannot be one is told in a sentence, before anything is measured."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from attnbench import files
from attnbench.__main__ import app
from attnbench.errors import BadInput
from attnbench.measure.open_run import default_folder
from attnbench.plan.suite import from_text
from attnbench.store import journal

NAMES = {
    "too long": "x" * 300,
    "too long, a suite": "x" * 300 + ".yaml",
    "too long, an operator": "x" * 300 + ".py",
    "too deep": "d/" * 3000,
    "below a file": "file/x",
    "a file": "file",
    "a folder": "folder",
    "a folder, by its name a suite": "folder.yaml",
    "a folder, by its name an operator": "folder.py",
    "a link to itself": "loop",
    "a pipe": "pipe",
    "a device": "/dev/null",
}
COMMANDS = [
    ["run", "@"],
    ["run", "--resume", "@"],
    ["crossover", "--resume", "@"],
    ["estimate", "softmax", "--seq-len", "8", "--operators-from", "@"],
    ["crossover", "linformer", "--operators-from", "@"],
    ["show", "@"],
    ["plot", "@"],
    ["compare", "@", "@"],
    ["roofline", "@"],
    ["dispatch", "@"],
    ["reproduce", "kanets", "--runs", "@"],
    ["gate", "quick", "--against", "@"],
    ["gate", "@", "--base", "HEAD"],
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("folder", "folder.yaml", "folder.py"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_what_cannot_be_read_is_told(words: list[str], name: str) -> None:
    result = CliRunner().invoke(app, [name if word == "@" else word for word in words])
    assert isinstance(result.exception, BadInput), result.exception
    assert len(str(result.exception)) < 600 + 3 * len(name)


@pytest.mark.parametrize(
    "name", ["x" * 300 + ".py", "d/" * 3000 + "x.py", "folder.py", "loop.py", "a\0.py", "", "pipe"]
)
def test_operators_from_of_a_suite_names_files(here: Path, name: str) -> None:
    (here / "loop.py").symlink_to("loop.py")
    text = f'operators_from: ["{name}"]\noperators: [softmax]\nsweep: [{{seq_len: 8}}]'.replace("\0", "\\0")
    with pytest.raises(BadInput, match="operators_from"):
        from_text(text, "s.yaml", here)


@pytest.mark.parametrize("verb", ["show", "plot", "dispatch", "run --resume", "crossover --resume", "merge --out new"])
def test_a_folder_that_may_not_be_looked_into_is_not_called_one_that_is_no_run(
    here: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = os.stat

    def refused(path: Any, **more: Any) -> os.stat_result:
        if str(path).startswith("folder/"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return look(path, **more)

    monkeypatch.setattr(os, "stat", refused)
    result = CliRunner().invoke(app, [*verb.split(), "folder"])
    assert isinstance(result.exception, BadInput), result.exception
    assert "cannot be read: Permission denied" in str(result.exception)


def test_a_folder_below_results_that_cannot_be_looked_for_can_be_refused(here: Path) -> None:
    (here / "results").mkdir()
    with pytest.raises(BadInput, match=r"cannot be written: File name too long\. Choose a writable place: --out"):
        journal.create(default_folder("x" * 300), "", {})


STORES: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    "run": (lambda path: journal.create(path, "", {}).close(), {"folder", "folder.yaml", "folder.py"}),
    "report": (lambda path: files.check_place(path, "--report"), {"file"}),
}
"""What writes there, and the names that it may take: an empty folder, a file, or what makes way for one."""


@pytest.mark.parametrize("name", [name for name in NAMES.values() if name != "/dev/null"])
@pytest.mark.parametrize("kind", STORES)
def test_what_cannot_be_written_is_told(here: Path, name: str, kind: str) -> None:
    store, good = STORES[kind]
    before = {path.name for path in here.iterdir()}
    if name in good:
        store(here / name)
    else:
        with pytest.raises(BadInput, match=r"cannot be written|is not empty|a link") as caught:
            store(here / name)
        assert str(here / name) in str(caught.value)
    assert {path.name for path in here.iterdir()} == before


def test_a_file_that_can_be_written_is_left_as_it_was(here: Path) -> None:
    (here / "file").write_text("x")
    files.check_place(here / "file", "--report")
    files.check_place(here / "new" / "file", "--report")
    assert (here / "file").read_text() == "x"
    assert not (here / "new" / "file").exists()


@pytest.mark.parametrize("option", ["--report", "--junit"])
def test_what_a_long_command_is_to_write_is_looked_at_first(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnbench.measure.gate.between_revisions", lambda *_: pytest.fail("it began to measure"))
    result = CliRunner().invoke(app, ["gate", "quick", "--base", "HEAD", option, "folder"])
    assert isinstance(result.exception, BadInput), result.exception
    assert f"Name another file: {option}" in str(result.exception)
