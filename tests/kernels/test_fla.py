"""The calls of flash-linear-attention, with a plain recurrence in their place: layout, normaliser, gate, states."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.kernels.library.fla import MOST_RECURRENT, why_not_fla
from attnbench.problem import Problem
from attnbench.registry import operators, resolve
from tests.kernels.agreement import disagreements
from tests.kernels.stand_ins import require_same_signature, stand_in

CASES = [("linear_transformer", {}), ("performer", {"m": 13}), ("performer", {"m": 13, "kind": "relu"})]
CASES += [("rfa", {"m": 13}), ("rfa", {"m": 13, "gate": "none"})]

N = 23


def recurrence(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, scale: float, state: Tensor | None) -> Any:
    """As the library documents it: [B, N, H, ·], the state decays by exp(g) before it takes a token in."""
    if state is None:
        state = torch.zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3], dtype=q.dtype)
    outputs = []
    for i in range(q.shape[1]):
        if g is not None:
            state = state * g[:, i].exp().to(q.dtype)[..., None, None]
        state = state + k[:, i, :, :, None] * v[:, i, :, None]
        outputs.append(torch.einsum("bhm,bhmd->bhd", q[:, i], state.to(q.dtype)) * scale)
    return torch.stack(outputs, dim=1), state


def chunk_simple_gla(
    q, k, v, g=None, g_gamma=None, scale=None, initial_state=None, output_final_state=False, state_v_first=False,
    cu_seqlens=None, cu_seqlens_cpu=None, **kwargs,
):  # fmt: skip
    assert initial_state is None or q.shape[1] > MOST_RECURRENT
    y, state = recurrence(q, k, v, g, scale, initial_state)
    return y, state if output_final_state else None


def fused_recurrent_simple_gla(
    q, k, v, g=None, g_gamma=None, scale=None, initial_state=None, output_final_state=False, reverse=False,
    state_v_first=False, cu_seqlens=None, **kwargs,
):  # fmt: skip
    assert q.shape[1] <= MOST_RECURRENT
    y, state = recurrence(q, k, v, g, scale, initial_state)
    return y, state if output_final_state else None


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    functions = {each.__name__: each for each in (chunk_simple_gla, fused_recurrent_simple_gla)}
    return stand_in(monkeypatch, "fla.ops.simple_gla", **functions)


@pytest.mark.parametrize("function", [chunk_simple_gla, fused_recurrent_simple_gla], ids=lambda f: f.__name__)
def test_a_stand_in_has_the_signature_of_the_library(function: Any) -> None:
    require_same_signature("fla.ops.simple_gla", function)


def found(name: str, given: dict[str, Any], query_len: int = N, kv_heads: int = 2) -> dict[str, str]:
    operator = operators()[name].load()
    form, params = operator.forms["core"], resolve(operator, given)
    problem = Problem(N, 18, 2, 2, causal=True, query_len=query_len, kv_heads=kv_heads)
    inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(0))
    call = form.impls["cuda:fla"].load()
    if query_len == N:
        return disagreements(call, form, problem, params, inputs, factor=4)  # one token after another
    got, expected = (each(problem, params, **inputs.tensors()) for each in (call, form.reference))
    assert [x.dtype for x in got] == [x.dtype for x in expected]
    assert [x.shape for x in got] == [x.shape for x in expected]
    names = ("output", *inputs.state)
    return {
        name: f"{(a - b).abs().max():.3g}"
        for name, a, b in zip(names, got, expected, strict=True)
        if not torch.allclose(a, b, rtol=1e-5, atol=1e-5)
    }


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize(("name", "given"), CASES)
def test_the_call_gives_what_the_reference_does(
    name: str, given: dict[str, Any], kv_heads: int, library: ModuleType
) -> None:
    assert not found(name, given, kv_heads=kv_heads)


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("query_len", [1, 3, MOST_RECURRENT + 1])
@pytest.mark.parametrize(("name", "given"), CASES)
def test_it_continues_from_a_state(
    name: str, given: dict[str, Any], query_len: int, kv_heads: int, library: ModuleType
) -> None:
    assert not found(name, given, query_len, kv_heads)


@pytest.mark.parametrize(("query_len", "wrong"), [(N, {"output"}), (1, {"output", "sums"})])
def test_another_order_of_decay_is_noticed(
    query_len: int, wrong: set[str], library: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(
        q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float, initial_state: Tensor | None, **more: Any
    ) -> Any:
        return recurrence(q, k, v, torch.roll(g, 1, dims=1) * 2, scale, initial_state)

    for function in (chunk_simple_gla, fused_recurrent_simple_gla):
        monkeypatch.setattr(library, function.__name__, late)
    assert wrong <= found("rfa", {"m": 13}, query_len).keys()


def test_half_precision_is_summed_where_it_does_not_overflow(library: ModuleType) -> None:
    operator = operators()["linear_transformer"].load()
    problem = Problem(N, 16, 1, causal=True, dtype="float16")
    q, k, v = (torch.full((1, 1, N, 16), 60.0, dtype=torch.float16) for _ in range(3))
    y = operator.forms["core"].impls["cuda:fla"].load()(problem, {}, q, k, v)  # 16 · 61² · 23 passes 65504
    assert y.dtype == torch.float16
    assert torch.allclose(y.float(), torch.full_like(y, 60.0).float(), rtol=1e-3)


@pytest.mark.parametrize(
    ("capability", "triton", "gate", "refused"),
    [
        ((9, 0), "3.6.0", "causal", True),
        ((9, 0), "3.7.0+git1", "causal", True),
        ((9, 0), "3.7.1", "causal", False),
        ((9, 0), "3.3.1", "causal", False),
        ((8, 0), "3.6.0", "causal", False),
        ((9, 0), "3.6.0", "none", False),
    ],
)
def test_gradients_that_triton_compiles_wrongly_are_refused(
    capability: tuple[int, int], triton: str, gate: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr("importlib.metadata.version", lambda name: triton)
    monkeypatch.setattr("attnbench.kernels.library.fla.installed", lambda name: name == "fla.ops.simple_gla")
    impl = operators()["rfa"].load().forms["core"].impls["cuda:fla"]
    asked = Problem(8, 8, causal=True, dtype="bfloat16"), {"m": 16, "gate": gate}, "cuda"
    assert impl.why_not(*asked) is None
    reason = impl.why_not_backward(*asked)
    assert ("triton>=3.7.1" in reason) if refused else reason is None
    monkeypatch.setattr("attnbench.kernels.library.fla.installed", lambda name: True)
    assert impl.why_not_backward(*asked) is None


def test_the_reason_it_cannot_run_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("attnbench.kernels.library.fla.installed", lambda name: False)
    assert "causal kernels only" in str(why_not_fla(Problem(8, 8), 8))
    assert "at most 256 features" in str(why_not_fla(Problem(8, 8, causal=True), 257))
    assert "pip install" in str(why_not_fla(Problem(8, 8, causal=True), 8))
    monkeypatch.setattr("attnbench.kernels.library.fla.installed", lambda name: name == "fla.ops.simple_gla")
    assert why_not_fla(Problem(8, 8, causal=True, dtype="bfloat16"), 8) is None


def test_chunks_of_float32_are_tf32_and_run_where_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("attnbench.kernels.library.fla.installed", lambda name: True)
    chunks, step = Problem(32, 8, causal=True), Problem(32, 8, causal=True, query_len=1)
    assert "TF32" in str(why_not_fla(chunks, 8))
    assert why_not_fla(step, 8) is None
    assert why_not_fla(chunks, 8, "based") is None
    monkeypatch.setattr("attnbench.kernels.library.fla.tf32_allowed", lambda: True)
    assert why_not_fla(chunks, 8) is None
