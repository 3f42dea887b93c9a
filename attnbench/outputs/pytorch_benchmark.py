"""The PyTorch benchmark database's records (schema v3), a list with one for each metric of a cell.

The columns are those of `benchmark.oss_ci_benchmark_v3` in pytorch/test-infra; its upload action adds the repository,
the commit and the job. Values of `extra_info` are text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attnbench.outputs._export import Measurement, document, machine, tracked, whole

if TYPE_CHECKING:
    from attnbench.analysis.summary import Summary

DOCUMENT = True

_MODES = {"fwd": "inference", "fwd_bwd": "training"}


def run(summary: Summary) -> str:
    """A list of records. `model` names the cell by its key, so that dashboards tell all of them apart."""
    facts = machine(summary)
    torch = {"torch": {"version": str(facts["torch"]), "extra_info": {}}} if facts.get("torch") else {}
    common = {"runners": [_runner(facts)], "dependencies": torch}
    return document([{**_record(each, value, summary.name), **common} for each, value in tracked(summary)])


def _record(each: Measurement, value: float, suite: str) -> dict[str, Any]:
    series, metric, dtype = each.series, each.quantity.metric, each.problem.dtype
    ends = dict(zip(("low", "high"), each.interval or (), strict=False))
    return {
        "benchmark": {
            "name": "attnbench",
            "mode": _MODES[each.mode],
            "dtype": dtype,
            "extra_info": _texts({"suite": suite, "device": each.device, "scope": each.scope}),
        },
        "model": {
            "name": each.benchmark,
            "type": "attention",
            "backend": series.impl,
            "origins": ["attnbench"],
            "extra_info": _texts({"operator": series.operator, "params": series.params, "series": series.name}),
        },
        "inputs": {
            "x": {"dtype": dtype, "extra_info": _texts({**each.sizes, "causal": each.problem.causal})},
        },
        "metric": {
            "name": each.quantity.name,
            "benchmark_values": [value],
            "extra_info": _texts({"unit": metric.unit or "1", "column": metric.column, **ends}),
        },
    }


def _runner(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The machine by its models; it has no name."""
    gpu = facts.get("gpu", {})
    return {
        "type": str(gpu.get("name") or facts.get("cpu") or facts.get("machine") or ""),
        "cpu_info": str(facts.get("cpu") or ""),
        "cpu_count": whole(facts, "cores"),
        "avail_mem_in_gb": whole(facts, "memory_bytes") // 10**9,
        "gpu_info": str(gpu.get("name") or ""),
        "gpu_count": 1 if gpu else 0,
        "avail_gpu_mem_in_gb": whole(gpu, "memory_bytes") // 10**9,
        "extra_info": _texts({name: value for name, value in facts.items() if name not in ("cpu", "cores")}),
    }


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Those that there are, as text; what is not text as JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in values.items()
        if value is not None
    }
