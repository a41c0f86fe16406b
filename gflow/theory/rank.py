r"""Effective rank of products of many Gaussian matrices: it falls with their number.

The singular values σ of W_d ⋯ W_1, entries N(0, 1/n), follow as n → ∞ the Fuss–Catalan law of order d.  With an
angle φ between 0 and π/(d + 1),

    σ² = sin^{d+1}((d+1)φ) / (sin φ sin^d(dφ)),

which falls from (d+1)^{d+1}/d^d to 0, and the density of σ² is sin²φ sin^{d−1}(dφ) / (π sin^d((d+1)φ)) (K. Penson,
K. Życzkowski, arXiv 1103.3453).  Three closed forms of ours follow from it.

1.  The share of larger singular values is T(φ) = [(d+1)φ − d sin φ sin((d+1)φ) / sin(dφ)] / π: the law's transform is
    G = w / x with x = w^{d+1} / (w − 1), so that ∫ G dx = d w − log(w − 1), and T is −1/π times its imaginary part at
    w = e^{iφ} sin((d+1)φ) / sin(dφ), w − 1 = e^{i(d+1)φ} sin φ / sin(dφ).
2.  E σ^{2s} = Γ((d+1)s + 1) / (Γ(s + 1) Γ(ds + 2)) for real s ≥ 0 too, and not only for the whole s at which these are the
    Fuss–Catalan numbers: both sides are of exponential type less than π for Re s ≥ 0 (Carlson's theorem, after a change of
    scale the support is bounded by 1 and the gammas by Stirling's formula).
3.  With weights p_i ∝ σ_i^{2s} the entropy −Σ p ln p (the effective rank ρ of arXiv 2103.10427 for s = ½; of the Gram matrix
    for s = 1) is ln n − D_d(s), D_d(s) = s (d/ds) ln E σ^{2s} − ln E σ^{2s}, that is
    s [(d+1)ψ((d+1)s + 1) − ψ(s + 1) − d ψ(ds + 2)] − ln E σ^{2s}.  For the Gram matrix this is 1/2 + 1/3 + … + 1/(d+1).

The rank falls with the depth, strictly: ∂D_d(s)/∂d = s² [(d+1) ψ'((d+1)s + 1) − d ψ'(ds + 2)] ≥ s² ψ'(ds + 2) > 0 for
0 < s ≤ 1, as ψ' decreases and (d+1)s + 1 ≤ ds + 2.  That is theorem 1 of arXiv 2103.10427 in its limit of infinite width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import digamma, gammaln

from gflow._check import plain_array, positive, positive_int

Array = NDArray[np.float64]
#: Halvings of the interval of φ: as far as float64 still tells its ends from a point between them.
_HALVINGS = 50
#: Depths and powers for which differences of the gamma functions keep seven digits.
_DEEPEST, _POWERS = 10**6, (1e-3, 1e3)


def square(phi: ArrayLike, depth: int) -> Array:
    """σ² (...) at angles 0 < φ < π/(d + 1), for products of ``depth`` matrices; in units in which E σ² = 1."""
    return np.exp(_log_square(*_angles(phi, depth)))


def density(phi: ArrayLike, depth: int) -> Array:
    """Density (...) of the law of σ² at the angles φ, with respect to σ²; inf where float64 ends."""
    angle, d = _angles(phi, depth)
    middle, outer = _sines(angle, d)
    with np.errstate(over="ignore"):
        return np.exp(2 * np.log(np.sin(angle)) + (d - 1) * np.log(middle) - d * np.log(outer)) / np.pi


def larger(phi: ArrayLike, depth: int) -> Array:
    """Share (...) of the singular values above those at the angles φ: 0 … 1, to a few 1e-16."""
    return _larger(*_angles(phi, depth))


def density_of_angle(phi: ArrayLike, depth: int) -> Array:
    """Derivative (...) of :func:`larger` by φ: E f(σ²) is the integral of f(σ²(φ)) times this over φ."""
    angle, d = _angles(phi, depth)
    middle, outer = _sines(angle, d)
    turn = outer * (1 / np.tan(angle) + d**2 / np.tan(d * angle)) - (d + 1) ** 2 * np.cos((d + 1) * angle)
    return np.sin(angle) / (np.pi * middle) * turn


def moment(s: ArrayLike, depth: int) -> Array:
    """E σ^{2s} (...) at real s ≥ 0: the Fuss–Catalan numbers C((d+1)s, s) / (ds + 1) at whole s."""
    return np.exp(_log_moment(_orders(s), _depth(depth)))


def deficit(depth: int, power: float = 1.0) -> float:
    """D by which the entropy rank of a product of Gaussian matrices stays below ln n, as n → ∞.

    Parameters
    ----------
    depth : int
        Number d of matrices, up to a million as in all of this file.
    power : float
        Of the singular values in the weights p_i ∝ σ_i^power, 0.001 … 1000: 1 for the matrix, 2 for its Gram matrix.

    Returns
    -------
    float
        D > 0: the limit of ln n + Σ p ln p.  It increases with the depth for powers up to 2.  Relative error below
        1e-6, and below 1e-12 for depths up to a hundred and powers from 0.1 to 10.

    Raises
    ------
    ValueError
        If depth or power are no such numbers.

    Examples
    --------
    >>> round(float(np.exp(-deficit(2))), 5)
    0.66939
    """
    d, s = _depth(depth), 0.5 * positive("power", power)
    if not _POWERS[0] <= 2 * s <= _POWERS[1]:
        raise ValueError(f"power must lie between {_POWERS[0]:g} and {_POWERS[1]:g}; got {power!r}")
    slope = (d + 1) * digamma((d + 1) * s + 1) - digamma(s + 1) - d * digamma(d * s + 2)
    return float(s * slope - _log_moment(np.float64(s), d))


def entropy_rank(n: int, depth: int, power: float = 1.0) -> float:
    """Entropy rank ln n − D of a product of ``depth`` Gaussian matrices (n, n), up to what vanishes as n → ∞.

    Parameters
    ----------
    n : int
    depth, power
        As in :func:`deficit`.

    Returns
    -------
    float
        In nats; its exponential is the rank of Roy and Vetterli.
    """
    return float(np.log(positive_int("n", n))) - deficit(depth, power)


def share_below(sigma: ArrayLike, depth: int) -> Array:
    """Distribution function (...) of the singular values, in units in which E σ² = 1; to a few 1e-16."""
    values = np.asarray(plain_array("sigma", sigma, "(...)"), dtype=np.float64)
    if not np.all(values >= 0):
        raise ValueError(f"sigma must be >= 0; got {np.min(values):g}")
    d = _depth(depth)
    with np.errstate(divide="ignore"):
        wanted = 2 * np.log(values)
    phi = _solve(lambda angle: -_log_square(angle, d), -wanted, d)
    return np.where(values > 0, 1.0 - _larger(phi, d), 0.0)


def singular_values(n: int, depth: int) -> Array:
    """The n values (n,), descending, above which (i − ½)/n of the law lies: the singular values of a typical product.

    Parameters
    ----------
    n, depth : int

    Returns
    -------
    array (n,)
        For entries of variance 1/n.
    """
    d = _depth(depth)
    shares = (np.arange(positive_int("n", n)) + 0.5) / n
    return np.exp(0.5 * _log_square(_solve(lambda angle: _larger(angle, d), shares, d), d))


def _log_moment(s: ArrayLike, d: int) -> Array:
    s = np.asarray(s)
    return np.asarray(gammaln((d + 1) * s + 1) - gammaln(s + 1) - gammaln(d * s + 2))


def _orders(s: ArrayLike) -> Array:
    orders = np.asarray(plain_array("s", s, "(...)"), dtype=np.float64)
    if not np.all((orders >= 0) & np.isfinite(orders)):
        raise ValueError(f"s must be finite and >= 0; got {s!r:.80}")
    return orders


def _depth(depth: int) -> int:
    if positive_int("depth", depth) > _DEEPEST:
        raise ValueError(f"depth must be at most {_DEEPEST}; got {depth}")
    return int(depth)


def _angles(phi: ArrayLike, depth: int) -> tuple[Array, int]:
    d = _depth(depth)
    angle = np.asarray(plain_array("phi", phi, "(...)"), dtype=np.float64)
    if not np.all((angle > 0) & (angle < np.pi / (d + 1))):
        raise ValueError(f"phi must lie between 0 and pi / {d + 1} for depth {d}; got {phi!r:.80}")
    return angle, d


def _sines(angle: Array, d: int) -> tuple[Array, Array]:
    """sin(dφ) and sin((d+1)φ), which are positive, with small relative errors near both ends of φ."""
    left = (d + 1) * (np.pi / (d + 1) - angle)  # π − (d+1)φ
    return np.sin(np.minimum(d * angle, left + angle)), np.sin(np.minimum((d + 1) * angle, left))


def _log_square(angle: Array, d: int) -> Array:
    """ln σ², which neither over- nor underflows where powers of the sines do."""
    middle, outer = _sines(angle, d)
    return (d + 1) * np.log(outer) - np.log(np.sin(angle)) - d * np.log(middle)


def _larger(angle: Array, d: int) -> Array:
    middle, outer = _sines(angle, d)
    return np.asarray(((d + 1) * angle - d * np.sin(angle) * outer / middle) / np.pi)


def _solve(function: Callable[[Array], Array], wanted: Array, d: int) -> Array:
    """Angles at which a growing function takes the wanted values, by bisection; inside of the ends in any case."""
    low, high = np.zeros_like(wanted), np.full_like(wanted, np.pi / (d + 1))
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        beyond = function(middle) > wanted
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return np.asarray(0.5 * (low + high))
