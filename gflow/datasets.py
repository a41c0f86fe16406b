"""Named data: arrays in the shapes that :class:`gflow.Problem` takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow._check import finite_array, generator, non_negative, positive, positive_int

Array = NDArray[np.float64]


def whiten(X: ArrayLike) -> Array:
    """Inputs with second moment XᵀX / n = identity on their row space, to the numerical rank.

    Parameters
    ----------
    X : array (n, d)
        Inputs, one sample a row; not centred here.

    Returns
    -------
    array (n, d)
        X (XᵀX / n)^(−1/2), with the inverse taken on the row space: the inputs stay in their own
        coordinates (pixels stay pixels), and directions in which X vanishes stay zero.  Dimensionless.

    Raises
    ------
    ValueError
        If X is not a finite matrix, or is zero.
    """
    x = finite_array("X", X, ("n", "d"))
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    rank = int(np.sum(s > s[0] * max(x.shape) * np.finfo(float).eps))
    if s[0] == 0:
        raise ValueError("X must have an entry that is not zero to be whitened")
    return np.sqrt(len(x)) * u[:, :rank] @ vt[:rank]


def digits(centred: bool = False, whitened: bool = False) -> tuple[Array, Array]:
    """The 1,797 hand-written digits of scikit-learn, 8 × 8 pixels, with one-hot labels.

    Parameters
    ----------
    centred : bool
        Subtract the means of inputs and labels.  The labels then have rank nine: of the ten modes
        of the target one has strength zero.
    whitened : bool
        Whiten the inputs (:func:`whiten`), after centring.  Three of the 64 pixels are dark in every
        image, so that rank 61 remains.

    Returns
    -------
    X : array (1797, 64)
        Pixels, scaled to [0, 1].
    Y : array (1797, 10)
        One-hot labels.

    Notes
    -----
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), as
    distributed with scikit-learn.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = data.data / 16.0, np.eye(10)[data.target]
    if centred:
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return (whiten(x) if whitened else x), y


def hierarchy(levels: int = 3) -> tuple[Array, Array]:
    """The semantic tree of Saxe, McClelland, Ganguli: items at the leaves of a binary tree.

    Each node of the tree is a property that all items below it have.

    Parameters
    ----------
    levels : int
        Levels of branching ≥ 1: 2^levels items and 2^(levels + 1) − 1 properties.

    Returns
    -------
    X : array (2^levels, 2^levels)
        One-hot items, one a row.
    Y : array (2^levels, 2^(levels + 1) − 1)
        1 where the item (row) has the property (column), else 0; node by node from the root down.

    Raises
    ------
    ValueError
        If ``levels`` is not a whole number ≥ 1.

    Notes
    -----
    YᵀX has singular values √(2^(levels + 1) − 1) for the root, and √(2^(levels + 1 − l) − 1), 2^(l − 1)
    times, for the splits at level l = 1 … levels: broad distinctions are stronger than fine ones.
    Source: arXiv 1312.6120.
    """
    levels = positive_int("levels", levels)
    items = 2**levels
    nodes = [(level, j) for level in range(levels + 1) for j in range(2**level)]
    leaf = np.arange(items)
    y = np.array([(leaf >> (levels - level)) == j for level, j in nodes], dtype=np.float64).T
    return np.eye(items), np.ascontiguousarray(y)


def linear_teacher(
    n: int,
    d: int,
    noise: float = 0.0,
    rng: int | np.random.Generator | None = 0,
    margin: float = 0.0,
    teacher: ArrayLike | None = None,
) -> tuple[Array, Array]:
    """Gaussian inputs and a linear teacher's labels, with noise: y = β · x + noise × N(0, 1).

    Parameters
    ----------
    n, d : int
        Number and dimension of the inputs.
    noise : float
        Standard deviation σ ≥ 0 of the label noise.
    rng : int, numpy Generator or None
        Seed or generator; None draws a fresh seed.
    margin : float
        Keep only inputs with |β · x| > margin, for a unit β (arXiv 2410.02348 asks for a margin).
    teacher : array (d,), optional
        β; default the first unit vector.

    Returns
    -------
    X : array (n, d)
    Y : array (n, 1)

    Raises
    ------
    ValueError
        If a size is not a whole number ≥ 1, the noise or margin is negative, or the margin is so large (above
        4 in units of ‖β‖) that no inputs would be left.
    """
    n, d = positive_int("n", n), positive_int("d", d)
    noise, margin = non_negative("noise", noise), non_negative("margin", margin)
    if margin > 4:
        raise ValueError(
            f"margin must be at most 4, beyond which Gaussian inputs hardly come; got {margin:g}"
        )
    draw = generator("rng", rng)
    beta = np.eye(d)[0] if teacher is None else finite_array("teacher", teacher, (d,))
    kept: list[Array] = []
    while len(kept) < n:
        x = draw.standard_normal(d)
        if margin == 0 or abs(x @ beta) > margin * np.linalg.norm(beta):
            kept.append(x)
    x = np.array(kept)
    y = x @ beta + noise * draw.standard_normal(n)
    return x, y[:, None]


def orthogonal_inputs(
    n: int, d: int, rng: int | np.random.Generator | None = 0, labels: ArrayLike | None = None
) -> tuple[Array, Array]:
    """Orthonormal inputs, n ≤ d of them, with labels ±1 (random unless given).

    Parameters
    ----------
    n, d : int
        Number and dimension of the inputs, n ≤ d.
    rng : int, numpy Generator or None
        Seed or generator; None draws a fresh seed.
    labels : array (n,), optional

    Returns
    -------
    X : array (n, d)
    Y : array (n, 1)

    Raises
    ------
    ValueError
        If n > d, or a size is not a whole number ≥ 1.
    """
    n, d = positive_int("n", n), positive_int("d", d)
    if n > d:
        raise ValueError(f"n must be at most d = {d} for orthogonal inputs; got {n}")
    draw = generator("rng", rng)
    x = np.linalg.qr(draw.standard_normal((d, n)))[0].T
    y = draw.choice([-1.0, 1.0], n) if labels is None else finite_array("labels", labels, (n,))
    return np.ascontiguousarray(x), y[:, None]


def three_points(eta: float = 0.1) -> tuple[Array, Array]:
    """Three points in the plane at which early alignment spoils the end: all labels positive, all angles acute.

    From a small start every neuron aligns with the same direction, and the flow ends in the least-squares
    line's stationary point, with a positive loss.

    Parameters
    ----------
    eta : float
        Size 0 < η < 1/6 of the set-up's box.

    Returns
    -------
    X : array (3, 2)
        (−1 + η/2, 1 + η/2), (η/4, 1), (1 − η/2, 1 + η/2).
    Y : array (3, 1)
        1 + η/2, η/2, 1 + η/2.

    Notes
    -----
    Source: arXiv 2401.10791 (its three-point example; the points are the middle of its boxes).
    """
    eta = positive("eta", eta)
    if not eta < 1 / 6:
        raise ValueError(f"eta must lie below 1/6; got {eta:g}")
    x = np.array([[-1 + eta / 2, 1 + eta / 2], [eta / 4, 1.0], [1 - eta / 2, 1 + eta / 2]])
    y = np.array([1 + eta / 2, eta / 2, 1 + eta / 2])
    return x, y[:, None]


def symmetric_separable(
    n: int, d: int, rng: int | np.random.Generator | None = 0, margin: float = 0.2
) -> tuple[Array, Array]:
    """Separable data with a symmetry: with (x, y) also (−x, −y); labels are the sign of the first coordinate.

    Parameters
    ----------
    n, d : int
        Number of pairs and dimension: 2n samples.
    rng : int, numpy Generator or None
        Seed or generator; None draws a fresh seed.
    margin : float
        Least |x_1|, 0 < margin ≤ 4.

    Returns
    -------
    X : array (2 n, d)
    Y : array (2 n, 1)
        Labels ±1.

    Notes
    -----
    The assumption of arXiv 2110.13905.
    """
    margin = positive("margin", margin)
    x, _ = linear_teacher(n, d, rng=rng, margin=margin)
    y = np.sign(x[:, :1])
    return np.vstack([x, -x]), np.vstack([y, -y])
