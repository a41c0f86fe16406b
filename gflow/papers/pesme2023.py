"""S. Pesme, N. Flammarion: Saddle-to-saddle dynamics in diagonal linear networks (2023), arXiv 2304.00488.

The paper's network is u ∘ v from u = √2 α, v = 0, its loss 1/(2n) Σ (⟨β, x_i⟩ − y_i)²: gflow's own factor.  Time is
accelerated: t / log(1/α).  Its theorem is about the limit α → 0.  How long the way there is, is not in the paper but
measured here: jumps come late by c / log(1/α), and a stay is off by a power of α whose exponent follows from
the path (:func:`exponents`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from gflow import plot, theory
from gflow.claims import Claim, Conclusion, Evidence, Observation
from gflow.integrate import flow
from gflow.models.diagonal import Diagonal
from gflow.papers import settle
from gflow.problem import Problem
from gflow.report import Plate, Section, observation_row
from gflow.theory.prediction import Hypothesis
from gflow.theory.saddles import Saddles
from gflow.trajectory import Trajectory

Array = NDArray[np.float64]

REFERENCE = "arXiv 2304.00488"
#: What the examples' labels come from: Gaussian designs of 5 samples and 7 inputs, no noise.
TARGET = (3.0, -2.0, 1.0, 0.0, 0.0, 0.0, 0.0)
SAMPLES = 5
#: Of the designs with seeds 0 … 399 these two have long stays, one without and one with a coordinate that leaves.
PLAIN, LEAVING = 254, 193
#: Stays of seed 11 are too short at these α; the last jump of seed 12 leaves a coordinate at its threshold.
SHORT, DEGENERATE = 11, 12
#: The start at which stays are looked at, and how close they are then.
SMALL, CLOSE = 1e-16, 1e-4
#: A tenth of that for the first-order estimate, whose constant of order 1 is not known.
ESTIMATE = 0.1 * CLOSE
#: What an exact −1 is to the fitted slope of a jump's delay, and the relative accuracy of extrapolated times.
SLOPE, TIMES = 1e-3, 1e-6


@dataclass(frozen=True)
class SetUp:
    """One design; times are accelerated ones."""

    seed: int

    @cached_property
    def problem(self) -> Problem:
        x = np.random.default_rng(self.seed).normal(size=(SAMPLES, len(TARGET)))
        return Problem(x, x @ np.array(TARGET))

    @property
    def model(self) -> Diagonal:
        return Diagonal(len(TARGET), form="product")

    @cached_property
    def path(self) -> Saddles:
        """The limit α → 0."""
        assert self.problem.factor is not None
        return theory.saddles.successive(self.problem.X, self.problem.Y[:, 0], self.problem.factor)

    @property
    def middles(self) -> Array:
        """Times halfway between two jumps, and half as much again as the last one."""
        times = self.path.times
        return np.append(0.5 * (times[1:] + times[:-1]), 1.5 * times[-1])

    def flow(self, alpha: float, t: ArrayLike, rtol: float, dense: bool = False) -> Trajectory:
        return flow(
            self.model, self.problem, self.model.init(scale=alpha), np.log(1 / alpha) * np.asarray(t),
            coords="log", rtol=rtol, dense=dense,
        )  # fmt: skip

    def hypotheses(self, alpha: float) -> tuple[Hypothesis, ...]:
        """Those of the theorem at one α, and that α is small enough for its stays to be seen."""
        prediction = theory.saddles.path(self.model, self.problem, self.model.init(scale=alpha), force=True)
        estimate = float(np.max(alpha ** exponents(self.problem, self.path, self.middles)))
        stays = Hypothesis("stays are long enough (defect: their error to first order)", estimate, ESTIMATE)
        return (*prediction.hypotheses, stays)


def exponents(problem: Problem, path: Saddles, t: Array) -> Array:
    """c (T,): to first order the flow from a small α is α^c off the path at the times t, between two jumps.

    A coordinate at rest is α² e^{2 |η|} = α^{2 (1 − |s|)}, s = η / log(1/α).  Those that move settle at the rates
    of dβ/dt = −2 |β| ∘ ∇L, linearised: 2 λ, λ the least eigenvalue of √|β| ∘ 2 factor XᵀX ∘ √|β|, so that α^{2 λ τ} is
    left at the time τ after the jump.  0 where a coordinate rests at its threshold, and only 1 / log(1/α) is sure.
    """
    assert problem.factor is not None
    hessian, found = 2 * problem.factor * problem.X.T @ problem.X, np.empty(len(t))
    jumps = np.concatenate([[0.0], path.times])
    for i, (when, beta, s) in enumerate(zip(t, path.at(t), path.dual_at(t), strict=True)):
        moved = np.flatnonzero(beta)
        root = np.sqrt(np.abs(beta[moved]))
        least = np.linalg.eigvalsh(hessian[np.ix_(moved, moved)] * np.outer(root, root)).min(initial=np.inf)
        since = when - jumps[np.searchsorted(path.times, when, side="right")]
        found[i] = 2 * min(1 - np.abs(s[beta == 0]).max(initial=0.0), float(least) * since)
    return found


def distances(setup: SetUp, run: Trajectory, t: Array) -> Array:
    """Largest difference (T,) of a coordinate from the path, relative to its largest coordinate anywhere."""
    off = setup.model.predictor(run.theta) - setup.path.at(t)
    found: Array = np.abs(off).max(axis=1) / np.abs(setup.path.beta).max()
    return found


def stays(setup: SetUp, alpha: float, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure how close the flow is to the saddles in the middle of its stays, and how it ends."""
    hypotheses = setup.hypotheses(alpha) if respect_hypotheses else ()
    if not all(h.holds for h in hypotheses):
        return Evidence(hypotheses)
    run = setup.flow(alpha, setup.middles, rtol)
    least = theory.bias.minimal_l1(setup.problem.X, setup.problem.Y[:, 0])
    l1 = float(np.abs(setup.model.predictor(run.end)).sum())
    return Evidence(
        hypotheses,
        (
            Conclusion(
                "distance from the saddles in the middle of the stays, relative",
                float(distances(setup, run, setup.middles).max()), CLOSE,
            ),
            Conclusion("ℓ1 norm after the last jump, against the least of an interpolator", l1, CLOSE, least.norm),
        ),
        (run.status,),
    )  # fmt: skip


def delays(setup: SetUp, alpha: float, rtol: float) -> tuple[Array, Trajectory]:
    """(t − t_k) log(1/α) (K,) of the times at which the loss is halfway from one saddle's to the next one's.

    NaN for jumps that the trajectory does not make.
    """
    path, run = setup.path, setup.flow(alpha, 1.5 * setup.path.times[-1], rtol, dense=True)
    found = np.full(len(path.times), np.nan)
    for k, level in enumerate(0.5 * (path.loss[1:] + path.loss[:-1])):

        def above(t: float, level: float = level) -> float:
            return run.objective.loss(run.at(t)) - level

        if above(run.t[-1]) < 0:
            found[k] = brentq(above, 0.0, run.t[-1], xtol=1e-13 * run.t[-1], rtol=1e-14)
    return found - path.times * np.log(1 / alpha), run


def jumps(setup: SetUp, alphas: tuple[float, ...], rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure where the times of the jumps go as α falls, and how fast."""
    hypotheses = setup.hypotheses(alphas[0]) if respect_hypotheses else ()
    if not all(h.holds for h in hypotheses):
        return Evidence(hypotheses)
    found, runs = zip(*(delays(setup, alpha, rtol) for alpha in alphas), strict=True)
    late, logs = np.array(found), np.log(1 / np.array(alphas))
    slopes = np.polyfit(np.log(logs), np.log(np.abs(late / logs[:, None])), 1)[0]
    conclusions = [
        Conclusion(
            f"slope of log |t − t_{k + 1}| against log log(1/α)", float(slope), SLOPE, -1.0
        )
        for k, slope in enumerate(slopes)
    ]  # fmt: skip
    # a delay of c / log(1/α) is taken out by the two smallest starts
    limits = setup.path.times + (late[-1] - late[-2]) / (logs[-1] - logs[-2])
    conclusions += [
        Conclusion(f"time of jump {k + 1}, from the two smallest α", float(t), TIMES, float(predicted))
        for k, (t, predicted) in enumerate(zip(limits, setup.path.times, strict=True))
    ]
    return Evidence(hypotheses, tuple(conclusions), tuple(run.status for run in runs))


def starts(size: str) -> tuple[float, ...]:
    """α of the claims on jump times."""
    return (1e-16, 1e-32, 1e-64) if size == "quick" else (1e-16, 1e-24, 1e-32, 1e-48, 1e-64, 1e-100)


def claims(size: str) -> list[tuple[Claim, str]]:
    """Claims, each with the verdict that it must get."""
    stay = (
        "From a small start the flow stays at one saddle after the other; the last one has the least ℓ1 norm."
    )
    jump = "In accelerated time jumps come when the path says, but for a delay of c / log(1/α)."
    listed = []
    for name, seed in (("no coordinate leaves", PLAIN), ("a coordinate leaves", LEAVING)):
        listed += [
            (Claim(f"stays, {name}", stay, REFERENCE, partial(stays, SetUp(seed), SMALL)), "holds"),
            (Claim(f"jumps, {name}", jump, REFERENCE, partial(jumps, SetUp(seed), starts(size))), "holds"),
        ]
    for name, seed, alpha in (
        ("control: α = 0.01", PLAIN, 1e-2),
        ("control: short stays", SHORT, SMALL),
        ("control: a coordinate left at its threshold", DEGENERATE, SMALL),
    ):
        for respect, expected in ((True, "inapplicable"), (False, "violated")):
            run = partial(stays, SetUp(seed), alpha, respect_hypotheses=respect)
            title = name if respect else f"{name}, hypotheses ignored"
            listed.append((Claim(title, stay, REFERENCE, run), expected))
    early = partial(jumps, SetUp(SHORT), (1e-8, 1e-12, 1e-16), respect_hypotheses=False)
    listed.append(
        (Claim("control: jumps, short stays, hypotheses ignored", jump, REFERENCE, early), "violated")
    )
    return listed


def observations(size: str) -> list[Observation]:
    """How late jumps are, and how the degenerate case converges: measured, not asserted."""
    found = []
    for name, seed in (("no coordinate leaves", PLAIN), ("a coordinate leaves", LEAVING)):
        fine, coarse = (delays(SetUp(seed), starts(size)[-1], rtol)[0] for rtol in (1e-11, 1e-9))
        for k, (c, other) in enumerate(zip(fine, coarse, strict=True)):
            what = f"{name}: c of jump {k + 1}, late by c / log(1/α)"
            found.append(Observation(what, float(c), float(abs(c - other)), reference=REFERENCE))
    setup = SetUp(DEGENERATE)
    last = setup.middles[-1:]
    for alpha in (1e-16, 1e-32, 1e-64):
        fine, coarse = (distances(setup, setup.flow(alpha, last, rtol), last) for rtol in (1e-11, 1e-9))
        scaled = fine * np.log(1 / alpha)
        found.append(
            Observation(
                f"a coordinate left at its threshold: distance · log(1/α) after the last jump, α = {alpha:g}",
                float(scaled[0]), float(np.abs(fine - coarse)[0] * np.log(1 / alpha)), reference=REFERENCE,
            )
        )  # fmt: skip
    return found


def reproduce(out: Path, size: str, advance: Callable[[float, str], None]) -> Section:
    """Check the claims and draw the figures."""
    section = Section(
        "pesme2023",
        "Saddle-to-saddle dynamics in diagonal linear networks",
        "S. Pesme, N. Flammarion (2023), arXiv 2304.00488.",
        "Linear regression with a diagonal network u ∘ v, five samples and seven inputs, from starts √2 α down to "
        "α = 1e-64. In accelerated time the flow jumps from saddle to saddle, at times and to points that a short "
        "algorithm of least-squares problems predicts; a coordinate may leave again. At finite α jumps come late by "
        "c / log(1/α), and stays are off by a power of α.",
    )
    settle(section, claims(size), advance, 0.6, rtol=1e-10)
    advance(0.6, "delays")
    section.rows += [observation_row(one) for one in observations(size)]
    advance(0.7, "figures")
    with plot.style():
        section.plates.append(_path_plate(out, size))
        advance(0.85, "figures")
        section.plates.append(_limit_plate(out, size))
    advance(1.0, "done")
    return section


def _path_plate(out: Path, size: str) -> Plate:
    shown = (1e-2, 1e-4, 1e-8, 1e-16, 1e-64)
    fig, axes = plot.figure(2, 3, height=1.9)
    for row, seed in zip(axes, (PLAIN, LEAVING), strict=True):
        setup = SetUp(seed)
        path, end = setup.path, 1.5 * setup.path.times[-1]
        t = np.union1d(np.geomspace(0.3 * path.times[0], end, 600), path.times)
        fine = np.union1d(t, np.nextafter(path.times, 0))
        for alpha, color in zip(shown, plot.sequence(len(shown)), strict=True):
            row[0].semilogy(t, setup.flow(alpha, t, 1e-9).loss, color=color, linewidth=0.9)
        row[0].plot(fine, path.loss[np.searchsorted(path.times, fine, side="right")], **_LIMIT)
        run = setup.flow(SMALL, t, 1e-9)
        beta = setup.model.predictor(run.theta)
        with np.errstate(divide="ignore"):
            dual = np.arcsinh(beta / SMALL**2) / (2 * np.log(1 / SMALL))
        for values, limit, ax in ((beta, path.at(fine), row[1]), (dual, path.dual_at(fine), row[2])):
            ax.plot(fine, limit, **_LIMIT)
            _coordinates(ax, t, values)
        row[0].set_ylim(1e-5, 3 * path.loss[0])
        row[2].set_yticks([-1, 0, 1])
        for ax in row:
            ax.set_xscale("log")
            for when in path.times:
                ax.axvline(when, color="0.8", linewidth=0.5, zorder=0)
    for ax, title in zip(
        axes[0], ("loss", "coordinates, $\\alpha=10^{-16}$", "dual variable, $\\alpha=10^{-16}$"), strict=True
    ):
        ax.set_title(title)
    for ax in axes[1]:
        ax.set_xlabel("accelerated time $t\\,/\\,\\log(1/\\alpha)$")
    for row, label in zip(axes, ("no coordinate leaves", "coordinate 6 leaves"), strict=True):
        row[0].set_ylabel(f"{label}\nloss $L$")
        row[1].set_ylabel("$\\beta_i$")
        row[2].set_ylabel("$s_i=\\eta_i\\,/\\log(1/\\alpha)$")
    handles = [
        Line2D([], [], color=color, linewidth=0.9, label=f"$\\alpha=10^{{{round(np.log10(a))}}}$")
        for a, color in zip(shown, plot.sequence(len(shown)), strict=True)
    ]
    fig.legend(
        handles=[*handles, Line2D([], [], **_LIMIT, label="predicted")], loc="outside upper right", ncols=6
    )
    return Plate(
        plot.save(fig, out / "saddles")[1],
        "From saddle to saddle: loss, coordinates and dual variable of the flow of u ∘ v in accelerated time (logarithmic; "
        "dimensionless), and what the limit α → 0 predicts (dashed; jumps: grey). Five samples, seven inputs. Above: "
        f"coordinates only come (seed {PLAIN}). Below: one leaves and comes back (seed {LEAVING}). A coordinate moves "
        "while its dual variable is at ±1. After figure 1 of arXiv 2304.00488.",
    )


_LIMIT: dict[str, Any] = {"color": "black", "linestyle": (0, (3, 2)), "linewidth": 0.7}


def _coordinates(ax: Axes, t: Array, values: Array) -> None:
    for i, column in enumerate(values.T):
        ax.plot(t, column, color=f"C{i}", linewidth=1.0)


def _limit_plate(out: Path, size: str) -> Plate:
    powers = (-4, -8, -16, -32, -64) if size == "quick" else (-4, -6, -8, -12, -16, -24, -32, -48, -64, -100)
    alphas = 10.0 ** np.array(powers)
    logs = np.log(1 / alphas)
    fig, (left, right) = plot.figure(1, 2)
    for seed, marker in ((PLAIN, "o"), (LEAVING, "s")):
        setup = SetUp(seed)
        late = np.array([delays(setup, alpha, 1e-9)[0] for alpha in alphas])
        for k, column in enumerate((np.abs(late) / logs[:, None] / setup.path.times).T):
            left.loglog(logs, column, marker, color=f"C{k}", markersize=2.5)
            left.loglog(logs, column[-1] * logs[-1] / logs, color=f"C{k}", linewidth=0.6)
    setup = SetUp(PLAIN)
    t, small = setup.middles, np.geomspace(1e-24, 1e-2, 45 if size == "full" else 12)
    errors = np.array([distances(setup, setup.flow(alpha, t, 1e-11), t) for alpha in small])
    c = exponents(setup.problem, setup.path, t)
    for k in range(len(t)):
        right.loglog(small, errors[:, k], "o", color=f"C{k}", markersize=2.5)
        right.loglog(small, small ** c[k], color=f"C{k}", linewidth=0.6)
    left.set_xlabel("$\\log(1/\\alpha)$")
    left.set_ylabel("$|t-t_k|\\,/\\,t_k$")
    left.set_title("delay of the jumps, relative")
    right.set_xlabel("$\\alpha$")
    right.set_ylabel("relative distance")
    right.set_title("distance from the saddle, middle of the stay")
    right.set_ylim(1e-12, 1)
    both = (("o", "no coordinate leaves"), ("s", "one leaves"))
    marks = [
        Line2D([], [], color="0.4", linestyle="none", marker=m, markersize=2.5, label=name)
        for m, name in both
    ]
    handles = [Line2D([], [], color=f"C{k}", label=f"{k + 1}" if k else "jump 1") for k in range(6)]
    fig.legend(handles=[*marks, *handles], loc="outside upper right", ncols=8)
    return Plate(
        plot.save(fig, out / "limit")[1],
        "How far from the limit α → 0 the flow is. Left: relative delay of each jump (halfway in the loss) against log(1/α) "
        "(dimensionless), dots: exact flow without (circles) and with a coordinate that leaves (squares); lines: 1 / log(1/α) through the "
        "smallest start. Right: distance from the saddle after each jump, in the middle of the stay, no coordinate leaves; lines: α^c "
        "with c from the predicted path. Own measurements on the theorem of arXiv 2304.00488.",
    )
