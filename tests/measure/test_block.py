"""Members of the open block: what they share, what becomes of each, and that compiled ones live together."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from attnbench.measure.protocol import (
    CellAnswer,
    CheckRequest,
    FinishRequest,
    PreparedAnswer,
    PrepareRequest,
    SampleRequest,
)
from attnbench.measure.worker import block as blocks
from attnbench.measure.worker import checking
from attnbench.measure.worker.block import Block
from attnbench.measure.worker.input_pool import InputPool
from attnbench.measure.worker.prepared_cell import Subject
from attnbench.problem import Cell, Mode, Problem
from attnbench.registry import operators, resolve
from tests.measuring import subject
from tests.running import faulty

N, C = 64, 32
SET = 3 * 4 * N * C
"""Bytes of q, k and v."""


@pytest.fixture
def block() -> Iterator[Block]:
    opened = Block()
    yield opened
    opened.release()


def cell(name: str, impl: str = "reference", mode: Mode = "fwd", seq_len: int = N, **params: Any) -> Cell:
    source = operators(("tests.injected",))[name]
    return Cell(name, impl, "core", mode, Problem(seq_len, C, 2), resolve(source.load(), params))


def prepared(block: Block, of: Cell, **given: Any) -> PreparedAnswer:
    return block.prepare(PrepareRequest(of, "cpu", ("tests.injected",), 2**30, None, **given))


def visited(block: Block, of: Cell, turns: int = 10) -> CellAnswer:
    """The last answer about a cell."""
    answer: CellAnswer = prepared(block, of)
    for _ in range(turns):
        if answer.status == "ok":
            answer = block.sample(SampleRequest(of.key))
    return block.finish(FinishRequest(of.key)) if answer.status == "ok" else answer


def test_members_share_equal_data_and_hold_parameters_once(block: Block) -> None:
    first, second = (prepared(block, cell(name)) for name in ("softmax", "linear_transformer"))
    assert (first.held_bytes, second.held_bytes) == (2 * SET, 0)
    tensors = [member.subject.sets[1].data["q"] for member in block._members.values()]
    assert len({tensor.data_ptr() for tensor in tensors}) == 1
    assert len({id(tensor) for tensor in tensors}) == 2, "an object, and a version counter, of its own each"
    assert prepared(block, cell("softmax", seq_len=48)).held_bytes > 0, "the control: other values"
    packs = [Cell("cheating", impl, "core", "fwd", Problem(N, C), {}) for impl in ("honest", "packs_parameters")]
    one, other = (block.prepare(PrepareRequest(of, "cpu", ("tests.cheats",), 2**30, None)) for of in packs)
    weights = 4 * C * C
    assert (one.held_bytes, other.held_bytes) == (2 * SET // 3 + weights, weights), "of two sets one"


def test_gradients_have_one_cotangent_whatever_the_set(block: Block) -> None:
    assert prepared(block, cell("softmax", mode="fwd_bwd")).held_bytes == 2 * SET + SET // 3


def test_a_check_says_what_a_member_would_hold() -> None:
    of = cell("softmax")
    checked = checking.check(CheckRequest(of, "cpu", (), 2**30, None))
    assert checked.metrics["held_bytes"] == 2 * SET + SET // 3, "two sets, and the outputs of a call"


def test_finishing_and_releasing_free_what_is_no_longer_needed(block: Block) -> None:
    of = cell("linformer", mode="fwd_bwd")
    prepared(block, of)
    member = block._members[of.key]
    parameters = [weakref.ref(tensor) for tensor in member.subject.sets[0].parameters.values()]
    data = [weakref.ref(tensor) for tensor, _ in block._pool._tensors[0]]
    del member
    block.finish(FinishRequest(of.key))
    gc.collect()
    assert all(reference() is None for reference in parameters)
    assert all(reference() is not None for reference in data), "others may have them"
    block.release()
    assert all(reference() is None for reference in data)


def test_visits_have_their_figures(block: Block) -> None:
    of = cell("softmax")
    answer: Any = visited(block, of)
    assert answer.status == "ok", answer.reason
    assert 0 < answer.metrics["operator_s"] < answer.metrics["visit_s"]
    assert not answer.samples


@pytest.mark.parametrize(
    ("impl", "status", "cause", "reason"),
    [
        ("raises", "error", "raised", "RuntimeError: it cannot"),
        ("off_by_one", "wrong", "wrong", "its answer is not the one that was checked"),
        ("nan", "wrong", "wrong", "NaN or infinite"),
        ("caches", "wrong", "wrong", "the same answer for different inputs"),
        ("caches_by_place", "wrong", "wrong", "its answer stays the same when values of its inputs change in place"),
        ("takes_gpu_memory", "oom", "oom", "out of GPU memory"),
    ],
)
def test_a_member_that_fails_is_freed_and_the_others_stay(
    impl: str, status: str, cause: str, reason: str, block: Block
) -> None:
    good, bad = faulty("honest", 40), faulty(impl, 40)
    fingerprint = 0.0 if impl == "off_by_one" else None
    assert prepared(block, good).status == "ok"
    answer: CellAnswer = prepared(block, bad, answers=() if fingerprint is None else (fingerprint,))
    for _ in range(10):
        if answer.status == "ok":
            answer = block.sample(SampleRequest(bad.key))
    assert (answer.status, answer.cause) == (status, cause)
    assert reason in answer.reason
    assert bad.key not in block._members
    assert block.sample(SampleRequest(good.key)).status == "ok"


def test_a_cell_that_was_prepared_before_is_replaced(block: Block) -> None:
    of = cell("softmax")
    first, again = prepared(block, of), prepared(block, of)
    assert (first.status, again.status) == ("ok", "ok")
    assert len(block._members) == 1


def test_a_checked_sample_has_as_many_figures_as_any(block: Block) -> None:
    """Every one in eight is checked, one of the first six for sure, and a long visit's end adds none."""
    of = cell("softmax")
    prepared(block, of)
    member, made = block._members[of.key], []
    for _ in range(6 + 3 * blocks.CHECKED):
        assert block.sample(SampleRequest(of.key)).samples
        made.append(member.checks.made)
    assert made[5] >= 1
    assert 3 <= made[-1] <= 5
    calls = member.subject.spent.seconds
    member.finish()
    assert member.subject.spent.seconds == calls


def test_short_visits_are_checked_at_their_end(block: Block) -> None:
    of = cell("softmax")
    prepared(block, of)
    member = block._members[of.key]
    member.call_s = blocks.CHEAP_CALL_S / 2  # whatever else runs here
    member.finish()
    assert member.checks.made == blocks.CHEAP_CHECKS


def test_long_calls_are_made_three_times_beside_their_samples(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """When they are prepared, after a write, and at times after its return."""
    of, made, samples = faulty("slow", 48), 0, 0
    bind = Subject.bind

    def counting(subject: Subject, *given: Any) -> Any:
        call = bind(subject, *given)

        def counted() -> Any:
            nonlocal made
            made += 1
            return call()

        return counted

    monkeypatch.setattr(Subject, "bind", counting)
    prepared(block, of)
    for _ in range(6):
        samples += len(block.sample(SampleRequest(of.key)).samples)
    assert samples == 6
    assert block.finish(FinishRequest(of.key)).status == "ok"
    assert 2 <= made - samples <= 3


def test_where_one_set_alone_is_called_before_samples_the_first_of_the_other_is_compared_with_its_check(
    block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = cell("softmax")
    checked = checking.check(CheckRequest(of, "cpu", (), 2**30, None)).metrics
    right = (checked["answer_0"], checked["answer_1"])
    monkeypatch.setattr(blocks, "ALONE_S", 0.0)
    for answers, status in ((right, "ok"), ((right[0], right[1] + 1), "wrong"), ((), "ok")):
        assert prepared(block, of, answers=answers).status == "ok"
        assert list(block._members[of.key].checks.known) == [0]
        answer = block.sample(SampleRequest(of.key))
        assert answer.status == status, answer.reason
    assert list(block._members[of.key].checks.known) == [0, 1]
    replays = Cell("cheating", "replayed", "core", "fwd", Problem(N, C), {})
    assert block.prepare(PrepareRequest(replays, "cpu", ("tests.cheats",), 2**30, None)).status == "ok"
    assert "same answer for different inputs" in block.sample(SampleRequest(replays.key)).reason


def test_who_writes_to_shared_values_is_wrong_and_the_others_get_theirs_back(block: Block) -> None:
    victim, writer = faulty("honest", 56), faulty("decays", 56)
    prepared(block, victim)
    prepared(block, writer)
    shared = block._members[victim.key].subject.sets[0].data["x"]
    before = shared.clone()

    def writes(*given: Any, x: torch.Tensor) -> torch.Tensor:
        result = 2 * x + x.roll(1, dims=1)
        x.data.add_(0.0 if result.sum() == 0 else 1e-3)
        return result

    member = block._members[writer.key]
    for number, inputs in enumerate(member.subject.sets):
        calls = list(member.subject.calls)
        calls[number] = lambda x=inputs.data["x"]: (writes(x=x),)
        member.subject.__dict__["calls"] = tuple(calls)
    answer: CellAnswer = block.sample(SampleRequest(writer.key))
    assert not torch.equal(shared, before)
    while answer.status == "ok":
        answer = block.sample(SampleRequest(writer.key))
    assert answer.status == "wrong"
    for _ in range(12):
        assert block.sample(SampleRequest(victim.key)).status == "ok"
    assert block.finish(FinishRequest(victim.key)).status == "ok"


def test_equal_tensors_are_one_and_a_write_is_seen() -> None:
    pool = InputPool()
    of = subject("softmax")
    first, second = (pool.share(0, of.inputs(of.cell.problem, 0)) for _ in range(2))
    other = pool.share(0, of.inputs(of.cell.problem, 1))
    place = {name: tensor.data_ptr() for name, tensor in first.data.items()}
    assert place == {name: tensor.data_ptr() for name, tensor in second.data.items()}
    assert not set(place.values()) & {tensor.data_ptr() for tensor in other.data.values()}
    assert pool.written(0, second) == []
    second.data["k"].data.view(-1)[5] += 1
    assert pool.written(0, first) == ["k"]
    assert first.data["k"]._version == second.data["k"]._version == 0
    pool.restore(0, first, of.inputs(of.cell.problem, 0))
    assert pool.written(0, second) == []


@pytest.fixture
def eager_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's compiler without its code generation, which takes most of the time."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


def test_compiled_members_of_one_function_live_together(block: Block, eager_backend: None) -> None:
    """More of them than torch keeps by default."""
    cells = [cell("linformer", "compiled", k=k) for k in range(4, 14)]
    assert {prepared(block, of).status for of in cells} == {"ok"}
    compiled = blocks.compilations()
    assert compiled >= len(cells)
    for _ in range(3):
        for of in cells:
            answer = block.sample(SampleRequest(of.key))
            assert answer.status == "ok", answer.reason
    assert blocks.compilations() == compiled
    block.release()
    prepared(block, cells[0])
    assert blocks.compilations() == compiled + 1, "what was compiled is gone with the block"


def test_what_compiles_in_every_timed_call_has_no_time(
    block: Block, eager_backend: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = cell("linformer", "compiled")
    prepared(block, of)
    counted = iter(range(10**6))
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "compilations", lambda: next(counted))
        answer = block.sample(SampleRequest(of.key))
    assert (answer.status, answer.cause) == ("error", "raised")
    assert "compiles it anew" in answer.reason
    assert prepared(block, of).status == "ok"
    once = iter([0, 1])
    monkeypatch.setattr(blocks, "compilations", lambda: next(once, 1))
    assert block.sample(SampleRequest(of.key)).status == "ok", "once is made up for"
