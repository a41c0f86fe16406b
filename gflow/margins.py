"""Observables of margins, and of the direction in which a network goes to infinity.

Functions ``f(model, problem, theta)`` of one state (P,), as in :mod:`gflow.observe`, which lists them; and a
maker of such functions (:func:`angle_to`), whose result goes to ``observe={"name": ...}``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow._check import finite_array

Array = NDArray[np.float64]
Observable = Callable[[Any, Any, ArrayLike], Any]


def margin(model: Any, problem: Any, theta: ArrayLike) -> float:
    """Normalised margin: the least y f(x), or the label's output less the largest other, over ‖θ‖^degree.

    For networks that are homogeneous in their parameters, of the degree that counts the trained matrices of a
    product (a fixed outer layer is none of them); ‖θ‖ is the norm of what is trained.
    """
    matrices = model.unpack(theta)
    trained = matrices if getattr(model, "train_outer", True) else matrices[:-1]
    size = np.sqrt(sum(float(np.sum(w**2)) for w in trained))
    return _least_lead(model, problem, theta) / size**model.degree if size > 0 else float("nan")


def linear_margin(model: Any, problem: Any, theta: ArrayLike) -> float:
    """Margin of the end-to-end map: the least y f(x), or lead of the label's output, over ‖W‖_F; NaN for W = 0.

    Its limit on separable data is that of ``theory.separable.max_margin``.
    """
    size = float(np.linalg.norm(_end_to_end(model, theta)))
    return _least_lead(model, problem, theta) / size if size > 0 else float("nan")


def direction(model: Any, problem: Any, theta: ArrayLike) -> Array:
    """End-to-end map over its Frobenius norm, W / ‖W‖_F (k, d); NaN for W = 0."""
    w = _end_to_end(model, theta)
    size = np.linalg.norm(w)
    return w / size if size > 0 else np.full_like(w, np.nan)


def angle_to(map: ArrayLike) -> Observable:
    """An observable: the angle in radians between the end-to-end map and a given one (k, d), exact if small."""
    wanted = finite_array("map", map, ("k", "d"))
    if not wanted.any():
        raise ValueError("map must not be zero, which has no direction; it is")
    unit = wanted / np.linalg.norm(wanted)

    def angle(model: Any, problem: Any, theta: ArrayLike) -> float:
        own = direction(model, problem, theta)
        if own.shape != unit.shape:
            raise ValueError(f"map must have the shape {own.shape} of the end-to-end map; got {unit.shape}")
        return 2.0 * float(np.arctan2(np.linalg.norm(own - unit), np.linalg.norm(own + unit)))

    return angle


def _end_to_end(model: Any, theta: ArrayLike) -> Array:
    if not hasattr(model, "end_to_end"):
        raise ValueError(
            f"model must have an end-to-end map for this observable; {type(model).__name__} has not"
        )
    return model.end_to_end(theta)


def _least_lead(model: Any, problem: Any, theta: ArrayLike) -> float:
    """The least y f(x), or lead of the label's output over the largest other."""
    f, y = model.function(theta, problem.X), problem.Y
    if y.shape[1] == 1:
        return float(np.min(np.sign(y) * f))
    right = np.arange(len(f)), y.argmax(axis=1)
    others = f.copy()
    others[right] = -np.inf
    return float(np.min(f[right] - others.max(axis=1)))
