"""What this machine can measure: its conditions, and the self-test of the preferred device on which there is one."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.measure import self_test
from attnbench.measure.device import available_devices, device_names, device_of
from attnbench.measure.machine import advice, environment, host, load
from attnbench.measure.machine.condition import Condition
from attnbench.measure.protocol import WorkerLost
from attnbench.measure.self_test import SelfTest


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


def _first_test(devices: Sequence[str], threads: int) -> tuple[SelfTest | None, dict[str, str]]:
    """The self-test on the first device that gives one, and the reasons of those before it."""
    failures: dict[str, str] = {}
    for device in devices:
        try:
            return self_test.self_test(device, threads), failures
        except (WorkerLost, OSError) as lost:
            failures[device] = str(lost)
    return None, failures
