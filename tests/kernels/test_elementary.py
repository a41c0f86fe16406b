"""The house's exponentials and logarithms against mpmath and numpy."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from gflow.kernels import elementary, losses
from gflow.kernels.abi import kernel

EPS = np.finfo(float).eps


@kernel
def _exps(x, out):
    for i in range(x.size):
        out[i] = elementary.exp(x[i])


@kernel
def _exps_of_any(x, out):
    for i in range(x.size):
        out[i] = elementary.exp_of_any(x[i])


@kernel
def _logs(x, out):
    for i in range(x.size):
        out[i] = elementary.log1p(x[i])


def of(function, x):
    out = np.empty_like(x)
    function(x, out)
    return out


def test_exponential_to_rounding():
    rng = np.random.default_rng(0)
    x = -np.concatenate(
        [708 * rng.random(500), 10.0 ** rng.uniform(-18, 2, 500), [0.0, 0.5 * np.log(2), 707.99, 708.0]]
    )
    exact = np.array([float(mpmath.exp(mpmath.mpf(v))) for v in x])
    np.testing.assert_allclose(of(_exps, x), exact, rtol=1.5 * EPS, atol=0)
    np.testing.assert_array_equal(of(_exps, np.array([-708.1, -1e300, -np.inf, -0.0])), [0, 0, 0, 1])
    assert np.isnan(of(_exps, np.array([np.nan]))[0])


def test_exponential_of_any_to_rounding():
    """From the smallest to the largest normal numbers, and beyond; in vectors of any length, and what is left over of them."""
    rng = np.random.default_rng(3)
    halves = (np.arange(-1021, 1024) + 0.5) * np.log(2)  # where the power of two changes
    x = np.concatenate(
        [
            rng.uniform(-708, 709.78, 1000),
            10.0 ** rng.uniform(-18, 2, 200) * rng.choice([-1, 1], 200),
            halves,
            np.nextafter(halves, 0.0),
            [0.0, -0.0, -708.0, 709.78, 709.7827],
        ]
    )
    exact = np.array([float(mpmath.exp(mpmath.mpf(v))) for v in x])
    for part in np.split(np.arange(x.size), np.cumsum(np.arange(1, 40))):
        np.testing.assert_allclose(of(_exps_of_any, x[part]), exact[part], rtol=1.5 * EPS, atol=0)
    far = np.array([-np.inf, -1e300, -745.0, -708.1, 709.79, 709.9, 710.1, 1e300, np.inf])
    np.testing.assert_array_equal(of(_exps_of_any, far), [0.0] * 4 + [np.inf] * 5)
    assert np.isnan(of(_exps_of_any, np.full(9, np.nan))).all()


def test_logarithm_to_rounding():
    u = np.concatenate([10.0 ** np.random.default_rng(1).uniform(-300, 70, 1000), [0.0, EPS, EPS / 2]])
    with mpmath.workdps(400):
        exact = np.array([float(mpmath.log(1 + mpmath.mpf(v))) for v in u])
    np.testing.assert_allclose(of(_logs, u), exact, rtol=3 * EPS, atol=0)


@kernel
def _log2(x, out):
    for i in range(x.size):
        out[i] = elementary.log2(x[i])


@kernel
def _exp2(x, out):
    for i in range(x.size):
        out[i] = elementary.exp2(x[i])


@pytest.mark.parametrize(
    ("function", "referee", "lowest", "highest"),
    [(_log2, np.log2, 1e-300, 1e300), (_exp2, np.exp2, -990.0, 990.0)],
)
def test_powers(function, referee, lowest, highest):
    rng = np.random.default_rng(0)
    if lowest > 0:
        x = np.concatenate(
            [np.exp(rng.uniform(np.log(lowest), np.log(highest), 4001)), 1 + rng.uniform(-0.5, 1, 4001)]
        )
    else:
        x = np.concatenate([rng.uniform(lowest, highest, 4001), rng.uniform(-1, 1, 4001)])
    out, alone = np.empty_like(x), np.empty(1)
    function(x, out)
    if lowest > 0:
        np.testing.assert_allclose(out, referee(x), rtol=0, atol=1e-8)
    else:
        np.testing.assert_allclose(out, referee(x), rtol=1e-8)
    for i in range(0, x.size, 37):  # one number is not in a vector register
        function(x[i : i + 1], alone)
        assert alone[0] == out[i]


def test_a_loss_of_many_samples_is_their_sum():
    """More samples than go into one product, with right labels and wrong ones, near and far; and its derivative."""
    rng = np.random.default_rng(2)
    for n in (1, 3, 4, 255, 256, 257, 1000):
        for size in (0.01, 1.0, 30.0):
            f, y = size * rng.standard_normal(n), rng.choice([-1.0, 1.0], n)
            work = np.concatenate([f, np.zeros(n)])
            losses.derivative(losses.LOG_LOGISTIC, 0.5, 1, n, y, 0, work, 0, n)
            got = losses.value(losses.LOG_LOGISTIC, 0.5, 1, n, y, 0, work, 0)
            with mpmath.workdps(30):
                m = [mpmath.mpf(a) * mpmath.mpf(b) for a, b in zip(y, f, strict=True)]
                total = mpmath.fsum(mpmath.log1p(mpmath.exp(-x)) for x in m)
                value = float(mpmath.log(total / 2))
                slopes = [float(-s / (1 + mpmath.exp(x)) / total) for s, x in zip(y, m, strict=True)]
            assert abs(got - value) <= 8 * EPS * max(1.0, abs(value))
            np.testing.assert_allclose(work[n:], slopes, rtol=64 * EPS, atol=0)
