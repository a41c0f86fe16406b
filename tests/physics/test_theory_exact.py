"""Exact two-layer solutions against direct integration of the layers, and what bars their limits."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm

import gflow.theory.exact as theory
from gflow import compare, observe
from gflow.integrate import flow
from gflow.models.linear import DeepLinear, Symmetric
from gflow.problem import Problem
from gflow.theory.linear import mode_strength, riccati, riccati_matrix, unbalanced_mode
from gflow.theory.prediction import Refused

ORTHOGONAL = np.linalg.qr(np.random.default_rng(20).standard_normal((4, 4)))[0]
SHAPES = [(4, 4, 4), (4, 6, 4), (3, 5, 5), (5, 7, 3), (5, 10, 2)]  # d, h, k


def layer_flow(target, w1, w2, t):
    """Q(t) (T, d + k, h) by an integrator of its own."""
    (k, d), h = target.shape, len(w1)

    def velocity(_, theta):
        a, b = theta[: h * d].reshape(h, d), theta[h * d :].reshape(k, h)
        error = target - b @ a
        return np.concatenate([(b.T @ error).ravel(), (error @ a.T).ravel()])

    start = np.concatenate([w1.ravel(), w2.ravel()])
    path = solve_ivp(velocity, (0, t[-1]), start, "DOP853", t, rtol=1e-13, atol=1e-15).y.T
    return [np.vstack([p[: h * d].reshape(h, d).T, p[h * d :].reshape(k, h)]) for p in path]


def set_up(shape, seed=0, imbalance=0.0, scale=0.6, obstructed=None):
    """Target and layers; where a sign may stand in the way, one that does or does not."""
    model = DeepLinear(shape)
    for trial in range(1000):
        rng = np.random.default_rng([seed, trial])
        target = rng.standard_normal((shape[2], shape[0]))
        w1, w2 = model.unpack(model.init("balanced", scale, rng, imbalance=imbalance))
        if obstructed is None or (np.linalg.det(w2 @ w1) * np.linalg.det(target) < 0) == obstructed:
            return target, w1, w2
    raise AssertionError("no such set-up")


def square(q):
    return q @ q.T


@pytest.mark.parametrize("shape", SHAPES)
def test_the_zero_balanced_form_equals_integration_and_the_generic_one(shape):
    target, w1, w2 = set_up(shape, obstructed=False if shape[0] == shape[2] else None)
    assert all(h.holds for h in theory.conditions(target, w1, w2))
    t = np.linspace(0, 6, 13)
    form = theory.zero_balanced(t, target, w1, w2)
    for q, qq in zip(layer_flow(target, w1, w2, t), form, strict=True):
        np.testing.assert_allclose(qq, square(q), atol=9e-12)
    np.testing.assert_allclose(form, riccati(t, target, w1, w2), atol=1e-14)
    late = theory.zero_balanced(60.0, target, w1, w2)
    np.testing.assert_allclose(late, riccati(60.0, target, w1, w2), atol=1e-14)
    np.testing.assert_allclose(
        theory.zero_balanced(1e6, target, w1, w2)[0], theory.limit(target, 0.0, shape[1]), atol=1e-13
    )


def test_behind_a_bottleneck_only_the_generic_form_is_left():
    target, w1, w2 = set_up((4, 3, 4))
    t = np.linspace(0, 6, 13)
    with pytest.raises(
        Refused, match=r"no bottleneck \(defect: missing hidden units\): defect 1 .*; start of full"
    ):
        theory.zero_balanced(t, target, w1, w2)
    for q, qq in zip(layer_flow(target, w1, w2, t), riccati(t, target, w1, w2), strict=True):
        np.testing.assert_allclose(qq, square(q), atol=1e-11)
    assert theory.overlap(target, w1, w2)[-1] > 1e-3
    u, s, vt = np.linalg.svd(target)
    limit = theory.limit(target, 0.0, 3)
    np.testing.assert_allclose(limit[4:, :4], u[:, :3] * s[:3] @ vt[:3], atol=1e-13)  # the best of rank 3
    np.testing.assert_allclose(riccati(200.0, target, w1, w2)[0], limit, atol=1e-12)


def test_an_unbalanced_start_is_refused_and_the_formula_would_be_wrong():
    target, w1, w2 = set_up((4, 4, 4), obstructed=False)
    w1, w2 = 0.5 * w1, 2 * w2
    t = np.linspace(0, 6, 61)
    with pytest.raises(Refused, match="zero-balanced start: defect 0.94 > 1e-10"):
        theory.zero_balanced(t, target, w1, w2)
    forced = theory.zero_balanced(t, target, w1, w2, force=True)
    path = layer_flow(target, w1, w2, t)
    wrong = max(np.abs(qq - square(q))[4:, :4].max() for qq, q in zip(forced, path, strict=True))
    assert wrong > 0.1
    with pytest.raises(ValueError, match="W1 and W2 must satisfy"):
        theory.overlap(target, w1, w2)


@pytest.mark.parametrize(
    ("shape", "imbalance", "accuracy"),
    [
        ((4, 4, 4), 0.5, 7e-12), ((4, 4, 4), -1.3, 7e-12), ((4, 4, 4), 4.0, 7e-12), ((4, 4, 4), 50.0, 3.1e-10),
        ((5, 3, 3), 0.8, 7e-12), ((3, 4, 5), 2.0, 7e-12), ((5, 4, 3), -2.0, 7e-12), ((2, 4, 5), 1.0, 7e-12),
    ],
)  # fmt: skip
def test_lambda_balanced_starts(shape, imbalance, accuracy):
    target, w1, w2 = set_up(shape, imbalance=imbalance)
    np.testing.assert_allclose(
        w2.T @ w2 - w1 @ w1.T, imbalance * np.eye(shape[1]), atol=1e-14 * (1 + abs(imbalance))
    )
    t = np.linspace(0, 6, 7)
    exact = riccati(t, target, w1, w2)
    for q, qq in zip(layer_flow(target, w1, w2, t), exact, strict=True):
        np.testing.assert_allclose(qq, square(q), atol=accuracy)
    # factors of the end-to-end map, at every time
    d = shape[0]
    for qq in exact:
        s = np.linalg.svd(qq[d:, :d], compute_uv=False)[: min(shape)]
        for block, values in zip((qq[:d, :d], qq[d:, d:]), theory.factor_values(s, imbalance), strict=True):
            np.testing.assert_allclose(
                np.sqrt(np.linalg.eigvalsh(block)[::-1][: len(s)]), values, atol=1e-9 * (1 + abs(imbalance))
            )
    # F
    s = np.linalg.svd(target, compute_uv=False)
    mu = np.linalg.eigvalsh(riccati_matrix(target, imbalance))
    np.testing.assert_allclose(theory.rates(s, imbalance, d, shape[2]), mu, atol=1e-13 * abs(mu).max())


def test_the_formula_as_it_is_written_loses_digits_that_the_stable_one_keeps():
    """e^{Ft}Q0 (I + Q0ᵀ G Q0)⁻¹ Q0ᵀ e^{Ft} with matrix exponentials, against forty digits, at t = 6."""
    target, w1, w2 = set_up((4, 4, 4), seed=2, obstructed=False)
    q, f, t = np.vstack([w1.T, w2]), riccati_matrix(target, 0.0), 6.0
    grown = expm(f * t) @ q
    gram = 0.5 * np.linalg.solve(f, expm(2 * f * t) - np.eye(8))
    naive = grown @ np.linalg.solve(np.eye(4) + q.T @ gram @ q, grown.T)
    with mp.workdps(40):
        big, start = mp.matrix(f.tolist()), mp.matrix(q.tolist())
        far = mp.expm(big * t) * start
        middle = mp.eye(4) + start.T * (mp.inverse(big) * (mp.expm(big * 2 * t) - mp.eye(8)) / 2) * start
        product = far * mp.inverse(middle) * far.T
        exact = np.array([[float(product[i, j]) for j in range(8)] for i in range(8)])
    stable = np.abs(riccati(t, target, w1, w2)[0] - exact).max()
    assert stable < 1e-14 * 10
    assert np.abs(naive - exact).max() > 100 * stable


@pytest.mark.parametrize("imbalance", [0.0, 1e-9, 0.8, -3.0, 50.0])
@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (3, 3)])
def test_the_eigenvectors_of_F(shape, imbalance):
    target = np.random.default_rng(1).standard_normal(shape)
    f = riccati_matrix(target, imbalance)
    u, s, vt = np.linalg.svd(target, full_matrices=False)
    h, a = theory.mixing(s, imbalance)
    if abs(imbalance) > 0.1:
        np.testing.assert_allclose(h, (np.sqrt(imbalance**2 + 4 * s**2) - 2 * s) / imbalance, rtol=1e-10)
    mu = np.hypot(s, imbalance / 2)
    for sign, x, y in ((1, 1 - h, 1 + h), (-1, 1 + h, -(1 - h))):
        vectors = a / np.sqrt(2) * np.vstack([vt.T * x, u * y])
        np.testing.assert_allclose(f @ vectors, sign * mu * vectors, atol=1e-14 * (10 + abs(imbalance)))
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(len(s)), atol=1e-14)


def test_factor_values_keep_their_digits_and_their_law():
    s = np.array([0.0, 1e-9, 0.3, 2.0])
    for balance in (0.0, 1e-12, 0.7, -0.7, 1e6, -1e6):
        first, second = theory.factor_values(s, balance)
        np.testing.assert_allclose(first * second, s, rtol=1e-15)
        np.testing.assert_allclose(second**2 - first**2, balance, atol=1e-15 * (10 + abs(balance)))
    small = theory.factor_values(1e-3, 1e6)[0]
    assert small == pytest.approx(1e-6, rel=1e-12)


@pytest.mark.parametrize(("b", "c", "sign"), [(2.0, 0.0, 1), (-2.0, 0.0, 1), (0.0, 2.0, -1), (0.0, -2.0, -1)])
def test_aligned_strengths(b, c, sign):
    t = np.linspace(0, 8, 40)[:, None]
    s, s0 = np.array([0.3, 1.0, 2.5]), np.array([1e-3, 2.0, 0.4])
    late = theory.aligned_strength(1e4, s, s0, b, c)  # where the formula as it is printed is 0/0
    np.testing.assert_allclose(late, s if sign > 0 else 0, rtol=1e-15)
    e = np.exp(-s * t)
    printed = (s0 * b**2 * s - s0 * c**2 * s * e**4) / (
        4 * s * e**2 + s0 * b**2 * (1 - e**2) + s0 * c**2 * (e**2 - e**4)
    )
    np.testing.assert_allclose(theory.aligned_strength(t, s, s0, b, c), printed, rtol=1e-12)


@pytest.mark.parametrize("imbalance", [0.5, -1.3, 4.0, 50.0])
def test_aligned_modes_are_unbalanced_ones_with_minus_lambda(imbalance):
    rng = np.random.default_rng(2)
    problem = Problem.factorization(rng.standard_normal((4, 4)))
    model = DeepLinear((4, 4, 4))
    theta0 = model.init("aligned", np.array([0.2, 0.3, 0.5, 0.7]), problem=problem, imbalance=imbalance)
    w1, w2 = model.unpack(theta0)
    u, s, v = problem.target_svd
    a, b = theory.factor_values(np.array([0.2, 0.3, 0.5, 0.7]) ** 2, imbalance)
    np.testing.assert_allclose(b**2 - a**2, imbalance, rtol=1e-13)
    t = np.linspace(0, 6, 25)
    qq = riccati(t, problem.target, w1, w2)
    strengths = np.einsum("ai,tab,bi->ti", u, qq[:, 4:, :4], v)
    x, y = unbalanced_mode(t[:, None], s, a, b)
    np.testing.assert_allclose(strengths, x * y, atol=9e-11 if imbalance == 50 else 7.2e-12)


@pytest.mark.parametrize(
    ("shape", "imbalance"), [((3, 3, 3), 0.0), ((3, 3, 3), 2.0), ((2, 4, 5), 1.5), ((5, 4, 3), -2.0)]
)
def test_limits(shape, imbalance):
    """(2, 4, 5), (5, 4, 3): F has five eigenvalues above zero, one more than there are units; the least, |λ|/2, is left."""
    obstructed = False if shape == (3, 3, 3) else None
    target, w1, w2 = set_up(shape, seed=3, imbalance=imbalance, obstructed=obstructed)
    assert theory.overlap(target, w1, w2)[-1] > 1e-3
    limit = theory.limit(target, imbalance, 9)
    np.testing.assert_allclose(limit[shape[0] :, : shape[0]], target, atol=1e-13)
    u, s, vt = np.linalg.svd(target, full_matrices=False)
    first, second = theory.factor_values(s, imbalance)
    if imbalance <= 0:
        np.testing.assert_allclose(limit[shape[0] :, shape[0] :], u * second**2 @ u.T, atol=1e-12)
    if imbalance >= 0:
        np.testing.assert_allclose(limit[: shape[0], : shape[0]], vt.T * first**2 @ vt, atol=1e-12)
    end = riccati(1e4, target, w1, w2)[0]
    np.testing.assert_allclose(end[shape[0] :, : shape[0]], target, atol=1e-10)
    if shape[1] == 3:
        np.testing.assert_allclose(end, limit, atol=1e-12 * np.abs(limit).max())
    else:  # |λ|/2 has several eigenvectors, and the start chooses among them
        side = slice(2, None) if imbalance > 0 else slice(0, 5)
        assert np.trace(end[side, side]) == pytest.approx(
            np.trace(limit[side, side]) - abs(imbalance), rel=1e-12
        )


def test_a_sign_obstructs_exactly_where_B_is_singular():
    """Of 2000 random zero-balanced starts one half, to 4 σ: and on those |det B| is rounding."""
    rng, model, count = np.random.default_rng(4), DeepLinear((3, 3, 3)), 0
    for _ in range(2000):
        target = rng.standard_normal((3, 3))
        w1, w2 = model.unpack(model.init("balanced", 0.6, rng))
        opposite = np.linalg.det(w2 @ w1) * np.linalg.det(target) < 0
        determinant = abs(np.linalg.det(theory.alignment(target, w2 @ w1)[0]))
        assert (determinant < 1e-10) == opposite
        assert (theory.overlap(target, w1, w2)[-1] < 1e-12) == opposite
        assert theory.conditions(target, w1, w2)[-1].holds != opposite or not opposite
        count += opposite
    assert abs(count / 2000 - 0.5) < 4 * 0.5 / np.sqrt(2000)


@pytest.mark.parametrize("shape", [(5, 4, 3), (3, 4, 5)])
@pytest.mark.parametrize("values", [(1.0, 1.0, 1.0), (1e-3, 1e-3, 1e-3), (2.0, 1e-8, 1e-8)])
def test_equal_and_small_singular_values_change_nothing(shape, values):
    """What rounding leaves of λ may exceed a small target's own rounding: it is no direction to learn."""
    rng = np.random.default_rng(21)
    d, h, k = shape
    u, v, u0, v0, hidden = (np.linalg.qr(rng.standard_normal((n, 3)))[0] for n in (k, d, k, d, h))
    target, w1, w2 = u * np.array(values) @ v.T, hidden * 0.3 @ v0.T, u0 * 0.3 @ hidden.T
    assert len(theory.overlap(target, w1, w2)) == 3
    assert theory.overlap(target, w1, w2)[-1] > 1e-3
    t = np.array([0.0, 0.5, 3.0, 30.0, 1e4])
    exact = riccati(t, target, w1, w2)
    np.testing.assert_allclose(theory.zero_balanced(t, target, w1, w2, force=True), exact, atol=1e-11)


def test_an_obstructed_flow_ends_at_the_saddle_until_rounding_takes_it_away():
    target, w1, w2 = set_up((3, 3, 3), seed=5, obstructed=True)
    least = np.linalg.svd(target, compute_uv=False)[-1]
    with pytest.raises(Refused, match="B invertible"):
        theory.zero_balanced(1.0, target, w1, w2)

    def loss(qq):
        return 0.5 * np.sum((qq[..., 3:, :3] - target) ** 2, axis=(-2, -1))

    assert loss(riccati(14 / least, target, w1, w2))[0] == pytest.approx(0.5 * least**2, rel=1e-9)
    model, problem = DeepLinear((3, 3, 3)), Problem.factorization(target)
    t = np.linspace(0, 14 / least, 30)
    run = flow(model, problem, model.pack([w1, w2]), t, rtol=1e-11)
    np.testing.assert_allclose(run.loss, loss(riccati(t, target, w1, w2)), rtol=1e-8)
    assert run.loss[-1] == pytest.approx(0.5 * least**2, rel=1e-9)
    far = flow(model, problem, model.pack([w1, w2]), 80 / least, rtol=1e-11)
    assert far.loss[-1] < 1e-10 * least**2 and not far.status.ok  # and the status says so


@pytest.mark.parametrize("turned", [0, 1, 2])
def test_an_aligned_start_loses_the_mode_that_is_turned_and_any_other_the_weakest(turned):
    s = np.array([2.0, 1.2, 0.7])
    signs = np.where(np.arange(3) == turned, -1.0, 1.0)
    w1, w2 = 0.5 * np.eye(3), 0.5 * np.diag(signs)

    def loss(w1, w2, t):
        return 0.5 * np.sum((riccati(t, np.diag(s), w1, w2)[0][3:, :3] - np.diag(s)) ** 2)

    assert loss(w1, w2, 30.0) == pytest.approx(0.5 * s[turned] ** 2, rel=1e-9)
    turn = np.linalg.qr(np.eye(3) + 0.3 * np.random.default_rng(turned).standard_normal((3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    assert loss(w1 @ turn, w2, 20.0) == pytest.approx(0.5 * s[-1] ** 2, rel=1e-6)  # e^(−2 (s_2 − s_3) t)


def test_the_tangent_kernel_is_that_of_the_network():
    shape = (3, 4, 5)
    target, w1, w2 = set_up(shape, imbalance=2.0)
    model, x = DeepLinear(shape), np.random.default_rng(6).standard_normal((7, 3))
    problem = Problem(x, np.zeros((7, 5)))
    q = np.vstack([w1.T, w2])
    kernel = theory.tangent_kernel(square(q), x)
    np.testing.assert_allclose(kernel, observe.ntk(model, problem, model.pack([w1, w2])), atol=1e-13)
    assert theory.tangent_kernel(np.stack([square(q)] * 2), x).shape == (2, 35, 35)
    other = theory.tangent_kernel(square(q + 0.1), x)
    cosine = np.sum(kernel * other) / np.linalg.norm(kernel) / np.linalg.norm(other)
    assert theory.kernel_distance(kernel, other) == pytest.approx(1 - cosine, rel=1e-9)
    assert theory.kernel_distance(kernel, 3 * kernel) < 1e-30


# ---- symmetric factorisation, rates ---------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [2, 4, 6])
def test_symmetric_factorisation_equals_integration_and_the_models_flow(rank):
    rng = np.random.default_rng(7)
    v = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    target = v * np.array([2.0, 0.5, 0.0, -1.0]) @ v.T
    target = 0.5 * (target + target.T)
    u = 0.3 * rng.standard_normal((4, rank))
    t = np.linspace(0, 6, 7)
    path = solve_ivp(
        lambda _, x: ((target - square(x.reshape(4, rank))) @ x.reshape(4, rank)).ravel(),
        (0, 6),
        u.ravel(),
        "DOP853",
        t,
        rtol=1e-13,
        atol=1e-15,
    )
    exact = theory.symmetric(t, target, u)
    for w, x in zip(exact, path.y.T, strict=True):
        np.testing.assert_allclose(w, square(x.reshape(4, rank)), atol=1e-12)
    problem, model = Problem.factorization(target, factor=0.25), Symmetric(4, rank)
    run = flow(model, problem, model.pack([u]), t, rtol=1e-11)
    np.testing.assert_allclose(model.end_to_end(run.theta), exact, atol=1e-9)
    prediction = theory.symmetric_map(model, problem, model.pack([u]))
    assert compare(run, prediction).max_error < 1e-9
    other = Problem.factorization(target)  # factor ½: twice as fast
    np.testing.assert_allclose(
        theory.symmetric_map(model, other, model.pack([u])).predict(t), theory.symmetric(2 * t, target, u)
    )
    for bad, name in (
        (Problem.factorization(target + np.triu(np.ones((4, 4)), 1)), "symmetric target"),
        (Problem.factorization(target, weight_decay=0.1), "no weight decay"),
    ):
        with pytest.raises(Refused, match=name):
            theory.symmetric_map(model, bad, model.pack([u])).predict(t)
    with pytest.raises(ValueError, match="problem must be a factorisation"):
        theory.symmetric_map(model, Problem(np.eye(4), np.eye(4)), model.pack([u]))
    with pytest.raises(ValueError, match="target must be symmetric"):
        theory.symmetric(1.0, target + np.triu(np.ones((4, 4)), 1), u)
    # a start that commutes: sigmoids with rate 2σ
    aligned = theory.symmetric(t, target, v * 0.1)
    np.testing.assert_allclose(
        np.einsum("ai,tab,bi->ti", v, aligned, v),
        mode_strength(t[:, None], [2.0, 0.5, 0.0, -1.0], 0.01, 2),
        atol=1e-12,
    )


@pytest.mark.parametrize("hidden", [9, 12])
def test_imbalance_bounds_the_loss(hidden):
    rng = np.random.default_rng(8)
    target = rng.standard_normal((4, 5))
    w1, w2 = rng.standard_normal((hidden, 5)), rng.standard_normal((4, hidden))
    c = theory.imbalance_rate(w1, w2)
    assert c > 0.1
    model, problem = DeepLinear((5, hidden, 4)), Problem.factorization(target)
    t = np.linspace(0, 3 / c, 50)
    run = flow(model, problem, model.pack([w1, w2]), t, rtol=1e-10)
    assert np.all(run.loss <= run.loss[0] * np.exp(-2 * c * t) * (1 + 1e-9))
    assert run.gauges.invariant_drift.max() < 1e-8
    # the sharper one, local in time: the rate at each moment
    for theta in run.theta[::10]:
        a, b = model.unpack(theta)
        local = np.linalg.svd(a, compute_uv=False)[4] ** 2 + np.linalg.svd(b, compute_uv=False)[3] ** 2
        assert local >= c - 1e-9
        speed = np.sum(run.objective.gradient(theta) ** 2)
        assert speed >= 2 * run.objective.loss(theta) * local * (1 - 1e-9)
    assert theory.imbalance_rate(w1[:3], w2[:, :3]) == 0  # too narrow for the bound to speak


def test_the_part_off_the_row_space_is_frozen_and_the_least_norm_solution_is_reached():
    """W_1 = A + B on and off the row space: B never moves; with W_2B = 0 and AᵀB = 0 the limit is that of least norm."""
    rng = np.random.default_rng(9)
    n, d, k, h = 5, 8, 2, 20
    x, y = rng.standard_normal((n, d)), rng.standard_normal((n, k))
    rows = np.linalg.svd(x, full_matrices=False)[2]
    on = rows.T @ rows
    problem, model = Problem(x, y, factor=0.5), DeepLinear((d, h, k))
    least = np.linalg.pinv(x) @ y
    hidden = np.linalg.qr(rng.standard_normal((h, h)))[0]
    inside = hidden[:, :14] @ hidden[:, :14].T
    w1 = rng.standard_normal((h, d))
    w2 = rng.standard_normal((k, h)) @ inside
    for frozen in (np.zeros((h, d)), (np.eye(h) - inside) @ w1 @ (np.eye(d) - on)):
        start = inside @ w1 @ on + frozen
        c = theory.imbalance_rate(start @ rows.T, w2)
        assert c > 0
        stiff = np.linalg.svd(x, compute_uv=False)[-1] ** 2
        run = flow(model, problem, model.pack([start, w2]), 40 / (stiff * c), rtol=1e-11)
        first, _ = model.unpack(run.end)
        np.testing.assert_allclose(first @ (np.eye(d) - on), frozen, atol=1e-12)
        assert run.loss[-1] <= run.loss[0] * np.exp(-2 * stiff * c * run.t[-1]) + 1e-22  # rounding
        np.testing.assert_allclose(model.end_to_end(run.end).T, least, atol=1e-12)


def test_the_distance_from_the_least_norm_solution_falls_with_the_width():
    rng = np.random.default_rng(10)
    n, d, k = 5, 8, 2
    x, y = rng.standard_normal((n, d)), rng.standard_normal((n, k))
    problem, least = Problem(x, y, factor=0.5), np.linalg.pinv(x) @ y
    found = []
    for h in (20, 80, 320):
        model, distances = DeepLinear((d, h, k)), []
        for seed in range(3):
            theta0 = model.init("gaussian", h**-0.5, rng=seed)
            end = flow(model, problem, theta0, 60.0, rtol=1e-8).end
            distances.append(np.linalg.norm(model.end_to_end(end).T - least))
        found.append(np.mean(distances))
    assert found[0] > found[1] > found[2]


@pytest.mark.parametrize("kind", ["balanced", "aligned"])
def test_imbalanced_starts_keep_the_end_to_end_map(kind):
    problem = Problem.factorization(np.random.default_rng(11).standard_normal((5, 3)))
    model = DeepLinear((3, 4, 5))
    plain = model.end_to_end(model.init(kind, 0.4, rng=1, problem=problem))
    for imbalance in (1e-6, 3.0):
        theta0 = model.init(kind, 0.4, rng=1, problem=problem, imbalance=imbalance)
        np.testing.assert_allclose(model.end_to_end(theta0), plain, atol=1e-14)
        np.testing.assert_allclose(model.imbalance(theta0)[0], imbalance * np.eye(4), atol=1e-14)
    with pytest.raises(ValueError, match="imbalance -1 needs at most as many hidden units as inputs, 3"):
        model.init(kind, 0.4, problem=problem, imbalance=-1.0)
    with pytest.raises(ValueError, match="imbalance must be 0 but for two layers .* the kind 'gaussian'"):
        model.init("gaussian", 0.4, imbalance=1.0)
    with pytest.raises(ValueError, match="imbalance must be a finite number; got nan"):
        model.init("balanced", 0.4, imbalance=np.nan)
    with pytest.raises(ValueError, match="imbalance must be 0 but for two layers .* got 1 for 3 layers"):
        DeepLinear((3, 3, 3, 3)).init("balanced", 0.4, imbalance=1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.alignment(np.eye(3), np.ones((2, 3))), r"W must have shape \(3, 3\); got \(2, 3\)"),
        (lambda: theory.conditions(np.eye(3), np.eye(2, 3), np.eye(3)), r"W2 must have shape \(k, 2\)"),
        (
            lambda: theory.zero_balanced(-1.0, np.eye(3), np.eye(3), np.eye(3)),
            "t must be finite numbers >= 0",
        ),
        (lambda: theory.aligned_strength(-1.0, 1.0, 1.0, 2.0, 0.0), "t must be finite numbers >= 0; got -1"),
        (lambda: theory.aligned_strength(1.0, 0.0, 1.0, 2.0, 0.0), "s must hold singular values > 0; got 0"),
        (lambda: theory.aligned_strength(1.0, 1.0, 1.0, 1.0, 0.0), "b and c must be ±2 and 0.*miss it by 1"),
        (lambda: theory.rates([1.0, -2.0], 1.0, 2, 2), "s must be finite numbers >= 0; got -2"),
        (lambda: theory.rates([1.0], np.nan, 1, 2), "balance must be a finite number; got nan"),
        (lambda: theory.mixing(np.nan, 1.0), "s must be finite numbers >= 0; got nan"),
        (lambda: theory.mixing(1.0, np.nan), "balance must be a finite number; got nan"),
        (lambda: theory.factor_values(-1.0, 1.0), "s must be finite numbers >= 0; got -1"),
        (lambda: theory.factor_values(1.0, np.nan), "balance must be a finite number; got nan"),
        (lambda: theory.limit(np.eye(3), 0.0, -1), "hidden must be a whole number >= 1; got -1"),
        (lambda: theory.limit(np.eye(3), 0.0, 2), "the limit depends on the start: number 2 is 1"),
        (lambda: theory.limit(1.3 * ORTHOGONAL, 0.0, 2), "the limit depends on the start: number 2 is 1.3"),
        (lambda: theory.limit(np.ones((3, 1)), 2.0, 2), "the limit depends on the start: number 2 is 1"),
        (lambda: theory.tangent_kernel(np.eye(3), np.ones((4, 3))), "qq must have shape"),
        (
            lambda: theory.tangent_kernel(np.full((5, 5), np.nan), np.ones((4, 3))),
            "qq must be finite numbers",
        ),
        (lambda: theory.kernel_distance(np.eye(2), np.zeros((2, 2))), "second must hold no zero kernel"),
        (lambda: theory.kernel_distance(np.eye(2), np.eye(3)), "second must hold matrices"),
        (lambda: theory.imbalance_rate(np.ones((3, 2)), np.ones((2, 4))), "W2 must have shape"),
    ],
)
def test_arguments_without_a_meaning_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
