"""The flow against closed forms and conserved quantities, in units of the tolerance that was asked for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from cases import CASES, SOLVED
from scipy.integrate import solve_ivp

import gflow
from gflow.objective import Objective

RTOLS = 10.0 ** -np.arange(6.0, 12.0)
by_method = pytest.mark.parametrize("method", ["tsit5", "dop853", "bdf"])


def largest_error(theta, exact):
    return np.max(np.linalg.norm(theta - exact, axis=-1) / np.linalg.norm(exact, axis=-1))


def errors(case, method, rtol):
    """Largest relative errors at the saved times, and between them from the dense output."""
    times, between = np.linspace(0.0, case.end, 15), np.linspace(0.0, case.end, 401)
    run = gflow.flow(case.model, case.problem, case.theta0, times, method=method, rtol=rtol, dense=True)
    assert run.status.ok, run.status
    return largest_error(run.theta, case.exact(times)), largest_error(run.at(between), case.exact(between))


@by_method
def test_flow_equals_the_closed_form_to_the_tolerance(solved, method):
    measured = np.array([errors(solved, method, rtol) for rtol in RTOLS])
    units = measured / RTOLS[:, None]
    assert units.max() <= 30, units
    for error in measured.T:
        # below a few hundred roundings the tolerance no longer rules
        ruled = error > 300 * np.finfo(float).eps
        slope = np.polyfit(np.log(RTOLS[ruled]), np.log(error[ruled]), 1)[0]
        assert 0.7 <= slope <= 1.3, (slope, units)


@by_method
@pytest.mark.parametrize("case", [c for c in CASES if c.exact is None], ids=lambda c: c.name)
def test_flow_equals_scipy_at_tight_tolerance(case, method):
    times = np.linspace(0.0, case.end, 9)
    run = gflow.flow(case.model, case.problem, case.theta0, times, method=method)
    o = Objective(case.model, case.problem)
    settings = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-15, "t_eval": times}
    referee = solve_ivp(lambda t, y: -o.gradient(y), (0.0, case.end), case.theta0, **settings)
    assert largest_error(run.theta, referee.y.T) <= 30 * 1e-9


def test_auto_chooses_by_the_tolerance():
    case = CASES[0]
    for rtol, method in ((1e-3, "tsit5"), (1e-7, "tsit5"), (0.9e-7, "dop853"), (1e-9, "dop853")):
        run = gflow.flow(case.model, case.problem, case.theta0, 1.0, rtol=rtol)
        assert run.spec["method"] == "auto"
        assert run.methods.name.tolist() == [method]


def test_the_default_atol_resolves_the_smallest_block():
    model, problem = gflow.DeepLinear((3, 2, 3)), gflow.Problem.factorization(np.eye(3))
    theta0 = model.pack([np.full((2, 3), 1e-7), np.full((3, 2), 1e-2)])
    run = gflow.flow(model, problem, theta0, 1.0, rtol=1e-8)
    assert run.spec["atol"] == pytest.approx(1e-8 * 1e-3 * 1e-7)
    theta0[:6] = 0.0
    run = gflow.flow(model, problem, theta0, 1.0, rtol=1e-8)
    assert run.spec["atol"] == pytest.approx(1e-8 * 1e-3 * 1e-2)


@pytest.mark.parametrize("case", [c for c in CASES if hasattr(c.model, "imbalance")], ids=lambda c: c.name)
def test_invariants_drift_by_less_than_the_tolerance(case):
    run = gflow.flow(case.model, case.problem, case.theta0, np.linspace(0.0, case.end, 11))
    if not case.model.imbalance(case.theta0):
        assert run.gauges.invariant_drift is None
        return
    assert run.gauges.invariant_drift.max() <= 1e-9
    assert run.gauges.dissipation_defect.max() <= 1e-7


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize("depth", [2, 3, 4])
@pytest.mark.parametrize("kind", ["balanced", "gaussian"])
def test_the_imbalance_is_conserved_and_decays_with_the_weights(kind, depth, weight_decay):
    """Computed from the weights: W_{l+1}^T W_{l+1} - W_l W_l^T is its start times e^(-2 mu t)."""
    rng = np.random.default_rng(depth)
    model = gflow.DeepLinear((4, *(3,) * (depth - 1), 2))
    problem = gflow.Problem(
        rng.standard_normal((9, 4)), rng.standard_normal((9, 2)), weight_decay=weight_decay
    )
    times = np.linspace(0.0, 8.0, 9)
    run = gflow.flow(model, problem, model.init(kind, scale=0.5, rng=1), times)
    for below, above in zip(model.shapes[:-1], model.shapes[1:], strict=True):
        assert below[0] == above[1]
    weights = model.unpack(run.theta)
    for j in range(depth - 1):
        above, below = weights[j + 1], weights[j]
        grown, shrunk = above.transpose(0, 2, 1) @ above, below @ below.transpose(0, 2, 1)
        drift = (grown - shrunk) - (grown - shrunk)[0] * np.exp(-2 * weight_decay * times)[:, None, None]
        size = np.maximum(abs(grown), abs(shrunk)).max()
        assert abs(drift).max() <= 1e-9 * size
    assert run.gauges.invariant_drift.max() <= 1e-9
    assert run.gauges.invariant_drift[0] == 0
    if kind == "balanced":
        assert max(abs(m).max() for m in model.imbalance(run.theta[0])) <= 1e-15


def test_the_drift_is_seen_when_the_weights_are_not_those_of_a_flow():
    case = CASES[3]
    run = gflow.flow(case.model, case.problem, case.theta0, np.linspace(0.0, case.end, 5))
    run.theta[2:, 0] += 1e-5
    drift = dataclasses.replace(run).gauges.invariant_drift
    assert drift[:2].max() <= 1e-9 < 1e-6 < drift[2:].max()


def test_dissipation_defect_falls_with_the_tolerance():
    case = CASES[7]
    defects = []
    for rtol in (1e-5, 1e-7, 1e-9):
        run = gflow.flow(case.model, case.problem, case.theta0, np.linspace(0.0, case.end, 6), rtol=rtol)
        defects.append(run.gauges.dissipation_defect.max())
        assert defects[-1] <= 100 * rtol
    assert defects[0] > defects[1] > defects[2]


@by_method
@pytest.mark.parametrize("rtol", [1e-6, 1e-9])
def test_the_error_estimate_measures_the_error(solved, method, rtol):
    times = np.linspace(0.0, solved.end, 8)
    run = gflow.flow(solved.model, solved.problem, solved.theta0, times, method=method, rtol=rtol)
    estimate = run.error_estimate()
    exact = solved.exact(times)
    assert estimate.reference.spec["rtol"] == pytest.approx(rtol / 100)
    assert estimate.reference.spec["atol"] == pytest.approx(run.spec["atol"] / 100)
    true = largest_error(run.theta, exact)
    assert true / 100 <= estimate.theta.max() <= 100 * true
    true = abs(run.loss - Objective(solved.model, solved.problem).losses(exact)).max()
    assert true / 100 <= estimate.loss.max() <= 100 * true


@pytest.mark.parametrize("rtol", [1e-4, 1e-6])
@pytest.mark.parametrize("model", [gflow.DeepLinear((5, 4, 1)), gflow.Diagonal(5)], ids=["deep", "diagonal"])
def test_the_sensitivity_of_a_flow_that_slows_down_over_many_powers_of_ten(model, rtol):
    """Of separable data: it learns within t = 100, and moves by as much from each power of ten to the next."""
    x, y = gflow.datasets.linear_teacher(20, 5, rng=0, margin=0.3)
    problem = gflow.Problem(x, np.sign(y), "logistic")
    theta0 = (
        model.init(scale=0.1) if isinstance(model, gflow.Diagonal) else model.init("balanced", 0.5, rng=0)
    )
    times = np.concatenate([[0.0], np.geomspace(0.1, 1e10, 300)])
    run = gflow.flow(model, problem, theta0, times, rtol=rtol, observe="smallest_eigenvalue")
    exponent = np.trapezoid(np.maximum(-run["smallest_eigenvalue"], 0.0), times)
    assert 0.9 * exponent <= np.log(run.sensitivity()) <= 1.3 * exponent
    assert run.status.ok, run.status


@pytest.mark.parametrize(
    ("rtol", "said"), [(1e-3, None), (2e-3, "loose tolerance"), (0.1, "loose tolerance")]
)
def test_a_loose_tolerance_is_not_called_an_instability(rtol, said):
    """Of a flow that amplifies nothing."""
    run = gflow.flow(
        gflow.DeepLinear((2, 1)), gflow.Problem(np.eye(2), [1.0, 2.0]), [0.5, 0.5], 3.0, rtol=rtol
    )
    assert [warning.split(":")[0] for warning in run.status.warnings] == ([said] if said else [])


def test_the_sensitivity_of_a_quadratic_saddle_is_its_growth():
    """L = (a b - s)^2 / 2 near a = b = 0: perturbations grow as e^(s t), and so does the solution."""
    model, problem = gflow.DeepLinear((1, 1, 1)), gflow.Problem.factorization([[2.0]])
    run = gflow.flow(model, problem, [1e-12, 1e-12], 5.0)
    assert run.sensitivity() == pytest.approx(np.exp(2.0 * 5.0), rel=1e-6)
    assert run.status.ok


def test_many_saved_times_equal_few(case):
    few = gflow.flow(case.model, case.problem, case.theta0, np.linspace(0.0, case.end, 4))
    times = np.union1d(few.t, np.linspace(0.0, case.end, 301))
    many = gflow.flow(case.model, case.problem, case.theta0, times)
    np.testing.assert_array_equal(many.theta[np.isin(times, few.t)], few.theta)
    np.testing.assert_array_equal(many.steps.t, few.steps.t)


def test_rotating_the_data_rotates_the_solution():
    """Orthogonal changes of inputs, outputs and hidden coordinates commute with the flow."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((8, 4)), rng.standard_normal((8, 2))
    inside, hidden, outside = (np.linalg.qr(rng.standard_normal((n, n)))[0] for n in (4, 3, 2))
    model = gflow.DeepLinear((4, 3, 2))
    w1, w2 = model.unpack(model.init("gaussian", scale=0.4, rng=1))
    plain = gflow.flow(model, gflow.Problem(x, y), model.pack([w1, w2]), 3.0)
    turned = gflow.flow(
        model,
        gflow.Problem(x @ inside, y @ outside),
        model.pack([hidden.T @ w1 @ inside, outside.T @ w2 @ hidden]),
        3.0,
    )
    back = outside @ model.end_to_end(turned.end) @ inside.T
    np.testing.assert_allclose(back, model.end_to_end(plain.end), rtol=0, atol=60 * 1e-9)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("method", ["auto", "tsit5", "dop853"])
def test_steps_of_any_length_keep_to_the_tolerance(width, method):
    """Two equal layers to M = 0: u' = -u^3, whose steps pass 1e190, where squares of rates underflow."""
    t = np.array([1.0, 1e50, 1e150, 1e190])
    start = np.tile(np.eye(width).ravel(), 2)
    problem = gflow.Problem.factorization(np.zeros((width, width)))
    run = gflow.flow(gflow.DeepLinear((width,) * 3), problem, start, t, method=method, rtol=1e-7, atol=1e-160)
    assert run.outcome.code == "finished"
    np.testing.assert_allclose(run.theta, start / np.sqrt(1.0 + 2.0 * t)[:, None], rtol=30 * 1e-7, atol=0)


@pytest.mark.slow
def test_a_long_chain_of_closed_forms():
    """1000 saved times in random order of magnitude, all within the promise."""
    for case in SOLVED:
        times = np.unique(
            np.concatenate([[0.0], case.end * 10.0 ** -np.random.default_rng(0).uniform(0, 8, 1000)])
        )
        for method in ("tsit5", "dop853"):
            run = gflow.flow(case.model, case.problem, case.theta0, times, method=method, rtol=1e-10)
            assert largest_error(run.theta, case.exact(times)) <= 30 * 1e-10
