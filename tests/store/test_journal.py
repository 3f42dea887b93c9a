"""What is finished is on disk, and stays there whatever happens next."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from attnbench.analysis.run import read_run
from attnbench.errors import BadInput
from attnbench.store import journal
from attnbench.store.records import SAMPLES, VISITS, Sample
from tests.stored import CELL, cell, timed, visit

SAMPLES_OF_ROUND_1 = [Sample(CELL.key, 1, 1, index, "wall", 0.25, "switched") for index in range(3)]


def begun(folder: Path) -> journal.Journal:
    opened = journal.create(folder, "name: made\n", {"torch": "2.13.0"})
    opened.add(visit(CELL))
    opened.take(SAMPLES_OF_ROUND_1)
    opened.add(timed(CELL, 1, 0.25))
    return opened


def test_everything_added_is_read_back(tmp_path: Path) -> None:
    begun(tmp_path / "run").close()
    run = read_run(tmp_path / "run")
    assert list(run.visits["round"]) == [0, 1]
    assert list(run.samples["flags"]) == ["switched"] * 3


@pytest.mark.parametrize("lost", range(1, 60, 7))
def test_a_torn_tail_is_cut_and_its_samples_discarded(tmp_path: Path, lost: int) -> None:
    folder = tmp_path / "run"
    begun(folder).close()
    whole = (folder / VISITS).read_bytes()
    (folder / VISITS).write_bytes(whole[:-lost])
    opened = journal.resume(folder)
    assert [v.round for v in opened.visits] == [0]
    opened.take([Sample(CELL.key, 1, 2, 0, "wall", 0.5)])
    opened.add(timed(CELL, 1, 0.5, process=2))
    opened.close()
    run = read_run(folder)
    assert list(run.visits["round"]) == [0, 1]
    assert list(run.samples["seconds"]) == [0.5]


def test_a_tail_torn_within_a_character_is_cut(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begun(folder).close()
    with (folder / VISITS).open("ab") as file:
        file.write('{"reason":"é'.encode()[:-1])
    assert len(read_run(folder).visits) == 2
    journal.resume(folder).close()
    assert (folder / VISITS).read_bytes().endswith(b"}\n")


def test_torn_and_unfinished_samples_are_discarded(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begun(folder).close()
    with (folder / SAMPLES).open("a") as file:
        file.write(Sample(CELL.key, 2, 2, 0, "wall", 0.5).line() + "softmax.ref")
    journal.resume(folder).close()
    assert (folder / SAMPLES).read_text().count("\n") == 4
    assert (folder / SAMPLES).read_text().endswith("switched,0\n")


def test_samples_of_an_unfinished_part_are_of_no_visit(tmp_path: Path) -> None:
    """A part that begins again has the same key, round and process."""
    folder = tmp_path / "run"
    opened = begun(folder)
    parts = [Sample(CELL.key, 1, 1, 0, "wall", 0.5, part=part) for part in (1, 2)]
    opened.take(parts[:1])
    opened.take(parts[1:])
    opened.add(timed(CELL, 1, 0.5, part=2))
    assert list(read_run(folder).samples["part"]) == [0, 0, 0, 2]
    opened.close()
    journal.resume(folder).close()
    assert (folder / SAMPLES).read_text().count("\n") == 5
    assert [visit.part for visit in journal.resume(folder).visits] == [0, 0, 2]


def test_samples_of_older_contracts_have_no_parts(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begun(folder).close()
    rows = (folder / SAMPLES).read_text().splitlines()
    older = "\n".join(row.rpartition(",")[0] for row in rows) + "\n"
    (folder / SAMPLES).write_text(older)
    assert list(read_run(folder).samples["part"]) == [0, 0, 0]
    journal.resume(folder).close()
    assert (folder / SAMPLES).read_text() == older


def test_two_processes_do_not_write_one_run(tmp_path: Path) -> None:
    opened = begun(tmp_path / "run")
    with pytest.raises(BadInput, match="another attnbench"):
        journal.resume(tmp_path / "run")
    opened.close()
    journal.resume(tmp_path / "run").close()


def test_a_full_disk_is_one_clear_error_and_keeps_what_is_there(tmp_path: Path) -> None:
    opened = begun(tmp_path / "run")
    opened._lines.close()
    opened._lines = open("/dev/full", "r+b", buffering=0)  # noqa: SIM115 - closed with the journal
    with pytest.raises(BadInput, match=r"No space left on device.*kept.*--resume"):
        opened.add(visit(cell("linformer")))
    opened.close()
    assert len(read_run(tmp_path / "run").visits) == 2
    assert [v.key for v in journal.resume(tmp_path / "run").visits] == [CELL.key, CELL.key]


def test_a_folder_that_could_not_be_begun_can_be_named_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replaced(path: Path, content: str) -> None:
        if path.name == VISITS:
            raise OSError(errno.ENOSPC, "full")
        path.write_text(content)

    monkeypatch.setattr(journal, "replace", replaced)
    with pytest.raises(BadInput, match=r"full\. Choose a writable place"):
        journal.create(tmp_path / "run", "", {})
    monkeypatch.undo()
    anew = journal.create(tmp_path / "run", "name: made\n", {}, "Begin again.")
    anew._lines.close()
    anew._lines = open("/dev/full", "r+b", buffering=0)  # noqa: SIM115 - closed with the journal
    with pytest.raises(BadInput, match=r"No space left on device\. Free some space there\. Begin again\.$"):
        anew.add(visit(CELL))
    anew.close()


@pytest.mark.parametrize("then", ["moved", "removed", "replaced"])
def test_a_folder_that_is_moved_while_it_is_written_ends_the_writing(tmp_path: Path, then: str) -> None:
    """At once, so that no hours are measured into a folder that is gone; what was added is where the folder is."""
    opened = begun(tmp_path / "run")
    if then == "removed":
        shutil.rmtree(tmp_path / "run")
    else:
        os.rename(tmp_path / "run", tmp_path / "moved")
    if then == "replaced":
        begun(tmp_path / "run").close()
    with pytest.raises(BadInput, match=r"moved or removed.*put it back.*What it holds is kept.*--resume"):
        opened.add(visit(cell("linformer")))
    opened.close()
    if then != "removed":
        assert len(journal.resume(tmp_path / "moved").visits) == 3


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be written"):
        journal.create(Path("/proc/nowhere/run"), "", {})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    with pytest.raises(BadInput, match="is not empty"):
        journal.create(tmp_path / "run", "", {})


def test_what_is_no_run_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not a run folder"):
        journal.resume(tmp_path)
