r"""Deep factorisation of a symmetric matrix from equal factors: gradient descent, eigenvalue by eigenvalue.

L = ½ ‖W_N ⋯ W_1 − M‖²_F with M = V diag(λ) Vᵀ and every W_j(0) = α I: all factors stay equal to V diag(d) Vᵀ, and
each eigenvalue obeys d ← d − η v(d) with v(d) = d^(N−1) (d^N − λ), without the others.  This is gradient descent of
``Diagonal(n, depth=N, form="power")`` on the unit vectors with labels λ and factor 1 / (2N).  The strength y = d^N
of the flow obeys y' = N y^(2 − 2/N) (λ − y): :func:`gflow.theory.linear.mode_strength` and ``mode_time``.  Where one of two
factors starts at (α − β) I, the flow is :func:`gflow.theory.linear.unbalanced_mode` from α and α − β.

The source's theorems are known to us by their shape only.  The constants here are our own, proved in the
docstrings; times are the flow's, numbers of steps those of gradient descent.  Source: arXiv 2011.13772.

Descent and flow
----------------
Let w = −v.  Up to d* = ((N−1)λ/(2N−1))^(1/N), where w is largest, a step of descent is slower than the flow (which
speeds up on the way), beyond it is faster; a falling eigenvalue (λ ≤ 0, or a start above λ^(1/N)) is always ahead of the
flow.  With w(d⁺) ≤ (1 + ηL1) w(d) below d* and w(d⁺) ≥ (1 − ηL2) w(d) above, one step takes between η / (1 + ηL1) and
η of the flow's time below, between η and η / (1 − ηL2) above: :func:`step_bounds`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow._check import finite_array, positive, positive_int
from gflow.theory.arguments import broadcast, real_array
from gflow.theory.diagonal import check_depth
from gflow.theory.linear import mode_time

Array = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)


def _start(alpha: float, n: int) -> float:
    """α^N, or a ValueError where it is no normal number."""
    a = positive("alpha", alpha)
    with np.errstate(over="ignore", under="ignore"):
        start = float(np.power(a, n))
    if not np.finfo(float).tiny <= start < np.inf:
        raise ValueError(
            f"alpha must have a power alpha^N that floating point holds; got {a:g}^{n} = {start:g}"
        )
    return start


def _cautious_step(largest: Array, curvature: Array | int, n: int) -> Array:
    """1 / (curvature · largest^(2N − 2)), or a ValueError where floating point does not hold it."""
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        step = 1 / (curvature * largest ** (2 * n - 2))
    if not np.all((step > 0) & np.isfinite(step)):
        raise ValueError(
            f"alpha and the eigenvalues must have a step size that floating point holds; max(α, |λ|^(1/N)) = "
            f"{np.max(largest):g} has {np.min(step):g} at N = {n}"
        )
    return np.asarray(step)[()]


def _spectrum(spectrum: ArrayLike) -> Array:
    values = finite_array("spectrum", spectrum, ("n",))
    if np.any(np.diff(values) > 0):
        raise ValueError(f"spectrum must hold eigenvalues in descending order; got {values!r:.80}")
    return values


# ---- step sizes --------------------------------------------------------------------------------------------


def monotone_step(target: ArrayLike, alpha: float, depth: int) -> Array:
    """A step size with which d(k) goes monotonically from α to max(λ, 0)^(1/N).

    Parameters
    ----------
    target : array
        Eigenvalues λ of any sign.
    alpha : float
        Start α > 0.
    depth : int
        Number N ≥ 2 of factors.

    Returns
    -------
    eta : array
        Of the shape of ``target``; the least of it serves all.

    Raises
    ------
    ValueError
        If an argument is not of its kind.

    Notes
    -----
    Descent on f(d) = d^(2N)/(2N) − λ d^N/N is monotone while η f'' ≤ 1 between start and limit.  For
    α ≤ λ^(1/N) there f'' ≤ N λ^(2 − 2/N), so that η = 1 / (N λ^(2 − 2/N)); else |f''| ≤ (3N − 2) M^(2N − 2) with
    M = max(α, |λ|^(1/N)).
    """
    n, alpha = check_depth(depth), positive("alpha", alpha)
    lam = real_array("target", target)
    limit = np.abs(lam) ** (1 / n)
    rising = (lam > 0) & (alpha <= limit)
    return _cautious_step(np.maximum(alpha, limit), np.where(rising, float(n), 3.0 * n - 2), n)


def common_step(spectrum: ArrayLike, alpha: float, depth: int) -> float:
    """1 / ((3N − 2) M^(2N − 2)), M = max(α, ‖M‖₂^(1/N)): a step size that is monotone for every eigenvalue at once.

    Arguments and errors as in :func:`monotone_step`.  The form of the source's condition.
    """
    n, alpha = check_depth(depth), positive("alpha", alpha)
    limits = np.abs(finite_array("spectrum", spectrum, ("n",))) ** (1 / n)
    return float(_cautious_step(np.append(limits, alpha).max(), 3 * n - 2, n))


def stable_step(target: ArrayLike, depth: int) -> Array:
    """2 / (N λ^(2 − 2/N)), beyond which the minimum of an eigenvalue λ > 0 is unstable; inf for λ ≤ 0.

    Arguments and errors as in :func:`monotone_step`.
    """
    n = check_depth(depth)
    rising = np.maximum(real_array("target", target), 0.0)
    with np.errstate(divide="ignore"):
        return 2 / (n * rising ** (2 - 2 / n))


# ---- how long it takes -------------------------------------------------------------------------------------


def step_bounds(
    goal: ArrayLike, target: ArrayLike, alpha: float, step_size: float, depth: int
) -> tuple[Array, Array]:
    """Bounds on the number of steps in which d^N rises from α^N to ``goal`` or beyond.

    Parameters
    ----------
    goal : array
        Strengths, α^N < goal < λ.
    target : array
        Eigenvalues λ > 0.
    alpha : float
        Start, 0 < α < λ^(1/N).
    step_size : float
        0 < η ≤ 1 / (N λ^(2 − 2/N)).
    depth : int
        Number N ≥ 2 of factors.

    Returns
    -------
    lower, upper : array
        Of the shape to which goal and target broadcast: lower ≤ k ≤ upper.

    Raises
    ------
    ValueError
        If a strength, the start or the step size lies outside of its range.

    Notes
    -----
    With T1 the flow's time below d* (see the module), T2 above:
    T1/η + (T2/η)(1 − ηL2) ≤ k ≤ (T1/η)(1 + ηL1) + T2/η + 1, L1 = max w' on the way below d*,
    L2 = N λ^(2 − 2/N); the 1 is for rounding up.  The step from d across d*, with a share u of it below, takes a time
    a below and b above for which a + (1 − ηL2) b ≤ η ≤ (1 + ηL1) a + b: there w lies between w(d) and
    w(d*) ≤ (1 + u ηL1) w(d), above it is at least (1 − ηL2) w(d).
    """
    n, eta = check_depth(depth), positive("step_size", step_size)
    start = _start(alpha, n)
    end, lam = broadcast(goal=real_array("goal", goal), target=real_array("target", target))
    if not np.all((start < end) & (end < lam)):
        raise ValueError(
            f"goal must lie between alpha^N = {start:g} and the target; got goal {end!r:.60}, target {lam!r:.60}"
        )
    limit = 1 / (n * lam ** (2 - 2 / n))
    if np.any(eta > limit):
        raise ValueError(f"step_size must be at most 1 / (N λ^(2 − 2/N)) = {limit.min():g}; got {eta:g}")
    bend = (n - 1) * lam / (2 * n - 1)  # (d*)^N
    turn = np.clip(bend, start, end)
    below, above = mode_time(start, turn, lam, n), mode_time(turn, end, lam, n)
    steepest = np.clip((n - 2) * lam / (2 * (2 * n - 1)), start, turn)  # where w' is largest
    slope = (n - 1) * lam * steepest ** (1 - 2 / n) - (2 * n - 1) * steepest ** (2 - 2 / n)
    lower = below / eta + above / eta * (1 - eta / limit)
    upper = below / eta * (1 + eta * np.maximum(slope, 0.0)) + above / eta + 1
    return np.maximum(lower, 0.0)[()], upper[()]


def decay(t: ArrayLike, target: ArrayLike, alpha: float, depth: int) -> Array:
    """Upper bound on d of an eigenvalue λ ≤ 0: exact for λ = 0, and what the flow tends to for λ < 0.

    Parameters
    ----------
    t : array
        Finite times ≥ 0, or step size × number of steps.
    target : array
        Eigenvalues λ ≤ 0.
    alpha : float
        Start α > 0.
    depth : int
        Number N ≥ 2 of factors.

    Returns
    -------
    d : array
        Of the shape to which t and target broadcast.

    Raises
    ------
    ValueError
        If an eigenvalue is positive or a time is negative.

    Notes
    -----
    λ = 0: (α^(2 − 2N) + (2N − 2) t)^(−1/(2N − 2)).  λ < 0: of d' = −d^(N−1) (d^N + |λ|) without its d^N, α e^(−|λ|t) at
    N = 2, (α^(2 − N) + (N − 2) |λ| t)^(−1/(N − 2)) beyond.  Descent with a step of :func:`monotone_step` is ahead of the
    flow, so that it holds for it as well.
    """
    n, alpha = check_depth(depth), positive("alpha", alpha)
    time, lam = broadcast(t=real_array("t", t, 0.0), target=real_array("target", target))
    if np.any(lam > 0):
        raise ValueError(f"target must hold eigenvalues <= 0; got {lam.max():g}")

    def power_law(p: int, rate: Array) -> Array:
        """Solution of d' = −rate d^(p + 1), in logarithms, which neither under- nor overflow."""
        with np.errstate(divide="ignore"):
            grown = np.log(p * rate) + np.log(time) + p * np.log(alpha)
        return alpha * np.exp(-np.logaddexp(0.0, grown) / p)

    falling = alpha * np.exp(lam * time) if n == 2 else power_law(n - 2, -lam)
    return np.minimum(power_law(2 * n - 2, np.ones_like(lam)), falling)[()]


# ---- effective rank ----------------------------------------------------------------------------------------


def plateaus(spectrum: ArrayLike) -> Array:
    """Effective ranks ‖M_L‖_* / ‖M_L‖₂ (r,) of the best approximations of rank L = 1 … r of the positive part of M.

    Parameters
    ----------
    spectrum : array (n,)
        Eigenvalues, descending; r of them positive.  Descent from α I never sees the others but as zeros.

    Returns
    -------
    array (r,)
        Dimensionless, ascending from 1; empty if no eigenvalue is positive.

    Raises
    ------
    ValueError
        If the eigenvalues are not finite and in descending order.
    """
    rising = _spectrum(spectrum)
    rising = rising[rising > 0]
    return np.cumsum(rising) / rising[:1]


def rank_bounds(spectrum: ArrayLike, count: int, delta: ArrayLike, rho: ArrayLike) -> tuple[float, float]:
    """Bounds on ‖W‖_* / ‖W‖₂ while |y_i − λ_i| ≤ δ_i for i ≤ L and 0 ≤ y_i ≤ ρ_i for i > L.

    Parameters
    ----------
    spectrum : array (n,)
        Eigenvalues, descending; the first L positive.
    count : int
        L, 1 ≤ L ≤ n.
    delta : float or array (L,)
        δ_i ≥ 0, δ_1 < λ_1.
    rho : float or array (n − L,)
        ρ_i ≥ 0.

    Returns
    -------
    lower, upper : float

    Raises
    ------
    ValueError
        If L is no number of positive eigenvalues, or δ_1 ≥ λ_1.

    Notes
    -----
    (Σ_{i ≤ L} (λ_i − δ_i)₊) / max(λ_i + δ_i, ρ_i) ≤ ‖W‖_* / ‖W‖₂ ≤ (Σ_{i ≤ L} (λ_i + δ_i) + Σ_{i > L} ρ_i) / max(λ_i − δ_i).
    With λ_1 + δ_1 alone in the denominator of the lower bound it would be wrong: another y_i may be the largest.
    """
    lam, small, rest = _split(spectrum, count, delta, rho)
    if small[0] >= lam[0]:
        raise ValueError(f"delta must be below the largest eigenvalue {lam[0]:g}; got {small[0]:g}")
    first = lam[:count]
    largest = max(float(np.max(first + small)), float(np.max(rest, initial=0.0)))
    lower = float(np.sum(np.maximum(first - small, 0.0))) / largest
    return lower, float(np.sum(first + small) + np.sum(rest)) / float(np.max(first - small))


def _split(spectrum: ArrayLike, count: int, delta: ArrayLike, rho: ArrayLike) -> tuple[Array, Array, Array]:
    lam, size = _spectrum(spectrum), positive_int("count", count)
    if size > np.count_nonzero(lam > 0):
        raise ValueError(
            f"count must be at most {np.count_nonzero(lam > 0)}, the positive eigenvalues; got {size}"
        )
    return lam, _part("delta", delta, size), _part("rho", rho, len(lam) - size)


def _part(name: str, value: ArrayLike, size: int) -> Array:
    """Numbers ≥ 0 of shape (size,), from them or from one of them."""
    numbers = real_array(name, value, 0.0)
    if numbers.shape not in ((), (size,)):
        raise ValueError(f"{name} must be a number or have shape ({size},); got shape {numbers.shape}")
    return np.broadcast_to(numbers, (size,))


@dataclass(frozen=True)
class RankInterval:
    """While ``start`` ≤ t < ``end`` the effective rank is that of the best approximation of rank L, nearly.

    Attributes
    ----------
    count : int
        L.
    start, end : float
        Of the time of the flow, or of the number of steps of descent.
    lower, upper : float
        Bounds on ‖W‖_* / ‖W‖₂ in it.
    distance : float
        Bound on ‖W − M_L‖_F in it.
    steps : bool
        Whether it counts steps.
    """

    count: int
    start: float
    end: float
    lower: float
    upper: float
    distance: float
    steps: bool = False

    @property
    def empty(self) -> bool:
        """Whether it holds no time at all; for steps: no whole number."""
        return not (np.ceil(self.start) if self.steps else self.start) < self.end

    def holds(self, t: ArrayLike) -> NDArray[np.bool_]:
        """Which of the times, or numbers of steps, lie in it."""
        times = np.asarray(t)
        return (times >= self.start) & (times < self.end)


def rank_interval(
    spectrum: ArrayLike, count: int, alpha: float, depth: int, delta: ArrayLike, rho: ArrayLike,
    step_size: float | None = None,
) -> RankInterval:  # fmt: skip
    """Interval in which L eigenvalues are learned to δ and the others are still below ρ.

    Parameters
    ----------
    spectrum : array (n,)
        Eigenvalues, descending.
    count : int
        L.
    alpha : float
        Start, 0 < α < λ_L^(1/N).
    depth : int
        Number N ≥ 2 of factors.
    delta : float or array (L,)
        0 < δ_i < λ_i.
    rho : float or array (n − L,)
        ρ_i ≥ 0.
    step_size : float, optional
        η of gradient descent, at most :func:`common_step`: the interval then counts steps.  Default: the flow.

    Returns
    -------
    RankInterval
        Perhaps empty: it is not if α is small, the gap λ_L > λ_{L+1} wide or the depth large enough.

    Raises
    ------
    ValueError
        If a number lies outside of its range.

    Notes
    -----
    Every eigenvalue moves monotonically, so that each condition holds from, or up to, one time, which is
    :func:`gflow.theory.linear.mode_time` or, for descent, a bound of :func:`step_bounds`; a falling eigenvalue is
    ahead of the flow.
    """
    lam, small, rest = _split(spectrum, count, delta, rho)
    n = check_depth(depth)
    start = _start(alpha, n)
    if not np.all((small > 0) & (small < lam[:count])):
        raise ValueError(f"delta must lie between 0 and the eigenvalues; got {small!r:.60}")
    if start >= lam[count - 1]:
        raise ValueError(f"alpha must be below λ_L^(1/N) = {lam[count - 1] ** (1 / n):g}; got {alpha:g}")
    if step_size is not None and positive("step_size", step_size) > common_step(lam, alpha, n):
        raise ValueError(f"step_size must be at most {common_step(lam, alpha, n):g}; got {step_size:g}")

    def rise(goal: float, target: float, latest: bool) -> float:
        if goal <= start:
            return 0.0
        if step_size is None:
            return float(mode_time(start, goal, target, n))
        return float(step_bounds(goal, target, alpha, step_size, n)[int(latest)])

    begin = max(rise(float(lam[i] - small[i]), float(lam[i]), True) for i in range(count))
    end = np.inf
    for target, most in zip(lam[count:].tolist(), rest.tolist(), strict=True):
        if target > start:  # rises, from below
            if most < target:
                end = min(end, rise(most, target, False) if most > start else 0.0)
        elif most < start:  # falls, and must have come down to ρ
            if most <= max(target, 0.0):
                end = 0.0
            else:
                begin = max(begin, float(mode_time(start, most, target, n)) / (step_size or 1.0))
    lower, upper = rank_bounds(lam, count, small, rest)
    distance = float(np.sqrt(np.sum(small**2) + np.sum(rest**2)))
    return RankInterval(count, begin, end, lower, upper, distance, step_size is not None)


# ---- off the factors' equality -----------------------------------------------------------------------------


def instability(d: ArrayLike, spectrum: ArrayLike, depth: int) -> Array:
    r"""Largest rate at which matrices W_j near V diag(d) Vᵀ leave the set of equal factors with eigenvectors V.

    Parameters
    ----------
    d : array (T, n)
        Eigenvalues of the factors.
    spectrum : array (n,)
        Eigenvalues λ of M, in the same order.
    depth : int
        Number N ≥ 2 of factors.

    Returns
    -------
    rate : array (T,)
        −λ_min of the Hessian of L off that set, at least 0.

    Raises
    ------
    ValueError
        If shapes do not fit.

    Notes
    -----
    The Hessian is block diagonal: for each i the factors' differences, with the N − 1 fold eigenvalue −r_i d_i^(N − 2),
    r = d^N − λ; for each pair i < j the 2N entries E_l(i, j), E_l(j, i), with
    ½ (Σ_l d_i^(N−l) d_j^(l−1) E_l(i, j))² + ½ (i ↔ j) + Σ_{l<m} (r_i d_i^(N−1−m+l) d_j^(m−l−1) E_m(i, j) E_l(j, i) + (i ↔ j)).
    A rounding error grows by no more than exp ∫ rate dt.  At N = 2 and λ_i < 0 the difference of the factors
    grows at the rate r_i = |λ_i| + d_i² at which d_i falls: their product is constant.
    """
    return _block_rates(d, spectrum, depth).max(axis=1)


def _block_rates(d: ArrayLike, spectrum: ArrayLike, depth: int) -> Array:
    """−λ_min (T, B) of the Hessian's blocks off the set of equal factors, at least 0."""
    n = check_depth(depth)
    lam = finite_array("spectrum", spectrum, ("n",))
    points = finite_array("d", d, ("T", len(lam)))
    residual = points**n - lam
    rates = list((residual * points ** (n - 2)).T)
    index = np.arange(1, n + 1)
    m, el = np.tril_indices(n, -1)
    apart = m - el
    for i in range(len(lam)):
        for j in range(i):
            a, b = points[:, i, None], points[:, j, None]
            p, q = a ** (n - index) * b ** (index - 1), b ** (n - index) * a ** (index - 1)
            block = np.zeros((len(points), 2 * n, 2 * n))
            block[:, :n, :n] = p[:, :, None] * p[:, None, :]
            block[:, n:, n:] = q[:, :, None] * q[:, None, :]
            block[:, m, n + el] = residual[:, i, None] * a ** (n - 1 - apart) * b ** (apart - 1)
            block[:, el, n + m] = residual[:, j, None] * b ** (n - 1 - apart) * a ** (apart - 1)
            block[:, n:, :n] = np.swapaxes(block[:, :n, n:], 1, 2)
            rates.append(-np.linalg.eigvalsh(block)[:, 0])
    return np.maximum(np.array(rates).T, 0.0)


def rounding_growth(d: ArrayLike, spectrum: ArrayLike, depth: int, step_size: float) -> Array:
    """How far rounding may take descent on the matrices from equal factors: an estimate, of first order.

    Parameters
    ----------
    d : array (K + 1, n)
        Eigenvalues of the factors at steps 0 … K.
    spectrum, depth
        As in :func:`instability`.
    step_size : float
        η.

    Returns
    -------
    distance : array (K + 1,)
        The largest over the Hessian's blocks of δ(k + 1) = (1 + η rate(k)) δ(k) + ε √n max d(k), ε the rounding
        unit.  Rounding may do better by chance: products of equal matrices may round equally.
    """
    growth = 1 + positive("step_size", step_size) * _block_rates(d, spectrum, depth)
    points = np.asarray(d, dtype=np.float64)
    seed = _EPS * np.sqrt(points.shape[1]) * np.abs(points).max(axis=1)
    state = np.full(growth.shape[1], seed[0])
    out = np.empty(len(points))
    for k in range(len(points)):
        out[k] = state.max()
        state = growth[k] * state + seed[k]
    return out
