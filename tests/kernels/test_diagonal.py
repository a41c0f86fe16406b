"""Loss, gradient and Hessian-vector product of diagonal networks, in all coordinates, by complex steps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import gflow
from gflow.objective import Objective

EPS = np.finfo(float).eps
STEP = 1e-40  # of complex steps, which do not cancel
FORMS = [("difference", 2), ("difference", 3), ("difference", 5), ("product", 2), ("power", 2), ("power", 4)]
LOSSES = ["square", "logistic", "exponential"]
by_form = pytest.mark.parametrize(("form", "depth"), FORMS)


class Naive:
    """The same functions from the definitions, for real and complex parameters."""

    def __init__(self, model, problem):
        self.model, self.problem = model, problem

    def predictor(self, theta):
        d, depth = self.model.inputs, self.model.depth
        if self.model.form == "product":
            return theta[:d] * theta[d:]
        return theta[:d] ** depth - (theta[d:] ** depth if self.model.form == "difference" else 0.0)

    def loss(self, theta):
        p, f = self.problem, self.problem.X @ self.predictor(theta)
        y = p.Y[:, 0]
        each = {
            "square": lambda: (f - y) ** 2,
            "logistic": lambda: np.log(1.0 + np.exp(-y * f)),
            "exponential": lambda: np.exp(-y * f),
        }[p.loss]()
        total = p.factor * np.sum(each) + 0.5 * p.weight_decay * np.sum(theta**2)
        return np.log(total) if p.logarithm else total

    def gradient(self, theta):
        """Written out by the chain rule, for complex parameters too."""
        p, d, depth = self.problem, self.model.inputs, self.model.depth
        y, f = p.Y[:, 0], p.X @ self.predictor(theta)
        slope = {
            "square": lambda: 2.0 * (f - y),
            "logistic": lambda: -y / (1.0 + np.exp(y * f)),
            "exponential": lambda: -y * np.exp(-y * f),
        }[p.loss]()
        g = p.factor * p.X.T @ slope
        if self.model.form == "product":
            out = np.concatenate([theta[d:] * g, theta[:d] * g])
        else:
            signs = np.repeat([1.0, -1.0], d)[: theta.size]
            out = signs * depth * theta ** (depth - 1) * np.resize(g, theta.size)
        out = out + p.weight_decay * theta
        return out / np.exp(self.loss(theta)) if p.logarithm else out


def problem_of(loss, n, d, decay=0.0, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    y = rng.standard_normal(n) if loss == "square" else rng.choice([-1.0, 1.0], n)
    return gflow.Problem(x, y, loss, factor=0.7, weight_decay=decay)


def problems(n, d):
    for loss in LOSSES:
        yield problem_of(loss, n, d)
        yield problem_of(loss, n, d, decay=0.3)
        if loss != "square":
            yield problem_of(loss, n, d).log


@by_form
@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 7), (13, 6), (9, 9), (21, 2)])
def test_the_kernels_equal_complex_steps_of_the_definitions(form, depth, n, d):
    rng = np.random.default_rng(depth)
    model = gflow.Diagonal(d, depth, form)
    for problem in problems(n, d):
        theta, v = 0.8 * rng.standard_normal(model.size), rng.standard_normal(model.size)
        o, naive = Objective(model, problem), Naive(model, problem)
        size = 1.0 + abs(naive.loss(theta))
        assert o.loss(theta) == pytest.approx(naive.loss(theta), rel=0, abs=200 * EPS * size)
        unit = 1j * STEP * np.eye(model.size)
        by_steps = np.array([naive.loss(theta + e).imag / STEP for e in unit])
        room = 1000 * EPS * (1.0 + abs(by_steps).max())
        np.testing.assert_allclose(o.gradient(theta), by_steps, rtol=0, atol=room)
        np.testing.assert_allclose(naive.gradient(theta), by_steps, rtol=0, atol=room)
        along = naive.gradient(theta + 1j * STEP * v).imag / STEP
        np.testing.assert_allclose(o.hvp(theta, v), along, rtol=0, atol=2000 * EPS * (1 + abs(along).max()))


@by_form
@pytest.mark.parametrize(("n", "d"), [(9, 700), (25, 700), (603, 10)])
def test_samples_beyond_one_block(form, depth, n, d):
    """More inputs than the cache holds, which go block by block: of eight samples, or of some hundreds, and a rest."""
    rng = np.random.default_rng(depth)
    model = gflow.Diagonal(d, depth, form)
    for problem in problems(n, d):
        theta, v = d ** (-0.5 / depth) * rng.standard_normal((2, model.size))
        o, naive = Objective(model, problem), Naive(model, problem)
        expected, along = naive.gradient(theta), naive.gradient(theta + 1j * STEP * v).imag / STEP
        np.testing.assert_allclose(o.gradient(theta), expected, rtol=0, atol=1000 * EPS * abs(expected).max())
        np.testing.assert_allclose(o.hvp(theta, v), along, rtol=0, atol=2000 * EPS * abs(along).max())


@pytest.mark.parametrize("loss", ["logistic", "exponential"])
def test_the_logarithm_of_the_loss_neither_under_nor_overflows(loss):
    model, rng = gflow.Diagonal(4), np.random.default_rng(1)
    x = rng.standard_normal((6, 4))
    problem = gflow.Problem(x, np.sign(x @ np.ones(4)), loss).log
    far = model.pack([np.full(4, 1e3), np.full(4, 1e-3)])
    least = np.min(np.abs(x @ np.ones(4)))
    assert Objective(model, problem).loss(far) == pytest.approx(-1e6 * least - np.log(6), rel=1e-5)
    assert np.isfinite(Objective(model, problem).gradient(far)).all()


@by_form
def test_moments_equal_the_samples(form, depth):
    """Above d samples the kernels see the moments; a batch of all samples sees the samples."""
    model, problem = gflow.Diagonal(3, depth, form), problem_of("square", 11, 3, decay=0.2)
    theta0 = 0.5 * np.random.default_rng(0).standard_normal(model.size)
    whole, batch = (
        gflow.descend(model, problem, theta0, 1e-2, 5, batch_size=size, rng=0) for size in (None, 11)
    )
    np.testing.assert_allclose(batch.theta, whole.theta, rtol=0, atol=1e-14)


@by_form
@pytest.mark.parametrize("loss", LOSSES)
def test_the_mean_over_the_samples_is_the_full_gradient(form, depth, loss):
    model, problem = gflow.Diagonal(5, depth, form), problem_of(loss, 4, 5, decay=0.1)
    theta = 0.5 * np.random.default_rng(0).standard_normal(model.size)
    # an epoch of single samples, each from the same state
    singles = [
        gflow.Problem(problem.X[[i]], problem.Y[[i]], loss, factor=4 * problem.factor, weight_decay=0.1)
        for i in range(4)
    ]
    mean = np.mean([Objective(model, one).gradient(theta) for one in singles], axis=0)
    np.testing.assert_allclose(Objective(model, problem).gradient(theta), mean, rtol=0, atol=1e-14)
    steps = {
        tuple(np.round((theta - gflow.descend(model, problem, theta, 1e-3, 1, batch_size=1, rng=s).end) / 1e-3, 8))
        for s in range(40)
    }  # fmt: skip
    wanted = {tuple(np.round(Objective(model, one).gradient(theta), 8) + 0.0) for one in singles}
    assert {tuple(np.array(s) + 0.0) for s in steps} == wanted


# ---- log coordinates ---------------------------------------------------------------------------------------


def charts():
    for (form, depth), loss in itertools.product(FORMS, LOSSES):
        yield pytest.param(form, depth, loss, id=f"{form} {depth} {loss}")


@pytest.mark.parametrize(("form", "depth", "loss"), list(charts()))
@pytest.mark.parametrize(("n", "d"), [(3, 5), (8, 3)])
def test_log_coordinates_move_as_the_parameters_do(form, depth, loss, n, d):
    """The rate of the parameters along the coordinates' rate is minus the gradient."""
    rng = np.random.default_rng(depth)
    model, problem = gflow.Diagonal(d, depth, form), problem_of(loss, n, d)
    chart = model.log_coordinates(problem, 0.4 * rng.standard_normal(model.size))
    inner = Objective(chart, problem)
    state = chart.start + 0.1 * rng.standard_normal(chart.size)
    velocity, h = -inner.gradient(state), EPS ** (1 / 3)
    moved = (chart.theta(state + h * velocity) - chart.theta(state - h * velocity)) / (2 * h)
    wanted = -Objective(model, problem).gradient(chart.theta(state))
    np.testing.assert_allclose(
        moved, wanted, rtol=0, atol=300 * EPS ** (2 / 3) * (1 + abs(wanted).max() ** 3)
    )
    np.testing.assert_allclose(chart.log_theta(state), np.log(np.abs(chart.theta(state))), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["difference", "product", "power"])
@pytest.mark.parametrize(("n", "d"), [(3, 5), (8, 3)])
def test_dual_coordinates_descend_a_convex_function(form, n, d):
    rng = np.random.default_rng(0)
    model, problem = gflow.Diagonal(d, form=form), problem_of("square", n, d)
    chart = model.log_coordinates(problem, rng.standard_normal(model.size))
    o, h = Objective(chart, problem), EPS ** (1 / 3)
    assert chart.size == min(n, d)
    for _ in range(5):
        state, v = rng.standard_normal(chart.size), rng.standard_normal(chart.size)
        slope = (o.loss(state + h * v) - o.loss(state - h * v)) / (2 * h)
        curve = (o.gradient(state + h * v) - o.gradient(state - h * v)) / (2 * h)
        room = 1e3 * EPS ** (2 / 3)
        assert o.gradient(state) @ v == pytest.approx(slope, abs=room * (1 + abs(slope)))
        np.testing.assert_allclose(o.hvp(state, v), curve, rtol=0, atol=room * (1 + abs(curve).max()))
        hessian = np.array([o.hvp(state, e) for e in np.eye(chart.size)])
        np.testing.assert_allclose(hessian, hessian.T, rtol=0, atol=1e-12 * abs(hessian).max())
        assert np.linalg.eigvalsh(hessian).min() > 0


@by_form
def test_a_unit_of_the_coordinates_moves_no_logarithm_by_more_than_one(form, depth):
    rng = np.random.default_rng(0)
    model, problem = gflow.Diagonal(6, depth, form), problem_of("square", 4, 6)
    chart = model.log_coordinates(problem, np.abs(rng.standard_normal(model.size)) + 0.1)
    if form == "product":  # the logarithms are those of u + v and u - v
        u, v = np.split(chart.theta(np.eye(chart.size)), 2, axis=1)
        u0, v0 = np.split(chart.theta(chart.start), 2)
        moves = np.log(np.abs(np.hstack([(u + v) / (u0 + v0), (u - v) / (u0 - v0)])))
    else:
        moves = chart.log_theta(chart.start + np.eye(chart.size)) - chart.log_theta(chart.start)
    assert np.sqrt(np.sum(moves**2, axis=0)).max() == pytest.approx(1.0, rel=1e-12)


def test_parameters_that_are_zero_stay_zero():
    problem = problem_of("square", 2, 3)
    for form, depth in FORMS:
        if form == "product":
            continue
        model = gflow.Diagonal(3, depth, form)
        theta0 = np.full(model.size, 0.3)
        theta0[0] = 0.0
        runs = [gflow.flow(model, problem, theta0, 2.0, coords=c, rtol=1e-11) for c in ("plain", "log")]
        assert runs[1].end[0] == 0.0 and runs[1].log_theta[-1, 0] == -np.inf
        np.testing.assert_allclose(runs[1].end, runs[0].end, rtol=0, atol=1e-9)
