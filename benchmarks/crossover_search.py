"""The time that a crossover search saves against a grid of factor √2 over the same range, at the same precision.

    python benchmarks/crossover_search.py [OPERATOR] [--low 64] [--high 2048] [--precision 15%]

Both are measured on the CPU into temporary folders, with the same measure settings. The grid has as many rounds as the
search took; its time counts only up to the round in which its interval reaches the precision, or all rounds where it
never does. The times compared are those inside the operators' calls, summed over the visits, checks included.

Exits 1 where the search takes more than a quarter of the grid's time, where the two crossings contradict each other,
and where nothing is shown: no crossing up to high / 4, or a search that ended without the precision.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from attnbench.analysis.crossover import Crossing
from attnbench.analysis.crossover_search import LEAST_ROUNDS, centre, half_width
from attnbench.analysis.run import Run, read_run
from attnbench.analysis.summary import summarise
from attnbench.units import fraction

SHARE = 0.25


@dataclass(frozen=True)
class Spent:
    """The cost of a crossing.

    Attributes:
        crossing: None where there is none.
        half: half the interval's relative width; infinite where it is open or there is no crossing.
        rounds, visits: how many it took.
        seconds: inside the operators' calls.
    """

    crossing: Crossing | None
    half: float
    rounds: int
    visits: int
    seconds: float

    def __str__(self) -> str:
        c = self.crossing
        place = f"{centre(c):.0f} [{c.low:.0f}, {c.high:.0f}] {c.direction}, " if c and c.low and c.high else ""
        return (
            f"{self.seconds:7.1f} s in {self.visits} visits of {self.rounds} rounds: {place or 'no closed interval, '}"
            f"±{self.half:.1%}"
        )


def upto(run: Run, rounds: int, operator: str) -> Spent:
    """The crossing of a run, and its cost, after so many rounds."""
    part = replace(run, visits=run.visits[run.visits["round"] <= rounds])
    table = summarise(part, ["wall_time"]).panels[0].tables[0]
    line = next(line for line in table.lines if line.series.operator == operator)
    crossings = line.against_baseline.crossings if line.against_baseline else ()
    best = min(crossings, key=half_width, default=None)
    half = half_width(best) if best else float("inf")
    return Spent(best, half, rounds, len(part.visits), float(part.visits["operator_s"].sum()))


def needed(run: Run, operator: str, precision: float) -> Spent:
    """The same after the fewest rounds that reach the precision; after all rounds where none does."""
    last = int(run.visits["round"].max())
    every = [upto(run, rounds, operator) for rounds in range(min(LEAST_ROUNDS, last), last + 1)]
    return next((spent for spent in every if spent.half <= precision), every[-1])


def grid(suite: dict[str, Any], low: int, high: int, rounds: int) -> dict[str, Any]:
    """The suite over every size of factor √2 from low to high."""
    sizes = []
    while low * 2 ** (len(sizes) / 2) <= high * 1.001:
        sizes.append(round(low * 2 ** (len(sizes) / 2)))
    return {**suite, "sweep": [{"seq_len": sizes}], "measure": {**suite["measure"], "rounds": rounds}}


def attnbench(*words: object) -> None:
    command = [sys.executable, "-m", "attnbench", *map(str, words), "--device", "cpu"]
    process = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit {process.returncode}\n{process.stderr[-2000:]}")


def verdict(search: Spent, gridded: Spent, precision: float, high: int) -> str:
    """The reason why the claim is not shown; empty where it is."""
    if search.crossing is None or centre(search.crossing) > high / 4:
        return f"nothing shown: no crossing up to {high // 4}; choose another range or operator"
    if search.half > precision:
        return f"nothing shown: the search ended at ±{search.half:.1%}, not ±{precision:.1%}"
    a, b = search.crossing, gridded.crossing
    if b is not None and ((a.low or 0) > (b.high or float("inf")) or (b.low or 0) > (a.high or float("inf"))):
        return "the two crossings contradict each other"
    return "" if search.seconds <= SHARE * gridded.seconds else f"more than {SHARE:.0%} of the grid's time"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("operator", nargs="?", default="linear_transformer")
    parser.add_argument("--low", type=int, default=64)
    parser.add_argument("--high", type=int, default=2048)
    parser.add_argument("--precision", default="15%")
    args = parser.parse_args()
    precision = fraction(0.005, 1.0)(args.precision)
    with tempfile.TemporaryDirectory() as folder:
        searched, gridded = Path(folder) / "search", Path(folder) / "grid"
        ends = ("--low", args.low, "--high", args.high, "--precision", args.precision)
        attnbench("crossover", args.operator, *ends, "--out", searched)
        run = read_run(searched)
        rounds = int(run.visits["round"].max())
        text = yaml.safe_dump(grid(run.suite, args.low, args.high, rounds))
        (Path(folder) / "grid.yaml").write_text(text)
        attnbench("run", Path(folder) / "grid.yaml", "--out", gridded)
        search, on_grid = (
            upto(run, rounds, args.operator),
            needed(read_run(gridded), args.operator, precision),
        )
    print(f"{args.operator} against softmax, seq_len {args.low} to {args.high}, to ±{args.precision}")
    print(f"search      {search}")
    print(f"grid of √2  {on_grid}" + ("" if on_grid.half <= precision else " (wider: its time is a lower bound)"))
    wrong = verdict(search, on_grid, precision, args.high)
    share = search.seconds / on_grid.seconds
    print(f"the search takes {share:.0%} of the grid's time (limit {SHARE:.0%}) {wrong}".strip())
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
