"""The call of flash-linear-attention, with a plain recurrence in its place: shapes, layout, normaliser, gate."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.kernels.library.fla import why_not_fla
from attnbench.problem import Problem
from attnbench.registry import operators, resolve
from tests.kernels.agreement import disagreements

CASES = [("linear_transformer", {}), ("performer", {"m": 13}), ("performer", {"m": 13, "kind": "relu"})]
CASES += [("rfa", {"m": 13}), ("rfa", {"m": 13, "gate": "none"})]


def recurrence(q: Tensor, k: Tensor, v: Tensor, g: Tensor | None = None, scale: float | None = None) -> Any:
    """As the library documents it: [B, N, H, ·], the state decays by exp(g) before it takes a token in."""
    state, outputs = torch.zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3], dtype=q.dtype), []
    for i in range(q.shape[1]):
        if g is not None:
            state = state * g[:, i].exp().to(q.dtype)[..., None, None]
        state = state + k[:, i, :, :, None] * v[:, i, :, None]
        outputs.append(
            torch.einsum("bhm,bhmd->bhd", q[:, i], state) * (q.shape[-1] ** -0.5 if scale is None else scale)
        )
    return torch.stack(outputs, dim=1), None


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("fla.ops.simple_gla")
    module.chunk_simple_gla = recurrence  # type: ignore[attr-defined]
    for name in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "fla.ops.simple_gla", module)
    return module


def found(name: str, given: dict[str, Any]) -> dict[str, str]:
    operator = operators()[name].load()
    form, params = operator.forms["core"], resolve(operator, given)
    problem = Problem(23, 18, 2, 2, causal=True)
    inputs = form.make_inputs(problem, params, torch.Generator().manual_seed(0))
    return disagreements(
        form.impls["cuda:fla"].load(), form, problem, params, inputs, factor=4
    )  # one token after another


@pytest.mark.parametrize(("name", "given"), CASES)
def test_the_call_gives_what_the_reference_does(name: str, given: dict[str, Any], library: ModuleType) -> None:
    assert not found(name, given)


def test_another_order_of_decay_is_noticed(library: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float) -> Any:
        return recurrence(q, k, v, torch.roll(g, 1, dims=1), scale)

    monkeypatch.setattr(library, "chunk_simple_gla", late)
    assert "output" in found("rfa", {"m": 13})


def test_the_reason_it_cannot_run_is_given() -> None:
    assert "causal kernels only" in str(why_not_fla(Problem(8, 8), 8))
    assert "pip install" in str(why_not_fla(Problem(8, 8, causal=True), 8))
