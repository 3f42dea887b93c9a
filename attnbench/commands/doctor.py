"""attnbench doctor: what this machine can measure, what would disturb it, and what to do about it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from attnbench.measure.machine.condition import Condition
    from attnbench.measure.self_test import SelfTest

VERSION = 1
"""Of the JSON: raised when the meaning of a field changes or one is taken away; fields may be added."""


def command(
    form: Annotated[Literal["table", "json"], typer.Option("--format", help="How it is printed.")] = "table",
) -> None:
    """Look at the machine for about ten seconds: GPU, clocks, load, limits, timer, and a short self-test.

    Two fresh processes measure one small cell in turns; how far these may differ is the noise.
    Exit code: 0; 3 only where nothing can be measured.

    Example: attnbench doctor --format json
    """
    from attnbench.measure.platforms import check_can_measure

    check_can_measure("doctor")
    found, test = _examine()
    if form == "json":
        sys.stdout.write(json.dumps(_document(found, test), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        _print(found, test)
    if test is None:
        raise typer.Exit(3)


def _examine() -> tuple[list[Condition], SelfTest | None]:
    """Every condition, and the self-test of the first device on which it gave something."""
    from attnbench.measure.machine import advice, environment, load
    from attnbench.measure.machine.host import usable_cores

    host = [*advice.processor(load.watch()), advice.clock(load.clock())]  # before torch's own work
    cores = usable_cores()
    try:
        import torch

        threads, there = min(torch.get_num_threads(), cores), torch.cuda.is_available()
        facts = {**environment.collect("cpu"), "threads": threads}
    except Exception as error:  # a torch that does not load is a finding, whatever it raises
        return [advice.no_torch(error), *host], None
    others, unknown = _others() if there else ([], None)
    test, failures = _tested(["cuda", "cpu"] if there else ["cpu"], threads)
    facts |= test.facts if test else {}
    found = [*advice.measuring(test, failures), *host, *advice.software(facts, cores)]
    if test is not None and test.device == "cuda":
        found += advice.gpu(facts, others, unknown)
    elif not there:
        found.append(_no_gpu(torch.version.cuda))
    return found, test


def _tested(devices: Sequence[str], threads: int) -> tuple[SelfTest | None, dict[str, str]]:
    """The self-test on the first device that gives one, and the reasons of those before it."""
    from attnbench.measure import self_test
    from attnbench.measure.protocol import WorkerLost

    failures: dict[str, str] = {}
    for device in devices:
        try:
            return self_test.self_test(device, threads), failures
        except (WorkerLost, OSError) as lost:
            failures[device] = str(lost)
    return None, failures


def _others() -> tuple[list[str], str | None]:
    """Who else computes on the GPU in use; with why that is unknown, or None."""
    from attnbench.measure.machine.nvml import Unknown, others_in_use

    try:
        return others_in_use(os.environ), None
    except Unknown as unknown:
        return [], str(unknown)


def _no_gpu(built_for: str | None) -> Condition:
    from attnbench.measure.machine.advice import no_gpu
    from attnbench.measure.machine.nvml import Unknown, in_use, listed

    try:
        count, used = len(listed()), in_use(os.environ)
    except Unknown as unknown:
        return no_gpu(built_for, None, str(unknown), None)
    return no_gpu(built_for, count, None, None if used else os.environ.get("CUDA_VISIBLE_DEVICES"))


def _document(found: Sequence[Condition], test: SelfTest | None) -> dict[str, Any]:
    """`version`, `measurable`, `self_test` (null where nothing can be measured) and `conditions`.

    self_test: device, noise_floor (a fraction; null beyond 1000), pairs (seconds of one call by the first and the
    second process), samples, flagged (samples by flag) and the columns that were measured.
    """
    tested = None
    if test is not None:
        tested = {
            "device": test.device,
            "noise_floor": test.noise if test.noise < 1000 else None,
            "pairs": [list(pair) for pair in test.pairs],
            "samples": test.samples,
            "flagged": dict(test.flagged),
            "columns": sorted(test.metrics),
        }
    rows = [asdict(condition) for condition in found]
    return {"version": VERSION, "measurable": test is not None, "self_test": tested, "conditions": rows}


def _print(found: Sequence[Condition], test: SelfTest | None) -> None:
    from attnbench.outputs import table
    from attnbench.outputs._rows import Listing
    from attnbench.units import count

    rows = [{"": c.level, "what": c.subject, "found": c.found, "what to do": c.todo} for c in found]
    table.rows(Listing(rows, sentences=("what to do",)))
    warnings = sum(c.level == "warning" for c in found)
    told = count(warnings, "warning") if warnings else "nothing disturbs it"
    if test is None:
        print("Nothing can be measured here: see what is missing above.")
    else:
        print(f"This machine can measure on {test.device}; {told}.")
