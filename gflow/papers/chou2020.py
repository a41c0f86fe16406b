"""H.-H. Chou, C. Gieshoff, J. Maly, H. Rauhut: Gradient descent for deep matrix factorization: dynamics and implicit bias
towards low rank (2020), arXiv 2011.13772.

L = ½ ‖W_N ⋯ W_1 − M‖²_F with a symmetric M, factor ½, and gradient descent from W_j = α I.  What it does to each
eigenvalue is run as the scalar reduction, ``Diagonal(n, depth=N, form="power")`` on the eigenvalues with factor 1 / (2N),
and on the matrices themselves.  The two are equal but for rounding; where M has negative eigenvalues the equality of the
factors is unstable, and the matrices leave it in the end (:func:`leaving`).  Of the theorems' constants only the shape is
known to us: bounds are those that :mod:`gflow.theory.factorization` proves.  Number of steps × step size is the flow's time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from gflow import observe, plot, theory
from gflow.claims import Claim, Conclusion, Evidence, Observation
from gflow.integrate import flow
from gflow.iterate import descend
from gflow.models.diagonal import Diagonal
from gflow.models.linear import DeepLinear
from gflow.papers import settle, unbroken
from gflow.problem import Problem
from gflow.report import Plate, Section, observation_row
from gflow.theory.factorization import RankInterval
from gflow.theory.prediction import Hypothesis
from gflow.trajectory import Trajectory

Array = NDArray[np.float64]

REFERENCE = "arXiv 2011.13772"
#: Plateaus at the effective ranks 1, 1.5, 1.7 and 1.8.
SPECTRUM = (10.0, 5.0, 2.0, 1.0, *[0.0] * 6)
#: One eigenvalue that descent from equal factors cannot learn.
MIXED = (5.0, 1.0, 0.3, -1.0)
#: Starts α at which the intervals of all plateaus are there, by depth.
STARTS = {2: 1e-4, 3: 0.1, 4: 0.3}
#: An eigenvalue counts as learned up to this part of it, and as not learned below this part of the last learned one.
PART = 0.05
ACCURACY = 1e-8
_EPS = float(np.finfo(float).eps)


@dataclass(frozen=True)
class SetUp:
    """A symmetric matrix with random eigenvectors, equal factors α I, and a step size."""

    spectrum: tuple[float, ...]
    depth: int
    alpha: float
    share: float = 0.99  # of 1 / ((3N − 2) M^(2N − 2))
    seed: int = 0

    @property
    def lam(self) -> Array:
        return np.array(self.spectrum)

    @property
    def step_size(self) -> float:
        return self.share * theory.factorization.common_step(self.lam, self.alpha, self.depth)

    @property
    def vectors(self) -> Array:
        n = len(self.spectrum)
        return np.linalg.qr(np.random.default_rng(self.seed).standard_normal((n, n)))[0]

    @property
    def problem(self) -> Problem:
        m = self.vectors * self.lam @ self.vectors.T
        return Problem.factorization(0.5 * (m + m.T))

    @property
    def model(self) -> DeepLinear:
        return DeepLinear((len(self.spectrum),) * (self.depth + 1))

    def matrices(self, steps: int, start: Array | None = None, save_every: int = 1) -> Trajectory:
        """Gradient descent on the matrices."""
        if start is None:
            start = self.model.init("identity", self.alpha)
        return unbroken(
            descend(self.model, self.problem, start, self.step_size, steps, save_every=save_every)
        )

    def eigenvalues(self, steps: int) -> Array:
        """d (steps + 1, n): gradient descent on the scalar reduction."""
        n = len(self.spectrum)
        problem = Problem(np.eye(n), self.lam, factor=1 / (2 * self.depth))
        start = np.full(n, self.alpha)
        return unbroken(
            descend(Diagonal(n, self.depth, "power"), problem, start, self.step_size, steps)
        ).theta

    def hypotheses(self, start: Array | None = None) -> tuple[Hypothesis, ...]:
        """Of everything that is said of descent from equal factors."""
        m, limit = self.problem.Y, self.step_size / self.share
        unequal = 0.0
        if start is not None:
            eye = self.alpha * np.eye(len(m))
            unequal = max(float(np.abs(w - eye).max()) for w in self.model.unpack(start)) / self.alpha
        return (
            Hypothesis("symmetric target", float(np.abs(m - m.T).max() / np.abs(m).max())),
            Hypothesis("factors equal to α I", unequal, 0.0),
            Hypothesis(
                "step size at most 1 / ((3N − 2) M^(2N − 2)) (defect: relative excess)",
                max(self.step_size / limit - 1, 0.0),
            ),
        )

    def interval(self, count: int) -> RankInterval:
        """Steps between which the first eigenvalues are learned and no others."""
        lam = self.lam
        rest = np.where(lam[count:] > 0, PART * lam[count - 1], self.alpha**self.depth)
        return theory.factorization.rank_interval(
            lam, count, self.alpha, self.depth, PART * lam[:count], rest, self.step_size
        )

    @property
    def learned(self) -> int:
        """Number of positive eigenvalues."""
        return sum(value > 0 for value in self.spectrum)


# ---- the claims ----------------------------------------------------------------------------------------------


def reduction(
    setup: SetUp, steps: int, rtol: float, start: Callable[[SetUp], Array] | None = None,
    respect_hypotheses: bool = True,
) -> Evidence:  # fmt: skip
    """Measure how far descent on the matrices is from that on their eigenvalues."""
    theta0 = start(setup) if start else None
    d = setup.eigenvalues(steps)
    growth = theory.factorization.rounding_growth(d, setup.lam, setup.depth, setup.step_size)
    hypotheses = (
        *setup.hypotheses(theta0),
        Hypothesis("equality of the factors survives rounding (defect: its estimated growth)", float(growth[-1]), ACCURACY),
    )  # fmt: skip
    if not respect_hypotheses:
        hypotheses = ()
    if not all(h.holds for h in hypotheses):
        return Evidence(hypotheses)
    run, v = setup.matrices(steps, theta0), setup.vectors
    expected = np.einsum("ai,ti,bi->tab", v, d, v)
    off = max(float(np.abs(w - expected).max()) for w in setup.model.unpack(run.theta))
    amplification = float(growth[-1]) / _EPS
    return Evidence(
        hypotheses,
        (Conclusion("largest entry of W_j − V diag(d) Vᵀ, all steps and factors", off, ACCURACY, amplification=amplification),),
        (run.status,),
    )  # fmt: skip


def _perturbed(setup: SetUp) -> Array:
    """One factor at 0.9 α I."""
    eye = setup.alpha * np.eye(len(setup.spectrum))
    return setup.model.pack([0.9 * eye, *[eye] * (setup.depth - 1)])


def follows(setup: SetUp, rtol: float) -> Evidence:
    """Measure how closely the flow from equal factors follows the closed form, eigenvalue by eigenvalue."""
    model, problem = setup.model, setup.problem
    theta0 = model.init("identity", setup.alpha)
    prediction = theory.linear.modes(model, problem, theta0, force=True)
    if not prediction.applies:
        return Evidence(prediction.hypotheses)
    last = setup.lam[setup.learned - 1]
    end = float(theory.linear.mode_time(setup.alpha**setup.depth, 0.99 * last, last, setup.depth))
    run = unbroken(flow(model, problem, theta0, np.linspace(0.0, end, 100), rtol=rtol))
    measured, predicted = observe.along(run, "mode_strengths"), prediction.predict(run.t)
    off = float(np.abs(measured - predicted).max() / setup.lam[0])
    amplified = run.amplification * setup.alpha**setup.depth / setup.lam[0]  # of the start's rounding
    return Evidence(
        prediction.hypotheses,
        (Conclusion("strengths, largest difference from the closed form over λ_1", off, ACCURACY, amplification=max(amplified, 1.0)),),
        (run.status,),
    )  # fmt: skip


def counts(setup: SetUp, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure in how many steps each eigenvalue comes to 0.99 λ, and whether all of them move monotonically."""
    lam, depth = setup.lam[setup.lam > 0], setup.depth
    limits = lam ** (1 / depth)
    hypotheses: tuple[Hypothesis, ...] = (
        Hypothesis("start below the eigenvalues' roots (defect: relative excess)", float(np.max(np.maximum(setup.alpha / limits - 1, 0.0)))),
        *setup.hypotheses(),
    )  # fmt: skip
    if not respect_hypotheses:
        hypotheses = ()
    if not all(h.holds for h in hypotheses):
        return Evidence(hypotheses)
    bounded = setup.share <= 1 and bool(np.all(setup.alpha < limits))
    lower = upper = np.array([2000.0])
    if bounded:
        lower, upper = theory.factorization.step_bounds(0.99 * lam, lam, setup.alpha, setup.step_size, depth)
    d = (
        setup.eigenvalues(int(1.2 * upper.max()) + 1)[:, : len(lam)] / limits
    )  # a breach of the bound would show
    learned = d**depth >= 0.99
    conclusions = []
    for i in range(len(lam)) if bounded else ():
        k = float(np.argmax(learned[:, i])) if learned[-1, i] else np.inf
        conclusions += [
            Conclusion(f"λ = {lam[i]:g}: steps to 0.99 λ over their upper bound", k / float(upper[i]), 1.0),
            Conclusion(f"λ = {lam[i]:g}: their lower bound over the steps", float(lower[i]) / k, 1.0),
        ]
    fall, excess = float(np.max(-np.diff(d, axis=0))), float(np.max(d - 1))
    conclusions += [
        Conclusion("largest fall in one step, relative", max(fall, 0.0), 1e-12),
        Conclusion("largest excess over the limit, relative", max(excess, 0.0), 1e-12),
    ]
    return Evidence(hypotheses, tuple(conclusions))


def ranks(
    setup: SetUp, rtol: float, counted: Sequence[int] | None = None, respect_hypotheses: bool = True
) -> Evidence:
    """Measure the effective rank, and the distance from the best approximations, of the matrices in the intervals."""
    lam = setup.lam
    some = range(1, setup.learned + 1) if counted is None else counted
    above = Hypothesis(
        "start below λ_L^(1/N) (defect: relative excess)",
        max(setup.alpha / lam[max(some) - 1] ** (1 / setup.depth) - 1, 0.0),
    )
    intervals = [setup.interval(count) for count in some] if above.holds else []
    hypotheses = (above, *setup.hypotheses()) + tuple(
        Hypothesis(
            f"interval of L = {i.count} holds a step (defect: relative lack)",
            0.0 if not i.empty else float(max(np.ceil(i.start) / max(i.end, 1.0) - 1, _EPS)), 0.0,
        )
        for i in intervals
    )  # fmt: skip
    if not respect_hypotheses:
        hypotheses = ()
    if not all(h.holds for h in hypotheses):
        return Evidence(hypotheses)
    # the last interval has no end: half as long again as it took to get there
    last = int(np.ceil(1.5 * max(i.start for i in intervals)))
    run = setup.matrices(last)
    w = setup.model.end_to_end(run.theta)
    rank = _ranks(np.linalg.svd(w, compute_uv=False))
    u = setup.vectors
    conclusions = []
    for i in intervals:
        first = int(np.ceil(i.start))
        inside = slice(first, max(int(np.ceil(min(i.end, last + 1))), first + 1))
        best = u[:, : i.count] * lam[: i.count] @ u[:, : i.count].T
        plain = float(np.linalg.norm(lam[i.count :]))
        loss = np.linalg.norm(w[inside] - setup.problem.Y, axis=(1, 2))
        conclusions += [
            Conclusion(f"L = {i.count}: largest effective rank over its bound", float(rank[inside].max() / i.upper), 1.0),
            Conclusion(f"L = {i.count}: bound over the least effective rank", float(i.lower / rank[inside].min()), 1.0),
            Conclusion(
                f"L = {i.count}: ‖W − M_L‖ over its bound",
                float(np.linalg.norm(w[inside] - best, axis=(1, 2)).max() / i.distance), 1.0,
            ),
            Conclusion(
                f"L = {i.count}: ‖W − M‖ over what the best approximation and the bound allow",
                float(loss.max() / (plain + i.distance)), 1.0,
            ),
        ]  # fmt: skip
    return Evidence(hypotheses, tuple(conclusions), (run.status,))


def limits(
    setup: SetUp,
    steps: int,
    rtol: float,
    start: Callable[[SetUp], Array] | None = None,
    respect_hypotheses: bool = True,
) -> Evidence:
    """Measure where the strengths go: to max(λ, 0)."""
    theta0 = start(setup) if start else None
    hypotheses = setup.hypotheses(theta0) if respect_hypotheses else ()
    if not all(h.holds for h in hypotheses):
        return Evidence(hypotheses)
    lam, n = setup.lam, setup.depth
    if theta0 is None:
        d = setup.eigenvalues(steps)
        y = d[-1] ** n
    else:  # off the equality the reduction says nothing
        run, v = setup.matrices(steps, theta0), setup.vectors
        y = np.einsum("ai,ab,bi->i", v, setup.model.end_to_end(run.end), v)
        d = np.tile(np.abs(y) ** (1 / n), (steps + 1, 1))
    rising = lam > 0
    t = setup.step_size * np.arange(steps + 1)[:, None]
    law = theory.factorization.decay(t, lam[~rising], setup.alpha, n)
    return Evidence(
        hypotheses,
        (
            Conclusion("positive eigenvalues, largest relative distance", float(np.max(np.abs(y / lam - 1)[rising])), 1e-10),
            Conclusion("the others: d over its law of decay, largest", float(np.max(d[:, ~rising] / law)), 1 + 1e-10),
        ),
    )  # fmt: skip


def recovers(setup: SetUp, share: float, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure whether the flow of two factors, (1 − share) α I and α I, learns eigenvalues of either sign."""
    model, problem = setup.model, setup.problem
    eye = setup.alpha * np.eye(len(setup.spectrum))
    theta0 = model.pack([eye, (1 - share) * eye])
    prediction = theory.linear.unbalanced_modes(model, problem, theta0, force=True)
    apart = Hypothesis("factors differ, 0 < β < α (defect: 1 if not)", float(not 0 < share < 1))
    hypotheses = (apart, *prediction.hypotheses) if respect_hypotheses else ()
    if not all(h.holds for h in hypotheses):
        return Evidence(hypotheses)
    least = float(np.min(np.abs(setup.lam)))
    t = np.linspace(0.0, 30 / least, 60) if share > 0 else np.linspace(0.0, 10.0, 60)
    run = unbroken(flow(model, problem, theta0, t, rtol=rtol))
    measured, predicted = observe.along(run, "mode_strengths"), prediction.predict(run.t)
    off = float(np.abs(measured - predicted).max() / np.abs(setup.lam).max())
    return Evidence(
        hypotheses,
        (
            Conclusion("strengths, largest difference from the closed form", off, ACCURACY, amplification=run.amplification * setup.alpha**2),
            Conclusion(
                "‖W − M‖ / ‖M‖ at the end",
                float(np.linalg.norm(model.end_to_end(run.end) - problem.Y) / np.linalg.norm(problem.Y)), ACCURACY,
                amplification=run.amplification * setup.alpha**2,
            ),
        ),
        (run.status,),
    )  # fmt: skip


@dataclass(frozen=True)
class Leaving:
    """How two factors part along the eigenvector of the least, negative eigenvalue."""

    seed: float
    measured: Array  # (K + 1,) vᵀ(W_1 − W_2ᵀ) v
    predicted: Array  # from the first-order map
    strength: Array  # (K + 1,) vᵀ W v
    slope: float  # of log |measured| by time, while it is small

    @property
    def onset(self) -> tuple[int, int]:
        """Steps at which the difference passes a tenth, measured and predicted."""
        return int(np.argmax(np.abs(self.measured) > 0.1)), int(np.argmax(np.abs(self.predicted) > 0.1))


def leaving(setup: SetUp, seed: float, steps: int) -> Leaving:
    """Run the matrices from factors that differ by ``seed`` along that eigenvector."""
    v, eye = setup.vectors[:, -1], setup.alpha * np.eye(len(setup.spectrum))
    run = setup.matrices(steps, setup.model.pack([eye + seed * np.outer(v, v), eye]))
    first, second = setup.model.unpack(run.theta)
    measured = np.einsum("a,tab,b->t", v, first - np.swapaxes(second, 1, 2), v)
    d = setup.eigenvalues(steps)[:, -1]
    growth = 1 + setup.step_size * (d[:-1] ** 2 - setup.lam[-1])
    predicted = float(measured[0]) * np.cumprod(np.append(1.0, growth))
    strength = np.einsum("a,tab,b->t", v, setup.model.end_to_end(run.theta), v)
    small = (np.abs(predicted) > 1e3 * abs(measured[0])) & (np.abs(predicted) < 1e-3)
    t = setup.step_size * np.flatnonzero(small)
    slope = float(np.polyfit(t, np.log(np.abs(measured[small])), 1)[0]) if small.sum() > 2 else np.nan
    return Leaving(seed, measured, predicted, strength, slope)


def leaves(setup: SetUp, seed: float, steps: int, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure at what rate, and when, two factors with a difference of rounding size part."""
    least = setup.lam[-1]
    hypotheses = (
        Hypothesis("a negative eigenvalue (defect: 1 if there is none)", float(least >= 0)),
        Hypothesis("two factors (defect: further ones)", float(setup.depth - 2)),
        *setup.hypotheses(),
    )
    if not respect_hypotheses:
        hypotheses = ()
    if not all(h.holds for h in hypotheses):
        return Evidence(hypotheses)
    found, eta = leaving(setup, seed, steps), setup.step_size
    onset = float(found.onset[1])
    # rounding of the start changes the first difference by ε α / seed, and so when it has grown
    rounded = setup.alpha / seed / float(np.log1p(-eta * least)) / onset if least < 0 else 1.0
    return Evidence(
        hypotheses,
        (
            Conclusion("rate of growth of W_1 − W_2ᵀ, log(1 + η|λ|) / η", found.slope, 1e-3, float(np.log1p(-eta * least) / eta)),
            Conclusion("steps until it passes 0.1", float(found.onset[0]), 0.02, onset, rounded),
            Conclusion("strength at the end, the eigenvalue after all", float(found.strength[-1]), 1e-8, float(least)),
        ),
    )  # fmt: skip


def claims(size: str) -> list[tuple[Claim, str]]:
    """Claims, each with the verdict that it must get."""
    same = "Descent from equal factors is descent on each eigenvalue: W_j = V diag(d) Vᵀ for all j."
    path = "Each strength of the flow from equal factors follows y' = N y^(2 − 2/N) (λ − y)."
    count = "Eigenvalues rise monotonically, in a number of steps between two bounds."
    rank = (
        "While L eigenvalues are learned and no others the effective rank is that of the best approximation "
        "of rank L, and stopping then yields nearly that approximation."
    )
    goal = "Strengths tend to max(λ, 0), those of λ ≤ 0 by their law of decay."
    either = "With one factor perturbed eigenvalues of either sign are learned."
    part = "Factors that differ by rounding part at the rate |λ| of a negative eigenvalue."
    depths = (2, 3, 4) if size == "quick" else (2, 3, 4, 5)
    listed: list[tuple[Claim, str]] = []

    def add(name: str, statement: str, run: Callable[[float], Evidence], expected: str = "holds") -> None:
        listed.append((Claim(name, statement, REFERENCE, run), expected))

    def control(name: str, statement: str, run: Callable[..., Evidence], ignoring: bool = True) -> None:
        add(f"control: {name}", statement, run, "inapplicable")
        if ignoring:
            ignore = partial(run, respect_hypotheses=False)
            add(f"control: {name}, hypotheses ignored", statement, ignore, "violated")

    for n in depths:
        setup = SetUp(SPECTRUM, n, STARTS.get(n, 0.4))
        add(f"reduction to eigenvalues, N = {n}", same, partial(reduction, setup, 2000))
    add("reduction with a negative eigenvalue, N = 4", same, partial(reduction, SetUp(MIXED, 4, 0.1), 4000))
    control(
        "reduction, one factor perturbed",
        same,
        partial(reduction, SetUp(MIXED, 4, 0.1), 500, start=_perturbed),
    )
    control(
        "reduction with a negative eigenvalue, N = 2", same, partial(reduction, SetUp(MIXED, 2, 0.1), 4000),
        ignoring=False,
    )  # fmt: skip
    for n in depths:
        add(
            f"closed form of the flow, N = {n}",
            path,
            partial(follows, SetUp(SPECTRUM[:6], n, STARTS.get(n, 0.4))),
        )
        add(f"number of steps, N = {n}", count, partial(counts, SetUp(MIXED[:3], n, 0.1)))
    control(
        "number of steps, step size too long", count, partial(counts, SetUp(MIXED[:3], 2, 0.1, share=3.2))
    )
    control("number of steps, start above the eigenvalues", count, partial(counts, SetUp(MIXED[:3], 2, 0.8)))
    for n in depths:
        add(f"effective rank, N = {n}", rank, partial(ranks, SetUp(SPECTRUM, n, STARTS.get(n, 0.4))))
    control("effective rank, start too large", rank, partial(ranks, SetUp(SPECTRUM, 2, 0.3), counted=(1,)))
    close = SetUp((10.0, 9.5, 2.0, 1.0), 2, 1e-4)
    control("effective rank, gap too small", rank, partial(ranks, close, counted=(1,)))
    control(
        "effective rank, start above an eigenvalue",
        rank,
        partial(ranks, SetUp(SPECTRUM, 2, 1.2)),
        ignoring=False,
    )
    for n, steps in ((2, 4000), (3, 20000)) + (((4, 100000),) if size == "full" else ()):
        add(f"limit, N = {n}", goal, partial(limits, SetUp(MIXED, n, 0.1), steps))
    control(
        "limit, one factor perturbed", goal, partial(limits, SetUp(MIXED, 2, 0.1), 4000, start=_perturbed)
    )
    add("one factor perturbed", either, partial(recovers, SetUp(MIXED, 2, 0.1), 0.2))
    control("one factor perturbed by nothing", either, partial(recovers, SetUp(MIXED, 2, 0.1), 0.0))
    add("leaving the equality of the factors", part, partial(leaves, SetUp(MIXED, 2, 0.1), 1e-15, 1500))
    control(
        "leaving, no negative eigenvalue",
        part,
        partial(leaves, SetUp((5.0, 1.0, 0.3, 0.0), 2, 0.1), 1e-15, 1500),
    )
    return listed


# ---- observations --------------------------------------------------------------------------------------------


def largest_fall(rank: Array) -> float:
    """How far the effective rank ever falls back below what it had reached after its minimum."""
    later = rank[int(np.argmin(rank)) :]
    return float(np.max(np.maximum.accumulate(later) - later))


def _ranks(sizes: NDArray[np.floating]) -> Array:
    with np.errstate(invalid="ignore"):
        found: Array = sizes.sum(axis=1) / sizes.max(axis=1)
    return found


def _length(setup: SetUp) -> int:
    """Steps in which all positive eigenvalues are learned, and half as many again."""
    return int(1.5 * setup.interval(setup.learned).start)


def gaussian(setup: SetUp, seed: int) -> Array:
    """Independent factors of entries N(0, α²/n), of about the size of α I."""
    return setup.model.init("gaussian", setup.alpha / len(setup.spectrum) ** 0.5, rng=seed)


@dataclass(frozen=True)
class Sensing:
    """Measurements ⟨A_i, W⟩ of a matrix with Gaussian A_i, and descent on them."""

    spectrum: tuple[float, ...] = (10.0, 5.0, 2.0, *[0.0] * 17)
    measurements: int = 240
    depth: int = 3
    alpha: float = 0.1
    share: float = 0.3
    seed: int = 0

    @property
    def whole(self) -> SetUp:
        """The same matrix, fully observed."""
        return SetUp(self.spectrum, self.depth, self.alpha, self.share, self.seed)

    def run(self, steps: int, save_every: int) -> Trajectory:
        n = len(self.spectrum)
        a = np.random.default_rng(self.seed + 1).standard_normal((self.measurements, n, n))
        m = self.whole.problem.Y
        problem = Problem.sensing(a, np.einsum("mab,ab->m", a, m))
        model = self.whole.model
        start = model.init("identity", self.alpha)
        return unbroken(descend(model, problem, start, self.whole.step_size, steps, save_every=save_every))


def _nearest(model: DeepLinear, run: Trajectory, levels: Array) -> list[float]:
    """How near the effective rank comes to each level, relative."""
    rank = _ranks(np.linalg.svd(model.end_to_end(run.theta), compute_uv=False))
    return [float(np.abs(rank / level - 1).min()) for level in levels]


def observations(size: str) -> list[Observation]:
    """What is no theorem: measured, not asserted."""
    found: list[Observation] = []

    def add(name: str, value: float, error: float, note: str = "") -> None:
        found.append(Observation(name, value, error, note, REFERENCE))

    for n, alpha in ((2, 0.01), (3, 0.1), (4, 0.3)):
        setup = SetUp(SPECTRUM, n, alpha)
        rank = _ranks(setup.eigenvalues(4 * _length(setup)) ** n)
        add(
            f"effective rank, largest fall after its minimum, N = {n}, α = {alpha:g}", largest_fall(rank), 1e-14,
            "zeros decay like a power of t when all else is learned, so that it cannot be monotone on a singular target",
        )  # fmt: skip
    for n in (2, 3, 4):
        setup = SetUp(SPECTRUM, n, STARTS[n] if n > 2 else 1e-3)
        levels = theory.factorization.plateaus(setup.lam)
        off = np.empty((2, 3, len(levels)))
        for seed in range(3):
            for i, change in enumerate((0.0, 4 * _EPS)):  # rounding, to see what it does
                run = setup.matrices(3 * _length(setup), (1 + change) * gaussian(setup, seed))
                off[i, seed] = _nearest(setup.model, run, levels)
        for i, worst in enumerate(off[0].max(axis=0).tolist()):
            add(
                f"Gaussian start, N = {n}: how near the effective rank comes to plateau L = {i + 1}, relative",
                worst, float(np.abs(off[0] - off[1])[:, i].max()) + _EPS, "farthest of 3 seeds",
            )  # fmt: skip
    sensing = Sensing()
    run = sensing.run(4000 if size == "quick" else 20000, 10)
    w = sensing.whole.model.end_to_end(run.theta)
    rank = _ranks(np.linalg.svd(w, compute_uv=False))
    target = sensing.whole.problem.Y
    add(
        "sensing, 240 of 400: largest fall of the effective rank after its minimum", largest_fall(rank), 1e-12
    )
    levels = theory.factorization.plateaus(sensing.whole.lam)
    for count, nearest in enumerate(_nearest(sensing.whole.model, run, levels), 1):
        add(f"sensing: how near the effective rank comes to plateau L = {count}, relative", nearest, 1e-9)
    add(
        "sensing: ‖W − M‖ / ‖M‖ at the end",
        float(np.linalg.norm(w[-1] - target) / np.linalg.norm(target)),
        1e-12,
    )
    for n in (2, 3):
        setup = SetUp(MIXED, n, 0.1)
        d, v = setup.eigenvalues(4000), setup.vectors
        weights = setup.model.unpack(setup.matrices(4000).theta)
        off_manifold = max(float(np.abs(x - np.einsum("ai,ti,bi->tab", v, d, v)).max()) for x in weights)
        estimate = theory.factorization.rounding_growth(d, setup.lam, n, setup.step_size)[-1]
        note = f"chance of rounding; first-order estimate {estimate:.1g}"
        if n == 2 and all(np.array_equal(x, np.swapaxes(y, 1, 2)) for x, y in pairwise(weights)):
            note = "W_1 = W_2ᵀ to the last bit: products of equal factors round equally here"
        add(
            f"a negative eigenvalue, N = {n}, from exactly equal factors: distance from the reduction, 4000 steps",
            off_manifold, off_manifold, note,
        )  # fmt: skip
    return found


# ---- figures -------------------------------------------------------------------------------------------------


def reproduce(out: Path, size: str, advance: Callable[[float, str], None]) -> Section:
    """Check the claims and draw the figures."""
    section = Section(
        "chou2020",
        "Gradient descent for deep matrix factorization: dynamics and implicit bias towards low rank",
        "H.-H. Chou, C. Gieshoff, J. Maly, H. Rauhut (2020), arXiv 2011.13772.",
        "A symmetric matrix is factorised into N equal factors by gradient descent. Each eigenvalue moves by itself, large ones "
        "first, so that there are intervals in which the effective rank is that of a best approximation of low rank, and "
        "stopping there yields it. Eigenvalues below zero are not learned; rounding, or a perturbed factor, changes that. "
        "Bounds are our own: only the shape of the theorem's constants is known to us.",
    )
    settle(section, claims(size), advance, 0.5, rtol=1e-10, store=out / "claims")
    advance(0.5, "observations")
    section.rows += [observation_row(one) for one in observations(size)]
    with plot.style():
        for i, plate in enumerate((_descent_plate, _gaussian_plate, _sensing_plate, _leaving_plate)):
            advance(0.7 + 0.07 * i, "figures")
            section.plates.append(plate(out, size))
    advance(1.0, "done")
    return section


_LEVEL: dict[str, Any] = {"color": "0.5", "linestyle": (0, (3, 2)), "linewidth": 0.7}


def _levels(ax: Axes, spectrum: Array) -> None:
    levels = theory.factorization.plateaus(spectrum)
    for level in levels:
        ax.axhline(level, **_LEVEL, zorder=0)
    ax.set_yticks(levels, [f"{level:g}" for level in levels])
    ax.set_ylim(0.9, 2.1)
    ax.set_ylabel("effective rank")


def _steps(ax: Axes) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_minor_formatter(NullFormatter())  # less than a decade apart they would overlap
    ax.set_xlabel("step $k$")


def _columns(axes: Any, setups: Sequence[SetUp]) -> None:
    for (top, bottom), setup in zip(axes.T, setups, strict=True):
        top.set_title(f"$N={setup.depth}$, $\\alpha={setup.alpha:g}$")
        _levels(bottom, setup.lam)
        for ax in (top, bottom):
            _steps(ax)
        top.set_xlabel("")
        top.set_yticks([0, 1, 2, 5, 10])
    for ax in axes[:, 1:].ravel():
        ax.set_ylabel("")


def _handles(names: Sequence[str], **style: Any) -> list[Line2D]:
    return [
        Line2D([], [], color=color, label=name, **style)
        for name, color in zip(names, plot.sequence(len(names)), strict=True)
    ]


_EIGENVALUES = [f"$\\lambda_{i}={value:g}$" for i, value in enumerate(SPECTRUM[:4], 1)]


def _descent_plate(out: Path, size: str) -> Plate:
    setups = [SetUp(SPECTRUM, n, alpha) for n, alpha in ((2, 1e-4), (3, 0.1), (4, 0.3))]
    fig, axes = plot.figure(2, 3, height=1.75)
    _columns(axes, setups)
    for (top, bottom), setup in zip(axes.T, setups, strict=True):
        steps = _length(setup)
        y = setup.eigenvalues(steps) ** setup.depth
        k = np.arange(1, steps + 1)
        plot.curves(top, k, y[1:, :4])
        some = np.unique(np.geomspace(1, steps, 30).astype(int))
        closed = theory.linear.mode_strength(
            setup.step_size * some[:, None], setup.lam[:4], setup.alpha**setup.depth, setup.depth
        )
        plot.curves(top, some, closed, **plot.MARKS)
        raw = setup.model.end_to_end(setup.matrices(steps).theta)
        bottom.plot(k, _ranks(np.linalg.svd(raw, compute_uv=False))[1:], color="C0")
        for count in range(1, 5):
            i = setup.interval(count)
            bottom.axvspan(i.start, min(i.end, steps), color="C5", alpha=0.25, linewidth=0)
        bottom.set_xlim(max(1.0, 0.2 * setup.interval(1).start), steps)
        top.set_xlim(bottom.get_xlim())
    axes[0, 0].set_ylabel("eigenvalues of $W$")
    fig.legend(
        handles=[
            *_handles(_EIGENVALUES), Line2D([], [], color="0.4", label="flow, closed form", **plot.MARKS),
            Line2D([], [], **_LEVEL, label="best rank $L$"), Patch(color="C5", alpha=0.25, label="proved intervals"),
        ],
        loc="outside upper right", ncols=7, columnspacing=1.2,
    )  # fmt: skip
    return Plate(
        plot.save(fig, out / "eigenvalues")[1],
        "Gradient descent from N equal factors α I on a 10 × 10 matrix with eigenvalues 10, 5, 2, 1 and six zeros; step size 0.99 / ((3N − 2) M^(2N−2)). "
        "Above: eigenvalues (lines) and the closed form of the flow (dots) at time step size × k. Below: effective rank ‖W‖_* / ‖W‖ (dimensionless) of "
        "the matrices; dashed: those of the best approximations of rank L = 1 … 4; shaded: steps in which it is proved to be near "
        "(learned to 5 %). After the experiments of arXiv 2011.13772; spectrum and starts are ours.",
    )


def _gaussian_plate(out: Path, size: str) -> Plate:
    setups = [SetUp(SPECTRUM, n, alpha) for n, alpha in ((2, 1e-4), (3, 0.1), (4, 0.3))]
    fig, axes = plot.figure(2, 3, height=1.75)
    _columns(axes, setups)
    for (top, bottom), setup in zip(axes.T, setups, strict=True):
        steps = (3 if setup.depth > 2 else 2) * _length(setup)
        first = max(1.0, 0.2 * setup.interval(1).start)
        for seed in range(3):
            run = setup.matrices(steps, gaussian(setup, seed))
            sizes = np.linalg.svd(setup.model.end_to_end(run.theta), compute_uv=False)
            k = np.arange(1, steps + 1)
            if seed == 0:
                plot.curves(top, k, sizes[1:, :4])
            bottom.plot(k, _ranks(sizes)[1:], color=f"C{seed}", linewidth=0.9)
        for ax in (top, bottom):
            ax.set_xlim(first, steps)
    axes[0, 0].set_ylabel("singular values of $W$")
    seeds = [Line2D([], [], color=f"C{seed}", linewidth=0.9, label=f"seed {seed}") for seed in range(3)]
    names = [f"$\\sigma_{i}$" for i in range(1, 5)]
    fig.legend(
        handles=[*_handles(names), *seeds, Line2D([], [], **_LEVEL, label="best rank $L$")],
        loc="outside upper right", ncols=8,
    )  # fmt: skip
    return Plate(
        plot.save(fig, out / "gaussian")[1],
        "As before, from independent factors with entries N(0, α²/n). Above: the four largest singular values, seed 0. Below: effective rank "
        "(dimensionless), three seeds; dashed: the best approximations of rank L. An observation, no theorem. After the experiments of arXiv 2011.13772.",
    )


def _sensing_plate(out: Path, size: str) -> Plate:
    sensing = Sensing()
    steps = 4000 if size == "quick" else 20000
    run = sensing.run(steps, 10)
    whole = sensing.whole
    w, k = whole.model.end_to_end(run.theta), np.append(np.arange(0, steps, 10), steps)
    sizes = np.linalg.svd(w, compute_uv=False)
    fig, (left, middle, right) = plot.figure(1, 3, height=1.9)
    plot.curves(left, k[1:], sizes[1:, :4])
    left.set_ylabel("singular values of $W$")
    left.set_yticks([0, 2, 5, 10])
    left.legend(handles=_handles([f"$\\sigma_{i}$" for i in range(1, 5)]), loc="upper left", ncols=2)
    left.set_ylim(-0.3, 14)
    middle.plot(k[1:], _ranks(sizes)[1:])
    _levels(middle, whole.lam)
    right.loglog(k[1:], np.linalg.norm(w - whole.problem.Y, axis=(1, 2))[1:] / np.linalg.norm(whole.lam))
    for count in (1, 2):
        rest = np.linalg.norm(whole.lam[count:]) / np.linalg.norm(whole.lam)
        right.axhline(rest, **_LEVEL)
        right.annotate(
            f"best rank {count}",
            (0.02, rest),
            (0, -2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="left",
            va="top",
            fontsize=6,
        )
    right.set_ylabel("$\\|W-M\\|_F\\,/\\,\\|M\\|_F$")
    for ax in (left, middle, right):
        _steps(ax)
        ax.set_xlim(30, steps)
    return Plate(
        plot.save(fig, out / "sensing")[1],
        f"Matrix sensing: {sensing.measurements} Gaussian measurements of a 20 × 20 matrix with eigenvalues 10, 5, 2 and zeros, three factors from 0.1 I, loss 1/(2m) Σ residual². "
        "Left: the four largest singular values. Middle: effective rank (dimensionless); dashed: the best approximations of rank 1, 2, 3. Right: "
        "relative distance from the whole matrix. An observation, no theorem. After the experiments of arXiv 2011.13772; sizes are ours.",
    )


def _leaving_plate(out: Path, size: str) -> Plate:
    setup, steps, seeds = SetUp(MIXED, 2, 0.1), 1200, (1e-15, 1e-12, 1e-9)
    fig, (left, right) = plot.figure(1, 2, height=2.0)
    k = np.arange(steps + 1)
    for seed, color in zip(seeds, plot.sequence(len(seeds)), strict=True):
        found = leaving(setup, seed, steps)
        left.semilogy(k, np.abs(found.measured), color=color, label=f"$10^{{{round(np.log10(seed))}}}$")
        left.semilogy(
            k,
            np.where(np.abs(found.predicted) < 3, np.abs(found.predicted), np.nan),
            color="C1",
            linestyle=":",
            linewidth=0.8,
        )
        right.plot(k, found.strength, color=color)
    right.plot(k, setup.eigenvalues(steps)[:, -1] ** 2, **{**_LEVEL, "color": "black"})
    left.set_ylim(1e-16, 10)
    left.set_ylabel("$|v^\\top (W_1-W_2^\\top)\\,v|$")
    right.set_ylabel("strength $v^\\top W v$")
    for ax in (left, right):
        ax.set_xlabel("step $k$")
    handles, _ = left.get_legend_handles_labels()
    handles += [
        Line2D([], [], color="C1", linestyle=":", linewidth=0.8, label="first order"),
        Line2D([], [], **{**_LEVEL, "color": "black"}, label="reduction to eigenvalues"),
    ]
    fig.legend(handles=handles, loc="outside upper right", ncols=5, title="difference at the start")
    return Plate(
        plot.save(fig, out / "leaving")[1],
        "Why the reduction is needed where eigenvalues are negative (5, 1, 0.3, −1; two factors, α = 0.1): a difference of the factors along the "
        "eigenvector v of λ = −1, of the size of rounding at the start, grows like e^(|λ|t) while the strength decays; when it is "
        "of order one the matrices go to −1, not to the limit 0 of equal factors. Own measurement on the theorem of arXiv 2011.13772.",
    )
