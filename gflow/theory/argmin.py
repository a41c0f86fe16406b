r"""The minimiser of the potential Q of a mirror map among the solutions of X β = y, however small the start.

With z(β) of :mod:`gflow.theory.diagonal` the condition is z(β) = z(0) + dz/dη Xᵀν for some ν.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import qr, solve_triangular
from scipy.optimize import nnls

from gflow._blas import one_thread
from gflow._check import finite_array
from gflow.theory.diagonal import Mirror
from gflow.theory.prediction import Refused

Array = NDArray[np.float64]
_EPS = float(np.finfo(np.float64).eps)
#: Newton steps for one value of the continuation, and the most values.
_CORRECTIONS, _VALUES = 14, 600
#: Relative defects to which the conditions are solved on the way, and in the end.
_ON_THE_WAY, _END = 1e-6, 3e-13
#: Relative to the largest weight; the second where the first, safe from rounding, converges too slowly.
_DAMPINGS = (1e-15, 1e-21)
#: Entries of β below this, relative to the largest, are hardly told from rounding in X β: they follow z.
_COUNTS = 1e-11
#: log(y / α^D) that floats hold; and of 1 / (1 − |z|) beyond which, at depth ≥ 3, α makes no difference.
_FITS, _POLE = 680.0, 120.0


@dataclass(frozen=True, eq=False)
class Argmin:
    """The minimiser of Q among the least-squares solutions of X β = y.

    Attributes
    ----------
    beta : array (d,)
    dual : array (d,)
        z − z(0) = dz/dη · Xᵀν at the minimiser: η in units in which it is of order 1, or log(1/α) at depth 2.
    kkt : float
        Largest |z(β) − z(0) − dz/dη · Xᵀν|, relative to the largest |z| (at least 1): 0 at a minimiser.
    infeasibility : float
        ‖V (β − β_ls)‖ / ‖β_ls‖ on the row space of X: how far β is off the solutions, which rounding sets.
    residual : float
        ‖X β_ls − y‖ / ‖y‖ of the least-squares solution: 0 if there is an interpolator.
    steps : int
        Newton steps.
    """

    beta: Array
    dual: Array
    kkt: float
    infeasibility: float
    residual: float
    steps: int


def argmin(m: Mirror, X: ArrayLike, y: ArrayLike) -> Argmin:
    r"""Minimise Q(β) over the least-squares solutions of X β = y.

    Parameters
    ----------
    m : Mirror
        From :func:`gflow.theory.diagonal.mirror`: any start, shaped or unequal, however small.
    X : array (n, d)
    y : array (n,)

    Returns
    -------
    Argmin
        With its defects measured: they are of rounding size but where the minimiser is at the border that coordinates of
        one branch have at 0.

    Raises
    ------
    ValueError
        If X, y and the mirror do not fit each other, or there is no solution of the signs that coordinates of one
        branch have; the error says how far the nearest one is.
    gflow.theory.Refused
        If Newton's method does not converge: with coordinates of one branch the minimiser may have entries 0, which
        no start approaches but with η → −∞; so may it be where the start's sizes span 20 decades or more.

    Notes
    -----
    Newton's method in (β, ν) for z(β) = z(0) + dz/dη Xᵀν and Xβ = y, along y(s) = (1 − s) Xβ(0) + s y with log s
    as the parameter, in which ν is nearly linear: rows of the step are the coordinates' own, weighted by dβ/dz, whose
    range is that of β / α².  Numbers in y (see :mod:`gflow.theory.diagonal`), so that α = 1e-100 is no hindrance.
    Entries of β below rounding of the largest are those for a y that differs from the given one by the
    ``infeasibility``.
    """
    x = finite_array("X", X, ("n", "d"))
    right = finite_array("y", y, ("n",))
    if len(right) != len(x):
        raise ValueError(f"y must have one entry per row of X: X has {len(x)}, y has {len(right)}")
    if x.shape[1] != len(m.start):
        raise ValueError(f"X must have the {len(m.start)} columns of the mirror; it has {x.shape[1]}")
    x = np.where(m.moving, x, 0.0)
    rows, goal, residual = row_space(x, right)
    start = m.beta0
    if len(rows) == 0:
        return Argmin(start, np.zeros_like(start), 0.0, 0.0, residual, 0)
    _check_signs(m, rows, goal)
    largest = float(np.abs(goal - rows @ start).max())
    apart = np.log(largest) - m.depth * float(m.log_alpha[m.moving].min()) if largest > 0 else 0.0
    excess = apart - (_FITS if m.depth == 2 else min(_FITS, _POLE * m.power))
    if m.depth == 2 and excess > 0:
        raise ValueError(
            f"theta0 must not be so small that alpha² and y are more than {_FITS / np.log(10):.0f} decades apart; "
            f"they are {apart / np.log(10):.0f}"
        )
    with (
        one_thread()
    ):  # more of them do not pay in its narrow factorisations, and wait for each other on a busy machine
        return _Newton(m, rows, goal, max(excess, 0.0) / m.depth).solve(residual)


def row_space(x: Array, y: Array) -> tuple[Array, Array, float]:
    """Orthonormal rows V (r, d) of X's row space, V β of the least-squares solutions, and their residual / ‖y‖."""
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    rank = int(np.sum(s > _EPS * max(x.shape) * s[0])) if s.size and s[0] > 0 else 0
    u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    inside = u.T @ y
    size = float(np.linalg.norm(y))
    return vt, inside / s, float(np.linalg.norm(y - u @ inside)) / size if size > 0 else 0.0


def _check_signs(m: Mirror, rows: Array, goal: Array) -> None:
    """Refuse where coordinates of one branch leave no solution: by non-negative least squares."""
    if np.any(np.abs(m.side) == 1):
        both = m.side == 0
        signed = rows * np.where(m.side == -1, -1.0, 1.0)
        columns = np.hstack([signed[:, m.moving], -rows[:, both]])
        _, off = nnls(columns, goal, maxiter=30 * columns.shape[1])
        size = float(np.linalg.norm(goal))
        if off > 1e-10 * size:
            raise ValueError(
                "no minimum of the square loss has the signs that coordinates of one branch keep; the nearest is "
                f"off by {off / size:.3g}, relative"
            )


class _Newton:
    """Newton's method with continuation for one problem."""

    def __init__(self, m: Mirror, rows: Array, goal: Array, raised: float) -> None:
        # where 1 − |z| of what counts is below e^−120, a log α raised so far has the same z, and the same β but for
        # entries far below rounding, which are computed from z in the end
        self.true, m = m, replace(m, log_alpha=m.log_alpha + raised) if raised > 0 else m
        self.m, self.rows, self.goal = m, rows, goal
        self.base = rows @ m.beta0
        scale = np.where(m.moving, m.log_scale, -np.inf)
        self.columns = rows * np.exp(scale - scale.max())  # of dz/dν, ν in units of the largest scale
        self.log_ratio = scale - scale.max()
        self.z0 = m.z_of(m.start)
        self.steps, self.damping = 0, _DAMPINGS[0]

    def solve(self, residual: float) -> Argmin:
        y, nu = self.m.start.copy(), np.zeros(len(self.rows))
        dy, dnu = self.tangent(y)
        largest = float(np.abs(dy).max())
        # the start of the continuation: where y has moved by ½ if it moves on as it sets out
        log_s = min(0.0, -np.log(2 * largest)) if largest > 0 else 0.0
        y, nu = y + np.exp(log_s) * dy, nu + np.exp(log_s) * dnu
        found = self.correct(y, nu, log_s, _END if log_s == 0 else _ON_THE_WAY)
        while found is None and log_s > -800:
            log_s -= 1.0
            y, nu = self.m.start + np.exp(log_s) * dy, np.exp(log_s) * dnu
            found = self.correct(y, nu, log_s, _ON_THE_WAY)
        if found is None:
            raise self.refused("does not converge near the start")
        y, nu, _ = found
        stride = 0.5
        for _ in range(_VALUES):
            if log_s >= 0.0:
                break
            dy, dnu = self.tangent(y)
            step = min(stride, -log_s)
            aim = log_s + step
            factor = np.exp(log_s) * step
            tolerance = _END if aim == 0 else _ON_THE_WAY
            found = self.correct(y + factor * dy, nu + factor * dnu, aim, tolerance)
            if found is None:
                stride = step / 4
                if stride < 1e-9 and log_s > -1e-6:
                    break  # the end itself resists, by rounding: its defects are measured
                if stride < 1e-9:
                    raise self.refused(f"does not converge beyond {np.exp(log_s):.3g} of the way")
                continue
            y, nu, used = found
            log_s = aim
            stride = step * (2.0 if used <= 4 else 1.0 if used <= 8 else 0.5)
        else:
            raise self.refused(f"with continuation does not end after {_VALUES} values")
        return self.result(y, nu, residual)

    def refused(self, why: str) -> Refused:
        sizes = self.true.log_alpha[self.true.moving] / np.log(10)
        spread = f"; the sizes α_i of the start span {np.ptp(sizes):.0f} decades"
        if self.m.depth == 2:
            spread += ": gflow.flow(…, t=np.inf, coords='log') may get to the same limit"
        return Refused(f"argmin Q refused: Newton's method {why}{spread}")

    def target(self, log_s: float) -> Array:
        return self.goal if log_s == 0 else self.base + np.exp(log_s) * (self.goal - self.base)

    def factor(self, y: Array) -> tuple[Array, NDArray[np.int64], float]:
        """Pivoted R of the weighted columns, with the weights' logarithm and the scale taken out of them."""
        log_w = self.m.log_slope(y) + self.log_ratio
        top = log_w.max()
        root = np.exp(0.5 * (log_w - top))
        order = np.argsort(-root)
        weighted = (self.rows * root).T[order]
        # directions that only weights below rounding see are damped: what they decide is below rounding too
        damped = np.vstack([weighted, np.sqrt(self.damping) * np.eye(len(self.rows))])
        r, pivot = qr(damped, mode="r", pivoting=True, check_finite=False)
        return r[: len(self.rows)], pivot, float(top)

    def apply(self, factors: tuple[Array, NDArray[np.int64], float], right: Array) -> Array:
        r, pivot, top = factors
        w = solve_triangular(r, right[pivot] * np.exp(-top), trans=1, check_finite=False)
        out = np.empty_like(w)
        out[pivot] = solve_triangular(r, w, check_finite=False)
        return out

    def tangent(self, y: Array) -> tuple[Array, Array]:
        """dy and dν by s."""
        dnu = self.apply(self.factor(y), self.goal - self.base)
        return (self.columns.T @ dnu) * np.exp(-self.m.log_stretch(y)), dnu

    def correct(self, y: Array, nu: Array, log_s: float, tolerance: float) -> tuple[Array, Array, int] | None:
        """Newton's method at one s; None where it fails."""
        for self.damping in _DAMPINGS:
            found = self.newton(y, nu, log_s, tolerance)
            if found is not None:
                break
        self.damping = _DAMPINGS[0]
        return found

    def newton(self, y: Array, nu: Array, log_s: float, tolerance: float) -> tuple[Array, Array, int] | None:
        """The same with one damping."""
        aim = self.target(log_s)
        for used in range(_CORRECTIONS):
            beta = self.m.beta_of(y)
            if not np.abs(beta).max() < 1e300:
                return None
            gap = aim - self.rows @ beta
            dual = self.z0 + self.columns.T @ nu
            defect = dual - self.m.z_of(y)
            small = np.abs(defect).max() <= tolerance * max(1.0, np.abs(dual).max())
            if small and np.abs(gap).max() <= tolerance * np.abs(beta).max():
                return y, nu, used
            self.steps += 1
            with np.errstate(over="ignore"):
                slope = np.exp(self.m.log_slope(y))
            defect, first = self.heavy(beta, slope, defect)
            dnu = self.apply(self.factor(y), gap - self.rows @ (slope * defect))
            dz = defect + self.columns.T @ dnu
            dnu += first
            y, nu = self.moved(y, dz, beta, slope), nu + dnu
            if not (np.isfinite(y).all() and np.isfinite(nu).all()):
                return None
        return None

    def heavy(self, beta: Array, slope: Array, defect: Array) -> tuple[Array, Array]:
        """A step of ν that brings z where rounding of z would move β by more than β counts; what is left of z."""
        near = np.flatnonzero(slope * 1e-12 > np.abs(beta))
        if len(near) == 0:
            return defect, np.zeros(len(self.rows))
        step = np.linalg.lstsq(self.columns[:, near].T, -defect[near], rcond=1e-12)[0]
        left = defect + self.columns.T @ step
        left[near] = np.where(np.abs(left[near]) <= 1e-14, 0.0, left[near])
        return left, step

    def moved(self, y: Array, dz: Array, beta: Array, slope: Array) -> Array:
        """y after the step: linear in β where β counts and y is its logarithm, else in z, or in y near the pole."""
        with np.errstate(all="ignore"):
            share = slope * dz / beta
            per = np.exp(self.m.log_slope(y) + self.m.log_stretch(y)) / np.abs(beta)  # d log|β| / dy
            in_beta = np.sign(beta) * np.log1p(share) / per
            in_z = self.m.y_of(self.m.z_of(y) + dz) - y
            in_y = np.clip(dz * np.exp(-self.m.log_stretch(y)), -2.0, 2.0)
        counts = (np.abs(y) > 1) & (np.abs(beta) > _COUNTS * np.abs(beta).max())
        good = counts & (share > -0.98) & (share < 50)
        return y + np.where(good, in_beta, np.where(np.abs(in_z) <= 2, in_z, in_y))

    def result(self, y: Array, nu: Array, residual: float) -> Argmin:
        beta = self.m.beta_of(y)
        dual = self.columns.T @ nu
        size = float(np.linalg.norm(beta))
        counts = np.abs(beta) > _COUNTS * np.abs(beta).max()
        # rounding of y, which is log β, is taken out of β itself where that does not cost the other condition
        slope = np.where(counts, np.exp(self.m.log_slope(y)), 0.0)
        polished = beta + slope * (self.columns.T @ self.apply(self.factor(y), self.goal - self.rows @ beta))
        if np.all(np.sign(polished) == np.sign(beta)) and self.kkt(polished, y, dual) <= _END:
            beta = polished
        kkt, off = self.kkt(beta, y, dual), self.off(beta)
        beta = np.where(np.abs(y) < 18, self.true.beta_of(y), beta) if self.true is not self.m else beta
        return Argmin(beta, dual, kkt, off / size if size > 0 else off, residual, self.steps)

    def kkt(self, beta: Array, y: Array, dual: Array) -> float:
        counts = np.abs(beta) > _COUNTS * np.abs(beta).max()
        z = np.where(counts, self.m.z_of(self.m.y_at(np.where(counts, beta, self.m.beta0))), self.m.z_of(y))
        return float(np.max(np.abs(z - self.z0 - dual)) / max(1.0, np.abs(z).max()))

    def off(self, beta: Array) -> float:
        return float(np.linalg.norm(self.goal - self.rows @ beta))
