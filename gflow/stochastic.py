"""stochastic_flow(): stochastic gradient flow of diagonal networks, the continuous model of SGD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow._check import one_of, positive
from gflow._memory import refuse_if_too_large
from gflow._run import (
    Array,
    Observers,
    Stepped,
    Watch,
    callable_or_none,
    drive,
    parse_observers,
    same_run,
    trajectory_or_none,
    versions,
)
from gflow.integrate import check_times
from gflow.iterate import seed_in, seed_of
from gflow.kernels import stochastic as kernels
from gflow.models.logarithms import Noisy
from gflow.objective import Objective
from gflow.trajectory import Status, Trajectory

SCHEMES = ("log-euler",)
# The default dt times the sharpness at the smallest interpolator, where the mean of ∫L dt was too large by less than 1 %.
_DEFAULT = 0.05
# What one step may do to a logarithm, or dt times the trace of the linearised drift: above it the bias is several per cent.
_COARSE = 0.5


def stochastic_flow(
    model: Any,
    problem: Any,
    theta0: ArrayLike | None,
    t: ArrayLike,
    step_size: float,
    rng: int | np.random.Generator | None = None,
    *,
    scheme: str = "log-euler",
    dt: float | None = None,
    observe: Observers = None,
    stop: Callable[[float, Array], bool] | None = None,
    start: Trajectory | None = None,
    progress: bool = False,
) -> Trajectory:
    r"""One path of the stochastic gradient flow, which models SGD of step size γ on single samples in time t = γ · step.

    For a diagonal network of depth 2, w standing for w₊ and w₋, or w, with r = Xβ − y and L = factor ‖r‖²
    (arXiv 2106.09524, whose factor is 1/(4n)):

    dw± = −∇_{w±} L dt ± 4 √(γ · factor · L) w± ∘ Xᵀ dB,

    in Itô's sense with one Brownian motion a sample; for u + v and u − v of the form ``"product"`` with 2 in the
    place of 4.  The noise is that of SGD with the mean of r_i² in the place of every r_i², and without the
    square of its mean: its size is that of the samples' gradients while the residuals are alike.

    Parameters
    ----------
    model : Diagonal
        Of depth 2.
    problem : Problem
        With the square loss and without weight decay.
    theta0 : array (P,) or None
        Initial parameters; None (or the same) with ``start=``.
    t : array (T,) or float
        Increasing times ≥ 0 at which to save the state, rounded to whole steps of ``dt``; one number t saves 0 and t.
    step_size : float
        γ > 0.  For batches of b samples drawn with replacement give γ / b, and count the time as γ · step.
    rng : int, numpy Generator or None
        Seed ≥ 0 of the path; a generator is asked for one; None takes a fresh one.  The seed stands in
        ``trajectory.spec["rng"]``.
    scheme : {"log-euler"}
        Euler's scheme for nu with Xᵀ nu = G, log w± = log w±(0) ∓ 2 G − 8 γ factor diag(XᵀX) ∫L dt (1 and 2 for 2
        and 8 with u ± v), of strong order ½ in ``dt``; the parameters follow exactly.
    dt : float, optional
        Length of a step; default γ or the largest whole part of it that is at most 0.05 / S, S = 4 c · factor · λ_max(X diag\|β\| Xᵀ), c = 2 or 1 with u ± v, the sharpness at
        the smallest least-squares solution β.  What the scheme is biased by falls like ``dt``, what it costs
        grows like 1 / dt: on 4 samples of 6 inputs, from α = 0.1 and 0.3, ∫L dt came out too large on average by 0.2 to 0.8 % with
        dt S = 0.05, and with dt = γ by 0.8 and 2 % (γ S = 0.14), 2 and 5 % (0.28), 20 % (0.56).  A path whose dt was too coarse for where it went has a warning.
    observe, stop, progress
        As in :func:`descend`.
    start : Trajectory, optional
        Go on from a path of the same model, problem, step size, seed and dt, bit for bit; ``rng`` and ``dt`` may be left out.

    Returns
    -------
    Trajectory
        ``trajectory["loss_integral"]`` (T,) holds ∫L dt as the scheme sums it, with which
        √(w₊ w₋) = α exp(−8 γ factor diag(XᵀX) ∫L dt), or √(u² − v²) = √2 α exp(−2 γ factor diag(XᵀX) ∫L dt), holds
        to rounding; its last value gives α_∞.  ``trajectory.log_theta`` holds logarithms where parameters underflow.

    Raises
    ------
    ValueError
        If an argument is wrong, or the model or the loss is not covered; nothing has run by then.

    Examples
    --------
    >>> import gflow
    >>> model, problem = gflow.Diagonal(2), gflow.Problem([[1.0, 2.0]], [1.0], factor=0.25)
    >>> path = gflow.stochastic_flow(model, problem, model.init(scale=0.1), t=20.0, step_size=0.01, rng=0)
    >>> path.counts["steps"]
    2000
    """
    objective = Objective(model, problem)
    trajectory_or_none("start", start)
    step_size = positive("step_size", step_size)
    one_of("scheme", scheme, SCHEMES)
    observers = parse_observers(observe)
    callable_or_none("stop", stop)
    if start is None:
        theta = objective.check_theta(theta0, "theta0")
        dt = default_dt(objective, step_size) if dt is None else positive("dt", dt)
        seed = seed_in(rng)
    else:
        theta, dt, seed = _continued(objective, theta0, start, step_size, rng, dt)
    chart = coordinates(objective, theta, step_size)
    times = check_times(t, 0.0 if start is None else float(start.t[-1]), start, "time")
    at = whole_steps(times, dt)
    run = StochasticPath(objective, chart, at, step_size, dt, seed, start)
    watch = Watch(objective, observers, stop, run.now, chart)
    spec = {
        "model": model, "problem": problem, "theta0": theta, "t": times, "step_size": step_size, "rng": seed,
        "scheme": scheme, "dt": dt, "observe": observe, "stop": stop,
    }  # fmt: skip
    outcome = drive(run, watch, 0, progress)
    return run.trajectory(outcome, watch, spec)


def coordinates(objective: Objective, theta: Array, step_size: float) -> Noisy:
    """The coordinates of the paths from ``theta``."""
    if not objective.has("noisy_coordinates"):
        name = type(objective.model).__name__
        raise ValueError(
            f"model must be a gflow.Diagonal of depth 2 for the stochastic flow; got {name}: its noise is not multiplicative"
        )
    made: Noisy = objective.model.noisy_coordinates(objective.problem, theta, step_size)
    return made


def default_dt(objective: Objective, step_size: float) -> float:
    """The length of a step by default: γ or a whole part of it, short against 1 / sharpness at the smallest interpolator."""
    chart = coordinates(objective, np.ones(objective.size), step_size)
    beta = np.abs(np.linalg.lstsq(chart.rows, chart.labels, rcond=None)[0])
    sharpness = 4 * chart.rate * chart.factor * float(np.linalg.norm(chart.rows * np.sqrt(beta), 2)) ** 2
    return step_size / max(1.0, float(np.ceil(step_size * sharpness / _DEFAULT)))


def whole_steps(times: Array, dt: float) -> NDArray[np.int64]:
    """The numbers of the steps of length ``dt`` nearest to the times."""
    if not np.isfinite(times[-1]):
        raise ValueError("t must be finite for the stochastic flow; it ends with inf")
    if times[-1] / dt > 2**53:
        raise ValueError(f"dt must be above {times[-1] / 2.0**53:.2g} to reach t = {times[-1]:g}; got {dt:g}")
    at = np.rint(times / dt).astype(np.int64)
    same = np.flatnonzero(np.diff(at) == 0)
    if same.size:
        i = int(same[0])
        raise ValueError(
            f"t must hold times that are apart by dt = {dt:g} at least; t[{i}] = {times[i]:g} and "
            f"t[{i + 1}] = {times[i + 1]:g} are the same step"
        )
    return at


def _continued(
    objective: Objective, theta0: ArrayLike | None, start: Trajectory, step_size: float, rng: Any, dt: float | None
) -> tuple[Array, float, int]:  # fmt: skip
    theta = same_run(objective, theta0, start)
    if "scheme" not in start.spec or not start.state:
        raise ValueError("start must be a trajectory of stochastic_flow(), with its state")
    for name, given in (("step_size", step_size), ("rng", rng), ("dt", dt)):
        if given is not None and given != start.spec[name]:
            raise ValueError(f"{name} must equal that of start, {start.spec[name]!r}; got {given!r:.80}")
    return theta, start.spec["dt"], start.spec["rng"]


def arguments(chart: Noisy, step_size: float, dt: float, seed: int) -> tuple[Any, ...]:
    """``data``, ``dims``, ``work`` and the noise for the compiled loop; it writes to the first and the third."""
    data, dims, work_size = chart.kernel_arguments(None)
    noise = kernels.Noise(seed_of(seed), step_size, dt, chart.logs.ravel(), chart.shrink, chart.stiffness)
    return data, dims, np.zeros(work_size), noise


def outcome_of(code: int, steps: int, total: int, dt: float) -> Status | None:
    """What the compiled loop came back for; None if there is more to do."""
    if code == kernels.PAUSED:
        return None
    if code == kernels.FINISHED:
        return Status("finished", f"Made {steps} steps of {dt:g}.")
    why = stopped_at(steps, total, "the outputs are not finite")
    return Status(
        "non_finite",
        f"{why} dt = {dt:g} is probably above the stability limit 2 / sharpness, or step_size is too large; the last finite state is kept.",
    )


def stopped_at(steps: int, total: int, why: str) -> str:
    return f"Stopped at step {steps} of {total}: {why}."


class StochasticPath(Stepped):
    """One path: where it stands, and how it goes on."""

    verb = "stochastic flow"

    def __init__(
        self, objective: Objective, chart: Noisy, at: NDArray[np.int64], step_size: float, dt: float, seed: int,
        start: Trajectory | None,
    ) -> None:  # fmt: skip
        self.objective, self.chart, self.at, self.dt = objective, chart, at, dt
        size = chart.size + 1
        refuse_if_too_large("t", "states to be saved", 8 * len(at) * (size + objective.size))
        self.theta = np.empty((len(at), size))  # states in the coordinates of the chart
        self.arguments = arguments(chart, step_size, dt, seed)
        now, step, coarsest = np.zeros(size), 0, np.zeros(2)
        if start is not None:
            now, step = start.state["now"], int(start.state["step"][0])
            coarsest = start.state["coarsest"]
        self.state = kernels.new_state(now, step, coarsest)
        self.total = float(at[-1])
        cost = 2 * chart.rows.size + 40 * objective.size + 40 * chart.size + 100
        self.first_budget = int(min(max(2e7 / cost, 1), 100_000))

    @property
    def steps(self) -> int:
        return self.state.cursor.item(kernels.STEP)

    @property
    def saved(self) -> int:
        return self.state.cursor.item(kernels.SAVED)

    @property
    def now(self) -> Array:
        return self.state.now

    @property
    def t(self) -> float:
        return self.steps * self.dt

    def advance(self, budget: int, max_steps: int) -> Status | None:
        data, dims, work, noise = self.arguments
        code = kernels.advance(data, dims, work, self.state, noise, self.at, self.theta, budget)
        return outcome_of(code, self.steps, int(self.total), self.dt)

    @property
    def coarsest(self) -> tuple[float, float]:
        """Of the steps so far: bound on the drift of a logarithm and its noise's deviation, and on dt times the drift's rates."""
        columns = float(np.sqrt(np.max(np.sum(self.chart.rows**2, axis=0))))
        moved, trace = self.state.coarsest
        return float(moved) * self.chart.rate * columns, float(trace) * self.dt

    def noted(self, outcome: Status) -> Status:
        """The outcome with a warning if the steps were too coarse."""
        moved, stiff = self.coarsest
        if max(moved, stiff) <= _COARSE:
            return outcome
        note = (
            f"coarse: one step may have changed parameters by a factor of e^{moved:.2g}, and dt was up to {stiff:.2g} in units "
            "of the drift's shortest time (bounds; above 2 the scheme may oscillate), while it holds the outputs "
            f"fixed over a step; take a dt below {self.dt * _COARSE / max(moved, stiff):.2g}, or a smaller step_size."
        )
        return outcome._replace(warnings=(*outcome.warnings, note))

    def stopped_at(self, why: str) -> str:
        return stopped_at(self.steps, int(self.total), why)

    def reached(self) -> tuple[Array, Array]:
        """Times and states that were saved, and the last state where the end was not reached."""
        n = self.saved
        at, states = self.at[:n], self.theta[:n]
        if n < len(self.at) and (n == 0 or self.steps > at[-1]):
            at, states = np.append(at, self.steps), np.vstack([states, self.now])
        return np.asarray(at * self.dt, dtype=np.float64), states

    def trajectory(self, outcome: Status, watch: Watch, spec: dict[str, Any]) -> Trajectory:
        """The trajectory as far as it has come."""
        t, states = self.reached()
        return Trajectory(
            t=t, theta=self.chart.theta(states), coordinates=states, outcome=self.noted(outcome),
            observed={**watch.arrays(len(t)), "loss_integral": states[:, -1].copy()},
            counts={"steps": self.steps, "gradients": self.steps},
            state={"now": self.now, "step": np.array([self.steps]), "coarsest": self.state.coarsest},
            versions=versions(), recorded_spec=spec,
        )  # fmt: skip
