"""Which modules are there, without importing them or the packages that they are in."""

from __future__ import annotations

import importlib.util
import pkgutil
from importlib.machinery import ModuleSpec


def specs_of(name: str) -> list[ModuleSpec]:
    """Of `a.b.c` those of a, a.b and a.b.c, as far as they are modules."""
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    specs = []
    while spec is not None:
        specs.append(spec)
        if not rest or spec.submodule_search_locations is None:
            break
        spec = _submodule(spec, rest.pop(0))
    return specs


def _submodule(package: ModuleSpec, name: str) -> ModuleSpec | None:
    """One in a package that is not imported. A folder without an `__init__.py` counts, as the last choice: for it
    Python's own path finder asks the imported package.
    """
    folder = None
    for entry in package.submodule_search_locations or ():
        finder = pkgutil.get_importer(entry)
        spec = None if finder is None else finder.find_spec(f"{package.name}.{name}")
        if spec is not None and spec.loader is not None:
            return spec
        folder = folder or spec
    return folder


def installed(name: str) -> bool:
    """Whether a module can be found, by its full name: of packages that share their first name the right one."""
    return len(specs_of(name)) == len(name.split("."))
