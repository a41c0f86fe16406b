"""The interface of diagonal networks: starts, packing, records, ensembles, descents, refusals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import gflow
from gflow import observe
from gflow.objective import Objective

FORMS = [("difference", 2), ("product", 2), ("power", 2), ("difference", 3), ("power", 4)]
by_form = pytest.mark.parametrize(("form", "depth"), FORMS)
by_coords = pytest.mark.parametrize("coords", ["plain", "log"])


def regression(n=4, d=5, loss="square", seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    y = x @ np.array([1.0, -0.5, *[0.0] * (d - 2)])
    return gflow.Problem(x, y if loss == "square" else np.sign(y), loss)


PROBLEM = regression()


@by_form
def test_starts_packing_and_what_they_predict(form, depth):
    model, alpha = gflow.Diagonal(5, depth, form), np.geomspace(0.1, 0.5, 5)
    theta = model.init(scale=alpha)
    parts = model.unpack(theta)
    assert model.size == (5 if form == "power" else 10) and [p.shape for p in parts] == [(5,)] * len(parts)
    np.testing.assert_array_equal(model.pack(parts), theta)
    if form == "product":
        np.testing.assert_array_equal(parts[0], np.sqrt(2) * alpha)
        assert not parts[1].any()
    else:
        assert all(np.array_equal(part, alpha) for part in parts)
    beta = model.end_to_end(theta)
    assert beta.shape == (1, 5)
    np.testing.assert_array_equal(beta[0], alpha**depth if form == "power" else np.zeros(5))
    drawn = model.init("gaussian", scale=2.0, rng=1)
    np.testing.assert_array_equal(drawn, model.init("gaussian", scale=2.0, rng=np.random.default_rng(1)))
    assert np.unique(drawn).size == model.size
    np.testing.assert_allclose(model.function(drawn, PROBLEM.X), PROBLEM.X @ model.end_to_end(drawn).T)


def test_the_default_atol_resolves_the_smallest_pair():
    model = gflow.Diagonal(3)
    theta0 = model.pack([[1e-2, 1e-7, 1.0], [1e-2, 0.0, 1.0]])
    run = gflow.flow(model, regression(d=3), theta0, 1.0, rtol=1e-8)
    assert run.spec["atol"] == pytest.approx(1e-8 * 1e-3 * 1e-7 / np.sqrt(2))


@by_form
@by_coords
def test_observables_stop_and_dense_output_are_of_the_parameters(form, depth, coords):
    model, times = gflow.Diagonal(5, depth, form), np.linspace(0.0, 4.0, 5)
    names = [
        "loss",
        "end_to_end",
        "sharpness",
        "imbalance",
        "imbalance_norms",
        "gradient_norm",
        "ntk",
        "margin",
    ]
    names = [name for name in names if name != "margin"]
    theta0, seen = model.init(scale=0.3), []
    run = gflow.flow(
        model, PROBLEM, theta0, times, coords=coords, observe=names, dense=True,
        stop=lambda t, theta: seen.append(theta) or False,
    )  # fmt: skip
    assert run.theta.shape == (5, model.size) and all(theta.shape == (model.size,) for theta in seen)
    np.testing.assert_allclose(run.theta[0], theta0, rtol=1e-14, atol=1e-16)
    for name in names:
        np.testing.assert_array_equal(run[name], observe.along(dataclasses.replace(run, observed={}), name))
    assert run["sharpness"][-1] == pytest.approx(
        np.linalg.eigvalsh(Objective(model, PROBLEM).hessian(run.end)).max(), rel=1e-10
    )
    np.testing.assert_allclose(run.at(times[1:]), run.theta[1:], rtol=0, atol=1e-9)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(run.log_theta[1:], np.log(abs(run.theta[1:])), rtol=0, atol=1e-6)
    assert run.status.ok, run.status


@by_coords
@pytest.mark.parametrize("method", ["auto", "bdf"])
@pytest.mark.parametrize("through_a_file", [False, True])
def test_a_continuation_equals_the_whole_bit_for_bit(coords, method, through_a_file, tmp_path):
    model = gflow.Diagonal(5)
    theta0, settings = model.init(scale=1e-2), {"coords": coords, "method": method}
    whole = gflow.flow(model, PROBLEM, theta0, [0.0, 7.0, 60.0], **settings)
    first = gflow.flow(model, PROBLEM, theta0, 7.0, **settings)
    if through_a_file:
        first = gflow.load(first.save(tmp_path / "first"))
        np.testing.assert_array_equal(first.log_theta, whole.log_theta[:2])
        np.testing.assert_array_equal(first.gauges.dissipation_defect, whole.gauges.dissipation_defect[:2])
    rest = gflow.flow(model, PROBLEM, None, [60.0], start=first, coords=coords)
    np.testing.assert_array_equal(rest.end, whole.end)
    np.testing.assert_array_equal(rest.log_theta[-1], whole.log_theta[-1])
    np.testing.assert_array_equal(gflow.flow(**rest.spec | {"t": whole.t}).theta, whole.theta)
    assert rest.counts == whole.counts


@by_coords
def test_the_error_estimate_measures_the_error(coords):
    model, times = gflow.Diagonal(5), np.linspace(0.0, 20.0, 6)
    run = gflow.flow(model, PROBLEM, model.init(scale=0.1), times, coords=coords, rtol=1e-6)
    exact = gflow.flow(model, PROBLEM, model.init(scale=0.1), times, coords=coords, rtol=1e-12)
    true = np.linalg.norm(run.theta - exact.theta, axis=1) / np.linalg.norm(exact.theta, axis=1)
    estimate = run.error_estimate()
    np.testing.assert_allclose(estimate.theta, true, rtol=0.2, atol=1e-8)
    assert estimate.reference.spec["coords"] == coords


def test_the_dual_flow_amplifies_nothing():
    model = gflow.Diagonal(5)
    run = gflow.flow(model, PROBLEM, model.init(scale=1e-30), 200.0, coords="log")
    assert run.sensitivity() == pytest.approx(1.0, abs=1e-6) and run.status.ok


@by_form
def test_an_ensemble_equals_the_single_flows_bit_for_bit(form, depth):
    model = gflow.Diagonal(5, depth, form)
    thetas = np.array([model.init(scale=a) for a in (0.1, 0.2, 0.4)])
    many = gflow.ensemble(model, PROBLEM, thetas, [0.0, 1.0, 9.0], rtol=1e-7)
    for r, theta0 in enumerate(thetas):
        one = gflow.flow(model, PROBLEM, theta0, [0.0, 1.0, 9.0], rtol=1e-7)
        np.testing.assert_array_equal(many.theta[r], one.theta)


@by_form
@pytest.mark.parametrize("loss", ["square", "logistic", "exponential"])
def test_descend_equals_numpy(form, depth, loss):
    model, problem = gflow.Diagonal(5, depth, form), regression(loss=loss)
    theta = theta0 = model.init("gaussian", scale=0.3)
    run = gflow.descend(model, problem, theta0, 0.05, 10)
    objective = Objective(model, problem)
    for row in run.theta:
        np.testing.assert_allclose(row, theta, rtol=0, atol=1e-14)
        theta = theta - 0.05 * objective.gradient(theta)


@pytest.mark.parametrize("loss", ["logistic", "exponential"])
@by_form
def test_the_clock_of_the_loss(form, depth, loss):
    """To the loss 1e-12, and far beyond: the margin rises, log L is exact."""
    model, problem = gflow.Diagonal(5, depth, form), regression(loss=loss)
    if form == "power":  # its predictor is positive: labels that such a one separates
        problem = gflow.Problem(abs(problem.X), np.ones(4), loss)
    times = [np.log(1e12), 1e4]
    run = gflow.flow(model, problem, model.init(scale=0.3), times, clock="loss")
    assert run.outcome.code == "finished"
    assert run.loss[0] == pytest.approx(1e-12, rel=1e-9)
    np.testing.assert_allclose(run.log_loss, -np.array(times), rtol=1e-9)
    margins = observe.along(run, "margin")
    assert 0 < margins[0] < margins[1]


DATA = PROBLEM.X, PROBLEM.Y
MODEL = gflow.Diagonal(5)
THETA0 = MODEL.init(scale=0.1)
#: At depth 4 all but too small a start.
SLOWEST = 2e-8


def flow(**changes):
    arguments = {"model": MODEL, "problem": PROBLEM, "theta0": THETA0, "t": 1.0, "coords": "log"}
    return gflow.flow(**{**arguments, **changes})


def deep(alpha, depth, t, coords="plain"):
    model = gflow.Diagonal(5, depth)
    return gflow.flow(model, PROBLEM, model.init(scale=alpha), t, coords=coords)


def linear(**changes):
    model = gflow.DeepLinear((5, 1))
    return flow(model=model, theta0=model.init(), **changes)


WRONG = {
    "no inputs": (lambda: gflow.Diagonal(0), "inputs", "0"),
    "inputs not whole": (lambda: gflow.Diagonal(2.5), "inputs", r"2\.5"),
    "depth 1": (lambda: gflow.Diagonal(3, 1), "depth", "1"),
    "depth not whole": (lambda: gflow.Diagonal(3, 2.5), "depth", r"2\.5"),
    "product of depth 3": (lambda: gflow.Diagonal(3, 3, "product"), "depth", "3"),
    "form": (lambda: gflow.Diagonal(3, form="sum"), "form", "'sum'"),
    "kind": (lambda: MODEL.init("orthogonal"), "kind", "'orthogonal'"),
    "scale 0": (lambda: MODEL.init(scale=0.0), "scale", "0.0"),
    "scale < 0": (lambda: MODEL.init(scale=-1e-3), "scale", "-0.001"),
    "scale with a zero": (lambda: MODEL.init(scale=[1, 1, 0, 1, 1]), "scale", r"scale\[2\] is 0"),
    "scale of other length": (lambda: MODEL.init(scale=[1, 1]), "scale", r"\(2,\)"),
    "scale NaN": (lambda: MODEL.init(scale=np.nan), "scale", "nan"),
    "X and Y of other lengths": (lambda: gflow.Problem(DATA[0], np.ones(3)), "Y", "X has 4, Y has 3"),
    "X of other width": (lambda: flow(model=gflow.Diagonal(4), theta0=np.ones(8)), "problem", "it has 5 and 1"),
    "two outputs": (lambda: flow(problem=gflow.Problem(DATA[0], np.ones((4, 2)))), "problem", "5 and 2"),
    "factorization": (
        lambda: flow(problem=gflow.Problem.factorization(np.ones((1, 5)))), "problem", "'factorization'"),
    "pack of other length": (lambda: MODEL.pack([np.ones(5), np.ones(4)]), r"arrays\[1\]", r"\(4,\)"),
    "pack of one": (lambda: MODEL.pack([np.ones(5)]), "arrays", "1"),
    "theta0 of other length": (lambda: flow(theta0=np.ones(5)), "theta0", r"\(5,\)"),
    "coords": (lambda: flow(coords="dual"), "coords", "'dual'"),
    "log coordinates of another family": (linear, "coords", "DeepLinear"),
    "log coordinates with weight decay": (
        lambda: flow(problem=gflow.Problem(*DATA, weight_decay=0.1)), "coords", "0.1"),
    "log coordinates by the clock of the loss": (
        lambda: flow(problem=regression(loss="logistic"), clock="loss", t=3.0), "coords", "loss"),
    "limit of depth 3 in log coordinates": (
        lambda: flow(model=gflow.Diagonal(5, 3), t=np.inf), "t must be finite with coords='log' unless the depth is 2", "inf"),
    "limit of logistic in log coordinates": (
        lambda: flow(problem=regression(loss="logistic"), t=np.inf), "t must be finite with coords='log'", "square loss"),
    "bdf of logistic in log coordinates": (
        lambda: flow(problem=regression(loss="logistic"), method="bdf"), "method must be explicit", "hvp.*bdf"),
    "bdf of depth 3 in log coordinates": (
        lambda: flow(model=gflow.Diagonal(5, 3), method="bdf"), "method must be explicit", "depth is 2"),
    "limit past the escape from 0": (
        lambda: deep(1e-100, 4, np.inf), r"t must end before \d.\d+e\+199 for this start", "inf"),
    "time past the escape from 0": (
        lambda: deep(1e-8, 4, 1e17), "t must end before .* within times of", r"apart.*1e\+17"),
    "time past the escape from 0, in log coordinates": (
        lambda: deep(1e-16, 3, 1e18, coords="log"), "t must end before", r"1e\+18"),
    "log coordinates of an ensemble": (
        lambda: gflow.ensemble(MODEL, PROBLEM, [THETA0], 1.0, coords="log"), "coords", "option of flow.*plain coordinates"),
    "start in other coordinates": (
        lambda: flow(theta0=None, start=flow(), t=2.0, coords="plain"), "coords", "'log'"),
    "atol 0": (lambda: flow(atol=0.0), "atol", "0.0"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "argument", "came"), WRONG.values(), ids=WRONG)
def test_it_is_refused_by_name(call, argument, came):
    with pytest.raises(ValueError, match=rf"(?s)^(?=.*\b{argument}).*{came}"):
        call()


# ---- what has no limit, or is out of reach -----------------------------------------------------------------


@pytest.mark.parametrize(("loss", "t"), [("square", 5.0), ("square", np.inf), ("logistic", 5.0)])
def test_inputs_that_are_all_zero_leave_the_start_as_it_is(loss, t):
    problem = gflow.Problem(np.zeros((4, 5)), np.ones(4), loss)
    run = gflow.flow(MODEL, problem, THETA0, t, coords="log")
    np.testing.assert_allclose(run.theta, np.tile(THETA0, (len(run.theta), 1)), rtol=1e-15)
    assert run.loss[-1] == run.loss[0] > 0
    plain = gflow.flow(MODEL, problem, THETA0, t)
    assert (plain.limit is None) == (run.limit is None)


@pytest.mark.parametrize(
    ("form", "sign"), [("power", -1.0), ("product", -1.0), ("product", 1.0)], ids=["w^2", "u = v", "u = -v"]
)
def test_without_an_interpolator_of_the_signs_there_is_no_limit_in_log_coordinates(form, sign):
    """beta >= 0 of w^2 and of u = v, beta <= 0 of u = -v; on X > 0 the labels decide whether one interpolates."""
    model = gflow.Diagonal(5, form=form)
    x = abs(PROBLEM.X)
    up = np.full(5, 0.3)
    theta0 = up if form == "power" else np.concatenate([up, -sign * up])
    wrong = gflow.Problem(x, x @ np.full(5, sign))
    with pytest.raises(ValueError, match=r"t must be finite with coords='log' here.*off by (1|0\.\d+), rel"):
        gflow.flow(model, wrong, theta0, np.inf, coords="log")
    assert gflow.flow(model, wrong, theta0, 10.0, coords="log").outcome.code == "finished"
    right = gflow.Problem(x, x @ np.full(5, -sign))
    run = gflow.flow(model, right, theta0, np.inf, coords="log")
    assert run.limit.kind == "minimum" and run.loss[-1] < 1e-15


def test_max_steps_says_that_log_coordinates_may_crawl():
    run = gflow.flow(MODEL, PROBLEM, THETA0, 100.0, coords="log", max_steps=3)
    assert run.outcome.code == "max_steps" and "coords='plain' may be faster" in run.outcome.message
    plain = gflow.flow(MODEL, PROBLEM, THETA0, 100.0, max_steps=3)
    assert "coords" not in plain.outcome.message


@by_coords
@pytest.mark.parametrize(("depth", "alpha"), [(3, 1e-5), (4, 1e-4), (4, 1e-3)])
def test_the_escape_from_zero_comes_when_it_is_said_to(depth, alpha, coords):
    model = gflow.Diagonal(5, depth)
    theta0 = model.init(scale=alpha)
    log_time, log_pace = model.log_escape(PROBLEM, theta0)
    assert log_time - log_pace == pytest.approx((2 - depth) * np.log(alpha), rel=1e-12)
    escape, pace = np.exp(log_time), np.exp(log_pace)
    run = gflow.flow(model, PROBLEM, theta0, [0.9 * escape, escape + 30 * pace], coords=coords)
    assert run.outcome.code == "finished"
    size = abs(model.predictor(run.theta)).max(axis=1)
    assert size[0] < 1e-5 and size[1] > 0.1


@by_coords
def test_an_escape_that_double_precision_cannot_follow_is_named(coords):
    """alpha = 2e-8 at depth 4: just below what is refused."""
    model = gflow.Diagonal(5, 4)
    theta0 = model.init(scale=SLOWEST)
    log_time, log_pace = model.log_escape(PROBLEM, theta0)
    spacing = np.spacing(np.exp(log_time))
    assert 0.01 < spacing / np.exp(log_pace) < 0.5
    run = gflow.flow(model, PROBLEM, theta0, 2 * np.exp(log_time), coords=coords)
    assert run.outcome.code == "step_too_small" and run.t[-1] == pytest.approx(np.exp(log_time), rel=1e-6)
    assert f"near this t lie {spacing:.2g} apart" in run.outcome.message
    before = gflow.flow(model, PROBLEM, theta0, 0.9 * np.exp(log_time), coords=coords)
    assert before.outcome.code == "finished"
