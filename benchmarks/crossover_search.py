"""What a crossover search saves, against a grid of factor √2 over the same range with as many rounds.

    python benchmarks/crossover_search.py [OPERATOR] [--low 64] [--high 4096] [--precision 10%]

Both are measured on the CPU into temporary folders, with the same measure settings. Compared is the time inside the
operators' calls, checks included. Exits 1 where the search takes more than a quarter while its crossing is at most
high / 4, or where the two crossings contradict each other.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from attnbench.analysis.crossover import Crossing
from attnbench.analysis.summary import summarise
from attnbench.record import Run, read_run

SHARE = 0.25


def attnbench(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "attnbench", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def spent(run: Run) -> float:
    return float(run.visits["operator_s"].sum())


def crossing(run: Run, operator: str) -> Crossing | None:
    """The one with an interval, or the first."""
    table = summarise(run, ["wall_time"]).sections[0].tables[0]
    line = next(line for line in table.lines if line.series.operator == operator)
    found = line.against_baseline.crossings if line.against_baseline else ()
    return next((c for c in found if c.at is not None), found[0] if found else None)


def grid(suite: dict[str, object], low: int, high: int, rounds: int) -> dict[str, object]:
    count = 1
    while low * 2 ** (count / 2) <= high * 1.001:
        count += 1
    sizes = sorted({round(low * 2 ** (i / 2)) for i in range(count)})
    return {**suite, "sweep": [{"seq_len": sizes}], "measure": {**suite["measure"], "rounds": rounds}}  # type: ignore[dict-item]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operator", nargs="?", default="linear_transformer")
    parser.add_argument("--low", type=int, default=64)
    parser.add_argument("--high", type=int, default=4096)
    parser.add_argument("--precision", default="10%")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        searched, gridded = Path(folder) / "search", Path(folder) / "grid"
        ends = ("--low", given.low, "--high", given.high, "--precision", given.precision)
        attnbench("crossover", given.operator, *ends, "--device", "cpu", "--out", searched)
        run = read_run(searched)
        rounds = int(run.visits["round"].max())
        text = yaml.safe_dump(grid(yaml.safe_load(run.suite_text), given.low, given.high, rounds))
        (Path(folder) / "grid.yaml").write_text(text)
        attnbench("run", Path(folder) / "grid.yaml", "--device", "cpu", "--out", gridded)
        both = read_run(gridded)
        first, second = crossing(run, given.operator), crossing(both, given.operator)
        share = spent(run) / spent(both)
    for name, found, one in (("search", first, run), ("grid", second, both)):
        interval = "no crossing" if found is None else f"{found.at} [{found.low}, {found.high}] {found.direction}"
        print(f"{name:7} {spent(one):8.1f} s in calls, {len(one.visits):4} visits, {rounds} rounds: {interval}")
    print(f"the search takes {share:.0%} of the grid's time (limit where N* ≤ high / 4: {SHARE:.0%})")
    if first is None or second is None or first.at is None:
        return 0
    apart = (first.low or 0) > (second.high or float("inf")) or (second.low or 0) > (first.high or float("inf"))
    return int(apart or (first.at <= given.high / 4 and share > SHARE))


if __name__ == "__main__":
    sys.exit(main())
