"""The time that a crossover search saves against a grid of factor √2 over the same range, at the same precision.

    python benchmarks/crossover_search.py [OPERATOR] [--low 64] [--high 2048] [--precision 15%] [--over batch=1,2,4,8]

Both are measured on the CPU into temporary folders, with the same measure settings; with --over, the grid at every
value of the second axis. The grid has as many rounds as the search took; its time counts only up to the round in which
all its intervals reach the precision, or all rounds where they never do. The times compared are those inside the
operators' calls, summed over the visits, checks included.

Exits 1 where the search takes more than a quarter of the grid's time, where two crossings contradict each other, and
where nothing is shown: no crossing up to high / 4 (with --over up to high, at every value), or a search that ended
without the precision.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping
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
    """The cost of a crossing, or of those at every value of a second axis.

    Attributes:
        crossings: by the title of their panel; None where there is none.
        half: half the widest interval's relative width; infinite where one is open or there is no crossing.
        rounds, cells, visits: how many it took; a cell of the series with its baseline is one.
        seconds: inside the operators' calls.
    """

    crossings: Mapping[str, Crossing | None]
    half: float
    rounds: int
    cells: int
    visits: int
    seconds: float

    def __str__(self) -> str:
        cost = f"{self.seconds:7.1f} s in {self.visits} visits of {self.cells} cells, {self.rounds} rounds"
        cost += f", ±{self.half:.1%}"
        return "\n            ".join([cost, *map(_shown, self.crossings.values())])


def _shown(c: Crossing | None) -> str:
    return f"{centre(c):.0f} [{c.low:.0f}, {c.high:.0f}] {c.direction}" if c and c.low and c.high else "none, or open"


def upto(run: Run, rounds: int, operator: str) -> Spent:
    """The crossings of a run, and their cost, after so many rounds."""
    part = replace(run, visits=run.visits[run.visits["round"] <= rounds])
    crossings = {}
    for report in summarise(part, ["wall_time"], axis="seq_len").panels:
        line = next(line for line in report.tables[0].lines if line.series.operator == operator)
        every = line.against_baseline.crossings if line.against_baseline else ()
        crossings[report.panel.title] = min(every, key=half_width, default=None)
    half = max(half_width(each) if each else float("inf") for each in crossings.values())
    cells = part.visits["key"][part.visits["operator"] == operator].nunique()
    return Spent(crossings, half, rounds, cells, len(part.visits), float(part.visits["operator_s"].sum()))


def needed(run: Run, operator: str, precision: float) -> Spent:
    """The same after the fewest rounds that reach the precision; after all rounds where none does."""
    last = int(run.visits["round"].max())
    every = [upto(run, rounds, operator) for rounds in range(min(LEAST_ROUNDS, last), last + 1)]
    return next((spent for spent in every if spent.half <= precision), every[-1])


def grid(suite: dict[str, Any], low: int, high: int, rounds: int) -> dict[str, Any]:
    """The suite over every size of factor √2 from low to high."""
    sizes: list[int] = []
    while low * 2 ** (len(sizes) / 2) <= high * 1.001:
        sizes.append(round(low * 2 ** (len(sizes) / 2)))
    return {
        **suite,
        "sweep": [{**suite["sweep"][0], "seq_len": sizes}],
        "measure": {**suite["measure"], "rounds": rounds},
    }


def attnbench(*words: object) -> None:
    command = [sys.executable, "-m", "attnbench", *map(str, words), "--device", "cpu"]
    process = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit {process.returncode}\n{process.stderr[-2000:]}")


def verdict(search: Spent, gridded: Spent, precision: float, high: int) -> str:
    """The reason why the claim is not shown; empty where it is. high: up to which a crossing shows it."""
    if any(each is None or centre(each) > high for each in search.crossings.values()):
        return f"nothing shown: no crossing up to {high}; choose another range or operator"
    if search.half > precision:
        return f"nothing shown: the search ended at ±{search.half:.1%}, not ±{precision:.1%}"
    for title, b in gridded.crossings.items():
        a = search.crossings.get(title)
        if a and b and ((a.low or 0) > (b.high or float("inf")) or (b.low or 0) > (a.high or float("inf"))):
            return f"the two crossings contradict each other: {title}"
    return "" if search.seconds <= SHARE * gridded.seconds else f"more than {SHARE:.0%} of the grid's time"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("operator", nargs="?", default="linear_transformer")
    parser.add_argument("--low", type=int, default=64)
    parser.add_argument("--high", type=int, default=2048)
    parser.add_argument("--precision", default=None)
    parser.add_argument("--over", default=None)
    args = parser.parse_args()
    args.precision = args.precision or ("20%" if args.over else "15%")
    precision = fraction(0.005, 1.0)(args.precision)
    over = ("--over", args.over) if args.over else ()
    with tempfile.TemporaryDirectory() as folder:
        searched, gridded = Path(folder) / "search", Path(folder) / "grid"
        ends = ("--low", args.low, "--high", args.high, "--precision", args.precision)
        attnbench("crossover", args.operator, *ends, *over, "--out", searched)
        run = read_run(searched)
        rounds = int(run.visits["round"].max())
        text = yaml.safe_dump(grid(run.suite, args.low, args.high, rounds))
        (Path(folder) / "grid.yaml").write_text(text)
        attnbench("run", Path(folder) / "grid.yaml", "--out", gridded)
        search, on_grid = (
            upto(run, rounds, args.operator),
            needed(read_run(gridded), args.operator, precision),
        )
    print(f"{args.operator} against softmax, seq_len {args.low} to {args.high} {args.over or ''}, to ±{args.precision}")
    print(f"search      {search}")
    print(f"grid of √2  {on_grid}" + ("" if on_grid.half <= precision else " (wider: its time is a lower bound)"))
    wrong = verdict(search, on_grid, precision, args.high if over else args.high // 4)
    share = search.seconds / on_grid.seconds
    cells = search.cells / on_grid.cells
    print(
        f"the search takes {share:.0%} of the grid's time (limit {SHARE:.0%}), {cells:.0%} of its cells {wrong}".strip()
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
