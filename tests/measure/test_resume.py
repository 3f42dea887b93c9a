"""kill -9 of a worker and of a whole run: no finished visit is lost, none is measured twice, no orphan is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from attnbench.analysis.run import read_run
from attnbench.contract import CONTRACT
from attnbench.errors import BadInput
from attnbench.measure import open_run
from attnbench.measure.open_run import begin, device_like, resume, stored_search, stored_suite
from attnbench.measure.runner import Runner
from attnbench.plan import suite as suites
from attnbench.plan.settings import Measure
from attnbench.problem import Cell
from attnbench.store import journal
from attnbench.store.records import SAMPLES, VISITS
from tests.running import Silent, faulty, lean, plan, without_forecast, without_rates
from tests.stored import folder as stored_folder
from tests.stored import visit

SUITE = """
name: small
operators_from: [tests.injected]
operators: [faulty, softmax, linformer]
baseline: softmax
impls: [reference, sdpa]
sweep: [{seq_len: [16, 32]}]
problem: {heads: 2, channels: 16}
measure: {rounds: 2, crossover_precision: null, min_turns: 2, max_turns: 4}
limits: {memory: 1GiB, cell_timeout: 60s, budget: 10m}
"""
VISITS_OF_SUITE = 8 * 3
ROUNDS = Measure(rounds=2, crossover_precision=None, min_turns=2, max_turns=2)


CELLS = [faulty(impl, n) for impl in ("reference", "honest") for n in (16, 32)]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, int]]]:
    """The folder of a finished run whose worker was killed in a visit, and that visit's key and round."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    victims: list[tuple[str, int]] = []

    def begin(cell: Cell, round: int) -> None:
        worker = runner.workers.measuring
        if round == 1 and worker is not None and not victims:
            victims.append((cell.key, round))
            os.kill(worker.process.pid, signal.SIGKILL)
            worker.process.wait()

    opened = journal.create(folder, "name: made\n", {})
    runner = Runner(plan(CELLS, measure=ROUNDS), opened, Silent(begin))
    with pytest.MonkeyPatch.context() as patch:
        without_forecast(patch)
        runner.run()
    opened.close()
    return folder, victims


def test_kill_9_of_a_worker_costs_its_visit_only(killed: tuple[Path, list[tuple[str, int]]]) -> None:
    folder, victims = killed
    run = read_run(folder)
    assert len(run.visits) == len(CELLS) * 3
    bad = run.visits[run.visits["status"] != "ok"]
    assert list(zip(bad["key"], bad["round"], strict=True)) == victims
    assert "SIGKILL" in bad["reason"].iloc[0]
    row = run.results.set_index("key").loc[victims[0][0]]
    assert (row["status"], row["rounds"]) == ("ok", 1)
    assert run.visits[run.visits["round"] == 1]["process"].nunique() == 2


def lines(folder: Path) -> list[str]:
    path = folder / VISITS
    return path.read_text().splitlines() if path.is_file() else []


def command(*arguments: str | Path) -> list[str]:
    return lean("run", *arguments, "--device", "cpu")


def started(folder: Path, suite: Path, visits: int) -> subprocess.Popen[str]:
    """A run that has stored at least so many visits and goes on."""
    process = subprocess.Popen(
        command(suite, "--out", folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while len(lines(folder)) < visits:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    return process


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SUITE)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="looks for orphans in /proc")
def test_kill_9_of_the_whole_run_loses_nothing_and_leaves_no_orphan(tmp_path: Path, suite: Path) -> None:
    folder = tmp_path / "run"
    process = started(folder, suite, visits=11)
    workers = children(process.pid)
    assert workers
    process.kill()
    process.wait()
    before = lines(folder)
    deadline = time.monotonic() + 60
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "a worker outlived its run"
        time.sleep(0.01)
    (folder / VISITS).open("a").write('{"key": "softm')
    done = subprocess.run(command(suite, "--resume", folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after = lines(folder)
    assert after[: len(before)] == before
    pairs = Counter((visit["key"], visit["round"]) for visit in map(json.loads, after))
    assert len(pairs) == VISITS_OF_SUITE
    assert set(pairs.values()) == {1}
    run = read_run(folder)
    counted = run.samples.groupby(["key", "round"]).size()
    timed = run.visits[run.visits["round"] > 0].set_index(["key", "round"])["samples"].astype(int)
    assert counted.to_dict() == timed.to_dict()
    assert (folder / SAMPLES).read_text().count("\n") == 1 + int(timed.sum())


def test_ctrl_c_ends_soon_keeps_everything_and_says_how_to_resume(tmp_path: Path, suite: Path) -> None:
    """Soon: before the tenth part of the run, which would take minutes."""
    rounds = 100
    suite.write_text(SUITE.replace("rounds: 2", f"rounds: {rounds}"))
    folder = tmp_path / "run"
    process = started(folder, suite, visits=10)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert out.rstrip().splitlines()[-1] == str(folder)
    assert f"continue with: attnbench run {suite} --resume {folder}" in err, "its own operators must be named again"
    assert "Traceback" not in err
    assert 10 <= len(read_run(folder).visits) < VISITS_OF_SUITE / 3 * rounds / 10
    assert (folder / "results.csv").is_file()


def test_a_finished_run_has_nothing_to_resume(killed: tuple[Path, list[tuple[str, int]]]) -> None:
    folder, _ = killed
    before = (folder / VISITS).read_text()
    opened = journal.resume(folder)
    runner = Runner(plan(CELLS, measure=ROUNDS), opened, progress := Silent())
    runner.run()
    opened.close()
    assert (folder / VISITS).read_text() == before
    assert not [stage for stage, visits, _ in progress.stages if visits == 0]
    assert not runner.workers.start_s


def test_another_suite_or_machine_is_refused(tmp_path: Path, suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: what is raised as BadInput ends a command with exit code 2."""
    folder = tmp_path / "run"
    monkeypatch.chdir(Path(__file__).parents[2])
    without_rates(monkeypatch)
    begun = begin(suites.load(str(suite)), "cpu", folder)
    begun.journal.close()
    (folder / VISITS).write_text(
        visit(begun.plan.cells[0]).line().replace('"contract":"1"', f'"contract":"{begun.plan.contract}"')
    )
    other = tmp_path / "other.yaml"
    other.write_text(SUITE.replace("[16, 32]", "[16, 64]"))

    def refused(given: Path) -> str:
        with pytest.raises(BadInput) as refusal:
            resume(suites.load(str(given)), "cpu", folder)
        return str(refusal.value)

    resume(suites.load(str(suite)), "cpu", folder).journal.close()
    assert "not the suite that this run measures" in refused(other)
    other.write_text(SUITE.replace("[16, 32]", "[64]"))
    edited, kept = suites.load(str(other)), (folder / "suite.yaml").read_text()
    (folder / "suite.yaml").write_text(edited.text)
    assert "suite.yaml or an operator's parameters have changed since" in refused(other)
    (folder / "suite.yaml").write_text(kept)
    stored = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps({**stored, "cpu": "Another CPU"}))
    assert "Another CPU" in refused(suite)
    (folder / "environment.json").write_text(json.dumps(stored))
    text = (folder / VISITS).read_text()
    (folder / VISITS).write_text(text.replace(f'"contract":"{CONTRACT} ', '"contract":"0 '))
    assert (folder / VISITS).read_text() != text
    assert "contract" in refused(suite)


@pytest.mark.parametrize("command", ["run", "crossover"])
def test_a_run_of_an_earlier_contract_is_refused_as_such_whatever_its_suite_says(tmp_path: Path, command: str) -> None:
    folder = stored_folder(tmp_path / "run", [visit()])
    (folder / "suite.yaml").write_text(SUITE.replace("min_turns", "min_samples"))
    with pytest.raises(BadInput, match=rf"measured by contract '1' .*, now it is '{CONTRACT}'\. Start a new run"):
        stored_suite(folder) if command == "run" else stored_search(folder, ())


def test_a_folder_that_is_none_is_said_to_be_none_whatever_suite_is_named(tmp_path: Path, suite: Path) -> None:
    for named in (lambda: stored_suite(tmp_path / "none"), lambda: resume(suites.load(str(suite)), "cpu", tmp_path)):
        with pytest.raises(BadInput, match=r"not a run folder, it has no suite\.yaml"):
            named()


def test_where_the_device_of_a_stored_run_is_not_the_message_names_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert device_like(tmp_path, {"device": "cpu"}, "auto", "Go there") == "cpu"
    with pytest.raises(BadInput, match=r"environment\.json: device: 'tpu'; allowed: cpu, cuda"):
        device_like(tmp_path, {"device": "tpu"}, "auto", "Go there")
    monkeypatch.setattr(open_run, "device_of", lambda name: SimpleNamespace(why_not=lambda: "there is none"))
    with pytest.raises(BadInput) as error:
        device_like(tmp_path, {"device": "cuda"}, "auto", "Go there")
    assert str(error.value) == f"{tmp_path}: it was measured on cuda, and here there is none. Go there."
    assert device_like(tmp_path, {"device": "cuda"}, "cpu", "Go there") == "cpu"
