"""Linear networks: DeepLinear (W = W_N ... W_1) and Symmetric (W = U Uᵀ)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow._check import finite_array, generator, number, one_of, positive, positive_int
from gflow.kernels import linear as kernels
from gflow.models.base import Array, BatchArguments, Layered, loss_code
from gflow.problem import Problem


def _orthonormal(rows: int, cols: int, rng: np.random.Generator) -> Array:
    """Haar-distributed orthonormal columns (rows, cols), or rows if there are fewer rows."""
    q, r = np.linalg.qr(rng.standard_normal((max(rows, cols), min(rows, cols))))
    q = q * np.sign(np.diag(r))
    return q if rows >= cols else q.T


def _completed(frame: Array, count: int) -> Array:
    """Orthonormal columns, and as many more as make ``count``."""
    return np.hstack([frame, np.linalg.qr(frame, mode="complete")[0][:, frame.shape[1] : count]])


def split_strength(s: ArrayLike, imbalance: float) -> tuple[Array, Array]:
    """Singular values s1, s2 of two layers with s1 s2 = s ≥ 0 and s2² − s1² = λ, the smaller without cancellation."""
    values = np.asarray(s, dtype=np.float64)
    large = np.sqrt(0.5 * (np.hypot(imbalance, 2 * values) + abs(imbalance)))
    small = np.divide(values, large, out=np.zeros_like(values), where=large > 0)
    return (small, large) if imbalance >= 0 else (large, small)


def _draw(kind: str, rows: int, cols: int, rng: np.random.Generator) -> Array:
    """A weight matrix of unit scale."""
    if kind == "gaussian":
        return rng.standard_normal((rows, cols))
    return _orthonormal(rows, cols, rng) if kind == "orthogonal" else np.eye(rows, cols)


def _kernel_data(problem: Problem, compress: bool) -> tuple[int, int, list[Array]]:
    """Objective, number of samples (0 if none are left) and arrays of a problem, as the kernels lay them out.

    Many samples are compressed to their moments, unless they are to be taken one by one.
    """
    if problem.loss != "square" and problem.kind != "regression":
        raise ValueError(
            f"problem must have the square loss for kind {problem.kind!r}: the {problem.loss} loss is one of "
            "labelled samples X, Y"
        )
    x, y = problem.X, problem.Y
    floor = 0.0
    if problem.kind == "regression":
        n, d = x.shape
        if problem.loss == "square" and n > d and compress:
            objective = kernels.COVARIANCE
            r: Any = np.linalg.qr(np.hstack([x, y]), mode="r")
            floor = float(problem.factor or 0.0) * float(np.sum(r[d:, d:] ** 2))
            arrays = [problem.second_moment, problem.cross_moment, r[:d, :d], r[:d, d:].T]
        else:
            objective = kernels.SAMPLES + loss_code(problem)
            arrays = [x.T, y.T]
    elif problem.kind == "factorization":
        objective, arrays = kernels.FACTORIZATION, [y]
    elif problem.kind == "sensing":
        objective, arrays = kernels.SENSING, [x, y]
    else:
        assert problem.mask is not None
        objective, arrays = kernels.COMPLETION, [y, problem.mask]
    header = np.array([problem.factor, problem.weight_decay, floor])
    return objective, 0 if objective == kernels.COVARIANCE else problem.samples or 0, [header, *arrays]


def _kernel_arguments(
    model: Any, problem: Problem, widths: Sequence[int], compress: bool = True
) -> tuple[Array, NDArray[np.int64], int]:
    objective, samples, arrays = _kernel_data(problem, compress)
    data = np.concatenate([np.ravel(a) for a in arrays])
    dims = np.array(
        [objective, problem.inputs, problem.outputs, samples, len(widths) - 1, *widths], dtype=np.int64
    )
    return data, dims, model._work_size(dims)


def _batch_arguments(model: Any, problem: Problem, widths: Sequence[int], size: int) -> BatchArguments:
    if problem.kind not in ("regression", "sensing"):
        hint = ": give its entries as measurements, Problem.sensing" if problem.kind == "completion" else ""
        raise ValueError(
            f"batch_size must be None for a problem of kind {problem.kind!r}, which is no sum over samples{hint}"
        )
    samples, dims, _ = _kernel_arguments(model, problem, widths, compress=False)
    table, data, dims = kernels.batch_layout(samples, dims, size)
    return BatchArguments(len(problem.Y), samples, table, data, dims, model._work_size(dims))


@dataclass(frozen=True)
class DeepLinear(Layered):
    """Deep linear network f(x) = W_N ⋯ W_1 x.

    Parameters
    ----------
    widths : sequence of int
        Widths (d, ..., k) of inputs, hidden layers and outputs; N = len(widths) − 1 weight matrices,
        W_l of shape (widths[l], widths[l − 1]).

    Raises
    ------
    ValueError
        If there are fewer than two widths, or one is not a whole number ≥ 1.

    Examples
    --------
    >>> model = DeepLinear((64, 32, 10))
    >>> theta0 = model.init("balanced", scale=1e-3, rng=0)
    >>> [w.shape for w in model.unpack(theta0)]
    [(32, 64), (10, 32)]
    """

    widths: tuple[int, ...]

    def __post_init__(self) -> None:
        try:
            widths = tuple(self.widths)
        except TypeError:
            widths = ()
        if len(widths) < 2:
            raise ValueError(f"widths must hold at least two widths, inputs and outputs; got {self.widths!r}")
        object.__setattr__(
            self, "widths", tuple(positive_int(f"widths[{i}]", w) for i, w in enumerate(widths))
        )

    invariants_decay = 2.0  # under weight decay μ they fall as e^(−2μt)
    loss = property(lambda self: kernels.loss)
    gradient = property(lambda self: kernels.gradient)
    hvp = property(lambda self: kernels.hvp)
    _work_size = staticmethod(kernels.work_size)

    @property
    def depth(self) -> int:
        """Number N of weight matrices."""
        return len(self.widths) - 1

    @property
    def degree(self) -> int:
        """Degree N of homogeneity in the parameters."""
        return self.depth

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Shapes (rows, columns) of W_1, ..., W_N."""
        return tuple(zip(self.widths[1:], self.widths[:-1], strict=True))

    def kernel_arguments(self, problem: Problem) -> tuple[Array, NDArray[np.int64], int]:
        """``data``, ``dims`` and the length of ``work`` that the kernels need for a problem."""
        self.check_problem(problem, self.widths[0], self.widths[-1])
        return _kernel_arguments(self, problem, self.widths)

    def lane_gradient(self, dims: NDArray[np.int64]) -> Any:
        """The compiled gradient of many small networks side by side, or None; also for a subclass with another gradient."""
        same = self.gradient is kernels.gradient
        return kernels.lane_gradient if same and kernels.serves_lanes(dims) else None

    def batch_arguments(self, problem: Problem, size: int) -> BatchArguments:
        """What the kernels need for batches of so many samples or measurements."""
        self.check_problem(problem, self.widths[0], self.widths[-1])
        return _batch_arguments(self, problem, self.widths, size)

    def init(
        self,
        kind: str = "balanced",
        scale: float | ArrayLike = 1e-3,
        rng: int | np.random.Generator | None = 0,
        problem: Problem | None = None,
        imbalance: float = 0.0,
    ) -> Array:
        """Initial parameters (P,).

        Parameters
        ----------
        kind : {"balanced", "aligned", "gaussian", "orthogonal", "identity"}
            ``"gaussian"``: entries N(0, scale²).  ``"orthogonal"``: each W_l = scale × Haar
            orthonormal columns or rows.  ``"identity"``: each W_l = scale × I (rectangular).
            ``"balanced"``: W_{l+1}ᵀW_{l+1} = W_l W_lᵀ, from the singular vectors of a Gaussian
            matrix and its singular values divided by the largest, so that the largest singular
            value of each W_l is ``scale``.  ``"aligned"``: balanced, and along the singular vectors
            of the problem's target; each of the min(widths) modes has strength scale^N.
        scale : float, or array (min(widths),) for ``"aligned"``
            Size of one layer.
        rng : int, numpy Generator or None
            Seed ≥ 0 or generator; None draws a fresh seed.
        problem : Problem, optional
            Needed by ``"aligned"`` only.
        imbalance : float
            λ of W_2ᵀW_2 − W_1W_1ᵀ = λ I, for two layers that are ``"balanced"`` or ``"aligned"`` but for it: the
            end-to-end map stays what it is without.  λ > 0 needs a hidden layer no wider than the outputs,
            λ < 0 than the inputs.  In units of weight².

        Returns
        -------
        theta0 : array (P,)

        Raises
        ------
        ValueError
            If the kind is unknown, the scale is not positive, ``rng`` is no seed or generator, the problem is
            missing, of other widths or without a target, or an imbalance is asked of other kinds or widths.
        """
        one_of("kind", kind, ("balanced", "aligned", "gaussian", "orthogonal", "identity"))
        rng = generator("rng", rng)
        balance = self._check_imbalance(imbalance, kind)
        if kind == "aligned":
            return self._aligned(scale, rng, problem, balance)
        size = positive("scale", scale)
        if kind == "balanced":
            return self._balanced(size, rng, balance)
        return self.pack([size * _draw(kind, rows, cols, rng) for rows, cols in self.shapes])

    def _chain(self, left: Array, strengths: Array, right: Array, rng: np.random.Generator) -> Array:
        """W_l = R_l diag(strengths) R_{l-1}ᵀ with R_0 = right, R_N = left and random frames between."""
        frames = [right, *(_orthonormal(w, len(strengths), rng) for w in self.widths[1:-1]), left]
        return self.pack([frames[j + 1] * strengths @ frames[j].T for j in range(self.depth)])

    def _check_imbalance(self, imbalance: float, kind: str) -> float:
        balance = number("imbalance", imbalance)
        if balance == 0:
            return 0.0
        if self.depth != 2 or kind not in ("balanced", "aligned"):
            raise ValueError(
                f'imbalance must be 0 but for two layers and the kinds "balanced" and "aligned"; got {balance:g} for '
                f"{self.depth} layers and the kind {kind!r}"
            )
        d, h, k = self.widths
        if h > (k if balance > 0 else d):
            side, width = ("outputs", k) if balance > 0 else ("inputs", d)
            raise ValueError(
                f"imbalance {balance:g} needs at most as many hidden units as {side}, {width}: W_2ᵀW_2 − W_1W_1ᵀ has "
                f"rank {width} at most on that side; the hidden width is {h}"
            )
        return balance

    def _two_layers(
        self, left: Array, strengths: Array, right: Array, rng: np.random.Generator, balance: float
    ) -> Array:
        """W_2 W_1 = left diag(strengths²) rightᵀ with W_2ᵀW_2 − W_1W_1ᵀ = λ I."""
        h = self.widths[1]
        first, second = split_strength(strengths**2, balance)
        frame = _orthonormal(h, h, rng)
        rank = len(strengths)
        one = frame[:, :rank] * first[:rank] @ right.T
        two = left * second[:rank] @ frame[:, :rank].T
        wide = _completed(left if balance > 0 else right, h)[:, rank:]
        rest = np.sqrt(abs(balance)) * frame[:, rank:]
        if balance > 0:
            return self.pack([one, two + wide @ rest.T])
        return self.pack([one + rest @ wide.T, two])

    def _balanced(self, scale: float, rng: np.random.Generator, balance: float) -> Array:
        rank = min(self.widths)
        u, s, vt = np.linalg.svd(rng.standard_normal((self.widths[-1], self.widths[0])), full_matrices=False)
        strengths = scale * (s[:rank] / s[0]) ** (1 / self.depth)
        if balance:
            return self._two_layers(u[:, :rank], strengths, vt[:rank].T, rng, balance)
        return self._chain(u[:, :rank], strengths, vt[:rank].T, rng)

    def _aligned(
        self, scale: float | ArrayLike, rng: np.random.Generator, problem: Problem | None, balance: float
    ) -> Array:
        if problem is None:
            raise ValueError('problem must be given for kind "aligned": its target has the singular vectors')
        self.check_problem(problem, self.widths[0], self.widths[-1])
        rank = min(self.widths)
        if np.ndim(scale) == 0:
            strengths = np.full(rank, positive("scale", scale))
        else:
            strengths = finite_array("scale", scale, (rank,))
        u, _, v = problem.target_svd
        if balance:
            return self._two_layers(u[:, :rank], strengths, v[:, :rank], rng, balance)
        return self._chain(u[:, :rank], strengths, v[:, :rank], rng)

    def end_to_end(self, theta: ArrayLike) -> Array:
        """End-to-end map W = W_N ⋯ W_1 (..., k, d) of parameters (..., P)."""
        weights = self.unpack(theta)
        product = weights[0]
        for w in weights[1:]:
            product = w @ product
        return product

    def function(self, theta: ArrayLike, X: ArrayLike) -> Array:
        """Outputs f(x_i) (n, k) at inputs (n, d)."""
        return finite_array("X", X, ("n", self.widths[0])) @ self.end_to_end(theta).T

    def imbalance(self, theta: ArrayLike) -> list[Array]:
        """Imbalance matrices W_{l+1}ᵀW_{l+1} − W_l W_lᵀ (..., w_l, w_l), l = 1 … N − 1.

        The flow conserves them; weight decay μ makes them decay as e^(−2μt).
        """
        return [above - below for above, below in self._imbalance_terms(theta)]

    def _imbalance_terms(self, theta: ArrayLike) -> list[tuple[Array, Array]]:
        weights = self.unpack(theta)
        return [
            (np.swapaxes(above, -1, -2) @ above, below @ np.swapaxes(below, -1, -2))
            for below, above in pairwise(weights)
        ]

    def invariants(self, theta: ArrayLike) -> tuple[Array, Array]:
        """Entries (M,) of the imbalance matrices, and the size (M,) of the terms that cancel in each."""
        values, sizes = [np.empty(0)], [np.empty(0)]
        for above, below in self._imbalance_terms(theta):
            values.append((above - below).ravel())
            sizes.append(np.full(above.size, max(np.abs(above).max(), np.abs(below).max())))
        return np.concatenate(values), np.concatenate(sizes)

    def jacobian(self, theta: ArrayLike, X: ArrayLike) -> Array:
        """Derivative (n, k, P) of the outputs f(x_i) by the parameters."""
        weights = self.unpack(theta)
        x = finite_array("X", X, ("n", self.widths[0]))
        below = [x]
        for w in weights[:-1]:
            below.append(below[-1] @ w.T)
        above = np.eye(self.widths[-1])
        blocks = []
        for w, inputs in zip(reversed(weights), reversed(below), strict=True):
            blocks.append(np.einsum("ka,nb->nkab", above, inputs).reshape(len(x), self.widths[-1], -1))
            above = above @ w
        return np.concatenate(blocks[::-1], axis=-1)


@dataclass(frozen=True)
class Symmetric(Layered):
    """Symmetric factorisation f(x) = U Uᵀ x.

    Parameters
    ----------
    dimension : int
        Rows of U: inputs and outputs.
    rank : int
        Columns of U.

    Notes
    -----
    For the factorisation of M with the default factor ½ the flow is dU/dt = −2 (UUᵀ − M) U
    (M symmetric).
    """

    dimension: int
    rank: int

    def __post_init__(self) -> None:
        positive_int("dimension", self.dimension)
        positive_int("rank", self.rank)

    degree = 2  # of homogeneity in the parameters
    loss = property(lambda self: kernels.symmetric_loss)
    gradient = property(lambda self: kernels.symmetric_gradient)
    hvp = property(lambda self: kernels.symmetric_hvp)
    _work_size = staticmethod(kernels.symmetric_work_size)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Shape of U, in a tuple of one."""
        return ((self.dimension, self.rank),)

    def kernel_arguments(self, problem: Problem) -> tuple[Array, NDArray[np.int64], int]:
        """``data``, ``dims`` and the length of ``work`` that the kernels need for a problem."""
        self.check_problem(problem, self.dimension, self.dimension)
        return _kernel_arguments(self, problem, (self.dimension, self.rank))

    def batch_arguments(self, problem: Problem, size: int) -> BatchArguments:
        """What the kernels need for batches of so many samples or measurements."""
        self.check_problem(problem, self.dimension, self.dimension)
        return _batch_arguments(self, problem, (self.dimension, self.rank), size)

    def init(
        self, kind: str = "gaussian", scale: float = 1e-3, rng: int | np.random.Generator | None = 0
    ) -> Array:
        """Initial parameters (P,).

        Parameters
        ----------
        kind : {"gaussian", "orthogonal", "identity"}
            ``"gaussian"``: entries N(0, scale²); ``"orthogonal"``: scale × Haar orthonormal
            columns or rows; ``"identity"``: scale × I (rectangular).
        scale : float
            Size of U, > 0, as the kind says.
        rng : int, numpy Generator or None
            Seed ≥ 0 or generator; None draws a fresh seed.

        Returns
        -------
        theta0 : array (P,)
            U (dimension, rank), row by row; P = dimension × rank.

        Raises
        ------
        ValueError
            If the kind is unknown, the scale is not positive, or ``rng`` is no seed or generator.
        """
        one_of("kind", kind, ("gaussian", "orthogonal", "identity"))
        size = positive("scale", scale)
        rng = generator("rng", rng)
        return self.pack([size * _draw(kind, self.dimension, self.rank, rng)])

    def end_to_end(self, theta: ArrayLike) -> Array:
        """End-to-end map W = U Uᵀ (..., d, d) of parameters (..., P)."""
        (u,) = self.unpack(theta)
        return u @ np.swapaxes(u, -1, -2)

    def function(self, theta: ArrayLike, X: ArrayLike) -> Array:
        """Outputs f(x_i) (n, d) at inputs (n, d)."""
        return finite_array("X", X, ("n", self.dimension)) @ self.end_to_end(theta).T

    def jacobian(self, theta: ArrayLike, X: ArrayLike) -> Array:
        """Derivative (n, d, P) of the outputs f(x_i) by the parameters."""
        (u,) = self.unpack(theta)
        x = finite_array("X", X, ("n", self.dimension))
        j = np.einsum("ka,nb->nkab", np.eye(self.dimension), x @ u) + np.einsum("kb,na->nkab", u, x)
        return j.reshape(len(x), self.dimension, self.size)
