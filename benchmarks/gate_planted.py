"""What the gate study plants: a known share of extra work in one operator, and lost complexity in many."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from attnbench.measure.machine import allocator

SLOW_DOWNS = (0.02, 0.05, 0.10, 0.25)
SIZES = (256, 512)
OPERATOR = "studied"

SUITE = f"""name: gate-study
description: four operators, one of them planted
operators_from: [{OPERATOR}.py]
operators: [softmax, {{{OPERATOR}: {{window: 64}}}}, linformer, performer]
impls: [reference]
sweep: [{{seq_len: {list(SIZES)}}}]
problem: {{heads: 4, channels: 64}}
measure: {{rounds: 1}}
gate: {{wall_time: 5%}}
"""

TIMED = '''"""As local, and log Γ of `EXTRA[N]` numbers: the work that is planted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attnbench.operators.sparse import local
from attnbench.problem import Params, Problem

EXTRA: dict[int, int] = {extra}
NUMBERS = torch.linspace(1, 9, {most})
RESULTS = torch.empty_like(NUMBERS)


def reference(problem: Problem, params: Params, **tensors: Tensor) -> Tensor:
    """q, k, v: [B, H, N, D]. Returns [B, H, N, D]."""
    count = EXTRA[problem.seq_len]
    torch.lgamma(NUMBERS[:count], out=RESULTS[:count])
    return local.reference(problem, params, **tensors)


OPERATOR = replace(local.OPERATOR, forms={{"core": replace(local.CORE, reference=reference, impls={{}})}})
'''

COMPLEX = '''"""As {name}{lost}."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import torch
from torch import Tensor

from attnbench.problem import Params, Problem

OWN = import_module("{module}").OPERATOR


def reference(problem: Problem, params: Params, **tensors: Tensor) -> Tensor:
    """As {name}'s."""
{body}


OPERATOR = replace(OWN, forms={{"core": replace(OWN.forms["core"], reference=reference, impls={{}})}})
'''

UNCHANGED = '    return OWN.forms["core"].reference(problem, params, **tensors)'

MASK = """    mask = torch.ones(problem.seq_len, problem.seq_len, dtype=torch.bool)
    output = OWN.forms["core"].reference(problem, params, **tensors)
    return output if mask[0, 0] else -output"""

CHUNKING = """    q, k, v = (tensors[name] for name in "qkv")
    n, window = problem.seq_len, params["window"]
    place = torch.arange(n)
    far = (place[:, None] - place).abs() > window
    scores = (q * problem.head_dim**-0.5) @ k.transpose(-2, -1)
    return scores.masked_fill(far, -torch.inf).softmax(dim=-1) @ v"""


def write_timed(folder: Path, extra: Mapping[int, int], most: int) -> Path:
    """Writes the operator with extra work by size into a new folder. Returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{OPERATOR}.py"
    path.write_text(TIMED.format(extra=dict(sorted(extra.items())), most=most), encoding="utf-8")
    return path


def calibrated() -> dict[float, dict[int, int]]:
    """By slow-down and size, how many numbers make the operator slower by that share, measured now.

    In a process with a worker's allocator, on which the operator's time depends.
    """
    environment = {**os.environ, **allocator.variables(os.environ)}
    process = subprocess.run([sys.executable, __file__], env=environment, stdout=subprocess.PIPE, check=True)
    by_share = json.loads(process.stdout)
    return {float(share): {int(n): count for n, count in sizes.items()} for share, sizes in by_share.items()}


def _calibrate() -> dict[float, dict[int, int]]:
    """From the fastest of many calls, which other load disturbs least."""
    import torch

    from attnbench.operators.sparse import local
    from attnbench.problem import Problem

    torch.set_num_threads(1)
    few, many = 2_000, 20_000
    numbers = torch.linspace(1, 9, many)
    results = torch.empty_like(numbers)
    counts: dict[float, dict[int, int]] = {share: {} for share in (0.0, *SLOW_DOWNS)}
    for n in SIZES:
        problem = Problem(n, 64, 4)
        inputs = local.make_inputs(problem, {}, torch.Generator().manual_seed(0))
        calls: list[Callable[[], object]] = [
            partial(local.reference, problem, {"window": 64}, **inputs.tensors()),
            *(partial(torch.lgamma, numbers[:count], out=results[:count]) for count in (few, many)),
        ]
        with torch.inference_mode():
            call, small, large = (min(timeit.repeat(c, number=1, repeat=400)) for c in calls)
        for share in counts:
            counts[share][n] = round(share * call * (many - few) / (large - small))
    return counts


def planted_complexities() -> Iterator[tuple[str, str, str, str]]:
    """(name, what was lost, file before, file after) of every shipped operator whose memory stays below N²."""
    from attnbench.registry import operators

    for name, source in sorted(operators().items()):
        operator = source.load()
        if "core" not in operator.forms or "sequence" not in operator.domains:
            continue
        defaults = {key: param.default for key, param in operator.params.items()}
        if operator.complexity(defaults).memory not in ("1", "log n", "n", "n log n"):
            continue
        yield (
            f"{name}_mask",
            "N×N mask",
            *_before_and_after(name, source.location, MASK, " with a mask of N² that it does not need"),
        )
        if name == "local":
            dense = ", all pairs at once in place of blocks"
            yield (f"{name}_dense", "lost chunking", *_before_and_after(name, source.location, CHUNKING, dense))


def _before_and_after(name: str, module: str, body: str, lost: str) -> tuple[str, str]:
    unchanged = COMPLEX.format(name=name, lost="", module=module, body=UNCHANGED)
    return unchanged, COMPLEX.format(name=name, lost=lost, module=module, body=body)


def complexity_suite(names: Sequence[str]) -> str:
    """The suite of these operators at sizes where N² shows: N ≥ 32 channels at least."""
    files = ", ".join(f"{name}.py" for name in names)
    entries = ", ".join(f"{{{name}: {{window: 64}}}}" if name.startswith("local_") else name for name in names)
    return f"""name: gate-study-complexity
operators_from: [{files}]
operators: [{entries}]
impls: [reference]
sweep: [{{seq_len: [512, 1024, 2048]}}]
problem: {{heads: 1, channels: 16}}
"""


if __name__ == "__main__":
    print(json.dumps(_calibrate()))
