from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import chdtri, ndtri, polygamma, psi, stdtrit

from attnbench.analysis.distributions import chi_square, digamma, normal, t_quantile, t_quantiles, trigamma


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999, 0.99999])
@pytest.mark.parametrize("freedom", [0.6, 1.0, 1.3, 2.0, 9.9, 10.1, 4.5, 30.0, 199.0, 200.0, 1e5])
def test_student_is_scipys(freedom: float, confidence: float) -> None:
    assert t_quantile(freedom, confidence) == pytest.approx(float(stdtrit(freedom, 0.5 + confidence / 2)), rel=1e-5)


def test_infinite_freedom_is_the_normal() -> None:
    assert t_quantile(math.inf, 0.95) == pytest.approx(1.959964, rel=1e-6)


@pytest.mark.parametrize("confidence", [0.95, 0.99999])
def test_many_quantiles_at_once_are_those_of_each(confidence: float) -> None:
    freedoms = np.array([0.3, 0.99, 1.0, 1.013, 2.5, 8.77, 41.3, 199.9, 200.0, 1234.0, math.inf])
    each = [t_quantile(freedom, confidence) for freedom in freedoms.tolist()]
    assert t_quantiles(freedoms, confidence).tolist() == pytest.approx(each, rel=1e-5)
    assert t_quantiles(freedoms + 0.01, confidence)[2] != pytest.approx(each[2], rel=1e-5), "the negative control"
    assert len(t_quantiles(np.zeros(0), confidence)) == 0


@pytest.mark.parametrize("freedom", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("tail", [0.05, 0.01, 0.001])
def test_chi_square_is_scipys(freedom: int, tail: float) -> None:
    assert chi_square(freedom, tail) == pytest.approx(float(chdtri(freedom, tail)), rel=0.03)


@pytest.mark.parametrize("x", [0.3, 0.5, 1.0, 2.5, 7.9, 40.0])
def test_gamma_functions_are_scipys(x: float) -> None:
    assert digamma(x) == pytest.approx(float(psi(x)), abs=1e-7)
    assert trigamma(x) == pytest.approx(float(polygamma(1, x)), rel=1e-7)


def test_normal_is_scipys() -> None:
    assert normal(0.975) == pytest.approx(float(ndtri(0.975)), rel=1e-9)
