"""Whether runs belong together: one suite, one contract, one code, one model of device, and nothing measured twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attnbench.analysis.compare.same_machine import ONE_RUN, differing
from attnbench.analysis.merge.parts import Part
from attnbench.errors import BadInput
from attnbench.store.records import ENVIRONMENT, SUITE
from attnbench.store.shards import StoredShard
from attnbench.units import listed, quoted

OF_THE_HOST = ("cpu", "cores")
"""What may differ between the hosts of GPUs of one model: the noise model has a term for devices, hosts included."""

FREE = ("operators", "impls", "description", "gate")
"""What may differ between the suites of runs that are joined: which operators and impls each measured, and what is no
matter of measuring."""


def check_together(parts: Sequence[Part]) -> None:
    """Raises BadInput, with the reason, where some parts do not belong together."""
    first = parts[0]
    for other in parts[1:]:
        reason = next(_against(first, other), None)
        if reason is not None:
            raise BadInput(f"{first.folder} and {other.folder} {reason}")
    _check_measured_once(parts)


def _against(first: Part, other: Part) -> Iterator[str]:
    """What speaks against two parts in one run, the first reason of a kind each."""
    differing_in = [] if first.suite_text == other.suite_text else list(_suites_differ(first.suite, other.suite))
    if differing_in:
        yield (
            f"are of different suites: {differing_in[0]} ({SUITE}). Only runs of one suite are joined; they may differ "
            "in operators and impls."
        )
    contracts = [next(iter(sorted({visit.contract for visit in part.visits})), None) for part in (first, other)]
    if None not in contracts and contracts[0] != contracts[1]:
        yield (
            f"were measured by different contracts: '{contracts[0]}' and '{contracts[1]}'. Their numbers do not mean "
            "the same, or rounds and turns differ: measure one of them again as the other."
        )
    yield from _codes_differ(first.environment, other.environment)
    on_gpu = bool(first.environment.get("gpu_name"))
    names = [name for name in ONE_RUN if not (on_gpu and name in OF_THE_HOST)]
    for name, before, now in differing(names, first.environment, other.environment):
        yield (
            f"differ in {name}: {quoted(before)} and {quoted(now)} ({ENVIRONMENT}). A panel never mixes models of "
            "devices or versions of what is measured: show and compare them as two runs."
        )


def _suites_differ(first: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """The keys in which two suites differ, with their values."""
    a, b = (_comparable(suite) for suite in (first, other))
    for name in dict.fromkeys((*a, *b)):
        if a.get(name) != b.get(name):
            yield f"{name} is {quoted(a.get(name))} and {quoted(b.get(name))}"
    entries = [[_entry(each) for each in _entries(suite)] for suite in (first, other)]
    for own, others in (entries, reversed(entries)):
        for entry, named in own:
            if not named and (entry, named) not in others:
                yield f"sweep has the entry {quoted(entry)} in one alone"


def _comparable(suite: Mapping[str, Any]) -> dict[str, Any]:
    limits = suite.get("limits")
    left = {name: value for name, value in suite.items() if name not in (*FREE, "sweep")}
    if isinstance(limits, Mapping):
        left["limits"] = {name: value for name, value in limits.items() if name != "budget"}
    return {name: value for name, value in left.items() if value not in (None, {})}


def _entries(suite: Mapping[str, Any]) -> list[Any]:
    sweep = suite.get("sweep")
    return sweep if isinstance(sweep, list) else [sweep]


def _entry(entry: Any) -> tuple[Any, bool]:
    """An entry of a sweep without the operators that it names, and whether it names any: who measures others leaves it
    out."""
    if not isinstance(entry, Mapping):
        return entry, False
    return {name: value for name, value in entry.items() if name != "operators"}, "operators" in entry


def _codes_differ(first: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    tables = [environment.get("code") for environment in (first, other)]
    if not all(isinstance(table, Mapping) for table in tables):
        yield (
            f"cannot be known to have measured the same code: {ENVIRONMENT} of one has no digests of it. It is of an "
            "older attnbench, or one side of a gate."
        )
        return
    for kind, what in (("libraries", "libraries"), ("files", "code")):
        a, b = (table.get(kind) for table in tables if isinstance(table, Mapping))
        if a != b:
            a, b = (each if isinstance(each, Mapping) else {} for each in (a, b))
            names = sorted(str(name) for name in {*a, *b} if a.get(name) != b.get(name))
            yield (
                f"measured different {what}: {listed(names, 3)}. One run cannot hold times of "
                "both: measure one of them again, or compare them with `attnbench compare`."
            )


def _check_measured_once(parts: Sequence[Part]) -> None:
    """Raises BadInput where two parts hold the same shard, the same unit of it, or the very same measurement."""
    holders: dict[tuple[object, str, int], tuple[Part, StoredShard]] = {}
    for part in parts:
        shard = part.shard
        if shard is None:
            continue
        dealing = part.dealing
        for block, round_number in shard.units:
            other, its = holders.setdefault((dealing, block, round_number), (part, shard))
            if other is not part:
                number = next(iter(sorted({*its.numbers} & {*shard.numbers})), None)
                what = f"shard {number}/{shard.of}" if number else f"the block {block} in round {round_number}"
                raise BadInput(
                    f"{other.folder} and {part.folder} both hold {what}: it was measured twice. Give one of the two."
                )
    seen: dict[tuple[Any, ...], Part] = {}
    for part in parts:
        for visit in part.visits:
            if visit.round and visit.status == "ok" and visit.samples:
                same = seen.setdefault((visit.key, visit.device_id, *sorted(visit.metrics.items())), part)
                if same is not part:
                    raise BadInput(
                        f"{same.folder} and {part.folder} hold the same measurement of {visit.key}: one is a copy of "
                        "the other, or holds it. Give each measurement once."
                    )
