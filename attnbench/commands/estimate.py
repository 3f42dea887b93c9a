"""attnbench estimate: the analytic cost of operators at any size, and memory from shapes; nothing is computed."""

from __future__ import annotations

from typing import Annotated

import typer

from attnbench.commands._options import dtype_help, format_option, grouped, size_options
from attnbench.outputs import _formats as formats


@grouped
def command(
    operator: Annotated[
        list[str], typer.Argument(help="Names, as `attnbench list operators` shows them.", metavar="OP...")
    ],
    sizes: Annotated[dict[str, list[str] | None], size_options(list[str] | None)],
    dtype: Annotated[list[str] | None, typer.Option(help=dtype_help())] = None,
    causal: Annotated[bool, typer.Option("--causal", help="Token i sees only tokens up to i.")] = False,
    mode: Annotated[str, typer.Option(help="fwd (infer), or fwd_bwd (train).")] = "fwd",
    scope: Annotated[str, typer.Option(help="core, or layer (with the projections).")] = "core",
    param: Annotated[
        list[str] | None, typer.Option(help="key=value; applied to the operators that have the key.")
    ] = None,
    operators_from: Annotated[list[str] | None, typer.Option(help="A .py file or package of your own.")] = None,
    form: Annotated[str, format_option("rows", "json: one object per operator and size.")] = "table",
) -> None:
    """Show FLOPs, multiply-adds, required traffic, arithmetic intensity and peak memory; nothing is computed.

    Sizes and dtypes: one or several, --seq-len 1K,4K or repeated; K: 1024. A multiply-add counts as 2 FLOPs. traffic:
    bytes that any impl must read and write. state: what a causal form keeps of all tokens to continue from. memory: the
    most that the reference holds at once beside its inputs, parameters included.

    Example: attnbench estimate softmax linformer --seq-len 1024,65536 --param k=128
    """
    from attnbench.errors import BadInput
    from attnbench.measure.estimates import estimate
    from attnbench.outputs import _listings as listings
    from attnbench.plan.estimate_request import EstimateRequest, cells

    request = EstimateRequest(
        operators=operator,
        sizes={name: words or () for name, words in sizes.items()},
        dtype=dtype or ["float32"],
        causal=causal,
        mode=mode,
        scope=scope,
        params=param or (),
        operators_from=operators_from or (),
    )
    rows = [estimate(*each) for each in cells(request)]
    if all(row["flops"] is None for row in rows):
        raise BadInput("\n".join(dict.fromkeys(f"{row['operator']}: {row['reason']}." for row in rows)))
    formats.show("rows", listings.estimates(rows), form)
