"""Every claim that is stored has the verdict that its file states, and each rule can fail."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.analysis.claims import CHECKED, VERDICTS, Checked, Kind, Number, Result, is_near, rounds_to, verdict_of
from attnbench.analysis.expressions import evaluate
from attnbench.analysis.reproduction import Detail, Reproduction
from attnbench.errors import BadInput
from attnbench.measure import papers
from attnbench.measure import reproduce as measured
from attnbench.measure.reproduce import commands, reproduce
from attnbench.measure.timed_claims import stored_times
from attnbench.measure.worker.fake_memory import Footprint
from attnbench.measure.worker.forecast import footprint
from attnbench.operator import Cost, Form
from attnbench.outputs import _paper_listing as view
from attnbench.outputs import json as json_output
from attnbench.outputs import markdown, table
from attnbench.problem import Cell, Mode, Params, Problem

REPOSITORY = Path(__file__).parents[2]


def run(*words: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, ["reproduce", *words])
    if isinstance(result.exception, BadInput):
        raise result.exception
    assert result.exit_code == exit_code
    return result.output


@pytest.fixture(scope="module")
def results() -> list[Result]:
    return reproduce(papers.papers(), stored_times(None))


def numbers(results: Sequence[Result]) -> list[tuple[Result, Checked]]:
    return [(result, checked) for result in results for checked in result.checked]


def test_each_number_has_the_verdict_that_its_file_states(results: list[Result]) -> None:
    wrong = [
        f"{result.claim.id} {checked.number.name}: {float(checked.ours / checked.number.scale)} {checked.verdict}"
        for result, checked in numbers(results)
        if checked.verdict != checked.number.verdict
    ]
    assert wrong == []
    assert all(result.checked for result in results if result.claim.kind in CHECKED)


UNEXPLAINED = {"N1": 2, "K7": 2, "O5": 1, "A3": 1}
"""Numbers that differ without a count of why: ratios that the card's memory bounds, and bounds that do not hold."""


def test_a_number_that_differs_is_explained_by_what_is_counted(results: list[Result]) -> None:
    """To the last digit of a count, within the tolerance of a memory; and every term is needed for that."""
    unexplained = Counter[str]()
    differing = [(result, checked) for result, checked in numbers(results) if checked.verdict == "differs"]
    assert {result.claim.kind for result, _ in differing} == {"analytic", "memory"}
    for result, checked in differing:
        kind = result.claim.kind
        if not (checked.terms or checked.number.cut):
            unexplained[result.claim.id] += 1
            assert checked.number.why or result.claim.why, result.claim.id
            continue
        assert checked.is_explained(kind), f"{result.claim.id} {checked.number.name}"
        bare = replace(checked, number=replace(checked.number, cut=False), terms={})
        assert not bare.is_explained(kind)
        if checked.terms:
            first = next(iter(checked.terms))
            less = {name: value for name, value in checked.terms.items() if name != first}
            assert not replace(checked, terms=less).is_explained(kind)
    assert unexplained == UNEXPLAINED


def test_a_tolerance_has_its_reason(results: list[Result]) -> None:
    for result, checked in numbers(results):
        allowed = (checked.number.points, checked.number.within, checked.number.factor)
        if any(each is not None for each in allowed):
            assert result.claim.why or checked.number.why, f"{result.claim.id}: a tolerance without its reason"


LEFT_OUT = {"H5", "O13"}
"""Rows of the list of claims that are none: Ham VQ is not in its table, for Sinkhorn and gMLP no number was found."""


def test_every_claim_that_is_known_has_a_verdict(results: list[Result]) -> None:
    listed = {"S": 1, "K": 9, "H": 12, "L": 7, "P": 10, "N": 4, "A": 3, "O": 14}
    known = {f"{letter}{number}" for letter, last in listed.items() for number in range(1, last + 1)}
    assert known - {result.claim.id for result in results} == LEFT_OUT
    assert all(result.verdict in VERDICTS for result in results)


@pytest.mark.parametrize(
    ("kind", "number", "right", "wrong"),
    [
        ("analytic", Number("0.63", unit="M"), 634_999, 635_001),
        ("analytic", Number("120", unit="G", step=Fraction(10)), 122_800_000_000, 125_100_000_000),
        ("analytic", Number("100", at_least=True), 101, 99),
        ("memory", Number("98", unit="MB", meant="MiB"), 107 * 2**20, 108 * 2**20),
        ("memory", Number("2", within=Fraction(50)), 3, 4),
        ("memory", Number("2", factor=Fraction("1.5")), 3, Fraction("3.01")),
        ("memory", Number("3", factor=Fraction("1.5")), 2, Fraction("1.99")),
        ("memory", Number("99.73", unit="%", points=Fraction("0.12")), Fraction("0.9984"), Fraction("0.9986")),
        ("growth", Number("1.5", points=Fraction("0.05")), Fraction("1.54"), Fraction("1.56")),
    ],
)
def test_each_rule_can_fail(kind: Kind, number: Number, right: Fraction, wrong: Fraction) -> None:
    assert verdict_of(kind, Fraction(right), number) == "reproduced"
    assert verdict_of(kind, Fraction(wrong), number) == "differs"


def test_no_tolerance_for_counts() -> None:
    number = Number("17.6", unit="G", within=Fraction(10))
    assert not rounds_to(Fraction(17_500_000_000), number)
    assert is_near(Fraction(17_500_000_000), number)
    assert verdict_of("analytic", Fraction(17_500_000_000), number) == "differs"


def test_only_a_number_that_was_read_fails(results: list[Result]) -> None:
    assert not any(result.lost for result in results)
    result = next(each for each in results if each.claim.id == "S1")
    spoilt = replace(result, checked=[replace(each, verdict="differs") for each in result.checked])
    assert len(spoilt.lost) == 3
    assert view.lost([spoilt])[0] == "No longer reproduced: S1 V(KQ), softmax (lecture)."
    recalled = replace(spoilt, claim=replace(spoilt.claim, mark="recalled"))
    assert recalled.lost == []


@pytest.mark.parametrize(
    ("name", "heavier", "lost"),
    [
        ("hamburger", lambda need, n: 2 * need, "H7 Ham NMF"),  # memory
        ("longformer", lambda need, n: need * n, "O4 1K to 4K"),  # growth
    ],
)
def test_an_operator_that_needs_more_memory_is_seen(
    name: str, heavier: Callable[[int, int], int], lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(name)

    def spoilt(form: Form, problem: Problem, *given: Any, **named: Any) -> Footprint | None:
        need = footprint(form, problem, *given, **named)
        return need and replace(need, peak_bytes=heavier(need.peak_bytes, problem.seq_len))

    monkeypatch.setattr(measured, "footprint", spoilt)
    assert f"No longer reproduced: {lost} ({name})." in run(name, exit_code=1)


def test_an_operator_that_multiplies_more_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    unspoilt = measured.quantities

    def spoilt(cell: Cell) -> measured.Quantities:
        right = unspoilt(cell)
        cost = right.form.cost

        def more(problem: Problem, params: Params, mode: Mode) -> Cost:
            counted = cost(problem, params, mode)
            return replace(counted, flops=counted.flops + 2)

        return replace(right, form=replace(right.form, cost=more))

    monkeypatch.setattr(measured, "quantities", spoilt)
    assert "No longer reproduced: S1 (VK)Q, efficient (lecture)." in run("lecture", exit_code=1)


PAPER = """
title: a paper
url: https://example.org
source: nothing
cells: {softmax: {operator: softmax, seq_len: 64, channels: 8, heads: 1}}
claims:
  - {id: Z1, claim: c, place: p, kind: analytic, mark: read, numbers: [{paper: "65536", ours: softmax.multiply_adds}]}
"""


def test_exit_code_and_a_paper_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(papers, "FOLDER", tmp_path)
    (tmp_path / "own.yaml").write_text(PAPER, encoding="utf-8")
    assert "1 claim: 1 reproduced, 0 differ, 0 not decided, 0 not testable here" in " ".join(run("own").split())
    (tmp_path / "own.yaml").write_text(PAPER.replace("65536", "65537"), encoding="utf-8")
    assert "No longer reproduced: Z1" in run(exit_code=1)
    (tmp_path / "own.yaml").write_text(PAPER.replace("65536", "65537").replace("read", "recalled"), encoding="utf-8")
    assert "1 differs, " in run()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: analytic", "kind: analytical", "did you mean 'analytic'?"),
        ('"65536"', "65536", "the digits as printed"),
        ("ours:", "our:", "unknown key"),
        (", ours: softmax.multiply_adds", "", "ours is missing"),
        ("kind: analytic", "kind: measured", "what kind measured is decided by"),
        ("title: a paper", "titel: a paper", "did you mean 'title'?"),
        ("source: nothing", "source: nothing\nnetworks: {net: [{image_size: 7}]}", "rows of count and sizes"),
        ("source: nothing", "source: nothing\nnetworks: {net: [{count: 1, imagesize: 7}]}", "'image_size'?); allowed"),
    ],
)
def test_a_file_with_a_mistake_is_refused(
    old: str, new: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(papers, "FOLDER", tmp_path)
    (tmp_path / "own.yaml").write_text(PAPER.replace(old, new), encoding="utf-8")
    with pytest.raises(BadInput, match=re.escape(message)):
        papers.papers()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("softmax.multiply_adds", "sofmax.multiply_adds", "no cell sofmax (did you mean 'softmax'?)"),
        ("softmax.multiply_adds", "softmax.multiply_add", "no figure multiply_add (did you mean 'multiply_adds'?)"),
        ("softmax.multiply_adds", "softmax(k=3).multiply_adds", "unknown parameter 'k'"),
        ("seq_len: 64", "seq_len: 0", "allowed"),
        ("operator: softmax", "operator: sofmax", "did you mean 'softmax'?"),
        ("read, numbers: [{", "read, numbers: [{indications: {what: softmax.mad}, ", "Z1 : no figure mad"),
        ("source: nothing", "source: nothing\nconstants: {a: b}", "constants.a: 'b': no constant b"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    old: str, new: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(papers, "FOLDER", tmp_path)
    (tmp_path / "own.yaml").write_text(PAPER.replace(old, new), encoding="utf-8")
    with pytest.raises(BadInput, match=re.escape(message)):
        run("own")


def test_unknown_names() -> None:
    with pytest.raises(BadInput, match=r"'kanet' \(did you mean 'kanets'\?\)"):
        run("kanet")
    with pytest.raises(BadInput, match=r"--explain 'K10'.*there are: .*K9"):
        run("kanets", "--explain", "K10")


def test_explained_claims_name_commands_that_give_their_figures(results: list[Result]) -> None:
    text = " ".join(run("kanets", "--explain", "K1").split())
    command = "estimate kao_qkv --image-size 14x14 --channels 8 --heads 1 --param value_map=true"
    assert f"attnbench {command}" in text
    assert "K2" not in text
    rows = json.loads(CliRunner().invoke(app, [*command.split(), "--format", "json"]).output)
    assert rows[0]["multiply_adds"] == 14_336
    found = commands(results)
    for result in results:
        texts = [each.number.ours for each in result.checked]
        reads = any("_bytes" in text or "multiply_adds" in text for text in texts) or any(result.indications.values())
        assert bool(found[result.claim.id]) == reads


def test_rows_hold_every_number(results: list[Result], capsys: pytest.CaptureFixture[str]) -> None:
    reproduction = Reproduction(results, {}, "claims", dict)
    rows: list[dict[str, Any]] = json.loads(json_output.claims(reproduction))
    assert {row["id"] for row in rows} == {result.claim.id for result in results}
    assert sum(row["ours"] is not None for row in rows if row["kind"] in CHECKED) == len(numbers(results))
    assert {row["verdict"] for row in rows} == {"reproduced", "differs", "not decided", "not testable here"}
    assert len({row["id"] for row in rows}) == len(results)  # unique among papers
    for detail in ("claims", "brief"):
        table.claims(replace(reproduction, detail=detail))
        shown = capsys.readouterr().out
        assert ("6 of 8 numbers reproduced." in shown) == (detail == "claims")
        assert max(len(line) for line in shown.splitlines()) <= 80
    assert "| **S1** | " in run("lecture", "--format", "markdown")
    assert run("lecture", "--format", "csv").startswith("paper,url,id,")
    assert json.loads(run("lecture", "--brief", "--format", "json"))[0]["reproduced"] == 1


def test_memory_of_a_stack_is_what_fit_says() -> None:
    """Six blocks keep six times what one keeps, and are at work one after the other; nothing is kept in inference."""
    cell = measured.cell_of(papers.papers(["performer"])[0], "softmax", {"seq_len": 512, "mode": "fwd_bwd"})
    one = measured.quantities(cell)
    six = replace(one, layers=6)
    assert six["need_bytes"] - one["need_bytes"] == 5 * (one["saved_bytes"] + 2 * one["parameter_bytes"])
    forward = measured.quantities(replace(cell, mode="fwd"))
    assert replace(forward, layers=6)["need_bytes"] - forward["need_bytes"] == 5 * forward["parameter_bytes"]


def test_an_indication_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(papers, "FOLDER", tmp_path)
    beside = PAPER.replace("ours:", "indications: {half of it: softmax.multiply_adds / 2}, ours:")
    (tmp_path / "own.yaml").write_text(beside, encoding="utf-8")
    assert "half of it: 3.28e+04" in run("own")
    (row,) = json.loads(run("own", "--format", "json"))
    assert (row["indications"], row["verdict"]) == ({"half of it": 32768}, "reproduced")


PAGES: dict[str, Detail] = {"README.md": "brief", "docs/papers.md": "claims"}


@pytest.mark.parametrize("page", PAGES)
def test_pages_show_what_is_printed(page: str, results: list[Result]) -> None:
    reproduction = Reproduction(results, commands(results), PAGES[page], dict)
    stored = (REPOSITORY / page).read_text(encoding="utf-8")
    assert markdown.claims(reproduction).rstrip() in stored, "run `make readme`"
    others = [replace(results[0], verdict="not testable here"), *results[1:]]
    assert markdown.claims(replace(reproduction, results=others)).rstrip() not in stored  # the negative control


def test_expressions() -> None:
    def figure(name: str, given: Any, attribute: str) -> Fraction:
        return Fraction(f"{given.get('n', 1)}") if (name, attribute) == ("cell", "size") else Fraction(0)

    constants = {"c": Fraction(3)}
    assert evaluate("1 - c * cell(n=2).size / cell.size ** 2", constants, figure) == -5
    assert evaluate("log2(8) / 2", constants, figure) == Fraction(3, 2)
    assert evaluate("max(c, 4) - min(c, 2)", constants, figure) == 2
    for guess in (0, 1, 2**8, 2**9, 700, 2**40):
        near = {"paper": Fraction(guess)}
        assert evaluate("largest(L, 2 ** 9 - 1, cell(n=L).size)", near, figure) == 2**8
        assert evaluate("largest(L, 2 ** 9, cell(n=L).size)", near, figure) == 2**9
        assert evaluate("largest(L, 1 / 2, cell(n=L).size)", near, figure) == 0
    assert evaluate("left_of_gpu(16 * 2 ** 30)", {}, figure) < 15 * 2**30
    networks = {"net": [{"count": 3, "n": 5}, {"count": 2, "n": 7}]}
    assert evaluate("over(net, cell.size)", {}, figure, networks) == 3 * 5 + 2 * 7
    assert evaluate("over(net, c * cell(n=1).size + n / count)", constants, figure, networks) == 5 * 3 + 5 + 7
    assert evaluate("largest(L, 100, over(net, L))", {}, figure, networks) == 16
    with pytest.raises(ValueError, match=r"no network nets \(did you mean 'net'\?\)"):
        evaluate("over(nets, 1)", {}, figure, networks)
    with pytest.raises(ValueError, match="divides by 0"):
        evaluate("1 / (c - 3)", constants, figure)
    for text in ("d", "log2()", "__import__('os')", "c +", "c if c else c", "cell", "cell()", "[c]"):
        with pytest.raises(ValueError, match=r"no constant|allowed"):
            evaluate(text, constants, figure)
