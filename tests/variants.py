"""Every operator with every value of its listed choices: what the tests over the registry are parametrised with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from attnbench.operator import Form, Inputs, Operator
from attnbench.problem import Params, Problem, Scope
from attnbench.registry import Source, operators, outside_definition, resolve


@dataclass(frozen=True)
class Variant:
    """An operator with resolved params in one scope."""

    name: str
    operator: Operator
    params: Params
    scope: Scope

    @property
    def form(self) -> Form:
        return self.operator.forms[self.scope]

    def problem(self, side: tuple[int, int] = (5, 7), **changes: Any) -> Problem:
        """A small odd problem in the first domain the operator is defined on; causal where it has no full form."""
        causal = self.operator.full is not True
        given: dict[str, Any] = {"channels": 16, "heads": 4, "batch": 2, "causal": causal, **changes}
        if "sequence" in self.operator.domains:
            return Problem(side[0] * side[1], **given)
        return Problem.image(*side, **given)

    def inputs(self, problem: Problem, seed: int = 0) -> Inputs:
        return self.form.make_inputs(problem, self.params, torch.Generator().manual_seed(seed))

    def defined(self, problem: Problem) -> bool:
        return outside_definition(self.operator, problem, self.params, self.scope) is None

    def __str__(self) -> str:
        kind = "-".join(str(self.params[name]) for name, p in self.operator.params.items() if p.choices)
        return "-".join(filter(None, (self.name, kind, self.scope)))


SCOPES: tuple[Scope, ...] = ("core", "layer")
"""Blocks are made of layers by one function: `operators/test_block.py` is about that one."""

IN_A_LAYER = {"moba": {"selection": "given"}, "nsa": {"selection": "given"}}
"""Params of operators whose default is a map of the core alone."""


@cache
def sources() -> dict[str, Source]:
    """The shipped operators by name; to look for them reads a dozen folders."""
    return operators()


@cache
def variants() -> tuple[Variant, ...]:
    """The default of every operator, and each listed choice away from it, in every scope it has."""
    return tuple(_variants())


def _variants() -> Iterator[Variant]:
    for name, source in sources().items():
        operator = source.load()
        chosen: list[dict[str, Any]] = [{}]
        for param, spec in operator.params.items():
            many = len(spec.choices) > 1
            chosen += [{param: c} for c in spec.choices if many and c != spec.default]
        for given in chosen:
            for scope in SCOPES:
                fixed = IN_A_LAYER.get(name, {}) if scope == "layer" else {}
                if not fixed.items() & given.items():  # it is the default there
                    yield Variant(name, operator, resolve(operator, {**given, **fixed}), scope)
