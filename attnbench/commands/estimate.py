"""attnbench estimate: the analytic cost of operators at any size, and memory from shapes; nothing is computed."""

from __future__ import annotations

from typing import Annotated

import typer

from attnbench.commands._options import DECIDE, ProblemOptions, format_option, grouped, size_options
from attnbench.outputs import _formats as formats

PANEL = DECIDE


@grouped
def command(
    operator: Annotated[
        list[str], typer.Argument(help="Names, as `attnbench list operators` shows them.", metavar="OP...")
    ],
    sizes: Annotated[dict[str, list[str] | None], size_options(list[str] | None)],
    problem: ProblemOptions,
    form: Annotated[str, format_option("rows", "json: one object per operator and size.")] = "table",
) -> None:
    """Calculate FLOPs, traffic and memory at any size; nothing is run.

    FLOPs, multiply-adds, required traffic, arithmetic intensity and peak memory, by formulas and shapes.

    Sizes and dtypes: one or several, --seq-len 1K,4K or repeated; K: 1024. A multiply-add counts as 2 FLOPs. traffic:
    bytes that any impl must read and write. state: what a causal form keeps of all tokens to continue from. memory: the
    most that the reference holds at once beside its inputs, parameters included.

    Example: attnbench estimate softmax linformer --seq-len 1024,65536 --param k=128
    """
    from attnbench.errors import BadInput
    from attnbench.measure.estimates import estimates
    from attnbench.outputs import _listings as listings
    from attnbench.plan.problem_request import cells

    rows = estimates(cells(problem.request(operator, sizes)))
    if all(row["flops"] is None for row in rows):
        raise BadInput("\n".join(dict.fromkeys(f"{row['operator']}: {row['reason']}." for row in rows)))
    formats.show("rows", listings.estimates(rows), form)
