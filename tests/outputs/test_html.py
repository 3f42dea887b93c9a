"""The report is one page: complete without scripts, within its size, and safe whatever a run folder holds."""

from __future__ import annotations

import base64
import hashlib
import html as html_module
import importlib.util
import json as json_module
import math
import re
import sys
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.analysis.compare.findings import Comparison, Finding
from attnbench.analysis.grid import grids, maps
from attnbench.analysis.run import Run, read_run
from attnbench.analysis.summary import Line, Summary, summarise
from attnbench.errors import BadInput
from attnbench.outputs import _html_page, html
from attnbench.outputs._answer import view
from attnbench.outputs._colours import GREY, colour
from attnbench.outputs._grid_tables import parts as grid_parts
from attnbench.outputs._run_tables import parts
from attnbench.store.records import MOST_WARNINGS
from tests.analysis.runs import laws
from tests.stored import CELL

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
ATTACK = "</script><script>alert(1)</script><img src=http://x.test/a.png onerror=alert(2)>\u202e{{ 7 * 7 }}"


class Page(HTMLParser):
    """What a browser without scripts has: elements with their attributes, and the text outside of scripts."""

    def __init__(self, text: str, well_formed: bool = True) -> None:
        super().__init__()
        self.well_formed = well_formed
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.well_formed:
            assert self.open[-1:] == [tag]
        self.open = self.open[:-1]

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data


def made(**environment: object) -> Run:
    run = laws(
        (64, 128, 256, 512),
        {"softmax": lambda n: 1e-6 * n**2, "performer": lambda n: 1e-4 * n, "local": lambda n: 1e-4 * n},
        statuses={("local", 64): "wrong", ("softmax", 512): "oom"},
    )
    run.environment.update(exact=["softmax {}"], **environment)
    return run


@lru_cache
def report(name: str) -> tuple[Summary, str]:
    """Of a stored run: its summary and its page."""
    summary = summarise(read_run(REFERENCE / name))
    return summary, html.run(summary)


def page_of(summary: Summary) -> Page:
    return Page(html.run(summary))


def resources(page: Page) -> list[str]:
    """What a browser would load."""
    loading = ("src", "href", "srcset", "data", "poster", "action")
    return [value for _, attrs in page.elements for name, value in attrs.items() if name in loading and value]


def test_every_table_of_the_run_is_there_without_scripts() -> None:
    summary, text = report("cpu-sequence")
    page = Page(text)
    assert page.open == []
    for each in parts(summary):
        assert each.heading in page.text
        for table in each.text_tables:
            assert all(field.text in page.text for row in table.rows for field in row)
    assert resources(page) == []


def test_the_answer_is_first_with_every_operator() -> None:
    summary, text = report("cpu-sequence")
    page, answer = Page(text), view(summary, whole=True, most_rows=99)
    assert answer
    assert len(answer.tables[0].names.texts) > 20
    places = [
        page.text.index(each) for each in (answer.heading, *answer.sentences, "What to take instead", "Wall time")
    ]
    assert places == sorted(places)
    for table in answer.tables:
        assert all(text in page.text for column in table.columns for text in column.texts)


def test_places_are_sorted_by_where_a_series_is_cheaper() -> None:
    summary, _ = report("cpu-sequence")
    table = next(each for each in parts(summary)[0].text_tables if each.title == "Crossover of wall time")
    orders = {row[0].text: row[1].order for row in table.rows}
    assert orders["efficient"] == 0.0 < orders["rfa"] < orders["performer"] < orders["reformer"]
    assert orders["synthesizer"] is None


def test_what_failed_the_machine_and_warnings_are_told() -> None:
    run = made(cpu="Abacus 9", packages={"torch": "2.99"}, code={"a.py": "digest"}, threads=3)
    run.visits.at[0, "warnings"] = ("it was hot",)
    text = page_of(summarise(run)).text
    assert "wrong at 64: wrong here" in text
    assert "wrong: local at 64: wrong here" in text
    assert "oom: softmax at 512: oom here" in text
    assert "oom at 512" in text
    assert "it was hot (1 visit)" in text
    assert "Abacus 9" in text
    assert "2.99" in text
    assert "digest" not in text


@pytest.mark.parametrize("place", ["cpu", "reason", "warning", "operator"])
def test_text_of_a_run_is_text(place: str) -> None:
    run = made(cpu=ATTACK if place == "cpu" else "a cpu")
    if place == "operator":
        run.visits.loc[run.visits["operator"] == "local", "operator"] = ATTACK
    if place == "reason":
        run.visits.loc[run.visits["status"] == "wrong", "reason"] = ATTACK
    if place == "warning":
        run.visits.at[0, "warnings"] = (ATTACK,)
    text = html.run(summarise(run))
    page = Page(text)
    assert "alert(1)" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "\u202e" not in page.text
    assert "<script>alert" not in text
    assert not any(tag == "img" or "onerror" in attrs for tag, attrs in page.elements)
    assert resources(page) == []


def test_the_attack_would_work_where_text_is_not_escaped() -> None:
    """The negative control."""
    page = Page(html_module.unescape(html.run(summarise(made(cpu=ATTACK)))), well_formed=False)
    assert any(tag == "img" for tag, _ in page.elements)
    assert resources(page) != []


def test_private_paths_are_shortened() -> None:
    run = made(cpu="of /home/somebody/secret/cpu.txt")
    text = html.run(summarise(run))
    assert "of cpu.txt" in text
    assert "somebody" not in text


def test_other_scripts_are_refused_by_the_page_itself() -> None:
    page = page_of(summarise(made()))
    policy = next(attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
    assert policy
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy.split("style-src")[0]


def test_it_reads_the_same_in_every_encoding_and_its_scripts_have_their_digests() -> None:
    _, text = report("cpu-sequence")
    assert text.isascii()
    assert "µs" in Page(text).text
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 3
    digests = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts]
    policy = next(attrs["content"] or "" for _, attrs in Page(text).elements if attrs.get("http-equiv"))
    assert re.findall("sha256-([^']+)'", policy) == digests


def data_blocks(text: str, kind: str) -> list[dict[str, Any]]:
    pattern = rf'<script type="application/json" class="{kind}">(.*?)</script>'
    return [json_module.loads(each) for each in re.findall(pattern, text, re.DOTALL)]


def differences(summary: Summary, panels: list[dict[str, Any]]) -> list[str]:
    """Where the data of the curves is not what the summary says."""
    found = []
    for report, panel in zip(summary.panels, panels, strict=True):
        names, sizes = [each["name"] for each in panel["series"]], [label for _, label in panel["sizes"]]
        for table, metric in zip([t for t in report.tables if any(map(known, t.lines))], panel["metrics"], strict=True):
            against = {each["name"]: each for each in metric["against"]}
            for line in table.lines:
                k = names.index(line.series.name)
                values = [[sizes.index(f.label), f.value, f.low, f.high] for f in line.figures if f.value]
                found += [] if near(metric["figures"][k], values) else [f"{line.series.name} {metric['name']}: figures"]
                for name, crossover in [
                    (report.baseline, line.against_baseline),
                    (table.quantity.metric.best_exact, line.against_exact),
                ]:
                    if crossover is not None and (name in against or crossover != line.against_baseline):
                        places = [[c.at, c.low, c.high] for c in crossover.crossings]
                        found += [] if near(against[name]["crossings"][k], places) else [f"{line.series.name}: {name}"]
                ratios = [[sizes.index(f.label), f.vs_baseline] for f in line.figures if f.vs_baseline]
                if ratios and line.against_baseline:
                    shown = [each[:2] for each in against[report.baseline]["ratios"][k]]
                    found += [] if near(shown, ratios) else [f"{line.series.name} {metric['name']}: ratios"]
    return found


def known(line: Line) -> bool:
    return any(figure.value for figure in line.figures)


def near(shown: list[list[float | None]], truth: list[list[float | None]]) -> bool:
    """The same to four digits."""
    pairs = zip((x for each in shown for x in each), (x for each in truth for x in each), strict=False)
    same = [a == b or (a is not None and b is not None and math.isclose(a, b, rel_tol=1e-4)) for a, b in pairs]
    return len(shown) == len(truth) and all(same)


@pytest.mark.parametrize("name", ["cpu-sequence", "cpu-heads"])
def test_curves_show_the_figures_ratios_and_crossovers_of_the_summary(name: str) -> None:
    summary, text = report(name)
    panels = data_blocks(text, "curves")
    assert differences(summary, panels) == []
    for panel in panels:
        assert 1 < sum(each["shown"] for each in panel["series"]) <= 8
    panels[0]["metrics"][0]["figures"][3][0][1] *= 1.01
    panels[0]["metrics"][0]["against"][0]["crossings"][3] = [[700.0, 600.0, 800.0]]
    assert len(differences(summary, panels)) == 2  # the negative control


def test_every_exact_softmax_may_be_what_curves_are_compared_with() -> None:
    panel = data_blocks(report("cpu-sequence")[1], "curves")[0]
    against = {metric["name"]: [each["name"] for each in metric["against"]] for metric in panel["metrics"]}
    assert against["wall_time"] == ["softmax", "fastest exact softmax", "softmax:sdpa"]
    assert "softmax:sdpa" in against["peak_memory"]
    assert against["flops"] == ["softmax"]  # an impl's are the same
    assert against.get("softmax_error", []) == []


def test_above_the_limit_the_rest_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    summary, whole = report("cpu-sequence")
    assert "Left out" not in whole
    monkeypatch.setattr(_html_page, "LIMIT_BYTES", len(whole.encode()) - 10_000)
    cut = html.run(summary)
    assert len(cut.encode()) <= _html_page.LIMIT_BYTES
    left_out = cut[cut.index("Left out") : cut.index("</section>")]
    assert "tables of seq_len: " in left_out
    assert Page(cut).open == []


def test_it_is_the_same_every_time() -> None:
    run = made()
    assert html.run(summarise(run)) == html.run(summarise(run))


@pytest.mark.parametrize(
    "words", [["run", "quick"], ["show", "x"], ["compare", "a", "b"], ["gate", "s", "--base", "x"]]
)
def test_a_missing_extra_is_told_before_anything_is_done(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "altair" else there(name, *a))
    result = CliRunner().invoke(app, [*words, "--format", "html"])
    assert isinstance(result.exception, BadInput)
    assert re.fullmatch(
        r"--format html: .*\. Install the extra: pip install 'attnbench\[report\]'\.", str(result.exception)
    )


def test_other_formats_do_not_import_what_draws() -> None:
    for name in ("altair", "vl_convert", "jinja2"):
        sys.modules.pop(name, None)
    CliRunner().invoke(app, ["show", str(REFERENCE / "ci"), "--format", "csv"])
    assert "altair" not in sys.modules
    assert "vl_convert" not in sys.modules


def test_a_map_is_among_the_curves_where_a_run_varies_two_axes() -> None:
    run = read_run(REFERENCE / "cpu-border")
    summary = summarise(run)
    [grid] = maps(summary)
    assert grid == grids(run, "batch")[0]
    [drawn] = data_blocks(html.run(summary), "map")
    assert data_blocks(html.grids([grid]), "map") == [drawn]
    tried = [(row, spot) for row in grid.rows for spot in row.spots if spot.use or spot.status]
    assert [(cell["row"], cell["x"]) for cell in drawn["cells"]] == [(row.label, spot.size) for row, spot in tried]
    for cell, (_, spot) in zip(drawn["cells"], tried, strict=True):
        assert spot.use
        exact = spot.use.choices[0].exact
        assert cell["colour"] == (GREY if exact else colour(spot.use.choices[0].series.operator))
        assert cell["low"] < cell["x"] < cell["high"]
        assert all(choice.series.name in cell["tip"] for choice in spot.use.choices)
    ats = [r.at for row in grid.rows if row.against_baseline for r in row.against_baseline.reaches]
    assert [border["at"] for border in drawn["borders"]] == ats
    text = Page(html.grids([grid])).text
    for part in grid_parts([grid]):
        assert all(field.text in text for table in part.text_tables for row in table.rows for field in row)
    assert data_blocks(report("cpu-heads")[1], "map") == []


def compared(number: int = 3, name: str = "performer fwd n1024") -> Comparison:
    findings = [
        Finding("k", f"{name} {i}", "wall_time", 1e-3, 1e-3 * (1.2 - i / 1000), "slower", i == 0, 1.2, 1.1, 1.3, 0.05)
        for i in range(number)
    ]
    failed = Finding("k", name, "status", "ok", "oom", "changed", reason=f"because of {name}")
    return Comparison("/home/somebody/before", "after", (*findings, failed), (CELL.key,), notes=(name,), gated=True)


def test_a_comparison_holds_every_finding_before_and_after() -> None:
    comparison = compared(450)
    text = html.comparisons([comparison])
    page = Page(text)
    assert comparison.decision in page.text
    assert "before → after" in page.text
    assert "somebody" not in text
    blocks = data_blocks(text, "findings")
    drawn = [each for block in blocks for each in block["findings"]]
    assert len(blocks) == 3
    assert [(d["name"], d["before"], d["after"], d["ratio"], d["low"], d["high"]) for d in drawn] == [
        (f.name, f.before, f.after, f.ratio, f.low, f.high) for f in comparison.findings if f.ratio
    ]
    assert drawn[0]["limit"] == 1.05
    assert page.text.count("performer fwd n1024 449") == 1
    assert "because of performer fwd n1024" in page.text


def test_names_in_a_comparison_are_text() -> None:
    page = Page(html.comparisons([compared(name=ATTACK), compared()]))
    assert "alert(1)" in page.text
    assert not any(tag == "img" or "onerror" in attrs for tag, attrs in page.elements)
    assert resources(page) == []


def test_a_comparison_without_a_ratio_and_one_without_findings_are_pages() -> None:
    for comparison in (Comparison("a", "b", ()), Comparison("a", "b", compared(0).findings)):
        text = html.comparisons([comparison])
        assert data_blocks(text, "findings") == []
        assert "compared 0 cells" in Page(text).text


@pytest.mark.parametrize("status", ["skipped", "oom", "error"])
def test_a_run_in_which_nothing_ran_is_a_page_that_says_why(status: str) -> None:
    series = ("softmax", "performer")
    run = laws(
        (64, 128),
        {name: lambda n: 1.0 for name in series},
        statuses={(s, n): status for s in series for n in (64, 128)},
    )
    text = html.run(summarise(run))
    assert f"{status}: softmax at 64, performer at 64: {status} here" in Page(text).text or status == "skipped"
    assert f"{status} here" in Page(text).text
    drawn = [each["name"] for panel in data_blocks(text, "curves") for each in panel["metrics"]]
    assert drawn == (["flops"] if status == "oom" else [])  # known without a call


def test_one_series_at_one_size_is_a_page() -> None:
    text = html.run(summarise(laws((64,), {"mine": lambda n: 1e-3})))
    [panel] = data_blocks(text, "curves")
    assert [each["name"] for each in panel["series"]] == ["mine"]
    assert panel["series"][0]["colour"] == colour("mine")


def test_text_without_end_leaves_the_page_within_its_size() -> None:
    run = made(cpu="x" * 3_000_000, **{f"fact {i}": "y" * 10_000 for i in range(300)})
    run.visits.at[0, "warnings"] = tuple(f"{chr(97 + i % 26) * (1 + i // 26)} {'z' * 1000}" for i in range(5000))
    run.visits.loc[run.visits["status"] == "wrong", "reason"] = "r" * 2_000_000
    text = html.run(summarise(run))
    assert len(text.encode()) <= _html_page.LIMIT_BYTES
    assert "Left out" in text
    assert text.count("z" * 1000) == MOST_WARNINGS
