"""The overhead of the harness against its limits: time per visit outside the operators' calls, and worker starts.

    python benchmarks/harness.py [SUITE] [--operator NAME]

Runs a suite (default: quick) on the CPU into a temporary folder. The overhead of a visit is the time from its request
until it is on disk, without the operators' calls (which include checks and references). Exits 1 where a limit is
exceeded.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from attnbench.measure.open_run import begin
from attnbench.measure.runner import Runner
from attnbench.outputs._progress import plain
from attnbench.plan import suite as suites

VISIT_LIMIT_S = 0.05
START_LIMIT_S = 2.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", nargs="?", default="quick")
    parser.add_argument("--operator", action="append", default=[])
    args = parser.parse_args()
    chosen = suites.override(suites.load(args.suite), operators=args.operator)
    with tempfile.TemporaryDirectory() as folder:
        session = begin(chosen, "cpu", Path(folder) / "run")
        runner = Runner(session.plan, session.journal, plain(sys.stderr))
        begun = time.perf_counter()
        runner.run()
        run_s = time.perf_counter() - begun
        session.journal.close()
    inside = sum(v.metrics.get("operator_s", 0.0) for v in session.journal.visits)
    per_visit, starts = sorted(runner.harness_s), runner.workers.start_s
    mean, start = statistics.mean(per_visit), statistics.median(starts)
    print(f"visits                 {len(per_visit)} in {run_s:.1f} s")
    middle, high = statistics.median(per_visit), per_visit[int(0.95 * len(per_visit))]
    print(f"overhead of a visit    mean {1e3 * mean:.1f} ms (limit: {1e3 * VISIT_LIMIT_S:.0f} ms), ", end="")
    print(f"median {1e3 * middle:.1f} ms, 95 % below {1e3 * high:.1f} ms")
    print(f"start of a worker      median {start:.2f} s, longest {max(starts):.2f} s (limit: {START_LIMIT_S:g} s)")
    print(f"inside operators' calls {inside / run_s:.0%} of the run")
    return int(mean > VISIT_LIMIT_S or start > START_LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
