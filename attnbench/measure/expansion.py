"""A suite as one revision reads it, as plain data: its settings, its cells, and what its operators say of themselves.

A worker answers with it, so that each side of a gate expands its own suite with its own operators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attnbench.errors import BadInput
from attnbench.plan import suite as suites
from attnbench.plan.cells import cells
from attnbench.plan.operator_facts import definitions
from attnbench.problem import columns_of
from attnbench.registry import operators


def expansion(request: Mapping[str, Any]) -> dict[str, Any]:
    """`name`, `text`, `impls`, `measure`, `limits`, `gate`, `cells`, `definitions`; or `refused`: why not.

    request: text, where, directory, name and operators_from as `suite.from_text` takes them; operators and impls: the
    command line's; lenient: names of operators that this revision does not have are passed over.
    """
    places = request["operators_from"]
    try:
        read = suites.from_text(
            request["text"], request["where"], Path(request["directory"]), request["name"], places
        )  # fmt: skip
        asked = _split(request["operators"])
        known = operators(places)
        chosen = [name for name in asked if name in known] if request["lenient"] else asked
        nothing = bool(asked) and not chosen
        read = suites.override(read, operators=chosen, impls=request["impls"])
        expanded = [] if nothing else cells(read)
        told = definitions(expanded, places)
    except BadInput as error:
        return {"refused": str(error)}
    return {
        "name": read.name,
        "text": read.text,
        "impls": list(read.impls),
        "measure": asdict(read.measure),
        "limits": asdict(read.limits),
        "gate": asdict(read.gate),
        "cells": [columns_of(cell) for cell in expanded],
        "definitions": told,
    }


def _split(names: Sequence[str]) -> list[str]:
    return [name.strip() for several in names for name in several.split(",")]
