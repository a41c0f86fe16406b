"""The compiled Runge-Kutta loop: order, resumption, memory and the ways in which it comes back."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from cases import CASES
from numba.core.runtime import _nrt_python
from numba.core.runtime.nrt import rtsys
from scipy.integrate import solve_ivp, trapezoid

import gflow
from gflow.kernels import abi, explicit, tableaus
from gflow.objective import Objective

PAIRS = {"tsit5": tableaus.tsit5(), "dop853": tableaus.dop853()}
by_pair = pytest.mark.parametrize("pair", PAIRS)
NOTHING = np.empty(0), np.empty(0, dtype=np.int64), np.empty(0)


class Riccati:
    """U' = -2 (U U^T - M) U, of which P = U U^T has a closed form."""

    m = np.array([[1.0, 0.3, 0.0], [0.3, 0.5, 0.2], [0.0, 0.2, -0.4]])
    start = 0.4 * np.random.default_rng(0).standard_normal((3, 2))
    objective = Objective(gflow.Symmetric(3, 2), gflow.Problem.factorization(m))

    @classmethod
    def error(cls, theta, t):
        """P' = 2 (M P + P M - 2 P^2): P = E U0 (1 + U0^T K U0)^-1 U0^T E, E = e^(2 M t), K' = 4 E^2."""
        values, v = np.linalg.eigh(cls.m)
        x = v * np.exp(2 * values * t) @ v.T @ cls.start
        k = v * (np.expm1(4 * values * t) / values) @ v.T
        p = x @ np.linalg.solve(np.eye(2) + cls.start.T @ k @ cls.start, x.T)
        u = theta.reshape(3, 2)
        return abs(u @ u.T - p).max()


def fixed_steps(tableau, n, end=2.0):
    """Largest errors at and between n equal steps."""
    o, last, h = Riccati.objective, tableau.sizes[0] - 1, end / n
    state = explicit.new_state(Riccati.start.ravel(), 0.0, tableau)
    state.stages[0] = -o.gradient(state.theta)
    at_steps, between, inside = 0.0, 0.0, np.empty(o.size)
    for i in range(n):
        explicit.attempt(
            o.gradient_kernel, o.data, o.dims, o.work,
            tableau.source, tableau.weight, tableau.terms, tableau.node, last,
            i * h, h, state.theta, state.theta_new, state.gradient, state.stages, state.slopes,
        )  # fmt: skip
        state.theta_before[:], state.theta[:] = state.theta, state.theta_new
        state.clock[explicit.T_BEFORE], state.clock[explicit.H_BEFORE] = i * h, h
        state.counters[explicit.EXTRA_DONE] = 0
        at_steps = max(at_steps, Riccati.error(state.theta, (i + 1) * h))
        for x in (0.2, 0.45, 0.7, 0.9):
            t = (i + x) * h
            explicit.interpolate(o.gradient_kernel, o.data, o.dims, o.work, tableau, state, t, inside)
            between = max(between, Riccati.error(inside, t))
        state.stages[0] = state.stages[last]
    return at_steps, between


@pytest.mark.parametrize(
    ("pair", "order", "counts"),
    [("tsit5", 4.8, (16, 24, 32, 48, 64, 96)), ("dop853", 7.5, (6, 8, 10, 12, 16, 20, 24))],
)
def test_order_of_convergence(pair, order, counts):
    errors = np.log([fixed_steps(PAIRS[pair], n) for n in counts])
    for what, error in zip(("steps", "interpolant"), errors.T, strict=True):
        slope = -np.polyfit(np.log(counts), error, 1)[0]
        assert slope >= order, (what, slope)


class Loop:
    """One integration by the compiled loop, driven by hand."""

    def __init__(self, kernel, arguments, theta0, times, pair, rtol=1e-8, atol=1e-12, block=20_000, dense=0):
        self.kernel, self.arguments, self.tableau, self.block = kernel, arguments, PAIRS[pair], block
        self.state = explicit.new_state(np.array(theta0, dtype=float), 0.0, self.tableau)
        self.rtol, self.atol = rtol, np.full(len(theta0), atol)
        shape = np.empty((len(times), len(theta0))), np.empty(len(times)), np.empty((block, 3))
        keep = np.empty((dense, 2)), np.empty((dense, 1 + self.tableau.interpolant.shape[1], len(theta0)))
        self.output = explicit.Output(
            np.zeros(3, dtype=np.int64), np.array(times, dtype=float), *shape, *keep
        )
        self.history = []

    def advance(self, budget=10**6, max_steps=10**6):
        return explicit.advance(
            self.kernel,
            *self.arguments,
            self.tableau,
            self.state,
            self.output,
            self.rtol,
            self.atol,
            budget,
            max_steps,
        )

    @classmethod
    def of(cls, case, times, pair, **settings):
        o = Objective(case.model, case.problem)
        return cls(o.gradient_kernel, (o.data, o.dims, o.work), case.theta0, times, pair, **settings)

    def new_block(self):
        """Take the full step history out, as the caller does when the loop says that a block is full."""
        self.history.append(self.output.history[: self.output.cursor[explicit.HISTORY]].copy())
        self.output.cursor[explicit.HISTORY] = 0

    def finish(self, budget=10**6):
        """Call until it is done."""
        while (code := self.advance(budget)) in (explicit.PAUSED, explicit.BLOCK_FULL):
            if code == explicit.BLOCK_FULL:
                self.new_block()
        self.new_block()
        return code


@by_pair
@pytest.mark.parametrize("budget", [1, 7])
def test_pausing_changes_nothing(case, pair, budget):
    times = np.sort(
        np.concatenate([np.linspace(0.0, case.end, 7), case.end * np.linspace(0.5, 0.5001, 5)[1:]])
    )
    whole, parts = (Loop.of(case, times, pair, rtol=1e-6, block=size) for size in (20_000, 5))
    assert whole.finish() == parts.finish(budget) == explicit.FINISHED
    whole.output.cursor[explicit.HISTORY] = parts.output.cursor[explicit.HISTORY] = 0
    np.testing.assert_array_equal(np.concatenate(whole.history), np.concatenate(parts.history))
    np.testing.assert_array_equal(whole.output.theta, parts.output.theta)
    np.testing.assert_array_equal(whole.output.dissipation, parts.output.dissipation)
    work = {"theta_new", "gradient", "weights", "side", "side_slopes"}  # scratch
    for name in set(explicit.State._fields) - work:
        np.testing.assert_array_equal(getattr(whole.state, name), getattr(parts.state, name), err_msg=name)


@by_pair
def test_the_step_history_adds_up(case, pair):
    loop = Loop.of(case, [0.0, case.end], pair, rtol=1e-6)
    assert loop.finish() == explicit.FINISHED
    t, h, accepted = np.concatenate(loop.history).T
    clock, counters = loop.state.clock, loop.state.counters
    ends = np.append(t[1:], clock[explicit.T])
    np.testing.assert_array_equal(ends, t + np.where(accepted, h, 0.0))
    assert clock[explicit.T] >= case.end > clock[explicit.T_BEFORE]
    assert counters[explicit.ACCEPTED] == accepted.sum()
    assert counters[explicit.REJECTED] == len(accepted) - accepted.sum()
    stages, extra = loop.tableau.sizes[:2]
    saved = extra + 1  # the interpolant and a look at how well it obeys the flow ...
    aside = stages - 1  # ... and a step of its own to that time where it does not
    steps = counters[explicit.GRADIENTS] - 2 - (stages - 1) * len(t)
    assert steps in (saved, saved + aside)


@by_pair
def test_steps_do_not_depend_on_what_is_saved(case, pair):
    few = Loop.of(case, [case.end], pair, rtol=1e-6)
    many = Loop.of(case, np.linspace(0.0, case.end, 400), pair, rtol=1e-6)
    few.finish(), many.finish()
    np.testing.assert_array_equal(few.history[0], many.history[0])
    np.testing.assert_array_equal(few.output.theta[-1], many.output.theta[-1])


@pytest.mark.parametrize("size", [1, 2, 7, 8, 33, 500, 2**17 + 1])
@pytest.mark.parametrize("pair", PAIRS)
def test_the_arrays_of_a_state_fill_its_numbers_and_do_not_overlap(size, pair):
    numbers, counters = explicit.new_numbers(np.arange(1.0, size + 1.0), 0.5, PAIRS[pair])
    assert numbers[explicit.T] == 0.5
    state = explicit.state_of.py_func(numbers, counters, PAIRS[pair], size)
    np.testing.assert_array_equal(state.theta, np.arange(1.0, size + 1.0))
    arrays = [a for name, a in state._asdict().items() if name != "counters"]
    numbers[:] = 0.0
    for i, array in enumerate(arrays):
        assert not array.any() and array.flags.c_contiguous
        array[...] = i + 1.0
    assert all((array == i + 1.0).all() for i, array in enumerate(arrays))
    assert numbers.size - sum(a.size for a in arrays) < 64
    stages, rows = PAIRS[pair].node.size, PAIRS[pair].sizes[0]
    assert state.stages.shape == (stages, size) and state.side.shape == (rows, size)


@by_pair
def test_checkpoints_are_accepted_states_that_stand_for_the_path(pair):
    case = CASES[0]
    loop = Loop.of(
        case, [60.0], pair, rtol=1e-12
    )  # most of the steps are in the tail, most of the path is not
    loop.finish()
    count = loop.state.counters[explicit.CHECKPOINTS]
    t, h, accepted = loop.history[0].T
    steps = np.append(t[accepted > 0], (t + h)[-1])
    kept, states = loop.state.checkpoint_times[:count], loop.state.checkpoints[:count]
    assert 16 <= count <= len(loop.state.checkpoint_times) < len(steps)
    assert kept[0] == 0.0 and kept[-1] == steps[-1] and np.isin(kept, steps).all()
    np.testing.assert_allclose(states, case.exact(kept), rtol=30 * 1e-12)
    whole = trapezoid(2.0 - case.exact(steps)[:, 0] ** 2, steps)
    assert trapezoid(2.0 - states[:, 0] ** 2, kept) == pytest.approx(whole, rel=0.02)


@by_pair
def test_saved_states_are_as_exact_as_the_steps_where_stability_limits_them(pair):
    """A stiff linear flow; the interpolant alone would be off by hundreds of tolerances."""
    rng, rates = np.random.default_rng(0), np.geomspace(1.0, 100.0, 6)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    x, start = np.sqrt(rates)[:, None] * turn.T, rng.standard_normal(6)
    problem = gflow.Problem(x, rng.standard_normal((6, 1)), factor=0.5)
    limit = problem.target.ravel()
    times = np.linspace(0.0, 60.0, 500)
    exact = np.array([limit + turn @ (np.exp(-rates * t) * (turn.T @ (start - limit))) for t in times])
    for rtol in (1e-6, 1e-9):
        o = Objective(gflow.DeepLinear((6, 1)), problem)
        for dense in (0, 20_000):
            loop = Loop(
                o.gradient_kernel,
                (o.data, o.dims, o.work),
                start,
                times,
                pair,
                rtol,
                1e-3 * rtol,
                dense=dense,
            )
            assert loop.finish() == explicit.FINISHED
            # dense, it depends on where the steps end: up to 84 by DOP853 at rtol within 4% of 1e-6, mostly below 1
            bound = 200 if dense and pair == "dop853" else 30
            assert np.abs(loop.output.theta - exact).max() <= bound * rtol * np.abs(exact).max()


@by_pair
def test_the_dissipation_is_the_integral_of_the_squared_gradient(case, pair):
    times = np.linspace(0.0, case.end, 9)
    loop = Loop.of(case, times, pair, rtol=1e-8, atol=1e-14)
    loop.finish()
    o = Objective(case.model, case.problem)

    def field(t, y):
        g = o.gradient(y[:-1])
        return np.append(-g, g @ g)

    referee = solve_ivp(
        field, (0, case.end), np.append(case.theta0, 0.0), "DOP853", times, rtol=1e-12, atol=1e-16
    )
    np.testing.assert_allclose(
        loop.output.dissipation, referee.y[-1], rtol=0, atol=100 * 1e-8 * referee.y[-1, -1]
    )


@by_pair
@pytest.mark.parametrize("case", [CASES[0], CASES[-1]], ids=["scalar", "large"])
@pytest.mark.parametrize("dense", [False, True])
def test_the_loop_allocates_nothing(case, pair, dense):
    """A call of ten times as many steps takes no more from the allocator than a short one, and gives all of it back."""
    enabled = _nrt_python.memsys_stats_enabled()
    _nrt_python.memsys_enable_stats()
    try:
        loop = Loop.of(case, np.linspace(1.0, 400.0, 9000), pair, dense=20_000 if dense else 0)
        loop.advance(5)
        taken = []
        for budget in (10, 100):
            before, steps = rtsys.get_allocation_stats(), loop.output.cursor[explicit.HISTORY]
            assert loop.advance(budget) == explicit.PAUSED
            after = rtsys.get_allocation_stats()
            assert loop.output.cursor[explicit.HISTORY] - steps == budget
            taken.append((after.alloc - before.alloc, after.mi_alloc - before.mi_alloc))
            assert after.mi_free - before.mi_free == taken[-1][1]  # the loops count no references
    finally:
        if not enabled:
            _nrt_python.memsys_disable_stats()
    assert taken[0] == taken[1]


@numba.njit
def blow_up(t, theta, data, dims, work, out):
    """theta' = theta^2: theta = 1 / (1 - t)."""
    out[0] = -theta[0] * theta[0]


@numba.njit
def unit_speed_until_two(t, theta, data, dims, work, out):
    """theta' = 1, undefined above 2."""
    out[0] = -1.0 if theta[0] < 2.0 else np.nan


@numba.njit
def raises(t, theta, data, dims, work, out):
    if theta[0] > 2.0:
        raise ValueError("too large")
    out[0] = -1.0


@numba.njit
def undefined(t, theta, data, dims, work, out):
    out[0] = np.inf


@numba.njit
def at_rest(t, theta, data, dims, work, out):
    out[:] = 0.0


@numba.njit
def clock_hand(t, theta, data, dims, work, out):
    """theta' = cos t: the kernels are told the time."""
    out[0] = -np.cos(t)


def lone(gradient, pair, theta0=1.0, times=(0.0, 3.0), **settings):
    return Loop(abi.as_kernel(gradient, "gradient"), NOTHING, [theta0], times, pair, **settings)


@by_pair
def test_a_solution_that_blows_up_ends_in_a_step_that_is_too_small(pair):
    loop = lone(blow_up, pair)
    assert loop.finish() == explicit.STEP_TOO_SMALL
    assert loop.state.clock[explicit.T] == pytest.approx(1.0, rel=1e-7)
    assert loop.output.cursor[explicit.SAVED] == 1 and np.isfinite(loop.state.theta).all()


@by_pair
def test_a_gradient_that_is_not_finite_at_the_start(pair):
    loop = lone(undefined, pair)
    assert loop.finish() == explicit.NON_FINITE
    assert loop.state.counters[explicit.ACCEPTED] == 0 and loop.state.theta[0] == 1.0


@by_pair
def test_a_gradient_that_becomes_nan_on_the_way(pair):
    loop = lone(unit_speed_until_two, pair)
    assert loop.finish() == explicit.NON_FINITE
    assert loop.state.clock[explicit.T] == pytest.approx(1.0, rel=1e-3)
    assert loop.state.theta[0] == pytest.approx(1 + loop.state.clock[explicit.T], rel=1e-12)


@by_pair
def test_max_steps_counts_attempts(pair):
    loop = lone(blow_up, pair)
    assert loop.advance(max_steps=13) == explicit.MAX_STEPS
    assert loop.state.counters[[explicit.ACCEPTED, explicit.REJECTED]].sum() == 13
    assert loop.advance(max_steps=20) == explicit.MAX_STEPS
    assert loop.state.counters[[explicit.ACCEPTED, explicit.REJECTED]].sum() == 20


@by_pair
def test_a_fixed_point_takes_few_steps(pair):
    loop = lone(at_rest, pair, times=(0.0, 1e9))
    assert loop.finish() == explicit.FINISHED
    assert np.all(loop.output.theta == 1.0) and loop.state.counters[explicit.ACCEPTED] < 40


@by_pair
def test_the_field_is_evaluated_at_the_stages_times(pair):
    loop = lone(clock_hand, pair, theta0=0.0, times=np.linspace(0.0, 3.0, 31), rtol=1e-10, atol=1e-10)
    assert loop.finish() == explicit.FINISHED
    np.testing.assert_allclose(loop.output.theta[:, 0], np.sin(loop.output.times), rtol=0, atol=30 * 1e-10)


def test_one_compiled_loop_serves_all_models():
    for case in CASES:
        for method in PAIRS:
            gflow.flow(
                case.model, case.problem, case.theta0, 0.1 * case.end, method=method, rtol=1e-4, dense=True
            )
    lone(at_rest, "tsit5").finish()
    assert len(explicit.advance.signatures) == 1


@by_pair
def test_a_kernel_that_raises_on_the_way_is_not_taken_for_an_answer(pair):
    loop = lone(raises, pair)
    assert loop.finish() == explicit.NON_FINITE
