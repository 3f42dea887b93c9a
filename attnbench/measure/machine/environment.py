"""The machine and the software of a run: environment.json. No host name, no path, no user."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import attnbench
from attnbench.measure.device import device_of
from attnbench.measure.machine import allocator, host

PACKAGES = ("torch", "triton", "numpy", "pandas", "scipy", "nvidia-ml-py")


def collect(device: str) -> dict[str, Any]:
    """environment.json: everything that a number may depend on.

    Args:
        device: the name of the kind that is measured on; the device is started.
    """
    return {
        **software(),
        "device": device,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **host.facts(),
        **device_of(device).facts(),
    }


def software() -> dict[str, Any]:
    """What is installed, and how torch is set. Imports torch."""
    import torch

    return {
        "attnbench": attnbench.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "torch": torch.__version__,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "allocator": allocator.described(),
    }


def commit() -> str | None:
    """The git commit of attnbench's own checkout, "+" after it where files differ; None for an installed package."""
    root = Path(attnbench.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    head = host.output_of("git", "-C", str(root), "rev-parse", "HEAD")
    changed = host.output_of("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no", "--", "attnbench")
    return head + ("+" if changed else "") if head else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
