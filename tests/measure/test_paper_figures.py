"""Figures of papers: our curves are what claims are checked by, and printed numbers stand where the paper has them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from attnbench.errors import BadInput
from attnbench.measure import papers
from attnbench.measure.paper_figures import drawn_figures, printed
from attnbench.measure.reproduce import cell_of, reproduce
from attnbench.measure.timed_claims import StoredTimes, stored_times
from tests.analysis.runs import run_of, visits_of


def test_every_number_that_a_figure_names_is_one_of_its_paper() -> None:
    shown = {
        f"{each.claim} {each.name}"
        for paper in papers.papers()
        for figure in paper.figures
        for curve in figure.curves
        for each in printed(paper, curve, 1.0)
    }
    assert {"K1 qkv", "H2 Ham NMF", "L1 self-attention", "P1 Performer", "N1 n 65536", "A2 Reformer"} <= shown


def test_a_curve_passes_through_what_its_claim_is_checked_by() -> None:
    [paper] = papers.papers(["kanets"])
    ours = {f"{r.claim.id} {each.number.name}": each for r in reproduce([paper]) for each in r.checked}
    held = 0
    for figure in drawn_figures([paper], [])["kanets"][:2]:
        for curve in figure.curves:
            values = {point.size: point.value for point in curve.points}
            assert list(values) == [14, 20, 28, 40, 56, 80, 112]
            for each in curve.printed:
                checked = ours[f"{each.claim} {each.name}"]
                assert values[int(each.size)] == pytest.approx(float(checked.ours), rel=1e-12)
                assert each.value == float(checked.number.value)
                assert each.mark == "recalled"
                held += 1
            assert values[14] < values[28]
    assert held == 15


def test_a_measured_curve_has_the_ratios_of_a_run_with_their_intervals() -> None:
    [paper] = papers.papers(["kanets"])
    truth = {"softmax": 8e-3, "pool": 2e-3, "kv": 1e-3}
    cells = [(cell_of(paper, name, {"image_size": 28, "batch": 8}), time, {}) for name, time in truth.items()]
    run = run_of(visits_of(cells), {"cpu": "Abacus 9", "started": "2026-11-26T10:00:00"})
    *_, figure = drawn_figures([paper], [StoredTimes(run)])["kanets"]
    points = {curve.curve.name: curve.points for curve in figure.curves}
    assert [point.size for point in points["pool"]] == [28]
    assert points["qkv"] == []
    for name in ("pool", "kv"):
        [point] = points[name]
        assert point.value == pytest.approx(8e-3 / truth[name], rel=0.1)
        assert point.low
        assert point.high
        assert point.low < point.value < point.high
    assert [on.environment["cpu"] for on in figure.on] == ["Abacus 9"]
    *_, unmeasured = drawn_figures([paper], [])["kanets"]
    assert not any(curve.points for curve in unmeasured.curves)
    assert unmeasured.curves[0].printed


def test_stored_runs_have_what_measured_figures_show() -> None:
    runs = stored_times(None)
    shown = set()
    for paper in papers.papers():
        measured = [figure for figure in paper.figures if figure.measured]
        for figure in drawn_figures([replace(paper, figures=measured)], runs)[paper.name]:
            assert all(len(curve.points) > 1 for curve in figure.curves), f"{paper.name}: {figure.figure.title}"
            shown.add(paper.name)
    assert {"kanets", "performer", "linformer", "linear_transformer", "reformer"} <= shown


PAPER = """
title: a paper
url: https://example.org
source: nothing
cells: {softmax: {operator: softmax, seq_len: 64, channels: 8, heads: 1}}
claims:
  - {id: Z1, claim: c, place: p, kind: analytic, mark: read, numbers: [{name: N, paper: "32", ours: softmax.seq_len}]}
figures:
  - title: a figure
    place: p
    over: N
    unit: flop
    sizes: [32, 1K]
    limit: 2 ** 20
    curves: [{name: s, operator: softmax, ours: softmax(seq_len=x).multiply_adds, paper: {1K: Z1 N}, longest: [Z1 N]}]
"""


def test_a_longest_size_stands_at_the_limit(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(PAPER, encoding="utf-8")
    [figure] = drawn_figures([papers.read(tmp_path / "own.yaml")], [])["own"]
    [curve] = figure.curves
    assert [(point.size, point.value) for point in curve.points] == [(n, 2 * n * n * 8) for n in (32, 1024)]
    assert [(each.size, each.value, each.digits) for each in curve.printed] == [(1024, 32, "32"), (32, 2**20, "32")]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("1K: Z1 N", "1K: Z1 M", "no number 'Z1 M' (did you mean 'Z1 N'?)"),
        ("    limit: 2 ** 20\n", "", "the figure has no limit"),
        ("seq_len=x", "seq_len=y", "no constant y"),
        ("unit: flop", "unit: flops", "did you mean 'flop'?"),
        ("1K: Z1 N", "few: Z1 N", "'few'; allowed: a whole number"),
        ("sizes: [32, 1K]", "sizes: [0]", "0; allowed: a whole number"),
        ("    over: N\n", "", "figures[0].over: missing"),
        ("name: s,", "nam: s,", "figures[0].curves[0].nam: unknown key"),
    ],
)
def test_a_figure_with_a_mistake_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(PAPER.replace(old, new), encoding="utf-8")
    with pytest.raises(BadInput, match=re.escape(message)):
        drawn_figures([papers.read(tmp_path / "own.yaml")], [])
