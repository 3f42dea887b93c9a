"""Cells that continue from a state are checked with it: what a call leaves, returns and reads of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.measure.metrics import peak_memory, state_bytes
from attnbench.measure.worker import checking
from attnbench.measure.worker.correctness import reduced_problem
from attnbench.measure.worker.input_pool import InputPool
from attnbench.measure.worker.prepared_cell import Subject, Wrong
from attnbench.measure.worker.visit import Bench
from attnbench.problem import Dtype, Params, Problem
from tests.measuring import member, subject

Call = Callable[..., Any]


def continuing(name: str, impl: str = "reference", query_len: int = 1, dtype: Dtype = "float32") -> Subject:
    """64 tokens, two heads of queries, one of keys and values."""
    return subject(name, impl, dtype=dtype, causal=True, later={"query_len": query_len, "kv_heads": 1})


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("query_len", [1, 3, 63])
@pytest.mark.parametrize(
    ("name", "impl"), [("softmax", "reference"), ("softmax", "sdpa"), ("linear_transformer", "reference")]
)
def test_what_is_right_passes(name: str, impl: str, query_len: int, dtype: Dtype) -> None:
    checked = checking.check_impl(continuing(name, impl, query_len, dtype)).checked
    assert checked.relative_error <= checked.tolerance


@pytest.mark.parametrize(("query_len", "reduced"), [(1, 1), (3, 3), (63, 62)])
def test_the_reduced_size_continues_as_well(query_len: int, reduced: int) -> None:
    problem = reduced_problem(continuing("softmax", query_len=query_len))
    assert problem is not None
    assert (problem.seq_len, problem.query_len) == (63, reduced)


def forgets_the_new(reference: Call) -> Call:
    """It reads the cache before it writes to it."""

    def call(problem: Problem, params: Params, *, k_cache: Tensor, v_cache: Tensor, **tensors: Tensor) -> Tensor:
        before = k_cache.clone(), v_cache.clone()
        reference(problem, params, k_cache=k_cache, v_cache=v_cache, **tensors)
        with_room = {**tensors, "k": before[0][:, :, -1:], "v": before[1][:, :, -1:]}
        y: Tensor = reference(problem, params, k_cache=before[0], v_cache=before[1], **with_room)
        return y

    return call


def spoils_the_cache(reference: Call) -> Call:
    """It answers right, and leaves another cache."""

    def call(problem: Problem, params: Params, *, k_cache: Tensor, **tensors: Tensor) -> Tensor:
        y: Tensor = reference(problem, params, k_cache=k_cache.clone(), **tensors)
        k_cache[:, :, 0] += 1
        return y

    return call


def updates_in_place(reference: Call) -> Call:
    """It returns the new state, and leaves it in the place of the old one as well."""

    def call(problem: Problem, params: Params, *, sums: Tensor, **tensors: Tensor) -> tuple[Tensor, ...]:
        y, new, totals = reference(problem, params, sums=sums, **tensors)
        sums.copy_(new)
        return y, sums, totals

    return call


def keeps_its_state(reference: Call) -> Call:
    """It returns no new state."""

    def call(problem: Problem, params: Params, **tensors: Tensor) -> Tensor:
        y: Tensor = reference(problem, params, **tensors)[0]
        return y

    return call


def another_state(reference: Call) -> Call:
    """Its new state lacks the new token."""

    def call(problem: Problem, params: Params, *, sums: Tensor, **tensors: Tensor) -> tuple[Tensor, ...]:
        y, _, totals = reference(problem, params, sums=sums, **tensors)
        return y, sums.clone(), totals

    return call


def double_state(reference: Call) -> Call:
    """Its new state is float64."""

    def call(problem: Problem, params: Params, **tensors: Tensor) -> tuple[Tensor, ...]:
        y, *states = reference(problem, params, **tensors)
        return y, *(state.double() for state in states)

    return call


def reads_the_state_once(reference: Call) -> Call:
    """It keeps what it read of a state, by its address."""
    known: dict[int, Tensor] = {}

    def call(problem: Problem, params: Params, *, v_cache: Tensor, **tensors: Tensor) -> Tensor:
        mine = known.setdefault(v_cache.data_ptr(), v_cache.clone())
        reference(problem, params, v_cache=v_cache, **tensors)
        y: Tensor = reference(problem, params, v_cache=mine, **tensors)
        return y

    return call


CHEATS: dict[Callable[[Call], Call], tuple[str, str]] = {
    forgets_the_new: ("softmax", "the output differs from the float64 reference"),
    spoils_the_cache: ("softmax", "it leaves another state 'k_cache' than the reference"),
    updates_in_place: ("linear_transformer", "it leaves another state 'sums' than the reference"),
    keeps_its_state: ("linear_transformer", "a call gives 1 tensor; the reference's 3"),
    another_state: ("linear_transformer", "the new state 'sums' differs from the float64 reference"),
    double_state: ("linear_transformer", "the new state 1 is torch.float64"),
    reads_the_state_once: ("softmax", "the output differs from the float64 reference"),
}


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: cheat.__name__)
def test_what_is_wrong_with_a_state_is_wrong(cheat: Callable[[Call], Call]) -> None:
    name, reason = CHEATS[cheat]
    honest = continuing(name, dtype="float32" if cheat is double_state else "float64")
    cheating = replace(honest, call=cheat(honest.form.reference), cell=replace(honest.cell, impl="cheat"))
    with pytest.raises(Wrong, match=reason):
        checking.check_impl(cheating)


@pytest.mark.parametrize("name", ["softmax", "linear_transformer"])
def test_a_block_samples_and_checks_them(name: str) -> None:
    """The timed calls of a cell that continues are checked like all others; a state is among what a member holds."""
    made = member(continuing(name))
    states = [tensor for inputs in made.subject.sets for tensor in inputs.state.values()]
    held = {id(tensor) for tensor in made.subject.held()}
    assert states
    assert {id(tensor) for tensor in states} <= held


def test_long_sums_may_round_as_far_as_they_must_and_no_farther() -> None:
    """64 K terms: SDPA's sums in a row pass, an answer off by a few times its bound does not."""
    of = subject("softmax", "sdpa", causal=True, seq_len=65536, later={"query_len": 1})
    checked = checking.check_impl(of).checked
    assert checked.checked_seq_len == 65536
    assert checked.relative_error <= checked.tolerance < 1e-4

    def off(problem: Problem, params: Params, **tensors: Tensor) -> Tensor:
        y: Tensor = of.call(problem, params, **tensors)
        return y * (1 + (4 * checked.tolerance if problem.seq_len == 65536 else 0))

    with pytest.raises(Wrong, match="the output differs"):
        checking.check_impl(replace(of, call=off))


@pytest.mark.parametrize("name", ["softmax", "linear_transformer"])
def test_timed_calls_are_compared_after_a_write(name: str) -> None:
    of = continuing(name)
    made = member(of, checking.check_impl(of).checked.tolerance)
    for _ in range(9):  # one sample in eight follows a write
        made.sample()
    made.finish()


def test_the_state_is_a_metric_and_part_of_the_memory() -> None:
    of = continuing("softmax")
    bench = Bench(of)
    assert state_bytes.check(bench) == {"state_bytes": 2 * 64 * 16 * 4}
    memory = peak_memory.check(bench)
    state = sum(tensor.numel() * 4 for tensor in of.sets[0].state.values())
    assert memory["peak_memory_total_bytes"] - memory["peak_memory_bytes"] == memory["input_bytes"] + state
    assert of.forecast.reference_bytes is not None
    assert of.forecast.reference_bytes >= state
    assert state_bytes.check(Bench(subject("softmax"))) == {}
    assert torch.is_tensor(of.sets[0].state["k_cache"])


def test_members_share_a_cache_and_leave_it_as_it_was() -> None:
    """Also after calls: the new tokens that a call writes to a cache were there when it was drawn."""
    pool = InputPool()
    first, second = (replace(continuing("softmax", impl), share=pool.share) for impl in ("reference", "sdpa"))
    drawn = {name: tensor.clone() for name, tensor in first.sets[0].state.items()}
    first.perform(first.calls[0])
    for name, tensor in second.sets[0].state.items():
        assert tensor.data_ptr() == first.sets[0].state[name].data_ptr()
        assert torch.equal(tensor, drawn[name])
    others = replace(continuing("softmax", query_len=3), share=pool.share).sets[0].state
    assert others["k_cache"].data_ptr() != first.sets[0].state["k_cache"].data_ptr()
