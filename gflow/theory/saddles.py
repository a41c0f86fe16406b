r"""From saddle to saddle: flows of diagonal networks from small starts.

As the start shrinks, the dual variable η = −∫∇_β L dt, counted in thresholds T ~ log(1/α) (depth 2) or α^{2−D}, follows

    dη/dt = −∇L(β),    η_i ∈ [−T, T],  = T where β_i > 0,  = −T where β_i < 0:

β stays at the minimiser of L under the signs that the coordinates with |η_i| = T allow, until another η_i gets to its
threshold.  Coordinates may leave again.  For the square loss each stay is a linear motion of η, and each minimiser
a non-negative least-squares problem.  Sources: arXiv 2304.00488 (u ∘ v); for β ≥ 0 arXiv 2208.14673.

The thresholds come from :mod:`gflow.theory.diagonal`: a branch a² e^{κη} is of order 1 at η = 2 log(1/a) / κ, and
(a^{2−D} − κη)^{−p} at η = a^{2−D} / κ.  With a = α / √2 (u = √2 α, v = 0) the first is counted from √2 a, as the source does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, product
from math import comb, log10
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import nnls

from gflow._check import finite_array, plain_array, positive, positive_int
from gflow.problem import Problem
from gflow.theory.diagonal import branches, family, no_decay, rate_of, regression
from gflow.theory.prediction import Hypothesis, Prediction, Refused, times_of

Array = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)
#: A gradient below this, relative to its terms, is rounding; so is a distance from a threshold.
_ROUNDING = 1e-10
#: 1 / log(1/α), or the α^(D−2) of larger depth, up to which a start counts as small.
_SMALL = 0.05


class Event(NamedTuple):
    """A coordinate that starts (``kind`` "activates") or ceases ("deactivates") to be nonzero at a jump."""

    time: float
    coordinate: int
    kind: str


@dataclass(frozen=True, eq=False)
class Saddles:
    """The limit of flows from small starts: constant but for jumps.

    Attributes
    ----------
    times : array (K,)
        Times of the jumps, in units in which η_i reaches ``up`` or −``down``.
    beta : array (K + 1, d)
        Where the flow stays: before the first jump (0), after it, …; the last is a minimum of the loss
        under the signs that the thresholds allow.
    dual : array (K, d)
        η at the jumps.
    up, down : array (d,)
        Thresholds of η, upwards and downwards; inf where there is none.
    loss : array (K + 1,)
        Loss there.
    velocity : array (K + 1, d)
        dη/dt = −∇L there.
    tie : float
        Least distance between two coordinates' arrivals at a jump, relative to the time: 0 is a tie.
    degenerate : bool
        Whether the last jump leaves a coordinate with β_i = 0 at its threshold: flows come close to it only
        like 1 / log(1/α).
    """

    times: Array
    beta: Array
    dual: Array
    up: Array
    down: Array
    loss: Array
    velocity: Array
    tie: float
    degenerate: bool

    @property
    def events(self) -> list[Event]:
        """What each jump changes, in order."""
        found = []
        for time, before, after in zip(self.times, self.beta[:-1], self.beta[1:], strict=True):
            for i in np.flatnonzero((before != 0) != (after != 0)):
                found.append(Event(float(time), int(i), "activates" if after[i] != 0 else "deactivates"))
        return found

    def at(self, t: ArrayLike) -> Array:
        """β (T, d) at times t ≥ 0 (T,), also inf; at a jump the value after it."""
        return self.beta[np.searchsorted(self.times, times_of(t, infinite=True), side="right")]

    def dual_at(self, t: ArrayLike) -> Array:
        """η (T, d) at finite times t ≥ 0 (T,)."""
        when = times_of(t)
        k = np.searchsorted(self.times, when, side="right")
        times = np.concatenate([[0.0], self.times])[k]
        return np.vstack([np.zeros_like(self.up), self.dual])[k] + (when - times)[:, None] * self.velocity[k]

    def average(self, t: ArrayLike) -> Array:
        """Time average (1/t) ∫₀ᵗ β ds (T, d) at times t ≥ 0 (T,); at 0 and inf its limits, the first and last β."""
        when = times_of(t, infinite=True)
        inside = (when > 0) & (when < np.inf)
        starts = np.concatenate([[0.0], self.times])
        ends = np.append(self.times, np.inf)
        out = self.at(when)
        stay = np.clip(np.minimum(ends, when[inside, None]) - starts, 0.0, None)
        out[inside] = stay / when[inside, None] @ self.beta
        return out

    def lasso_defect(self, t: ArrayLike) -> Array:
        """By how much (T,) the time average misses being a solution of the Lasso with λ = 1 / t.

        The loss being quadratic, η(t) = −t ∇L(average) always.  So the average minimises
        L(β) + (1/t) Σ (up_i β_i⁺ + down_i β_i⁻) if and only if η_i is at its threshold wherever the average is not
        0: this is the largest relative distance from it.  It is 0 as long as no coordinate has deactivated.
        """
        mean, eta = self.average(t), self.dual_at(t)
        wanted = np.where(mean > 0, self.up, -self.down)
        with np.errstate(invalid="ignore"):
            missed = np.where(mean != 0, np.abs(eta / wanted - 1), 0.0)
        return missed.max(axis=-1)


def successive(
    X: ArrayLike, y: ArrayLike, factor: float, up: ArrayLike = 1.0, down: ArrayLike = 1.0
) -> Saddles:
    r"""The successive saddles and jump times of L = factor ‖X β − y‖².

    Parameters
    ----------
    X : array (n, d)
    y : array (n,)
    factor : float
        > 0.
    up, down : float or array (d,)
        Thresholds > 0 of η, inf for a direction that is closed.  1 and 1: times are those of the product form in
        units of log(1/α); up 1, down inf: of β = w², in units of log(1/β(0)), L four times as large.

    Returns
    -------
    Saddles

    Raises
    ------
    ValueError
        If an argument is invalid.
    gflow.theory.Refused
        If the jumps do not end, as ties and rounding may bring about, or come later than the largest float.

    Notes
    -----
    Algorithm 1 of arXiv 2304.00488, with thresholds of their own.  Each stay solves a non-negative least-squares
    problem by Lawson and Hanson's active set, its support's equations once more to rounding.
    """
    x, right = finite_array("X", X, ("n", "d")), finite_array("y", y, ("n",))
    if len(right) != len(x):
        raise ValueError(f"y must have one entry per row of X: X has {len(x)}, y has {len(right)}")
    f, d = positive("factor", factor), x.shape[1]
    high, low = _thresholds("up", up, d), _thresholds("down", down, d)
    scale = 2 * f * np.linalg.norm(x, axis=0) * max(float(np.linalg.norm(right)), 1e-300)

    beta, eta, t = np.zeros(d), np.zeros(d), 0.0
    velocity = 2 * f * x.T @ right
    times: list[float] = []
    duals: list[Array] = []
    stays, speeds, tie, degenerate = [beta], [velocity], np.inf, False
    for _ in range(20 * d + 20):
        moving = np.abs(velocity) > _ROUNDING * scale
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            wait = np.where(moving, (np.where(velocity > 0, high, -low) - eta) / velocity, np.inf)
        if not np.isfinite(wait.min()):
            awaited = moving & np.isfinite(np.where(velocity > 0, high, low))
            if not awaited.any():
                break
            raise Refused(_late(float(np.abs(velocity[awaited]).max()), float(np.minimum(high, low).min())))
        first = int(np.argmin(wait))
        step = max(float(wait[first]), 0.0)
        t += step
        if not np.isfinite(t):
            raise Refused(_late(abs(float(velocity[first])), float(np.minimum(high, low).min())))
        tie = min(tie, float(np.min(np.delete(wait, first) - step, initial=np.inf)) / t)
        eta = eta + step * velocity
        near = _ROUNDING * np.where(np.isinf(np.minimum(high, low)), 0.0, np.minimum(high, low))
        at_top, at_bottom = eta >= high - near, eta <= -low + near
        eta = np.where(at_top, high, np.where(at_bottom, -low, eta))
        signs = at_top.astype(np.float64) - at_bottom
        beta = _signed_least_squares(x, right, signs)
        velocity = 2 * f * x.T @ (right - x @ beta)
        velocity[beta != 0] = 0.0
        velocity[np.abs(velocity) <= _ROUNDING * scale] = 0.0
        held = (signs != 0) & (beta == 0)
        degenerate = bool(np.any(held & (velocity == 0)))
        times.append(t)
        stays.append(beta)
        duals.append(eta)
        speeds.append(velocity)
    else:
        raise Refused(
            f"successive saddles (arXiv 2304.00488) refused: no end after {len(times)} jumps; the least distance "
            f"between two arrivals is {tie:.2g}, relative"
        )
    path = np.array(stays)
    return Saddles(
        np.array(times),
        path,
        np.array(duals).reshape(len(times), d),
        high,
        low,
        f * np.sum((path @ x.T - right) ** 2, axis=1),
        np.array(speeds),
        tie,
        degenerate,
    )


def _late(speed: float, threshold: float) -> str:
    return (
        "successive saddles (arXiv 2304.00488) refused: a jump later than the largest float, 1.8e308: "
        f"a dual variable moves at {speed:.3g}, and the least threshold is {threshold:.3g}"
    )


def _thresholds(name: str, value: ArrayLike, size: int) -> Array:
    wanted = f"() or ({size},)"
    array = plain_array(name, value, wanted).astype(np.float64)
    if array.shape not in ((), (size,)):
        raise ValueError(f"{name} must have shape {wanted}; got {array.shape}")
    array = np.array(np.broadcast_to(array, (size,)))
    if not np.all(array > 0):
        raise ValueError(f"{name} must be > 0; got {array.min():g}")
    return array


def _signed_least_squares(x: Array, y: Array, signs: Array) -> Array:
    """argmin ‖X β − y‖ over β_i of the sign, or 0, given by signs."""
    active = np.flatnonzero(signs)
    columns = x[:, active] * signs[active]
    rough, _ = nnls(columns, y, maxiter=max(100, 30 * len(active)))
    support = np.flatnonzero(rough > 1e-12 * rough.max(initial=0.0))
    exact = np.zeros(len(active))
    exact[support] = np.linalg.lstsq(columns[:, support], y, rcond=None)[0]
    out = np.zeros(x.shape[1])
    out[active] = signs[active] * (exact if np.all(exact >= 0) else rough)
    return out


def incremental(M: ArrayLike, r: ArrayLike) -> Saddles:
    """Successive saddles of dθ/dt = θ ∘ (r − M θ) from θ(0) = ε, ε → 0, in units of log(1/ε).

    Parameters
    ----------
    M : array (d, d)
        Symmetric, positive definite.  If its entries off the diagonal are ≤ 0, no coordinate deactivates.
    r : array (d,)

    Returns
    -------
    Saddles
        In ``beta`` the θ ≥ 0.

    Raises
    ------
    ValueError
        If M is not symmetric and positive definite, or the shapes do not fit.

    Notes
    -----
    That is the flow of β = w² with M = XᵀX, r = Xᵀy, its time multiplied by 8 · factor.  Source: arXiv 2208.14673.
    """
    m = finite_array("M", M, ("d", "d"))
    right = finite_array("r", r, (len(m),))
    if m.shape[0] != m.shape[1] or np.abs(m - m.T).max() > 1e-12 * np.abs(m).max():
        raise ValueError("M must be symmetric")
    try:
        root = cholesky(0.5 * (m + m.T))
    except np.linalg.LinAlgError as error:
        raise ValueError(
            f"M must be positive definite; its least eigenvalue is {np.linalg.eigvalsh(m)[0]:.3g}"
        ) from error
    return successive(root, solve_triangular(root, right, trans=1), 0.5, down=np.inf)


# ---- general position --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GeneralPosition:
    """How far the columns of X, with any signs, are from an affine dependence of at most n + 1 of them.

    Attributes
    ----------
    least : float
        The least ratio of singular values, smallest to largest, of the matrices looked at: 0 is a dependence.
    looked_at, total : int
        How many of the sets of signed columns were looked at, of how many.
    """

    least: float
    looked_at: int
    total: int

    @property
    def exact(self) -> bool:
        """Whether all sets were looked at."""
        return self.looked_at == self.total

    def __str__(self) -> str:
        how = "all" if self.exact else "a random sample of"
        total = str(self.total) if self.total < 10**9 else f"10^{log10(self.total):.0f}"
        return f"{how} {self.looked_at} of {total} sets of signed columns"


def general_position(X: ArrayLike, most: int | None = None, seed: int = 0) -> GeneralPosition:
    """Check that no column ±x_j is in the affine span of k ≤ min(n, d) other signed columns.

    Parameters
    ----------
    X : array (n, d)
    most : int, optional
        So many sets are looked at: all of them if there are no more, else a random sample.  Default: 4000, and fewer
        (50 at least) of more than 60 columns, which take about a second.
    seed : int
        Of the sample.

    Returns
    -------
    GeneralPosition
        Of a sample the ``least`` is no proof: a dependence of columns that it does not hold goes unseen.

    Raises
    ------
    ValueError
        If an argument is invalid.

    Notes
    -----
    A dependence of fewer columns is one of any min(n + 1, d) that hold them; so sets of that many suffice.  Their
    number is C(d, min(n + 1, d)) 2^min(n, d − 1).
    """
    x = finite_array("X", X, ("n", "d"))
    n, d = x.shape
    count = min(n + 1, d)
    most = max(50, min(4000, 10**9 // count**3)) if most is None else positive_int("most", most)
    total = comb(d, count) * 2 ** (count - 1)
    size = float(np.abs(x).max())
    scaled = x / size if size > 0 else x
    rng = np.random.default_rng(seed)
    sets = _all_sets(d, count) if total <= most else _some_sets(d, count, most, rng)
    least, looked = np.inf, 0
    while chunk := list(islice(sets, max(1, 10**6 // (count * (n + 1))))):
        columns, signs = (np.array(part) for part in zip(*chunk, strict=True))
        stacked = np.ones((len(chunk), n + 1, count))
        stacked[:, :n] = scaled[:, columns].transpose(1, 0, 2) * signs[:, None, :]
        s = np.linalg.svd(stacked, compute_uv=False)
        least = min(least, float(np.min(s[:, -1] / s[:, 0])))
        looked += len(chunk)
    return GeneralPosition(least, looked, total)


def _all_sets(d: int, count: int) -> Iterator[tuple[Sequence[int], Sequence[float]]]:
    """All sets of columns with all signs, up to a common one."""
    for columns in combinations(range(d), count):
        for signs in product((1.0, -1.0), repeat=count - 1):
            yield columns, (1.0, *signs)


def _some_sets(d: int, count: int, most: int, rng: np.random.Generator) -> Iterator[tuple[Any, Any]]:
    for _ in range(most):
        yield rng.choice(d, count, replace=False), rng.choice([-1.0, 1.0], count)


# ---- of a model --------------------------------------------------------------------------------------------


def thresholds(model: Any, theta0: ArrayLike) -> tuple[Array, Array]:
    """Upward and downward thresholds (d,) of η = −∫∇_β L from a start; inf for a branch that is 0.

    From an equal start: log(1/α) for u = √2 α, v = 0; ½ log(1/α) for w² and w₊² − w₋²; α^{2−D} / (D (D − 2)) beyond.

    Raises
    ------
    gflow.theory.Refused
        If a weight is so large (at depth 2: 1 or more) that it has no threshold, or so small (at depth ≥ 3) that the
        threshold is beyond the largest float.
    ValueError
        If theta0 does not fit the model.
    """
    form, depth = family(model)
    rate, found = rate_of(form, depth), []
    for log_w in branches(model, theta0):
        if depth == 2:
            level = -2 / rate * (log_w + (0.5 * np.log(2) if form == "product" else 0.0))
        else:
            with np.errstate(over="ignore"):
                level = np.exp((2 - depth) * log_w) / rate
            lost = np.isinf(level) & (log_w > -np.inf)
            if lost.any():
                decades = (2 - depth) * float(log_w[lost].min()) / np.log(10)
                raise Refused(
                    "successive saddles (arXiv 2304.00488) refused: a threshold α^(2 − D) / (D (D − 2)) beyond the "
                    f"largest float, 1.8e308: a weight of {np.exp(log_w[lost].min()):.3g} at depth {depth} has "
                    f"1e{decades:.0f} / {rate:.0f}"
                )
        if not np.all(level > 0):
            raise Refused(
                "successive saddles (arXiv 2304.00488) refused: small start: a weight of "
                f"{np.exp(log_w.max()):.3g} is no small start"
            )
        found.append(level)
    return found[0], found[1]


def saddles(model: Any, problem: Problem, theta0: ArrayLike) -> Saddles:
    """Successive saddles and jump times of a flow, in its own time.

    Parameters
    ----------
    model : Diagonal
    problem : Problem
        Samples with one output, square loss, any factor.
    theta0 : array (P,)
        Small start; its shape sets each coordinate's threshold.

    Returns
    -------
    Saddles
        Divide ``times`` by log(1/α) for the accelerated time of arXiv 2304.00488 (u = √2 α, v = 0): there jump times do
        not depend on α, and are twice those of w₊² − w₋² with the same problem.

    Raises
    ------
    gflow.theory.Refused
        If the start is not small, the jumps do not end, or a threshold or a jump is beyond the largest float.
    ValueError
        If the problem is another one or does not fit theta0.
    """
    up, down = thresholds(model, theta0)
    x, y = regression(problem, len(up), "square")
    assert problem.factor is not None
    return successive(x, y, problem.factor, up, down)


def path(model: Any, problem: Problem, theta0: ArrayLike, force: bool = False) -> Prediction:
    """β(t) from a small start: constant between the jumps.

    Parameters
    ----------
    model, problem, theta0
        As in :func:`saddles`.
    force : bool
        Compute the path although a hypothesis fails.

    Returns
    -------
    Prediction
        Of the observable ``"end_to_end"`` (T, 1, d), also at t = inf.

    Raises
    ------
    gflow.theory.Refused, ValueError
        As :func:`saddles`.

    Notes
    -----
    A limit of small starts, with no bound at a given one (``bound`` is inf).  Measured, jumps are off by c / log(1/α) of
    their time, and stays by a power of α.  General position is checked on all sets of columns where these are few, else
    on a sample; the hypothesis' name says which.
    """
    found = saddles(model, problem, theta0)
    up, down = thresholds(model, theta0)
    form, depth = family(model)
    nearest = float(np.minimum(up, down).min()) * rate_of(form, depth)
    small = 2 / nearest if depth == 2 else 1 / nearest
    position = general_position(problem.X)

    def formula(t: Array) -> Array:
        return found.at(t)[:, None, :]

    def unknown(t: Array) -> Array:
        return np.full(len(t), np.inf)

    def per(gap: float) -> float:
        return _EPS / gap if gap > 0 else np.inf

    hypotheses = (
        Hypothesis(
            "small start (defect: 1 / log(1/α); α^(D−2) at depth ≥ 3)",
            small,
            tolerance=_SMALL,
            effect=unknown,
        ),
        Hypothesis(f"general position, in {position} (defect: rounding / gap)", per(position.least)),
        Hypothesis("no two coordinates at once (defect: rounding / gap)", per(found.tie)),
        no_decay(problem),
    )
    reference = "arXiv 2208.14673" if form == "power" else "arXiv 2304.00488"
    return Prediction("end_to_end", hypotheses, reference, formula, forced=force)
