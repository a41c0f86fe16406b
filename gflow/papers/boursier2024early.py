"""E. Boursier, N. Flammarion: Early alignment in two-layer networks training is a two-edged sword (2024),
arXiv 2401.10791.

The authors' experiments take the mean squared error, factor 1/n, and so does this file: time runs twice as fast as with
gflow's 1/(2n), and a loss of RSS/(2n) is one of RSS/n here.  Their start: w_j ~ N(0, λ²/m) and |a_j| = ‖w_j‖.  Constants
of the theorem on alignment are not at hand; the bounds on the norms are our own (:mod:`gflow.theory.alignment`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from gflow import datasets, plot
from gflow.claims import Claim, Conclusion, Evidence, Observation
from gflow.integrate import flow
from gflow.models.relu import TwoLayerReLU
from gflow.neurons import activation_pattern
from gflow.objective import Objective
from gflow.papers import settle, unbroken
from gflow.papers.falling import FALLS, NEVER, run_or_fall
from gflow.problem import Problem
from gflow.report import Plate, Section, observation_row
from gflow.theory import Hypothesis, alignment, threshold
from gflow.trajectory import Trajectory

Array = NDArray[np.float64]

#: λ (S,), angles (S, m) and extremal vectors (m,); λ (S,), losses (S,) and whether they are of the limit (S,).
Swept = tuple[Array, Array, NDArray[np.int64]]
Limits = tuple[Array, Array, NDArray[np.bool_]]

REFERENCE = "arXiv 2401.10791"
EPSILON = 0.3
#: |L − RSS/n| and |h(x) − x·b| of a claim that the flow ends in the least-squares fit.
LOSS, OUTPUTS = 1e-10, 1e-6
#: L / L_OLS below which it is clear that a flow ends elsewhere: the loss never rises.
BELOW = 0.5
#: Of directions and angles of early alignment against the exact paths.
DIRECTIONS, ANGLES = 1e-8, 1e-6
#: Bound on η in the paper's assumption 3.
ETA = 1 / 6


@dataclass(frozen=True)
class SetUp:
    """Named data, and a balanced start of some scale λ."""

    data: str
    scale: float
    width: int = 100
    seed: int = 0

    @cached_property
    def problem(self) -> Problem:
        x, y = POINTS[self.data]
        return Problem(x, y, factor=1 / len(x))

    @cached_property
    def model(self) -> TwoLayerReLU:
        return TwoLayerReLU(self.problem.inputs, self.width)

    @cached_property
    def theta0(self) -> Array:
        size = self.scale * np.sqrt(self.problem.inputs / self.width)
        return self.model.init("balanced", size, rng=self.seed)

    @cached_property
    def landscape(self) -> alignment.Landscape:
        return alignment.landscape(self.problem)

    @cached_property
    def paths(self) -> tuple[alignment.Path, ...]:
        """The neurons' motion in the limit of small λ."""
        w, a = self.model.unpack(self.theta0)
        return tuple(self.landscape.path(*one) for one in zip(w, a[0], strict=True))

    @cached_property
    def line(self) -> Array:
        """b, the least-squares fit."""
        return np.asarray(np.linalg.lstsq(self.problem.X, self.problem.Y[:, 0], rcond=None)[0], np.float64)

    @property
    def fit_loss(self) -> float:
        """RSS / n."""
        assert self.problem.factor is not None
        return self.problem.factor * float(np.sum((self.problem.Y[:, 0] - self.problem.X @ self.line) ** 2))

    @property
    def tau(self) -> float:
        """End of early alignment, −ε ln λ / ‖D_max‖."""
        return float(alignment.alignment_time(self.landscape.largest, self.scale, EPSILON))

    def flow(self, t: Any, rtol: float = 1e-9, **options: Any) -> Trajectory:
        """The exact flow."""
        return unbroken(flow(self.model, self.problem, self.theta0, t, rtol=rtol, **options))


def _gaussian(seed: int) -> tuple[Array, Array]:
    """Six points in the plane with Gaussian labels."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((6, 2)), rng.standard_normal(6)


def _with_bias(x: list[float], y: list[float]) -> tuple[Array, Array]:
    return np.column_stack([x, np.ones(len(x))]), np.array(y)


def _plane(points: list[tuple[float, float]], y: list[float]) -> tuple[Array, Array]:
    return np.array(points), np.array(y)


#: "assumption 3": the middle of the assumption's boxes; "authors": of the paper's experiment, in one dimension with a
#: bias; "obtuse": breaks the assumption, with an obtuse angle.
POINTS: dict[str, tuple[Array, Array]] = {
    "assumption 3": datasets.three_points(0.1),
    "authors": _with_bias([-0.75, -0.5, 0.125], [1.1, 0.1, 0.8]),
    "obtuse": _plane([(-0.95, 0.5), (0.025, 1.0), (0.95, 0.5)], [1.05, 0.05, 1.05]),
    "gaussian": _gaussian(3),
}


# ---- the least-squares point ---------------------------------------------------------------------------------


def least_eta(X: Array, Y: Array) -> float:
    """The least η with which three points fulfil assumption 3, inf if none does."""
    (first, second, third), y = X, Y.ravel()
    if not (first[0] > -1 and third[0] < 1 and y[1] > 0 and min(first[1], third[1], y[0], y[2]) >= 1):
        return float("inf")
    lacks = (first[0] + 1, first[1] - 1, y[0] - 1, abs(second[0]), abs(second[1] - 1), y[1], 1 - third[0], third[1] - 1, y[2] - 1)  # fmt: skip
    return float(max(lacks))


@cache
def hypotheses_of(setup: SetUp) -> tuple[Hypothesis, ...]:
    """What the least-squares end supposes: the geometry, and that alignment is over before the outputs count."""
    x, y = setup.problem.X, setup.problem.Y[:, 0]
    lengths = np.linalg.norm(x, axis=1)
    cosines = x @ x.T / np.outer(lengths, lengths)
    found = threshold.arrival(setup.model, setup.problem, setup.theta0, np.ones(len(x)))
    geometry = [
        Hypothesis("all angles between inputs are acute (defect: −cos)", max(0.0, -float(cosines.min())), 0.0),
        Hypothesis("labels are positive", max(0.0, -float(y.min())), 0.0),
        Hypothesis("the least-squares fit is positive on all points", max(0.0, -float((x @ setup.line).min())), 0.0),
    ]  # fmt: skip
    if setup.data != "authors":
        over = max(0.0, least_eta(x, y) - ETA)
        geometry.insert(0, Hypothesis("assumption 3 (defect: η − 1/6)", over, 0.0))
    return (
        *geometry,
        Hypothesis("early alignment takes a > 0 to all points or death, a < 0 to death (defect: share of wrong sides)", float(found.wrong.max()), 0.0),
        Hypothesis("outputs are negligible until then (defect: c M² A / D)", found.mass, 0.1),
    )  # fmt: skip


def ends_in_least_squares(setup: SetUp, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure where the flow ends."""
    hypotheses = hypotheses_of(setup) if respect_hypotheses else ()
    if not all(h.holds for h in hypotheses):
        return Evidence(hypotheses)
    objective = Objective(setup.model, setup.problem)
    run, inverse = run_or_fall(objective, setup.theta0, BELOW * setup.fit_loss, rtol)
    falls = Conclusion(FALLS.format(f"{BELOW:g} RSS/n"), inverse, NEVER)
    if inverse > 0:
        return Evidence(hypotheses, (falls,), (run.status,))
    outputs = setup.model.function(run.end, setup.problem.X)[:, 0]
    patterns = activation_pattern(setup.model, setup.problem, run.end)
    a = setup.model.outer_layer(run.end)[0]
    dead = np.all(patterns <= 0, axis=1)
    other = np.where(a > 0, ~dead & np.any(patterns < 1, axis=1), ~dead)
    conclusions = (
        falls,
        Conclusion("|L − RSS/n| in the limit", abs(objective.loss(run.end) - setup.fit_loss), LOSS),
        Conclusion("largest |h(x) − b·x| on the points", float(np.abs(outputs - setup.problem.X @ setup.line).max()), OUTPUTS),
        Conclusion("share of neurons neither dead nor, with a > 0, active on all points", float(other.mean()), 0.5 / setup.width),
    )  # fmt: skip
    return Evidence(hypotheses, conclusions, (run.status,))


# ---- alignment at τ ------------------------------------------------------------------------------------------


def aligned_at_tau(setup: SetUp, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure directions and sizes of all neurons at τ against the exact paths and our bounds."""
    land, bend = setup.landscape, alignment.curvature(setup.problem)
    a0 = setup.model.outer_layer(setup.theta0)[0]
    mass = float(np.sum(a0**2))
    bound = float(alignment.mass_bound(mass, land.largest, bend, setup.tau))
    late = max(path.settled for path in setup.paths) / setup.tau - 1
    hypotheses = (
        Hypothesis("|a_j| ≥ ‖w_j‖ > 0 at the start", alignment.neurons(setup.model, setup.problem, setup.theta0)[2].defect),
        Hypothesis("λ is small: c M² A(τ) / D_max by its bound", bend * bound / land.largest, DIRECTIONS / 10),
        Hypothesis("the paths' last event comes before τ (defect: relative delay)", max(0.0, late), 0.0),
    )  # fmt: skip
    if respect_hypotheses and not all(h.holds for h in hypotheses):
        return Evidence(hypotheses)
    run = setup.flow(setup.tau, rtol)
    w, a = setup.model.first_layer(run.end), setup.model.outer_layer(run.end)[0]
    units = w / np.linalg.norm(w, axis=1, keepdims=True)
    paths = np.array([path.at(setup.tau)[0][0] for path in setup.paths])
    paths /= np.linalg.norm(paths, axis=1, keepdims=True)
    ends = np.array([path.limit for path in setup.paths])
    alive = ~np.array([path.dead for path in setup.paths])
    measured, predicted = (1 - np.sum(one * ends, axis=1)[alive] for one in (units, paths))
    worst = int(np.argmax(predicted))
    conclusions = [
        Conclusion("directions of all neurons, largest distance from the paths'", float(np.linalg.norm(units - paths, axis=1).max()), DIRECTIONS),
        Conclusion("1 − cos of the neuron furthest from its extremal vector", float(measured[worst]), ANGLES, float(predicted[worst])),
    ]  # fmt: skip
    if respect_hypotheses:
        most = float(alignment.growth_bound(mass, land.largest, bend, setup.tau))
        growth = float(np.abs(np.log(np.abs(a / a0))).max())
        conclusions.append(Conclusion("largest |ln |a_j(τ)/a_j(0)|| over our bound", growth / most, 1.0))
    return Evidence(hypotheses if respect_hypotheses else (), tuple(conclusions), (run.status,))


def claims(size: str) -> list[tuple[Claim, str]]:
    """Claims, each with the verdict that it must get."""
    spurious = "From a small start the flow ends in the least-squares fit, with a loss of RSS/n, although neurons enough are there to interpolate."
    early = "At τ = −ε ln λ / ‖D_max‖ every neuron is dead or along an extremal vector, and its size has changed by λ^(±ε) at most."
    theorem, first = f"{REFERENCE}, theorem 2", f"{REFERENCE}, theorem 1, with bounds of our own"
    listed: list[tuple[str, str, str, Callable[..., Evidence], SetUp, bool, str]] = [
        ("three points, λ = 1e-5", spurious, theorem, ends_in_least_squares, SetUp("assumption 3", 1e-5), True, "holds"),
        ("the authors' points, λ = 1e-4", spurious, REFERENCE, ends_in_least_squares, SetUp("authors", 1e-4), True, "holds"),
        ("alignment at τ, λ = 1e-16", early, first, aligned_at_tau, SetUp("gaussian", 1e-16), True, "holds"),
    ]  # fmt: skip
    if size == "full":
        wide = SetUp("assumption 3", 1e-5, 190)
        listed.append(
            ("three points, 190 neurons", spurious, theorem, ends_in_least_squares, wide, True, "holds")
        )
    for name, statement, source, run, setup in (
        ("control: a large start, λ = 0.3", spurious, theorem, ends_in_least_squares, SetUp("assumption 3", 0.3)),
        ("control: an obtuse angle", spurious, theorem, ends_in_least_squares, SetUp("obtuse", 1e-4)),
        ("control: alignment, λ = 0.5", early, first, aligned_at_tau, SetUp("gaussian", 0.5)),
    ):  # fmt: skip
        listed.append((name, statement, source, run, setup, True, "inapplicable"))
        listed.append((f"{name}, hypotheses ignored", statement, source, run, setup, False, "violated"))
    return [
        (Claim(name, statement, source, partial(run, setup, respect_hypotheses=respect)), expected)
        for name, statement, source, run, setup, respect, expected in listed
    ]


# ---- sweeps over λ -------------------------------------------------------------------------------------------


def tau_scales(size: str) -> Array:
    """λ of the figure of alignment."""
    return np.logspace(-4, -20, 5 if size == "quick" else 17)


def angles(size: str) -> Swept:
    """λ (S,), angles (S, m) at τ between neurons and the extremal vectors they go to, and which vector (m,); −1: dead."""
    scales = tau_scales(size)
    found, which = [], np.full(SetUp("gaussian", 1e-4).width, -1)
    for scale in scales:
        setup = SetUp("gaussian", float(scale))
        run = setup.flow(setup.tau)
        w = setup.model.first_layer(run.end)
        ends = np.array([path.limit for path in setup.paths])
        across = w - np.sum(w * ends, axis=1)[:, None] * ends
        found.append(np.arctan2(np.linalg.norm(across, axis=1), np.sum(w * ends, axis=1)))
        vectors = setup.landscape.attractors(1) + setup.landscape.attractors(-1)
        for j, path in enumerate(setup.paths):
            if not path.dead:
                fit = [float(e.direction @ path.limit) * (e.attracts == path.sign) for e in vectors]
                which[j] = int(np.argmax(fit))
    return scales, np.array(found), which


def ends(data: str, size: str) -> Limits:
    """λ (S,), L (S,) in the limit over RSS/n, and whether the limit was seen (S,)."""
    scales = np.logspace(-4, 0.5, 10 if size == "quick" else 28)
    losses, seen = [], []
    for scale in scales:
        setup = SetUp(data, float(scale))
        run = setup.flow(np.inf, max_steps=20_000)
        losses.append(Objective(setup.model, setup.problem).loss(run.end) / setup.fit_loss)
        seen.append(run.limit is not None)
    return scales, np.array(losses), np.array(seen)


def observations(swept: Swept, limits: dict[str, Limits]) -> list[Observation]:
    """Measured, not asserted."""
    scales, found, which = swept
    setup = SetUp("gaussian", 1e-4)
    land = setup.landscape
    vectors = land.attractors(1) + land.attractors(-1)
    listed = []
    for k in np.unique(which[which >= 0]):
        e = vectors[k]
        if e.kinks:
            continue  # met in finite time
        logs = np.log(found[:, which == k].max(axis=1))
        local = np.diff(logs) / np.diff(np.log(scales))
        expected = EPSILON * np.linalg.norm(e.vector) / land.largest
        listed.append(
            Observation(
                f"exponent of the largest angle at τ in λ, extremal vector of length {np.linalg.norm(e.vector):.3g}",
                float(local[-1]), float(abs(local[-1] - local[-2])), f"ε ‖D‖ / ‖D_max‖ = {expected:.4g}", REFERENCE,
            )
        )  # fmt: skip
    for data, (lams, losses, seen) in limits.items():
        small, large = (lams[seen & (np.abs(losses - end) < 1e-6)] for end in (1, 0))
        for what, value in (("largest λ that ends at RSS/n", small), ("smallest λ that interpolates", large)):
            one = float(value.max() if what[0] == "l" else value.min()) if value.size else float("nan")
            step = float(one * (lams[1] / lams[0] - 1))
            listed.append(Observation(f"points of {data}: {what}", one, step, "error: one step of the grid", REFERENCE))  # fmt: skip
    return listed


# ---- report --------------------------------------------------------------------------------------------------


def reproduce(out: Path, size: str, advance: Callable[[float, str], None]) -> Section:
    """Check the claims and draw the figures."""
    section = Section(
        "boursier2024early",
        "Early alignment in two-layer networks training is a two-edged sword",
        "E. Boursier, N. Flammarion (2024), arXiv 2401.10791.",
        "From a small start neurons first turn, and hardly grow: each along a path known in closed form, to death or to an extremal vector, "
        "by the time τ. On three points all neurons come to be active on all of them, and the flow ends in the least-squares line's "
        "stationary point; from a large start it interpolates. Mean squared error: factor 1/n.",
    )
    settle(section, claims(size), advance, 0.4)
    advance(0.4, "alignment at τ")
    swept = angles(size)
    limits = {}
    for i, data in enumerate(("assumption 3", "authors")):
        advance(0.5 + 0.2 * i, f"limits, points of {data}")
        limits[data] = ends(data, size)
    section.rows += [observation_row(one) for one in observations(swept, limits)]
    advance(0.9, "figures")
    with plot.style():
        section.plates += [
            _polar_plate(out), _function_plate(out), _limits_plate(out, limits), _angles_plate(out, swept)
        ]  # fmt: skip
    advance(1.0, "done")
    return section


SMALL_START = 1e-3


def _polar_plate(out: Path) -> Plate:
    import matplotlib.pyplot as plt

    setup = SetUp("authors", SMALL_START, 190)
    run = setup.flow([0.0, setup.tau, np.inf])
    fig, axes = plt.subplots(
        1, 3, figsize=(plot.TWO_COLUMNS, 2.5), subplot_kw={"projection": "polar"}, layout="constrained"
    )
    titles = ("start", f"end of alignment, $\\tau = {setup.tau:.2f}$", "end, $t = \\infty$")
    for ax, theta, title in zip(axes, run.theta, titles, strict=True):
        w, a = setup.model.first_layer(theta), setup.model.outer_layer(theta)[0]
        size = np.abs(a).max()
        for x in setup.problem.X:
            normal = np.arctan2(x[0], -x[1])
            for turn in (normal, normal + np.pi):
                ax.plot([turn, turn], [0, 1.05], color="0.85", linewidth=0.6, zorder=1)
        (e,) = setup.landscape.attractors(1)
        for vector, line in ((e.vector, "--"), (setup.line, ":")):
            at = np.arctan2(vector[1], vector[0])
            ax.plot([at, at], [0, 1.05], color="k", linestyle=line, linewidth=0.8, zorder=2)
        for sign, color in ((1, "C0"), (-1, "C1")):
            mine = sign * a > 0
            ax.plot(
                np.arctan2(w[mine, 1], w[mine, 0]), np.abs(a[mine]) / size, "o", color=color, markersize=2,
                markeredgewidth=0, alpha=0.8,
            )  # fmt: skip
        ax.set_ylim(0, 1.1)
        ax.set_yticks([0.5, 1.0], ["", ""])
        ax.set_xticks(np.arange(0, 2 * np.pi, np.pi / 2), ["0°", "90°", "180°", "270°"])
        ax.grid(linewidth=0.3)
        exponent = int(np.floor(np.log10(size)))
        ax.set_title(
            f"{title}\nedge: $|a_j| = {size / 10**exponent:.2g} \\times 10^{{{exponent}}}$", loc="center", fontsize=7
        )  # fmt: skip
    handles = [
        Line2D([], [], color="C0", marker="o", linestyle="none", label="$a_j > 0$"),
        Line2D([], [], color="C1", marker="o", linestyle="none", label="$a_j < 0$"),
        Line2D([], [], color="k", linestyle="--", linewidth=0.8, label="extremal vector"),
        Line2D([], [], color="k", linestyle=":", linewidth=0.8, label="least squares"),
        Line2D([], [], color="0.85", label="kinks"),
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=5)
    return Plate(
        plot.save(fig, out / "polar")[1],
        f"Neurons as points of angle arg w_j and radius |a_j| (over the largest), {setup.width} of them, λ = {SMALL_START:g}, on the "
        "authors' three points in one dimension with a bias. Grey: the samples' kinks; dashed: the only extremal vector that attracts; dotted: the least-squares line. After the "
        "polar figures of arXiv 2401.10791.",
    )


def _function_plate(out: Path) -> Plate:
    fig, (left, right) = plot.figure(1, 2)
    setup = SetUp("authors", SMALL_START)
    x = np.linspace(-1.2, 0.8, 300)
    grid = np.column_stack([x, np.ones_like(x)])
    dense = np.geomspace(0.1, 300.0, 400)
    run = setup.flow([0.0, *dense])
    levels = [int(np.searchsorted(-run.loss, -level)) for level in (0.6, 0.3, 0.2)]
    shown = [*levels, len(run.t) - 1]
    for i, color in zip(shown, plot.sequence(len(shown)), strict=True):
        left.plot(
            x, setup.model.function(run.theta[i], grid)[:, 0], color=color, label=f"$t = {run.t[i]:.3g}$"
        )
    left.plot(x, grid @ setup.line, "k:", linewidth=0.8, label="least squares")
    left.plot(setup.problem.X[:, 0], setup.problem.Y[:, 0], "o", color="C1", markersize=4, zorder=5)
    left.set_xlabel("$x$")
    left.set_ylabel("$h(x)$")
    left.set_ylim(-0.1, 2.0)
    left.legend(loc="upper center", ncols=2)
    right.semilogx(run.t[1:], run.loss[1:], label=f"$\\lambda = {SMALL_START:g}$")
    large = SetUp("authors", 0.5)
    other = large.flow([0.0, *dense])
    right.semilogx(other.t[1:], other.loss[1:], label="$\\lambda = 0.5$")
    right.axhline(setup.fit_loss, color="0.4", linestyle=":", linewidth=0.8, label="RSS$/n$")
    right.set_xlabel("time $t$")
    right.set_ylabel("loss $L$ (mean square)")
    right.set_ylim(bottom=0)
    right.legend(loc="upper right")
    return Plate(
        plot.save(fig, out / "function")[1],
        f"Left: the function learned on the authors' three points (dots) at several times, λ = {SMALL_START:g}: it ends in the "
        "least-squares line, up to the kink of its neurons. Right: the loss stays at that of the line, RSS/n, from a small start, and goes to 0 "
        "from a large one. After arXiv 2401.10791.",
    )


def _limits_plate(out: Path, limits: dict[str, Limits]) -> Plate:
    fig, ax = plot.figure()
    names = {"assumption 3": "points of assumption 3", "authors": "the authors' points"}
    # of two sizes, since the limits are often the same
    for (data, (scales, losses, seen)), (color, large) in zip(
        limits.items(), (("C0", 6.0), ("C1", 3.0)), strict=True
    ):
        ax.semilogx(scales, losses, "-", color=color, linewidth=0.6)
        ax.semilogx(scales[seen], losses[seen], "o", color=color, markersize=large, label=names[data])
        ax.semilogx(scales[~seen], losses[~seen], "o", color=color, markersize=large, markerfacecolor="none")
    ax.axhline(1.0, color="0.4", linestyle=":", linewidth=0.8)
    ax.set_ylim(-0.05, 1.4)
    ax.set_xlabel("scale $\\lambda$ of the start")
    ax.set_ylabel("loss at $t = \\infty$ (RSS$/n$)")
    ax.legend(loc="upper right")
    return Plate(
        plot.save(fig, out / "limits")[1],
        "The two edges: the loss in the limit against the scale of the start, 100 neurons. Small starts end in the least-squares line's "
        "stationary point, large ones interpolate. Open: given up before the limit was seen, an upper bound. After arXiv 2401.10791.",
    )


def _angles_plate(out: Path, swept: Swept) -> Plate:
    scales, found, which = swept
    fig, (left, right) = plot.figure(1, 2)
    setup = SetUp("gaussian", 1e-16)
    land, times = setup.landscape, np.linspace(0.0, setup.tau, 25)
    run = setup.flow(times)
    w = setup.model.first_layer(run.theta)
    vectors = land.attractors(1) + land.attractors(-1)
    fine = np.linspace(0.0, setup.tau, 300)
    cones = [k for k in np.unique(which[which >= 0]) if not vectors[k].kinks]
    colours = {
        k: f"C{i}" for i, k in enumerate(cones)
    }  # those in cones have one each, those on kinks share one
    for j in range(0, setup.width, 4):
        path = setup.paths[j]
        color = "0.7" if path.dead else colours.get(which[j], "C6")
        track, _ = path.at(fine)
        left.plot(fine, _degrees(track), color=color, linewidth=0.5)
        left.plot(times, _degrees(w[:, j]), ".", color=color, markersize=1.5)
    left.set_xlabel("time $t$")
    left.set_ylabel("angle of $w_j$ (degrees)")
    left.set_ylim(-185, 185)
    left.set_yticks([-180, -90, 0, 90, 180])
    handles = []
    for k in cones:
        e, color = vectors[k], colours[k]
        largest = found[:, which == k].max(axis=1)
        right.loglog(scales, largest, "o", color=color)
        power = EPSILON * np.linalg.norm(e.vector) / land.largest
        right.loglog(scales, largest[-1] * (scales / scales[-1]) ** power, color=color, linewidth=0.8)
        label = f"in a cone, $a_j {'>' if e.attracts > 0 else '<'} 0$: $\\lambda^{{{power:.3f}}}$"
        handles.append(Line2D([], [], color=color, marker="o", linewidth=0.8, label=label))
    kinked = (which >= 0) & ~np.isin(which, cones)
    if kinked.any():
        largest = np.maximum(found[:, kinked].max(axis=1), 1e-12)
        right.loglog(scales, largest, "s", color="C6", markersize=2.5)
        handles.append(
            Line2D([], [], color="C6", marker="s", linestyle="none", markersize=2.5, label="on kinks")
        )
    right.set_ylim(1e-13, 1e1)
    right.set_xlabel("scale $\\lambda$ of the start")
    right.set_ylabel("largest angle at $\\tau$ (radians)")
    right.legend(handles=handles, loc="center right")
    return Plate(
        plot.save(fig, out / "alignment")[1],
        f"Early alignment on six random points in the plane. Left: directions of neurons up to τ, λ = {setup.scale:g}: closed-form "
        "paths (lines) and exact flow (dots), coloured by the extremal vector to which they go. Right: largest angle at τ (ε = "
        f"{EPSILON:g}) to that vector against λ; lines: λ to the power ε‖D‖/‖D_max‖ through the last point. Kinks are met in finite time; angles below "
        "1e-12 are drawn there. After arXiv 2401.10791.",
    )


def _degrees(w: Array) -> Array:
    """Angles (T,) of vectors (T, 2) in the plane, NaN where they jump by a turn."""
    angle = np.degrees(np.arctan2(w[:, 1], w[:, 0]))
    jump = np.abs(np.diff(angle, prepend=angle[0])) > 180
    return np.where(jump, np.nan, angle)
