"""The check passes what is right and refuses what is wrong, by bounds that are derived."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attnbench.measure.device import cpu
from attnbench.measure.protocol import VisitAnswer
from attnbench.measure.worker import checking, correctness, error_bound, failures
from attnbench.measure.worker.fingerprints import digest, fingerprint
from attnbench.measure.worker.input_pool import InputPool
from attnbench.measure.worker.prepared_cell import Misfit, Subject
from attnbench.measure.worker.timed_checks import TimedChecks
from attnbench.measure.worker.visit import Bench
from attnbench.problem import MODES, Dtype, Mode, Params, Problem
from tests.measuring import member, subject

DTYPES: tuple[Dtype, ...] = ("float64", "float32", "bfloat16", "float16")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "impl"), [("softmax", "reference"), ("softmax", "sdpa"), ("linformer", "reference")])
def test_what_is_right_passes(name: str, impl: str, mode: Mode, dtype: Dtype) -> None:
    found = checking.check_impl(subject(name, impl, mode, dtype)).checked
    assert found.relative_error <= found.tolerance <= error_bound.CEILING[dtype]
    assert found.checked_seq_len == 64


def with_impl(of: Subject, change: float, gradient: float = 0.0) -> Subject:
    """The reference with its output and its gradients off by these shares."""
    reference = of.form.reference

    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, y: Tensor) -> Tensor:
            return y * (1 + change)

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
            return grad * (1 + gradient)

    def call(problem: Problem, params: Params, **tensors: Tensor) -> Tensor:
        output: Tensor = Off.apply(reference(problem, params, **tensors))
        return output

    return replace(of, call=call, cell=replace(of.cell, impl="off"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_error_of_four_bounds_is_wrong(dtype: Dtype) -> None:
    bound = checking.check_impl(subject("softmax", dtype=dtype)).checked.tolerance
    with pytest.raises(correctness.Wrong, match="the output differs"):
        checking.check_impl(with_impl(subject("softmax", dtype=dtype), 4 * bound))


def test_a_stated_exception_widens_the_bound_and_no_more() -> None:
    plain = subject("softmax", dtype="float64")
    bound = checking.check_impl(plain).checked.tolerance
    stated = replace(plain, operator=replace(plain.operator, tolerance=(3.0, "a test")))
    checking.check_impl(with_impl(stated, 2 * bound))
    with pytest.raises(correctness.Wrong):
        checking.check_impl(with_impl(plain, 2 * bound))
    with pytest.raises(correctness.Wrong):
        checking.check_impl(with_impl(stated, 5 * bound))


def test_a_wrong_gradient_alone_is_wrong() -> None:
    checking.check_impl(with_impl(subject("softmax", mode="fwd_bwd"), 0.0))
    with pytest.raises(correctness.Wrong, match="the gradient of"):
        checking.check_impl(with_impl(subject("softmax", mode="fwd_bwd"), 0.0, gradient=1e-3))


def test_beyond_what_is_affordable_the_reduced_size_is_checked() -> None:
    slow = replace(cpu.DEVICE, affordable_flops=10)
    found = checking.check_impl(replace(subject("softmax", "sdpa"), device=slow)).checked
    assert found.checked_seq_len == 63
    with pytest.raises(correctness.Wrong):
        checking.check_impl(with_impl(replace(subject("softmax"), device=slow), 1e-3))


def test_what_float64_cannot_hold_in_memory_is_not_tried() -> None:
    of = subject("softmax")
    assert correctness.affordable(of)
    assert not correctness.affordable(replace(of, memory_limit=1000))


def test_reduced_images_are_odd() -> None:
    of = subject("softmax")
    image = replace(of, cell=replace(of.cell, problem=Problem.image(16, 16, 32, 2)))
    reduced = correctness.reduced_problem(image)
    assert reduced is not None
    assert (reduced.height, reduced.width) == (7, 9)


def test_a_gpu_is_checked_at_many_blocks_and_by_the_kernel_that_is_timed() -> None:
    of = subject("softmax")
    assert correctness.reduced_problem(of).seq_len == 63  # type: ignore[union-attr]
    gpu = replace(of, device=replace(of.device, is_host=False))
    assert correctness.reduced_problem(gpu).seq_len == 1023  # type: ignore[union-attr]


def test_what_compiles_is_called_first_at_each_size_that_is_checked() -> None:
    of, sizes = subject("softmax", "sdpa"), list[int]()

    def call(problem: Problem, params: Params, **tensors: Tensor) -> Tensor:
        sizes.append(problem.seq_len)
        return of.call(problem, params, **tensors)

    for impl, compiles in (("cuda:mine", True), ("mine", False)):
        sizes.clear()
        checked = checking._check(Bench(replace(of, call=call, cell=replace(of.cell, impl=impl))))
        assert (sizes[:2] == [64, 63], checked.metrics.get("compile_s", 0.0) > 0) == (compiles, compiles)


def whole_visit(of: Subject) -> None:
    """A check, and a visit of many calls."""
    checking.check_impl(of)
    timed = member(of)
    for _ in range(10):
        timed.sample()
    timed.finish()


@pytest.mark.parametrize("name", ["caches", "caches_by_place", "decays"])
def test_cheating_impls_are_found_at_the_latest_when_they_are_timed(name: str) -> None:
    with pytest.raises(correctness.Wrong):
        whole_visit(subject("faulty", name, seq_len=48))


def test_an_honest_impl_is_not_taken_for_a_cheat() -> None:
    whole_visit(subject("faulty", "honest", mode="fwd_bwd"))


def test_an_answer_is_told_from_any_other() -> None:
    of = subject("softmax", mode="fwd_bwd")
    first = [of.perform(call) for call in of.calls]

    def known() -> TimedChecks:
        return TimedChecks(of, InputPool(), dict(enumerate(map(fingerprint, first))), 1e-6)

    again = subject("softmax", mode="fwd_bwd")
    for number, call in enumerate(again.calls):
        known().first(number, again.perform(call))
    changed = tuple(t.clone() for t in first[1])
    changed[0].view(-1)[7] += 0.01 * changed[0].abs().max()
    with pytest.raises(correctness.Wrong, match="not the one that was checked"):
        known().first(1, changed)
    with pytest.raises(correctness.Wrong, match="not the one that was checked"):
        known().first(1, (first[1][0].roll(1, dims=-2), *first[1][1:]))
    with pytest.raises(correctness.Wrong, match="not the one that was checked"):
        known().first(0, first[1])


@pytest.mark.parametrize(("name", "following"), [("softmax", 0b1111), ("fnet", 0b01), ("linear_transformer", 0b1111)])
def test_a_check_says_which_outputs_follow_their_inputs(name: str, following: int) -> None:
    """The gradient of a linear map follows none."""
    assert checking.check_impl(subject(name, mode="fwd_bwd")).following == following
    assert checking.check_impl(subject(name)).following is None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("affordable", [True, False])
@pytest.mark.parametrize("impl", ["reference", "sdpa"])
def test_a_check_of_long_calls_makes_four(
    impl: str, affordable: bool, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One on each set, one after a write, and one whose memory is measured."""
    of = subject("softmax", impl, mode)
    of = of if affordable else replace(of, device=replace(cpu.DEVICE, affordable_flops=10))
    monkeypatch.setattr(checking, "TRIALS", ((math.inf, 1),))
    made: list[Problem] = []
    call = of.call

    def counting(problem: Problem, params: Params, **tensors: Tensor) -> Tensor:
        made.append(problem)
        return call(problem, params, **tensors)

    object.__setattr__(of, "call", counting)
    assert checking._check(Bench(of)).status == "ok"
    assert made.count(of.cell.problem) == 4


@pytest.mark.parametrize("count", [0, 40, 4093, 3 * 4093 * 1024 + 5])
def test_a_fingerprint_and_a_digest_are_of_every_value(count: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(count))
    before = fingerprint((values,)), digest(values)
    for place in {0, count // 2, count - 1} if count else ():
        other = values.clone()
        other[place] += 0.5
        assert abs(fingerprint((other,)) - before[0]) * max(count, 1) ** 0.5 > 0.05
        assert digest(other) != before[1]
    assert (fingerprint((values.clone(),)), digest(values.clone())) == before
    strided = torch.stack((values, values), dim=-1)[..., 0]  # a part of a gradient may be one
    assert (fingerprint((strided,)), digest(strided)) == before


def test_products_in_tf32_are_allowed_the_bits_of_float16() -> None:
    """Inputs in float32 rounded to the ten bits of TF32, on a device that allows it and on one that does not."""
    plain = subject("softmax", dtype="float32")

    def coarse(x: Tensor) -> Tensor:
        return x.half().float() if x.dtype == torch.float32 else x

    def call(problem: Problem, params: Params, **tensors: Tensor) -> Tensor:
        return plain.form.reference(problem, params, **{name: coarse(x) for name, x in tensors.items()})

    rounded = replace(plain, call=call, cell=replace(plain.cell, impl="rounded"))
    with pytest.raises(correctness.Wrong, match="the output differs"):
        checking.check_impl(rounded)
    allowing = replace(rounded, device=replace(rounded.device, tf32=lambda: True))
    assert checking.check_impl(allowing).checked.tolerance <= error_bound.CEILING["float16"]
    with pytest.raises(correctness.Wrong, match="the output differs"):
        checking.check_impl(with_impl(replace(plain, device=allowing.device), 0.1))


def named_mine(off: float = 0.0) -> Subject:
    """torch's SDPA under another name than `sdpa`, as the README's own impl has it. off: its outputs, relative."""

    def attention(problem: Problem, params: Params, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=problem.causal) * (1 + off)

    of = subject("softmax", "reference", "fwd_bwd")
    return replace(of, call=attention, cell=replace(of.cell, impl="mine", problem=Problem(512, 256, 8)))


def test_what_calls_sdpa_is_held_to_its_exponential_whatever_its_name() -> None:
    checking.check_impl(named_mine())
    with pytest.raises(correctness.Wrong, match="the output differs"):
        checking.check_impl(named_mine(1e-4))


def test_gradients_that_a_dtype_does_not_hold_are_no_fault_of_the_impl() -> None:
    """hyena's first weights have gradients that grow as √N; the control: an impl whose outputs overflow alone."""
    hyena = subject("hyena", "reference", "fwd_bwd", "float16", 2048, causal=True, scope="layer")
    with pytest.raises(Misfit, match=r"the gradient of w_1 has values up to .*, where float16 ends at 6\.55e\+04"):
        checking.check_impl(hyena)
    softmax = subject("softmax", dtype="float16")

    def attention(problem: Problem, params: Params, **tensors: Tensor) -> Tensor:
        output: Tensor = softmax.form.reference(problem, params, **tensors)
        return output * (1e6 if problem.dtype == "float16" else 1)

    with pytest.raises(correctness.Wrong, match="NaN or infinite"):
        checking.check_impl(replace(softmax, call=attention, cell=replace(softmax.cell, impl="mine")))


def test_a_write_to_an_input_is_named_not_what_follows_from_it() -> None:
    softmax = subject("softmax")

    def attention(problem: Problem, params: Params, q: Tensor, **others: Tensor) -> Tensor:
        output: Tensor = softmax.form.reference(problem, params, q=q, **others)
        q.mul_(1.5)
        return output

    with pytest.raises(correctness.Wrong, match=r"^it writes to its input 'q'$"):
        checking.check_impl(replace(softmax, call=attention, cell=replace(softmax.cell, impl="mine")))


@pytest.mark.parametrize("kind", ["nan", "off", "raises"])
def test_what_fails_at_the_reduced_size_alone_says_so(kind: str) -> None:
    def attention(problem: Problem, params: Params, **tensors: Tensor) -> Tensor:
        if problem.seq_len % 64 and kind == "raises":
            raise RuntimeError("not a multiple of 64")
        output: Tensor = softmax.form.reference(problem, params, **tensors)
        return output * {"nan": math.nan, "off": 2.0}[kind] if problem.seq_len % 64 else output

    softmax = subject("softmax")
    of = replace(softmax, call=attention, cell=replace(softmax.cell, impl="mine"))
    answer = failures.guarded(VisitAnswer, of.device, lambda: checking.check_impl(of))  # type: ignore[arg-type, return-value]
    assert answer.status == ("error" if kind == "raises" else "wrong")
    assert answer.reason.endswith("; at 63 tokens, where impls are checked first")
    assert answer.reason.count("63") == 1
