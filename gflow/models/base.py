"""What a model is: the few names that solvers and observables ask of it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@runtime_checkable
class Model(Protocol):
    """A network, as the solvers see it; a user's own class needs no base class.

    Attributes
    ----------
    size : int
        Number of parameters P.
    gradient : numba function
        ``gradient(t, theta, data, dims, work, out)``, decorated with ``@numba.njit`` (better:
        ``@numba.njit(cache=True)``), writing the gradient of the loss, (P,), to ``out``.

    Notes
    -----
    Optional names; what needs a missing one says so:

    ``loss``
        numba function ``loss(t, theta, data, dims, work) -> float``.
    ``hvp``
        numba function ``hvp(t, theta, v, data, dims, work, out)``: Hessian times ``v``.
    ``invariants(theta)``
        The conserved quantities (M,) and the size (M,) of the terms that cancel in each.
    ``blocks()``
        Slices of ``theta`` (layers, neurons), from whose sizes the default ``atol`` is taken.
    ``end_to_end(theta)``
        The linear map (k, d) of the network, if it has one.
    ``jacobian(theta, X)``
        Derivative (n, k, P) of the outputs by the parameters.
    """

    @property
    def size(self) -> int: ...

    @property
    def gradient(self) -> Any: ...

    def kernel_arguments(self, problem: Any) -> tuple[Array, NDArray[np.int64], int]:
        """``data`` (float64), ``dims`` (int64) and the length of ``work`` for this problem."""
        ...
