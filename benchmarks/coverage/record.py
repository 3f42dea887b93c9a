"""Records samples of turns: ten operators in one process, several processes, into results/reference/turns/samples.csv.

    python -m benchmarks.coverage.record [--processes 6] [--sizes 512 1024] [--turns 16]

Every process measures a block per size: in each turn every member once, in random order, softmax three times. A sample
is up to 8 calls or 10 ms, after two untimed calls where one lasts less. A row per member and process has the samples of
its turns, in µs, turns apart by `;`.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

FILE = Path(__file__).resolve().parents[2] / "results" / "reference" / "turns" / "samples.csv"
MEMBERS = (
    "softmax", "performer", "rfa", "linformer", "reformer", "compressed", "longformer", "big_bird", "fnet", "efficient"
)  # fmt: skip
HEAD = "process,seq_len,operator,samples_us\n"


def calls(seq_len: int) -> dict[str, Callable[[], object]]:
    """A forward call of each member at a size, on one thread."""
    import torch

    from attnbench.problem import Problem
    from attnbench.registry import operators, resolve

    problem, generator = Problem(seq_len, 256, 8), torch.Generator().manual_seed(0)
    members: dict[str, Callable[[], object]] = {}
    for name in MEMBERS:
        operator = operators()[name].load()
        params, form = resolve(operator, {}), operator.forms["core"]
        inputs = form.make_inputs(problem, params, generator)
        tensors = {**inputs.data, **inputs.parameters, **inputs.choices}
        members[name] = partial(form.reference, problem, params, **tensors)
    return members


def sample(call: Callable[[], object], short: bool) -> list[float]:
    """The seconds of one turn's calls."""
    for _ in range(2 if short else 0):
        call()
    seconds: list[float] = []
    while not seconds or (sum(seconds) < 0.01 and len(seconds) < 8):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return seconds


def block(process: int, seq_len: int, turns: int) -> list[str]:
    """The rows of one block."""
    members = calls(seq_len)
    for call in members.values():
        call()
    short = {name: min(sample(call, False)) < 0.01 for name, call in members.items()}
    recorded: dict[str, list[str]] = {name: [] for name in members}
    for _ in range(turns):
        order = [*members, "softmax", "softmax"]
        random.shuffle(order)
        for name in order:
            seconds = sample(members[name], short[name])
            recorded[name].append(" ".join(f"{1e6 * s:.5g}" for s in seconds))
    return [f"{process},{seq_len},{name},{';'.join(texts)}\n" for name, texts in recorded.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--turns", type=int, default=16)
    parser.add_argument("--process", type=int, help="measure in this process, and print the rows")
    given = parser.parse_args()
    if given.process is not None:
        import torch

        with torch.inference_mode():
            for seq_len in given.sizes:
                print("".join(block(given.process, seq_len, given.turns)), end="")
        return
    FILE.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["--turns", str(given.turns), "--sizes", *map(str, given.sizes)]
    rows = [HEAD]
    for process in range(given.processes):
        command = [sys.executable, "-m", "benchmarks.coverage.record", "--process", str(process), *arguments]
        rows.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    FILE.write_text("".join(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
