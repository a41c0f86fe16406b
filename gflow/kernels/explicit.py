"""Adaptive explicit Runge-Kutta integration of a gradient flow: one compiled, resumable loop.

The loop integrates dtheta/dt = -grad L(theta) together with the dissipation q(t), the integral of
|grad L|^2.  All that it knows lies in the arrays of ``State``, so that it can stop anywhere and go on,
bit for bit, as if it had not.  Steps never depend on the times at which states are saved: those come
from the interpolant.

In the innermost functions arrays are indexed, not sliced, and handed over one by one, but where they are long: to make a
view, or to take a tuple apart, costs more than the arithmetic of a network of two parameters.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gflow.kernels.abi import kernel
from gflow.kernels.elementary import exp2, log2
from gflow.kernels.tableaus import Tableau

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Why the loop came back.
FINISHED, PAUSED, BLOCK_FULL, MAX_STEPS, STEP_TOO_SMALL, NON_FINITE, AT_REST = range(7)

# Places in State.clock ...
(
    T, H, ERROR_BEFORE, DISSIPATION, T_BEFORE, H_BEFORE, DISSIPATION_BEFORE, STEEPEST, REST, APART, APART_IN_RATIO,
) = range(11)  # fmt: skip
# ... in State.counters ...
ACCEPTED, REJECTED, GRADIENTS, STARTED, FRESH, EXTRA_DONE, CHECKPOINTS, REJECTED_LAST, PROBED = range(9)
# What State.counters[PROBED] says of the last step's interpolant: nothing yet; its values can be used; they cannot.
UNKNOWN, OBEYS, DEPARTS = range(3)
# What State.counters[FRESH] says of the first stage: in place; to be copied from the last; to be computed.
SETTLED, STEPPED, MOVED = range(3)
# ... and in Output.cursor.
SAVED, HISTORY, DENSE = range(3)

# Why the last step was rejected, at REJECTED_LAST, or the one before that, if it was not finite; else 0.
_TOO_LARGE, _NOT_FINITE, _NOT_FINITE_BEFORE = 1, 2, 3

_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0
_MOST_CHECKPOINTS = 64
# Largest departure of an interpolant from the flow, in tolerances, with which its values are used.  Where it is
# measured, it is 4 to 9 times the largest error within the step on the problems tried, and at least twice.
TRUSTED = 5.0
# Below this many parameters plain loops in place beat calls.
FEW = 8
# Up to this many parameters sums are taken from the first to the last, as lanes.py takes them, too.
ORDERED = 32
# Numbers of a vector that are gone through at a time where several passes follow upon each other.
_TILE = 512


class State(NamedTuple):
    """All that the loop needs to go on."""

    clock: Floats  # see the places above; STEEPEST is the largest |grad L|^2 so far, REST the part of it to stop at
    counters: Ints
    theta: Floats  # (P,) at t
    theta_before: Floats  # (P,) at the start of the last accepted step
    theta_new: Floats  # (P,) scratch
    gradient: Floats  # (P,) scratch
    stages: Floats  # (S + E, P): -grad L
    slopes: Floats  # (S + E,): |grad L|^2
    weights: Floats  # (1, S + E): weights of the interpolant
    checkpoint_times: Floats  # (C,)
    checkpoints: Floats  # (C, P): some of the accepted states, see keep_checkpoint
    side: Floats  # (S, P): stages of a step aside, to a time that is saved
    side_slopes: Floats  # (S,)


class Output(NamedTuple):
    """Where one stretch of integration writes."""

    cursor: Ints
    times: Floats  # (T,) times to save
    theta: Floats  # (T, P)
    dissipation: Floats  # (T,)
    history: Floats  # (B, 3): t, h, and 1 if the step was accepted
    dense_times: Floats  # (D, 2): t and h of each accepted step; D = 0 without dense output
    dense: Floats  # (D, 1 + degree, P): parameters at its start, coefficients of the interpolant


# Where the vectors of a state begin in its numbers, and what lies between two of them: at sizes that are multiples of the
# cache's, they would fall into each other's lines.
_FIRST, _GAP = 16, 8


@kernel(forceinline=True)
def _kept(size):
    """How many checkpoints of so many parameters a run keeps."""
    return min(max(2**22 // size, 8), _MOST_CHECKPOINTS)


def new_numbers(theta0: Floats, t0: float, tableau: Tableau) -> tuple[Floats, Ints]:
    """The numbers and counters of the state in which an integration starts: one array each, see ``state_of``."""
    size, stages, rows = theta0.size, tableau.node.size, tableau.sizes.item(0)
    kept = _kept.py_func(size)
    vectors = 4 * (size + _GAP) + (stages + rows + kept) * size
    numbers = np.zeros(_FIRST + vectors + 2 * stages + rows + kept)
    numbers[T] = numbers[T_BEFORE] = t0
    numbers[ERROR_BEFORE] = 1.0
    numbers[_FIRST : _FIRST + size] = theta0
    return numbers, np.zeros(9, dtype=np.int64)


@kernel
def state_of(numbers, counters, tableau, size):
    """The state whose arrays stand one after the other in ``numbers``; for Python its ``py_func``.

    To make so many arrays takes Python longer than a short run takes.
    """
    stages, rows = tableau.node.size, tableau.sizes[0]
    kept = _kept(size)
    a = _FIRST
    b = a + size + _GAP
    c = b + size + _GAP
    d = c + size + _GAP
    e = d + size + _GAP
    f = e + stages * size
    g = f + rows * size
    h = g + kept * size
    i = h + stages
    j = i + stages
    k = j + kept
    return State(
        numbers[:11], counters, numbers[a : a + size], numbers[b : b + size], numbers[c : c + size], numbers[d : d + size],
        numbers[e:f].reshape((stages, size)), numbers[h:i], numbers[i:j].reshape((1, stages)), numbers[j:k],
        numbers[g:h].reshape((kept, size)), numbers[f:g].reshape((rows, size)), numbers[k : k + rows],
    )  # fmt: skip


def new_state(theta0: Floats, t0: float, tableau: Tableau) -> State:
    """The state in which an integration starts."""
    return state_of.py_func(*new_numbers(theta0, t0, tableau), tableau, theta0.size)


@kernel
def copy(source, out):
    """out = source (an assignment of arrays may allocate, in case the two overlap)."""
    for i in range(source.size):
        out[i] = source[i]


@kernel(fastmath={"reassoc"})
def _take_many(g, stages, row):
    """Row of the stages = -g; returns |g|^2, summed in vector registers."""
    total = 0.0
    for i in range(g.size):
        stages[row, i] = -g[i]
        total += g[i] * g[i]
    return total


@kernel(forceinline=True)
def _take(g, stages, row):
    """Row of the stages = -g; returns |g|^2."""
    if g.size > ORDERED:
        return _take_many(g, stages, row)
    total = 0.0
    for i in range(g.size):
        stages[row, i] = -g[i]
        total += g[i] * g[i]
    return total


@kernel
def _field(gradient, t, theta, data, dims, work, g, stages, slopes, row):
    """Row of the stages = -grad L, of the slopes = |grad L|^2."""
    size = g.size
    g[size - 1] = np.nan  # stays, if a user's kernel raises: compiled callers cannot see that
    gradient(t, theta, data, dims, work, g)
    slopes[row] = _take(g, stages, row)


@kernel
def _combine(out, theta, h, stages, index, weight, row, count):
    """out = theta + h sum_j weight[row, j] stages[index[row, j]], tile by tile so that ``out`` stays near."""
    for begin in range(0, out.size, _TILE):
        end = begin + _TILE
        part, start = out[begin:end], theta[begin:end]
        n = part.size
        j = 0
        if count >= 4:
            a, b, c, d = h * weight[row, 0], h * weight[row, 1], h * weight[row, 2], h * weight[row, 3]
            w, x = stages[index[row, 0], begin:end], stages[index[row, 1], begin:end]
            y, z = stages[index[row, 2], begin:end], stages[index[row, 3], begin:end]
            for i in range(n):
                part[i] = start[i] + (a * w[i] + b * x[i] + c * y[i] + d * z[i])
            j = 4
        else:
            for i in range(n):
                part[i] = start[i]
        while j + 4 <= count:  # four stages a pass spare memory traffic
            a, b, c = h * weight[row, j], h * weight[row, j + 1], h * weight[row, j + 2]
            d = h * weight[row, j + 3]
            w, x = stages[index[row, j], begin:end], stages[index[row, j + 1], begin:end]
            y, z = stages[index[row, j + 2], begin:end], stages[index[row, j + 3], begin:end]
            for i in range(n):
                part[i] += a * w[i] + b * x[i] + c * y[i] + d * z[i]
            j += 4
        if j + 2 <= count:
            a, b = h * weight[row, j], h * weight[row, j + 1]
            w, x = stages[index[row, j], begin:end], stages[index[row, j + 1], begin:end]
            for i in range(n):
                part[i] += a * w[i] + b * x[i]
            j += 2
        if j < count:
            a, w = h * weight[row, j], stages[index[row, j], begin:end]
            for i in range(n):
                part[i] += a * w[i]


@kernel(fastmath={"reassoc"})
def _squared_norm_of_many(error, theta, theta_new, rtol, atol):
    """Sum of (error / (atol + rtol max(|theta|, |theta_new|)))^2, in vector registers."""
    total = 0.0
    for i in range(atol.size):
        x = error[i] / (atol[i] + rtol * max(abs(theta[i]), abs(theta_new[i])))
        total += x * x
    return total


@kernel
def _squared_norm(error, theta, theta_new, rtol, atol):
    """Sum of (error / (atol + rtol max(|theta|, |theta_new|)))^2."""
    if atol.size > ORDERED:
        return _squared_norm_of_many(error, theta, theta_new, rtol, atol)
    total = 0.0
    for i in range(atol.size):
        x = error[i] / (atol[i] + rtol * max(abs(theta[i]), abs(theta_new[i])))
        total += x * x
    return total


@kernel(forceinline=True)
def attempt(
    gradient,
    data,
    dims,
    work,
    index,
    weight,
    count,
    node,
    last,
    t,
    h,
    theta,
    theta_new,
    g,
    stages,
    slopes,
):
    """Stages of one step of length h from theta at t; the result stands in ``theta_new``."""
    size = theta.size
    for r in range(1, last + 1):
        if size < FEW:  # a call costs more than the arithmetic
            for i in range(size):
                x = 0.0
                for j in range(count[r]):
                    x += weight[r, j] * stages[index[r, j], i]
                theta_new[i] = theta[i] + h * x
        else:
            _combine(theta_new, theta, h, stages, index, weight, r, count[r])
        g[size - 1] = np.nan
        gradient(t + h * node[r], theta_new, data, dims, work, g)
        slopes[r] = _take(g, stages, r)


@kernel(forceinline=True)
def _error(index, weight, count, h, theta, theta_new, scratch, stages, rtol, atol):
    """Error of an attempted step in units of the tolerance: Hairer's blend of both estimates.

    Of increments, not of rates, whose squares underflow where steps are longer than 1e150.
    """
    high, low = 0.0, 0.0
    row, size = count.size - 2, theta.size
    if size < FEW:
        for i in range(size):
            x, y = 0.0, 0.0
            for j in range(count[row]):
                x += weight[row, j] * stages[index[row, j], i]
            for j in range(count[row + 1]):
                y += weight[row + 1, j] * stages[index[row + 1, j], i]
            scale = atol[i] + rtol * max(abs(theta[i]), abs(theta_new[i]))
            high += (h * x / scale) ** 2
            low += (h * y / scale) ** 2
    else:
        scratch[:] = 0.0
        _combine(scratch, scratch, h, stages, index, weight, row, count[row])
        high = _squared_norm(scratch, theta, theta_new, rtol, atol)
        if count[row + 1] > 0:
            scratch[:] = 0.0
            _combine(scratch, scratch, h, stages, index, weight, row + 1, count[row + 1])
            low = _squared_norm(scratch, theta, theta_new, rtol, atol)
    if high == 0.0 and low == 0.0:
        return 0.0
    return high / np.sqrt((high + 0.01 * low) * atol.size)


@kernel(forceinline=True)
def complete_stages(gradient, data, dims, work, tableau, state):
    """Complete the stages of the last step for its interpolant."""
    if state.counters[EXTRA_DONE]:
        return
    first, h, trial = tableau.sizes[0], state.clock[H_BEFORE], state.side[1]
    for r in range(first, first + tableau.sizes[1]):
        _combine(
            trial, state.theta_before, h, state.stages, tableau.source, tableau.weight, r, tableau.terms[r]
        )
        _field(
            gradient,
            state.clock[T_BEFORE] + h * tableau.node[r],
            trial,
            data,
            dims,
            work,
            state.gradient,
            state.stages,
            state.slopes,
            r,
        )
    state.counters[GRADIENTS] += tableau.sizes[1]
    state.counters[EXTRA_DONE] = 1


@kernel(forceinline=True)
def interpolate(gradient, data, dims, work, tableau, state, t, out):
    """Parameters, to ``out``, and dissipation at a time t within the last accepted step."""
    complete_stages(gradient, data, dims, work, tableau, state)
    h = state.clock[H_BEFORE]
    x = (t - state.clock[T_BEFORE]) / h
    stages, degree = tableau.interpolant.shape
    dissipation = state.clock[DISSIPATION_BEFORE]
    for j in range(stages):
        weight = 0.0
        for d in range(degree - 1, -1, -1):
            weight = (weight + tableau.interpolant[j, d]) * x
        state.weights[0, j] = weight
        dissipation += h * weight * state.slopes[j]
    _combine(out, state.theta_before, h, state.stages, tableau.every, state.weights, 0, stages)
    return dissipation


@kernel(forceinline=True)
def departure(tableau, state, t, theta, rtol, atol):
    """How far the interpolant, at a state of its own, is from obeying the flow: h |theta' - field|, in tolerances.

    The field is in ``state.side[2]``.  The interpolant's error is of that size or below; where stability limits
    the step it can be many times that of the step.
    """
    h = state.clock[H_BEFORE]
    x = (t - state.clock[T_BEFORE]) / h
    stages, degree = tableau.interpolant.shape
    for j in range(stages):
        weight = 0.0
        for d in range(degree - 1, -1, -1):
            weight = weight * x + (d + 1) * tableau.interpolant[j, d]
        state.weights[0, j] = weight
    lack = state.side[3]
    for i in range(lack.size):
        lack[i] = -h * state.side[2, i]
    _combine(lack, lack, h, state.stages, tableau.every, state.weights, 0, stages)
    return np.sqrt(_squared_norm(lack, theta, theta, rtol, atol) / atol.size)


@kernel(forceinline=True)
def obeys(gradient, data, dims, work, tableau, state, rtol, atol):
    """Whether the interpolant of the last step obeys the flow, by its departure at one place in the step.

    That place is where the error's derivative is largest: where the error itself is, the departure vanishes.
    """
    counters, probe = state.counters, state.side[4]
    if counters[PROBED] == UNKNOWN:
        t = state.clock[T_BEFORE] + tableau.probe[0] * state.clock[H_BEFORE]
        interpolate(gradient, data, dims, work, tableau, state, t, probe)
        _field(gradient, t, probe, data, dims, work, state.gradient, state.side, state.side_slopes, 2)
        counters[GRADIENTS] += 1
        lack = departure(tableau, state, t, probe, rtol, atol)
        counters[PROBED] = OBEYS if lack <= TRUSTED else DEPARTS  # for NaN too
    return counters[PROBED] == OBEYS


@kernel
def take_back(state, output, h):
    """Undo the last accepted step, of which nothing has been saved yet, to try it again with step size h."""
    clock, counters = state.clock, state.counters
    for i in range(state.theta.size):
        state.theta[i] = state.theta_before[i]
    clock[T], clock[DISSIPATION], clock[H] = clock[T_BEFORE], clock[DISSIPATION_BEFORE], h
    counters[ACCEPTED] -= 1
    counters[REJECTED] += 1
    counters[REJECTED_LAST] = _TOO_LARGE
    counters[FRESH] = SETTLED  # the first stage is still in place
    output.history[output.cursor[HISTORY] - 1, 2] = 0.0


@kernel
def state_at(gradient, data, dims, work, tableau, state, t, out, rtol, atol):
    """Parameters at a time within the last step, to ``out``, and dissipation.

    By the interpolant if it obeys the flow there, else by a step of its own from where the last one began.
    """
    # after MOVED the field is another one, and the step has been checked where it was cut
    if state.counters[FRESH] == MOVED or obeys(gradient, data, dims, work, tableau, state, rtol, atol):
        return interpolate(gradient, data, dims, work, tableau, state, t, out)
    h, last = t - state.clock[T_BEFORE], tableau.sizes[0] - 1
    for i in range(out.size):
        state.side[0, i] = state.stages[0, i]
    state.side_slopes[0] = state.slopes[0]
    attempt(
        gradient,
        data,
        dims,
        work,
        tableau.source,
        tableau.weight,
        tableau.terms,
        tableau.node,
        last,
        state.clock[T_BEFORE],
        h,
        state.theta_before,
        state.theta_new,
        state.gradient,
        state.side,
        state.side_slopes,
    )
    state.counters[GRADIENTS] += last
    dissipation = state.clock[DISSIPATION_BEFORE]
    for j in range(tableau.terms[last]):
        dissipation += h * tableau.weight[last, j] * state.side_slopes[tableau.source[last, j]]
    for i in range(out.size):
        out[i] = state.theta_new[i]
    return dissipation


@kernel
def store_dense(gradient, data, dims, work, tableau, state, output):
    """Keep the interpolant of the last accepted step as a polynomial in (t - t_step) / h."""
    complete_stages(gradient, data, dims, work, tableau, state)
    place = output.cursor[DENSE]
    output.dense_times[place, 0] = state.clock[T_BEFORE]
    output.dense_times[place, 1] = state.clock[H_BEFORE]
    copy(state.theta_before, output.dense[place, 0])
    stages, degree = tableau.interpolant.shape
    for d in range(degree):
        for j in range(stages):
            state.weights[0, j] = tableau.interpolant[j, d]
        out = output.dense[place, d + 1]
        out[:] = 0.0
        _combine(out, out, state.clock[H_BEFORE], state.stages, tableau.every, state.weights, 0, stages)
    output.cursor[DENSE] += 1


@kernel(fastmath={"reassoc"})
def _gaps(times, kept, a, b):
    """Time between two checkpoints, and that relative to their times, times the distance between them."""
    square = 0.0
    for i in range(kept.shape[1]):
        square += (kept[b, i] - kept[a, i]) ** 2
    distance, time = np.sqrt(square), times[b] - times[a]
    return time * distance, time / (abs(times[a]) + abs(times[b]) + 1e-300) * distance


@kernel
def _thin(clock, times, kept):
    """Keep the first checkpoint, and the last, and of those between what is farther apart from the one before."""
    count, last = 1, times.size - 1
    for c in range(1, times.size):
        far, ratio = _gaps(times, kept, count - 1, c)
        if c == last or far > clock[APART] or ratio > clock[APART_IN_RATIO]:
            times[count] = times[c]
            copy(kept[c], kept[count])
            count += 1
    return count


@kernel(forceinline=True)
def keep_checkpoint(state):
    """Keep this accepted state, which takes the place of the one before if that was close to its own predecessor.

    What is measured from the checkpoints are integrals over time of functions of the state, so that they are
    to be equally far apart, as time times distance; and, since a flow that slows down like a power of t moves as much
    from 1 to 10 as from 1e9 to 1e10, as relative time times distance, too.
    """
    clock, counters, times, kept = state.clock, state.counters, state.checkpoint_times, state.checkpoints
    count = counters[CHECKPOINTS]
    if count > 1:
        far, ratio = _gaps(times, kept, count - 2, count - 1)
        if far <= clock[APART] and ratio <= clock[APART_IN_RATIO]:
            count -= 1
    while count == times.size:
        # on a straight path at even speed, neighbours are apart by the whole divided by the square of their number
        far, ratio = _gaps(times, kept, 0, count - 1)
        clock[APART] = max(1.5 * clock[APART], far / count**2, 1e-300)
        clock[APART_IN_RATIO] = max(1.5 * clock[APART_IN_RATIO], ratio / count**2, 1e-300)
        count = _thin(clock, times, kept)
    times[count] = clock[T]
    copy(state.theta, kept[count])
    counters[CHECKPOINTS] = count + 1


@kernel
def largest(values, theta, rtol, atol):
    """Largest of |values| in units of the tolerance; unlike the squares, it does not overflow."""
    most = 0.0
    for i in range(atol.size):
        most = max(most, abs(values[i]) / (atol[i] + rtol * abs(theta[i])))
    return most


@kernel
def _start(gradient, data, dims, work, tableau, state, rtol, atol):
    """First gradient and first step size (Hairer, Norsett, Wanner, II.4)."""
    size, h0, t = atol.size, 1e-6, state.clock[T]
    theta, trial, stages = state.theta, state.theta_new, state.stages
    _field(gradient, t, theta, data, dims, work, state.gradient, stages, state.slopes, 0)
    unit, slope = largest(theta, theta, rtol, atol), largest(stages[0], theta, rtol, atol)
    if unit > 1e-5 and slope > 1e-5:
        h0 = 0.01 * unit / slope
    for i in range(size):
        trial[i] = theta[i] + h0 * stages[0, i]
    _field(gradient, t + h0, trial, data, dims, work, state.gradient, stages, state.slopes, 1)
    for i in range(size):
        trial[i] = stages[1, i] - stages[0, i]
    bend = largest(trial, theta, rtol, atol) / h0
    steepest = max(slope, bend)
    h1 = max(1e-6, 1e-3 * h0)
    if steepest > 1e-15:
        h1 = (0.01 / steepest) ** (1.0 / tableau.sizes[2])
    state.clock[H] = min(100.0 * h0, h1)
    state.counters[GRADIENTS] += 2
    state.counters[STARTED] = 1
    copy(theta, state.theta_before)
    keep_checkpoint(state)


@kernel(forceinline=True)
def next_step(error, before, good, after_rejected, exponent):
    """Size of the next step in units of this one, by a PI controller; any error, too, that is not finite."""
    log = log2(error)
    power = (0.4 * log2(before) - 0.7 * log) / exponent if good else -log / exponent
    factor = max(_SHRINK, _SAFETY * exp2(power))
    return min(factor, (1.0 if after_rejected else _GROW) if good else factor)


@kernel(forceinline=True)
def no_later(t, h):
    """Whether double precision has no later time for a step of length h from t."""
    return (t + 0.1 * h == t) | (t + h == np.inf)


@kernel(forceinline=True)
def at_rest(state):
    """Whether the speed has fallen to the part of its largest value at which to stop."""
    clock, square = state.clock, state.slopes[0]
    clock[STEEPEST] = max(clock[STEEPEST], square)
    return clock[REST] > 0.0 and square <= clock[REST] * clock[REST] * clock[STEEPEST]


@kernel
def advance(gradient, data, dims, work, tableau, state, output, rtol, atol, budget, max_steps):
    """Integrate until all times are saved, or as far as it goes; return why it came back.

    ``budget`` is the number of attempted steps after which the loop pauses, ``max_steps`` the
    number of accepted and rejected steps at which it gives up.
    """
    clock, counters, theta, theta_new = state.clock, state.counters, state.theta, state.theta_new
    theta_before, g, stages, slopes = state.theta_before, state.gradient, state.stages, state.slopes
    index, weight, count, node = tableau.source, tableau.weight, tableau.terms, tableau.node
    cursor, times, history, dense_times = output.cursor, output.times, output.history, output.dense_times
    exponent, last = tableau.sizes[2], tableau.sizes[0] - 1
    size = theta.size
    if not counters[STARTED]:
        _start(gradient, data, dims, work, tableau, state, rtol, atol)
    while True:
        while cursor[SAVED] < times.size and times[cursor[SAVED]] <= clock[T]:
            place = cursor[SAVED]
            if times[place] == clock[T]:
                copy(theta, output.theta[place])
                output.dissipation[place] = clock[DISSIPATION]
            else:
                output.dissipation[place] = state_at(
                    gradient, data, dims, work, tableau, state, times[place], output.theta[place], rtol, atol
                )
            cursor[SAVED] += 1
        if cursor[SAVED] == times.size:
            return FINISHED
        if budget <= 0:
            return PAUSED
        if counters[ACCEPTED] + counters[REJECTED] >= max_steps:
            return MAX_STEPS
        if cursor[HISTORY] == history.shape[0]:
            return BLOCK_FULL
        if cursor[DENSE] == dense_times.shape[0] and dense_times.shape[0] > 0:
            return BLOCK_FULL

        if counters[FRESH] == STEPPED:
            for i in range(size):
                stages[0, i] = stages[last, i]
            slopes[0] = slopes[last]
        elif counters[FRESH] == MOVED:
            _field(gradient, clock[T], theta, data, dims, work, g, stages, slopes, 0)
            counters[GRADIENTS] += 1
        counters[FRESH] = SETTLED
        if not np.isfinite(slopes[0]):
            return NON_FINITE
        if at_rest(state):
            return AT_REST
        t, h = clock[T], clock[H]
        if no_later(t, h):
            return NON_FINITE if counters[REJECTED_LAST] >= _NOT_FINITE else STEP_TOO_SMALL
        attempt(
            gradient,
            data,
            dims,
            work,
            index,
            weight,
            count,
            node,
            last,
            t,
            h,
            theta,
            theta_new,
            g,
            stages,
            slopes,
        )
        error = _error(index, weight, count, h, theta, theta_new, g, stages, rtol, atol)
        if not np.isfinite(slopes[last]):  # of the new state; not all error estimates hold it
            error = np.inf
        good = error <= 1.0  # false for NaN
        counters[GRADIENTS] += last
        if good and dense_times.shape[0] > 0:
            clock[T_BEFORE], clock[H_BEFORE], counters[EXTRA_DONE], counters[PROBED] = t, h, 0, UNKNOWN
            copy(theta, theta_before)
            if not obeys(gradient, data, dims, work, tableau, state, rtol, atol):
                good = False
                error = 2.0**exponent  # half the step
        history[cursor[HISTORY], 0] = t
        history[cursor[HISTORY], 1] = h
        history[cursor[HISTORY], 2] = 1.0 if good else 0.0
        cursor[HISTORY] += 1
        budget -= 1
        if not good:
            counters[REJECTED] += 1
            counters[REJECTED_LAST] = _TOO_LARGE if error < np.inf else _NOT_FINITE
            clock[H] = h * next_step(error, clock[ERROR_BEFORE], False, False, exponent)
            continue
        rejected = counters[REJECTED_LAST]
        factor = next_step(error, clock[ERROR_BEFORE], True, 0 < rejected < _NOT_FINITE_BEFORE, exponent)
        clock[ERROR_BEFORE] = max(error, 1e-4)
        clock[T_BEFORE], clock[H_BEFORE], clock[DISSIPATION_BEFORE] = t, h, clock[DISSIPATION]
        clock[T], clock[H] = t + h, h * factor
        for j in range(count[last]):
            clock[DISSIPATION] += h * weight[last, j] * slopes[index[last, j]]
        for i in range(size):
            theta_before[i] = theta[i]
            theta[i] = theta_new[i]
        counters[ACCEPTED] += 1
        counters[FRESH] = STEPPED
        counters[REJECTED_LAST] = _NOT_FINITE_BEFORE if rejected == _NOT_FINITE else 0
        if dense_times.shape[0] == 0:
            counters[EXTRA_DONE], counters[PROBED] = 0, UNKNOWN
        keep_checkpoint(state)
        if dense_times.shape[0] > 0:
            store_dense(gradient, data, dims, work, tableau, state, output)
        if budget <= 0:
            return PAUSED  # before saving: what drives this loop may cut the step short


@kernel
def run(
    loop, gradient, data, dims, work, tableau, numbers, counters, cursor, times, theta, dissipation, history, dense_times,
    dense, rtol, atol, budget, max_steps,
):  # fmt: skip
    """``advance``, which comes as a first-class function (``abi.pointer``), from and to plain arrays."""
    state = state_of(numbers, counters, tableau, atol.size)
    output = Output(cursor, times, theta, dissipation, history, dense_times, dense)
    return loop(gradient, data, dims, work, tableau, state, output, rtol, atol, budget, max_steps)
