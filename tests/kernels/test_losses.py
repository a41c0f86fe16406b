"""Losses of the outputs and their logarithms, against mpmath and finite differences, from tiny to extreme margins."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

import gflow
from gflow.objective import Objective

EPS = np.finfo(float).eps
LOSSES = [("logistic", 1), ("exponential", 1), ("softmax", 2), ("softmax", 4)]
MODELS = ["linear", "deep", "symmetric", "relu"]


def exact_log_loss(problem, outputs):
    """log L and its derivative by the outputs, from the definition, in 60 digits and with room for any exponent."""
    with mpmath.workdps(60):
        f = [[mpmath.mpf(float(x)) for x in row] for row in outputs]
        total, slopes = mpmath.mpf(0), []
        for row, y in zip(f, problem.Y, strict=True):
            if problem.loss == "softmax":
                right = int(y.argmax())
                # log(1 + sum of e^(f_a - f_right)): e^-large would be lost in 1 + e^-large
                others = [mpmath.exp(x - row[right]) for a, x in enumerate(row) if a != right]
                small = mpmath.fsum(others)
                total += log1p(small)
                p = [mpmath.exp(x - row[right]) / (1 + small) for x in row]
                p[right] = -small / (1 + small)
                slopes.append(p)
                continue
            m = mpmath.mpf(float(y[0])) * row[0]
            if problem.loss == "exponential":
                total += mpmath.exp(-m)
                slopes.append([-mpmath.mpf(float(y[0])) * mpmath.exp(-m)])
            else:
                total += log1p(mpmath.exp(-m))
                slopes.append([-mpmath.mpf(float(y[0])) * mpmath.exp(-m) / (1 + mpmath.exp(-m))])
        value = mpmath.log(mpmath.mpf(problem.factor) * total)
        return float(value), np.array([[float(s / total) for s in row] for row in slopes])


def log1p(x):
    return x - x**2 / 2 + x**3 / 3 if x < mpmath.mpf(10) ** -25 else mpmath.log(1 + x)


def labelled(loss, outputs, n, d, seed=0, **options):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    y = np.sign(rng.standard_normal(n)) if outputs == 1 else np.eye(outputs)[rng.integers(0, outputs, n)]
    return gflow.Problem(x, y, loss, **options)


def network(kind, inputs, outputs):
    if kind == "symmetric":
        return gflow.Symmetric(outputs, 3)
    if kind == "relu":
        return gflow.TwoLayerReLU(inputs, 6, outputs, slope=0.2)
    return gflow.DeepLinear((inputs, outputs) if kind == "linear" else (inputs, 5, 3, outputs))


def case(kind, loss, outputs, log, seed=0):
    inputs = outputs if kind == "symmetric" else 4
    problem = labelled(loss, outputs, 9, inputs, seed)
    model = network(kind, inputs, outputs)
    theta, v = np.random.default_rng(seed + 1).standard_normal((2, model.size))
    return Objective(model, problem.log if log else problem), 0.7 * theta, v / np.linalg.norm(v)


@pytest.mark.parametrize(("loss", "outputs"), LOSSES)
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 300.0, 1e4, 1e7])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_log_loss_and_its_gradient_against_mpmath(loss, outputs, size, sign):
    """One identity layer, so that the outputs are those that mpmath is given, right labels and wrong ones."""
    rng = np.random.default_rng(3)
    n = 6
    labels = np.sign(rng.standard_normal(n)) if outputs == 1 else np.eye(outputs)[rng.integers(0, outputs, n)]
    toward = labels[:, None] if outputs == 1 else 2 * labels - 1
    f = sign * size * toward * (1 + 0.3 * rng.random((n, max(outputs, 1))))
    problem = gflow.Problem(np.eye(n), labels, loss)  # inputs e_i: row i of the outputs is column i of W
    objective = Objective(gflow.DeepLinear((n, outputs)), problem.log)
    value, slope = exact_log_loss(problem, f)
    theta = f.T.ravel()
    # margins of size m are known to eps m, and with them each share of the loss, relatively
    room = 20 * EPS * (1 + size)
    assert abs(objective.loss(theta) - value) <= 20 * EPS * max(1.0, abs(value))
    np.testing.assert_allclose(objective.gradient(theta).reshape(outputs, n).T, slope, rtol=room, atol=1e-300)


@pytest.mark.parametrize(("loss", "outputs"), LOSSES)
def test_the_logarithm_agrees_with_the_loss(loss, outputs):
    plain, theta, v = case("deep", loss, outputs, False)
    log, *_ = case("deep", loss, outputs, True)
    value, g = plain.loss(theta), plain.gradient(theta)
    assert log.loss(theta) == pytest.approx(np.log(value), abs=50 * EPS)
    np.testing.assert_allclose(
        log.gradient(theta), g / value, rtol=0, atol=200 * EPS * np.abs(g / value).max()
    )
    expected = plain.hvp(theta, v) / value - g * (g @ v) / value**2
    np.testing.assert_allclose(log.hvp(theta, v), expected, rtol=0, atol=1e3 * EPS * np.abs(expected).max())


@pytest.mark.parametrize("log", [False, True], ids=["L", "log L"])
@pytest.mark.parametrize(("loss", "outputs"), LOSSES)
@pytest.mark.parametrize("kind", MODELS)
def test_gradient_and_hvp_equal_central_differences(kind, loss, outputs, log):
    objective, theta, v = case(kind, loss, outputs, log)
    h = 1e-3 if kind != "relu" else 1e-4  # no kink within 2 h
    points = [theta + c * h * v for c in (-2, -1, 1, 2)]

    def difference(values):
        return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)

    g, bend = objective.gradient(theta), objective.hvp(theta, v)
    scale = 1 + np.abs(g).max() + np.abs(bend).max()
    # truncation h^4 times a fifth derivative, rounding eps / h
    room = (1e3 * h**4 + 50 * EPS / h) * scale**2
    assert abs(difference([objective.loss(x) for x in points]) - g @ v) <= room
    np.testing.assert_allclose(difference([objective.gradient(x) for x in points]), bend, rtol=0, atol=room)


@pytest.mark.parametrize(("loss", "outputs"), LOSSES)
def test_hvp_of_the_logarithm_is_symmetric_and_finite_far_out(loss, outputs):
    objective, theta, v = case("deep", loss, outputs, True)
    u = np.roll(v, 1)
    for size in (1.0, 1e2, 1e4):
        hu, hv = objective.hvp(size * theta, u), objective.hvp(size * theta, v)
        assert np.all(np.isfinite(hu)) and np.all(np.isfinite(objective.gradient(size * theta)))
        assert abs(v @ hu - u @ hv) <= 1e-10 * (np.linalg.norm(hu) + np.linalg.norm(hv))


def test_small_losses_of_softmax_do_not_cancel():
    """Leads of 50 over two others: L = 2 e^-50 to rounding, where 1 - p is 0 in double precision."""
    problem = gflow.Problem([[1.0]], [[1.0, 0.0, 0.0]], "softmax")
    objective = Objective(gflow.DeepLinear((1, 3)), problem)
    small = np.exp(-50.0)
    assert objective.loss([50.0, 0.0, 0.0]) == pytest.approx(2 * small, rel=1e-13)
    np.testing.assert_allclose(objective.gradient([50.0, 0.0, 0.0]), [-2 * small, small, small], rtol=1e-13)


def test_softmax_of_soft_labels():
    rng = np.random.default_rng(0)
    y = rng.dirichlet(np.ones(3), 5)
    x = rng.standard_normal((5, 2))
    problem = gflow.Problem(x, y, "softmax")
    objective = Objective(gflow.DeepLinear((2, 3)), problem)
    w = rng.standard_normal((3, 2))
    f = x @ w.T
    p = np.exp(f) / np.exp(f).sum(axis=1, keepdims=True)
    assert objective.loss(w.ravel()) == pytest.approx(-np.mean(np.sum(y * np.log(p), axis=1)), rel=1e-14)
    np.testing.assert_allclose(objective.gradient(w.ravel()), ((p - y).T @ x / 5).ravel(), rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", MODELS)
def test_kernels_write_nowhere_but_to_their_output(kind):
    """NaN in the scratch at the start and beyond its end changes nothing."""
    for loss, outputs in LOSSES:
        for log in (False, True):
            objective, theta, v = case(kind, loss, outputs, log)
            model, out = objective.model, np.empty(theta.size)
            wanted = objective.loss(theta), objective.gradient(theta), objective.hvp(theta, v)
            size = objective.work.size
            work = np.full(size + 64, np.nan)
            work[0] = 0.0  # not in a pattern
            arguments = objective.data, objective.dims, work
            assert model.loss(0.0, theta, *arguments) == wanted[0]
            model.gradient(0.0, theta, *arguments, out)
            np.testing.assert_array_equal(out, wanted[1])
            model.hvp(0.0, theta, v, *arguments, out)
            np.testing.assert_array_equal(out, wanted[2])
            assert np.isnan(work[size:]).all()
