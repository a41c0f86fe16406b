"""ensemble(): many flows, descents or stochastic flows of one model on one problem, on all cores."""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow import _record
from gflow._check import finite_array, one_of, plain_array, positive, positive_int
from gflow._flows import EXPLICIT, Flow, begin, pair
from gflow._memory import refuse_if_too_large
from gflow._progress import Progress
from gflow._run import (
    Array,
    CallbackError,
    Interrupts,
    Observers,
    Watch,
    blas_pays,
    hold_blas,
    parse_observers,
    versions,
)
from gflow.integrate import check_rtol, check_times, chosen_method, default_atols, flow
from gflow.iterate import Options, outcome_of, saved_steps, seed_in, seed_of, step_sizes, stopped_at, times
from gflow.kernels import abi, descent, ensembles, explicit, stiff
from gflow.limit import FIRST_LOOK
from gflow.objective import Objective
from gflow.stochastic import SCHEMES, StochasticPath, coordinates, default_dt, whole_steps
from gflow.trajectory import Events, Status, Steps, Trajectory

_STRETCH_SECONDS = 0.1
_CODES = {
    explicit.FINISHED: "finished",
    explicit.MAX_STEPS: "max_steps",
    explicit.STEP_TOO_SMALL: "step_too_small",
    explicit.NON_FINITE: "non_finite",
}
_REASONS = {
    "max_steps": "max_steps was reached",
    "step_too_small": "the step size fell below the spacing of t",
    "non_finite": "the gradient is not finite",
    "interrupted": "interrupted",
}
_OVER_KINKS = " Kinks were not located (events=False)."
_FLOW_ONLY = {"method": "auto", "rtol": 1e-9, "atol": None, "events": True, "max_steps": 1_000_000}
_PATHS_ONLY = {"scheme": SCHEMES[0], "dt": None, "rng": None}
_DESCENT_ONLY = {
    "optimizer": "gd", "momentum": None, "betas": None, "eps": None, "batch_size": None,
    "replacement": False, "rng": None, "kink": None, "save_every": 1,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Ensemble:
    """States of many runs of one model on one problem.

    Attributes
    ----------
    t : array (T,), or (R, T) for descents whose step sizes differ
        Times of the saved states.
    theta : array (R, T, P)
        Parameters; NaN at times that a run did not reach.
    codes : array of str (R,)
        How each run ended: the codes of :class:`gflow.Status`.
    counts : dict of str to array of int (R,)
        Accepted and rejected steps and gradients of each run; steps and gradients of a descent.
    last_t, last : arrays (R,), (R, P)
        How far each run has come, and its state there.
    observed : dict of str to array (R, T, ...)
        Observables computed on the way; also ``ensemble[name]``.
    dissipation : array (R, T) or None
        ∫‖∇L‖²dt; None for descents.
    versions : dict
        Versions of gflow, numpy, scipy, numba and Python that made it.

    Notes
    -----
    ``ensemble[r]`` is run r as a :class:`gflow.Trajectory`: its states and its cause, without the history of its
    steps.  Its sensitivity is not measured: ``gflow.flow(**ensemble[r].spec)`` repeats the run with all of that,
    bit for bit.  A run of an ensemble of descents may be continued with ``descend(..., start=ensemble[r])``.
    """

    t: Array
    theta: Array
    codes: NDArray[np.str_]
    counts: dict[str, NDArray[np.int64]]
    last_t: Array
    last: Array
    saved: NDArray[np.int64] = field(repr=False)  # (R,): how many of the times each run reached
    # of the runs of which there is more to say than "finished"
    outcomes: dict[int, Status] = field(repr=False)
    observed: dict[str, Array] = field(default_factory=dict, repr=False)
    dissipation: Array | None = field(default=None, repr=False)
    last_dissipation: Array | None = field(default=None, repr=False)
    moments: Array | None = field(default=None, repr=False)  # of descents
    atol: Array | None = field(default=None, repr=False)  # (R,) of flows
    coordinates: Array | None = field(default=None, repr=False)  # (R, T, n + 1) of stochastic flows
    table: tuple[Any, ...] | None = field(default=None, repr=False)  # run (E,), and the columns of Events
    versions: dict[str, str] = field(default_factory=dict, repr=False)
    recorded_spec: Any = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.theta)

    def __repr__(self) -> str:
        runs, rows, size = self.theta.shape
        return f"Ensemble: {runs} runs, {rows} states of {size} parameters each. {self.status}"

    def __iter__(self) -> Iterator[Trajectory]:
        return (self[r] for r in range(len(self)))

    def __getitem__(self, which: Any) -> Any:
        """An observable (R, T, ...) by its name, or a run by its number; a slice gives a list of runs."""
        if isinstance(which, str):
            if which not in self.observed:
                known = ", ".join(map(repr, self.observed)) or "none"
                raise KeyError(f"{which!r} was not observed on the way (observed: {known})")
            return self.observed[which]
        found = range(len(self))[which]
        return [self._run(r) for r in found] if isinstance(found, range) else self._run(found)

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Everything that the runs were called with: ``gflow.ensemble(**ensemble.spec)`` repeats them."""
        return _record.restored(self.recorded_spec)

    @cached_property
    def objective(self) -> Objective:
        """Model on problem, as functions of the parameters."""
        return Objective(self.spec["model"], self.spec["problem"])

    @cached_property
    def loss(self) -> Array:
        """Loss (R, T) at the saved states, NaN where there is none; a ValueError if the model has no loss."""
        runs, rows, size = self.theta.shape
        out, o = np.empty(runs * rows), self.objective
        abi.losses(o.loss_kernel, o.data, o.dims, o.work, self.theta.reshape(-1, size), out)
        out = out.reshape(runs, rows)
        out[np.arange(rows) >= self.saved[:, None]] = np.nan
        return out

    @property
    def status(self) -> Status:
        """How many runs ended how; the code is that of all, or ``"mixed"``."""
        names, first, counts = np.unique(self.codes, return_index=True, return_counts=True)
        said = ", ".join(
            f"{count} {name}" + ("" if name == "finished" else f" (first: run {r})")
            for name, r, count in zip(names, first, counts, strict=True)
        )
        kinds: dict[str, int] = {}
        for one in self.outcomes.values():
            for note in one.warnings:
                kinds[note.split(":")[0]] = kinds.get(note.split(":")[0], 0) + 1
        notes = tuple(f"{name}: in {count} runs; see their own status." for name, count in kinds.items())
        return Status(str(names[0]) if len(names) == 1 else "mixed", f"Of {len(self)} runs: {said}.", notes)

    def _run(self, r: int) -> Trajectory:
        spec = self.spec
        n, t = int(self.saved[r]), self.t if self.t.ndim == 1 else self.t[r]
        rows, last_t = len(t), float(self.last_t[r])
        t, theta = t[:n], self.theta[r, :n]
        dissipation = None if self.dissipation is None else self.dissipation[r, :n]
        observed = {name: values[r][:n] for name, values in self.observed.items()}
        if n < rows and (n == 0 or last_t > t[-1]):  # the last state is none of those that were asked for
            t, theta = np.append(t, last_t), np.vstack([theta, self.last[r]])
            if dissipation is not None and self.last_dissipation is not None:
                dissipation = np.append(dissipation, self.last_dissipation[r])
            observed = {name: _with_blank(values) for name, values in observed.items()}
        counts = {name: int(values[r]) for name, values in self.counts.items()}
        if self.coordinates is not None:
            kept = ("model", "problem", "observe", "step_size", "scheme", "dt")
            one = {name: spec[name] for name in kept} | {"stop": None, "t": spec["t"]}
            one |= {"theta0": spec["thetas"][r], "rng": int(spec["rng"][r])}
            return Trajectory(
                t=t[:n], theta=theta[:n], coordinates=self.coordinates[r, :n], counts=counts, outcome=self.outcomes[r],
                observed={name: values[:n] for name, values in observed.items()}, versions=self.versions,
                recorded_spec=one,
            )  # fmt: skip
        common: dict[str, Any] = {
            "t": t, "theta": theta, "dissipation": dissipation, "observed": observed, "counts": counts,
            "versions": self.versions,
        }  # fmt: skip
        one = {name: spec[name] for name in ("model", "problem", "observe")} | {"theta0": spec["thetas"][r]}
        if self.moments is not None:
            names = [name for name in _DESCENT_ONLY if name != "rng"]
            one |= {name: spec[name] for name in (*names, "n_steps")} | {"stop": None}
            sizes, rng = spec["step_size"], spec["rng"]
            one["step_size"] = float(sizes[r % len(sizes)]) if sizes.ndim == 1 else sizes[r % len(sizes)]
            one["rng"] = None if rng is None else int(rng[r])
            state = {"theta": self.last[r], "step": np.array([counts["steps"]]), "moments": self.moments[r]}
            done = Status("finished", f"Made {counts['steps']} steps.")
            return Trajectory(**common, outcome=self.outcomes.get(r, done), state=state, recorded_spec=one)
        assert self.atol is not None
        one |= {name: spec[name] for name in ("method", "rtol", "events", "max_steps")}
        one |= {"t": spec["t"], "atol": float(self.atol[r]), "stop": None, "dense": False}
        done = Status(
            "finished", f"Reached t = {last_t:g} in {counts['accepted'] + counts['rejected']} steps."
        )
        outcome = self.outcomes.get(r, done)
        said = "" if self.table is not None or not hasattr(spec["model"], "piecewise") else _OVER_KINKS
        said += " Steps and sensitivity are not kept in an ensemble: gflow.flow(**trajectory.spec) repeats the run."
        return Trajectory(
            **common, outcome=Status(outcome.code, outcome.message + said, outcome.warnings),
            steps=Steps(np.empty(0), np.empty(0), np.empty(0, dtype=bool)), events=self.events(r),
            recorded_spec=one, solve=flow,
        )  # fmt: skip

    def events(self, r: int) -> Events | None:
        """The events of run r at kinks, up to its last saved time; None where there are none to locate."""
        if self.table is None:
            return None
        mine = self.table[0] == r
        return Events(*(column[mine] for column in self.table[1:]))

    def save(self, path: str | Path) -> Path:
        """Write the runs and their whole cause to one ``.npz`` file; return its path."""
        loaded = isinstance(self.recorded_spec, _record.Recorded)
        spec = self.recorded_spec if loaded else _record.Recorded.make(self.spec)
        parts = {name: getattr(self, name) for name in _KEPT}
        parts["outcomes"] = [[r, s.code, s.message, list(s.warnings)] for r, s in self.outcomes.items()]
        return _record.write(Path(path), {"ensemble": parts}, spec)

    @classmethod
    def load(cls, path: str | Path) -> Ensemble:
        """Read an ensemble that :meth:`save` wrote.

        Raises
        ------
        ValueError
            If the file is not an ensemble of gflow.
        """
        parts, spec = _record.read(Path(path))
        if "ensemble" not in parts:
            raise ValueError(
                f"path must name an ensemble; {path} holds a trajectory: read it with gflow.load"
            )
        kept = parts["ensemble"]
        outcomes = {
            r: Status(code, message, tuple(notes)) for r, code, message, notes in kept.pop("outcomes")
        }
        return cls(**kept, outcomes=outcomes, recorded_spec=spec)


_KEPT = (
    "t", "theta", "codes", "counts", "last_t", "last", "observed", "dissipation", "last_dissipation", "moments",
    "saved", "atol", "coordinates", "table", "versions",
)  # fmt: skip


def _with_blank(values: Array) -> Array:
    """One more row, of NaN."""
    if values.dtype == object:
        return np.append(values, np.array([None], dtype=object))
    blank = np.full((1, *values.shape[1:]), np.nan)
    return np.concatenate([values, blank])


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
    The threads share the runs; BLAS keeps to one thread.  Only where the products are so large (an axis above
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
        if name not in _DESCENT_ONLY and name not in _PATHS_ONLY:
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
    own = _PATHS_ONLY if t is not None and step_size is not None else _DESCENT_ONLY
    for name in options:
        if step_size is not None and name not in own:
            raise ValueError(f"{name} must be left out for {'paths' if t is not None else 'descents'}")
    if step_size is None:
        unwanted = [*options, *(["n_steps"] if n_steps is not None else [])]
        if unwanted:
            raise ValueError(f"{unwanted[0]} must be left out for flows; it belongs to descents (step_size)")
        made: _Runs = _Flows(objective, thetas, t, parse_observers(observe), **flows)
    else:
        for name, value in flows.items():
            if value is not _FLOW_ONLY[name] and value != _FLOW_ONLY[name]:
                what = "descents" if t is None else "paths"
                raise ValueError(f"{name} must be left out for {what}; it belongs to flows (t)")
        if t is not None:
            made = _Paths(objective, thetas, t, step_size, parse_observers(observe), options)
        else:
            made = _Descents(objective, thetas, step_size, n_steps, parse_observers(observe), options)
    interrupted = _drive(made, jobs, progress)
    return made.result(interrupted, {"model": model, "problem": problem, "observe": observe})


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1


class _Worker(Protocol):
    """What one thread goes on with: some of the runs, with buffers of its own."""

    @property
    def steps(self) -> int: ...

    def begin(self, first: int, end: int) -> None: ...

    def advance(self, budget: int) -> bool:
        """Make about so many steps; whether the runs are done."""
        ...

    def leave(self) -> None:
        """Keep what there is of the run that is under way."""


class _Runs(ABC):
    """What flows and descents have in common."""

    verb: str
    outcomes: dict[int, Status]

    def __init__(self, objective: Objective, thetas: Array, observers: dict[str, Callable[..., Any]]) -> None:
        self.objective, self.thetas = objective, thetas
        objective.gradient(
            thetas[0]
        )  # what is wrong with a user's kernel or observer shows before anything runs
        self.watch = Watch(objective, observers, None, thetas[0])
        self.outcomes = {}
        cost = objective.data.size + objective.work.size + 8 * objective.size + 100
        self.first_budget = int(min(max(2e7 / cost, 1), 10_000))

    @property
    @abstractmethod
    def codes(self) -> NDArray[np.int64]:
        """Why each run ended (R,)."""

    @abstractmethod
    def worker(self) -> _Worker:
        """What one thread goes on with."""

    @abstractmethod
    def result(self, interrupted: bool, spec: dict[str, Any]) -> Ensemble:
        """What has become of the runs."""

    def observed(self, theta: Array, saved: NDArray[np.int64], names: NDArray[Any]) -> dict[str, Array]:
        """The observables of all runs; a callable that raises makes its run one that failed."""
        values: dict[str, list[Array]] = {name: [] for name in self.watch.seen}
        with suppress(KeyboardInterrupt):  # the rest stays unobserved
            for r in range(len(theta)) if values else ():
                self.watch.seen = {name: [] for name in values}
                try:
                    self.watch.observe(theta[r, : saved[r]])
                except CallbackError as error:
                    names[r] = "failed"
                    self.outcomes[r] = Status("failed", f"{error} raised {error.__cause__!r}.")
                for name, seen in self.watch.arrays(theta.shape[1]).items():
                    values[name].append(seen)
        self.watch.seen = {name: [] for name in values}
        blank = self.watch.arrays(theta.shape[1])
        return {
            name: _stack(seen + [blank[name]] * (len(theta) - len(seen))) for name, seen in values.items()
        }


def _stack(values: list[Array]) -> Array:
    if len({value.shape for value in values}) == 1 and all(value.dtype != object for value in values):
        return np.stack(values)
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


def _drive(runs: _Runs, jobs: int, progress: bool) -> bool:
    """Share the runs among threads until all are done; whether an interrupt has ended that."""
    number = len(runs.thetas)
    threads = min(jobs, number) if not blas_pays(runs.objective) else 1
    block = max(1, min(number // (8 * threads), 1024))
    firsts, lock, stopping = iter(range(0, number, block)), threading.Lock(), threading.Event()

    def work() -> None:
        worker, budget = runs.worker(), runs.first_budget
        while True:
            with lock:
                first = next(firsts, None)
            if first is None:
                return
            worker.begin(first, min(first + block, number))
            while True:
                if stopping.is_set():
                    return worker.leave()
                began, before = time.perf_counter(), worker.steps
                if worker.advance(budget):
                    break
                pace = (worker.steps - before) / max(time.perf_counter() - began, 1e-6)
                budget = max(1, int(_STRETCH_SECONDS * pace))

    interrupts, came = Interrupts(), False
    with (
        interrupts,
        hold_blas(runs.objective),
        Progress(progress, runs.verb, float(number)) as shown,
        ThreadPoolExecutor(threads) as pool,
    ):
        left = {pool.submit(work) for _ in range(threads)}
        while left:
            try:
                done, left = wait(left, timeout=_STRETCH_SECONDS, return_when=FIRST_EXCEPTION)
                for error in (one.exception() for one in done):
                    if error is not None:
                        stopping.set()
                        raise error
                interrupts.check()
                if progress:
                    ended = int(np.count_nonzero(runs.codes != ensembles.UNFINISHED))
                    shown.update(float(ended), f"{ended} of {number} runs")
            except KeyboardInterrupt:  # the threads end after the stretch that is under way
                came, interrupts.came = True, False
                stopping.set()
    return came


class _Flows(_Runs):
    """Many flows."""

    verb = "flows"

    def __init__(
        self, objective: Objective, thetas: ArrayLike, t: Any, observers: dict[str, Callable[..., Any]], *,
        method: str, rtol: float, atol: Any, events: bool, max_steps: int,
    ) -> None:  # fmt: skip
        self.times = check_times(t, 0.0, None, "time")
        self.max_steps = positive_int("max_steps", max_steps)
        if not isinstance(events, bool | np.bool_):
            raise ValueError(f"events must be True or False; got {events!r:.80}")
        starts = finite_array("thetas", thetas, ("R", objective.size))
        self.rtol, model, self.events = check_rtol(rtol), objective.model, bool(events)
        self.located = self.events and hasattr(model, "piecewise")
        if self.located:
            _check_piecewise(model, starts)
        self.method = chosen_method(objective, method, self.rtol, self.events)
        self.pair = EXPLICIT[pair(self.method, self.rtol)]
        self.to_limit = bool(np.isinf(self.times[-1]))
        # steps after which a run may take another method than its explicit pair
        self.plain = self.max_steps
        if self.located or self.to_limit or self.method == "bdf":
            self.plain = 0
        elif self.method == "auto":
            self.plain = min(self.max_steps, stiff.first_look(objective.size))
        runs, rows, size = len(starts), len(self.times), objective.size
        refuse_if_too_large("thetas", "states to be saved", 8 * runs * (rows * (size + 1) + size + 8))
        if atol is None:
            atols = default_atols(objective, starts, self.rtol)
        elif np.ndim(plain_array("atol", atol, "(R,)")) == 0:
            atols = np.full(runs, positive("atol", atol))
        else:
            atols = finite_array("atol", atol, (runs,))
            if atols.min() <= 0:
                raise ValueError(f"atol must be > 0; atol[{atols.argmin()}] is {atols.min():g}")
        super().__init__(objective, starts, observers)
        self.runs = ensembles.Flows(
            starts, atols, np.full((runs, rows, size), np.nan), np.full((runs, rows), np.nan),
            np.zeros(runs, dtype=np.int64), np.zeros(runs), starts.copy(), np.zeros(runs),
            np.zeros((runs, 3), dtype=np.int64), np.full(runs, ensembles.UNFINISHED),
        )  # fmt: skip
        self.tables: dict[int, Events] = {}

    @property
    def codes(self) -> NDArray[np.int64]:
        return self.runs.codes

    def worker(self) -> _Worker:
        return _FlowWorker(self) if self.plain else _SingleWorker(self)

    def result(self, interrupted: bool, spec: dict[str, Any]) -> Ensemble:
        runs = self.runs
        names = np.full(len(runs.codes), "interrupted", dtype=object)
        for code, name in _CODES.items():
            names[runs.codes == code] = name
        for r, outcome in self.outcomes.items():
            names[r] = outcome.code
        for r in np.flatnonzero(names != "finished").tolist():
            if r not in self.outcomes:
                why = f"Stopped at t = {runs.last_t[r]:.6g} of {self.times[-1]:g}: {_REASONS[names[r]]}."
                self.outcomes[r] = Status(names[r], why)
        observed = self.observed(runs.theta, runs.saved, names)
        table = None
        if self.located:
            order = sorted(self.tables)
            run = np.repeat(np.array(order, dtype=np.int64), [len(self.tables[r].t) for r in order])
            empty = [
                np.empty(0),
                np.empty(0, dtype=np.int64),
                np.empty(0, dtype=np.int64),
                np.empty(0, dtype="U14"),
            ]
            columns = zip(empty, *(self.tables[r] for r in order), strict=True)
            table = (run, *(np.concatenate(column) for column in columns))
        return Ensemble(
            t=self.times, theta=runs.theta, codes=names.astype(str), outcomes=self.outcomes,
            counts=dict(zip(("accepted", "rejected", "gradients"), runs.counts.T.copy(), strict=True)),
            last_t=np.where(names == "finished", self.times[-1], runs.last_t),
            last=np.where((names == "finished")[:, None], runs.theta[:, -1], runs.last),
            observed=observed, dissipation=runs.dissipation, last_dissipation=runs.last_dissipation,
            saved=runs.saved, atol=runs.atols, table=table, versions=versions(),
            recorded_spec={
                **spec, "thetas": runs.starts, "t": self.times, "method": self.method, "rtol": self.rtol,
                "atol": runs.atols, "events": self.events, "max_steps": self.max_steps,
            },
        )  # fmt: skip


def _check_piecewise(model: Any, starts: Array) -> None:
    if not model.piecewise:
        raise ValueError(
            "events must be False for a network whose kinks the flow cannot locate (first_depth > 1)"
        )
    first = starts[:, : model.width * model.inputs].reshape(len(starts), model.width, model.inputs)
    zero = np.argwhere(np.sum(first**2, axis=-1) == 0)
    if zero.size:
        r, j = zero[0]
        raise ValueError(
            f"thetas must have w_j != 0 for every neuron, where the flow is unique; w_{j} of run {r} is zero"
        )


class _FlowWorker:
    """Smooth flows, one after another in one compiled call; those that may change their method, one by one then."""

    def __init__(self, all_runs: _Flows) -> None:
        self.all, o = all_runs, all_runs.objective
        tableau = all_runs.pair()
        state = explicit.new_state(all_runs.thetas[0], 0.0, tableau)
        degree = tableau.interpolant.shape[1]
        self.output = explicit.Output(
            np.zeros(3, dtype=np.int64), all_runs.times, np.empty((len(all_runs.times), o.size)),
            np.empty(len(all_runs.times)), np.empty((1024, 3)), np.empty((0, 2)), np.empty((0, degree + 1, o.size)),
        )  # fmt: skip
        self.field = o.gradient_kernel, o.data, o.dims, np.zeros_like(o.work)
        self.solver, self.atol = (tableau, state, self.output), np.empty(o.size)
        single = (*self.field, *self.solver, all_runs.rtol, self.atol, 1, 1)
        self.loop = abi.pointer(explicit.advance, single)
        self.place, self.first, self.end = np.zeros(2, dtype=np.int64), 0, 0
        self.compiled_steps, self.compiled = 0, True
        self.others = _SingleWorker(all_runs)

    @property
    def steps(self) -> int:
        return self.compiled_steps + self.others.steps

    def begin(self, first: int, end: int) -> None:
        self.place[:], self.first, self.end, self.compiled = (first, 0), first, end, True

    def advance(self, budget: int) -> bool:
        a = self.all
        if not self.compiled:
            return self.others.advance(budget)
        code = ensembles.flows(
            self.loop,
            *self.field,
            *self.solver,
            a.runs,
            self.place,
            self.end,
            a.rtol,
            self.atol,
            budget,
            a.plain,
        )
        self.compiled_steps += budget
        if code != ensembles.FINISHED:
            return False
        if a.plain == a.max_steps:
            return True
        left = self.first + np.flatnonzero(a.runs.codes[self.first : self.end] == explicit.MAX_STEPS)
        a.runs.codes[left] = ensembles.UNFINISHED
        self.others.queue, self.compiled = left.tolist(), False
        return not len(left)

    def leave(self) -> None:
        """Keep what there is of a run by itself; the compiled loop has kept the others."""
        self.others.leave()


class _SingleWorker:
    """Flows one by one, each as :func:`flow` runs it."""

    def __init__(self, all_runs: _Flows) -> None:
        self.all, self.objective = all_runs, copy(all_runs.objective)
        self.run: Flow | None = None
        self.queue: list[int] = []
        self.steps = 0

    def begin(self, first: int, end: int) -> None:
        self.queue = list(range(first, end))

    def advance(self, budget: int) -> bool:
        a, runs, r = self.all, self.all.runs, self.queue[0]
        if self.run is None:
            self.objective.work = np.zeros_like(a.objective.work)
            rest = FIRST_LOOK if a.to_limit else 0.0
            self.run = begin(
                self.objective,
                a.method,
                runs.starts[r],
                a.times,
                a.rtol,
                float(runs.atols[r]),
                a.events,
                rest=rest,
            )
        before = self.run.steps
        outcome = self.run.advance(budget, a.max_steps)
        self.steps += self.run.steps - before  # not the budget, of which it may take but a part
        if outcome is not None:
            runs.codes[r] = ensembles.ELSEWHERE
            self._keep(outcome)
            self.run = None
            del self.queue[0]
        return not self.queue

    def leave(self) -> None:
        if self.run is not None:
            self._keep(Status("interrupted", self.run.stopped_at("interrupted")))

    def _keep(self, outcome: Status) -> None:
        assert self.run is not None
        run, runs, r = self.run, self.all.runs, self.queue[0]
        made = run.result(outcome, Watch(self.objective, {}, None, run.now))
        n = runs.saved[r] = run.saved
        runs.theta[r, :n], runs.dissipation[r, :n] = run.theta[:n], run.dissipation[:n]
        runs.last_t[r], runs.last[r] = run.t, run.now
        runs.last_dissipation[r] = run.state.clock[explicit.DISSIPATION]
        runs.counts[r] = [made["counts"][name] for name in ("accepted", "rejected", "gradients")]
        self.all.outcomes[r] = made["outcome"]
        if made.get("events") is not None:
            self.all.tables[r] = made["events"]


class _Descents(_Runs):
    """Many descents."""

    verb = "descents"

    def __init__(
        self, objective: Objective, thetas: ArrayLike, step_size: Any, n_steps: Any,
        observers: dict[str, Callable[..., Any]], given: dict[str, Any],
    ) -> None:  # fmt: skip
        self.n_steps = positive_int("n_steps", n_steps)
        given = {**_DESCENT_ONLY, **given}
        self.every = positive_int("save_every", given.pop("save_every"))
        starts = plain_array("thetas", thetas, f"(R, {objective.size})")
        starts = finite_array("thetas", starts[None] if starts.ndim == 1 else starts, ("R", objective.size))
        self.sizes = _sizes(step_size, self.n_steps)
        seeds = _seeds(given["rng"]) if given["batch_size"] is not None else [0]
        lengths = {"thetas": len(starts), "step_size": len(self.sizes), "rng": len(seeds)}
        number = max(lengths.values())
        if len(seeds) == 1:
            seeds = [seeds[0] + r for r in range(number)]
        for name, length in lengths.items():
            if length not in (1, number):
                raise ValueError(
                    f"{name} must hold one entry, or one for each of the {number} runs; got {length}"
                )
        self.options = Options.of(objective, {**given, "rng": seeds[0]})
        self.seeds = None if self.options.batch is None else seeds
        size = objective.size
        self.at = saved_steps(0, self.n_steps, self.every, 8 * number * size)
        room = size * descent.MOMENTS[self.options.rule.optimizer]
        super().__init__(objective, np.tile(starts, (number // len(starts), 1)), observers)
        states = [0] * number if self.seeds is None else [seed_of(seed)[0] for seed in self.seeds]
        self.runs = ensembles.Descents(
            self.thetas, self.sizes, np.array(states, dtype=np.uint64),
            np.full((number, len(self.at), size), np.nan), np.zeros(number, dtype=np.int64), self.thetas.copy(),
            np.zeros((number, room)), np.zeros((number, 1), dtype=np.int64), np.full(number, ensembles.UNFINISHED),
        )  # fmt: skip

    @property
    def codes(self) -> NDArray[np.int64]:
        return self.runs.codes

    def worker(self) -> _Worker:
        return _DescentWorker(self)

    def result(self, interrupted: bool, spec: dict[str, Any]) -> Ensemble:
        runs, steps = self.runs, self.runs.counts[:, 0].copy()
        clocks = [times(sizes) for sizes in self.sizes]
        t, last_t = np.array([clock(self.at) for clock in clocks]), np.empty(len(steps))
        for r, (code, step) in enumerate(zip(runs.codes.tolist(), steps.tolist(), strict=True)):
            last_t[r] = clocks[r % len(clocks)](step)
            if code == ensembles.UNFINISHED:
                outcome = Status(
                    "interrupted", stopped_at(step, self.n_steps, "interrupted") + " Go on with start=."
                )
            else:
                sizes = self.sizes[r % len(self.sizes)]
                ended = outcome_of(code, step, self.n_steps, sizes, self.options)
                assert ended is not None
                outcome = ended
            self.outcomes[r] = outcome
        names = np.array([self.outcomes[r].code for r in range(len(steps))], dtype=object)
        observed = self.observed(runs.theta, runs.saved, names)
        return Ensemble(
            t=t[0] if len(t) == 1 else t, theta=runs.theta, codes=names.astype(str), outcomes=self.outcomes,
            counts={"steps": steps, "gradients": steps.copy()}, last_t=last_t, last=runs.last,
            observed=observed, moments=runs.moments, saved=runs.saved, versions=versions(),
            recorded_spec={
                **spec, **self.options.given, "thetas": runs.starts,
                "step_size": self.sizes[:, 0] if self.sizes.shape[1] == 1 else self.sizes,
                "n_steps": self.n_steps, "rng": self.seeds, "save_every": self.every,
            },
        )  # fmt: skip


def _sizes(step_size: Any, n_steps: int) -> Array:
    """Step sizes (R or 1, n_steps or 1)."""
    if callable(step_size) or np.ndim(plain_array("step_size", step_size, "(R,) or (R, n_steps)")) == 0:
        return step_sizes(step_size, n_steps)[None]
    given = np.asarray(step_size)
    sizes = finite_array("step_size", given, ("R",) if given.ndim == 1 else ("R", n_steps))
    if sizes.min() <= 0:
        raise ValueError(f"step_size must be > 0; it holds {sizes.min():g}")
    return sizes.reshape(len(sizes), -1)


def _seeds(rng: Any) -> list[int]:
    """The seeds of the batches: one for each run, or the first of a row."""
    if isinstance(rng, Sequence | np.ndarray) and not isinstance(rng, str) and len(rng):
        for r, seed in enumerate(rng):
            if not isinstance(seed, Integral):
                raise ValueError(f"rng[{r}] must be a whole number >= 0; got {seed!r:.80}")
        return [seed_in(seed) for seed in rng]
    return [seed_in(rng)]


class _DescentWorker:
    """Descents, one after another in one compiled call."""

    def __init__(self, all_runs: _Descents) -> None:
        self.all, options = all_runs, all_runs.options
        arguments, batches = options.arguments(all_runs.objective)
        data, dims, work = arguments
        state = descent.new_state(all_runs.thetas[0], 0, options.rule.optimizer)
        self.what = all_runs.objective.gradient_kernel, data, dims, work.copy(), state, options.rule, batches
        saved = all_runs.runs.theta[0]
        single = (*self.what, all_runs.sizes[0], saved, 0, all_runs.every, all_runs.n_steps, 1)
        self.loop = abi.pointer(descent.advance, single)
        self.place, self.end, self.steps = np.zeros(2, dtype=np.int64), 0, 0

    def begin(self, first: int, end: int) -> None:
        self.place[:], self.end = (first, 0), end

    def advance(self, budget: int) -> bool:
        a = self.all
        code = ensembles.descents(
            self.loop, *self.what, a.runs, self.place, self.end, a.every, a.n_steps, budget
        )
        self.steps += budget
        return bool(code == ensembles.FINISHED)

    def leave(self) -> None:
        """Nothing to do: the compiled loop has kept it."""


class _Paths(_Runs):
    """Many stochastic flows."""

    verb = "stochastic flows"

    def __init__(
        self, objective: Objective, thetas: ArrayLike, t: Any, step_size: Any,
        observers: dict[str, Callable[..., Any]], given: dict[str, Any],
    ) -> None:  # fmt: skip
        self.given = {**_PATHS_ONLY, **given}
        one_of("scheme", self.given["scheme"], SCHEMES)
        self.step_size = positive("step_size", step_size)
        dt = self.given["dt"]
        self.dt = default_dt(objective, self.step_size) if dt is None else positive("dt", dt)
        self.times = check_times(t, 0.0, None, "time")
        self.at = whole_steps(self.times, self.dt)
        starts = plain_array("thetas", thetas, f"(R, {objective.size})")
        starts = finite_array("thetas", starts[None] if starts.ndim == 1 else starts, ("R", objective.size))
        seeds = _seeds(self.given["rng"])
        number = max(len(starts), len(seeds))
        self.seeds = [seeds[0] + r for r in range(number)] if len(seeds) == 1 else seeds
        for name, length in (("thetas", len(starts)), ("rng", len(self.seeds))):
            if length not in (1, number):
                raise ValueError(
                    f"{name} must hold one entry, or one for each of the {number} runs; got {length}"
                )
        super().__init__(objective, np.tile(starts, (number // len(starts), 1)), observers)
        chart = coordinates(objective, self.thetas[0], self.step_size)
        rows = len(self.at)
        refuse_if_too_large(
            "thetas", "states to be saved", 8 * number * rows * (objective.size + chart.size + 1)
        )
        self.theta = np.full((number, rows, objective.size), np.nan)
        self.coordinates = np.full((number, rows, chart.size + 1), np.nan)
        self.saved, self.steps = np.zeros(number, dtype=np.int64), np.zeros(number, dtype=np.int64)
        self.last = self.thetas.copy()
        self.ended = np.full(number, ensembles.UNFINISHED)

    @property
    def codes(self) -> NDArray[np.int64]:
        return self.ended

    def worker(self) -> _Worker:
        return _PathWorker(self)

    def result(self, interrupted: bool, spec: dict[str, Any]) -> Ensemble:
        number, total = len(self.thetas), int(self.at[-1])
        for r in range(number):
            if r not in self.outcomes:
                self.outcomes[r] = Status("interrupted", stopped_at(0, total, "interrupted"))
        names = np.array([self.outcomes[r].code for r in range(number)], dtype=object)
        observed = self.observed(self.theta, self.saved, names)
        return Ensemble(
            t=np.asarray(self.at * self.dt, dtype=np.float64), theta=self.theta, codes=names.astype(str), outcomes=self.outcomes,
            counts={"steps": self.steps, "gradients": self.steps.copy()},
            last_t=np.asarray(self.steps * self.dt, dtype=np.float64), last=self.last,
            observed={**observed, "loss_integral": self.coordinates[:, :, -1].copy()},
            saved=self.saved, coordinates=self.coordinates, versions=versions(),
            recorded_spec={
                **spec, "thetas": self.thetas, "t": self.times, "step_size": self.step_size, "rng": self.seeds,
                "scheme": self.given["scheme"], "dt": self.dt,
            },
        )  # fmt: skip


class _PathWorker:
    """Stochastic flows one by one, each as :func:`stochastic_flow` runs it."""

    def __init__(self, all_runs: _Paths) -> None:
        self.all, self.r, self.end, self.steps = all_runs, 0, 0, 0
        self.path: StochasticPath | None = None

    def begin(self, first: int, end: int) -> None:
        self.r, self.end = first, end

    def advance(self, budget: int) -> bool:
        a = self.all
        if self.path is None:
            chart = coordinates(a.objective, a.thetas[self.r], a.step_size)
            self.path = StochasticPath(a.objective, chart, a.at, a.step_size, a.dt, a.seeds[self.r], None)
        before = self.path.steps
        outcome = self.path.advance(budget, 0)
        self.steps += self.path.steps - before
        if outcome is None:
            return False
        self._keep(outcome)
        self.path, self.r = None, self.r + 1
        return self.r == self.end

    def leave(self) -> None:
        if self.path is not None:
            self._keep(Status("interrupted", self.path.stopped_at("interrupted")))

    def _keep(self, outcome: Status) -> None:
        a, path, r = self.all, self.path, self.r
        assert path is not None
        n = a.saved[r] = path.saved
        a.coordinates[r, :n] = path.theta[:n]
        a.theta[r, :n], a.last[r] = path.chart.theta(path.theta[:n]), path.chart.theta(path.now)
        a.steps[r], a.outcomes[r], a.ended[r] = path.steps, path.noted(outcome), ensembles.ELSEWHERE
