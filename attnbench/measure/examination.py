"""What this machine can measure: its conditions, and the self-test of the preferred device on which there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from attnbench.measure import self_test
from attnbench.measure.device import available_devices, device_names, device_of
from attnbench.measure.machine import advice, environment, host, load
from attnbench.measure.machine.condition import Condition
from attnbench.measure.protocol import WorkerLost
from attnbench.measure.self_test import SelfTest

VERSION = 2
"""Of the JSON: raised when the meaning of a field changes or one is taken away; fields may be added."""


def examine() -> tuple[list[Condition], SelfTest | None]:
    """Every condition, and the self-test of the first device on which it gave times; None where there is none."""
    processor = [*advice.processor(load.watch()), advice.clock(load.clock())]  # before torch's own work
    cores = host.usable_cores()
    try:
        import torch

        threads = min(torch.get_num_threads(), cores)
        facts = {**environment.software(), "threads": threads}
        devices = {name: device_of(name) for name in device_names()}
        available = available_devices()
    except Exception as error:  # a torch that does not load is a condition, whatever it raises
        return [advice.no_torch(error), *processor], None
    users = {name: devices[name].other_users() for name in available}  # before a worker starts the device
    test, failures = _first_test(available, threads)
    facts |= test.facts if test else {}
    conditions = [*advice.measuring(test, failures), *processor, *advice.software(facts, cores)]
    for name, device in devices.items():
        if test is not None and test.device == name:
            conditions += device.conditions(facts, *users[name])
        elif name not in available:
            conditions += device.missing()
    return conditions, test


def document(conditions: Sequence[Condition], test: SelfTest | None) -> dict[str, Any]:
    """What was examined, as plain data.

    Returns: `version`, `measurable`, `self_test` (None where nothing can be measured) and `conditions`.

    self_test: device, noise (a fraction; None beyond 1000), pairs (seconds of one call by the first and the
    second process), samples, flagged (samples by flag) and the columns that were measured.
    """
    tested = None
    if test is not None:
        tested = {
            "device": test.device,
            "noise": test.noise if test.noise < 1000 else None,
            "pairs": [list(pair) for pair in test.pairs],
            "samples": test.samples,
            "flagged": dict(test.flagged),
            "columns": sorted(test.metrics),
        }
    rows = [asdict(condition) for condition in conditions]
    return {"version": VERSION, "measurable": test is not None, "self_test": tested, "conditions": rows}


def _first_test(devices: Sequence[str], threads: int) -> tuple[SelfTest | None, dict[str, str]]:
    """The self-test on the first device that gives one, and the reasons of those before it."""
    failures: dict[str, str] = {}
    for device in devices:
        try:
            return self_test.self_test(device, threads), failures
        except (WorkerLost, OSError) as lost:
            failures[device] = str(lost)
    return None, failures
