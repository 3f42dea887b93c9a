"""The overhead of the harness against its limits: time per visit outside the operators' calls, and worker starts.

    python benchmarks/harness.py [SUITE] [--operator NAME] [--size N] [--rounds N]

Runs a suite (default: quick) on the CPU into a temporary folder. The own cost of a visit is the time of timed rounds,
starts of workers included, without the operators' calls (which include checks and references), over the visits made.
Exits 1 where a limit is exceeded.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from attnbench.measure.added_rounds import add_rounds
from attnbench.measure.open_run import begin
from attnbench.measure.runner import Runner
from attnbench.measure.timed_rounds import TimedRounds
from attnbench.outputs._progress import plain
from attnbench.plan import suite as suites

VISIT_LIMIT_S = 0.05
START_LIMIT_S = 2.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", nargs="?", default="quick")
    parser.add_argument("--operator", action="append", default=[])
    parser.add_argument("--size", action="append", default=[], help="only these tokens")
    parser.add_argument("--rounds", type=int, default=None)
    args = parser.parse_args()
    chosen = suites.override(suites.load(args.suite), operators=args.operator, rounds=args.rounds)
    with tempfile.TemporaryDirectory() as folder:
        session = begin(chosen, "cpu", Path(folder) / "run")
        cells = [c for c in session.plan.cells if not args.size or str(c.problem.seq_len) in args.size]
        runner = Runner(replace(session.plan, cells=cells), session.journal, plain(sys.stderr))
        begun = time.perf_counter()
        runner.check()
        check_s = time.perf_counter() - begun
        checks = runner.maker.harness_s.copy()
        starts = len(runner.workers.start_s)
        rounds = TimedRounds(runner.maker)
        done = rounds.plan_rounds()
        for number in range(1, done + 1):
            rounds.make_round(number)
        add_rounds(rounds, done)
        rounds_s = time.perf_counter() - begun - check_s
        runner.workers.kill()
        session.journal.close()
    timed = [visit for visit in session.journal.visits if visit.round]
    inside_s = sum(visit.metrics.get("operator_s", 0.0) for visit in timed)
    own_s, start_s = (rounds_s - inside_s) / len(timed), statistics.median(runner.workers.start_s)
    blocks_s = statistics.mean(runner.maker.harness_s[len(checks) :])
    print(
        f"checks                 {len(checks)} in {check_s:.1f} s, own cost {1e3 * statistics.mean(checks):.1f} ms each"
    )
    print(f"timed visits           {len(timed)} in {rounds_s:.1f} s, {len(runner.workers.start_s) - starts} processes")
    print(
        f"own cost of a visit    {1e3 * own_s:.1f} ms, starts included (limit: {1e3 * VISIT_LIMIT_S:.0f} ms); ", end=""
    )
    print(f"{1e3 * blocks_s:.1f} ms without")
    print(f"start of a worker      median {start_s:.2f} s (limit: {START_LIMIT_S:g} s)")
    print(f"timed samples          {runner.maker.sampled_s / rounds_s:.0%} of the rounds, ", end="")
    print(f"{runner.maker.sampled_s / (check_s + rounds_s):.0%} with the checks")
    return int(own_s > VISIT_LIMIT_S or start_s > START_LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
