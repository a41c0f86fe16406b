"""Measures of weight matrices W_1, …, W_N: their product, how far they are from balance and from others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def _norm2(matrix: Array) -> float:
    return float(np.linalg.norm(matrix, 2)) if matrix.size else 0.0


def _relative(size: float, *terms: float) -> float:
    """``size`` over the largest of the terms; 0 if all vanish."""
    largest = max(terms)
    return size / largest if largest > 0 else 0.0


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
