"""Packages that are not installed where the tests run: modules whose functions have the real ones' signatures."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from attnbench.modules import installed


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Callable[..., Any]) -> ModuleType:
    """A module in the place of `name`, with the packages that it is in, for one test."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    module = ModuleType(name)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def require_same_signature(name: str, function: Callable[..., Any]) -> None:
    """Fails where a package's function takes other arguments than its stand-in; skips where it is not installed."""
    if not installed(name):
        pytest.skip(f"{name} is not installed")
    real = getattr(importlib.import_module(name), function.__name__)
    assert arguments(real) == arguments(function)


def arguments(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """(name, kind, default) of each, without the types."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]
