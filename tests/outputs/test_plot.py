from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation

from attnbench.analysis.summary import Summary, summarise
from attnbench.outputs import plot
from tests.analysis.runs import Law, laws

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
    return summarise(laws(SIZES, LAWS, statuses={("softmax", 2048): "oom"}), ("wall_time", "peak_memory", "flops"))


def test_an_overview_and_a_picture_per_metric_are_written(summary: Summary, tmp_path: Path) -> None:
    written = plot.draw(summary, FAMILIES, tmp_path / "new")
    assert {p.name for p in written} == {
        f"seq_len-fwd-{what}.{form}"
        for what in ("overview", "wall_time-families", "peak_memory-families", "flops-families")
        for form in ("png", "svg")
    }
    for path in written:
        assert path.read_bytes()[:4] == (b"\x89PNG" if path.suffix == ".png" else b"<?xm")
    overview = (tmp_path / "new" / "seq_len-fwd-overview.svg").read_text()
    assert "softmax oom" in overview
    assert "performer  &gt;" in overview
    families = (tmp_path / "new" / "seq_len-fwd-wall_time-families.svg").read_text()
    assert "identity" not in overview + families


def boxes(picture: Any) -> list[Any]:
    """Where the labels' texts are, in pixels, without the hairs to their lines."""
    canvas = FigureCanvasAgg(picture)
    canvas.draw()
    labels = [text for axes in picture.axes for text in axes.texts if isinstance(text, Annotation)]
    return [super(Annotation, text).get_window_extent(canvas.get_renderer()) for text in labels]


def test_labels_do_not_overlap(summary: Summary, monkeypatch: pytest.MonkeyPatch) -> None:
    report = summary.panels[0]
    for picture in (plot._overview(report, FAMILIES), plot._families(report, report.tables[0], FAMILIES)):
        found = boxes(picture)
        assert len(found) > 10
        assert not any(a.overlaps(b) for a, b in combinations(found, 2))
        assert all(box.x1 <= picture.bbox.x1 and box.y0 >= 0 and box.y1 <= picture.bbox.y1 for box in found)
    monkeypatch.setattr(plot, "spread", lambda wanted, *_: list(wanted))
    crowded = boxes(plot._overview(report, FAMILIES))
    assert any(a.overlaps(b) for a, b in combinations(crowded, 2))


def test_same_run_same_svg(summary: Summary, tmp_path: Path) -> None:
    first = plot.draw(summary, FAMILIES, tmp_path / "a", ("svg",))
    second = plot.draw(summary, FAMILIES, tmp_path / "b", ("svg",))
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_spread_moves_no_more_than_it_must() -> None:
    assert plot.spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert plot.spread([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    placed = plot.spread([0.1, 0.12, 0.13, 0.8], 0.1)
    assert placed == sorted(placed)
    assert min(b - a for a, b in pairwise(placed)) >= 0.1 - 1e-12
    assert placed[3] == pytest.approx(0.8)
    assert plot.spread([], 0.1) == []
    assert plot.spread([0.9, 1.0, 1.0], 0.1, 0.0, 1.0) == pytest.approx([0.8, 0.9, 1.0])
    assert plot.spread([0.0, 0.0, 0.5], 0.1, 0.0, 1.0) == pytest.approx([0.0, 0.1, 0.5])
    assert plot.spread([0.5, 0.5], 2.0, 0.0, 1.0) == pytest.approx([0.0, 2.0])


def test_panels_of_one_axis_have_different_files() -> None:
    run = laws(SIZES, {"softmax": lambda n: n})
    (report,) = summarise(run).panels
    assert len(set(plot._stems([(report.panel.axis, report.panel.fixed)] * 2))) == 2
