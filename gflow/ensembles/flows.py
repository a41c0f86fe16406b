"""Many flows: the smooth ones in compiled calls, side by side where the network is small, the others as ``flow`` runs them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow._check import boolean, finite_array, plain_array, positive, positive_int
from gflow._flows import EXPLICIT, Flow, begin, pair
from gflow._memory import refuse_if_too_large
from gflow._run import Array, Watch, versions
from gflow.ensembles.result import Ensemble
from gflow.ensembles.runs import Runs, Worker
from gflow.integrate import check_rtol, check_times, chosen_method, default_atols
from gflow.kernels import abi, ensembles, explicit, lanes, stiff
from gflow.limit import FIRST_LOOK
from gflow.objective import Objective
from gflow.trajectory import Events, Status

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


# Most runs that one thread makes side by side (measured: 64 cost a tenth more, 256 the same).
_LANES = 128


class Flows(Runs):
    """Many flows."""

    verb = "flows"

    def __init__(
        self, objective: Objective, thetas: ArrayLike, t: Any, observers: dict[str, Callable[..., Any]], *,
        method: str, rtol: float, atol: Any, events: bool, max_steps: int,
    ) -> None:  # fmt: skip
        self.times = check_times(t, 0.0, None, "time")
        self.max_steps = positive_int("max_steps", max_steps)
        starts = finite_array("thetas", thetas, ("R", objective.size))
        self.rtol, model, self.events = check_rtol(rtol), objective.model, boolean("events", events)
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
            self.plain = min(self.max_steps, stiff.first_look(objective.nanoseconds))
        runs, rows, size = len(starts), len(self.times), objective.size
        small = size <= explicit.ORDERED and runs >= lanes.LEAST
        self.in_lanes = self.plain > 0 and small and objective.lane_kernel is not None
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
        self.products = np.zeros(runs, dtype=np.int64)
        self.tables: dict[int, Events] = {}

    @property
    def codes(self) -> NDArray[np.int64]:
        return self.runs.codes

    def worker(self, share: int) -> Worker:
        if not self.plain:
            return SingleWorker(self)
        if self.in_lanes and share >= lanes.LEAST:
            return LaneWorker(self, min(share, _LANES))
        return FlowWorker(self)

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
        counts = dict(zip(("accepted", "rejected", "gradients"), runs.counts.T.copy(), strict=True))
        if self.method in ("auto", "bdf"):
            counts["products"] = self.products.copy()
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
            counts=counts,
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


class CompiledWorker(ABC):
    """Smooth flows in compiled calls; those that may change their method, one by one then."""

    def __init__(self, all_runs: Flows) -> None:
        self.all, o = all_runs, all_runs.objective
        self.field = o.gradient_kernel, o.data, o.dims, np.zeros_like(o.work)
        self.tableau, self.atol = all_runs.pair(), np.empty(o.size)
        self.state = explicit.new_state(all_runs.thetas[0], 0.0, self.tableau)
        self.compiled_steps, self.compiled = 0, True
        self.others = SingleWorker(all_runs)
        self.ranges: list[tuple[int, int]] = []

    @property
    def steps(self) -> int:
        return self.compiled_steps + self.others.steps

    def begin(self, first: int, end: int) -> None:
        self.ranges.append((first, end))
        self.compiled = True

    @abstractmethod
    def go(self, budget: int) -> bool:
        """Go on in compiled code for about so many steps; whether the runs are done."""

    def advance(self, budget: int) -> bool:
        if not self.compiled:
            return self.others.advance(budget)
        if not self.go(budget):
            return False
        self.others.queue, self.compiled = self._left(), False
        return not self.others.queue

    def _left(self) -> list[int]:
        """The runs that are through with their explicit steps, but not with their steps."""
        a, codes = self.all, self.all.runs.codes
        left = [r for first, end in self.ranges for r in range(first, end) if codes[r] == explicit.MAX_STEPS]
        self.ranges = []
        if a.plain == a.max_steps:
            return []
        codes[left] = ensembles.UNFINISHED
        return left

    def leave(self) -> None:
        """Keep what there is of a run by itself; the compiled loop has kept the others."""
        self._left()
        self.others.leave()


class FlowWorker(CompiledWorker):
    """One run after another."""

    def __init__(self, all_runs: Flows) -> None:
        super().__init__(all_runs)
        rows, size, degree = len(all_runs.times), all_runs.objective.size, self.tableau.interpolant.shape[1]
        self.output = explicit.Output(
            np.zeros(3, dtype=np.int64), all_runs.times, np.empty((rows, size)), np.empty(rows),
            np.empty((1024, 3)), np.empty((0, 2)), np.empty((0, degree + 1, size)),
        )  # fmt: skip
        self.solver = self.tableau, self.state, self.output
        single = (*self.field, *self.solver, all_runs.rtol, self.atol, 1, 1)
        self.loop = abi.pointer(explicit.advance, lambda: single)
        self.place, self.end = np.zeros(2, dtype=np.int64), 0

    def begin(self, first: int, end: int) -> None:
        super().begin(first, end)
        self.place[:], self.end = (first, 0), end

    def go(self, budget: int) -> bool:
        a = self.all
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
        if code != ensembles.FINISHED:  # else it took a part of them, and nobody knows which
            self.compiled_steps += budget
        return bool(code == ensembles.FINISHED)


class LaneWorker(CompiledWorker):
    """Runs side by side; those under way go on while others come."""

    def __init__(self, all_runs: Flows, width: int) -> None:
        super().__init__(all_runs)
        o = all_runs.objective
        self.lanes = lanes.new_lanes(width, o.size, o.work.size, self.tableau)
        self.passed = lanes.new_passed(self.lanes, self.tableau)
        self.cursor, self.end = np.zeros(5, dtype=np.int64), 0

    def begin(self, first: int, end: int) -> None:
        super().begin(first, end)
        self.cursor[lanes.NEXT_RUN], self.end = first, end
        self.cursor[lanes.MORE] = first < end

    def go(self, budget: int) -> bool:
        a = self.all
        code = lanes.advance(
            a.objective.lane_kernel,
            *self.field,
            self.tableau,
            self.state,
            self.lanes,
            self.passed,
            a.runs,
            a.times,
            self.cursor,
            self.end,
            a.rtol,
            self.atol,
            budget,
            a.plain,
        )
        self.compiled_steps = int(self.cursor[lanes.STEPS])
        if code == lanes.NARROW:
            self.lanes = lanes.narrowed(self.lanes)
            self.passed = lanes.new_passed(self.lanes, self.tableau)
        return code in (ensembles.FINISHED, lanes.ROOM)

    def advance(self, budget: int) -> bool:
        if self.compiled and self.cursor[lanes.MORE]:  # the others once no more come
            return self.go(budget)
        return super().advance(budget)


class SingleWorker:
    """Flows one by one, each as :func:`flow` runs it."""

    def __init__(self, all_runs: Flows) -> None:
        self.all, self.objective = all_runs, copy(all_runs.objective)
        self.run: Flow | None = None
        self.queue: list[int] = []
        self.steps = 0

    def begin(self, first: int, end: int) -> None:
        self.queue = list(range(first, end))

    def advance(self, budget: int) -> bool:
        if not self.queue:
            return True
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
        self.all.products[r] = made["counts"].get("products", 0)
        self.all.outcomes[r] = made["outcome"]
        if made.get("events") is not None:
            self.all.tables[r] = made["events"]
