"""Where descent with large steps and stochastic flow end, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from diagonal_referee import equal_start, predictor, pull_back, regression
from scipy.linalg import null_space

import gflow
from gflow import Diagonal, Problem
from gflow.iterate import batches
from gflow.theory import diagonal, effective
from gflow.theory.prediction import Refused


def descend(form, theta0, x, y, factor, step, count, batch=None, seed=0):
    """(Stochastic) gradient descent; the last weights and ∇_β of each step's loss."""
    rng = np.random.default_rng(seed)
    theta, gradients, n = theta0.copy(), [], len(y)
    for _ in range(count):
        rows = np.arange(n) if batch is None else rng.choice(n, batch, replace=False)
        f = factor * n / len(rows)
        g = 2 * f * x[rows].T @ (x[rows] @ predictor(form, 2, theta) - y[rows])
        theta = theta - step * pull_back(form, 2, theta, g)
        gradients.append(g)
    return theta, np.array(gradients)


RUNS = [
    ("product", 0.05, None, 12000),
    ("product", 0.4, None, 4000),
    ("product", 0.05, 1, 12000),
    ("difference", 0.1, None, 4000),
    ("difference", 0.02, 2, 12000),
    ("power", 0.05, None, 12000),
]


@pytest.mark.parametrize("form, step, batch, count", RUNS)
def test_descent_ends_where_the_theorem_says(form, step, batch, count):
    x, y = regression(8, 20, 3, seed=20)
    if form == "power":
        y = x @ np.random.default_rng(0).uniform(0.3, 1.0, 20)
    problem = Problem(x, y)
    theta0, model = equal_start(form, 0.3, 20), Diagonal(20, form=form)
    theta, gradients = descend(form, theta0, x, y, 1 / 16, step, count, batch)
    end = predictor(form, 2, theta)
    assert np.abs(x @ end - y).max() < 1e-11
    prediction = effective.descent_limit(model, problem, theta0, gradients, step)
    assert prediction.applies
    np.testing.assert_allclose(prediction.predict(np.inf)[0, 0], end, atol=1e-9)
    np.testing.assert_allclose(prediction.predict(0.0)[0, 0], predictor(form, 2, theta0), atol=1e-15)
    # the flow itself ends elsewhere: the test could fail
    m = diagonal.mirror(model, theta0)
    assert np.abs(null_space(x).T @ m.eta(end)).max() > 1e-3


@pytest.mark.parametrize("form, step, batch, count", RUNS[:3])
def test_conditions_of_the_theorem_as_the_paper_writes_them(form, step, batch, count):
    """½ arcsinh(β/α_∞²) − ½ arcsinh(β̃₀/α_∞²) in the row space, with α±² = α² exp(−Σ q±)."""
    x, y = regression(8, 20, 3, seed=20)
    alpha, theta0 = 0.3, equal_start("product", 0.3, 20)
    theta, gradients = descend(form, theta0, x, y, 1 / 16, step, count, batch)
    u, v = theta[:20], theta[20:]
    steps = step * gradients
    plus = alpha**2 * np.exp(-np.sum(-2 * steps - np.log((1 - steps) ** 2), axis=0))
    minus = alpha**2 * np.exp(-np.sum(2 * steps - np.log((1 + steps) ** 2), axis=0))
    inf = np.sqrt(plus * minus)
    np.testing.assert_allclose(np.abs(u**2 - v**2), 2 * inf, rtol=1e-9)
    start = 0.5 * (plus - minus)
    kkt = 0.5 * np.arcsinh(u * v / inf) - 0.5 * np.arcsinh(start / inf)
    assert np.abs(null_space(x).T @ kkt).max() < 1e-10
    m = effective.descent_start(Diagonal(20, form="product"), theta0, gradients, step)
    np.testing.assert_allclose(m.beta0, start, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(2 * m.log_alpha + np.log(2), np.log(inf), rtol=1e-10)
    gain = effective.gain(Diagonal(20, form="product"), gradients, step)
    np.testing.assert_allclose(alpha**2 * np.exp(-gain), inf, rtol=1e-10)
    # between γ² Σ ‖∇L‖² and twice that while no step exceeds 0.89
    if np.abs(steps).max() ** 2 <= 0.79:
        assert np.sum(steps**2) <= gain.sum() <= 2 * np.sum(steps**2)


def test_q_of_the_gain():
    x = np.array([0.0, 1e-9, 0.3, 0.8, 0.999, 1.2, np.sqrt(2), 3.0])
    np.testing.assert_allclose(
        effective.q(x)[2:], -0.5 * np.log((1 - x[2:] ** 2) ** 2), rtol=1e-12, atol=1e-15
    )
    assert effective.q(1e-9) == 1e-18 and effective.q(1.0) == np.inf and effective.q(2.0) < 0
    small = np.linspace(0, np.sqrt(0.79), 50)
    assert np.all(small**2 <= effective.q(small)) and np.all(effective.q(small) <= 2 * small**2)


def test_a_step_that_kills_a_branch_leaves_the_other():
    """m x = 1 sets a to 0 for good; so β ≤ 0 from there on."""
    m = effective.descent_start(Diagonal(1, form="product"), [1.0, 0.0], [[2.0]], 0.5)
    assert m.side[0] == -1
    np.testing.assert_allclose(m.beta0, -0.25 * 4 * np.exp(-2), rtol=1e-15)


def test_descent_that_has_not_converged_is_refused_with_the_number():
    x, y = regression(8, 20, 3, seed=20)
    theta0 = equal_start("product", 0.3, 20)
    _, gradients = descend("product", theta0, x, y, 1 / 16, 0.05, 40)
    prediction = effective.descent_limit(Diagonal(20, form="product"), Problem(x, y), theta0, gradients, 0.05)
    with pytest.raises(Refused, match="descent has converged.*defect"):
        prediction.predict(np.inf)
    astray = effective.descent_limit(
        Diagonal(20, form="product"), Problem(x, y), theta0, gradients + np.eye(20)[0], 0.05
    )
    assert "row space" in str([str(h) for h in astray.hypotheses if not h.holds])


def stochastic_path(form, theta0, x, y, factor, gamma, dt, count, seed=0):
    """Log-Euler path of dw = −∇L dt + noise, from the paper (difference) and for u ± v by the same calculus."""
    rng = np.random.default_rng(seed)
    d, n = x.shape[1], len(y)
    rate = 2.0 if form == "product" else 4.0
    a, b = (
        (theta0[:d], theta0[d:])
        if form != "product"
        else (0.5 * (theta0[:d] + theta0[d:]), 0.5 * (theta0[:d] - theta0[d:]))
    )
    log_a, log_b, integral = np.log(a), np.log(b), 0.0
    for _ in range(count):
        residual = x @ (np.exp(2 * log_a) - np.exp(2 * log_b)) - y
        loss = factor * residual @ residual
        drift = -0.5 * rate * 2 * factor * x.T @ residual * dt
        # variance of a batch of one: (rate/2 · 2 n f)² · mean r² · x xᵀ / n, times γ dt
        size = rate * np.sqrt(gamma * factor * loss)
        noise = size * x.T @ (np.sqrt(dt) * rng.normal(size=n))
        ito = -0.5 * size**2 * np.sum(x**2, axis=0) * dt
        log_a, log_b = log_a + drift + noise + ito, log_b - drift - noise + ito
        integral += loss * dt
    return log_a, log_b, integral


@pytest.mark.parametrize("form, factor", [("difference", 1 / 32), ("difference", 1 / 8), ("product", 1 / 16)])
def test_stochastic_flow_ends_where_the_flow_from_alpha_infinity_does(form, factor):
    x, y = regression(8, 20, 3, seed=21)
    alpha, gamma, model = 0.2, 0.5 / (factor * 32), Diagonal(20, form=form)
    theta0, problem = equal_start(form, 0.2, 20), Problem(x, y, factor=factor)
    log_a, log_b, integral = stochastic_path(form, theta0, x, y, factor, gamma, 0.01 / (factor * 32), 60000)
    end = np.exp(2 * log_a) - np.exp(2 * log_b)
    assert np.abs(x @ end - y).max() < 1e-7
    m = effective.noise_start(model, problem, theta0, integral, gamma)
    np.testing.assert_allclose(m.log_alpha, 0.5 * (log_a + log_b), rtol=1e-10)
    assert np.all(m.log_alpha < np.log(alpha) - 0.05)  # far enough from the start to be seen
    if factor == 1 / 32:  # the paper's own constants, L = 1/(4n) Σ
        np.testing.assert_allclose(
            m.log_alpha, np.log(alpha) - 2 * gamma * np.sum(x**2, axis=0) / 8 * integral, rtol=1e-12
        )
    last = factor * float(np.sum((x @ end - y) ** 2))
    prediction = effective.noise_limit(model, problem, theta0, integral, gamma, last)
    assert prediction.applies
    np.testing.assert_allclose(prediction.predict(np.inf)[0, 0], end, atol=1e-6)


def test_a_path_that_has_not_converged_is_refused_with_the_number():
    x, y = regression(8, 20, 3, seed=21)
    problem, theta0 = Problem(x, y, factor=1 / 32), equal_start("difference", 0.2, 20)
    log_a, log_b, integral = stochastic_path("difference", theta0, x, y, 1 / 32, 0.5, 0.01, 4000)
    residual = np.linalg.norm(x @ (np.exp(2 * log_a) - np.exp(2 * log_b)) - y)
    prediction = effective.noise_limit(Diagonal(20), problem, theta0, integral, 0.5, residual**2 / 32)
    defect = next(h.defect for h in prediction.hypotheses if "path has converged" in h.name)
    np.testing.assert_allclose(defect, residual / np.linalg.norm(y), rtol=1e-12)
    with pytest.raises(Refused, match="the path has converged.*defect"):
        prediction.predict(np.inf)
    at_start = effective.noise_limit(Diagonal(20), problem, theta0, 0.0, 0.5, float(y @ y) / 32)
    with pytest.raises(Refused, match="the path has converged.*defect 1 >"):
        at_start.predict(np.inf)
    with pytest.raises(ValueError, match="last_loss must be a number >= 0; got -1"):
        effective.noise_limit(Diagonal(20), problem, theta0, 0.0, 0.5, -1.0)


@pytest.mark.parametrize("form", ["difference", "product"])
def test_noise_has_the_covariance_of_batches_of_one(form):
    """Where all residuals are alike, the mean gain of a step of SGD is twice the shrinking over the time γ."""
    x, _ = regression(8, 20, seed=22)
    factor, r = 0.3, 0.7
    ratios = []
    for gamma in (1e-2, 1e-3):
        gains = [effective.gain(Diagonal(20, form=form), [2 * factor * 8 * r * row], gamma) for row in x]
        problem = Problem(x, np.ones(8), factor=factor)
        start = np.ones(40) if form == "difference" else np.concatenate([2 * np.ones(20), np.zeros(20)])
        m = effective.noise_start(Diagonal(20, form=form), problem, start, 8 * factor * r**2 * gamma, gamma)
        ratios.append(np.abs(np.mean(gains, axis=0) / (-2 * m.log_alpha) - 1).max())
    assert ratios[1] < 1e-3 and ratios[1] < 0.02 * ratios[0]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: effective.gain(Diagonal(3, 3), np.ones((2, 3)), 0.1), "depth must be 2 here; got 3"),
        (lambda: effective.gain(Diagonal(3), np.ones(3), 0.1), r"gradients must have shape \(K, d\)"),
        (lambda: effective.gain(Diagonal(3), np.ones((2, 3)), 0.0), "step_size must be a number > 0"),
        (lambda: effective.gain(Diagonal(3), np.ones((2, 3)), [0.1, -0.1]), "step_size must be > 0; got -0.1"),
        (lambda: effective.gain(Diagonal(3), np.ones((2, 3)), [0.1]), r"step_size must have shape \(2,\)"),
        (lambda: effective.descent_start(Diagonal(2), np.ones(4), np.ones((2, 3)), 0.1), "2 coordinates of theta0"),
        (lambda: effective.noise_start(Diagonal(2), Problem(np.eye(2), np.ones(2)), np.ones(4), -1.0, 0.1), "loss_integral"),
        (lambda: effective.noise_start(Diagonal(2, 3, "power"), Problem(np.eye(2), np.ones(2)), np.ones(2), 1.0, 0.1), "got 3"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("size", [1, 2])
def test_the_gradients_of_a_run_on_batches_are_got_as_gain_says(size):
    """From gflow.iterate.batches alone: then log sqrt(w_+ w_-) of the run is that of descent_start."""
    x = np.random.default_rng(0).standard_normal((4, 6))
    y = x @ [1, -0.8, 0, 0, 0, 0]
    problem, model = Problem(x, y), Diagonal(6)
    theta0 = model.init(scale=0.1)
    run = gflow.descend(model, problem, theta0, 0.02, 500, batch_size=size, rng=0)
    rows = batches(run)
    beta = model.predictor(run.theta[:-1])
    off = np.einsum("kbd,kd->kb", x[rows], beta) - y[rows]
    gradients = 2 * problem.factor * (4 / size) * np.einsum("kbd,kb->kd", x[rows], off)
    found = effective.descent_start(model, theta0, gradients, 0.02).log_alpha
    np.testing.assert_allclose(
        0.5 * np.log(np.prod(model.unpack(run.end), axis=0)), found, rtol=0, atol=1e-12
    )
