from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from typer.testing import CliRunner

from attnbench.__main__ import app
from attnbench.analysis.baseline import best_exact
from attnbench.analysis.run import Run, read_run
from attnbench.analysis.summary import Summary, summarise
from attnbench.errors import BadInput
from attnbench.outputs import _graph_layout, _graph_picture, _picture_parts, plot
from attnbench.outputs._colours import GREY, MOST_COLOURED, colour
from attnbench.outputs._graph_picture import picture_of, spread
from attnbench.outputs._graphs import Drawing, drawings, stems
from attnbench.outputs._picture_parts import AS_IT_NEEDS, Wanted
from attnbench.units import picture_size
from tests.analysis.runs import Law, cell, laws, sequence, visits_of
from tests.stored import folder as stored_folder

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
SIZES = (64, 128, 256, 512, 1024, 2048)
FAMILIES = {
    "softmax": "exact",
    "identity": "exact",
    "performer": "kernelized",
    **{f"op{i}": "sparse" for i in range(9)},
}
LAWS: dict[str, Law] = {
    "softmax": lambda n: 1e-6 * n**2,
    "softmax:sdpa": lambda n: 3e-7 * n**2,
    "performer": lambda n: 1e-4 * n,
    "identity": lambda n: 1e-9,
    # Nine lines that end at nearly the same height: their labels must move apart.
    **{f"op{i}": (lambda n, i=i: (1 + i / 50) * 5e-5 * n) for i in range(9)},  # type: ignore[misc]
}


@pytest.fixture(scope="module")
def summary() -> Summary:
    return summarise(laws(SIZES, LAWS, statuses={("softmax", 2048): "oom"}), ("wall_time", "flops"))


@lru_cache
def reference(name: str) -> Run:
    return read_run(REFERENCE / name)


def of_reference(name: str, kind: str, operators: Sequence[str] = (), metric: str = "wall_time") -> list[Drawing]:
    run = reference(name)
    shown = summarise(run, (metric,), operators=operators)
    return [d for d in drawings(shown, run.environment["families"], operators) if d.stem.endswith(kind)]


def misplaced(picture: Any, dpi: int = 100) -> list[str]:
    """The texts of a picture that leave it, overlap, or are too small to be read in print."""
    picture.set_dpi(dpi)
    renderer = FigureCanvasAgg(picture).get_renderer()
    picture.draw_without_rendering()
    scales = [scale for axes in picture.axes for scale in (axes.xaxis, axes.yaxis)]
    beyond = {tick.label1 for scale in scales for tick in set(scale.get_major_ticks()) - set(scale._update_ticks())}
    every = [text for text in picture.findobj(Text) if text.get_text() and text.get_visible() and text not in beyond]
    # Of a label, its text alone, without the hair to its curve.
    x0, y0, x1, y1 = np.array([Text.get_window_extent(text, renderer).extents for text in every]).T
    outside = (x0 < -0.5) | (y0 < -0.5) | (x1 > picture.bbox.x1 + 0.5) | (y1 > picture.bbox.y1 + 0.5)
    meet = [(a[:, None] < b - 1) & (a < b[:, None] - 1) for a, b in ((x0, x1), (y0, y1))]
    names = [text.get_text() for text in every]
    wrong = [names[i] for i in np.flatnonzero(outside)]
    wrong += [f"{names[i]} | {names[k]}" for i, k in np.argwhere(np.triu(meet[0] & meet[1], 1))]
    return wrong + [text.get_text() for text in every if text.get_fontsize() < 6]


def test_an_overview_the_figures_and_what_they_cannot_tell_apart_by_family_are_written(
    summary: Summary, tmp_path: Path
) -> None:
    written = plot.draw(summary, FAMILIES, tmp_path / "new")
    assert {p.name for p in written} == {
        f"seq_len-{what}.{form}"
        for metric in ("wall_time", "flops")
        for what in (f"{metric}-overview", f"{metric}-curves", f"fwd-{metric}-families")
        for form in ("png", "svg")
    }
    assert all(path.read_bytes()[:4] == {".png": b"\x89PNG", ".svg": b"<?xm"}[path.suffix] for path in written)
    curves = (tmp_path / "new" / "seq_len-wall_time-curves.svg").read_text()
    assert "softmax oom" in curves
    assert "performer  ○ &gt;" in curves
    assert not any("identity" in path.read_text() for path in written if path.suffix == ".svg")


def test_same_run_same_file(tmp_path: Path) -> None:
    few = summarise(laws(SIZES[:2], {name: LAWS[name] for name in ("softmax", "performer")}), ("flops",))
    first = plot.draw(few, FAMILIES, tmp_path / "a", ("svg", "pdf"))
    second = plot.draw(few, FAMILIES, tmp_path / "b", ("svg", "pdf"))
    assert [p.name for p in first] == [
        f"seq_len-flops-{what}" for what in ("overview.svg", "overview.pdf", "curves.svg", "curves.pdf")
    ]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    pdf = first[-1].read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"/Type3" not in pdf, "publishers refuse such fonts"


@pytest.mark.parametrize(
    ("wanted", "dpi"),
    [
        (AS_IT_NEEDS, 160),
        (Wanted(3.5), 300),
        (Wanted(3.5, 2.9, ""), 300),
        (Wanted(5.0, 2.0), 300),
        (Wanted(7.0, title="A title of my own that is long " * 6), 100),
    ],
    ids=["own size", "column", "column, both sides", "low", "page"],
)
def test_no_text_leaves_a_picture_or_meets_another(wanted: Wanted, dpi: int, summary: Summary) -> None:
    every = [*of_reference("cpu-sequence", "overview"), *of_reference("cpu-modern", "curves")]
    if wanted.height_in is None:
        every += [d for d in drawings(summary, FAMILIES) if d.stem == "seq_len-fwd-wall_time-families"]
    if wanted == AS_IT_NEEDS:
        every += of_reference("cpu-image", "families")[1:]
    assert len(every) == (2 if wanted.height_in else 3) + (wanted == AS_IT_NEEDS)
    for drawing in every:
        picture = picture_of(drawing, wanted)
        assert misplaced(picture, dpi) == [], drawing.stem
        if wanted.width_in is not None:
            assert picture.get_figwidth() == wanted.width_in
            assert wanted.height_in is None or picture.get_figheight() == pytest.approx(wanted.height_in)


def test_a_text_that_leaves_its_picture_and_labels_on_each_other_are_found(
    summary: Summary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative controls: titles in one line, as they come; labels where the curves end."""
    (drawing,) = of_reference("cpu-sequence", "overview")
    monkeypatch.setattr(_graph_layout, "wrapped", lambda text, *_: [text])
    assert any("Wall time, ratio to" in name for name in misplaced(picture_of(drawing, Wanted(3.5))))
    monkeypatch.undo()
    monkeypatch.setattr(_graph_picture, "spread", lambda heights, *_: list(heights))
    assert any(" | " in name for name in misplaced(picture_of(drawing, AS_IT_NEEDS)))


def test_a_size_without_room_says_what_would_do() -> None:
    (drawing,) = of_reference("cpu-sequence", "overview")
    with pytest.raises(
        BadInput, match=r"--size 3.5x1in: .* do not fit into it\. Give 3\.5x[\d.]+in or more"
    ) as refused:
        picture_of(drawing, Wanted(3.5, 1.0))
    width, height = picture_size(str(refused.value).split("Give ")[1].split(" ")[0])
    assert picture_of(drawing, Wanted(width, height)).get_figheight() == pytest.approx(height)
    with pytest.raises(BadInput, match=r"--size 0\.5in: .* Give [\d.]+in or more; with") as refused:
        picture_of(drawing, Wanted(0.5))
    width, _ = picture_size(str(refused.value).split("Give ")[1].split(" ")[0])
    assert picture_of(drawing, Wanted(width)).get_figwidth() == pytest.approx(width)
    families, _ = of_reference("cpu-sequence", "families")
    assert picture_of(families, Wanted(3.5, 2.5)).get_figheight() > 5, "as many panels as families are"


def test_nothing_is_written_where_one_picture_has_no_room(tmp_path: Path) -> None:
    refused = invoked(REFERENCE / "cpu-sequence", "--metric", "wall_time", "--size", "3.5x1.9in", "--out", tmp_path)
    assert "--size 3.5x1.9in: the names and axes of seq_len-wall_time-overview do not fit" in str(refused.exception)
    assert list(tmp_path.iterdir()) == []


def test_the_overview_is_the_ratio_to_the_best_exact_softmax_of_both_passes() -> None:
    (drawing,) = of_reference("cpu-sequence", "wall_time-overview")
    assert [graph.title for graph in drawing.graphs] == ["forward", "forward and backward"]
    run = reference("cpu-sequence")
    shown = summarise(run, ("wall_time",))
    for graph, report in zip(drawing.graphs, shown.panels, strict=True):
        (table,) = report.tables
        least = best_exact(report.panel, table.quantity, run.environment["exact"])
        assert least is not None
        values = {
            line.series.name: {f.size: f.value for f in line.figures if f.value is not None} for line in table.lines
        }
        exact = {report.panel.sizes[label]: table.quantity.values[point.key] for label, point in least.points.items()}
        names = {curve.series.name for curve in graph.curves}
        assert {"softmax", "performer", "fnet"} <= names
        assert not {"softmax:sdpa", "identity"} & names, "the line at 1, and a bound that nothing reaches"
        for curve in graph.curves:
            for spot in curve.spots:
                assert spot.low is not None
                assert spot.high is not None
                # A figure is a median, the ratio is one of levels: they may differ a little.
                assert spot.value == pytest.approx(values[curve.series.name][spot.size] / exact[spot.size], rel=0.1)
                assert spot.low <= spot.value <= spot.high
    axes = picture_of(drawing, AS_IT_NEEDS).axes
    assert all(any(list(line.get_ydata()) == [1, 1] for line in each.lines) for each in axes)


def test_crossings_with_both_are_marked_apart() -> None:
    (drawing,) = of_reference("cpu-sequence", "curves", ("softmax", "performer"))
    for axes, graph in zip(picture_of(drawing, AS_IT_NEEDS).axes, drawing.graphs, strict=True):
        marks = {(line.get_marker(), float(line.get_xdata()[0])) for line in axes.lines if len(line.get_xdata()) == 1}
        (performer,) = [curve for curve in graph.curves if curve.series.name == "performer"]
        found = {({"baseline": "o", "exact": "D"}[passed], crossing.at) for passed, crossing in performer.crossings}
        assert {mark for mark, _ in found} == {"o", "D"}
        assert found <= marks
    keys = [text.get_text() for text in picture_of(drawing, AS_IT_NEEDS).texts]
    assert {"passes softmax", "passes the fastest exact softmax"} <= set(keys)


def test_a_colour_is_an_operator_and_at_most_eight_series_have_one() -> None:
    every = [
        *of_reference("cpu-sequence", "overview"),
        *of_reference("cpu-image", "families"),
        *of_reference("cpu-modern", "curves"),
        *of_reference("cpu-decode", "curves"),
    ]
    assert len(every) > 5
    greys = 0
    for graph in (graph for drawing in every for graph in drawing.graphs):
        coloured = [curve for curve in graph.curves if curve.style.colour != GREY]
        greys += len(graph.curves) - len(coloured)
        assert 1 <= len(coloured) <= MOST_COLOURED
        assert all(curve.style.colour == colour(curve.series.operator) for curve in coloured)
        operators = {curve.series.operator for curve in coloured}
        assert len({colour(operator) for operator in operators}) == len(operators), "told apart by colour alone"
        looks = {(curve.style.colour, curve.style.dash, curve.style.wide) for curve in coloured}
        assert len(looks) == len(coloured), "and the series of one operator by their dashes"
    assert greys > 20


def test_operators_that_were_chosen_are_all_drawn_in_colour_and_nothing_else_is() -> None:
    chosen = ("sinkhorn", "moba", "softmax:sdpa")
    assert colour("sinkhorn") == colour("moba")
    run = laws(SIZES, {**LAWS, "sinkhorn": lambda n: 2e-5 * n, "moba": lambda n: 3e-5 * n})
    shown = summarise(run, ("wall_time",), operators=chosen)
    overview, curves = drawings(shown, FAMILIES, chosen)
    (graph,) = curves.graphs
    styles = {curve.series.name: curve.style for curve in graph.curves}
    assert set(styles) == {"sinkhorn", "moba", "softmax:sdpa"}
    assert all(style.coloured for style in styles.values())
    assert styles["sinkhorn"].shape != styles["moba"].shape
    assert styles["sinkhorn"].dash != styles["moba"].dash
    assert {curve.series.name for curve in overview.graphs[0].curves} == {"sinkhorn", "moba"}


def test_of_a_few_that_were_chosen_every_impl_is_drawn() -> None:
    chosen = ("softmax", "local")
    run = reference("h100-prefill")
    drawn = drawings(summarise(run, ("wall_time",), operators=chosen), run.environment["families"], chosen)
    assert [drawing.stem for drawing in drawn] == ["seq_len-wall_time-overview", "seq_len-wall_time-curves"]
    names = {curve.series.name for curve in drawn[1].graphs[0].curves}
    assert {"softmax:sdpa", "softmax:cuda:cudnn", "local:cuda", "local:cuda:graph"} <= names
    of_all = drawings(summarise(run, ("wall_time",)), run.environment["families"])
    assert [drawing.stem.rsplit("-", 1)[1] for drawing in of_all] == ["overview", "curves", "families"]
    assert not {"softmax:cuda:cudnn", "local:cuda:graph"} & {c.series.name for c in of_all[1].graphs[0].curves}


@pytest.mark.parametrize("kind", ["families", "overview"])
def test_the_panels_of_a_picture_have_one_y_axis(kind: str) -> None:
    for drawing in of_reference("cpu-sequence", kind):
        axes = picture_of(drawing, AS_IT_NEEDS).axes
        assert len(axes) > 1
        assert len({each.get_ylim() for each in axes}) == 1
        assert len({tuple(each.get_yticks()) for each in axes}) == 1


def folder_of(tmp_path: Path, times: dict[str, Law], metrics: dict[str, float]) -> Path:
    cells = [(cell(name, sequence(n)), float(law(n)), metrics) for name, law in times.items() for n in SIZES]
    return stored_folder(tmp_path / "run", visits_of(cells))


def invoked(*words: object) -> Any:
    return CliRunner().invoke(app, ["plot", *map(str, words)], env={"COLUMNS": "80"})


def test_a_metric_without_figures_is_named_and_draws_nothing(tmp_path: Path) -> None:
    two: dict[str, Law] = {"softmax": lambda n: 1e-6 * n**2, "performer": lambda n: 1e-4 * n}
    run = folder_of(tmp_path, two, {"flops": 0, "peak_memory_bytes": 100, "parameter_bytes": 0})
    nothing = invoked(run, "--metric", "flops", "--out", tmp_path / "none")
    assert isinstance(nothing.exception, BadInput)
    assert str(nothing.exception) == (
        "attnbench plot: there is nothing to draw. No picture of flops: no cell has a figure of it above 0."
    )
    assert not (tmp_path / "none").exists()
    some = invoked(run, "--out", tmp_path / "some", "--format", "svg")
    assert some.exit_code == 0
    assert "No picture of flops" in some.stderr
    names = {path.name for path in (tmp_path / "some").iterdir()}
    assert "seq_len-wall_time-overview.svg" in names
    assert not any("flops" in name for name in names)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "3.5"], "--size '3.5'; allowed: a width with its unit (in, cm, mm, pt), such as 3.5in or 89mm"),
        (["--size", "3.5x2.5"], "--size '3.5x2.5'; allowed: a width with its unit"),
        (["--size", "wide"], "or width and height, such as 3.5x2.5in; each up to 60in."),
        (["--size", "0in"], "--size '0in'; allowed"),
        (["--size", "900in"], "--size '900in'; allowed"),
        (["--format", "jpg"], "--format 'jpg' (did you mean 'png'?); allowed: png, svg, pdf; several with commas."),
        (["--format", "pgn,pdf"], "--format 'pgn' (did you mean 'png'?); allowed: png, svg, pdf"),
        (
            ["--operators", "performr"],
            "--operators 'performr': this run has no series of it (did you mean 'performer'?",
        ),
        (["--operators", "rfa", "--over", "batch"], "--over: a map is of all operators. Leave out --operators."),
    ],
)
def test_what_cannot_be_drawn_is_told_in_one_paragraph(words: list[str], said: str, tmp_path: Path) -> None:
    refused = invoked(REFERENCE / "cpu-decode", *words, "--out", tmp_path / "none")
    assert isinstance(refused.exception, BadInput)
    assert said in str(refused.exception)
    assert "\n" not in str(refused.exception)
    assert not (tmp_path / "none").exists()


def test_sizes_are_read_in_every_unit() -> None:
    assert picture_size("3.5in") == (3.5, None)
    assert picture_size("3.5x2.5in") == (3.5, 2.5)
    assert picture_size("89mm") == (pytest.approx(89 / 25.4), None)
    assert picture_size("8.9 cm × 252pt") == (pytest.approx(8.9 / 2.54), 3.5)


def test_a_picture_for_a_column_of_a_paper(tmp_path: Path) -> None:
    six = "softmax,performer,rfa,linformer,local,sinkhorn"
    drawn = invoked(
        REFERENCE / "cpu-sequence", "--metric", "wall_time", "--operators", six, "--size", "3.5in", "--title", "none",
        "--format", "pdf,svg", "--out", tmp_path,
    )  # fmt: skip
    assert drawn.exit_code == 0
    assert [Path(line).name for line in drawn.stdout.splitlines()] == [
        f"seq_len-wall_time-{what}.{form}" for what in ("overview", "curves") for form in ("pdf", "svg")
    ]
    svg = (tmp_path / "seq_len-wall_time-curves.svg").read_text()
    assert f'width="{3.5 * 72:g}pt"' in svg
    assert all(f">{name}<" in svg for name in six.split(","))
    assert not any(f">{name}<" in svg for name in ("fnet", "efficient", "Wall time. seq_len"))
    assert "scope core" not in svg, "no title"


def test_pictures_are_drawn_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['attnbench', 'plot', *sys.argv[1:]]\n"
        "import atexit; atexit.register(lambda: print('torch' in sys.modules, 'matplotlib' in sys.modules))\n"
        "from attnbench.__main__ import main\n"
        "main()\n"
    )
    words = ["--metric", "flops", "--operators", "softmax", "--format", "svg", "--out", str(tmp_path)]
    command = [sys.executable, "-c", code, str(REFERENCE / "h100-prefill"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.stdout.endswith("curves.svg\nFalse True\n")


def test_a_title_that_is_too_long_for_its_panel_is_shortened() -> None:
    family = "a family of somebody's own with a name as long as a sentence"
    (drawing,) = of_reference("cpu-sequence", "curves", ("softmax", "performer"))
    named = replace(drawing, graphs=tuple(replace(graph, title=family) for graph in drawing.graphs))
    picture = picture_of(named, Wanted(3.5))
    assert misplaced(picture) == []
    assert all(axes.get_title(loc="left").endswith("…") for axes in picture.axes)


def test_spread_moves_no_more_than_it_must() -> None:
    assert spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    placed = spread([0.1, 0.12, 0.13, 0.8], 0.1)
    assert placed == sorted(placed)
    assert min(b - a for a, b in pairwise(placed)) >= 0.1 - 1e-12
    assert placed[3] == pytest.approx(0.8)
    assert spread([], 0.1) == []
    assert spread([0.9, 1.0, 1.0], 0.1, 0.0, 1.0) == pytest.approx([0.8, 0.9, 1.0])
    assert spread([0.0, 0.0, 0.5], 0.1, 0.0, 1.0) == pytest.approx([0.0, 0.1, 0.5])
    assert spread([0.5, 0.5], 2.0, 0.0, 1.0) == pytest.approx([0.0, 2.0])


def test_texts_are_wrapped_to_a_width_and_long_words_broken() -> None:
    lines = _picture_parts.wrapped("sliding_window sink=tokens,window=1024:sdpa and more", 1.0)
    assert "".join(lines).replace(" ", "") == "sliding_windowsink=tokens,window=1024:sdpaandmore"
    assert all(_picture_parts.width_in(line) <= 1.0 for line in lines)
    assert _picture_parts.wrapped("", 1.0) == []


def test_panels_of_one_axis_have_different_files() -> None:
    (report,) = summarise(laws(SIZES, {"softmax": lambda n: n})).panels
    assert len(set(stems([(report.panel.axis, report.panel.fixed)] * 2))) == 2
    sized = [{"mode": "fwd", "size": f"seq_len {n}", "kv_heads": k} for n, k in ((64, None), (128, 2))]
    assert stems([("batch", fixed) for fixed in sized]) == ["batch-fwd-seq_len64", "batch-fwd-seq_len128-kv_heads2"]
