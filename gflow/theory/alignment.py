"""Early alignment: where the neurons of a two-layer (leaky) ReLU network turn before anything is learned.

From a small start the outputs are all but zero, and every neuron moves by itself: with the pulls
p_k = −∂L/∂f(x_k) at f = 0,

    w' = a D(w),  a' = w · D(w),  D(w) = Σ_k σ'(w·x_k) p_k x_k,

so that its direction climbs the potential G(w) = w · D(w) on the sphere (a > 0), or descends it (a < 0).  D is constant
between the hyperplanes w·x_k = 0, and the motion there is made of cosh and sinh; it crosses hyperplanes and slides
along them at times in closed form (:class:`Path`).  Neurons end dead (D = 0) or along an extremal vector: a D that lies
in the cone where it holds, or in the kink along which it slides.

arXiv 1803.08367, 2401.10791, 2410.02348.  The bounds are our own versions of those of 2401.10791.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from math import comb
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import lsq_linear

from gflow._check import (
    finite_array,
    generator,
    non_negative,
    of_type,
    positive,
    positive_int,
)
from gflow.models.relu import TwoLayerReLU, hyperplanes
from gflow.problem import Problem
from gflow.theory.prediction import Hypothesis, Prediction, times_of

Array = NDArray[np.float64]
Signs = NDArray[np.int8]

#: |cos| below which a direction lies in a hyperplane, and a velocity along one.
ON_KINK = 1e-10
#: A vector below this, relative to the sum of its terms, is zero.
_ZERO = 1e-12
#: ... and 1 − |cos| below which w points against its pull, and by which |a| may exceed ‖w‖ in a balanced neuron.
_LINE = 1e-12
#: Events of one path per hyperplane beyond which it has no end; a direction climbs the potential and meets few twice.
_EVENTS = 100
#: Largest number of candidates that an enumeration goes through.
MOST = 4_000_000
#: M²A / D_max up to which a start counts as small.
SMALL = 1e-3
_EPS = float(np.finfo(float).eps)


# ---- the landscape -----------------------------------------------------------------------------------------


class Cells(NamedTuple):
    """The open cones into which hyperplanes cut the space: ``signs`` (N, P), and a unit vector ``inside`` each (N, d)."""

    signs: Signs
    inside: Array


class Extremal(NamedTuple):
    """A critical direction of the potential on the sphere.

    ``vector`` D (d,): 0 for a dead neuron; ``direction`` (d,): ±D / ‖D‖, or inside the cone where D = 0; ``kinks``:
    the hyperplanes on which it lies; ``attracts``: +1 if neurons with a > 0 come to it from all around, −1 if those
    with a < 0 do, else 0.  Where sign · G < 0 they shrink as they come, along a line in which kinks meet.
    """

    vector: Array
    direction: Array
    kinks: tuple[int, ...]
    attracts: int


@dataclass(frozen=True, eq=False)
class Landscape:
    """The potential G(w) = w · D(w), with D constant between hyperplanes.

    Attributes
    ----------
    normals : array (P, d)
        Unit normals u of the hyperplanes; parallel inputs share one.
    plus, minus : array (P,)
        D(w) = Σ plus u over the hyperplanes with w·u > 0, and minus u over those with w·u < 0.
    """

    normals: Array
    plus: Array
    minus: Array

    @property
    def size(self) -> float:
        """Σ ‖terms‖: the largest that a D could be."""
        return float(np.maximum(np.abs(self.plus), np.abs(self.minus)).sum())

    def signs(self, w: ArrayLike) -> Signs:
        """Sides (..., P) of w (..., d): ±1, 0 on a hyperplane."""
        w = np.asarray(w, dtype=np.float64)
        z = w @ self.normals.T
        size = np.linalg.norm(w, axis=-1, keepdims=True)
        return np.where(np.abs(z) <= ON_KINK * size, 0, np.sign(z)).astype(np.int8)

    def of_signs(self, signs: ArrayLike) -> Array:
        """Σ of the terms (..., d) on the given sides; those on a hyperplane (0) left out."""
        signs = np.asarray(signs)
        return (np.where(signs > 0, self.plus, 0.0) + np.where(signs < 0, self.minus, 0.0)) @ self.normals

    def vector(self, w: ArrayLike) -> Array:
        """D (d,) at w (d,); on hyperplanes the shortest of those between the sides."""
        signs = self.signs(finite_array("w", w, (self.normals.shape[1],)))
        on = np.flatnonzero(signs == 0)
        return self.of_signs(signs) + self._shares(on, self.of_signs(signs))[1]

    def potential(self, w: ArrayLike) -> Array:
        """G (...,) at w (..., d): the slope of the loss when a neuron of that direction grows, with a > 0."""
        z = np.asarray(w, dtype=np.float64) @ self.normals.T
        return np.where(z > 0, z * self.plus, z * self.minus).sum(axis=-1)

    def _shares(self, on: NDArray[np.intp], fixed: Array) -> tuple[Array, Array]:
        """Shares (|on|,) of the active side, and their terms' sum (d,), that make fixed + terms shortest.

        Only where the kinks attract (sign · jump < 0) is that what a neuron does; the caller sees to it.
        """
        jump, base = (self.plus - self.minus)[on], self.minus[on] @ self.normals[on]
        if not on.size:
            return np.empty(0), np.zeros_like(fixed)
        rest = fixed + base
        columns = (jump[:, None] * self.normals[on]).T
        if on.size == 1:
            share = np.clip(-(columns[:, 0] @ rest) / (jump[0] ** 2 or 1.0), 0.0, 1.0)[None]
        else:
            share = lsq_linear(columns, -rest, (0.0, 1.0), method="bvls", tol=1e-15).x
        return share, base + columns @ share

    @cached_property
    def cells(self) -> Cells:
        """All cones between the hyperplanes; a ValueError says where they are too many."""
        return cells(self.normals)

    @cached_property
    def largest(self) -> float:
        """‖D_max‖: the largest ‖D‖ of all cones."""
        return float(np.linalg.norm(self.of_signs(self.cells.signs), axis=1).max())

    @cached_property
    def extremal(self) -> tuple[Extremal, ...]:
        """All critical directions of G on the sphere, in cones and on kinks, by enumeration.

        Exact up to rounding; one entry for every cone (and kink) in which D = 0.  A ValueError says where there are
        too many cones and kinks to go through.
        """
        found = []
        for on, basis in self._flats():
            for signs, inside in zip(*self._faces(on, basis), strict=True):
                one = self._critical(on, basis, signs, inside)
                if one is not None:
                    found.append(one)
        return tuple(found)

    def attractors(self, sign: int) -> tuple[Extremal, ...]:
        """Those of ``extremal`` to which neurons with this sign of a come from all around; D ≠ 0."""
        _sign(sign)
        return tuple(e for e in self.extremal if e.attracts == sign and e.vector.any())

    def reached(
        self, sign: int, starts: int = 200, rng: int | np.random.Generator | None = 0
    ) -> tuple[Extremal, ...]:
        """Attractors (D ≠ 0) that balanced neurons from random directions come to; others may be missed.

        For where ``extremal`` is too much work.  Each start is followed by its exact :class:`Path`.
        """
        _sign(sign)
        draw, found = generator("rng", rng), list[Extremal]()
        for w in draw.standard_normal((positive_int("starts", starts), self.normals.shape[1])):
            path = self.path(w / np.linalg.norm(w), 1.0, sign)
            if path.dead:
                continue
            end = path.limit
            if not any(end @ other.direction > 1 - 1e-9 for other in found):
                kinks = tuple(int(k) for k in np.flatnonzero(path.pieces[-1].on))
                found.append(Extremal(sign * path.pieces[-1].pull, end, kinks, sign))
        return tuple(found)

    def path(self, w: ArrayLike, a: float, sign: int | None = None) -> Path:
        """The exact motion of one small neuron.

        Parameters
        ----------
        w : array (d,)
            Not zero.
        a : float
            Outer weight, |a| ≥ ‖w‖, so that its sign stays.
        sign : {1, -1}, optional
            Sign of the outer weight; default that of ``a``.

        Returns
        -------
        Path

        Raises
        ------
        ValueError
            If |a| < ‖w‖, or w = 0, or w lies on a kink from which neurons go either way.
        """
        start = finite_array("w", w, (self.normals.shape[1],))
        size = abs(float(a))
        if not (0 < np.linalg.norm(start) <= size * (1 + 1e-12) and np.isfinite(size)):
            raise ValueError(
                f"a must be at least ‖w‖ > 0 in size, so that its sign stays, and finite; got |a| = {size:g}, "
                f"‖w‖ = {np.linalg.norm(start):g}"
            )
        return Path.of(self, start, size, int(np.sign(a)) if sign is None else _sign(sign))

    # -- enumeration ----------------------------------------------------------------------------------------

    def _flats(self) -> Iterator[tuple[NDArray[np.bool_], Array]]:
        """Intersections of hyperplanes: which contain it (P,), and an orthonormal basis (d, dimension ≥ 1)."""
        planes, d = self.normals.shape
        rank = int(np.linalg.matrix_rank(self.normals))
        work = sum(comb(planes, j) for j in range(rank))
        if work > MOST // 100:
            raise ValueError(
                f"the landscape has up to {work} kinks of {planes} hyperplanes in {d} dimensions; enumeration goes up to "
                f"{MOST // 100}: use reached(sign)"
            )
        seen = set[bytes]()
        for j in range(rank):
            for chosen in combinations(range(planes), j):
                basis = _complement(self.normals[list(chosen)], d)
                if basis.shape[1] > d - j:
                    continue  # dependent: met with fewer
                on = np.linalg.norm(self.normals @ basis, axis=1) <= ON_KINK
                if on.tobytes() not in seen:
                    seen.add(on.tobytes())
                    yield on, basis

    def _faces(self, on: NDArray[np.bool_], basis: Array) -> Cells:
        """The cones into which the other hyperplanes cut a flat: signs (N, P), 0 on the flat's own."""
        if not on.any():
            return self.cells
        plane, coefficients, normals = hyperplanes(self.normals[~on] @ basis)
        inner = cells(normals)
        signs = np.zeros((len(inner.signs), len(on)), dtype=np.int8)
        signs[:, ~on] = inner.signs[:, plane] * np.sign(coefficients).astype(np.int8)
        return Cells(signs, inner.inside @ basis.T)

    def _critical(self, on: NDArray[np.bool_], basis: Array, signs: Signs, inside: Array) -> Extremal | None:
        """The critical direction of a face, if it has one."""
        which = np.flatnonzero(on)
        fixed, kinks = self.of_signs(signs), tuple(int(k) for k in which)
        vector, inner = basis @ (basis.T @ fixed), True
        if which.size:
            # shares in [0, 1] that take out what points off the flat
            columns = ((self.plus - self.minus)[which, None] * self.normals[which]).T
            off = fixed - vector + self.minus[which] @ self.normals[which]
            share = lsq_linear(columns, -off, (0.0, 1.0), method="bvls", tol=1e-15).x
            if np.linalg.norm(columns @ share + off) > ON_KINK * self.size:
                return None
            inner = bool(np.all((share > 0) & (share < 1)))
        length = float(np.linalg.norm(vector))
        if length <= _ZERO * self.size:
            return Extremal(np.zeros_like(vector), inside, kinks, 0)
        sides, jump = self.signs(vector), (self.plus - self.minus)[which]
        for sign in (1, -1):
            if np.array_equal(sides[~on], sign * signs[~on]):
                # on a line nothing is left to turn to: it attracts those whom its kinks attract, even as they shrink
                pulled = (1, -1) if basis.shape[1] == 1 and which.size else (sign,)
                steady = [one for one in pulled if inner and np.all(one * jump < 0)]
                return Extremal(vector, sign * vector / length, kinks, steady[0] if steady else 0)
        return None


def _sign(value: Any) -> int:
    if value not in (1, -1):
        raise ValueError(f"sign must be 1 or -1; got {value!r}")
    return int(value)


def landscape(problem: Problem, slope: float = 0.0, outputs: ArrayLike | None = None) -> Landscape:
    """The potential of small neurons on a problem with one output.

    Parameters
    ----------
    problem : Problem
        Of kind ``"regression"``; square, logistic or exponential loss, any factor.
    slope : float
        Slope γ of the network's inactive side.
    outputs : array (n,), optional
        Outputs of the neurons that are not small; default 0, a small start.

    Returns
    -------
    Landscape
    """
    slope = non_negative("slope", slope)
    pull = pulls(problem, outputs)
    plane, c, normals = hyperplanes(problem.X)
    sides = np.zeros((2, len(normals)))
    np.add.at(sides[0], plane, np.where(c > 0, 1.0, slope) * pull * c)
    np.add.at(sides[1], plane, np.where(c > 0, slope, 1.0) * pull * c)
    return Landscape(normals, *sides)


def pulls(problem: Problem, outputs: ArrayLike | None = None) -> Array:
    """−∂L/∂f(x_k) (n,) at given outputs (n,), by default 0; for the square loss 2 factor (y − f)."""
    of_type("problem", problem, Problem, "a gflow.Problem")
    if problem.kind != "regression" or problem.Y.shape[1] != 1 or problem.loss == "softmax":
        raise ValueError(
            f"problem must hold samples with one output; got kind {problem.kind!r}, loss {problem.loss!r}, "
            f"{problem.Y.shape[1]} outputs"
        )
    assert problem.factor is not None
    y = problem.Y[:, 0]
    f = np.zeros(len(y)) if outputs is None else finite_array("outputs", outputs, (len(y),))
    if problem.loss == "square":
        return 2 * problem.factor * (y - f)
    return problem.factor * y * (1 / (1 + np.exp(y * f)) if problem.loss == "logistic" else np.exp(-y * f))


def cells(normals: ArrayLike) -> Cells:
    """The open cones between hyperplanes through 0.

    Parameters
    ----------
    normals : array (P, d)
        Unit normals, no two of them parallel.

    Returns
    -------
    Cells

    Raises
    ------
    ValueError
        If more than :data:`MOST` candidates would have to be looked at.

    Notes
    -----
    Every cone is met at its edges: the lines in which hyperplanes meet, with all sides of those that do.  In general
    position there are 2 Σ_{i<d} C(P − 1, i) (:func:`count`).
    """
    u = finite_array("normals", normals, ("P", "d"))
    _, s, vt = np.linalg.svd(u, full_matrices=False)
    rank = int(np.sum(s > s[0] * max(u.shape) * _EPS))
    v, planes = u @ vt[:rank].T, len(u)
    if rank == 1:
        return Cells(np.array([[1], [-1]], dtype=np.int8), np.vstack([u[0], -u[0]]))
    work = comb(planes, rank - 1) * 2**rank
    if work > MOST:
        raise ValueError(
            f"{planes} hyperplanes in {rank} dimensions have up to {count(planes, rank)} cones; enumeration would look at "
            f"{work} candidates, and goes up to {MOST}"
        )
    subsets = np.array(list(combinations(range(planes), rank - 1)))
    _, s, right = np.linalg.svd(v[subsets])
    rays = right[s[:, -1] > ON_KINK, -1]
    z = rays @ v.T
    sides = np.where(np.abs(z) <= ON_KINK, 0, np.sign(z)).astype(np.int8)
    plain = np.sum(sides == 0, axis=1) == rank - 1
    signs, edges = [], []
    around = np.array(list(product((1, -1), repeat=rank - 1)), dtype=np.int8)
    for sign in (1, -1):
        near = np.repeat(sign * sides[plain, None], len(around), axis=1)
        rows, columns = np.nonzero(sides[plain] == 0)
        near[rows.reshape(-1, rank - 1), :, columns.reshape(-1, rank - 1)] = around.T
        signs.append(near.reshape(-1, planes))
        edges.append(np.repeat(sign * rays[plain], len(around), axis=0))
        for side, ray in zip(sign * sides[~plain], sign * rays[~plain], strict=True):
            local = cells(v[side == 0])  # more hyperplanes meet here than have to
            near = np.repeat(side[None], len(local.signs), axis=0)
            near[:, side == 0] = local.signs
            signs.append(near)
            edges.append(np.repeat(ray[None], len(near), axis=0))
    table, points = np.concatenate(signs), np.concatenate(edges)
    kept, which = np.unique(table, axis=0, return_inverse=True)
    inside = np.zeros((len(kept), rank))
    np.add.at(inside, which.ravel(), points)
    inside /= np.linalg.norm(inside, axis=1, keepdims=True)
    return Cells(kept, inside @ vt[:rank])


def count(planes: int, dimension: int) -> int:
    """Number of cones between hyperplanes through 0 in general position, 2 Σ_{i<d} C(P − 1, i)."""
    return 2 * sum(comb(planes - 1, i) for i in range(dimension))


def sweep(problem: Problem) -> Array:
    """D (N, 2) of all cones in the plane for the ReLU, by the angle of their hyperplanes: n log n work."""
    x, pull = problem.X, pulls(problem)
    if x.shape[1] != 2:
        raise ValueError(f"problem must have two inputs; it has {x.shape[1]}")
    angle = np.arctan2(x[:, 1], x[:, 0])
    # a sample is active for directions within a right angle of it
    turns = np.concatenate([angle - np.pi / 2, angle + np.pi / 2]) % (2 * np.pi)
    change = np.concatenate([pull[:, None] * x, -pull[:, None] * x])
    order = np.argsort(turns, kind="stable")
    first = (pull * (np.cos(angle) > 0)) @ x  # of the direction of angle 0
    return first + np.concatenate([np.zeros((1, 2)), np.cumsum(change[order], axis=0)])


def _complement(rows: Array, d: int) -> Array:
    """Orthonormal basis (d, k) of what is orthogonal to all rows."""
    if not len(rows):
        return np.eye(d)
    _, s, vt = np.linalg.svd(rows)
    return vt[int(np.sum(s > ON_KINK)) :].T


# ---- the motion of one neuron ------------------------------------------------------------------------------


class Piece(NamedTuple):
    """From ``t`` on w' = |a| pull, |a|' = w · pull, from (w, |a|); ``on`` (P,): hyperplanes along which it slides."""

    t: float
    w: Array
    a: float
    pull: Array
    on: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Path:
    """The motion of one neuron in the limit of small starts, piece by piece in closed form.

    Attributes
    ----------
    pieces : tuple of Piece
        The last one goes on for ever.
    sign : int
        Sign of its outer weight.
    shrinks : bool
        Whether it slides down a line in which kinks meet, towards w = 0.
    ends : float
        When it gets there, if a > ‖w‖; from w = 0 on it can go on in several ways.  Else inf.
    """

    pieces: tuple[Piece, ...]
    sign: int
    shrinks: bool = False
    ends: float = np.inf

    @property
    def settled(self) -> float:
        """Time of the last event."""
        return self.pieces[-1].t

    @property
    def dead(self) -> bool:
        """Whether it comes to rest."""
        return not self.pieces[-1].pull.any()

    @property
    def limit(self) -> Array:
        """Unit vector (d,) along which it is in the end; where it rests if it is dead."""
        last = self.pieces[-1]
        end = last.w if self.dead or self.shrinks else last.pull
        return end / np.linalg.norm(end)

    def at(self, t: ArrayLike) -> tuple[Array, Array]:
        """w (T, d) and a (T,), with its sign, at times t ≥ 0; NaN after ``ends``."""
        times = times_of(t)
        w, a = np.empty((len(times), len(self.pieces[0].w))), np.empty(len(times))
        which = np.searchsorted([piece.t for piece in self.pieces], times, side="right") - 1
        for i, piece in enumerate(self.pieces):
            now = which == i
            w[now], a[now] = in_cone(piece.w, piece.a, piece.pull, times[now] - piece.t)
        over = times > self.ends
        w[over], a[over] = np.nan, np.nan
        return w, self.sign * a

    def cosine(self, t: ArrayLike) -> Array:
        """Cosines (T,) of the angle to ``limit``."""
        w, _ = self.at(t)
        return w @ self.limit / np.linalg.norm(w, axis=1)

    @classmethod
    def of(cls, land: Landscape, w: Array, a: float, sign: int) -> Path:
        """Follow the motion from hyperplane to hyperplane."""
        signs, on = land.signs(w), land.signs(w) == 0
        if np.any(on & (sign * (land.plus - land.minus) > 0)):
            raise ValueError("w must not lie on a kink that repels, from where the motion is not unique")
        t, pieces = 0.0, list[Piece]()
        while True:
            signs, on, pull = _decide(land, signs, on, sign)
            if on.any():
                basis = _complement(land.normals[on], len(w))
                w = basis @ (basis.T @ w)
            pieces.append(Piece(t, w, a, pull, on))
            p, speed = float(w @ pull), float(np.linalg.norm(pull))
            if p < 0 and float(np.linalg.norm(w)) * speed + p <= _LINE * speed * a:
                balanced = a - float(np.linalg.norm(w)) <= _LINE * a
                ends = np.inf if balanced else t + time_to(0.0, p / speed, a, speed)
                return cls(tuple(pieces), sign, True, ends)
            wait, hit = _next_hit(land, signs, on, w, a, pull)
            if hit < 0:
                return cls(tuple(pieces), sign)
            (after,), (size,) = in_cone(w, a, pull, np.array([wait]))
            w, a, t = after, float(size), t + wait
            on = on.copy()
            on[hit] = True
            if len(pieces) > _EVENTS * len(on):
                raise RuntimeError(f"the neuron from w = {pieces[0].w} has met hyperplanes without end")


def in_cone(w: ArrayLike, a: float, pull: ArrayLike, t: ArrayLike) -> tuple[Array, Array]:
    """w (T, d) and a (T,) of w' = a D, a' = w · D with a constant D = ``pull`` (d,), at times t (T,).

    With e = D / ‖D‖: a = a₀ cosh ‖D‖t + (w₀·e) sinh ‖D‖t, w·e likewise, and what is orthogonal to D stays.
    A neuron too large for double precision has an infinite a, and a w that is infinite or NaN.
    """
    start, d = np.asarray(w, dtype=np.float64), np.asarray(pull, dtype=np.float64)
    times, speed = np.atleast_1d(np.asarray(t, dtype=np.float64)), float(np.linalg.norm(d))
    if speed == 0.0:
        return np.repeat(start[None], len(times), axis=0), np.full(len(times), float(a))
    e = d / speed
    p = float(start @ e)
    # the growing and the falling part apart: nothing cancels
    with np.errstate(over="ignore", invalid="ignore"):
        up = 0.5 * (a + p) * np.exp(speed * times) if a + p else np.zeros(len(times))
        down = 0.5 * (a - p) * np.exp(-speed * times)
        return start - p * e + (up - down)[:, None] * e, up + down


def cosine_to_pull(start: float, speed: float, t: ArrayLike) -> Array:
    """Cosine (T,) between a balanced neuron and its D: tanh(‖D‖ t + artanh c₀)."""
    return np.tanh(speed * np.asarray(t, dtype=np.float64) + np.arctanh(start))


def time_to(p: float, p0: float, a: float, speed: float) -> float:
    """When w·e, at first p0 and growing, is p ≥ p0, for |p0| ≤ a; inf if it never is."""
    if a + p0 <= 0:
        return np.inf
    root = np.sqrt(p * p + (a - p0) * (a + p0))
    growth = (p + root) / (a + p0) if p >= 0 else (a - p0) / (root - p)
    return float(np.log(max(growth, 1.0)) / speed)


def _next_hit(
    land: Landscape, signs: Signs, on: NDArray[np.bool_], w: Array, a: float, pull: Array
) -> tuple[float, int]:
    """After what time the next hyperplane is met, and which; −1 if none is."""
    speed = float(np.linalg.norm(pull))
    if speed == 0.0:
        return np.inf, -1
    e = pull / speed
    toward, height = land.normals @ e, land.normals @ w
    near = np.flatnonzero(~on & (signs * toward < -ON_KINK))
    if not near.size:
        return np.inf, -1
    p0 = float(w @ e)
    far = np.maximum(-height[near] / toward[near], 0.0)
    first = int(np.argmin(far))
    wait = time_to(p0 + float(far[first]), p0, a, speed)
    return (wait, int(near[first])) if np.isfinite(wait) else (np.inf, -1)


def _decide(
    land: Landscape, signs: Signs, on: NDArray[np.bool_], sign: int
) -> tuple[Signs, NDArray[np.bool_], Array]:
    """Sides, kinks to slide along and the pull from here, for a neuron on the hyperplanes ``on``.

    ``signs`` holds the sides from which it came.  Kinks that do not attract are passed.
    """
    signs, on = signs.copy(), on.copy()
    passed = on & (sign * (land.plus - land.minus) >= 0)
    signs[passed] *= -1
    on &= ~passed
    which = np.flatnonzero(on)
    signs[which] = 0
    fixed = land.of_signs(signs)
    share, terms = land._shares(which, fixed)
    pull = sign * (fixed + terms)
    normal = land.normals[which] @ pull
    leaves = np.abs(normal) > ON_KINK * land.size
    signs[which[leaves]] = np.sign(normal[leaves]).astype(np.int8)
    on[which[leaves]] = False
    if on.any():  # sliding: nothing is left off the kinks
        basis = _complement(land.normals[on], len(pull))
        pull = basis @ (basis.T @ pull)
    if np.linalg.norm(pull) <= _ZERO * land.size:
        pull = np.zeros_like(pull)
    return signs, on, pull


# ---- bounds ------------------------------------------------------------------------------------------------


def curvature(problem: Problem) -> float:
    """c M²: ‖D(w, θ) − D(w, 0)‖ ≤ c M² Σ a_j², with M = max ‖x_k‖ and c = n × the largest ∂²L/∂f².

    For |a_j| ≥ ‖w_j‖, where |f(x)| ≤ ‖x‖ Σ a_j².  c = 2 n factor for the square loss, n factor / 4 for the logistic.
    """
    pulls(problem)
    assert problem.factor is not None
    if problem.loss == "exponential":
        raise ValueError("problem must have a loss of bounded second derivative; got the 'exponential' loss")
    c = problem.factor * len(problem.X) * (2.0 if problem.loss == "square" else 0.25)
    return c * float(np.sum(problem.X**2, axis=1).max())


def alignment_time(largest: float, scale: float, epsilon: float) -> float:
    """τ = −ε ln λ / ‖D_max‖ of arXiv 2401.10791, for a start of scale λ < 1 and ε in (0, 1/3)."""
    scale = positive("scale", scale)
    if not (scale < 1 and 0 < epsilon < 1 / 3):
        raise ValueError(f"scale must lie below 1 and epsilon between 0 and 1/3; got {scale:g}, {epsilon:g}")
    return -epsilon * np.log(scale) / positive("largest", largest)


def mass_bound(mass: float, largest: float, bend: float, t: ArrayLike) -> Array:
    """Bound (T,) on A(t) = Σ a_j², from A(0) = ``mass``; inf where there is none.

    Proved here: |d ln|a_j|/dt| ≤ ‖D(w_j, θ)‖ ≤ D_max + c M² A (``largest``, ``bend`` = :func:`curvature`), so that
    A' ≤ 2 (D_max + c M² A) A, whose solution is A₀ e^{2Dt} / (1 − (c M² A₀ / D) (e^{2Dt} − 1)).
    """
    times = np.asarray(t, dtype=np.float64)
    with np.errstate(over="ignore"):  # then there is no bound any more
        spread = np.expm1(2 * largest * times) / largest if largest > 0 else 2 * times
    left, grown = 1 - bend * mass * spread, 1 + largest * spread
    return mass * np.divide(grown, left, out=np.full(np.shape(left), np.inf), where=left > 0)


def growth_bound(mass: float, largest: float, bend: float, t: ArrayLike) -> Array:
    """Bound (T,) on |ln |a_j(t)/a_j(0)||, for every neuron: ∫ (D_max + c M² A) ≤ D_max t + c M² ∫ A.

    With A bounded by :func:`mass_bound` it is ½ ln of what A has grown by.
    """
    with np.errstate(divide="ignore"):
        return 0.5 * np.log(mass_bound(mass, largest, bend, t) / mass)


# ---- the prediction ----------------------------------------------------------------------------------------


def early(
    model: Any, problem: Problem, theta0: ArrayLike, small: float = SMALL, force: bool = False
) -> Prediction:
    """Directions of all neurons while the outputs are negligible.

    Parameters
    ----------
    model : TwoLayerReLU
        One output, both layers trained.
    problem : Problem
    theta0 : array (P,)
    small : float
        c M² Σ a_j² / D at the start, with D of the fastest neuron, up to which outputs count as negligible.

    Returns
    -------
    Prediction
        Of ``"neuron_directions"`` (T, m, d).  Its hypotheses are measured at the start; what is neglected grows like
        e^{2 D t}, by :func:`mass_bound`.
    """
    w, a, start = neurons(model, problem, theta0)
    land = landscape(problem, model.slope)
    speed = float(np.linalg.norm(land.of_signs(land.signs(w)), axis=-1).max())
    mass = float(np.sum(a**2))

    def formula(t: Array) -> Array:
        paths = [land.path(*one) for one in zip(w, a, strict=True)]
        found = np.stack([path.at(t)[0] for path in paths], axis=1)
        return found / np.linalg.norm(found, axis=2, keepdims=True)

    hypotheses = (
        Hypothesis("no weight decay", problem.weight_decay, tolerance=0.0),
        start,
        Hypothesis(
            "outputs are negligible at the start (defect: c M² A / D)",
            curvature(problem) * mass / speed if speed > 0 else np.inf,
            tolerance=small,
        ),
    )
    return Prediction("neuron_directions", hypotheses, "arXiv 2401.10791", formula, forced=force)


def neurons(model: Any, problem: Problem, theta: ArrayLike) -> tuple[Array, Array, Hypothesis]:
    """Inner weights (m, d), outer weights (m,), and whether the latter are at least as large, none of them zero."""
    if (
        not isinstance(model, TwoLayerReLU)
        or model.outputs != 1
        or not model.train_outer
        or not model.piecewise
    ):
        raise ValueError(
            f"model must be a TwoLayerReLU of one output with both layers trained and first_depth 1; got {model}"
        )
    model.check_problem(problem, model.inputs, 1)
    w, a = model.first_layer(theta), model.outer_layer(theta)[0]
    size = np.linalg.norm(w, axis=1)
    short = np.where(size > 0, (size - np.abs(a)) / np.where(size > 0, size, 1.0), 1.0)
    defect = float(np.max(short, initial=0.0).clip(0.0))
    return w, a, Hypothesis("|a_j| ≥ ‖w_j‖ > 0 at the start (defect: largest relative lack)", defect, 1e-12)
