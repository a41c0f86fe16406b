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
ALLOWED_COST, STEPS_MARK, LARGEST, EXPLICIT_H, COST_MARK, BURDEN, FORESEEN = range(7)

# Rows of Stiff.weights that are scratch.
_SPREAD, _SLOPES = 3, 4

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
_BOOKKEEPING = 800.0
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
_GAUSS_NODES = 0.5 + 0.5 * np.polynomial.legendre.leggauss(HIGHEST - 1)[0]
_GAUSS_WEIGHTS = 0.5 * np.polynomial.legendre.leggauss(HIGHEST - 1)[1]


class Stiff(NamedTuple):
    """What the loop needs besides ``explicit.State`` to go on."""

    numbers: Ints  # see the places above
    rates: Floats
    times: Floats  # (K,): accepted times, newest first
    nodes: Floats  # (K,): s = log(t / newest)
    newest: Floats  # (P,): the state there
    moves: Floats  # (K - 1, P): states minus the one before each, in any order
    places: Ints  # (K - 1,): their rows, newest first
    gram: Floats  # (K - 1, K - 1): inner products of these rows
    switches: Floats  # (C,): when the method changed, of which SWITCHES are still to be read
    guess: Floats  # (P,) scratch, as all below
    slope: Floats  # gradient at the guess
    residual: Floats
    direction: Floats
    product: Floats
    correction: Floats
    trial: Floats
    weights: Floats  # (5, K + 2): of the history, in rows 0 to 2
    energy: Floats  # (iterations,)


#: Fields of ``Stiff`` that a continuation needs; the rest is scratch.
KEPT = ("numbers", "rates", "times", "nodes", "newest", "moves", "places", "gram")


def first_look(nanoseconds: float) -> int:
    """Attempted steps of ``AUTO`` that are explicit in any case, where a gradient takes so long."""
    return _FIRST_LOOK_OF_CHEAP if nanoseconds < _CHEAP else _FIRST_LOOK


def new_stiff(size: int, nanoseconds: float) -> Stiff:
    """What a run begins with; the time of a gradient is for the price of what an implicit step takes besides."""
    numbers = np.zeros(13, dtype=np.int64)
    numbers[NEXT_LOOK] = first_look(nanoseconds)
    numbers[PATIENCE] = _PATIENCE
    rates = np.zeros(7)
    rates[BURDEN] = _BOOKKEEPING / nanoseconds
    scratch = [np.zeros(size) for _ in range(7)]
    return Stiff(
        numbers, rates, np.zeros(_KEPT), np.zeros(_KEPT), np.zeros(size), np.zeros((_KEPT - 1, size)),
        np.arange(_KEPT - 1), np.zeros((_KEPT - 1, _KEPT - 1)), np.zeros(16), *scratch, np.zeros((5, _KEPT + 2)),
        np.zeros(_MOST_ITERATIONS),
    )  # fmt: skip


# ---- polynomials through the history -----------------------------------------------------------------------
#
# Their variable is s = log(t / t_0), t_0 the newest time: a stiff flow slows down like a power of t, and its steps
# grow with t.  Where they are short against t, as at a late escape from a saddle, s is t but for a factor.


@kernel
def _spread(nodes, count, weights):
    """Write 1 / prod_(i != j) (nodes[j] - nodes[i]) to the row _SPREAD."""
    for j in range(count):
        x = 1.0
        for i in range(count):
            if i != j:
                x *= nodes[j] - nodes[i]
        weights[_SPREAD, j] = 1.0 / x


@kernel
def _value_weights(nodes, count, s, weights, row):
    """Weights of the interpolant through nodes[:count] at s."""
    _spread(nodes, count, weights)
    x = 1.0
    for j in range(count):
        weights[row, j] = x
        x *= s - nodes[j]
    x = 1.0
    for j in range(count - 1, -1, -1):
        weights[row, j] *= x * weights[_SPREAD, j]
        x *= s - nodes[j]


@kernel
def _slope_weights(nodes, count, s, weights, row):
    """Weights of the interpolant's derivative, once ``_spread`` has been called."""
    x, slope = 1.0, 0.0  # the product of the factors on one side, and its derivative
    for j in range(count):
        weights[row, j], weights[_SLOPES, j] = x, slope
        slope = slope * (s - nodes[j]) + x
        x *= s - nodes[j]
    x, slope = 1.0, 0.0
    for j in range(count - 1, -1, -1):
        weights[row, j] = (weights[_SLOPES, j] * x + weights[row, j] * slope) * weights[_SPREAD, j]
        slope = slope * (s - nodes[j]) + x
        x *= s - nodes[j]


@kernel
def _of_moves(weights, row, count):
    """Turn weights of ``count`` states into those of the moves between them, for the sum without the newest state."""
    x = 0.0
    for j in range(count - 1, -1, -1):
        x, weights[row, j] = x + weights[row, j], -x


@kernel
def _mix(stiff, count, row, out):
    """out = sum over the newest ``count`` moves of weights[row, j] times each.

    Sums of moves do not cancel as those of states do.  Four moves at a time, the last of them perhaps times zero.
    """
    moves, places, weights = stiff.moves, stiff.places, stiff.weights
    for j in range(count, count + 3):
        weights[row, j] = 0.0
    for j in range(0, count, 4):
        a, b, c, d = weights[row, j], weights[row, j + 1], weights[row, j + 2], weights[row, j + 3]
        last = places.size - 1
        w, x = places[j], places[min(j + 1, last)]
        y, z = places[min(j + 2, last)], places[min(j + 3, last)]
        if j == 0:
            for i in range(out.size):
                out[i] = a * moves[w, i] + b * moves[x, i] + c * moves[y, i] + d * moves[z, i]
        else:
            for i in range(out.size):
                out[i] += a * moves[w, i] + b * moves[x, i] + c * moves[y, i] + d * moves[z, i]


@kernel
def _square(stiff, count, row):
    """Square of the norm of what ``_mix`` would write, from the inner products."""
    places, weights, gram, total = stiff.places, stiff.weights, stiff.gram, 0.0
    for j in range(count):
        place, others = places[j], 0.0
        for k in range(j):
            others += weights[row, k] * gram[place, places[k]]
        total += weights[row, j] * (weights[row, j] * gram[place, place] + 2.0 * others)
    return max(total, 0.0)  # rounding


@kernel
def _remember(stiff, t, theta):
    """Put a state in front of the history."""
    times, nodes, moves, places, numbers = stiff.times, stiff.nodes, stiff.moves, stiff.places, stiff.numbers
    held = min(numbers[HELD], times.size - 1)
    s = np.log1p((t - times[0]) / times[0]) if held > 0 else 0.0
    for j in range(held, 0, -1):
        times[j], nodes[j] = times[j - 1], nodes[j - 1] - s
    times[0], nodes[0] = t, 0.0
    oldest = places[places.size - 1]
    for j in range(places.size - 1, 0, -1):
        places[j] = places[j - 1]
    places[0] = oldest
    move, newest = moves[oldest], stiff.newest
    for i in range(theta.size):
        move[i] = theta[i] - newest[i]
        newest[i] = theta[i]
    for j in range(held):  # without a state before, the move means nothing and is not used
        product = _inner(move, moves[places[j]])
        stiff.gram[oldest, places[j]] = product
        stiff.gram[places[j], oldest] = product
    numbers[HELD] = held + 1


# ---- one step ----------------------------------------------------------------------------------------------


@kernel(fastmath={"reassoc"})
def _inner(a, b):
    total = 0.0
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@kernel(fastmath={"reassoc"})
def _begin(slope, r, p, x):
    """r -= slope, p = r, x = 0; return r r."""
    total = 0.0
    for i in range(r.size):
        r[i] -= slope[i]
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


@kernel
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
def predict(gradient, t, h, data, dims, work, stiff, order):
    """Guess at t + h, its gradient, and the formula's residual there without it; return its shift.

    The formula says theta' = shift * theta + what the history gives.
    """
    nodes, weights, guess, r = stiff.nodes, stiff.weights, stiff.guess, stiff.residual
    size, new = guess.size, np.log1p(h / t)
    _value_weights(nodes, order + 1, new, weights, 0)
    _of_moves(weights, 0, order + 1)
    _mix(stiff, order, 0, guess)
    # the slope of the polynomial through the guess: sum over j < order of a_j (guess - states[j])
    _value_weights(nodes, order, new, weights, 1)
    shift, total, left = 0.0, 0.0, 0.0
    for j in range(order):
        x = 1.0 / ((new - nodes[j]) * (t + h))  # ds / dt = 1 / t
        shift += x
        weights[1, j] *= x
        total += weights[1, j]
    for j in range(order - 1, -1, -1):
        left, weights[1, j] = left + weights[1, j], -(total * weights[0, j] + left)
    _mix(stiff, order, 1, r)
    for i in range(size):
        guess[i] += stiff.newest[i]
    stiff.slope[size - 1] = np.nan
    gradient(t + h, guess, data, dims, work, stiff.slope)
    return shift


@kernel
def _factor(stiff, s, order):
    """Error of the formula of an order at s, relative to how far the prediction one order above is off."""
    shift = 0.0
    for j in range(order):
        shift += 1.0 / (s - stiff.nodes[j])
    return 1.0 / (shift * (s - stiff.nodes[order]))


@kernel
def _error(stiff, s, order, theta_new):
    """Error of the formula of another order at s, in units of what is allowed, on the scale of the attempt."""
    count, weights, off, scale, newest = order + 1, stiff.weights, stiff.trial, stiff.product, stiff.newest
    if count > stiff.numbers[HELD]:
        return np.inf
    _value_weights(stiff.nodes, count, s, weights, 2)
    _of_moves(weights, 2, count)
    _mix(stiff, order, 2, off)
    return _factor(stiff, s, order) * np.sqrt(_distance(theta_new, newest, off, scale) / off.size) / _SHARE


@kernel(fastmath={"reassoc"})
def _distance(theta_new, newest, off, scale):
    """Sum of ((theta_new - newest - off) scale)^2."""
    total = 0.0
    for i in range(off.size):
        x = (theta_new[i] - newest[i] - off[i]) * scale[i]
        total += x * x
    return total


@kernel(fastmath={"reassoc"})
def _finish(guess, correction, theta, theta_new, rtol, atol, scale):
    """theta_new = guess + correction; return the sum of (correction scale)^2, with the scale of ``explicit._squared_norm``."""
    total = 0.0
    for i in range(guess.size):
        theta_new[i] = guess[i] + correction[i]
        scale[i] = 1.0 / (atol[i] + rtol * max(abs(theta[i]), abs(theta_new[i])))
        x = correction[i] * scale[i]
        total += x * x
    return total


@kernel
def attempt(gradient, hvp, t, h, data, dims, work, counters, stiff, order, theta, theta_new, rtol, atol):
    """One step of an order from the history; the result stands in ``theta_new``; return its error.

    In units of what is allowed; infinite if the step is too long for the linear solve.
    """
    size = theta.size
    shift = predict(gradient, t, h, data, dims, work, stiff, order)
    counters[GRADIENTS] += 1
    square = _begin(stiff.slope, stiff.residual, stiff.direction, stiff.correction)
    if not np.isfinite(square):
        return np.nan
    # of the tolerance, for an error whose direction does not know of the weights
    unit = np.sqrt(_squares(theta, rtol, atol)) / size
    accuracy = _SOLVED * _SHARE / unit
    if not correct(gradient, hvp, t + h, data, dims, work, counters, stiff, shift, accuracy, square):
        return np.inf
    square = _finish(stiff.guess, stiff.correction, theta, theta_new, rtol, atol, stiff.product)
    return _factor(stiff, np.log1p(h / t), order) * np.sqrt(square / size) / _SHARE


@kernel(fastmath={"reassoc"})
def _squares(theta, rtol, atol):
    """Sum of 1 / (atol + rtol |theta|)^2."""
    total = 0.0
    for i in range(theta.size):
        x = atol[i] + rtol * abs(theta[i])
        total += 1.0 / (x * x)
    return total


@kernel
def _growth(error, order):
    return 1.0 / (_SAFETY * exp2(log2(error) / (order + 1)) + 1e-6)


@kernel
def _next_order(stiff, s, error, theta_new):
    """Order whose next step may be longest, and that step's length relative to this one's."""
    numbers = stiff.numbers
    order = numbers[ORDER]
    best, factor = order, _growth(error, order)
    if order > 1:
        x = _RELUCTANCE * _growth(_error(stiff, s, order - 1, theta_new), order - 1)
        if x > factor:
            best, factor = order - 1, x
    if order < HIGHEST and numbers[AT_ORDER] > order:
        x = _RELUCTANCE * _growth(_error(stiff, s, order + 1, theta_new), order + 1)
        if x > factor:
            best, factor = order + 1, x
    return best, factor


# ---- within the last step ----------------------------------------------------------------------------------


@kernel
def _dissipated(stiff, order, begin, end):
    """Integral over t of |theta'|^2 of the interpolant from s = begin to end."""
    total = 0.0
    _spread(stiff.nodes, order + 1, stiff.weights)
    for q in range(_GAUSS_NODES.size):
        s = begin + _GAUSS_NODES[q] * (end - begin)
        _slope_weights(stiff.nodes, order + 1, s, stiff.weights, 2)
        _of_moves(stiff.weights, 2, order + 1)
        total += _GAUSS_WEIGHTS[q] * _square(stiff, order, 2) / exp(s)  # dt (ds / dt)^2 = ds / t
    return total * (end - begin) / stiff.times[0]


@kernel
def interpolate(state, stiff, t, out):
    """Parameters, to ``out``, and dissipation at a time within the last implicit step.

    The error of the interpolant between the ends is below the formula's at the end, whatever the stiffness.
    """
    order, newest = stiff.numbers[LAST_ORDER], stiff.times[0]
    s = np.log1p((t - newest) / newest)
    more = _dissipated(stiff, order, stiff.nodes[1], s)
    _value_weights(stiff.nodes, order + 1, s, stiff.weights, 2)
    _of_moves(stiff.weights, 2, order + 1)
    _mix(stiff, order, 2, out)
    for i in range(out.size):
        out[i] += stiff.newest[i]
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
        _value_weights(stiff.nodes, order + 1, s, weights, 2)
        _of_moves(weights, 2, order + 1)
        # seen from the step's start: the coefficients are large and would magnify its rounding
        weights[2, 0] += 1.0
        _mix(stiff, order, 2, stiff.trial)
        for d in range(1, count):
            a = _TO_POWERS[d, q]
            for i in range(out.shape[1]):
                out[d, i] += a * stiff.trial[i]
    output.cursor[DENSE] += 1


@kernel
def _speed(stiff):
    """|theta'|^2 of the interpolant at its end: the gradient there shows the errors of stiff components enlarged.

    Once ``_dissipated`` has been called.
    """
    count = stiff.numbers[LAST_ORDER] + 1
    _slope_weights(stiff.nodes, count, 0.0, stiff.weights, 2)
    _of_moves(stiff.weights, 2, count)
    return _square(stiff, count - 1, 2) / stiff.times[0] ** 2


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
    theta, theta_before, scale = state.theta, state.theta_before, stiff.product
    for i in range(scale.size):
        scale[i] = 1.0 / (atol[i] + rtol * max(abs(theta[i]), abs(theta_before[i])))
    s, best = np.log1p((state.clock[T] - stiff.times[0]) / stiff.times[0]), 0.0
    for order in range(1, HIGHEST + 1):
        factor = _growth(_error(stiff, s, order, theta), order)
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


@kernel
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
        if order > 1 and _error(stiff, s, order - 1, theta_new) < error:
            numbers[ORDER] = order - 1
        clock[H] = h * max(0.25, 0.9 * exp2(-log2(error) / (order + 1)))
        return False
    numbers[AT_ORDER] += 1
    best, factor = _next_order(stiff, s, error, theta_new)
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
    state.slopes[0] = _speed(stiff)
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
