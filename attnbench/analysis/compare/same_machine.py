"""What must be the same for numbers to belong together: names of environment.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HARDWARE = ("device", "system", "machine", "cpu", "cores", "gpu_name")

SOFTWARE = ("threads", "instruction_set", "torch")

MACHINE = (*HARDWARE, *SOFTWARE)
"""Between two runs, and for stored noise: what time and memory depend on whatever the code is."""

ONE_RUN = (*MACHINE, "python", "allocator", "cuda", "cudnn", "tf32")
"""Within one run, with the digests of `measured_code`: nothing may be another after a resume."""


def differing(names: Sequence[str], before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, before, after) of those that two environments do not agree in; a missing one is None."""
    pairs = [(name, before.get(name), after.get(name)) for name in names]
    return [(name, a, b) for name, a, b in pairs if a != b]
