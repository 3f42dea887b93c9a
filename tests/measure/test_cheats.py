"""Impls that give answers without computing them get no number, however they do it; honest ones that keep what is
theirs to keep do. Each goes the way of any cell: checked in one worker process, sampled in another, where all of them
are members of one block and share their inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from attnbench.measure import worker_process
from attnbench.measure.protocol import (
    CellAnswer,
    CheckRequest,
    FinishRequest,
    PrepareRequest,
    SampleRequest,
    VisitAnswer,
)
from attnbench.measure.worker import block as block_module
from attnbench.measure.worker import timed_checks
from attnbench.measure.worker.block import CHEAP_CHECKS, Block, Member
from attnbench.measure.worker.timed_checks import Watched
from attnbench.plan import settings
from attnbench.problem import MODES, Cell, Mode, Problem
from attnbench.registry import operators
from tests.cheats.cheating import CHEATS, LATER

SHORT, LONG = Problem(32, 8), Problem(2048, 64)
"""Calls of some 10 µs, which are timed in batches, and of more than the 100 µs from which each is a sample."""

TURNS = 10
"""Samples of each: two are checked, and calls enough have been made for the late cheats to begin."""

GRADIENTS_ONLY = (
    "gradient_by_place",
    "gradient_by_sample",
    "nan_in_a_gradient",
    "later_gradient",
    "untimed_alone_gradient",
)
SAMPLES = 50
"""In which a later cheat has come, however few calls a busy machine makes in one."""

PATCHES = ("patched_clock", "patched_median", "later_patched_clock")
ONLY_WHERE_TIMED = ("untimed_alone", "untimed_alone_gradient", "last_untimed", "changed_a_little")
ALSO_LONG = ("by_place", "by_sample", "gradient", "every_second", "in_a_thread", "lazy", *ONLY_WHERE_TIMED)
HONEST = ("honest", "packs_parameters", "reference")


def cell(impl: str, mode: Mode, problem: Problem) -> Cell:
    return Cell("cheating", impl, "core", mode, problem, {})


CAUGHT = [
    cell(impl, mode, problem)
    for impl in [*CHEATS, "lazy"]
    for mode in (("fwd_bwd",) if impl in GRADIENTS_ONLY else MODES)
    for problem in ((SHORT, LONG) if impl.removeprefix("later_") in ALSO_LONG else (SHORT,))
    if impl not in PATCHES
]
RIGHT = [cell(impl, mode, problem) for impl in HONEST for mode in MODES for problem in (SHORT, LONG)]


@dataclass(frozen=True)
class Outcome:
    """The last answer about a cell, what it answers, and how many samples came before."""

    word: str
    answer: CellAnswer
    samples: int = 0


def check_of(of: Cell) -> CheckRequest:
    return CheckRequest(of, "cpu", ("tests.cheats",), 2**30, None)


def prepare(of: Cell, checked: VisitAnswer) -> PrepareRequest:
    metrics = checked.metrics
    answers = tuple(metrics[f"answer_{n}"] for n in range(2))
    following = int(metrics.get("following", 1))
    return PrepareRequest(of, "cpu", ("tests.cheats",), 2**30, None, metrics["tolerance"], answers, following)


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[str, Outcome]]:
    """By key."""
    checking, timing = worker_process.start(0, 1), worker_process.start(1, 1)
    try:
        checks = {of.key: (of, checking.ask(check_of(of), 60.0)) for of in [*CAUGHT, *RIGHT]}
        last = {key: Outcome("check", answer) for key, (_, answer) in checks.items()}

        def ask(word: str, key: str, request: Any) -> None:
            if last[key].answer.status == "ok":
                answer = timing.ask(request, 60.0)
                last[key] = Outcome(word, answer, last[key].samples + len(getattr(answer, "samples", ())))

        for key, (of, checked) in checks.items():
            if checked.status == "ok":
                ask("prepare", key, prepare(of, checked))
        for _ in range(TURNS):
            for key in checks:
                ask("sample", key, SampleRequest(key))
        for key, (of, _) in checks.items():  # until checks came after the cheat began
            while of.impl.startswith("later_") and last[key].answer.status == "ok" and last[key].samples < 40 * LATER:
                ask("sample", key, SampleRequest(key))
        for key in checks:
            ask("finish", key, FinishRequest(key))
        yield last
    finally:
        checking.kill()
        timing.kill()


def name(of: Cell) -> str:
    return f"{of.impl} {of.mode} {of.problem.size}"


@pytest.mark.parametrize("cheat", CAUGHT, ids=name)
def test_a_cheat_is_wrong(outcomes: dict[str, Outcome], cheat: Cell) -> None:
    last = outcomes[cheat.key]
    assert (last.answer.status, last.answer.cause) == ("wrong", "wrong"), last
    if cheat.impl.startswith("later_"):
        assert last.word != "check", "a check makes too few calls to see it"
    if cheat.impl in ONLY_WHERE_TIMED:
        assert last.word in ("sample", "finish"), last


@pytest.mark.parametrize("honest", RIGHT, ids=name)
def test_an_honest_impl_is_timed_also_where_it_keeps_its_parameters(outcomes: dict[str, Outcome], honest: Cell) -> None:
    """Although members of its block have written to the inputs that they share with it."""
    last = outcomes[honest.key]
    assert (last.word, last.answer.status) == ("finish", "ok"), last.answer.reason
    assert not last.answer.warnings
    assert not last.answer.restart
    assert last.samples >= TURNS


def test_who_writes_to_shared_inputs_is_named(outcomes: dict[str, Outcome]) -> None:
    late = outcomes[cell("later_into_input", "fwd", SHORT).key]
    assert late.word in ("sample", "finish")


@pytest.mark.parametrize(
    ("impl", "word"), [("patched_clock", "check"), ("patched_median", "check"), ("later_patched_clock", "sample")]
)
def test_what_replaces_the_clock_or_the_statistics_is_wrong_and_ends_its_process(impl: str, word: str) -> None:
    of = cell(impl, "fwd", SHORT)
    worker = worker_process.start(0, 1)
    try:
        checked = worker.ask(check_of(of), 60.0)
        answer: CellAnswer = checked
        if word == "sample":
            assert worker.ask(prepare(of, checked), 60.0).status == "ok"
            for _ in range(SAMPLES):
                answer = worker.ask(SampleRequest(of.key), 60.0)
                if answer.status != "ok":
                    break
    finally:
        worker.kill()
    assert (answer.status, answer.cause, answer.restart) == ("wrong", "tampered", True)
    assert not getattr(answer, "samples", ())


@pytest.fixture
def block() -> Iterator[Block]:
    opened = Block()
    yield opened
    opened.release()


def sampled(block: Block, of: Cell, turns: int = TURNS) -> CellAnswer:
    """The last answer about a cell that was never checked."""
    request = PrepareRequest(of, "cpu", ("tests.cheats",), 2**30, None, most_samples=turns)
    answer: CellAnswer = block.prepare(request)
    for _ in range(turns):
        if answer.status == "ok":
            answer = block.sample(SampleRequest(of.key))
    return block.finish(FinishRequest(of.key)) if answer.status == "ok" else answer


@pytest.mark.parametrize("impl", ONLY_WHERE_TIMED)
def test_what_computes_in_untimed_calls_alone_shows_in_timed_outputs_only(
    impl: str, block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the same cheats pass where what is looked at is an untimed call."""

    def unwatched(member: Member, watched: Watched | None = None) -> list[Any]:
        taken = take(member, None)
        if watched is not None:
            watched.within([watched.number] * 3, [member.subject.calls[watched.number]] * 3)[watched.skipped]
            watched.outputs = member.subject.calls[watched.number]()
            watched.copy()
        return taken

    take = Member._take
    mode: Mode = "fwd_bwd" if impl in GRADIENTS_ONLY else "fwd"
    of = cell(impl, mode, Problem(40, 8))
    answer = sampled(block, of)
    assert (answer.status, answer.cause) == ("wrong", "wrong")
    monkeypatch.setattr(Member, "_take", unwatched)
    monkeypatch.setattr(Member, "_until", lambda member, watched: unwatched(member, watched))
    assert sampled(block, of).status == "ok"


@pytest.mark.parametrize("impl", ["by_object", "by_place_and_version", "by_first_value", "every_second", "every_fifth"])
def test_a_cheat_that_was_never_checked_shows_while_it_is_timed(
    impl: str, block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: nothing is written."""
    assert sampled(block, cell(impl, "fwd", Problem(48, 8))).status == "wrong"
    assert sampled(block, cell("honest", "fwd", Problem(48, 8))).status == "ok"
    monkeypatch.setattr(timed_checks.TimedChecks, "after_write", lambda checks, number, take: take(Watched(number)))
    monkeypatch.setattr(Member, "finish", lambda member: None)
    assert sampled(block, cell(impl, "fwd", Problem(56, 8))).status == "ok"


@pytest.fixture
def long_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of LONG count as such of which one alone comes before the samples."""
    for limit in ("ALONE_S", "SAMPLE_S", "CHEAP_CALL_S"):
        monkeypatch.setattr(block_module, limit, 0.0)
    monkeypatch.setattr(settings, "ALONE_S", 0.0)
    monkeypatch.setattr(block_module, "batch_of", lambda call_s, sets: 1)
    monkeypatch.setattr(block_module, "untimed_calls", lambda call_s: 0)


@pytest.mark.usefixtures("long_calls")
@pytest.mark.parametrize("turns", [1, 2])
def test_all_of_few_samples_of_long_calls_are_checked_by_two_calls_beside_them(turns: int, block: Block) -> None:
    cheats = ["by_object", "by_place_and_version", "by_first_value", "every_second", *ONLY_WHERE_TIMED]
    passed = [
        impl
        for impl in cheats
        if sampled(block, cell(impl, "fwd_bwd" if impl in GRADIENTS_ONLY else "fwd", LONG), turns).status == "ok"
    ]
    assert not passed
    assert sampled(block, cell("honest", "fwd", LONG), turns).status == "ok"


@pytest.mark.usefixtures("long_calls")
@pytest.mark.parametrize(("turns", "calls"), [(1, [4, 0]), (2, [4, 0])])
def test_few_samples_of_long_calls_stay_with_one_input_set(turns: int, calls: list[int], block: Block) -> None:
    of = cell("honest", "fwd", LONG)
    assert block.prepare(PrepareRequest(of, "cpu", ("tests.cheats",), 2**30, None, most_samples=turns)).status == "ok"
    subject, made = block._members[of.key].subject, [1, 0]

    def counted(number: int, call: Any) -> Any:
        def counting() -> Any:
            made[number] += 1
            return call()

        return counting

    subject.__dict__["calls"] = tuple(counted(number, call) for number, call in enumerate(subject.calls))
    for _ in range(turns):
        assert block.sample(SampleRequest(of.key)).status == "ok"
    assert block.finish(FinishRequest(of.key)).status == "ok"
    assert made == calls


def test_one_whose_first_call_alone_was_long_has_the_checks_of_a_cheap_one(
    block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (block_module, settings):
        monkeypatch.setattr(module, "ALONE_S", 0.0)
    assert sampled(block, cell("honest", "fwd", SHORT), turns=1).status == "ok"
    monkeypatch.setattr(Block, "_free", lambda block, key: None)
    sampled(block, cell("honest", "fwd", Problem(40, 8)), turns=1)
    assert block._members[cell("honest", "fwd", Problem(40, 8)).key].checks.made == CHEAP_CHECKS
    assert sampled(block, cell("every_second", "fwd", SHORT), turns=1).status == "wrong"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.gpu
def test_work_left_on_another_stream_is_wrong() -> None:
    worker = worker_process.start(0, 1)
    try:
        answers = {
            impl: worker.ask(CheckRequest(cell(impl, "fwd", LONG), "cuda", ("tests.cheats",), 2**30, None), 60.0).status
            for impl in ("on_a_stream", "honest")
        }
    finally:
        worker.kill()
    assert answers == {"on_a_stream": "wrong", "honest": "ok"}


def test_every_cheat_of_the_file_is_tried() -> None:
    impls = operators(("tests.cheats",))["cheating"].load().forms["core"].impls
    assert {*impls, "reference"} == {of.impl for of in [*CAUGHT, *RIGHT]} | {*PATCHES, "on_a_stream"}
