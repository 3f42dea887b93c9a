from __future__ import annotations

from dataclasses import replace

import pytest

from attnbench import definitions as module
from attnbench.definitions import definitions
from attnbench.errors import BadInput
from attnbench.operator import Complexity
from attnbench.problem import Cell, Problem
from attnbench.registry import operators


def test_growth_exactness_and_family_are_told_once_per_variant() -> None:
    cells = [
        Cell(name, "reference", "core", "fwd", Problem(n, 64), params)
        for n in (64, 128)
        for name, params in (("softmax", {}), ("linformer", {"k": 8, "sharing": "kv"}), ("linformer", {"k": 16}))
    ]
    found = definitions(cells)
    assert found["exact"] == ["softmax {}"]
    assert found["families"] == {"softmax": "exact", "linformer": "lowrank"}
    assert found["stated"]["softmax {}"] == {"time": "n^2", "memory": "n^2"}
    assert found["stated"]['linformer {"k":8,"sharing":"kv"}'] == {"time": "n", "memory": "n"}
    assert len(found["stated"]) == 3


def test_a_growth_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Source:
        location = "own/softmax.py"

        def load(self) -> object:
            own = operators()["softmax"].load()
            return replace(own, complexity=lambda params: Complexity("N^2", "n"))  # type: ignore[arg-type]

    monkeypatch.setattr(module, "operators", lambda operators_from: {"softmax": Source()})
    with pytest.raises(BadInput, match=r"own/softmax\.py: complexity states 'N\^2'"):
        definitions([Cell("softmax", "reference", "core", "fwd", Problem(64, 64), {})])
