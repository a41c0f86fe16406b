"""S. Pesme, L. Pillaud-Vivien, N. Flammarion: Implicit bias of SGD for diagonal linear networks (2021), arXiv 2106.09524.

The paper's network is w₊² − w₋² from w₊ = w₋ = α, its loss 1/(4n) Σ (⟨β, x_i⟩ − y_i)²: that factor here, and time in step
sizes of SGD on single samples.  Where a path of its stochastic gradient flow converges to an interpolator, that is the one
to which gradient flow leads from α_∞ = α exp(−2 γ diag(XᵀX/n) ∫ L dt), smaller than α: exact on every path, and
so are the paths' own logarithms of √(w₊ w₋).  That a path converges with high probability below some step size is the
paper's theorem too, but with an unknown constant: here it is a measured hypothesis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from gflow import plot, theory
from gflow.claims import Claim, Conclusion, Evidence, Observation
from gflow.ensembles import ensemble
from gflow.integrate import flow
from gflow.iterate import descend
from gflow.models.diagonal import Diagonal
from gflow.papers import settle
from gflow.problem import Problem
from gflow.report import Plate, Section, observation_row
from gflow.stochastic import stochastic_flow
from gflow.theory.prediction import Hypothesis
from gflow.trajectory import Trajectory

Array = NDArray[np.float64]

REFERENCE = "arXiv 2106.09524"
#: A step size γ at which the noise tells, below the one (about 0.15) at which SGD diverges here.
STEP = 0.1
#: What "the same limit" means, relative to the largest coordinate; and for the logarithms of √(w₊ w₋).
LIMITS, LOGARITHMS = 1e-6, 1e-10
#: When a path is looked at for the first time, and the last one: paths that converge have done so by then.
FIRST, LATEST = 500.0, 2e4


@dataclass(frozen=True)
class SetUp:
    """Sparse regression with Gaussian inputs; ``noise`` is the labels' standard deviation."""

    samples: int = 40
    inputs: int = 100
    noise: float = 0.0
    shaped: bool = False
    step_size: float = STEP

    @cached_property
    def target(self) -> Array:
        beta = np.zeros(self.inputs)
        beta[:5] = [1.0, -1.0, 1.0, -1.0, 1.0]
        return beta

    @cached_property
    def problem(self) -> Problem:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((self.samples, self.inputs))
        y = x @ self.target + self.noise * rng.standard_normal(self.samples)
        return Problem(x, y, factor=1 / (4 * self.samples))

    @property
    def model(self) -> Diagonal:
        return Diagonal(self.inputs)

    @property
    def alpha(self) -> Array:
        return np.geomspace(0.05, 0.2, self.inputs) if self.shaped else np.full(self.inputs, 0.1)

    @property
    def theta0(self) -> Array:
        return self.model.init(scale=self.alpha)

    def residual(self, theta: Array) -> float:
        """‖X β − y‖ / ‖y‖."""
        off = self.problem.X @ self.model.predictor(theta) - self.problem.Y[:, 0]
        return float(np.linalg.norm(off) / np.linalg.norm(self.problem.Y))

    def path(self, seed: int, residual: float, latest: float = LATEST) -> Trajectory:
        """A path of the stochastic flow until its residual has fallen to ``residual``, or the latest time."""
        common = (self.model, self.problem)
        end = min(FIRST, latest)
        path = stochastic_flow(*common, self.theta0, end, self.step_size, rng=seed)
        while path.status.code == "finished" and end < latest and self.residual(path.end) > residual:
            end = min(1.3 * end, latest)
            path = stochastic_flow(*common, None, end, self.step_size, start=path)
        return path

    def flow(self, alpha: Array, rtol: float, times: Array | None = None) -> Trajectory:
        """Gradient flow from another α, up to its limit."""
        t = np.inf if times is None else np.append(times, np.inf)
        return flow(self.model, self.problem, self.model.init(scale=alpha), t, coords="log", rtol=rtol)

    def recovery(self, theta: Array) -> Array:
        """‖β − β*‖² (...,) of parameters (..., P)."""
        found: Array = np.sum((self.model.predictor(theta) - self.target) ** 2, axis=-1)
        return found


def ends(
    setup: SetUp, paths: int, rtol: float, respect_hypotheses: bool = True, latest: float = LATEST, counted: float = 1.0
) -> Evidence:  # fmt: skip
    """Measure where paths end against what the integral of their loss says, ``counted`` of it.

    The paths do not depend on ``rtol``, but on how far they are followed: until the residual is so small.
    """
    model, problem, start = setup.model, setup.problem, setup.theta0
    hypotheses: list[Hypothesis] = []
    worst: dict[str, float] = {}
    statuses = []
    for seed in range(paths):
        path = setup.path(seed, rtol, latest)
        integral = counted * float(path["loss_integral"][-1])
        found = theory.effective.noise_limit(
            model, problem, start, integral, setup.step_size, float(path.loss[-1]), force=True
        )
        *others, converged = found.hypotheses
        measured = (*others, replace(converged, tolerance=rtol))  # as far as the path was to be followed
        hypotheses = [
            max(pair, key=lambda h: h.defect) for pair in zip(hypotheses or measured, measured, strict=True)
        ]
        if respect_hypotheses and not all(h.holds for h in hypotheses):
            return Evidence(tuple(hypotheses), statuses=(path.status,))
        alpha = theory.effective.noise_start(model, problem, start, integral, setup.step_size).log_alpha
        logs = np.mean(model.unpack(path.log_theta[-1]), axis=0) if path.log_theta is not None else np.nan
        beta, predicted = model.predictor(path.end), found.predict(np.inf)[0, 0]
        run = setup.flow(np.exp(alpha), rtol)
        size = float(np.abs(beta).max())
        distances = {
            "log √(w₊ w₋) against log α_∞": (float(np.max(np.abs(logs - alpha))), LOGARITHMS),
            "end of the path against argmin Q at α_∞, relative": (np.abs(beta - predicted).max() / size, LIMITS),
            "end of the path against the end of the flow from α_∞, relative": (
                np.abs(beta - model.predictor(run.end)).max() / size, LIMITS,
            ),
        }  # fmt: skip
        worst = {name: max(worst.get(name, 0.0), float(value)) for name, (value, _) in distances.items()}
        bounds = {name: bound for name, (_, bound) in distances.items()}
        statuses += [path.status, run.status]
    conclusions = tuple(Conclusion(name, value, bounds[name]) for name, value in worst.items())
    return Evidence(tuple(hypotheses) if respect_hypotheses else (), conclusions, tuple(statuses))


def claims(size: str) -> list[tuple[Claim, str]]:
    """Claims, each with the verdict that it must get."""
    statement = "Stochastic gradient flow ends where gradient flow from α_∞ does, α_∞ = α exp(−2 γ diag(XᵀX/n) ∫ L dt)."
    paths = 2 if size == "quick" else 8
    plain = SetUp()

    def claim(name: str, run: Callable[[float], Evidence], expected: str) -> tuple[Claim, str]:
        return Claim(name, statement, REFERENCE, run), expected

    short = partial(ends, plain, 1, latest=100.0)
    return [
        claim(f"{paths} paths", partial(ends, plain, paths), "holds"),
        claim("small steps", partial(ends, replace(plain, step_size=0.02), 1), "holds"),
        claim("start of another shape", partial(ends, replace(plain, shaped=True, step_size=0.05), paths // 2), "holds"),
        claim("control: path cut short", short, "inapplicable"),
        claim(
            "control: path cut short, hypothesis ignored", partial(short, respect_hypotheses=False), "violated"
        ),
        claim(
            "control: noisy labels, fewer inputs than samples",
            partial(ends, replace(plain, inputs=20, noise=0.5), 1, latest=100.0), "inapplicable",
        ),
        claim("control: noise not counted", partial(ends, plain, 1, counted=0.0), "violated"),
        claim("control: half of it counted", partial(ends, plain, 1, counted=0.5), "violated"),
    ]  # fmt: skip


# ---- what is not a theorem: SGD itself, and how sparse it gets -----------------------------------------------


@dataclass(frozen=True)
class Sweep:
    """Ends of stochastic flow and of SGD against step size, each (G, R): mean of log(α_∞/α), and ‖β − β*‖²."""

    step_sizes: Array
    shifts: dict[str, Array]
    recoveries: dict[str, Array]

    def mean(self, values: Array) -> tuple[Array, Array]:
        """Means (G,) over the runs and their standard errors."""
        return values.mean(axis=1), values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])


def sweep(setup: SetUp, step_sizes: Array, runs: int, end: float) -> Sweep:
    """Both processes over step sizes, from the same start, up to the time ``end``."""
    shifts: dict[str, list[Array]] = {"stochastic flow": [], "SGD": []}
    recoveries: dict[str, list[Array]] = {"stochastic flow": [], "SGD": []}
    for gamma in step_sizes:
        common: dict[str, Any] = {"step_size": float(gamma), "rng": range(runs)}
        steps = round(end / gamma)
        both = {
            "stochastic flow": ensemble(setup.model, setup.problem, setup.theta0, [end], **common),
            "SGD": ensemble(
                setup.model,
                setup.problem,
                setup.theta0,
                n_steps=steps,
                save_every=steps,
                batch_size=1,
                replacement=True,
                **common,
            ),
        }
        for name, many in both.items():
            last = many.theta[:, -1]
            logs = np.log(np.abs(np.prod(list(setup.model.unpack(last)), axis=0))) / 2
            shifts[name].append(np.mean(logs - np.log(setup.alpha), axis=1))
            recoveries[name].append(setup.recovery(last))
    pack = [{name: np.array(rows) for name, rows in table.items()} for table in (shifts, recoveries)]
    return Sweep(np.asarray(step_sizes), *pack)


@dataclass(frozen=True)
class Runs:
    """The five runs of the figures, and α_∞ of the stochastic flow and by SGD's own losses."""

    flow: Trajectory
    descent: Trajectory
    sgd: Trajectory
    noisy: Trajectory
    effective: Trajectory
    effective_sgd: Trajectory


def runs(setup: SetUp, end: float = 2000.0) -> Runs:
    """Flow, GD, SGD, stochastic flow, and the flows from the α_∞ that the last two have."""
    model, problem, start = setup.model, setup.problem, setup.theta0
    gamma, steps = setup.step_size, round(end / setup.step_size)
    times = np.union1d(np.geomspace(0.1, end, 150), np.linspace(0.0, end, 51))
    whole = np.unique(np.rint(times / gamma)) * gamma

    def from_integral(integral: float) -> Trajectory:
        effective = theory.effective.noise_start(model, problem, start, integral, gamma)
        return setup.flow(np.exp(effective.log_alpha), 1e-9, times)

    noisy = stochastic_flow(model, problem, start, whole, gamma, rng=0)
    sgd = descend(model, problem, start, gamma, steps, batch_size=1, replacement=True, rng=0)
    return Runs(
        setup.flow(setup.alpha, 1e-9, times),
        descend(model, problem, start, gamma, steps),
        sgd,
        noisy,
        from_integral(float(noisy["loss_integral"][-1])),
        from_integral(float(gamma * sgd.loss[:-1].sum())),
    )


def observations(setup: SetUp, made: Runs, swept: Sweep) -> list[Observation]:
    """How well the sparse target is recovered, and how close SGD is to its model."""
    place = int(np.argmin(np.abs(swept.step_sizes - setup.step_size)))
    found = []

    def say(name: str, value: Any, error: Any, note: str = "") -> None:
        found.append(Observation(name, float(value), float(error), note, REFERENCE))

    fine = setup.flow(setup.alpha, 1e-11).end
    plain = float(setup.recovery(made.flow.end))
    say("‖β − β*‖²: gradient flow", plain, abs(plain - float(setup.recovery(fine))))
    residual = setup.residual(made.descent.end)
    say(
        f"‖β − β*‖²: GD, γ = {setup.step_size:g}",
        setup.recovery(made.descent.end),
        residual,
        "error: its residual",
    )
    runs_of = f"mean of {swept.recoveries['SGD'].shape[1]} runs and its standard error"
    for name, values in swept.recoveries.items():
        mean, error = swept.mean(values)
        say(f"‖β − β*‖²: {name}, γ = {setup.step_size:g}", mean[place], error[place], runs_of)
    for name, values in swept.shifts.items():
        mean, error = swept.mean(values)
        say(f"mean log √(w₊ w₋) / α: {name}, γ = {setup.step_size:g}", mean[place], error[place], runs_of)
    beta = setup.model.predictor(made.sgd.end)
    for name, other in (("α_∞ by its own losses", made.effective_sgd), ("α", made.flow)):
        off = np.linalg.norm(setup.model.predictor(other.end) - beta) / np.linalg.norm(beta)
        residual = setup.residual(made.sgd.end)
        say(
            f"end of SGD against the flow from {name}, relative in ℓ2",
            off,
            residual,
            "one run; error: its residual",
        )
    return found


def reproduce(out: Path, size: str, advance: Callable[[float, str], None]) -> Section:
    """Check the claims and draw the figures."""
    section = Section(
        "pesme2021",
        "Implicit bias of SGD for diagonal linear networks: a provable benefit of stochasticity",
        "S. Pesme, L. Pillaud-Vivien, N. Flammarion (2021), arXiv 2106.09524.",
        "Sparse regression (40 samples, 100 inputs, 5 of them relevant) with a diagonal network w₊² − w₋² from α = 0.1. "
        "The noise of SGD with single samples, modelled by a stochastic differential equation, shrinks the start: the flow with "
        "noise ends where gradient flow from a smaller α_∞ does, closer to the sparse target. On every path that converges this is "
        "exact; for SGD itself it is an approximation, measured here.",
    )
    setup = SetUp()
    settle(section, claims(size), advance, 0.6, rtol=1e-10)
    advance(0.6, "SGD and stochastic flow over step sizes")
    sizes = (
        np.array([0.01, 0.025, 0.05, 0.1])
        if size == "quick"
        else np.array([0.01, 0.02, 0.03, 0.05, 0.07, 0.085, 0.1])
    )
    swept = sweep(setup, sizes, 8 if size == "quick" else 24, 2500.0)
    advance(0.8, "runs of the figures")
    made = runs(setup)
    section.rows += [observation_row(one) for one in observations(setup, made, swept)]
    advance(0.9, "figures")
    with plot.style():
        section.plates += [_runs_plate(out, setup, made), _limits_plate(out, setup, made, swept)]
    advance(1.0, "done")
    return section


_NAMES = ("gradient flow", "GD", "SGD", "stochastic flow", "flow from $\\alpha_\\infty$")
_COLORS = ("black", "C5", "C4", "C1", "C2")


def _runs_plate(out: Path, setup: SetUp, made: Runs) -> Plate:
    fig, (left, middle, right) = plot.figure(1, 3, height=2.1)
    for run, name, color in zip(
        (made.sgd, made.noisy, made.flow, made.descent, made.effective), (_NAMES[i] for i in (2, 3, 0, 1, 4)),
        (_COLORS[i] for i in (2, 3, 0, 1, 4)), strict=True,
    ):  # fmt: skip
        some = _some(run)
        style: dict[str, Any] = {"color": color, "linewidth": 0.9, "linestyle": "--" if name == "GD" else "-"}
        left.loglog(run.t[some], run.loss[some], **style)
        middle.semilogx(run.t[some], setup.recovery(run.theta[some]), **style)
    left.set_ylim(1e-12, 3)
    left.set_ylabel("training loss $L$")
    middle.set_ylabel("$\\|\\beta-\\beta^*\\|^2$")
    middle.set_ylim(0, None)
    some = _some(made.noisy)
    beta = setup.model.predictor(made.noisy.theta[some])
    right.semilogx(made.noisy.t[some], beta[:, 5:], color="0.75", linewidth=0.4)
    for i in range(5):
        right.semilogx(made.noisy.t[some], beta[:, i], color=f"C{i}", linewidth=0.9)
    right.set_ylabel("$\\beta_i$, stochastic flow")
    for ax in (left, middle, right):
        ax.set_xlim(0.1, 2000.0)
        ax.set_xlabel("time $t=\\gamma\\times$step")
    handles = [
        Line2D([], [], color=color, linestyle="--" if name == "GD" else "-", label=name)
        for name, color in zip(_NAMES, _COLORS, strict=True)
    ]
    fig.legend(handles=handles, loc="outside upper right", ncols=5)
    return Plate(
        plot.save(fig, out / "runs")[1],
        f"A diagonal network from α = 0.1 on sparse regression, step size γ = {setup.step_size:g}: training loss, distance "
        "from the sparse target, and the coordinates of β along the stochastic flow (relevant ones in colour), against "
        "time (dimensionless). The stochastic flow ends where the flow from α_∞ does. After figure 1 of arXiv 2106.09524.",
    )


def _some(run: Trajectory) -> NDArray[np.int64]:
    """Places of at most 200 finite times > 0, geometrically spaced."""
    wanted = np.geomspace(0.1, 2000.0, 200)
    places = np.searchsorted(run.t, wanted * (1 - 1e-12))
    return np.unique(places[(places < len(run.t)) & np.isfinite(run.t[np.minimum(places, len(run.t) - 1)])])


def _limits_plate(out: Path, setup: SetUp, made: Runs, swept: Sweep) -> Plate:
    fig, (left, middle, right) = plot.figure(1, 3, height=2.1)
    end = setup.model.predictor(made.noisy.end)
    for run, name, marker, color in (
        (made.flow, "from $\\alpha$", "x", "0.5"),
        (made.effective, "from $\\alpha_\\infty$", "o", "C2"),
    ):
        left.plot(
            setup.model.predictor(run.end),
            end,
            marker,
            color=color,
            markersize=3,
            markeredgewidth=0.7,
            label=name,
        )
    left.axline((0, 0), slope=1, color="0.7", linewidth=0.5, zorder=0)
    left.set_xlabel("$\\beta_i$, limit of the flow")
    left.set_ylabel("$\\beta_i$, end of stochastic flow")
    left.legend(loc="upper left")
    for name, color, marker in (("stochastic flow", "C1", "o"), ("SGD", "C4", "s")):
        for ax, values in ((middle, swept.shifts[name]), (right, swept.recoveries[name])):
            mean, error = swept.mean(values)
            ax.errorbar(
                swept.step_sizes,
                mean,
                error,
                marker=marker,
                markersize=3,
                color=color,
                linewidth=0.9,
                label=name,
            )
    middle.set_ylabel("mean of $\\log(\\alpha_\\infty/\\alpha)$")
    right.set_ylabel("$\\|\\beta-\\beta^*\\|^2$ at the end")
    right.axhline(float(setup.recovery(made.flow.end)), color="black", linewidth=0.8, label="gradient flow")
    right.set_ylim(0, None)
    for ax in (middle, right):
        ax.set_xlabel("step size $\\gamma$")
        ax.legend(loc="lower left")
    return Plate(
        plot.save(fig, out / "limits")[1],
        f"Left: each coordinate at the end of one path of the stochastic flow (γ = {setup.step_size:g}) against the limits of the "
        "gradient flows from α and from α_∞. Middle: how much the start shrinks, of the stochastic flow by its loss and of SGD as measured "
        "by √(w₊ w₋); right: distance from the sparse target; both against the step size (dimensionless), means of "
        f"{swept.shifts['SGD'].shape[1]} runs with standard errors. After arXiv 2106.09524.",
    )
