"""Claims of time: each rule decides by an interval and can fail, ratios are of one run, and what is shipped fits."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.analysis.claims import Interval, Number, Result, Timed, Verdict
from attnbench.analysis.interval import ratio
from attnbench.analysis.timed_claims import crossing, decision, together
from attnbench.errors import BadInput
from attnbench.measure import paper_runs, papers
from attnbench.measure.papers import names
from attnbench.measure.reproduce import cell_of, reproduce
from attnbench.measure.timed_claims import StoredTimes, asked_cells, stored_times
from attnbench.plan import suite as suites
from attnbench.plan import time_budget
from attnbench.plan.cells import cells
from attnbench.problem import Cell, Problem
from attnbench.store.records import ENVIRONMENT, VISITS
from attnbench.units import seconds
from tests.analysis.runs import visits_of
from tests.stored import folder

CONTRACT = "3 rounds=3-3"


def run(*words: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, ["reproduce", *words])
    if isinstance(result.exception, BadInput):
        raise result.exception
    assert result.exit_code == exit_code, result.output
    return result.stdout


@pytest.mark.parametrize(
    ("number", "inside", "outside", "across"),
    [
        (Number("2", at_least=True), (2.1, 2.3), (1.5, 1.9), (1.9, 2.1)),
        (Number("2", at_most=True), (1.5, 1.9), (2.1, 2.3), (1.9, 2.1)),
        (Number("2", factor=Fraction(2)), (1.1, 3.9), (4.1, 5.0), (3.9, 4.1)),
        (Number("2", factor=Fraction(2)), (1.1, 3.9), (0.5, 0.9), (0.9, 1.1)),
        (Number("1", points=Fraction("0.15")), (0.9, 1.1), (1.2, 1.3), (1.1, 1.2)),
        (Number("512", up_to="1024"), (600.0, 900.0), (1100.0, 2000.0), (692.0, 1050.0)),
        (Number("3"), (1.1, 9.0), (0.5, 0.9), (0.9, 1.1)),
        (Number("0.5"), (0.2, 0.9), (1.1, 2.0), (0.9, 1.1)),
    ],
)
def test_each_rule_decides_and_can_fail(
    number: Number, inside: tuple[float, float], outside: tuple[float, float], across: tuple[float, float]
) -> None:
    def told(ends: tuple[float, float]) -> Verdict:
        return decision(Interval(math.sqrt(ends[0] * ends[1]), *ends), number)

    assert (told(inside), told(outside), told(across)) == ("reproduced", "differs", "not decided")
    assert decision(Interval(float(number.value), math.nan, math.nan), number) == "not decided"  # from one round


def test_verdicts_together() -> None:
    assert together(["reproduced", "differs", "not decided"]) == "differs"
    assert together(["reproduced", "not decided"]) == "not decided"
    assert together(["reproduced", "reproduced"]) == "reproduced"
    assert together([]) == "not decided"


PAPER = """
title: a paper
url: https://example.org
source: nothing
cells:
  softmax: {operator: softmax, channels: 64, heads: 4}
  linformer: {operator: linformer, channels: 64, heads: 4, params: {k: 16}}
claims:
  - id: Z1
    claim: faster
    place: p
    kind: measured
    mark: read
    on: a card
    rule: within ×2, and it grows
    numbers:
      - {name: at 256, paper: "4", unit: "×", factor: 2, ours: softmax(seq_len=256).time / linformer(seq_len=256).time}
      - {name: exponent, paper: "1", points: 0.5, ours: log2(linformer(seq_len=512).time / linformer(seq_len=256).time)}
      - {name: crossover, paper: "100", up_to: "200",
         ours: "crossover(linformer(seq_len=256).time, softmax(seq_len=256).time)"}
      - {name: longer, paper: "9", unit: "×", ours: softmax(seq_len=999).time / linformer(seq_len=999).time}
    orders:
      at 512: [softmax(seq_len=512).time, linformer(seq_len=512).time]
      by n:
        - softmax(seq_len=512).time / linformer(seq_len=512).time
        - softmax(seq_len=128).time / linformer(seq_len=128).time
      wrong: [linformer(seq_len=512).time, softmax(seq_len=512).time]
  - id: Z2
    claim: c
    place: p
    kind: measured
    mark: read
    indication: another size
    numbers: [{name: i, paper: "2", ours: softmax(seq_len=256).time / linformer(seq_len=256).time}]
  - id: Z3
    claim: c
    place: p
    kind: elsewhere
    mark: read
    why: a network
    numbers: [{name: i, paper: "2", ours: softmax(seq_len=256).time / linformer(seq_len=256).time}]
"""


def cell(operator: str, n: int, impl: str = "reference") -> Cell:
    # Without value_map, which softmax has today: a run of an attnbench that did not know it.
    params = {"k": 16, "sharing": "headwise"} if operator == "linformer" else {}
    return Cell(operator, impl, "core", "fwd", Problem(n, 64, 4), params)


def made(path: Path, sizes: tuple[int, ...] = (128, 256, 512), own: float = 0.005, process: float = 0.2) -> Path:
    """A run: eager softmax n²/16K ms, the fused one a third of it, linformer n/128 · 1 ms."""
    cells_ = [
        (what, seconds_, {})
        for n in sizes
        for what, seconds_ in (
            (cell("softmax", n), n * n / 2**14 / 1000),
            (cell("softmax", n, "sdpa"), n * n / 2**14 / 3000),
            (cell("linformer", n), n / 128 / 1000),
        )
    ]
    folder(path, visits_of(cells_, own=own, process=process, contract=CONTRACT, rounds=4))
    environment = {"cpu": "EPYC", "threads": 2, "device": "cpu", "started": "2026-11-26T18:00:00+00:00"}
    (path / ENVIRONMENT).write_text(json.dumps(environment), encoding="utf-8")
    return path


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(papers, "FOLDER", tmp_path / "papers")
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "own.yaml").write_text(PAPER, encoding="utf-8")


def held(times: list[StoredTimes]) -> dict[str, Result]:
    return {result.claim.id: result for result in reproduce(papers.papers(), times)}


def numbers(result: Result) -> Mapping[str, Timed]:
    assert result.timing is not None
    return {each.number.name: each for each in result.timing.numbers}


def test_ratios_are_of_one_run_and_against_both_softmaxes(paper: None, tmp_path: Path) -> None:
    (times,) = stored_times(made(tmp_path / "run"))
    results = held([times])
    timed = numbers(results["Z1"])
    at = timed["at 256"]
    assert at.ours.interval is not None
    assert at.exact is not None
    assert at.exact.interval is not None
    assert at.ours.interval.value == pytest.approx(2, rel=0.02)
    assert (at.ours.against, at.exact.against) == ("softmax", "softmax:sdpa")
    assert at.exact.interval.value == pytest.approx(2 / 3, rel=0.02)
    assert (at.verdict, at.exact.verdict) == ("not decided", "differs")  # its interval meets the limit of 2
    assert timed["longer"].ours.lacking is not None
    assert timed["longer"].verdict == "not decided"
    assert results["Z1"].timing is not None
    orders = {order.name: order.verdict for order in results["Z1"].timing.orders}
    assert orders == {"at 512": "reproduced", "by n": "reproduced", "wrong": "differs"}
    assert results["Z1"].verdict == "differs"
    (on,) = results["Z1"].timing.on
    assert (on.run, on.suite, on.dtypes) == ("run", "made", ["float32"])
    assert timed["crossover"].ours.interval == crossing_of(times)
    for claim, verdict in (("Z2", "not decided"), ("Z3", "not testable here")):
        (only,) = numbers(results[claim]).values()
        assert only.ours.interval is not None
        assert results[claim].verdict == only.verdict == verdict  # shown, and decides nothing


def crossing_of(times: StoredTimes) -> Interval:
    from attnbench.analysis.crossover import Pair

    level = {each.key: times.levels[each.key] for each in times.cells.values()}
    by = {(each.operator, each.impl, each.problem.seq_len): level[each.key] for each in times.cells.values()}
    sizes = (128, 256, 512)
    return crossing([Pair(n, str(n), by["linformer", "reference", n], by["softmax", "reference", n]) for n in sizes])


def test_an_interval_is_that_of_a_ratio_and_holds_what_blocks_do_not_share(paper: None, tmp_path: Path) -> None:
    (times,) = stored_times(made(tmp_path / "run"))
    level = {
        (each.operator, each.problem.seq_len): times.levels[each.key]
        for each in times.cells.values()
        if each.impl == "reference"
    }
    alone = numbers(held([times])["Z2"])["i"].ours.interval
    assert alone is not None
    assert (alone.value, alone.low, alone.high) == pytest.approx(
        ratio(level["softmax", 256], level["linformer", 256]), rel=1e-6
    )
    exponent = numbers(held([times])["Z1"])["exponent"].ours.interval
    assert exponent is not None
    assert exponent.high - exponent.low > 5 * (math.log(alone.high / alone.low))  # processes differ by a fifth
    (calm,) = stored_times(made(tmp_path / "calm", process=0.0))
    told = numbers(held([calm])["Z1"])["exponent"]
    assert told.verdict == "reproduced"
    assert numbers(held([times])["Z1"])["exponent"].verdict == "not decided"


def test_never_from_two_runs(paper: None, tmp_path: Path) -> None:
    both = made(tmp_path / "both" / "run")
    lines = (both / VISITS).read_text(encoding="utf-8").splitlines(keepends=True)
    for name in ("softmax", "linformer"):
        part = folder(tmp_path / "parts" / name, [])
        (part / VISITS).write_text("".join(line for line in lines if f'"key":"{name}' in line), encoding="utf-8")
    (only,) = numbers(held(stored_times(tmp_path / "parts"))["Z2"]).values()
    assert only.ours.interval is None
    (whole,) = numbers(held(stored_times(tmp_path / "both"))["Z2"]).values()
    assert whole.ours.interval is not None


def test_what_is_shown(paper: None, tmp_path: Path) -> None:
    made(tmp_path / "runs" / "run")
    table = run("own", "--runs", str(tmp_path / "runs"))
    assert max(map(len, table.splitlines())) <= 80
    text = " ".join(table.split())
    assert text.index("Rule: within ×2, and it grows") < text.index("at 256")
    assert "Paper: a card. Ours: EPYC, 2 threads, float32, 2026-11-26 (run)." in text
    assert "against softmax:sdpa" in text
    assert "no run has softmax fwd 999 tokens" in text
    assert "An indication alone: another size." in text
    rows: list[dict[str, Any]] = json.loads(run("own", "--runs", str(tmp_path / "runs"), "--format", "json"))
    at = next(row for row in rows if row["name"] == "at 256")
    assert at["low"] < at["ours"] < at["high"]
    assert at["exact_ours"] < 1
    assert at["exact_against"] == "softmax:sdpa"
    assert next(row for row in rows if row["name"] == "order, wrong")["steps"][0]["verdict"] == "differs"
    nothing = " ".join(run("own").split())
    assert "not measured, attnbench reproduce own --measure" in nothing
    assert "≥" not in nothing


def test_folders_that_cannot_be_read(paper: None, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, message in (("none", "no such folder"), ("empty", "no run folder, and none is in it")):
        with pytest.raises(BadInput, match=message):
            run("own", "--runs", str(tmp_path / name))
    foreign = made(tmp_path / "foreign" / "run", sizes=(64,))
    with pytest.raises(BadInput, match=r"made measured nothing that these claims are about"):
        run("own", "--runs", str(tmp_path / "foreign"))
    (foreign / VISITS).write_text('{"key": 3}\n', encoding="utf-8")
    with pytest.raises(BadInput, match=re.escape(VISITS)):
        run("own", "--runs", str(tmp_path / "foreign"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rule: within ×2, and it grows", "on2: x", "what kind measured is decided by"),
        ("softmax(seq_len=256).time / l", "softmax(seq_len=256).flops / l", "in a claim of time: softmax.time"),
        ("crossover(linformer(", "crossover(linformr(", "did you mean 'linformer'"),
        ("wrong: [linformer(seq_len=512).time, ", "wrong: [", "two ranks or more"),
    ],
)
def test_a_file_with_a_mistake_is_refused(old: str, new: str, message: str, paper: None, tmp_path: Path) -> None:
    path = papers.FOLDER / "own.yaml"
    assert old in PAPER
    path.write_text(PAPER.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(BadInput, match=re.escape(message)):
        run("own", "--runs", str(made(tmp_path / "run")))


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(BadInput, match="--budget: nothing is measured without --measure"):
        run("kanets", "--budget", "1m")
    with pytest.raises(BadInput, match="--runs and --measure"):
        run("kanets", "--measure", "--runs", "x")
    with pytest.raises(BadInput, match=r"--budget '1x'"):
        run("kanets", "--measure", "--budget", "1x")
    with pytest.raises(BadInput, match="lecture: nothing of it is measured; there are suites for"):
        run("lecture", "--measure")


def test_a_budget_is_a_promise_that_suites_share(tmp_path: Path) -> None:
    clock = [0.0]
    shipped = paper_runs.suites_of(papers.papers(["performer"]))
    assert [each.limits.budget_s for each in shipped] == sorted((e.limits.budget_s or 0 for e in shipped), reverse=True)
    every = [
        replace(each, limits=replace(each.limits, budget_s=stated))
        for each, stated in zip(shipped[:3], (500.0, 100.0, 50.0), strict=True)
    ]

    def shares(budget: str, takes_s: float) -> list[float | None]:
        clock[0], found = 0.0, []
        for each in paper_runs.paper_runs(every, tmp_path, "cpu", budget, now=lambda: clock[0])[1]:
            suite = each.request.suite if each.request else None
            found.append(None if suite is None else suite.limits.budget_s)
            clock[0] += takes_s if suite else 0.0
        return found

    assert shares("300s", 100.0) == [None, 250.0, 200.0]  # the first one alone states more
    assert shares("650s", 50.0) == [500.0, 550.0, 550.0]  # what is not taken is left to others
    assert shares("30s", 30.0) == [None, None, 30.0]
    assert shares("150s", 145.0) == [None, 100.0, None]  # it took longer: no process could start in what is left


SUITE = """
name: papers-own
operators: {softmax: {}, linformer: {k: 16}}
impls: [reference]
sweep: [{seq_len: 256}]
problem: {heads: 4, channels: 64}
measure: {rounds: 1, max_rounds: 1, min_turns: 1, max_turns: 1, max_time: 10ms}
limits: {budget: 10m}
"""


def test_measured_here_and_continued(paper: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE, encoding="utf-8")
    monkeypatch.setattr(suites, "shipped", lambda: {"papers-own": tmp_path / "suite.yaml"})
    monkeypatch.setattr(time_budget, "RATES_SHARE", 0.0)  # the hardware's rates take seconds, and are not needed
    where = ("--budget", "10m", "--device", "cpu", "--out", str(tmp_path / "out"))
    words = ("own", "--measure", *where, "--format", "json")
    rows: list[dict[str, Any]] = json.loads(run(*words))
    only = next(row for row in rows if row["id"] == "Z2")
    assert only["ours"] > 0
    assert only["low"] is None  # one round
    assert only["measured_on"][0]["suite"] == "papers-own"
    before = (tmp_path / "out" / "own" / VISITS).read_bytes()
    assert json.loads(run(*words))[0]["ours"] == rows[0]["ours"]
    assert (tmp_path / "out" / "own" / VISITS).read_bytes() == before
    (tmp_path / "suite.yaml").write_text(SUITE.replace("256", "128"), encoding="utf-8")
    with pytest.raises(BadInput, match="is not the suite that this run measures"):
        run(*words)


def test_the_shipped_suites_measure_what_claims_ask_for_within_the_budget() -> None:
    budgets: list[float] = []
    unused = []
    for paper_ in papers.papers():
        own = [f"papers-{paper_.name}", f"papers-{paper_.name}-"]
        measured = [suites.load(name) for name in suites.shipped() if name == own[0] or name.startswith(own[1])]
        budgets += [each.limits.budget_s or math.inf for each in measured]
        keys = [{each.key for each in cells(one)} for one in measured]
        used: set[str] = set()
        for claim in paper_.claims:
            timed = claim.kind == "measured" or (claim.kind == "elsewhere" and any(n.ours for n in claim.numbers))
            texts = [n.ours for n in claim.numbers if n.ours and timed]
            texts += [text for ranks in claim.orders.values() for rank in ranks for text in rank]
            for text in texts:
                asked = {each.key for each in asked_cells(text, partial(cell_of, paper_))}
                used |= asked
                assert any(asked <= each for each in keys) or claim.why, f"{claim.id}: {text}"
        unused += [one.name for one, each in zip(measured, keys, strict=True) if not each & used]
        assert not measured or used
    assert sum(sorted(budgets)[:-1]) <= seconds(paper_runs.BUDGET)  # of which the longest suite alone takes more
    assert not unused
    measured_names = {
        name.removeprefix(paper_runs.PREFIX).partition("-")[0]
        for name in suites.shipped()
        if name.startswith(paper_runs.PREFIX)
    }
    assert measured_names <= set(names())  # a suite of no paper would never run
