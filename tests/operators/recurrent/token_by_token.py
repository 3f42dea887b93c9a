"""One token after another, as the papers write it: what the chunked references of this family are compared with."""

from __future__ import annotations

import torch
from torch import Tensor


def recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    b: Tensor | None = None,
    a: Tensor | None = None,
    state: Tensor | None = None,
    late: bool = False,
) -> tuple[Tensor, Tensor]:
    """S_i = (Diag(e^g) + b aᵀ) S_{i−1} + k vᵀ, y_i = S_iᵀ q_i; every tensor [B, H, N, X], log_decay of 1 or K numbers.

    late: the token that comes in decays as well, which is another function.
    """
    k, q = (x.repeat_interleave(v.shape[1] // x.shape[1], dim=1) for x in (k, q))
    if state is None:
        state = torch.zeros(*v.shape[:2], k.shape[-1], v.shape[-1], dtype=v.dtype)
    outputs = []
    for i in range(v.shape[2]):
        keep = log_decay[:, :, i, :, None].exp()
        erased = 0.0
        if a is not None and b is not None:
            erased = b[:, :, i, :, None] * (a[:, :, i, :, None] * state).sum(dim=-2, keepdim=True)
        new = k[:, :, i, :, None] * v[:, :, i, None, :]
        state = keep * (state + new) if late else keep * state + erased + new
        outputs.append((q[:, :, i, :, None] * state).sum(dim=-2))
    return torch.stack(outputs, dim=2), state
