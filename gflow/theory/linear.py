r"""Closed forms for linear networks W = W_N ⋯ W_1 under gradient flow.

The pure functions are written for L = ½‖W − target‖² (whitened inputs): one unit of their time is one of
the flow's multiplied by the rate τ = 2 · factor · c, where XᵀX = c Π on the inputs' row space
(factorisation: τ = 2 · factor).  The predictions do that scaling.

Bounds
------
Let θ̄(t) be the predicted path, θ(t) the true one, ρ ≥ ‖θ − θ̄‖, ω = max‖W̄_j‖₂, and g = ‖(W̄ − W*) Π‖₂.
A product of M layers is at most π_M = (ω + ρ/√M)^M in norm, W − W̄ at most Δ(ρ) = (ω + ρ/√N)^N − ω^N,
and with φ(W) the loss as a function of W, convex, −λ_min(∇²L) ≤ m on the whole ball about θ̄:

    ρ' = m ρ + f,    m = τ (N − 1) (g + Δ(ρ)) π_{N−2},

f being the most that the true flow adds to the idealised one anywhere in the ball.  So ‖W − W̄‖₂ ≤ Δ(ρ).
This is no linearisation: where ρ outgrows ω it blows up in finite time, and the bound is inf from there on.

A start off the aligned ones changes the strengths u_iᵀ W v_i in second order only.  The loss is invariant
when u_i, v_i and the hidden direction i change sign, and its restriction to diagonal layers also when
the layers of a mode are exchanged; the aligned balanced path consists of fixed points.  So the gradient at
fixed points has no component off them, their Hessian no entries between the two, and for the part β of
θ − θ̄ among the fixed points, with ‖D³L[δ, δ]‖ ≤ D ‖δ‖² on the ball,

    β' = m β + ½ D ρ² + f,    D = τ (3 √N (N − 1) π_{N−1} π_{N−2} + N^{3/2} (g + Δ(ρ)) π_{N−3}),

and a strength changes by at most Δ(β) + ½ (N − 1) π_{N−2} ρ².  The smaller of the two bounds counts.

The inequalities are integrated upwards: in each step of the grid the norms along θ̄ are the larger ones of its
two ends, and ρ is a number that a whole step does not reach.  What is not proved is that no norm along θ̄ peaks
within a step, and rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import qr

from gflow._check import finite_array, positive_int
from gflow.models.linear import DeepLinear
from gflow.problem import KINDS, Problem
from gflow.theory.prediction import Hypothesis, Prediction, Refused

Array = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)


# ---- one mode, balanced ------------------------------------------------------------------------------------


def mode_strength(t: ArrayLike, s: ArrayLike, u0: ArrayLike, depth: float) -> Array:
    r"""Strength u(t) of one mode of a balanced, aligned network: u' = N (u²)^(1 − 1/N) (s − u).

    Parameters
    ----------
    t : array
        Times ≥ 0; ``inf`` gives the limit.  For ``depth=np.inf`` this is N·time, and the equation is
        u' = u² (s − u), the limit N → ∞.
    s : array
        Singular value of the target; any sign.
    u0 : array
        Strength at t = 0; any sign.
    depth : int or np.inf
        Number N ≥ 1 of weight matrices.

    Returns
    -------
    u : array
        Of the shape to which t, s and u0 broadcast.

    Raises
    ------
    ValueError
        If an argument is not finite, a time is negative, or the depth is not a whole number ≥ 1 or inf.

    Notes
    -----
    Backward stable: the error is that of a change of t, s and u0 by some units of rounding, even for
    u0 = 1e-100.  A start at u0 = 0 stays there if N ≥ 2.  Source: arXiv 1312.6120.
    """
    return _evolve(t, s, u0, depth)[0]


def mode_gap(t: ArrayLike, s: ArrayLike, u0: ArrayLike, depth: float) -> Array:
    """Distance s − u(t) of a mode from its target, to full relative accuracy however small it is.

    Arguments, errors and source as in :func:`mode_strength`.
    """
    return _evolve(t, s, u0, depth)[1]


def mode_time(u0: ArrayLike, uf: ArrayLike, s: ArrayLike, depth: float) -> Array:
    """Time in which a mode goes from strength u0 to uf; the inverse of :func:`mode_strength`.

    Parameters
    ----------
    u0, uf : array
        First and last strength.
    s : array
        Singular value of the target.
    depth : int or np.inf
        Number N ≥ 1 of weight matrices; for ``np.inf`` the result is N·time.

    Returns
    -------
    t : array
        Of the shape to which u0, uf and s broadcast.

    Raises
    ------
    ValueError
        If the flow from u0 does not reach uf in finite time, or an argument is invalid.

    Notes
    -----
    Relative accuracy is full also where uf is close to u0 or to s.  Source: arXiv 1312.6120.
    """
    n = _check_depth(depth)
    start, end, target = _broadcast(u0=_real("u0", u0), uf=_real("uf", uf), s=_real("s", s))
    shape = start.shape
    start, end, target = start.ravel(), end.ravel(), target.ravel()
    limit = target
    if n > 1:
        flip = np.where(start < 0, -1.0, 1.0)
        start, end, target = flip * start, flip * end, flip * target
        limit = np.where(start > 0, np.maximum(target, 0.0), 0.0)
    reached = (end == start) | ((start < end) & (end < limit)) | ((start > end) & (end > limit))
    if not reached.all():
        i = int(np.argmin(reached))
        sign = flip[i] if n > 1 else 1.0
        raise ValueError(
            f"uf is unreachable: it must lie between u0 = {sign * start[i]:g} and the limit "
            f"{sign * limit[i]:g}, which the flow reaches only as t -> inf; got uf = {sign * end[i]:g} "
            f"(s = {sign * target[i]:g})"
        )
    out = np.zeros(len(start))
    moving = end != start
    out[moving] = _duration(start[moving], end[moving], target[moving], n)
    return out.reshape(shape)[()]


def closed_form_time(u0: ArrayLike, uf: ArrayLike, s: ArrayLike, depth: float) -> Array:
    """The elementary antiderivatives of t(u0 → uf), for N = 1, 2, 3, 4 and ∞ and 0 < u0, uf < s.

    They are what one prints and cites.  As differences of large terms they lose digits where uf is close
    to u0, or both to s, which :func:`mode_time` does not.

    Parameters
    ----------
    u0, uf : array
        First and last strength.
    s : array
        Singular value of the target.
    depth : {1, 2, 3, 4, np.inf}
        Number N of weight matrices; for ``np.inf`` the result is N·time.

    Returns
    -------
    t : array
        Of the shape to which u0, uf and s broadcast.

    Raises
    ------
    ValueError
        If the depth is another, or a strength does not lie between 0 and s.

    Notes
    -----
    Source: arXiv 1312.6120 for N = 2 and ∞; with a = u^(1/3) and c = s^(1/3) the form for N = 3 is that of
    ∫ da / (a² (c³ − a³)).
    """
    start, end, target = _broadcast(u0=_real("u0", u0), uf=_real("uf", uf), s=_real("s", s))
    if isinstance(depth, bool) or not isinstance(depth, Real) or depth not in _ANTIDERIVATIVES:
        raise ValueError(f"depth must be 1, 2, 3, 4 or np.inf to have an elementary form; got {depth!r}")
    for name, u in (("u0", start), ("uf", end)):
        if np.any((u <= 0) | (u >= target)):
            raise ValueError(f"{name} must lie between 0 and s; got {name} = {u!r:.60}, s = {target!r:.60}")
    antiderivative = _ANTIDERIVATIVES[depth]
    return antiderivative(end, target) - antiderivative(start, target)


def _cubic(u: Array, s: Array) -> Array:
    a, c = np.cbrt(u), np.cbrt(s)
    angle = np.sqrt(3.0) * np.arctan((2 * a + c) / (np.sqrt(3.0) * c))
    return (-1 / a + (-np.log(c - a) + 0.5 * np.log(a * a + a * c + c * c) - angle) / (3 * c)) / s


_ANTIDERIVATIVES: dict[float, Callable[[Array, Array], Array]] = {
    1: lambda u, s: -np.log(s - u),
    2: lambda u, s: np.log(u / (s - u)) / (2 * s),
    3: _cubic,
    4: lambda u, s: (np.arctanh(np.sqrt(u / s)) / np.sqrt(s) - 1 / np.sqrt(u)) / (2 * s),
    np.inf: lambda u, s: np.log(u / (s - u)) / s**2 - 1 / (s * u),
}


def _check_depth(depth: float) -> float:
    if depth == np.inf:
        return np.inf
    try:
        return positive_int("depth", depth)
    except ValueError as error:
        raise ValueError(f"depth must be a whole number >= 1 or np.inf; got {depth!r}") from error


def _real(name: str, value: ArrayLike, lowest: float = -np.inf, infinite: bool = False) -> Array:
    """A float64 array, or a ValueError that names it."""
    try:
        raw = np.asarray(value)
        if raw.dtype.kind in "USc":  # which numpy would read, or make real
            raise TypeError("not real numbers")
        array = raw.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be real numbers; got {value!r:.80}") from error
    bad = np.isnan(array) | (array < lowest) | (np.isinf(array) & (not infinite))
    if bad.any():
        least = "" if lowest == -np.inf else f" >= {lowest:g}"
        raise ValueError(f"{name} must be {'' if infinite else 'finite '}numbers{least}; got {array[bad][0]}")
    return array


def _broadcast(**arrays: Array) -> tuple[Array, ...]:
    """The arrays in one shape, or a ValueError that names them."""
    try:
        return tuple(np.broadcast_arrays(*arrays.values()))
    except ValueError as error:
        *names, last = arrays
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(
            f"{', '.join(names)} and {last} must have shapes that broadcast together; got {shapes}"
        ) from error


def _exponents(n: float) -> tuple[float, float, float]:
    """(p, q, κ): u' = κ u^p (s − u), q = p − 1."""
    return (2.0, 1.0, 1.0) if n == np.inf else ((2 * n - 2) / n, (n - 2) / n, float(n))


def _evolve(t: ArrayLike, s: ArrayLike, u0: ArrayLike, depth: float) -> tuple[Array, Array]:
    """u(t) and s − u(t)."""
    n = _check_depth(depth)
    times, target, start = _broadcast(
        t=_real("t", t, 0.0, infinite=True), s=_real("s", s), u0=_real("u0", u0)
    )
    if n == 1:
        decay = np.exp(-times)
        return (start * decay - target * np.expm1(-times))[()], ((target - start) * decay)[()]
    shape = times.shape
    flip = np.where(start < 0, -1.0, 1.0).ravel()
    times, target, start = times.ravel(), flip * target.ravel(), flip * start.ravel()
    u, gap = np.zeros(len(flip)), target.copy()
    some = start > 0
    with np.errstate(over="ignore", divide="ignore", under="ignore"):
        u[some], gap[some] = (_logistic if n == 2 else _by_odds)(times[some], target[some], start[some], n)
    return (flip * u).reshape(shape)[()], (flip * gap).reshape(shape)[()]


def _logistic(t: Array, s: Array, u0: Array, n: float) -> tuple[Array, Array]:
    """Depth 2, u0 > 0."""
    size = np.abs(s)
    still = size == 0
    x = 2 * size * np.where(still, 0.0, t)
    decay, phi = np.exp(-x), np.where(still, 2 * t, -np.expm1(-x) / np.where(still, 1.0, size))
    rising = s > 0
    denominator = u0 * phi + np.where(rising, decay, 1.0)
    u = u0 * np.where(rising, 1.0, decay) / denominator
    return u, np.where(rising, (s - u0) * decay / denominator, s - u)


def _by_odds(t: Array, s: Array, u0: Array, n: float) -> tuple[Array, Array]:
    """Depth ≥ 3, u0 > 0: t(u) is inverted in the odds r, see :class:`_Clock`."""
    p, _, kappa = _exponents(n)
    u, gap = u0.copy(), s - u0
    size = np.abs(s)
    advance = kappa * size**p * np.where(size > 0, t, 0.0)

    flat = s == 0
    u[flat] = u0[flat] * (1 + p * kappa * u0[flat] ** p * t[flat]) ** (-1 / p)
    gap[flat] = -u[flat]
    for kind, where in _kinds(s, u0):
        clock = _clock(kind, n)
        r = clock.odds(clock.elapsed(_odds(kind, u0[where], s[where])) + advance[where])
        if kind == "below":
            u[where], gap[where] = size[where] / (1 + 1 / r), size[where] / (1 + r)
        elif kind == "above":
            u[where], gap[where] = size[where] * (1 + 1 / r), -size[where] / r
        else:
            u[where] = size[where] / r
            gap[where] = s[where] - u[where]
    return u, gap


def _kinds(s: Array, u0: Array) -> list[tuple[str, NDArray[np.bool_]]]:
    """How a start u0 > 0 lies to the target s ≠ 0, apart from u0 = s."""
    masks = (("below", (s > 0) & (u0 < s)), ("above", (s > 0) & (u0 > s)), ("negative", s < 0))
    return [(kind, mask) for kind, mask in masks if mask.any()]


def _odds(kind: str, u: Array, s: Array) -> Array:
    """u / (s − u) below the target, s / (u − s) above it, −s / u for a negative one: all grow in time."""
    if kind == "below":
        return u / (s - u)
    return s / (u - s) if kind == "above" else -s / u


def _duration(u0: Array, uf: Array, s: Array, n: float) -> Array:
    """t(u0 → uf) for reachable uf ≠ u0; u0 > 0 unless n = 1."""
    step = uf - u0
    if n == 1:
        return np.log1p(step / (s - uf))
    p, _, kappa = _exponents(n)
    out = np.empty(len(u0))
    flat = s == 0
    out[flat] = u0[flat] ** -p * np.expm1(p * np.log1p(-step[flat] / uf[flat])) / (p * kappa)
    for kind, where in _kinds(s, u0):
        a, b, c = u0[where], uf[where], s[where]
        change = step[where]
        if n == 2:
            x = c * change / (a * (c - b))  # odds ratio − 1
            ratio = b / (c - b) * ((c - a) / a)
            out[where] = np.where(x < -0.5, np.log(ratio), np.log1p(np.maximum(x, -0.5))) / (2 * c)
            continue
        more = (
            c * change / (a * (c - b)) if kind == "below" else -change / (b - np.maximum(c, 0.0))
        )  # odds ratio − 1
        clock = _clock(kind, n)
        r0, rf, length = _odds(kind, a, c), _odds(kind, b, c), np.log1p(more)
        direct = clock.panel(np.log(r0), np.minimum(length, 1.0))
        total = np.where(length < 1, direct, clock.elapsed(rf) - clock.elapsed(r0))
        out[where] = total / (kappa * np.abs(c) ** p)
    return out


_X, _W = np.polynomial.legendre.leggauss(12)
_X, _W = 0.5 * (_X + 1), 0.5 * _W
_EDGE = 40.0  # beyond w = ±40 the integrand equals its leading exponential to rounding


class _Clock:
    r"""The time that a mode takes, as a function of its odds r = e^w: F = ∫ sigmoid(w)^a e^{bw} dw.

    In units of 1/(κ |s|^p), with u' = κ u^p (s − u):
    below the target r = u/(s−u), a = −q, b = 0;  above it r = s/(u−s), a = p, b = 0;
    for a negative target r = |s|/u, a = 1, b = q.
    Gauss–Legendre on panels of unit width in w (the integrand is analytic for |Im w| < π); outside ±40 the
    leading exponential.  F is anchored so that F/F' stays of order 1 or |w|: adding to it loses no accuracy
    in w.
    """

    def __init__(self, a: float, b: float) -> None:
        self.a, self.b, self.left = a, b, a + b
        self.edges = np.arange(-_EDGE, _EDGE + 1)
        pieces = self.panel(self.edges[:-1], np.ones(len(self.edges) - 1))
        tail = np.exp(-self.left * _EDGE) / self.left
        if self.left > 0:  # from w = −∞
            self.values = tail + np.concatenate([[0.0], np.cumsum(pieces)])
            self.left_constant = 0.0
        else:  # from w = 0
            half = len(pieces) // 2
            down = np.cumsum(pieces[:half][::-1])[::-1]
            self.values = np.concatenate([-down, [0.0], np.cumsum(pieces[half:])])
            self.left_constant = self.values[0] - tail
        self.right_constant = self.values[-1] - (_EDGE if b == 0 else np.exp(b * _EDGE) / b)

    def speed(self, w: Array) -> Array:
        """dF/dw for |w| ≤ 700."""
        return (1 / (1 + np.exp(-w))) ** self.a * np.exp(self.b * w)

    def panel(self, w: Array, length: Array) -> Array:
        """Integral from w over a length ≤ 1."""
        return length * (self.speed(w[..., None] + length[..., None] * _X) @ _W)

    def elapsed(self, r: Array) -> Array:
        """F at odds r > 0."""
        w = np.log(r)
        inner = np.clip(w, -_EDGE, _EDGE)
        j = np.clip(np.floor(inner + _EDGE).astype(int), 0, len(self.edges) - 2)
        middle = self.values[j] + self.panel(self.edges[j], inner - self.edges[j])
        low = r**self.left / self.left + self.left_constant
        high = (w if self.b == 0 else r**self.b / self.b) + self.right_constant
        return np.where(w < -_EDGE, low, np.where(w > _EDGE, high, middle))

    def odds(self, value: Array) -> Array:
        """The odds r at which F is ``value``: tails explicitly, within a panel by bracketed Newton."""
        j = np.clip(np.searchsorted(self.values, value, side="right") - 1, 0, len(self.edges) - 2)
        edge, wanted = self.edges[j], value - self.values[j]
        lo, hi = np.zeros(len(value)), np.ones(len(value))
        x = np.clip(wanted / (self.values[j + 1] - self.values[j]), 0.0, 1.0)
        for _ in range(60):
            excess = self.panel(edge, x) - wanted
            lo, hi = np.where(excess < 0, x, lo), np.where(excess > 0, x, hi)
            trial = x - excess / self.speed(edge + x)
            trial = np.where((trial < lo) | (trial > hi), 0.5 * (lo + hi), trial)
            moved = np.abs(trial - x)
            x = trial
            if np.all(moved <= 2 * _EPS):
                break
        early, late = value < self.values[0], value > self.values[-1]
        near = np.where(early, value - self.left_constant, 1 / self.left)
        far = np.where(late, value - self.right_constant, 1.0)
        low = (self.left * near) ** (1 / self.left)
        high = np.exp(far) if self.b == 0 else (self.b * far) ** (1 / self.b)
        return np.where(early, low, np.where(late, high, np.exp(edge + x)))


@lru_cache(maxsize=64)
def _clock(kind: str, n: float) -> _Clock:
    p, q, _ = _exponents(n)
    return _Clock(*{"below": (-q, 0.0), "above": (p, 0.0), "negative": (1.0, q)}[kind])


# ---- one mode of two layers, any imbalance -----------------------------------------------------------------


def unbalanced_mode(t: ArrayLike, s: ArrayLike, a0: ArrayLike, b0: ArrayLike) -> tuple[Array, Array]:
    r"""The two factors of one mode of a two-layer network: a' = b (s − ab), b' = a (s − ab).

    Parameters
    ----------
    t : array
        Finite times ≥ 0.
    s : array
        Singular value of the target; any sign.
    a0, b0 : array
        Strengths of the mode in W_1 and in W_2 at t = 0; any signs, zero included.

    Returns
    -------
    a, b : array
        Of the shape to which the arguments broadcast; the strength of the mode is ab.

    Raises
    ------
    ValueError
        If an argument is not finite or a time is negative.

    Notes
    -----
    c = a² − b² is conserved, P = (a + b)² obeys the Riccati equation P' = 2sP − P²/2 + c²/2, and
    ab = (P − c²/P)/4; the factors follow from ab and c, the larger keeping its sign.  Nothing is singular at
    c = 0, and the smaller factor keeps its relative accuracy.
    Source: arXiv 1312.6120 (hyperbolic coordinates), here without their singularities.
    """
    times, target, a, b = _broadcast(
        t=_real("t", t, 0.0), s=_real("s", s), a0=_real("a0", a0), b0=_real("b0", b0)
    )
    big, small = np.maximum(np.abs(a), np.abs(b)), np.minimum(np.abs(a), np.abs(b))
    same = np.where((a < 0) == (b < 0), 1.0, -1.0)
    with np.errstate(under="ignore"):
        u = same * _strength_from_factors(times, same * target, big, small)
        c = (big - small) * (big + small)
        larger = np.sqrt(0.5 * (c + np.hypot(c, 2 * u)))
        smaller = np.divide(u, larger, out=np.zeros_like(u), where=larger > 0)
    first = np.abs(a) >= np.abs(b)
    sign = np.where(np.where(first, a, b) < 0, -1.0, 1.0)
    larger, smaller = sign * larger, sign * smaller
    return np.where(first, larger, smaller)[()], np.where(first, smaller, larger)[()]


def _strength_from_factors(t: Array, s: Array, big: Array, small: Array) -> Array:
    """ab at time t from factors big ≥ small ≥ 0, each sum of terms of one sign but for a true change of sign.

    With τ = tanh(Kt/2)/K, K² = 4s² + c²:  P = N/D, N = P0 (1 + 2sτ) + c²τ, D = 1 − 2sτ + P0 τ.
    """
    total = big + small
    p, c, size = total**2, (big - small) * total, 2 * np.abs(s)
    rate = np.hypot(size, c)
    safe = np.where(rate > 0, rate, 1.0)
    tau = np.where(rate > 0, np.tanh(0.5 * rate * t) / safe, 0.5 * t)
    rest = 2 / (1 + np.exp(rate * np.minimum(t, 700 / safe)))  # 1 − tanh
    shrinking = np.where(rate > 0, (c / safe) * (c / (safe + size)) + size / safe * rest, 1.0)  # 1 − 2|s|τ
    growing = 1 + size * tau
    falling = np.where(rate > 0, (size / safe) * (size / (safe + c)) + c / safe * rest, 1.0)  # 1 − cτ
    numerator = p * np.where(s < 0, shrinking, growing) + c * c * tau
    denominator = np.where(s < 0, growing, shrinking) + p * tau
    # N − cD, in two forms
    apart = 2 * total * (small * falling + 2 * s * tau * big)
    loss = 2 * size / safe * (c / (safe + size + c))
    near = p * ((size + c) / safe * rest - loss) - c * (falling + size * tau)
    difference = np.where((s < 0) & (c < 0.1 * p), near, apart)
    ratio = np.divide(c * denominator, numerator, out=np.zeros_like(numerator), where=numerator > 0)
    return 0.25 * difference * (1 + ratio) / denominator


# ---- two layers, all modes together ------------------------------------------------------------------------


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
    w1 = finite_array("W1", W1, ("h", "d"))
    w2 = finite_array("W2", W2, ("k", w1.shape[0]))
    goal = finite_array("target", target, (w2.shape[0], w1.shape[1]))
    times = np.atleast_1d(_real("t", t, 0.0))
    if times.ndim != 1:
        raise ValueError(f"t must have shape (T,); got {times.shape}")
    return _riccati(times, goal, w1, w2, _required_balance(w1, w2))


def _lambda_balance(w1: Array, w2: Array) -> tuple[float, float]:
    """λ, and ‖W2ᵀW2 − W1W1ᵀ − λI‖₂ relative to the larger term."""
    above, below = w2.T @ w2, w1 @ w1.T
    excess = above - below
    balance = float(np.trace(excess)) / len(excess)
    return balance, _relative(_norm2(excess - balance * np.eye(len(excess))), _norm2(above), _norm2(below))


def _required_balance(w1: Array, w2: Array) -> float:
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


# ---- Arora et al.: any balanced linear network, any loss ---------------------------------------------------


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


# ---- what the predictions share ----------------------------------------------------------------------------


def _norm2(matrix: Array) -> float:
    return float(np.linalg.norm(matrix, 2)) if matrix.size else 0.0


def _relative(size: float, *terms: float) -> float:
    """``size`` over the largest of the terms; 0 if all vanish."""
    largest = max(terms)
    return size / largest if largest > 0 else 0.0


class _Inputs(NamedTuple):
    """How the loss sees W: ∇φ = τ (W − W*) Π up to the whitening defect."""

    rate: float  # τ
    defect: float  # ‖XᵀX/c − Π‖₂
    rows: Array  # (r, d): orthonormal basis of the row space of X

    @property
    def projector(self) -> Array:
        return self.rows.T @ self.rows

    @property
    def complete(self) -> bool:
        return self.rows.shape[0] == self.rows.shape[1]


def _inputs(problem: Problem) -> _Inputs:
    if problem.kind == "factorization":
        return _Inputs(2 * float(problem.factor or 0.0), 0.0, np.eye(problem.inputs))
    x = np.asarray(problem.X)
    _, s, vt = np.linalg.svd(np.linalg.qr(x, mode="r"), full_matrices=False)
    rank = int(np.sum(s > max(x.shape) * _EPS * s[0])) if s[0] > 0 else 0
    if rank == 0:
        raise ValueError("problem must have inputs X that are not all zero")
    moments = s[:rank] ** 2
    c = float(moments.mean())
    rows = np.eye(x.shape[1]) if rank == x.shape[1] else vt[:rank]
    return _Inputs(2 * float(problem.factor or 0.0) * c, float(np.abs(moments / c - 1).max()), rows)


def _weights(
    model: Any, problem: Any, theta: ArrayLike, name: str, kinds: tuple[str, ...], layers: int | None = None
) -> list[Array]:
    """The weight matrices, or a ValueError where no closed form of this file covers the case."""
    if not isinstance(model, DeepLinear):
        raise ValueError(f"model must be a DeepLinear network here; got {type(model).__name__}")
    if layers is not None and model.depth != layers:
        raise ValueError(f"model must have {layers} weight matrices here; it has {model.depth}")
    if not isinstance(problem, Problem) or problem.kind not in kinds:
        got = f"one of kind {problem.kind!r}" if isinstance(problem, Problem) else type(problem).__name__
        raise ValueError(f"problem must be a Problem of kind {' or '.join(map(repr, kinds))}; got {got}")
    if problem.loss != "square":
        raise ValueError(f"problem must have the square loss here; it has {problem.loss!r}")
    if (problem.inputs, problem.outputs) != (model.widths[0], model.widths[-1]):
        raise ValueError(
            f"problem must have {model.widths[0]} inputs and {model.widths[-1]} outputs to fit {model}; "
            f"it has {problem.inputs} and {problem.outputs}"
        )
    return model.unpack(finite_array(name, theta, (model.size,)))


_DETERMINED = ("regression", "factorization")


def _product(weights: list[Array]) -> Array:
    out = weights[0]
    for w in weights[1:]:
        out = w @ out
    return out


def _balance_defect(weights: list[Array]) -> float:
    neighbours = zip(weights[:-1], weights[1:], strict=True)
    pairs = [(above.T @ above, below @ below.T) for below, above in neighbours]
    return max((_relative(_norm2(a - b), _norm2(a), _norm2(b)) for a, b in pairs), default=0.0)


def _distance(weights: list[Array], others: list[Array]) -> float:
    return float(np.sqrt(sum(np.sum((w - o) ** 2) for w, o in zip(weights, others, strict=True))))


class _Sizes(NamedTuple):
    """Norms along a predicted path: arrays (T,), or numbers at one time."""

    spectral: Any  # ‖(W − W*) Π‖₂
    frobenius: Any  # ‖(W − W*) Π‖_F
    layer: Any  # max ‖W_j‖₂
    theta: Any  # ‖θ‖


class _Cause(NamedTuple):
    """What takes the true path from the predicted one."""

    start: float = 0.0  # ‖θ − θ̄‖ at t = 0
    even: float | None = None  # the part of it that changes strengths in first order; None: all of it
    off: float = 0.0  # ‖[AᵀB; W_2 B]‖_F of two layers, see two_layer; the change of W that grows with it
    forcing: tuple[Callable[[_Sizes], Any], ...] = ()  # ‖f‖, given norms in the ball about θ̄

    def __add__(self, other: _Cause) -> _Cause:  # type: ignore[override]
        even = other.even if self.even is None else self.even
        return _Cause(self.start + other.start, even, self.off + other.off, self.forcing + other.forcing)


@dataclass(frozen=True)
class _Path:
    """A predicted path, as far as the bounds (see the module) need it."""

    depth: int
    rate: float
    whiteness: float  # 1 + whitening defect
    sizes: Callable[[Array], _Sizes]
    landmarks: Array = field(default_factory=lambda: np.empty(0))  # times that resolve the path's transitions
    _last: dict[bytes, tuple[Array, _Sizes]] = field(default_factory=dict, repr=False)

    def bound(self, cause: _Cause) -> Callable[[Array], Array]:
        """Bound on the observable's change up to times (T,)."""

        def bound(t: Array) -> Array:
            if not t.size:
                return np.zeros(0)
            grid, sizes = self._on_grid(t)
            reached = self._distances(cause, grid, sizes)
            change = [
                self._change(_Sizes(*(float(size[i]) for size in sizes)), cause, *state)
                for i, state in enumerate(reached)
            ]
            return np.maximum.accumulate(change)[np.searchsorted(grid, t)]

        return bound

    def _change(self, z: _Sizes, cause: _Cause, rho: float, beta: float, off: float) -> float:
        n = self.depth
        if rho == np.inf:
            return np.inf
        change = _widened(z.layer, rho, n)
        if cause.even is not None:
            bent = 0.5 * (n - 1) * _ball(z.layer, rho, n - 2) * rho**2
            change = min(change, _widened(z.layer, beta, n) + bent)
        return change + off

    def _distances(self, cause: _Cause, grid: Array, sizes: _Sizes) -> list[tuple[float, float, float]]:
        """(ρ, β, off) at the times of the grid, inf from where they blow up."""
        state = (cause.start, cause.start if cause.even is None else cause.even, cause.off)
        reached = [state]
        larger = np.array([np.maximum(size[1:], size[:-1]) for size in sizes])
        for length, values in zip(np.diff(grid), larger.T, strict=True):
            if state[0] < np.inf:
                state = self._over(float(length), _Sizes(*values.tolist()), cause, state)
            reached.append(state)
        return reached

    def _over(
        self, length: float, z: _Sizes, cause: _Cause, state: tuple[float, float, float]
    ) -> tuple[float, float, float]:
        """The state after a step of the grid, in parts so short that ρ is bounded ahead."""
        left, part = length, length
        while left > 0:
            part = min(part, left)
            after = self._part(part, z, cause, state)
            if after is None:
                part *= 0.5
                if part < 1e-4 * length:
                    return np.inf, np.inf, np.inf
                continue
            state, left, part = after, left - part, 2 * part
        return state

    def _part(
        self, time: float, z: _Sizes, cause: _Cause, state: tuple[float, float, float]
    ) -> tuple[float, float, float] | None:
        """The state after a time in which ρ does not reach the number that is tried; None if it may."""
        rho, beta, off = state
        n, rate, most = self.depth, self.rate, rho
        for factor in (1.001, 1.01, 1.1, 0.0):
            wider = _widened(z.layer, most, n)
            gap, near = z.spectral + wider, _ball(z.layer, most, n - 2)
            growth = (n - 1) * rate * self.whiteness * gap * near
            ball = _Sizes(gap, z.frobenius + wider, z.layer + most, z.theta + most)
            push = float(sum(f(ball) for f in cause.forcing))
            if not growth * time < 50 or not push < 1e100:
                return None
            grown = math.exp(growth * time)
            spread = math.expm1(growth * time) / growth if growth > 0 else time
            after = grown * rho + spread * push
            if after <= most:
                third = 3 * np.sqrt(n) * (n - 1) * _ball(z.layer, most, n - 1) * near
                if n > 2:
                    third += n**1.5 * gap * _ball(z.layer, most, n - 3)
                bend = 0.5 * rate * third * after**2
                return after, grown * beta + spread * (push + bend), grown * off
            most = factor * after
            if not most < 1e50:
                return None
        return None

    def _on_grid(self, t: Array) -> tuple[Array, _Sizes]:
        """A grid that resolves the path up to max t, and the path's sizes."""
        key = t.tobytes()
        if key in self._last:
            return self._last[key]
        end = float(np.max(t))
        marks = self.landmarks[self.landmarks < end]
        grid = np.unique(np.concatenate([[0.0], np.linspace(0.0, end, 401), marks, t]))
        self._last.clear()  # one set of times serves all hypotheses
        self._last[key] = grid, self.sizes(grid)
        return self._last[key]

    def common(self, inputs: _Inputs, problem: Problem, scale: float) -> list[tuple[Hypothesis, _Cause]]:
        """The hypotheses of every closed form: white inputs, no weight decay."""
        n, mu, rate = self.depth, problem.weight_decay, self.rate
        learning = n * rate * scale ** (2 - 2 / n)
        decay = (mu / learning if learning > 0 else np.inf) if mu > 0 else 0.0
        unwhite = np.sqrt(n) * rate * inputs.defect
        return [
            self.hypothesis(
                "inputs white on their row space",
                inputs.defect,
                _Cause(forcing=(lambda z: unwhite * z.layer ** (n - 1) * z.frobenius,)),
            ),
            self.hypothesis("no weight decay", decay, _Cause(forcing=(lambda z: mu * z.theta,))),
        ]

    def hypothesis(self, name: str, defect: float, cause: _Cause) -> tuple[Hypothesis, _Cause]:
        return Hypothesis(name, defect, effect=self.bound(cause)), cause

    def together(self, causes: Iterable[_Cause]) -> Callable[[Array], Array]:
        """Bound for all causes at once."""
        return self.bound(sum(causes, _Cause()))


def _ball(layer: float, rho: float, count: int) -> float:
    """Largest norm of a product of ``count`` layers, each of norm ≤ ``layer`` but for changes of ρ in all."""
    return (layer + rho / math.sqrt(count)) ** count if count > 0 else 1.0


def _widened(layer: float, rho: float, count: int) -> float:
    """``_ball(layer, rho, count) − layer**count``, however small."""
    more = rho / math.sqrt(count)
    if more >= layer:
        return (layer + more) ** count - layer**count
    return layer**count * math.expm1(count * math.log1p(more / layer))


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
        change += np.einsum("ai,ab,bi->i", u, _product(varied), v)
    return float(np.linalg.norm(change[some] / np.abs(strengths[some]) ** (1 - 1 / n)) / np.sqrt(n))


def _strengths(weights: list[Array], u: Array, v: Array) -> tuple[Array, Array]:
    """u_iᵀ W v_i, and W; a strength below its own rounding error is 0, as are those beyond the rank."""
    w = _product(weights)
    values = np.einsum("ai,ab,bi->i", u, w, v)
    terms = np.einsum("ai,ab,bi->i", np.abs(u), _product([np.abs(layer) for layer in weights]), np.abs(v))
    values[np.abs(values) <= _EPS * sum(layer.shape[1] for layer in weights) * terms] = 0.0
    rank = min(min(layer.shape) for layer in weights)
    values[np.argsort(-np.abs(values), kind="stable")[rank:]] = 0.0
    return values, w


def _row_space(inputs: _Inputs, v: Array, strengths: Array) -> tuple[Array, Array]:
    """1 for right vectors in the row space and 0 for those outside; |strength| × distance from that (K,)."""
    inside = inputs.projector @ v
    kept = np.round(np.sum(inside * v, axis=0))
    return kept, np.abs(strengths) * np.linalg.norm(inside - kept * v, axis=0)


def _row_space_hypothesis(
    path: _Path, inputs: _Inputs, astray: Array, strengths: Array
) -> list[tuple[Hypothesis, _Cause]]:
    if inputs.complete:
        return []
    n, size = path.depth, float(np.linalg.norm(astray))
    cause = _Cause(forcing=(lambda z: np.sqrt(n) * z.layer ** (n - 1) * path.rate * size,))
    defect = _relative(float(astray.max()), float(np.abs(strengths).max()))
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


# ---- predictions -------------------------------------------------------------------------------------------


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
    inputs, do not move.  ``bound`` holds for any start, see the module, and is inf from where it ceases to say
    anything.  The hypotheses of balance and of alignment have one effect, that of the distance from a nearest
    aligned balanced start.  Source: arXiv 1312.6120.
    """
    weights = _weights(model, problem, theta0, "theta0", _DETERMINED)
    inputs, n = _inputs(problem), model.depth
    u, s, v = problem.target_svd
    u0, w = _strengths(weights, u, v)
    kept, astray = _row_space(inputs, v, u0)
    rates = inputs.rate * kept

    idle = float(np.linalg.norm(w - u * u0 @ v.T)) if n == 1 else 0.0  # what one layer has beside the modes

    def formula(t: Array) -> Array:
        scaled = np.multiply(rates, t[:, None], out=np.zeros((len(t), len(rates))), where=rates > 0)
        return mode_strength(scaled, s, u0, n)

    def sizes(t: Array) -> _Sizes:
        scaled = rates * t[:, None]
        gap = np.abs(mode_gap(scaled, s, u0, n)) * kept
        layers = np.abs(mode_strength(scaled, s, u0, n)) ** (1 / n)
        return _Sizes(
            gap.max(axis=1),
            np.hypot(np.linalg.norm(gap, axis=1), idle),
            layers.max(axis=1),
            np.hypot(np.sqrt(n) * np.linalg.norm(layers, axis=1), idle),
        )

    path = _Path(n, inputs.rate, 1 + inputs.defect, sizes, _landmarks(u0, s, rates, n))
    listed = path.common(inputs, problem, float(s[0]))
    listed += _row_space_hypothesis(path, inputs, astray, u0)
    hypotheses, causes = [h for h, _ in listed], [cause for _, cause in listed]
    if n > 1:
        nearest = _nearest_aligned(weights, u, u0, v)
        start = _Cause(_distance(weights, nearest), _diagonal_part(weights, nearest, u, u0, v))
        askew = _relative(_norm2(w - u * u0 @ v.T), _norm2(w))
        hypotheses[2:2] = [
            Hypothesis("balanced start", _balance_defect(weights), effect=path.bound(start)),
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
    weights = _weights(model, problem, theta0, "theta0", _DETERMINED, layers=2)
    inputs = _inputs(problem)
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

    def sizes(t: Array) -> _Sizes:
        x, y = factors(t)
        gap = np.abs(s - x * y) * inside
        return _Sizes(
            gap.max(axis=1),
            np.linalg.norm(gap, axis=1),
            np.maximum(np.abs(x), np.abs(y)).max(axis=1),
            np.sqrt(np.sum(x**2 + y**2, axis=1)),
        )

    path = _Path(2, inputs.rate, 1 + inputs.defect, sizes)
    distance = _distance(weights, nearest)
    off = [np.einsum("hi,hd,di->i", frame, weights[0] - nearest[0], v)]
    off.append(np.einsum("ki,kh,hi->i", u, weights[1] - nearest[1], frame))
    diagonal = float(np.linalg.norm(off))
    scale = float(np.sqrt(sum(np.sum(w**2) for w in weights)))
    defect = _relative(distance, scale)
    start = _Cause(distance, diagonal)
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
    w1, w2 = _weights(model, problem, theta0, "theta0", _DETERMINED, layers=2)
    inputs = _inputs(problem)
    target = problem.target
    k, d = target.shape
    h = model.widths[1]
    active = w1 if inputs.complete else w1 @ inputs.projector
    frozen = w1 - active
    balance, missed = _lambda_balance(active, w2)
    excess = w2.T @ w2 - active @ active.T - balance * np.eye(h)

    def squares(t: Array) -> Array:
        return _riccati(inputs.rate * _real("t", t, 0.0), target, active, w2, balance)

    def sizes(t: Array) -> _Sizes:
        qq = squares(t)
        gap = qq[:, d:, :d] - target
        largest = [np.linalg.norm(block, 2, axis=(1, 2)) for block in (qq[:, :d, :d], qq[:, d:, d:])]
        return _Sizes(
            np.linalg.norm(gap, 2, axis=(1, 2)),
            np.linalg.norm(gap, axis=(1, 2)),
            np.sqrt(np.maximum(*largest)),
            np.sqrt(np.trace(qq, axis1=1, axis2=2)),
        )

    path = _Path(2, inputs.rate, 1 + inputs.defect, sizes)
    miss = float(np.linalg.norm(excess))
    missing = _Cause(forcing=(lambda z: inputs.rate * miss * z.layer / np.sqrt(2),))
    listed = [
        *path.common(inputs, problem, _norm2(target)),
        path.hypothesis("λ-balanced start", missed, missing),
    ]
    zero_balanced = abs(balance) <= 1e-10 * max(_norm2(w2) ** 2, _norm2(active) ** 2)
    if zero_balanced and k == len(inputs.rows) <= h:
        ends = [w @ inputs.rows.T for w in (w2 @ active, target)]
        full = all(np.linalg.matrix_rank(w, rtol=_EPS * max(k, d, h)) == k for w in ends)
        opposite = full and np.linalg.slogdet(ends[0])[0] != np.linalg.slogdet(ends[1])[0]
        name = "no sign obstruction (defect: 1 if det W(0) det W* < 0)"
        listed.append((Hypothesis(name, float(opposite), effect=np.zeros_like), _Cause()))
    if not inputs.complete:
        moving = np.vstack([active.T @ frozen, w2 @ frozen])
        defect = _relative(_norm2(moving), max(_norm2(w1), _norm2(w2)) ** 2)
        cause = _Cause(off=float(np.linalg.norm(moving)))
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
    weights = _weights(model, problem, theta, "theta", KINDS)
    n, rank = model.depth, min(model.widths)
    w = _product(weights)
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    u, s, v = u[:, :rank], s[:rank], vt[:rank].T
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = float(np.min(s[:-1] - s[1:], initial=np.inf))
        distinct, nonzero = np.nan_to_num(_EPS * s[0] / np.array([gap, s[-1]]), nan=np.inf, posinf=np.inf)
    hypotheses = (
        Hypothesis("balanced layers", _balance_defect(weights)),
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
