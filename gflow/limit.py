"""The limit t = ∞ of a flow that has come close to it.

Minima are rarely isolated here.  Where the flow nears one, the Hessian's eigenvalues fall into two groups: the
stiff ones, along which the gradient decays exponentially, and those of the valley of minima, of either sign and of
the size of what is left to go.  They are told apart by Weyl's inequality: no eigenvalue changes between here and
the limit by more than the norm of the Hessian's change.  A Newton step on the stiff directions alone leaves a
remainder that is quadratic in its length (on all directions it would invert the valley's noise).  The remainder's
constant is measured: by the difference of the limits seen from two states of the flow, one further along than the
other.  A gradient that remains along the valley, above rounding, may be a slower approach: the flow goes on.  What
is slower than rounding shows (rates below some 1e-13 of the largest) counts as standing still.

A flow that nears its limit like a power of t has no such gap: the power is fitted to the speeds at geometrically
spaced times.  A flow that comes to rest where the Hessian has a negative eigenvalue, and is off that direction by
no more than rounding, stays on a saddle.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gflow.objective import Objective
from gflow.trajectory import Limit

Array = NDArray[np.float64]

#: The first part of the largest speed at which the limit is looked for, and the factor between looks.
FIRST_LOOK, NEXT_LOOK = 1e-2, 10.0**-0.5
# ... and the parts at which to be content with what is seen; at a saddle rounding grows in the meantime.
_LAST_LOOK, _LAST_LOOK_AT_SADDLE = 1e-12, 1e-7
#: Largest Hessian that is made whole; larger ones are seen through the Krylov space of the gradient.
DENSE_SIZE = 600
_KRYLOV = 120
# A Newton step has found a zero of the gradient if it takes it down by this factor.
_SOLVED = 0.1
# The remainder is quadratic only to leading order.
_SAFETY = 4.0
# Largest change of a fitted power between two looks, how many must agree, and over what range of t: an exponential
# approach after a long plateau passes for a power over a short one.
_POWER_CHANGE, _POWER_LOOKS, _POWER_RANGE = 0.01, 3, 2.0
# A negative eigenvalue that falls by less from one look to the next is a saddle's: the valley's fall with the speed.
_LASTING = 0.7
# A component along an unstable direction below this, relative to the state, may be rounding.
_ROUNDING = 1e-13
_EPS = float(np.finfo(float).eps)


class _View(NamedTuple):
    """What one state of the flow shows of the limit."""

    t: float
    speed: float
    theta: Array
    limit: Array  # where the Newton step on the stiff directions leads
    step: float  # its length
    solved: bool  # whether the gradient all but vanishes there
    stiff: int
    slowest: float  # smallest stiff eigenvalue
    lowest: float  # lowest eigenvalue
    unstable: float  # component of the state's distance to the limit along unstable directions
    noise: float  # eigenvalues below this in size belong to the valley
    floor: float  # ... and may be rounding below this
    left: float  # size of the gradient at the limit, 0 where it is rounding


class Seeker:
    """Looks for the limit at states further and further along one flow.

    ``inside(theta)`` says whether a state still belongs to the smooth piece of the field that the flow is in; None if
    there is but one.
    """

    def __init__(
        self,
        objective: Objective,
        rtol: float,
        inside: Callable[[Array], bool] | None = None,
    ) -> None:
        self.objective, self.rtol, self.inside = objective, rtol, inside
        self.views: list[_View] = []

    def look(self, t: float, theta: Array, speed: float, part: float) -> tuple[Array, Limit] | None:
        """The limit and what is known of it, or None if the flow has to go on.

        ``part`` is the part of its largest value to which the speed has fallen.
        """
        view = self._view(t, theta.copy(), speed)
        self.views.append(view)
        if speed == 0.0:
            return theta.copy(), self._rest(view)
        found = self._saddle(view, part) or self._minimum(view, part) or self._algebraic(view)
        return found

    # -- what one state shows -----------------------------------------------------------------------

    def _view(self, t: float, theta: Array, speed: float) -> _View:
        gradient = self._gradient(theta)
        values, vectors, lowest, change = self._spectrum(theta, gradient)
        along = vectors.T @ gradient
        top = float(np.abs(values).max(initial=0.0))
        floor = 10 * self.objective.size * _EPS * top
        noise, limit, step = 0.1 * top, theta, np.zeros_like(theta)
        for _ in range(4):  # the noise depends on the limit, and this on which directions are above the noise
            chosen = values > noise
            step = vectors[:, chosen] @ (along[chosen] / values[chosen])
            limit = theta - step
            before, noise = noise, max(2.0 * change(limit), floor)
            if np.array_equal(chosen, values > noise):
                break
        chosen, unstable = values > max(before, noise), values < -noise
        stiff = int(np.sum(chosen))
        off = float(np.linalg.norm(along[unstable] / values[unstable])) if unstable.any() else 0.0
        left = float(np.linalg.norm(self._gradient(limit)))
        rounding = 100 * _EPS * top * float(np.linalg.norm(theta))
        solved = stiff > 0 and left <= _SOLVED * float(np.linalg.norm(gradient)) + rounding
        if solved and self.inside is not None:
            solved = self.inside(limit)
        slowest = float(values[chosen].min()) if stiff else 0.0
        length = float(np.linalg.norm(step))
        return _View(
            t,
            speed,
            theta,
            limit,
            length,
            solved,
            stiff,
            slowest,
            lowest,
            off,
            noise,
            floor,
            left if left > rounding else 0.0,
        )

    def _gradient(self, theta: Array) -> Array:
        return self.objective.gradient(theta)

    def _spectrum(
        self, theta: Array, gradient: Array
    ) -> tuple[Array, Array, float, Callable[[Array], float]]:
        """Eigenvalues (k,) and eigenvectors (P, k) of the Hessian, all or those that the gradient sees; the lowest
        of all; and a function that gives the norm of the Hessian's change from here to another state.
        """
        o = self.objective
        if o.size <= DENSE_SIZE:
            hessian = o.hessian(theta)
            values, vectors = np.linalg.eigh(hessian)

            def change(other: Array) -> float:
                return float(np.abs(np.linalg.eigvalsh(hessian - o.hessian(other))).max())

            return values, vectors, float(values[0]), change
        values, vectors = self._krylov(theta, gradient)
        lowest = min(float(values.min()), float(o.eigenvalues(theta, 1, "smallest", tol=1e-3)[0]))

        def estimated(other: Array) -> float:
            v, size = vectors @ np.ones(len(values)), 0.0
            for _ in range(8):  # the power method; the factor 2 of its user covers what it lacks
                v = v / np.linalg.norm(v)
                v = o.hvp(theta, v) - o.hvp(other, v)
                size = float(np.linalg.norm(v))
                if size == 0.0:
                    break
            return size

        return values, vectors, lowest, estimated

    def _krylov(self, theta: Array, gradient: Array) -> tuple[Array, Array]:
        """Ritz pairs of the Hessian from the gradient, fully orthogonalised."""
        o, size = self.objective, min(_KRYLOV, self.objective.size)
        basis, diagonal, off = np.empty((size, o.size)), np.zeros(size), np.zeros(size)
        length = float(np.linalg.norm(gradient))
        v = gradient / length if length > 0 else np.full(o.size, 1 / np.sqrt(o.size))
        for k in range(size):
            basis[k] = v
            w = o.hvp(theta, v)
            diagonal[k] = v @ w
            for _ in range(2):
                w = w - basis[: k + 1].T @ (basis[: k + 1] @ w)
            off[k] = np.linalg.norm(w)
            if off[k] <= 1e-13 * np.abs(diagonal[: k + 1]).max() or k + 1 == size:
                size = k + 1
                break
            v = w / off[k]
        matrix = np.diag(diagonal[:size]) + np.diag(off[: size - 1], 1) + np.diag(off[: size - 1], -1)
        values, inner = np.linalg.eigh(matrix)
        return values, basis[:size].T @ inner

    # -- verdicts -----------------------------------------------------------------------------------

    def _rest(self, view: _View) -> Limit:
        """The flow stands still to the last bit."""
        if view.lowest < -view.noise:
            return Limit("saddle", 0.0, lowest=view.lowest, reached=view.t)
        kind = "minimum" if view.stiff else "degenerate"
        return Limit(kind, 0.0, stiff=view.stiff, slowest=view.slowest, lowest=view.lowest, reached=view.t)

    def _saddle(self, view: _View, part: float) -> tuple[Array, Limit] | None:
        """A saddle that the flow does not leave: it is off the unstable directions by rounding at most."""
        if view.lowest >= -view.noise or view.unstable > _ROUNDING * float(np.linalg.norm(view.theta)):
            return None
        last = part <= _LAST_LOOK_AT_SADDLE
        bound = self._remainder(view, last)
        if bound is None or (bound > self._wanted(view) and not last):
            return None
        return view.limit, Limit(
            "saddle", bound, stiff=view.stiff, slowest=view.slowest, lowest=view.lowest, reached=view.t
        )

    def _remainder(self, view: _View, last: bool) -> float | None:
        """Bound on what a Newton step leaves, from the step before; None where it leaves more than rounding.

        At the last look it may leave what is quadratic in its length.
        """
        if len(self.views) < 2:
            return None
        before = self.views[-2]
        if not (before.solved and view.solved):
            return None
        if before.stiff != view.stiff or before.step == 0.0:
            return None
        # something slower goes on along the valley, or may: what a Newton step leaves would still hide it
        ratio = view.step / before.step
        if view.left > (2.0 * before.left * ratio**2 if last else 0.0):
            return None
        apart = float(np.linalg.norm(before.limit - view.limit))
        if apart > _SOLVED * before.step:
            return None
        rounding = 10 * _EPS * float(np.linalg.norm(view.theta))
        return _SAFETY * apart * ratio**2 + rounding

    def _leaves(self, view: _View, before: _View) -> bool:
        """Whether there is a lasting negative eigenvalue, even one that the noise still hides."""
        return view.lowest < -view.floor and view.lowest < _LASTING * before.lowest

    def _wanted(self, view: _View) -> float:
        """A remainder that the integration's own error hides."""
        return max(0.1 * self.rtol, 20 * _EPS) * float(np.linalg.norm(view.theta))

    def _minimum(self, view: _View, part: float) -> tuple[Array, Limit] | None:
        if view.lowest < -view.noise or (len(self.views) > 1 and self._leaves(view, self.views[-2])):
            return None
        last = part <= _LAST_LOOK
        bound = self._remainder(view, last)
        if bound is None or (bound > self._wanted(view) and not last):
            return None
        return view.limit, Limit(
            "minimum", bound, stiff=view.stiff, slowest=view.slowest, lowest=view.lowest, reached=view.t
        )

    def _algebraic(self, view: _View) -> tuple[Array, Limit] | None:
        """A limit that is approached like a power of t: speed ~ t^-p, what is left ~ t^(1-p)."""
        seen = [v for v in self.views if v.t > 0][-_POWER_LOOKS - 1 :]
        if len(seen) < _POWER_LOOKS + 1:
            return None
        times, speeds = np.array([v.t for v in seen]), np.array([v.speed for v in seen])
        if np.any(np.diff(times) <= 0) or times[-1] < _POWER_RANGE * times[0] or self._leaves(view, seen[0]):
            return None
        powers = -np.diff(np.log(speeds)) / np.diff(np.log(times))
        if np.any(powers <= 0) or np.ptp(powers) > _POWER_CHANGE * powers[-1]:
            return None
        power = float(powers[-1])
        if power <= 1.0 + _POWER_CHANGE:
            return view.theta, Limit("none", np.inf, exponent=power, lowest=view.lowest, reached=view.t)
        ends = []
        for a, b in ((seen[-3], seen[-2]), (seen[-2], seen[-1])):
            fallen = (b.t / a.t) ** (1.0 - power)
            ends.append((b.theta - fallen * a.theta) / (1.0 - fallen))
        # the one before is further from the limit than the last is
        bound = float(np.linalg.norm(ends[1] - ends[0])) + abs(float(np.ptp(powers))) / (power - 1.0) * float(
            np.linalg.norm(ends[1] - view.theta)
        )
        return ends[1], Limit("algebraic", bound, exponent=power - 1.0, lowest=view.lowest, reached=view.t)


def of_piecewise(objective: Objective, pattern: Any) -> Callable[[Array], bool]:
    """``inside`` of a ReLU network that keeps its pattern; ``objective.work`` holds it."""
    from gflow.kernels import piecewise

    o = objective

    def inside(theta: Array) -> bool:
        out = np.empty(o.size)
        o.gradient_kernel.call(0.0, theta, o.data, o.dims, o.work, out)
        return bool(piecewise.keeps(theta, o.data, o.dims, o.work, pattern))

    return inside
