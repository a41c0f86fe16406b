"""Where losses with minima at infinity lead: the direction of the largest margin.

For the logistic, exponential and softmax losses on separable data the direction of a linear predictor tends to
that of the hard-margin support vector machine without intercept (arXiv 1710.10345), and so does that of a
deep linear network (arXiv 1906.05890; for one output 1810.02032).  The distance falls like 1 / log(1/L).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from gflow._check import of_type
from gflow.problem import Problem

Array = NDArray[np.float64]
#: A violated constraint or a multiplier below zero by this much, relative, is rounding.
_ROUNDING = 1e-9


class MaxMargin(NamedTuple):
    """The map of unit Frobenius norm with the largest margin.

    ``direction`` (k, d); ``margin``: its least y f(x), or least lead of the label's output over another;
    ``multipliers``: those ≥ 0 of the constraints of min ½‖W‖² with all margins ≥ 1, whose sum is 1 / margin²,
    (n,) for one output, (n, k) else (0 at the label's own); the support are those above zero.
    """

    direction: Array
    margin: float
    multipliers: Array


def max_margin(problem: Problem) -> MaxMargin:
    """Solve the hard-margin support vector machine without intercept of a classification problem.

    Parameters
    ----------
    problem : Problem
        Of kind ``"regression"``; labels ±1 with one output, or one-hot with several.

    Returns
    -------
    MaxMargin
        To rounding: the support is found by non-negative least squares, and the map then solves its equations.

    Raises
    ------
    ValueError
        If the labels are others, or the data are not linearly separable.

    Notes
    -----
    Least-distance programming: C. L. Lawson, R. J. Hanson, Solving Least Squares Problems (1974), ch. 23.
    The number of constraints is n, or n (k − 1): meant for some thousands of them at most.
    """
    rows, place = _constraints(of_type("problem", problem, Problem, "a gflow.Problem"))
    size = np.abs(rows).max()
    scaled = rows / size if size > 0 else rows
    count, unknowns = scaled.shape
    right = np.zeros(unknowns + 1)
    right[-1] = 1.0
    dual, _ = nnls(np.vstack([scaled.T, np.ones(count)]), right, maxiter=max(100, 30 * count))
    remainder = right.copy()
    remainder[:-1] -= scaled.T @ dual
    remainder[-1] -= dual.sum()
    support = np.flatnonzero(dual > 0)
    refused = "problem must be linearly separable by a map without intercept, with a margin above rounding; it is not"
    if remainder[-1] <= 1e-14:
        raise ValueError(
            f"{refused}: a mean of the rows y x is {np.linalg.norm(scaled.T @ dual) / dual.sum():.2g} of 0, relative"
        )
    w = np.linalg.lstsq(scaled[support], np.ones(len(support)), rcond=None)[0]
    weights = np.linalg.lstsq(scaled[support].T, w, rcond=None)[0]
    if np.min(scaled @ w) < 1.0 - _ROUNDING or weights.min() < -_ROUNDING * np.abs(weights).max():
        raise ValueError(refused)
    norm = float(np.linalg.norm(w))
    multipliers = np.zeros(count)
    multipliers[support] = np.maximum(weights, 0.0) / size**2
    shaped = np.zeros(problem.Y.shape)
    shaped[place] = multipliers
    return MaxMargin(
        (w / norm).reshape(problem.outputs, problem.inputs),
        float(size / norm),
        shaped[:, 0] if problem.outputs == 1 else shaped,
    )


def _constraints(problem: Problem) -> tuple[Array, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows z with the margins z · W, and the sample and output of each."""
    if problem.kind != "regression":
        raise ValueError(f"problem must hold labelled samples X, Y; it is of kind {problem.kind!r}")
    x, y = problem.X, problem.Y
    n, k = y.shape
    if k == 1:
        if not np.all(np.abs(y) == 1):
            raise ValueError(
                f"Y must hold one label +1 or -1 per sample; got a label {y[np.abs(y) != 1][0]:g}"
            )
        return y * x, (np.arange(n), np.zeros(n, dtype=np.int64))
    if not np.all((y == 0) | (y == 1)) or not np.all(y.sum(axis=1) == 1):
        raise ValueError(f"Y must be one-hot, with a single 1 in each row; got rows such as {y[0]!s:.60}")
    sample, other = np.nonzero(y == 0)
    rows = np.zeros((len(sample), k, x.shape[1]))
    each = np.arange(len(sample))
    rows[each, y.argmax(axis=1)[sample]] = x[sample]
    rows[each, other] = -x[sample]
    return rows.reshape(len(sample), -1), (sample, other)
