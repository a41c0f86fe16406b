"""β as a function of ∫∇_β L against integrated flows of the weights and mpmath."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
from diagonal_referee import equal_start, nameless, network, predictor, regression, weights_flow
from scipy.integrate import quad, solve_ivp
from scipy.optimize import brentq

from gflow import Diagonal, Problem
from gflow.theory import diagonal
from gflow.theory.prediction import Refused

EPS = np.finfo(float).eps
MODELS = [
    ("difference", 2, 1e-8),
    ("difference", 2, 1e-3),
    ("difference", 2, 1.0),
    ("product", 2, 1e-3),
    ("power", 2, 1e-3),
    ("difference", 3, 1e-2),
    ("difference", 3, 1.0),
    ("power", 3, 0.1),
    ("difference", 4, 0.03),
    ("difference", 4, 1.0),
]


def slopes(x, y):
    """∇_β of losses of several factors, by name."""
    n = len(y)
    return {
        "square": lambda b: x.T @ (x @ b - y) / n,
        "square, factor 1/4n": lambda b: x.T @ (x @ b - y) / (2 * n),
        "logistic": lambda b: -x.T @ (np.sign(y) / (1 + np.exp(np.sign(y) * (x @ b)))) / n,
    }


def shaped(form, depth, d):
    """An unequal start of entries between 0.3 and 1; at depth 2 with signs."""
    rng = np.random.default_rng(3)
    theta = rng.uniform(0.3, 1.0, d if form == "power" else 2 * d)
    return theta * rng.choice([-1, 1], theta.size) if depth == 2 else theta


def horizon(depth, alpha):
    """About two escape times."""
    return 6 * np.log(1 / alpha) + 5 if depth == 2 else 5 + 6 * alpha ** (2 - depth) / (depth * (depth - 2))


@pytest.mark.parametrize("loss", ["square", "square, factor 1/4n", "logistic"])
@pytest.mark.parametrize("form, depth, alpha", MODELS)
def test_closed_form_equals_flow_of_weights(form, depth, alpha, loss):
    x, y = regression(5, 8, seed=1)
    times = np.linspace(0, horizon(depth, alpha), 9)
    theta0 = equal_start(form, alpha, 8)
    beta, integral = weights_flow(form, depth, theta0, slopes(x, y)[loss], times)
    m = diagonal.mirror(network(theta0, form, depth), theta0)
    allowed = 3e-10 * (1 + m.condition(-integral)) * np.abs(beta) + 1e-13 * alpha**depth
    assert np.all(np.abs(m.beta(-integral) - beta) <= allowed)


@pytest.mark.parametrize("form, depth", [("difference", 2), ("product", 2), ("power", 2), ("difference", 3), ("difference", 4), ("power", 5)])  # fmt: skip
def test_closed_form_from_unequal_starts(form, depth):
    x, y = regression(5, 8, seed=1)
    theta0 = shaped(form, depth, 8)
    beta, integral = weights_flow(form, depth, theta0, slopes(x, y)["square"], np.linspace(0, 3, 5))
    m = diagonal.mirror(network(theta0, form, depth), theta0)
    np.testing.assert_allclose(m.beta(-integral), beta, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(m.eta(beta), -integral, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("form, depth, alpha", [m for m in MODELS if m[2] < 1])
def test_mirror_flow_in_time_equals_flow_of_weights(form, depth, alpha):
    """dη/dt = −∇L(β(η)) with the package's map: the referee that an integral from the same run cannot be."""
    x, y = regression(5, 8, seed=2)
    slope = slopes(x, y)["square"]
    times = np.linspace(0, horizon(depth, alpha), 7)
    theta0 = equal_start(form, alpha, 8)
    beta, _ = weights_flow(form, depth, theta0, slope, times, rtol=1e-11)
    m = diagonal.mirror(network(theta0, form, depth), theta0)
    found = solve_ivp(
        lambda t, eta: -slope(m.beta(eta)),
        (0, times[-1]),
        np.zeros(8),
        "LSODA",
        times,
        rtol=1e-11,
        atol=1e-12,
    )
    assert found.success
    spread = (1 + m.condition(found.y.T).max()) * np.abs(beta).max()
    assert np.abs(m.beta(found.y.T) - beta).max() <= 3e-9 * spread


def h_exact(z, depth):
    if depth == 2:
        return 2 * mp.sinh(z)
    p = mp.mpf(depth) / (depth - 2)
    return (1 - z) ** (-p) - (1 + z) ** (-p)


@pytest.mark.parametrize("depth", [2, 3, 4, 7, 20])
def test_h_and_its_inverse_against_mpmath(depth):
    with mp.workdps(340):
        for z in (1e-300, 1e-9, 0.1, 0.5, 0.9, 1 - 1e-6, 1 - 1e-12):
            exact = h_exact(mp.mpf(z), depth)
            magnified = 1 / (1 - z) if depth > 2 else 1
            assert abs(float(diagonal.h(z, depth)) / exact - 1) < 40 * EPS * magnified
            assert diagonal.h(-z, depth) == -diagonal.h(z, depth)
        for b in (1e-300, 1e-20, 1e-3, 1.0, 50.0, 1e8, 1e100):
            z, slack = mp.mpf(float(diagonal.h_inverse(b, depth))), 4 * EPS * (1 + abs(np.log(b)))
            low = h_exact(z * (1 - slack), depth)
            high = h_exact(z * (1 + slack), depth) if depth == 2 or z < 1 - slack else mp.inf
            assert low <= b <= high


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_dual_variables_at_start_1e_minus_100(depth):
    beta = np.array([1e-3, -2.0, 5e-190, 0.0, -1e-250])
    m = diagonal.mirror(Diagonal(5, depth), equal_start("difference", 1e-100, 5))
    y = m.y_at(beta)
    np.testing.assert_allclose(m.beta_of(y), beta, rtol=1e-12)
    with mp.workdps(450):
        for b, found in zip(beta[:2], m.z_of(y)[:2], strict=True):
            ratio = abs(mp.mpf(b)) * mp.mpf(10) ** (100 * depth)
            if depth == 2:
                exact = mp.asinh(ratio / 2)
            else:
                exact = 1 - ratio ** (-(mp.mpf(depth) - 2) / depth)  # to 1e-200
            assert abs(abs(mp.mpf(float(found))) / exact - 1) < 4 * EPS


def test_potential_is_that_of_the_paper():
    """Q = ¼ Σ α_i² q(β_i / α_i²), q(z) = 2 − √(4 + z²) + z arcsinh(z / 2), for shaped equal starts."""
    alpha, beta = np.array([0.1, 1.0, 3.0]), np.array([0.7, -2.0, 1e-3])
    m = diagonal.mirror(Diagonal(len(alpha)), np.concatenate([alpha, alpha]))
    z = beta / alpha**2
    q = 2 - np.sqrt(4 + z**2) + z * np.arcsinh(z / 2)
    np.testing.assert_allclose(m.potential(beta), np.sum(alpha**2 * q) / 4, rtol=1e-12)


@pytest.mark.parametrize("form, depth", [("difference", 2), ("difference", 3), ("difference", 5), ("power", 2), ("power", 4)])  # fmt: skip
def test_potential_integrates_the_dual_variable(form, depth):
    theta0 = shaped(form, depth, 1)
    m = diagonal.mirror(network(theta0, form, depth), theta0)
    a, b = (abs(theta0[0]), abs(theta0[-1])) if form == "difference" else (abs(theta0[0]), 0.0)

    def beta(eta):
        if depth == 2:
            return a**2 * np.exp(4 * eta) - b**2 * np.exp(-4 * eta)
        p, rate = depth / (depth - 2), depth * (depth - 2)
        down = (b ** (2 - depth) + rate * eta) ** (-p) if b else 0.0
        return (a ** (2 - depth) - rate * eta) ** (-p) - down

    def eta(value):
        top = a ** (2 - depth) / (depth * (depth - 2)) * (1 - 1e-9) if depth > 2 else 5.0
        low = -(b ** (2 - depth)) / (depth * (depth - 2)) * (1 - 1e-9) if depth > 2 and b else -5.0
        return brentq(lambda e: beta(e) - value, low, top, xtol=1e-15)

    start, end = predictor(form, depth, np.abs(theta0)), 1.7
    wanted = quad(eta, start[0], end, epsabs=1e-12, epsrel=1e-11)[0]
    np.testing.assert_allclose(m.potential([end]), wanted, rtol=1e-9)
    assert abs(m.potential(start)) < 1e-14


def test_coordinates_without_weights_stay_and_one_branch_keeps_its_sign():
    m = diagonal.mirror(Diagonal(3), [0.0, 1.0, 0.0, 0.0, 0.0, 2.0])
    np.testing.assert_allclose(m.beta([5.0, 0.5, 0.5]), [0.0, np.exp(2), -4 * np.exp(-2)], rtol=1e-15)
    with pytest.raises(ValueError, match="one branch's sign"):
        m.eta([0.0, -1.0, -1.0])
    with pytest.raises(ValueError, match="both weights start at 0"):
        m.eta([1e-9, 1.0, -1.0])


def test_path_is_known_at_recorded_times_only():
    x, y = regression(5, 8, seed=1)
    problem = Problem(x, y)
    times = np.linspace(0, 4, 5)
    theta0 = equal_start("difference", 0.1, 8)
    beta, integral = weights_flow("difference", 2, theta0, slopes(x, y)["square"], times)
    prediction = diagonal.path(network(theta0), problem, theta0, times, integral)
    assert prediction.applies and prediction.observable == "end_to_end"
    np.testing.assert_allclose(prediction.predict(times)[:, 0], beta, rtol=1e-8, atol=1e-10)
    assert np.isnan(prediction.predict([0.5, 9.0])).all()
    decaying = Problem(x, y, weight_decay=0.1)
    with pytest.raises(Refused, match=r"no weight decay: defect 0.1 >"):
        diagonal.path(network(theta0), decaying, theta0, times, integral).predict(times)
    assert np.isfinite(
        diagonal.path(network(theta0), decaying, theta0, times, integral, force=True).predict(times)
    ).all()


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda: diagonal.mirror(nameless(depth=1), np.ones(4)),
            "depth must be a whole number >= 2; got 1",
        ),
        (
            lambda: diagonal.mirror(nameless("product", 3), np.ones(4)),
            "must be 2 for the product form; got 3",
        ),
        (lambda: diagonal.mirror(nameless("sum"), np.ones(4)), "model.form must be one of"),
        (lambda: diagonal.mirror(object(), np.ones(4)), "model must be a diagonal network"),
        (lambda: diagonal.mirror(Diagonal(1), np.ones(3)), "two vectors of one length"),
        (
            lambda: diagonal.mirror(Diagonal(2, 3, "power"), [1.0, -1.0]),
            ">= 0 at odd depth 3; got an entry -1",
        ),
        (lambda: diagonal.mirror(Diagonal(1), [1.0, np.nan]), "theta0 must be finite"),
        (lambda: diagonal.mirror(Diagonal(1, 3), np.ones(2)).beta([0.4]), "within the pole"),
        (lambda: diagonal.mirror(Diagonal(1), np.ones(2)).beta([0.4, 0.1]), "eta must have 1 entries"),
        (lambda: diagonal.mirror(Diagonal(1), np.ones(2)).eta([np.inf]), "beta must be finite"),
        (lambda: diagonal.h("a", 2), "z must be a real array"),
        (lambda: diagonal.h(np.inf, 2), "z must be finite; got inf"),
        (lambda: diagonal.h_inverse(np.inf, 3), "b must be finite; got inf"),
        (lambda: diagonal.h_inverse([0.0, np.nan], 2), "b must be finite; got nan"),
        (lambda: diagonal.h(1.0, 3), "between -1 and 1 at depth 3; got 1"),
        (lambda: diagonal.regression(Problem(np.ones((2, 3)), np.ones(2)), 2), "fit the 3 inputs"),
        (lambda: diagonal.regression(Problem(np.ones((2, 3)), np.ones((2, 2))), 3), "one output"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
