"""attnbench floor: measured time beside the least this hardware could take."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnbench.outputs._rows import Format, Row, write

if TYPE_CHECKING:
    from attnbench.analysis.roofline import Floor


def command(
    run: Annotated[Path, typer.Argument(help="A folder that `attnbench run` wrote.", metavar="RUN")],
    form: Annotated[Format, typer.Option("--format", help="json: one object per timed cell.")] = "table",
) -> None:
    """Show, per series and size, the time over the larger of products / matmul rate and bytes · passes / copy rate.

    Example: attnbench floor results/gpu-20260101-120000
    """
    from attnbench.analysis.roofline import floors
    from attnbench.analysis.run import read_run
    from attnbench.errors import BadInput
    from attnbench.store.records import ENVIRONMENT

    stored = read_run(run)
    rates = stored.environment.get("rates")
    if not isinstance(rates, dict) or not rates.get("copy_bytes_per_s") or "passes" not in stored.results:
        raise BadInput(
            f"{run / ENVIRONMENT}: it has no measured rates of this hardware under 'rates', so there is no floor to "
            "compare with. Measure again with this version of attnbench."
        )
    cells = stored.results.set_index("key").to_dict("index")
    found = floors(stored.results, rates)
    rows = [{**_cell(cells[f.key]), **_figures(f)} for f in found]
    shown = [{**_cell(cells[f.key]), **_glance(f)} for f in found]
    write(rows, form, shown, numbers=("N", "C", "ms", "floor ms", "× floor"))
    if form == "table":
        matmul = ", ".join(f"{rate / 1e12:.3g} TFLOP/s {dtype}" for dtype, rate in rates["matmul_flops_per_s"].items())
        print(f"measured in this run: matmul {matmul}; copy {rates['copy_bytes_per_s'] / 1e9:.3g} GB/s.")


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


def _figures(floor: Floor) -> Row:
    ratio = floor.ratio if floor.floor_s else None
    return {"seconds": floor.seconds, "floor_s": floor.floor_s, "ratio": ratio, "bound": floor.bound}


def _glance(floor: Floor) -> Row:
    return {
        "ms": f"{floor.seconds * 1e3:.3g}",
        "floor ms": f"{floor.floor_s * 1e3:.3g}" if floor.floor_s else "",
        "× floor": f"{floor.ratio:.3g}" if floor.floor_s else "nothing required",
        "bound": floor.bound,
    }
