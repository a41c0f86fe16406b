"""Stiff gradient flow: variable-order BDF whose linear systems are solved by conjugate gradients.

Near the end of training the fastest modes have long settled and only limit an explicit step.  The
backward differentiation formulas of order 1 to 6, with coefficients for any spacing of the steps, take
steps as long as the accuracy allows.  The Jacobian of a gradient flow is -H with H symmetric: the one
linear system of a step, (H + s I) x = r, costs a gradient or Hessian-vector product per iteration of
conjugate gradients, with no basis to store and nothing to orthogonalise.

The linearisation is made at a prediction one order above the formula's, and the correction is needed only
to a fraction of the tolerance, so a handful of iterations and no second Newton step do.  (Exponential
Rosenbrock methods must compute the whole increment of a step to the tolerance, several times a step.)

The loop is that of ``explicit``, whose state it shares, and starts with its steps: they fill the history
from which the formula goes on at once at high order.  With ``AUTO`` it goes over when the largest eigenvalue of H says
that stability limits the explicit step, and the formula's own error over the last explicit steps that its steps would
be long enough to pay; it returns when the explicit method has become the cheaper of the two per unit of time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gflow.kernels import explicit
from gflow.kernels.abi import kernel
from gflow.kernels.elementary import exp, exp2, log2
from gflow.kernels.explicit import (
    ACCEPTED,
    BLOCK_FULL,
    DENSE,
    DISSIPATION,
    DISSIPATION_BEFORE,
    FINISHED,
    FRESH,
    GRADIENTS,
    H_BEFORE,
    HISTORY,
    MAX_STEPS,
    MOVED,
    NON_FINITE,
    PAUSED,
    REJECTED,
    REJECTED_LAST,
    SAVED,
    STEP_TOO_SMALL,
    T_BEFORE,
    H,
    T,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# What steps: only the implicit formula once it has its history, or whichever costs less.
BDF, AUTO = range(2)

# Places in Stiff.numbers ...
(
    IMPLICIT, LAST_IMPLICIT, HELD, ORDER, LAST_ORDER, AT_ORDER, PRODUCTS, COLLECTING, NEXT_LOOK, PATIENCE,
    ATTEMPTS, FAILED, SWITCHES,
) = range(13)  # fmt: skip
# ... and in Stiff.rates.
ALLOWED_COST, STEPS_MARK, LARGEST, EXPLICIT_H, COST_MARK, BURDEN, FORESEEN, SPEED = range(8)

# Rows of Stiff.weights.
_VALUES, _SLOPES = range(2)

HIGHEST = 6  # order; the interpolating polynomial has this degree
_KEPT = HIGHEST + 2  # states that the error estimate of one order more needs, besides the new one
_MOST_ITERATIONS = 10_000
# Share of the tolerance that an implicit step may err by: along a plateau its errors, unlike those of an explicit
# step that stability cuts short, are as large as allowed, and grow as the flow escapes.
_SHARE = 0.2
# Error of the linear solve in units of that.
_SOLVED = 0.3
# How much shorter a step is taken than the error would allow, and what a change of order must gain.
_SAFETY, _RELUCTANCE = 1.3, 0.95
# Steps before the first look at what limits them (where a gradient is that cheap, in nanoseconds: an explicit step costs
# less than the sums of an implicit one), between the later ones, and before the implicit method is tried again once it
# has lost.
_FIRST_LOOK, _FIRST_LOOK_OF_CHEAP, _LOOK, _PATIENCE = 16, 512, 16, 32
_CHEAP = 400.0
# Fewest gradients of an implicit step: of the prediction, and two products.
_LEAST_GRADIENTS = 3
# Nanoseconds that the sums of an implicit step of a small network take.
_BOOKKEEPING = 500.0
# Products to tell the largest eigenvalue, the least growth of its estimate that asks for another, and the part of the
# border below which the first estimate is enough.
_MOST_PRODUCTS, _SETTLED, _CALM = 4, 1.2, 0.02
# Failures in a row after which the explicit method takes over.
_HOPELESS = 8
# Share of the stability limit above which the explicit step is, or will soon be, limited by it, and share of the
# explicit method's cost that the implicit one may have.
_BORDER, _GAIN = 0.15, 0.8
# Largest lambda / s for which differences of gradients are exact enough to stand for products with H.
_DIFFERENCES = 3e4
_ROOT = 1.4901161193847656e-08  # of the spacing of double precision

#: Degree in t of the stored polynomials.
DENSE_DEGREE = 8
_CHEBYSHEV = 0.5 - 0.5 * np.cos(np.pi * np.arange(DENSE_DEGREE + 1) / DENSE_DEGREE)
_TO_POWERS = np.linalg.inv(np.vander(_CHEBYSHEV, increasing=True))  # values there to coefficients
# The square of the slope has degree 2 (HIGHEST - 1), but its highest terms are of the size of the tolerance.
_GAUSS_NODES = 0.5 + 0.5 * np.polynomial.legendre.leggauss(4)[0]
_GAUSS_WEIGHTS = 0.5 * np.polynomial.legendre.leggauss(4)[1]


class Stiff(NamedTuple):
    """What the loop needs besides ``explicit.State`` to go on."""

    numbers: Ints  # see the places above
    rates: Floats  # (8,)
    times: Floats  # (K,): accepted times, newest first
    nodes: Floats  # (K,): s = log(t / newest)
    differences: Floats  # (K - 1, P): divided differences in s of order 0, the newest state, to HIGHEST
    switches: Floats  # (16,): when the method changed, of which SWITCHES are still to be read
    guess: Floats  # (P,) scratch, as all below
    slope: Floats  # gradient at the guess
    residual: Floats
    direction: Floats
    product: Floats
    correction: Floats
    trial: Floats
    weights: Floats  # (2, K - 1): of the differences
    energy: Floats  # (iterations,)


#: Fields of ``Stiff`` that a continuation needs; the rest is scratch.
KEPT = ("numbers", "rates", "times", "nodes", "differences")

# Where the vectors begin in the flat array of ``stiff_of``, and what lies between two of them, see ``explicit.state_of``.
_FIRST, _GAP = 56, 8
#: Where the times of the changes of method stand in them.
SWITCH_TIMES = slice(24, 40)


def first_look(nanoseconds: float) -> int:
    """Attempted steps of ``AUTO`` that are explicit in any case, where a gradient takes so long."""
    return _FIRST_LOOK_OF_CHEAP if nanoseconds < _CHEAP else _FIRST_LOOK


def new_arrays(size: int, nanoseconds: float) -> tuple[Floats, Ints]:
    """The numbers and counts that a run begins with, one array each, see ``stiff_of``.

    The time of a gradient is for the price of what an implicit step takes besides.
    """
    flat = np.zeros(_FIRST + (_KEPT + 6) * (size + _GAP) + _iterations(size))
    counts = np.zeros(13, dtype=np.int64)
    counts[NEXT_LOOK] = first_look(nanoseconds)
    counts[PATIENCE] = _PATIENCE
    flat[BURDEN] = _BOOKKEEPING / nanoseconds
    return flat, counts


def _iterations(size: int) -> int:
    return min(10 * size + 100, _MOST_ITERATIONS)


@kernel
def stiff_of(flat, counts, size):
    """What the loop needs, whose arrays stand one after the other in ``flat``; for Python its ``py_func``."""
    step = size + _GAP
    a = _FIRST + (_KEPT - 1) * step
    b = a + step
    c = b + step
    d = c + step
    e = d + step
    f = e + step
    g = f + step
    h = g + step
    kept = _KEPT - 1
    return Stiff(
        counts, flat[:8], flat[8:16], flat[16:24], flat[_FIRST : _FIRST + kept * size].reshape((kept, size)),
        flat[SWITCH_TIMES], flat[a : a + size], flat[b : b + size], flat[c : c + size], flat[d : d + size],
        flat[e : e + size], flat[f : f + size], flat[g : g + size],
        flat[40 : 40 + 2 * kept].reshape((2, kept)), flat[h:],
    )  # fmt: skip


# ---- polynomials through the history -----------------------------------------------------------------------
#
# Their variable is s = log(t / t_0), t_0 the newest time: a stiff flow slows down like a power of t, and its steps
# grow with t.  Where they are short against t, as at a late escape from a saddle, s is t but for a factor.
#
# They are Newton's: sums of divided differences, of which each is a term small against the one before and is left out
# or put in as the order changes.  To shift s leaves the differences as they are.


@kernel(forceinline=True)
def _weigh(nodes, s, degree, weights):
    """Weights of the differences in the interpolant of a degree at s, and in its derivative; 0 beyond that degree."""
    value, slope = 1.0, 0.0
    weights[_VALUES, 0], weights[_SLOPES, 0] = value, slope
    for j in range(degree):
        x = s - nodes[j]
        slope = slope * x + value
        value *= x
        weights[_VALUES, j + 1], weights[_SLOPES, j + 1] = value, slope
    for j in range(degree + 1, weights.shape[1]):
        weights[_VALUES, j], weights[_SLOPES, j] = 0.0, 0.0


@kernel
def _mix(weights, row, differences, out):
    """out = sum over all differences, the small ones first, of their weights times each."""
    v, a, b, c = weights[row, 0], weights[row, 1], weights[row, 2], weights[row, 3]
    d, e, f = weights[row, 4], weights[row, 5], weights[row, 6]
    newest, first, second, third = differences[0], differences[1], differences[2], differences[3]
    if d == 0.0 and e == 0.0 and f == 0.0:
        for i in range(out.size):
            out[i] = v * newest[i] + (a * first[i] + (b * second[i] + c * third[i]))
        return
    fourth, fifth, sixth = differences[4], differences[5], differences[6]
    for i in range(out.size):
        high = d * fourth[i] + (e * fifth[i] + f * sixth[i])
        out[i] = v * newest[i] + (a * first[i] + (b * second[i] + (c * third[i] + high)))


@kernel(fastmath={"reassoc"})
def _square(weights, row, differences):
    """Square of the norm of what ``_mix`` would write, without the newest state."""
    a, b, c = weights[row, 1], weights[row, 2], weights[row, 3]
    d, e, f = weights[row, 4], weights[row, 5], weights[row, 6]
    first, second, third = differences[1], differences[2], differences[3]
    fourth, fifth, sixth = differences[4], differences[5], differences[6]
    total = 0.0
    for i in range(first.size):
        x = a * first[i] + b * second[i] + c * third[i] + d * fourth[i] + e * fifth[i] + f * sixth[i]
        total += x * x
    return total


@kernel
def _update(theta, factors, differences):
    """Put a state in front of those whose divided differences these are; a factor 0 says that there are no more."""
    a, b, c, d = factors[0], factors[1], factors[2], factors[3]
    e, f = factors[4], factors[5]
    newest, first, second, third = differences[0], differences[1], differences[2], differences[3]
    fourth, fifth, sixth = differences[4], differences[5], differences[6]
    for i in range(theta.size):
        x = theta[i]
        y = (x - newest[i]) * a
        newest[i] = x
        x = (y - first[i]) * b
        first[i] = y
        y = (x - second[i]) * c
        second[i] = x
        x = (y - third[i]) * d
        third[i] = y
        y = (x - fourth[i]) * e
        fourth[i] = x
        x = (y - fifth[i]) * f
        fifth[i] = y
        sixth[i] = x


@kernel(forceinline=True)
def _remember(stiff, t, theta):
    """Put a state in front of the history."""
    times, nodes, numbers, factors = stiff.times, stiff.nodes, stiff.numbers, stiff.weights[_VALUES]
    held = min(numbers[HELD], times.size - 1)
    s = np.log1p((t - times[0]) / times[0]) if held > 0 else 0.0
    for j in range(factors.size):
        factors[j] = 1.0 / (s - nodes[j]) if j < held else 0.0
    for j in range(held, 0, -1):
        times[j], nodes[j] = times[j - 1], nodes[j - 1] - s
    times[0], nodes[0] = t, 0.0
    _update(theta, factors, stiff.differences)
    numbers[HELD] = held + 1


# ---- one step ----------------------------------------------------------------------------------------------


@kernel(fastmath={"reassoc"})
def _inner(a, b):
    total = 0.0
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@kernel(fastmath={"reassoc"})
def _begin(rate, slope, r, p, x):
    """r = -slope - rate, p = r, x = 0; return r r."""
    total = 0.0
    for i in range(r.size):
        r[i] = -slope[i] - rate[i]
        p[i] = r[i]
        x[i] = 0.0
        total += r[i] * r[i]
    return total


@kernel(fastmath={"reassoc"})
def _differences(slope, e, p, out):
    """out = (out - slope) e; return p out."""
    total = 0.0
    for i in range(out.size):
        out[i] = (out[i] - slope[i]) * e
        total += p[i] * out[i]
    return total


@kernel(fastmath={"reassoc"})
def _descend(a, shift, p, product, x, r):
    """x += a p, r -= a (H p + shift p); return r r."""
    total = 0.0
    for i in range(x.size):
        x[i] += a * p[i]
        r[i] -= a * (product[i] + shift * p[i])
        total += r[i] * r[i]
    return total


@kernel(fastmath={"reassoc"})
def _turn(b, r, p, e, theta, trial):
    """p = r + b p, trial = theta + e p; return p p."""
    total = 0.0
    for i in range(p.size):
        p[i] = r[i] + b * p[i]
        trial[i] = theta[i] + e * p[i]
        total += p[i] * p[i]
    return total


@kernel(forceinline=True)
def correct(gradient, hvp, t, data, dims, work, counters, stiff, shift, accuracy, square):
    """Solve (H + shift) x = residual at the guess, x to ``correction``; return whether that went well.

    ``_begin`` has been called and gave ``square``.

    It stops when the error of x in the Euclidean norm is below ``accuracy``, by two measures: the decrease of the
    energy over the last iterations (Hestenes and Stiefel, 1952), and Gauss-Radau's upper bound (Meurant and Tichy,
    2013), which supposes that H has no negative eigenvalue; where one shows, the first alone decides.  An error of
    stiff components that goes unseen makes the steps short for a long time.  Where H + shift is not positive
    definite, or the iteration does not converge, the step is too long.

    A difference of gradients stands for the product H p: it costs half of an exact one, and its error,
    1e-8 of the largest eigenvalue, only slows the correction, whose residual is exact; unless the shift is as small.
    """
    numbers, rates, energy, x = stiff.numbers, stiff.rates, stiff.energy, stiff.correction
    theta, slope, trial = stiff.guess, stiff.slope, stiff.trial
    r, p, product = stiff.residual, stiff.direction, stiff.product
    size, largest, known = x.size, 0.0, rates[LARGEST]
    length, scale = square, np.sqrt(_inner(theta, theta))
    limit, radau = accuracy * accuracy * shift, 1.0 / shift
    e = _ROOT * scale / np.sqrt(length)
    for i in range(size):
        trial[i] = theta[i] + e * p[i]
    for m in range(energy.size):
        if length == 0.0:
            return True
        product[size - 1] = np.nan
        if scale > 0.0 and _DIFFERENCES * shift > max(known, largest):
            gradient(t, trial, data, dims, work, product)
            curvature = _differences(slope, 1.0 / e, p, product)
            counters[GRADIENTS] += 1
        else:
            hvp(t, theta, p, data, dims, work, product)
            curvature = _inner(p, product)
            numbers[PRODUCTS] += 1
        largest = max(largest, curvature / length)
        curvature += shift * length
        if not (curvature > 0.0 and curvature < np.inf):  # also NaN
            return False
        a = square / curvature
        energy[m] = a * square
        before, square = square, _descend(a, shift, p, product, x, r)
        left, b = 0.0, square / before
        for j in range(m - m // 6, m + 1):
            left += energy[j]
        radau = (radau - a) / (shift * (radau - a) + b) if radau > a else 0.0
        if left <= limit and radau * square <= limit:
            rates[LARGEST] = max(largest, 0.5 * known)
            return True
        e = _ROOT * scale / np.sqrt(square + b * b * length)  # r is orthogonal to p
        length = _turn(b, r, p, e, theta, trial)
    return False


@kernel
def _extrapolate(weights, order, pace, differences, guess, rate):
    """guess and rate = the interpolant of a degree, and its derivative times ``pace``."""
    a, b, c, d = weights[0, 1], weights[0, 2], weights[0, 3], weights[0, 4]
    e, f = weights[0, 5], weights[0, 6]
    u, v, w, x = pace * weights[1, 1], pace * weights[1, 2], pace * weights[1, 3], pace * weights[1, 4]
    y, z = pace * weights[1, 5], pace * weights[1, 6]
    newest, first, second, third = differences[0], differences[1], differences[2], differences[3]
    if order <= 3:
        for i in range(guess.size):
            guess[i] = newest[i] + (a * first[i] + (b * second[i] + c * third[i]))
            rate[i] = u * first[i] + (v * second[i] + w * third[i])
        return
    fourth, fifth, sixth = differences[4], differences[5], differences[6]
    for i in range(guess.size):
        high = d * fourth[i] + (e * fifth[i] + f * sixth[i])
        guess[i] = newest[i] + (a * first[i] + (b * second[i] + (c * third[i] + high)))
        high = x * fourth[i] + (y * fifth[i] + z * sixth[i])
        rate[i] = u * first[i] + (v * second[i] + (w * third[i] + high))


@kernel(forceinline=True)
def predict(gradient, t, h, data, dims, work, stiff, order, rate):
    """Guess at t + h and its gradient; the interpolant's slope there goes to ``rate``; return the formula's shift.

    The formula says that the slope at the end of the step is that of the interpolant through the guess and its
    predecessors, plus shift * (theta - guess).
    """
    weights, s, pace = stiff.weights, np.log1p(h / t), 1.0 / (t + h)  # ds / dt = 1 / t
    _weigh(stiff.nodes, s, order, weights)
    _extrapolate(weights, order, pace, stiff.differences, stiff.guess, rate)
    stiff.slope[rate.size - 1] = np.nan
    gradient(t + h, stiff.guess, data, dims, work, stiff.slope)
    return pace * weights[_SLOPES, order] / weights[_VALUES, order]


@kernel(forceinline=True)
def _factor(nodes, s, order):
    """Error of the formula of an order at s, relative to how far the prediction one order above is off."""
    shift = 0.0
    for j in range(order):
        shift += 1.0 / (s - nodes[j])
    return 1.0 / (shift * (s - nodes[order]))


@kernel(fastmath={"reassoc"})
def _neighbours(correction, lower, higher, below, above, scale):
    """Squared norms of how far the predictions of one order less and more were off, this one's by ``correction``."""
    less, more = 0.0, 0.0
    for i in range(scale.size):
        x = (correction[i] + lower * below[i]) * scale[i]
        y = (correction[i] - higher * above[i]) * scale[i]
        less += x * x
        more += y * y
    return less, more


@kernel(forceinline=True)
def _errors(stiff, s, order):
    """Errors that the formulas of one order less and more would have made, in units of what is allowed.

    On the scale of the attempt, from its correction; infinite where there is no such order or no history for it.
    """
    nodes, weights, differences, size = stiff.nodes, stiff.weights, stiff.differences, stiff.guess.size
    value = weights[_VALUES, order]
    higher = min(order + 1, HIGHEST)
    less, more = _neighbours(
        stiff.correction, value, value * (s - nodes[order]), differences[order], differences[higher], stiff.product
    )  # fmt: skip
    less = _factor(nodes, s, order - 1) * np.sqrt(less / size) / _SHARE if order > 1 else np.inf
    held = higher > order and stiff.numbers[HELD] >= order + 2
    more = _factor(nodes, s, order + 1) * np.sqrt(more / size) / _SHARE if held else np.inf
    return less, more


@kernel(fastmath={"reassoc"})
def _finish(guess, correction, shift, theta, theta_new, rtol, atol, scale):
    """theta_new, where the interpolant's slope stands, = guess + correction.

    Return the sum of (correction scale)^2, with the scale of ``explicit._squared_norm``, and the square of the slope.
    """
    total, square = 0.0, 0.0
    for i in range(guess.size):
        rate = theta_new[i] + shift * correction[i]
        square += rate * rate
        theta_new[i] = guess[i] + correction[i]
        scale[i] = 1.0 / (atol[i] + rtol * max(abs(theta[i]), abs(theta_new[i])))
        x = correction[i] * scale[i]
        total += x * x
    return total, square


@kernel(forceinline=True)
def attempt(gradient, hvp, t, h, data, dims, work, counters, stiff, order, theta, theta_new, rtol, atol):
    """One step of an order from the history; the result stands in ``theta_new``; return its error.

    In units of what is allowed; infinite if the step is too long for the linear solve.
    """
    size = theta.size
    shift = predict(gradient, t, h, data, dims, work, stiff, order, theta_new)
    counters[GRADIENTS] += 1
    square = _begin(theta_new, stiff.slope, stiff.residual, stiff.direction, stiff.correction)
    if not np.isfinite(square):
        return np.nan
    # of the tolerance, for an error whose direction does not know of the weights
    unit = np.sqrt(_squares(theta, rtol, atol)) / size
    accuracy = _SOLVED * _SHARE / unit
    if not correct(gradient, hvp, t + h, data, dims, work, counters, stiff, shift, accuracy, square):
        return np.inf
    square, stiff.rates[SPEED] = _finish(
        stiff.guess, stiff.correction, shift, theta, theta_new, rtol, atol, stiff.product
    )
    return _factor(stiff.nodes, np.log1p(h / t), order) * np.sqrt(square / size) / _SHARE


@kernel(fastmath={"reassoc"})
def _squares(theta, rtol, atol):
    """Sum of 1 / (atol + rtol |theta|)^2."""
    total = 0.0
    for i in range(theta.size):
        x = atol[i] + rtol * abs(theta[i])
        total += 1.0 / (x * x)
    return total


@kernel(forceinline=True)
def _growth(error, order):
    return 1.0 / (_SAFETY * exp2(log2(error) / (order + 1)) + 1e-6)


@kernel(forceinline=True)
def _next_order(stiff, s, error):
    """Order whose next step may be longest, and that step's length relative to this one's."""
    numbers = stiff.numbers
    order = numbers[ORDER]
    best, factor = order, _growth(error, order)
    less, more = _errors(stiff, s, order)
    if order > 1:
        x = _RELUCTANCE * _growth(less, order - 1)
        if x > factor:
            best, factor = order - 1, x
    if order < HIGHEST and numbers[AT_ORDER] > order:
        x = _RELUCTANCE * _growth(more, order + 1)
        if x > factor:
            best, factor = order + 1, x
    return best, factor


# ---- within the last step ----------------------------------------------------------------------------------


@kernel(forceinline=True)
def _dissipated(stiff, order, begin, end):
    """Integral over t of |theta'|^2 of the interpolant from s = begin to end."""
    total = 0.0
    for q in range(_GAUSS_NODES.size):
        s = begin + _GAUSS_NODES[q] * (end - begin)
        _weigh(stiff.nodes, s, order, stiff.weights)
        total += (
            _GAUSS_WEIGHTS[q] * _square(stiff.weights, _SLOPES, stiff.differences) / exp(s)
        )  # dt (ds / dt)^2 = ds / t
    return total * (end - begin) / stiff.times[0]


@kernel
def interpolate(state, stiff, t, out):
    """Parameters, to ``out``, and dissipation at a time within the last implicit step.

    The error of the interpolant between the ends is below the formula's at the end, whatever the stiffness.
    """
    order, newest = stiff.numbers[LAST_ORDER], stiff.times[0]
    s = np.log1p((t - newest) / newest)
    more = _dissipated(stiff, order, stiff.nodes[1], s)
    _weigh(stiff.nodes, s, order, stiff.weights)
    _mix(stiff.weights, _VALUES, stiff.differences, out)
    return state.clock[DISSIPATION_BEFORE] + more


@kernel
def store_dense(state, stiff, output):
    """Keep the last implicit step as a polynomial in x = (t - t_step) / h that agrees at Chebyshev's points."""
    place, order = output.cursor[DENSE], stiff.numbers[LAST_ORDER]
    begin, h, newest = state.clock[T_BEFORE], state.clock[H_BEFORE], stiff.times[0]
    output.dense_times[place, 0], output.dense_times[place, 1] = begin, h
    out, count, weights = output.dense[place], _CHEBYSHEV.size, stiff.weights
    out[:] = 0.0
    explicit.copy(state.theta_before, out[0])
    for q in range(1, count):
        s = np.log1p((begin + _CHEBYSHEV[q] * h - newest) / newest)
        _weigh(stiff.nodes, s, order, weights)
        # seen from the step's start: the coefficients are large and would magnify its rounding
        weights[_VALUES, 0] = 0.0
        weights[_VALUES, 1] -= stiff.nodes[1]
        _mix(weights, _VALUES, stiff.differences, stiff.trial)
        for d in range(1, count):
            a = _TO_POWERS[d, q]
            for i in range(out.shape[1]):
                out[d, i] += a * stiff.trial[i]
    output.cursor[DENSE] += 1


# ---- which method ------------------------------------------------------------------------------------------


@kernel
def _stiffness(hvp, data, dims, work, tableau, state, stiff):
    """h times the largest eigenvalue of H at the end of an accepted explicit step, estimated from below.

    By a few products from the direction in which the last two stages (both at the step's end) differ: that alone
    shows the slow directions of the step's error, too, and an eigenvalue too small by far.  NaN if products are.
    """
    last, t, h, size = tableau.sizes[0] - 1, state.clock[T], state.clock[H_BEFORE], state.theta.size
    p, product = stiff.direction, stiff.product
    square, known = 0.0, 0.0
    for i in range(size):
        product[i] = state.stages[last, i] - state.stages[last - 1, i]
        square += product[i] * product[i]
    for _ in range(_MOST_PRODUCTS):
        if not (square > 0.0 and square < np.inf):
            break
        scale = 1.0 / np.sqrt(square)
        for i in range(size):
            p[i] = scale * product[i]
        product[size - 1] = np.nan
        hvp(t, state.theta, p, data, dims, work, product)
        stiff.numbers[PRODUCTS] += 1
        before, known = known, _inner(p, product)
        if not known > max(_SETTLED * before, _CALM * _border(tableau) / h):  # settled, calm, or NaN
            break
        square = _inner(product, product)
    return h * known


@kernel
def _border(tableau):
    """h times the largest eigenvalue above which stability limits an explicit step, or will soon."""
    return _BORDER * 0.75 * tableau.sizes[3]


@kernel
def _cost(state, stiff):
    """What has been spent, in gradients: an exact product counts as two, the sums of implicit steps as their burden."""
    numbers, burden = stiff.numbers, stiff.rates[BURDEN]
    return state.counters[GRADIENTS] + 2 * numbers[PRODUCTS] + burden * numbers[ATTEMPTS]


@kernel
def _foresee(state, stiff, rtol, atol):
    """From the explicit step just taken, the order and the step with which the formula would begin.

    Once the history, of which that step's end is not yet part, is full but for one state.
    """
    theta, theta_before, scale, off = state.theta, state.theta_before, stiff.product, stiff.correction
    size, weights, differences = theta.size, stiff.weights, stiff.differences
    for i in range(size):
        scale[i] = 1.0 / (atol[i] + rtol * max(abs(theta[i]), abs(theta_before[i])))
        off[i] = theta[i] - differences[0, i]
    s, best = np.log1p((state.clock[T] - stiff.times[0]) / stiff.times[0]), 0.0
    _weigh(stiff.nodes, s, HIGHEST, weights)
    for order in range(1, HIGHEST + 1):
        square, last = 0.0, weights[_VALUES, order]
        for i in range(size):
            off[i] -= last * differences[order, i]  # how far the prediction of this order is off
            square += (off[i] * scale[i]) ** 2
        error = _factor(stiff.nodes, s, order) * np.sqrt(square / size) / _SHARE
        factor = _growth(error, order)
        if factor > best:
            best, stiff.numbers[ORDER] = factor, order
    stiff.rates[FORESEEN] = best * state.clock[H_BEFORE]


@kernel
def _note_switch(state, stiff):
    if stiff.numbers[SWITCHES] < stiff.switches.size:
        stiff.switches[stiff.numbers[SWITCHES]] = state.clock[T]
        stiff.numbers[SWITCHES] += 1


@kernel
def _go_implicit(state, stiff):
    _note_switch(state, stiff)
    numbers = stiff.numbers
    numbers[IMPLICIT], numbers[COLLECTING], numbers[FAILED] = 1, 0, 0
    numbers[AT_ORDER] = 0
    h = stiff.rates[EXPLICIT_H] = state.clock[H]
    state.clock[H] = min(h, max(stiff.rates[FORESEEN], 1e-3 * h))  # a forecast too dark must not end the run


@kernel
def _go_explicit(state, stiff):
    _note_switch(state, stiff)
    numbers, counters = stiff.numbers, state.counters
    numbers[IMPLICIT] = numbers[HELD] = 0
    numbers[NEXT_LOOK] = counters[ACCEPTED] + counters[REJECTED] + numbers[PATIENCE]
    numbers[PATIENCE] *= 2
    stiff.rates[COST_MARK], stiff.rates[STEPS_MARK] = _cost(state, stiff), counters[ACCEPTED]
    state.clock[H] = stiff.rates[EXPLICIT_H]
    state.clock[explicit.ERROR_BEFORE] = 1.0
    counters[FRESH], counters[REJECTED_LAST] = MOVED, 0


@kernel
def _look(hvp, data, dims, work, tableau, state, stiff):
    """Change the method if it is time to; return whether that was done."""
    numbers, rates, counters = stiff.numbers, stiff.rates, state.counters
    cost = _cost(state, stiff)
    # per unit of time, at the present length of the steps: those of a method that has just begun still grow
    rate = (cost - rates[COST_MARK]) / max(counters[ACCEPTED] - rates[STEPS_MARK], 1) / state.clock[H]
    rates[COST_MARK], rates[STEPS_MARK] = cost, counters[ACCEPTED]
    numbers[NEXT_LOOK] = counters[ACCEPTED] + counters[REJECTED] + _LOOK
    if numbers[IMPLICIT]:
        if rate <= rates[ALLOWED_COST]:
            return False
        _go_explicit(state, stiff)
        return True
    limited = _stiffness(hvp, data, dims, work, tableau, state, stiff) >= _border(tableau)  # false for NaN
    rates[COST_MARK] = _cost(state, stiff)  # the look is not charged to what follows
    if not limited:
        numbers[COLLECTING] = numbers[HELD] = 0
        return False
    if numbers[HELD] == stiff.times.size:
        if (_LEAST_GRADIENTS + rates[BURDEN]) / rates[FORESEEN] > _GAIN * rate:
            numbers[COLLECTING] = numbers[HELD] = 0
            return False
        rates[ALLOWED_COST] = _GAIN * rate
        _go_implicit(state, stiff)
        return True
    numbers[COLLECTING] = 1
    numbers[NEXT_LOOK] += stiff.times.size - _LOOK
    return False


# ---- the loop ----------------------------------------------------------------------------------------------


@kernel
def _save(state, stiff, output):
    """Save what lies within the last implicit step."""
    cursor, times = output.cursor, output.times
    while cursor[SAVED] < times.size and times[cursor[SAVED]] <= state.clock[T]:
        place = cursor[SAVED]
        if times[place] == state.clock[T]:
            explicit.copy(state.theta, output.theta[place])
            output.dissipation[place] = state.clock[DISSIPATION]
        else:
            output.dissipation[place] = interpolate(state, stiff, times[place], output.theta[place])
        cursor[SAVED] += 1
    return cursor[SAVED] == times.size


@kernel(forceinline=True)
def _implicit_step(gradient, hvp, data, dims, work, state, stiff, output, rtol, atol):
    """Attempt one step; return whether it was accepted."""
    clock, counters, numbers = state.clock, state.counters, stiff.numbers
    theta, theta_new, order = state.theta, state.theta_new, numbers[ORDER]
    t, h = clock[T], clock[H]
    s = np.log1p(h / t)
    numbers[ATTEMPTS] += 1
    error = attempt(
        gradient, hvp, t, h, data, dims, work, counters, stiff, order, theta, theta_new, rtol, atol
    )
    good = error <= 1.0  # false for NaN
    history, row = output.history, output.cursor[HISTORY]
    history[row, 0], history[row, 1], history[row, 2] = t, h, 1.0 if good else 0.0
    output.cursor[HISTORY] += 1
    if not good:
        counters[REJECTED] += 1
        numbers[FAILED] += 1
        numbers[AT_ORDER] = 0
        counters[REJECTED_LAST] = explicit._NOT_FINITE if np.isnan(error) else explicit._TOO_LARGE
        if not error < np.inf:
            clock[H] = 0.25 * h
            return False
        if _errors(stiff, s, order)[0] < error:
            numbers[ORDER] = order - 1
        clock[H] = h * max(0.25, 0.9 * exp2(-log2(error) / (order + 1)))
        return False
    numbers[AT_ORDER] += 1
    best, factor = _next_order(stiff, s, error)
    if counters[REJECTED_LAST]:
        factor = min(factor, 1.0)
    if best != order:
        numbers[ORDER], numbers[AT_ORDER] = best, 0
    numbers[LAST_IMPLICIT], numbers[LAST_ORDER], numbers[FAILED] = 1, order, 0
    clock[T_BEFORE], clock[H_BEFORE], clock[DISSIPATION_BEFORE] = t, h, clock[DISSIPATION]
    clock[T] = t + h
    if factor < 1.0 or factor > 1.05:
        clock[H] = h * min(factor, 2.0)
    for i in range(theta.size):
        state.theta_before[i] = theta[i]
        theta[i] = theta_new[i]
    _remember(stiff, clock[T], theta)
    clock[DISSIPATION] += _dissipated(stiff, order, stiff.nodes[1], 0.0)
    state.slopes[0] = stiff.rates[SPEED]  # the gradient there shows the errors of stiff components enlarged
    counters[ACCEPTED] += 1
    counters[REJECTED_LAST] = 0
    explicit.keep_checkpoint(state)
    if output.dense_times.shape[0] > 0:
        store_dense(state, stiff, output)
    return True


@kernel
def advance(
    gradient, hvp, data, dims, work, tableau, state, stiff, output, kind, rtol, atol, fresh, budget, max_steps
):
    """Integrate as ``explicit.advance`` does, by the method of a kind.

    Steps of another method cost otherwise than those by which the budget was measured: after a change it is at most
    ``fresh``.
    """
    clock, counters, numbers = state.clock, state.counters, stiff.numbers
    switches = numbers[SWITCHES]
    while True:
        if numbers[SWITCHES] > switches:
            switches, budget = numbers[SWITCHES], min(budget, fresh)
            if switches == stiff.switches.size:
                return PAUSED
        if numbers[LAST_IMPLICIT] and _save(state, stiff, output):
            return FINISHED
        if numbers[LAST_IMPLICIT] and explicit.at_rest(state):
            return explicit.AT_REST
        attempts = counters[ACCEPTED] + counters[REJECTED]
        if not numbers[LAST_IMPLICIT]:  # saves what lies within the last explicit step
            # a bare number would be a type of its own, and the loop compiled for it once more
            code = explicit.advance(
                gradient, data, dims, work, tableau, state, output, rtol, atol, np.int64(0), max_steps
            )
            if code != PAUSED:
                return code
        if attempts >= max_steps:
            return MAX_STEPS
        if kind == AUTO and attempts >= numbers[NEXT_LOOK] and not counters[REJECTED_LAST]:
            if _look(hvp, data, dims, work, tableau, state, stiff):
                continue
        elif kind == BDF and not numbers[IMPLICIT]:
            numbers[COLLECTING] = 1
            if numbers[HELD] == stiff.times.size:
                _go_implicit(state, stiff)
                continue
        if budget <= 0:
            return PAUSED
        if not numbers[IMPLICIT]:
            accepted = counters[ACCEPTED]
            allowed = 1 if numbers[COLLECTING] else max(numbers[NEXT_LOOK] - attempts, 1)
            code = explicit.advance(
                gradient,
                data,
                dims,
                work,
                tableau,
                state,
                output,
                rtol,
                atol,
                min(budget, allowed),
                max_steps,
            )
            if counters[ACCEPTED] > accepted:
                numbers[LAST_IMPLICIT] = 0
                if numbers[COLLECTING]:
                    if numbers[HELD] >= stiff.times.size - 1:
                        _foresee(state, stiff, rtol, atol)
                    _remember(stiff, clock[T], state.theta)
            if code != PAUSED:
                return code
            budget -= counters[ACCEPTED] + counters[REJECTED] - attempts
            if budget <= 0:
                return PAUSED
            continue
        if output.cursor[HISTORY] == output.history.shape[0]:
            return BLOCK_FULL
        if output.cursor[DENSE] == output.dense_times.shape[0] and output.dense_times.shape[0] > 0:
            return BLOCK_FULL
        if explicit.no_later(clock[T], clock[H]):
            return NON_FINITE if counters[REJECTED_LAST] >= explicit._NOT_FINITE else STEP_TOO_SMALL
        budget -= 1
        if _implicit_step(gradient, hvp, data, dims, work, state, stiff, output, rtol, atol):
            if budget <= 0:
                return PAUSED  # before saving, as in explicit
        elif kind == AUTO and numbers[FAILED] >= _HOPELESS:
            _go_explicit(state, stiff)


@kernel
def run(
    loop, gradient, hvp, data, dims, work, tableau, numbers, counters, flat, counts, cursor, times, theta,
    dissipation, history, dense_times, dense, kind, rtol, atol, fresh, budget, max_steps,
):  # fmt: skip
    """``advance``, as a first-class function, from and to plain arrays."""
    state = explicit.state_of(numbers, counters, tableau, atol.size)
    stiff = stiff_of(flat, counts, atol.size)
    output = explicit.Output(cursor, times, theta, dissipation, history, dense_times, dense)
    return loop(
        gradient,
        hvp,
        data,
        dims,
        work,
        tableau,
        state,
        stiff,
        output,
        kind,
        rtol,
        atol,
        fresh,
        budget,
        max_steps,
    )
