"""Subjects made inside the test process, for what needs no worker of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from attnbench.measure.device.cpu import DEVICE as CPU
from attnbench.measure.worker.block import Member
from attnbench.measure.worker.forecast import forecast_of
from attnbench.measure.worker.input_pool import InputPool
from attnbench.measure.worker.prepared_cell import Subject, subject_of
from attnbench.measure.worker.timed_checks import TimedChecks
from attnbench.problem import Cell, Dtype, Mode, Problem, Scope
from attnbench.registry import operators, resolve


def subject(
    name: str,
    impl: str = "reference",
    mode: Mode = "fwd",
    dtype: Dtype = "float32",
    seq_len: int = 64,
    causal: bool = False,
    scope: Scope = "core",
    later: Mapping[str, int] | None = None,
    **params: Any,
) -> Subject:
    """A small cell on the CPU. Its reference alone is forecast: a faulty impl would keep the fake tensors.

    later: further numbers of the problem, such as query_len.
    """
    source = operators(("tests.injected", "tests.cheats"))[name]
    problem = Problem(seq_len, 32, 2, dtype=dtype, causal=causal, **(later or {}))
    if "sequence" not in source.load().domains:
        problem = Problem.image(8, seq_len // 8, 32, 2, dtype=dtype)
    cell = Cell(name, impl, scope, mode, problem, resolve(source.load(), params))
    return subject_of(cell, source, CPU, 2**32, forecast_of(replace(cell, impl="reference"), source))


def member(of: Subject, tolerance: float | None = None) -> Member:
    """A cell as a member of a block of its own, called and ready to be sampled."""
    pool = InputPool()
    shared = replace(of, share=pool.share)
    made = Member(shared, TimedChecks(shared, pool, {}, tolerance))
    made.prepare()
    return made
