"""Measures time for a gate: pairs of fresh processes, one of each side, that take turns within each block."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from attnbench.analysis.compare.findings import Finding
from attnbench.analysis.compare.matching import Defaults, same_cells
from attnbench.analysis.compare.tier1_paired import ALPHA, PairedTest, looks_until
from attnbench.analysis.distributions import Floats
from attnbench.measure.blocks import Member, measure_block
from attnbench.measure.device import device_of
from attnbench.measure.progress import Progress
from attnbench.measure.protocol import is_steady
from attnbench.measure.runner import Runner
from attnbench.measure.visit_maker import Place
from attnbench.plan.blocks import blocks_of, parts_of
from attnbench.problem import Cell
from attnbench.progress import Reached, Stage
from attnbench.registry import clocks
from attnbench.store.frames import frame, read_samples
from attnbench.thresholds import Gate
from attnbench.units import count

Twins = tuple[Cell, ...]
"""One cell as every side has it, base first: its params differ where a change adds a parameter to the operator."""

FEWEST_TURNS, MOST_TURNS = 6, 24
"""Of a block in a pair of processes.

What else runs on a machine only adds time, and for about a second at a time; turns that lie apart do not all meet it.
On a shared 2-core machine a cell's noise from pair to pair was 17 % with 1 visit of 8 samples, 6 % with 3, 3 % with 6.
"""

TURNS_OF_ALL = 96
"""Turns times cells: few cells, which are soon gone through, take more turns."""


def measure_pair(sides: Sequence[Runner], cells: Sequence[Twins], number: int) -> None:
    """Measures cells in a fresh process of each side: block by block, in turns of all sides one right after the other.

    Args:
        sides: the runs.
        cells: that are visited; blocks, members and sides are in random order.
        number: of the pair, from 1: the round of its visits.
    """
    plan, makers = sides[-1].plan, [runner.maker for runner in sides]
    turns = min(max(TURNS_OF_ALL // len(cells), FEWEST_TURNS), MOST_TURNS)
    measure = replace(plan.measure, min_turns=FEWEST_TURNS, max_turns=turns)
    draw = random.Random(f"{plan.seed} {number}")
    twins_of = {twins[-1].key: twins for twins in cells}
    memory = {key: _memory(sides, twins) for key, twins in twins_of.items()}
    for runner in sides:
        runner.end_process()
    blocks = blocks_of(sorted((twins[-1] for twins in cells), key=lambda cell: cell.key))
    for position, block in enumerate(draw.sample(blocks, len(blocks))):
        for part in parts_of(draw.sample(block, len(block)), None, memory, plan.memory_limit):
            members = [Member(twins_of[cell.key]) for cell in part]
            of_sides = zip(*(member.cells for member in members), strict=True)
            first = max(maker.log.next_part(own, number) for maker, own in zip(makers, of_sides, strict=True))
            measure_block(makers, members, Place(number, position, first), measure, draw)
    for runner in sides:
        runner.end_process()


def _memory(sides: Sequence[Runner], twins: Twins) -> tuple[int, int]:
    """Bytes that all sides hold together: while others are called, and of their calls, whose memory a process keeps."""
    held, peaks = zip(*(run.maker.memory(cell) for run, cell in zip(sides, twins, strict=True)), strict=True)
    return sum(held), sum(peaks)


def seconds(runner: Runner, clock: str, keys: Sequence[str], pairs: int) -> Floats:
    """[pairs, keys] of a side's fastest samples; nan where there is none, as of a clock that it does not have."""
    visits = frame(runner.journal.visits)
    ok = visits[(visits["round"] > 0) & (visits["status"] == "ok")]
    samples = read_samples(runner.journal.folder, ok)
    steady = np.array([is_steady(flags) for flags in samples["flags"]], dtype=bool)
    timed = samples[steady & (samples["clock"] == clock)]
    table = timed.groupby(["round", "key"])["seconds"].min().unstack("key")
    return table.reindex(index=range(1, pairs + 1), columns=list(keys)).to_numpy(dtype=np.float64)


def both_survive(sides: tuple[Runner, Runner], defaults: Defaults) -> list[Twins]:
    """The cells that are ok in the checks of both sides. defaults: of the operators' parameters."""
    before, after = ({cell.key: cell for cell in runner.survivors()} for runner in sides)
    return [(before[a], after[b]) for a, b in same_cells(before.values(), after.values(), defaults).items()]


def tier1(
    sides: tuple[Runner, Runner], twins: Sequence[Twins], gate: Gate, pairs: int | None, progress: Progress
) -> tuple[list[Finding], list[str]]:
    """The paired decision on every metric with a clock that is gated.

    Args:
        sides: base and candidate.
        twins: the cells that both can run.
        gate: the thresholds.
        pairs: the most; None: as many as `LOOKS` has.
        progress: what it reports to.

    Returns: the findings, and notes on how they were made.
    """
    cells = [after for _, after in twins]
    timed = clocks(device_clock=device_of(sides[0].plan.device).clock is not None)
    metrics = [m for m in timed if any(gate.threshold(m, cell.key) is not None for cell in cells)]
    if not metrics:
        return [], [
            f"no time was compared: no cell that both revisions can run has a threshold for {' or '.join(timed)}"
        ]
    looks = looks_until(pairs)
    blocks = [(cell.scope, cell.mode, cell.problem) for cell in cells]
    tests = [
        PairedTest(m, {c.key: gate.threshold(m, c.key) for c in cells}, blocks, looks, len(cells) * len(metrics))
        for m in metrics
    ]

    def times(test: PairedTest, done: int) -> tuple[Floats, Floats]:
        keys = ([before.key for before, _ in twins], [after.key for _, after in twins])
        clock = timed[test.metric].clock
        return seconds(sides[0], clock, keys[0], done), seconds(sides[1], clock, keys[1], done)

    begun, done, pair_s = time.monotonic(), 0, None
    latest: dict[str, tuple[Floats, Floats]] = {}
    for stop in looks:
        measured = {key for test in tests for key in test.measured}
        if not measured:
            break
        visited = [each for each in twins if each[-1].key in measured]
        progress.reached(Reached(len(twins) - len(visited), len(twins)))
        for number in range(done + 1, stop + 1):
            left_s = None if pair_s is None else pair_s * (stop - number + 1)
            progress.planned(Stage("pair", number, stop, looks[-1]), 2 * len(visited), left_s)
            pair_begun = time.monotonic()
            measure_pair(sides, visited, number)
            pair_s = time.monotonic() - pair_begun
        done = stop
        for test in tests:
            before, after = latest[test.metric] = times(test, done)
            test.look(np.log(after / before))
            progress.message(f"after {count(done, 'pair')}: {_summary(test)}")
    findings = [finding for test in tests for finding in test.findings(*latest[test.metric])]
    minutes = (time.monotonic() - begun) / 60
    return findings, [
        f"{count(done, 'pair')} of processes in {minutes:.1f} min, decided after {_listed(looks)} pairs; at most "
        f"{ALPHA:.0%} false alarms per suite",
        *_notes(findings),
    ]


def _listed(looks: Sequence[int]) -> str:
    return f"{', '.join(map(str, looks[:-1]))} or {looks[-1]}" if len(looks) > 1 else str(looks[0])


def _summary(test: PairedTest) -> str:
    """What a look has decided."""
    verdicts = Counter(decided.verdict for decided in test.decided.values())
    return f"{test.metric}: {', '.join(f'{number} {verdict}' for verdict, number in sorted(verdicts.items()))}"


def _notes(findings: Sequence[Finding]) -> Iterator[str]:
    """What the pairs can show."""
    for metric in dict.fromkeys(finding.metric for finding in findings):
        same = [f.detectable for f in findings if f.metric == metric and f.verdict == "same" and f.detectable]
        if same:
            yield (
                f"{metric}: in the cells that are the same, these pairs would have shown a slow-down of "
                f"{max(same):.1%}; a smaller one, down to the threshold, would have taken more of them"
            )
