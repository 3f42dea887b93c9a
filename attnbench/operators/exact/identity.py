"""y = v: no token sees another. The bound that no attention can beat.

Choromanski et al. 2021, "Rethinking Attention with Performers", Fig. 3 ("X (OPT)"), https://arxiv.org/abs/2009.14794
"""

from __future__ import annotations

from torch import Generator, Tensor

from attnbench.inputs import heads
from attnbench.operator import Complexity, Cost, Form, Inputs, Operator, Paper
from attnbench.problem import Mode, Params, Problem
from attnbench.projection import projected


def reference(problem: Problem, params: Params, v: Tensor) -> Tensor:
    """v: [B, H, N, D]. Returns a view of v: nothing is computed or copied."""
    return v.view_as(v)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """v ~ N(0, 1)."""
    return Inputs(heads(problem, generator, "v"))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """Zero: no product, and no byte that must be moved."""
    return Cost(flops=0, reference_flops=0, elementwise=0, bytes_required=0)


CORE = Form(reference, make_inputs, cost)

OPERATOR = Operator(
    paper=Paper(
        "Choromanski et al.",
        2021,
        "Rethinking Attention with Performers",
        "https://arxiv.org/abs/2009.14794",
        "Fig. 3, X (OPT)",
    ),
    forms={"core": CORE, "layer": projected(CORE, names=("v",))},
    complexity=lambda params: Complexity(time="0", memory="0"),
    pairs=lambda params, causal: "fixed",
    data_dependent=lambda params: False,
    grouped="it has no queries: its output has as many heads as its values, because it is them",
    continues="no token sees another, so nothing is kept: a step is a problem with seq_len = query_len",
    notes="zero cost: excluded from logarithmic fits",
    no_kernel="it computes nothing: its output is a view of v",
)
