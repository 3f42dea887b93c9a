"""X̄ = D C: the tokens' matrix X (d×N) replaced by its product of rank r, found by T alternating updates of C, then D.

After T full steps, C is updated once more for the last D. `kind`, with C (r×N) and D (d×r):
nmf  X = relu(x); C = softmax_r(DᵀX) once at the start; C ← C ⊙ DᵀX / (DᵀD C + ε); D ← D ⊙ X Cᵀ / (D C Cᵀ + ε)
vq   C = softmax_r(cos(D, X) / temperature); D = X C̃ᵀ, where each row of C̃ is C's over its sum over all tokens
cd   as vq, each column of D then normalised; at the end C = (DᵀD + βI)⁻¹ DᵀX
Columns of the first D are random and of length 1; ε = 1e-6. `gradient` one_step: the T steps have no gradient and the
last update of C has, with D and the C before it constant (the authors' code treats the length of x as constant too,
vq). bptt: through all steps.

Geng et al. 2021, "Is Attention Better Than Matrix Decomposition?", sec. 2.2 and 3, algorithms 1 to 3,
https://arxiv.org/abs/2109.04553. Heads are not used: the paper factorises all channels together. Scope `layer` is the
paper's eq. 4, z + BN(W_u M(W_l z)), with the batch's own statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import batch_norm, normalize

from attnbench.cost import moved_again, product, traffic
from attnbench.inputs import normal, tokens, torch_dtype
from attnbench.kernels.library.graphs import with_graph
from attnbench.kernels.support import why_not as kernel_why_not
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.operators._width import width
from attnbench.problem import Mode, Params, Problem, Scope

EPSILON = 1e-6
MAX_RANK = 64  # of the kernel
LEAST_TEMPERATURE = 0.1  # of a layer in half precision


def reference(problem: Problem, params: Params, x: Tensor, bases: Tensor) -> Tensor:
    """x: [B, N, d]. bases: [B, d, r], the first D. Returns [B, N, d]. Half precisions are widened to float32 inside."""
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    d = bases.to(wide.dtype)
    if params["kind"] == "nmf":
        wide = wide.relu()
    with torch.set_grad_enabled(params["gradient"] == "bptt" and torch.is_grad_enabled()):
        d, c = iterate(params, wide, d)
    c = last_codes(params, wide, d, c)
    return (c @ d.transpose(-2, -1)).to(x.dtype)  # [N, r] × [r, d]


def iterate(params: Params, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """T full steps. x: [B, N, d]. Returns D [B, d, r] and C as [B, N, r]."""
    if params["kind"] == "nmf":
        return _nmf(params["steps"], x, d)
    c = x.new_empty(0)
    for _ in range(params["steps"]):
        c = soft_codes(params, x, d)
        d = x.transpose(-2, -1) @ (c / (c.sum(dim=-2, keepdim=True) + EPSILON))  # [d, N] × [N, r]
        if params["kind"] == "cd":
            d = normalize(d, dim=-2, eps=EPSILON)
    return d, c


def _nmf(steps: int, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    c = x.new_empty(0)
    for step in range(steps):
        projected = x @ d  # [N, d] × [d, r]
        c = updated_codes(projected, d, projected.softmax(dim=-1) if step == 0 else c)
        numerator = x.transpose(-2, -1) @ c  # [d, N] × [N, r]
        d = d * numerator / (d @ (c.transpose(-2, -1) @ c) + EPSILON)
    return d, c


def updated_codes(projected: Tensor, d: Tensor, c: Tensor) -> Tensor:
    """The multiplicative update of C, [B, N, r], from X's products with D, `projected`."""
    return c * projected / (c @ (d.transpose(-2, -1) @ d) + EPSILON)


def soft_codes(params: Params, x: Tensor, d: Tensor) -> Tensor:
    """softmax over the r columns of their cosine with each token, over the temperature: [B, N, r]."""
    length = x.norm(dim=-1, keepdim=True).clamp(min=EPSILON)
    directions = d if params["kind"] == "cd" else normalize(d, dim=-2, eps=EPSILON)
    cosine = x @ directions / length  # [N, d] × [d, r]
    return (cosine / params["temperature"]).softmax(dim=-1)


def last_codes(params: Params, x: Tensor, d: Tensor, c: Tensor) -> Tensor:
    """C for the last D, the part that always has a gradient: [B, N, r]."""
    if params["kind"] == "nmf":
        return updated_codes(x @ d, d, c)
    if params["kind"] == "vq":
        return soft_codes(params, x, d)
    eye = torch.eye(d.shape[-1], dtype=d.dtype, device=d.device)
    ridge = d.transpose(-2, -1) @ d + params["beta"] * eye
    return x @ (d @ torch.linalg.inv(ridge))  # [N, d] × ([d, r] × [r, r])


def layer(core: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Both breads, the norm and the residual around a core."""

    def call(
        problem: Problem,
        params: Params,
        x: Tensor,
        w_l: Tensor,
        w_u: Tensor,
        gamma: Tensor,
        beta: Tensor,
        bases: Tensor,
    ) -> Tensor:
        """x: [B, N, C]. w_l: [C, d]. w_u: [d, C]. gamma, beta: [C], of the batch norm. Returns [B, N, C]."""
        bread = core(problem, params, x @ w_l, bases) @ w_u
        return x + batch_norm(bread.flatten(0, 1), None, None, gamma, beta, training=True).view_as(x)

    return call


def make_inputs(problem: Problem, params: Params, generator: Generator, d: int | None = None) -> Inputs:
    """x ~ N(0, 1). The first D, uniform (nmf) or normal, has columns of length 1."""
    shape = (problem.batch, d or problem.channels, params["rank"])
    draw = torch.rand if params["kind"] == "nmf" else torch.randn
    bases = normalize(draw(shape, generator=generator, device=generator.device, dtype=torch.float64), dim=-2)
    return Inputs(tokens(problem, generator, "x"), choices={"bases": bases.to(torch_dtype(problem))})


def layer_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """x ~ N(0, 1); W_l and W_u keep its variance."""
    c, d = problem.channels, width(params["d"], problem.channels)
    inner = make_inputs(problem, params, generator, d)
    parameters = {
        "w_l": normal(problem, generator, c, d, scale=c**-0.5),
        "w_u": normal(problem, generator, d, c, scale=d**-0.5),
        "gamma": 1 + normal(problem, generator, c, scale=0.1),
        "beta": normal(problem, generator, c, scale=0.1),
    }
    return Inputs(inner.data, parameters, inner.choices)


@dataclass(frozen=True)
class _Sizes:
    """Multiply-adds of the products of one sample, and which of their operands need a gradient."""

    n: int
    d: int
    r: int
    mode: Mode
    bptt: bool

    def step(self, kind: str, first: bool) -> int:
        """FLOPs of a full step. The first D is constant."""
        n, d, r, mode = self.n, self.d, self.r, self.mode
        every, but_first, only_codes = (g if self.bptt else 0 for g in (2, 1 if first else 2, 0 if first else 2))
        flops = (
            product(n * d * r, mode, but_first)  # DᵀX: [r, d] × [d, N]
            + product(n * d * r, mode, every)  # X Cᵀ: [d, N] × [N, r]
        )
        if kind == "nmf":
            flops += (
                product(d * r * r, mode, only_codes)  # DᵀD: [r, d] × [d, r]
                + product(n * r * r, mode, but_first)  # (DᵀD) C: [r, r] × [r, N]
                + product(n * r * r, mode, every)  # C Cᵀ: [r, N] × [N, r]
                + product(d * r * r, mode, but_first)  # D (C Cᵀ): [d, r] × [r, r]
            )
        return flops

    def end(self, kind: str) -> int:
        """FLOPs of the last update of C and of D C."""
        n, d, r, mode = self.n, self.d, self.r, self.mode
        ours, constant = (2, 2) if self.bptt else (1, 0)
        flops = (
            product(n * d * r, mode, ours)  # DᵀX, cd: (D (…)⁻¹)ᵀ X: [r, d] × [d, N]
            + product(n * d * r, mode, ours)  # D C: [d, r] × [r, N]
        )
        if kind != "vq":
            flops += product(d * r * r, mode, constant)  # DᵀD: [r, d] × [d, r]
        if kind == "nmf":
            flops += product(n * r * r, mode, constant)  # (DᵀD) C: [r, r] × [r, N]
        if kind == "cd":
            flops += product(d * r * r, mode, constant)  # D (…)⁻¹: [d, r] × [r, r]
            flops += product(r**3, mode, constant)  # the inverse counts as one product, its gradient is two
        return flops


def cost(problem: Problem, params: Params, mode: Mode, d: int | None = None) -> Cost:
    """As written, nmf multiplies DᵀX for the first C and again in the first update of it; D is the same, so that the
    reference multiplies once. cd inverts an r×r matrix: 2·r³ FLOPs.
    """
    b, n = problem.batch, problem.seq_len
    d, r, steps, kind = d or problem.channels, params["rank"], params["steps"], params["kind"]
    sizes = _Sizes(n, d, r, mode, params["gradient"] == "bptt")
    flops = b * (sum(sizes.step(kind, t == 0) for t in range(steps)) + sizes.end(kind))
    per_step = 8 * (n + d) * r if kind == "nmf" else 7 * n * r + 3 * d * r  # update, divide; softmax, its sums
    backward = mode == "fwd_bwd"
    again = steps + 1 if backward and sizes.bptt else int(backward)
    again_first = b * product(n * d * r, mode, int(sizes.bptt)) if kind == "nmf" else 0  # DᵀX: [r, d] × [d, N]
    return Cost(
        flops=flops + again_first,
        reference_flops=flops,
        elementwise=b * per_step * (steps + 1 + again),
        bytes_required=traffic(problem, mode, read=b * n * d, constant=b * d * r, written=b * n * d),
        bytes_again=_read_again(problem, params, mode, b * n * d),
        uncounted={"inverse": 2 * b * r**3} if kind == "cd" else {},
    )


def layer_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The core's on d channels, and both breads."""
    b, n, c = problem.batch, problem.seq_len, problem.channels
    d = width(params["d"], c)
    inner = cost(problem, params, mode, d)
    breads = (
        product(b * n * c * d, mode)  # x W_l: [N, C] × [C, d]
        + product(b * n * d * c, mode)  # M W_u: [N, d] × [d, C]
    )
    bases, weights = b * d * params["rank"], 2 * c * d + 2 * c
    return replace(
        inner,
        flops=inner.flops + breads,
        reference_flops=inner.reference_flops + breads,
        elementwise=inner.elementwise + 7 * b * n * c * (1 if mode == "fwd" else 2),  # normalise, residual
        bytes_required=traffic(problem, mode, read=b * n * c + weights, constant=bases, written=b * n * c),
        # The norm's statistics come before the first output, and the sums of its gradient before that of x.
        bytes_again=_read_again(problem, params, mode, b * n * c)
        + moved_again(problem, mode, forward=b * n * c, backward=2 * b * n * c),
    )


def _read_again(problem: Problem, params: Params, mode: Mode, elements: int) -> int:
    """x is read for each step, which gives C and the sums for D, and for the end; bptt does so in reverse, and needs
    the cotangent for the end and for the gradient of x. Codes can be computed again from x and the D of each step.

    elements: of x.
    """
    steps = params["steps"]
    return moved_again(
        problem, mode, forward=steps * elements, backward=(steps + 1) * elements if params["gradient"] == "bptt" else 0
    )


def why_not(problem: Problem, params: Params, scope: Scope) -> str | None:
    """A matrix has two rows, batch statistics more than one token; sharp codes need cosines that are not rounded."""
    channels = problem.channels if scope == "core" else min(problem.channels, width(params["d"], problem.channels))
    if channels == 1:
        return "one channel leaves nothing to factorise: every column of D is 1 or −1"
    if scope == "core":
        return None
    if problem.batch * problem.seq_len == 1:
        return "the batch norm of one token is not defined"
    half = problem.dtype in ("bfloat16", "float16")
    if half and params["kind"] != "nmf" and params["temperature"] < LEAST_TEMPERATURE:
        return (
            f"x W_l rounded to {problem.dtype} moves cosines, and a softmax at temperature {params['temperature']} and "
            f"{params['steps']} steps make another factorisation of that; give a temperature of {LEAST_TEMPERATURE}"
        )
    return None


def _fused() -> Callable[..., Tensor]:
    from attnbench.kernels.factorisation.launch import Updates, factorise

    def call(problem: Problem, params: Params, x: Tensor, bases: Tensor) -> Tensor:
        updates = Updates(params["kind"], params["steps"], params["temperature"], params["beta"], EPSILON)
        return factorise(x, bases, updates)

    return call


def _fused_why_not(problem: Problem, params: Params, device: str) -> str | None:
    if params["gradient"] == "bptt":
        return "the kernel has the one-step gradient: bptt would keep the codes of every step"
    if params["rank"] > MAX_RANK:
        return f"rank {params['rank']} is more than the {MAX_RANK} that one program holds"
    return kernel_why_not(problem, max_head_dim=problem.head_dim)


KERNEL = "attnbench Triton: factorisation"

OPERATOR = Operator(
    paper=Paper(
        "Geng et al.",
        2021,
        "Is Attention Better Than Matrix Decomposition?",
        "https://arxiv.org/abs/2109.04553",
        "sec. 2.2 and 3, algorithms 1 to 3",
    ),
    forms=with_graph(
        {
            "core": Form(reference, make_inputs, cost, {"cuda": Impl(_fused, KERNEL, _fused_why_not)}),
            "layer": Form(
                layer(reference),
                layer_inputs,
                layer_cost,
                {"cuda": Impl(lambda: layer(_fused()), KERNEL, _fused_why_not)},
            ),
        },
        "cuda",
    ),
    complexity=lambda params: Complexity(time="n", memory="n"),
    params={
        "kind": Param("nmf", "how X is factorised", ("nmf", "vq", "cd")),
        "rank": Param(64, "r: columns of D", minimum=1),
        "steps": Param(6, "T: full steps before the last update of C", minimum=1),
        "gradient": Param("one_step", "what the gradient passes through", ("one_step", "bptt")),
        "temperature": Param(0.01, "of the softmax over cosines (vq, cd)", minimum=0.01),
        "beta": Param(
            0.1, "weight of the ridge (cd), without which DᵀD of a rank above d has no inverse", minimum=1e-3
        ),
        "d": Param("c", "channels between the breads (scope layer; the core factorises C)", ("c",), minimum=1),
    },
    grouped="it has no heads of keys and values: all channels are factorised together",
    causal="D is found from all tokens",
    why_not=why_not,
    tolerance=(4.0, "T updates, and a softmax at temperature 0.01, amplify rounding: two orders of summation diverge"),
    notes="the one-step gradient is not the gradient of the output, by design",
)
