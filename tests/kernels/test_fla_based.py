"""based by flash-linear-attention: its own kernels, with plain stand-ins, and the scan from features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.operators.kernelized.based import CORE
from attnbench.problem import Problem
from attnbench.registry import operators, resolve
from tests.kernels.agreement import disagreements
from tests.kernels.stand_ins import require_same_signature, stand_in
from tests.kernels.test_fla import chunk_simple_gla, fused_recurrent_simple_gla

N = 23


def weighted(q: Tensor, k: Tensor, v: Tensor, kind: str, scale: float | None, epsilon: float) -> Tensor:
    """The library's layout, [B, T, H, ·]."""
    s = torch.einsum("bihd,bjhd->bhij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    w = (1 + s + s * s / 2 if kind == "based" else s * s).tril()
    return torch.einsum("bhij,bjhd->bihd", w / (w.sum(dim=-1, keepdim=True) + epsilon), v)


def fused_chunk_based(q, k, v, scale=None, use_norm=True, **kwargs):  # type: ignore[no-untyped-def]
    assert q.shape[-1] <= 16
    return weighted(q, k, v, "based", scale, 1e-6)


def parallel_based(q, k, v, scale=None, use_norm=True, **kwargs):  # type: ignore[no-untyped-def]
    assert q.shape[-1] <= 128
    return weighted(q, k, v, "based", scale, 1e-6)


def parallel_rebased(  # type: ignore[no-untyped-def]
    q, k, v, eps=1e-5, use_scale=True, use_normalize=True, return_both=False, **kwargs
):
    assert q.shape[-1] <= 128
    return weighted(q, k, v, "rebased", None, eps)


FUNCTIONS = {"based": (fused_chunk_based, parallel_based), "rebased": (parallel_rebased,)}
CASES = [("cuda", "based"), ("cuda:parallel", "based"), ("cuda:parallel", "rebased")]


@pytest.mark.parametrize(("module", "function"), [(m, f) for m, each in FUNCTIONS.items() for f in each])
def test_a_stand_in_has_the_signature_of_the_library(module: str, function: Any) -> None:
    require_same_signature(f"fla.ops.{module}", function)


def differing(impl: str, kind: str) -> dict[str, str]:
    operator = operators()["based"].load()
    params = resolve(operator, {"kind": kind})
    problem = Problem(N, 12, 2, 2, causal=True)
    inputs = CORE.make_inputs(problem, params, torch.Generator().manual_seed(0))
    return disagreements(CORE.impls[impl].load(), CORE, problem, params, inputs, factor=4)


@pytest.mark.parametrize(("impl", "kind"), CASES)
def test_the_call_gives_what_the_reference_does(impl: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, f"fla.ops.{kind}", **{each.__name__: each for each in FUNCTIONS[kind]})
    assert not differing(impl, kind)


@pytest.mark.parametrize(("impl", "kind"), CASES)
def test_another_weight_is_noticed(impl: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"based": "rebased", "rebased": "based"}[kind]

    def wrong(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
        return weighted(q, k, v, other, None, 1e-6)

    stand_in(monkeypatch, f"fla.ops.{kind}", **{each.__name__: wrong for each in FUNCTIONS[kind]})
    assert "output" in differing(impl, kind)


@pytest.mark.parametrize("query_len", [1, 17, N])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_the_scan_of_its_features(query_len: int, kv_heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    functions = (chunk_simple_gla, fused_recurrent_simple_gla)
    stand_in(monkeypatch, "fla.ops.simple_gla", **{each.__name__: each for each in functions})
    params = resolve(operators()["based"].load(), {})
    problem = Problem(N, 12, 2, 2, causal=True, query_len=query_len, kv_heads=kv_heads)
    inputs = CORE.make_inputs(problem, params, torch.Generator().manual_seed(0))
    call = CORE.impls["cuda:fla"].load()
    if query_len == N:
        assert not disagreements(call, CORE, problem, params, inputs, factor=8)  # one token after another
        return
    ours, theirs = (each(problem, params, **inputs.tensors()) for each in (CORE.reference, call))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_the_reason_it_cannot_run_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("attnbench.kernels.library.fla.installed", lambda name: False)
    problem = Problem(8, 8, causal=True)

    def reason(impl: str, kind: str = "based", key_dim: int = 16, problem: Problem = problem) -> str | None:
        return CORE.impls[impl].why_not(problem, {"kind": kind, "key_dim": key_dim}, "cuda")

    assert "no kernel of rebased" in str(reason("cuda", "rebased"))
    assert "takes at most 16" in str(reason("cuda", key_dim=17))
    assert "takes at most 128" in str(reason("cuda:parallel", "rebased", key_dim=129))
    assert "not accurate enough" in str(reason("cuda:fla", "rebased"))
    assert "at most 256 features" in str(reason("cuda:fla", key_dim=22))
    assert "causal kernels only" in str(reason("cuda", problem=Problem(8, 8)))
    assert "pip install" in str(reason("cuda"))
    monkeypatch.setattr("attnbench.kernels.library.fla.installed", lambda name: name == "fla.ops.rebased")
    assert reason("cuda:parallel", "rebased") is None
    assert "pip install" in str(reason("cuda:parallel"))
