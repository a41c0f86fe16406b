"""flow(): check the arguments, drive a compiled loop, hand back a Trajectory."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gflow import trajectory as _trajectory
from gflow._check import finite_array, one_of, positive, positive_int
from gflow._memory import available_memory, refuse_if_too_large
from gflow._run import (
    Array,
    Observers,
    Watch,
    callable_or_none,
    drive,
    parse_observers,
    same_run,
    trajectory_or_none,
    versions,
)
from gflow.kernels import explicit, lossclock, piecewise, tableaus
from gflow.objective import Objective
from gflow.problem import Problem
from gflow.trajectory import Events, Status, Steps, Trajectory

METHODS = {"tsit5": tableaus.tsit5, "dop853": tableaus.dop853}
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
    clock: str = "time",
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
        times does not change the steps.  With ``clock="loss"``: increasing values of log(1/L) from the
        start's own on; one number saves the start and the state at that value.
    method : {"auto", "tsit5", "dop853"}
        Runge-Kutta pair of order 5(4) or 8(5,3).  ``"auto"`` takes Tsit5 for rtol ≥ 1e-6 and DOP853
        below, and Tsit5 for ReLU networks of more than 2,000 neuron-sample pairs, whose events cut the
        steps short; ``trajectory.spec["method"]`` says which.
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
    observe : name, callable, list of them, or dict of name to callable, optional
        Observables f(model, problem, theta) to compute at the saved times; names are those of
        :mod:`gflow.observe`.  Results: ``trajectory[name]``, NaN at states that an interrupt left unseen.
    stop : callable, optional
        ``stop(t, theta)`` is called after every accepted step, with t as the clock counts it; True ends
        the run there.
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
    potential = _potential(objective, one_of("clock", clock, ("time", "loss")))
    max_steps = positive_int("max_steps", max_steps)
    for name, value in (("events", events), ("dense", dense)):
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name} must be True or False; got {value!r:.80}")
    if dense and clock == "loss":
        raise ValueError("dense must be False with clock='loss': give the values of log(1/L) to save in t")
    observers = parse_observers(observe)
    callable_or_none("stop", stop)
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
        theta, method, rtol, atol = _continued(objective, theta0, start, method, rtol, atol, clock)
        tableau = METHODS[method]()
        state = explicit.State._make(start.state[name].copy() for name in explicit.State._fields)
    located = events and hasattr(model, "piecewise")
    if located and not model.piecewise:
        raise ValueError(
            "events must be False for a network with first_depth > 1: there one neuron's kink moves all others"
        )
    kind: type[_Flow]
    if clock == "loss":
        origin = -potential.loss(state.theta) if start is None else float(start.t[-1])
        kind = _PiecewiseLossClock if located else _LossClock
    else:
        origin = 0.0 if start is None else float(start.t[-1])
        kind = _PiecewiseFlow if located else _Flow
    times = _times(t, origin, start, clock)
    # what is wrong with a user's kernel shows here: compiled code cannot raise
    potential.gradient(state.theta)
    run = kind(potential, tableau, state, times, rtol, atol, dense, None if start is None else start.state)
    watch = Watch(objective, observers, stop, run.now)
    spec = {
        "model": model, "problem": problem, "theta0": theta, "t": times, "method": method, "rtol": rtol,
        "atol": atol, "clock": clock, "observe": observe, "stop": stop, "events": events, "dense": dense,
        "max_steps": run.steps_before + max_steps,
    }  # fmt: skip
    outcome = drive(run, watch, max_steps, progress)
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
    clock_name = "t"

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
        return f"{self.clock_name} = {self.t:.4g}, {self.steps} steps, h = {self.state.clock[explicit.H]:.2g}"

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
        return self._compiled(output, budget, max_steps)

    def _compiled(self, output: explicit.Output, budget: int, max_steps: int) -> int:
        o = self.objective
        return explicit.advance(
            o.gradient_kernel, o.data, o.dims, o.work, self.tableau, self.state, output,
            self.rtol, self.atol, budget, max_steps,
        )  # fmt: skip

    def _outcome(self, code: int, max_steps: int) -> Status:
        if code == explicit.FINISHED:
            return Status("finished", f"Reached {self.clock_name} = {self.total:g} in {self.steps} steps.")
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
        return (
            f"Stopped at {self.clock_name} = {self.t:.6g} of {self.total:g} after {self.steps} steps: {why}."
        )

    def reached(self) -> tuple[Array, Array, Array]:
        """Times, states and dissipation that were saved, and the last state where the end was not reached."""
        n, clock = self.saved, self.state.clock
        t, theta, dissipation = self.times[:n], self.theta[:n], self.dissipation[:n]
        if n < len(self.times) and (n == 0 or self.t > t[-1]):
            t, theta = np.append(t, self.t), np.vstack([theta, self.now])
            dissipation = np.append(dissipation, clock[explicit.DISSIPATION])
        return t, theta, dissipation

    def trajectory(self, outcome: Status, watch: Watch, spec: dict[str, Any]) -> Trajectory:
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

    def _compiled(self, output: explicit.Output, budget: int, max_steps: int) -> int:
        o = self.objective
        return piecewise.advance(
            o.gradient_kernel, o.data, o.dims, o.work, self.tableau, self.state, output, self.pattern,
            self.rtol, self.atol, budget, max_steps,
        )  # fmt: skip

    def _advance(self, output: explicit.Output, budget: int, max_steps: int) -> int:
        code = self._compiled(output, budget, max_steps)
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

    def trajectory(self, outcome: Status, watch: Watch, spec: dict[str, Any]) -> Trajectory:
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


class _LossClock(_Flow):
    """An integration of dθ/ds = −∇log L that saves at values of log(1/L); its objective is log L."""

    clock_name = "log(1/L)"

    def __init__(
        self, objective: Objective, tableau: tableaus.Tableau, state: explicit.State,
        times: Array, rtol: float, atol: float, dense: bool, before: dict[str, Array] | None = None,
    ) -> None:  # fmt: skip
        level = -objective.loss(state.theta)
        self.clock = lossclock.new_clock(times, level, tableau.interpolant.shape[1])
        if before is not None:
            self.clock.numbers[:] = before["loss_clock"]
        self.never = np.full(len(times) + 1, np.inf)
        super().__init__(objective, tableau, state, times, rtol, atol, dense, before)

    @property
    def t(self) -> float:
        return float(self.clock.numbers[lossclock.LEVEL])

    def output(self) -> explicit.Output:
        return super().output()._replace(times=self.never)

    def _compiled(self, output: explicit.Output, budget: int, max_steps: int) -> int:
        o = self.objective
        common = (
            o.gradient_kernel, o.loss_kernel, o.data, o.dims, o.work, self.tableau, self.state, output, self.clock
        )  # fmt: skip
        rest = self.rtol, self.atol, budget, max_steps
        if isinstance(self, _PiecewiseFlow):
            return lossclock.advance_piecewise(*common, self.pattern, *rest)
        return lossclock.advance(*common, *rest)

    def _outcome(self, code: int, max_steps: int) -> Status:
        if code == lossclock.SETTLED:
            return Status(
                "settled",
                self.stopped_at("log L has ceased to fall, and nothing moves any more")
                + " The loss tends to a finite value here: the network does not separate the data.",
            )
        return super()._outcome(code, max_steps)

    def trajectory(self, outcome: Status, watch: Watch, spec: dict[str, Any]) -> Trajectory:
        """The trajectory as far as it has come, with its time.

        Without checkpoints: thinned over a range of s in which the flow ages by many powers of ten, they say
        nothing of its beginning, where the curvature is negative.
        """
        note = 'Sensitivity is not measured with clock="loss".'
        outcome = replace(outcome, message=f"{outcome.message} {note}")
        made, clock, n = super().trajectory(outcome, watch, spec), self.clock, self.saved
        log_time, s = clock.log_times[:n], clock.s[:n]
        if len(made.t) > n:
            log_time = np.append(log_time, clock.numbers[lossclock.LOG_TIME])
            s = np.append(s, clock.numbers[lossclock.BASE] + self.state.clock[explicit.T])
        state = {**made.state, "loss_clock": clock.numbers}
        return replace(made, log_time=log_time, s=s, checkpoints=None, state=state)


class _PiecewiseLossClock(_LossClock, _PiecewiseFlow):
    """The same with the kinks of a ReLU network located."""


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


def _times(t: ArrayLike, origin: float, start: Trajectory | None, clock: str) -> Array:
    try:
        scalar = np.ndim(t) == 0
    except ValueError:
        scalar = False
    where = f"log(1/L) = {origin:.17g} of the start" if clock == "loss" else f"the start, {origin:g}"
    if scalar:
        end = finite_array("t", t, ())
        if not end > origin:
            raise ValueError(f"t must be above {where}; got {end:g}")
        return np.array([origin, float(end)])
    times = finite_array("t", t, ("T",))
    if clock == "time" and times[0] < 0:
        raise ValueError(f"t must be >= 0; t[0] is {times[0]:g}")
    back = np.flatnonzero(np.diff(times) <= 0)
    if back.size:
        i = int(back[0])
        raise ValueError(
            f"t must increase; t[{i}] = {times[i]:g} is followed by t[{i + 1}] = {times[i + 1]:g}"
        )
    if times[0] < origin:
        where = where if start is None else f"the end of start, {origin:g}"
        raise ValueError(f"t must begin at or after {where}; t[0] is {times[0]:g}")
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


def _continued(
    objective: Objective,
    theta0: ArrayLike | None,
    start: Trajectory,
    method: str,
    rtol: float,
    atol: float | None,
    clock: str,
) -> tuple[Array, str, float, float]:
    theta = same_run(objective, theta0, start)
    if start.steps is None:
        raise ValueError("start must be a trajectory of the flow; it is of gradient descent")
    spec = start.spec
    if clock != spec.get("clock", "time"):
        raise ValueError(
            f"clock must equal that of start, {spec.get('clock', 'time')!r}, in which t is; got {clock!r}"
        )
    for name, given, default in (("method", method, "auto"), ("rtol", rtol, 1e-9), ("atol", atol, None)):
        if given != default and given != spec[name]:
            raise ValueError(
                f"{name} must be left out with start=, or equal its {name}, {spec[name]!r}; got {given!r}"
            )
    return theta, spec["method"], spec["rtol"], spec["atol"]
