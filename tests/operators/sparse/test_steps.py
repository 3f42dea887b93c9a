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


def classes(s: int, reach: int) -> Sees:
    return lambda i, j: (i - j) % s == 0 and abs(i - j) <= reach * s


CASES: list[tuple[str, dict[str, Any], int, Sees]] = [
    ("local", {"window": 0}, 30, near(0)),
    ("local", {"window": 7}, 30, near(7)),
    ("local", {"window": 7}, 150, near(7)),
    ("local", {"window": 70}, 199, near(70)),
    ("strided", {"stride": 4, "reach": 3}, 30, classes(4, 3)),
    ("strided", {"stride": 3, "reach": 40}, 199, classes(3, 40)),
    ("strided", {"stride": 3, "reach": 0}, 30, classes(3, 0)),
    ("strided", {"stride": 7, "reach": "all"}, 61, classes(7, 61)),
    ("strided", {"stride": "sqrt(n)", "reach": "all"}, 30, classes(5, 30)),
    ("strided", {"stride": "sqrt(n)", "reach": 3}, 42, classes(6, 3)),
    ("longformer", {"window": 7, "dilation": 3, "global_tokens": 0}, 61, classes(3, 7)),
    ("longformer", {"window": 2, "dilation": 40, "global_tokens": 0}, 30, classes(40, 2)),
]
"""Name, params, N, and which pairs are seen. √N: of 30 and 42 tokens, not of a few less."""

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
    step = Step(name, params, n, 1)
    state = step.state(n - 1)
    with FlopCounterMode(display=False) as counter:
        step.call(state)
    cost = step.form.cost(step.problem, step.params, "fwd")
    assert counter.get_total_flops() == cost.flops == cost.reference_flops
    assert cost.flops == 4 * sum(sees(n - 1, j) for j in range(n)) * 2 * 16


@each_case
def test_costs_count_the_pairs_and_the_keys_that_are_seen(
    name: str, params: dict[str, Any], n: int, sees: Sees
) -> None:
    for query_len in query_lens(n):
        step = Step(name, params, n, query_len)
        cost, past = step.form.cost(step.problem, step.params, "fwd"), step.problem.past
        seen = mask(n, sees, causal=True)[past:]
        assert cost.flops == 4 * int(seen.sum()) * 2 * 16
        with FlopCounterMode(display=False) as counter:
            step.call(step.state(past))
        assert cost.reference_flops == counter.get_total_flops()
        keys = int(seen[:, :past].any(dim=0).sum())
        rows = 2 * query_len * 16 + 2 * (query_len * (2 if past else 1) + keys) * 8  # q and y; k and v of Hk·D = 8
        assert cost.bytes_required == 2 * rows * 8


@each_case
def test_state_bytes_count_every_token_that_a_later_one_can_see(
    name: str, params: dict[str, Any], n: int, sees: Sees
) -> None:
    """Of N + 1 … tokens under the same sizes, as far as the window reaches."""
    step = Step(name, params, n, n)
    later = range(n, 3 * n)
    tokens = sum(any(sees(i, j) for i in later) for j in range(n))
    assert step.form.cost(step.problem, step.params, "fwd").state_bytes == 2 * 2 * tokens * 8 * 8
