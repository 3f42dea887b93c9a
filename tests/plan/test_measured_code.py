"""What counts as measured code: what a worker may import, and nothing that only shows what was measured."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

import attnbench
from attnbench.plan.measured_code import MeasuredCode, _library_folders, changes, code_imported_by, measured_code

OPERATOR = """
import json
from typing import TYPE_CHECKING
import torch
import helper_of_mine
from packed_of_mine.deep import inner
if TYPE_CHECKING:
    from seen_by_checkers import Thing
def load():
    import late_of_mine
    return __import__("named_of_mine")
"""
FILES = {
    "mine.py": OPERATOR,
    "helper_of_mine.py": "import numpy, attnbench.outputs.table\n",
    "late_of_mine.py": "import not_installed_anywhere\n",
    "named_of_mine.py": "",
    "seen_by_checkers.py": "",
    "beside.py": "",
    "packed_of_mine/__init__.py": "",
    "packed_of_mine/apart.py": "",
    "packed_of_mine/up.py": "from .apart import nothing\n",
    "packed_of_mine/deep/__init__.py": "",
    "packed_of_mine/deep/inner.py": "from ..up import nothing\n",
    "packed_of_mine/deep/found_by_scanning.py": "def broken(:\n",
    "packed_of_mine/deep/kernel.cu": "",
    "packed_of_mine/deep/notes.md": "",
    "packed_of_mine/deep/__pycache__/old.py": "",
}
NOT_MEASURED = {
    "seen_by_checkers.py",
    "beside.py",
    "packed_of_mine/deep/notes.md",
    "packed_of_mine/deep/__pycache__/old.py",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def own(code: MeasuredCode) -> set[str]:
    return {name for name in code.files if not name.startswith("attnbench/")}


def test_a_users_file_counts_with_all_that_it_imports(place: Path) -> None:
    found = measured_code([str(place / "mine.py")])
    assert own(found) == set(FILES) - NOT_MEASURED
    assert found.libraries["torch"] == metadata.version("torch")
    assert found.libraries["numpy"] == metadata.version("numpy")
    assert not {"json", "not_installed_anywhere", "pandas"} & set(found.libraries)
    assert not any(name in sys.modules for name in ("helper_of_mine", "packed_of_mine")), "read, not imported"


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_change_is_seen_where_it_may_be_measured(place: Path, name: str) -> None:
    before = measured_code([str(place / "mine.py")])
    (place / name).write_text(FILES[name] + "\n")
    after = measured_code([str(place / "mine.py")])
    told = changes(before.files, after.files)
    assert told.startswith(f"{name} has changed (") if name not in NOT_MEASURED else told == ""
    assert str(place) not in told


def test_a_package_of_operators_counts_whole_wherever_it_is_installed(place: Path) -> None:
    found = own(measured_code(["packed_of_mine"]))
    assert found == {name for name in FILES if name.startswith("packed_of_mine/")} - NOT_MEASURED


def test_a_module_that_is_added_or_taken_away_is_told(place: Path) -> None:
    before = measured_code([str(place / "mine.py")]).files
    (place / "packed_of_mine/deep/more.py").write_text("")
    (place / "helper_of_mine.py").unlink()
    told = changes(before, measured_code([str(place / "mine.py")]).files)
    assert told == "helper_of_mine.py is gone, packed_of_mine/deep/more.py is new"
    assert changes({str(n): "1" for n in range(5)}, {}) == "0 is gone, 1 is gone, 2 is gone, 2 more"


def test_a_library_in_a_checkout_is_not_looked_through(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "torch").mkdir()
    (place / "torch/__init__.py").write_text("")
    monkeypatch.setattr("attnbench.plan.measured_code.MOST_FILES", 2)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    found = measured_code([str(place / "mine.py")])
    assert not any(name.startswith(("torch/", "packed_of_mine/deep/i")) for name in found.files)
    assert "helper_of_mine.py" in found.files
    assert any(name.startswith("packed_of_mine/deep/") for name in measured_code(["packed_of_mine"]).files)


def test_what_pip_has_put_into_a_folder_of_its_own_counts_by_its_version(place: Path) -> None:
    mine = place / "mine.py"
    assert "helper_of_mine.py" in measured_code([str(mine)]).files
    info = place / "helper_of_mine-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: helper_of_mine\nVersion: 1.2\n")
    elsewhere = place.parent / "elsewhere.py"
    elsewhere.write_text(mine.read_text())
    _library_folders.cache_clear()
    found = measured_code([str(elsewhere)])
    assert own(found) == {"elsewhere.py"}
    assert found.libraries["helper_of_mine"] == "1.2"


def test_of_attnbench_what_measures_counts_and_what_shows_does_not() -> None:
    found = set(measured_code([]).files)
    measuring = (
        "worker", "measure/worker/serve", "measure/worker/correctness", "measure/worker/clocks",
        "measure/worker/block", "measure/worker/prepared_cell", "measure/metrics/wall_time",
        "operators/exact/softmax", "kernels/few_keys/launch", "kernels/few_keys/device", "measure/worker_process",
        "measure/machine/allocator", "measure/machine/environment", "cost",
    )  # fmt: skip
    assert {f"attnbench/{name}.py" for name in measuring} <= found
    showing = (
        "outputs/", "analysis/", "commands/", "store/frames.py", "plan/suite.py", "yaml_file.py", "measure/runner.py",
    )  # fmt: skip
    assert all((Path(attnbench.__file__).parent / part).exists() for part in showing)
    for part in showing:
        assert not any(name.startswith(f"attnbench/{part}") for name in found)
    assert set(measured_code([]).libraries) <= {"torch", "triton", "numpy", "pynvml", "fla", "flash_attn", "flashinfer"}


def test_the_code_of_one_operator_is_its_own_kernels_and_what_they_share() -> None:
    files = code_imported_by("attnbench.operators.clustered.sinkhorn").files
    assert files.keys() >= {"attnbench/operators/clustered/sinkhorn.py", "attnbench/kernels/launching.py"}
    packages = {name.split("/")[2] for name in files if name.startswith("attnbench/kernels/") and name.count("/") == 3}
    assert "sinkhorn" in packages
    assert "few_keys" not in packages


@pytest.mark.parametrize("code", [None, [], {}, {"files": {}}, {"files": {"a": 1}, "libraries": {}}])
def test_an_environment_without_digests_has_none(code: object) -> None:
    assert MeasuredCode.of({"code": code}) is None
    assert MeasuredCode.of({}) is None
    whole = MeasuredCode({"a.py": "1"}, {"torch": "2"})
    assert MeasuredCode.of({"code": whole.stored()}) == whole
