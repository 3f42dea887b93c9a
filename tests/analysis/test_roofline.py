"""The roofline of a cell, by hand: products at the matmul's rate, or traffic times passes at the copy's."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from attnbench.analysis.roofline import rooflines

RATES = {"matmul_flops_per_s": {"float32": 1e12}, "copy_bytes_per_s": 1e9}


def results(**changes: object) -> pd.DataFrame:
    row = {
        "key": "a", "status": "ok", "dtype": "float32", "wall_time_s": 0.02, "device_time_s": math.nan,
        "flops": 10**10, "bytes_required": 10**6, "passes": 2,
    }  # fmt: skip
    return pd.DataFrame([{**row, **changes}])


def test_the_larger_term_is_the_roofline() -> None:
    (products,) = rooflines(results(), RATES)
    assert products.roofline_s == pytest.approx(0.01)
    assert products.bound == "products"
    assert products.ratio == pytest.approx(2)
    (traffic,) = rooflines(results(bytes_required=10**7), RATES)
    assert traffic.roofline_s == pytest.approx(0.02)  # 10⁷ bytes, twice
    assert traffic.bound == "traffic"


def test_device_time_comes_before_wall_time() -> None:
    (found,) = rooflines(results(device_time_s=0.015), RATES)
    assert found.seconds == 0.015


def test_what_has_no_time_or_no_rate_has_no_roofline() -> None:
    assert rooflines(results(status="oom"), RATES) == []
    assert rooflines(results(wall_time_s=math.nan), RATES) == []
    assert rooflines(results(dtype="bfloat16"), RATES) == []


def test_nothing_required_is_infinitely_far() -> None:
    (found,) = rooflines(results(flops=0, bytes_required=0), RATES)
    assert math.isinf(found.ratio)


def test_a_cheaper_exact_form_lowers_the_roofline_and_a_more_expensive_reference_does_not() -> None:
    (rewritten,) = rooflines(results(impl_flops=10**9, bytes_required=0), RATES)
    assert rewritten.roofline_s == pytest.approx(0.001)
    (masked,) = rooflines(results(reference_flops=2 * 10**10, impl_flops=math.nan), RATES)
    assert masked.roofline_s == pytest.approx(0.01)
