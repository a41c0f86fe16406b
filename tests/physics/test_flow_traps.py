"""Set-ups in which an ordinary solver, or any solver, goes wrong without a word."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

import gflow

SCALAR = gflow.DeepLinear((1, 1, 1))
UNIT = gflow.Problem.factorization([[1.0]])


def scalar_field(t, y):
    """The flow of L = (a b - 1)^2 / 2."""
    return (1.0 - y[0] * y[1]) * y[::-1]


def half_way(t, y):
    return y[0] * y[1] - 0.5


def flagged(run):
    return any(warning.startswith("unstable manifold") for warning in run.status.warnings)


@pytest.mark.parametrize(("start", "scipys_error"), [(1e-8, 0.03), (1e-12, 0.10)])
def test_the_time_of_escape_from_the_saddle(start, scipys_error):
    """u = a b = 1 / (1 + (1 / u0 - 1) e^(-2 t)) is 1/2 at t = log(1 / u0 - 1) / 2."""
    escape = 0.5 * np.log(1 / start**2 - 1)
    theta0 = np.full(2, start)
    naive = solve_ivp(scalar_field, (0, 3 * escape), theta0, "RK45", events=half_way).t_events[0][0]
    assert abs(naive / escape - 1) > scipys_error

    run = gflow.flow(SCALAR, UNIT, theta0, 1.5 * escape, dense=True)
    found = brentq(lambda t: half_way(t, run.at(t)), 0.5 * escape, 1.4 * escape, xtol=1e-13)
    assert abs(found / escape - 1) <= 1e-7
    assert run.status.ok and not flagged(run)


@pytest.mark.parametrize("start", [1e-4, 1e-20, 1e-60, 1e-150])
def test_no_start_is_too_small(start):
    escape = 0.5 * (-2 * np.log(start) + np.log1p(-(start**2)))
    run = gflow.flow(SCALAR, UNIT, [start, start], np.linspace(0.0, escape, 6))
    exact = 1 / np.sqrt(1 + np.exp(2 * (escape - run.t)))
    np.testing.assert_allclose(run.theta, np.stack([exact, exact], axis=1), rtol=1e-7)


def test_a_nearly_antisymmetric_start_ends_in_the_right_minimum():
    """a + b keeps its sign, yet starts a thousandth of the size of a - b.

    Runge-Kutta's growth factors are positive here, and explicit methods keep the sign at any
    tolerance; an implicit one that has lost the start below its atol does not.
    """
    theta0 = 1e-6 * np.array([1.0, -(1.0 - 1e-3)])
    end = 100.0
    referee = solve_ivp(scalar_field, (0, end), theta0, "DOP853", rtol=1e-13, atol=1e-30).y[:, -1]
    np.testing.assert_allclose(referee, [1.0, 1.0], atol=1e-10)
    naive = solve_ivp(scalar_field, (0, end), theta0, "Radau").y[:, -1]
    assert naive[0] < -0.5

    for sign in (1, -1):
        times = np.linspace(0.0, end, 201)
        run = gflow.flow(SCALAR, UNIT, sign * theta0, times)
        np.testing.assert_allclose(run.end, sign * referee, rtol=1e-6)
        assert np.all(sign * run.theta.sum(axis=1) > 0)


def zero_balanced(sign):
    """3 x 3, two layers, W_2^T W_2 = W_1 W_1^T, with the determinant of W_2 W_1 of the given sign."""
    rng = np.random.default_rng(0)
    u, v, frame = (np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(3))
    u[:, 2] *= sign * np.linalg.det(u) * np.linalg.det(v)
    strength = np.array([0.3, 0.25, 0.2])
    model = gflow.DeepLinear((3, 3, 3))
    theta0 = model.pack([frame * strength @ v.T, u * strength @ frame.T])
    assert np.sign(np.linalg.det(model.end_to_end(theta0))) == sign
    return model, gflow.Problem.factorization(np.diag([2.0, 1.5, 1.0])), theta0


def test_a_determinant_of_the_wrong_sign_ends_in_a_saddle_and_is_flagged():
    """From balance the determinant never changes sign: the exact flow tends to rank 2, loss 1/2.

    Rounding pushes it off the stable manifold: what a long run then shows is no property of the
    flow, and the status must say so; the drift of the invariants does not.
    """
    model, problem, theta0 = zero_balanced(-1)
    short = gflow.flow(model, problem, theta0, np.linspace(0.0, 12.0, 13))
    assert not flagged(short)
    # where the smallest mode is still above its rounding the sign is that of the start
    assert np.all(np.linalg.det(model.end_to_end(short.theta[:8])) < 0)
    np.testing.assert_allclose(short.loss[-1], 0.5, atol=1e-3)

    long = gflow.flow(model, problem, theta0, 100.0)
    assert long.status.code == "finished" and flagged(long) and not long.status.ok
    assert long.gauges.invariant_drift.max() < 1e-6
    assert long.loss[-1] < 0.1  # it has left the saddle to which the exact flow tends
    assert "error_estimate" in str(long.status)


def test_a_determinant_of_the_right_sign_is_not_flagged():
    model, problem, theta0 = zero_balanced(1)
    run = gflow.flow(model, problem, theta0, 100.0)
    assert run.status.ok and run.loss[-1] < 1e-12


def test_the_unstable_symmetric_manifold_is_flagged():
    """W_2 = W_1^T stays so exactly, and then W is positive semidefinite: it cannot reach -1."""
    model, problem = gflow.DeepLinear((2, 2, 2)), gflow.Problem.factorization(np.diag([1.0, -1.0]))
    theta0 = model.init("identity", scale=0.1)
    assert gflow.flow(model, problem, theta0, 5.0).status.ok
    long = gflow.flow(model, problem, theta0, np.linspace(0.0, 60.0, 4))
    assert flagged(long)
    # here even rounding keeps the symmetry, so that the states alone would not tell
    first, second = model.unpack(long.theta)
    np.testing.assert_array_equal(first, second.transpose(0, 2, 1))
    assert long.loss[-1] == pytest.approx(0.5)


@pytest.mark.parametrize("seed", range(5))
def test_ordinary_runs_from_small_random_starts_are_not_flagged(seed):
    rng = np.random.default_rng(seed)
    model = gflow.DeepLinear((4, 3, 2))
    problem = gflow.Problem(rng.standard_normal((20, 4)), rng.standard_normal((20, 2)))
    run = gflow.flow(model, problem, model.init("gaussian", scale=1e-3, rng=seed), 100.0)
    assert run.status.ok, run.status
    assert run.error_estimate().theta[-1] < 1e-6


@pytest.mark.parametrize("coords", ["plain", "log"])
def test_what_has_failed_can_still_be_looked_at(coords):
    """A flow whose gradient overflows at once."""
    x = np.random.default_rng(0).standard_normal((4, 6))
    problem, model = gflow.Problem(x, x @ [1, -0.8, 0, 0, 0, 0]), gflow.Diagonal(6)
    run = gflow.flow(model, problem, np.full(12, 1e200), 1.0, coords=coords)
    assert np.isfinite(run.theta).all() and run.loss.shape == run.t.shape
    assert run.status.code == "non_finite" and "not measured" in run.status.message
    assert np.isnan(run.sensitivity())


def test_zeros_have_no_logarithm_to_follow_for_ever():
    problem, model = gflow.Problem(np.eye(2), [1.0, 2.0]), gflow.Diagonal(2)
    assert gflow.flow(model, problem, np.zeros(4), np.inf).status.code == "saddle"
    with pytest.raises(ValueError, match="coords must be 'plain'"):
        gflow.flow(model, problem, np.zeros(4), np.inf, coords="log")


def lost(run):
    return any(warning.startswith("conserved quantities lost") for warning in run.status.warnings)


def test_a_sign_that_rounding_changed_shows_in_what_is_conserved():
    """w- tends to 0 from below like -1/s and never passes it: the exact flow stays at log 2."""
    problem, model = gflow.Problem([[1.0]], [-1.0], loss="logistic"), gflow.Diagonal(1, depth=3)
    starts = [[1e-3, -w] for w in (0.01, 0.02, 0.03, 0.05)]
    runs = [gflow.flow(model, problem, start, [0.9, 20.0], clock="loss") for start in starts]
    passed = [run for run in runs if run.end[1] > 0.0]
    assert passed, "none of the starts has met rounding: others are wanted"
    for run in passed:
        assert run.gauges.invariant_drift[-1] > 0.5
        assert lost(run) and not run.status.ok
    assert not any(lost(run) for run in runs if run.end[1] < 0.0)


@pytest.mark.parametrize(
    ("label", "t", "more"),
    [
        (-1.0, [1e3, 1e6], {}),
        (0.0, np.inf, {}),  # the limit, 0, is extrapolated: what is conserved says nothing there
        (-1.0, np.inf, {}),
        (1.0, 50.0, {"coords": "log"}),
        (1.0, 50.0, {"rtol": 1e-2}),
    ],
)
def test_what_is_conserved_is_not_called_lost_without_need(label, t, more):
    run = gflow.flow(gflow.Diagonal(1, depth=3), gflow.Problem([[1.0]], [label]), [0.5, -0.4], t, **more)
    assert not lost(run), run.status


def test_what_is_conserved_falls_with_the_weight_decay():
    problem = gflow.Problem([[1.0]], [2.0], weight_decay=0.1)
    run = gflow.flow(gflow.DeepLinear((1, 1, 1)), problem, [1.0, 0.2], 30.0)
    assert not lost(run), run.status


def test_a_status_says_what_could_not_be_measured():
    class Broken(gflow.DeepLinear):
        def invariants(self, theta):
            raise RuntimeError("no invariants today")

    run = gflow.flow(Broken((1, 1, 1)), UNIT, [0.5, 0.5], 1.0)
    assert run.status.ok and "not measured: no invariants today" in run.status.message


@pytest.mark.parametrize("method", ["auto", "tsit5", "dop853"])
def test_no_step_leaves_the_range_of_double_precision(method):
    """At rest steps grow tenfold each time."""
    times, options = [1.0, 1e300, 1.7e308], {"method": method, "max_steps": 1000}
    run = gflow.flow(SCALAR, UNIT, [1.0, 1.0], times, **options)
    assert run.outcome.code == "step_too_small" and "beyond the range" in run.outcome.message
    assert 1e307 < run.t[-1] < np.inf and np.all(run.theta == 1.0)
    many = gflow.ensemble(SCALAR, UNIT, np.ones((9, 2)), times, **options)
    for one in many:
        assert one.outcome.code == "step_too_small" and one.counts["accepted"] == run.counts["accepted"]
