"""y = Z₁ ⊙ (W LN(Z₂) + b): Z of C channels split into halves Z₁ and Z₂, W: N×N over the tokens, b: one per token.

Liu et al. 2021, "Pay Attention to MLPs", eqs. 1 and 2 with the split and the normalisation of sec. 2.1,
https://arxiv.org/abs/2105.08050. Scope `layer` is the paper's block, figure 1: x + (gate of GELU(LN(x) U)) V, where U
gives 2·hidden channels and V takes hidden of them; it holds its MLP, so scope `block` is the same.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Generator, Tensor
from torch.nn.functional import gelu

from attnbench.block import normed, too_narrow
from attnbench.cost import product, traffic
from attnbench.inputs import normal, tokens
from attnbench.operator import Complexity, Cost, Form, Inputs, Operator, Paper, Param
from attnbench.operators._width import width
from attnbench.problem import Mode, Params, Problem, Scope


def reference(problem: Problem, params: Params, z: Tensor, w: Tensor, b: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """z: [B, N, C]. w: [N, N]. b: [N]. gamma, beta: [C/2], of the normalisation. Returns [B, N, C/2]."""
    z1, z2 = z.chunk(2, dim=-1)
    mixed = w @ normed(z2, gamma, beta)  # [N, N] × [B, N, C/2]
    return z1 * (mixed + b[:, None])


def layer(
    problem: Problem, params: Params, x: Tensor, u: Tensor, v: Tensor, gamma_x: Tensor, beta_x: Tensor, **gate: Tensor
) -> Tensor:
    """x: [B, N, C]. u: [C, 2·hidden]. v: [hidden, C]. gamma_x, beta_x: [C]. gate: as the core's. Returns [B, N, C]."""
    z = gelu(normed(x, gamma_x, beta_x) @ u)
    return x + reference(problem, params, z, **gate) @ v


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """z ~ N(0, 1); W ~ N(0, 1/N) and b about 1, the paper's start, so that neither branch vanishes."""
    return Inputs(
        {"z": tokens(problem, generator, "z")["z"]}, gate_parameters(problem, generator, problem.channels // 2)
    )


def gate_parameters(problem: Problem, generator: Generator, half: int) -> dict[str, Tensor]:
    """W, b and the normalisation of `half` channels."""
    n = problem.seq_len
    return {
        "w": normal(problem, generator, n, n, scale=n**-0.5),
        "b": 1 + normal(problem, generator, n, scale=0.1),
        "gamma": 1 + normal(problem, generator, half, scale=0.1),
        "beta": normal(problem, generator, half, scale=0.1),
    }


def layer_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """x ~ N(0, 1); U and V keep variance about 1."""
    c, hidden = problem.channels, width(params["hidden"], problem.channels)
    parameters = {
        "u": normal(problem, generator, c, 2 * hidden, scale=c**-0.5),
        "v": normal(problem, generator, hidden, c, scale=hidden**-0.5),
        "gamma_x": 1 + normal(problem, generator, c, scale=0.1),
        "beta_x": normal(problem, generator, c, scale=0.1),
    }
    return Inputs(tokens(problem, generator, "x"), {**parameters, **gate_parameters(problem, generator, hidden)})


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The reference executes what the definition requires."""
    b, n, half = problem.batch, problem.seq_len, problem.channels // 2
    flops = product(b * n * n * half, mode)  # W LN(Z₂): [N, N] × [N, C/2]
    return Cost(
        flops=flops,
        reference_flops=flops,
        elementwise=7 * b * n * half * (1 if mode == "fwd" else 2),  # normalise (5), + b, gate
        bytes_required=traffic(problem, mode, read=2 * b * n * half + n * n + n + 2 * half, written=b * n * half),
    )


def layer_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The core's at 2·hidden channels, and the two channel projections."""
    b, n, c = problem.batch, problem.seq_len, problem.channels
    hidden = width(params["hidden"], c)
    inner = cost(replace(problem, channels=2 * hidden, heads=1), params, mode)
    projections = (
        product(b * n * c * 2 * hidden, mode)  # LN(x) U: [N, C] × [C, 2·hidden]
        + product(b * n * hidden * c, mode)  # gate V: [N, hidden] × [hidden, C]
    )
    weights = 3 * hidden * c + 2 * c + n * n + n + 2 * hidden
    around = 6 * c + 8 * 2 * hidden  # normalise and residual; GELU
    return replace(
        inner,
        flops=inner.flops + projections,
        reference_flops=inner.reference_flops + projections,
        elementwise=inner.elementwise + b * n * around * (1 if mode == "fwd" else 2),
        bytes_required=traffic(problem, mode, read=b * n * c + weights, written=b * n * c),
    )


def why_not(problem: Problem, params: Params, scope: Scope) -> str | None:
    """The gate splits its channels in halves; a layer norm has three channels or more."""
    if scope == "core" and problem.channels % 2:
        return f"channels {problem.channels} cannot be split into halves"
    narrowest = problem.channels // 2
    if scope != "core":
        narrowest = min(problem.channels, width(params["hidden"], problem.channels))
    return too_narrow(narrowest)


LAYER = Form(layer, layer_inputs, layer_cost)

OPERATOR = Operator(
    paper=Paper("Liu et al.", 2021, "Pay Attention to MLPs", "https://arxiv.org/abs/2105.08050", "sec. 2.1, figure 1"),
    forms={"core": Form(reference, make_inputs, cost), "layer": LAYER, "block": LAYER},
    complexity=lambda params: Complexity(time="n^2", memory="n"),
    params={
        "hidden": Param("3c", "channels of each half of the gate (scope layer; the core splits C)", ("3c",), minimum=1)
    },
    grouped="it has no heads of keys and values: one W mixes the tokens of all channels",
    causal="W mixes all tokens; a triangular W is another operator",
    data_dependent=lambda params: False,
    any_length=lambda params: False,
    why_not=why_not,
    notes="parameters grow with N²",
    no_kernel="the reference is one cuBLAS product, which no kernel here would beat",
)
