from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from attnbench.measure import protocol, self_test
from attnbench.measure.self_test import SelfTest

QUIET = SelfTest("cpu", frozenset(), ((1e-3, 1.001e-3), (1e-3, 0.999e-3), (1e-3, 1e-3)), 100, {"switched": 5}, {})


def test_two_workers_measure_here() -> None:
    found = self_test.self_test("cpu", 1)
    assert len(found.pairs) == self_test.TURNS
    assert all(0 < seconds < 10 for pair in found.pairs for seconds in pair)
    assert found.samples >= 2 * self_test.TURNS * self_test.SAMPLES
    assert found.metrics >= {"wall_time_s", "flops", "peak_memory_bytes", "relative_error"}
    assert found.facts["threads"] == 1
    assert found.noise > 0


def test_the_workers_are_ended_when_one_is_lost() -> None:
    ended = []

    def start(number: int, threads: int) -> Any:
        if number == 1:
            raise protocol.WorkerLost("crashed", "it did not start")
        message = {"status": "ok", "environment": {}, "metrics": {"tolerance": 1e-6}}
        return SimpleNamespace(ask=lambda request, _: request.read(message), close=lambda: ended.append(number))

    with pytest.raises(protocol.WorkerLost, match="did not start"):
        self_test.self_test("cpu", 1, start)
    assert ended == [0]


def test_workers_take_turns_and_who_begins_changes() -> None:
    asked = []

    def start(number: int, threads: int) -> Any:
        def ask(request: Any, timeout: float) -> Any:
            asked.append((number, request.to_json()["do"]))
            samples = [["wall", 1.0 + number, "switched"], ["wall", 1.0 + number, ""], ["device", 9.0, "throttled"]]
            times = {"first_call_s": 1.0, "call_s": 1.0}
            return request.read({"status": "ok", "environment": {}, "samples": samples, **times})

        return SimpleNamespace(ask=ask, close=lambda: None)

    found = self_test.self_test("cpu", 1, start)
    pair = [0, 1] * self_test.SAMPLES
    assert [number for number, do in asked if do == "sample"] == [*pair, *pair[::-1]] * (self_test.TURNS // 2)
    assert {"wall_time_s", "device_time_s"} <= found.metrics
    assert found.pairs == ((1.0, 2.0),) * self_test.TURNS
    assert found.noise == pytest.approx(1.0)
    assert (found.share("switched"), found.share("throttled")) == (0.5, 0.0)


def test_a_visit_that_is_not_ok_is_no_self_test() -> None:
    message = {"environment": {}, "status": "wrong", "reason": "it differs"}
    worker: Any = SimpleNamespace(ask=lambda request, timeout: request.read(message), close=lambda: None)
    with pytest.raises(protocol.WorkerLost, match="it differs"):
        self_test.self_test("cpu", 1, lambda number, threads: worker)


def test_the_noise_covers_offset_and_spread() -> None:
    assert QUIET.noise < 0.005
    shifted = replace(QUIET, pairs=tuple((a, 1.1 * b) for a, b in QUIET.pairs))
    assert 0.1 < shifted.noise < 0.11
    assert replace(QUIET, pairs=tuple((b, a) for a, b in shifted.pairs)).noise == pytest.approx(shifted.noise)
    wild = replace(QUIET, pairs=((1e-9, 1.0), (1.0, 1e-9), (1e-9, 1.0)))
    assert wild.noise == math.inf
