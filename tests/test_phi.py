"""Exponential integrals against hundreds of decimal digits and quadrature."""

import math
from decimal import Decimal, getcontext

import pytest
from scipy.integrate import quad

from torch_gfshadow.bounds._phi import (
    exp,
    log,
    log_add,
    log_integral,
    log_one_minus_exp,
    p1,
    p2,
    p3,
)

FUNCTIONS = {1: p1, 2: p2, 3: p3}
POINTS = [s * z for z in (1e-300, 1e-13, 1e-8, 1e-3, 0.1, 1.0, 1.99, 2.01, 5.0, 30.0, 300.0)
          for s in (1, -1)]  # fmt: skip


def exact(k, z):
    """p_k in 700 decimal digits."""
    getcontext().prec = 700
    x = Decimal(z)
    rest = x.exp() - sum(x**j / math.factorial(j) for j in range(k))
    return float(rest / x**k)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("z", [z for z in POINTS if abs(z) > 1e-100])
def test_every_digit_is_right(k, z):
    assert FUNCTIONS[k](z) == pytest.approx(exact(k, z), rel=1e-14)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("z", [0.0, 1e-300, -1e-300])
def test_at_zero_they_are_one_over_k_factorial(k, z):
    assert FUNCTIONS[k](z) == pytest.approx(1 / math.factorial(k), rel=1e-15)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_they_leave_the_range_of_a_float_without_an_error(k):
    assert FUNCTIONS[k](1e4) == math.inf
    assert FUNCTIONS[k](math.inf) == math.inf
    assert FUNCTIONS[k](-math.inf) == 0.0
    assert FUNCTIONS[k](-1e4) == pytest.approx(exact(k, -1e4), rel=1e-14)
    z = 709.9  # e^z overflows, e^z/z^k does not
    assert FUNCTIONS[k](z) == pytest.approx(exact(k, z), rel=1e-11)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize(("m", "h"), [(1.3, 0.7), (-4.0, 2.0), (0.0, 3.0), (1e-9, 5.0)])
def test_they_are_the_integrals_the_tube_needs(k, m, h):
    integral = quad(lambda s: math.exp(m * (h - s)) * s ** (k - 1), 0, h, epsabs=0, epsrel=1e-12)[0]
    assert math.factorial(k - 1) * h**k * FUNCTIONS[k](m * h) == pytest.approx(integral, rel=1e-10)


@pytest.mark.parametrize("m", [2.0, -2.0, 1e-13, 0.0, -1e-9, 30.0, -30.0])
def test_the_logarithm_of_the_integral_is_that(m):
    assert log_integral(m, 0.5) == pytest.approx(math.log(0.5 * p1(0.5 * m)), rel=1e-14)


@pytest.mark.parametrize("m", [1e4, -1e4])
def test_the_logarithm_of_the_integral_survives_what_the_integral_does_not(m):
    assert log_integral(m, 1.0) == pytest.approx(max(m, 0.0) - math.log(1e4), rel=1e-14)


def test_an_empty_interval_has_no_integral():
    assert log_integral(3.0, 0.0) == -math.inf


def test_sums_of_logarithms_keep_their_digits_and_their_infinities():
    assert log_add(1000.0, 1000.0) == pytest.approx(1000.0 + math.log(2.0), rel=1e-15)
    assert log_add(0.0, -40.0) == math.log1p(math.exp(-40.0))
    assert log_add(-math.inf, -math.inf) == -math.inf
    assert log_add(-math.inf, 3.0) == 3.0
    assert log_add(math.inf, 3.0) == math.inf


@pytest.mark.parametrize("x", [-1e-300, -1e-17, -1e-9, -0.5, -0.7, -40.0, -800.0])
def test_one_minus_exp_is_exact_at_both_ends(x):
    getcontext().prec = 400
    assert log_one_minus_exp(x) == pytest.approx(float((1 - Decimal(x).exp()).ln()), rel=1e-14)


def test_one_minus_exp_of_zero_is_the_logarithm_of_zero():
    assert log_one_minus_exp(0.0) == -math.inf


def test_exp_and_log_have_no_errors_at_the_ends():
    assert exp(1e4) == math.inf
    assert exp(-math.inf) == 0.0
    assert log(0.0) == -math.inf
