"""Figures: every function takes the axes first and returns the artists that it drew.

``with plot.style():`` sets sizes, fonts and colours for a journal column; outside of it the functions
leave your own settings alone.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from gflow.comparison import Comparison
from gflow.trajectory import Trajectory

#: Width of one and of two columns, in inches.
COLUMN, TWO_COLUMNS = 3.35, 6.9
#: How measured values are drawn.
MARKS: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 2.2}


def style() -> AbstractContextManager[None]:
    """Context in which figures are made to fit a journal column.

    Returns
    -------
    context manager
        ``with plot.style():`` sets sizes, fonts and colours, and restores yours at its end.
    """

    from matplotlib import style as library

    return library.context(str(files("gflow") / "gflow.mplstyle"))


def figure(
    rows: int = 1, columns: int = 1, *, wide: bool | None = None, height: float = 2.2
) -> tuple[Figure, Any]:
    """A figure one column wide (two if it has more than one column of axes), and its axes.

    Parameters
    ----------
    rows, columns : int
        Grid of axes.
    wide : bool, optional
        Whether it spans two columns of text.
    height : float
        Height of a row, in inches.

    Returns
    -------
    fig : matplotlib Figure
        Its width is :data:`COLUMN` or :data:`TWO_COLUMNS` inches.
    axes : Axes, or array of Axes
        One Axes for one row and one column; else (rows, columns) without axes of length one.
    """
    import matplotlib.pyplot as plt

    width = TWO_COLUMNS if (columns > 1 if wide is None else wide) else COLUMN
    return plt.subplots(rows, columns, figsize=(width, height * rows), layout="constrained")


def save(fig: Figure, path: str | Path) -> list[Path]:
    """Write a figure as PDF and PNG beside each other, and close it.

    Parameters
    ----------
    fig : matplotlib Figure
    path : path
        Without an ending, which is appended; folders are made if need be.

    Returns
    -------
    list of Path
        The PDF and the PNG.
    """
    import matplotlib.pyplot as plt

    base = Path(path)
    base.parent.mkdir(parents=True, exist_ok=True)
    made = [base.with_name(base.name + ending) for ending in (".pdf", ".png")]
    for target in made:
        metadata = {"CreationDate": None} if target.suffix == ".pdf" else None
        fig.savefig(target, metadata=metadata)
    plt.close(fig)
    return made


def sequence(n: int) -> np.ndarray:
    """Colours from dark to light for things that have an order, such as modes.

    Parameters
    ----------
    n : int
        How many.

    Returns
    -------
    array (n, 4)
        Red, green, blue and opacity, 0 … 1.
    """
    return mpl.colormaps["viridis"](np.linspace(0.0, 0.9, n))


def curves(ax: Axes, t: ArrayLike, values: ArrayLike, **style: Any) -> list[Line2D]:
    """One line per column of values, coloured in order.

    Parameters
    ----------
    ax : matplotlib Axes
    t : array (T,)
        Times.
    values : array (T, ...)
        Axes after the first are flattened to K columns.
    **style
        Passed on to matplotlib, such as ``color``, ``label``, ``linestyle``.

    Returns
    -------
    list of Line2D
        K lines.
    """
    values = np.asarray(values)
    values = values.reshape(len(values), -1)
    return [
        ax.plot(t, column, color=color, **style)[0]
        for column, color in zip(values.T, sequence(values.shape[1]), strict=True)
    ]


def comparison(ax: Axes, result: Comparison) -> list[Line2D]:
    """Predicted curves as lines, measured values as dots at up to 25 of the saved times.

    Parameters
    ----------
    ax : matplotlib Axes
    result : Comparison
        From :func:`gflow.compare`.

    Returns
    -------
    list of Line2D
        The K lines, then the K dotted ones, for K components of the observable.
    """
    lines = curves(ax, result.t, result.predicted)
    some = np.unique(np.linspace(0, len(result.t) - 1, 25).astype(int))
    dots = curves(ax, result.t[some], result.measured[some], **MARKS)
    ax.set_xlabel("time $t$")
    ax.set_ylabel(result.prediction.observable.replace("_", " ").rstrip("s"))
    ax.legend(handles=kinds(), loc="best")
    return lines + dots


def kinds() -> list[Line2D]:
    """Legend entries for lines that are predicted and dots that are measured.

    Returns
    -------
    list of Line2D
        Two, not drawn on any axes.
    """
    return [
        Line2D([], [], color="0.4", label="closed form"),
        Line2D([], [], color="0.4", label="exact flow", **MARKS),
    ]


def error(ax: Axes, result: Comparison, **style: Any) -> list[Line2D]:
    """Relative difference of flow and closed form, against time, on a logarithmic axis.

    Parameters
    ----------
    ax : matplotlib Axes
    result : Comparison
        Its ``error`` is drawn, raised to a quarter of the rounding unit where it is below.
    **style
        Passed on to matplotlib, such as ``color``, ``label``, ``linestyle``.

    Returns
    -------
    list of Line2D
        One line.
    """
    lines = ax.semilogy(result.t, np.maximum(result.error, np.finfo(float).eps / 4), **style)
    ax.set_xlabel("time $t$")
    ax.set_ylabel("relative difference")
    return lines


def loss(ax: Axes, trajectory: Trajectory, **style: Any) -> list[Line2D]:
    """Loss against time, on a logarithmic axis; with ``clock="loss"`` log L against log t.

    Parameters
    ----------
    ax : matplotlib Axes
    trajectory : Trajectory
    **style
        Passed on to matplotlib, such as ``color``, ``label``, ``linestyle``.

    Returns
    -------
    list of Line2D
        One line.

    Raises
    ------
    ValueError
        If the model has no loss.
    """
    if trajectory.log_time is not None:
        lines = ax.plot(trajectory.log_time, trajectory.log_loss, **style)
        ax.set_xlabel(r"$\log\, t$")
        ax.set_ylabel(r"$\log\, L$")
        return lines
    lines = ax.semilogy(trajectory.t, trajectory.loss, **style)
    ax.set_xlabel("time $t$")
    ax.set_ylabel("loss $L$")
    return lines


def steps(ax: Axes, trajectory: Trajectory, **style: Any) -> list[Line2D]:
    """Accepted step sizes against time at the end of each step, on logarithmic axes.

    Parameters
    ----------
    ax : matplotlib Axes
    trajectory : Trajectory
        Of the flow.
    **style
        Passed on to matplotlib, such as ``color``, ``label``, ``linestyle``.

    Returns
    -------
    list of Line2D
        One line.

    Raises
    ------
    ValueError
        If the trajectory is of gradient descent, which has no step history.
    """
    if trajectory.steps is None:
        raise ValueError("trajectory must be of the flow to have a step history; it is of gradient descent")
    kept = trajectory.steps.accepted
    lines = ax.loglog((trajectory.steps.t + trajectory.steps.h)[kept], trajectory.steps.h[kept], **style)
    ax.set_xlabel("time $t$" if trajectory.log_time is None else r"$\log(1/L)$")
    ax.set_ylabel("step size $h$")
    return lines


def neurons(ax: Axes, trajectory: Trajectory) -> list[Line2D]:
    """Paths of the neurons w_j of a two-layer network in the plane, thick where they slide along a kink.

    Parameters
    ----------
    ax : Axes
    trajectory : Trajectory
        Of a network with two inputs and located events.

    Returns
    -------
    list of Line2D
        The samples' kinks, and for each neuron its path, its start (dot) and its end (square).

    Raises
    ------
    ValueError
        If the inputs are not two, or the kinks were not located.
    """
    model, problem = trajectory.spec["model"], trajectory.spec["problem"]
    if getattr(model, "inputs", None) != 2 or trajectory.events is None:
        raise ValueError("trajectory must be of a ReLU network with two inputs, with events located")
    w = model.first_layer(trajectory.theta)
    reach = 1.05 * float(np.abs(w).max())
    artists = []
    for x in problem.X:
        normal = np.array([-x[1], x[0]]) / np.linalg.norm(x) * 2 * reach
        artists += ax.plot([-normal[0], normal[0]], [-normal[1], normal[1]], color="0.85", linewidth=0.6)
    sizes = np.linalg.norm(problem.X, axis=1)
    for j, color in enumerate(sequence(model.width)):
        path = w[:, j]
        on_kink = np.abs(path @ problem.X.T) <= 1e-11 * np.linalg.norm(path, axis=1)[:, None] * sizes
        sliding = np.where(on_kink.any(axis=1)[:, None], path, np.nan)
        artists += ax.plot(*path.T, color=color, linewidth=0.8)
        artists += ax.plot(*sliding.T, color=color, linewidth=3.0, alpha=0.6, solid_capstyle="butt")
        artists += ax.plot(*path[0], "o", color=color)
        artists += ax.plot(*path[-1], "s", color=color)
    ax.set_xlim(-reach, reach)
    ax.set_ylim(-reach, reach)
    ax.set_aspect("equal")
    ax.set_xlabel("$w_1$")
    ax.set_ylabel("$w_2$")
    return artists
