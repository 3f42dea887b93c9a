"""The code in docs/api.md runs, and the page names what there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attnbench
from attnbench.api.pytest_plugin import Comparing

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def test_its_code_runs() -> None:
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 3
    assert names["result"].verdict != "slower"
    begun: list[Comparing] = []

    def compare(*words: Any) -> Comparing:
        begun.append(Comparing(*words, {}))
        return begun[-1]

    names["test_not_slower"](compare)
    assert not begun[0].forgotten


def public() -> Iterator[str]:
    yield from (name for name in attnbench.__all__ if name[0].islower() or name == "BadInput")


def test_it_names_everything_that_is_offered() -> None:
    for name in public():
        assert re.search(rf"`{name}[(`]", PAGE), name
    assert not re.search(r"`laod[(`]", PAGE)
