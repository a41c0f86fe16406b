r"""How far the true path may be from a predicted one, where a hypothesis fails a little: proved bounds.

Let θ̄(t) be the predicted path, of layers W̄_j, θ(t) the true one, ρ ≥ ‖θ − θ̄‖, ω = max‖W̄_j‖₂, and
g = ‖(W̄ − W*) Π‖₂, with τ and Π as in :class:`gflow.theory.linear.setting.Inputs`.
A product of M layers is at most π_M = (ω + ρ/√M)^M in norm, W − W̄ at most Δ(ρ) = (ω + ρ/√N)^N − ω^N,
and with φ(W) the loss as a function of W, convex, −λ_min(∇²L) ≤ m on the whole ball about θ̄:

    ρ' = m ρ + f,    m = τ (N − 1) (g + Δ(ρ)) π_{N−2},

f being the most that the true flow adds to the idealised one anywhere in the ball.  So ‖W − W̄‖₂ ≤ Δ(ρ).
This is no linearisation: where ρ outgrows ω it blows up in finite time, and the bound is inf from there on.

A start off the aligned ones changes the strengths u_iᵀ W v_i in second order only.  The loss is invariant
when u_i, v_i and the hidden direction i change sign, and its restriction to diagonal layers also when
the layers of a mode are exchanged; the aligned balanced path consists of fixed points.  So the gradient at
fixed points has no component off them, their Hessian no entries between the two, and for the part β of
θ − θ̄ among the fixed points, with ‖D³L[δ, δ]‖ ≤ D ‖δ‖² on the ball,

    β' = m β + ½ D ρ² + f,    D = τ (3 √N (N − 1) π_{N−1} π_{N−2} + N^{3/2} (g + Δ(ρ)) π_{N−3}),

and a strength changes by at most Δ(β) + ½ (N − 1) π_{N−2} ρ².  The smaller of the two bounds counts.

The inequalities are integrated upwards: in each step of the grid the norms along θ̄ are the larger ones of its
two ends, and ρ is a number that a whole step does not reach.  What is not proved is that no norm along θ̄ peaks
within a step, and rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gflow.problem import Problem
from gflow.theory.linear.setting import Inputs
from gflow.theory.prediction import Hypothesis

Array = NDArray[np.float64]


class Sizes(NamedTuple):
    """Norms along a predicted path: arrays (T,), or numbers at one time."""

    spectral: Any  # ‖(W − W*) Π‖₂
    frobenius: Any  # ‖(W − W*) Π‖_F
    layer: Any  # max ‖W_j‖₂
    theta: Any  # ‖θ‖


class Cause(NamedTuple):
    """What takes the true path from the predicted one."""

    start: float = 0.0  # ‖θ − θ̄‖ at t = 0
    even: float | None = None  # the part of it that changes strengths in first order; None: all of it
    off: float = 0.0  # ‖[AᵀB; W_2 B]‖_F of two layers, see lambda_balanced.two_layer; the change of W that grows with it
    forcing: tuple[Callable[[Sizes], Any], ...] = ()  # ‖f‖, given norms in the ball about θ̄

    def __add__(self, other: Cause) -> Cause:  # type: ignore[override]
        even = other.even if self.even is None else self.even
        return Cause(self.start + other.start, even, self.off + other.off, self.forcing + other.forcing)


@dataclass(frozen=True)
class Path:
    """A predicted path, as far as the bounds of the module's text need it."""

    depth: int
    rate: float
    whiteness: float  # 1 + whitening defect
    sizes: Callable[[Array], Sizes]
    landmarks: Array = field(default_factory=lambda: np.empty(0))  # times that resolve the path's transitions
    _last: dict[bytes, tuple[Array, Sizes]] = field(default_factory=dict, repr=False)

    def bound(self, cause: Cause) -> Callable[[Array], Array]:
        """Bound on the observable's change up to times (T,)."""

        def bound(t: Array) -> Array:
            if not t.size:
                return np.zeros(0)
            grid, sizes = self._on_grid(t)
            reached = self._distances(cause, grid, sizes)
            change = [
                self._change(Sizes(*(float(size[i]) for size in sizes)), cause, *state)
                for i, state in enumerate(reached)
            ]
            return np.maximum.accumulate(change)[np.searchsorted(grid, t)]

        return bound

    def _change(self, z: Sizes, cause: Cause, rho: float, beta: float, off: float) -> float:
        n = self.depth
        if rho == np.inf:
            return np.inf
        change = _widened(z.layer, rho, n)
        if cause.even is not None:
            bent = 0.5 * (n - 1) * _ball(z.layer, rho, n - 2) * rho**2
            change = min(change, _widened(z.layer, beta, n) + bent)
        return change + off

    def _distances(self, cause: Cause, grid: Array, sizes: Sizes) -> list[tuple[float, float, float]]:
        """(ρ, β, off) at the times of the grid, inf from where they blow up."""
        state = (cause.start, cause.start if cause.even is None else cause.even, cause.off)
        reached = [state]
        larger = np.array([np.maximum(size[1:], size[:-1]) for size in sizes])
        for length, values in zip(np.diff(grid), larger.T, strict=True):
            if state[0] < np.inf:
                state = self._over(float(length), Sizes(*values.tolist()), cause, state)
            reached.append(state)
        return reached

    def _over(
        self, length: float, z: Sizes, cause: Cause, state: tuple[float, float, float]
    ) -> tuple[float, float, float]:
        """The state after a step of the grid, in parts so short that ρ is bounded ahead."""
        left, part = length, length
        while left > 0:
            part = min(part, left)
            after = self._part(part, z, cause, state)
            if after is None:
                part *= 0.5
                if part < 1e-4 * length:
                    return np.inf, np.inf, np.inf
                continue
            state, left, part = after, left - part, 2 * part
        return state

    def _part(
        self, time: float, z: Sizes, cause: Cause, state: tuple[float, float, float]
    ) -> tuple[float, float, float] | None:
        """The state after a time in which ρ does not reach the number that is tried; None if it may."""
        rho, beta, off = state
        n, rate, most = self.depth, self.rate, rho
        for factor in (1.001, 1.01, 1.1, 0.0):
            wider = _widened(z.layer, most, n)
            gap, near = z.spectral + wider, _ball(z.layer, most, n - 2)
            growth = (n - 1) * rate * self.whiteness * gap * near
            ball = Sizes(gap, z.frobenius + wider, z.layer + most, z.theta + most)
            push = float(sum(f(ball) for f in cause.forcing))
            if not growth * time < 50 or not push < 1e100:
                return None
            grown = math.exp(growth * time)
            spread = math.expm1(growth * time) / growth if growth > 0 else time
            after = grown * rho + spread * push
            if after <= most:
                third = 3 * np.sqrt(n) * (n - 1) * _ball(z.layer, most, n - 1) * near
                if n > 2:
                    third += n**1.5 * gap * _ball(z.layer, most, n - 3)
                bend = 0.5 * rate * third * after**2
                return after, grown * beta + spread * (push + bend), grown * off
            most = factor * after
            if not most < 1e50:
                return None
        return None

    def _on_grid(self, t: Array) -> tuple[Array, Sizes]:
        """A grid that resolves the path up to max t, and the path's sizes."""
        key = t.tobytes()
        if key in self._last:
            return self._last[key]
        end = float(np.max(t))
        marks = self.landmarks[self.landmarks < end]
        grid = np.unique(np.concatenate([[0.0], np.linspace(0.0, end, 401), marks, t]))
        self._last.clear()  # one set of times serves all hypotheses
        self._last[key] = grid, self.sizes(grid)
        return self._last[key]

    def common(self, inputs: Inputs, problem: Problem, scale: float) -> list[tuple[Hypothesis, Cause]]:
        """The hypotheses of every closed form: white inputs, no weight decay."""
        n, mu, rate = self.depth, problem.weight_decay, self.rate
        learning = n * rate * scale ** (2 - 2 / n)
        decay = (mu / learning if learning > 0 else np.inf) if mu > 0 else 0.0
        unwhite = np.sqrt(n) * rate * inputs.defect
        return [
            self.hypothesis(
                "inputs white on their row space",
                inputs.defect,
                Cause(forcing=(lambda z: unwhite * z.layer ** (n - 1) * z.frobenius,)),
            ),
            self.hypothesis("no weight decay", decay, Cause(forcing=(lambda z: mu * z.theta,))),
        ]

    def hypothesis(self, name: str, defect: float, cause: Cause) -> tuple[Hypothesis, Cause]:
        return Hypothesis(name, defect, effect=self.bound(cause)), cause

    def together(self, causes: Iterable[Cause]) -> Callable[[Array], Array]:
        """Bound for all causes at once."""
        return self.bound(sum(causes, Cause()))


def _ball(layer: float, rho: float, count: int) -> float:
    """Largest norm of a product of ``count`` layers, each of norm ≤ ``layer`` but for changes of ρ in all."""
    return (layer + rho / math.sqrt(count)) ** count if count > 0 else 1.0


def _widened(layer: float, rho: float, count: int) -> float:
    """``_ball(layer, rho, count) − layer**count``, however small."""
    more = rho / math.sqrt(count)
    if more >= layer:
        return (layer + more) ** count - layer**count
    return layer**count * math.expm1(count * math.log1p(more / layer))
