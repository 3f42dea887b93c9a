"""What the hardware can do at best, measured: the rate of a large matrix product and of a large copy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from attnbench.problem import Dtype

SIDE = {"cpu": 1024, "cuda": 8192}
"""The side of the square matrices: large enough for the library's best rate."""

COPIED_BYTES = {"cpu": 1 << 28, "cuda": 1 << 32}
"""What one copy reads: beyond every cache."""

REPEATS = 9


def rates(device: str, dtypes: Sequence[Dtype]) -> dict[str, Any]:
    """As environment.json stores them: copy_bytes_per_s, and matmul_flops_per_s by dtype."""
    return {
        "copy_bytes_per_s": copy_bytes_per_s(device),
        "matmul_flops_per_s": {dtype: matmul_flops_per_s(device, dtype) for dtype in dtypes},
    }


def matmul_flops_per_s(device: str, dtype: Dtype) -> float:
    """FLOP/s of one square product on random data (zeros run faster: they draw less power), the best of several."""
    n = SIDE[device]
    a, b = (torch.randn(n, n, device=device).to(getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * n**3 / _best_s(device, lambda: torch.mm(a, b, out=out))


def copy_bytes_per_s(device: str) -> float:
    """Bytes read plus bytes written per second by one copy on the device, the best of several."""
    size = COPIED_BYTES[device]
    if device == "cuda":
        size = min(size, torch.cuda.mem_get_info()[0] // 4)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * size / _best_s(device, lambda: target.copy_(source))


def _best_s(device: str, call: Callable[[], object]) -> float:
    def synchronise() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    seconds = []
    for _ in range(REPEATS):
        synchronise()
        start = time.perf_counter()
        call()
        synchronise()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
