"""Rank after training against depth: the runs of `huh2021`, linear networks and over-parametrised ReLU networks.

They are sweeps that keep every finished point in a folder: the next call goes on where a killed one ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from gflow import datasets, observe
from gflow.claims import Observation
from gflow.integrate import flow
from gflow.iterate import descend
from gflow.models.linear import DeepLinear
from gflow.models.relu import TwoLayerReLU
from gflow.objective import Objective
from gflow.papers import unbroken
from gflow.problem import Problem
from gflow.sweeps import sweep
from gflow.trajectory import Trajectory

Array = NDArray[np.float64]
Advance = Callable[[float, str], None]

REFERENCE = "arXiv 2103.10427"
#: Linear networks: all widths, samples, the ranks of the two teachers, and the end-to-end size of the smaller starts.
WIDTH, SAMPLES, TEACHERS, SIZE = 16, 10, (2, 16), 0.1
STARTS = ("N(0, 1/n)", "small", "balanced")
OPTIMIZERS = ("flow", "gradient descent", "SGD", "momentum", "Adam")
#: Trained up to this part of the loss of the zero map.
TRAINED = 1e-4
#: Over-parametrised ReLU networks: tasks, starts, and the parts of the loss of the zero map at which they are trained.
TASKS = ("low-rank regression", "digits")
RELU_STARTS = ("same function", "Gaussian")
RELU_TRAINED = {"low-rank regression": 1e-3, "digits": 1e-2}
#: Flows on the digits are slow: so many seeds.
FLOW_SEEDS = 2
#: By size: axes of the sweeps, and further settings.
LINEAR: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "quick": ({"depth": [1, 2, 5], "seed": [0]}, {"steps": 8_000}),
    "full": ({"depth": [1, 2, 3, 4, 6, 8], "seed": [0, 1]}, {"steps": 40_000}),
}
RELU: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "quick": ({"seed": [0, 1], "k": [1, 2, 4]}, {"all_flows": False}),
    "full": ({"seed": list(range(8)), "k": [1, 2, 3, 4, 6]}, {"all_flows": True}),
}


def entropy(matrix: ArrayLike) -> float:
    """ρ of a matrix, in nats."""
    return observe.effective_ranks(matrix)["entropy"]


def directions(matrix: ArrayLike) -> float:
    """e^ρ of a matrix, a number of directions."""
    return float(np.exp(entropy(matrix)))


def fraction(weights: Array) -> Array:
    """e^ρ / n (...) of non-negative weights (..., n)."""
    p = weights / weights.sum(axis=-1, keepdims=True)
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    return np.asarray(np.exp(-np.sum(p * logs, axis=-1)) / weights.shape[-1])


def _swept(
    function: Callable[..., Any], axes: dict[str, Any], settings: dict[str, Any], folder: Path, jobs: int,
    advance: Advance, note: str,
) -> xarray.Dataset:  # fmt: skip
    """A sweep that goes on where an earlier one ended, one value of its first axis after the other."""
    first, values = next(iter(axes.items()))
    parts = []
    for i, value in enumerate(values):
        advance(i / len(values), f"{note}, {first} {value}")
        part = sweep(function, axes | {first: [value]}, folder / "points", jobs, settings=settings)
        for text in filter(None, part.error.values.ravel()):
            if text == "not run: interrupted":
                raise KeyboardInterrupt
            raise RuntimeError(f"{note}: {text}")
        parts.append(part)
    return xarray.concat(parts, first)


def _jobs(size: str) -> int:
    """Worker processes cost more than they bring where all runs are short."""
    return 1 if size == "quick" else -1


# -- linear networks, least squares --------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """Least squares on fewer samples than inputs, with a teacher of some rank, by a network of some depth."""

    teacher: int
    depth: int
    seed: int = 0

    @cached_property
    def problem(self) -> Problem:
        rng = np.random.default_rng(self.seed)
        left, right = rng.standard_normal((WIDTH, self.teacher)), rng.standard_normal((self.teacher, WIDTH))
        x = rng.standard_normal((SAMPLES, WIDTH))
        return Problem(x, x @ (left @ right / np.sqrt(self.teacher * WIDTH)).T)

    @cached_property
    def model(self) -> DeepLinear:
        return DeepLinear((WIDTH,) * (self.depth + 1))

    @property
    def least_norm(self) -> Array:
        """The interpolator of least norm."""
        return (np.linalg.pinv(self.problem.X) @ self.problem.Y).T

    def start(self, name: str) -> Array:
        """Gaussian layers N(0, 1/n); the same with an end-to-end map a tenth of that; orthogonal balanced layers."""
        each = 1.0 if name == STARTS[0] else SIZE ** (1 / self.depth)
        if name == "balanced":
            return self.model.init("orthogonal", each, rng=self.seed)
        return self.model.init("gaussian", each / np.sqrt(WIDTH), rng=self.seed)


def least_squares(size: str, folder: Path, advance: Advance) -> xarray.Dataset:
    """Train linear networks of several depths from several starts by flow and descents: see :func:`train`."""
    axes, settings = LINEAR[size]
    axes = axes | {"teacher": TEACHERS, "start": STARTS}
    return _swept(train, axes, settings, folder, _jobs(size), advance, "linear networks")


def train(depth: int, seed: int, teacher: int, start: str, steps: int) -> xarray.Dataset:
    """Train one linear network by every optimiser.

    Of each: e^ρ of W at the end (``rank``), the loss over that of the zero map, how the run ended (``code``:
    ``"stopped"`` if the loss came down to what was asked), and the numerical error of e^ρ, which only the flow has:
    its difference from a run at a hundred times the tolerance.
    """
    setting = Setting(teacher, depth, seed)
    model, problem, theta0 = setting.model, setting.problem, setting.start(start)
    stop, zero = _stop(model, problem, TRAINED)
    coarse, exact = (
        flow(model, problem, theta0, 1e6, rtol=rtol, stop=stop, max_steps=100_000) for rtol in (1e-7, 1e-9)
    )
    steepest = max(_curvature(Objective(model, problem), theta) for theta in (theta0, exact.end))
    runs: dict[str, Trajectory] = {"flow": exact}
    listed: list[tuple[str, float, int, dict[str, Any]]] = [
        ("gradient descent", 1.0 / steepest, steps, {}),
        ("SGD", 0.2 / steepest, 3 * steps, {"batch_size": 2, "rng": seed}),
        ("momentum", 0.5 / steepest, steps, {"optimizer": "momentum"}),
        ("Adam", 2e-3, steps, {"optimizer": "adam"}),
    ]
    for name, step_size, count, options in listed:
        runs[name] = descend(
            model, problem, theta0, step_size, count, save_every=max(count // 400, 1), stop=stop, **options
        )
    rank = [directions(model.end_to_end(unbroken(run).end)) for run in runs.values()]
    error = [abs(rank[0] - directions(model.end_to_end(unbroken(coarse).end)))] + [0.0] * len(listed)
    return xarray.Dataset(
        {
            "rank": ("optimizer", rank),
            "loss": ("optimizer", [float(run.loss[-1]) / zero for run in runs.values()]),
            "code": ("optimizer", [run.status.code for run in runs.values()]),
            "numerical_error": ("optimizer", error),
        },
        {"optimizer": list(runs)},
    )


def _curvature(objective: Objective, theta: Array) -> float:
    """Largest curvature to a few percent, which is all that a step size needs: Lanczos is slow to tell equal ones apart."""
    v = np.random.default_rng(0).standard_normal(objective.size)
    for _ in range(50):
        v = objective.hvp(theta, v / np.linalg.norm(v))
    return float(np.linalg.norm(v))


def _stop(model: Any, problem: Problem, part: float) -> tuple[Callable[[float, Array], bool], float]:
    """Whether the loss has come down to a part of that of the zero map, and the latter."""
    objective = Objective(model, problem)
    zero = objective.loss(np.zeros(model.size))
    return lambda t, theta: objective.loss(theta) <= part * zero, zero


def least_norm_rank(teacher: int, seeds: ArrayLike) -> float:
    """e^ρ of the interpolator of least norm, mean over the seeds."""
    return float(np.mean([directions(Setting(teacher, 1, int(s)).least_norm) for s in np.asarray(seeds)]))


def linear_observations(runs: xarray.Dataset) -> list[Observation]:
    """What the trained linear networks show."""
    ranks, seeds = runs["rank"].mean("seed"), runs.sizes["seed"]
    deepest = int(runs.depth[-1])
    listed = []
    for teacher in TEACHERS:
        for start in STARTS:
            here = ranks.sel(teacher=teacher, start=start)
            ends = ", ".join(f"{o} {float(here.sel(depth=deepest, optimizer=o)):.3g}" for o in OPTIMIZERS[1:])
            flows = here.sel(optimizer="flow")
            path = ", ".join(f"{int(r.depth)}: {float(r):.3g}" for r in flows)
            error = runs.numerical_error.sel(teacher=teacher, start=start, depth=deepest, optimizer="flow")
            listed.append(
                Observation(
                    f"teacher of rank {teacher}, start {start}: e^ρ after training at depth {deepest}, flow",
                    float(flows[-1]), float(error.max()),
                    f"by depth {path}; at the deepest {ends}; least-norm interpolator "
                    f"{least_norm_rank(teacher, runs.seed):.3g}; mean of {seeds} seed(s), error: numerical", REFERENCE,
                )
            )  # fmt: skip
    falls = runs["rank"].diff("depth") < 0
    parts = [
        f"{name} {float(falls.sel({by: name}).mean()):.3g}"
        for by, names in (("start", STARTS), ("optimizer", OPTIMIZERS)) for name in names
    ]  # fmt: skip
    unfinished = _places(runs.code != "stopped")
    which = sorted({f"{p['optimizer']}, {p['start']}, depth {p['depth']}" for p in unfinished})
    listed += [
        Observation(
            "trained linear networks: share of the steps to a larger depth at which the rank falls",
            float(falls.mean()), 0.0,
            f"of {falls.size}, by start and optimiser: {', '.join(parts)}; a count of these runs, which share "
            "their data and starts", REFERENCE,
        ),
        Observation(
            f"trained linear networks: runs that did not come down to a loss of {TRAINED:g} of the zero map's",
            float(len(unfinished)), 0.0,
            f"of {runs.code.size}" + (": " + "; ".join(which) if which else ""), REFERENCE,
        ),
    ]  # fmt: skip
    return listed


def _places(mask: xarray.DataArray) -> list[dict[str, Any]]:
    """The coordinates at which a mask is true."""
    return [
        {str(name): mask[name].values[i] for name, i in zip(mask.dims, place, strict=True)}
        for place in np.argwhere(mask.values)
    ]


# -- over-parametrised ReLU networks ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """Training and test samples, the width of the network and the step size of its descent."""

    name: str
    seed: int

    width = property(lambda self: 32 if self.name == TASKS[0] else 48)
    step_size = property(lambda self: 0.01 if self.name == TASKS[0] else 0.05)

    @cached_property
    def samples(self) -> tuple[Array, Array, Array, Array]:
        """X, Y for training, then for testing: labels of eight ReLU neurons that see two of twenty directions; digits."""
        rng = np.random.default_rng(self.seed)
        if self.name == TASKS[1]:
            x, y = datasets.digits()
            order = rng.permutation(len(x))
            return x[order[:200]], y[order[:200]], x[order[200:]], y[order[200:]]
        seen = np.linalg.qr(rng.standard_normal((20, 2)))[0]
        directions = rng.standard_normal((2, 8))
        directions /= np.linalg.norm(directions, axis=0)
        signs = rng.choice([-1.0, 1.0], (8, 1))
        x = rng.standard_normal((2060, 20))
        y = np.maximum(x @ seen @ directions, 0.0) @ signs
        return x[:60], y[:60], x[60:], y[60:]

    @property
    def problem(self) -> Problem:
        return Problem(*self.samples[:2])

    def model(self, k: int) -> TwoLayerReLU:
        x, y = self.samples[:2]
        return TwoLayerReLU(x.shape[1], self.width, y.shape[1], first_depth=k)

    def start(self, name: str, k: int) -> Array:
        """All k begin as one function, with orthogonal further matrices; or all matrices are N(0, 1/columns)."""
        model = self.model(k)
        if name == RELU_STARTS[0]:
            one = self.model(1).init("balanced", 0.3, rng=self.seed)
            rng = np.random.default_rng(self.seed)
            w, a = self.model(1).unpack(one)
            turns = [np.linalg.qr(rng.standard_normal((self.width, self.width)))[0] for _ in range(k - 1)]
            for turn in turns:
                w = turn.T @ w
            return model.pack([w, *reversed(turns), a])
        rng = np.random.default_rng(self.seed)
        return model.pack([rng.standard_normal(shape) / np.sqrt(shape[1]) for shape in model.shapes])

    def test_error(self, model: TwoLayerReLU, theta: Array) -> float:
        """Mean squared error over that of zero; for the digits the share of wrong ones."""
        _, _, x, y = self.samples
        f = model.function(theta, x)
        if self.name == TASKS[1]:
            return float(np.mean(f.argmax(axis=1) != y.argmax(axis=1)))
        return float(np.sum((f - y) ** 2) / np.sum(y**2))


def overparametrised(size: str, folder: Path, advance: Advance) -> dict[str, xarray.Dataset]:
    """Train ReLU networks with first layers of k matrices, by task: see :func:`train_wide`."""
    axes, settings = RELU[size]
    axes, made = axes | {"start": RELU_STARTS}, {}
    for i, task in enumerate(TASKS):

        def shown(part: float, note: str, done: int = i) -> None:
            advance((done + part) / len(TASKS), note)

        made[task] = _swept(
            train_wide, axes, settings | {"task": task}, folder, _jobs(size), shown, f"ReLU networks, {task}"
        )
    return made


def train_wide(seed: int, k: int, start: str, task: str, all_flows: bool) -> xarray.Dataset:
    """Train one network with a first layer of k matrices by several optimisers.

    Of each: the singular values (``sigma``) and e^ρ (``rank``) of the first layer's product, the error on new samples,
    and how the run ended (``code``).  Where an optimiser was not run: NaN, and ``""``.  Flows are slow here, having
    to step over kinks: all of them are run only if asked for, and on the digits of two seeds and one start at most.
    Their numerical errors (tolerance 1e-4 against 1e-5, regression, seven runs) are up to 0.01 in e^ρ and 0.004 in the
    test error, mostly a hundredth of that.
    """
    what = Task(task, seed)
    model, problem, theta0 = what.model(k), what.problem, what.start(start, k)
    stop, _ = _stop(model, problem, RELU_TRAINED[task])
    runs: dict[str, Trajectory | None] = {
        "momentum": descend(
            model, problem, theta0, what.step_size, 20_000, optimizer="momentum", save_every=50, stop=stop
        ),
        "flow": None,
    }
    small, common = task == TASKS[0], start == RELU_STARTS[0]
    if (small and common) or (all_flows and (small or (common and seed < FLOW_SEEDS))):
        rtol = 1e-4 if small else 1e-3
        runs["flow"] = flow(
            model, problem, theta0, 1e4, rtol=rtol, method="tsit5", events=False, stop=stop, max_steps=50_000
        )
    if task == TASKS[1]:
        runs["Adam"] = descend(
            model, problem, theta0, 1e-3, 10_000, optimizer="adam", save_every=50, stop=stop
        )

    def of(quantity: Callable[[Trajectory], Any], missing: Any) -> list[Any]:
        return [missing if run is None else quantity(unbroken(run)) for run in runs.values()]

    def sigma(run: Trajectory) -> Array:
        return np.asarray(np.linalg.svd(model.first_layer(run.end), compute_uv=False))

    return xarray.Dataset(
        {
            "sigma": (("optimizer", "place"), of(sigma, np.full(min(model.width, model.inputs), np.nan))),
            "rank": ("optimizer", of(lambda run: directions(model.first_layer(run.end)), np.nan)),
            "test_error": ("optimizer", of(lambda run: what.test_error(model, run.end), np.nan)),
            "code": ("optimizer", of(lambda run: run.status.code, "")),
        },
        {"optimizer": list(runs)},
    )


def groups_of(runs: xarray.Dataset) -> list[tuple[str, str, xarray.Dataset]]:
    """Start, optimiser, and their runs over seeds and k; those that were run."""
    listed = []
    for optimizer in runs.optimizer.values:
        for start in runs.start.values:
            mine = runs.sel(start=start, optimizer=optimizer).dropna("seed", subset=["rank"])
            if mine.sizes["seed"]:
                listed.append((str(start), str(optimizer), mine))
    return listed


def relu_observations(runs: dict[str, xarray.Dataset]) -> list[Observation]:
    """What the over-parametrised networks show: changes of rank and test error against k = 1, seed by seed."""
    listed = []
    for task, grid in runs.items():
        for start, optimizer, mine in groups_of(grid):
            ks, count = mine.k.values, mine.sizes["seed"]
            for what, values in (
                ("e^ρ of the first layer", mine["rank"]),
                ("test error", mine.test_error),
            ):
                change = (values.sel(k=ks[-1]) - values.sel(k=ks[0])).values
                mean, error = float(change.mean()), float(change.std(ddof=1) / np.sqrt(count))
                path = ", ".join(f"{int(v.k)}: {float(v):.3g}" for v in values.mean("seed"))
                said = "undecided"
                if abs(mean) > student.ppf(0.975, count - 1) * error:
                    said = "lower" if mean < 0 else "HIGHER, against the paper"
                listed.append(
                    Observation(
                        f"{task}, {optimizer}, start {start}: change of the {what} from k = 1 to {ks[-1]}",
                        mean, error,
                        f"by k {path}; {count} seeds, error: standard error; at 95 % {said}", REFERENCE,
                    )
                )  # fmt: skip
    codes = np.concatenate([grid.code.values.ravel() for grid in runs.values()])
    listed.append(
        Observation(
            "over-parametrised networks: runs that did not come down to the loss asked for",
            float(np.sum((codes != "stopped") & (codes != ""))), 0.0,
            f"of {np.sum(codes != '')}; flows without located kinks", REFERENCE,
        )
    )  # fmt: skip
    return listed
