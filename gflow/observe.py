"""Observables: what to measure along a trajectory.

Every observable is a function ``f(model, problem, theta)`` of one state (P,).  Its name can be given
to ``flow(..., observe=[...])``; :func:`along` computes it afterwards at the saved states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow._check import finite_array, of_type
from gflow.margins import direction, linear_margin, margin
from gflow.neurons import (
    activation_pattern,
    multipliers,
    neuron_directions,
    neuron_norms,
    on_kinks,
    outer_weights,
    outputs,
    velocity,
)  # fmt: skip
from gflow.objective import Objective
from gflow.trajectory import Trajectory

Array = NDArray[np.float64]

#: States whose log(1/L) is less than this times that of another tell no more of a limit than the other.
APART = 1.5


def loss(model: Any, problem: Any, theta: ArrayLike) -> float:
    """Loss L(θ), weight decay included.

    Parameters
    ----------
    model : Model with a ``loss``
    problem : Problem
    theta : array (P,)

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If the model has no loss or does not fit the problem, or theta is not a finite array (P,).
    """
    return Objective(model, problem).loss(theta)


def log_loss(model: Any, problem: Any, theta: ArrayLike) -> float:
    """Logarithm of the loss, exact where the loss itself would underflow.

    Parameters
    ----------
    model : Model whose kernels heed ``problem.logarithm``
    problem : Problem
    theta : array (P,)

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If the loss has no logarithm (see ``Problem.log``), or theta is not a finite array (P,).
    """
    if not getattr(model, "logarithms", False):
        raise ValueError(f"log_loss needs a model that knows log L; {type(model).__name__} does not")
    return Objective(model, problem.log).loss(theta)


def gradient_norm(model: Any, problem: Any, theta: ArrayLike) -> float:
    """Euclidean norm ‖∇L(θ)‖ of the gradient; for a ReLU network the speed of its flow, on kinks too.

    Parameters
    ----------
    model : Model
    problem : Problem
    theta : array (P,)

    Returns
    -------
    float
        In units of loss / parameter.

    Raises
    ------
    ValueError
        If the model does not fit the problem, or theta is not a finite array (P,).
    """
    objective = Objective(model, problem)
    if getattr(model, "piecewise", False):
        return float(np.linalg.norm(velocity(model, problem, objective.check_theta(theta))))
    return float(np.linalg.norm(objective.gradient(theta)))


def end_to_end(model: Any, problem: Any, theta: ArrayLike) -> Array:
    """End-to-end map W.

    Parameters
    ----------
    model : Model with an ``end_to_end`` map
    problem : Problem
    theta : array (P,)

    Returns
    -------
    array (k, d)
        Outputs by inputs.

    Raises
    ------
    ValueError
        If the model has no end-to-end map, or theta is not a finite array (P,).
    """
    return _need(model, "end_to_end")(theta)


def singular_values(model: Any, problem: Any, theta: ArrayLike) -> Array:
    """Singular values of the end-to-end map.

    Parameters
    ----------
    model : Model with an ``end_to_end`` map
    problem : Problem
    theta : array (P,)

    Returns
    -------
    array (min(k, d),)
        Descending.

    Raises
    ------
    ValueError
        If the model has no end-to-end map, or theta is not a finite array (P,).
    """
    return np.asarray(np.linalg.svd(end_to_end(model, problem, theta), compute_uv=False), dtype=np.float64)


def mode_strengths(model: Any, problem: Any, theta: ArrayLike) -> Array:
    """Strengths u_iᵀ W v_i of the end-to-end map in the singular basis of the target.

    The basis is ``problem.target_svd``.  Source: arXiv 1312.6120.

    Parameters
    ----------
    model : Model with an ``end_to_end`` map
    problem : Problem
    theta : array (P,)

    Returns
    -------
    array (min(k, d),)
        In the order of the target's singular values, descending; a strength may be negative.

    Raises
    ------
    ValueError
        If the problem determines no target (it is of kind ``"sensing"`` or ``"completion"``), the model
        has no end-to-end map, or theta is not a finite array (P,).
    """
    u, _, v = problem.target_svd
    return np.einsum("ai,ab,bi->i", u, end_to_end(model, problem, theta), v)


def effective_ranks(matrix: ArrayLike) -> dict[str, float]:
    """The four effective ranks of a matrix.

    Parameters
    ----------
    matrix : array (k, d)

    Returns
    -------
    dict
        ``"nuclear"``: ‖W‖_* / ‖W‖₂ (arXiv 2011.13772); ``"entropy"``: −Σ p ln p with p the singular
        values over their sum (arXiv 2103.10427); ``"roy_vetterli"``: its exponential;
        ``"stable"``: ‖W‖_F² / ‖W‖₂².  Floats; NaN for a zero matrix.

    Raises
    ------
    ValueError
        If it is not a finite matrix.
    """
    s = np.linalg.svd(finite_array("matrix", matrix, ("k", "d")), compute_uv=False)
    if s[0] == 0:
        return dict.fromkeys(("nuclear", "entropy", "roy_vetterli", "stable"), float("nan"))
    p = s / s.sum()
    p = p[p > 0]
    entropy = max(float(-np.sum(p * np.log(p))), 0.0)
    relative = s / s[0]
    return {
        "nuclear": float(relative.sum()),
        "entropy": entropy,
        "roy_vetterli": float(np.exp(entropy)),
        "stable": float(np.sum(relative**2)),
    }


def nuclear_rank(model: Any, problem: Any, theta: ArrayLike) -> float:
    """Effective rank ‖W‖_* / ‖W‖₂ of the end-to-end map (arXiv 2011.13772).

    Parameters
    ----------
    model : Model with an ``end_to_end`` map
    problem : Problem
    theta : array (P,)

    Returns
    -------
    float
        Dimensionless; NaN for W = 0.

    Raises
    ------
    ValueError
        If the model has no end-to-end map, or theta is not a finite array (P,).
    """
    return effective_ranks(end_to_end(model, problem, theta))["nuclear"]


def entropy_rank(model: Any, problem: Any, theta: ArrayLike) -> float:
    """Effective rank −Σ p ln p of the end-to-end map (arXiv 2103.10427).

    p are the singular values over their sum.

    Parameters
    ----------
    model : Model with an ``end_to_end`` map
    problem : Problem
    theta : array (P,)

    Returns
    -------
    float
        In nats; NaN for W = 0.

    Raises
    ------
    ValueError
        If the model has no end-to-end map, or theta is not a finite array (P,).
    """
    return effective_ranks(end_to_end(model, problem, theta))["entropy"]


def roy_vetterli_rank(model: Any, problem: Any, theta: ArrayLike) -> float:
    """Effective rank exp(−Σ p ln p) of the end-to-end map.

    p are the singular values over their sum.

    Parameters
    ----------
    model : Model with an ``end_to_end`` map
    problem : Problem
    theta : array (P,)

    Returns
    -------
    float
        Dimensionless; NaN for W = 0.

    Raises
    ------
    ValueError
        If the model has no end-to-end map, or theta is not a finite array (P,).
    """
    return effective_ranks(end_to_end(model, problem, theta))["roy_vetterli"]


def stable_rank(model: Any, problem: Any, theta: ArrayLike) -> float:
    """Stable rank ‖W‖_F² / ‖W‖₂² of the end-to-end map.

    Parameters
    ----------
    model : Model with an ``end_to_end`` map
    problem : Problem
    theta : array (P,)

    Returns
    -------
    float
        Dimensionless; NaN for W = 0.

    Raises
    ------
    ValueError
        If the model has no end-to-end map, or theta is not a finite array (P,).
    """
    return effective_ranks(end_to_end(model, problem, theta))["stable"]


def imbalance(model: Any, problem: Any, theta: ArrayLike) -> Array:
    """Entries of the imbalance matrices W_{l+1}ᵀW_{l+1} − W_l W_lᵀ, l = 1 … N − 1.

    The flow conserves each; weight decay μ makes them decay as e^(−2μt).  As a list of matrices:
    ``model.imbalance(theta)``; their norms: :func:`imbalance_norms`.

    Parameters
    ----------
    model : Model with ``imbalance``, such as DeepLinear
    problem : Problem
    theta : array (P,)

    Returns
    -------
    array (M,)
        Matrix by matrix, each (w_l, w_l) row by row: M = Σ w_l² over the hidden widths w_l; empty for N = 1.

    Raises
    ------
    ValueError
        If the model has no imbalance matrices, or theta is not an array (P,).
    """
    return np.concatenate([np.empty(0), *(m.ravel() for m in _need(model, "imbalance")(theta))])


def imbalance_norms(model: Any, problem: Any, theta: ArrayLike) -> Array:
    """Frobenius norms of the imbalance matrices W_{l+1}ᵀW_{l+1} − W_l W_lᵀ, l = 1 … N − 1.

    Parameters
    ----------
    model : Model with ``imbalance``, such as DeepLinear
    problem : Problem
    theta : array (P,)

    Returns
    -------
    array (N − 1,)

    Raises
    ------
    ValueError
        If the model has no imbalance matrices, or theta is not an array (P,).
    """
    return np.array([np.linalg.norm(m) for m in _need(model, "imbalance")(theta)])


def hessian_eigenvalues(model: Any, problem: Any, theta: ArrayLike, k: int | None = None) -> Array:
    """Eigenvalues of the Hessian of the loss.

    Parameters
    ----------
    model : Model with an ``hvp``
    problem : Problem
    theta : array (P,)
    k : int, optional
        How many of the largest; default all P.

    Returns
    -------
    array (k,)
        Descending.

    Raises
    ------
    ValueError
        If ``k`` is not a whole number ≥ 1, all are asked for with P > 5000, the model has no
        Hessian-vector product, or theta is not a finite array (P,).

    Notes
    -----
    Dense for P ≤ 500 or more than P / 4 eigenvalues, else ``scipy.sparse.linalg.eigsh`` on Hessian-vector
    products.
    """
    return on_kinks(model, problem, theta).eigenvalues(theta, k)


def sharpness(model: Any, problem: Any, theta: ArrayLike) -> float:
    """Largest eigenvalue of the Hessian of the loss; for a ReLU network on kinks, along those on which it slides.

    Parameters
    ----------
    model : Model with an ``hvp``
    problem : Problem
    theta : array (P,)

    Returns
    -------
    float
        In units of 1 / time: gradient descent is stable below 2 / step size.

    Raises
    ------
    ValueError
        If the model has no Hessian-vector product, or theta is not a finite array (P,).
    """
    return float(on_kinks(model, problem, theta).eigenvalues(theta, 1)[0])


def smallest_eigenvalue(model: Any, problem: Any, theta: ArrayLike) -> float:
    """Smallest eigenvalue of the Hessian of the loss.

    Parameters
    ----------
    model : Model with an ``hvp``
    problem : Problem
    theta : array (P,)

    Returns
    -------
    float
        In units of 1 / time; below zero where the flow spreads.

    Raises
    ------
    ValueError
        If the model has no Hessian-vector product, or theta is not a finite array (P,).
    """
    return float(on_kinks(model, problem, theta).eigenvalues(theta, 1, "smallest")[0])


def ntk(model: Any, problem: Any, theta: ArrayLike, X: ArrayLike | None = None) -> Array:
    """Finite-width neural tangent kernel J Jᵀ with J = ∂f(x_i)_a / ∂θ.

    Parameters
    ----------
    model : Model with a ``jacobian``
    problem : Problem
    theta : array (P,)
    X : array (n, d), optional
        Inputs; default the problem's, or the d unit vectors where it is not of kind ``"regression"``.

    Returns
    -------
    array (n k, n k)
        Rows and columns sample by sample, the k outputs of a sample together.

    Raises
    ------
    ValueError
        If the model has no Jacobian, X has other than d columns, or theta is not a finite array (P,).
    """
    if X is None:
        X = problem.X if getattr(problem, "kind", "") == "regression" else np.eye(problem.inputs)
    j = _need(model, "jacobian")(theta, X)
    j = j.reshape(-1, j.shape[-1])
    return j @ j.T


#: The observables that have a name.
OBSERVABLES: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        loss, gradient_norm, end_to_end, singular_values, mode_strengths, nuclear_rank, entropy_rank,
        roy_vetterli_rank, stable_rank, imbalance, imbalance_norms, hessian_eigenvalues, sharpness,
        smallest_eigenvalue, ntk, activation_pattern, multipliers, neuron_norms, neuron_directions, outer_weights,
        outputs, margin, velocity, linear_margin, direction, log_loss,
    )
}  # fmt: skip


def by_name(name: str, argument: str = "observe") -> Callable[..., Any]:
    """The observable of this name, which came as the ``argument`` of that name.

    Raises
    ------
    ValueError
        If there is none; it lists the names.
    """
    if not isinstance(name, str) or name not in OBSERVABLES:
        raise ValueError(f"{argument} must name one of {', '.join(OBSERVABLES)}; got {name!r}")
    return OBSERVABLES[name]


def along(trajectory: Trajectory, observable: str | Callable[..., Any]) -> Array:
    """An observable at the saved states of a trajectory; taken from it if it was computed on the way.

    Parameters
    ----------
    trajectory : Trajectory
    observable : str or callable
        A name out of :data:`OBSERVABLES` or of what was observed on the way, or
        ``f(model, problem, theta)`` with a number or an array of one shape for every state.

    Returns
    -------
    array (T, ...)
        The observable's own shape after the axis of the saved times.

    Raises
    ------
    ValueError
        If an argument is of another type, no observable has the name, or the model lacks what it needs.
    """
    of_type("trajectory", trajectory, Trajectory, "a gflow.Trajectory")
    if isinstance(observable, str):
        if observable in trajectory.observed:
            return trajectory.observed[observable]
        observable = by_name(observable, "observable")
    elif not callable(observable):
        raise ValueError(
            f"observable must be a name or a callable f(model, problem, theta); got {observable!r:.80}"
        )
    model, problem = trajectory.spec["model"], trajectory.spec["problem"]
    return np.array([observable(model, problem, theta) for theta in trajectory.theta])


class Limit(NamedTuple):
    """The limit of an observable, and how far off it may be.

    ``value``: of the observable's shape; ``error``: estimated bound on its distance from the limit, as the
    Euclidean norm over all entries, inf where the states show no convergence; ``power``, ``order``: of the series in
    log(1/L)^(−power), the number of terms that were taken off.
    """

    value: Array
    error: float
    power: float
    order: int


def limit(trajectory: Trajectory, observable: str | Callable[..., Any]) -> Limit:
    """Limit of an observable as the loss tends to zero, by extrapolation in 1 / log(1/L).

    Parameters
    ----------
    trajectory : Trajectory
        With at least four saved states whose log(1/L) > 0 grows by factors of 1.5 to 10, such as
        ``t=np.geomspace(1e2, 1e6, 13)`` with ``clock="loss"``.  More states give more orders and a smaller error;
        of closer ones some are left out.
    observable : str or callable
        As for :func:`along`, such as ``"direction"``.

    Returns
    -------
    Limit
        Of two series, in 1/log(1/L) and in its power 1/N for a network of degree N (``model.degree``), and of
        all orders, the one of the smallest error.

    Raises
    ------
    ValueError
        If an argument is wrong, there are fewer than four such states, or the loss has no logarithm.

    Notes
    -----
    Along a network of degree N what the data do not hold back falls like log(1/L)^(−1/N), the rest like
    1 / log(1/L).  Every order is taken at the last states, one state before and two before.  What falls by a
    factor R from one to the next, and changes by D, is then D / (R − 1) from its limit.  The error is max(1, 3 / (R − 1)) D,
    with the least R among that of the slowest kind of term and those that this order and lower ones show, which are
    less where there are terms of neither series, such as logarithms.  Values may agree by chance: it is no less than a tenth of
    what the change one state before gives, nor than the change from the order below, nor than five times the tolerance of the run,
    times the sum of the weights of the states.  It is an estimate all the same: of terms that come to show later it knows nothing.
    """
    values = np.asarray(along(trajectory, observable), dtype=np.float64)
    slowest = 1.0 / getattr(trajectory.spec["model"], "degree", 1)
    levels = -trajectory.log_loss
    kept = levels > 0
    levels, values = levels[kept], values[kept]
    apart = _apart(levels) if np.all(np.diff(levels) > 0) else []
    if len(apart) < 4:
        raise ValueError(
            f"trajectory must hold at least four states of increasing log(1/L) > 0, each {APART:g} times the one "
            f"before; it has {len(apart)} of these"
        )
    tolerance = 5.0 * trajectory.spec.get("rtol", 0.0) + 10.0 * float(np.finfo(float).eps)
    noise = tolerance * float(np.linalg.norm(values[-1]))
    best = Limit(values[-1], np.inf, slowest, 0)
    for power in {1.0, slowest}:
        for found in _orders(levels[apart], values[apart], power, slowest, noise):
            if found.error < best.error:
                best = found
    return best


def _apart(levels: Array) -> list[int]:
    """The last of the rising levels, and before it the next ones that are ``APART``."""
    kept = [len(levels) - 1] if len(levels) else []
    for i in range(len(levels) - 2, -1, -1):
        if levels[i] * APART <= levels[kept[-1]] * (1 + 1e-9):
            kept.append(i)
    return kept[::-1]


def _orders(levels: Array, values: Array, power: float, slowest: float, noise: float) -> Iterator[Limit]:
    """The extrapolations of all orders by one series, and the error of each; see :func:`limit`."""
    x, n, shown, below = levels**-power, len(levels), np.inf, None
    for order in range(n - 2):
        windows = [slice(n - 1 - order - back, n - back) for back in range(3)]
        weights = [_at_zero(x[window]) for window in windows]
        found = [np.tensordot(w, values[window], 1) for w, window in zip(weights, windows, strict=True)]
        gap, before = (float(np.linalg.norm(b - a)) for a, b in pairwise(found))
        rounding = noise * float(np.abs(weights[0]).sum())
        if gap > rounding:
            shown = min(shown, before / gap)
        usual = float(np.min(levels[n - 2 - order :] / levels[n - 3 - order : -1])) ** slowest
        slower = min(shown, usual)
        left = max(1.0, 3.0 / (slower - 1.0)) if slower > 1.0 else np.inf
        error = max(rounding, left * max(gap, 0.1 * before)) if max(gap, before) > 0 else rounding
        if below is not None:
            error = max(error, float(np.linalg.norm(found[0] - below)))
        below = found[0]
        yield Limit(found[0], error, power, order)


def _at_zero(x: Array) -> Array:
    """Weights of the values at x in that of their polynomial at 0."""
    apart = x - x[:, None]
    np.fill_diagonal(apart, x)
    return np.asarray(np.prod(x / apart, axis=1))


def _need(model: Any, name: str) -> Callable[..., Any]:
    method = getattr(model, name, None)
    if method is None:
        raise ValueError(f"this observable needs model.{name}, which {type(model).__name__} does not have")
    return method
