from __future__ import annotations

import pytest

from attnbench.problem import Cell, Problem, cell_of, columns_of, key_parts, operator_and_impl, operator_with_impl

IMAGE = Cell(
    "softmax", "cuda:flash", "layer", "fwd_bwd", Problem.image(14, 28, 64, 4, 2, "bfloat16", True), {"kind": "a.b"}
)
SEQUENCE = Cell("performer", "reference", "core", "fwd", Problem(1024, 256, 8), {"features": 256})


def test_a_key_is_what_it_was_when_the_stored_runs_were_measured() -> None:
    assert SEQUENCE.key == "performer.reference.core.fwd.float32.full.b1.h8.c256.n1024.paeedbc8f"
    assert IMAGE.key == "softmax.cuda:flash.layer.fwd_bwd.bfloat16.causal.b2.h4.c64.14x28.p29c38ffc"


@pytest.mark.parametrize("cell", [IMAGE, SEQUENCE])
def test_a_key_is_taken_apart_into_what_it_was_built_of(cell: Cell) -> None:
    parts = key_parts(cell.key)
    assert (parts.operator, parts.impl, parts.scope, parts.mode) == (cell.operator, cell.impl, cell.scope, cell.mode)
    assert (parts.size, parts.channels) == (cell.problem.size, f"c{cell.problem.channels}")
    assert parts.later == ()
    assert parts.key == cell.key
    assert cell_of(columns_of(cell)) == cell


@pytest.mark.parametrize("name", ["softmax", "softmax:sdpa", "softmax:cuda:flash"])
def test_an_operator_with_its_impl_is_written_as_it_is_read(name: str) -> None:
    assert operator_with_impl(*operator_and_impl(name)) == name
    assert operator_with_impl(*operator_and_impl("softmax:reference")) == "softmax"
