"""One mode of a balanced, aligned network of any depth: u' = N u^(2 − 2/N) (s − u), and how long it takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from numbers import Real

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow._check import positive_int
from gflow.theory.arguments import broadcast, real_array

Array = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)


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
    start, end, target = broadcast(u0=real_array("u0", u0), uf=real_array("uf", uf), s=real_array("s", s))
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
    start, end, target = broadcast(u0=real_array("u0", u0), uf=real_array("uf", uf), s=real_array("s", s))
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


def _exponents(n: float) -> tuple[float, float, float]:
    """(p, q, κ): u' = κ u^p (s − u), q = p − 1."""
    return (2.0, 1.0, 1.0) if n == np.inf else ((2 * n - 2) / n, (n - 2) / n, float(n))


def _evolve(t: ArrayLike, s: ArrayLike, u0: ArrayLike, depth: float) -> tuple[Array, Array]:
    """u(t) and s − u(t)."""
    n = _check_depth(depth)
    times, target, start = broadcast(
        t=real_array("t", t, 0.0, infinite=True), s=real_array("s", s), u0=real_array("u0", u0)
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
