"""The notebook in examples/: it runs, shows what it is about, and names no folder of the machine that made it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from benchmarks.notebook import NOTEBOOK, PLACES, executed, places, texts


@pytest.fixture(scope="module")
def stored() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def kinds(cell: Any) -> list[tuple[str, list[str]]]:
    """What a cell's outputs are."""
    return [(output.output_type, sorted(output.get("data", ()))) for output in cell.outputs]


def test_it_runs_and_what_is_stored_is_of_the_same_kind(stored: Any) -> None:
    again = executed()
    pairs = [(a, b) for a, b in zip(stored.cells, again.cells, strict=True) if a.cell_type == "code"]
    assert len(pairs) > 5
    for before, after in pairs:
        assert kinds(before) == kinds(after), f"make notebook: {before.source}"
        assert after.outputs, f"a cell shows nothing: {after.source}"


def test_it_shows_the_verdict_a_picture_a_choice_and_a_comparison(stored: Any) -> None:
    outputs = [output for cell in stored.cells for output in cell.get("outputs", ())]
    text = "\n".join(each for output in outputs for each in texts(output))
    assert "image/png" in {kind for output in outputs for kind in output.get("data", ())}
    for words in ("On this CPU", "crossing", "interpolated", "this process", "do not give the same"):
        assert words in text


def test_it_names_no_folder_of_a_machine_and_is_small(stored: Any) -> None:
    assert places(stored) == []
    assert not PLACES.search(NOTEBOOK.read_text(encoding="utf-8"))
    assert NOTEBOOK.stat().st_size < 400_000
    output = nbformat.v4.new_output("stream", text="a\n/home/me/run\n")
    named = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[output])])
    assert places(named) == ["/home/me/run"]
    assert not PLACES.search("../results/reference, docs/api.md, a/b")


def test_a_cell_that_fails_is_noticed(tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell("import attnbench\nattnbench.load('gone')")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    with pytest.raises(CellExecutionError, match="no such folder") as failed:
        executed(tmp_path / "n.ipynb")
    assert "attnbench: gone: no such folder" in failed.value.traceback, "a paragraph"
    assert "line" not in failed.value.traceback, "and no traceback"
