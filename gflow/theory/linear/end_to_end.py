"""Speeds of the end-to-end map of a balanced network of any depth, and of its singular values and vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow._check import finite_array, positive_int
from gflow.models.linear import DeepLinear
from gflow.problem import KINDS, Problem
from gflow.theory.linear.layers import balance_defect, product
from gflow.theory.linear.setting import weights_of
from gflow.theory.prediction import Hypothesis, Refused

Array = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)


def end_to_end_velocity(W: ArrayLike, G: ArrayLike, depth: int) -> Array:
    """Velocity W' = −Σ_j [WWᵀ]^((N−j)/N) G [WᵀW]^((j−1)/N) of a balanced network's end-to-end map.

    Parameters
    ----------
    W : array (k, d)
        End-to-end map.
    G : array (k, d)
        Gradient of the loss with respect to it.
    depth : int
        Number N ≥ 1 of weight matrices.

    Returns
    -------
    velocity : array (k, d)

    Raises
    ------
    ValueError
        If the shapes differ, an entry is not finite or the depth is no whole number ≥ 1.

    Notes
    -----
    Source: arXiv 1905.13655 (after 1802.06509).
    """
    w, g, n = _check_pair(W, G, depth)
    u, s, vt = np.linalg.svd(w)
    s = np.where(s > _EPS * max(w.shape) * s[0], s, 0.0)  # a small power would magnify the rounding
    left, right = (np.concatenate([s, np.zeros(m - len(s))]) ** (2 / n) for m in w.shape)
    weights = sum(np.outer(left ** (n - j), right ** (j - 1)) for j in range(1, n + 1))
    return -u @ (weights * (u.T @ g @ vt.T)) @ vt


def singular_value_speeds(W: ArrayLike, G: ArrayLike, depth: int) -> Array:
    """Speeds σ' = −N σ^(2−2/N) uᵀGv (min(k, d),) of a balanced network's singular values, largest first.

    Arguments, errors and source as in :func:`end_to_end_velocity`.
    """
    w, g, n = _check_pair(W, G, depth)
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    return _value_speeds(u, s, vt.T, g, n)


def singular_vector_speeds(
    W: ArrayLike, G: ArrayLike, depth: int, rank: int | None = None
) -> tuple[Array, Array]:
    """Speeds (U', V') of a balanced network's singular vectors, signed as ``np.linalg.svd(W)`` signs them.

    Parameters
    ----------
    W, G, depth
        As in :func:`end_to_end_velocity`.
    rank : int, optional
        How many leading pairs; the other singular values are taken as 0.  Default min(k, d).

    Returns
    -------
    U_speed : array (k, rank)
    V_speed : array (d, rank)

    Raises
    ------
    ValueError
        If two of the singular values are equal, one is 0, or an argument is invalid.

    Notes
    -----
    U' = −U (F ∘ [UᵀGVS + SVᵀGᵀU]) − (I − UUᵀ) G V S^(1−2/N), F_ab = 1 / (σ_b^(2/N) − σ_a^(2/N)) off the
    diagonal and 0 on it, and the like for V with G transposed.  Source: arXiv 1905.13655.
    """
    w, g, n = _check_pair(W, G, depth)
    r = min(w.shape) if rank is None else positive_int("rank", rank)
    if r > min(w.shape):
        raise ValueError(f"rank must be at most min(k, d) = {min(w.shape)}; got {r}")
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    if s[r - 1] == 0 or np.any(s[: r - 1] == s[1:r]):
        raise ValueError(f"W must have {r} distinct singular values > 0; got {s[:r]}")
    return _vector_speeds(u[:, :r], s[:r], vt[:r].T, g, n)


def _check_pair(W: ArrayLike, G: ArrayLike, depth: int) -> tuple[Array, Array, int]:
    w = finite_array("W", W, ("k", "d"))
    return w, finite_array("G", G, w.shape), positive_int("depth", depth)


def _value_speeds(u: Array, s: Array, v: Array, g: Array, n: int) -> Array:
    return -n * s ** (2 - 2 / n) * np.einsum("ai,ab,bi->i", u, g, v)


def _vector_speeds(u: Array, s: Array, v: Array, g: Array, n: int) -> tuple[Array, Array]:
    power = s ** (2 / n)
    difference = power[None, :] - power[:, None]
    np.fill_diagonal(difference, np.inf)
    inner = u.T @ g @ v
    with np.errstate(divide="ignore", invalid="ignore"):
        left = u @ ((inner * s + (inner * s).T) / difference)
        right = v @ ((s[:, None] * inner + (s[:, None] * inner).T) / difference)
        outer = s ** (1 - 2 / n)
    left += (g @ v - u @ inner) * outer
    right += (g.T @ u - v @ inner.T) * outer
    return -left, -right


@dataclass(frozen=True)
class Speeds:
    """Singular values and vectors of W = U diag(values) Vᵀ, and their speeds under the flow.

    Attributes
    ----------
    U, values, V : array (k, r), (r,), (d, r)
        Singular triples, largest first; r = min(widths).
    U_speed, value_speeds, V_speed : array (k, r), (r,), (d, r)
        Their derivatives by time.
    hypotheses : tuple of Hypothesis
        What the formulas suppose, measured.
    reference : str
    forced : bool
        Whether they were computed regardless of the hypotheses.
    """

    U: Array
    values: Array
    V: Array
    U_speed: Array
    value_speeds: Array
    V_speed: Array
    hypotheses: tuple[Hypothesis, ...]
    reference: str = "arXiv 1905.13655"
    forced: bool = False


def speeds(model: DeepLinear, problem: Problem, theta: ArrayLike, force: bool = False) -> Speeds:
    """Speeds of the singular values and vectors of a balanced network's end-to-end map.

    Parameters
    ----------
    model : DeepLinear
        Any depth.
    problem : Problem
        Of any kind; weight decay is included.
    theta : array (P,)
        State.
    force : bool
        Compute the formulas although a hypothesis fails.

    Returns
    -------
    Speeds

    Raises
    ------
    Refused
        If the state is not balanced, or its singular values are not distinct and above 0 (by so much that
        rounding is magnified to more than 1e-10), and ``force`` is not set.
    ValueError
        If the model is no DeepLinear network or does not fit the problem.

    Notes
    -----
    Source: arXiv 1905.13655.
    """
    weights = weights_of(model, problem, theta, "theta", KINDS)
    n, rank = model.depth, min(model.widths)
    w = product(weights)
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    u, s, v = u[:, :rank], s[:rank], vt[:rank].T
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = float(np.min(s[:-1] - s[1:], initial=np.inf))
        distinct, nonzero = np.nan_to_num(_EPS * s[0] / np.array([gap, s[-1]]), nan=np.inf, posinf=np.inf)
    hypotheses = (
        Hypothesis("balanced layers", balance_defect(weights)),
        Hypothesis("distinct singular values (defect: rounding / relative gap)", float(distinct)),
        Hypothesis("nonzero singular values (defect: rounding / relative size)", float(nonzero)),
    )
    failed = "; ".join(str(h) for h in hypotheses if not h.holds)
    if failed and not force:
        raise Refused(
            f"speeds of singular values and vectors (arXiv 1905.13655) refused: {failed}. "
            "force=True computes the formulas all the same."
        )
    g = _gradient(problem, w)
    decay = n * problem.weight_decay * s
    left, right = _vector_speeds(u, s, v, g, n)
    return Speeds(u, s, v, left, _value_speeds(u, s, v, g, n) - decay, right, hypotheses, forced=force)


def _gradient(problem: Problem, w: Array) -> Array:
    """Gradient (k, d) of the loss without weight decay, with respect to the end-to-end map."""
    scale = 2 * float(problem.factor or 0.0)
    if problem.kind == "regression":
        return scale * (w @ problem.X.T - problem.Y.T) @ problem.X
    if problem.kind == "sensing":
        return scale * np.einsum("m,mab->ab", np.einsum("mab,ab->m", problem.X, w) - problem.Y, problem.X)
    return scale * (w - problem.Y) * (1.0 if problem.mask is None else problem.mask)
