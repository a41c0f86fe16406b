"""The referee for exact ReLU flows, on cases that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from relu_referee import (
    ACTIVE,
    INACTIVE,
    SEEDS,
    SLIDING,
    Ambiguous,
    random_problem,
    softplus_flow,
    solve,
)
from scipy.integrate import quad
from scipy.linalg import expm

#: two inputs with x1.x1 = 1, x1.x2 = 1/2, x2.x2 = 5/4, used below
X1, X2 = np.array([1.0, 0.0]), np.array([0.5, 1.0])
ONE = np.ones((1, 1))


def linear_flow(parts, w, t):
    """The solution of w' = sum of (y - u.w) v over the ``parts`` (u, v, y)."""
    size = len(w)
    M = np.zeros((size + 1, size + 1))
    for u, v, y in parts:
        M[:size, :size] -= np.outer(v, u)
        M[:size, size] += y * np.asarray(v)
    return (expm(M * t) @ np.append(w, 1.0))[:size]


def solved(seed, **more):
    p = random_problem(seed)
    return p, solve(p.W, p.A, p.X, p.Y, p.t_end, **p.options, **more)


@pytest.mark.parametrize("side", [1, -1])
def test_one_neuron_one_sample(side):
    """w = +-b x/|x|, |x| = 5/2, a = b: g = |f| follows g' = 5 s g (|y| - g), s the slope of that side."""
    slope, t = 0.3, 1.7
    x, y, b = np.array([1.5, 2.0]), 0.9 * side, 0.2
    s = 1.0 if side > 0 else slope
    run = solve([side * b * x / 2.5], [[b]], [x], [y], t, slope=slope)
    g0 = 2.5 * s * b**2
    g = 0.9 / (1 + (0.9 / g0 - 1) * np.exp(-5 * s * 0.9 * t))
    found = np.sqrt(g / (2.5 * s))
    np.testing.assert_allclose(run.A[-1], [[found]], rtol=1e-11)
    np.testing.assert_allclose(run.W[-1], [side * found * x / 2.5], rtol=1e-11)
    np.testing.assert_allclose(run.loss[-1], (0.9 - g) ** 2 / 2, rtol=1e-9)
    assert run.events == [] and run.modes[0, 0] == side


def test_slides_and_leaves_to_the_active_side():
    """Neurons A, B with outer weights 1, fixed; L = sum r^2 / 2, r = y - f, y = (2, 1/10).

    B is active on x2 alone: zB2 = 2.1 at the start, so that r2 = -2 e^(-5 t / 4) while A does not feel x2.
    A starts at (1/2, -1/2), zA = (1/2, -1/4), and moves along x1: r1 = (3/2) e^(-t), zA2 = zA1 / 2 - 1/2.
    It meets zA2 = 0 when zA1 = 1, r1 = 1: t1 = log(3/2). There v0 = r1 x1.x2 = 1/2 > 0 and
    v0 + c = 1/2 + (5/4) r2 = 1/2 - (5/2) (2/3)^(5/4) < 0: it slides, with s = (2/5) r1 / |r2| = s1 = 0.332.
    Sliding, zA1' = r1 (1 - (1/4) / (5/4)) = (4/5) r1, so that s = s1 e^((5/4 - 4/5)(t - t1)), which is 1 at
    t2 = t1 + log(1 / s1) / 0.45. From then on all is linear.
    """
    X, Y = np.stack([X1, X2]), np.array([2.0, 0.1])
    W, A = np.array([[0.5, -0.5], [-1.0, 2.6]]), np.ones((1, 2))
    options = {"factor": 0.5, "train_outer": False}
    t1 = np.log(1.5)
    s1 = 0.2 * 1.5**1.25
    t2 = t1 + np.log(1 / s1) / 0.45

    middle = t1 + 1.0
    run = solve(W, A, X, Y, middle, **options)
    np.testing.assert_allclose(run.multipliers[0, 1], s1 * np.exp(0.45), rtol=1e-11)
    first = 2 - np.exp(-0.8)  # zA1, and zA2 = 0
    np.testing.assert_allclose(run.W[-1][0], [first, -first / 2], rtol=1e-11)
    np.testing.assert_array_equal(run.modes, [[ACTIVE, SLIDING], [INACTIVE, ACTIVE]])
    assert abs(run.W[-1][0] @ X2) < 1e-15

    end = t2 + 1.0
    run = solve(W, A, X, Y, end, saves=[t2], **options, check=True)
    assert [(j, i, kind) for _, j, i, kind in run.events] == [(0, 1, "slide"), (0, 1, "leave_active")]
    np.testing.assert_allclose([t for t, *_ in run.events], [t1, t2], rtol=1e-11)
    zero = np.zeros(2)
    parts = [
        (np.append(X1, zero), np.append(X1, zero), 2.0),
        (np.append(X2, X2), np.append(X2, X2), 0.1),
    ]
    exact = linear_flow(parts, run.W[0].ravel(), 1.0)
    np.testing.assert_allclose(run.W[-1].ravel(), exact, rtol=1e-10)
    np.testing.assert_array_equal(run.modes, [[ACTIVE, ACTIVE], [INACTIVE, ACTIVE]])
    assert run.error < 1e-9


def test_leaky_slides_from_the_start_and_leaves_to_the_inactive_side():
    """One neuron, a = 1 fixed, slope 1/4, y = (2, -1), w = (1, -1/2): z = (1, 0), on the kink of x2.

    r1 = 1: v0 = 1/2, c = (5/4) y2 = -5/4, so that v0 + c < 0 < v0 + c / 4: slides, s = (2/5) r1 with
    r1 = e^(-4 t / 5), down to 1/4 at t = (5/4) log(8/5). From then on it is linear, with f2 = z2 / 4.
    """
    options = {"slope": 0.25, "factor": 0.5, "train_outer": False}
    out, end = 1.25 * np.log(1.6), 2.0
    run = solve([[1.0, -0.5]], ONE, [X1, X2], [2.0, -1.0], end, **options)
    assert [(j, i, kind) for _, j, i, kind in run.events] == [(0, 1, "slide"), (0, 1, "leave_inactive")]
    np.testing.assert_allclose([t for t, *_ in run.events], [0.0, out], rtol=1e-12)
    z1 = 2 - 1 / 1.6
    exact = linear_flow([(X1, X1, 2.0), (X2 / 4, X2 / 4, -1.0)], [z1, -z1 / 2], end - out)
    np.testing.assert_allclose(run.W[-1][0], exact, rtol=1e-11)


def test_leaky_crosses():
    """r2 = y2 > 0 on the kink, v0 < 0: z2 goes down through zero, and the slope changes to 1/4 there."""
    options = {"slope": 0.25, "factor": 0.5, "train_outer": False}
    w, y = np.array([1.0, 0.0]), np.array([-3.0, 0.2])
    run = solve([w], ONE, [X1, X2], y, 1.0, **options)
    crossings = [t for t, j, i, kind in run.events if kind == "deactivate"]
    assert len(run.events) == 2 and len(crossings) == 2
    slopes, t = {0: 1.0, 1: 1.0}, 0.0
    for at, _, i, _ in run.events:
        w = linear_flow([(slopes[k] * x, slopes[k] * x, y[k]) for k, x in enumerate((X1, X2))], w, at - t)
        assert abs(w @ (X1, X2)[i]) < 1e-12
        slopes[i], t = 0.25, at
    w = linear_flow([(0.25 * x, 0.25 * x, y[k]) for k, x in enumerate((X1, X2))], w, 1.0 - t)
    np.testing.assert_allclose(run.W[-1][0], w, rtol=1e-11)


def test_two_kinks_at_once_are_decided_together():
    """w = e3 is on the kinks of x1, x2, x1.x2 = 0.8; the drive is x3 with r3 = 1, x3.x1 = 1/2, x3.x2 = 1.

    r1 = r2 = -2: each alone would slide (1/2 - 2 < 0 < 1/2 and 1 - 2 < 0 < 1). But to hold both would take
    multipliers t = -r s with t1 + 0.8 t2 = 1/2, 0.8 t1 + t2 = 1, that is t1 < 0: x1 is released to its
    inactive side (speed 1/2 - 0.8 < 0), x2 slides with s = 1/2, and w' = x3 - x2 = (-0.3, 0.4, 1).
    """
    X = np.array([[1.0, 0, 0], [0.8, 0.6, 0], [0.5, 1, 1]])
    t = 1e-7
    run = solve([[0.0, 0, 1]], ONE, X, [-2.0, -2, 2], t, factor=0.5, train_outer=False)
    np.testing.assert_array_equal(run.modes, [[INACTIVE, SLIDING, ACTIVE]])
    np.testing.assert_allclose(run.multipliers[0, 1], 0.5, rtol=1e-6)
    np.testing.assert_allclose((run.W[-1][0] - [0, 0, 1]) / t, [-0.3, 0.4, 1], rtol=1e-6)


def test_a_repelling_kink_at_the_start_is_ambiguous():
    """On the kink of x1 with r1 = 1 and drive v0 = -1/2: speeds -1/2 inactive, +1/2 active."""
    X = [[1.0, 0.0], [-0.5, 1.0]]
    with pytest.raises(Ambiguous, match="ways to go on") as caught:
        solve([[0.0, 1.0]], ONE, X, [1.0, 2.0], 1.0, factor=0.5, train_outer=False)
    assert (caught.value.t, caught.value.neuron, caught.value.samples) == (0.0, 0, [0])


def test_a_sliding_pair_turns_repelling_when_the_outer_weight_changes_sign():
    """w = (0, z), x1 = (1, 0), x2 = (-1/2, 1), y = (-2, -1), a = 0.6, z = 1, L = sum r^2 / 2.

    It slides on x1 with s = |r2| / 4 in (0, 1), while a' = z r2, z' = a r2: with z = 0.8 cosh p,
    a = 0.8 sinh p, p' = r2 = -1 - 0.32 sinh 2p. At p = 0 a changes sign and with it v0 and c,
    s does not notice: repelling.
    """
    X, Y = np.array([[1.0, 0.0], [-0.5, 1.0]]), [-2.0, -1.0]
    at = quad(lambda p: 1 / (1 + 0.32 * np.sinh(2 * p)), 0, np.arctanh(0.6), epsabs=1e-14)[0]
    with pytest.raises(Ambiguous, match="turns repelling") as caught:
        solve([[0.0, 1.0]], [[0.6]], X, Y, 2 * at, factor=0.5)
    np.testing.assert_allclose(caught.value.t, at, rtol=1e-11)
    run = solve([[0.0, 1.0]], [[0.6]], X, Y, at * (1 - 1e-9), factor=0.5)
    np.testing.assert_allclose(run.W[-1][0], [0, 0.8], atol=1e-8)
    np.testing.assert_allclose(run.multipliers[0, 0], 0.25, rtol=1e-8)


def test_a_dead_neuron_never_moves():
    rng = np.random.default_rng(3)
    X = np.abs(rng.standard_normal((5, 3)))
    W = np.stack([[-0.3, -0.2, -0.1], [0.2, 0.1, 0.3]])
    A = np.array([[0.5, 0.4]])
    run = solve(W, A, X, X @ [1.0, 0.5, 0.2], 5.0)
    np.testing.assert_array_equal(run.W[-1][0], W[0])
    assert run.A[-1][0, 0] == A[0, 0] and run.W[-1][1, 0] != W[1, 0]


def test_a_neuron_that_loses_its_last_sample_rests_on_the_kink():
    """z' = y - z = -1 - z from 1: z = 2 e^(-t) - 1 is 0 at log 2, and there is nothing to push it further."""
    run = solve([[1.0, 1.0]], ONE, [[1.0, 0.0]], [-1.0], 3.0, factor=0.5, train_outer=False)
    np.testing.assert_allclose(run.W[-1], [[0, 1]], atol=1e-14)
    assert [kind for *_, kind in run.events] == ["deactivate"]
    np.testing.assert_allclose(run.resting[0][0], np.log(2), rtol=1e-12)
    assert run.revivals == []


def test_two_outputs_with_equal_rows_are_one_with_the_summed_loss():
    """Two equal outputs with equal targets double the loss, and a_j is doubled in q: as one with factor 2."""
    p = random_problem(3)
    one = solve(p.W, p.A, p.X, p.Y, 3.0, factor=0.2, train_outer=False)
    two = solve(p.W, np.repeat(p.A, 2, 0), p.X, np.repeat(p.Y, 2, 1), 3.0, factor=0.1, train_outer=False)
    np.testing.assert_allclose(one.W, two.W, rtol=0, atol=1e-11)
    assert [e[1:] for e in one.events] == [e[1:] for e in two.events] and one.events


@pytest.mark.parametrize("seed", [0, 12, 23, 37])
def test_conservation_and_descent(seed):
    """a_j^2 - |w_j|^2 stays, through crossing, sliding and leaving; the loss falls by the integral of v^2."""
    p, run = solved(seed, saves=np.linspace(0.5, 30, 60))
    assert run.slides
    balance = np.sum(run.A**2, axis=1) - np.sum(run.W**2, axis=2)
    drift = np.abs(balance - (np.sum(p.A**2, axis=0) - np.sum(p.W**2, axis=1)))
    assert np.max(drift / np.maximum(np.max(np.sum(run.W**2, axis=2), axis=0), 1e-3)) < 1e-10
    assert np.all(np.diff(run.loss) < 1e-14)
    assert run.dissipation < 1e-11
    z = run.W[-1] @ p.X.T
    assert np.max(np.abs(z[run.modes == SLIDING]), initial=0) < 1e-13
    assert np.all((z * run.modes)[run.modes != SLIDING] > 0)
    s = run.multipliers[run.modes == SLIDING]
    assert np.all((s > p.options.get("slope", 0.0)) & (s < 1))


def test_weight_decay_makes_the_imbalance_decay():
    p, run = solved(62)
    W = p.W * 1.2  # no longer balanced
    run = solve(W, p.A, p.X, p.Y, 8.0, **p.options)
    first, last = (np.sum(a**2, 0) - np.sum(w**2, 1) for w, a in ((W, p.A), (run.W[-1], run.A[-1])))
    np.testing.assert_allclose(last, first * np.exp(-2 * 0.01 * 8.0), rtol=0, atol=1e-11)
    assert run.events


@pytest.mark.parametrize("seed", [2, 5, 14])
def test_agrees_with_the_smoothed_flow_to_first_order_in_its_width(seed):
    """Plain, leaky and decaying; errors fall tenfold with the width: 1.6e-5, 1.2e-5 and 2.9e-5 at 1e-5."""
    p, run = solved(seed)
    gaps = []
    for width in (1e-4, 1e-5, 1e-6):
        W, A = softplus_flow(p.W, p.A, p.X, p.Y, p.t_end, width, **p.options)
        gaps.append(max(np.max(np.abs(W[-1] - run.W[-1])), np.max(np.abs(A[-1] - run.A[-1]))))
    assert run.slides and gaps[1] < 1e-4
    for coarse, fine in zip(gaps, gaps[1:], strict=False):
        assert 9 < coarse / fine < 11


@pytest.mark.parametrize("seed", [11, 74])
def test_seeds_that_are_not_listed(seed):
    """Among them are those in which a neuron comes to rest on a kink."""
    assert seed not in SEEDS
    _, run = solved(seed)
    assert run.resting


@pytest.mark.parametrize("seed", [17, 26, 44, 46, 81])
def test_seeds_do_what_the_list_says(seed):
    t_end, events, slides = SEEDS[seed]
    p, run = solved(seed, check=True)
    assert p.t_end == t_end
    assert (len(run.events), run.slides) == (events, slides)
    assert run.error < 5e-11 and not run.resting


def test_the_list_of_seeds():
    assert len(SEEDS) >= 40
    assert sum(slides > 0 for _, _, slides in SEEDS.values()) >= len(SEEDS) / 2
