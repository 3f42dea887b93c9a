"""attnbench merge: joins runs and shards of one suite into one run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from attnbench.commands._options import MEASURE

PANEL = MEASURE


def command(
    runs: Annotated[list[Path], typer.Argument(help="Folders that `attnbench run` or merge wrote.", metavar="RUN...")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    partial: Annotated[
        bool, typer.Option("--partial", help="Join what there is, though shards or units of one are missing.")
    ] = False,
) -> None:
    """Join runs and shards of one suite into one run.

    What `attnbench run --shard` measured on several devices becomes one run, and so do runs of one suite that measured
    different operators, or the same ones again. Each keeps which device measured what; intervals know how much devices
    differ. Refused, with the reason, is what does not belong together: another suite, contract, code, model of device
    or version of torch, and what was measured twice.

    Exit code: 0 joined; 2 refused. The last line of stdout is the folder.

    Example: attnbench merge shards/* --out results/all
    """
    from attnbench.measure.platforms import check_can_measure

    check_can_measure("merge")
    from attnbench.analysis.merge.joining import join
    from attnbench.analysis.merge.writing import write

    joined = join(runs, partial=partial)
    write(joined, out)
    for note in joined.notes:
        print(note, file=sys.stderr)
    print(out)
