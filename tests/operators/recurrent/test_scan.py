"""The decayed scan against one token after another, and where it is another function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.operators.recurrent._core import CHUNK
from attnbench.operators.recurrent._scan import decayed_scores, scan, scan_state
from tests.operators.recurrent.token_by_token import recurrence
from tests.operators.small import close

WIDTHS = (1, 5)
"""Of the decay: one number per head, or one per channel of the keys."""

each_width = pytest.mark.parametrize("width", WIDTHS)


def drawn(tokens: int, width: int, qk_heads: int = 2, least: float = -3.0) -> dict[str, Tensor]:
    """q, k, v and log decays from `least` to 0 of 4 heads; K = 5, V = 3."""
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=generator, dtype=torch.float64)

    uniform = torch.rand(2, 4, tokens, width, generator=generator, dtype=torch.float64)
    return {
        "q": normal(qk_heads, tokens, 5), "k": normal(qk_heads, tokens, 5), "v": normal(4, tokens, 3),
        "log_decay": least * uniform,
    }  # fmt: skip


def part(tensors: dict[str, Tensor], tokens: slice) -> dict[str, Tensor]:
    return {name: x[:, :, tokens] for name, x in tensors.items()}


@each_width
@pytest.mark.parametrize("tokens", [1, 2, 3, 35, CHUNK, 3 * CHUNK + 7, 18 * CHUNK])
def test_is_the_recurrence(tokens: int, width: int) -> None:
    tensors = drawn(tokens, width)
    assert close(scan(**tensors, scale=1.0), recurrence(**tensors)[0])
    assert close(scan(**tensors, scale=0.5), recurrence(**tensors)[0] / 2)
    assert not close(scan(**tensors, scale=1.0), recurrence(**tensors, late=True)[0])


@each_width
@pytest.mark.parametrize("tokens", [1, 3, 35, 3 * CHUNK + 7])
def test_goes_on_from_a_state(tokens: int, width: int) -> None:
    tensors = drawn(40 + tokens, width)
    earlier, new = part(tensors, slice(40)), part(tensors, slice(40, None))
    state = scan_state(earlier["k"], earlier["v"], earlier["log_decay"])["state"]
    rows, last = recurrence(**tensors)
    ours = scan(**new, scale=1.0, state=state)
    assert close(ours[0], rows[:, :, 40:])
    assert close(ours[1], last)
    assert not close(scan(**new, scale=1.0, state=2 * state)[0], rows[:, :, 40:])


@each_width
def test_gradients_are_those_of_the_recurrence(width: int) -> None:
    tensors = {name: x.requires_grad_() for name, x in drawn(2 * CHUNK + 5, width, qk_heads=1).items()}

    def gradients(y: Tensor) -> tuple[Tensor, ...]:
        cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
        return torch.autograd.grad(y, list(tensors.values()), cotangent)

    ours, theirs = gradients(scan(**tensors, scale=1.0)), gradients(recurrence(**tensors)[0])
    assert all(map(close, ours, theirs))
    late = gradients(recurrence(**tensors, late=True)[0])
    assert not any(map(close, late, theirs))


@each_width
def test_nothing_overflows_where_almost_all_is_forgotten(width: int) -> None:
    """Within a chunk the decays add up to about e^−5760, whose inverse is infinite in float64 as well; exponents of
    float32 are then right to 5760 · 6e-8.
    """
    tensors = drawn(CHUNK + 9, width, least=-180.0)
    assert close(scan(**tensors, scale=1.0), recurrence(**tensors)[0])
    single = {name: x.float() for name, x in tensors.items()}
    assert torch.allclose(scan(**single, scale=1.0).double(), recurrence(**tensors)[0], rtol=1e-3, atol=1e-3)


@each_width
def test_without_decay_it_is_linear_attention(width: int) -> None:
    """Σ_{j ≤ i} (q_i·k_j) v_j, from all pairs."""
    tensors = drawn(CHUNK + 9, width, qk_heads=4, least=0.0)
    pairs = (tensors["q"] @ tensors["k"].mT).tril() @ tensors["v"]
    assert close(scan(**tensors, scale=1.0), pairs)
    assert not close(scan(**{**tensors, "log_decay": tensors["log_decay"] - 0.1}, scale=1.0), pairs)


@pytest.mark.parametrize("own", [0, 1])
@pytest.mark.parametrize("c", [1, 2, 16])
def test_scores_are_decayed_channel_by_channel(c: int, own: int) -> None:
    """Of two queries and three keys of a token, of which the first query sees its own token, or neither does."""
    generator = torch.Generator().manual_seed(c)
    g = torch.randn(3, c, 1, 4, generator=generator, dtype=torch.float64).abs().requires_grad_()
    rows, columns = (torch.randn(3, c, n, 4, generator=generator, dtype=torch.float64).requires_grad_() for n in (2, 3))
    along = -g.cumsum(dim=-3)
    reached = torch.cat((along, along + 0.5 * g), dim=-2)  # the second one before half of its own decay
    exponent = reached.movedim(-2, 1)[:, :, None, :, None] - along.movedim(-2, 1)[:, :, None, None]
    each = rows.movedim(-2, 1)[:, :, None, :, None] * columns.movedim(-2, 1)[:, None, :, None] * exponent.exp()
    pairs = torch.stack((each[:, 0].sum(-1).tril(own - 1), each[:, 1].sum(-1).tril(-1)), dim=1)
    ours = decayed_scores(rows, columns, reached, along, own)
    assert close(ours, pairs)
    assert c == 1 or not close(decayed_scores(rows, columns, reached, 2 * along, own), pairs)
    cotangent = torch.randn(pairs.shape, generator=generator, dtype=torch.float64)
    tensors = [rows, columns, g]
    by_hand = torch.autograd.grad(pairs, tensors, cotangent, retain_graph=True)
    if c > 1:
        assert all(map(close, torch.autograd.grad(ours, tensors, cotangent), by_hand))
        assert not any(close(2 * x, x) for x in by_hand)


def test_half_precision_is_added_up_in_float32() -> None:
    """At 16 K tokens without decay a sum in bfloat16 stops growing at 256."""
    ones: dict[str, Any] = {name: torch.ones(1, 1, 4096, 1, dtype=torch.bfloat16) for name in ("q", "k", "v")}
    y = scan(**ones, log_decay=torch.zeros(1, 1, 4096, 1, dtype=torch.bfloat16), scale=1.0)
    assert y.dtype == torch.bfloat16
    assert y[0, 0, -1, 0] == 4096
