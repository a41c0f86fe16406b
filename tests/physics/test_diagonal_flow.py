"""Flows of diagonal networks against mirror flows, closed forms and each other, in all coordinates."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from diagonal_referee import mirror_flow, regression

import gflow
from gflow.theory import saddles

RTOL = 1e-9


def sparse(n=4, d=6, seed=0, factor=0.25):
    x, y = regression(n, d, 2, seed)
    return gflow.Problem(x, y, factor=factor / n)


def slope(problem, beta):
    """The gradient of the loss by beta."""
    return 2 * problem.factor * problem.X.T @ (problem.X @ beta - problem.Y[:, 0])


def mirror_image(problem, alpha, form, depth, times):
    """beta(t) by the mirror flow, to a tolerance far below the flow's."""
    settings = {"method": "DOP853", "rtol": 1e-13, "atol": 1e-13}
    if depth > 2:  # the end is stiff
        settings = {"method": "LSODA", "rtol": 1e-12, "atol": 1e-13}
    return mirror_flow(form, depth, alpha, problem.X, problem.Y[:, 0], problem.factor, times, **settings)


def condition(problem, beta, theta_flow, times):
    """What a relative error of time does to beta: t |beta'| / |beta|, at least one."""
    after = theta_flow(times * (1 + 1e-4))
    rate = np.linalg.norm(after - beta, axis=1) / 1e-4
    return np.maximum(1.0, rate / np.linalg.norm(beta, axis=1))


def relative(beta, wanted):
    return np.linalg.norm(beta - wanted, axis=1) / np.linalg.norm(wanted, axis=1)


by_coords = pytest.mark.parametrize("coords", ["plain", "log"])


@by_coords
@pytest.mark.parametrize("alpha", [1e-8, 1e-3, 1.0])
@pytest.mark.parametrize("form", ["difference", "product"])
def test_depth_two_is_the_mirror_flow(form, alpha, coords):
    problem, model = sparse(), gflow.Diagonal(6, form=form)
    times = np.geomspace(0.5, 200.0, 12)
    wanted = mirror_image(problem, alpha, form, 2, times)
    run = gflow.flow(model, problem, model.init(scale=alpha), times, coords=coords, rtol=RTOL)
    assert run.outcome.code == "finished"
    worse = condition(problem, wanted, lambda t: mirror_image(problem, alpha, form, 2, t), times)
    assert np.all(relative(model.predictor(run.theta), wanted) <= 30 * RTOL * worse)
    late = relative(model.predictor(run.theta[-1:]), wanted[-1:])  # where nothing moves any more
    assert late <= 30 * RTOL


@by_coords
@pytest.mark.parametrize(("depth", "alpha"), [(3, 1.0), (3, 1e-3), (4, 1.0), (4, 1e-3)])
def test_greater_depth_is_its_mirror_flow(depth, alpha, coords):
    problem, model = sparse(), gflow.Diagonal(6, depth)
    times = np.geomspace(0.1, 20.0, 9)
    if alpha < 1.0:  # about the escape, where z is 1 for the first coordinate as long as it is alone
        pull = abs(slope(problem, np.zeros(6))).max()
        times = np.array([0.5, 0.9, 0.99, 1.001, 1.01]) / (depth * (depth - 2) * alpha ** (depth - 2) * pull)
    wanted = mirror_image(problem, alpha, "difference", depth, times)
    worse = condition(problem, wanted, lambda t: mirror_image(problem, alpha, "difference", depth, t), times)
    run = gflow.flow(model, problem, model.init(scale=alpha), times, coords=coords, rtol=RTOL)
    assert run.outcome.code == "finished"
    assert np.all(relative(model.predictor(run.theta), wanted) <= 30 * RTOL * worse)


def test_the_predictor_is_the_closed_form_of_the_integrated_gradient():
    """beta = 2 alpha^2 sinh(-4 G), G the integral of the gradient over a dense run."""
    problem, model, alpha = sparse(), gflow.Diagonal(6), 0.1
    end, nodes, weights = 10.0, *np.polynomial.legendre.leggauss(400)
    times = 0.5 * end * (nodes + 1)
    run = gflow.flow(model, problem, model.init(scale=alpha), [0.0, *times, end], coords="log", rtol=1e-12)
    total = 0.5 * end * weights @ np.array([slope(problem, b) for b in model.predictor(run.theta[1:-1])])
    np.testing.assert_allclose(model.predictor(run.end), 2 * alpha**2 * np.sinh(-4 * total), rtol=1e-9)


@pytest.mark.parametrize("method", ["tsit5", "dop853", "bdf"])
def test_the_error_in_log_coordinates_follows_the_tolerance(method):
    problem, model = sparse(), gflow.Diagonal(6)
    times, alpha = np.geomspace(1.0, 60.0, 12), 1e-3
    wanted = mirror_image(problem, alpha, "difference", 2, times)
    rtols, errors = 10.0 ** -np.arange(5.0, 12.0), []
    for rtol in rtols:
        run = gflow.flow(
            model, problem, model.init(scale=alpha), times, coords="log", method=method, rtol=rtol
        )
        errors.append(relative(model.predictor(run.theta), wanted).max())
        assert errors[-1] <= 30 * rtol
    assert 0.7 <= np.polyfit(np.log(rtols), np.log(errors), 1)[0] <= 1.3


@pytest.mark.parametrize(
    ("form", "depth", "alpha"),
    [(f, 2, a) for f in ("difference", "product", "power") for a in (1e-8, 1e-3, 1.0)]
    + [("difference", 3, 0.1), ("difference", 4, 1.0), ("power", 3, 0.1)],
)
@pytest.mark.parametrize("loss", ["square", "logistic"])
def test_log_and_plain_coordinates_agree(form, depth, alpha, loss):
    problem, model = sparse(), gflow.Diagonal(6, depth, form)
    if loss == "logistic":
        problem = gflow.Problem(problem.X, np.sign(problem.Y), loss)
    theta0, times = model.init(scale=alpha), np.linspace(0.0, 40.0, 9)
    runs = [gflow.flow(model, problem, theta0, times, coords=c, rtol=1e-12) for c in ("plain", "log")]
    plain, log = (model.predictor(run.theta) for run in runs)
    np.testing.assert_allclose(log, plain, rtol=0, atol=1e-9 * abs(plain).max())
    np.testing.assert_allclose(runs[1].theta, runs[0].theta, rtol=0, atol=1e-9 * abs(runs[0].theta).max())


@by_coords
@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize(
    ("form", "depth"), [("difference", 2), ("product", 2), ("difference", 3), ("difference", 4)]
)
def test_what_is_conserved(form, depth, signs, coords):
    """From the weights themselves, from shaped and from random starts."""
    problem, model = sparse(), gflow.Diagonal(6, depth, form)
    scale = np.geomspace(0.3, 1.0, 6)
    theta0 = model.init("gaussian" if signs else "balanced", scale=scale, rng=1)
    run = gflow.flow(model, problem, theta0, np.linspace(0.0, 30.0, 7), coords=coords)
    a, b = model.unpack(run.theta)
    if form == "product":
        kept, size = a**2 - b**2, np.maximum(a**2, b**2)
    elif depth == 2:
        kept, size = a * b, ((abs(a) + abs(b)) / 2) ** 2
    else:
        kept = a ** (2.0 - depth) + b ** (2.0 - depth)
        size = abs(a) ** (2.0 - depth) + abs(b) ** (2.0 - depth)
    assert np.max(abs(kept - kept[0]) / size) <= 1e-9
    assert run.gauges.invariant_drift.max() <= 1e-9
    if coords == "plain" or depth == 2:
        assert run.gauges.dissipation_defect.max() <= 1e-7


@pytest.mark.parametrize(
    ("form", "depth"), [("difference", 2), ("product", 2), ("difference", 3), ("difference", 4)]
)
def test_weight_decay_moves_what_is_conserved_as_it_should(form, depth):
    base, model = sparse(), gflow.Diagonal(6, depth, form)
    problem = gflow.Problem(base.X, base.Y, weight_decay=0.2)
    times = np.linspace(0.0, 5.0, 6)
    run = gflow.flow(model, problem, model.init(scale=0.5), times)
    kept = model.invariants(run.theta)[0]
    rate = 0.4 if depth == 2 else -0.2 * (depth - 2)
    np.testing.assert_allclose(kept, kept[0] * np.exp(-rate * times)[:, None], rtol=1e-8)
    assert run.gauges.invariant_drift.max() <= 1e-9


# ---- A equals B --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("coords", ["plain", "log"])
def test_a_scalar_product_equals_a_deep_linear_network(coords):
    problem, theta0, times = gflow.Problem([[1.0]], [2.0]), [0.3, -0.1], np.linspace(0.0, 6.0, 13)
    deep = gflow.flow(gflow.DeepLinear((1, 1, 1)), problem, theta0, times, rtol=1e-12)
    run = gflow.flow(gflow.Diagonal(1, form="product"), problem, theta0, times, coords=coords, rtol=1e-12)
    np.testing.assert_allclose(run.theta, deep.theta, rtol=0, atol=1e-10)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_a_scalar_power_equals_a_balanced_deep_linear_network_at_another_pace(depth):
    problem, times = gflow.Problem([[1.0]], [2.0]), np.linspace(0.0, 6.0, 13)
    deep = gflow.flow(gflow.DeepLinear((1,) * (depth + 1)), problem, [0.4] * depth, times, rtol=1e-12)
    run = gflow.flow(gflow.Diagonal(1, depth, "power"), problem, [0.4], times / depth, rtol=1e-12)
    np.testing.assert_allclose(run.theta[:, 0], deep.theta[:, 0], rtol=0, atol=1e-10)


@by_coords
def test_the_difference_equals_the_product_at_twice_the_pace(coords):
    problem, times = sparse(), np.linspace(0.0, 20.0, 9)
    difference, product = gflow.Diagonal(6), gflow.Diagonal(6, form="product")
    w = difference.init("gaussian", scale=0.3)
    a, b = difference.unpack(w)
    one = gflow.flow(difference, problem, w, times, coords=coords, rtol=1e-12)
    two = gflow.flow(product, problem, product.pack([a + b, a - b]), 2 * times, coords=coords, rtol=1e-12)
    np.testing.assert_allclose(
        difference.predictor(one.theta), product.predictor(two.theta), rtol=0, atol=1e-10
    )
    plus, minus = difference.unpack(one.theta)
    np.testing.assert_allclose(two.theta, np.hstack([plus + minus, plus - minus]), rtol=0, atol=1e-10)


# ---- tiny starts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1e-16, 1e-100, 1e-300])
def test_starts_of_any_size_follow_the_logistic_curve(alpha):
    """One sample: beta = w^2 is logistic; of w_+^2 - w_-^2 what w_- adds is below alpha^2."""
    s, model = 1.5, gflow.Diagonal(1, form="power")
    problem = gflow.Problem([[1.0]], [s])
    escape = np.log(1 / alpha) / (2 * s)
    times = escape * np.array([0.5, 0.9, 0.99, 1.0, 1.01, 1.1, 2.0])
    with mpmath.workdps(50):
        beta = [
            s / (1 + (s / mpmath.mpf(alpha) ** 2 - 1) * mpmath.exp(-4 * s * mpmath.mpf(t))) for t in times
        ]
        wanted = np.array([float(mpmath.log(b) / 2) for b in beta])
    run = gflow.flow(model, problem, model.init(scale=alpha), times, coords="log", rtol=1e-11)
    # rounding of t alone moves log w by 2 s eps t
    np.testing.assert_allclose(run.log_theta[:, 0], wanted, rtol=0, atol=30e-11)
    both = gflow.Diagonal(1)
    pair = gflow.flow(both, problem, both.init(scale=alpha), times, coords="log", rtol=1e-11)
    np.testing.assert_allclose(pair.log_theta[:, 0], wanted, rtol=0, atol=30e-11)
    np.testing.assert_allclose(pair.log_theta.sum(axis=1), 2 * np.log(alpha), rtol=1e-14)
    assert pair.gauges.dissipation_defect.max() <= 1e-9


def test_what_underflows_is_zero_and_its_logarithm_is_not():
    problem, alpha = gflow.Problem([[1.0]], [1.0]), 1e-200
    for form, depth in (("difference", 2), ("product", 2)):
        model = gflow.Diagonal(1, depth, form)
        run = gflow.flow(model, problem, model.init(scale=alpha), 3000.0, coords="log")
        assert model.predictor(run.end) == pytest.approx(1.0, abs=1e-8)
        assert run.outcome.code == "finished" and np.isfinite(run.loss).all()
        assert run.loss[-1] <= 1e-15
        if form == "difference":
            assert run.end[1] == 0.0
            assert run.log_theta[-1, 1] == pytest.approx(2 * np.log(alpha), rel=1e-9)


@pytest.mark.parametrize("form", ["difference", "product"])
def test_saddle_to_saddle_from_1e_minus_100(form):
    """About the first jump, in the middle of every stay, and at 100 times the first jump: where the path says."""
    problem, alpha, d = sparse(n=5, d=8, seed=5), 1e-100, 8
    model = gflow.Diagonal(d, form=form)
    theta0 = model.init(scale=alpha)
    path = saddles.saddles(model, problem, theta0)
    rate = 2.0 if form == "difference" else 1.0
    first = np.log(1 / alpha) / (rate * abs(slope(problem, np.zeros(d))).max())
    np.testing.assert_allclose(path.times[0], first, rtol=1e-12)
    assert len(path.times) == 5 and not path.degenerate and path.times[-1] < 60 * first
    times = [0.97 * first, 1.03 * first, *(path.times[1:] + path.times[:-1]) / 2, 100 * first]
    run = gflow.flow(model, problem, theta0, times, coords="log")
    off = abs(model.predictor(run.theta) - path.at(times)).max(axis=1)
    assert off[:2].max() <= alpha**0.05 and off[2:].max() <= 1e-9  # rtol
    assert np.linalg.norm(problem.X @ model.predictor(run.end) - problem.Y[:, 0]) <= 1e-11
    assert run.status.ok


@pytest.mark.parametrize("alpha", [1e-1, 1e-2])
@by_coords
def test_the_limit_is_an_interpolator_whose_mirror_image_is_in_the_row_space(alpha, coords):
    problem, model = sparse(), gflow.Diagonal(6)
    run = gflow.flow(model, problem, model.init(scale=alpha), np.inf, coords=coords, rtol=1e-11)
    assert run.limit.kind == "minimum" and run.outcome.code == "finished"
    beta = model.predictor(run.end)
    np.testing.assert_allclose(problem.X @ beta, problem.Y[:, 0], rtol=0, atol=1e-9)
    image = np.arcsinh(beta / (2 * alpha**2))
    off = image - problem.X.T @ np.linalg.lstsq(problem.X.T, image, rcond=None)[0]
    assert abs(off).max() <= 1e-7 * abs(image).max()
