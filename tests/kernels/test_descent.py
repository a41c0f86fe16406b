"""The compiled loop of gradient descent against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from cases import CASES

import gflow
from gflow.iterate import Options
from gflow.kernels import abi, descent
from gflow.objective import Objective

EPS = np.finfo(float).eps
OPTIONS = {
    "optimizer": "gd", "momentum": None, "betas": None, "eps": None, "batch_size": None,
    "replacement": False, "rng": None, "kink": None,
}  # fmt: skip


def by_hand(objective, theta, step_size, n_steps):
    out = [np.array(theta)]
    for _ in range(n_steps):
        out.append(out[-1] - step_size * objective.gradient(out[-1]))
    return np.array(out)


def test_descend_equals_numpy(case):
    objective = Objective(case.model, case.problem)
    run = gflow.descend(case.model, case.problem, case.theta0, 0.05, 40)
    assert run.status.code == "finished"
    # to rounding: the compiler may fuse a multiplication with the subtraction that follows
    wanted = by_hand(objective, case.theta0, 0.05, 40)
    np.testing.assert_allclose(run.theta, wanted, rtol=0, atol=40 * 10 * EPS * abs(wanted).max())
    np.testing.assert_array_equal(run.t, 0.05 * np.arange(41))


def test_one_step_of_a_parabola():
    """L = (w - 3)^2 / 2 from 1 at step size 1/2: the distance to 3 halves, without rounding."""
    problem = gflow.Problem.factorization([[3.0]])
    run = gflow.descend(gflow.DeepLinear((1, 1)), problem, [1.0], 0.5, 30)
    np.testing.assert_array_equal(run.theta[:, 0], 3.0 - 2.0 ** (1.0 - np.arange(31)))


def test_counts_and_losses():
    case = CASES[3]
    run = gflow.descend(case.model, case.problem, case.theta0, 0.02, 100)
    assert run.counts == {"steps": 100, "gradients": 100} and run.steps is None
    assert np.all(np.diff(run.loss) < 0)
    objective = Objective(case.model, case.problem)
    np.testing.assert_array_equal(run.loss, [objective.loss(theta) for theta in run.theta])


@pytest.mark.parametrize(
    ("every", "wanted"), [(1, range(11)), (4, [0, 4, 8, 10]), (5, [0, 5, 10]), (99, [0, 10])]
)
def test_save_every(every, wanted):
    case = CASES[5]
    every_step = gflow.descend(case.model, case.problem, case.theta0, 0.1, 10)
    some = gflow.descend(case.model, case.problem, case.theta0, 0.1, 10, save_every=every)
    np.testing.assert_array_equal(some.t, every_step.t[list(wanted)])
    np.testing.assert_array_equal(some.theta, every_step.theta[list(wanted)])


@pytest.mark.parametrize("through_a_file", [False, True])
def test_continuation_equals_the_uninterrupted_run(case, through_a_file, tmp_path):
    whole = gflow.descend(case.model, case.problem, case.theta0, 0.03, 50)
    half = gflow.descend(case.model, case.problem, case.theta0, 0.03, 23)
    if through_a_file:
        half = gflow.load(half.save(tmp_path / "half"))
    rest = gflow.descend(case.model, case.problem, None, 0.03, 50, start=half)
    np.testing.assert_array_equal(rest.theta, whole.theta[23:])
    np.testing.assert_array_equal(rest.t, whole.t[23:])


def test_divergence_returns_what_it_has_and_says_so():
    problem = gflow.Problem.factorization([[1.0]])
    run = gflow.descend(gflow.DeepLinear((1, 1, 1)), problem, [3.0, 2.0], 2.0, 1000, save_every=1000)
    assert run.status.code == "non_finite" and not run.status.ok
    assert "step size" in run.status.message and "2" in run.status.message
    assert np.isfinite(run.theta).all() and 0 < run.counts["steps"] < 1000
    assert run.t[-1] == 2.0 * run.counts["steps"]
    with np.errstate(over="ignore", invalid="ignore"):
        after = by_hand(Objective(gflow.DeepLinear((1, 1, 1)), problem), run.end, 2.0, 0)
        a, b = after[0]
        assert not np.isfinite([a - 2 * (a * b - 1) * b, b - 2 * (a * b - 1) * a]).all()


@pytest.mark.parametrize("excess", [0.98, 1.02])
def test_stable_exactly_below_two_over_sharpness(excess):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((9, 3)), rng.standard_normal((9, 2))
    problem, model = gflow.Problem(x, y), gflow.DeepLinear((3, 2))
    limit = 2 / gflow.observe.sharpness(model, problem, np.zeros(6))
    run = gflow.descend(model, problem, np.ones(6), excess * limit, 1000)
    distance = np.linalg.norm(run.theta - problem.target.ravel(), axis=1)
    assert (distance[-1] < distance[0]) == (excess < 1)


@pytest.mark.parametrize("every", [1, 3])
def test_stop_and_observe(every):
    """``stop`` is asked at each saved state, and changes nothing before it ends the run."""
    case = CASES[0]
    asked = []

    def above_one(t, theta):
        asked.append(t)
        return theta[0] > 1

    run = gflow.descend(
        case.model, case.problem, [0.5, 0.5], 0.1, 1000, stop=above_one, observe="loss", save_every=every
    )
    assert run.status.code == "stopped" and run.status.ok
    assert run.end[0] > 1 >= run.theta[-2, 0]
    steps = every * np.arange(len(run.t))
    np.testing.assert_array_equal(run.t, 0.1 * steps)
    wanted = by_hand(Objective(case.model, case.problem), [0.5, 0.5], 0.1, steps[-1])[::every]
    np.testing.assert_allclose(run.theta, wanted, rtol=100 * EPS)
    np.testing.assert_array_equal(run["loss"], run.loss)
    assert asked == list(run.t)


def test_pausing_changes_nothing():
    case = CASES[5]
    o = Objective(case.model, case.problem)
    runs = []
    for budget in (100, 1):
        saved, state = np.empty((6, o.size)), descent.new_state(case.theta0, 0, descent.ADAM)
        options = Options.of(o, OPTIONS | {"optimizer": "adam", "batch_size": 2, "rng": 3})
        arguments, batches = options.arguments(o)
        rest = state, options.rule, batches, np.array([0.05]), saved, 0, 4, 20, budget
        while (code := descent.advance(o.gradient_kernel, *arguments, *rest)) == descent.PAUSED:
            pass
        assert code == descent.FINISHED
        runs.append(saved)
    np.testing.assert_array_equal(*runs)


def test_one_compiled_loop_serves_all_models():
    for case in CASES:
        gflow.descend(case.model, case.problem, case.theta0, 1e-3, 2)
    assert len(descent.advance.signatures) == 1
    assert isinstance(Objective(CASES[0].model, CASES[0].problem).gradient_kernel, abi.Kernel)
