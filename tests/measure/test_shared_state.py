"""What one operator changes for the next is seen, named, and ends the process."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from attnbench.analysis.run import Run
from attnbench.measure import worker_process
from attnbench.measure.protocol import (
    CheckRequest,
    FinishRequest,
    PrepareRequest,
    ReleaseRequest,
    SampleRequest,
    VisitAnswer,
)
from attnbench.measure.worker import shared_state
from attnbench.problem import Cell, Problem
from tests.meddling.meddlers import CHANGES, GOOD
from tests.running import Silent, measured, plan

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processors and resource limits are read as on Linux")

TOLD = {
    "working_directory": "the working directory (from ",
    "default_dtype": "torch's default dtype (from torch.float32 to torch.float64)",
    "default_device": "torch's default device (from cpu to meta)",
    "threads": "torch's number of threads (from 1 to 2)",
    "deterministic": "torch's deterministic algorithms (from False to True)",
    "precision": "torch's float32 matmul precision (from highest to high)",
    "mkldnn": "torch.backends.mkldnn (from [True, False] to [False, False])",
    "sdpa": "torch's SDPA kernels (from [True, True, True, True] to [False, True, True, True])",
    "autocast": "torch's autocast dtype (from ",
    "anomaly": "torch's anomaly mode (from False to True)",
    "denormals": "denormal numbers (from kept to flushed)",
    "variable": "the environment variable MEDDLED (set)",
    "handler": "the handler of SIGUSR1 (from 0 to handler)",
    "blocked": "blocked signals (from ",
    "timer": "a pending timer (from False to True)",
    "path": "sys.path",
    "output": "sys.stdout or sys.stderr",
    "profile": "a trace or profile function",
    "switching": "the switch interval (from 0.005 to 0.5)",
    "collection": "garbage collection",
    "thread": "running Python threads (from ",
    "function": "torch.tanh (replaced)",
    "method": "torch.Tensor.tanh (replaced)",
    "child": "a running child process (from False to True)",
    "umask": "the umask (from ",
    "descriptor": "file descriptors 0 to 2",
    "hook": "the hooks of exceptions",
    "recursion": "the recursion limit (from 1000 to 500)",
    "raised": "warnings that are raised (from False to True)",
    "processors": "the processors it may use (from ",
}
REPLACED = {"clock": "time.perf_counter", "median": "statistics.median"}


def meddler(impl: str, seq_len: int = 16) -> Cell:
    return Cell("meddlers", impl, "core", "fwd", Problem(seq_len, 4), {})


@pytest.fixture(scope="module")
def worker() -> Iterator[worker_process.Worker]:
    started = worker_process.start(0, threads=1)
    yield started
    started.kill()


def checked(worker: worker_process.Worker, impl: str) -> VisitAnswer:
    """The answer of a worker that goes on, whatever it answers."""
    request = CheckRequest(meddler(impl), "cpu", ("tests.meddling",), 2**30, host_limit=None)
    return worker.ask(request, 60.0)


@pytest.mark.parametrize("impl", GOOD)
def test_what_leaves_everything_as_it_was_keeps_its_worker(worker: worker_process.Worker, impl: str) -> None:
    checked(worker, "honest")
    answer = checked(worker, impl)
    assert answer.status == "ok", answer.reason
    assert not answer.restart
    assert not answer.warnings


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_named_with_its_culprit_and_ends_the_process(worker: worker_process.Worker, change: str) -> None:
    if change == "processors" and len(shared_state.now().settings["the processors it may use"]) < 2:  # type: ignore[arg-type]
        pytest.skip("one processor only")
    answer = checked(worker, f"does_{change}")
    back = checked(worker, f"undoes_{change}")
    after = checked(worker, "honest")
    assert answer.restart is True
    assert back.restart is (change != "child"), "a process that has ended disturbs none"
    assert not after.restart
    assert not after.warnings
    if change in REPLACED:
        assert (answer.status, answer.cause) == ("wrong", "tampered")
        assert answer.reason == f"it replaces {REPLACED[change]}, which attnbench measures with"
        assert not answer.samples
        assert not answer.metrics
        return
    assert answer.status == "ok", answer.reason
    (warning,) = answer.warnings
    assert warning.startswith(f"meddlers (does_{change}) changes what the next operator would find")
    assert TOLD[change] in warning
    assert "secret" not in warning
    assert ("(replaced)" in warning) == (change in ("function", "method"))


def test_a_definition_is_computed_by_torch_as_it_was(worker: worker_process.Worker) -> None:
    forged = checked(worker, "forges")
    checked(worker, "undoes_forged")
    assert (forged.status, forged.restart) == ("wrong", True)
    assert "the output differs from the float64 reference" in forged.reason
    assert "torch.Tensor.__rmul__ (replaced)" in forged.warnings[0]


def test_a_change_is_named_whatever_was_asked(worker: worker_process.Worker) -> None:
    does, undoes = meddler("does_variable", 24), meddler("undoes_variable", 24)
    requests: list[Any] = [PrepareRequest(of, "cpu", ("tests.meddling",), 2**30, None) for of in (does, undoes)]
    requests += [SampleRequest(does.key), SampleRequest(does.key), FinishRequest(undoes.key), ReleaseRequest()]
    answers = [worker.ask(request, 60.0) for request in requests]
    assert [answer.restart for answer in answers] == [True, True, True, False, True, False]
    assert {answer.status for answer in answers[:-1]} == {"ok"}
    for answer, how, impl in zip(answers, ("set", "removed", "set"), ("does", "undoes", "does"), strict=False):
        (warning,) = answer.warnings
        assert f"meddlers ({impl}_variable) changes" in warning
        assert f"the environment variable MEDDLED ({how})" in warning
    assert not answers[3].warnings, "it is so already"


AT_IMPORT = '''"""Changes what it can while it is imported."""
import torch
from tests.meddling.meddlers import OPERATOR

torch.set_grad_enabled(False)
'''


ORDER = ("honest", "witness", "does_default_dtype", "witness")
"""Impls of the operator that is not imported anew, in the order of their checks."""


@pytest.fixture(scope="module")
def meddled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Silent]:
    """A run of the file that changes something when it is imported, then of ORDER; and what was said meanwhile."""
    folder, progress = tmp_path_factory.mktemp("meddled"), Silent()
    file = folder / "importer.py"
    file.write_text(AT_IMPORT)
    cells = [Cell("importer", "honest", "core", "fwd_bwd", Problem(16, 4), {})]
    cells += [replace(meddler(impl, 17 + index), mode="fwd_bwd") for index, impl in enumerate(ORDER)]
    made = plan(cells, operators_from=(str(file), "tests.meddling"))
    return measured(folder / "run", made, progress), progress


def test_the_next_operator_finds_a_fresh_process(meddled: tuple[Run, Silent]) -> None:
    run, progress = meddled
    assert list(run.visits["status"]) == ["ok"] * 2 * (1 + len(ORDER))
    check = run.visits[(run.visits["round"] == 0) & (run.visits["operator"] == "meddlers")].sort_values("seq_len")
    first = check["process"].iloc[0]
    assert list(check["impl"]) == list(ORDER)
    assert list(check["process"] - first) == [0, 0, 0, 1]
    timed = run.visits[run.visits["round"] == 1]
    ends = timed["impl"].str.startswith("does_") | (timed["operator"] == "importer")
    assert timed["process"].value_counts()[timed["process"][ends]].eq(1).all(), "nothing else is in their processes"
    assert [bool(warnings) for warnings in timed["warnings"]] == list(ends)
    assert timed["wall_time_s"].gt(0).all()
    assert sum("changes what the next operator would find" in told for told in progress.told) == 4


def test_a_file_that_changes_something_when_imported_is_told_at_its_own_visits(meddled: tuple[Run, Silent]) -> None:
    run, _ = meddled
    check = run.visits[run.visits["round"] == 0].sort_values("seq_len")
    importer, following = check.iloc[0], check.iloc[1]
    assert importer["process"] > 0, "what asked the operators for their reasons had imported it"
    assert following["process"] > importer["process"]
    (warning,) = importer["warnings"]
    assert "torch's grad mode (from True to False)" in warning
    assert not following["warnings"]


def test_global_random_numbers_begin_alike_for_every_visit() -> None:
    before = torch.get_rng_state(), random.getstate()
    try:
        drawn = []
        for _ in range(2):
            shared_state.same_random_numbers()
            drawn.append((float(torch.rand(1)), random.random()))
            torch.rand(7)
        assert drawn[0] == drawn[1]
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
