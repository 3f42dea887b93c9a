"""What `fit` predicts, in a process that is limited to that memory; `benchmarks/fit_limits.py` has more operators."""

from __future__ import annotations

import sys

import pytest

from attnbench.analysis.memory_budget import LIBRARY_BYTES
from benchmarks.fit_limits import ALLOCATORS, above, attempts, of

LIMIT = 2**28


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
@pytest.mark.parametrize(("name", "mode"), [("softmax", "train")])
def test_the_predicted_size_runs_and_one_above_runs_out_of_memory(name: str, mode: str) -> None:
    case = next(iter(of([name], mode, causal=False)))
    search = case.search(LIMIT - LIBRARY_BYTES, seconds=20)
    first = search.first()
    assert first is not None
    end = search.run(first)
    beyond = above(case, end.size)
    assert end.is_exact
    assert beyond >= 1.05 * end.size
    calls = ((end.size, LIMIT), (beyond, LIMIT), (beyond, LIMIT + 2**27))
    statuses = [each["status"] for each in attempts(case, False, calls, ALLOCATORS["mapped"])]
    assert statuses == ["ok", "oom", "ok"], "it is the limit that the second meets"
