"""Small starts on orthogonal inputs: the minimal-norm interpolator, one sign of the labels after the other.

For a ReLU network, inputs x_k orthogonal to each other and labels y_k ≠ 0.  arXiv 2206.00939.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow.problem import Problem
from gflow.theory.alignment import neurons, pulls
from gflow.theory.linear import mode_gap
from gflow.theory.prediction import Hypothesis, Prediction

Array = NDArray[np.float64]


class Interpolator(NamedTuple):
    """h(x) = (w₊·x)₊ − (w₋·x)₊ with the least norm: ``plus``, ``minus`` (d,); ``half_norm`` ½‖θ‖² = ‖w₊‖ + ‖w₋‖."""

    plus: Array
    minus: Array
    half_norm: float


def interpolator(problem: Problem) -> Interpolator:
    """The minimal-norm interpolator on orthogonal inputs: w± = Σ_{±y_k > 0} |y_k| x_k / ‖x_k‖²."""
    pulls(problem)
    x, y = problem.X, problem.Y[:, 0]
    if not x.any(axis=1).all():
        raise ValueError("problem must have inputs that are not zero")
    scaled = x / np.sum(x**2, axis=1, keepdims=True)
    plus, minus = np.maximum(y, 0.0) @ scaled, np.maximum(-y, 0.0) @ scaled
    return Interpolator(plus, minus, float(np.linalg.norm(plus) + np.linalg.norm(minus)))


def aligned(model: Any, problem: Problem, theta0: ArrayLike, force: bool = False) -> Prediction:
    """The loss where each sign has one neuron (or several along one line), balanced and on w₊ or w₋ from the start.

    Parameters
    ----------
    model : TwoLayerReLU
        One output, both layers trained.
    problem : Problem
        Square loss, orthogonal inputs of one length c.
    theta0 : array (P,)

    Returns
    -------
    Prediction
        Of ``"loss"``.  b = Σ a_j² of a sign obeys b' = 2 κ b (B − b), B = ‖w±‖, κ = 2 factor c² (c²/n by default), so
        that b = B / (1 + (B / b₀ − 1) e^(−2 κ B t)), and L = ½ κ [(B₊ − b₊)² + (B₋ − b₋)²].
    """
    w, a, _ = neurons(model, problem, theta0)
    if problem.loss != "square":
        raise ValueError(f"problem must have the square loss; got {problem.loss!r}")
    ends = interpolator(problem)
    lengths = np.linalg.norm(problem.X, axis=1)
    size = np.linalg.norm(w, axis=1)
    gram = problem.X @ problem.X.T / np.outer(lengths, lengths)
    wanted = np.where((a > 0)[:, None], ends.plus, ends.minus)
    norms = np.linalg.norm(wanted, axis=1)
    off = np.linalg.norm(w / size[:, None] - wanted / np.where(norms > 0, norms, 1.0)[:, None], axis=1)
    hypotheses = (
        Hypothesis("no weight decay", problem.weight_decay, tolerance=0.0),
        Hypothesis("ReLU (defect: its slope)", model.slope, tolerance=0.0),
        Hypothesis(
            "orthogonal inputs (defect: largest cosine)", float(np.abs(gram - np.eye(len(gram))).max())
        ),
        Hypothesis("inputs of one length", float(np.ptp(lengths) / lengths.max())),
        Hypothesis("balanced start", float(np.abs(a**2 - size**2).max() / np.max(a**2))),
        Hypothesis("neurons along w₊ and w₋ (defect: largest distance of directions)", float(off.max())),
    )
    assert problem.factor is not None
    rate = 2 * problem.factor * float(lengths[0]) ** 2

    def formula(t: Array) -> Array:
        loss = np.zeros(len(t))
        for vector, chosen in ((ends.plus, a > 0), (ends.minus, a < 0)):
            full, first = float(np.linalg.norm(vector)), float(np.sum(a[chosen] ** 2))
            loss += 0.5 * rate * mode_gap(rate * t, full, first, 2) ** 2
        return loss

    return Prediction("loss", hypotheses, "arXiv 2206.00939", formula, forced=force)
