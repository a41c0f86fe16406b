"""The exact flow of two-layer ReLU networks through kinks and along them: what gflow does where others chatter.

Not a paper but the solver's own show-piece: a case with every number in closed form, the conserved balances on
a random problem, and a picture of neurons that slide beside what a general solver does to them.  The sliding
rule is Filippov's; the balances are conserved by Clarke's flow, arXiv 2201.11968.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from scipy.integrate import RK45

from gflow import datasets, neurons, plot
from gflow.claims import Claim, Conclusion, Evidence
from gflow.integrate import flow
from gflow.models.relu import TwoLayerReLU
from gflow.objective import Objective
from gflow.papers import settle
from gflow.problem import Problem
from gflow.report import Plate, Section
from gflow.theory import Hypothesis
from gflow.trajectory import Trajectory

Array = NDArray[np.float64]

REFERENCE = "closed form (ours); sliding after Filippov, Clarke's flow as in arXiv 2201.11968"
ACCURACY = 1e-7
# Neuron A reaches the kink of the second sample at T1, slides along it and leaves at T2; outer weights 1, fixed.
T1 = float(np.log(1.5))
FIRST_SHARE = 0.2 * 1.5**1.25
T2 = T1 - float(np.log(FIRST_SHARE)) / 0.45


def two_neurons(residual: float = -2.0) -> tuple[TwoLayerReLU, Problem, Array]:
    """Two samples, two neurons: B fits the second sample from ``residual``; A moves along the first.

    L = Σ r² / 2, x = (1, 0), (1/2, 1), y = (2, 1/10).  r₂ = residual · e^(−5t/4), r₁ = (3/2) e^(−t): A meets
    its kink when r₁ = 1, at T1, and slides with s = (2/5) r₁ / |r₂|, r₁ falling as e^(−4t/5), until s = 1.
    """
    problem = Problem(np.array([[1.0, 0.0], [0.5, 1.0]]), np.array([2.0, 0.1]), factor=0.5)
    model = TwoLayerReLU(2, 2, train_outer=False)
    start = model.pack([[[0.5, -0.5], [-1.0, 0.6 - residual]], np.ones((1, 2))])
    return model, problem, start


def slides(residual: float, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure when neuron A begins to slide, with what share it does, and when it leaves."""
    hypothesis = Hypothesis("the second sample's residual is -2 at the start", abs(residual + 2.0) / 2.0)
    if respect_hypotheses and not hypothesis.holds:
        return Evidence((hypothesis,))
    model, problem, start = two_neurons(residual)
    middle = 0.5 * (T1 + T2)
    run = flow(model, problem, start, [middle, T2 + 1.0], rtol=rtol)
    assert run.events is not None
    mine = run.events.neuron == 0
    times = {kind: t for t, kind in zip(run.events.t[mine], run.events.kind[mine], strict=True)}
    share = neurons.multipliers(model, problem, run.theta[0])[0, 1]
    predicted = FIRST_SHARE * np.exp(0.45 * (middle - T1))
    conclusions = (
        Conclusion("time at which it begins to slide", times.get("slide", np.nan), ACCURACY, T1),
        Conclusion("share of the gradient while it slides", float(share), ACCURACY, predicted),
        Conclusion("time at which it leaves", times.get("leave_active", np.nan), ACCURACY, T2),
    )
    return Evidence((hypothesis,) if respect_hypotheses else (), conclusions, (run.status,))


def random_problem() -> tuple[TwoLayerReLU, Problem, Array]:
    """Ten points in three dimensions, a linear teacher and noise, twelve neurons: an ordinary problem that slides."""
    problem = Problem(*datasets.linear_teacher(10, 3, noise=0.5, rng=1))
    model = TwoLayerReLU(3, 12)
    return model, problem, model.init("balanced", 0.1, rng=1)


def conserves(rtol: float, events: bool = True) -> Evidence:
    """Measure the drift of the balances and the loss's rise along a problem with sliding neurons."""
    model, problem, start = random_problem()
    run = flow(model, problem, start, np.linspace(0.0, 60.0, 121), rtol=rtol, events=events, max_steps=20_000)
    slid = run.events is not None and np.any(run.events.kind == "slide")
    hypotheses = (Hypothesis("kinks are located, and neurons slide", float(not slid)),)
    drift = run.gauges.invariant_drift
    assert drift is not None
    rise = float(np.max(np.diff(run.loss), initial=0.0) / run.loss[0])
    conclusions = (
        Conclusion("drift of the balances, relative", float(drift.max()), 1e-9),
        Conclusion("largest rise of the loss between saved times, relative", rise, 1e-14),
    )
    return Evidence(hypotheses, conclusions, (run.status,))


def claims(size: str) -> list[tuple[Claim, str]]:
    """Claims, each with the verdict that it must get."""
    sliding = "A neuron slides along a kink, and leaves it, when the closed form says."
    balance = "‖a_j‖² − ‖w_j‖² is conserved through all kinks and along them, and the loss never rises."
    return [
        (Claim("sliding neuron", sliding, REFERENCE, partial(slides, -2.0)), "holds"),
        (Claim("balances through kinks", balance, "arXiv 2201.11968", conserves), "holds"),
        (Claim("control: another residual", sliding, REFERENCE, partial(slides, -1.9)), "inapplicable"),
        (
            Claim(
                "control: another residual, hypothesis ignored", sliding, REFERENCE,
                partial(slides, -1.9, respect_hypotheses=False),
            ),
            "violated",
        ),
        (
            Claim("control: kinks not located", balance, "arXiv 2201.11968", partial(conserves, events=False)),
            "inapplicable",
        ),
    ]  # fmt: skip


def prepare() -> None:
    """Run a little of everything, so that it is compiled."""
    model, problem, start = random_problem()
    run = flow(model, problem, start, 1.0)
    assert run.gauges.invariant_drift is not None and run.loss.size
    flow(model, problem, start, 1.0, events=False)


def reproduce(out: Path, size: str, advance: Callable[[float, str], None]) -> Section:
    """Check the claims and draw the figure."""
    section = Section(
        "kinks",
        "Two-layer ReLU networks: the exact flow, through kinks and along them",
        REFERENCE,
        "The gradient of a ReLU network jumps where a neuron's hyperplane passes a sample, and trajectories stick "
        "there. gflow locates the events, slides along the kinks and leaves them when the inclusion says; a general "
        "solver chatters across them.",
    )
    settle(section, claims(size), advance, 0.7)
    advance(0.7, "figure")
    with plot.style():
        section.plates.append(_plane_plate(out))
    advance(1.0, "done")
    return section


def plane() -> tuple[TwoLayerReLU, Problem, Array]:
    """Eight points in the plane and six neurons, some of which slide."""
    problem = Problem(*datasets.linear_teacher(8, 2, noise=1.0, rng=12))
    model = TwoLayerReLU(2, 6)
    return model, problem, model.init("balanced", 0.3, rng=112)


def chatter(model: Any, problem: Any, theta0: Array, end: float) -> tuple[Array, Array, Array]:
    """Steps of scipy's RK45 at rtol 1e-6 on the same gradient: times, states, and gradients spent by then."""
    objective = Objective(model, problem)
    solver = RK45(lambda t, theta: -objective.gradient(theta), 0.0, theta0, end, rtol=1e-6, atol=1e-9)
    rows = []
    while solver.status == "running":
        solver.step()
        rows.append((solver.t, solver.y, solver.nfev))
    times, states, spent = zip(*rows, strict=True)
    return np.array(times), np.array(states), np.array(spent)


def _plane_plate(out: Path) -> Plate:
    model, problem, start = plane()
    run = flow(model, problem, start, np.linspace(0.0, 30.0, 1500), rtol=1e-9)
    fig, (left, right) = plot.figure(1, 2, height=2.9)
    plot.neurons(left, run)
    left.set_title("neurons in the plane")
    left.set_xlabel("$w_{j1}$")
    left.set_ylabel("$w_{j2}$")
    spent = _distance(right, model, problem, run, start)
    assert run.events is not None
    return Plate(
        plot.save(fig, out / "plane")[1],
        "Six neurons of a ReLU network in the plane, eight samples. Left: their paths from dot to square; grey: the "
        f"samples' kinks; thick: sliding ({int(np.sum(run.events.kind == 'slide'))} times up to t = 30, for "
        f"{run.counts['gradients']} gradients at rtol 1e-9). Right: the height of one neuron over its kink, as it "
        f"arrives and slides: exact flow, and the steps of scipy's RK45 at rtol 1e-6, {spent} gradients in this "
        "stretch alone.",
    )


def _distance(ax: Axes, model: Any, problem: Any, run: Trajectory, start: Array) -> int:
    """Draw the height over its kink of the first neuron that slides; return RK45's gradients meanwhile."""
    assert run.events is not None
    first = int(np.flatnonzero(run.events.kind == "slide")[0])
    j, i, t0 = int(run.events.neuron[first]), int(run.events.sample[first]), float(run.events.t[first])
    window = (t0 - 0.002, t0 + 0.02)
    x = problem.X[i]
    exact = flow(model, problem, start, np.linspace(*window, 400), rtol=1e-9)
    times, states, spent = chatter(model, problem, start, window[1])
    shown = times >= window[0]
    theirs = 1e6 * (states[shown][:, 2 * j : 2 * j + 2] @ x)
    ax.plot(times[shown] - t0, theirs, ".-", markersize=2.0, linewidth=0.3, color="C1")
    ax.plot(exact.t - t0, 1e6 * (exact.theta[:, 2 * j : 2 * j + 2] @ x), color="C0")
    height = 2.5 * float(np.abs(theirs[times[shown] > t0 + 0.002]).max())
    ax.set_ylim(-height, height)
    ax.set_xlabel("time after the event")
    ax.set_ylabel(f"$10^6\\, w_{{{j + 1}}} \\cdot x_{{{i + 1}}}$")
    ax.set_title("a neuron meets its kink and slides")
    handles = [
        Line2D([], [], color="C0", label="exact flow"),
        Line2D([], [], color="C1", marker=".", linewidth=0.3, markersize=4, label="steps of RK45"),
    ]
    ax.legend(handles=handles, loc="upper right")
    return int(spent[-1] - spent[shown][0])
