"""The formats: a file of `attnbench/outputs/` is a `--format`, named as the file, for the data that it defines a
function for.

    run(summary: Summary)                       the results of a run: `show`, `run`
    grids(grids: Sequence[Grid])                two axes of a run at once: `show --over`
    rows(listing: Listing)                      rows of plain values: `list`, `estimate`, `roofline`, `crossover`, …
    comparisons(comparisons: list[Comparison])  stored runs compared: `compare`, `gate`
    rules(dispatch: Dispatch)                   what to call at which size: `dispatch`
    claims(reproduction: Reproduction)          what papers claim beside ours: `reproduce`
    history(history: History)                   the runs of a folder by time: `history`

`run` answers first; where a format has tables(summary) as well, that shows all tables where these are asked for. Each
returns the text, or the bytes of a binary format, or prints it itself and returns None. HOLDS_FOLDER = True: `run` and
`rows` take `folder=`, the folder of what was just measured, and the text names it. DOCUMENT = True: another tool reads
all of stdout, so the folder is told on stderr. Else it stands below, on the last line. check() raises BadInput where
what the format needs is not installed, or where stdout cannot take it: it is asked before anything is measured.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from attnbench.errors import BadInput
from attnbench.registry import scan

Data = Literal["run", "grids", "rows", "comparisons", "rules", "claims", "history"]
PACKAGE = "attnbench.outputs"


def formats(data: Data) -> list[str]:
    """The formats that show such data, sorted. None of them is imported: that would take as long as a quick command."""
    return [name for name in scan(PACKAGE) if data in _functions(name)]


def _functions(name: str) -> set[str]:
    """The functions that a file of the package defines."""
    spec = importlib.util.find_spec(f"{PACKAGE}.{name}")
    source = getattr(spec and spec.loader, "get_source", lambda _: None)(f"{PACKAGE}.{name}")
    if source is None:  # installed without its source
        return set(vars(_output(name)))
    return {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}


def show(data: Data, value: Any, form: str, folder: Path | None = None, all_tables: bool = False) -> None:
    """Prints a value to stdout.

    Args:
        data: what kind of value it is.
        value: a Summary, grids, a Listing, comparisons, a Dispatch, a Reproduction, or a History.
        form: one of `formats(data)`.
        folder: of what was just measured; named on the last line unless the text holds it.
        all_tables: of a run, where the format has an answer and tables, whether the tables are shown.

    Raises: BadInput where the format shows other data alone.
    """
    output = _output(form)
    if not hasattr(output, data):
        raise BadInput(f"--format {form}: it does not show this; allowed: {', '.join(formats(data))}.")
    inside = folder is not None and holds_folder(form)
    function = getattr(output, "tables" if all_tables and hasattr(output, "tables") else data)
    text = function(value, **({"folder": folder} if inside else {}))
    if isinstance(text, bytes):
        sys.stdout.flush()
        sys.stdout.buffer.write(text)
    elif text is not None:
        sys.stdout.write(text)
    if folder is not None and not inside:
        tell(folder, form)


def tell(folder: Path, form: str) -> None:
    """Prints the folder of what was just measured, where a format leaves it to others."""
    print(folder, file=sys.stderr if getattr(_output(form), "DOCUMENT", False) else sys.stdout)


def check(form: str) -> None:
    """Raises BadInput where what the format needs is not installed."""
    getattr(_output(form), "check", lambda: None)()


def holds_folder(form: str) -> bool:
    """Whether the text of a format names the folder itself."""
    return bool(getattr(_output(form), "HOLDS_FOLDER", False))


def _output(form: str) -> ModuleType:
    return importlib.import_module(f"{PACKAGE}.{form}")
