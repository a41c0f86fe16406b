"""flow(): check the arguments, drive a compiled loop, hand back a Trajectory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import exp, isfinite, isinf, log
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gflow import trajectory as _trajectory
from gflow._check import FLOAT64, boolean, finite_array, increases, one_of, positive, positive_int
from gflow._flows import METHODS, begin, pair
from gflow._run import (
    Array,
    Observers,
    Watch,
    callable_or_none,
    drive,
    parse_observers,
    same_run,
    trajectory_or_none,
)
from gflow.kernels import abi, ensembles
from gflow.limit import FIRST_LOOK
from gflow.objective import Objective
from gflow.problem import Problem
from gflow.trajectory import Trajectory

_METHODS = ("auto", *METHODS)
_MANY_PAIRS = 2000
_UNLESS = "unless the depth is 2 and the loss the square loss"


def flow(
    model: Any,
    problem: Any,
    theta0: ArrayLike | None,
    t: ArrayLike,
    *,
    method: str = "auto",
    rtol: float = 1e-9,
    atol: float | None = None,
    clock: str = "time",
    coords: str = "plain",
    observe: Observers = None,
    stop: Callable[[float, Array], bool] | None = None,
    rest: float | None = None,
    events: bool = True,
    dense: bool = False,
    start: Trajectory | None = None,
    max_steps: int = 1_000_000,
    progress: bool = False,
) -> Trajectory:
    """Integrate the gradient flow dθ/dt = −∇L(θ) from θ(0) = ``theta0``.

    Parameters
    ----------
    model : DeepLinear, Symmetric, Diagonal, TwoLayerReLU, or a model of your own
        See :class:`gflow.models.base.Model` for what a model of your own needs.
    problem : Problem
        Data and loss.
    theta0 : array (P,) or None
        Initial parameters; None (or the same parameters) with ``start=``.
    t : array (T,) or float
        Increasing times ≥ 0 at which to save the state; one number t saves 0 and t.  Saving more
        times does not change the steps.  The last may be ``np.inf``: the limit of the flow, from a state
        close enough to tell; ``trajectory.limit`` says what it is and bounds what is left.
        With ``clock="loss"``: increasing values of log(1/L) from the start's own on; one number saves the
        start and the state at that value.
    method : {"auto", "tsit5", "dop853", "bdf"}
        Runge-Kutta pair of order 5(4) or 8(5,3); or, for stiff problems, backward differentiation formulas of
        order up to 6 with conjugate gradients, begun by a few steps of such a pair.  ``"auto"`` takes
        Tsit5 for rtol ≥ 1e-7 and DOP853 below; where the largest eigenvalue of the Hessian says that stability limits
        its steps, it goes over to BDF, and back, as that costs less per unit of time, counted in gradients; of the
        smallest networks, not within the first 512 steps.  ``trajectory.methods`` says when.
        ReLU networks, and models without ``hvp``, and the clock of the loss stay with the pair; Tsit5 at more than 2,000
        neuron-sample pairs, whose events cut the steps short.
    rtol : float
        Relative tolerance of one step, per parameter.
    atol : float, optional
        Absolute tolerance; default rtol × 1e-3 × the smallest non-zero root mean square over the
        start's blocks (layers, neurons), so that a tiny start is resolved.
    clock : {"time", "loss"}
        What t is.  ``"loss"``, for the logistic, exponential and softmax losses without weight decay, whose
        minima lie at infinity: log(1/L), so that ``t=np.log(1e12)`` goes on to the loss 1e-12 and t = 1e6 is
        within reach.  The flow is then integrated as dθ/ds = −∇log L, in which nothing under- or overflows;
        its time is ``trajectory.log_time``, the logarithm of t, with an error of about rtol (1 + log(1/L)).
        Step sizes are in units of log(1/L), and the gauge of the dissipation is that of log L; the
        sensitivity is not measured.  With ``start=`` it is to be given again.
    coords : {"plain", "log"}
        In what the steps are taken.  ``"log"``, for :class:`Diagonal` without weight decay by the clock of time:
        in the logarithms of the parameters' sizes, or for depth 2 in dual coordinates, one a sample, from which
        they follow; nothing under- or overflows from starts of 1e-100 or below.  The error of a step is then
        measured in these logarithms, that is relative to every single parameter however small, and allowed to
        be ``atol``, by default ``rtol`` / 10.  So is that of the predictor, relative to
        \\|w₊\\|^D + \\|w₋\\|^D.  States and observables are the parameters as ever, 0 where they underflow;
        ``trajectory.log_theta`` holds their logarithms.  The coordinates of depth 2 and the square loss descend
        a convex function: the sensitivity, the gauge of the dissipation, and ``trajectory.limit`` are of that.
        For depth 2 and the square loss all methods serve and t may end with ``np.inf``, if some β of the signs that
        the start allows interpolates; else explicit ones.  With ``start=`` it is to be given again.
    observe : name, callable, list of them, or dict of name to callable, optional
        Observables f(model, problem, theta) to compute at the saved times; names are those of
        :mod:`gflow.observe`.  Results: ``trajectory[name]``, NaN at states that an interrupt left unseen.
    stop : callable, optional
        ``stop(t, theta)`` is called after every accepted step, with t as the clock counts it; True ends
        the run there.
    rest : float, optional
        End the run once the speed ‖dθ/dt‖ has fallen to this part of its largest value so far, for instance
        1e-3.  For a ReLU network this is the speed of the flow itself, which falls to zero along kinks too,
        where the gradient by signs does not.
    events : bool
        For a ReLU network: locate the kinks and follow the exact flow through and along them; the table
        is ``trajectory.events``.  False takes plain adaptive steps over them, for very wide networks.
    dense : bool
        Keep the interpolant of every step, for ``trajectory.at(t)``.  Steps whose interpolant would be less
        exact than their end are halved, so that stiff problems take more of them.  Not with
        ``clock="loss"``.
    start : Trajectory, optional
        Go on from a trajectory of the same model and problem, with its method and tolerances; the
        result equals the uninterrupted run bit for bit.
    max_steps : int
        Largest number of steps (accepted and rejected) of this call.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Trajectory
        Whatever happens on the way: a run that fails, is stopped or interrupted (Ctrl-C) returns
        what it has, ends with the last accepted state, and says so in ``trajectory.status``.

    Raises
    ------
    ValueError
        If an argument is wrong; the message names it, says what came and what is wanted.  Nothing
        has run by then.

    Examples
    --------
    >>> import gflow
    >>> problem = gflow.Problem.factorization([[2.0]])
    >>> model = gflow.DeepLinear((1, 1, 1))
    >>> trajectory = gflow.flow(model, problem, [1e-3, 1e-3], t=10.0)
    >>> float(trajectory.end.prod())  # doctest: +ELLIPSIS
    2.00...
    """
    objective = Objective(model, problem)
    trajectory_or_none("start", start)
    rtol, events, dense, max_steps = _check_settings(rtol, clock, coords, rest, events, dense, max_steps)
    potential = _potential(objective, clock)
    observers = parse_observers(observe)
    callable_or_none("stop", stop)
    if start is None:
        theta, before = objective.check_theta(theta0, "theta0"), None
    else:
        theta, method, rtol, atol = _continued(objective, theta0, start, method, rtol, atol, clock, coords)
        before = start.state
    chart = None
    if coords == "log":
        chart = _log_coordinates(objective, theta, clock)
        if method == "bdf" and getattr(chart, "hvp", None) is None:
            raise ValueError(
                f"method must be explicit with coords='log' {_UNLESS}: hvp is lacking; got 'bdf'"
            )
        potential = Objective(chart, problem)
    if start is None:
        if atol is None:
            atol = 0.1 * rtol if chart is not None else _default_atol(objective, theta, rtol)
        method = chosen_method(potential, method, rtol, events, clock)
    atol = positive("atol", atol)
    if events and hasattr(model, "piecewise") and not model.piecewise:
        raise ValueError(
            "events must be False for a network with first_depth > 1: there one neuron's kink moves all others"
        )
    level = None if clock == "time" else -potential.loss(theta)
    origin = (level or 0.0) if start is None else float(start.t[-1])
    times = check_times(t, origin, start, clock)
    to_limit = isinf(times.item(-1))
    if to_limit and chart is not None and not theta.any():
        raise ValueError(
            "coords must be 'plain' where t ends with inf and theta0 is zero, which stays there while its logarithms move; got 'log'"
        )
    if to_limit:
        _check_limit(potential, rest, events, coords)
    if clock == "time" and objective.has("log_escape"):
        log_time, log_pace = model.log_escape(problem, theta)
        _check_escape(log_time, log_pace, times.item(-1))
    part = FIRST_LOOK if to_limit else (rest or 0.0)
    first = theta if chart is None else chart.start
    potential.try_gradient(first)
    run = begin(potential, method, first, times, rtol, atol, events, dense, part, before, level)
    if chart is not None:
        run.rtol = sys.float_info.epsilon  # logarithms have no scale but one
    watch = Watch(objective, observers, stop, run.now if observers else first, chart)
    spec = {
        "model": model, "problem": problem, "theta0": theta, "t": times, "method": method, "rtol": rtol,
        "atol": atol, "clock": clock, "coords": coords, "observe": observe, "stop": stop, "rest": rest, "events": events, "dense": dense,
        "max_steps": run.steps_before + max_steps,
    }  # fmt: skip
    outcome = drive(run, watch, max_steps, progress)
    if chart is not None and outcome.code == "max_steps":
        crawl = " With coords='log' steps are short where weights of very different sizes start; coords='plain' may be faster."
        outcome = outcome._replace(message=outcome.message + crawl)
    cause = {"recorded_spec": spec, "solve": flow}
    if chart is None and not (dense or observers):  # the rest is collected when it is asked for
        saved, states, _ = run.reached()
        return Trajectory.of({"t": saved, "theta": states, **cause}, partial(run.result, outcome, watch))
    made = run.result(outcome, watch)
    if chart is not None:
        made |= {"theta": chart.theta(made["theta"]), "coordinates": made["theta"]}
        made["dissipation"] = made["dissipation"] if potential.has("loss") else None
    return Trajectory.of({**made, **cause})


def _check_settings(
    rtol: float, clock: str, coords: str, rest: float | None, events: bool, dense: bool, max_steps: int
) -> tuple[float, bool, bool, int]:
    """Settings that are right or wrong whatever the model and the problem."""
    rtol = check_rtol(rtol)
    one_of("clock", clock, ("time", "loss"))
    one_of("coords", coords, ("plain", "log"))
    max_steps = positive_int("max_steps", max_steps)
    events, dense = boolean("events", events), boolean("dense", dense)
    if dense and clock == "loss":
        raise ValueError("dense must be False with clock='loss': give the values of log(1/L) to save in t")
    if rest is not None and not 0.0 < positive("rest", rest) < 1.0:
        raise ValueError(f"rest must be a part of the largest speed, between 0 and 1; got {rest}")
    if rest is not None and clock == "loss":
        raise ValueError("rest must be None with clock='loss', whose speed is that of log L")
    return rtol, events, dense, max_steps


def load(path: str | Path) -> Trajectory:
    """Read a trajectory that ``trajectory.save(path)`` wrote.

    Raises
    ------
    ValueError
        If the file is not a trajectory of gflow.
    FileNotFoundError
        If there is no such file.
    """
    loaded = _trajectory.read(path)
    return replace(loaded, solve=flow) if loaded.history is not None else loaded


def chosen_method(objective: Objective, method: str, rtol: float, events: bool, clock: str = "time") -> str:
    """The method to be recorded, ``"auto"`` only where it may change on the way."""
    one_of("method", method, _METHODS)
    model, problem = objective.model, objective.problem
    smooth = not hasattr(model, "piecewise")
    if method == "bdf" and clock == "loss":
        raise ValueError('method must be explicit with clock="loss"; got "bdf"')
    if method == "bdf" and not (smooth and objective.has("hvp")):
        lack = "has no hvp" if smooth else "is not smooth"
        raise ValueError(f'method "bdf" needs a smooth model with hvp; {type(model).__name__} {lack}')
    if method != "auto" or (smooth and objective.has("hvp") and clock == "time"):
        return method
    many = events and getattr(model, "piecewise", False) and model.width * len(problem.X) > _MANY_PAIRS
    return "tsit5" if many else pair(method, rtol)


def _potential(objective: Objective, clock: str) -> Objective:
    """What the flow descends: L, or log L by the clock of the loss."""
    if clock == "time":
        return objective
    model, problem = objective.model, objective.problem
    if not getattr(model, "logarithms", False) or not isinstance(problem, Problem):
        raise ValueError(
            "clock must be 'time' for a model whose kernels know nothing of log L (logarithms = True says that they "
            f"heed problem.logarithm, see gflow.models.base.Model); got 'loss' for {type(model).__name__}"
        )
    if problem.logarithm:
        raise ValueError("clock must be 'time' for a problem that has log L in the place of L; got 'loss'")
    try:
        return Objective(model, problem.log)
    except ValueError as error:
        raise ValueError(f"clock must be 'time' for this problem; got 'loss': {error}") from error


def _log_coordinates(objective: Objective, theta: Array, clock: str) -> Any:
    """The coordinates of the flow from ``theta`` for ``coords="log"``."""
    if not objective.has("log_coordinates"):
        name = type(objective.model).__name__
        raise ValueError(f"coords must be 'plain' for {name}: diagonal networks only have 'log'")
    if clock == "loss":
        raise ValueError("coords must be 'plain' with clock='loss'; got 'log'")
    return objective.model.log_coordinates(objective.problem, theta)


def check_times(t: ArrayLike, origin: float, start: Trajectory | None, clock: str) -> Array:
    """The times to save, or values of log(1/L); a ValueError says what is wrong with them."""
    if type(t) is float or (type(t) is not np.ndarray or t.ndim == 0) and _is_scalar(t):
        end = t if type(t) is float and isfinite(t) else _end(t, clock)
        if not end > origin:
            where = f"log(1/L) = {origin:.17g} of the start" if clock == "loss" else f"the start, {origin:g}"
            raise ValueError(f"t must be above {where}; got {end:g}")
        return np.array([origin, end])
    if type(t) is np.ndarray and t.dtype is FLOAT64 and t.ndim == 1 and t.size > 0:
        # a quick look at whether all is well; what is not is told below
        if origin <= t.item(0) and t.item(-1) < np.inf and increases(t):
            return t.copy()
    try:
        times = finite_array("t", t, ("T",))
    except ValueError:
        if clock != "time" or not _ends_with_inf(t):
            raise
        times = np.array(t, dtype=np.float64)
    first = times.item(0)
    if clock == "time" and first < 0.0:
        raise ValueError(f"t must be >= 0; t[0] is {first:g}")
    if not increases(times):
        i = int(np.flatnonzero(np.diff(times) <= 0)[0])
        raise ValueError(
            f"t must increase; t[{i}] = {times[i]:g} is followed by t[{i + 1}] = {times[i + 1]:g}"
        )
    if first < origin:
        where = f"log(1/L) = {origin:.17g} of the start" if clock == "loss" else f"the start, {origin:g}"
        where = where if start is None else f"the end of start, {origin:g}"
        raise ValueError(f"t must begin at or after {where}; t[0] is {first:g}")
    return times


def _is_scalar(t: ArrayLike) -> bool:
    try:
        return np.ndim(t) == 0
    except ValueError:
        return False


def _end(t: ArrayLike, clock: str) -> float:
    """One end time, inf where the clock allows it."""
    return np.inf if clock == "time" and np.array_equal(t, np.inf) else float(finite_array("t", t, ()))


def _ends_with_inf(t: ArrayLike) -> bool:
    """Whether t is a list of times of which the last, and no other, is inf."""
    try:
        times = np.asarray(t, dtype=np.float64)
        last = float(times[-1])
    except (TypeError, ValueError, IndexError):
        return False
    return last == np.inf and times.ndim == 1 and bool(np.isfinite(times[:-1]).all())


def check_rtol(rtol: float) -> float:
    rtol = positive("rtol", rtol)
    if not 1e-14 <= rtol < 1:
        raise ValueError(f"rtol must lie between 1e-14, the reach of double precision, and 1; got {rtol}")
    return rtol


def _check_limit(objective: Objective, rest: float | None, events: bool, coords: str) -> None:
    """Whether the limit can be looked for."""
    if rest is not None:
        raise ValueError("rest must be None where t ends with inf, which itself looks for rest")
    if not objective.has("hvp") and coords == "log":
        raise ValueError(f"t must be finite with coords='log' {_UNLESS}; got inf")
    if not objective.has("hvp"):
        name = type(objective.model).__name__
        raise ValueError(f"t must be finite: the limit needs model.hvp, which {name} does not have")
    if not events and hasattr(objective.model, "piecewise"):
        raise ValueError("events must be True where t ends with inf: the limit is that of the exact flow")
    if objective.has("check_limit"):
        objective.model.check_limit()


def _check_escape(log_time: float, log_pace: float, end: float) -> None:
    """Refuse to go past an escape from 0 that is faster than double precision can tell times apart there."""
    log_spacing = log_time + log(sys.float_info.epsilon)
    if log(end) <= log_time or log_spacing <= log_pace:
        return
    number = (
        f"{exp(x):.3g}" if abs(x) < 700 else f"1e{x / log(10):.0f}" for x in (log_time, log_pace, log_spacing)
    )
    raise ValueError(
        "t must end before {} for this start: only there does the network leave 0, and it then moves within times of "
        "{}, while double precision numbers of that size lie {} apart.  Take a larger start (or a smaller depth); "
        "gflow.theory.saddles and gflow.theory.bias say where it goes; got {:g}".format(*number, end)
    )


def _default_atol(objective: Objective, theta: Array, rtol: float) -> float:
    return abi.call(ensembles.default_atol, theta, objective.blocks, rtol, sys.float_info.min)


def default_atols(objective: Objective, thetas: Array, rtol: float) -> Array:
    """The default atol (R,) of runs from each row of ``thetas`` (R, P)."""
    out = np.empty(len(thetas))
    abi.call(ensembles.default_atols, thetas, objective.blocks, rtol, sys.float_info.min, out)
    return out


def _continued(
    objective: Objective,
    theta0: ArrayLike | None,
    start: Trajectory,
    method: str,
    rtol: float,
    atol: float | None,
    clock: str,
    coords: str,
) -> tuple[Array, str, float, float]:
    theta = same_run(objective, theta0, start)
    if start.steps is None:
        raise ValueError("start must be a trajectory of the flow; it is of gradient descent")
    if not start.state:
        raise ValueError("start must hold its solver's state; a run of an ensemble does not")
    spec = start.spec
    if clock != spec.get("clock", "time"):
        raise ValueError(
            f"clock must equal that of start, {spec.get('clock', 'time')!r}, in which t is; got {clock!r}"
        )
    if coords != spec.get("coords", "plain"):
        raise ValueError(f"coords must equal that of start, {spec.get('coords', 'plain')!r}; got {coords!r}")
    for name, given, default in (("method", method, "auto"), ("rtol", rtol, 1e-9), ("atol", atol, None)):
        if given != default and given != spec[name]:
            raise ValueError(
                f"{name} must be left out with start=, or equal its {name}, {spec[name]!r}; got {given!r}"
            )
    return theta, spec["method"], spec["rtol"], spec["atol"]
