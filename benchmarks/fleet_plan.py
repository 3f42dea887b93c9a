"""What a fleet of a thousand GPUs would take and where it would break: the numbers of docs/fleet.md.

    python -m benchmarks.fleet_plan [PART…]

Between the markers of the page stand its parts. scheduler: a simulation of 10⁵ units (blocks in one round each), drawn
from what blocks took in stored runs, on 1000 devices that fail, dealt into fewer or more shards. bytes: of stored runs.
own-side: what a fleet itself takes for each shard, where all are measured already, and joining them. ray: the same
through Ray, on this machine.
"""

from __future__ import annotations

import argparse
import gzip
import heapq
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnbench.analysis.merge.joining import join
from attnbench.analysis.merge.writing import write
from attnbench.measure import fleet
from attnbench.measure.engines import News, Task
from attnbench.measure.fleet_folder import Facts, FleetFolder, create
from attnbench.measure.fleet_time import FleetTime
from attnbench.measure.sharding import Expected
from attnbench.problem import block_of
from attnbench.progress import Leased

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "fleet.md"
REFERENCE = ROOT / "results" / "reference"

DEVICES = 1000
UNITS = 100_000
BACK_S = 600.0
"""After so long a device that failed is there again, or another one in its place."""

MTBF_H = {"datacentre": 50_000.0, "spot": 20.0}
"""Hours of one device between two failures. 419 interruptions of 16384 GPUs in 54 days (Grattafiori et al. 2024, The
Llama 3 Herd of Models, section 3.3.4) are one in 50700 hours; one in 20 hours is a guess of spot machines."""


@dataclass(frozen=True)
class Durations:
    """What units of stored runs took.

    Attributes:
        units: seconds of a timed round of a block, and of the check of the same block.
    """

    units: Sequence[tuple[float, float]]

    @property
    def mean_s(self) -> float:
        return statistics.fmean(timed for timed, _ in self.units)

    @property
    def check_s(self) -> float:
        return statistics.fmean(check for _, check in self.units)


def durations(runs: Iterable[Path]) -> Durations:
    """By the sum of the visits of each block in each round."""
    pairs = []
    for run in runs:
        seconds: dict[tuple[str, int], float] = defaultdict(float)
        for line in (run / "visits.jsonl").read_text(encoding="utf-8").splitlines():
            visit = json.loads(line)
            seconds[block_of(visit["key"]), visit["round"]] += visit["metrics"].get("visit_s") or 0.0
        pairs += [(s, seconds[block, 0]) for (block, number), s in seconds.items() if number]
    return Durations(pairs)


@dataclass(frozen=True)
class Simulated:
    """A day of a fleet.

    Attributes:
        hours: until the last shard has ended.
        measuring, starting, lost: shares of all devices' time: timed rounds; starts and checks; what failures took.
        tasks_per_s: that the engine starts at most, over any ten seconds after the first minute.
    """

    hours: float
    measuring: float
    starting: float
    lost: float
    tasks_per_s: float


def simulate(units: Durations, shards: int, start_s: float, mtbf_h: float, seed: int = 7) -> Simulated:
    """The units dealt at random to shards of one size, each handed to the device that is free first."""
    draw = random.Random(seed)
    drawn = draw.choices(units.units, k=UNITS)
    parts = [drawn[number::shards] for number in range(shards)]
    waiting = [(sum(t for t, _ in part), start_s + sum(c for _, c in part)) for part in reversed(parts)]
    free = [(0.0, device) for device in range(DEVICES)]
    heapq.heapify(free)
    fails = [draw.expovariate(1 / (mtbf_h * 3600)) for _ in range(DEVICES)]
    measuring = starting = lost = end = 0.0
    starts: dict[int, int] = defaultdict(int)
    while waiting:
        now, device = heapq.heappop(free)
        timed, around = waiting.pop()
        starts[int(now // 10)] += 1
        ready = now + timed + around
        while fails[device] < now:  # while it was idle, or coming back
            fails[device] += draw.expovariate(1 / (mtbf_h * 3600))
        if fails[device] < ready:
            lost += fails[device] - now
            waiting.insert(0, (timed, around))
            heapq.heappush(free, (fails[device] + BACK_S, device))
            continue
        measuring, starting, end = measuring + timed, starting + around, max(end, ready)
        heapq.heappush(free, (ready, device))
    busiest = max((n for slot, n in starts.items() if slot >= 6), default=0) / 10
    total = end * DEVICES
    return Simulated(end / 3600, measuring / total, starting / total, lost / total, busiest)


def scheduler(units: Durations, start_s: float) -> str:
    names = "shards | units each | hours | measuring | starting, checking | idle | lost | hours, spot | lost, spot"
    rows = [f"| {names} | tasks/s |", "| --- " * 10 + "|"]
    for each in (1, 3, 10, 30, 100):
        calm, spot = (simulate(units, UNITS // each, start_s, hours) for hours in MTBF_H.values())
        cells = [
            *(f"{UNITS // each}", f"{each}", f"{calm.hours:.2f}", f"{calm.measuring:.0%}", f"{calm.starting:.0%}"),
            *(f"{1 - calm.measuring - calm.starting - calm.lost:.0%}", f"{calm.lost:.2%}", f"{spot.hours:.2f}"),
            *(f"{spot.lost:.1%}", f"{calm.tasks_per_s:.0f}"),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def stored_bytes() -> str:
    rows = [
        "| run | units | visits and samples, a unit | gzip | facts, suite and results, a folder |",
        "| --- " * 5 + "|",
    ]
    for name in ("cpu-quick", "cpu-sequence", "cpu-decode", "h100-prefill"):
        run = REFERENCE / name
        count = len(durations([run]).units)
        grows = [(run / each).read_bytes() for each in ("visits.jsonl", "samples.csv")]
        fixed = sum((run / each).stat().st_size for each in ("environment.json", "suite.yaml", "results.csv"))
        whole, small = sum(map(len, grows)) / count, sum(len(gzip.compress(data)) for data in grows) / count
        rows.append(f"| {name} | {count} | {whole / 1000:.0f} kB | {small / 1000:.1f} kB | {fixed / 1000:.0f} kB |")
    return "\n".join(rows)


def made_shards(fleet_folder: FleetFolder, facts: Facts, run: Path) -> None:
    """The shards of a fleet as if they were measured, one unit each: those of a stored run, over and over, each time at
    another batch."""
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    visits = [json.loads(line) for line in (run / "visits.jsonl").read_text(encoding="utf-8").splitlines()]
    samples: dict[tuple[str, int], list[str]] = defaultdict(list)
    header, *rows = (run / "samples.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    for row in rows:
        key, number, _ = row.split(",", 2)
        samples[key, int(number)].append(row)
    blocks: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for visit in visits:
        blocks[block_of(visit["key"])].append(visit)
    units = [(name, timed) for name, own in blocks.items() for timed in sorted({v["round"] for v in own}) if timed]
    for shard_number in range(1, facts.shards + 1):
        (block, round_number), batch = units[(shard_number - 1) % len(units)], 1 + (shard_number - 1) // len(units)

        def moved(text: str, batch: int = batch) -> str:
            return text.replace(".b1.", f".b{batch}.")

        own = [visit for visit in blocks[block] if visit["round"] in (0, round_number)]
        task = fleet_folder.task(shard_number, facts)
        task.folder.mkdir()
        shard = {
            "numbers": [shard_number],
            "of": facts.shards,
            "dealt": facts.shards,
            "units": [[moved(block), round_number]],
        }
        stored = {**environment, "shard": shard, "device_id": f"{shard_number % DEVICES:012x}"}
        (task.folder / "environment.json").write_text(json.dumps(stored, indent=2), encoding="utf-8")
        (task.folder / "suite.yaml").write_bytes((run / "suite.yaml").read_bytes())
        lines = (json.dumps({**v, "key": moved(v["key"]), "cell": {**v["cell"], "batch": batch}}) for v in own)
        (task.folder / "visits.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        taken = "".join(moved(row) for v in own for row in samples[v["key"], v["round"]])
        (task.folder / "samples.csv").write_text(header + taken, encoding="utf-8")


class Made:
    """An engine whose shards are measured already: a thousand end at each tick."""

    accelerated, at_once, most = False, None, None

    def lease(self, tasks: Sequence[Task]) -> Generator[Sequence[News], None, None]:
        for place in range(0, len(tasks), DEVICES):
            some = tasks[place : place + DEVICES]
            yield [News(task.number, "running", str(task.number), 0) for task in some]
            for task in some:
                task.mark.write_text("0\n")
            yield [News(task.number, "ended", code=0) for task in some]


class Silent:
    """Takes what a fleet reports."""

    def leased(self, state: Leased) -> None:
        return

    def message(self, text: str) -> None:
        raise AssertionError(text)


def own_side(counts: Sequence[int]) -> str:
    rows = [
        "| shards | bookkeeping, CPU-ms each | joining, CPU-ms each | memory of joining | files, MB |",
        "| --- " * 5 + "|",
    ]
    for shards in counts:
        with tempfile.TemporaryDirectory() as place:
            facts = Facts("quick", "quick.yaml", shards, shards, "cpu")
            made = create(
                Path(place) / "fleet", facts, {"quick.yaml": (REFERENCE / "cpu-quick/suite.yaml").read_bytes()}
            )
            made_shards(made, facts, REFERENCE / "cpu-quick")
            size = sum(path.stat().st_size for path in made.path.rglob("*") if path.is_file())
            begun = time.process_time()
            tasks = [made.task(number, facts) for number in range(1, facts.shards + 1)]
            expected = dict.fromkeys(range(1, shards + 1), Expected(1.0, 1.0, units=1, rounds=1, share=1 / shards))
            leasing = fleet._Leasing("made", made, facts, Silent(), tasks, FleetTime(expected))
            leasing.run(Made())
            kept = time.process_time()
            assert leasing.ended(False).missing == 0
            write(join(made.measured(), partial=True), Path(place) / "joined")
            joined = time.process_time()
            rows.append(
                f"| {shards} | {(kept - begun) / shards * 1e3:.1f} | {(joined - kept) / shards * 1e3:.1f} | "
                f"{peak_bytes() / 1e9:.2f} GB | {size / 1e6:.0f} |"
            )
    return "\n".join(rows)


def peak_bytes() -> int:
    """The most memory this process has had."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def through_ray(tasks: int = 300) -> str:
    """Tasks that bring a measured shard back at once, through the engine's own code."""
    from attnbench.measure.engines import Connection, connect, ray

    with tempfile.TemporaryDirectory() as place:
        facts = Facts("quick", "quick.yaml", tasks, tasks, "cpu")
        made = create(Path(place) / "fleet", facts, {"quick.yaml": b"name: quick\n"})
        seed = Path(place) / "seed"
        shard = create(seed, Facts("quick", "quick.yaml", 1, 1, "cpu"), {})
        made_shards(shard, shard.facts(), REFERENCE / "cpu-quick")
        content = ray._files(shard.task(1, shard.facts()).folder)
        ray._measured = lambda task, inputs, begun, desk: (0, content, b"", False)
        with connect("ray", Connection(devices=2)) as pool:
            begun = time.perf_counter()
            every = [made.task(number, facts) for number in range(1, tasks + 1)]
            ended = sum(each.state == "ended" for news in pool.lease(every) for each in news)
            seconds = time.perf_counter() - begun
    size = sum(map(len, content.values()))
    assert ended == tasks
    return (
        f"Through Ray on two cores, {tasks} tasks that measure nothing and bring {size / 1000:.0f} kB back each: "
        f"{tasks / seconds:.0f} tasks a second, stored."
    )


def simulated(start_s: float) -> str:
    runs = sorted(REFERENCE.glob("h100-*"))
    units = durations(runs)
    mean = (
        f"A unit takes {units.mean_s:.1f} s and its check {units.check_s:.1f} s on average ({len(units.units)} units "
        f"of {len(runs)} runs on one H100); a shard takes {start_s:g} s to start."
    )
    return f"{mean}\n\n{scheduler(units, start_s)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["scheduler", "bytes", "own-side"], help="and: ray")
    parser.add_argument("--shards", type=int, nargs="+", default=[100, 300, 600], help="of fleets measured before")
    parser.add_argument("--start", type=float, default=20.0, help="seconds that a shard takes beside checks and rounds")
    options = parser.parse_args()
    makers = {
        "scheduler": lambda: simulated(options.start),
        "bytes": stored_bytes,
        "own-side": lambda: own_side(options.shards),
        "ray": through_ray,
    }
    made = {name: makers[name]() for name in options.parts}
    text = PAGE.read_text(encoding="utf-8")
    for name, content in made.items():
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        text = f"{before}<!-- {name} -->\n{content}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
