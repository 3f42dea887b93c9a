"""Digests of the code that a run measures: what shows that a resumed run is still the same code.

Measured code is what a worker may import: attnbench's worker with all that its import statements lead to, every
operator, kernel and metric (they are found by scanning), and a user's operators with the modules that these import,
each with the whole package it is in. Tables, plots and verbs are not among it, so a change there refuses no resume.
Import statements are read, not executed, so one inside a function counts too. A module's name that is put together at
run time is seen only where the module lies in such a package. Installed libraries count by their versions.
"""

from __future__ import annotations

import ast
import hashlib
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from importlib.machinery import ModuleSpec
from itertools import islice
from pathlib import Path
from typing import Any

from attnbench.modules import specs_of

STARTS = ("attnbench.worker", "attnbench.measure.worker_process")
"""The measured process, and what starts it: threads and allocator are decided there."""

SCANNED = ("attnbench.operators", "attnbench.kernels", "attnbench.measure.metrics", "attnbench.measure.device")

READERS = (
    "attnbench.analysis", "attnbench.outputs", "attnbench.commands", "attnbench.store.frames",
    "attnbench.yaml_file", "attnbench.terminal", "attnbench.thresholds", "attnbench.measure.expansion",
)  # fmt: skip
"""They read a suite, or read and show what was measured."""

LIBRARIES = ("torch", "triton", "numpy")
"""Compared even where no operator imports them, and by version even where they are built in a checkout."""

DISTRIBUTIONS = {"pynvml": "nvidia-ml-py", "fla": "flash-linear-attention", "flashinfer": "flashinfer-python"}
"""Distributions that attnbench's own imports are from, where they have another name: looking one up takes a second."""

MOST_FILES = 2000
"""A package of more is a library, too: its files are not read, its version is compared where it has one."""

SOURCES = frozenset((".py", ".so", ".pyd", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".ptx", ".cubin"))
"""Files of a package that hold code."""


@dataclass(frozen=True)
class MeasuredCode:
    """What a worker would import.

    Attributes:
        files: digest by name, as it is imported (`package/module.py`).
        libraries: version by name of the package.
    """

    files: Mapping[str, str]
    libraries: Mapping[str, str]

    def stored(self) -> dict[str, dict[str, str]]:
        """For environment.json, under `code`."""
        return {"files": dict(self.files), "libraries": dict(self.libraries)}

    @classmethod
    def of(cls, environment: Mapping[str, Any]) -> MeasuredCode | None:
        """What an environment.json stores; None where it has nothing of the kind."""
        code = environment.get("code")
        tables = [code.get(name) if isinstance(code, dict) else None for name in ("files", "libraries")]
        if not all(isinstance(t, dict) and all(isinstance(v, str) for v in t.values()) for t in tables):
            return None
        return cls(*({str(name): str(value) for name, value in (table or {}).items()} for table in tables))


def measured_code(operators_from: Iterable[str]) -> MeasuredCode:
    """What a worker would import now.

    Args:
        operators_from: a user's .py files and packages, as a suite has them.
    """
    places = list(operators_from)
    code = _Collection(frozenset(("attnbench", *(p.partition(".")[0] for p in places if not p.endswith(".py")))))
    for name in STARTS:
        code.add_module(name)
    for name in (*SCANNED, *(place for place in places if not place.endswith(".py"))):
        code.add_package(specs_of(name))
    for place in places:
        if place.endswith(".py"):
            code.add_file(Path(place), Path(place).name, "")
    return MeasuredCode(dict(sorted(code.digests.items())), _versions(code.installed))


def code_imported_by(module: str) -> MeasuredCode:
    """One module by its full name, with all of attnbench that its import statements lead to."""
    code = _Collection(frozenset(("attnbench",)))
    code.add_module(module)
    return MeasuredCode(dict(sorted(code.digests.items())), _versions(code.installed))


def changes(before: Mapping[str, str], now: Mapping[str, str], most: int = 3) -> str:
    """What differs between two tables of digests or versions, in words; empty where nothing does."""
    texts = [
        f"{name} is gone" if name not in now
        else f"{name} is new" if name not in before
        else f"{name} has changed ({before[name]} → {now[name]})"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]  # fmt: skip
    more = [f"{len(texts) - most} more"] if len(texts) > most else []
    return ", ".join([*texts[:most], *more])


@dataclass
class _Collection:
    """What is known of the code so far.

    Attributes:
        by_files: top-level packages that count by their files even where they are installed.
        digests: of each file, by the name that messages give it.
        installed: top-level packages that count by their version.
        visited: names of modules and paths of files that are not read again.
    """

    by_files: frozenset[str]
    digests: dict[str, str] = field(default_factory=dict)
    installed: set[str] = field(default_factory=set)
    visited: set[str | Path] = field(default_factory=set)

    def add_module(self, name: str) -> None:
        """A module by its full name, with what it imports; nothing where there is no such module."""
        if name in self.visited:
            return
        self.visited.add(name)
        top = name.partition(".")[0]
        reads = any(name == reader or name.startswith(f"{reader}.") for reader in READERS)
        specs = [] if reads or top in sys.stdlib_module_names else specs_of(name)
        if not specs:
            return
        if top not in self.by_files and (top in LIBRARIES or _is_installed(specs[0])):
            self.installed.add(top)
        elif top == "attnbench":
            for spec in specs:
                self._add_spec(spec)
        elif len(specs) == 1 and not specs[0].submodule_search_locations:
            self._add_spec(specs[0])
        else:
            self.add_package(specs if specs[-1].submodule_search_locations else specs[:-1])

    def add_package(self, specs: Sequence[ModuleSpec]) -> None:
        """Every file of the last package, with what it imports, and the `__init__` of the packages that it is in."""
        for spec in specs[:-1]:
            self._add_spec(spec)
        for spec in specs[-1:]:
            top = spec.name.partition(".")[0]
            most = None if top in self.by_files else MOST_FILES + 1
            for folder in map(Path, spec.submodule_search_locations or ()):
                paths = list(islice(_code_in(folder), most))
                if len(paths) == most:
                    self.installed.add(top)
                    continue
                for path in sorted(paths):
                    inside = path.relative_to(folder)
                    package = ".".join((spec.name, *inside.parent.parts))
                    self.add_file(path, f"{spec.name.replace('.', '/')}/{inside.as_posix()}", package)

    def add_file(self, path: Path, name: str, package: str) -> None:
        """One file, with what it imports.

        Args:
            name: how messages call it.
            package: what its relative imports start from.
        """
        if path in self.visited:
            return
        given, path = path, path.resolve()
        known = path in self.visited
        self.visited |= {given, path}
        if known:
            return
        try:
            content = path.read_bytes()
        except OSError:  # a file that is not there any more, or that nobody can import either
            return
        if name in self.digests:  # two files of the user's, from different folders
            name = f"{path.parent.name}/{name}"
        self.digests[name] = hashlib.sha256(content).hexdigest()[:12]
        if path.suffix == ".py":
            for imported in _imports(content, package):
                self.add_module(imported)

    def _add_spec(self, spec: ModuleSpec) -> None:
        if spec.origin is not None and spec.has_location:
            path, parts = Path(spec.origin), spec.name.split(".")
            is_package = spec.submodule_search_locations is not None
            name = "/".join([*parts, path.name] if is_package else [*parts[:-1], path.name])
            self.add_file(path, name, spec.name if is_package else spec.name.rpartition(".")[0])


def _is_installed(spec: ModuleSpec) -> bool:
    place = spec.origin if spec.has_location else next(iter(spec.submodule_search_locations or ()), None)
    return place is None or any(Path(place).is_relative_to(folder) for folder in _library_folders(tuple(sys.path)))


@lru_cache(maxsize=1)
def _library_folders(searched: tuple[str, ...]) -> tuple[Path, ...]:
    """Of those that are searched, those that pip installs into, another one by `--target` included."""
    folders = {sysconfig.get_path(name) for name in ("purelib", "platlib")} | {site.getusersitepackages()}
    folders |= {p for p in searched if Path(p).name in ("site-packages", "dist-packages")}
    folders |= {p for p in searched if next(Path(p).glob("*.dist-info"), None) is not None}
    return tuple(Path(folder) for folder in folders)


def _code_in(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)
        if path.suffix in SOURCES and not hidden and path.is_file():
            yield path


@lru_cache(maxsize=4096)
def _imports(content: bytes, package: str) -> tuple[str, ...]:
    """Full names of all that a file's statements import; `from a import b` may mean a module a.b as well as a."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError):  # importing the file says so
        return ()
    names: list[str] = []
    for node in _executed(tree, expressions=b"import_module" in content or b"__import__" in content):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)] if base else []
        elif isinstance(node, ast.Call) and _name(node.func) in ("import_module", "__import__"):
            names += [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return tuple(dict.fromkeys(name for name in names if name and not name.startswith(".")))


def _executed(tree: ast.AST, *, expressions: bool) -> Iterator[ast.AST]:
    """The statements of a file, but not those that only a type checker sees.

    Args:
        expressions: whether the expressions within them are given too.
    """
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        if not (isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING"):
            yield node
            inner = ast.iter_child_nodes(node)
            nodes += inner if expressions else (n for n in inner if not isinstance(n, ast.expr))


def _absolute(node: ast.ImportFrom, package: str) -> str:
    above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level and package else []
    return ".".join([*above, *([node.module] if node.module else [])])


def _name(node: ast.AST) -> str | None:
    """`c` of the expressions `c` and `a.b.c`."""
    return getattr(node, "attr", None) or getattr(node, "id", None)


def _versions(packages: Iterable[str]) -> dict[str, str]:
    versions = {name: _version(name) for name in sorted({*LIBRARIES, *packages})}
    return {name: version for name, version in versions.items() if version is not None}


@lru_cache(maxsize=256)
def _version(package: str) -> str | None:
    """Of the distribution that a top-level package is from; None where none says so."""
    for distribution in _distributions(package):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def _distributions(package: str) -> Iterator[str]:
    """Names that it may have, the likeliest first."""
    yield DISTRIBUTIONS.get(package, package)
    yield from metadata.packages_distributions().get(package, ())  # reads what every distribution has installed
