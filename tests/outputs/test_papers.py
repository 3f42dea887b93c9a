"""What papers claim beside ours: one page with every claim and curve, and a row a paper."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attnbench.analysis.claims import Interval, Measured, MeasuredOn, Result, Verdict
from attnbench.analysis.drawn_figures import DrawnFigure, Point
from attnbench.analysis.reproduction import Detail, OfPaper, Reproduction
from attnbench.errors import BadInput
from attnbench.measure.paper_figures import drawn_figures
from attnbench.measure.papers import papers
from attnbench.measure.reproduce import commands, reproduce
from attnbench.outputs import _html_page, html, markdown
from attnbench.outputs import _paper_listing as view
from attnbench.outputs import json as json_output
from attnbench.outputs._graph_picture import picture_of
from attnbench.outputs._paper_pictures import draw, drawing_of
from attnbench.outputs._picture_parts import AS_IT_NEEDS
from tests.outputs.test_html import ATTACK, Page, data_blocks

NAMES = ("flash_attention", "kanets")


@pytest.fixture(scope="module")
def reproduction() -> Reproduction:
    chosen = papers(NAMES)
    results, figures = reproduce(chosen), drawn_figures(chosen, [])
    return Reproduction(results, commands(results), "claims", lambda: figures)


@pytest.fixture(scope="module")
def text(reproduction: Reproduction) -> str:
    return html.claims(reproduction)


def with_figures(reproduction: Reproduction, figures: Mapping[str, Sequence[DrawnFigure]]) -> Reproduction:
    return replace(reproduction, figures=lambda: figures)


def brief(reproduction: Reproduction, detail: Detail = "brief") -> Reproduction:
    return replace(reproduction, detail=detail)


def test_every_claim_number_expression_and_command_is_there_without_scripts(
    reproduction: Reproduction, text: str
) -> None:
    page = Page(text)
    assert page.open == []
    for result in reproduction.results:
        claim = view.claim_texts(result, reproduction.commands)
        numbers = [part for number in claim.numbers for part in (number.name, number.paper, number.ours, number.maps)]
        expressions = [number.expression for number in claim.numbers if number.ours]
        for part in (claim.id, claim.sentence, claim.reason, *numbers, *expressions, *claim.commands):
            assert part in page.text
    assert view.counts(reproduction.results) in page.text
    verdicts = [attrs["data-verdict"] for _, attrs in page.elements if "data-verdict" in attrs]
    shown = len(reproduction.results) + sum(len(result.checked) for result in reproduction.results)
    assert len(verdicts) == shown
    assert {"reproduced", "differs", "not decided", "not testable here"} == set(verdicts)


def test_it_loads_nothing_and_links_to_papers_and_its_own_parts(text: str) -> None:
    page = Page(text)
    loading = [name for _, attrs in page.elements for name in attrs if name in ("src", "srcset", "action")]
    assert loading == []
    links = [attrs["href"] or "" for tag, attrs in page.elements if "href" in attrs]
    parts = {f"#{attrs['id']}" for _, attrs in page.elements if attrs.get("id")}
    assert [link for link in links if link.startswith("#")] == [f"#paper-{name}" for name in NAMES]
    assert all(link in parts or link.startswith("https://arxiv.org/abs/") for link in links)
    assert len(text.encode()) <= _html_page.LIMIT_BYTES


def test_curves_and_printed_numbers_are_those_of_the_figures(reproduction: Reproduction, text: str) -> None:
    drawn = data_blocks(text, "figure")
    figures = [figure for name in NAMES for figure in reproduction.figures()[name]]
    assert len(drawn) == len(figures) == 3
    for block, figure in zip(drawn, figures, strict=True):
        assert block["sizes"] == [[size, str(size)] for size in figure.figure.sizes]
        for curve, shown in zip(figure.curves, block["curves"], strict=True):
            assert shown["points"] == [[p.size, p.value, None, None] for p in curve.points]
            assert [(p["x"], p["y"]) for p in shown["printed"]] == [(p.size, p.value) for p in curve.printed]
            for p, q in zip(curve.printed, shown["printed"], strict=True):
                assert q["tip"].endswith(f"in the paper {p.digits} {p.unit} (recalled)")
            assert not any(p["filled"] for p in shown["printed"])
    assert "Diamonds: the paper's table of operators alone, recalled." in drawn[0]["caption"]
    assert [block["caption"].startswith("Ours, not measured yet;") for block in drawn] == [False, False, True]


def test_an_interval_and_what_was_read_are_marked(reproduction: Reproduction) -> None:
    figure, *_ = reproduction.figures()["kanets"]
    [first, *others] = figure.curves
    timed = replace(
        first, points=[Point(14, 2.0, 1.5, 2.5)], printed=[replace(each, mark="read") for each in first.printed]
    )
    spoilt = with_figures(reproduction, {"kanets": [replace(figure, curves=[timed, *others], limit=9.0)]})
    [block] = data_blocks(html.claims(spoilt), "figure")
    assert block["curves"][0]["points"] == [[14, 2.0, 1.5, 2.5]]
    assert block["limit"] == 9.0
    assert [p["filled"] for curve in block["curves"] for p in curve["printed"]].count(True) == 3
    assert "Bands: 95 % intervals. Diamonds: the paper's table of operators alone, filled: read" in block["caption"]


def test_text_of_a_file_is_text(reproduction: Reproduction) -> None:
    result = reproduction.results[-1]
    number = replace(result.claim.numbers[0], name=ATTACK, why=ATTACK) if result.claim.numbers else None
    claim = replace(result.claim, claim=ATTACK, why=ATTACK, numbers=[number] if number else [])
    paper = replace(result.paper, name="own", title=ATTACK, source=ATTACK)
    figure, *_ = reproduction.figures()["kanets"]
    attack = replace(figure, figure=replace(figure.figure, title=ATTACK, over=ATTACK, note=ATTACK))
    attacked = Reproduction([replace(result, paper=paper, claim=claim)], {}, "claims", lambda: {"own": [attack]})
    text = html.claims(attacked)
    page = Page(text)
    assert page.text.count("alert(1)") >= 4
    assert "<script>alert" not in text
    assert not any(tag == "img" or "onerror" in attrs for tag, attrs in page.elements)


def test_a_row_a_paper_with_what_differs_most(reproduction: Reproduction) -> None:
    rows: list[dict[str, Any]] = json.loads(json_output.claims(brief(reproduction)))
    assert [row["paper"] for row in rows] == list(NAMES)
    verdicts = ("reproduced", "differs", "not_decided", "not_testable_here")
    assert all(sum(row[name] for name in verdicts) == row["claims"] for row in rows)
    assert [row["differs_most"] for row in rows] == [
        "",
        "K4, memory of softmax, of a batch of 8, side 14: 2.56 MB, in the paper 5.2 MB†",
    ]
    assert "| kanets | 10 |" in markdown.claims(brief(reproduction))
    kanets = reproduction.of_papers[1]
    found = kanets.farthest
    assert found
    without = [
        replace(result, checked=[each for each in result.checked if each is not found[1]]) for result in kanets.results
    ]
    assert OfPaper("kanets", without).farthest != found


def test_markdown_has_a_heading_a_source_and_a_table_for_each_paper(reproduction: Reproduction) -> None:
    text = markdown.claims(reproduction)
    assert [line for line in text.splitlines() if line.startswith("#")] == [f"## {name}" for name in NAMES]
    assert "<https://arxiv.org/abs/2007.08442> Read: the abstract was read" in text
    assert "| **K4** |  |  |  | differs | memory of softmax, of a batch of 8 (table" in text
    assert "| side 14 | 5.2 MB† | 2.56 MB | 0.4921 | differs | two more N×N maps: +2 458 624" in text
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {7}
    assert "`" not in text
    assert "ours: softmax(image\\_size=14" in markdown.claims(brief(reproduction, "explained"))


def test_counts_of_one_and_of_several(reproduction: Reproduction) -> None:
    checked = next(result for result in reproduction.results if result.checked)

    def told(*verdicts: Verdict) -> str:
        return view.counts([replace(checked, verdict=each) for each in verdicts])

    assert told("differs").startswith("1 claim: 0 reproduced, 1 differs, 0 not decided, 0 not testable here. T")
    assert told("differs", "differs", "reproduced").startswith("3 claims: 1 reproduced, 2 differ, ")


def test_what_was_timed_on_a_cpu_counts_and_may_differ_most(reproduction: Reproduction) -> None:
    kanets = reproduction.of_papers[1]
    assert view.counts(kanets.results).endswith("Tested without a GPU: 8, from formulas and shapes.")

    def timed_on(device: str) -> OfPaper:
        on = [MeasuredOn("a run", "a suite", {"device": device}, ["float32"])]
        return OfPaper("kanets", [_with_times(result, on) for result in kanets.results])

    assert view.counts(timed_on("cuda").results).endswith("8, from formulas and shapes.")
    measured = timed_on("cpu")
    assert view.counts(measured.results).endswith("9, 8 from formulas and shapes, 1 by times on a CPU.")
    assert view.difference(measured) == (
        "K6, speed-up over softmax on a CPU, of a batch of 8, pool, side 14: 30 × [28, 33], in the paper 3.0 ×†"
    )


def _with_times(result: Result, on: Sequence[MeasuredOn]) -> Result:
    """A claim of time whose first number is ten times what is printed."""
    if result.timing is None:
        return result
    first, *others = result.timing.numbers
    measured = Measured("differs", interval=Interval(30.0, 28.0, 33.0))
    return replace(result, timing=replace(result.timing, numbers=[replace(first, ours=measured), *others], on=on))


def test_pictures_hold_curves_and_printed_numbers(reproduction: Reproduction, tmp_path: Path) -> None:
    figures = reproduction.figures()
    figure, *_ = figures["kanets"]
    drawn = drawing_of("kanets", 1, replace(figure, limit=1e9))
    [graph] = drawn.graphs
    [axes] = picture_of(drawn, AS_IT_NEEDS).axes
    curves = [line for line in axes.lines if len(line.get_xydata()) == 7]
    assert len(curves) == len(graph.curves) == 4
    for line, curve in zip(curves, figure.curves, strict=True):
        assert line.get_xydata().tolist() == [[p.size, p.value] for p in curve.points]
    marks = [line for line in axes.lines if line.get_marker() == "d"]
    assert {line.get_markerfacecolor() for line in marks} == {"none"}  # recalled
    assert sorted(tuple(line.get_xydata()[0]) for line in marks) == sorted(
        (p.size, p.value) for curve in figure.curves for p in curve.printed
    )
    assert [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"] == [1e9]
    written = draw({"kanets": [figure]}, tmp_path / "new")
    assert [path.name for path in written] == ["kanets-1.png", "kanets-1.svg"]
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"--pictures .*file.*: cannot be written: .* Give another folder"):
        draw({"kanets": [figure]}, tmp_path / "file")
