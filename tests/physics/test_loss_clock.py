"""clock="loss": closed forms, agreement with the clock of time, continuation, and the direction of the largest margin."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from scipy.optimize import minimize

import gflow
from gflow.kernels import lossclock
from gflow.margins import angle_to
from gflow.objective import Objective
from gflow.theory.separable import max_margin

EPS = np.finfo(float).eps
RTOL = 1e-9


def separable(seed, d, n, loss="logistic", outputs=1, gap=0.3):
    """Normal inputs, moved off the plane between the classes."""
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((n, d)), rng.standard_normal((max(outputs, 1), d))
    if outputs == 1:
        y = np.sign(x @ w[0])
        return gflow.Problem(x + gap * y[:, None] * w / np.linalg.norm(w), y, loss)
    best = (x @ w.T).argmax(axis=1)
    return gflow.Problem(x + gap * w[best], np.eye(outputs)[best], loss)


def by_loss(model, problem, theta0, t, **options):
    return gflow.flow(model, problem, theta0, t, clock="loss", **options)


# ---- closed forms ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tsit5", "dop853"])
def test_one_sample_with_the_exponential_loss(method):
    """L' = -factor |x|^2 L^2 / factor: 1/L = 1/L0 + |x|^2 t with factor 1, and w moves along x."""
    x, w0 = np.array([1.0, 2.0]), np.array([0.1, -0.2])
    problem = gflow.Problem(x[None], [1.0], "exponential")
    start = float(w0 @ x)
    t = np.array([start, 0.5, 5.0, np.log(1e12), 800.0, 1e6])
    got = by_loss(gflow.DeepLinear((2, 1)), problem, w0, t, method=method)
    assert got.status.ok
    with mpmath.workdps(30):
        exact = [mpmath.log(mpmath.expm1(mpmath.mpf(l) - start) * mpmath.exp(start) / 5) for l in t[1:]]
    np.testing.assert_allclose(got.log_time[1:], np.array(exact, dtype=float), rtol=RTOL, atol=RTOL)
    assert got.log_time[0] == -np.inf
    np.testing.assert_allclose(got.theta, w0 + (t - start)[:, None] * x / 5, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(got.s, (t - start) / 5, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(got.log_loss, -t, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(got.loss[:4], np.exp(-t[:4]), rtol=1e-10)


@pytest.mark.parametrize("w0", [-30.0, -1.0, 3.0], ids=["large L", "moderate", "small L"])
def test_one_sample_with_the_logistic_loss(w0):
    """m' = |x|^2 / (1 + e^m): |x|^2 t = m + e^m - m0 - e^m0."""
    problem = gflow.Problem([[2.0]], [-1.0], "logistic")
    with mpmath.workdps(50):
        m0 = mpmath.mpf(-2 * w0)
        l0 = -mpmath.log(mpmath.log1p(mpmath.exp(-m0)))
        t = float(l0) + np.array([0.3, 3.0, 30.0, 3000.0])
        m = [-mpmath.log(mpmath.expm1(mpmath.exp(-mpmath.mpf(l)))) for l in t[:3]]
        m.append(mpmath.mpf(t[3]))
        exact = [mpmath.log((b + mpmath.exp(b) - m0 - mpmath.exp(m0)) / 4) for b in m]
    got = by_loss(gflow.DeepLinear((1, 1)), problem, [w0], t)
    np.testing.assert_allclose(-2 * got.theta[:, 0], np.array(m, dtype=float), rtol=10 * RTOL, atol=10 * RTOL)
    wanted = np.array(exact, dtype=float)
    np.testing.assert_allclose(got.log_time, wanted, rtol=0, atol=50 * RTOL * (1 + abs(t).max()))


def test_two_layers_of_one_sample():
    """u = a b from a = b: l = u and u' = 2 u e^-u, so t = (Ei(u) - Ei(u0)) / 2."""
    problem = gflow.Problem([[1.0]], [1.0], "exponential")
    t = np.array([0.5, 2.0, 20.0, 500.0, 1e5])
    got = by_loss(gflow.DeepLinear((1, 1, 1)), problem, [0.3, 0.3], t)
    with mpmath.workdps(30):
        exact = [mpmath.log((mpmath.ei(u) - mpmath.ei(mpmath.mpf(0.3) ** 2)) / 2) for u in t]
    np.testing.assert_allclose(got.theta, np.sqrt(t)[:, None] * [1, 1], rtol=1e-11)
    np.testing.assert_allclose(got.log_time, np.array(exact, dtype=float), rtol=10 * RTOL, atol=10 * RTOL)


# ---- A equals B --------------------------------------------------------------------------------------------


CASES = {
    "predictor, logistic": (gflow.DeepLinear((4, 1)), separable(0, 4, 12)),
    "deep, logistic": (gflow.DeepLinear((4, 3, 2, 1)), separable(1, 4, 12)),
    "deep, exponential": (gflow.DeepLinear((3, 3, 1)), separable(2, 3, 9, "exponential")),
    "deep, softmax": (gflow.DeepLinear((3, 4, 3)), separable(3, 3, 10, "softmax", 3)),
    "symmetric, softmax": (gflow.Symmetric(3, 3), separable(4, 3, 10, "softmax", 3)),
    "not separable": (
        gflow.DeepLinear((2, 2, 1)),
        gflow.Problem(np.eye(2)[[0, 0, 0, 1, 1, 1]], [1, 1, -1, 1, -1, -1.0], "logistic"),
    ),
}


def start_of(model, seed=1, scale=0.4):
    return scale * np.random.default_rng(seed).standard_normal(model.size)


@pytest.mark.parametrize(("model", "problem"), CASES.values(), ids=CASES)
def test_both_clocks_agree(model, problem):
    theta0 = start_of(model)
    a = gflow.flow(model, problem, theta0, [0.3, 3.0, 30.0])
    b = by_loss(model, problem, theta0, -np.log(a.loss))
    assert b.status.ok
    # a time is as exact as the loss over its speed
    np.testing.assert_allclose(np.exp(b.log_time), a.t, rtol=1e-6)
    np.testing.assert_allclose(b.theta, a.theta, rtol=0, atol=1e-7)
    assert max(b.gauges.dissipation_defect) < 1e-8
    error = b.error_estimate()
    assert error.theta.max() < 1e-7 and error.log_time.max() < 1e-6


@pytest.mark.parametrize("loss", ["logistic", "exponential", "softmax"])
def test_both_clocks_agree_through_kinks(loss):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((8, 3))
    y = np.sign(x[:, 0] * x[:, 1] + 0.3)
    outputs = 2 if loss == "softmax" else 1
    problem = gflow.Problem(x, np.eye(2)[(y > 0).astype(int)] if outputs == 2 else y, loss)
    model = gflow.TwoLayerReLU(3, 6, outputs)
    theta0 = model.init("balanced", scale=0.5)
    a = gflow.flow(model, problem, theta0, np.linspace(0.5, 30.0, 8))
    b = by_loss(model, problem, theta0, -np.log(a.loss))
    assert b.status.ok and len(a.events.t) > 5
    assert a.events.kind.tolist() == b.events.kind.tolist()
    assert a.events.neuron.tolist() == b.events.neuron.tolist()
    np.testing.assert_allclose(b.theta, a.theta, rtol=0, atol=1e-7)
    np.testing.assert_allclose(np.exp(b.log_time), a.t, rtol=1e-6)
    assert np.all(np.diff(b.events.t) >= 0) and b.events.t[-1] <= b.t[-1]
    assert max(b.gauges.invariant_drift) < 1e-8


def test_log_time_gains_with_the_tolerance():
    """Its error falls with rtol, in proportion or faster."""
    model, problem = CASES["deep, logistic"]
    t = np.array([1.0, 10.0, 60.0])
    exact = by_loss(model, problem, start_of(model), t, rtol=1e-13)
    rtols = np.array([1e-6, 1e-8, 1e-10])
    errors = []
    for rtol in rtols:
        got = by_loss(model, problem, start_of(model), t, rtol=rtol, method="dop853")
        errors.append(np.abs(got.log_time - exact.log_time).max())
        assert errors[-1] <= 100 * rtol * (1 + t[-1])
    assert np.polyfit(np.log(rtols), np.log(errors), 1)[0] > 0.7


# ---- runs --------------------------------------------------------------------------------------------------


def test_more_levels_change_nothing_and_a_continuation_equals_the_whole():
    model, problem = CASES["deep, logistic"]
    theta0, t = start_of(model), np.array([1.0, 2.0, 5.0, 20.0, 60.0])
    whole = by_loss(model, problem, theta0, t)
    coarse = by_loss(model, problem, theta0, t[[1, 4]])
    np.testing.assert_array_equal(coarse.theta, whole.theta[[1, 4]])
    np.testing.assert_array_equal(coarse.log_time, whole.log_time[[1, 4]])
    first = by_loss(model, problem, theta0, t[:2])
    rest = by_loss(model, problem, None, t[2:], start=first)
    np.testing.assert_array_equal(rest.theta, whole.theta[2:])
    np.testing.assert_array_equal(rest.log_time, whole.log_time[2:])
    np.testing.assert_array_equal(rest.s, whole.s[2:])
    scalar = by_loss(model, problem, theta0, 20.0)
    assert scalar.t[0] == -scalar.log_loss[0] and len(scalar.t) == 2
    np.testing.assert_array_equal(scalar.theta[0], theta0)
    # step starts in units of log(1/L)
    assert whole.steps.t[0] == scalar.t[0] and whole.steps.t[-1] < 60.0 <= (whole.steps.t + whole.steps.h)[-1]


@pytest.mark.parametrize("network", ["deep", "relu"])
def test_a_continuation_from_within_a_step_equals_the_whole_bit_for_bit(network):
    """With many levels in a step: where they lie in it, and their times, come from its polynomial."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((10, 3))
    problem = gflow.Problem(x, np.sign(x @ rng.standard_normal(3)), "logistic")
    model = gflow.TwoLayerReLU(3, 6) if network == "relu" else gflow.DeepLinear((3, 4, 1))
    theta0 = 0.3 * rng.standard_normal(model.size)
    levels = -Objective(model, problem.log).loss(theta0) + np.linspace(0.001, 5.0, 200)
    whole = gflow.flow(model, problem, theta0, levels, clock="loss", rtol=1e-3)
    for cut in range(1, 198, 28):
        head = gflow.flow(model, problem, theta0, levels[:cut], clock="loss", rtol=1e-3)
        tail = gflow.flow(model, problem, None, levels[cut:], start=head, clock="loss")
        for name in ("theta", "log_time", "s", "dissipation"):
            np.testing.assert_array_equal(getattr(tail, name), getattr(whole, name)[cut:])


def test_stop_and_record(tmp_path):
    model, problem = CASES["deep, softmax"]
    asked = []

    def stop(t, theta):
        asked.append(t)
        return t > 10.0

    got = by_loss(
        model, problem, start_of(model), [1.0, 30.0], stop=stop, observe=["log_loss", "linear_margin"]
    )
    assert got.status.code == "stopped" and "log(1/L)" in got.status.message
    assert got.t[-1] == asked[-1] > 10.0 >= asked[-2]
    np.testing.assert_allclose(got["log_loss"], -got.t, rtol=1e-12)
    again = gflow.load(got.save(tmp_path / "run"))
    np.testing.assert_array_equal(again.log_time, got.log_time)
    np.testing.assert_array_equal(again.log_loss, got.log_loss)
    assert again.gauges.dissipation_defect.max() < 1e-8 and again.spec["clock"] == "loss"
    on = by_loss(model, problem, None, [20.0], start=again)
    assert on.status.ok and np.isfinite(on.log_time).all()
    assert "Sensitivity is not measured" in str(got.status)
    with pytest.raises(ValueError, match="clock"):
        got.sensitivity()


def test_pictures_and_comparisons_know_the_clock():
    from matplotlib.figure import Figure

    model, problem = CASES["predictor, logistic"]
    got = by_loss(model, problem, start_of(model), [2.0, 5.0, 30.0])
    ax = Figure().subplots()
    (line,) = gflow.plot.loss(ax, got)
    np.testing.assert_array_equal(line.get_xdata(), got.log_time)
    np.testing.assert_allclose(line.get_ydata(), -got.t, rtol=1e-11)
    ax = Figure().subplots()
    gflow.plot.steps(ax, got)
    assert "1/L" in ax.get_xlabel()
    square = gflow.Problem.factorization([[2.0]])
    net = gflow.DeepLinear((1, 1, 1))
    prediction = gflow.theory.linear.modes(net, square, net.init("aligned", scale=0.1, problem=square))
    with pytest.raises(ValueError, match="trajectory.*clock"):
        gflow.compare(got, prediction)


def test_data_that_are_not_separable_are_said_to_be_so():
    model, problem = CASES["not separable"]
    got = by_loss(model, problem, start_of(model), 50.0)
    assert got.status.code == "settled" and "separate" in got.status.message
    # at each point two labels to one: L tends to the entropy of (2/3, 1/3)
    assert got.log_loss[-1] == pytest.approx(np.log(np.log(3) - 2 / 3 * np.log(2)), abs=1e-12)
    assert got.counts["accepted"] < 5_000


@pytest.mark.parametrize("rtol", [1e-6, 1e-9])
@pytest.mark.parametrize("start", [[1.0, 0.5], [0.3, -0.4]])
def test_a_sample_that_no_neuron_sees_leaves_a_loss_behind(start, rtol):
    """The other's loss falls like 1/s: the weights grow for ever, s beyond all numbers, and L tends to log(2) / 2."""
    problem = gflow.Problem([[1.0], [-1.0]], [-1.0, 1.0], loss="logistic")
    got = by_loss(gflow.TwoLayerReLU(1, 1), problem, start, [0.9, 1.0, 1.2], rtol=rtol)
    assert got.status.code == "settled"
    assert got.t[-1] == pytest.approx(-np.log(0.5 * np.log(2.0)), abs=1e-14)
    np.testing.assert_allclose(-got.log_loss, got.t, rtol=1e-12)
    assert np.all(np.diff(got.log_time) > 0)


def test_a_small_start_far_behind_does_not_cost_resolution():
    """Depth 3 leaves the saddle at s = 1e3 or so, and takes steps of 1e-7 at log(1/L) = 1e4."""
    model, problem = gflow.DeepLinear((2, 2, 2, 1)), separable(5, 2, 8)
    theta0 = model.init("balanced", scale=1e-3)
    got = by_loss(model, problem, theta0, [0.5, 10.0, 1e4])
    assert got.status.code == "finished" and got.s[-1] > 1e3
    assert got.gauges.invariant_drift.max() < 1e-7
    np.testing.assert_allclose(-got.log_loss, got.t, rtol=1e-12)
    finer = by_loss(model, problem, theta0, got.t, rtol=1e-12)
    np.testing.assert_allclose(got.theta, finer.theta, rtol=0, atol=1e-7 * np.abs(finer.theta).max())
    np.testing.assert_allclose(got.log_time, finer.log_time, rtol=1e-7, atol=1e-6)


def test_the_rise_is_that_of_the_loss():
    """The quadrature of one step against mpmath: the polynomial's own integral, with l rising by 0.1 to 1e4."""
    for rise in ([0.1, 0.02, -0.01], [30.0, -5.0, 3.0], [1e4, 300.0, 20.0]):
        for x in (0.3, 1.0):
            with mpmath.workdps(30):
                end = sum(c * mpmath.mpf(x) ** (d + 1) for d, c in enumerate(rise))
                exact = mpmath.log(0.7 * integral(rise, x, end))
            got = lossclock._log_time(np.array(rise), 0.7, x)
            assert got == pytest.approx(float(exact), abs=1e-11)


def integral(rise, x, end):
    """Of e^(l - end) over [0, x], in panels that end where it has fallen to nothing."""

    def f(z):
        return mpmath.exp(sum(c * z ** (d + 1) for d, c in enumerate(rise)) - end)

    width = min(mpmath.mpf(x), 100 / mpmath.mpf(rise[0]))
    return mpmath.quad(f, mpmath.linspace(x - width, x, 40))


def test_levels_lie_where_the_state_says():
    model, problem = CASES["predictor, logistic"]
    t = np.linspace(1.0, 40.0, 50)
    for method in ("tsit5", "dop853"):
        got = by_loss(model, problem, start_of(model), t, method=method)
        np.testing.assert_allclose(-got.log_loss, t, rtol=1e-11)


@pytest.mark.parametrize(("method", "rtol"), [("tsit5", 1e-5), ("dop853", 1e-6), ("dop853", 1e-9)])
def test_a_level_costs_a_few_gradients(method, rtol):
    """Also where the interpolant departs: then by a step or two of its own and a midpoint step.

    The long steps of a diagonal network, of which several levels lie in each.
    """
    problem, model = separable(0, 5, 20), gflow.Diagonal(5)
    theta0, t = model.init(scale=0.1), np.linspace(1.0, 27.0, 60)
    got, finer = (by_loss(model, problem, theta0, t, method=method, rtol=r) for r in (rtol, 1e-13))
    few = by_loss(model, problem, theta0, t[-1:], method=method, rtol=rtol)
    stages = {"tsit5": 6, "dop853": 12}[method]
    np.testing.assert_array_equal(got.theta[-1], few.theta[-1])
    assert got.counts["accepted"] == few.counts["accepted"]
    extra = got.counts["gradients"] - few.counts["gradients"]
    assert extra <= 5 * got.counts["accepted"] + len(t) * (2 * stages + 1)
    np.testing.assert_allclose(-got.log_loss, t, rtol=1e-12)
    np.testing.assert_allclose(got.theta, finer.theta, rtol=0, atol=100 * rtol * np.abs(finer.theta).max())
    np.testing.assert_allclose(got.log_time, finer.log_time, rtol=0, atol=100 * rtol * (1 + t[-1]))
    # what has been given off by then is the fall of log L, wherever the level lies in its step
    assert np.max(got.gauges.dissipation_defect) < 100 * rtol


# ---- the limit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "n", "outputs"), [(2, 9, 1), (5, 30, 1), (6, 4, 1), (3, 10, 3), (2, 12, 4)])
def test_max_margin_against_a_general_solver(d, n, outputs):
    problem = separable(d + n, d, n, "softmax" if outputs > 1 else "logistic", outputs)
    got = max_margin(problem)
    x, y = problem.X, problem.Y
    if outputs == 1:
        rows = y * x
    else:
        rows = np.array([
            np.outer(np.eye(outputs)[right] - np.eye(outputs)[a], u).ravel()
            for u, right in zip(x, y.argmax(axis=1), strict=True) for a in range(outputs) if a != right
        ])  # fmt: skip
    solved = minimize(
        lambda w: 0.5 * w @ w, np.ones(rows.shape[1]), jac=lambda w: w, method="SLSQP",
        constraints={"type": "ineq", "fun": lambda w: rows @ w - 1, "jac": lambda w: rows},
        options={"maxiter": 1000, "ftol": 1e-15},
    )  # fmt: skip
    assert np.linalg.norm(got.direction) == pytest.approx(1, rel=1e-14)
    assert got.margin == pytest.approx(1 / np.linalg.norm(solved.x), rel=1e-6)
    np.testing.assert_allclose(got.direction.ravel(), solved.x / np.linalg.norm(solved.x), atol=1e-5)
    # the conditions of the optimum, which prove it
    leads = rows @ got.direction.ravel()
    assert leads.min() == pytest.approx(got.margin, rel=1e-12)
    a = got.multipliers if outputs == 1 else got.multipliers[y == 0]
    assert a.min() >= 0 and a.sum() == pytest.approx(got.margin**-2, rel=1e-10)
    np.testing.assert_allclose(a @ rows, got.direction.ravel() / got.margin, atol=1e-10 / got.margin)
    np.testing.assert_allclose(a * (leads - got.margin), 0, atol=1e-10)


def test_max_margin_of_data_that_are_not_separable():
    for x, y in (
        ([[1.0], [1.0]], [1, -1]),
        ([[1.0, 0], [-1, 0], [0, 1]], [1, 1, 1]),
        (np.zeros((2, 2)), [1, -1]),
    ):
        with pytest.raises(ValueError, match="separable"):
            max_margin(gflow.Problem(x, y, "logistic"))


def angle_and_limit(model, problem, top, scale=0.1):
    got = by_loss(
        model, problem, model.init("balanced", scale=scale), np.geomspace(1e2, top, 4 * round(np.log10(top)) - 7),
        max_steps=10**8,
    )  # fmt: skip
    assert got.status.code == "finished"
    wanted = max_margin(problem)
    reached = gflow.observe.limit(got, "direction")
    off = float(np.linalg.norm(reached.value - wanted.direction))
    return angle_to(wanted.direction)(model, problem, got.end), off, reached, got


@pytest.mark.parametrize("seed", [1, 9, 11])
@pytest.mark.parametrize("hidden", [(), (4,), (3, 3)], ids=["1", "2", "3"])
def test_the_direction_tends_to_the_largest_margin(hidden, seed):
    """Of seed 9 two support vectors leave a direction open, along which deep networks tend like l^(-1/N)."""
    d, n = {1: (3, 18), 9: (3, 18), 11: (2, 9)}[seed]
    problem = separable(seed, d, n)
    model = gflow.DeepLinear((d, *hidden, 1))
    raw, off, reached, got = angle_and_limit(model, problem, 1e5)
    # a series in l^(-1/3) gains less than one in 1/l
    assert off <= reached.error <= (0.5 if seed == 9 else 0.1) * raw + 1e-8
    assert raw <= 1e-4 if not hidden or seed != 9 else raw <= 1e-2
    margins = gflow.observe.along(got, "linear_margin")
    assert margins[-1] == pytest.approx(max_margin(problem).margin, rel=1e-3)


def test_the_direction_of_softmax_tends_to_the_largest_margin():
    problem = separable(3, 3, 8, "softmax", 3, gap=1.5)
    raw, off, reached, _ = angle_and_limit(gflow.DeepLinear((3, 3)), problem, 1e5)
    assert off <= reached.error <= 1e-6 and raw <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("widths", [(3, 1), (3, 8, 8, 1), (3, 5, 1)], ids=str)
def test_log_one_over_loss_of_a_million(widths):
    raw, off, reached, got = angle_and_limit(gflow.DeepLinear(widths), separable(1, 3, 18), 1e6)
    assert raw <= 1e-5
    assert off <= reached.error <= 1e-6
    assert got.loss[-1] == 0.0 and got.log_loss[-1] == pytest.approx(-1e6, rel=1e-12)


def test_the_limit_of_known_series():
    """Terms in 1/l, and for degree 2 in its root: the stated error holds and is not idle."""
    levels = np.geomspace(1e2, 1e6, 9)
    model, problem = gflow.DeepLinear((1, 1)), gflow.Problem([[1.0]], [1.0], "exponential")
    got = by_loss(model, problem, [0.5], levels)

    def series(model, problem, theta):
        l = float(theta[0])
        return np.array([1.0 + 3.0 / l - 40.0 / l**2 + 100.0 / l**3, 2.0 - 1.0 / l])

    found = gflow.observe.limit(got, series)
    off = np.linalg.norm(found.value - [1.0, 2.0])
    assert off <= found.error <= 1e-6 and found.power == 1.0
    two = gflow.DeepLinear((1, 1, 1))
    got = by_loss(two, problem, [0.7, 0.7], levels)

    def roots(model, problem, theta):
        r = 1 / float(theta[0])  # l = a^2
        return np.array([1.0 + 0.01 * r + r**2])

    found = gflow.observe.limit(got, roots)
    assert abs(found.value[0] - 1.0) <= found.error <= 1e-6 and found.power == 0.5
