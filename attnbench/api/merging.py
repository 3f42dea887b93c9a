"""Runs and shards joined from Python: what `attnbench merge` does, by the same functions."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

from attnbench.api import arguments

if TYPE_CHECKING:
    from attnbench.api.stored_run import StoredRun


@arguments.named
def merge(runs: Iterable[str | os.PathLike[str]], out: str | os.PathLike[str], *, partial: bool = False) -> StoredRun:
    """Joins runs and shards of one suite into one run.

    Where checks contradict each other, or something is missing, is a Python warning.

    Args:
        runs: runs, or folders that `run` or `merge` wrote.
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

    several = [runs] if isinstance(runs, (str, os.PathLike)) or not isinstance(runs, Iterable) else runs
    joined = join([arguments.folder("runs", run) for run in several], partial=partial)
    folder = arguments.folder("out", out)
    write(joined, folder)
    for note in joined.notes[1:]:
        warnings.warn(note, stacklevel=3)
    return load(folder)
