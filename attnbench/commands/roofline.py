"""attnbench roofline: measured times over the least that this hardware needs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnbench.commands._options import format_option
from attnbench.outputs import _formats as formats
from attnbench.outputs._rows import Listing, Row

if TYPE_CHECKING:
    from attnbench.analysis.roofline import Roofline


def command(
    run: Annotated[Path, typer.Argument(help="A folder that `attnbench run` wrote.", metavar="RUN")],
    form: Annotated[str, format_option("rows", "json: one object per timed cell.")] = "table",
) -> None:
    """Show, per series and size, the time over the larger of products / matmul rate and bytes · passes / copy rate.

    Example: attnbench roofline results/gpu-20260101-120000
    """
    from attnbench.analysis.roofline import rooflines
    from attnbench.analysis.run import read_run
    from attnbench.errors import BadInput
    from attnbench.store.records import ENVIRONMENT

    stored = read_run(run)
    rates = stored.environment.get("rates")
    if not isinstance(rates, dict) or not rates.get("copy_bytes_per_s") or "passes" not in stored.results:
        raise BadInput(
            f"{run / ENVIRONMENT}: it has no measured rates of this hardware under 'rates', so there is no "
            "roofline to compare with. Measure again with this version of attnbench."
        )
    cells = stored.results.set_index("key").to_dict("index")
    found = rooflines(stored.results, rates)
    rows = [{**_cell(cells[f.key]), **_figures(f)} for f in found]
    table = [{**_cell(cells[f.key]), **_glance(f)} for f in found]
    matmul = ", ".join(f"{rate / 1e12:.3g} TFLOP/s {dtype}" for dtype, rate in rates["matmul_flops_per_s"].items())
    note = f"measured in this run: matmul {matmul}; copy {rates['copy_bytes_per_s'] / 1e9:.3g} GB/s."
    listing = Listing(rows, table, numbers=("N", "C", "ms", "roofline ms", "× roofline"), notes=(note,))
    formats.show("rows", listing, form)


def _cell(row: Mapping[Hashable, Any]) -> Row:
    image = isinstance(row["height"], int)
    return {
        "operator": row["operator"],
        "impl": row["impl"],
        "mode": row["mode"],
        "dtype": row["dtype"],
        "N": f"{row['height']}x{row['width']}" if image else str(row["seq_len"]),
        "C": row["channels"],
    }


def _figures(roofline: Roofline) -> Row:
    ratio = roofline.ratio if roofline.roofline_s else None
    return {"seconds": roofline.seconds, "roofline_s": roofline.roofline_s, "ratio": ratio, "bound": roofline.bound}


def _glance(roofline: Roofline) -> Row:
    return {
        "ms": f"{roofline.seconds * 1e3:.3g}",
        "roofline ms": f"{roofline.roofline_s * 1e3:.3g}" if roofline.roofline_s else "",
        "× roofline": f"{roofline.ratio:.3g}" if roofline.roofline_s else "nothing required",
        "bound": roofline.bound,
    }
