r"""Where gradient flow of diagonal networks ends: implicit bias.

The dual variable η = −∫∇_β L stays in the row space of X, and η(β) is the gradient of a convex potential Q that is
least at the start (:mod:`gflow.theory.diagonal`).  So a flow that reaches a minimum of the square loss ends at the
one where Q is least: η(β) = Xᵀν is the condition of that problem.  From α·1 the potential goes from ‖β‖₂² (α → ∞) to
‖β‖₁ (α → 0).  Sources: arXiv 2002.09277, 2112.11027.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, linprog, nnls

from gflow._check import finite_array, positive, positive_int
from gflow.problem import Problem
from gflow.theory.argmin import argmin, row_space
from gflow.theory.diagonal import Mirror, branches, check_depth, family, h, mirror, no_decay, regression
from gflow.theory.prediction import Hypothesis, Prediction, Refused

Array = NDArray[np.float64]


# ---- the limit ---------------------------------------------------------------------------------------------


def limit(model: Any, problem: Problem, theta0: ArrayLike, force: bool = False) -> Prediction:
    """Where the flow of the square loss ends: the interpolator with the least Q.

    Parameters
    ----------
    model : Diagonal
    problem : Problem
        Samples with one output, square loss, any factor.
    theta0 : array (P,)
        Start: of any shape, and however small.
    force : bool
        Where no β interpolates: the least-squares solution with the least Q, to which the same reasoning leads.

    Returns
    -------
    Prediction
        Of the observable ``"end_to_end"`` (T, 1, d) at t = 0 and t = inf, and NaN between, where nothing is
        predicted.

    Raises
    ------
    ValueError
        If the problem is another one or does not fit theta0, or no minimum has the signs of coordinates of one branch.

    Notes
    -----
    It supposes that the flow converges to a global minimum.  Sources: arXiv 2002.09277; see :mod:`gflow.theory.argmin`.
    """
    m = mirror(model, theta0)
    x, y = regression(problem, len(m.start), "square")
    return limit_of(m, x, y, "arXiv 2002.09277", (no_decay(problem),), force)


def limit_of(
    m: Mirror,
    x: Array,
    y: Array,
    reference: str,
    hypotheses: tuple[Hypothesis, ...],
    force: bool,
    at_start: Array | None = None,
) -> Prediction:
    """The prediction that the limit is argmin Q of a mirror map, whose start may be an effective one."""
    found = argmin(m, x, y)
    start = m.beta0 if at_start is None else at_start

    def formula(t: Array) -> Array:
        out = np.full((len(t), 1, len(start)), np.nan)
        out[t == 0, 0] = start
        out[np.isinf(t), 0] = found.beta
        return out

    measured = (
        Hypothesis("some β interpolates (defect: ‖X β − y‖ / ‖y‖)", found.residual),
        Hypothesis("argmin Q is solved (defect of η(β) = Xᵀν)", found.kkt, tolerance=1e-12),
        Hypothesis("argmin Q is solved (defect of X β = y)", found.infeasibility, tolerance=1e-12),
    )
    return Prediction("end_to_end", measured + hypotheses, reference, formula, forced=force)


# ---- the two extremes --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class MinimalNorm:
    """An interpolator of least norm.

    Attributes
    ----------
    beta : array (d,)
    norm : float
        Its norm.
    dual : array (d,)
        Xᵀν with ⟨Xᵀν, β⟩ = norm: for ℓ1 in [−1, 1] and the sign of β where β is not 0; for ℓ2 β / ‖β‖.
    gap : float
        |⟨dual, β⟩ − norm| / norm + the most by which the dual exceeds its bounds: what certifies the minimum.
    margin : float
        ℓ1: 1 − max |Xᵀν| where β = 0; above 0 (with independent columns where not) the minimiser is unique.  ℓ2: 1.
    """

    beta: Array
    norm: float
    dual: Array
    gap: float
    margin: float


def minimal_l1(X: ArrayLike, y: ArrayLike, positive: bool = False) -> MinimalNorm:
    """An interpolator of least ℓ1 norm, by linear programming, its support's equations solved to rounding.

    Parameters
    ----------
    X : array (n, d)
    y : array (n,)
    positive : bool
        Among β ≥ 0 only.

    Returns
    -------
    MinimalNorm

    Raises
    ------
    ValueError
        If the shapes do not fit, or nothing interpolates; the error says by how much.
    """
    rows, goal, size = _interpolated(X, y)
    d = rows.shape[1]
    scale = float(np.abs(goal).max()) if goal.size else 0.0
    if scale == 0:
        return MinimalNorm(np.zeros(d), 0.0, np.zeros(d), 0.0, 1.0)
    signed = rows if positive else np.hstack([rows, -rows])
    found = linprog(np.ones(signed.shape[1]), A_eq=signed, b_eq=goal / scale, method="highs")
    if found.x is None:
        _, off = nnls(signed, goal, maxiter=30 * signed.shape[1])
        raise ValueError(
            f"y must be X beta for some beta >= 0; the nearest is off by {off / size:.3g}, relative"
        )
    raw = found.x if positive else found.x[:d] - found.x[d:]
    support = np.flatnonzero(np.abs(raw) > 1e-9 * np.abs(raw).max())
    beta = np.zeros(d)
    beta[support] = np.linalg.lstsq(rows[:, support], goal, rcond=None)[0]
    if np.any(beta * raw < 0) or np.linalg.norm(rows @ beta - goal) > 1e-12 * np.linalg.norm(goal):
        beta = scale * raw
    # the dual of the solver, made exact on the support
    nu = found.eqlin.marginals
    nu = (
        nu
        + np.linalg.lstsq(rows[:, support].T, np.sign(raw[support]) - rows[:, support].T @ nu, rcond=None)[0]
    )
    dual = rows.T @ nu
    norm = float(np.abs(beta).sum())
    bounded = dual if positive else np.abs(dual)
    off = np.delete(bounded, support)
    gap = abs(float(dual @ beta) - norm) / norm + max(0.0, float(bounded.max()) - 1.0)
    return MinimalNorm(beta, norm, dual, gap, float(1 - off.max(initial=-np.inf)) if off.size else 1.0)


def minimal_l2(X: ArrayLike, y: ArrayLike) -> MinimalNorm:
    """The interpolator of least ℓ2 norm.

    Parameters and errors as in :func:`minimal_l1`.
    """
    rows, goal, _ = _interpolated(X, y)
    beta = rows.T @ goal
    norm = float(np.linalg.norm(beta))
    return MinimalNorm(beta, norm, beta / norm if norm > 0 else beta, 0.0, 1.0)


def _interpolated(X: ArrayLike, y: ArrayLike) -> tuple[Array, Array, float]:
    x = finite_array("X", X, ("n", "d"))
    right = finite_array("y", y, ("n",))
    if len(right) != len(x):
        raise ValueError(f"y must have one entry per row of X: X has {len(x)}, y has {len(right)}")
    rows, goal, residual = row_space(x, right)
    if residual > 1e-10:
        raise ValueError(f"y must be X beta for some beta; the nearest is off by {residual:.3g}, relative")
    return rows, goal, float(np.linalg.norm(goal))


# ---- regimes -----------------------------------------------------------------------------------------------


def rich_alpha(l1: float, size: int, excess: float, depth: int = 2, form: str = "difference") -> float:
    r"""An α below which the limit's ℓ1 norm exceeds the least one by at most the factor 1 + excess.

    Parameters
    ----------
    l1 : float
        Least ℓ1 norm N of an interpolator.
    size : int
        d.
    excess : float
        ε > 0.
    depth : int
    form : {"difference", "product"}
        Starts w₊ = w₋ = α, or u = √2 α, v = 0.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If an argument is not positive, or the size no whole number.

    Notes
    -----
    Own proof, in the spirit of theorem 2 of arXiv 2002.09277 (:func:`woodworth_rich_alpha`).  Depth 2: from
    |b| (log(|b|/α²) − 1) ≤ α² q(b/α²) ≤ |b| log(1 + |b|/α²), Jensen's inequality for the left, and Q(β_α) ≤ Q(β₁):
    ‖β_α‖₁ ≤ (1 + ε) N as soon as x = N/α² has (1 + ε) (log((1 + ε) x / d) − 1) ≥ log(1 + x).  Depth D: from
    |b| − (D/2) α^{D−2} |b|^{2/D} ≤ ∫ z db ≤ |b|: as soon as α^{D−2} ≤ 2 ε N / (D d^{1−2/D} ((1 + ε) N)^{2/D}), a power
    of ε N, where depth 2 asks for an exponential.
    """
    n, d, e = positive("l1", l1), positive_int("size", size), positive("excess", excess)
    if check_depth(depth) == 2:

        def condition(log_x: float) -> float:
            return (1 + e) * (np.log1p(e) + log_x - np.log(d) - 1) - np.logaddexp(0.0, log_x)

        # the difference grows from −∞ to ∞, with slope ≥ ε
        low = np.log(d / (1 + e))
        high = low + 1.0 + ((1 + e) * 1.0 + np.logaddexp(0.0, low)) / e
        log_x = brentq(condition, low, high, xtol=1e-12)
        alpha = float(np.exp(0.5 * (np.log(n) - log_x)))
    else:
        bound = np.log(2 * e * n / depth) - (1 - 2 / depth) * np.log(d) - 2 / depth * np.log((1 + e) * n)
        alpha = float(np.exp(bound / (depth - 2)))
    return alpha * _per_form(form, depth)


def kernel_alpha(l2: float, excess: float, depth: int = 2, form: str = "difference") -> float:
    r"""An α above which the limit has ‖β‖₂² ≤ (1 + excess) · the least.

    Parameters, errors as in :func:`rich_alpha`; ``l2`` is the least ℓ2 norm of an interpolator.

    Notes
    -----
    Own proof: on the segment from the least-norm β₂ to β_α, Q ≤ Q(β₂) ≤ ¼ ‖β₂‖² / α² while Q(b) ≥ ½ ‖b‖² times its
    least second derivative, at |b| ≤ √(1 + ε) ‖β₂‖.  It suffices that h_D'(z) ≤ (1 + ε) h_D'(0) at
    h_D(z) = √(1 + ε) ‖β₂‖ / α^D; at depth 2 α⁴ ≥ (1 + ε) ‖β₂‖² / (4 ε (2 + ε)).
    """
    norm, e = positive("l2", l2), positive("excess", excess)
    if check_depth(depth) == 2:
        largest = 2 * np.sqrt(e * (2 + e))
    else:
        p = depth / (depth - 2)

        def slope(z: float) -> float:
            return 0.5 * ((1 - z) ** (-p - 1) + (1 + z) ** (-p - 1)) - 1 - e

        largest = float(h(brentq(slope, 0.0, 1 - (2 + 2 * e) ** (-1 / (p + 1)), xtol=1e-15), depth))
    return float((np.sqrt(1 + e) * norm / largest) ** (1 / depth)) * _per_form(form, depth)


def woodworth_rich_alpha(l1: float, size: int, excess: float) -> float:
    """The threshold of theorem 2 of arXiv 2002.09277 for the rich regime, α of the difference form at depth 2.

    Parameters
    ----------
    l1, size, excess
        As in :func:`rich_alpha`; the theorem supposes ε < d.

    Returns
    -------
    float
        α up to which ‖β‖₁ ≤ (1 + ε) · the least.

    Raises
    ------
    ValueError
        If an argument is not positive, the size no whole number, or ε ≥ d.
    """
    n, d, e = positive("l1", l1), positive_int("size", size), positive("excess", excess)
    if e >= d:
        raise ValueError(f"excess must be below size = {d}, as the theorem supposes; got {excess!r}")
    return float(np.exp(min(-(2 + e) / (2 * e) * np.log(2 * (1 + e) * n), -d / (e * n))))


def woodworth_kernel_alpha(l2: float, excess: float) -> float:
    """The threshold of theorem 2 of arXiv 2002.09277 for the kernel regime, α of the difference form at depth 2.

    Parameters
    ----------
    l2, excess
        As in :func:`kernel_alpha`.

    Returns
    -------
    float
        α from which on ‖β‖₂² ≤ (1 + ε) · the least.

    Raises
    ------
    ValueError
        If an argument is not positive.
    """
    norm, e = positive("l2", l2), positive("excess", excess)
    return float(np.sqrt(2 * (1 + e) * (1 + 2 / e) * norm))


def _per_form(form: str, depth: int) -> float:
    if form == "difference":
        return 1.0
    if form == "product" and depth == 2:
        return float(np.sqrt(2))
    raise ValueError(f"form must be 'difference', or 'product' at depth 2; got {form!r} at depth {depth}")


# ---- the excess at one start -------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExcessBound:
    """Bound on (‖β_∞‖₁ − Q) / Q.

    Attributes
    ----------
    excess : float
        The bound; inf where the start's mass is not below Q, of which the theorem says nothing.
    least : float
        Q: the least ℓ1 norm of an interpolator, of those β ≥ 0 in the power form.
    mass : float
        Sum of the branches' a^D and b^D at the start.
    """

    excess: float
    least: float
    mass: float


def excess_l1(model: Any, problem: Problem, theta0: ArrayLike) -> ExcessBound:
    """How far at most the limit's ℓ1 norm is above the least one, from this start.

    Parameters
    ----------
    model : Diagonal
    problem : Problem
        Samples with one output, square loss.
    theta0 : array (P,)
        Start without zeros; at depth ≥ 3 all of one size.

    Returns
    -------
    ExcessBound

    Raises
    ------
    gflow.theory.Refused
        If a weight is 0, or at depth ≥ 3 they are not equal.
    ValueError
        If the problem is another one, or nothing interpolates.

    Notes
    -----
    With m the sum and min the least of the branches' D-th powers at the start, p = 1 − 2/D,

        D = 2:  log(m / min) / log(Q / m),        D ≥ 3:  D (m^p − min^p) / (2 (Q^p − m^p)).

    Difference and product have 2 d branches, whose sum at the limit is no less than ‖β_∞‖₁.  Source: arXiv 2112.11027; at depth 2 the proof (convexity of
    s log s) holds for any shape of the start.
    """
    form, depth = family(model)
    log_a, log_b = branches(model, theta0)
    x, y = regression(problem, len(log_a), "square")
    logs = depth * (log_a if form == "power" else np.concatenate([log_a, log_b]))
    if np.isinf(logs).any():
        raise Refused("excess ℓ1 norm (arXiv 2112.11027) refused: a weight starts at 0, where it stays")
    spread = float(np.expm1(logs.max() - logs.min()))
    if depth > 2 and spread > 1e-10:
        raise Refused(
            f"excess ℓ1 norm (arXiv 2112.11027) refused: equal start at depth >= 3: defect {spread:.2g} > 1e-10"
        )
    q = minimal_l1(x, y, positive=form == "power").norm
    log_mass, log_least = float(np.logaddexp.reduce(logs)), float(logs.min())
    mass = float(np.exp(log_mass))
    if q <= 0 or log_mass >= np.log(q):
        return ExcessBound(np.inf, q, mass)
    if depth == 2:
        excess = (log_mass - log_least) / (np.log(q) - log_mass)
    else:
        p = 1 - 2 / depth
        small, least = np.exp(p * (log_mass - np.log(q))), np.exp(p * (log_least - np.log(q)))
        excess = depth * (small - least) / (2 * (1 - small))
    return ExcessBound(float(excess), q, mass)
