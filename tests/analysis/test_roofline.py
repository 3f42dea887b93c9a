"""The roofline of a cell, by hand: products at the matmul's rate, or traffic at the copy's."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from attnbench.analysis.cards import Rates
from attnbench.analysis.roofline import measured_rates, rooflines
from attnbench.analysis.run import read_run
from attnbench.operator import Cost
from attnbench.outputs import _listings as listings
from attnbench.outputs._columns import lines
from attnbench.problem import Problem
from attnbench.registry import operators, resolve

REFERENCE = Path(__file__).parents[2] / "results" / "reference"

RATES = Rates("some hardware", "measured", {"float32": 1e12}, 1e9)


def results(**changes: object) -> pd.DataFrame:
    row = {
        "key": "a", "status": "ok", "dtype": "float32", "wall_time_s": 0.02, "device_time_s": math.nan,
        "flops": 10**10, "bytes_required": 10**6, "bytes_moved": 2 * 10**6,
    }  # fmt: skip
    return pd.DataFrame([{**row, **changes}])


def test_the_larger_term_is_the_roofline() -> None:
    (products,) = rooflines(results(), RATES)
    assert products.roofline_s == pytest.approx(0.01)
    assert products.bound == "products"
    assert products.ratio == pytest.approx(2)
    (traffic,) = rooflines(results(bytes_moved=2 * 10**7), RATES)
    assert traffic.roofline_s == pytest.approx(0.02)
    assert traffic.bound == "traffic"


def test_device_time_comes_before_wall_time() -> None:
    (found,) = rooflines(results(device_time_s=0.015), RATES)
    assert found.seconds == 0.015


def test_what_has_no_time_or_no_rate_has_no_roofline() -> None:
    assert rooflines(results(status="oom"), RATES) == []
    assert rooflines(results(wall_time_s=math.nan), RATES) == []
    assert rooflines(results(dtype="bfloat16"), RATES) == []


def test_nothing_required_is_infinitely_far() -> None:
    (found,) = rooflines(results(flops=0, bytes_moved=0), RATES)
    assert math.isinf(found.ratio)


def test_a_cheaper_exact_form_lowers_the_roofline_and_a_more_expensive_reference_does_not() -> None:
    (rewritten,) = rooflines(results(impl_flops=10**9, bytes_moved=0), RATES)
    assert rewritten.roofline_s == pytest.approx(0.001)
    (masked,) = rooflines(results(reference_flops=2 * 10**10, impl_flops=math.nan), RATES)
    assert masked.roofline_s == pytest.approx(0.01)


def table_of(*cells: dict[str, object]) -> tuple[list[str], list[str]]:
    """The columns of a listing of rooflines, and its notes. cells: what differs from a cell of 64 tokens."""
    sizes = {"batch": 1, "heads": 4, "kv_heads": pd.NA, "seq_len": 64, "query_len": pd.NA, "channels": 32}
    common = {"operator": "softmax", "impl": "reference", "scope": "core", "mode": "fwd", "causal": True}
    frames = [results(**{**common, "params": "{}", "height": None, "width": None, **sizes, **cell}) for cell in cells]
    listing = listings.rooflines(rooflines(pd.concat(frames, ignore_index=True), RATES), RATES)
    return list(listing.shown[0]), list(listing.notes)


def test_a_listing_has_the_columns_that_tell_cells_apart() -> None:
    figures = ["time", "roofline", "over", "bound"]
    assert table_of({})[0] == ["operator", "N", *figures]
    assert table_of({}, {"batch": 8})[0] == ["operator", "B", "N", *figures]
    assert table_of({}, {"mode": "fwd_bwd"})[0] == ["operator", "mode", "N", *figures]
    steps = table_of({"query_len": 1, "kv_heads": 1, "params": '{"w":2}'}, {"query_len": 1, "kv_heads": 1})[0]
    assert steps == ["operator", "N", *figures]
    some = table_of({"query_len": 1, "kv_heads": 1}, {})[0]
    assert some == ["operator", "Hk", "N", "Q", *figures]


def test_a_listing_fits_80_columns() -> None:
    run = read_run(REFERENCE / "cpu-quick")
    rates = measured_rates(run)
    listing = listings.rooflines(rooflines(run.results, rates), rates)
    head = list(listing.shown[0])
    texts = [[str(value) for value in row.values()] for row in listing.shown]
    heading, *_ = ("".join(piece.text for piece in line) for line in lines(head, texts, 80))
    assert heading.split() == head, "a table, no paragraph of each row"


def test_a_listing_says_what_is_the_same_everywhere() -> None:
    assert table_of({}, {"batch": 8})[1][0] == "everywhere: fwd, float32, heads 4, channels 32."
    steps = table_of({"query_len": 1, "kv_heads": 1}, {"query_len": 1, "kv_heads": 1, "seq_len": 128})[1]
    assert steps[0] == "everywhere: fwd, float32, batch 1, heads 4, kv_heads 1, query_len 1, channels 32."
    assert table_of({"flops": 0, "bytes_moved": 0}, {})[1][-1] == "—: nothing is required of it."


def test_a_time_below_the_roofline_is_explained() -> None:
    assert len(table_of({})[1]) == 3
    _, (*_, note) = table_of({}, {"wall_time_s": 0.001})
    assert "caches" in note


OLDER = {"bytes_moved": math.nan, "bytes_required": 10**8, "passes": 3}
"""A cell as earlier versions stored it: every tensor once, and how often the tokens were swept."""


def test_a_run_without_the_bytes_moved_has_the_roofline_of_every_tensor_once_and_says_so() -> None:
    (older,) = rooflines(results(**OLDER), RATES)
    assert older.roofline_s == pytest.approx(0.1)
    _, (*_, note) = table_of(OLDER, {})
    assert "every tensor once" in note
    assert not any("every tensor once" in note for note in table_of({})[1])
    assert rooflines(results(bytes_moved=math.nan, bytes_required=math.nan), RATES) == []


N, D, H, HK = 64 * 1024, 128, 32, 8
"""A decoding step: one new token after N − 1, four query heads to a head of keys; bfloat16 has 2 bytes."""

NEW_TOKEN = 2 * (2 * H * D + 2 * HK * D)
"""Bytes of its q and y, k and v."""


def step(operator: str, batch: int, **changes: int) -> Cost:
    sizes = {"seq_len": N, "query_len": 1, "kv_heads": HK, **changes}
    problem = Problem(channels=H * D, heads=H, batch=batch, dtype="bfloat16", causal=True, **sizes)  # type: ignore[arg-type]
    loaded = operators()[operator].load()
    return loaded.forms["core"].cost(problem, resolve(loaded, {}), "fwd")


BYTES = {
    # The cache of N − 1 tokens is read, and the new key and value are written to it.
    "softmax": lambda batch: batch * (NEW_TOKEN + 2 * HK * D * 2 * N),
    "local": lambda batch: batch * (NEW_TOKEN + 2 * HK * D * 2 * (256 + 1)),  # w = 256
    # float32 sums of D features, or of 256, each with D values and its own total, read and written; ω is 256 × D.
    "linear_transformer": lambda batch: batch * (NEW_TOKEN + 2 * HK * D * (D + 1) * 4),
    "performer": lambda batch: batch * (NEW_TOKEN + 2 * HK * 256 * (D + 1) * 4) + 256 * D * 2,
}
FLOPS = {
    "softmax": 2 * 2 * H * D * N,
    "local": 2 * 2 * H * D * 257,
    "linear_transformer": 2 * (HK * D * D + H * D * D + H * D),
    "performer": 2 * (HK * 256 * D + H * 256 * D + H * 256 + (H + HK) * 256 * D),
}


@pytest.mark.parametrize("operator", list(BYTES))
@pytest.mark.parametrize("batch", [1, 8])
def test_a_decoding_step_is_bound_by_what_it_reads_of_earlier_tokens(operator: str, batch: int) -> None:
    cost = step(operator, batch)
    assert cost.bytes_required == BYTES[operator](batch)
    assert cost.flops == batch * FLOPS[operator]
    assert cost.bytes_again == 0
    # an H100: 990 TFLOP/s, 3.35 TB/s
    rates = Rates("H100", "measured", {"bfloat16": 990e12}, 3.35e12)
    figures = {"dtype": "bfloat16", "flops": cost.flops, "bytes_moved": cost.bytes_moved}
    (found,) = rooflines(results(**figures), rates)
    assert found.bound == "traffic"
    assert found.roofline_s == pytest.approx(BYTES[operator](batch) / 3.35e12)
    (every_token,) = rooflines(results(**{**figures, "flops": 300 * cost.bytes_required}), rates)
    assert every_token.bound == "products", "more than 296 FLOPs a byte would not be"


@pytest.mark.parametrize("operator", list(BYTES))
def test_only_a_cache_of_all_tokens_makes_longer_contexts_slower(operator: str) -> None:
    growth = step(operator, 1).bytes_required / step(operator, 1, seq_len=N // 2).bytes_required
    assert growth == pytest.approx(2 if operator == "softmax" else 1, abs=1e-3)
    shared = step(operator, 1, kv_heads=H).bytes_required / step(operator, 1).bytes_required
    assert shared > 3, "with keys of their own heads read nearly four times as much"
