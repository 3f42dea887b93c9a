"""A stored run in Python says what `attnbench show` says of it, and what is wrong with it in one paragraph."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import attnbench
from attnbench.analysis.summary import summarise
from attnbench.outputs import json as json_output
from attnbench.outputs._answer import view as first_screen

REFERENCE = Path("results/reference")
SEQUENCE = REFERENCE / "cpu-sequence"


@pytest.fixture(scope="module")
def sequence() -> attnbench.StoredRun:
    return attnbench.load(SEQUENCE)


@pytest.mark.parametrize("folder", sorted(p.name for p in REFERENCE.iterdir() if (p / "visits.jsonl").exists()))
def test_every_stored_run_can_be_loaded(folder: str) -> None:
    run = attnbench.load(REFERENCE / folder)
    assert len(run.results) == run.results["key"].nunique() > 0
    assert run.environment["device"] in ("cpu", "cuda")


@pytest.mark.parametrize("folder", ["cpu-border", "h100-prefill", "cpu-extend"])
def test_runs_of_every_kind_can_be_shown(folder: str) -> None:
    run = attnbench.load(REFERENCE / folder)
    assert {"axis", "series", "kind", "at", "low", "high", "direction"} <= set(run.crossovers().columns)
    assert "<table>" in run._repr_html_()
    sizes = run.crossovers().filter(["batch", "heads", "channels", "head_dim"])
    assert {str(dtype).lower() for dtype in sizes.dtypes} == {"int64"}


def test_a_suite_without_a_name_is_called_as_its_file_was(tmp_path: Path) -> None:
    run = shutil.copytree(REFERENCE / "ci", tmp_path / "run")
    suite, environment = run / "suite.yaml", run / "environment.json"
    suite.write_text(suite.read_text().replace("name: ci\n", ""))
    assert attnbench.load(run).name == "run", "one that stored no name"
    environment.write_text(json.dumps({**json.loads(environment.read_text()), "suite": "mine"}))
    assert attnbench.load(run).name == "mine"
    environment.write_text(json.dumps({**json.loads(environment.read_text()), "suite": [1]}))
    assert attnbench.load(run).name == "run"


def test_results_are_results_csv_and_a_copy(sequence: attnbench.StoredRun) -> None:
    stored = pd.read_csv(SEQUENCE / "results.csv")
    assert list(sequence.results["key"]) == list(stored["key"])
    assert sequence.results["wall_time_s"].to_numpy() == pytest.approx(stored["wall_time_s"].to_numpy(), nan_ok=True)
    table = sequence.results
    table["key"] = ""
    assert sequence.results["key"].all()


def test_crossovers_are_those_of_the_json_output(sequence: attnbench.StoredRun) -> None:
    metrics = ("wall_time", "peak_memory")
    table = sequence.crossovers(metrics, axis="seq_len")
    document = json.loads(json_output.run(summarise(sequence.stored, metrics, axis="seq_len")))
    rows = 0
    for panel in document["panels"]:
        of_panel = table[(table["axis"] == panel["axis"]) & (table["mode"] == panel["fixed"]["mode"])]
        for metric in panel["metrics"]:
            for series in metric["series"]:
                chosen = of_panel[(of_panel["metric"] == metric["metric"]) & (of_panel["series"] == series["name"])]
                for against, name in (("baseline", "against_baseline"), ("best exact", "against_exact")):
                    found, expected = chosen[chosen["against"] == against], series[name]
                    rows += len(found)
                    assert len(found) == (max(1, len(expected["crossings"])) if expected else 0)
                    if not expected:
                        continue
                    assert set(found["kind"]) == {expected["kind"]}
                    for row, crossing in zip(found.to_dict("records"), expected["crossings"], strict=False):
                        assert [row[x] for x in ("at", "low", "high")] == pytest.approx(
                            [float("nan") if crossing[x] is None else crossing[x] for x in ("at", "low", "high")],
                            nan_ok=True,
                        )
                        assert (row["direction"], row["bracket"]) == (crossing["direction"], crossing["bracket"])
                    stretch = expected["stretch"]
                    if stretch:
                        (row,) = found.to_dict("records")
                        assert row["cheaper"] is stretch["cheaper"]
                        assert all(row[x] == stretch[x] or pd.isna(row[x]) for x in ("first", "last"))
    assert rows == len(table) > 100


def test_metrics_axis_and_operators_restrict_what_is_shown_not_what_is_judged(sequence: attnbench.StoredRun) -> None:
    every = sequence.crossovers("wall_time", axis="seq_len")
    few = sequence.crossovers("wall_time", axis="seq_len", operators="rfa, performer")
    assert set(few["operator"]) == {"rfa", "performer"}
    same = every[every["operator"].isin({"rfa", "performer"})].reset_index(drop=True)
    pd.testing.assert_frame_equal(few, same)
    other = sequence.crossovers(["wall_time"], baseline="softmax:sdpa", operators=["rfa"])
    assert set(other[other["against"] == "baseline"]["baseline"]) == {"softmax:sdpa"}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"metrics": "wall"}, "wall"),
        ({"axis": "batch"}, "batch"),
        ({"baseline": "softmacs"}, "softmacs"),
        ({"operators": "rfb"}, "rfb"),
    ],
)
def test_what_the_run_does_not_have_is_bad_input(
    sequence: attnbench.StoredRun, words: dict[str, str], named: str
) -> None:
    for ask in (sequence.summary, sequence.crossovers):
        with pytest.raises(attnbench.BadInput, match=named):
            ask(**words)


def test_what_is_no_run_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(attnbench.BadInput, match="not a run folder"):
        attnbench.load(tmp_path)
    with pytest.raises(attnbench.BadInput, match="no such folder"):
        attnbench.load(str(tmp_path / "gone"))


def test_a_notebook_shows_what_show_says_first(sequence: attnbench.StoredRun) -> None:
    view = first_screen(sequence.summary())
    assert view is not None
    shown = sequence._repr_html_()
    for sentence in view.sentences:
        assert html.escape(sentence) in shown
    for column in (column for table in view.tables for column in table.columns):
        assert all(f"<td>{html.escape(text)}</td>" in shown for text in column.texts)
    assert '<th colspan="4">training</th>' in shown


def test_text_of_a_foreign_run_is_no_markup(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(REFERENCE / "cpu-border", folder)
    text = (folder / "suite.yaml").read_text()
    assert text.startswith("name: ")
    (folder / "suite.yaml").write_text(
        'name: "<script>alert(1)</script>\\e[31m"\n'
        + "\n".join(line for line in text.splitlines() if not line.startswith("name:"))
    )
    shown = attnbench.load(folder)._repr_html_()
    assert "<script" not in shown
    assert "\x1b" not in shown
    assert "&lt;script&gt;" in shown


def test_pictures_are_figures_and_nothing_is_written(sequence: attnbench.StoredRun, tmp_path: Path) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    before = {path.name for path in SEQUENCE.iterdir()}
    pictures = sequence.plot("wall_time", axis="seq_len", operators="softmax,rfa")
    assert len(pictures) > 1
    assert all(isinstance(picture, figure.Figure) for picture in pictures.values())
    assert {path.name for path in SEQUENCE.iterdir()} == before
    column = sequence.plot("wall_time", axis="seq_len", operators="softmax,rfa", size="3.5in", title="none")
    assert {picture.get_figwidth() for picture in column.values()} == {3.5}
    name = next(iter(pictures))
    pictures[name].savefig(tmp_path / "one.pdf")
    assert (tmp_path / "one.pdf").stat().st_size > 1000
    assert name in repr(pictures)
    assert list(pictures.matching("*-overview")) == ["seq_len-wall_time-overview"]


def test_what_is_no_text_name_or_folder_is_refused_by_its_name(sequence: attnbench.StoredRun) -> None:
    calls: dict[str, Callable[[], object]] = {
        "folder = 3": lambda: attnbench.load(3),  # type: ignore[arg-type]
        "metrics = nothing": lambda: sequence.crossovers(None),  # type: ignore[arg-type]
        r"operators = \[3\]": lambda: sequence.crossovers(operators=[3]),  # type: ignore[list-item]
        "baseline = 3": lambda: sequence.summary(baseline=3),  # type: ignore[arg-type]
        "size = 3": lambda: sequence.plot(size=3),  # type: ignore[arg-type]
        "run = 3": lambda: attnbench.choose(seq_len=512, run=3),  # type: ignore[arg-type]
        "suite = 3": lambda: attnbench.run(3),  # type: ignore[arg-type]
        "runs = 3": lambda: attnbench.merge(3, "out"),  # type: ignore[arg-type]
    }
    for named, call in calls.items():
        with pytest.raises(attnbench.BadInput, match=f"^{named}; allowed: "):
            call()
    assert attnbench.load(sequence).folder == SEQUENCE
