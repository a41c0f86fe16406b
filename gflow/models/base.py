"""What a model is: the few names that solvers and observables ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow._check import finite_array
from gflow.kernels import losses
from gflow.problem import Problem

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
    ``lane_gradient(dims)``
        numba function ``lane_gradient(t, theta, data, dims, work, out)`` that writes the gradients at L states side by
        side, for ensembles of small networks; or None where there is none for such ``dims``.  ``theta`` and ``out`` are
        (P L,), parameter by parameter, and ``work`` is L times as long as for one; each gradient has the bits of
        ``gradient``.  t is of no meaning here.
    ``invariants(theta)``
        The conserved quantities (M,) and the size (M,) of the terms that cancel in each; with an attribute
        ``invariants_decay`` r they fall as e^(−rμt) under weight decay μ.
    ``blocks()``
        Slices of ``theta`` (layers, neurons), from whose sizes the default ``atol`` is taken.
    ``end_to_end(theta)``
        The linear map (k, d) of the network, if it has one.
    ``jacobian(theta, X)``
        Derivative (n, k, P) of the outputs by the parameters.
    ``batch_arguments(problem, size)``
        :class:`BatchArguments`, for descent on batches of so many samples.
    ``kink_at``
        Where ``data`` holds the slope that :func:`gflow.descend` takes at a kink; a model without kinks has none.
    ``logarithms``
        True if the kernels heed ``problem.logarithm``, as ``clock="loss"`` asks.
    ``log_coordinates(problem, theta0)``
        A model of other coordinates of the flow, for ``coords="log"``, with ``start`` and the ways back
        ``theta(state)`` and ``log_theta(state)``.
    """

    @property
    def size(self) -> int: ...

    @property
    def gradient(self) -> Any: ...

    def kernel_arguments(self, problem: Any) -> tuple[Array, NDArray[np.int64], int]:
        """``data`` (float64), ``dims`` (int64) and the length of ``work`` for this problem."""
        ...


class BatchArguments(NamedTuple):
    """What the kernels need to see a batch of samples instead of all of them.

    A compiled loop copies a batch of the ``n`` samples that are packed in ``samples`` to ``data``.  Each row
    of ``table`` is an array of samples: where it begins in ``samples`` and in ``data``, how many numbers it
    holds for each sample, and 1 if these stand in a column, (numbers, n), or 0 if in a row, (n, numbers).
    The batch's loss must have the whole loss as its mean over all batches: a factor n / size on the sum.
    """

    n: int
    samples: Array
    table: NDArray[np.int64]
    data: Array
    dims: NDArray[np.int64]
    work_size: int


def loss_code(problem: Problem) -> int:
    """The kernels' code of a problem's loss, or of its logarithm."""
    log = "LOG_" if problem.logarithm else ""
    return int(getattr(losses, log + problem.loss.upper()))


class Layered:
    """Packing of weights, for networks that are a list of matrices or vectors."""

    logarithms = True

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the weights, in the order in which ``theta`` holds them."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        """Number of parameters P."""
        return sum(prod(shape) for shape in self.shapes)

    def pack(self, arrays: Sequence[ArrayLike]) -> Array:
        """Join the weight matrices to one vector.

        Parameters
        ----------
        arrays : sequence of arrays
            In the order and of the shapes of :attr:`shapes`.

        Returns
        -------
        array (P,)

        Raises
        ------
        ValueError
            If the number of arrays or a shape is wrong, or an entry is not finite.
        """
        if not hasattr(arrays, "__len__") or isinstance(arrays, str | bytes):
            raise ValueError(
                f"arrays must be a sequence of {len(self.shapes)} weight matrices; got {arrays!r:.80}"
            )
        if len(arrays) != len(self.shapes):
            raise ValueError(f"arrays must hold {len(self.shapes)} weight matrices; got {len(arrays)}")
        parts = [
            finite_array(f"arrays[{j}]", a, s)
            for j, (a, s) in enumerate(zip(arrays, self.shapes, strict=True))
        ]
        return np.concatenate([part.ravel() for part in parts])

    def unpack(self, theta: ArrayLike) -> list[Array]:
        """Split parameters into weight matrices, as views where possible.

        Parameters
        ----------
        theta : array (..., P)

        Returns
        -------
        list of arrays (..., rows, cols), or (..., length)
            Of the shapes of :attr:`shapes`.

        Raises
        ------
        ValueError
            If the last axis has another length, or theta is not an array of real numbers.
        """
        try:
            if np.iscomplexobj(theta):  # which numpy would cut to its real part
                raise TypeError("not real numbers")
            flat: Array = np.asarray(theta, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"theta must be a real array of shape (..., {self.size}); got {theta!r:.80} ({error})"
            ) from error
        if flat.ndim == 0 or flat.shape[-1] != self.size:
            raise ValueError(f"theta must have {self.size} entries on its last axis; got shape {flat.shape}")
        return [
            flat[..., block].reshape(*flat.shape[:-1], *shape)
            for block, shape in zip(self.layers(), self.shapes, strict=True)
        ]

    def layers(self) -> list[slice]:
        """The slice of each weight matrix in ``theta``."""
        ends = list(accumulate(prod(shape) for shape in self.shapes))
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def blocks(self) -> list[slice]:
        """Slices of ``theta`` of one size each, for the default ``atol``: the weight matrices."""
        return self.layers()

    def check_problem(self, problem: Problem, inputs: int, outputs: int) -> None:
        if not isinstance(problem, Problem):
            raise ValueError(f"problem must be a gflow.Problem; got {type(problem).__name__}")
        if (problem.inputs, problem.outputs) != (inputs, outputs):
            raise ValueError(
                f"problem must have {inputs} inputs and {outputs} outputs to fit {self}; "
                f"it has {problem.inputs} and {problem.outputs}"
            )
