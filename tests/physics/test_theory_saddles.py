"""Successive saddles against scikit-learn's Lasso, mirror flows and gflow's own flows from tiny starts."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from diagonal_referee import equal_start, mirror_flow, regression
from scipy.integrate import solve_ivp
from scipy.optimize import brentq, lsq_linear
from sklearn.linear_model import Lasso, lars_path

import gflow
from gflow import Diagonal, Problem
from gflow.theory import bias, saddles
from gflow.theory.prediction import Refused

#: Berthier's example: M ≻ 0 with entries ≤ 0 off the diagonal.
M = np.array([[2.0, -0.5, -0.3], [-0.5, 1.5, -0.4], [-0.3, -0.4, 1.0]])
R = np.array([3.0, 1.0, -0.2])


def example(seed):
    """A design of 3 samples and 5 columns; with seeds 36 and 178 a coordinate leaves again."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, 5))
    return x, x @ (rng.normal(size=5) * (rng.random(5) < 0.7))


def wider_example(seed):
    """A design of 5 samples and 7 columns: all come one after the other (254), or one leaves and comes back (193)."""
    x = np.random.default_rng(seed).normal(size=(5, 7))
    return x, x @ [3.0, -2.0, 1.0, 0.0, 0.0, 0.0, 0.0]


EXAMPLES = {
    "no coordinate leaves": wider_example(254),
    "one leaves": wider_example(193),
    "one leaves, longer": example(36),
    "one leaves, shorter": example(178),
}


def tiny_flow(x, y, alpha, t, **options):
    """The flow of u ∘ v from u = √2 α, v = 0, at accelerated times, in logarithmic coordinates."""
    model = Diagonal(x.shape[1], form="product")
    times = np.log(1 / alpha) * np.asarray(t)
    return gflow.flow(model, Problem(x, y), model.init(scale=alpha), times, coords="log", **options)


def halfway(path, run):
    """Times at which the loss, which only falls, is halfway from one saddle's to the next one's."""
    levels = 0.5 * (path.loss[1:] + path.loss[:-1])
    end = run.t[-1]
    return np.array(
        [brentq(lambda t, l=l: run.objective.loss(run.at(t)) - l, 0.0, end, rtol=1e-14) for l in levels]
    )


def designs():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        n, d = rng.integers(2, 8), rng.integers(2, 12)
        x = rng.normal(size=(n, d))
        sparse = rng.normal(size=d) * (rng.random(d) < 0.4)
        y = rng.normal(size=n) if seed % 2 or not sparse.any() else x @ sparse
        yield x, y, saddles.successive(x, y, 1 / (2 * n))


def middles(path):
    return np.append(0.5 * (path.times[1:] + path.times[:-1]), 1.5 * path.times[-1])


def test_jumps_and_saddles_of_random_designs():
    left = 0
    for x, y, path in designs():
        n, d = x.shape
        np.testing.assert_allclose(path.times[0], n / np.abs(x.T @ y).max(), rtol=1e-12)
        assert np.all(np.diff(path.times) > 0) and np.all(np.diff(path.loss) < 0)
        for eta, beta in zip(path.dual, path.beta[1:], strict=True):
            assert np.abs(eta).max() <= 1 + 1e-12
            signs = np.where(np.abs(eta) == 1, np.sign(eta), 0)
            active = np.flatnonzero(signs)
            columns = x[:, active] * signs[active]
            referee = columns @ lsq_linear(columns, y, (0, np.inf), method="bvls", tol=1e-14).x
            assert not beta[signs == 0].any() and np.all(beta * signs >= 0)
            np.testing.assert_allclose(x @ beta, referee, atol=1e-7)
        if d > n:
            assert np.abs(x @ path.beta[-1] - y).max() < 1e-10
            np.testing.assert_allclose(path.beta[-1], bias.minimal_l1(x, y).beta, atol=1e-9)
        else:
            np.testing.assert_allclose(path.beta[-1], np.linalg.lstsq(x, y, rcond=None)[0], atol=1e-9)
        left += any(event.kind == "deactivates" for event in path.events)
        # what is at its threshold at the time average too solves the Lasso
        t = np.linspace(1.01 * path.times[0], 1.3 * path.times[-1], 5)
        mean, eta, defect = path.average(t), path.dual_at(t), path.lasso_defect(t)
        np.testing.assert_allclose(eta, -t[:, None] * (mean @ x.T - y) @ x / n, atol=1e-9 * t.max())
        for when, average, off in zip(t, mean, defect, strict=True):
            lasso = Lasso(1 / when, fit_intercept=False, tol=1e-13, max_iter=10**6).fit(x, y).coef_
            same = np.abs(lasso - average).max() <= 1e-5 * (1 + np.abs(average).max())
            assert same or off > 1e-9
        if not any(event.kind == "deactivates" for event in path.events):
            assert defect.max() < 1e-9
    assert 5 < left < 35


def test_jump_times_are_knots_of_the_lars_path_where_nothing_deactivates():
    compared = 0
    for x, y, path in designs():
        if any(event.kind == "deactivates" for event in path.events):
            continue
        knots, active, _ = lars_path(x, y, method="lasso")
        np.testing.assert_allclose(1 / knots[: len(path.times)], path.times, rtol=1e-7)
        assert [event.coordinate for event in path.events] == [int(i) for i in active[: len(path.times)]]
        compared += 1
    assert compared > 5


def test_lasso_defect_sees_a_deactivation():
    path = saddles.successive(*example(178), 1 / 6)
    gone = next(event.time for event in path.events if event.kind == "deactivates")
    assert path.lasso_defect([0.99 * gone])[0] < 1e-12 < 1e-2 < path.lasso_defect([1.5 * gone])[0]


@pytest.mark.parametrize(
    "name, worst",
    [
        ("no coordinate leaves", 1e-4),
        ("one leaves", 1e-4),
        ("one leaves, longer", 2e-4),
        ("one leaves, shorter", 0.06),
    ],
)
def test_flow_stays_at_the_saddles(name, worst):
    """Within 1e-4 at α = 1e-16 where the stays are long enough; the other two have one that is nearly, or not."""
    x, y = EXAMPLES[name]
    path = saddles.successive(x, y, 0.5 / len(y))
    left = [event.kind for event in path.events].count("deactivates")
    assert left == ("leaves," in name or name == "one leaves") and not path.degenerate
    t = middles(path)
    errors = []
    for alpha in (1e-16, 1e-32, 1e-64):
        run = tiny_flow(x, y, alpha, t)
        assert run.status.ok
        beta = run.spec["model"].predictor(run.theta)
        errors.append(np.abs(beta - path.at(t)).max(axis=1))
        if alpha == 1e-16:
            referee = mirror_flow(
                "product", 2, alpha, x, y, 0.5 / len(y), t * np.log(1 / alpha), rtol=1e-9, atol=1e-11
            )
            np.testing.assert_allclose(beta, referee, atol=1e-6)
    assert errors[0].max() < worst
    # the error of a stay is a power of α: where that is squared, so is the error
    for one, other in pairwise(errors):
        assert np.all(other < np.maximum(40 * one**2, 1e-9))


@pytest.mark.parametrize("name", EXAMPLES)
def test_jump_times_are_approached_like_one_over_the_logarithm(name):
    x, y = EXAMPLES[name]
    path = saddles.successive(x, y, 0.5 / len(y))
    alphas = np.array([1e-16, 1e-24, 1e-32, 1e-48, 1e-64])
    if name == "one leaves, shorter":  # whose first stay is too short for the first of them
        alphas = np.array([1e-48, 1e-64, 1e-100])
    logs = np.log(1 / alphas)
    runs = [tiny_flow(x, y, alpha, 1.5 * path.times[-1], dense=True, rtol=1e-10) for alpha in alphas]
    late = np.array([halfway(path, run) for run in runs]) / logs[:, None] - path.times
    assert np.all(np.abs(late) < 200 / logs[:, None])
    slopes = np.polyfit(np.log(logs), np.log(np.abs(late)), 1)[0]
    print(f"{name}: jump times {path.times}, fitted slopes {slopes}")
    np.testing.assert_allclose(slopes, -1.0, atol=1e-3)
    # without that term, from the two smallest starts
    limits = path.times + (logs[-1] * late[-1] - logs[-2] * late[-2]) / (logs[-1] - logs[-2])
    np.testing.assert_allclose(limits, path.times, rtol=1e-7)


@pytest.mark.parametrize(
    "form, depth, alpha", [("product", 2, 1e-40), ("difference", 2, 1e-40), ("difference", 3, 1e-7), ("difference", 4, 1e-5)]
)  # fmt: skip
def test_saddles_of_every_form_in_the_time_of_the_flow(form, depth, alpha):
    x, y = example(36)
    theta0 = equal_start(form, alpha, 5)
    problem = Problem(x, y, factor=0.3)
    model = Diagonal(5, depth, form)
    found = saddles.saddles(model, problem, theta0)
    unit = {2: np.log(1 / alpha), 3: 1 / (3 * alpha), 4: 1 / (8 * alpha**2)}[depth]
    unit *= 0.5 if (form, depth) == ("difference", 2) else 1.0
    np.testing.assert_allclose(found.times, unit * saddles.successive(x, y, 0.3).times, rtol=1e-12)
    t = middles(found)
    beta = mirror_flow(form, depth, alpha, x, y, 0.3, t, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(beta, found.at(t), atol=1e-5)
    run = gflow.flow(model, problem, theta0, t, coords="log" if depth == 2 else "plain")
    np.testing.assert_allclose(model.predictor(run.theta), found.at(t), atol=1e-5)


def test_shape_of_the_start_sets_thresholds_at_larger_depth():
    x, y = example(36)
    alpha = 1e-6 * np.array([3.0, 0.5, 1.0, 2.0, 0.4])
    model, problem = Diagonal(5, 3), Problem(x, y)
    shaped = saddles.saddles(model, problem, np.concatenate([alpha, alpha]))
    equal = saddles.saddles(model, problem, np.full(10, 1e-6))
    assert [e.coordinate for e in shaped.events] != [e.coordinate for e in equal.events]
    t = middles(shaped)
    beta = mirror_flow("difference", 3, alpha, x, y, 1 / 6, t, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(beta, shaped.at(t), atol=1e-4)
    run = gflow.flow(model, problem, np.concatenate([alpha, alpha]), t)
    np.testing.assert_allclose(model.predictor(run.theta), shaped.at(t), atol=1e-4)


def test_incremental_learning_in_berthier_s_example():
    path = saddles.incremental(M, R)
    np.testing.assert_allclose(path.times, [1 / 3, 5 / 7, 87 / 47], rtol=1e-12)
    np.testing.assert_allclose(path.beta[-1], np.linalg.solve(M, R), rtol=1e-12)
    assert [event.kind for event in path.events] == 3 * ["activates"]
    log, t = np.log(1e16), middles(path)
    found = solve_ivp(
        lambda s, q: log * (R - M @ np.exp(q)),
        (0, t[-1]),
        np.full(3, -log),
        "Radau",
        t_eval=t,
        rtol=1e-9,
        atol=1e-9,
        jac=lambda s, q: -log * M * np.exp(q),
    )
    np.testing.assert_allclose(np.exp(found.y.T), path.at(t), atol=1e-5)


def test_incremental_learning_is_that_of_a_power_network():
    """θ = w² moves with −8 · factor · θ (M θ − r), and θ(0) = w(0)²."""
    x = np.linalg.cholesky(M).T
    y = np.linalg.solve(x.T, R)
    network = saddles.saddles(Diagonal(3, form="power"), Problem(x, y, factor=0.2), np.full(3, 1e-12))
    np.testing.assert_allclose(
        network.times * 8 * 0.2, saddles.incremental(M, R).times * np.log(1e24), rtol=1e-12
    )


def test_times_go_with_one_over_the_factor():
    x, y = example(178)
    one, other = (saddles.successive(x, y, f) for f in (1.0, 1e-3))
    np.testing.assert_allclose(1e-3 * other.times, one.times, rtol=1e-12)
    np.testing.assert_allclose(other.beta, one.beta, atol=1e-13)


def test_general_position_sees_a_dependence_if_it_looks_at_all_sets():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5))
    fine = saddles.general_position(x)
    assert fine.exact and fine.total == 40 and fine.least > 1e-4 and "all 40 of 40" in str(fine)
    for columns in (-x[:, 0], 0.3 * x[:, 0] - 0.7 * x[:, 1], 1.4 * x[:, 2] - 0.4 * x[:, 1]):
        x[:, 3] = columns
        assert saddles.general_position(x).least < 1e-15
    x[:, 3] = 0.3 * x[:, 0] + 0.8 * x[:, 1]  # a linear, but no affine dependence
    assert saddles.general_position(x).least > 1e-4
    wide = saddles.general_position(rng.normal(size=(5, 40)), most=50)
    assert not wide.exact and wide.looked_at == 50 and wide.total == 3838380 * 32
    assert "random sample of 50 of" in str(wide)
    assert saddles.general_position(rng.normal(size=(6, 2))).total == 2


def test_path_is_a_prediction_with_measured_hypotheses():
    x, y = example(36)
    problem, theta0 = Problem(x, y), equal_start("product", 1e-16, 5)
    prediction = saddles.path(Diagonal(5, form="product"), problem, theta0)
    assert prediction.applies and prediction.observable == "end_to_end"
    np.testing.assert_allclose(prediction.hypotheses[0].defect, 1 / np.log(1e16), rtol=1e-12)
    assert "all 40 of 40" in prediction.hypotheses[1].name
    assert prediction.predict([0.0, np.inf]).shape == (2, 1, 5)
    np.testing.assert_allclose(prediction.predict(np.inf)[0, 0], bias.minimal_l1(x, y).beta, atol=1e-12)
    assert np.isinf(prediction.bound([1.0])).all()
    with pytest.raises(Refused, match="small start.*defect 0.22 > 0.05"):
        saddles.path(Diagonal(5, form="product"), problem, equal_start("product", 1e-2, 5)).predict(0.0)
    with pytest.raises(Refused, match="a weight of 1.5 is no small start"):
        saddles.path(Diagonal(5), problem, np.full(10, 1.5))


@pytest.mark.parametrize(
    "depth, alpha, number", [(6, 1e-100, "1e400 / 24"), (3, 1e-320, "1e320 / 3"), (10, 1e-60, "1e480 / 80")]
)
def test_thresholds_beyond_the_largest_float_are_refused_with_the_number(depth, alpha, number):
    problem, model = Problem(*example(36)), Diagonal(5, depth)
    with pytest.raises(Refused, match=f"depth {depth} has {number}"):
        saddles.path(model, problem, model.init(scale=alpha))
    with pytest.raises(Refused, match="largest float"):
        saddles.saddles(model, problem, model.init(scale=alpha))


def test_jumps_beyond_the_largest_float_are_refused_and_zeros_have_no_threshold():
    x, y = example(36)
    with pytest.raises(Refused, match="later than the largest float.*least threshold is 1e\\+308"):
        saddles.successive(x, 1e-6 * y, 0.1, up=1e308, down=1e308)
    model, problem = Diagonal(5, 6), Problem(x, y)
    theta0 = model.init(scale=1e-20)
    theta0[[1, 6]] = 0.0  # both weights of one coordinate
    found = saddles.saddles(model, problem, theta0)
    assert found.up[1] == found.down[1] == np.inf and not found.beta[:, 1].any()
    others = saddles.successive(np.delete(x, 1, axis=1), y, 1 / 6)
    np.testing.assert_allclose(np.delete(found.beta, 1, axis=1), others.beta, atol=1e-12)
    np.testing.assert_allclose(found.times, others.times * 1e80 / 24, rtol=1e-12)


def test_values_at_the_ends_of_time():
    path = saddles.successive(*example(36), 1 / 6)
    average = path.average([0.0, 1e-300, path.times[0], 1e12 * path.times[-1], np.inf])
    assert not average[:3].any() and np.array_equal(average[4], path.beta[-1])
    np.testing.assert_allclose(average[3], path.beta[-1], atol=1e-10)
    np.testing.assert_array_equal(path.at([0.0, np.inf]), path.beta[[0, -1]])
    assert path.lasso_defect(0.0) == 0.0
    for call, wrong in (
        (path.at, np.nan), (path.at, -1.0), (path.average, np.nan), (path.dual_at, np.inf), (path.lasso_defect, np.inf)
    ):  # fmt: skip
        with pytest.raises(ValueError, match="t must be .*numbers >= 0"):
            call(wrong)


def test_closed_signs_leave_the_minimum_under_the_others():
    """What the last stay is where a direction is closed."""
    x, y = np.random.default_rng(1).normal(size=(6, 3)), np.arange(6.0) - 3
    path = saddles.successive(x, y, 1 / 12, down=np.inf)
    referee = lsq_linear(x, y, (0, np.inf), method="bvls", tol=1e-14)
    np.testing.assert_allclose(path.loss[-1], referee.cost / 6, rtol=1e-9)
    assert path.loss[-1] > 1.01 * saddles.successive(x, y, 1 / 12).loss[-1]


def test_a_tie_is_refused_with_the_number():
    problem = Problem(np.eye(3), [1.0, 1.0, 2.0])
    prediction = saddles.path(Diagonal(3), problem, np.full(6, 1e-20))
    with pytest.raises(Refused, match="at once.*defect inf"):
        prediction.predict(0.0)
    forced = saddles.path(Diagonal(3), problem, np.full(6, 1e-20), force=True)
    np.testing.assert_allclose(forced.predict(np.inf)[0, 0], [1.0, 1.0, 2.0], rtol=1e-12)


def test_nothing_to_learn_is_no_jump():
    path = saddles.successive(np.eye(3), np.zeros(3), 0.5)
    assert path.times.shape == (0,) and not path.beta.any() and path.beta.shape == (1, 3)
    assert not path.at([0.0, 5.0]).any()


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: saddles.successive(np.eye(3), np.ones(2), 0.5), "X has 3, y has 2"),
        (lambda: saddles.successive(np.eye(3), np.ones(3), 0.0), "factor must be a number > 0"),
        (lambda: saddles.successive(np.eye(3), np.ones(3), 0.5, up=0.0), "up must be > 0; got 0"),
        (
            lambda: saddles.successive(np.eye(3), np.ones(3), 0.5, up=[1, 2]),
            r"up must have shape \(\) or \(3,\); got \(2,\)",
        ),
        (lambda: saddles.successive(np.eye(3), np.ones(3), 0.5, down="a"), "down must be a real array"),
        (lambda: saddles.successive(np.eye(3), np.ones(3), 0.5, down=np.nan), "down must be > 0; got nan"),
        (lambda: saddles.incremental(np.diag([1.0, -1.0]), np.ones(2)), "least eigenvalue is -1"),
        (lambda: saddles.incremental([[1.0, 0.3], [0.0, 1.0]], np.ones(2)), "M must be symmetric"),
        (lambda: saddles.general_position(np.eye(3), most=0), "most must be a whole number"),
        (
            lambda: saddles.saddles(Diagonal(3), Problem(*regression(3, 4)), np.full(6, 0.1)),
            "fit the 4 inputs",
        ),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
