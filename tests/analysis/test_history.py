"""A history of runs: its figures are those of each run, and a change is called what is known of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("duckdb", reason="the extra 'history' is not installed")

from attnbench.analysis.crossover import Crossover
from attnbench.analysis.history import Change, History, HistoryRequest, history
from attnbench.analysis.metric_values import quantity
from attnbench.analysis.run import read_run
from attnbench.analysis.summary import summarise
from attnbench.errors import BadInput
from attnbench.problem import Cell, cell_of
from attnbench.store.gate_file import GATE
from tests.many_runs import nightly, store, visits

METRICS = ("wall_time", "flops")


def of(root: Path, **request: object) -> History:
    return history(root, HistoryRequest(**{"metrics": METRICS, **request}))  # type: ignore[arg-type]


def kinds(changes: tuple[Change, ...]) -> set[tuple[str, str, str, str, int]]:
    return {(each.metric, each.series, each.verdict, each.evidence, each.after) for each in changes}


def slower(name: str, since: int, by: float) -> Callable[[int, Cell], float]:
    return lambda day, cell: by if cell.operator == name and day >= since else 1.0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve nights: performer is slower by 12 % from night 7, linformer counts 5 % less from night 4."""
    return nightly(
        tmp_path_factory.mktemp("h") / "nightly", 12, slower("performer", 7, 1.12), flops=slower("linformer", 4, 0.95)
    )


def test_figures_and_crossovers_are_those_that_show_has_of_each_run(root: Path) -> None:
    found = of(root)
    tracks = [track for report in found.panels for each in report.metrics for track in each.tracks]
    assert len(tracks) == 20
    for number in (0, 7):
        run = read_run(root / found.runs[number].folder)
        for name in METRICS:
            shown, own = quantity(run, name), found.runs[number].quantities[name]
            assert own.values == dict(shown.values)
            assert own.levels == dict(shown.levels)
        (table,) = summarise(run, ["wall_time"]).panels[0].tables
        expected = {line.series.name: line.against_baseline for line in table.lines if line.against_baseline}
        (report,) = found.panels
        crossovers = {
            track.series: dict(track.points)[number]
            for track in report.metrics[0].crossovers
            if track.baseline == "softmax"
        }
        assert crossovers == expected
        assert all(isinstance(each, Crossover) for each in expected.values())


def test_each_change_is_found_once_where_it_is_and_called_what_is_known_of_it(root: Path) -> None:
    found = of(root)
    assert kinds(found.changes) == {
        ("wall_time", "performer", "slower", "unpaired", 7),
        ("flops", "linformer", "less", "exact", 4),
    }
    assert len(found.changes) == 4, "at both sizes"
    (slow, *_) = [each for each in found.changes if each.metric == "wall_time"]
    assert slow.low is not None
    assert slow.high is not None
    assert slow.low < 1.12 < slow.high
    assert slow.runs == (7, 5)
    assert not slow.same_code


def test_without_a_change_none_is_called(tmp_path: Path) -> None:
    assert of(nightly(tmp_path / "nightly", 12)).changes == ()


@pytest.mark.parametrize(
    "fact",
    [{"torch": lambda day: "2.13.0" if day < 7 else "2.14.0"}, {"cpu": lambda day: "one" if day < 7 else "another"}],
    ids=["torch", "machine"],
)
def test_between_other_circumstances_only_analytic_figures_change(tmp_path: Path, fact: dict[str, object]) -> None:
    root = nightly(tmp_path / "nightly", 12, slower("performer", 7, 1.5), flops=slower("linformer", 7, 0.95), **fact)
    found = of(root)
    assert kinds(found.changes) == {("flops", "linformer", "less", "exact", 7)}
    assert found.circumstance == (0,) * 7 + (1,) * 5


def test_memory_is_another_only_in_the_same_circumstances(tmp_path: Path) -> None:
    root = nightly(tmp_path / "nightly", 4, torch=lambda day: "2.13.0" if day < 3 else "2.14.0")
    for night in (1, 3):
        path = root / f"night-{night:02}" / "visits.jsonl"
        path.write_text(path.read_text().replace('"peak_memory_bytes":', '"peak_memory_bytes":1'))
    found = of(root, metrics=("peak_memory",), operators=("performer",), sizes=("256",))
    assert [(each.after, each.verdict) for each in found.changes] == [(1, "more"), (2, "less")]


def test_what_the_same_code_did_is_said_to_be_no_codes(tmp_path: Path) -> None:
    root = nightly(tmp_path / "nightly", 12, slower("performer", 7, 1.12), code=lambda day: {"files": {"a": "b"}})
    changes = of(root).changes
    assert changes
    assert all(each.same_code for each in changes)


def gate(root: Path, verdict: str = "slower", **finding: object) -> Path:
    """A gate of performer, with 1.3 times the time; and its decision."""
    rng = np.random.default_rng(1)
    for side, by in (("base", 1.0), ("head", 1.3)):
        store(root / "gate-ci" / side, visits(3, slower("performer", 0, by), rng), 3, commit=side)
    key = next(visit.key for visit in visits(0, slower("", 0, 1.0), rng) if "performer" in visit.key)
    found = {
        "subject": key,
        "metric": "wall_time",
        "verdict": verdict,
        "ratio": 1.3,
        "low": 1.2,
        "high": 1.4,
        **finding,
    }
    document = {"version": 1, "comparisons": [{"findings": [found]}]}
    (root / "gate-ci" / GATE).write_text(json.dumps(document))
    return root


def test_a_gates_finding_is_paired_and_its_runs_are_no_nights(tmp_path: Path) -> None:
    found = of(gate(nightly(tmp_path / "nightly", 6)))
    (change,) = found.changes
    assert (change.evidence, change.verdict, change.ratio, change.series) == ("paired", "slower", 1.3, "performer")
    assert [found.runs[i].side for i in (change.before, change.after)] == ["base", "head"]
    assert found.gates == 1


@pytest.mark.parametrize(
    "finding",
    [{"ratio": "1.3"}, {"ratio": -1}, {"verdict": "awful"}, {"subject": 3}, {"metric": None}, {"subject": "nothing"}],
)
def test_a_damaged_finding_of_a_gate_is_none(tmp_path: Path, finding: dict[str, object]) -> None:
    assert of(gate(nightly(tmp_path / "nightly", 4), **finding)).changes == ()


def test_a_status_that_changed_is_told(tmp_path: Path) -> None:
    root = nightly(tmp_path / "nightly", 3)
    path = root / "night-02" / "visits.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [line for line in lines if line["cell"]["operator"] != "rfa" or line["round"] == 0]
    for line in lines:
        if line["cell"]["operator"] == "rfa":
            line.update(status="wrong", reason="another output", cause="wrong")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = of(root, sizes=("512",))
    assert [(each.metric, each.series, each.values, each.after) for each in found.changes] == [
        ("status", "rfa", ("ok", "wrong"), 2)
    ]


def test_a_parameter_that_an_operator_gained_does_not_break_its_history(tmp_path: Path) -> None:
    root = nightly(tmp_path / "nightly", 3)
    rng = np.random.default_rng(3)
    later = []
    for visit in visits(4, slower("", 0, 1.0), rng):
        if visit.cell["operator"] == "rfa":
            columns = {**visit.cell, "params": '{"m":64}'}
            visit = type(visit)(**{**vars(visit), "cell": columns, "key": cell_of(columns).key})
        later.append(visit)
    store(root / "night-04", later, 4, defaults={"rfa": {"m": 64}})
    (report,) = of(root, operators=("rfa",)).panels
    assert {len(track.points) for each in report.metrics for track in each.tracks} == {4}


def test_only_what_is_asked_for_is_shown(root: Path) -> None:
    found = of(root, metrics=("flops",), operators=("rfa", "local"), axis="seq_len", sizes=("0.25K",))
    (report,) = found.panels
    (flops,) = report.metrics
    assert flops.name == "flops"
    assert {(track.series, track.label) for track in flops.tracks} == {("local", "256"), ("rfa", "256")}
    assert found.changes == ()


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({"metrics": ("wal_time",)}, "did you mean 'wall_time'"),
        ({"operators": ("perfomer",)}, "no run here has a series of it.*did you mean 'performer'"),
        ({"axis": "seqlen"}, "did you mean 'seq_len'"),
        ({"axis": "batch"}, "does not vary it; it varies seq_len"),
        ({"sizes": ("2K",)}, "--size '2K': no run has it"),
        ({"baseline": "sofmax"}, "did you mean 'softmax'"),
        ({"metrics": ("energy",)}, "no run has a figure of it"),
    ],
)
def test_what_no_run_has_is_told(root: Path, request_: dict[str, object], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        of(root, **request_)


def test_what_cannot_be_read_is_named_and_left_out(tmp_path: Path) -> None:
    root = nightly(tmp_path / "nightly", 3)
    (root / "night-01" / "environment.json").unlink()
    (root / "night-02" / "suite.yaml").write_text("name: [1")
    found = of(root)
    assert [run.folder for run in found.runs] == ["night-00"]
    assert list(found.unread) == ["night-01", "night-02"]
    assert str(tmp_path) not in json.dumps(dict(found.unread))
    (root / "night-00" / "visits.jsonl").write_text("{}\n")
    with pytest.raises(BadInput, match="none of its 3 run folders can be read"):
        of(root)
