"""Products of Gaussian matrices: the closed forms against quadrature at high precision, and against draws."""

from __future__ import annotations

from math import comb

import mpmath as mp
import numpy as np
import pytest

from gflow import observe
from gflow._blas import one_thread
from gflow.theory import rank

DEPTHS = (1, 2, 3, 5, 8)


def referee(function, depth):
    """E f(σ²) by quadrature over φ of the density of σ² times the derivative of σ², at 20 digits."""
    d = depth
    with mp.workdps(20):

        def square(phi):
            return mp.sin((d + 1) * phi) ** (d + 1) / (mp.sin(phi) * mp.sin(d * phi) ** d)

        def integrand(phi):
            x = square(phi)
            density = mp.sin(phi) ** 2 * mp.sin(d * phi) ** (d - 1) / (mp.pi * mp.sin((d + 1) * phi) ** d)
            slope = (d + 1) ** 2 * mp.cot((d + 1) * phi) - mp.cot(phi) - d**2 * mp.cot(d * phi)
            return -function(x) * density * x * slope

        end = mp.pi / (d + 1)
        return mp.quad(integrand, [0, end / 2, end])


def drawn(n, depth, draws, seed=0):
    """Singular values (draws, n) of products of ``depth`` Gaussian matrices."""
    rng = np.random.default_rng(seed)
    products = np.broadcast_to(np.eye(n), (draws, n, n))
    with one_thread():
        for _ in range(depth):
            products = rng.standard_normal((draws, n, n)) @ products / np.sqrt(n)
        return np.linalg.svd(products, compute_uv=False)


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_moments_are_the_fuss_catalan_numbers(depth):
    wanted = [comb((depth + 1) * k, k) / (depth * k + 1) for k in range(4)]
    np.testing.assert_allclose(rank.moment(np.arange(4), depth), wanted, rtol=1e-13)
    by_density = [float(referee(lambda x, k=k: x**k, depth)) for k in range(4)]
    np.testing.assert_allclose(by_density, wanted, rtol=1e-9)


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_density_and_its_shares_belong_together(depth):
    phi = np.linspace(0.0, np.pi / (depth + 1), 9)[1:-1]
    h = 1e-6 * phi[0]
    slope = (rank.square(phi + h, depth) - rank.square(phi - h, depth)) / (2 * h)
    shares = (rank.larger(phi + h, depth) - rank.larger(phi - h, depth)) / (2 * h)
    expected = -rank.density(phi, depth) * slope
    np.testing.assert_allclose(rank.density_of_angle(phi, depth), expected, rtol=1e-7)
    np.testing.assert_allclose(shares, expected, rtol=1e-7)
    ends = np.pi / (depth + 1) * np.array([1e-9, 1 - 1e-9])
    np.testing.assert_allclose(rank.larger(ends, depth), [0.0, 1.0], atol=1e-8)


def test_the_density_at_depth_one_and_two_is_the_known_one():
    """Marchenko-Pastur; for two matrices the algebraic form of Penson and Życzkowski, arXiv 1103.3453."""
    phi = np.linspace(0.1, 1.4, 7)
    x = rank.square(phi, 1)
    np.testing.assert_allclose(rank.density(phi, 1), np.sqrt(4 / x - 1) / (2 * np.pi), rtol=1e-13)
    phi = np.linspace(0.1, 0.95, 7)
    x = rank.square(phi, 2)
    root = 27 + 3 * np.sqrt(81 - 12 * x)
    top = 2 ** (1 / 3) * root ** (2 / 3) - 6 * x ** (1 / 3)
    known = 2 ** (1 / 3) * np.sqrt(3) / (12 * np.pi) * top / (x ** (2 / 3) * root ** (1 / 3))
    np.testing.assert_allclose(rank.density(phi, 2), known, rtol=1e-11)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("depth", DEPTHS)
def test_the_deficit_is_that_of_the_law(depth, power):
    half = power / 2
    mean = referee(lambda x: x**half, depth)
    weighted = referee(lambda x: x**half * half * mp.log(x) if x > 0 else mp.mpf(0), depth)
    assert rank.deficit(depth, power) == pytest.approx(float(weighted / mean - mp.log(mean)), rel=1e-10)


def test_the_ranks_of_the_notes():
    known = [0.80504, 0.66939, 0.57142, 0.49787, 0.44082, 0.39535, 0.35830, 0.32756]
    np.testing.assert_allclose([np.exp(-rank.deficit(d)) for d in range(1, 9)], known, rtol=0, atol=5.1e-6)
    assert rank.entropy_rank(400, 3) == np.log(400) - rank.deficit(3)


@pytest.mark.parametrize("depth", [1, 2, 7, 40])
def test_the_deficit_of_the_gram_matrix_is_a_harmonic_number(depth):
    assert rank.deficit(depth, 2.0) == pytest.approx(sum(1 / j for j in range(2, depth + 2)), rel=1e-13)


@pytest.mark.parametrize("power", [0.1, 1.0, 2.0])
def test_the_rank_falls_with_every_matrix(power):
    """By at least s² ψ'(ds + 2) a matrix, s = power / 2: what the proof says."""
    s = power / 2
    steps = np.diff([rank.deficit(d, power) for d in range(1, 300)])
    least = [
        s**2 * float(mp.psi(1, (d + 1) * s + 2)) for d in range(1, 299)
    ]  # the integrand's least: at the end
    assert np.all(steps > 0)
    assert np.all(steps >= np.array(least) * (1 - 1e-9))


@pytest.mark.parametrize("depth", DEPTHS)
def test_quantiles_and_shares_undo_each_other(depth):
    n = 50
    sigma = rank.singular_values(n, depth)
    assert np.all(np.diff(sigma) < 0) and sigma[0] < np.sqrt((depth + 1) ** (depth + 1) / depth**depth)
    np.testing.assert_allclose(rank.share_below(sigma, depth), 1 - (np.arange(n) + 0.5) / n, atol=1e-13)
    top = np.sqrt((depth + 1) ** (depth + 1) / depth**depth)
    np.testing.assert_array_equal(rank.share_below([0.0, top, 2 * top], depth), [0.0, 1.0, 1.0])
    # the midpoint rule over the shares: the mean of σ² is 1
    assert np.mean(rank.singular_values(20_000, depth) ** 2) == pytest.approx(1.0, rel=2e-3)


@pytest.mark.parametrize("depth", [1, 8, 150, 1000])
def test_great_depths_and_tiny_values_stay_right(depth):
    """Against 60 digits, where powers of the sines leave float64; at scalars too."""
    for share in (0.02, 0.3, 0.9):
        phi = share * np.pi / (depth + 1)
        with mp.workdps(60):
            x, d = mp.mpf(phi), depth
            wanted = (d + 1) * mp.log(mp.sin((d + 1) * x)) - mp.log(mp.sin(x)) - d * mp.log(mp.sin(d * x))
            above = ((d + 1) * x - d * mp.sin(x) * mp.sin((d + 1) * x) / mp.sin(d * x)) / mp.pi
        assert rank.larger(phi, depth) == pytest.approx(float(above), abs=1e-14)
        if abs(wanted) < 600:
            assert float(rank.square(phi, depth)) == pytest.approx(
                float(mp.exp(wanted)), rel=1e-14 * (depth + 10)
            )
            sigma = float(mp.exp(wanted / 2))
            assert float(rank.share_below(sigma, depth)) == pytest.approx(float(1 - above), abs=1e-13)
    assert float(rank.share_below(1e-300, 1)) == pytest.approx(0.0, abs=1e-15)
    values = rank.singular_values(50, depth)
    assert np.all(np.isfinite(values)) and np.all(np.diff(values) <= 0)


def test_draws_follow_the_law():
    """At size 200 the ranks are within four standard errors, and 2/n for the finite size, of the limit."""
    n, draws = 200, 8
    for depth in (1, 2, 4):
        sigma = drawn(n, depth, draws)
        shares = rank.share_below(sigma.ravel(), depth)  # uniform, more evenly spread than independent ones
        places = np.sort(shares)
        assert np.abs(places - (np.arange(n * draws) + 0.5) / (n * draws)).max() < 5.0 / n
        for power in (1.0, 2.0):
            ranks = [observe.effective_ranks(np.diag(s**power))["roy_vetterli"] / n for s in sigma]
            error = np.std(ranks, ddof=1) / np.sqrt(draws)
            limit = np.exp(-rank.deficit(depth, power))
            assert abs(np.mean(ranks) - limit) < 4 * error + 2.0 / n * limit


def test_the_finite_size_costs_one_over_n():
    """The mean's distance from the limit falls as the size grows: a wrong limit would stay."""
    limit = np.exp(-rank.deficit(2))
    gaps = []
    for n, draws in ((25, 200), (100, 50)):
        p = drawn(n, 2, draws)
        p /= p.sum(axis=1, keepdims=True)
        gaps.append(limit - np.mean(np.exp(-np.sum(p * np.log(p), axis=1)) / n))
    assert gaps[0] > 0 and gaps[1] < 0.5 * gaps[0]


def test_orthogonal_factors_do_not_follow_the_law():
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((100, 100)))[0]
    assert observe.effective_ranks(q @ q)["roy_vetterli"] == pytest.approx(100.0, rel=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rank.deficit(0), "depth must be a whole number >= 1; got 0"),
        (lambda: rank.deficit(2, 0.0), "power must be a number > 0"),
        (lambda: rank.deficit(2, 1e-8), "power must lie between 0.001 and 1000; got 1e-08"),
        (lambda: rank.deficit(10**9), "depth must be at most 1000000; got 1000000000"),
        (lambda: rank.entropy_rank(1.5, 2), "n must be a whole number >= 1; got 1.5"),
        (lambda: rank.square(2.0, 1), "phi must lie between 0 and pi / 2 for depth 1"),
        (lambda: rank.density([0.1, 0.0], 3), "phi must lie between 0 and pi / 4"),
        (lambda: rank.moment(-1.0, 2), "s must be finite and >= 0"),
        (lambda: rank.share_below([-1.0], 2), "sigma must be >= 0; got -1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
