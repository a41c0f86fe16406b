"""What every run shares: observers and ``stop``, the drive in stretches, interrupts, versions."""

from __future__ import annotations

import _signal  # what signal wraps in enums, which cost a short run a sixth of its time
import math
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow._blas import one_thread
from gflow._progress import Progress
from gflow._versions import versions as versions
from gflow.objective import Objective
from gflow.trajectory import Status, Trajectory

Array = NDArray[np.float64]
Observers = (
    str | Callable[..., Any] | Iterable[str | Callable[..., Any]] | Mapping[str, Callable[..., Any]] | None
)
_CHUNK_SECONDS = 0.1
_SIGINT = int(signal.SIGINT)
_FREE = nullcontext()


class CallbackError(Exception):
    """A user's callable raised; the cause is the exception's."""


class Watch:
    """A user's observers and ``stop``, called between stretches of a run.

    The observers are called once at the start, so that what is wrong with them shows before anything runs.
    """

    def __init__(
        self, objective: Objective, observers: dict[str, Callable[..., Any]],
        stop: Callable[[float, Array], bool] | None, start: Array, chart: Any = None,
    ) -> None:  # fmt: skip
        self.objective, self.observers, self.stop = objective, observers, stop
        self.chart = chart  # of a run in other coordinates than the parameters
        self.seen: dict[str, list[Array]] = {}
        self.first: dict[str, Array] = {}
        for name in observers:
            self.seen[name], self.first[name] = [], self._value(name, start.copy())

    def _plain(self, state: Array) -> Array:
        return state if self.chart is None else self.chart.theta(state)

    def _value(self, name: str, state: Array) -> Array:
        theta = self._plain(state)
        return np.array(self.observers[name](self.objective.model, self.objective.problem, theta))

    def wants_stop(self, t: float, theta: Array) -> bool:
        assert self.stop is not None
        try:
            return bool(self.stop(t, self._plain(theta.copy())))
        except Exception as error:
            raise CallbackError("stop") from error

    def observe(self, theta: Array) -> None:
        """Observe the rows of ``theta`` (T, P) that have not been seen."""
        for name, values in self.seen.items():
            for row in theta[len(values) :]:
                try:
                    values.append(self._value(name, row))
                except Exception as error:
                    raise CallbackError(f"observe[{name!r}]") from error

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


class Interrupts:
    """Notes Ctrl-C while compiled code runs, to be looked at between stretches; a second one raises at once.

    An exception out of the signal handler could strike inside of numba, which would swallow it.
    """

    came = False
    _ours = False

    def __enter__(self) -> Interrupts:
        if _signal.getsignal(_SIGINT) is signal.default_int_handler:
            try:
                _signal.signal(_SIGINT, self._note)
                self._ours = True
            except ValueError:  # signals come to the main thread only
                pass
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.came:
            raise KeyboardInterrupt
        self.came = True

    def __exit__(self, *error: object) -> None:
        if self._ours:
            _signal.signal(_SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Raise the KeyboardInterrupt that came."""
        if self.came:
            raise KeyboardInterrupt


class Stepped:
    """What runs of counted steps, not of an adaptive time, tell the drive; ``steps`` and ``saved`` are theirs."""

    steps: Any
    saved: Any
    within = True
    ready = False

    @property
    def advanced(self) -> int:
        """A count that grows when there is a new saved state to show to ``stop``; the first one is saved late."""
        return max(self.saved, 1)

    @property
    def done(self) -> float:
        return float(self.steps)

    def note(self) -> str:
        return f"step {self.steps}"


def drive(run: Any, watch: Watch, max_steps: int, progress: bool) -> Status:
    """Advance a run in stretches of about 0.1 s, and between them observe, ask ``stop`` and show progress.

    A keyboard interrupt ends it after the stretch that is under way.
    """
    outcome: Status | None = None
    budget = 1 if watch.stop is not None else run.first_budget
    held = hold_blas(run.objective, math.isinf(run.total))
    try:
        if held is _FREE and not (progress or watch.observers or watch.stop is not None) and run.ready:
            # an interrupt shows after the compiled code then, and a short run need not prepare for it
            outcome = run.advance(budget, max_steps)
            if outcome is not None:
                return outcome
        interrupts = Interrupts()
        with (
            interrupts,
            held,
            Progress(progress, run.verb, run.total) as shown,
        ):
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
                if watch.observers:
                    watch.observe(run.theta[: run.saved])
                if outcome is None and watch.stop is None and run.steps > before:
                    pace = (run.steps - before) / max(time.perf_counter() - began, 1e-6)
                    budget = max(1, int(_CHUNK_SECONDS * pace))
                if progress:
                    shown.update(run.done, run.note())
            if watch.observers:
                watch.observe(run.reached()[1])
            interrupts.check()
    except KeyboardInterrupt:
        with suppress(KeyboardInterrupt):  # a second one leaves the rest unobserved
            watch.observe(run.reached()[1])
        return Status("interrupted", run.stopped_at("interrupted") + " Go on with start=.")
    except CallbackError as error:
        return Status("failed", run.stopped_at(f"{error} raised {error.__cause__!r}") + " Go on with start=.")
    return outcome


def callable_or_none(name: str, value: Any) -> None:
    if value is not None and not callable(value):
        raise ValueError(f"{name} must be a callable (t, theta) -> bool or None; got {value!r}")


def trajectory_or_none(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, Trajectory):
        raise ValueError(f"{name} must be a Trajectory or None; got {value!r:.80}")


def parse_observers(observe: Observers) -> dict[str, Callable[..., Any]]:
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


def same_run(objective: Objective, theta0: ArrayLike | None, start: Any) -> Array:
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


def _multiplications(objective: Objective) -> int:
    """A bound on the multiplications of one matrix product: every parameter with every column."""
    return objective.size * objective.widest


def blas_pays(objective: Objective) -> bool:
    """Whether the products are so large that more threads of BLAS pay (measured on square ones: above 512)."""
    return objective.widest > 512 and _multiplications(objective) > 512**3


def hold_blas(objective: Objective, to_limit: bool = False) -> AbstractContextManager[Any]:
    """Hold BLAS at one thread, unless more of them pay, or the products are too small for more than one.

    On the way to a limit the Hessian's eigenvalues are asked for, of whose threads each may wait for the other.

    The bits of a product may depend on the number of threads: every run of an objective goes through here.
    """
    small = _multiplications(objective) < 32**3 and not to_limit
    if small or blas_pays(objective):
        return _FREE
    return one_thread()
