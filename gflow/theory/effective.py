r"""Where descent with large steps and stochastic flow of diagonal networks end: as the flow from another start.

At depth 2 gradient descent multiplies the branches a, b of :mod:`gflow.theory.diagonal` by 1 ∓ m x_k, x_k = γ ∇_β L_k the
step in β's gradient (of a batch or of all samples), m = κ/2 = 2 for w₊² − w₋² and w², 1 for u ∘ v.  So, exactly,

    β = a_∞² e^{κη} − b_∞² e^{−κη},    η = −Σ x_k,
    log a_∞ = log a + Σ (log |1 − m x_k| + m x_k),    log b_∞ = log b + Σ (log |1 + m x_k| − m x_k),

and as η is in the row space of X, an interpolator that descent converges to is the one that a flow from (a_∞, b_∞)
converges to.  α_∞² = a_∞ b_∞ = α² e^{−Gain}, Gain = Σ q(m x_k), q(x) = −log |1 − x²|.  (arXiv 2302.08982)

Stochastic gradient flow dw = −∇L dt + noise of the covariance of batches of one sample, whose residuals are all
counted as the mean one, moves the logarithms of both branches by −½ κ² f γ (XᵀX)_ii ∫ L dt each (Itô), f the
problem's factor, and otherwise within the row space of X.  (arXiv 2106.09524, for f = 1/(4n): −2 γ (XᵀX/n)_ii ∫ L dt)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow._check import finite_array, non_negative, positive
from gflow.problem import Problem
from gflow.theory.argmin import row_space
from gflow.theory.bias import limit_of
from gflow.theory.diagonal import (
    Mirror,
    branches,
    family,
    from_branches,
    mirror,
    no_decay,
    rate_of,
    regression,
)
from gflow.theory.prediction import Hypothesis, Prediction

Array = NDArray[np.float64]
#: Steps at the end that count as the last ones, and how small they, or a path's residual, are after convergence.
_LAST, _CONVERGED = 0.01, 1e-5


def q(x: ArrayLike) -> Array:
    """q(x) = −log |1 − x²| (elementwise): ≥ 0 for |x| ≤ √2, between x² and 2 x² for x² ≤ 0.79, inf at ±1.

    Source: arXiv 2302.08982.
    """
    square = np.square(np.asarray(x, dtype=np.float64))
    with np.errstate(divide="ignore"):
        return -np.where(square < 0.5, np.log1p(-np.minimum(square, 0.5)), np.log(np.abs(1 - square)))


def gain(model: Any, gradients: ArrayLike, step_size: ArrayLike) -> Array:
    """Gain (d,) of gradient descent: α_∞² = α² e^{−Gain}.

    Parameters
    ----------
    model : Diagonal
        Of depth 2.
    gradients : array (K, d)
        ∇_β of the loss of each step's batch, at β before the step.  For a run of :func:`gflow.descend` with ``batch_size``
        and ``save_every=1``, :func:`gflow.iterate.batches` gives each step's samples, and with these, X, y and the factor f
        of the problem (n samples in it, b in a batch, whose loss counts n / b fold) the square loss has ::

            rows = gflow.iterate.batches(run)  # (K, b)
            beta = model.predictor(run.theta[:-1])  # (K, d)
            off = np.einsum("kbd,kd->kb", X[rows], beta) - y[rows]
            gradients = 2 * f * (n / b) * np.einsum("kbd,kb->kd", X[rows], off)
    step_size : float or array (K,)
        γ.

    Returns
    -------
    array (d,)

    Raises
    ------
    ValueError
        If an argument is invalid or the depth is not 2.

    Notes
    -----
    Source: arXiv 2302.08982.
    """
    return q(_steps(model, gradients, step_size)).sum(axis=0)


def descent_start(model: Any, theta0: ArrayLike, gradients: ArrayLike, step_size: ArrayLike) -> Mirror:
    """The mirror map of the flow that ends where descent with these steps does.

    Parameters
    ----------
    model, gradients, step_size
        As in :func:`gain`.
    theta0 : array (P,)
        Start of the descent.

    Returns
    -------
    Mirror
        With ``log_alpha`` log α_∞ (of w₊ = w₋ = α; in the product form u = √2 α, v = 0 it is log(α_∞ / √2)).

    Raises
    ------
    ValueError
        If the arguments are invalid or do not fit each other.
    """
    x = _steps(model, gradients, step_size)
    log_a, log_b = branches(model, theta0)
    if x.shape[1] != len(log_a):
        raise ValueError(f"gradients must have the {len(log_a)} coordinates of theta0; got {x.shape[1]}")
    form, depth = family(model)
    up = log_a + _log_share(-x).sum(axis=0)
    down = log_b + _log_share(x).sum(axis=0)
    return from_branches(up, down, depth, rate_of(form, depth))


def descent_limit(
    model: Any,
    problem: Problem,
    theta0: ArrayLike,
    gradients: ArrayLike,
    step_size: ArrayLike,
    force: bool = False,
) -> Prediction:
    """Where gradient descent or stochastic gradient descent with these steps ends.

    Parameters
    ----------
    model, theta0, gradients, step_size
        As in :func:`descent_start`; :func:`gain` says how to get the gradients from a run.
    problem : Problem
        Samples with one output, square loss.
    force : bool
        Compute the limit although a hypothesis fails.

    Returns
    -------
    Prediction
        Of the observable ``"end_to_end"`` (T, 1, d) at t = 0 and t = inf, NaN between.

    Raises
    ------
    ValueError
        If the arguments are invalid or do not fit each other.

    Notes
    -----
    Exact for iterates that converge to an interpolator; steps after the recorded ones are taken as 0.  Theorem 1 of
    arXiv 2302.08982.
    """
    effective = descent_start(model, theta0, gradients, step_size)
    x, y = regression(problem, len(effective.start), "square")
    steps = _steps(model, gradients, step_size)
    size = np.abs(steps).max(axis=1)
    last = size[-max(1, int(np.ceil(_LAST * len(size)))) :].max()
    total = steps.sum(axis=0)
    rows = row_space(x, y)[0]
    off = float(np.linalg.norm(total - rows.T @ (rows @ total)))
    return limit_of(
        effective,
        x,
        y,
        "arXiv 2302.08982, theorem 1",
        (
            no_decay(problem),
            Hypothesis(
                "descent has converged (defect: the last steps, relative to the largest)",
                float(last / size.max()) if size.max() > 0 else 0.0,
                tolerance=_CONVERGED,
            ),
            Hypothesis(
                "gradients in the row space of X (defect: of their sum)",
                off / float(np.linalg.norm(total)) if total.any() else 0.0,
            ),
        ),
        force,
        mirror(model, theta0).beta0,
    )


def noise_start(
    model: Any, problem: Problem, theta0: ArrayLike, loss_integral: float, step_size: float
) -> Mirror:
    """The mirror map of the flow that ends where a path of stochastic gradient flow does.

    Parameters
    ----------
    model : Diagonal
        Of depth 2.
    problem : Problem
        Samples with one output, square loss, any factor.
    theta0 : array (P,)
        Start.
    loss_integral : float
        ∫ L dt along the path, L with the problem's factor.
    step_size : float
        γ of the stochastic gradient descent, with batches of one sample, that the flow stands for.

    Returns
    -------
    Mirror
        With ``log_alpha`` log α_∞ as in :func:`descent_start`.

    Raises
    ------
    ValueError
        If the arguments are invalid or do not fit each other, or the depth is not 2.

    Notes
    -----
    Source: arXiv 2106.09524.
    """
    form, depth = _two_layers(model)
    log_a, log_b = branches(model, theta0)
    x, _ = regression(problem, len(log_a), "square")
    rate = rate_of(form, depth)
    total = non_negative("loss_integral", loss_integral)
    assert problem.factor is not None
    shrink = 0.5 * rate**2 * problem.factor * positive("step_size", step_size) * total * np.sum(x**2, axis=0)
    return from_branches(log_a - shrink, log_b - shrink, depth, rate)


def noise_limit(
    model: Any,
    problem: Problem,
    theta0: ArrayLike,
    loss_integral: float,
    step_size: float,
    last_loss: float,
    force: bool = False,
) -> Prediction:
    """Where a path of stochastic gradient flow ends, from the integral of its loss.

    Parameters
    ----------
    model, problem, theta0, loss_integral, step_size
        As in :func:`noise_start`.
    last_loss : float
        L at the end of the path, with the problem's factor: whether the path has converged.
    force : bool
        Compute the limit although a hypothesis fails.

    Returns
    -------
    Prediction
        Of the observable ``"end_to_end"`` (T, 1, d) at t = 0 and t = inf, NaN between.

    Raises
    ------
    ValueError
        As :func:`noise_start`.

    Notes
    -----
    Exact for paths that converge to an interpolator; what the loss adds to its integral after the recorded path is taken
    as 0.  Source: arXiv 2106.09524.
    """
    last = non_negative("last_loss", last_loss)
    effective = noise_start(model, problem, theta0, loss_integral, step_size)
    x, y = regression(problem, len(effective.start), "square")
    start = mirror(model, theta0).beta0
    assert problem.factor is not None
    size = float(np.linalg.norm(y))
    off = np.sqrt(last / problem.factor)
    converged = Hypothesis(
        "the path has converged (defect: ‖X β − y‖ / ‖y‖ at its end)",
        float(off / size) if size > 0 else float(off),
        tolerance=_CONVERGED,
    )
    return limit_of(effective, x, y, "arXiv 2106.09524", (no_decay(problem), converged), force, start)


def _two_layers(model: Any) -> tuple[str, int]:
    form, depth = family(model)
    if depth != 2:
        raise ValueError(f"model.depth must be 2 here; got {depth}")
    return form, depth


def _steps(model: Any, gradients: ArrayLike, step_size: ArrayLike) -> Array:
    """m γ ∇_β L_k (K, d)."""
    form, depth = _two_layers(model)
    g = finite_array("gradients", gradients, ("K", "d"))
    if np.ndim(step_size) == 0:
        gamma = np.full(len(g), positive("step_size", step_size))
    else:
        gamma = finite_array("step_size", step_size, (len(g),))
        if gamma.min() <= 0:
            raise ValueError(f"step_size must be > 0; got {gamma.min():g}")
    return 0.5 * rate_of(form, depth) * gamma[:, None] * g


def _log_share(x: Array) -> Array:
    """log |1 + x| − x."""
    with np.errstate(divide="ignore"):
        return np.where(np.abs(x) < 0.5, np.log1p(np.clip(x, -0.5, 0.5)), np.log(np.abs(1 + x))) - x
