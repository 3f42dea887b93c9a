"""How often the gate is wrong: blocks of interleaved processes are recorded, and decisions made from them.

    python -m benchmarks.gate_study [--blocks 60] [--loaded 30] [--live 20] [--out FOLDER] [--report FILE]

A block is six fresh processes that take turns as in `attnbench gate`: base, base again, and one operator made slower by
2, 5, 10 and 25 % with real extra work. What is recorded is kept, so it can be interrupted and continued; --blocks 0
--loaded 0 --live 0 only writes the report again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd

from attnbench.analysis.compare.same_machine import MACHINE
from attnbench.analysis.compare.tier0_exact import tier0
from attnbench.analysis.run import read_run
from attnbench.measure.gate_pairs import both_survive, measure_pair
from attnbench.measure.gate_sides import side
from attnbench.measure.open_run import plan_of
from attnbench.outputs._progress import plain
from attnbench.plan import suite as suites
from benchmarks import gate_planted, gate_report
from benchmarks.gate_planted import SLOW_DOWNS, SUITE

VARIANTS = {"base": 0.0, "again": 0.0, **{f"slower_{share:.0%}": share for share in SLOW_DOWNS}}
COLUMNS = ("block", "cell", "variant", "samples_us")
LIVE = (0.0, 0.10, 0.0, 0.05, 0.0, 0.10, 0.0, 0.25, 0.0, 0.10)
"""The slow-downs of successive live decisions."""

LOAD = """
import os, random, time
import numpy
a = numpy.random.rand(300, 300)
parent = os.getppid()
while os.getppid() == parent:
    end = time.monotonic() + random.uniform(0.1, 3)
    while time.monotonic() < end:
        a @ a
    time.sleep(random.uniform(0.1, 3))
"""
"""A competing process: busy for 0.1 to 3 s, idle for as long; two of them run."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=60, help="clean blocks in all")
    parser.add_argument("--loaded", type=int, default=30, help="blocks under a competing load in all")
    parser.add_argument("--live", type=int, default=0, help="complete decisions by attnbench gate in all")
    parser.add_argument("--draws", type=int, default=10_000, help="suites drawn from the blocks, without a slow-down")
    parser.add_argument("--out", type=Path, default=Path("results/reference/gate-study"))
    parser.add_argument("--report", type=Path, default=Path("docs/gate-study.md"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    study = Study(args.out)
    for condition, total in (("clean", args.blocks), ("loaded", args.loaded)):
        record(study, condition, total)
    complexities(study)
    live(study, args.live)
    gate_report.write(args.out, args.report, args.draws)
    print(args.report)
    return 0


class Study:
    """study.json: the machine, the planted work, when it was recorded, and the live decisions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "study.json"
        self.data: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def save(self, **changes: Any) -> None:
        self.data.update(changes)
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.data, indent=1) + "\n")
        beside.replace(self.path)

    def extra(self) -> dict[float, dict[int, int]]:
        """Planted numbers by slow-down and size; calibrated once, so that all blocks run the same programs."""
        if "planted" not in self.data:
            self.save(planted={str(share): by_size for share, by_size in gate_planted.calibrated().items()})
        return {float(s): {int(n): c for n, c in sizes.items()} for s, sizes in self.data["planted"].items()}

    def same_machine(self, environment: dict[str, Any]) -> None:
        machine = {name: environment.get(name) for name in MACHINE}
        stored = self.data.setdefault("machine", machine)
        if stored != machine:
            raise SystemExit(f"{self.path} was recorded on {stored}, this is {machine}. Record into another --out.")


def record(study: Study, condition: str, total: int) -> None:
    """Records blocks until there are `total`; each is on disk when it ends."""
    path = study.folder / f"{condition}.csv"
    stored = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=COLUMNS, dtype=int)
    recorded = int(stored["block"].max()) if len(stored) else 0
    if recorded >= total:
        return
    if tuple(stored.columns) != COLUMNS:
        raise SystemExit(f"{path} was recorded by an earlier attnbench. Record into another --out.")
    extra = study.extra()
    with contextlib.ExitStack() as stack:
        if condition == "loaded":
            stack.enter_context(competing_load())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gate-study-")))
        most = max(count for sizes in extra.values() for count in sizes.values())
        files = {name: gate_planted.write_timed(folder / name, extra[s], most) for name, s in VARIANTS.items()}
        (folder / "base" / "suite.yaml").write_text(SUITE)
        suite = suites.load(str(folder / "base" / "suite.yaml"))
        plan, environment = plan_of(suite, "cpu")
        study.same_machine(environment)
        sides = {}
        for name, file in files.items():
            side_plan = replace(plan, operators_from=(str(file),), code=None)
            sides[name] = stack.enter_context(
                side(side_plan, suite.text, environment, folder / f"run-{name}", None, plain(sys.stderr))
            )
            sides[name].check()
        cells = [(before,) * len(sides) for before, _ in both_survive((sides["base"], sides["again"]), {})]
        study.save(cells={f"{c.operator}.{c.problem.size}": c.key for c, *_ in cells})
        tell(f"{condition}: {total - recorded} blocks of {len(sides)} processes, {len(cells)} cells")
        begun, first = time.time(), recorded + 1
        for block in range(first, total + 1):
            measure_pair(tuple(sides.values()), cells, block)
            store(path, block, {name: folder / f"run-{name}" for name in sides}, study.data["cells"])
            each = (time.time() - begun) / (block - first + 1)
            study.save(**{f"{condition}_block_s": each, f"{condition}_until": time.strftime("%Y-%m-%d %H:%M")})
            study.data.setdefault(f"{condition}_from", time.strftime("%Y-%m-%d %H:%M", time.localtime(begun)))
            tell(f"{condition} block {block} of {total}: {each:.1f} s each, {(total - block) * each / 60:.0f} min left")
        study.save()


def store(path: Path, block: int, folders: dict[str, Path], cells: dict[str, str]) -> None:
    """One row per cell and process of a block, with all its samples in µs."""
    rows = []
    for variant, folder in folders.items():
        samples = read_run(folder).samples
        by_key = samples[samples["round"] == block].groupby("key")["seconds"].apply(list)
        for name, key in cells.items():
            rows.append((block, name, variant, " ".join(f"{1e6 * s:.5g}" for s in by_key[key])))
    table = pd.DataFrame(rows, columns=COLUMNS)
    table.to_csv(path, mode="a", header=not path.is_file(), index=False)


@contextlib.contextmanager
def competing_load() -> Iterator[None]:
    """Two processes that are alternately busy and idle."""
    started = [subprocess.Popen([sys.executable, "-c", LOAD], stdout=subprocess.DEVNULL) for _ in range(2)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def complexities(study: Study) -> None:
    """Tier 0 on operators that lost their complexity, each beside itself; measured once."""
    if "complexities" in study.data:
        return
    planted = list(gate_planted.planted_complexities())
    with tempfile.TemporaryDirectory(prefix="gate-study-") as name:
        folder = Path(name)
        for side_name, index in (("base", 2), ("again", 2), ("head", 3)):
            (folder / side_name).mkdir()
            for entry in planted:
                (folder / side_name / f"{entry[0]}.py").write_text(entry[index])
        text = gate_planted.complexity_suite([entry[0] for entry in planted])
        (folder / "base" / "suite.yaml").write_text(text)
        suite = suites.load(str(folder / "base" / "suite.yaml"))
        plan, environment = plan_of(suite, "cpu")
        for side_name in ("base", "again", "head"):
            places = tuple(str(folder / side_name / f"{entry[0]}.py") for entry in planted)
            side_plan = replace(plan, operators_from=places, code=None)
            with side(
                side_plan, suite.text, environment, folder / f"run-{side_name}", None, plain(sys.stderr)
            ) as runner:
                runner.check()
        runs = {n: read_run(folder / f"run-{n}") for n in ("base", "again", "head")}
    other = {**runs["head"].environment, "threads": "another", "cpu": "another"}
    elsewhere = replace(runs["head"], environment=other)
    regressions = {}
    for label, pair in {
        "unchanged": (runs["base"], runs["again"]),
        "here": (runs["base"], runs["head"]),
        "elsewhere": (runs["base"], elsewhere),
    }.items():
        decision = tier0(*pair, suite.gate)
        regressions[label] = sorted({f.name.split(":")[0].split()[0] for f in decision.regressions})
    kinds = {entry[0]: entry[1] for entry in planted}
    study.save(complexities={"planted": kinds, **regressions})


def live(study: Study, total: int) -> None:
    """Complete decisions: attnbench gate on a new repository."""
    decisions = study.data.setdefault("sequential", [])
    if len(decisions) >= total:
        return
    extra = study.extra()
    most = max(count for sizes in extra.values() for count in sizes.values())
    with tempfile.TemporaryDirectory(prefix="gate-study-") as name:
        root = Path(name)
        gate_planted.write_timed(root, extra[0.0], most)
        (root / "suite.yaml").write_text(SUITE)
        identity = ("-c", "user.name=study", "-c", "user.email=study@example.org")
        for words in (("init", "-q"), ("add", "."), (*identity, "commit", "-q", "-m", "base")):
            subprocess.run(["git", "-C", str(root), *words], check=True)
        attnbench = [sys.executable, "-m", "attnbench"]
        for number in range(len(decisions), total):
            share = LIVE[number % len(LIVE)]
            gate_planted.write_timed(root, extra[share], most)
            begun = time.monotonic()
            options = ["gate", "suite.yaml", "--base", "HEAD", "--device", "cpu", "--out", f"run-{number}"]
            process = subprocess.run(
                [*attnbench, *options, "--format", "json"], cwd=root, stdout=subprocess.PIPE, text=True
            )
            (decision,) = json.loads(process.stdout)["comparisons"]
            decisions.append(
                {
                    "planted": share,
                    "exit_code": process.returncode,
                    "slower": sorted(f["name"] for f in decision["findings"] if f["regression"]),
                    "minutes": round((time.monotonic() - begun) / 60, 1),
                    "pairs": int(read_run(root / f"run-{number}" / "head").visits["round"].max()),
                    "date": time.strftime("%Y-%m-%d %H:%M"),
                }
            )
            study.save()
            tell(f"live decision {number + 1} of {total}: planted {share:.0%}, exit code {process.returncode}")


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
