"""Whether what `attnbench fit` predicts is so on the CPU: the predicted size runs in a process limited to that memory,
and a size 5 % above it that needs 64 MiB more runs out of memory, cleanly.

    python -m benchmarks.fit_limits [--mode infer|train|decode] [--limit 2GiB] [OP...]

A process of its own, with one thread, makes both attempts, after a call at a small size, so that libraries have what
they keep. --allocator: `mapped`, every block from 1 MiB on its own, as by default those from 32 MiB on are; `default`,
glibc's; `settled`, as in a worker that measures: its heap has no place for a block where one of the same size was, and
grows to as much as 1.31 times what is alive. Prints a row for each operator as soon as it is known; exits 1 where one
is not as predicted, for another reason than is known.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnbench.analysis.memory_budget import of_host
from attnbench.measure.fit import Case, cases
from attnbench.measure.machine import allocator
from attnbench.operator import Inputs
from attnbench.plan.fit_request import DECODE, fit_request
from attnbench.plan.problem_request import ProblemRequest
from attnbench.problem import operator_with_impl
from attnbench.units import memory, shown

OPERATORS = (
    "softmax", "mla", "sinkhorn", "reformer", "hamburger", "non_local", "efficient", "linear_transformer", "performer",
    "rfa", "compressed", "external_attention", "linformer", "nystromformer", "fnet", "gmlp", "mlp_mixer", "big_bird",
    "global_tokens", "local", "longformer", "sparse_transformer", "strided", "synthesizer",
)  # fmt: skip
CAUSAL = (
    "softmax", "mla", "sinkhorn", "reformer", "linear_transformer", "performer", "rfa", "compressed", "based", "gla",
    "retention", "mamba2", "hyena", "local", "sliding_window", "sparse_transformer", "strided", "synthesizer", "moba",
    "kda",
)  # fmt: skip
"""Those that are defined in a mode: twenty or more."""

ROOT = Path(__file__).resolve().parents[1]

ALLOCATORS: dict[str, dict[str, str]] = {
    "mapped": {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_MMAP_MAX_": "1000000"},
    "default": {},
    "settled": allocator.SETTLED,
}

KNOWN = {"fnet": "torch's FFT takes 70 bytes a token for its plan, which shapes do not tell"}
"""Operators that need more than is predicted, and why."""

MUCH_TO_MAKE = ("sinkhorn",)
"""Operators whose state of many tokens takes tens of GiB to make, which is no part of a step: not tried in decode."""

UNLIMITED = 2**44

ABOVE, MORE_BYTES = 1.05, 64 * 2**20
SECONDS = 20.0
WARM = 64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operators", nargs="*")
    parser.add_argument("--mode", default="infer")
    parser.add_argument("--limit", default="2GiB")
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--sdpa", action="store_true", help="impls beside the reference")
    parser.add_argument("--allocator", choices=list(ALLOCATORS), default="mapped")
    parser.add_argument("--attempt", help="one size, in this process")
    args = parser.parse_args()
    if args.attempt:
        attempt(**json.loads(args.attempt))
        return 0
    limit = memory(args.limit)[1]
    assert limit is not None
    importlib.import_module("torch._dynamo")
    names = args.operators or (CAUSAL if args.causal or args.mode == "decode" else OPERATORS)
    as_predicted = {
        operator_with_impl(case.cell.operator, case.cell.impl): row(
            case, args.causal, limit, ALLOCATORS[args.allocator]
        )
        for case in of(names, args.mode, args.causal)
        if (case.cell.impl == "reference" or args.sdpa)
        and not (args.mode == DECODE and case.cell.operator in MUCH_TO_MAKE)
    }
    print(f"{sum(as_predicted.values())} of {len(as_predicted)} as predicted, in {args.mode} within {args.limit}")
    return 0 if all(good or name in KNOWN for name, good in as_predicted.items()) else 1


def of(names: Sequence[str], mode: str, causal: bool) -> list[Case]:
    request = ProblemRequest(names, {}, ["float32"], causal, mode, "core", [], [])
    return cases(fit_request(request, layers="1", image=False))


def row(case: Case, causal: bool, limit: int, variables: dict[str, str]) -> bool:
    """Prints what became of both attempts; whether they ended as predicted."""
    search = case.search(of_host("", limit).left_bytes, SECONDS)
    first = search.first()
    name = operator_with_impl(case.cell.operator, case.cell.impl)
    if first is None:
        print(f"{name:22} not defined", flush=True)
        return True
    end = search.run(first)
    if not end.beyond:
        print(f"{name:22} {end.size:>8} fits, and nothing larger is allowed", flush=True)
        return True
    within, beyond = search.below(end.size), above(case, end.size)
    begun = time.monotonic()
    runs, fails = attempts(case, causal, ((within, limit), (beyond, limit)), variables)
    good = runs["status"] == "ok" and fails["status"] == "oom"
    reasons = runs["reason"] if runs["status"] != "ok" else fails["reason"] if fails["status"] != "oom" else ""
    needs = " ".join(f"{shown(case.need(size).total_bytes, 'bytes'):>8}" for size in (within, beyond))
    print(
        f"{name:22} {within:>8} {runs['status']:5} {beyond:>8} {fails['status']:5} {needs} "
        f"{time.monotonic() - begun:5.1f}s {'' if end.is_exact else 'expected, not exact '}"
        f"{'' if good else 'NOT AS PREDICTED '}{KNOWN.get(case.cell.operator, reasons[:100]) if not good else ''}",
        flush=True,
    )
    return good


def above(case: Case, size: int) -> int:
    """The first defined size 5 % above that needs 64 MiB more."""
    least = case.need(size).total_bytes + MORE_BYTES
    candidate = int(ABOVE * size) + 1
    while case.reason(candidate) is not None or case.need(candidate).total_bytes < least:
        candidate += 1 if case.reason(candidate) is not None else max(1, candidate // 100)
    return candidate


def attempts(
    case: Case, causal: bool, calls: Sequence[tuple[int, int]], variables: dict[str, str]
) -> list[dict[str, str]]:
    """What became of calls in a process of their own: status and reason of each.

    Args:
        case: what is called.
        causal: whether it is its causal form.
        calls: the size of each, and the bytes to which the process is limited.
        variables: by which it chooses its allocator.
    """
    cell = case.cell
    words: dict[str, Any] = {"name": cell.operator, "impl": cell.impl, "mode": case.request.mode, "causal": causal}
    words["calls"] = calls
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment = {**kept, **variables, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.fit_limits", "--attempt", json.dumps(words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    crash = {"status": "crashed", "reason": f"exit code {done.returncode}: {done.stderr.strip()[-200:]}"}
    return [*answers, *[crash] * (len(calls) - len(answers))]


def attempt(name: str, impl: str, mode: str, causal: bool, calls: Sequence[tuple[int, int]]) -> None:
    """Makes calls, each of a size and limited; prints their statuses and reasons."""
    import torch

    from attnbench.measure.device.cpu import DEVICE
    from attnbench.measure.protocol import VisitAnswer
    from attnbench.measure.worker.failures import guarded
    from attnbench.measure.worker.lifetime import limit_host_memory

    torch.set_num_threads(1)
    case = next(each for each in of([name], mode, causal) if each.cell.impl == impl)
    small = case.search(calls[0][1], SECONDS).below(WARM)
    if small:
        call(case, small, inputs_of(case, small))
    allocator.give_back()
    limit_host_memory(UNLIMITED)
    for size, limit in calls:

        def called(size: int = size, limit: int = limit) -> VisitAnswer:
            if mode == DECODE:  # what a state is made of is no part of a step
                inputs = inputs_of(case, size)
                limit_host_memory(limit)
            else:
                limit_host_memory(limit)
                inputs = inputs_of(case, size)
            call(case, size, inputs)
            return VisitAnswer("ok")

        answer = guarded(VisitAnswer, DEVICE, called)
        limit_host_memory(UNLIMITED)
        print(json.dumps({"status": answer.status, "reason": answer.reason or ""}), flush=True)
        allocator.give_back()


def inputs_of(case: Case, size: int) -> Inputs:
    """The inputs of a size."""
    import torch

    cell = case.at(size)
    assert cell is not None
    form = case.operator.forms[cell.scope]
    return form.make_inputs(cell.problem, cell.params, torch.Generator().manual_seed(0))


def call(case: Case, size: int, inputs: Inputs) -> None:
    """A call of the case's impl, with gradients in train."""
    import torch

    from attnbench.measure.worker.prepared_cell import grad_mode

    cell = case.at(size)
    assert cell is not None
    form, problem, params = case.operator.forms[cell.scope], cell.problem, cell.params
    function = form.reference if cell.impl == "reference" else form.impls[cell.impl].load()
    with grad_mode(cell.mode):
        if cell.mode == "fwd":
            function(problem, params, **inputs.tensors())
            return
        leaves = {name: tensor.requires_grad_() for name, tensor in inputs.differentiated().items()}
        output = function(problem, params, **leaves, **inputs.choices)
        torch.autograd.grad(output, list(leaves.values()), torch.ones_like(output))


if __name__ == "__main__":
    sys.exit(main())
