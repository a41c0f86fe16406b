"""What a linear network and a problem are to the closed forms: weight matrices, and how the loss sees W."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow._check import finite_array
from gflow.models.linear import DeepLinear
from gflow.problem import Problem

Array = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)
#: Kinds of problems with one target W*.
DETERMINED = ("regression", "factorization")


class Inputs(NamedTuple):
    """How the loss φ sees W: ∇φ = τ (W − W*) Π up to the whitening defect."""

    rate: float  # τ
    defect: float  # ‖XᵀX/c − Π‖₂
    rows: Array  # (r, d): orthonormal basis of the row space of X

    @property
    def projector(self) -> Array:
        return self.rows.T @ self.rows

    @property
    def complete(self) -> bool:
        return self.rows.shape[0] == self.rows.shape[1]


def inputs_of(problem: Problem) -> Inputs:
    """The inputs of a regression; those of a factorisation are unit vectors."""
    if problem.kind == "factorization":
        return Inputs(2 * float(problem.factor or 0.0), 0.0, np.eye(problem.inputs))
    x = np.asarray(problem.X)
    _, s, vt = np.linalg.svd(np.linalg.qr(x, mode="r"), full_matrices=False)
    rank = int(np.sum(s > max(x.shape) * _EPS * s[0])) if s[0] > 0 else 0
    if rank == 0:
        raise ValueError("problem must have inputs X that are not all zero")
    moments = s[:rank] ** 2
    c = float(moments.mean())
    rows = np.eye(x.shape[1]) if rank == x.shape[1] else vt[:rank]
    return Inputs(2 * float(problem.factor or 0.0) * c, float(np.abs(moments / c - 1).max()), rows)


def weights_of(
    model: Any, problem: Any, theta: ArrayLike, name: str, kinds: tuple[str, ...], layers: int | None = None
) -> list[Array]:
    """The weight matrices, or a ValueError where no closed form of linear networks covers the case."""
    if not isinstance(model, DeepLinear):
        raise ValueError(f"model must be a DeepLinear network here; got {type(model).__name__}")
    if layers is not None and model.depth != layers:
        raise ValueError(f"model must have {layers} weight matrices here; it has {model.depth}")
    if not isinstance(problem, Problem) or problem.kind not in kinds:
        got = f"one of kind {problem.kind!r}" if isinstance(problem, Problem) else type(problem).__name__
        raise ValueError(f"problem must be a Problem of kind {' or '.join(map(repr, kinds))}; got {got}")
    if problem.loss != "square":
        raise ValueError(f"problem must have the square loss here; it has {problem.loss!r}")
    if (problem.inputs, problem.outputs) != (model.widths[0], model.widths[-1]):
        raise ValueError(
            f"problem must have {model.widths[0]} inputs and {model.widths[-1]} outputs to fit {model}; "
            f"it has {problem.inputs} and {problem.outputs}"
        )
    return model.unpack(finite_array(name, theta, (model.size,)))
