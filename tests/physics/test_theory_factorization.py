"""Descent from equal factors, eigenvalue by eigenvalue: bounds against what they bound, on the matrices too."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import gflow.theory.factorization as theory
from gflow import observe
from gflow.iterate import descend
from gflow.models.diagonal import Diagonal
from gflow.models.linear import DeepLinear
from gflow.objective import Objective
from gflow.problem import Problem
from gflow.theory.linear import mode_strength, mode_time, unbalanced_mode

EPS = np.finfo(float).eps
SPECTRUM = np.array([10.0, 5.0, 2.0, 1.0, *[0.0] * 6])
MIXED = np.array([5.0, 1.0, 0.3, -1.0])
NOTED = {2: 0.0495, 3: 0.01654158606188993, 4: 0.008854829190899168}


def frame(n, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]


def symmetric(v, values):
    m = v * values @ v.T
    return 0.5 * (m + m.T)


def scalar(spectrum, depth):
    return Diagonal(len(spectrum), depth, "power"), Problem(
        np.eye(len(spectrum)), spectrum, factor=1 / (2 * depth)
    )


def iterate(spectrum, alpha, eta, depth, steps):
    """d (steps + 1, n), written out."""
    out = np.empty((steps + 1, len(spectrum)))
    out[0] = alpha
    for k in range(steps):
        out[k + 1] = out[k] - eta * out[k] ** (depth - 1) * (out[k] ** depth - spectrum)
    return out


@pytest.mark.parametrize("depth", [2, 3, 4, 6])
def test_the_scalar_model_is_the_matrix_model_on_its_eigenvalues(depth):
    rng = np.random.default_rng(1)
    d, v = rng.uniform(0.1, 1.2, 4), frame(4)
    model, problem = scalar(MIXED, depth)
    slope = d ** (depth - 1) * (d**depth - MIXED)
    np.testing.assert_allclose(Objective(model, problem).gradient(d), slope, rtol=1e-13)
    deep = DeepLinear((4,) * (depth + 1))
    gradient = Objective(deep, Problem.factorization(symmetric(v, MIXED))).gradient(
        deep.pack([symmetric(v, d)] * depth)
    )
    for g in deep.unpack(gradient):
        np.testing.assert_allclose(g, symmetric(v, slope), atol=1e-12)
    # the flow of y = d^N is that of mode_strength at rate 1
    h = 1e-6
    y = mode_strength(np.array([0.0, h, 2 * h])[:, None], MIXED, d**depth, depth)
    velocity = (-3 * y[0] + 4 * y[1] - y[2]) / (2 * h)
    np.testing.assert_allclose(velocity, -depth * d ** (depth - 1) * slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("depth", "accuracy"), [(3, 5e-6), (4, 1e-13)])
def test_matrix_descent_is_scalar_descent_but_for_rounding_that_grows(depth, accuracy):
    """4000 steps with a negative eigenvalue: 4e-14 at N = 4; at N = 3 rounding has grown to some 1e-7."""
    eta, v = NOTED[depth], frame(4)
    d = iterate(MIXED, 0.1, eta, depth, 4000)
    model, problem = scalar(MIXED, depth)
    run = descend(model, problem, np.full(4, 0.1), eta, 4000)
    np.testing.assert_allclose(run.theta, d, rtol=1e-11)
    deep = DeepLinear((4,) * (depth + 1))
    raw = descend(deep, Problem.factorization(symmetric(v, MIXED)), deep.init("identity", 0.1), eta, 4000)
    factors = np.array(deep.unpack(raw.theta))
    off = np.linalg.norm(factors - np.einsum("ai,ti,bi->tab", v, d, v), axis=(2, 3)).max(axis=0)
    assert off.max() < accuracy
    estimate = theory.rounding_growth(d, MIXED, depth, eta)
    assert np.all(off < 10 * estimate)
    if depth == 3:
        assert off[-1] > 1e-9 and estimate[-1] < 1e4 * off[-1]


def test_two_factors_leave_at_the_rate_of_the_negative_eigenvalue():
    """From a difference of rounding size; its product with d is constant, step by step to first order."""
    eta, v, steps = NOTED[2], frame(4), 1000
    problem, deep = Problem.factorization(symmetric(v, MIXED)), DeepLinear((4, 4, 4))
    seed = 1e-15
    start = deep.pack([symmetric(v, np.array([0.1, 0.1, 0.1, 0.1 + seed])), 0.1 * np.eye(4)])
    first, second = deep.unpack(descend(deep, problem, start, eta, steps).theta)
    off = np.einsum("a,tab,b->t", v[:, 3], first - np.swapaxes(second, 1, 2), v[:, 3])
    d = iterate(MIXED, 0.1, eta, 2, steps)
    predicted = seed * np.cumprod(np.append(1.0, 1 + eta * (d[:-1, 3] ** 2 + 1)))
    early = (predicted > 1e-12) & (predicted < 1e-3)
    assert early.sum() > 300
    ratio = off[early] / predicted[early]
    np.testing.assert_allclose(ratio, ratio[0], rtol=2e-4)  # rounding on the way
    assert ratio[0] == pytest.approx(1, rel=0.1)  # the seed itself is rounded
    rate = np.polyfit(eta * np.flatnonzero(early), np.log(off[early]), 1)[0]
    assert rate == pytest.approx(np.log1p(eta) / eta, rel=1e-4)  # e^(|λ| t) as η → 0
    leaves = int(np.argmax(off > 0.1))
    assert abs(leaves - np.argmax(predicted > 0.1)) <= 3
    end = observe.mode_strengths(deep, problem, np.concatenate([first[-1].ravel(), second[-1].ravel()]))
    u, s, w = problem.target_svd
    assert end @ (np.einsum("ai,ai->i", u, w) < 0) == pytest.approx(1, rel=1e-9)  # −1 is learned all the same


@pytest.mark.parametrize("depth", [2, 3, 4, 7])
def test_instability_is_the_least_eigenvalue_of_the_hessian(depth):
    rng = np.random.default_rng(2)
    v, deep = frame(4), DeepLinear((4,) * (depth + 1))
    problem = Problem.factorization(symmetric(v, MIXED))
    for d in rng.uniform(0.2, 1.3, (5, 4)):
        within = depth * d ** (2 * depth - 2) + (depth - 1) * d ** (depth - 2) * (
            d**depth - MIXED
        )  # equal factors
        least = observe.smallest_eigenvalue(deep, problem, deep.pack([symmetric(v, d)] * depth))
        rate = theory.instability(d[None], MIXED, depth)[0]
        assert least == pytest.approx(min(-rate, within.min()), rel=1e-8)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_a_single_eigenvalue_leaves_by_the_difference_of_its_factors(depth):
    deep, problem = DeepLinear((1,) * (depth + 1)), Problem.factorization([[-0.7]])
    for d in (0.3, 0.6, 1.1):
        rate = theory.instability([[d]], [-0.7], depth)[0]
        assert rate == pytest.approx((d**depth + 0.7) * d ** (depth - 2), rel=1e-14)
        least = observe.smallest_eigenvalue(deep, problem, np.full(depth, d))
        assert least == pytest.approx(-rate, rel=1e-8)


# ---- step sizes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 3, 4, 8])
@pytest.mark.parametrize("lam", [3.0, 0.02, 0.0, -0.7])
@pytest.mark.parametrize("alpha", [1e-2, 0.4, 1.9])
def test_certified_steps_are_monotone_and_the_bounds_on_the_curvature_hold(depth, lam, alpha):
    eta = float(theory.monotone_step(lam, alpha, depth))
    limit = max(lam, 0.0) ** (1 / depth)
    grid = np.linspace(min(alpha, limit), max(alpha, limit), 2001)
    bend = (2 * depth - 1) * grid ** (2 * depth - 2) - (depth - 1) * lam * grid ** (depth - 2)
    assert eta * bend.max() <= 1 + 1e-12
    if alpha <= limit:
        assert eta == pytest.approx(1 / (depth * lam ** (2 - 2 / depth)))
    assert theory.common_step([lam], alpha, depth) <= eta * (1 + 1e-12)
    d = iterate(np.array([lam]), alpha, eta, depth, 3000)[:, 0]
    toward = np.sign(limit - alpha)
    assert np.all(toward * np.diff(d) >= -8 * EPS * max(alpha, limit))
    assert np.all(toward * (limit - d) >= -8 * EPS * max(alpha, limit))


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_beyond_the_stable_step_the_minimum_repels_and_below_it_attracts(depth):
    lam = 2.0
    limit, edge = lam ** (1 / depth), float(theory.stable_step(lam, depth))
    start = limit * (1 - 1e-6)
    for factor, closer in ((0.98, True), (1.02, False)):
        d = iterate(np.array([lam]), start, factor * edge, depth, 100)[:, 0]
        assert (abs(d[-1] - limit) < abs(d[0] - limit)) == closer
    assert theory.stable_step(np.array([0.0, -1.0]), depth) == pytest.approx(np.inf)


# ---- the number of steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "counts"), [(2, (21, 92, 267)), (3, (127, 652, 2246)), (4, (1142, 5760, 19500))]
)
def test_steps_to_a_percent_of_the_target(depth, counts):
    """Nine cases: λ = 5, 1, 0.3 from 0.1 with 0.99 / ((3N − 2) M^(2N − 2))."""
    lam = np.array([5.0, 1.0, 0.3])
    eta = 0.99 * theory.common_step(lam, 0.1, depth)
    assert eta == pytest.approx(NOTED[depth], rel=1e-14)
    y = descend(*scalar(lam, depth), np.full(3, 0.1), eta, counts[-1]).theta ** depth
    measured = np.argmax(y >= 0.99 * lam, axis=0)
    assert tuple(measured) == counts
    lower, upper = theory.step_bounds(0.99 * lam, lam, 0.1, eta, depth)
    assert np.all(lower <= measured) and np.all(measured <= upper)


def test_step_bounds_hold_for_random_cases_and_meet_for_small_steps():
    rng = np.random.default_rng(3)
    for _ in range(300):
        depth, lam = int(rng.integers(2, 7)), float(10 ** rng.uniform(-1, 1))
        start, goal = np.sort(rng.uniform(1e-3, 0.999, 2)) * lam
        alpha, start = start ** (1 / depth), (start ** (1 / depth)) ** depth
        eta = float(rng.uniform(0.02, 1.0)) / (depth * lam ** (2 - 2 / depth))
        lower, upper = theory.step_bounds(goal, lam, alpha, eta, depth)
        d, k = alpha, 0
        while d**depth < goal:
            d, k = d - eta * d ** (depth - 1) * (d**depth - lam), k + 1
        assert lower <= k <= upper
        if k > 200:  # the flow's time
            assert k * eta == pytest.approx(float(mode_time(start, goal, lam, depth)), rel=0.1)


@pytest.mark.parametrize("depth", [2, 3, 4, 7])
@pytest.mark.parametrize("start", [1e-6, 0.02, 0.12, 0.3])
def test_the_upper_bound_holds_the_steepest_rise_of_the_speed_on_the_way(depth, start):
    lam = 1.7
    goal = 0.99 * lam * (depth - 1) / (2 * depth - 1)  # just below the inflection
    alpha, eta = (start * lam) ** (1 / depth), 0.5 / (depth * lam ** (2 - 2 / depth))
    d = np.linspace(alpha, goal ** (1 / depth), 20001)
    rise = (depth - 1) * lam * d ** (depth - 2) - (2 * depth - 1) * d ** (2 * depth - 2)
    flow = float(mode_time(alpha**depth, goal, lam, depth))
    lower, upper = theory.step_bounds(goal, lam, alpha, eta, depth)
    assert lower == pytest.approx(flow / eta, rel=1e-12)
    assert ((upper - 1) * eta / flow - 1) / eta == pytest.approx(rise.max(), rel=1e-6)


# ---- eigenvalues that are not learned ------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_zero_and_negative_eigenvalues_decay_as_the_laws_say(depth):
    t = np.geomspace(1e-2, 1e4, 40)
    for lam in (0.0, -0.3, -2.0):
        d = mode_strength(t, lam, 0.4**depth, depth) ** (1 / depth)
        law = theory.decay(t, lam, 0.4, depth)
        if lam == 0:
            np.testing.assert_allclose(law, d, rtol=1e-11)
        some = d > 1e-150
        assert np.all(d[some] <= law[some] * (1 + 1e-9))
        late = law[(t > 20) & some] / d[(t > 20) & some]
        np.testing.assert_allclose(late, late[-1], rtol=0.2)  # the law, up to a constant
        assert theory.decay(0.0, lam, 0.4, depth) == 0.4
        if depth > 2:
            assert law[-1] == pytest.approx(d[-1], rel=0.05 if lam else 1e-9)
        eta = 0.9 * float(theory.monotone_step(lam, 0.4, depth))
        steps = iterate(np.array([lam]), 0.4, eta, depth, 500)[:, 0]
        flow = mode_strength(eta * np.arange(501), lam, 0.4**depth, depth) ** (1 / depth)
        assert np.all(steps <= flow * (1 + 1e-11))  # descent is ahead


def test_laws_of_decay_neither_under_nor_overflow():
    assert theory.decay(5.0, 0.0, 1e-120, 5) == 1e-120
    assert theory.decay(1.0, -1.0, 1e-200, 2) == pytest.approx(1e-200 / np.e, rel=1e-12)
    for depth in (2, 3, 6):  # from far above, what is left of the start is nothing
        assert theory.decay(3.0, 0.0, 1e200, depth) == pytest.approx(
            (3 * (2 * depth - 2)) ** (-1 / (2 * depth - 2)), rel=1e-12
        )


@pytest.mark.parametrize("lam", [2.0, 0.3, -0.4, -1.5])
def test_a_perturbed_start_recovers_either_sign(lam):
    alpha, beta, t = 0.2, 0.05, np.linspace(0, 8, 9)
    path = solve_ivp(
        lambda _, w: (lam - w[0] * w[1]) * w[::-1],
        (0, 8),
        [alpha, alpha - beta],
        "DOP853",
        t,
        rtol=1e-13,
        atol=1e-15,
    )
    a, b = unbalanced_mode(t, lam, alpha, alpha - beta)
    np.testing.assert_allclose([a, b], path.y, atol=2e-10)
    a, b = unbalanced_mode(300.0 / abs(lam), lam, alpha, alpha - beta)
    assert a * b == pytest.approx(lam, rel=1e-12)


# ---- effective rank ------------------------------------------------------------------------------------------


def test_plateaus_and_half_learning_times():
    np.testing.assert_allclose(theory.plateaus(SPECTRUM), [1, 1.5, 1.7, 1.8], rtol=1e-15)
    np.testing.assert_array_equal(theory.plateaus([2.0, 1.0, -3.0]), [1, 1.5])
    assert len(theory.plateaus([-1.0])) == 0
    lam = SPECTRUM[:4]
    for depth, alpha, times in (
        (2, 0.01, (0.576, 1.082, 2.476, 4.606)), (3, 0.1, (0.9605, 1.9005, 4.6615, 9.145)),
    ):  # fmt: skip
        late = np.array(times) - mode_time(
            alpha**depth, 0.5 * lam, lam, depth
        )  # by less than the sampling of 0.002
        assert np.all((late >= 0) & (late < 0.002))
    y = mode_strength(np.linspace(0, 3, 6001)[:, None], SPECTRUM, 1e-4, 2)
    assert (y.sum(axis=1) / y.max(axis=1)).min() == pytest.approx(1.0067, abs=1e-4)


def test_rank_bounds_hold_for_everything_that_they_allow():
    rng = np.random.default_rng(4)
    for _ in range(500):
        count = int(rng.integers(1, 5))
        delta = rng.uniform(0, 0.9) * SPECTRUM[:count] * rng.uniform(0, 1, count)
        rho = rng.uniform(0, 12, 10 - count)
        y = np.concatenate([
            SPECTRUM[:count] + delta * rng.choice([-1, 1], count), rho * rng.choice([0, 1], 10 - count)
        ])  # fmt: skip
        lower, upper = theory.rank_bounds(SPECTRUM, count, delta, rho)
        rank = observe.effective_ranks(np.diag(y))["nuclear"]
        assert lower * (1 - 1e-12) <= rank <= upper * (1 + 1e-12)
    # λ_1 + δ_1 in the place of the largest λ_i + δ_i would be no bound: y = (1, 1, 1.9)
    lower, _ = theory.rank_bounds([1.0, 1.0, 1.0], 3, [0.0, 0.0, 0.9], [])
    assert lower <= 3.9 / 1.9 < 2.1 / 1.0
    lower, upper = theory.rank_bounds(SPECTRUM, 2, 0.1, 0.01)
    assert (lower, upper) == pytest.approx((14.8 / 10.1, (15.2 + 8 * 0.01) / 9.9), rel=1e-14)


@pytest.mark.parametrize(("depth", "alpha"), [(2, 1e-6), (3, 0.02), (4, 0.1)])
def test_in_the_interval_the_rank_is_that_of_the_best_approximation(depth, alpha):
    """Flow and descent, with a negative eigenvalue among those that are not learned."""
    lam = np.array([10.0, 5.0, 2.0, 1.0, 0.0, -0.5])
    eta = 0.9 * theory.common_step(lam, alpha, depth)
    found = 0
    for count in range(1, 5):
        delta, rho = 0.05 * lam[:count], 0.02 * lam[count - 1]
        flow = theory.rank_interval(lam, count, alpha, depth, delta, rho)
        steps = theory.rank_interval(lam, count, alpha, depth, delta, rho, eta)
        assert not flow.empty and not steps.empty
        assert steps.end == np.inf or eta * steps.end == pytest.approx(flow.end, rel=0.1)
        end = min(flow.end, 2 * flow.start)
        t = np.linspace(flow.start, end, 400)[:-1]
        k = np.arange(int(np.ceil(steps.start)), int(np.ceil(min(steps.end, 2 * steps.start))))
        d = iterate(lam, alpha, eta, depth, k[-1])[k]
        for interval, y in ((flow, mode_strength(t[:, None], lam, alpha**depth, depth)), (steps, d**depth)):
            rank = y.sum(axis=1) / y.max(axis=1)
            assert np.all((interval.lower <= rank) & (rank <= interval.upper))
            best = np.where(np.arange(6) < count, lam, 0.0)
            assert np.linalg.norm(y - best, axis=1).max() <= interval.distance
            found += len(y)
        # the ends of the flow's interval are where one of the conditions begins to fail
        before = mode_strength(flow.start * (1 - 1e-6), lam, alpha**depth, depth)
        assert np.any(lam[:count] - before[:count] > delta)
        if np.isfinite(flow.end):
            after = mode_strength(flow.end * (1 + 1e-6), lam, alpha**depth, depth)
            assert after[count] > rho
    assert found > 2000


def test_the_interval_opens_with_a_small_start_a_wide_gap_and_depth():
    def width(gap=2.0, alpha=1e-3, depth=2, step_size=None):
        lam = np.array([gap, 1.0, 0.0])
        return theory.rank_interval(lam, 1, alpha, depth, 0.1 * gap, 0.1, step_size)

    widths = [w.end - w.start for w in (width(alpha=a) for a in (0.1, 1e-2, 1e-3, 1e-6))]
    assert np.all(np.diff(widths) > 0) and width(alpha=0.1).empty and not width(alpha=1e-6).empty
    ratio = [w.end / w.start for w in (width(gap=g) for g in (1.0, 1.2, 2.0, 5.0))]
    assert np.all(np.diff(ratio) > 0) and width(gap=1.0).empty
    assert all(width(gap=1.0, alpha=a, depth=n).empty for a in (1e-2, 1e-6) for n in (2, 3))
    strength = [w.end / w.start for w in (width(depth=n, alpha=1e-4 ** (1 / n)) for n in (2, 3, 4))]
    assert np.all(np.diff(strength) > 0)  # from equal strengths
    assert theory.rank_interval([1.0, 0.0], 1, 0.5, 2, 0.1, 0.01).start >= mode_time(0.25, 0.01, 0.0, 2)
    assert theory.rank_interval([1.0, 0.0], 1, 0.5, 2, 0.1, 0.0).empty  # zeros never vanish


def test_an_interval_of_steps_holds_whole_numbers_and_one_of_times_any():
    flow = theory.RankInterval(1, 1.2, 1.9, 0.9, 1.1, 0.1)
    assert not flow.empty and theory.RankInterval(1, 1.2, 1.9, 0.9, 1.1, 0.1, steps=True).empty
    steps = theory.RankInterval(1, 1.2, 2.9, 0.9, 1.1, 0.1, steps=True)
    assert not steps.empty and steps.holds(np.arange(5)).tolist() == [False, False, True, False, False]
    assert theory.RankInterval(1, 2.0, 2.0, 0.9, 1.1, 0.1).empty


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.monotone_step(1.0, -1.0, 2), "alpha must"),
        (lambda: theory.common_step([1.0], 0.1, 1), "depth must be a whole number >= 2; got 1"),
        (lambda: theory.step_bounds(2.0, 1.0, 0.1, 0.1, 2), "goal must lie between"),
        (lambda: theory.step_bounds(0.9, 1.0, 0.1, 0.6, 2), "step_size must be at most .* = 0.5; got 0.6"),
        (lambda: theory.decay(1.0, 0.1, 0.1, 2), "target must hold eigenvalues <= 0; got 0.1"),
        (lambda: theory.plateaus([1.0, 2.0]), "spectrum must hold eigenvalues in descending order"),
        (lambda: theory.rank_bounds([1.0, -1.0], 2, 0.1, 0.1), "count must be at most 1"),
        (lambda: theory.rank_bounds([1.0, 0.5], 1, 1.5, 0.1), "delta must be below the largest"),
        (lambda: theory.rank_bounds([1.0, 0.5], 1, 0.1, -0.1), "rho must be finite numbers >= 0; got -0.1"),
        (lambda: theory.rank_interval([1.0, 0.5], 1, 1.1, 2, 0.1, 0.1), "alpha must be below"),
        (lambda: theory.rank_interval([1.0, 0.5], 1, 0.1, 2, 2.0, 0.1), "delta must lie between"),
        (lambda: theory.rank_interval([1.0, 0.5], 1, 0.1, 2, 0.1, 0.1, 0.9), "step_size must be at most"),
        (lambda: theory.common_step([np.nan], 0.1, 2), r"spectrum must be finite; spectrum\[0\] is nan"),
        (lambda: theory.common_step([1.0], 1e300, 2), "a step size that floating point holds; .* 1e\\+300 has 0"),
        (lambda: theory.monotone_step(0.0, 1e-200, 3), "a step size that floating point holds; .* 1e-200 has inf"),
        (lambda: theory.monotone_step(np.nan, 0.1, 2), "target must be finite numbers; got nan"),
        (lambda: theory.stable_step(np.nan, 2), "target must be finite numbers; got nan"),
        (lambda: theory.step_bounds(0.5, 1.0, 1e-200, 0.1, 2), "alpha must have a power .* 1e-200.2 = 0"),
        (lambda: theory.step_bounds([0.5, 0.6], [1.0] * 3, 0.1, 0.1, 2), "goal and target must have shapes"),
        (lambda: theory.decay(-1.0, 0.0, 0.1, 2), "t must be finite numbers >= 0; got -1"),
        (lambda: theory.decay(1.0, np.nan, 0.1, 2), "target must be finite numbers; got nan"),
        (lambda: theory.rank_bounds([1.0, 0.5], 1, [0.1, 0.1], 0.1), r"delta must be a number or have shape \(1,\)"),
        (lambda: theory.rank_bounds([1.0, 0.5], 1, 0.1, np.nan), "rho must be finite numbers >= 0; got nan"),
        (lambda: theory.rounding_growth([[0.1]], 3.0, 2, 0.1), "spectrum must have shape"),
    ],
)  # fmt: skip
def test_numbers_outside_of_their_range_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
