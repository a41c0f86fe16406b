"""A. M. Saxe, J. L. McClelland, S. Ganguli: Exact solutions to the nonlinear dynamics of learning in
deep linear neural networks (2013), arXiv 1312.6120.

The paper's loss is half a sum of squares over the items, which are one-hot: factor ½, and time in units
of its time constant.  Its N_l counts layers of units; N here counts weight matrices, N = N_l − 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from gflow import datasets, observe, plot, theory
from gflow.claims import Claim, Conclusion, Evidence
from gflow.comparison import compare
from gflow.integrate import flow
from gflow.models.linear import DeepLinear
from gflow.papers import settle
from gflow.problem import Problem
from gflow.report import Plate, Section
from gflow.trajectory import Trajectory

Array = NDArray[np.float64]

REFERENCE = "arXiv 1312.6120"
FACTOR = 0.5
STRENGTH = 1e-3
ACCURACY = 1e-7
# The depth experiment: one mode of strength 2, from 0.01 to 1.9.
TARGET, FIRST, LAST = 2.0, 0.01, 1.9


def tree(depth: int) -> tuple[DeepLinear, Problem, Array]:
    """Network, problem and aligned balanced start on the tree of eight items and fifteen properties."""
    problem = Problem(*datasets.hierarchy(3), factor=FACTOR)
    model = DeepLinear((8, *(8,) * (depth - 1), 15))
    return model, problem, model.init("aligned", STRENGTH ** (1 / depth), rng=0, problem=problem)


def _times(problem: Problem, depth: int, count: int) -> Array:
    s = problem.target_svd[1]
    end = theory.linear.mode_time(STRENGTH, 0.99 * s[-1], s[-1], depth)
    return np.linspace(0.0, float(end), count)


def follows(
    depth: int, rtol: float, theta0: Callable[[DeepLinear, Problem, Array], Array] | None = None,
    respect_hypotheses: bool = True,
) -> Evidence:  # fmt: skip
    """Measure how closely the tree's modes follow the closed form, from the start that ``theta0`` makes."""
    model, problem, start = tree(depth)
    if theta0 is not None:
        start = theta0(model, problem, start)
    prediction = theory.linear.modes(model, problem, start, force=True)
    hypotheses = prediction.hypotheses if respect_hypotheses else ()
    if not all(h.holds for h in hypotheses):
        return Evidence(hypotheses)
    trajectory = flow(model, problem, start, _times(problem, depth, 200), rtol=rtol)
    amplification = trajectory.amplification
    s = problem.target_svd[1]
    sharpness = observe.sharpness(model, problem, trajectory.end)  # its mode was learned long ago
    return Evidence(
        hypotheses,
        (
            Conclusion(
                "mode strengths, largest relative difference from the closed form",
                compare(trajectory, prediction).max_error, ACCURACY, amplification=amplification,
            ),
            Conclusion(
                "sharpness at the end, N s^(2 − 2/N) of the strongest mode",
                sharpness, ACCURACY, depth * s[0] ** (2 - 2 / depth), amplification,
            ),
        ),
        (trajectory.status,),
    )  # fmt: skip


def _unbalanced(model: DeepLinear, problem: Problem, start: Array) -> Array:
    """The same end-to-end map with the last layer twice and the first half as large."""
    weights = model.unpack(start)
    return model.pack([0.5 * weights[0], *weights[1:-1], 2.0 * weights[-1]])


def _random(model: DeepLinear, problem: Problem, start: Array) -> Array:
    return model.init("gaussian", float(np.sqrt(np.mean(start**2))), rng=0)


def crossing(depth: int, rtol: float) -> tuple[float, Trajectory]:
    """When a chain of ``depth`` scalar weights takes its mode from 0.01 to 1.9, on the trajectory.

    NaN if the trajectory, run beyond the predicted time, does not get there.
    """
    model, problem = DeepLinear((1,) * (depth + 1)), Problem.factorization([[TARGET]], factor=FACTOR)
    start = np.full(depth, FIRST ** (1 / depth))
    end = 1.05 * float(theory.linear.mode_time(FIRST, LAST, TARGET, depth))
    run = flow(model, problem, start, end, rtol=rtol, dense=True)
    if run.t[-1] < end or not run.end.prod() > LAST:
        return float("nan"), run
    return float(brentq(lambda t: run.at(t).prod() - LAST, 0.0, end, xtol=1e-14 * end, rtol=1e-14)), run


def depth_free(depths: tuple[int, ...], rtol: float) -> Evidence:
    """With a step size proportional to 1/N the number of steps N t_N stays finite as N grows."""
    conclusions, statuses = [], []
    for n in depths:
        t, run = crossing(n, rtol)
        predicted = float(theory.linear.mode_time(FIRST, LAST, TARGET, n))
        conclusions.append(Conclusion(f"N t_N at N = {n}", n * t, ACCURACY, n * predicted, run.amplification))
        statuses.append(run.status)
    limit = float(theory.linear.mode_time(FIRST, LAST, TARGET, np.inf))
    deepest = conclusions[-1].value
    conclusions.append(
        Conclusion("N t_N at the deepest over its limit at infinite depth", deepest / limit, 1.0)
    )
    return Evidence((), tuple(conclusions), tuple(statuses))


def claims(size: str) -> list[tuple[Claim, str]]:
    """Claims, each with the verdict that it must get."""
    depths = (1, 2, 3, 4, 5, 10) if size == "quick" else (1, 2, 3, 4, 5, 10, 20, 50)
    sigmoid = "Every mode of the semantic tree is learned along its sigmoid, broad distinctions first."
    listed = [
        (Claim(f"tree, {n} layers", sigmoid, REFERENCE, partial(follows, n)), "holds")
        for n in ((2, 3) if size == "quick" else (2, 3, 4, 5))
    ]
    listed.append(
        (
            Claim(
                "depth-independent learning",
                "Times for a step size proportional to 1/N approach a finite limit from below.",
                REFERENCE,
                partial(depth_free, depths),
            ),
            "holds",
        )
    )
    for name, start, respect, expected in (
        ("control: unbalanced start", _unbalanced, True, "inapplicable"),
        ("control: random start", _random, True, "inapplicable"),
        ("control: unbalanced start, hypotheses ignored", _unbalanced, False, "violated"),
    ):
        run = partial(follows, 2, theta0=start, respect_hypotheses=respect)
        listed.append((Claim(name, sigmoid, REFERENCE, run), expected))
    return listed


def reproduce(out: Path, size: str, advance: Callable[[float, str], None]) -> Section:
    """Check the claims and draw the figures."""
    section = Section(
        "saxe2013",
        "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks",
        "A. M. Saxe, J. L. McClelland, S. Ganguli (2013), arXiv 1312.6120.",
        "Eight items at the leaves of a binary tree, fifteen properties at its nodes: a deep linear network learns "
        "the distinctions from broad to fine, each along a curve known in closed form. With a step size "
        "proportional to 1/N, the number of steps to learn a mode approaches a finite limit as the depth N grows.",
    )
    settle(section, claims(size), advance, 0.7, rtol=1e-10)
    advance(0.7, "figures")
    with plot.style():
        section.plates += [_tree_plate(out), _depth_plate(out, 10 if size == "quick" else 50)]
    advance(1.0, "done")
    return section


def _tree_plate(out: Path) -> Plate:
    fig, axes = plot.figure(1, 2)
    for depth, ax in zip((2, 3), axes, strict=True):
        model, problem, start = tree(depth)
        run = flow(model, problem, start, _times(problem, depth, 400), rtol=1e-9)
        compare(run, theory.linear.modes(model, problem, start)).plot(ax)
        ax.set_title(f"{depth} layers")
        ax.set_ylabel("mode strength" if depth == 2 else "")
        ax.set_xlabel("time $t$ (time constants)")
        for level, s in enumerate(np.unique(np.round(problem.target_svd[1], 9))[::-1]):
            name = "all items" if level == 0 else f"split {level}"
            ax.annotate(
                name,
                (1.0, s),
                (0, 2),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                va="bottom",
                fontsize=6,
            )
        ax.get_legend().remove()
    fig.legend(handles=plot.kinds(), loc="outside upper right", ncols=2)
    return Plate(
        plot.save(fig, out / "tree")[1],
        "Strengths of the modes of the semantic tree (8 items, 15 properties), from root to finest split: closed "
        "form (lines) and exact flow at rtol 1e-9 (dots), for 2 and 3 layers. After figure 3 of arXiv 1312.6120.",
    )


def _depth_plate(out: Path, deepest: int) -> Plate:
    depths = np.unique(np.round(np.geomspace(1, 100, 40)).astype(int))
    closed = [n * float(theory.linear.mode_time(FIRST, LAST, TARGET, int(n))) for n in depths]
    some = [n for n in (1, 2, 3, 4, 5, 7, 10, 20, 35, 50) if n <= deepest]
    fig, ax = plot.figure()
    ax.semilogx(depths, closed, label="closed form")
    ax.semilogx(some, [n * crossing(n, 1e-9)[0] for n in some], "o", label="exact flow")
    limit = float(theory.linear.mode_time(FIRST, LAST, TARGET, np.inf))
    ax.axhline(limit, color="0.5", linestyle=":", linewidth=0.8, label="infinite depth")
    ax.set_xlabel("depth $N$ (weight matrices)")
    ax.set_ylabel("$N\\,t_N$ (time constants)")
    ax.set_ylim(0, 1.1 * limit)
    ax.legend(loc="lower right")
    return Plate(
        plot.save(fig, out / "depth")[1],
        "Learning time of one mode (target 2, from 0.01 to 1.9) times depth: the number of steps, up to a constant, "
        "of gradient descent with a step size proportional to 1/N. It approaches the limit of infinite depth "
        "(dotted). After section 3 of arXiv 1312.6120.",
    )
