"""Numbers that stand for what calls returned, so that no output has to be kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from attnbench.measure.worker.correctness import largest_of
from attnbench.measure.worker.prepared_cell import Outputs

PERIOD = 4093
"""Random signs repeat after so many values: a prime, so that no row or head of a tensor is as long."""

CHUNK = PERIOD * 1024
"""Values that are added up at once."""

WORD = 8
"""Bytes that are added up as one whole number."""


def fingerprint(outputs: Outputs) -> float:
    """One number that any wrong value changes: each tensor over its largest value, summed with random signs. Divided by
    the root of the count, so that errors of some relative size move it by about as much.
    """
    total, count = 0.0, 0
    for index, tensor in enumerate(outputs):
        signs = _signs(index, tensor.device)
        sums = [_signed_sum(chunk, signs) for chunk in tensor.detach().reshape(-1).split(CHUNK)]
        total += math.fsum(sums) / (largest_of(tensor) or 1.0)
        count += tensor.numel()
    return abs(total) / math.sqrt(max(count, 1))


def digest(tensor: Tensor) -> int:
    """The sum of a tensor's bytes as whole numbers of 64 bits: another one where any single value is another."""
    values = tensor.detach().reshape(-1)
    if values.stride(0) != 1 or values.storage_offset() * values.element_size() % WORD:
        values = values.clone(memory_format=torch.contiguous_format)
    octets = values.view(torch.uint8)
    words = octets.numel() // WORD * WORD
    return int(octets[:words].view(torch.int64).sum()) + int(octets[words:].sum())


def digests(outputs: Outputs) -> tuple[int, ...]:
    """The digest of each tensor."""
    return tuple(map(digest, outputs))


def moved(before: Sequence[int], after: Sequence[int]) -> int:
    """Which of the outputs with these digests differ, as bits, the output's first."""
    return sum((then != now) << index for index, (then, now) in enumerate(zip(before, after, strict=True)))


def _signed_sum(values: Tensor, signs: Tensor) -> float:
    values = values.double()
    whole = values.numel() // PERIOD * PERIOD
    rest = values[whole:]
    return float((values[:whole].view(-1, PERIOD) @ signs).sum() + rest @ signs[: len(rest)])


@lru_cache(maxsize=64)
def _signs(index: int, device: torch.device) -> Tensor:
    """±1, others for each output of a call."""
    generator = torch.Generator().manual_seed(index)
    own = generator.device  # the default device may be an operator's
    drawn = torch.randint(0, 2, (PERIOD,), generator=generator, dtype=torch.int8, device=own)
    return drawn.to(device, torch.float64).mul_(2).sub_(1)
