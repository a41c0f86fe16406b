"""Clusters of leaky-ReLU neurons: agreement, boundary, predicted directions, bounds, closed forms, and the flow."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import brentq, minimize, nnls

import gflow
from gflow import observe
from gflow.theory import clusters
from gflow.theory.separable import max_margin

OUTER = np.repeat([1.0, -1.0], [3, 4])


def separable(seed, n=12, d=2, gap=0.3):
    """Normal inputs, moved off the plane between the classes."""
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((n, d)), rng.standard_normal(d)
    w /= np.linalg.norm(w)
    y = np.sign(x @ w)
    return gflow.Problem(x + gap * y[:, None] * w, y, "logistic")


def network(d=2, each=4, slope=0.3):
    return gflow.TwoLayerReLU(d, 2 * each, slope=slope, train_outer=False)


def start(model, scale, seed=0):
    signs = np.repeat([1.0, -1.0], model.width // 2)
    return model.init("gaussian", scale, rng=seed, signs=signs, outer=model.width**-0.5)


def symmetric(seed, n=5, d=2, loss="logistic"):
    half = separable(seed, n, d)
    x, y = half.X, half.Y[:, 0]
    return gflow.Problem(np.vstack([x, -x]), np.r_[y, -y], loss)


def at_loss(model, problem, theta0, levels, **options):
    got = gflow.flow(model, problem, theta0, levels, clock="loss", max_steps=10**7, **options)
    assert got.status.code == "finished", got.status
    return got


def heading(model, problem, theta):
    w = model.first_layer(theta)
    return w / np.linalg.norm(w)


def planar(seed):
    """Few Gaussian samples in the plane, labels of a random line: the cases with an agreement that is not perfect."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((int(rng.integers(3, 9)), 2))
    return gflow.Problem(x, np.sign(x @ rng.standard_normal(2)), "logistic")


def offset(seed):
    """Two clouds on the same side of the origin."""
    x = np.array([[2.0, 0.5], [0.5, 2.0]]).repeat(10, axis=0)
    x = x + 0.3 * np.random.default_rng(seed).standard_normal((20, 2))
    return gflow.Problem(x, np.repeat([1.0, -1.0], 10), "logistic")


OFFSET = 0
OTHERS = {17: planar(17), 24: planar(24), OFFSET: offset(OFFSET)}


# ---- what the neurons do -----------------------------------------------------------------------------------


def test_agreement_by_loops():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(400):
        n = int(rng.integers(1, 4))
        problem = gflow.Problem(rng.standard_normal((n, 2)), rng.choice([-1.0, 1.0], n), "logistic")
        model = network(each=2)
        theta = start(model, 1.0, seed=int(rng.integers(1 << 30)))
        w, y = model.first_layer(theta), problem.Y[:, 0]
        agreed = perfect = 0
        least = np.inf
        for i, x in enumerate(problem.X):
            for kind, label in ((w[:2], y[i]), (w[2:], -y[i])):
                signs = {float(np.sign(one @ x)) for one in kind}
                agreed += len(signs) == 1
                perfect += signs == {label}
                least = min(least, *(abs(one @ x) for one in kind))
        got = clusters.agreement(model, problem, theta)
        regime = "PAR" if perfect == 2 * n else "NAR" if agreed == 2 * n else "none"
        assert (got.regime, got.fraction, got.perfect) == (regime, agreed / (2 * n), perfect / (2 * n))
        beta = least / np.linalg.norm(w) if regime != "none" else 0.0
        assert got.beta == pytest.approx(beta, rel=1e-13)
        np.testing.assert_allclose(
            clusters.agreements(model, problem, theta), [got.fraction, got.perfect, got.beta]
        )
        seen.add(regime)
    assert seen == {"PAR", "NAR", "none"}


def test_a_neuron_on_a_kink_agrees_with_none():
    model = network(each=1)
    problem = gflow.Problem([[1.0, 0.0]], [1.0], "logistic")
    got = clusters.agreement(model, problem, model.pack([[[0.0, 1.0], [-1.0, 0.0]], [[1.0, -1.0]]]))
    assert got.regime == "kink" and got.positive[0] == 0 and got.negative[0] == -1 and got.perfect == 0.5
    assert got.beta == 0 and got.fraction == 0.5
    two = network(each=2)
    theta = two.pack([[[0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [1.0, 0.0]], [[1.0, 1.0, -1.0, -1.0]]])
    assert np.isnan(clusters.agreement(two, problem, theta).positive[0])


def hostile(slope, radius, rng, each=2, tries=30):
    """Search for weights and a point at which the network is against its linear predictor, as far off it as can be.

    Returns the largest |(w̄ − ū) · x| / band among those found: near 1 if the band is sharp, never above.
    """
    model, worst = network(each=each, slope=slope), 0.0
    outer = np.repeat([[1.0, -1.0]], each, axis=1)
    for _ in range(tries):
        x = rng.standard_normal(2)
        x /= np.linalg.norm(x)
        spread = rng.uniform(-1, 1, (2, each))
        if rng.random() < 0.7:  # the proof's worst case: one kind at two points, the other at one
            spread = rng.permutation([np.resize([1.0, -1.0], each), np.zeros(each)])
        spread -= spread.mean(axis=1, keepdims=True)
        spread /= np.maximum(np.abs(spread).max(axis=1, keepdims=True), 1e-300)
        place = rng.uniform(-1, 1) * radius
        for shift in np.linspace(-1.2, 1.2, 60) * radius * (1 - slope) / (1 + slope):
            z = np.array([[place + shift], [place]]) + radius * spread
            theta = model.pack([z.reshape(-1, 1) * x, outer])
            linear, band = clusters.boundary(model, theta, x[None])
            if np.sign(model.function(theta, x[None])[0, 0]) != np.sign(linear[0]):
                worst = max(worst, abs(linear[0]) / band[0])
    return worst


@pytest.mark.parametrize("slope", [0.05, 0.6])
@pytest.mark.parametrize("each", [2, 3])
def test_no_weights_defy_the_band_and_it_is_sharp(slope, each):
    worst = hostile(slope, 0.7, np.random.default_rng(0), each)
    assert worst < 1 + 1e-12
    assert worst > 0.9 or each == 3


def test_the_band_on_random_weights():
    rng = np.random.default_rng(1)
    outside = inside = 0
    for seed in range(300):
        model = network(d=3, each=int(rng.integers(1, 5)), slope=float(rng.uniform(0.01, 0.9)))
        theta = start(model, 1.0, seed)
        w = model.first_layer(theta) * rng.choice([0.03, 0.3, 1.0])
        half = model.width // 2
        w[:half] += rng.standard_normal(3)
        w[half:] += rng.standard_normal(3)
        theta = model.pack([w, model.outer_layer(theta)])
        x = rng.standard_normal((200, 3))
        linear, band = clusters.boundary(model, theta, x)
        right = np.sign(model.function(theta, x)[:, 0]) == np.sign(linear)
        beyond = np.abs(linear) > band
        assert right[beyond].all()
        outside += beyond.sum()
        inside += (~right).sum()
    assert outside > 20_000 and inside > 300


def test_identical_neurons_are_linear_everywhere():
    model = network(d=3, each=4, slope=0.2)
    w, u = np.random.default_rng(2).standard_normal((2, 3))
    theta = model.pack([np.repeat([w, u], 4, axis=0), np.repeat([[0.5, -0.5]], 4, axis=1)])
    x = np.random.default_rng(3).standard_normal((5000, 3))
    linear, band = clusters.boundary(model, theta, x)
    assert band.max() < 1e-14 * np.abs(linear).max() * 100
    assert np.array_equal(np.sign(model.function(theta, x)[:, 0]), np.sign(linear))


@pytest.mark.parametrize("slope", [0.25, 0.5])
def test_at_the_edge_of_the_band_the_network_may_vanish(slope):
    model, edge = network(d=1, each=2, slope=slope), (1 - slope) / (1 + slope)
    theta = model.pack([[[0.0], [0.0], [1 - edge], [-1 - edge]], [[1.0, 1.0, -1.0, -1.0]]])
    linear, band = clusters.boundary(model, theta, [[1.0]])
    np.testing.assert_allclose(linear, band, rtol=1e-15)
    assert abs(model.function(theta, [[1.0]])[0, 0]) < 1e-15
    assert band[0] <= 2 * clusters.radii(model, None, theta).max()


def test_the_band_refuses_what_it_does_not_cover():
    with pytest.raises(ValueError, match="slope above 0"):
        clusters.boundary(network(slope=0.0), start(network(slope=0.0), 1.0), [[1.0, 0.0]])
    model = gflow.TwoLayerReLU(2, 7, slope=0.1, train_outer=False)
    with pytest.raises(ValueError, match="as many outer weights"):
        clusters.boundary(model, model.init(signs=OUTER, outer=1.0), [[1.0, 0.0]])


# ---- the predicted direction -------------------------------------------------------------------------------


def random_signs(problem, rng):
    return rng.choice([-1.0, 1.0], (2, len(problem.X)))


@pytest.mark.parametrize("numbers", [(1, 1), (2, 5)])
def test_the_direction_against_a_general_solver(numbers):
    rng = np.random.default_rng(4)
    m1, m2 = numbers
    solved = 0
    for seed in range(12):
        problem, slope, v = separable(seed, d=3, n=9), 0.3, 0.4
        x, y = problem.X, problem.Y[:, 0]
        signs = None if seed % 2 else random_signs(problem, rng)
        try:
            got = clusters.direction(problem, slope, signs, numbers, v)
        except ValueError:
            continue
        c, e = (y, -y) if signs is None else signs
        rows = v * y[:, None] * np.hstack([
            m1 * np.where(c > 0, 1, slope)[:, None] * x, -m2 * np.where(e > 0, 1, slope)[:, None] * x
        ])  # fmt: skip
        weights = np.repeat([m1, m2], 3)
        found = minimize(
            lambda p, c=weights: 0.5 * p @ (c * p), rng.standard_normal(6), jac=lambda p, c=weights: c * p,
            method="SLSQP", constraints={"type": "ineq", "fun": lambda p, r=rows: r @ p - 1, "jac": lambda p, r=rows: r},
            options={"maxiter": 2000, "ftol": 1e-16},
        )  # fmt: skip
        np.testing.assert_allclose(np.r_[got.w, got.u], found.x, atol=1e-5 * np.abs(found.x).max())
        # the conditions of the optimum, which prove it
        p = np.r_[got.w, got.u]
        assert got.residual <= 1e-12
        assert (rows @ p).min() >= 1 - 1e-12 and got.multipliers.min() >= 0
        np.testing.assert_allclose(weights * p, got.multipliers @ rows, rtol=0, atol=1e-12 * np.abs(p).max())
        assert np.abs(got.multipliers * (rows @ p - 1)).max() <= 1e-12 * got.multipliers.max()
        assert got.multipliers.sum() == pytest.approx(weights @ p**2, rel=1e-11)
        assert got.margin == pytest.approx((weights @ p**2) ** -0.5, rel=1e-11)
        np.testing.assert_allclose(got.predictor, v * (m1 * got.w - m2 * got.u))
        solved += 1
    assert solved > 6


def test_the_dual_as_the_notes_have_it():
    """K_ij = y y ⟨x, x⟩ {1 + α², same label; 2 α, opposite}; w − u = (1 + α) Σ λ y x in the regime PAR."""
    problem, slope = separable(3, d=4, n=10), 0.4
    x, y = problem.X, problem.Y[:, 0]
    got = clusters.direction(problem, slope)
    kernel = np.outer(y, y) * (x @ x.T) * np.where(np.equal.outer(y, y), 1 + slope**2, 2 * slope)
    support = got.multipliers > 0
    np.testing.assert_allclose((kernel @ got.multipliers)[support], 1, rtol=1e-11)
    assert np.all(kernel @ got.multipliers >= 1 - 1e-11)
    np.testing.assert_allclose(got.w - got.u, (1 + slope) * (got.multipliers * y) @ x, rtol=1e-11)


def angle(a, b):
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return 2 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b))


def test_the_support_vector_machine_only_for_slope_one_and_symmetric_data():
    svc = pytest.importorskip("sklearn.svm").SVC
    apart = []
    for seed in range(4):
        problem = separable(seed)
        flat, leaky = clusters.direction(problem, 1.0), clusters.direction(problem, 0.2)
        best = max_margin(problem).direction[0]
        z = problem.Y * problem.X
        # scikit-learn's machine without intercept: symmetrised data have none
        svm = svc(kernel="linear", C=1e8, tol=1e-9).fit(np.vstack([z, -z]), np.r_[np.ones(12), -np.ones(12)])
        assert angle(svm.coef_[0], best) < 1e-4
        assert angle(flat.w - flat.u, best) < 1e-12
        apart.append(angle(leaky.w - leaky.u, best))
        odd = clusters.direction(symmetric(seed), 0.2)
        assert angle(odd.w - odd.u, max_margin(symmetric(seed)).direction[0]) < 1e-12
        np.testing.assert_allclose(odd.w, -odd.u, rtol=1e-12, atol=1e-12)
    assert max(apart) > 0.05


def test_infeasible_signs_are_refused_with_the_number():
    problem = gflow.Problem([[1.0], [1.0]], [1, -1], "logistic")
    with pytest.raises(ValueError, match=r"separable.*is [0-9.e-]+ of 0"):
        clusters.direction(problem, 0.5, ([1, 1], [1, 1]))
    with pytest.raises(ValueError, match="signs must be"):
        clusters.direction(problem, 0.5, ([1, 0.5], [1, 1]))
    alone = clusters.direction(gflow.Problem([[1.0, 0.0]], [1.0], "logistic"), 0.0)
    assert alone.consistent == 0 and not alone.u.any()  # at slope 0 nothing drives these neurons: no signs
    with pytest.raises(ValueError, match=r"slope must lie in \[0, 1\]; got 2"):
        clusters.direction(problem, 2)


@pytest.mark.parametrize("seed", range(4))
def test_the_flow_tends_to_the_direction_of_its_regime(seed):
    """Error ~ 1/log(1/L) raw, and below the stated one extrapolated; the radii stay what they are."""
    model, problem = network(), separable(seed)
    got = at_loss(model, problem, start(model, 1e-2, seed), np.geomspace(1e2, 1e4, 9), rtol=1e-10)
    found = clusters.agreement(model, problem, got.end)
    assert found.regime in ("PAR", "NAR") and got.events.t[-1] < 100.0
    wanted = clusters.direction(problem, model.slope, found.signs)
    assert wanted.consistent > 0
    unit = wanted.neurons((4, 4))
    raw = np.array([np.linalg.norm(one - unit) for one in observe.along(got, heading)])
    slope = np.polyfit(np.log(got.t), np.log(raw), 1)[0]
    assert slope == pytest.approx(-1, abs=0.03)
    limit = observe.limit(got, heading)
    assert np.linalg.norm(limit.value - unit) <= limit.error <= 1e-6
    radii = observe.along(got, clusters.radii)
    # conserved up to the rounding of a sum of parts of the size of the weights
    np.testing.assert_allclose(radii, radii[:1].repeat(len(radii), axis=0), rtol=1e-9, atol=1e-13 * got.t[-1])


@pytest.mark.parametrize(("seed", "regime"), [(17, "NAR"), (24, "NAR"), (OFFSET, "kink")])
def test_imperfect_agreement_and_sliding_clusters(seed, regime):
    """Both against the closed direction: where all of a kind are on the wrong side of a sample, or on its kink."""
    model, problem = network(), OTHERS[seed]
    got = at_loss(model, problem, start(model, 1e-3, seed), np.geomspace(1e2, 1e4, 9), rtol=1e-10)
    found = clusters.agreement(model, problem, got.end)
    assert found.regime == regime and found.perfect < 1 and got.events.t[-1] < 100.0
    assert (found.beta > 0) == (regime == "NAR")
    wanted = clusters.direction(problem, model.slope, found.signs)
    assert wanted.residual <= 1e-12 and wanted.consistent > 0
    limit = observe.limit(got, heading)
    assert np.linalg.norm(limit.value - wanted.neurons((4, 4))) <= limit.error <= 1e-6
    np.testing.assert_allclose(*observe.along(got, clusters.radii)[[0, -1]], rtol=1e-9, atol=1e-7)
    if regime == "kink":  # orthogonal to what it slides on, with the slopes that hold it there
        now = observe.multipliers(model, problem, got.end)[[0, -1]]
        assert 0.3 < now[np.array(found.signs) == 0].min() < 1
        np.testing.assert_allclose(now, wanted.slopes, rtol=1e-5)
        for neuron, signs in zip((wanted.w, wanted.u), found.signs, strict=True):
            assert np.abs(problem.X[signs == 0] @ neuron).max(initial=0) < 1e-12 * np.abs(wanted.w).max()


def test_rates_of_cosine_and_margin():
    """1 − cos ~ 1/log(1/L)², the margin's distance from its limit ~ 1/log(1/L)."""
    model, problem = network(), separable(1)
    levels = np.geomspace(1e2, 1e5, 7)
    got = at_loss(model, problem, start(model, 1e-2), levels, observe="margin")
    wanted = clusters.direction(problem, model.slope, numbers=(4, 4), outer=model.width**-0.5)
    cosines = [angle(model.first_layer(one).ravel(), wanted.neurons((4, 4)).ravel()) for one in got.theta]
    # 1 − cos = 2 sin² of half the angle
    slope = np.polyfit(np.log(levels), 2 * np.log(np.sin(0.5 * np.array(cosines))), 1)[0]
    assert slope == pytest.approx(-2, abs=0.1)
    gaps = wanted.margin - got["margin"]
    assert np.polyfit(np.log(levels), np.log(gaps), 1)[0] == pytest.approx(-1, abs=0.1) and gaps.min() > 0


# ---- the regime PAR ----------------------------------------------------------------------------------------


def cone(seed, n=10, d=2):
    """Data with y_i y_j ⟨x_i, x_j⟩ > 0."""
    rng = np.random.default_rng(seed)
    z = rng.uniform(0.1, 1.0, (n, d))
    y = rng.choice([-1.0, 1.0], n)
    return gflow.Problem(y[:, None] * z, y, "logistic")


@pytest.mark.parametrize("scale", [1e-3, 10.0])
def test_data_in_a_cone_bring_the_regime_par_monotonically(scale):
    model, problem = network(), cone(5)
    assert clusters.least_cosine(problem) > 0
    theta0 = start(model, scale)
    origin = -np.log(gflow.observe.loss(model, problem, theta0))
    got = at_loss(model, problem, theta0, origin + np.r_[0.0, np.geomspace(1e-4, 1e3, 150)])
    z = problem.Y[:, 0] * np.einsum("tjd,nd->tjn", model.first_layer(got.theta), problem.X)
    rises = np.diff(z, axis=0) * np.repeat([1, -1], 4)[:, None]
    assert rises.min() > 0
    assert "slide" not in got.events.kind
    seen = observe.along(got, clusters.agreements)[:, 1]
    assert np.all(np.diff(seen) >= 0) and seen[-1] == 1.0 and seen[0] < 1


def test_so_does_descent_on_single_samples():
    model, problem = network(), cone(5)
    run = gflow.descend(model, problem, start(model, 1.0), 0.5, 3000, batch_size=1, rng=0)
    z = problem.Y[:, 0] * np.einsum("tjd,nd->tjn", model.first_layer(run.theta), problem.X)
    assert np.min(np.diff(z, axis=0) * np.repeat([1, -1], 4)[:, None]) > 0
    assert clusters.agreement(model, problem, run.end).regime == "PAR"
    assert clusters.agreement(model, problem, run.theta[0]).regime == "none"


def test_least_cosine_by_loops():
    problem = separable(2, d=3)
    z = problem.Y * problem.X
    least = min(a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a in z for b in z)
    assert clusters.least_cosine(problem) == pytest.approx(least, rel=1e-12) and least < 0


# ---- bounds ------------------------------------------------------------------------------------------------


def test_the_time_is_the_root_of_the_inequality():
    model, problem = network(), separable(0)
    theta0, loss = start(model, 0.5), 0.05
    got = clusters.training_time(model, problem, theta0, loss)
    best = max_margin(problem)
    n, v = len(problem.X), model.width**-0.5
    reach = 1 / best.margin / (np.sqrt(model.width) * v * model.slope)
    assert got.reach == pytest.approx(reach, rel=1e-12)
    assert got.pull == pytest.approx((1 - np.exp(-n * loss)) / n, rel=1e-12)
    growth = 2 * max(q / (1 + np.exp(q)) for q in np.linspace(1.27, 1.29, 200_001))
    assert growth == pytest.approx(0.55693, abs=1e-5)
    size = np.linalg.norm(model.first_layer(theta0))
    root = brentq(
        lambda t: got.pull * t - reach * np.sqrt(size**2 + growth * t) - reach * size, 1.0, 1e12, xtol=1e-9
    )
    assert got.time == pytest.approx(root, rel=1e-9)


@pytest.mark.parametrize("slope", [0.05, 0.9])
@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_every_step_of_the_proof_along_the_flow(slope, scale):
    model, problem = network(slope=slope), separable(6)
    theta0 = start(model, scale)
    best = max_margin(problem)
    star = np.repeat([1.0, -1.0], 4)[:, None] * best.direction / best.margin
    outer, y = model.outer_layer(theta0)[0], problem.Y[:, 0]
    got = gflow.flow(model, problem, theta0, np.linspace(0, 50, 51))
    eps = 0.1
    bound = clusters.training_time(model, problem, theta0, eps)
    for theta in got.theta:
        w = model.first_layer(theta)
        speed = model.first_layer(observe.velocity(model, problem, theta))
        margins = y * model.function(theta, problem.X)[:, 0]
        pulls = 1 / (1 + np.exp(margins))
        assert np.sum(speed * star) >= slope * np.abs(outer).sum() * pulls.mean() * (1 - 1e-12)
        assert 2 * np.sum(w * speed) == pytest.approx(2 * np.mean(pulls * margins), rel=1e-9, abs=1e-12)
        assert 2 * np.mean(pulls * margins) <= 2 * clusters.GROWTH * (1 + 1e-12)
        if np.mean(np.log1p(np.exp(-margins))) >= eps:
            assert pulls.mean() >= bound.pull
    assert np.linalg.norm(star) == pytest.approx(np.sqrt(8) / best.margin)


def test_the_time_bounds_the_flow_and_knows_no_width():
    problem = separable(4)
    times = []
    for each in (2, 30):
        model = network(each=each)
        theta0 = model.pack(
            [
                start(model, 1.0).reshape(-1)[: 4 * each].reshape(-1, 2) * 0,
                model.outer_layer(start(model, 1.0)),
            ]
        )
        theta0[: 4 * each] = np.tile([0.5, 0.0, 0.0, 0.5], each) / np.sqrt(
            each
        )  # the same norm for all widths
        bound = clusters.training_time(model, problem, theta0, 0.1)
        got = gflow.flow(model, problem, theta0, bound.time)
        assert got.loss[-1] < 0.1
        times.append(bound.time)
    assert times[0] == pytest.approx(times[1], rel=1e-12)


@pytest.mark.parametrize("step_size", [0.1, 5.0])
def test_epochs_of_descent_on_single_samples(step_size):
    model, problem = network(), separable(4)
    theta0, n = start(model, 1.0), 12
    for loss in (np.log(2), 0.1):
        bound = clusters.training_epochs(model, problem, theta0, loss, step_size)
        run = gflow.descend(
            model, problem, theta0, step_size, n * min(int(bound) + 1, 500), batch_size=1, rng=0
        )
        order = np.asarray(gflow.iterate.batches(run)).reshape(-1, n)
        f = np.array([model.function(one, problem.X)[:, 0] for one in run.theta[:-1]])
        met = np.log1p(np.exp(-problem.Y[order.ravel(), 0] * f[np.arange(len(f)), order.ravel()]))
        good = (met.reshape(-1, n) < loss).all(axis=1)
        assert good.any() and np.argmax(good) <= bound


@pytest.mark.parametrize("step_size", [0.01, 0.5, 50.0])
def test_the_epochs_are_the_root_of_the_inequality(step_size):
    """η S = A (‖θ‖ + ‖θ(0)‖) with ‖θ‖² = ‖θ(0)‖² + 2 η κ n E + η² V² S and E = S / c; each term counts at some step size."""
    model, problem = network(), separable(0)
    theta0, loss, n, eta = start(model, 3.0), 0.3, 12, step_size
    got = clusters.training_epochs(model, problem, theta0, loss, eta)
    reach = np.sqrt(8) / max_margin(problem).margin / (model.slope * 8 * 8**-0.5)
    size, c = np.linalg.norm(model.first_layer(theta0)), 1 - np.exp(-loss)
    speed = np.linalg.norm(problem.X, axis=1).max()  # Σ a² = 1

    def excess(epochs):
        s = c * epochs
        square = size**2 + 2 * eta * 0.278464542761074 * n * epochs + (eta * speed) ** 2 * s
        return eta * s - reach * (np.sqrt(square) + size)

    assert got == pytest.approx(brentq(excess, 1e-3, 1e12, xtol=1e-9), rel=1e-9)


def test_bounds_refuse_what_they_do_not_cover():
    model, problem = network(), separable(4)
    theta0 = start(model, 1.0)
    mixed = gflow.Problem(
        np.vstack([problem.X, problem.X[:1]]), np.r_[problem.Y[:, 0], -problem.Y[0]], "logistic"
    )
    with pytest.raises(ValueError, match="separable"):
        clusters.training_time(model, mixed, theta0, 0.1)
    with pytest.raises(ValueError, match="separator.*the least is"):
        clusters.training_time(model, problem, theta0, 0.1, separator=[1e-3, 0.0])
    with pytest.raises(ValueError, match="slope above 0"):
        clusters.training_time(network(slope=0.0), problem, theta0, 0.1)
    with pytest.raises(ValueError, match="logistic"):
        clusters.training_time(model, gflow.Problem(problem.X, problem.Y, "exponential"), theta0, 0.1)


# ---- nearly orthogonal data (arXiv 2210.07082) -------------------------------------------------------------


def nearly_orthogonal(seed, n=6, d=4000):
    rng = np.random.default_rng(seed)
    return gflow.Problem(rng.standard_normal((n, d)), np.tile([1.0, -1.0], n)[:n], "logistic")


def referee(problem, slope, m1, m2):
    """v, u of the paper's problem from its dual, min λᵀKλ / 2 − 1ᵀλ over λ ≥ 0, on a Cholesky factor."""
    x, y, m = problem.X, problem.Y[:, 0], m1 + m2
    p, q = np.where(y > 0, 1, slope), np.where(y > 0, slope, 1)
    gram = (x @ x.T) * np.outer(y, y) / m * (m1 * np.outer(p, p) + m2 * np.outer(q, q))
    factor = np.linalg.cholesky(gram)
    lam = nnls(factor.T, np.linalg.solve(factor, np.ones(len(y))))[0]
    return (lam * y * p) @ x / np.sqrt(m), -(lam * y * q) @ x / np.sqrt(m)


@pytest.mark.parametrize("numbers", [(3, 3), (2, 6)])
def test_the_closed_form_on_nearly_orthogonal_data(numbers):
    problem, slope, (m1, m2) = nearly_orthogonal(0), 0.5, numbers
    m = m1 + m2
    got = clusters.closed_form(problem, slope, numbers, m**-0.5)
    x, y = problem.X, problem.Y[:, 0]
    assert got.residual < 1e-12 and got.consistent > 0
    v, u = referee(problem, slope, m1, m2)
    np.testing.assert_allclose(np.r_[got.w, got.u], np.r_[v, u], rtol=0, atol=1e-12 * np.abs(v).max())
    assert got.multipliers.sum() == pytest.approx(m1 * got.w @ got.w + m2 * got.u @ got.u, rel=1e-12)
    assert np.all(np.sign(x @ got.w) == y) and np.all(np.sign(x @ got.u) == -y)
    model = gflow.TwoLayerReLU(x.shape[1], m, slope=slope, train_outer=False)
    theta = model.pack(
        [np.repeat([got.w, got.u], numbers, axis=0), np.repeat([[m**-0.5, -(m**-0.5)]], numbers, axis=1)]
    )
    np.testing.assert_allclose(y * model.function(theta, x)[:, 0], 1, rtol=1e-12)  # conclusion (1)
    assert gflow.margins.margin(model, problem, theta) == pytest.approx(got.margin, rel=1e-12)
    best = max_margin(problem)
    assert np.linalg.norm(got.predictor) <= m / (np.sqrt(m1 * m2) * (1 + slope)) / best.margin * (1 + 1e-12)
    if m1 == m2:  # as the notes have it
        same = np.equal.outer(y, y)
        kernel = 0.5 * np.outer(y, y) * (x @ x.T) * np.where(same, 1 + slope**2, 2 * slope)
        lam = np.linalg.solve(kernel, np.ones(len(y)))
        np.testing.assert_allclose(got.multipliers, lam, rtol=1e-12)
        np.testing.assert_allclose(
            got.predictor, 0.5 * (1 + slope) * (lam * y) @ x, rtol=1e-10, atol=1e-12 * lam.max()
        )
    exact = clusters.direction(problem, slope, None, numbers, m**-0.5)
    np.testing.assert_allclose(exact.w, got.w, atol=1e-11 * np.abs(got.w).max())


def test_orthogonality_by_its_definition():
    x = np.array([[2.0, 0.0, 0.1], [0.0, 1.0, 0.2], [0.1, 0.0, 3.0]])
    sizes, off = np.linalg.norm(x, axis=1), max(abs(x[i] @ x[j]) for i in range(3) for j in range(i))
    ratio = sizes.min() ** 2 / (3 * 0.5**-3 * (sizes.max() / sizes.min()) ** 2 * 3 * off)
    assert clusters.orthogonality(x, 0.5) == pytest.approx(ratio, rel=1e-13)
    assert clusters.orthogonality(np.eye(4), 0.1) == np.inf
    wide = np.hstack([1e4 * np.eye(4), x.mean() * np.ones((4, 1))])
    assert clusters.orthogonality(wide, 0.5) >= 1


@pytest.mark.parametrize("far", [False, True], ids=["ratio ≥ 1", "ratio fails"])
def test_flows_on_nearly_orthogonal_data_end_there(far):
    rng = np.random.default_rng(3)
    noise = rng.standard_normal((6, 8))
    x = np.hstack([np.diag(rng.uniform(1.0, 1.1, 6)), (0.35 if far else 1e-3) * noise])
    problem = gflow.Problem(x, np.tile([1.0, -1.0], 3), "logistic")
    model = network(d=14, each=3, slope=0.6)
    assert (clusters.orthogonality(x, 0.6) < 0.1) if far else (clusters.orthogonality(x, 0.6) >= 1)
    wanted = clusters.closed_form(problem, 0.6, (3, 3))
    assert wanted.residual < 1e-12 and wanted.consistent > 0
    got = at_loss(model, problem, start(model, 0.3), np.geomspace(1e2, 1e4, 9), rtol=1e-10)
    unit = wanted.neurons((3, 3))
    limit = observe.limit(got, heading)
    assert np.linalg.norm(limit.value - unit) <= limit.error <= 1e-7
    assert clusters.agreement(model, problem, got.end).regime == "PAR"


def test_the_certificate_is_not_of_the_limit():
    """Far from orthogonal data a stationary point of the margin in the regime PAR need not be where the flow ends."""
    rng = np.random.default_rng(1040)
    x = rng.standard_normal((int(rng.integers(2, 7)), 3))
    problem = gflow.Problem(x, np.sign(x @ rng.standard_normal(3)), "logistic")
    wanted = clusters.closed_form(problem, 0.3)
    assert wanted.residual < 1e-12 and wanted.consistent > 0.1 and clusters.orthogonality(x, 0.3) < 0.01
    model = network(d=3, each=3)
    ends = []
    for theta0 in (
        start(model, 1e-4, 40),
        model.pack([wanted.neurons((3, 3)), model.outer_layer(start(model, 1.0))]),
    ):
        got = at_loss(model, problem, theta0, [1e4])
        ends.append(np.linalg.norm(heading(model, problem, got.end) - wanted.neurons((3, 3))))
    assert ends[0] > 0.4 and ends[1] < 1e-3


@pytest.mark.parametrize("numbers", [(2, 2), (1, 3)])
def test_orthogonal_inputs_to_1e_8(numbers):
    """Every sample for itself, whatever its length, from every start in the regime."""
    rng = np.random.default_rng(5)
    q = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    x = rng.uniform(0.5, 2.0, (4, 1)) * q[:4]
    problem = gflow.Problem(x, [1.0, -1.0, -1.0, 1.0], "exponential")
    model = gflow.TwoLayerReLU(5, 4, slope=0.3, train_outer=False)
    signs = np.repeat([1.0, -1.0], numbers)
    w = signs[:, None] * (rng.uniform(0.1, 1.0, (4, 4)) * problem.Y[:, 0]) @ x
    theta0 = model.pack([w, 0.5 * signs[None]])
    prediction = clusters.orthogonal(model, problem, theta0)
    assert prediction.applies
    got = gflow.flow(model, problem, theta0, np.linspace(0, 30, 31), rtol=1e-10, observe="outputs")
    result = gflow.compare(got, prediction)
    assert result.max_error < 1e-8
    # as the notes have it, for balanced neurons of outer weight 1/√m and equal lengths
    if numbers == (2, 2):
        same = gflow.Problem(1.7 * q[:4], problem.Y, "exponential")
        theta0 = model.pack([w @ q[:4].T @ q[:4], 0.5 * signs[None]])
        f = clusters.orthogonal(model, same, theta0).predict([0.0, 3.0])[:, :, 0] * problem.Y[:, 0]
        np.testing.assert_allclose(np.exp(f[1]), np.exp(f[0]) + 1.7**2 * (1 + 0.3**2) * 3.0 / 8, rtol=1e-12)
    with pytest.raises(gflow.theory.Refused, match="PAR"):
        clusters.orthogonal(model, problem, model.pack([-w, 0.5 * signs[None]])).predict([1.0])


# ---- symmetric data (arXiv 2110.13905) and odd networks ----------------------------------------------------


def test_symmetry_defects():
    problem = symmetric(0)
    assert clusters.symmetry_defect(problem) == 0
    moved = gflow.Problem(problem.X + 1e-3, problem.Y, "logistic")
    assert clusters.symmetry_defect(moved) == pytest.approx(2e-3 / np.abs(moved.X).max(), rel=1e-9)
    model = gflow.TwoLayerReLU(2, 4, slope=0.2)
    w, a = np.random.default_rng(0).standard_normal((2, 2)), np.array([[0.3, 0.7, -0.3, -0.7]])
    odd = model.pack([np.vstack([w, -w]), a])
    assert clusters.oddness_defect(model, odd) == 0
    odd[0] += 0.01
    assert clusters.oddness_defect(model, odd) == pytest.approx(0.01 / np.abs(odd).max(), rel=1e-9)
    with pytest.raises(ValueError, match="defect"):
        clusters.odd_twin(model, odd)
    with pytest.raises(ValueError, match="defect"):
        clusters.symmetric_limit(moved, 0.2)


def test_the_early_phase_is_hyperbolic():
    """θ(t) against scipy on the linear system, and against the flow, which differs by O(scale²)."""
    problem = symmetric(1)
    model = gflow.TwoLayerReLU(2, 5, slope=0.3)
    theta0 = model.init("gaussian", 1.0, rng=2)
    mu = clusters.early_pull(problem, 0.3)
    np.testing.assert_allclose(mu, 0.25 * 1.3 * np.mean(problem.Y * problem.X, axis=0))
    t = np.linspace(0.0, 3.0 / np.linalg.norm(mu), 7)

    def field(time, theta):
        w, a = model.unpack(theta)
        return model.pack([a.T * mu, (w @ mu)[None]])

    wanted = solve_ivp(field, (0, t[-1]), theta0, "DOP853", t_eval=t, rtol=1e-13, atol=1e-13).y.T
    np.testing.assert_allclose(clusters.early(model, problem, theta0, t), wanted, rtol=1e-10, atol=1e-10)
    scales, off = np.array([1e-4, 1e-5, 1e-6]), []
    for scale in scales:
        got = gflow.flow(model, problem, scale * theta0, t, rtol=1e-12)
        off.append(np.abs(got.theta / scale - wanted).max())
    assert np.polyfit(np.log(scales), np.log(off), 1)[0] == pytest.approx(2, abs=0.05)
    assert off[-1] < 1e-8


@pytest.mark.parametrize("seed", [0, 3])
def test_symmetric_data_lead_to_the_support_vector_machine(seed):
    problem = symmetric(seed)
    model = gflow.TwoLayerReLU(2, 6, slope=0.3)
    theta0 = model.init("gaussian", 1e-4, rng=1, signs=[1, -1, 1, -1, 1, -1])
    predictor, margin = clusters.symmetric_limit(problem, 0.3)
    far = np.vstack([np.eye(2), -np.eye(2), [[1.0, 2.0]]])

    def relative(model, problem, theta):
        return model.function(theta, far)[:, 0] / (theta @ theta)

    got = at_loss(model, problem, theta0, np.geomspace(1e2, 1e4, 9), observe="margin")
    limit, reached = observe.limit(got, relative), observe.limit(got, "margin")
    assert np.linalg.norm(limit.value - far @ predictor) <= min(limit.error, 1e-7)
    assert abs(reached.value - margin) <= min(reached.error, 1e-8)
    assert limit.error < 3e-6  # of degree 2: the series in 1 / sqrt(log(1/L))
    # the pairs of neurons that make it the largest: one each way, with a = ‖w‖
    best = max_margin(problem).direction
    pair = gflow.TwoLayerReLU(2, 2, slope=0.3)
    theta = pair.pack([0.5 * np.vstack([best, -best]), [[0.5, -0.5]]])
    assert gflow.margins.margin(pair, problem, theta) == pytest.approx(margin, rel=1e-12)


def whitened(seed, d=3, n=8, c=1.7):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    x = np.sqrt(c) * gflow.datasets.whiten(x)
    y = x @ rng.standard_normal(d)
    return gflow.Problem(np.vstack([x, -x]), np.r_[y, -y])


def odd_start(model, scale, seed):
    rng = np.random.default_rng(seed)
    half = model.width // 2
    w, a = scale * rng.standard_normal((half, model.inputs)), scale * rng.standard_normal(half)
    return model.pack([np.vstack([w, -w]), np.r_[a, -a][None]])


def test_odd_networks_are_linear_ones():
    """Random odd start, correlated inputs, noisy odd labels; kinks are crossed on the way."""
    rng = np.random.default_rng(7)
    x, noise = rng.standard_normal((7, 3)), 0.5 * rng.standard_normal(7)
    y = x @ rng.standard_normal(3) + noise
    problem = gflow.Problem(np.vstack([x, -x]), np.r_[y, -y])
    model = gflow.TwoLayerReLU(3, 6, slope=0.3)
    theta0 = odd_start(model, 0.5, 1)
    w, a, pace = clusters.odd_twin(model, theta0)
    assert pace == pytest.approx(0.65)
    t = np.linspace(0, 20, 21)
    got = gflow.flow(model, problem, theta0, t, rtol=1e-12, observe="outputs")
    assert len(got.events.t) > 3 and "slide" not in got.events.kind
    twin = gflow.DeepLinear((3, 6, 1))
    linear = gflow.flow(twin, problem, twin.pack([w, a[None]]), pace * t, rtol=1e-12)
    wanted = np.array([problem.X @ twin.end_to_end(one)[0] for one in linear.theta])
    np.testing.assert_allclose(got["outputs"][:, :, 0], wanted, atol=1e-10)
    assert max(clusters.oddness_defect(model, one) for one in got.theta) < 1e-10
    np.testing.assert_allclose(
        [np.r_[clusters.odd_twin(model, one)[0].ravel(), clusters.odd_twin(model, one)[1]] for one in got.theta[:3]],
        linear.theta[:3], atol=1e-10,
    )  # fmt: skip


def test_one_aligned_odd_pair_is_logistic():
    problem, slope = whitened(3), 0.3
    x = problem.X
    beta = np.linalg.lstsq(x, problem.Y[:, 0], rcond=None)[0]
    unit = beta / np.linalg.norm(beta)
    model = gflow.TwoLayerReLU(3, 2, slope=slope)
    theta0 = model.pack([0.05 * np.array([unit, -unit]), [[0.05, -0.05]]])
    prediction = clusters.odd_mode(model, problem, theta0)
    assert prediction.applies, [str(h) for h in prediction.hypotheses]
    t = np.linspace(0, 8, 41)
    got = gflow.flow(model, problem, theta0, t, rtol=1e-12, observe="outputs")
    assert gflow.compare(got, prediction).max_error < 1e-10
    # the notes' own formula, and the loss
    b0, big, c = 1.3 * 0.05**2, np.linalg.norm(beta), 1.7
    b = big / (1 + (big / b0 - 1) * np.exp(-1.3 * c * big * t))
    np.testing.assert_allclose(
        prediction.predict(t)[:, :, 0], b[:, None] * (x @ unit), rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(got.loss, 0.5 * c * (big - b) ** 2, rtol=1e-8, atol=1e-14)
    with pytest.raises(gflow.theory.Refused, match="w = a"):
        clusters.odd_mode(model, problem, odd_start(model, 0.1, 2)).predict([1.0])


# ---- what is refused ---------------------------------------------------------------------------------------


def refused():
    fixed, both = network(each=2), gflow.TwoLayerReLU(2, 4, slope=0.3)
    problem, odd = separable(4), symmetric(1)
    theta0 = start(fixed, 1.0)
    unlike = {loss: gflow.Problem(odd.X, odd.Y, loss) for loss in ("square", "exponential")}
    zero = gflow.Problem(np.vstack([problem.X, [[0.0, 0.0]]]), np.r_[problem.Y[:, 0], 1.0], "logistic")
    return {
        "another model": (lambda: clusters.agreement(gflow.DeepLinear((2, 1)), problem, [1.0, 1.0]), "TwoLayerReLU"),
        "a chain": (lambda: clusters.agreement(gflow.TwoLayerReLU(2, 4, first_depth=2), problem, theta0), "first_depth=1"),
        "theta NaN": (lambda: clusters.agreement(fixed, problem, np.nan * theta0), "theta must be finite"),
        "time, theta inf": (lambda: clusters.training_time(fixed, problem, np.r_[np.inf, theta0[1:]], 0.1), "theta must be finite"),
        "no outer weights": (
            lambda: clusters.training_time(fixed, problem, np.r_[theta0[:8], np.zeros(4)], 0.1), "outer weight"),
        "direction of the square loss": (lambda: clusters.direction(unlike["square"], 0.3), "logistic or the exponential.*square"),
        "slope a word": (lambda: clusters.direction(problem, "steep"), "slope"),
        "numbers of one": (lambda: clusters.direction(problem, 0.3, None, (1,)), r"numbers must .* \(m1, m2\)"),
        "ragged signs": (lambda: clusters.direction(problem, 0.3, ([1.0], [1.0, 1.0])), "signs must"),
        "orthogonality of zeros": (lambda: clusters.orthogonality(zero.X, 0.3), "row 12 is zero"),
        "orthogonality, slope 2": (lambda: clusters.orthogonality(problem.X, 2.0), "slope"),
        "early, exponential": (lambda: clusters.early_pull(unlike["exponential"], 0.3), "logistic.*exponential"),
        "early, outer layer fixed": (lambda: clusters.early(fixed, odd, theta0, [1.0]), "train_outer=True"),
        "twin, outer layer fixed": (lambda: clusters.odd_twin(fixed, np.zeros(12)), "train_outer=True"),
        "limit of the square loss": (lambda: clusters.symmetric_limit(unlike["square"], 0.3), "got square"),
        "limit, slope 7": (lambda: clusters.symmetric_limit(odd, 7.0), "slope"),
        "mode of a zero start": (lambda: clusters.odd_mode(both, whitened(3, 2), np.zeros(12)), "not all 0"),
    }  # fmt: skip


@pytest.mark.parametrize("name", refused())
def test_what_would_be_a_wrong_number_is_refused(name):
    call, match = refused()[name]
    with pytest.raises(ValueError, match=match):
        call()


def test_zero_inputs_and_neurons_that_nothing_pulls():
    assert clusters.least_cosine(gflow.Problem([[1.0, 0.0], [0.0, 0.0]], [1.0, 1.0], "logistic")) == 0.0
    model = gflow.TwoLayerReLU(2, 4, slope=0.3)
    still = gflow.Problem([[1.0, 0], [-1, 0], [1, 0], [-1, 0]], [1.0, -1, -1, 1], "logistic")
    theta0 = model.init("gaussian", 1.0, rng=0)
    assert np.array_equal(clusters.early(model, still, theta0, [0.0, 9.0]), [theta0, theta0])
    zero = np.r_[np.zeros(8), 1.0, 1.0, -1.0, -1.0]
    assert clusters.agreement(model, still, zero).regime == "kink"
