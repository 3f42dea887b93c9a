"""The answer of a run: its sentences, its tables within a screen, and what it says of runs that hold little."""

from __future__ import annotations

import io
import json as json_module
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.analysis.answer import NO_LACK, answer, start
from attnbench.analysis.crossover import Crossing, Crossover, Edge, Stretch
from attnbench.analysis.run import Run, read_run
from attnbench.analysis.summary import Summary, summarise
from attnbench.outputs import html, json, markdown, table
from attnbench.outputs._answer import LETTERS, place_mark, said, view
from attnbench.outputs._screen import LINES
from attnbench.problem import Cell, Problem
from attnbench.properties import PROPERTIES
from attnbench.store.records import Visit
from tests import stored
from tests.analysis.runs import Law, cell, laws, run_of, visits_of

REFERENCE = Path(__file__).parents[2] / "results" / "reference"

TOKENS = (256, 512, 1024, 2048)
SIDES = (16, 24, 32)
QUICK: dict[str, Law] = {
    "softmax": lambda n: 1e-8 * n**2,
    "softmax:sdpa": lambda n: 8e-9 * n**2,
    "identity": lambda n: 1e-6,
    "local": lambda n: 3.3e-6 * n,
    "linformer": lambda n: 4.4e-6 * n,
    "linear_transformer": lambda n: 5e-6 * n,
    "performer": lambda n: 7e-6 * n,
}
IMAGES: dict[str, Law] = {**QUICK, "kao_kv": lambda n: 4e-6 * n, "kao_qkv": lambda n: 3e-6 * n}
LACKS = {
    "local": ("all_pairs",),
    "linformer": ("causal", "decode", "any_length"),
    "kao_kv": ("all_pairs", "causal", "decode"),
    "kao_qkv": ("all_pairs", "causal", "decode"),
}
PROPERTIES_OF = {
    f"{name} {{}}": {"full": {each: each not in LACKS.get(name, ()) for each in PROPERTIES}}
    for name in ("local", "linformer", "linear_transformer", "performer", "kao_kv", "kao_qkv")
}
ENVIRONMENT = {
    "exact": ["softmax {}"],
    "properties": PROPERTIES_OF,
    "device": "cpu",
    "cpu": "Intel(R) Xeon(R) Platinum 8481C",
    "threads": 2,
}


def in_mode(what: Cell, mode: str) -> Cell:
    return replace(what, mode=mode)  # type: ignore[arg-type]


def quick_visits() -> list[Visit]:
    """Of a run of the shape of suites/quick.yaml: two axes, both modes, and a verdict of its own for each."""
    cells = []
    for mode, factor in (("fwd", 1.0), ("fwd_bwd", 1.6)):
        for rows, problems in (
            (QUICK, [Problem(n, 128, 4) for n in TOKENS]),
            (IMAGES, [Problem(s * s, 128, 4, height=s, width=s) for s in SIDES]),
        ):
            for name, law in rows.items():
                operator, _, impl = name.partition(":")
                for problem in problems:
                    n = problem.seq_len
                    slower = 1 if operator == "softmax" else factor
                    metrics = {"flops": n, "peak_memory_bytes": 1000 * n, "parameter_bytes": 0}
                    if name == "performer":
                        metrics |= {"softmax_error_at_1": 2.25, "mean_error_at_1": 0.79}
                    what = in_mode(cell(operator, problem, impl or "reference"), mode)
                    cells.append((what, law(n) * slower, metrics))
    return visits_of(cells, own=0.005, process=0.01)


def quick(environment: Mapping[str, object] = ENVIRONMENT) -> Run:
    return run_of(quick_visits(), environment)


def lines(summary: Summary, width: int = 80) -> list[str]:
    file = io.StringIO()
    table.write_answer(summary, Console(file=file, width=width))
    return file.getvalue().splitlines()


def small(rows: Mapping[str, Law], sizes: tuple[int, ...] = TOKENS, **model: object) -> Summary:
    run = laws(sizes, rows, own=0.003, process=0.01, **model)
    run.environment.update(exact=["softmax {}"], device="cpu")
    return summarise(run)


def test_the_quick_suite_is_answered_on_one_screen() -> None:
    shown = lines(summarise(quick()))
    assert len(shown) <= LINES, "with `attnbench run` the folder is one more line: 25"
    assert max(map(len, shown)) <= 80
    text = " ".join(" ".join(shown).split())
    for axis in ("seq_len", "image_size"):
        for mode in ("inference", "training"):
            assert f"{axis}, {mode}: eager softmax stops paying from about " in text
    assert text.count("; weighing all pairs: ") == 4
    heads = [line for line in shown if line.split()[:1] in (["seq_len"], ["image_size"])]
    assert len(heads) == 2
    assert "cells without a figure" not in text
    assert "more rows: --all" in text
    assert "P: not all pairs" in text
    assert "memory: without inputs" in text
    assert "memory: without inputs" not in (by_memory := " ".join(lines(summarise(quick(), ["peak_memory"]))))
    assert "by peak memory without inputs, parameters included: " in " ".join(by_memory.split())


def test_no_row_is_left_out_that_fits_the_screen() -> None:
    shown = lines(summarise(quick(), axis="seq_len"))
    names = {line.split()[0] for line in shown if line}
    assert {"softmax", "softmax:sdpa", "local", "linformer", "linear_transformer", "performer"} <= names
    assert "identity" not in names
    assert any(line.startswith("+1 more row: --all") for line in shown)


def test_a_stored_run_prints_the_same(tmp_path: Path) -> None:
    made = stored.folder(tmp_path / "run", quick_visits())
    (made / "environment.json").write_text(json_module.dumps(ENVIRONMENT))
    done = CliRunner().invoke(app, ["show", str(made)], env={"COLUMNS": "80"})
    assert done.exit_code == 0
    assert done.output.splitlines() == lines(summarise(read_run(made)))
    assert len(done.output.splitlines()) <= LINES


def test_a_legend_only_for_marks_that_appear() -> None:
    text = " ".join(" ".join(lines(summarise(quick(), axis="seq_len"))).split())
    rows = {row.name: row for table in answer(summarise(quick(), axis="seq_len")).tables for row in table.rows}
    assert rows["linformer"].lacks == ("causal", "decode", "any_length")
    assert "C: not causal, N: weights grow with N" in text
    assert "no decoding" not in text, "what is not causal cannot decode"
    assert "<N:" not in text
    assert "=:" not in text
    only = " ".join(lines(summarise(quick(), axis="seq_len", operators=["softmax", "linear_transformer"])))
    assert "not causal" not in only
    assert "error as an estimate" not in only


def test_every_lack_has_a_letter_of_its_own() -> None:
    assert set(LETTERS) == set(PROPERTIES) - set(NO_LACK)
    assert len(set(LETTERS.values())) == len(LETTERS)


def test_words_where_there_is_room_and_letters_where_there_is_none() -> None:
    found = summarise(quick(), axis="seq_len")
    wide, narrow = ("\n".join(lines(found, width)) for width in (160, 80))
    for word in ("not causal, weights grow with N", "error 2.25 (mean of v: 0.79)", "from "):
        assert word in wide
    assert "≤" not in wide
    assert "  CN" in narrow
    assert "e2.2" in narrow
    assert max(map(len, lines(found, 40))) <= 40


def test_markdown_and_json_hold_the_same_answer() -> None:
    found = summarise(quick())
    text = markdown.run(found)
    assert text.startswith("On this CPU (Intel Xeon Platinum 8481C, 2 threads): float32, batch 1")
    widths = {line.count(" | ") for line in text.splitlines() if line.startswith("| ")}
    assert len(widths) == 1
    assert "inference: cheaper than eager softmax" in text
    assert "not causal, weights grow with N" in text
    document = json_module.loads(json.run(found), parse_constant=pytest.fail)["answer"]
    assert [verdict["axis"] for verdict in document["verdicts"]] == ["seq_len", "seq_len", "image_size", "image_size"]
    first = document["verdicts"][0]["against_baseline"]
    assert (first["series"], first["outcome"]) == ("local", "passed")
    assert first["start"]["at"] == pytest.approx(330, rel=0.05)
    assert first["crossover"]["crossings"][0]["direction"] == "above"
    rows = document["tables"][0]["rows"]
    assert [row["role"] for row in rows[:2]] == ["baseline", "best exact"]
    assert rows[0]["params"] == {}
    assert len(rows) == len(QUICK) - 1


SIZES = {"256": 256, "512": 512, "1024": 1024, "2048": 2048}
EDGES = {"smallest": Edge("256", 256, 0.5, 0.4, 0.6), "largest": Edge("2048", 2048, 2.0, 1.9, 2.1)}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            {"fnet": lambda n: 1e-7 * n},
            "fnet is cheaper than eager softmax and the best exact softmax at every size measured, 256–2048 tokens",
        ),
        (
            {"fnet": lambda n: 1e-3 * n},
            "eager softmax and the best exact softmax pay at every size measured, 256–2048 tokens",
        ),
        (
            {"fnet": lambda n: 5e-6 * n},
            "eager softmax stops paying from about 499 tokens (fnet), best exact from 1000",
        ),
        (
            {"fnet": lambda n: 1e-8 * n**2},
            "nothing else is known to be cheaper than eager softmax at 256–2048 tokens, though not all can be told "
            "from it; ",
        ),
        (
            {"fnet": lambda n: 1e-11 * n**3},
            "fnet is cheaper than eager softmax only below 995 tokens; "
            "fnet is cheaper than the best exact softmax only below 500 tokens",
        ),
    ],
)
def test_what_a_verdict_says(rows: dict[str, Law], words: str) -> None:
    found = answer(small({"softmax": lambda n: 1e-8 * n**2, "softmax:sdpa": lambda n: 5e-9 * n**2, **rows}))
    assert words in said(found.verdicts[0], found)


def test_softmax_that_runs_out_of_memory_is_told() -> None:
    rows = {"softmax": lambda n: 1e-8 * n**2, "fnet": lambda n: 2e-5 * n}
    found = answer(small(rows, statuses={("softmax", 2048): "oom"}))
    text = said(found.verdicts[0], found)
    assert text == "eager softmax stops paying between 1024 and 2048 tokens (fnet), being out of memory at 2048"


def test_softmax_that_runs_nowhere_is_passed_by_what_is_cheapest_at_the_end() -> None:
    rows: dict[str, Law] = {"softmax": lambda n: 1e-8 * n**2, "local": lambda n: 2e-5 * n, "fnet": lambda n: 1e-5 * n}
    found = answer(small(rows, sizes=(2048,), statuses={("softmax", 2048): "oom"}))
    text = said(found.verdicts[0], found)
    assert text == "eager softmax stops paying from 2048 tokens at the latest (fnet), being out of memory at 2048"


def test_panels_of_which_nothing_was_measured_are_one_sentence() -> None:
    problems = [
        Problem(n, 64, 4, batch=b, causal=True, kv_heads=k)
        for n in (256, 1024, 4096)
        for b, k in ((1, 4), (2, 4), (1, 1), (2, 1))
    ]
    rows: dict[str, Law] = {"softmax": lambda n: 1e-8 * n**2, "fnet": lambda n: 1e-7 * n}
    cells = [
        (cell(name, p), law(p.seq_len) if p.seq_len == 256 else "skipped", {})
        for name, law in rows.items()
        for p in problems
    ]
    found = view(summarise(run_of(visits_of(cells, own=0.005))))
    assert found is not None
    assert [each for each in found.sentences if "nothing was measured" in each] == [
        f"{panels}seq_len 1024/4096): nothing was measured: skipped here."
        for panels in ("kv_heads (batch 1/2, ", "batch (")
    ]


def test_where_every_cell_failed_the_reason_is_said_on_the_screen_and_in_every_table() -> None:
    statuses = {(name, n): "error" for name in ("softmax", "local") for n in (64, 128)}
    summary = summarise(laws((64, 128), {"softmax": float, "local": float}, statuses=statuses))
    reasons = {point.reason for panel in summary.panels for each in panel.panel.series for point in each.points}
    (reason,) = reasons
    assert reason
    found = view(summary)
    assert found is not None
    assert any(f"nothing was measured: {reason}" in each for each in found.sentences)
    for printed in (markdown.run(summary), markdown.tables(summary), html.run(summary)):
        assert reason in printed


@pytest.mark.parametrize(
    ("found", "mark"),
    [
        (None, ""),
        (Crossover("nothing"), ""),
        (Crossover("always", **EDGES), "≤256"),
        (Crossover("never", **EDGES), "–"),
        (Crossover("undecided", **EDGES), "?"),
        (Crossover("same", **EDGES), "="),
        (Crossover("stretch", stretch=Stretch(True, "512", None), **EDGES), "≤512"),
        (Crossover("stretch", stretch=Stretch(True, None, "512"), **EDGES), "?"),
        (Crossover("stretch", stretch=Stretch(False, "512", None), **EDGES), "–"),
        (Crossover("stretch", stretch=Stretch(False, None, "512"), **EDGES), "?"),
        (Crossover("crossing", (Crossing(911, 880, 949, "above"),), **EDGES), "911"),
        (Crossover("crossing", (Crossing(None, 512, 1024, "above", bracket=True),), **EDGES), "≤1024"),
        (Crossover("crossing", (Crossing(911, 880, 949, "below"),), **EDGES), "<911"),
        (Crossover("crossing", (Crossing(None, 512, 1024, "below", bracket=True),), **EDGES), "<512"),
    ],
)
def test_the_mark_of_a_place(found: Crossover | None, mark: str) -> None:
    panel = small({"softmax": lambda n: n, "fnet": lambda n: n}).panels[0].panel
    assert place_mark(found, start(found, panel, list(SIZES)), "seq_len") == mark


def test_a_run_without_a_baseline_or_without_exact_softmax_is_answered() -> None:
    neither = "\n".join(lines(small({"fnet": lambda n: 1e-6 * n, "local": lambda n: 2e-6 * n})))
    assert "nothing to compare; the least wall time at 2048 tokens: fnet." in neither
    assert "eager" not in neither
    assert neither.index("fnet  ") < neither.index("local  ")
    no_eager = "\n".join(lines(small({"softmax:sdpa": lambda n: 1e-8 * n**2, "fnet": lambda n: 5e-6 * n})))
    assert "the best exact softmax stops paying from about " in no_eager
    assert "eager" not in no_eager


def test_one_size_one_mode_and_nothing_measured() -> None:
    one = "\n".join(lines(small({"softmax": lambda n: 1e-8 * n**2, "fnet": lambda n: 1e-7 * n}, sizes=(512,))))
    assert "fnet is cheaper than eager softmax at the one size measured, 512 tokens." in " ".join(one.split())
    skipped = {("softmax", 512): "skipped", ("fnet", 512): "skipped"}
    none = "\n".join(lines(small({"softmax": lambda n: 1e-8, "fnet": lambda n: 1e-7}, sizes=(512,), statuses=skipped)))
    assert "skipped here" in none
    assert view(small({}, sizes=())) is None


def test_sizes_at_which_nothing_ran_are_named_once() -> None:
    statuses = {(name, n): "skipped" for name in ("softmax", "fnet") for n in (1024, 2048)}
    text = " ".join(lines(small({"softmax": lambda n: 1e-8 * n**2, "fnet": lambda n: 1e-7 * n}, statuses=statuses)))
    assert "256–512 tokens" in " ".join(text.split())
    assert "not measured: seq_len 1024, 2048: --all" in text
    assert "cells without a figure" not in text


def test_failures_are_counted_and_what_ran_nowhere_else_is_told() -> None:
    statuses = {("local", 2048): "oom", ("fnet", 512): "wrong", **{("performer", n): "skipped" for n in TOKENS}}
    rows: dict[str, Law] = {name: lambda n: 1e-6 * n for name in ("softmax", "local", "fnet", "performer")}
    text = " ".join(lines(small(rows, statuses=statuses)))
    assert "cells without a figure: 1 oom, 1 wrong; 1 series skipped: --all" in text


def test_panels_beyond_those_shown_are_counted_and_alike_ones_told_once() -> None:
    problems = [
        Problem(n, 64, 4, batch=b, causal=True, kv_heads=k) for n in (256, 1024) for b in (1, 2) for k in (1, 2)
    ]
    rows: dict[str, Law] = {"softmax": lambda n: 1e-8 * n**2, "fnet": lambda n: 1e-7 * n}
    cells = [(cell(name, p), law(p.seq_len) * p.batch, {}) for name, law in rows.items() for p in problems]
    text = " ".join(" ".join(lines(summarise(run_of(visits_of(cells, own=0.005))))).split())
    assert "seq_len (batch 1, kv_heads 1/2): " in text
    assert "more table" in text


@pytest.mark.parametrize("name", ["cpu-image", "cpu-decode", "h100-prefill", "h100-first"])
def test_measured_runs_are_answered_within_eighty_columns(name: str) -> None:
    found = summarise(read_run(REFERENCE / name))
    shown = lines(found)
    assert max(map(len, shown)) <= 80
    assert len(shown) <= 60
    assert len(shown) < len(_all_tables(found)) / 2
    assert markdown.run(found)
    json.run(found)


def _all_tables(summary: Summary) -> list[str]:
    file = io.StringIO()
    table.write(summary, Console(file=file, width=80))
    return file.getvalue().splitlines()
