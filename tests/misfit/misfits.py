"""y = 2x, whose inputs or outputs do not fit the cell, each `kind` and each impl in its own way.

Nobody, "What a benchmark was not asked".
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from attnbench.cost import product, traffic
from attnbench.inputs import tokens
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.problem import Mode, Params, Problem


def reference(problem: Problem, params: Params, x: Tensor, w: Tensor, c: Tensor) -> Tensor:
    """x: [B, N, C]. w, c: one. Returns [B, N, C]."""
    return 2 * x * w * c.to(x.dtype)


KINDS: dict[str, Callable[[Tensor, Tensor, Tensor], object]] = {
    "right": lambda x, w, c: Inputs({"x": x}, {"w": w}, {"c": c}),
    "whole_choice": lambda x, w, c: Inputs({"x": x}, {"w": w}, {"c": c.int()}),
    "parameter_class": lambda x, w, c: Inputs({"x": x}, {"w": torch.nn.Parameter(w, requires_grad=False)}, {"c": c}),
    "flattened": lambda x, w, c: Inputs({"x": x.flatten(0, 1)}, {"w": w}, {"c": c}),
    "half_data": lambda x, w, c: Inputs({"x": x.half()}, {"w": w}, {"c": c}),
    "double_data": lambda x, w, c: Inputs({"x": x.double()}, {"w": w}, {"c": c}),
    "half_parameters": lambda x, w, c: Inputs({"x": x}, {"w": w.half()}, {"c": c}),
    "double_choice": lambda x, w, c: Inputs({"x": x}, {"w": w}, {"c": c.double()}),
    "whole_data": lambda x, w, c: Inputs({"x": x.int()}, {"w": w}, {"c": c}),
    "other_device": lambda x, w, c: Inputs({"x": x}, {"w": w.to("meta")}, {"c": c}),
    "transposed": lambda x, w, c: Inputs({"x": x.mT.contiguous().mT}, {"w": w}, {"c": c}),
    "expanded": lambda x, w, c: Inputs({"x": x[:, :1].expand_as(x)}, {"w": w}, {"c": c}),
    "fewer_tokens": lambda x, w, c: Inputs({"x": x[:, ::2].contiguous()}, {"w": w}, {"c": c}),
    "nan": lambda x, w, c: Inputs({"x": x}, {"w": w * math.nan}, {"c": c}),
    "infinite": lambda x, w, c: Inputs({"x": x / 0}, {"w": w}, {"c": c}),
    "requires_grad": lambda x, w, c: Inputs({"x": x.requires_grad_()}, {"w": w}, {"c": c}),
    "twice": lambda x, w, c: Inputs({"x": x}, {"w": w, "x": x}, {"c": c}),
    "list": lambda x, w, c: Inputs({"x": x.tolist()}, {"w": w}, {"c": c}),
    "tuple": lambda x, w, c: (x, w, c),
    "none": lambda x, w, c: Inputs({}, {"w": w}, {"c": c}),
}


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """x ~ N(0, 1), w = c = 1, returned as the kind says."""
    x = tokens(problem, generator, "x")["x"]
    one = torch.ones(1, dtype=x.dtype, device=x.device)
    return KINDS[params["kind"]](x, one, one.clone())  # type: ignore[return-value]


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """No products."""
    size = problem.batch * problem.seq_len * problem.channels
    moved = traffic(problem, mode, read=size, written=size)
    return Cost(flops=product(0, mode), reference_flops=0, elementwise=size, bytes_required=moved)


class Labelled(Tensor):
    """A tensor of another class."""


OUTPUTS: dict[str, Callable[[Tensor], object]] = {
    "same": lambda y: y,
    "transposed_output": lambda y: y.mT.contiguous().mT,
    "other_dtype": lambda y: y.double(),
    "other_device": lambda y: y.to("meta"),
    "sparse": lambda y: y.to_sparse(),
    "subclass": lambda y: y.as_subclass(Labelled),
    "pair": lambda y: (y, y),
    "nothing": lambda y: None,
    "array": lambda y: y.detach().numpy(),
    "detached": lambda y: y.detach(),
}


def _impl(change: Callable[[Tensor], object]) -> Impl:
    def call(problem: Problem, params: Params, x: Tensor, w: Tensor, c: Tensor) -> Tensor:
        return change(x * w * c + x * w * c)  # type: ignore[return-value]

    return Impl(lambda: call, "made", lambda problem, params, device: None)


OPERATOR = Operator(
    paper=Paper("Nobody", 2000, "What a benchmark was not asked", "https://example.org", "throughout"),
    forms={"core": Form(reference, make_inputs, cost, {name: _impl(change) for name, change in OUTPUTS.items()})},
    complexity=lambda params: Complexity(time="n", memory="n"),
    params={"kind": Param("right", "what make_inputs returns", choices=tuple(KINDS))},
)
