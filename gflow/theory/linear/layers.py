"""Measures of weight matrices W_1, …, W_N: their product, how far they are from balance and from others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def norm2(matrix: Array) -> float:
    """Spectral norm; 0 of an empty matrix."""
    return float(np.linalg.norm(matrix, 2)) if matrix.size else 0.0


def relative(size: float, *terms: float) -> float:
    """``size`` over the largest of the terms; 0 if all vanish."""
    largest = max(terms)
    return size / largest if largest > 0 else 0.0


def product(weights: list[Array]) -> Array:
    """End-to-end map W_N ⋯ W_1."""
    out = weights[0]
    for w in weights[1:]:
        out = w @ out
    return out


def balance_defect(weights: list[Array]) -> float:
    """Largest ‖W_{j+1}ᵀW_{j+1} − W_jW_jᵀ‖₂, relative to the larger term."""
    neighbours = zip(weights[:-1], weights[1:], strict=True)
    pairs = [(above.T @ above, below @ below.T) for below, above in neighbours]
    return max((relative(norm2(a - b), norm2(a), norm2(b)) for a, b in pairs), default=0.0)


def distance(weights: list[Array], others: list[Array]) -> float:
    """‖θ − θ'‖ of two networks."""
    return float(np.sqrt(sum(np.sum((w - o) ** 2) for w, o in zip(weights, others, strict=True))))
