"""The part of docs/statistics.md that compares estimates of a visit's undisturbed time."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.coverage.noise import JITTER, STUDY, episodes
from benchmarks.coverage.record import FILE

Floats = npt.NDArray[np.float64]
Estimator = Callable[[Floats], Floats]
"""Logs of samples, [..., samples] → [...]."""


def quantile(share: float) -> Estimator:
    return lambda logs: np.quantile(logs, share, axis=-1, method="weibull")


def rank(number: int) -> Estimator:
    return lambda logs: np.sort(logs, axis=-1)[..., number - 1]


def mean_of_lowest(share: float) -> Estimator:
    return lambda logs: np.sort(logs, axis=-1)[..., : int(np.ceil(share * logs.shape[-1]))].mean(axis=-1)


ESTIMATORS: dict[str, Estimator] = {
    "minimum": rank(1),
    "third smallest": rank(3),
    "lowest 5 %": quantile(0.05),
    "**lowest decile**": quantile(0.1),
    "lowest quartile": quantile(0.25),
    "mean of the lowest tenth": mean_of_lowest(0.1),
    "median": quantile(0.5),
}


def study(condition: str) -> Floats:
    """Logs of the samples of a gate study's undisturbed variants: [processes, cells, 6 turns, 8 calls]."""
    table = pd.read_csv(STUDY / f"{condition}.csv", dtype={"samples_us": str})
    table = table[table["variant"].isin(["base", "again"])].sort_values(["block", "variant", "cell"])
    samples = np.array([text.split() for text in table["samples_us"]], dtype=np.float64)
    return np.log(samples).reshape(-1, table["cell"].nunique(), 6, 8)


def ratio_sd(levels: Floats) -> float:
    """The standard deviation over processes of the log ratio of two cells; the median over pairs of cells."""
    pairs = [(i, j) for i in range(levels.shape[1]) for j in range(i)]
    return float(np.median([np.std(levels[:, i] - levels[:, j], ddof=1) for i, j in pairs]))


def flat(logs: Floats) -> Floats:
    return logs.reshape(*logs.shape[:-2], -1)


def recorded_row(estimate: Estimator, conditions: Iterable[Floats]) -> list[str]:
    cells = []
    for logs in conditions:
        many, few = estimate(flat(logs)), estimate(flat(logs[..., 3:4]))
        cells += [f"{ratio_sd(many):.1%}", f"{ratio_sd(few):.1%}", f"{np.mean(few - many):+.1%}"]
    return cells


def recorded() -> str:
    """Per estimator, what it makes of the recorded samples."""
    conditions = [study("clean"), study("loaded")]
    head = "| estimate | quiet: sd, 48 samples | sd, 6 | 6 − 48 | loaded: sd, 48 samples | sd, 6 | 6 − 48 |"
    rows = [f"| {name} | {' | '.join(recorded_row(estimate, conditions))} |" for name, estimate in ESTIMATORS.items()]
    burst = [f"{ratio_sd(np.median(logs[:, :, 0], axis=-1)):.1%}" for logs in conditions]
    rows.append(f"| before contract 3: median of 8 calls in a row | {burst[0]} | | | {burst[1]} | | |")
    return "\n".join([head, "|---|" + "--:|" * 6, *rows])


def turns(seq_len: int) -> list[list[Floats]]:
    """Logs of a baseline's samples in the recorded turns: per process those of each of its three members, in turn."""
    table = pd.read_csv(FILE)
    texts = table[(table["operator"] == "softmax") & (table["seq_len"] == seq_len)]["samples_us"]
    return [[np.log(np.array(turn.split(), dtype=np.float64)) for turn in text.split(";")] for text in texts]


def unfair(estimate: Estimator, seq_len: int) -> float:
    """How much slower one member of the recorded baseline is than its three members' samples in one."""
    gaps = []
    for samples in turns(seq_len):
        apart = [float(estimate(np.concatenate(samples[member::3]))) for member in range(3)]
        gaps.append(np.mean(apart) - float(estimate(np.concatenate(samples))))
    return float(np.mean(gaps))


def simulated_row(estimate: Estimator, samples: dict[float, Floats]) -> list[str]:
    """Error of a ratio to a baseline of three members, and what pooling their samples would add; in each share hit."""
    cells = []
    for logs in samples.values():
        series, apart = estimate(flat(logs[:, 3])), estimate(flat(logs[:, :3])).mean(axis=1)
        pooled = estimate(logs[:, :3].reshape(len(logs), -1))
        cells += [f"{np.std(series - apart):.1%}", f"{np.mean(apart - pooled):+.1%}"]
    fast = np.random.default_rng(1).random(logs.shape) < 0.02
    shift = estimate(flat(logs - 0.1 * fast)) - estimate(flat(logs))
    return [*cells, f"{shift.mean():+.1%}"]


def simulated(draws: int, count: int, calls: int) -> str:
    """Per estimator, its error under one-sided interference; count: turns."""
    rng = np.random.default_rng(0)
    samples = {}
    for share in (0.10, 0.25, 0.50):
        slower = episodes(rng, (draws, 1, 1, 8), share, count)[:, 0, 0, :, :, None]
        samples[share] = slower + JITTER * np.abs(rng.standard_normal((*slower.shape[:-1], calls)))
    head = "| estimate | 10 % hit: error of a ratio | pooled | 25 %: error | pooled | 50 %: error | pooled | too fast |"
    rows = [f"| {name} | {' | '.join(simulated_row(estimate, samples))} |" for name, estimate in ESTIMATORS.items()]
    return "\n".join([head, "|---|" + "--:|" * 7, *rows])


def table(draws: int) -> str:
    """Estimators on recorded samples and on simulated interference."""
    pooled = ["| estimate | N = 512 | N = 1024 |", "|---|--:|--:|"]
    pooled += [f"| {name} | {unfair(e, 512):+.1%} | {unfair(e, 1024):+.1%} |" for name, e in ESTIMATORS.items()]
    return "\n\n".join(
        [
            "Recorded, the gate study's processes, 6 turns of 8 calls:",
            recorded(),
            "Recorded, ten operators in turns on an overloaded machine: a member of the baseline − all three pooled:",
            "\n".join(pooled),
            "Simulated, 12 turns of 1 call:",
            simulated(10 * draws, 12, 1),
            "Simulated, 24 turns of 8 calls:",
            simulated(10 * draws, 24, 8),
        ]
    )
