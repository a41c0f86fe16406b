"""The implicit loop: order, stability, its linear solver, resumption, and the ways in which it comes back."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from test_explicit import Riccati

import gflow
from gflow.kernels import abi, explicit, stiff, tableaus
from gflow.objective import Objective


@numba.njit
def bowl_gradient(t, theta, data, dims, work, out):
    for i in range(theta.size):
        out[i] = data[i] * theta[i]


@numba.njit
def bowl_hvp(t, theta, v, data, dims, work, out):
    for i in range(v.size):
        out[i] = data[i] * v[i]


@numba.njit
def runaway_gradient(t, theta, data, dims, work, out):
    for i in range(theta.size):
        out[i] = -(theta[i] ** 3)


@numba.njit
def runaway_hvp(t, theta, v, data, dims, work, out):
    for i in range(theta.size):
        out[i] = -3.0 * theta[i] ** 2 * v[i]


class Bowl:
    """L = sum_i h_i theta_i^2 / 2: theta_i = theta_i(0) e^(-h_i t)."""

    gradient, hvp = bowl_gradient, bowl_hvp

    def __init__(self, eigenvalues):
        self.eigenvalues, self.size = np.asarray(eigenvalues, dtype=float), len(eigenvalues)

    def kernel_arguments(self, problem):
        return self.eigenvalues, np.zeros(1, dtype=np.int64), 1


class Runaway:
    """L = -sum_i theta_i^4 / 4 has no flow beyond t = 1 / (2 theta(0)^2)."""

    gradient, hvp, size = runaway_gradient, runaway_hvp, 2

    def kernel_arguments(self, problem):
        return np.empty(0), np.zeros(1, dtype=np.int64), 1


def new_stiff(size, nanoseconds):
    return stiff.stiff_of.py_func(*stiff.new_arrays(size, nanoseconds), size)


class Loop:
    """One integration by the compiled loop, driven by hand."""

    def __init__(
        self, objective, theta0, times, rtol=1e-6, atol=1e-12, kind=stiff.BDF, block=20_000, nanoseconds=1e4
    ):
        self.objective, self.tableau, self.kind = objective, tableaus.tsit5(), kind
        theta0 = np.array(theta0, dtype=float)
        self.state = explicit.new_state(theta0, 0.0, self.tableau)
        self.stiff = new_stiff(theta0.size, nanoseconds)
        self.rtol, self.atol = rtol, np.full(theta0.size, atol)
        shape = np.empty((len(times), theta0.size)), np.empty(len(times)), np.empty((block, 3))
        nothing = np.empty((0, 2)), np.empty((0, 1, theta0.size))
        self.output = explicit.Output(
            np.zeros(3, dtype=np.int64), np.array(times, dtype=float), *shape, *nothing
        )

    def finish(self, budget=10**6, max_steps=10**5):
        """Call until it is done."""
        o = self.objective
        while True:
            code = stiff.advance(
                o.gradient_kernel, o.hvp_kernel, o.data, o.dims, o.work, self.tableau, self.state, self.stiff,
                self.output, self.kind, self.rtol, self.atol, 16, budget, max_steps,
            )  # fmt: skip
            if code != explicit.PAUSED:
                return code

    def finish_steps(self, count):
        """Attempt that many steps."""
        o = self.objective
        for _ in range(count):
            code = stiff.advance(
                o.gradient_kernel, o.hvp_kernel, o.data, o.dims, o.work, self.tableau, self.state, self.stiff,
                self.output, self.kind, self.rtol, self.atol, 16, 1, 10**5,
            )  # fmt: skip
            assert code == explicit.PAUSED


# ---- order -------------------------------------------------------------------------------------------------


def riccati_flow(times):
    """States of U' = -2 (U U^T - M) U by the explicit method at a hundredth of rounding's reach."""
    o = Riccati.objective
    tableau, size = tableaus.dop853(), o.size
    state = explicit.new_state(Riccati.start.ravel(), 0.0, tableau)
    theta = np.empty((len(times), size))
    output = explicit.Output(
        np.zeros(3, dtype=np.int64), np.array(times), theta, np.empty(len(times)), np.empty((10_000, 3)),
        np.empty((0, 2)), np.empty((0, 1, size)),
    )  # fmt: skip
    explicit.advance(
        o.gradient_kernel, o.data, o.dims, o.work, tableau, state, output, 1e-14, np.full(size, 1e-16), 10**6, 10**6
    )  # fmt: skip
    return theta


def fixed_steps(order, n, begin=0.5, end=1.5):
    """Largest errors at, and between, n steps of equal ratio; the history is exact."""
    o, ratio = Riccati.objective, (end / begin) ** (1 / n)
    sf, counters = new_stiff(o.size, 1e4), np.zeros(8, dtype=np.int64)
    state = explicit.new_state(Riccati.start.ravel(), 0.0, tableaus.tsit5())
    past = begin * ratio ** np.arange(-order, 1.0)
    for t, theta in zip(past, riccati_flow(past), strict=True):
        stiff._remember(sf, t, theta)
    theta, new, inside, atol = sf.differences[0].copy(), np.empty(o.size), np.empty(o.size), np.zeros(o.size)
    at_steps, between, t = 0.0, 0.0, begin
    for _ in range(n):
        h = t * (ratio - 1)
        error = stiff.attempt(
            o.gradient_kernel, o.hvp_kernel, t, h, o.data, o.dims, o.work, counters, sf, order, theta, new, 1e-13, atol
        )  # fmt: skip
        assert np.isfinite(error)
        theta[:] = new
        stiff._remember(sf, t + h, theta)
        sf.numbers[stiff.LAST_ORDER] = order
        state.clock[explicit.T_BEFORE], state.clock[explicit.T] = t, t + h
        at_steps = max(at_steps, Riccati.error(theta, t + h))
        for x in (0.2, 0.5, 0.8):
            stiff.interpolate(state, sf, t + x * h, inside)
            between = max(between, Riccati.error(inside, t + x * h))
        t += h
    return at_steps, between


@pytest.mark.parametrize("size", [1, 2, 7, 8, 33, 500, 2**15 + 1])
def test_the_arrays_fill_their_numbers_and_do_not_overlap(size):
    flat, counts = stiff.new_arrays(size, 1e4)
    arrays = [
        a for name, a in stiff.stiff_of.py_func(flat, counts, size)._asdict().items() if name != "numbers"
    ]
    flat[:] = 0.0
    for i, array in enumerate(arrays):
        assert not array.any() and array.flags.c_contiguous
        array[...] = i + 1.0
    assert all((array == i + 1.0).all() for i, array in enumerate(arrays))
    assert flat.size - sum(a.size for a in arrays) < 256 and (flat[stiff.SWITCH_TIMES] == arrays[4][0]).all()


@pytest.mark.parametrize("held", [0, 3])
def test_divided_differences_are_those_of_their_definition(held):
    """Of the states since the history was last dropped, with more of them than it holds."""
    rng = np.random.default_rng(0)
    sf = new_stiff(3, 1e4)
    for t in np.cumsum(rng.uniform(0.5, 1.5, held)):
        stiff._remember(sf, t, rng.standard_normal(3))
    sf.numbers[stiff.HELD] = 0
    times, states = np.cumsum(rng.uniform(0.5, 1.5, 11)), rng.standard_normal((11, 3))
    for count, (t, state) in enumerate(zip(times, states, strict=True), 1):
        stiff._remember(sf, t, state)
        nodes, table = np.log(times[:count] / t)[::-1], states[:count][::-1].copy()
        kept = min(count, len(sf.differences))
        np.testing.assert_allclose(sf.nodes[: min(count, 8)], nodes[:8], rtol=1e-12, atol=1e-14)
        for order in range(1, kept):
            table = (table[:-1] - table[1:]) / (nodes[: count - order] - nodes[order:count])[:, None]
            np.testing.assert_allclose(sf.differences[order], table[0], rtol=1e-9)


@pytest.mark.parametrize("order", range(1, stiff.HIGHEST + 1))
def test_order_of_convergence(order):
    counts = np.array([12, 16, 24, 32, 48]) * (2 if order < 4 else 1)
    errors = np.log([fixed_steps(order, n) for n in counts])
    for what, error in zip(("steps", "interpolant"), errors.T, strict=True):
        slope = -np.polyfit(np.log(counts), error, 1)[0]
        assert slope >= order - 0.35, (what, slope)


def test_the_error_estimate_measures_the_error_of_a_step():
    """From an exact history, on a problem that is not stiff."""
    o, atol, t, h = Riccati.objective, np.full(6, 1e-3), 1.0, 0.05
    for order in range(1, 5):
        sf, counters = new_stiff(o.size, 1e4), np.zeros(8, dtype=np.int64)
        past = t * (1 + h) ** np.arange(-order, 1.0)
        for when, theta in zip(past, riccati_flow(past), strict=True):
            stiff._remember(sf, when, theta)
        new = np.empty(o.size)
        estimate = stiff.attempt(
            o.gradient_kernel, o.hvp_kernel, t, h, o.data, o.dims, o.work, counters, sf, order,
            sf.differences[0], new, 0.0, 1e-9 * atol,
        )  # fmt: skip
        error = np.sqrt(np.mean(((new - riccati_flow([t + h])[0]) / (1e-9 * atol)) ** 2)) / stiff._SHARE
        assert 0.4 <= estimate / error <= 2.5, (order, estimate, error)


# ---- when it begins ----------------------------------------------------------------------------------------


def after_explicit_steps(objective, theta0, rtol, count):
    """A loop that has taken that many explicit steps, of which the formula's history knows the last."""
    loop = Loop(objective, theta0, [1e30], rtol=rtol, kind=stiff.AUTO)
    loop.stiff.numbers[stiff.NEXT_LOOK] = 10**6
    loop.finish_steps(count - loop.stiff.times.size)
    loop.stiff.numbers[stiff.COLLECTING] = 1
    loop.finish_steps(loop.stiff.times.size)
    return loop


def test_the_largest_eigenvalue_is_seen():
    """On a separable problem, where the error of a step lies in slow directions and hides the fast ones."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((20, 5))
    o = Objective(gflow.DeepLinear((5, 1)), gflow.Problem(x, np.sign(x @ rng.standard_normal(5)), "logistic"))
    loop = after_explicit_steps(o, np.zeros(5), 1e-4, 100)
    state = loop.state
    true = np.linalg.eigvalsh(o.hessian(state.theta))[-1]
    seen = stiff._stiffness(o.hvp_kernel, o.data, o.dims, o.work, loop.tableau, state, loop.stiff)
    assert seen == pytest.approx(true * state.clock[explicit.H_BEFORE], rel=0.3)


@numba.njit
def no_hvp(t, theta, v, data, dims, work, out):
    for i in range(v.size):
        out[i] = np.nan


def test_products_that_are_not_numbers_say_nothing_of_stiffness():
    class Broken(Bowl):
        hvp = no_hvp

    loop = after_explicit_steps(Objective(Broken([1.0, 1e3]), None), [1.0, 1.0], 1e-4, 60)
    o = loop.objective
    assert np.isnan(
        stiff._stiffness(o.hvp_kernel, o.data, o.dims, o.work, loop.tableau, loop.state, loop.stiff)
    )
    loop.stiff.numbers[stiff.NEXT_LOOK] = 0
    loop.finish_steps(40)
    assert not loop.stiff.numbers[stiff.IMPLICIT]


@pytest.mark.parametrize(("nanoseconds", "implicit"), [(1e4, True), (1.0, False)])
def test_the_price_of_an_implicit_step_counts_what_it_takes_besides_its_gradients(nanoseconds, implicit):
    loop = Loop(
        Objective(Bowl(np.geomspace(1.0, 1e3, 6)), None),
        np.ones(6),
        [1e9],
        kind=stiff.AUTO,
        nanoseconds=nanoseconds,
    )
    loop.finish_steps(280)
    assert bool(loop.stiff.numbers[stiff.IMPLICIT]) == implicit


def test_the_forecast_is_a_step_of_the_error_that_is_allowed():
    """From the explicit steps of a smooth flow: a step so long, at that order, is accepted or nearly so."""
    loop = after_explicit_steps(Objective(Bowl([0.5, 1.0]), None), [1.0, 1.0], 1e-7, 30)
    o, state, sf = loop.objective, loop.state, loop.stiff
    order, h = sf.numbers[stiff.ORDER], sf.rates[stiff.FORESEEN]
    assert 3 <= order <= stiff.HIGHEST and h > 0
    error = stiff.attempt(
        o.gradient_kernel, o.hvp_kernel, state.clock[explicit.T], h, o.data, o.dims, o.work, state.counters, sf, order,
        state.theta, state.theta_new, loop.rtol, loop.atol,
    )  # fmt: skip
    assert 0.01 <= error <= 2.0, (order, error)


# ---- the linear solver -------------------------------------------------------------------------------------


def solve(o, theta, residual, shift, accuracy):
    sf, counters = new_stiff(o.size, 1e4), np.zeros(8, dtype=np.int64)
    sf.guess[:], sf.slope[:] = theta, o.gradient(theta)
    square = stiff._begin(-residual - sf.slope, sf.slope, sf.residual, sf.direction, sf.correction)
    good = stiff.correct(
        o.gradient_kernel, o.hvp_kernel, 0.0, o.data, o.dims, o.work, counters, sf, shift, accuracy, square
    )
    return good, sf.correction, int(counters[explicit.GRADIENTS]), int(sf.numbers[stiff.PRODUCTS])


@pytest.mark.parametrize("accuracy", [1e-2, 1e-4, 1e-6])
def test_the_correction_solves_the_linear_system_to_the_accuracy(accuracy):
    rng, n = np.random.default_rng(0), 200
    o = Objective(Bowl(np.geomspace(1e-3, 1e3, n)), None)
    for shift in (1e-2, 1.0, 100.0):
        theta, r = rng.standard_normal(n), rng.standard_normal(n)
        exact = r / (o.data + shift)
        good, x, _, _ = solve(o, theta, r, shift, accuracy * np.linalg.norm(exact))
        assert good
        assert np.linalg.norm(x - exact) <= accuracy * np.linalg.norm(exact)


def test_differences_serve_until_the_shift_is_too_small_for_them():
    o = Objective(Bowl(np.geomspace(1.0, 1e4, 50)), None)
    theta, r = np.ones(50), np.ones(50)
    good, _, gradients, products = solve(o, theta, r, 10.0, 1e-3)
    assert good and gradients > 0 and products == 0
    shift = 1e-6
    good, x, gradients, products = solve(o, theta, r, shift, 1e-9)
    assert good and products > 0 and gradients <= 2
    np.testing.assert_allclose(x, r / (o.data + shift), rtol=1e-6)


def test_an_indefinite_system_is_refused():
    o = Objective(Bowl([1.0, 2.0, -3.0]), None)
    assert not solve(o, np.ones(3), np.ones(3), 1.0, 1e-6)[0]
    assert solve(o, np.ones(3), np.ones(3), 4.0, 1e-6)[0]


# ---- whole runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rtol", [1e-4, 1e-6, 1e-8])
def test_a_stiff_bowl_follows_the_exponential(rtol):
    """Each mode on its own scale, at times that are not the steps'; explicit steps would be 1e7."""
    eigenvalues, times = np.geomspace(1e-4, 1e4, 40), np.geomspace(1e-4, 1e4, 33)
    o = Objective(Bowl(eigenvalues), None)
    loop = Loop(o, np.ones(40), times, rtol=rtol, atol=rtol * 1e-3)
    assert loop.finish() == explicit.FINISHED
    exact = np.exp(-np.outer(times, eigenvalues))
    scale = rtol * np.sqrt(np.mean(exact**2, axis=1)) + 1e-3 * rtol
    assert (np.sqrt(np.mean((loop.output.theta - exact) ** 2, axis=1)) / scale).max() <= 100
    assert loop.state.counters[explicit.ACCEPTED] + loop.state.counters[explicit.REJECTED] < 5000
    # the dissipation: sum of h (1 - e^(-2 h t)) / 2
    spent = 0.5 * (-np.expm1(-2 * np.outer(times, eigenvalues))) @ eigenvalues
    assert abs(loop.output.dissipation / spent - 1).max() <= 100 * rtol


def test_growth_is_followed():
    """Over 20 e-folds beside stiff modes: each step adds its own relative error."""
    o = Objective(Bowl([-1.0, 0.3, 50.0, 1e3]), None)
    times = np.linspace(0.5, 20.0, 9)
    loop = Loop(o, [1e-6, 1.0, 1.0, 1.0], times, rtol=1e-7, atol=1e-16)
    assert loop.finish() == explicit.FINISHED
    np.testing.assert_allclose(loop.output.theta[:, 0], 1e-6 * np.exp(times), rtol=300 * 1e-7)


@pytest.mark.parametrize("kind", [stiff.BDF, stiff.AUTO])
@pytest.mark.parametrize("budget", [1, 7])
def test_pausing_changes_nothing(kind, budget):
    o, times = Objective(Bowl(np.geomspace(1e-2, 1e3, 70)), None), np.geomspace(1e-3, 100.0, 23)
    start = np.random.default_rng(0).standard_normal(70)
    whole, parts = (Loop(o, start, times, kind=kind) for _ in range(2))
    assert whole.finish() == parts.finish(budget) == explicit.FINISHED
    assert whole.stiff.numbers[stiff.IMPLICIT]
    np.testing.assert_array_equal(whole.output.theta, parts.output.theta)
    np.testing.assert_array_equal(whole.output.dissipation, parts.output.dissipation)
    np.testing.assert_array_equal(whole.output.history[:50], parts.output.history[:50])
    for name in stiff.KEPT:
        np.testing.assert_array_equal(getattr(whole.stiff, name), getattr(parts.stiff, name), err_msg=name)


def test_saving_changes_no_step():
    o = Objective(Bowl(np.geomspace(1e-2, 1e3, 20)), None)
    few, many = (Loop(o, np.ones(20), times) for times in ([50.0], np.linspace(0.0, 50.0, 500)))
    assert few.finish() == many.finish() == explicit.FINISHED
    n = int(few.output.cursor[explicit.HISTORY])
    np.testing.assert_array_equal(few.output.history[:n], many.output.history[:n])
    np.testing.assert_array_equal(few.output.theta[-1], many.output.theta[-1])


@pytest.mark.parametrize("kind", [stiff.BDF, stiff.AUTO])
def test_a_flow_that_ceases_to_exist_is_not_followed(kind):
    loop = Loop(Objective(Runaway(), None), [1.0, 0.5], [1.0], kind=kind)
    assert loop.finish() in (explicit.STEP_TOO_SMALL, explicit.NON_FINITE)
    assert loop.state.clock[explicit.T] == pytest.approx(0.5, rel=1e-4)


def test_the_loop_comes_back_at_max_steps_and_at_a_full_block():
    o = Objective(Bowl(np.geomspace(1e-2, 1e3, 20)), None)
    assert Loop(o, np.ones(20), [50.0]).finish(max_steps=40) == explicit.MAX_STEPS
    assert Loop(o, np.ones(20), [50.0], block=30).finish() == explicit.BLOCK_FULL


def test_one_compilation_serves_all_models():
    assert len(stiff.advance.signatures) == 1
    assert isinstance(Objective(Runaway(), None).hvp_kernel, abi.Kernel)
