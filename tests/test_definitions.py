from __future__ import annotations

from attnbench.definitions import definitions
from attnbench.problem import Cell, Problem


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
