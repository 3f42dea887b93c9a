"""Runs and shards joined from Python: what `attnbench merge` does, by the same functions."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnbench.api.stored_run import StoredRun


def merge(runs: Iterable[str | Path], out: str | Path, *, partial: bool = False) -> StoredRun:
    """Joins runs and shards of one suite into one run.

    Where checks contradict each other, or something is missing, is a Python warning.

    Args:
        runs: folders that `run` or `merge` wrote.
        out: the folder to write.
        partial: whether shards, or units of one, may be missing.

    Returns: the joined run.
    Raises: BadInput where they do not belong together, with the reason.
    """
    from attnbench.measure.platforms import check_can_measure

    check_can_measure("merge")
    from attnbench.analysis.merge.joining import join
    from attnbench.analysis.merge.writing import write
    from attnbench.api.stored_run import load

    joined = join([Path(run).expanduser() for run in runs], partial=partial)
    folder = Path(out).expanduser()
    write(joined, folder)
    for note in joined.notes[1:]:
        warnings.warn(note, stacklevel=2)
    return load(folder)
