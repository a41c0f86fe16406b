"""Where flows of diagonal networks end: argmin Q against its conditions, scipy's optimisers and integrated flows."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
from diagonal_referee import equal_start, nameless, network, predictor, regression, weights_flow
from scipy.linalg import null_space
from scipy.optimize import linprog, minimize

import gflow
from gflow import Diagonal, Problem
from gflow.theory import bias, diagonal
from gflow.theory.argmin import argmin
from gflow.theory.prediction import Refused

EPS = np.finfo(float).eps


def least_l1(x, y):
    """linprog's own solution of min ‖β‖₁ with Xβ = y."""
    d = x.shape[1]
    found = linprog(np.ones(2 * d), A_eq=np.hstack([x, -x]), b_eq=y, method="highs")
    return found.x[:d] - found.x[d:]


def solve(form, depth, theta0, x, y):
    return argmin(diagonal.mirror(network(theta0, form, depth), theta0), x, y)


def exact_dual(beta, alpha, depth):
    """z with β = α^D h_D(z) (2 α² sinh z at depth 2) by mpmath, as a float."""
    with mp.workdps(60):
        ratio = abs(mp.mpf(float(beta))) / mp.mpf(float(alpha)) ** depth
        if depth == 2:
            return float(mp.sign(beta) * mp.asinh(ratio / 2))
        if ratio == 0:
            return 0.0
        p = mp.mpf(depth) / (depth - 2)
        low, high = mp.mpf(0), mp.mpf(1)  # of e = 1 − z; e^(−p) − (2 − e)^(−p) falls
        for _ in range(400):
            middle = mp.sqrt(low * high) if low > 0 else high / 1024
            if middle ** (-p) - (2 - middle) ** (-p) > ratio:
                low = middle
            else:
                high = middle
            if low > 0 and high / low < 1 + mp.mpf(10) ** -25:
                break
        return float(mp.sign(beta) * (1 - high))


@pytest.mark.parametrize("alpha", [1e-100, 1e-30, 1e-8, 1e-3, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_argmin_fulfils_its_conditions(depth, alpha):
    x, y = regression(4, 9, seed=5)
    found = solve("difference", depth, equal_start("difference", alpha, 9), x, y)
    z = np.array([exact_dual(b, alpha, depth) for b in found.beta])
    z = np.where(found.beta == 0, found.dual, z)  # at depth 4, α⁴ h(z) is below the range of floats
    assert np.all(found.beta != 0) or alpha**depth == 0
    off = null_space(x).T @ z
    assert np.abs(off).max() <= 1e-12 * np.abs(z).max()
    assert np.abs(x @ found.beta - y).max() <= 1e-12 * np.abs(y).max()
    assert found.kkt <= 1e-12 and found.infeasibility <= 1e-12 and found.residual <= 1e-14


@pytest.mark.parametrize("depth", [2, 3])
def test_argmin_equals_that_of_a_general_optimiser(depth):
    x, y = regression(4, 9, seed=6)
    shape = np.exp(np.random.default_rng(0).normal(size=9))
    alpha = 0.3 * shape
    basis, origin = null_space(x), np.linalg.lstsq(x, y, rcond=None)[0]

    def potential(c):
        """α^D ∫ z db for b = β / α^D, by its closed form in z at depth 2, and by quadrature in w at depth 3."""
        beta = origin + basis @ c
        if depth == 2:
            r = beta / alpha**2
            return np.sum(alpha**2 * (2 - np.sqrt(4 + r**2) + r * np.arcsinh(r / 2)))
        # w₊ and w₋ with w₊³ − w₋³ = β, 1/w₊ + 1/w₋ = 2/α; the potential is Σ (β z − ∫ β dz) / α
        plus = np.array([root(b, a) for b, a in zip(beta, alpha, strict=True)])
        z = 1 - alpha / plus
        conjugate = 0.5 * alpha**3 * ((1 - z) ** -2 + (1 + z) ** -2 - 2)
        return np.sum((beta * z - conjugate) / alpha)

    def root(b, a):
        low, high = 0.5 * a * (1 + 1e-12), 10.0 * (a + abs(b) ** (1 / 3))
        for _ in range(200):
            middle = 0.5 * (low + high)
            other = 1 / (2 / a - 1 / middle) if middle > 0.5 * a else np.inf
            low, high = (middle, high) if middle**3 - other**3 < b else (low, middle)
        return 0.5 * (low + high)

    referee = minimize(potential, np.zeros(5), method="BFGS", options={"gtol": 1e-9})
    found = solve("difference", depth, np.concatenate([alpha, alpha]), x, y).beta
    np.testing.assert_allclose(found, origin + basis @ referee.x, atol=2e-6)


@pytest.mark.parametrize("depth, alpha, allowed", [(2, 1e-100, 1e-9), (3, 1e-9, 1e-7), (3, 1e-100, 1e-9), (4, 1e-6, 1e-9), (4, 1e-100, 1e-9), (10, 1e-100, 1e-9)])  # fmt: skip
@pytest.mark.parametrize("sparse", [None, 3])
def test_small_starts_lead_to_the_least_l1_norm(depth, alpha, allowed, sparse):
    x, y = regression(12, 30, sparse, seed=7)
    found = solve("difference", depth, equal_start("difference", alpha, 30), x, y)
    np.testing.assert_allclose(found.beta, least_l1(x, y), atol=allowed)


def test_large_starts_lead_to_the_least_l2_norm():
    x, y = regression(12, 30, seed=7)
    for depth in (2, 3, 4):
        found = solve("difference", depth, equal_start("difference", 1e4, 30), x, y)
        np.testing.assert_allclose(found.beta, np.linalg.pinv(x) @ y, rtol=1e-7)


@pytest.mark.parametrize("form", ["difference", "product"])
def test_argmin_is_homogeneous(form):
    """From c θ the minimiser for c² y is c² times that from θ for y."""
    x, y = regression(6, 15, seed=8)
    theta0 = np.random.default_rng(1).normal(size=30) * 1e-3
    small = solve(form, 2, 1e-40 * theta0, x, 1e-80 * y).beta
    np.testing.assert_allclose(small * 1e80, solve(form, 2, theta0, x, y).beta, rtol=1e-9)


def starts(form, depth, d, scale):
    """Shaped and unequal: each weight its own size."""
    rng = np.random.default_rng(9)
    return scale * np.exp(0.7 * rng.normal(size=d if form == "power" else 2 * d))


@pytest.mark.parametrize(
    "form, depth, scale",
    [("difference", 2, 0.01), ("difference", 2, 0.5), ("product", 2, 0.1), ("power", 2, 0.1), ("difference", 3, 0.2), ("difference", 4, 0.4), ("power", 3, 0.3)],
)  # fmt: skip
def test_flows_end_at_argmin_q(form, depth, scale):
    x, y = regression(4, 9, seed=10)
    if form == "power":
        y = x @ np.random.default_rng(2).uniform(0.2, 2.0, 9)
    theta0 = starts(form, depth, 9, scale)
    beta, _ = weights_flow(form, depth, theta0, lambda b: x.T @ (x @ b - y) / 4, np.array([0.0, 400.0]))
    assert np.abs(x @ beta[-1] - y).max() < 1e-10
    prediction = bias.limit(network(theta0, form, depth), Problem(x, y), theta0)
    assert prediction.applies
    predicted = prediction.predict([0.0, 1.0, np.inf])
    np.testing.assert_allclose(predicted[2, 0], beta[-1], atol=1e-8)
    np.testing.assert_allclose(predicted[0, 0], predictor(form, depth, theta0), rtol=1e-12)
    assert np.isnan(predicted[1]).all()


def test_the_limit_does_not_depend_on_the_factor():
    x, y = regression(4, 9, seed=10)
    theta0 = equal_start("difference", 0.1, 9)
    one, other = (
        bias.limit(network(theta0), Problem(x, y, factor=f), theta0).predict(np.inf) for f in (0.5, 1e-3)
    )
    np.testing.assert_array_equal(one, other)


def test_repeated_samples_change_nothing():
    x, y = regression(4, 9, seed=10)
    theta0 = equal_start("difference", 1e-3, 9)
    twice = solve("difference", 2, theta0, np.vstack([x, x]), np.concatenate([y, y])).beta
    np.testing.assert_allclose(twice, solve("difference", 2, theta0, x, y).beta, rtol=1e-10)


def test_what_nothing_interpolates_is_refused_with_the_number():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 4)), rng.normal(size=9)
    theta0 = equal_start("difference", 0.1, 4)
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    off = np.linalg.norm(x @ best - y) / np.linalg.norm(y)
    prediction = bias.limit(network(theta0), Problem(x, y), theta0)
    assert not prediction.applies
    np.testing.assert_allclose(prediction.hypotheses[0].defect, off, rtol=1e-12)
    with pytest.raises(Refused, match=f"interpolates.*defect {off:.2g} > 1e-10"):
        prediction.predict(np.inf)
    forced = bias.limit(network(theta0), Problem(x, y), theta0, force=True).predict(np.inf)
    np.testing.assert_allclose(forced[0, 0], best, rtol=1e-10)
    beta, _ = weights_flow("difference", 2, theta0, lambda b: x.T @ (x @ b - y) / 9, np.array([0.0, 400.0]))
    np.testing.assert_allclose(forced[0, 0], beta[-1], atol=1e-9)


# ---- extremes, regimes, excess -----------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [None, 3])
def test_minimal_norms_and_their_certificates(sparse):
    x, y = regression(12, 30, sparse, seed=11)
    least = bias.minimal_l1(x, y)
    np.testing.assert_allclose(least.beta, least_l1(x, y), atol=1e-8)
    assert np.abs(x @ least.beta - y).max() <= 1e-13 * np.abs(y).max() * 30
    # weak duality: for any Xᵀν in [−1, 1], ⟨Xᵀν, β⟩ is below the norm of every interpolator
    assert np.abs(null_space(x).T @ least.dual).max() < 1e-12
    assert np.abs(least.dual).max() <= 1 + 1e-12 and least.gap <= 1e-12
    assert abs(least.dual @ least.beta - least.norm) <= 1e-12 * least.norm
    np.testing.assert_allclose(bias.minimal_l2(x, y).beta, np.linalg.pinv(x) @ y, rtol=1e-10)


def test_minimal_norm_of_positive_vectors():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(6, 15))
    y = x @ rng.uniform(0, 1, 15)
    least = bias.minimal_l1(x, y, positive=True)
    assert least.beta.min() >= 0 and least.gap <= 1e-12 and least.norm >= bias.minimal_l1(x, y).norm
    with pytest.raises(ValueError, match="some beta >= 0; the nearest is off by"):
        bias.minimal_l1(np.abs(x), -np.ones(6), positive=True)
    with pytest.raises(ValueError, match="nearest is off by 0.707"):
        bias.minimal_l1([[1.0, 2.0], [1.0, 2.0]], [1.0, 0.0])


@pytest.mark.parametrize("excess", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_regimes_hold_at_their_thresholds(depth, excess):
    for seed, scale in ((12, 1.0), (13, 100.0), (14, 0.01)):
        x, y = regression(5, 12, seed=seed)
        y = scale * y
        l1, l2 = bias.minimal_l1(x, y).norm, bias.minimal_l2(x, y).norm
        rich, kernel = bias.rich_alpha(l1, 12, excess, depth), bias.kernel_alpha(l2, excess, depth)
        assert 0 < rich < kernel
        at_rich = solve("difference", depth, equal_start("difference", rich, 12), x, y).beta
        assert np.abs(at_rich).sum() <= (1 + excess) * l1 * (1 + 1e-12)
        at_kernel = solve("difference", depth, equal_start("difference", kernel, 12), x, y).beta
        assert np.sum(at_kernel**2) <= (1 + excess) * l2**2 * (1 + 1e-12)
        if depth == 2:
            product = solve(
                "product",
                2,
                equal_start("product", bias.rich_alpha(l1, 12, excess, form="product"), 12),
                x,
                y,
            )
            np.testing.assert_allclose(product.beta, at_rich, rtol=1e-8, atol=1e-12)


def test_regimes_are_not_empty_claims():
    """Well beyond the thresholds the conclusions fail."""
    x, y = regression(5, 12, seed=12)
    l1, l2 = bias.minimal_l1(x, y).norm, bias.minimal_l2(x, y).norm
    large = solve("difference", 2, equal_start("difference", 10.0, 12), x, y).beta
    small = solve("difference", 2, equal_start("difference", 1e-3, 12), x, y).beta
    assert np.abs(large).sum() > 1.05 * l1 and np.sum(small**2) > 1.05 * l2**2


def test_the_paper_s_thresholds_are_on_the_safe_side_of_the_proved_ones():
    for excess in (0.05, 0.3, 1.0, 1.9):
        for norm in np.geomspace(1e-2, 1e3, 11):
            assert bias.woodworth_kernel_alpha(norm, excess) >= bias.kernel_alpha(norm, excess)
            for d in (2, 10, 1000):
                paper, own = bias.woodworth_rich_alpha(norm, d, excess), bias.rich_alpha(norm, d, excess)
                assert paper <= own


@pytest.mark.parametrize(
    "form, depth, alpha", [("power", 2, 0.05), ("power", 3, 0.1), ("difference", 2, 0.01), ("difference", 3, 0.1), ("product", 2, 1e-3)]
)  # fmt: skip
def test_excess_of_integrated_flows_is_within_the_bound(form, depth, alpha):
    x, y = regression(5, 12, seed=15)
    if form == "power":
        y = x @ (np.random.default_rng(4).random(12) * (np.arange(12) < 8))
    theta0 = equal_start(form, alpha, 12)
    if depth == 2 and form != "product":
        theta0 = theta0 * np.linspace(0.5, 1.5, theta0.size)  # any shape at depth 2
    beta, _ = weights_flow(
        form, depth, theta0, lambda b: x.T @ (x @ b - y) / 5, np.array([0.0, 300.0]), rtol=1e-8
    )
    assert np.abs(x @ beta[-1] - y).max() < 1e-3
    bound = bias.excess_l1(network(theta0, form, depth), Problem(x, y), theta0)
    measured = np.abs(beta[-1]).sum() / bound.least - 1
    assert -1e-3 <= measured <= bound.excess < 2.0


def test_excess_is_not_claimed_where_it_is_not_proved():
    x, y = regression(5, 12, seed=15)
    with pytest.raises(Refused, match=r"equal start at depth >= 3: defect 7"):
        bias.excess_l1(Diagonal(12, 3), Problem(x, y), np.repeat([1.0, 2.0], 12))
    with pytest.raises(Refused, match="a weight starts at 0"):
        bias.excess_l1(Diagonal(12), Problem(x, y), np.repeat([1.0, 0.0], 12))
    assert bias.excess_l1(Diagonal(12), Problem(x, y), np.full(24, 10.0)).excess == np.inf


def test_a_start_too_strongly_shaped_is_refused_and_the_flow_goes_to_its_limit():
    x = regression(4, 6)[0]
    y = x @ [1.0, -0.8, 0.0, 0.0, 0.0, 0.0]
    alpha, model = np.geomspace(1e-20, 1.0, 6), Diagonal(6)
    theta0 = model.init(scale=alpha)
    with pytest.raises(Refused, match=r"span 20 decades: gflow.flow\(…, t=np.inf, coords='log'\)"):
        argmin(diagonal.mirror(model, theta0), x, y)
    run = gflow.flow(model, Problem(x, y), theta0, np.inf, coords="log")
    beta = model.predictor(run.end)
    assert run.limit.kind == "minimum" and np.abs(x @ beta - y).max() < 1e-12
    assert np.abs(null_space(x).T @ np.arcsinh(beta / (2 * alpha**2))).max() < 1e-9
    # milder shapes are solved
    mild = model.init(scale=np.geomspace(1e-8, 1.0, 6))
    solved = argmin(diagonal.mirror(model, mild), x, y).beta
    run = gflow.flow(model, Problem(x, y), mild, np.inf, coords="log")
    np.testing.assert_allclose(solved, model.predictor(run.end), atol=1e-12)


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda: bias.limit(Diagonal(2), Problem(np.eye(3), np.ones(3)), np.ones(4)),
            "fit the 3 inputs of the problem",
        ),
        (
            lambda: bias.limit(Diagonal(3), Problem(np.eye(3), np.ones(3), loss="logistic"), np.ones(6)),
            "square loss",
        ),
        (
            lambda: bias.limit(Diagonal(3, form="power"), Problem(np.eye(3), -np.ones(3)), np.ones(3)),
            "off by 1, relative",
        ),
        (
            lambda: bias.limit(nameless(depth=1), Problem(np.eye(3), np.ones(3)), np.ones(6)),
            ">= 2; got 1",
        ),
        (lambda: argmin(diagonal.mirror(Diagonal(3), np.ones(6)), np.eye(3), np.ones(2)), "X has 3, y has 2"),
        (
            lambda: argmin(diagonal.mirror(Diagonal(3), np.ones(6)), np.eye(2), np.ones(2)),
            "3 columns of the mirror",
        ),
        (
            lambda: argmin(diagonal.mirror(Diagonal(1), np.full(2, 1e-160)), [[1.0]], [1.0]),
            "decades apart; they are 320",
        ),
        (lambda: bias.rich_alpha(-1.0, 3, 0.1), "l1 must be a number > 0"),
        (lambda: bias.rich_alpha(1.0, 3, 0.0), "excess must be a number > 0"),
        (lambda: bias.rich_alpha(1.0, 3.5, 0.1), "size must be a whole number >= 1; got 3.5"),
        (lambda: bias.woodworth_rich_alpha(1.0, 3, 10.0), "excess must be below size = 3.*got 10"),
        (lambda: bias.woodworth_rich_alpha(1.0, 3, 3.0), "excess must be below size = 3"),
        (lambda: bias.kernel_alpha(1.0, 0.1, depth=1), "depth must be a whole number >= 2"),
        (lambda: bias.rich_alpha(1.0, 3, 0.1, form="power"), "form must be 'difference'"),
        (lambda: bias.minimal_l1(np.eye(3), np.ones(2)), "X has 3, y has 2"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
