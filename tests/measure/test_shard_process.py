"""A shard's process: begun, continued, set aside, ended early; without measuring anything."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attnbench import files
from attnbench.measure import shard_process
from attnbench.measure.engines import Task


@pytest.fixture
def task(tmp_path: Path) -> Task:
    shards, log = tmp_path / "shards", tmp_path / "logs" / "0002.log"
    return Task(2, 8, tmp_path / "tiny.yaml", "cpu", shards / "0002", log, shards / "0002.ended")


def recorded(monkeypatch: pytest.MonkeyPatch, codes: list[int]) -> list[tuple[str, ...]]:
    """The words of every run that is begun, which ends with the next of the codes."""
    calls: list[tuple[str, ...]] = []

    def run(task: Task, words: Sequence[str], *more: Any) -> int:
        calls.append(tuple(words))
        return codes.pop(0)

    monkeypatch.setattr(shard_process, "_run", run)
    return calls


def test_it_is_begun_continued_or_set_aside(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch, [0, 3, 2, 1])
    new, on = ("--shard", "2/8", "--out", str(task.folder)), ("--resume", str(task.folder))
    task.folder.mkdir(parents=True)
    (task.folder / "suite.yaml").write_text("half a beginning")
    assert shard_process.measure(task) == 0
    assert (calls, task.folder.exists()) == ([new], False)
    task.folder.mkdir()
    (task.folder / "visits.jsonl").write_text("what was measured\n")
    assert shard_process.measure(task) == 3
    assert calls[1:] == [on]
    assert shard_process.measure(task) == 1
    assert calls[2:] == [on, new]
    aside = task.folder.with_name("0002.aside-1")
    assert (aside / "visits.jsonl").read_text() == "what was measured\n"
    assert "set aside as 0002.aside-1" in task.log.read_text()


def test_a_disk_that_takes_no_more_sets_nothing_aside(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured there can be continued when there is room."""
    calls = recorded(monkeypatch, [2])
    task.folder.mkdir(parents=True)
    (task.folder / "visits.jsonl").write_text("what was measured\n")

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(files, "replace", full)
    assert shard_process.measure(task) == 2
    assert calls == [("--resume", str(task.folder))]
    assert os.listdir(task.folder.parent) == [task.folder.name]


@pytest.mark.parametrize("stubborn", [False, True])
def test_it_ends_when_it_is_told(task: Task, monkeypatch: pytest.MonkeyPatch, stubborn: bool) -> None:
    task = replace(task, budget="90s" if stubborn else "")
    program = task.suite.with_name("python")
    what = "" if stubborn else "echo stored; exit 130"
    program.write_text(f"#!/bin/sh\ntrap '{what}' TERM\necho begun $*\nwhile :; do sleep 0.05; done\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(shard_process, "LOOKED_EVERY_S", 0.1)
    if stubborn:
        monkeypatch.setattr(shard_process, "GRACE_S", 0.3)
    code = shard_process.measure(task, lambda: task.log.exists() and b"begun" in task.log.read_bytes())
    assert code == (-9 if stubborn else 130)
    words = f"begun -m attnbench run {task.suite} --shard 2/8 --out {task.folder} --device cpu"
    limit = " --budget 90s" if stubborn else ""
    assert task.log.read_text() == f"{words}{limit}\n" + ("" if stubborn else "stored\n")


def test_a_batch_job_marks_what_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attnbench import interrupts
    from attnbench.measure.fleet_folder import Facts, create

    monkeypatch.setattr(interrupts, "heed", lambda: None)
    fleet = create(tmp_path / "fleet", Facts("tiny", "tiny.yaml", 3, 3, "cpu"), {"tiny.yaml": b"name: tiny\n"})
    codes = [1, 1, 130]

    def measure(task: Task) -> int:
        code = codes.pop(0)
        if task.number != 2:
            task.folder.mkdir()
            (task.folder / "visits.jsonl").touch()
        return code

    monkeypatch.setattr(shard_process, "measure", measure)
    assert [shard_process.main([str(fleet.path), str(number)]) for number in (1, 2, 3)] == [1, 1, 130]
    assert [fleet.ended(fleet.task(number, fleet.facts())) for number in (1, 2, 3)] == [1, None, None]
    assert sorted(os.listdir(fleet.path / "shards")) == ["0001", "0001.ended", "0003"]
