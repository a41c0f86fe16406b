"""M. Even, S. Pesme, S. Gunasekar, N. Flammarion: (S)GD over diagonal linear networks: implicit bias,
large stepsizes and edge of stability (2023), arXiv 2302.08982.

β = u ∘ v from u = √2 α, v = 0, and L = 1/(2n) ‖Xβ − y‖², batches B with 1/(2|B|): factor 1/(2n).  Noiseless sparse
regression with Gaussian inputs.  With x_k = γ ∇_β L_B(β_k) the law of one step is u ± v ← (1 ∓ x_k) (u ± v).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from gflow import observe, plot
from gflow.claims import Claim, Conclusion, Evidence, Observation
from gflow.ensembles import ensemble
from gflow.iterate import batches, descend
from gflow.models.diagonal import Diagonal
from gflow.papers import settle, unbroken
from gflow.papers.sparse import SparseRegression
from gflow.report import Plate, Section, observation_row
from gflow.theory import Hypothesis, bias, effective
from gflow.theory.argmin import row_space
from gflow.trajectory import Status, Trajectory

Array = NDArray[np.float64]

REFERENCE = "arXiv 2302.08982"
ACCURACY = 1e-7
ALPHA = 0.1
#: x² up to which x² ≤ q(x) ≤ 2 x².
GENTLE = 0.79
#: Of the last steps, relative to the largest, where descent has converged.
CONVERGED = 1e-9
#: ‖Xβ − y‖ / ‖y‖ of runs that count as converged in figures.
FITTED = 1e-3


def regression(
    samples: int, inputs: int, support: int, entry: float = 1.0, signs: bool = False
) -> SparseRegression:
    """Noiseless regression with a teacher of entries ± ``entry``."""
    size = entry * float(np.sqrt(support))
    return SparseRegression(samples, inputs, support, size, factor=0.5 / samples, signs=signs)


#: Of the paper's first figure; of its figure of the gain's shape; of that of the edge of stability.
FIRST = regression(20, 30, 3)
SHAPE = regression(50, 100, 4, 100.0, signs=True)
EDGE = regression(50, 100, 2, 100.0, signs=True)


def network(data: SparseRegression) -> tuple[Diagonal, Array]:
    """The network and its start."""
    model = Diagonal(data.inputs, form="product")
    return model, model.init("balanced", ALPHA)


@dataclass(frozen=True)
class SetUp:
    """One descent: on the whole loss (``batch_size`` None) or on batches drawn with replacement."""

    data: SparseRegression
    step_size: float
    n_steps: int
    batch_size: int | None = None
    seed: int = 0
    optimizer: str = "gd"

    @property
    def options(self) -> dict[str, Any]:
        """Of the descent."""
        if self.batch_size is None:
            return {}
        return {"batch_size": self.batch_size, "replacement": True}


@dataclass(frozen=True, eq=False)
class Descent:
    """A descent, with the gradients by β of its batches."""

    setup: SetUp
    run: Trajectory
    gradients: Array  # (K, d)

    @cached_property
    def later(self) -> Array:
        """Largest entry (K,) of the gradients of a step and all later ones, relative to the largest of all."""
        size = np.abs(self.gradients).max(axis=1)
        return np.maximum.accumulate(size[::-1])[::-1] / size.max()

    def steps(self, rtol: float) -> int:
        """Steps after which all gradients are below ``rtol`` of the largest, or all steps there are."""
        below = np.flatnonzero(self.later <= rtol)
        return int(below[0]) if below.size else len(self.later)


@lru_cache(maxsize=2)
def made(setup: SetUp) -> Descent:
    """Run the descent, and recover what its steps took."""
    model, theta0 = network(setup.data)
    rng = None if setup.batch_size is None else setup.seed
    run = descend(
        model, setup.data.problem, theta0, setup.step_size, setup.n_steps, optimizer=setup.optimizer, rng=rng,
        **setup.options,
    )  # fmt: skip
    return Descent(setup, unbroken(run), gradients(setup.data, run))


def gradients(data: SparseRegression, run: Trajectory) -> Array:
    """∇_β (K, d) of the batch's loss at each of K steps, all of whose states were saved."""
    x, y = data.problem.X, data.problem.Y[:, 0]
    beta = run.spec["model"].predictor(run.theta[: run.counts["steps"]])
    if run.spec["batch_size"] is None:
        return (beta @ x.T - y) @ x / len(x)
    rows, out = batches(run), np.zeros_like(beta)
    for column in rows.T:
        out += ((np.einsum("kd,kd->k", beta, x[column]) - y[column]) / rows.shape[1])[:, None] * x[column]
    return out


def law(setup: SetUp, rtol: float, gainless: bool = False, respect_hypotheses: bool = True) -> Evidence:
    """Measure how far the end of a descent is from the theorem's projection, and its products from their law.

    The tolerance is that to which the descent has converged.  ``gainless`` takes the flow's limit instead.
    """
    descent = made(setup)
    count = descent.steps(rtol)
    model, theta0 = network(setup.data)
    x, y = setup.data.problem.X, setup.data.problem.Y[:, 0]
    taken = setup.step_size * descent.gradients[:count]
    gain = effective.q(taken).sum(axis=0)
    last = descent.later[min(count, len(descent.later) - 1)]
    hypotheses = [
        Hypothesis("plain steps, without momentum", float(setup.optimizer != "gd"), tolerance=0.0),
        Hypothesis("descent has converged (defect: last gradients, relative)", float(last), tolerance=max(CONVERGED, rtol)),
    ]  # fmt: skip
    if gainless:
        hypotheses.append(Hypothesis("no gain (defect: its largest entry)", float(gain.max())))
    if respect_hypotheses and not all(h.holds for h in hypotheses):
        return Evidence(tuple(hypotheses))
    state = descent.run.theta[count]
    u, v = model.unpack(state)
    beta = u * v
    problem = setup.data.problem
    if gainless:
        wanted = bias.limit(model, problem, theta0).predict([np.inf])[0, 0]
    else:
        wanted = effective.descent_limit(
            model, problem, theta0, descent.gradients[:count], setup.step_size, force=True
        ).predict([np.inf])[0, 0]
    scale = float(np.abs(wanted).max())
    conclusions = [
        Conclusion("end, largest difference from the predicted one over its largest entry",
                   float(np.abs(beta - wanted).max() / scale), ACCURACY),
    ]  # fmt: skip
    if not gainless:
        product = 2 * ALPHA**2 * np.prod(1 - taken**2, axis=0)
        dual = effective.descent_start(model, theta0, descent.gradients[:count], setup.step_size).eta(beta)
        rows = row_space(x, y)[0]
        off = np.linalg.norm(dual - rows.T @ (rows @ dual)) / np.linalg.norm(dual)
        conclusions += [
            Conclusion("u² − v² = 2 α² Π (1 − x²), difference over the larger square",
                       float(np.max(np.abs(u**2 - v**2 - product) / np.maximum(u**2, v**2))), 1e-9,
                       amplification=float(count)),  # every step rounds
            Conclusion("gradient of the divergence at the end, off the row space of X, relative", float(off), ACCURACY,
                       amplification=float(count)),
        ]  # fmt: skip
    return Evidence(
        tuple(hypotheses) if respect_hypotheses else (), tuple(conclusions), (_status(descent.run),)
    )


def _status(run: Trajectory) -> Status:
    """How the descent ended, without the flow's question of where rounding leads it, which is answered by the law."""
    return run.outcome


def bounds(setup: SetUp, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure ‖Gain‖₁ against the sum of the losses along the descent.

    Own constants: x² ≤ q(x) ≤ 2 x² for x² ≤ 0.79, and ‖∇L_B‖² is between 2 λ L_B and 2 Λ L_B, where λ and Λ are the
    extreme eigenvalues of X_B X_Bᵀ / |B| over the batches.
    """
    descent = made(setup)
    count = descent.steps(rtol)
    x = setup.data.problem.X
    squares = (setup.step_size * descent.gradients[:count]) ** 2
    hypothesis = Hypothesis(
        "steps below 0.79 (defect: what the largest x² is above it)", max(0.0, squares.max() - GENTLE)
    )
    if respect_hypotheses and not hypothesis.holds:
        return Evidence((hypothesis,))
    gain = float(effective.q(np.sqrt(squares)).sum())
    low, high, losses = _batch_losses(setup, descent.run, x, count)
    total = setup.step_size**2 * losses
    conclusions = (
        Conclusion("‖Gain‖₁ over 4 Λ γ² Σ L, at most", gain / (4 * high * total), 1.0),
        Conclusion("2 λ γ² Σ L over ‖Gain‖₁, at most", 2 * low * total / gain, 1.0),
    )
    return Evidence((hypothesis,) if respect_hypotheses else (), conclusions, (_status(descent.run),))


def _batch_losses(setup: SetUp, run: Trajectory, x: Array, count: int) -> tuple[float, float, float]:
    """Extreme eigenvalues over batches, and the sum of the batches' losses, for the whole loss or batches of one."""
    y = setup.data.problem.Y[:, 0]
    beta = run.spec["model"].predictor(run.theta[:count])
    if setup.batch_size is None:
        eigenvalues = np.linalg.eigvalsh(x @ x.T / len(x))
        return (
            float(eigenvalues[0]),
            float(eigenvalues[-1]),
            float(np.sum((beta @ x.T - y) ** 2) / (2 * len(x))),
        )
    if setup.batch_size != 1:
        raise ValueError(f"batch_size must be None or 1 here; got {setup.batch_size}")
    i = batches(run)[:count, 0]
    sizes = np.sum(x**2, axis=1)
    residuals = np.einsum("kd,kd->k", beta, x[i]) - y[i]
    return float(sizes.min()), float(sizes.max()), float(0.5 * np.sum(residuals**2))


def stable(setup: SetUp, rtol: float) -> Evidence:
    """Measure the sharpness where a descent has converged, against 2 / γ."""
    descent = made(setup)
    count = descent.steps(rtol)
    last = descent.later[min(count, len(descent.later) - 1)]
    converged = Hypothesis(
        "descent has converged (defect: last gradients, relative)",
        float(last),
        tolerance=max(CONVERGED, rtol),
    )
    if not converged.holds:
        return Evidence((converged,))
    model, _ = network(setup.data)
    value = setup.step_size / 2 * observe.sharpness(model, setup.data.problem, descent.run.theta[count])
    return Evidence(
        (converged,),
        (Conclusion("sharpness at the end over 2 / γ, at most", value, 1.0),),
        (_status(descent.run),),
    )


def claims(size: str) -> list[tuple[Claim, str]]:
    """Claims, each with the verdict that it must get."""
    limit = (
        "Descent ends where the flow from a start shrunk by its gain does: in the projection of that start."
    )
    sum_of = "‖Gain‖₁ is γ² Σ L up to the eigenvalues of the batches' second moments."
    edge = "Descent converges to minima of sharpness at most 2 / γ only."
    theorem, own = f"{REFERENCE}, theorem 1", f"after {REFERENCE}, with constants of our own"
    classic = "linear stability, as in arXiv 2103.00065"
    whole = [SetUp(FIRST, 0.3, 25_000), SetUp(FIRST, 0.9, 30_000)]
    noisy, gentle = [SetUp(FIRST, 0.1, 120_000, 1)], [whole[0], SetUp(FIRST, 0.05, 20_000, 1)]
    if size == "full":
        whole = [SetUp(FIRST, 0.1, 80_000), *whole]
        noisy = [
            SetUp(FIRST, 0.02, 400_000, 1),
            SetUp(FIRST, 0.05, 180_000, 1),
            *noisy,
            SetUp(FIRST, 0.1, 120_000, 5),
        ]
        gentle = [whole[0], *gentle, SetUp(FIRST, 0.02, 20_000, 1)]
    listed: list[tuple[str, str, str, Callable[[float], Evidence], str]] = []

    def how(s: SetUp) -> str:
        kind = "gradient descent" if s.batch_size is None else f"batches of {s.batch_size}"
        return f"{kind}, γ = {s.step_size:g}"

    listed += [(f"{how(s)}: limit", limit, theorem, partial(law, s), "holds") for s in (*whole, *noisy)]
    listed += [(f"{how(s)}: gain", sum_of, own, partial(bounds, s), "holds") for s in gentle]
    flat = replace(whole[-1], step_size=0.7, n_steps=12_000)
    listed.append(("gradient descent, γ = 0.7: sharpness", edge, classic, partial(stable, flat), "holds"))
    short = replace(whole[0], n_steps=100)
    heavy = replace(whole[0], step_size=0.03, optimizer="momentum")
    listed += [
        ("control: edge of stability: gain", sum_of, own, partial(bounds, whole[-1]), "inapplicable"),
        ("control: 100 steps", limit, theorem, partial(law, short), "inapplicable"),
        ("control: 100 steps: sharpness", edge, classic, partial(stable, short), "inapplicable"),
        ("control: the flow's limit", limit, theorem, partial(law, whole[-1], gainless=True), "inapplicable"),
        (
            "control: the flow's limit, hypotheses ignored", limit, theorem,
            partial(law, whole[-1], gainless=True, respect_hypotheses=False), "violated",
        ),
        ("control: momentum", limit, theorem, partial(law, heavy), "inapplicable"),
        (
            "control: momentum, hypotheses ignored", limit, theorem,
            partial(law, heavy, respect_hypotheses=False), "violated",
        ),
    ]  # fmt: skip
    return [
        (Claim(name, statement, source, run), expected) for name, statement, source, run, expected in listed
    ]


def reproduce(out: Path, size: str, advance: Callable[[float, str], None]) -> Section:
    """Check the claims and draw the figures."""
    section = Section(
        "even2023",
        "(S)GD over diagonal linear networks: implicit bias, large stepsizes and edge of stability",
        "M. Even, S. Pesme, S. Gunasekar, N. Flammarion (2023), arXiv 2302.08982.",
        "Noiseless sparse regression by u ∘ v from u = √2 α, v = 0, α = 0.1. Whatever its step size, descent that "
        "converges ends where the flow from a smaller start does, α_∞² = α² e^(−Gain), its Gain being a sum over the "
        "steps taken. Batches spread the gain evenly and recover the teacher the better the larger the step; gradient "
        "descent's gain is largest where the teacher is, and ruins the recovery at the edge of stability.",
    )
    settle(section, claims(size), advance, 0.4, rtol=1e-10)
    scans = {}
    for i, (kind, batch_size) in enumerate(KINDS.items()):
        advance(0.4 + 0.2 * i, f"{kind}: step sizes")
        scans[kind] = scan(batch_size, size, partial(_share, advance, 0.4 + 0.2 * i, 0.2, f"{kind}: γ = "))
    advance(0.8, "shape of the gain")
    shapes = {kind: shape(batch_size, size) for kind, batch_size in KINDS.items()}
    section.rows += [observation_row(o) for o in observations(scans, shapes)]
    advance(0.9, "figures")
    with plot.style():
        section.plates += [_scan_plate(out, scans), _shape_plate(out, shapes), _edge_plate(out)]
    advance(1.0, "done")
    return section


def _share(
    advance: Callable[[float, str], None], begin: float, share: float, text: str, part: float, value: float
) -> None:
    advance(begin + share * part, f"{text}{value:.2g}")


KINDS = {"gradient descent": None, "batches of 1": 1}
COLORS = {"gradient descent": "C1", "batches of 1": "C0"}


@dataclass(frozen=True, eq=False)
class Scan:
    """Descents over step sizes and seeds: NaN where they do not converge to an interpolator."""

    step_sizes: Array  # (S,)
    recovery: Array  # (S, R) ‖β − β*‖
    gain: Array  # (S, R) ‖Gain‖₁
    sharpness: Array  # (S, R) over 2 / γ
    last: float  # the largest step size at which all converge; NaN if there is none

    def median(self, values: Array) -> Array:
        """Over the seeds."""
        return np.median(values, axis=1)


def scan(batch_size: int | None, size: str, advance: Callable[[float, float], None]) -> Scan:
    """Run descents at step sizes up to where they diverge."""
    model, theta0 = network(FIRST)
    steps = 30_000 if size == "quick" else 100_000
    seeds = 1 if batch_size is None else 3 if size == "quick" else 5
    coarse, fine = (10, 8) if size == "quick" else (18, 14)
    low, turn, high = (0.02, 0.7, 1.4) if batch_size is None else (0.02, 0.1, 0.3)
    step_sizes = np.unique(np.append(np.geomspace(low, turn, coarse), np.geomspace(turn, high, fine)))
    recovery, gain, sharpness = (np.full((len(step_sizes), seeds), np.nan) for _ in range(3))
    options = SetUp(FIRST, 1.0, 1, batch_size).options
    if batch_size is not None:
        options["rng"] = 0
    for i, step_size in enumerate(step_sizes):
        advance(i / len(step_sizes), float(step_size))
        with np.errstate(over="ignore", invalid="ignore"):
            runs = ensemble(
                model,
                FIRST.problem,
                np.tile(theta0, (seeds, 1)),
                step_size=float(step_size),
                n_steps=steps,
                **options,
            )
        for r, run in enumerate(unbroken(runs)):
            if run.outcome.code != "finished":
                continue
            beta = model.predictor(run.end)
            if not FIRST.misfit(beta) <= FITTED:
                continue
            recovery[i, r] = np.linalg.norm(beta - FIRST.teacher)
            gain[i, r] = effective.gain(model, gradients(FIRST, run), float(step_size)).sum()
            sharpness[i, r] = step_size / 2 * observe.sharpness(model, FIRST.problem, run.end)
    good = np.flatnonzero(np.isfinite(recovery).all(axis=1))
    last = step_sizes[good[-1]] if good.size else np.nan
    return Scan(step_sizes, recovery, gain, sharpness, float(last))


@dataclass(frozen=True, eq=False)
class Shape:
    """The gain of each coordinate, from the products u² − v² at the end, over seeds."""

    gain: Array  # (R, d)
    misfit: float  # largest ‖Xβ − y‖ / ‖y‖
    step_size: float


def shape(batch_size: int | None, size: str) -> Shape:
    """The gain on the paper's regression with large entries."""
    model, theta0 = network(SHAPE)
    step_size = 1e-3
    seeds = 1 if batch_size is None else 10 if size == "quick" else 100
    options = SetUp(SHAPE, 1.0, 1, batch_size).options
    if batch_size is not None:
        options["rng"] = 0
    steps = 30_000 if size == "quick" else 100_000
    runs = ensemble(
        model,
        SHAPE.problem,
        np.tile(theta0, (seeds, 1)),
        step_size=step_size,
        n_steps=steps,
        save_every=steps,
        **options,
    )
    u, v = model.unpack(unbroken(runs).last)
    with np.errstate(divide="ignore"):
        gain = -np.log(np.abs((u - v) * (u + v)) / (2 * ALPHA**2))
    return Shape(gain, max(SHAPE.misfit(b) for b in u * v), step_size)


def observations(scans: dict[str, Scan], shapes: dict[str, Shape]) -> list[Observation]:
    """Numbers that no theorem here speaks of."""
    listed = []
    for kind, s in scans.items():
        median = s.median(s.recovery)
        shown = np.flatnonzero(np.isfinite(median))
        first, best = shown[0], shown[np.argmin(median[shown])]
        converged = int(np.flatnonzero(s.step_sizes == s.last)[0])
        listed += [
            Observation(
                f"{kind}: recovery error ‖β − β*‖",
                float(median[k]),
                FITTED,
                f"γ = {s.step_sizes[k]:.3g}, {which}",
                REFERENCE,
            )
            for which, k in (("the smallest", first), ("the best", best), ("the last to converge", converged))
        ]
        listed.append(
            Observation(
                f"{kind}: ‖Gain‖₁", float(s.median(s.gain)[converged]), 1e-6, f"γ = {s.last:.3g}", REFERENCE
            )
        )
    for kind, one in shapes.items():
        mean = one.gain.mean(axis=0)
        ratio = mean[: SHAPE.support].mean() / mean[SHAPE.support :].mean()
        listed.append(
            Observation(
                f"{kind}: mean gain on the teacher's support over that off it", float(ratio), 1e-3,
                f"γ = {one.step_size:g}, {len(one.gain)} runs, misfit {one.misfit:.1g}", REFERENCE,
            )
        )  # fmt: skip
    return listed


def _scan_plate(out: Path, scans: dict[str, Scan]) -> Plate:
    fig, axes = plot.figure(1, 3, height=2.1)
    for kind, s in scans.items():
        color = COLORS[kind]
        for ax, values in zip(axes, (s.recovery, s.gain, s.sharpness), strict=True):
            if values.shape[1] > 1:
                ax.fill_between(
                    s.step_sizes, values.min(axis=1), values.max(axis=1), color=color, alpha=0.2, linewidth=0
                )
            ax.plot(s.step_sizes, s.median(values), ".-", color=color, markersize=3.5, linewidth=0.8)
    model, theta0 = network(FIRST)
    flows = bias.limit(model, FIRST.problem, theta0).predict([np.inf])[0, 0]
    axes[0].axhline(np.linalg.norm(flows - FIRST.teacher), color="0.5", linestyle="--", linewidth=0.8)
    axes[2].axhline(1.0, color="0.5", linestyle=":", linewidth=0.8)
    names = (
        "recovery error $\\|\\beta - \\beta^*\\|_2$",
        "$\\|\\mathrm{Gain}\\|_1$",
        "γ · sharpness / 2",
    )
    for ax, name in zip(axes, names, strict=True):
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("step size γ")
        ax.set_ylabel(name)
    handles = [Line2D([], [], color=COLORS[kind], marker=".", linewidth=0.8, label=kind) for kind in scans]
    handles += [
        Line2D([], [], color="0.5", linestyle="--", linewidth=0.8, label="flow's limit"),
        Line2D([], [], color="0.5", linestyle=":", linewidth=0.8, label="edge of stability"),
    ]
    fig.legend(handles=handles, loc="outside upper right", ncols=4)
    return Plate(
        plot.save(fig, out / "step_size")[1],
        f"Descent of u ∘ v on {FIRST.samples} samples in {FIRST.inputs} dimensions, {FIRST.support} entries 1 in the teacher, "
        "α = 0.1, against the step size (in units in which L = ‖Xβ − y‖² / 2n), as far as it converges (misfit below 1e-3): "
        "recovery of the teacher, size of the gain, and sharpness of the minimum reached relative to the largest that is "
        "stable. Batches: median and range over seeds. After figure 1 of arXiv 2302.08982.",
    )


def _shape_plate(out: Path, shapes: dict[str, Shape]) -> Plate:
    fig, axes = plot.figure(1, 2, height=1.9)
    for ax, (kind, one) in zip(axes, shapes.items(), strict=True):
        i = np.arange(1, SHAPE.inputs + 1)
        mean = one.gain.mean(axis=0)
        ax.vlines(i, 0, mean, color=COLORS[kind], linewidth=0.7)
        ax.plot(i, mean, "o", color=COLORS[kind], markersize=1.8)
        if len(one.gain) > 1:
            low, high = np.quantile(one.gain, [0.1, 0.9], axis=0)
            ax.vlines(i, low, high, color="0.6", linewidth=0.5)
        ax.axvspan(0.5, SHAPE.support + 0.5, color="0.9", zorder=0, linewidth=0)
        ax.set_title(kind)
        ax.set_xlabel("coordinate $i$ (teacher's support shaded)")
        ax.set_ylabel("$\\mathrm{Gain}_i$" if ax is axes[0] else "")
        ax.yaxis.set_major_locator(MaxNLocator(5))
        ax.set_ylim(bottom=0)
    runs = len(shapes["batches of 1"].gain)
    return Plate(
        plot.save(fig, out / "gain")[1],
        f"Gain_i = −log((u² − v²)_i / 2α²) at the end of descent at γ = 1e-3: {SHAPE.samples} samples in {SHAPE.inputs} dimensions, "
        f"teacher (100, −100, 100, −100, 0, …), α = 0.1. Left: gradient descent. Right: batches of 1, mean of {runs} runs (blue) "
        "and the range from the first to the ninth tenth of them (grey). After arXiv 2302.08982, on the shape of the gain.",
    )


def edge_runs(below: float = 0.5, above: float = 1.3) -> tuple[float, list[Trajectory]]:
    """Gradient descent at step sizes below and above the stability limit of the flow's limit, with that limit."""
    model, theta0 = network(EDGE)
    critical = 2.0 / observe.sharpness(model, EDGE.problem, _flow_end(model, EDGE, theta0))
    runs = ensemble(
        model, EDGE.problem, np.tile(theta0, (2, 1)), step_size=np.array([below, above]) * critical, n_steps=10_000,
    )  # fmt: skip
    return critical, list(unbroken(runs))


def _flow_end(model: Diagonal, data: SparseRegression, theta0: Array) -> Array:
    """The weights of the flow's limit: u² − v² = 2 α², u v = β."""
    beta = bias.limit(model, data.problem, theta0).predict([np.inf])[0, 0]
    total = np.sqrt(ALPHA**4 + beta**2)
    u = np.sqrt(total + ALPHA**2)
    return model.pack([u, beta / u])


def _edge_plate(out: Path) -> Plate:
    critical, runs = edge_runs()
    fig, (left, right) = plot.figure(1, 2)
    names, colors = [], ("C0", "C1")
    for run, color in zip(runs, colors, strict=True):
        step_size = float(run.spec["step_size"])
        steps = np.arange(1, len(run.theta))
        names.append(f"γ = {step_size:.2g}, {step_size / critical:.1f} of 2 / sharpness")
        left.loglog(steps, np.maximum(run.loss[1:], 1e-24), color=color, linewidth=0.8)
        beta = run.spec["model"].predictor(run.theta[1:])
        for i in (0, 1):
            right.semilogx(steps, beta[:, i], color=color, linewidth=0.8)
        rest = np.abs(beta[:, EDGE.support :]).max(axis=1)
        right.semilogx(steps, rest, color=color, linestyle="--", linewidth=0.8)
    left.set_ylabel("loss $L$")
    right.set_ylabel("$\\beta_1$, $\\beta_2$; largest other")
    for ax in (left, right):
        ax.set_xlabel("step $k$")
    handles = [Line2D([], [], color=c, label=n) for c, n in zip(colors, names, strict=True)]
    handles.append(Line2D([], [], color="0.4", linestyle="--", label="largest off the support"))
    fig.legend(handles=handles, loc="outside upper right", ncols=3)
    return Plate(
        plot.save(fig, out / "edge")[1],
        f"Gradient descent below and above the step size at which the flow's limit is stable (2 / its sharpness = {critical:.2g}): "
        f"{EDGE.samples} samples in {EDGE.inputs} dimensions, teacher (100, −100, 0, …), α = 0.1. Left: loss ‖Xβ − y‖² / 2n "
        "(not drawn below 1e-24). Right: the teacher's coordinates, and the largest of the others. After the figure on the "
        "edge of stability of arXiv 2302.08982.",
    )
