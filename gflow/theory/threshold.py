"""Where small starts end on noisy linear data: two least-squares fits of half the data each, not an interpolator.

Labels of a linear teacher β with noise, y = β·x + η, and inputs with a margin from the hyperplane β·x = 0.  With many
samples the early landscape (:mod:`gflow.theory.alignment`) has one attractor for each sign of the outer weight: neurons
with a > 0 become active on S₊ = {β·x > 0} alone, those with a < 0 on S₋, or they die.  From there each group is a linear
network on its half of the data, and ends in its least-squares fit: b₊ on S₊, b₋ on S₋,

    h(x) = (b₊·x)₊ − (−b₋·x)₊,   L = factor (RSS₊ + RSS₋) > 0,

although wide enough networks interpolate.  arXiv 2410.02348; its rates in n are not used here: what they ensure is
measured instead (:func:`limit`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from gflow._check import finite_array, generator, non_negative, positive_int
from gflow.problem import Problem
from gflow.theory.alignment import Path, curvature, landscape, neurons, pulls, sweep
from gflow.theory.prediction import Hypothesis, Prediction

Array = NDArray[np.float64]


class HalfFits(NamedTuple):
    """Least-squares fits of the two halves of the data.

    ``side`` (n,): 1 on S₊, −1 on S₋; ``plus``, ``minus`` (d,): b₊, b₋; ``rss_plus``, ``rss_minus``: their sums of squared
    residuals; ``loss``: factor (RSS₊ + RSS₋); ``inconsistent``: share of the samples that b₊ or b₋ puts on another side,
    0 where the two fits are a stationary point.
    """

    side: NDArray[np.int8]
    plus: Array
    minus: Array
    rss_plus: float
    rss_minus: float
    loss: float
    inconsistent: float

    def outputs(self, X: ArrayLike) -> Array:
        """h(x) = (b₊·x)₊ − (−b₋·x)₊ (n,) at inputs (n, d)."""
        x = finite_array("X", X, ("n", len(self.plus)))
        return np.maximum(x @ self.plus, 0.0) - np.maximum(-(x @ self.minus), 0.0)

    def excess(self, teacher: ArrayLike, second_moment: ArrayLike) -> float:
        """Excess risk ½ Σ± (b± − β)ᵀ M (b± − β) of E (h − β·x)², for symmetric inputs with E xxᵀ = M (d, d).

        Up to inputs that b₊ or b₋ put on another side than β does.
        """
        beta, m = np.asarray(teacher, dtype=np.float64), np.asarray(second_moment, dtype=np.float64)
        return float(sum(0.5 * (b - beta) @ m @ (b - beta) for b in (self.plus, self.minus)))


def half_fits(problem: Problem, teacher: ArrayLike) -> HalfFits:
    """The two least-squares fits, by the sides of the teacher's hyperplane.

    Parameters
    ----------
    problem : Problem
        Samples with one output, square loss.
    teacher : array (d,)
        β.

    Raises
    ------
    ValueError
        If the problem is another one, or a half holds fewer than d independent samples.
    """
    if getattr(problem, "loss", None) != "square":
        raise ValueError(f"problem must have the square loss; got {getattr(problem, 'loss', problem)!r:.60}")
    pulls(problem)
    x, y = problem.X, problem.Y[:, 0]
    beta = finite_array("teacher", teacher, (x.shape[1],))
    side = np.where(x @ beta > 0, 1, -1).astype(np.int8)
    fits, rss = [], []
    for sign in (1, -1):
        half, labels = x[side == sign], y[side == sign]
        if np.linalg.matrix_rank(half) < x.shape[1]:
            raise ValueError(
                f"problem must hold {x.shape[1]} independent samples on each side of the teacher's hyperplane; on "
                f"one there are {len(half)} samples"
            )
        b = np.linalg.lstsq(half, labels, rcond=None)[0]
        fits.append(b)
        rss.append(float(np.sum((labels - half @ b) ** 2)))
    wrong = float(np.mean(np.any(np.sign(x @ np.stack(fits, axis=1)) != side[:, None], axis=1)))
    assert problem.factor is not None
    return HalfFits(side, fits[0], fits[1], rss[0], rss[1], problem.factor * sum(rss), wrong)


# ---- the prediction ----------------------------------------------------------------------------------------


class Arrival(NamedTuple):
    """Where the neurons of one start are when early alignment is over.

    ``paths``: one per neuron; ``wrong`` (m,): share of the samples on whose side it is not as it should be, 0 for dead
    ones; ``alive`` (m,); ``last``: when the last one has come; ``mass``: c M² Σ a_j² / D by then, to leading order, with D
    that of the fastest neuron.
    """

    paths: tuple[Path, ...]
    wrong: Array
    alive: NDArray[np.bool_]
    last: float
    mass: float


def arrival(model: Any, problem: Problem, theta0: ArrayLike, side: ArrayLike) -> Arrival:
    """Follow every neuron's exact path of early alignment.

    Parameters
    ----------
    model : TwoLayerReLU
    problem : Problem
    theta0 : array (P,)
        With |a_j| ≥ ‖w_j‖ > 0.
    side : array (n,)
        ±1: neurons with a > 0 should be active where it is 1, those with a < 0 where it is −1.
    """
    w, a, _ = neurons(model, problem, theta0)
    land, sides = landscape(problem, model.slope), np.asarray(side)
    paths = tuple(land.path(*one) for one in zip(w, a, strict=True))
    alive = np.array([not path.dead for path in paths])
    on = [np.sign(problem.X @ path.limit) != path.sign * sides for path in paths]
    wrong = np.where(alive, np.mean(on, axis=1), 0.0)
    last = max(path.settled for path in paths)
    speed = max(float(np.linalg.norm(piece.pull)) for path in paths for piece in path.pieces[-1:])
    mass = sum(float(path.at(last)[1][0]) ** 2 for path in paths)
    return Arrival(paths, wrong, alive, last, curvature(problem) * mass / speed if speed else 0.0)


def limit(
    model: Any,
    problem: Problem,
    theta0: ArrayLike,
    teacher: ArrayLike,
    small: float = 0.1,
    force: bool = False,
) -> Prediction:
    """Where the flow ends if every neuron joins its half of the data.

    Parameters
    ----------
    model : TwoLayerReLU
        One output, slope 0, both layers trained.
    problem : Problem
        Square loss.
    theta0 : array (P,)
    teacher : array (d,)
        β.
    small : float
        c M² Σ a_j² / D, when the last neuron has arrived, up to which the outputs count as negligible by then.

    Returns
    -------
    Prediction
        Of ``"outputs"`` (T, n, 1) at t = 0 (0, up to the start's own) and t = inf, NaN between.

    Raises
    ------
    ValueError
        If the model or the problem is another one, or a half holds fewer than d independent samples.

    Notes
    -----
    The theorem of arXiv 2410.02348 supposes n ≳ d³ log d and a small λ.  In their place stand what they are for, as
    measured on this data and this start: a margin; two fits on whose sides all samples are (then they are a stationary
    point); and that the exact path of early alignment takes every neuron to its half, or to death, at least one to each,
    before the outputs count.  That the neurons stay on their halves while they grow is not proved from these.
    """
    fits = half_fits(problem, teacher)
    start = neurons(model, problem, theta0)[2]
    margin = float(np.min(np.abs(problem.X @ np.asarray(teacher)) / np.linalg.norm(problem.X, axis=1)))
    hypotheses = [
        Hypothesis("no weight decay", problem.weight_decay, tolerance=0.0),
        Hypothesis("ReLU (defect: its slope)", model.slope, tolerance=0.0),
        Hypothesis("a margin: no sample on the teacher's hyperplane", float(margin == 0.0), tolerance=0.0),
        Hypothesis(
            "each fit has all samples on their sides (defect: share of others)", fits.inconsistent, 0.0
        ),
        start,
    ]
    if start.holds:
        found = arrival(model, problem, theta0, fits.side)
        signs = np.array([path.sign for path in found.paths])
        lacking = 2 - len(set(signs[found.alive & (found.wrong == 0)]))
        hypotheses += [
            Hypothesis(
                "early alignment takes neurons to each half (defect: halves without)", float(lacking), 0.0
            ),
            Hypothesis(
                "... and none elsewhere (defect: largest share of wrong sides)", float(found.wrong.max()), 0.0
            ),
            Hypothesis("outputs are negligible until then (defect: c M² A / D)", found.mass, small),
        ]
    limit_outputs, first = fits.outputs(problem.X), model.function(theta0, problem.X)

    def formula(t: Array) -> Array:
        out = np.full((len(t), len(problem.X), 1), np.nan)
        out[t == 0] = first
        out[np.isinf(t), :, 0] = limit_outputs
        return out

    return Prediction("outputs", tuple(hypotheses), "arXiv 2410.02348", formula, forced=force)


def escape_rates(model: Any, problem: Problem, theta: ArrayLike, fits: HalfFits) -> Array:
    """At what rates (m,) neurons grow, d ln|a_j|/dt, where all others make up the two fits.

    For small neurons beside the plateau of the two fits, whose pull comes from its residuals: above 0 for one that leaves
    it; 0 to rounding for those that make it up, and for dead ones, which never grow again.
    """
    w, a, _ = neurons(model, problem, theta)
    land = landscape(problem, model.slope, fits.outputs(problem.X))
    return land.potential(w) / a


# ---- the law of the landscape ------------------------------------------------------------------------------


def second_moment(d: int, margin: float = 0.0) -> Array:
    """E xxᵀ (d, d) of x ~ N(0, I) given |x_1| > margin: 1 + c φ(c) / (1 − Φ(c)) for the first coordinate, else 1."""
    moment, c = np.eye(positive_int("d", d)), non_negative("margin", margin)
    moment[0, 0] += c * np.exp(norm.logpdf(c) - norm.logsf(c))
    return moment


def population(teacher: ArrayLike, moment: ArrayLike) -> Array:
    """E [1{w·x > 0} y x] (d,) = ½ E[xxᵀ] β, for every w.

    For inputs with the law of −x and labels β·x + η with E[η | x] = 0: y x has a part that is even in x, of which each half
    space holds one half.  So the landscape of many samples has one extremal vector for each sign, along E[xxᵀ] β.
    """
    beta = finite_array("teacher", teacher, ("d",))
    return 0.5 * finite_array("moment", moment, (beta.size, beta.size)) @ beta


def deviation(
    problem: Problem, mean: ArrayLike, directions: int = 2000, rng: int | np.random.Generator | None = 0
) -> float:
    """sup over w of ‖D_n(w) − E D‖: over all cones in the plane, else over sampled directions (a lower bound).

    Parameters
    ----------
    problem : Problem
        Square loss with the factor 1 / (2n).
    mean : array (d,)
        From :func:`population`.
    directions : int
        How many are sampled in more than two dimensions.
    rng : int, numpy Generator or None
    """
    wanted = finite_array("mean", mean, (problem.X.shape[1],))
    if problem.X.shape[1] == 2:
        return float(np.linalg.norm(sweep(problem) - wanted, axis=1).max())
    w = generator("rng", rng).standard_normal((positive_int("directions", directions), problem.X.shape[1]))
    vectors = (w @ problem.X.T > 0) @ (pulls(problem)[:, None] * problem.X)
    return float(np.linalg.norm(vectors - wanted, axis=1).max())
