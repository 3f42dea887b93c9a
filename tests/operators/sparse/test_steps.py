"""The last Q rows from a state, and groups of heads, against a mask built pair by pair, at the edges of windows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attnbench.problem import Problem
from attnbench.registry import operators, resolve
from tests.operators.sparse.masked import Sees, attention, close, mask


def near(w: int) -> Sees:
    return lambda i, j: abs(i - j) <= w


CASES: list[tuple[str, dict[str, Any], int, Sees]] = [
    ("local", {"window": 0}, 30, near(0)),
    ("local", {"window": 7}, 30, near(7)),
    ("local", {"window": 7}, 150, near(7)),
    ("local", {"window": 70}, 199, near(70)),
]
"""Name, params, N, and which pairs are seen."""

each_case = pytest.mark.parametrize(
    ("name", "params", "n", "sees"), CASES, ids=[f"{name}-{n}-{list(params.values())}" for name, params, n, _ in CASES]
)


class Step:
    """An operator whose state is of the first N − Q tokens. `tokens`: q, k, v of all N."""

    def __init__(self, name: str, params: dict[str, Any], n: int, query_len: int, kv_heads: int = 2) -> None:
        operator = operators()[name].load()
        self.form, self.params = operator.forms["core"], resolve(operator, params)
        self.problem = Problem(n, 16, 4, batch=2, dtype="float64", causal=True, kv_heads=kv_heads, query_len=query_len)
        whole = self.form.make_inputs(replace(self.problem, query_len=n), self.params, torch.Generator().manual_seed(n))
        self.tokens = whole.data

    def state(self, tokens: int) -> dict[str, Tensor]:
        assert self.form.state is not None
        earlier = {name: x[..., :tokens, :] for name, x in self.tokens.items()}
        return self.form.state(self.problem, self.params, **earlier) if self.problem.past else {}

    def call(self, state: dict[str, Tensor]) -> Tensor:
        new = {name: x[..., self.problem.past :, :] for name, x in self.tokens.items()}
        y: Tensor = self.form.reference(self.problem, self.params, **new, **state)
        return y

    def dense(self, sees: Sees) -> Tensor:
        q, k, v = (self.tokens[name] for name in "qkv")
        k, v = (x.repeat_interleave(self.problem.group, dim=1) for x in (k, v))
        return attention(q, k, v, mask(self.problem.seq_len, sees, causal=True))[..., self.problem.past :, :]


def query_lens(n: int) -> tuple[int, ...]:
    return 1, 2, 5, 8, n // 2, n - 3, n - 1, n


@each_case
def test_the_last_rows_equal_the_masked_form(name: str, params: dict[str, Any], n: int, sees: Sees) -> None:
    farthest = min(j for j in range(n) if sees(n - 1, j))
    for query_len in query_lens(n):
        step = Step(name, params, n, query_len)
        y = step.call(step.state(step.problem.past))
        assert close(y, step.dense(sees)), query_len
        assert not close(y, step.dense(lambda i, j: sees(i, j) and (i, j) != (n - 1, farthest)))


@each_case
def test_a_step_multiplies_only_the_keys_that_its_row_sees(
    name: str, params: dict[str, Any], n: int, sees: Sees
) -> None:
    for tokens in (n, n - 1, n // 2, 2):
        step = Step(name, params, tokens, 1)
        state = step.state(tokens - 1)
        with FlopCounterMode(display=False) as counter:
            step.call(state)
        seen = sum(sees(tokens - 1, j) for j in range(tokens))
        cost = step.form.cost(step.problem, step.params, "fwd")
        assert counter.get_total_flops() == cost.flops == cost.reference_flops == 4 * seen * 2 * 16
