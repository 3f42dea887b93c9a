"""Peak memory from shapes alone, against what the allocator saw, for every operator in both modes."""

from __future__ import annotations

import gc

import pytest

from attnbench.measure.device.cpu import DEVICE as CPU
from attnbench.measure.metrics import peak_memory
from attnbench.measure.protocol import Forecast
from attnbench.measure.worker.fake_memory import predict, predict_on_meta
from attnbench.measure.worker.prepared_cell import subject_of
from attnbench.measure.worker.visit import Bench
from attnbench.problem import MODES, Cell, Mode, canonical_params
from tests.variants import Variant, sources, variants

SCRATCH = {
    ("mlp_mixer", "fwd_bwd"): "native_layer_norm_backward keeps sums per thread",
    ("sparse_transformer", "fwd"): "bmm packs its operands",
    ("strided", "fwd"): "bmm packs operands that the projection of a layer leaves strided",
}
"""Where a library call takes scratch that shapes do not tell: the measured peak is above the prediction."""

IN_PLACE = {
    ("kao_kv", "fwd_bwd"): "autograd adds one gradient to another in place",
    ("kao_qkv", "fwd_bwd"): "autograd adds one gradient to another in place",
}
"""Where autograd reuses a buffer that nobody else holds, which it does not do on fake tensors: one buffer less."""

CORE = [v for v in variants() if v.scope == "core"]
LAYERS = {v.name: v for v in reversed(list(variants())) if v.scope == "layer"}
"""The first kind of every operator: its projections are what a layer adds."""


def shares(variant: Variant, mode: Mode) -> tuple[int, int]:
    """Predicted and measured peak above the inputs, bytes."""
    problem = variant.problem((16, 16), channels=64, heads=2, batch=2)
    if not variant.defined(problem):
        problem = variant.problem((32, 32), channels=64, heads=2, batch=2)
    cell = Cell(variant.name, "reference", variant.scope, mode, problem, variant.params)
    of = subject_of(cell, sources()[variant.name], CPU, 2**33, Forecast())
    of.perform(of.bind(of.call, problem, of.inputs(problem, 0)))
    footprint = predict_on_meta(variant.form, problem, variant.params, mode)
    # On fake tensors it takes ten times as long: a layer adds projections to its core, a backward pass has the
    # operations of a forward one before it.
    if variant.scope == "core" and mode == "fwd_bwd":
        assert predict(variant.form, problem, variant.params, mode) == footprint
    gc.freeze()  # torch keeps what it knows of fake tensors, and measuring a peak collects garbage
    return footprint.peak_bytes, int(peak_memory.check(Bench(of))["peak_memory_bytes"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "variant", [*CORE, *LAYERS.values()], ids=lambda v: f"{v.scope}-{v.name}-{canonical_params(v.params)[:60]}"
)
def test_prediction_is_within_a_tenth_of_the_measured_peak(variant: Variant, mode: Mode) -> None:
    predicted, measured = shares(variant, mode)
    if (variant.name, mode) in SCRATCH:
        assert 0.9 * predicted <= measured <= 1.4 * predicted
        return
    if (variant.name, mode) in IN_PLACE:
        assert 0.8 * predicted <= measured <= 1.1 * predicted
        return
    assert predicted == pytest.approx(measured, rel=0.1, abs=4096)


def test_the_tenth_would_notice_a_doubled_matrix() -> None:
    softmax = next(v for v in CORE if v.name == "softmax")
    predicted, measured = shares(softmax, "fwd")
    assert predicted / 2 != pytest.approx(measured, rel=0.1, abs=4096)
