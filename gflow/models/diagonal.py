"""Diagonal linear networks: β = w₊^D − w₋^D, u ∘ v or w^D, coordinate by coordinate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow._check import finite_array, generator, one_of, positive, positive_int
from gflow.kernels import abi
from gflow.kernels import diagonal as kernels
from gflow.models.base import Array, BatchArguments, Layered, loss_code
from gflow.models.logarithms import Dual, Logarithms, Noisy
from gflow.problem import Problem

FORMS = {"difference": kernels.DIFFERENCE, "product": kernels.PRODUCT, "power": kernels.POWER}


@dataclass(frozen=True)
class Diagonal(Layered):
    """Diagonal linear network f(x) = ⟨β, x⟩, one output.

    Parameters
    ----------
    inputs : int
        Dimension d of the inputs, and of β.
    depth : int
        Depth D ≥ 2.
    form : {"difference", "product", "power"}
        β = w₊^D − w₋^D, or u ∘ v (depth 2), or w^D; powers and products coordinate by coordinate.

    Raises
    ------
    ValueError
        If ``inputs`` is not a whole number ≥ 1, the depth not one ≥ 2 (2 for ``"product"``), or the form
        is unknown.

    Notes
    -----
    ``theta`` holds [w₊, w₋], [u, v] or [w], each (d,).  The difference and the product are the same network:
    with u = w₊ + w₋ and v = w₊ − w₋ one has u ∘ v = w₊² − w₋², but the flow of the difference is the
    faster one by a factor 2.

    Examples
    --------
    >>> model = Diagonal(3)
    >>> model.init(scale=0.1)
    array([0.1, 0.1, 0.1, 0.1, 0.1, 0.1])
    """

    inputs: int
    depth: int = 2
    form: str = "difference"

    def __post_init__(self) -> None:
        positive_int("inputs", self.inputs)
        one_of("form", self.form, FORMS)
        if positive_int("depth", self.depth) < 2:
            raise ValueError(f"depth must be a whole number >= 2; got {self.depth!r}")
        if self.form == "product" and self.depth != 2:
            raise ValueError(f'depth must be 2 for the form "product", u ∘ v; got {self.depth!r}')

    loss = property(lambda self: kernels.loss)
    gradient = property(lambda self: kernels.gradient)
    hvp = property(lambda self: kernels.hvp)

    @property
    def invariants_decay(self) -> float:
        """Rate r at which the conserved quantities fall as e^(−rμt) under weight decay μ."""
        return 2.0 if self.depth == 2 else 2.0 - self.depth

    @property
    def degree(self) -> int:
        """Degree D of homogeneity in the parameters."""
        return self.depth

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of w₊ and w₋, of u and v, or of w."""
        return ((self.inputs,),) * (1 if self.form == "power" else 2)

    def blocks(self) -> list[slice]:
        """Slices of ``theta`` that hold what belongs to one coordinate of β."""
        return [slice(i, None, self.inputs) for i in range(self.inputs)]

    def kernel_arguments(self, problem: Problem) -> tuple[Array, NDArray[np.int64], int]:
        """``data``, ``dims`` and the length of ``work`` that the kernels need for a problem."""
        self._check(problem)
        return self._kernel_arguments(problem, compress=True)

    def batch_arguments(self, problem: Problem, size: int) -> BatchArguments:
        """What the kernels need for batches of so many samples."""
        self._check(problem)
        samples, dims, _ = self._kernel_arguments(problem, compress=False)
        table, data, dims = kernels.batch_layout(samples, dims, size)
        return BatchArguments(len(problem.X), samples, table, data, dims, kernels.work_size(dims))

    def log_coordinates(self, problem: Problem, theta0: ArrayLike) -> Dual | Logarithms:
        """The coordinates of the flow from ``theta0`` for ``coords="log"``.

        Parameters
        ----------
        problem : Problem
        theta0 : array (P,)
            Start.

        Returns
        -------
        Dual or Logarithms
            At depth 2, and beyond.

        Raises
        ------
        ValueError
            If the problem has weight decay, log L in the place of L, or does not fit.
        """
        self._check(problem)
        if problem.weight_decay or problem.logarithm:
            what = (
                "log L in the place of L" if problem.logarithm else f"weight_decay = {problem.weight_decay:g}"
            )
            raise ValueError(f"coords must be 'plain' for a problem with {what}; got 'log'")
        if self.depth == 2:
            return Dual.of(self.form, problem, self.unpack(theta0))
        return Logarithms.of(self.depth, self.kernel_arguments(problem), self.unpack(theta0))

    def noisy_coordinates(self, problem: Problem, theta0: ArrayLike, step_size: float) -> Noisy:
        """The coordinates of the stochastic flow from ``theta0``, see :func:`gflow.stochastic_flow`.

        Parameters
        ----------
        problem : Problem
        theta0 : array (P,)
            Start.
        step_size : float
            γ of the stochastic gradient descent that the flow stands for.

        Returns
        -------
        Noisy

        Raises
        ------
        ValueError
            If the depth is not 2, the loss not the square loss, there is weight decay, or the problem does not fit.
        """
        self._check(problem)
        if self.depth != 2:
            raise ValueError(
                f"model must have depth 2 for the stochastic flow, whose noise is then multiplicative; got {self}"
            )
        if problem.loss != "square" or problem.weight_decay:
            raise ValueError(
                "problem must have the square loss and no weight decay for the stochastic flow; it has the "
                f"{problem.loss} loss and weight_decay = {problem.weight_decay:g}"
            )
        return Noisy.under(step_size, Dual.of(self.form, problem, self.unpack(theta0), compress=False))

    def log_escape(self, problem: Problem, theta0: ArrayLike) -> tuple[float, float]:
        """Logarithms of the time at which a flow leaves 0, and of that within which it then moves, for depth D > 2.

        A weight w grows from a small start as (w(0)^(2−D) − D (D−2) g t)^(−1/(D−2)), g = |∂L/∂β| at β = 0: past all
        bounds at the first, w(0)^(2−D) / (D (D−2) g), and from size 1 within the second, 1 / (D (D−2) g).  Both are
        inf if nothing leaves 0.
        """
        if self.depth == 2 or problem.weight_decay or problem.logarithm:
            return np.inf, np.inf
        d, product = self.inputs, Diagonal(self.inputs, form="product")
        data, dims, work = product.kernel_arguments(problem)
        slope = np.empty(2 * d)  # by u at u = 0, v = 1, that is by β at β = 0
        abi.as_kernel(kernels.gradient, "gradient").call(
            0.0, np.repeat([0.0, 1.0], d), data, dims, np.empty(work), slope
        )
        parts = np.array(self.unpack(theta0))
        sides = np.sign(parts) ** self.depth * np.array([1.0, -1.0])[: len(parts), None]
        grows = sides * slope[:d] < 0.0
        if not grows.any():
            return np.inf, np.inf
        pulls = np.broadcast_to(self.depth * (self.depth - 2) * np.abs(slope[:d]), parts.shape)[grows]
        paces = -np.log(pulls)
        times = paces - (self.depth - 2) * np.log(np.abs(parts[grows]))
        return float(times.min()), float(paces[times.argmin()])

    def _check(self, problem: Problem) -> None:
        self.check_problem(problem, self.inputs, 1)
        if problem.kind != "regression":
            raise ValueError(f"problem must hold samples X, Y for {self}; it is of kind {problem.kind!r}")

    def _kernel_arguments(self, problem: Problem, compress: bool) -> tuple[Array, NDArray[np.int64], int]:
        x, y, floor = problem.X, problem.Y, 0.0
        n, d = x.shape
        if compress and problem.loss == "square" and n > d:
            r: Any = np.linalg.qr(np.hstack([x, y]), mode="r")
            floor = float(problem.factor or 0.0) * float(np.sum(r[d:, d] ** 2))
            arrays = [problem.second_moment, problem.cross_moment, r[:d, :d], r[:d, d]]
            objective, n = kernels.MOMENTS, 0
        else:
            objective, arrays = kernels.SAMPLES + loss_code(problem), [x, y]
        header = np.array([problem.factor, problem.weight_decay, floor])
        data = np.concatenate([np.ravel(a) for a in (header, *arrays)])
        dims = np.array([objective, d, n, FORMS[self.form], self.depth], dtype=np.int64)
        return data, dims, kernels.work_size(dims)

    def init(
        self,
        kind: str = "balanced",
        scale: float | ArrayLike = 1e-3,
        rng: int | np.random.Generator | None = 0,
    ) -> Array:
        """Initial parameters (P,).

        Parameters
        ----------
        kind : {"balanced", "gaussian"}
            ``"balanced"``: w₊ = w₋ = α, or u = √2 α and v = 0, from which β(0) = 0; or w = α.
            ``"gaussian"``: entries N(0, α²).
        scale : float, or array (d,)
            α > 0: one number, or the shape of the start, a number for each coordinate.
        rng : int, numpy Generator or None
            Seed ≥ 0 or generator, of ``"gaussian"``; None draws a fresh seed.

        Returns
        -------
        theta0 : array (P,)

        Raises
        ------
        ValueError
            If the kind is unknown, an entry of the scale is not positive, or ``rng`` is no seed or generator.
        """
        one_of("kind", kind, ("balanced", "gaussian"))
        rng = generator("rng", rng)
        if np.ndim(scale) == 0:
            alpha = np.full(self.inputs, positive("scale", scale))
        else:
            alpha = finite_array("scale", scale, (self.inputs,))
            if alpha.min() <= 0:
                raise ValueError(f"scale must be > 0; scale[{alpha.argmin()}] is {alpha.min():g}")
        if kind == "gaussian":
            return self.pack([alpha * rng.standard_normal(self.inputs) for _ in self.shapes])
        if self.form == "product":
            return self.pack([np.sqrt(2.0) * alpha, np.zeros(self.inputs)])
        return self.pack([alpha] * len(self.shapes))

    def predictor(self, theta: ArrayLike) -> Array:
        """β (..., d) of parameters (..., P)."""
        parts = self.unpack(theta)
        if self.form == "product":
            return parts[0] * parts[1]
        if self.form == "power":
            return parts[0] ** self.depth
        return parts[0] ** self.depth - parts[1] ** self.depth

    def end_to_end(self, theta: ArrayLike) -> Array:
        """The map W = βᵀ (..., 1, d) of parameters (..., P)."""
        return self.predictor(theta)[..., None, :]

    def function(self, theta: ArrayLike, X: ArrayLike) -> Array:
        """Outputs f(x_i) (n, 1) at inputs (n, d)."""
        return finite_array("X", X, ("n", self.inputs)) @ self.end_to_end(theta).T

    def jacobian(self, theta: ArrayLike, X: ArrayLike) -> Array:
        """Derivative (n, 1, P) of the outputs f(x_i) by the parameters."""
        parts = self.unpack(theta)
        x = finite_array("X", X, ("n", self.inputs))[:, None, :]
        if self.form == "product":
            slopes = [parts[1], parts[0]]
        else:
            slopes = [
                sign * self.depth * w ** (self.depth - 1) for sign, w in zip((1, -1), parts, strict=False)
            ]
        return np.concatenate([x * slope for slope in slopes], axis=-1)

    def imbalance(self, theta: ArrayLike) -> list[Array]:
        """What the flow conserves, (..., d), in a list of one: w₊ w₋, w₊^(2−D) + w₋^(2−D) for D > 2, or u² − v².

        Empty for the form ``"power"``, and 0 where a parameter is 0 for D > 2, which stays so.  Weight decay μ
        makes them go as e^(−2μt), or e^((D−2)μt) for D > 2.
        """
        return [] if self.form == "power" else [self._invariants(theta)[0]]

    def invariants(self, theta: ArrayLike) -> tuple[Array, Array]:
        """The conserved quantities (d,) and the size (d,) of the terms that cancel in each.

        w₊ w₋ is that of ¼ (u² − v²), u = w₊ + w₋ and v = w₊ − w₋.
        """
        return (np.empty(0), np.empty(0)) if self.form == "power" else self._invariants(theta)

    def _invariants(self, theta: ArrayLike) -> tuple[Array, Array]:
        a, b = self.unpack(theta)
        if self.form == "product":
            return (a - b) * (a + b), np.maximum(a**2, b**2)
        if self.depth == 2:
            return a * b, 0.25 * (np.abs(a) + np.abs(b)) ** 2
        moving = (a != 0) & (b != 0)
        a, b = (np.where(moving, w, 1.0) ** (2.0 - self.depth) * moving for w in (a, b))
        return a + b, np.maximum(np.maximum(np.abs(a), np.abs(b)), ~moving)
