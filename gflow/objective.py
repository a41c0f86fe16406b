"""Objective: a model on a problem, as functions of the parameters."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow._check import finite_array, one_of, positive_int
from gflow.kernels import abi

Array = NDArray[np.float64]


class Objective:
    """Loss, gradient and Hessian-vector product of a model on a problem.

    Parameters
    ----------
    model : Model
        See :class:`gflow.models.base.Model`.
    problem : Problem
        Or whatever a user's own ``model.kernel_arguments`` takes.

    Raises
    ------
    ValueError
        If the model does not fit the problem, or lacks a name that every model needs.
    """

    def __init__(self, model: Any, problem: Any) -> None:
        view = _view(model, problem)
        self.model, self.problem, self._view = model, problem, view
        self.size, self.data, self.dims = view.size, view.data, view.dims
        self.work = np.zeros(view.work_size)
        self._gradient: abi.Kernel | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without addresses of compiled code, which mean nothing in another process."""
        kept = {name: value for name, value in vars(self).items() if not isinstance(value, abi.Kernel)}
        return {**kept, "_gradient": None}

    @property
    def weight_decay(self) -> float:
        """Coefficient μ of the penalty in the loss."""
        return float(getattr(self.problem, "weight_decay", 0.0))

    @property
    def blocks(self) -> NDArray[np.int64]:
        """Start, stop and step (B, 3) of the slices of the parameters that are of one size each."""
        return self._view.blocks

    @property
    def widest(self) -> int:
        """A bound on the sides of the matrices in the kernels."""
        return self._view.widest

    @property
    def nanoseconds(self) -> float:
        """What a gradient may take, by the numbers that it sees: good to a factor of some, to choose methods by.

        A user's gradient that does more with each number is taken for cheaper than it is, and its implicit steps for
        dearer.
        """
        return self._view.nanoseconds

    @property
    def gradient_kernel(self) -> abi.Kernel:
        """The compiled gradient."""
        if self._gradient is None:  # cached_property takes a lock, for longer than this
            self._gradient = abi.as_kernel(self.model.gradient, "gradient")
        return self._gradient

    @cached_property
    def loss_kernel(self) -> abi.Kernel:
        """The compiled loss."""
        return abi.as_kernel(self._need("loss"), "loss")

    @cached_property
    def hvp_kernel(self) -> abi.Kernel:
        """The compiled Hessian-vector product."""
        return abi.as_kernel(self._need("hvp"), "hvp")

    @cached_property
    def lane_kernel(self) -> abi.Kernel | None:
        """The compiled gradient of many states side by side, or None where the model has none for this problem."""
        offered = self.model.lane_gradient(self.dims) if self.has("lane_gradient") else None
        return None if offered is None else abi.as_kernel(offered, "lane_gradient")

    def has(self, name: str) -> bool:
        """Whether the model offers an optional name."""
        return getattr(self.model, name, None) is not None

    def _need(self, name: str) -> Any:
        if not self.has(name):
            chain = getattr(self.model, "first_depth", 1) > 1
            instead = (
                "; with first_depth=1 it has one: pack([first_layer(theta), outer_layer(theta)])"
                if chain
                else ""
            )
            raise ValueError(
                f"this needs model.{name}, which {type(self.model).__name__} does not have{instead}"
            )
        return getattr(self.model, name)

    def check_theta(self, theta: ArrayLike | None, name: str = "theta") -> Array:
        """Parameters as a new float64 array (P,), or a ValueError that says what is wrong."""
        return finite_array(name, theta, (self.size,))

    def loss(self, theta: ArrayLike) -> float:
        """Loss at parameters (P,)."""
        kernel = self.loss_kernel.call
        return float(abi.call(kernel, 0.0, self.check_theta(theta), self.data, self.dims, self.work))

    def losses(self, thetas: ArrayLike) -> Array:
        """Loss (T,) at each row of parameters (T, P)."""
        thetas = finite_array("thetas", thetas, ("T", self.size))
        out = np.empty(len(thetas))
        abi.losses(self.loss_kernel, self.data, self.dims, self.work, thetas, out)
        return out

    def gradient(self, theta: ArrayLike) -> Array:
        """Gradient (P,) at parameters (P,)."""
        out = np.empty(self.size)
        kernel = self.gradient_kernel.call
        abi.call(kernel, 0.0, self.check_theta(theta), self.data, self.dims, self.work, out)
        return out

    def try_gradient(self, theta: Array) -> None:
        """Call a user's gradient once, so that what is wrong with it shows: compiled code cannot raise."""
        if not type(self.model).__module__.startswith("gflow."):
            self.gradient(theta)

    def hvp(self, theta: ArrayLike, v: ArrayLike) -> Array:
        """Hessian at parameters (P,) times v (P,)."""
        out = np.empty(self.size)
        theta, v = self.check_theta(theta), self.check_theta(v, "v")
        abi.call(self.hvp_kernel.call, 0.0, theta, v, self.data, self.dims, self.work, out)
        return out

    def hessian(self, theta: ArrayLike) -> Array:
        """Dense Hessian (P, P): P Hessian-vector products, made symmetric."""
        theta = self.check_theta(theta)
        kernel, rows, unit = self.hvp_kernel.call, np.empty((self.size, self.size)), np.zeros(self.size)
        for i in range(self.size):
            unit[i] = 1.0
            kernel(0.0, theta, unit, self.data, self.dims, self.work, rows[i])
            unit[i] = 0.0
        return 0.5 * (rows + rows.T)

    def eigenvalues(
        self, theta: ArrayLike, k: int | None = None, which: str = "largest", tol: float = 0.0
    ) -> Array:
        """Hessian eigenvalues in descending order: all (P,), or the k largest or smallest (k,).

        Dense for P <= 500 or where the Lanczos iteration cannot serve; else
        ``scipy.sparse.linalg.eigsh`` on Hessian-vector products, to the relative accuracy ``tol``
        (0: rounding).

        Raises
        ------
        ValueError
            If all eigenvalues are asked for with P > 5000, where the dense matrix would be too large.
        """
        one_of("which", which, ("largest", "smallest"))
        k = self.size if k is None else min(positive_int("k", k), self.size)
        if self.size <= 500 or k > self.size // 4:
            if self.size > 5000:
                raise ValueError(
                    f"k must be at most P / 4 = {self.size // 4} for P = {self.size} > 5000; got {k}"
                )
            values = np.asarray(np.linalg.eigvalsh(self.hessian(theta))[::-1], dtype=np.float64)
            return values[:k] if which == "largest" else values[self.size - k :]
        from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

        theta = self.check_theta(theta)
        out, kernel = np.empty(self.size), self.hvp_kernel.call

        def product(v: Array) -> Array:
            kernel(0.0, theta, np.array(v, dtype=np.float64).ravel(), self.data, self.dims, self.work, out)
            return out.copy()

        operator = LinearOperator((self.size, self.size), matvec=product, dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(self.size)  # the same answer on every call
        options = {"v0": start, "return_eigenvectors": False}
        try:
            if which == "largest":
                values = eigsh(operator, k=k, which="LA", tol=tol, **options)
            else:  # shifted by the largest: the accuracy is then relative to that, and zeros do no harm
                top = float(eigsh(operator, k=1, which="LA", tol=1e-2, **options)[0])
                shifted = LinearOperator(
                    operator.shape, matvec=lambda v: product(v) - top * v, dtype=np.float64
                )
                values = top + eigsh(shifted, k=k, which="SA", tol=tol, **options)
        except ArpackNoConvergence as error:
            raise RuntimeError(
                f"the {k} {which} eigenvalues of the Hessian (P = {self.size}) did not converge; "
                "a larger tol, or fewer of them, may"
            ) from error
        return np.asarray(np.sort(values)[::-1], dtype=np.float64)


class _View:
    """What all objectives of one model on one problem share."""

    def __init__(self, model: Any, problem: Any) -> None:
        for name in ("size", "gradient", "kernel_arguments"):
            if not hasattr(model, name):
                raise ValueError(
                    f"model must have {name!r}; {type(model).__name__} has not (see gflow.models.base.Model)"
                )
        if isinstance(model, type):
            raise ValueError(f"model must be an object, as {model.__name__}(...) makes it; got the class")
        self.model, self.size = model, int(model.size)
        made = model.kernel_arguments(problem)
        try:
            data, dims, work_size = made
            usable = int(work_size) >= 0
        except (TypeError, ValueError):
            usable = False
        if not usable:
            raise ValueError(
                f"model.kernel_arguments must return data, dims and the length >= 0 of work; got {made!r:.80}"
            )
        self.data = np.array(data, dtype=np.float64).ravel()
        self.dims = np.array(dims, dtype=np.int64).ravel()
        self.work_size = int(work_size)

    @cached_property
    def blocks(self) -> NDArray[np.int64]:
        listed = getattr(self.model, "blocks", None)
        slices = [slice(None)] if listed is None else listed()
        return np.array([block.indices(self.size) for block in slices], dtype=np.int64).reshape(-1, 3)

    @cached_property
    def nanoseconds(self) -> float:
        return float(self.data.size + self.work_size + 8 * self.size + 100)

    @cached_property
    def widest(self) -> int:
        return int(max(self.dims.tolist(), default=0))


def _view(model: Any, problem: Any) -> _View:
    """A model's view of a problem; kept on a gflow problem, which never changes, for a model that is its fields.

    That is a frozen dataclass whose fields can be hashed: an array, say, might change.
    """
    kept = getattr(problem, "_views", None)
    if kept:
        try:
            return kept[model]
        except (KeyError, TypeError):
            pass
    made = _View(model, problem)
    kind = getattr(type(model), "__dataclass_params__", None)
    if isinstance(kept, dict) and kind is not None and kind.frozen and kind.eq:
        kept.clear()  # one model at a time: the packed data may be large
        with suppress(TypeError):
            kept[model] = made
    return made
