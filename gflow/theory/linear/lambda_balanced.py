"""Two layers from any λ-balanced start, aligned or not: all modes together, by a matrix Riccati equation."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import qr

from gflow._check import finite_array
from gflow.models.linear import DeepLinear
from gflow.problem import Problem
from gflow.theory.linear.bounds import Cause, Path, Sizes
from gflow.theory.linear.layers import norm2, relative
from gflow.theory.linear.setting import DETERMINED, inputs_of, weights_of
from gflow.theory.prediction import Hypothesis, Prediction, times_of

Array = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)


def riccati(t: ArrayLike, target: ArrayLike, W1: ArrayLike, W2: ArrayLike) -> Array:
    r"""Exact two-layer flow W1' = W2ᵀE, W2' = E W1ᵀ, E = target − W2 W1, from a λ-balanced start.

    Parameters
    ----------
    t : array (T,)
        Finite times ≥ 0.
    target : array (k, d)
    W1 : array (h, d)
    W2 : array (k, h)
        Start with W2ᵀW2 − W1W1ᵀ = λ I; λ is read off it.

    Returns
    -------
    qq : array (T, d + k, d + k)
        Q Qᵀ(t) with Q = [W1ᵀ; W2]: W1ᵀW1 = ``qq[:, :d, :d]``, W2W1 = ``qq[:, d:, :d]`` and
        W2W2ᵀ = ``qq[:, d:, d:]``.

    Raises
    ------
    ValueError
        If shapes do not fit, entries are not finite, a time is negative, or the start is not λ-balanced
        (to 1e-6, relative to the two terms).

    Notes
    -----
    Q' = FQ − ½QQᵀQ with F = [[−λ/2, targetᵀ], [target, λ/2]], so
    QQᵀ = e^{Ft}Q0 (I + Q0ᵀ∫e^{2Fr}dr Q0)⁻¹ Q0ᵀe^{Ft}, here by a row-sorted column-pivoted QR in the
    eigenbasis of F, with the rows' growth kept in their exponents, so that nothing overflows.  Needs
    neither full rank nor an invertible target.
    Source: arXiv 2409.14623 (after Fukumizu 1998).
    """
    goal, w1, w2 = checked_layers(target, W1, W2)
    return _riccati(times_of(t), goal, w1, w2, required_balance(w1, w2))


def checked_layers(target: ArrayLike, W1: ArrayLike, W2: ArrayLike) -> tuple[Array, Array, Array]:
    """target (k, d), W1 (h, d) and W2 (k, h) as arrays, or a ValueError that names the one that does not fit."""
    w1 = finite_array("W1", W1, ("h", "d"))
    w2 = finite_array("W2", W2, ("k", w1.shape[0]))
    return finite_array("target", target, (w2.shape[0], w1.shape[1])), w1, w2


def _lambda_balance(w1: Array, w2: Array) -> tuple[float, float]:
    """λ, and ‖W2ᵀW2 − W1W1ᵀ − λI‖₂ relative to the larger term."""
    above, below = w2.T @ w2, w1 @ w1.T
    excess = above - below
    balance = float(np.trace(excess)) / len(excess)
    return balance, relative(norm2(excess - balance * np.eye(len(excess))), norm2(above), norm2(below))


def required_balance(w1: Array, w2: Array) -> float:
    """λ, or a ValueError where there is none."""
    balance, defect = _lambda_balance(w1, w2)
    if defect > 1e-6:
        raise ValueError(
            f"W1 and W2 must satisfy W2ᵀW2 − W1W1ᵀ = λI; they miss it by {defect:.2g} relative to the terms"
        )
    return balance


def _riccati(times: Array, target: Array, w1: Array, w2: Array, balance: float) -> Array:
    return solve_riccati(times, riccati_matrix(target, balance), np.vstack([w1.T, w2]))


def riccati_matrix(target: Array, balance: float) -> Array:
    """F = [[−λ/2, targetᵀ], [target, λ/2]]."""
    k, d = target.shape
    half = 0.5 * balance
    return np.block([[-half * np.eye(d), target.T], [target, half * np.eye(k)]])


def solve_riccati(times: Array, generator: Array, start: Array) -> Array:
    """Q Qᵀ (T, n, n) of Q' = FQ − ½QQᵀQ with a symmetric F, from Q(0) (n, h)."""
    mu, basis = np.linalg.eigh(generator)
    rows = basis.T @ start
    n = len(start)
    out = np.empty((len(times), n, n))
    for i, t in enumerate(times):
        if t == 0:
            out[i] = start @ start.T
            continue
        rate = np.abs(mu)
        x = 2 * rate * t
        safe = np.where(rate > 0, 2 * rate, 1.0)
        weight = np.sqrt(np.where(rate > 0, -np.expm1(-x) / safe, t))  # √∫e^{2μr}dr = e^{max(μ,0)t} · weight
        exponents = _fit_exponents(np.concatenate([np.maximum(mu, 0.0) * t, np.zeros(start.shape[1])]))
        stacked = np.exp(exponents)[:, None] * np.vstack([weight[:, None] * rows, np.eye(start.shape[1])])
        order = np.argsort(-np.abs(stacked).max(axis=1), kind="stable")
        q = np.empty_like(stacked)
        q[order] = qr(stacked[order], mode="economic", pivoting=True)[0]
        z = basis @ ((np.exp(np.minimum(mu, 0.0) * t) / weight)[:, None] * q[:n])
        out[i] = z @ z.T
    return out


def _fit_exponents(exponents: Array, span: float = 650.0) -> Array:
    """Exponents of the rows, shifted to the middle of the floating-point range.

    A common factor leaves the Q of a QR factorisation alone.  Where the whole range does not fit, wide gaps
    are narrowed: rows that dominate others by e^gap see them only through e^(−2 gap).  Beyond some thirty
    distinct exponents the topmost share one, which changes nothing while their rows are independent.
    """
    values, inverse = np.unique(exponents, return_inverse=True)
    gaps = np.diff(values)
    if gaps.sum() > span:
        gaps = np.minimum(gaps, max(span / len(gaps), 20.0))
    placed = np.minimum(np.concatenate([[0.0], np.cumsum(gaps)]), span)
    return (placed - 0.5 * placed[-1])[inverse]


def two_layer(model: DeepLinear, problem: Problem, theta0: ArrayLike, force: bool = False) -> Prediction:
    """End-to-end map (T, k, d) of a two-layer network from any λ-balanced start, aligned or not.

    Parameters
    ----------
    model : DeepLinear
        Two weight matrices.
    problem : Problem
        A regression with white inputs, or a factorisation.
    theta0 : array (P,)
        Start with W_2ᵀW_2 − A Aᵀ = λ I, A the part of W_1 on the row space of the inputs.
    force : bool
        Compute the formula although a hypothesis fails.

    Returns
    -------
    Prediction
        Of the observable ``"end_to_end"``.

    Raises
    ------
    ValueError
        If the model is no DeepLinear network of two layers, or the problem no regression or factorisation
        that fits it.

    Notes
    -----
    The formula, :func:`riccati`, is exact for any ranks of start and target: that they are full, as the source
    supposes, is no hypothesis here.  Where a sign obstruction stands in the way (λ = 0, W square on the row
    space of the inputs and not bottlenecked, det W(0) and det W* of opposite signs there) it is refused although
    exact: the flow converges to a strict saddle, which rounding makes any computed one, this included, leave in
    the end.  (So do computed flows from a balanced start that lacks ranks of the target, from 1e-16 upwards.)
    The part B of W_1 off the row space never moves; W_2 B and AᵀB stay 0 if they start so, which is a
    hypothesis when X has not full column rank.  A start that misses λ-balance by Δ follows the formula but
    for a forcing ½ Q Δ(t), where ‖Δ(t)‖ does not grow.
    Source: arXiv 2409.14623.
    """
    w1, w2 = weights_of(model, problem, theta0, "theta0", DETERMINED, layers=2)
    inputs = inputs_of(problem)
    target = problem.target
    k, d = target.shape
    h = model.widths[1]
    active = w1 if inputs.complete else w1 @ inputs.projector
    frozen = w1 - active
    balance, missed = _lambda_balance(active, w2)
    excess = w2.T @ w2 - active @ active.T - balance * np.eye(h)

    def squares(t: Array) -> Array:
        return _riccati(inputs.rate * times_of(t), target, active, w2, balance)

    def sizes(t: Array) -> Sizes:
        qq = squares(t)
        gap = qq[:, d:, :d] - target
        largest = [np.linalg.norm(block, 2, axis=(1, 2)) for block in (qq[:, :d, :d], qq[:, d:, d:])]
        return Sizes(
            np.linalg.norm(gap, 2, axis=(1, 2)),
            np.linalg.norm(gap, axis=(1, 2)),
            np.sqrt(np.maximum(*largest)),
            np.sqrt(np.trace(qq, axis1=1, axis2=2)),
        )

    path = Path(2, inputs.rate, 1 + inputs.defect, sizes)
    miss = float(np.linalg.norm(excess))
    missing = Cause(forcing=(lambda z: inputs.rate * miss * z.layer / np.sqrt(2),))
    listed = [
        *path.common(inputs, problem, norm2(target)),
        path.hypothesis("λ-balanced start", missed, missing),
    ]
    zero_balanced = abs(balance) <= 1e-10 * max(norm2(w2) ** 2, norm2(active) ** 2)
    if zero_balanced and k == len(inputs.rows) <= h:
        ends = [w @ inputs.rows.T for w in (w2 @ active, target)]
        full = all(np.linalg.matrix_rank(w, rtol=_EPS * max(k, d, h)) == k for w in ends)
        opposite = full and np.linalg.slogdet(ends[0])[0] != np.linalg.slogdet(ends[1])[0]
        name = "no sign obstruction (defect: 1 if det W(0) det W* < 0)"
        listed.append((Hypothesis(name, float(opposite), effect=np.zeros_like), Cause()))
    if not inputs.complete:
        moving = np.vstack([active.T @ frozen, w2 @ frozen])
        defect = relative(norm2(moving), max(norm2(w1), norm2(w2)) ** 2)
        cause = Cause(off=float(np.linalg.norm(moving)))
        listed.append(path.hypothesis("nothing moves off the row space of the inputs", defect, cause))

    def formula(t: Array) -> Array:
        return squares(t)[:, d:, :d]

    return Prediction(
        "end_to_end",
        tuple(h for h, _ in listed),
        "arXiv 2409.14623",
        formula,
        forced=force,
        together=path.together(cause for _, cause in listed),
    )
