"""Named data: arrays in the shapes that :class:`gflow.Problem` takes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow._check import finite_array, positive_int

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
