"""What github-action-benchmark reads with `tool: customSmallerIsBetter`: a list of figures, of all of which less is
better.

https://github.com/benchmark-action/github-action-benchmark (`BenchmarkResult` of src/extract.ts); it refuses an empty
list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnbench.outputs._export import Measurement, document, machine, tracked

if TYPE_CHECKING:
    from attnbench.analysis.summary import Summary

DOCUMENT = True


def run(summary: Summary) -> str:
    """A list of objects. `name` is the cell's key and the metric; `range` the 95 % interval, where there is one."""
    facts = machine(summary)
    gpu = facts.get("gpu", {})
    where = ", ".join(str(fact) for fact in (gpu.get("name") or facts.get("cpu"), facts.get("torch")) if fact)
    return document([_result(each, value, where) for each, value in tracked(summary)])


def _result(each: Measurement, value: float, where: str) -> dict[str, str | float]:
    interval = {"range": "{:.6g} to {:.6g}".format(*each.interval)} if each.interval else {}
    return {
        "name": f"{each.benchmark} {each.quantity.name}",
        "unit": each.quantity.metric.unit or "1",
        "value": value,
        **interval,
        "extra": "; ".join(part for part in (each.series.name, where) if part),
    }
