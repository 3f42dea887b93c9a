"""Neighborhood attention against dense attention under a mask built query by query, on sequences and on maps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench import tiles
from attnbench.kernels.flex import neighborhoods, windows
from attnbench.problem import Problem
from attnbench.registry import operators
from attnbench.tiles import Axis, axis, cut
from tests.operators.small import Small, all_close, close, small
from tests.operators.sparse.masked import attention
from tests.operators.sparse.test_cuda_paths import by_tiles, tile_sets, tiles_of_pairs

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

Keys = Callable[[int, int, int, int], Iterable[int]]
"""What a query sees along an axis: (query, length, kernel, dilation) → keys."""

SEQUENCES = [(7, 7, 1), (8, 7, 1), (35, 5, 3), (101, 3, 2), (90, 15, 1), (133, 7, 1), (131, 3, 4)]
"""Tokens, kernel, dilation; the last two are cut into several tiles."""

MAPS = [((3, 5), 3, 1), ((9, 11), 3, 2), ((7, 10), 5, 1), ((13, 12), 3, 3), ((21, 22), 3, 1), ((29, 13), 3, 2)]


def nearest(i: int, length: int, kernel: int, dilation: int) -> Iterable[int]:
    """Of all runs of `kernel` members of i's class, the one whose middle is nearest to i."""
    members = list(range(i % dilation, length, dilation))
    runs = [members[s : s + kernel] for s in range(len(members) - kernel + 1)]
    return min(runs, key=lambda run: abs(run[kernel // 2] - i))


def natten_start(i: int, length: int, kernel: int, dilation: int) -> int:
    """The first key as NATTEN's kernels published it (get_window_start of versions before 0.20)."""
    reach = kernel // 2
    if dilation <= 1:
        return max(i - reach, 0) + (i + reach >= length) * (length - i - reach - 1)
    if i - reach * dilation < 0:
        return i % dilation
    if i + reach * dilation >= length:
        whole = length // dilation * dilation
        rest = length - whole
        if i % dilation < rest:
            return length - rest + i % dilation - 2 * reach * dilation
        return whole + i % dilation - kernel * dilation
    return i - reach * dilation


def as_natten(i: int, length: int, kernel: int, dilation: int) -> Iterable[int]:
    return range(start := natten_start(i, length, kernel, dilation), start + kernel * dilation, dilation)


def as_cut(i: int, length: int, kernel: int, dilation: int) -> Iterable[int]:
    """The trap: a window that a border cuts, as `local` has it."""
    first = i - kernel // 2 * dilation
    return [j for j in range(first, first + kernel * dilation, dilation) if 0 <= j < length]


def as_even(i: int, length: int, kernel: int, dilation: int) -> Iterable[int]:
    """The trap: one key too many before the query's window."""
    keys = [*nearest(i, length, kernel, dilation)]
    return [*keys, keys[0] - dilation] if keys[0] >= dilation else keys


def as_whole(i: int, length: int, kernel: int, dilation: int) -> Iterable[int]:
    """The trap: the window is shifted within the axis, not within a class of it."""
    start = min(max(i - kernel // 2 * dilation, 0), length - (kernel - 1) * dilation - 1)
    return range(start, start + kernel * dilation, dilation)


def sequence(tokens: int, kernel: int, dilation: int, kv_heads: int = 4, scope: Any = "core", **params: Any) -> Small:
    problem = Problem(tokens, 32, 4, batch=2, kv_heads=kv_heads)
    return small("neighborhood", problem, scope, kernel=kernel, dilation=dilation, **params)


def pixels(sides: tuple[int, int], kernel: int, dilation: int, kv_heads: int = 4, **params: Any) -> Small:
    problem = Problem.image(*sides, 32, 4, batch=2, kv_heads=kv_heads)
    return small("neighborhood", problem, params.pop("scope", "core"), kernel=kernel, dilation=dilation, **params)


CASES = [
    *(pytest.param(sequence, *case, id=f"{case}") for case in SEQUENCES),
    *(pytest.param(pixels, *case, id=f"{case}") for case in MAPS),
]


def along(length: int, params: Any, keys: Keys) -> Tensor:
    """[length, length], bool: what each query sees along one axis."""
    seen = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        seen[i, [*keys(i, length, params["kernel"], params["dilation"])]] = True
    return seen


def visible(problem: Problem, params: Any, keys: Keys = nearest) -> Tensor:
    """[N, N], bool: along both axes."""
    columns = along(problem.width or problem.seq_len, params, keys)
    if problem.height is None:
        return columns
    rows = along(problem.height, params, keys)
    return (rows[:, None, :, None] & columns[None, :, None, :]).reshape(problem.seq_len, -1)


def dense(case: Small, keys: Keys = nearest) -> Tensor:
    group = case.problem.group
    k, v = (case.inputs.data[name].repeat_interleave(group, 1) for name in ("k", "v"))
    return attention(case.inputs.data["q"], k, v, visible(case.problem, case.params, keys))


@pytest.mark.parametrize(("shape", "size", "kernel", "dilation"), CASES)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_equals_dense_attention_to_the_nearest_run(
    shape: Callable[..., Small], size: Any, kernel: int, dilation: int, kv_heads: int
) -> None:
    case = shape(size, kernel, dilation, kv_heads)
    assert close(case.output(), dense(case))
    assert all_close(case.gradients(), case.gradients(dense))


@pytest.mark.parametrize(("shape", "size", "kernel", "dilation"), CASES)
def test_windows_that_others_have_are_noticed(
    shape: Callable[..., Small], size: Any, kernel: int, dilation: int
) -> None:
    case = shape(size, kernel, dilation)
    every_key = case.problem.seq_len == kernel
    assert not close(case.output(), dense(case, as_cut))
    assert every_key or not close(case.output(), dense(case, as_even))
    assert close(case.output(), dense(case, as_whole)) is all(side % dilation == 0 for side in sides_of(case.problem))


def sides_of(problem: Problem) -> tuple[int, ...]:
    return (problem.seq_len,) if problem.height is None else (problem.height, problem.width or 0)


def test_windows_are_those_of_natten() -> None:
    for length, kernel, dilation in itertools.product(range(1, 24), (1, 3, 5, 7), (1, 2, 3)):
        if kernel * dilation <= length:
            for i in range(length):
                assert [*as_natten(i, length, kernel, dilation)] == nearest(i, length, kernel, dilation)


def test_every_query_sees_as_many_keys() -> None:
    for case in (pixels((9, 11), 3, 2), sequence(35, 5, 3)):
        seen = visible(case.problem, case.params).sum(dim=1)
        assert (seen == case.params["kernel"] ** len(sides_of(case.problem))).all()
        assert not (visible(case.problem, case.params, as_cut).sum(dim=1) == seen).all()


def test_a_kernel_as_long_as_each_side_is_softmax() -> None:
    for case in (sequence(35, 35, 1), pixels((7, 7), 7, 1)):
        softmax = small("softmax", case.problem).form.reference(case.problem, {}, **case.tensors)
        assert close(case.output(), softmax)
    longer = sequence(37, 35, 1)
    assert not close(
        longer.output(), small("softmax", longer.problem).form.reference(longer.problem, {}, **longer.tensors)
    )


def test_away_from_the_borders_a_sequence_is_local() -> None:
    case = sequence(133, 7, 1)
    local = small("local", case.problem, window=3)
    theirs = local.form.reference(case.problem, local.params, **case.tensors)
    inner = slice(3, -3)
    assert close(case.output()[..., inner, :], theirs[..., inner, :])
    for border in (slice(2, -3), slice(3, -2)):
        assert not close(case.output()[..., border, :], theirs[..., border, :])


def test_one_key_is_the_token_itself() -> None:
    for case in (sequence(5, 1, 2), sequence(1, 1, 1), pixels((1, 4), 1, 1)):
        assert close(case.output(), case.inputs.data["v"])
    assert not close(sequence(5, 3, 1).output(), sequence(5, 3, 1).inputs.data["v"])


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(("size", "kernel", "dilation"), [(133, 7, 1), (35, 5, 3), ((9, 11), 3, 2), ((21, 22), 3, 1)])
def test_the_layer_adds_a_bias_by_offset(size: Any, kernel: int, dilation: int, kv_heads: int) -> None:
    build = sequence if isinstance(size, int) else pixels
    case = build(size, kernel, dilation, kv_heads, scope="layer")
    assert case.inputs.parameters["bias"].shape == (4, *(2 * kernel - 1,) * (1 if isinstance(size, int) else 2))
    assert close(case.output(), with_table(case, 1))
    assert all_close(case.gradients(), case.gradients(lambda grown: with_table(grown, 1)))
    assert not close(case.output(), with_table(case, -1))
    without = build(size, kernel, dilation, kv_heads, scope="layer", bias="none")
    assert "bias" not in without.inputs.parameters
    zero = {"bias": torch.zeros_like(case.inputs.parameters["bias"])}
    given = {**without.tensors, **zero}
    assert close(case.form.reference(case.problem, case.params, **given), without.output())
    assert not close(case.form.reference(case.problem, case.params, **case.tensors), without.output())


def with_table(case: Small, sign: int) -> Tensor:
    """The layer, pair by pair. sign: −1 for the trap, offsets of the query from the key."""
    problem, kernel, dilation = case.problem, case.params["kernel"], case.params["dilation"]
    tensors = case.tensors
    split = {name: tensors["x"] @ tensors[f"w_{name}"] for name in "qkv"}
    q, k, v = (x.unflatten(-1, (-1, problem.head_dim)).transpose(1, 2) for x in split.values())
    k, v = (x.repeat_interleave(problem.group, 1) for x in (k, v))
    width = problem.width or problem.seq_len
    token = torch.arange(problem.seq_len)
    coordinates = (token,) if problem.height is None else (token // width, token % width)
    offsets = [
        (sign * torch.div(x - x[:, None], dilation, rounding_mode="trunc") + kernel - 1).clamp(0, 2 * kernel - 2)
        for x in coordinates
    ]
    logits = q @ k.transpose(-2, -1) / problem.head_dim**0.5 + tensors["bias"][(slice(None), *offsets)]
    weights: Tensor = logits.masked_fill(~visible(problem, case.params), float("-inf")).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2) @ tensors["w_o"]


def test_cost_counts_the_pairs_of_windows() -> None:
    for case in (sequence(133, 7, 1, 2), pixels((21, 22), 3, 1), pixels((9, 11), 3, 2)):
        pairs = int(visible(case.problem, case.params).sum())
        assert case.cost().flops == 2 * 2 * 2 * 4 * pairs * 8  # two products, batch 2, 4 heads of 8
        assert case.cost().reference_flops > case.cost().flops


@pytest.mark.parametrize("overhead", [12, 170])
def test_tiles_cover_every_window_and_little_more(overhead: int) -> None:
    for length, kernel, dilation in itertools.product(range(1, 1000, 9), (1, 3, 7, 31), (1, 2)):
        if kernel * dilation <= length:
            cut = axis(length, kernel, dilation, overhead)
            assert covers(cut), cut
            assert cut.pairs <= 2 * length * (kernel + overhead), cut
    assert not covers(replace(axis(1000, 31, 1, 12), halo=14))
    assert not covers(Axis(50, 7, 1, 8, 7, 3)), "its last tile has two queries, whose window begins before their halo"


def covers(cut: Axis) -> bool:
    """Whether the keys of each tile hold the windows of its queries, in the longest and in the shortest class."""
    for members in {cut.length // cut.dilation, -(-cut.length // cut.dilation)}:
        for i in range(cut.tiles * cut.size):
            start = min(max(i - cut.kernel // 2, 0), members - cut.kernel)
            first = i // cut.size * cut.size - cut.halo
            if not first <= start <= start + cut.kernel <= first + cut.keys:
                return False
    return True


@pytest.mark.parametrize(
    ("problem", "params", "words"),
    [
        (Problem(35, 8), {"kernel": 6}, "kernel 6 has no middle"),
        (Problem(35, 8), {"kernel": 37}, "needs 37 tokens a side; here are 35"),
        (Problem(35, 8), {"kernel": 9, "dilation": 4}, "needs 36 tokens a side; here are 35"),
        (Problem(35, 8), {"kernel": 7, "dilation": 5}, None),
        (Problem.image(9, 6, 8), {"kernel": 7}, "needs 7 tokens a side; here are 6"),
        (Problem.image(6, 9, 8), {"kernel": 3, "dilation": 3}, "needs 9 tokens a side; here are 6"),
        (Problem.image(9, 9, 8), {"kernel": 3, "dilation": 3}, None),
    ],
)
def test_reasons(problem: Problem, params: dict[str, int], words: str | None) -> None:
    reason = operators()["neighborhood"].load().why_not(problem, {"dilation": 1, **params}, "core")
    assert reason is None if words is None else words in str(reason)


FLEX = [
    *(pytest.param(sequence, *case, id=f"{case}") for case in ((301, 41, 1), (35, 5, 3), (290, 7, 2))),
    *(pytest.param(pixels, *case, id=f"{case}") for case in (((9, 11), 3, 2), ((12, 13), 3, 1), ((16, 20), 5, 1))),
]


@pytest.mark.parametrize(("shape", "size", "kernel", "dilation"), FLEX)
def test_flex_attention_is_the_same_map(
    shape: Callable[..., Small], size: Any, kernel: int, dilation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = shape(size, kernel, dilation, 2)
    layer = shape(size, kernel, dilation, scope="layer")
    monkeypatch.setattr(windows, "_call", lambda q: by_tiles)
    for case in (core, layer):
        assert close(case.impl("cuda:flex"), case.output())
        assert all_close(case.gradients(lambda grown: grown.impl("cuda:flex")), case.gradients())
    zero = {"bias": torch.zeros_like(layer.inputs.parameters["bias"])}
    assert not close(layer.impl("cuda:flex"), layer.output(**zero))


def test_the_library_itself_takes_the_mask_and_the_bias() -> None:
    layer = pixels((9, 11), 3, 2, 2, scope="layer")
    with torch.inference_mode():
        assert close(layer.impl("cuda:flex"), layer.output())


@pytest.mark.parametrize(("shape", "size", "kernel", "dilation"), FLEX)
def test_block_masks_leave_no_pair_out(shape: Callable[..., Small], size: Any, kernel: int, dilation: int) -> None:
    problem = shape(size, kernel, dilation).problem
    axes = neighborhoods.cut(problem.height or 1, problem.width or problem.seq_len, kernel, dilation)
    listed = neighborhoods.neighborhood_mask(axes, torch.device("cpu"))
    some, full = tile_sets(listed)
    any_pair, all_pairs = tiles_of_pairs(listed, 1)
    assert not (any_pair & ~(some | full)).any(), "a tile with pairs is skipped"
    assert not (full & ~all_pairs).any(), "a tile taken whole has forbidden pairs"
    assert int(((some | full) & ~any_pair).sum()) == 0, "tiles without a pair are computed"


def test_long_windows_have_full_tiles() -> None:
    some, full = tile_sets(neighborhoods.neighborhood_mask(neighborhoods.cut(1, 1024, 513, 1), torch.device("cpu")))
    assert full.any()
    assert not (some & full).any()


@pytest.mark.parametrize("pairs", [1, 900, 5000])
def test_pieces_are_put_together_in_order(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some tiles of a head, or some heads, at a time, with the biases of their own."""
    for case in (pixels((21, 22), 3, 1, 2, scope="layer"), sequence(133, 7, 1, 2, scope="layer")):
        together, gradients = case.output(), case.gradients()
        with monkeypatch.context() as patch:
            patch.setattr(tiles, "PIECE_PAIRS", pairs)
            patch.setattr(tiles, "MOST_PIECES", 10**9)
            assert close(case.output(), together)
            assert all_close(case.gradients(), gradients)


def test_maps_and_lines_are_cut_in_two_ways() -> None:
    assert cut(1, 2048, 7, 1)[0] == Axis(1, 1, 1, 1, 1, 0)
    assert cut(45, 45, 7, 1)[0] == cut(45, 45, 7, 1)[1]
