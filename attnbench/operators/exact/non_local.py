"""y_i = Σ_j f(i, j) g_j / Z_i over all j; the kinds differ in f and Z, as the table says.

Wang et al. 2018, "Non-local Neural Networks", eqs. 1 to 6, https://arxiv.org/abs/1711.07971

| kind | f | Z | of |
| --- | --- | --- | --- |
| gaussian | exp(x_iᵀ x_j) | Σ_j f | x: D channels |
| embedded_gaussian | exp(θ_iᵀ φ_j) | Σ_j f | θ, φ: D/2 inner channels |
| dot_product | θ_iᵀ φ_j | N | the same |
| concatenation | relu(wᵀ [θ_i, φ_j]) | N | the same, and a learned w |

g, and so y, has D/2 channels per head; the paper has one head, D = C. No 1/√D. Scope `layer`: θ, φ, g = x W and
z = y W_z + x. Impl `cuda`: θ (φᵀ g) / N for dot_product, and for concatenation sums over sorted keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Generator, Tensor
from torch.nn.functional import scaled_dot_product_attention

from attnbench.cost import keys_summed_first, moved_again, product, traffic
from attnbench.inputs import normal, tokens
from attnbench.kernels.library.graphs import with_graph
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper, Param
from attnbench.problem import Mode, Params, Problem, Scope

PROJECTED = {
    "gaussian": ("g",),
    "embedded_gaussian": ("theta", "phi", "g"),
    "dot_product": ("theta", "phi", "g"),
    "concatenation": ("theta", "phi", "g"),
}
"""What scope `layer` projects from x, by kind."""


def reference(
    problem: Problem,
    params: Params,
    g: Tensor,
    x: Tensor | None = None,
    theta: Tensor | None = None,
    phi: Tensor | None = None,
    w: Tensor | None = None,
) -> Tensor:
    """g, theta, phi: [B, H, N, D/2]; gaussian: g and x: [B, H, N, D]; w: [H, 2, D/2]. Returns [B, H, N, D/2].

    The N×N weights are materialised, whatever the kind.
    """
    if params["kind"] == "concatenation":
        of_query, of_key = summands(theta, phi, w)  # [B, H, N], each
        return (of_query[..., :, None] + of_key[..., None, :]).relu_() @ g / problem.seq_len
    scores = matched(x, theta) @ matched(x, phi).transpose(-2, -1)  # [B, H, N, N]
    return scores @ g / problem.seq_len if params["kind"] == "dot_product" else scores.softmax(dim=-1) @ g


def matched(x: Tensor | None, embedded: Tensor | None) -> Tensor:
    """What f multiplies: the embedding, or x itself where there is none."""
    tokens = x if embedded is None else embedded
    if tokens is None:
        raise TypeError("non_local takes x, or theta and phi")
    return tokens


def summands(theta: Tensor | None, phi: Tensor | None, w: Tensor | None) -> tuple[Tensor, Tensor]:
    """wᵀ [θ_i, φ_j] as a summand of i and one of j: [B, H, N], each."""
    if theta is None or phi is None or w is None:
        raise TypeError("non_local of kind concatenation takes theta, phi and w")
    return (theta @ w[:, 0, :, None]).squeeze(-1), (phi @ w[:, 1, :, None]).squeeze(-1)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """g ~ N(0, 1); the others such that the products in f have variance 1 (gaussian: x_iᵀ x_i is √D)."""
    inner = problem.head_dim // 2
    b, h, n = problem.batch, problem.heads, problem.seq_len
    deviation = gains(problem, params)
    widths = {name: problem.head_dim if name == "x" else inner for name in data_names(params)}
    data = {
        name: normal(problem, generator, b, h, n, width, scale=deviation.get(name, 1.0))
        for name, width in widths.items()
    }
    return Inputs(data, weights(problem, params, generator))


def data_names(params: Params) -> tuple[str, ...]:
    """The data tensors of the core, by kind."""
    return ("x", "g") if params["kind"] == "gaussian" else PROJECTED[params["kind"]]


def gains(problem: Problem, params: Params) -> dict[str, float]:
    """Standard deviations, by name, where they are not 1."""
    if params["kind"] == "concatenation":
        return {}
    if params["kind"] == "gaussian":
        return {"x": problem.head_dim**-0.25}
    return dict.fromkeys(("theta", "phi"), (problem.head_dim // 2) ** -0.25)


def weights(problem: Problem, params: Params, generator: Generator) -> dict[str, Tensor]:
    """w ~ N(0, 1/D) of the kind concatenation, [H, 2, D/2]; nothing for the others."""
    if params["kind"] != "concatenation":
        return {}
    shape = (problem.heads, 2, problem.head_dim // 2)
    return {"w": normal(problem, generator, *shape, scale=problem.head_dim**-0.5)}


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """The reference executes the formula; for concatenation it multiplies each token once, not each pair."""
    b, h, n = problem.batch, problem.heads, problem.seq_len
    inner, d = problem.head_dim // 2, problem.head_dim
    kind = params["kind"]
    matching = {
        "gaussian": product(b * h * n * n * d, mode),  # x xᵀ: [N, D] × [D, N]
        "concatenation": product(b * h * n * n * 2 * inner, mode),  # wᵀ [θ_i, φ_j]: [1, D] × [D, 1] for each pair
    }.get(kind, product(b * h * n * n * inner, mode))  # θ φᵀ: [N, D/2] × [D/2, N]
    summed = product(b * h * n * n * inner, mode)  # f g: [N, N] × [N, D/2]
    each_pair = {"dot_product": 0, "concatenation": 2}.get(kind, 4)  # add, relu; max, subtract, exp, divide
    widths = sum(d if name == "x" else inner for name in data_names(params))
    read = b * h * n * widths + (2 * h * inner if kind == "concatenation" else 0)
    return Cost(
        flops=matching + summed,
        reference_flops=summed + (of_each_token(problem, mode) if kind == "concatenation" else matching),
        elementwise=each_pair * b * h * n * n * (1 if mode == "fwd" else 2),
        bytes_required=traffic(problem, mode, read=read, written=b * h * n * inner),
        # Of a softmax y, as of the operator softmax.
        bytes_again=moved_again(problem, mode, backward=b * h * n * inner if _is_softmax(params) else 0),
    )


def _is_softmax(params: Params) -> bool:
    """Whether the weights of a query sum to 1."""
    return params["kind"] in ("gaussian", "embedded_gaussian")


def of_each_token(problem: Problem, mode: Mode) -> int:
    """FLOPs of `summands`: wᵀ [θ_i, φ_j] as two products of each token, which every pair adds."""
    return 2 * product(problem.batch * problem.heads * problem.seq_len * (problem.head_dim // 2), mode)


def rewritten_flops(problem: Problem, params: Params, mode: Mode) -> int:
    """FLOPs of the impl `cuda`, which multiplies no pairs."""
    if params["kind"] == "concatenation":
        return of_each_token(problem, mode)  # then sums along the sorted keys
    b, h, n, inner = problem.batch, problem.heads, problem.seq_len, problem.head_dim // 2
    return 2 * product(b * h * n * inner * inner, mode)  # φᵀ g: [D/2, N] × [N, D/2]; θ (φᵀ g): [N, D/2] × [D/2, D/2]


def _sdpa() -> Callable[..., Tensor]:
    def call(
        problem: Problem,
        params: Params,
        g: Tensor,
        x: Tensor | None = None,
        theta: Tensor | None = None,
        phi: Tensor | None = None,
    ) -> Tensor:
        return scaled_dot_product_attention(matched(x, theta), matched(x, phi), g, scale=1.0)

    return call


def _sdpa_why_not(problem: Problem, params: Params, device: str) -> str | None:
    return None if _is_softmax(params) else f"{params['kind']} divides by N: it is not a softmax"


def _rewritten() -> Callable[..., Tensor]:
    from attnbench.kernels.library.relu_sums import relu_sums

    def call(
        problem: Problem, params: Params, g: Tensor, theta: Tensor, phi: Tensor, w: Tensor | None = None
    ) -> Tensor:
        if params["kind"] == "concatenation":
            return relu_sums(*summands(theta, phi, w), g) / problem.seq_len
        return theta @ (phi.transpose(-2, -1) @ g / problem.seq_len)  # [N, D/2] × [D/2, D/2]

    return call


def _rewritten_why_not(problem: Problem, params: Params, device: str) -> str | None:
    return "its best GPU path is the one SDPA call: impl sdpa" if _is_softmax(params) else None


CORE = Form(
    reference,
    make_inputs,
    cost,
    impls={
        "sdpa": Impl(_sdpa, "torch SDPA, its own choice of kernel", _sdpa_why_not),
        "cuda": Impl(
            _rewritten, "exact rewrite on cuBLAS, sort and prefix sums", _rewritten_why_not, flops=rewritten_flops
        ),
    },
)


def _around(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def layer(problem: Problem, params: Params, x: Tensor, w_z: Tensor, **tensors: Tensor) -> Tensor:
        """x: [B, N, C]; w_g, w_theta, w_phi: [C, C/2]; w_z: [C/2, C]. Returns [B, N, C]."""
        projections = {name: tensors.pop(f"w_{name}") for name in PROJECTED[params["kind"]]}
        data = {name: _heads(problem, x @ projection) for name, projection in projections.items()}
        if params["kind"] == "gaussian":
            data["x"] = _heads(problem, x)
        y = call(problem, params, **data, **tensors)
        return y.transpose(1, 2).flatten(2) @ w_z + x

    return layer


def _heads(problem: Problem, x: Tensor) -> Tensor:
    return x.unflatten(-1, (problem.heads, -1)).transpose(1, 2)  # [B, H, N, D or D/2]


def _layer_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """x ~ N(0, 1) (gaussian: N(0, 1/√D)); projections with outputs distributed as in the core."""
    c, deviation = problem.channels, gains(problem, params)
    data = {name: x * deviation.get(name, 1.0) for name, x in tokens(problem, generator, "x").items()}
    projections = {
        f"w_{name}": normal(problem, generator, c, c // 2, scale=deviation.get(name, 1.0) * c**-0.5)
        for name in PROJECTED[params["kind"]]
    }
    w_z = normal(problem, generator, c // 2, c, scale=(c // 2) ** -0.5)
    return Inputs(data, {**projections, "w_z": w_z, **weights(problem, params, generator)})


def _projection_flops(problem: Problem, params: Params, mode: Mode) -> int:
    c, projections = problem.channels, len(PROJECTED[params["kind"]]) + 1
    # [B·N, C] × [C, C/2] and [B·N, C/2] × [C/2, C]
    return product(projections * problem.batch * problem.seq_len * c * (c // 2), mode)


def _layer_cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    core = cost(problem, params, mode)
    b, n, c = problem.batch, problem.seq_len, problem.channels
    projections = len(PROJECTED[params["kind"]]) + 1
    flops = _projection_flops(problem, params, mode)
    w = c if params["kind"] == "concatenation" else 0
    read = b * n * c + projections * c * (c // 2) + w
    return replace(
        core,
        flops=core.flops + flops,
        reference_flops=core.reference_flops + flops,
        bytes_required=traffic(problem, mode, read=read, written=b * n * c),
        # φᵀ g is complete, or keys are sorted, first.
        bytes_again=core.bytes_again if _is_softmax(params) else keys_summed_first(problem, mode),
    )


def _why_not(problem: Problem, params: Params, scope: Scope) -> str | None:
    odd = problem.head_dim % 2
    return f"head_dim {problem.head_dim} is odd; inner channels are half of it" if odd else None


def _layer_impls() -> Mapping[str, Impl]:
    def around(impl: Impl) -> Impl:
        core = impl.flops
        flops = core and (lambda p, params, mode: core(p, params, mode) + _projection_flops(p, params, mode))
        return replace(impl, load=lambda: _around(impl.load()), flops=flops)

    return {name: around(impl) for name, impl in CORE.impls.items()}


OPERATOR = Operator(
    paper=Paper("Wang et al.", 2018, "Non-local Neural Networks", "https://arxiv.org/abs/1711.07971", "eqs. 1 to 6"),
    forms=with_graph(
        {"core": CORE, "layer": Form(_around(reference), _layer_inputs, _layer_cost, _layer_impls())}, "sdpa", "cuda"
    ),
    complexity=lambda params: Complexity(time="n^2", memory="n^2"),
    # the rectifier of the concatenation is 0 for about half of the pairs
    pairs=lambda params, causal: "chosen" if params["kind"] == "concatenation" else "all",
    params={"kind": Param("embedded_gaussian", "how two tokens are compared", tuple(PROJECTED))},
    grouped="θ, φ and g are embeddings of one width, and in kind gaussian a token is compared with itself",
    causal="the paper's sums are over all positions",
    why_not=_why_not,
    notes="the core's output has C/2 channels",
)
