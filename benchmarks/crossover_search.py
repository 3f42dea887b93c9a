"""What a crossover search saves, against a grid of factor √2 over the same range, measured to the same precision.

    python benchmarks/crossover_search.py [OPERATOR] [--low 64] [--high 2048] [--precision 15%]

Both are measured on the CPU into temporary folders, with the same measure settings. The grid is given as many rounds as
the search took, and is charged only for those after which its own interval was within the precision: all of them, where
it never was. Compared is the time inside the operators' calls, summed over the visits, checks included.

Exits 1 where the search takes more than a quarter of the grid's time, where the two crossings contradict each other,
and where nothing is shown: no crossing up to high / 4, or a search that ended wider than the precision.
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
from attnbench.analysis.crossover_search import LEAST_ROUNDS, half_width
from attnbench.analysis.run import Run, read_run
from attnbench.analysis.summary import summarise
from attnbench.units import fraction

SHARE = 0.25


@dataclass(frozen=True)
class Spent:
    """What it took to know a crossing: rounds, visits, seconds inside the operators' calls. half: of the interval,
    relative; infinite where it is open or there is no crossing."""

    crossing: Crossing | None
    half: float
    rounds: int
    visits: int
    seconds: float

    def __str__(self) -> str:
        c = self.crossing
        found = f"{c.at:.0f} [{c.low:.0f}, {c.high:.0f}] {c.direction}, " if c and c.at and c.low and c.high else ""
        return (
            f"{self.seconds:7.1f} s in {self.visits} visits of {self.rounds} rounds: {found or 'no closed interval, '}"
            f"±{self.half:.1%}"
        )


def upto(run: Run, rounds: int, operator: str) -> Spent:
    """What a run knew, and had spent, after so many rounds."""
    part = replace(run, visits=run.visits[run.visits["round"] <= rounds])
    table = summarise(part, ["wall_time"]).panels[0].tables[0]
    line = next(line for line in table.lines if line.series.operator == operator)
    found = line.against_baseline.crossings if line.against_baseline else ()
    best = min((c for c in found if c.at is not None), key=half_width, default=None)
    half = half_width(best) if best else float("inf")
    return Spent(best, half, rounds, len(part.visits), float(part.visits["operator_s"].sum()))


def needed(run: Run, operator: str, precision: float) -> Spent:
    """The same after the fewest rounds that reach the precision; after all of them where none does."""
    last = int(run.visits["round"].max())
    every = [upto(run, rounds, operator) for rounds in range(min(LEAST_ROUNDS, last), last + 1)]
    return next((spent for spent in every if spent.half <= precision), every[-1])


def grid(suite: dict[str, Any], low: int, high: int, rounds: int) -> dict[str, Any]:
    """The suite over every size of factor √2 from low to high."""
    sizes = []
    while low * 2 ** (len(sizes) / 2) <= high * 1.001:
        sizes.append(round(low * 2 ** (len(sizes) / 2)))
    return {**suite, "sweep": [{"seq_len": sizes}], "measure": {**suite["measure"], "rounds": rounds}}


def attnbench(*arguments: object) -> None:
    command = [sys.executable, "-m", "attnbench", *map(str, arguments), "--device", "cpu"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr[-2000:]}")


def verdict(search: Spent, gridded: Spent, precision: float, high: int) -> str:
    """What is wrong; empty where the claim is shown."""
    if search.crossing is None or search.crossing.at is None or search.crossing.at > high / 4:
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
    given = parser.parse_args()
    precision = fraction(0.005, 1.0)(given.precision)
    with tempfile.TemporaryDirectory() as folder:
        searched, gridded = Path(folder) / "search", Path(folder) / "grid"
        ends = ("--low", given.low, "--high", given.high, "--precision", given.precision)
        attnbench("crossover", given.operator, *ends, "--out", searched)
        run = read_run(searched)
        rounds = int(run.visits["round"].max())
        text = yaml.safe_dump(grid(run.suite, given.low, given.high, rounds))
        (Path(folder) / "grid.yaml").write_text(text)
        attnbench("run", Path(folder) / "grid.yaml", "--out", gridded)
        search, whole = upto(run, rounds, given.operator), needed(read_run(gridded), given.operator, precision)
    print(f"{given.operator} against softmax, seq_len {given.low} to {given.high}, to ±{given.precision}")
    print(f"search      {search}")
    print(f"grid of √2  {whole}" + ("" if whole.half <= precision else " (wider: its time is a lower bound)"))
    wrong = verdict(search, whole, precision, given.high)
    print(
        f"the search takes {search.seconds / whole.seconds:.0%} of the grid's time (limit {SHARE:.0%}) {wrong}".strip()
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
