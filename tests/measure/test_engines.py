"""What engines say without their clusters; with them: tests/fleet."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from attnbench.errors import BadInput
from attnbench.measure import engines
from attnbench.measure.engines import Connection, Task, ray, slurm


def refusal(engine: str, request: Connection) -> str:
    with pytest.raises(BadInput) as refused, engines.connect(engine, request):
        pass
    return str(refused.value)


def test_what_is_missing_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "installed", lambda name: False)
    assert refusal("ray", Connection()).endswith("Install the extra: pip install 'attnbench[fleet]'.")
    monkeypatch.setattr(ray, "installed", lambda name: True)
    for address in ("127.0.0.1:1", "head"):
        assert "no Ray cluster answers there" in refusal("ray", Connection(address))
    assert "ray has no such option (did you mean 'num_cpus'?)" in refusal("ray", Connection(options={"num_cpu": "1"}))
    assert "'two' is no number" in refusal("ray", Connection(options={"num_cpus": "two"}))
    monkeypatch.setenv("PATH", "/nowhere")
    assert "sbatch, squeue, scancel, scontrol, sinfo not found" in refusal("slurm", Connection())
    assert "--address head: Slurm has none" in refusal("slurm", Connection("head"))


def test_a_slurm_that_does_not_answer_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in slurm.COMMANDS:
        (tmp_path / name).write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert "--on slurm: sinfo: Unable to contact slurm controller. See to that" in refusal("slurm", Connection())


def test_numbers_of_an_array() -> None:
    assert slurm._ranges([1, 3, 4, 5, 9]) == "1,3-5,9"
    assert slurm._ranges([2]) == "2"


def test_news_of_a_shard_are_its_mark_its_job_or_that_both_are_gone(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    place = tmp_path / "shards" / "0003"
    task = Task(3, 4, tmp_path / "s.yaml", "cpu", place, tmp_path / "log", place.with_suffix(".ended"))
    gone: dict[int, float] = {}
    states = [slurm._news(task, queued, gone, {}) for queued in ({3: (False, "")}, {3: (True, "n1")}, {})]
    assert [(news.state, news.host) for news in states] == [("waiting", ""), ("running", "n1"), ("waiting", "")]
    gone[3] -= slurm.SETTLE_S
    assert slurm._news(task, {}, gone, {}).state == "failed"
    assert slurm._news(task, {3: (False, "")}, gone, {}).state == "waiting"
    assert gone == {}
    task.mark.write_text("3\n")
    ended = slurm._news(task, {3: (True, "n1")}, gone, {})
    assert (ended.state, ended.code) == ("ended", 3)


def test_what_ray_prints_is_told_in_a_line_and_keeps_out_of_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    with contextlib.redirect_stdout(ray.Messages(lines.append)):
        print("\x1b[33m(raylet)\x1b[0m Raylet is terminated.\n    [state-dump] 1 total\n")
        print("x" * 1000)
    assert lines[0] == "ray: (raylet) Raylet is terminated."
    assert [len(line) < 210 for line in lines] == [True, True]
    assert capsys.readouterr().out == ""
