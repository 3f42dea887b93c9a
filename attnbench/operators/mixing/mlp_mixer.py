"""y = x + W₂ GELU(W₁ LN(x)), W₁: S×N, W₂: N×S over the tokens, the same for every channel.

Tolstikhin et al. 2021, "MLP-Mixer: An all-MLP Architecture for Vision", eq. 1, first line; the second line, the same
over the channels (y + GELU(LN(y) W₃) W₄), is added in scope `layer`, which is a whole block. https://arxiv.org/abs/2105.01601
"""

from __future__ import annotations

from dataclasses import replace

from torch import Generator, Tensor
from torch.nn.functional import gelu

from attnbench.block import normed, too_narrow
from attnbench.cost import moved_again, product, traffic
from attnbench.inputs import normal, tokens
from attnbench.operator import Complexity, Cost, Form, Inputs, Operator, Paper, Param
from attnbench.operators._width import width
from attnbench.problem import Mode, Params, Problem, Scope


def reference(
    problem: Problem, params: Params, x: Tensor, w1: Tensor, w2: Tensor, gamma: Tensor, beta: Tensor
) -> Tensor:
    """x: [B, N, C]. w1: [S, N]. w2: [N, S]. gamma, beta: [C], of the normalisation. Returns [B, N, C]."""
    hidden = gelu(w1 @ normed(x, gamma, beta))  # [S, N] × [B, N, C]
    return x + w2 @ hidden


def layer(
    problem: Problem,
    params: Params,
    x: Tensor,
    w3: Tensor,
    w4: Tensor,
    gamma_c: Tensor,
    beta_c: Tensor,
    **token_mixing: Tensor,
) -> Tensor:
    """x: [B, N, C]. w3: [C, K]. w4: [K, C]. gamma_c, beta_c: [C]. token_mixing: as the core's. Returns [B, N, C]."""
    y = reference(problem, params, x, **token_mixing)
    return y + gelu(normed(y, gamma_c, beta_c) @ w3) @ w4


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """x ~ N(0, 1); W₁ and W₂ keep variance about 1."""
    n, c, s = problem.seq_len, problem.channels, width(params["hidden"], problem.channels)
    parameters = {
        "w1": normal(problem, generator, s, n, scale=n**-0.5),
        "w2": normal(problem, generator, n, s, scale=s**-0.5),
        "gamma": 1 + normal(problem, generator, c, scale=0.1),
        "beta": normal(problem, generator, c, scale=0.1),
    }
    return Inputs(tokens(problem, generator, "x"), parameters)


def layer_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """The core's, and W₃ and W₄ that keep variance about 1."""
    c, k = problem.channels, width(params["channel_hidden"], problem.channels)
    inner = make_inputs(problem, params, generator)
    parameters = {
        "w3": normal(problem, generator, c, k, scale=c**-0.5),
        "w4": normal(problem, generator, k, c, scale=k**-0.5),
        "gamma_c": 1 + normal(problem, generator, c, scale=0.1),
        "beta_c": normal(problem, generator, c, scale=0.1),
    }
    return Inputs(inner.data, {**inner.parameters, **parameters})


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The reference executes what the definition requires."""
    b, n, c = problem.batch, problem.seq_len, problem.channels
    s = width(params["hidden"], c)
    flops = (
        product(b * s * n * c, mode)  # W₁ LN(x): [S, N] × [N, C]
        + product(b * n * s * c, mode)  # W₂ GELU: [N, S] × [S, C]
    )
    return Cost(
        flops=flops,
        reference_flops=flops,
        elementwise=b * c * (6 * n + 8 * s) * (1 if mode == "fwd" else 2),  # normalise, residual; GELU
        bytes_required=traffic(problem, mode, read=b * n * c + 2 * s * n + 2 * c, written=b * n * c),
        # The hidden layer sums x over all tokens before the first output, and the cotangent before the gradient of x.
        bytes_again=moved_again(problem, mode, forward=b * n * c, backward=b * n * c),
    )


def layer_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The core's, and the channel MLP."""
    b, n, c = problem.batch, problem.seq_len, problem.channels
    k, s = width(params["channel_hidden"], c), width(params["hidden"], c)
    inner = cost(problem, params, mode)
    channel_mlp = (
        product(b * n * c * k, mode)  # LN(y) W₃: [N, C] × [C, K]
        + product(b * n * k * c, mode)  # GELU W₄: [N, K] × [K, C]
    )
    return replace(
        inner,
        flops=inner.flops + channel_mlp,
        reference_flops=inner.reference_flops + channel_mlp,
        elementwise=inner.elementwise + b * n * (6 * c + 8 * k) * (1 if mode == "fwd" else 2),
        bytes_required=inner.bytes_required + traffic(problem, mode, read=2 * c * k + 2 * c, written=0),
        # The gradient of what the channel MLP takes is needed twice: either written and read, or made again from x, W₂
        # and the cotangent.
        bytes_again=inner.bytes_again + moved_again(problem, mode, backward=b * n * c + min(s * n, b * n * c)),
    )


def why_not(problem: Problem, params: Params, scope: Scope) -> str | None:
    """A layer norm has three channels or more."""
    return too_narrow(problem.channels)


LAYER = Form(layer, layer_inputs, layer_cost)

OPERATOR = Operator(
    paper=Paper(
        "Tolstikhin et al.",
        2021,
        "MLP-Mixer: An all-MLP Architecture for Vision",
        "https://arxiv.org/abs/2105.01601",
        "eq. 1",
    ),
    forms={"core": Form(reference, make_inputs, cost), "layer": LAYER, "block": LAYER},
    complexity=lambda params: Complexity(time="n", memory="n"),
    params={
        "hidden": Param("c/2", "S: width of the token-mixing MLP, whatever N", ("c/2",), minimum=1),
        "channel_hidden": Param("4c", "width of the channel MLP (scope layer)", ("4c",), minimum=1),
    },
    grouped="it has no heads of keys and values: W₁ and W₂ are the same for all channels",
    causal="W₁ mixes all tokens; triangular weights are another operator",
    data_dependent=lambda params: False,
    any_length=lambda params: False,
    why_not=why_not,
    notes="parameters grow with N",
    no_kernel="the reference is two cuBLAS products, which no kernel here would beat",
)
