"""An operator on a small float64 problem: what the tests of single operators have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attnbench.operator import Cost, Form, Inputs
from attnbench.problem import Mode, Params, Problem, Scope
from attnbench.registry import operators, resolve


@dataclass(frozen=True)
class Small:
    """An operator with resolved params in one scope, a problem, and its inputs."""

    form: Form
    params: Params
    problem: Problem
    inputs: Inputs

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self.inputs.tensors()

    def output(self, **changed: Tensor) -> Tensor:
        """The reference's, with some tensors replaced."""
        return self.form.reference(self.problem, self.params, **{**self.tensors, **changed})

    def impl(self, name: str) -> Tensor:
        """An impl's, called directly, whatever device it is meant for."""
        return self.form.impls[name].load()(self.problem, self.params, **self.tensors)

    def cost(self, mode: Mode = "fwd") -> Cost:
        return self.form.cost(self.problem, self.params, mode)

    def differentiable(self) -> Small:
        """The same with data and parameters that require gradients."""
        grown = {n: t.detach().clone().requires_grad_() for n, t in self.inputs.differentiated().items()}
        data = {n: grown[n] for n in self.inputs.data}
        return replace(self, inputs=Inputs(data, {n: grown[n] for n in self.inputs.parameters}, self.inputs.choices))

    def gradients(self, call: Callable[[Small], Tensor] | None = None) -> dict[str, Tensor]:
        """Of `call` (None: the reference) times a fixed random cotangent, by data and parameter."""
        grown = self.differentiable()
        output = call(grown) if call else grown.output()
        cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
        wanted = grown.inputs.differentiated()
        found = torch.autograd.grad(output, list(wanted.values()), cotangent, allow_unused=True)
        return {n: torch.zeros_like(wanted[n]) if g is None else g for n, g in zip(wanted, found, strict=True)}


def small(name: str, problem: Problem, scope: Scope = "core", seed: int = 0, **given: Any) -> Small:
    operator = operators()[name].load()
    form, params = operator.forms[scope], resolve(operator, given)
    problem = problem.with_dtype("float64")
    return Small(form, params, problem, form.make_inputs(problem, params, torch.Generator().manual_seed(seed)))


def close(a: Tensor, b: Tensor, rtol: float = 1e-9) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=rtol, atol=1e-11)


def all_close(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(close(a[name], b[name]) for name in a)
