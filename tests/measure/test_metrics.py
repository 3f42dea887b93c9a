"""What the metrics measure on a CPU, against counts by hand and against themselves."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from attnbench.measure.device import cpu
from attnbench.measure.metrics import energy, estimate_error, flops, peak_memory, softmax_error
from attnbench.measure.worker import operations as dispatch
from attnbench.measure.worker.prepared_cell import Subject
from attnbench.measure.worker.visit import Bench
from attnbench.problem import MODES, Mode, Params, Problem
from tests.measuring import member, subject

N, C, H = 64, 32, 2


def test_eager_softmax_holds_two_n_by_n_matrices() -> None:
    found = peak_memory.check(Bench(subject("softmax")))
    assert found["peak_memory_bytes"] == pytest.approx(4 * (N * C + 2 * H * N * N), abs=256)
    assert found["input_bytes"] == 3 * 4 * N * C
    assert found["parameter_bytes"] == 0
    assert found["peak_memory_total_bytes"] == found["peak_memory_bytes"] + found["input_bytes"]
    assert found["process_memory_bytes"] > 10**7


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["softmax", "linformer", "identity"])
def test_peak_memory_repeats_to_the_byte_whatever_came_before(name: str, mode: Mode) -> None:
    def peak() -> float:
        of = subject(name, mode=mode)
        of.perform(of.calls[0])
        return peak_memory.check(Bench(of))["peak_memory_bytes"]

    alone = peak()
    large = subject("softmax", seq_len=1024)
    large.perform(large.calls[0])
    peak_memory.check(Bench(large))
    assert peak() == alone


def test_a_kept_temporary_shows_in_the_peak() -> None:
    of = subject("softmax")
    plain = peak_memory.check(Bench(of))["peak_memory_bytes"]
    kept: list[torch.Tensor] = []
    reference = of.call
    object.__setattr__(of, "call", lambda *a, **k: kept.append(torch.zeros(2**16)) or reference(*a, **k))
    assert peak_memory.check(Bench(of))["peak_memory_bytes"] >= plain + 4 * 2**16


@pytest.mark.parametrize("mode", MODES)
def test_flops_are_stated_and_counted_alike(mode: Mode) -> None:
    of = Bench(subject("softmax", mode=mode))
    found = flops.check(of)
    assert found["flops"] == found["reference_flops"] == found["flops_counted"] > 0
    assert not of.warnings


def test_a_count_that_differs_from_the_stated_one_is_said() -> None:
    of = subject("softmax")
    forecast = type(of.forecast)(flops_counted=12)
    object.__setattr__(of, "forecast", forecast)
    made = Bench(of)
    flops.check(made)
    assert "torch counted 12" in made.warnings[0]


def test_a_count_that_is_missing_is_empty_and_named() -> None:
    of = subject("softmax")
    object.__setattr__(of, "forecast", type(of.forecast)())
    made = Bench(of)
    assert "flops_counted" not in flops.check(made)
    assert "flops_counted is empty" in made.notes[0]


def test_what_torch_cannot_count_is_stored_beside_the_count() -> None:
    found = flops.check(Bench(subject("fnet")))
    assert found["flops_uncounted"] == found["reference_flops"] > 0
    assert "flops_counted" not in found
    assert flops.check(Bench(subject("softmax")))["flops_uncounted"] == 0


def test_a_count_where_nothing_should_be_countable_is_kept() -> None:
    of = subject("fnet")
    object.__setattr__(of, "forecast", type(of.forecast)(flops_counted=12))
    made = Bench(of)
    assert flops.check(made)["flops_counted"] == 12
    assert "torch counted 12" in made.warnings[0]


def test_wall_time_of_a_known_sleep() -> None:
    timed = member(subject("faulty", "slow"))
    samples = timed.sample()
    assert [name for name, _, _ in samples] == ["wall"]
    assert 0.02 <= samples[0][1] < 0.2


def test_no_energy_without_a_counter() -> None:
    assert energy.finish(Bench(subject("softmax"))) == {}


@pytest.mark.parametrize(
    ("per_call", "found"), [(0.25, 0.25), (0.0, None), (None, None)], ids=["moves", "stands", "none"]
)
def test_energy_is_what_the_counter_moves_by_call(
    per_call: float | None, found: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def call() -> tuple[torch.Tensor, ...]:
        nonlocal calls
        calls += 1
        return ()

    def energy_j() -> float | None:
        return None if per_call is None else 1e6 + per_call * calls

    monkeypatch.setattr(energy, "SPAN_S", 0.01)
    made = Bench(subject("softmax"))
    pretended = SimpleNamespace(
        device=replace(cpu.DEVICE, energy_j=energy_j, energy_step_j=1e-3),
        spent=made.subject.spent,
        cell=made.subject.cell,
        calls=(call, call),
        synchronise=lambda: None,
    )
    object.__setattr__(made, "subject", pretended)
    told = energy.finish(made)
    if found is None:
        assert told == {}
    else:
        assert told == {
            "energy_j": pytest.approx(found),
            "energy_resolution_j": pytest.approx(1e-3 / calls),
        }
        assert made.subject.spent.seconds >= energy.SPAN_S


def operations_of(of: Subject) -> dict[str, int]:
    counts: Counter[str] = Counter()
    of.perform(dispatch.counting(of.calls[0], counts))
    return dispatch.operations(of, counts)


def test_the_kernel_is_what_ran() -> None:
    of = subject("softmax", "sdpa")
    assert dispatch.kernel(of, operations_of(of)) == "scaled_dot_product_flash_attention_for_cpu"
    eager = subject("softmax")
    operations = operations_of(eager)
    assert dispatch.kernel(eager, operations) == "eager"
    assert operations["aten.bmm"] == 2
    assert operations["aten._softmax"] == 1


CURVE = softmax_error.METRIC.curve
assert CURVE is not None
ERRORS, MEANS = list(CURVE.columns.values()), list(CURVE.beside.values())


def errors(of: Subject) -> dict[str, float]:
    return softmax_error.check(Bench(of))


def answering(of: Subject, call: object) -> Subject:
    object.__setattr__(of, "call", call)
    return of


def exact(
    problem: Problem, params: Params, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **rest: object
) -> object:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=problem.causal)


def mean_so_far(problem: Problem, params: Params, v: torch.Tensor, **rest: object) -> object:
    if not problem.causal:
        return v.mean(dim=-2, keepdim=True).expand_as(v)
    return v.cumsum(dim=-2) / torch.arange(1, v.shape[-2] + 1).unsqueeze(-1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("seq_len", [64, 200])
def test_softmax_error_is_zero_of_softmax_and_the_means_of_the_mean(causal: bool, seq_len: int) -> None:
    given = {"seq_len": seq_len, "causal": causal}
    right = errors(answering(subject("performer", **given), exact))  # type: ignore[arg-type]
    assert set(right) == {*ERRORS, *MEANS}
    assert all(right[name] < 1e-6 for name in ERRORS)
    idle = errors(answering(subject("performer", **given), mean_so_far))  # type: ignore[arg-type]
    assert [idle[name] for name in ERRORS] == pytest.approx([idle[name] for name in MEANS], rel=1e-4)
    assert [idle[name] for name in MEANS] == [right[name] for name in MEANS], "the same q, k, v"
    assert [idle[name] for name in MEANS] == sorted(idle[name] for name in MEANS), "as the attention concentrates"
    other = errors(answering(subject("performer", **given), lambda *a, **t: exact(*a, **{**t, "q": 0.9 * t["q"]})))  # type: ignore[arg-type]
    assert other["softmax_error_at_4"] > 0.01, "other logits are another answer"


def test_softmax_error_means_the_same_for_every_operator() -> None:
    """The same q, k, v and the same truth: an rfa that answers softmax attention has no error either."""
    performer, rfa = (errors(subject(name)) for name in ("performer", "rfa"))
    assert [performer[name] for name in MEANS] == [rfa[name] for name in MEANS]
    assert all(value < 1e-6 for name, value in errors(answering(subject("rfa"), exact)).items() if name in ERRORS)
    own = estimate_error.check(Bench(subject("rfa", m=256)))["estimate_error"]
    assert own < 0.1, "near its own kernel"
    assert errors(subject("rfa", m=256))["softmax_error_at_4"] > 0.5, "and far from softmax where that concentrates"
    assert errors(subject("performer", m=2048))["softmax_error_at_0.25"] < 0.2
    series = errors(subject("based"))  # of 16 channels of q and k, whatever D
    assert series["softmax_error_at_0.25"] < 0.02 < 0.2 < series["softmax_error_at_4"]


def test_what_estimates_nothing_has_no_softmax_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert errors(subject("softmax")) == {}
    assert errors(subject("performer", kind="relu")) == {}
    assert errors(subject("performer", scope="layer")) == {}
    gated = subject("rfa", causal=True)
    assert errors(gated) == {}, "the gate makes it another function"
    assert estimate_error.check(Bench(gated)).keys() == {"estimate_error"}
    assert errors(subject("rfa", causal=True, gate="none")).keys() == {*ERRORS, *MEANS}
    monkeypatch.setattr(estimate_error, "MATRICES", gated.memory_limit // (2 * 8 * 2 * 64**2) + 1)
    assert estimate_error.check(Bench(gated)) == {}, "they would not fit"
    assert estimate_error.check(Bench(subject("performer"))) == {}, "its map is softmax attention"


def test_an_error_that_is_not_finite_is_empty_and_named() -> None:
    made = Bench(answering(subject("performer"), lambda *a, v, **t: v * float("inf")))
    assert softmax_error.check(made).keys() == set(MEANS)
    assert "no finite" in made.notes[0]
    assert "softmax_error_at_4" in made.notes[0]


def test_softmax_error_is_taken_where_it_is_affordable() -> None:
    assert errors(subject("performer", seq_len=256))
    slow = replace(cpu.DEVICE, affordable_flops=1e6)
    assert errors(replace(subject("performer", seq_len=256), device=slow)) == {}


def test_the_logit_scale_is_the_standard_deviation_of_the_logits() -> None:
    """Of N normal logits with deviation s, Σp² tends to exp(s²) / N, so that the mean of v errs by √(1 − exp(−s²))."""
    found = errors(subject("rfa", seq_len=2048))
    for scale in (0.25, 0.5, 1.0):
        assert found[f"mean_error_at_{scale:g}"] == pytest.approx(math.sqrt(1 - math.exp(-(scale**2))), rel=0.1)
