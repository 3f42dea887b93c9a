"""The recurrent operators' calls of flash-linear-attention, with a loop over tokens in its place."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.kernels.library.fla import MOST_RECURRENT
from attnbench.problem import Problem
from attnbench.registry import operators, resolve
from tests.kernels.agreement import disagreements
from tests.kernels.stand_ins import require_same_signature, stand_in
from tests.operators.recurrent.token_by_token import recurrence

N = 23


def by_token(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, scale: float, state: Tensor | None, final: bool, **more: Tensor
) -> Any:
    """The library's layout, [B, T, H, ·]."""
    assert state is None or state.dtype == torch.float32
    q, k, v, *rest = (x.transpose(1, 2).float() for x in (q, k, v, *more.values()))
    decay = torch.zeros_like(v[..., :1]) if g is None else g.float().transpose(1, 2)
    y, last = recurrence(q, k, v, decay, **dict(zip(more, rest, strict=True)), state=state)
    return scale * y.transpose(1, 2), last if final else None


def chunk_simple_gla(
    q, k, v, g=None, g_gamma=None, scale=None, initial_state=None, output_final_state=False, state_v_first=False,
    cu_seqlens=None, cu_seqlens_cpu=None, **kwargs,
):  # fmt: skip
    return by_token(q, k, v, g[..., None], scale, initial_state, output_final_state)


def fused_recurrent_simple_gla(
    q, k, v, g=None, g_gamma=None, scale=None, initial_state=None, output_final_state=False, reverse=False,
    state_v_first=False, cu_seqlens=None, **kwargs,
):  # fmt: skip
    return by_token(q, k, v, g[..., None], scale, initial_state, output_final_state)


def chunk_gla(
    q, k, v, g, scale=None, initial_state=None, output_final_state=False, state_v_first=False, cu_seqlens=None,
    cu_seqlens_cpu=None,
):  # fmt: skip
    return by_token(q, k, v, g, scale, initial_state, output_final_state)


def fused_recurrent_gla(
    q, k, v, gk=None, gv=None, scale=None, initial_state=None, output_final_state=False, reverse=False,
    state_v_first=False, cu_seqlens=None, **kwargs,
):  # fmt: skip
    return by_token(q, k, v, gk, scale, initial_state, output_final_state)


def by_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, beta: Tensor, scale: float, state: Tensor | None, final: bool
) -> Any:
    beta = beta[..., None]
    a = k if g is None else g.exp() * k
    return by_token(q, beta * k, v, g, scale, state, final, b=-beta * k, a=a)


def chunk_gated_delta_rule(
    q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, use_qk_l2norm_in_kernel=False,
    use_beta_sigmoid_in_kernel=False, allow_neg_eigval=False, state_v_first=False, cu_seqlens=None,
    cu_seqlens_cpu=None, chunk_indices=None, cp_context=None, **kwargs,
):  # fmt: skip
    return by_delta_rule(q, k, v, g[..., None], beta, scale, initial_state, output_final_state)


def fused_recurrent_gated_delta_rule(
    q, k, v, g=None, gk=None, gv=None, beta=None, scale=None, initial_state=None, output_final_state=False,
    use_qk_l2norm_in_kernel=False, use_gate_in_kernel=False, A_log=None, dt_bias=None,
    use_beta_sigmoid_in_kernel=False, allow_neg_eigval=False, state_v_first=False, cu_seqlens=None, **kwargs,
):  # fmt: skip
    return by_delta_rule(q, k, v, g[..., None], beta, scale, initial_state, output_final_state)


def chunk_delta_rule(
    q, k, v, beta, scale=None, initial_state=None, output_final_state=False, use_qk_l2norm_in_kernel=False,
    cu_seqlens=None, cu_seqlens_cpu=None, **kwargs,
):  # fmt: skip
    return by_delta_rule(q, k, v, None, beta, scale, initial_state, output_final_state)


def fused_recurrent_delta_rule(
    q, k, v, beta=None, scale=None, initial_state=None, output_final_state=False, use_qk_l2norm_in_kernel=False,
    cu_seqlens=None,
):  # fmt: skip
    return by_delta_rule(q, k, v, None, beta, scale, initial_state, output_final_state)


def chunk_kda(
    q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, use_qk_l2norm_in_kernel=False,
    use_gate_in_kernel=False, use_beta_sigmoid_in_kernel=False, allow_neg_eigval=False, safe_gate=False,
    lower_bound=None, disable_recompute=False, return_intermediate_states=False, state_v_first=False, cu_seqlens=None,
    cu_seqlens_cpu=None, cp_context=None, use_graph=False, max_num_seqs=None, **kwargs,
):  # fmt: skip
    return by_delta_rule(q, k, v, g, beta, scale, initial_state, output_final_state)


def fused_recurrent_kda(
    q, k, v, g, beta, A_log=None, dt_bias=None, scale=None, initial_state=None,
    output_final_state=False, use_qk_l2norm_in_kernel=False, use_gate_in_kernel=False,
    use_beta_sigmoid_in_kernel=False, allow_neg_eigval=False, lower_bound=None, state_v_first=False, cu_seqlens=None,
    **kwargs,
):  # fmt: skip
    return by_delta_rule(q, k, v, g, beta, scale, initial_state, output_final_state)


def chunk_rwkv7(
    r, w, k, v, a, b, scale=1.0, initial_state=None, output_final_state=False, cu_seqlens=None, cu_seqlens_cpu=None,
    safe_gate=False, chunk_size=None, disable_recompute=False, cp_context=None, lower_bound=None,
):  # fmt: skip
    return by_token(r, k, v, w, scale, initial_state, output_final_state, b=b, a=a)


def fused_recurrent_rwkv7(
    r, w, k, v, a, b, scale=None, initial_state=None, output_final_state=True, cu_seqlens=None,
):  # fmt: skip
    return by_token(r, k, v, w, scale, initial_state, output_final_state, b=b, a=a)


MODULES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "simple_gla": (chunk_simple_gla, fused_recurrent_simple_gla),
    "gla": (chunk_gla, fused_recurrent_gla),
    "gated_delta_rule": (chunk_gated_delta_rule, fused_recurrent_gated_delta_rule),
    "delta_rule": (chunk_delta_rule, fused_recurrent_delta_rule),
    "kda": (chunk_kda, fused_recurrent_kda),
    "rwkv7": (chunk_rwkv7, fused_recurrent_rwkv7),
}
"""Of `fla.ops`: by chunks, and by steps."""

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("simple_gla", "retention", {}),
    ("simple_gla", "retention", {"kind": "lightning", "qk_heads": 1, "key_dim": 5}),
    ("gla", "gla", {"qk_heads": 1}),
    ("simple_gla", "mamba2", {"key_dim": 5}),
    ("gated_delta_rule", "gated_delta_net", {"qk_heads": 1}),
    ("delta_rule", "gated_delta_net", {"kind": "delta_net"}),
    ("kda", "kda", {"key_dim": 5}),
    ("rwkv7", "rwkv7", {}),
]

each_case = pytest.mark.parametrize(("module", "name", "given"), CASES, ids=str)


@pytest.mark.parametrize(("module", "function"), [(m, f) for m, pair in MODULES.items() for f in pair])
def test_a_stand_in_has_the_signature_of_the_library(module: str, function: Callable[..., Any]) -> None:
    require_same_signature(f"fla.ops.{module}", function)


def found(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, given: dict[str, Any], query_len: int = N, shift: int = 0
) -> dict[str, str]:
    """Where the call through the stand-ins differs from the reference. shift: of keys along the tokens."""
    called = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            called.append(function.__name__)
            inspect.signature(function).bind(**arguments)
            return function(**{**arguments, "k": arguments["k"].roll(shift, dims=1)})

        return call

    stand_in(monkeypatch, f"fla.ops.{module}", **{each.__name__: noted(each) for each in MODULES[module]})
    operator = operators()[name].load()
    form, params = operator.forms["core"], resolve(operator, given)
    problem = Problem(N, 12, 2, 2, causal=True, query_len=query_len)
    inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(0))
    call = form.impls["cuda"].load()
    if query_len == N:
        differing = disagreements(call, form, problem, params, inputs, factor=4)
    else:
        got, expected = (each(problem, params, **inputs.tensors()) for each in (call, form.reference))
        assert [x.dtype for x in got] == [x.dtype for x in expected]
        assert [x.shape for x in got] == [x.shape for x in expected]
        differing = {
            name: f"{(a - b).abs().max():.3g}"
            for name, a, b in zip(("output", "state"), got, expected, strict=True)
            if not torch.allclose(a, b, rtol=1e-5, atol=1e-5)
        }
    chunks, steps = (each.__name__ for each in MODULES[module])
    assert set(called) == {steps if query_len <= MOST_RECURRENT else chunks}
    return differing


@each_case
@pytest.mark.parametrize("query_len", [1, 3, MOST_RECURRENT + 1, N])
def test_the_call_gives_what_the_reference_does(
    module: str, name: str, given: dict[str, Any], query_len: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not found(monkeypatch, module, name, given, query_len)


@each_case
@pytest.mark.parametrize("query_len", [3, N])
def test_keys_of_other_tokens_are_noticed(
    module: str, name: str, given: dict[str, Any], query_len: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "output" in found(monkeypatch, module, name, given, query_len, shift=1)


@each_case
def test_the_reason_it_cannot_run_is_given(
    module: str, name: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr("attnbench.kernels.library.fla.installed", lambda name: name == f"fla.ops.{module}")
    operator = operators()[name].load()
    impl, params = operator.forms["core"].impls["cuda"], resolve(operator, given)
    problem = Problem(N, 12, 2, causal=True, dtype="bfloat16")
    assert impl.why_not(problem, params, "cuda") is None
    assert "at most 256" in str(impl.why_not(problem, {**params, "key_dim": 257}, "cuda"))
    refused = "bfloat16 and float16 only" if module == "delta_rule" else "float64"
    assert refused in str(impl.why_not(replace(problem, dtype="float64"), params, "cuda"))
    monkeypatch.setattr("attnbench.kernels.library.fla.installed", lambda name: False)
    assert "pip install" in str(impl.why_not(problem, params, "cuda"))
