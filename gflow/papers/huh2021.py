"""M. Huh, H. Mobahi, R. Zhang, B. Cheung, P. Agrawal, P. Isola: The low-rank simplicity bias in deep
networks (2021), arXiv 2103.10427.

The paper's effective rank is the entropy ρ of the singular values over their sum; figures show e^ρ, a number of
directions.  Its theorem speaks of products of Gaussian matrices as their size grows.  All else in it is empirical, and
observed here on networks small enough for exact flows; the sizes are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import xarray
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from scipy.special import roots_legendre
from scipy.stats import t as student

from gflow import datasets, plot
from gflow._blas import one_thread
from gflow.claims import Claim, Conclusion, Evidence, Observation
from gflow.integrate import flow
from gflow.models.linear import DeepLinear
from gflow.models.relu import TwoLayerReLU
from gflow.papers import rank_training as training
from gflow.papers import settle, unbroken
from gflow.papers.rank_training import Setting, directions, fraction
from gflow.problem import Problem
from gflow.report import Plate, Section, observation_row
from gflow.theory import Hypothesis, rank

Array = NDArray[np.float64]

REFERENCE = "arXiv 2103.10427"
#: The products that are drawn: size, how many (of the controls too), depths in the claims and in the figure.
SIZE, DRAWS, CLAIMED = 400, 12, 8
CONTROLS = 3
SMALL, SMALL_DRAWS = 50, 60
DEPTHS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32)
#: Allowed for the finite size: of e^ρ, relative, for the matrix at depths up to 8, for its Gram matrix up to 4.
NEAR, NEAR_GRAM, GRAM_DEPTHS = 7.5e-3, 1e-2, 4
#: Of the closed forms against quadrature, and of flows against what they must do.
ACCURACY = 1e-8
#: A mean of draws says no more than its two-sided interval of this confidence (Student's) allows.
CONFIDENCE = 0.99
_EPS = float(np.finfo(float).eps)
#: Random networks: width, samples, numbers of matrices.
WIDTH, SAMPLES = 32, 512
NET_DEPTHS = (1, 2, 4, 8, 16, 32)
FACTORS = ("gaussian", "orthogonal", "transposed")


# -- products of random matrices -----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Products:
    """Singular values of nested products W_d ⋯ W_1, and how far their factors are from free Gaussian ones."""

    sigma: Array  # (draws, depths, n)
    circle: float  # largest distance of a factor's spectrum from the quarter-circle law
    overlap: float  # largest overlap of two factors, or of one with another's transpose

    def ranks(self, power: float) -> Array:
        """e^ρ / n (draws, depths)."""
        return fraction(self.sigma**power)


@cache
def products(factors: str, n: int, draws: int, depths: tuple[int, ...]) -> Products:
    """Draw products of Gaussian or of Haar orthogonal matrices, or of one Gaussian matrix and its transpose in turn."""
    with one_thread():  # matrices of this size gain little from more, and lose much on a busy machine
        return _products(factors, n, draws, depths)


def _products(factors: str, n: int, draws: int, depths: tuple[int, ...]) -> Products:
    rng = np.random.default_rng(n)
    sigma, circle, overlap = np.empty((draws, len(depths), n)), 0.0, 0.0
    shares = 1.0 - np.arange(n + 1) / n
    for draw in range(draws):
        product = np.eye(n)
        used: list[Array] = []
        for depth in range(1, depths[-1] + 1):
            if factors == "transposed" and used:
                w = used[-1].T
            else:
                w = rng.standard_normal((n, n)) / np.sqrt(n)
            if factors == "orthogonal":
                q, r = np.linalg.qr(w)
                w = q * np.sign(np.diag(r))
            product = w @ product
            if draw == 0 and depth <= 3:  # of three factors, which is telling enough
                law = rank.share_below(np.linalg.svd(w, compute_uv=False), 1)
                circle = max(
                    circle, float(np.abs(law - shares[:-1]).max()), float(np.abs(law - shares[1:]).max())
                )
                for other in used[-2:]:
                    sizes = float(np.linalg.norm(w) * np.linalg.norm(other))
                    for form in (other, other.T):
                        overlap = max(overlap, abs(float(np.vdot(w, form))) / sizes)
            used = [*used[-1:], w]
            if depth in depths:
                sigma[draw, depths.index(depth)] = np.linalg.svd(product, compute_uv=False)
    return Products(sigma, circle, overlap)


def _half_width(values: Array) -> Array:
    """Half the width of the confidence interval of the mean of draws (draws, ...)."""
    n = len(values)
    return np.asarray(student.ppf(0.5 * (1 + CONFIDENCE), n - 1) * values.std(axis=0, ddof=1) / np.sqrt(n))


def _mean(name: str, values: Array, bound: float, predicted: float | None = None) -> Conclusion:
    """A conclusion on the mean of draws, whose confidence interval counts as its numerical uncertainty."""
    error = float(_half_width(values)) / abs(predicted or 1.0)
    return Conclusion(name, float(values.mean()), bound, predicted, amplification=error / _EPS)


def falls(factors: str, power: float, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure the ranks of products of finite size against the limit, and whether they fall with the depth."""
    deepest, near = (CLAIMED, NEAR) if power == 1.0 else (GRAM_DEPTHS, NEAR_GRAM)
    draws = DRAWS if factors == "gaussian" else CONTROLS
    drawn = products(factors, SIZE, draws, tuple(range(1, CLAIMED + 1)))
    hypotheses = (
        Hypothesis("factors have the spectrum of Gaussian ones (defect: distance of the distribution functions)",
                   drawn.circle, 10.0 / SIZE),
        Hypothesis("factors are independent (defect: overlap of two, or of one and another's transpose)",
                   drawn.overlap, 5.0 / SIZE),
    )  # fmt: skip
    if respect_hypotheses and not all(h.holds for h in hypotheses):
        return Evidence(hypotheses)
    ranks = drawn.ranks(power)
    conclusions = [
        _mean(f"e^ρ / n at depth {d}", ranks[:, d - 1], near, float(np.exp(-rank.deficit(d, power))))
        for d in range(1, deepest + 1)
    ]
    steps = np.diff(np.log(ranks), axis=1)
    highest = int(np.argmax(steps.mean(axis=0) + _half_width(steps)))
    conclusions.append(_mean("largest change of ρ by one more matrix", steps[:, highest], 0.0))
    return Evidence(hypotheses if respect_hypotheses else (), tuple(conclusions))


def limiting(power: float, rtol: float) -> Evidence:
    """Measure the closed form of the limit against quadrature of the law's density, and that ρ falls with depth."""
    conclusions = []
    # the integrand goes to zero at one end like u log u at worst: the error of Gauss's rule like nodes^-4
    nodes, weights = roots_legendre(4 + int(np.ceil(rtol**-0.25)))
    for d in (1, 2, 3, 5, 8, 16):
        phi = 0.5 * np.pi / (d + 1) * (nodes + 1)
        shares = 0.5 * np.pi / (d + 1) * weights * rank.density_of_angle(phi, d)
        size = rank.square(phi, d) ** (power / 2)
        mean, weighted = float(shares @ size), float(shares @ (size * np.log(size)))
        conclusions.append(
            Conclusion(
                f"ln n − ρ at depth {d}", weighted / mean - np.log(mean), ACCURACY, rank.deficit(d, power)
            )
        )
    rise = -np.diff([rank.deficit(d, power) for d in range(1, 65)])
    conclusions.append(
        Conclusion("largest change of ρ by one more matrix, depths 1 to 64", float(rise.max()), 0.0)
    )
    return Evidence((), tuple(conclusions))


# -- what trained networks must do -----------------------------------------------------------------------


def nearest(weight_decay: float, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure the rank at the end of the flow of a single matrix, which is known: W₀ off the samples, Y on them."""
    hypothesis = Hypothesis("no weight decay", weight_decay, tolerance=0.0)
    if respect_hypotheses and not hypothesis.holds:
        return Evidence((hypothesis,))
    rng = np.random.default_rng(0)
    model = DeepLinear((6, 5))
    x, y = rng.standard_normal((4, 6)), rng.standard_normal((4, 5))
    start = model.init("gaussian", 1 / np.sqrt(6), rng=0)
    run = unbroken(flow(model, Problem(x, y, weight_decay=weight_decay), start, np.inf, rtol=rtol))
    w0 = model.end_to_end(start)
    wanted = w0 + (y.T - w0 @ x.T) @ np.linalg.pinv(x).T
    end = model.end_to_end(run.end)
    conclusions = (
        Conclusion("W at the end, distance from the nearest interpolator, relative",
                   float(np.linalg.norm(end - wanted) / np.linalg.norm(wanted)), ACCURACY),
        Conclusion("e^ρ at the end", directions(end), ACCURACY, directions(wanted)),
    )  # fmt: skip
    return Evidence((hypothesis,) if respect_hypotheses else (), conclusions, (run.status,))


def conserves(depth: int, weight_decay: float, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure the drift of what the flow of an over-parametrised first layer conserves, over kinks too."""
    hypothesis = Hypothesis("no weight decay", weight_decay, tolerance=0.0)
    if respect_hypotheses and not hypothesis.holds:
        return Evidence((hypothesis,))
    rng = np.random.default_rng(1)
    model = TwoLayerReLU(3, 6, 2, first_depth=depth)
    problem = Problem(rng.standard_normal((8, 3)), rng.standard_normal((8, 2)), weight_decay=weight_decay)
    theta0 = 0.5 * rng.standard_normal(model.size)
    run = unbroken(flow(model, problem, theta0, SHORT, rtol=rtol, events=False, max_steps=20_000))
    (before, sizes), (after, _) = model.invariants(theta0), model.invariants(run.end)
    drift = float(np.max(np.abs(after - before) / sizes))
    patterns = [model.first_layer(theta) @ problem.X.T > 0 for theta in (theta0, run.end)]
    crossed = Hypothesis(
        "neurons pass kinks (defect: 1 if none)", float(np.array_equal(patterns[0], patterns[1])), 0.0
    )
    return Evidence(
        (hypothesis, crossed) if respect_hypotheses else (),
        (Conclusion("largest change of an entry of W₂ᵀW₂ − W₁W₁ᵀ or of ‖a_j‖² − ‖w_j‖², relative", drift, ACCURACY),),
        (run.status,),
    )  # fmt: skip


#: How long the flow of `conserves` is followed: past kinks, before neurons slide, which takes events.
SHORT = 1.0


def claims(size: str) -> list[tuple[Claim, str]]:
    """Claims, each with the verdict that it must get."""
    theorem = f"{REFERENCE}, theorem 1, in its limit; the law: arXiv 1103.3453; closed form and proof ours"
    monotone = (
        "The effective rank of a product of wide Gaussian matrices falls with their number, to a known limit."
    )
    alone = "The flow of one matrix ends in the interpolator nearest to its start: known rank, no bias to low rank."
    kept = "A product in place of the first layer conserves W_{l+1}ᵀW_{l+1} − W_lW_lᵀ, and each neuron's balance at its last matrix."
    listed = [
        (Claim("limit of infinite size", monotone, theorem, partial(limiting, 1.0)), "holds"),
        (Claim("limit of infinite size, Gram matrix", monotone, theorem, partial(limiting, 2.0)), "holds"),
        (Claim(f"products of size {SIZE}", monotone, theorem, partial(falls, "gaussian", 1.0)), "holds"),
        (Claim(f"Gram matrices of size {SIZE}", monotone, theorem, partial(falls, "gaussian", 2.0)), "holds"),
        (Claim("one matrix", alone, "closed form", partial(nearest, 0.0)), "holds"),
    ]
    listed += [
        (Claim(f"chain of {k} first matrices", kept, "derived here", partial(conserves, k, 0.0)), "holds")
        for k in (2, 3)
    ]
    controls: list[tuple[str, str, str, Callable[..., Evidence]]] = [
        ("orthogonal factors", monotone, theorem, partial(falls, "orthogonal", 1.0)),
        ("a matrix and its transpose in turn", monotone, theorem, partial(falls, "transposed", 1.0)),
        ("weight decay", alone, "closed form", partial(nearest, 0.1)),
        ("weight decay on a chain", kept, "derived here", partial(conserves, 2, 0.1)),
    ]
    for name, statement, source, run in controls:
        listed.append((Claim(f"control: {name}", statement, source, run), "inapplicable"))
        ignored = partial(run, respect_hypotheses=False)
        listed.append((Claim(f"control: {name}, hypotheses ignored", statement, source, ignored), "violated"))
    return listed


# -- random networks ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RandomNets:
    """ρ of the Gram matrix (draws, depths) of the outputs of random networks."""

    linear: Array
    relu: Array


@cache
def random_nets(draws: int) -> RandomNets:
    """Gaussian networks of width 32 on 512 whitened Gaussian inputs, deeper ones with the shallower ones in them.

    The outputs are those of the last matrix; ReLUs stand between the matrices.
    """
    with one_thread():
        return _random_nets(draws)


def _random_nets(draws: int) -> RandomNets:
    rng = np.random.default_rng(0)
    x = datasets.whiten(rng.standard_normal((SAMPLES, WIDTH)))
    ranks = np.empty((2, draws, len(NET_DEPTHS)))
    for draw in range(draws):
        states = [x.T, x.T]
        for depth in range(1, NET_DEPTHS[-1] + 1):
            w = rng.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH)
            states = [w @ states[0], w @ (np.maximum(states[1], 0.0) if depth > 1 else states[1])]
            if depth in NET_DEPTHS:
                for kind, state in enumerate(states):
                    squares = np.maximum(np.linalg.eigvalsh(state @ state.T), 0.0)
                    ranks[kind, draw, NET_DEPTHS.index(depth)] = np.log(WIDTH * fraction(squares))
                    states[kind] = state / np.linalg.norm(
                        state
                    )  # so that nothing underflows; ranks know no scale
    return RandomNets(*ranks)


def net_observations(nets: RandomNets) -> list[Observation]:
    listed = []
    for name, ranks in (("linear", nets.linear), ("ReLU", nets.relu)):
        for i in (0, 2, len(NET_DEPTHS) - 1):
            values = np.exp(ranks[:, i])
            listed.append(
                Observation(
                    f"random {name} networks, depth {NET_DEPTHS[i]}: e^ρ of the Gram matrix, mean", float(values.mean()),
                    float(values.std(ddof=1) / np.sqrt(len(values))),
                    f"width {WIDTH}, {len(values)} draws; error: standard error", REFERENCE,
                )
            )  # fmt: skip
        fell = np.diff(ranks, axis=1) < 0
        listed.append(
            Observation(
                f"random {name} networks: share of draws in which the rank falls at each doubling of the depth",
                float(fell.all(axis=1).mean()), float(np.sqrt(0.25 / len(fell))),
                "at the single doublings: " + ", ".join(f"{share:.3g}" for share in fell.mean(axis=0))
                + "; true of the mean, not of each network", REFERENCE,
            )
        )  # fmt: skip
    return listed


# -- the page ------------------------------------------------------------------------------------------------


def reproduce(out: Path, size: str, advance: Callable[[float, str], None]) -> Section:
    """Check the claims, train the networks and draw the figures."""
    section = Section(
        "huh2021",
        "The low-rank simplicity bias in deep networks",
        "M. Huh, H. Mobahi, R. Zhang, B. Cheung, P. Agrawal, P. Isola (2021), arXiv 2103.10427.",
        "The effective rank of a product of wide Gaussian matrices falls with their number: a theorem, with its limit in "
        "closed form. The mean over random networks does so at width 32, not every single one. After training from "
        "Gaussian layers the deepest networks have a lower rank than the shallowest, by every optimiser, close to that of the "
        "least-norm interpolator; from "
        "balanced layers whose product keeps its size at all depths it does not: the bias there comes with the start. "
        "Over-parametrising the first layer of a ReLU network by a product lowers its rank everywhere; the error on new "
        "samples hardly follows at this size: it falls a little, seldom beyond doubt, where the labels see two directions, "
        "and not on the digits.",
    )
    settle(section, claims(size), advance, 0.25, rtol=1e-10, store=out / "claims")
    advance(0.25, "random networks")
    nets = random_nets(200 if size == "quick" else 3000)
    linear = training.least_squares(size, out, lambda part, note: advance(0.3 + 0.35 * part, note))
    relu = training.overparametrised(size, out, lambda part, note: advance(0.65 + 0.3 * part, note))
    observed = [
        *net_observations(nets),
        *training.linear_observations(linear),
        *training.relu_observations(relu),
    ]
    section.rows += [observation_row(o) for o in observed]
    advance(0.95, "figures")
    with one_thread(), plot.style():
        section.plates += [
            _products_plate(out),
            _nets_plate(out, nets),
            _training_plate(out, linear),
            _overparametrised_plate(out, relu),
        ]
    advance(1.0, "done")
    return section


def _products_plate(out: Path) -> Plate:
    fig, (left, right) = plot.figure(1, 2)
    deep = np.arange(1, DEPTHS[-1] + 1)
    small = products("gaussian", SMALL, SMALL_DRAWS, DEPTHS)
    large = products("gaussian", SIZE, DRAWS, tuple(range(1, CLAIMED + 1)))
    for color, power, name in (("C0", 1.0, "matrix"), ("C1", 2.0, "Gram matrix")):
        left.loglog(
            deep, [np.exp(-rank.deficit(int(d), power)) for d in deep], color=color, label=f"{name}, limit"
        )
        for drawn, depths, marker, n in (
            (small, DEPTHS, "s", SMALL),
            (large, range(1, CLAIMED + 1), "o", SIZE),
        ):
            ranks = drawn.ranks(power)
            error = ranks.std(axis=0, ddof=1) / np.sqrt(len(ranks))
            left.errorbar(
                depths, ranks.mean(axis=0), error, color=color, linestyle="none", marker=marker,
                markersize=2.2 if n == SIZE else 4.5, elinewidth=0.6, markeredgewidth=0.6,
                markerfacecolor=color if n == SIZE else "white",
            )  # fmt: skip
    left.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
    left.set_yticks([0.05, 0.1, 0.2, 0.5, 1.0], ["0.05", "0.1", "0.2", "0.5", "1"])
    left.minorticks_off()
    left.set_xlabel("depth $d$ (matrices)")
    left.set_ylabel("effective rank $e^\\rho / n$")
    sizes = [
        Line2D([], [], color="0.3", linestyle="none", marker="o", markersize=2.2, label=f"drawn, n = {SIZE}"),
        Line2D([], [], color="0.3", linestyle="none", marker="s", markersize=4.5, markerfacecolor="white",
               markeredgewidth=0.6, label=f"drawn, n = {SMALL}"),
    ]  # fmt: skip
    left.legend(handles=[*left.get_lines()[:1], *left.get_lines()[3:4], *sizes], loc="lower left")
    shown = (1, 2, 4, 8)
    place = (np.arange(SIZE) + 0.5) / SIZE
    some = np.unique(np.round(np.linspace(0, SIZE - 1, 25)).astype(int))
    for depth, color in zip(shown, plot.sequence(len(shown)), strict=True):
        right.semilogy(place, rank.singular_values(SIZE, depth), color=color, label=f"$d = {depth}$")
        right.semilogy(place[some], large.sigma[0, depth - 1, some], color=color, **plot.MARKS)
    right.set_ylim(1e-4, 10)
    right.set_xlabel("place $i / n$")
    right.set_ylabel("singular value $\\sigma_i$")
    right.legend(loc="lower left")
    return Plate(
        plot.save(fig, out / "products")[1],
        "Products of d Gaussian matrices (n, n), entries N(0, 1/n). Left: effective rank over n of the product and of its "
        f"Gram matrix, from the closed form of the limit (lines) and as drawn: means of {DRAWS} draws of size {SIZE} and "
        f"{SMALL_DRAWS} of size {SMALL}, with standard errors. Where d comes near n the limit n → ∞ no longer "
        "speaks. Right: the singular values of one draw (dots) and the Fuss–Catalan law (lines). Theory: arXiv 2103.10427, "
        "theorem 1; law: arXiv 1103.3453.",
    )


def _nets_plate(out: Path, nets: RandomNets) -> Plate:
    fig, axes = plot.figure(1, 2)
    for ax, name, ranks in zip(axes, ("linear", "ReLU"), (nets.linear, nets.relu), strict=True):
        low, lower, middle, upper, high = np.quantile(np.exp(ranks), (0.05, 0.25, 0.5, 0.75, 0.95), axis=0)
        ax.fill_between(NET_DEPTHS, low, high, color="C0", alpha=0.2, linewidth=0, label="5 to 95 % of draws")
        ax.fill_between(NET_DEPTHS, lower, upper, color="C0", alpha=0.35, linewidth=0, label="25 to 75 %")
        ax.plot(NET_DEPTHS, middle, "o-", color="C0", label="median")
        if name == "linear":
            limit = [np.exp(rank.entropy_rank(WIDTH, d, 2.0)) for d in NET_DEPTHS]
            ax.plot(NET_DEPTHS, limit, "--", color="C1", label="limit, $n e^{1 - H_{d+1}}$")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_ylim(0.9, 40)
        ax.set_xticks(NET_DEPTHS, [str(d) for d in NET_DEPTHS])
        ax.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
        ax.minorticks_off()
        ax.set_title(f"{name} networks")
        ax.set_xlabel("depth (matrices)")
        ax.set_ylabel("rank of the Gram matrix $e^\\rho$" if ax is axes[0] else "")
    axes[0].legend(loc="lower left")
    return Plate(
        plot.save(fig, out / "random_nets")[1],
        f"Effective rank of the Gram matrix of the outputs of {len(nets.linear)} random networks of width {WIDTH} on "
        f"{SAMPLES} whitened Gaussian inputs. Left: linear networks, with the limit of infinite width (dashed; H: harmonic "
        "numbers). Right: ReLUs between the matrices. After arXiv 2103.10427, whose histograms this condenses.",
    )


_COLORS = dict(zip(training.OPTIMIZERS, ("0.6", "C0", "C2", "C1", "C3"), strict=True))
_MARKERS = dict(zip(training.OPTIMIZERS, "osv^D", strict=True))


def _training_plate(out: Path, runs: xarray.Dataset) -> Plate:
    depths, seeds = runs.depth.values.tolist(), runs.seed.values.tolist()
    ranks, reached = runs["rank"].mean("seed"), (runs.code == "stopped").all("seed")
    fig, axes = plot.figure(2, 3, height=1.9)
    for row, teacher in zip(axes, training.TEACHERS, strict=True):
        for ax, start in zip(row, training.STARTS, strict=True):
            ax.axhline(training.least_norm_rank(teacher, seeds), color="0.5", linestyle=":", linewidth=1.0)
            begin = [
                np.mean([directions(s.model.end_to_end(s.start(start))) for s in (Setting(teacher, d, k) for k in seeds)])
                for d in depths
            ]  # fmt: skip
            ax.plot(depths, begin, color="0.3", linestyle="--", linewidth=0.6)
            for optimizer in training.OPTIMIZERS:
                place = {"teacher": teacher, "start": start, "optimizer": optimizer}
                color, exact = (
                    _COLORS[optimizer],
                    optimizer == "flow",
                )  # under the others, which it often meets
                ax.plot(depths, ranks.sel(place), color=color, linewidth=2.4 if exact else 0.8)
                for d, value, done in zip(depths, ranks.sel(place), reached.sel(place), strict=True):
                    ax.plot(d, value, marker=_MARKERS[optimizer], color=color, markersize=5.5 if exact else 3,
                            markerfacecolor=color if done else "white", markeredgewidth=0.7)  # fmt: skip
            ax.set_xscale("log", base=2)
            ax.set_xticks(depths, [str(d) for d in depths])
            ax.minorticks_off()
            ax.set_ylim(0.5, 17)
            if teacher == training.TEACHERS[0]:
                ax.set_title(f"start: {start}")
            else:
                ax.set_xlabel("depth $N$ (matrices)")
            ax.set_ylabel(f"rank $e^\\rho$ (teacher: {teacher})" if start == training.STARTS[0] else "")
    handles = [
        *(
            Line2D([], [], color=_COLORS[o], marker=_MARKERS[o], linewidth=0.8, label=o)
            for o in training.OPTIMIZERS
        ),
        Line2D([], [], color="0.3", linestyle="--", linewidth=0.6, label="at the start"),
        Line2D([], [], color="0.5", linestyle=":", label="least norm"),
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=7, columnspacing=1.2)
    return Plate(
        plot.save(fig, out / "training")[1],
        f"Effective rank of the end-to-end map of linear networks ({training.WIDTH} × {training.WIDTH}) trained on "
        f"{training.SAMPLES} samples to {training.TRAINED:g} of the loss of the zero map, against depth; open marks: not "
        f"all runs came so far. Rows: teacher of rank {training.TEACHERS[0]} and of full rank, {training.TEACHERS[1]}. Columns: layers N(0, 1/n); the "
        "same with a tenth of the end-to-end size at every depth; balanced orthogonal layers with W(0) orthogonal of "
        f"size {training.SIZE:g} at every depth. Mean of {len(seeds)} seed(s). Dotted: the interpolator of least norm. After "
        "arXiv 2103.10427.",
    )


def _overparametrised_plate(out: Path, runs: dict[str, xarray.Dataset]) -> Plate:
    fig, axes = plot.figure(2, 3, height=2.0)
    marks = {"momentum": ("o", "C1"), "Adam": ("D", "C3"), "flow": ("s", "0.0")}
    for row, (task, grid) in zip(axes, runs.items(), strict=True):
        ks, seeds = grid.k.values.tolist(), grid.sizes["seed"]
        shown = grid.sigma.sel(start=training.RELU_STARTS[0], optimizer="momentum").isel(seed=0)
        for k, color in zip(ks, plot.sequence(len(ks)), strict=True):
            sigma = shown.sel(k=k).values
            row[0].semilogy(np.arange(1, len(sigma) + 1), sigma / sigma[0], color=color, label=f"$k = {k}$")
        row[0].set_ylim(5e-3, 1.5)
        row[0].set_ylabel("$\\sigma_i / \\sigma_1$ of the first layer")
        for start, optimizer, mine in training.groups_of(grid):
            marker, color = marks[optimizer]
            same = start == training.RELU_STARTS[0]
            for ax, values in ((row[1], mine["rank"]), (row[2], mine.test_error)):
                error = values.std("seed", ddof=1) / np.sqrt(mine.sizes["seed"])
                ax.errorbar(
                    ks, values.mean("seed"), error, color=color, marker=marker, markersize=3, linewidth=0.9,
                    elinewidth=0.6, linestyle="-" if same else "--", markerfacecolor=color if same else "white",
                    markeredgewidth=0.7,
                )  # fmt: skip
        for ax in row[1:]:
            ax.set_xticks(ks)
        row[1].set_ylim(0, None)
        row[1].set_ylabel("rank of the first layer $e^\\rho$")
        row[2].set_ylim(0, None)
        row[2].set_ylabel("test error, relative" if task == training.TASKS[0] else "share of digits wrong")
        row[0].set_title(task)
    axes[0, 0].legend(loc="lower left")
    axes[1, 0].set_xlabel("place $i$")
    for ax in axes[1, 1:]:
        ax.set_xlabel("matrices $k$ in the first layer")
    handles = [
        *(Line2D([], [], color=c, marker=m, linewidth=0.9, label=o) for o, (m, c) in marks.items()),
        Line2D([], [], color="0.4", linestyle="-", label="start: one function for all $k$"),
        Line2D([], [], color="0.4", linestyle="--", label="start: all matrices Gaussian"),
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=5)
    return Plate(
        plot.save(fig, out / "overparametrised")[1],
        "Two-layer ReLU networks whose first layer is a product W_k ⋯ W_1: the same functions, trained otherwise. Above: 60 "
        "samples in 20 dimensions of which the labels see two; below: 200 digits. Left: singular values of the trained "
        "first layer over the largest (momentum, one function at the start, one seed). Middle and right: its effective rank, and the "
        f"error on new samples; means of {seeds} seeds (flows on the digits: at most two) with standard errors. Flows without located "
        "kinks. After arXiv 2103.10427.",
    )
