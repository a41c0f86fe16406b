"""compare(): a trajectory held against a prediction."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gflow import observe
from gflow._check import of_type
from gflow._record import Missing
from gflow.theory.prediction import Hypothesis, Prediction
from gflow.trajectory import Trajectory

Array = NDArray[np.float64]

#: What rounding may change of an observable at the start, relative to its largest entry.
_ROUNDING = 1e-10
#: How far the first change reaches, relative to the state; how often that is halved for a stiff start.
_FIRST_CHANGE, _HALVINGS = 1e-2, 60


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

    @cached_property
    def bound(self) -> Array:
        """First-order bound (T,) on the change of the observable that the hypotheses' defects cause, absolute.

        In units of the observable; infinite where a hypothesis that fails offers no estimate.
        """
        return self.prediction.bound(self.t)

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
        From :mod:`gflow.theory`, for the trajectory's problem and start.

    Returns
    -------
    Comparison

    Raises
    ------
    gflow.theory.Refused
        If a hypothesis of the prediction fails and it was not forced.
    ValueError
        If an argument is of another type, the shapes of measurement and prediction differ, or the
        prediction is for another start or problem: its value at t = 0 is not that of the observable, or
        (where all hypotheses hold) it does not set off as the flow does.

    Notes
    -----
    Two starts, or two problems, are told apart only where the observable or its first change differs.
    """
    of_type("trajectory", trajectory, Trajectory, "a gflow.Trajectory")
    of_type("prediction", prediction, Prediction, "a gflow.theory.Prediction")
    if trajectory.log_time is not None:
        raise ValueError(
            "trajectory must hold times in t, which predictions are of; with clock='loss' it is log(1/L)"
        )
    predicted = prediction.predict(trajectory.t)
    measured = observe.along(trajectory, prediction.observable)
    if measured.shape != predicted.shape:
        raise ValueError(
            f"prediction must have the shape of {prediction.observable} along the trajectory, "
            f"{measured.shape}; it has {predicted.shape}"
        )
    _check_start(trajectory, prediction)
    return Comparison(trajectory, prediction, measured, predicted)


def _check_start(trajectory: Trajectory, prediction: Prediction) -> None:
    """Refuse a prediction for another start or problem."""
    if isinstance(trajectory.spec["model"], Missing):
        return  # of a record whose model was not found: nothing can be measured
    observable, start = observe.by_name(prediction.observable), np.asarray(trajectory.spec["theta0"])

    def measure(theta: Array) -> Array:
        return np.asarray(observable(trajectory.spec["model"], trajectory.spec["problem"], theta))

    first, wanted = measure(start), prediction.predict(0.0)[0]
    size = max(np.abs(first).max(), np.abs(wanted).max())
    tolerance = max((h.tolerance for h in prediction.hypotheses), default=0.0)
    allowed = float(prediction.bound(0.0)[0]) + max(tolerance, _ROUNDING) * size
    off = float(np.abs(first - wanted).max())
    if off > allowed:
        raise ValueError(
            f"prediction must be for the start and the problem of the trajectory: at t = 0 it gives a "
            f"{prediction.observable} that differs by {off:.3g} (allowed: {allowed:.3g}) from the one "
            "measured; it is for another start or problem"
        )
    speed = trajectory.objective.gradient(start)
    if not prediction.applies or not speed.any():
        return
    # the first change, over a time in which the state moves by a small part of itself
    h = _FIRST_CHANGE * float(np.linalg.norm(start) / np.linalg.norm(speed))
    for _ in range(_HALVINGS):
        middle = trajectory.objective.gradient(start - 0.5 * h * speed)
        if np.linalg.norm(middle - speed) <= _FIRST_CHANGE * np.linalg.norm(speed):
            break
        h *= 0.5
    else:
        return
    moved, expected = measure(start - h * middle) - first, prediction.predict(h)[0] - wanted
    change = max(np.abs(moved).max(), np.abs(expected).max())
    off = float(np.abs(moved - expected).max())
    if off > 0.1 * change + float(prediction.bound(h)[0]) + _ROUNDING * size:
        raise ValueError(
            f"prediction must be for the start and the problem of the trajectory: from t = 0 to {h:.3g} its "
            f"{prediction.observable} changes by {np.abs(expected).max():.3g}, and that of the flow by "
            f"{np.abs(moved).max():.3g}; it is for another problem"
        )
