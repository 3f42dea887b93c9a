"""What the hardware can do at best, measured: the rate of a large matrix product and of a large copy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from attnbench.measure.device import Device
from attnbench.problem import Dtype

REPEATS = 9


def rates(device: Device, dtypes: Sequence[Dtype]) -> dict[str, Any]:
    """As environment.json stores them: copy_bytes_per_s, and matmul_flops_per_s by dtype."""
    return {
        "copy_bytes_per_s": copy_bytes_per_s(device),
        "matmul_flops_per_s": {dtype: matmul_flops_per_s(device, dtype) for dtype in dtypes},
    }


def matmul_flops_per_s(device: Device, dtype: Dtype) -> float:
    """FLOP/s of one square product on random data (zeros run faster: they draw less power), the best of several."""
    n = device.matmul_side
    a, b = (torch.randn(n, n, device=device.type).to(getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * n**3 / _best_s(device, lambda: torch.mm(a, b, out=out))


def copy_bytes_per_s(device: Device) -> float:
    """Bytes read plus bytes written per second by one copy on the device, the best of several."""
    size = device.copied_bytes()
    source = torch.zeros(size, dtype=torch.uint8, device=device.type)
    target = torch.zeros_like(source)
    return 2 * size / _best_s(device, lambda: target.copy_(source))


def _best_s(device: Device, call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(REPEATS):
        device.synchronise()
        start = time.perf_counter()
        call()
        device.synchronise()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
