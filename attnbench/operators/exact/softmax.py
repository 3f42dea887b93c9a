"""y_i = Σ_j p_ij v_j with p_i = softmax_j(q_iᵀ k_j / √D) over all j (causal: over 0 ≤ j ≤ i).

Vaswani et al. 2017, "Attention Is All You Need", eq. 1, https://arxiv.org/abs/1706.03762
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Generator, Tensor

from attnbench.cost import moved_again, product, traffic
from attnbench.inputs import heads
from attnbench.kernels.library import flash_infer
from attnbench.kernels.library.flash_attention import PACKAGES, Package
from attnbench.kernels.library.graphs import with_graph
from attnbench.kernels.library.sdpa_backends import BACKENDS, after_cache, forced, why_not_forced
from attnbench.operator import Complexity, Cost, Form, Impl, Inputs, Operator, Paper
from attnbench.operators._value_map import (
    VALUE_MAP,
    has_value_map,
    make_value_map,
    mapped,
    value_map_multiply_adds,
    value_map_weights,
)
from attnbench.operators.exact import _eager as eager
from attnbench.problem import Mode, Params, Problem, Scope
from attnbench.projection import projected
from attnbench.state import appended, cache_bytes, caches, causal_pairs, drawn_caches


def reference(
    problem: Problem,
    params: Params,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    value_map: Tensor | None = None,
    k_cache: Tensor | None = None,
    v_cache: Tensor | None = None,
) -> Tensor:
    """Eager: the Q×N weights are materialised.

    Args:
        q: [B, H, Q, D].
        k, v: [B, Hk, Q, D].
        value_map: [C, C].
        k_cache, v_cache: [B, Hk, N, D], of v the mapped ones, where Q < N.

    Returns: [B, H, Q, D].
    """
    k, v = appended(k_cache, k), appended(v_cache, mapped(v, value_map))
    return eager.attention(problem, q, k, v, problem.head_dim**-0.5)


def make_inputs(problem: Problem, params: Params, generator: Generator) -> Inputs:
    """q, k, v ~ N(0, 1): the logits have variance 1."""
    data = heads(problem, generator, "q", "k", "v")
    value_map = make_value_map(problem, params, generator)
    v = mapped(data["v"], value_map.get("value_map"))
    return Inputs(data, value_map, state=drawn_caches(problem, generator, data["k"], v))


def state(
    problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor, value_map: Tensor | None = None
) -> dict[str, Tensor]:
    """All keys and mapped values so far."""
    return caches(problem, k, mapped(v, value_map))


def cost(problem: Problem, params: Params, mode: Mode) -> Cost:
    """`flops` counts the allowed pairs; a causal reference executes all Q·N of them, at most twice as many."""
    b, h, n, q, d = problem.batch, problem.heads, problem.seq_len, problem.query_len, problem.head_dim
    pairs = causal_pairs(problem) if problem.causal else q * n
    size, kv_size = b * q * problem.channels, b * q * problem.kv_channels
    cached = 2 * b * problem.past * problem.kv_channels  # read; the new keys and values are written to the cache
    written = size + (2 * kv_size if problem.past else 0)
    value_map = product(value_map_multiply_adds(problem, params, q), mode)  # [Q, C] × [C, C]
    return Cost(
        flops=product(b * h * pairs * d, mode)  # q kᵀ: [Q, D] × [D, N]
        + product(b * h * pairs * d, mode)  # p v: [Q, N] × [N, D]
        + value_map,
        reference_flops=2 * product(b * h * q * n * d, mode) + value_map,
        elementwise=4 * b * h * pairs * (1 if mode == "fwd" else 2),  # max, subtract, exp, divide
        bytes_required=traffic(
            problem,
            mode,
            read=size + 2 * kv_size + value_map_weights(problem, params),
            constant=cached,
            written=written,
        ),
        # The gradient of every score of a query has the sum of its y · ∂y.
        bytes_again=moved_again(problem, mode, backward=size),
        state_bytes=cache_bytes(problem, n) if problem.causal else None,
    )


def _sdpa_why_not(problem: Problem, params: Params, device: str) -> str | None:
    return "the value map is a separate product beside the SDPA call" if has_value_map(params) else None


def _exact(
    kernel: str,
    attend: Callable[..., Tensor],
    step: Callable[..., Tensor] | None,
    why_not: Callable[[Problem, Params, str], str | None],
    why_not_backward: Callable[[Problem, Params, str], str | None] = lambda problem, params, device: None,
) -> Impl:
    """An impl that runs one library kernel, on mapped values where there is a value map.

    Args:
        kernel: its name.
        attend: (problem, q, k, v of all tokens) → y.
        step: (problem, q, k, v, k_cache, v_cache) → y, of the new tokens; None: they are appended, then `attend`.
        why_not, why_not_backward: of the impl.
    """

    def call(
        problem: Problem,
        params: Params,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        value_map: Tensor | None = None,
        k_cache: Tensor | None = None,
        v_cache: Tensor | None = None,
    ) -> Tensor:
        v = mapped(v, value_map)
        if step is not None and k_cache is not None:
            return step(problem, q, k, v, k_cache, v_cache)
        return attend(problem, q, appended(k_cache, k), appended(v_cache, v))

    return Impl(lambda: call, kernel, why_not, grouped=True, continues=True, why_not_backward=why_not_backward)


def _forced(backend: str) -> Impl:
    forward, backward = (
        lambda problem, _, device, backward=backward: why_not_forced(backend, problem, device, backward)
        for backward in (False, True)
    )
    return _exact(f"torch SDPA, {backend} forced", forced(backend), None, forward, backward)


def _package(package: Package) -> Impl:
    return _exact(package.name, package.attend, package.step, lambda problem, *_: package.why_not(problem))


CORE = Form(
    reference,
    make_inputs,
    cost,
    impls={
        "sdpa": Impl(
            lambda: after_cache, "torch SDPA, its own choice of kernel", _sdpa_why_not, grouped=True, continues=True
        ),
        **{f"cuda:{backend}": _forced(backend) for backend in BACKENDS},
        **{f"cuda:{name}": _package(package) for name, package in PACKAGES.items()},
        "cuda:flashinfer": _exact(
            flash_infer.KERNEL, flash_infer.attend, None, lambda problem, *_: flash_infer.why_not(problem)
        ),
    },
    state=state,
)


def why_not(problem: Problem, params: Params, scope: Scope) -> str | None:
    """The value map is of all channels."""
    if problem.group > 1 and has_value_map(params):
        return "the value map mixes the values of all query heads, so kv_heads = heads"
    return None


OPERATOR = Operator(
    paper=Paper("Vaswani et al.", 2017, "Attention Is All You Need", "https://arxiv.org/abs/1706.03762", "eq. 1"),
    forms=with_graph({"core": CORE, "layer": projected(CORE)}, "sdpa"),
    complexity=lambda params: Complexity(time="n^2", memory="n^2"),
    params={"value_map": VALUE_MAP},
    exact=lambda params: True,
    grouped=True,
    continues=True,
    why_not=why_not,
    notes="the baseline",
)
