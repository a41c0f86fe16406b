"""Deep matrix factorisation: what the observations of the paper rest on."""

from __future__ import annotations

import numpy as np
import pytest

from gflow.papers import chou2020 as paper
from gflow.theory import factorization
from gflow.theory.linear import mode_strength


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_effective_rank_is_not_monotone_where_the_target_is_singular(depth):
    """Zeros decay like a power of t, what is learned exponentially: the rank ends above its limit and falls."""
    alpha = {2: 0.01, 3: 0.1, 4: 0.3}[depth]
    singular = paper.SetUp(paper.SPECTRUM, depth, alpha)
    late = np.linspace(100.0, 1000.0, 50)[:, None]
    y = mode_strength(late, singular.lam, alpha**depth, depth)
    rank = y.sum(axis=1) / y.max(axis=1)
    assert np.all(rank > 1.8) and np.all(np.diff(rank) < 0)
    steps = 4 * paper._length(singular)
    assert paper.largest_fall(paper._ranks(singular.eigenvalues(steps) ** depth)) > 1e-8
    regular = paper.SetUp(paper.SPECTRUM[:4], depth, alpha)
    assert paper.largest_fall(paper._ranks(regular.eigenvalues(steps) ** depth)) < 1e-12


@pytest.mark.parametrize("seed", [1e-15, 1e-13, 1e-11, 1e-9])
def test_when_two_factors_part_follows_from_their_first_difference(seed):
    found = paper.leaving(paper.SetUp(paper.MIXED, 2, 0.1), seed, 1500)
    measured, predicted = found.onset
    assert abs(measured - predicted) <= 3
    assert found.strength[-1] == pytest.approx(-1, rel=1e-9)


def test_products_of_equal_factors_round_equally_until_they_do_not():
    """W_1 = W_2ᵀ to the last bit on small matrices; a step size and a spectrum with which plain numpy leaves."""
    setup = paper.SetUp(paper.MIXED, 2, 0.1)
    first, second = setup.model.unpack(setup.matrices(4000, save_every=4000).end)
    if np.array_equal(first, second.T):
        d = setup.eigenvalues(4000)[-1]
        np.testing.assert_allclose(np.linalg.eigvalsh(first)[::-1], d, atol=1e-12)
    m, a, b = setup.problem.Y, 0.1 * np.eye(4), 0.1 * np.eye(4)
    for _ in range(4000):
        error = b @ a - m
        a, b = a - setup.step_size * b.T @ error, b - setup.step_size * error @ a.T
    gone = np.abs(a - b.T).max() > 0
    end = setup.vectors[:, -1] @ b @ a @ setup.vectors[:, -1]
    assert end == pytest.approx(-1 if gone else 0, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_intervals_hold_whatever_the_eigenvectors(seed):
    setup = paper.SetUp((6.0, 3.0, 1.0, 0.0, 0.0), 3, 0.1, seed=seed)
    evidence = paper.ranks(setup, 1e-10)
    assert all(h.holds for h in evidence.hypotheses) and len(evidence.conclusions) == 12
    assert all(c.value <= c.bound for c in evidence.conclusions)


def test_descent_on_measurements_passes_by_the_best_approximations():
    sensing = paper.Sensing()
    run = sensing.run(4000, 10)
    sizes = np.linalg.svd(sensing.whole.model.end_to_end(run.theta), compute_uv=False)
    rank = paper._ranks(sizes)
    for level in factorization.plateaus(sensing.whole.lam):
        assert np.abs(rank / level - 1).min() < 0.02
    assert sizes[-1, 3] < 0.01 * sizes[-1, 2]
