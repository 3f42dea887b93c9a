"""What tests may count on: one thread each, and limits that only what hangs reaches, on a machine that is busy too."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

LEAST_S = 100
"""A command takes seconds here; a machine four times slower, busy with three other jobs, sixteen times as long."""

FILES = sorted(Path(__file__).parent.rglob("*.py"))


def short_limits(source: str) -> Iterator[int]:
    """The lines of `timeout=` and `within(` that wait for a number of seconds below LEAST_S."""
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call):
            limits = [word.value for word in call.keywords if word.arg == "timeout"]
            limits += call.args[:1] if getattr(call.func, "id", "") == "within" else []
            for limit in limits:
                if isinstance(limit, ast.Constant) and isinstance(limit.value, (int, float)) and limit.value < LEAST_S:
                    yield call.lineno


def test_tests_compute_on_the_threads_that_were_asked_for() -> None:
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])


def test_a_test_has_time_on_a_slow_and_busy_machine(pytestconfig: pytest.Config) -> None:
    assert float(pytestconfig.getini("timeout")) >= 1200


def test_nothing_else_is_waited_for_in_short() -> None:
    short = {str(path): list(short_limits(path.read_text(encoding="utf-8"))) for path in FILES}
    assert len(short) > 100
    assert not {path: lines for path, lines in short.items() if lines}


def test_a_short_limit_would_be_noticed() -> None:
    source = (
        "process.wait(timeout=30)\nwithin(5.0, done)\nrun(words, timeout=600)\nwithin(600, done)\nwait(timeout=limit)\n"
    )
    assert list(short_limits(source)) == [1, 2]
