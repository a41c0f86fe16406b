"""B. Woodworth, S. Gunasekar, J. D. Lee, E. Moroshko, P. Savarese, I. Golan, D. Soudry, N. Srebro:
Kernel and rich regimes in overparametrized models (2020), arXiv 2002.09277.

β = w₊^D − w₋^D, all weights α at the start; the paper's loss is half a sum of squares: factor ½.  Its sparse
regression: Gaussian inputs, a teacher of s equal entries 1/√s, label noise of variance 0.01.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from gflow import plot
from gflow.claims import Claim, Conclusion, Evidence, Observation
from gflow.integrate import flow
from gflow.models.diagonal import Diagonal
from gflow.papers import settle, unbroken
from gflow.papers.sparse import SparseRegression
from gflow.problem import Problem
from gflow.report import Plate, Section, observation_row
from gflow.theory import Hypothesis, bias
from gflow.theory.argmin import row_space
from gflow.theory.diagonal import mirror
from gflow.trajectory import Trajectory

Array = NDArray[np.float64]

REFERENCE = "arXiv 2002.09277"
FACTOR = 0.5
ACCURACY = 1e-6
#: ε of the regimes' bounds.
EXCESS = 0.3
#: ‖Xβ − y‖ / ‖y‖ of a flow that has come to its limit.
REACHED = 1e-9
#: Part of the largest speed at which it is there, above depth 2.
REST = 1e-11
#: Scales α^D of the figure, and the least at which the flow is run too; depths.
SCALES = (1e-10, 1e1)
DEPTHS = (2, 3, 5, 10)


@dataclass(frozen=True)
class SetUp:
    """The network of some depth on one sparse regression."""

    data: SparseRegression
    depth: int
    alpha: float
    weight_decay: float = 0.0
    tilt: float = 0.0  # w₊ = (1 + tilt) α, w₋ = α / (1 + tilt)

    @cached_property
    def problem(self) -> Problem:
        return replace(self.data.problem, weight_decay=self.weight_decay)

    @cached_property
    def model(self) -> Diagonal:
        return Diagonal(self.data.inputs, self.depth)

    @cached_property
    def theta0(self) -> Array:
        plus, minus = self.model.unpack(self.model.init("balanced", self.alpha))
        return self.model.pack([(1 + self.tilt) * plus, minus / (1 + self.tilt)])

    @cached_property
    def equal_start(self) -> SetUp:
        """What the theory is given: the start of the paper, without weight decay."""
        return replace(self, weight_decay=0.0, tilt=0.0)

    @cached_property
    def hypotheses(self) -> tuple[Hypothesis, ...]:
        """Those that are known before anything runs."""
        plus, minus = self.model.unpack(self.theta0)
        return (
            Hypothesis("no weight decay", self.weight_decay, tolerance=0.0),
            Hypothesis("w₊ = w₋ at the start", float(np.abs(plus - minus).max() / plus.max())),
        )

    @property
    def end(self) -> float:
        """A time by which everything is learned, at depth above 2: long after the escape, at α^(2 − D)."""
        if self.weight_decay:  # in a minimum by then, whose valley would be crept along for ever
            return 2.0 / self.weight_decay
        return 1e4 * max(1.0, self.alpha ** (2 - self.depth))

    def to_the_limit(self, rtol: float) -> tuple[Trajectory, Array, Hypothesis]:
        """The flow, where it ends, and whether that interpolates."""
        if self.depth == 2 and not self.weight_decay:
            run = unbroken(flow(self.model, self.problem, self.theta0, np.inf, rtol=rtol, coords="log"))
        else:
            run = unbroken(flow(self.model, self.problem, self.theta0, self.end, rtol=rtol, rest=REST))
        beta = self.model.predictor(run.end)
        return run, beta, Hypothesis(
            "the flow has come to an interpolator (defect: ‖Xβ − y‖ / ‖y‖)", self.data.misfit(beta), tolerance=max(REACHED, rtol)
        )  # fmt: skip


@cache
def predicted_limit(setup: SetUp) -> Array:
    """argmin Q, to which the flow from the equal start tends."""
    return bias.limit(setup.model, setup.problem, setup.theta0).predict([np.inf])[0, 0]


def mirror_flow(setup: SetUp, times: Array) -> Array:
    """β (T, d) of the closed form: β = α^D h_D(D (D − 2) α^(D − 2) Xᵀν), or 2 α² sinh(4 Xᵀν), with the n
    coordinates of Xᵀν = −∫∇L integrated by scipy, at a tolerance of its own.
    """
    problem = setup.problem
    x, y = problem.X, problem.Y[:, 0]
    m = mirror(setup.model, setup.theta0)

    def field(t: float, nu: Array) -> Array:
        return -2 * FACTOR * (x @ m.beta(x.T @ nu) - y)

    run = solve_ivp(field, (0.0, times[-1]), np.zeros(len(x)), "DOP853", t_eval=times, rtol=1e-12, atol=1e-15)
    return m.beta(run.y.T @ x)


def follows(setup: SetUp, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure how far β(t) is from the closed form of the equal start."""
    hypotheses = setup.hypotheses if respect_hypotheses else ()
    if not all(h.holds for h in hypotheses):
        return Evidence(hypotheses)
    times = learning_times(setup)
    wanted = mirror_flow(setup.equal_start, times)
    run = unbroken(flow(setup.model, setup.problem, setup.theta0, times, rtol=rtol))
    error = np.abs(setup.model.predictor(run.theta) - wanted).max(axis=1) / np.abs(wanted).max(axis=1)
    conclusion = Conclusion("β(t), largest difference from the closed form over the largest entry",
                            float(error.max()), ACCURACY)  # fmt: skip
    return Evidence(hypotheses, (conclusion,), (run.status,))


def learning_times(setup: SetUp, count: int = 60) -> Array:
    """Times (T,) in which most of β is learned: some multiples of the first coordinate's escape."""
    pull = 2 * FACTOR * float(np.abs(setup.problem.X.T @ setup.problem.Y).max())
    d, a = setup.depth, setup.alpha
    escape = np.log(1 + 1 / a**2) / 4 if d == 2 else a ** (2 - d) / (d * (d - 2))
    return np.linspace(0.0, 6.0 * escape / pull, count + 1)[1:]


def least_potential(setup: SetUp, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure how far the flow's limit is from argmin Q."""
    hypotheses = setup.hypotheses if respect_hypotheses else ()
    if not all(h.holds for h in hypotheses):
        return Evidence(hypotheses)
    run, beta, reached = setup.to_the_limit(rtol)
    if respect_hypotheses:
        hypotheses += (reached,)
    wanted = predicted_limit(setup.equal_start)
    dual = mirror(setup.model, setup.theta0).eta(beta)
    rows = row_space(setup.problem.X, setup.problem.Y[:, 0])[0]
    conclusions = (
        Conclusion("limit, largest difference from argmin Q over the largest entry",
                   float(np.abs(beta - wanted).max() / np.abs(wanted).max()), ACCURACY),
        Conclusion("gradient of Q at the limit, off the row space of X, relative",
                   float(np.linalg.norm(dual - rows.T @ (rows @ dual)) / np.linalg.norm(dual)), ACCURACY),
    )  # fmt: skip
    return Evidence(hypotheses, conclusions, (run.status,))


def rich(setup: SetUp, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure the limit's excess ℓ1 norm, at an α for which it is bounded."""
    least = setup.data.least_l1
    enough = bias.rich_alpha(least.norm, setup.data.inputs, EXCESS, setup.depth)
    small = Hypothesis("log(α / α(ε)) ≤ 0 for our α(ε)", max(0.0, float(np.log(setup.alpha / enough))))
    if respect_hypotheses and not small.holds:
        return Evidence((small,))
    run, beta, reached = setup.to_the_limit(rtol)
    excess = float(np.abs(beta).sum() / least.norm - 1)
    conclusions = [Conclusion("excess of the ℓ1 norm over the least, relative", excess, EXCESS)]
    if respect_hypotheses:
        bound = bias.excess_l1(setup.model, setup.problem, setup.theta0).excess
        conclusions.append(Conclusion("the same, against the bound of arXiv 2112.11027", excess, bound))
    return Evidence((small, reached) if respect_hypotheses else (), tuple(conclusions), (run.status,))


def kernel(setup: SetUp, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure the limit's excess squared ℓ2 norm, at an α for which it is bounded."""
    least = setup.data.least_l2
    enough = bias.kernel_alpha(least.norm, EXCESS, setup.depth)
    large = Hypothesis("log(α(ε) / α) ≤ 0 for our α(ε)", max(0.0, float(np.log(enough / setup.alpha))))
    if respect_hypotheses and not large.holds:
        return Evidence((large,))
    run, beta, reached = setup.to_the_limit(rtol)
    excess = float(beta @ beta) / least.norm**2 - 1
    return Evidence(
        (large, reached) if respect_hypotheses else (),
        (Conclusion("excess of the squared ℓ2 norm over the least, relative", excess, EXCESS),),
        (run.status,),
    )


def data(size: str) -> SparseRegression:
    """The paper's regression, or a small one like it."""
    if size == "quick":
        return SparseRegression(20, 60, 3, noise=0.1, factor=FACTOR)
    return SparseRegression(100, 1000, 5, noise=0.1, factor=FACTOR)


def claims(size: str) -> list[tuple[Claim, str]]:
    """Claims, each with the verdict that it must get."""
    sparse = data(size)
    l1, l2 = sparse.least_l1.norm, sparse.least_l2.norm

    def at(depth: int, alpha: float, **more: float) -> SetUp:
        return SetUp(sparse, depth, alpha, **more)

    closed = "β(t) is a fixed function of the integral of the gradient: 2 α² sinh(−4 ∫∇L), or α^D h_D."
    limit = "The flow's limit is the interpolator with the least Q_α^D."
    sparsest = "Below an α, exponentially small at depth 2 and a power at depth 3, the limit's ℓ1 norm is nearly least."
    smallest = "Above an α the limit's ℓ2 norm is nearly least."
    theorem = f"{REFERENCE}, theorem 1"
    regimes = f"{REFERENCE}, theorem 2, with constants of our own"
    listed: list[tuple[str, str, str, Callable[..., Evidence], SetUp, bool, str]] = [
        (f"closed form, depth {d}, α = {a:g}", closed, REFERENCE, follows, at(d, a), True, "holds")
        for d, a in ((2, 1e-3), (3, 0.1))
    ]
    pairs: tuple[tuple[int, float], ...] = ((2, 1.0), (2, 1e-3), (2, 1e-12), (3, 0.1), (5, 0.3))
    for d, a in pairs if size == "quick" else (*pairs, (10, 0.5)):
        listed.append(
            (f"limit, depth {d}, α = {a:g}", limit, theorem, least_potential, at(d, a), True, "holds")
        )
    for d in (2, 3):
        a = bias.rich_alpha(l1, sparse.inputs, EXCESS, d)
        listed.append(
            (f"rich regime, depth {d}, α = {a:.2g}", sparsest, regimes, rich, at(d, a), True, "holds")
        )
    for d in (2, 3):
        a = bias.kernel_alpha(l2, EXCESS, d)
        listed.append(
            (f"kernel regime, depth {d}, α = {a:.2g}", smallest, regimes, kernel, at(d, a), True, "holds")
        )
    for name, statement, source, run, setup in (
        ("control: unequal start", closed, REFERENCE, follows, at(2, 1e-3, tilt=0.5)),
        ("control: weight decay", limit, theorem, least_potential, at(2, 0.1, weight_decay=0.01)),
        ("control: large start", sparsest, regimes, rich, at(2, 1.0)),
        ("control: small start", smallest, regimes, kernel, at(2, 1e-3)),
    ):
        listed.append((name, statement, source, run, setup, True, "inapplicable"))
        listed.append((f"{name}, hypotheses ignored", statement, source, run, setup, False, "violated"))
    return [
        (Claim(name, statement, source, partial(run, setup, respect_hypotheses=respect)), expected)
        for name, statement, source, run, setup, respect, expected in listed
    ]


def reproduce(out: Path, size: str, advance: Callable[[float, str], None]) -> Section:
    """Check the claims and draw the figures."""
    sparse = data(size)
    section = Section(
        "woodworth2020",
        "Kernel and rich regimes in overparametrized models",
        "B. Woodworth, S. Gunasekar, J. D. Lee, E. Moroshko, P. Savarese, I. Golan, D. Soudry, N. Srebro (2020), "
        "arXiv 2002.09277.",
        f"Sparse regression, {sparse.samples} samples in {sparse.inputs} dimensions, {sparse.support} equal entries, "
        "label noise of variance 0.01, by diagonal networks w₊^D − w₋^D from w₊ = w₋ = α. The flow ends in the "
        "interpolator with the least Q_α^D: near the one of least ℓ2 norm for large α, near that of least ℓ1 norm for "
        "small α, which at depth 2 has to be exponentially small and at greater depth only a power.",
    )
    settle(section, claims(size), advance, 0.5, rtol=1e-10)
    grid = regimes_grid(sparse, size, advance)
    section.rows += [observation_row(o) for o in observations(sparse, grid)]
    advance(0.95, "figures")
    with plot.style():
        section.plates += [_regimes_plate(out, sparse, grid), _path_plate(out, sparse)]
    advance(1.0, "done")
    return section


@dataclass(frozen=True, eq=False)
class Grid:
    """Excesses against the scale α^D for one depth: of argmin Q, and of the flow where it was run."""

    depth: int
    scales: Array
    l1: Array  # ‖β‖₁ / least − 1
    test: Array  # ‖β − β*‖²
    run_scales: Array
    run_l1: Array
    run_test: Array
    apart: float  # largest difference of flow and argmin Q, over the largest entry


def regimes_grid(sparse: SparseRegression, size: str, advance: Callable[[float, str], None]) -> list[Grid]:
    """The limits against α at all depths."""
    count = 23 if size == "quick" else 12
    scales = np.geomspace(*SCALES, count)
    grids = []
    for i, depth in enumerate(DEPTHS):
        advance(0.5 + 0.45 * i / len(DEPTHS), f"depth {depth}")
        setups = [SetUp(sparse, depth, float(s ** (1 / depth))) for s in scales]
        limits = np.array([predicted_limit(s) for s in setups])
        some = [k for k in range(0, count, 2) if depth == 2 or scales[k] >= 1e-6]
        ends = np.array([setups[k].to_the_limit(1e-10)[1] for k in some])
        gaps = np.abs(ends - limits[some]).max(axis=1) / np.abs(limits[some]).max(axis=1)
        grids.append(
            Grid(
                depth, scales, sparse.excess_l1(limits), sparse.test_error(limits),
                scales[some], sparse.excess_l1(ends), sparse.test_error(ends), float(gaps.max()),
            )
        )  # fmt: skip
    return grids


def observations(sparse: SparseRegression, grid: list[Grid]) -> list[Observation]:
    """Numbers that no theorem here speaks of."""
    listed = []
    for g in grid:
        best = int(np.argmin(g.test))
        listed.append(
            Observation(
                f"depth {g.depth}: least excess test error over α", float(g.test[best]), 2e-12 * sparse.inputs,
                f"at α^D = {g.scales[best]:.1g}; least ℓ1 norm: {sparse.test_error(sparse.least_l1.beta):.3g}, "
                f"least ℓ2 norm: {sparse.test_error(sparse.least_l2.beta):.3g}", REFERENCE,
            )
        )  # fmt: skip
        below = np.flatnonzero(g.l1 <= EXCESS)
        if below.size:
            own = bias.rich_alpha(sparse.least_l1.norm, sparse.inputs, EXCESS, g.depth)
            listed.append(
                Observation(
                    f"depth {g.depth}: largest α of the grid with excess ℓ1 norm below {EXCESS:g}",
                    float(g.scales[below[-1]] ** (1 / g.depth)), 0.0, f"our bound asks for {own:.2g}", REFERENCE,
                )
            )  # fmt: skip
        listed.append(
            Observation(
                f"depth {g.depth}: limits of flow and argmin Q, largest difference over the grid",
                g.apart,
                1e-9,
            )
        )
    return listed


def _regimes_plate(out: Path, sparse: SparseRegression, grid: list[Grid]) -> Plate:
    fig, (left, right) = plot.figure(1, 2)
    for i, g in enumerate(grid):
        color = f"C{i}"
        left.loglog(g.scales, g.l1, color=color)
        left.loglog(g.run_scales, g.run_l1, color=color, **plot.MARKS)
        right.loglog(g.scales, g.test, color=color)
        right.loglog(g.run_scales, g.run_test, color=color, **plot.MARKS)
    for name, least, style in (
        ("least $\\ell_1$", sparse.least_l1, ":"),
        ("least $\\ell_2$", sparse.least_l2, "--"),
    ):
        right.axhline(sparse.test_error(least.beta), color="0.5", linestyle=style, linewidth=0.8)
        above = name == "least $\\ell_2$"
        right.annotate(
            name, (0.01, sparse.test_error(least.beta)), (0, 2 if above else -2),
            xycoords=("axes fraction", "data"), textcoords="offset points",
            va="bottom" if above else "top", fontsize=6, color="0.4",
        )  # fmt: skip
    left.axhline(sparse.excess_l1(sparse.least_l2.beta), color="0.5", linestyle="--", linewidth=0.8)
    left.set_ylim(bottom=1e-7)
    left.set_title("excess $\\ell_1$ norm")
    left.set_ylabel("$\\|\\beta\\|_1$ / least − 1")
    right.set_title("excess test error")
    right.set_ylabel("$\\|\\beta - \\beta^*\\|_2^2$")
    right.set_ylim(bottom=0.5 * min(float(g.test.min()) for g in grid))
    right.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    right.yaxis.set_minor_formatter(NullFormatter())
    for ax in (left, right):
        ax.set_xlabel("scale of the start, $\\alpha^D$")
    handles = [Line2D([], [], color=f"C{i}", label=f"depth {g.depth}") for i, g in enumerate(grid)]
    kinds = [
        Line2D([], [], color="0.4", label="argmin $Q$"),
        Line2D([], [], color="0.4", label="exact flow", **plot.MARKS),
    ]
    fig.legend(handles=handles + kinds, loc="outside upper right", ncols=6)
    return Plate(
        plot.save(fig, out / "regimes")[1],
        f"Where the flow of w₊^D − w₋^D ends, against the scale α^D of its start: {sparse.samples} samples, "
        f"{sparse.inputs} dimensions, {sparse.support} entries in the teacher. Lines: argmin Q; dots: the flow to its "
        "limit. Left: ℓ1 norm in excess of the least (dashed: interpolator of least ℓ2 norm). Right: test error in excess of the noise, "
        "for inputs of variance 1 and labels in units of ‖β*‖₂. After figures 2 and 3 of arXiv 2002.09277.",
    )


def _path_plate(out: Path, sparse: SparseRegression) -> Plate:
    fig, axes = plot.figure(1, 2)
    for (depth, alpha), ax in zip(((2, 1e-3), (3, 0.1)), axes, strict=True):
        setup = SetUp(sparse, depth, alpha)
        times = learning_times(setup, 240)
        closed = mirror_flow(setup, times)
        shown = np.argsort(-np.abs(closed[-1]), kind="stable")[: 3 * sparse.support]
        run = flow(setup.model, setup.problem, setup.theta0, times, rtol=1e-9)
        beta = setup.model.predictor(run.theta)
        for i in shown[::-1]:
            color = "C0" if i < sparse.support else "0.6"
            ax.plot(times, closed[:, i], color=color, linewidth=1.0)
            ax.plot(times[5::12], beta[5::12, i], color=color, **plot.MARKS)
        ax.set_title(f"depth {depth}, α = {alpha:g}")
        ax.set_xlabel("time $t$")
        ax.set_ylabel("coordinate $\\beta_i$" if ax is axes[0] else "")
    handles = [
        Line2D([], [], color="C0", label="in the teacher's support"),
        Line2D([], [], color="0.6", label="not in it"),
        *plot.kinds(),
    ]
    fig.legend(handles=handles, loc="outside upper right", ncols=4)
    return Plate(
        plot.save(fig, out / "path")[1],
        f"The {3 * sparse.support} largest coordinates of β along the flow (dots, rtol 1e-9) and as the closed form has "
        "them of the integrated gradient, itself from the mirror flow (lines). Time in units in which dw/dt = −∇L, "
        "L = ½ ‖Xβ − y‖². Theory: arXiv 2002.09277.",
    )
