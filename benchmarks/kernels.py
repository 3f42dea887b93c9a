"""Compiles every shipped kernel configuration for sm_80, sm_90 and sm_100, without a GPU, and reads its machine code.

The first table has, by kernel, registers and stack per thread, shared memory per program, how matrices are multiplied
(the share of wgmma on sm_90), asynchronous copies, loops whose products wait for operands from memory, and how many
programs a multiprocessor holds. It lists what the tests build and what is out of bounds; `--all`: every build. Then the
launches of a call of 64 K tokens on an H100, with analytic times beside the least that the operator needs
(`kernel_times.py`).

Exit 1 where registers have run out (a few bytes of stack below the limit of registers are ptxas's choice), shared
memory is over the limit, a configuration does not compile, a tile of 64 rows or more is multiplied by mma on sm_90 in
half precision, or a loop of a launch loads the operands of its products with one stage. Arguments choose algorithms
(`margins.launch`, `kernelized.causal`); default: all. Failures are printed immediately. Triton caches builds, so an
interrupted sweep continues.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import groupby

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from attnbench.kernels.building import SHARED_MEMORY_LIMIT, Configuration, algorithms, build
from benchmarks.kernel_times import tables

DECLARED = {module.__name__.removeprefix("attnbench.kernels."): module for module in algorithms()}
"""By name, such as `margins` or `kernelized.causal`."""

COLUMNS = (
    "for",
    "sm",
    "warps",
    "stages",
    "registers",
    "stack B",
    "shared KiB",
    "products",
    "copies",
    "waiting",
    "per SM",
)


@dataclass(frozen=True)
class Row:
    """Of one build. fault: why it is out of bounds; empty: it is not. stack: bytes, accepted if there is no fault."""

    kernel: str
    sample: bool
    cells: tuple[str, ...]
    fault: str = ""
    stack: int = 0

    @property
    def style(self) -> str:
        return "red" if self.fault else "yellow" if self.stack else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[*DECLARED], help="of attnbench/kernels/")
    parser.add_argument("--capability", type=int, action="append", choices=SHARED_MEMORY_LIMIT, help="default: all")
    parser.add_argument("--only", default="", help="configurations whose label or kernel contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="builds at a time; default: one for each core")
    parser.add_argument("--all", action="store_true", help="list every build")
    parser.add_argument("--no-times", action="store_true", help="leave the analytic times out")
    args = parser.parse_args()
    builds = [
        (name, index, capability)
        for name in args.names
        for index, c in enumerate(configurations(name))
        for capability in args.capability or SHARED_MEMORY_LIMIT
        if capability in c.capabilities and args.only in f"{c.kernel.__name__} {c.label}"
    ]
    rows = []
    with ProcessPoolExecutor(args.jobs) as pool:
        for row in pool.map(attempt, builds, chunksize=4):
            rows.append(row)
            if row.fault:
                print("  ".join((row.kernel, *row.cells, row.fault)), file=sys.stderr, flush=True)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table_of([row for row in rows if args.all or row.sample or row.fault]))
    failed, traded = [row for row in rows if row.fault], [row.stack for row in rows if row.stack and not row.fault]
    within = len(rows) - len(failed)
    print(f"{within} of {len(rows)} builds are within bounds: {within - len(traded)} use no stack")
    if traded:
        print(f"{len(traded)} use {min(traded)} to {max(traded)} bytes of stack with registers to spare")
    chosen = [] if len(args.names) == len(DECLARED) else args.names
    faults = [] if args.no_times else tables(chosen, console)
    print("\n".join(faults))
    return 1 if failed or faults else 0


def table_of(rows: Sequence[Row]) -> Table:
    """By kernel."""
    table = Table(*COLUMNS, "out of bounds", box=SIMPLE)
    for kernel, of_kernel in groupby(sorted(rows, key=lambda row: row.kernel), lambda row: row.kernel):
        table.add_section()
        table.add_row(kernel, style="bold")
        for row in of_kernel:
            table.add_row(*row.cells, row.fault, style=row.style)
    return table


def configurations(name: str) -> list[Configuration]:
    """The configurations of one algorithm."""
    return list(DECLARED[name].configurations())


def attempt(build_of: tuple[str, int, int]) -> Row:
    """The row of a build."""
    name, index, capability = build_of
    c = configurations(name)[index]
    kernel, head = c.kernel.__name__, (c.label, str(capability), str(c.num_warps), str(c.num_stages))
    try:
        built = build(c, capability)
    except Exception as error:
        return Row(kernel, c.sample, head, f"{type(error).__name__}: {str(error).splitlines()[0][:40]}")
    code = built.code
    share = code.wgmma_share if capability == 90 else None
    kinds = {"mma": code.mma, "wgmma": code.wgmma, "tcgen05": code.tcgen05}
    products = " + ".join(kind for kind, number in kinds.items() if number) if share is None else f"wgmma {share:.0%}"
    limit = SHARED_MEMORY_LIMIT[capability]
    cells = (
        *head,
        str(built.registers),
        str(built.stack_bytes),
        f"{built.shared_bytes / 1024:.1f}",
        products,
        str(code.copies or ""),
        str(code.waiting_loops or ""),
        str(built.programs),
    )
    faults = {
        "spills": built.spills,
        f"more than {limit / 1024:.0f} KiB": built.shared_bytes > limit,
        "not on wgmma": built.misses_wgmma,
    }
    return Row(kernel, c.sample, cells, ", ".join(text for text, is_so in faults.items() if is_so), built.stack_bytes)


if __name__ == "__main__":
    sys.exit(main())
