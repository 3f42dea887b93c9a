"""mamba2's calls of mamba-ssm, with a loop over tokens in its place."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from attnbench.kernels.library import mamba_ssm
from attnbench.problem import Problem
from attnbench.registry import operators, resolve
from tests.kernels.agreement import disagreements
from tests.kernels.stand_ins import require_same_signature, stand_in
from tests.operators.recurrent.token_by_token import recurrence

N = 23
SCAN, UPDATE = mamba_ssm.MODULES
IMPL = "cuda:mamba_ssm"


def mamba_chunk_scan_combined(
    x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None, seq_idx=None, cu_seqlens=None,
    dt_softplus=False, dt_limit=(0.0, float("inf")), return_final_states=False, return_varlen_states=False,
):  # fmt: skip
    batch, tokens, heads, columns = x.shape
    assert dt.shape == (batch, tokens, heads)
    assert A.shape == (heads,)
    assert B.shape == C.shape == (batch, tokens, B.shape[2], B.shape[3])
    assert heads % B.shape[2] == 0
    assert chunk_size == 1 << (chunk_size - 1).bit_length()
    if initial_states is not None:
        assert initial_states.shape == (batch, heads, columns, B.shape[3])
        assert initial_states.dtype == torch.float32
    q, k, v, delta = (each.float().transpose(1, 2) for each in (C, B, x, dt[..., None]))
    delta = softplus(delta) if dt_softplus else delta
    before = None if initial_states is None else initial_states.transpose(2, 3)
    y, last = recurrence(q, k, delta * v, delta * A.float()[:, None, None], state=before)
    y = (y + D.float()[:, None, None] * v).transpose(1, 2).contiguous().to(x.dtype)
    return (y, last.transpose(2, 3)) if return_final_states else y


def selective_state_update(
    state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False, state_batch_indices=None,
):  # fmt: skip
    batch, heads, columns, rows = state.shape
    assert x.shape == dt.shape == (batch, heads, columns)
    assert A.shape == (heads, columns, rows)
    assert B.shape == C.shape == (batch, B.shape[1], rows)
    assert D.shape == dt_bias.shape == (heads, columns)  # where they are None, the library fails at their strides
    k, q = (each.float().repeat_interleave(heads // each.shape[1], dim=1)[:, :, None] for each in (B, C))
    delta = dt.float() + dt_bias.float()
    delta = softplus(delta) if dt_softplus else delta
    state.copy_((delta[..., None] * A.float()).exp() * state + (delta * x.float())[..., None] * k)
    return ((state * q).sum(dim=-1) + D.float() * x.float()).to(x.dtype)


FUNCTIONS = {SCAN: mamba_chunk_scan_combined, UPDATE: selective_state_update}

Change = Callable[[dict[str, Any]], dict[str, Any]]


def softplus_twice(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"dt_softplus": True}


def other_layout(arguments: dict[str, Any]) -> dict[str, Any]:
    name = "state" if "state" in arguments else "initial_states"
    return {name: arguments[name].transpose(2, 3)}


def no_skip(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"D": 0 * arguments["D"]}


def roles_swapped(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"B": arguments["C"], "C": arguments["B"]}


def put_in(monkeypatch: pytest.MonkeyPatch, change: Change | None = None) -> list[str]:
    """The stand-ins, with some arguments changed; returns the list of the functions called, as it grows."""
    called = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            called.append(function.__name__)
            arguments = inspect.signature(function).bind(*given, **named).arguments
            return function(**{**arguments, **({} if change is None else change(arguments))})

        return call

    stand_in(monkeypatch, UPDATE, selective_state_update=noted(selective_state_update))
    stand_in(monkeypatch, SCAN, mamba_chunk_scan_combined=noted(mamba_chunk_scan_combined))
    return called


def differing(query_len: int, monkeypatch: pytest.MonkeyPatch, change: Change | None = None, **given: Any) -> set[str]:
    """Which of the output, the state or the gradients differ from the reference's."""
    called = put_in(monkeypatch, change)
    operator = operators()["mamba2"].load()
    form, params = operator.forms["core"], resolve(operator, given)
    problem = Problem(N, 20, 4, 2, causal=True, query_len=query_len)
    inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(0))
    call = form.impls[IMPL].load()
    if query_len == N:
        names = set(disagreements(call, form, problem, params, inputs, factor=4))
    else:
        before = inputs.state["state"].clone()
        got, expected = (each(problem, params, **inputs.tensors()) for each in (call, form.reference))
        assert torch.equal(inputs.state["state"], before)
        assert [(x.dtype, x.shape) for x in got] == [(x.dtype, x.shape) for x in expected]
        assert got[1].dtype == torch.float32
        pairs = zip(("output", "state"), got, expected, strict=True)
        names = {name for name, x, y in pairs if not torch.allclose(x, y, rtol=1e-5, atol=1e-5)}
    assert set(called) == {FUNCTIONS[UPDATE if query_len == 1 else SCAN].__name__}
    return names


@pytest.mark.parametrize("module", FUNCTIONS)
def test_a_stand_in_has_the_signature_of_the_library(module: str) -> None:
    require_same_signature(module, FUNCTIONS[module])


@pytest.mark.parametrize("query_len", [1, 2, N])
@pytest.mark.parametrize("given", [{"key_dim": 7}, {"key_dim": 1, "qk_heads": 2}, {"key_dim": 5, "qk_heads": "h"}])
def test_the_call_gives_what_the_reference_does(
    query_len: int, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not differing(query_len, monkeypatch, **given)


@pytest.mark.parametrize(
    ("query_len", "change"),
    [
        *((query_len, change) for query_len in (1, 2, N) for change in (softplus_twice, no_skip, roles_swapped)),
        *((query_len, other_layout) for query_len in (1, 2)),
    ],
)
def test_other_arguments_are_noticed(query_len: int, change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "output" in differing(query_len, monkeypatch, change, key_dim=5)


def test_gradients_reach_every_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    put_in(monkeypatch)
    operator = operators()["mamba2"].load()
    form, params = operator.forms["core"], resolve(operator, {"key_dim": 5})
    problem = Problem(N, 20, 4, 2, causal=True)
    inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(0))
    leaves: dict[str, Tensor] = {name: x.requires_grad_() for name, x in inputs.differentiated().items()}
    form.impls[IMPL].load()(problem, params, **leaves).square().sum().backward()
    without = [name for name, x in leaves.items() if x.grad is None or not (x.grad != 0).any()]
    assert set(leaves) == {"q", "k", "v", "delta", "a", "d"}
    assert not without


@pytest.mark.parametrize(
    ("changes", "there", "tf32", "words"),
    [
        ({}, mamba_ssm.MODULES, False, None),
        ({"query_len": 1}, mamba_ssm.MODULES, False, None),
        ({}, (), False, "pip install mamba-ssm"),
        ({}, (UPDATE,), False, "pip install mamba-ssm"),
        ({"causal": False}, mamba_ssm.MODULES, False, "causal kernels only"),
        ({"dtype": "float64"}, mamba_ssm.MODULES, False, "float64"),
        ({"channels": 4 * 257}, mamba_ssm.MODULES, False, "head_dim 257"),
        ({"dtype": "float32"}, mamba_ssm.MODULES, False, "TF32"),
        ({"dtype": "float32"}, mamba_ssm.MODULES, True, None),
        ({"dtype": "float32", "query_len": 1}, mamba_ssm.MODULES, False, None),
    ],
)
def test_reasons(
    changes: dict[str, Any], there: tuple[str, ...], tf32: bool, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(mamba_ssm, "installed", lambda name: name in there)
    monkeypatch.setattr(mamba_ssm, "tf32_allowed", lambda: tf32)
    operator = operators()["mamba2"].load()
    problem = replace(Problem(1024, 256, 4, causal=True, dtype="bfloat16"), **changes)
    reason = operator.forms["core"].impls[IMPL].why_not(problem, resolve(operator, {}), "cuda")
    assert reason is None if words is None else words in str(reason)
