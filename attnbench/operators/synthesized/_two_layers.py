"""Two dense layers with a ReLU between them, per head."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def two_layers(tensors: Mapping[str, Tensor], suffix: str) -> Tensor:
    """relu(x W₁ + b₁) W₂ + b₂ for x of [B, H, N, D]: [H, B, N, outputs]."""
    x = tensors["x"]
    b, h, n, d = x.shape
    w1, b1, w2, b2 = (tensors[name + suffix] for name in ("w1", "b1", "w2", "b2"))
    rows = x.transpose(0, 1).reshape(h, b * n, d)
    hidden = torch.baddbmm(b1, rows, w1).relu()  # [H, B·N, D] × [H, D, D]
    return torch.baddbmm(b2, hidden, w2).view(h, b, n, -1)  # [H, B·N, D] × [H, D, outputs]
