"""What the cores of this family share: sizes, inputs, the state, and the parts of their cost that are alike.

H heads of values, each with its own state and its own decay; q and k have as many, or `qk_heads` that divide them: the
value heads ⌊h · qk_heads / H⌋ share one. All causal: the state is what came before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from attnbench.cost import product, traffic
from attnbench.inputs import normal, torch_dtype
from attnbench.kernels.library.fla import Functions, recurrent_with_fla, why_not_fla
from attnbench.operator import Call, Cost, Impl, Param
from attnbench.operators.kernelized._contraction import widened
from attnbench.problem import DTYPES, Dtype, Mode, Params, Problem, Scope

CHUNK = 64
"""Most tokens in a chunk; fewer tokens are one chunk of the power of two from their number up."""

NOT_FULL = "a state follows the tokens in their order: what comes after a token is not in it"
NOT_GROUPED = "it is q and k that several heads share, by the parameter qk_heads; each head of values has a state"

GRAPHED = ("cuda", "reference")
"""The impls of these operators of which the first that can compute a problem is the one that `cuda:graph` replays."""

QK_HEADS = Param("h", "heads of q and k, each for as many heads of values; h: as many as these", ("h",), minimum=1)

DIMS = {"d/2": 0.5, "d": 1.0}


def key_dim(default: int | str) -> Param:
    """The parameter `key_dim`."""
    choices = (default,) if isinstance(default, str) else ()
    return Param(default, "channels K of a query and of a key; d: head_dim", choices, minimum=1)


@dataclass(frozen=True)
class Sizes:
    """The sizes of one call of a core.

    Attributes:
        heads: H, of values and states.
        qk_heads: of q and k.
        tokens: Q.
        rows, columns: K and V, of a state.
        chunk: tokens in a chunk.
        continues: whether there is a state before.
        item_bytes: of the working dtype.
    """

    batch: int
    heads: int
    qk_heads: int
    tokens: int
    rows: int
    columns: int
    chunk: int
    continues: bool
    item_bytes: int

    @property
    def state(self) -> int:
        """Numbers of all states."""
        return self.batch * self.heads * self.rows * self.columns

    @property
    def steps(self) -> int:
        """Tokens of all heads of values and samples."""
        return self.batch * self.heads * self.tokens

    @property
    def chunks(self) -> int:
        """Chunks, the last one padded."""
        return -(-self.tokens // self.chunk)


def sizes_of(problem: Problem, params: Params) -> Sizes:
    """The sizes of a problem."""
    k, qk_heads = params["key_dim"], params.get("qk_heads", "h")
    return Sizes(
        problem.batch,
        problem.heads,
        problem.heads if qk_heads == "h" else qk_heads,
        problem.query_len,
        max(1, int(DIMS[k] * problem.head_dim)) if isinstance(k, str) else k,
        problem.head_dim,
        chunk_of(problem.query_len),
        problem.past > 0,
        problem.item_bytes,
    )


def chunk_of(tokens: int) -> int:
    """Tokens in a chunk."""
    return min(CHUNK, 1 << (tokens - 1).bit_length())


def why_not_heads(problem: Problem, params: Params, scope: Scope) -> str | None:
    """The reason that heads cannot share q and k so, or None."""
    qk_heads = params["qk_heads"]
    if qk_heads != "h" and problem.heads % qk_heads:
        return f"qk_heads {qk_heads} does not divide heads {problem.heads}; each is read by as many of these"
    return None


def channels_of(problem: Problem, params: Params) -> tuple[int, int]:
    """K and V."""
    sizes = sizes_of(problem, params)
    return sizes.rows, sizes.columns


def drawn_heads(problem: Problem, sizes: Sizes, generator: Generator, *names: str) -> dict[str, Tensor]:
    """N(0, 1) tensors: [B, H, Q, V] of v, else [B, qk_heads, Q, K]."""
    b, q = sizes.batch, sizes.tokens
    shapes = dict.fromkeys(names, (b, sizes.qk_heads, q, sizes.rows)) | {"v": (b, sizes.heads, q, sizes.columns)}
    return {name: normal(problem, generator, *shapes[name]) for name in names}


def drawn_delta_rule(problem: Problem, sizes: Sizes, generator: Generator) -> dict[str, Tensor]:
    """q, v ~ N(0, 1), ‖k‖ = 1 and β, [B, H, Q, 1], a sigmoid of N(0, 1): a state stays bounded where β ‖k‖² < 2."""
    data = drawn_heads(problem, sizes, generator, "q", "k", "v")
    data["k"] = normalize(data["k"], dim=-1)
    data["beta"] = normal(problem, generator, sizes.batch, sizes.heads, sizes.tokens, 1).sigmoid()
    return data


def drawn_rates(problem: Problem, sizes: Sizes, generator: Generator) -> Tensor:
    """A ~ U(1, 16), [H], as the layers of Mamba-2 and of those after it begin."""
    return (1 + 15 * _uniform(generator, sizes.heads)).to(torch_dtype(problem))


def drawn_steps(problem: Problem, sizes: Sizes, generator: Generator, channels: int = 1) -> Tensor:
    """Δ, log-uniform between 0.001 and 0.1, [B, H, Q, channels], as these layers begin."""
    uniform = _uniform(generator, sizes.batch, sizes.heads, sizes.tokens, channels)
    return (10 ** (2 * uniform - 3)).to(torch_dtype(problem))


def _uniform(generator: Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)


def drawn_decays(problem: Problem, sizes: Sizes, generator: Generator, channels: int = 1) -> Tensor:
    """log decays −A Δ of each token, [B, H, Q, channels]."""
    rates = drawn_rates(problem, sizes, generator).view(-1, 1, 1)
    return -rates * drawn_steps(problem, sizes, generator, channels)


def by_qk_head(x: Tensor, qk_heads: int) -> Tensor:
    """[B, heads, …] → [B·qk_heads, heads of values for each (or 1), …]; half precisions as float32."""
    split: Tensor = widened(x).unflatten(1, (qk_heads, -1)).flatten(0, 1)
    return split


def by_head(y: Tensor, batch: int) -> Tensor:
    """The opposite, for outputs and states."""
    joined: Tensor = y.unflatten(0, (batch, -1)).flatten(1, 2)
    return joined


def answer(y: Tensor, state: Tensor | None, dtype: torch.dtype, batch: int) -> Tensor | tuple[Tensor, ...]:
    """What a core returns: y, [B, H, Q, V], and the new state where there was one before."""
    y = by_head(y, batch).to(dtype)
    return y if state is None else (y, by_head(state, batch))


def state_bytes(sizes: Sizes) -> int:
    """Of the states, in float32 at least, however many tokens they are of."""
    return sizes.state * max(4, sizes.item_bytes)


def core_cost(
    problem: Problem, sizes: Sizes, mode: Mode, *, products: int, executed: int, gates: int = 0, parameters: int = 0
) -> Cost:
    """The cost of a core.

    Args:
        products: of the definition, [K] × [V] each, of a token and head.
        executed: FLOPs of the reference.
        gates: numbers of decays and weights, of a token and head of values.
        parameters: numbers of these.
    """
    keys = 2 * sizes.batch * sizes.qk_heads * sizes.tokens * sizes.rows
    values = sizes.steps * sizes.columns
    moved = traffic(problem, mode, read=keys + values + sizes.steps * gates + parameters, written=values)
    return Cost(
        flops=product(products * sizes.steps * sizes.rows * sizes.columns, mode),
        reference_flops=executed,
        # the state decays, and what makes the decay and scales a query
        elementwise=(sizes.steps * (sizes.rows * sizes.columns + gates) + keys) * (1 if mode == "fwd" else 2),
        bytes_required=moved + (2 * state_bytes(sizes) if sizes.continues else 0),
        state_bytes=state_bytes(sizes),
    )


Arguments = tuple[dict[str, Tensor], dict[str, Tensor], float]
"""The library's tensors and numbers by its names, and the scale: see `recurrent_with_fla`."""


def library(
    functions: Functions,
    arguments: Callable[..., Arguments],
    why_not_backward: Callable[[], str | None] = lambda: None,
    more: Callable[..., Tensor] | None = None,
    dtypes: tuple[Dtype, ...] = DTYPES,
) -> Impl:
    """A core by flash-linear-attention.

    Args:
        arguments: (params, **the core's tensors but the state) → those of the library.
        why_not_backward: the reason its gradients cannot be had, or None.
        more: (**the core's tensors but the state) → what is added to y; None: nothing.
        dtypes: that the library takes.
    """

    def load() -> Call:
        def call(problem: Problem, params: Params, state: Tensor | None = None, **tensors: Tensor) -> Any:
            outputs = recurrent_with_fla(functions, *arguments(params, **tensors), state)
            if more is None:
                return outputs
            return outputs + more(**tensors) if state is None else (outputs[0] + more(**tensors), outputs[1])

        return call

    def why_not(problem: Problem, params: Params, device: str) -> str | None:
        if problem.dtype not in dtypes:
            return f"flash-linear-attention's {functions.module} takes {' and '.join(dtypes)} only"
        return why_not_fla(problem, sizes_of(problem, params).rows, functions.module)

    return Impl(
        load,
        functions.kernel,
        why_not,
        continues=True,
        why_not_backward=lambda problem, params, device: why_not_backward(),
    )
