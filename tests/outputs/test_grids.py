"""Grids of two axes as tables, JSON, CSV and pictures: all tell the same, and fit."""

from __future__ import annotations

import csv as csv_module
import io
import json as json_module
import math
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.patches import Polygon, Rectangle

from attnbench.analysis.grid import Grid, grids
from attnbench.axes import AXES
from attnbench.errors import BadInput
from attnbench.outputs import _picture_parts, csv, json, markdown, plot, table
from attnbench.outputs._colours import colour
from attnbench.outputs._grid_picture import GREYS, STRIPES, picture_of
from attnbench.outputs._grid_tables import legend, letters_of, parts
from attnbench.outputs._picture_parts import AS_IT_NEEDS, Wanted
from attnbench.outputs._run_tables import TextTable
from attnbench.problem import Problem
from tests.analysis.planted import CHANNELS, LAWS, PROBLEMS, SIZES, Law, at, border, planted, planted_visits, softmax
from tests.analysis.runs import run_of, sequence

LONG = "longformer:compiled_with_a_long_name"
LAWS_WITH_LONG: dict[str, Law] = {**LAWS, LONG: lambda p: 0.9 * at(border)(p)}
LOST = {(name, sequence(4096, 512)): "oom" for name in LAWS_WITH_LONG}
LOST |= {(name, sequence(2048, 512)): "oom" for name in ("softmax", "softmax:sdpa")}


@pytest.fixture(scope="module")
def grid() -> Grid:
    """With every kind of cell: exact, another, undecided, without exact softmax, out of memory, not measured."""
    problems = [p for p in PROBLEMS if p != sequence(256, 64)]
    equal: dict[str, Law] = {**LAWS_WITH_LONG, "linear_transformer": LAWS_WITH_LONG[LONG]}
    (found,) = grids(planted(equal, problems, statuses=LOST), "channels", "seq_len")
    return found


@pytest.fixture(scope="module")
def small() -> Grid:
    """With a border with the best exact softmax below, in and beyond the sizes."""
    places = {64: 1e6, 128: 700.0, 256: 20.0}
    laws: dict[str, Law] = {
        "softmax": lambda p: 2 * softmax(p),
        "softmax:sdpa": softmax,
        "local": at(lambda c: places[int(c)]),
    }
    (found,) = grids(
        planted(laws, [sequence(n, c) for c, n in product(places, (256, 512, 1024))]), "channels", "seq_len"
    )
    return found


def text_tables(grid: Grid) -> list[TextTable]:
    (part,) = parts([grid])
    return list(part.text_tables)


def fields(text_table: TextTable) -> dict[tuple[str, str], str]:
    return {
        (row[0].text, column): field.text
        for row in text_table.rows
        for column, field in zip(text_table.columns, row, strict=True)
    }


def test_a_map_names_what_is_fastest_by_letters_where_names_are_too_wide(grid: Grid) -> None:
    texts = fields(text_tables(grid)[0])
    letters = letters_of([grid])
    assert letters["softmax:sdpa"].startswith("S")
    sdpa, linear, long = (letters[name] for name in ("softmax:sdpa", "linear_transformer", LONG))
    assert texts["64", "512"] == sdpa
    undecided = [text for text in texts.values() if text.startswith((f"{linear}/{long}", f"{long}/{linear}"))]
    assert len(undecided) >= 5
    assert (texts["512", "4096"], texts["64", "256"]) == ("oom", "")
    assert texts["512", "2048"].endswith(" (oom)")
    (note,) = text_tables(grid)[0].notes
    assert f"{sdpa} softmax:sdpa (exact)" in note
    assert f"{long} {LONG}" in note
    assert not any(field.best for row in text_tables(grid)[0].rows for field in row if field.text == sdpa)


def test_a_small_map_names_operators(small: Grid) -> None:
    first = text_tables(small)[0]
    texts = fields(first)
    assert (texts["64", "256"], first.notes) == ("softmax:sdpa", ())
    assert texts["256", "1024"].startswith("local ")
    assert texts["256", "1024"].endswith("×")


def test_borders_are_told_with_their_intervals(small: Grid) -> None:
    texts = fields(text_tables(small)[1])
    (reach,) = small.rows[1].against_exact.reaches  # type: ignore[union-attr]
    axis = AXES["seq_len"]
    assert reach.at is not None
    assert reach.low is not None
    assert reach.high is not None
    told = f"from {axis.place(reach.at)} tokens [{axis.size(reach.low)}, {axis.size(reach.high)}]"
    assert texts["128", "cheaper than fastest exact softmax"] == told
    assert texts["64", "cheaper than fastest exact softmax"].startswith("nowhere up to ")
    assert texts["256", "cheaper than fastest exact softmax"].startswith("at every size measured, ")


def test_tables_fit_eighty_columns(
    grid: Grid, small: Grid, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    table.grids([grid, small])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("Fastest over seq_len, by wall time") for line in lines) >= 2
    text = markdown.grids([grid])
    assert text.count("\n### ") == len(text_tables(grid))
    assert all(line in text.replace("\\", "") for line in legend([grid]))


def test_json_and_csv_hold_all_figures(grid: Grid) -> None:
    (found,) = json_module.loads(json.grids([grid]), parse_constant=pytest.fail)["grids"]
    assert (found["axis"], found["over"], found["metric"]) == ("seq_len", "channels", "wall_time")
    assert [row["label"] for row in found["rows"]] == ["64", "128", "256", "512"]
    for row, held in zip(found["rows"], grid.rows, strict=True):
        assert [cell["label"] for cell in row["cells"]] == [str(n) for n in SIZES]
        assert held.against_baseline is not None
        ends = [(c["low"], c["high"]) for c in row["against_baseline"]["crossings"]]
        assert ends == [(r.low, r.high) for r in held.against_baseline.reaches]
        names = [[c["name"] for c in cell["use"]["choices"]] if cell["use"] else [] for cell in row["cells"]]
        assert names == [[c.series.name for c in s.use.choices] if s.use else [] for s in held.spots]
    assert found["rows"][3]["cells"][4]["status"] == "oom"
    rows = list(csv_module.DictReader(io.StringIO(csv.grids([grid]))))
    times = {(r["channels"], r["label"], r["series"]): r["value"] for r in rows if r["metric"] == "wall_time"}
    assert len(times) == len(PROBLEMS) * len(LAWS_WITH_LONG) - len(LAWS_WITH_LONG)
    use = grid.rows[1].spots[0].use
    assert use is not None
    assert float(times["128", "256", use.fastest.series.name]) == use.fastest.time_s


def drawn(grid: Grid, wanted: Wanted = AS_IT_NEEDS) -> Any:
    picture = picture_of(grid, letters_of([grid]), wanted)
    FigureCanvasAgg(picture)
    return picture


def outside_or_overlapping(picture: Any) -> list[str]:
    """The parts of a picture that leave it, or overlap."""
    renderer = FigureCanvasAgg(picture).get_renderer()
    picture.draw(renderer)
    (axes,) = picture.axes
    boxes = {f"text {i}": text.get_window_extent(renderer) for i, text in enumerate(picture.texts)}
    boxes["map"] = axes.get_tightbbox(renderer, bbox_extra_artists=[axes.xaxis, axes.yaxis])
    wrong = [f"{a} {b}" for a, b in combinations(boxes, 2) if boxes[a].overlaps(boxes[b])]
    room = picture.bbox.padded(1)
    inside = {
        name: room.x0 <= b.x0 and b.x1 <= room.x1 and room.y0 <= b.y0 and b.y1 <= room.y1 for name, b in boxes.items()
    }
    wrong += [name for name, fits in inside.items() if not fits]
    texts = [text.get_window_extent(renderer) for text in axes.texts]
    wrong += ["cells" for a, b in combinations(texts, 2) if a.overlaps(b)]
    labels = [text.get_window_extent(renderer) for text in axes.get_xticklabels()]
    return wrong + ["ticks" for a, b in combinations(labels, 2) if a.overlaps(b)]


def key_texts(picture: Any) -> list[str]:
    """What stands in a picture beside its map."""
    return [text.get_text() for text in picture.texts]


@pytest.mark.parametrize(("columns", "rows"), [(3, 2), (5, 4), (13, 9)])
def test_keys_title_and_cells_keep_clear_of_each_other(
    columns: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = [sequence(round(256 * 2 ** (i / 2)), 64 * 2**j) for j, i in product(range(rows), range(columns))]
    three: dict[str, Law] = {"softmax": softmax, "linear_transformer": softmax, LONG: LAWS_WITH_LONG[LONG]}
    (found,) = grids(planted(three, problems), "channels", "seq_len")
    picture = drawn(found)
    assert outside_or_overlapping(picture) == []
    assert len(picture.axes[0].texts) == columns * rows
    if columns != 5:
        return
    for size in (Wanted(3.5), Wanted(3.5, 4.0), Wanted(7.0, 5.0, "of my own")):
        narrow = drawn(found, size)
        assert outside_or_overlapping(narrow) == []
        assert narrow.get_figwidth() == size.width_in
        assert narrow.get_figheight() == pytest.approx(size.height_in or narrow.get_figheight())
    assert key_texts(narrow)[0] == "of my own"
    assert "Fastest by wall time" not in " ".join(key_texts(drawn(found, Wanted(title=""))))
    with pytest.raises(BadInput, match=r"--size 1x1in: the map and its keys do not fit into it\. Give [\d.]+x[\d.]+in"):
        drawn(found, Wanted(1.0, 1.0))
    # The negative control: texts taken for narrower than they are.
    monkeypatch.setattr(_picture_parts, "width_in", lambda text, points=7.0: 0.02 * len(text))
    assert outside_or_overlapping(drawn(found, Wanted(3.5))) != []


def test_the_line_passes_through_the_estimates_and_the_hatches_hold_the_intervals(small: Grid) -> None:
    picture = drawn(small)
    (axes,) = picture.axes
    (reach,) = small.rows[1].against_exact.reaches  # type: ignore[union-attr]
    lines = [list(map(tuple, line.get_xydata())) for line in axes.lines if len(line.get_xydata()) > 1]
    assert any((reach.at, 128.0) in points for points in lines)
    # Row 64 is never cheaper, row 256 always: the line goes on along their edges with row 128.
    (solid,) = [points for points in lines if (reach.at, 128.0) in points]
    assert solid[0] == (axes.get_xlim()[1], pytest.approx(math.sqrt(64 * 128)))
    assert solid[-1] == (axes.get_xlim()[0], pytest.approx(math.sqrt(128 * 256)))
    bands = [patch.get_xy() for patch in axes.patches if isinstance(patch, Polygon)]
    assert any({reach.low, reach.high} <= {x for x, _ in band} for band in bands)
    assert not any(1.1 * (reach.low or 0) in {x for x, _ in band} for band in bands)
    arrows = [line for line in axes.lines if len(line.get_xydata()) == 1]
    assert {line.get_marker() for line in arrows} == {"<", ">"}


def test_undecided_cells_are_hatched_and_exact_softmax_is_always_in_the_legend(grid: Grid) -> None:
    (axes,) = drawn(grid).axes
    spots = [spot for row in grid.rows for spot in row.spots]
    undecided = sum(spot.use is not None and len(spot.use.choices) > 1 for spot in spots)
    cells = [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_hatch() == STRIPES]
    assert undecided >= 5
    assert len(cells) == undecided + 1  # and the one out of memory
    assert any("cannot be told from the fastest" in text for text in key_texts(drawn(grid)))
    never: dict[str, Law] = {**LAWS, "local": lambda p: 0.1 * softmax(p)}
    (found,) = grids(planted(never), "channels", "seq_len")
    assert not any(c.exact for row in found.rows for spot in row.spots if spot.use for c in spot.use.choices)
    picture = drawn(found)
    assert "S softmax:sdpa (exact)" in key_texts(picture)
    fills = {to_hex(patch.get_facecolor()) for patch in picture.artists if isinstance(patch, Rectangle)}
    assert {GREYS[0].lower(), colour("local").lower()} <= fills


def test_a_map_is_written_and_the_same_each_time(small: Grid, tmp_path: Path) -> None:
    png, svg = plot.draw_maps([small], tmp_path / "a")
    assert (png.name, svg.name) == ("seq_len-over-channels-fwd-wall_time-map.png", f"{png.stem}.svg")
    assert png.read_bytes().startswith(b"\x89PNG")
    first, second = plot.draw_maps([small, small], tmp_path / "b", ("svg",))
    assert (first.name, second.name) == (svg.name, "seq_len-over-channels-fwd-1-wall_time-map.svg")
    assert svg.read_bytes() == first.read_bytes()


def coloured(axes: Any) -> list[Rectangle]:
    """The cells with the colour of an operator."""
    cells = [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_fill()]
    return [cell for cell in cells if cell.get_facecolor()[:3] != (1, 1, 1) and cell.get_facecolor()[3]]


def test_rows_of_different_sizes_reach_half_way_to_the_next_size() -> None:
    """As a search along each row leaves them: no column is whole, and the few cells of a row are wide ones."""
    sizes = {c: [64, 16384, *(round(border(c) * 2 ** (i / 8)) for i in (-2, 2))] for c in CHANNELS}
    (found,) = grids(planted(problems=[sequence(n, c) for c, few in sizes.items() for n in few]), "channels", "seq_len")
    assert len(found.sizes) == 10
    picture = drawn(found)
    assert outside_or_overlapping(picture) == []
    cells = coloured(picture.axes[0])
    assert len(cells) == 16
    first = [cell for cell in cells if cell.get_y() == cells[0].get_y()]
    widths = [cell.get_width() for cell in first]
    assert widths[1] == pytest.approx(math.sqrt(sizes[64][2] * sizes[64][3]) - first[1].get_x())


def test_images_of_as_many_tokens_stand_side_by_side() -> None:
    problems = [Problem.image(h, w, c, 4) for c in (64, 128) for h, w in ((16, 64), (32, 32), (64, 64))]
    (found,) = grids(planted(problems=problems), "channels", axis="image_size")
    cells = coloured(drawn(found).axes[0])
    assert len(cells) == 6


def test_one_timed_size_is_one_column() -> None:
    timed = [v for v in planted_visits() if v.round == 0 or ".n256." in v.key]
    (found,) = grids(run_of(timed), "channels", "seq_len")
    assert list(found.sizes) == ["256"]
    picture = drawn(found)
    assert outside_or_overlapping(picture) == []
    assert len(coloured(picture.axes[0])) == len(CHANNELS)


def test_one_round_has_a_line_and_no_hatches() -> None:
    (found,) = grids(planted(rounds=1), "channels", "seq_len")
    picture = drawn(found)
    assert not any(isinstance(patch, Polygon) for patch in picture.axes[0].patches)
    assert any(len(line.get_xydata()) > 2 for line in picture.axes[0].lines)
    assert not any("hatched" in text.get_text() for text in picture.texts)


def test_letters_are_those_of_all_grids_of_a_run(grid: Grid, small: Grid) -> None:
    letters = letters_of([grid, small])
    assert len(set(letters.values())) == len(letters)
    assert letters_of([grid]).items() <= letters.items()
    many: dict[str, Law] = {"softmax": softmax, **{f"op{i:02}": (lambda p: 0.5 * softmax(p)) for i in range(30)}}
    (found,) = grids(
        planted(many, [sequence(n, c) for c in CHANNELS[:2] for n in SIZES[:2]], own=0.05), "channels", "seq_len"
    )
    crowded = letters_of([found])
    assert len(set(crowded.values())) == len(crowded) == 31
    assert crowded["op25"] == "A2"
