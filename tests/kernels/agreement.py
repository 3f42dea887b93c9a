"""Whether an impl is as good as the reference in the same working dtype: outputs and gradients, against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from attnbench.operator import Form, Inputs
from attnbench.problem import Params, Problem

FLOAT32_SUMS = 2.0
"""In float32 the reference's own distance depends on how the processor's library sums: of two processors one is half as
far from float64, and a kernel sums in an order of its own."""


def with_gradients(
    call: Callable[..., Tensor], problem: Problem, params: Params, inputs: Inputs, cotangent: Tensor | None
) -> dict[str, Tensor]:
    """Output under "output", then the gradient of every input and parameter; None: of the output only."""
    if cotangent is None:
        return {"output": call(problem, params, **inputs.tensors()).detach()}
    wanted = {name: x.detach().requires_grad_() for name, x in inputs.differentiated().items()}
    output = call(problem, params, **wanted, **inputs.choices)
    gradients = torch.autograd.grad(output, list(wanted.values()), cotangent.to(output.dtype))
    return {"output": output.detach(), **dict(zip(wanted, gradients, strict=True))}


def disagreements(
    call: Callable[..., Tensor],
    form: Form,
    problem: Problem,
    params: Params,
    inputs: Inputs,
    backward: bool = True,
    factor: float = 1.0,
    eps: float | None = None,
) -> dict[str, str]:
    """What is further from float64 than factor · (twice the reference's own distance + eps · max), and how much.

    Empty where the impl agrees. A tensor of the wrong shape or dtype, or one that is not finite, is named too.

    Args:
        eps: of what products are made in; None: of the tensors.
    """
    cotangent = None
    if backward:
        shape = form.reference(problem, params, **inputs.tensors())
        generator = torch.Generator(shape.device).manual_seed(1)
        cotangent = torch.randn(shape.shape, generator=generator, device=shape.device).to(shape.dtype)
    own = with_gradients(form.reference, problem, params, inputs, cotangent)
    got = with_gradients(call, problem, params, inputs, cotangent)
    exact = with_gradients(form.reference, problem.with_dtype("float64"), params, widened(inputs), cotangent)
    sums = FLOAT32_SUMS if problem.dtype == "float32" and eps is None else 1.0
    return dict(_compare(got, own, exact, factor * sums, eps))


def _compare(
    got: dict[str, Tensor], own: dict[str, Tensor], exact: dict[str, Tensor], factor: float, eps: float | None
) -> Iterator[tuple[str, str]]:
    for name, true in exact.items():
        if got[name].shape != own[name].shape or got[name].dtype != own[name].dtype:
            yield name, f"is {got[name].dtype} {tuple(got[name].shape)}"
            continue
        error = (got[name].double() - true).abs().max().item()
        bound = 2 * (own[name].double() - true).abs().max().item()
        bound += (torch.finfo(own[name].dtype).eps if eps is None else eps) * true.abs().max().item()
        if not error <= factor * bound:  # also where it is NaN
            yield name, f"error {error:.3g} > {factor * bound:.3g}"


def widened(inputs: Inputs) -> Inputs:
    """The same numbers in float64."""

    def wide(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: x.double() if x.is_floating_point() else x for name, x in tensors.items()}

    return replace(inputs, data=wide(inputs.data), parameters=wide(inputs.parameters), choices=wide(inputs.choices))
