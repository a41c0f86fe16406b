"""A model of one's own: a two-layer tanh network, written as a user would."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import gflow
from gflow.models.base import Model


@numba.njit
def tanh_gradient(t, theta, data, dims, work, out):
    """L = |A tanh(W x_i) - y_i|^2 / (2 n), theta = [W (h, d), A (k, h)], data = [X (n, d), Y (n, k)]."""
    n, d, h, k = dims
    x, y = data[: n * d].reshape(n, d), data[n * d :].reshape(n, k)
    w, a = theta[: h * d].reshape(h, d), theta[h * d :].reshape(k, h)
    dw, da = out[: h * d].reshape(h, d), out[h * d :].reshape(k, h)
    out[:] = 0.0
    for i in range(n):
        for j in range(h):
            work[j] = np.tanh(np.sum(w[j] * x[i]))
        for o in range(k):
            residual = (np.sum(a[o] * work[:h]) - y[i, o]) / n
            for j in range(h):
                da[o, j] += residual * work[j]
                for c in range(d):
                    dw[j, c] += residual * a[o, j] * (1.0 - work[j] ** 2) * x[i, c]


@numba.njit
def tanh_loss(t, theta, data, dims, work):
    n, d, h, k = dims
    x, y = data[: n * d].reshape(n, d), data[n * d :].reshape(n, k)
    w, a = theta[: h * d].reshape(h, d), theta[h * d :].reshape(k, h)
    total = 0.0
    for i in range(n):
        for o in range(k):
            f = 0.0
            for j in range(h):
                f += a[o, j] * np.tanh(np.sum(w[j] * x[i]))
            total += (f - y[i, o]) ** 2
    return 0.5 * total / n


class TanhNetwork:
    """Only what a flow needs."""

    gradient = tanh_gradient

    def __init__(self, inputs, hidden, outputs):
        self.widths = inputs, hidden, outputs

    @property
    def size(self):
        d, h, k = self.widths
        return h * d + k * h

    def kernel_arguments(self, problem):
        d, h, k = self.widths
        return np.concatenate([problem.X.ravel(), problem.Y.ravel()]), np.array([len(problem.X), d, h, k]), h


class TanhNetworkWithLoss(TanhNetwork):
    loss = tanh_loss


@numba.njit
def spring_hvp(t, theta, v, data, dims, work, out):
    for i in range(theta.size):
        out[i] = data[i] * v[i]


@numba.njit
def spring_gradient(t, theta, data, dims, work, out):
    for i in range(theta.size):
        out[i] = data[i] * theta[i]


class Springs:
    """L = sum k_i theta_i^2 / 2, whose problem is the array of the k_i: it need not be a gflow.Problem."""

    size = 2
    gradient, hvp = spring_gradient, spring_hvp

    def kernel_arguments(self, problem):
        return problem, [], 0


@pytest.fixture
def setting():
    rng = np.random.default_rng(0)
    problem = gflow.Problem(rng.standard_normal((10, 3)), rng.standard_normal((10, 2)))
    return TanhNetwork(3, 4, 2), problem, 0.5 * rng.standard_normal(20)


def autograd(problem, widths, theta):
    """Gradient by whole-array calculus."""
    d, h, k = widths
    w, a = theta[: h * d].reshape(h, d), theta[h * d :].reshape(k, h)
    z = np.tanh(problem.X @ w.T)
    r = (z @ a.T - problem.Y) / len(problem.X)
    return np.concatenate([(((r @ a) * (1 - z**2)).T @ problem.X).ravel(), (r.T @ z).ravel()])


def test_its_flow_equals_scipys(setting):
    model, problem, theta0 = setting
    times = np.linspace(0.0, 20.0, 11)
    referee = solve_ivp(
        lambda t, y: -autograd(problem, model.widths, y),
        (0, 20),
        theta0,
        "DOP853",
        times,
        rtol=1e-12,
        atol=1e-14,
    ).y.T
    for method in ("tsit5", "dop853"):
        for rtol in (1e-6, 1e-9):
            run = gflow.flow(model, problem, theta0, times, method=method, rtol=rtol)
            assert run.status.ok
            error = np.linalg.norm(run.theta - referee, axis=1) / np.linalg.norm(referee, axis=1)
            assert error.max() <= 30 * rtol


def test_it_is_a_model(setting):
    assert isinstance(setting[0], Model)


def test_what_it_lacks_is_named_when_it_is_needed(setting):
    model, problem, theta0 = setting
    run = gflow.flow(model, problem, theta0, 1.0)
    assert run.gauges == (None, None) and run.error_estimate().loss is None
    for missing, ask in (
        ("loss", lambda: run.loss),
        ("loss", lambda: gflow.observe.loss(model, problem, theta0)),
        ("hvp", lambda: gflow.observe.sharpness(model, problem, theta0)),
        ("hvp", run.sensitivity),
        ("end_to_end", lambda: gflow.observe.singular_values(model, problem, theta0)),
        ("imbalance", lambda: gflow.observe.imbalance(model, problem, theta0)),
        ("jacobian", lambda: gflow.observe.ntk(model, problem, theta0)),
    ):
        with pytest.raises(ValueError, match=rf"model\.{missing}.*TanhNetwork"):
            ask()
    with pytest.raises(ValueError, match=r"model\.loss"):
        gflow.flow(model, problem, theta0, 1.0, observe="loss")


def test_with_a_loss_the_gauges_come_by_themselves(setting):
    _, problem, theta0 = setting
    model = TanhNetworkWithLoss(3, 4, 2)
    run = gflow.flow(model, problem, theta0, np.linspace(0.0, 20.0, 11), observe="loss")
    w, a = theta0[:12].reshape(4, 3), theta0[12:].reshape(2, 4)
    direct = np.sum((np.tanh(problem.X @ w.T) @ a.T - problem.Y) ** 2) / 20
    assert run.loss[0] == pytest.approx(direct, rel=1e-14)
    np.testing.assert_array_equal(run.loss, run["loss"])
    assert run.gauges.invariant_drift is None
    assert run.gauges.dissipation_defect.max() <= 1e-7


def test_descent_and_continuation_work_alike(setting):
    model, problem, theta0 = setting
    steps = gflow.descend(model, problem, theta0, 0.1, 3)
    wanted = theta0.copy()
    for _ in range(3):
        wanted = wanted - 0.1 * autograd(problem, model.widths, wanted)
    np.testing.assert_allclose(steps.end, wanted, rtol=0, atol=1e-14)
    whole = gflow.flow(model, problem, theta0, [0.0, 1.0, 2.0])
    tail = gflow.flow(model, problem, None, [2.0], start=gflow.flow(model, problem, theta0, 1.0))
    np.testing.assert_array_equal(tail.end, whole.end)


def test_a_problem_may_be_anything_that_the_model_takes():
    stiffness = np.array([1.0, -0.5])
    run = gflow.flow(Springs(), stiffness, [1.0, 2.0], [0.0, 1.0, 2.0])
    np.testing.assert_allclose(run.theta, [1.0, 2.0] * np.exp(-np.outer(run.t, stiffness)), rtol=30 * 1e-9)
    assert run.sensitivity() == pytest.approx(np.exp(0.5 * 2.0), rel=1e-12)
    assert gflow.observe.sharpness(Springs(), stiffness, [0.0, 0.0]) == 1.0


def test_it_is_saved_and_found_again(setting, tmp_path):
    model, problem, theta0 = setting
    run = gflow.flow(model, problem, theta0, [0.0, 1.0, 2.0])
    back = gflow.load(run.save(tmp_path / "tanh"))
    assert type(back.spec["model"]) is TanhNetwork and back.spec["model"].widths == (3, 4, 2)
    np.testing.assert_array_equal(gflow.flow(**back.spec).theta, run.theta)
