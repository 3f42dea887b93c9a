"""Modules are looked for without importing them or what they are in."""

from __future__ import annotations

from pathlib import Path

import pytest

from attnbench.modules import installed, specs_of


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with an `__init__.py` that must not run, and one without; each with a folder that has none."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for package in ("with_init", "without_init"):
        (tmp_path / package / "folder").mkdir(parents=True)
        (tmp_path / package / "folder" / "leaf.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "with_init" / "__init__.py").write_text("raise RuntimeError('imported')")
    return tmp_path


@pytest.mark.parametrize("package", ["with_init", "without_init"])
def test_modules_in_folders_without_an_init_are_there(package: str, place: Path) -> None:
    assert installed(package)
    assert installed(f"{package}.folder")
    assert installed(f"{package}.folder.leaf")
    assert [spec.name for spec in specs_of(f"{package}.folder.leaf.beyond")] == [
        *(package, f"{package}.folder", f"{package}.folder.leaf")
    ]
    assert not installed(f"{package}.leaf")
    assert not installed("absent.folder")


def test_a_module_comes_before_a_folder_of_its_name(place: Path, tmp_path: Path) -> None:
    (place / "with_init" / "twice").mkdir()
    (place / "with_init" / "twice.py").write_text("")
    assert specs_of("with_init.twice")[-1].loader is not None
