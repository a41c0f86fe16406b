"""Coordinates of a diagonal network's flow for ``coords="log"``: models of their own, with the way back."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from gflow.kernels import diagonal
from gflow.kernels import logarithms as kernels
from gflow.models.base import Array, loss_code
from gflow.problem import Problem

#: A residual up to this, relative to the labels, is rounding.
_INTERPOLATES = 1e-10


@dataclass(frozen=True, eq=False)
class Dual:
    """Depth 2: one coordinate a sample, see ``kernels/logarithms.py``.

    Attributes
    ----------
    product : bool
        Whether the parameters are [u, v], whose pair is u + v, u − v, or are the pair themselves.
    single : bool
        Whether the parameters are [w] alone, the first of the pair; the second is 0.
    code : int
        The loss, as ``kernels/losses.py`` numbers it.
    signs, logs : arrays (2, d)
        Signs and logarithms of the sizes of the pair at the start; −inf where there is none.
    rows, labels : arrays (m, d), (m,)
        Those of the problem, or for the square loss as many that are equivalent as are independent (a zero if none is).
    factor : float
        The problem's.
    unit : float
        The coordinates are unit · ν, G = rowsᵀ ν: a change of them by 1 moves no logarithm by more than 1.
    """

    product: bool
    single: bool
    code: int
    signs: Array
    logs: Array
    rows: Array
    labels: Array
    factor: float
    unit: float

    @classmethod
    def of(cls, form: str, problem: Problem, parts: list[Array], compress: bool = True) -> Dual:
        """Of the weights at the start; ``compress`` chooses the coordinates, else they are nu of the samples."""
        u = parts[0]
        pair = np.array([u, np.zeros_like(u) if form == "power" else parts[1]])
        if form == "product":
            pair = np.array([pair[0] + pair[1], pair[0] - pair[1]])
        with np.errstate(divide="ignore"):
            logs = np.log(np.abs(pair))
        rows, labels = problem.X, problem.Y[:, 0]
        if compress and problem.loss == "square":
            left, sizes, right = np.linalg.svd(rows, full_matrices=False)
            rank = int(np.sum(sizes > sizes[0] * max(rows.shape) * np.finfo(float).eps))
            if rank > 0:
                rows, labels = sizes[:rank, None] * right[:rank], left[:, :rank].T @ labels
            else:  # no coordinate moves anything: one that rests
                rows, labels = np.zeros((1, rows.shape[1])), np.zeros(1)
        rate = 1.0 if form == "product" else 2.0
        unit = (rate * float(np.sqrt(np.max(np.sum(rows**2, axis=0)))) or 1.0) if compress else 1.0
        return cls(
            form == "product", form == "power", loss_code(problem), np.sign(pair), logs, rows, labels,
            float(problem.factor or 0.0), unit,
        )  # fmt: skip

    @property
    def rate(self) -> float:
        """Rate at which the logarithms follow G."""
        return 1.0 if self.product else 2.0

    gradient = property(lambda self: kernels.gradient)

    @property
    def loss(self) -> Any:
        """The function that the coordinates descend; None where the loss is not the square loss."""
        return kernels.potential if self.code == kernels.losses.SQUARE else None

    @property
    def hvp(self) -> Any:
        """Its Hessian times a vector."""
        return kernels.hvp if self.code == kernels.losses.SQUARE else None

    @property
    def size(self) -> int:
        """Number m of coordinates."""
        return len(self.labels)

    @property
    def start(self) -> Array:
        """The coordinates (m,) of the start."""
        return np.zeros(self.size)

    def check_limit(self) -> None:
        """Raise a ValueError if the coordinates have no limit as t → ∞: no β of the signs that there are interpolates."""
        up, down = self.signs != 0.0
        columns = np.hstack([self.rows[:, up], -self.rows[:, down]])
        size = float(np.linalg.norm(self.labels))
        if np.all(up & down) or size == 0.0:
            return
        off = size
        if columns.shape[1]:
            _, off = nnls(columns, self.labels, maxiter=max(100, 30 * columns.shape[1]))
        if off > _INTERPOLATES * size:
            raise ValueError(
                "t must be finite with coords='log' here, as the dual coordinates have no limit: no beta of the signs "
                "that the start allows interpolates, or attains the least-squares fit; the nearest is off by "
                f"{off / size:.3g}, relative (coords='plain' has a limit all the same)"
            )

    def kernel_arguments(self, problem: Any) -> tuple[Array, NDArray[np.int64], int]:
        """``data``, ``dims`` and the length of ``work`` that the kernels need."""
        header = np.array([self.factor, self.unit, self.rate, 0.25 if self.product else 1.0])
        data = np.concatenate([header, *(a.ravel() for a in (self.rows, self.labels, self.logs))])
        dims = np.array([self.code, self.rows.shape[1], self.size], dtype=np.int64)
        return data, dims, kernels.work_size(dims)

    def _logs(self, state: Array) -> tuple[Array, Array]:
        """Logarithms (..., d) of the sizes of the pair, of each state alike whatever stands beside it."""
        moved = np.empty((*state.shape[:-1], self.rows.shape[1]))
        for at in np.ndindex(state.shape[:-1]):
            np.dot(state[at], self.rows, out=moved[at])
        moved *= self.rate / self.unit
        return self.logs[0] - moved, self.logs[1] + moved

    def theta(self, state: Array) -> Array:
        """Parameters (..., P) at coordinates (..., m); 0 where they underflow."""
        a, b = self._logs(state)
        first, second = self.signs[0] * np.exp(a), self.signs[1] * np.exp(b)
        if self.single:
            return first
        if self.product:
            first, second = 0.5 * (first + second), 0.5 * (first - second)
        return np.concatenate([first, second], axis=-1)

    def log_theta(self, state: Array) -> Array:
        """Logarithms (..., P) of the parameters' sizes."""
        a, b = self._logs(state)
        if self.single:
            return a
        if self.product:
            top = np.maximum(a, b)
            ratio = self.signs[0] * self.signs[1] * np.exp(-np.abs(a - b))
            with np.errstate(divide="ignore"):
                a, b = (top + np.log1p(sign * ratio) - np.log(2.0) for sign in (1.0, -1.0))
        return np.concatenate([a, b], axis=-1)


@dataclass(frozen=True, eq=False)
class Noisy(Dual):
    """Depth 2 under multiplicative noise: one coordinate more, the integral of the loss, by which the pair shrinks.

    Attributes
    ----------
    shrink : array (d,)
        By how much the logarithms fall for each unit of that integral.
    """

    shrink: Array

    @property
    def stiffness(self) -> Array:
        """(d,): with the squares of both of the pair, the trace of the linearised drift of nu."""
        scale = 0.25 if self.product else 1.0
        return np.asarray(4.0 * self.factor * self.rate * scale * np.sum(self.rows**2, axis=0))

    @classmethod
    def under(cls, step_size: float, dual: Dual) -> Noisy:
        """With the noise of stochastic gradient descent of a step size."""
        shrink = 2.0 * dual.rate**2 * step_size * dual.factor * np.sum(dual.rows**2, axis=0)
        return cls(**{f.name: getattr(dual, f.name) for f in fields(dual)}, shrink=shrink)

    def _logs(self, state: Array) -> tuple[Array, Array]:
        fallen = state[..., -1:] * self.shrink
        a, b = super()._logs(state[..., :-1])
        return a - fallen, b - fallen


@dataclass(frozen=True, eq=False)
class Logarithms:
    """Depth D > 2: the logarithms of the parameters' sizes themselves.

    Attributes
    ----------
    signs, start : arrays (P,)
        Signs of the parameters, and the logarithms of their sizes; 0 for a parameter that is 0.
    weights : array (P,)
        The sign with which each \\|w\\|^D goes into β.
    data, dims : arrays
        The model's.
    """

    signs: Array
    start: Array
    weights: Array
    data: Array
    dims: NDArray[np.int64]

    @classmethod
    def of(
        cls, depth: int, arguments: tuple[Array, NDArray[np.int64], int], parts: list[Array]
    ) -> Logarithms:
        """Of the weights at the start, and what the model's kernels read."""
        signs = np.sign(parts)
        weights = signs**depth * np.array([1.0, -1.0])[: len(parts), None]
        logs = np.log(np.abs(np.where(signs == 0.0, 1.0, parts)))
        return cls(signs.ravel(), logs.ravel(), weights.ravel(), *arguments[:2])

    gradient = property(lambda self: kernels.deep_gradient)
    loss = hvp = None

    @property
    def size(self) -> int:
        """Number P of coordinates."""
        return len(self.start)

    def kernel_arguments(self, problem: Any) -> tuple[Array, NDArray[np.int64], int]:
        """``data``, ``dims`` and the length of ``work`` that the kernels need."""
        return np.append(self.data, self.weights), self.dims, diagonal.work_size(self.dims)

    def theta(self, state: Array) -> Array:
        """Parameters (..., P) at coordinates (..., P); 0 where they underflow."""
        return self.signs * np.exp(state)

    def log_theta(self, state: Array) -> Array:
        """Logarithms (..., P) of the parameters' sizes."""
        return np.where(self.signs == 0.0, -np.inf, state)
