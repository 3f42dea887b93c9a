"""The cost of softmax attention over some query-key pairs, as the sparse operators share it."""

from __future__ import annotations

from dataclasses import replace

from attnbench.cost import product, traffic
from attnbench.operator import Cost
from attnbench.problem import Mode, Problem
from attnbench.state import cache_bytes


def pair_cost(
    problem: Problem,
    mode: Mode,
    pairs: int,
    executed: int,
    cached: int = 0,
    state_tokens: int | None = None,
    new: int | None = None,
) -> Cost:
    """Attention over so many query-key pairs of each head.

    Args:
        pairs: of the definition.
        executed: those that the reference multiplies.
        cached: earlier tokens of which keys and values are read, where Q < N.
        new: of the new tokens, those of which keys and values are written to the cache; None: all.
        state_tokens: tokens of which keys and values are kept of all N to continue from; None: it cannot.
    """
    b, h, q, d = problem.batch, problem.heads, problem.query_len, problem.head_dim
    size, kv_size = b * q * problem.channels, b * q * problem.kv_channels
    appended = 2 * b * (q if new is None else new) * problem.kv_channels if problem.past else 0
    return Cost(
        flops=2 * product(b * h * pairs * d, mode),  # q kᵀ and p v over the pairs
        reference_flops=2 * product(b * h * executed * d, mode),
        elementwise=4 * b * h * pairs * (1 if mode == "fwd" else 2),  # max, subtract, exp, divide
        bytes_required=traffic(
            problem,
            mode,
            read=size + 2 * kv_size,
            constant=2 * b * cached * problem.kv_channels,
            written=size + appended,
        ),
        state_bytes=cache_bytes(problem, state_tokens) if problem.causal and state_tokens is not None else None,
    )


def with_bias(inner: Cost, problem: Problem, mode: Mode, pairs: int, numbers: int) -> Cost:
    """A cost with an addition to each score, from a table.

    Args:
        pairs: of each head.
        numbers: of the table.
    """
    added = problem.batch * problem.heads * pairs
    return replace(
        inner,
        elementwise=inner.elementwise + added * (1 if mode == "fwd" else 2),
        bytes_required=inner.bytes_required + traffic(problem, mode, read=numbers, written=0),
    )
