"""Two-layer ReLU and leaky-ReLU networks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow._check import finite_array, generator, one_of, positive, positive_int
from gflow.kernels import relu as kernels
from gflow.models.base import Array, BatchArguments, Layered, loss_code
from gflow.problem import Problem

# Sine of the angle below which two inputs count as parallel.
_PARALLEL = 1e-13
# Matrices in a chain of first layers: products of more of them leave float64.
_LONGEST_CHAIN = 1000


@dataclass(frozen=True)
class TwoLayerReLU(Layered):
    """Two-layer network f(x) = A σ(W x), σ(z) = z for z > 0 and slope · z for z < 0.

    Parameters
    ----------
    inputs, width, outputs : int
        Dimension d of the inputs, number m of neurons, dimension k of the outputs.
    slope : float
        Slope γ ∈ [0, 1) of the inactive side: 0 for ReLU.
    train_outer : bool
        Whether A moves; a fixed outer layer is part of ``theta`` all the same and comes back unchanged.
    first_depth : int
        Number of matrices whose product is the first layer, W = W_l ⋯ W_1 with W_1 (m, d) and the others
        (m, m): the same functions, trained otherwise.  Such a network has no ``hvp`` and runs with
        ``events=False`` only: one neuron's kink moves all others.

    Notes
    -----
    ``theta`` holds W (or the chain W_1, W_2, …), then A, each row by row.  The flow is the differential
    inclusion of Clarke's subdifferential: it needs no value of σ'(0).
    """

    inputs: int
    width: int
    outputs: int = 1
    slope: float = 0.0
    train_outer: bool = True
    first_depth: int = 1

    def __post_init__(self) -> None:
        for name in ("inputs", "width", "outputs", "first_depth"):
            positive_int(name, getattr(self, name))
        if self.first_depth > _LONGEST_CHAIN:
            raise ValueError(f"first_depth must be at most {_LONGEST_CHAIN}; got {self.first_depth}")
        if isinstance(self.slope, bool) or not isinstance(self.slope, Real) or not 0 <= self.slope < 1:
            raise ValueError(f"slope must lie in [0, 1); got {self.slope!r}")
        if not isinstance(self.train_outer, bool):
            raise ValueError(f"train_outer must be True or False; got {self.train_outer!r}")

    invariants_decay = 2.0  # under weight decay μ they fall as e^(−2μt)
    kink_at = kernels.KINK
    loss = property(lambda self: kernels.loss)
    gradient = property(lambda self: kernels.gradient)

    @property
    def hvp(self) -> Any:
        """Hessian times a vector inside the pattern of the state; None for a chain of first layers."""
        return kernels.hvp if self.first_depth == 1 else None

    @property
    def piecewise(self) -> bool:
        """Whether the flow can locate this network's kinks."""
        return self.first_depth == 1

    @property
    def degree(self) -> int:
        """Degree of homogeneity in what is trained: the number of its matrices."""
        return self.first_depth + self.train_outer

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Shapes of W (or of W_1, W_2, …) and A."""
        m = self.width
        return ((m, self.inputs), *((m, m),) * (self.first_depth - 1), (self.outputs, m))

    def blocks(self) -> list[slice]:
        """The slices of ``theta`` that hold one neuron's w_j each, then those of the other matrices."""
        d, rest = self.inputs, self.layers()[1:]
        return [slice(j * d, (j + 1) * d) for j in range(self.width)] + rest

    def kernel_arguments(self, problem: Problem) -> tuple[Array, NDArray[np.int64], int]:
        """``data``, ``dims`` and the length of ``work`` that the kernels need for a problem."""
        self.check_problem(problem, self.inputs, self.outputs)
        if problem.kind != "regression":
            raise ValueError(f"problem must hold samples X, Y for {self}; it is of kind {problem.kind!r}")
        plane, coefficients, normals = hyperplanes(problem.X)
        header = np.array([problem.factor, problem.weight_decay, self.slope, self.slope])
        parts: list[Array] = [header, problem.X.T, problem.Y.T, coefficients, normals]
        data = np.concatenate([part.ravel() for part in parts])
        counts = np.bincount(plane[coefficients != 0], minlength=len(normals))
        members = np.argsort(np.where(coefficients != 0, plane, len(normals)), kind="stable")
        dims = np.array(
            [
                loss_code(problem), self.inputs, self.outputs, len(problem.X), self.width,
                self.train_outer, self.first_depth, len(normals), *plane, *members, 0, *np.cumsum(counts),
            ],
            dtype=np.int64,
        )  # fmt: skip
        return data, dims, kernels.work_size(dims)

    def batch_arguments(self, problem: Problem, size: int) -> BatchArguments:
        """What the kernels need for batches of so many samples."""
        samples, dims, _ = self.kernel_arguments(problem)
        table, data, dims = kernels.batch_layout(samples, dims, size)
        return BatchArguments(len(problem.X), samples, table, data, dims, kernels.work_size(dims))

    def init(
        self,
        kind: str = "balanced",
        scale: float = 1e-3,
        rng: int | np.random.Generator | None = 0,
        signs: ArrayLike | None = None,
        outer: float | None = None,
    ) -> Array:
        """Initial parameters (P,).

        Parameters
        ----------
        kind : {"gaussian", "balanced", "dominated"}
            ``"gaussian"``: all entries N(0, scale²).  ``"balanced"``: entries of W N(0, scale² / d) and
            ‖a_j‖ = ‖w_j‖.  ``"dominated"``: ‖a_j‖ = scale and w_j uniform in the ball of that radius, so
            that ‖a_j‖ ≥ ‖w_j‖ and the sign of a_j never changes (arXiv 2410.02348).
        scale : float
            Size of a neuron.
        rng : int, numpy Generator or None
            Seed or generator; None draws a fresh seed.
        signs : array (m,) of ±1, optional
            Signs of the outer weights, for one output; default random.
        outer : float, optional
            Size ‖a_j‖ of every outer weight instead of the kind's, for instance 1/√m for a fixed outer layer.

        Returns
        -------
        theta0 : array (P,)
            The further matrices of a chain of first layers are orthogonal, and its first one carries W.
        """
        one_of("kind", kind, ("gaussian", "balanced", "dominated"))
        size, m, d, k = positive("scale", scale), self.width, self.inputs, self.outputs
        rng = generator("rng", rng)
        w = rng.standard_normal((m, d)) * (size if kind == "gaussian" else size / np.sqrt(d))
        if kind == "dominated":
            w *= size * rng.random((m, 1)) ** (1 / d) / np.linalg.norm(w, axis=1, keepdims=True)
        direction = rng.standard_normal((k, m))
        length = size * np.abs(direction) if kind == "gaussian" and k == 1 else np.full((1, m), size)
        if kind == "balanced":
            length = np.linalg.norm(w, axis=1)[None]
        if outer is not None:
            length = np.full((1, m), positive("outer", outer))
        if kind == "gaussian" and k > 1 and outer is None:
            a = size * direction
        else:
            a = length * direction / np.linalg.norm(direction, axis=0)
        if signs is not None:
            given = finite_array("signs", signs, (m,))
            if k != 1 or not np.all(np.abs(given) == 1):
                raise ValueError(
                    f"signs must hold {m} entries +1 or -1, for a network of one output; got {signs!r:.60}"
                )
            a = np.abs(a) * given
        chain = [np.linalg.qr(rng.standard_normal((m, m)))[0] for _ in range(self.first_depth - 1)]
        for turn in chain:
            w = turn.T @ w
        return self.pack([w, *reversed(chain), a])

    def first_layer(self, theta: ArrayLike) -> Array:
        """W (..., m, d), the product of the chain if there is one."""
        w, *chain = self.unpack(theta)[:-1]
        for matrix in chain:
            w = matrix @ w
        return w

    def outer_layer(self, theta: ArrayLike) -> Array:
        """A (..., k, m)."""
        return self.unpack(theta)[-1]

    def function(self, theta: ArrayLike, X: ArrayLike) -> Array:
        """Outputs f(x_i) (n, k) at inputs (n, d)."""
        x = finite_array("X", X, ("n", self.inputs))
        z = x @ self.first_layer(theta).T
        return np.where(z > 0, z, self.slope * z) @ self.outer_layer(theta).T

    def invariants(self, theta: ArrayLike) -> tuple[Array, Array]:
        """What the flow conserves through all kinks (M,), and the size (M,) of the terms that cancel in each.

        The balances ‖a_j‖² − ‖w_j‖² (m,), none with a fixed outer layer; w_j is row j of the last matrix of a
        chain.  For a chain the entries of W_{l+1}ᵀW_{l+1} − W_l W_lᵀ (m, m), l = 1 … k − 1, come before them: below the
        kinks it is a linear network.
        """
        *chain, a = self.unpack(theta)
        values, sizes = [np.empty(0)], [np.empty(0)]
        for below, above in pairwise(chain):
            terms = above.T @ above, below @ below.T
            values.append((terms[0] - terms[1]).ravel())
            sizes.append(np.full(terms[0].size, max(np.abs(term).max() for term in terms)))
        if self.train_outer:
            squares = np.sum(a**2, axis=-2), np.sum(chain[-1] ** 2, axis=-1)
            values.append(squares[0] - squares[1])
            sizes.append(np.maximum(*squares))
        return np.concatenate(values), np.concatenate(sizes)

    def jacobian(self, theta: ArrayLike, X: ArrayLike) -> Array:
        """Derivative (n, k, P) of the outputs by the parameters, inside the pattern of theta; no chain."""
        if self.first_depth > 1:
            raise ValueError("the jacobian is offered for first_depth = 1")
        x = finite_array("X", X, ("n", self.inputs))
        w, a = self.unpack(theta)
        z = x @ w.T
        slopes = np.where(z > 0, 1.0, self.slope)
        by_w = np.einsum("kj,nj,nl->nkjl", a, slopes, x).reshape(len(x), self.outputs, -1)
        by_a = np.einsum("ab,nj->nabj", np.eye(self.outputs), slopes * z).reshape(len(x), self.outputs, -1)
        return np.concatenate([by_w, by_a * self.train_outer], axis=-1)


def hyperplanes(X: Array) -> tuple[NDArray[np.int64], Array, Array]:
    """Group inputs that are parallel, which share a kink.

    Returns
    -------
    plane : array of int (n,)
        Which hyperplane each sample belongs to.
    coefficients : array (n,)
        x_i = c_i u; 0 for an input that is zero and has no kink.
    normals : array (planes, d)
        Unit normals u.
    """
    largest = np.abs(X).max(axis=1, keepdims=True)
    scaled = X / np.where(largest > 0, largest, 1.0)  # so that no square over- or underflows
    lengths = np.linalg.norm(scaled, axis=1)
    plane, coefficients = np.zeros(len(X), dtype=np.int64), np.zeros(len(X))
    normals, count = np.empty_like(X), 0
    for i in np.flatnonzero(lengths):
        unit = scaled[i] / lengths[i]
        cosines = normals[:count] @ unit
        residual = np.sum((unit - cosines[:, None] * normals[:count]) ** 2, axis=1)
        same = np.flatnonzero(residual <= _PARALLEL**2)
        coefficients[i] = largest[i, 0] * lengths[i]
        if same.size:
            plane[i] = same[0]
            coefficients[i] *= np.sign(cosines[same[0]])
        else:
            plane[i], normals[count] = count, unit
            count += 1
    normals = normals[:count]
    if not len(normals):
        raise ValueError("X must have an input that is not zero")
    return plane, coefficients, normals
