"""The analytic times of kernels on an H100 at 64 K tokens, beside the least that their operator needs.

Nothing is measured. What a launch needs at least: its tensors through memory; what its programs load and store through
L2; on the busiest multiprocessor its matrix products (a third slower by mma than by wgmma), its exponentials, and the
instructions of its machine code, those of loops that multiply matrices as often as they do; the round trips to memory
of these loops, of which a multiprocessor has as many at a time as it holds programs and they have stages; the time that
any launch takes. The analytic time is the longest of these: all overlap perfectly. Beside it stands their sum, where
none overlaps. Operands and results of torch's operators between launches go through memory once, which for a sort is
too few.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import triton.language as tl
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from attnbench.kernels.building import Build, Configuration, build
from attnbench.operator import Cost
from attnbench.problem import Mode
from attnbench.registry import operators, resolve
from benchmarks import kernel_launches
from benchmarks.kernel_launches import TORCH, problem_of

CASES: tuple[tuple[str, dict[str, Any], bool], ...] = (
    ("linformer", {}, False),
    ("kao_kv", {}, False),
    ("kao_qkv", {}, False),
    ("synthesizer", {"kind": "factorized_dense"}, False),
    ("sinkhorn", {}, False),
    ("sinkhorn", {}, True),
    ("reformer", {}, False),
    ("hamburger", {}, False),
    ("lambda_layer", {}, False),
    ("efficient", {}, False),
    ("linear_transformer", {}, False),
    ("linear_transformer", {}, True),
    ("performer", {}, False),
    ("performer", {}, True),
    ("rfa", {"gate": "none"}, False),
    ("rfa", {"gate": "none"}, True),
)
"""Operator, params other than its own, and whether causal: those whose impl `cuda` launches kernels of ours."""

MULTIPROCESSORS = 132
MEMORY = 3.0e12
"""Bytes a second that copies reach, of the 3.35 T of the data sheet."""
L2 = 5.5e12
"""Bytes a second from L2: 64 bytes a clock for each of 48 slices, as far as programs have been seen to reach it."""
PRODUCTS = 800e12
"""FLOPs a second that large products of bfloat16 reach of the 990 T that the chip has, by wgmma."""
MMA = 2 / 3
"""The part of that which mma reaches."""
EXPONENTIALS = 16 * 1.755e9 * MULTIPROCESSORS
"""A second: 16 a clock."""
ISSUED = 4 * 1.755e9 * MULTIPROCESSORS
"""Instructions of a warp a second: four a clock."""
ROUND_TRIP = 0.7e-6
"""Seconds from a load to its use."""
LAUNCH = 3e-6
"""Seconds of a launch that does nothing."""
FEW_STEPS = 4
"""A loop of fewer steps has no stages to fill."""

COLUMNS = (
    "kernel", "times", "programs", "per SM", "steps", "stages", "wgmma", "DRAM MB", "L2 MB", "GFLOP", "exp M",
    "instr M", "bound", "µs", "sum",
)  # fmt: skip

SUMMARY = ("operator", "part", "analytic µs", "sum µs", "least µs", "analytic / least", "sum / least")


@dataclass(frozen=True)
class Time:
    """A launch and how long it takes, in seconds, by what bounds it."""

    launch: Mapping[str, Any]
    built: Build | None
    bounds: Mapping[str, float]

    @property
    def seconds(self) -> float:
        return max(self.bounds.values())

    @property
    def in_turn(self) -> float:
        """Where nothing overlaps."""
        return sum(self.bounds.values())

    @property
    def bound(self) -> str:
        return max(self.bounds, key=lambda name: self.bounds[name])

    @property
    def steps(self) -> float:
        """How often an average program goes through its matrix products."""
        return self.launch["products"] / max(1, len(self.built.product_rows)) if self.built else 0

    @property
    def instructions(self) -> float:
        """Of all warps of an average program."""
        if self.built is None:
            return 0
        code = self.built.code
        once, looped = code.instructions - code.looped, code.looped
        return self.built.configuration.num_warps * (once + looped * max(1, self.steps))

    @property
    def waits(self) -> bool:
        """Whether a loop of some length loads the operands of its products with one stage."""
        return bool(self.built and self.built.code.waiting_loops and self.steps >= FEW_STEPS)


def time_of(launch: Mapping[str, Any]) -> Time:
    """The launch, built for sm_90, and its time."""
    if launch["kernel"] == TORCH:
        bounds = {
            "launch": launch["programs"] * LAUNCH,
            "memory": launch["memory_bytes"] / MEMORY,
            "products": launch["flops"] / PRODUCTS,
        }
        return Time(launch, None, bounds)
    built = built_once(json.dumps([launch["kernel"], launch["arguments"], launch["options"]]))
    programs, share = launch["programs"], built.code.wgmma_share or 0
    moved = programs * (launch["loaded"] + launch["stored"])
    busiest = -(-programs // MULTIPROCESSORS) * MULTIPROCESSORS  # as many programs' worth of time as all would take
    rate = PRODUCTS * (share + (1 - share) * MMA)
    waves = -(-programs // (MULTIPROCESSORS * max(1, built.programs)))
    stages = built.configuration.num_stages if built.code.copies else 1
    time = Time(launch, built, {"": 0.0})
    return Time(
        launch,
        built,
        {
            "launch": LAUNCH,
            "memory": min(moved, launch["memory_bytes"]) / MEMORY,
            "L2": moved / L2,
            "products": max(busiest * launch["flops"] / rate, launch["most_flops"] * MULTIPROCESSORS / rate),
            "issue": busiest * time.instructions / ISSUED,
            "exponentials": busiest * launch["exponentials"] / EXPONENTIALS,
            "latency": waves * (1 + time.steps / stages) * ROUND_TRIP,
        },
    )


@cache
def built_once(launch: str) -> Build:
    """For sm_90. launch: its kernel, arguments and options, as JSON."""
    return build(configuration(*json.loads(launch)), 90)


def configuration(of: str, arguments: Mapping[str, Any], options: Mapping[str, int]) -> Configuration:
    """What a launch would compile. of: the kernel's module and name."""
    module, _, name = of.rpartition(".")
    kernel = getattr(import_module(module), name)
    types = {name: value[0] for name, value in arguments.items() if isinstance(value, list)}
    values = {name: value for name, value in arguments.items() if name not in types}
    constexprs = {
        name: getattr(tl, {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[value["dtype"]])
        if isinstance(value, dict)
        else value
        for name, value in values.items()
    }
    types = {name: types[name] for name in kernel.arg_names if name in types}  # in the kernel's order
    multiples = tuple(name for name in types if arguments[name][1] and not types[name].startswith("*"))
    warps, stages = options.get("num_warps", 4), options.get("num_stages", 3)
    registers = options.get("maxnreg")
    return Configuration(
        kernel, types, constexprs, warps, stages, "64 K tokens", multiples=multiples, registers=registers
    )


def counted_launches(cases: Sequence[tuple[str, dict[str, Any], bool]]) -> Iterator[list[Any]]:
    """Operator, params, causal, and its launches by part, or why they cannot be counted."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", kernel_launches.__name__, json.dumps(cases)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        raise RuntimeError(f"the process that counts launches ended with {process.returncode}")


def limits(name: str, params: Mapping[str, Any], causal: bool) -> dict[str, float]:
    """The roofline of the forward, and of the backward alone, in seconds."""
    operator = operators()[name].load()
    problem = problem_of(operator, causal)
    resolved, form = resolve(operator, dict(params)), operator.forms["core"]

    def flops(mode: Mode, cost: Cost) -> int:
        own = form.impls["cuda"].flops
        return min(cost.flops, cost.reference_flops, own(problem, resolved, mode) if own else cost.flops)

    forward, both = (form.cost(problem, resolved, mode) for mode in ("fwd", "fwd_bwd"))
    products = flops("fwd", forward), flops("fwd_bwd", both)
    return {
        "fwd": max(forward.bytes_moved / MEMORY, products[0] / PRODUCTS),
        "bwd": max((both.bytes_moved - forward.bytes_moved) / MEMORY, (products[1] - products[0]) / PRODUCTS),
    }


def tables(names: Sequence[str], console: Console) -> list[str]:
    """Prints a table for each operator, as soon as it is known.

    Args:
        names: of algorithms: operators that launch none of these are left out; empty: all operators.
    Returns: the launches whose loops wait for their operands, and what could not be counted.
    """
    faults, summary = (
        [],
        Table(*SUMMARY, title="64 K tokens on an H100, analytic", box=SIMPLE),
    )
    for name, params, causal, parts in counted_launches(CASES):
        title = " ".join((name, *map(str, params.values()), *(["causal"] if causal else [])))
        if isinstance(parts, str):
            faults.append(f"{title}: {parts}")
            continue
        if not any(of_algorithm(launch, names) for part in parts.values() for launch in part):
            continue
        least = limits(name, params, causal)
        table = Table(*COLUMNS, title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
        for part, launched in parts.items():
            times = [time_of(launch) for launch in launched]
            total, in_turn = sum(time.seconds for time in times), sum(time.in_turn for time in times)
            for (kernel, *cells), alike in groups(times, row):
                table.add_row(kernel, str(len(alike)), *cells, style="yellow" if alike[0].waits else "")
            faults += [
                f"{title} {part}: {time.launch['kernel']} waits for the operands of its products"
                for time in times
                if time.waits
            ]
            table.add_section()
            figures = (total * 1e6, in_turn * 1e6, least[part] * 1e6)
            ratios = (f"{each / least[part]:.2f}" for each in (total, in_turn))
            summary.add_row(title, part, *(f"{figure:.0f}" for figure in figures), *ratios)
        console.print(table)
    console.print(summary)
    return list(dict.fromkeys(faults))


def groups(times: Sequence[Time], key: Callable[[Time], tuple[str, ...]]) -> list[tuple[tuple[str, ...], list[Time]]]:
    """The launches that are alike, where the first of them stands."""
    alike: dict[tuple[str, ...], list[Time]] = {}
    for time in times:
        alike.setdefault(key(time), []).append(time)
    return list(alike.items())


def of_algorithm(launch: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether the kernel is in the package of one of these algorithms; of any, where there are none."""
    package = launch["kernel"].removeprefix("attnbench.kernels.").split(".")[0]
    return launch["kernel"] != TORCH and (not names or package in {name.split(".")[0] for name in names})


def row(time: Time) -> tuple[str, ...]:
    """Of a table of launches."""
    launch, built = time.launch, time.built
    moved = launch["programs"] * (launch["loaded"] + launch["stored"])
    share = built.code.wgmma_share if built else None
    return (
        launch["kernel"].rpartition(".")[2],
        str(launch["programs"]),
        str(built.programs) if built else "",
        f"{time.steps:.3g}" if time.steps else "",
        str(built.configuration.num_stages if built.code.copies else 1) if built else "",
        "" if share is None else f"{share:.0%}",
        f"{launch['memory_bytes'] / 1e6:.0f}",
        f"{moved / 1e6:.0f}" if built else "",
        f"{(launch['programs'] if built else 1) * launch['flops'] / 1e9:.3g}",
        f"{launch['programs'] * launch['exponentials'] / 1e6:.3g}",
        f"{launch['programs'] * time.instructions / 1e6:.3g}" if built else "",
        time.bound,
        f"{time.seconds * 1e6:.0f}",
        f"{time.in_turn * 1e6:.0f}",
    )
