"""Many descents, one after another in one compiled call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow._check import finite_array, plain_array, positive_int
from gflow._run import Array, versions
from gflow.ensembles.options import DESCENT_OPTIONS, seeds_of
from gflow.ensembles.result import Ensemble
from gflow.ensembles.runs import Runs, Worker
from gflow.iterate import Options, outcome_of, saved_steps, seed_of, step_sizes, stopped_at, times
from gflow.kernels import abi, descent, ensembles
from gflow.objective import Objective
from gflow.trajectory import Status


class Descents(Runs):
    """Many descents."""

    verb = "descents"

    def __init__(
        self, objective: Objective, thetas: ArrayLike, step_size: Any, n_steps: Any,
        observers: dict[str, Callable[..., Any]], given: dict[str, Any],
    ) -> None:  # fmt: skip
        self.n_steps = positive_int("n_steps", n_steps)
        given = {**DESCENT_OPTIONS, **given}
        self.every = positive_int("save_every", given.pop("save_every"))
        starts = plain_array("thetas", thetas, f"(R, {objective.size})")
        starts = finite_array("thetas", starts[None] if starts.ndim == 1 else starts, ("R", objective.size))
        self.sizes = _sizes(step_size, self.n_steps)
        seeds = seeds_of(given["rng"]) if given["batch_size"] is not None else [0]
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

    def worker(self, share: int) -> Worker:
        return DescentWorker(self)

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


class DescentWorker:
    """Descents, one after another in one compiled call."""

    def __init__(self, all_runs: Descents) -> None:
        self.all, options = all_runs, all_runs.options
        arguments, batches = options.arguments(all_runs.objective)
        data, dims, work = arguments
        state = descent.new_state(all_runs.thetas[0], 0, options.rule.optimizer)
        self.what = all_runs.objective.gradient_kernel, data, dims, work.copy(), state, options.rule, batches
        saved = all_runs.runs.theta[0]
        single = (*self.what, all_runs.sizes[0], saved, 0, all_runs.every, all_runs.n_steps, 1)
        self.loop = abi.pointer(descent.advance, lambda: single)
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
