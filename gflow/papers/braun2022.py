"""L. Braun, C. Dominé, J. Fitzgerald, A. Saxe: Exact learning dynamics of deep linear networks with prior knowledge (2022),
and C. C. J. Dominé, N. Anguita, A. M. Proca, L. Braun, D. Kunin, P. A. M. Mediano, A. M. Saxe: From lazy to rich: exact
learning dynamics in deep linear networks (2024), arXiv 2409.14623.

Two layers W_2 W_1 on white inputs; all problems here have the rate 1, so that time is in units of the papers' time constant:
a mean of squares over white samples has gflow's own factor 1 / (2n), one-hot items have ½.  λ is that of W_2ᵀW_2 − W_1W_1ᵀ = λ I
throughout.  The representations W_1ᵀW_1, W_2W_2ᵀ and the map are blocks of Q Qᵀ, Q = [W_1ᵀ; W_2].

Beside them what imbalance does from any start: S. Tarmoun, G. França, B. D. Haeffele, R. Vidal: Understanding the dynamics of
gradient flow in overparameterized linear models (2021), and H. Min, S. Tarmoun, R. Vidal, E. Mallada: On the explicit role of
initialization on the convergence and implicit bias of overparametrized linear networks (2021), arXiv 2105.06351.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from numpy.typing import ArrayLike, NDArray

from gflow import datasets, observe, plot, theory
from gflow.claims import Claim, Conclusion, Evidence, Observation
from gflow.integrate import flow
from gflow.models.linear import DeepLinear
from gflow.papers import settle, unbroken
from gflow.problem import Problem
from gflow.report import Plate, Section, observation_row
from gflow.theory.prediction import Hypothesis
from gflow.trajectory import Trajectory

Array = NDArray[np.float64]

REFERENCE = "arXiv 2409.14623"
IMBALANCE = "arXiv 2105.06351"
ACCURACY = 1e-8
#: Singular values of the target of the sign obstruction; the saddle has loss ½ · 0.8².
OBSTRUCTED = (2.0, 1.5, 0.8)
#: Of imbalance: what W_1 is divided and W_2 multiplied by.
LEVELS = (1.0, 1.5, 2.0)
_EPS = float(np.finfo(float).eps)


@dataclass(frozen=True)
class SetUp:
    """A problem, and a start whose layers are balanced but for λ."""

    kind: str  # demo, tree, square, skew
    imbalance: float = 0.0
    seed: int = 0
    scale: float = 0.35
    signs: int | None = None  # of det W(0) det M; None: as it comes
    unequal: float = 1.0  # W_1 divided and W_2 multiplied by it
    levels: int = 3  # of branching of the tree

    @cached_property
    def problem(self) -> Problem:
        rng = np.random.default_rng(self.seed)
        if self.kind == "tree":
            x, y = datasets.hierarchy(self.levels)
            left, s, _ = np.linalg.svd(y, full_matrices=False)
            # the items' properties in the coordinates that make the map symmetric: as many as items
            return Problem(x, left * s @ left.T, factor=0.5)
        if self.kind == "square":
            frames = [np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(2)]
            return Problem.factorization(frames[0] * np.array(OBSTRUCTED) @ frames[1].T)
        x, y = rng.standard_normal((20, 5)), rng.standard_normal((20, 2))
        return Problem(x if self.kind == "skew" else datasets.whiten(x), y)

    @property
    def model(self) -> DeepLinear:
        hidden = {"tree": 2**self.levels, "square": 3}.get(self.kind, 10)
        return DeepLinear((self.problem.inputs, hidden, self.problem.outputs))

    @cached_property
    def start(self) -> Array:
        sign = np.sign(np.linalg.det(self.problem.target)) if self.signs else 0.0
        for trial in range(100):
            rng = np.random.default_rng([self.seed, trial])
            theta = self.model.init("balanced", self.scale, rng, imbalance=self.imbalance)
            if not self.signs or sign * np.linalg.det(self.model.end_to_end(theta)) * self.signs > 0:
                first, second = self.model.unpack(theta)
                return self.model.pack([first / self.unequal, second * self.unequal])
        raise RuntimeError("no start with these signs")

    @property
    def layers(self) -> list[Array]:
        return self.model.unpack(self.start)

    @property
    def slowest(self) -> float:
        """Rate at which the last mode of the map is learned."""
        return float(np.hypot(self.problem.target_svd[1][-1], 0.5 * self.imbalance))

    def hypotheses(self) -> tuple[Hypothesis, ...]:
        """Of the general solution: white inputs, a λ-balanced start, no sign obstruction."""
        return theory.linear.two_layer(self.model, self.problem, self.start, force=True).hypotheses

    def exact(self, t: ArrayLike, form: str = "general") -> Array:
        """Q Qᵀ (T, d + k, d + k), by one of the closed forms; regardless of the hypotheses."""
        first, second = self.layers
        if form == "zero-balanced":
            return theory.exact.zero_balanced(t, self.problem.target, first, second, force=True)
        balance = float(np.trace(second.T @ second - first @ first.T)) / len(first)
        matrix = theory.linear.riccati_matrix(self.problem.target, balance)
        return theory.linear.solve_riccati(np.atleast_1d(np.asarray(t, dtype=float)), matrix, np.vstack([first.T, second]))  # fmt: skip

    def flow(self, t: ArrayLike, rtol: float) -> Trajectory:
        return unbroken(flow(self.model, self.problem, self.start, t, rtol=rtol))

    def squares(self, theta: Array) -> Array:
        """Q Qᵀ of states (T, P)."""
        first, second = self.model.unpack(theta)
        q = np.concatenate([np.swapaxes(first, -1, -2), second], axis=-2)
        return q @ np.swapaxes(q, -1, -2)

    def loss(self, qq: Array) -> Array:
        """½ ‖W − M‖² (T,)."""
        d = self.problem.inputs
        return 0.5 * np.sum((qq[..., d:, :d] - self.problem.target) ** 2, axis=(-2, -1))

    def kernels(self, qq: Array) -> Array:
        return theory.exact.tangent_kernel(qq, self.inputs)

    @property
    def inputs(self) -> Array:
        return self.problem.X if self.problem.kind == "regression" else np.eye(self.problem.inputs)


@dataclass(frozen=True)
class Wide:
    """Five samples of eight inputs and two outputs, L = ½ ‖XW_1ᵀW_2ᵀ − Y‖², and a start that need not be balanced."""

    hidden: int = 20
    level: float = 1.0  # of entries N(0, 1/h): W_1 divided and W_2 multiplied by it
    apart: bool = False  # whether W_1 off the inputs' row space has hidden directions of its own
    decay: float = 0.0
    draw: int = 0  # of the start; the data are the same

    @cached_property
    def problem(self) -> Problem:
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((5, 8)), rng.standard_normal((5, 2))
        return Problem(x, y, factor=0.5, weight_decay=self.decay)

    @cached_property
    def model(self) -> DeepLinear:
        return DeepLinear((8, self.hidden, 2))

    @cached_property
    def rows(self) -> Array:
        """Orthonormal basis (5, 8) of the inputs' row space."""
        return np.linalg.svd(self.problem.X, full_matrices=False)[2]

    @cached_property
    def start(self) -> Array:
        rng, h = np.random.default_rng([self.draw, 1]), self.hidden
        first = rng.standard_normal((h, 8)) / (h**0.5 * self.level)
        second = rng.standard_normal((2, h)) / h**0.5 * self.level
        if self.apart:
            some = np.linalg.qr(rng.standard_normal((h, h // 2)))[0]
            on, inside = self.rows.T @ self.rows, some @ some.T
            first = inside @ first @ on + (first - inside @ first) @ (np.eye(8) - on)
            second = second @ inside
        return self.model.pack([first, second])

    @property
    def rate(self) -> float:
        """c λ_min⁺(XᵀX), with L(t) ≤ L(0) e^(−2 rate t); 0 where the imbalance says nothing."""
        first, second = self.model.unpack(self.start)
        least = float(np.linalg.svd(self.problem.X, compute_uv=False)[-1] ** 2)
        return theory.exact.imbalance_rate(first @ self.rows.T, second) * least

    def flow(self, t: ArrayLike, rtol: float) -> Trajectory:
        return unbroken(flow(self.model, self.problem, self.start, t, rtol=rtol))

    def losses(self, theta: Array) -> Array:
        """½ ‖XWᵀ − Y‖² (T,) of states (T, P), without the weight decay."""
        w = self.model.end_to_end(theta)
        return 0.5 * np.sum((self.problem.X @ np.swapaxes(w, -1, -2) - self.problem.Y) ** 2, axis=(-2, -1))

    def hypotheses(self) -> tuple[Hypothesis, ...]:
        c = self.rate
        return (
            Hypothesis("no weight decay (defect: coefficient)", self.decay),
            Hypothesis("an imbalance that bounds the rate, c > 0 (defect: 1 if not)", float(c <= 0)),
        )

    def distance(self, rtol: float) -> float:
        """Distance ‖W − W_least‖_F of the limit from the solution of least norm."""
        end = self.flow([0.0, 40 / self.rate], rtol).end
        return float(np.linalg.norm(self.model.end_to_end(end) - self.problem.target))


# ---- the claims ----------------------------------------------------------------------------------------------


def follows(setup: SetUp, form: str, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure how closely map, representations and tangent kernel follow a closed form."""
    hypotheses = setup.hypotheses()
    if form == "zero-balanced":
        hypotheses += theory.exact.conditions(setup.problem.target, *setup.layers)
    if not respect_hypotheses:
        hypotheses = ()
    if not all(h.holds for h in hypotheses):
        return Evidence(hypotheses)
    run = setup.flow(np.linspace(0.0, 12 / setup.slowest, 60), rtol)
    d, amplification = setup.problem.inputs, run.amplification * setup.scale
    measured, exact = setup.squares(run.theta), setup.exact(run.t, form)
    blocks = {
        "end-to-end map": (slice(d, None), slice(None, d)),
        "W_1ᵀW_1": (slice(None, d), slice(None, d)),
        "W_2W_2ᵀ": (slice(d, None), slice(d, None)),
    }
    conclusions = [
        Conclusion(
            f"{name}: largest difference from the closed form over the largest entry",
            float(np.abs(measured[:, i, j] - exact[:, i, j]).max() / np.abs(exact[:, i, j]).max()), ACCURACY,
            amplification=amplification,
        )
        for name, (i, j) in blocks.items()
    ]  # fmt: skip
    first = observe.ntk(setup.model, setup.problem, setup.start, setup.inputs)
    last = observe.ntk(setup.model, setup.problem, run.end, setup.inputs)
    ends = setup.kernels(exact[[0, -1]])
    conclusions.append(
        Conclusion(
            "how far the tangent kernel turned, 1 − cosine", float(theory.exact.kernel_distance(first, last)), 1e-6,
            float(theory.exact.kernel_distance(ends[0], ends[1])), amplification,
        )
    )  # fmt: skip
    return Evidence(hypotheses, tuple(conclusions), (run.status,))


def _bars(setup: SetUp) -> Hypothesis:
    """Whether nothing stands between the start and the limit."""
    try:
        least = float(theory.exact.overlap(setup.problem.target, *setup.layers)[-1])
    except ValueError:  # another hypothesis says why
        least = 0.0
    defect = _EPS / least if least > 0 else np.inf
    return Hypothesis("start not orthogonal to a learned direction (defect: rounding / overlap)", defect)


def tends(setup: SetUp, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure where map and representations end."""
    hypotheses = (*setup.hypotheses(), _bars(setup)) if respect_hypotheses else ()
    if not all(h.holds for h in hypotheses):
        return Evidence(hypotheses)
    barred = setup.signs is not None and setup.signs < 0
    run = setup.flow([0.0, (14 if barred else 24) / setup.slowest], rtol)
    d, qq = setup.problem.inputs, setup.squares(run.end)
    limit = theory.exact.limit(setup.problem.target, setup.imbalance, setup.model.widths[1])
    u, s, v = setup.problem.target_svd
    first, second = theory.exact.factor_values(s, setup.imbalance)
    expected = {"W_1ᵀW_1": v * first**2 @ v.T, "W_2W_2ᵀ": u * second**2 @ u.T, "W": setup.problem.target}
    found = {"W_1ᵀW_1": qq[:d, :d], "W_2W_2ᵀ": qq[d:, d:], "W": qq[d:, :d]}
    conclusions = [
        Conclusion(
            f"{name} at the end, relative distance from its limit",
            float(np.linalg.norm(found[name] - expected[name]) / np.linalg.norm(expected[name])), ACCURACY,
        )
        for name in expected
    ]  # fmt: skip
    conclusions.append(
        Conclusion("Q Qᵀ at the end, relative distance from 2F₊", float(np.linalg.norm(qq - limit) / np.linalg.norm(limit)), ACCURACY)
    )  # fmt: skip
    return Evidence(hypotheses, tuple(conclusions), (run.status,))


def saddle(setup: SetUp, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure the loss at which a flow that a sign obstructs stays."""
    listed = [h for h in setup.hypotheses() if not h.name.startswith("no sign obstruction")]
    first, second = setup.layers
    signs = np.linalg.det(second @ first) * np.linalg.det(setup.problem.target)
    above, below = second.T @ second, first @ first.T
    listed += [
        Hypothesis("zero-balanced start", float(np.linalg.norm(above - below, 2) / np.linalg.norm(above, 2))),
        Hypothesis("opposite signs of det W(0) and det M (defect: 1 if not)", float(signs > 0)),
    ]
    hypotheses = tuple(listed) if respect_hypotheses else ()
    if not all(h.holds for h in hypotheses):
        return Evidence(hypotheses)
    least = float(setup.problem.target_svd[1][-1])
    run = setup.flow(np.linspace(0.0, 12 / least, 60), rtol)
    exact = setup.loss(setup.exact(run.t))
    overlap = float(theory.exact.overlap(setup.problem.target, first, second)[-1])
    return Evidence(
        hypotheses,
        (
            Conclusion("least overlap with a learned direction", overlap, 1e-12),
            Conclusion("loss at the end, ½ s_min²", float(run.loss[-1]), ACCURACY, 0.5 * least**2, run.amplification * setup.scale),
            Conclusion(
                "loss along the way, largest relative difference from the closed form",
                float(np.max(np.abs(run.loss / exact - 1))), ACCURACY, amplification=run.amplification * setup.scale,
            ),
        ),
        (run.status,),
    )  # fmt: skip


@dataclass(frozen=True)
class Draws:
    """Random targets and balanced starts: |det B|, the least overlap, and whether the signs are opposite."""

    determinant: Array
    overlap: Array
    opposite: NDArray[np.bool_]


def draws(count: int, imbalance: float = 0.0, seed: int = 0) -> Draws:
    """Gaussian targets 3 × 3 and starts of random singular vectors."""
    rng, model = np.random.default_rng(seed), DeepLinear((3, 3, 3))
    rows = []
    for _ in range(count):
        target = rng.standard_normal((3, 3))
        first, second = model.unpack(model.init("balanced", 0.6, rng, imbalance=imbalance))
        b = theory.exact.alignment(target, second @ first)[0]
        least = theory.exact.overlap(target, first, second)[-1]
        signs = np.linalg.det(second @ first) * np.linalg.det(target)
        rows.append((abs(np.linalg.det(b)), least, signs < 0))
    determinant, overlap, opposite = zip(*rows, strict=True)
    return Draws(np.array(determinant), np.array(overlap), np.array(opposite))


def coincide(count: int, imbalance: float, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure how often an orthogonal direction and opposite signs do not go together."""
    hypotheses = (
        (Hypothesis("zero-balanced starts (defect: |λ|)", abs(imbalance)),) if respect_hypotheses else ()
    )
    if not all(h.holds for h in hypotheses):
        return Evidence(hypotheses)
    found = draws(count, imbalance)
    return Evidence(
        hypotheses,
        (
            Conclusion("starts at which a vanishing overlap and opposite signs disagree", float(np.sum((found.overlap < 1e-12) != found.opposite)), 0.5),
            Conclusion("starts at which a vanishing det B and opposite signs disagree", float(np.sum((found.determinant < 1e-10) != found.opposite)), 0.5),
        ),
    )  # fmt: skip


def decays(setup: Wide, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure the loss against the bound that the imbalance of the start sets."""
    hypotheses = setup.hypotheses() if respect_hypotheses else ()
    if not all(h.holds for h in hypotheses):
        return Evidence(hypotheses)
    run = setup.flow(np.linspace(0.0, 5 / setup.rate, 60), rtol)
    loss, bound = setup.losses(run.theta), np.exp(-2 * setup.rate * run.t)
    return Evidence(
        hypotheses,
        (Conclusion("loss over L(0) e^(−2ct), largest after the start", float(np.max(loss[1:] / (loss[0] * bound[1:]))), 1.0),),
        (run.status,),
    )  # fmt: skip


def least_norm(setup: Wide, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure where the flow ends among the solutions, and whether W_1 moves off the inputs' row space."""
    first, second = setup.model.unpack(setup.start)
    on = setup.rows.T @ setup.rows
    frozen = first - first @ on
    mixed = np.linalg.norm(np.vstack([on @ first.T @ frozen, second @ frozen]), 2)
    apart = Hypothesis(
        "W_1 off the row space in hidden directions of its own, AᵀB = 0 and W_2B = 0",
        float(mixed / np.linalg.norm(setup.start) ** 2),
    )
    hypotheses = (*setup.hypotheses(), apart) if respect_hypotheses else ()
    if not all(h.holds for h in hypotheses):
        return Evidence(hypotheses)
    run = setup.flow([0.0, 40 / setup.rate], rtol)
    moved = setup.model.unpack(run.end)[0] @ (np.eye(8) - on) - frozen
    goal = setup.problem.target
    off = np.linalg.norm(setup.model.end_to_end(run.end) - goal) / np.linalg.norm(goal)
    return Evidence(
        hypotheses,
        (
            Conclusion("distance of the limit from the solution of least norm, relative", float(off), ACCURACY),
            Conclusion("change of W_1 off the row space, relative", float(np.linalg.norm(moved) / np.linalg.norm(frozen)), ACCURACY),
        ),
        (run.status,),
    )  # fmt: skip


def balances(size: str) -> tuple[float, ...]:
    """λ of the claims."""
    return (
        (-10.0, 1.0, 50.0)
        if size == "quick"
        else (-100.0, -50.0, -10.0, -1.0, -0.1, 0.1, 1.0, 10.0, 50.0, 100.0)
    )


def claims(size: str) -> list[tuple[Claim, str]]:
    """Claims, each with the verdict that it must get."""
    path = "From a λ-balanced start the map, the representations and the tangent kernel follow a closed form."
    goal = "The limits of W_1ᵀW_1 and W_2W_2ᵀ have the target's singular vectors, and singular values that λ says."
    stay = (
        "Where det W(0) and det M have opposite signs a zero-balanced flow goes to a saddle of loss ½ s_min²."
    )
    same = "B is singular exactly where det W(0) and det M have opposite signs."
    fast = "The loss falls at least like e^(−2ct), c from the imbalance of the start and the inputs."
    least = (
        "W_1 does not move off the inputs' row space; if it has hidden directions of its own there, the solution "
        "of least norm is reached."
    )
    listed: list[tuple[Claim, str]] = []

    def add(name: str, statement: str, run: Callable[[float], Evidence], expected: str = "holds") -> None:
        source = IMBALANCE if statement in (fast, least) else REFERENCE
        listed.append((Claim(name, statement, source, run), expected))

    def control(name: str, statement: str, run: Callable[..., Evidence]) -> None:
        add(f"control: {name}", statement, run, "inapplicable")
        add(
            f"control: {name}, hypotheses ignored",
            statement,
            partial(run, respect_hypotheses=False),
            "violated",
        )

    levels = 2 if size == "quick" else 3
    tree, name = partial(SetUp, "tree", signs=1, levels=levels), f"tree of {2**levels}"
    lambdas = balances(size)
    for form in ("zero-balanced", "general"):
        add(f"5-10-2, {form} form", path, partial(follows, SetUp("demo"), form))
    add(f"{name}, zero-balanced form", path, partial(follows, tree(), "zero-balanced"))
    for balance in lambdas:
        add(f"{name}, λ = {balance:g}", path, partial(follows, tree(balance), "general"))
    add("limit, 5-10-2", goal, partial(tends, SetUp("demo")))
    add(f"limit, {name}", goal, partial(tends, tree()))
    for balance in lambdas if size == "full" else (1.0,):
        add(f"limit, {name}, λ = {balance:g}", goal, partial(tends, tree(balance)))
    add("sign obstruction", stay, partial(saddle, SetUp("square", signs=-1)))
    add("sign obstruction, random starts", same, partial(coincide, 300 if size == "quick" else 2000, 0.0))
    control("unbalanced start", path, partial(follows, SetUp("demo", unequal=2.0), "general"))
    control("inputs that are not white", path, partial(follows, SetUp("skew"), "general"))
    control("zero-balanced form at λ = 1", path, partial(follows, tree(1.0), "zero-balanced"))
    control("limit, sign obstruction", goal, partial(tends, SetUp("square", signs=-1)))
    control("sign obstruction, equal signs", stay, partial(saddle, SetUp("square", signs=1)))
    control("sign obstruction, λ = 1", stay, partial(saddle, SetUp("square", 1.0, signs=-1)))
    control("sign obstruction, random starts with λ = 1", same, partial(coincide, 100, 1.0))
    for level in LEVELS:
        add(f"rate from imbalance, level {level:g}", fast, partial(decays, Wide(level=level)))
    add("least norm", least, partial(least_norm, Wide(apart=True)))
    control("rate from imbalance, weight decay", fast, partial(decays, Wide(decay=0.1)))
    add("control: rate from imbalance, few hidden units", fast, partial(decays, Wide(4)), "inapplicable")
    control("least norm, hidden directions shared", least, partial(least_norm, Wide()))
    return listed


# ---- observations --------------------------------------------------------------------------------------------


def turned(balance: float) -> float:
    """How far the tangent kernel of the tree turns until everything is learned, by the closed form."""
    setup = SetUp("tree", balance, signs=1)
    end = theory.exact.limit(setup.problem.target, balance, 8)
    return float(theory.exact.kernel_distance(*(setup.kernels(qq) for qq in (setup.exact(0.0)[0], end))))


def widths(size: str) -> tuple[int, ...]:
    """Numbers of hidden units at which the distance from the solution of least norm is measured."""
    return (20, 80, 320) if size == "quick" else (20, 80, 320, 1280)


@cache
def distances(hidden: int, size: str) -> Array:
    """That distance (2, S) at two tolerances, for some random starts."""
    starts = range(5 if size == "quick" else 10)
    return np.array([[Wide(hidden, draw=i).distance(rtol) for i in starts] for rtol in (1e-8, 1e-6)])


def observations(size: str) -> list[Observation]:
    """What is no theorem: measured, not asserted."""
    count = 300 if size == "quick" else 2000
    share = float(draws(count).opposite.mean())
    found = [
        Observation(
            f"share of {count} random zero-balanced starts that a sign obstructs", share, 0.5 / count**0.5,
            "½ by symmetry; error: one σ of the draw", REFERENCE,
        )
    ]  # fmt: skip
    large = np.array([25.0, 50.0, 100.0, 200.0])
    for sign, name in ((1, "λ"), (-1, "−λ")):
        slope = np.polyfit(np.log(large), np.log([turned(sign * value) for value in large]), 1)[0]
        found.append(
            Observation(f"turn of the tangent kernel of the tree against {name} = 25 … 200: slope in logarithms", float(slope), 1e-6, reference=REFERENCE)
        )  # fmt: skip
    setup = SetUp("demo", unequal=2.0)
    t = np.linspace(0.0, 12 / setup.slowest, 60)
    exact = setup.exact(t, "zero-balanced")
    coarse, fine = (
        float(np.abs(setup.squares(setup.flow(t, rtol).theta) - exact).max()) for rtol in (1e-9, 1e-11)
    )
    found.append(
        Observation("5-10-2, W_1 halved and W_2 doubled: the zero-balanced form is wrong by", fine, abs(fine - coarse), reference=REFERENCE)
    )  # fmt: skip
    found_distances = [distances(h, size) for h in widths(size)]
    for h, values in zip(widths(size), found_distances, strict=True):
        found.append(
            Observation(
                f"Gaussian starts, {h} hidden units: distance of the limit from the solution of least norm",
                float(np.mean(values[0])), float(np.abs(values[0] - values[1]).max()), f"mean of {len(values[0])} starts", IMBALANCE,
            )
        )  # fmt: skip
    means = np.array([values.mean(axis=1) for values in found_distances])
    slopes = np.polyfit(np.log(widths(size)), np.log(means), 1)[0]
    found.append(
        Observation(
            "Gaussian starts: that distance against the width, slope in logarithms", float(slopes[0]), float(abs(slopes[0] - slopes[1])),
            "the theorem's order is −½, for large widths; error: of the runs, not of the draw", IMBALANCE,
        )
    )  # fmt: skip
    setup = SetUp("square", signs=-1)
    least = float(setup.problem.target_svd[1][-1])
    for rtol in (1e-8, 1e-10, 1e-12):
        run = setup.flow(np.linspace(0.0, 60 / least, 1200), rtol)
        below = run.t[np.argmax(run.loss < 0.25 * least**2)] if run.loss[-1] < 0.25 * least**2 else np.nan
        found.append(
            Observation(
                f"sign obstruction: time at which rounding has taken the flow off the saddle, rtol = {rtol:g}",
                float(below), float(run.t[1]), "an artefact of arithmetic: the exact flow never leaves", REFERENCE,
            )
        )  # fmt: skip
    return found


# ---- figures -------------------------------------------------------------------------------------------------


def reproduce(out: Path, size: str, advance: Callable[[float, str], None]) -> Section:
    """Check the claims and draw the figures."""
    section = Section(
        "braun2022",
        "Exact learning dynamics of deep linear networks with prior knowledge; from lazy to rich",
        "L. Braun, C. Dominé, J. Fitzgerald, A. Saxe (2022); C. C. J. Dominé et al. (2024), arXiv 2409.14623.",
        "Two-layer linear networks on white inputs from starts that are not aligned with the target: the map, both "
        "representations and the tangent kernel along a closed form, for balanced layers and for W_2ᵀW_2 − W_1W_1ᵀ = λ I. "
        "The larger |λ|, the less the kernel turns: from rich to lazy. From every second balanced start of a square network the "
        "exact flow does not learn the target at all: a sign stands in the way, and the closed form of the paper is singular. "
        "From any start, white inputs or not, an imbalance of both layers bounds the loss by e^(−2ct) (arXiv 2105.06351).",
    )
    settle(section, claims(size), advance, 0.7, rtol=1e-10, store=out / "claims")
    advance(0.7, "observations")
    section.rows += [observation_row(one) for one in observations(size)]
    with plot.style():
        for i, plate in enumerate(
            (_overlay_plate, _lazy_plate, _representations_plate, _obstruction_plate, _imbalance_plate)
        ):
            advance(0.8 + 0.04 * i, "figures")
            section.plates.append(plate(out, size))
    advance(1.0, "done")
    return section


def _overlay(ax: Axes, t: Array, exact: Array, some: Array, measured: Array) -> None:
    """At most eight entries, spread over the matrix."""
    flat, dots = exact.reshape(len(t), -1), measured.reshape(len(some), -1)
    kept = np.unique(37 * np.arange(min(8, flat.shape[1])) % flat.shape[1])
    plot.curves(ax, t, flat[:, kept], linewidth=0.9)
    plot.curves(ax, some, dots[:, kept], **plot.MARKS)


def _overlay_plate(out: Path, size: str) -> Plate:
    fig, axes = plot.figure(2, 4, height=1.65)
    setups = (SetUp("demo"), SetUp("tree", 2.0, signs=1))
    for row, setup, name in zip(axes, setups, ("5-10-2, $\\lambda=0$", "tree, $\\lambda=2$"), strict=True):
        d, end = setup.problem.inputs, 8 / setup.slowest
        t, some = np.linspace(0, end, 200), np.linspace(0, end, 16)
        run = setup.flow(some, 1e-9)
        exact, measured = setup.exact(t), setup.squares(run.theta)
        row[0].semilogy(t, setup.loss(exact), color="black", linewidth=0.9)
        row[0].semilogy(some, setup.loss(measured), color="black", **plot.MARKS)
        row[0].set_ylabel(f"{name}\n$\\frac{{1}}{{2}}\\|W-M\\|^2$")
        row[0].set_ylim(bottom=1e-6)
        for ax, i, j in (
            (row[1], slice(d, None), slice(None, d)), (row[2], slice(None, d), slice(None, d)), (row[3], slice(d, None), slice(d, None)),
        ):  # fmt: skip
            _overlay(ax, t, exact[:, i, j], some, measured[:, i, j])
    for ax, title in zip(axes[0], ("loss", "map $W_2W_1$", "$W_1^\\top W_1$", "$W_2W_2^\\top$"), strict=True):
        ax.set_title(title)
    for ax in axes[1]:
        ax.set_xlabel("time $t$ (time constants)")
    fig.legend(handles=plot.kinds(), loc="outside upper right", ncols=2)
    return Plate(
        plot.save(fig, out / "overlay")[1],
        "Closed forms (lines) and exact flow at rtol 1e-9 (dots): loss, and up to eight entries of the end-to-end map and of both representations. "
        "Above: 5 white inputs, 10 hidden units, 2 outputs, zero-balanced. Below: the semantic tree of eight items with eight outputs, λ = 2. "
        "After the simulations of Braun et al. (2022) and of arXiv 2409.14623.",
    )


def _lazy_plate(out: Path, size: str) -> Plate:
    shown = (0.0, 1.0, 3.0, 10.0, 50.0)
    fig, (left, middle, right) = plot.figure(1, 3, height=2.0)
    for balance, color in zip(shown, plot.sequence(len(shown)), strict=True):
        setup = SetUp("tree", balance, signs=1)
        t = np.geomspace(1e-3, 10, 120)
        some = np.concatenate([[0.0], np.geomspace(1e-3, 10, 13)])
        run = setup.flow(some, 1e-9)
        exact, measured = setup.exact(np.append(0.0, t)), setup.squares(run.theta)
        for ax, lines, dots in (
            (left, setup.loss(exact), setup.loss(measured)),
            (middle, *(theory.exact.kernel_distance(setup.kernels(qq[:1]), setup.kernels(qq)) for qq in (exact, measured))),
        ):  # fmt: skip
            ax.loglog(t, lines[1:], color=color, linewidth=0.9, label=f"$\\lambda={balance:g}$")
            ax.loglog(some[1:], dots[1:], color=color, **plot.MARKS)
    left.set_ylim(1e-4, 100)
    left.set_ylabel("$\\frac{1}{2}\\|W-M\\|^2$")
    middle.set_ylim(1e-9, 1)
    for ax, title in zip(
        (left, middle, right), ("loss", "turn of the kernel", "turn of the kernel, at the end"), strict=True
    ):
        ax.set_title(title)
    middle.set_ylabel("1 − cosine")
    balances = np.concatenate([-np.geomspace(100, 0.01, 41), [0.0], np.geomspace(0.01, 100, 41)])
    right.plot(balances, [turned(value) for value in balances], color="black", linewidth=0.9)
    for value in (-50.0, -10.0, -3.0, -1.0, 0.0, 1.0, 3.0, 10.0, 50.0):
        setup = SetUp("tree", value, signs=1)
        ends = setup.squares(setup.flow([0.0, 12 / setup.slowest], 1e-9).theta)
        right.plot(value, theory.exact.kernel_distance(*setup.kernels(ends)), color="black", **plot.MARKS)
    right.set_xscale("symlog", linthresh=1.0)
    right.set_yscale("log")
    right.set_xticks([-100, -10, 0, 10, 100], ["−100", "−10", "0", "10", "100"])
    right.set_xlabel("imbalance $\\lambda$ (weight²)")
    right.set_ylabel("1 − cosine")
    for ax in (left, middle):
        ax.set_xlabel("time $t$ (time constants)")
    handles, _ = left.get_legend_handles_labels()
    fig.legend(handles=[*handles, *plot.kinds()], loc="outside upper right", ncols=7)
    return Plate(
        plot.save(fig, out / "lazy")[1],
        "From rich to lazy on the semantic tree (8-8-8). Left: loss. Middle: how far the neural tangent kernel has turned from the start, 1 − cosine (dimensionless). "
        "Right: the same when everything is learned, against λ (linear between ±1). Lines: closed form; dots: exact flow at rtol 1e-9. "
        "After arXiv 2409.14623.",
    )


def _representations_plate(out: Path, size: str) -> Plate:
    shown = (-10.0, 0.0, 10.0)
    fig, axes = plot.figure(2, 4, height=1.5)
    image: Any = None
    for j, balance in enumerate(shown):
        setup = SetUp("tree", balance, signs=1)
        end = setup.squares(setup.flow([0.0, 12 / setup.slowest], 1e-9).end)
        for i, block in enumerate((end[:8, :8], end[8:, 8:])):
            image = axes[i, j].imshow(block / np.abs(block).max(), vmin=-1, vmax=1, cmap="PuOr_r")
            axes[i, j].set_title(f"$\\lambda={balance:g}$" if i == 0 else "")
    setup = SetUp("tree")
    gram = setup.problem.target @ setup.problem.target.T
    axes[0, 3].imshow(gram / gram.max(), vmin=-1, vmax=1, cmap="PuOr_r")
    axes[0, 3].set_title("$M^\\top M$")
    axes[1, 3].axis("off")
    for ax in axes.ravel():
        ax.set_xticks([])
        ax.set_yticks([])
    for ax, label in zip(axes[:, 0], ("items\n$W_1^\\top W_1$", "outputs\n$W_2W_2^\\top$"), strict=True):
        ax.set_ylabel(label)
    bar = fig.colorbar(image, ax=axes[1, 3], location="left", fraction=0.5, ticks=[-1, 0, 1])
    bar.set_label("entry / largest")
    return Plate(
        plot.save(fig, out / "representations")[1],
        "Representations of the semantic tree at the end of the exact flow, each over its largest entry (dimensionless): of the items in the hidden layer, W_1ᵀW_1, "
        "and of the outputs, W_2W_2ᵀ. λ = 0: both have the tree. λ > 0: the items have it more sharply and the outputs are almost white; λ < 0: the other way "
        "round. Beside it the items' similarity in the data. After arXiv 2409.14623.",
    )


def _obstruction_plate(out: Path, size: str) -> Plate:
    setup = SetUp("square", signs=-1)
    least = float(setup.problem.target_svd[1][-1])
    t = np.linspace(0, 60 / least, 400)
    fig, (left, right) = plot.figure(1, 2, height=2.1)
    tolerances = (1e-8, 1e-10, 1e-12)
    for rtol, color in zip(tolerances, plot.sequence(3), strict=True):
        loss = setup.flow(t, rtol).loss
        left.semilogy(t, loss, color=color, label=f"flow, rtol $10^{{{round(np.log10(rtol))}}}$")
    other = SetUp("square", signs=1)
    left.semilogy(
        t,
        np.maximum(other.loss(other.exact(t)), 1e-40),
        color="C2",
        linewidth=0.9,
        label="equal signs, closed form",
    )
    early = t < 12 / least
    left.semilogy(
        t[early], setup.loss(setup.exact(t[early])), color="C1", linewidth=2.5, alpha=0.5, label="closed form"
    )
    left.axhline(0.5 * least**2, color="0.5", linestyle=(0, (3, 2)), linewidth=0.7, zorder=0)
    left.annotate(
        "$s_{\\min}^2/2$",
        (0.98, 0.5 * least**2),
        (0, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        fontsize=7,
    )
    left.set_ylim(1e-8, 10)
    left.set_xlabel("time $t$ (time constants)")
    left.set_ylabel("$\\frac{1}{2}\\|W-M\\|^2$")
    left.legend(loc="lower left", bbox_to_anchor=(0.15, 0.0), fontsize=6)
    found = draws(300 if size == "quick" else 2000)
    for opposite, color, name in ((False, "C2", "equal signs"), (True, "C1", "opposite signs")):
        values = np.sort(np.maximum(found.determinant[found.opposite == opposite], 1e-18))
        right.loglog(
            values,
            np.arange(1, len(values) + 1) / len(found.opposite),
            color=color,
            label=f"{name}: {len(values)} of {len(found.opposite)}",
        )
    right.set_xlabel("$|\\det B|$ (dimensionless)")
    right.set_ylabel("share of starts up to there")
    right.legend(loc="center", fontsize=6)
    return Plate(
        plot.save(fig, out / "obstruction")[1],
        "A sign that stands in the way. Left: loss of a zero-balanced 3-3-3 network with det W(0) det M < 0: the closed form tends to the saddle, dashed; "
        "computed flows are taken off it by rounding in the end. Right: |det B| of random targets and zero-balanced starts, cumulated: B is singular "
        "exactly where the signs are opposite, on one start of two. Own derivation on arXiv 2409.14623.",
    )


def _imbalance_plate(out: Path, size: str) -> Plate:
    fig, (left, right) = plot.figure(1, 2, height=2.1)
    for level, color in zip(LEVELS, plot.sequence(len(LEVELS)), strict=True):
        setup = Wide(level=level)
        t = np.linspace(0.0, 4.0, 200)
        loss = setup.losses(setup.flow(t, 1e-9).theta)
        left.semilogy(t, loss, color=color, label=f"{level:g}: $c={setup.rate:.2g}$")
        left.semilogy(
            t, loss[0] * np.exp(-2 * setup.rate * t), color=color, linestyle=(0, (3, 2)), linewidth=0.8
        )
    left.set_ylim(bottom=1e-10)
    left.set_xlabel("time $t$ (1 / data²)")
    left.set_ylabel("$\\frac{1}{2}\\|XW^\\top-Y\\|^2$")
    handles, _ = left.get_legend_handles_labels()
    handles.append(Line2D([], [], color="0.4", linestyle=(0, (3, 2)), linewidth=0.8, label="$e^{-2ct}$"))
    left.legend(handles=handles, loc="lower left", fontsize=6, title="level", title_fontsize=6)
    found = [distances(h, size)[0] for h in widths(size)]
    for h, values in zip(widths(size), found, strict=True):
        right.loglog(np.full(len(values), h), values, color="0.5", **plot.MARKS)
    means = np.array([values.mean() for values in found])
    right.loglog(widths(size), means, color="black", label="mean")
    guide = means[-1] * (np.array(widths(size)) / widths(size)[-1]) ** -0.5
    right.loglog(widths(size), guide, color="C1", linestyle=":", label="$h^{-1/2}$")
    right.set_xticks(widths(size), [str(h) for h in widths(size)])
    right.set_yticks([0.1, 0.2, 0.5, 1.0], ["0.1", "0.2", "0.5", "1"])
    for axis in (right.xaxis, right.yaxis):
        axis.set_minor_locator(NullLocator())
    right.set_xlabel("hidden units $h$")
    right.set_ylabel("$\\|W-X^+Y\\|_F$ (dimensionless)")
    right.legend(loc="lower left", fontsize=6)
    return Plate(
        plot.save(fig, out / "imbalance")[1],
        "What imbalance does from any start; five samples of eight inputs and two outputs. Left: loss of 20 hidden units from entries N(0, 1/h), W_1 divided and "
        "W_2 multiplied by the level; dashed: the bound L(0) e^(−2ct), c from the imbalance of the start and the least singular value of the inputs. "
        f"Right: distance of the limit from the solution of least norm, {len(found[0])} starts at level 1 (dots); dotted: the order h^(−1/2) of the theorem. After arXiv 2105.06351.",
    )
