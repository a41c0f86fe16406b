"""Closed forms of linear networks against mpmath and direct integration."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import gflow.theory.linear as theory
from gflow.models.linear import DeepLinear, Symmetric
from gflow.problem import Problem
from gflow.theory.linear.setting import inputs_of
from gflow.theory.prediction import Refused

EPS = np.finfo(float).eps
DEPTHS = (1, 2, 3, 4, 5, 7, np.inf)
#: target, start, and final strengths as fractions of the way that the flow goes
CASES = {
    "below": (1.7, 0.02, ("1e-12", "0.1", "0.5", "0.99", "1 - 1e-9", "1 - 1e-40", "1 - 1e-120")),
    "far below": (1.7, 1e-100, ("2e-100", "1e-98", "1e-94", "1e-50")),
    "just below": (0.3, 0.3 * (1 - 1e-9), ("1e-6", "0.5", "1 - 1e-30")),
    "above": (0.4, 3.0, ("1e-12", "0.1", "0.5", "0.99", "1 - 1e-9", "1 - 1e-80")),
    "far above": (1e-5, 1e4, ("1e-3", "0.9", "1 - 1e-8", "1 - 1e-20")),
    "zero target": (0.0, 0.7, ("1e-12", "0.1", "0.9", "1 - 1e-9")),
    "negative target": (-0.8, 0.5, ("1e-12", "0.1", "0.9", "1 - 1e-9", "1 - 1e-60")),
}


def exponent(depth):
    return mp.mpf(2) if depth == np.inf else 2 - mp.mpf(2) / depth


def velocity(u, s, depth):
    return (1 if depth == np.inf else depth) * abs(u) ** exponent(depth) * (s - u)


def exact_time(u0, u, gap, s, depth):
    """t(u0 -> u), mpmath; ``gap`` = s - u is given apart, so that it may be far below the precision of u."""
    p, rate = exponent(depth), 1 if depth == np.inf else depth
    if depth == 1:
        return mp.log((s - u0) / gap)
    if s == 0:
        return (u**-p - u0**-p) / (p * rate)
    size, q = abs(s), p - 1

    def primitive(x, rest):  # x = u/|s|, rest = |s - u|/|s|
        sign = mp.sign(s)
        if q == 0:
            return sign * mp.log(x / rest)
        if q == 1:
            return mp.log(x / rest) - sign / x
        if s > 0 and u0 < s:
            return -(x**-q) / q * mp.hyp2f1(1, -q, 1 - q, x)
        return x**-p / p * mp.hyp2f1(1, p, p + 1, mp.sign(s) / x)

    return (primitive(u / size, abs(gap) / size) - primitive(u0 / size, abs(s - u0) / size)) / (
        rate * size**p
    )


def final_states(name, depth):
    s, u0, fractions = CASES[name]
    limit = mp.mpf(s) if depth == 1 else mp.mpf(max(s, 0))
    for text in fractions:
        first, _, second = text.partition(" - ")
        left = 1 - mp.mpf(first) if not second else mp.mpf(second)
        u = limit + (u0 - limit) * left
        yield mp.mpf(s), mp.mpf(u0), u, (limit - u0) * left + (s - limit)


def relative(value, exact):
    return float(abs((mp.mpf(float(value)) - exact) / exact))


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", CASES)
def test_mode_strength_gap_and_time_equal_the_exact_integral(name, depth):
    with mp.workdps(160):
        for s, u0, u, gap in final_states(name, depth):
            exact = exact_time(u0, u, gap, s, depth)
            t = float(exact)
            # the strength at the rounded time, to first order in the rounding
            shift = velocity(u, s, depth) * (t - exact)
            condition = float(abs(t * velocity(u, s, depth)) / min(abs(u), abs(gap)))
            allowed = 1e-10 + 100 * EPS * condition
            if condition * EPS > 1e-8:
                continue  # so close to a blow-up that the next number after t gives another strength
            strength = theory.mode_strength(t, float(s), float(u0), depth)
            distance = theory.mode_gap(t, float(s), float(u0), depth)
            assert relative(strength, u + shift) < allowed
            assert relative(distance, gap - shift) < allowed
            uf = float(u)
            if uf not in (float(u0), float(s)):
                again = exact_time(u0, mp.mpf(uf), s - mp.mpf(uf), s, depth)
                assert relative(theory.mode_time(float(u0), uf, float(s), depth), again) < 1e-10


@pytest.mark.parametrize("depth", [1, 2, 3, 4, np.inf])
def test_the_elementary_forms_equal_the_integral(depth):
    s = np.array([0.3, 1.0, 4.0])[:, None]
    u0, uf = 1e-2 * s, np.array([0.1, 0.5, 0.9]) * s
    closed = theory.closed_form_time(u0, uf, s, depth)
    np.testing.assert_allclose(closed, theory.mode_time(u0, uf, s, depth), rtol=1e-10)
    with mp.workdps(40):
        exact = exact_time(mp.mpf("0.01"), mp.mpf("0.9"), mp.mpf("0.1"), mp.mpf(1), depth)
    assert relative(theory.closed_form_time(0.01, 0.9, 1.0, depth), exact) < 1e-10


def test_the_elementary_forms_say_where_there_is_none():
    with pytest.raises(
        ValueError, match="depth must be 1, 2, 3, 4 or np.inf to have an elementary form; got 5"
    ):
        theory.closed_form_time(0.1, 0.2, 1.0, 5)
    with pytest.raises(ValueError, match="uf must lie between 0 and s"):
        theory.closed_form_time(0.1, 2.0, 1.0, 3)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(
    "s, u0", [(1.3, 1e-3), (0.4, 2.0), (0.0, 0.5), (-0.7, 0.9), (-1.2, -0.01), (1.1, -0.3)]
)
def test_mode_strength_solves_its_equation(depth, s, u0):
    p, rate = float(exponent(depth)), 1 if depth == np.inf else depth
    t = np.array([0.0, 0.1, 0.5, 1.0, 2.0])
    solution = solve_ivp(
        lambda _, u: rate * np.abs(u) ** p * (s - u), (0, 2), [u0], "DOP853", t, rtol=1e-13, atol=1e-18
    )
    u = theory.mode_strength(t, s, u0, depth)
    np.testing.assert_allclose(u, solution.y[0], rtol=1e-10, atol=1e-12 if depth == 1 else 0)
    np.testing.assert_allclose(theory.mode_gap(t, s, u0, depth), s - u, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(theory.mode_strength(t, -s, -u0, depth), -u)


@pytest.mark.parametrize("depth", DEPTHS)
def test_mode_strength_at_its_fixed_points_and_limits(depth):
    t = np.array([0.0, 1.0, 1e3, np.inf])
    np.testing.assert_allclose(theory.mode_strength(t, 0.7, 0.7, depth), 0.7, rtol=4 * EPS)
    assert np.all(np.abs(theory.mode_gap(t, 0.7, 0.7, depth)) <= 4 * EPS)
    if depth > 1:
        assert not theory.mode_strength(t, 0.7, 0.0, depth).any()
        assert theory.mode_strength(np.inf, -0.7, 0.3, depth) == 0
    for u0 in (1e-3, 5.0):
        assert theory.mode_strength(np.inf, 0.7, u0, depth) == pytest.approx(0.7, rel=4 * EPS)
    assert theory.mode_strength(t[:, None], [1.0, 2.0], 0.1, depth).shape == (4, 2)


@pytest.mark.parametrize("depth", DEPTHS)
def test_mode_time_inverts_mode_strength_and_is_additive(depth):
    s = np.array([1.4, 1.4, -0.6, 0.0, 1.4, -1.4])
    u0 = np.array([1e-3, 4.0, 0.8, 0.8, 1.3, -0.4])
    if depth == 1:
        s, u0 = s[:3], u0[:3]
    limit = s if depth == 1 else np.where(s * u0 > 0, s, 0.0)
    ends = [u0 + fraction * (limit - u0) for fraction in (1e-7, 0.3, 0.95)]
    legs = [theory.mode_time(a, b, s, depth) for a, b in zip([u0, *ends[:-1]], ends, strict=True)]
    np.testing.assert_allclose(theory.mode_time(u0, ends[-1], s, depth), sum(legs), rtol=1e-12)
    np.testing.assert_allclose(theory.mode_strength(sum(legs), s, u0, depth), ends[-1], rtol=1e-11)


@pytest.mark.parametrize(
    "u0, uf, s",
    [(0.1, 1.0, 1.0), (0.1, 0.05, 1.0), (0.1, 2.0, 1.0), (0.1, -0.1, 1.0), (0.1, 0.2, -1.0), (0.0, 0.1, 1.0)],
)
def test_mode_time_says_what_is_unreachable(u0, uf, s):
    with pytest.raises(ValueError, match="unreachable"):
        theory.mode_time(u0, uf, s, 3)


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: theory.mode_strength(-1.0, 1, 0.1, 2), "t must"),
        (lambda: theory.mode_strength(1.0, np.nan, 0.1, 2), "s must"),
        (lambda: theory.mode_strength(1.0, 1.0, np.inf, 2), "u0 must"),
        (lambda: theory.mode_strength(1.0, 1.0, 0.1, 2.5), "depth must"),
        (lambda: theory.mode_strength(1.0, 1.0, 0.1, 0), "depth must"),
        (lambda: theory.unbalanced_mode(np.inf, 1.0, 0.1, 0.1), "t must"),
        (lambda: theory.riccati(1.0, np.eye(2), np.eye(3), np.eye(2)), "W2 must"),
        (lambda: theory.riccati(1.0, np.eye(2), np.diag([1.0, 2.0]), np.eye(2)), "W1 and W2 must"),
        (lambda: theory.end_to_end_velocity(np.eye(2), np.eye(3), 2), "G must"),
        (lambda: theory.singular_vector_speeds(np.eye(2), np.eye(2), 2), "W must"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises(ValueError, match=name):
        call()


# ---- unbalanced modes


def exact_factors(t, s, a, b):
    """(a, b)(t) by the Riccati equation of (a + b)^2 or (a - b)^2, mpmath."""
    t, s, a, b = (mp.mpf(x) for x in (t, s, a, b))
    c = a**2 - b**2
    rate = mp.sqrt(c**2 + 4 * s**2)
    tau = mp.tanh(rate * t / 2) / rate if rate else t / 2
    sign = 1 if a + b else -1
    p = (a + sign * b) ** 2
    if p == 0:
        return mp.mpf(0), mp.mpf(0)
    grown = (p * (1 + sign * 2 * s * tau) + c**2 * tau) / (1 + (p - sign * 2 * s) * tau)
    phi = sign * mp.log(grown / p) / 2
    return a * mp.cosh(phi) + b * mp.sinh(phi), a * mp.sinh(phi) + b * mp.cosh(phi)


@pytest.mark.parametrize("s", [2.0, 0.3, 1e-9, 0.0, -1e-9, -0.4, -3.0])
def test_unbalanced_mode_equals_the_exact_solution(s):
    starts = [
        (0.1, 0.1),
        (0.1, 0.0),
        (0.0, 1e-50),
        (1e-50, 1e-50),
        (1.7, -0.5),
        (-0.3, 0.3),
        (0.5, 0.5000001),
    ]
    starts += [(-0.2, -1e-8), (30.0, 0.1), (0.0, 0.0), (1.0, -1e-20)]
    with mp.workdps(400):
        for a0, b0 in starts:
            for t in (0.0, 1e-9, 0.3, 2.0, 60.0):
                if np.hypot(2 * s, a0**2 - b0**2) * t > 350:
                    continue
                exact = exact_factors(t, s, a0, b0)
                for value, wanted in zip(theory.unbalanced_mode(t, s, a0, b0), exact, strict=True):
                    assert value == 0 if abs(wanted) < 1e-300 else relative(value, wanted) < 1e-10


@pytest.mark.parametrize("s, a0, b0", [(1.3, 0.2, -0.5), (-0.7, 0.4, 0.9), (0.0, 0.3, 0.1), (1.0, 0.0, 0.2)])
def test_unbalanced_mode_solves_its_equation(s, a0, b0):
    t = np.linspace(0, 5, 11)
    solution = solve_ivp(
        lambda _, y: y[::-1] * (s - y[0] * y[1]), (0, 5), [a0, b0], "DOP853", t, rtol=1e-13, atol=1e-16
    )
    a, b = theory.unbalanced_mode(t, s, a0, b0)
    np.testing.assert_allclose([a, b], solution.y, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(a**2 - b**2, a0**2 - b0**2, rtol=1e-12, atol=1e-15)


def test_unbalanced_mode_is_smooth_at_balance_and_goes_to_its_limit():
    t = np.linspace(0, 30, 7)
    u = np.prod(theory.unbalanced_mode(t, 0.8, 0.3, 0.3), axis=0)
    np.testing.assert_allclose(u, theory.mode_strength(t, 0.8, 0.09, 2), rtol=1e-13)
    for c in (1e-4, 1e-8, 1e-12):
        near = np.prod(theory.unbalanced_mode(t, 0.8, np.sqrt(0.09 + c), 0.3), axis=0)
        assert np.max(np.abs(near - u)) < 10 * c + 1e-15
    assert np.prod(theory.unbalanced_mode(1e9, -0.8, 0.3, 0.1)) == pytest.approx(-0.8, rel=1e-14)


# ---- two layers


def balanced_layers(d, h, k, lam, rng, size=0.4):
    """A start with W2ᵀW2 − W1W1ᵀ = lam I."""
    frames = [np.linalg.qr(rng.standard_normal((n, n)))[0] for n in (d, h, k)]
    s = size * rng.uniform(0.5, 1.5, h) * (np.arange(h) < min(d, k))
    root = np.sqrt(lam**2 + 4 * s**2)
    first, second = np.zeros((h, d)), np.zeros((k, h))
    np.fill_diagonal(first, np.sqrt(0.5 * (root - lam))[: min(h, d)])
    np.fill_diagonal(second, np.sqrt(0.5 * (root + lam))[: min(h, k)])
    return frames[1] @ first @ frames[0].T, frames[2] @ second @ frames[1].T


def layer_flow(weights, gradient, t, decay=0.0):
    """Weights (T, ...) of the layers along the flow, by direct integration; gradient(W) of the loss by W."""
    shapes = [w.shape for w in weights]
    cuts = np.cumsum([w.size for w in weights])[:-1]

    def split(y):
        return [part.reshape(shape) for part, shape in zip(np.split(y, cuts), shapes, strict=True)]

    solution = solve_ivp(
        lambda _, y: np.concatenate([v.ravel() for v in layer_velocity(split(y), gradient, decay)]),
        (0, t[-1]),
        np.concatenate([w.ravel() for w in weights]),
        "DOP853",
        t,
        rtol=1e-13,
        atol=1e-16,
    )
    return [split(y) for y in solution.y.T]


def product(weights):
    out = weights[0]
    for w in weights[1:]:
        out = w @ out
    return out


def layer_velocity(weights, gradient, decay=0.0):
    g = gradient(product(weights))
    out = []
    for j, w in enumerate(weights):
        below = product(weights[:j]) if j else np.eye(w.shape[1])
        above = product(weights[j + 1 :]) if j + 1 < len(weights) else np.eye(w.shape[0])
        out.append(-above.T @ g @ below.T - decay * w)
    return out


SHAPES = [((4, 4, 4), 0.0), ((4, 6, 4), 0.0), ((3, 5, 5), 0.0), ((5, 7, 3), 0.0), ((4, 3, 4), 0.0)]
SHAPES += [((4, 4, 4), 0.5), ((4, 4, 4), -1.3), ((5, 3, 3), 0.8), ((3, 4, 4), 0.8)]


def exact_riccati(t, target, w1, w2):
    (k, h), d = w2.shape, w1.shape[1]
    lam = float(np.trace(w2.T @ w2 - w1 @ w1.T)) / h
    generator = np.block([[-lam / 2 * np.eye(d), target.T], [target, lam / 2 * np.eye(k)]])
    mu, basis = mp.eigsy(mp.matrix(generator.tolist()))
    x = basis.T * mp.matrix(np.vstack([w1.T, w2]).tolist())
    g = [mp.expm1(2 * m * t) / (2 * m) if abs(m) > mp.mpf(10) ** -40 else mp.mpf(t) for m in mu]
    y = basis * mp.diag([mp.exp(m * t) for m in mu]) * x
    qq = y * mp.inverse(mp.eye(h) + x.T * mp.diag(g) * x) * y.T
    return np.array(qq.tolist(), dtype=float)


@pytest.mark.parametrize("shape, lam", SHAPES)
def test_riccati_equals_direct_integration(shape, lam):
    rng = np.random.default_rng(3)
    w1, w2 = balanced_layers(*shape, lam, rng)
    target = rng.standard_normal((shape[2], shape[0]))
    t = np.linspace(0, 6, 7)
    qq = theory.riccati(t, target, w1, w2)
    for result, (a, b) in zip(qq, layer_flow([w1, w2], lambda w: w - target, t), strict=True):
        q = np.vstack([a.T, b])
        assert np.linalg.norm(result - q @ q.T) < 1e-10 * np.linalg.norm(q @ q.T)


@pytest.mark.parametrize("shape, lam", SHAPES)
def test_riccati_equals_many_digits_at_large_times(shape, lam):
    rng = np.random.default_rng(4)
    w1, w2 = balanced_layers(*shape, lam, rng, size=1e-4)
    target = rng.standard_normal((shape[2], shape[0]))
    for t in (1e-7, 5.0, 60.0, 900.0):  # growth e^(mu t) up to e^2000
        with mp.workdps(int(60 + 4 * t)):
            exact = exact_riccati(t, target, w1, w2)
        error = np.linalg.norm(theory.riccati(t, target, w1, w2)[0] - exact)
        assert error < 1e-10 * np.linalg.norm(exact)
    limit = theory.riccati(1e8, target, w1, w2)[0]
    assert np.isfinite(limit).all()


def test_riccati_goes_to_the_saddle_that_the_sign_of_the_determinant_bars():
    rng = np.random.default_rng(5)
    w1, w2 = balanced_layers(3, 3, 3, 0.0, rng)
    u, s, vt = np.linalg.svd(rng.standard_normal((3, 3)))
    target = u @ np.diag([2.0, 1.0, 0.3]) @ vt
    if np.linalg.det(w2 @ w1) * np.linalg.det(target) > 0:
        target = u @ np.diag([2.0, 1.0, -0.3]) @ vt
    w = theory.riccati(50.0, target, w1, w2)[0][3:, :3]
    assert 0.5 * np.sum((w - target) ** 2) == pytest.approx(0.5 * 0.3**2, rel=1e-9)


# ---- singular values and vectors


def chain(widths, u, strengths, v, rng):
    """A balanced network of W = u diag(strengths) vᵀ."""
    n, r = len(widths) - 1, len(strengths)
    frames = [v, *(np.linalg.qr(rng.standard_normal((w, r)))[0] for w in widths[1:-1]), u]
    size = np.abs(strengths) ** (1 / n)
    frames[-1] = frames[-1] * np.sign(strengths)
    return [frames[j + 1] * size @ frames[j].T for j in range(n)]


def orthonormal(rows, cols, rng):
    return np.linalg.qr(rng.standard_normal((rows, cols)))[0]


@pytest.mark.parametrize(
    "widths", [(4, 4), (4, 4, 4), (5, 4, 3), (3, 6, 4, 5), (5, 2, 4, 6), (4, 4, 4, 4, 4)]
)
def test_speeds_equal_the_layerwise_derivative(widths):
    rng = np.random.default_rng(6)
    r, n = min(widths), len(widths) - 1
    s = np.array([2.0, 1.1, 0.6, 0.2])[:r]
    weights = chain(widths, orthonormal(widths[-1], r, rng), s, orthonormal(widths[0], r, rng), rng)
    target = rng.standard_normal((widths[-1], widths[0]))
    w = product(weights)
    g = 1.4 * (w - target)
    parts = layer_velocity(weights, lambda w: 1.4 * (w - target))
    velocity = sum(product([*weights[:j], parts[j], *weights[j + 1 :]]) for j in range(n))
    assert np.linalg.norm(theory.end_to_end_velocity(w, g, n) - velocity) < 1e-12 * np.linalg.norm(velocity)

    u, s, vt = np.linalg.svd(w, full_matrices=False)
    u, s, vt = u[:, :r], s[:r], vt[:r]
    du, dv = theory.singular_vector_speeds(w, g, n, rank=r)
    ds = theory.singular_value_speeds(w, g, n)[:r]
    # the product rule, and orthonormality, determine the speeds
    assert np.linalg.norm(du * s @ vt + u * ds @ vt + u * s @ dv.T - velocity) < 1e-10 * np.linalg.norm(
        velocity
    )
    for x, dx in ((u, du), (vt.T, dv)):
        assert np.abs(x.T @ dx + dx.T @ x).max() < 1e-11 * np.abs(dx).max()

    problem, model = Problem.factorization(target, factor=0.7, weight_decay=0.3), DeepLinear(widths)
    result = theory.speeds(model, problem, model.pack(weights))
    np.testing.assert_allclose(
        result.U_speed * result.values @ result.V.T, du * s @ vt, rtol=1e-9, atol=1e-11
    )
    np.testing.assert_allclose(result.value_speeds, ds - n * 0.3 * s, rtol=1e-11, atol=1e-13)


def test_speeds_use_the_gradient_of_every_kind_of_problem():
    rng = np.random.default_rng(7)
    model = DeepLinear((3, 3, 4))
    weights = chain(model.widths, orthonormal(4, 3, rng), [1.5, 0.8, 0.3], orthonormal(3, 3, rng), rng)
    x, y, a = rng.standard_normal((7, 3)), rng.standard_normal((7, 4)), rng.standard_normal((5, 4, 3))
    m, mask = rng.standard_normal((4, 3)), rng.random((4, 3)) < 0.5
    cases = [
        (Problem(x, y), lambda w: np.sum((x @ w.T - y) ** 2) / 14),
        (Problem.factorization(m), lambda w: 0.5 * np.sum((w - m) ** 2)),
        (Problem.sensing(a, y[:5, 0]), lambda w: np.sum((np.einsum("mab,ab->m", a, w) - y[:5, 0]) ** 2) / 10),
        (Problem.completion(m, mask), lambda w: 0.5 * np.sum(mask * (w - m) ** 2)),
    ]
    w = product(weights)
    for problem, loss in cases:
        g = np.zeros_like(w)
        for i in np.ndindex(*w.shape):
            step = np.zeros_like(w)
            step[i] = 1.0
            g[i] = 0.5 * (loss(w + step) - loss(w - step))  # exact for a quadratic
        result = theory.speeds(model, problem, model.pack(weights))
        np.testing.assert_allclose(
            result.value_speeds, theory.singular_value_speeds(w, g, 2), rtol=1e-11, atol=1e-13
        )


def test_speeds_refuse_with_the_number():
    rng = np.random.default_rng(8)
    model, problem = DeepLinear((3, 3, 3)), Problem.factorization(rng.standard_normal((3, 3)))
    u, v = orthonormal(3, 3, rng), orthonormal(3, 3, rng)
    for strengths, scale, name in [
        ([1.0, 0.5, 0.2], 1.1, "balanced layers: defect 0."),
        ([1.0, 0.5, 0.5 - 1e-9], 1.0, "distinct singular values"),
        ([1.0, 0.5, 1e-9], 1.0, "nonzero singular values"),
    ]:
        weights = chain(model.widths, u, strengths, v, rng)
        theta = model.pack([scale * weights[0], weights[1]])
        with pytest.raises(Refused, match=name):
            theory.speeds(model, problem, theta)
        forced = theory.speeds(model, problem, theta, force=True)
        assert forced.forced and not all(h.holds for h in forced.hypotheses)


# ---- predictions


def white_problem(d, k, rng, rank=None, **settings):
    """Regression with XᵀX = c Π, and the map of its labels."""
    rank = rank or d
    rows = orthonormal(d, rank, rng)
    x = np.sqrt(3.0) * orthonormal(4 * d, rank, rng) @ rows.T
    return Problem(x, x @ rng.standard_normal((d, k)), **settings)


def gradient_of(problem):
    def gradient(w):
        scale = 2 * problem.factor
        if problem.kind == "factorization":
            return scale * (w - problem.Y)
        return scale * (w @ problem.X.T - problem.Y.T) @ problem.X

    return gradient


def strengths_along(problem, path):
    u, _, v = problem.target_svd
    return np.array([np.einsum("ai,ab,bi->i", u, product(weights), v) for weights in path])


@pytest.mark.parametrize("widths", [(5, 3), (5, 4, 3), (3, 3, 3, 3), (4, 2, 6, 4), (3, 4, 4, 4, 3)])
@pytest.mark.parametrize("kind", ["factorization", "regression", "rank-deficient"])
def test_modes_equal_direct_integration(widths, kind):
    rng = np.random.default_rng(9)
    d, k = widths[0], widths[-1]
    if kind == "factorization":
        problem = Problem.factorization(rng.standard_normal((k, d)), factor=0.8)
    else:
        problem = white_problem(d, k, rng, rank=None if kind == "regression" else min(d - 1, max(k, 2)))
    u, s, v = problem.target_svd
    r = min(widths)
    strengths = np.array([0.1, 0.05, -0.2, 0.4])[:r] * (s[:r] > 1e-9)
    model = DeepLinear(widths)
    weights = chain(widths, u[:, :r], strengths, v[:, :r], rng)
    prediction = theory.modes(model, problem, model.pack(weights))
    assert prediction.applies, [str(h) for h in prediction.hypotheses]
    assert prediction.observable == "mode_strengths" and len(prediction.labels) == len(s)
    t = np.linspace(0, 3 / float(inputs_of(problem).rate), 5)
    path = layer_flow(weights, gradient_of(problem), t)
    np.testing.assert_allclose(prediction.predict(t), strengths_along(problem, path), rtol=1e-10, atol=1e-11)
    assert np.all(prediction.bound(t) < 1e-9)


def test_modes_of_an_init_kind_aligned_and_of_a_multiple_of_a_degenerate_target():
    rng = np.random.default_rng(10)
    model, problem = DeepLinear((6, 5, 4)), Problem.factorization(rng.standard_normal((4, 6)))
    theta = model.init("aligned", scale=0.1, problem=problem)
    np.testing.assert_allclose(theory.modes(model, problem, theta).predict(0.0), 0.01, rtol=1e-12)

    target = orthonormal(4, 4, rng) * np.array([2.0, 2.0, 2.0, 1.0]) @ orthonormal(4, 4, rng).T
    u, s, vt = np.linalg.svd(target)
    model, problem = DeepLinear((4, 4, 4)), Problem.factorization(target)
    turn = np.eye(4)
    turn[:3, :3] = orthonormal(3, 3, rng)  # another singular basis of the same target
    weights = chain(model.widths, u @ turn, 0.01 * s, vt.T @ turn, rng)
    assert theory.modes(model, problem, model.pack(weights)).applies


@pytest.mark.parametrize("spectrum", [(3.0, 1.0, 0.0, 0.0), (2.0, 0.5, -0.5, -2.0), (1.0, 1.0, -1.0, 0.0)])
@pytest.mark.parametrize("kind", ["factorization", "regression", "rounded"])
def test_a_multiple_of_the_identity_is_aligned_with_any_symmetric_target(spectrum, kind):
    """Zeros, and a value with its negative: whose singular vectors a decomposition is free to choose."""
    rng = np.random.default_rng(12)
    v = orthonormal(4, 4, rng)
    target = v * np.array(spectrum) @ v.T
    if kind != "rounded":
        target = 0.5 * (target + target.T)
    problem = Problem.factorization(target)
    if kind == "regression":
        x = orthonormal(12, 4, rng)
        problem = Problem(x, x @ target.T, factor=0.5)
    u, s, w = problem.target_svd
    np.testing.assert_allclose(u * s @ w.T, target, atol=1e-14)
    np.testing.assert_allclose(np.abs(np.sum(u * w, axis=0)), 1, rtol=1e-14)
    t = np.linspace(0, 4, 5)
    for depth in (2, 3):
        model = DeepLinear((4,) * (depth + 1))
        theta0 = model.init("identity", 0.4)
        path = layer_flow(model.unpack(theta0), gradient_of(problem), t)
        predictions = [theory.modes] + [theory.unbalanced_modes] * (depth == 2)
        for prediction in (make(model, problem, theta0) for make in predictions):
            assert prediction.applies, [str(h) for h in prediction.hypotheses]
            np.testing.assert_allclose(prediction.predict(t), strengths_along(problem, path), atol=1e-11)
            assert prediction.bound(t)[1] < 1e-12


def test_symmetric_targets_on_part_of_the_inputs():
    rng = np.random.default_rng(13)
    x = orthonormal(9, 4, rng) @ orthonormal(6, 4, rng).T  # four of six inputs
    rows = np.linalg.svd(x)[2][:4].T
    for values in ((2.0, -1.0, 0.0, 0.0), (1.0, -1.0, 0.5, -0.5)):
        problem = Problem(x, x @ (rows * np.array(values) @ rows.T))
        u, s, v = problem.target_svd
        np.testing.assert_allclose(u * s @ v.T, problem.target, atol=1e-14)
        for frame in (u, v):
            np.testing.assert_allclose(frame.T @ frame, np.eye(6), atol=1e-14)
        np.testing.assert_allclose(s, [*sorted(np.abs(values), reverse=True), 0.0, 0.0], atol=1e-14)
        np.testing.assert_allclose(np.abs(np.sum(u * v, axis=0)), 1, rtol=1e-14)
        np.testing.assert_allclose(rows.T @ v[:, 4:], 0, atol=1e-14)  # the last two are not seen
        model = DeepLinear((6, 6, 6))
        assert theory.modes(model, problem, model.init("identity", 0.1)).applies


def test_modes_leave_alone_what_lies_off_the_row_space():
    x = np.vstack([np.eye(4)[:2], -np.eye(4)[:2]])
    problem = Problem(x, x[:, :2] @ np.array([[2.0, 0.0, 0.0], [0.0, 0.5, 0.0]]))
    model = DeepLinear((4, 3, 3))
    u, s, v = problem.target_svd
    weights = chain(model.widths, u, np.array([0.1, 0.1, 0.3]), v, np.random.default_rng(0))
    prediction = theory.modes(model, problem, model.pack(weights))
    t = np.array([0.0, 4.0, 12.0])
    path = layer_flow(weights, gradient_of(problem), t)
    assert prediction.applies
    np.testing.assert_allclose(prediction.predict(t), strengths_along(problem, path), rtol=1e-10)
    assert np.all(prediction.predict(t)[:, 2] == prediction.predict(0.0)[0, 2])


def test_unbalanced_modes_equal_direct_integration():
    rng = np.random.default_rng(11)
    for d, h, k in [(4, 5, 4), (5, 3, 4), (3, 3, 5)]:
        problem, model = white_problem(d, k, rng), DeepLinear((d, h, k))
        u, s, v = problem.target_svd
        r = min(d, h, k)
        a, b = np.array([0.1, 0.5, 0.0, -0.3])[:r], np.array([0.3, -0.1, 0.4, -0.3])[:r]
        hidden = orthonormal(h, r, rng)
        weights = [hidden * a @ v[:, :r].T, u[:, :r] * b @ hidden.T]
        prediction = theory.unbalanced_modes(model, problem, model.pack(weights))
        assert prediction.applies, [str(h) for h in prediction.hypotheses]
        t = np.linspace(0, 4 / float(inputs_of(problem).rate), 5)
        path = layer_flow(weights, gradient_of(problem), t)
        np.testing.assert_allclose(
            prediction.predict(t), strengths_along(problem, path), rtol=1e-10, atol=1e-11
        )
        assert np.all(prediction.bound(t) < 1e-9)


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize(
    "shape, lam", [((4, 5, 3), 0.0), ((4, 3, 3), 0.6), ((4, 2, 3), 0.0), ((4, 3, 3), -0.5)]
)
def test_two_layer_equals_direct_integration(shape, lam, rank):
    rng = np.random.default_rng(12)
    d, h, k = shape
    problem, model = white_problem(d, k, rng, rank=rank), DeepLinear(shape)
    rows = inputs_of(problem).rows
    small, w2 = balanced_layers(len(rows), h, k, lam, rng)
    w1 = small @ rows
    prediction = theory.two_layer(model, problem, model.pack([w1, w2]))
    assert prediction.applies, [str(h) for h in prediction.hypotheses]
    t = np.linspace(0, 4 / float(inputs_of(problem).rate), 5)
    path = np.array([product(weights) for weights in layer_flow([w1, w2], gradient_of(problem), t)])
    np.testing.assert_allclose(prediction.predict(t), path, rtol=1e-9, atol=1e-10)
    assert np.all(prediction.bound(t) < 1e-9)


def aligned_start(rng, widths=(4, 4, 4)):
    problem = white_problem(widths[0], widths[-1], rng)
    model = DeepLinear(widths)
    return model, problem, model.init("aligned", scale=0.3, problem=problem)


@pytest.mark.parametrize("method", [theory.modes, theory.unbalanced_modes, theory.two_layer])
def test_each_broken_hypothesis_is_refused_with_its_number(method):
    rng = np.random.default_rng(13)
    model, problem, theta = aligned_start(rng)
    shift = 1e-6 * rng.standard_normal(model.size)
    skewed = problem.X * (1 + 1e-6 * np.arange(4))
    u, _, v = problem.target_svd
    turned = chain(model.widths, u, np.array([0.1, 0.08, 0.05, 0.02]), np.roll(v, 1, axis=1), rng)
    weights = model.unpack(theta)
    cases = {
        "inputs white on their row space": (Problem(skewed, skewed @ problem.target.T), None),
        "no weight decay": (Problem(problem.X, problem.Y, weight_decay=1e-5), None),
    }
    if method is theory.modes:
        cases["balanced start"] = (problem, model.pack([1.01 * weights[0], weights[1] / 1.01]))
        cases["start aligned with the target"] = (problem, model.pack(turned))
    elif method is theory.unbalanced_modes:
        cases["both layers diagonal in one hidden basis"] = (problem, theta + shift)
    else:
        cases["λ-balanced start"] = (problem, theta + shift)
        flipped = v * np.array([1, 1, 1, -1.0])
        cases["no sign obstruction"] = (
            problem,
            model.pack(chain(model.widths, u, np.full(4, 0.1), flipped, rng)),
        )
    assert method(model, problem, theta).applies
    t = np.array([0.0, 1.0])
    for name, (broken, start) in cases.items():
        if start is None and name == "inputs white on their row space":
            start = model.init("aligned", scale=0.3, problem=broken)
        start = theta if start is None else start
        prediction = method(model, broken, start)
        failed = [h for h in prediction.hypotheses if not h.holds]
        assert [h.name.split(" (")[0] for h in failed] == [name]
        with pytest.raises(Refused, match=name) as error:
            prediction.predict(t)
        assert f"{failed[0].defect:.2g}" in str(error.value)
        forced = method(model, broken, start, force=True)
        assert forced.forced and not forced.applies and np.isfinite(forced.predict(t)).all()
        assert np.isfinite(forced.bound(t)).all()


def test_two_layer_says_what_moves_off_the_row_space():
    rng = np.random.default_rng(14)
    problem, model = white_problem(4, 3, rng, rank=3), DeepLinear((4, 5, 3))
    rows = inputs_of(problem).rows
    small, w2 = balanced_layers(3, 5, 3, 0.0, rng)
    off = np.linalg.svd(rows)[2][3]
    hidden = np.linalg.svd(w2)[2]
    for part, applies in ((hidden[4], True), (1e-5 * hidden[0], False)):  # outside, inside the range of W2ᵀ
        weights = [small @ rows + np.outer(part, off), w2]
        prediction = theory.two_layer(model, problem, model.pack(weights), force=True)
        assert prediction.applies == applies, [str(h) for h in prediction.hypotheses]
        t = np.linspace(0, 4 / float(inputs_of(problem).rate), 5)
        path = np.array([product(w) for w in layer_flow(weights, gradient_of(problem), t)])
        error = np.linalg.norm(prediction.predict(t) - path, 2, axis=(1, 2))
        assert np.all(error <= prediction.bound(t) + 1e-10)


@pytest.mark.parametrize("widths", [(4, 3), (4, 4, 4), (4, 5, 3), (3, 4, 4, 3), (3, 3, 3, 3, 3)])
@pytest.mark.parametrize("defect", ["start", "inputs", "weight decay"])
@pytest.mark.parametrize("method", [theory.modes, theory.unbalanced_modes, theory.two_layer])
def test_the_bound_holds_and_is_not_loose_early(widths, defect, method):
    if method is not theory.modes and len(widths) != 3:
        pytest.skip("two layers only")
    if len(widths) == 2 and defect == "start":
        pytest.skip("one layer: any start will do")
    rng = np.random.default_rng(15)
    problem = white_problem(
        widths[0], widths[-1], rng, weight_decay=1e-5 if defect == "weight decay" else 0.0
    )
    if defect == "inputs":
        x = problem.X * (1 + 1e-5 * rng.standard_normal(widths[0]))
        problem = Problem(x, x @ problem.target.T)
    model = DeepLinear(widths)
    theta = model.init("aligned", scale=0.4, problem=problem)
    if defect == "start":
        theta = theta + 1e-5 * rng.standard_normal(model.size)
    prediction = method(model, problem, theta, force=True)
    assert not prediction.applies
    _, s, _ = problem.target_svd
    t = np.linspace(0, 6 / (inputs_of(problem).rate * s[0]), 13)
    weights = model.unpack(theta)
    path = layer_flow(weights, gradient_of(problem), t, decay=problem.weight_decay)
    if method is theory.two_layer:
        error = np.linalg.norm(prediction.predict(t) - [product(w) for w in path], 2, axis=(1, 2))
    else:
        error = np.abs(prediction.predict(t) - strengths_along(problem, path)).max(axis=1)
    bound = prediction.bound(t)
    assert np.all(error <= bound + 1e-11)
    assert np.all(bound[1:] >= bound[:-1])
    early = 2
    assert bound[early] < 1e3 * np.maximum.accumulate(error)[early]


def test_a_small_random_start_is_answered_by_a_bound():
    rng = np.random.default_rng(16)
    model, problem = DeepLinear((4, 4, 4)), Problem.factorization(np.diag([3.0, 1.0, 0.5, 0.2]))
    prediction = theory.modes(model, problem, model.init("balanced", scale=1e-4, rng=rng))
    with pytest.raises(Refused, match="start aligned with the target: defect .* by at most"):
        prediction.predict([0.1])
    assert 0 < prediction.bound([0.5])[0] < 1e-6


def gaussian(widths, size, rng):
    return [size * rng.standard_normal((b, a)) for a, b in zip(widths[:-1], widths[1:], strict=True)]


def check_bound(problem, weights, end, method=theory.modes, early=None):
    """error <= bound at 40 times; where it is finite, and how many times the largest error it is at ``early``."""
    model = DeepLinear((weights[0].shape[1], *(len(w) for w in weights)))
    prediction = method(model, problem, model.pack(weights), force=True)
    t = np.linspace(0, end / float(inputs_of(problem).rate), 41)
    path = layer_flow(weights, gradient_of(problem), t, decay=problem.weight_decay)
    if method is theory.two_layer:
        error = np.linalg.norm(prediction.predict(t) - [product(w) for w in path], 2, axis=(1, 2))
    else:
        error = np.abs(prediction.predict(t) - strengths_along(problem, path)).max(axis=1)
    error, bound = np.maximum.accumulate(error), prediction.bound(t)
    assert np.all(bound[1:] >= bound[:-1])
    assert np.all(error <= bound + 1e-12), (error, bound)
    return t, error, bound


@pytest.mark.parametrize(
    "widths, size",
    [
        ((3, 3, 1), 1e-3),
        ((4, 3, 1), 1e-3),
        ((4, 4, 4), 1e-3),
        ((5, 2, 3), 1e-3),
        ((4, 4, 4, 4), 1e-2),
        ((3, 3, 3, 3), 0.3),
        ((4, 4), 0.1),
        ((4, 4, 4, 4, 4), 0.3),
    ],
)
def test_the_bound_of_a_random_start_is_never_false(widths, size):
    n, worst = len(widths) - 1, 0.0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        if widths[-1] == 1:
            target = 2.0 * np.eye(1, widths[0])
        else:
            target = rng.standard_normal((widths[-1], widths[0]))
        weights = gaussian(widths, size, rng)
        strongest = np.linalg.norm(target, 2)
        scale = strongest * max(n - 1, 1) * size ** max(n - 2, 0)
        _, error, bound = check_bound(Problem.factorization(target), weights, min(30 / scale, 200.0))
        worst = max(worst, error[-1])
        if n == 2:
            assert bound[0] < 10 * (5 * size) ** n and bound[2] < 1e3 * bound[0]
    assert n == 1 or size == 1e-2 or worst > 0.3  # modes that leave the predicted path


@pytest.mark.parametrize("widths", [(4, 4, 4), (4, 2, 5), (3, 4, 4, 3), (3, 3, 3, 3, 3)])
@pytest.mark.parametrize("size", [1e-6, 1e-4, 1e-2, 0.3])
def test_the_bound_of_a_perturbed_aligned_start_is_never_false(widths, size):
    n, r = len(widths) - 1, min(widths)
    for seed in range(3):
        rng = np.random.default_rng([seed, n])
        problem = Problem.factorization(rng.standard_normal((widths[-1], widths[0])), factor=0.8)
        u, s, v = problem.target_svd
        strengths = rng.choice([-1.0, 1.0], r) * rng.uniform(0.01, 0.5, r)  # some decay
        weights = chain(widths, u[:, :r], strengths, v[:, :r], rng)
        weights = [w + size * g for w, g in zip(weights, gaussian(widths, 1.0, rng), strict=True)]
        _, error, bound = check_bound(problem, weights, 20 / s[0])
        if size < 1e-3 and n == 2:
            assert np.all(bound[1:7] < 1e3 * error[1:7])


@pytest.mark.parametrize("method", [theory.modes, theory.unbalanced_modes, theory.two_layer])
def test_the_bound_holds_for_all_defects_together(method):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        problem = white_problem(4, 3, rng, rank=3, weight_decay=1e-3)
        x = problem.X * (1 + 1e-3 * rng.standard_normal(4))
        problem = Problem(x, x @ problem.target.T, weight_decay=1e-3)
        model = DeepLinear((4, 5, 3))
        theta = model.init("aligned", scale=0.4, problem=problem)
        weights = [w + 1e-3 * rng.standard_normal(w.shape) for w in model.unpack(theta)]
        _, error, bound = check_bound(problem, weights, 10 / problem.target_svd[1][0], method)
        assert np.all(bound[1:4] < 1e3 * error[1:4])


def test_the_bound_of_one_layer_sees_what_inputs_mix_into_the_modes():
    rng = np.random.default_rng(3)
    problem = white_problem(4, 3, rng)
    x = problem.X * (1 + 1e-2 * rng.standard_normal(4))
    check_bound(Problem(x, x @ problem.target.T), gaussian((4, 3), 50.0, rng), 10.0)


@pytest.mark.parametrize("missing", ["target", "start", "both"])
def test_two_layer_needs_no_full_rank(missing):
    rng = np.random.default_rng(17)
    model, problem = DeepLinear((4, 4, 4)), white_problem(4, 4, rng)
    u, s, v = problem.target_svd
    if missing != "start":
        problem = Problem(problem.X, problem.X @ (u[:, :3] * s[:3] @ v[:, :3].T).T)
    strengths = np.array([0.1, 0.2, 0.3, 0.0 if missing != "target" else 0.2])
    left, right = orthonormal(4, 4, rng), orthonormal(4, 4, rng)
    weights = chain(model.widths, left, strengths, right, rng)
    prediction = theory.two_layer(model, problem, model.pack(weights))
    assert prediction.applies, [str(h) for h in prediction.hypotheses]
    t = np.linspace(0, 4 / float(inputs_of(problem).rate), 5)
    path = np.array([product(w) for w in layer_flow(weights, gradient_of(problem), t)])
    np.testing.assert_allclose(prediction.predict(t), path, rtol=1e-9, atol=1e-10)


def test_two_layer_sees_a_sign_obstruction_on_the_row_space():
    rng = np.random.default_rng(18)
    problem = white_problem(5, 3, rng, rank=3)
    u, _, v = problem.target_svd
    for hidden in (3, 5):
        model = DeepLinear((5, hidden, 3))
        for signs, applies in (([1, 1, 1], True), ([1, -1, 1], False), ([1, -1, -1], True)):
            weights = chain(model.widths, u, 0.1 * np.array(signs), v, rng)
            prediction = theory.two_layer(model, problem, model.pack(weights))
            assert prediction.applies == applies
            if not applies:
                with pytest.raises(Refused, match="no sign obstruction .*: defect 1 > 1e-10"):
                    prediction.predict(1.0)


def test_shapes_that_do_not_broadcast_are_named():
    three, two = np.ones(3), np.ones(2)
    for call, text in [
        (
            lambda: theory.mode_strength(three, two, 0.1, 2),
            r"t, s and u0 .*; got t \(3,\), s \(2,\), u0 \(\)",
        ),
        (lambda: theory.mode_gap(1.0, two, three, 1), r"t, s and u0 .*; got t \(\), s \(2,\), u0 \(3,\)"),
        (lambda: theory.mode_time(three, two, 2.0, 2), r"u0, uf and s .*; got u0 \(3,\), uf \(2,\)"),
        (lambda: theory.closed_form_time(0.1 * three, 0.2 * two, 1.0, 2), r"u0, uf and s .*; got u0 \(3,\)"),
        (lambda: theory.unbalanced_mode(1.0, 1.0, two, three), r"t, s, a0 and b0 .* a0 \(2,\), b0 \(3,\)"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()
    for depth in ([2], None, "2", np.array([2])):
        with pytest.raises(ValueError, match="depth must be 1, 2, 3, 4 or np.inf"):
            theory.closed_form_time(0.1, 0.2, 1.0, depth)
    with pytest.raises(ValueError, match="t must be real numbers; got 'x'"):
        theory.mode_strength("x", 1.0, 0.1, 2)


@pytest.mark.parametrize("method", [theory.modes, theory.unbalanced_modes, theory.two_layer])
def test_times_that_are_none_are_named_in_the_units_of_the_flow(method):
    model, problem, theta = aligned_start(np.random.default_rng(19))
    for force, start in ((False, theta), (True, theta + 1e-3)):
        prediction = method(model, problem, start, force=force)
        for call in (prediction.predict, prediction.bound):
            for t, got in [
                ("text", "got 'text'"),
                (["1.0"], "got ..1.0.."),
                (None, "got None"),
                ([1j], "got .1j."),
                ([[1.0], [2.0, 3.0]], "got ..1.0., .2.0, 3.0.."),
                ([0.0, -0.25], "got -0.25"),
                (np.nan, "got nan"),
                (np.ones((2, 1)), r"got shape \(2, 1\)"),
            ]:
                with pytest.raises(ValueError, match=f"t must be .*numbers >= 0 of shape .T,.; {got}"):
                    call(t)
        with pytest.raises(ValueError, match="t must be finite numbers >= 0 of shape .T,.; got inf"):
            prediction.bound(np.inf)
    assert prediction.predict([]).shape[0] == 0 and prediction.bound([]).shape == (0,)
    limit = theory.modes(model, problem, theta).predict(np.inf)[0]
    np.testing.assert_allclose(limit, problem.target_svd[1], rtol=1e-12)


def test_what_is_not_covered_is_named():
    model, problem = DeepLinear((3, 3, 3)), Problem.factorization(np.eye(3))
    theta = model.init("identity")
    sensing = Problem.sensing(np.ones((2, 3, 3)), np.ones(2))
    completion = Problem.completion(np.eye(3), np.eye(3))
    for method in (theory.modes, theory.unbalanced_modes, theory.two_layer):
        with pytest.raises(ValueError, match="model must"):
            method(Symmetric(3, 3), problem, np.ones(9))
        for other in (sensing, completion, Problem.factorization(np.eye(4)), "problem"):
            with pytest.raises(ValueError, match="problem must"):
                method(model, other, theta)
        with pytest.raises(ValueError, match="theta0 must"):
            method(model, problem, theta[:-1])
    for method in (theory.unbalanced_modes, theory.two_layer):
        with pytest.raises(ValueError, match="model must have 2 weight matrices"):
            method(DeepLinear((3, 3, 3, 3)), problem, np.ones(27))
