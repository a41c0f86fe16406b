"""Runs side by side: each has the bits of the single one."""

from __future__ import annotations

from types import SimpleNamespace

import numba
import numpy as np
import pytest

import gflow
from gflow.ensembles import flows as many_flows
from gflow.kernels import explicit, lanes, linear
from gflow.kernels.abi import kernel
from gflow.objective import Objective

WIDTHS = [
    (1, 1),
    (1, 1, 1),
    (1,) * 6,
    (2, 1),
    (1, 3, 1),
    (2, 2, 1),
    (2, 2, 2),
    (3, 2, 3),
    (3, 3, 3),
    (2, 3, 3, 1),
]
OBJECTIVES = ["covariance", "samples", "factorization", "decay", "sensing", "completion"]
SCALAR, UNIT = gflow.DeepLinear((1, 1, 1)), gflow.Problem.factorization([[1.0]])


def problem_of(name, d, k, seed=0):
    rng = np.random.default_rng(seed)
    m = rng.standard_normal((k, d))
    if name in ("covariance", "samples"):
        n = 3 * d + 2 if name == "covariance" else max(1, d - 1)
        return gflow.Problem(rng.standard_normal((n, d)), rng.standard_normal((n, k)))
    if name == "sensing":
        return gflow.Problem.sensing(rng.standard_normal((3, k, d)), rng.standard_normal(3))
    if name == "completion":
        return gflow.Problem.completion(m, np.arange(k * d).reshape(k, d) % 3 < 2)
    return gflow.Problem.factorization(m, weight_decay=0.1 if name == "decay" else 0.0)


def same_bits(x, y):
    np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(np.signbit(x), np.signbit(y))


def agree(runs, singles):
    for r, single in enumerate(singles):
        n = runs.saved[r]
        same_bits(runs.theta[r, :n], single.theta[:n])
        same_bits(runs.dissipation[r, :n], single.dissipation[:n])
        same_bits(runs.last[r], single.end)
        assert {name: single.counts[name] for name in runs.counts} == {
            n: c[r] for n, c in runs.counts.items()
        }
        assert runs.codes[r] == single.outcome.code


@pytest.fixture
def few_lanes(monkeypatch):
    """So few that runs take one another's place, and that the lanes become fewer at the end."""
    monkeypatch.setattr(many_flows, "_LANES", 16)
    made = []
    create = many_flows.LaneWorker.__init__
    monkeypatch.setattr(many_flows.LaneWorker, "__init__", lambda s, *a: (made.append(s), create(s, *a))[1])
    return made


# ---- step sizes --------------------------------------------------------------------------------------------


@kernel
def _next(error, before, good, after_rejected, exponent):
    return explicit.next_step(error, before, good, after_rejected, exponent)


@pytest.mark.parametrize("exponent", [5, 8])
def test_step_sizes(exponent):
    """The PI controller with its limits, for any error that can come."""
    for error in (0.0, 1e-320, 1e-9, 0.3, 1.0):
        for before in (1e-4, 1.0):
            with np.errstate(divide="ignore"):
                wanted = 0.9 * np.float64(error) ** (-0.7 / exponent) * before ** (0.4 / exponent)
            assert _next(error, before, True, False, exponent) == pytest.approx(
                np.clip(wanted, 0.2, 10.0), rel=1e-7
            )
            assert _next(error, before, True, True, exponent) == pytest.approx(
                np.clip(wanted, 0.2, 1.0), rel=1e-7
            )
    for error in (1.5, 40.0, 1e9, 1e308, np.inf, np.nan):
        wanted = 0.9 * error ** (-1 / exponent) if error < np.inf else 0.0
        assert _next(error, 1.0, False, False, exponent) == pytest.approx(max(0.2, wanted), rel=1e-7)


# ---- gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_of_lanes(widths, name):
    model = gflow.DeepLinear(widths)
    objective = Objective(model, problem_of(name, widths[0], widths[-1]))
    assert linear.serves_lanes(objective.dims)
    rng = np.random.default_rng(1)
    for count in (1, 7, 64):
        theta = rng.standard_normal((objective.size, count))
        out, work = np.full_like(theta, np.nan), np.full(objective.work.size * count, np.nan)
        objective.lane_kernel.call(0.0, theta.ravel(), objective.data, objective.dims, work, out.reshape(-1))
        for l in range(count):
            same_bits(out[:, l], objective.gradient(theta[:, l]))


@pytest.mark.parametrize(
    ("widths", "problem"),
    [
        ((2, 1), gflow.Problem([[1.0, 0.0]], [1.0], loss="logistic")),  # exponentials
        ((16, 1), problem_of("covariance", 16, 1)),  # products by BLAS
        ((2, 40, 1), problem_of("samples", 2, 1)),
        ((8, 8, 8), problem_of("factorization", 8, 8)),  # another order of products
    ],
)
def test_what_lanes_do_not_serve(widths, problem):
    model = gflow.DeepLinear(widths)
    objective = Objective(model, problem)
    assert objective.lane_kernel is None or objective.size > explicit.ORDERED
    thetas = 0.1 * np.random.default_rng(0).standard_normal((20, model.size))
    runs = gflow.ensemble(model, problem, thetas, 0.5, jobs=1, rtol=1e-4)
    agree(runs, [gflow.flow(model, problem, theta, 0.5, rtol=1e-4) for theta in thetas])


# ---- runs --------------------------------------------------------------------------------------------------

TIMES = {
    "few": [0.0, 1.0, 4.0],
    "many": np.linspace(0.0, 2.0, 90),
    "end": 3.0,
    "within one step": [1e-9, 2e-9, 3e-9],
}


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_runs_equal_single_flows(widths, name, few_lanes):
    model, problem = gflow.DeepLinear(widths), problem_of(name, widths[0], widths[-1])
    rng = np.random.default_rng(2)
    for i, (method, rtol) in enumerate([("tsit5", 1e-3), ("dop853", 1e-9), ("auto", 1e-5), ("auto", 1e-8)]):
        number = (8, 37, 9, 50)[i]
        thetas = rng.uniform(0.05, 0.8, (number, 1)) * rng.standard_normal((number, model.size))
        times = list(TIMES.values())[(i + len(widths)) % 4]
        runs = gflow.ensemble(model, problem, thetas, times, method=method, rtol=rtol, jobs=1 + i % 2)
        agree(runs, [gflow.flow(model, problem, theta, times, method=method, rtol=rtol) for theta in thetas])
    assert few_lanes


@pytest.mark.parametrize("jobs", [1, 2, 3])
@pytest.mark.parametrize("number", [1, 7, 8, 40, 300])
def test_any_number_of_runs_on_any_number_of_threads(number, jobs):
    thetas = np.random.default_rng(3).permutation(np.geomspace(1e-6, 1.5, number))[:, None] * [1.0, -0.7]
    runs = gflow.ensemble(SCALAR, UNIT, thetas, [0.0, 5.0, 20.0], jobs=jobs, rtol=1e-5)
    agree(runs, [gflow.flow(SCALAR, UNIT, theta, [0.0, 5.0, 20.0], rtol=1e-5) for theta in thetas])


def test_runs_that_fail_leave_their_neighbours_alone(few_lanes):
    """Overflow at once and on the way, too many steps, a start at rest, a step too small."""
    model = gflow.DeepLinear((1, 1, 1, 1))
    thetas = np.random.default_rng(4).uniform(0.2, 1.2, (60, 3))
    thetas[5], thetas[11], thetas[23], thetas[40] = 1e200, 1e60, 0.0, 1e-4
    thetas[50:] *= 1e-2
    options = {"t": [0.0, 1.0, 300.0], "max_steps": 60, "method": "tsit5", "rtol": 1e-6, "atol": 1e-9}
    runs = gflow.ensemble(model, UNIT, thetas, jobs=1, **options)
    agree(runs, [gflow.flow(model, UNIT, theta, **options) for theta in thetas])
    assert {"finished", "non_finite", "max_steps"} <= set(runs.codes) and few_lanes


def test_steps_too_small(few_lanes):
    """A tolerance that no step can meet."""
    thetas = np.random.default_rng(5).uniform(0.5, 1.0, (40, 2))
    thetas[::3] *= 1e12
    options = {"t": [1.0], "method": "dop853", "rtol": 1e-13, "atol": 1e-30}
    runs = gflow.ensemble(SCALAR, UNIT, thetas, jobs=1, **options)
    agree(runs, [gflow.flow(SCALAR, UNIT, theta, **options) for theta in thetas])
    assert few_lanes


def test_interpolants_that_depart_from_the_flow(few_lanes):
    """Where stability limits the step, states between its ends take steps of their own."""
    model, problem = gflow.DeepLinear((2, 2)), gflow.Problem(np.diag([1.0, 30.0]), np.eye(2), factor=0.5)
    thetas = np.random.default_rng(6).standard_normal((50, 4))
    options = {"method": "dop853", "rtol": 1e-3, "atol": 1e-6}
    times = np.linspace(0.0, 1.0, 900)
    runs = gflow.ensemble(model, problem, thetas, times, jobs=1, **options)
    agree(runs, [gflow.flow(model, problem, theta, times, **options) for theta in thetas])
    ends = gflow.ensemble(model, problem, thetas, 1.0, jobs=1, **options)
    more = runs.counts["gradients"] - ends.counts["gradients"]
    assert np.all(more > 4 * runs.counts["accepted"])  # four for each step, were its interpolant used
    assert few_lanes


def test_runs_that_outlast_their_explicit_steps(few_lanes):
    """After 512 steps a run may take another method, by itself."""
    model, problem = gflow.DeepLinear((1, 1, 1)), gflow.Problem([[1.0], [200.0]], [1.0, 100.0])
    thetas = np.linspace(0.01, 1.0, 20)[:, None] * [1.0, 0.8]
    times = [0.0, 1e-4, 2.0]
    options = {"rtol": 1e-9}
    runs = gflow.ensemble(model, problem, thetas, times, jobs=1, **options)
    agree(runs, [gflow.flow(model, problem, theta, times, **options) for theta in thetas])
    assert runs.counts["accepted"].max() + runs.counts["rejected"].max() > 512 and few_lanes


def test_an_interrupt_does_not_call_it_too_many_steps():
    """Explicit steps are through, and what comes after them has not begun."""
    model, problem = gflow.DeepLinear((1, 1, 1)), gflow.Problem([[1.0], [200.0]], [1.0, 100.0])
    thetas = np.linspace(0.01, 1.0, 20)[:, None] * [1.0, 0.8]
    options = {"method": "auto", "rtol": 1e-9, "atol": None, "events": False, "max_steps": 10_000}
    all_runs = many_flows.Flows(Objective(model, problem), thetas, [0.0, 1e-4, 2.0], {}, **options)
    worker = all_runs.worker(20)
    worker.begin(0, 20)
    worker.advance(10**6)
    assert explicit.MAX_STEPS in all_runs.codes
    worker.leave()
    result = all_runs.result(True, {"model": model, "problem": problem, "observe": None})
    assert set(result.codes) == {"interrupted"} and np.all(result.counts["accepted"] > 0)


@pytest.mark.parametrize("budget", [1, 200, 1500])
def test_what_is_done_stays_at_any_pause(budget):
    """The worker, stopped anywhere, has handed over each run as a single one of so many steps."""
    thetas = np.geomspace(1e-4, 1.0, 60)[:, None] * [1.0, 0.9]
    times = np.linspace(0.0, 15.0, 31)
    options = {"method": "dop853", "rtol": 1e-8, "atol": 1e-10}
    all_runs = many_flows.Flows(
        Objective(SCALAR, UNIT), thetas, times, {}, **options, events=False, max_steps=10_000
    )
    worker = all_runs.worker(20)
    assert isinstance(worker, many_flows.LaneWorker)
    worker.begin(0, 60)
    assert not worker.advance(budget)
    worker.leave()
    result = all_runs.result(True, {"model": SCALAR, "problem": UNIT, "observe": None})
    steps = result.counts["accepted"] + result.counts["rejected"]
    assert np.sum(steps) == worker.steps > 0 and np.any(result.codes == "interrupted")
    for r in np.flatnonzero(steps):
        single = gflow.flow(SCALAR, UNIT, thetas[r], times, max_steps=int(steps[r]), **options)
        n = result.saved[r]
        same_bits(result.theta[r, :n], single.theta[:n])
        same_bits(result.last[r], single.end)
        assert {name: counts[r] for name, counts in result.counts.items()} == single.counts
        assert np.isnan(result.theta[r, n:]).all()


def test_a_pause_changes_nothing(few_lanes):
    thetas = np.geomspace(1e-4, 1.0, 60)[:, None] * [1.0, 0.9]
    arguments = Objective(SCALAR, UNIT), thetas, np.linspace(0.0, 15.0, 31), {}
    options = {"method": "tsit5", "rtol": 1e-6, "atol": 1e-10, "events": False, "max_steps": 10_000}
    results = []
    for budget in (10**6, 97):
        all_runs = many_flows.Flows(*arguments, **options)
        worker = all_runs.worker(16)
        for first in (0, 20, 40, 60):  # no runs at the end: no more will come
            worker.begin(first, min(first + 20, 60))
            while not worker.advance(budget):
                pass
        results.append(all_runs.runs)
        assert np.all(all_runs.codes == explicit.FINISHED)
        assert worker.steps == np.sum(all_runs.runs.counts[:, :2])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_lane_gradient_of_ones_own(few_lanes):
    @numba.njit
    def bowl(t, theta, data, dims, work, out):
        for i in range(theta.size):
            out[i] = data[i] * theta[i]

    @numba.njit
    def bowls(t, theta, data, dims, work, out):
        count = theta.size // data.size
        for q in range(theta.size):
            out[q] = data[q // count] * theta[q]

    class Bowl:
        size, gradient = 2, bowl

        def kernel_arguments(self, problem):
            return np.array([1.0, 10.0]), [], 0

        def lane_gradient(self, dims):
            return bowls

    thetas = np.random.default_rng(7).standard_normal((40, 2))
    runs = gflow.ensemble(Bowl(), None, thetas, [0.5, 2.0], rtol=1e-8, jobs=1)
    agree(runs, [gflow.flow(Bowl(), None, theta, [0.5, 2.0], rtol=1e-8) for theta in thetas])
    exact = thetas[:, None] * np.exp(-np.array([1.0, 10.0]) * np.array([[0.5], [2.0]]))
    np.testing.assert_allclose(runs.theta, exact, rtol=1e-6, atol=1e-10)
    assert few_lanes
    Bowl.lane_gradient = lambda self, dims: lambda *arguments: None
    with pytest.raises(ValueError, match=r"model\.lane_gradient must be a function decorated with numba"):
        gflow.ensemble(Bowl(), None, thetas, 1.0)


def test_narrower_lanes_keep_the_runs_that_are_under_way():
    tableau = SimpleNamespace(node=np.zeros(7))
    wide = lanes.new_lanes(32, 2, 3, tableau)
    wide.clock[:], wide.theta[:] = np.arange(32), np.arange(64).reshape(2, 32)
    wide.counters[lanes.RUN, [3, 9, 30]] = 5, 7, 6
    narrow = lanes.narrowed(wide)
    assert narrow.counters.shape[1] == lanes.LEAST and narrow.work.size == 3 * lanes.LEAST
    np.testing.assert_array_equal(narrow.counters[lanes.RUN, :3], [5, 7, 6])
    assert np.all(narrow.counters[lanes.RUN, 3:] == lanes.FREE)
    np.testing.assert_array_equal(narrow.theta[:, :3], wide.theta[:, [3, 9, 30]])
    np.testing.assert_array_equal(narrow.clock[:, :3], wide.clock[:, [3, 9, 30]])
    assert narrow.flat_theta.base is narrow.theta and narrow.flat_stages.base is narrow.stages


class Doubled(gflow.DeepLinear):
    """A network of its own, twice as fast."""

    gradient = property(lambda self: doubled)


@kernel
def doubled(t, theta, data, dims, work, out):
    linear.gradient(t, theta, data, dims, work, out)
    for i in range(out.size):
        out[i] *= 2.0


def test_a_subclass_with_its_own_gradient_has_no_lanes_of_the_other():
    model, problem = Doubled((1, 1, 1)), gflow.Problem.factorization([[1.0]])
    starts = np.repeat(np.linspace(0.1, 0.5, 12)[:, None], 2, axis=1)
    runs = gflow.ensemble(model, problem, starts, 1.0)
    for start, end in zip(starts, runs.theta[:, -1], strict=True):
        same_bits(end, gflow.flow(model, problem, start, 1.0).end)
