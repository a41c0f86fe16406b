"""The cases that all tests share: a model on a problem from a start, with its closed form if there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import expm

import gflow


@dataclass(frozen=True, eq=False)
class Case:
    """A flow from ``theta0`` up to the time ``end``; ``exact(t)`` (T, P) is its closed form."""

    name: str
    model: Any
    problem: gflow.Problem
    theta0: np.ndarray
    end: float
    exact: Callable[[np.ndarray], np.ndarray] | None = None


def logistic(t, start, limit, rate=2.0):
    """The solution of du/dt = rate u (limit - u)."""
    return limit / (1.0 + (limit / start - 1.0) * np.exp(-rate * limit * t))


def orthogonal(rng, rows, cols):
    """A matrix with orthonormal columns."""
    return np.linalg.qr(rng.standard_normal((rows, cols)))[0]


def scalar():
    """Two factors of one number, L = (a b - s)^2 / 2 from a = b: u = a b is logistic."""
    s, a = 2.0, 1e-3

    def exact(t):
        return np.repeat(np.sqrt(logistic(t, a * a, s))[:, None], 2, axis=1)

    problem = gflow.Problem.factorization([[s]])
    return Case("scalar", gflow.DeepLinear((1, 1, 1)), problem, np.full(2, a), 6.0, exact)


def single_layer(weight_decay):
    """One layer: dW/dt = -W A + B is linear, and W(t) - B A^-1 = (W(0) - B A^-1) exp(-A t)."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((9, 3)), rng.standard_normal((9, 2))
    start = rng.standard_normal((2, 3))
    a = x.T @ x / 9 + weight_decay * np.eye(3)
    limit = np.linalg.solve(a, x.T @ y / 9).T

    def exact(t):
        return np.array([(limit + (start - limit) @ expm(-a * now)).ravel() for now in t])

    problem = gflow.Problem(x, y, weight_decay=weight_decay)
    name = "single layer" + (" with weight decay" if weight_decay else "")
    return Case(name, gflow.DeepLinear((3, 2)), problem, start.ravel(), 5.0, exact)


def two_modes():
    """Two layers on whitened data, aligned with the target: each mode is a logistic curve of its own."""
    rng = np.random.default_rng(2)
    n, d, hidden, k = 12, 4, 3, 2
    x = np.sqrt(n) * orthogonal(rng, n, d)
    left, right, frame = orthogonal(rng, k, 2), orthogonal(rng, d, 2), orthogonal(rng, hidden, 2)
    s, a = np.array([3.0, 1.0]), np.array([0.03, 0.01])
    model = gflow.DeepLinear((d, hidden, k))
    problem = gflow.Problem(x, x @ (left * s @ right.T).T)

    def layers(strength):
        return np.concatenate([(frame * strength @ right.T).ravel(), (left * strength @ frame.T).ravel()])

    def exact(t):
        return np.array([layers(np.sqrt(logistic(now, a**2, s))) for now in t])

    return Case("two modes", model, problem, layers(a), 7.0, exact)


def symmetric_modes():
    """M = V diag(s) V^T and U = V diag(a): d(a^2)/dt = 4 a^2 (s - a^2)."""
    rng = np.random.default_rng(3)
    v = orthogonal(rng, 3, 2)
    s, a = np.array([2.0, 1.0]), np.array([0.05, 0.1])
    problem = gflow.Problem.factorization(v * s @ v.T)

    def exact(t):
        return np.array([(v * np.sqrt(logistic(now, a**2, s, rate=4.0))).ravel() for now in t])

    return Case("symmetric modes", gflow.Symmetric(3, 2), problem, (v * a).ravel(), 3.0, exact)


def diagonal_modes():
    """beta = w^2 on whitened data: each coordinate of beta is a logistic curve of its own."""
    rng = np.random.default_rng(5)
    n, d = 7, 3
    x = np.sqrt(n) * orthogonal(rng, n, d)
    s, a = np.array([2.0, 0.5, 1.0]), np.array([0.03, 0.1, 0.05])

    def exact(t):
        return np.array([np.sqrt(logistic(now, a**2, s, rate=4.0)) for now in t])

    return Case("diagonal modes", gflow.Diagonal(d, form="power"), gflow.Problem(x, x @ s), a, 3.0, exact)


def diagonal():
    """Diagonal networks of every form, without a closed form."""
    rng = np.random.default_rng(6)
    normal, problem = rng.standard_normal, gflow.Problem
    return [
        _random("diagonal", gflow.Diagonal(5), problem(normal((3, 5)), normal(3))),
        _random("diagonal product", gflow.Diagonal(3, form="product"), problem(normal((6, 3)), normal(6))),
        _random(
            "diagonal depth 3, weight decay",
            gflow.Diagonal(4, 3),
            problem(normal((3, 4)), normal(3), weight_decay=0.1),
        ),
    ]


def _random(name, model, problem, scale=0.5, seed=0, end=2.0):
    theta0 = scale * np.random.default_rng(seed).standard_normal(model.size)
    return Case(name, model, problem, theta0, end)


def without_closed_form():
    """Networks of every objective, from starts that are neither balanced nor aligned."""
    rng = np.random.default_rng(4)
    normal, deep, problem = rng.standard_normal, gflow.DeepLinear, gflow.Problem
    mask = [[1, 0, 1], [0, 1, 1], [1, 1, 0]]
    return [
        _random("regression n > d", deep((3, 4, 2)), problem(normal((8, 3)), normal((8, 2)))),
        _random("regression n < d", deep((5, 2, 3)), problem(normal((3, 5)), normal((3, 3)))),
        _random("one output, depth 3", deep((4, 3, 2, 1)), problem(normal((6, 4)), normal(6))),
        _random(
            "weight decay, depth 3",
            deep((2, 3, 3, 2)),
            problem(normal((7, 2)), normal((7, 2)), weight_decay=0.1),
        ),
        _random("bottleneck", deep((3, 1, 3)), problem.factorization(normal((3, 3)))),
        _random("sensing", deep((3, 2, 4)), problem.sensing(normal((6, 4, 3)), normal(6)), scale=0.3),
        _random("completion", deep((3, 3, 3)), problem.completion(normal((3, 3)), mask)),
        _random("symmetric", gflow.Symmetric(3, 3), problem.factorization(np.diag([2.0, 1.0, -1.0]))),
        _random(
            "symmetric regression",
            gflow.Symmetric(3, 2),
            problem(normal((7, 3)), normal((7, 3)), weight_decay=0.05),
        ),
        _random(
            "depth 4, beyond small loops",
            deep((9, 8, 7, 8, 6)),
            problem.factorization(normal((6, 9))),
            scale=0.2,
        ),
    ]


LINEAR = [scalar(), single_layer(0.0), single_layer(0.3), two_modes(), symmetric_modes()]
SOLVED = [*LINEAR, diagonal_modes()]
CASES = [*LINEAR, *without_closed_form()[:-1], diagonal_modes(), *diagonal(), without_closed_form()[-1]]


def sliding(seed):
    """A ReLU network whose neurons slide: 10 points in 3 dimensions, a linear teacher and noise, 12 neurons."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((10, 3))
    y = x @ rng.standard_normal(3) + rng.standard_normal(10)
    w = 0.3 * rng.standard_normal((12, 3))
    a = np.linalg.norm(w, axis=1) * rng.choice([-1.0, 1.0], 12)
    model = gflow.TwoLayerReLU(3, 12)
    return Case(f"sliding {seed}", model, gflow.Problem(x, y), model.pack([w, a[None]]), 60.0)


#: Seeds on which neurons slide most of the time, fixed; on others of the first sixteen the data is fitted early.
SLIDING = [sliding(seed) for seed in (0, 1, 3, 4, 5, 6, 8, 10, 12, 13, 14, 15)]


def chain(first_depth):
    """A ReLU network with a product of matrices as its first layer, whose neurons pass kinks but do not slide."""
    rng = np.random.default_rng(1)
    model = gflow.TwoLayerReLU(3, 6, 2, first_depth=first_depth)
    problem = gflow.Problem(rng.standard_normal((8, 3)), rng.standard_normal((8, 2)))
    return Case(f"chain of {first_depth}", model, problem, 0.5 * rng.standard_normal(model.size), 1.0)


#: For flows with ``events=False``.
CHAINS = [chain(2), chain(3)]
