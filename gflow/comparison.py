"""compare(): a trajectory held against a prediction."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gflow import observe
from gflow.theory.prediction import Hypothesis, Prediction
from gflow.trajectory import Trajectory

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Comparison:
    """A measured observable beside its prediction.

    Attributes
    ----------
    trajectory, prediction
        What is compared.
    t : array (T,)
    measured, predicted : array (T, ...)
        The observable along the trajectory, and the closed form.
    """

    trajectory: Trajectory
    prediction: Prediction
    measured: Array
    predicted: Array

    @property
    def t(self) -> Array:
        """Times (T,)."""
        return self.trajectory.t

    @property
    def hypotheses(self) -> tuple[Hypothesis, ...]:
        """The prediction's hypotheses, as measured."""
        return self.prediction.hypotheses

    @cached_property
    def error(self) -> Array:
        """Largest relative error (T,) over the components of the observable.

        A vector is compared entry by entry (an entry predicted to vanish: relative to the largest);
        a matrix relative to its largest entry.
        """
        flat = self.predicted.reshape(len(self.t), -1)
        size = np.abs(flat)
        largest = size.max(axis=1, keepdims=True)
        if self.predicted.ndim > 2:
            size = np.broadcast_to(largest, size.shape)
        size = np.where(size > 0, size, largest)
        size = np.where(size > 0, size, 1.0)
        return np.max(np.abs(self.measured.reshape(flat.shape) - flat) / size, axis=1)

    @property
    def max_error(self) -> float:
        """Largest relative error along the trajectory."""
        return float(self.error.max())

    def plot(self, ax: Any) -> list[Any]:
        """Measured points over predicted lines; returns the artists."""
        from gflow import plot

        return plot.comparison(ax, self)


def compare(trajectory: Trajectory, prediction: Prediction) -> Comparison:
    """Hold a trajectory against a prediction, at the trajectory's saved times.

    Parameters
    ----------
    trajectory : Trajectory
        Of the flow that the prediction is for.
    prediction : Prediction
        From :mod:`gflow.theory`.

    Returns
    -------
    Comparison

    Raises
    ------
    gflow.theory.Refused
        If a hypothesis of the prediction fails and it was not forced.
    ValueError
        If the shapes of measurement and prediction differ.
    """
    predicted = prediction.predict(trajectory.t)
    measured = observe.along(trajectory, prediction.observable)
    if measured.shape != predicted.shape:
        raise ValueError(
            f"prediction must have the shape of {prediction.observable} along the trajectory, "
            f"{measured.shape}; it has {predicted.shape}"
        )
    return Comparison(trajectory, prediction, measured, predicted)
