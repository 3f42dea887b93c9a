"""y_n = λ_nᵀ q_n for each of h query heads, λ_n = Σ_m softmax_m(K)_m v_mᵀ + Σ_m E_nm v_mᵀ of |k|×|v|, over pixels m.

The first sum, the content lambda, is the same for all n; the second is the position lambda. `kind`:
content  the first sum alone
global   both, E learned for every pair of pixels: N×N×|k|, shared over the batch and the heads
conv     both, E for every offset of at most (r − 1)/2 rows and columns: r×r×|k|; pixels outside the map are 0
|v| = C/h. With intra-depth u, keys and values have u layers of their own, E too, and both sums run over m and u.

Bello 2021, "LambdaNetworks: Modeling Long-Range Interactions Without Attention", eqs. 1 and 2, sec. 3.2 (conv: the
lambda convolution), appendix (intra-depth), https://arxiv.org/abs/2102.08602. The paper lets E of kind global depend on
the offset m − n if wished; here every pair has its own, as its table of costs counts. Scope `layer` adds the
projections of Q, K and V and the batch norms of Q and V, with the batch's own statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.nn.functional import batch_norm, conv2d

from attnbench.cost import moved_again, product, traffic, uncounted_sums
from attnbench.inputs import maps, normal
from attnbench.kernels.library.graphs import with_graph
from attnbench.kernels.support import why_not as kernel_why_not
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.problem import Mode, Params, Problem, Scope
from attnbench.window import window_pairs

MAX_KEY_DEPTH = 64  # of the kernel


def reference(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, e: Tensor | None = None) -> Tensor:
    """q: [B, h·|k|, height, width]. k: [B, |k|·u, …]. v: [B, |v|·u, …], u running fastest. e, none for content:
    [N, |k|, u, N] (global) or [|k|, u, r, r] (conv). Returns [B, h·|v|, height, width].
    """
    b, n, depth = problem.batch, problem.seq_len, params["key_depth"]
    queries = q.view(b, problem.heads, depth, n)
    content = content_lambda(problem, params, k, v)  # [B, |v|, |k|]
    if e is None:
        y = content.unsqueeze(1) @ queries  # [B, 1, |v|, |k|] × [B, h, |k|, N]
    else:
        lambdas = position_lambdas(problem, params, v, e) + content.unsqueeze(-1)
        y = torch.einsum("bvkn,bhkn->bhvn", lambdas, queries)
    return y.reshape(b, problem.channels, *q.shape[2:])


def content_lambda(problem: Problem, params: Params, k: Tensor, v: Tensor) -> Tensor:
    """[B, |v|, |k|]. float16 is widened inside: 1/N leaves its range in large maps."""
    b, n, depth = problem.batch, problem.seq_len, params["key_depth"]
    if problem.dtype == "float16":
        k, values = k.float(), v.float()
    else:
        values = v
    weights = k.view(b, depth, -1, n).softmax(dim=-1)
    context = values.view(b, problem.head_dim, -1) @ weights.view(b, depth, -1).transpose(-2, -1)  # over u and m
    return context.to(v.dtype)


def position_lambdas(problem: Problem, params: Params, v: Tensor, e: Tensor) -> Tensor:
    """[B, |v|, |k|, N]: a convolution of every value channel by itself, or a product with all pixels."""
    b, n, depth = problem.batch, problem.seq_len, params["key_depth"]
    if params["kind"] == "conv":
        lambdas = conv2d(v.reshape(b * problem.head_dim, -1, *v.shape[2:]), e, padding=params["window"] // 2)
        return lambdas.view(b, problem.head_dim, depth, n)
    rows = v.reshape(b * problem.head_dim, -1) @ e.view(n * depth, -1).t()  # [B·|v|, u·N] × [u·N, N·|k|]
    return rows.view(b, problem.head_dim, n, depth).transpose(-2, -1)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """k, v ~ N(0, 1); q ~ N(0, 1/|k|); E such that position lambdas have variance about 1."""
    h, depth, u = problem.heads, params["key_depth"], params["intra_depth"]
    size = (problem.height or 0, problem.width or 0)
    data = {
        "q": normal(problem, generator, problem.batch, h * depth, *size, scale=depth**-0.5),
        "k": normal(problem, generator, problem.batch, depth * u, *size),
        "v": normal(problem, generator, problem.batch, problem.head_dim * u, *size),
    }
    return Inputs(data, positions(problem, params, generator))


def positions(problem: Problem, params: Params, generator: Generator) -> dict[str, Tensor]:
    """E under its name; nothing for kind content."""
    depth, u, r, n = params["key_depth"], params["intra_depth"], params["window"], problem.seq_len
    if params["kind"] == "content":
        return {}
    shape = (depth, u, r, r) if params["kind"] == "conv" else (n, depth, u, n)
    terms = u * (r * r if params["kind"] == "conv" else n)
    return {"e": normal(problem, generator, *shape, scale=terms**-0.5)}


def layer(core: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The projections and norms before a core."""

    def call(
        problem: Problem,
        params: Params,
        x: Tensor,
        w_q: Tensor,
        w_k: Tensor,
        w_v: Tensor,
        gamma_q: Tensor,
        beta_q: Tensor,
        gamma_v: Tensor,
        beta_v: Tensor,
        **e: Tensor,
    ) -> Tensor:
        """x: [B, C, height, width]. w_q: [h·|k|, C]. w_k: [|k|·u, C]. w_v: [|v|·u, C]. The rest: norms and E."""
        pixels, size = x.flatten(2), x.shape[2:]
        q, k, v = (w @ pixels for w in (w_q, w_k, w_v))  # [c, C] × [B, C, N]
        q = batch_norm(q, None, None, gamma_q, beta_q, training=True)
        v = batch_norm(v, None, None, gamma_v, beta_v, training=True)
        return core(problem, params, **{n: t.unflatten(-1, size) for n, t in (("q", q), ("k", k), ("v", v))}, **e)

    return call


def layer_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """x ~ N(0, 1); projections keep its variance, the norm of Q brings it to 1/|k|."""
    c, depth = problem.channels, params["key_depth"]
    q, k, v = _widths(problem, params)
    parameters = {
        "w_q": normal(problem, generator, q, c, scale=c**-0.5),
        "w_k": normal(problem, generator, k, c, scale=c**-0.5),
        "w_v": normal(problem, generator, v, c, scale=c**-0.5),
        "gamma_q": (1 + normal(problem, generator, q, scale=0.1)) * depth**-0.5,
        "beta_q": normal(problem, generator, q, scale=0.1 * depth**-0.5),
        "gamma_v": 1 + normal(problem, generator, v, scale=0.1),
        "beta_v": normal(problem, generator, v, scale=0.1),
    }
    return Inputs(maps(problem, generator, "x"), {**parameters, **positions(problem, params, generator)})


def _widths(problem: Problem, params: Params) -> tuple[int, int, int]:
    """Channels of Q, K and V."""
    depth, u = params["key_depth"], params["intra_depth"]
    return problem.heads * depth, depth * u, problem.head_dim * u


def pairs(problem: Problem, params: Params) -> int:
    """Pairs of pixels (n, m) with an E of their own: none for content, those inside the map for conv."""
    if params["kind"] == "content":
        return 0
    if params["kind"] == "global":
        return problem.seq_len**2
    half = params["window"] // 2
    return window_pairs(problem.height or 0, half, half) * window_pairs(problem.width or 0, half, half)


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """Of conv the reference multiplies the zeros around the map too: all N·r². That is at most 16/9 of the required
    pairs in a map of r or more pixels a side (1.25 at 56×56 with r = 23), and at most r²/N of them in a smaller one.
    """
    b, n, h, v = problem.batch, problem.seq_len, problem.heads, problem.head_dim
    depth, u = params["key_depth"], params["intra_depth"]
    per_pair = b * u * depth * v
    applied = product(b * n * h * depth * v, mode)  # λ_nᵀ q_n: [h, |k|] × [|k|, |v|], for each n
    shared = product(b * depth * u * n * v, mode) + applied  # content lambda: [|k|, u·N] × [u·N, |v|]
    required = pairs(problem, params)
    executed = n * params["window"] ** 2 if params["kind"] == "conv" else required
    data = b * n * sum(_widths(problem, params))
    # Position lambdas read v again once the content lambda is summed. Its gradient comes before that of v: by then the
    # part from positions is written, to be read, or q and the cotangent are read twice.
    values = b * n * v * u if required else 0
    lambdas = b * n * depth * v if required else 0  # position + content
    return Cost(
        flops=shared + product(required * per_pair, mode),  # E_nᵀ V: [|k|, u·M] × [u·M, |v|], for each n
        reference_flops=shared + product(executed * per_pair, mode),
        elementwise=(4 * b * n * depth * u + lambdas) * (1 if mode == "fwd" else 2),  # max, subtract, exp, divide of k
        bytes_required=traffic(problem, mode, read=data + _embeddings(problem, params), written=b * n * h * v),
        bytes_again=moved_again(problem, mode, forward=values, backward=min(3 * values, b * n * h * (depth + v))),
        uncounted=uncounted_sums(applied, depth) if required else {},
    )


def _embeddings(problem: Problem, params: Params) -> int:
    """Elements of E."""
    per_pixel = params["key_depth"] * params["intra_depth"]
    sizes = {"content": 0, "global": problem.seq_len**2, "conv": params["window"] ** 2}
    return int(per_pixel * sizes[params["kind"]])


def layer_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The core's and the projections to Q, K and V."""
    b, n, c = problem.batch, problem.seq_len, problem.channels
    q, k, v = _widths(problem, params)
    inner = cost(problem, params, mode)
    e = _embeddings(problem, params) if params["kind"] == "global" else 0  # what follows N
    projections = product(b * n * c * (q + k + v), mode)  # [h·|k| + |k|·u + |v|·u, C] × [C, N]
    weights = (q + k + v) * c + 2 * (q + v) + _embeddings(problem, params)
    return replace(
        inner,
        flops=inner.flops + projections,
        reference_flops=inner.reference_flops + projections,
        elementwise=inner.elementwise + 6 * b * n * (q + v) * (1 if mode == "fwd" else 2),  # the norms
        bytes_required=traffic(problem, mode, read=b * n * c + weights, written=b * n * c),
        # Statistics and the content lambda come before the first output, and the norms' sums before the gradient of x:
        # by then either the cotangent and E are read again, or the gradients of Q and V are written and read.
        bytes_again=moved_again(
            problem, mode, forward=b * n * c, backward=b * n * c + min(b * n * c + e, 2 * b * n * (q + v))
        ),
    )


def why_not(problem: Problem, params: Params, scope: Scope) -> str | None:
    """A centred window, and statistics of more than one pixel."""
    if params["kind"] == "conv" and params["window"] % 2 == 0:
        return f"window {params['window']} has no middle: it must be odd"
    if scope == "layer" and problem.batch * problem.seq_len == 1:
        return "the batch norm of one pixel is not defined"
    return None


def _fused() -> Callable[..., Tensor]:
    from attnbench.kernels.lambda_convolution.launch import apply

    def call(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, e: Tensor) -> Tensor:
        queries = q.unflatten(1, (problem.heads, -1))  # [B, h, |k|, height, width]
        values = v.unflatten(1, (problem.head_dim, -1))  # [B, |v|, u, height, width]
        return apply(queries, values, e, content_lambda(problem, params, k, v)).flatten(1, 2)

    return call


def _fused_why_not(problem: Problem, params: Params, device: str) -> str | None:
    if params["kind"] != "conv":
        return f"kind {params['kind']} is cuBLAS products of the reference, which no kernel here would beat"
    if params["key_depth"] > MAX_KEY_DEPTH:
        return f"key_depth {params['key_depth']} is more than the {MAX_KEY_DEPTH} that one program holds"
    return kernel_why_not(problem, max_head_dim=problem.head_dim)


KERNEL = "attnbench Triton: lambda_convolution"

OPERATOR = Operator(
    paper=Paper(
        "Bello",
        2021,
        "LambdaNetworks: Modeling Long-Range Interactions Without Attention",
        "https://arxiv.org/abs/2102.08602",
        "eqs. 1 and 2, sec. 3.2",
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
    complexity=lambda params: Complexity(time="n^2" if params["kind"] == "global" else "n", memory="n"),
    params={
        "kind": Param("conv", "what positions add to the content lambda", ("content", "global", "conv")),
        "key_depth": Param(16, "|k|", minimum=1),
        "intra_depth": Param(1, "u: layers of keys and values", minimum=1),
        "window": Param(23, "r: side of the window, odd (conv)", minimum=1),
    },
    domains=("image",),
    grouped="all query heads share one head of keys and values by definition",
    causal="pixels have no order",
    any_length=lambda params: params["kind"] != "global",
    why_not=why_not,
    notes="kind global has parameters that grow with N²",
)
