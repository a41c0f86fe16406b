"""Starts aligned with the target, whose modes do not mix: predictions of all mode strengths."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow.models.linear import DeepLinear
from gflow.problem import Problem
from gflow.theory.linear.bounds import Cause, Path, Sizes
from gflow.theory.linear.layers import balance_defect, distance, norm2, product, relative
from gflow.theory.linear.mode import mode_gap, mode_strength, mode_time
from gflow.theory.linear.setting import DETERMINED, Inputs, inputs_of, weights_of
from gflow.theory.linear.unbalanced import unbalanced_mode
from gflow.theory.prediction import Hypothesis, Prediction

Array = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)


def modes(model: DeepLinear, problem: Problem, theta0: ArrayLike, force: bool = False) -> Prediction:
    """Mode strengths (T, K) of a deep linear network from a balanced start aligned with the target.

    Parameters
    ----------
    model : DeepLinear
        Any depth.
    problem : Problem
        A regression with white inputs, or a factorisation.
    theta0 : array (P,)
        Start.  A mode's strength may be negative: it then goes to 0.
    force : bool
        Compute the formula although a hypothesis fails, from the strengths u_iᵀ W(0) v_i.

    Returns
    -------
    Prediction
        Of the observable ``"mode_strengths"``, K = min(d, k), in the basis ``problem.target_svd``.

    Raises
    ------
    ValueError
        If the model is no DeepLinear network, or the problem no regression or factorisation that fits it.

    Notes
    -----
    A start from multiples of the identity is aligned with any symmetric target, see ``problem.target_svd``.
    Modes beyond the network's rank min(widths), and right singular vectors outside the row space of the
    inputs, do not move.  ``bound`` holds for any start, see :mod:`gflow.theory.linear.bounds`, and is inf from where it ceases to say
    anything.  The hypotheses of balance and of alignment have one effect, that of the distance from a nearest
    aligned balanced start.  Source: arXiv 1312.6120.
    """
    weights = weights_of(model, problem, theta0, "theta0", DETERMINED)
    inputs, n = inputs_of(problem), model.depth
    u, s, v = problem.target_svd
    u0, w = _strengths(weights, u, v)
    kept, astray = _row_space(inputs, v, u0)
    rates = inputs.rate * kept

    idle = float(np.linalg.norm(w - u * u0 @ v.T)) if n == 1 else 0.0  # what one layer has beside the modes

    def formula(t: Array) -> Array:
        scaled = np.multiply(rates, t[:, None], out=np.zeros((len(t), len(rates))), where=rates > 0)
        return mode_strength(scaled, s, u0, n)

    def sizes(t: Array) -> Sizes:
        scaled = rates * t[:, None]
        gap = np.abs(mode_gap(scaled, s, u0, n)) * kept
        layers = np.abs(mode_strength(scaled, s, u0, n)) ** (1 / n)
        return Sizes(
            gap.max(axis=1),
            np.hypot(np.linalg.norm(gap, axis=1), idle),
            layers.max(axis=1),
            np.hypot(np.sqrt(n) * np.linalg.norm(layers, axis=1), idle),
        )

    path = Path(n, inputs.rate, 1 + inputs.defect, sizes, _landmarks(u0, s, rates, n))
    listed = path.common(inputs, problem, float(s[0]))
    listed += _row_space_hypothesis(path, inputs, astray, u0)
    hypotheses, causes = [h for h, _ in listed], [cause for _, cause in listed]
    if n > 1:
        nearest = _nearest_aligned(weights, u, u0, v)
        start = Cause(distance(weights, nearest), _diagonal_part(weights, nearest, u, u0, v))
        askew = relative(norm2(w - u * u0 @ v.T), norm2(w))
        hypotheses[2:2] = [
            Hypothesis("balanced start", balance_defect(weights), effect=path.bound(start)),
            Hypothesis("start aligned with the target", askew, effect=path.bound(start)),
        ]
        causes.append(start)
    return Prediction(
        "mode_strengths",
        tuple(hypotheses),
        "arXiv 1312.6120",
        formula,
        forced=force,
        labels=_labels(len(s)),
        together=path.together(causes),
    )


def unbalanced_modes(
    model: DeepLinear, problem: Problem, theta0: ArrayLike, force: bool = False
) -> Prediction:
    """Mode strengths (T, K) of a two-layer network from an aligned start with any imbalance in each mode.

    Parameters
    ----------
    model : DeepLinear
        Two weight matrices.
    problem : Problem
        A regression with white inputs, or a factorisation.
    theta0 : array (P,)
        Start W_1 = H diag(a) Vᵀ, W_2 = U diag(b) Hᵀ with orthonormal H and the target's U and V.
    force : bool
        Compute the formula although a hypothesis fails.

    Returns
    -------
    Prediction
        Of the observable ``"mode_strengths"``, K = min(d, k), in the basis ``problem.target_svd``.

    Raises
    ------
    ValueError
        If the model is no DeepLinear network of two layers, or the problem no regression or factorisation
        that fits it.

    Notes
    -----
    Source: arXiv 1312.6120; see :func:`unbalanced_mode`.
    """
    weights = weights_of(model, problem, theta0, "theta0", DETERMINED, layers=2)
    inputs = inputs_of(problem)
    u, s, v = problem.target_svd
    first, second = weights[0] @ v, weights[1].T @ u  # (h, K): columns a_i H_i and b_i H_i
    sign = np.where(np.einsum("hi,hi->i", first, second) < 0, -1.0, 1.0)
    direction = first + sign * second
    kept = np.argsort(-np.linalg.norm(direction, axis=0), kind="stable")[: min(model.widths)]
    a, b = np.zeros(len(s)), np.zeros(len(s))
    a[kept], b[kept] = np.linalg.norm(first, axis=0)[kept], (sign * np.linalg.norm(second, axis=0))[kept]
    frame = np.zeros_like(first)
    frame[:, kept] = _polar(direction[:, kept])
    nearest = [frame * a @ v.T, u * b @ frame.T]
    inside, astray = _row_space(inputs, v, a)
    rates = inputs.rate * inside

    def factors(t: Array) -> tuple[Array, Array]:
        return unbalanced_mode(rates * t[:, None], s, a, b)

    def formula(t: Array) -> Array:
        x, y = factors(t)
        return x * y

    def sizes(t: Array) -> Sizes:
        x, y = factors(t)
        gap = np.abs(s - x * y) * inside
        return Sizes(
            gap.max(axis=1),
            np.linalg.norm(gap, axis=1),
            np.maximum(np.abs(x), np.abs(y)).max(axis=1),
            np.sqrt(np.sum(x**2 + y**2, axis=1)),
        )

    path = Path(2, inputs.rate, 1 + inputs.defect, sizes)
    away = distance(weights, nearest)
    off = [np.einsum("hi,hd,di->i", frame, weights[0] - nearest[0], v)]
    off.append(np.einsum("ki,kh,hi->i", u, weights[1] - nearest[1], frame))
    diagonal = float(np.linalg.norm(off))
    scale = float(np.sqrt(sum(np.sum(w**2) for w in weights)))
    defect = relative(away, scale)
    start = Cause(away, diagonal)
    listed = [
        *path.common(inputs, problem, float(s[0])),
        path.hypothesis("both layers diagonal in one hidden basis", defect, start),
        *_row_space_hypothesis(path, inputs, astray, a),
    ]
    return Prediction(
        "mode_strengths",
        tuple(h for h, _ in listed),
        "arXiv 1312.6120",
        formula,
        forced=force,
        labels=_labels(len(s)),
        together=path.together(cause for _, cause in listed),
    )


def _polar(matrix: Array) -> Array:
    """Nearest matrix with orthonormal columns."""
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    return u @ vt


def _nearest_aligned(weights: list[Array], left: Array, strengths: Array, right: Array) -> list[Array]:
    """A balanced network of W = left diag(strengths) rightᵀ close to the given one: layerwise Procrustes."""
    n, rank = len(weights), min(min(w.shape) for w in weights)
    kept = np.argsort(-np.abs(strengths), kind="stable")[:rank]
    size = np.abs(strengths[kept]) ** (1 / n)
    frames = [right[:, kept]]
    for w in weights[:-1]:
        frames.append(_polar(w @ frames[-1] * size))
    frames.append(left[:, kept] * np.where(strengths[kept] < 0, -1.0, 1.0))
    for _ in range(5):
        for j in range(1, n):
            frames[j] = _polar((weights[j - 1] @ frames[j - 1] + weights[j].T @ frames[j + 1]) * size)
    return [frames[j + 1] * size @ frames[j].T for j in range(n)]


def _diagonal_part(weights: list[Array], nearest: list[Array], u: Array, strengths: Array, v: Array) -> float:
    """The part of weights − nearest that changes the strengths in first order, as a distance."""
    n, some = len(weights), strengths != 0
    change = np.zeros_like(strengths)
    for j in range(n):
        varied = [*nearest[:j], weights[j] - nearest[j], *nearest[j + 1 :]]
        change += np.einsum("ai,ab,bi->i", u, product(varied), v)
    return float(np.linalg.norm(change[some] / np.abs(strengths[some]) ** (1 - 1 / n)) / np.sqrt(n))


def _strengths(weights: list[Array], u: Array, v: Array) -> tuple[Array, Array]:
    """u_iᵀ W v_i, and W; a strength below its own rounding error is 0, as are those beyond the rank."""
    w = product(weights)
    values = np.einsum("ai,ab,bi->i", u, w, v)
    terms = np.einsum("ai,ab,bi->i", np.abs(u), product([np.abs(layer) for layer in weights]), np.abs(v))
    values[np.abs(values) <= _EPS * sum(layer.shape[1] for layer in weights) * terms] = 0.0
    rank = min(min(layer.shape) for layer in weights)
    values[np.argsort(-np.abs(values), kind="stable")[rank:]] = 0.0
    return values, w


def _row_space(inputs: Inputs, v: Array, strengths: Array) -> tuple[Array, Array]:
    """1 for right vectors in the row space and 0 for those outside; |strength| × distance from that (K,)."""
    inside = inputs.projector @ v
    kept = np.round(np.sum(inside * v, axis=0))
    return kept, np.abs(strengths) * np.linalg.norm(inside - kept * v, axis=0)


def _row_space_hypothesis(
    path: Path, inputs: Inputs, astray: Array, strengths: Array
) -> list[tuple[Hypothesis, Cause]]:
    if inputs.complete:
        return []
    n, size = path.depth, float(np.linalg.norm(astray))
    cause = Cause(forcing=(lambda z: np.sqrt(n) * z.layer ** (n - 1) * path.rate * size,))
    defect = relative(float(astray.max()), float(np.abs(strengths).max()))
    return [path.hypothesis("each mode inside or outside the row space of the inputs", defect, cause)]


def _landmarks(u0: Array, s: Array, rates: Array, n: int) -> Array:
    """Times at which the modes pass through the stages of their transitions and of their ends."""
    times = [np.empty(0)]
    folds = np.cumsum(0.2 * 1.15 ** np.arange(46))  # up to e^-800
    for start, target, rate in zip(u0, s, rates, strict=True):
        if n == 1 or start == 0 or rate == 0:
            continue
        sign = np.sign(start)
        start, target = sign * start, sign * target
        limit = max(target, 0.0)
        if start < target:
            odds = start / (target - start)
            through = target / (1 + 1 / np.geomspace(odds, max(odds, 1e12), 41)[1:])
        else:
            through = limit + (start - limit) * np.geomspace(1e-10, 1.0, 41)[:-1]
        through = through[(through - start) * (limit - through) > 0]
        marks = mode_time(start, through, target, n) / rate
        times.append(marks)
        if target > 0:
            times.append(np.max(marks, initial=0.0) + folds / (n * target ** (2 - 2 / n) * rate))
    return np.concatenate(times)


def _labels(count: int) -> tuple[str, ...]:
    return tuple(f"mode {i + 1}" for i in range(count))
