r"""Closed forms for diagonal linear networks: the predictor β as a function of G(t) = ∫₀ᵗ ∇_β L ds.

Under gradient flow of L(β), whatever the loss and its factor, each weight is a function of its own start and of
its coordinate of G, and so is β (arXiv 2002.09277).  With η = −G,

    w₊² − w₋²       β = w₊(0)² e^{4η} − w₋(0)² e^{−4η}
    u ∘ v           β = ¼ (u₀ + v₀)² e^{2η} − ¼ (u₀ − v₀)² e^{−2η}
    w₊^D − w₋^D     β = (w₊(0)^{2−D} − D(D−2) η)^{−p} − (w₋(0)^{2−D} + D(D−2) η)^{−p},    p = D / (D − 2)

and the power w^D is the first half of the difference.  So all of them are one family: two branches a, b > 0 at
a rate κ (4, 2, D(D−2)), and any such start is the equal start a = b = α with its dual variable shifted,

    D = 2:  α² = a b,                           z = κ η + log(a / b),              β = 2 α² sinh z
    D > 2:  α^{2−D} = ½ (a^{2−D} + b^{2−D}),    z = κ α^{D−2} η + shift,           β = α^D h_D(z),

h_D(z) = (1 − z)^{−p} − (1 + z)^{−p} on |z| < 1.  β increases with η: η(β) is the gradient of a convex potential,
the gradient flow of the weights is the mirror flow dη/dt = −∇L(β), and where it starts the potential is least.

Numbers are kept in y with β = 2 α² sinh y, or α^D h_D(tanh y) = 2 α^D cosh(y)^p sinh(p y), and in log α: y grows
like log β, so that nothing over- or underflows before β itself does, and h_D's pole |z| = 1 loses no digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gflow._check import finite_array, of_type, one_of, plain_array, positive_int
from gflow.problem import Problem
from gflow.theory.prediction import Hypothesis, Prediction

Array = NDArray[np.float64]
FORMS = ("difference", "product", "power")
_EPS = float(np.finfo(np.float64).eps)
_BOTH, _PLUS, _MINUS, _NONE = 0, 1, -1, 2


# ---- h_D ---------------------------------------------------------------------------------------------------


def h(z: ArrayLike, depth: int) -> Array:
    """h_D(z) = (1 − z)^(−p) − (1 + z)^(−p), p = D / (D − 2), for |z| < 1; for D = 2 its like, 2 sinh z.

    Parameters
    ----------
    z : array
        Scaled dual variable.
    depth : int
        D ≥ 2.

    Returns
    -------
    array of the shape of z

    Raises
    ------
    ValueError
        If the depth is below 2, z is not finite, or |z| ≥ 1 at depth ≥ 3.

    Notes
    -----
    Source: arXiv 2002.09277.  The relative error is that of rounding z, which the pole magnifies by z / (1 − |z|).
    """
    depth = check_depth(depth)
    values = _finite("z", z)
    if depth > 2 and not np.all(np.abs(values) < 1):
        raise ValueError(f"z must lie between -1 and 1 at depth {depth}; got {np.max(np.abs(values)):g}")
    flat = values.ravel()
    return _standard(flat.size, depth).beta_of(flat if depth == 2 else np.arctanh(flat)).reshape(values.shape)


def h_inverse(b: ArrayLike, depth: int) -> Array:
    """The inverse of :func:`h`, for any real b; rounds to ±1 for |b| beyond 1 / ε^p at depth ≥ 3.

    Raises
    ------
    ValueError
        If the depth is below 2, or b is not finite.
    """
    depth = check_depth(depth)
    values = _finite("b", b)
    flat = values.ravel()
    mirror = _standard(flat.size, depth)
    return mirror.z_of(mirror.y_at(flat)).reshape(values.shape)


def _finite(name: str, value: ArrayLike) -> Array:
    values = plain_array(name, value, "(...)").astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite; got {values[~np.isfinite(values)][0]}")
    return values


def _standard(size: int, depth: int) -> Mirror:
    zero = np.zeros(size)
    return Mirror(zero, zero, np.zeros(size, dtype=np.int64), depth, 1.0)


def check_depth(depth: Any) -> int:
    """A whole number ≥ 2."""
    if positive_int("depth", depth) < 2:
        raise ValueError(f"depth must be a whole number >= 2; got {depth!r}")
    return int(depth)


# ---- the mirror map ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Mirror:
    """The map between β and its dual variable η = −∫∇_β L, coordinate by coordinate.

    Attributes
    ----------
    log_alpha : array (d,)
        Logarithm of the α_i of the module's text; of the one weight there is where a coordinate has one branch.
    start : array (d,)
        y at η = 0.
    side : array of int (d,)
        0 for two branches, 1 (β > 0) or −1 (β < 0) for one, 2 for none: β = 0 for ever.
    depth : int
    rate : float
        κ of the module's text.
    """

    log_alpha: Array
    start: Array
    side: NDArray[np.int64]
    depth: int
    rate: float

    @property
    def power(self) -> float:
        """p = D / (D − 2); inf at depth 2."""
        return self.depth / (self.depth - 2) if self.depth > 2 else np.inf

    @property
    def log_scale(self) -> Array:
        """Logarithm (d,) of dz/dη = κ α^(D−2)."""
        return np.log(self.rate) + (self.depth - 2) * self.log_alpha

    @property
    def moving(self) -> NDArray[np.bool_]:
        """Which coordinates (d,) can move at all."""
        return self.side != _NONE

    @property
    def beta0(self) -> Array:
        """β (d,) at the start."""
        return self.beta_of(self.start)

    # -- in η and β

    def beta(self, eta: ArrayLike) -> Array:
        """β (..., d) at dual variables η (..., d).

        Raises
        ------
        ValueError
            If η is not finite, or beyond the pole, which it reaches only as |β| → ∞ (depth ≥ 3).
        """
        return self.beta_of(self._y_of_eta(self._shaped("eta", eta)))

    def eta(self, beta: ArrayLike) -> Array:
        """η (..., d) at β (..., d): the gradient of :meth:`potential`.

        Raises
        ------
        ValueError
            If β is not finite, or of a sign that a coordinate of one branch cannot have.
        """
        z = self.z_of(self.y_at(self._shaped("beta", beta)))
        return np.where(self.moving, (z - self.z_of(self.start)) * np.exp(-self.log_scale), 0.0)

    def condition(self, eta: ArrayLike) -> Array:
        """|d log β / d log η| (..., d): by how much β magnifies a relative error of G = −η.

        Arguments and errors as in :meth:`beta`.
        """
        values = self._shaped("eta", eta)
        y = self._y_of_eta(values)
        with np.errstate(divide="ignore", invalid="ignore"):
            change = np.abs(values) * np.exp(self.log_slope(y) + self.log_scale) / np.abs(self.beta_of(y))
        return np.where((values == 0) | ~self.moving, 0.0, change)

    def potential(self, beta: ArrayLike) -> Array:
        """Q(β) (...,): Σ_i ∫ η db from the start to β_i; convex, least (0) at the start.

        From a start α of the difference form this is ¼ Σ α_i² q(β_i / α_i²) of arXiv 2002.09277.
        Arguments and errors as in :meth:`eta`.
        """
        values = self._shaped("beta", beta)
        y = self.y_at(values)
        gap = (self.z_of(y) - self.z_of(self.start)) * values - self._integral(y) + self._integral(self.start)
        return np.where(self.moving, gap * np.exp(-self.log_scale), 0.0).sum(axis=-1)

    def _y_of_eta(self, eta: Array) -> Array:
        z = self.z_of(self.start) + np.exp(self.log_scale) * eta
        y = self.y_of(z)
        if np.isnan(y).any():
            at = tuple(np.argwhere(np.isnan(y))[0])
            raise ValueError(
                "eta must keep z within the pole of h_D, where |beta| is infinite; "
                f"coordinate {at[-1]} has eta = {eta[at]:g}, z = {z[at]:.17g}"
            )
        return y

    def _shaped(self, name: str, values: ArrayLike) -> Array:
        array = np.asarray(values, dtype=np.float64)
        if array.ndim == 0 or array.shape[-1] != len(self.start):
            raise ValueError(
                f"{name} must have {len(self.start)} entries on its last axis; got {array.shape}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite; got {array[~np.isfinite(array)][0]}")
        return array

    # -- in y

    def beta_of(self, y: Array) -> Array:
        """β (..., d) at y."""
        size, p = np.abs(y), self.power
        near = np.minimum(size, 1.0)
        with np.errstate(divide="ignore", over="ignore"):
            if self.depth == 2:
                log, small = size + np.log(-np.expm1(-2 * size)), 2 * np.sinh(near)
            else:
                log = p * _log_2cosh(y) + p * size + np.log(-np.expm1(-2 * p * size)) - p * np.log(2)
                small = 2 * np.cosh(near) ** p * np.sinh(p * near)
            base = self.depth * self.log_alpha
            large = np.exp(base + np.where(self.side == _BOTH, log, self.side * y))
            # near 0 without the logarithm, which would cost digits
            magnitude = np.where((self.side == _BOTH) & (size < 1), np.exp(base) * small, large)
        return np.where(self.moving, np.where(self.side == _BOTH, np.sign(y), self.side) * magnitude, 0.0)

    def log_slope(self, y: Array) -> Array:
        """Logarithm (..., d) of dβ/dz at y."""
        if self.depth == 2:
            both, one = _log_2cosh(y), self.side * y
        else:
            p = self.power  # dβ/dy − dz/dy of the module's formulas
            both = np.log(p) + (p + 1) * (_log_2cosh(y) - np.log(2)) + _log_2cosh((p + 1) * y)
            one = np.log(p) + (1 + 1 / p) * self.side * y
        slope = self.depth * self.log_alpha + np.where(self.side == _BOTH, both, one)
        return np.where(self.moving, slope, -np.inf)

    def log_stretch(self, y: Array) -> Array:
        """Logarithm (..., d) of dz/dy at y."""
        if self.depth == 2:
            return np.zeros_like(y)
        one = -self.side * y / self.power - np.log(self.power)
        return np.where(self.side == _BOTH, 2 * np.log(2) - 2 * _log_2cosh(y), one)

    def z_of(self, y: Array) -> Array:
        """z (..., d) at y."""
        if self.depth == 2:
            return y + 0.0
        return np.where(self.side == _BOTH, np.tanh(y), -self.side * np.expm1(-self.side * y / self.power))

    def y_of(self, z: Array) -> Array:
        """y (..., d) at z; NaN beyond the pole."""
        if self.depth == 2:
            return z + 0.0
        with np.errstate(invalid="ignore", divide="ignore"):
            both = np.where(np.abs(z) < 1, np.arctanh(z), np.nan)
            one = np.where(self.side * z < 1, -self.side * self.power * np.log1p(-self.side * z), np.nan)
        return np.where(self.moving, np.where(self.side == _BOTH, both, one), 0.0)

    def y_at(self, beta: Array) -> Array:
        """y (..., d) at β, to rounding of log |β| (absolute where |y| > 1, relative below)."""
        if np.any((self.side == _NONE) & (beta != 0)) or np.any(
            (np.abs(self.side) == 1) & (self.side * beta <= 0)
        ):
            raise ValueError(
                "beta must be 0 where both weights start at 0, and of the one branch's sign where one of them does"
            )
        with np.errstate(divide="ignore"):
            log_ratio = np.where(self.moving, np.log(np.abs(beta)) - self.depth * self.log_alpha, -np.inf)
        one = np.where(self.side == _PLUS, log_ratio, np.where(self.side == _MINUS, -log_ratio, 0.0))
        both = np.sign(beta) * (
            _asinh_half(log_ratio) if self.depth == 2 else _solve_y(log_ratio, self.power)
        )
        return np.where(self.side == _BOTH, both, one)

    def _integral(self, y: Array) -> Array:
        """∫ β dz (..., d), the conjugate potential in z, at y."""
        if self.depth == 2:
            log = np.where(self.side == _BOTH, _log_2cosh(y), self.side * y)
        else:
            q = self.power - 1
            both = q * (_log_2cosh(y) - np.log(2)) + _log_2cosh(q * y)
            log = np.where(self.side == _BOTH, both, self.side * y * q / self.power) - np.log(q)
        return np.exp(self.depth * self.log_alpha + log)


def _log_2cosh(y: Array) -> Array:
    size = np.abs(y)
    return size + np.log1p(np.exp(-2 * size))


def _asinh_half(log_b: Array) -> Array:
    """arcsinh(b / 2) from log b."""
    x = log_b - np.log(2)
    large = np.maximum(x, 0.0)
    return np.where(
        x > 0, large + np.log1p(np.sqrt(1 + np.exp(-2 * large))), np.arcsinh(np.exp(np.minimum(x, 0.0)))
    )


def _solve_y(log_b: Array, p: float) -> Array:
    """y ≥ 0 with 2 cosh(y)^p sinh(p y) = b, from log b, to rounding of that.

    log b is convex and increasing in log y, so that Newton's method from above descends to the root.
    """
    finite = log_b > -np.inf
    c = np.where(finite, log_b, 0.0)
    from_small = c - np.log(2 * p)  # 2 p y ≤ b
    large = (c + p * np.log(2)) / (2 * p)
    v = np.where(large > 0, np.minimum(from_small, np.log(np.maximum(large, 0.0) + 1)), from_small)
    for _ in range(60):
        y = np.exp(v)
        value = p * _log_2cosh(y) + p * y + np.log(-np.expm1(-2 * p * y)) - p * np.log(2)
        slope = p * y * (np.tanh(y) + 1 / np.tanh(p * y))
        step = (value - c) / slope
        v -= step
        if np.all(np.abs(step) <= 2 * _EPS * np.maximum(1.0, np.abs(v))):
            break
    return np.where(finite, np.exp(v), 0.0)


# ---- starts ------------------------------------------------------------------------------------------------


def mirror(model: Any, theta0: ArrayLike) -> Mirror:
    """The mirror map of a diagonal network from a start.

    Parameters
    ----------
    model : Diagonal
        Its ``form`` and ``depth`` are read.
    theta0 : array (P,)
        [w₊, w₋], [u, v] or [w]; at odd depth ≥ 0.

    Returns
    -------
    Mirror

    Raises
    ------
    ValueError
        If the model is no diagonal network, the depth is below 2 (product: not 2), or theta0 does not fit it.
    """
    form, depth = family(model)
    log_a, log_b = branches(model, theta0)
    return from_branches(log_a, log_b, depth, rate_of(form, depth))


def branches(model: Any, theta0: ArrayLike) -> tuple[Array, Array]:
    """Logarithms (d,) of the weights a, b ≥ 0 of the two branches of the module's text; −inf for 0."""
    form, depth = family(model)
    theta = finite_array("theta0", theta0, ("P",))
    if form == "power":
        first, second = theta, np.zeros_like(theta)
    else:
        if len(theta) % 2:
            raise ValueError(
                f"theta0 must hold two vectors of one length for the {form} form; got {len(theta)} entries"
            )
        first, second = theta[: len(theta) // 2], theta[len(theta) // 2 :]
    if form == "product":
        first, second = 0.5 * (first + second), 0.5 * (first - second)
    elif depth % 2 and theta.min() < 0:
        raise ValueError(f"theta0 must be >= 0 at odd depth {depth}; got an entry {theta.min():g}")
    with np.errstate(divide="ignore"):
        return np.log(np.abs(first)), np.log(np.abs(second))


def from_branches(log_a: Array, log_b: Array, depth: int, rate: float) -> Mirror:
    """The mirror map from the logarithms (d,) of the two branches a, b, −inf where there is none."""
    has_a, has_b = log_a > -np.inf, log_b > -np.inf
    side = np.select([has_a & has_b, has_a, has_b], [_BOTH, _PLUS, _MINUS], _NONE).astype(np.int64)
    a, b = np.where(has_a, log_a, 0.0), np.where(has_b, log_b, 0.0)
    if depth == 2:
        both, start = 0.5 * (a + b), a - b
    else:
        q = depth - 2
        both, start = (np.log(2) - np.logaddexp(-q * a, -q * b)) / q, 0.5 * q * (a - b)
    log_alpha = np.select([side == _BOTH, side == _PLUS, side == _MINUS], [both, a, b], 0.0)
    return Mirror(log_alpha, np.where(side == _BOTH, start, 0.0), side, depth, rate)


def family(model: Any) -> tuple[str, int]:
    """Form and depth of a diagonal network."""
    if not hasattr(model, "form") or not hasattr(model, "depth"):
        raise ValueError(
            f"model must be a diagonal network, with a form and a depth; got {type(model).__name__}"
        )
    form, depth = one_of("model.form", model.form, FORMS), check_depth(model.depth)
    if form == "product" and depth != 2:
        raise ValueError(f"model.depth must be 2 for the product form; got {depth}")
    return form, depth


def rate_of(form: str, depth: int) -> float:
    """κ of the module's text."""
    if depth == 2:
        return 2.0 if form == "product" else 4.0
    return float(depth * (depth - 2))


def regression(problem: Any, inputs: int, *losses: str) -> tuple[Array, Array]:
    """X (n, d) and y (n,) of a problem with one output, checked against the network and the losses allowed."""
    of_type("problem", problem, Problem, "a gflow.Problem")
    if problem.kind != "regression" or problem.outputs != 1:
        raise ValueError(
            f"problem must hold samples X, Y with one output; it is of kind {problem.kind!r} with {problem.outputs}"
        )
    if losses and problem.loss not in losses:
        raise ValueError(
            f"problem must have the {' or '.join(losses)} loss here; it has the {problem.loss} loss"
        )
    if problem.inputs != inputs:
        raise ValueError(
            f"theta0 must fit the {problem.inputs} inputs of the problem; it has {inputs} coordinates"
        )
    return problem.X, problem.Y[:, 0]


def no_decay(problem: Problem) -> Hypothesis:
    """Weight decay, which moves the invariants."""
    return Hypothesis("no weight decay", problem.weight_decay, tolerance=0.0)


# ---- β(t) --------------------------------------------------------------------------------------------------


def path(
    model: Any, problem: Problem, theta0: ArrayLike, t: ArrayLike, integrals: ArrayLike, force: bool = False
) -> Prediction:
    """β(t) from the integral of its own gradient, at the times at which that was recorded.

    Parameters
    ----------
    model : Diagonal
    problem : Problem
        Samples with one output; any loss and factor.
    theta0 : array (P,)
        Start.
    t : array (T,)
        Increasing times.
    integrals : array (T, d)
        G(t) = ∫₀ᵗ ∇_β L(β(s)) ds.
    force : bool
        Compute the formula although a hypothesis fails.

    Returns
    -------
    Prediction
        Of the observable ``"end_to_end"`` (T, 1, d), NaN at times that are not among t.

    Raises
    ------
    ValueError
        If the arguments do not fit each other, or G is beyond the pole of h_D.

    Notes
    -----
    With G from the same run this checks consistency, and is blind to an error in time.  Its effect of a relative
    error of G is ``mirror(model, theta0).condition(-integrals)``.  Source: arXiv 2002.09277.
    """
    m = mirror(model, theta0)
    regression(problem, len(m.start))
    times = finite_array("t", t, ("T",))
    if np.any(np.diff(times) <= 0) or times[0] < 0:
        raise ValueError("t must hold increasing times >= 0")
    recorded = m.beta(-finite_array("integrals", integrals, (len(times), len(m.start))))

    def formula(wanted: Array) -> Array:
        out = np.full((len(wanted), 1, len(m.start)), np.nan)
        out[wanted == 0] = m.beta0
        place = np.minimum(np.searchsorted(times, wanted), len(times) - 1)
        known = times[place] == wanted
        out[known, 0] = recorded[place[known]]
        return out

    return Prediction("end_to_end", (no_decay(problem),), "arXiv 2002.09277", formula, forced=force)
