"""Many stochastic flows, one by one as ``stochastic_flow`` runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow._check import finite_array, one_of, plain_array, positive
from gflow._memory import refuse_if_too_large
from gflow._run import versions
from gflow.ensembles.options import PATH_OPTIONS, seeds_of
from gflow.ensembles.result import Ensemble
from gflow.ensembles.runs import Runs, Worker
from gflow.integrate import check_times
from gflow.iterate import stopped_at
from gflow.kernels import ensembles
from gflow.objective import Objective
from gflow.stochastic import SCHEMES, StochasticPath, coordinates, default_dt, whole_steps
from gflow.trajectory import Status


class Paths(Runs):
    """Many stochastic flows."""

    verb = "stochastic flows"

    def __init__(
        self, objective: Objective, thetas: ArrayLike, t: Any, step_size: Any,
        observers: dict[str, Callable[..., Any]], given: dict[str, Any],
    ) -> None:  # fmt: skip
        self.given = {**PATH_OPTIONS, **given}
        one_of("scheme", self.given["scheme"], SCHEMES)
        self.step_size = positive("step_size", step_size)
        dt = self.given["dt"]
        self.dt = default_dt(objective, self.step_size) if dt is None else positive("dt", dt)
        self.times = check_times(t, 0.0, None, "time")
        self.at = whole_steps(self.times, self.dt)
        starts = plain_array("thetas", thetas, f"(R, {objective.size})")
        starts = finite_array("thetas", starts[None] if starts.ndim == 1 else starts, ("R", objective.size))
        seeds = seeds_of(self.given["rng"])
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

    def worker(self, share: int) -> Worker:
        return PathWorker(self)

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


class PathWorker:
    """Stochastic flows one by one, each as :func:`stochastic_flow` runs it."""

    def __init__(self, all_runs: Paths) -> None:
        self.all, self.r, self.end, self.steps = all_runs, 0, 0, 0
        self.path: StochasticPath | None = None

    def begin(self, first: int, end: int) -> None:
        self.r, self.end = first, end

    def advance(self, budget: int) -> bool:
        a = self.all
        if self.r == self.end:
            return True
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
