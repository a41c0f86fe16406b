"""Coefficients of the Runge-Kutta pairs: equal to scipy's, and of the orders they claim, by rooted trees."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.integrate import DOP853
from scipy.integrate._ivp import dop853_coefficients as scipys

from gflow.kernels import tableaus

EPS = np.finfo(float).eps
PAIRS = {"tsit5": tableaus.tsit5(), "dop853": tableaus.dop853()}


def dense_rows(tableau):
    """The stored rows with their zeros (S + E + 2, S + E)."""
    rows = np.zeros((len(tableau.terms), len(tableau.node)))
    for r, count in enumerate(tableau.terms):
        rows[r, tableau.source[r, :count]] = tableau.weight[r, :count]
    return rows


@cache
def trees(order):
    """Rooted trees with so many vertices, each the sorted tuple of the subtrees at its root."""
    if order == 1:
        return [()]
    found = set()

    def grow(left, biggest, subtrees):
        if left == 0:
            found.add(tuple(sorted(subtrees)))
        for size in range(min(left, biggest), 0, -1):
            for tree in trees(size):
                grow(left - size, size, [*subtrees, tree])

    grow(order - 1, order - 1, [])
    return sorted(found)


def vertices(tree):
    return 1 + sum(vertices(branch) for branch in tree)


def density(tree):
    return vertices(tree) * np.prod([density(branch) for branch in tree])


def stage_weights(tree, a):
    """The derivative weight of a tree at each stage: the product over its branches of A times theirs."""
    out = np.ones(len(a))
    for branch in tree:
        out = out * (a @ stage_weights(branch, a))
    return out


def defects(tableau, weights, order, at=1.0):
    """Weighted sums less x^order / density of all trees of an order, in units of their rounding."""
    a = dense_rows(tableau)[: len(tableau.node)]
    units = [
        (weights @ stage_weights(tree, a) - at**order / density(tree))
        / (EPS * (abs(weights) @ stage_weights(tree, abs(a)) + 1 / density(tree)))
        for tree in trees(order)
    ]
    return np.abs(units)


def solution(tableau):
    return dense_rows(tableau)[tableau.sizes[0] - 1]


def test_rooted_trees_are_counted_right():
    assert [len(trees(order)) for order in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]


@pytest.mark.parametrize("name", PAIRS)
def test_stages_stand_at_their_nodes(name):
    tableau = PAIRS[name]
    a = dense_rows(tableau)[: len(tableau.node)]
    np.testing.assert_allclose(a.sum(axis=1), tableau.node, rtol=0, atol=20 * EPS * abs(a).sum(axis=1).max())
    assert np.all(np.triu(a) == 0)


@pytest.mark.parametrize(("name", "order"), [("tsit5", 5), ("dop853", 8)])
def test_the_solution_has_its_order_and_no_more(name, order):
    tableau = PAIRS[name]
    assert tableau.sizes[3] == order
    for q in range(1, order + 1):
        assert defects(tableau, solution(tableau), q).max() < 100, q
    assert defects(tableau, solution(tableau), order + 1).max() > 1e6


@pytest.mark.parametrize(("name", "row", "order"), [("tsit5", -2, 4), ("dop853", -2, 5), ("dop853", -1, 3)])
def test_error_estimates_vanish_to_their_order(name, row, order):
    """The difference of two methods of which the lower has this order."""
    tableau = PAIRS[name]
    error = dense_rows(tableau)[row]
    for q in range(1, order + 1):
        # against zero: the solution's own weights and the lower method's have the same sums
        assert defects(tableau, solution(tableau) - error, q).max() < 200, q
    assert defects(tableau, solution(tableau) - error, order + 1).max() > 1e6


@pytest.mark.parametrize(("name", "order"), [("tsit5", 4), ("dop853", 7)])
def test_the_interpolant_has_its_order_everywhere(name, order):
    tableau = PAIRS[name]
    powers = 1.0 + np.arange(tableau.interpolant.shape[1])
    for x in (0.1, 0.37, 0.5, 0.83, 1.0):
        weights = tableau.interpolant @ x**powers
        room = 100 * (abs(tableau.interpolant) @ x**powers).max() / abs(weights).max()
        for q in range(1, order + 1):
            assert defects(tableau, weights, q, at=x).max() < room, (x, q)
        if x != 1.0:
            assert defects(tableau, weights, order + 1, at=x).max() > 1e4 * room, x


@pytest.mark.parametrize("name", PAIRS)
def test_the_interpolant_joins_steps_smoothly(name):
    """It ends in the solution, and its derivative is that of the flow at both ends."""
    tableau = PAIRS[name]
    room = 20 * EPS * abs(tableau.interpolant).sum(axis=1).max()
    degrees = 1.0 + np.arange(tableau.interpolant.shape[1])
    first, last = np.eye(len(tableau.node))[[0, tableau.sizes[0] - 1]]
    np.testing.assert_allclose(tableau.interpolant.sum(axis=1), solution(tableau), rtol=0, atol=room)
    np.testing.assert_allclose(tableau.interpolant[:, 0], first, rtol=0, atol=room)
    np.testing.assert_allclose(tableau.interpolant @ degrees, last, rtol=0, atol=room * degrees[-1])


def test_dop853_equals_scipys():
    rows, n = dense_rows(PAIRS["dop853"]), scipys.N_STAGES
    np.testing.assert_array_equal(rows[:n, :n], scipys.A[:n, :n])
    np.testing.assert_array_equal(rows[n, :n], scipys.B)
    np.testing.assert_array_equal(rows[n + 1 : n + 4], scipys.A[n + 1 :])
    np.testing.assert_allclose(PAIRS["dop853"].node, scipys.C, rtol=EPS)
    np.testing.assert_allclose(rows[-2, : n + 1], scipys.E5, rtol=0, atol=4 * EPS)
    np.testing.assert_allclose(rows[-1, : n + 1], scipys.E3, rtol=0, atol=4 * EPS)


def test_dop853_interpolant_equals_scipys_dense_output():
    np.testing.assert_array_equal(tableaus._DOP853_DENSE, scipys.D)

    def field(t, y):
        return np.array([y[1] * np.cos(t), -np.sin(y[0]) + t])

    solver = DOP853(field, 0.3, np.array([0.4, -1.1]), 5.0, first_step=0.6, rtol=1e3, atol=1e3)
    assert solver.step() is None and solver.t == pytest.approx(0.9)
    start, dense, h = solver.y_old, solver.dense_output(), solver.t - solver.t_old
    powers = 1.0 + np.arange(7)
    for x in np.linspace(0.0, 1.0, 11):
        weights = PAIRS["dop853"].interpolant @ x**powers
        ours = start + h * weights @ solver.K_extended
        room = 10 * EPS * h * abs(PAIRS["dop853"].interpolant).max() * abs(solver.K_extended).max()
        np.testing.assert_allclose(ours, dense(solver.t_old + x * h), rtol=0, atol=room)
