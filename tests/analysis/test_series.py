from __future__ import annotations

import pytest

from attnbench.analysis.metric_values import quantity
from attnbench.analysis.series import panels
from attnbench.errors import BadInput
from attnbench.problem import Problem
from tests.analysis.runs import cell, laws, run_of, sequence, visits_of

TIMES = {"flops": 10, "peak_memory_bytes": 100, "parameter_bytes": 20}


def test_sequences_images_and_channels_are_panels_of_their_own() -> None:
    cells = [
        *(cell("softmax", sequence(n)) for n in (64, 128, 256)),
        *(cell("softmax", Problem.image(h, w, 64, 4)) for h, w in ((14, 28), (8, 8))),
        *(cell("softmax", sequence(512, c)) for c in (32, 96, 128)),
    ]
    found = panels(run_of(visits_of([(c, 1.0, {}) for c in cells])).results)
    assert [(p.axis, list(p.sizes)) for p in found] == [
        ("seq_len", ["64", "128", "256"]),
        ("image_size", ["8x8", "14x28"]),
        ("channels", ["32", "96", "128"]),
    ]
    assert list(found[1].sizes.values()) == [64, 392]
    assert found[2].fixed["heads"] == 4
    assert found[2].fixed["size"] == "seq_len 512"


def test_channels_with_a_fixed_head_dim_are_one_series() -> None:
    cells = [cell("softmax", sequence(64, 16 * heads, heads)) for heads in (1, 2, 4)]
    found = panels(run_of(visits_of([(c, 1.0, {}) for c in cells])).results)
    assert [p.axis for p in found] == ["channels"]
    assert found[0].fixed["head_dim"] == 16
    assert "head_dim 16" in found[0].title


def test_scope_mode_dtype_and_causality_are_never_mixed() -> None:
    problems = [
        Problem(n, 64, 4, dtype=d, causal=c) for n in (64, 128) for d in ("float32", "bfloat16") for c in (0, 1)
    ]  # type: ignore[arg-type]
    found = panels(run_of(visits_of([(cell("softmax", p), 1.0, {}) for p in problems])).results)
    assert len(found) == 4
    assert {(p.fixed["dtype"], bool(p.fixed["causal"])) for p in found} == {
        (d, c) for d in ("float32", "bfloat16") for c in (True, False)
    }


def test_panels_that_differ_in_numbers_alone_ascend() -> None:
    """Whatever comes first in a run: a search begins in the middle, other runs with the largest. Other differences are
    in the order of the run."""
    problems = [
        Problem(n, 64, 4, dtype=dtype, batch=batch, kv_heads=kv_heads)
        for dtype in ("float32", "bfloat16")
        for batch in (8, 32, 2)
        for kv_heads in (4, 2)
        for n in (128, 64)
    ]  # type: ignore[arg-type]
    found = panels(run_of(visits_of([(cell("softmax", p), 1.0, {}) for p in problems])).results, "seq_len")
    assert [(p.fixed["dtype"], p.fixed["batch"], p.fixed["kv_heads"]) for p in found] == [
        (dtype, batch, kv_heads) for dtype in ("float32", "bfloat16") for batch in (2, 8, 32) for kv_heads in (2, None)
    ]


def test_a_single_size_still_has_a_panel() -> None:
    found = panels(run_of(visits_of([(cell("softmax", sequence(64)), 1.0, {})])).results)
    assert [(p.axis, list(p.sizes)) for p in found] == [("seq_len", ["64"])]


def test_names_say_only_what_differs() -> None:
    cells = [cell("linformer", sequence(64), "reference", {"k": k, "sharing": "kv"}) for k in (8, 16)]
    cells += [cell("softmax", sequence(64), impl) for impl in ("reference", "sdpa")]
    (panel,) = panels(run_of(visits_of([(c, 1.0, {}) for c in cells])).results)
    assert [s.name for s in panel.series] == ["linformer k=8", "linformer k=16", "softmax", "softmax:sdpa"]


def test_wrong_and_absent_axes_are_refused() -> None:
    results = laws([64, 128], {"softmax": lambda n: n}).results
    with pytest.raises(BadInput, match="not an axis"):
        panels(results, "width")
    with pytest.raises(BadInput, match="it varies seq_len"):
        panels(results, "channels")


def test_memory_counts_parameters_and_zero_has_no_level() -> None:
    cells = [(cell("linformer", sequence(64)), 1.0, TIMES), (cell("identity", sequence(64)), 1.0, {"flops": 0})]
    run = run_of(visits_of(cells))
    linformer, identity = (c.key for c, _, _ in cells)
    assert quantity(run, "peak_memory").values == {linformer: 120}
    flops = quantity(run, "flops")
    assert flops.values == {linformer: 10, identity: 0}
    assert set(flops.levels) == {linformer}
    assert flops.interval(linformer) is None


def test_only_ok_cells_have_values() -> None:
    run = laws([64, 128], {"softmax": lambda n: n}, statuses={("softmax", 128): "wrong"})
    assert len(quantity(run, "wall_time").values) == 1
    with pytest.raises(BadInput, match="no such metric"):
        quantity(run, "speed")
