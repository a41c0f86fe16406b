"""Observables of two-layer networks: what single neurons and samples do.

Functions ``f(model, problem, theta)`` of one state (P,), as in :mod:`gflow.observe`, which lists them; and
makers of such functions (:func:`cosines_to`, :func:`outputs_at`, :func:`on`), whose results go to
``observe={"name": ...}``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import lsq_linear

from gflow._check import finite_array
from gflow.kernels import losses, piecewise
from gflow.models.base import loss_code
from gflow.objective import Objective

Array = NDArray[np.float64]
Observable = Callable[[Any, Any, ArrayLike], Any]

#: A neuron stands on a sample's kink where |w·x| is below this × ‖w‖ ‖x‖.
ON_KINK = 1e-11


def _layers(model: Any, theta: ArrayLike) -> tuple[Array, Array]:
    if not hasattr(model, "first_layer"):
        raise ValueError(f"model must be a two-layer network for this observable; got {type(model).__name__}")
    return model.first_layer(theta), model.outer_layer(theta)


def activation_pattern(model: Any, problem: Any, theta: ArrayLike) -> NDArray[np.int64]:
    """Sign of w_j · x_i (m, n): 1 active, −1 inactive, 0 on the kink (or x_i = 0)."""
    w, _ = _layers(model, theta)
    z = w @ problem.X.T
    scale = np.outer(np.linalg.norm(w, axis=1), np.linalg.norm(problem.X, axis=1))
    return np.where(np.abs(z) <= ON_KINK * scale, 0, np.sign(z)).astype(np.int64)


def neuron_norms(model: Any, problem: Any, theta: ArrayLike) -> Array:
    """Norms ‖w_j‖ (m,)."""
    return np.asarray(np.linalg.norm(_layers(model, theta)[0], axis=1))


def neuron_directions(model: Any, problem: Any, theta: ArrayLike) -> Array:
    """Unit vectors w_j / ‖w_j‖ (m, d); NaN where w_j = 0."""
    w, _ = _layers(model, theta)
    size = np.linalg.norm(w, axis=1, keepdims=True)
    return np.where(size > 0, w / np.where(size > 0, size, 1.0), np.nan)


def outer_weights(model: Any, problem: Any, theta: ArrayLike) -> Array:
    """Outer weights A (k, m)."""
    return _layers(model, theta)[1]


def multipliers(model: Any, problem: Any, theta: ArrayLike) -> Array:
    """Slopes (m, n) at which the samples act on the neurons: 1, the network's slope, or between on a kink.

    On attracting kinks of a neuron they are those of the shortest velocity, which the flow takes; NaN on
    kinks that repel, where the flow does not stay.
    """
    w, a = _layers(model, theta)
    if problem.loss in ("logistic", "exponential") and not problem.weight_decay:
        problem = problem.log  # of the same slopes, and far down the loss itself is 0
    pattern = activation_pattern(model, problem, theta)
    slopes = np.where(pattern > 0, 1.0, model.slope)
    force = -(a.T @ output_derivative(model, problem, theta).T)  # (m, n)
    for j in np.flatnonzero((pattern == 0).any(axis=1)):
        kinks = np.flatnonzero((pattern[j] == 0) & (np.linalg.norm(problem.X, axis=1) > 0))
        attracts = kinks[force[j, kinks] < 0]
        slopes[j, np.setdiff1d(kinks, attracts)] = np.nan
        if attracts.size:
            rest = np.where(np.isnan(slopes[j]), model.slope, slopes[j]) * force[j]
            rest[attracts] = 0.0
            velocity = rest @ problem.X - problem.weight_decay * w[j]
            columns = (force[j, attracts, None] * problem.X[attracts]).T
            slopes[j, attracts] = lsq_linear(columns, -velocity, (model.slope, 1.0), tol=1e-14).x
    return slopes


def velocity(model: Any, problem: Any, theta: ArrayLike) -> Array:
    """Velocity dθ/dt (P,) of the exact flow, on kinks too, where the gradient by signs is another.

    For a first layer of one matrix.  On kinks that repel, where the flow does not stay, that of the inactive
    side.
    """
    if getattr(model, "first_depth", 1) > 1:
        raise ValueError(f"model must have first_depth=1 for the velocity on kinks; got {model}")
    w, a = _layers(model, theta)
    z, derivative = w @ problem.X.T, output_derivative(model, problem, theta)
    slopes = multipliers(model, problem, theta)
    slopes = np.where(np.isnan(slopes), model.slope, slopes)
    inner = -(slopes * (a.T @ derivative.T)) @ problem.X - problem.weight_decay * w
    outer = -derivative.T @ np.where(z > 0, z, model.slope * z).T - problem.weight_decay * a
    return model.pack([inner, outer if model.train_outer else np.zeros_like(outer)])


def on_kinks(model: Any, problem: Any, theta: ArrayLike) -> Objective:
    """The objective at a state: for a ReLU network on kinks, that of its flow along those on which it slides."""
    objective = Objective(model, problem)
    if not getattr(model, "piecewise", False):
        return objective
    o, theta = objective, objective.check_theta(theta)
    pattern = piecewise.new_pattern(o.dims, o.size, 1e-14, 0.0)
    piecewise.begin(
        o.gradient_kernel, 0.0, theta.copy(), o.data, o.dims, o.work, np.empty(o.size), pattern, ON_KINK
    )
    return objective


def output_derivative(model: Any, problem: Any, theta: ArrayLike) -> Array:
    """Derivative (n, k) of the loss by the outputs f(x_i), with the problem's factor."""
    f = model.function(theta, problem.X)
    n, k = f.shape
    work = np.concatenate([f.T.ravel(), np.empty(n * k)])
    labels = np.ascontiguousarray(problem.Y.T).ravel()
    losses.derivative(loss_code(problem), problem.factor, k, n, labels, 0, work, 0, n * k)
    return work[n * k :].reshape(k, n).T


def outputs(model: Any, problem: Any, theta: ArrayLike) -> Array:
    """Outputs f(x_i) (n, k) on the problem's inputs."""
    return model.function(theta, problem.X)


def cosines_to(directions: ArrayLike) -> Observable:
    """An observable: cosines (m, q) between the neurons and given directions (q, d)."""
    vectors = finite_array("directions", np.atleast_2d(np.asarray(directions, dtype=np.float64)), ("q", "d"))
    sizes = np.linalg.norm(vectors, axis=1)
    if np.any(sizes == 0):
        raise ValueError(f"directions must not be zero; direction {int(np.argmin(sizes))} is")
    units = vectors / sizes[:, None]

    def cosines(model: Any, problem: Any, theta: ArrayLike) -> Array:
        return neuron_directions(model, problem, theta) @ units.T

    return cosines


def outputs_at(X: ArrayLike) -> Observable:
    """An observable: outputs (n, k) at given inputs (n, d), such as a grid."""
    points = finite_array("X", X, ("n", "d"))

    def outputs_on_grid(model: Any, problem: Any, theta: ArrayLike) -> Array:
        return model.function(theta, points)

    return outputs_on_grid


def on(other: Any, observable: Observable) -> Observable:
    """An observable measured on another problem, such as the loss on test data: ``on(test, observe.loss)``."""

    def elsewhere(model: Any, problem: Any, theta: ArrayLike) -> Any:
        return observable(model, other, theta)

    elsewhere.__name__ = f"{getattr(observable, '__name__', 'observable')}_elsewhere"
    return elsewhere
