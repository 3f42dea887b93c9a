"""The instruction set that a worker computes with: torch's own kernels and oneDNN's, as of convolutions, alike."""

from __future__ import annotations

from collections.abc import Mapping

ONEDNN = {"avx2": "AVX2", "default": "SSE41"}
"""What oneDNN may use at most, by what ATEN_CPU_CAPABILITY allows torch."""


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What a worker's environment needs besides, so that memory repeats on a processor that has more instructions;
    nothing where torch is not restricted, or the user has restricted oneDNN."""
    allowed = ONEDNN.get(environment.get("ATEN_CPU_CAPABILITY", "").lower())
    return {} if allowed is None or "ONEDNN_MAX_CPU_ISA" in environment else {"ONEDNN_MAX_CPU_ISA": allowed}
