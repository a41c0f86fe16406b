"""Early alignment, the two half-data fits and orthogonal inputs: against sampling, mpmath, and integrated flows."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

import gflow
from gflow import Problem, TwoLayerReLU, datasets
from gflow.theory import Refused, alignment, orthogonal, threshold


def random_problem(n, d, seed=0):
    rng = np.random.default_rng([n, d, seed])
    return Problem(rng.standard_normal((n, d)), rng.standard_normal(n))


# ---- cones and extremal vectors ------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(1, 3), (3, 5), (9, 2), (12, 3), (10, 4), (8, 5)])
def test_all_cones_are_found(n, d):
    land = alignment.landscape(random_problem(n, d))
    cells = land.cells
    assert len(cells.signs) == alignment.count(n, min(n, d))
    np.testing.assert_array_equal(np.sign(cells.inside @ land.normals.T), cells.signs)
    assert len(np.unique(cells.signs, axis=0)) == len(cells.signs)
    seen = np.unique(np.sign(np.random.default_rng(0).standard_normal((4000, d)) @ land.normals.T), axis=0)
    known = {row.tobytes() for row in cells.signs}
    assert {row.astype(np.int8).tobytes() for row in seen} <= known


def test_cones_where_more_hyperplanes_meet_than_have_to():
    """The mirrors of the cube: 3 + 6 planes through the centre cut space into 48 cones."""
    rows = [np.eye(3)[i] for i in range(3)]
    rows += [np.eye(3)[i] + s * np.eye(3)[j] for i in range(3) for j in range(i) for s in (1, -1)]
    x = np.array(rows)
    cells = alignment.cells(x / np.linalg.norm(x, axis=1, keepdims=True))
    assert len(cells.signs) == 48
    np.testing.assert_array_equal(np.sign(cells.inside @ x.T), cells.signs)


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_parallel_inputs_share_a_hyperplane(slope):
    x = np.array([[1.0, 2.0], [-2.0, -4.0], [0.5, -1.0], [0.0, 0.0]])
    problem = Problem(x, [1.0, -2.0, 0.7, 3.0])
    land = alignment.landscape(problem, slope)
    assert len(land.normals) == 2
    for w in np.random.default_rng(0).standard_normal((20, 2)):
        z = x @ w
        eta = np.where(z > 0, 1.0, slope)
        np.testing.assert_allclose(land.vector(w), (eta * problem.Y[:, 0]) @ x / 4, atol=1e-15)
        relu = np.where(z > 0, z, slope * z)
        np.testing.assert_allclose(land.potential(w), problem.Y[:, 0] @ relu / 4, atol=1e-15)


def test_the_sweep_of_the_plane_is_the_enumeration():
    problem = random_problem(30, 2)
    land = alignment.landscape(problem)
    rows = land.of_signs(land.cells.signs)
    swept = alignment.sweep(problem)
    assert len(swept) == len(rows) + 1  # the first is the last
    gap = np.linalg.norm(rows[:, None] - swept[None], axis=2)
    assert gap.min(axis=1).max() < 1e-14 and gap.min(axis=0).max() < 1e-14
    np.testing.assert_allclose(swept[0], swept[-1], atol=1e-14)


@pytest.mark.parametrize(("n", "d"), [(7, 2), (12, 3), (8, 4)])
@pytest.mark.parametrize("sign", [1, -1])
def test_extremal_vectors_are_where_exact_paths_end(n, d, sign):
    """Random starts reach what the enumeration calls attractors, and nothing else."""
    for seed in range(3):
        land = alignment.landscape(random_problem(n, d, seed))
        listed, met = land.attractors(sign), land.reached(sign, 150 if d == 2 else 50)
        assert {e.kinks for e in met} <= {e.kinks for e in listed}
        for one in met:
            gaps = [np.linalg.norm(one.direction - e.direction) for e in listed]
            assert min(gaps) < 1e-9
            np.testing.assert_allclose(listed[int(np.argmin(gaps))].vector, one.vector, atol=1e-10)
        # in the plane the starts are dense enough to meet all of them
        assert d > 2 or len(met) == len(listed)


def test_extremal_vectors_fulfil_their_definition():
    """D = 0, or D orthogonal to the kinks, and on the sides (or all on the other sides) where it holds."""
    for seed in range(4):
        problem = random_problem(9, 3, seed)
        land = alignment.landscape(problem)
        for e in land.extremal:
            if not e.vector.any():
                continue
            kinks = list(e.kinks)
            np.testing.assert_allclose(land.normals[kinks] @ e.vector, 0.0, atol=1e-10)
            sides = land.signs(e.direction)
            assert sorted(np.flatnonzero(sides == 0)) == kinks
            cosine = e.vector @ e.direction / np.linalg.norm(e.vector)
            assert abs(abs(cosine) - 1) < 1e-10
            # G is stationary along the sphere: no first-order change along the face
            basis = np.linalg.svd(np.vstack([land.normals[kinks], e.direction]))[2][len(kinks) + 1 :]
            for v in basis:
                change = land.potential(e.direction + 1e-6 * v) - land.potential(e.direction - 1e-6 * v)
                assert abs(change) < 1e-6 * 1e-6 + 1e-15


def test_attractors_are_local_maxima_of_the_potential_on_the_sphere():
    rng = np.random.default_rng(5)
    for seed in range(4):
        land = alignment.landscape(random_problem(8, 3, seed))
        for sign in (1, -1):
            for e in land.attractors(sign):
                near = e.direction + 1e-4 * rng.standard_normal((300, 3))
                near /= np.linalg.norm(near, axis=1, keepdims=True)
                assert np.all(sign * land.potential(near) <= sign * land.potential(e.direction) + 1e-14)


def test_kinks_of_the_plane_attract_by_maennels_rule():
    """Attracting for the sign s if and only if s D⁻·x_k > 0 > s D⁺·x_k, with D± on the two sides (arXiv 1803.08367)."""
    count = 0
    for seed in range(10):
        problem = random_problem(6, 2, seed)
        land = alignment.landscape(problem)
        listed = {(e.kinks, tuple(np.round(e.direction, 9)), e.attracts) for e in land.extremal if e.attracts}
        for k, (x, y) in enumerate(zip(problem.X, problem.Y[:, 0], strict=True)):
            for w in (np.array([-x[1], x[0]]), np.array([x[1], -x[0]])):
                w = w / np.linalg.norm(w)
                others = np.delete(np.arange(6), k)
                active = others[problem.X[others] @ w > 0]
                low = problem.Y[active, 0] @ problem.X[active] / 6
                high = low + y * x / 6
                for s in (1, -1):
                    rule = s * low @ x > 0 > s * high @ x
                    plane = int(np.argmax(np.abs(land.normals @ x) / np.linalg.norm(x)))
                    assert (((plane,), tuple(np.round(w, 9)), s) in listed) == rule
                    count += rule
    assert count > 10


# ---- the motion ----------------------------------------------------------------------------------------------


def test_the_motion_in_a_cone_solves_its_equation():
    """Against mpmath's Taylor integrator, unbalanced; and the angle of a balanced neuron."""
    rng = np.random.default_rng(1)
    w, pull = rng.standard_normal(3), rng.standard_normal(3)
    a = 1.3 * np.linalg.norm(w)
    times = np.array([0.3, 1.0, 2.5])
    found = alignment.in_cone(w, a, pull, times)
    with mp.workdps(30):
        d = [mp.mpf(x) for x in pull]
        solve = mp.odefun(
            lambda t, z: [z[3] * d[0], z[3] * d[1], z[3] * d[2], z[0] * d[0] + z[1] * d[1] + z[2] * d[2]],
            0, [mp.mpf(x) for x in (*w, a)],
        )  # fmt: skip
        for t, w_t, a_t in zip(times, *found, strict=True):
            exact = np.array([float(x) for x in solve(mp.mpf(t))])
            np.testing.assert_allclose([*w_t, a_t], exact, rtol=1e-13)
    a = np.linalg.norm(w)
    w_t, a_t = alignment.in_cone(w, a, pull, times)
    speed = np.linalg.norm(pull)
    start = w @ pull / (a * speed)
    cosine = w_t @ pull / (np.linalg.norm(w_t, axis=1) * speed)
    np.testing.assert_allclose(cosine, alignment.cosine_to_pull(start, speed, times), rtol=1e-14)
    k = np.arctanh(start)
    np.testing.assert_allclose(a_t / a, np.cosh(speed * times + k) / np.cosh(k), rtol=1e-13)


def test_a_neuron_too_large_for_double_precision_is_infinite_and_one_that_only_shrinks_is_not(recwarn):
    _, (far,) = alignment.in_cone([0.6, 0.8], 1.0, [1.0, 0.0], [1e4])
    (w,), (a,) = alignment.in_cone([-1.0, 0.0], 1.0, [1.0, 0.0], [1e4])
    assert far == np.inf and a == 0.0 and not w.any() and not recwarn.list


def test_time_to_a_height_is_the_inverse_of_the_motion():
    rng = np.random.default_rng(2)
    for _ in range(50):
        a, speed = rng.uniform(0.5, 2.0), rng.uniform(0.1, 3.0)
        p0, t = rng.uniform(-1, 1) * a, rng.uniform(0.01, 3.0)
        (w,), _ = alignment.in_cone([p0, 0.0], a, [speed, 0.0], [t])
        assert abs(alignment.time_to(w[0], p0, a, speed) - t) < 1e-9 * (1 + a / (a + p0))
    assert alignment.time_to(-0.5, -1.0, 1.0, 1.0) == np.inf


@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["balanced", "dominated"])
@pytest.mark.parametrize(("n", "d"), [(10, 2), (14, 3), (8, 4)])
def test_paths_are_the_flow_of_a_tiny_network(n, d, kind, slope):
    """Through kinks and along them: the outputs change D by 1e-20, and the flow is asked for 1e-12."""
    problem, model = random_problem(n, d), TwoLayerReLU(d, 24, slope=slope)
    start = model.init(kind, 1e-12, rng=3)
    land = alignment.landscape(problem, slope)
    w, a = model.unpack(start)
    paths = [land.path(*one) for one in zip(w, a[0], strict=True)]
    times = np.linspace(0.0, min(6.0 / land.largest, 0.5 * min(path.ends for path in paths)), 7)
    run = gflow.flow(model, problem, start, times, rtol=1e-12)
    w, a = model.unpack(run.theta)
    slid, crossed = 0, 0
    for j, path in enumerate(paths):
        mine = np.flatnonzero(run.events.neuron == j)
        within = [piece.t for piece in path.pieces[1:] if piece.t < times[-1]]
        w_path, a_path = path.at(times)
        np.testing.assert_allclose(w_path, w[:, j], rtol=0, atol=1e-10 * np.abs(a[:, 0, j]).max())
        np.testing.assert_allclose(a_path, a[:, 0, j], rtol=1e-10)
        seen = np.unique(run.events.t[mine])
        assert len(seen) == len(within)
        np.testing.assert_allclose(seen, within, rtol=0, atol=1e-9 * times[-1])
        slid += any(piece.on.any() for piece in path.pieces if piece.t < times[-1])
        crossed += len(within)
    assert crossed > 10 and slid > 0


def test_a_neuron_that_slides_into_zero_ends_there():
    """Along a kink of the plane against its pull: in finite time where |a| > ‖w‖, never where they are equal."""
    problem, w = random_problem(6, 2, 5), np.array([-0.65, -0.13])
    land = alignment.landscape(problem)
    path = land.path(w, -1.3)
    assert path.shrinks and np.isfinite(path.ends)
    late, a = path.at([path.ends * (1 - 1e-9), path.ends * 1.01])
    assert np.linalg.norm(late[0]) < 1e-8 and np.isnan(late[1]).all() and np.isnan(a[1])
    model = TwoLayerReLU(2, 1)
    run = gflow.flow(model, problem, 1e-9 * np.array([*w, -1.3]), 2 * path.ends, rtol=1e-12)
    assert run.outcome.code == "zero_neuron"
    np.testing.assert_allclose(run.t[-1], path.ends, rtol=1e-6)
    balanced = land.path(w, -np.linalg.norm(w))
    assert balanced.shrinks and balanced.ends == np.inf
    late, _ = balanced.at([0.0, balanced.settled + 30.0])
    assert 0 < np.linalg.norm(late[1]) < 1e-3 * np.linalg.norm(w)
    # it is an extremal vector all the same, and attracts
    assert any(e.attracts == -1 and e.direction @ balanced.limit > 1 - 1e-12 for e in land.extremal)


def test_dead_neurons_stay():
    problem = datasets.three_points()
    land = alignment.landscape(Problem(*problem))
    path = land.path([0.01, -1.0], 1.5)
    assert path.dead and path.settled == 0.0
    np.testing.assert_array_equal(path.at([0.0, 7.0])[0], [[0.01, -1.0]] * 2)


def test_a_path_needs_an_outer_weight_that_keeps_its_sign():
    land = alignment.landscape(random_problem(5, 2))
    with pytest.raises(ValueError, match="a must be at least"):
        land.path([1.0, 0.0], 0.5)


@pytest.mark.parametrize("loss", ["square", "logistic"])
def test_the_early_prediction_is_the_flow_up_to_what_the_outputs_do(loss):
    """What is neglected is O(c M² A): a start ten times smaller leaves a hundredth of it."""
    x, y = datasets.linear_teacher(8, 3, noise=1.0, rng=1)
    problem = Problem(x, y if loss == "square" else np.sign(y), loss=loss)
    model, errors = TwoLayerReLU(3, 10), []
    for scale in (1e-3, 1e-4):
        start = model.init("dominated", scale, rng=2)
        prediction = gflow.theory.alignment.early(model, problem, start, small=1.0)
        run = gflow.flow(model, problem, start, np.linspace(0.0, 3.0, 5), rtol=1e-12)
        errors.append(gflow.compare(run, prediction).max_error)
    assert errors[0] < 1e-2 and 50 < errors[0] / errors[1] < 200
    with pytest.raises(Refused, match="outputs are negligible"):
        gflow.theory.alignment.early(model, problem, 1e4 * start).predict(1.0)


def test_our_bounds_on_the_norms_hold_and_are_nearly_reached():
    """|ln |a_j(t)/a_j(0)|| ≤ ∫(D_max + c M² A), with A by its own bound: up to τ and beyond, to ε ln(1/λ) and O(1)."""
    scale, epsilon = 1e-4, 0.3
    for seed in range(4):
        problem, model = random_problem(6, 2, seed), TwoLayerReLU(2, 30)
        start = model.init("dominated", scale / np.sqrt(30), rng=seed)
        land, bend = alignment.landscape(problem), alignment.curvature(problem)
        tau = alignment.alignment_time(land.largest, scale, epsilon)
        ends = [
            land.path(*one).ends
            for one in zip(*(layer.squeeze() for layer in model.unpack(start)), strict=True)
        ]
        times = np.linspace(0.0, min(1.5 * tau, 0.5 * min(ends)), 7)
        run = gflow.flow(model, problem, start, times)
        a = model.outer_layer(run.theta)[:, 0]
        mass = np.sum(a**2, axis=1)
        assert np.all(mass <= alignment.mass_bound(mass[0], land.largest, bend, times) * (1 + 1e-9))
        bound = alignment.growth_bound(mass[0], land.largest, bend, times)
        grown = np.abs(np.log(np.abs(a / a[0]))).max(axis=1)
        assert np.all(grown <= bound + 1e-9)
        at_tau = alignment.growth_bound(mass[0], land.largest, bend, tau)
        assert epsilon * np.log(1 / scale) <= at_tau <= 1.01 * epsilon * np.log(1 / scale)
        w = model.first_layer(run.theta)
        assert np.all(np.linalg.norm(w, axis=2) <= np.abs(a) * (1 + 1e-9))
    with pytest.raises(ValueError, match="epsilon"):
        alignment.alignment_time(1.0, 0.1, 0.4)


def test_landscapes_too_large_to_enumerate_say_so():
    land = alignment.landscape(random_problem(200, 6))
    with pytest.raises(ValueError, match="cones"):
        _ = land.largest
    with pytest.raises(ValueError, match="reached"):
        _ = land.extremal


@pytest.mark.parametrize(("loss", "exact"), [("square", 1e-12), ("logistic", 1e-4)])
def test_the_curvature_is_reached_by_one_neuron_on_one_input(loss, exact):
    """‖D(w, θ) − D(w, 0)‖ = c M² A where w points along the only input and |a| = ‖w‖, to leading order in A."""
    problem, a = Problem([[0.6, -1.1]], [1.0], loss=loss, factor=0.7), 1e-2
    output = a**2 * np.linalg.norm(problem.X)
    change = (alignment.pulls(problem) - alignment.pulls(problem, [output])) @ problem.X
    np.testing.assert_allclose(np.linalg.norm(change), alignment.curvature(problem) * a**2, rtol=exact)


def test_bounds_where_nothing_pulls_and_where_there_are_none():
    """D_max = 0: A' = 2 c M² A², with the solution A₀ / (1 − 2 c M² A₀ t); and long after the end of all bounds."""
    found = alignment.mass_bound(0.1, 0.0, 2.0, [0.0, 1.0, 2.5])
    np.testing.assert_allclose(found, [0.1, 0.1 / 0.6, np.inf], rtol=1e-15)
    np.testing.assert_allclose(alignment.mass_bound(0.1, 1e-9, 2.0, 1.0), found[1], rtol=1e-8)
    assert alignment.growth_bound(1e-3, 1.0, 1.0, [1e4]) == np.inf


def test_what_the_landscape_is_not_made_for():
    problem, model = random_problem(5, 3), TwoLayerReLU(3, 4)
    two = Problem(problem.X, np.ones((5, 2)))
    for run, words in (
        (lambda: alignment.landscape(two), "one output"),
        (lambda: alignment.landscape(problem, slope=-0.1), "slope"),
        (lambda: alignment.landscape(problem, outputs=np.ones(4)), "outputs"),
        (lambda: alignment.sweep(problem), "two inputs"),
        (lambda: alignment.landscape(problem).path(np.ones(3), 2.0, 0), "sign must be 1 or -1"),
        (lambda: alignment.landscape(problem).path(np.ones(3), np.inf), "stays, and finite"),
        (lambda: alignment.landscape(problem).reached(2), "sign must be 1 or -1"),
        (lambda: alignment.landscape(problem).attractors(0), "sign must be 1 or -1"),
        (lambda: threshold.population(np.ones(3), np.eye(2)), "moment"),
        (lambda: orthogonal.interpolator(Problem(np.zeros((2, 3)), np.ones(2))), "not zero"),
        (lambda: alignment.curvature(Problem(problem.X, np.ones(5), loss="exponential")), "bounded second"),
        (lambda: alignment.early(TwoLayerReLU(3, 4, train_outer=False), problem, np.ones(16)), "both layers"),
    ):
        with pytest.raises(ValueError, match=words):
            run()
    short = model.pack([np.ones((4, 3)), np.full((1, 4), 1e-3)])
    start = model.init("balanced", 1e-6)
    with pytest.raises(Refused, match="outputs are negligible"):
        alignment.early(model, Problem(problem.X, np.zeros(5)), start).predict(1.0)
    with pytest.raises(Refused, match="at the start"):
        alignment.early(model, problem, short, small=np.inf).predict(1.0)
    with pytest.raises(ValueError, match="a must be at least"):
        alignment.early(model, problem, short, force=True).predict(1.0)


# ---- the two half-data fits ----------------------------------------------------------------------------------


def test_the_second_moment_is_that_of_the_conditioned_law():
    c = 0.3
    moment = quad(lambda x: x * x * norm.pdf(x), c, np.inf, epsabs=1e-13)[0] / norm.sf(c)
    np.testing.assert_allclose(threshold.second_moment(3, c), np.diag([moment, 1.0, 1.0]), rtol=1e-12)
    far = 40.0  # the tail is below the least double: x² = c² + 2 + O(1/c²)
    assert abs(threshold.second_moment(1, far)[0, 0] - far**2 - 2) < 2 / far**2


@pytest.mark.parametrize("d", [2, 5])
def test_the_landscape_tends_to_one_vector_like_the_root_of_n(d):
    """‖D_n − E D‖ ~ n^(−1/2), with E D = ½ Σβ for every w; the same with another margin's mean does not vanish."""
    mean = threshold.population(np.eye(d)[0], threshold.second_moment(d, 0.3))
    sizes, found = np.array([100, 1000, 10_000]), []
    for n in sizes:
        rows = [Problem(*datasets.linear_teacher(n, d, 0.3, seed, 0.3)) for seed in range(6)]
        found.append(np.mean([threshold.deviation(row, mean, 500) for row in rows]))
    slope = np.polyfit(np.log(sizes), np.log(found), 1)[0]
    assert abs(slope + 0.5) < 0.06
    wrong = threshold.population(np.eye(d)[0], threshold.second_moment(d, 1.0))
    assert threshold.deviation(rows[0], wrong, 500) > 0.5 * np.linalg.norm(wrong - mean)


def test_half_fits_are_two_regressions():
    from sklearn.linear_model import LinearRegression

    x, y = datasets.linear_teacher(60, 4, noise=0.3, rng=0, margin=0.3)
    fits = threshold.half_fits(Problem(x, y, factor=0.7), np.eye(4)[0])
    total = 0.0
    for sign, b in ((1, fits.plus), (-1, fits.minus)):
        half = sign * x[:, 0] > 0
        ols = LinearRegression(fit_intercept=False).fit(x[half], y[half, 0])
        np.testing.assert_allclose(b, ols.coef_, rtol=1e-12)
        total += np.sum((ols.predict(x[half]) - y[half, 0]) ** 2)
    np.testing.assert_allclose(fits.loss, 0.7 * total, rtol=1e-12)
    np.testing.assert_allclose(fits.rss_plus + fits.rss_minus, total, rtol=1e-12)
    with pytest.raises(ValueError, match="independent samples on each side"):
        threshold.half_fits(Problem(x[:6], y[:6]), np.eye(4)[0])


def test_the_expected_loss_and_excess_risk():
    """E[2 L] = σ² (1 − 2d/n), exactly; the excess risk tends to 2 d σ²/n, and is that of the network on new inputs."""
    n, d, sigma, teacher = 100, 3, 0.3, np.eye(3)[0]
    moment = threshold.second_moment(d, 0.3)
    fits = [
        threshold.half_fits(Problem(*datasets.linear_teacher(n, d, sigma, seed, 0.3)), teacher)
        for seed in range(600)
    ]
    losses = np.array([2 * fit.loss for fit in fits])
    error = losses.std() / np.sqrt(len(losses))
    assert abs(losses.mean() - sigma**2 * (1 - 2 * d / n)) < 4 * error
    excess = np.array([fit.excess(teacher, moment) for fit in fits])
    assert 1.0 < excess.mean() / (2 * d * sigma**2 / n) < 1.15
    x, _ = datasets.linear_teacher(40_000, d, rng=5, margin=0.3)
    off = (fits[0].outputs(x) - x @ teacher) ** 2
    assert abs(off.mean() - excess[0]) < 4 * off.std() / 200 + 0.02 * excess[0]


def half_data(n, margin, scale, seed=0, d=5, width=20):
    problem = Problem(*datasets.linear_teacher(n, d, 0.3, seed, margin))
    model = TwoLayerReLU(d, width)
    return model, problem, model.init("dominated", scale / np.sqrt(width), rng=seed + 1)


@pytest.mark.parametrize("kind", ["balanced", "dominated"])
def test_the_flow_ends_in_the_two_fits(kind):
    model, problem, _ = half_data(150, 1.0, 1e-6)
    start = model.init(kind, 1e-6, rng=4)
    teacher = np.eye(5)[0]
    prediction = threshold.limit(model, problem, start, teacher)
    assert prediction.applies, prediction.hypotheses
    run = gflow.flow(model, problem, start, np.inf)
    fits = threshold.half_fits(problem, teacher)
    assert abs(run.loss[-1] - (fits.rss_plus + fits.rss_minus) / (2 * 150)) < 1e-10
    assert gflow.compare(run, prediction).error[-1] < 1e-7
    w, a = model.unpack(run.end)
    np.testing.assert_allclose(a[0, a[0] > 0] @ w[a[0] > 0], fits.plus, atol=1e-7)
    np.testing.assert_allclose(a[0, a[0] < 0] @ w[a[0] < 0], fits.minus, atol=1e-7)
    np.testing.assert_array_equal(
        gflow.observe.activation_pattern(model, problem, run.end), np.outer(np.sign(a[0]), fits.side)
    )
    assert np.abs(threshold.escape_rates(model, problem, run.end, fits)).max() < 1e-12


def test_the_limit_is_refused_with_the_number_that_fails():
    teacher = np.eye(5)[0]
    for arguments, words in (
        ((150, 1.0, 0.3), "outputs are negligible until then"),
        ((20, 0.3, 1e-6, 1), "sides"),
    ):
        model, problem, start = half_data(*arguments)
        with pytest.raises(Refused, match=words):
            threshold.limit(model, problem, start, teacher).predict(np.inf)
    with pytest.raises(ValueError, match="TwoLayerReLU"):
        threshold.limit(gflow.DeepLinear((5, 1)), problem, np.ones(5), teacher)


def test_small_neurons_leave_the_fits_at_the_rate_of_its_residuals():
    """One small neuron beside the two fits: it grows as the landscape of the residuals says, while it is small."""
    model, problem, start = half_data(60, 1.0, 1e-6, seed=3, width=12)
    teacher = np.eye(5)[0]
    fits = threshold.half_fits(problem, teacher)
    w, a = np.zeros((3, 5)), np.zeros(3)
    for j, (b, s) in enumerate(((fits.plus, 1), (fits.minus, -1))):
        a[j], w[j] = s * np.sqrt(np.linalg.norm(b)), s * b / np.sqrt(np.linalg.norm(b))
    small = TwoLayerReLU(5, 3)
    land = alignment.landscape(problem, 0.0, fits.outputs(problem.X))
    w[2] = 1e-9 * land.reached(1, 20)[0].direction
    a[2] = 1e-9
    theta = small.pack([w, a[None]])
    rates = threshold.escape_rates(small, problem, theta, fits)
    assert np.abs(rates[:2]).max() < 1e-12 and rates[2] > 1e-3
    run = gflow.flow(small, problem, theta, 1.0, rtol=1e-11)
    growth = np.log(small.outer_layer(run.end)[0, 2] / 1e-9)
    np.testing.assert_allclose(growth, rates[2], rtol=1e-6)


# ---- three points, and orthogonal inputs ---------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.02, 0.1, 0.16])
def test_three_points_lie_in_their_boxes_and_have_one_extremal_vector(eta):
    x, y = datasets.three_points(eta)
    boxes = [(-1, -1 + eta, 1, 1 + eta), (-eta, eta, 1 - eta, 1 + eta), (1 - eta, 1, 1, 1 + eta)]
    for point, (left, right, low, high) in zip(x, boxes, strict=True):
        assert left <= point[0] <= right and low <= point[1] <= high
    assert np.all((y[[0, 2]] >= 1) & (y[[0, 2]] <= 1 + eta)) and 0 < y[1, 0] <= eta
    problem = Problem(x, y)
    land = alignment.landscape(problem)
    (only,) = land.attractors(1)
    np.testing.assert_allclose(only.vector, y[:, 0] @ x / 3, atol=1e-15)
    assert np.all(x @ only.direction > 0) and land.attractors(-1) == ()


def aligned_case(labels, c=1.5):
    rng = np.random.default_rng(0)
    x = c * np.linalg.qr(rng.standard_normal((5, 5)))[0][: len(labels)]
    problem = Problem(x, labels)
    ends = orthogonal.interpolator(problem)
    model = TwoLayerReLU(5, 3)
    w, a = np.zeros((3, 5)), np.array([1e-3, 2e-3, -1.5e-3])
    for j, vector in enumerate((ends.plus, ends.plus, ends.minus)):
        w[j] = abs(a[j]) * vector / np.linalg.norm(vector)
    return model, problem, model.pack([w, a[None]]), ends


def test_aligned_neurons_on_orthogonal_inputs_follow_the_closed_form():
    model, problem, start, ends = aligned_case([1.0, -0.7, 0.5, -1.2])
    prediction = orthogonal.aligned(model, problem, start)
    run = gflow.flow(model, problem, start, np.linspace(0.0, 40.0, 81), rtol=1e-12)
    closed = prediction.predict(run.t)
    assert np.abs(run.loss - closed).max() < 1e-10 * closed[0]
    # half of w+ is there at ln(B/b0 − 1) / (2‖D+‖), with ‖D+‖ = c² B / n
    full, first = np.linalg.norm(ends.plus), 5e-6
    half = np.log(full / first - 1) / (2 * 1.5**2 * full / 4)
    only = gflow.flow(model, problem, start, [half], rtol=1e-12)
    w, a = model.unpack(only.end)
    np.testing.assert_allclose(np.sum(a[0, :2] ** 2), 0.5 * full, rtol=1e-9)
    limit = gflow.flow(model, problem, start, np.inf)
    np.testing.assert_allclose(0.5 * np.sum(limit.end**2), ends.half_norm, rtol=1e-10)
    y = problem.Y[:, 0]
    parts = [np.sqrt(np.sum(y[s * y > 0] ** 2 / 1.5**2)) for s in (1, -1)]
    np.testing.assert_allclose(ends.half_norm, sum(parts), rtol=1e-14)


def test_aligned_refuses_other_starts_and_inputs():
    model, problem, start, _ = aligned_case([1.0, -0.7, 0.5, -1.2])
    for what, arguments in (
        ("neurons along", (model, problem, model.init("balanced", 1e-3))),
        ("orthogonal inputs", (model, Problem(problem.X + 0.1, problem.Y), start)),
        ("balanced", (model, problem, start * np.r_[np.full(15, 0.5), np.ones(3)])),
    ):
        with pytest.raises(Refused, match=what):
            orthogonal.aligned(*arguments).predict(1.0)


def test_forced_beside_labels_of_one_sign_the_other_neurons_decay_to_zero():
    """b' = −2 κ b², κ = c²/n = ½, beside b' = 2 κ b (B − b)."""
    model, problem = gflow.TwoLayerReLU(2, 2), Problem(np.eye(2), np.array([1.0, 0.5]))
    full, first = np.sqrt(1.25), 1.25e-4
    w = np.array([[0.01, 0.005], [0.01, 0.005]])
    prediction = orthogonal.aligned(
        model, problem, model.pack([w, np.sqrt(first) * np.array([[1.0, -1.0]])]), force=True
    )
    assert not prediction.applies
    t = np.array([0.0, 3.0, 50.0])
    plus = full / (1 + (full / first - 1) * np.exp(-full * t))
    minus = first / (1 + first * t)
    np.testing.assert_allclose(prediction.predict(t), 0.25 * ((full - plus) ** 2 + minus**2), rtol=1e-12)
