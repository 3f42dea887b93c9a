"""y_i = Σ_s a_is V_s with a_is = p_is / (ε + Σ_s p_is) and p_is = exp(x_i·K_s) / Σ_j exp(x_j·K_s): K, V of S slots.

The softmax is over the N tokens, of each slot; then each token's weights are divided by their sum over the S slots. The
slots' keys and values are learned, the same for every sample; no scale; ε = 1e-9. Heads are not used. Scope `layer` is
x + BN(W_o y(W_i x)), with the batch's own statistics. The authors' code has a bias beside W_i, which adds the same to
all logits of a slot, so that its softmax undoes it, and a ReLU at the end; both are left out.

Guo et al. 2021, "Beyond Self-attention: External Attention using Two Linear Layers for Visual Tasks", eqs. 5 and 6 with
the normalisation of sec. 3.2, https://arxiv.org/abs/2105.02358
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import batch_norm

from attnbench.cost import moved_again, product, traffic
from attnbench.inputs import normal, tokens
from attnbench.operator import Complexity, Cost, Form, Inputs, Operator, Paper, Param
from attnbench.problem import Mode, Params, Problem, Scope

EPSILON = 1e-9
FEWEST_SLOTS = 8  # of a layer in half precision


def reference(problem: Problem, params: Params, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """x: [B, N, C]. keys, values: [S, C]. Returns [B, N, C]. Both sums are in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    p = (x @ keys.t()).softmax(dim=-2, dtype=wide)  # [B, N, S]
    a = p / (p.sum(dim=-1, keepdim=True) + EPSILON)
    return a.to(x.dtype) @ values


def layer(
    problem: Problem,
    params: Params,
    x: Tensor,
    w_i: Tensor,
    w_o: Tensor,
    gamma: Tensor,
    beta: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """x: [B, N, C]. w_i, w_o: [C, C]. gamma, beta: [C], of the batch norm. Returns [B, N, C]."""
    y = reference(problem, params, x @ w_i, keys, values) @ w_o
    return x + batch_norm(y.flatten(0, 1), None, None, gamma, beta, training=True).view_as(x)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """x ~ N(0, 1); keys ~ N(0, 1/C), so that logits have variance 1; values ~ N(0, S), of which S are averaged."""
    c, slots = problem.channels, params["slots"]
    parameters = {
        "keys": normal(problem, generator, slots, c, scale=c**-0.5),
        "values": normal(problem, generator, slots, c, scale=slots**0.5),
    }
    return Inputs(tokens(problem, generator, "x"), parameters)


def layer_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """The core's; W_i and W_o keep variance about 1."""
    c = problem.channels
    inner = make_inputs(problem, params, generator)
    parameters = {
        "w_i": normal(problem, generator, c, c, scale=c**-0.5),
        "w_o": normal(problem, generator, c, c, scale=c**-0.5),
        "gamma": 1 + normal(problem, generator, c, scale=0.1),
        "beta": normal(problem, generator, c, scale=0.1),
    }
    return Inputs(inner.data, {**parameters, **inner.parameters})


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The reference executes what the definition requires."""
    b, n, c, slots = problem.batch, problem.seq_len, problem.channels, params["slots"]
    flops = (
        product(b * n * c * slots, mode)  # x Kᵀ: [N, C] × [C, S]
        + product(b * n * slots * c, mode)  # a V: [N, S] × [S, C]
    )
    size = b * n * c
    return Cost(
        flops=flops,
        reference_flops=flops,
        elementwise=6 * b * n * slots * (1 if mode == "fwd" else 2),  # max, subtract, exp, divide; sum, divide
        bytes_required=traffic(problem, mode, read=size + 2 * slots * c, written=size),
        # The sums over all tokens come before the first output, and those of their gradient before that of x.
        bytes_again=moved_again(problem, mode, forward=size, backward=2 * size),
    )


def layer_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The core's, and both maps."""
    b, n, c = problem.batch, problem.seq_len, problem.channels
    inner, size = cost(problem, params, mode), problem.batch * problem.seq_len * problem.channels
    maps = 2 * product(b * n * c * c, mode)  # x W_i and y W_o: [N, C] × [C, C]
    return replace(
        inner,
        flops=inner.flops + maps,
        reference_flops=inner.reference_flops + maps,
        elementwise=inner.elementwise + 7 * size * (1 if mode == "fwd" else 2),  # normalise, residual
        bytes_required=inner.bytes_required + traffic(problem, mode, read=2 * c * c + 2 * c, written=0),
        # The norm's statistics come before the first output, and the sums of its gradient before those of the core's.
        bytes_again=inner.bytes_again + moved_again(problem, mode, forward=size, backward=2 * size),
    )


def why_not(problem: Problem, params: Params, scope: Scope) -> str | None:
    """One token has nothing to be weighed with; the layer's norm divides what few slots give by its deviation."""
    slots = params["slots"]
    if problem.seq_len == 1:
        return "the weights of a sample's only token are all 1/S, whatever it is"
    if scope == "layer" and problem.item_bytes < 4 and slots < FEWEST_SLOTS:
        return (
            f"where {slots} slots have nearly the same values, the norm makes {problem.dtype}'s rounding as large "
            f"as the output; give {FEWEST_SLOTS} slots"
        )
    return None


OPERATOR = Operator(
    paper=Paper(
        "Guo et al.",
        2021,
        "Beyond Self-attention: External Attention using Two Linear Layers for Visual Tasks",
        "https://arxiv.org/abs/2105.02358",
        "eqs. 5 and 6",
    ),
    forms={"core": Form(reference, make_inputs, cost), "layer": Form(layer, layer_inputs, layer_cost)},
    complexity=lambda params: Complexity(time="n", memory="n"),
    params={"slots": Param(64, "S: learned keys and values; the weight of one alone would always be 1", minimum=2)},
    grouped="it has no heads of keys and values: slots are learned",
    causal="the softmax of a slot is over all tokens",
    why_not=why_not,
    notes="the softmax is over the tokens; slots do not follow them",
    no_kernel="two cuBLAS products with a softmax over tokens and a division between them, which no library fuses",
)
