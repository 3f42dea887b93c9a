from __future__ import annotations

import sys
from importlib import import_module

import pytest

from benchmarks.coverage import __main__ as statistics
from benchmarks.coverage.__main__ import MARKED, PAGE, main, tables


def test_every_part_of_the_page_is_a_module_that_makes_a_table() -> None:
    parts = [match["part"] for match in MARKED.finditer(PAGE.read_text(encoding="utf-8"))]
    assert {"noises", "estimand", "intervals", "looks"} <= set(parts)
    assert len(parts) == len(set(parts))
    for part in parts:
        assert callable(import_module(f"benchmarks.coverage.{part}").table)


def test_a_part_replaces_what_stands_between_its_markers_only() -> None:
    page = "# A\n<!-- part: noises -->\nold\n<!-- end -->\nprose\n<!-- part: looks -->\nkept\n<!-- end -->\n"
    made = tables(page, ["noises"], 2)
    assert "old" not in made
    assert "| Gaussian |" in made
    assert made.startswith("# A\n<!-- part: noises -->\n")
    assert made.endswith("\n<!-- end -->\nprose\n<!-- part: looks -->\nkept\n<!-- end -->\n")


def test_a_part_that_is_not_on_the_page_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = statistics.PAGE.read_bytes()
    monkeypatch.setattr(sys, "argv", ["coverage", "nosuch"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "nosuch: no such part" in capsys.readouterr().err
    assert statistics.PAGE.read_bytes() == before
