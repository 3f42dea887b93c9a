"""Runs examples/notebook.ipynb and stores what its cells show, for `make notebook`.

What is stored says nothing of the machine's folders, and changes only where a cell shows something else: no execution
times, no versions of a kernel.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
LIMIT_S = 600
PLACES = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|usr|opt|Users|var|mnt)/")
"""What begins a folder of a machine."""


def executed(path: Path = NOTEBOOK) -> Any:
    """The notebook with new outputs, run by a kernel of this Python in the notebook's folder.

    Raises: nbclient.exceptions.CellExecutionError where a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "IPYTHONDIR": folder,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
        client = NotebookClient(
            notebook,
            timeout=LIMIT_S,
            resources={"metadata": {"path": str(path.parent)}},
            config=Config({"KernelManager": {"transport": "ipc", "ip": os.path.join(folder, "kernel")}}),
        )
        client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return notebook


def texts(output: Mapping[str, Any]) -> Iterator[str]:
    """What an output shows in text."""
    yield output.get("text", "")
    yield from (content for kind, content in sorted(output.get("data", {}).items()) if kind.startswith("text/"))


def places(notebook: Any) -> list[str]:
    """The lines of outputs that name a folder of this machine."""
    every = (text for cell in notebook.cells for output in cell.get("outputs", ()) for text in texts(output))
    return [line for text in every for line in text.splitlines() if PLACES.search(line) or str(ROOT) in line]


def main() -> None:
    notebook = executed()
    if named := places(notebook):
        raise SystemExit(f"a cell shows a folder of this machine: {named[0]}")
    nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK.relative_to(ROOT)}: {len(notebook.cells)} cells")


if __name__ == "__main__":
    main()
