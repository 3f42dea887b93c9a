"""Which modules are there, without importing them or the packages that they are in."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec, PathFinder


def specs_of(name: str) -> list[ModuleSpec]:
    """Of `a.b.c` those of a, a.b and a.b.c, as far as they are modules."""
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    found = []
    while spec is not None:
        found.append(spec)
        if not rest or spec.submodule_search_locations is None:
            break
        spec = PathFinder.find_spec(f"{spec.name}.{rest.pop(0)}", list(spec.submodule_search_locations))
    return found


def installed(name: str) -> bool:
    """Whether a module can be found, by its full name: of packages that share their first name the right one."""
    return len(specs_of(name)) == len(name.split("."))
