"""Calls as graphs: what is captured, when, what is replayed; on a GPU by CUDA, elsewhere by a stand-in that replays a
call into the tensors it left."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.kernels.library import graphs
from attnbench.measure.worker import checking
from attnbench.measure.worker.fake_memory import predict
from attnbench.operator import Form, Impl
from attnbench.problem import Cell, Params, Problem
from attnbench.registry import device_type_of, operators, resolve, why_not
from tests.measuring import member, subject
from tests.variants import Variant, variants

PROBLEM = Problem(8, 16, 2)

Calls = list[Callable[[], Any]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The calls that were captured."""
    calls: Calls = []

    def captured(call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        calls.append(call)
        returned = call()
        tensors = returned if isinstance(returned, tuple) else (returned,)
        for tensor in tensors:
            tensor.fill_(float("nan"))  # a capture computes nothing

        def replay() -> None:
            again = call()
            for tensor, new in zip(tensors, again if isinstance(again, tuple) else (again,), strict=True):
                tensor.copy_(new)

        return replay, returned

    monkeypatch.setattr(graphs, "captured", captured)
    monkeypatch.setattr(graphs, "capturable", lambda tensor: True)
    return calls


def impl(call: Callable[..., Any], reason: str | None = None) -> Impl:
    return Impl(lambda: call, "made", lambda *asked: reason)


def double(problem: Problem, params: Params, x: Tensor) -> Tensor:
    return 2 * x


def test_a_graph_is_captured_once_and_reads_what_its_tensors_hold(calls: Calls) -> None:
    call, x, params = graphs.graphed(impl(double)).load(), torch.ones(3), {}
    first = call(PROBLEM, params, x=x)
    x.fill_(5)
    assert call(PROBLEM, params, x=x).tolist() == [10, 10, 10]
    assert first.tolist() == [2, 2, 2]  # what was returned is not written to again
    assert len(calls) == 1
    assert call(PROBLEM, {}, x=x).tolist() == [10, 10, 10]
    assert len(calls) == 2  # other params


def test_other_tensors_are_another_graph_and_the_oldest_goes(calls: Calls) -> None:
    call, params = graphs.graphed(impl(double)).load(), {}
    tensors = [torch.full((2,), float(i)) for i in range(graphs.MOST_GRAPHS + 1)]
    for x in [*tensors, *tensors[1:]]:
        assert call(PROBLEM, params, x=x).tolist() == (2 * x).tolist()
    assert len(calls) == len(tensors)
    assert call(PROBLEM, params, x=tensors[0]).tolist() == [0, 0]
    assert len(calls) == len(tensors) + 1


def test_another_view_of_the_same_memory_is_another_graph(calls: Calls) -> None:
    call, params, x = graphs.graphed(impl(double)).load(), {}, torch.arange(4.0).view(2, 2)
    assert call(PROBLEM, params, x=x).tolist() == [[0, 2], [4, 6]]
    assert call(PROBLEM, params, x=x.t()).tolist() == [[0, 4], [2, 6]]


def test_a_problem_of_the_same_address_is_not_taken_for_another(calls: Calls) -> None:
    def length(problem: Problem, params: Params, x: Tensor) -> Tensor:
        return x * problem.seq_len

    call, params, x = graphs.graphed(impl(length)).load(), {}, torch.ones(1)
    for n in (3, 5, 7, 9):
        assert call(Problem(n, 16), params, x=x).item() == n
        gc.collect()


def test_it_forgets_its_graphs_where_memory_is_measured(calls: Calls) -> None:
    call, params, x = graphs.graphed(impl(double)).load(), {}, torch.ones(1)
    call(PROBLEM, params, x=x)
    graphs.forget()
    assert call(PROBLEM, params, x=x).item() == 2
    assert len(calls) == 2


def test_its_memory_is_foretold_on_tensors_that_hold_nothing() -> None:
    form = operators()["softmax"].load().forms["core"]
    problem, params = Problem(64, 32, 2, causal=True), {"value_map": False}
    own, sdpa = (predict(form, problem, params, "fwd", form.impls[n].load()) for n in (graphs.NAME, "sdpa"))
    assert own == sdpa


def test_only_short_forward_calls_are_graphs() -> None:
    made = graphs.graphed(impl(double))
    assert made.why_not(PROBLEM, {}, "cuda") is None
    assert made.why_not_backward(PROBLEM, {}, "cuda") == "the graph is of the forward call"
    assert "8 MiB" in str(made.why_not(Problem(1 << 20, 512, 8), {}, "cuda"))
    assert graphs.graphed(impl(double, "not here")).why_not(PROBLEM, {}, "cuda") == "not here"


CASES = [("softmax", "sdpa"), ("linear_transformer", "reference"), ("performer", "reference"), ("rfa", "reference")]


@pytest.mark.parametrize("scope", ["core", "layer"])
@pytest.mark.parametrize(("name", "captured"), CASES)
def test_a_step_with_its_state_is_what_the_reference_gives(
    name: str, captured: str, scope: Any, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = operators()[name].load()
    problem = replace(Problem(11, 32, 2, causal=True, dtype="float64"), query_len=1)
    params = resolve(operator, {})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    cell = Cell(name, graphs.NAME, scope, "fwd", problem, params)
    assert why_not(operator, cell, "cuda") is None
    assert why_not(operator, replace(cell, mode="fwd_bwd", problem=replace(problem, query_len=11)), "cuda")
    form = operator.forms[scope]
    inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(0))
    call = form.impls[graphs.NAME].load()
    for _ in range(2):
        got, expected = (each(problem, params, **inputs.tensors()) for each in (call, form.reference))
        pairs = zip(got, expected, strict=True) if isinstance(expected, tuple) else [(got, expected)]
        assert all(torch.allclose(a, b) for a, b in pairs)
        inputs.data["v" if scope == "core" else "x"].add_(1)
    assert len(calls) == 1


@pytest.mark.parametrize("query_len", [64, 1])
@pytest.mark.parametrize(("name", "captured"), CASES[:2])
def test_it_is_right_in_a_check_and_while_it_is_timed(
    name: str, captured: str, query_len: int, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))  # so the reference is what it replays
    later = {} if query_len == 64 else {"query_len": query_len}
    made = subject(name, graphs.NAME, mode="fwd", causal=True, later=later)
    checked = checking.check_impl(made).checked
    assert checked.relative_error <= checked.tolerance
    before = len(calls)
    member(made, checked.tolerance).finish()
    assert len(calls) <= before + len(made.sets)


GRAPHED = [variant for variant in variants() if graphs.NAME in variant.form.impls]


def test_what_has_a_kernel_has_a_graph_too() -> None:
    """But for what looks at its choices on the host in every call."""
    kernels = {v.name for v in variants() if device_types(v.form)}
    assert kernels - {v.name for v in GRAPHED} == {"big_bird"}


def device_types(form: Form) -> set[str]:
    return {name for name in form.impls if device_type_of(name) == "cuda"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available to torch")
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("variant", GRAPHED, ids=str)
def test_a_graph_on_the_gpu_follows_its_inputs(variant: Variant, causal: bool) -> None:
    problem = variant.problem((19, 23), channels=96, heads=3, batch=2, dtype="bfloat16", causal=causal)
    follows(variant, problem)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available to torch")
@pytest.mark.parametrize("variant", [v for v in GRAPHED if v.operator.continues is True], ids=str)
def test_a_graph_on_the_gpu_continues_from_a_state(variant: Variant) -> None:
    follows(variant, Problem(64, 128, 2, causal=True, dtype="bfloat16", query_len=1))


def follows(variant: Variant, problem: Problem) -> None:
    """Fails where a graph gives anything else than a fresh call of what it replays, on two input sets in turn."""
    form, params = variant.form, variant.params
    reason = why_not(variant.operator, Cell(variant.name, graphs.NAME, variant.scope, "fwd", problem, params), "cuda")
    if reason is not None:
        pytest.skip(reason)
    replays = form.impls[graphs.NAME].load()
    with torch.inference_mode():
        sets = [form.make_inputs(problem, params, torch.Generator("cuda").manual_seed(seed)) for seed in (0, 1)]
        for _ in range(3):
            for inputs in sets:
                got, expected = (call(problem, params, **inputs.tensors()) for call in (replays, replays.call))
                pairs = zip(got, expected, strict=True) if isinstance(expected, tuple) else [(got, expected)]
                assert all(torch.allclose(a, b, rtol=1e-2, atol=1e-3) for a, b in pairs)
            next(reversed(sets[0].data.values())).mul_(-1)
