"""flow() and descend(): check the arguments, drive a compiled loop, hand back a Trajectory."""

from __future__ import annotations

import math
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow import trajectory as _trajectory
from gflow._check import finite_array, one_of, positive, positive_int
from gflow._memory import available_memory, refuse_if_too_large
from gflow._progress import Progress
from gflow.kernels import descent, explicit, piecewise, tableaus
from gflow.objective import Objective
from gflow.trajectory import Events, Status, Steps, Trajectory

Array = NDArray[np.float64]
Observers = (
    str | Callable[..., Any] | Iterable[str | Callable[..., Any]] | Mapping[str, Callable[..., Any]] | None
)

METHODS = {"tsit5": tableaus.tsit5, "dop853": tableaus.dop853}
_CHUNK_SECONDS = 0.1
_MANY_PAIRS = 2000
_HISTORY_BLOCK = 4096
_DENSE_BLOCK_BYTES = 2**25


def flow(
    model: Any,
    problem: Any,
    theta0: ArrayLike | None,
    t: ArrayLike,
    *,
    method: str = "auto",
    rtol: float = 1e-9,
    atol: float | None = None,
    observe: Observers = None,
    stop: Callable[[float, Array], bool] | None = None,
    events: bool = True,
    dense: bool = False,
    start: Trajectory | None = None,
    max_steps: int = 1_000_000,
    progress: bool = False,
) -> Trajectory:
    """Integrate the gradient flow dθ/dt = −∇L(θ) from θ(0) = ``theta0``.

    Parameters
    ----------
    model : DeepLinear, Symmetric, or a model of your own
        See :class:`gflow.models.base.Model` for what a model of your own needs.
    problem : Problem
        Data and loss.
    theta0 : array (P,) or None
        Initial parameters; None (or the same parameters) with ``start=``.
    t : array (T,) or float
        Increasing times ≥ 0 at which to save the state; one number t saves 0 and t.  Saving more
        times does not change the steps.
    method : {"auto", "tsit5", "dop853"}
        Runge-Kutta pair of order 5(4) or 8(5,3).  ``"auto"`` takes Tsit5 for rtol ≥ 1e-6 and DOP853
        below, and Tsit5 for ReLU networks of more than 2,000 neuron-sample pairs, whose events cut the
        steps short; ``trajectory.spec["method"]`` says which.
    rtol : float
        Relative tolerance of one step, per parameter.
    atol : float, optional
        Absolute tolerance; default rtol × 1e-3 × the smallest non-zero root mean square over the
        start's blocks (layers, neurons), so that a tiny start is resolved.
    observe : name, callable, list of them, or dict of name to callable, optional
        Observables f(model, problem, theta) to compute at the saved times; names are those of
        :mod:`gflow.observe`.  Results: ``trajectory[name]``, NaN at states that an interrupt left unseen.
    stop : callable, optional
        ``stop(t, theta)`` is called after every accepted step; True ends the run there.
    events : bool
        For a ReLU network: locate the kinks and follow the exact flow through and along them; the table
        is ``trajectory.events``.  False takes plain adaptive steps over them, for very wide networks.
    dense : bool
        Keep the interpolant of every step, for ``trajectory.at(t)``.  Steps whose interpolant would be less
        exact than their end are halved, so that stiff problems take more of them.
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
    _trajectory_or_none("start", start)
    times = _times(t, start)
    max_steps = positive_int("max_steps", max_steps)
    for name, value in (("events", events), ("dense", dense)):
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name} must be True or False; got {value!r:.80}")
    observers = _observers(observe)
    _callable_or_none("stop", stop)
    if start is None:
        theta = objective.check_theta(theta0, "theta0")
        rtol = _rtol(rtol)
        atol = _default_atol(objective, theta, rtol) if atol is None else positive("atol", atol)
        one_of("method", method, ("auto", *METHODS))
        if method == "auto":
            many = (
                events and getattr(model, "piecewise", False) and model.width * len(problem.X) > _MANY_PAIRS
            )
            method = "tsit5" if rtol >= 1e-6 or many else "dop853"
        tableau = METHODS[method]()
        state = explicit.new_state(theta, 0.0, tableau)
    else:
        theta, method, rtol, atol = _continued(objective, theta0, start, method, rtol, atol)
        tableau = METHODS[method]()
        state = explicit.State._make(start.state[name].copy() for name in explicit.State._fields)
    located = events and hasattr(model, "piecewise")
    if located and not model.piecewise:
        raise ValueError(
            "events must be False for a network with first_depth > 1: there one neuron's kink moves all others"
        )
    kind = _PiecewiseFlow if located else _Flow
    objective.gradient(
        state.theta
    )  # what is wrong with a user's kernel shows here: compiled code cannot raise
    run = kind(objective, tableau, state, times, rtol, atol, dense, None if start is None else start.state)
    watch = _Watch(objective, observers, stop, run.now)
    spec = {
        "model": model, "problem": problem, "theta0": theta, "t": times, "method": method, "rtol": rtol,
        "atol": atol, "observe": observe, "stop": stop, "events": events, "dense": dense,
        "max_steps": run.steps_before + max_steps,
    }  # fmt: skip
    outcome = _drive(run, watch, max_steps, progress)
    return run.trajectory(outcome, watch, spec)


def descend(
    model: Any,
    problem: Any,
    theta0: ArrayLike | None,
    step_size: float,
    n_steps: int,
    *,
    save_every: int = 1,
    observe: Observers = None,
    stop: Callable[[float, Array], bool] | None = None,
    start: Trajectory | None = None,
    progress: bool = False,
) -> Trajectory:
    """Full-batch gradient descent θ ← θ − η ∇L(θ): the flow's discrete counterpart.

    Parameters
    ----------
    model, problem, theta0, observe, progress
        As in :func:`flow`.
    step_size : float
        The step size η > 0.
    n_steps : int
        Number of steps; with ``start=``, counted from step 0 of the whole run.
    save_every : int
        Save every so many steps; the first and the last state are always saved.
    stop : callable, optional
        ``stop(t, theta)`` is called at every saved state; True ends the run there.
    start : Trajectory, optional
        Go on from a descent of the same model, problem and step size, bit for bit.

    Returns
    -------
    Trajectory
        With t = step_size × step; a run that diverges returns what it has and says so.

    Raises
    ------
    ValueError
        If an argument is wrong; nothing has run by then.
    """
    objective = Objective(model, problem)
    _trajectory_or_none("start", start)
    step_size = positive("step_size", step_size)
    n_steps, save_every = positive_int("n_steps", n_steps), positive_int("save_every", save_every)
    observers = _observers(observe)
    _callable_or_none("stop", stop)
    first = 0
    if start is None:
        theta0 = objective.check_theta(theta0, "theta0")
        theta = theta0.copy()
    else:
        theta0 = _same_run(objective, theta0, start)
        if start.spec.get("step_size") != step_size:
            raise ValueError(
                f"step_size must be that of start, {start.spec.get('step_size')}; got {step_size}"
            )
        theta, first = start.state["theta"].copy(), int(start.state["step"][0])
        if n_steps <= first:
            raise ValueError(f"n_steps must be above the {first} steps of start; got {n_steps}")
    objective.gradient(theta)  # what is wrong with a user's kernel shows here: compiled code cannot raise
    run = _Descent(objective, theta, step_size, first, n_steps, save_every)
    watch = _Watch(objective, observers, stop, run.now)
    spec = {
        "model": model, "problem": problem, "theta0": theta0, "step_size": step_size, "n_steps": n_steps,
        "save_every": save_every, "observe": observe, "stop": stop,
    }  # fmt: skip
    outcome = _drive(run, watch, 0, progress)
    return run.trajectory(outcome, watch, spec)


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
    return replace(loaded, solve=flow) if loaded.steps is not None else loaded


class _Flow:
    """One adaptive integration: where it stands, and how it goes on."""

    verb = "flow"

    def __init__(
        self, objective: Objective, tableau: tableaus.Tableau, state: explicit.State,
        times: Array, rtol: float, atol: float, dense: bool, before: dict[str, Array] | None = None,
    ) -> None:  # fmt: skip
        self.objective, self.tableau, self.state, self.times = objective, tableau, state, times
        self.rtol, self.atol = rtol, np.full(objective.size, atol)
        refuse_if_too_large("t", "states to be saved", len(times) * (objective.size + 1) * 8)
        self.theta, self.dissipation = np.empty((len(times), objective.size)), np.empty(len(times))
        self.cursor = np.zeros(3, dtype=np.int64)
        self.history: list[Array] = []
        self.dense: list[tuple[Array, Array]] = []
        self.keep_dense = dense
        self.over_kinks = hasattr(objective.model, "piecewise") and not isinstance(self, _PiecewiseFlow)
        self.steps_before = self.steps
        self.total = float(times[-1])
        # a rough cost in units of a nanosecond, for the length of the first stretch
        cost = len(tableau.node) * (objective.data.size + objective.work.size + 8 * objective.size + 100)
        self.first_budget = int(min(max(2e7 / cost, 1), 10_000))
        self._new_history()
        self._new_dense()
        if before is not None and dense and state.clock[explicit.H_BEFORE] > 0:
            o = objective
            explicit.store_dense(o.gradient_kernel, o.data, o.dims, o.work, tableau, state, self.output())

    @property
    def steps(self) -> int:
        return int(self.state.counters[explicit.ACCEPTED] + self.state.counters[explicit.REJECTED])

    @property
    def saved(self) -> int:
        return int(self.cursor[explicit.SAVED])

    @property
    def t(self) -> float:
        return float(self.state.clock[explicit.T])

    @property
    def now(self) -> Array:
        return self.state.theta

    @property
    def advanced(self) -> int:
        """A count that grows when there is a new state to show to ``stop``."""
        return int(self.state.counters[explicit.ACCEPTED])

    @property
    def done(self) -> float:
        return min(self.t, self.total)

    @property
    def within(self) -> bool:
        """Whether the end has not been passed."""
        return self.t <= self.total

    def note(self) -> str:
        return f"t = {self.t:.4g}, {self.steps} steps, h = {self.state.clock[explicit.H]:.2g}"

    def _new_history(self) -> None:
        self.history.append(np.empty((_HISTORY_BLOCK * min(2 ** len(self.history), 64), 3)))
        self.cursor[explicit.HISTORY] = 0

    def _new_dense(self) -> None:
        degree, size = self.tableau.interpolant.shape[1], self.objective.size
        rows = 0
        if self.keep_dense:
            rows = int(np.clip(_DENSE_BLOCK_BYTES // (8 * (degree + 1) * size), 1, 1024))
            needed, free = 8 * rows * (degree + 1) * size, available_memory()
            if free is not None and needed > 0.8 * free:
                raise MemoryError
        self.dense.append((np.empty((rows, 2)), np.empty((rows, degree + 1, size))))
        self.cursor[explicit.DENSE] = 0

    def advance(self, budget: int, max_steps: int) -> Status | None:
        """Go on for at most ``budget`` steps; the outcome, or None if there is more to do."""
        code = self._advance(self.output(), budget, self.steps_before + max_steps)
        if code == explicit.BLOCK_FULL:
            if self.cursor[explicit.HISTORY] == len(self.history[-1]):
                self._new_history()
            if self.keep_dense and self.cursor[explicit.DENSE] == len(self.dense[-1][0]):
                try:
                    self._new_dense()
                except MemoryError:
                    return Status("memory", self.stopped_at("the dense output did not fit into memory")
                                  + " Give the wanted times in t instead of dense=True.")  # fmt: skip
        if code in (explicit.BLOCK_FULL, explicit.PAUSED):
            return None
        return self._outcome(code, max_steps)

    def output(self) -> explicit.Output:
        """Where the compiled loop writes."""
        return explicit.Output(
            self.cursor, self.times, self.theta, self.dissipation, self.history[-1], *self.dense[-1]
        )

    def _advance(self, output: explicit.Output, budget: int, max_steps: int) -> int:
        o = self.objective
        return explicit.advance(
            o.gradient_kernel, o.data, o.dims, o.work, self.tableau, self.state, output,
            self.rtol, self.atol, budget, max_steps,
        )  # fmt: skip

    def _outcome(self, code: int, max_steps: int) -> Status:
        if code == explicit.FINISHED:
            return Status("finished", f"Reached t = {self.total:g} in {self.steps} steps.")
        if code == explicit.MAX_STEPS:
            h = self.state.clock[explicit.H]
            advice = (
                f" The last step size was {h:.2g}: go on with start=, raise max_steps, or loosen rtol "
                "if the solution has long settled."
            )
            return Status("max_steps", self.stopped_at(f"max_steps = {max_steps} was reached") + advice)
        if code == explicit.NON_FINITE:
            advice = " Check that the loss and its gradient are finite there; the last finite state is kept."
            return Status("non_finite", self.stopped_at("the gradient is not finite") + advice)
        advice = (
            " The field seems to be discontinuous or not smooth here, or rtol and atol ask for more than "
            "double precision holds."
        )
        return Status("step_too_small", self.stopped_at("the step size fell below the spacing of t") + advice)

    def stopped_at(self, why: str) -> str:
        return f"Stopped at t = {self.t:.6g} of {self.total:g} after {self.steps} steps: {why}."

    def reached(self) -> tuple[Array, Array, Array]:
        """Times, states and dissipation that were saved, and the last state where the end was not reached."""
        n, clock = self.saved, self.state.clock
        t, theta, dissipation = self.times[:n], self.theta[:n], self.dissipation[:n]
        if n < len(self.times) and (n == 0 or self.t > t[-1]):
            t, theta = np.append(t, self.t), np.vstack([theta, self.now])
            dissipation = np.append(dissipation, clock[explicit.DISSIPATION])
        return t, theta, dissipation

    def trajectory(self, outcome: Status, watch: _Watch, spec: dict[str, Any]) -> Trajectory:
        """The trajectory as far as it has come."""
        t, theta, dissipation = self.reached()
        counters = self.state.counters
        if self.over_kinks:
            outcome = replace(outcome, message=f"{outcome.message} Kinks were not located (events=False).")
        history = self.history[-1][: self.cursor[explicit.HISTORY]]
        if len(self.history) > 1:
            history = np.concatenate([*self.history[:-1], history])
        dense = None
        if self.keep_dense:
            times, coefficients = self.dense[-1]
            k = self.cursor[explicit.DENSE]
            kept = [*self.dense[:-1], (times[:k], coefficients[:k])]
            dense = np.concatenate([a for a, _ in kept]), np.concatenate([b for _, b in kept])
        k = int(counters[explicit.CHECKPOINTS])
        checkpoints = self.state.checkpoint_times[:k], self.state.checkpoints[:k]
        names = {
            "accepted": explicit.ACCEPTED,
            "rejected": explicit.REJECTED,
            "gradients": explicit.GRADIENTS,
        }
        return Trajectory(
            t=t, theta=theta, outcome=outcome, dissipation=dissipation,
            observed=watch.arrays(len(t)),
            counts={name: int(counters[i]) for name, i in names.items()},
            steps=Steps(history[:, 0], history[:, 1], history[:, 2] > 0), dense=dense,
            checkpoints=checkpoints, state=self.state._asdict(),
            versions=versions(), recorded_spec=spec, solve=flow,
        )  # fmt: skip


class _PiecewiseFlow(_Flow):
    """An integration that locates the kinks of a ReLU network."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        o, before = self.objective, arguments[-1]
        room = 4 * (int(o.dims[7]) + int(o.dims[4])) + 1024
        self.pattern = piecewise.new_pattern(o.dims, o.size, room)
        self.table: list[Array] = []
        self.non_unique = 0
        if before is None:
            zero = piecewise.begin(self.t, self.state.theta, o.data, o.dims, o.work, self.pattern)
            if zero >= 0:
                raise ValueError(
                    f"theta0 must have w_j != 0 for every neuron, where the flow is unique; w_{zero} is zero"
                )
        elif "mode" not in before:
            raise ValueError("start must be a trajectory with events; it was made with events=False")
        else:
            self.pattern.mode[:], self.pattern.start_size[:] = before["mode"], before["start_size"]
            o.work[:] = before["work"]
            self.table.append(before["pending"])

    def _advance(self, output: explicit.Output, budget: int, max_steps: int) -> int:
        o = self.objective
        code = piecewise.advance(
            o.gradient_kernel, o.data, o.dims, o.work, self.tableau, self.state, output, self.pattern,
            self.rtol, self.atol, budget, max_steps,
        )  # fmt: skip
        numbers = self.pattern.numbers
        self.table.append(self.pattern.table[: numbers[piecewise.EVENTS]].copy())
        self.non_unique += int(numbers[piecewise.NON_UNIQUE])
        numbers[piecewise.EVENTS] = numbers[piecewise.NON_UNIQUE] = 0
        return explicit.PAUSED if code == piecewise.TABLE_FULL else code

    def _outcome(self, code: int, max_steps: int) -> Status:
        if code == piecewise.AT_ZERO:
            j = int(self.pattern.numbers[piecewise.ZERO_NEURON])
            return Status(
                "zero_neuron",
                self.stopped_at(f"neuron {j} has reached w = 0")
                + " There all its kinks meet and the flow can go on in several ways; gflow does not choose.",
            )
        if code == piecewise.STUCK:
            return Status(
                "stuck",
                self.stopped_at("the events at one time do not end")
                + " Several kinks meet here to rounding; perturb the start, or use events=False.",
            )
        return super()._outcome(code, max_steps)

    def trajectory(self, outcome: Status, watch: _Watch, spec: dict[str, Any]) -> Trajectory:
        """The trajectory as far as it has come, with its events."""
        if self.non_unique:
            note = (
                f'not unique: at {self.non_unique} events (kind "not_unique") the flow could have gone on in '
                "another way; what follows is one of its solutions."
            )
            outcome = replace(outcome, warnings=(*outcome.warnings, note))
        table = np.concatenate(self.table) if self.table else np.empty((0, 4))
        end = float(self.reached()[0][-1])
        pending, table = table[table[:, 0] > end], table[table[:, 0] <= end]  # a step passes over the end
        events = Events(
            table[:, 0], table[:, 1].astype(np.int64), table[:, 2].astype(np.int64),
            np.array(piecewise.KINDS)[table[:, 3].astype(np.int64)],
        )  # fmt: skip
        made = super().trajectory(outcome, watch, spec)
        state: dict[str, Any] = {
            **made.state, "mode": self.pattern.mode, "start_size": self.pattern.start_size,
            "work": self.objective.work, "pending": pending,
        }  # fmt: skip
        return replace(made, events=events, state=state, checkpoints=None)


class _Descent:
    """One gradient descent: where it stands, and how it goes on."""

    verb = "descend"

    def __init__(
        self, objective: Objective, theta: Array, step_size: float, first: int, n_steps: int, every: int
    ) -> None:
        self.objective, self.step_size, self.n_steps = objective, step_size, n_steps
        self.first, self.every = first, every
        rows = -(-(n_steps - first) // every) + 1
        refuse_if_too_large("save_every", "states to be saved", rows * (objective.size + 1) * 8)
        self.at = np.append(np.arange(first, n_steps, every), n_steps)
        self.theta, self.now, self.g = (
            np.empty((len(self.at), objective.size)),
            theta,
            np.empty(objective.size),
        )
        self.cursor = np.array([first, 0], dtype=np.int64)
        self.total = float(n_steps)
        cost = objective.data.size + objective.work.size + 8 * objective.size + 100
        self.first_budget = int(min(max(2e7 / cost, 1), 100_000))

    @property
    def steps(self) -> int:
        return int(self.cursor[descent.STEP])

    @property
    def saved(self) -> int:
        return int(self.cursor[descent.SAVED])

    @property
    def t(self) -> float:
        return self.steps * self.step_size

    @property
    def advanced(self) -> int:
        """A count that grows when there is a new saved state to show to ``stop``; the first one is saved late."""
        return max(self.saved, 1)

    within = True

    @property
    def done(self) -> float:
        return float(self.steps)

    def note(self) -> str:
        return f"step {self.steps}"

    def advance(self, budget: int, max_steps: int) -> Status | None:
        o = self.objective
        code = descent.advance(
            o.gradient_kernel, o.data, o.dims, o.work, self.now, self.g, self.cursor, self.step_size,
            self.first, self.every, self.n_steps, self.theta, budget,
        )  # fmt: skip
        if code == descent.PAUSED:
            return None
        if code == descent.FINISHED:
            return Status("finished", f"Made {self.steps} steps of {self.step_size:g}.")
        return Status(
            "non_finite",
            self.stopped_at("the next state is not finite") + f" The step size {self.step_size:g} is "
            "probably above the stability limit 2 / sharpness; the last finite state is kept.",
        )

    def stopped_at(self, why: str) -> str:
        return f"Stopped at step {self.steps} of {self.n_steps}: {why}."

    def reached(self) -> tuple[Array, Array]:
        """Times and states that were saved, and the last state where the end was not reached."""
        n = self.saved
        at, theta = self.at[:n], self.theta[:n]
        if n == 0 or self.steps > at[-1]:
            at, theta = np.append(at, self.steps), np.vstack([theta, self.now])
        return at * self.step_size, theta

    def trajectory(self, outcome: Status, watch: _Watch, spec: dict[str, Any]) -> Trajectory:
        """The trajectory as far as it has come."""
        t, theta = self.reached()
        return Trajectory(
            t=t, theta=theta, outcome=outcome, observed=watch.arrays(len(t)),
            counts={"steps": self.steps, "gradients": self.steps},
            state={"theta": self.now, "step": np.array([self.steps])},
            versions=versions(), recorded_spec=spec,
        )  # fmt: skip


class _CallbackError(Exception):
    """A user's callable raised; the cause is the exception's."""


class _Watch:
    """A user's observers and ``stop``, called between stretches of a run.

    The observers are called once at the start, so that what is wrong with them shows before anything runs.
    """

    def __init__(
        self, objective: Objective, observers: dict[str, Callable[..., Any]],
        stop: Callable[[float, Array], bool] | None, start: Array,
    ) -> None:  # fmt: skip
        self.objective, self.observers, self.stop = objective, observers, stop
        self.seen: dict[str, list[Array]] = {name: [] for name in observers}
        self.first = {name: self._value(name, start.copy()) for name in observers}

    def _value(self, name: str, theta: Array) -> Array:
        return np.array(self.observers[name](self.objective.model, self.objective.problem, theta))

    def wants_stop(self, t: float, theta: Array) -> bool:
        assert self.stop is not None
        try:
            return bool(self.stop(t, theta.copy()))
        except Exception as error:
            raise _CallbackError("stop") from error

    def observe(self, theta: Array) -> None:
        """Observe the rows of ``theta`` (T, P) that have not been seen."""
        for name, values in self.seen.items():
            for row in theta[len(values) :]:
                try:
                    values.append(self._value(name, row))
                except Exception as error:
                    raise _CallbackError(f"observe[{name!r}]") from error

    def arrays(self, rows: int) -> dict[str, Array]:
        """The observables, with NaN for rows that an interrupt or an exception left unseen."""
        out = {}
        for name, values in self.seen.items():
            missing = rows - len(values)
            blank = np.full_like(self.first[name], np.nan, dtype=np.result_type(self.first[name], np.float64))
            rows_of = [*values, *[blank] * missing]
            try:
                out[name] = np.array(rows_of)
            except ValueError:  # values of different shapes
                out[name] = np.empty(rows, dtype=object)
                out[name][:] = rows_of
        return out


class _Interrupts:
    """Notes Ctrl-C while compiled code runs, to be looked at between stretches; a second one raises at once.

    An exception out of the signal handler could strike inside of numba, which would swallow it.
    """

    def __init__(self) -> None:
        self.came = False
        self._ours = False

    def __enter__(self) -> _Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._ours:
            signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.came:
            raise KeyboardInterrupt
        self.came = True

    def __exit__(self, *error: object) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Raise the KeyboardInterrupt that came."""
        if self.came:
            raise KeyboardInterrupt


def _drive(run: Any, watch: _Watch, max_steps: int, progress: bool) -> Status:
    """Advance a run in stretches of about 0.1 s, and between them observe, ask ``stop`` and show progress.

    A keyboard interrupt ends it after the stretch that is under way.
    """
    outcome: Status | None = None
    budget = 1 if watch.stop is not None else run.first_budget
    interrupts = _Interrupts()
    try:
        with interrupts, _blas(run.objective), Progress(progress, run.verb, run.total) as shown:
            asked = -1
            while outcome is None:
                interrupts.check()
                if watch.stop is not None and run.advanced != asked and run.within:
                    asked = run.advanced
                    if watch.wants_stop(run.t, run.now):
                        outcome = Status("stopped", run.stopped_at("stop() returned True"))
                        break
                began, before = time.perf_counter(), run.steps
                outcome = run.advance(budget, max_steps)
                watch.observe(run.theta[: run.saved])
                if watch.stop is None and run.steps > before:
                    pace = (run.steps - before) / max(time.perf_counter() - began, 1e-6)
                    budget = max(1, int(_CHUNK_SECONDS * pace))
                if progress:
                    shown.update(run.done, run.note())
            watch.observe(run.reached()[1])
            interrupts.check()
    except KeyboardInterrupt:
        with suppress(KeyboardInterrupt):  # a second one leaves the rest unobserved
            watch.observe(run.reached()[1])
        return Status("interrupted", run.stopped_at("interrupted") + " Go on with start=.")
    except _CallbackError as error:
        return Status("failed", run.stopped_at(f"{error} raised {error.__cause__!r}") + " Go on with start=.")
    return outcome


def _times(t: ArrayLike, start: Trajectory | None) -> Array:
    origin = 0.0 if start is None else float(start.t[-1])
    try:
        scalar = np.ndim(t) == 0
    except ValueError:
        scalar = False
    if scalar:
        end = finite_array("t", t, ())
        if not end > origin:
            raise ValueError(f"t must be above the start, {origin:g}; got {end:g}")
        return np.array([origin, float(end)])
    times = finite_array("t", t, ("T",))
    if times[0] < 0:
        raise ValueError(f"t must be >= 0; t[0] is {times[0]:g}")
    back = np.flatnonzero(np.diff(times) <= 0)
    if back.size:
        i = int(back[0])
        raise ValueError(
            f"t must increase; t[{i}] = {times[i]:g} is followed by t[{i + 1}] = {times[i + 1]:g}"
        )
    if times[0] < origin:
        raise ValueError(f"t must begin at or after the end of start, {origin:g}; t[0] is {times[0]:g}")
    return times


def _rtol(rtol: float) -> float:
    rtol = positive("rtol", rtol)
    if not 1e-14 <= rtol < 1:
        raise ValueError(f"rtol must lie between 1e-14, the reach of double precision, and 1; got {rtol}")
    return rtol


def _default_atol(objective: Objective, theta: Array, rtol: float) -> float:
    blocks = objective.model.blocks() if objective.has("blocks") else [slice(None)]
    sizes = [_root_mean_square(theta[block]) for block in blocks]
    smallest = min((size for size in sizes if size > 0), default=1.0)
    return max(rtol * 1e-3 * smallest, sys.float_info.min)


def _root_mean_square(part: Array) -> float:
    total = float(part @ part)
    if total > 1e-280:
        return math.sqrt(total / part.size)
    largest = float(np.abs(part).max(initial=0.0))  # squares would underflow
    return largest * float(np.sqrt(np.mean((part / largest) ** 2))) if largest > 0 else 0.0


def _callable_or_none(name: str, value: Any) -> None:
    if value is not None and not callable(value):
        raise ValueError(f"{name} must be a callable (t, theta) -> bool or None; got {value!r}")


def _trajectory_or_none(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, Trajectory):
        raise ValueError(f"{name} must be a Trajectory or None; got {value!r:.80}")


def _observers(observe: Observers) -> dict[str, Callable[..., Any]]:
    if observe is None:
        return {}
    from gflow import observe as known

    if isinstance(observe, Mapping):
        pairs = list(observe.items())
    else:
        listed: list[Any]
        if isinstance(observe, str) or callable(observe) or not isinstance(observe, Iterable):
            listed = [observe]
        else:
            listed = list(observe)
        pairs = [
            (item if isinstance(item, str) else getattr(item, "__name__", repr(item)), item)
            for item in listed
        ]
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"observe must have one name for each observable; {twice!r} came twice: give a dict")
    return {
        name: known.by_name(item) if isinstance(item, str) else _check_observer(name, item)
        for name, item in pairs
    }


def _check_observer(name: str, item: Any) -> Callable[..., Any]:
    if not callable(item):
        raise ValueError(
            f"observe[{name!r}] must be a name or a callable (model, problem, theta); got {item!r}"
        )
    return item


def _same_run(objective: Objective, theta0: ArrayLike | None, start: Any) -> Array:
    """θ(0) of a trajectory that is to be continued, once it is known to be of this model and problem."""
    there = start.objective
    same = (
        there.gradient_kernel is objective.gradient_kernel
        and np.array_equal(there.data, objective.data)
        and np.array_equal(there.dims, objective.dims)
    )
    if not same:
        raise ValueError("start must be a trajectory of this model and this problem; it is of another")
    first = np.asarray(start.spec["theta0"])
    if theta0 is not None and not np.array_equal(objective.check_theta(theta0, "theta0"), first):
        raise ValueError("theta0 must be None, or the initial parameters of start; got others")
    return first


def _continued(
    objective: Objective,
    theta0: ArrayLike | None,
    start: Trajectory,
    method: str,
    rtol: float,
    atol: float | None,
) -> tuple[Array, str, float, float]:
    theta = _same_run(objective, theta0, start)
    if start.steps is None:
        raise ValueError("start must be a trajectory of the flow; it is of gradient descent")
    spec = start.spec
    for name, given, default in (("method", method, "auto"), ("rtol", rtol, 1e-9), ("atol", atol, None)):
        if given != default and given != spec[name]:
            raise ValueError(
                f"{name} must be left out with start=, or equal its {name}, {spec[name]!r}; got {given!r}"
            )
    return theta, spec["method"], spec["rtol"], spec["atol"]


@cache
def _pools() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


def _blas(objective: Objective) -> AbstractContextManager[Any]:
    """Hold BLAS at one thread unless its products are so large that more of them pay (measured)."""
    widest = max(objective.dims.tolist(), default=0)
    if widest < 32 or widest > 512:
        return nullcontext()
    return _pools().limit(limits=1)


@cache
def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    names = {"gflow": "gradient-flow", "numpy": "numpy", "scipy": "scipy", "numba": "numba"}
    return {key: installed(name) for key, name in names.items()} | {"python": platform.python_version()}


def versions() -> dict[str, str]:
    """Versions of gflow and of what its numbers depend on."""
    return dict(_versions())
