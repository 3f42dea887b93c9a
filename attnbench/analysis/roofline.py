"""How far a measured time is from the least this hardware could take.

floor = max(FLOPs / matmul rate, bytes_required · passes / copy rate), the FLOPs of the cheapest exact form known,
Williams et al. 2009, "Roofline: An Insightful Visual Performance Model", https://doi.org/10.1145/1498765.1498785, with
the rates measured in the same run and with the sequential passes over the tokens that no fusion can remove.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

COUNTS = ("flops", "reference_flops", "impl_flops")
"""Of the formula as written, of the reference, and of an impl that is a cheaper exact form."""


@dataclass(frozen=True)
class Floor:
    """One cell beside its floor. seconds: device time where there is one, else wall time. bound: the larger term."""

    key: str
    seconds: float
    floor_s: float
    bound: str

    @property
    def ratio(self) -> float:
        """How many times the floor was taken; infinite where nothing is required at all."""
        return self.seconds / self.floor_s if self.floor_s else math.inf


def floors(results: pd.DataFrame, rates: Mapping[str, Any]) -> list[Floor]:
    """The floor of every timed cell, in the order of results.

    results: `Run.results`. rates: environment["rates"], copy_bytes_per_s and matmul_flops_per_s by dtype; cells of
    a dtype whose rate was not measured are left out.
    """
    found = []
    for _, row in results[results["status"] == "ok"].iterrows():
        seconds = row["wall_time_s"] if pd.isna(row["device_time_s"]) else row["device_time_s"]
        matmul = rates.get("matmul_flops_per_s", {}).get(row["dtype"])
        if pd.isna(seconds) or matmul is None or pd.isna(row["passes"]):
            continue
        products = min(float(row[name]) for name in COUNTS if not pd.isna(row.get(name))) / matmul
        traffic = float(row["bytes_required"]) * float(row["passes"]) / rates["copy_bytes_per_s"]
        bound = "products" if products > traffic else "traffic"
        found.append(Floor(row["key"], float(seconds), max(products, traffic), bound))
    return found
