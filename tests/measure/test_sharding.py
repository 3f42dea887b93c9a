"""A suite measured as two shards, one of them interrupted, is the suite measured in one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from attnbench.analysis.merge.joining import join
from attnbench.analysis.merge.writing import write
from attnbench.analysis.run import Run, read_run
from attnbench.errors import BadInput
from attnbench.measure.open_run import Session
from attnbench.measure.run_request import RunRequest, measure
from attnbench.measure.sharding import expected_of_shards
from attnbench.plan import suite as suites
from attnbench.plan.time_budget import START_S, shard_s
from attnbench.problem import Cell, block_of
from attnbench.registry import metrics
from attnbench.store.columns import result_columns
from attnbench.store.reading import read_visits
from attnbench.store.records import ENVIRONMENT
from tests.running import Silent, without_forecast, without_rates

SUITE = """
name: small
operators: [softmax, linear_transformer]
impls: [reference, cuda]
sweep: [{seq_len: [16, 32]}]
problem: {heads: 2, channels: 16}
measure: {rounds: 1, max_rounds: 3, min_turns: 2, max_turns: 2}
"""
OF = 2
UNITS = 2


@pytest.fixture(scope="module")
def lean() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        without_rates(patch)
        without_forecast(patch)
        yield


def opened(folder: Path, **asked: object) -> tuple[Session, list[str]]:
    """A session of the suite, new or to continue, and what it warns of."""
    warnings: list[str] = []
    place = {"resume": folder} if folder.exists() else {"out": folder}
    suite = suites.from_text(SUITE, "small.yaml", Path())
    return RunRequest(suite, device="cpu", **place, **asked).open(warnings.append), warnings  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, lean: None) -> Path:
    """The folders `whole`, `s1` and `s2`, of which the last was interrupted as its first round began."""
    base = tmp_path_factory.mktemp("sharding")
    measure(opened(base / "whole", rounds=1)[0], Silent())

    def interrupt(cell: Cell, round: int) -> None:
        if round:
            raise KeyboardInterrupt

    for number in range(1, OF + 1):
        session, warnings = opened(base / f"s{number}", shard=f"{number}/{OF}")
        assert any("a shard makes the suite's 1 round, and adds none" in text for text in warnings)
        if number < OF:
            assert measure(session, Silent()) is None
            continue
        with pytest.raises(KeyboardInterrupt):
            measure(session, Silent(interrupt))
        with pytest.raises(BadInput, match=r"missing: 1 of the 1 unit of .*s2"):
            join([base / f"s{each}" for each in range(1, OF + 1)])
        assert measure(opened(base / "s2")[0], Silent()) is None, "it continues as the shard that it is"
    return base


def exact(run: Run) -> dict[tuple[str, str], object]:
    """By key and column, all that repeats from run to run."""
    timed = {name for metric in metrics().values() if metric.timed for name in metric.columns}
    varying = timed | {"samples", "process_memory_bytes"}
    rows = run.results.set_index("key")
    names = [name for name in result_columns() if name in rows and name not in varying]
    return {(key, name): str(rows.loc[key, name]) for key in rows.index for name in names}


def test_merged_shards_are_the_run_in_all_that_repeats(runs: Path) -> None:
    write(join([runs / f"s{number}" for number in (2, 1)]), runs / "joined")
    whole, run = read_run(runs / "whole"), read_run(runs / "joined")
    assert len(exact(whole)) > 50
    assert exact(run) == exact(whole)
    unable = [{v.key for v in read_visits(runs / name) if v.cause == "unsupported"} for name in ("whole", "s1", "s2")]
    assert unable[0], "a series that cannot run here is said so once"
    assert len(unable[1] | unable[2]) == 2 * len(unable[0]), "the negative control: shards say it at each size"
    assert run.suite_text == whole.suite_text
    other = (runs / "s1" / "visits.jsonl").read_text()
    (runs / "s1" / "visits.jsonl").write_text(other.replace('"relative_error":', '"relative_error":1'))
    write(join([runs / f"s{number}" for number in (1, 2)]), runs / "spoiled")
    assert exact(read_run(runs / "spoiled")) != exact(whole), "one figure of one check is another"
    (runs / "s1" / "visits.jsonl").write_text(other)


def test_every_unit_is_measured_once_and_its_whole_block_in_one_process(runs: Path) -> None:
    units: dict[tuple[str, int], set[tuple[int, int]]] = {}
    for number in range(1, OF + 1):
        visits = read_run(runs / f"s{number}").visits
        for key, round, process in visits[visits["round"] > 0][["key", "round", "process"]].itertuples(index=False):
            units.setdefault((block_of(key), round), set()).add((number, process))
        checked = {block_of(key) for key in visits[visits["round"] == 0]["key"]}
        stored = json.loads((runs / f"s{number}" / ENVIRONMENT).read_text())["shard"]["units"]
        assert checked == {block for block, _ in stored}, "a shard checks what it measures, and nothing else"
    assert len(units) == UNITS
    assert {len(places) for places in units.values()} == {1}
    ids = {read_run(runs / name).visits["device_id"].iloc[-1] for name in ("whole", "s1", "s2")}
    assert len(ids) == 1
    assert len(ids.pop()) == 12


def test_a_run_goes_on_with_the_budget_that_it_was_begun_with(tmp_path: Path) -> None:
    begun = RunRequest(suites.from_text(SUITE, "small.yaml", Path()), device="cpu", budget="90s", rounds=1)
    text = begun.choose()[0].text
    (tmp_path / "suite.yaml").write_text(text)
    for budget, budget_s in ((None, 90), ("30s", 30)):
        again = replace(begun, budget=budget, resume=tmp_path).choose()[0]
        assert (again.text, again.limits.budget_s) == (text, budget_s)
    assert replace(begun, budget=None, rounds=2, resume=tmp_path).choose()[0].text != text


def test_a_shard_has_its_part_of_a_budget_and_the_suite_stays_the_same() -> None:
    suite = suites.from_text(SUITE, "small.yaml", Path())
    request = RunRequest(suite, device="cpu", budget="90s", rounds=1)
    whole, shard = request.choose()[0], replace(request, shard="1/2").choose()[0]
    assert (whole.limits.budget_s, shard.limits.budget_s) == (90, 90)
    assert "budget" in whole.text
    assert "budget" not in shard.text
    (alone,) = expected_of_shards(suite, "cpu", 1)
    assert (alone.share, alone.rounds) == (pytest.approx(1.0), 1)
    shares = [each.share for each in expected_of_shards(suite, "cpu", OF)]
    assert sum(shares) == pytest.approx(1.0), "no block is in two rounds, so none is checked twice"
    three = replace(suite, measure=replace(suite.measure, rounds=3))
    assert sum(each.share for each in expected_of_shards(three, "cpu", 6)) > 1.1
    start_s = shard_s(0.0, 1.0, 1, 1)
    assert start_s > START_S
    assert [shard_s(60.0, 0.25, devices, 1) - start_s for devices in (1, 2, 4, 8)] == [15, 30, 60, 60]


def test_a_run_stays_the_part_that_it_is(runs: Path) -> None:
    for name, shard, reason in (("s1", "2/2", "it is shard 1/2"), ("whole", "1/2", "it is the whole suite")):
        with pytest.raises(BadInput, match=reason):
            opened(runs / name, shard=shard)
    with pytest.raises(BadInput, match=r"5 shards, but the suite has 2 units"):
        opened(runs / "new", shard="1/5")
    write(join([runs / "whole"]), runs / "alone")
    with pytest.raises(BadInput, match=r"`attnbench merge` joined it"):
        opened(runs / "alone", rounds=1)
