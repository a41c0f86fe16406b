"""ensemble(): many flows, descents or stochastic flows of one model on one problem, on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from numpy.typing import ArrayLike

from gflow._check import positive_int
from gflow._run import Observers, parse_observers
from gflow.ensembles.descents import Descents
from gflow.ensembles.flows import Flows
from gflow.ensembles.options import DESCENT_OPTIONS, FLOW_OPTIONS, PATH_OPTIONS
from gflow.ensembles.paths import Paths
from gflow.ensembles.result import Ensemble
from gflow.ensembles.runs import Runs, drive
from gflow.objective import Objective

__all__ = ["Ensemble", "ensemble"]


def ensemble(
    model: Any,
    problem: Any,
    thetas: ArrayLike,
    t: ArrayLike | None = None,
    *,
    method: str = "auto",
    rtol: float = 1e-9,
    atol: float | ArrayLike | None = None,
    events: bool = True,
    max_steps: int = 1_000_000,
    step_size: float | ArrayLike | Callable[[int], float] | None = None,
    n_steps: int | None = None,
    observe: Observers = None,
    jobs: int | None = None,
    progress: bool = False,
    **options: Any,
) -> Ensemble:
    """Many flows from many starts, many descents over starts, step sizes or seeds, or many paths, on all cores.

    Every run takes its own steps, and equals the single run of :func:`flow`, :func:`descend` or
    :func:`stochastic_flow` bit for bit, whatever the number of threads.

    Parameters
    ----------
    model, problem
        As in :func:`flow`.
    thetas : array (R, P)
        Initial parameters, one run a row; descents over step sizes or seeds, and paths, may share one start (P,).
    t : array (T,) or float
        Times to save, as in :func:`flow`.  Left out for descents.
    method, rtol, events, max_steps
        As in :func:`flow`, for each run.
    atol : float or array (R,), optional
        Absolute tolerance; default for each run what :func:`flow` takes for its start.
    step_size : float, array (R,) or (R, n_steps), or callable
        Makes descents instead of flows: one step size for all runs, one for each, a schedule for each, or a
        schedule ``step_size(step)`` for all.  One number together with ``t``: stochastic flows.
    n_steps : int
        Number of steps of each descent.
    observe
        As in :func:`flow`; called after the runs, one state after another.
    jobs : int, optional
        Number of threads; default as many as the process may use.  The results do not depend on it.
    progress : bool
        Show a progress bar.
    **options
        ``optimizer``, ``momentum``, ``betas``, ``eps``, ``batch_size``, ``replacement``, ``kink``,
        ``save_every`` as in :func:`descend`, or ``scheme``, ``dt`` as in :func:`stochastic_flow`; and ``rng``: R seeds,
        or one, s, from which run r takes s + r.

    Returns
    -------
    Ensemble
        Whatever happens on the way: a run that fails leaves the others alone, an interrupt (Ctrl-C) keeps what
        was done, and ``ensemble.codes`` says how each run ended.

    Raises
    ------
    ValueError
        If an argument is wrong or the states would not fit into memory; nothing has run by then.

    Notes
    -----
    The threads share the runs; BLAS keeps to one thread.  Explicit flows of small networks (P ≤ 32 parameters) whose
    model offers ``lane_gradient`` go side by side in vector registers, up to 128 in a thread.  Only where the products are so large (an axis above
    512) that BLAS's own threads pay, as in :func:`flow`, the runs go one after another.

    Examples
    --------
    >>> import gflow, numpy as np
    >>> model, problem = gflow.DeepLinear((1, 1, 1)), gflow.Problem.factorization([[1.0]])
    >>> runs = gflow.ensemble(model, problem, np.geomspace(1e-5, 1e-1, 5)[:, None] * [1.0, 1.0], t=20.0)
    >>> runs.theta.shape
    (5, 2, 2)
    """
    objective = Objective(model, problem)
    jobs = _cores() if jobs is None else positive_int("jobs", jobs)
    flows: dict[str, Any] = {
        "method": method,
        "rtol": rtol,
        "atol": atol,
        "events": events,
        "max_steps": max_steps,
    }
    for name in options:
        if name not in DESCENT_OPTIONS and name not in PATH_OPTIONS:
            if name in ("coords", "clock", "dense", "rest", "stop", "start"):
                raise ValueError(
                    f"{name} must be left out: it is an option of flow for single runs; ensembles run in plain "
                    "coordinates by the clock of time, from their start to the end of t"
                )
            raise ValueError(
                f"{name} is no argument of ensemble, nor an option of descend or stochastic_flow"
            )
    if t is None and step_size is None:
        raise ValueError(
            "t must be given for flows, step_size and n_steps for descents, t and step_size for paths"
        )
    if t is not None and n_steps is not None:
        raise ValueError(
            "n_steps must be left out for flows, where t is given; with step_size it belongs to descents"
        )
    own = PATH_OPTIONS if t is not None and step_size is not None else DESCENT_OPTIONS
    for name in options:
        if step_size is not None and name not in own:
            raise ValueError(f"{name} must be left out for {'paths' if t is not None else 'descents'}")
    if step_size is None:
        unwanted = [*options, *(["n_steps"] if n_steps is not None else [])]
        if unwanted:
            raise ValueError(f"{unwanted[0]} must be left out for flows; it belongs to descents (step_size)")
        made: Runs = Flows(objective, thetas, t, parse_observers(observe), **flows)
    else:
        for name, value in flows.items():
            if value is not FLOW_OPTIONS[name] and value != FLOW_OPTIONS[name]:
                what = "descents" if t is None else "paths"
                raise ValueError(f"{name} must be left out for {what}; it belongs to flows (t)")
        if t is not None:
            made = Paths(objective, thetas, t, step_size, parse_observers(observe), options)
        else:
            made = Descents(objective, thetas, step_size, n_steps, parse_observers(observe), options)
    interrupted = drive(made, jobs, progress)
    return made.result(interrupted, {"model": model, "problem": problem, "observe": observe})


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1
