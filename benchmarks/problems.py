"""The problems of the work-precision diagrams: a network on data, a start, saved times and a reference.

A right-hand side is written once for numpy, JAX and torch alike, as a user of these would write it: the
gradient by hand, on the moments of the data where there are more samples than inputs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import gflow
from gflow.integrate import default_atols
from gflow.objective import Objective

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))  # for the referee

Array = np.ndarray
_MANY_STEPS = 50_000_000


@dataclass(frozen=True, eq=False)
class Task:
    """One problem.

    ``field(xp, constants)`` makes the right-hand side y ↦ −∇L(y) for an array module; ``constants`` are arrays
    of that module.  ``reference`` returns the states (T, P) at ``t`` and their error, as measured.
    """

    name: str
    title: str
    model: Any
    problem: gflow.Problem
    theta0: Array
    t: Array
    constants: dict[str, Array]
    field: Callable[[Any, dict[str, Any]], Callable[[Any], Any]]
    reference: Callable[[Task], tuple[Array, float]]
    rtols: tuple[float, ...]
    errors: tuple[float, ...]
    stiff: bool = False
    kinks: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def objective(self) -> Objective:
        return Objective(self.model, self.problem)

    def atol(self, rtol: float) -> float:
        """gflow's default, for everybody: a thousandth of rtol, of the smallest layer or neuron of the start."""
        return float(default_atols(self.objective, self.theta0[None], rtol)[0])

    def error(self, states: Array, reference: Array) -> float:
        """Largest ‖θ − θ_ref‖ / ‖θ_ref‖ over the saved times after the start; NaN or a wrong shape: inf."""
        if np.shape(states) != reference.shape or not np.all(np.isfinite(states)):
            return np.inf
        gap = np.linalg.norm((states - reference)[1:], axis=1) / np.linalg.norm(reference[1:], axis=1)
        return float(gap.max())


def _split(xp: Any, y: Any, shapes: list[tuple[int, int]]) -> list[Any]:
    ends = np.cumsum([0, *(rows * cols for rows, cols in shapes)])
    return [y[a:b].reshape(shape) for (a, b), shape in zip(pairwise(ends.tolist()), shapes, strict=True)]


def _chain(xp: Any, weights: list[Any], pull: Callable[[Any], Any]) -> Any:
    """−∇L of a product of matrices; ``pull`` gives dL/dW of the product W."""
    below = [weights[0]]
    for w in weights[1:]:
        below.append(w @ below[-1])
    d, parts = pull(below[-1]), []
    for j in range(len(weights) - 1, 0, -1):
        parts.append(-(d @ below[j - 1].T).reshape(-1))
        d = weights[j].T @ d
    parts.append(-d.reshape(-1))
    return xp.concatenate(parts[::-1])


def _deep_linear(shapes: list[tuple[int, int]]) -> Callable[..., Any]:
    def make(xp: Any, c: dict[str, Any]) -> Callable[[Any], Any]:
        return lambda y: _chain(xp, _split(xp, y, shapes), lambda w: w @ c["second"] - c["cross"])

    return make


def _logistic(shapes: list[tuple[int, int]]) -> Callable[..., Any]:
    def make(xp: Any, c: dict[str, Any]) -> Callable[[Any], Any]:
        def pull(w: Any) -> Any:
            margins = c["signed"] @ w.reshape(-1)
            return -((1.0 / (1.0 + xp.exp(margins))) @ c["signed"]).reshape(1, -1) / len(c["signed"])

        return lambda y: _chain(xp, _split(xp, y, shapes), pull)

    return make


def _diagonal_logistic(xp: Any, c: dict[str, Any]) -> Callable[[Any], Any]:
    def right(y: Any) -> Any:
        d = c["signed"].shape[1]
        plus, minus = y[:d], y[d:]
        margins = c["signed"] @ (plus * plus - minus * minus)
        g = -((1.0 / (1.0 + xp.exp(margins))) @ c["signed"]) / len(c["signed"])
        return xp.concatenate([-2.0 * plus * g, 2.0 * minus * g])

    return right


def _relu(m: int, d: int) -> Callable[..., Any]:
    def make(xp: Any, c: dict[str, Any]) -> Callable[[Any], Any]:
        x, labels = c["x"], c["y"]

        def right(y: Any) -> Any:
            w, a = y[: m * d].reshape(m, d), y[m * d :]
            z = w @ x.T
            active = xp.where(z > 0, 1.0, 0.0)
            out = z * active
            dl = (a @ out - labels) / len(x)
            return xp.concatenate([-((a[:, None] * active * dl) @ x).reshape(-1), -(out @ dl)])

        return right

    return make


def _by_gflow(task: Task) -> tuple[Array, float]:
    """DOP853 at rtol 1e-13; its error is the difference from scipy's DOP853 on the numpy right-hand side."""
    from scipy.integrate import solve_ivp

    options = {"rtol": 1e-13, "atol": task.atol(1e-13)}
    ours = gflow.flow(
        task.model, task.problem, task.theta0, task.t, method="dop853", max_steps=_MANY_STEPS, **options
    ).theta
    right = task.field(np, task.constants)
    theirs = solve_ivp(
        lambda _, y: right(y), (0, task.t[-1]), task.theta0, "DOP853", t_eval=task.t, **options
    )
    return ours, task.error(theirs.y.T, ours)


def _by_two_methods(task: Task) -> tuple[Array, float]:
    """DOP853 at rtol 1e-13; its error is the difference from Tsit5 at 1e-12, for runs of many steps."""
    runs = [
        gflow.flow(
            task.model, task.problem, task.theta0, task.t, method=method, rtol=rtol,
            atol=task.atol(rtol), max_steps=_MANY_STEPS,
        ).theta
        for method, rtol in (("dop853", 1e-13), ("tsit5", 1e-12))
    ]  # fmt: skip
    return runs[0], task.error(runs[1], runs[0])


def _in_log_time(task: Task) -> tuple[Array, float]:
    """scipy's DOP853 in log(1 + t), where these flows are not stiff, at rtol 1e-13; error against 1e-12."""
    from scipy.integrate import solve_ivp

    right = task.field(np, task.constants)
    s = np.log1p(task.t)
    runs = [
        solve_ivp(
            lambda s, y: np.exp(s) * right(y), (0, s[-1]), task.theta0, "DOP853", t_eval=s,
            rtol=rtol, atol=task.atol(rtol),
        ).y.T
        for rtol in (1e-13, 1e-12)
    ]  # fmt: skip
    return runs[0], task.error(runs[1], runs[0])


def _by_referee(task: Task) -> tuple[Array, float]:
    """The tests' referee (scipy between events, modes by enumeration) at 1e-12; error against 1e-10."""
    from relu_referee import solve

    w, a = task.model.unpack(task.theta0)
    t = task.t[1:]
    states = []
    for rtol in (1e-12, 1e-10):
        run = solve(w, a, task.problem.X, task.problem.Y, t[-1], saves=t[:-1], rtol=rtol)
        rows = np.concatenate([run.W.reshape(len(t), -1), run.A.reshape(len(t), -1)], axis=1)
        states.append(np.vstack([task.theta0, rows]))
    return states[0], task.error(states[1], states[0])


_FINE = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11, 1e-12)


def _linear(
    name: str, title: str, widths: tuple[int, ...], problem: gflow.Problem, theta0: Array, t: Array,
    reference: Callable[[Task], tuple[Array, float]], errors: tuple[float, ...], **more: Any,
) -> Task:  # fmt: skip
    model = gflow.DeepLinear(widths)
    if problem.kind == "factorization":
        constants = {"second": np.eye(widths[0]), "cross": problem.Y}
    else:
        scale = 2.0 * float(problem.factor or 0.0)
        constants = {"second": scale * problem.second_moment, "cross": scale * problem.cross_moment}
    rtols = more.pop("rtols", _FINE)
    return Task(
        name, title, model, problem, theta0, t, constants, _deep_linear(list(model.shapes)),
        reference, rtols, errors, **more,
    )  # fmt: skip


def scalar() -> Task:
    def exact(task: Task) -> tuple[Array, float]:
        u = 1.0 / (1.0 + (1e6 - 1.0) * np.exp(-2.0 * task.t))
        return np.repeat(np.sqrt(u)[:, None], 2, axis=1), 1e-15

    problem = gflow.Problem.factorization([[1.0]])
    t, start = np.linspace(0.0, 20.0, 11), np.full(2, 1e-3)
    title = "(a) ½(ab − 1)² from 1e-3 to t = 20"
    return _linear("a", title, (1, 1, 1), problem, start, t, exact, (1e-4, 1e-6, 1e-8, 1e-10, 1e-12))


def _diagonal(xp: Any, c: dict[str, Any]) -> Callable[[Any], Any]:
    def right(y: Any) -> Any:
        d = c["x"].shape[1]
        plus, minus = y[:d], y[d:]
        g = c["scale"] * ((c["x"] @ (plus * plus - minus * minus) - c["y"]) @ c["x"])
        return xp.concatenate([-2.0 * plus * g, 2.0 * minus * g])

    return right


def sparse(samples: int, size: int, alpha: float, end: float) -> Task:
    """Noiseless regression on Gaussian samples, five coordinates of ±1."""
    rng = np.random.default_rng(0)
    x, beta = rng.standard_normal((samples, size)), np.zeros(size)
    beta[:5] = rng.choice([-1.0, 1.0], 5)
    factor = 0.25 / samples
    model, problem = gflow.Diagonal(size), gflow.Problem(x, x @ beta, factor=factor)
    constants = {"x": x, "y": x @ beta, "scale": np.array(2.0 * factor)}
    times = np.linspace(0.0, end, 11) if end < 1e3 else np.concatenate([[0.0], np.geomspace(1e2, end, 9)])
    title = f"(b) diagonal network w₊² − w₋², 5 of {size} coordinates, {samples} samples, from {alpha:g} to t = {end:g}"
    return Task(
        "b" if size == 100 else f"b{size}", title, model, problem, model.init(scale=alpha),
        times, constants, _diagonal, _by_gflow if size == 100 else _by_two_methods,
        (1e-3, *_FINE[:7]), (1e-4, 1e-6, 1e-8), stiff=True,
    )  # fmt: skip


def digits() -> Task:
    problem = gflow.Problem(*gflow.datasets.digits())
    widths = (64, 32, 32, 10)
    theta0 = gflow.DeepLinear(widths).init("gaussian", 1e-2, rng=0)
    title = "(c) digits, 64-32-32-10 from std 1e-2 to t = 200"
    return _linear(
        "c", title, widths, problem, theta0, np.linspace(0.0, 200.0, 21), _by_gflow, (1e-4, 1e-6, 1e-8, 1e-10)
    )


def ill_conditioned(size: int) -> Task:
    """Inputs whose second moment has eigenvalues from 1 to 1e-5, labels of a random linear teacher."""
    rng = np.random.default_rng(0)
    left = np.linalg.qr(rng.standard_normal((4 * size, size)))[0]
    right = np.linalg.qr(rng.standard_normal((size, size)))[0]
    x = np.sqrt(4 * size) * (left * np.geomspace(1.0, 1e-5, size) ** 0.5) @ right.T
    y = x @ rng.standard_normal((size, size)) / np.sqrt(size)
    widths = (size, size, size)
    theta0 = gflow.DeepLinear(widths).init("gaussian", 0.3 / np.sqrt(size), rng=1)
    t = np.concatenate([[0.0], np.geomspace(1.0, 1e4, 9)])
    title = f"(d) two layers {size} × {size}, data of condition 1e5, to t = 1e4"
    return _linear(
        f"d{size}", title, widths, gflow.Problem(x, y), theta0, t, _by_two_methods, (1e-4, 1e-6, 1e-8),
        stiff=True, rtols=(1e-3, *_FINE[:7]),
    )  # fmt: skip


def _relu_task(name: str, title: str, x: Array, y: Array, theta0: Array, t: Array) -> Task:
    d, m = x.shape[1], theta0.size // (x.shape[1] + 1)
    return Task(
        name, title, gflow.TwoLayerReLU(d, m), gflow.Problem(x, y), theta0, t, {"x": x, "y": y},
        _relu(m, d), _by_referee, (1e-3, *_FINE[:8]), (1e-4, 1e-6, 1e-8), kinks=True,
    )  # fmt: skip


def relu_wide() -> Task:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 5))
    y = x @ rng.standard_normal(5) + 2.0 * rng.standard_normal(50)
    theta0 = gflow.TwoLayerReLU(5, 64).init("balanced", scale=0.3, rng=0)
    title = "(e) ReLU, 64 neurons, 50 samples, 5 dimensions to t = 16"
    return _relu_task("e64", title, x, y, theta0, np.linspace(0.0, 16.0, 9))


def relu_small() -> Task:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((10, 3))
    y = x @ rng.standard_normal(3) + 0.5 * rng.standard_normal(10)
    w = 0.3 * rng.standard_normal((12, 3))
    a = np.linalg.norm(w, axis=1) * rng.choice([-1.0, 1.0], 12)
    title = "(e) ReLU, 12 neurons, 10 samples, 3 dimensions to t = 60"
    return _relu_task("e12", title, x, y, np.concatenate([w.ravel(), a]), np.linspace(0.0, 60.0, 11))


def separable(name: str) -> Task:
    """20 points in 5 dimensions with margin; states at twelve values of the loss, the last 1e-12."""
    x, y = gflow.datasets.linear_teacher(20, 5, rng=0, margin=0.3)
    signed = x * np.sign(y)
    constants = {"signed": signed}
    model: Any
    if name == "fdiag":
        what, model = "diagonal network w₊² − w₋²", gflow.Diagonal(5)
        theta0, make = model.init(scale=0.1), _diagonal_logistic
    else:
        what, widths = ("deep linear 5-4-1", (5, 4, 1)) if name == "fdeep" else ("linear predictor", (5, 1))
        model = gflow.DeepLinear(widths)
        theta0 = model.init("balanced", 0.5, rng=0) if name == "fdeep" else np.zeros(model.size)
        make = _logistic(list(model.shapes))
    right = make(np, constants)

    def level(theta: Array) -> float:  # log(1/L)
        margins = signed @ (
            theta[:5] ** 2 - theta[5:] ** 2 if name == "fdiag" else _product(theta, list(model.shapes))
        )
        return -float(np.log(np.mean(np.log1p(np.exp(-margins)))))

    levels = np.linspace(level(theta0) + 0.5, 12.0 * np.log(10.0), 12)
    return Task(
        name, f"(f) separable logistic, {what}, to loss 1e-12", model,
        gflow.Problem(x, np.sign(y), loss="logistic"), theta0, _times_of(right, theta0, level, levels),
        constants, make, _in_log_time, (1e-2, 1e-3, *_FINE[:7]), (1e-4, 1e-6, 1e-8), stiff=True,
        options={"levels": levels},
    )  # fmt: skip


def _product(theta: Array, shapes: list[tuple[int, int]]) -> Array:
    weights = _split(np, theta, shapes)
    product = weights[0]
    for w in weights[1:]:
        product = w @ product
    return product.ravel()


def _times_of(right: Any, theta0: Array, level: Callable[[Array], float], levels: Array) -> Array:
    """0 and the times at which log(1/L) passes the levels, by scipy in log(1 + t)."""
    from scipy.integrate import solve_ivp
    from scipy.optimize import brentq

    run = solve_ivp(
        lambda s, y: np.exp(s) * right(y), (0.0, 60.0), theta0, "DOP853", rtol=1e-13, atol=1e-16,
        dense_output=True, events=_crossing(level, levels[-1]),
    )  # fmt: skip
    passed = [brentq(lambda s, v=v: level(run.sol(s)) - v, 0.0, run.t[-1], xtol=1e-15) for v in levels]
    return np.concatenate([[0.0], np.expm1(passed)])


def _crossing(level: Callable[[Array], float], value: float) -> Callable[[float, Array], float]:
    def crossing(s: float, y: Array) -> float:
        return level(y) - value - 1e-3

    crossing.terminal = True  # type: ignore[attr-defined]
    return crossing


TASKS: dict[str, Callable[[], Task]] = {
    "a": scalar,
    "b": lambda: sparse(40, 100, 1e-3, 300.0),
    "b1000": lambda: sparse(100, 1000, 1e-4, 1.8e5),
    "c": digits,
    "d16": lambda: ill_conditioned(16),
    "d50": lambda: ill_conditioned(50),
    "e64": relu_wide,
    "e12": relu_small,
    "f": lambda: separable("f"),
    "fdeep": lambda: separable("fdeep"),
    "fdiag": lambda: separable("fdiag"),
}
