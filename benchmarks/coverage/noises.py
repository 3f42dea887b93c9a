"""The part of docs/statistics.md that lists the noise models."""

from __future__ import annotations

import numpy as np

from benchmarks.coverage.noise import NOISES


def table(draws: int) -> str:
    """A row per noise model: what is simulated, and how large it came out."""
    rows = ["| noise | what is simulated | a visit around the truth | in a ratio within a block |", "|---|---|--:|--:|"]
    for name, noise in NOISES.items():
        deviations = noise.draw(np.random.default_rng(0), (draws, 3, 4, 8))
        total, ratio = np.sqrt((deviations**2).mean()), (deviations[..., 0] - deviations[..., 1]).std()
        rows.append(f"| {name} | {noise.says} | {total:.1%} | {ratio:.1%} |")
    return "\n".join(rows)
