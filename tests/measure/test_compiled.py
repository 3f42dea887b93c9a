"""Cells whose calls torch.compile compiles, through their whole check: its code generation alone is left out."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention

from attnbench.kernels.flex import windows
from attnbench.measure.worker import checking, operations
from attnbench.measure.worker.prepared_cell import forget_compiled
from attnbench.problem import Mode
from tests.measuring import subject


@pytest.fixture(autouse=True)
def eager_backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch's compiler without its code generation, which takes most of the time; for FlexAttention too."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(windows, "_call", lambda q: windows._compiled())
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)  # it refuses gradients on the CPU
    windows._compiled.cache_clear()
    yield
    windows._compiled.cache_clear()
    forget_compiled()


@pytest.mark.parametrize(
    ("name", "impl", "causal", "mode"),
    [
        ("linformer", "compiled", False, "fwd"),
        ("linformer", "compiled", False, "fwd_bwd"),
        ("local", "cuda", True, "fwd"),
        ("longformer", "cuda", False, "fwd_bwd"),
    ],
)
def test_what_is_compiled_passes_its_check(name: str, impl: str, causal: bool, mode: Mode) -> None:
    findings = checking.check_impl(subject(name, impl, mode, "bfloat16", causal=causal))
    assert findings.checked.relative_error <= findings.checked.tolerance
    assert findings.dispatched, "what it dispatches is counted"
    assert any("flex_attention" in operator for operator in findings.dispatched) is (impl == "cuda")


def test_in_a_mode_that_looks_into_compiled_code_it_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations.DispatchedByCompiled, "ignore_compile_internals", classmethod(lambda cls: False))
    monkeypatch.setattr(operations.DispatchedByCompiled, "supports_higher_order_operators", False)
    with pytest.raises((NotImplementedError, RuntimeError), match="flex_attention"):
        checking.check_impl(subject("local", "cuda", causal=True))
