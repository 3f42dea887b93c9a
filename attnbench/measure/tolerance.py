"""How far results may differ that are meant to be the same; no torch. `worker.error_bound` applies it to operators,
`agreement` to any two functions."""

from __future__ import annotations

from attnbench.problem import Dtype

CEILING: dict[Dtype, float] = {"float64": 1e-9, "float32": 1e-3, "float16": 5e-2, "bfloat16": 1e-1}
"""Largest error over the largest value that is ever accepted."""

STORED = 8
"""Products stored in the working dtype between ℓ and a gradient: an attention's six, and the norm or map before it."""
