"""Leaky-ReLU networks with a fixed outer layer on separable data: two clusters of neurons, one linear boundary.

f(x) = Σ_j a_j s(w_j · x), s(z) = max(z, α z), 0 < α < 1, the outer weights fixed; w are the neurons with a_j > 0
and u those with a_j < 0.  While all w agree on the sign of every sample, and all u (neural agreement regime, NAR;
perfect, PAR, if they agree with the labels and against them; arXiv 2101.02533), the network is linear in its
weights: the neurons of one kind move alike, so that the differences between them stay what they are, and the flow
tends to the largest margin of the features (s'(w · x) x, −s'(u · x) x).  On nearly orthogonal data that has a closed
form (arXiv 2210.07082).  With both layers trained and data that are symmetric under (x, y) → (−x, −y) the
direction is that of the support vector machine (arXiv 2110.13905), and odd networks are linear ones.

Bounds on how long it takes are our own: the papers' constants are of descent on batches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import lambertw

from gflow._check import finite_array, number, of_type, positive, positive_int
from gflow.problem import Problem
from gflow.theory.prediction import Hypothesis, Prediction
from gflow.theory.separable import max_margin

Array = NDArray[np.float64]

#: The conditions of the optimum are met to this, relative, or the solution is refused.
OPTIMAL = 1e-9
#: A neuron stands on a sample's kink where \\|w · x\\| is below this × ‖w‖ ‖x‖.
ON_KINK = 1e-11
#: Largest q / (1 + e^q), which bounds how fast ‖θ‖² / 2 grows per sample of weight 1 under the logistic loss.
GROWTH = float(lambertw(1 / np.e).real)


# ---- what the neurons do -----------------------------------------------------------------------------------


class Agreement(NamedTuple):
    """On what the neurons of either kind agree.

    ``positive``, ``negative`` (n,): the sign that all neurons with a_j > 0, or a_j < 0, give a sample; 0 where all stand
    on its kink, NaN where they differ.  ``regime``: ``"PAR"`` where these are y and −y, ``"NAR"`` where all are ±1,
    ``"kink"`` where all agree but some stand on kinks, else ``"none"``.  ``beta``: the least \\|w_j · x_i\\| / ‖W‖ in the
    first two, dimension of x; else 0.  ``fraction``: of the 2n pairs of kind and sample on which all have one
    sign ±1; ``perfect``: and it is that of the label, or for a_j < 0 the other.
    """

    regime: str
    beta: float
    positive: Array
    negative: Array
    fraction: float
    perfect: float

    @property
    def signs(self) -> tuple[Array, Array]:
        """Of both kinds, for :func:`direction`."""
        return self.positive, self.negative


def agreement(model: Any, problem: Problem, theta: ArrayLike) -> Agreement:
    """Measure on what the neurons agree: the regimes NAR(β) and PAR(β) of arXiv 2101.02533.

    Parameters
    ----------
    model : TwoLayerReLU
        Of one output, with neurons of both signs.
    problem : Problem
        With labels ±1.
    theta : array (P,)

    Returns
    -------
    Agreement
    """
    y, x = _labels(problem), problem.X
    kinds = _kinds(model, theta)
    positive, negative = (_common_sign(kind, x) for kind in kinds)
    signs, wanted = np.concatenate([positive, negative]), np.concatenate([y, -y])
    everything = np.vstack(kinds)
    if np.isnan(signs).any():
        regime = "none"
    elif not signs.all():
        regime = "kink"
    else:
        regime = "PAR" if np.array_equal(signs, wanted) else "NAR"
    beta = 0.0
    if regime in ("PAR", "NAR"):
        beta = float(np.abs(everything @ x.T).min() / np.linalg.norm(everything))
    return Agreement(
        regime, beta, positive, negative,
        float(np.mean(np.abs(signs) == 1)), float(np.mean(signs == wanted)),
    )  # fmt: skip


def _common_sign(kind: Array, x: Array) -> Array:
    """Sign of w_j · x (n,) that all neurons share: 0 on the kink, NaN where they differ."""
    z = kind @ x.T
    z[np.abs(z) <= ON_KINK * np.outer(np.linalg.norm(kind, axis=1), np.linalg.norm(x, axis=1))] = 0.0
    signs = np.sign(z)
    return np.where(np.ptp(signs, axis=0) == 0, signs[0], np.nan)


def agreements(model: Any, problem: Problem, theta: ArrayLike) -> Array:
    """An observable (3,): the fraction on which neurons agree, that on which they agree with the labels, and β."""
    found = agreement(model, problem, theta)
    return np.array([found.fraction, found.perfect, found.beta])


def centres(model: Any, problem: Any, theta: ArrayLike) -> Array:
    """An observable (2, d): the means w̄ and ū of the neurons of either kind."""
    return np.array([kind.mean(axis=0) for kind in _kinds(model, theta)])


def radii(model: Any, problem: Any, theta: ArrayLike) -> Array:
    """An observable (2,): the largest ‖w_j − w̄‖ and ‖u_j − ū‖.  The flow conserves both in the regime NAR."""
    kinds = _kinds(model, theta)
    return np.array([np.linalg.norm(kind - kind.mean(axis=0), axis=1).max() for kind in kinds])


def boundary(model: Any, theta: ArrayLike, X: ArrayLike) -> tuple[Array, Array]:
    """The linear predictor of two clusters of neurons, and the band in which the network may differ from it.

    Parameters
    ----------
    model : TwoLayerReLU
        With a slope above 0 and as many neurons with a_j = v as with a_j = −v.
    theta : array (P,)
    X : array (n, d)
        Where to look.

    Returns
    -------
    linear : array (n,)
        (w̄ − ū) · x.
    band : array (n,)
        (1 − α) / (1 + α) r ‖x‖ with r the radius (:func:`radii`) of the u where ``linear`` is positive, of the w where
        it is negative: where \\|linear\\| > band, the network has the sign of ``linear``.

    Notes
    -----
    Ours, and sharp: two neurons u at c ± ρ, ρ = r_u ‖x‖, c = −ρ (1 − α) / (1 + α), and all w · x = 0 are on its edge with f = 0.
    It lies inside the plainer band 2 r ‖x‖, which follows from s being increasing.
    Proof, for positive ``linear``: s is convex, so that the mean of s(w_j · x) is at least s(w̄ · x), and that of s(u_j · x)
    at most (s(c + ρ) + s(c − ρ)) / 2 with c = ū · x, ρ = r_u ‖x‖.  That is s(c) if \\|c\\| ≥ ρ; else it is
    ((1 + α) c + (1 − α) ρ) / 2, below s(c + l) for all l > ρ (1 − α) / (1 + α).
    """
    outer = _layers(model, theta)[1]
    points = finite_array("X", X, ("n", model.inputs))
    if not model.slope > 0:
        raise ValueError(f"model must have a slope above 0, or its output may vanish; got {model.slope}")
    size = np.abs(outer)
    if abs(outer.sum()) > 1e-12 * size.sum() or np.ptp(size) > 1e-12 * size.max():
        raise ValueError("theta must have as many outer weights v as −v for its boundary; it has not")
    w, u = centres(model, None, theta)
    r_w, r_u = radii(model, None, theta)
    linear = points @ (w - u)
    share = (1 - model.slope) / (1 + model.slope) * np.where(linear > 0, r_u, r_w)
    return linear, share * np.linalg.norm(points, axis=1)


# ---- where the direction tends -----------------------------------------------------------------------------


class Clusters(NamedTuple):
    """Neurons of the largest margin, among networks whose neurons have given signs on the samples.

    ``w``, ``u`` (d,): what every neuron with a_j = v, and a_j = −v, is at margin 1.  ``multipliers`` (n,) ≥ 0 of
    the samples, whose sum is ‖W‖² = 1 / margin².  ``predictor`` (d,): z = Σ_j a_j w_j, whose sign is the network's.
    ``margin``: the least y f / ‖W‖.  ``residual``: the largest violation of the conditions of the optimum, relative.
    ``slopes`` (2, n): with which the samples act on w and u: 1 or α, and between on kinks along which they slide
    (NaN where nothing holds them there).  ``consistent``: the least cosine between a sample and the neurons, times the sign
    supposed, and on kinks the least distance of a slope from α and 1: if positive, the point meets the conditions of
    the *network's* largest margin.  It is then a direction in which flows may end; others may end elsewhere.
    """

    w: Array
    u: Array
    multipliers: Array
    predictor: Array
    margin: float
    residual: float
    slopes: Array
    consistent: float

    def neurons(self, numbers: tuple[int, int] = (1, 1)) -> Array:
        """All neurons (m, d), those with a_j > 0 first, over the norm of them all."""
        stacked = np.vstack([np.tile(self.w, (numbers[0], 1)), np.tile(self.u, (numbers[1], 1))])
        return stacked / np.linalg.norm(stacked)


def direction(
    problem: Problem,
    slope: float,
    signs: tuple[ArrayLike, ArrayLike] | None = None,
    numbers: tuple[int, int] = (1, 1),
    outer: float = 1.0,
) -> Clusters:
    """Where a flow tends that stays in a neural agreement regime: its margin's quadratic program, solved exactly.

    min m₁ ‖w‖² + m₂ ‖u‖² subject to y_i v (m₁ P_i w · x_i − m₂ Q_i u · x_i) ≥ 1 for all i, where P_i is 1 or α as
    the sign of the w on sample i says, and Q_i likewise for the u; and w · x_i = 0 where they slide along its kink.

    Parameters
    ----------
    problem : Problem
        With labels ±1.
    slope : float
        α ∈ [0, 1]; with 1 the network is linear.
    signs : two arrays (n,) of ±1 or 0, optional
        Those of the neurons with a_j > 0, and with a_j < 0, on the samples, such as ``agreement(...).signs``; 0 where
        they stand on the kink.  Default y and −y (the regime PAR).
    numbers : (int, int)
        Numbers m₁, m₂ of these neurons.  Only their ratio matters for the direction.
    outer : float
        Size v > 0 of the outer weights, which matters for the scale alone.

    Returns
    -------
    Clusters

    Raises
    ------
    ValueError
        If an argument is wrong, if no weights separate the data with these signs, or if the solution does not
        meet the conditions of the optimum to 1e-9.

    Notes
    -----
    While the signs last the network is linear in its weights, and logistic or exponential losses lead a linear
    predictor to its largest margin (arXiv 1710.10345); along kinks it is so in the inputs projected on them
    (ours).  The dual has the matrix v² y_i y_j ⟨x_i, x_j⟩
    (m₁ P_i P_j + m₂ Q_i Q_j).  w − u is not in the direction of the support vector machine, unless α = 1 or the
    data are symmetric.  After arXiv 2101.02533, and 2210.07082 for m₁ ≠ m₂.
    """
    r = _regime(problem, slope, signs, numbers, outer)
    on_w, on_u = r.features
    parts = r.outer * np.sqrt(r.m1) * on_w, -r.outer * np.sqrt(r.m2) * on_u
    found = _clusters(r, max_margin(Problem(np.hstack(parts), r.y, "logistic")).multipliers)
    if found.residual > OPTIMAL:
        raise ValueError(
            f"problem is too ill-conditioned: its optimum is met to {found.residual:.2g} only, wanted {OPTIMAL:g}"
        )
    return found


def closed_form(
    problem: Problem, slope: float, numbers: tuple[int, int] = (1, 1), outer: float = 1.0
) -> Clusters:
    """Where a flow in the regime PAR tends if every sample supports the margin: λ = K⁻¹ 1.

    For nearly orthogonal data (:func:`orthogonality` ≥ 1) this is where *every* flow tends whose loss has come below
    log(2) / n (arXiv 2210.07082, theorem 3.2).

    Parameters
    ----------
    problem, slope, numbers, outer
        As for :func:`direction`; the paper has v = 1/√m.

    Returns
    -------
    Clusters
        Certified by itself: if ``residual`` is rounding (no multiplier is negative) it is the solution of
        :func:`direction`, and if ``consistent`` is positive too, a point where the network's margin is stationary, also
        where the data are far from orthogonal; that the flow ends there is then up to the flow's reaching the regime.

    Raises
    ------
    ValueError
        If an argument is wrong, or K is singular.
    """
    r = _regime(problem, slope, None, numbers, outer)
    z = r.y[:, None] * r.x
    gram = r.outer**2 * (z @ z.T) * (r.m1 * np.outer(r.p, r.p) + r.m2 * np.outer(r.q, r.q))
    if np.linalg.matrix_rank(gram, hermitian=True) < len(gram):
        raise ValueError("problem must have inputs for which all margins can be 1; its matrix K is singular")
    return _clusters(r, np.asarray(np.linalg.solve(gram, np.ones(len(gram))), dtype=np.float64))


def orthogonality(X: ArrayLike, slope: float) -> float:
    """R_min² / (3 α⁻³ R² n max \\|⟨x_i, x_j⟩\\|), R = R_max / R_min: at least 1 for nearly orthogonal data.

    Such data meet the hypothesis of arXiv 2210.07082, theorem 3.2; inf for orthogonal ones.
    """
    x, slope = finite_array("X", X, ("n", "d")), _slope(slope)
    gram = x @ x.T
    sizes = np.diag(gram)
    if not sizes.all():
        raise ValueError(f"X must hold no zero input; row {int(np.argmin(sizes))} is zero")
    off = np.abs(gram - np.diag(sizes)).max()
    return float(sizes.min() ** 2 * slope**3 / (3 * sizes.max() * len(x) * off)) if off > 0 else np.inf


def least_cosine(problem: Problem) -> float:
    """The least y_i y_j cos ∠(x_i, x_j); 0 at most where an input is zero.

    If it is positive, y_k w_j · x_k of every sample rises along the flow (SGD too) for all neurons with a_j > 0
    and falls for the others, whatever the start: the regime PAR comes, and stays.
    """
    z = _labels(problem)[:, None] * problem.X
    sizes = np.linalg.norm(z, axis=1)
    z[sizes > 0] /= sizes[sizes > 0, None]
    return float(np.min(z @ z.T))


# ---- how long it takes -------------------------------------------------------------------------------------


class TrainingTime(NamedTuple):
    """``time``: L(t) < ε for all t above it.  ``reach``: A = √m ‖w*‖ / (α Σ\\|a_j\\|); ``pull``: c, the least −ℓ'."""

    time: float
    reach: float
    pull: float


def training_time(
    model: Any, problem: Problem, theta0: ArrayLike, loss: float, separator: ArrayLike | None = None
) -> TrainingTime:
    """A time by which the flow of a leaky network with a fixed outer layer has come below a loss: our own bound.

    Parameters
    ----------
    model : TwoLayerReLU
        With a slope above 0 and ``train_outer=False``.
    problem : Problem
        Logistic loss, labels ±1, separable, no weight decay; any factor.
    theta0 : array (P,)
        Any start.
    loss : float
        ε > 0.
    separator : array (d,), optional
        w* with y w* · x ≥ 1 on all samples; default the shortest.

    Returns
    -------
    TrainingTime
        For \\|a_j\\| = 1/√m it depends on the width only through ‖W(0)‖.

    Raises
    ------
    ValueError
        If the data are not separated, or an argument is wrong.

    Notes
    -----
    The flow's version of theorem 1 of arXiv 2101.02533, with constants and proof of our own.  Let G = factor Σ\\|ℓ'_i\\|
    and θ*_j = sign(a_j) w*.  Since s' ≥ α and y w* · x ≥ 1, d⟨θ, θ*⟩/dt ≥ α Σ\\|a_j\\| G, while
    ⟨θ, θ*⟩ ≤ √m ‖w*‖ ‖θ‖: hence ∫G ≤ A (‖θ(T)‖ + ‖θ(0)‖).  f is of degree 1, so that d‖θ‖²/dt = 2 factor Σ\\|ℓ'\\| y f ≤
    2 factor n max q / (1 + e^q) = B.  As 1 − e^(−Σℓ) ≤ Σ (1 − e^(−ℓ_i)) = Σ\\|ℓ'_i\\|, G ≥ c = factor (1 − e^(−ε / factor))
    while L ≥ ε, and L does not rise: c T ≤ A √(‖θ(0)‖² + B T) + A ‖θ(0)‖ if L(T) ≥ ε, which ends at
    T = A (A B + 2 c ‖θ(0)‖) / c².
    """
    factor, reach, start, _ = _leaky(model, problem, theta0, separator)
    pull = float(-factor * np.expm1(-positive("loss", loss) / factor))
    growth = 2 * factor * len(problem.X) * GROWTH
    return TrainingTime(reach * (reach * growth + 2 * pull * start) / pull**2, reach, pull)


def training_epochs(
    model: Any, problem: Problem, theta0: ArrayLike, loss: float, step_size: float, separator: ArrayLike | None = None
) -> float:  # fmt: skip
    """Epochs of descent on single samples after which there was one without a sample of a loss ≥ ε when visited.

    The counterpart of :func:`training_time`, whose parameters and proof these are: our own version of theorem 1 of
    arXiv 2101.02533, whose number of updates does not depend on the width either.  With ε = log 2: an epoch
    without a mistake.

    Parameters
    ----------
    model, problem, theta0, loss, separator
        As for :func:`training_time`; ``loss`` is that of one sample, without the factor, which must be 1/n.
    step_size : float
        η > 0, any; the update is −η ∇ℓ of one sample.

    Returns
    -------
    float
        (2 A ‖θ(0)‖ / η + 2 A² n κ / (η c) + A² V²) / c with c = 1 − e^(−ε), V² = Σ a_j² max ‖x‖²,
        κ = max q / (1 + e^q), n updates an epoch.

    Notes
    -----
    With S the sum of the \\|ℓ'\\| met in E epochs of such samples: η α Σ\\|a_j\\| S ≤ √m ‖w*‖ (‖θ‖ + ‖θ(0)‖) and ‖θ‖² ≤
    ‖θ(0)‖² + 2 η κ n E + η² V² S, with E c ≤ S.
    """
    factor, reach, start, speed = _leaky(model, problem, theta0, separator)
    n, eta = len(problem.X), positive("step_size", step_size)
    if not np.isclose(factor * n, 1.0):
        raise ValueError(f"problem must have the factor 1/n; got {factor}")
    c = -np.expm1(-positive("loss", loss))
    return float((2 * reach * start / eta + 2 * reach**2 * n * GROWTH / (eta * c) + (reach * speed) ** 2) / c)


# ---- closed forms ------------------------------------------------------------------------------------------


def orthogonal(model: Any, problem: Problem, theta0: ArrayLike, force: bool = False) -> Prediction:
    """The outputs on orthogonal inputs in the regime PAR, exponential loss: every sample for itself.

    e^{y_i f_i(t)} = e^{y_i f_i(0)} + factor ‖x_i‖² (Σ_{a>0} a² P_i² + Σ_{a<0} a² Q_i²) t, where P_i = 1, Q_i = α if y_i = 1
    and the other way round if y_i = −1.  After arXiv 2210.07082, for all lengths and starts in the regime.

    Parameters
    ----------
    model : TwoLayerReLU
        With a fixed outer layer.
    problem : Problem
        Exponential loss, labels ±1.
    theta0 : array (P,)
        Start.
    force : bool
        Compute although a hypothesis fails.

    Returns
    -------
    Prediction
        Of the observable ``"outputs"`` (T, n, 1).
    """
    y, outer, found = _labels(problem), _layers(model, theta0)[1], agreement(model, problem, theta0)
    x, p, q = problem.X, np.where(y > 0, 1.0, model.slope), np.where(y > 0, model.slope, 1.0)
    gram = x @ x.T
    sizes, off = np.diag(gram), np.abs(gram - np.diag(np.diag(gram))).max()
    weight = np.sum(outer[outer > 0] ** 2) * p**2 + np.sum(outer[outer < 0] ** 2) * q**2
    assert problem.factor is not None
    rate, start = problem.factor * sizes * weight, y * model.function(theta0, x)[:, 0]
    hypotheses = (
        Hypothesis("exponential loss", float(problem.loss != "exponential"), 0.0),
        Hypothesis("no weight decay", problem.weight_decay, 0.0),
        Hypothesis("outer layer fixed", float(model.train_outer), 0.0),
        Hypothesis("orthogonal inputs", float(off / sizes.min())),
        Hypothesis("the start is in the regime PAR", 1.0 - found.perfect, 0.0),
    )

    def formula(t: Array) -> Array:
        return (y * (start + np.log1p(np.exp(-start) * rate * t[:, None])))[:, :, None]

    return Prediction("outputs", hypotheses, "arXiv 2210.07082", formula, forced=force)


def symmetry_defect(problem: Problem) -> float:
    """How far the data are from having (−x, −y) beside every (x, y), relative to the largest input and label."""
    of_type("problem", problem, Problem, "a gflow.Problem")
    points = np.hstack([part / (np.abs(part).max() or 1.0) for part in (problem.X, problem.Y)])
    return float(max(np.abs(points + one).max(axis=1).min() for one in points))


def early_pull(problem: Problem, slope: float) -> Array:
    """μ = ((1 + α) / 4) factor Σ y_i x_i (d,): what draws all neurons of a small network on symmetric data.

    dw_j/dt = a_j μ, da_j/dt = w_j · μ as long as −ℓ' is 1/2, the logistic loss at 0 (arXiv 2110.13905).
    """
    _symmetric(problem)
    y = _labels(problem)
    if problem.loss != "logistic" or problem.weight_decay:
        raise ValueError(
            "problem must have the logistic loss without weight decay for the early phase; got "
            f"{problem.loss} and {problem.weight_decay}"
        )
    assert problem.factor is not None
    return 0.25 * (1 + _slope(slope)) * problem.factor * (y @ problem.X)


def early(model: Any, problem: Problem, theta0: ArrayLike, t: ArrayLike) -> Array:
    """θ (T, P) of the early phase of :func:`early_pull`: w ∥ μ and a rotate hyperbolically at the rate ‖μ‖, w ⊥ μ stays.

    The limit of the flow on symmetric data from a vanishing start, at times at which the network is still small.
    """
    times = finite_array("t", t, ("T",))
    w, a = _layers(model, theta0)
    _both_trained(model)
    mu = early_pull(problem, model.slope)
    rate = np.linalg.norm(mu)
    unit = mu / (rate or 1.0)
    along = w @ unit
    cosh, sinh = np.cosh(rate * times)[:, None], np.sinh(rate * times)[:, None]
    moved = w + ((cosh - 1) * along + sinh * a)[:, :, None] * unit
    return np.concatenate([moved.reshape(len(times), -1), a * cosh + along * sinh], axis=1)


def symmetric_limit(problem: Problem, slope: float) -> tuple[Array, float]:
    """Where f / ‖θ‖² tends on symmetric data from a small start, both layers trained, and the margin there.

    Returns
    -------
    predictor : array (d,)
        ((1 + α) / 4) w*, w* the unit direction of the support vector machine.
    margin : float
        ((1 + α) / 4) times its margin: the largest of any such network (arXiv 2110.13905; logistic loss).
    """
    _symmetric(problem)
    if problem.loss not in ("logistic", "exponential"):
        raise ValueError(f"problem must have the logistic or the exponential loss; got {problem.loss}")
    best, scale = max_margin(problem), 0.25 * (1 + _slope(slope))
    return scale * best.direction[0], scale * best.margin


def oddness_defect(model: Any, theta: ArrayLike) -> float:
    """How far the neurons are from coming in pairs (a, w), (−a, −w), relative to the largest entry.

    Neurons of zero weights are left out.
    """
    neurons = np.column_stack(_layers(model, theta))
    neurons = neurons[np.any(neurons != 0, axis=1)]
    scale, left, worst = np.abs(neurons).max(initial=1e-300), list(range(len(neurons))), 0.0
    while left:
        one = neurons[left.pop()]
        if not left:
            return float(np.abs(one).max() / scale)
        gaps = np.abs(neurons[left] + one).max(axis=1)
        worst = max(worst, float(gaps.min() / scale))
        left.pop(int(np.argmin(gaps)))
    return worst


def odd_twin(model: Any, theta: ArrayLike) -> tuple[Array, Array, float]:
    """The linear network that an odd one is, on symmetric data: β = A W.

    Parameters
    ----------
    model : TwoLayerReLU
        With both layers trained and one output.
    theta : array (P,)
        Neurons in pairs (a, w), (−a, −w).

    Returns
    -------
    W : array (m, d)
        First layer: all neurons, times √((1 + α) / 2).
    A : array (m,)
        Outer layer, likewise: f(x) = A W x.
    pace : float
        (1 + α) / 2: at time t the odd network is what the linear one is at pace × t.

    Notes
    -----
    w and −w together give the slope 1 + α to x and −x, on either side of their kink.  After arXiv 2406.12615.
    """
    defect = oddness_defect(model, theta)
    if defect > 1e-10:
        raise ValueError(f"theta must hold neurons in pairs (a, w), (−a, −w); the defect is {defect:.2g}")
    _both_trained(model)
    pace = 0.5 * (1 + model.slope)
    w, a = _layers(model, theta)
    return np.sqrt(pace) * w, np.sqrt(pace) * a, pace


def odd_mode(model: Any, problem: Problem, theta0: ArrayLike, force: bool = False) -> Prediction:
    """The outputs of an odd network on symmetric whitened data with the square loss, from an aligned balanced start.

    f(t, x) = b(t) ê · x with b = B / (1 + (B / b₀ − 1) e^{−(1 + α) 2 n factor c B t}), where XᵀX / n = c I on the space of
    inputs, B ê is the least-squares predictor and b₀ = ((1 + α) / 2) Σ_j a_j²; L = factor n c (B − b)².

    Parameters
    ----------
    model : TwoLayerReLU
        Both layers trained.
    problem : Problem
        Square loss; symmetric data, labels linear in the inputs.
    theta0 : array (P,)
        Pairs (a, w), (−a, −w) with w = a ê.
    force : bool
        Compute although a hypothesis fails.

    Returns
    -------
    Prediction
        Of the observable ``"outputs"`` (T, n, 1).
    """
    w, a = _layers(model, theta0)
    x, y, n = problem.X, problem.Y[:, 0], len(problem.X)
    if problem.outputs != 1 or not y.any() or not w.any():
        raise ValueError("problem must have one output and labels, and theta0 neurons, that are not all 0")
    beta = np.linalg.lstsq(x, y, rcond=None)[0]
    target = float(np.linalg.norm(beta))
    unit = beta / target
    second = x.T @ x / n
    c = float(unit @ second @ unit)
    size = np.linalg.norm(w)
    b0 = 0.5 * (1 + model.slope) * float(a @ a)
    assert problem.factor is not None
    rate = 2 * problem.factor * n * (1 + model.slope) * c * target
    hypotheses = (
        Hypothesis("square loss", float(problem.loss != "square"), 0.0),
        Hypothesis("no weight decay", problem.weight_decay, 0.0),
        Hypothesis("both layers trained", float(not model.train_outer), 0.0),
        Hypothesis("symmetric data", symmetry_defect(problem)),
        Hypothesis("whitened inputs", float(np.linalg.norm(second @ unit - c * unit) / c)),
        Hypothesis("labels linear in the inputs", float(np.linalg.norm(x @ beta - y) / np.linalg.norm(y))),
        Hypothesis("neurons in pairs (a, w), (−a, −w)", oddness_defect(model, theta0)),
        Hypothesis("w = a ê", float(np.linalg.norm(w - a[:, None] * unit) / size)),
    )

    def formula(t: Array) -> Array:
        with np.errstate(over="ignore"):
            b = target / (1 + (target / b0 - 1) * np.exp(-rate * t))
        return (b[:, None] * (x @ unit))[:, :, None]

    return Prediction("outputs", hypotheses, "after arXiv 2406.12615", formula, forced=force)


# ---- parts -------------------------------------------------------------------------------------------------


def _labels(problem: Problem) -> Array:
    of_type("problem", problem, Problem, "a gflow.Problem")
    if problem.kind != "regression" or problem.outputs != 1 or not np.all(np.abs(problem.Y) == 1):
        raise ValueError("problem must hold one label +1 or −1 per sample; it does not")
    return problem.Y[:, 0]


def _layers(model: Any, theta: ArrayLike) -> tuple[Array, Array]:
    """Neurons (m, d) and their outer weights (m,)."""
    if getattr(model, "first_depth", None) != 1:
        raise ValueError(f"model must be a TwoLayerReLU with first_depth=1; got {model!r:.80}")
    theta = finite_array("theta", theta, ("P",))
    outer = model.outer_layer(theta)
    if len(outer) != 1:
        raise ValueError(f"model must have one output; got {len(outer)}")
    return model.first_layer(theta), np.asarray(outer[0])


def _slope(slope: float) -> float:
    if not 0 <= number("slope", slope) <= 1:
        raise ValueError(f"slope must lie in [0, 1]; got {slope!r}")
    return slope


def _both_trained(model: Any) -> None:
    if not model.train_outer:
        raise ValueError("model must train both layers, train_outer=True; it does not")


def _kinds(model: Any, theta: ArrayLike) -> tuple[Array, Array]:
    """Neurons with positive and with negative outer weights."""
    w, outer = _layers(model, theta)
    if not (np.any(outer > 0) and np.any(outer < 0)):
        raise ValueError("theta must hold neurons with outer weights of both signs")
    return w[outer > 0], w[outer < 0]


class _Regime(NamedTuple):
    """A regime of agreement: inputs, labels, α, signs and slopes of the neurons of either kind, their numbers, v."""

    x: Array
    y: Array
    slope: float
    positive: Array
    negative: Array
    p: Array
    q: Array
    m1: int
    m2: int
    outer: float

    @property
    def features(self) -> tuple[Array, Array]:
        """s'(w · x_i) x_i and s'(u · x_i) x_i, projected on the kinks along which the neurons slide."""
        return _along(self.p[:, None] * self.x, self.x[self.positive == 0]), _along(
            self.q[:, None] * self.x, self.x[self.negative == 0]
        )


def _along(vectors: Array, normals: Array) -> Array:
    """Rows projected on the space that is orthogonal to all normals."""
    if not len(normals):
        return vectors
    u, s, _ = np.linalg.svd(normals.T, full_matrices=False)
    basis = u[:, s > 1e-12 * s[0]]
    return vectors - (vectors @ basis) @ basis.T


def _regime(
    problem: Problem,
    slope: float,
    signs: tuple[ArrayLike, ArrayLike] | None,
    numbers: tuple[int, int],
    outer: float,
) -> _Regime:
    y = _labels(problem)
    if problem.loss not in ("logistic", "exponential") or problem.weight_decay:
        raise ValueError(
            "problem must have the logistic or the exponential loss, without weight decay, for directions; got "
            f"{problem.loss} and {problem.weight_decay}"
        )
    _slope(slope)
    both = np.array([y, -y]) if signs is None else finite_array("signs", signs, (2, len(y)))
    if not np.isin(both, (-1.0, 0.0, 1.0)).all():
        raise ValueError(f"signs must be +1, −1 or 0, two for each of {len(y)} samples; got {signs!r:.80}")
    if not isinstance(numbers, tuple) or len(numbers) != 2:
        raise ValueError(
            f"numbers must be those of the neurons of either kind, (m1, m2); got {numbers!r:.80}"
        )
    m1, m2 = (positive_int("numbers", m) for m in numbers)
    p, q = np.where(both > 0, 1.0, slope)
    return _Regime(problem.X, y, slope, both[0], both[1], p, q, m1, m2, positive("outer", outer))


def _clusters(r: _Regime, multipliers: Array) -> Clusters:
    """The neurons that belong to some multipliers, and how well they meet the conditions of the optimum."""
    pulls, (on_w, on_u) = r.outer * multipliers * r.y, r.features
    w, u = pulls @ on_w, -pulls @ on_u
    margins = r.outer * r.y * (r.m1 * (on_w @ w) - r.m2 * (on_u @ u))
    largest, sizes = np.abs(multipliers).max(), np.linalg.norm(r.x, axis=1)
    violations = (
        1 - margins.min(),
        -multipliers.min() / largest,
        np.abs(multipliers * (margins - 1)).max() / largest,
    )
    slopes, least = [], 1.0
    for neuron, signs, slope in ((w, r.positive, r.p), (u, r.negative, r.q)):
        free, own = signs != 0, _sliding(r, multipliers, signs, slope)
        length = np.linalg.norm(neuron) or np.inf  # what nothing drives has no sign
        cosines = (signs * (r.x @ neuron) / (sizes * length))[free]
        room = np.nan_to_num(np.minimum(own - r.slope, 1 - own)[~free], nan=-1.0)
        least = min(least, np.min(cosines, initial=1.0), np.min(room, initial=1.0))
        slopes.append(own)
    norm = np.sqrt(r.m1 * w @ w + r.m2 * u @ u)
    predictor = r.outer * (r.m1 * w - r.m2 * u)
    margin = float(margins.min() / norm)
    return Clusters(
        w, u, multipliers, predictor, margin, float(max(violations)), np.array(slopes), float(least)
    )  # fmt: skip


def _sliding(r: _Regime, multipliers: Array, signs: Array, slope: Array) -> Array:
    """Slopes (n,) of the samples for one kind of neurons, on kinks those with which they stay there: Filippov's rule."""
    on, own, pulls = signs == 0, slope.copy(), multipliers * r.y
    if on.any():
        rest = (pulls * slope * ~on) @ r.x
        held = np.linalg.lstsq(r.x[on] @ r.x[on].T, -r.x[on] @ rest, rcond=None)[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            own[on] = np.where(pulls[on] != 0, held / pulls[on], np.nan)
    return own


def _leaky(
    model: Any, problem: Problem, theta0: ArrayLike, separator: ArrayLike | None
) -> tuple[float, float, float, float]:
    """What our bounds are made of: factor, A, ‖W(0)‖ and V."""
    _labels(problem)
    w, outer = _layers(model, theta0)
    start = np.linalg.norm(w)
    if problem.loss != "logistic" or problem.weight_decay or model.train_outer or not model.slope > 0:
        raise ValueError(
            "wanted the logistic loss without weight decay, a slope above 0 and train_outer=False; got "
            f"{problem.loss}, {problem.weight_decay}, {model.slope} and {model.train_outer}"
        )
    if separator is None:
        best = max_margin(problem)
        star = best.direction[0] / best.margin
    else:
        star = finite_array("separator", separator, (problem.inputs,))
        least = float(np.min(problem.Y[:, 0] * (problem.X @ star)))
        if least < 1 - 1e-12:
            raise ValueError(f"separator must have y w · x >= 1 on all samples; the least is {least:.6g}")
    if not outer.any():
        raise ValueError("theta0 must have an outer weight that is not 0; it has none")
    reach = np.sqrt(len(outer)) * np.linalg.norm(star) / (model.slope * np.abs(outer).sum())
    speed = np.linalg.norm(outer) * np.linalg.norm(problem.X, axis=1).max()
    assert problem.factor is not None
    return problem.factor, float(reach), float(start), float(speed)


def _symmetric(problem: Problem) -> None:
    defect = symmetry_defect(problem)
    if defect > 1e-10:
        raise ValueError(f"problem must hold (−x, −y) beside every (x, y); the defect is {defect:.2g}")
