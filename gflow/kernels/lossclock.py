"""The flow by the clock of its loss: states at given values of l = log(1/L), and the time at which it is there.

The explicit loop (or the one with events) integrates dtheta/ds = -grad log L, a gradient flow itself; its kernels
are those of log L.  l grows along it at the rate |grad log L|^2, which is the dissipation that the loop
integrates and interpolates anyway.  So the time t, dt = e^l ds, costs no gradient but only quadratures of e^l over
polynomials; since t may be e^(10^6), its logarithm is what is carried.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gflow.kernels import elementary, explicit, piecewise
from gflow.kernels.abi import kernel
from gflow.kernels.explicit import (
    ACCEPTED,
    CHECKPOINTS,
    DISSIPATION,
    FINISHED,
    FRESH,
    H_BEFORE,
    HISTORY,
    MOVED,
    PAUSED,
    SAVED,
    T_BEFORE,
    H,
    T,
)  # fmt: skip

Floats = NDArray[np.float64]

# Why the loop came back, beyond the other loops' reasons: log L has ceased to fall.
SETTLED = 20

# Places in Clock.numbers; BASE is what has been taken off s.
LEVEL, LEVEL_BEFORE, LOG_TIME, LOG_TIME_BEFORE, BASE, QUIET = range(6)

_EPS = float(np.finfo(np.float64).eps)
_TRIALS = 100  # of finding a level within a step
# How far from a level the loss of its state may be: rounding.
_CLOSE = 16.0 * _EPS
# What a secant's root lacks is taken for at most so many times the product of the distances in l and in parts of a step.
_SECANT = 10.0
# Rise of l on one panel of a quadrature, and how far below the end of a step e^l is nothing.
_PANEL, _DEPTH = 2.0, 45.0
# s is counted anew where it is so many steps long, so that it resolves them.
_FAR = 1e4
# Steps on which nothing moves, after which log L counts as settled.
_PATIENCE = 100

# Gauss-Legendre, eight points on [0, 1].
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
_NODES, _WEIGHTS = 0.5 * (_NODES + 1.0), 0.5 * _WEIGHTS


class Clock(NamedTuple):
    """What the loop knows and writes beyond the explicit loop's state and output."""

    numbers: Floats  # see the places above
    rise: Floats  # (degree,): coefficients of x, x^2, ... in the rise of l over the last step
    levels: Floats  # (T,) values of l at which to save
    log_times: Floats  # (T,)
    s: Floats  # (T,)


def new_clock(levels: Floats, level: float, degree: int) -> Clock:
    """The clock of a start with log(1/L) = ``level``."""
    numbers = np.zeros(6)
    numbers[LEVEL] = numbers[LEVEL_BEFORE] = level
    numbers[LOG_TIME] = numbers[LOG_TIME_BEFORE] = -np.inf
    return Clock(numbers, np.zeros(max(degree, 3)), levels, np.empty(len(levels)), np.empty(len(levels)))


@kernel(forceinline=True)
def _log_add(a, b):
    """log(e^a + e^b)."""
    top, low = max(a, b), min(a, b)
    return top if low == -np.inf else top + elementary.log1p(elementary.exp(low - top))


@kernel(forceinline=True)
def _at(rise, x):
    """The rise of l up to the part x of the last step."""
    total = 0.0
    for d in range(rise.size - 1, -1, -1):
        total = (total + rise[d]) * x
    return total


@kernel(forceinline=True)
def _steepness(rise, x):
    """Derivative of the rise of l by the part x of the last step."""
    slope = 0.0
    for d in range(rise.size - 1, -1, -1):
        slope = slope * x + (d + 1) * rise[d]
    return slope


@kernel(forceinline=True)
def _rise(gradient, data, dims, work, tableau, state, clock, rtol):
    """Coefficients of l over the last step: the interpolant of the dissipation.

    Where the rate hardly bends over the stages, as it does where stability limits the steps, a cubic is as
    good and needs no further stages.
    """
    rise, slopes, last = clock.rise, state.slopes, tableau.sizes[0] - 1
    h, first, final = state.clock[H_BEFORE], slopes[0], slopes[tableau.sizes[0] - 1]
    for d in range(rise.size):
        rise[d] = 0.0
    increment = 0.0
    for j in range(tableau.terms[last]):
        increment += h * tableau.weight[last, j] * slopes[tableau.source[last, j]]
    bend = 0.0
    for j in range(1, last):
        bend = max(bend, abs(slopes[j] - first - (final - first) * tableau.node[j]))
    bend /= max(first, final)
    if not state.counters[explicit.EXTRA_DONE] and increment * bend * np.sqrt(bend) <= 0.1 * rtol * (
        1.0 + abs(clock.numbers[LEVEL])
    ):
        rise[0] = h * first
        rise[1] = 3.0 * increment - h * (2.0 * first + final)
        rise[2] = h * (first + final) - 2.0 * increment
        return
    explicit.complete_stages(gradient, data, dims, work, tableau, state)
    stages, degree = tableau.interpolant.shape
    for d in range(degree):
        for j in range(stages):
            rise[d] += h * tableau.interpolant[j, d] * slopes[j]


@kernel(forceinline=True, fastmath={"reassoc", "contract"})
def _log_time(rise, h, x):
    """Logarithm of h times the integral of e^(l - l(x)) from 0 to the part x of the step."""
    end, total, high = _at(rise, x), 0.0, x
    while high > 0.0 and end - _at(rise, high) < _DEPTH:
        slope = _steepness(rise, high)
        width = min(high, max(_PANEL / slope, 1e-12 * x)) if slope > 0.0 else high
        while width > 1e-12 * x and _at(rise, high) - _at(rise, high - width) > 2.0 * _PANEL:
            width *= 0.5
        low = high - width
        for q in range(_NODES.size):
            total += width * _WEIGHTS[q] * elementary.exp(_at(rise, low + width * _NODES[q]) - end)
        high = low
    return np.log(h * total)


@kernel(forceinline=True)
def _time_at(clock, h, x, level):
    """log t at the part x of the last step, where l = ``level``."""
    passed = level + _log_time(clock.rise, h, x) if x > 0.0 else -np.inf
    return _log_add(clock.numbers[LOG_TIME_BEFORE], passed)


@kernel(forceinline=True)
def _part(state):
    """The part of the last step that was kept: events cut it short."""
    return min((state.clock[T] - state.clock[T_BEFORE]) / state.clock[H_BEFORE], 1.0)


@kernel(forceinline=True)
def _tick(gradient, loss, data, dims, work, tableau, state, output, clock, rtol, atol, taken, rows):
    """Bring l, log t and the history to what the other loop has done; whether log L has settled."""
    numbers, times = clock.numbers, state.clock
    before, row = numbers[LEVEL], output.cursor[HISTORY] - 1
    if state.counters[ACCEPTED] == taken:
        if row >= rows:  # rejected: its length in l is known to first order
            output.history[row, 0], output.history[row, 1] = before, output.history[row, 1] * state.slopes[0]
        return False
    numbers[LEVEL_BEFORE], numbers[LOG_TIME_BEFORE] = before, numbers[LOG_TIME]
    numbers[LEVEL] = -loss(0.0, state.theta, data, dims, work)
    output.history[row, 0], output.history[row, 1] = before, numbers[LEVEL] - before
    _rise(gradient, data, dims, work, tableau, state, clock, rtol)
    numbers[LOG_TIME] = _time_at(clock, times[H_BEFORE], _part(state), numbers[LEVEL])
    if times[T_BEFORE] > _FAR * times[H]:
        shift = times[T_BEFORE]
        numbers[BASE] += shift
        times[T] -= shift
        times[T_BEFORE] = 0.0
        for c in range(state.counters[CHECKPOINTS]):
            state.checkpoint_times[c] -= shift
    still = abs(numbers[LEVEL] - before) <= 4.0 * _EPS * max(1.0, abs(before))
    if still:  # near a saddle too, but there something grows
        speed = explicit.largest(state.stages[tableau.sizes[0] - 1], state.theta, rtol, atol)
        if speed == 0.0 and state.counters[FRESH] != MOVED:  # after an event the field is another one
            return True
        still = times[H_BEFORE] * speed < 100.0
    numbers[QUIET] = numbers[QUIET] + 1.0 if still else 0.0
    return numbers[QUIET] >= _PATIENCE


@kernel
def _part_at(rise, part, wanted, whole):
    """Part of the last step, up to ``part`` of it, over which l rises by ``wanted`` of its rise over that, ``whole``.

    By the polynomial, whose own rise is scaled to ``whole``: Newton's iteration, or bisection where that leaves the bracket.
    """
    low, high, scale = 0.0, part, _at(rise, part) / whole
    x = part * wanted / whole
    for _ in range(60):
        here = _at(rise, x) - scale * wanted
        if here > 0.0:
            high = x
        else:
            low = x
        move = -here / _steepness(rise, x)
        if abs(move) <= 4.0 * _EPS * x or high - low <= 4.0 * _EPS * high:
            break
        x = x + move if low < x + move < high else 0.5 * (low + high)
    return x


@kernel
def _creep(gradient, loss, data, dims, work, tableau, state, out, move, target):
    """Move the end of a step aside, in ``out``, on by ``move`` in s, and to where l = ``target``; how far that was.

    By the midpoint rule, and along the slope there for what is then still lacking.
    """
    half, last = state.side[1], tableau.sizes[0] - 1
    for i in range(out.size):
        half[i] = out[i] + 0.5 * move * state.side[last, i]
    explicit._field(gradient, 0.0, half, data, dims, work, state.gradient, state.side, state.side_slopes, 2)
    state.counters[explicit.GRADIENTS] += 1
    for i in range(out.size):
        out[i] += move * state.side[2, i]
    for _ in range(2):
        more = (target + loss(0.0, out, data, dims, work)) / state.side_slopes[2]
        for i in range(out.size):
            out[i] += more * state.side[2, i]
        move += more
    return move


@kernel
def _save_within(gradient, loss, data, dims, work, tableau, state, output, clock, rtol, atol):
    """Save the next level, which lies within the last step: by Newton's iteration and secants, within a bracket.

    By the loss of the state; where an event has changed the field since, by the rise of l before it.
    """
    place, last = output.cursor[SAVED], tableau.sizes[0] - 1
    begin, h = state.clock[T_BEFORE], state.clock[H_BEFORE]
    target, out, rise = clock.levels[place], output.theta[place], clock.rise
    level, level_before = clock.numbers[LEVEL], clock.numbers[LEVEL_BEFORE]
    low, high, x_before, before = 0.0, _part(state), 0.0, 0.0
    end = _at(rise, high)
    x = _part_at(rise, high, target - level_before, level - level_before)
    slope = _steepness(rise, x)
    for trial in range(_TRIALS):
        output.dissipation[place] = explicit.state_at(
            gradient, data, dims, work, tableau, state, begin + x * h, out, rtol, atol
        )
        cut = state.counters[FRESH] == MOVED
        if cut:
            here = level - target - (end - _at(rise, x))
        else:
            here = -loss(0.0, out, data, dims, work) - target
        aside = not cut and state.counters[explicit.PROBED] == explicit.DEPARTS
        if aside:
            slope = h * state.side_slopes[last]
        elif trial > 0:
            slope = (here - before) / (x - x_before)
        move = -here / slope
        if abs(here) <= _CLOSE * max(1.0, abs(target)) or abs(move) * h <= _EPS * (begin + x * h):
            break
        if high - low <= 4.0 * _EPS * high or trial == _TRIALS - 1:
            break
        near = _SECANT * abs(here * (x - x_before)) <= _CLOSE * max(1.0, abs(target))
        if near and trial > 0 and not (cut or aside) and low < x + move < high:
            x += move  # where what is lacking is some tens of roundings
            output.dissipation[place] = explicit.state_at(
                gradient, data, dims, work, tableau, state, begin + x * h, out, rtol, atol
            )
            break
        if aside and abs(move) ** 3 <= 0.01 * rtol:
            x += _creep(gradient, loss, data, dims, work, tableau, state, out, move * h, target) / h
            output.dissipation[place] -= here
            break
        x_before, before = x, here
        if here > 0.0:
            high = x
        else:
            low = x
        x += move
        if not low < x < high or trial % 8 == 7:
            x = 0.5 * (low + high)
    clock.log_times[place] = _time_at(clock, h, x, target)
    clock.s[place] = clock.numbers[BASE] + begin + x * h
    output.cursor[SAVED] += 1


@kernel
def _save(gradient, loss, data, dims, work, tableau, state, output, clock, rtol, atol):
    """Save the levels that have been reached."""
    cursor, levels, now = output.cursor, clock.levels, clock.numbers[LEVEL]
    while cursor[SAVED] < levels.size and levels[cursor[SAVED]] <= now:
        place = cursor[SAVED]
        if levels[place] < now:
            _save_within(gradient, loss, data, dims, work, tableau, state, output, clock, rtol, atol)
            continue
        for i in range(state.theta.size):
            output.theta[place, i] = state.theta[i]
        output.dissipation[place] = state.clock[DISSIPATION]
        clock.log_times[place] = clock.numbers[LOG_TIME]
        clock.s[place] = clock.numbers[BASE] + state.clock[T]
        cursor[SAVED] += 1


@kernel
def advance(gradient, loss, data, dims, work, tableau, state, output, clock, rtol, atol, budget, max_steps):
    """Integrate until all levels are saved, or as far as it goes; return why it came back.

    ``gradient`` and ``loss`` are those of log L.  The times of ``output`` are ones that are never reached:
    what is to be saved stands in ``clock``.
    """
    cursor, counters = output.cursor, state.counters
    while True:
        _save(gradient, loss, data, dims, work, tableau, state, output, clock, rtol, atol)
        if cursor[SAVED] == clock.levels.size:
            return FINISHED
        if budget <= 0:
            return PAUSED
        taken, rows = counters[ACCEPTED], cursor[HISTORY]
        # a bare number would be a type of its own, and the loop compiled for it once more
        code = explicit.advance(
            gradient, data, dims, work, tableau, state, output, rtol, atol, np.int64(1), max_steps
        )
        settled = _tick(
            gradient, loss, data, dims, work, tableau, state, output, clock, rtol, atol, taken, rows
        )
        if code != PAUSED:
            return code
        if settled:
            return SETTLED
        budget -= 1


@kernel
def advance_piecewise(
    gradient, loss, data, dims, work, tableau, state, output, clock, pattern, rtol, atol, budget, max_steps
):
    """The same with the events of a ReLU network, whose table then holds values of l."""
    cursor, counters = output.cursor, state.counters
    while True:
        _save(gradient, loss, data, dims, work, tableau, state, output, clock, rtol, atol)
        if cursor[SAVED] == clock.levels.size:
            return FINISHED
        if budget <= 0:
            return PAUSED
        taken, rows, first = counters[ACCEPTED], cursor[HISTORY], pattern.numbers[piecewise.EVENTS]
        code = piecewise.advance(
            gradient, data, dims, work, tableau, state, output, pattern, rtol, atol, np.int64(1), max_steps
        )
        settled = _tick(
            gradient, loss, data, dims, work, tableau, state, output, clock, rtol, atol, taken, rows
        )
        for row in range(first, pattern.numbers[piecewise.EVENTS]):
            pattern.table[row, 0] = clock.numbers[LEVEL]
        if code != PAUSED:
            return code
        if settled:
            return SETTLED
        budget -= 1


@kernel
def run(
    loop, gradient, loss, data, dims, work, tableau, numbers, counters, cursor, times, theta, dissipation, history,
    dense_times, dense, clock, rtol, atol, budget, max_steps,
):  # fmt: skip
    """``advance``, as a first-class function, from and to plain arrays."""
    state = explicit.state_of(numbers, counters, tableau, atol.size)
    output = explicit.Output(cursor, times, theta, dissipation, history, dense_times, dense)
    return loop(
        gradient, loss, data, dims, work, tableau, state, output, clock, rtol, atol, budget, max_steps
    )
