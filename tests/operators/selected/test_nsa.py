"""NSA against loops over tokens, blocks and overlaps: what is chosen, and the three branches given the choice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu

from attnbench import inputs
from attnbench.operators.selected import _blocks, _choice, _compression, _gather
from attnbench.problem import MODES, Dtype, Problem
from attnbench.registry import operators, outside_definition, resolve
from tests.operators.flops import FlopCounter
from tests.operators.selected.dense import attention, seen
from tests.operators.small import Small, all_close, close, small

N = 45
GIVEN: dict[str, Any] = {"length": 6, "step": 2, "select": 4, "blocks": 5, "window": 7}
SIZES: list[dict[str, Any]] = [
    GIVEN,
    {**GIVEN, "length": 4, "step": 4},  # compressed blocks are those of the selection
    {**GIVEN, "length": 2, "select": 6},
    {**GIVEN, "length": 8, "step": 4, "blocks": 3},
    {**GIVEN, "step": 1, "length": 3, "select": 5},
]


def drawn(given: dict[str, Any] = GIVEN, **changes: Any) -> Small:
    sizes: dict[str, Any] = {"channels": 16, "heads": 4, "batch": 2, "causal": True, "kv_heads": 2, **changes}
    return small("nsa", Problem(N, **sizes), **{"selection": "given", **given})


def names(nsa: Small, branch: str) -> tuple[str, str]:
    """Of keys and values of a branch."""
    suffix = f"_{branch}" if nsa.params["kv"] == "own" else ""
    return f"k{suffix}", f"v{suffix}"


def compressed(nsa: Small, name: str, tensor: str) -> Tensor:
    """Block after block. name: k or v."""
    length, step = nsa.params["length"], nsa.params["step"]
    x, t, blocks = nsa.tensors[tensor], nsa.tensors, []
    for start in range(0, N - length + 1, step):
        block = x[:, :, start : start + length]
        if nsa.params["compress"] == "mlp":
            hidden = gelu((block + t[f"position_{name}"]).flatten(-2) @ t[f"w_in_{name}"])
            blocks.append(hidden @ t[f"w_out_{name}"])
        else:
            blocks.append(block.mean(dim=-2))
    return torch.stack(blocks, dim=-2)


def compressed_weights(nsa: Small) -> tuple[Tensor, Tensor, Tensor]:
    """p of each head [B, H, N, blocks], 0 where there is none, and the compressed keys and values."""
    keys, values = (compressed(nsa, name, tensor) for name, tensor in zip("kv", names(nsa, "cmp"), strict=True))
    ends = torch.arange(keys.shape[-2]) * nsa.params["step"] + nsa.params["length"] - 1
    visible = ends <= torch.arange(N).unsqueeze(-1)
    repeated = keys.repeat_interleave(nsa.problem.group, dim=1)
    scores = (nsa.tensors["q"] @ repeated.transpose(-2, -1)) / nsa.problem.head_dim**0.5
    return scores.masked_fill(~visible, float("-inf")).softmax(dim=-1).nan_to_num(0.0), keys, values


def chosen_by_loop(nsa: Small, *, printed: bool = False, plain: bool = False, grouped: bool = True) -> list[Any]:
    """The sets of blocks. printed: by eq. 9 as printed; plain: each overlap counts 1; grouped: over a group's heads."""
    length, step, select = (nsa.params[name] for name in ("length", "step", "select"))
    p = compressed_weights(nsa)[0].unflatten(1, (nsa.problem.kv_heads, -1))
    p = p.sum(dim=2) if grouped else p[:, :, 0]
    blocks, parts = -(-N // select), select // step

    def importance(weights: list[float], block: int) -> float:
        if printed:
            inside = (parts * block - m - n for m in range(parts) for n in range(length // step))
            return sum(weights[c] for c in inside if 0 <= c < len(weights))
        total = 0.0
        for c, weight in enumerate(weights):
            first, last = max(c * step, block * select), min(c * step + length, (block + 1) * select)
            total += weight * (max(0, last - first) / step if not plain else float(last > first))
        return total

    def of_token(i: int, weights: list[float]) -> set[int]:
        own = i // select
        fixed = {j for j in (0, own - 1, own) if j >= 0}
        others = sorted(set(range(own)) - fixed, key=lambda j: -importance(weights, j))
        return fixed | set(others[: nsa.params["blocks"] - len(fixed)])

    assert blocks > nsa.params["blocks"]
    return [[[of_token(i, w) for i, w in enumerate(head)] for head in sample] for sample in p.tolist()]


def as_sets(chosen: Tensor) -> list[Any]:
    return [[[set(t) - {-1} for t in head] for head in sample] for sample in chosen.tolist()]


@pytest.mark.parametrize("given", SIZES, ids=str)
@pytest.mark.parametrize("compress", ["mean", "mlp"])
def test_the_blocks_are_those_of_most_importance(given: dict[str, Any], compress: str) -> None:
    nsa = drawn({**given, "compress": compress})
    assert as_sets(nsa.tensors["chosen"]) == chosen_by_loop(nsa)


def test_the_check_of_the_choice_sees_other_definitions() -> None:
    nsa = drawn()
    ours = as_sets(nsa.tensors["chosen"])
    assert ours != chosen_by_loop(nsa, printed=True), "eq. 9 as printed"
    assert ours != chosen_by_loop(nsa, plain=True), "a plain sum over the blocks that overlap"
    assert ours != chosen_by_loop(nsa, grouped=False), "the first head of a group alone"


def test_weights_of_overlap_are_1_2_2_2_1_at_the_defaults() -> None:
    params = resolve(operators()["nsa"].load(), {})
    p = torch.eye(12)  # of one compressed block at a time
    weights = _compression.overlapped(p, params, 3)
    assert weights[:, 1].tolist() == [0, 0, 0, 1, 2, 2, 2, 1, 0, 0, 0, 0]
    assert weights[:, 0].tolist() == [2, 2, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0]


def dense(nsa: Small, *, early: bool = False, wide: bool = False, later: bool = False) -> Tensor:
    """Given the choice. early: a compressed block is seen before it ends; wide: w + 1 keys; later: j > i of blocks."""
    t, scale = nsa.tensors, nsa.problem.head_dim**-0.5
    p, _, values = compressed_weights(nsa)
    y_cmp = p @ values.repeat_interleave(nsa.problem.group, dim=1)
    if early:
        y_cmp = torch.cat((y_cmp[..., 1:, :], y_cmp[..., -1:, :]), dim=-2)
    q = t["q"] * scale
    y_slc = attention(q, t["k"], t["v"], seen(t["chosen"], nsa.params["select"], N, later=later))
    back = torch.arange(N).unsqueeze(-1) - torch.arange(N)
    near = (back >= 0) & (back < nsa.params["window"] + wide)
    k, v = names(nsa, "win")
    y_win = attention(q, t[k], t[v], near.expand(2, 1, N, N))
    gates = t["gates"]
    return gates[..., :1] * y_cmp + gates[..., 1:2] * y_slc + gates[..., 2:] * y_win


def small_tiles(monkeypatch: pytest.MonkeyPatch, elements: int = 1 << 13) -> None:
    """elements: of a tile of `_blocks`; with few of them keys are gathered for each query."""
    for module, least, share in ((_blocks, elements, 1), (_choice, 1 << 10, 2), (_gather, 1 << 8, 1)):
        monkeypatch.setattr(module, "TILE_ELEMENTS", least)
        if module is not _gather:
            monkeypatch.setattr(module, "TILE_SHARE", share)
    monkeypatch.setattr(_blocks, "PADDED_SHARE", 1)


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("kv", ["shared", "own"])
@pytest.mark.parametrize("compress", ["mean", "mlp"])
def test_equals_dense_branches_with_gradients(
    compress: str, kv: str, tiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tiled:
        small_tiles(monkeypatch)
    nsa = drawn({**GIVEN, "compress": compress, "kv": kv})
    assert (len(list(_choice.tiles(8, N, 4, 20))) > 1) == tiled
    ours = nsa.output()
    assert close(ours, dense(nsa))
    assert all_close(nsa.gradients(), nsa.gradients(dense))
    if not tiled:
        assert not any(close(ours, dense(nsa, **{trap: True})) for trap in ("early", "wide", "later"))


@pytest.mark.parametrize("given", SIZES, ids=str)
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_equals_dense_branches_at_other_sizes(given: dict[str, Any], kv_heads: int) -> None:
    nsa = drawn(given, kv_heads=kv_heads)
    assert close(nsa.output(), dense(nsa))


@pytest.mark.parametrize("kv", ["shared", "own"])
@pytest.mark.parametrize("compress", ["mean", "mlp"])
def test_inside_chooses_what_is_given(compress: str, kv: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 by the scores of the branch itself, in float64 by float32 ones beside it."""
    given, inside = (drawn({**GIVEN, "compress": compress, "kv": kv, "selection": s}) for s in ("given", "inside"))
    assert "chosen" not in inside.tensors
    assert torch.equal(given.output(), inside.output())
    assert not close(given.output(chosen=given.tensors["chosen"].flip(1)), inside.output())
    single = {name: tensor.float() for name, tensor in inside.tensors.items()}
    y = inside.form.reference(inside.problem.with_dtype("float32"), inside.params, **single)
    assert torch.allclose(y.double(), inside.output(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kv", ["shared", "own"])
@pytest.mark.parametrize("compress", ["mean", "mlp"])
@pytest.mark.parametrize("selection", ["given", "inside"])
@pytest.mark.parametrize("query_len", [1, 8, N - 2])
def test_continues_with_small_blocks(compress: str, kv: str, selection: str, query_len: int) -> None:
    """The last rows follow from caches, in which new blocks end."""
    nsa = drawn({**GIVEN, "compress": compress, "kv": kv, "selection": selection})
    problem = replace(nsa.problem, query_len=query_len)
    earlier, new = dict(nsa.tensors), dict(nsa.tensors)
    for name in (*nsa.inputs.data, "chosen"):
        if name in new:
            earlier[name] = new[name][..., : problem.past, :]
            new[name] = new[name][..., problem.past :, :]
    assert nsa.form.state is not None
    held = nsa.form.state(problem, nsa.params, **earlier)
    y = nsa.form.reference(problem, nsa.params, **new, **held)
    assert close(y, nsa.output()[..., problem.past :, :])
    drawn_state = nsa.form.make_inputs(problem, nsa.params, torch.Generator().manual_seed(0)).state
    assert {name: x.shape for name, x in drawn_state.items()} == {name: x.shape for name, x in held.items()}
    if problem.past > GIVEN["length"]:
        other = {**held, "v_blocks_cache": held["v_blocks_cache"].flip(1)}
        assert not close(nsa.form.reference(problem, nsa.params, **new, **other), y)


def test_all_blocks_or_a_long_window_are_softmax() -> None:
    nsa = drawn({**GIVEN, "blocks": 100, "window": 100})
    softmax = small("softmax", nsa.problem).output(**{name: nsa.tensors[name] for name in "qkv"})
    for branch in (1, 2):
        gates = torch.zeros_like(nsa.tensors["gates"])
        gates[..., branch] = 1
        assert close(nsa.output(gates=gates), softmax)
        assert not close(drawn().output(**{**nsa.inputs.data, "gates": gates}), softmax)


def test_flops_count_the_pairs_by_token() -> None:
    for given in SIZES:
        nsa = drawn({**given, "compress": "mlp"})
        length, step, select = (given[name] for name in ("length", "step", "select"))
        pairs = 0
        for i in range(N):
            pairs += max(0, (i + 1 - length) // step + 1)
            pairs += i % select + 1 + select * min(given["blocks"] - 1, i // select)
            pairs += min(given["window"], i + 1)
        phi = 2 * 2 * 2 * ((N - length) // step + 1) * (length * 4 * 4 + 4 * 4)
        assert nsa.cost().flops == 2 * (2 * 2 * 4 * pairs * 4 + phi)


@pytest.mark.parametrize(("name", "value"), [("length", 5), ("select", 7)])
def test_a_step_divides_both_blocks(name: str, value: int) -> None:
    operator = operators()["nsa"].load()
    problem = Problem(N, 16, 4, causal=True)
    assert outside_definition(operator, problem, resolve(operator, GIVEN), "core") is None
    reason = outside_definition(operator, problem, resolve(operator, {**GIVEN, name: value}), "core")
    assert f"2 does not divide {name} = {value}" in str(reason)


@pytest.mark.parametrize(
    ("selection", "dtype", "elements"),
    [
        ("given", "float32", 1 << 13),
        ("inside", "float64", 1 << 13),
        ("inside", "float32", 1 << 10),
        ("given", "float64", 1 << 10),
    ],
)
def test_flops_are_what_torch_counts_where_tiles_are_computed_again(
    selection: str, dtype: Dtype, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_tiles(monkeypatch, elements)
    sizes = _blocks.cut((2, 4, N, 4), (2, 2, N, 4), 4, 2, 5, 4)
    assert (sizes.chunk == 1) == (elements == 1 << 10)
    for name, given in (("nsa", {**GIVEN, "compress": "mlp"}), ("moba", {"block": 4, "top_k": 3})):
        each = small(name, Problem(N, 16, 4, 2, causal=True, kv_heads=2), **given, selection=selection)
        problem = each.problem.with_dtype(dtype)
        each = replace(each, problem=problem)
        counted = {}
        for mode in MODES:
            tensors = {
                n: t.to(inputs.torch_dtype(problem)) if t.is_floating_point() else t for n, t in each.tensors.items()
            }
            wanted = [tensors[n].requires_grad_(mode == "fwd_bwd") for n in each.inputs.differentiated()]
            with FlopCounter() as counter:
                y = each.form.reference(problem, each.params, **tensors)
                if mode == "fwd_bwd":
                    torch.autograd.grad(y, wanted, torch.ones_like(y))
            counted[mode] = counter.total
        assert counted == {mode: each.cost(mode).reference_flops for mode in MODES}, name
        if selection == "given":  # no products without gradients: more than 3 times is what is computed again
            assert counted["fwd_bwd"] > 3 * counted["fwd"]
