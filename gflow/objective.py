"""Objective: a model on a problem, as functions of the parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow._check import finite_array
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
        for name in ("size", "gradient", "kernel_arguments"):
            if not hasattr(model, name):
                raise ValueError(f"model must have {name!r}; {type(model).__name__} has not (see gflow.models.base.Model)")
        self.model = model
        self.problem = problem
        self.size = int(model.size)
        data, dims, work_size = _kernel_arguments(model, problem)
        self.data, self.dims = data, dims
        self.work = np.zeros(work_size)
        self.weight_decay = float(getattr(problem, "weight_decay", 0.0))

    @property
    def gradient_kernel(self) -> abi.Kernel:
        """The compiled gradient."""
        return abi.as_kernel(self.model.gradient, abi.GRADIENT, "model.gradient")

    @property
    def loss_kernel(self) -> abi.Kernel:
        """The compiled loss."""
        return abi.as_kernel(self._need("loss"), abi.LOSS, "model.loss")

    @property
    def hvp_kernel(self) -> abi.Kernel:
        """The compiled Hessian-vector product."""
        return abi.as_kernel(self._need("hvp"), abi.HVP, "model.hvp")

    def has(self, name: str) -> bool:
        """Whether the model offers an optional name."""
        return getattr(self.model, name, None) is not None

    def _need(self, name: str) -> Any:
        if not self.has(name):
            raise ValueError(f"this needs model.{name}, which {type(self.model).__name__} does not have")
        return getattr(self.model, name)

    def check_theta(self, theta: ArrayLike, name: str = "theta") -> Array:
        """Parameters as a new float64 array (P,), or a ValueError that says what is wrong."""
        return finite_array(name, theta, (self.size,))

    def loss(self, theta: ArrayLike) -> float:
        """Loss at parameters (P,)."""
        kernel = self.loss_kernel
        return float(kernel.call(0.0, self.check_theta(theta), self.data, self.dims, self.work))

    def gradient(self, theta: ArrayLike) -> Array:
        """Gradient (P,) at parameters (P,)."""
        out = np.empty(self.size)
        self.gradient_kernel.call(0.0, self.check_theta(theta), self.data, self.dims, self.work, out)
        return out

    def hvp(self, theta: ArrayLike, v: ArrayLike) -> Array:
        """Hessian at parameters (P,) times v (P,)."""
        out = np.empty(self.size)
        theta, v = self.check_theta(theta), self.check_theta(v, "v")
        self.hvp_kernel.call(0.0, theta, v, self.data, self.dims, self.work, out)
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


def _kernel_arguments(model: Any, problem: Any) -> tuple[Array, NDArray[np.int64], int]:
    """A model's packed view of a problem; kept on a gflow problem, which never changes."""
    kept = getattr(problem, "_kernel_arguments", None)
    if kept is not None:
        try:
            return kept[model]
        except (KeyError, TypeError):
            pass
    data, dims, work_size = model.kernel_arguments(problem)
    data = np.array(data, dtype=np.float64).ravel()
    dims = np.array(dims, dtype=np.int64).ravel()
    if isinstance(kept, dict) and type(model).__hash__ is not None:
        kept.clear()  # one model at a time: the packed data may be large
        kept[model] = data, dims, int(work_size)
    return data, dims, int(work_size)
