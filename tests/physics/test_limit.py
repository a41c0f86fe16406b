"""The limit t = inf: against closed forms and long runs, its bound, and the three traps."""

from __future__ import annotations

import numpy as np
import pytest
from cases import sliding

import gflow
from gflow import Problem
from gflow.theory import argmin, diagonal

SCALAR = gflow.DeepLinear((1, 1, 1))


def wide(weight_decay=0.0):
    rng = np.random.default_rng(0)
    model = gflow.DeepLinear((4, 6, 3))
    problem = Problem(rng.standard_normal((20, 4)), rng.standard_normal((20, 3)), weight_decay=weight_decay)
    return model, problem, 0.3 * rng.standard_normal(model.size)


def hyperbola(a, b, s):
    """Where the flow of (ab - s)^2 / 2 from (a, b) ends: ab = s, a^2 - b^2 as it was."""
    c = a * a - b * b
    square = 0.5 * (c + np.sqrt(c * c + 4 * s * s))
    return np.array([np.sqrt(square), s / np.sqrt(square)])


def check(run, exact, reference_error=0.0):
    """The stated remainder and the measured error of the integration bound the error, and by no more than 1e3."""
    assert run.status.ok and run.status.code == "finished" and run.t[-1] == np.inf
    limit, size = run.limit, np.linalg.norm(exact)
    error = np.linalg.norm(run.end - exact)
    bound = limit.remainder + 2 * size * run.error_estimate().theta[-1]
    assert error <= bound + reference_error
    assert bound <= 1e3 * max(error, 10 * np.finfo(float).eps * size)


@pytest.mark.parametrize("rtol", [1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("start", [(1.5, 0.2), (1e-3, 2e-3), (3.0, 1.0)])
def test_the_valley_of_a_scalar_net(start, rtol):
    """Trap one: along the valley the Hessian's eigenvalue is noise, which a plain Newton step would invert."""
    run = gflow.flow(SCALAR, Problem.factorization([[1.0]]), start, np.inf, rtol=rtol)
    check(run, hyperbola(*start, 1.0))
    assert run.limit.kind == "minimum" and run.limit.stiff == 1
    np.testing.assert_allclose(run.limit.slowest, np.sum(run.end**2), rtol=1e-3)


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_a_wide_linear_net(weight_decay):
    model, problem, start = wide(weight_decay)
    run = gflow.flow(model, problem, start, [0.0, 1.0, np.inf])
    long = gflow.flow(model, problem, start, 8 * run.limit.reached, rtol=1e-13)
    check(run, long.end, 1e-12)
    # 12 numbers of the map are fitted; with decay nothing is left free but the rotations of the hidden layer
    assert run.limit.kind == "minimum" and run.limit.stiff >= 12
    assert run.gauges.dissipation_defect.max() < 1e-8
    assert weight_decay or run.gauges.invariant_drift.max() < 1e-9


@pytest.mark.parametrize("method", ["auto", "dop853"])
def test_times_after_the_limit_is_seen_are_saved_too(method):
    model, problem, start = wide()
    seen = gflow.flow(model, problem, start, np.inf, method=method)
    times = [0.0, 1.0, *(np.array([2, 3, 10]) * seen.limit.reached)]
    run = gflow.flow(model, problem, start, [*times, np.inf], method=method)
    plain = gflow.flow(model, problem, start, times, method=method)
    assert run.status.code == "finished" and run.limit.reached == seen.limit.reached
    np.testing.assert_array_equal(run.t, [*times, np.inf])
    np.testing.assert_array_equal(run.theta, np.vstack([plain.theta, seen.end]))
    assert run.gauges.dissipation_defect.max() < 1e-8
    row = gflow.ensemble(model, problem, start[None], [*times, np.inf], method=method)[0]
    np.testing.assert_array_equal(row.theta, run.theta)


def test_more_parameters_than_a_whole_hessian_is_made_for():
    rng = np.random.default_rng(0)
    model = gflow.DeepLinear((16, 24, 16))
    target = rng.standard_normal((60, 16)) @ np.diag(np.linspace(0.3, 1.0, 16))
    problem = Problem(rng.standard_normal((60, 16)), target)
    start = 0.1 * rng.standard_normal(model.size)
    run = gflow.flow(model, problem, start, np.inf, rtol=1e-7)
    long = gflow.flow(model, problem, start, 4 * run.limit.reached, rtol=1e-11)
    check(run, long.end, 1e-9)


def test_a_relu_net_in_its_final_pattern():
    case = sliding(3)
    run = gflow.flow(case.model, case.problem, case.theta0, [0.0, 10.0, np.inf])
    assert "slide" in run.events.kind and run.limit.kind == "minimum"
    long = gflow.flow(case.model, case.problem, case.theta0, 2 * run.limit.reached, rtol=1e-13)
    check(run, long.end, 1e-10)
    # it keeps its pattern: sliding neurons are on their kinks
    mode = run.state["mode"]
    w, x = case.model.first_layer(run.end), case.problem.X
    cosine = (w @ x.T) / np.outer(np.linalg.norm(w, axis=1), np.linalg.norm(x, axis=1))
    assert (mode == 0).any() and np.abs(cosine[mode == 0]).max() < 1e-12
    assert np.all((cosine * mode)[mode != 0] > 0)


@pytest.mark.parametrize(("depth", "start"), [(2, [0.5, 0.5]), (3, [0.5, 0.6, 0.5]), (3, [0.4, 0.4, 0.4])])
def test_an_algebraic_approach_is_recognised(depth, start):
    """Trap two: s = 0. With all factors equal, a' = -a^(2N-1): a ~ t^(-1/(2N-2)); with one that stays, t^(-1/2)."""
    model, problem = gflow.DeepLinear((1,) * (depth + 1)), Problem.factorization([[0.0]])
    run = gflow.flow(model, problem, start, np.inf)
    assert run.status.code == "algebraic" and run.limit.kind == "algebraic"
    staying = np.sqrt(start[1] ** 2 - start[0] ** 2)
    exponent = 0.5 if staying else 1 / (2 * depth - 2)
    assert abs(run.limit.exponent - exponent) < 0.03 * exponent
    exact = np.zeros(depth)
    exact[1] = staying
    error = np.linalg.norm(run.end - exact)
    assert error <= run.limit.remainder <= 1e3 * error
    assert len(run.steps.t) < 2000


def test_a_strict_saddle_is_named():
    """Trap three: a = -b stays so, and tends to the saddle at 0, where the gradient vanishes as at a minimum."""
    problem = Problem.factorization([[1.0]])
    run = gflow.flow(SCALAR, problem, [0.5, -0.5], np.inf)
    assert run.status.code == "saddle" and not run.status.ok and run.limit.kind == "saddle"
    np.testing.assert_allclose(run.limit.lowest, -1.0, atol=1e-3)
    assert np.linalg.norm(run.end) <= run.limit.remainder < 1e-6
    # a little off, it leaves: the saddle is passed, and the limit is the minimum
    off = gflow.flow(SCALAR, problem, [0.5 + 1e-6, -0.5], np.inf)
    check(off, hyperbola(0.5 + 1e-6, -0.5, 1.0))


def test_a_start_on_a_critical_point():
    run = gflow.flow(SCALAR, Problem.factorization([[1.0]]), [0.0, 0.0], np.inf)
    assert run.status.code == "saddle" and run.limit.lowest == -1.0
    run = gflow.flow(gflow.DeepLinear((1, 1, 1, 1)), Problem.factorization([[1.0]]), np.zeros(3), np.inf)
    assert run.status.code == "saddle" and run.limit.kind == "degenerate"
    run = gflow.flow(SCALAR, Problem.factorization([[1.0]]), [1.0, 1.0], np.inf)
    assert run.status.code == "finished" and run.limit.kind == "minimum" and run.limit.remainder == 0.0


def test_no_limit_where_the_minimum_is_at_infinity():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((12, 3))
    problem = Problem(X, np.sign(X @ [1.0, 0.5, -0.2]), loss="logistic")
    run = gflow.flow(gflow.DeepLinear((3, 1)), problem, np.full(3, 0.1), np.inf)
    assert run.status.code == "no_limit" and run.limit.kind == "none" and run.limit.remainder == np.inf


def test_max_steps_saving_and_bad_input(tmp_path):
    model, problem, start = wide()
    short = gflow.flow(model, problem, start, [0.5, np.inf], max_steps=20)
    assert short.status.code == "max_steps" and np.isfinite(short.t).all() and short.limit is None
    run = gflow.flow(model, problem, start, [0.5, np.inf], observe="loss", progress=True)
    loaded = gflow.load(run.save(tmp_path / "limit"))
    assert loaded.limit == run.limit or np.isnan(run.limit.exponent) and loaded.limit[:5] == run.limit[:5]
    again = gflow.flow(**loaded.spec)
    np.testing.assert_array_equal(again.theta, run.theta)
    assert run["loss"].shape == (2,) and run["loss"][-1] <= run["loss"][0]
    for options, words in (
        ({"rest": 1e-3}, "rest must be None where t ends with inf"),
        ({"t": [0.0, np.inf, np.inf]}, "t must"),
        ({"t": [np.inf, 1.0]}, "t must"),
    ):
        with pytest.raises(ValueError, match=words):
            gflow.flow(model, problem, start, **{"t": np.inf, **options})


@pytest.mark.parametrize(("depth", "alpha"), [(3, 1e-2), (3, 1e-3), (3, 1e-4), (4, 1e-1), (4, 1e-2)])
def test_deep_diagonal_networks_leave_their_saddles_before_the_limit(depth, alpha):
    """Plateaus end in exponential decays, which over a short stretch look like a power of t."""
    x = np.random.default_rng(0).standard_normal((4, 6))
    problem = gflow.Problem(x, x @ np.array([1.0, -0.8, 0.0, 0.0, 0.0, 0.0]))
    model = gflow.Diagonal(6, depth)
    theta0 = model.init(scale=alpha)
    run = gflow.flow(model, problem, theta0, np.inf)
    prediction = gflow.theory.bias.limit(model, problem, theta0)
    reached = gflow.observe.by_name(prediction.observable)(model, problem, run.end).ravel()
    wanted = np.asarray(prediction.predict(np.inf)).ravel()
    if run.limit.kind == "algebraic":  # the weights that vanish do so like a power of t for very long
        slope = depth * np.abs(run.end).max() ** (depth - 1)
        assert np.abs(reached - wanted).max() <= slope * run.limit.remainder
    else:
        assert run.limit.kind == "minimum"
        np.testing.assert_allclose(reached, wanted, rtol=0, atol=1e-8)


def test_a_deep_linear_network_is_not_at_its_limit_on_a_plateau():
    model, target = gflow.DeepLinear((3, 3, 3, 3)), np.diag([2.0, 1.0, 0.5])
    problem = gflow.Problem.factorization(target)
    run = gflow.flow(model, problem, model.init("gaussian", scale=1e-3, rng=0), np.inf)
    w1, w2, w3 = model.unpack(run.end)
    assert run.limit.kind == "saddle" or np.abs(w3 @ w2 @ w1 - target).max() < 1e-8


@pytest.mark.parametrize("k", [-8, 0, 8])
def test_a_slow_approach_along_a_valley_is_not_taken_for_the_limit(k):
    """Three coordinates all but fit; what the 57 small ones still have to do takes 1e8 times as long."""
    x = np.random.default_rng(0).standard_normal((30, 60))
    problem, model = Problem(x, x[:, :3].sum(axis=1) / np.sqrt(3.0)), gflow.Diagonal(60, 5)
    start = model.init(scale=0.03)
    run = gflow.flow(model, problem, start, np.inf, max_steps=5000, rtol=1e-9 * (1 + 0.03 * k))
    assert run.limit.kind == "minimum" and run.limit.reached > 1e11
    exact = argmin.argmin(diagonal.mirror(model, start), problem.X, problem.Y[:, 0]).beta
    np.testing.assert_allclose(model.predictor(run.end), exact, atol=1e-12)
