"""attnbench fleet on the command line, with an engine that hands out shards measured before; Ray and Slurm are in
tests/fleet."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from attnbench.__main__ import app
from attnbench.analysis.run import read_run
from attnbench.errors import BadInput
from attnbench.measure import engines, open_run
from attnbench.measure.engines import Connection, News, Task
from attnbench.measure.fleet_folder import FleetFolder
from attnbench.measure.run_request import measure
from attnbench.measure.shard_process import USAGE
from attnbench.outputs._progress import Words
from attnbench.plan import suite as suites
from attnbench.plan.shards import Shard
from attnbench.plan.time_budget import shard_s
from attnbench.progress import Leased
from tests.running import Silent, made_once, without_forecast, without_rates
from tests.tiny_suite import TINY

SUITE = TINY.replace("rounds: 2", "rounds: 1")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(SUITE)
    return path


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both shards of the suite, measured."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            without_forecast(patch)
            without_rates(patch)
            for number in (1, 2):
                text = suites.from_text(SUITE, "tiny.yaml", folder)
                measure(open_run.begin(text, "cpu", folder / str(number), Shard(number, 2)), Silent())

    return made_once(tmp_path_factory, "fleet-shards", make)


@dataclass
class Stored:
    """An engine whose shards are measured already.

    Attributes:
        before: called with each shard first: returns what became of it instead, or raises.
        leased: the shards of every lease.
    """

    measured: Path
    before: Callable[[Task], News | None] = lambda task: None
    most: int | None = None
    accelerated: bool = False
    at_once: int | None = None
    leased: list[list[int]] = field(default_factory=list)
    budgets: list[str] = field(default_factory=list)
    ended: int = 0

    def lease(self, tasks: Sequence[Task]) -> Generator[Sequence[News], None, None]:
        self.leased.append([task.number for task in tasks])
        self.budgets = [task.budget for task in tasks]
        try:
            yield [News(task.number, "running", f"host {task.number}", 0) for task in tasks]
            for task in tasks:
                instead = self.before(task)
                if instead is None:
                    assert not task.mark.exists()
                    shutil.copytree(self.measured / str(task.number), task.folder, dirs_exist_ok=True)
                    task.mark.write_text("0\n")
                yield [instead or News(task.number, "ended", code=0)]
        finally:
            self.ended += 1


@pytest.fixture
def pool(measured: Path, monkeypatch: pytest.MonkeyPatch) -> Stored:
    stored = Stored(measured)

    @contextlib.contextmanager
    def connect(name: str, request: Connection) -> Iterator[Stored]:
        yield stored

    monkeypatch.setattr(engines, "connect", connect)
    return stored


def fleet(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["fleet", "--on", "ray", *map(str, words)])


def test_shards_become_one_run(pool: Stored, suite: Path, tmp_path: Path) -> None:
    done = fleet(suite, "--out", tmp_path / "fleet")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "fleet")
    assert "eager softmax" in done.stdout
    assert done.stderr.splitlines()[0] == "ray: 0 devices · 0 of 2 blocks · 2 shards waiting"
    assert "joined: 2 shards" in done.stderr
    visits = read_run(tmp_path / "fleet").visits
    assert len(visits) == 8
    assert CliRunner().invoke(app, ["show", str(tmp_path / "fleet")]).exit_code == 0
    again = fleet("--resume", tmp_path / "fleet")
    assert (again.exit_code, pool.leased) == (0, [[1, 2]])
    assert fleet(suite, "--resume", tmp_path / "fleet").exit_code == 0
    assert pool.ended == 1


def test_a_shard_that_is_lost_is_leased_again(pool: Stored, suite: Path, tmp_path: Path) -> None:
    lost = [News(2, "failed", code=-9), News(2, "failed", reason="its node was lost")]
    pool.before = lambda task: lost.pop() if task.number == 2 and lost else None
    done = fleet(suite, "--out", tmp_path / "fleet")
    assert done.exit_code == 0, done.stderr
    assert pool.leased == [[1, 2], [2], [2]]
    assert "shard 2/2 failed: its node was lost" in done.stderr
    assert "shard 2/2 failed: attnbench run ended with -9" in done.stderr


def test_one_that_is_lost_every_time_is_left(pool: Stored, suite: Path, tmp_path: Path) -> None:
    pool.before = lambda task: News(2, "failed", code=-9) if task.number == 2 else None
    done = fleet(suite, "--out", tmp_path / "fleet")
    assert (done.exit_code, pool.leased) == (1, [[1, 2], [2], [2]])
    told = done.stderr.splitlines()[-1]
    again = f"continue with: attnbench fleet --on ray --resume {tmp_path / 'fleet'}"
    assert told == f"1 shard to be measured; what was measured is kept; {again}"
    assert len(read_run(tmp_path / "fleet").visits) == 4


def test_what_cannot_be_measured_at_all_ends_soon(pool: Stored, suite: Path, tmp_path: Path) -> None:
    def refused(task: Task) -> News:
        task.log.write_text("a warning\nattnbench: --device cuda: torch finds no GPU.\n")
        return News(task.number, "failed", code=USAGE)

    pool.before = refused
    done = fleet(suite, "--out", tmp_path / "fleet")
    assert (done.exit_code, pool.leased) == (2, [[1, 2]])
    assert "shard 1/2 failed: attnbench run ended with 2; it last printed: attnbench: --device cuda" in done.stderr
    assert done.stdout == f"{tmp_path / 'fleet'}\n"


def test_an_interrupt_keeps_what_is_measured(pool: Stored, suite: Path, tmp_path: Path) -> None:
    def interrupted(task: Task) -> None:
        if task.number == 2:
            raise KeyboardInterrupt

    pool.before = interrupted
    done = fleet(suite, "--out", tmp_path / "fleet")
    assert (done.exit_code, pool.ended) == (130, 1)
    assert "eager softmax" in done.stdout
    pool.before = lambda task: None
    done = fleet("--resume", tmp_path / "fleet")
    assert (done.exit_code, pool.leased) == (0, [[1, 2], [2]]), done.stderr
    assert len(read_run(tmp_path / "fleet").visits) == 8


def test_what_a_budget_cut_is_measured_by_a_resumed_fleet(pool: Stored, suite: Path, tmp_path: Path) -> None:
    def cut(task: Task) -> News | None:
        if task.number == 1:
            return None
        shutil.copytree(pool.measured / "2", task.folder)
        lines = (task.folder / "visits.jsonl").read_text().splitlines(keepends=True)
        (task.folder / "visits.jsonl").write_text("".join(lines[:-1]))
        task.mark.write_text("0\n")
        return News(2, "ended", code=0)

    pool.before = cut
    done = fleet(suite, "--out", tmp_path / "fleet", "--budget", "10s")
    assert (done.exit_code, pool.leased) == (0, [[1, 2]]), done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("the budget left out a part of 1 shard; measure it with: attnbench fleet ")
    assert last.endswith(f"--on ray --resume {tmp_path / 'fleet'} --budget 10s")
    assert f"(attnbench fleet --resume {tmp_path / 'fleet'} --on …)" in done.stderr
    assert len(read_run(tmp_path / "fleet").visits) == 7
    budgets = pool.budgets
    pool.before = lambda task: None
    done = fleet("--resume", tmp_path / "fleet", "--budget", "60s", "--devices", "1")
    assert (done.exit_code, pool.leased) == (0, [[1, 2], [2]]), done.stderr
    assert "missing" not in done.stderr
    assert "budget" not in done.stderr
    assert len(read_run(tmp_path / "fleet").visits) == 8
    # Two at once may take the whole budget each, one after the other a half; and the start of a shard, always.
    start_s = shard_s(0.0, 1.0, 1, 1)
    assert [float(text[:-1]) for text in budgets] == pytest.approx([10 + start_s] * 2, abs=2)
    assert [float(text[:-1]) for text in pool.budgets] == pytest.approx([30 + start_s], abs=6)
    assert fleet("--resume", tmp_path / "fleet").exit_code == 0
    assert pool.leased == [[1, 2], [2]]


def test_shards_that_do_not_belong_together_are_kept(pool: Stored, suite: Path, tmp_path: Path) -> None:
    def other(task: Task) -> None:
        if task.number == 2:
            environment = task.folder.parent / "0001" / "environment.json"
            environment.write_text(environment.read_text().replace('"threads": ', '"threads": 7'))

    pool.before = other
    done = fleet(suite, "--out", tmp_path / "fleet")
    assert done.exit_code == 2
    assert "attnbench: the shards are not joined: " in done.stderr
    assert "differ in threads" in done.stderr
    assert done.stdout == f"{tmp_path / 'fleet'}\n"
    assert len(FleetFolder(tmp_path / "fleet").measured()) == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no SUITE was given"),
        (["quick", "--out", "a", "--resume", "b"], "--resume and --out"),
        (["quick", "--option", "partition"], "--option partition: allowed: NAME=VALUE"),
        (["quick", "--resume", "nowhere"], "not the folder of a fleet, it has no fleet.json"),
        (
            ["--rounds", "2", "--resume", "nowhere"],
            "--rounds --resume nowhere: a fleet measures what it was begun with",
        ),
        (["nosuch"], "no suite is named 'nosuch'"),
        (["quick", "--shards", "1000"], "has 42 units to deal"),
        (["quick", "--shards", "0"], "allowed: 1 to 42"),
        (["quick", "--shards", "40"], "--shards 40: ray takes no more than 20 here"),
        (["quick", "--out", "full"], "--out full: is not empty"),
    ],
)
def test_bad_usage_is_one_paragraph(
    pool: Stored, words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.most = 20
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").touch()
    done = fleet(*words)
    assert isinstance(done.exception, BadInput)
    assert told in str(done.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
    assert pool.leased == []


def test_a_fleet_goes_on_with_what_it_was_begun_with(pool: Stored, suite: Path, tmp_path: Path) -> None:
    place = tmp_path / "fleet"
    assert fleet(suite, "--out", place).exit_code == 0
    for words, told in (
        (("quick",), "is not what this fleet measures (tiny, "),
        ((suite, "--operator", "softmax"), "is not what this fleet measures"),
        (("--shards", "1"), "--shards was 2 and cannot be 1 now"),
        (("--device", "cuda"), "--device was cpu and cannot be cuda now"),
    ):
        assert told in str(fleet(*words, "--resume", place).exception)
    with FleetFolder(place).locked():
        assert "another `attnbench fleet` is at work here" in str(fleet("--resume", place).exception)
    environment = place / "shards" / "0001" / "environment.json"
    stored = json.loads(environment.read_text())
    stored["code"]["files"]["attnbench/units.py"] = "0" * 12
    environment.write_text(json.dumps(stored))
    refused = str(fleet("--resume", place).exception)
    assert refused.startswith(f"--resume {place}: since the run was begun ")
    assert "attnbench/units.py" in refused
    (place / "fleet.json").write_text('{"version": 2}')
    assert "fleet.json: not what attnbench" in str(fleet("--resume", place).exception)


def test_own_operators_are_sent_and_named_again(pool: Stored, suite: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise SystemExit\n")
    suite.write_text(SUITE + "operators_from: [mine.py]\n")

    def refused(task: Task) -> News:
        assert (task.suite.parent / "mine.py").read_text() == "raise SystemExit\n"
        return News(task.number, "failed", code=USAGE)

    pool.before = refused
    place = tmp_path / "fleet"
    assert fleet(suite, "--out", place).exit_code == 2
    assert "Name the suite again: attnbench fleet SUITE --resume" in str(fleet("--resume", place).exception)
    (tmp_path / "mine.py").write_text("\n")
    assert "is not what this fleet measures" in str(fleet(suite, "--resume", place).exception)
    (tmp_path / "apart").mkdir()
    moved = tmp_path / "apart" / "moved.yaml"
    moved.write_text(SUITE + "operators_from: [../mine.py]\n")
    assert "mine.py is outside the suite's folder" in str(fleet(moved, "--out", tmp_path / "b").exception)


def test_progress_in_words() -> None:
    shown: list[str] = []
    kept: list[str] = []
    clock = iter(range(100))
    words = Words(shown.append, kept.append, lambda: float(next(clock)))
    state = {"engine": "ray", "devices": 3, "hosts": 2, "total": 42}
    words.leased(Leased(**state, blocks=0, waiting=11, left_s=None))
    words.leased(Leased(**state, blocks=7, waiting=0, left_s=125.0))
    assert kept == ["ray: 3 devices on 2 hosts · 0 of 42 blocks · 11 shards waiting"]
    assert shown == ["ray: 3 devices on 2 hosts, about 2 min 04 s left · 7 of 42 blocks"]
