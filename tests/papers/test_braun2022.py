"""Exact two-layer solutions: the set-ups, and what the figures show."""

from __future__ import annotations

import numpy as np
import pytest

from gflow import datasets, theory
from gflow.papers import braun2022 as paper


def test_the_tree_of_eight_outputs_has_the_items_of_the_tree_of_fifteen():
    x, y = datasets.hierarchy(3)
    problem = paper.SetUp("tree").problem
    np.testing.assert_allclose(problem.X, x)
    np.testing.assert_allclose(problem.Y @ problem.Y.T, y @ y.T, atol=1e-13)
    np.testing.assert_allclose(problem.target, problem.target.T, atol=1e-14)


@pytest.mark.parametrize("kind", ["demo", "tree", "square"])
def test_all_problems_have_the_rate_one(kind):
    setup = paper.SetUp(kind)
    theta = setup.start
    first, second = setup.layers
    error = setup.problem.target - second @ first
    from gflow.objective import Objective

    pushed = setup.model.unpack(-Objective(setup.model, setup.problem).gradient(theta))
    np.testing.assert_allclose(pushed[0], second.T @ error, atol=1e-13)
    np.testing.assert_allclose(pushed[1], error @ first.T, atol=1e-13)


@pytest.mark.parametrize("signs", [-1, 1])
def test_starts_have_the_signs_that_are_asked(signs):
    for seed in range(5):
        setup = paper.SetUp("square", seed=seed, signs=signs)
        first, second = setup.layers
        assert np.linalg.det(second @ first) * np.linalg.det(setup.problem.target) * signs > 0
        assert (theory.exact.overlap(setup.problem.target, first, second)[-1] < 1e-12) == (signs < 0)


def test_the_turn_of_the_kernel_falls_like_the_fourth_power_of_lambda():
    """The kernel is λ I ⊗ … + O(s²/λ): its turn is half the square of a relative change of O(s²/λ²)."""
    for sign in (1, -1):
        turns = np.array([paper.turned(sign * value) for value in (100.0, 200.0, 400.0)])
        np.testing.assert_allclose(np.diff(np.log2(turns)), -4, atol=0.05)
    assert paper.turned(0.0) > 10 * paper.turned(10.0)


def test_the_zero_balanced_form_is_wrong_off_balance():
    setup = paper.SetUp("demo", unequal=2.0)
    assert not all(h.holds for h in setup.hypotheses())
    with pytest.raises(theory.Refused, match="zero-balanced start: defect"):
        theory.exact.zero_balanced([1.0], setup.problem.target, *setup.layers)
    t = np.linspace(0.0, 12 / setup.slowest, 30)
    wrong = np.abs(setup.squares(setup.flow(t, 1e-9).theta) - setup.exact(t, "zero-balanced"))
    assert wrong.max() > 0.1


def test_half_of_the_starts_are_obstructed():
    found = paper.draws(400, seed=1)
    assert abs(found.opposite.mean() - 0.5) < 4 * 0.5 / 20
    np.testing.assert_array_equal(found.determinant < 1e-10, found.opposite)
    np.testing.assert_array_equal(found.overlap < 1e-12, found.opposite)


@pytest.mark.parametrize("level", paper.LEVELS)
def test_the_rate_from_imbalance_is_a_bound_and_twice_it_is_none(level):
    setup = paper.Wide(level=level)
    t = np.linspace(0.0, 4 / setup.rate, 40)
    loss = setup.losses(setup.flow(t, 1e-10).theta)
    assert np.all(loss[1:] < loss[0] * np.exp(-2 * setup.rate * t[1:]))
    if level == 2:
        assert loss[-1] > loss[0] * np.exp(-4 * setup.rate * t[-1])
    assert paper.Wide(1, level=level).rate == 0  # too few units for two outputs


def test_hidden_directions_of_their_own():
    for apart in (False, True):
        setup = paper.Wide(apart=apart)
        first, second = setup.model.unpack(setup.start)
        off = first - first @ setup.rows.T @ setup.rows
        on = first - off
        assert np.linalg.norm(off) > 0.5
        mixed = max(np.abs(on.T @ off).max(), np.abs(second @ off).max())
        assert (mixed < 1e-14) == apart


def test_the_distance_from_the_least_norm_falls_with_the_width_however_the_runs_are_stopped():
    found = [paper.distances(h, "quick") for h in (20, 80)]
    assert found[0][0].mean() > 1.5 * found[1][0].mean()
    for coarse_and_fine in found:
        np.testing.assert_allclose(*coarse_and_fine, rtol=1e-6)
