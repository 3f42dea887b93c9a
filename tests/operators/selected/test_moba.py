"""MoBA against a dense mask of the blocks that a loop over tokens chooses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.operators.selected import _blocks
from attnbench.problem import Problem
from attnbench.registry import operators, outside_definition, resolve
from tests.operators.selected.dense import attention, seen
from tests.operators.small import Small, all_close, close, small

N = 29
GIVEN = {"block": 4, "top_k": 3}


def blocks_by_loop(
    q: Tensor, k: Tensor, block: int, top_k: int, *, own_counts: bool = True
) -> list[list[list[set[int]]]]:
    """By sample, head and token the blocks that it sees."""
    group, past = q.shape[1] // k.shape[1], k.shape[2] - q.shape[2]
    result = []
    for sample_q, sample_k in zip(q, k, strict=True):
        by_head = []
        for h, head in enumerate(sample_q):
            keys, by_token = sample_k[h // group], []
            for i, token in enumerate(head, past):
                own = i // block
                gates = [(token @ keys[j * block : (j + 1) * block].mean(dim=0)).item() for j in range(own)]
                best = sorted(range(own), key=lambda j: -gates[j])[: top_k - 1 if own_counts else top_k]
                by_token.append({own, *best})
            by_head.append(by_token)
        result.append(by_head)
    return result


def as_sets(chosen: Tensor) -> list[list[list[set[int]]]]:
    return [[[set(t) - {-1} for t in head] for head in sample] for sample in chosen.tolist()]


def drawn(given: dict[str, Any] = GIVEN, **changes: Any) -> Small:
    sizes: dict[str, Any] = {"channels": 16, "heads": 4, "batch": 2, "causal": True, **changes}
    return small("moba", Problem(N, **sizes), **{"selection": "given", **given})


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("given", [GIVEN, {"block": 5, "top_k": 2}, {"block": 3, "top_k": 1}, {"block": 1, "top_k": 4}])
def test_the_blocks_are_those_of_the_largest_gates(given: dict[str, Any], kv_heads: int) -> None:
    moba = drawn(given, kv_heads=kv_heads)
    q, k = moba.tensors["q"], moba.tensors["k"]
    ours = as_sets(moba.tensors["chosen"])
    assert ours == blocks_by_loop(q, k, **given)
    if given["top_k"] > 1:
        assert ours != blocks_by_loop(-q, k, **given)
        assert ours != blocks_by_loop(q, k, **given, own_counts=False), "k blocks beside the own one"
        assert ours != blocks_by_loop(q, k.roll(1, dims=2), **given)


@pytest.mark.parametrize("tile", [1 << 22, 1 << 12])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("query_len", [N, 9])
def test_equals_a_dense_mask_with_gradients(
    kv_heads: int, query_len: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_blocks, "TILE_ELEMENTS", tile)
    monkeypatch.setattr(_blocks, "TILE_SHARE", 1)
    monkeypatch.setattr(_blocks, "PADDED_SHARE", 1)
    moba = drawn(kv_heads=kv_heads, query_len=query_len)
    sizes = _blocks.cut((2, 4, query_len, 4), (2, kv_heads, N, 4), 4, 4, 3, 4)
    assert sizes.chunk > 1 or query_len < N
    assert sizes.again == (tile < 1 << 22)

    def dense(given: Small, *, shift: int = 0, later: bool = False) -> Tensor:
        t = given.tensors
        k, v = (t.get(f"{name}_cache", t[name]).clone() for name in "kv")
        k, v = (torch.cat((x[..., : N - query_len, :], t[name]), dim=-2) for x, name in ((k, "k"), (v, "v")))
        chosen = t["chosen"].where(t["chosen"] <= 0, (t["chosen"] - shift).clamp(min=0))
        return attention(t["q"] / 2, k, v, seen(chosen, 4, N, later=later))

    assert close(moba.output(), dense(moba))
    assert not close(moba.output(), dense(moba, later=True))
    assert not close(moba.output(), dense(moba, shift=1))
    if query_len == N:
        assert all_close(moba.gradients(), moba.gradients(dense))


@pytest.mark.parametrize("kv_heads", [4, 1])
def test_inside_chooses_what_is_given(kv_heads: int) -> None:
    given, inside = (drawn({**GIVEN, "selection": s}, kv_heads=kv_heads) for s in ("given", "inside"))
    assert "chosen" not in inside.tensors
    assert torch.equal(given.output(), inside.output())
    other = given.tensors["chosen"].flip(1)
    assert not close(given.output(chosen=other), inside.output())


@pytest.mark.parametrize("name", ["moba", "nsa"])
def test_in_a_layer_blocks_are_given(name: str) -> None:
    """In the core they are chosen in the call, as the choice is a part of what the operator costs."""
    operator = operators()[name].load()
    inside, given = (resolve(operator, params) for params in ({}, {"selection": "given"}))
    problem = Problem(N, 16, 4, causal=True)
    assert inside["selection"] == "inside"
    assert "use selection: given" in str(outside_definition(operator, problem, inside, "layer"))
    assert outside_definition(operator, problem, given, "layer") is None
    assert outside_definition(operator, problem, inside, "core") is None


def test_all_blocks_are_softmax_and_one_is_attention_within_blocks() -> None:
    every = drawn({"block": 4, "top_k": 100})
    softmax = small("softmax", every.problem)
    tensors = {name: every.tensors[name] for name in "qkv"}
    assert close(every.output(), softmax.output(**tensors))
    assert close(drawn({"block": 100, "top_k": 1}).output(**tensors), softmax.output(**tensors))
    assert not close(drawn({"block": 4, "top_k": 7}).output(**tensors), softmax.output(**tensors))
    alone = drawn({"block": 4, "top_k": 1}).output(**tensors)
    own = torch.arange(N) // 4
    mask = (own[:, None] == own).tril().expand(2, 4, N, N)
    assert close(alone, attention(tensors["q"] / 2, tensors["k"], tensors["v"], mask))
    assert not close(alone, softmax.output(**tensors)), "top_k = 1 is not full attention"


def test_flops_count_the_pairs_by_token() -> None:
    for selection in ("given", "inside"):
        moba = drawn({**GIVEN, "selection": selection})
        pairs = sum(i % 4 + 1 + 4 * min(2, i // 4) for i in range(N))
        gates = sum(i // 4 for i in range(N)) if selection == "inside" else 0
        assert moba.cost().flops == 2 * 2 * 4 * 4 * (2 * pairs + gates)
        assert moba.cost("fwd_bwd").flops == 2 * 2 * 4 * 4 * (6 * pairs + gates)


def test_filled_blocks_by_token() -> None:
    for slots, block, first in ((3, 4, 0), (3, 4, 17), (1, 1, 5), (16, 64, 0), (40, 3, 2)):
        assert _blocks.filled(first, N, slots, block) == sum(min(slots, i // block + 1) for i in range(first, N))


def test_more_blocks_than_a_line_has_room_for_are_noticed() -> None:
    """An empty slot less than the sizes say is no entry of anybody, but an error."""
    moba = drawn(GIVEN)
    sizes = _blocks.cut((2, 4, N, 4), (2, 4, N, 4), 4, 4, 3, 4)
    line = _blocks.sorted_by_block(moba.tensors["chosen"], sizes, 0, 8)
    entries = (line.query < N).sum(dim=-1)
    assert entries.eq(_blocks.filled(0, N, 3, 4)).all()
    assert (line.block.diff(dim=-1) >= 0).all()


def test_queries_may_choose_alike() -> None:
    """All entries of one block, however many: the chunks are enough, and nobody's entries change nothing."""
    moba = drawn(GIVEN)
    own = torch.arange(N) // 4
    chosen = torch.stack((own, torch.where(own > 0, 0, -1), torch.where(own > 1, 1, -1)), dim=-1).int()
    chosen = chosen.expand(2, 4, N, 3)
    dense = attention(moba.tensors["q"] / 2, moba.tensors["k"], moba.tensors["v"], seen(chosen, 4, N))
    assert close(moba.output(chosen=chosen), dense)
