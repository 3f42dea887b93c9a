"""Sizes that may follow the number of tokens: one string in `params`, so that a series keeps one set of params."""

from __future__ import annotations

from attnbench.problem import ParamValue

SQRT = "sqrt(n)"


def size(value: ParamValue, seq_len: int) -> int:
    """Tokens meant by a parameter: a number, or SQRT for √N to the nearest whole number; at most N."""
    tokens = max(1, round(seq_len**0.5)) if value == SQRT else int(value)
    return min(tokens, seq_len)
