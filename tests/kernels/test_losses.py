"""Losses of the outputs and their logarithms, against mpmath and finite differences, from tiny to extreme margins."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

import gflow
from gflow.kernels import losses
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


def kernels_of(code, factor, y, f):
    """Value, derivative and tangent along ones + 0.1 (row number) of one sum of losses, from outputs and labels (k, n)."""
    k, n = f.shape
    size = k * n
    df = np.ones((k, n)) + 0.1 * np.arange(k)[:, None]
    work = np.concatenate([f.ravel(), np.full(size, np.nan), df.ravel(), np.full(size, np.nan)])
    losses.derivative(code, factor, k, n, y.ravel(), 0, work, 0, size)
    d = work[size : 2 * size].reshape(k, n).copy()
    losses.tangent(code, factor, k, n, y.ravel(), 0, work, 0, size, 2 * size, 3 * size)
    work[:size] = f.ravel()
    value = losses.value(code, factor, k, n, y.ravel(), 0, work, 0)
    return value, d, work[3 * size :].reshape(k, n), df


@pytest.mark.parametrize("n", [1, 3, 8, 9, 20, 31, 300])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 700.0])
@pytest.mark.parametrize("code", [losses.LOGISTIC, losses.EXPONENTIAL])
def test_one_output_to_rounding(code, size, n):
    """Value, derivative and Hessian of the plain losses, relatively, of margins of both signs to where numbers end."""
    rng = np.random.default_rng(n)
    f, y = size * rng.uniform(-1, 1, (1, n)), rng.choice([-1.0, 1.0], (1, n))
    value, d, bent, df = kernels_of(code, 0.25, y, f)
    total, slopes, bends = mpmath.mpf(0), [], []
    with mpmath.workdps(340):
        for m, label in zip((y * f)[0], y[0], strict=True):
            u = mpmath.exp(-mpmath.mpf(m))
            total += mpmath.log(1 + u) if code == losses.LOGISTIC else u
            slopes.append(float(-label * (u / (1 + u) if code == losses.LOGISTIC else u) / 4))
            bends.append(float((u / (1 + u) ** 2 if code == losses.LOGISTIC else u) / 4))
        exact = float(total / 4)
    np.testing.assert_allclose(d[0], slopes, rtol=5 * EPS, atol=0)
    np.testing.assert_allclose(bent[0], bends * df[0], rtol=7 * EPS, atol=0)
    assert abs(value - exact) <= (8 + 0.5 * np.sqrt(n)) * EPS * exact


@pytest.mark.parametrize(("k", "n"), [(2, 1), (2, 20), (3, 9), (5, 300), (10, 20), (17, 70), (40, 33)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 300.0])
@pytest.mark.parametrize("labels", ["right", "wrong", "soft"])
def test_softmax_to_rounding(labels, size, k, n):
    """Value and derivative, relatively where the labels are one-hot; more samples and classes than go into one product."""
    rng = np.random.default_rng(k + n)
    f = size * rng.uniform(-1, 1, (k, n))
    f[-1, 0] = f[0, 0]  # a tie
    if labels == "soft":
        y = rng.dirichlet(np.ones(k), n).T.copy()
    else:
        y = np.eye(k)[f.argmax(axis=0) if labels == "right" else f.argmin(axis=0)].T.copy()
    value, d, bent, df = kernels_of(losses.SOFTMAX, 0.25, y, f)
    total, slopes, bends = mpmath.mpf(0), np.empty((k, n)), np.empty((k, n))
    with mpmath.workdps(300):
        for i in range(n):
            row, weights = [mpmath.mpf(x) for x in f[:, i]], [mpmath.mpf(x) for x in y[:, i]]
            powers = [mpmath.exp(x) for x in row]
            p = [x / mpmath.fsum(powers) for x in powers]
            total += mpmath.fsum(
                w * (mpmath.log(mpmath.fsum(powers)) - x) for w, x in zip(weights, row, strict=True)
            )
            slopes[:, i] = [float((a - b) / 4) for a, b in zip(p, weights, strict=True)]
            mean = mpmath.fsum(a * b for a, b in zip(p, df[:, i], strict=True))
            bends[:, i] = [float(a * (b - mean) / 4) for a, b in zip(p, df[:, i], strict=True)]
        exact = float(total / 4)
    room = (
        8 + k + size
    ) * EPS  # outputs less the largest are known to eps of their size, and with them each power
    np.testing.assert_allclose(d, slopes, rtol=room, atol=room / 4 if labels == "soft" else 0)
    np.testing.assert_allclose(bent, bends, rtol=0, atol=4 * room * np.abs(df).max())
    assert abs(value - exact) <= (room + 0.5 * np.sqrt(n) * EPS) * exact


def test_plain_losses_far_out():
    """Beyond the numbers: nothing, infinity, and the margin itself; never NaN but of NaN."""
    m = np.array([[800.0, -800.0, 1e300, -1e300]])
    ones = np.ones((1, 4))
    value, d, bent, _ = kernels_of(losses.LOGISTIC, 0.5, ones, m)
    assert value == 0.5e300
    np.testing.assert_array_equal(d, [[0.0, -0.5, 0.0, -0.5]])
    np.testing.assert_array_equal(bent, 0.0 * ones)
    value, d, bent, _ = kernels_of(losses.EXPONENTIAL, 0.5, ones, m)
    assert value == np.inf
    np.testing.assert_array_equal(d, [[0.0, -np.inf, 0.0, -np.inf]])
    np.testing.assert_array_equal(bent, [[0.0, np.inf, 0.0, np.inf]])
    f, y = np.array([[1e300, -1e300, 0.0], [0.0, 0.0, 800.0]]), np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    value, d, *_ = kernels_of(losses.SOFTMAX, 0.5, y, f)
    assert value == 0.5e300
    np.testing.assert_array_equal(d, [[0.0, -0.5, 0.0], [0.0, 0.5, 0.0]])


@pytest.mark.parametrize(
    ("code", "k"), [(losses.LOGISTIC, 1), (losses.EXPONENTIAL, 1), (losses.SOFTMAX, 2), (losses.SOFTMAX, 3)]
)
def test_not_a_number_is_passed_on(code, k):
    """Whichever output it is, of the right class or another, in a vector or left over."""
    n = 11
    y = np.ones((1, n)) if k == 1 else np.eye(k)[np.arange(n) % k].T.copy()
    for i in (0, 4, 10):
        for a in range(k):
            f = np.random.default_rng(0).standard_normal((k, n))
            f[a, i] = np.nan
            value, d, *_ = kernels_of(code, 0.5, y, f)
            assert np.isnan(value)
            assert np.isnan(d[:, i]).all() and np.isfinite(np.delete(d, i, axis=1)).all()
