"""How far a measured time is from the roofline: the least time that this hardware needs.

roofline = max(FLOPs / matmul rate, bytes moved / copy rate), the FLOPs of the cheapest exact form known,
Williams et al. 2009, "Roofline: An Insightful Visual Performance Model", https://doi.org/10.1145/1498765.1498785, with
the rates measured in the same run and the bytes that no fusion can keep from moving.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from attnbench.analysis.cards import Rates, rates_of
from attnbench.analysis.run import Run
from attnbench.errors import BadInput
from attnbench.store.records import ENVIRONMENT

COUNTS = ("flops", "reference_flops", "impl_flops")
"""Of the formula as written, of the reference, and of an impl that is a cheaper exact form."""

BYTES = ("bytes_moved", "bytes_required")
"""The least that is moved; runs of earlier versions only have it with every tensor read once."""


@dataclass(frozen=True)
class Roofline:
    """The roofline of one cell beside its time.

    Args:
        cell: its row of `Run.results`.
        seconds: device time where there is one, else wall time.
        roofline_s: the least time; 0 where nothing is required.
        bound: the larger term, products or traffic.
    """

    cell: Mapping[Hashable, Any]
    seconds: float
    roofline_s: float
    bound: str

    @property
    def reads_once(self) -> bool:
        """Whether the run does not say what must be read again, so that the roofline may be too low."""
        return bool(pd.isna(self.cell.get(BYTES[0], math.nan)))

    @property
    def ratio(self) -> float:
        """Time over roofline; infinite where nothing is required."""
        return self.seconds / self.roofline_s if self.roofline_s else math.inf


def least_s(flops: float, moved: float, matmul_flops_per_s: float, copy_bytes_per_s: float) -> tuple[float, str]:
    """The roofline of so many FLOPs and bytes, and its larger term: `products` or `traffic`."""
    products, traffic = flops / matmul_flops_per_s, moved / copy_bytes_per_s
    return max(products, traffic), "products" if products > traffic else "traffic"


def measured_rates(run: Run) -> Rates:
    """The rates of the hardware that a run measured.

    Raises: BadInput where it has none.
    """
    rates = rates_of(run.environment)
    if rates is None:
        raise BadInput(
            f"{run.folder / ENVIRONMENT}: it has no measured rates of this hardware under 'rates', so there is no "
            "roofline to compare with. Measure again with this version of attnbench."
        )
    return rates


def rooflines(results: pd.DataFrame, rates: Rates) -> list[Roofline]:
    """The roofline of every timed cell, in the order of results.

    Args:
        results: `Run.results`.
        rates: those of the hardware; cells of a dtype whose rate was not measured are left out.
    """
    rows = []
    for row in results[results["status"] == "ok"].to_dict("records"):
        seconds = row["wall_time_s"] if pd.isna(row["device_time_s"]) else row["device_time_s"]
        matmul = rates.matmul_flops_per_s.get(row["dtype"])
        moved = next((row[name] for name in BYTES if not pd.isna(row.get(name, math.nan))), None)
        if pd.isna(seconds) or matmul is None or moved is None:
            continue
        flops = min(float(row[name]) for name in COUNTS if not pd.isna(row.get(name, math.nan)))
        roofline_s, bound = least_s(flops, float(moved), matmul, rates.copy_bytes_per_s)
        rows.append(Roofline(row, float(seconds), roofline_s, bound))
    return rows
