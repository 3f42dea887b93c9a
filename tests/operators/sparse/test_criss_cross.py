"""criss_cross: one softmax over the row and the column of a pixel, against a mask built pair by pair."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.kernels.flex import patterns, windows
from attnbench.operators.sparse import criss_cross
from attnbench.problem import Problem
from attnbench.registry import operators, resolve
from tests.operators.small import Small, all_close, close
from tests.operators.sparse.maps import Pixel, Sees, case_of, masked, sides_of, visible
from tests.operators.sparse.test_cuda_paths import by_tiles, tile_sets, tiles_of_pairs

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

sizes = given(
    side=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    key_dim=st.integers(1, 5),
    kv_heads=st.sampled_from([1, 2, 4]),
)
crossed: Sees = lambda i, j: i[0] == j[0] or i[1] == j[1]  # noqa: E731
MISTAKES: dict[str, Sees] = {
    "without itself": lambda i, j: crossed(i, j) and i != j,
    "row alone": lambda i, j: i[0] == j[0],
    "column alone": lambda i, j: i[1] == j[1],
    "all": lambda i, j: True,
}


def dense(case: Small, sees: Sees = crossed, scale: float = 1.0) -> Tensor:
    return masked(*(case.tensors[name] for name in "qkv"), visible(sides_of(case), sees), scale=scale)


def counted_twice(case: Small) -> Tensor:
    """The pixel itself in its row and in its column: its weight is doubled, a log 2 on its score."""
    itself = torch.eye(case.problem.seq_len, dtype=torch.float64) * torch.tensor(2.0, dtype=torch.float64).log()
    allowed = visible(sides_of(case), crossed)
    return masked(*(case.tensors[name] for name in "qkv"), allowed, bias=itself, scale=1.0)


def dense_layer(case: Small, times: int = 2, residual: float = 1.0, own: bool = False) -> Tensor:
    """own: q and k of the first x in every recurrence."""
    x, start = case.tensors["x"], case.tensors["x"]
    heads = {"q": case.problem.heads, "k": case.problem.kv_heads, "v": case.problem.kv_heads}
    for _ in range(times):
        q, k, v = (
            ((start if own and name != "v" else x) @ case.tensors[f"w_{name}"]).unflatten(-1, (n, -1)).transpose(1, 2)
            for name, n in heads.items()
        )
        y = masked(q, k, v, visible(sides_of(case), crossed), scale=1.0)
        x = case.tensors["gamma"] * y.transpose(1, 2).flatten(2) + residual * x
    return x


@sizes
@settings(max_examples=40, deadline=None)
def test_equals_the_masked_form(side: Pixel, key_dim: int, kv_heads: int) -> None:
    case = case_of("criss_cross", side, key_dim=key_dim, kv_heads=kv_heads)
    assert close(case.output(), dense(case))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_other_pixels_are_noticed(mistake: str) -> None:
    case = case_of("criss_cross", (5, 7), key_dim=3)
    assert not close(case.output(), dense(case, MISTAKES[mistake]))


def test_a_scale_and_the_pixel_itself_twice_are_noticed() -> None:
    case = case_of("criss_cross", (5, 7), key_dim=3)
    assert not close(case.output(), dense(case, scale=3**-0.5))
    assert not close(case.output(), counted_twice(case))


def test_gradients_equal_the_masked_form() -> None:
    case = case_of("criss_cross", (5, 7), key_dim=3)
    expected = case.gradients(dense)
    assert all_close(case.gradients(), expected)
    assert not all_close(case.gradients(counted_twice), expected)


def test_large_scores_do_not_overflow() -> None:
    """Of a row or a column alone: exponentials are relative to the largest of both."""
    case = case_of("criss_cross", (5, 7), key_dim=3)
    for name in ("q", "k"):
        case.inputs.data[name].mul_(50)
    case.inputs.data["k"][:, :, :7].mul_(10)
    assert case.output().isfinite().all()
    assert close(case.output(), dense(case))
    assert not torch.einsum("bhid,bhid->bhi", case.tensors["q"][:, :2], case.tensors["k"]).exp().isfinite().all()


def test_the_cuda_path_is_the_same_map() -> None:
    """FlexAttention, eager: rows, and columns without the pixel itself, merged. Keys of 3 channels get zeros."""
    case = case_of("criss_cross", (5, 7), head_dim=16, key_dim=3)
    with torch.inference_mode():
        assert close(case.impl("cuda"), case.output())
        assert not close(case.impl("cuda"), counted_twice(case))


@pytest.fixture
def listed_tiles_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "_call", lambda q: by_tiles)


@pytest.mark.usefixtures("listed_tiles_alone")
@pytest.mark.parametrize("side", [(5, 7), (1, 4), (4, 1), (1, 1), (130, 3)])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_the_listed_tiles_alone_are_the_same_map(side: Pixel, kv_heads: int) -> None:
    """With gradients, which eager FlexAttention does not have."""
    for key_dim in (3, 17):
        case = case_of("criss_cross", side, head_dim=16, key_dim=key_dim, kv_heads=kv_heads)
        expected = case.gradients()
        assert close(case.impl("cuda"), case.output())
        assert all_close(case.gradients(lambda c: c.impl("cuda")), expected)
        if side == (5, 7):
            assert not all_close(case.gradients(counted_twice), expected)


@pytest.mark.parametrize(("length", "group"), [(5, 1), (5, 4), (130, 1), (200, 3), (600, 1)])
def test_the_block_mask_leaves_no_pair_out(length: int, group: int) -> None:
    mask: Any = patterns.other_members(length, group, torch.device("cpu"))
    some, full = tile_sets(mask)
    any_pair, all_pairs = tiles_of_pairs(mask, 1)
    assert not (any_pair & ~(some | full)).any(), "a tile with pairs is skipped"
    assert not (full & ~all_pairs).any(), "a tile taken whole has forbidden pairs"
    assert length < 600 or full.any()
    assert (~all_pairs).any(), "the check sees the pixel itself"


@pytest.mark.parametrize("recurrence", [1, 2, 3])
def test_the_layer_repeats_with_the_same_weights(recurrence: int) -> None:
    case = case_of("criss_cross", (5, 7), "layer", recurrence=recurrence)
    assert close(case.output(), dense_layer(case, recurrence))
    assert not close(case.output(), dense_layer(case, recurrence % 3 + 1))
    assert not close(case.output(), dense_layer(case, recurrence, residual=0.0))
    assert recurrence == 1 or not close(case.output(), dense_layer(case, recurrence, own=True))


@pytest.mark.usefixtures("listed_tiles_alone")
def test_the_cuda_path_of_the_layer() -> None:
    grown = case_of("criss_cross", (4, 3), "layer", head_dim=16)
    assert close(grown.impl("cuda"), grown.output())
    assert not close(grown.impl("cuda"), grown.tensors["x"])


def test_gradients_of_the_layer() -> None:
    case = case_of("criss_cross", (3, 4), "layer")
    expected = case.gradients(dense_layer)
    assert all_close(case.gradients(), expected)
    assert not all_close(case.gradients(lambda c: dense_layer(c, own=True)), expected)


def test_a_gamma_of_zero_returns_x() -> None:
    case = case_of("criss_cross", (3, 4), "layer")
    assert close(case.output(gamma=torch.zeros(1, dtype=torch.float64)), case.tensors["x"])
    assert not close(case.output(), case.tensors["x"])


def test_two_recurrences_reach_every_pixel() -> None:
    """The paper's point: a pixel sees all others by way of one that both cross, after one recurrence not."""
    for recurrence, reached in ((1, 5 + 7 - 1), (2, 35)):
        case = case_of("criss_cross", (5, 7), "layer", recurrence=recurrence)
        changed = case.tensors["x"].clone()
        changed[:, 17] += 1
        moved = (case.output(x=changed) - case.output()).abs().amax(dim=(0, 2)) > 1e-12
        assert int(moved.sum()) == reached


def test_a_map_of_one_row_or_column_is_softmax() -> None:
    softmax = operators()["softmax"].load().forms["core"]
    for side, same in (((1, 9), True), ((9, 1), True), ((3, 3), False)):
        case = case_of("criss_cross", side, kv_heads=4, key_dim=4)
        q, k, v = (case.tensors[name] for name in "qkv")
        assert close(case.output(), softmax.reference(case.problem, {}, q * 2, k, v)) is same  # √D is 2


@sizes
@settings(max_examples=30, deadline=None)
def test_flops_count_the_pairs(side: Pixel, key_dim: int, kv_heads: int) -> None:
    case = case_of("criss_cross", side, key_dim=key_dim, kv_heads=kv_heads)
    pairs, head_dim = int(visible(side, crossed).sum()), 4
    expected = 2 * 2 * 4 * pairs * (key_dim + head_dim)  # two samples, four heads
    assert case.cost().flops == expected
    assert case.cost("fwd_bwd").flops == 3 * expected
    assert case.cost().reference_flops == expected * (sum(side)) // (sum(side) - 1)
    other = case.form.cost(Problem.image(side[0] + 1, side[1], 16, 4, batch=2), case.params, "fwd")
    assert other.flops != expected, "the count sees the height"


def test_keys_have_an_eighth_of_the_channels() -> None:
    """As the paper with one head; fewer than eight channels leave one."""
    for head_dim, key_dim in ((64, 8), (4, 1)):
        case = case_of("criss_cross", (2, 3), heads=1, kv_heads=1, head_dim=head_dim)
        assert case.tensors["q"].shape[-1] == case.tensors["k"].shape[-1] == key_dim
        assert case.tensors["v"].shape[-1] == head_dim
    logits = case_of("criss_cross", (20, 20), heads=1, kv_heads=1, head_dim=64).tensors
    assert 0.8 < (logits["q"][0, 0] @ logits["k"][0, 0].t()).var() < 1.25


def test_reasons() -> None:
    impl = criss_cross.CORE.impls["cuda"]
    for changes, words in (({}, None), ({"channels": 8}, "at least 16"), ({"dtype": "float64"}, "float64")):
        problem = Problem.image(9, 9, **{"channels": 32, **changes})
        reason = impl.why_not(problem, {"key_dim": "d/8", "recurrence": 2}, "cuda")
        assert reason is None if words is None else words in (reason or "")
    for wrong in ({"key_dim": 0}, {"recurrence": 4}):
        with pytest.raises(ValueError, match="allowed"):
            resolve(operators()["criss_cross"].load(), wrong)
