"""descend(): gradient descent and its kin, the flow's discrete counterparts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from gflow._check import boolean, finite_array, generator, one_of, plain_array, positive, positive_int
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
from gflow.kernels import abi, descent
from gflow.models.base import BatchArguments
from gflow.objective import Objective
from gflow.trajectory import Status, Trajectory

OPTIMIZERS = {"gd": descent.GD, "momentum": descent.MOMENTUM, "adam": descent.ADAM}


def descend(
    model: Any,
    problem: Any,
    theta0: ArrayLike | None,
    step_size: float | ArrayLike | Callable[[int], float],
    n_steps: int,
    *,
    optimizer: str = "gd",
    momentum: float | None = None,
    betas: Sequence[float] | None = None,
    eps: float | None = None,
    batch_size: int | None = None,
    replacement: bool = False,
    rng: int | np.random.Generator | None = None,
    kink: float | None = None,
    save_every: int = 1,
    observe: Observers = None,
    stop: Callable[[float, Array], bool] | None = None,
    start: Trajectory | None = None,
    progress: bool = False,
) -> Trajectory:
    """Gradient descent θ ← θ − η ∇L(θ), the flow's discrete counterpart, and its kin.

    Parameters
    ----------
    model, problem, theta0, observe, progress
        As in :func:`flow`.
    step_size : float, array (n_steps,) or callable
        The step size η > 0 of all steps, or of each; ``step_size(step)``, step = 0 … n_steps − 1, is
        tabulated before the run.
    n_steps : int
        Number of steps; with ``start=``, counted from step 0 of the whole run.
    optimizer : {"gd", "momentum", "adam"}
        ``"momentum"`` is the heavy ball (Polyak 1964), v ← βv − ηg, θ ← θ + v; ``"adam"`` is Kingma and
        Ba's (arXiv 1412.6980, algorithm 1).  The gradient g includes the weight decay.
    momentum : float, optional
        β ∈ [0, 1) of the heavy ball; default 0.9.
    betas : two floats, optional
        β₁, β₂ ∈ [0, 1) of Adam; default 0.9, 0.999.
    eps : float, optional
        ε > 0 of Adam; default 1e-8.
    batch_size : int, optional
        Take each gradient on so many samples (or measurements), times n / batch_size, so that its mean
        over all batches is the full gradient; the weight decay is not scaled.  For sums over samples only.
    replacement : bool
        False: each epoch of ⌊n / batch_size⌋ steps goes through the samples in a fresh random order, and
        the n mod batch_size last of it sit the epoch out.  True: every sample is drawn from all.
    rng : int, numpy Generator or None
        Seed ≥ 0 of the batches; a generator is asked for one; None takes a fresh one.  The seed stands in
        ``trajectory.spec["rng"]``.
    kink : float, optional
        σ'(0) ∈ [slope, 1] of a ReLU network, taken where w · x is zero to the last bit; default the slope of
        the inactive side.
    save_every : int
        Save every so many steps; the first and the last state are always saved.
    stop : callable, optional
        ``stop(t, theta)`` is called at every saved state; True ends the run there.
    start : Trajectory, optional
        Go on from a descent of the same model, problem, step sizes and options, bit for bit; options that
        are left out are those of ``start``.

    Returns
    -------
    Trajectory
        With t the sum of the step sizes so far (step_size × step if they are equal, whatever the
        optimizer); a run that diverges returns what it has and says so.

    Raises
    ------
    ValueError
        If an argument is wrong; nothing has run by then.
    """
    objective = Objective(model, problem)
    trajectory_or_none("start", start)
    n_steps, save_every = positive_int("n_steps", n_steps), positive_int("save_every", save_every)
    sizes = step_sizes(step_size, n_steps)
    given = {
        "optimizer": optimizer, "momentum": momentum, "betas": betas, "eps": eps, "batch_size": batch_size,
        "replacement": replacement, "rng": rng, "kink": kink,
    }  # fmt: skip
    observers = parse_observers(observe)
    callable_or_none("stop", stop)
    if start is None:
        options = Options.of(objective, given)
        theta0 = objective.check_theta(theta0, "theta0")
        state = descent.new_state(theta0, 0, options.rule.optimizer)
    else:
        theta0 = same_run(objective, theta0, start)
        options = Options.of(objective, _continued(given, sizes, n_steps, start))
        state = descent.new_state(start.state["theta"], int(start.state["step"][0]), options.rule.optimizer)
        state.moments[:] = start.state["moments"]
    objective.try_gradient(state.theta)
    run = _Descent(objective, options, state, sizes, n_steps, save_every)
    watch = Watch(objective, observers, stop, run.now)
    spec = {
        "model": model, "problem": problem, "theta0": theta0,
        "step_size": float(sizes[0]) if len(sizes) == 1 else sizes, "n_steps": n_steps, **options.given,
        "save_every": save_every, "observe": observe, "stop": stop,
    }  # fmt: skip
    outcome = drive(run, watch, 0, progress)
    return run.trajectory(outcome, watch, spec)


def batches(trajectory: Trajectory) -> Any:
    """The samples whose gradient each step of a descent took.

    Parameters
    ----------
    trajectory : Trajectory
        From :func:`descend`, or a run of an ensemble of descents.

    Returns
    -------
    array of int (K, b)
        Row k: the numbers of the samples in the batch of step k, of the K steps that were made.

    Raises
    ------
    ValueError
        If the trajectory is none of descent on batches.
    """
    spec = trajectory.spec
    if spec.get("batch_size") is None:
        raise ValueError("trajectory must be of a descent with a batch_size; this one took the whole loss")
    order = np.empty(len(spec["problem"].X), dtype=np.int64)
    out = np.empty((trajectory.counts["steps"], spec["batch_size"]), dtype=np.int64)
    descent.draw_all(seed_of(spec["rng"])[0], out.shape[1], int(spec["replacement"]), order, out)
    return out


def step_sizes(step_size: Any, n_steps: int) -> Array:
    """The size (1,) of all steps, or those of each (n_steps,)."""
    if callable(step_size):
        refuse_if_too_large("n_steps", "step sizes", 8 * n_steps)
        step_size = np.array([positive(f"step_size({i})", step_size(i)) for i in range(n_steps)])
    if isinstance(step_size, Real) or np.ndim(plain_array("step_size", step_size, "(n_steps,)")) == 0:
        return np.array([positive("step_size", step_size)])
    sizes = finite_array("step_size", step_size, (n_steps,))
    if sizes.min() <= 0:
        i = int(np.argmax(sizes <= 0))
        raise ValueError(f"step_size must be > 0; step_size[{i}] is {sizes[i]:g}")
    return sizes


def _continued(given: dict[str, Any], sizes: Array, n_steps: int, start: Trajectory) -> dict[str, Any]:
    """The options of a trajectory that is to be continued, once no other ones are given."""
    if "moments" not in start.state:
        raise ValueError("start must be a trajectory of descend(), not of flow(), with its state")
    first, spec = int(start.state["step"][0]), start.spec
    if n_steps <= first:
        raise ValueError(f"n_steps must be above the {first} steps of start; got {n_steps}")
    before = (
        np.broadcast_to(spec["step_size"], first) if np.ndim(spec["step_size"]) == 0 else spec["step_size"]
    )
    now = np.broadcast_to(sizes, first) if len(sizes) == 1 else sizes
    other = np.flatnonzero(before[:first] != now[:first])
    if other.size:
        i = int(other[0])
        raise ValueError(f"step_size must be that of start, {before[i]:g}, at its step {i}; got {now[i]:g}")
    for name, value in given.items():
        left_out = value is None or value is False or (name == "optimizer" and value == "gd")
        there = tuple(spec[name]) if name == "betas" and spec[name] is not None else spec[name]
        if not left_out and (tuple(value) if name == "betas" else value) != there:
            raise ValueError(
                f"{name} must be left out with start=, or equal its {name}, {there!r}; got {value!r:.80}"
            )
    return {name: spec[name] for name in given}


class Options(NamedTuple):
    """The options of a descent, checked."""

    given: dict[str, Any]  # as they are recorded: a call with them repeats the run
    rule: descent.Rule
    batch: BatchArguments | None
    kink_at: int | None

    @classmethod
    def of(cls, objective: Objective, given: dict[str, Any]) -> Options:
        """Check the options given to a descent, and settle those left to their defaults."""
        given = dict(given)
        optimizer = one_of("optimizer", given["optimizer"], OPTIMIZERS)
        for name, owner, default in (
            ("momentum", "momentum", 0.9), ("betas", "adam", (0.9, 0.999)), ("eps", "adam", 1e-8),
        ):  # fmt: skip
            if optimizer != owner and given[name] is not None:
                raise ValueError(
                    f"{name} must be None for the optimizer {optimizer!r}, which has none; got {given[name]!r}"
                )
            if optimizer == owner and given[name] is None:
                given[name] = default
        beta, beta_square, eps = 0.0, 0.0, 0.0
        if optimizer == "momentum":
            beta = given["momentum"] = _share("momentum", given["momentum"])
        elif optimizer == "adam":
            betas = given["betas"]
            if not isinstance(betas, Sequence | np.ndarray) or isinstance(betas, str) or len(betas) != 2:
                raise ValueError(f"betas must be two numbers in [0, 1); got {betas!r:.80}")
            beta, beta_square = (_share(f"betas[{i}]", b) for i, b in enumerate(betas))
            given["betas"] = beta, beta_square
            eps = given["eps"] = positive("eps", given["eps"])
        given["replacement"] = boolean("replacement", given["replacement"])
        batch = None
        if given["rng"] is not None:
            generator("rng", given["rng"])
        if given["batch_size"] is not None:
            batch = _batch_arguments(objective, given["batch_size"])
            given["batch_size"] = int(given["batch_size"])
            given["rng"] = seed_in(given["rng"])
        else:
            given["rng"] = None
        kink_at = None
        if given["kink"] is not None:
            kink_at = getattr(objective.model, "kink_at", None)
            if kink_at is None:
                raise ValueError(
                    f"kink must be None for {type(objective.model).__name__}, which has no kinks"
                )
            least, kink = objective.model.slope, given["kink"]
            if isinstance(kink, bool) or not isinstance(kink, Real) or not least <= float(kink) <= 1:
                raise ValueError(f"kink must lie in [{least:g}, 1], between the slopes; got {kink!r:.80}")
            given["kink"] = float(kink)
        rule = descent.Rule(OPTIMIZERS[optimizer], float(beta), float(beta_square), float(eps))
        return cls(given, rule, batch, kink_at)

    def arguments(self, objective: Objective) -> tuple[tuple[Array, Any, Array], descent.Batches]:
        """Fresh ``data``, ``dims`` and ``work`` for the compiled loop, and how it takes its batches."""
        data, dims, work = objective.data, objective.dims, objective.work
        batches = descent.Batches(
            0, 0, np.zeros(1, dtype=np.uint64), np.empty(0), np.empty((0, 4), dtype=np.int64),
            np.empty(0, dtype=np.int64),
        )  # fmt: skip
        if self.batch is not None:
            data, dims, work = self.batch.data.copy(), self.batch.dims, np.zeros(self.batch.work_size)
            batches = descent.Batches(
                self.given["batch_size"], int(self.given["replacement"]), seed_of(self.given["rng"]),
                self.batch.samples, self.batch.table, np.empty(self.batch.n, dtype=np.int64),
            )  # fmt: skip
        if self.kink_at is not None:
            data = data.copy()
            data[self.kink_at] = self.given["kink"]
        return (data, dims, work), batches


def seed_in(rng: Any) -> int:
    """The seed that a user gave, or one that the generator does."""
    chosen = generator("rng", rng)
    return int(rng) if isinstance(rng, Integral) else int(chosen.integers(2**62))


def seed_of(rng: int) -> Any:
    """A user's seed as the state (1,) that the compiled sequence begins with."""
    return np.random.SeedSequence(rng).generate_state(1, np.uint64)


def _share(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < 1:
        raise ValueError(f"{name} must lie in [0, 1); got {value!r:.80}")
    return float(value)


def _batch_arguments(objective: Objective, batch_size: Any) -> BatchArguments:
    size = positive_int("batch_size", batch_size)
    if not objective.has("batch_arguments"):
        raise ValueError(
            f"batch_size needs model.batch_arguments, which {type(objective.model).__name__} does not have "
            "(see gflow.models.base.Model)"
        )
    made = BatchArguments(*objective.model.batch_arguments(objective.problem, size))
    count, samples, table, data, dims, work_size = made
    if size > count:
        raise ValueError(f"batch_size must be at most the number of samples, {count}; got {size}")
    made = BatchArguments(
        int(count), np.array(samples, dtype=np.float64).ravel(), np.array(table, dtype=np.int64, order="C").reshape(-1, 4),
        np.array(data, dtype=np.float64).ravel(), np.array(dims, dtype=np.int64).ravel(), int(work_size),
    )  # fmt: skip
    here, there, numbers, _ = made.table.T
    ends = np.max(here + numbers * count, initial=0), np.max(there + numbers * size, initial=0)
    if made.table.min(initial=0) < 0 or ends[0] > made.samples.size or ends[1] > made.data.size:
        raise ValueError("model.batch_arguments must return a table that stays within samples and data")
    return made


def saved_steps(first: int, n_steps: int, every: int, each: int) -> Any:
    """The steps (S,) after which the state is saved, if S times ``each`` bytes are to be had."""
    rows = -(-(n_steps - first) // every) + 1
    refuse_if_too_large("save_every", "states to be saved", rows * (each + 8))
    at = first + every * np.arange(rows)
    at[-1] = n_steps
    return at


def times(sizes: Array) -> Callable[[Any], Any]:
    """The time after so many steps."""
    if len(sizes) == 1:
        return lambda step: step * sizes[0]
    passed = np.append(0.0, np.cumsum(sizes))
    return lambda step: passed[step]


def stopped_at(steps: int, n_steps: int, why: str) -> str:
    return f"Stopped at step {steps} of {n_steps}: {why}."


def outcome_of(code: int, steps: int, n_steps: int, sizes: Array, options: Options) -> Status | None:
    """What the compiled loop came back for; None if there is more to do."""
    if code == descent.PAUSED:
        return None
    if code == descent.FINISHED:
        each = f" of {sizes[0]:g}" if len(sizes) == 1 else ""
        return Status("finished", f"Made {steps} steps{each}.")
    said = f"The step size {sizes[min(steps, len(sizes) - 1)]:g} is probably "
    said += {
        "gd": "above the stability limit 2 / sharpness",
        "momentum": "above the stability limit 2 (1 + momentum) / sharpness",
        "adam": "too large",
    }[options.given["optimizer"]]
    why = stopped_at(steps, n_steps, "the next state is not finite")
    return Status("non_finite", f"{why} {said}; the last finite state is kept.")


class _Descent(Stepped):
    """One descent: where it stands, and how it goes on."""

    verb = "descend"

    def __init__(
        self, objective: Objective, options: Options, state: descent.State, sizes: Array, n_steps: int,
        every: int,
    ) -> None:  # fmt: skip
        self.objective, self.options, self.state = objective, options, state
        self.sizes, self.n_steps, self.every = sizes, n_steps, every
        self.first, self.at = self.steps, saved_steps(self.steps, n_steps, every, 8 * objective.size)
        self.theta = np.empty((len(self.at), objective.size))
        self.arguments, self.batches = options.arguments(objective)
        self.times = times(sizes)
        self.total = float(n_steps)
        data, _, work = self.arguments
        self.first_budget = int(
            min(max(2e7 / (data.size + work.size + 8 * objective.size + 100), 1), 100_000)
        )

    @property
    def steps(self) -> int:
        return self.state.cursor.item(descent.STEP)

    @property
    def saved(self) -> int:
        return self.state.cursor.item(descent.SAVED)

    @property
    def now(self) -> Array:
        return self.state.theta

    @property
    def t(self) -> float:
        return float(self.times(self.steps))

    def advance(self, budget: int, max_steps: int) -> Status | None:
        code = abi.call(
            descent.advance, self.objective.gradient_kernel, *self.arguments, self.state, self.options.rule, self.batches,
            self.sizes, self.theta, self.first, self.every, self.n_steps, budget,
        )  # fmt: skip
        return outcome_of(code, self.steps, self.n_steps, self.sizes, self.options)

    def stopped_at(self, why: str) -> str:
        return stopped_at(self.steps, self.n_steps, why)

    def reached(self) -> tuple[Array, Array]:
        """Times and states that were saved, and the last state where the end was not reached."""
        n = self.saved
        at, theta = self.at[:n], self.theta[:n]
        if n == 0 or self.steps > at[-1]:
            at, theta = np.append(at, self.steps), np.vstack([theta, self.now])
        return self.times(at), theta

    def trajectory(self, outcome: Status, watch: Watch, spec: dict[str, Any]) -> Trajectory:
        """The trajectory as far as it has come."""
        t, theta = self.reached()
        return Trajectory.of({
            "t": t, "theta": theta, "outcome": outcome, "observed": watch.arrays(len(t)),
            "counts": {"steps": self.steps, "gradients": self.steps},
            "state": {"theta": self.now, "step": np.array([self.steps]), "moments": self.state.moments},
            "versions": versions(), "recorded_spec": spec,
        })  # fmt: skip
