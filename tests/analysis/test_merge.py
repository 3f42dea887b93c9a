"""Runs and shards joined into one run, of folders made by hand; what does not belong together is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.analysis.merge.joining import join
from attnbench.analysis.merge.writing import write
from attnbench.analysis.run import Run, read_run
from attnbench.analysis.summary import summarise
from attnbench.errors import BadInput
from attnbench.outputs._answer import view
from attnbench.outputs._export import machine
from attnbench.problem import Cell, block_of
from attnbench.store import privacy
from attnbench.store.records import ENVIRONMENT, SAMPLES, SEARCH, SUITE, VISITS, Sample, Visit
from attnbench.store.shards import StoredShard
from tests.stored import cell, folder, timed, visit

CONTRACT = "3 rounds=2-2 precision=none turns=2-2 time=0.5s"
SIZES = (32, 64)
TEXT = """name: small
operators: [{operators}]
sweep: [{{seq_len: [32, 64]}}]
measure: {{rounds: 2, crossover_precision: null}}
"""
FACTS: dict[str, Any] = {
    "attnbench": "0.1.0", "torch": "2.13.0", "python": "3.11.7", "device": "cpu", "cpu": "AMD EPYC", "threads": 1,
    "system": "Linux", "looks": [2], "code": {"files": {"attnbench/worker.py": "ab"}, "libraries": {"torch": "2.13.0"}},
    "exact": ["softmax {}"], "stated": {"softmax {}": {"time": "n^2", "memory": "n^2"}}, "seed": 1,
    "rates": {"copy_bytes_per_s": 1e10},
}  # fmt: skip


def cells(operators: Iterable[str]) -> list[Cell]:
    return [cell(name, seq_len=n) for n in SIZES for name in operators]


def seconds(of: Cell, round: int, device: str) -> float:
    """A time that no other visit has."""
    return 1e-6 * (of.problem.seq_len + len(of.operator) + round / 10 + int(device, 16) / 1000)


def visits(of: Sequence[Cell], units: Iterable[tuple[str, int]], device: str) -> list[Visit]:
    """The check of each cell, and its timed visits in some units."""
    taken = list(units)
    checks = [
        visit(each, 0, metrics={"flops": each.problem.seq_len, "peak_memory_bytes": 8}, order=i)
        for i, each in enumerate(of)
    ]
    rounds = [timed(each, n, seconds(each, n, device)) for b, n in taken for each in of if block_of(each.key) == b]
    return [replace(each, contract=CONTRACT, device_id=device, threads=1) for each in [*checks, *rounds]]


def units(of: Iterable[Cell]) -> list[tuple[str, int]]:
    return sorted({(block_of(each.key), number) for each in of for number in (1, 2)})


def stored(
    place: Path,
    operators: Sequence[str] = ("softmax", "local"),
    device: str = "a1",
    shard: tuple[int, int] | None = None,
    change: Callable[[list[Visit]], list[Visit]] = list,
    **facts: Any,
) -> Path:
    """A run of some operators, or a shard of one: unit i of 4 is in shard 1 + i % of."""
    every = units(cells(operators))
    mine = every if shard is None else every[shard[0] - 1 :: shard[1]]
    measured = [each for each in cells(operators) if block_of(each.key) in {block for block, _ in mine}]
    made = change(visits(measured, mine, device))
    samples = [Sample(v.key, v.round, v.process, 0, "wall", v.metrics["wall_time_s"]) for v in made if v.samples]
    folder(place, made, samples)
    (place / SUITE).write_text(TEXT.format(operators=", ".join(operators)))
    part = {} if shard is None else {"shard": StoredShard((shard[0],), shard[1], mine, len(every)).stored()}
    environment = {**FACTS, "device_id": device, "started": f"2026-01-0{shard[0] if shard else 1}", **part, **facts}
    (place / ENVIRONMENT).write_text(json.dumps(environment))
    return place


def joined(tmp_path: Path, parts: Sequence[Path], *, partial: bool = False, name: str = "joined") -> Run:
    write(join(parts, partial=partial), tmp_path / name)
    return read_run(tmp_path / name)


def shards(tmp_path: Path, of: int = 3) -> list[Path]:
    return [stored(tmp_path / f"s{k}", device=f"b{k}", shard=(k, of)) for k in range(1, of + 1)]


def exact(run: Run) -> dict[str, tuple[Any, ...]]:
    rows = run.results.set_index("key")
    return {key: tuple(rows.loc[key, ["status", "flops", "peak_memory_bytes", "rounds"]]) for key in rows.index}


def test_shards_are_the_run_that_they_are_parts_of(tmp_path: Path) -> None:
    whole = read_run(stored(tmp_path / "whole"))
    assert len(join(shards(tmp_path)).notes) == 1, "two rounds of each block are on two devices"
    run = joined(tmp_path, shards(tmp_path))
    assert exact(run) == exact(whole)
    assert run.suite_text == whole.suite_text
    assert list(run.results["key"]) == list(whole.results["key"])
    checks, rounds = (run.visits[(run.visits["round"] > 0) == is_timed] for is_timed in (False, True))
    assert checks["key"].is_unique, "three shards checked the same cells"
    assert set(rounds.groupby(["key", "round"]).size()) == {1}
    assert rounds.groupby("process")["device_id"].nunique().max() == 1, "each part has processes of its own"
    assert rounds["device_id"].nunique() == 3
    assert len(run.samples) == len(rounds)
    assert [part["shard"] for part in run.environment["parts"]] == ["1/3", "2/3", "3/3"]
    assert [part["facts"]["device_id"] for part in run.environment["parts"]] == ["b1", "b2", "b3"]
    assert "device_id" not in run.environment, "there is not one"
    assert "shard" not in run.environment
    summary = summarise(run)
    shown = view(summary)
    assert shown is not None
    assert shown.heading.startswith("On 3 CPUs (AMD EPYC, 1 thread)")
    assert machine(summary)["device_ids"] == ["b1", "b2", "b3"]


def test_a_shard_with_another_figure_does_not_pass_for_the_same(tmp_path: Path) -> None:
    """The negative control of the one above."""
    whole = read_run(stored(tmp_path / "whole"))
    parts = shards(tmp_path)
    for part in parts:
        text = (part / VISITS).read_text()
        (part / VISITS).write_text(text.replace('"flops":64', '"flops":65'))
    assert exact(joined(tmp_path, parts)) != exact(whole)


def test_runs_of_different_operators_are_joined_round_after_round(tmp_path: Path) -> None:
    """Which `show A B` refuses to do."""
    parts = [stored(tmp_path / "a"), stored(tmp_path / "b", ("softmax", "fnet"), "a2", started="2026-01-02")]
    assert any("how the devices differ is not known" in note for note in join(parts).notes)
    run = joined(tmp_path, parts)
    rounds = run.visits[run.visits["round"] > 0]
    by_operator = {name: sorted(set(group["round"])) for name, group in rounds.groupby("operator")}
    assert by_operator == {"softmax": [1, 2, 3, 4], "local": [1, 2], "fnet": [3, 4]}
    assert rounds.groupby("process")["device_id"].nunique().max() == 1
    assert run.suite["operators"] == {"softmax": {}, "local": {}, "fnet": {}}
    assert run.environment["looks"] == [4], "a run of a fixed length: plain 95 %"
    assert run.samples.groupby("key").size().to_dict() == rounds.groupby("key").size().to_dict()
    again = joined(tmp_path, parts[::-1], name="again")
    assert again.visits.equals(run.visits), "in whatever order they are given"
    third = stored(tmp_path / "c", device="a3", started="2026-01-03")
    assert joined(tmp_path, [tmp_path / "joined", third], name="more").results.set_index("key")["rounds"].max() == 6


def test_shards_of_suites_with_other_operators_are_no_shards_of_one(tmp_path: Path) -> None:
    """Of each suite the shards are joined by themselves, and then the runs that they are parts of."""
    ours = shards(tmp_path, 2)
    theirs = [stored(tmp_path / f"t{k}", ("softmax", "fnet"), f"c{k}", (k, 2), started=f"2026-02-0{k}") for k in (1, 2)]
    with pytest.raises(BadInput, match=r"beside \S*s1 missing: shard 2/2; beside \S*t2 missing: shard 1/2"):
        join([ours[0], theirs[1]])
    run = joined(tmp_path, [*ours, *theirs])
    rounds = run.visits[run.visits["round"] > 0]
    by_operator = {name: sorted(set(group["round"])) for name, group in rounds.groupby("operator")}
    assert by_operator == {"softmax": [1, 2, 3, 4], "local": [1, 2], "fnet": [3, 4]}


def test_a_run_that_was_not_finished_is_named(tmp_path: Path) -> None:
    whole = stored(tmp_path / "whole")
    cut = stored(tmp_path / "cut", ("softmax", "fnet"), "a2", change=lambda made: made[:-1])
    none = stored(tmp_path / "none", ("softmax", "gmlp"), "a3", change=lambda made: [])
    assert join([whole]).notes[1:] == ()
    assert f"{cut} is not finished: rounds are missing of 1 cell (attnbench run --resume {cut})" in join([cut]).notes
    assert f"{none}: nothing was measured in it" in join([whole, none]).notes


def test_all_shards_of_which_something_is_missing_are_not_told_to_be_joined_with_others(tmp_path: Path) -> None:
    one, two = shards(tmp_path, 2)
    text = (two / VISITS).read_text().splitlines(keepends=True)
    (two / VISITS).write_text("".join(text[:-1]))
    shown = view(summarise(joined(tmp_path, [one, two], partial=True)))
    assert shown is not None
    assert shown.notes[0].startswith("These are all 2 shards of the suite, and not all that they were to measure")


def test_what_is_missing_is_named_and_can_be_joined_later(tmp_path: Path) -> None:
    one, two, three = shards(tmp_path)
    with pytest.raises(BadInput, match=r"missing: shard 2/3\. .*--partial"):
        join([one, three])
    part = joined(tmp_path, [one, three], partial=True, name="part")
    assert StoredShard.of_run(part.environment).numbers == (1, 3)  # type: ignore[union-attr]
    shown = view(summarise(part))
    assert shown is not None
    assert shown.notes[0].startswith("These are 2 of the suite's 3 shards, 3 of 4 units; attnbench merge joins them")
    late, all_at_once = joined(tmp_path, [two, part.folder]), joined(tmp_path, [one, two, three], name="at once")
    for run in (late, all_at_once):
        assert [each["shard"] for each in run.environment["parts"]] != []
    assert exact(late) == exact(all_at_once)
    assert sorted(late.visits["wall_time_s"].dropna()) == sorted(all_at_once.visits["wall_time_s"].dropna())
    processes = [range(each["processes"][0], each["processes"][1] + 1) for each in late.environment["parts"]]
    assert len({number for numbers in processes for number in numbers}) == sum(map(len, processes))


def test_an_unfinished_shard_is_named(tmp_path: Path) -> None:
    one, _, three = shards(tmp_path)
    two = stored(tmp_path / "torn", device="b2", shard=(2, 3), change=lambda made: made[:-1])
    with pytest.raises(BadInput, match=r"1 of the 1 unit of .*torn \(shard 2/3\), such as core.fwd.*--resume"):
        join([one, two, three])
    cut = stored(
        tmp_path / "cut",
        device="b2",
        shard=(2, 3),
        change=lambda made: [
            replace(v, status="skipped", cause="budget", metrics={}, samples=0) if v.round else v for v in made
        ],
    )
    with pytest.raises(BadInput, match="missing: 1 of the 1 unit"):
        join([one, cut, three])
    ended = stored(
        tmp_path / "ended",
        device="b2",
        shard=(2, 3),
        change=lambda made: [replace(v, status="timeout", cause="timeout", metrics={}, samples=0) for v in made],
    )
    assert not join([one, ended, three]).environment.get("shard"), "a cell that fails its check is not timed"


Other = tuple[Mapping[str, Any], str]
REFUSED: dict[str, Other] = {
    "another torch": ({"torch": "2.15.0"}, r"differ in torch: '2.13.0' and '2.15.0'"),
    "another processor": ({"cpu": "Xeon"}, r"differ in cpu: .*A panel never mixes models of devices"),
    "another GPU": ({"gpu_name": "H100"}, r"differ in gpu_name: nothing and 'H100'"),
    "other code": ({"code": {"files": {"attnbench/worker.py": "cd"}}}, r"different libraries"),
    "another file": (
        {"code": {**FACTS["code"], "files": {"attnbench/worker.py": "cd"}}},
        r"measured different code: attnbench/worker.py",
    ),
    "no code": ({"code": None}, r"cannot be known to have measured the same code"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_circumstances_are_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    facts, reason = REFUSED[case]
    other = stored(tmp_path / "b", ("softmax", "fnet"), "a2", **facts)
    with pytest.raises(BadInput, match=reason):
        join([stored(tmp_path / "a"), other])


def test_hosts_of_gpus_of_one_model_may_differ(tmp_path: Path) -> None:
    gpu = {"gpu_name": "H100", "gpu": {"name": "H100"}}
    other = stored(tmp_path / "b", ("softmax", "fnet"), "a2", cpu="Xeon", **gpu)
    notes = join([stored(tmp_path / "a", **gpu), other]).notes
    assert any("differ in cpu: AMD EPYC, Xeon" in note for note in notes)
    assert "measured on 2 devices (H100)" in notes[0]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("small", "other", "name is 'small' and 'other'"),
        ("rounds: 2", "rounds: 3", "measure is"),
        ("[32, 64]", "[32, 64, 128]", "sweep has the entry"),
    ],
)
def test_other_suites_are_refused(tmp_path: Path, old: str, new: str, reason: str) -> None:
    a, b = stored(tmp_path / "a"), stored(tmp_path / "b", device="a2")
    (b / SUITE).write_text((b / SUITE).read_text().replace(old, new))
    with pytest.raises(BadInput, match=f"different suites: {reason}"):
        join([a, b])


def test_other_contracts_copies_and_what_was_measured_twice_are_refused(tmp_path: Path) -> None:
    a = stored(tmp_path / "a")
    other = stored(
        tmp_path / "b",
        device="a2",
        change=lambda made: [replace(v, contract=CONTRACT.replace("2-2", "3-3")) for v in made],
    )
    with pytest.raises(BadInput, match="different contracts"):
        join([a, other])
    with pytest.raises(BadInput, match="one is a copy of the other"):
        join([a, stored(tmp_path / "copy")])
    again = stored(tmp_path / "again", device="b9", shard=(2, 3))
    with pytest.raises(BadInput, match="both hold shard 2/3: it was measured twice"):
        join([*shards(tmp_path), again])
    (a / SEARCH).write_text("{}")
    with pytest.raises(BadInput, match="no run is given"):
        join([])
    with pytest.raises(BadInput, match=r"a search of .attnbench crossover"):
        join([a])
    with pytest.raises(BadInput, match=r"not a run folder, it has no visits\.jsonl"):
        join([tmp_path])


def test_checks_that_contradict_each_other_are_told_and_wrong_stays_wrong(tmp_path: Path) -> None:
    def wrong(made: list[Visit]) -> list[Visit]:
        return [
            replace(v, status="wrong", cause="wrong", reason="off by one") if not v.round and "local" in v.key else v
            for v in made
        ]

    a, b = stored(tmp_path / "a"), stored(tmp_path / "b", device="a2", change=wrong, started="2026-01-02")
    run = joined(tmp_path, [a, b])
    assert set(run.results.set_index("operator").loc["local", "status"]) == {"wrong"}
    more = stored(
        tmp_path / "c", device="a3", change=lambda made: [replace(v, metrics={**v.metrics, "flops": 1}) for v in made]
    )
    assert any("flops was 1 to 32 in the checks of 2 parts" in note for note in join([a, more]).notes)


PRIVATE = ("jane", "node17", "10.1.2.3", "/home", "secret")


def test_nothing_that_tells_who_and_where_is_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "_private_names", lambda: iter(["jane", "node17"]))
    privacy._names.cache_clear()
    reason = "OSError: node17 (10.1.2.3): jane@node17.example.com cannot read '/home/jane/x.pt'; user jane"
    facts = {
        "hostname": "secret", "governor": "/home/jane/governor", "fast_exact": {"sdpa": "node17 has none"},
        "gpu": {"name": "x", "driver": "of jane"},
    }  # fmt: skip

    def failed(made: list[Visit]) -> list[Visit]:
        return [replace(v, reason=reason, warnings=(reason,)) for v in made]

    part = stored(tmp_path / "a", change=failed, **facts)
    (part / SUITE).write_text((part / SUITE).read_text() + "operators_from: ['/home/jane/secret/mine.py']\n")
    try:
        joined(tmp_path, [part])
    finally:
        monkeypatch.undo()
        privacy._names.cache_clear()
    texts = {path.name: path.read_text() for path in (tmp_path / "joined").iterdir()}
    assert {VISITS, SAMPLES, ENVIRONMENT, SUITE, "results.csv"} == set(texts)
    assert [(name, word) for name, text in texts.items() for word in PRIVATE if word in text] == []
    assert "OSError: (a name) ((an address)): (an address) cannot read 'x.pt'; user (a name)" in texts[VISITS]
    stored_before = (part / VISITS).read_text() + (part / ENVIRONMENT).read_text()
    assert all(word in stored_before for word in PRIVATE if word != "/home")


@pytest.mark.parametrize(
    "shard",
    [
        [], {"numbers": [1]}, {"numbers": [0], "of": 3, "dealt": 4, "units": [["a", 1]]},
        {"numbers": [4], "of": 3, "dealt": 4, "units": [["a", 1]]}, {"numbers": [1], "of": 3, "dealt": 4, "units": []},
        {"numbers": [1], "of": 3, "dealt": 4, "units": [["a", "1"]]},
        {"numbers": [1, 1], "of": 3, "dealt": 4, "units": [["a", 1]]},
    ],
)  # fmt: skip
def test_a_foreign_folder_that_lies_about_its_shard_is_refused(tmp_path: Path, shard: Any) -> None:
    part = stored(tmp_path / "a")
    (part / ENVIRONMENT).write_text(json.dumps({**FACTS, "shard": shard}))
    with pytest.raises(BadInput, match=r"environment.json: shard = "):
        join([part])


def test_the_verb_joins_says_what_and_refuses(tmp_path: Path) -> None:
    parts = list(map(str, shards(tmp_path)))
    out = str(tmp_path / "out")
    done = CliRunner().invoke(app, ["merge", *parts, "--out", out])
    assert (done.exit_code, done.stdout) == (0, f"{out}\n")
    assert done.stderr.startswith("joined: 3 shards, measured on 3 devices (AMD EPYC)\n")
    for words, reason in (
        ((*parts, "--out", out), "is not empty. Name a new folder."),
        ((parts[0], "--out", f"{out}2"), "shard 2/3, shard 3/3"),
    ):
        refused = CliRunner().invoke(app, ["merge", *words])
        assert isinstance(refused.exception, BadInput)
        assert reason in str(refused.exception)
    assert not Path(f"{out}2").exists()
