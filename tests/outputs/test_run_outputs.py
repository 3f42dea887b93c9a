"""Every view of one synthetic run: what is in it, and that it fits and stays plain."""

from __future__ import annotations

import csv as csv_module
import io
import json as json_module
import math
from dataclasses import replace

import pytest
from rich.console import Console

from attnbench.analysis.compare.findings import Comparison, CrossoverShift
from attnbench.analysis.crossover import Crossing, Crossover, Edge, Stretch
from attnbench.analysis.summary import Summary, summarise
from attnbench.axes import AXES
from attnbench.outputs import csv, json, markdown, table
from attnbench.outputs._run_tables import crossing_mark, crossover_text
from tests.analysis.runs import Law, cell, laws, run_of, sequence, visits_of

SIZES = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
LAWS: dict[str, Law] = {
    "softmax": lambda n: 1e-6 * n**2,
    "softmax:sdpa": lambda n: 3e-7 * n**2,
    "performer": lambda n: 1e-4 * n,
    "linear_transformer:cuda": lambda n: 1e-4 * n,
    "identity": lambda n: 1e-9,
    "local": lambda n: 1e-4 * n,
}
STATUSES = {
    ("softmax", 8192): "oom",
    ("softmax", 16384): "skipped",
    ("local", 64): "wrong",
    **{("linear_transformer:cuda", n): "skipped" for n in SIZES},
}


@pytest.fixture(scope="module")
def summary() -> Summary:
    run = laws(SIZES, LAWS, own=0.005, statuses=STATUSES)
    run.environment.update(stated={"performer {}": {"time": "n", "memory": "n"}}, exact=["softmax {}"])
    return summarise(run)


def printed(summary: Summary, width: int = 80, **console: object) -> str:
    file = io.StringIO()
    table.write(summary, Console(file=file, width=width, **console))  # type: ignore[arg-type]
    return file.getvalue()


def test_eighty_columns_and_no_escapes(summary: Summary) -> None:
    text = printed(summary)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "…" not in text.replace("[…,", "").replace(", …]", "")
    for name in ("linear_transformer:cuda", "softmax:sdpa", "performer"):
        assert name in text


def test_marks_do_not_need_colour(summary: Summary) -> None:
    rows = [line for line in printed(summary, width=200).splitlines() if line.startswith("performer ")]
    figures = rows[0].split()[1:]
    assert [i for i, text in enumerate(figures) if text.startswith("↓")] == [1]
    assert any(text.endswith("*") for text in figures)
    coloured = printed(summary, width=200, force_terminal=True, color_system="standard")
    assert "\x1b[" in coloured


def test_failures_are_told_with_their_reason_and_missing_is_empty(summary: Summary) -> None:
    text = printed(summary, width=200)
    softmax = next(line for line in text.splitlines() if line.startswith("softmax "))
    assert softmax.split().count("oom") == 2
    assert "softmax: oom at 8192, counted as a win for those that run there: oom here" in text
    assert "local: wrong at 64: wrong here" in text
    assert "skipped: linear_transformer:cuda: skipped here" in text


def test_fast_exact_softmax_that_was_not_there_is_told_with_what_installs_it() -> None:
    fast = {"cuda:fa3": "", "cuda:fa4": "FlashAttention-4 is not installed: pip install it", "cuda:cudnn": ""}
    every = {"softmax": LAWS["softmax"], "softmax:cuda:cudnn": LAWS["softmax"], "softmax:cuda:fa4": LAWS["softmax"]}
    run = laws((64, 128), every, statuses={("softmax:cuda:fa4", n): "skipped" for n in (64, 128)})
    run.environment.update(fast_exact=fast)
    text = " ".join(printed(summarise(run), width=200).split())
    assert "faster than shown: softmax:cuda:fa4 was not measured: FlashAttention-4 is not installed: pip" in text
    assert "faster than shown: softmax:cuda:fa3 was not measured: it is not in the suite" in text
    assert "softmax:cuda:cudnn was not measured" not in text
    assert "skipped:" not in text  # each is told once
    broken = laws((64, 128), every, statuses={("softmax:cuda:cudnn", n): "error" for n in (64, 128)})
    broken.environment.update(fast_exact=fast)
    assert summarise(broken).untried_exact["softmax:cuda:cudnn"] == "error here"
    assert json_module.loads(json.run(summarise(run)))["untried_exact"].keys() == {
        "softmax:cuda:fa3",
        "softmax:cuda:fa4",
    }
    without = laws((64, 128), {"performer": LAWS["performer"]})
    without.environment.update(fast_exact=fast)
    assert not summarise(without).untried_exact


def test_crossovers_growth_and_choice_are_told(summary: Summary) -> None:
    text = printed(summary, width=200)
    assert "Crossover of wall time" in text
    assert "cheaper than fastest exact softmax" in text
    assert "a different function; quality not measured here" in text
    assert "2.00×" in text
    assert "8192–16384" in text
    assert "Growth of exact figures" in text


def test_a_run_without_visits_says_so() -> None:
    assert "Nothing was measured" in printed(summarise(laws([], {})))


def test_csv_keeps_base_units_and_leaves_the_missing_empty(summary: Summary) -> None:
    rows = list(csv_module.DictReader(io.StringIO(csv.run(summary))))
    found = {(r["metric"], r["series"], r["label"]): r for r in rows}
    assert tuple(rows[0]) == csv.COLUMNS
    performer = found["wall_time", "performer", "1024"]
    assert float(performer["value"]) == pytest.approx(0.1024, rel=0.1)
    assert float(performer["low"]) < float(performer["value"]) < float(performer["high"])
    assert found["wall_time", "softmax", "8192"]["value"] == ""
    assert found["wall_time", "softmax", "8192"]["status"] == "oom"
    assert float(found["flops", "performer", "64"]["value"]) == int(1e-4 * 64 * 1e9)


def test_json_is_strict_and_holds_everything(summary: Summary) -> None:
    found = json_module.loads(json.run(summary), parse_constant=pytest.fail)
    assert (found["version"], found["suite"], found["baseline"]) == (3, "synthetic", "softmax")
    (panel,) = found["panels"]
    wall = next(m for m in panel["metrics"] if m["metric"] == "wall_time")
    performer = next(s for s in wall["series"] if s["name"] == "performer")
    assert performer["against_baseline"]["crossings"][0]["at"] == pytest.approx(100, rel=0.05)
    assert performer["against_exact"]["crossings"][0]["direction"] == "above"
    assert performer["doubling"]["low"] < 2 < performer["doubling"]["high"]
    assert (performer["doubling"]["sizes"], performer["growth"]) == ([8192, 16384], None)
    memory = next(m for m in panel["metrics"] if m["metric"] == "peak_memory")["series"]
    assert next(s for s in memory if s["name"] == "performer")["growth"]["growth"] == "n"
    assert performer["stated"] == "n"
    assert performer["against_baseline"]["baseline_beyond"] == {"label": "8192", "status": "oom"}
    last = panel["recommendations"][-1]
    assert last["fastest"]["operator"] in ("performer", "local")
    assert last["fastest"] in last["choices"]
    assert last["choices"][0]["note"] == "a different function; quality not measured here"


def test_one_round_is_null_in_json_not_nan() -> None:
    found = json_module.loads(json.run(summarise(laws((64, 128, 256), LAWS, rounds=1))), parse_constant=pytest.fail)
    figures = found["panels"][0]["metrics"][0]["series"][0]["figures"]
    assert figures[0]["value"] > 0
    assert figures[0]["low"] is None


def test_markdown_tables_are_rectangular_and_escaped(summary: Summary) -> None:
    text = markdown.tables(summary)
    width = None
    for line in text.splitlines():
        if line.startswith("|"):
            bars = line.replace("\\|", "").count("|")
            assert width in (None, bars)
            width = bars
        else:
            width = None
    assert "**" in text
    assert "linear\\_transformer" in text
    assert "linear_transformer" not in text


SCALES = ("0.25", "0.5", "1", "2", "4")


def of_estimates() -> Summary:
    """Errors of rfa and performer at two sizes, with performer not measured at scale 4."""
    cells = []
    for n in (64, 128):
        for name, base in (("softmax", None), ("rfa", 0.1), ("performer", 0.2)):
            metrics = {}
            if base is not None:
                metrics = {f"softmax_error_at_{s}": base * float(s) + n / 1e4 for s in SCALES}
                metrics |= {f"mean_error_at_{s}": 0.5 * float(s) for s in SCALES} | {"estimate_error": base}
            if name == "performer":
                del metrics["softmax_error_at_4"]
            cells.append((cell(name, sequence(n)), 1.0, metrics))
    estimates = {"rfa {}": "a kernel of its own", "performer {}": "softmax attention"}
    return summarise(run_of(visits_of(cells), {"estimates": estimates}), ["softmax_error"])


def test_an_error_is_shown_along_its_curve_beside_that_of_the_mean() -> None:
    rows = [line.split() for line in printed(of_estimates()).splitlines()]
    assert ["Error", "against", "softmax", "attention,", "logit", "scale", "1"] in rows
    assert ["rfa", "0.11", "0.11"] in rows
    assert ["the", "mean", "of", "v", "0.50", "0.50"] in rows
    start = rows.index(["Error", "against", "softmax", "attention", "by", "logit", "scale"])
    assert rows[start + 1] == ["logit", "scale", *SCALES]
    assert ["rfa", "at", "128", "0.04", "0.06", "0.11", "0.21", "0.41"] in rows
    assert rows[rows.index(["performer", "at", "128", "0.06", "0.11", "0.21", "0.41"]) + 1][-5:] == [
        *("0.12", "0.25", "0.50", "1.00", "2.00")
    ]
    assert ["rfa", "estimates", "a", "kernel", "of", "its", "own"] in rows
    assert not any(row[:1] == ["softmax"] and len(row) > 1 for row in rows[:start]), "it estimates nothing"


def test_csv_and_json_hold_the_curve() -> None:
    summary = of_estimates()
    (metric,) = json_module.loads(json.run(summary))["panels"][0]["metrics"]
    assert metric["curve"] == {"over": "logit scale", "beside": "the mean of v"}
    rfa, performer = metric["series"]
    assert (rfa["name"], rfa["estimates"]) == ("rfa", "a kernel of its own")
    assert performer["figures"][1]["curve"][4] == {"at": "4", "value": None, "beside": 2.0}
    assert [p["at"] for p in rfa["figures"][0]["curve"]] == list(SCALES)
    rows = list(csv_module.DictReader(io.StringIO(csv.run(summary))))
    told = {(row["metric"], row["series"], row["label"]): row["value"] for row in rows}
    assert float(told["softmax_error", "rfa", "64"]) == rfa["figures"][0]["value"]
    assert float(told["softmax_error_at_4", "rfa", "128"]) == rfa["figures"][1]["curve"][4]["value"]
    assert float(told["mean_error_at_1", "rfa", "64"]) == 0.5
    assert told["softmax_error_at_4", "performer", "128"] == ""
    assert len(told) == len(rows)


SMALL, LARGE = Edge("256", 256, 0.5, 0.4, 0.6), Edge("4096", 4096, 2.0, 1.9, 2.1)
UNSURE = Edge("256", 256, 2, math.nan, math.nan)
ABOVE, BELOW = Crossing(700, 650, 760, "above"), Crossing(1500, 1400, 1600, "below")
BRACKET = Crossing(None, 1024, 2048, "below", bracket=True)


@pytest.mark.parametrize(
    ("crossover", "full", "compact", "brief"),
    [
        (
            Crossover("always", smallest=SMALL, largest=LARGE),
            *("at every size measured, 256–4096 tokens (0.50× at 256)", "every size (0.50×)", "every size"),
        ),
        (
            Crossover("always", smallest=SMALL, largest=SMALL),
            *("at the one size measured, 256 tokens (0.50× at 256)", "every size (0.50×)", "every size"),
        ),
        (
            Crossover("always", baseline_beyond=("512", "oom")),
            *("at every size measured; softmax out of memory at 512", "every size; softmax out of memory at 512"),
            "every size",
        ),
        (
            Crossover("never", smallest=SMALL, largest=LARGE),
            *("nowhere up to 4096 tokens (2.00× there)", "nowhere (2.00×)", "nowhere"),
        ),
        (
            Crossover("never", series_beyond=("512", "timeout")),
            *("nowhere; itself out of time at 512", "nowhere; itself out of time at 512", "out of time"),
        ),
        (Crossover("undecided"), "not told apart", "not told apart", "unclear"),
        (Crossover("same"), "the same", "the same", "the same"),
        (Crossover("nothing"), "", "", ""),
        (
            Crossover("stretch", stretch=Stretch(True, "512", None), largest=LARGE),
            *("from 512 tokens on (2.00× at 4096); not told apart below", "from 512 on (2.00×)", "from 512 on"),
        ),
        (
            Crossover("stretch", stretch=Stretch(True, None, "512"), smallest=SMALL),
            *("up to 512 tokens (0.50× at 256); not told apart above", "up to 512 (0.50×)", "up to 512"),
        ),
        (
            Crossover("stretch", stretch=Stretch(False, None, "512")),
            *("dearer up to 512 tokens; not told apart above", "dearer up to 512", "unclear"),
        ),
        (
            Crossover("stretch", stretch=Stretch(False, "512", None)),
            *("dearer from 512 tokens on; not told apart below", "dearer from 512 on", "nowhere"),
        ),
        (
            Crossover("stretch", stretch=Stretch(True, "512", "2048")),
            *("from 512 to 2048 tokens; not told apart elsewhere", "from 512 to 2048", "from 512 to 2048"),
        ),
        (
            Crossover("stretch", stretch=Stretch(True, "512", "512")),
            *("at 512 tokens; not told apart elsewhere", "at 512", "at 512"),
        ),
        (Crossover("crossing", (ABOVE,)), "from 700 tokens [650, 760]", "from 700 [650, 760]", "from 700"),
        (Crossover("crossing", (BELOW,)), "up to 1500 tokens [1400, 1600]", "up to 1500 [1400, 1600]", "up to 1500"),
        (
            Crossover("crossing", (ABOVE, BRACKET)),
            "from 700 tokens [650, 760] up to somewhere between 1024 and 2048 tokens",
            *("from 700 [650, 760] up to 1024–2048", "from 700 up to 1024–2048"),
        ),
        (
            Crossover("crossing", (BELOW, Crossing(2000, 1900, 2100, "above"))),
            "up to 1500 tokens [1400, 1600] and from 2000 tokens [1900, 2100]",
            *("up to 1500 [1400, 1600] and from 2000 [1900, 2100]", "up to 1500 and from 2000"),
        ),
        (
            Crossover("crossing", (Crossing(700, None, None, "above"),), None, UNSURE),
            *("from 700 tokens; one round, no interval", "from 700; one round, no interval", "from 700"),
        ),
    ],
)
def test_a_crossover_in_words(crossover: Crossover, full: str, compact: str, brief: str) -> None:
    assert crossover_text(crossover, "seq_len", "softmax") == full
    assert crossover_text(crossover, "seq_len", "softmax", "compact") == compact
    assert crossover_text(crossover, "seq_len", "softmax", "brief") == brief


def test_a_place_has_the_unit_of_its_axis() -> None:
    bracket = Crossover("crossing", (Crossing(None, 196, 400, "above", bracket=True),))
    assert crossover_text(bracket, "image_size", "softmax") == "from somewhere between 14x14 and 20x20 pixels"
    crossing = Crossover("crossing", (Crossing(1, None, None, "above"),))
    texts = [crossover_text(crossing, axis, "softmax") for axis in AXES]
    assert texts == [
        *("from 1 token", "from 1x1 pixels", "from 1 channel", "from 1 head", "from 1 channel", "from 1 head"),
        *("from 1 sample", "from 1 new token"),
    ]


def test_crossovers_are_compact_where_the_table_would_be_too_wide(summary: Summary) -> None:
    narrow, wide = printed(summary, width=80), printed(summary, width=200)
    assert "at every size measured, 64–4096 tokens (" in wide
    assert "at every size measured" not in narrow
    assert "every size (" in narrow


def test_a_crossing_in_a_picture() -> None:
    assert crossing_mark(BRACKET, "seq_len") == "<1024…2048"
    assert crossing_mark(ABOVE, "seq_len") == ">700"
    assert crossing_mark(Crossing(None, 196, 400, "above", bracket=True), "image_size") == ">14x14…20x20"


def test_a_crossover_that_moved_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    before, after = Crossover("crossing", (ABOVE,)), Crossover("crossing", (BRACKET,))
    moved = CrossoverShift("local", "seq_len: …", "wall_time", "softmax", "seq_len", before, after, True)
    comparison = Comparison("a", "b", (), shifts=(moved, replace(moved, changed=False, series="rfa")))
    table.comparisons([comparison])
    told = "from 700 tokens [650, 760]", "up to somewhere between 1024 and 2048 tokens"
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("crossover")] == [
        f"crossover of local in wall_time with softmax: {told[0]} → {told[1]}"
    ]
    (document,) = json_module.loads(json.comparisons([comparison]))["comparisons"]
    assert [(c["before"], c["after"], c["axis"]) for c in document["crossovers"]] == [(*told, "seq_len")] * 2
