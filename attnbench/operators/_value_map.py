"""The values times one learned C×C map, for the operators whose published cost includes one (KANets 2020)."""

from __future__ import annotations

from torch import Generator, Tensor

from attnbench.inputs import normal
from attnbench.operator import Param
from attnbench.problem import Params, Problem

VALUE_MAP = Param(
    False,
    "one learned C×C map of the values, after any pooling, as in the cost table of KANets",
    (False, True),
)


def make_value_map(problem: Problem, params: Params, generator: Generator) -> dict[str, Tensor]:
    """The parameter `value_map` ~ N(0, 1/C), [C, C]; nothing where the param is false."""
    c = problem.channels
    return {"value_map": normal(problem, generator, c, c, scale=c**-0.5)} if has_value_map(params) else {}


def has_value_map(params: Params) -> bool:
    """Whether the param is on; where an operator is called with no params at all it is off."""
    return bool(params.get("value_map", VALUE_MAP.default))


def mapped(values: Tensor, value_map: Tensor | None) -> Tensor:
    """values: [B, H, M, D], the map taking all C = H · D channels of a token to C new ones; None: unchanged."""
    if value_map is None:
        return values
    b, h, m, d = values.shape
    return (values.transpose(1, 2).reshape(b, m, h * d) @ value_map).view(b, m, h, d).transpose(1, 2)


def value_map_multiply_adds(problem: Problem, params: Params, values: int) -> int:
    """Of the map on `values` tokens of each sample: [B·M, C] × [C, C]."""
    return problem.batch * values * value_map_weights(problem, params)


def value_map_weights(problem: Problem, params: Params) -> int:
    """Elements of the map: C², or 0 where the param is false."""
    return problem.channels**2 if has_value_map(params) else 0
