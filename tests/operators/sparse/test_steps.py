"""The last Q rows from a state, and groups of heads, against a mask built pair by pair, at the edges of windows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.measure.worker.fake_memory import predict
from attnbench.problem import Problem
from attnbench.registry import operators, resolve
from tests.operators.flops import FlopCounter
from tests.operators.sparse.masked import Sees, attention, close, mask


def near(w: int) -> Sees:
    return lambda i, j: abs(i - j) <= w


def classes(s: int, reach: int) -> Sees:
    return lambda i, j: (i - j) % s == 0 and abs(i - j) <= reach * s


def fixed(size: int, width: int) -> Sees:
    return lambda i, j: i // size == j // size or j % size >= size - width


CASES: list[tuple[str, dict[str, Any], int, Sees]] = [
    ("local", {"window": 0}, 30, near(0)),
    ("local", {"window": 7}, 30, near(7)),
    ("local", {"window": 7}, 150, near(7)),
    ("local", {"window": 70}, 150, near(70)),
    ("sliding_window", {"window": 8}, 30, near(7)),
    ("sliding_window", {"window": 8, "sink": "tokens"}, 30, lambda i, j: i - j <= 7 or j < 4),
    ("sliding_window", {"window": 8, "sink": "tokens"}, 150, lambda i, j: i - j <= 7 or j < 4),
    ("sliding_window", {"window": 1, "sink": "tokens", "sink_tokens": 9}, 150, lambda i, j: i == j or j < 9),
    ("strided", {"stride": 4, "reach": 3}, 30, classes(4, 3)),
    ("strided", {"stride": 3, "reach": 40}, 150, classes(3, 40)),
    ("strided", {"stride": 3, "reach": 0}, 30, classes(3, 0)),
    ("strided", {"stride": 7, "reach": "all"}, 61, classes(7, 61)),
    ("strided", {"stride": "sqrt(n)", "reach": "all"}, 30, classes(5, 30)),
    ("strided", {"stride": "sqrt(n)", "reach": 3}, 42, classes(6, 3)),
    ("sparse_transformer", {"heads": "union", "stride": 5}, 61, lambda i, j: i - j <= 5 or (i - j) % 5 == 0),
    ("sparse_transformer", {"heads": "union", "stride": 40}, 150, lambda i, j: i - j <= 40 or (i - j) % 40 == 0),
    ("sparse_transformer", {"heads": "union", "stride": "sqrt(n)"}, 42, lambda i, j: i - j <= 6 or (i - j) % 6 == 0),
    ("sparse_transformer", {"heads": "union", "stride": 1}, 9, lambda i, j: True),
    ("sparse_transformer", {"heads": "union", "kind": "fixed", "stride": 7, "summary": 2}, 61, fixed(7, 2)),
    ("sparse_transformer", {"heads": "union", "kind": "fixed", "stride": 7, "summary": 7}, 63, fixed(7, 7)),
    ("sparse_transformer", {"heads": "union", "kind": "fixed", "stride": 40, "summary": 3}, 150, fixed(40, 3)),
    ("sparse_transformer", {"heads": "union", "kind": "fixed", "summary": 1}, 42, fixed(6, 1)),
    ("longformer", {"window": 7, "dilation": 3, "global_tokens": 0}, 61, classes(3, 7)),
    ("longformer", {"window": 2, "dilation": 40, "global_tokens": 0}, 30, classes(40, 2)),
]
"""Name, params, N, and which pairs are seen. √N: of 30 and 42 tokens, not of a few less."""

LAYOUTS = list(
    {
        (name, params.get("kind"), params.get("sink")): (name, params, n, sees) for name, params, n, sees in CASES
    }.values()
)
"""One case of each way to keep keys."""


def over(cases: list[tuple[str, dict[str, Any], int, Sees]]) -> Any:
    names = [f"{name}-{n}-{list(params.values())}" for name, params, n, _ in cases]
    return pytest.mark.parametrize(("name", "params", "n", "sees"), cases, ids=names)


class Step:
    """An operator whose state is of the first N − Q tokens. `tokens`: q, k, v of all N."""

    def __init__(
        self, name: str, params: dict[str, Any], n: int, query_len: int, kv_heads: int = 2, heads: int = 4
    ) -> None:
        operator = operators()[name].load()
        self.form, self.params = operator.forms["core"], resolve(operator, params)
        shape: dict[str, Any] = {"batch": 2, "dtype": "float64", "causal": True, "query_len": query_len}
        self.problem = Problem(n, 4 * heads, heads, kv_heads=kv_heads, **shape)
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

    def dense(self, *allowed: Tensor) -> Tensor:
        """Under masks [N, N] of each head, or of all."""
        q, k, v = (self.tokens[name] for name in "qkv")
        k, v = (x.repeat_interleave(self.problem.group, dim=1) for x in (k, v))
        return attention(q, k, v, torch.stack(allowed))[..., self.problem.past :, :]


def query_lens(n: int) -> tuple[int, ...]:
    return 1, 2, 8, n // 2, n - 3, n - 1, n


@over(CASES)
def test_the_last_rows_equal_the_masked_form(name: str, params: dict[str, Any], n: int, sees: Sees) -> None:
    allowed = mask(n, sees, causal=True)
    without = allowed.clone()
    without[-1, allowed[-1].int().argmax()] = False  # the farthest key of the last token
    for query_len in query_lens(n):
        step = Step(name, params, n, query_len)
        y = step.call(step.state(step.problem.past))
        assert close(y, step.dense(allowed)), query_len
        assert not close(y, step.dense(without)), query_len


@over(CASES)
def test_costs_count_the_pairs_and_the_keys_that_are_seen(
    name: str, params: dict[str, Any], n: int, sees: Sees
) -> None:
    allowed = mask(n, sees, causal=True)
    for query_len in query_lens(n):
        step = Step(name, params, n, query_len)
        cost, past = step.form.cost(step.problem, step.params, "fwd"), step.problem.past
        seen = allowed[past:]
        assert cost.flops == 4 * int(seen.sum()) * 2 * 16
        with FlopCounter() as counter:
            step.call(step.state(past))
        assert cost.reference_flops == counter.total
        assert query_len > 1 or cost.reference_flops == cost.flops, "one row multiplies the keys that it sees alone"
        keys = int(seen[:, :past].any(dim=0).sum())
        rows = 2 * query_len * 16 + 2 * (query_len * (2 if past else 1) + keys) * 8  # q and y; k and v of Hk·D = 8
        assert cost.bytes_required == 2 * rows * 8


@over(CASES)
def test_state_bytes_count_every_token_that_a_later_one_can_see(
    name: str, params: dict[str, Any], n: int, sees: Sees
) -> None:
    """Of N + 1 … tokens under the same sizes, as far as the window reaches."""
    step = Step(name, params, n, n)
    later = range(n, 3 * n)
    tokens = sum(any(sees(i, j) for i in later) for j in range(n))
    assert step.form.cost(step.problem, step.params, "fwd").state_bytes == 2 * 2 * tokens * 8 * 8


@over(LAYOUTS)
def test_a_step_holds_no_more_than_the_keys_that_it_sees(name: str, params: dict[str, Any], n: int, sees: Sees) -> None:
    step = Step(name, params, 20 * n, 1)
    cost = step.form.cost(step.problem, step.params, "fwd")
    keys = cost.flops // (4 * 2 * 16)
    gathered, scores, row = 2 * 2 * 8 * keys, 2 * 4 * keys, 2 * 16
    bound = 8 * (gathered + 5 * scores + 6 * row)
    assert predict(step.form, step.problem, step.params, "fwd").peak_bytes <= bound
    prefill = replace(step.problem, query_len=step.problem.seq_len)
    assert predict(step.form, prefill, step.params, "fwd").peak_bytes > bound, "all rows take more"


SPLIT: list[tuple[str, Sees, Sees]] = [
    ("strided", near(6), classes(6, 40)),
    ("fixed", lambda i, j: i // 6 == j // 6, lambda i, j: j % 6 >= 4),
]


@pytest.mark.parametrize(("kind", "first", "second"), SPLIT, ids=[kind for kind, *_ in SPLIT])
@pytest.mark.parametrize("kv_heads", [6, 3, 2, 1])
def test_split_heads_keep_what_their_pattern_sees(kind: str, first: Sees, second: Sees, kv_heads: int) -> None:
    """Three of 6 heads each: with 3 heads of keys the two patterns share the second, with 1 the only one."""
    params, n = {"kind": kind, "heads": "split", "summary": 2}, 40
    masks = [mask(n, sees, causal=True) for sees in (first, second)]
    readers = [{head * kv_heads // 6 for head in heads} for heads in (range(3), range(3, 6))]
    for query_len in (1, 2, 7, 20, 37, 39, n):
        step = Step("sparse_transformer", params, n, query_len, kv_heads, heads=6)
        past = step.problem.past
        state = step.state(past)
        y = step.call(state)
        assert close(y, step.dense(*[masks[0]] * 3, *[masks[1]] * 3)), query_len
        assert not close(y, step.dense(*[masks[0]] * 2, *[masks[1]] * 4)), query_len
        cost = step.form.cost(step.problem, step.params, "fwd")
        seen = [allowed[past:] for allowed in masks]
        assert cost.flops == 4 * 2 * 4 * 3 * sum(int(pairs.sum()) for pairs in seen)
        cached = sum(
            len(heads) * int(pairs[:, :past].any(dim=0).sum()) for heads, pairs in zip(readers, seen, strict=True)
        )
        summaries = sum(j % 6 >= 4 for j in range(past, n)) if kind == "fixed" else query_len
        written = query_len * len(readers[0]) + summaries * len(readers[1]) if past else 0
        assert cost.bytes_required == 2 * 8 * 4 * (2 * 6 * query_len + 2 * (kv_heads * query_len + cached + written))
        kept = [sum(any(sees(i, j) for i in range(n, 3 * n)) for j in range(n)) for sees in (first, second)]
        assert cost.state_bytes == 2 * 2 * 4 * 8 * sum(len(r) * rows for r, rows in zip(readers, kept, strict=True))


@pytest.mark.parametrize(
    ("name", "params", "pattern"),
    [
        ("strided", {}, lambda s: classes(s, 42)),
        ("sparse_transformer", {"heads": "union"}, lambda s: lambda i, j: i - j <= s or (i - j) % s == 0),
        ("sparse_transformer", {"heads": "union", "kind": "fixed", "summary": 2}, lambda s: fixed(s, 2)),
    ],
)
def test_sizes_follow_all_tokens_not_those_before(name: str, params: dict[str, Any], pattern: Any) -> None:
    step = Step(name, params, 42, 21)
    y = step.call(step.state(21))
    assert close(y, step.dense(mask(42, pattern(6), causal=True)))
    assert not close(y, step.dense(mask(42, pattern(5), causal=True))), "√21 is 5, rounded"
