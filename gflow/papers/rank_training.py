"""Rank after training against depth: the runs of `huh2021`, linear networks and over-parametrised ReLU networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow import datasets, observe
from gflow.claims import Observation
from gflow.integrate import flow
from gflow.iterate import descend
from gflow.models.linear import DeepLinear
from gflow.models.relu import TwoLayerReLU
from gflow.objective import Objective
from gflow.papers import unbroken
from gflow.problem import Problem
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


def entropy(matrix: ArrayLike) -> float:
    """ρ of a matrix, in nats."""
    return observe.effective_ranks(matrix)["entropy"]


def fraction(weights: Array) -> Array:
    """e^ρ / n (...) of non-negative weights (..., n)."""
    p = weights / weights.sum(axis=-1, keepdims=True)
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    return np.asarray(np.exp(-np.sum(p * logs, axis=-1)) / weights.shape[-1])


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


@dataclass(frozen=True, eq=False)
class Trained:
    """One trained network."""

    setting: Setting
    start: str
    optimizer: str
    rank: float  # ρ of W at the end
    loss: float  # over that of the zero map
    code: str  # how the run ended
    reached: bool  # whether the loss came down to what was asked
    error: float = 0.0  # of e^ρ, of a flow: its difference from a run at a hundred times its tolerance


def least_squares(size: str, advance: Advance) -> list[Trained]:
    """Train linear networks of several depths from several starts by flow and descents."""
    depths = (1, 2, 4, 8) if size == "quick" else (1, 2, 3, 4, 6, 8)
    seeds, steps = (1, 10_000) if size == "quick" else (2, 40_000)
    made = []
    settings = [Setting(r, d, s) for s in range(seeds) for r in TEACHERS for d in depths]
    for i, setting in enumerate(settings):
        advance(i / len(settings), f"linear, depth {setting.depth}, teacher of rank {setting.teacher}")
        for start in STARTS:
            made += _train(setting, start, steps)
    return made


def _train(setting: Setting, start: str, steps: int) -> list[Trained]:
    model, problem, theta0 = setting.model, setting.problem, setting.start(start)
    stop, zero = _stop(model, problem, TRAINED)
    coarse, exact = (
        flow(model, problem, theta0, 1e6, rtol=rtol, stop=stop, max_steps=100_000) for rtol in (1e-7, 1e-9)
    )
    other = np.exp(entropy(model.end_to_end(unbroken(coarse).end)))
    steepest = max(_curvature(Objective(model, problem), theta) for theta in (theta0, exact.end))
    runs: dict[str, Trajectory] = {"flow": exact}
    listed: list[tuple[str, float, int, dict[str, Any]]] = [
        ("gradient descent", 1.0 / steepest, steps, {}),
        ("SGD", 0.2 / steepest, 3 * steps, {"batch_size": 2, "rng": setting.seed}),
        ("momentum", 0.5 / steepest, steps, {"optimizer": "momentum"}),
        ("Adam", 2e-3, steps, {"optimizer": "adam"}),
    ]
    for name, step_size, count, options in listed:
        runs[name] = descend(
            model, problem, theta0, step_size, count, save_every=count // 400, stop=stop, **options
        )
    made = []
    for name, run in runs.items():
        rank = entropy(model.end_to_end(unbroken(run).end))
        error = abs(float(np.exp(rank) - other)) if name == "flow" else 0.0
        made.append(
            Trained(
                setting, start, name, rank, float(run.loss[-1]) / zero, run.status.code,
                run.status.code == "stopped", error,
            )
        )  # fmt: skip
    return made


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


def mean_rank(
    runs: list[Trained], teacher: int, start: str, optimizer: str, depth: int
) -> tuple[float, bool]:
    """e^ρ, mean over the seeds, and whether all of them were trained to the end."""
    mine = [
        r for r in runs
        if (r.setting.teacher, r.start, r.optimizer, r.setting.depth) == (teacher, start, optimizer, depth)
    ]  # fmt: skip
    return float(np.mean([np.exp(r.rank) for r in mine])), all(r.reached for r in mine)


def depths_of(runs: list[Trained]) -> list[int]:
    return sorted({r.setting.depth for r in runs})


def linear_observations(runs: list[Trained]) -> list[Observation]:
    """What the trained linear networks show."""
    depths, seeds = depths_of(runs), len({r.setting.seed for r in runs})
    listed = []
    for teacher in TEACHERS:
        least = np.mean([np.exp(entropy(Setting(teacher, 1, s).least_norm)) for s in range(seeds)])
        for start in STARTS:
            ranks = {o: [mean_rank(runs, teacher, start, o, d)[0] for d in depths] for o in OPTIMIZERS}
            ends = ", ".join(f"{o} {values[-1]:.3g}" for o, values in ranks.items() if o != "flow")
            path = ", ".join(f"{d}: {value:.3g}" for d, value in zip(depths, ranks["flow"], strict=True))
            error = max(
                r.error for r in runs
                if (r.setting.teacher, r.start, r.setting.depth) == (teacher, start, depths[-1])
            )  # fmt: skip
            listed.append(
                Observation(
                    f"teacher of rank {teacher}, start {start}: e^ρ after training at depth {depths[-1]}, flow",
                    ranks["flow"][-1], error,
                    f"by depth {path}; at the deepest {ends}; least-norm interpolator {least:.3g}; {seeds} seed(s)",
                    REFERENCE,
                )
            )  # fmt: skip
    groups = [(t, s, o, k) for t in TEACHERS for s in STARTS for o in OPTIMIZERS for k in range(seeds)]
    falls = []
    for teacher, start, optimizer, seed in groups:
        ranks_here = [
            r.rank for d in depths for r in runs
            if (r.setting, r.start, r.optimizer) == (Setting(teacher, d, seed), start, optimizer)
        ]  # fmt: skip
        falls.append([b < a for a, b in zip(ranks_here[:-1], ranks_here[1:], strict=True)])
    share = np.array(falls, dtype=np.float64)
    parts = [
        f"{name} {np.mean([f for f, g in zip(falls, groups, strict=True) if g[place] == name]):.3g}"
        for place, names in ((1, STARTS), (2, OPTIMIZERS)) for name in names
    ]  # fmt: skip
    unfinished = [r for r in runs if not r.reached]
    which = sorted({f"{r.optimizer}, {r.start}, depth {r.setting.depth}" for r in unfinished})
    listed += [
        Observation(
            "trained linear networks: share of the steps to a larger depth at which the rank falls",
            float(share.mean()), float(np.sqrt(0.25 / share.size)), "by start and optimiser: " + ", ".join(parts), REFERENCE,
        ),
        Observation(
            f"trained linear networks: runs that did not come down to a loss of {TRAINED:g} of the zero map's",
            float(len(unfinished)), 0.0, f"of {len(runs)}" + (": " + "; ".join(which) if which else ""), REFERENCE,
        ),
    ]  # fmt: skip
    return listed


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


@dataclass(frozen=True, eq=False)
class Wide:
    """One trained network with a first layer of k matrices."""

    task: Task
    start: str
    optimizer: str
    k: int
    sigma: Array  # singular values of the first layer's product
    rank: float  # its ρ
    test_error: float
    reached: bool


def overparametrised(size: str, advance: Advance) -> list[Wide]:
    """Train ReLU networks with first layers of k matrices."""
    ks = (1, 2, 4) if size == "quick" else (1, 2, 3, 4, 6)
    seeds = 2 if size == "quick" else 8
    made = []
    tasks = [Task(name, seed) for seed in range(seeds) for name in TASKS]
    for i, task in enumerate(tasks):
        advance(i / len(tasks), f"ReLU networks, {task.name}")
        for start in RELU_STARTS:
            for k in ks:
                also_flow = task.name == TASKS[0] or (
                    size == "full" and start == RELU_STARTS[0] and task.seed < 2
                )
                made += _train_wide(task, start, k, also_flow)
    return made


def _train_wide(task: Task, start: str, k: int, also_flow: bool) -> list[Wide]:
    model, problem, theta0 = task.model(k), task.problem, task.start(start, k)
    stop, _ = _stop(model, problem, RELU_TRAINED[task.name])
    runs = {
        "momentum": descend(
            model, problem, theta0, task.step_size, 20_000, optimizer="momentum", save_every=50, stop=stop
        )
    }
    if also_flow:
        runs["flow"] = flow(
            model,
            problem,
            theta0,
            1e4,
            rtol=1e-4 if task.name == TASKS[0] else 1e-3,
            method="tsit5",
            events=False,
            stop=stop,
            max_steps=50_000,
        )
    if task.name == TASKS[1]:
        runs["Adam"] = descend(
            model, problem, theta0, 1e-3, 10_000, optimizer="adam", save_every=50, stop=stop
        )
    made = []
    for name, run in runs.items():
        w = model.first_layer(unbroken(run).end)
        made.append(
            Wide(
                task, start, name, k, np.asarray(np.linalg.svd(w, compute_uv=False), dtype=np.float64),
                entropy(w),
                task.test_error(model, run.end), run.status.code == "stopped",
            )
        )  # fmt: skip
    return made


def ks_of(runs: list[Wide]) -> list[int]:
    return sorted({r.k for r in runs})


def table(runs: list[Wide], task: str, start: str, optimizer: str, of: str) -> Array:
    """e^ρ (``of="rank"``) or the test error, (seeds, ks)."""
    mine = [r for r in runs if (r.task.name, r.start, r.optimizer) == (task, start, optimizer)]
    ks, seeds = ks_of(runs), sorted({r.task.seed for r in mine})
    out = np.empty((len(seeds), len(ks)))
    for r in mine:
        out[seeds.index(r.task.seed), ks.index(r.k)] = np.exp(r.rank) if of == "rank" else r.test_error
    return out


def groups_of(runs: list[Wide], task: str) -> list[tuple[str, str]]:
    """Pairs of start and optimiser that were run on a task."""
    return sorted({(r.start, r.optimizer) for r in runs if r.task.name == task}, key=lambda g: (g[1], g[0]))


def relu_observations(runs: list[Wide]) -> list[Observation]:
    """What the over-parametrised networks show: changes of rank and test error against k = 1, seed by seed."""
    ks = ks_of(runs)
    listed = []
    for task in TASKS:
        for start, optimizer in groups_of(runs, task):
            for of, what in (("rank", "e^ρ of the first layer"), ("error", "test error")):
                values = table(runs, task, start, optimizer, of)
                change = values[:, -1] - values[:, 0]
                error = change.std(ddof=1) / np.sqrt(len(change))
                path = ", ".join(f"{k}: {v:.3g}" for k, v in zip(ks, values.mean(axis=0), strict=True))
                verdict = ""
                if of == "error":
                    better = change.mean() < -2 * error
                    worse = change.mean() > 2 * error
                    verdict = (
                        "; lower"
                        if better
                        else "; HIGHER: the paper's gain fails here"
                        if worse
                        else "; undecided"
                    )
                listed.append(
                    Observation(
                        f"{task}, {optimizer}, start {start}: change of the {what} from k = 1 to {ks[-1]}",
                        float(change.mean()), float(error),
                        f"by k {path}; {len(change)} seeds, error: standard error{verdict}", REFERENCE,
                    )
                )  # fmt: skip
    short = [r for r in runs if not r.reached]
    listed.append(
        Observation(
            "over-parametrised networks: runs that did not come down to the loss asked for", float(len(short)), 0.0,
            f"of {len(runs)}; flows without located kinks", REFERENCE,
        )
    )  # fmt: skip
    return listed
