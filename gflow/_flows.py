"""One integration of the flow: where it stands, and how it goes on, by the method and the clock that it has."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gflow._memory import available_memory, refuse_if_too_large
from gflow._run import Array, Watch, versions
from gflow.kernels import abi, explicit, lossclock, piecewise, stiff, tableaus
from gflow.limit import NEXT_LOOK, Seeker, of_piecewise
from gflow.objective import Objective
from gflow.trajectory import Events, Limit, Status

EXPLICIT = {"tsit5": tableaus.tsit5, "dop853": tableaus.dop853}
METHODS = (*EXPLICIT, "bdf")
# What a continued run takes over from the pattern; the rest follows from it.
_PATTERN = ("mode", "numbers", "share", "rate", "scales")
_KINDS = np.array(piecewise.KINDS)
_HISTORY_BLOCK = 4096
_DENSE_BLOCK_BYTES = 2**25
_NO_DENSE = np.empty((0, 2)), np.empty((0, 1, 1))
# The end of most runs; ``Flow.said`` puts it into words, which take a twentieth of the time of a short one.
_FINISHED = Status("finished", "")
# Steps until which the arrays of the implicit method are made at once: a call of compiled code takes as long as they do.
_SOON = 16
# So few numbers t within the time in which the state changes by its own size are too few for steps.
_COARSE = 1e4


def _take_over(array: Array, before: dict[str, Array], name: str) -> None:
    """Fill an array of a run's state from a trajectory's."""
    if name not in before or np.shape(before[name]) != array.shape:
        came = np.shape(before[name]) if name in before else "nothing"
        raise ValueError(
            f"start must be a trajectory of this version of gflow; its state has {came} for {name!r}, not {array.shape}"
        )
    array[:] = before[name]


def begin(
    objective: Objective, method: str, theta: Array, times: Array, rtol: float, atol: float, events: bool,
    dense: bool = False, rest: float = 0.0, before: dict[str, Array] | None = None, level: float | None = None,
) -> Flow:  # fmt: skip
    """A run at its start, or where ``before``, the state of a trajectory, has left it; by the clock of the loss from a level."""
    tableau = EXPLICIT[pair(method, rtol)]()
    located = events and hasattr(objective.model, "piecewise")
    how = objective, method, tableau, theta, times, rtol, atol, dense, rest, before
    if level is not None:
        return PiecewiseLossClock(level, *how) if located else LossClock(level, *how)
    kind: type[Flow] = PiecewiseFlow if located else Flow if method in EXPLICIT else StiffFlow
    return kind(*how)


def pair(method: str, rtol: float) -> str:
    """The explicit pair of a method."""
    return method if method in EXPLICIT else "tsit5" if rtol >= 1e-7 else "dop853"


class Flow:
    """One adaptive integration: where it stands, and how it goes on."""

    verb = "flow"
    clock_name = "t"

    def __init__(
        self, objective: Objective, method: str, tableau: tableaus.Tableau, theta: Array, times: Array,
        rtol: float, atol: float, dense: bool, rest: float, before: dict[str, Array] | None,
    ) -> None:  # fmt: skip
        self.objective, self.tableau, self.times, size = objective, tableau, times, objective.size
        self.numbers, self.counters = explicit.new_numbers(theta, 0.0, tableau)
        self._state: explicit.State | None = None
        if before is not None:
            for name, array in self.state._asdict().items():
                _take_over(array, before, name)
        self.numbers[explicit.REST] = rest
        self.methods = [(self.numbers.item(explicit.T), method)]
        self.rtol, self.atol = rtol, np.empty(size)
        self.atol.fill(atol)
        rows = len(times)
        refuse_if_too_large("t", "states to be saved", rows * (size + 1) * 8)
        self.theta, self.dissipation = np.empty((rows, size)), np.empty(rows)
        self.cursor = np.zeros(3, dtype=np.int64)
        self.history = [np.empty((_HISTORY_BLOCK, 3))]
        self.dense: list[tuple[Array, Array]] = []
        self.keep_dense = dense
        self.steps_before = 0 if before is None else self.steps
        self.total = times.item(-1)
        self.limit: Limit | None = None
        self.seeker: Seeker | None = None
        # the limit with what is said of it, while times to save still lie before it
        self.seen: tuple[Array, Limit, Status] | None = None
        self.first_budget = int(min(2e7 / (tableau.node.size * objective.nanoseconds), 1e4)) or 1
        if dense:
            self._new_dense()
            if before is not None and self.numbers[explicit.H_BEFORE] > 0:
                self._store_dense()

    @property
    def state(self) -> explicit.State:
        """The arrays of the state, which compiled code makes by itself."""
        if self._state is None:
            of = explicit.state_of.py_func
            self._state = of(self.numbers, self.counters, self.tableau, self.objective.size)
        return self._state

    @property
    def ready(self) -> bool:
        """Whether all is compiled, and an interrupt right after compiled code loses nothing."""
        return abi.is_ready(explicit.run) and abi.has_kernel(self.objective.model.gradient, "gradient")

    @property
    def steps(self) -> int:
        counters = self.counters
        return counters.item(explicit.ACCEPTED) + counters.item(explicit.REJECTED)

    @property
    def saved(self) -> int:
        return self.cursor.item(explicit.SAVED)

    @property
    def t(self) -> float:
        return self.numbers.item(explicit.T)

    @property
    def now(self) -> Array:
        return self.state.theta

    @property
    def advanced(self) -> int:
        """A count that grows when there is a new state to show to ``stop``."""
        return self.counters.item(explicit.ACCEPTED)

    @property
    def done(self) -> float:
        return min(self.t, self.total)

    @property
    def within(self) -> bool:
        """Whether the end has not been passed."""
        return self.t <= self.total

    def note(self) -> str:
        return f"{self.clock_name} = {self.t:.4g}, {self.steps} steps, h = {self.numbers[explicit.H]:.2g}"

    def _new_history(self) -> None:
        self.history.append(np.empty((_HISTORY_BLOCK * min(2 ** len(self.history), 64), 3)))
        self.cursor[explicit.HISTORY] = 0

    @property
    def _degree(self) -> int:
        """Degree of the stored polynomials."""
        return self.tableau.interpolant.shape[1]

    def _store_dense(self) -> None:
        """Keep the step in which the trajectory that is continued came to its end."""
        o = self.objective
        explicit.store_dense(
            o.gradient_kernel, o.data, o.dims, o.work, self.tableau, self.state, self.output()
        )

    def _new_dense(self) -> None:
        degree, size = self._degree, self.objective.size
        rows = int(np.clip(_DENSE_BLOCK_BYTES // (8 * (degree + 1) * size), 1, 1024))
        needed, free = 8 * rows * (degree + 1) * size, available_memory()
        if free is not None and needed > 0.8 * free:
            raise MemoryError
        self.dense.append((np.empty((rows, 2)), np.zeros((rows, degree + 1, size))))
        self.cursor[explicit.DENSE] = 0

    def advance(self, budget: int, max_steps: int) -> Status | None:
        """Go on for at most ``budget`` steps; the outcome, or None if there is more to do."""
        code = self._advance(budget, self.steps_before + max_steps)
        if code == explicit.FINISHED and self.seen is None:
            return _FINISHED
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
        if code == explicit.AT_REST and math.isinf(self.total):
            return self._look_for_limit()
        if code == explicit.FINISHED and self.seen is not None:
            return self._save_limit(*self.seen)
        return self._outcome(code, max_steps)

    def _look_for_limit(self) -> Status | None:
        """Save the limit at t = inf if it can be told from here; else go on to where the flow is slower.

        Finite times that are still to be saved come first: the flow goes on to them without another look.
        """
        clock = self.state.clock
        if self.seeker is None:
            self.seeker = self._new_seeker()
        speed, part = math.sqrt(self.state.slopes[0]), float(clock[explicit.REST])
        found = self.seeker.look(self.t, self.now, speed, part)
        if found is None:
            clock[explicit.REST] *= NEXT_LOOK
            return None
        theta, limit = found
        status = _limit_status(limit, self.steps)
        if self.saved < len(self.times) - 1:
            clock[explicit.REST], self.seen = 0.0, (theta, limit, status)
            return None
        return self._save_limit(theta, limit, status)

    def _save_limit(self, theta: Array, limit: Limit, status: Status) -> Status:
        loss_here = self.objective.loss(self.now) if self.objective.has("loss") else np.nan
        place = self.saved
        self.theta[place], self.limit = theta, limit
        loss_there = self.objective.loss(self.theta[place]) if self.objective.has("loss") else np.nan
        # the rest of the dissipation is what the loss still falls by
        self.dissipation[place] = self.state.clock[explicit.DISSIPATION] + loss_here - loss_there
        self.cursor[explicit.SAVED] += 1
        return status

    def _new_seeker(self) -> Seeker:
        return Seeker(self.objective, self.rtol)

    def _written(self) -> tuple[Any, ...]:
        """Where the compiled loop writes: the arrays of ``explicit.Output``."""
        times = self.times if self.seen is None else self.times[:-1]
        dense = self.dense[-1] if self.keep_dense else _NO_DENSE
        return (self.cursor, times, self.theta, self.dissipation, self.history[-1], *dense)

    def output(self) -> explicit.Output:
        return explicit.Output(*self._written())

    def _advance(self, budget: int, max_steps: int) -> int:
        return self._compiled(budget, max_steps)

    def _compiled(self, budget: int, max_steps: int) -> int:
        o, rest = self.objective, (self.rtol, self.atol, budget, max_steps)
        field = o.gradient_kernel, o.data, o.dims, o.work, self.tableau
        loop = abi.pointer(explicit.advance, lambda: (*field, self.state, self.output(), *rest))
        return abi.call(explicit.run, loop, *field, self.numbers, self.counters, *self._written(), *rest)

    def said(self, outcome: Status) -> Status:
        """How the run ended, in words."""
        if outcome is not _FINISHED:
            return outcome
        return Status("finished", f"Reached {self.clock_name} = {self.total:g} in {self.steps} steps.")

    def _outcome(self, code: int, max_steps: int) -> Status:
        if code == explicit.MAX_STEPS:
            h = self.numbers[explicit.H]
            advice = (
                f" The last step size was {h:.2g}: go on with start=, raise max_steps, or loosen rtol "
                "if the solution has long settled."
            )
            return Status("max_steps", self.stopped_at(f"max_steps = {max_steps} was reached") + advice)
        if code == explicit.AT_REST:
            part = self.numbers[explicit.REST]
            return Status("at_rest", self.stopped_at(f"the speed has fallen to {part:g} of its largest"))
        if code == explicit.NON_FINITE:
            advice = " Check that the loss and its gradient are finite there; the last finite state is kept."
            return Status("non_finite", self.stopped_at("the gradient is not finite") + advice)
        if self._endless:
            return Status(
                "step_too_small", self.stopped_at("later times are beyond the range of double precision")
            )
        size, speed = float(np.linalg.norm(self.now)), math.sqrt(self.state.slopes[0])
        spacing = float(np.spacing(self.numbers[explicit.T]))
        if size < _COARSE * spacing * speed:
            advice = (
                f" The state changes by its own size within {size / speed:.2g}, and double precision numbers near this "
                f"t lie {spacing:.2g} apart: so late the flow cannot be followed.  From a larger start it gets here sooner."
            )
        else:
            advice = (
                " The field seems to be discontinuous or not smooth here, or rtol and atol ask for more than "
                "double precision holds."
            )
        return Status("step_too_small", self.stopped_at("the step size fell below the spacing of t") + advice)

    @property
    def _endless(self) -> bool:
        """Whether the next step would end beyond the range of double precision."""
        return math.isinf(self.numbers.item(explicit.T) + self.numbers.item(explicit.H))

    def stopped_at(self, why: str) -> str:
        return (
            f"Stopped at {self.clock_name} = {self.t:.6g} of {self.total:g} after {self.steps} steps: {why}."
        )

    def reached(self) -> tuple[Array, Array, Array]:
        """Times, states and dissipation that were saved, and the last state where the end was not reached."""
        n = self.saved
        if n == len(self.times):
            return self.times, self.theta, self.dissipation
        t, theta, dissipation = self.times[:n], self.theta[:n], self.dissipation[:n]
        if n == 0 or self.t > t[-1]:
            t, theta = np.append(t, self.t), np.vstack([theta, self.now])
            dissipation = np.append(dissipation, self.numbers[explicit.DISSIPATION])
        return t, theta, dissipation

    def result(self, outcome: Status, watch: Watch) -> dict[str, Any]:
        """The fields of the trajectory as far as it has come."""
        outcome = self.said(outcome)
        t, theta, dissipation = self.reached()
        counters, state = self.counters.tolist(), self.state
        if hasattr(self.objective.model, "piecewise") and not isinstance(self, PiecewiseFlow):
            outcome = outcome._replace(message=f"{outcome.message} Kinks were not located (events=False).")
        history = self.history[-1][: self.cursor[explicit.HISTORY]]
        if len(self.history) > 1:
            history = np.concatenate([*self.history[:-1], history])
        dense = None
        if self.keep_dense:
            times, coefficients = self.dense[-1]
            k = self.cursor[explicit.DENSE]
            kept = [*self.dense[:-1], (times[:k], coefficients[:k])]
            dense = np.concatenate([a for a, _ in kept]), np.concatenate([b for _, b in kept])
        k = counters[explicit.CHECKPOINTS]
        checkpoints = state.checkpoint_times[:k], state.checkpoints[:k]
        counts = {
            "accepted": counters[explicit.ACCEPTED],
            "rejected": counters[explicit.REJECTED],
            "gradients": counters[explicit.GRADIENTS],
        }
        return {
            "t": t, "theta": theta, "outcome": outcome, "dissipation": dissipation,
            "observed": watch.arrays(len(t)), "counts": counts,
            "history": history, "takeovers": self.methods,
            "limit": self.limit, "dense": dense, "checkpoints": checkpoints, "state": state._asdict(),
            "versions": versions(),
        }  # fmt: skip


class StiffFlow(Flow):
    """An integration that may take implicit steps."""

    def __init__(
        self, objective: Objective, method: str, tableau: tableaus.Tableau, theta: Array, times: Array, rtol: float,
        *more: Any,
    ) -> None:  # fmt: skip
        self.kind = stiff.AUTO if method == "auto" else stiff.BDF
        self.pair = pair(method, rtol)
        self._arrays: tuple[Array, NDArray[np.int64]] | None = (
            None  # of the implicit method, once it may be taken
        )
        self._stiff: stiff.Stiff | None = None
        before = more[-1]
        resumed = before is not None and "stiff_numbers" in before
        if resumed or self.kind == stiff.BDF:
            self._arrays = stiff.new_arrays(objective.size, objective.nanoseconds)
        if resumed:
            for name in stiff.KEPT:
                _take_over(getattr(self.stiff_of(objective.size), name), before, f"stiff_{name}")
        if self.kind == stiff.BDF:
            objective.hvp(theta, theta)  # what is wrong with it shows here
        super().__init__(objective, self._name, tableau, theta, times, rtol, *more)

    def stiff_of(self, size: int) -> stiff.Stiff:
        """The arrays of the implicit method, which compiled code makes by itself."""
        assert self._arrays is not None
        if self._stiff is None:
            self._stiff = stiff.stiff_of.py_func(*self._arrays, size)
        return self._stiff

    def _count(self, place: int) -> int:
        """A number of the implicit method, 0 before it may be taken."""
        return 0 if self._arrays is None else self._arrays[1].item(place)

    @property
    def _name(self) -> str:
        return "bdf" if self._count(stiff.IMPLICIT) else self.pair

    @property
    def _degree(self) -> int:
        return max(super()._degree, stiff.DENSE_DEGREE)

    def _store_dense(self) -> None:
        if self._count(stiff.LAST_IMPLICIT):
            stiff.store_dense(self.state, self.stiff_of(self.objective.size), self.output())
        else:
            super()._store_dense()

    @property
    def ready(self) -> bool:
        """Whether all is compiled that the first stretch needs."""
        later = self._arrays is None and stiff.first_look(self.objective.nanoseconds) > _SOON
        return super().ready and (later or self._implicit_ready)

    @property
    def _implicit_ready(self) -> bool:
        return abi.is_ready(stiff.run) and abi.has_kernel(self.objective.model.hvp, "hvp")

    def _advance(self, budget: int, max_steps: int) -> int:
        o = self.objective
        if self._arrays is None:
            wait = stiff.first_look(o.nanoseconds) - self.steps
            if wait > _SOON:  # few steps must not pay for what they do not need
                code = self._compiled(min(budget, wait), max_steps)
                if code != explicit.PAUSED or budget <= wait or not self._implicit_ready:
                    return code
                budget -= wait
            self._arrays = stiff.new_arrays(o.size, o.nanoseconds)
        self._note_changes()
        field = o.gradient_kernel, o.hvp_kernel, o.data, o.dims, o.work, self.tableau
        rest = self.kind, self.rtol, self.atol, max(self.first_budget // 16, 16), budget, max_steps
        loop = abi.pointer(
            stiff.advance, lambda: (*field, self.state, self.stiff_of(o.size), self.output(), *rest)
        )
        return abi.call(
            stiff.run, loop, *field, self.numbers, self.counters, *self._arrays, *self._written(), *rest
        )

    def _note_changes(self) -> None:
        """Take down when the method has changed."""
        if (changes := self._count(stiff.SWITCHES)) and self._arrays is not None:
            for t in self._arrays[0][stiff.SWITCH_TIMES][:changes].tolist():
                self.methods.append((t, self.pair if self.methods[-1][1] == "bdf" else "bdf"))
            self._arrays[1][stiff.SWITCHES] = 0

    def result(self, outcome: Status, watch: Watch) -> dict[str, Any]:
        """The fields of the trajectory as far as it has come, with what it takes to go on with its method."""
        self._note_changes()
        made = super().result(outcome, watch)
        made["counts"]["products"] = self._count(stiff.PRODUCTS)
        if self._arrays is not None:
            kept = self.stiff_of(self.objective.size)
            made["state"].update({f"stiff_{name}": getattr(kept, name) for name in stiff.KEPT})
        return made


class PiecewiseFlow(Flow):
    """An integration that locates the kinks of a ReLU network."""

    ready = False  # events are taken out of the loop's table after each stretch

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        o, before = self.objective, arguments[-1]
        self.pattern = piecewise.new_pattern(o.dims, o.size, max(0.01 * self.rtol, 1e-14), self.atol[0])
        self.table: list[Array] = []
        self.at_zero = before is not None and bool(before.get("at_zero", 0))
        if before is None:
            zero = abi.call(
                piecewise.begin, o.gradient_kernel, self.t, self.state.theta, o.data, o.dims, o.work, self.state.gradient,
                self.pattern, piecewise.ROUNDING,
            )  # fmt: skip
            self.state.counters[explicit.GRADIENTS] += 1
            if zero >= 0:
                raise ValueError(
                    "theta0 must have w_j != 0 on the span of the inputs for every neuron, where the flow is "
                    f"unique; w_{zero} is zero there"
                )
        elif "mode" not in before:
            raise ValueError("start must be a trajectory with events; it was made with events=False")
        else:
            for name in _PATTERN:
                getattr(self.pattern, name)[:] = before[name]
            piecewise.resume(self.state.theta, o.data, o.dims, o.work, self.pattern)
            self.table.append(before["pending"])

    def _new_seeker(self) -> Seeker:
        return Seeker(self.objective, self.rtol, of_piecewise(self.objective, self.pattern))

    def _compiled(self, budget: int, max_steps: int) -> int:
        o = self.objective
        return abi.call(
            piecewise.advance, o.gradient_kernel, o.data, o.dims, o.work, self.tableau, self.state, self.output(),
            self.pattern, self.rtol, self.atol, budget, max_steps,
        )  # fmt: skip

    def _advance(self, budget: int, max_steps: int) -> int:
        if not self.at_zero:
            code = self._compiled(budget, max_steps)
            numbers = self.pattern.numbers
            self.table.append(self.pattern.table[: numbers[piecewise.EVENTS]].copy())
            numbers[piecewise.EVENTS] = 0
            if code != piecewise.AT_ZERO:
                return explicit.PAUSED if code == piecewise.TABLE_FULL else code
            self.at_zero = True
            self.state.counters[explicit.FRESH] = explicit.MOVED  # the step has been cut
        # up to there the flow is known, and times within the last step are still to be saved
        saved = self._compiled(0, max_steps)
        return explicit.FINISHED if saved == explicit.FINISHED else piecewise.AT_ZERO

    def _outcome(self, code: int, max_steps: int) -> Status:
        if code == piecewise.AT_ZERO:
            j = int(self.pattern.numbers[piecewise.ZERO_NEURON])
            return Status(
                "zero_neuron",
                self.stopped_at(
                    f"neuron {j} has reached w = 0, or w orthogonal to more inputs than are independent"
                )
                + " There its kinks meet and the flow can go on in several ways; gflow does not choose.",
            )
        if code == piecewise.STUCK:
            return Status(
                "stuck",
                self.stopped_at("the events at one time do not end")
                + " Several kinks meet here to rounding; perturb the start, or use events=False.",
            )
        return super()._outcome(code, max_steps)

    def result(self, outcome: Status, watch: Watch) -> dict[str, Any]:
        """The fields of the trajectory as far as it has come, with its events."""
        table = np.concatenate(self.table) if self.table else np.empty((0, 4))
        end = float(self.reached()[0][-1])
        pending, table = table[table[:, 0] > end], table[table[:, 0] <= end]  # a step passes over the end
        events = Events(
            table[:, 0], table[:, 1].astype(np.int64), table[:, 2].astype(np.int64),
            _KINDS[table[:, 3].astype(np.int64)],
        )  # fmt: skip
        branches = np.count_nonzero(table[:, 3] == piecewise.NOT_UNIQUE)
        if branches:
            note = (
                f'not unique: at {branches} events (kind "not_unique") the flow could have gone on in '
                "another way; what follows is one of its solutions."
            )
            outcome = self.said(outcome)
            outcome = outcome._replace(warnings=(*outcome.warnings, note))
        made = super().result(outcome, watch)
        made["state"].update({name: getattr(self.pattern, name) for name in _PATTERN}, pending=pending)
        made["state"]["at_zero"] = np.array(self.at_zero)
        return {**made, "events": events, "checkpoints": None}


class LossClock(Flow):
    """An integration of dθ/ds = −∇log L that saves at values of log(1/L); its objective is log L."""

    clock_name = "log(1/L)"

    @property
    def ready(self) -> bool:
        """Whether all is compiled; its kernel of the loss is."""
        return abi.is_ready(lossclock.run) and abi.has_kernel(self.objective.model.gradient, "gradient")

    def __init__(
        self, level: float, objective: Objective, method: str, tableau: tableaus.Tableau, theta: Array, times: Array,
        *more: Any,
    ) -> None:  # fmt: skip
        before = more[-1]
        self.clock = lossclock.new_clock(times, level, tableau.interpolant.shape[1])
        if before is not None:
            _take_over(self.clock.numbers, before, "loss_clock")
            _take_over(self.clock.rise, before, "loss_rise")
        self.never = np.empty(len(times) + 1)
        self.never.fill(np.nan)  # s may grow beyond all numbers
        super().__init__(objective, method, tableau, theta, times, *more)

    @property
    def t(self) -> float:
        return self.clock.numbers.item(lossclock.LEVEL)

    def _written(self) -> tuple[Any, ...]:
        cursor, _, *rest = super()._written()
        return (cursor, self.never, *rest)

    def _compiled(self, budget: int, max_steps: int) -> int:
        o, rest = self.objective, (self.clock, self.rtol, self.atol, budget, max_steps)
        field = o.gradient_kernel, o.loss_kernel, o.data, o.dims, o.work, self.tableau
        loop = abi.pointer(lossclock.advance, lambda: (*field, self.state, self.output(), *rest))
        return abi.call(lossclock.run, loop, *field, self.numbers, self.counters, *self._written(), *rest)

    def _outcome(self, code: int, max_steps: int) -> Status:
        endless = code == explicit.STEP_TOO_SMALL and self._endless
        if code == lossclock.SETTLED or endless:
            then = "s grows beyond the range of double precision" if endless else "nothing moves any more"
            return Status(
                "settled",
                self.stopped_at(f"log L has ceased to fall, and {then}")
                + " The loss tends to a finite value here: the network does not separate the data.",
            )
        return super()._outcome(code, max_steps)

    def result(self, outcome: Status, watch: Watch) -> dict[str, Any]:
        """The fields of the trajectory as far as it has come, with its time.

        Without checkpoints, whose times are shifted along with s.
        """
        note = 'Sensitivity is not measured with clock="loss".'
        outcome = self.said(outcome)
        outcome = Status(outcome.code, f"{outcome.message} {note}", outcome.warnings)
        made, clock, n = super().result(outcome, watch), self.clock, self.saved
        log_time, s = clock.log_times[:n], clock.s[:n]
        if len(made["t"]) > n:
            log_time = np.append(log_time, clock.numbers[lossclock.LOG_TIME])
            s = np.append(s, clock.numbers[lossclock.BASE] + self.numbers[explicit.T])
        made["state"].update(loss_clock=clock.numbers, loss_rise=clock.rise)
        return {**made, "log_time": log_time, "s": s, "checkpoints": None}


class PiecewiseLossClock(LossClock, PiecewiseFlow):
    """The same with the kinks of a ReLU network located."""

    ready = False

    def _compiled(self, budget: int, max_steps: int) -> int:
        o = self.objective
        return abi.call(
            lossclock.advance_piecewise, o.gradient_kernel, o.loss_kernel, o.data, o.dims, o.work, self.tableau, self.state,
            self.output(), self.clock, self.pattern, self.rtol, self.atol, budget, max_steps,
        )  # fmt: skip


def _limit_status(limit: Limit, steps: int) -> Status:
    here = f"after {steps} steps, at t = {limit.reached:.6g}"
    if limit.kind == "none":
        return Status(
            "no_limit",
            f"Stopped {here}: the speed falls like t^-{limit.exponent:.3g}, too slowly for a limit. "
            "The minimum may lie at infinity.",
        )
    said = {
        "minimum": "a minimum",
        "saddle": f"a saddle, which the flow does not leave (lowest eigenvalue {limit.lowest:.3g})",
        "degenerate": "a critical point at which the Hessian vanishes",
        "algebraic": f"a limit that is approached like t^-{limit.exponent:.3g}",
    }[limit.kind]
    codes = {"minimum": "finished", "saddle": "saddle", "degenerate": "saddle", "algebraic": "algebraic"}
    return Status(codes[limit.kind], f"Reached {said}, seen {here}; remainder at most {limit.remainder:.2g}.")
