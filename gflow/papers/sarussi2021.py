"""R. Sarussi, A. Brutzkus, A. Globerson: Towards understanding learning in neural networks with linear teachers
(2021), arXiv 2101.02533.

f(x) = v Σ s(w_j · x) − v Σ s(u_j · x), leaky slope α, the outer weights ±v fixed, v = 1/√(2k) for k neurons of either
kind; the logistic loss with the factor 1/n, gflow's own; labels of a linear teacher.  Where the paper's constants are of
descent and not at hand, bounds are our own (:mod:`gflow.theory.clusters`).  The theorem on directions says where
a flow tends *if* its neurons come to agree: whether they do is measured, and where they slide along a kink the
direction is our own extension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from gflow import datasets, iterate, observe, plot
from gflow.claims import Claim, Conclusion, Evidence, Observation
from gflow.integrate import flow
from gflow.iterate import descend
from gflow.models.relu import TwoLayerReLU
from gflow.papers import settle, unbroken
from gflow.problem import Problem
from gflow.report import Plate, Section, observation_row
from gflow.theory import Hypothesis, clusters
from gflow.theory.separable import max_margin
from gflow.trajectory import Trajectory

Array = NDArray[np.float64]

REFERENCE = "arXiv 2101.02533"
OWN = f"{REFERENCE}, with a bound of our own"
SLOPE = 0.3
#: Entries of the first layer are N(0, (scale / √(2k))²), so that ‖W(0)‖ knows no width.
SMALL, MEDIUM, LARGE = 1e-3, 3.0, 30.0
#: Distance of unit vectors at log(1/L) = FAR, and extrapolated.
RAW, EXTRAPOLATED = 1e-5, 1e-6
#: log(1/L) from which on neurons must agree, and how far claims on directions go.
SETTLED, FAR = 1e2, 1e6
#: rtol × log(1/L) above which a kink that is left may be an artefact.
RESOLVED = 1e-2
#: Radii over ‖w̄ − ū‖ of neurons that count as two clusters.
CLUSTERED = 0.01
#: Loss of the claims on training time, and largest step size of descent.
TRAINED, STEP = 0.05, 0.5
#: How much of a sample, relative, is rounding.
ROUNDING = 1e-10
#: Pairs of digits: from a small start neurons come to agree perfectly on the first two, not quite on the others.
PAIRS = ((0, 1), (2, 7), (3, 5), (4, 9))
TRAINING = 200


@cache
def data(name: str) -> Problem:
    """The data by name; all separable by a line through the origin but ``"contradictory"``.

    ``"clouds"``: two Gaussian clouds on opposite sides of the origin, for which y_i y_j ⟨x_i, x_j⟩ > 0; ``"teacher"``: Gaussian
    inputs, labels of a random line, moved off it; ``"few"``: five such, not moved; ``"beside"``: two clouds on the same
    side; ``"symmetric"``: (x, y) and (−x, −y); ``"three"``: three inputs in space; ``"contradictory"``: the clouds, and the
    first input once more with the other label.
    """
    if name == "clouds" or name == "beside":
        centre = np.array([[1.5, 0.8], [-1.5, -0.8]] if name == "clouds" else [[2.0, 0.5], [0.5, 2.0]])
        noise = np.random.default_rng(0).standard_normal((20, 2))
        x = centre.repeat(10, axis=0) + (0.5 if name == "clouds" else 0.3) * noise
        return Problem(x, np.repeat([1.0, -1.0], 10), "logistic")
    if name == "contradictory":
        clouds = data("clouds")
        return Problem(np.vstack([clouds.X, clouds.X[:1]]), np.append(clouds.Y, -clouds.Y[0]), "logistic")
    if name == "symmetric":
        half = data("teacher")
        x, y = half.X[:10], half.Y[:10, 0]
        return Problem(np.vstack([x, -x]), np.r_[y, -y], "logistic")
    if name == "teacher":
        rng = np.random.default_rng(3)
        x, line = rng.standard_normal((40, 2)), np.array([0.6, 0.8])
        y = np.sign(x @ line)
        return Problem(x + 0.2 * y[:, None] * line, y, "logistic")
    rng = np.random.default_rng(24 if name == "few" else 1040)
    d = 2 if name == "few" else 3
    x = rng.standard_normal((int(rng.integers(3, 9) if name == "few" else rng.integers(2, 7)), d))
    return Problem(x, np.sign(x @ rng.standard_normal(d)), "logistic")


@cache
def digits(first: int, second: int) -> tuple[Problem, Problem]:
    """Two digits to be told apart, to train on and to test: pixels less their mean over the training images."""
    x, labels = datasets.digits()
    kept = np.flatnonzero(labels[:, first] + labels[:, second])
    x, y = x[kept], np.where(labels[kept, first] == 1, 1.0, -1.0)
    x = x - x[:TRAINING].mean(axis=0)
    return Problem(x[:TRAINING], y[:TRAINING], "logistic"), Problem(x[TRAINING:], y[TRAINING:], "logistic")


@dataclass(frozen=True)
class SetUp:
    """A network and its start on some data, by name or a pair of digits."""

    data: str | tuple[int, int]
    each: int = 4
    scale: float = SMALL
    seed: int = 0
    slope: float = SLOPE

    @property
    def problem(self) -> Problem:
        return data(self.data) if isinstance(self.data, str) else digits(*self.data)[0]

    @property
    def model(self) -> TwoLayerReLU:
        return TwoLayerReLU(self.problem.inputs, 2 * self.each, slope=self.slope, train_outer=False)

    @property
    def outer(self) -> float:
        return float((2 * self.each) ** -0.5)

    @property
    def numbers(self) -> tuple[int, int]:
        return self.each, self.each

    @cached_property
    def theta0(self) -> Array:
        signs = np.repeat([1.0, -1.0], self.each)
        size = self.scale * self.outer
        return self.model.init("gaussian", size, rng=self.seed, signs=signs, outer=self.outer)

    @property
    def origin(self) -> float:
        """log(1/L) of the start."""
        return -float(observe.log_loss(self.model, self.problem, self.theta0))

    def by_loss(self, levels: ArrayLike, rtol: float, **options: Any) -> Trajectory:
        """The flow at values of log(1/L), or so much beyond that of the start where it is above them."""
        levels = np.asarray(levels) + max(self.origin, 0.0)
        return unbroken(
            flow(
                self.model, self.problem, self.theta0, levels, clock="loss", rtol=rtol, max_steps=10**8, **options
            )
        )  # fmt: skip

    def sgd(self, updates: int, save_every: int, **options: Any) -> Trajectory:
        """Descent on single samples."""
        return unbroken(
            descend(
                self.model, self.problem, self.theta0, STEP, updates, batch_size=1, rng=self.seed,
                save_every=save_every, **options,
            )
        )  # fmt: skip


def heading(model: Any, problem: Any, theta: ArrayLike) -> Array:
    """An observable (m, d): the first layer over its norm."""
    w = model.first_layer(theta)
    return w / np.linalg.norm(w)


def errors(model: Any, problem: Problem, theta: ArrayLike) -> int:
    """An observable: the number of samples on the wrong side, or on none."""
    return int(np.sum(problem.Y * model.function(theta, problem.X) <= 0))


# ---- claims ------------------------------------------------------------------------------------------------


def stopped(run: Trajectory) -> Evidence:
    """That of a run which ended before its time: its status, and nothing measured."""
    return Evidence((), (Conclusion("the run came to its end", np.nan, 0.0),), (run.status,))


def levels_to(far: float) -> Array:
    """Values of log(1/L) at which claims on directions look, as many as their extrapolation wants."""
    return np.geomspace(SETTLED, far, 4 * round(np.log10(far / SETTLED)) + 1)


def extrapolated(name: str, limit: observe.Limit, wanted: Array) -> Conclusion:
    """The distance of a limit from what it must be, known no better than the limit is."""
    off = float(np.linalg.norm(limit.value - wanted))
    return Conclusion(name, off, EXTRAPOLATED, amplification=limit.error / float(np.finfo(float).eps))


def becomes_perfect(setup: SetUp, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure whether every sample's place under every neuron moves the right way only, and all get there."""
    least = clusters.least_cosine(setup.problem)
    hypothesis = Hypothesis("y_i y_j ⟨x_i, x_j⟩ > 0 (defect: least cosine, if negative)", max(0.0, -least))
    if respect_hypotheses and not hypothesis.holds:
        return Evidence((hypothesis,))
    run = setup.by_loss(np.geomspace(1e-3, 1e3, 100), rtol)
    theta = np.vstack([setup.theta0, run.theta])
    w, (x, y) = setup.model.first_layer(theta), (setup.problem.X, setup.problem.Y[:, 0])
    z = y * np.einsum("tjd,id->tji", w, x) * np.sign(setup.model.outer_layer(setup.theta0)[0])[:, None]
    falls = np.max(-np.diff(z, axis=0), initial=0.0) / np.abs(z[-1]).max()
    perfect = np.array([clusters.agreement(setup.model, setup.problem, one).perfect for one in theta])
    conclusions = (
        Conclusion("largest step back of ±y w · x, relative to the largest at the end", float(falls), ROUNDING),
        Conclusion("pairs of kind and sample that do not agree with the label at the end",
                   float(1 - perfect[-1]), ROUNDING),
        Conclusion("largest fall of the fraction that does", float(np.max(-np.diff(perfect), initial=0.0)) + 0.0, ROUNDING),
    )  # fmt: skip
    return Evidence((hypothesis,) if respect_hypotheses else (), conclusions, (run.status,))


def tends(setup: SetUp, rtol: float, far: float = FAR, respect_hypotheses: bool = True) -> Evidence:
    """Measure how far the direction of all neurons is from that of the quadratic program of their regime."""
    run = setup.by_loss(levels_to(far), rtol)
    if not run.status.ok:
        return stopped(run)
    seen = np.array([clusters.agreement(setup.model, setup.problem, one).signs for one in run.theta])
    agree = Hypothesis("neurons of a kind agree at log(1/L) = 100 (defect: on how many they do not)",
                       float(np.isnan(seen[0]).mean()))  # fmt: skip
    after = Hypothesis("the same at all saved values after that (defect: on how many they do not)",
                       float(np.mean(seen != seen[0])))  # fmt: skip
    if agree.holds and not after.holds and rtol * far > RESOLVED:
        # margins are as large as log(1/L): unless they are known to order one, neurons chatter off their kinks
        return Evidence((agree,), (), (run.status,))
    hypotheses: tuple[Hypothesis, ...] = (agree, after)
    if respect_hypotheses and not (agree.holds and after.holds):
        return Evidence(hypotheses, (), (run.status,))
    signs = (seen[0, 0], seen[0, 1]) if agree.holds else None
    wanted = clusters.direction(setup.problem, setup.slope, signs, setup.numbers, setup.outer)
    hypotheses += (
        Hypothesis("the predicted direction has these signs (defect: the least cosine, if negative)",
                   max(0.0, -wanted.consistent)),
    )  # fmt: skip
    unit = wanted.neurons(setup.numbers)
    margin = observe.margin(setup.model, setup.problem, run.end)
    conclusions = (
        Conclusion(f"distance of the directions at log(1/L) = {far:g}",
                   float(np.linalg.norm(heading(setup.model, setup.problem, run.end) - unit)), RAW * FAR / far),
        extrapolated("distance of the extrapolated direction", observe.limit(run, heading), unit),
        Conclusion(f"normalised margin at log(1/L) = {far:g}", float(margin), RAW * FAR / far, wanted.margin),
    )  # fmt: skip
    return Evidence(hypotheses if respect_hypotheses else (), conclusions, (run.status,))


def support_vectors(setup: SetUp, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure the distance of w̄ − ū from the direction of the support vector machine."""
    hypothesis = Hypothesis(
        "α = 1 or symmetric data", min(1 - setup.slope, clusters.symmetry_defect(setup.problem))
    )
    if respect_hypotheses and not hypothesis.holds:
        return Evidence((hypothesis,))
    run = setup.by_loss(levels_to(1e4), rtol)
    if not run.status.ok:
        return stopped(run)

    def predictor(model: Any, problem: Any, theta: ArrayLike) -> Array:
        w, u = clusters.centres(model, problem, theta)
        return (w - u) / np.linalg.norm(w - u)

    return Evidence(
        (hypothesis,) if respect_hypotheses else (),
        (extrapolated("distance of w̄ − ū, extrapolated, from the support vector machine",
                      observe.limit(run, predictor), max_margin(setup.problem).direction[0]),),
        (run.status,),
    )  # fmt: skip


def circle(count: int = 100_000) -> Array:
    """Unit vectors of the plane, none of which is on a sample's axis."""
    angle = 2 * np.pi * (np.arange(count) + 0.5) / count
    return np.column_stack([np.cos(angle), np.sin(angle)])


def linear_boundary(setup: SetUp, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure where the sign of a trained network is not that of its linear predictor."""
    leaky = Hypothesis("0 < α (defect: 1 if not)", float(setup.slope <= 0), 0.0)
    if respect_hypotheses and not leaky.holds:
        return Evidence((leaky,))
    run = setup.by_loss([5.0], rtol)
    if not run.status.ok:
        return stopped(run)
    model, points = setup.model, circle()
    w, u = clusters.centres(model, None, run.end)
    share = float(clusters.radii(model, None, run.end).max() / np.linalg.norm(w - u))
    two = Hypothesis("two clusters: radii / ‖w̄ − ū‖ at log(1/L) = 5", share, CLUSTERED)
    if respect_hypotheses and not two.holds:
        return Evidence((leaky, two), (), (run.status,))
    other = np.sign(model.function(run.end, points)[:, 0]) != np.sign(points @ (w - u))
    conclusions = [
        # of directions at an angle to the boundary, the band takes up 2 / π × this
        Conclusion("part of the plane in which the signs differ", float(other.mean()),
                   2 / np.pi * np.arcsin(CLUSTERED * (1 - setup.slope) / (1 + setup.slope))),
    ]  # fmt: skip
    if leaky.holds:
        linear, band = clusters.boundary(model, run.end, points)
        outside = np.mean(other & (np.abs(linear) > band))
        conclusions.append(Conclusion("the same, outside of our band", float(outside), ROUNDING))
    return Evidence((leaky, two) if respect_hypotheses else (), tuple(conclusions), (run.status,))


def _separated(problem: Problem) -> tuple[Hypothesis, Array]:
    """Whether the data are separable, and a vector that separates them with y w · x ≥ 1, or the clouds it is made of."""
    try:
        best = max_margin(problem)
    except ValueError:
        best = max_margin(data("clouds"))
        return Hypothesis("the data are separable (defect: 1 if not)", 1.0, 0.0), best.direction[
            0
        ] / best.margin
    return Hypothesis("the data are separable (defect: 1 if not)", 0.0, 0.0), best.direction[0] / best.margin


def trains_in_time(setup: SetUp, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure the loss at the time of our bound."""
    separable, _ = _separated(setup.problem)
    if respect_hypotheses and not separable.holds:
        return Evidence((separable,))
    known = setup if separable.holds else replace(setup, data="clouds")  # what the bound is taken of
    bound = clusters.training_time(known.model, known.problem, setup.theta0, TRAINED)
    run = unbroken(flow(setup.model, setup.problem, setup.theta0, bound.time, rtol=rtol))
    return Evidence(
        (separable,) if respect_hypotheses else (),
        (Conclusion(f"loss at the time T = {bound.time:.3g}", float(run.loss[-1]), TRAINED),),
        (run.status,),
    )


def has_good_epoch(setup: SetUp, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure whether descent on single samples comes through an epoch without a mistake before our bound.

    It does not know a tolerance: both runs are the same to the last bit.
    """
    separable, _ = _separated(setup.problem)
    if respect_hypotheses and not separable.holds:
        return Evidence((separable,))
    known = setup if separable.holds else replace(setup, data="clouds")
    bound = clusters.training_epochs(known.model, known.problem, setup.theta0, float(np.log(2)), STEP)
    n = len(setup.problem.X)
    epochs = int(bound) + 1 if not separable.holds else min(int(bound) + 1, 200)
    run = setup.sgd(n * epochs, 1)
    good = np.flatnonzero(~mistakes(setup, run).reshape(-1, n).any(axis=1))
    before = float(good[0]) if good.size else epochs if epochs > bound else np.nan  # too few to tell
    return Evidence(
        (separable,) if respect_hypotheses else (),
        (Conclusion("epochs before one without a mistake", before, bound),),
        (run.status,),
    )


def mistakes(setup: SetUp, run: Trajectory) -> NDArray[np.bool_]:
    """Whether the sample of each update (N,) was on the wrong side, or on none, when it was visited."""
    visited = np.asarray(iterate.batches(run)).ravel()
    x, y = setup.problem.X[visited], setup.problem.Y[visited, 0]
    w, a = setup.model.first_layer(run.theta[:-1]), setup.model.outer_layer(setup.theta0)[0]
    z = np.einsum("tjd,td->tj", w, x)
    found: NDArray[np.bool_] = y * (np.where(z > 0, z, setup.slope * z) @ a) <= 0
    return found


def claims(size: str) -> list[tuple[Claim, str]]:
    """Claims, each with the verdict that it must get."""
    perfect = "Where y_i y_j ⟨x_i, x_j⟩ > 0 the neurons come to agree with the labels, monotonically, from any start."
    direction = (
        "Neurons that agree tend to two directions, which solve the quadratic program of their regime."
    )
    machine = "w̄ − ū tends to the direction of the support vector machine."
    boundary = "A network of two clusters of neurons has a linear decision boundary, but for a band that their radii bound."
    time = "The loss is below ε for all times after T, which does not depend on the width."
    epoch = "Descent on single samples comes through an epoch without a mistake before a bound that knows no width."
    clouds, teacher = SetUp("clouds"), SetUp("teacher", each=10)
    large = replace(clouds, scale=LARGE)
    far = 1e4 if size == "quick" else FAR  # of all but the first
    wide = SetUp("teacher", each=2 if size == "quick" else 100, scale=MEDIUM)
    listed: list[tuple[str, str, str, Callable[[float], Evidence], str]] = [
        ("perfect agreement, small start", perfect, REFERENCE, partial(becomes_perfect, clouds), "holds"),
        ("perfect agreement, large start", perfect, REFERENCE, partial(becomes_perfect, large), "holds"),
        ("direction, perfect agreement", direction, REFERENCE, partial(tends, SetUp("clouds", each=2)), "holds"),
        ("direction, imperfect agreement", direction, REFERENCE, partial(tends, SetUp("few", seed=24), far=far), "holds"),
        ("direction, sliding along a kink", direction, f"{REFERENCE}, our extension",
         partial(tends, SetUp("beside"), far=far), "holds"),
        ("symmetric data", machine, "arXiv 2110.13905, outer layer fixed", partial(support_vectors, SetUp("symmetric")), "holds"),
        ("linear boundary, small start", boundary, REFERENCE, partial(linear_boundary, teacher), "holds"),
        ("training time, small start", time, OWN, partial(trains_in_time, clouds), "holds"),
        ("training time, large start", time, OWN, partial(trains_in_time, large), "holds"),
        (f"epoch without a mistake, {2 * wide.each} neurons", epoch, OWN, partial(has_good_epoch, wide), "holds"),
    ]  # fmt: skip
    if size == "full":
        listed += [
            ("direction, digits 2 and 7", direction, REFERENCE, partial(tends, SetUp((2, 7), each=2), far=3e4), "holds"),
            ("epoch without a mistake, digits 3 and 5", epoch, OWN, partial(has_good_epoch, SetUp((3, 5))), "holds"),
        ]  # fmt: skip
    for name, statement, source, run in (
        ("control: a teacher's labels all around", perfect, REFERENCE, partial(becomes_perfect, teacher)),
        ("control: neurons that never agree", direction, REFERENCE, partial(tends, SetUp("three", scale=1e-4, seed=40), far=1e4)),
        ("control: data that are not symmetric", machine, REFERENCE, partial(support_vectors, clouds)),
        ("control: large start", boundary, REFERENCE, partial(linear_boundary, replace(teacher, scale=LARGE))),
        ("control: slope 0", boundary, REFERENCE, partial(linear_boundary, replace(teacher, slope=0.0))),
        ("control: a contradictory label", time, OWN, partial(trains_in_time, SetUp("contradictory"))),
        ("control: a contradictory label, epochs", epoch, OWN, partial(has_good_epoch, SetUp("contradictory", each=2))),
    ):  # fmt: skip
        listed.append((name, statement, source, run, "inapplicable"))
        ignored = partial(run.func, *run.args, **run.keywords, respect_hypotheses=False)
        listed.append((f"{name}, hypotheses ignored", statement, source, ignored, "violated"))
    return [
        (Claim(name, statement, source, run), expected) for name, statement, source, run, expected in listed
    ]


# ---- observations and figures ------------------------------------------------------------------------------


@cache
def updates_until_right(setup: SetUp, limit: int) -> float:
    """Updates of descent on single samples until none is on the wrong side, looked at every 5; inf beyond a limit."""
    model, problem = setup.model, setup.problem
    run = setup.sgd(limit, 5, stop=lambda t, theta: errors(model, problem, theta) == 0)
    return run.t[-1] / STEP if errors(model, problem, run.end) == 0 else np.inf


def widths(size: str) -> tuple[int, ...]:
    """Neurons of either kind."""
    return (2, 8, 32, 128) if size == "quick" else (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def seeds(size: str) -> range:
    """Of starts and orders of samples."""
    return range(5 if size == "quick" else 10)


#: What descent is run on: data, scale of the start, updates allowed, and a name.
DESCENTS: tuple[tuple[str | tuple[int, int], float, int, str], ...] = (
    ("teacher", SMALL, 40_000, "plane, small start"),
    ("teacher", MEDIUM, 40_000, "plane, larger start"),
    ((3, 5), SMALL, 40_000, "digits 3 and 5, small start"),
    ((3, 5), MEDIUM, 40_000, "digits 3 and 5, larger start"),
)


def counts(size: str, case: int) -> Array:
    """Updates (widths, seeds) until no training error, for one of :data:`DESCENTS`."""
    name, scale, limit, _ = DESCENTS[case]
    return np.array([[updates_until_right(SetUp(name, each, scale, seed), limit) for seed in seeds(size)]
                     for each in widths(size)])  # fmt: skip


@dataclass(frozen=True, eq=False)
class Digits:
    """What descent on a pair of digits came to."""

    setup: SetUp
    run: Trajectory  # an epoch each
    agreements: Array  # (T, 3)
    test_error: float  # of the network
    linear_error: float  # of its linear predictor
    different: float  # part of the test images to which they give other signs
    decided: float  # part of them outside of the band

    @property
    def epochs(self) -> Array:
        """Of the saved states (T,)."""
        return self.run.t / STEP / TRAINING


@cache
def told_apart(pair: tuple[int, int], scale: float, epochs: int) -> Digits:
    """Train on a pair of digits by descent on single images."""
    setup, test = SetUp(pair, each=10, scale=scale), digits(*pair)[1]
    run = setup.sgd(TRAINING * epochs, TRAINING)
    sign = np.sign(setup.model.function(run.end, test.X)[:, 0])
    linear, band = clusters.boundary(setup.model, run.end, test.X)
    y = test.Y[:, 0]
    return Digits(
        setup, run, observe.along(run, clusters.agreements), float(np.mean(sign != y)),
        float(np.mean(np.sign(linear) != y)), float(np.mean(sign != np.sign(linear))), float(np.mean(np.abs(linear) > band)),
    )  # fmt: skip


def epochs_of(size: str) -> int:
    """Of descent on digits."""
    return 100 if size == "quick" else 1000


def unlike_linear(scale: float, each: int, seed: int) -> tuple[float, float]:
    """Part of the plane in which a network without training errors is unlike its linear predictor, and its error."""
    setup, points = SetUp("teacher", each, scale, seed), circle(20_000)
    parts = []
    for rtol in (1e-9, 1e-11):
        run = setup.by_loss([5.0], rtol)
        w, u = clusters.centres(setup.model, None, run.end)
        parts.append(
            np.mean(np.sign(setup.model.function(run.end, points)[:, 0]) != np.sign(points @ (w - u)))
        )
    return float(parts[1]), float(abs(parts[1] - parts[0]) + 1 / len(points))


def observations(size: str) -> list[Observation]:
    """What no theorem here says: how long descent takes, how digits are told apart, how far bounds are."""
    listed = []
    for case, (*_, name) in enumerate(DESCENTS):
        found = counts(size, case)
        medians = ", ".join(f"{np.median(row):.0f}" for row in found)
        listed.append(
            Observation(
                f"{name}: updates until no training error, most over {found.shape[1]} seeds and all widths",
                float(found.max()), 5.0, f"medians for {', '.join(str(2 * w) for w in widths(size))} neurons: {medians}",
                REFERENCE,
            )
        )  # fmt: skip
    for scale in STARTS:
        parts = [unlike_linear(scale, 10, seed) for seed in range(5)]
        listed.append(
            Observation(
                f"plane, start of scale {scale:g}: part of it with another sign than the linear predictor, at log(1/L) = 5 or later",
                max(p for p, _ in parts), max(e for _, e in parts), "largest of 5 seeds", REFERENCE,
            )
        )  # fmt: skip
    for pair in PAIRS:
        for scale in (SMALL, MEDIUM):
            d = told_apart(pair, scale, epochs_of(size))
            agreed = clusters.agreement(d.setup.model, d.setup.problem, d.run.end)
            listed.append(
                Observation(
                    f"digits {pair[0]} and {pair[1]}, start of scale {scale:g}, descent: agreement, as a fraction",
                    agreed.fraction, 0.0,
                    f"regime {agreed.regime}; test error {d.test_error:.3g}, of the linear predictor {d.linear_error:.3g}; "
                    f"signs differ on {d.different:.3g} of the test images, {d.decided:.3g} are outside of the band", REFERENCE,
                )
            )  # fmt: skip
    setup = SetUp("clouds")
    bound = clusters.training_time(setup.model, setup.problem, setup.theta0, TRAINED)
    fine, coarse = (setup.by_loss([-np.log(TRAINED)], rtol) for rtol in (1e-11, 1e-9))
    assert fine.log_time is not None and coarse.log_time is not None
    when = np.exp([fine.log_time[-1], coarse.log_time[-1]])
    listed.append(
        Observation(f"clouds, small start: time at which the loss is {TRAINED:g}", float(when[0]),
                    float(abs(when[0] - when[1])), f"our bound: {bound.time:.3g}", OWN)
    )  # fmt: skip
    leaky = clusters.direction(setup.problem, SLOPE)
    best, z = max_margin(setup.problem).direction[0], (leaky.w - leaky.u) / np.linalg.norm(leaky.w - leaky.u)
    listed.append(
        Observation("clouds: angle of w − u, as predicted, with the support vector machine's, degrees",
                    float(np.degrees(2 * np.arcsin(0.5 * np.linalg.norm(z - best)))), 1e-9, reference=REFERENCE)
    )  # fmt: skip
    return listed


def reproduce(out: Path, size: str, advance: Callable[[float, str], None]) -> Section:
    """Check the claims and draw the figures."""
    section = Section(
        "sarussi2021",
        "Towards understanding learning in neural networks with linear teachers",
        "R. Sarussi, A. Brutzkus, A. Globerson (2021), arXiv 2101.02533.",
        f"Leaky-ReLU networks (slope {SLOPE}) with a fixed outer layer, logistic loss, labels of a linear teacher: flow, and descent on "
        "single samples. From a small start the neurons of either kind come to agree on the sign of every sample; they "
        "then form two clusters whose directions a quadratic program gives (along kinks too), and the decision boundary is linear but for a "
        "band that their radii bound. From a large start training ends long before that. Bounds on training time are our own.",
    )
    settle(section, claims(size), advance, 0.5, rtol=1e-10)
    for case, (*_, name) in enumerate(DESCENTS):
        advance(0.5 + 0.2 * case / len(DESCENTS), f"descent: {name}")
        counts(size, case)
    advance(0.7, "observations")
    section.rows += [observation_row(one) for one in observations(size)]
    plates = (_plane_plate, _agreement_plate, _direction_plate, _descent_plate, _digits_plate)
    with plot.style():
        for i, plate in enumerate(plates):
            advance(0.8 + 0.2 * i / len(plates), "figures")
            section.plates.append(plate(out, size))
    advance(1.0, "done")
    return section


COLORS = {1.0: "C0", -1.0: "C3"}
STARTS = {SMALL: "$10^{-3}$", MEDIUM: "$3$", LARGE: "$30$"}


def _plane(ax: Axes, setup: SetUp, theta: Array) -> None:
    """Samples, the network's and its linear predictor's boundary, and the neurons."""
    model, (x, y) = setup.model, (setup.problem.X, setup.problem.Y[:, 0])
    reach = 1.08 * float(np.abs(x).max())
    side = np.linspace(-reach, reach, 400)
    grid = np.stack(np.meshgrid(side, side), axis=-1)
    f = model.function(theta, grid.reshape(-1, 2)).reshape(len(side), -1)
    ax.contourf(side, side, f, levels=[-np.inf, 0, np.inf], colors=[COLORS[-1.0], COLORS[1.0]], alpha=0.15)
    w, u = clusters.centres(model, None, theta)
    across = np.array([-(w - u)[1], (w - u)[0]]) / np.linalg.norm(w - u)
    ax.plot(*(2 * reach * np.outer(across, [-1, 1])), color="black", linestyle=(0, (3, 2)), linewidth=0.8)
    for label, marker in ((1.0, "+"), (-1.0, "_")):
        ax.plot(*x[y == label].T, marker, color=COLORS[label], markersize=4, markeredgewidth=0.8)
    neurons = model.first_layer(theta)
    neurons = 0.95 * reach * neurons / np.linalg.norm(neurons, axis=1).max()
    for kind, marker in ((1.0, "o"), (-1.0, "s")):
        mine = neurons[model.outer_layer(theta)[0] * kind > 0]
        for one in mine:
            ax.plot([0, one[0]], [0, one[1]], color="0.6", linewidth=0.4, zorder=1)
        ax.plot(
            *mine.T, marker, color=COLORS[kind], markersize=3.5, markeredgecolor="white", markeredgewidth=0.3
        )
    ax.set_xlim(-reach, reach)
    ax.set_ylim(-reach, reach)
    ax.set_aspect("equal")
    ax.set_xlabel("$x_1$")


def _plane_plate(out: Path, size: str) -> Plate:
    fig, axes = plot.figure(1, 3, height=2.7)
    shown = ((SMALL, 5.0), (LARGE, 5.0), (LARGE, 1e4))
    for ax, (scale, level) in zip(axes, shown, strict=True):
        setup = SetUp("teacher", 10, scale)
        run = setup.by_loss([level], 1e-9)
        _plane(ax, setup, run.end)
        reached = -run.log_loss[-1]
        text = f"{reached:.0f}" if reached < 1000 else f"10^{{{np.log10(reached):.0f}}}"
        ax.set_title(f"start {STARTS[scale]}, $\\log(1/L)={text}$")
    axes[0].set_ylabel("$x_2$")
    handles = [
        Line2D([], [], color=COLORS[1.0], marker="+", linestyle="none", label="$y=1$"),
        Line2D([], [], color=COLORS[-1.0], marker="_", linestyle="none", label="$y=-1$"),
        Line2D([], [], color=COLORS[1.0], marker="o", linestyle="none", markersize=3.5, label="$w_j$"),
        Line2D([], [], color=COLORS[-1.0], marker="s", linestyle="none", markersize=3.5, label="$u_j$"),
        Line2D(
            [], [], color="black", linestyle=(0, (3, 2)), linewidth=0.8, label="$(\\bar w-\\bar u)\\cdot x=0$"
        ),
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=5)
    return Plate(
        plot.save(fig, out / "plane")[1],
        f"A linear teacher's {len(data('teacher').X)} samples in the plane (inputs, dimensionless), 20 neurons, exact flow. Shaded: the sign of the network; "
        "dashed: the boundary of its linear predictor; dots: the neurons, all to one scale. From a small start (left) "
        "the neurons form two clusters and the boundary is linear; from a large one it is not, without a training error "
        "(middle), nor much later (right). Starts are in units of 1/√(2k) per entry. After arXiv 2101.02533; data and sizes ours.",
    )


def _agreement_plate(out: Path, size: str) -> Plate:
    fig, axes = plot.figure(1, 3)
    t = np.geomspace(1e-4, 1e6, 200 if size == "quick" else 600)
    drifts = []
    for scale, color in zip(STARTS, plot.sequence(3), strict=True):
        setup = SetUp("clouds", 10, scale)
        run = unbroken(flow(setup.model, setup.problem, setup.theta0, t, rtol=1e-10))
        found = observe.along(run, clusters.agreements)
        radii = observe.along(run, clusters.radii)
        w, u = np.moveaxis(observe.along(run, clusters.centres), 1, 0)
        agreed = found[:, 0] == 1
        if agreed.sum() > 1:
            drifts.append(float(np.abs(radii[agreed] / radii[agreed][0] - 1).max()))
        axes[0].semilogx(t, found[:, 0], color=color, label=STARTS[scale])
        axes[1].semilogx(t, np.where(agreed, found[:, 2], np.nan), color=color)
        apart = np.linalg.norm(w - u, axis=1)
        for column, dashes in ((0, "-"), (1, (0, (3, 2)))):
            axes[2].loglog(t, radii[:, column] / apart, color=color, linestyle=dashes)
    late = SetUp("clouds", 10, LARGE).by_loss([1e3], 1e-9)
    assert late.events is not None
    last = float(late.events.t[-1])
    axes[0].set_title("agreement")
    axes[0].set_ylabel("fraction of kinds and samples")
    axes[1].set_title("$\\beta$ of the regime")
    axes[1].set_ylabel("$\\min|w_j\\cdot x_i|\\,/\\,\\|W\\|$")
    axes[1].set_ylim(bottom=0)
    axes[2].set_title("cluster radii")
    axes[2].set_ylabel("$r\\,/\\,\\|\\bar w-\\bar u\\|$")
    axes[2].legend(handles=[Line2D([], [], color="0.4", label="$r_w$"),
                            Line2D([], [], color="0.4", linestyle=(0, (3, 2)), label="$r_u$")])  # fmt: skip
    axes[0].legend(title="start", loc="center right")
    for ax in axes:
        ax.set_xlabel("time $t$")
        ax.set_xticks([1e-4, 1e-2, 1, 1e2, 1e4, 1e6])
    return Plate(
        plot.save(fig, out / "agreement")[1],
        "Neural agreement on two Gaussian clouds, 20 neurons, exact flow, time in units of the flow of the mean logistic loss. Left: on how many of the samples all neurons of a kind agree "
        f"(starts of scale 10⁻³, 3 and 30; from the last they do when log(1/L) = {last:.0f}, long after these times). Middle: β where all agree, "
        "in units of the inputs; the agreement is perfect there. Right: largest distance of a neuron from the mean of its kind, over the distance of the "
        f"means; once neurons agree the radii themselves stay (drift: {max(drifts):.0e}, relative) and the means grow. "
        "Regimes after arXiv 2101.02533; conservation of the radii ours.",
    )


def _direction_plate(out: Path, size: str) -> Plate:
    fig, (left, right) = plot.figure(1, 2)
    far = 1e4 if size == "quick" else FAR
    shown = (
        ("perfect", SetUp("clouds"), "C0"),
        ("imperfect", SetUp("few", seed=24), "C1"),
        ("on a kink", SetUp("beside"), "C2"),
        ("none", SetUp("three", scale=1e-4, seed=40), "C3"),
    )
    for name, setup, color in shown:
        levels = np.geomspace(1.0, far, 8 * round(np.log10(far)) + 1)
        run = setup.by_loss(levels, 1e-11, observe="margin")
        found = clusters.agreement(setup.model, setup.problem, run.end)
        signs = None if found.regime == "none" else found.signs
        wanted = clusters.direction(setup.problem, SLOPE, signs, setup.numbers, setup.outer)
        off = observe.along(run, heading) - wanted.neurons(setup.numbers)
        left.loglog(1 / run.t, 0.5 * np.sum(off**2, axis=(1, 2)), color=color, label=name)  # 1 − cos
        right.loglog(1 / run.t, np.abs(1 - run["margin"] / wanted.margin), color=color)
        if name == "perfect":
            best = max_margin(setup.problem).direction[0]
            w, u = np.moveaxis(observe.along(run, clusters.centres), 1, 0)
            z = (w - u) / np.linalg.norm(w - u, axis=1, keepdims=True)
            left.loglog(1 / run.t, 0.5 * np.sum((z - best) ** 2, axis=1), color="0.5", linestyle=(0, (3, 2)),
                        label="perfect, from the SVM")  # fmt: skip
    for ax, power in ((left, 2), (right, 1)):
        x = np.array([1 / far, 1e-1])
        ax.loglog(x, 0.02 * x**power, color="0.8", linewidth=0.6)
        middle = float(np.sqrt(x[0] * x[1]))
        ax.text(1.5 * middle, 0.01 * middle**power, f"slope {power}", color="0.5", fontsize=6, va="top")
        ax.set_xlabel("$1/\\log(1/L)$")
    left.set_ylabel("$1-\\cos$")
    left.set_title("direction of all neurons")
    right.set_ylabel("$|1-\\gamma/\\gamma^*|$")
    right.set_title("normalised margin")
    fig.legend(title="agreement", loc="outside right center")
    return Plate(
        plot.save(fig, out / "direction")[1],
        "Convergence to the direction of the quadratic program, small starts, exact flow by the clock of the loss "
        f"(dimensionless), to log(1/L) = {far:g}. Left: 1 − cosine between all neurons and the prediction, for neurons that agree perfectly, imperfectly, "
        "with some on a kink (our extension), and not at all (measured from the prediction for perfect agreement, "
        "which does not apply); dashed: w̄ − ū from the support vector machine, which is not the limit. Right: the normalised "
        "margin's relative distance from the predicted one. Theorem of arXiv 2101.02533; data ours.",
    )


def _descent_plate(out: Path, size: str) -> Plate:
    fig, (left, right) = plot.figure(1, 2)
    name, scale, limit, title = DESCENTS[3]
    some = widths(size)[:: max(1, len(widths(size)) // 4)]
    for each, color in zip(some, plot.sequence(len(some)), strict=True):
        setup = SetUp(name, each, scale)
        run = setup.sgd(2000, 10, observe=errors)
        left.semilogx(
            run.t[1:] / STEP, run["errors"][1:] / len(setup.problem.X), color=color, label=f"{2 * each}"
        )
    left.set_xlabel("updates")
    left.set_ylabel("fraction of training errors")
    left.set_title(title)
    left.legend(title="neurons")
    for case, (*_, label) in enumerate(DESCENTS):
        found, across = counts(size, case), 2 * np.array(widths(size))
        shift = 1.06 ** (case - 1.5)
        right.loglog(
            np.repeat(across * shift, found.shape[1]),
            np.maximum(found, 5).ravel(),
            ".",
            color=f"C{case}",
            markersize=2,
        )
        right.loglog(
            across * shift,
            np.maximum(np.median(found, axis=1), 5),
            color=f"C{case}",
            linewidth=0.8,
            label=label,
        )
    right.set_xlabel("neurons $2k$")
    right.set_ylabel("updates until\nno training error")
    right.set_title("over widths and seeds")
    fig.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return Plate(
        plot.save(fig, out / "descent")[1],
        f"Descent on single samples with step size {STEP}. Left: fraction of training errors (of {TRAINING}) against updates, for some widths. "
        f"Right: updates until there is none (looked at every 5), {len(seeds(size))} seeds and their median: no growth with the width. "
        "An observation; the theorem (arXiv 2101.02533) bounds the updates, for which our bound is far larger.",
    )


def _digits_plate(out: Path, size: str) -> Plate:
    fig, axes = plot.figure(2, 4, height=1.7)
    for ax in axes[:, 0]:
        ax.set_xlabel("epochs")
    for pair, color in zip(PAIRS, (f"C{i}" for i in range(4)), strict=True):
        for scale, dashes in ((SMALL, "-"), (MEDIUM, (0, (3, 2)))):
            d = told_apart(pair, scale, epochs_of(size))
            axes[0, 0].semilogx(d.epochs[1:], d.agreements[1:, 0], color=color, linestyle=dashes)
            wanted = clusters.direction(d.setup.problem, SLOPE, numbers=d.setup.numbers)
            off = observe.along(d.run, heading) - wanted.neurons(d.setup.numbers)
            axes[1, 0].loglog(
                d.epochs[1:], 0.5 * np.sum(off[1:] ** 2, axis=(1, 2)), color=color, linestyle=dashes
            )
    axes[0, 0].set_title("agreement")
    axes[0, 0].set_ylabel("fraction")
    axes[1, 0].set_title("from perfect prediction")
    axes[1, 0].set_ylabel("$1-\\cos$")
    axes[1, 0].set_ylim(1e-2, 1)
    d = told_apart(PAIRS[1], SMALL, epochs_of(size))
    wanted = clusters.direction(d.setup.problem, SLOPE)
    w, u = clusters.centres(d.setup.model, None, d.run.end)
    best = max_margin(d.setup.problem).direction[0]
    images = (
        ("$\\bar w$, descent", w), ("$w$, predicted", wanted.w), ("$w-u$, predicted", wanted.w - wanted.u),
        ("$\\bar u$, descent", u), ("$u$, predicted", wanted.u), ("SVM", best),
    )  # fmt: skip
    for ax, (title, image) in zip(axes[:, 1:].ravel(), images, strict=True):
        size_ = np.abs(image).max()
        shown = ax.imshow(image.reshape(8, 8) / size_, cmap="RdBu_r", vmin=-1, vmax=1)
        ax.set_title(title)
        ax.set_xticks([])
        ax.set_yticks([])
    fig.colorbar(shown, ax=axes[:, 1:], label="weight, relative", shrink=0.7)
    handles = [Line2D([], [], color=f"C{i}", label=f"{a}, {b}") for i, (a, b) in enumerate(PAIRS)]
    handles += [Line2D([], [], color="0.4", label=f"start {STARTS[SMALL]}"),
                Line2D([], [], color="0.4", linestyle=(0, (3, 2)), label=f"start {STARTS[MEDIUM]}")]  # fmt: skip
    fig.legend(handles=handles, loc="outside upper center", ncols=6)
    return Plate(
        plot.save(fig, out / "digits")[1],
        f"Pairs of digits (8 × 8 pixels less their mean, {TRAINING} training images), 20 neurons, descent on single images. Left: on how many images "
        "all neurons of a kind agree, and 1 − cosine to the direction of perfect agreement, against epochs, from a small "
        "(solid) and a larger start (dashed). Right: mean neurons for the digits 2 and 7 after descent from the small start beside the "
        "predicted ones, and their difference beside the support vector machine. After arXiv 2101.02533, which has MNIST.",
    )
