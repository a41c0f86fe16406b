"""E. Boursier, N. Flammarion: Simplicity bias and optimization threshold in two-layer ReLU networks (2024),
arXiv 2410.02348.

L = 1/(2n) Σ (h(x_i) − y_i)²: gflow's own factor.  Labels x_1 + η with η ~ N(0, 0.3²), Gaussian inputs with
|x_1| > 0.3 (the theorem's margin), 40 neurons, |a_j| ≥ ‖w_j‖ at the start, of size λ/√m with λ = 1e-3: with equality
in the threshold's figure, since a neuron with |a| > ‖w‖ may reach w = 0, where the flow is not unique.  The theorem's
rates in n and λ are not used: :func:`gflow.theory.threshold.limit` measures what they are there for.  Train and test losses
are shown as 2 L, in units of σ².
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter
from numpy.typing import NDArray

from gflow import datasets, plot
from gflow.claims import Claim, Conclusion, Evidence, Observation
from gflow.integrate import flow
from gflow.models.relu import TwoLayerReLU
from gflow.neurons import activation_pattern
from gflow.objective import Objective
from gflow.papers import settle, unbroken
from gflow.papers.falling import FALLS, NEVER, run_or_fall
from gflow.problem import Problem
from gflow.report import Plate, Section, observation_row
from gflow.sweeps import sweep
from gflow.theory import alignment, threshold
from gflow.trajectory import Trajectory

Array = NDArray[np.float64]

REFERENCE = "arXiv 2410.02348"
SIGMA, MARGIN, WIDTH, SCALE = 0.3, 0.3, 40, 1e-3
#: |L − L_OLS| of a claim that the flow ends in the two fits, and the relative distance of their vectors.
LOSS, VECTORS = 1e-10, 1e-6
#: L / L_OLS below which it is clear that a flow ends elsewhere: the loss never rises.
BELOW = 0.9
#: 2 L / σ² below which a run interpolates.
INTERPOLATED = 1e-6
#: Steps after which a run of the figure is given up, and its tolerance.
STEPS, RTOL = 20_000, 1e-8
OUTCOMES = ("two fits", "between", "undecided", "interpolates", "failed")
#: Distance from the two fits up to which a run that leaves them has been close.
CLOSE = 0.05
#: Data seed and start of the plateau that is left, and a start that stays.
LEAVES, STAYS = (1, 4), (1, 0)


@dataclass(frozen=True)
class SetUp:
    """One data set and one start."""

    d: int
    n: int
    seed: int
    start: int
    margin: float = MARGIN
    sigma: float = SIGMA
    width: int = WIDTH
    scale: float = SCALE
    kind: str = "dominated"

    @cached_property
    def problem(self) -> Problem:
        return Problem(*datasets.linear_teacher(self.n, self.d, self.sigma, self.seed, self.margin))

    @property
    def model(self) -> TwoLayerReLU:
        return TwoLayerReLU(self.d, self.width)

    @property
    def theta0(self) -> Array:
        return self.model.init(self.kind, self.scale / np.sqrt(self.width), rng=self.start)

    @property
    def teacher(self) -> Array:
        return np.eye(self.d)[0]

    @cached_property
    def fits(self) -> threshold.HalfFits:
        return threshold.half_fits(self.problem, self.teacher)

    def flow(self, rtol: float, **options: Any) -> Trajectory:
        """To t = ∞ if nothing else is said."""
        options = {"t": np.inf, "rtol": rtol, **options}
        return unbroken(flow(self.model, self.problem, self.theta0, **options))

    def distance(self, theta: Array) -> float:
        """‖h − h_fits‖ / ‖y − h_fits‖ on the samples, h_fits the two fits' outputs."""
        fitted = self.fits.outputs(self.problem.X)
        off = self.model.function(theta, self.problem.X)[:, 0] - fitted
        return float(np.linalg.norm(off) / np.linalg.norm(self.problem.Y[:, 0] - fitted))


# ---- claims --------------------------------------------------------------------------------------------------


@cache
def hypotheses_of(setup: SetUp) -> tuple[Any, ...]:
    """Those of the limit, measured once."""
    prediction = threshold.limit(setup.model, setup.problem, setup.theta0, setup.teacher, force=True)
    return prediction.hypotheses


def ends_in_two_fits(setup: SetUp, rtol: float, respect_hypotheses: bool = True) -> Evidence:
    """Measure where the flow ends: its loss, its two maps, the patterns of its neurons."""
    hypotheses = hypotheses_of(setup) if respect_hypotheses else ()
    if not all(h.holds for h in hypotheses):
        return Evidence(hypotheses)
    objective, fits = Objective(setup.model, setup.problem), setup.fits
    run, inverse = run_or_fall(objective, setup.theta0, BELOW * fits.loss, rtol)
    falls = Conclusion(FALLS.format(f"{BELOW:g} (RSS₊ + RSS₋) / (2n)"), inverse, NEVER)
    if inverse > 0:
        return Evidence(hypotheses, (falls,), (run.status,))
    w, a = setup.model.first_layer(run.end), setup.model.outer_layer(run.end)[0]
    patterns = activation_pattern(setup.model, setup.problem, run.end)
    other = np.any(patterns != np.outer(np.sign(a), fits.side), axis=1) & np.any(patterns > 0, axis=1)
    conclusions = [
        falls,
        Conclusion("|L − (RSS₊ + RSS₋) / (2n)| in the limit", abs(objective.loss(run.end) - fits.loss), LOSS),
        Conclusion("share of neurons, not dead, active elsewhere than on S±", float(np.mean(other)), 0.5 / setup.width),
    ]  # fmt: skip
    for name, sign, b in (("b₊", 1, fits.plus), ("b₋", -1, fits.minus)):
        gap = np.linalg.norm(a[sign * a > 0] @ w[sign * a > 0] - b) / np.linalg.norm(b)
        conclusions.append(
            Conclusion(f"Σ a_j w_j of the sign of {name}, relative distance from it", float(gap), VECTORS)
        )
    return Evidence(hypotheses, tuple(conclusions), (run.status,))


def claims(size: str) -> list[tuple[Claim, str]]:
    """Claims, each with the verdict that it must get."""
    statement = "The flow from a small start ends in two least-squares fits of half the data each, not in an interpolator."
    source = f"{REFERENCE}, main theorem, with hypotheses of our own"
    small = partial(SetUp, seed=0, start=1, margin=1.0, width=20, scale=1e-6)
    cases = [
        ("d = 2, n = 60", small(2, 60), True, "holds"),
        ("d = 5, n = 150", small(5, 150), True, "holds"),
    ]
    if size == "full":
        cases += [
            ("d = 5, n = 400", small(5, 400, margin=0.5), True, "holds"),
            ("d = 10, n = 400", small(10, 400), True, "holds"),
        ]
    for name, setup in (
        ("few samples, d = 5, n = 20", SetUp(5, 20, 3, 1003, scale=1e-6)),
        ("a large start, λ = 3", small(5, 60, scale=3.0)),
    ):
        for respect, expected in ((True, "inapplicable"), (False, "violated")):
            title = f"control: {name}" + ("" if respect else ", hypotheses ignored")
            cases.append((title, setup, respect, expected))
    return [
        (
            Claim(name, statement, source, partial(ends_in_two_fits, setup, respect_hypotheses=respect)),
            expected,
        )
        for name, setup, respect, expected in cases
    ]


# ---- the threshold -------------------------------------------------------------------------------------------


#: What is measured of one run.
MEASURED = (
    "train", "test", "fits_train", "fits_test", "finished", "saddle", "reached", "closest", "closest_at", "steps",
    "inconsistent", "misaligned",
)  # fmt: skip
#: ... by d, n and seed; with ``error``, why there is nothing, or "".
Cells = dict[tuple[int, int, int], dict[str, Any]]


def cell(d: int, n: int, seed: int, max_steps: int = STEPS, rtol: float = RTOL) -> dict[str, float]:
    """One data set and one start: where the flow goes.

    Returns
    -------
    dict
        ``train``, ``test``: 2 L and its expectation on new data, of the last state; ``fits_train``, ``fits_test``: of the
        two fits (NaN where a half holds too few samples); ``finished``: whether that state is the limit, ``saddle``:
        whether it is a saddle; ``reached``: the time integrated to; ``closest``, ``closest_at``: the least distance from the
        two fits on the way (:meth:`SetUp.distance`), and when; ``steps``; ``inconsistent``: share of samples on another side of a fit; ``misaligned``: largest
        share of wrong sides at the end of early alignment.
    """
    setup = SetUp(d, n, seed, 1000 + seed, kind="balanced")
    try:
        fits = setup.fits
    except ValueError:  # too few samples in a half
        fits = None
    seen = list[tuple[float, float]]()

    def watch(t: float, theta: Array) -> bool:
        seen.append((t, setup.distance(theta) if fits is not None else np.nan))
        return False

    run = setup.flow(rtol, stop=watch, max_steps=max_steps)
    times, off = np.array(seen).T
    found = dict.fromkeys(MEASURED, float("nan")) | {
        "train": 2 * Objective(setup.model, setup.problem).loss(run.end),
        "test": SIGMA**2 + _excess(setup.model, run.end),
        "finished": float(run.limit is not None and run.outcome.code in ("finished", "saddle")),
        "saddle": float(run.outcome.code == "saddle"),
        "reached": float(times[-1]),
        "steps": float(run.counts["accepted"] + run.counts["rejected"]),
    }
    if fits is None:
        return found
    arrival = threshold.arrival(setup.model, setup.problem, setup.theta0, fits.side)
    excess = fits.excess(setup.teacher, threshold.second_moment(d, MARGIN))
    return found | {
        "fits_train": 2 * fits.loss,
        "fits_test": SIGMA**2 + excess,
        "closest": float(off.min()),
        "closest_at": float(times[off.argmin()]),
        "inconsistent": fits.inconsistent,
        "misaligned": float(arrival.wrong.max()),
    }


@cache
def _test_inputs(d: int) -> Array:
    """New inputs, the same for all networks."""
    return datasets.linear_teacher(20_000, d, rng=2**31, margin=MARGIN)[0]


def _excess(model: TwoLayerReLU, theta: Array) -> float:
    """E (h(x) − x_1)², on 20,000 new inputs: to some per cent."""
    x = _test_inputs(model.inputs)
    return float(np.mean((model.function(theta, x)[:, 0] - x[:, 0]) ** 2))


def outcome(found: dict[str, Any]) -> str:
    """One of :data:`OUTCOMES`; the loss never rises, so that a run which was given up may have interpolated."""
    if found.get("error"):
        return "failed"
    if found["train"] <= INTERPOLATED * SIGMA**2:
        return "interpolates"
    if not found["finished"]:
        return "undecided"
    close = _gap(found) <= LOSS
    return "two fits" if close and not found["saddle"] else "between"


def _gap(found: dict[str, Any]) -> float:
    """|L − (RSS₊ + RSS₋) / (2n)|."""
    return 0.5 * abs(float(found["train"] - found["fits_train"]))


def grid(size: str) -> list[tuple[int, int, int]]:
    """d, n and seed of all runs, the cheap ones first."""
    if size == "quick":
        return [(5, n, seed) for n in (10, 20, 35, 50, 100, 200) for seed in range(8)]
    counts = {2: (5, 8, 12, 16, 25, 40, 70, 100, 200), 5: (10, 15, 20, 27, 35, 50, 70, 100, 200, 400),
              10: (20, 30, 40, 55, 75, 100, 150, 200, 400)}  # fmt: skip
    return [(d, n, seed) for d, many in counts.items() for n in many for seed in range(16)]


def cells(out: Path, size: str, advance: Callable[[float, str], None], jobs: int = -1) -> Cells:
    """All runs of the figure, on all cores; those that are finished are kept in ``out / "cells"`` and not run again."""
    found, listed = Cells(), grid(size)
    work = sum(n + 30.0 for _, n, _ in listed)
    done = 0.0
    for (d, n), group in groupby(listed, key=lambda key: key[:2]):
        seeds = [seed for _, _, seed in group]
        advance(done / work, f"d = {d}, n = {n}, {len(seeds)} seeds")
        settings = {"d": d, "max_steps": STEPS, "rtol": RTOL}
        swept = sweep(cell, {"n": [n], "seed": seeds}, out / "cells", jobs, settings=settings).sel(n=n)
        for seed in seeds:
            one = swept.sel(seed=seed)
            if one.error.item() == "not run: interrupted":
                raise KeyboardInterrupt
            found[d, n, seed] = {
                name: one[name].item() if name in one else float("nan") for name in (*MEASURED, "error")
            }
        done += len(seeds) * (n + 30.0)
    return found


# ---- observations --------------------------------------------------------------------------------------------


def concentration(d: int, sizes: tuple[int, ...], seeds: int = 8) -> Array:
    """sup ‖D_n(w) − E D‖ (sizes, seeds)."""
    mean = threshold.population(np.eye(d)[0], threshold.second_moment(d, MARGIN))
    return np.array(
        [
            [
                threshold.deviation(Problem(*datasets.linear_teacher(n, d, SIGMA, seed, MARGIN)), mean)
                for seed in range(seeds)
            ]
            for n in sizes
        ]
    )


SIZES = (50, 200, 800, 3200)


def observations(found: Cells) -> list[Observation]:
    """What is measured and not asserted; errors are one standard error over the seeds where there are seeds."""
    ranges = [one for d in sorted({d for d, _, _ in found}) for one in ends_of_range(found, d)]
    return landscape_observations() + shares(found) + ranges


def landscape_observations() -> list[Observation]:
    """How the landscape becomes that of infinitely many samples."""
    listed = []
    for d in (2, 5):
        late = concentration(d, SIZES)
        slopes = np.polyfit(np.log(SIZES), np.log(late), 1)[0]
        kind = "all w" if d == 2 else "2,000 directions w"
        listed.append(
            Observation(
                f"slope of log sup ‖D_n(w) − E D‖ against log n, d = {d}, over {kind}", float(slopes.mean()),
                float(slopes.std() / np.sqrt(len(slopes))), "the bound's is −1/2", REFERENCE,
            )
        )  # fmt: skip
    for n in (20, 100):
        lands = [alignment.landscape(SetUp(5, n, seed, 0).problem) for seed in range(4)]
        counts = [len(land.reached(sign, 40)) for land in lands for sign in (1, -1)]
        listed.append(
            Observation(
                f"d = 5, n = {n}: attractors of one sign met by 40 random starts, mean of four data sets", float(np.mean(counts)),
                float(np.std(counts) / np.sqrt(len(counts))), "more may have been missed; with infinitely many samples 1", REFERENCE,
            )
        )  # fmt: skip
    return listed


def shares(found: Cells) -> list[Observation]:
    """How the runs end, for each number of samples."""
    listed = []
    for d, n in sorted({(d, n) for d, n, _ in found}):
        rows = [found[key] for key in found if key[:2] == (d, n)]
        ends = [outcome(row) for row in rows]
        share = {name: ends.count(name) / len(ends) for name in OUTCOMES}
        note = ", ".join(f"{ends.count(name)} {name}" for name in OUTCOMES if share[name])
        left = sum(row["closest"] <= CLOSE and row["train"] < BELOW * row["fits_train"] for row in rows)
        note += f"; {left} came close to the fits, a saddle there, and left them" if left else ""
        share_error = float(np.sqrt(share["two fits"] * (1 - share["two fits"]) / len(ends)))
        listed.append(
            Observation(f"d = {d}, n = {n}: share of runs that end in the two fits", share["two fits"], share_error, note, REFERENCE)
        )  # fmt: skip
        losses = np.array([row["fits_train"] for row in rows])
        if np.isfinite(losses).all() and n == max(m for e, m, _ in found if e == d):
            ratio = losses / (SIGMA**2 * (1 - 2 * d / n))
            listed.append(
                Observation(
                    f"d = {d}, n = {n}: 2 L of the two fits / (σ² (1 − 2d/n)), mean", float(ratio.mean()),
                    float(ratio.std() / np.sqrt(len(ratio))), "expectation 1", REFERENCE,
                )
            )  # fmt: skip
    return listed


def ends_of_range(found: Cells, d: int) -> list[Observation]:
    """Where interpolation stops, and from where on there is nothing but the two fits."""
    sizes = sorted({n for e, n, _ in found if e == d})
    ends = {n: [outcome(row) for (e, m, _), row in found.items() if (e, m) == (d, n)] for n in sizes}
    some = [n for n in sizes if "interpolates" in ends[n]]
    late = [n for n in sizes if all(set(ends[m]) == {"two fits"} for m in sizes if m >= n)]
    gaps = [_gap(row) for (e, _, _), row in found.items() if e == d and outcome(row) == "two fits"]
    listed = [
        Observation(
            f"d = {d}: largest |L − (RSS₊ + RSS₋) / (2n)| of the {len(gaps)} runs that end in the two fits",
            max(gaps, default=float("nan")), 0.0, f"they end there if it is at most {LOSS:g}", REFERENCE,
        )
    ]  # fmt: skip
    for what, among, other in (
        ("largest n at which a run interpolates", some[-1:], 1),
        ("least n from which on all runs end in the two fits", late[:1], -1),
    ):
        for n in among:
            beside = sizes[min(max(sizes.index(n) + other, 0), len(sizes) - 1)]
            unknown = sum(end in ("undecided", "failed") for m in sizes if m > n for end in ends[m])
            note = "error: to the next n" + (f"; unknown of {unknown} runs with more" if unknown else "")
            listed.append(Observation(f"d = {d}: {what}", float(n), float(abs(beside - n)), note, REFERENCE))
    return listed


def plateau(start: tuple[int, int], rtol: float = 1e-9) -> tuple[SetUp, Trajectory, Array]:
    """A run of n = 20, d = 5, with time, loss and distance from the two fits after every step (S, 3)."""
    setup = SetUp(5, 20, *start)
    objective, seen = Objective(setup.model, setup.problem), list[tuple[float, float, float]]()

    def watch(t: float, theta: Array) -> bool:
        seen.append((t, objective.loss(theta), setup.distance(theta)))
        return False

    return setup, setup.flow(rtol, stop=watch), np.array(seen)


def saddle_observations(setup: SetUp, run: Trajectory, history: Array) -> list[Observation]:
    """The plateau that is left: how close the flow comes, and the growth of the neurons that end it."""
    first = int(history[:, 2].argmin())
    at, off = history[first, 0], history[first, 2]
    error = float(history[first - 1 : first + 2, 2].max() - off)  # steps are points of a curve
    there = setup.flow(1e-9, t=[at]).end
    rates = threshold.escape_rates(setup.model, setup.problem, there, setup.fits)
    code = run.limit.kind if run.limit is not None else run.outcome.code
    return [
        Observation("n = 20, a plateau that is a saddle: least ‖h − h_fits‖ / ‖y − h_fits‖", float(off), error, f"at t = {at:.3g}", REFERENCE),
        Observation("... largest d ln|a_j|/dt of its small neurons there", float(rates.max()), float(off * rates.max()), reference=REFERENCE),
        Observation("... L / L_OLS in the end", float(run.loss[-1] / setup.fits.loss), 1e-8, f"a {code}", REFERENCE),
    ]  # fmt: skip


# ---- report --------------------------------------------------------------------------------------------------


def reproduce(out: Path, size: str, advance: Callable[[float, str], None]) -> Section:
    """Check the claims and draw the figures; finished runs of the threshold are kept in ``out / "cells"``."""
    section = Section(
        "boursier2024",
        "Simplicity bias and optimization threshold in two-layer ReLU networks",
        "E. Boursier, N. Flammarion (2024), arXiv 2410.02348.",
        f"Noisy linear labels (σ = {SIGMA}), {WIDTH} ReLU neurons, a start of size {SCALE:g}/√{WIDTH}. With few samples the flow "
        "interpolates, or nearly does; beyond a threshold it ends, at t = ∞, in two least-squares fits of half the data each, with "
        "a training loss of about σ² and a test loss that is better for it. In between, the fits are a saddle that "
        "the flow may rest at and leave.",
    )
    part = 0.3 if size == "quick" else 0.05
    settle(section, claims(size), advance, part)
    found = cells(out, size, lambda fraction, note: advance(part + (0.95 - part) * fraction, note))
    advance(0.95, "figures")
    runs = [plateau(LEAVES), plateau(STAYS)]
    section.rows += [observation_row(one) for one in observations(found) + saddle_observations(*runs[0])]
    with plot.style():
        section.plates += [_threshold_plate(out, found, d) for d in sorted({d for d, _, _ in found})]
        section.plates += [_plateau_plate(out, runs), _concentration_plate(out)]
    advance(1.0, "done")
    return section


COLOURS = {"two fits": "C0", "between": "C4", "undecided": "0.8", "interpolates": "C1", "failed": "C3"}


def _threshold_plate(out: Path, found: Cells, d: int) -> Plate:
    sizes = sorted({n for e, n, _ in found if e == d})
    rows = {n: [found[key] for key in found if key[:2] == (d, n)] for n in sizes}
    fig, (train, test, share) = plot.figure(1, 3, height=2.2)
    for ax, name in ((train, "train"), (test, "test")):
        for n in sizes:
            for row in rows[n]:
                end = outcome(row)
                ax.plot(
                    n, max(row[name] / SIGMA**2, 1e-7), "o", color=COLOURS[end], markersize=2.5,
                    markerfacecolor="none" if end == "undecided" else None, markeredgecolor="0.5" if end == "undecided" else None,
                )  # fmt: skip
        ax.axhline(1.0, color="0.4", linestyle=":", linewidth=0.8)
        _samples(ax, sizes)
    fine = np.geomspace(2.2 * d, max(sizes), 100)
    train.plot(fine, 1 - 2 * d / fine, color="k", linewidth=0.8)
    test.plot(fine, 1 + 2 * d / fine, color="k", linewidth=0.8)
    train.set_yscale("log")
    train.set_ylim(5e-8, 3)
    train.set_ylabel("train loss $2L$ ($\\sigma^2$)")
    test.set_yscale("log")
    test.set_ylabel("test loss ($\\sigma^2$)")
    failed = sum(outcome(row) == "failed" for n in sizes for row in rows[n])
    bottom = np.zeros(len(sizes))
    for name in OUTCOMES:
        part = np.array([np.mean([outcome(row) == name for row in rows[n]]) for n in sizes])
        share.bar(range(len(sizes)), part, bottom=bottom, color=COLOURS[name], width=0.8)
        bottom += part
    share.set_xticks(range(len(sizes)), [str(n) for n in sizes], rotation=90 if len(sizes) > 7 else 0)
    share.set_xlabel("samples $n$")
    share.set_ylabel("share of seeds")
    handles: list[Any] = [
        Patch(color=COLOURS[name], label=name) for name in OUTCOMES if name != "failed" or failed
    ]
    handles += [
        Line2D([], [], color="0.4", linestyle=":", linewidth=0.8, label="$\\sigma^2$"),
        Line2D([], [], color="k", linewidth=0.8, label="$\\sigma^2(1 \\mp 2d/n)$"),
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=6)
    seeds = len(rows[sizes[0]])
    return Plate(
        plot.save(fig, out / f"threshold_d{d}")[1],
        f"Optimization threshold in d = {d}: training and test loss (2L, in units of σ² = {SIGMA**2:g}) at t = ∞ against the number "
        f"of samples, {seeds} data sets each with a start of its own. Dots: the exact flow; losses below 1e-7 σ² are drawn "
        "there; grey: given up before the limit was seen, so that the loss is an upper bound. "
        + (f"{failed} runs failed and have no dots. " if failed else "")
        + "Lines: σ², and the expectations of "
        "the two half-data fits to leading order, σ²(1 − 2d/n) and σ²(1 + 2d/n). Right: how the runs end. After the first figure of arXiv 2410.02348.",
    )


def _samples(ax: Axes, sizes: list[int]) -> None:
    """A logarithmic axis of n with some of the sizes as ticks."""
    ax.set_xscale("log")
    some = sizes if len(sizes) <= 6 else sizes[::2]
    ax.xaxis.set_major_locator(FixedLocator(some))
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.minorticks_off()
    ax.set_xlabel("samples $n$")


def _plateau_plate(out: Path, runs: list[tuple[SetUp, Trajectory, Array]]) -> Plate:
    fig, (left, right) = plot.figure(1, 2)
    for (_, _, history), label in zip(runs, ("a start that leaves", "a start that stays"), strict=True):
        left.semilogx(history[1:, 0], 2 * history[1:, 1] / SIGMA**2, label=label)
    fits = runs[0][0].fits
    left.axhline(2 * fits.loss / SIGMA**2, color="0.4", linestyle=":", linewidth=0.8, label="two fits")
    left.set_ylim(0, 1.5 * 2 * fits.loss / SIGMA**2)
    left.set_xlim(left=1.0)
    left.set_xlabel("time $t$")
    left.set_ylabel("train loss $2L$ ($\\sigma^2$)")
    left.legend(loc="lower left")
    setup, _, history = runs[0]
    times = np.geomspace(1.0, history[-1, 0], 300)
    run = setup.flow(1e-9, t=times)
    nearest = int(np.argmin([setup.distance(theta) for theta in run.theta]))
    at, state = times[nearest], run.theta[nearest]
    rates = threshold.escape_rates(setup.model, setup.problem, state, fits)
    a = setup.model.outer_layer(run.theta)[:, 0]
    for j in range(setup.width):
        right.loglog(times, np.abs(a[:, j]), color="C1" if rates[j] > 1e-3 else "0.75", linewidth=0.7)
    right.axvline(at, color="0.4", linestyle=":", linewidth=0.8)
    right.set_xlabel("time $t$")
    right.set_ylabel("$|a_j|$")
    handles = [
        Line2D([], [], color="C1", label="grow beside the two fits"),
        Line2D([], [], color="0.75", label="others"),
        Line2D([], [], color="0.4", linestyle=":", linewidth=0.8, label="closest to the fits"),
    ]
    right.set_ylim(top=100)
    right.legend(handles=handles, loc="upper left")
    return Plate(
        plot.save(fig, out / "plateau")[1],
        "A plateau that is a saddle: d = 5, n = 20, one data set and two starts. Left: the loss comes to rest at that of the two fits "
        f"(2L = {2 * fits.loss / SIGMA**2:.4g} σ²); one start leaves it, the other ends there. Right: outer weights of the start that "
        "leaves; coloured: neurons that the residuals of the two fits make grow (d ln|a_j|/dt > 0.001 at the dotted time). After "
        "arXiv 2410.02348.",
    )


def _concentration_plate(out: Path) -> Plate:
    fig, ax = plot.figure()
    for d, color in ((2, "C0"), (5, "C1")):
        late = concentration(d, SIZES)
        label = f"$d = {d}$, " + ("all cones" if d == 2 else "2,000 directions")
        ax.loglog(SIZES, late.mean(axis=1), "o-", color=color, linewidth=0.8, label=label)
        ax.fill_between(SIZES, late.min(axis=1), late.max(axis=1), color=color, alpha=0.2, linewidth=0)
    ax.loglog(SIZES, 6 / np.sqrt(np.array(SIZES)), ":", color="0.4", label="$n^{-1/2}$")
    ax.set_xlabel("samples $n$")
    ax.set_ylabel("$\\sup_w \\|D_n(w) - \\mathrm{E}\\,D\\|$")
    ax.legend(loc="lower left")
    return Plate(
        plot.save(fig, out / "concentration")[1],
        "Concentration of the extremal vectors: largest distance of D_n(w) = (1/n) Σ_{w·x_i > 0} y_i x_i from its mean, which is "
        "½ E[xxᵀ] β for every w; mean and range over 8 data sets. In the plane over all cones, else over sampled directions. "
        "After arXiv 2410.02348.",
    )
