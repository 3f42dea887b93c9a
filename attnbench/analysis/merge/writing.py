"""A joined run is stored as any other is."""

from __future__ import annotations

from pathlib import Path

from attnbench.analysis import results
from attnbench.analysis.merge.joining import Joined
from attnbench.files import going_on
from attnbench.store import journal
from attnbench.store.frames import frame
from attnbench.store.records import Sample


def write(joined: Joined, folder: Path, todo: str = "") -> None:
    """Writes a run folder. Raises BadInput where it exists and is not empty, or cannot be written.

    todo: what the user can do where it takes no more; default: join the parts again.
    """
    todo = todo or f"The parts are as they were: remove {folder} and join them again."
    opened = journal.create(folder, joined.suite_text, joined.environment, todo)
    try:
        for table in joined.samples:
            opened.take(Sample(*row) for row in table.itertuples(index=False, name=None))
        opened.add(*joined.visits)
        if joined.visits:
            with going_on(folder, todo):
                results.write(folder, frame(joined.visits), tuple(joined.environment["looks"]))
    finally:
        opened.close()
