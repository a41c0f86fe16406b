"""Sparse regression with Gaussian inputs, on which papers on diagonal networks try their theorems."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gflow.problem import Problem
from gflow.theory import bias

Array = NDArray[np.float64]


@dataclass(frozen=True)
class SparseRegression:
    """Inputs N(0, I), a teacher with a few entries, labels with noise.

    Attributes
    ----------
    samples, inputs, support : int
        n, d, and how many entries of the teacher, its first ones, are not 0.
    size : float
        Norm of the teacher, whose entries are of equal size.
    noise : float
        Standard deviation of the label noise.
    factor : float
        Of the loss.
    signs : bool
        Whether the teacher's entries alternate in sign.
    seed : int
    """

    samples: int
    inputs: int
    support: int
    size: float = 1.0
    noise: float = 0.0
    factor: float = 0.5
    signs: bool = False
    seed: int = 0

    @cached_property
    def teacher(self) -> Array:
        """β* (d,)."""
        beta = np.zeros(self.inputs)
        beta[: self.support] = self.size / np.sqrt(self.support)
        if self.signs:
            beta[1 : self.support : 2] *= -1
        return beta

    @cached_property
    def problem(self) -> Problem:
        """The regression."""
        draw = np.random.default_rng(self.seed)
        x = draw.standard_normal((self.samples, self.inputs))
        y = x @ self.teacher + self.noise * draw.standard_normal(self.samples)
        return Problem(x, y, factor=self.factor)

    @cached_property
    def least_l1(self) -> bias.MinimalNorm:
        """The interpolator of least ℓ1 norm."""
        return bias.minimal_l1(self.problem.X, self.problem.Y[:, 0])

    @cached_property
    def least_l2(self) -> bias.MinimalNorm:
        """The interpolator of least ℓ2 norm."""
        return bias.minimal_l2(self.problem.X, self.problem.Y[:, 0])

    def misfit(self, beta: Array) -> float:
        """‖Xβ − y‖ / ‖y‖."""
        x, y = self.problem.X, self.problem.Y[:, 0]
        return float(np.linalg.norm(x @ beta - y) / np.linalg.norm(y))

    def excess_l1(self, beta: Array) -> Any:
        """‖β‖₁ / least − 1 (...,) of interpolators β (..., d)."""
        return np.abs(beta).sum(axis=-1) / self.least_l1.norm - 1

    def test_error(self, beta: Array) -> Any:
        """‖β − β*‖² (...,) of β (..., d): the mean squared error on new inputs in excess of the noise."""
        return np.sum((beta - self.teacher) ** 2, axis=-1)
