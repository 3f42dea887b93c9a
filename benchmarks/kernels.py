"""Compiles every shipped kernel configuration for sm_80, sm_90 and sm_100, without a GPU, and prints their resources.

The table has registers and stack per thread, shared memory per program and its limit. Exit 1 where registers have run
out (`spills`; a few bytes of stack below the limit of registers are ptxas's choice), shared memory is over the limit,
or a configuration does not compile. Arguments choose algorithms (`margins`, `kernelized.causal`); default: all.
Failures are printed immediately, the table at the end. Triton caches builds, so an interrupted sweep continues.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor

from rich.console import Console
from rich.table import Table

from attnbench.kernels.building import SHARED_MEMORY_LIMIT, Build, Configuration, algorithms, build

DECLARED = {module.__name__.removeprefix("attnbench.kernels."): module for module in algorithms()}
"""By name, such as `margins` or `kernelized.causal`."""

COLUMNS = ("kernel", "for", "sm", "warps", "registers", "shared KiB", "limit KiB", "stack B")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[*DECLARED], help="of attnbench/kernels/")
    parser.add_argument("--capability", type=int, action="append", choices=SHARED_MEMORY_LIMIT, help="default: all")
    parser.add_argument("--only", default="", help="configurations whose label or kernel contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="builds at a time; default: one for each core")
    args = parser.parse_args()
    builds = [
        (name, index, capability)
        for name in args.names
        for index, c in enumerate(configurations(name))
        for capability in args.capability or SHARED_MEMORY_LIMIT
        if capability in c.capabilities and args.only in f"{c.kernel.__name__} {c.label}"
    ]
    table = Table(*COLUMNS, title=f"{len(builds)} builds")
    failed, traded = 0, []
    with ProcessPoolExecutor(args.jobs) as pool:
        for row, fine, stack in pool.map(attempt, builds, chunksize=4):
            failed += not fine
            if not fine:
                print("  ".join(row), file=sys.stderr, flush=True)
            elif stack:
                traded.append(stack)
            table.add_row(*row, style="red" if not fine else "yellow" if stack else "")
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    within = len(builds) - failed
    print(f"{within} of {len(builds)} builds are within the limits: {within - len(traded)} use no stack")
    if traded:
        print(f"{len(traded)} use {min(traded)} to {max(traded)} bytes of stack with registers to spare")
    return 1 if failed else 0


def configurations(name: str) -> list[Configuration]:
    """The configurations of one algorithm."""
    return list(DECLARED[name].configurations())


def attempt(build_of: tuple[str, int, int]) -> tuple[list[str], bool, int]:
    """A row of the table, whether the build is within the limits, and its bytes of stack."""
    name, index, capability = build_of
    configuration = configurations(name)[index]
    head = [configuration.kernel.__name__, configuration.label, str(capability), str(configuration.num_warps)]
    limit = SHARED_MEMORY_LIMIT[capability]
    try:
        built: Build = build(configuration, capability)
    except Exception as error:
        return [*head, type(error).__name__, str(error).splitlines()[0][:40], "", ""], False, 0
    shared = f"{built.shared_bytes / 1024:.1f}"
    row = [*head, str(built.registers), shared, f"{limit / 1024:.0f}", str(built.stack_bytes)]
    return row, built.fits, built.stack_bytes


if __name__ == "__main__":
    sys.exit(main())
