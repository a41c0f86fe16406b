"""The house's exponential and logarithm against mpmath."""

from __future__ import annotations

import mpmath
import numpy as np

from gflow.kernels import exponentials, losses
from gflow.kernels.abi import kernel

EPS = np.finfo(float).eps


@kernel
def _exps(x, out):
    for i in range(x.size):
        out[i] = exponentials.exp(x[i])


@kernel
def _logs(x, out):
    for i in range(x.size):
        out[i] = exponentials.log1p(x[i])


def of(function, x):
    out = np.empty_like(x)
    function(x, out)
    return out


def test_exponential_to_rounding():
    rng = np.random.default_rng(0)
    x = -np.concatenate(
        [700 * rng.random(500), 10.0 ** rng.uniform(-18, 2, 500), [0.0, 0.5 * np.log(2), 700.0]]
    )
    exact = np.array([float(mpmath.exp(mpmath.mpf(v))) for v in x])
    np.testing.assert_allclose(of(_exps, x), exact, rtol=1.5 * EPS, atol=0)
    np.testing.assert_array_equal(of(_exps, np.array([-700.1, -1e300, -np.inf, -0.0])), [0, 0, 0, 1])
    assert np.isnan(of(_exps, np.array([np.nan]))[0])


def test_logarithm_to_rounding():
    u = np.concatenate([10.0 ** np.random.default_rng(1).uniform(-300, 70, 1000), [0.0, EPS, EPS / 2]])
    with mpmath.workdps(400):
        exact = np.array([float(mpmath.log(1 + mpmath.mpf(v))) for v in u])
    np.testing.assert_allclose(of(_logs, u), exact, rtol=3 * EPS, atol=0)


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
