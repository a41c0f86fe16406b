"""flow() on stiff problems: when it changes its method, and that nothing shows of it."""

from __future__ import annotations

import numpy as np
import pytest
from cases import CASES

import gflow
from gflow import observe

RTOL = 1e-6


def ill_conditioned(size=6, condition=1e4):
    """Two layers on inputs whose second moment has the condition number."""
    rng = np.random.default_rng(0)
    x = np.linalg.qr(rng.standard_normal((4 * size, size)))[0] * np.geomspace(1, condition**-0.5, size)
    x = np.sqrt(4 * size) * x @ np.linalg.qr(rng.standard_normal((size, size)))[0].T
    y = x @ rng.standard_normal((size, size)) / np.sqrt(size)
    model = gflow.DeepLinear((size, size, size))
    return model, gflow.Problem(x, y), model.init("gaussian", 0.3 / np.sqrt(size), rng=1)


STIFF = ill_conditioned()
TIMES = np.geomspace(1.0, 1e3, 13)


@pytest.fixture(scope="module")
def reference():
    between = np.sqrt(TIMES[1:] * TIMES[:-1])
    times = np.sort(np.concatenate([TIMES, between]))
    run = gflow.flow(*STIFF, times, method="dop853", rtol=1e-12)
    return {"at": run.theta[::2], "between": run.theta[1::2], "times": between}


def largest_error(theta, exact):
    return np.max(np.linalg.norm(theta - exact, axis=-1) / np.linalg.norm(exact, axis=-1))


@pytest.mark.parametrize("method", ["auto", "bdf"])
@pytest.mark.parametrize("rtol", [1e-4, 1e-6, 1e-8])
def test_stiff_runs_equal_the_explicit_one_at_and_between_the_saved_times(method, rtol, reference):
    run = gflow.flow(*STIFF, TIMES, method=method, rtol=rtol, dense=True)
    assert run.outcome.code == "finished"
    assert run.methods.name[-1] == "bdf"
    assert largest_error(run.theta, reference["at"]) <= 30 * rtol
    assert largest_error(run.at(reference["times"]), reference["between"]) <= 30 * rtol
    saved = gflow.flow(*STIFF, reference["times"], method=method, rtol=rtol)
    assert largest_error(saved.theta, reference["between"]) <= 30 * rtol


def test_the_gauges_hold_across_a_change_of_method():
    run = gflow.flow(*STIFF, TIMES, rtol=RTOL)
    assert run.methods.name.tolist()[0] == "tsit5" and run.methods.name[-1] == "bdf"
    assert TIMES[0] < run.methods.t[-1] < TIMES[-1]
    assert run.gauges.invariant_drift.max() <= 30 * RTOL
    assert run.gauges.dissipation_defect.max() <= 30 * RTOL


def test_the_change_of_method_pays():
    stiff, explicit = (gflow.flow(*STIFF, 1e3, method=method, rtol=RTOL) for method in ("auto", "tsit5"))
    assert stiff.counts["gradients"] + 2 * stiff.counts["products"] < 0.5 * explicit.counts["gradients"]


def test_the_change_of_method_pays_where_a_separable_loss_falls_for_long():
    """Fast and slow directions are but a factor of twenty apart there, and both slow down like 1 / t."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((20, 5))
    problem = gflow.Problem(x, np.sign(x @ rng.standard_normal(5)), "logistic")
    model = gflow.DeepLinear((5, 1))
    run, alone = (
        gflow.flow(model, problem, np.zeros(5), [1e3, 1e9], rtol=1e-6, method=m) for m in ("auto", "tsit5")
    )
    exact = gflow.flow(model, problem, np.zeros(5), [1e3, 1e9], rtol=1e-12, method="dop853")
    assert run.methods.name[-1] == "bdf"
    assert run.counts["gradients"] + 2 * run.counts["products"] < 0.6 * alone.counts["gradients"]
    assert largest_error(run.theta, exact.theta) <= 30e-6


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("rtol", [1e-4, 1e-9])
def test_what_is_not_stiff_is_left_to_the_explicit_method(case, rtol):
    pair = "tsit5" if rtol >= 1e-7 else "dop853"
    run = gflow.flow(case.model, case.problem, case.theta0, case.end, rtol=rtol)
    assert run.methods.name.tolist() == [pair]
    alone = gflow.flow(case.model, case.problem, case.theta0, case.end, rtol=rtol, method=pair)
    np.testing.assert_array_equal(run.end, alone.end)


@pytest.mark.parametrize("method", ["auto", "bdf"])
@pytest.mark.parametrize("cut", [0.5, 30.0, 400.0])
def test_a_continuation_equals_the_whole_bit_for_bit(method, cut, tmp_path):
    whole = gflow.flow(*STIFF, [0.0, cut, 700.0, 1e3], method=method, rtol=RTOL)
    first = gflow.flow(*STIFF, cut, method=method, rtol=RTOL)
    rest = gflow.flow(*STIFF[:2], None, [700.0, 1e3], start=gflow.load(first.save(tmp_path / "first")))
    np.testing.assert_array_equal(rest.theta, whole.theta[2:])
    assert rest.counts == whole.counts
    assert rest.methods.name[-1] == whole.methods.name[-1] == "bdf"


def test_a_dense_continuation_covers_the_step_it_begins_in():
    first = gflow.flow(*STIFF, 300.0, rtol=RTOL, dense=True)
    step_end = float(first.state["clock"][0])
    rest = gflow.flow(*STIFF[:2], None, step_end + 1.0, start=first, dense=True)
    times = np.linspace(300.0, step_end, 5)[:-1]
    np.testing.assert_array_equal(rest.at(times), first.at(times))
    np.testing.assert_allclose(rest.at(step_end), first.at(step_end), rtol=0, atol=1e-13)


def test_the_record_of_methods_is_saved_and_a_rerun_repeats_it(tmp_path):
    run = gflow.flow(*STIFF, TIMES, rtol=RTOL)
    loaded = gflow.load(run.save(tmp_path / "run"))
    assert loaded.methods.name.tolist() == run.methods.name.tolist()
    np.testing.assert_array_equal(loaded.methods.t, run.methods.t)
    assert loaded.spec["method"] == "auto"
    np.testing.assert_array_equal(gflow.flow(**loaded.spec).theta, run.theta)


def test_error_estimate_measures_the_error_of_a_stiff_run(reference):
    run = gflow.flow(*STIFF, TIMES, rtol=RTOL)
    true = np.linalg.norm(run.theta - reference["at"], axis=1) / np.linalg.norm(reference["at"], axis=1)
    estimate = run.error_estimate()
    assert estimate.reference.outcome.code == "finished"
    np.testing.assert_allclose(estimate.theta, true, rtol=0.1, atol=0.1 * RTOL)


def test_stop_and_observe_see_implicit_steps():
    seen = []

    def stop(t, theta):
        seen.append(t)
        return t > 500.0

    run = gflow.flow(*STIFF, TIMES, rtol=RTOL, stop=stop, observe="loss")
    assert run.outcome.code == "stopped" and seen[-2] <= 500.0 < seen[-1] == run.t[-1]
    np.testing.assert_allclose(run["loss"], observe.along(run, "loss"))


def test_bdf_asks_for_a_smooth_model_with_products():
    class Bowl:
        size, gradient = 2, gflow.DeepLinear((1, 1, 1)).gradient

        def kernel_arguments(self, problem):
            return gflow.DeepLinear((1, 1, 1)).kernel_arguments(problem)

    problem = gflow.Problem.factorization([[1.0]])
    with pytest.raises(ValueError, match="has no hvp"):
        gflow.flow(Bowl(), problem, [1.0, 1.0], 1.0, method="bdf")
    assert gflow.flow(Bowl(), problem, [1.0, 0.5], 1.0).spec["method"] == "dop853"
    relu = gflow.TwoLayerReLU(2, 3)
    data = gflow.Problem(np.eye(2), np.ones((2, 1)))
    with pytest.raises(ValueError, match="smooth"):
        gflow.flow(relu, data, relu.init(rng=0), 1.0, method="bdf")
