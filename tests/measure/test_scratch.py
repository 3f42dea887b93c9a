from __future__ import annotations

import fcntl
import tempfile
from pathlib import Path

import pytest

from attnbench.measure.scratch import LOCK, scratch_folder


def test_folders_of_killed_commands_go_and_those_in_use_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed, begun = tmp_path / "attnbench-shard-killed", tmp_path / "attnbench-shard-begun"
    for folder in (killed, begun):
        folder.mkdir()
    (killed / LOCK).touch()  # which nobody holds; one that has just begun has none
    with scratch_folder("shard") as one, scratch_folder("callables") as two:
        assert one.is_dir()
        assert two.is_dir()
        assert not killed.exists()
    assert list(tmp_path.iterdir()) == [begun]


def test_a_folder_is_locked_before_another_command_sees_that_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    named: list[Path] = []
    rename = Path.rename

    def locked(path: Path, target: Path) -> Path:
        with path.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        named.append(target)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", locked)
    with scratch_folder("shard") as folder:
        assert named == [folder / LOCK]
