"""descend(): gradient descent, the flow's discrete counterpart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gflow._check import positive, positive_int
from gflow._memory import refuse_if_too_large
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
from gflow.kernels import descent
from gflow.objective import Objective
from gflow.trajectory import Status, Trajectory


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
    trajectory_or_none("start", start)
    step_size = positive("step_size", step_size)
    n_steps, save_every = positive_int("n_steps", n_steps), positive_int("save_every", save_every)
    observers = parse_observers(observe)
    callable_or_none("stop", stop)
    first = 0
    if start is None:
        theta0 = objective.check_theta(theta0, "theta0")
        theta = theta0.copy()
    else:
        theta0 = same_run(objective, theta0, start)
        if start.spec.get("step_size") != step_size:
            raise ValueError(
                f"step_size must be that of start, {start.spec.get('step_size')}; got {step_size}"
            )
        theta, first = start.state["theta"].copy(), int(start.state["step"][0])
        if n_steps <= first:
            raise ValueError(f"n_steps must be above the {first} steps of start; got {n_steps}")
    objective.gradient(theta)  # what is wrong with a user's kernel shows here: compiled code cannot raise
    run = _Descent(objective, theta, step_size, first, n_steps, save_every)
    watch = Watch(objective, observers, stop, run.now)
    spec = {
        "model": model, "problem": problem, "theta0": theta0, "step_size": step_size, "n_steps": n_steps,
        "save_every": save_every, "observe": observe, "stop": stop,
    }  # fmt: skip
    outcome = drive(run, watch, 0, progress)
    return run.trajectory(outcome, watch, spec)


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

    def trajectory(self, outcome: Status, watch: Watch, spec: dict[str, Any]) -> Trajectory:
        """The trajectory as far as it has come."""
        t, theta = self.reached()
        return Trajectory(
            t=t, theta=theta, outcome=outcome, observed=watch.arrays(len(t)),
            counts={"steps": self.steps, "gradients": self.steps},
            state={"theta": self.now, "step": np.array([self.steps])},
            versions=versions(), recorded_spec=spec,
        )  # fmt: skip
