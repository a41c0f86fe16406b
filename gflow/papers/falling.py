"""Flows that are claimed to end at some loss, and do not: given up once they have fallen clearly below it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gflow.integrate import flow
from gflow.objective import Objective
from gflow.papers import unbroken
from gflow.trajectory import Trajectory

#: Name of the conclusion that belongs to the number of :func:`run_or_fall`.
FALLS = "1/t when L falls below {}, 0 if it never does"
#: Bound on it: falls later than at t = 1e12 are none.
NEVER = 1e-12
#: Points at which the step that falls is looked at.
_POINTS = 65


def run_or_fall(
    objective: Objective, theta0: NDArray[np.float64], level: float, rtol: float, max_steps: int = 10_000
) -> tuple[Trajectory, float]:
    """The flow to t = ∞, or until its loss is below ``level``; and 1/t when it falls below, 0 if it does not.

    The loss never rises: a flow that falls below a level ends below it.  When it does so is a number that converges with
    the tolerance, so that runs too coarse to know where the flow goes differ in it, even if both fall.
    """
    before, now = (0.0, theta0), (0.0, theta0)

    def below(t: float, theta: NDArray[np.float64]) -> bool:
        nonlocal before, now
        before, now = now, (t, theta)
        return objective.loss(theta) < level

    model, problem = objective.model, objective.problem
    run = unbroken(flow(model, problem, theta0, np.inf, rtol=rtol, stop=below, max_steps=max_steps))
    if run.outcome.code != "stopped":
        return run, 0.0
    wait = now[0] - before[0]
    if wait <= 0.0:
        raise ValueError(f"theta0 must have a loss above {level:g}; it has {objective.loss(theta0):g}")
    step = unbroken(flow(model, problem, before[1], np.linspace(0.0, wait, _POINTS), rtol=rtol))
    fallen = np.interp(-level, -step.loss, step.t)
    return run, 1.0 / float(before[0] + fallen)
