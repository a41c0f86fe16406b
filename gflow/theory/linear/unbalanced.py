"""One mode of a two-layer network, with any imbalance between its two factors."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow.theory.arguments import broadcast, real_array

Array = NDArray[np.float64]


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
    times, target, a, b = broadcast(
        t=real_array("t", t, 0.0), s=real_array("s", s), a0=real_array("a0", a0), b0=real_array("b0", b0)
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
