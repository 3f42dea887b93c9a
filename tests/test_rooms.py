"""The rooms and the arrows between them: every import in attnbench, function-local ones too, runs one way.

The table is the documentation; CONTRIBUTING.md says what each room is for.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import attnbench

PACKAGE = Path(attnbench.__file__).parent
ROOT = "root"
"""What every room speaks: the modules that stand in attnbench/ itself."""

DOORS = ("attnbench", "attnbench.__main__", "attnbench.worker")
"""Where one enters: `import attnbench`, and what Python is told to run, the command line and the measured process."""

ALLOWED: dict[str, tuple[str, ...]] = {
    "commands": ("outputs", "measure", "analysis", "store", "plan", "operators", "kernels", ROOT),
    "api": ("outputs", "measure", "analysis", "store", "plan", "operators", ROOT),
    "outputs": ("analysis", "store", ROOT),
    "measure": ("plan", "store", "analysis", "operators", "kernels", ROOT),
    "analysis": ("store", ROOT),
    "plan": (ROOT,),
    "store": (ROOT,),
    "operators": ("kernels", ROOT),
    "kernels": (ROOT,),
    ROOT: (),
    "doors": ("commands", "api", "measure", ROOT),
}
"""Room: the rooms that it may import, itself apart."""


def modules() -> dict[str, Path]:
    """Every module of attnbench by its dotted name."""
    names = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def room_of(module: str) -> str:
    """The room of a module: the first folder below attnbench, or ROOT."""
    if module in DOORS:
        return "doors"
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ALLOWED else ROOT


def imports(source: str, known: Mapping[str, object]) -> Iterator[str]:
    """The modules that a source imports, at its top or within a function, by a statement or by `import_module`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            assert node.module
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))


def arrows(known: Mapping[str, Path]) -> set[tuple[str, str]]:
    """(importing module, imported module) within attnbench. What a module imports of `attnbench` itself is its version
    and its folder: all else there is imported by whoever asks for it.
    """
    return {
        (module, imported)
        for module, path in known.items()
        for imported in imports(path.read_text(encoding="utf-8"), known)
        if imported in known and imported not in (module, "attnbench")
    }


def forbidden(pairs: set[tuple[str, str]]) -> list[str]:
    return sorted(f"{a} → {b}" for a, b in pairs if room_of(a) != room_of(b) and room_of(b) not in ALLOWED[room_of(a)])


def circle(pairs: set[tuple[str, str]]) -> list[str]:
    """The modules of one import circle; empty where there is none."""
    below: dict[str, list[str]] = {}
    for a, b in sorted(pairs):
        below.setdefault(a, []).append(b)
    state: dict[str, int] = {}
    path: list[str] = []

    def visit(module: str) -> list[str]:
        state[module] = 1
        path.append(module)
        for other in below.get(module, ()):
            if state.get(other) == 1:
                return path[path.index(other) :]
            if other not in state and (round_trip := visit(other)):
                return round_trip
        path.pop()
        state[module] = 2
        return []

    return next((one for module in sorted(below) if module not in state and (one := visit(module))), [])


def test_imports_run_one_way() -> None:
    assert forbidden(arrows(modules())) == []


def verbs_importing_verbs(pairs: set[tuple[str, str]]) -> list[str]:
    """A verb parses, calls and prints: what two verbs share is in another room, or in a helper that begins with _."""
    verbs = {f"attnbench.commands.{path.stem}" for path in (PACKAGE / "commands").glob("[!_]*.py")}
    return sorted(f"{a} → {b}" for a, b in pairs if a in verbs and b in verbs)


def test_no_verb_imports_a_verb() -> None:
    assert verbs_importing_verbs(arrows(modules())) == []
    seen = {("attnbench.commands.gate", f"attnbench.commands.{name}") for name in ("compare", "_options")}
    assert verbs_importing_verbs(seen) == ["attnbench.commands.gate → attnbench.commands.compare"]


def test_no_import_circle() -> None:
    assert circle(arrows(modules())) == []


@pytest.mark.parametrize(
    ("source", "target"),
    [("attnbench.store.records", "attnbench.analysis.series"), ("attnbench.cost", "attnbench.plan")],
)
def test_an_arrow_against_the_table_is_seen(source: str, target: str) -> None:
    assert forbidden({(source, target)}) == [f"{source} → {target}"]


def test_a_circle_and_a_function_local_import_are_seen() -> None:
    assert circle({("a", "b"), ("b", "c"), ("c", "a")}) == ["a", "b", "c"]
    known = {"attnbench.plan.cells": None, "attnbench.store": None}
    text = "def f():\n    from attnbench.plan import cells\n    import attnbench.store\n"
    text += "    import_module('attnbench.cost')\n"
    assert sorted(imports(text, known)) == ["attnbench.cost", "attnbench.plan.cells", "attnbench.store"]


def missing_paths(text: str) -> list[str]:
    """The files and folders that a text names in backticks, whole or by their last parts, and that are not there."""
    top = PACKAGE.parent
    files = [
        path.relative_to(top) for room in ("attnbench", "tests", "benchmarks") for path in (top / room).rglob("*.py")
    ]
    there = {f"/{file.as_posix()}" for file in files} | {
        f"/{parent.as_posix()}/" for f in files for parent in f.parents
    }
    named = re.findall(r"`([a-z_0-9/]+(?:\.py|/))`", text)
    return sorted({name for name in named if not any(path.endswith(f"/{name}") for path in there)})


def test_contributing_names_files_that_are_there() -> None:
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert missing_paths(text) == []
    assert missing_paths("`plan/suite.py`, `suite.py`, `kernels/flex/` and `plan/gone.py`") == ["plan/gone.py"]
