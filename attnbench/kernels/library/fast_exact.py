"""The exact kernels that are known to be faster on a GPU than what torch's SDPA takes by itself, its flash kernel."""

from __future__ import annotations

import torch

from attnbench.kernels.library.flash_attention import PACKAGES


def fast_exact(capability: int) -> dict[str, str]:
    """By impl of softmax, why it is not there, with what installs it; empty where it is.

    Args:
        capability: the GPU's major compute capability.
    """
    if capability < 9:  # FlashAttention-2 was written for Ampere
        return {}
    cudnn = "" if torch.backends.cudnn.is_available() else "this torch has no cuDNN: pip install torch"
    packages = {name: PACKAGES[name] for name in ("fa3", "fa4")}
    there = {name: each.absent() or "" for name, each in packages.items() if capability in each.head_dims}
    return {f"cuda:{name}": reason for name, reason in {**there, "cudnn": cudnn}.items()}
