"""The exact two-layer ReLU flow: against the referee, the smoothed flow, hand-made cases and its own laws."""

from __future__ import annotations

import numpy as np
import pytest
from cases import SLIDING, sliding
from relu_referee import SEEDS, random_problem, softplus_flow, solve
from scipy.integrate import RK45, quad, solve_ivp
from scipy.linalg import expm
from scipy.special import expit

import gflow
from gflow import neurons, observe
from gflow.objective import Objective

EPS = np.finfo(float).eps
ONE = np.ones((1, 1))
#: two inputs with x1.x1 = 1, x1.x2 = 1/2, x2.x2 = 5/4
X1, X2 = np.array([1.0, 0.0]), np.array([0.5, 1.0])

#: of every kind of ``random_problem`` (the seed modulo 8), most of which slide; those that the referee does fast
FAST = [0, 2, 5, 17, 22, 31, 36, 44, 46, 71, 75, 81, 83, 97]
SLOW = [3, 4, 6, 8, 9, 10, 12, 13, 14, 16, 18, 26, 32, 37, 41, 43, 45, 51, 53, 55, 59, 61, 63, 64, 99]
BUSY = [seed for seed, (_, events, _) in SEEDS.items() if events >= 50]


def network(p):
    """Model, problem and start of a namespace of the referee's."""
    options = dict(p.options)
    model = gflow.TwoLayerReLU(
        p.X.shape[1], len(p.W), len(p.A),
        slope=options.pop("slope", 0.0), train_outer=options.pop("train_outer", True),
    )  # fmt: skip
    return model, gflow.Problem(p.X, p.Y, **options), model.pack([p.W, p.A])


def flow_of(seed, rtol=1e-10, t=None, **options):
    p = random_problem(seed)
    return gflow.flow(*network(p), p.t_end if t is None else t, rtol=rtol, **options)


def run_one(X, Y, w, t, slope=0.0, **options):
    """One neuron with the fixed outer weight 1, L = sum of r^2 / 2."""
    model = gflow.TwoLayerReLU(np.shape(X)[1], 1, slope=slope, train_outer=False)
    return gflow.flow(model, gflow.Problem(X, Y, factor=0.5), model.pack([[w], ONE]), t, **options)


def distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def kinds(trajectory):
    e = trajectory.events
    return list(zip(e.neuron.tolist(), e.sample.tolist(), e.kind.tolist(), strict=True))


def check_agreement(seed):
    p = random_problem(seed)
    referee = solve(p.W, p.A, p.X, p.Y, p.t_end, **p.options)
    trajectory = gflow.flow(*network(p), p.t_end, rtol=1e-10)
    assert trajectory.status.ok
    expected = np.concatenate([referee.W[-1].ravel(), referee.A[-1].ravel()])
    assert distance(trajectory.end, expected) <= 1e-8
    # the same table, up to the order of events that are closer than the times are exact
    own = sorted(zip(kinds(trajectory), trajectory.events.t, strict=True))
    theirs = sorted(((int(j), int(i), kind), t) for t, j, i, kind in referee.events)
    assert [pair for pair, _ in own] == [pair for pair, _ in theirs]
    # a time is as exact as the state over the speed at the kink, which may be small
    np.testing.assert_allclose([t for _, t in own], [t for _, t in theirs], rtol=0, atol=1e-6)
    assert np.all(np.diff(trajectory.events.t) >= 0)
    slides = sum(kind == "slide" for *_, kind in kinds(trajectory))
    assert (p.t_end, len(own), slides) == SEEDS[seed]


@pytest.mark.parametrize("seed", FAST)
def test_agrees_with_the_referee(seed):
    check_agreement(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SLOW)
def test_agrees_with_the_referee_on_longer_problems(seed):
    check_agreement(seed)


def test_the_seeds_cover_every_kind_of_problem():
    assert {seed % 8 for seed in FAST} == set(range(8))
    assert len({*FAST, *SLOW}) >= 30 and sum(SEEDS[seed][2] > 0 for seed in FAST) >= 10


@pytest.mark.parametrize("seed", [0, 3, 5, 14, 46])
def test_agrees_with_the_smoothed_flow_to_first_order_in_its_width(seed):
    """Plain, outer layer fixed, leaky, decaying twice: errors fall tenfold per decade of the width."""
    p = random_problem(seed)
    exact, widths, gaps = flow_of(seed).end, [1e-4, 1e-5, 1e-6], []
    for width in widths:
        W, A = softplus_flow(p.W, p.A, p.X, p.Y, p.t_end, width, **p.options)
        gaps.append(distance(np.concatenate([W[-1].ravel(), A[-1].ravel()]), exact))
    assert SEEDS[seed][2] > 0
    for coarse, fine in zip(gaps, gaps[1:], strict=False):
        assert 6 < coarse / fine < 11, gaps


RTOLS = 10.0 ** -np.arange(4, 11.1, 0.5)


@pytest.mark.parametrize("method", ["tsit5", "dop853"])
@pytest.mark.parametrize("seed", BUSY)
def test_order_is_kept_through_kinks(seed, method):
    """Ten problems of 50 to 76 events: error in proportion to rtol over seven decades."""
    exact = flow_of(seed, 1e-13, atol=1e-15).end
    errors = [distance(flow_of(seed, rtol, method=method).end, exact) for rtol in RTOLS]
    assert 0.8 < np.polyfit(np.log(RTOLS), np.log(errors), 1)[0] < 1.3, errors
    assert errors[-1] < 1e-10


def rk45(model, problem, theta0, t, rtol, atol, most):
    """scipy's RK45 on the gradient by signs: (the state, gradients, whether it came to the end)."""
    o = Objective(model, problem)
    kernel, out, count = o.gradient_kernel.call, np.empty(o.size), 0

    def field(_, y):
        nonlocal count
        count += 1
        kernel(0.0, y, o.data, o.dims, o.work, out)
        return -out

    solver = RK45(field, 0.0, theta0, t, rtol=rtol, atol=atol)
    while solver.status == "running" and count < most:
        solver.step()
    return solver.y, count, solver.status == "finished"


@pytest.mark.slow
def test_plain_rk45_stalls_where_this_flow_does_not():
    """Up to t = 4 on seeds that slide by then, rtol 1e-5 and 1e-6: it chatters.

    Either its error does not fall with rtol, or its work grows like 1 / rtol, not like rtol^(-1/5).
    """
    for seed in (26, 51):
        model, problem, theta0 = network(random_problem(seed))
        exact = flow_of(seed, 1e-13, t=4.0)
        assert "slide" in exact.events.kind
        errors, counts = [], []
        for rtol in (1e-5, 1e-6):
            atol = rtol * 1e-3 * np.sqrt(np.mean(theta0**2))
            end, count, finished = rk45(model, problem, theta0, 4.0, rtol, atol, 1_500_000)
            own = flow_of(seed, rtol, t=4.0)
            errors.append(distance(end, exact.end) if finished else np.inf)
            counts.append(count)
            assert distance(own.end, exact.end) < 10 * rtol
            assert count > 20 * own.counts["gradients"]
        assert errors[1] > 0.3 * errors[0] or counts[1] > 3 * counts[0], (errors, counts)


@pytest.mark.parametrize("seed", FAST + BUSY)
def test_conservation_descent_and_dissipation(seed):
    """At the default tolerance, through all modes."""
    p = random_problem(seed)
    trajectory = flow_of(seed, 1e-9, t=np.linspace(0, p.t_end, 200))
    gauges, loss = trajectory.gauges, trajectory.loss
    assert trajectory.status.ok
    if trajectory.spec["model"].train_outer:
        W, A = trajectory.spec["model"].unpack(trajectory.theta)
        w, a = np.sum(W**2, axis=2), np.sum(A**2, axis=1)
        decay = np.exp(-2 * p.options.get("weight_decay", 0.0) * trajectory.t)[:, None]
        size = np.maximum(np.maximum(w, a), np.maximum(w[0], a[0]))
        drift = np.abs(a - w - decay * (a - w)[0]) / size
        assert drift.max() < 1e-9
        assert gauges.invariant_drift.max() == pytest.approx(drift.max(), rel=1e-3, abs=1e-14)
    else:
        assert gauges.invariant_drift is None
        np.testing.assert_array_equal(trajectory.end[-p.A.size :], p.A.ravel())
    assert np.diff(loss).max() <= 10 * EPS * loss[0]
    assert gauges.dissipation_defect.max() < 1e-7


@pytest.mark.parametrize("seed", [5, 26, 51, 55, 59, 99])
def test_sliding_pairs_stay_on_their_kinks_and_others_on_their_sides(seed):
    """Replay the table: after each event, at the next saved time, every pair is where its mode says."""
    p = random_problem(seed)
    trajectory = flow_of(seed, 1e-9, t=np.linspace(0, p.t_end, 400))
    model, e = trajectory.spec["model"], trajectory.events
    mode = np.where(p.W @ p.X.T > 0, 1, -1)
    new = {"activate": 1, "deactivate": -1, "slide": 0, "leave_active": 1, "leave_inactive": -1}
    done = 0
    for t, theta in zip(trajectory.t, trajectory.theta, strict=True):
        while done < len(e.t) and e.t[done] <= t:
            j, i = e.neuron[done], e.sample[done]
            allowed = {1: {"deactivate", "slide"}, -1: {"activate", "slide"},
                       0: {"leave_active", "leave_inactive"}}  # fmt: skip
            assert e.kind[done] in allowed[int(mode[j, i])]
            mode[j, i] = new[str(e.kind[done])]
            done += 1
        w = model.first_layer(theta)
        cosine = (w @ p.X.T) / (np.linalg.norm(w, axis=1)[:, None] * np.linalg.norm(p.X, axis=1))
        assert np.abs(cosine[mode == 0]).max(initial=0) < 1e-13
        assert np.all((cosine * mode)[mode != 0] > -1e-12)
    assert done == len(e.t) and "slide" in e.kind


@pytest.mark.slow
@pytest.mark.parametrize("case", SLIDING[:3], ids=lambda case: case.name)
def test_two_hundred_times_fewer_gradients_than_rk45(case):
    """To t = 60, rtol 1e-9 against RK45 at 1e-6, which is stopped at 200 times the count, before its end."""
    trajectory = gflow.flow(case.model, case.problem, case.theta0, case.end, rtol=1e-9)
    assert trajectory.status.ok and "slide" in trajectory.events.kind
    most, atol = 200 * trajectory.counts["gradients"], 1e-9 * np.sqrt(np.mean(case.theta0**2))
    _, count, _ = rk45(case.model, case.problem, case.theta0, case.end, 1e-6, atol, most)
    assert count >= most


# -- cases that can be checked by hand ------------------------------------------------------------


def linear_flow(parts, w, t):
    """The solution of w' = sum of (y - u.w) v over the ``parts`` (u, v, y)."""
    size = len(w)
    M = np.zeros((size + 1, size + 1))
    for u, v, y in parts:
        M[:size, :size] -= np.outer(v, u)
        M[:size, size] += y * np.asarray(v)
    return (expm(M * t) @ np.append(w, 1.0))[:size]


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("method", ["tsit5", "dop853"])
def test_one_neuron_one_sample(side, method):
    """w = +-b x/|x|, |x| = 5/2, a = b: g = |f| follows g' = 5 s g (|y| - g), s the slope of that side."""
    slope, y, b, x = 0.3, 0.9 * side, 0.2, np.array([1.5, 2.0])
    s, t = (1.0 if side > 0 else slope), np.linspace(0, 1.7, 9)
    model = gflow.TwoLayerReLU(2, 1, slope=slope)
    start = model.pack([[side * b * x / 2.5], [[b]]])
    run = gflow.flow(model, gflow.Problem([x], [y]), start, t, rtol=1e-11, method=method)
    g0 = 2.5 * s * b**2
    size = np.sqrt(0.9 / (1 + (0.9 / g0 - 1) * np.exp(-5 * s * 0.9 * t)) / (2.5 * s))
    np.testing.assert_allclose(run.theta[:, 2], size, rtol=1e-10)
    np.testing.assert_allclose(run.theta[:, :2], side * size[:, None] * x / 2.5, rtol=1e-10)
    assert len(run.events.t) == 0


def two_neurons(t, **options):
    """Neurons A, B with outer weights 1, fixed; L = sum r^2 / 2, r = y - f, y = (2, 1/10).

    B is active on x2 alone: r2 = -2 e^(-5 t / 4) while A does not feel x2. A starts at (1/2, -1/2) and moves
    along x1: r1 = (3/2) e^(-t), zA2 = zA1 / 2 - 1/2 = 0 when zA1 = 1, r1 = 1: t1 = log(3/2). There
    v0 = 1/2, v0 + c = 1/2 - (5/2) (2/3)^(5/4) < 0: it slides, with s1 = (2/5) r1 / |r2| = (1/5) (3/2)^(5/4).
    Sliding, zA1' = (4/5) r1, so that s = s1 e^(0.45 (t - t1)), which is 1 at t2 = t1 + log(1/s1) / 0.45.
    """
    model = gflow.TwoLayerReLU(2, 2, train_outer=False)
    start = model.pack([[[0.5, -0.5], [-1.0, 2.6]], np.ones((1, 2))])
    problem = gflow.Problem(np.stack([X1, X2]), [2.0, 0.1], factor=0.5)
    return gflow.flow(model, problem, start, t, rtol=1e-12, **options)


T1 = np.log(1.5)
S1 = 0.2 * 1.5**1.25
T2 = T1 + np.log(1 / S1) / 0.45


def multiplier(trajectory, X, Y, neuron, sample):
    """The s of a pair that slides alone, from the definition: v0 + s c = 0; outer weights 1, factor 1/2."""
    w = trajectory.spec["model"].first_layer(trajectory.end)
    z = w @ X.T
    z[neuron, sample] = 0.0
    r = Y - np.maximum(z, 0).sum(axis=0)
    drive = sum(r[i] * X[i] for i in range(len(X)) if z[neuron, i] > 0)
    return -(drive @ X[sample]) / (r[sample] * X[sample] @ X[sample])


def test_slides_and_leaves_at_the_computed_times():
    X, Y = np.stack([X1, X2]), np.array([2.0, 0.1])
    middle = two_neurons(T1 + 1.0)
    assert multiplier(middle, X, Y, 0, 1) == pytest.approx(S1 * np.exp(0.45), rel=1e-10)
    first = 2 - np.exp(-0.8)  # zA1, and zA2 = 0
    np.testing.assert_allclose(middle.end[:2], [first, -first / 2], rtol=1e-11)
    assert abs(middle.end[:2] @ X2) < 1e-15
    run = two_neurons([0.0, T2, T2 + 1.0])
    assert kinds(run) == [(0, 1, "slide"), (0, 1, "leave_active")]
    np.testing.assert_allclose(run.events.t, [T1, T2], rtol=1e-10)
    zero = np.zeros(2)
    parts = [
        (np.append(X1, zero), np.append(X1, zero), 2.0),
        (np.append(X2, X2), np.append(X2, X2), 0.1),
    ]
    np.testing.assert_allclose(run.theta[2, :4], linear_flow(parts, run.theta[1, :4], 1.0), rtol=1e-10)


def test_leaky_slides_from_the_start_and_leaves_to_the_inactive_side():
    """Slope 1/4, y = (2, -1), w = (1, -1/2), on the kink of x2: r1 = 1, v0 = 1/2, c = -5/4, so that
    v0 + c < 0 < v0 + c / 4: slides, s = (2/5) e^(-4 t / 5), down to 1/4 at (5/4) log(8/5); then linear.
    """
    out = 1.25 * np.log(1.6)
    run = run_one([X1, X2], [2.0, -1.0], [1.0, -0.5], 2.0, slope=0.25, rtol=1e-12)
    assert kinds(run) == [(0, 1, "slide"), (0, 1, "leave_inactive")]
    np.testing.assert_allclose(run.events.t, [0.0, out], rtol=1e-10)
    z1 = 2 - 1 / 1.6
    exact = linear_flow([(X1, X1, 2.0), (X2 / 4, X2 / 4, -1.0)], [z1, -z1 / 2], 2.0 - out)
    np.testing.assert_allclose(run.end[:2], exact, rtol=1e-11)


def test_leaky_crosses():
    """z2 goes down through zero, then z1; the slopes change to 1/4 there, and all between is linear."""
    w, y, slope = np.array([1.0, 0.0]), np.array([-3.0, 0.2]), {0: 1.0, 1: 1.0}
    run = run_one([X1, X2], y, w, 1.0, slope=0.25, rtol=1e-12)
    assert kinds(run) == [(0, 1, "deactivate"), (0, 0, "deactivate")]
    now = 0.0
    for at, i in [*zip(run.events.t, run.events.sample, strict=True), (1.0, None)]:
        w = linear_flow([(slope[k] * x, slope[k] * x, y[k]) for k, x in enumerate((X1, X2))], w, at - now)
        now = at
        if i is not None:
            assert abs(w @ (X1, X2)[i]) < 1e-11
            slope[i] = 0.25
    np.testing.assert_allclose(run.end[:2], w, rtol=1e-10)


def test_two_kinks_at_once_are_decided_together():
    """w = e3 on the kinks of x1, x2, x1.x2 = 0.8; drive x3 with r3 = 1, x3.x1 = 1/2, x3.x2 = 1; r1 = r2 = -2.

    Each alone would slide. To hold both would take t1 + 0.8 t2 = 1/2, 0.8 t1 + t2 = 1, that is t1 < 0: x1 is
    released to its inactive side (speed 1/2 - 0.8), x2 slides with s = 1/2, w' = x3 - x2 = (-0.3, 0.4, 1).
    """
    X, t = [[1.0, 0, 0], [0.8, 0.6, 0], [0.5, 1, 1]], 1e-7
    run = run_one(X, [-2.0, -2, 2], [0.0, 0, 1], t)
    assert (0, 1, "slide") in kinds(run) and (0, 0, "slide") not in kinds(run)
    np.testing.assert_allclose((run.end[:3] - [0, 0, 1]) / t, [-0.3, 0.4, 1], rtol=1e-6)


def test_an_orthogonal_sample_lets_a_neuron_rest():
    """z' = -1 - z from 1 is 0 at log 2, and nothing pushes it further."""
    run = run_one([[1.0, 0.0]], [-1.0], [1.0, 1.0], 3.0)
    assert kinds(run) == [(0, 0, "rest")]
    np.testing.assert_allclose(run.events.t, np.log(2), rtol=1e-9)
    np.testing.assert_allclose(run.end[:2], [0, 1], atol=1e-14)


def test_a_dead_neuron_never_moves():
    X = np.abs(np.random.default_rng(3).standard_normal((5, 3)))
    W, A = np.array([[-0.3, -0.2, -0.1], [0.2, 0.1, 0.3]]), np.array([[0.5, 0.4]])
    model = gflow.TwoLayerReLU(3, 2)
    run = gflow.flow(model, gflow.Problem(X, X @ [1.0, 0.5, 0.2]), model.pack([W, A]), [1.0, 50.0])
    for theta in run.theta:
        w, a = model.unpack(theta)
        np.testing.assert_array_equal(w[0], W[0])
        assert a[0, 0] == 0.5 and w[1, 0] != 0.2


# -- special data ---------------------------------------------------------------------------------


def test_parallel_samples_are_as_one_with_their_weight():
    """(x, y) twice, once as x and once as x / 2 with y / 2, weighs 1 + 1/4: the loss of x sqrt(5)/2 alone."""
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((6, 2)), rng.standard_normal(6)
    model = gflow.TwoLayerReLU(2, 5)
    start, t = model.init("balanced", scale=0.5, rng=1), np.linspace(0, 20, 50)
    doubled = gflow.Problem(np.vstack([X, X]), np.append(Y, Y), factor=0.25)
    plain = gflow.flow(model, gflow.Problem(X, Y, factor=0.5), start, t, rtol=1e-11)
    twice = gflow.flow(model, doubled, start, t, rtol=1e-11)
    np.testing.assert_allclose(twice.theta, plain.theta, rtol=0, atol=1e-9)
    assert kinds(twice) == kinds(plain) and len(plain.events.t) > 5
    assert twice.events.sample.max() < 6
    halves = gflow.Problem(np.vstack([X, X / 2]), np.append(Y, Y / 2), factor=0.4)
    halved = gflow.flow(model, halves, start, t, rtol=1e-11)
    np.testing.assert_allclose(halved.theta, plain.theta, rtol=0, atol=1e-9)


def test_a_zero_input_changes_nothing_but_the_loss():
    rng = np.random.default_rng(2)
    X, Y = rng.standard_normal((6, 2)), rng.standard_normal(6)
    model = gflow.TwoLayerReLU(2, 5)
    start, t = model.init("balanced", scale=0.5, rng=1), np.linspace(0, 20, 50)
    plain = gflow.flow(model, gflow.Problem(X, Y, factor=0.5), start, t)
    with_zero = gflow.Problem(np.vstack([np.zeros(2), X]), np.append(3.0, Y), factor=0.5)
    more = gflow.flow(model, with_zero, start, t)
    np.testing.assert_allclose(more.theta, plain.theta, rtol=0, atol=1e-12)
    np.testing.assert_allclose(more.loss, plain.loss + 4.5, rtol=1e-12)
    np.testing.assert_array_equal(more.events.sample, plain.events.sample + 1)


def mollified_flow(W, A, X, Y, t_end, width, slope):
    """As the referee's smoothed flow, but with the width |x_i| times ``width`` on each sample.

    So all samples of one hyperplane are smoothed over one layer around it, and the limit is the flow of the
    convex hull of both sides; other widths give parallel samples multipliers of their own, and another limit.
    """
    widths, n = width * np.linalg.norm(X, axis=1), len(X)

    def velocity(_, theta):
        w, a = theta[: W.size].reshape(W.shape), theta[W.size :]
        z = w @ X.T
        out = slope * z + (1 - slope) * widths * np.logaddexp(0, z / widths)
        r = -(a @ out - Y) / n
        pull = (slope + (1 - slope) * expit(z / widths)) * r * a[:, None]
        return np.append((pull @ X).ravel(), out @ r)

    start = np.append(W.ravel(), A.ravel())
    return solve_ivp(velocity, (0, t_end), start, "LSODA", rtol=1e-10, atol=1e-13).y[:, -1]


@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_antiparallel_and_collinear_samples_agree_with_the_mollified_flow(slope, seed):
    """Six points on two lines through the origin, on both sides of it."""
    rng = np.random.default_rng(seed)
    u, v = rng.standard_normal((2, 2))
    X, Y = np.array([u, -u, 2 * u, v, -v, -0.5 * v]), rng.standard_normal(6)
    W = 0.5 * rng.standard_normal((5, 2))
    A = rng.choice([-1.0, 1.0], 5)[None] * np.linalg.norm(W, axis=1)
    model = gflow.TwoLayerReLU(2, 5, slope=slope)
    run = gflow.flow(model, gflow.Problem(X, Y), model.pack([W, A]), 10.0)
    assert run.status.ok
    gaps = [distance(mollified_flow(W, A, X, Y, 10.0, width, slope), run.end) for width in (1e-4, 1e-5)]
    assert gaps[1] < 1e-4 and gaps[1] < 0.2 * gaps[0] + 1e-9, gaps


def test_all_points_on_one_ray():
    """One hyperplane for all samples: the flow is that of a linear network while a neuron is active."""
    run = run_one([[1.0, 1.0], [2.0, 2.0], [0.5, 0.5]], [1.0, 2.0, 0.5], [1.0, 0.0], 10.0)
    np.testing.assert_allclose(run.end[:2], [1.0, 0.0], rtol=0, atol=1e-15)
    run = run_one([[1.0, 1.0], [2.0, 2.0], [0.5, 0.5]], [2.0, 4.0, 1.0], [1.0, 0.0], 20.0, rtol=1e-11)
    np.testing.assert_allclose(run.end[:2], [1.5, 0.5], rtol=0, atol=1e-10)


# -- where the flow is not determined -------------------------------------------------------------


def test_a_neuron_without_weights_is_refused():
    model = gflow.TwoLayerReLU(2, 3)
    start = model.pack([[[1.0, 1.0], [0.0, 0.0], [1.0, 2.0]], [[1.0, 1.0, 1.0]]])
    with pytest.raises(ValueError, match="theta0 must have w_j != 0.*w_1 is zero"):
        gflow.flow(model, gflow.Problem(np.eye(2), [1.0, -1.0]), start, 1.0)


@pytest.mark.parametrize("w", [[1.0, 1.0], [1.0, 1.5]])
def test_a_neuron_that_reaches_zero_stops_the_run(w):
    """w_i' = -1 - w_i down to 0, at log(1 + w_i): both at once, or one after the other."""
    run = run_one(np.eye(2), [-1.0, -1.0], w, 3.0)
    assert run.status.code == "zero_neuron" and not run.status.ok
    assert "neuron 0 has reached w = 0" in run.status.message
    np.testing.assert_allclose(run.t[-1], np.log(1 + max(w)), rtol=1e-8)
    np.testing.assert_allclose(run.end[:2], 0, atol=1e-9)


@pytest.mark.parametrize("part", [0.9, 0.99, 0.9999, 1 - 1e-7])
def test_a_zero_later_than_the_end_does_not_fail_the_run(part):
    """The step that meets w = 0 passes over all wanted times: they are saved, and going on stops at the same zero."""
    zero = np.log(2.5)
    times = np.linspace(0.0, part * zero, 40)
    run = run_one(np.eye(2), [-1.0, -1.0], [1.0, 1.5], times)
    assert run.outcome.code == "finished" and len(run.t) == 40
    np.testing.assert_allclose(run.theta[:, 1], 2.5 * np.exp(-times) - 1, atol=1e-8)
    model, problem = (
        gflow.TwoLayerReLU(2, 1, train_outer=False),
        gflow.Problem(np.eye(2), [-1.0, -1.0], factor=0.5),
    )
    late = [0.5 * (part + 1) * zero, 2.0]
    on = gflow.flow(model, problem, None, late, start=run)
    assert on.outcome.code == "zero_neuron"
    np.testing.assert_allclose(on.t[-2:], [late[0], zero], rtol=1e-8)


def test_times_before_a_zero_are_saved():
    """All those within the last step, which is long, not only those before it."""
    times = np.linspace(0.0, 2.0, 2001)
    run = run_one(np.eye(2), [-1.0, -1.0], [1.0, 1.5], times)
    wanted = times[times < np.log(2.5) - 1e-6]
    np.testing.assert_array_equal(run.t[:-1], wanted)
    np.testing.assert_allclose(run.theta[:-1, 1], 2.5 * np.exp(-wanted) - 1, atol=1e-8)


def test_a_leaky_neuron_passes_by_zero_where_it_may():
    """With the slope 1/10 it comes out on the other side, except through zero itself."""
    run = run_one(np.eye(2), [-1.0, -1.0], [1.0, 1.5], 30.0, slope=0.1)
    assert kinds(run) == [(0, 0, "deactivate"), (0, 1, "deactivate")]
    np.testing.assert_allclose(run.events.t, [np.log(2), np.log(2.5)], rtol=1e-8)


def test_a_start_on_a_repelling_kink_is_not_unique():
    """On the kink of x1 with r1 = 1 and v0 = -1/2: speeds -1/2 inactive, +1/2 active."""
    run = run_one([[1.0, 0.0], [-0.5, 1.0]], [1.0, 2.0], [0.0, 1.0], 1.0)
    assert not run.status.ok and run.status.warnings[0].startswith("not unique")
    assert kinds(run) == [(0, 0, "not_unique")] and run.events.t[0] == 0.0
    assert run.status.code == "finished"


def test_a_slide_turns_repelling_where_the_outer_weight_changes_sign():
    """w = (0, z), x1 = (1, 0), x2 = (-1/2, 1), y = (-2, -1), a = 0.6, z = 1: slides on x1; z = 0.8 cosh p,
    a = 0.8 sinh p, p' = -1 - 0.32 sinh 2p; at p = 0 the pull of x1 changes sign.
    """
    at = quad(lambda p: 1 / (1 + 0.32 * np.sinh(2 * p)), 0, np.arctanh(0.6), epsabs=1e-14)[0]
    model = gflow.TwoLayerReLU(2, 1)
    problem = gflow.Problem([[1.0, 0.0], [-0.5, 1.0]], [-2.0, -1.0], factor=0.5)
    run = gflow.flow(model, problem, model.pack([[[0.0, 1.0]], [[0.6]]]), 2.0, rtol=1e-11)
    assert kinds(run)[:2] == [(0, 0, "slide"), (0, 0, "not_unique")]
    np.testing.assert_allclose(run.events.t[1], at, rtol=1e-9)
    assert run.status.warnings[0].startswith("not unique")


# -- cases that once went wrong -------------------------------------------------------------------


def test_thousands_of_events_at_one_time():
    """Equal neurons that meet all kinks of orthogonal inputs at once, and neurons that begin on many."""
    n = m = 40
    X, w = np.eye(n + 1), np.ones(n + 1)
    model = gflow.TwoLayerReLU(n + 1, m, train_outer=False)
    start = model.pack([np.tile(w, (m, 1)), np.ones((1, m))])
    run = gflow.flow(model, gflow.Problem(X, np.append(-np.ones(n), m), factor=0.5), start, 8.0 / m)
    assert run.status.code == "finished" and len(run.events.t) == n * m
    model = gflow.TwoLayerReLU(n, n)
    run = gflow.flow(
        model, gflow.Problem(np.eye(n), np.full(n, 2.0)), model.pack([np.eye(n), np.ones((1, n))]), 0.1
    )
    assert run.status.code == "finished" and np.sum(run.events.kind == "not_unique") == n * (n - 1)


@pytest.mark.parametrize("method", ["tsit5", "dop853"])
@pytest.mark.parametrize("rtol", [1e-4, 1e-6, 1e-9])
def test_a_crossing_within_one_step_is_seen(method, rtol):
    """A neuron rises 1e-5 above a kink at t = 2.5, which turns it on: without that its end is another.

    Off the sample, u = u1 - e^(-t), v = 2 - e^(-t/2), z = u + q v is largest where e^(-t) = -q e^(-t/2) / 2.
    """
    top, height = 2.5333333333, 1.24e-5
    q = -2 * np.exp(-top) / np.exp(-top / 2)
    u1 = height - (2 - np.exp(-top / 2)) * q + np.exp(-top)
    X, Y = [[1.0, 0.0], [1.0, q], [0.0, np.sqrt(0.5)]], [u1, 5.0, np.sqrt(2.0)]
    run = run_one(X, Y, [u1 - 1.0, 1.0], 6.0, rtol=rtol, method=method)
    assert [kind for *_, kind in kinds(run)] == ["activate", "deactivate"]
    referee = solve([[u1 - 1.0, 1.0]], ONE, np.array(X), np.array(Y), 6.0, factor=0.5, train_outer=False)
    assert distance(run.end[:2], referee.W[-1].ravel()) < 30 * rtol


def test_a_neuron_rests_only_as_long_as_nothing_moves_it():
    """It stands on a kink without speed for one moment, until another neuron has moved the first residual."""
    X, Y = np.array([[1.0, 0.0], [0.5, 1.0], [0.5, 2.0]]), np.array([1.5, 1.0, 10.0])
    W, A = np.array([[1.0, -0.5], [0.5, 1.0]]), np.ones((1, 2))
    model = gflow.TwoLayerReLU(2, 2, train_outer=False)
    t = [0.1, 1.0]
    run = gflow.flow(model, gflow.Problem(X, Y, factor=0.5), model.pack([W, A]), t, rtol=1e-10)
    gaps = []
    for width in (1e-3, 1e-4):
        smooth, _ = softplus_flow(W, A, X, Y, 1.1, width, factor=0.5, train_outer=False, saves=t)
        gaps.append(np.abs(smooth.reshape(-1, 4)[: len(t)] - run.theta[:, :4]).max())
    assert gaps[1] < 2e-3 and 6 < gaps[0] / gaps[1] < 11


def test_staying_on_a_kink_is_a_solution_too_where_only_one_side_leaves():
    run = run_one(np.eye(2), [1.0, 1.0], [0.5, 0.0], 1.0)
    assert kinds(run) == [(0, 1, "not_unique"), (0, 1, "activate")] and not run.status.ok


def test_the_warning_belongs_to_the_run_that_has_the_event():
    model = gflow.TwoLayerReLU(2, 1)
    problem = gflow.Problem([[1.0, 0.0], [-0.5, 1.0]], [-2.0, -1.0], factor=0.5)
    start = model.pack([[[0.0, 1.0]], [[0.6]]])
    whole = gflow.flow(model, problem, start, 2.0, rtol=1e-11)
    turn = whole.events.t[whole.events.kind == "not_unique"][0]
    first = gflow.flow(model, problem, start, turn - 1e-6, rtol=1e-11)
    second = gflow.flow(model, problem, None, 2.0, start=first)
    assert first.status.ok and not second.status.ok
    np.testing.assert_array_equal(second.end, whole.end)


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_one_dimension_passes_zero_where_all_inputs_share_the_kink(slope):
    """w = 0 is the one kink there: a crossing like others; |a|^2 - |w|^2 stays."""
    model = gflow.TwoLayerReLU(1, 3, slope=slope)
    problem = gflow.Problem([[1.0], [2.0], [-1.5]], [-1.0, -2.0, 1.5])
    start = model.pack([[[0.1], [0.2], [-0.1]], [[0.5, -0.5, 0.5]]])
    run = gflow.flow(model, problem, start, 20.0)
    assert run.status.ok and len(run.events.t) > 0 and run.gauges.invariant_drift.max() < 1e-9
    assert run.loss[-1] < 1e-3 * run.loss[0]


def test_a_network_that_decays_to_nothing_runs_on():
    rng = np.random.default_rng(1)
    model = gflow.TwoLayerReLU(2, 2)
    problem = gflow.Problem(rng.standard_normal((5, 2)), 1e-3 * rng.standard_normal(5), weight_decay=2.0)
    run = gflow.flow(model, problem, model.init("balanced", 0.5), 60.0)
    assert run.status.ok and np.abs(run.end).max() < 1e-12


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_inputs_of_low_rank_stop_where_nothing_is_left_of_a_neuron_on_them(slope):
    """Two-dimensional problems in three dimensions end as they do in two."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        X, Y = rng.standard_normal((6, 2)), rng.standard_normal(6)
        W, A = 0.5 * rng.standard_normal((4, 2)), np.sign(rng.standard_normal((1, 4)))
        frame = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        runs = []
        for inputs, weights in ((X, W), (X @ frame[:2], W @ frame[:2] + frame[2])):
            model = gflow.TwoLayerReLU(inputs.shape[1], 4, slope=slope, train_outer=False)
            problem = gflow.Problem(inputs, Y)
            runs.append(gflow.flow(model, problem, model.pack([weights, A]), 30.0, max_steps=20_000))
        plane, space = runs
        assert plane.status.code == space.status.code, seed
        ends = [run.end[:-4].reshape(4, -1) for run in runs]
        assert distance(ends[1] @ frame[:2].T, ends[0]) < 1e-6, seed


def test_the_hessian_on_kinks_is_that_of_the_flow_along_them():
    """Of 1e-13 across a kink it knows nothing, and it is the derivative of the velocity along the kinks."""
    case = sliding(3)
    run = gflow.flow(case.model, case.problem, case.theta0, 20.0)
    j, i = np.argwhere(run.state["mode"] == 0)[0]
    across = np.zeros(case.model.size)
    across[3 * j : 3 * j + 3] = case.problem.X[i]
    values = [
        observe.hessian_eigenvalues(case.model, case.problem, run.end + shift * across)
        for shift in (-1e-13, 0.0, 1e-13)
    ]
    np.testing.assert_allclose(values[0], values[1], atol=1e-10 * values[1][0])
    np.testing.assert_allclose(values[2], values[1], atol=1e-10 * values[1][0])
    objective = neurons.on_kinks(case.model, case.problem, run.end)
    v = np.random.default_rng(0).standard_normal(case.model.size)
    along = -neurons.velocity(case.model, case.problem, run.end)
    np.testing.assert_allclose(objective.gradient(run.end), along, atol=1e-9 * np.linalg.norm(along))
    hessian = objective.hessian(run.end)
    assert np.abs(hessian @ across).max() < 1e-12
    flat = v.copy()
    for jj in np.flatnonzero((run.state["mode"] == 0).any(axis=1)):
        rows = [case.problem.X[p] for p in np.flatnonzero(run.state["mode"][jj] == 0)]
        part = flat[3 * jj : 3 * jj + 3]
        flat[3 * jj : 3 * jj + 3] = part - np.linalg.pinv(rows) @ (np.array(rows) @ part)
    change = (objective.gradient(run.end + 1e-5 * flat) - objective.gradient(run.end - 1e-5 * flat)) / 2e-5
    np.testing.assert_allclose(hessian @ v, change, atol=1e-8 * np.abs(change).max())


# -- size -----------------------------------------------------------------------------------------


def test_many_events():
    """64 neurons, 50 samples, 5 dimensions: more than a thousand events to t = 16."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 5))
    Y = X @ rng.standard_normal(5) + 2.0 * rng.standard_normal(50)
    model, t = gflow.TwoLayerReLU(5, 64), np.linspace(0, 16, 100)
    problem = gflow.Problem(X, Y, factor=0.1)
    run = gflow.flow(model, problem, model.init("gaussian", scale=0.3), t)
    assert run.status.code == "finished" and len(run.events.t) > 1000
    assert np.diff(run.loss).max() <= 10 * EPS * run.loss[0]
    assert run.gauges.invariant_drift.max() < 1e-9 and run.gauges.dissipation_defect.max() < 1e-7


@pytest.mark.slow
def test_from_a_tiny_start_to_rest():
    """60 neurons, 40 samples, 6 dimensions from 1e-3, until the speed is a thousandth of its largest."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 6))
    Y = X @ rng.standard_normal(6) + 0.5 * rng.standard_normal(40)
    model, problem = gflow.TwoLayerReLU(6, 60), gflow.Problem(X, Y)
    start = model.init("balanced", scale=1e-3)
    run = gflow.flow(model, problem, start, 1e5, rest=1e-3)
    assert run.status.code == "at_rest" and run.status.ok and len(run.events.t) > 100
    assert run.loss[-1] < run.loss[0] and run.gauges.invariant_drift.max() < 1e-9
    again = gflow.flow(model, problem, start, np.linspace(0, run.t[-1], 400), observe="gradient_norm")
    largest = again["gradient_norm"].max()
    # the times seen may miss the largest speed by a little
    assert 0.9e-3 * largest < observe.gradient_norm(model, problem, run.end) < 1.1e-3 * largest
    # the gradient by signs is another: neurons slide
    assert np.linalg.norm(Objective(model, problem).gradient(run.end)) > 1e-2 * largest
